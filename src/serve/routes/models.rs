//! `/v1/models`: what can be asked for. Besides OpenAI's list there is what Codex and Open WebUI read.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::app::App;
use super::super::backend::{self, Model};
use super::super::error::ApiError;
use super::json_response;

/// All models.
#[derive(Serialize, JsonSchema)]
pub struct ModelsResponse {
    object: &'static str,
    data: Vec<ModelObject>,
    /// For Anthropic's clients: this is the only page of the list.
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
    /// The same for clients that read another form.
    models: Vec<Value>,
}

/// A model.
#[derive(Serialize, JsonSchema)]
pub struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// For Anthropic's clients: `model`.
    r#type: &'static str,
    /// For Anthropic's clients: the name again.
    display_name: String,
    /// For Anthropic's clients: `created` in the form of RFC 3339.
    created_at: String,
    /// For Anthropic's clients: `active`.
    lifecycle: &'static str,
    /// Other names for it.
    aliases: Vec<String>,
    /// `unloaded`, `loading`, `ready`, `crashed` or `crash_loop`.
    state: &'static str,
    /// Tokens that one conversation can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u64>,
    /// More about it, once it is loaded.
    meta: Option<Value>,
}

/// Lists the models.
///
/// # Errors
/// Never.
pub async fn models(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let models = app.backend.models();
    let others = models.iter().enumerate().map(|(i, model)| for_others(model, i)).collect();
    let id = |model: Option<&Model>| model.map(|model| model.name.clone());
    json_response(&ModelsResponse {
        object: "list",
        has_more: false,
        first_id: id(models.first()),
        last_id: id(models.last()),
        models: others,
        data: models.into_iter().map(object).collect(),
    })
}

/// Describes a model.
///
/// # Errors
/// If there is none of that name.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    json_response(&object(app.find(Some(&name))?))
}

fn object(model: Model) -> ModelObject {
    let info = match &model.state {
        backend::State::Ready(info) => Some(info.clone()),
        _ => None,
    };
    let meta = info.as_ref().map(|info| {
        json!({
            "n_vocab": info.n_vocab, "n_ctx": info.n_ctx, "n_ctx_train": info.n_ctx_train, "n_embd": info.n_embd,
            "n_params": info.n_weights, "size": info.n_bytes, "architecture": info.architecture, "recipe": info.recipe,
            "vocab_type": 1,
        })
    });
    ModelObject {
        state: model.state.name(),
        display_name: model.name.clone(),
        created_at: humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(model.created)).to_string(),
        lifecycle: "active",
        r#type: "model",
        id: model.name,
        object: "model",
        created: model.created,
        owned_by: "nibble",
        aliases: model.aliases,
        context_length: info.map(|info| info.n_ctx_sequence),
        meta,
    }
}

/// What Codex reads of a model (its `ModelInfo`), and Ollama's clients.
fn for_others(model: &Model, i: usize) -> Value {
    let context = match &model.state {
        backend::State::Ready(info) => Some(info.n_ctx_sequence),
        _ => None,
    };
    // Tool output longer than that leaves no room in the context.
    let limit = context.map_or(10_000, |n| n / 4);
    json!({
        "slug": model.name,
        "display_name": model.name,
        "description": null,
        "supported_reasoning_levels": [],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": true,
        "priority": i,
        "upgrade": null,
        "base_instructions": "You are a coding agent that runs on the user's computer.",
        "supports_reasoning_summaries": false,
        "support_verbosity": false,
        "default_verbosity": null,
        "apply_patch_tool_type": null,
        "truncation_policy": {"mode": "tokens", "limit": limit},
        "supports_parallel_tool_calls": true,
        "context_window": context,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
        "name": model.name,
        "model": model.name,
        "capabilities": ["completion", "tools"],
        "details": {"format": "gguf"},
    })
}
