//! Top-n-sigma: keeps tokens whose logit is at most `n` standard deviations below the highest.
//!
//! Source: Tang et al., "Top-nσ: Not All Logits Are You Need", <https://arxiv.org/abs/2411.07641>

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "top_n_sigma",
    aliases: &[],
    letter: Some('s'),
    place: Place::InOrder,
    parameters: &[Parameter::number(
        "top_n_sigma",
        field!(top_n_sigma),
        Range { wanted: "a number, 0 or below for off", contains: f32::is_finite },
        "Choose among tokens whose logit is at most this many standard deviations below the highest; 0 or less for all",
    )
    .aliases(&["top_nsigma"])
    .contradicts_greedy()],
};

/// How many standard deviations a logit may be below the highest; 0 and below keeps all.
pub type Settings = f32;

pub(in crate::sample) fn defaults() -> Settings {
    -1.0
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    sigmas: f64,
}

pub(in crate::sample) fn stage(settings: &Settings, _: &Surroundings<'_>) -> Option<Stage> {
    (*settings > 0.0).then_some(Stage { sigmas: f64::from(*settings) })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Cuts
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, _: &mut Context<'_>) -> Result<(), Error> {
        candidates.scan()?;
        if candidates.n <= 1 {
            return Ok(());
        }
        let (n, mut squares);
        if candidates.is_list || candidates.is_masked && candidates.changed().next().is_some() {
            // There are few, or they are not all in one place.
            let mut list = std::mem::take(&mut candidates.buffers.spare);
            list.clear();
            if candidates.is_list {
                list.extend_from_slice(&candidates.buffers.list);
            } else {
                candidates.collect(f32::MIN, &mut list);
            }
            n = list.len();
            let mean = list.iter().map(|c| f64::from(c.logit)).sum::<f64>() / n as f64;
            squares = 0.0;
            for c in &list {
                let difference = f64::from(c.logit) - mean;
                squares += difference * difference;
            }
            candidates.buffers.spare = list;
        } else {
            (n, _, squares) = candidates.field().moments(&candidates.buffers.tops);
        }
        let bar = (f64::from(candidates.top) - self.sigmas * (squares / n as f64).sqrt()) as f32;
        if candidates.is_list {
            candidates.buffers.list.retain(|c| c.logit >= bar);
        } else {
            candidates.list_from(bar);
        }
        // The number of candidates does not change, because llama.cpp only sets the others to minus infinity.
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
        prop_oneof![3 => Just(-1.0f32), 1 => 0.1f32..3.0]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { top_n_sigma: 1.0, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { top_n_sigma: f32::MAX, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], slack: f64) {
        if params.top_n_sigma <= 0.0 || naive.n <= 1 {
            return;
        }
        let n = naive.list.len() as f64;
        let mean = naive.list.iter().map(|(_, l)| l).sum::<f64>() / n;
        let deviation = (naive.list.iter().map(|(_, l)| (l - mean).powi(2)).sum::<f64>() / n).sqrt();
        let top = naive.list[0].1;
        let bar = top - f64::from(params.top_n_sigma) * deviation;
        naive.list.retain(|(_, l)| *l >= bar - slack || *l == top);
    }
}
