//! From logits to a token: pure functions of logits, parameters and a random stream.
//!
//! ```text
//! logits ─► logit_bias ─► penalties ─► dry ─► top_n_sigma ─► top_k ─► typ_p ─► top_p ─► min_p ─► xtc ─► temperature ─► draw
//!           what is asked  what has occurred   far below      the      as       the     relative  the     sharpen       one
//!           for            is less likely      the highest    best     expected nucleus floor     top out or flatten    number
//! ```
//!
//! Names, defaults and order are llama.cpp's (`common/common.h`, `src/llama-sampler.cpp`), and each sampler keeps the
//! same tokens. The algorithms differ: the vocabulary is never copied into an array of structs, and never sorted.
//! [`Sampler`] borrows the logits until a stage narrows them, skips whole blocks by their highest logit if it can, and
//! sorts only what a stage looks at. After the first tokens, it does not allocate.
//!
//! | file         | what it does                                                                            |
//! |--------------|-----------------------------------------------------------------------------------------|
//! | [`samplers`] | a file for each sampler: name, letter, place, parameters, what it does, and its tests    |
//! | `parameter`  | parameters as data, from which flags, settings and the names on the wire are made        |
//! | `params`     | their values, by field and by name; orders of samplers                                   |
//! | `chain`      | the stages that the parameters ask for                                                   |
//! | `candidates` | what is left to choose from, and the draw                                                |
//! | `scan`       | passes over all logits, in shapes that become vector instructions                        |
//! | `marks`      | numbers on a few tokens: how often they have occurred                                    |
//!
//! For the same logits, a seed produces the same text on every machine. The generator and the functions use only
//! operations that IEEE 754 defines to the last bit, sums have a fixed order, and ties go to the lower id. Each token
//! takes numbers from the random stream: one for each `xtc` that is on and has two or more candidates, then one for the
//! draw. If the temperature is 0, there is no draw.

mod candidates;
mod chain;
mod marks;
mod parameter;
mod params;
pub mod samplers;
mod scan;
#[cfg(test)]
mod tests;

use crate::base::random::{self, Random};
use candidates::{Buffers, Candidate, Candidates};
use chain::Chain;
use marks::Marks;
pub use parameter::{Counts, Field, Parameter, Range, Value};
pub use params::{Params, SamplerKind, parse_bias};
pub use samplers::{
    adaptive_p::AdaptiveP, dry::Dry, mirostat::Mirostat, penalties::Penalties, temperature::Temperature, xtc::Xtc,
};

/// Why no token could be chosen, or no sampler built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A parameter is outside its range.
    #[error("{name} cannot be '{value}'; it has to be {wanted}")]
    Parameter {
        /// The parameter, as in [`Params::names`].
        name: &'static str,
        /// The value given.
        value: String,
        /// The range.
        wanted: &'static str,
    },
    /// There is no such name.
    #[error("there is no {what} '{name}'; {hint}")]
    Unknown {
        /// The kind of thing that the name should be of.
        what: &'static str,
        /// The name given.
        name: String,
        /// The nearest names, or all of them.
        hint: String,
    },
    /// There are no logits.
    #[error("there are no logits to choose from")]
    Empty,
    /// A logit is NaN or plus infinity: the model file is damaged, or its computation failed.
    #[error(
        "the model returned {value} as the logit of token {token}: its weights are damaged, or its computation overflowed"
    )]
    NotFinite {
        /// The token of the logit.
        token: usize,
        /// NaN or infinity.
        value: f32,
    },
    /// Every token is ruled out.
    #[error("every token is ruled out: no token that is allowed here has a logit above minus infinity")]
    AllRuledOut,
}

/// Chooses tokens. Holds its parameters, a random stream, and buffers that it reuses for every token.
///
/// [`Sampler::sample`] chooses a token. State that depends on earlier choices (penalties, DRY, Mirostat, adaptive-p)
/// changes only in [`Sampler::accept`], which refers to the logits of the last call.
#[derive(Clone, Debug)]
pub struct Sampler {
    chain: Chain,
    seed: u64,
    random: Random,
    history: History,
    buffers: Buffers,
    marks: Marks,
}

impl Sampler {
    /// Creates the sampler that `params` describe. It does not know the text of tokens, so DRY has no sequence
    /// breakers; see [`Sampler::with_text`].
    ///
    /// # Errors
    /// If a parameter lies outside its range.
    pub fn new(params: &Params) -> Result<Self, Error> {
        Self::with_text(params, 0, |_| &[])
    }

    /// Creates the sampler that `params` describe, for a vocabulary of `n_tokens` tokens whose text `bytes` returns.
    ///
    /// # Errors
    /// If a parameter lies outside its range.
    pub fn with_text<'a>(params: &Params, n_tokens: usize, bytes: impl Fn(u32) -> &'a [u8]) -> Result<Self, Error> {
        let chain = Chain::new(params, n_tokens, &|id| bytes(id))?;
        let seed = params.seed.unwrap_or_else(random::new_seed);
        let history = History { tokens: Vec::new(), last_n: chain.looks_back() };
        Ok(Self {
            chain,
            seed,
            random: Random::new(seed),
            history,
            buffers: Buffers::default(),
            marks: Marks::default(),
        })
    }

    /// Returns the seed in use: the given one, or the one that was picked.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns whether the sampler always takes the most likely of the tokens that its other stages keep.
    pub fn is_greedy(&self) -> bool {
        self.chain.is_greedy()
    }

    /// Starts a text with `prompt`, which the penalties search for repetitions too. Does not reset the random stream.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.history.begin(prompt);
        self.chain.begin();
    }

    /// Records that the text continues with `token`, whether it was drawn here or not.
    pub fn accept(&mut self, token: u32) {
        self.history.accept(token);
        self.chain.accept(token);
    }

    /// Chooses the next token: an index into `logits`. With `allowed`, chooses only among the tokens whose bit is set:
    /// token i is bit i % 32 of word i / 32. The others are treated as if their logits were minus infinity.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or no token is possible.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<u32, Error> {
        let mut candidates = Candidates::new(logits, allowed, &mut self.buffers)?;
        self.chain.apply(&mut candidates, &self.history.tokens, &mut self.marks, &mut self.random)?;
        if self.chain.is_greedy() {
            return candidates.most_likely();
        }
        candidates.draw(self.random.unit())
    }

    /// As [`Sampler::sample`], which chooses the same token. Writes to `out` the distribution that it was drawn from: ids
    /// in no order, with probabilities that add up to 1.
    ///
    /// # Errors
    /// If no token could be chosen, as for [`Sampler::sample`].
    pub fn sample_from(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
        out: &mut Vec<(u32, f64)>,
    ) -> Result<u32, Error> {
        out.clear();
        let mut candidates = Candidates::new(logits, allowed, &mut self.buffers)?;
        self.chain.apply(&mut candidates, &self.history.tokens, &mut self.marks, &mut self.random)?;
        if self.chain.is_greedy() {
            let token = candidates.most_likely()?;
            out.push((token, 1.0));
            return Ok(token);
        }
        candidates.probabilities(out)?;
        candidates.draw(self.random.unit())
    }

    /// Writes to `out` the distribution that [`Sampler::sample`] would draw from: ids in no order, with probabilities
    /// that add up to 1. Takes from the random stream the numbers that the stages need. [`Sampler::unit`] then returns
    /// the number for the draw.
    ///
    /// # Errors
    /// If no token could be chosen, as for [`Sampler::sample`].
    pub fn distribution(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
        out: &mut Vec<(u32, f64)>,
    ) -> Result<(), Error> {
        out.clear();
        let mut candidates = Candidates::new(logits, allowed, &mut self.buffers)?;
        self.chain.apply(&mut candidates, &self.history.tokens, &mut self.marks, &mut self.random)?;
        if self.chain.is_greedy() {
            out.push((candidates.most_likely()?, 1.0));
            return Ok(());
        }
        candidates.probabilities(out)
    }

    /// Returns the next number of the random stream, in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.random.unit()
    }

    /// Returns the natural logarithm of the model's own probability for `token`, before any sampler. Writes those of
    /// the `n` most likely tokens to `top`, in order.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or no token is possible.
    pub fn logprobs(&mut self, logits: &[f32], token: u32, n: usize, top: &mut Vec<(u32, f64)>) -> Result<f64, Error> {
        Candidates::new(logits, None, &mut self.buffers)?.logprobs(token, n, top)
    }
}

/// Returns the natural logarithm of the sum of e^logit over all logits: a token's logit minus this is the logarithm of its
/// probability. `tops` is a buffer for reuse.
///
/// # Errors
/// If a logit is NaN or plus infinity, or no logit is above minus infinity.
#[cfg(feature = "llama")]
pub(crate) fn log_total(logits: &[f32], tops: &mut Vec<f32>) -> Result<f64, Error> {
    let field = scan::Field { logits, mask: None };
    let top = field.tops(tops)?;
    if top == f32::NEG_INFINITY {
        return Err(if logits.is_empty() { Error::Empty } else { Error::AllRuledOut });
    }
    let total: f64 = tops.iter().enumerate().map(|(index, high)| field.weigh_block(index, *high, top, 1.0)).sum();
    Ok(f64::from(top) + crate::base::math::ln(total))
}

/// The last tokens of the text, as far back as any stage looks.
#[derive(Clone, Debug)]
struct History {
    tokens: Vec<u32>,
    last_n: usize,
}

impl History {
    fn begin(&mut self, prompt: &[u32]) {
        self.tokens.clear();
        self.tokens.extend_from_slice(&prompt[prompt.len().saturating_sub(self.last_n)..]);
    }

    fn accept(&mut self, token: u32) {
        if self.last_n == 0 {
            return;
        }
        // Twice the needed room, so that it is seldom moved.
        if self.tokens.len() >= self.last_n.saturating_mul(2).max(256) {
            self.tokens.drain(..self.tokens.len() - self.last_n);
        }
        self.tokens.push(token);
    }
}
