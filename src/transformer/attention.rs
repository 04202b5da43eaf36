//! Causal attention: each token of a window mixes the values of the tokens up to itself.
//!
//! ```text
//!  S = scale · Q Kᵀ     P = softmax S, row by row, up to the diagonal     O = P V
//!
//!        keys                         with G for the gradients:
//!       ┌──────┐                        G_V = Pᵀ G_O           G_P = G_O Vᵀ
//!  128  │▒     │                        G_S = scale · P ⊙ (G_P − rows' sums of P ⊙ G_P)
//!  at a │▒▒    │                        G_Q = G_S K            G_K = G_Sᵀ Q
//!  time │▒▒▒   │
//!       └──────┘  what is right of the tiles on the diagonal is not computed
//! ```
//!
//! Queries, keys, values and their gradients are as they leave and enter the matrices: for each token, all heads.

use rayon::prelude::*;

use super::shape::Heads;
use crate::base::math::exp_f32;
use crate::linear::{View, add_product};

/// Queries that are computed at a time. Sums over queries are made of sums over so many, so it is part of the result.
const QUERIES: usize = 128;

/// Queries, keys and values of windows of `window` tokens.
pub(super) struct Attention<'a> {
    pub(super) heads: Heads,
    pub(super) window: usize,
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
}

/// Gradients of queries, keys and values.
pub(super) struct Gradients {
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Attention<'_> {
    /// Returns the mixed values: for each token, all heads.
    pub(super) fn forward(&self) -> Vec<f32> {
        let Self { heads: Heads { n, value, .. }, window, .. } = *self;
        let mut mixed = vec![0.0; self.n_tokens() * n * value];
        mixed.par_chunks_exact_mut(window * value).enumerate().for_each(|(at, mixed)| {
            let (of_window, head) = (at / n, at % n);
            for (first, mixed) in mixed.chunks_mut(QUERIES * value).enumerate() {
                let tile = Tile::new(self, of_window, head, first * QUERIES);
                let shares = tile.shares();
                add_product(View::new(&shares, tile.end), tile.values, mixed);
            }
        });
        by_token(&mixed, n, window, value)
    }

    /// Returns the gradients for `mixed`, the gradients of what [`Self::forward`] returns.
    pub(super) fn backward(&self, mixed: &[f32]) -> Gradients {
        let Self { heads, window, .. } = *self;
        let Heads { n, n_kv, key, value } = heads;
        let n_tokens = self.n_tokens();
        let mut queries = vec![0.0; n_tokens * n * key];
        let mut keys = vec![0.0; n_tokens * n_kv * key];
        let mut values = vec![0.0; n_tokens * n_kv * value];
        // A head of keys, and those of queries that share it.
        let groups = queries.par_chunks_exact_mut(heads.group() * window * key);
        let groups = groups.zip(keys.par_chunks_exact_mut(window * key));
        let groups = groups.zip(values.par_chunks_exact_mut(window * value));
        groups.enumerate().for_each(|(at, ((queries, keys), values))| {
            let (of_window, head_kv) = (at / n_kv, at % n_kv);
            for (member, queries) in queries.chunks_exact_mut(window * key).enumerate() {
                let head = head_kv * heads.group() + member;
                for (first, queries) in queries.chunks_mut(QUERIES * key).enumerate() {
                    let tile = Tile::new(self, of_window, head, first * QUERIES);
                    let mixed = view(mixed, (n, value), of_window * window, head, tile.first..tile.end);
                    let shares = tile.shares();
                    add_product(View::new(&shares, tile.end).transposed(), mixed, &mut values[..tile.end * value]);
                    let mut scores = vec![0.0; shares.len()];
                    add_product(mixed, tile.values.transposed(), &mut scores);
                    softmax_backward(&shares, &mut scores, tile.end, heads.scale());
                    add_product(View::new(&scores, tile.end), tile.keys, queries);
                    let scores = View::new(&scores, tile.end).transposed();
                    add_product(scores, tile.queries, &mut keys[..tile.end * key]);
                }
            }
        });
        Gradients {
            queries: by_token(&queries, n, window, key),
            keys: by_token(&keys, n_kv, window, key),
            values: by_token(&values, n_kv, window, value),
        }
    }

    fn n_tokens(&self) -> usize {
        self.queries.len() / (self.heads.n * self.heads.key)
    }
}

/// Some queries of a head, and the keys and values up to the last of them.
struct Tile<'a> {
    first: usize,
    end: usize,
    scale: f32,
    queries: View<'a>,
    keys: View<'a>,
    values: View<'a>,
}

impl<'a> Tile<'a> {
    fn new(all: &Attention<'a>, of_window: usize, head: usize, first: usize) -> Self {
        let Heads { n, n_kv, key, value } = all.heads;
        let end = all.window.min(first + QUERIES);
        let (start, head_kv) = (of_window * all.window, head / all.heads.group());
        Self {
            first,
            end,
            scale: all.heads.scale(),
            queries: view(all.queries, (n, key), start, head, first..end),
            keys: view(all.keys, (n_kv, key), start, head_kv, 0..end),
            values: view(all.values, (n_kv, value), start, head_kv, 0..end),
        }
    }

    /// Returns the share that each key has in each query: rows of `end` numbers whose sum is 1.
    fn shares(&self) -> Vec<f32> {
        let mut shares = vec![0.0; (self.end - self.first) * self.end];
        add_product(self.queries, self.keys.transposed(), &mut shares);
        for (query, row) in shares.chunks_exact_mut(self.end).enumerate() {
            let (seen, unseen) = row.split_at_mut(self.first + query + 1);
            softmax(seen, self.scale);
            unseen.fill(0.0);
        }
        shares
    }
}

/// A head of some tokens of the window that begins at token `start`: a row for each. Tokens have `n` heads of `length`
/// numbers.
fn view(
    tokens: &[f32],
    (n, length): (usize, usize),
    start: usize,
    head: usize,
    range: std::ops::Range<usize>,
) -> View<'_> {
    let first = ((start + range.start) * n + head) * length;
    View::strided(&tokens[first..], range.len(), length, n * length)
}

/// From one head after the other in each window, to one token after the other.
fn by_token(heads: &[f32], n: usize, window: usize, length: usize) -> Vec<f32> {
    let mut tokens = vec![0.0; heads.len()];
    tokens.par_chunks_exact_mut(n * length).enumerate().for_each(|(token, to)| {
        let (of_window, at) = (token / window, token % window);
        for (head, to) in to.chunks_exact_mut(length).enumerate() {
            to.copy_from_slice(&heads[((of_window * n + head) * window + at) * length..][..length]);
        }
    });
    tokens
}

/// Replaces scores by their shares.
fn softmax(scores: &mut [f32], scale: f32) {
    scores.iter_mut().for_each(|score| *score *= scale);
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp_f32(*score - most));
    let sum: f64 = scores.iter().map(|share| f64::from(*share)).sum();
    let share = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|score| *score *= share);
}

/// Replaces gradients of shares by those of the scores before they were scaled, in rows of `columns` numbers.
fn softmax_backward(shares: &[f32], gradients: &mut [f32], columns: usize, scale: f32) {
    for (shares, gradients) in shares.chunks_exact(columns).zip(gradients.chunks_exact_mut(columns)) {
        let terms = shares.iter().zip(gradients.iter());
        let mean = terms.map(|(share, gradient)| f64::from(*share) * f64::from(*gradient)).sum::<f64>() as f32;
        for (share, gradient) in shares.iter().zip(gradients) {
            *gradient = scale * (share * (*gradient - mean));
        }
    }
}
