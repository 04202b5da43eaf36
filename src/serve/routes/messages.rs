//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::answer::{CollectedCall, Event, Tool};
use super::super::app::App;
use super::super::body;
use super::super::error::{ApiError, Dialect};
use super::super::log::Record;
use super::super::protocol::{Finish, Usage};
use super::super::run::{Choice, Conversation, Manner, Run, Step};
use super::super::sse;
use super::super::wire::{
    Common, Notes, ResponseFormat, Text, TextOr, check_length, check_tools, collect, message, notes_of, whole,
};
use super::{chat, json_response};

/// A request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct MessagesRequest {
    /// The model.
    pub model: Option<String>,
    /// The conversation.
    #[schemars(length(min = 1))]
    pub messages: Vec<Turn>,
    /// The most tokens of the answer. `/v1/messages` needs it.
    #[schemars(range(min = 1))]
    #[serde(default, deserialize_with = "whole")]
    pub max_tokens: Option<i64>,
    /// What holds for the conversation.
    pub system: Option<TextOr<Block>>,
    /// Texts that end the answer.
    pub stop_sequences: Option<Vec<String>>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// Tools that the model may call.
    pub tools: Option<Vec<ToolOf>>,
    /// Which of them.
    pub tool_choice: Option<ToolChoice>,
    /// Whether the model reasons first, where that can be chosen.
    pub thinking: Option<Thinking>,
    /// What the answer has to be, and how much the model reasons.
    pub output_config: Option<OutputConfig>,
    /// What the answer has to be, in older clients.
    pub output_format: Option<ResponseFormat>,
    /// What the model's template reads besides.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A message.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Turn {
    /// `user` or `assistant`.
    pub role: String,
    /// What it says.
    pub content: TextOr<Block>,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
pub struct Block {
    /// `text`, `thinking`, `redacted_thinking`, `tool_use` or `tool_result`.
    pub r#type: String,
    /// The text.
    pub text: Option<String>,
    /// The reasoning.
    pub thinking: Option<String>,
    /// The number of a call.
    pub id: Option<String>,
    /// The name of the tool that is called.
    pub name: Option<String>,
    /// The arguments of the call.
    pub input: Option<Value>,
    /// The number of the call that this is the result of.
    pub tool_use_id: Option<String>,
    /// The result.
    pub content: Option<Value>,
    /// Whether the call failed.
    pub is_error: Option<bool>,
}

/// A tool.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ToolOf {
    /// Its name.
    pub name: String,
    /// `custom`. Others are served by Anthropic, and left out here.
    pub r#type: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub input_schema: Option<Value>,
    /// Whether a schema that cannot be enforced is an error.
    pub strict: Option<bool>,
}

/// Which tools may be called.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    pub r#type: String,
    /// The tool.
    pub name: Option<String>,
    /// Whether there may be one call only.
    pub disable_parallel_tool_use: Option<bool>,
}

/// Whether the model reasons first.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Thinking {
    /// `enabled`, `adaptive` or `disabled`.
    pub r#type: String,
}

/// What the answer has to be, and how much the model reasons.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct OutputConfig {
    /// `low`, `medium`, `high`, ...
    pub effort: Option<String>,
    /// The form of the answer.
    pub format: Option<ResponseFormat>,
}

/// An answer.
#[derive(Serialize, JsonSchema)]
pub struct MessageResponse {
    id: String,
    r#type: &'static str,
    role: &'static str,
    model: String,
    content: Vec<Value>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    /// Of refusals, which there are none of.
    stop_details: Option<Value>,
    usage: MessageUsage,
    /// Of code that is executed, which is not done here.
    container: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nibble: Option<Notes>,
}

/// Tokens that an answer took.
#[derive(Serialize, JsonSchema)]
pub struct MessageUsage {
    /// Of the prompt, without those from the cache.
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    /// Of the prompt, from the cache.
    cache_read_input_tokens: u64,
    output_tokens: u64,
    /// What Anthropic says besides; it does not apply here.
    cache_creation: Option<Value>,
    inference_geo: Option<Value>,
    output_tokens_details: Option<Value>,
    server_tool_use: Option<Value>,
    service_tier: Option<Value>,
}

impl From<&Usage> for MessageUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.cached_tokens,
            output_tokens: usage.written_tokens,
            cache_creation: None,
            inference_geo: None,
            output_tokens_details: None,
            server_tool_use: None,
            service_tier: None,
        }
    }
}

/// Answers `/v1/messages`.
///
/// # Errors
/// If there is no answer.
pub async fn messages(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = app.read_body(request).await?;
    let request: MessagesRequest = body::typed(&value)?;
    let manner = manner(&request, &value)?;
    let (streams, model_name) = (request.stream.unwrap_or(false), request.model.clone());
    let talk = conversation(request, app.options.max_items, &record)?;
    let model = app.choose(model_name.as_deref(), &record).await?;
    let mut run = app.converse(model, talk, manner, &record).await?;
    let mut head = MessageResponse {
        id: app.new_id("msg_"),
        r#type: "message",
        role: "assistant",
        model: run.model.name.clone(),
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        stop_details: None,
        container: None,
        usage: MessageUsage::from(&Usage { prompt_tokens: run.prompt_tokens, ..Usage::default() }),
        nibble: None,
    };
    if streams {
        return Ok(sse::response(app.options.keep_alive, &record, |events| stream(app.clone(), run, head, events)));
    }
    let texts = collect(&mut run, 1, false).await?;
    head.nibble = Some(notes_of(&run, &texts));
    let text = texts.into_iter().next().unwrap_or_default();
    if !text.said.reasoning.is_empty() {
        head.content.push(json!({"type": "thinking", "thinking": text.said.reasoning, "signature": ""}));
    }
    if !text.said.text.is_empty() {
        head.content.push(text_block(&text.said.text));
    }
    head.content.extend(text.said.calls.iter().map(|call| call_block(&app, call)));
    (head.stop_reason, head.stop_sequence) = stop_reason(&text);
    head.usage = MessageUsage::from(&text.usage);
    json_response(&head)
}

fn text_block(text: &str) -> Value {
    json!({"type": "text", "text": text, "citations": null})
}

fn call_head(app: &App, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": app.new_id("toolu_"), "name": name, "input": input, "caller": {"type": "direct"}})
}

/// A call. Arguments that are no object, because the answer ended early, are text: nothing can be called with them.
fn call_block(app: &App, call: &CollectedCall) -> Value {
    match serde_json::from_str::<Map<String, Value>>(&call.arguments) {
        Ok(input) if call.complete => call_head(app, &call.name, input.into()),
        _ => text_block(&format!("{} {}", call.name, call.arguments)),
    }
}

fn stop_reason(text: &Text) -> (Option<&'static str>, Option<String>) {
    match (&text.finish, text.finish_reason()) {
        (_, "tool_calls") => (Some("tool_use"), None),
        (Some(Finish::Stop(word)), _) => (Some("stop_sequence"), Some(word.clone())),
        (Some(Finish::ContextFull), _) => (Some("model_context_window_exceeded"), None),
        (_, "length") => (Some("max_tokens"), None),
        _ => (Some("end_turn"), None),
    }
}

/// A number of tokens.
#[derive(Serialize, JsonSchema)]
pub struct CountResponse {
    input_tokens: u64,
}

/// Answers `/v1/messages/count_tokens`.
///
/// # Errors
/// If there is no answer.
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: MessagesRequest = app.read(request).await?;
    let model_name = request.model.clone();
    let talk = conversation(request, app.options.max_items, &record)?;
    let input_tokens = app.count_tokens(model_name.as_deref(), talk, &record).await?;
    json_response(&CountResponse { input_tokens })
}

fn manner(request: &MessagesRequest, value: &Value) -> Result<Manner, ApiError> {
    let max_tokens = match request.max_tokens {
        Some(n) if n >= 1 => u64::try_from(n).ok(),
        Some(n) => return Err(ApiError::field("max_tokens", format!("cannot be {n}; it has to be 1 or more"))),
        None => return Err(ApiError::field("max_tokens", "is missing; it is the most tokens of the answer")),
    };
    let stop = request.stop_sequences.clone().unwrap_or_default();
    check_length("stop_sequences", stop.len(), 64)?;
    let common: Common = body::typed(value)?;
    let mut manner = Manner {
        n: 1,
        max_tokens,
        stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
        ..common.manner(value)?
    };
    let format = request.output_config.as_ref().and_then(|config| config.format.as_ref());
    if let Some(format) = &request.output_format {
        format.apply("output_format", &mut manner)?;
    } else if let Some(format) = format {
        format.apply("output_config.format", &mut manner)?;
    }
    Ok(manner)
}

fn conversation(request: MessagesRequest, most: usize, record: &Record) -> Result<Conversation, ApiError> {
    check_length("messages", request.messages.len(), most)?;
    if request.messages.is_empty() {
        return Err(ApiError::field("messages", "is empty; it has to have at least one message"));
    }
    let mut messages = Vec::new();
    if let Some(system) = &request.system {
        let mut text = texts(system, "system")?;
        // Claude Code writes a line for Anthropic's billing in front, another one in each conversation: with it, no prompt
        // would begin like one that was read before.
        if text.starts_with("x-anthropic-billing-header:") {
            text = text.split_once('\n').map_or("", |(_, rest)| rest).to_string();
        }
        if !text.is_empty() {
            messages.push(message("system", text));
        }
    }
    for (i, turn) in request.messages.iter().enumerate() {
        let place = format!("messages[{i}].content");
        match turn.role.as_str() {
            "user" => user(&turn.content, &place, &mut messages)?,
            "assistant" => assistant(&turn.content, &place, &mut messages)?,
            "system" => messages.push(message("system", texts(&turn.content, &place)?)),
            other => {
                let shown: String = other.chars().take(40).collect();
                let message = format!("cannot be '{shown}'; it has to be user or assistant");
                return Err(ApiError::field(format!("messages[{i}].role"), message));
            }
        }
    }
    let mut tools = Vec::new();
    for tool in request.tools.into_iter().flatten() {
        match tool.r#type.as_deref() {
            None | Some("custom") => tools.push(Tool {
                name: tool.name,
                description: tool.description.unwrap_or_default(),
                parameters: tool.input_schema.unwrap_or_default(),
                strict: tool.strict.unwrap_or(false),
            }),
            Some(kind) => record.note("tool_skipped", [("type", kind.chars().take(40).collect::<String>().into())]),
        }
    }
    check_length("tools", tools.len(), most)?;
    check_tools(&tools)?;
    let choice = match &request.tool_choice {
        None => Choice::Auto,
        Some(choice) => match (choice.r#type.as_str(), &choice.name) {
            ("auto", _) => Choice::Auto,
            ("none", _) => Choice::None,
            ("any", _) => Choice::Required,
            ("tool", Some(name)) => Choice::Named(name.clone()),
            ("tool", None) => return Err(ApiError::field("tool_choice.name", "is missing")),
            _ => return Err(ApiError::field("tool_choice.type", "has to be auto, any, tool or none")),
        },
    };
    let mut arguments = request.chat_template_kwargs.unwrap_or_default();
    match request.thinking.as_ref().map(|thinking| thinking.r#type.as_str()) {
        None => {}
        Some("enabled" | "adaptive") => {
            arguments.entry("enable_thinking").or_insert(Value::Bool(true));
        }
        Some("disabled") => {
            arguments.entry("enable_thinking").or_insert(Value::Bool(false));
        }
        Some(_) => return Err(ApiError::field("thinking.type", "has to be enabled, adaptive or disabled")),
    }
    if let Some(effort) = request.output_config.as_ref().and_then(|config| config.effort.as_deref()) {
        chat::set_effort(&mut arguments, effort);
    }
    let last = messages.last().filter(|last| last["role"] == "assistant" && last["tool_calls"].is_null());
    Ok(Conversation {
        continues: last.is_some(),
        messages,
        tools,
        choice,
        one_call: request.tool_choice.and_then(|choice| choice.disable_parallel_tool_use).unwrap_or(false),
        arguments,
        without_reply: false,
        may_forget: false,
    })
}

fn unknown_block(block: &Block, place: &str) -> ApiError {
    let kind: String = block.r#type.chars().take(40).collect();
    ApiError::field(place, format!("is of type '{kind}', which this server does not understand here"))
        .code("unsupported_content")
}

/// The text of blocks that have to be text.
fn texts(content: &TextOr<Block>, place: &str) -> Result<String, ApiError> {
    let blocks = match content {
        TextOr::Text(text) => return Ok(text.clone()),
        TextOr::List(blocks) => blocks,
    };
    let text = |(i, block): (usize, &Block)| match (block.r#type.as_str(), &block.text) {
        ("text", Some(text)) => Ok(text.clone()),
        _ => Err(unknown_block(block, &format!("{place}[{i}]"))),
    };
    Ok(blocks.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// A user's message: results of tools are messages of their own.
fn user(content: &TextOr<Block>, place: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let blocks = match content {
        TextOr::Text(text) => {
            messages.push(message("user", text.as_str()));
            return Ok(());
        }
        TextOr::List(blocks) => blocks,
    };
    let mut said: Vec<&str> = Vec::new();
    let flush = |said: &mut Vec<&str>, messages: &mut Vec<Value>| {
        if !said.is_empty() {
            messages.push(message("user", std::mem::take(said).join("\n")));
        }
    };
    for (i, block) in blocks.iter().enumerate() {
        match (block.r#type.as_str(), &block.text) {
            ("text", Some(text)) => said.push(text),
            ("tool_result", _) => {
                flush(&mut said, messages);
                let mut text = match &block.content {
                    None | Some(Value::Null) => String::new(),
                    Some(content) => {
                        let wrong =
                            |error| ApiError::field(format!("{place}[{i}].content"), format!("is not valid: {error}"));
                        let content: TextOr<Block> = serde_json::from_value(content.clone()).map_err(wrong)?;
                        texts(&content, &format!("{place}[{i}].content"))?
                    }
                };
                if block.is_error == Some(true) {
                    text.insert_str(0, "Error: ");
                }
                let id = block.tool_use_id.clone();
                let id = id.ok_or_else(|| ApiError::field(format!("{place}[{i}].tool_use_id"), "is missing"))?;
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
            }
            _ => return Err(unknown_block(block, &format!("{place}[{i}]"))),
        }
    }
    flush(&mut said, messages);
    Ok(())
}

fn assistant(content: &TextOr<Block>, place: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let blocks = match content {
        TextOr::Text(text) => {
            messages.push(message("assistant", text.as_str()));
            return Ok(());
        }
        TextOr::List(blocks) => blocks,
    };
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (i, block) in blocks.iter().enumerate() {
        match block.r#type.as_str() {
            "text" => said.push(block.text.clone().unwrap_or_default()),
            "thinking" => thought.push(block.thinking.clone().unwrap_or_default()),
            "redacted_thinking" => {}
            "tool_use" => {
                let name = block.name.as_ref();
                let name = name.ok_or_else(|| ApiError::field(format!("{place}[{i}].name"), "is missing"))?;
                let input = block.input.clone().unwrap_or_else(|| json!({}));
                calls.push(json!({"id": block.id, "type": "function",
                    "function": {"name": name, "arguments": input.to_string()}}));
            }
            _ => return Err(unknown_block(block, &format!("{place}[{i}]"))),
        }
    }
    let mut value = message("assistant", said.join("\n"));
    if !calls.is_empty() {
        value["tool_calls"] = calls.into();
    }
    if !thought.is_empty() {
        value["reasoning_content"] = thought.join("\n").into();
    }
    messages.push(value);
    Ok(())
}

/// The block that is being written.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Thinking,
    Text,
    Call,
}

/// Writes blocks.
struct Blocks {
    events: sse::Events,
    open: Option<Open>,
    index: usize,
}

impl Blocks {
    async fn send(&self, kind: &str, mut data: Value) -> Result<(), sse::Gone> {
        data["type"] = kind.into();
        self.events.send(Some(kind), &data).await
    }

    async fn close(&mut self) -> Result<(), sse::Gone> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if open == Open::Thinking {
            self.delta(json!({"type": "signature_delta", "signature": ""})).await?;
        }
        self.send("content_block_stop", json!({"index": self.index})).await?;
        self.index += 1;
        Ok(())
    }

    async fn open(&mut self, open: Open, block: Value) -> Result<(), sse::Gone> {
        if self.open == Some(open) && open != Open::Call {
            return Ok(());
        }
        self.close().await?;
        self.open = Some(open);
        self.send("content_block_start", json!({"index": self.index, "content_block": block})).await
    }

    async fn delta(&self, delta: Value) -> Result<(), sse::Gone> {
        self.send("content_block_delta", json!({"index": self.index, "delta": delta})).await
    }

    async fn say(&mut self, app: &App, event: &Event) -> Result<(), sse::Gone> {
        match event {
            Event::Reasoning(text) => {
                self.open(Open::Thinking, json!({"type": "thinking", "thinking": "", "signature": ""})).await?;
                self.delta(json!({"type": "thinking_delta", "thinking": text})).await
            }
            Event::Text(text) => {
                self.open(Open::Text, text_block("")).await?;
                self.delta(json!({"type": "text_delta", "text": text})).await
            }
            Event::Call { name, .. } => self.open(Open::Call, call_head(app, name, json!({}))).await,
            Event::Arguments { json, .. } => {
                self.delta(json!({"type": "input_json_delta", "partial_json": json})).await
            }
            Event::CallEnded { .. } => self.close().await,
        }
    }
}

async fn stream(app: Arc<App>, mut run: Run, head: MessageResponse, events: sse::Events) -> Result<(), sse::Gone> {
    let mut blocks = Blocks { events, open: None, index: 0 };
    blocks.send("message_start", json!({"message": head})).await?;
    let mut text = Text::default();
    while let Some(step) = blocks.events.next(&mut run).await? {
        match step {
            Err(error) => {
                let data = error.to_value(Dialect::Anthropic, blocks.events.record().id());
                return blocks.events.send(Some("error"), &data).await;
            }
            Ok(Step::Started { .. } | Step::Reading { .. }) => blocks.send("ping", json!({})).await?,
            Ok(Step::Piece { events, tokens, .. }) => {
                text.push(&events, &tokens, false);
                for event in &events {
                    blocks.say(&app, event).await?;
                }
            }
            Ok(Step::Finished { finish, usage, .. }) => (text.finish, text.usage) = (Some(finish), usage),
        }
    }
    blocks.close().await?;
    let (stop_reason, stop_sequence) = stop_reason(&text);
    let notes = notes_of(&run, std::slice::from_ref(&text));
    let last = json!({
        "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
        "usage": MessageUsage::from(&text.usage),
        "nibble": notes,
    });
    blocks.send("message_delta", last).await?;
    blocks.send("message_stop", json!({})).await
}
