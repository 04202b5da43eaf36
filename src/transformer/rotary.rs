//! Rotary position embedding: pairs of numbers of a query or key are turned by angles that grow with the position.
//!
//! ```text
//!  llama:  (0 1) (2 3) (4 5) | rest      pairs side by side
//!  qwen2:  (0 3) (1 4) (2 5) | rest      one of each half
//! ```
//!
//! Source: ggml's `ggml_compute_forward_rope` and `rope_yarn`, and llama.cpp's `llama_context`, which computes what YaRN
//! multiplies by. Angles are computed in double precision, and their sines and cosines rounded.

use rayon::prelude::*;

use crate::base::math::{ln, pow};

/// How angles are changed for texts that are longer than those that the model was trained on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scaling {
    /// Positions are divided.
    Linear { factor: f64 },
    /// YaRN: the angles of slow pairs are divided, those of fast ones are not. `n_context` is the number of tokens before.
    ///
    /// Source: <https://arxiv.org/abs/2309.00071>
    Yarn { factor: f64, n_context: usize },
}

/// Turns in the original context from which YaRN leaves a pair alone, and up to which it divides its angles. llama.cpp reads
/// no others for these architectures.
const BETA_FAST: f64 = 32.0;
const BETA_SLOW: f64 = 1.0;

/// How queries and keys are rotated.
#[derive(Debug)]
pub(super) struct Rotary {
    /// Numbers of a head that are rotated: the first ones.
    n: usize,
    /// Whether a pair is one of each half.
    halves: bool,
    /// Radians a position, for each pair, before they are scaled.
    frequencies: Vec<f64>,
    /// What angles are multiplied by, for each pair.
    scales: Vec<f64>,
    /// What sines and cosines are multiplied by.
    magnitude: f64,
}

impl Rotary {
    /// Rotates the first `n` numbers of each head. `attention` multiplies what is rotated.
    pub(super) fn new(n: usize, halves: bool, base: f64, attention: f64, scaling: Scaling) -> Self {
        let pairs = n / 2;
        let frequencies = (0..pairs).map(|pair| pow(base, -2.0 * pair as f64 / n as f64)).collect();
        let (scales, magnitude) = match scaling {
            Scaling::Linear { factor } => (vec![1.0 / factor; pairs], attention),
            Scaling::Yarn { factor, n_context } => {
                // The pair that makes so many turns in the context.
                let pair_of =
                    |turns: f64| n as f64 * ln(n_context as f64 / (turns * std::f64::consts::TAU)) / (2.0 * ln(base));
                let low = pair_of(BETA_FAST).floor().max(0.0);
                let high = pair_of(BETA_SLOW).ceil().min(n as f64 - 1.0);
                let scale = |pair: usize| {
                    let slow = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    slow / factor + (1.0 - slow)
                };
                // What llama_context divides by, rope_yarn multiplies by, so that this is left.
                let magnitude = if factor > 1.0 { 1.0 + 0.1 * ln(factor) } else { 1.0 };
                ((0..pairs).map(scale).collect(), magnitude * attention)
            }
        };
        Self { n, halves, frequencies, scales, magnitude }
    }

    /// Divides the frequency of each pair.
    pub(super) fn divided_by(mut self, factors: &[f32]) -> Self {
        self.frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= f64::from(*factor));
        self
    }

    /// Returns cosine and sine for each pair, for each of the first `window` positions.
    pub(super) fn turns(&self, window: usize) -> Turns<'_> {
        let pairs = self.frequencies.len();
        let mut turns = vec![[0.0; 2]; window * pairs];
        turns.par_chunks_exact_mut(pairs).enumerate().for_each(|(position, turns)| {
            for ((turn, frequency), scale) in turns.iter_mut().zip(&self.frequencies).zip(&self.scales) {
                let (sin, cos) = libm::sincos(position as f64 * frequency * scale);
                *turn = [(cos * self.magnitude) as f32, (sin * self.magnitude) as f32];
            }
        });
        Turns { rotary: self, window, turns }
    }
}

/// Cosines and sines for each position of a window.
pub(super) struct Turns<'a> {
    rotary: &'a Rotary,
    window: usize,
    turns: Vec<[f32; 2]>,
}

impl Turns<'_> {
    /// Rotates the heads of all tokens: `n_heads` of `length` numbers for each.
    pub(super) fn forward(&self, tokens: &mut [f32], n_heads: usize, length: usize) {
        self.turn(tokens, n_heads, length, 1.0);
    }

    /// Replaces gradients with respect to rotated heads by those with respect to the heads before.
    pub(super) fn backward(&self, tokens: &mut [f32], n_heads: usize, length: usize) {
        self.turn(tokens, n_heads, length, -1.0);
    }

    fn turn(&self, tokens: &mut [f32], n_heads: usize, length: usize, sign: f32) {
        let Rotary { n, halves, .. } = *self.rotary;
        let pairs = n / 2;
        // The first numbers of two pairs, and the numbers of one, are so far apart.
        let (step, apart) = if halves { (1, pairs) } else { (2, 1) };
        tokens.par_chunks_exact_mut(n_heads * length).enumerate().for_each(|(token, heads)| {
            let turns = &self.turns[token % self.window * pairs..][..pairs];
            for head in heads.chunks_exact_mut(length) {
                for (pair, [cos, sin]) in turns.iter().enumerate() {
                    let (x, y) = (head[pair * step], head[pair * step + apart]);
                    let sin = sin * sign;
                    head[pair * step] = x * cos - y * sin;
                    head[pair * step + apart] = x * sin + y * cos;
                }
            }
        });
    }
}
