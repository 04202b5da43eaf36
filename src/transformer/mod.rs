//! The layers of Llama-like models, computed forward and backward, one at a time.
//!
//! ```text
//!  tokens ─► embed ─► hidden ─► [ forward 0 ] ─► hidden ─► [ forward 1 ] ─► ... ─► hidden ─► [ head ] ─► logits
//!                       │                          │                                            │
//!                    gradient ◄─ [ backward 0 ] ◄─ gradient ◄─ [ backward 1 ] ◄─ ... ◄─ gradient  ◄─ loss
//! ```
//!
//! This is for calibration: what enters each matrix, and the gradient of a loss with respect to what leaves it, are shown as
//! they are computed ([`Seen`]). It is not for generating text. Weights are read when they are needed and not kept, so that
//! the model never has to fit in memory. Numbers have single precision, and the same bits on every CPU and for any number of
//! threads. They do not depend on how many windows are computed at a time.
//!
//! A layer, whose matrices may have biases:
//!
//! ```text
//!  x ─┬─► norm ─► q, k, v ─► rotate q and k ─► attention ─► output ─► + ─┬─► norm ─► silu(gate) ⊙ up ─► down ─► + ─►
//!     └──────────────────────────────────────────────────────────────►───┘└─────────────────────────────────────►─┘
//! ```
//!
//! | file        | what                                                                            |
//! |-------------|---------------------------------------------------------------------------------|
//! | `shape`     | what the metadata says, checked against the tensors; what is refused            |
//! | `weights`   | where weights come from, and products with matrices that are read in parts      |
//! | `rotary`    | positions                                                                       |
//! | `attention` | attention                                                                       |
//! | `pointwise` | norms and gates                                                                 |
//!
//! Source: llama.cpp's `src/models/llama.cpp` and `qwen2.cpp`; <https://arxiv.org/abs/2302.13971>

mod attention;
mod error;
mod pointwise;
mod rotary;
mod shape;
#[cfg(test)]
mod tests;
mod weights;

use rayon::prelude::*;

pub use error::Error;
pub use weights::Weights;

use crate::gguf::Metadata;
use attention::{Attention, Gradients};
use pointwise::{Norm, add, gated, gated_backward};
use shape::{EMBEDDING, Heads, OUTPUT, OUTPUT_BIAS, OUTPUT_NORM, Shape};
use weights::{Matrix, read_rows, vector};

/// Logits that [`Model::head`] computes at a time: 128 MiB.
const LOGITS_AT_ONCE: usize = 1 << 25;

/// What is seen of a matrix y = W x + b, or of the weights of a norm y = w ⊙ x, for some tokens.
///
/// With g for the gradients, the gradient with respect to the weights is the sum over the tokens of g xᵀ for a matrix, of
/// g ⊙ x for a norm, and of g for the bias of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'s> {
    /// The tensor's name without `blk.N.`, such as `attn_q.weight` or `output.weight`, which may be the embedding.
    pub tensor: &'s str,
    /// Whether it is the vector of weights of a norm. Forward passes show matrices alone.
    pub is_norm: bool,
    /// Number of tokens.
    pub n_tokens: usize,
    /// For each token what enters: a number for each column.
    pub inputs: &'s [f32],
    /// For each token the gradient of the loss with respect to what leaves: a number for each row of a matrix, or for each
    /// number of a norm. Empty in forward passes.
    pub gradients: &'s [f32],
}

/// Is called with what is seen, in the order of the computation.
pub type See<'f> = &'f mut dyn FnMut(Seen<'_>);

/// A model whose layers can be computed.
pub struct Model<'a> {
    shape: Shape,
    weights: &'a dyn Weights,
}

impl<'a> Model<'a> {
    /// Checks that all tensors are there, have the sizes that the metadata says, and are known. Reads no matrix.
    ///
    /// # Errors
    /// If the architecture or a tensor is not known, the metadata lacks a value or has one that cannot be computed with, or a
    /// tensor is missing or has another size.
    pub fn new(metadata: &Metadata, weights: &'a dyn Weights) -> Result<Self, Error> {
        Ok(Self { shape: Shape::new(metadata, weights)?, weights })
    }

    /// Returns the number of layers.
    pub fn n_layers(&self) -> usize {
        self.shape.heads.len()
    }

    /// Returns the number of numbers that a token has between layers.
    pub fn n_embd(&self) -> usize {
        self.shape.n_embd
    }

    /// Returns the number of tokens that there are.
    pub fn n_vocab(&self) -> usize {
        self.shape.n_vocab
    }

    /// Returns whether the embedding is the output matrix, too.
    pub fn is_tied(&self) -> bool {
        self.shape.tied
    }

    /// Returns what enters the first layer: [`Self::n_embd`] numbers for each token.
    ///
    /// # Errors
    /// If there is no such token, or the embedding cannot be read.
    pub fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let Shape { n_embd, n_vocab, .. } = self.shape;
        let (mut hidden, mut row) = (Vec::new(), Vec::new());
        for &token in tokens {
            let at = usize::try_from(token).ok().filter(|at| *at < n_vocab);
            let at = at.ok_or(Error::NoToken { token, n_vocab })?;
            read_rows(self.weights, EMBEDDING, at..at + 1, n_embd, &mut row)?;
            hidden.extend_from_slice(&row);
        }
        Ok(hidden)
    }

    /// Computes layer `layer` over whole windows of `window` tokens, which do not see one another: `hidden`, [`Self::n_embd`]
    /// numbers for each token, is what enters, and is replaced by what leaves. Positions count from 0 in each window.
    ///
    /// Works on the threads of the current rayon pool. Memory: for each token about three times the columns of the
    /// feed-forward part.
    ///
    /// # Errors
    /// If there is no such layer, `hidden` is not whole windows, or weights cannot be read. `hidden` is then of no use.
    pub fn forward(&self, layer: usize, window: usize, hidden: &mut [f32], see: See<'_>) -> Result<(), Error> {
        let layer = self.layer(layer, window, hidden)?;
        if hidden.is_empty() {
            return Ok(());
        }
        let n_tokens = hidden.len() / self.shape.n_embd;
        let mut show =
            |tensor: &str, inputs: &[f32]| see(Seen { tensor, is_norm: false, n_tokens, inputs, gradients: &[] });

        let first = layer.attend(hidden)?;
        for tensor in ["attn_q.weight", "attn_k.weight", "attn_v.weight"] {
            show(tensor, &first.normed);
        }
        show("attn_output.weight", &first.mixed);
        layer.finish_attention(&first, hidden)?;
        drop(first);

        let Fed { normed, gate, up } = layer.feed(hidden)?;
        show("ffn_gate.weight", &normed);
        show("ffn_up.weight", &normed);
        let inner = gated(&gate, &up);
        drop((normed, gate, up));
        show("ffn_down.weight", &inner);
        add(hidden, &layer.matrix("ffn_down")?.forward(&inner)?);
        Ok(())
    }

    /// Computes layer `layer` backward: `hidden` is what entered it, and `gradient`, the gradient of the loss with respect to
    /// what left it, is replaced by the gradient with respect to `hidden`. Both have [`Self::n_embd`] numbers for each token.
    /// Computes the layer anew, so that nothing has to be kept of [`Self::forward`].
    ///
    /// Works on the threads of the current rayon pool. Memory: for each token about three times the columns of the
    /// feed-forward part.
    ///
    /// # Errors
    /// If there is no such layer, `hidden` is not whole windows, `gradient` has another length, or weights cannot be read.
    /// `gradient` is then of no use.
    pub fn backward(
        &self,
        layer: usize,
        window: usize,
        hidden: &[f32],
        gradient: &mut [f32],
        see: See<'_>,
    ) -> Result<(), Error> {
        if gradient.len() != hidden.len() {
            return Err(Error::Gradients { found: gradient.len(), wanted: hidden.len() });
        }
        let layer = self.layer(layer, window, hidden)?;
        if hidden.is_empty() {
            return Ok(());
        }
        let n_tokens = hidden.len() / self.shape.n_embd;
        let mut show = |tensor: &str, is_norm: bool, inputs: &[f32], gradients: &[f32]| {
            see(Seen { tensor, is_norm, n_tokens, inputs, gradients });
        };

        let first = layer.attend(hidden)?;
        let mut middle = hidden.to_vec();
        layer.finish_attention(&first, &mut middle)?;

        // From here on `gate` and `up` become their gradients, and `gradient` that of `middle`.
        let Fed { normed, mut gate, mut up } = layer.feed(&middle)?;
        let mut inner = gated(&gate, &up);
        show("ffn_down.weight", false, &inner, gradient);
        inner.fill(0.0);
        layer.matrix("ffn_down")?.add_backward(gradient, &mut inner)?;
        gated_backward(&mut gate, &mut up, &inner);
        drop(inner);
        show("ffn_gate.weight", false, &normed, &gate);
        show("ffn_up.weight", false, &normed, &up);
        let mut gradient_normed = vec![0.0; hidden.len()];
        layer.matrix("ffn_gate")?.add_backward(&gate, &mut gradient_normed)?;
        layer.matrix("ffn_up")?.add_backward(&up, &mut gradient_normed)?;
        drop((normed, gate, up));
        let norm = layer.norm("ffn_norm.weight")?;
        show("ffn_norm.weight", true, &norm.unweighted(&middle), &gradient_normed);
        norm.add_backward(&middle, &gradient_normed, gradient);
        drop(middle);

        show("attn_output.weight", false, &first.mixed, gradient);
        let mut mixed = vec![0.0; first.mixed.len()];
        layer.matrix("attn_output")?.add_backward(gradient, &mut mixed)?;
        let Gradients { mut queries, mut keys, values } = layer.attention(&first).backward(&mixed);
        drop(mixed);
        let (Heads { n, n_kv, key, .. }, turns) = (layer.heads, self.shape.rotary.turns(window));
        turns.backward(&mut queries, n, key);
        turns.backward(&mut keys, n_kv, key);
        gradient_normed.fill(0.0);
        for (matrix, gradients) in [("attn_q", &queries), ("attn_k", &keys), ("attn_v", &values)] {
            show(&format!("{matrix}.weight"), false, &first.normed, gradients);
            layer.matrix(matrix)?.add_backward(gradients, &mut gradient_normed)?;
        }
        let norm = layer.norm("attn_norm.weight")?;
        show("attn_norm.weight", true, &norm.unweighted(hidden), &gradient_normed);
        norm.add_backward(hidden, &gradient_normed, gradient);
        Ok(())
    }

    /// Computes the end of the model forward and backward: `hidden` is what leaves the last layer. `loss` gets the number of
    /// a token in `hidden` and its [`Self::n_vocab`] logits, and replaces them by the gradient of the loss with respect to
    /// them; several threads call it at once. Returns the gradient with respect to `hidden`.
    ///
    /// The final norm and the output matrix are seen for some tokens at a time, so that logits take little memory.
    ///
    /// # Errors
    /// If `hidden` is not whole tokens, or weights cannot be read.
    pub fn head(
        &self,
        hidden: &[f32],
        loss: &(dyn Fn(usize, &mut [f32]) + Sync),
        see: See<'_>,
    ) -> Result<Vec<f32>, Error> {
        self.check_windows(1, hidden)?;
        let Shape { n_embd, n_vocab, .. } = self.shape;
        let (norm, output) = (self.norm(OUTPUT_NORM)?, self.output()?);
        let mut gradient = vec![0.0; hidden.len()];
        let at_once = (LOGITS_AT_ONCE / n_vocab).max(1);
        let parts = hidden.chunks(at_once * n_embd).zip(gradient.chunks_mut(at_once * n_embd));
        for (part, (hidden, gradient)) in parts.enumerate() {
            let normed = norm.forward(hidden);
            let mut logits = output.forward(&normed)?;
            let tokens = logits.par_chunks_exact_mut(n_vocab).enumerate();
            tokens.for_each(|(token, logits)| loss(part * at_once + token, logits));
            let n_tokens = hidden.len() / n_embd;
            see(Seen { tensor: OUTPUT, is_norm: false, n_tokens, inputs: &normed, gradients: &logits });
            let mut of_norm = vec![0.0; hidden.len()];
            output.add_backward(&logits, &mut of_norm)?;
            let inputs = norm.unweighted(hidden);
            see(Seen { tensor: OUTPUT_NORM, is_norm: true, n_tokens, inputs: &inputs, gradients: &of_norm });
            norm.add_backward(hidden, &of_norm, gradient);
        }
        Ok(gradient)
    }

    /// Returns what enters the output matrix, where `hidden` is what leaves the last layer.
    ///
    /// # Errors
    /// If `hidden` is not whole tokens, or weights cannot be read.
    pub fn normed(&self, hidden: &[f32]) -> Result<Vec<f32>, Error> {
        self.check_windows(1, hidden)?;
        Ok(self.norm(OUTPUT_NORM)?.forward(hidden))
    }

    /// Returns [`Self::n_vocab`] logits for each token, where `hidden` is what leaves the last layer.
    ///
    /// # Errors
    /// If `hidden` is not whole tokens, or weights cannot be read.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, Error> {
        self.check_windows(1, hidden)?;
        self.output()?.forward(&self.norm(OUTPUT_NORM)?.forward(hidden))
    }

    fn layer(&self, layer: usize, window: usize, hidden: &[f32]) -> Result<Layer<'_>, Error> {
        let n_layers = self.n_layers();
        let heads = *self.shape.heads.get(layer).ok_or(Error::NoLayer { layer, n_layers })?;
        self.check_windows(window, hidden)?;
        Ok(Layer { model: self, layer, window, heads })
    }

    fn check_windows(&self, window: usize, hidden: &[f32]) -> Result<(), Error> {
        let n_embd = self.shape.n_embd;
        let of_window = window.checked_mul(n_embd).filter(|n| *n > 0);
        if of_window.is_some_and(|n| hidden.len().is_multiple_of(n)) {
            return Ok(());
        }
        Err(Error::Windows { found: hidden.len(), window, n_embd })
    }

    fn norm(&self, name: &str) -> Result<Norm, Error> {
        Ok(Norm { weights: vector(self.weights, name)?, epsilon: self.shape.epsilon })
    }

    fn output(&self) -> Result<Matrix<'_>, Error> {
        let name = if self.shape.tied { EMBEDDING } else { OUTPUT };
        let has_bias = self.weights.dims(OUTPUT_BIAS).is_some();
        let bias = if has_bias { Some(vector(self.weights, OUTPUT_BIAS)?) } else { None };
        Ok(Matrix::unbiased(self.weights, name.to_string())?.with_bias(bias))
    }
}

/// A layer, to be computed over windows of one length.
struct Layer<'a> {
    model: &'a Model<'a>,
    layer: usize,
    window: usize,
    heads: Heads,
}

/// What the first half of a layer computes up to the matrix `attn_output`.
struct Attended {
    normed: Vec<f32>,
    /// Rotated, as are the keys.
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
}

/// What the second half of a layer computes before the gate.
struct Fed {
    normed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Layer<'_> {
    fn matrix(&self, name: &str) -> Result<Matrix<'_>, Error> {
        Matrix::new(self.model.weights, &format!("blk.{}.{name}", self.layer))
    }

    fn norm(&self, name: &str) -> Result<Norm, Error> {
        self.model.norm(&format!("blk.{}.{name}", self.layer))
    }

    fn attend(&self, hidden: &[f32]) -> Result<Attended, Error> {
        let Heads { n, n_kv, key, .. } = self.heads;
        let normed = self.norm("attn_norm.weight")?.forward(hidden);
        let mut queries = self.matrix("attn_q")?.forward(&normed)?;
        let mut keys = self.matrix("attn_k")?.forward(&normed)?;
        let values = self.matrix("attn_v")?.forward(&normed)?;
        let turns = self.model.shape.rotary.turns(self.window);
        turns.forward(&mut queries, n, key);
        turns.forward(&mut keys, n_kv, key);
        let mut attended = Attended { normed, queries, keys, values, mixed: Vec::new() };
        attended.mixed = self.attention(&attended).forward();
        Ok(attended)
    }

    fn attention<'s>(&self, attended: &'s Attended) -> Attention<'s> {
        let Attended { queries, keys, values, .. } = attended;
        Attention { heads: self.heads, window: self.window, queries, keys, values }
    }

    /// Adds the first half of the layer to `hidden`.
    fn finish_attention(&self, attended: &Attended, hidden: &mut [f32]) -> Result<(), Error> {
        add(hidden, &self.matrix("attn_output")?.forward(&attended.mixed)?);
        Ok(())
    }

    fn feed(&self, middle: &[f32]) -> Result<Fed, Error> {
        let normed = self.norm("ffn_norm.weight")?.forward(middle);
        let gate = self.matrix("ffn_gate")?.forward(&normed)?;
        let up = self.matrix("ffn_up")?.forward(&normed)?;
        Ok(Fed { normed, gate, up })
    }
}
