//! What the two ends tell each other: lines of JSON, before ggml's bytes, and on a connection beside them.
//!
//! ```text
//! control   client  {"session":"9f..","opens":true,"engine":"nibble 0.1.0, llama.cpp 0.1.160"}
//!           worker  {"devices":[..]}  or  {"refused":".."}
//!           both    an empty line every second; the worker at last {"ended":"why"}
//! data      client  {"session":"9f..","opens":false,"engine":".."}
//!           worker  {"devices":[]}    and then ggml's bytes both ways
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::llama::DeviceSpeed;

/// Both ends send a line this often.
pub const BEAT: Duration = Duration::from_secs(1);

/// Who is silent for so long is gone: the machine is off, or a cable is out.
pub const SILENCE: Duration = Duration::from_secs(7);

/// What computes, on both ends: ggml's numbers for operations change between versions.
pub fn engine() -> String {
    format!("nibble {}, llama.cpp {}", env!("CARGO_PKG_VERSION"), crate::llama::VERSION)
}

/// The first line of each connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Numbers the connections of one client; nobody can guess it.
    pub session: String,
    /// Whether it opens the session: the connection beside the others.
    pub opens: bool,
    /// [`engine`] of the client.
    pub engine: String,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Welcome {
    /// What there is.
    Devices(Vec<Offer>),
    /// Why not.
    Refused(String),
}

/// A device of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The name that its maker gave it.
    pub name: String,
    /// All bytes of its memory.
    pub total_bytes: u64,
    /// Bytes that a model may take.
    pub free_bytes: u64,
    /// How fast it is, without the way to it; `None` for those faster than any processor.
    pub speed: Option<DeviceSpeed>,
}

/// What a worker says beside ggml's bytes, apart from empty lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// The session's engine is gone, and why.
    Ended(String),
}

/// Longer lines are not read.
const LONGEST: usize = 64 << 10;

/// Sends a line.
///
/// # Errors
/// If the connection is broken.
pub fn send(mut to: impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Says that this end is there.
///
/// # Errors
/// If the connection is broken.
pub fn beat(mut to: impl Write) -> io::Result<()> {
    to.write_all(b"\n")
}

/// Reads a line, byte by byte: what follows is not ours.
///
/// # Errors
/// If the connection is broken or ends, or the line is no such value.
pub fn receive<T: DeserializeOwned>(from: impl Read) -> io::Result<T> {
    Ok(serde_json::from_slice(&line(from)?)?)
}

/// Reads a line, which may be empty.
///
/// # Errors
/// If the connection is broken or ends, or the line is longer than any of ours.
pub fn line(mut from: impl Read) -> io::Result<Vec<u8>> {
    let (mut line, mut byte) = (Vec::new(), [0u8]);
    loop {
        from.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return Ok(line),
            _ if line.len() == LONGEST => return Err(io::Error::other("a line without an end")),
            [byte] => line.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_as_they_were_sent_and_nothing_after_them_is_read() {
        let hello = Hello { session: "a".into(), opens: true, engine: engine() };
        let mut bytes = Vec::new();
        send(&mut bytes, &hello).unwrap();
        bytes.extend(b"\x01rest");
        let mut from = bytes.as_slice();
        assert_eq!(receive::<Hello>(&mut from).unwrap(), hello);
        assert_eq!(from, b"\x01rest");
        assert!(receive::<Hello>(&b"GET / HTTP/1.1\r\n"[..]).is_err() && receive::<Hello>(&b"{"[..]).is_err());
        assert!(line(&vec![b'x'; LONGEST + 1][..]).is_err() && line(&b"\n"[..]).unwrap().is_empty());
    }
}
