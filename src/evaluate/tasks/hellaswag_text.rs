//! HellaSwag as llama-perplexity reads it: six lines per question.
//!
//! ```text
//! Roof: A man sits on a roof. he       what happens
//! 3                                    the right ending, counted from 0
//! (four endings, a line each)
//! ```
//!
//! It is scored as llama-perplexity's `--hellaswag` does (`tools/perplexity/perplexity.cpp`). Each ending follows the
//! context and a space. Scoring begins at the first token in which the four texts differ. The model chooses the ending
//! with the highest mean log-probability per token. llama-perplexity calls this `acc_norm`, and it is reported as
//! [`Score::AccuracyNormalised`] here, but it differs from the score for the published file, which divides by
//! characters. llama-perplexity asks the questions in a random order, which makes no difference once all are asked.

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
            let what = format!("a question has six lines, but the last one here has {}", question.len());
            return Err(source.fails_at(line, what));
        };
        let right = label.trim().parse().ok().filter(|right| *right < 4).ok_or_else(|| {
            let shown: String = label.chars().take(40).collect();
            source.fails_at(line + 1, format!("the right ending has to be 0, 1, 2 or 3, but is '{shown}'"))
        })?;
        questions.push(Question::pick(line, context, [a, b, c, d], &[right]));
    }
    Ok(Parsed { questions, ..Parsed::default() })
}
