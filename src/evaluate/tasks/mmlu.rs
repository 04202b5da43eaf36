//! MMLU: questions on 57 school and university subjects, as published (<https://github.com/hendrycks/test>): one CSV
//! file without headings per subject, named after the subject. Copies with a row of headings are read, too.
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
    about: "MMLU as published (CSV, a file a subject)",
    usual_shots: 5,
    scores: &[Score::Accuracy],
    scored: Scored::Choice,
    looks_right: |source| {
        let is_row = |row: Vec<String>| row.len() == 6 && letters::place(&row[5]).is_some();
        source.first_row().is_some_and(is_row)
            || ["question", "Question"].iter().any(|name| letters::has_headings(source, name))
                && !letters::is_chinese(source)
    },
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut questions = Vec::new();
    let mut rows = source.rows()?;
    // Named columns may come in another order, and with others between them.
    let named = match rows.first() {
        Some(first) if first.columns(["question", "A", "B", "C", "D"]).is_ok() => {
            Some(first.columns(["question", "A", "B", "C", "D", "answer"])?)
        }
        _ => None,
    };
    let [ask, a, b, c, d, answer] = named.unwrap_or([0, 1, 2, 3, 4, 5]);
    if named.is_some() {
        rows.remove(0);
    }
    for row in rows {
        if named.is_none() && row.len() != 6 {
            let what = "a row has six fields (question, four answers, letter), but this one has";
            return Err(row.fails(format!("{what} {}", row.len())));
        }
        let right = letters::place(row.field(answer)).ok_or_else(|| {
            let shown: String = row.field(answer).chars().take(40).collect();
            let which = if named.is_some() { "the answer" } else { "the last field" };
            row.fails(format!("{which} has to be A, B, C or D, but is '{shown}'"))
        })?;
        let answers = [a, b, c, d].map(|column| row.field(column));
        questions.push(letters::question(row.line, row.field(ask), answers, right, "Answer:"));
    }
    let subject = subject(source.path()).replace('_', " ");
    let heading = format!("The following are multiple choice questions (with answers) about {subject}.\n\n");
    Ok(Parsed { heading, questions, ..Parsed::default() })
}
