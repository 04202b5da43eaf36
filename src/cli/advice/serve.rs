//! What to type when the server cannot start.

use std::error::Error;

use crate::serve::options::OptionsError;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    match cause.downcast_ref::<OptionsError>()? {
        OptionsError::Open(_) => Some("--api-key KEY sets a key, and --no-auth says that it is intended".to_string()),
        OptionsError::Key | OptionsError::Origin(_) => None,
    }
}
