//! OpenAI's `/v1/responses`: items in, items out, with answers that are kept to be continued.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::answer::{Event, Tool};
use super::super::app::{App, now};
use super::super::body;
use super::super::error::{ApiError, Dialect};
use super::super::log::Record;
use super::super::protocol::{Finish, TokenPiece};
use super::super::run::{Choice, Conversation, Run, Step, ended_by};
use super::super::sse;
use super::super::store::Stored;
use super::super::wire::{
    Common, Content, ResponseFormat, Text, TextOr, Timings, TokenLogprob, TokenUsage, check_length, check_tools,
    message, text_of, usage_of, whole,
};
use super::chat::{self, Clock};
use super::json_response;
use crate::sample::Params;

/// A request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ResponsesRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// A text, or items.
    pub input: Option<TextOr<Value>>,
    /// What holds for this answer.
    pub instructions: Option<String>,
    /// The answer that this one continues.
    pub previous_response_id: Option<String>,
    /// Whether the answer is kept. True if it is not given.
    pub store: Option<bool>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// The most tokens of the answer.
    #[schemars(range(min = 1))]
    #[serde(default, deserialize_with = "whole")]
    pub max_output_tokens: Option<i64>,
    /// Tools that the model may call. Those that are not functions are left out.
    pub tools: Option<Vec<ResponseTool>>,
    /// Which of them.
    pub tool_choice: Option<Value>,
    /// Whether an answer may have several calls.
    pub parallel_tool_calls: Option<bool>,
    /// What the answer has to be.
    pub text: Option<TextOptions>,
    /// How much the model reasons.
    pub reasoning: Option<ReasoningOptions>,
    /// `auto` to leave out the oldest turns if the context is too small.
    pub truncation: Option<String>,
    /// What else to answer: `message.output_text.logprobs`.
    pub include: Option<Vec<String>>,
    /// Log-probabilities of so many other tokens.
    #[schemars(range(min = 0, max = 20))]
    #[serde(default, deserialize_with = "whole")]
    pub top_logprobs: Option<i64>,
    /// Returned as it is.
    pub metadata: Option<Map<String, Value>>,
    /// Not supported.
    pub background: Option<bool>,
    /// Not supported: use `previous_response_id`.
    pub conversation: Option<Value>,
    /// What the model's template reads besides.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A tool.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct ResponseTool {
    /// `function`.
    pub r#type: String,
    /// Its name.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Whether a schema that cannot be enforced is an error.
    pub strict: Option<bool>,
}

/// What the answer has to be.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct TextOptions {
    /// Its form.
    pub format: Option<ResponseFormat>,
}

/// How much the model reasons.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ReasoningOptions {
    /// `none` turns it off where that is possible.
    pub effort: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ResponseObject {
    id: String,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    status: &'static str,
    background: bool,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    max_tool_calls: Option<u64>,
    model: String,
    output: Vec<Value>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    reasoning: Value,
    store: bool,
    temperature: f64,
    top_p: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    top_logprobs: i64,
    text: Value,
    tool_choice: Value,
    tools: Vec<ResponseTool>,
    truncation: String,
    usage: Option<Value>,
    metadata: Map<String, Value>,
    service_tier: &'static str,
    user: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
    /// What was left out of the prompt, and why the answer ended.
    nibble: Value,
}

/// What a request comes down to.
struct Asked {
    talk: Conversation,
    /// Messages of the request and of the answers before it.
    history: Vec<Value>,
    /// Items of the request.
    input: Vec<Value>,
}

/// Answers `/v1/responses`.
///
/// # Errors
/// If there is no answer.
pub async fn responses(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = app.read_body(request).await?;
    let request: ResponsesRequest = body::typed(&value)?;
    let common: Common = body::typed(&value)?;
    let mut manner = common.manner(&value)?;
    if manner.n != 1 {
        return Err(ApiError::field("n", "has to be 1: a response is one answer"));
    }
    manner.max_tokens = match request.max_output_tokens {
        None => manner.max_tokens,
        Some(n) if n >= 1 => u64::try_from(n).ok(),
        Some(n) => return Err(ApiError::field("max_output_tokens", format!("cannot be {n}; it has to be 1 or more"))),
    };
    manner.logprobs = logprobs(&request)?;
    if let Some(format) = request.text.as_ref().and_then(|text| text.format.as_ref()) {
        format.apply("text.format", &mut manner)?;
    }
    for (name, given) in [
        ("background", request.background == Some(true)),
        ("conversation", request.conversation.as_ref().is_some_and(|value| !value.is_null())),
    ] {
        if given {
            let message = "is not supported; leave it out, and use 'previous_response_id' to continue an answer";
            return Err(ApiError::field(name, message).code("unsupported"));
        }
    }
    let asked = asked(&app, &request, &record)?;
    let streams = request.stream.unwrap_or(false);
    let model = app.choose(request.model.as_deref(), &record).await?;
    let mut run = app.converse(model, asked.talk.clone(), manner, &record).await?;
    let object = object(&app, &request, &value, &asked, &run);
    let output = Output::new(app.clone(), request_wants_logprobs(&request));
    let (clock, times_tokens) = (Clock::new(run.prompt_tokens), common.timings_per_token == Some(true));
    let answer = Responding { app: app.clone(), object, asked, output, text: Text::default(), clock, times_tokens };
    if streams {
        return Ok(sse::response(app.options.keep_alive, &record, |events| stream(run, answer, events)));
    }
    let mut answer = answer;
    while let Some(step) = run.next().await {
        answer.take(step?);
    }
    answer.end();
    json_response(&answer.object)
}

fn request_wants_logprobs(request: &ResponsesRequest) -> bool {
    let included = request.include.iter().flatten().any(|what| what == "message.output_text.logprobs");
    included || request.top_logprobs.unwrap_or(0) > 0
}

fn logprobs(request: &ResponsesRequest) -> Result<Option<u32>, ApiError> {
    let n = request.top_logprobs.unwrap_or(0);
    if !(0..=20).contains(&n) {
        return Err(ApiError::field(
            "top_logprobs",
            format!("cannot be {n}; it has to be a whole number from 0 to 20"),
        ));
    }
    Ok(request_wants_logprobs(request).then_some(u32::try_from(n).unwrap_or(0)))
}

/// A number of tokens.
#[derive(Serialize, JsonSchema)]
pub struct InputTokensResponse {
    object: &'static str,
    input_tokens: u64,
}

impl InputTokensResponse {
    /// So many tokens.
    pub fn new(input_tokens: u64) -> Self {
        Self { object: "response.input_tokens", input_tokens }
    }
}

/// Answers `/v1/responses/input_tokens`.
///
/// # Errors
/// If there is no answer.
pub async fn input_tokens(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: ResponsesRequest = app.read(request).await?;
    let asked = asked(&app, &request, &record)?;
    let input_tokens = app.count_tokens(request.model.as_deref(), asked.talk, &record).await?;
    json_response(&InputTokensResponse::new(input_tokens))
}

fn unknown(id: &str) -> ApiError {
    let shown: String = id.chars().take(100).collect();
    let message = format!("there is no response '{shown}': it was not stored, or was forgotten, as the oldest are");
    ApiError::not_found(message).code("response_not_found")
}

/// Returns a stored answer.
///
/// # Errors
/// If it is not stored.
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let response = app.stored().get(&id).map(|stored| stored.response.clone());
    json_response(&response.ok_or_else(|| unknown(&id))?)
}

/// What was deleted.
#[derive(Serialize, JsonSchema)]
pub struct DeletedResponse {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// Forgets a stored answer.
///
/// # Errors
/// If it is not stored.
pub async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    if !app.stored().remove(&id) {
        return Err(unknown(&id));
    }
    json_response(&DeletedResponse { id, object: "response.deleted", deleted: true })
}

/// The items of a request.
#[derive(Serialize, JsonSchema)]
pub struct ItemsResponse {
    object: &'static str,
    data: Vec<Value>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// Returns what a stored answer was an answer to.
///
/// # Errors
/// If it is not stored.
pub async fn input_items(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let data = app.stored().get(&id).map(|stored| stored.input.clone()).ok_or_else(|| unknown(&id))?;
    let id = |item: Option<&Value>| item.and_then(|item| item["id"].as_str()).map(str::to_string);
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    json_response(&ItemsResponse { object: "list", data, first_id, last_id, has_more: false })
}

fn asked(app: &App, request: &ResponsesRequest, record: &Record) -> Result<Asked, ApiError> {
    let mut history = Vec::new();
    if let Some(id) = request.previous_response_id.as_ref().filter(|id| !id.is_empty()) {
        let missing = || {
            let error = ApiError { status: axum::http::StatusCode::BAD_REQUEST, ..unknown(id) };
            error.code("previous_response_not_found").param("previous_response_id")
        };
        history = app.stored().get(id).map(|stored| stored.messages.clone()).ok_or_else(missing)?;
    }
    let mut input = Vec::new();
    match &request.input {
        None => {}
        Some(TextOr::Text(text)) => {
            history.push(message("user", text.as_str()));
            let content = json!([{"type": "input_text", "text": text}]);
            input.push(json!({"id": app.new_id("msg_"), "type": "message", "role": "user", "content": content}));
        }
        Some(TextOr::List(items)) => {
            check_length("input", items.len(), app.options.max_items)?;
            for (i, item) in items.iter().enumerate() {
                add_item(item, i, &mut history, record)?;
                let mut item = item.clone();
                if item.is_object() && !item["id"].is_string() {
                    item["id"] = app.new_id("item_").into();
                }
                input.push(item);
            }
        }
    }
    if history.is_empty() {
        return Err(ApiError::field("input", "is empty; there has to be something to answer"));
    }
    let mut messages = history.clone();
    if let Some(instructions) = request.instructions.as_ref().filter(|text| !text.is_empty()) {
        messages.insert(0, message("system", instructions.as_str()));
    }
    let (tools, choice) = tools(request, app.options.max_items, record)?;
    let mut arguments = request.chat_template_kwargs.clone().unwrap_or_default();
    if let Some(effort) = request.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref()) {
        chat::set_effort(&mut arguments, effort);
    }
    let last = messages.last().filter(|last| last["role"] == "assistant" && last["tool_calls"].is_null());
    let continues = last.is_some();
    let talk = Conversation {
        messages,
        tools,
        choice,
        one_call: request.parallel_tool_calls == Some(false),
        arguments,
        continues,
        without_reply: false,
        may_forget: chat::may_forget(request.truncation.as_deref())?,
    };
    Ok(Asked { talk, history, input })
}

/// Adds an item to the messages. Calls and reasoning belong to the message of the assistant that they stand beside.
fn add_item(item: &Value, i: usize, messages: &mut Vec<Value>, record: &Record) -> Result<(), ApiError> {
    let place = format!("input[{i}]");
    let text = |value: &Value, name: &str| -> Result<String, ApiError> {
        let place = format!("{place}.{name}");
        let content: Content = match value {
            Value::Null => return Err(ApiError::field(place, "is missing")),
            value => serde_json::from_value(value.clone())
                .map_err(|error| ApiError::field(&place, format!("is not valid: {error}")))?,
        };
        text_of(&content, &place)
    };
    let string = |name: &str| {
        item[name].as_str().map(str::to_string).ok_or_else(|| ApiError::field(format!("{place}.{name}"), "is missing"))
    };
    let kind = match (&item["type"], &item["role"]) {
        (Value::String(kind), _) => kind.as_str(),
        (Value::Null, Value::String(_)) => "message",
        _ => return Err(ApiError::field(place, "has to be an object with a 'type' or a 'role'")),
    };
    match kind {
        "message" => {
            let role = string("role")?;
            if !matches!(role.as_str(), "user" | "assistant" | "system" | "developer") {
                let message = "has to be user, assistant, system or developer";
                return Err(ApiError::field(format!("{place}.role"), message));
            }
            let said = text(&item["content"], "content")?;
            match messages.last_mut().filter(|last| role == "assistant" && last["thought_only"] == true) {
                Some(last) => {
                    last["content"] = said.into();
                    last.as_object_mut().map(|last| last.remove("thought_only"));
                }
                None => messages.push(message(&role, said)),
            }
        }
        "function_call" => {
            let call = json!({"id": string("call_id")?, "type": "function",
                "function": {"name": string("name")?, "arguments": string("arguments")?}});
            if messages.last().is_none_or(|last| last["role"] != "assistant") {
                messages.push(message("assistant", ""));
            }
            if let Some(last) = messages.last_mut() {
                last.as_object_mut().map(|last| last.remove("thought_only"));
                match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                }
            }
        }
        "function_call_output" => {
            let output = text(&item["output"], "output")?;
            messages.push(json!({"role": "tool", "tool_call_id": string("call_id")?, "content": output}));
        }
        "reasoning" => {
            let parts = [&item["content"], &item["summary"]].into_iter().find_map(|parts| {
                let texts = parts.as_array()?.iter().filter_map(|part| part["text"].as_str());
                Some(texts.collect::<Vec<_>>().join("\n")).filter(|text| !text.is_empty())
            });
            if let Some(thought) = parts {
                let mut thinking = message("assistant", "");
                thinking["reasoning_content"] = thought.into();
                thinking["thought_only"] = true.into();
                messages.push(thinking);
            }
        }
        other => {
            let kind = other.chars().take(40).collect::<String>();
            record.note("item_skipped", [("type", kind.into())]);
        }
    }
    Ok(())
}

fn tools(request: &ResponsesRequest, most: usize, record: &Record) -> Result<(Vec<Tool>, Choice), ApiError> {
    let mut tools = Vec::new();
    for (i, tool) in request.tools.iter().flatten().enumerate() {
        if tool.r#type != "function" {
            let kind = tool.r#type.chars().take(40).collect::<String>();
            record.note("tool_skipped", [("type", kind.into())]);
            continue;
        }
        let name = tool.name.clone().ok_or_else(|| ApiError::field(format!("tools[{i}].name"), "is missing"))?;
        tools.push(Tool {
            name,
            description: tool.description.clone().unwrap_or_default(),
            parameters: tool.parameters.clone().unwrap_or_default(),
            // It is true where a client does not say so, which must not make errors of schemas.
            strict: tool.strict.unwrap_or(false),
        });
    }
    check_length("tools", tools.len(), most)?;
    check_tools(&tools)?;
    let of_word = |word: &str| match word {
        "auto" => Some(Choice::Auto),
        "none" => Some(Choice::None),
        "required" => Some(Choice::Required),
        _ => None,
    };
    let wrong =
        || ApiError::field("tool_choice", "has to be auto, none, required, or an object with a 'type' and a 'name'");
    let choice = match &request.tool_choice {
        None | Some(Value::Null) => Choice::Auto,
        Some(Value::String(word)) => of_word(word).ok_or_else(wrong)?,
        Some(choice) => match choice["type"].as_str().ok_or_else(wrong)? {
            "function" => Choice::Named(choice["name"].as_str().ok_or_else(wrong)?.to_string()),
            "allowed_tools" => {
                let names: Vec<&str> = choice["tools"]
                    .as_array()
                    .ok_or_else(wrong)?
                    .iter()
                    .filter_map(|tool| tool["name"].as_str())
                    .collect();
                tools.retain(|tool| names.contains(&tool.name.as_str()));
                of_word(choice["mode"].as_str().unwrap_or("auto")).ok_or_else(wrong)?
            }
            kind => {
                let kind = kind.chars().take(40).collect::<String>();
                record.note("tool_choice_skipped", [("type", kind.into())]);
                Choice::Auto
            }
        },
    };
    Ok((tools, choice))
}

fn object(app: &App, request: &ResponsesRequest, value: &Value, asked: &Asked, run: &Run) -> ResponseObject {
    let number = |name: &str, default: f64| value[name].as_f64().unwrap_or(default);
    let format = value.pointer("/text/format").cloned().unwrap_or_else(|| json!({"type": "text"}));
    ResponseObject {
        id: app.new_id("resp_"),
        object: "response",
        created_at: now(),
        completed_at: None,
        status: "in_progress",
        background: false,
        error: None,
        incomplete_details: None,
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        max_tool_calls: None,
        model: run.model.name.clone(),
        output: Vec::new(),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        previous_response_id: request.previous_response_id.clone(),
        reasoning: json!({"effort": request.reasoning.as_ref().and_then(|r| r.effort.clone()), "summary": null}),
        store: request.store.unwrap_or(true),
        temperature: number("temperature", usual("temperature")),
        top_p: number("top_p", usual("top_p")),
        presence_penalty: number("presence_penalty", 0.0),
        frequency_penalty: number("frequency_penalty", 0.0),
        top_logprobs: request.top_logprobs.unwrap_or(0),
        text: json!({"format": format}),
        tool_choice: request.tool_choice.clone().filter(|choice| !choice.is_null()).unwrap_or_else(|| json!("auto")),
        tools: request.tools.clone().unwrap_or_default(),
        truncation: request.truncation.clone().unwrap_or_else(|| "disabled".to_string()),
        usage: None,
        metadata: request.metadata.clone().unwrap_or_default(),
        service_tier: "default",
        user: value["user"].as_str().map(str::to_string),
        safety_identifier: value["safety_identifier"].as_str().map(str::to_string),
        prompt_cache_key: value["prompt_cache_key"].as_str().map(str::to_string),
        nibble: json!({"forgotten_turns": run.forgotten_turns, "input_items": asked.input.len()}),
    }
}

/// What a parameter of the samplers is where nobody says.
fn usual(name: &str) -> f64 {
    Params::default().get(name).ok().and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// An answer that is being written.
struct Responding {
    app: Arc<App>,
    object: ResponseObject,
    asked: Asked,
    output: Output,
    text: Text,
    clock: Clock,
    /// Whether each piece tells how fast it came.
    times_tokens: bool,
}

impl Responding {
    /// Takes a step. Returns events with their fields.
    fn take(&mut self, step: Step) -> Vec<(&'static str, Value)> {
        match step {
            Step::Started { cached_tokens, .. } => {
                self.clock.start(cached_tokens);
                Vec::new()
            }
            Step::Reading { done, total, .. } => {
                let progress = self.clock.progress(done, total);
                let mut fields = json!({"response": self.object, "prompt_progress": progress});
                if self.times_tokens {
                    fields["timings"] = json!(self.clock.reading(done));
                }
                vec![("response.in_progress", fields)]
            }
            Step::Piece { events, tokens, .. } => {
                self.text.push(&events, &tokens, false);
                let timings = self.clock.count(tokens.len());
                let mut tokens = tokens.as_slice();
                let mut sent = Vec::new();
                for event in &events {
                    sent.extend(self.output.say(event, std::mem::take(&mut tokens)));
                }
                for (name, fields) in &mut sent {
                    if self.times_tokens && name.ends_with(".delta") {
                        fields["timings"] = json!(timings);
                    }
                }
                sent
            }
            Step::Finished { finish, usage, .. } => {
                (self.text.finish, self.text.usage) = (Some(finish), usage);
                Vec::new()
            }
        }
    }

    /// Closes what is open, and keeps the answer if that is wanted. Returns the last events.
    fn end(&mut self) -> Vec<(&'static str, Value)> {
        let cut = matches!(self.text.finish, Some(Finish::MaxTokens | Finish::ContextFull | Finish::Timeout));
        let mut sent = self.output.close(if cut { "incomplete" } else { "completed" });
        if self.output.items.is_empty() {
            // An answer always has a message, even an empty one.
            sent.extend(self.output.say(&Event::Text(String::new()), &[]));
            sent.extend(self.output.close("completed"));
        }
        let object = &mut self.object;
        object.output.clone_from(&self.output.items);
        object.usage = Some(usage_value(&usage_of(std::slice::from_ref(&self.text))));
        object.nibble["ended_by"] = self.text.finish.as_ref().map(ended_by).into();
        if cut {
            object.status = "incomplete";
            object.incomplete_details = Some(json!({"reason": "max_output_tokens"}));
        } else {
            object.status = "completed";
            object.completed_at = Some(now());
        }
        if object.store {
            let mut messages = self.asked.history.clone();
            messages.push(said(&self.output.items, &self.text));
            let stored = Stored { response: json!(object), messages, input: self.asked.input.clone() };
            self.app.stored().insert(&object.id, stored);
        }
        let name = if cut { "response.incomplete" } else { "response.completed" };
        sent.push((name, json!({"response": self.object, "timings": Timings::from(&self.text.usage)})));
        sent
    }
}

/// The answer as a message.
fn said(items: &[Value], text: &Text) -> Value {
    let mut said = message("assistant", text.said.text.as_str());
    if !text.said.reasoning.is_empty() {
        said["reasoning_content"] = text.said.reasoning.as_str().into();
    }
    let calls = items.iter().filter(|item| item["type"] == "function_call").map(|item| {
        json!({"id": item["call_id"], "type": "function",
            "function": {"name": item["name"], "arguments": item["arguments"]}})
    });
    let calls: Vec<Value> = calls.collect();
    if !calls.is_empty() {
        said["tool_calls"] = calls.into();
    }
    said
}

fn usage_value(usage: &TokenUsage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        // Nothing is billed for what is kept, so nothing counts as written to the cache.
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.completion_tokens_details.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    })
}

/// The items of an answer. The last one may be open.
struct Output {
    app: Arc<App>,
    wants_logprobs: bool,
    items: Vec<Value>,
    open: Option<Open>,
}

/// The item that is being written.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Reasoning,
    Message,
    Call,
}

impl Output {
    fn new(app: Arc<App>, wants_logprobs: bool) -> Self {
        Self { app, wants_logprobs, items: Vec::new(), open: None }
    }

    /// Adds what the model says. Returns events with their fields.
    fn say(&mut self, event: &Event, tokens: &[TokenPiece]) -> Vec<(&'static str, Value)> {
        let mut sent = Vec::new();
        match event {
            Event::Reasoning(text) => {
                if self.open != Some(Open::Reasoning) {
                    sent.extend(self.close("completed"));
                    let item = json!({"id": self.app.new_id("rs_"), "type": "reasoning", "summary": [], "content": [],
                        "encrypted_content": null, "status": "in_progress"});
                    sent.extend(self.open(Open::Reasoning, item));
                    sent.push(
                        self.part(
                            "response.content_part.added",
                            json!({"part": {"type": "reasoning_text", "text": ""}}),
                        ),
                    );
                    self.set_part(json!({"type": "reasoning_text", "text": ""}));
                }
                self.append(text);
                sent.push(self.part("response.reasoning_text.delta", json!({"delta": text})));
            }
            Event::Text(text) => {
                if self.open != Some(Open::Message) {
                    sent.extend(self.close("completed"));
                    let item = json!({"id": self.app.new_id("msg_"), "type": "message", "role": "assistant",
                        "content": [],
                        "status": "in_progress"});
                    sent.extend(self.open(Open::Message, item));
                    let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
                    sent.push(self.part("response.content_part.added", json!({"part": part})));
                    self.set_part(part);
                }
                self.append(text);
                let logprobs: Vec<Value> = match self.wants_logprobs {
                    true => tokens.iter().map(|token| json!(TokenLogprob::from(token))).collect(),
                    false => Vec::new(),
                };
                if let Some(kept) = self.last_part().and_then(|part| part["logprobs"].as_array_mut()) {
                    kept.extend(logprobs.clone());
                }
                sent.push(self.part("response.output_text.delta", json!({"delta": text, "logprobs": logprobs})));
            }
            Event::Call { name, .. } => {
                sent.extend(self.close("completed"));
                let item = json!({"id": self.app.new_id("fc_"), "type": "function_call", "status": "in_progress",
                    "call_id": self.app.new_id("call_"), "name": name, "arguments": ""});
                sent.extend(self.open(Open::Call, item));
            }
            Event::Arguments { json, .. } => {
                if let Some(item) = self.items.last_mut() {
                    let arguments = item["arguments"].as_str().unwrap_or_default().to_string() + json;
                    item["arguments"] = arguments.into();
                }
                sent.push(self.of_item("response.function_call_arguments.delta", json!({"delta": json})));
            }
            Event::CallEnded { complete, .. } => {
                sent.extend(self.close(if *complete { "completed" } else { "incomplete" }));
            }
        }
        sent
    }

    fn open(&mut self, open: Open, item: Value) -> Option<(&'static str, Value)> {
        self.open = Some(open);
        self.items.push(item.clone());
        Some(("response.output_item.added", json!({"output_index": self.items.len() - 1, "item": item})))
    }

    fn set_part(&mut self, part: Value) {
        if let Some(item) = self.items.last_mut() {
            item["content"] = json!([part]);
        }
    }

    fn last_part(&mut self) -> Option<&mut Value> {
        self.items.last_mut()?["content"].get_mut(0)
    }

    fn append(&mut self, more: &str) {
        if let Some(part) = self.last_part() {
            let mut text = match part["text"].take() {
                Value::String(text) => text,
                _ => String::new(),
            };
            text.push_str(more);
            part["text"] = text.into();
        }
    }

    /// An event of the last item.
    fn of_item(&self, name: &'static str, mut fields: Value) -> (&'static str, Value) {
        fields["item_id"] = self.items.last().map(|item| item["id"].clone()).unwrap_or_default();
        fields["output_index"] = self.items.len().saturating_sub(1).into();
        (name, fields)
    }

    /// An event of the only part of the last item.
    fn part(&self, name: &'static str, mut fields: Value) -> (&'static str, Value) {
        fields["content_index"] = 0.into();
        self.of_item(name, fields)
    }

    fn close(&mut self, status: &str) -> Vec<(&'static str, Value)> {
        let Some(open) = self.open.take() else { return Vec::new() };
        if let Some(item) = self.items.last_mut() {
            item["status"] = status.into();
        }
        let item = self.items.last().cloned().unwrap_or_default();
        let part = item["content"][0].clone();
        let mut sent = Vec::new();
        match open {
            Open::Reasoning => {
                sent.push(self.part("response.reasoning_text.done", json!({"text": part["text"]})));
                sent.push(self.part("response.content_part.done", json!({"part": part})));
            }
            Open::Message => {
                let fields = json!({"text": part["text"], "logprobs": part["logprobs"]});
                sent.push(self.part("response.output_text.done", fields));
                sent.push(self.part("response.content_part.done", json!({"part": part})));
            }
            Open::Call => {
                let fields = json!({"arguments": item["arguments"], "name": item["name"]});
                sent.push(self.of_item("response.function_call_arguments.done", fields));
            }
        }
        sent.push(("response.output_item.done", json!({"output_index": self.items.len() - 1, "item": item})));
        sent
    }
}

/// Numbers events.
struct Numbered {
    events: sse::Events,
    next: u64,
}

impl Numbered {
    async fn send(&mut self, name: &str, fields: Value) -> Result<(), sse::Gone> {
        let mut data = json!({"type": name, "sequence_number": self.next});
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        self.next += 1;
        self.events.send(Some(name), &data).await
    }
}

async fn stream(mut run: Run, mut answer: Responding, events: sse::Events) -> Result<(), sse::Gone> {
    let mut to = Numbered { events, next: 0 };
    to.send("response.created", json!({"response": answer.object})).await?;
    to.send("response.in_progress", json!({"response": answer.object})).await?;
    while let Some(step) = to.events.next(&mut run).await? {
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                let facts = error.to_value(Dialect::OpenAi, to.events.record().id());
                let body = &facts["error"];
                let code = if body["code"].is_null() { body["type"].clone() } else { body["code"].clone() };
                let fields = json!({"code": code, "message": error.message, "param": error.param});
                to.send("error", fields).await?;
                answer.object.status = "failed";
                answer.object.error = Some(json!({"code": code, "message": error.message}));
                answer.output.close("incomplete");
                answer.object.output = std::mem::take(&mut answer.output.items);
                return to.send("response.failed", json!({"response": answer.object})).await;
            }
        };
        for (name, fields) in answer.take(step) {
            to.send(name, fields).await?;
        }
    }
    for (name, fields) in answer.end() {
        to.send(name, fields).await?;
    }
    Ok(())
}
