//! A session: a model's context, with the tokens it has seen.

use std::ffi::c_void;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::model::Model;
use super::observe::{Ending, Observer, Watching};
use super::{Error, backend, lora};

/// How the KV cache keeps its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats: exact.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 8.5 bits a value, in blocks of 32. Needs flash attention.
    Q8_0,
}

impl KvType {
    /// Bytes of 32 values.
    pub(crate) fn bytes_of_32(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::F16 => 64,
            Self::Q8_0 => 34,
        }
    }

    fn number(self) -> sys::ggml_type {
        match self {
            Self::F32 => sys::GGML_TYPE_F32,
            Self::F16 => sys::GGML_TYPE_F16,
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
        }
    }
}

/// Whether attention is computed in one fused step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where the device can.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How to make a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens there is room for; `None` takes what the model was trained on, but 4096 at most.
    pub n_ctx: Option<u32>,
    /// Tokens evaluated at a time.
    pub n_batch: u32,
    /// Rows of logits that one evaluation can give: 1 for generation, `n_batch` for measuring. A row takes 4 bytes for
    /// each token of the vocabulary.
    pub rows: u32,
    /// Threads; `None` takes one for each physical core that the process may use.
    pub threads: Option<u32>,
    /// How the KV cache keeps its values.
    pub kv_type: KvType,
    /// Whether attention is computed in one fused step.
    pub flash_attention: FlashAttention,
    /// Set from anywhere, it ends an evaluation with [`Error::Cancelled`].
    pub cancel: Arc<AtomicBool>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_batch: 512,
            rows: 1,
            threads: None,
            kv_type: KvType::default(),
            flash_attention: FlashAttention::default(),
            cancel: Arc::default(),
        }
    }
}

impl SessionOptions {
    /// The most tokens of context taken without being asked for: it costs memory.
    pub const DEFAULT_N_CTX: u32 = 4096;

    /// Threads that a session of these options uses.
    pub fn n_threads(&self) -> u32 {
        self.threads.unwrap_or_else(default_threads)
    }

    /// Tokens of context for a model that was trained on `n_ctx_train`.
    pub fn n_ctx_for(&self, n_ctx_train: Option<u32>) -> u32 {
        let default = n_ctx_train.unwrap_or(Self::DEFAULT_N_CTX).min(Self::DEFAULT_N_CTX);
        self.n_ctx.unwrap_or(default)
    }

    /// Refuses numbers that llama.cpp asserts on, or that cannot work.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let within = |name, value: u32, most: u32| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::Option { name, value: value.into(), wanted: format!("from 1 to {most}") })
        };
        // Positions are 32-bit numbers with a sign, and llama.cpp rounds the context up to a multiple of 256.
        within("--ctx", self.n_ctx.unwrap_or(1), i32::MAX as u32 / 2)?;
        within("the batch", self.n_batch, 65_536)?;
        within("rows of logits", self.rows, self.n_batch)?;
        within("--threads", self.threads.unwrap_or(1), 512)?;
        if self.kv_type == KvType::Q8_0 && self.flash_attention == FlashAttention::Off {
            return Err(Error::Context {
                n_ctx: self.n_ctx.unwrap_or(Self::DEFAULT_N_CTX),
                reason: "a KV cache of type q8_0 needs flash attention, which is turned off".to_string(),
            });
        }
        Ok(())
    }
}

/// Of which tokens an evaluation gives the logits: what the model expects after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Of none.
    None,
    /// Of the last: one row.
    Last,
    /// Of each: as many rows as tokens, which have to fit one batch and [`SessionOptions::rows`].
    All,
}

/// A context of a model: what it has read, and what it expects next.
pub struct Session {
    // Before the model, because a context has to go before its model does.
    context: Context,
    // The context has a pointer to it.
    observer: Option<Watching>,
    model: Model,
    options: SessionOptions,
    n_ctx: u32,
    tokens: Vec<u32>,
    batch: Batch,
    /// The rows of logits of the last evaluation, `n_vocab` floats each. llama.cpp keeps them until the next one.
    rows: Vec<NonNull<f32>>,
}

// SAFETY: a context belongs to no thread in particular, and `rows` points into it. Without `Sync`, and with `&mut self`
// for everything that changes it, no two threads use it at a time.
unsafe impl Send for Session {}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("model", &self.model)
            .field("n_ctx", &self.n_ctx)
            .field("n_past", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

/// llama.cpp's side of a session. It goes before its model does: whoever keeps it keeps the model in a later field.
pub(crate) struct Context(NonNull<sys::llama_context>);

impl Context {
    /// A context, with the model's adapters. `tune` changes what llama.cpp is asked for, after the options have been put
    /// there. The flag in `options.cancel` has to live as long as the context.
    ///
    /// # Errors
    /// Where an option is out of range, the model has no weights, or llama.cpp finds no room.
    pub(crate) fn make(
        model: &Model,
        options: &SessionOptions,
        tune: impl FnOnce(&mut sys::llama_context_params),
    ) -> Result<Self, Error> {
        backend::get()?;
        options.check()?;
        if !model.has_weights() {
            let what = "only its vocabulary was loaded";
            return Err(Error::Unsupported { path: model.path().to_path_buf(), what });
        }
        let n_ctx = options.n_ctx_for(model.n_ctx_train());
        let threads = i32::try_from(options.n_threads()).unwrap_or(1);
        // SAFETY: takes nothing, gives a struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = n_ctx;
        params.n_batch = options.n_batch;
        params.n_ubatch = options.n_batch;
        params.n_seq_max = 1;
        params.n_outputs_max = options.rows;
        params.n_threads = threads;
        params.n_threads_batch = threads;
        params.type_k = options.kv_type.number();
        params.type_v = options.kv_type.number();
        params.flash_attn_type = match options.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        params.no_perf = true;
        params.abort_callback = Some(is_cancelled);
        // The flag lives in the options, which whoever asks for a context keeps for as long as it.
        params.abort_callback_data = Arc::as_ptr(&options.cancel).cast_mut().cast();

        tune(&mut params);

        let (context, heard) = backend::listen(|| {
            let _making = backend::making();
            // SAFETY: the model is alive and stays so, as whoever asks keeps a clone of it; the parameters were
            // checked; no other context is being made.
            unsafe { sys::llama_init_from_model(model.pointer(), params) }
        });
        let context = NonNull::new(context).ok_or_else(|| Error::Context { n_ctx, reason: heard.reason() })?;
        let context = Self(context);
        if !model.adapters().is_empty() {
            // SAFETY: the context is alive, and of this model, for which the adapters were loaded.
            unsafe { lora::apply(context.0, model.adapters()) };
        }
        Ok(context)
    }

    /// Evaluates a batch, and waits for it. `in_use` is how many tokens of context it would come to.
    ///
    /// # Errors
    /// Where the context of `n_ctx` tokens is full, the flag is set, or llama.cpp fails.
    ///
    /// # Safety
    /// Every array of the batch has `n_tokens` entries, and each list of sequences as many as `n_seq_id` says. Tokens are
    /// in the vocabulary, sequences below what the context was made for, positions of each go on from its last one. The
    /// batch is no larger than the context's, and gives no more rows than that was made for. Nothing has a row of earlier
    /// logits any more.
    pub(crate) unsafe fn decode(&self, batch: sys::llama_batch, in_use: usize, n_ctx: u32) -> Result<(), Error> {
        let (status, heard) = backend::listen(|| {
            // SAFETY: the context is alive, and the caller keeps to the contract. llama.cpp copies the arrays.
            let status = unsafe { sys::llama_decode(self.0.as_ptr(), batch) };
            // SAFETY: the context is alive. Rows of logits may only be read after this.
            unsafe { sys::llama_synchronize(self.0.as_ptr()) };
            status
        });
        match status {
            0 => Ok(()),
            1 => Err(Error::ContextFull { wanted: in_use, n_ctx }),
            2 => Err(Error::Cancelled),
            status => Err(Error::Decode { status, reason: heard.reason() }),
        }
    }

    /// llama.cpp's context. Good as long as `self` lives.
    pub(crate) fn pointer(&self) -> NonNull<sys::llama_context> {
        self.0
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `llama_init_from_model`, is owned by this struct alone, and its model still
        // lives: fields of `Session` go in order.
        unsafe { sys::llama_free(self.0.as_ptr()) }
    }
}

/// A thread for each core, since two on one core wait for the same arithmetic; but no more than this process may use at
/// once, which in a container, or under `taskset`, is less.
fn default_threads() -> u32 {
    let allowed = std::thread::available_parallelism().map_or(usize::MAX, std::num::NonZero::get);
    u32::try_from(num_cpus::get_physical().min(allowed)).unwrap_or(1)
}

/// What `llama_decode` takes: arrays with one entry a token. The memory is ours, of a fixed size; pointers are made for
/// the length of a call.
struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    n_sequences: Vec<i32>,
    // The sequences of each token: the one and only, for all.
    sequences: Vec<SequenceList>,
    wanted: Vec<i8>,
}

/// A pointer to a list of sequences that a token belongs to.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct SequenceList(*const sys::llama_seq_id);

/// The sequence of all tokens. llama.cpp reads it through a pointer that may be written to, and does not write.
static SEQUENCE: sys::llama_seq_id = 0;

// SAFETY: it points to a static that nobody writes to.
unsafe impl Send for SequenceList {}

impl Session {
    /// A session with an empty context.
    ///
    /// # Errors
    /// Where an option is out of range, or llama.cpp finds no room.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        Self::make(model, options, None)
    }

    /// As [`Self::new`]; `observer` sees what every evaluation computes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn observed(model: &Model, options: &SessionOptions, observer: impl Observer + 'static) -> Result<Self, Error> {
        Self::make(model, options, Some(Watching::new(Box::new(observer))))
    }

    fn make(model: &Model, options: &SessionOptions, observer: Option<Watching>) -> Result<Self, Error> {
        let context = Context::make(model, options, |params| {
            if let Some(observer) = &observer {
                observer.ask(params);
            }
        })?;
        // SAFETY: the context is alive.
        let (n_batch, room) = unsafe { (sys::llama_n_batch(context.0.as_ptr()), sys::llama_n_ctx(context.0.as_ptr())) };
        // llama.cpp makes the batch no larger than the context. A larger batch than its own ends the process.
        let options = SessionOptions { n_batch: n_batch.min(options.n_batch), ..options.clone() };
        let n_ctx = options.n_ctx_for(model.n_ctx_train()).min(room);
        let batch = Batch::new(options.n_batch as usize);
        Ok(Self {
            context,
            observer,
            model: model.clone(),
            options,
            n_ctx,
            tokens: Vec::new(),
            batch,
            rows: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens there is room for.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// Tokens evaluated at a time.
    pub fn n_batch(&self) -> usize {
        self.options.n_batch as usize
    }

    /// Rows of logits that one evaluation can give.
    pub fn rows(&self) -> usize {
        self.n_batch().min(self.options.rows as usize)
    }

    /// The tokens in the context.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens there is still room for.
    pub fn room(&self) -> usize {
        (self.n_ctx as usize).saturating_sub(self.tokens.len())
    }

    /// The flag that ends an evaluation.
    pub fn cancel(&self) -> &Arc<AtomicBool> {
        &self.options.cancel
    }

    /// Whether the flag is set.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.options.cancel.load(Ordering::Relaxed)
    }

    /// Reads `tokens`, after those already in the context.
    ///
    /// # Errors
    /// Where there are none, one is not in the vocabulary, or there is no room; when interrupted; when llama.cpp
    /// fails. What a failing batch held is then not in the context; earlier batches are.
    pub fn eval(&mut self, tokens: &[u32], logits: Logits) -> Result<(), Error> {
        self.check(tokens)?;
        if logits == Logits::All {
            let most = self.rows();
            if tokens.len() > most {
                return Err(Error::Rows { wanted: tokens.len(), most });
            }
            return self.decode(tokens, 0);
        }
        let n_batches = tokens.len().div_ceil(self.n_batch());
        for (i, batch) in tokens.chunks(self.n_batch()).enumerate() {
            let last = logits == Logits::Last && i + 1 == n_batches;
            self.decode(batch, if last { batch.len() - 1 } else { batch.len() })?;
        }
        Ok(())
    }

    /// Reads `tokens`, and gives the logits of each from `from` on to `each`, with the token's index in `tokens`: for
    /// texts of any length.
    ///
    /// # Errors
    /// As [`Self::eval`].
    pub fn eval_each(&mut self, tokens: &[u32], from: usize, mut each: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        self.check(tokens)?;
        let from = from.min(tokens.len());
        let (silent, scored) = tokens.split_at(from);
        for batch in silent.chunks(self.n_batch()) {
            self.decode(batch, batch.len())?;
        }
        let size = self.rows();
        for (i, batch) in scored.chunks(size).enumerate() {
            self.decode(batch, 0)?;
            for row in 0..batch.len() {
                each(from + i * size + row, self.logits(row)?);
            }
        }
        Ok(())
    }

    /// Row `row` of the logits that the last evaluation computed, `n_vocab` numbers: one row a token it was asked for.
    ///
    /// # Errors
    /// Where it was not computed.
    pub fn logits(&self, row: usize) -> Result<&[f32], Error> {
        let pointer = self.rows.get(row).ok_or(Error::NoLogits { row, computed: self.rows.len() })?;
        // SAFETY: llama.cpp keeps `n_vocab` floats a row until the next evaluation, which takes `&mut self` and
        // clears `rows`; the evaluation that computed them was waited for.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), self.model.n_vocab() as usize) })
    }

    /// Keeps the first `n_past` tokens of the context and forgets the rest. Gives how many are kept: fewer, none in
    /// fact, where the model's memory cannot be cut, as that of recurrent models.
    pub fn truncate(&mut self, n_past: usize) -> usize {
        if n_past < self.tokens.len() {
            self.rows.clear();
            self.tokens.truncate(n_past);
            self.forget_the_rest();
        }
        self.tokens.len()
    }

    /// Makes the context hold `prompt` and nothing else, with the logits of its last token. What the context holds
    /// already of its beginning is not evaluated again. Gives how many tokens that saved.
    ///
    /// # Errors
    /// As [`Self::eval`].
    pub fn prefill(&mut self, prompt: &[u32]) -> Result<usize, Error> {
        self.go_on(prompt, 0)
    }

    /// As [`Self::prefill`], where the first `known` tokens are known to be those of the context.
    pub(crate) fn go_on(&mut self, prompt: &[u32], known: usize) -> Result<usize, Error> {
        if prompt.len() > self.n_ctx as usize {
            return Err(Error::ContextFull { wanted: prompt.len(), n_ctx: self.n_ctx });
        }
        let Some(last) = prompt.len().checked_sub(1) else { return Err(Error::NoTokens) };
        let known = known.min(last).min(self.tokens.len());
        let same = self.tokens[known..].iter().zip(&prompt[known..]).take_while(|(a, b)| a == b).count();
        // The last token is evaluated in any case, for its logits.
        let kept = self.truncate((known + same).min(last));
        self.eval(&prompt[kept..], Logits::Last)?;
        Ok(kept)
    }

    /// How it was made.
    pub(crate) fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// What the model remembers of the tokens in the context, as llama.cpp writes it.
    ///
    /// # Errors
    /// Where there is no memory for it: the bytes it takes.
    pub(crate) fn state(&mut self) -> Result<Vec<u8>, u64> {
        let context = self.context.0.as_ptr();
        // SAFETY: the context is alive, and sequence 0 exists.
        let size = unsafe { sys::llama_state_seq_get_size(context, 0) };
        let mut state = Vec::new();
        state.try_reserve_exact(size).map_err(|_| size as u64)?;
        state.resize(size, 0);
        // SAFETY: there is room for `size` bytes, and llama.cpp writes no more than that.
        let written = unsafe { sys::llama_state_seq_get_data(context, state.as_mut_ptr(), size, 0) };
        state.truncate(written);
        Ok(state)
    }

    /// Makes the context hold `tokens`, with what the model remembers of them in `state`, which [`Self::state`] gave for
    /// a session of the same model and settings. There are no more tokens than there is room for, and all are in the
    /// vocabulary.
    ///
    /// # Errors
    /// Where llama.cpp does not take it, and why not; the context is then empty.
    pub(crate) fn restore(&mut self, tokens: &[u32], state: &[u8]) -> Result<(), String> {
        self.truncate(0);
        self.rows.clear();
        let context = self.context.0.as_ptr();
        let (read, heard) = backend::listen(|| {
            // SAFETY: the context is alive, and sequence 0 exists. llama.cpp reads no more than `state.len()` bytes.
            unsafe { sys::llama_state_seq_set_data(context, state.as_ptr(), state.len(), 0) }
        });
        // SAFETY: the context is alive, and nothing is being evaluated.
        let (first, last) = unsafe {
            let memory = sys::llama_get_memory(context);
            (sys::llama_memory_seq_pos_min(memory, 0), sys::llama_memory_seq_pos_max(memory, 0))
        };
        // Models that look back over a window only keep no more than that, which cannot be cut.
        let is_whole = first == 0 && usize::try_from(last).is_ok_and(|last| last + 1 == tokens.len());
        if read != state.len() || !is_whole {
            self.forget_the_rest();
            return Err(if read == 0 { heard.reason() } else { "it holds other tokens than it says".to_string() });
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let n_vocab = self.model.n_vocab();
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if let Some(&token) = tokens.iter().find(|t| **t >= n_vocab) {
            return Err(Error::Token { token, n_vocab });
        }
        if tokens.len() > self.room() {
            return Err(Error::ContextFull { wanted: self.tokens.len() + tokens.len(), n_ctx: self.n_ctx });
        }
        Ok(())
    }

    /// Evaluates one batch of checked tokens; those from `from` on give logits.
    fn decode(&mut self, tokens: &[u32], from: usize) -> Result<(), Error> {
        self.rows.clear();
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.batch.fill(tokens, self.tokens.len(), from);
        let batch = &mut self.batch;
        let batch = sys::llama_batch {
            n_tokens: i32::try_from(batch.tokens.len()).unwrap_or(0),
            token: batch.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_mut_ptr(),
            n_seq_id: batch.n_sequences.as_mut_ptr(),
            seq_id: batch.sequences.as_mut_ptr().cast(),
            logits: batch.wanted.as_mut_ptr(),
        };
        // SAFETY: the arrays have `n_tokens` entries and outlive the call. Tokens were checked, the sequence is 0 of 1,
        // positions go on from the last one; callers cut batches to the context's size and rows, and `rows` is empty.
        let decoded = unsafe { self.context.decode(batch, self.tokens.len() + tokens.len(), self.n_ctx) };
        match self.observer.as_mut().map(Watching::end) {
            None | Some(Ending::WentOn) => {}
            Some(Ending::Stopped) => {
                self.forget_the_rest();
                return Err(Error::Stopped);
            }
            Some(Ending::Panicked(panic)) => {
                self.forget_the_rest();
                std::panic::resume_unwind(panic);
            }
        }
        if decoded.is_err() {
            self.forget_the_rest();
            return decoded;
        }
        self.tokens.extend_from_slice(tokens);
        for index in from..tokens.len() {
            // SAFETY: the context is alive and done; the index is one for which logits were asked.
            let row = unsafe { sys::llama_get_logits_ith(self.context.0.as_ptr(), i32::try_from(index).unwrap_or(-1)) };
            match NonNull::new(row) {
                Some(row) => self.rows.push(row),
                None => return Err(Error::NoLogits { row: index - from, computed: self.rows.len() }),
            }
        }
        Ok(())
    }

    /// Takes from llama.cpp's memory what is not in `tokens`; empties both where that cannot be done.
    fn forget_the_rest(&mut self) {
        let from = i32::try_from(self.tokens.len()).unwrap_or(i32::MAX);
        // SAFETY: the context is alive, and nothing is being evaluated; sequence 0 exists.
        unsafe {
            let memory = sys::llama_get_memory(self.context.0.as_ptr());
            if memory.is_null() {
                return;
            }
            if !sys::llama_memory_seq_rm(memory, 0, from, -1) {
                sys::llama_memory_clear(memory, true);
                self.tokens.clear();
            }
        }
    }
}

impl Batch {
    fn new(size: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(size),
            positions: Vec::with_capacity(size),
            n_sequences: vec![1; size],
            sequences: vec![SequenceList(&raw const SEQUENCE); size],
            wanted: Vec::with_capacity(size),
        }
    }

    /// At most as many tokens as the batch was made for; ids and positions below 2^31.
    fn fill(&mut self, tokens: &[u32], n_past: usize, from: usize) {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        self.tokens.clear();
        self.tokens.extend(tokens.iter().map(|t| number(*t as usize)));
        self.positions.clear();
        self.positions.extend((n_past..n_past + tokens.len()).map(number));
        self.wanted.clear();
        self.wanted.extend((0..tokens.len()).map(|i| i8::from(i >= from)));
        assert!(self.tokens.len() <= self.sequences.len(), "a batch of {} tokens", tokens.len());
    }
}

unsafe extern "C" fn is_cancelled(flag: *mut c_void) -> bool {
    // SAFETY: the pointer of the `Arc` in the session's options, which live as long as the context.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_threads_than_the_process_may_use() {
        let allowed = std::thread::available_parallelism().unwrap().get();
        assert!((1..=allowed).contains(&(default_threads() as usize)));
    }

    #[test]
    fn options_that_llama_cpp_would_choke_on_are_refused() {
        let refused = |options: SessionOptions| options.check().unwrap_err().to_string();
        let base = SessionOptions::default;
        assert!(base().check().is_ok());
        assert!(refused(SessionOptions { n_ctx: Some(0), ..base() }).starts_with("--ctx is 0"));
        assert!(refused(SessionOptions { n_ctx: Some(u32::MAX), ..base() }).starts_with("--ctx is"));
        assert!(refused(SessionOptions { n_batch: 0, ..base() }).contains("batch is 0"));
        assert!(refused(SessionOptions { rows: 513, ..base() }).contains("rows of logits is 513"));
        assert!(refused(SessionOptions { threads: Some(0), ..base() }).contains("--threads is 0"));
        let off = SessionOptions { kv_type: KvType::Q8_0, flash_attention: FlashAttention::Off, ..base() };
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
