//! Reads the bodies of requests: bounded in size, depth and time.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;
use super::options::Options;

/// Reads a body of JSON. `serde_json` bounds its depth.
///
/// # Errors
/// If it does not say that it is JSON, is too large, comes too slowly, or is not JSON.
pub async fn read(options: &Options, request: Request) -> Result<Value, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let is_json = kind.is_none_or(|kind| {
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    if !is_json {
        let message = "the body has to be JSON; send the header 'Content-Type: application/json'";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let bytes = bytes(options, request.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))
}

async fn bytes(options: &Options, body: Body) -> Result<bytes::Bytes, ApiError> {
    let most = options.max_body_bytes;
    let too_large = || {
        let message = format!("the body is larger than the {most} bytes that this server accepts");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large")
    };
    // What a client announces need not be read to be refused.
    if http_body::Body::size_hint(&body).lower() > most as u64 {
        return Err(too_large());
    }
    let read = tokio::time::timeout(options.body_timeout, Limited::new(body, most).collect());
    match read.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::invalid(format!("the body could not be read: {error}"))),
        Err(_) => {
            let seconds = options.body_timeout.as_secs();
            let message = format!("the body did not arrive within {seconds} seconds");
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message).code("body_timeout"))
        }
    }
}

/// Reads a request from JSON. Errors say where.
///
/// # Errors
/// If it has another form.
pub fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    if !value.is_object() {
        return Err(ApiError::invalid("the body has to be a JSON object"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path: String = error.path().to_string().chars().take(200).collect();
        // It quotes values, which may be long.
        let why: String = error.inner().to_string().chars().take(300).collect();
        match path.as_str() {
            "" | "." => ApiError::invalid(why),
            _ => ApiError::invalid(format!("{path}: {why}")).param(path),
        }
    })
}
