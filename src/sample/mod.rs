//! From logits to a token: pure functions of logits, parameters and a random stream.
//!
//! ```text
//! logits ─► logit_bias ─► penalties ─► dry ─► top_n_sigma ─► top_k ─► typ_p ─► top_p ─► min_p ─► xtc ─► temperature ─► draw
//!           what is asked  what was there      far below      the      as       the     relative  the     sharpen       one
//!           for            is less likely      the highest    best     expected nucleus floor     top out or flatten    number
//! ```
//!
//! Names, defaults and order are those of llama.cpp (`common/common.h`, `src/llama-sampler.cpp`), and so is what they
//! keep. The way there is not: the vocabulary is never copied into an array of structs nor sorted. [`Sampler`] borrows the
//! logits until a stage narrows them, looks at blocks of them by their highest logit alone where it can, and sorts only
//! what a stage looks at. Once warm it allocates nothing.
//!
//! | file         | what it does                                                             |
//! |--------------|--------------------------------------------------------------------------|
//! | `params`     | names, ranges, defaults, orders                                          |
//! | `stage`      | the chain that the parameters ask for                                    |
//! | `candidates` | what is left to choose from, and how each stage narrows it               |
//! | `scan`       | passes over all logits, in shapes that become vector instructions        |
//! | `marks`      | numbers on a few tokens: how often they were there                       |
//! | `dry`        | repetitions, and the texts that break them                               |
//! | `math`       | e^x, ln x, the same bits everywhere                                      |
//! | `random`     | random numbers that a seed brings back                                   |
//!
//! One seed gives one text on every machine for the same logits: the generator and the functions are written out here in
//! operations that IEEE 754 defines to the last bit, sums are taken in one order, and ties go to the lower id. Each token
//! takes from the stream: one number for each `xtc` that is on and has two candidates or more, then one number for the
//! draw. Where the temperature is 0 there is no draw.

mod candidates;
mod dry;
mod marks;
mod params;
mod scan;
mod stage;
#[cfg(test)]
mod tests;

use crate::base::random::{self, Random};
use candidates::{Buffers, Candidate, Candidates};
use marks::Marks;
pub use params::{Params, SamplerKind, parse_bias};
use stage::{Chain, Context};

/// Why no token could be chosen, or no sampler made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A parameter outside its range.
    #[error("{name} cannot be '{value}'; it has to be {wanted}")]
    Parameter {
        /// The parameter, as [`Params::names`] has it.
        name: &'static str,
        /// What was given.
        value: String,
        /// The range.
        wanted: &'static str,
    },
    /// A name that does not exist.
    #[error("there is no {what} '{name}'; {hint}")]
    Unknown {
        /// Of what kind.
        what: &'static str,
        /// What was given.
        name: String,
        /// What may have been meant, or what there is.
        hint: String,
    },
    /// No logits at all.
    #[error("there are no logits to choose from")]
    Empty,
    /// A logit that is not a number, or infinitely high: the model file or its computation is broken.
    #[error(
        "the model gave {value} as the logit of token {token}: its weights are broken, or a value ran over; \
         try another quantization, or --kv-type f32"
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

/// Chooses tokens: parameters, a random stream, and the buffers that are used again for every token.
///
/// [`Sampler::sample`] chooses; what depends on what was chosen (penalties, DRY, Mirostat, adaptive-p) changes only in
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
    /// A sampler that does what `params` ask. It does not know the text of tokens, so that nothing breaks the
    /// repetitions that DRY looks for; see [`Sampler::with_text`].
    ///
    /// # Errors
    /// Where a parameter lies outside its range.
    pub fn new(params: &Params) -> Result<Self, Error> {
        Self::with_text(params, 0, |_| &[])
    }

    /// A sampler that does what `params` ask, for a vocabulary of `n_tokens`, where `bytes` gives the text of each.
    ///
    /// # Errors
    /// Where a parameter lies outside its range.
    pub fn with_text<'a>(params: &Params, n_tokens: usize, bytes: impl Fn(u32) -> &'a [u8]) -> Result<Self, Error> {
        let chain = Chain::new(params, n_tokens, bytes)?;
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

    /// The seed in use: the one that was given, or the one that was picked.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether the most likely token is always taken, of those that the other stages leave.
    pub fn is_greedy(&self) -> bool {
        self.chain.is_greedy()
    }

    /// Begins a text with `prompt`: what is penalised as a repetition is looked up there too. The random stream goes on.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.history.begin(prompt);
        self.chain.begin();
    }

    /// Takes note that the text goes on with `token`, whether it was drawn here or not.
    pub fn accept(&mut self, token: u32) {
        self.history.accept(token);
        self.chain.accept(token);
    }

    /// Chooses the next token: an index into `logits`. Where `allowed` is given, only among the tokens whose bit is set
    /// in it: token i is bit i % 32 of word i / 32. The others are as if their logits were minus infinity.
    ///
    /// # Errors
    /// Where a logit is NaN or plus infinity, or no token is possible.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<u32, Error> {
        let mut candidates = Candidates::new(logits, allowed, &mut self.buffers)?;
        let mut context = Context { history: &self.history.tokens, marks: &mut self.marks, random: &mut self.random };
        self.chain.apply(&mut candidates, &mut context)?;
        if self.chain.is_greedy() {
            return candidates.most_likely();
        }
        candidates.draw(self.random.unit())
    }

    /// What [`Sampler::sample`] would draw from: ids and probabilities in `out`, in no order, which add up to 1. Takes
    /// from the random stream what the stages take; the draw's own number is then [`Sampler::unit`]'s next.
    ///
    /// # Errors
    /// As for [`Sampler::sample`].
    pub fn distribution(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
        out: &mut Vec<(u32, f64)>,
    ) -> Result<(), Error> {
        out.clear();
        let mut candidates = Candidates::new(logits, allowed, &mut self.buffers)?;
        let mut context = Context { history: &self.history.tokens, marks: &mut self.marks, random: &mut self.random };
        self.chain.apply(&mut candidates, &mut context)?;
        if self.chain.is_greedy() {
            out.push((candidates.most_likely()?, 1.0));
            return Ok(());
        }
        candidates.probabilities(out)
    }

    /// The next number of the random stream, from 0 up to but without 1.
    pub fn unit(&mut self) -> f64 {
        self.random.unit()
    }

    /// What the model itself thinks, before anything is done to its logits: the natural logarithm of `token`'s
    /// probability; and of the `n` most likely tokens, in order, in `top`.
    ///
    /// # Errors
    /// Where a logit is NaN or plus infinity, or no token is possible.
    pub fn logprobs(&mut self, logits: &[f32], token: u32, n: usize, top: &mut Vec<(u32, f64)>) -> Result<f64, Error> {
        Candidates::new(logits, None, &mut self.buffers)?.logprobs(token, n, top)
    }
}

/// The natural logarithm of the sum of e^logit over all logits: a token's logit less this is the logarithm of its
/// probability. `tops` is a buffer that is used again.
///
/// # Errors
/// Where a logit is NaN or plus infinity, or none is above minus infinity.
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
