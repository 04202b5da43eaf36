//! The server as its clients see it, over the fake backend. Every answer is compared with the OpenAPI document.

mod apis;
mod limits;
mod openai;
mod sockets;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::app::App;
use super::error::Dialect;
use super::fake::Fake;
use super::log::{Format, Log};
use super::options::Options;
use super::protocol::ModelInfo;
use super::{openapi, routes};

/// A template whose prompts end within reasoning.
const THINKS: &str = "{% if tools %}<tool_call>{% endif %}{{ '<think>' }}</think>";

struct Server {
    app: Arc<App>,
    fake: Arc<Fake>,
    router: Router,
    lines: Arc<Mutex<Vec<String>>>,
}

/// An answer.
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Server {
    fn new() -> Self {
        Self::with(Fake::default(), Options::default())
    }

    fn of_template(template: &str) -> Self {
        Self::with(Fake::new(template), Options::default())
    }

    fn with(fake: Fake, options: Options) -> Self {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = lines.clone();
        let log = Log::new(Format::Text, move |line| kept.lock().unwrap().push(line));
        let fake = Arc::new(fake);
        let app = App::new(fake.clone(), options, log);
        Self { router: routes::router(app.clone()), app, fake, lines }
    }

    fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    async fn raw(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, headers, bytes.to_vec())
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Got {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (status, headers, bytes) = self.raw(request.body(body).unwrap()).await;
        let body =
            serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        assert!(headers.contains_key("x-request-id"));
        check_documented(method, path, status, &body);
        Got { status, headers, body }
    }

    async fn post(&self, path: &str, body: &Value) -> Got {
        self.send("POST", path, &[("content-type", "application/json")], Body::from(body.to_string())).await
    }

    async fn get(&self, path: &str) -> Got {
        self.send("GET", path, &[], Body::empty()).await
    }

    /// The body of a successful answer.
    #[track_caller]
    fn ok(&self, path: &str, body: &Value) -> impl Future<Output = Value> {
        let place = std::panic::Location::caller();
        async move {
            let got = self.post(path, body).await;
            assert_eq!(got.status, 200, "{place}: {}", got.body);
            got.body
        }
    }

    /// The events of a stream: names and data. `[DONE]` is a text.
    async fn events(&self, path: &str, body: &Value) -> Vec<(String, Value)> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
        let (status, headers, bytes) = self.raw(request.body(Body::from(body.to_string())).unwrap()).await;
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(status, 200, "{text}");
        assert_eq!(headers["content-type"], "text/event-stream");
        let events = events_of(&text);
        for (_, data) in &events {
            check_event(path, data);
        }
        events
    }
}

fn events_of(text: &str) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')) {
        let name = event.lines().find_map(|line| line.strip_prefix("event: ")).unwrap_or_default();
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        events.push((name.to_string(), serde_json::from_str(data).unwrap_or_else(|_| data.into())));
    }
    events
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);

/// The route of a path in the document.
fn route_of(path: &str) -> Option<&'static Value> {
    let path = path.split('?').next().unwrap();
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let matches = |pattern: &str| {
        let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
        pattern.len() == path.len()
            && pattern.iter().zip(&path).all(|(pattern, part)| pattern == part || pattern.starts_with('{'))
    };
    paths.get(path).or_else(|| paths.iter().find(|(pattern, _)| matches(pattern)).map(|(_, route)| route))
}

/// Compiled schemas, by themselves.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<jsonschema::Validator>>>> = LazyLock::new(Mutex::default);

#[track_caller]
fn check_schema(schema: &Value, value: &Value, what: &str) {
    let compile = || {
        let whole = json!({"allOf": [schema], "components": DOCUMENT["components"]});
        Arc::new(jsonschema::validator_for(&whole).unwrap())
    };
    let validator = VALIDATORS.lock().unwrap().entry(schema.to_string()).or_insert_with(compile).clone();
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}: {errors:?}\n{value}");
}

#[track_caller]
fn check_documented(method: &str, path: &str, status: StatusCode, body: &Value) {
    let Some(route) = route_of(path) else {
        return assert!(matches!(status.as_u16(), 401 | 403 | 404), "{path}: {status}");
    };
    let operation = &route[method.to_lowercase()];
    if operation.is_null() {
        return assert!(matches!(status.as_u16(), 200 | 401 | 403 | 405), "{method} {path}: {status}");
    }
    let response = &operation["responses"][status.as_str()];
    assert!(response.is_object(), "{method} {path}: {status} is not documented: {body}");
    if let Some(schema) = response["content"]["application/json"]["schema"].as_object() {
        check_schema(&schema.clone().into(), body, &format!("{method} {path} {status}"));
    }
}

#[track_caller]
fn check_event(path: &str, data: &Value) {
    if data.is_string() || data.get("error").is_some_and(Value::is_object) {
        return;
    }
    let schema = &route_of(path).unwrap()["post"]["responses"]["200"]["content"]["text/event-stream"]["x-event-schema"];
    assert!(schema.is_object());
    check_schema(schema, data, path);
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A small model with room for so many tokens.
fn with_room(n_ctx: u64) -> Fake {
    let template = super::fake::TEMPLATE.to_string();
    Fake::with_info(ModelInfo { n_ctx_sequence: n_ctx, n_embd: 4, template, ..ModelInfo::default() }, 64)
}

#[test]
fn the_document_refers_only_to_what_it_has() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&DOCUMENT, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(DOCUMENT.pointer(pointer).is_some(), "{reference}");
    }
    assert_eq!(Dialect::of_path("/v1/messages/count_tokens"), Dialect::Anthropic);
    assert_eq!(Dialect::of_path("/v1/messagesx"), Dialect::OpenAi);
    assert_eq!(Dialect::of_path("/completions"), Dialect::LlamaCpp);
    assert_eq!(Dialect::of_path("/v1/completions"), Dialect::OpenAi);
}
