//! Min-p: keeps tokens whose probability is at least `p` times that of the most likely token.
//!
//! Source: Nguyen et al., "Turning Up the Heat", <https://arxiv.org/abs/2407.01082>

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "min_p",
    aliases: &[],
    letter: Some('m'),
    place: Place::InOrder,
    parameters: &[Parameter::number(
        "min_p",
        field!(min_p),
        Range::FROM_0_TO_1,
        "Choose among tokens at least this likely, relative to the most likely one; 0 for all",
    )
    .common(4)
    .contradicts_greedy()],
};

/// The lowest probability to keep, as a share of the highest; 0 keeps all.
pub type Settings = f32;

pub(in crate::sample) fn defaults() -> Settings {
    0.05
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    p: f64,
    min_keep: usize,
}

pub(in crate::sample) fn stage(settings: &Settings, surroundings: &Surroundings<'_>) -> Option<Stage> {
    (*settings > 0.0).then_some(Stage { p: f64::from(*settings), min_keep: surroundings.min_keep })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Cuts
    }

    fn floor(&self) -> Option<f64> {
        (self.min_keep == 0).then_some(self.p)
    }

    /// Keeps tokens whose probability is at least `p` times the highest, and at least `min_keep` tokens.
    fn apply(&mut self, candidates: &mut Candidates<'_>, _: &mut Context<'_>) -> Result<(), Error> {
        candidates.scan()?;
        let bar = candidates.at_weight(self.p);
        let was_list = candidates.is_list;
        let enough = if was_list {
            candidates.buffers.list.iter().filter(|c| c.logit >= bar).count() >= self.min_keep
        } else {
            candidates.list_from(bar);
            candidates.buffers.list.len() >= self.min_keep
        };
        if !enough {
            candidates.is_list = was_list;
            return candidates.keep_most_likely(self.min_keep);
        }
        candidates.buffers.list.retain(|c| c.logit >= bar);
        candidates.n = candidates.buffers.list.len();
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
        prop_oneof![2 => Just(0.0f32), 2 => 0.0f32..1.0, 1 => Just(1.0)]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { min_p: 0.3, ..all() }, Params { min_p: 0.1, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { min_p: 1.0, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], slack: f64) {
        if params.min_p <= 0.0 {
            return;
        }
        let min_keep = params.min_keep as usize;
        let top = naive.list[0].1;
        let kept = naive.list.iter().filter(|(_, l)| (l - top).exp() >= f64::from(params.min_p) - slack).count();
        naive.list.truncate(kept.max(min_keep));
        naive.n = if kept >= min_keep { kept } else { naive.n.min(min_keep) };
    }
}
