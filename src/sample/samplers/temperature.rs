//! Temperature: divides the logits, by a fixed number or by one that follows how uncertain the model is.
//!
//! Source of the dynamic one: Zhu et al., "Hot or Cold?", <https://arxiv.org/abs/2309.02772>

use super::{Entry, Place};
use crate::base::math::{ln, pow};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "temperature",
    aliases: &["temp"],
    letter: Some('t'),
    place: Place::InOrder,
    parameters: &[
        Parameter::number(
            "temperature",
            field!(temperature.value),
            Range::FROM_0,
            "Above 1 makes the text more surprising, below 1 less; 0 takes the most likely token",
        )
        .aliases(&["temp"])
        .common(1)
        .contradicts_greedy(),
        Parameter::number(
            "dynatemp_range",
            field!(temperature.range),
            Range::FROM_0,
            "Raise the temperature by up to this where the model is uncertain, and lower it where it is certain",
        )
        .contradicts_greedy(),
        Parameter::number(
            "dynatemp_exponent",
            field!(temperature.exponent),
            Range::FROM_0,
            "With `dynatemp_range`: above 1, only high uncertainty raises the temperature; below 1, a little is enough",
        )
        .aliases(&["dynatemp_exp"]),
    ],
};

/// The number by which logits are divided.
#[derive(Clone, Debug, PartialEq)]
pub struct Temperature {
    /// Above 1 flattens, below 1 sharpens, 0 always takes the most likely token.
    pub value: f32,
    /// How far the temperature rises if the model is uncertain, and falls if it is certain; 0 keeps it fixed.
    pub range: f32,
    /// The exponent of the uncertainty (which is from 0 to 1) in the temperature.
    pub exponent: f32,
}

/// See [`Temperature`].
pub type Settings = Temperature;

impl Temperature {
    /// Returns a fixed temperature.
    pub fn fixed(value: f32) -> Self {
        Self { value, ..Self::default() }
    }
}

impl Default for Temperature {
    fn default() -> Self {
        Self { value: 0.8, range: 0.0, exponent: 1.0 }
    }
}

pub(in crate::sample) fn defaults() -> Settings {
    Temperature::default()
}

#[derive(Clone, Debug)]
pub(in crate::sample) enum Stage {
    /// Divide the logits by this.
    Fixed(f64),
    /// Divide the logits by a number between these: the less certain the model is, the nearer to `high`.
    Dynamic { low: f64, high: f64, exponent: f64 },
    /// Take the most likely token.
    MostLikely,
}

pub(in crate::sample) fn stage(settings: &Settings, surroundings: &Surroundings<'_>) -> Option<Stage> {
    let (t, range) = (f64::from(settings.value), f64::from(settings.range));
    if range > 0.0 && !surroundings.is_alone {
        let exponent = settings.exponent.into();
        return Some(Stage::Dynamic { low: (t - range).max(0.0), high: t + range, exponent });
    }
    if t == 0.0 { Some(Stage::MostLikely) } else { (t != 1.0).then_some(Stage::Fixed(t)) }
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        match self {
            Self::Fixed(_) => Effect::Cuts,
            Self::Dynamic { .. } => Effect::Looks,
            Self::MostLikely => Effect::Chooses,
        }
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, _: &mut Context<'_>) -> Result<(), Error> {
        match *self {
            Self::Fixed(t) => candidates.divide(t),
            Self::MostLikely => {}
            Self::Dynamic { low, high, exponent } => {
                candidates.scan()?;
                if candidates.n <= 1 {
                    return Ok(());
                }
                let (total, mean) = candidates.total_and_mean();
                let entropy = (ln(total) - mean).max(0.0);
                let temperature = low + (high - low) * pow(entropy / ln(candidates.n as f64), exponent);
                if temperature as f32 > 0.0 {
                    candidates.divide(temperature);
                } else {
                    candidates.only_most_likely()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::Params;
    use crate::sample::tests::{Naive, all};

    pub fn any() -> impl Strategy<Value = Settings> {
        let range = prop_oneof![3 => Just(0.0f32), 1 => 0.01f32..0.5];
        (0.55f32..3.0, range).prop_map(|(value, range)| Temperature { value, range, exponent: 1.0 })
    }

    pub fn examples() -> Vec<Params> {
        let dynamic = |range| Temperature { range, ..Temperature::fixed(1.0) };
        vec![
            Params { temperature: Temperature::fixed(1.3), ..all() },
            Params { temperature: dynamic(0.4), ..all() },
            Params { temperature: dynamic(0.5), ..all() },
        ]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { temperature: Temperature { range: 0.8, ..Temperature::default() }, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], _: f64) {
        let mut t = f64::from(params.temperature.value);
        let range = f64::from(params.temperature.range);
        if range > 0.0 {
            if naive.n < 2 {
                return;
            }
            let low = (t - range).max(0.0);
            let certainty = naive.entropy() / (naive.n as f64).ln();
            t = low + (t + range - low) * certainty.powf(f64::from(params.temperature.exponent));
        }
        naive.list.iter_mut().for_each(|(_, l)| *l /= t);
    }
}
