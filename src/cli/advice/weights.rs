//! What to type when something goes wrong with comparisons of weights.

use std::error::Error;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(_cause: &(dyn Error + 'static)) -> Option<String> {
    None
}
