//! Questions whose answers are named by letters, of which the model is asked for the letter.
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

/// The answer that a letter names.
pub(super) fn place(letter: &str) -> Option<usize> {
    LETTERS.iter().position(|known| *known == letter.trim())
}

/// A question whose right answer is the one at `right`. `ask` is the last line.
pub(super) fn question(line: u64, question: &str, answers: [&str; 4], right: usize, ask: &str) -> Question {
    let mut context = format!("{}\n", question.trim());
    for (letter, answer) in LETTERS.iter().zip(answers) {
        context.push_str(&format!("{letter}. {answer}\n"));
    }
    context.push_str(ask);
    Question::pick(line, &context, LETTERS, &[right])
}
