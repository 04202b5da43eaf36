//! HellaSwag as llama-perplexity reads it: six lines a question.
//!
//! ```text
//! Roof: A man sits on a roof. he       what happens
//! 3                                    the right ending, counted from 0
//! (four endings, a line each)
//! ```
//!
//! Scored as llama-perplexity's `--hellaswag` does (`tools/perplexity/perplexity.cpp`): each ending follows the context
//! and a space; the first token in which the four texts differ is where scoring begins; the ending with the highest mean
//! log-probability of a token is taken. It calls that `acc_norm`, and so does [`Score::AccuracyNormalised`]; it is not
//! the same as for the published file, which divides by characters. llama-perplexity asks questions in a random order,
//! which makes no difference once all are asked.

use super::source::Source;
use super::{Error, Format, Parsed, Question, Score, Scored};

pub(super) static FORMAT: Format = Format {
    name: "hellaswag-text",
    about: "HellaSwag as llama-perplexity reads it (six lines a question)",
    usual_shots: 0,
    scores: &[Score::AccuracyNormalised, Score::Accuracy],
    scored: Scored::Difference,
    looks_right: |source| {
        let first: Vec<&str> = source.text().lines().take(6).collect();
        first.len() == 6 && matches!(first[1].trim(), "0" | "1" | "2" | "3") && !first[0].trim_start().starts_with('{')
    },
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let lines: Vec<&str> = source.text().trim_end().lines().collect();
    let mut questions = Vec::new();
    for (line, question) in (1..).step_by(6).zip(lines.chunks(6)) {
        let &[context, label, a, b, c, d] = question else {
            let what = format!("a question has six lines, and the last one here has {}", question.len());
            return Err(source.fails_at(line, what));
        };
        let right = label.trim().parse().ok().filter(|right| *right < 4).ok_or_else(|| {
            let shown: String = label.chars().take(40).collect();
            source.fails_at(line + 1, format!("the right ending is to be 0, 1, 2 or 3, and is '{shown}'"))
        })?;
        questions.push(Question::pick(line, context, [a, b, c, d], &[right]));
    }
    Ok(Parsed { questions, ..Parsed::default() })
}
