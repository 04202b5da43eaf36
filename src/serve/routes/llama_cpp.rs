//! The routes of llama.cpp's server: `/completion`, `/infill`, `/tokenize`, `/detokenize`, `/apply-template`,
//! `/health`, `/props`, `/slots` and `/metrics`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::app::{App, unexpected};
use super::super::backend::{self, Model};
use super::super::body;
use super::super::error::{ApiError, Dialect};
use super::super::log::Record;
use super::super::metrics;
use super::super::protocol::{Answer, Chat, Finish, Infill, Part, Prompt, Status, Task, TokenPiece};
use super::super::run::{Manner, Run, Step};
use super::super::sse;
use super::super::wire::{Common, Text, TextOr, Timings, TokenLogprob, check_length, collect};
use super::chat::{self, ChatRequest, Clock};
use super::completions::text_of;
use super::json_response;

/// A request for a text that goes on.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct NativeRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The text, a list of texts and tokens in one, or an object with `prompt_string`.
    pub prompt: Value,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How many likely tokens to tell for each, with probabilities.
    #[schemars(range(min = 0, max = 100))]
    pub n_probs: Option<i64>,
    /// Not supported: probabilities are those before sampling.
    pub post_sampling_probs: Option<bool>,
    /// Whether to return the tokens, too.
    pub return_tokens: Option<bool>,
}

/// A request for the text in a gap.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct InfillRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The text before the gap.
    pub input_prefix: Option<String>,
    /// The text after it.
    pub input_suffix: Option<String>,
    /// How the text in the gap begins.
    pub prompt: Option<String>,
    /// Other files.
    pub input_extra: Option<Vec<ExtraFile>>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How many likely tokens to tell for each.
    #[schemars(range(min = 0, max = 100))]
    pub n_probs: Option<i64>,
    /// Not supported.
    pub post_sampling_probs: Option<bool>,
    /// Whether to return the tokens, too.
    pub return_tokens: Option<bool>,
}

/// Another file.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ExtraFile {
    /// Its name.
    pub filename: Option<String>,
    /// What it says.
    pub text: String,
}

/// An answer, or the last piece of one.
#[derive(Serialize, JsonSchema)]
pub struct NativeResponse {
    index: u32,
    content: String,
    tokens: Vec<u32>,
    id_slot: i64,
    stop: bool,
    model: String,
    tokens_predicted: u64,
    tokens_evaluated: u64,
    generation_settings: Value,
    has_new_line: bool,
    /// Whether the prompt was cut: never.
    truncated: bool,
    /// `eos`, `limit` or `word`.
    stop_type: &'static str,
    stopping_word: String,
    tokens_cached: u64,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_probabilities: Option<Vec<TokenLogprob>>,
}

/// What is not in [`Common`].
struct Wish {
    streams: bool,
    probabilities: Option<u32>,
    returns_tokens: bool,
    times_tokens: bool,
    settings: Value,
}

/// Answers `/completion`.
///
/// # Errors
/// If there is no answer.
pub async fn completion(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = body::read(&app.options, request).await?;
    let request: NativeRequest = body::typed(&value)?;
    let common: Common = body::typed(&value)?;
    let wish =
        wish(&common, &value, request.stream, request.n_probs, request.post_sampling_probs, request.return_tokens)?;
    let manner = Manner { logprobs: wish.probabilities, ..common.manner(&value)? };
    let prompts = prompts(&request.prompt, app.options.max_items)?;
    answer(app, record, request.model, prompts, manner, wish).await
}

/// Answers `/infill`.
///
/// # Errors
/// If there is no answer.
pub async fn infill(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = body::read(&app.options, request).await?;
    let request: InfillRequest = body::typed(&value)?;
    let common: Common = body::typed(&value)?;
    let wish =
        wish(&common, &value, request.stream, request.n_probs, request.post_sampling_probs, request.return_tokens)?;
    let manner = Manner { logprobs: wish.probabilities, ..common.manner(&value)? };
    let files = request.input_extra.unwrap_or_default();
    check_length("input_extra", files.len(), app.options.max_items)?;
    let (Some(prefix), Some(suffix)) = (request.input_prefix, request.input_suffix) else {
        return Err(ApiError::invalid("'input_prefix' and 'input_suffix' have to be given; either may be empty"));
    };
    let model = app.choose(request.model.as_deref(), &record).await?;
    if !model.info.fills_in {
        let message = format!("the model '{}' cannot fill in gaps: its vocabulary has no tokens for that", model.name);
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message).code("unsupported"));
    }
    let files = files.into_iter().map(|file| (file.filename.unwrap_or_else(|| "tmp".to_string()), file.text)).collect();
    let gap = Infill { prefix, suffix, files, begun: request.prompt.unwrap_or_default() };
    answer(app, record, request.model, vec![Prompt::Infill(Box::new(gap))], manner, wish).await
}

fn wish(
    common: &Common,
    value: &Value,
    stream: Option<bool>,
    n_probs: Option<i64>,
    post: Option<bool>,
    tokens: Option<bool>,
) -> Result<Wish, ApiError> {
    if post == Some(true) {
        let message = "cannot be true: probabilities are those of the model, before any sampling";
        return Err(ApiError::field("post_sampling_probs", message).code("unsupported"));
    }
    let probabilities = match n_probs.unwrap_or(0) {
        0 => None,
        n @ 1..=100 => u32::try_from(n).ok(),
        n => {
            return Err(ApiError::field(
                "n_probs",
                format!("cannot be {n}; it has to be a whole number from 0 to 100"),
            ));
        }
    };
    // What was asked for, without what may be long or private.
    let mut settings = value.as_object().cloned().unwrap_or_default();
    for long in ["prompt", "input_prefix", "input_suffix", "input_extra", "grammar", "json_schema", "messages"] {
        settings.shift_remove(long);
    }
    Ok(Wish {
        streams: stream.unwrap_or(false),
        probabilities,
        returns_tokens: tokens.unwrap_or(false),
        times_tokens: common.timings_per_token.unwrap_or(false),
        settings: settings.into(),
    })
}

/// Reads a prompt: one, or several in a list of lists or texts.
fn prompts(prompt: &Value, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |place: String| {
        ApiError::field(place, "has to be a string, a list of strings and tokens, or an object with 'prompt_string'")
    };
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    let one = |value: &Value, place: &str| match value {
        Value::String(text) => {
            Ok(Prompt::Parts { parts: vec![Part::Text { text: text.clone(), special: true }], begin: true })
        }
        Value::Array(parts) => {
            let mut made: Vec<Part> = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                match (part, token(part), made.last_mut()) {
                    (Value::String(text), ..) => made.push(Part::Text { text: text.clone(), special: true }),
                    (_, Some(token), Some(Part::Tokens(tokens))) => tokens.push(token),
                    (_, Some(token), _) => made.push(Part::Tokens(vec![token])),
                    _ => return Err(wrong(format!("{place}[{i}]"))),
                }
            }
            // A list that begins with a token says itself how the text begins.
            let begin = !matches!(made.first(), Some(Part::Tokens(_)));
            Ok(Prompt::Parts { parts: made, begin })
        }
        Value::Object(map) => match map.get("prompt_string").and_then(Value::as_str) {
            Some(_) if map.get("multimodal_data").and_then(Value::as_array).is_some_and(|data| !data.is_empty()) => {
                Err(ApiError::field(
                    format!("{place}.multimodal_data"),
                    "is not supported: this server reads text only",
                ))
            }
            Some(text) => {
                let part = Part::Text { text: text.to_string(), special: true };
                Ok(Prompt::Parts { parts: vec![part], begin: true })
            }
            None => Err(wrong(place.to_string())),
        },
        _ => Err(wrong(place.to_string())),
    };
    match prompt {
        // Several prompts: no token stands among them.
        Value::Array(list) if !list.is_empty() && list.iter().all(|value| !value.is_number()) => {
            check_length("prompt", list.len(), most.min(256))?;
            list.iter().enumerate().map(|(i, value)| one(value, &format!("prompt[{i}]"))).collect()
        }
        prompt => Ok(vec![one(prompt, "prompt")?]),
    }
}

async fn answer(
    app: Arc<App>,
    record: Record,
    model: Option<String>,
    prompts: Vec<Prompt>,
    manner: Manner,
    wish: Wish,
) -> Result<Response, ApiError> {
    let (n, n_prompts) = (manner.n, prompts.len());
    let mut runs = Vec::new();
    for prompt in prompts {
        let model = app.choose(model.as_deref(), &record).await?;
        runs.push(app.complete(model, prompt, manner.clone(), false, &record).await?);
    }
    if wish.streams {
        return Ok(sse::response(app.options.keep_alive, &record, |events| stream(runs, n, wish, events)));
    }
    let mut answers = Vec::new();
    for mut run in runs {
        let texts = collect(&mut run, n, true).await?;
        for text in &texts {
            let index = u32::try_from(answers.len()).unwrap_or(u32::MAX);
            answers.push(response(&run.model.name, index, text, &wish));
        }
    }
    match answers.as_slice() {
        [one] if n_prompts == 1 => json_response(one),
        all => json_response(&all),
    }
}

fn response(model: &str, index: u32, text: &Text, wish: &Wish) -> NativeResponse {
    let (stop_type, stopping_word) = match &text.finish {
        Some(Finish::Stop(word)) => ("word", word.clone()),
        Some(Finish::End) => ("eos", String::new()),
        _ => ("limit", String::new()),
    };
    let tokens = if wish.returns_tokens { text.tokens.iter().map(|token| token.id).collect() } else { Vec::new() };
    NativeResponse {
        index,
        content: text.said.text.clone(),
        tokens,
        id_slot: -1,
        stop: true,
        model: model.to_string(),
        tokens_predicted: text.usage.written_tokens,
        tokens_evaluated: text.usage.prompt_tokens,
        generation_settings: wish.settings.clone(),
        has_new_line: text.said.text.contains('\n'),
        truncated: false,
        stop_type,
        stopping_word,
        tokens_cached: text.usage.prompt_tokens + text.usage.written_tokens,
        timings: Timings::from(&text.usage),
        completion_probabilities: wish.probabilities.map(|_| text.tokens.iter().map(TokenLogprob::from).collect()),
    }
}

async fn stream(runs: Vec<Run>, n: u32, wish: Wish, events: sse::Events) -> Result<(), sse::Gone> {
    let mut first = 0;
    for mut run in runs {
        let mut texts = vec![Text::default(); n as usize];
        let mut clock = Clock::new(run.prompt_tokens);
        while let Some(step) = events.next(&mut run).await? {
            let step = match step {
                Ok(step) => step,
                Err(error) => return events.send(None, &error.to_value(Dialect::OpenAi, events.record().id())).await,
            };
            match step {
                Step::Started { cached_tokens, .. } => clock.usage.cached_tokens = cached_tokens,
                Step::Reading { index, done, total } => {
                    let progress = clock.progress(done, total);
                    let piece = json!({"index": first + index, "content": "", "tokens": [], "stop": false,
                        "prompt_progress": progress});
                    events.send(None, &piece).await?;
                }
                Step::Piece { index, events: said, tokens } => {
                    let Some(text) = texts.get_mut(index as usize) else { continue };
                    // The last answer of a stream has no text, but says whether it had lines.
                    text.push(&said, &[], false);
                    let mut piece =
                        native_piece(first + index, said.iter().filter_map(text_of).collect(), &tokens, &wish);
                    let timings = clock.count(tokens.len());
                    if wish.times_tokens {
                        piece.insert("timings".to_string(), json!(timings));
                    }
                    events.send(None, &piece).await?;
                }
                Step::Finished { index, finish, usage } => {
                    let Some(text) = texts.get_mut(index as usize) else { continue };
                    (text.finish, text.usage) = (Some(finish), usage);
                    let last = response(&run.model.name, first + index, text, &wish);
                    events
                        .send(None, &NativeResponse { content: String::new(), completion_probabilities: None, ..last })
                        .await?;
                }
            }
        }
        first += n;
    }
    Ok(())
}

fn native_piece(index: u32, content: String, tokens: &[TokenPiece], wish: &Wish) -> Map<String, Value> {
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let mut piece = Map::new();
    piece.insert("index".to_string(), index.into());
    piece.insert("content".to_string(), content.into());
    piece.insert("tokens".to_string(), ids.into());
    piece.insert("stop".to_string(), false.into());
    if wish.probabilities.is_some() {
        let probabilities: Vec<TokenLogprob> = tokens.iter().map(TokenLogprob::from).collect();
        piece.insert("completion_probabilities".to_string(), json!(probabilities));
    }
    piece
}

/// A text to encode.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct TokenizeRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The text, or texts and tokens.
    pub content: TextOr<Value>,
    /// Whether the token that begins texts comes first.
    pub add_special: Option<bool>,
    /// Whether control tokens are recognized where they are spelled. True if it is not given.
    pub parse_special: Option<bool>,
    /// Whether to return the text of each token.
    pub with_pieces: Option<bool>,
}

/// Tokens.
#[derive(Serialize, JsonSchema)]
pub struct TokenizeResponse {
    /// Numbers, or objects with `id` and `piece`: a text, or bytes if they are not UTF-8.
    tokens: Vec<Value>,
}

/// Answers `/tokenize`.
///
/// # Errors
/// If there is no answer.
pub async fn tokenize(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = body::read(&app.options, request).await?;
    let request: TokenizeRequest = body::typed(&value)?;
    let special = request.parse_special.unwrap_or(true);
    let text = |text: &str| Part::Text { text: text.to_string(), special };
    let parts = match &request.content {
        TextOr::Text(content) => vec![text(content)],
        TextOr::List(list) => {
            let of = |(i, value): (usize, &Value)| match (value, value.as_u64().map(u32::try_from)) {
                (Value::String(content), _) => Ok(text(content)),
                (_, Some(Ok(token))) => Ok(Part::Tokens(vec![token])),
                _ => Err(ApiError::field(format!("content[{i}]"), "has to be a string or a token")),
            };
            list.iter().enumerate().map(of).collect::<Result<_, _>>()?
        }
    };
    let with_pieces = request.with_pieces.unwrap_or(false);
    let model = app.choose(request.model.as_deref(), &record).await?;
    let prompt = Prompt::Parts { parts, begin: request.add_special.unwrap_or(false) };
    let answer = app.ask(&model.name, Task::Encode { prompt, with_bytes: with_pieces }).await?;
    let Answer::Tokens { tokens, bytes } = answer else { return Err(unexpected()) };
    let tokens = if with_pieces {
        let piece = |(id, bytes): (&u32, &Vec<u8>)| match std::str::from_utf8(bytes) {
            Ok(piece) => json!({"id": id, "piece": piece}),
            Err(_) => json!({"id": id, "piece": bytes}),
        };
        tokens.iter().zip(&bytes).map(piece).collect()
    } else {
        tokens.into_iter().map(Value::from).collect()
    };
    json_response(&TokenizeResponse { tokens })
}

/// Tokens to decode.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct DetokenizeRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

/// A text.
#[derive(Serialize, JsonSchema)]
pub struct DetokenizeResponse {
    content: String,
}

/// Answers `/detokenize`.
///
/// # Errors
/// If there is no answer.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = body::read(&app.options, request).await?;
    let request: DetokenizeRequest = body::typed(&value)?;
    let model = app.choose(request.model.as_deref(), &record).await?;
    match app.ask(&model.name, Task::Decode { tokens: request.tokens }).await? {
        Answer::Text(content) => json_response(&DetokenizeResponse { content }),
        _ => Err(unexpected()),
    }
}

/// A prompt.
#[derive(Serialize, JsonSchema)]
pub struct TemplateResponse {
    prompt: String,
}

/// Answers `/apply-template`: the prompt that `/v1/chat/completions` would make of the same request.
///
/// # Errors
/// If there is no answer.
pub async fn apply_template(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = body::read(&app.options, request).await?;
    let request: ChatRequest = body::typed(&value)?;
    let name = request.model.clone();
    let talk = chat::conversation(request, app.options.max_items)?;
    let model = app.choose(name.as_deref(), &record).await?;
    let chat: Chat = app.chat_of(&model, talk)?;
    match app.ask(&model.name, Task::Render { prompt: Prompt::Chat(Box::new(chat)) }).await? {
        Answer::Text(prompt) => json_response(&TemplateResponse { prompt }),
        _ => Err(unexpected()),
    }
}

/// Whether the server can answer.
#[derive(Serialize, JsonSchema)]
pub struct HealthResponse {
    /// `ok`.
    status: &'static str,
    /// Each model.
    models: Vec<ModelHealth>,
}

/// Whether a model can answer.
#[derive(Serialize, JsonSchema)]
pub struct ModelHealth {
    name: String,
    /// `unloaded`, `loading`, `ready`, `crashed`, `crash_loop` or `failed`.
    state: &'static str,
    /// How much of it is loaded, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f32>,
    /// How often its process had to be started again.
    restarts: u64,
}

/// Answers `/health`. Needs no key, so it tells no reasons.
///
/// # Errors
/// While no model can answer.
pub async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let models = app.backend.models();
    let of = |model: &Model| ModelHealth {
        name: model.name.clone(),
        state: model.state.name(),
        progress: match model.state {
            backend::State::Loading { progress } => Some(progress),
            _ => None,
        },
        restarts: model.restarts,
    };
    let states: Vec<ModelHealth> = models.iter().map(of).collect();
    // What the first request loads is as good as loaded.
    let is_well = |model: &Model| matches!(model.state, backend::State::Ready(_) | backend::State::Unloaded);
    if models.iter().any(is_well) {
        return json_response(&HealthResponse { status: "ok", models: states });
    }
    let loads = models.iter().any(|model| matches!(model.state, backend::State::Loading { .. }));
    let message = if loads { "Loading model" } else { "no model can answer" };
    let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("model_unavailable");
    Err(ApiError { retry_after: Some(2), ..error.fact("models", json!(states)) })
}

/// The model that is meant by a query.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ModelQuery {
    /// Its name; the first one if it is not given.
    pub model: Option<String>,
    /// Given to have a 503 if all sequences are in use.
    pub fail_on_no_slot: Option<String>,
}

/// What the server is.
#[derive(Serialize, JsonSchema)]
pub struct PropsResponse {
    default_generation_settings: Value,
    total_slots: u64,
    model_path: String,
    model_alias: String,
    chat_template: String,
    bos_token: String,
    eos_token: String,
    modalities: Value,
    build_info: String,
    system_info: String,
    fills_in: bool,
    is_sleeping: bool,
}

/// Answers `/props`.
///
/// # Errors
/// If there is no such model.
pub async fn props(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    Query(query): Query<ModelQuery>,
) -> Result<Response, ApiError> {
    let model = app.choose(query.model.as_deref(), &record).await?;
    let info = &model.info;
    json_response(&PropsResponse {
        default_generation_settings: json!({"n_ctx": info.n_ctx_sequence, "params": {}}),
        total_slots: info.n_parallel,
        model_path: info.path.clone(),
        model_alias: model.name.clone(),
        chat_template: info.template.clone(),
        bos_token: info.begin_piece.clone(),
        eos_token: info.end_pieces.first().cloned().unwrap_or_default(),
        modalities: json!({"vision": false, "audio": false}),
        build_info: format!("nibble-{}", env!("CARGO_PKG_VERSION")),
        system_info: info.system.clone(),
        fills_in: info.fills_in,
        is_sleeping: false,
    })
}

/// A sequence.
#[derive(Serialize, JsonSchema)]
pub struct SlotResponse {
    id: u32,
    id_task: Option<u64>,
    n_ctx: u64,
    is_processing: bool,
    n_prompt_tokens: u64,
    n_prompt_tokens_processed: u64,
    n_decoded: u64,
    n_held: u64,
}

/// Answers `/slots`.
///
/// # Errors
/// If there is no such model, or this is turned off.
pub async fn slots(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    Query(query): Query<ModelQuery>,
) -> Result<Response, ApiError> {
    if !app.options.slots {
        let message = "this server does not tell what it is doing; that is a setting";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message).code("not_enabled"));
    }
    let model = app.choose(query.model.as_deref(), &record).await?;
    let status = status(&app, &model.name).await?;
    if query.fail_on_no_slot.is_some() && status.slots.iter().all(|slot| slot.task.is_some()) {
        let message = "all sequences are in use";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("no_slot"));
    }
    let of = |slot: &super::super::protocol::Slot| SlotResponse {
        id: slot.id,
        id_task: slot.task,
        n_ctx: model.info.n_ctx_sequence,
        is_processing: slot.task.is_some(),
        n_prompt_tokens: slot.prompt_tokens,
        n_prompt_tokens_processed: slot.read_tokens,
        n_decoded: slot.written_tokens,
        n_held: slot.held_tokens,
    };
    json_response(&status.slots.iter().map(of).collect::<Vec<_>>())
}

async fn status(app: &App, model: &str) -> Result<Box<Status>, ApiError> {
    match app.ask(model, Task::Status).await? {
        Answer::Status(status) => Ok(status),
        _ => Err(unexpected()),
    }
}

/// Answers `/metrics`. Models that are not loaded are not loaded for it.
///
/// # Errors
/// Never.
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut models = Vec::new();
    for model in app.backend.models() {
        let status = match model.state {
            backend::State::Ready(_) => status(&app, &model.name).await.ok().map(|status| *status),
            _ => None,
        };
        models.push((model, status));
    }
    let mut response = metrics::text(&app.counters, &models).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
