//! C-Eval: Chinese questions on 52 subjects, as published (<https://github.com/hkust-nlp/ceval>): one CSV file per
//! subject, named after the subject.
//!
//! ```text
//! id,question,A,B,C,D,answer,explanation       without answer in the test part, without explanation in the val part
//!
//! 以下是中国关于会计学的单项选择题，请选出其中的正确答案。
//!
//! (examples)
//! 下列...
//! A. ...
//! B. ...
//! C. ...
//! D. ...
//! 答案：              the choices are the letters
//! ```

use super::source::{Row, Source};
use super::{Error, Format, Parsed, Question, Score, Scored, letters, subject, subjects};

pub(super) static FORMAT: Format = Format {
    name: "ceval",
    about: "C-Eval as published (CSV, a file a subject)",
    usual_shots: 5,
    scores: &[Score::Accuracy],
    scored: Scored::Choice,
    // MMLU's files have the same headings where somebody added some.
    looks_right: |source| letters::has_headings(source, "question") && letters::is_chinese(source),
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let subject = subjects::in_chinese(subjects::CEVAL, &subject(source.path()));
    let heading = format!("以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n");
    Ok(Parsed { heading, questions: questions(source)?, ..Parsed::default() })
}

/// Returns the questions of a file that has columns for the question, its answers A to D, and the right answer.
pub(super) fn questions(source: &Source<'_>) -> Result<Vec<Question>, Error> {
    let rows = source.rows()?;
    let Some((headings, rows)) = rows.split_first() else { return Ok(Vec::new()) };
    let [question, a, b, c, d] = headings.columns(["question", "A", "B", "C", "D"])?;
    let [answer] = headings.columns(["answer"]).map_err(|_| {
        headings.fails("there is no column 'answer'; the test part is published without answers, so take the val part")
    })?;
    let read = |row: &Row<'_>| {
        let right = letters::place(row.field(answer)).ok_or_else(|| {
            let shown: String = row.field(answer).chars().take(40).collect();
            row.fails(format!("the answer has to be A, B, C or D, but is '{shown}'"))
        })?;
        let answers = [a, b, c, d].map(|column| row.field(column));
        Ok(letters::question(row.line, row.field(question), answers, right, "答案："))
    };
    rows.iter().map(read).collect()
}
