//! What a request can be answered with instead of what it asked for: error objects of OpenAI's or Anthropic's form.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::log::Record;
use super::protocol::{Failure, FailureKind};

/// The API that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// That of llama.cpp's server, whose errors have the form of OpenAI's.
    LlamaCpp,
}

impl Dialect {
    /// The API that a path belongs to.
    pub fn of_path(path: &str) -> Self {
        match (path, path.strip_prefix("/v1/messages")) {
            ("/completion" | "/completions" | "/infill" | "/embedding" | "/embeddings", _) => Self::LlamaCpp,
            (_, Some(rest)) if rest.is_empty() || rest.starts_with('/') => Self::Anthropic,
            _ => Self::OpenAi,
        }
    }
}

/// The code of the error that a prompt is longer than the context.
const TOO_LONG: &str = "context_length_exceeded";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// What is wrong, and what to change.
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A name of the error, for programs.
    pub code: Option<&'static str>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u64>,
    /// More facts, for programs.
    pub facts: Box<Map<String, Value>>,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None, facts: Box::default() }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request is wrong. The message follows its name.
    pub fn field(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let error = Self::invalid(format!("'{param}' {message}"));
        Self { param: Some(param), ..error }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Adds a name for programs.
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// Adds the field that is wrong.
    pub fn param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Adds a fact.
    pub fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_string(), value.into());
        self
    }

    /// Adds it to the log. What is wrong with a request may quote it, so only faults of the server are told in words.
    pub fn log(&self, record: &Record) {
        record.set("error", self.code.unwrap_or_else(|| self.kind(Dialect::OpenAi)));
        if let Some(param) = &self.param {
            record.set("param", param.as_str());
        }
        if self.status.is_server_error() {
            record.set("message", self.message.as_str());
        }
    }

    /// The kind of error, in the words of an API.
    fn kind(&self, dialect: Dialect) -> &'static str {
        match (self.status.as_u16(), dialect) {
            (400, Dialect::LlamaCpp) if self.code == Some(TOO_LONG) => "exceed_context_size_error",
            (401, _) => "authentication_error",
            (403, _) => "permission_error",
            (404, _) => "not_found_error",
            (408, Dialect::Anthropic) | (504, Dialect::Anthropic) => "timeout_error",
            (408 | 504, _) => "timeout_error",
            (413, Dialect::Anthropic) => "request_too_large",
            (429, _) => "rate_limit_error",
            (503, Dialect::Anthropic) => "overloaded_error",
            (503, _) => "unavailable_error",
            (500.., Dialect::Anthropic) => "api_error",
            (500.., _) => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// Returns the error object.
    pub fn to_value(&self, dialect: Dialect, request_id: &str) -> Value {
        let kind = self.kind(dialect);
        let mut error = match dialect {
            Dialect::OpenAi | Dialect::LlamaCpp => {
                json!({"message": self.message, "type": kind, "param": self.param, "code": self.code})
            }
            Dialect::Anthropic => json!({"type": kind, "message": self.message}),
        };
        if let Some(error) = error.as_object_mut() {
            error.extend(self.facts.as_ref().clone());
        }
        match dialect {
            Dialect::OpenAi | Dialect::LlamaCpp => json!({"error": error}),
            Dialect::Anthropic => json!({"type": "error", "error": error, "request_id": request_id}),
        }
    }

    /// Returns the response that says so.
    pub fn to_response(&self, dialect: Dialect, request_id: &str) -> Response {
        let body = self.to_value(dialect, request_id).to_string();
        let mut response = (self.status, Body::from(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self.status.as_u16(), 400..=407 | 410..=428) {
            // Clients of Anthropic try again otherwise, with a wrong key, too.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The outermost layer knows the dialect and the number of the request, and writes the body.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let error = Self::invalid(failure.message);
        let of = |status, code: &'static str| Self { status, code: Some(code), ..error.clone() };
        match failure.kind {
            FailureKind::Invalid => error,
            FailureKind::Unsupported => error.code("unsupported"),
            FailureKind::TooLong { tokens, n_ctx } => {
                // Claude Code, LangChain and LiteLLM look for these words, to shorten a conversation themselves, and
                // clients of llama.cpp's server for "exceeds the available context size".
                let message = format!(
                    "this model's maximum context length is {n_ctx} tokens, and the prompt is too long: {tokens} tokens > \
                     {n_ctx} maximum, so it exceeds the available context size; shorten it, or start the server with a \
                     larger context (--ctx)"
                );
                let error = Self::invalid(message).code(TOO_LONG).param("messages");
                error.fact("n_prompt_tokens", tokens).fact("n_ctx", n_ctx)
            }
            FailureKind::Busy { retry_after } => {
                Self { retry_after: Some(retry_after.max(1)), ..of(StatusCode::TOO_MANY_REQUESTS, "queue_full") }
            }
            FailureKind::Cancelled => of(StatusCode::SERVICE_UNAVAILABLE, "cancelled"),
            FailureKind::Timeout => of(StatusCode::GATEWAY_TIMEOUT, "timeout"),
            FailureKind::Internal => of(StatusCode::INTERNAL_SERVER_ERROR, "engine_error"),
            FailureKind::Died => of(StatusCode::INTERNAL_SERVER_ERROR, "engine_died"),
            FailureKind::Unavailable => {
                Self { retry_after: Some(2), ..of(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable") }
            }
        }
    }
}
