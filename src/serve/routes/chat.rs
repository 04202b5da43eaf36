//! `/v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::answer::{Event, Tool};
use super::super::app::{App, now};
use super::super::body;
use super::super::error::{ApiError, Dialect};
use super::super::log::Record;
use super::super::protocol::{TokenPiece, Usage};
use super::super::run::{Choice, Conversation, Run, Step};
use super::super::sse;
use super::super::wire::{
    Common, Content, Notes, ResponseFormat, Role, Text, Timings, TokenLogprob, TokenUsage, check_length, check_tools,
    collect, notes_of, text_of, usage_of, whole,
};
use super::json_response;
use super::llama_cpp::{self, NativeResponse, Wish};

/// A request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ChatRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The conversation.
    #[schemars(length(min = 1))]
    pub messages: Vec<Message>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How it does.
    pub stream_options: Option<StreamOptions>,
    /// Whether log-probabilities are wanted.
    pub logprobs: Option<bool>,
    /// Of how many other tokens in the place of each.
    #[schemars(range(min = 0, max = 20))]
    #[serde(default, deserialize_with = "whole")]
    pub top_logprobs: Option<i64>,
    /// What the answer has to be.
    pub response_format: Option<ResponseFormat>,
    /// Tools that the model may call.
    pub tools: Option<Vec<ToolOf>>,
    /// Which of them: `auto`, `none`, `required`, or a function.
    pub tool_choice: Option<Value>,
    /// Whether an answer may have several calls. True if it is not given.
    pub parallel_tool_calls: Option<bool>,
    /// `none` turns the reasoning off in models where that is possible.
    pub reasoning_effort: Option<String>,
    /// What the model's template reads besides, such as `enable_thinking`.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// False to go on with the last message without the beginning of an answer.
    pub add_generation_prompt: Option<bool>,
    /// Whether the last message, an assistant's, is continued. True if it is not given.
    pub continue_final_message: Option<bool>,
    /// `auto` to leave out the oldest turns if the context is too small; the answer then says how many.
    pub truncation: Option<String>,
    /// Whether the answer has `__verbose`: the prompt, the settings and what the model wrote, as `/completion` tells them.
    pub verbose: Option<bool>,
}

/// How an answer comes in pieces.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct StreamOptions {
    /// Whether the last event has the usage.
    pub include_usage: Option<bool>,
}

/// A message.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Message {
    /// Whose it is.
    pub role: Role,
    /// What it says.
    pub content: Option<Content>,
    /// Who says it.
    pub name: Option<String>,
    /// The calls that the assistant made.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call that a tool answers.
    pub tool_call_id: Option<String>,
    /// What the assistant thought.
    pub reasoning_content: Option<String>,
}

/// A call.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct ToolCall {
    /// Its number.
    pub id: Option<String>,
    /// `function`.
    pub r#type: Option<String>,
    /// The function.
    pub function: CalledFunction,
}

/// A function that is called.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// The arguments, as JSON in a text.
    pub arguments: Option<Value>,
}

/// A tool.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ToolOf {
    /// `function`.
    pub r#type: String,
    /// The function.
    pub function: Option<FunctionOf>,
}

/// A function that can be called.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct FunctionOf {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Whether a schema that cannot be enforced is an error.
    pub strict: Option<bool>,
}

/// An answer.
#[derive(Serialize, JsonSchema)]
pub struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: TokenUsage,
    timings: Timings,
    nibble: Notes,
    /// The first of the answers, if that was asked for.
    #[serde(rename = "__verbose", skip_serializing_if = "Option::is_none")]
    verbose: Option<NativeResponse>,
}

/// One of the answers.
#[derive(Serialize, JsonSchema)]
pub struct ChatChoice {
    index: u32,
    message: AnswerMessage,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

/// What the model says.
#[derive(Serialize, JsonSchema)]
pub struct AnswerMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<String>,
    /// Sources, which there are none of.
    annotations: [Value; 0],
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCall>>,
}

/// Log-probabilities.
#[derive(Serialize, JsonSchema)]
pub struct Logprobs {
    /// Of each token, reasoning and calls among them.
    content: Vec<TokenLogprob>,
    refusal: Option<Vec<TokenLogprob>>,
}

/// A piece of an answer.
#[derive(Serialize, JsonSchema)]
pub struct ChatChunk {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nibble: Option<Notes>,
    /// With the last piece of the first answer, if that was asked for.
    #[serde(rename = "__verbose", skip_serializing_if = "Option::is_none")]
    verbose: Option<Box<NativeResponse>>,
}

/// A piece of one of the answers.
#[derive(Serialize, JsonSchema)]
pub struct ChunkChoice {
    index: u32,
    delta: Value,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// How much of a prompt was read.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Progress {
    /// Tokens of the prompt.
    pub total: u64,
    /// Tokens from the cache.
    pub cache: u64,
    /// Tokens that are read.
    pub processed: u64,
    /// Milliseconds since its turn came.
    pub time_ms: u64,
}

/// Answers a request.
///
/// # Errors
/// If there is no answer.
pub async fn chat(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = app.read_body(request).await?;
    let request: ChatRequest = body::typed(&value)?;
    let common: Common = body::typed(&value)?;
    let mut manner = common.manner(&value)?;
    manner.logprobs = logprobs(&request)?;
    if let Some(format) = &request.response_format {
        format.apply("response_format", &mut manner)?;
    }
    let (n, wants_logprobs) = (manner.n, manner.logprobs.is_some());
    let (streams, times_tokens) = (request.stream.unwrap_or(false), common.timings_per_token == Some(true));
    manner.shows_prompt = request.verbose == Some(true);
    let verbose = manner.shows_prompt.then(|| Wish::new(&manner, streams, times_tokens));
    let includes_usage = request.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true));
    let model_name = request.model.clone();
    let talk = conversation(request, app.options.max_items)?;
    let model = app.choose(model_name.as_deref(), &record).await?;
    let mut run = app.converse(model, talk, manner, &record).await?;
    let head = Head::new(&app, &run, "chatcmpl-");
    if streams {
        let shape = Shape { n, wants_logprobs, includes_usage, times_tokens, verbose };
        return Ok(sse::response(app.options.keep_alive, &record, |events| stream(app, run, head, shape, events)));
    }
    let texts = collect(&mut run, n, wants_logprobs || verbose.is_some()).await?;
    let choices = texts.iter().zip(0..).map(|(text, index)| ChatChoice {
        index,
        message: answer_message(&app, text),
        logprobs: wants_logprobs.then(|| logprobs_of(&text.tokens)),
        finish_reason: text.finish_reason(),
    });
    json_response(&ChatResponse {
        id: head.id.clone(),
        object: "chat.completion",
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.fingerprint.clone(),
        choices: choices.collect(),
        usage: usage_of(&texts),
        timings: texts.first().map(|text| Timings::from(&text.usage)).unwrap_or_default(),
        nibble: notes_of(&run, &texts),
        verbose: verbose.as_ref().zip(texts.first()).map(|(wish, text)| llama_cpp::verbose(&run, text, wish)),
    })
}

/// Answers `/v1/chat/completions/input_tokens`.
///
/// # Errors
/// If there is no answer.
pub async fn input_tokens(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let (model, talk) = asked(&app, request).await?;
    let input_tokens = app.count_tokens(model.as_deref(), talk, &record).await?;
    json_response(&super::responses::InputTokensResponse::new(input_tokens))
}

/// Reads a request of which only the conversation matters. Returns the model that it names, too.
///
/// # Errors
/// If it is none.
pub async fn asked(app: &App, request: Request) -> Result<(Option<String>, Conversation), ApiError> {
    let request: ChatRequest = app.read(request).await?;
    let model = request.model.clone();
    Ok((model, conversation(request, app.options.max_items)?))
}

fn logprobs(request: &ChatRequest) -> Result<Option<u32>, ApiError> {
    match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (_, Some(n)) if !(0..=20).contains(&n) => {
            Err(ApiError::field("top_logprobs", format!("cannot be {n}; it has to be a whole number from 0 to 20")))
        }
        (false, Some(n)) if n > 0 => Err(ApiError::field("top_logprobs", "needs 'logprobs' to be true")),
        (false, _) => Ok(None),
        (true, n) => Ok(Some(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0))),
    }
}

/// Returns the conversation of a request.
///
/// # Errors
/// If it is not one.
pub fn conversation(request: ChatRequest, most: usize) -> Result<Conversation, ApiError> {
    check_length("messages", request.messages.len(), most)?;
    if request.messages.is_empty() {
        return Err(ApiError::field("messages", "is empty; it has to have at least one message"));
    }
    let messages: Vec<Value> =
        request.messages.iter().enumerate().map(|(i, message)| normal(message, i)).collect::<Result<_, _>>()?;
    let mut tools = Vec::new();
    for (i, tool) in request.tools.into_iter().flatten().enumerate() {
        let function = tool.function.filter(|_| tool.r#type == "function");
        let Some(function) = function else {
            return Err(ApiError::field(format!("tools[{i}]"), "is not a function; only those can be called here"));
        };
        tools.push(Tool {
            name: function.name,
            description: function.description.unwrap_or_default(),
            parameters: function.parameters.unwrap_or_default(),
            strict: function.strict.unwrap_or(false),
        });
    }
    check_length("tools", tools.len(), most)?;
    check_tools(&tools)?;
    let last = messages.last().filter(|last| last["role"] == "assistant" && last["tool_calls"].is_null());
    let continues = last.is_some() && request.continue_final_message != Some(false);
    if request.continue_final_message == Some(true) && request.add_generation_prompt == Some(true) {
        let message = "cannot be true if 'add_generation_prompt' is: an answer is either continued or begun";
        return Err(ApiError::field("continue_final_message", message));
    }
    let before = messages.iter().nth_back(1).filter(|message| message["role"] == "assistant");
    if continues && before.is_some() && request.continue_final_message.is_none() {
        let message = "ends with two messages of the assistant; join them, or say in 'continue_final_message' whether the \
                       last one is to be continued";
        return Err(ApiError::field("messages", message));
    }
    let mut arguments = request.chat_template_kwargs.unwrap_or_default();
    if let Some(effort) = request.reasoning_effort {
        set_effort(&mut arguments, &effort);
    }
    Ok(Conversation {
        messages,
        tools,
        choice: choice(request.tool_choice.as_ref())?,
        one_call: request.parallel_tool_calls == Some(false),
        arguments,
        continues,
        without_reply: request.add_generation_prompt == Some(false) && !continues,
        may_forget: may_forget(request.truncation.as_deref())?,
    })
}

/// Tells the template how much to reason.
pub fn set_effort(arguments: &mut Map<String, Value>, effort: &str) {
    if effort == "none" {
        arguments.entry("enable_thinking").or_insert(Value::Bool(false));
    }
    arguments.entry("reasoning_effort").or_insert_with(|| effort.into());
}

/// Whether old turns may be left out.
///
/// # Errors
/// If it is not said in a known word.
pub fn may_forget(truncation: Option<&str>) -> Result<bool, ApiError> {
    match truncation {
        None | Some("disabled") => Ok(false),
        Some("auto") => Ok(true),
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            Err(ApiError::field("truncation", format!("cannot be '{shown}'; it has to be auto or disabled")))
        }
    }
}

/// A message in the form that engines take.
fn normal(message: &Message, i: usize) -> Result<Value, ApiError> {
    let place = format!("messages[{i}].content");
    let content = message.content.as_ref().map(|content| text_of(content, &place)).transpose()?;
    let calls = message.tool_calls.as_deref().unwrap_or_default();
    if content.is_none()
        && (message.role != Role::Assistant || (calls.is_empty() && message.reasoning_content.is_none()))
    {
        return Err(ApiError::field(place, "is missing"));
    }
    let mut value = json!({"role": message.role.name(), "content": content.unwrap_or_default()});
    if !calls.is_empty() {
        let normal_call = |(j, call): (usize, &ToolCall)| {
            let arguments = match &call.function.arguments {
                None => "{}".to_string(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            // Clients send back what a model wrote, which need not be JSON.
            let kind = call.r#type.as_deref().unwrap_or("function");
            if kind != "function" {
                return Err(ApiError::field(format!("messages[{i}].tool_calls[{j}].type"), "has to be function"));
            }
            Ok(json!({"id": call.id, "type": kind, "function": {"name": call.function.name, "arguments": arguments}}))
        };
        value["tool_calls"] =
            calls.iter().enumerate().map(normal_call).collect::<Result<Vec<Value>, ApiError>>()?.into();
    }
    for (name, text) in [
        ("name", &message.name),
        ("tool_call_id", &message.tool_call_id),
        ("reasoning_content", &message.reasoning_content),
    ] {
        if let Some(text) = text {
            value[name] = text.as_str().into();
        }
    }
    Ok(value)
}

/// Returns which tools may be called.
fn choice(choice: Option<&Value>) -> Result<Choice, ApiError> {
    let wrong = || {
        ApiError::field("tool_choice", "has to be auto, none, required, or {\"type\": \"function\", ...} with a name")
    };
    match choice {
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" | "any" => Ok(Choice::Required),
            _ => Err(wrong()),
        },
        Some(value) => {
            let name = value["function"]["name"].as_str().or(value["name"].as_str());
            let name = name.filter(|_| value["type"] == "function").ok_or_else(wrong)?;
            Ok(Choice::Named(name.to_string()))
        }
    }
}

fn answer_message(app: &App, text: &Text) -> AnswerMessage {
    let said = &text.said;
    let calls = said.calls.iter().map(|call| ToolCall {
        id: Some(app.new_id("call_")),
        r#type: Some("function".to_string()),
        function: CalledFunction { name: call.name.clone(), arguments: Some(call.arguments.clone().into()) },
    });
    let only_calls = said.text.is_empty() && !said.calls.is_empty();
    AnswerMessage {
        role: "assistant",
        content: (!only_calls).then(|| said.text.clone()),
        refusal: None,
        annotations: [],
        reasoning_content: Some(said.reasoning.clone()).filter(|text| !text.is_empty()),
        tool_calls: (!said.calls.is_empty()).then(|| calls.collect()),
    }
}

fn logprobs_of(tokens: &[TokenPiece]) -> Logprobs {
    Logprobs { content: tokens.iter().map(TokenLogprob::from).collect(), refusal: None }
}

/// What all pieces of an answer begin with.
pub struct Head {
    /// The number of the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// What answered.
    pub fingerprint: String,
}

impl Head {
    /// Returns it for a new answer.
    pub fn new(app: &App, run: &Run, prefix: &str) -> Self {
        let fingerprint = format!("build-nibble-{}", run.model.info.fingerprint.chars().take(16).collect::<String>());
        Self { id: app.new_id(prefix), created: now(), model: run.model.name.clone(), fingerprint }
    }
}

/// What a stream has.
struct Shape {
    n: u32,
    wants_logprobs: bool,
    includes_usage: bool,
    times_tokens: bool,
    verbose: Option<Wish>,
}

impl Head {
    fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage: None,
            timings: None,
            prompt_progress: None,
            nibble: None,
            verbose: None,
        }
    }
}

/// Counts tokens and time for `timings_per_token`.
#[derive(Clone)]
pub struct Clock {
    started: Instant,
    first: Option<Instant>,
    /// What is known so far.
    pub usage: Usage,
}

impl Clock {
    /// Begins.
    pub fn new(prompt_tokens: u64) -> Self {
        Self { started: Instant::now(), first: None, usage: Usage { prompt_tokens, ..Usage::default() } }
    }

    /// The prompt is read from now on, without what is cached.
    pub fn start(&mut self, cached_tokens: u64) {
        (self.started, self.usage.cached_tokens) = (Instant::now(), cached_tokens);
    }

    /// How fast the prompt is read, of which so much is by now.
    pub fn reading(&self, done: u64) -> Timings {
        let cached_tokens = self.usage.cached_tokens;
        let reading_ms = if done > cached_tokens { self.started.elapsed().as_secs_f64() * 1e3 } else { 0.0 };
        Timings::from(&Usage { prompt_tokens: done, cached_tokens, reading_ms, ..Usage::default() })
    }

    /// Counts tokens.
    pub fn count(&mut self, n: usize) -> Timings {
        let first = *self.first.get_or_insert_with(Instant::now);
        self.usage.written_tokens += n as u64;
        self.usage.reading_ms = first.duration_since(self.started).as_secs_f64() * 1e3;
        self.usage.writing_ms = first.elapsed().as_secs_f64() * 1e3;
        Timings::from(&self.usage)
    }

    /// How much of the prompt is read.
    pub fn progress(&self, done: u64, total: u64) -> Progress {
        let time_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Progress { total, cache: self.usage.cached_tokens, processed: done, time_ms }
    }
}

async fn stream(
    app: Arc<App>,
    mut run: Run,
    head: Head,
    shape: Shape,
    mut events: sse::Events,
) -> Result<(), sse::Gone> {
    let choice = |index, delta, finish_reason| ChunkChoice { index, delta, logprobs: None, finish_reason };
    let mut texts = vec![Text::default(); shape.n as usize];
    let mut clock = Clock::new(run.prompt_tokens);
    for index in 0..shape.n {
        events
            .send(None, &head.chunk(vec![choice(index, json!({"role": "assistant", "content": null}), None)]))
            .await?;
    }
    while let Some(step) = events.next(&mut run).await? {
        let step = match step {
            Ok(step) => step,
            Err(error) => return events.send(None, &error.to_value(Dialect::OpenAi, events.record().id())).await,
        };
        match step {
            Step::Started { index: 0, cached_tokens } => clock.start(cached_tokens),
            Step::Reading { index: 0, done, total } => {
                let prompt_progress = Some(clock.progress(done, total));
                let timings = shape.times_tokens.then(|| clock.reading(done));
                events.send(None, &ChatChunk { prompt_progress, timings, ..head.chunk(Vec::new()) }).await?;
            }
            Step::Started { .. } | Step::Reading { .. } => {}
            Step::Piece { index, events: said, tokens } => {
                if let Some(text) = texts.get_mut(index as usize) {
                    text.push(&said, &tokens, false);
                }
                let timings = clock.count(tokens.len());
                let mut deltas: Vec<Value> = said.iter().filter_map(|event| delta(&app, event)).collect();
                if deltas.is_empty() && shape.wants_logprobs && !tokens.is_empty() {
                    deltas.push(json!({"content": ""}));
                }
                let mut tokens = Some(tokens).filter(|tokens| shape.wants_logprobs && !tokens.is_empty());
                for delta in deltas {
                    let logprobs = tokens.take().map(|tokens| logprobs_of(&tokens));
                    let piece = ChunkChoice { logprobs, ..choice(index, delta, None) };
                    let timings = shape.times_tokens.then(|| timings.clone());
                    events.send(None, &ChatChunk { timings, ..head.chunk(vec![piece]) }).await?;
                }
            }
            Step::Finished { index, finish, usage } => {
                let Some(text) = texts.get_mut(index as usize) else { continue };
                (text.finish, text.usage) = (Some(finish), usage);
                let piece = choice(index, json!({}), Some(text.finish_reason()));
                let timings = Some(Timings::from(&usage));
                let wish = shape.verbose.as_ref().filter(|_| index == 0);
                let verbose = wish.map(|wish| Box::new(llama_cpp::verbose(&run, text, wish)));
                events.send(None, &ChatChunk { timings, verbose, ..head.chunk(vec![piece]) }).await?;
            }
        }
    }
    let notes = notes_of(&run, &texts);
    if shape.includes_usage {
        let timings = texts.first().map(|text| Timings::from(&text.usage));
        let usage = Some(usage_of(&texts));
        events.send(None, &ChatChunk { usage, timings, nibble: Some(notes), ..head.chunk(Vec::new()) }).await?;
    } else if notes.forgotten_turns > 0 || notes.ended_by.iter().any(|why| matches!(*why, "context_full" | "timeout")) {
        events.send(None, &ChatChunk { nibble: Some(notes), ..head.chunk(Vec::new()) }).await?;
    }
    events.done().await
}

/// What an event adds to a message.
fn delta(app: &App, event: &Event) -> Option<Value> {
    Some(match event {
        Event::Reasoning(text) => json!({"reasoning_content": text}),
        Event::Text(text) => json!({"content": text}),
        Event::Call { index, name } => json!({"tool_calls": [{
            "index": index, "id": app.new_id("call_"), "type": "function", "function": {"name": name, "arguments": ""},
        }]}),
        Event::Arguments { index, json } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": json}}]})
        }
        Event::CallEnded { .. } => return None,
    })
}
