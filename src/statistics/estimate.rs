//! A number with its interval.

use serde::Serialize;

use crate::base::json_float;

/// A number with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The measured value.
    #[serde(serialize_with = "json_float::number")]
    pub value: f64,
    /// The ends of the interval; `None` if there is no reliable interval, as for a maximum or for too few blocks.
    #[serde(serialize_with = "json_float::interval")]
    pub interval: Option<[f64; 2]>,
}

impl Estimate {
    /// Returns a number without an interval.
    pub fn bare(value: f64) -> Self {
        Self { value, interval: None }
    }

    /// Returns whether there is an interval and it does not contain zero.
    pub fn differs_from_zero(&self) -> bool {
        self.interval.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}
