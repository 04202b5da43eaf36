//! Logit bias: numbers added to the logits of tokens; minus infinity rules a token out.
//!
//! Source: OpenAI's API, <https://platform.openai.com/docs/api-reference/chat/create>

use std::sync::Arc;

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Parameter, Value, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "logit_bias",
    aliases: &[],
    letter: None,
    place: Place::First,
    parameters: &[Parameter::new(
        "logit_bias",
        Value::Biases(field!(logit_bias)),
        "Make a token more or less likely: its number, + or -, and the amount, as in 15043+1; 15043-inf rules it out",
    )],
};

/// Tokens and the biases that are added to their logits. Several biases of one token add up.
pub type Settings = Vec<(u32, f32)>;

pub(in crate::sample) fn defaults() -> Settings {
    Vec::new()
}

/// The biases, with each token only once.
#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage(Arc<Vec<(u32, f32)>>);

pub(in crate::sample) fn stage(settings: &Settings, _: &Surroundings<'_>) -> Option<Stage> {
    let mut biases: Vec<(u32, f32)> = Vec::new();
    for &(token, bias) in settings {
        match biases.iter_mut().find(|(known, _)| *known == token) {
            Some((_, sum)) => *sum += bias,
            None => biases.push((token, bias)),
        }
    }
    (!biases.is_empty()).then(|| Stage(Arc::new(biases)))
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Changes
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        context.marks.clear(candidates.n_vocabulary());
        for (number, (token, _)) in (1..).zip(self.0.iter()) {
            context.marks.update(*token, |_| number);
        }
        candidates.change(context.marks, |mark, logit| logit + self.0[mark as usize - 1].1)
    }
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::Params;
    use crate::sample::tests::{Naive, all};

    pub fn any() -> impl Strategy<Value = Settings> {
        prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec((0u32..60, -3.0f32..3.0), 1..5)]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { logit_bias: vec![(3, 2.0), (17, f32::NEG_INFINITY), (5, -1.0)], ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { logit_bias: vec![(1, f32::MAX), (u32::MAX, 1.0), (2, f32::NEG_INFINITY)], ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, _: &[u32], _: f64) {
        for (token, bias) in &params.logit_bias {
            naive.list.iter_mut().filter(|(id, _)| id == token).for_each(|(_, l)| *l += f64::from(*bias));
        }
        naive.list.retain(|(_, l)| *l > f64::NEG_INFINITY);
    }
}
