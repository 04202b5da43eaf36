//! The texts that a model is calibrated with: files, and the ones that nibble brings along.
//!
//! The built-in texts were written for nibble and have no other source. There is one of each kind that a model of English and
//! Chinese is used for. Each has a second part that is never calibrated with: predictions are compared on it.
//!
//! | name      | `quant-tables/calibration`, `quant-tables/held-out`                     | tokens of Yi, both parts |
//! |-----------|-------------------------------------------------------------------------|--------------------------|
//! | `english` | articles, news, fiction, a play, letters, law, science, tables, verse   | 4,340 and 1,042          |
//! | `chinese` | the same, modern and classical, with a few lines in traditional script  | 4,142 and 1,044          |
//! | `code`    | Rust, Python, C, shell, SQL, JavaScript, Go, Java, data, logs, patches  | 4,402 and 1,363          |
//! | `chat`    | conversations in both languages, with the markers of ChatML             | 4,157 and 1,105          |
//!
//! The markers, such as `<|im_start|>`, are control tokens where the vocabulary has them, and plain text where it does not.

use std::fmt;
use std::path::PathBuf;

/// A text that nibble brings along.
#[derive(Debug, PartialEq, Eq)]
pub struct BuiltInText {
    /// Its name.
    pub name: &'static str,
    /// What is calibrated with.
    pub text: &'static str,
    /// What never is.
    pub held_out: &'static str,
}

macro_rules! built_in {
    ($name:literal) => {
        BuiltInText {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/quant-tables/calibration/", $name, ".txt")),
            held_out: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/quant-tables/held-out/", $name, ".txt")),
        }
    };
}

/// All of them.
pub static BUILT_IN: [BuiltInText; 4] =
    [built_in!("english"), built_in!("chinese"), built_in!("code"), built_in!("chat")];

/// Where a text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// A file in UTF-8.
    File(PathBuf),
    /// The first part of a built-in one.
    BuiltIn(&'static BuiltInText),
}

impl Text {
    /// Returns the built-in texts.
    pub fn built_in() -> Vec<Self> {
        BUILT_IN.iter().map(Self::BuiltIn).collect()
    }

    /// Returns what messages and results call it: the path of a file, or words for a built-in text.
    pub fn label(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::BuiltIn(text) => text.label(),
        }
    }
}

impl BuiltInText {
    /// Returns what messages and results call it.
    pub fn label(&self) -> PathBuf {
        format!("built-in {}", self.name).into()
    }
}

impl From<PathBuf> for Text {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label().display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn built_in_texts_repeat_nothing_and_hold_out_what_they_say() {
        let mut seen: HashMap<&str, String> = HashMap::new();
        for BuiltInText { name, text, held_out } in &BUILT_IN {
            assert!(text.len() > 10_000 && held_out.len() > 3000, "{name}");
            for (part, text) in [("text", text), ("held out", held_out)] {
                assert!(!text.contains(['\r', '\u{feff}', '\u{fffd}']) && text.ends_with('\n'), "{name}");
                // Shorter lines are the grammar of a language more than its content.
                for line in text.lines().map(str::trim).filter(|line| line.chars().count() > 50) {
                    let place = format!("{name}, {part}");
                    if let Some(before) = seen.insert(line, place.clone()) {
                        panic!("'{line}' is in {before} and in {place}");
                    }
                }
            }
        }
    }

    #[test]
    fn built_in_texts_have_what_they_are_named_after() {
        let [english, chinese, code, chat] = &BUILT_IN;
        let han = |text: &str| {
            let is_han = |c: &char| ('\u{4e00}'..='\u{9fff}').contains(c);
            text.chars().filter(is_han).count() as f64 / text.chars().count() as f64
        };
        for text in [english.text, english.held_out] {
            assert!(han(text) == 0.0);
        }
        for text in [chinese.text, chinese.held_out] {
            assert!(han(text) > 0.7);
        }
        for text in [code.text, code.held_out] {
            assert!(text.matches("```").count().is_multiple_of(2) && text.matches("```").count() >= 16);
        }
        for text in [chat.text, chat.held_out] {
            let (starts, ends) = (text.matches("<|im_start|>").count(), text.matches("<|im_end|>").count());
            assert!(starts == ends && starts > 20 && (0.08..0.5).contains(&han(text)));
            let roles: HashSet<&str> =
                text.split("<|im_start|>").skip(1).filter_map(|turn| turn.split('\n').next()).collect();
            assert_eq!(roles, HashSet::from(["system", "user", "assistant"]));
        }
    }
}
