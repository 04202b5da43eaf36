//! MMLU: questions on 57 school and university subjects, as published (<https://github.com/hendrycks/test>): one CSV
//! file without headings per subject, named after the subject.
//!
//! ```text
//! question,A,B,C,D,answer
//!
//! The following are multiple choice questions (with answers) about abstract algebra.
//!
//! (examples)
//! Find all c ...
//! A. 0
//! B. 1
//! C. 2
//! D. 3
//! Answer:              the choices are the letters
//! ```

use super::source::Source;
use super::{Error, Format, Parsed, Score, Scored, letters, subject};

pub(super) static FORMAT: Format = Format {
    name: "mmlu",
    about: "MMLU as published (CSV without headings, a file a subject)",
    usual_shots: 5,
    scores: &[Score::Accuracy],
    scored: Scored::Choice,
    looks_right: |source| source.first_row().is_some_and(|row| row.len() == 6 && letters::place(&row[5]).is_some()),
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut questions = Vec::new();
    for row in source.rows()? {
        if row.len() != 6 {
            let what = "a row has six fields (question, four answers, letter), but this one has";
            return Err(row.fails(format!("{what} {}", row.len())));
        }
        let right = letters::place(row.field(5)).ok_or_else(|| {
            let shown: String = row.field(5).chars().take(40).collect();
            row.fails(format!("the last field has to be A, B, C or D, but is '{shown}'"))
        })?;
        let answers = [row.field(1), row.field(2), row.field(3), row.field(4)];
        questions.push(letters::question(row.line, row.field(0), answers, right, "Answer:"));
    }
    let subject = subject(source.path()).replace('_', " ");
    let heading = format!("The following are multiple choice questions (with answers) about {subject}.\n\n");
    Ok(Parsed { heading, questions, ..Parsed::default() })
}
