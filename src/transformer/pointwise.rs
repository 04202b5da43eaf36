//! What is computed number by number or token by token: norms, and the gate of the feed-forward part.

use rayon::prelude::*;

use crate::base::math::exp_f32;

/// The root mean square norm of tokens: y = w ⊙ x / sqrt(mean x² + ε).
///
/// Source: <https://arxiv.org/abs/1910.07467>
pub(super) struct Norm {
    pub(super) weights: Vec<f32>,
    pub(super) epsilon: f64,
}

impl Norm {
    /// Returns the norm of each token.
    pub(super) fn forward(&self, tokens: &[f32]) -> Vec<f32> {
        let mut normed = self.unweighted(tokens);
        normed.par_chunks_exact_mut(self.weights.len()).for_each(|token| {
            token.iter_mut().zip(&self.weights).for_each(|(x, weight)| *x *= weight);
        });
        normed
    }

    /// Returns the norm of each token before it is multiplied by the weights.
    pub(super) fn unweighted(&self, tokens: &[f32]) -> Vec<f32> {
        let n = self.weights.len();
        let mut normed = vec![0.0; tokens.len()];
        normed.par_chunks_exact_mut(n).zip(tokens.par_chunks_exact(n)).for_each(|(normed, token)| {
            let factor = self.factor(token) as f32;
            normed.iter_mut().zip(token).for_each(|(y, x)| *y = x * factor);
        });
        normed
    }

    /// Adds to `inputs` the gradients of `tokens`, where `outputs` are those of their norms.
    ///
    /// ```text
    /// G_x = r (w ⊙ G_y) − x r³ mean(w ⊙ G_y ⊙ x),     r = 1 / sqrt(mean x² + ε)
    /// ```
    pub(super) fn add_backward(&self, tokens: &[f32], outputs: &[f32], inputs: &mut [f32]) {
        let n = self.weights.len();
        let outputs = outputs.par_chunks_exact(n);
        let tokens = inputs.par_chunks_exact_mut(n).zip(tokens.par_chunks_exact(n)).zip(outputs);
        tokens.for_each(|((inputs, token), outputs)| {
            let factor = self.factor(token);
            let terms = token.iter().zip(outputs).zip(&self.weights);
            let sum: f64 = terms.map(|((x, g), weight)| f64::from(*x) * f64::from(*g) * f64::from(*weight)).sum();
            let along = (factor * factor * factor * sum / n as f64) as f32;
            let factor = factor as f32;
            for (((input, x), g), weight) in inputs.iter_mut().zip(token).zip(outputs).zip(&self.weights) {
                *input += factor * (g * weight) - x * along;
            }
        });
    }

    fn factor(&self, token: &[f32]) -> f64 {
        let squares: f64 = token.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        1.0 / (squares / token.len() as f64 + self.epsilon).sqrt()
    }
}

/// Numbers that a thread computes at a time.
const SOME: usize = 4096;

/// Returns silu(gate) ⊙ up, where silu(x) = x / (1 + e^-x).
///
/// Source: <https://arxiv.org/abs/2002.05202>
pub(super) fn gated(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    let parts = out.par_chunks_mut(SOME).zip(gate.par_chunks(SOME)).zip(up.par_chunks(SOME));
    parts.for_each(|((out, gate), up)| {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    });
    out
}

/// Replaces `gate` and `up` by their gradients, where `out` are those of what [`gated`] returns.
pub(super) fn gated_backward(gate: &mut [f32], up: &mut [f32], out: &[f32]) {
    let parts = gate.par_chunks_mut(SOME).zip(up.par_chunks_mut(SOME)).zip(out.par_chunks(SOME));
    parts.for_each(|((gate, up), out)| {
        for ((gate, up), g) in gate.iter_mut().zip(up).zip(out) {
            let x = *gate;
            let s = sigmoid(x);
            *gate = g * *up * (s * (1.0 + x * (1.0 - s)));
            *up = g * (x * s);
        }
    });
}

/// Adds `more` to `sums`.
pub(super) fn add(sums: &mut [f32], more: &[f32]) {
    let parts = sums.par_chunks_mut(SOME).zip(more.par_chunks(SOME));
    parts.for_each(|(sums, more)| sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x));
}

/// 1 / (1 + e^-x), from the exponential of what is not positive.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let e = exp_f32(-x.abs());
    (if x >= 0.0 { 1.0 } else { e }) / (1.0 + e)
}
