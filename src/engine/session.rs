//! A session: one sequence in a context of its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Decoder, Error, LogitRows, Logits, Sequence};
use crate::llama::{
    self, Batch, Context, ContextOptions, FlashAttention, KvTypes, Model, Observer, RopeOptions, Sharing,
};
use crate::placement::ContextSize;

/// How to make a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Number of tokens that it holds; `None` for what the model was trained on, but at most 4096.
    pub n_ctx: Option<u32>,
    /// Tokens evaluated at a time.
    pub n_batch: u32,
    /// Rows of logits that one evaluation returns: 1 for generation, `n_batch` for measuring. A row takes 4 bytes for each
    /// token of the vocabulary.
    pub rows: u32,
    /// Number of threads; `None` for one per physical core that the process may use.
    pub threads: Option<u32>,
    /// How the KV cache stores its keys and values.
    pub kv_types: KvTypes,
    /// Whether attention is computed in one fused step.
    pub flash_attention: FlashAttention,
    /// How positions are encoded.
    pub rope: RopeOptions,
    /// Setting it, from any thread, ends an evaluation with [`Error::Cancelled`].
    pub cancel: Arc<AtomicBool>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_batch: 512,
            rows: 1,
            threads: None,
            kv_types: KvTypes::default(),
            flash_attention: FlashAttention::default(),
            rope: RopeOptions::default(),
            cancel: Arc::default(),
        }
    }
}

impl SessionOptions {
    /// The largest default context, because contexts take memory.
    pub const DEFAULT_N_CTX: u32 = 4096;

    /// Returns the number of threads that a session of these options uses.
    pub fn n_threads(&self) -> u32 {
        self.threads.unwrap_or_else(default_threads)
    }

    /// Returns the size of the context for a model that was trained on `n_ctx_train` tokens at a time.
    pub fn n_ctx_for(&self, n_ctx_train: Option<u32>) -> u32 {
        let default = n_ctx_train.unwrap_or(Self::DEFAULT_N_CTX).min(Self::DEFAULT_N_CTX);
        self.n_ctx.unwrap_or(default)
    }

    /// Returns the numbers that determine the memory of its context.
    pub fn size(&self, n_ctx_train: Option<u32>) -> ContextSize {
        ContextSize {
            n_ctx: self.n_ctx_for(n_ctx_train),
            n_batch: self.n_batch,
            n_rows: self.rows,
            kv_types: self.kv_types,
            flash_attention: self.flash_attention,
        }
    }

    /// Refuses numbers with which no context can be made.
    ///
    /// # Errors
    /// [`llama::Error::Setting`] if a number is out of range, and [`llama::Error::QuantizedCache`] if the KV
    /// cache is quantized and flash attention is off.
    pub fn check(&self, n_ctx_train: Option<u32>) -> Result<(), Error> {
        Ok(self.context(n_ctx_train, 1).check()?)
    }

    /// Returns the options of its context, for this many sequences.
    pub fn context(&self, n_ctx_train: Option<u32>, n_sequences: u32) -> ContextOptions {
        ContextOptions {
            n_ctx: self.n_ctx_for(n_ctx_train),
            n_batch: self.n_batch,
            n_rows: self.rows,
            n_sequences,
            sharing: Sharing::Together,
            embeddings: false,
            threads: self.n_threads(),
            kv_types: self.kv_types,
            flash_attention: self.flash_attention,
            rope: self.rope,
            cancel: self.cancel.clone(),
        }
    }
}

/// Returns one thread per physical core, because two threads on one core share its arithmetic units, but not more than
/// this process may use, which is fewer in a container or under `taskset`.
fn default_threads() -> u32 {
    let allowed = std::thread::available_parallelism().map_or(usize::MAX, std::num::NonZero::get);
    u32::try_from(num_cpus::get_physical().min(allowed)).unwrap_or(1)
}

/// One sequence in a context of its own: the tokens it has read, and the logits of what comes next.
pub struct Session<D = Context> {
    decoder: D,
    sequence: Sequence,
    options: SessionOptions,
    batch: Batch,
    // Rows of logits that the last evaluation computed for the tokens in memory.
    n_rows: usize,
}

impl<D> fmt::Debug for Session<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Session<Context> {
    /// Makes a session with an empty context.
    ///
    /// # Errors
    /// If an option is out of range, the model has no weights, or llama.cpp has no memory for it.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        let context = Context::new(model, &options.context(model.n_ctx_train(), 1), None)?;
        Ok(Self::of(context, options))
    }

    /// Like [`Self::new`]; `observer` sees what every evaluation computes.
    ///
    /// # Errors
    /// If an option is out of range, the model has no weights, or llama.cpp has no memory for it.
    pub fn observed(model: &Model, options: &SessionOptions, observer: impl Observer + 'static) -> Result<Self, Error> {
        let context = Context::new(model, &options.context(model.n_ctx_train(), 1), Some(Box::new(observer)))?;
        Ok(Self::of(context, options))
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        self.decoder.model()
    }

    /// Returns the flag that cancels an evaluation.
    pub fn cancel(&self) -> &Arc<AtomicBool> {
        self.decoder.cancel()
    }

    /// Returns what the memory holds of the tokens in it, in llama.cpp's format.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(super) fn state(&mut self) -> Result<Vec<u8>, llama::Error> {
        self.decoder.save(0)
    }

    /// Restores `tokens` from their `state`, which [`Self::state`] returned for a session of the same model and
    /// options. The tokens must fit in the context, and be in the vocabulary.
    ///
    /// # Errors
    /// If llama.cpp refuses the state, or it holds other tokens; the context is then empty.
    pub(super) fn restore(&mut self, tokens: &[u32], state: &[u8]) -> Result<(), llama::Error> {
        self.truncate(0);
        self.n_rows = 0;
        self.decoder.restore(0, state)?;
        let held = self.decoder.positions(0)?;
        // Models with a sliding window keep only that window, which cannot be truncated.
        if !held.is_some_and(|held| *held.start() == 0 && *held.end() as usize + 1 == tokens.len()) {
            self.decoder.truncate(0, 0)?;
            return Err(llama::Error::State("it holds other tokens than it says".to_string()));
        }
        self.sequence.restored(tokens);
        Ok(())
    }
}

impl<D: Decoder> Session<D> {
    /// Makes a session of sequence 0 of a decoder that holds nothing.
    pub fn of(decoder: D, options: &SessionOptions) -> Self {
        let batch = Batch::with_capacity(decoder.n_batch());
        Self { decoder, sequence: Sequence::new(0), options: options.clone(), batch, n_rows: 0 }
    }

    /// Returns the decoder.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }

    /// Returns the options it was made with.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Returns how many tokens the context holds at most.
    pub fn n_ctx(&self) -> u32 {
        self.decoder.n_ctx()
    }

    /// Returns how many tokens are evaluated at a time.
    pub fn n_batch(&self) -> usize {
        self.decoder.n_batch()
    }

    /// Returns how many rows of logits one evaluation returns.
    pub fn rows(&self) -> usize {
        self.decoder.n_rows()
    }

    /// Returns the tokens in the context.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// Returns how many more tokens fit.
    pub fn room(&self) -> usize {
        (self.n_ctx() as usize).saturating_sub(self.tokens().len())
    }

    /// Returns whether evaluations are cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.decoder.is_cancelled()
    }

    /// Evaluates `tokens`, which follow those in the context.
    ///
    /// # Errors
    /// If there are no tokens, one is not in the vocabulary, they do not fit, it was cancelled, or llama.cpp fails. The
    /// context then holds the batches before the one that failed.
    pub fn eval(&mut self, tokens: &[u32], logits: Logits) -> Result<(), Error> {
        self.check(tokens)?;
        if logits == Logits::All {
            let most = self.rows();
            if tokens.len() > most {
                return Err(llama::Error::Rows { wanted: tokens.len(), most }.into());
            }
            return self.decode(tokens, Logits::All);
        }
        let n_batches = tokens.len().div_ceil(self.n_batch());
        for (i, batch) in tokens.chunks(self.n_batch()).enumerate() {
            self.decode(batch, if i + 1 == n_batches { logits } else { Logits::None })?;
        }
        Ok(())
    }

    /// Evaluates `tokens` of any number, and passes the logits of each from `from` on to `each`, with the token's index in
    /// `tokens`.
    ///
    /// # Errors
    /// If there are no tokens, one is not in the vocabulary, they do not fit, it was cancelled, or llama.cpp fails.
    pub fn eval_each(&mut self, tokens: &[u32], from: usize, mut each: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        self.check(tokens)?;
        let from = from.min(tokens.len());
        let (silent, scored) = tokens.split_at(from);
        for batch in silent.chunks(self.n_batch()) {
            self.decode(batch, Logits::None)?;
        }
        let size = self.rows();
        for (i, batch) in scored.chunks(size).enumerate() {
            self.decode(batch, Logits::All)?;
            for row in 0..batch.len() {
                each(from + i * size + row, self.logits(row)?);
            }
        }
        Ok(())
    }

    /// Returns row `row` of the logits that the last evaluation computed: `n_vocab` numbers.
    ///
    /// # Errors
    /// If it was not computed, or its tokens have been removed.
    pub fn logits(&self, row: usize) -> Result<&[f32], Error> {
        if row >= self.n_rows {
            return Err(llama::Error::NoLogits { row, computed: self.n_rows }.into());
        }
        Ok(self.decoder.logits(row)?)
    }

    /// Returns the rows of the last evaluation.
    pub fn logit_rows(&self) -> LogitRows<'_> {
        LogitRows::new(&self.decoder, 0)
    }

    /// Keeps the first `n_past` tokens of the context and removes the rest. Returns how many are left: fewer, none in fact,
    /// where the model's memory cannot be truncated.
    pub fn truncate(&mut self, n_past: usize) -> usize {
        if n_past < self.tokens().len() {
            self.n_rows = 0;
        }
        self.sequence.truncate(&mut self.decoder, n_past)
    }

    /// Makes the context hold exactly `prompt`, with the logits of its last token. The part of its beginning that the
    /// context already holds is not evaluated again. Returns how many tokens this saved.
    ///
    /// # Errors
    /// If there are no tokens, one is not in the vocabulary, they do not fit, it was cancelled, or llama.cpp fails.
    pub fn prefill(&mut self, prompt: &[u32]) -> Result<usize, Error> {
        self.extend(prompt, 0)
    }

    /// Like [`Self::prefill`], but the first `known` tokens are known to be those of the context.
    pub(crate) fn extend(&mut self, text: &[u32], known: usize) -> Result<usize, Error> {
        if text.len() > self.n_ctx() as usize {
            return Err(llama::Error::ContextFull { wanted: text.len(), n_ctx: self.n_ctx() }.into());
        }
        if text.is_empty() {
            return Err(llama::Error::NoTokens.into());
        }
        let kept = self.sequence.keep_beginning(&mut self.decoder, text, known);
        self.eval(&text[kept..], Logits::Last)?;
        Ok(kept)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), llama::Error> {
        let n_vocab = self.decoder.n_vocab();
        if tokens.is_empty() {
            return Err(llama::Error::NoTokens);
        }
        if let Some(&token) = tokens.iter().find(|t| **t >= n_vocab) {
            return Err(llama::Error::Token { token, n_vocab });
        }
        if tokens.len() > self.room() {
            let wanted = self.tokens().len() + tokens.len();
            return Err(llama::Error::ContextFull { wanted, n_ctx: self.n_ctx() });
        }
        Ok(())
    }

    /// Evaluates one batch.
    fn decode(&mut self, tokens: &[u32], logits: Logits) -> Result<(), Error> {
        self.n_rows = 0;
        self.batch.clear();
        self.sequence.add_to(&mut self.batch, tokens, logits);
        match self.decoder.decode(&self.batch) {
            Ok(()) => {
                self.sequence.evaluated(tokens);
                self.n_rows = self.batch.n_rows();
                Ok(())
            }
            Err(error) => {
                self.sequence.failed(&mut self.decoder);
                Err(error.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::KvType;

    #[test]
    fn there_are_no_more_threads_than_the_process_may_use() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!((1..=allowed).contains(&(default_threads() as usize)));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let refused = |options: SessionOptions| options.check(Some(512)).unwrap_err().to_string();
        let base = SessionOptions::default;
        assert!(base().check(None).is_ok());
        assert!(refused(SessionOptions { n_ctx: Some(0), ..base() }).starts_with("the context size cannot be 0"));
        assert!(refused(SessionOptions { n_batch: 0, ..base() }).starts_with("the batch size cannot be 0"));
        assert!(
            refused(SessionOptions { rows: 513, ..base() }).starts_with("the number of rows of logits cannot be 513")
        );
        assert!(
            refused(SessionOptions { threads: Some(0), ..base() }).starts_with("the number of threads cannot be 0")
        );
        let off = SessionOptions { kv_types: KvType::Q8_0.into(), flash_attention: FlashAttention::Off, ..base() };
        assert!(refused(off).contains("needs flash attention"));
    }

    #[test]
    fn the_context_is_what_the_model_knows_within_reason() {
        let options = SessionOptions::default();
        assert_eq!(options.n_ctx_for(Some(512)), 512);
        assert_eq!(options.n_ctx_for(Some(200_000)), 4096);
        assert_eq!(options.n_ctx_for(None), 4096);
        assert_eq!(SessionOptions { n_ctx: Some(9000), ..options }.n_ctx_for(Some(512)), 9000);
    }
}
