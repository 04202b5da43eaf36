//! Models split over several files: their names, and the keys that tell the parts apart.
//!
//! ```text
//! yi-34b-q4_k_m-00001-of-00003.gguf   all metadata, split.no = 0, and the first tensors
//! yi-34b-q4_k_m-00002-of-00003.gguf   split.no = 1, and more tensors
//! yi-34b-q4_k_m-00003-of-00003.gguf   split.no = 2, and the last ones
//! ```
//!
//! Source: llama.cpp's `llama_split_path`, `llama-model-loader.cpp` and gguf-py's `gguf_writer.py`. The types of the
//! keys matter: llama.cpp ends the process if `split.no` of a later part is not a u16.

use super::{Metadata, Problem, Value};

/// Index of the part, from 0: a u16.
pub(super) const NO: &str = "split.no";
/// Number of parts: a u16.
pub(super) const COUNT: &str = "split.count";
/// Number of tensors in all parts together: an i32.
pub(super) const TENSORS_COUNT: &str = "split.tensors.count";

/// Returns the name of part `part` (from 0) of a model in `n_parts` files: `base.gguf` for a model in one file,
/// `base-00001-of-00003.gguf` for the first of three.
pub fn file_name(base: &str, part: usize, n_parts: usize) -> String {
    match n_parts {
        0 | 1 => format!("{base}.gguf"),
        _ => format!("{base}{}", suffix(part, n_parts)),
    }
}

/// Returns the ending of a part's file name, with `part` from 0.
pub(super) fn suffix(part: usize, n_parts: usize) -> String {
    format!("-{:05}-of-{n_parts:05}.gguf", part + 1)
}

/// The part that this metadata says it belongs to, from 0, and the number of parts; `None` for a model in one file.
pub(super) fn part_of(metadata: &Metadata) -> Result<Option<(usize, usize)>, Problem> {
    let count = match metadata.get(COUNT) {
        None => return Ok(None),
        Some(value) => u16_of(COUNT, Some(value))?,
    };
    if count <= 1 {
        return Ok(None);
    }
    let no = u16_of(NO, metadata.get(NO))?;
    if no >= count {
        let wanted = format!("less than {COUNT}, {count}");
        return Err(Problem::SplitKey { key: NO, found: no.to_string(), wanted });
    }
    Ok(Some((no, count)))
}

/// The number of tensors that the first part says all parts have together.
pub(super) fn tensors_count(metadata: &Metadata) -> Result<u64, Problem> {
    let found = metadata.get(TENSORS_COUNT);
    match found {
        Some(Value::I32(n)) if *n >= 0 => Ok(*n as u64),
        _ => Err(wrong(TENSORS_COUNT, found, "an i32 of at least 0")),
    }
}

fn u16_of(key: &'static str, found: Option<&Value>) -> Result<usize, Problem> {
    match found {
        Some(Value::U16(n)) => Ok(usize::from(*n)),
        _ => Err(wrong(key, found, "a u16")),
    }
}

fn wrong(key: &'static str, found: Option<&Value>, wanted: &str) -> Problem {
    let found = match found {
        None => "absent".to_string(),
        Some(value) => describe(value),
    };
    Problem::SplitKey { key, found, wanted: wanted.to_string() }
}

/// A value in a message: integers as they are, others by their type.
pub(super) fn describe(value: &Value) -> String {
    match (value.as_u64(), value) {
        (Some(n), _) => format!("{n} ({})", value.value_type()),
        (None, Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_)) => {
            format!("negative ({})", value.value_type())
        }
        _ => format!("a value of type {}", value.value_type()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_as_llama_cpp_looks_for_them() {
        assert_eq!(file_name("yi", 0, 1), "yi.gguf");
        assert_eq!(file_name("yi", 0, 3), "yi-00001-of-00003.gguf");
        assert_eq!(file_name("yi-34b", 11, 12), "yi-34b-00012-of-00012.gguf");
    }

    #[test]
    fn a_model_in_one_file_is_not_split_whatever_its_count_is_called() {
        let mut metadata = Metadata::new();
        assert_eq!(part_of(&metadata).unwrap(), None);
        metadata.set(COUNT, 1u16);
        assert_eq!(part_of(&metadata).unwrap(), None);
        metadata.set(COUNT, 3u16);
        metadata.set(NO, 2u16);
        assert_eq!(part_of(&metadata).unwrap(), Some((2, 3)));
    }

    #[test]
    fn split_keys_of_another_type_or_size_are_refused() {
        let refuse = |no: Value, count: Value| {
            let mut metadata = Metadata::new();
            metadata.set(COUNT, count);
            metadata.set(NO, no);
            part_of(&metadata).unwrap_err().to_string()
        };
        assert!(refuse(Value::U32(0), Value::U16(2)).starts_with("split.no is 0 (u32), wanted a u16"));
        assert!(refuse(Value::U16(2), Value::U16(2)).starts_with("split.no is 2, wanted less than split.count, 2"));
        assert!(refuse(Value::U16(0), Value::I32(-4)).starts_with("split.count is negative (i32), wanted a u16"));
        assert!(
            refuse(Value::U16(0), Value::from("2")).starts_with("split.count is a value of type str, wanted a u16")
        );
    }
}
