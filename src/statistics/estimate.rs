//! A number with its interval.

use serde::Serialize;

use crate::base::json_float;

/// A number, with the interval that contains the true one 95 times in 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// What was measured.
    #[serde(serialize_with = "json_float::number")]
    pub value: f64,
    /// From where to where; `None` if no interval can be trusted: of a maximum, or of a handful of blocks.
    #[serde(serialize_with = "json_float::interval")]
    pub interval: Option<[f64; 2]>,
}

impl Estimate {
    /// A number without an interval.
    pub fn bare(value: f64) -> Self {
        Self { value, interval: None }
    }

    /// Whether the interval is there and leaves zero out.
    pub fn differs_from_zero(&self) -> bool {
        self.interval.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}
