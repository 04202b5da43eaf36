//! CMMLU: Chinese questions on 67 subjects, as published (<https://github.com/haonan-li/CMMLU>): one CSV file per
//! subject, named after the subject.
//!
//! ```text
//! ,Question,A,B,C,D,Answer
//!
//! 以下是关于农学的单项选择题，请直接给出正确答案的选项。
//!
//! (examples, and the question as for C-Eval)
//! ```

use super::source::Source;
use super::{Error, Format, Parsed, Score, Scored, ceval, letters, subject, subjects};

pub(super) static FORMAT: Format = Format {
    name: "cmmlu",
    about: "CMMLU as published (CSV, a file a subject)",
    usual_shots: 5,
    scores: &[Score::Accuracy],
    scored: Scored::Choice,
    looks_right: |source| letters::has_headings(source, "Question") && letters::is_chinese(source),
    parse,
};

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let subject = subjects::in_chinese(subjects::CMMLU, &subject(source.path()));
    let heading = format!("以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n");
    Ok(Parsed { heading, questions: ceval::questions(source)?, ..Parsed::default() })
}
