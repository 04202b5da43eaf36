//! Mirostat: keeps the surprise of the text near a target, in two versions.
//!
//! Source: Basu et al., "Mirostat", <https://arxiv.org/abs/2007.14966>

use super::{Entry, Place};
use crate::base::math::{exp, ln, pow};
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::parameter::{Counts, Parameter, Range, field};
use crate::sample::{Error, SamplerKind};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "mirostat",
    aliases: &[],
    letter: None,
    place: Place::Alone { after: &[SamplerKind::Temperature] },
    parameters: &[
        Parameter::count(
            "mirostat",
            field!(mirostat.version),
            Counts { wanted: "0 for off, 1 or 2", below_zero: None, most: 2 },
            "Keep the text equally surprising throughout (Mirostat): 1 or 2 for its first or second version, 0 for off. Of \
             the other samplers only `temperature` and `logit_bias` are used then",
        )
        .contradicts_greedy(),
        Parameter::number(
            "mirostat_tau",
            field!(mirostat.tau),
            Range::FROM_0,
            "With `mirostat`: how surprising the text should be, in bits per token",
        )
        .aliases(&["mirostat_ent"]),
        Parameter::number(
            "mirostat_eta",
            field!(mirostat.eta),
            Range::FROM_0,
            "With `mirostat`: how fast it corrects deviations from that",
        )
        .aliases(&["mirostat_lr"]),
    ],
};

/// The target surprise.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirostat {
    /// 1 or 2 for the first or the second version; 0 turns the sampler off.
    pub version: u32,
    /// The target surprise, in bits.
    pub tau: f32,
    /// The share of a deviation that is corrected at each token.
    pub eta: f32,
}

/// See [`Mirostat`].
pub type Settings = Mirostat;

impl Default for Mirostat {
    fn default() -> Self {
        Self { version: 0, tau: 5.0, eta: 0.1 }
    }
}

pub(in crate::sample) fn defaults() -> Settings {
    Mirostat::default()
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    version: u32,
    tau: f64,
    eta: f64,
    // The highest surprise that is allowed, in bits.
    mu: f64,
}

pub(in crate::sample) fn stage(settings: &Settings, _: &Surroundings<'_>) -> Option<Stage> {
    let &Mirostat { version, tau, eta } = settings;
    (version > 0).then_some(Stage { version, tau: tau.into(), eta: eta.into(), mu: 0.0 })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Looks
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        match self.version {
            1 => zipf(candidates, self.mu)?,
            _ => less_surprising_than(candidates, self.mu)?,
        }
        candidates.probabilities(context.last)
    }

    fn begin(&mut self) {
        self.mu = 2.0 * self.tau;
    }

    fn learn(&mut self, p: f64) {
        let surprise = -ln(p) / std::f64::consts::LN_2;
        self.mu -= self.eta * (surprise - self.tau);
    }
}

/// The first version: keeps as many of the most likely tokens as have a surprise below `mu` bits according to Zipf's
/// law, fitted to the 100 most likely tokens.
fn zipf(candidates: &mut Candidates<'_>, mu: f64) -> Result<(), Error> {
    const MOST: usize = 100;
    candidates.scan()?;
    let mut few = std::mem::take(&mut candidates.buffers.spare);
    few.clear();
    if candidates.is_list {
        few.extend_from_slice(&candidates.buffers.list);
    } else {
        let bar = candidates.bar_of(MOST);
        candidates.collect(bar, &mut few);
    }
    few.sort_unstable_by_key(|c| c.rank());
    few.truncate(MOST);
    let (mut products, mut squares) = (0.0, 0.0);
    for (i, pair) in few.windows(2).enumerate() {
        let t = ln((i + 2) as f64 / (i + 1) as f64);
        let b = (f64::from(pair[0].logit) - f64::from(pair[1].logit)) / candidates.temperature;
        products += t * b;
        squares += t * t;
    }
    candidates.buffers.spare = few;
    let s = products / squares;
    let epsilon = s - 1.0;
    let vocabulary = candidates.n_vocabulary() as f64;
    let k = pow(epsilon * pow(2.0, mu) / (1.0 - pow(vocabulary, -epsilon)), 1.0 / s);
    // The cast turns NaN into 0; a single candidate or a flat distribution makes it NaN.
    candidates.keep_most_likely((k as usize).max(1))
}

/// The second version: keeps the tokens with a surprise of up to `mu` bits, and always the most likely one.
fn less_surprising_than(candidates: &mut Candidates<'_>, mu: f64) -> Result<(), Error> {
    candidates.scan()?;
    let total = candidates.total();
    let bar = candidates.at_weight(total * exp(-mu * std::f64::consts::LN_2));
    if bar > candidates.top {
        return candidates.only_most_likely();
    }
    if candidates.is_list {
        candidates.buffers.list.retain(|c| c.logit >= bar);
    } else {
        candidates.list_from(bar);
    }
    Ok(())
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

    pub fn examples() -> Vec<Params> {
        let version = |version, tau| Params { mirostat: Mirostat { version, tau, ..Mirostat::default() }, ..all() };
        vec![version(1, 2.0), version(2, 2.0), version(1, 5.0), version(2, 5.0)]
    }

    pub fn extremes() -> Vec<Params> {
        [1, 2].map(|version| Params { mirostat: Mirostat { version, tau: f32::MAX, eta: f32::MAX }, ..all() }).to_vec()
    }

    /// Does nothing: the sampler has state, which the naive way does not model.
    pub fn naive(_: &mut Naive, _: &Params, _: &[u32], _: f64) {}

    #[test]
    fn the_surprise_comes_near_its_target() {
        for tau in [2.0, 4.0] {
            for version in [1, 2] {
                let params = Params { mirostat: Mirostat { version, tau, ..Mirostat::default() }, ..all() };
                let (surprise, _) = mean_surprise_and_probability(params);
                assert!((surprise - f64::from(tau)).abs() < 0.1, "version {version}: {surprise}, wanted {tau}");
            }
        }
    }
}
