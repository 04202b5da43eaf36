//! Locally typical sampling: keeps the tokens whose surprise is nearest to the expected surprise.
//!
//! Source: Meister et al., "Locally Typical Sampling", <https://arxiv.org/abs/2202.00666>

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::{Buffers, Candidate, Candidates, keep_best, weigh};
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "typ_p",
    aliases: &["typ", "typical", "typical_p"],
    letter: Some('y'),
    place: Place::InOrder,
    parameters: &[Parameter::number(
        "typical_p",
        field!(typical_p),
        Range::FROM_0_TO_1,
        "Choose among the tokens whose surprise is nearest to the expected one and that together have this probability; \
         1 for all",
    )
    .aliases(&["typical"])
    .hidden_aliases(&["typ_p"])
    .contradicts_greedy()],
};

/// The total probability of the tokens to keep; 1 keeps all.
pub type Settings = f32;

pub(in crate::sample) fn defaults() -> Settings {
    1.0
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
        Effect::Looks
    }

    /// Keeps tokens until their probabilities add up to more than `p`, and at least `min_keep` tokens.
    fn apply(&mut self, candidates: &mut Candidates<'_>, _: &mut Context<'_>) -> Result<(), Error> {
        let Self { p, min_keep } = *self;
        candidates.scan()?;
        // Let x = (logit - top) / temperature. Then -ln p = ln total - x, and the entropy is the mean of that. So the
        // distance of -ln p from the entropy is the distance of x from its own mean.
        let (total, mean) = candidates.total_and_mean();
        let (top, t) = (f64::from(candidates.top), candidates.temperature);
        let distance = move |c: Candidate| ((f64::from(c.logit) - top) / t - mean).abs();
        if !candidates.is_list {
            let mut radius = 2.0;
            loop {
                let is_all = radius > 200.0;
                let bar = if is_all { f32::MIN } else { candidates.below_top(radius - mean) };
                candidates.list_from(bar);
                if !is_all {
                    candidates.buffers.list.retain(|c| distance(*c) <= radius);
                }
                if is_all || (candidates.total() > p * total && candidates.buffers.list.len() >= min_keep) {
                    break;
                }
                radius *= 2.0;
            }
        }
        let weights = move |chunk: &[Candidate]| weigh(chunk, top, t);
        let Buffers { list, spare, .. } = &mut *candidates.buffers;
        // The bits of floats that are not negative are in the order of the numbers.
        let rank = |c: Candidate| u128::from(distance(c).to_bits()) << 64 | u128::from(c.rank());
        keep_best(list, spare, distance, rank, weights, |sum, n| sum > p * total && n >= min_keep);
        candidates.n = candidates.buffers.list.len();
        candidates.is_scanned = false;
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
        prop_oneof![3 => Just(1.0f32), 1 => 0.01f32..1.0]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { typical_p: 0.6, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { typical_p: 0.0, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], slack: f64) {
        if params.typical_p >= 1.0 {
            return;
        }
        let entropy = naive.entropy();
        let mut scored: Vec<_> = naive.list.iter().copied().zip(naive.softmax()).collect();
        let score = |p: f64| (-p.ln() - entropy).abs();
        scored.sort_by(|a, b| score(a.1).total_cmp(&score(b.1)));
        let mut sum = 0.0;
        let end = scored.iter().enumerate().position(|(i, (_, p))| {
            sum += p;
            sum > f64::from(params.typical_p) + slack && i + 1 >= params.min_keep as usize
        });
        scored.truncate(end.map_or(scored.len(), |end| end + 1));
        naive.list = scored.into_iter().map(|(c, _)| c).collect();
        naive.n = naive.list.len();
    }
}
