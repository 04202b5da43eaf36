//! What to type when something goes wrong with sampling.

use std::error::Error;

use crate::sample;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    match cause.downcast_ref::<sample::Error>()? {
        sample::Error::NotFinite { .. } => Some("try another quantization, or --kv-type f32".to_string()),
        _ => None,
    }
}
