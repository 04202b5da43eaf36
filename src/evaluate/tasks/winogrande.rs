//! WinoGrande: which of two words fits a gap, as published (<https://github.com/allenai/winogrande>).
//!
//! ```text
//! {"sentence": "The cup did not fit the box as the _ was too large.", "option1": "cup", "option2": "box", "answer": "1"}
//!
//! The cup did not fit the box as the cup        ┐  ' was too large.' is scored after each of the two
//! The cup did not fit the box as the box        ┘
//! ```
//!
//! The score is the likelihood of the text after the gap, which is the same for both words. The likelihood of the words
//! themselves would not show whether they fit.

use super::source::Source;
use super::{Choice, Error, Format, Parsed, Question, Score, Scored};

pub(super) static FORMAT: Format = Format {
    name: "winogrande",
    about: "WinoGrande as published (JSON lines)",
    usual_shots: 0,
    scores: &[Score::Accuracy],
    scored: Scored::Choice,
    looks_right: |source| {
        let has = |key: &str| source.first_object().is_some_and(|first| first.contains_key(key));
        has("sentence") && has("option1") && has("option2")
    },
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut questions = Vec::new();
    for object in source.objects()? {
        let answer = object.text_or_number("answer").ok_or_else(|| {
            object.fails("there is no 'answer'; the test part is published without answers, so take the dev part")
        })?;
        let right = match answer.as_str() {
            "1" => 0,
            "2" => 1,
            _ => return Err(object.fails(format!("'answer' is {answer}, but has to be 1 or 2"))),
        };
        let (before, after) = object
            .text("sentence")?
            .split_once('_')
            .ok_or_else(|| object.fails("there is no gap ('_') in the sentence"))?;
        let after = after.trim();
        if after.is_empty() {
            return Err(object.fails("nothing follows the gap, so nothing can be scored"));
        }
        let options = [object.text("option1")?, object.text("option2")?];
        let choices = options.iter().enumerate();
        let choices = choices.map(|(i, option)| Choice::new(&format!("{before}{option}"), after, i == right)).collect();
        questions.push(Question::choose(object.line, choices));
    }
    Ok(Parsed { questions, ..Parsed::default() })
}
