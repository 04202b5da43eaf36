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

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Returns the index of the answer that a letter names.
pub(super) fn place(letter: &str) -> Option<usize> {
    LETTERS.iter().position(|known| *known == letter.trim())
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
