//! Streams of server-sent events.
//!
//! A task of its own writes the events. It ends when the client has gone, and with it the [`Run`](super::run::Run),
//! which cancels what the engine does.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::log::Record;
use super::run::{Run, Step};

/// Events that may wait for the client.
const WAITING: usize = 16;

/// The client has gone.
#[derive(Debug)]
pub struct Gone;

/// The writing end of a stream.
pub struct Events {
    to: mpsc::Sender<Bytes>,
    gone: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    keep_alive: Duration,
    /// When to look whether something was sent since the last time.
    look: Pin<Box<Sleep>>,
    is_silent: AtomicBool,
    record: Record,
}

impl Events {
    /// Sends an event. OpenAI's have no names.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn send(&self, name: Option<&str>, data: &impl Serialize) -> Result<(), Gone> {
        let mut text = name.map_or_else(String::new, |name| format!("event: {name}\n"));
        text.push_str("data: ");
        // Values of this program are always JSON, and JSON has no line breaks.
        text.push_str(&serde_json::to_string(data).map_err(|_| Gone)?);
        text.push_str("\n\n");
        self.raw(text).await
    }

    /// Sends the end of a stream of OpenAI's.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn done(&self) -> Result<(), Gone> {
        self.raw("data: [DONE]\n\n".to_string()).await
    }

    async fn raw(&self, text: String) -> Result<(), Gone> {
        self.is_silent.store(false, Ordering::Relaxed);
        self.to.send(text.into()).await.map_err(|_| Gone)
    }

    /// Waits for the next step of `run`. While nothing comes, comments keep the connection alive.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn next(&mut self, run: &mut Run) -> Result<Option<Result<Step, ApiError>>, Gone> {
        loop {
            tokio::select! {
                step = run.next() => return Ok(step),
                () = &mut self.gone => return Err(Gone),
                () = &mut self.look => {
                    self.look.as_mut().reset(Instant::now() + self.keep_alive);
                    if self.is_silent.swap(true, Ordering::Relaxed) {
                        self.raw(": still working\n\n".to_string()).await?;
                    }
                }
            }
        }
    }
}

/// Returns the response whose events `write` sends.
pub fn response<F>(keep_alive: Duration, record: &Record, write: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (to, from) = mpsc::channel(WAITING);
    let gone = {
        let to = to.clone();
        Box::pin(async move { to.closed().await })
    };
    let look = Box::pin(tokio::time::sleep(keep_alive));
    let is_silent = AtomicBool::new(true);
    let writing = write(Events { to, gone, keep_alive, look, is_silent, record: record.clone() });
    let record = record.clone();
    tokio::spawn(async move {
        if writing.await.is_err() {
            record.set("client", "left");
        }
    });
    let mut response = Body::new(Stream(from)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies would hold events back otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Events {
    /// The record of the request.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// The reading end: a body.
struct Stream(mpsc::Receiver<Bytes>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.get_mut().0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
