//! JSON files of a model folder, with errors that name file, line and column.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::{Error, shown};

/// The largest JSON file that is read. Tokenizers of 250,000 pieces are about 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Reads the file at `path` without its byte order mark; `None` if there is no such file.
///
/// # Errors
/// If the file cannot be read, is larger than `limit` bytes, or is a Git LFS pointer.
pub(super) fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io(path))?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > limit {
        let len = std::fs::metadata(path).map_or(bytes.len() as u64, |m| m.len());
        return Err(Error::TooLarge { path: path.to_path_buf(), bytes: len, limit });
    }
    refuse_pointer(path, &bytes)?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(Some(bytes))
}

/// Refuses the pointer that Git LFS leaves in the place of a file it has not fetched.
///
/// Format: <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>
pub(super) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if !bytes.starts_with(b"version https://git-lfs") {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]);
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let size = size.map_or(String::new(), |size| format!(", which has {size} bytes"));
    Err(Error::LfsPointer { path: path.to_path_buf(), size })
}

/// Reads the file at `path` as a `T`; `None` if there is no such file.
///
/// # Errors
/// If [`read_bytes`] fails, or the file is not JSON or does not have the structure of a `T`.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = read_bytes(path, MAX_BYTES)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|e| Error::Json {
        path: path.to_path_buf(),
        line: e.line(),
        column: e.column(),
        problem: without_place(&e),
    })?;
    Ok(Some(value))
}

/// Returns serde_json's message without its "at line 1 column 2".
pub(super) fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    shown(message.strip_suffix(&place).unwrap_or(&message))
}

/// A JSON object in the order of its file, which may not give a key twice.
#[derive(Debug)]
pub(super) struct Unique<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Collect<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("the key \"{}\" is given twice", shown(&key))));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// A JSON object out of a file, read key by key with errors that name the file and the key.
///
/// A key may be a path: `rope_scaling.factor` is the key `factor` of the object at `rope_scaling`. A key whose value is
/// `null` counts as absent, as it does for the Python classes that wrote the file.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Config {
    /// Reads the JSON object in the file at `path`; `None` if there is no such file.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        Ok(read::<Map<String, Value>>(path)?.map(|map| Self { path: path.to_path_buf(), map }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys and values, in the order of the file.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Returns the value of `key`; `None` if it is absent or `null`. A key that itself contains dots is found before a path.
    pub fn get(&self, key: &str) -> Option<&Value> {
        if let Some(value) = self.map.get(key) {
            return (!value.is_null()).then_some(value);
        }
        let mut parts = key.split('.');
        let mut value = self.map.get(parts.next()?)?;
        for part in parts {
            value = value.as_object()?.get(part)?;
        }
        (!value.is_null()).then_some(value)
    }

    /// Returns an error about `key` of this file, for problems that only the caller can see.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::key(&self.path, key, problem)
    }

    fn opt<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.error(key, format!("wanted {wanted}, found {}", shown(&value.to_string())))),
        }
    }

    fn required<T>(&self, key: &str, wanted: &str, found: Option<T>) -> Result<T, Error> {
        found.ok_or_else(|| self.error(key, format!("missing; wanted {wanted}")))
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// If the key is absent or holds anything else.
    pub fn u64(&self, key: &str) -> Result<u64, Error> {
        let found = self.opt_u64(key)?;
        self.required(key, WHOLE, found)
    }

    /// Returns a whole number that is not negative, if the key exists.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.opt(key, WHOLE, whole)
    }

    /// A number.
    ///
    /// # Errors
    /// If the key is absent or holds anything else.
    pub fn f64(&self, key: &str) -> Result<f64, Error> {
        let found = self.opt_f64(key)?;
        self.required(key, "a number", found)
    }

    /// Returns a number, if the key exists.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, Error> {
        self.opt(key, "a number", Value::as_f64)
    }

    /// A string.
    ///
    /// # Errors
    /// If the key is absent or holds anything else.
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        let found = self.opt_str(key)?;
        self.required(key, "a string", found)
    }

    /// Returns a string, if the key exists.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.opt(key, "a string", Value::as_str)
    }

    /// A boolean.
    ///
    /// # Errors
    /// If the key is absent or holds anything else.
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        let found = self.opt_bool(key)?;
        self.required(key, "true or false", found)
    }

    /// Returns a boolean, if the key exists.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.opt(key, "true or false", Value::as_bool)
    }

    /// Returns whole numbers, from a list or a single number as `eos_token_id` has; empty if the key is absent.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn u64s(&self, key: &str) -> Result<Vec<u64>, Error> {
        let list = |value: &Value| match value {
            Value::Array(items) => items.iter().map(whole).collect(),
            single => Some(vec![whole(single)?]),
        };
        Ok(self.opt(key, "a whole number or a list of them", list)?.unwrap_or_default())
    }

    /// Returns numbers, from a list; `None` if the key is absent.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn f64s(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        self.opt(key, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// Returns strings, from a list or a single string; empty if the key is absent.
    ///
    /// # Errors
    /// If the key holds anything else.
    pub fn strs(&self, key: &str) -> Result<Vec<&str>, Error> {
        let found = self.opt(key, "a string or a list of strings", |value| match value {
            Value::Array(items) => items.iter().map(Value::as_str).collect(),
            Value::String(single) => Some(vec![single.as_str()]),
            _ => None,
        })?;
        Ok(found.unwrap_or_default())
    }
}

const WHOLE: &str = "a whole number that is not negative";

/// Whole numbers, also where Python wrote them as a float: `4096.0`.
fn whole(value: &Value) -> Option<u64> {
    // Floats hold every whole number up to 2^53.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let float = |f: f64| (f.fract() == 0.0 && (0.0..=EXACT).contains(&f)).then_some(f as u64);
    value.as_u64().or_else(|| float(value.as_f64()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let prefix = format!("{}{}", dir.path().display(), std::path::MAIN_SEPARATOR);
        Config::read(&path).map(Option::unwrap).map_err(|e| e.to_string().replace(&prefix, ""))
    }

    #[test]
    fn reads_numbers_strings_and_paths_of_keys() {
        let c = config(
            "\u{feff}{\"hidden_size\": 7168, \"float\": 4096.0, \"rms_norm_eps\": 1e-05, \"rope_theta\": 5000000, \
             \"model_type\": \"llama\", \"tied\": false, \"none\": null, \"rope_scaling\": {\"factor\": 2.0}, \
             \"eos\": 2, \"eos_list\": [7, 2], \"architectures\": [\"LlamaForCausalLM\"], \
             \"model_max_length\": 1000000000000000019884624838656}",
        )
        .unwrap();
        assert_eq!(c.u64("hidden_size").unwrap(), 7168);
        assert_eq!(c.u64("float").unwrap(), 4096);
        assert_eq!(c.f64("rms_norm_eps").unwrap(), 1e-5);
        assert_eq!(c.f64("rope_theta").unwrap(), 5e6);
        assert_eq!(c.f64("rope_scaling.factor").unwrap(), 2.0);
        assert_eq!(c.opt_f64("rope_scaling.missing").unwrap(), None);
        assert_eq!(c.opt_f64("hidden_size.factor").unwrap(), None);
        assert_eq!(c.str("model_type").unwrap(), "llama");
        assert!(!c.bool("tied").unwrap());
        assert_eq!(c.opt_bool("none").unwrap(), None);
        assert_eq!(c.u64s("eos").unwrap(), [2]);
        assert_eq!(c.u64s("eos_list").unwrap(), [7, 2]);
        assert!(c.u64s("absent").unwrap().is_empty());
        assert_eq!(c.strs("architectures").unwrap(), ["LlamaForCausalLM"]);
        assert_eq!(c.strs("model_type").unwrap(), ["llama"]);
        assert!(c.f64("model_max_length").unwrap() > 1e29);
        assert_eq!(c.map().keys().next().unwrap(), "hidden_size");
    }

    #[test]
    fn errors_name_the_key_what_was_found_and_what_was_wanted() {
        let c = config(r#"{"a": "x", "b": -1, "c": 1.5, "d": {"e": []}}"#).unwrap();
        let file = c.path().display().to_string();
        let message = |e: Error| e.to_string().replace(&file, "config.json");
        assert_eq!(
            message(c.u64("hidden_size").unwrap_err()),
            "config.json: key hidden_size: missing; wanted a whole number that is not negative"
        );
        assert_eq!(
            message(c.u64("a").unwrap_err()),
            "config.json: key a: wanted a whole number that is not negative, found \"x\""
        );
        assert!(c.u64("b").is_err() && c.opt_u64("c").is_err() && c.u64s("a").is_err() && c.f64s("a").is_err());
        assert_eq!(message(c.opt_bool("d.e").unwrap_err()), "config.json: key d.e: wanted true or false, found []");
    }

    #[test]
    fn broken_json_is_reported_with_line_and_column() {
        assert_eq!(
            config("{\n  \"a\": 1\n  \"b\": 2\n}").unwrap_err(),
            "config.json, line 3, column 3: not valid JSON: expected `,` or `}`"
        );
        assert_eq!(
            config("[1]").unwrap_err(),
            "config.json, line 1, column 0: not valid JSON: invalid type: sequence, expected a map"
        );
        assert!(config("").unwrap_err().starts_with("config.json, line 1, column 0: not valid JSON: EOF"));
        assert!(config(&"[".repeat(100_000)).is_err());
        assert!(config(&format!("{{\"a\":{}", "[".repeat(100_000))).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn a_pointer_in_place_of_a_config_is_named() {
        assert_eq!(
            config("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4242\n").unwrap_err(),
            "config.json: this is a Git LFS pointer, not the file itself, which has 4242 bytes; run 'git lfs pull' in \
             its folder to fetch the file"
        );
    }

    #[test]
    fn a_key_given_twice_is_an_error_where_it_would_be_ambiguous() {
        let twice = serde_json::from_str::<Unique<u32>>(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap_err();
        assert!(twice.to_string().starts_with("the key \"a\" is given twice"), "{twice}");
    }

    #[test]
    fn refuses_a_file_past_the_limit_without_reading_it_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [b' '; 100]).unwrap();
        let message = read_bytes(&path, 10).unwrap_err().to_string();
        assert!(message.ends_with("100 bytes are too many for such a file; at most 10 are read"), "{message}");
        assert_eq!(read_bytes(&path, 100).unwrap().unwrap().len(), 100);
    }
}
