//! Types on the wire that several routes share. The OpenAPI document is generated from them.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{Collected, Event, Tool};
use super::error::ApiError;
use super::protocol::{Constraint, Finish, TokenPiece, Usage};
use super::run::{Manner, Run, Step};
use super::sampling;

/// A text, or a list of `T`.
#[derive(Clone, Debug, PartialEq)]
pub enum TextOr<T> {
    /// A text.
    Text(String),
    /// A list.
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOr::List)
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for TextOr<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("TextOr{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = generator.subschema_for::<T>();
        json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": item}]})
    }
}

/// Reads a whole number, also if it is written as `5.0`.
///
/// # Errors
/// If it is anything else but null.
pub fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    struct Whole;
    impl Visitor<'_> for Whole {
        type Value = Option<i64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
            Ok(Some(number))
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
            i64::try_from(number).map(Some).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
        }

        fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Self::Value, E> {
            let whole = sampling::whole_float(number);
            whole.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
        }

        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Whole)
}

/// A part of a message: only text is understood.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
pub struct ContentPart {
    /// `text`; in `/v1/responses` also `input_text` and `output_text`.
    pub r#type: String,
    /// The text.
    pub text: Option<String>,
    /// Why an answer was refused, in parts of that type.
    pub refusal: Option<String>,
}

/// What a message says.
pub type Content = TextOr<ContentPart>;

/// Returns the text of a content. Parts are lines.
///
/// # Errors
/// If a part is not text.
pub fn text_of(content: &Content, place: &str) -> Result<String, ApiError> {
    let parts = match content {
        Content::Text(text) => return Ok(text.clone()),
        Content::List(parts) => parts,
    };
    let texts = parts.iter().enumerate().map(|(i, part)| {
        let text = match part.r#type.as_str() {
            "text" | "input_text" | "output_text" => part.text.clone(),
            "refusal" => part.refusal.clone(),
            kind => {
                let kind: String = kind.chars().take(40).collect();
                let message = format!("is of type '{kind}'; this server understands parts of type 'text' only");
                return Err(ApiError::field(format!("{place}[{i}]"), message).code("unsupported_content"));
            }
        };
        text.ok_or_else(|| ApiError::field(format!("{place}[{i}]"), "has no 'text'"))
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// Fields of all requests for texts that this server adds or has from llama.cpp's.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Common {
    /// How many texts to write.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = 1, max = 128))]
    pub n: Option<i64>,
    /// Texts that end the answer, and are not part of it.
    #[schemars(extend("maxItems" = 64))]
    pub stop: Option<TextOr<String>>,
    /// The most tokens of an answer; -1 for what the context holds.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = -1))]
    pub max_tokens: Option<i64>,
    /// The same.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = -1))]
    pub max_completion_tokens: Option<i64>,
    /// The same, by llama.cpp's name.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = -1))]
    pub n_predict: Option<i64>,
    /// Whether tokens that end texts are ruled out.
    pub ignore_eos: Option<bool>,
    /// Whether to use what was read for earlier requests. True if it is not given.
    pub cache_prompt: Option<bool>,
    /// A grammar in llama.cpp's notation that the answer has to satisfy.
    pub grammar: Option<String>,
    /// A regular expression that the answer has to match.
    pub regex: Option<String>,
    /// A JSON schema that the answer has to satisfy.
    pub json_schema: Option<Value>,
    /// Milliseconds until the answer ends, with what was written by then.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = 0))]
    pub t_max_predict_ms: Option<i64>,
    /// Whether each event of a stream has `timings`.
    pub timings_per_token: Option<bool>,
    /// Whether the reading of the prompt is reported in a stream.
    pub return_progress: Option<bool>,
}

/// The most texts that one request may ask for.
const MOST_TEXTS: i64 = 128;

/// The most texts that may end an answer.
const MOST_STOPS: usize = 64;

impl Common {
    /// Returns how texts are written. `request` is the same request.
    ///
    /// # Errors
    /// If a field is out of its range.
    pub fn manner(&self, request: &Value) -> Result<Manner, ApiError> {
        let n = self.n.unwrap_or(1);
        if !(1..=MOST_TEXTS).contains(&n) {
            return Err(ApiError::field(
                "n",
                format!("cannot be {n}; it has to be a whole number from 1 to {MOST_TEXTS}"),
            ));
        }
        let limits = [
            ("max_completion_tokens", self.max_completion_tokens),
            ("max_tokens", self.max_tokens),
            ("n_predict", self.n_predict),
        ];
        if let Some((name, limit)) = limits.iter().find_map(|(name, limit)| Some((name, limit.filter(|n| *n < -1)?))) {
            return Err(ApiError::field(
                *name,
                format!("cannot be {limit}; it has to be a whole number of 0 or more, or -1"),
            ));
        }
        let max_tokens = limits.iter().find_map(|(_, limit)| *limit).and_then(|limit| u64::try_from(limit).ok());
        let stop = match &self.stop {
            None => Vec::new(),
            Some(TextOr::Text(text)) => vec![text.clone()],
            Some(TextOr::List(texts)) => texts.clone(),
        };
        if stop.len() > MOST_STOPS {
            return Err(ApiError::field(
                "stop",
                format!("has {} texts; at most {MOST_STOPS} are accepted", stop.len()),
            ));
        }
        let timeout_ms = self.t_max_predict_ms.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0);
        Ok(Manner {
            n: u32::try_from(n).unwrap_or(1),
            max_tokens,
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            ignore_end: self.ignore_eos.unwrap_or(false),
            logprobs: None,
            after_sampling: false,
            sampling: sampling::read(request)?,
            biases: sampling::biases(&request["logit_bias"])?,
            constraint: self.constraint()?,
            no_cache: self.cache_prompt == Some(false),
            timeout_ms,
            progress: self.return_progress.unwrap_or(false),
            shows_prompt: false,
            scores: None,
        })
    }

    fn constraint(&self) -> Result<Option<Constraint>, ApiError> {
        let grammar = self.grammar.clone().filter(|text| !text.is_empty()).map(Constraint::Gbnf);
        let regex = self.regex.clone().map(Constraint::Regex);
        let schema = self.json_schema.clone().filter(|schema| !schema.is_null()).map(Constraint::JsonSchema);
        let mut given = [grammar, regex, schema].into_iter().flatten();
        match (given.next(), given.next()) {
            (given, None) => Ok(given),
            _ => Err(ApiError::invalid("only one of 'grammar', 'regex' and 'json_schema' can be given")),
        }
    }
}

/// What an answer has to be.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[schemars(extend("enum" = ["text", "json_object", "json_schema"]))]
    pub r#type: String,
    /// The schema, with its name.
    pub json_schema: Option<NamedSchema>,
    /// The schema, in `/v1/responses`, and in llama.cpp's form of `json_object`.
    pub schema: Option<Value>,
}

/// A schema with a name.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct NamedSchema {
    /// The name. It changes nothing.
    pub name: Option<String>,
    /// The schema.
    pub schema: Option<Value>,
    /// Answers satisfy the schema whether this is true or not.
    pub strict: Option<bool>,
}

impl ResponseFormat {
    /// Adds it to what is asked for. `place` is its name in the request.
    ///
    /// # Errors
    /// If it is not known, or the answer has another form already.
    pub fn apply(&self, place: &str, manner: &mut Manner) -> Result<(), ApiError> {
        let nested = self.json_schema.as_ref().and_then(|named| named.schema.clone());
        let constraint = match (self.r#type.as_str(), nested.or_else(|| self.schema.clone())) {
            ("text", _) => return Ok(()),
            ("json_object", None) => Constraint::JsonObject,
            ("json_object" | "json_schema", Some(schema)) => Constraint::JsonSchema(schema),
            ("json_schema", None) => return Err(ApiError::field(place, "is a JSON schema without 'schema'")),
            (other, _) => {
                let shown: String = other.chars().take(40).collect();
                let message = format!("cannot be '{shown}'; it has to be text, json_object or json_schema");
                return Err(ApiError::field(format!("{place}.type"), message));
            }
        };
        if manner.constraint.is_some() {
            return Err(ApiError::field(place, "cannot be given together with 'grammar', 'regex' or 'json_schema'"));
        }
        manner.constraint = Some(constraint);
        Ok(())
    }
}

/// Refuses lists that are too long.
///
/// # Errors
/// If it is.
pub fn check_length(place: &str, length: usize, most: usize) -> Result<(), ApiError> {
    if length > most {
        return Err(ApiError::field(place, format!("has {length} entries; at most {most} are accepted")));
    }
    Ok(())
}

/// Returns a token; `None` if the value cannot be one.
pub fn token_of(value: &Value) -> Option<u32> {
    sampling::whole_number(value).and_then(|token| u32::try_from(token).ok())
}

/// Reads tokens.
///
/// # Errors
/// If one is not a token.
pub fn tokens_of(list: &[Value], place: &str) -> Result<Vec<u32>, ApiError> {
    let tokens: Option<Vec<u32>> = list.iter().map(token_of).collect();
    tokens.ok_or_else(|| ApiError::field(place, "has to be a list of tokens: whole numbers of 0 or more"))
}

/// Refuses tools whose names cannot be written, or are not unique.
///
/// # Errors
/// If there is one.
pub fn check_tools(tools: &[Tool]) -> Result<(), ApiError> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    let mut names = std::collections::HashSet::new();
    for (i, tool) in tools.iter().enumerate() {
        let shown: String = tool.name.chars().take(40).collect();
        let place = format!("tools[{i}].name");
        if !(1..=128).contains(&tool.name.len()) || !tool.name.chars().all(is_of_name) {
            let message = format!("cannot be '{shown}'; it has to be 1 to 128 letters, digits or _ - . : /");
            return Err(ApiError::field(place, message));
        }
        if !names.insert(&tool.name) {
            return Err(ApiError::field(place, format!("is '{shown}', as that of another tool")));
        }
    }
    Ok(())
}

/// Tokens that an answer took.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct TokenUsage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of what was written.
    pub completion_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
    /// More about the prompt.
    pub prompt_tokens_details: PromptDetails,
    /// More about what was written.
    pub completion_tokens_details: CompletionDetails,
}

/// More about a prompt.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct PromptDetails {
    /// Tokens that were found in the cache, and not read again.
    pub cached_tokens: u64,
}

/// More about what was written.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct CompletionDetails {
    /// Tokens of reasoning.
    pub reasoning_tokens: u64,
    /// Tokens that were guessed, and right.
    pub accepted_prediction_tokens: u64,
    /// Tokens that were guessed, and wrong.
    pub rejected_prediction_tokens: u64,
}

impl TokenUsage {
    /// Adds a text of a prompt. The prompt counts once, however many texts it has.
    pub fn add(&mut self, usage: &Usage, reasoning_tokens: u64, counts_prompt: bool) {
        if counts_prompt {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.written_tokens;
        let details = &mut self.completion_tokens_details;
        details.reasoning_tokens += reasoning_tokens;
        details.accepted_prediction_tokens += usage.accepted_guesses;
        details.rejected_prediction_tokens += usage.guesses.saturating_sub(usage.accepted_guesses);
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// How long it took: llama.cpp's form.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Timings {
    /// Tokens of the prompt from the cache.
    pub cache_n: u64,
    /// Tokens of the prompt that were read.
    pub prompt_n: u64,
    /// Milliseconds for them.
    pub prompt_ms: f64,
    /// Milliseconds for one.
    pub prompt_per_token_ms: f64,
    /// Tokens a second.
    pub prompt_per_second: f64,
    /// Tokens that were written.
    pub predicted_n: u64,
    /// Milliseconds from the first of them to the end.
    pub predicted_ms: f64,
    /// Milliseconds for one, without the first: reading the prompt makes that one.
    pub predicted_per_token_ms: f64,
    /// Tokens a second, without the first.
    pub predicted_per_second: f64,
    /// Tokens that were guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_n: Option<u64>,
    /// Tokens of them that were right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_n_accepted: Option<u64>,
}

impl From<&Usage> for Timings {
    fn from(usage: &Usage) -> Self {
        let of = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let prompt_n = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let guesses = (usage.guesses > 0).then_some(usage.guesses);
        // The clock of writing starts with the first token.
        let timed = usage.written_tokens.saturating_sub(1) as f64;
        Self {
            cache_n: usage.cached_tokens,
            prompt_n,
            prompt_ms: usage.reading_ms,
            prompt_per_token_ms: of(usage.reading_ms, prompt_n as f64),
            prompt_per_second: of(1e3 * prompt_n as f64, usage.reading_ms),
            predicted_n: usage.written_tokens,
            predicted_ms: usage.writing_ms,
            predicted_per_token_ms: of(usage.writing_ms, timed),
            predicted_per_second: of(1e3 * timed, usage.writing_ms),
            draft_n: guesses,
            draft_n_accepted: guesses.map(|_| usage.accepted_guesses),
        }
    }
}

/// What was left out, and why answers ended, where that is more than the API can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Notes {
    /// The oldest turns that the prompt does not have, because of `truncation`.
    pub forgotten_turns: u64,
    /// Why each text ended: `end`, `stop`, `max_tokens`, `context_full` or `timeout`.
    pub ended_by: Vec<&'static str>,
}

/// A token that was written.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TokenLogprob {
    /// Its number.
    pub id: u32,
    /// Its text, as far as its bytes are UTF-8.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f64,
    /// The most likely tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been written.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TopLogprob {
    /// Its number.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f64,
}

/// A token that was written, with probabilities after sampling.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TokenProb {
    /// Its number.
    pub id: u32,
    /// Its text, as far as its bytes are UTF-8.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// With which probability it was drawn.
    pub prob: f64,
    /// The most likely tokens in its place. Those that could not have been drawn are not among them.
    pub top_probs: Vec<TopProb>,
}

/// A token that could have been drawn.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TopProb {
    /// Its number.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// With which probability.
    pub prob: f64,
}

impl From<&TokenPiece> for TokenProb {
    fn from(piece: &TokenPiece) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let top = piece.top.iter().map(|(id, bytes, number)| TopProb {
            id: *id,
            token: text(bytes),
            bytes: bytes.clone(),
            prob: number.exp(),
        });
        Self {
            id: piece.id,
            token: text(&piece.bytes),
            bytes: piece.bytes.clone(),
            prob: piece.logprob.map_or(0.0, f64::exp),
            top_probs: top.collect(),
        }
    }
}

/// Below it OpenAI's clients expect no logarithms.
const LEAST_LOGPROB: f64 = -9999.0;

impl From<&TokenPiece> for TokenLogprob {
    fn from(piece: &TokenPiece) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let logprob = |number: f64| if number >= LEAST_LOGPROB { number } else { LEAST_LOGPROB };
        let top = piece.top.iter().map(|(id, bytes, number)| TopLogprob {
            id: *id,
            token: text(bytes),
            bytes: bytes.clone(),
            logprob: logprob(*number),
        });
        Self {
            id: piece.id,
            token: text(&piece.bytes),
            bytes: piece.bytes.clone(),
            logprob: logprob(piece.logprob.unwrap_or(LEAST_LOGPROB)),
            top_logprobs: top.collect(),
        }
    }
}

/// A whole text.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// What it says.
    pub said: Collected,
    /// Its tokens.
    pub tokens: Vec<TokenPiece>,
    /// Tokens of reasoning.
    pub reasoning_tokens: u64,
    /// Why it ended.
    pub finish: Option<Finish>,
    /// What it took.
    pub usage: Usage,
}

impl Text {
    /// Adds what came next.
    pub fn push(&mut self, events: &[Event], tokens: &[TokenPiece], keeps_tokens: bool) {
        if events.iter().all(|event| matches!(event, Event::Reasoning(_))) && !events.is_empty() {
            self.reasoning_tokens += tokens.len() as u64;
        }
        events.iter().for_each(|event| self.said.push(event));
        if keeps_tokens {
            self.tokens.extend_from_slice(tokens);
        }
    }

    /// Why it ended, in OpenAI's words.
    pub fn finish_reason(&self) -> &'static str {
        match &self.finish {
            Some(Finish::MaxTokens | Finish::ContextFull | Finish::Timeout) => "length",
            _ if !self.said.calls.is_empty() => "tool_calls",
            _ => "stop",
        }
    }
}

/// Waits for all texts.
///
/// # Errors
/// If one fails.
pub async fn collect(run: &mut Run, n: u32, keeps_tokens: bool) -> Result<Vec<Text>, ApiError> {
    let mut texts = vec![Text::default(); n as usize];
    while let Some(step) = run.next().await {
        match step? {
            Step::Started { .. } | Step::Reading { .. } => {}
            Step::Piece { index, events, tokens } => {
                if let Some(text) = texts.get_mut(index as usize) {
                    text.push(&events, &tokens, keeps_tokens);
                }
            }
            Step::Finished { index, finish, usage } => {
                if let Some(text) = texts.get_mut(index as usize) {
                    (text.finish, text.usage) = (Some(finish), usage);
                }
            }
        }
    }
    Ok(texts)
}

/// Adds up what texts of one prompt took.
pub fn usage_of(texts: &[Text]) -> TokenUsage {
    let mut usage = TokenUsage::default();
    for (i, text) in texts.iter().enumerate() {
        usage.add(&text.usage, text.reasoning_tokens, i == 0);
    }
    usage
}

/// What is to be said about texts besides.
pub fn notes_of(run: &Run, texts: &[Text]) -> Notes {
    let ended_by = texts.iter().filter_map(|text| text.finish.as_ref()).map(super::run::ended_by);
    Notes { forgotten_turns: run.forgotten_turns, ended_by: ended_by.collect() }
}

/// An error object of OpenAI's.
#[derive(Serialize, JsonSchema)]
pub struct OpenAiError {
    /// The error.
    pub error: OpenAiErrorBody,
}

/// What an error object of OpenAI's holds.
#[derive(Serialize, JsonSchema)]
pub struct OpenAiErrorBody {
    /// What is wrong, and what to change.
    pub message: String,
    /// The kind of error.
    pub r#type: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A name of the error.
    pub code: Option<String>,
}

/// An error object of Anthropic's.
#[derive(Serialize, JsonSchema)]
pub struct AnthropicError {
    /// `error`.
    pub r#type: String,
    /// The error.
    pub error: AnthropicErrorBody,
    /// The number of the request.
    pub request_id: String,
}

/// What an error object of Anthropic's holds.
#[derive(Serialize, JsonSchema)]
pub struct AnthropicErrorBody {
    /// The kind of error.
    pub r#type: String,
    /// What is wrong, and what to change.
    pub message: String,
}

/// A role of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Role {
    /// What holds for the conversation.
    System,
    /// The same, in newer clients.
    Developer,
    /// Who asks.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
    /// The same, in older clients.
    Function,
}

impl Role {
    const ALL: [(&'static str, Self); 6] = [
        ("system", Self::System),
        ("developer", Self::Developer),
        ("user", Self::User),
        ("assistant", Self::Assistant),
        ("tool", Self::Tool),
        ("function", Self::Function),
    ];

    /// Its name in a template.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool | Self::Function => "tool",
        }
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, role)| *role);
        found.ok_or_else(|| {
            let shown: String = name.chars().take(40).collect();
            D::Error::custom(format!("unknown role '{shown}'; there are system, developer, user, assistant and tool"))
        })
    }
}

/// A message in OpenAI's form.
pub fn message(role: &str, content: impl Into<Value>) -> Value {
    json!({"role": role, "content": content.into()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::body;

    #[test]
    fn whole_numbers_may_be_written_as_floats() {
        let common: Common =
            body::typed(&json!({"n": 2.0, "max_tokens": 5, "n_predict": -1.0, "t_max_predict_ms": null})).unwrap();
        assert_eq!((common.n, common.max_tokens, common.n_predict), (Some(2), Some(5), Some(-1)));
        assert_eq!((common.max_completion_tokens, common.t_max_predict_ms), (None, None));
        for wrong in [json!(1.5), json!("2"), json!(true), json!([2]), json!(1e30), json!(u64::MAX)] {
            let error = body::typed::<Common>(&json!({"max_tokens": wrong})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("max_tokens"), "{wrong}");
            assert!(error.message.contains("expected a whole number"), "{}", error.message);
        }
        assert_eq!(tokens_of(&[json!(7), json!(956_453.0)], "tokens").unwrap(), [7, 956_453]);
        for wrong in [json!(-1), json!(1.5), json!(1_u64 << 32), json!("7"), Value::Null] {
            assert!(tokens_of(&[wrong], "tokens").is_err());
        }
    }

    #[test]
    fn speed_does_not_count_the_token_that_reading_made() {
        let of = |written_tokens| {
            Timings::from(&Usage {
                prompt_tokens: 8,
                written_tokens,
                reading_ms: 4.0,
                writing_ms: 30.0,
                ..Usage::default()
            })
        };
        let timings = of(16);
        assert_eq!((timings.predicted_n, timings.predicted_ms), (16, 30.0));
        assert_eq!((timings.predicted_per_second, timings.predicted_per_token_ms), (500.0, 2.0));
        assert_eq!((timings.prompt_per_second, timings.prompt_per_token_ms), (2000.0, 0.5));
        for n in [0, 1] {
            assert_eq!((of(n).predicted_per_second, of(n).predicted_per_token_ms), (0.0, 0.0));
        }
    }
}
