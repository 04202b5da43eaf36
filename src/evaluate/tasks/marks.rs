//! From what a model said to marks, and from marks to scores.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::gsm8k::{last_number, marked_number};
use super::{Ask, Choice, Format, Question, Score, Scored};
use crate::report::results::{Flips, TaskScores};
use crate::statistics::{mcnemar, mean_of_questions, share};

/// What a model said to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// How likely it finds each choice.
    Likelihoods {
        /// Natural logarithms.
        log_likelihoods: Vec<f64>,
        /// Tokens of each.
        n_tokens: Vec<usize>,
    },
    /// What it wrote.
    Written(String),
}

/// How a model did at a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionResult {
    /// Which question, by its place in the file, counted from 0.
    pub index: u64,
    /// Of each choice, in the file's order: the natural logarithm of its probability.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// The choice it took, by the score that counts first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<usize>,
    /// What it wrote, where it was to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether that is right, by the score that counts first.
    pub right: bool,
    /// A mark for each of the format's scores, from 0 to 1.
    pub marks: Vec<f64>,
    /// Whether its beginning was left out, because the context does not hold all of it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shortened: bool,
}

// What serde calls takes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl QuestionResult {
    /// The marks for what a model said.
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

    /// Whether it can be a result of this question.
    pub fn fits(&self, format: &Format, question: &Question) -> bool {
        let as_many = match &question.ask {
            Ask::Choose(choices) => self.log_likelihoods.len() == choices.len(),
            Ask::Write { .. } => self.text.is_some(),
        };
        self.index == question.index && as_many && self.marks.len() == format.scores.len()
    }
}

/// The mark for a choice, and which one was taken.
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

/// The share of true answers in the probability of all.
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

/// What the results of a task come to, and how they differ from those of the reference, by the score that counts first.
/// Only questions that both were asked count as lost or won.
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
