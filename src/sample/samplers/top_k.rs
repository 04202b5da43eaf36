//! Top-k: keeps the `k` most likely tokens; ties go to the lower id.

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Counts, Parameter, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "top_k",
    aliases: &[],
    letter: Some('k'),
    place: Place::InOrder,
    parameters: &[Parameter::count(
        "top_k",
        field!(top_k),
        Counts::OR_0_FOR_ALL,
        "Choose among this many of the most likely tokens; 0 for all",
    )
    .common(2)
    .contradicts_greedy()],
};

/// How many of the most likely tokens to keep; 0 keeps all.
pub type Settings = u32;

pub(in crate::sample) fn defaults() -> Settings {
    40
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    k: usize,
}

pub(in crate::sample) fn stage(settings: &Settings, _: &Surroundings<'_>) -> Option<Stage> {
    (*settings > 0).then_some(Stage { k: *settings as usize })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Cuts
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, _: &mut Context<'_>) -> Result<(), Error> {
        candidates.keep_most_likely(self.k)
    }
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::Params;
    use crate::sample::tests::{Naive, all};

    pub fn any() -> impl Strategy<Value = Settings> {
        prop_oneof![Just(0u32), 1u32..80, Just(5000)]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { top_k: 7, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { top_k: u32::MAX, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], _: f64) {
        if params.top_k > 0 {
            naive.list.truncate(params.top_k as usize);
            naive.n = naive.n.min(params.top_k as usize);
        }
    }
}
