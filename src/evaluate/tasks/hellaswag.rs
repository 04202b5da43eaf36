//! HellaSwag: which of four endings continues a situation, as published in `hellaswag_val.jsonl`
//! (<https://github.com/rowanz/hellaswag>), and as Hugging Face exports it.
//!
//! ```text
//! {"ctx_a": "A man sits on a roof.", "ctx_b": "he", "activity_label": "Roof", "endings": [...], "label": 3}
//!
//! Roof: A man sits on a roof. He        the choices are ' ' and an ending
//! ```
//!
//! In all texts, ` [title]` becomes a full stop, other marks in brackets (they come from WikiHow) are removed, and two
//! spaces become one. `ctx_b` gets a capital letter at its beginning and none elsewhere.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::source::Source;
use super::{Error, Format, Parsed, Question, Score, Scored};

pub(super) static FORMAT: Format = Format {
    name: "hellaswag",
    about: "HellaSwag as published (JSON lines)",
    usual_shots: 0,
    scores: &[Score::AccuracyNormalised, Score::Accuracy],
    scored: Scored::Choice,
    looks_right: |source| {
        let has = |key: &str| source.first_object().is_some_and(|first| first.contains_key(key));
        has("endings") && has("ctx_a")
    },
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut questions = Vec::new();
    for object in source.objects()? {
        let label = object.text_or_number("label").ok_or_else(|| {
            object.fails("there is no 'label'; the test part is published without answers, so take the validation part")
        })?;
        let endings = object.texts("endings")?;
        let right = label.parse().ok().filter(|right| *right < endings.len()).ok_or_else(|| {
            object.fails(format!("'label' is {label}, but there are {} endings, counted from 0", endings.len()))
        })?;
        let context = format!("{} {}", object.text("ctx_a")?, capitalised(object.text("ctx_b")?));
        let context = clean(&format!("{}: {context}", object.text("activity_label")?));
        questions.push(Question::pick(object.line, &context, endings.into_iter().map(clean), &[right]));
    }
    Ok(Parsed { questions, ..Parsed::default() })
}

/// Does the same as Python's `str.capitalize`.
fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
    first + &rest.as_str().to_lowercase()
}

fn clean(text: &str) -> String {
    static MARKS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[.*?\]").ok());
    let text = text.trim().replace(" [title]", ". ");
    let text = MARKS.as_ref().map_or(Cow::Borrowed(text.as_str()), |marks| marks.replace_all(&text, ""));
    text.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cleaned_as_the_harness_does() {
        assert_eq!(clean(" How to cook [title] Boil [step] water.  Wait. "), "How to cook. Boil water. Wait.");
        assert_eq!(clean("[header] a [b] [c"), " a [c");
        assert_eq!(capitalised("he Talks to É"), "He talks to é");
        assert_eq!(capitalised(""), "");
    }
}
