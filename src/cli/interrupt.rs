//! Ctrl-C: asks the work to end cleanly the first time, ends the program at once the second time.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell expects of a program that ended on Ctrl-C: 128 and the number of SIGINT.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Begins to listen for Ctrl-C (and a request to terminate), and gives the flag it sets.
///
/// # Errors
/// When the system lets no handler be set.
pub fn listen() -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE.into());
        }
    })?;
    Ok(&REQUESTED)
}

/// The work ended because it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);
