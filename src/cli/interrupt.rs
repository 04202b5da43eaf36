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
    listen_and(|| {})
}

/// As [`listen`], and calls `tell` the first time.
///
/// # Errors
/// If the system refuses the handler.
pub fn listen_and(tell: impl Fn() + Send + 'static) -> anyhow::Result<Arc<AtomicBool>> {
    let requested = Arc::new(AtomicBool::new(false));
    let flag = requested.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_CODE.into());
        }
        tell();
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(requested)
}

/// Goes on when somebody asks this process to end: the one that started it ends it, by its input.
///
/// # Errors
/// If the system refuses.
#[cfg(feature = "serve")]
pub fn ignore() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {}).context("cannot listen for Ctrl-C")
}

/// The work was interrupted. The message says what happened to it; it is empty if that has already been printed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);
