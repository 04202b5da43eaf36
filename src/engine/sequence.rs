//! A sequence of tokens in the memory of a decoder, which may hold other sequences too.
//!
//! ```text
//! sequences     0: Once upon a          batch   time   0 x        decoder      logits of 0 ──► generation of 0
//!               1: The king        ──►          of     1          ──►
//!                                               France 1 x                     logits of 1 ──► generation of 1
//! ```

use super::{Decoder, Error};
use crate::llama::{self, Batch};

/// The tokens of an evaluation whose logits are computed, which are the predictions for the next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None.
    None,
    /// The last: one row.
    Last,
    /// Each: as many rows as tokens, which have to fit one batch and [`Decoder::n_rows`].
    All,
}

/// A sequence, and the tokens that the decoder's memory holds of it.
///
/// All changes to that memory go through this struct, so that both stay consistent.
#[derive(Clone, Debug)]
pub struct Sequence {
    id: u32,
    tokens: Vec<u32>,
}

impl Sequence {
    /// Returns sequence `id` of a decoder, which holds nothing of it.
    pub fn new(id: u32) -> Self {
        Self { id, tokens: Vec::new() }
    }

    /// Returns its number in the decoder.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns its tokens in memory.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Removes all but the first `n_tokens` tokens from memory. Returns how many are left: fewer, none in fact, where the
    /// memory cannot be truncated.
    pub fn truncate(&mut self, decoder: &mut impl Decoder, n_tokens: usize) -> usize {
        if n_tokens < self.tokens.len() {
            let left = decoder.truncate(self.id, n_tokens).unwrap_or(0);
            self.tokens.truncate(left);
        }
        self.tokens.len()
    }

    /// Removes from memory everything that `text` does not begin with. The first `known` tokens are known to be the
    /// same. The last token of `text` is always removed, because its logits are needed. Returns how many tokens are
    /// left.
    pub fn keep_beginning(&mut self, decoder: &mut impl Decoder, text: &[u32], known: usize) -> usize {
        let last = text.len().saturating_sub(1);
        let known = known.min(last).min(self.tokens.len());
        let same = self.tokens[known..].iter().zip(&text[known..]).take_while(|(a, b)| a == b).count();
        self.truncate(decoder, (known + same).min(last))
    }

    /// Adds `tokens`, which follow those in memory, to a batch. Returns the first row of their logits.
    pub fn add_to(&self, batch: &mut Batch, tokens: &[u32], logits: Logits) -> usize {
        let first = batch.n_rows();
        let start = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        for (index, &token) in (0u32..).zip(tokens) {
            let wants_logits = match logits {
                Logits::None => false,
                Logits::Last => index as usize + 1 == tokens.len(),
                Logits::All => true,
            };
            batch.push(token, start.saturating_add(index), &[self.id], wants_logits);
        }
        first
    }

    /// Records that a batch with `tokens` was evaluated.
    pub fn evaluated(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Records that a batch failed. A memory that cannot be truncated is then empty.
    pub fn failed(&mut self, decoder: &mut impl Decoder) {
        let held = decoder.truncate(self.id, self.tokens.len()).unwrap_or(0);
        self.tokens.truncate(held);
    }

    /// Records that the memory now holds `tokens`.
    pub(super) fn restored(&mut self, tokens: &[u32]) {
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
    }
}

/// The part of a batch that belongs to one sequence.
#[derive(Debug)]
pub struct Share<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// The tokens, which follow those in memory.
    pub tokens: &'a [u32],
    /// The tokens whose logits are computed.
    pub logits: Logits,
}

/// Evaluates tokens of several sequences in one batch. Returns, for each of them, the first row of its logits.
///
/// After an error, the memory of each sequence is as before, or empty if it cannot be truncated.
///
/// # Errors
/// If [`Decoder::decode`] fails.
pub fn evaluate_together(
    decoder: &mut impl Decoder,
    batch: &mut Batch,
    shares: &mut [Share<'_>],
) -> Result<Vec<usize>, Error> {
    batch.clear();
    let first_rows = shares.iter().map(|share| share.sequence.add_to(batch, share.tokens, share.logits)).collect();
    match decoder.decode(batch) {
        Ok(()) => {
            shares.iter_mut().for_each(|share| share.sequence.evaluated(share.tokens));
            Ok(first_rows)
        }
        Err(error) => {
            shares.iter_mut().for_each(|share| share.sequence.failed(decoder));
            Err(error.into())
        }
    }
}

/// The rows of logits that belong to one sequence.
#[derive(Clone, Copy)]
pub struct LogitRows<'a> {
    decoder: &'a dyn Decoder,
    first: usize,
}

impl<'a> LogitRows<'a> {
    /// Returns the rows from `first` on of the decoder's last evaluation.
    pub fn new(decoder: &'a dyn Decoder, first: usize) -> Self {
        Self { decoder, first }
    }

    /// Returns row `row`: `n_vocab` numbers.
    ///
    /// # Errors
    /// [`llama::Error::NoLogits`] if it was not computed.
    pub fn row(self, row: usize) -> Result<&'a [f32], llama::Error> {
        self.decoder.logits(self.first + row)
    }
}

impl std::fmt::Debug for LogitRows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogitRows").field("first", &self.first).finish_non_exhaustive()
    }
}
