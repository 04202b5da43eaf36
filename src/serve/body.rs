//! Reads the bodies of requests: bounded in size, depth and time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::options::Options;

/// Memory for the bodies that are being read, one permit a byte.
#[derive(Debug)]
pub struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes.
    pub fn new(n_bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(n_bytes.min(Semaphore::MAX_PERMITS))))
    }

    fn take(&self, n_bytes: usize, held: &mut Option<OwnedSemaphorePermit>) -> Result<(), ApiError> {
        let n = u32::try_from(n_bytes).unwrap_or(u32::MAX);
        let Ok(permit) = self.0.clone().try_acquire_many_owned(n) else {
            let message = "too many large requests are being read at once; try again";
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("bodies_too_large");
            return Err(ApiError { retry_after: Some(1), ..error });
        };
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }
}

/// Reads a body of JSON. `serde_json` bounds its depth.
///
/// # Errors
/// If it does not say that it is JSON, is too large, comes too slowly, is not JSON, or there is no room for it beside the
/// others.
pub async fn read(options: &Options, room: &Room, request: Request) -> Result<Value, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let is_json = kind.is_none_or(|kind| {
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    });
    if !is_json {
        let message = "the body has to be JSON; send the header 'Content-Type: application/json'";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let mut permit = None;
    let bytes = bytes(options, room, &mut permit, request.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))
}

/// Reads the bytes. What they take of the room is added to `held`.
async fn bytes(
    options: &Options,
    room: &Room,
    held: &mut Option<OwnedSemaphorePermit>,
    mut body: Body,
) -> Result<Vec<u8>, ApiError> {
    let most = options.max_body_bytes;
    let too_large = || {
        let message = format!("the body is larger than the {most} bytes that this server accepts");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large")
    };
    // What a client announces need not be read to be refused.
    if http_body::Body::size_hint(&body).lower() > most as u64 {
        return Err(too_large());
    }
    let mut all = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::invalid(format!("the body could not be read: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if all.len() + data.len() > most {
                return Err(too_large());
            }
            room.take(data.len(), held)?;
            all.extend_from_slice(&data);
        }
        Ok(())
    };
    match tokio::time::timeout(options.body_timeout, read).await {
        Ok(result) => result.map(|()| all),
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
