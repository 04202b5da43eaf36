//! XTC, "exclude top choices": sometimes removes all but the least likely of the likely tokens.
//!
//! Source: <https://github.com/oobabooga/text-generation-webui/pull/6335>

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::{Candidate, Candidates};
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "xtc",
    aliases: &[],
    letter: Some('x'),
    place: Place::InOrder,
    parameters: &[
        Parameter::number(
            "xtc_probability",
            field!(xtc.probability),
            Range::FROM_0_TO_1,
            "How often to leave out the most likely tokens in favour of others (XTC), from 0 to 1; 0 for never",
        )
        .contradicts_greedy(),
        Parameter::number(
            "xtc_threshold",
            field!(xtc.threshold),
            Range::FROM_0_TO_1,
            "With `xtc_probability`: leave out tokens at least this likely, all but the least likely of them",
        ),
    ],
};

/// How often to remove tokens, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Xtc {
    /// The share of draws in which to remove the most likely tokens; 0 for none.
    pub probability: f32,
    /// Of the tokens that are at least this likely, only the least likely stays. Above 0.5, there are never two of
    /// them.
    pub threshold: f32,
}

/// See [`Xtc`].
pub type Settings = Xtc;

impl Default for Xtc {
    fn default() -> Self {
        Self { probability: 0.0, threshold: 0.1 }
    }
}

pub(in crate::sample) fn defaults() -> Settings {
    Xtc::default()
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    probability: f64,
    threshold: f64,
    min_keep: usize,
}

pub(in crate::sample) fn stage(settings: &Settings, surroundings: &Surroundings<'_>) -> Option<Stage> {
    // Two tokens cannot both have more than half of the probability.
    let is_on = settings.probability > 0.0 && settings.threshold <= 0.5;
    let (probability, threshold) = (settings.probability.into(), settings.threshold.into());
    is_on.then_some(Stage { probability, threshold, min_keep: surroundings.min_keep })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Looks
    }

    /// Removes all tokens of at least probability `threshold` except for the least likely of them, unless fewer than
    /// `min_keep` would be left. Takes a number from the random stream if there are two or more candidates.
    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        if candidates.n < 2 || context.random.unit() > self.probability {
            return Ok(());
        }
        candidates.scan()?;
        let total = candidates.total();
        let weight = candidates.weight();
        let is_choice = |c: &Candidate| weight(c.logit) >= self.threshold * total;
        let mut choices = std::mem::take(&mut candidates.buffers.spare);
        choices.clear();
        if candidates.is_list {
            choices.extend(candidates.buffers.list.iter().filter(|c| is_choice(c)));
        } else {
            // A little lower, because of rounding.
            candidates.collect(candidates.at_weight(self.threshold * total * 0.999), &mut choices);
            choices.retain(is_choice);
        }
        let last = choices.iter().map(|c| c.rank()).max();
        choices.retain(|c| Some(c.rank()) != last);
        if !choices.is_empty() && candidates.n - choices.len() >= self.min_keep {
            candidates.n -= choices.len();
            if candidates.is_list {
                candidates.buffers.list.retain(|c| !is_choice(c) || Some(c.rank()) == last);
            } else {
                choices.iter().for_each(|c| candidates.set(c.id, f32::NEG_INFINITY));
            }
            candidates.is_scanned = false;
        }
        candidates.buffers.spare = choices;
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::samplers::temperature::Temperature;
    use crate::sample::tests::{Naive, all, check_draws};
    use crate::sample::{Params, Sampler};

    pub fn any() -> impl Strategy<Value = Settings> {
        let threshold = prop_oneof![3 => Just(0.6f32), 1 => 0.001f32..0.5];
        threshold.prop_map(|threshold| Xtc { probability: 1.0, threshold })
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { xtc: Xtc { probability: 1.0, threshold: 0.05 }, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { xtc: Xtc { probability: 1.0, ..Xtc::default() }, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], slack: f64) {
        let Xtc { probability, threshold } = params.xtc;
        if probability < 1.0 || threshold > 0.5 || naive.n < 2 {
            return;
        }
        let choices = naive.softmax().iter().take_while(|p| **p >= f64::from(threshold) - slack).count();
        if choices > 1 && naive.n - (choices - 1) >= params.min_keep as usize {
            naive.list.drain(..choices - 1);
            naive.n -= choices - 1;
        }
    }

    #[test]
    fn xtc_acts_as_often_as_asked() {
        let logits = [2.0f32, 1.5, 0.0];
        let params = Params {
            xtc: Xtc { probability: 0.3, threshold: 0.2 },
            top_p: 1.0,
            min_p: 0.0,
            temperature: Temperature::fixed(1.0),
            seed: Some(4),
            ..Params::default()
        };
        let weights = logits.map(|l| f64::from(l).exp());
        let p = weights.map(|w| w / weights.iter().sum::<f64>());
        let wanted: Vec<(u32, f64)> = vec![
            (0, 0.7 * p[0]),
            (1, 0.7 * p[1] + 0.3 * p[1] / (p[1] + p[2])),
            (2, 0.7 * p[2] + 0.3 * p[2] / (p[1] + p[2])),
        ];
        let mut sampler = Sampler::new(&params).unwrap();
        let mut counts = vec![0; 3];
        (0..100_000).for_each(|_| counts[sampler.sample(&logits, None).unwrap() as usize] += 1);
        check_draws("xtc", &wanted, &counts, 100_000);
    }
}
