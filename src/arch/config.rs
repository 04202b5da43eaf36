//! Typed access to `config.json`.

use serde_json::{Map, Value};

use super::Error;

/// The largest size that is taken from a configuration: ggml counts in signed 32-bit numbers in many places.
const MAX_SIZE: u64 = i32::MAX as u64;

/// An object of `config.json`. A key that is `null` counts as absent, as it does in transformers.
#[derive(Clone, Copy)]
pub(super) struct Config<'a> {
    map: &'a Map<String, Value>,
    /// The path of the object, for messages: empty or `rope_scaling.`.
    at: &'static str,
}

impl<'a> Config<'a> {
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, at: "" }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`; `at` is the key with a full stop, for messages about its members.
    pub fn object(&self, key: &str, at: &'static str) -> Result<Option<Config<'a>>, Error> {
        self.typed(key, "an object or null", |value| Some(Config { map: value.as_object()?, at }))
    }

    pub fn keys(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// A count or a size: a whole number from 1 to `i32::MAX`. JSON written by other tools may say `4096.0`.
    pub fn size(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "a whole number from 1 to 2147483647", |value| {
            let whole = value.as_u64().or_else(|| {
                let float = value.as_f64().filter(|v| v.fract() == 0.0 && (1.0..=MAX_SIZE as f64).contains(v))?;
                Some(float as u64)
            });
            whole.filter(|size| (1..=MAX_SIZE).contains(size)).and_then(|size| u32::try_from(size).ok())
        })
    }

    /// A number above `above`, finite also as the 32-bit float that the file will hold.
    pub fn number(&self, key: &str, above: f64, wanted: &'static str) -> Result<Option<f64>, Error> {
        self.typed(key, wanted, |value| {
            let number = value.as_f64()?;
            ((number as f32).is_finite() && number > above && f64::from(number as f32) > above).then_some(number)
        })
    }

    /// A factor by which a context grows: a number that is at least 1.
    pub fn factor(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number that is at least 1", |value| {
            value.as_f64().filter(|&number| number >= 1.0 && (number as f32).is_finite())
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn str(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    /// Returns `value`, or the error that `key` is missing.
    pub fn required<T>(&self, key: &str, value: Option<T>, wanted: &'static str) -> Result<T, Error> {
        value.ok_or_else(|| Error::MissingKey { key: format!("{}{key}", self.at), wanted })
    }

    pub fn required_size(&self, key: &str) -> Result<u32, Error> {
        self.required(key, self.size(key)?, "a whole number")
    }

    /// Returns the error that the value of `key`, which exists, is not `wanted`.
    pub fn bad(&self, key: &str, wanted: &'static str) -> Error {
        let found = self.map.get(key).unwrap_or(&Value::Null).to_string();
        // A value may be a whole object: enough of it to be recognized.
        let found = crate::base::display::shorten(&found, 60);
        Error::BadValue { key: format!("{}{key}", self.at), found, wanted }
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.bad(key, wanted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn reads_sizes_however_they_are_written() {
        let map = map(r#"{"a": 4096, "b": 4096.0, "c": null, "d": 2147483647}"#);
        let config = Config::new(&map);
        assert_eq!(config.size("a").unwrap(), Some(4096));
        assert_eq!(config.size("b").unwrap(), Some(4096));
        assert_eq!(config.size("c").unwrap(), None);
        assert_eq!(config.size("d").unwrap(), Some(2147483647));
        assert_eq!(config.size("absent").unwrap(), None);
    }

    #[test]
    fn refuses_values_that_are_not_sizes_and_says_what_it_found() {
        for found in ["0", "-1", "2147483648", "1e300", "0.5", "\"4096\"", "[1]", "true", "18446744073709551616"] {
            let map = map(&format!(r#"{{"hidden_size": {found}}}"#));
            let error = Config::new(&map).size("hidden_size").unwrap_err();
            let start = "config.json: 'hidden_size' is ";
            assert!(error.to_string().starts_with(start), "{error}");
            assert!(error.to_string().ends_with("; wanted a whole number from 1 to 2147483647"), "{error}");
        }
    }

    #[test]
    fn a_number_must_survive_as_a_32_bit_float() {
        for found in ["1e-50", "1e39", "0", "-1e-5"] {
            let map = map(&format!(r#"{{"eps": {found}}}"#));
            assert!(Config::new(&map).number("eps", 0.0, "a number above 0").is_err(), "{found}");
        }
        let map = map(r#"{"eps": 1e-6}"#);
        assert_eq!(Config::new(&map).number("eps", 0.0, "").unwrap(), Some(1e-6));
    }

    #[test]
    fn cuts_long_values_in_messages() {
        let map = map(&format!(r#"{{"a": "{}"}}"#, "易".repeat(100)));
        let message = Config::new(&map).size("a").unwrap_err().to_string();
        assert!(message.contains("易易... (102 characters); wanted"), "{message}");
        assert!(message.chars().count() < 150, "{message}");
    }
}
