//! The interface through which the engine uses a model: evaluate tokens, return logits, remove the end of a sequence.
//!
//! [`Context`] is the real implementation. Tests use another one, whose logits come from a table.

use std::sync::Arc;

use crate::llama::{Batch, Context, Error};
use crate::vocab::Tokenizer;

/// A model with the memory of its sequences. [`Context`] documents what each call does.
pub trait Decoder {
    /// Returns the model's tokenizer.
    fn tokenizer(&self) -> Arc<dyn Tokenizer>;

    /// Returns the number of tokens in the vocabulary: the length of a row of logits.
    fn n_vocab(&self) -> u32;

    /// Returns how many tokens the memory holds.
    fn n_ctx(&self) -> u32;

    /// Returns how many tokens one evaluation takes.
    fn n_batch(&self) -> usize;

    /// Returns how many rows of logits one evaluation returns.
    fn n_rows(&self) -> usize;

    /// Returns whether the end of a sequence can be removed from memory.
    fn can_truncate(&self) -> bool;

    /// Returns whether evaluations are cancelled.
    fn is_cancelled(&self) -> bool;

    /// Evaluates a batch. After an error no token of it is in memory.
    ///
    /// # Errors
    /// If the batch does not fit, evaluating it is cancelled, or the model fails; see [`Context::decode`].
    fn decode(&mut self, batch: &Batch) -> Result<(), Error>;

    /// Returns a row of logits of the last evaluation.
    ///
    /// # Errors
    /// If the row was not computed; see [`Context::logits`].
    fn logits(&self, row: usize) -> Result<&[f32], Error>;

    /// Removes all but the first `n_tokens` tokens of a sequence. Returns how many are left: fewer if the memory cannot
    /// be truncated.
    ///
    /// # Errors
    /// If there is no such sequence; see [`Context::truncate`].
    fn truncate(&mut self, sequence: u32, n_tokens: usize) -> Result<usize, Error>;
}

/// A decoder of several sequences, whose memory can be copied, saved and restored.
pub trait SequenceDecoder: Decoder {
    /// Returns how many sequences it holds.
    fn n_sequences(&self) -> u32;

    /// Returns how many tokens one sequence can hold.
    fn n_ctx_sequence(&self) -> u32;

    /// Returns whether sequences can share what they hold, so that copying takes no memory. If not, each sequence has a
    /// memory of its own, and what is computed for it does not depend on what the others hold.
    fn shares_tokens(&self) -> bool;

    /// Copies the first `n_tokens` tokens of `from` to `to`, which must not hold any.
    ///
    /// # Errors
    /// If there is no such sequence, or no memory; see [`Context::copy`].
    fn copy(&mut self, from: u32, to: u32, n_tokens: usize) -> Result<(), Error>;

    /// Returns what the memory holds of a sequence.
    ///
    /// # Errors
    /// If there is no such sequence, or no memory; see [`Context::save`].
    fn save(&mut self, sequence: u32) -> Result<State, Error>;

    /// Replaces the memory of a sequence by a state of `n_tokens` tokens. After an error, the sequence is empty.
    ///
    /// # Errors
    /// If there is no such sequence, or the state is not accepted.
    fn restore(&mut self, sequence: u32, state: &State, n_tokens: usize) -> Result<(), Error>;
}

/// What a memory holds of a sequence, in the decoder's format. Made by [`SequenceDecoder::save`], or read from a file whose
/// hash and identity are right: llama.cpp may end the process on other bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct State(Vec<u8>);

impl State {
    /// Wraps bytes that a decoder of the same model and settings has saved.
    pub(super) fn trusted(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} bytes)", self.0.len())
    }
}

impl SequenceDecoder for Context {
    fn n_sequences(&self) -> u32 {
        self.n_sequences()
    }

    fn n_ctx_sequence(&self) -> u32 {
        self.n_ctx_sequence()
    }

    fn shares_tokens(&self) -> bool {
        self.shares_tokens()
    }

    fn copy(&mut self, from: u32, to: u32, n_tokens: usize) -> Result<(), Error> {
        self.copy(from, to, u32::try_from(n_tokens).unwrap_or(u32::MAX))
    }

    fn save(&mut self, sequence: u32) -> Result<State, Error> {
        self.save(sequence).map(State)
    }

    fn restore(&mut self, sequence: u32, state: &State, n_tokens: usize) -> Result<(), Error> {
        self.restore(sequence, state.bytes())?;
        let held = self.positions(sequence)?;
        // Models with a sliding window save only that window, which cannot be truncated.
        let is_whole = held.as_ref().is_some_and(|held| *held.start() == 0) || !self.model().can_truncate();
        if is_whole && held.is_some_and(|held| *held.end() as usize + 1 == n_tokens) {
            return Ok(());
        }
        self.truncate(sequence, 0)?;
        Err(Error::State("it holds other tokens than it says".to_string()))
    }
}

impl Decoder for Context {
    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        self.model().shared_tokenizer()
    }

    fn n_vocab(&self) -> u32 {
        self.model().n_vocab()
    }

    fn n_ctx(&self) -> u32 {
        self.n_ctx()
    }

    fn n_batch(&self) -> usize {
        self.n_batch() as usize
    }

    fn n_rows(&self) -> usize {
        self.n_rows() as usize
    }

    fn can_truncate(&self) -> bool {
        self.model().can_truncate()
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled()
    }

    fn decode(&mut self, batch: &Batch) -> Result<(), Error> {
        self.decode(batch)
    }

    fn logits(&self, row: usize) -> Result<&[f32], Error> {
        self.logits(row)
    }

    fn truncate(&mut self, sequence: u32, n_tokens: usize) -> Result<usize, Error> {
        Ok(self.truncate(sequence, u32::try_from(n_tokens).unwrap_or(u32::MAX))? as usize)
    }
}

impl<D: Decoder + ?Sized> Decoder for Box<D> {
    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        (**self).tokenizer()
    }

    fn n_vocab(&self) -> u32 {
        (**self).n_vocab()
    }

    fn n_ctx(&self) -> u32 {
        (**self).n_ctx()
    }

    fn n_batch(&self) -> usize {
        (**self).n_batch()
    }

    fn n_rows(&self) -> usize {
        (**self).n_rows()
    }

    fn can_truncate(&self) -> bool {
        (**self).can_truncate()
    }

    fn is_cancelled(&self) -> bool {
        (**self).is_cancelled()
    }

    fn decode(&mut self, batch: &Batch) -> Result<(), Error> {
        (**self).decode(batch)
    }

    fn logits(&self, row: usize) -> Result<&[f32], Error> {
        (**self).logits(row)
    }

    fn truncate(&mut self, sequence: u32, n_tokens: usize) -> Result<usize, Error> {
        (**self).truncate(sequence, n_tokens)
    }
}
