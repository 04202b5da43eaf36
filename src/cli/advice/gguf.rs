//! What to type when something goes wrong with GGUF files.

use std::error::Error;

use crate::gguf::{self, Problem};

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    let error: &gguf::Error = cause.downcast_ref()?;
    match error.problem {
        Problem::Folder => Some(format!("'nibble convert {}' makes one of a model's folder", error.path.display())),
        _ => None,
    }
}
