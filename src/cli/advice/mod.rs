//! What to type when something goes wrong.
//!
//! The library speaks of things; its errors carry what was asked for, what there is, and what would fit. Here each room's
//! errors get the flags that change these things. One file a room.

mod calibration;
mod chat;
pub mod convert;
#[cfg(feature = "llama")]
mod engine;
#[cfg(feature = "llama")]
mod evaluate;
mod gguf;
#[cfg(feature = "llama")]
mod llama;
mod sample;
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
    #[cfg(feature = "llama")]
    llama::advice,
    gguf::advice,
    sample::advice,
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
