//! From logits to a token: pure functions of logits, parameters and a random stream.
//!
//! ```text
//! logits ─► logit_bias ─► penalties ─► dry ─► top_n_sigma ─► top_k ─► typ_p ─► top_p ─► min_p ─► xtc ─► temperature ─► draw
//!           what is asked  what has occurred   far below      the      as       the     relative  the     sharpen       one
//!           for            is less likely      the highest    best     expected nucleus floor     top out or flatten    number
//! ```
//!
//! Names, defaults and order are llama.cpp's (`common/common.h`, `src/llama-sampler.cpp`), and so are the tokens that each
//! sampler keeps. The algorithms are not: the vocabulary is never copied into an array of structs nor sorted. [`Sampler`] borrows the
//! logits until a stage narrows them, looks at blocks of them by their highest logit alone where it can, and sorts only
//! what a stage looks at. Once warm it allocates nothing.
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
//! One seed gives one text on every machine for the same logits: the generator and the functions are written out here in
//! operations that IEEE 754 defines to the last bit, sums are taken in one order, and ties go to the lower id. Each token
//! takes from the stream: one number for each `xtc` that is on and has two candidates or more, then one number for the
//! draw. Where the temperature is 0 there is no draw.

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
        /// The parameter, as [`Params::names`] has it.
        name: &'static str,
        /// The value given.
        value: String,
        /// The range.
        wanted: &'static str,
    },
    /// A name that does not exist.
    #[error("there is no {what} '{name}'; {hint}")]
    Unknown {
        /// What the name should be of.
        what: &'static str,
        /// The name given.
        name: String,
        /// The nearest names, or all of them.
        hint: String,
    },
    /// There are no logits.
    #[error("there are no logits to choose from")]
    Empty,
    /// A logit is not a number, or plus infinity: the model file or its computation is broken.
    #[error(
        "the model returned {value} as the logit of token {token}: its weights are damaged, or its computation overflowed"
    )]
    NotFinite {
        /// Whose logit.
        token: usize,
        /// NaN or infinity.
        value: f32,
    },
    /// Every token is ruled out.
    #[error("every token is ruled out: no token that is allowed here has a logit above minus infinity")]
    AllRuledOut,
}

/// Chooses tokens. Has its parameters, a random stream, and buffers that it uses again for every token.
///
/// [`Sampler::sample`] chooses. What depends on earlier choices (penalties, DRY, Mirostat, adaptive-p) changes only in
/// [`Sampler::accept`], which refers to the logits last looked at.
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
    /// Builds the sampler that `params` ask for. It does not know the text of tokens, so that DRY has no sequence
    /// breakers; see [`Sampler::with_text`].
    ///
    /// # Errors
    /// If a parameter lies outside its range.
    pub fn new(params: &Params) -> Result<Self, Error> {
        Self::with_text(params, 0, |_| &[])
    }

    /// Builds the sampler that `params` ask for, for a vocabulary of `n_tokens` tokens whose text `bytes` returns.
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

    /// Returns the seed in use: the one given, or the one picked.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether the sampler always takes the most likely of the tokens that its other stages leave.
    pub fn is_greedy(&self) -> bool {
        self.chain.is_greedy()
    }

    /// Starts a text with `prompt`, in which the penalties look for repetitions too. The random stream goes on.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.history.begin(prompt);
        self.chain.begin();
    }

    /// Records that the text continues with `token`, whether it was drawn here or not.
    pub fn accept(&mut self, token: u32) {
        self.history.accept(token);
        self.chain.accept(token);
    }

    /// Chooses the next token: an index into `logits`. Where `allowed` is given, only among the tokens whose bit is set
    /// in it: token i is bit i % 32 of word i / 32. The others are as if their logits were minus infinity.
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

    /// Writes to `out` what [`Sampler::sample`] would draw from: ids and probabilities, in no order, which add up to 1.
    /// Takes from the random stream what the stages take; the draw's own number is then [`Sampler::unit`]'s next.
    ///
    /// # Errors
    /// Those of [`Sampler::sample`].
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

    /// Returns the natural logarithm of the probability that the model itself gives `token`, before any sampler, and writes
    /// to `top` those of the `n` most likely tokens, in order.
    ///
    /// # Errors
    /// If a logit is NaN or plus infinity, or no token is possible.
    pub fn logprobs(&mut self, logits: &[f32], token: u32, n: usize, top: &mut Vec<(u32, f64)>) -> Result<f64, Error> {
        Candidates::new(logits, None, &mut self.buffers)?.logprobs(token, n, top)
    }
}

/// Returns the natural logarithm of the sum of e^logit over all logits: a token's logit minus this is the logarithm of its
/// probability. `tops` is a buffer to be used again.
///
/// # Errors
/// If a logit is NaN or plus infinity, or none is above minus infinity.
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

/// The end of the text, as far back as any stage looks.
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
        // Room for as many again, so that it is seldom moved.
        if self.tokens.len() >= self.last_n.saturating_mul(2).max(256) {
            self.tokens.drain(..self.tokens.len() - self.last_n);
        }
        self.tokens.push(token);
    }
}
