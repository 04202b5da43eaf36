//! What every request passes: its number, the log, who may ask, and the form of errors.
//!
//! A page in a browser can send requests to this machine, too. Two checks keep foreign ones out: the `Host` header has
//! to be a name of this server, so that no other name that resolves to it (DNS rebinding) works, and an `Origin` has to
//! be its own or an allowed one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use subtle::ConstantTimeEq;

use super::app::App;
use super::error::{ApiError, Dialect};
use super::log::Record;
use super::options::Options;
use super::page;
use super::routes::ROUTES;

/// The header with the number of a request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The same for Anthropic's clients.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Lets a request pass, or answers it.
pub async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&app, request.headers());
    let path = request.uri().path().to_string();
    let dialect = Dialect::of_path(&path);
    let record = Record::new(&app.log, &id, request.method().as_str(), &path);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match admit(&app.options, &request) {
        Ok(()) if is_preflight(&request) => StatusCode::OK.into_response(),
        Ok(()) => {
            request.extensions_mut().insert(record.clone());
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    if let Some(error) = error_of(&mut response, route.as_ref().map_or("", |route| route.as_str())) {
        error.log(&record);
        response = error.to_response(dialect, &id);
        // The body was not read, so the connection cannot be used again; clients have to know.
        if matches!(error.status.as_u16(), 401 | 403 | 405 | 408 | 413 | 415) || error.code == Some("route_not_found") {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    record.set("status", response.status().as_u16());
    let route = route.and_then(|route| ROUTES.iter().find(|known| known.paths().any(|path| path == route.as_str())));
    app.counters.answered(route.map_or("other", |route| route.path), response.status().as_u16());
    finished(&app.options, response, &id, origin.as_ref(), record)
}

/// Returns the error of a response: that of a route, or what the router refuses itself, without words.
fn error_of(response: &mut Response, route: &str) -> Option<ApiError> {
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        return Some(error);
    }
    let status = response.status();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let methods = ROUTES
            .iter()
            .filter(|known| known.paths().any(|path| path == route))
            .map(|known| known.method.to_uppercase());
        let methods = methods.collect::<Vec<_>>().join(" and ");
        return Some(ApiError::new(status, format!("{route} is for {methods}")).code("method_not_allowed"));
    }
    let reason = || status.canonical_reason().unwrap_or_default().to_lowercase();
    (status.is_client_error() || status.is_server_error()).then(|| ApiError::new(status, reason()))
}

/// Adds headers, and keeps the record until the body has ended.
fn finished(
    options: &Options,
    mut response: Response,
    id: &str,
    origin: Option<&HeaderValue>,
    record: Record,
) -> Response {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(ANTHROPIC_REQUEST_ID, id.clone());
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin.filter(|origin| allows_origin(options, origin)) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE, OPTIONS"));
        // A star does not stand for the header with the key. Cookies are not let in: no page needs them here.
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("request-id, x-request-id"));
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &record;
            frame
        }))
    })
}

/// The number that the client gave the request, or a new one.
fn request_id(app: &App, headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_harmless = |id: &&str| {
        (1..=100).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    given.filter(is_harmless).map_or_else(|| app.new_id("req_"), str::to_string)
}

fn admit(options: &Options, request: &Request) -> Result<(), ApiError> {
    let forbidden = |message: String, code| Err(ApiError::new(StatusCode::FORBIDDEN, message).code(code));
    let headers = request.headers();
    let host = request.uri().authority().map(|authority| authority.as_str());
    let host = host.or_else(|| headers.get(header::HOST)?.to_str().ok());
    if !host.is_some_and(|host| is_own_host(options, host)) {
        let host: String = host.unwrap_or_default().chars().take(100).collect();
        let message =
            format!("'{host}' is not a name of this server; names besides localhost and its address are a setting");
        return forbidden(message, "host_not_allowed");
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !allows_origin(options, origin)
        && !is_own_origin(origin, host)
    {
        let message = "web pages of this origin may not use this server; allowed origins are a setting".to_string();
        return forbidden(message, "origin_not_allowed");
    }
    let path = request.uri().path();
    let is_open = matches!(path, "/health" | "/v1/health") || page::find(path).is_some();
    if options.api_keys.is_empty() || is_preflight(request) || is_open {
        return Ok(());
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
    });
    let key = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
    let Some(key) = key else {
        let message = "a key is needed: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("missing_api_key"));
    };
    if !is_key(options, key) {
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "the key is not valid").code("invalid_api_key"));
    }
    Ok(())
}

/// Compares with all keys, and takes as long for each key, wherever it differs.
fn is_key(options: &Options, given: &[u8]) -> bool {
    let equal = options.api_keys.iter().fold(subtle::Choice::from(0), |equal, key| equal | key.as_bytes().ct_eq(given));
    equal.into()
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn allows_origin(options: &Options, origin: &HeaderValue) -> bool {
    let is_it = |allowed: &String| allowed == "*" || allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes());
    options.cors_origins.iter().any(is_it)
}

/// Whether a page comes from this server itself.
fn is_own_origin(origin: &HeaderValue, host: Option<&str>) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(scheme, name)| {
        matches!(scheme, "http" | "https") && host.is_some_and(|host| host.eq_ignore_ascii_case(name))
    })
}

/// Whether a `Host` header names this server. A name of another one may resolve to this machine, an address may not.
fn is_own_host(options: &Options, host: &str) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return is_own_address(options, address.ip()),
        Err(_) => match host.rsplit_once(':') {
            Some((name, port)) if !host.ends_with(']') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        },
    };
    if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return is_own_address(options, address);
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || options.hosts.iter().any(|own| own.eq_ignore_ascii_case(&name))
}

fn is_own_address(options: &Options, address: IpAddr) -> bool {
    let bound = options.address.ip();
    // Listening on all addresses, it does not know which ones these are.
    address.is_loopback() || bound == address || bound.is_unspecified() || options.hosts.contains(&address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_of_this_server() {
        let at = |address: &str| Options { address: address.parse().unwrap(), ..Options::default() };
        let named = Options { hosts: vec!["Box.lan".to_string()], ..at("127.0.0.1:8080") };
        for own in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:9",
            "[::1]:8080",
            "[::1]",
            "x.localhost:1",
            "box.lan:8080",
            "localhost.",
        ] {
            assert!(is_own_host(&named, own), "{own}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example:8080",
            "192.168.1.2",
            "127.0.0.1.evil.example",
            "evil:localhost",
            "[::2]:80",
        ] {
            assert!(!is_own_host(&named, other), "{other}");
        }
        assert!(is_own_host(&at("192.168.1.2:80"), "192.168.1.2:80") && is_own_host(&at("0.0.0.0:80"), "192.168.1.2"));
        assert!(!is_own_host(&at("0.0.0.0:80"), "evil.example"));
    }

    #[test]
    fn keys_are_compared_as_a_whole() {
        let options = Options { api_keys: vec!["secret".to_string(), "other".to_string()], ..Options::default() };
        assert!(is_key(&options, b"secret") && is_key(&options, b"other"));
        for wrong in [&b""[..], b"secre", b"secret ", b"Secret", b"secretother"] {
            assert!(!is_key(&options, wrong));
        }
    }
}
