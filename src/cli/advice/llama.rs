//! What to type when something goes wrong with models, contexts and memory.

use std::error::Error;

use crate::llama::{self, Setting};
use crate::placement::NoRoom;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(no_room) = cause.downcast_ref::<NoRoom>() {
        return Some(no_room_advice(no_room));
    }
    let has_no_reason = |reason: &str| (reason == llama::NO_REASON).then_some("--verbose shows llama.cpp's log");
    let advice = match cause.downcast_ref::<llama::Error>()? {
        llama::Error::Setting { setting: Setting::ContextSize, .. } => "set it with --ctx",
        llama::Error::Setting { setting: Setting::Threads, .. } => "set it with --threads",
        llama::Error::QuantizedCache => "leave out '--flash-attn off', or pass --kv-type f16",
        // Heads whose length blocks of a quantized type do not divide.
        llama::Error::Context { reason, .. } if reason.contains(" block size ") => "pass --kv-type f16",
        llama::Error::DeviceFull { what: "the context", .. } => {
            "put fewer layers there with --gpu-layers or --split, or try a smaller --ctx, or --kv-type q8_0"
        }
        llama::Error::DeviceFull { .. } => "put fewer layers there with --gpu-layers or --split",
        llama::Error::Thrown(_) => {
            "another program may have taken the GPU's memory: put fewer layers there with --gpu-layers or --split"
        }
        llama::Error::Context { .. } => "try a smaller --ctx, or --kv-type q8_0",
        llama::Error::ContextFull { .. } => "shorten it, or make the context larger with --ctx",
        llama::Error::Load { reason, .. } | llama::Error::Decode { reason, .. } => has_no_reason(reason)?,
        _ => return None,
    };
    Some(advice.to_string())
}

fn no_room_advice(no_room: &NoRoom) -> String {
    let smaller = match no_room.fits {
        Some(n_ctx) => format!("try --ctx {n_ctx}, --kv-type q8_0, or a smaller quantization"),
        None => "try a smaller quantization ('nibble quants' lists them)".to_string(),
    };
    format!("{smaller}; --allow-swap runs it anyway, and reads the weights from disk for every token")
}
