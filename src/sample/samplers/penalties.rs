//! Penalties: make tokens that have occurred less likely.
//!
//! Source: Keskar et al., "CTRL", <https://arxiv.org/abs/1909.05858>, for the penalty on repetition, and OpenAI's API for
//! those on frequency and presence.

use super::{Entry, Place};
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Counts, Parameter, Range, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "penalties",
    aliases: &[],
    letter: Some('e'),
    place: Place::InOrder,
    parameters: &[
        Parameter::count(
            "repeat_last_n",
            field!(penalties.last_n),
            Counts::OR_WHOLE_TEXT,
            "How many of the last tokens the three penalties look at; -1 for the whole text",
        )
        .hidden_aliases(&["penalty_last_n"]),
        Parameter::number(
            "repeat_penalty",
            field!(penalties.repeat),
            Range { wanted: "a number above 0", contains: |x| x.is_finite() && x > 0.0 && (1.0 / x).is_finite() },
            "Make tokens that have occurred less likely: the further above 1, the stronger; 1 has no effect",
        )
        .hidden_aliases(&["penalty_repeat"]),
        Parameter::number(
            "frequency_penalty",
            field!(penalties.frequency),
            Range::ANY,
            "Subtract this from the logit of a token for each time it has occurred",
        )
        .hidden_aliases(&["penalty_freq"]),
        Parameter::number(
            "presence_penalty",
            field!(penalties.presence),
            Range::ANY,
            "Subtract this once from the logit of a token that has occurred, however often",
        )
        .hidden_aliases(&["penalty_present"]),
    ],
};

/// How strongly tokens that have occurred are penalized.
#[derive(Clone, Debug, PartialEq)]
pub struct Penalties {
    /// How many of the last tokens are looked at; 0 for none, [`u32::MAX`] for all.
    pub last_n: u32,
    /// Logits are divided by this, or multiplied if they are negative; 1 has no effect.
    pub repeat: f32,
    /// Subtracted from the logit for each time that the token has occurred.
    pub frequency: f32,
    /// Subtracted from the logit once.
    pub presence: f32,
}

/// See [`Penalties`].
pub type Settings = Penalties;

impl Default for Penalties {
    fn default() -> Self {
        Self { last_n: 64, repeat: 1.0, frequency: 0.0, presence: 0.0 }
    }
}

pub(in crate::sample) fn defaults() -> Settings {
    Penalties::default()
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    last_n: usize,
    repeat: f32,
    frequency: f32,
    presence: f32,
}

pub(in crate::sample) fn stage(settings: &Settings, _: &Surroundings<'_>) -> Option<Stage> {
    let &Penalties { last_n, repeat, frequency, presence } = settings;
    let is_on = last_n > 0 && (repeat != 1.0 || frequency != 0.0 || presence != 0.0);
    is_on.then_some(Stage { last_n: last_n as usize, repeat, frequency, presence })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Changes
    }

    fn looks_back(&self) -> usize {
        self.last_n
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        let Self { last_n, repeat, frequency, presence } = *self;
        context.marks.clear(candidates.n_vocabulary());
        for token in &context.history[context.history.len().saturating_sub(last_n)..] {
            context.marks.update(*token, |count| count + 1);
        }
        candidates.change(context.marks, |count, logit| {
            // Dividing a negative logit would make the token more likely.
            let logit = if logit <= 0.0 { logit * repeat } else { logit / repeat };
            (logit - (count as f32 * frequency + presence)).max(f32::MIN)
        })
    }
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::tests::{Naive, all};
    use crate::sample::{Params, Sampler};

    pub fn any() -> impl Strategy<Value = Settings> {
        let some = (0.5f32..2.0, -0.5f32..1.0, -0.5f32..1.0);
        let some =
            some.prop_map(|(repeat, frequency, presence)| Penalties { repeat, frequency, presence, ..defaults() });
        prop_oneof![2 => Just(defaults()), 1 => some]
    }

    pub fn examples() -> Vec<Params> {
        let penalties = Penalties { repeat: 1.5, frequency: 0.3, presence: 0.1, ..Penalties::default() };
        vec![Params { penalties, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        let penalties = Penalties { repeat: 1.5, frequency: f32::MAX, presence: -3.0, ..Penalties::default() };
        vec![Params { penalties, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, history: &[u32], _: f64) {
        let Penalties { last_n, repeat, frequency, presence } = params.penalties;
        let last = &history[history.len().saturating_sub(last_n as usize)..];
        for (id, l) in &mut naive.list {
            let count = last.iter().filter(|token| *token == id).count();
            if count > 0 {
                *l = if *l <= 0.0 { *l * f64::from(repeat) } else { *l / f64::from(repeat) };
                *l -= count as f64 * f64::from(frequency) + f64::from(presence);
            }
        }
    }

    #[test]
    fn penalties_look_only_as_far_back_as_asked() {
        let logits = [1.0f32; 8];
        let with = |last_n| {
            let penalties = Penalties { presence: 100.0, last_n, ..Penalties::default() };
            Sampler::new(&Params { penalties, top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() }).unwrap()
        };
        let mut sampler = with(3);
        sampler.begin(&[0, 1, 2, 3]);
        let left = |sampler: &mut Sampler| {
            let mut out = Vec::new();
            sampler.distribution(&logits, None, &mut out).unwrap();
            let mut ids: Vec<u32> = out.into_iter().filter(|(_, p)| *p > 1e-3).map(|(id, _)| id).collect();
            ids.sort();
            ids
        };
        assert_eq!(left(&mut sampler), [0, 4, 5, 6, 7]);
        sampler.accept(7);
        assert_eq!(left(&mut sampler), [0, 1, 4, 5, 6]);
        (0..5000).for_each(|i| sampler.accept(i % 2));
        assert_eq!(left(&mut sampler), [2, 3, 4, 5, 6, 7]);
        sampler.begin(&[]);
        assert_eq!(left(&mut sampler), [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut all = with(u32::MAX);
        all.begin(&[1; 1000]);
        (0..5000).for_each(|i| all.accept(2 + i % 2));
        assert_eq!(left(&mut all), [0, 4, 5, 6, 7]);
    }
}
