//! Floats in JSON, which has no infinite numbers.
//!
//! They become the strings `"Infinity"`, `"-Infinity"` and `"NaN"`, which Python's `float` and JavaScript's `Number` parse.
//! The functions are for serde's `serialize_with`.

use serde::{Serialize, Serializer};

/// Serializes a number: one that is not finite by its name.
///
/// # Errors
/// If the serializer fails.
pub fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_str(name(*value)) }
}

/// Serializes a number that may be missing, which is `null`.
///
/// # Errors
/// If the serializer fails.
pub fn optional<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => number(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// Serializes the two ends of an interval that may be missing, which is `null`.
///
/// # Errors
/// If the serializer fails.
pub fn interval<S: Serializer>(value: &Option<[f64; 2]>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(|ends| ends.map(Number)).serialize(serializer)
}

struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        number(&self.0, serializer)
    }
}

fn name(value: f64) -> &'static str {
    match value {
        _ if value.is_nan() => "NaN",
        _ if value > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}
