//! `/v1/completions`: texts that go on, without a conversation.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::answer::Event;
use super::super::app::{App, unexpected};
use super::super::body;
use super::super::error::{ApiError, Dialect};
use super::super::log::Record;
use super::super::protocol::{Answer, Infill, Part, Prompt, Task, TokenPiece};
use super::super::run::{Run, Step};
use super::super::sse;
use super::super::wire::{
    Common, Notes, ResponseFormat, Text, TextOr, Timings, TokenLogprob, TokenUsage, check_length, collect, notes_of,
    tokens_of, usage_of, whole,
};
use super::chat::{Head, StreamOptions};
use super::json_response;

/// A request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct CompletionRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// The text to go on with, its tokens, or a list of either.
    pub prompt: TextOr<Value>,
    /// The text after the gap to fill.
    pub suffix: Option<String>,
    /// Whether the answer comes in pieces.
    pub stream: Option<bool>,
    /// How it does.
    pub stream_options: Option<StreamOptions>,
    /// Log-probabilities, and those of so many other tokens.
    pub logprobs: Option<Value>,
    /// Whether answers begin with the prompt.
    pub echo: Option<bool>,
    /// The same as `n`; more is not supported.
    #[serde(default, deserialize_with = "whole")]
    pub best_of: Option<i64>,
    /// Whether what spells a control token in the prompt is one. It is text if this is not given.
    pub parse_special: Option<bool>,
    /// What the answer has to be.
    pub response_format: Option<ResponseFormat>,
}

/// An answer, or a piece of one.
#[derive(Serialize, JsonSchema)]
pub struct CompletionResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nibble: Option<Notes>,
}

/// One of the texts.
#[derive(Serialize, JsonSchema)]
pub struct CompletionChoice {
    index: u32,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Log-probabilities, in the form of old clients, and in the new one.
#[derive(Clone, Default, Serialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// Texts of tokens: those of the prompt, too, if `echo` is true.
    tokens: Vec<String>,
    /// `null` for the first token of the prompt.
    token_logprobs: Vec<Option<f64>>,
    /// `null` for the first token of the prompt.
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters before each token.
    text_offset: Vec<usize>,
    /// What was written.
    content: Vec<TokenLogprob>,
}

/// Answers a request.
///
/// # Errors
/// If there is no answer.
pub async fn completions(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = app.read_body(request).await?;
    let request: CompletionRequest = body::typed(&value)?;
    let common: Common = body::typed(&value)?;
    let mut manner = common.manner(&value)?;
    manner.logprobs = match &request.logprobs {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(0),
        Some(n) => match n.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 20) {
            Some(n) => Some(n),
            None => return Err(ApiError::field("logprobs", "has to be a whole number from 0 to 20")),
        },
    };
    if let Some(format) = &request.response_format {
        format.apply("response_format", &mut manner)?;
    }
    // OpenAI's default, which clients know, would be 16: too short to be meant. The context is the limit.
    let n = manner.n;
    if request.best_of.is_some_and(|best| best != i64::from(n)) {
        return Err(ApiError::field("best_of", "has to be equal to 'n': more are not written"));
    }
    let prompts = prompts(&request, app.options.max_items)?;
    let echoes = request.echo == Some(true);
    let wants_logprobs = manner.logprobs.is_some();
    manner.scores = manner.logprobs.filter(|_| echoes);
    let (mut runs, mut echoed) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let model = app.choose(request.model.as_deref(), &record).await?;
        echoed.push(if echoes { text_of_prompt(&app, &model.name, &prompt).await? } else { String::new() });
        runs.push(app.complete(model, prompt, manner.clone(), false, &record).await?);
    }
    let Some(first) = runs.first() else { return Err(ApiError::field("prompt", "is an empty list")) };
    let head = Head::new(&app, first, "cmpl-");
    if request.stream.unwrap_or(false) {
        let includes_usage = request.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true));
        let shape = Shape { n, wants_logprobs, includes_usage, echoes, echoed };
        return Ok(sse::response(app.options.keep_alive, &record, |events| stream(runs, head, shape, events)));
    }
    let (mut choices, mut usage, mut notes, mut timings) = (Vec::new(), TokenUsage::default(), Notes::default(), None);
    for (i, mut run) in runs.into_iter().enumerate() {
        let texts = collect(&mut run, n, wants_logprobs).await?;
        let of_prompt = of_prompt(&run.scored, &echoed[i]);
        for text in &texts {
            let said = format!("{}{}", echoed[i], text.said.text);
            choices.push(CompletionChoice {
                index: u32::try_from(choices.len()).unwrap_or(u32::MAX),
                text: said,
                logprobs: wants_logprobs
                    .then(|| of_prompt.clone().followed_by(&text.tokens, echoed[i].chars().count())),
                finish_reason: Some(text.finish_reason()),
            });
        }
        add(&mut usage, &usage_of(&texts));
        let more = notes_of(&run, &texts);
        notes.ended_by.extend(more.ended_by);
        timings = timings.or(texts.first().map(|text| Timings::from(&text.usage)));
    }
    json_response(&CompletionResponse { usage: Some(usage), timings, nibble: Some(notes), ..response(&head, choices) })
}

fn response(head: &Head, choices: Vec<CompletionChoice>) -> CompletionResponse {
    CompletionResponse {
        id: head.id.clone(),
        object: "text_completion",
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: head.fingerprint.clone(),
        choices,
        usage: None,
        timings: None,
        nibble: None,
    }
}

fn add(sum: &mut TokenUsage, more: &TokenUsage) {
    sum.prompt_tokens += more.prompt_tokens;
    sum.completion_tokens += more.completion_tokens;
    sum.total_tokens += more.total_tokens;
    sum.prompt_tokens_details.cached_tokens += more.prompt_tokens_details.cached_tokens;
}

/// The most prompts of one request: each waits in the queue.
const MOST_PROMPTS: usize = 256;

fn prompts(request: &CompletionRequest, most: usize) -> Result<Vec<Prompt>, ApiError> {
    if let Some(suffix) = request.suffix.as_ref().filter(|suffix| !suffix.is_empty()) {
        let TextOr::Text(prefix) = &request.prompt else {
            return Err(ApiError::field("prompt", "has to be a string if 'suffix' is given"));
        };
        let infill = Infill { prefix: prefix.clone(), suffix: suffix.clone(), ..Infill::default() };
        return Ok(vec![Prompt::Infill(Box::new(infill))]);
    }
    let parts = |part| Prompt::Parts { parts: vec![part], begin: true };
    let special = request.parse_special.unwrap_or(false);
    let text = |text: &str| parts(Part::Text { text: text.to_string(), special });
    match &request.prompt {
        TextOr::Text(prompt) => Ok(vec![text(prompt)]),
        TextOr::List(list) if !list.is_empty() && list.iter().all(Value::is_number) => {
            Ok(vec![tokens(list, "prompt")?])
        }
        TextOr::List(list) => {
            check_length("prompt", list.len(), most.min(MOST_PROMPTS))?;
            let of = |(i, prompt): (usize, &Value)| match prompt {
                Value::String(prompt) => Ok(text(prompt)),
                Value::Array(list) => tokens(list, &format!("prompt[{i}]")),
                _ => Err(ApiError::field(format!("prompt[{i}]"), "has to be a string or a list of tokens")),
            };
            list.iter().enumerate().map(of).collect()
        }
    }
}

/// Tokens are taken as they are, without one that begins texts.
fn tokens(list: &[Value], place: &str) -> Result<Prompt, ApiError> {
    Ok(Prompt::Parts { parts: vec![Part::Tokens(tokens_of(list, place)?)], begin: false })
}

/// What an answer begins with if it echoes its prompt.
async fn text_of_prompt(app: &App, model: &str, prompt: &Prompt) -> Result<String, ApiError> {
    let Prompt::Parts { parts, .. } = prompt else {
        return Err(ApiError::field("echo", "cannot be true if 'suffix' is given"));
    };
    if let [Part::Text { text, .. }] = parts.as_slice() {
        return Ok(text.clone());
    }
    match app.ask(model, Task::Render { prompt: prompt.clone() }).await? {
        Answer::Text(text) => Ok(text),
        _ => Err(unexpected()),
    }
}

/// Log-probabilities of a prompt, whose text is this.
fn of_prompt(scored: &[TokenPiece], text: &str) -> CompletionLogprobs {
    let mut logprobs = CompletionLogprobs::default();
    let whole: Vec<u8> = scored.iter().flat_map(|token| &token.bytes).copied().collect();
    // Some vocabularies write a space before every text.
    let mut has_space = whole.strip_prefix(b" ").is_some_and(|whole| whole == text.as_bytes());
    let mut offset = 0;
    for piece in scored {
        let mut token = TokenLogprob::from(piece);
        if has_space && !token.token.is_empty() {
            has_space = false;
            token.token.remove(0);
        }
        offset = logprobs.push(&token, piece.logprob.is_some(), offset);
    }
    logprobs
}

impl CompletionLogprobs {
    /// Adds a token. Returns how many characters are before the next one.
    fn push(&mut self, token: &TokenLogprob, is_known: bool, offset: usize) -> usize {
        let top = token.top_logprobs.iter().map(|top| (top.token.clone(), json!(top.logprob)));
        let mut top: Map<String, Value> = top.collect();
        // One more than was asked for, if the token is not among the most likely ones.
        top.entry(token.token.as_str()).or_insert(json!(token.logprob));
        self.tokens.push(token.token.clone());
        self.token_logprobs.push(is_known.then_some(token.logprob));
        self.top_logprobs.push(is_known.then_some(top));
        self.text_offset.push(offset);
        offset + token.token.chars().count()
    }

    /// The same with tokens that were written after so many characters.
    fn followed_by(mut self, tokens: &[TokenPiece], mut offset: usize) -> Self {
        for token in tokens.iter().map(TokenLogprob::from) {
            offset = self.push(&token, true, offset);
            self.content.push(token);
        }
        self
    }
}

struct Shape {
    n: u32,
    wants_logprobs: bool,
    includes_usage: bool,
    echoes: bool,
    /// What each answer begins with.
    echoed: Vec<String>,
}

/// The piece of a text that repeats its prompt.
fn echo(run: &Run, shape: &Shape, index: u32, text: &str) -> CompletionChoice {
    let logprobs = shape.wants_logprobs.then(|| of_prompt(&run.scored, text));
    CompletionChoice { index, text: text.to_string(), logprobs, finish_reason: None }
}

async fn stream(runs: Vec<Run>, head: Head, shape: Shape, mut events: sse::Events) -> Result<(), sse::Gone> {
    let choice = |index, text, finish_reason| CompletionChoice { index, text, logprobs: None, finish_reason };
    let mut usage = TokenUsage::default();
    let mut notes = Notes::default();
    let mut first = 0;
    // One after the other: the engine works on all at the same time.
    for (mut run, echoed) in runs.into_iter().zip(&shape.echoed) {
        let mut texts = vec![Text::default(); shape.n as usize];
        let mut echoes: Vec<bool> = vec![shape.echoes; shape.n as usize];
        let mut offset = vec![echoed.chars().count(); shape.n as usize];
        while let Some(step) = events.next(&mut run).await? {
            let step = match step {
                Ok(step) => step,
                Err(error) => return events.send(None, &error.to_value(Dialect::OpenAi, events.record().id())).await,
            };
            if let Step::Piece { index, .. } | Step::Finished { index, .. } = &step
                && echoes.get_mut(*index as usize).is_some_and(std::mem::take)
            {
                events.send(None, &response(&head, vec![echo(&run, &shape, first + index, echoed)])).await?;
            }
            match step {
                Step::Started { .. } | Step::Reading { .. } => {}
                Step::Piece { index, events: said, tokens } => {
                    let text: String = said.iter().filter_map(text_of).collect();
                    let Some(offset) = offset.get_mut(index as usize) else { continue };
                    let logprobs =
                        shape.wants_logprobs.then(|| CompletionLogprobs::default().followed_by(&tokens, *offset));
                    *offset +=
                        tokens.iter().map(|token| String::from_utf8_lossy(&token.bytes).chars().count()).sum::<usize>();
                    if !text.is_empty() || shape.wants_logprobs {
                        let piece = CompletionChoice { logprobs, ..choice(first + index, text, None) };
                        events.send(None, &response(&head, vec![piece])).await?;
                    }
                }
                Step::Finished { index, finish, usage } => {
                    let Some(text) = texts.get_mut(index as usize) else { continue };
                    (text.finish, text.usage) = (Some(finish), usage);
                    let piece = choice(first + index, String::new(), Some(text.finish_reason()));
                    let timings = Some(Timings::from(&usage));
                    events.send(None, &CompletionResponse { timings, ..response(&head, vec![piece]) }).await?;
                }
            }
        }
        add(&mut usage, &usage_of(&texts));
        notes.ended_by.extend(notes_of(&run, &texts).ended_by);
        first += shape.n;
    }
    if shape.includes_usage {
        let last = CompletionResponse { usage: Some(usage), nibble: Some(notes), ..response(&head, Vec::new()) };
        events.send(None, &last).await?;
    }
    events.done().await
}

/// The text of an event of an answer without reasoning and calls.
pub fn text_of(event: &Event) -> Option<&str> {
    match event {
        Event::Text(text) => Some(text),
        _ => None,
    }
}
