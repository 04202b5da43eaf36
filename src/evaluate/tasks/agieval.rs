//! AGIEval: questions from entrance examinations (Gaokao, SAT, LSAT and others), as published
//! (<https://github.com/ruixiangcui/AGIEval>).
//!
//! ```text
//! {"passage": null, "question": "...", "options": ["(A)...", "(B)...", ...], "label": "B", "answer": null}
//!
//! 问题：... 选项：(A)... (B)... (C)... (D)...
//! 答案：从A到D, 我们应选择                       Chinese      the choices are ' ' and an option with its letter
//!
//! (passage)Q: ... Answer Choices: (A)... (B)...
//! A: Among A through D, the answer is           English
//! ```
//!
//! A question counts as Chinese if it has Chinese characters in its text or its options. If a question has several
//! right options, any of them is right. Questions without options are open questions, and are left out.

use super::source::{Object, Source, texts};
use super::{Error, Format, Parsed, Question, Score, Scored};

pub(super) static FORMAT: Format = Format {
    name: "agieval",
    about: "AGIEval, with the Gaokao, as published (JSON lines)",
    usual_shots: 0,
    scores: &[Score::Accuracy, Score::AccuracyNormalised],
    scored: Scored::Choice,
    looks_right: |source| {
        let has = |key: &str| source.first_object().is_some_and(|first| first.contains_key(key));
        has("question") && has("options") && has("label")
    },
    parse,
};

const LETTERS: &str = "ABCDEFGHIJ";

fn parse(source: &Source<'_>) -> Result<Parsed, Error> {
    let mut parsed = Parsed { left_out_why: "they have no options to choose from, or no label", ..Parsed::default() };
    for object in source.objects()? {
        let options = object.get("options").and_then(texts).unwrap_or_default();
        let labels = labels(&object);
        if options.is_empty() || labels.is_empty() {
            parsed.left_out += 1;
            continue;
        }
        if options.len() > LETTERS.len() {
            return Err(object.fails(format!("it has {} options, more than there are letters for", options.len())));
        }
        let place = |label: char| LETTERS.find(label).filter(|place| *place < options.len());
        let right: Option<Vec<usize>> = labels.chars().map(place).collect();
        let right = right.ok_or_else(|| {
            let shown: String = labels.chars().take(40).collect();
            object.fails(format!("'label' is '{shown}', but there are {} options from A on", options.len()))
        })?;
        parsed.questions.push(Question::pick(object.line, &context(&object, &options)?, options, &right));
    }
    Ok(parsed)
}

/// Returns the letters of the right options, which are written as `B`, `AB` or `["A", "B"]`.
fn labels(object: &Object<'_>) -> String {
    let listed = object.get("label").and_then(texts).map(|labels| labels.concat());
    let labels = listed.or_else(|| object.text_or_number("label")).unwrap_or_default();
    labels.chars().filter(|c| !matches!(c, ' ' | ',' | '(' | ')')).collect()
}

fn context(object: &Object<'_>, options: &[&str]) -> Result<String, Error> {
    let passage = object.text_or_number("passage").map_or("", |_| object.text("passage").unwrap_or_default());
    let question = object.text("question")?;
    let listed = options.join(" ");
    // LETTERS are ASCII, and there are no more options than letters.
    let last = &LETTERS[options.len() - 1..options.len()];
    Ok(if question.chars().chain(listed.chars()).any(is_han) {
        format!("{passage}问题：{question} 选项：{listed}\n答案：从A到{last}, 我们应选择")
    } else {
        format!("{passage}Q: {question} Answer Choices: {listed}\nA: Among A through {last}, the answer is")
    })
}

fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}')
}
