//! `/v1/embeddings`, and `/embedding` of llama.cpp's server.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::app::{App, unexpected};
use super::super::body;
use super::super::error::ApiError;
use super::super::log::Record;
use super::super::protocol::{Answer, Prompt, Task};
use super::super::wire::whole;
use super::json_response;
use super::llama_cpp::{Reader, prompt_forms};

/// A request.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct EmbeddingRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// A text, its tokens, or a list of either; also prompts in llama.cpp's other forms, such as a list of texts and tokens
    /// that are one text.
    #[schemars(schema_with = "input_schema")]
    pub input: Value,
    /// `float` or `base64`.
    #[schemars(extend("enum" = ["float", "base64", null]))]
    pub encoding_format: Option<String>,
    /// How many numbers; only what the model has is accepted.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = 1))]
    pub dimensions: Option<i64>,
}

/// A request to llama.cpp's server.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct NativeEmbeddingRequest {
    /// The model; the first one if it is not given.
    pub model: Option<String>,
    /// What `/v1/embeddings` accepts.
    #[serde(default)]
    #[schemars(schema_with = "optional_input_schema")]
    pub input: Option<Value>,
    /// The same, if there is no `input`.
    #[serde(default)]
    #[schemars(schema_with = "optional_input_schema")]
    pub content: Option<Value>,
    /// How they are normalized: 2, to the length 1, is all there is.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(range(min = 2, max = 2))]
    pub embd_normalize: Option<i64>,
}

/// An embedding in llama.cpp's form.
#[derive(Serialize, JsonSchema)]
pub struct NativeEmbedding {
    /// The number of the text.
    index: usize,
    /// A list of one, as it is of the whole text and not of each token.
    embedding: Vec<Vec<f32>>,
}

fn input_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": prompt_forms(true)})
}

fn optional_input_schema(_: &mut SchemaGenerator) -> Schema {
    let mut forms = prompt_forms(true);
    forms.push(json!({"type": "null"}));
    json_schema!({"anyOf": forms})
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
    let value = app.read_body(request).await?;
    let request: EmbeddingRequest = body::typed(&value)?;
    let as_base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "has to be float or base64")),
    };
    let prompts = inputs("input", &request.input)?;
    let model = app.choose(request.model.as_deref(), &record).await?;
    let n_embd = model.info.n_embd;
    if let Some(wanted) = request.dimensions.filter(|wanted| u64::try_from(*wanted) != Ok(n_embd)) {
        return Err(ApiError::field(
            "dimensions",
            format!("cannot be {wanted}: embeddings of this model have {n_embd} numbers"),
        ));
    }
    let (vectors, n_tokens) = embed(&app, &model.name, prompts, &record).await?;
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = if as_base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            Value::from(STANDARD.encode(bytes))
        } else {
            json!(vector)
        };
        Embedding { object: "embedding", index, embedding }
    });
    json_response(&EmbeddingResponse {
        object: "list",
        data: data.collect(),
        usage: EmbeddingUsage { prompt_tokens: n_tokens, total_tokens: n_tokens },
        model: model.name,
    })
}

/// Answers `/embedding`.
///
/// # Errors
/// If there is no answer.
pub async fn native_embeddings(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    request: Request,
) -> Result<Response, ApiError> {
    let value = app.read_body(request).await?;
    let request: NativeEmbeddingRequest = body::typed(&value)?;
    if let Some(other) = request.embd_normalize.filter(|how| *how != 2) {
        let message = format!("cannot be {other}; it has to be 2: embeddings have the length 1");
        return Err(ApiError::field("embd_normalize", message));
    }
    // What is not used has to be right, too: the document says so.
    let input = request.input.as_ref().map(|input| inputs("input", input)).transpose()?;
    let content = request.content.as_ref().map(|content| inputs("content", content)).transpose()?;
    let prompts = input.or(content).ok_or_else(|| ApiError::field("input", "is missing"))?;
    let model = app.choose(request.model.as_deref(), &record).await?;
    let (vectors, _) = embed(&app, &model.name, prompts, &record).await?;
    let embedding = |(index, vector)| NativeEmbedding { index, embedding: vec![vector] };
    json_response(&vectors.into_iter().enumerate().map(embedding).collect::<Vec<_>>())
}

/// Computes embeddings. Returns them with the number of tokens that were read.
async fn embed(
    app: &App,
    model: &str,
    prompts: Vec<Prompt>,
    record: &Record,
) -> Result<(Vec<Vec<f32>>, u64), ApiError> {
    let n_prompts = prompts.len();
    let Answer::Embeddings { vectors, tokens } = app.ask(model, Task::Embed { prompts }).await? else {
        return Err(unexpected());
    };
    if vectors.len() != n_prompts {
        return Err(unexpected());
    }
    let n_tokens: u64 = tokens.iter().sum();
    record.set("prompt_tokens", n_tokens);
    app.counters.embedded(model, n_tokens);
    Ok((vectors, n_tokens))
}

/// Reads texts. What spells control tokens in them is text.
fn inputs(field: &'static str, input: &Value) -> Result<Vec<Prompt>, ApiError> {
    Reader { field, special: false, most: MOST_INPUTS, embeds: true }.prompts(input)
}
