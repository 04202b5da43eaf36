//! Ctrl-C: asks the work to end cleanly the first time, ends the program at once the second time. A conversion loses next
//! to nothing either way: the next run goes on where it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// What a shell expects of a program that ended on Ctrl-C: 128 and the number of SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Begins to listen for Ctrl-C and for requests to terminate, and gives the flag that the first one sets.
///
/// # Errors
/// When the system lets no handler be set.
pub fn listen() -> anyhow::Result<Arc<AtomicBool>> {
    let requested = Arc::new(AtomicBool::new(false));
    let flag = requested.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE.into());
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(requested)
}

/// The work ended because it was asked to. Says what became of it; nothing where that has been said already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);
