//! A comparison as JSON.
//!
//! An object with `format` and `format_version`, and below them everything in [`Results`], by the names of its fields.
//! JSON has no infinite numbers: [`base::json_float`](crate::base::json_float) says how they are written. `null` always
//! means that a value is missing.

use serde::Serialize;

use crate::report::results::Results;

/// Increased when a reader of the last version would misread this one. New fields do not increase it.
const FORMAT_VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    format_version: u32,
    #[serde(flatten)]
    results: &'a Results,
}

/// Returns the document, indented, with a line break at its end.
pub fn json(results: &Results) -> String {
    let document = Document { format: "nibble-comparison", format_version: FORMAT_VERSION, results };
    // Serializing fails only for keys that are not strings, and for writers that fail. Neither occurs here.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::report::results::{Estimate, Guess, WeightError};
    use crate::report::sample;

    fn read(results: &Results) -> Value {
        serde_json::from_str(&super::json(results)).unwrap()
    }

    #[test]
    fn everything_found_is_there_to_the_last_digit() {
        let results = sample::results(8);
        let (text, read) = (super::json(&results), read(&results));
        assert_eq!(read["format"], "nibble-comparison");
        assert_eq!(read["candidates"].as_array().unwrap().len(), 8);
        assert_eq!(read["pairs"].as_array().unwrap().len(), 28);
        for (candidate, value) in results.candidates.iter().zip(read["candidates"].as_array().unwrap()) {
            let kld = candidate.overall.unwrap().kld;
            // Read from the text: serde_json's parser may be off by a last digit.
            assert!(text.contains(&format!("\"value\": {},", kld.value)), "{}", kld.value);
            assert_eq!(value["overall"]["kld"]["interval"].as_array().unwrap().len(), 2);
            assert_eq!(value["changed"][1]["right"]["text"], "桥");
        }
    }

    #[test]
    fn what_is_no_number_has_a_name_and_what_is_not_there_is_null() {
        let mut results = sample::results(1);
        let scores = results.candidates[0].overall.as_mut().unwrap();
        scores.kld = Estimate { value: f64::INFINITY, interval: Some([0.5, f64::INFINITY]) };
        scores.kld_max = Estimate::bare(f64::NAN);
        results.candidates[0].changed[0].kld = f64::NEG_INFINITY;
        let read = read(&results);
        let scores = &read["candidates"][0]["overall"];
        assert_eq!(scores["kld"], json!({"value": "Infinity", "interval": [0.5, "Infinity"]}));
        assert_eq!(scores["kld_max"], json!({"value": "NaN", "interval": null}));
        assert_eq!(read["candidates"][0]["changed"][0]["kld"], "-Infinity");
        assert_eq!(read["candidates"][0]["failure"], Value::Null);
    }

    #[test]
    fn no_number_that_a_comparison_can_hold_becomes_null() {
        let mut results = sample::results(1);
        let candidate = &mut results.candidates[0];
        let tensor = &mut candidate.weights.as_mut().unwrap().tensors[0];
        let nan = f64::NAN;
        tensor.error = WeightError { rmse: nan, relative: nan, cosine: nan, weighted: Some(nan) };
        tensor.worst_row_relative = nan;
        candidate.changed[0].right = Guess { text: String::new(), reference: Some(nan), candidate: nan };
        candidate.tasks[0].as_mut().unwrap().against_reference.as_mut().unwrap().p_value = nan;
        let text = super::json(&results);
        assert_eq!(text.matches("\"NaN\"").count(), 8);
    }
}
