//! Runs work on untrusted input on its own stack, with a time limit.

use std::sync::mpsc;
use std::time::Duration;

use super::Error;

/// The stack for recursive parsers and regular expressions. Only address space until it is used.
pub(super) const STACK_BYTES: usize = 256 << 20;

/// The time limit for preparing a grammar. Typical grammars take milliseconds.
pub(super) const PREPARE: Duration = Duration::from_secs(20);

/// Runs `work` on a thread with a large stack, and waits for it at most [`PREPARE`].
///
/// Work that takes longer keeps running, because a thread cannot be ended from outside. Sizes and depths are checked
/// beforehand, and no input is known to take that long.
pub(super) fn run<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (send, receive) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("grammar".to_string()).stack_size(STACK_BYTES).spawn(move || {
        // After a timeout, nobody receives the result.
        let _ = send.send(work());
    });
    spawned.map_err(|error| Error::Failed { what, why: format!("no thread could be started ({error})") })?;
    match receive.recv_timeout(PREPARE) {
        Ok(done) => done,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Error::TooSlow { what, seconds: PREPARE.as_secs() }),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(Error::Refused { what, why: "it could not be read because of an unexpected error".to_string() })
        }
    }
}
