//! What `/set` changes: how tokens are drawn, and what is shown.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::near;
use crate::sample::{Params, Sampler};

/// The settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How tokens are drawn.
    pub params: Params,
    /// Tokens an answer has at most.
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

/// What a setting is called, and what it does.
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// The settings there are.
pub const KNOWN: [Known; 8] = [
    Known { name: "temperature", help: "above 1 is more surprising, below 1 less; 0 is always the most likely token" },
    Known { name: "top_k", help: "choose among so many of the most likely tokens; 0 among all" },
    Known { name: "top_p", help: "choose among the most likely tokens of this share; 1 among all" },
    Known { name: "min_p", help: "choose among tokens at least this likely, relative to the first; 0 among all" },
    Known { name: "seed", help: "begin the random numbers here; 'new' for others every time" },
    Known { name: "max_tokens", help: "tokens an answer has at most; 'none' for no limit" },
    Known { name: "stats", help: "show the speed after each answer: 'on' or 'off'" },
    Known { name: "wrap", help: "break the lines of answers between words: 'on' or 'off'" },
];

impl Settings {
    /// The value of a setting, as `/set` would take it.
    pub fn get(&self, name: &str) -> Option<String> {
        let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_string());
        let on = |on: bool| if on { "on" } else { "off" }.to_string();
        let params = &self.params;
        Some(match name {
            "temperature" => params.temperature.to_string(),
            "top_k" => params.top_k.to_string(),
            "top_p" => params.top_p.to_string(),
            "min_p" => params.min_p.to_string(),
            "seed" => or(params.seed.map(|n| n.to_string()), "new"),
            "max_tokens" => or(self.max_tokens.map(|n| n.to_string()), "none"),
            "stats" => on(self.stats),
            "wrap" => on(self.wrap),
            _ => return None,
        })
    }

    /// Changes a setting; nothing where the value is refused.
    ///
    /// # Errors
    /// A sentence, where there is no such setting, or it cannot have that value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let mut changed = self.clone();
        // The command line's spelling is understood as well.
        let name = match name.trim_start_matches('-').replace('-', "_") {
            short if short == "temp" => "temperature".to_string(),
            name => name,
        };
        match name.as_str() {
            "temperature" => changed.params.temperature = number(&name, value, "a number")?,
            "top_k" => changed.params.top_k = number(&name, value, "a whole number")?,
            "top_p" => changed.params.top_p = number(&name, value, "a number")?,
            "min_p" => changed.params.min_p = number(&name, value, "a number")?,
            "seed" if value == "new" => changed.params.seed = None,
            "seed" => changed.params.seed = Some(number(&name, value, "a whole number, or 'new'")?),
            "max_tokens" if value == "none" => changed.max_tokens = None,
            "max_tokens" => match number(&name, value, "a whole number, or 'none'")? {
                0 => return Err("max_tokens is 0; it has to be 1 or more, or 'none'".to_string()),
                n => changed.max_tokens = Some(n),
            },
            "stats" => changed.stats = switch(&name, value)?,
            "wrap" => changed.wrap = switch(&name, value)?,
            _ => return Err(unknown(&name)),
        }
        // Whatever it refuses for reasons of its own.
        Sampler::new(&changed.params).map_err(|e| e.to_string())?;
        *self = changed;
        Ok(())
    }

    /// Whether the same answer comes every time.
    pub fn is_greedy(&self) -> bool {
        self.params.temperature == 0.0
    }

    /// Those that a saved conversation keeps.
    pub fn to_json(&self) -> Map<String, Value> {
        let kept = KNOWN.iter().filter(|known| !matches!(known.name, "stats" | "wrap"));
        kept.filter_map(|Known { name, .. }| {
            let text = self.get(name)?;
            // Numbers as they are typed: 0.8, and not the 0.800000011920929 that an f32 is.
            let value = serde_json::from_str(&text).unwrap_or(Value::Null);
            Some(((*name).to_string(), value))
        })
        .collect()
    }
}

fn number<T: FromStr>(name: &str, value: &str, wanted: impl Display) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} is '{value}'; it has to be {wanted}"))
}

fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{name} is '{value}'; it has to be 'on' or 'off'")),
    }
}

/// There is no such setting.
fn unknown(name: &str) -> String {
    let near: Vec<String> = near::near(name, KNOWN.iter().map(|k| k.name)).into_iter().map(str::to_string).collect();
    match near::question(&near) {
        Some(question) => format!("there is no setting '{name}'; {question}"),
        None => format!("there is no setting '{name}'; /set lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_takes_the_value_it_shows() {
        let mut settings = Settings::default();
        for Known { name, help } in &KNOWN {
            let value = settings.get(name).unwrap();
            settings.set(name, &value).unwrap();
            assert_eq!(settings.get(name).unwrap(), value);
            assert!(name.len() + help.len() < 100);
        }
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
        ] {
            settings.set(name, value).unwrap();
            assert_eq!(settings.get(name).unwrap(), value);
        }
        settings.set("--top-k", "9").unwrap();
        settings.set("temp", "0").unwrap();
        assert!(settings.params.top_k == 9 && settings.is_greedy());
        assert_eq!(
            Value::Object(settings.to_json()).to_string(),
            r#"{"temperature":0,"top_k":9,"top_p":0.9,"min_p":0.1,"seed":7,"max_tokens":9}"#
        );
    }

    #[test]
    fn a_value_that_is_refused_changes_nothing() {
        let mut settings = Settings::default();
        for (name, value, wanted) in [
            ("temperature", "hot", "temperature is 'hot'; it has to be a number"),
            ("temperature", "-1", "temperature is -1; it has to be 0 or more"),
            ("temperature", "NaN", "it has to be"),
            ("top_k", "1.5", "top_k is '1.5'; it has to be a whole number"),
            ("top_p", "0", "top-p is 0; it has to be above 0"),
            ("max_tokens", "0", "max_tokens is 0"),
            ("stats", "maybe", "it has to be 'on' or 'off'"),
            ("temprature", "1", "there is no setting 'temprature'; did you mean temperature?"),
            ("colour", "1", "there is no setting 'colour'; /set lists them"),
        ] {
            let error = settings.set(name, value).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(settings.params, Params::default());
    }
}
