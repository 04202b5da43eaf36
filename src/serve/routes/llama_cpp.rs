//! The routes of llama.cpp's server: `/completion`, `/infill`, `/tokenize`, `/detokenize`, `/apply-template`,
//! `/health`, `/props`, `/slots` and `/metrics`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::app::{App, unexpected};
use super::super::backend::{self, Model};
use super::super::body;
use super::super::error::{ApiError, Dialect};
use super::super::log::Record;
use super::super::metrics;
use super::super::protocol::{Answer, Finish, Infill, Part, Prompt, Status, Task, TokenPiece};
use super::super::run::{Manner, Run, Step};
use super::super::sampling;
use super::super::sse;
use super::super::wire::{
    Common, Text, TextOr, Timings, TokenLogprob, TokenProb, check_length, collect, token_of, tokens_of, whole,
};
use super::chat::{self, Clock};
use super::completions::text_of;
use super::json_response;

/// A request for a text that goes on.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct NativeRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The text, a list of texts and tokens in one, or an object with `prompt_string`; or a list of these.
    #[schemars(schema_with = "prompt_schema")]
    pub prompt: Value,
    /// Whether what spells a control token in the prompt is one. It is if this is not given, as prompts of `/apply-template`
    /// need it.
    pub parse_special: Option<bool>,
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
}

/// How answers of both are told.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct NativeOptions {
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How many likely tokens to tell for each, with probabilities.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = 0, max = 100))]
    pub n_probs: Option<i64>,
    /// Whether these are the probabilities after all samplers, `prob` and `top_probs`, and not the logarithms of the
    /// model's own.
    pub post_sampling_probs: Option<bool>,
    /// Whether to return the tokens, too.
    pub return_tokens: Option<bool>,
    /// The only fields that the answer has, or the last piece of one, such as `content` and `generation_settings/seed`. All,
    /// if there are none in the list.
    pub response_fields: Option<Vec<String>>,
}

/// Another file.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ExtraFile {
    /// Its name.
    pub filename: Option<String>,
    /// What it says.
    pub text: String,
}

/// An answer, or the last piece of one: all of it, or what `response_fields` chose.
#[derive(Serialize, JsonSchema)]
#[schemars(transform = without_required)]
pub struct NativeResponse {
    index: u32,
    content: String,
    tokens: Vec<u32>,
    id_slot: i64,
    stop: bool,
    model: String,
    tokens_predicted: u64,
    tokens_evaluated: u64,
    /// All settings that it was written with, by the names that they have in requests.
    generation_settings: Map<String, Value>,
    /// The text of the prompt, as its tokens spell it.
    prompt: String,
    has_new_line: bool,
    /// Whether the context was full before the text had ended. Prompts are never cut.
    truncated: bool,
    /// `eos`, `limit` or `word`.
    stop_type: &'static str,
    stopping_word: String,
    tokens_cached: u64,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_probabilities: Option<Probabilities>,
}

/// Tokens with their probabilities.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Probabilities {
    /// The model's own.
    Before(Vec<TokenLogprob>),
    /// Those after all samplers.
    After(Vec<TokenProb>),
}

/// Fields can be chosen, so that none is always there.
fn without_required(schema: &mut Schema) {
    schema.remove("required");
}

/// How answers are told.
pub struct Wish {
    streams: bool,
    has_probabilities: bool,
    after_sampling: bool,
    returns_tokens: bool,
    times_tokens: bool,
    /// The fields of answers; empty for all.
    fields: Vec<String>,
    settings: Map<String, Value>,
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
    let value = app.read_body(request).await?;
    let request: NativeRequest = body::typed(&value)?;
    let (manner, wish) = wishes(&value, app.options.max_items)?;
    let reader = Reader {
        field: "prompt",
        special: request.parse_special.unwrap_or(true),
        most: app.options.max_items.min(MOST_PROMPTS),
        embeds: false,
    };
    let prompts = reader.prompts(&request.prompt)?;
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
    let value = app.read_body(request).await?;
    let request: InfillRequest = body::typed(&value)?;
    let (manner, wish) = wishes(&value, app.options.max_items)?;
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

/// Reads how the texts of a request are written, and how they are told. `most` is the length of lists that is accepted.
fn wishes(request: &Value, most: usize) -> Result<(Manner, Wish), ApiError> {
    let common: Common = body::typed(request)?;
    let options: NativeOptions = body::typed(request)?;
    let mut manner = common.manner(request)?;
    manner.logprobs = match options.n_probs.unwrap_or(0) {
        0 => None,
        n @ 1..=100 => u32::try_from(n).ok(),
        n => {
            return Err(ApiError::field(
                "n_probs",
                format!("cannot be {n}; it has to be a whole number from 0 to 100"),
            ));
        }
    };
    manner.after_sampling = options.post_sampling_probs.unwrap_or(false);
    let fields = options.response_fields.unwrap_or_default();
    check_length("response_fields", fields.len(), most)?;
    manner.shows_prompt = fields.is_empty() || fields.iter().any(|field| field == "prompt");
    let (streams, times_tokens) = (options.stream.unwrap_or(false), common.timings_per_token.unwrap_or(false));
    let returns_tokens = options.return_tokens.unwrap_or(false);
    let wish = Wish { returns_tokens, fields, ..Wish::new(&manner, streams, times_tokens) };
    Ok((manner, wish))
}

impl Wish {
    /// How answers with all fields are told.
    pub fn new(manner: &Manner, streams: bool, times_tokens: bool) -> Self {
        Self {
            streams,
            has_probabilities: manner.logprobs.is_some(),
            after_sampling: manner.after_sampling,
            returns_tokens: false,
            times_tokens,
            fields: Vec::new(),
            settings: settings(manner, streams, times_tokens),
        }
    }

    /// Returns the probabilities of tokens, if they are wanted.
    fn probabilities(&self, tokens: &[TokenPiece]) -> Option<Probabilities> {
        self.has_probabilities.then(|| match self.after_sampling {
            true => Probabilities::After(tokens.iter().map(TokenProb::from).collect()),
            false => Probabilities::Before(tokens.iter().map(TokenLogprob::from).collect()),
        })
    }
}

/// Returns the settings that texts are written with, in llama.cpp's form. Forms that texts have to have are not among them:
/// they may be long.
fn settings(manner: &Manner, streams: bool, times_tokens: bool) -> Map<String, Value> {
    let mut settings = sampling::settings(&manner.sampling);
    let most = manner.max_tokens.map_or(json!(-1), Value::from);
    let more = [
        ("stop", json!(manner.stop)),
        ("max_tokens", most.clone()),
        ("n_predict", most),
        ("ignore_eos", manner.ignore_end.into()),
        ("logit_bias", sampling::bias_values(&manner.biases)),
        ("n_probs", manner.logprobs.unwrap_or(0).into()),
        ("stream", streams.into()),
        ("timings_per_token", times_tokens.into()),
        ("post_sampling_probs", manner.after_sampling.into()),
    ];
    settings.extend(more.map(|(name, value)| (name.to_string(), value)));
    settings
}

/// The most prompts of one request: each waits in the queue.
const MOST_PROMPTS: usize = 256;

/// Reads prompts in the forms of llama.cpp's server: a text, a list of texts and tokens that are one prompt, an object with
/// `prompt_string`, or a list of these.
pub struct Reader {
    /// The field of the request that they are in.
    pub field: &'static str,
    /// Whether control tokens are recognized where they are spelled.
    pub special: bool,
    /// The most prompts.
    pub most: usize,
    /// Whether they are for embeddings: none may be empty, and objects with `content`, a list of parts such as messages
    /// have, are prompts, too.
    pub embeds: bool,
}

impl Reader {
    /// Reads one prompt, or several.
    ///
    /// # Errors
    /// If the value has another form.
    pub fn prompts(&self, value: &Value) -> Result<Vec<Prompt>, ApiError> {
        match value {
            // Several prompts: no token stands among them.
            Value::Array(list) if !list.is_empty() && list.iter().all(|value| !value.is_number()) => {
                check_length(self.field, list.len(), self.most)?;
                let place = |i: usize| format!("{}[{i}]", self.field);
                list.iter().enumerate().map(|(i, value)| self.prompt(value, &place(i))).collect()
            }
            value => Ok(vec![self.prompt(value, self.field)?]),
        }
    }

    fn prompt(&self, value: &Value, place: &str) -> Result<Prompt, ApiError> {
        let parts = match value {
            Value::String(text) => vec![self.text(text)],
            Value::Array(parts) => self.mixed(parts, place)?,
            Value::Object(map) => match (map.get("prompt_string"), map.get("content")) {
                (Some(Value::String(text)), _) => {
                    let is_some = |data: &Value| !data.is_null() && data.as_array().is_none_or(|data| !data.is_empty());
                    if map.get("multimodal_data").is_some_and(is_some) {
                        let message = "is not supported: this server reads text only";
                        return Err(ApiError::field(format!("{place}.multimodal_data"), message));
                    }
                    vec![self.text(text)]
                }
                (None, Some(content)) if self.embeds => vec![self.content(content, &format!("{place}.content"))?],
                _ => return Err(self.wrong(place)),
            },
            _ => return Err(self.wrong(place)),
        };
        let is_empty = |part: &Part| matches!(part, Part::Text { text, .. } if text.is_empty());
        if self.embeds && parts.iter().all(is_empty) {
            return Err(ApiError::field(place, "is empty"));
        }
        // A list that begins with a token says itself how the text begins.
        let begin = !matches!(parts.first(), Some(Part::Tokens(_)));
        Ok(Prompt::Parts { parts, begin })
    }

    fn wrong(&self, place: &str) -> ApiError {
        let more = if self.embeds { " or 'content'" } else { "" };
        let forms = "a string, a list of strings and tokens, or an object with 'prompt_string'";
        ApiError::field(place, format!("has to be {forms}{more}"))
    }

    fn text(&self, text: &str) -> Part {
        Part::Text { text: text.to_string(), special: self.special }
    }

    fn mixed(&self, parts: &[Value], place: &str) -> Result<Vec<Part>, ApiError> {
        let mut made: Vec<Part> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            match (part, token_of(part), made.last_mut()) {
                (Value::String(text), ..) => made.push(self.text(text)),
                (_, Some(token), Some(Part::Tokens(tokens))) => tokens.push(token),
                (_, Some(token), _) => made.push(Part::Tokens(vec![token])),
                _ => return Err(ApiError::field(format!("{place}[{i}]"), "has to be a string or a token")),
            }
        }
        Ok(made)
    }

    /// Reads parts such as `{"type": "text", "text": ...}`. They are one text, with nothing between them.
    fn content(&self, content: &Value, place: &str) -> Result<Part, ApiError> {
        let parts = content.as_array().ok_or_else(|| ApiError::field(place, "has to be a list of parts"))?;
        let mut text = String::new();
        for (i, part) in parts.iter().enumerate() {
            match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(more)) => text.push_str(more),
                (Some("text"), None) => return Err(ApiError::field(format!("{place}[{i}]"), "has no 'text'")),
                (kind, _) => {
                    let kind: String = kind.unwrap_or_default().chars().take(40).collect();
                    let message = format!("is of type '{kind}'; this server understands parts of type 'text' only");
                    return Err(ApiError::field(format!("{place}[{i}]"), message).code("unsupported_content"));
                }
            }
        }
        Ok(self.text(&text))
    }
}

fn token_schema() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
}

fn tokens_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": token_schema()})
}

fn content_schema(_: &mut SchemaGenerator) -> Schema {
    let part = json!({"anyOf": [{"type": "string"}, token_schema()]});
    json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]})
}

fn prompt_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": prompt_forms(false)})
}

/// Returns the schemas of what [`Reader`] reads, for embeddings or for texts that go on.
pub fn prompt_forms(embeds: bool) -> Vec<Value> {
    let least = usize::from(embeds);
    let text = json!({"type": "string", "minLength": least});
    let part = json!({"anyOf": [{"type": "string"}, token_schema()]});
    let mut forms = vec![
        text.clone(),
        json!({"type": "array", "minItems": least, "items": part}),
        json!({
            "type": "object",
            "required": ["prompt_string"],
            "properties": {"prompt_string": text, "multimodal_data": {"type": ["array", "null"], "maxItems": 0}},
        }),
    ];
    if embeds {
        let part = json!({
            "type": "object",
            "required": ["type", "text"],
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        });
        forms.push(json!({
            "type": "object",
            "required": ["content"],
            "properties": {"content": {"type": "array", "minItems": 1, "items": part}},
        }));
    }
    let several = json!({"type": "array", "minItems": 1, "items": {"anyOf": forms.clone()}});
    forms.push(several);
    forms
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
            answers.push(chosen(&response(&run, index, text, &wish), &wish.fields));
        }
    }
    match answers.as_slice() {
        [one] if n_prompts == 1 => json_response(one),
        all => json_response(&all),
    }
}

/// Returns an answer with these fields only, or with all if there are none. `a/b` is the field `b` of the object `a`; it
/// keeps its whole name. Fields that there are not are left out.
fn chosen(response: &NativeResponse, fields: &[String]) -> Value {
    let all = json!(response);
    if fields.is_empty() {
        return all;
    }
    let found = |field: &String| {
        let value = field.split('/').try_fold(&all, |value, key| value.get(key))?;
        Some((field.clone(), value.clone()))
    };
    Value::Object(fields.iter().filter_map(found).collect())
}

fn response(run: &Run, index: u32, text: &Text, wish: &Wish) -> NativeResponse {
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
        model: run.model.name.clone(),
        tokens_predicted: text.usage.written_tokens,
        tokens_evaluated: text.usage.prompt_tokens,
        generation_settings: settings_of(wish, run, text),
        prompt: run.prompt.clone().unwrap_or_default(),
        has_new_line: text.said.text.contains('\n'),
        truncated: text.finish == Some(Finish::ContextFull),
        stop_type,
        stopping_word,
        tokens_cached: text.usage.prompt_tokens + text.usage.written_tokens,
        timings: Timings::from(&text.usage),
        completion_probabilities: wish.probabilities(&text.tokens),
    }
}

/// Returns the settings that a text was written with. The seed that was drawn is known only now, and so are the tokens that
/// are ruled out because they end texts.
fn settings_of(wish: &Wish, run: &Run, text: &Text) -> Map<String, Value> {
    let mut settings = wish.settings.clone();
    settings.insert("seed".to_string(), text.usage.seed.into());
    if settings.get("ignore_eos") == Some(&Value::Bool(true))
        && let Some(Value::Array(biases)) = settings.get_mut("logit_bias")
    {
        biases.extend(run.model.info.end_tokens.iter().map(|token| json!({"token": token, "bias": null})));
    }
    settings
}

/// Returns an answer of another API in this one's form: its `__verbose`. The text is what the model wrote, reasoning and
/// calls among it. In a stream, it was told before.
pub fn verbose(run: &Run, text: &Text, wish: &Wish) -> NativeResponse {
    let mut told = response(run, 0, text, wish);
    told.content = String::new();
    if wish.streams {
        told.completion_probabilities = None;
        return told;
    }
    let bytes: Vec<u8> = text.tokens.iter().flat_map(|token| &token.bytes).copied().collect();
    told.content.push_str(&String::from_utf8_lossy(&bytes));
    // The text that ended it is not part of it.
    if let Some(at) = told.content.rfind(&told.stopping_word).filter(|_| !told.stopping_word.is_empty()) {
        told.content.truncate(at);
    }
    told
}

async fn stream(runs: Vec<Run>, n: u32, wish: Wish, mut events: sse::Events) -> Result<(), sse::Gone> {
    let mut first = 0;
    for mut run in runs {
        let mut texts = vec![(Text::default(), Clock::new(run.prompt_tokens)); n as usize];
        while let Some(step) = events.next(&mut run).await? {
            let step = match step {
                Ok(step) => step,
                Err(error) => return events.send(None, &error.to_value(Dialect::LlamaCpp, events.record().id())).await,
            };
            let (Step::Started { index, .. }
            | Step::Reading { index, .. }
            | Step::Piece { index, .. }
            | Step::Finished { index, .. }) = step;
            let Some((text, clock)) = texts.get_mut(index as usize) else { continue };
            match step {
                Step::Started { cached_tokens, .. } => clock.start(cached_tokens),
                Step::Reading { done, total, .. } => {
                    let mut piece = json!({"index": first + index, "content": "", "tokens": [], "stop": false,
                        "prompt_progress": clock.progress(done, total)});
                    if wish.times_tokens {
                        piece["timings"] = json!(clock.reading(done));
                    }
                    events.send(None, &piece).await?;
                }
                Step::Piece { events: said, tokens, .. } => {
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
                Step::Finished { finish, usage, .. } => {
                    (text.finish, text.usage) = (Some(finish), usage);
                    let last = response(&run, first + index, text, &wish);
                    let last = NativeResponse { content: String::new(), completion_probabilities: None, ..last };
                    events.send(None, &chosen(&last, &wish.fields)).await?;
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
    if let Some(probabilities) = wish.probabilities(tokens) {
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
    #[schemars(schema_with = "content_schema")]
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
    let request: TokenizeRequest = app.read(request).await?;
    let special = request.parse_special.unwrap_or(true);
    let text = |text: &str| Part::Text { text: text.to_string(), special };
    let parts = match &request.content {
        TextOr::Text(content) => vec![text(content)],
        TextOr::List(list) => {
            let of = |(i, value): (usize, &Value)| match (value, token_of(value)) {
                (Value::String(content), _) => Ok(text(content)),
                (_, Some(token)) => Ok(Part::Tokens(vec![token])),
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
    #[schemars(schema_with = "tokens_schema")]
    pub tokens: Vec<Value>,
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
    let request: DetokenizeRequest = app.read(request).await?;
    let tokens = tokens_of(&request.tokens, "tokens")?;
    let model = app.choose(request.model.as_deref(), &record).await?;
    match app.ask(&model.name, Task::Decode { tokens }).await? {
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
    let (name, talk) = chat::asked(&app, request).await?;
    let model = app.choose(name.as_deref(), &record).await?;
    let prompt = Prompt::Chat(Box::new(app.chat_of(&model, talk)?));
    match app.ask(&model.name, Task::Render { prompt }).await? {
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
    /// `unloaded`, `loading`, `ready`, `crashed` or `crash_loop`.
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
    let is_left = |model: &Model| matches!(model.state, backend::State::CrashLoop { .. });
    let (state, seconds) = match (loads, models.iter().all(is_left)) {
        (true, _) => ("loading", 2),
        // They are left alone for so long.
        (_, true) => ("crash_loop", 60),
        _ => ("crashed", 2),
    };
    let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("model_unavailable");
    Err(ApiError { retry_after: Some(seconds), ..error.fact("state", state).fact("models", json!(states)) })
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
    let (info, defaults) = (&model.info, settings(&Manner::default(), false, false));
    json_response(&PropsResponse {
        default_generation_settings: json!({"n_ctx": info.n_ctx_sequence, "params": defaults}),
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

/// The header of `/metrics` with the seconds since 1970 at which the server started.
const PROCESS_START: HeaderName = HeaderName::from_static("process-start-time-unix");

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
    let mut response = metrics::text(&app.counters, &models, app.backend.has_one_model()).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(PROCESS_START, HeaderValue::from(app.counters.started()));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_what_the_document_says() {
        let part = json!({"type": "text", "text": "a"});
        let values = [
            json!(null),
            json!(3),
            json!(true),
            json!(""),
            json!("a"),
            json!([]),
            json!([[]]),
            json!([1, "a", 2.0]),
            json!([1, {}]),
            json!([1, [2]]),
            json!([-1]),
            json!([1_u64 << 32]),
            json!([1.5]),
            json!([true]),
            json!([[1], "a", ["a", 1]]),
            json!([[1], [2.5]]),
            json!({}),
            json!({"prompt_string": "a"}),
            json!({"prompt_string": 1}),
            json!({"prompt_string": "a", "multimodal_data": null}),
            json!({"prompt_string": "a", "multimodal_data": []}),
            json!({"prompt_string": "a", "multimodal_data": ["x"]}),
            json!({"prompt_string": "a", "multimodal_data": "x"}),
            json!({"content": [part]}),
            json!(["a", {"content": [part, part]}, {"prompt_string": "a"}]),
            json!({"content": []}),
            json!({"content": "a"}),
            json!({"content": [{"type": "text"}]}),
            json!({"content": [{"type": "image_url"}]}),
        ];
        for embeds in [false, true] {
            let validator = jsonschema::validator_for(&json!({"anyOf": prompt_forms(embeds)})).unwrap();
            let reader = Reader { field: "prompt", special: true, most: 9, embeds };
            for value in &values {
                assert_eq!(reader.prompts(value).is_ok(), validator.is_valid(value), "{embeds} {value}");
            }
        }
    }
}
