//! Top-p, also called nucleus sampling: keeps the most likely tokens that together have the probability `p`.
//!
//! Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", <https://arxiv.org/abs/1904.09751>

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::{Buffers, Candidate, Candidates, SORTED_AT_MOST, keep_best, weigh};
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "top_p",
    aliases: &["nucleus"],
    letter: Some('p'),
    place: Place::InOrder,
    parameters: &[Parameter::number(
        "top_p",
        field!(top_p),
        Range::FROM_0_TO_1,
        "Choose among the most likely tokens that together have this probability; 1 for all",
    )
    .common(3)
    .contradicts_greedy()],
};

/// The total probability of the tokens to keep, among those left by earlier samplers; 1 keeps all.
pub type Settings = f32;

pub(in crate::sample) fn defaults() -> Settings {
    0.95
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    p: f64,
    min_keep: usize,
}

pub(in crate::sample) fn stage(settings: &Settings, surroundings: &Surroundings<'_>) -> Option<Stage> {
    (*settings < 1.0).then_some(Stage { p: f64::from(*settings), min_keep: surroundings.min_keep })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Cuts
    }

    /// Keeps the most likely tokens until their probabilities add up to `p`, and at least `min_keep`. Tokens below the
    /// context's floor may or may not be kept, because the next stage removes them.
    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        let Self { p, min_keep } = *self;
        candidates.scan()?;
        if candidates.is_list {
            let wanted = p * candidates.total();
            nucleus(candidates, wanted, wanted, min_keep);
        } else {
            // The total is only needed to find the cut, and usually an approximate total is enough for that.
            let floor = context.floor.filter(|_| min_keep == 0);
            let floor = floor.map_or(f32::MIN, |floor| candidates.at_weight(floor));
            let mut depth = 4.0;
            let mut bounds = None;
            loop {
                let bar = if depth > 100.0 { f32::MIN } else { candidates.below_top(depth) }.max(floor);
                candidates.list_from(bar);
                let sum = candidates.total();
                let (_, high) = *bounds.get_or_insert_with(|| candidates.bounds_of_total(sum, bar));
                if bar <= floor || (sum >= p * high && candidates.buffers.list.len() >= min_keep) {
                    break;
                }
                depth *= 2.0;
            }
            let (low, high) = bounds.unwrap_or_default();
            if !nucleus(candidates, p * low, p * high, min_keep) {
                let wanted = p * candidates.total_of_field();
                nucleus(candidates, wanted, wanted, min_keep);
            }
        }
        candidates.n = candidates.buffers.list.len();
        Ok(())
    }
}

/// Keeps the most likely tokens of the list until they reach the wanted weight, which lies between the two bounds. If
/// the bounds lead to different cuts, does nothing and returns false.
fn nucleus(candidates: &mut Candidates<'_>, low: f64, high: f64, min_keep: usize) -> bool {
    let (top, t, weight) = (candidates.top, candidates.temperature, candidates.weight());
    let Buffers { list, spare, .. } = &mut *candidates.buffers;
    if list.len() <= SORTED_AT_MOST {
        list.sort_unstable_by_key(|c| c.rank());
        let (mut sum, mut end) = (0.0, None);
        for (i, c) in list.iter().enumerate() {
            sum += weight(c.logit);
            if end.is_none() && sum >= low && i + 1 >= min_keep {
                end = Some(i + 1);
            }
            if sum >= high && i + 1 >= min_keep {
                let is_clear = end == Some(i + 1);
                if is_clear {
                    list.truncate(i + 1);
                }
                return is_clear;
            }
        }
        return end.is_none() || low == high;
    }
    if low < high {
        return false;
    }
    let below = |c: Candidate| f64::from(top) - f64::from(c.logit);
    let weights = move |chunk: &[Candidate]| weigh(chunk, top.into(), t);
    keep_best(list, spare, below, |c| c.rank().into(), weights, |sum, n| sum >= low && n >= min_keep);
    true
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::Params;
    use crate::sample::tests::{Naive, all};

    pub fn any() -> impl Strategy<Value = Settings> {
        prop_oneof![2 => Just(1.0f32), 2 => 0.01f32..1.0, 1 => Just(0.999)]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { top_p: 0.7, ..all() }, Params { top_p: 0.9, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { top_p: 0.0, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], slack: f64) {
        if params.top_p >= 1.0 {
            return;
        }
        let mut sum = 0.0;
        let end = naive.softmax().iter().enumerate().position(|(i, p)| {
            sum += p;
            sum >= f64::from(params.top_p) + slack && i + 1 >= params.min_keep as usize
        });
        naive.list.truncate(end.map_or(naive.list.len(), |end| end + 1));
        naive.n = naive.list.len();
    }
}
