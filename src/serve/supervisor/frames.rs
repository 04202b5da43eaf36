//! Frames to and from an engine: see [`crate::serve::protocol`].

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use crate::serve::protocol::{self, FromEngine, MOST_BYTES, ToEngine};

/// Frames from an engine that wait to be read. It writes no faster than they are.
const AHEAD: usize = 256;

/// Starts to write what is sent, and to read what comes. What comes ends when the engine's output does, or is no frame.
pub(super) fn start(
    input: impl AsyncWrite + Send + Unpin + 'static,
    output: impl AsyncRead + Send + Unpin + 'static,
) -> (mpsc::UnboundedSender<ToEngine>, mpsc::Receiver<FromEngine>) {
    let (sender, to_send) = mpsc::unbounded_channel();
    let (heard, received) = mpsc::channel(AHEAD);
    tokio::spawn(write_all(input, to_send));
    tokio::spawn(read_all(output, heard));
    (sender, received)
}

/// Writes messages until there are no more, then ends the engine's input.
async fn write_all(mut input: impl AsyncWrite + Unpin, mut messages: mpsc::UnboundedReceiver<ToEngine>) {
    let mut bytes = Vec::new();
    while let Some(message) = messages.recv().await {
        bytes.clear();
        // One that is too long was refused before; an engine that is gone is heard of by its output.
        if protocol::write(&mut bytes, &message).is_err() || input.write_all(&bytes).await.is_err() {
            break;
        }
        if messages.is_empty() && input.flush().await.is_err() {
            break;
        }
    }
    let _ = input.shutdown().await;
}

async fn read_all(output: impl AsyncRead + Unpin, heard: mpsc::Sender<FromEngine>) {
    // What was written at once is read at once.
    let mut output = BufReader::with_capacity(64 << 10, output);
    let mut bytes = Vec::new();
    while let Ok(Some(message)) = read(&mut output, &mut bytes).await {
        if heard.send(message).await.is_err() {
            break;
        }
    }
}

/// Reads a frame; `None` at the end.
async fn read(output: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<Option<FromEngine>> {
    let mut length = [0; 4];
    match output.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.resize(length, 0);
    output.read_exact(bytes).await?;
    Ok(Some(serde_json::from_slice(bytes)?))
}
