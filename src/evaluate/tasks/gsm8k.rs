//! GSM8K: arithmetic word problems, as published (<https://github.com/openai/grade-school-math>). The model writes out
//! its solution, which ends with a number.
//!
//! ```text
//! {"question": "...", "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n...\n#### 72"}
//!
//! Question: ...
//! Answer:                 always the most likely token, up to 256, until 'Question:', '</s>' or '<|im_end|>'
//! ```
//!
//! Numbers are compared without commas, dollar signs and a full stop at the end.

use std::sync::LazyLock;

use regex::Regex;

use super::source::Source;
use super::{Ask, Error, Format, Parsed, Question, Score, Scored};

pub(super) static FORMAT: Format = Format {
    name: "gsm8k",
    about: "GSM8K as published (JSON lines); answers are written, not chosen",
    usual_shots: 5,
    scores: &[Score::ExactMatch, Score::ExactMatchStrict],
    scored: Scored::Choice,
    looks_right: |source| {
        let first = source.first_object().unwrap_or_default();
        let answer = first.get("answer").and_then(|answer| answer.as_str());
        first.contains_key("question") && answer.is_some_and(|answer| answer.contains("#### "))
    },
    parse,
};

/// The most tokens that the model writes.
pub(super) const MAX_TOKENS: usize = 256;
/// Texts that stop it.
pub(super) const STOP: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut questions = Vec::new();
    for object in source.objects()? {
        let answer = object.text("answer")?;
        let (_, number) = answer
            .rsplit_once("#### ")
            .ok_or_else(|| object.fails("there is no number after '#### ' at the end of 'answer'"))?;
        let prompt = format!("Question: {}\nAnswer:", object.text("question")?);
        let example = format!("{prompt} {answer}");
        let ask = Ask::Write { prompt, answer: plain(number) };
        questions.push(Question { index: 0, line: object.line, ask, example });
    }
    Ok(Parsed { questions, ..Parsed::default() })
}

/// Returns the last number in a text.
pub(super) fn last_number(text: &str) -> Option<String> {
    static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"-?[$0-9.,]{2,}|-?[0-9]+").ok());
    NUMBER.as_ref()?.find_iter(text).last().map(|found| plain(found.as_str()))
}

/// Returns the first number in a text that is marked as the answer.
pub(super) fn marked_number(text: &str) -> Option<String> {
    static MARKED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"#### (-?[0-9.,]+)").ok());
    Some(plain(MARKED.as_ref()?.captures(text)?.get(1)?.as_str()))
}

/// Returns a number in the form in which it is compared.
fn plain(number: &str) -> String {
    let bare: String = number.trim().chars().filter(|c| !matches!(c, ',' | '$')).collect();
    bare.strip_suffix('.').unwrap_or(&bare).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_as_the_harness_finds_them() {
        assert_eq!(last_number("She pays $1,200.50 for 3 cups.").as_deref(), Some("3"));
        assert_eq!(last_number("It is $1,200.").as_deref(), Some("1200"));
        assert_eq!(last_number("5 - 7 is -2").as_deref(), Some("-2"));
        assert_eq!(last_number("#### 72\n").as_deref(), Some("72"));
        assert_eq!(last_number("no number"), None);
        assert_eq!(marked_number("so 5\n#### 1,234 clips, or 9").as_deref(), Some("1234"));
        assert_eq!(marked_number("#### 12.\n").as_deref(), Some("12"));
        assert_eq!(marked_number("####72"), None);
    }
}
