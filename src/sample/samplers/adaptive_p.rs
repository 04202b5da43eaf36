//! Adaptive-p: prefers tokens near a target probability, which is adjusted by earlier choices.
//!
//! Source: <https://github.com/ggml-org/llama.cpp/pull/17927>

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "adaptive_p",
    aliases: &[],
    letter: Some('a'),
    place: Place::Last,
    parameters: &[
        Parameter::number(
            "adaptive_target",
            field!(adaptive_p.target),
            Range { wanted: "a number up to 1, below 0 for off", contains: |x| x.is_finite() && x <= 1.0 },
            "Prefer tokens near this probability, from 0 to 1 (adaptive-p); below 0 for off",
        )
        .contradicts_greedy(),
        Parameter::number(
            "adaptive_decay",
            field!(adaptive_p.decay),
            Range { wanted: "a number from 0 to 0.99", contains: |x| (0.0..=0.99).contains(&x) },
            "With `adaptive_target`: how long earlier choices count, from 0 to 0.99; higher is longer",
        ),
    ],
};

/// The target probability.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptiveP {
    /// The target for the mean probability of chosen tokens; below 0 turns the sampler off.
    pub target: f32,
    /// The decay of earlier choices in that mean: 0 to 0.99.
    pub decay: f32,
}

/// See [`AdaptiveP`].
pub type Settings = AdaptiveP;

impl Default for AdaptiveP {
    fn default() -> Self {
        Self { target: -1.0, decay: 0.9 }
    }
}

pub(in crate::sample) fn defaults() -> Settings {
    AdaptiveP::default()
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    target: f64,
    decay: f64,
    // Weighted sum of the chosen tokens' probabilities, and the sum of these weights.
    sum: f64,
    weight: f64,
}

pub(in crate::sample) fn stage(settings: &Settings, _: &Surroundings<'_>) -> Option<Stage> {
    let (target, decay) = (settings.target.into(), settings.decay.into());
    (settings.target >= 0.0).then_some(Stage { target, decay, sum: 0.0, weight: 0.0 })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Looks
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        candidates.list()?;
        candidates.probabilities(context.last)?;
        let target = (2.0 * self.target - self.sum / self.weight).clamp(0.0, 1.0);
        let (total, weight) = (candidates.total(), candidates.weight());
        for c in &mut candidates.buffers.list {
            c.logit = adapted(weight(c.logit) / total, target) as f32;
        }
        candidates.temperature = 1.0;
        candidates.is_scanned = false;
        Ok(())
    }

    fn begin(&mut self) {
        // As if all earlier tokens had had the target probability.
        self.weight = 1.0 / (1.0 - self.decay);
        self.sum = self.target / (1.0 - self.decay);
    }

    fn learn(&mut self, p: f64) {
        self.sum = p + self.decay * self.sum;
        self.weight = 1.0 + self.decay * self.weight;
    }
}

/// Returns the new logit of a token of probability `p`: a parabola near the target, and straight lines further away.
fn adapted(p: f64, target: f64) -> f64 {
    const PEAK: f64 = 5.0;
    const SHARPNESS: f64 = 10.0;
    const WIDTH: f64 = 0.3;
    let distance = ((p - target) / WIDTH).abs();
    PEAK - SHARPNESS * distance * distance / (1.0 + distance)
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::Params;
    use crate::sample::tests::{Naive, all, mean_surprise_and_probability};

    /// Off, because the tests of chains turn it on themselves.
    pub fn any() -> impl Strategy<Value = Settings> {
        Just(defaults())
    }

    fn at(target: f32) -> Params {
        Params { adaptive_p: AdaptiveP { target, ..AdaptiveP::default() }, ..all() }
    }

    pub fn examples() -> Vec<Params> {
        vec![at(0.04), at(0.5)]
    }

    pub fn extremes() -> Vec<Params> {
        vec![at(0.0), at(1.0)]
    }

    /// Does nothing: the sampler has state, which the naive way does not model.
    pub fn naive(_: &mut Naive, _: &Params, _: &[u32], _: f64) {}

    #[test]
    fn the_probability_follows_its_target() {
        let (_, low) = mean_surprise_and_probability(at(0.01));
        let (_, high) = mean_surprise_and_probability(at(0.3));
        assert!(low < high, "{low} {high}");
    }
}
