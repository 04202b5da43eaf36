//! The OpenAPI document, generated from the table of routes and the types on the wire.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::error::Dialect;
use super::routes::{ROUTES, Route};
use super::wire::{AnthropicError, OpenAiError};

/// What can happen to every request: no key, a foreign host or origin, another method.
const EVERYWHERE: [u16; 3] = [401, 403, 405];

/// Returns the document.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut generator);
        for path in route.paths() {
            let path = paths.entry(path).or_insert_with(|| json!({}));
            path[route.method] = operation.clone();
        }
    }
    // Errors are referred to wherever they can happen.
    generator.subschema_for::<OpenAiError>();
    generator.subschema_for::<AnthropicError>();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "nibble", "version": env!("CARGO_PKG_VERSION"),
            "description": "Fields that are not described here are allowed, and ignored."},
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({"summary": route.summary, "responses": {}});
    let mut parameters: Vec<Value> = Vec::new();
    for name in route.path.split('{').skip(1).filter_map(|rest| rest.split_once('}')) {
        parameters.push(json!({"name": name.0, "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    for name in route.query {
        parameters.push(json!({"name": name, "in": "query", "required": false, "schema": {"type": "string"}}));
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if !route.request.is_empty() {
        let schemas: Vec<Value> = route.request.iter().map(|schema| schema(generator).to_value()).collect();
        let schema = if schemas.len() == 1 { schemas[0].clone() } else { json!({"allOf": schemas}) };
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    let mut content = Map::new();
    match route.response {
        Some(schema) => {
            content.insert("application/json".to_string(), json!({"schema": schema(generator).to_value()}));
        }
        None => {
            content.insert("text/plain".to_string(), json!({"schema": {"type": "string"}}));
        }
    }
    if let Some(schema) = route.stream {
        // OpenAPI 3.1 has no words for the events of a stream: their schema stands beside.
        let event = schema(generator).to_value();
        content.insert("text/event-stream".to_string(), json!({"x-event-schema": event}));
    }
    if route.serves {
        operation["responses"]["200"] = json!({"description": "The answer", "content": content});
    }
    let errors: Vec<u16> = route.errors.iter().chain(&EVERYWHERE).copied().collect();
    for status in errors {
        operation["responses"][status.to_string()] = error(route, status);
    }
    operation
}

fn error(route: &Route, status: u16) -> Value {
    let description = match status {
        400 => "The request is wrong; the message says what to change",
        401 => "A key is missing or wrong",
        403 => "The Host or Origin is not allowed",
        404 => "There is no such model or answer",
        405 => "The method is another one",
        408 => "The body came too slowly",
        413 => "The body is too large",
        415 => "The body is not JSON",
        429 => "Too many requests wait; Retry-After says when to try again",
        501 => "The model cannot do that, or it is turned off",
        503 => "The model is being loaded, or cannot be",
        504 => "The request had to wait too long",
        _ => "The server, or the process of the model, is at fault",
    };
    let name = match Dialect::of_path(route.path) {
        Dialect::OpenAi | Dialect::LlamaCpp => OpenAiError::schema_name(),
        Dialect::Anthropic => AnthropicError::schema_name(),
    };
    let schema = json!({"$ref": format!("#/components/schemas/{name}")});
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}
