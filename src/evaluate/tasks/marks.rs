//! Marks a model's answers, and computes scores from the marks.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::gsm8k::{last_number, marked_number};
use super::{Ask, Choice, Format, Question, Score, Scored};
use crate::report::results::{Flips, TaskScores};
use crate::statistics::{mcnemar, mean_of_questions, share};

/// A model's answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The likelihood of each choice.
    Likelihoods {
        /// Natural logarithms of the probabilities.
        log_likelihoods: Vec<f64>,
        /// Number of tokens of each choice.
        n_tokens: Vec<usize>,
    },
    /// The text that it wrote.
    Written(String),
}

/// The result of one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionResult {
    /// Index of the question in the file, from 0.
    pub index: u64,
    /// Natural logarithm of the probability of each choice, in the file's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// The choice that the model made, by the main score.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<usize>,
    /// The text that it wrote, if the task asks for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether the answer is right, by the main score.
    pub right: bool,
    /// A mark for each of the format's scores, from 0 to 1.
    pub marks: Vec<f64>,
    /// Whether the beginning of the prompt was left out because it did not fit in the context.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shortened: bool,
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl QuestionResult {
    /// Marks a model's answer.
    pub fn new(format: &Format, question: &Question, outcome: Outcome) -> Self {
        let mark = |score: &Score| match (&question.ask, &outcome) {
            (Ask::Choose(choices), Outcome::Likelihoods { log_likelihoods, n_tokens }) => {
                mark_choice(*score, format.scored, choices, log_likelihoods, n_tokens)
            }
            (Ask::Write { answer, .. }, Outcome::Written(text)) => (mark_text(*score, answer, text), None),
            _ => (0.0, None),
        };
        let marks: Vec<(f64, Option<usize>)> = format.scores.iter().map(mark).collect();
        let first = marks.first().copied().unwrap_or_default();
        let (log_likelihoods, text) = match outcome {
            Outcome::Likelihoods { log_likelihoods, .. } => (log_likelihoods, None),
            Outcome::Written(text) => (Vec::new(), Some(text)),
        };
        Self {
            index: question.index,
            log_likelihoods,
            chosen: first.1,
            text,
            right: first.0 == 1.0,
            marks: marks.into_iter().map(|(mark, _)| mark).collect(),
            shortened: false,
        }
    }

    /// Returns whether this can be a result of `question`.
    pub fn fits(&self, format: &Format, question: &Question) -> bool {
        let as_many = match &question.ask {
            Ask::Choose(choices) => self.log_likelihoods.len() == choices.len(),
            Ask::Write { .. } => self.text.is_some(),
        };
        self.index == question.index && as_many && self.marks.len() == format.scores.len()
    }
}

/// Returns the mark, and the choice that was made.
fn mark_choice(
    score: Score,
    scored: Scored,
    choices: &[Choice],
    log_likelihoods: &[f64],
    n_tokens: &[usize],
) -> (f64, Option<usize>) {
    if score == Score::Mc2 {
        return (share_of_true(choices, log_likelihoods), None);
    }
    let length = |index: usize| match (score, scored) {
        (Score::AccuracyNormalised, Scored::Choice) => choices[index].text.chars().count(),
        (Score::AccuracyNormalised, Scored::Difference) => n_tokens.get(index).copied().unwrap_or(1),
        _ => 1,
    };
    let mut best: Option<(usize, f64)> = None;
    for (index, log_likelihood) in log_likelihoods.iter().enumerate().take(choices.len()) {
        let likely = log_likelihood / length(index).max(1) as f64;
        if choices[index].competes && best.is_none_or(|(_, most)| likely > most) {
            best = Some((index, likely));
        }
    }
    match best {
        Some((index, _)) => (f64::from(choices[index].right), Some(index)),
        None => (0.0, None),
    }
}

/// Returns the true answers' share of the probability of all answers.
fn share_of_true(choices: &[Choice], log_likelihoods: &[f64]) -> f64 {
    let counted = || choices.iter().zip(log_likelihoods).filter_map(|(c, l)| c.is_true.map(|is_true| (is_true, *l)));
    let most = counted().map(|(_, l)| l).fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return 0.0;
    }
    let sum = |what: fn(bool) -> bool| -> f64 {
        counted().filter(|(is_true, _)| what(*is_true)).map(|(_, l)| (l - most).exp()).sum()
    };
    sum(|is_true| is_true) / sum(|_| true)
}

fn mark_text(score: Score, answer: &str, text: &str) -> f64 {
    let found = match score {
        Score::ExactMatchStrict => marked_number(text),
        _ => last_number(text),
    };
    f64::from(found.as_deref() == Some(answer))
}

/// Computes the scores of a task's results, and how the results differ from the reference's by the main score. Only
/// questions that both answered count as lost or won.
pub fn score(
    scores: &[Score],
    results: &[QuestionResult],
    reference: Option<&[QuestionResult]>,
    confidence: f64,
) -> TaskScores {
    let estimate = |place: usize, score: Score| {
        let marks: Vec<f64> = results.iter().filter_map(|result| result.marks.get(place).copied()).collect();
        if score.is_yes_or_no() {
            share(marks.iter().filter(|mark| **mark == 1.0).count() as u64, marks.len() as u64, confidence)
        } else {
            mean_of_questions(&marks, confidence)
        }
    };
    let named = scores.iter().enumerate().map(|(place, score)| (score.name().to_string(), estimate(place, *score)));
    TaskScores {
        questions: results.len() as u64,
        scores: named.collect(),
        against_reference: reference.map(|reference| flips(results, reference)),
    }
}

fn flips(results: &[QuestionResult], reference: &[QuestionResult]) -> Flips {
    let right: HashMap<u64, bool> = reference.iter().map(|result| (result.index, result.right)).collect();
    let mut flips = Flips { lost: 0, won: 0, p_value: 1.0 };
    for result in results {
        match (right.get(&result.index), result.right) {
            (Some(true), false) => flips.lost += 1,
            (Some(false), true) => flips.won += 1,
            _ => {}
        }
    }
    flips.p_value = mcnemar(flips.lost, flips.won);
    flips
}
