//! The routes, as a table: the router and the OpenAPI document are made from it.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod llama_cpp;
pub mod messages;
pub mod models;
mod page;
pub mod responses;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use schemars::{Schema, SchemaGenerator};
use serde::Serialize;

use super::app::App;
use super::error::ApiError;
use super::guard::guard;
use super::{openapi, sampling, wire};

/// A schema, made with those that it refers to.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A route.
pub struct Route {
    /// `get`, `post` or `delete`.
    pub method: &'static str,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// Other paths for the same.
    pub also: &'static [&'static str],
    /// What it is for.
    pub summary: &'static str,
    /// The body of a request: it satisfies all of these.
    pub request: &'static [SchemaOf],
    /// What it answers.
    pub response: Option<SchemaOf>,
    /// The pieces of a stream, if there are streams: a schema, or that of any object.
    pub stream: Option<SchemaOf>,
    /// Parameters of the query.
    pub query: &'static [&'static str],
    /// What can happen besides what can happen everywhere.
    pub errors: &'static [u16],
    /// Whether it ever succeeds.
    pub serves: bool,
    handler: fn() -> MethodRouter<Arc<App>>,
}

impl Route {
    /// Returns all its paths.
    pub fn paths(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.path).chain(self.also.iter().copied())
    }
}

fn of<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

fn sampling_schema(_: &mut SchemaGenerator) -> Schema {
    sampling::schema()
}

/// What can happen to a request that a model has to answer.
const OF_MODELS: &[u16] = &[400, 404, 408, 413, 415, 429, 500, 503, 504];
/// The same for requests without a body.
const OF_QUERIES: &[u16] = &[400, 404, 500, 503, 504];
/// Of requests for the text in a gap, which not every model can fill.
const OF_INFILL: &[u16] = &[400, 404, 408, 413, 415, 429, 500, 501, 503, 504];
/// Of those that can be turned off.
const OF_SLOTS: &[u16] = &[400, 404, 500, 501, 503, 504];

const NONE: Route = Route {
    method: "get",
    path: "",
    also: &[],
    summary: "",
    request: &[],
    response: None,
    stream: None,
    query: &[],
    errors: &[],
    serves: true,
    handler: || get(no_route),
};

/// All routes.
pub static ROUTES: &[Route] = &[
    Route {
        method: "post",
        path: "/v1/chat/completions",
        also: &["/chat/completions"],
        summary: "Answers a conversation (OpenAI)",
        request: &[of::<chat::ChatRequest>, of::<wire::Common>, sampling_schema],
        response: Some(of::<chat::ChatResponse>),
        stream: Some(of::<chat::ChatChunk>),
        errors: OF_MODELS,
        handler: || post(chat::chat),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/completions",
        summary: "Goes on with a text (OpenAI)",
        request: &[of::<completions::CompletionRequest>, of::<wire::Common>, sampling_schema],
        response: Some(of::<completions::CompletionResponse>),
        stream: Some(of::<completions::CompletionResponse>),
        errors: OF_MODELS,
        handler: || post(completions::completions),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/embeddings",
        summary: "Computes embeddings (OpenAI)",
        request: &[of::<embeddings::EmbeddingRequest>],
        response: Some(of::<embeddings::EmbeddingResponse>),
        errors: OF_MODELS,
        handler: || post(embeddings::embeddings),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/chat/completions/input_tokens",
        also: &["/chat/completions/input_tokens"],
        summary: "Counts the tokens of a conversation (OpenAI)",
        request: &[of::<chat::ChatRequest>],
        response: Some(of::<responses::InputTokensResponse>),
        errors: OF_MODELS,
        handler: || post(chat::input_tokens),
        ..NONE
    },
    Route {
        method: "post",
        path: "/embedding",
        also: &["/embeddings"],
        summary: "Computes embeddings (llama.cpp)",
        request: &[of::<embeddings::NativeEmbeddingRequest>],
        response: Some(of::<Vec<embeddings::NativeEmbedding>>),
        errors: OF_MODELS,
        handler: || post(embeddings::native_embeddings),
        ..NONE
    },
    Route {
        path: "/v1/models",
        also: &["/models"],
        summary: "Lists the models (OpenAI)",
        response: Some(of::<models::ModelsResponse>),
        handler: || get(models::models),
        ..NONE
    },
    Route {
        path: "/v1/models/{id}",
        summary: "Describes a model (OpenAI)",
        response: Some(of::<models::ModelObject>),
        errors: &[400, 404],
        handler: || get(models::model),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/responses",
        also: &["/responses"],
        summary: "Answers items (OpenAI)",
        request: &[of::<responses::ResponsesRequest>, of::<wire::Common>, sampling_schema],
        response: Some(of::<responses::ResponseObject>),
        stream: Some(of::<serde_json::Map<String, serde_json::Value>>),
        errors: OF_MODELS,
        handler: || post(responses::responses),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/responses/input_tokens",
        also: &["/responses/input_tokens"],
        summary: "Counts the tokens of items (OpenAI)",
        request: &[of::<responses::ResponsesRequest>],
        response: Some(of::<responses::InputTokensResponse>),
        errors: OF_MODELS,
        handler: || post(responses::input_tokens),
        ..NONE
    },
    // Clients that try it go on without it; as the name of an answer it would be the wrong method.
    Route {
        method: "post",
        path: "/v1/responses/compact",
        summary: "Not supported: conversations are not compacted (OpenAI)",
        errors: &[404],
        serves: false,
        handler: || post(no_route),
        ..NONE
    },
    Route {
        path: "/v1/responses/{id}",
        summary: "Returns a stored answer (OpenAI)",
        response: Some(of::<serde_json::Map<String, serde_json::Value>>),
        errors: &[400, 404],
        handler: || get(responses::get),
        ..NONE
    },
    Route {
        method: "delete",
        path: "/v1/responses/{id}",
        summary: "Forgets a stored answer (OpenAI)",
        response: Some(of::<responses::DeletedResponse>),
        errors: &[400, 404],
        handler: || delete(responses::delete),
        ..NONE
    },
    Route {
        path: "/v1/responses/{id}/input_items",
        summary: "Returns what a stored answer was an answer to (OpenAI)",
        response: Some(of::<responses::ItemsResponse>),
        errors: &[400, 404],
        handler: || get(responses::input_items),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/messages",
        summary: "Answers a conversation (Anthropic)",
        request: &[of::<messages::MessagesRequest>, of::<wire::Common>, sampling_schema],
        response: Some(of::<messages::MessageResponse>),
        stream: Some(of::<serde_json::Map<String, serde_json::Value>>),
        errors: OF_MODELS,
        handler: || post(messages::messages),
        ..NONE
    },
    Route {
        method: "post",
        path: "/v1/messages/count_tokens",
        summary: "Counts the tokens of a conversation (Anthropic)",
        request: &[of::<messages::MessagesRequest>],
        response: Some(of::<messages::CountResponse>),
        errors: OF_MODELS,
        handler: || post(messages::count_tokens),
        ..NONE
    },
    Route {
        method: "post",
        path: "/completion",
        also: &["/completions"],
        summary: "Goes on with a text (llama.cpp)",
        request: &[of::<llama_cpp::NativeRequest>, of::<llama_cpp::NativeOptions>, of::<wire::Common>, sampling_schema],
        response: Some(of::<OneOrSeveral>),
        stream: Some(of::<serde_json::Map<String, serde_json::Value>>),
        errors: OF_MODELS,
        handler: || post(llama_cpp::completion),
        ..NONE
    },
    Route {
        method: "post",
        path: "/infill",
        summary: "Fills a gap in a text (llama.cpp)",
        request: &[of::<llama_cpp::InfillRequest>, of::<llama_cpp::NativeOptions>, of::<wire::Common>, sampling_schema],
        response: Some(of::<OneOrSeveral>),
        stream: Some(of::<serde_json::Map<String, serde_json::Value>>),
        errors: OF_INFILL,
        handler: || post(llama_cpp::infill),
        ..NONE
    },
    Route {
        method: "post",
        path: "/tokenize",
        summary: "Encodes a text (llama.cpp)",
        request: &[of::<llama_cpp::TokenizeRequest>],
        response: Some(of::<llama_cpp::TokenizeResponse>),
        errors: OF_MODELS,
        handler: || post(llama_cpp::tokenize),
        ..NONE
    },
    Route {
        method: "post",
        path: "/detokenize",
        summary: "Decodes tokens (llama.cpp)",
        request: &[of::<llama_cpp::DetokenizeRequest>],
        response: Some(of::<llama_cpp::DetokenizeResponse>),
        errors: OF_MODELS,
        handler: || post(llama_cpp::detokenize),
        ..NONE
    },
    Route {
        method: "post",
        path: "/apply-template",
        summary: "Returns the prompt of a conversation (llama.cpp)",
        request: &[of::<chat::ChatRequest>],
        response: Some(of::<llama_cpp::TemplateResponse>),
        errors: OF_MODELS,
        handler: || post(llama_cpp::apply_template),
        ..NONE
    },
    Route {
        path: "/health",
        also: &["/v1/health"],
        summary: "Whether a model can answer",
        response: Some(of::<llama_cpp::HealthResponse>),
        errors: &[503],
        handler: || get(llama_cpp::health),
        ..NONE
    },
    Route {
        path: "/props",
        summary: "What a model is (llama.cpp)",
        response: Some(of::<llama_cpp::PropsResponse>),
        query: &["model"],
        errors: OF_QUERIES,
        handler: || get(llama_cpp::props),
        ..NONE
    },
    Route {
        path: "/slots",
        summary: "What a model is doing (llama.cpp)",
        response: Some(of::<Vec<llama_cpp::SlotResponse>>),
        query: &["model", "fail_on_no_slot"],
        errors: OF_SLOTS,
        handler: || get(llama_cpp::slots),
        ..NONE
    },
    Route { path: "/metrics", summary: "Figures in Prometheus' format", handler: || get(llama_cpp::metrics), ..NONE },
    Route {
        path: "/openapi.json",
        summary: "This document",
        response: Some(of::<serde_json::Map<String, serde_json::Value>>),
        handler: || get(document),
        ..NONE
    },
];

/// An answer to one prompt, or those to several.
#[derive(Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum OneOrSeveral {
    /// One.
    One(Box<llama_cpp::NativeResponse>),
    /// Several.
    Several(Vec<llama_cpp::NativeResponse>),
}

async fn document(State(_): State<Arc<App>>) -> Result<Response, ApiError> {
    json_response(&openapi::document())
}

/// Returns the router of all routes.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        for path in route.paths() {
            router = router.route(path, (route.handler)());
        }
    }
    router.fallback(no_route).layer(middleware::from_fn_with_state(app.clone(), guard)).with_state(app)
}

/// What is no route may be a part of the page.
async fn no_route(request: axum::extract::Request) -> Response {
    if let Some(page) = page::page(&request) {
        return page;
    }
    let path: String = request.uri().path().chars().take(100).collect();
    let message = format!("there is no {path} here; /openapi.json lists what there is");
    ApiError::not_found(message).code("route_not_found").into_response()
}

/// Answers with JSON.
///
/// # Errors
/// If the value cannot be written, which is a fault of this program.
pub fn json_response(value: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(value).map_err(|error| {
        let message = format!("the answer could not be written: {error}");
        ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    let mut response = Body::from(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
