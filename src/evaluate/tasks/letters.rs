//! Questions with lettered answers, where the model chooses the letter.
//!
//! ```text
//! What do cows drink?
//! A. Water
//! B. Milk
//! C. Tea
//! D. Oil
//! Answer:              the choices are ' A', ' B', ' C', ' D'
//! ```

use super::Question;
use super::source::Source;

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Returns the index of the answer that a letter names.
pub(super) fn place(letter: &str) -> Option<usize> {
    LETTERS.iter().position(|known| *known == letter.trim())
}

/// Returns whether the first row of a CSV file names columns for the question, spelled as given, four answers and the right
/// one.
pub(super) fn has_headings(source: &Source<'_>, question: &str) -> bool {
    let Some(row) = source.first_row() else { return false };
    let has = |name: &str| row.iter().any(|field| field.eq_ignore_ascii_case(name));
    // The test part of C-Eval has no answers; its own parser says what to do.
    row.iter().any(|field| field == question)
        && LETTERS.iter().all(|letter| has(letter))
        && (has("answer") || has("id"))
}

/// Returns whether there are Chinese characters in the text.
pub(super) fn is_chinese(source: &Source<'_>) -> bool {
    source.text().contains(|c| matches!(c, '\u{4e00}'..='\u{9fff}'))
}

/// Returns a question whose right answer has index `right`. `ask` is its last line.
pub(super) fn question(line: u64, question: &str, answers: [&str; 4], right: usize, ask: &str) -> Question {
    let mut context = format!("{}\n", question.trim());
    for (letter, answer) in LETTERS.iter().zip(answers) {
        context.push_str(&format!("{letter}. {answer}\n"));
    }
    context.push_str(ask);
    Question::pick(line, &context, LETTERS, &[right])
}
