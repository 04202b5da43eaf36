//! `/v1/embeddings`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::app::{App, unexpected};
use super::super::body;
use super::super::error::ApiError;
use super::super::log::Record;
use super::super::protocol::{Answer, Part, Prompt, Task};
use super::super::wire::{TextOr, check_length, tokens_of};
use super::json_response;

/// A request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct EmbeddingRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// A text, its tokens, or a list of either.
    pub input: TextOr<Value>,
    /// `float` or `base64`.
    pub encoding_format: Option<String>,
    /// How many numbers; only what the model has is accepted.
    pub dimensions: Option<i64>,
}

/// An answer.
#[derive(Serialize, JsonSchema)]
pub struct EmbeddingResponse {
    object: &'static str,
    model: String,
    data: Vec<Embedding>,
    usage: EmbeddingUsage,
}

/// An embedding.
#[derive(Serialize, JsonSchema)]
pub struct Embedding {
    object: &'static str,
    index: usize,
    /// Numbers, or the base64 of their bytes as little-endian floats of 32 bits.
    embedding: Value,
}

/// Tokens that were read.
#[derive(Serialize, JsonSchema)]
pub struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// The most texts of one request, as at OpenAI.
const MOST_INPUTS: usize = 2048;

/// Answers a request.
///
/// # Errors
/// If there is no answer.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = body::read(&app.options, request).await?;
    let request: EmbeddingRequest = body::typed(&value)?;
    let as_base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "has to be float or base64")),
    };
    let prompts = inputs(&request.input)?;
    check_length("input", prompts.len(), MOST_INPUTS)?;
    let model = app.choose(request.model.as_deref(), &record).await?;
    let n_embd = model.info.n_embd;
    if let Some(wanted) = request.dimensions.filter(|wanted| u64::try_from(*wanted) != Ok(n_embd)) {
        return Err(ApiError::field(
            "dimensions",
            format!("cannot be {wanted}: embeddings of this model have {n_embd} numbers"),
        ));
    }
    let n_prompts = prompts.len();
    let Answer::Embeddings { vectors, tokens } = app.ask(&model.name, Task::Embed { prompts }).await? else {
        return Err(unexpected());
    };
    if vectors.len() != n_prompts {
        return Err(unexpected());
    }
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = if as_base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            Value::from(STANDARD.encode(bytes))
        } else {
            json!(vector)
        };
        Embedding { object: "embedding", index, embedding }
    });
    let n_tokens: u64 = tokens.iter().sum();
    record.set("prompt_tokens", n_tokens);
    json_response(&EmbeddingResponse {
        object: "list",
        data: data.collect(),
        usage: EmbeddingUsage { prompt_tokens: n_tokens, total_tokens: n_tokens },
        model: model.name,
    })
}

fn inputs(input: &TextOr<Value>) -> Result<Vec<Prompt>, ApiError> {
    let prompt = |part| Prompt::Parts { parts: vec![part], begin: true };
    let of_text = |text: &str, place: &str| match text {
        "" => Err(ApiError::field(place, "is empty")),
        text => Ok(prompt(Part::Text { text: text.to_string(), special: false })),
    };
    let of_tokens = |list: &[Value], place: &str| match list {
        [] => Err(ApiError::field(place, "is an empty list")),
        list => Ok(Prompt::Parts { parts: vec![Part::Tokens(tokens_of(list, place)?)], begin: false }),
    };
    match input {
        TextOr::Text(text) => Ok(vec![of_text(text, "input")?]),
        TextOr::List(list) if list.iter().all(Value::is_number) => Ok(vec![of_tokens(list, "input")?]),
        TextOr::List(list) => {
            let of = |(i, value): (usize, &Value)| match value {
                Value::String(text) => of_text(text, &format!("input[{i}]")),
                Value::Array(list) => of_tokens(list, &format!("input[{i}]")),
                _ => Err(ApiError::field(format!("input[{i}]"), "has to be a string or a list of tokens")),
            };
            list.iter().enumerate().map(of).collect()
        }
    }
}
