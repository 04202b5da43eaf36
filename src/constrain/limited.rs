//! Work on what a stranger may have written: on a stack of its own, and not for ever.

use std::sync::mpsc;
use std::time::Duration;

use super::Error;

/// Stack for the recursion of parsers and regular expressions; address space only, until it is used.
pub(super) const STACK_BYTES: usize = 256 << 20;

/// Longest time to prepare a grammar. What people use takes milliseconds.
pub(super) const PREPARE: Duration = Duration::from_secs(20);

/// Does `work` on a thread with room for deep recursion, and waits for it no longer than [`PREPARE`].
///
/// Work that takes longer is left to itself: a thread cannot be ended from outside. Sizes and depths are checked before,
/// so that nothing is known to come to this.
pub(super) fn run<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (send, receive) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("grammar".to_string()).stack_size(STACK_BYTES).spawn(move || {
        // Nobody listens any more where it took too long.
        let _ = send.send(work());
    });
    spawned.map_err(|error| Error::Failed { what, why: format!("no thread could be started ({error})") })?;
    match receive.recv_timeout(PREPARE) {
        Ok(done) => done,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Error::TooSlow { what, seconds: PREPARE.as_secs() }),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(Error::Refused { what, why: "it could not be read, for a reason that was not foreseen".to_string() })
        }
    }
}
