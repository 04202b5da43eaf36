//! What to type when something goes wrong with verification.

use std::error::Error;

use super::convert;
use crate::verify;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    match cause.downcast_ref()? {
        verify::Error::Source(error) => convert::of_source(error),
        verify::Error::Importance(error) => convert::of_conversion(error),
        verify::Error::SameFile { .. } => {
            Some("give --source the folder or the file that it was made from".to_string())
        }
        verify::Error::OtherImportance { .. } => Some("give --importance the file that it was made with".to_string()),
        verify::Error::OtherRounding { .. } => Some(
            "give --rounding and --calibration as they were given to 'nibble convert' (--best is --rounding full)"
                .to_string(),
        ),
        verify::Error::Polished { .. } => Some(
            "leave out --source to check that it is intact, or convert again with the same flags and compare the files"
                .to_string(),
        ),
        verify::Error::NoImportance { .. } => Some("leave out --importance".to_string()),
        _ => None,
    }
}
