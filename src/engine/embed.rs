//! Embeddings: the mean of a model's states after each token of a text.

use std::sync::Arc;

use super::{Error, SessionOptions};
use crate::llama::{Batch, Context, ContextOptions, Model};

/// Tokens that are read at a time. llama.cpp computes logits for each, too, which take 4 bytes for each token of the
/// vocabulary.
const N_BATCH: u32 = 64;

/// The smallest context.
const LEAST_N_CTX: usize = 512;

/// Computes embeddings, in a context of its own that grows with the texts.
pub struct Embedder {
    model: Model,
    options: SessionOptions,
    most: u32,
    context: Option<Context>,
    batch: Batch,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder").field("context", &self.context).finish_non_exhaustive()
    }
}

/// A text whose embedding is being computed.
#[derive(Debug)]
pub struct Embedding {
    tokens: Vec<u32>,
    n_read: usize,
    sum: Vec<f64>,
}

impl Embedding {
    /// Begins the embedding of a text.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, n_read: 0, sum: Vec::new() }
    }

    /// Returns the number of its tokens.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Returns how many of them were read.
    pub fn n_read(&self) -> usize {
        self.n_read
    }

    /// Returns the mean of the states, divided by its length.
    pub fn normalized(&self) -> Vec<f32> {
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        self.sum.iter().map(|x| (x * scale) as f32).collect()
    }
}

impl Embedder {
    /// Makes one for texts of at most `most` tokens. It takes memory only when it is used.
    pub fn new(model: &Model, options: &SessionOptions, most: u32) -> Self {
        Self { model: model.clone(), options: options.clone(), most, context: None, batch: Batch::default() }
    }

    /// Reads the next tokens of a text. Returns whether it has been read. Between the first call for a text and the last,
    /// no other text may be read.
    ///
    /// # Errors
    /// If the text has no tokens or too many, or the model fails. The text has to begin again then.
    pub fn advance(&mut self, embedding: &mut Embedding) -> Result<bool, Error> {
        let begins = embedding.n_read == 0;
        let context = match self.context.take().filter(|context| embedding.n_tokens() <= context.n_ctx() as usize) {
            Some(context) => context,
            None => self.make(embedding.n_tokens())?,
        };
        let context = self.context.insert(context);
        if begins {
            context.clear();
            embedding.sum = vec![0.0; self.model.n_embd()];
        }
        self.batch.clear();
        let tokens = &embedding.tokens[embedding.n_read..];
        let tokens = &tokens[..tokens.len().min(N_BATCH as usize)];
        for (token, position) in tokens.iter().zip(embedding.n_read..) {
            self.batch.push(*token, u32::try_from(position).unwrap_or(u32::MAX), &[0], true);
        }
        context.decode(&self.batch)?;
        for row in 0..tokens.len() {
            let state = context.embedding(row)?;
            embedding.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        embedding.n_read += tokens.len();
        Ok(embedding.n_read == embedding.n_tokens())
    }

    fn make(&self, n_tokens: usize) -> Result<Context, Error> {
        let n_ctx = n_tokens.next_power_of_two().max(LEAST_N_CTX);
        let n_ctx = u32::try_from(n_ctx).unwrap_or(u32::MAX).min(self.most);
        let session = SessionOptions { n_batch: N_BATCH.min(n_ctx), rows: N_BATCH.min(n_ctx), ..self.options.clone() };
        let options = ContextOptions {
            n_ctx,
            embeddings: true,
            // Tasks of this context are not interrupted.
            cancel: Arc::default(),
            ..session.context(self.model.n_ctx_train(), 1)
        };
        Ok(Context::new(&self.model, &options, None)?)
    }
}
