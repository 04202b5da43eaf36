//! Handles Ctrl-C. The first one asks the work to end cleanly, and the second one ends the program immediately. A
//! conversion loses almost nothing in either case: the next run continues where it stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// What a shell expects of a program that ended on Ctrl-C: 128 plus the number of SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Listens for Ctrl-C and for requests to terminate, and returns the flag that the first one sets.
///
/// # Errors
/// If the system refuses the handler.
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

/// The work was interrupted. The message says what happened to it; it is empty if that has already been printed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);
