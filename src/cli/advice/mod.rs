//! What to type when something goes wrong.
//!
//! The library's errors say what was wanted, what was found, and what would be accepted, without mentioning flags.
//! Here, the errors of each room get advice on flags and commands. Each room has one file.

mod calibration;
mod chat;
pub mod convert;
#[cfg(feature = "llama")]
mod engine;
#[cfg(feature = "llama")]
mod evaluate;
mod files;
#[cfg(feature = "llama")]
mod llama;
mod sample;
#[cfg(feature = "serve")]
mod serve;
mod verify;
mod weights;

use std::error::Error;

type Advice = fn(&(dyn Error + 'static)) -> Option<String>;

const ROOMS: &[Advice] = &[
    calibration::advice,
    chat::advice,
    convert::advice,
    #[cfg(feature = "llama")]
    engine::advice,
    #[cfg(feature = "llama")]
    evaluate::advice,
    files::advice,
    #[cfg(feature = "llama")]
    llama::advice,
    sample::advice,
    #[cfg(feature = "serve")]
    serve::advice,
    verify::advice,
    weights::advice,
];

/// Returns what to type about an error: the advice for the first of its causes that has any.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(of)
}

/// Returns what to type about one cause of an error.
fn of(cause: &(dyn Error + 'static)) -> Option<String> {
    ROOMS.iter().find_map(|advice| advice(cause))
}
