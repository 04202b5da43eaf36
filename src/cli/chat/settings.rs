//! The settings that `/set` changes: how tokens are sampled, and what is shown.

use serde_json::{Map, Value};

use crate::base::suggest;
use crate::sample::{self, Params};

/// The settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How tokens are sampled.
    pub params: Params,
    /// The most tokens in an answer.
    pub max_tokens: Option<usize>,
    /// Show the speed after each answer.
    pub stats: bool,
    /// Break the lines of answers between words.
    pub wrap: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { params: Params::default(), max_tokens: None, stats: false, wrap: true }
    }
}

/// Why a setting cannot be changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is no setting of this name.
    #[error("there is no setting '{name}'")]
    Unknown {
        /// The name that was typed.
        name: String,
        /// The nearest names.
        near: Vec<&'static str>,
    },
    /// The setting does not take this value.
    #[error("{name} cannot be '{value}'; it has to be {wanted}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value that was typed.
        value: String,
        /// The values that it takes.
        wanted: &'static str,
    },
    /// A parameter of the sampler does not take this value.
    #[error(transparent)]
    Parameter(#[from] sample::Error),
}

/// A setting's name and help.
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// The settings besides the sampler's parameters.
const OWN: [Known; 3] = [
    Known { name: "max_tokens", help: "Tokens an answer has at most; 'none' for no limit" },
    Known { name: "stats", help: "Show the speed after each answer: 'on' or 'off'" },
    Known { name: "wrap", help: "Break the lines of answers between words: 'on' or 'off'" },
];

/// Returns the settings that most people need, with what they do.
pub fn known() -> impl Iterator<Item = Known> {
    let common = Params::parameters().filter(|parameter| parameter.common.is_some());
    common.map(|parameter| Known { name: parameter.name, help: parameter.help }).chain(OWN)
}

/// Returns the names of the parameters that [`known`] leaves out.
pub fn others() -> impl Iterator<Item = &'static str> {
    Params::parameters().filter(|parameter| parameter.common.is_none()).map(|parameter| parameter.name)
}

/// The names of all settings.
pub fn names() -> impl Iterator<Item = &'static str> {
    known().map(|known| known.name).chain(others())
}

impl Settings {
    /// Returns the value of a setting, in the form that `/set` takes.
    pub fn get(&self, name: &str) -> Option<String> {
        let on = |on: bool| if on { "on" } else { "off" }.to_string();
        Some(match name {
            "max_tokens" => self.max_tokens.map_or("none".to_string(), |n| n.to_string()),
            "stats" => on(self.stats),
            "wrap" => on(self.wrap),
            name => return self.params.get(name).ok(),
        })
    }

    /// Changes a setting. Changes nothing if the value is refused.
    ///
    /// # Errors
    /// If there is no such setting, or the value is outside its range.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        // The command line's spelling is understood as well.
        let name = name.trim_start_matches('-').replace('-', "_");
        match name.as_str() {
            "max_tokens" if value == "none" => self.max_tokens = None,
            "max_tokens" => match value.parse() {
                Ok(n) if n > 0 => self.max_tokens = Some(n),
                _ => return Err(refused("max_tokens", value, "1 or more, or 'none'")),
            },
            "stats" => self.stats = switch("stats", value)?,
            "wrap" => self.wrap = switch("wrap", value)?,
            _ => match self.params.set(&name, value) {
                Err(sample::Error::Unknown { what: "parameter", .. }) => return Err(unknown(&name)),
                done => done?,
            },
        }
        Ok(())
    }

    /// Returns whether every answer to the same conversation is the same.
    pub fn is_greedy(&self) -> bool {
        self.params.temperature.value == 0.0
    }

    /// Returns what a saved conversation keeps: the settings that [`known`] lists, and the others that are not at their
    /// defaults.
    pub fn to_json(&self) -> Map<String, Value> {
        let default = Self::default();
        let kept = names().filter(|name| !matches!(*name, "stats" | "wrap"));
        let kept = kept.filter(|name| known().any(|known| known.name == *name) || self.get(name) != default.get(name));
        kept.filter_map(|name| {
            let text = self.get(name)?;
            // Numbers as they are typed: 0.8, and not the 0.800000011920929 that an f32 is.
            let value = serde_json::from_str(&text).unwrap_or(match text.as_str() {
                "none" | "random" => Value::Null,
                _ => Value::String(text),
            });
            Some((name.to_string(), value))
        })
        .collect()
    }
}

fn refused(name: &'static str, value: &str, wanted: &'static str) -> Error {
    Error::Value { name, value: value.to_string(), wanted }
}

fn switch(name: &'static str, value: &str) -> Result<bool, Error> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(refused(name, value, "'on' or 'off'")),
    }
}

fn unknown(name: &str) -> Error {
    Error::Unknown { name: name.to_string(), near: suggest::suggest(name, names()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_takes_the_value_it_shows() {
        let mut settings = Settings::default();
        for name in names() {
            let value = settings.get(name).unwrap();
            settings.set(name, &value).unwrap();
            assert_eq!(settings.get(name).unwrap(), value);
        }
        assert!(known().all(|Known { name, help }| name.len() + help.len() < 100));
        assert_eq!(settings.params, Params::default());
        for (name, value) in [
            ("temperature", "0.5"),
            ("top_k", "7"),
            ("top_p", "0.9"),
            ("min_p", "0.1"),
            ("seed", "7"),
            ("max_tokens", "9"),
            ("stats", "on"),
            ("wrap", "off"),
            ("xtc_probability", "0.5"),
        ] {
            settings.set(name, value).unwrap();
            assert_eq!(settings.get(name).unwrap(), value);
        }
        settings.set("--top-k", "9").unwrap();
        settings.set("temp", "0").unwrap();
        assert!(settings.params.top_k == 9 && settings.is_greedy());
        assert_eq!(
            Value::Object(settings.to_json()).to_string(),
            r#"{"temperature":0,"top_k":9,"top_p":0.9,"min_p":0.1,"seed":7,"max_tokens":9,"xtc_probability":0.5}"#
        );
    }

    #[test]
    fn a_value_that_is_refused_changes_nothing() {
        let mut settings = Settings::default();
        for (name, value, wanted) in [
            ("temperature", "hot", "temperature cannot be 'hot'; it has to be a number of 0 or more"),
            ("temperature", "-1", "temperature cannot be '-1'; it has to be"),
            ("temperature", "NaN", "it has to be"),
            ("top_k", "1.5", "top_k cannot be '1.5'; it has to be a whole number"),
            ("top_p", "2", "top_p cannot be '2'; it has to be a number from 0 to 1"),
            ("samplers", "top_k;top_q", "no sampler 'top_q'"),
            ("max_tokens", "0", "max_tokens cannot be '0'"),
            ("stats", "maybe", "it has to be 'on' or 'off'"),
            ("temprature", "1", "there is no setting 'temprature'"),
            ("colour", "1", "there is no setting 'colour'"),
        ] {
            let error = settings.set(name, value).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let near = |name: &str| match settings.clone().set(name, "1").unwrap_err() {
            Error::Unknown { near, .. } => near,
            error => panic!("{error}"),
        };
        assert_eq!(near("temprature"), ["temperature"]);
        assert!(near("colour").is_empty());
        assert_eq!(settings.params, Params::default());
    }
}
