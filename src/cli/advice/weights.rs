//! What to type when something goes wrong with the comparison of weights.

use std::error::Error;

use super::convert;
use crate::weights;

/// Returns the flags or commands that help with `cause`, as words that follow "; ".
pub fn advice(cause: &(dyn Error + 'static)) -> Option<String> {
    match cause.downcast_ref()? {
        weights::Error::Source(error) => convert::of_source(error),
        weights::Error::Importance(error) => convert::of_conversion(error),
        _ => None,
    }
}
