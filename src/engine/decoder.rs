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
