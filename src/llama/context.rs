//! A context: the memory of one or many sequences, and the evaluation of tokens.

use std::ffi::c_void;
use std::fmt;
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::guard::guarded;
use super::kv_type::KvTypes;
use super::model::Model;
use super::observe::{Ending, Observer, Watching};
use super::rope::RopeOptions;
use super::{Batch, Error, Setting, backend, devices, lora};

/// Whether attention is computed in one fused step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlashAttention {
    /// If the device supports it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How the sequences of a context share its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// One memory for all: a token that several sequences share is held once, and a sequence can take all of it.
    #[default]
    Together,
    /// An equal part for each. What is computed for a sequence then does not depend on what the others hold.
    Apart,
}

/// How to make a context.
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Tokens it holds, all sequences together; a token that several sequences share counts once.
    pub n_ctx: u32,
    /// Tokens evaluated at a time.
    pub n_batch: u32,
    /// Rows of logits that one evaluation returns: at least one per sequence. A row takes 4 bytes for each token of the
    /// vocabulary.
    pub n_rows: u32,
    /// Sequences it holds.
    pub n_sequences: u32,
    /// How the sequences share the memory.
    pub sharing: Sharing,
    /// Whether evaluations compute embeddings too: see [`Context::embedding`].
    pub embeddings: bool,
    /// Threads it computes with.
    pub threads: u32,
    /// How the KV cache stores its keys and values.
    pub kv_types: KvTypes,
    /// Whether attention is computed in one fused step.
    pub flash_attention: FlashAttention,
    /// How positions are encoded.
    pub rope: RopeOptions,
    /// Setting it, from any thread, ends an evaluation with [`Error::Cancelled`].
    pub cancel: Arc<AtomicBool>,
}

impl ContextOptions {
    /// The most sequences that a context holds: llama.cpp's `LLAMA_MAX_SEQ`.
    pub const MAX_SEQUENCES: u32 = 256;

    /// Refuses numbers that llama.cpp asserts on.
    ///
    /// # Errors
    /// [`Error::Setting`] if a number is out of range, and [`Error::QuantizedCache`] if the KV cache is quantized and
    /// flash attention is off.
    pub fn check(&self) -> Result<(), Error> {
        let within = |setting, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::Setting { setting, value: value.into(), least: least.into(), most: most.into() })
        };
        // Positions are 32-bit numbers with a sign, and llama.cpp rounds the context up to a multiple of 256.
        within(Setting::ContextSize, self.n_ctx, 1, i32::MAX as u32 / 2)?;
        within(Setting::BatchSize, self.n_batch, 1, 65_536)?;
        within(Setting::Sequences, self.n_sequences, 1, Self::MAX_SEQUENCES)?;
        within(Setting::LogitRows, self.n_rows, self.n_sequences, self.n_batch)?;
        within(Setting::Threads, self.threads, 1, 512)?;
        if self.kv_types.are_quantized() && self.flash_attention == FlashAttention::Off {
            return Err(Error::QuantizedCache);
        }
        self.rope.check()
    }

    /// Returns what llama.cpp is given, but for callbacks. The numbers have to be checked before.
    pub(super) fn params(&self) -> sys::llama_context_params {
        // SAFETY: takes nothing, returns a struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = self.n_ctx;
        params.n_batch = self.n_batch;
        params.n_ubatch = self.n_batch;
        params.n_seq_max = self.n_sequences;
        params.n_outputs_max = self.n_rows;
        params.embeddings = self.embeddings;
        // The state after each token, which the caller may put together.
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        if self.n_sequences > 1 {
            // With one memory for all sequences, a cell can belong to several of them.
            params.kv_unified = self.sharing == Sharing::Together;
            // Otherwise memory is reserved as if each sequence had one row.
            params.n_outputs_max_per_seq = self.n_rows;
        }
        let threads = i32::try_from(self.threads).unwrap_or(1);
        params.n_threads = threads;
        params.n_threads_batch = threads;
        self.kv_types.ask(&mut params);
        self.rope.ask(&mut params);
        params.flash_attn_type = match self.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        params.no_perf = true;
        params
    }
}

/// A context of a model.
///
/// It owns everything that llama.cpp has pointers to: the model, the cancel flag and the observer. They are dropped
/// after llama.cpp's context has been freed.
pub struct Context {
    pointer: NonNull<sys::llama_context>,
    model: Model,
    cancel: Arc<AtomicBool>,
    observer: Option<Watching>,
    n_ctx: u32,
    n_ctx_sequence: u32,
    n_batch: u32,
    n_rows: u32,
    n_sequences: u32,
    sharing: Sharing,
    computes_embeddings: bool,
    /// The embeddings of the last evaluation, `n_embd` floats each, like `rows`.
    embeddings: Vec<NonNull<f32>>,
    /// The rows of the last evaluation, `n_vocab` floats each. llama.cpp keeps them until the next one.
    rows: Vec<NonNull<f32>>,
    /// For each sequence, the position that its next token in the current batch must have; [`UNKNOWN`] for others.
    next: Vec<i32>,
    /// The sequences of the current batch, and the first position of each in it.
    starts: Vec<(i32, i32)>,
    /// For each token of the current batch, its sequences.
    lists: Vec<*mut sys::llama_seq_id>,
}

const UNKNOWN: i32 = -1;

// SAFETY: a context belongs to no thread in particular. It is not `Sync`, and everything that changes it takes `&mut self`,
// so that no two threads use it at a time. `lists` means nothing outside of `decode`.
unsafe impl Send for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("model", &self.model)
            .field("n_ctx", &self.n_ctx)
            .field("n_sequences", &self.n_sequences)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Makes a context of `model`, with the model's adapters. `observer` sees what every evaluation computes.
    ///
    /// # Errors
    /// If an option is out of range, the model was loaded without its weights, or llama.cpp has no memory for it.
    pub fn new(model: &Model, options: &ContextOptions, observer: Option<Box<dyn Observer>>) -> Result<Self, Error> {
        backend::get()?;
        options.check()?;
        if let Some(what) = model.lacks() {
            return Err(Error::Unsupported { path: model.path().to_path_buf(), what });
        }
        let observer = observer.map(Watching::new);
        let cancel = options.cancel.clone();
        let mut params = options.params();
        params.abort_callback = Some(is_cancelled);
        params.abort_callback_data = Arc::as_ptr(&cancel).cast_mut().cast();
        if let Some(observer) = &observer {
            observer.ask(&mut params);
        }

        let (pointer, heard) = backend::listen(|| {
            let _making = backend::making();
            // SAFETY: the model is alive, and the struct made below keeps it, the flag and the observer for as long as the
            // context. No other context is being made. Returns null where memory runs out or the model does not support
            // an option (it catches its own exceptions); asserts on numbers out of range, which were checked.
            unsafe { sys::llama_init_from_model(model.as_ptr(), params) }
        });
        let failed = || {
            let refused = || Error::Context { n_ctx: options.n_ctx, reason: heard.reason() };
            devices::full(&heard, "the context").unwrap_or_else(refused)
        };
        let pointer = NonNull::new(pointer).ok_or_else(failed)?;
        // SAFETY: the context is alive; each call returns a number that it was made with.
        let (n_batch, n_ctx, n_ctx_sequence, n_sequences) = unsafe {
            let context = pointer.as_ptr();
            let sizes = (sys::llama_n_ctx(context), sys::llama_n_ctx_seq(context));
            (sys::llama_n_batch(context), sizes.0, sizes.1, sys::llama_n_seq_max(context))
        };
        // llama.cpp limits the batch to the size of the context, and ends the process on a larger one.
        let n_batch = n_batch.min(options.n_batch);
        let n_sequences = n_sequences.min(options.n_sequences);
        let n_ctx = n_ctx.min(options.n_ctx);
        let context = Self {
            pointer,
            model: model.clone(),
            cancel,
            observer,
            n_ctx,
            n_ctx_sequence: n_ctx_sequence.min(n_ctx),
            sharing: options.sharing,
            computes_embeddings: options.embeddings,
            embeddings: Vec::new(),
            n_batch,
            n_rows: options.n_rows.min(n_batch),
            n_sequences,
            rows: Vec::with_capacity(options.n_rows as usize),
            next: vec![UNKNOWN; n_sequences as usize],
            starts: Vec::with_capacity(n_sequences as usize),
            lists: Vec::with_capacity(n_batch as usize),
        };
        if !model.adapters().is_empty() {
            // SAFETY: the context is alive, and of this model, for which the adapters were loaded.
            unsafe { lora::apply(context.pointer, model.adapters()) };
        }
        Ok(context)
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns how many tokens it holds.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// Returns how many tokens one sequence of it can hold.
    pub fn n_ctx_sequence(&self) -> u32 {
        self.n_ctx_sequence
    }

    /// Returns whether sequences can share what they hold, so that copying takes no memory.
    pub fn shares_tokens(&self) -> bool {
        self.sharing == Sharing::Together || self.n_sequences == 1
    }

    /// Returns how many tokens one evaluation takes.
    pub fn n_batch(&self) -> u32 {
        self.n_batch
    }

    /// Returns how many rows of logits one evaluation returns.
    pub fn n_rows(&self) -> u32 {
        self.n_rows
    }

    /// Returns how many sequences it holds.
    pub fn n_sequences(&self) -> u32 {
        self.n_sequences
    }

    /// Returns the flag that cancels an evaluation.
    pub fn cancel(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }

    /// Returns whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Evaluates a batch and waits for the result. The tokens are then in the memory of their sequences, and
    /// [`Self::logits`] returns the rows that were wanted.
    ///
    /// After an error, no token of the batch is in memory. If the memory cannot be truncated, its sequences are then
    /// empty.
    ///
    /// # Errors
    /// If the batch is empty or larger than the context takes, a token is not in the vocabulary, is in no sequence or
    /// one that does not exist, or does not directly follow the tokens of its sequence. If it asks for too many rows,
    /// or the memory is full. If it was cancelled or stopped by the observer, or llama.cpp fails.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), Error> {
        self.rows.clear();
        self.embeddings.clear();
        self.check(batch)?;
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.lists.clear();
        let mut first = 0;
        for n in &batch.n_sequences {
            // In range: the lists add up to all of `sequences`.
            self.lists.push(batch.sequences[first..].as_ptr().cast_mut());
            first += usize::try_from(*n).unwrap_or(0);
        }
        let raw = sys::llama_batch {
            n_tokens: i32::try_from(batch.len()).unwrap_or(0),
            token: batch.tokens.as_ptr().cast_mut(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_ptr().cast_mut(),
            n_seq_id: batch.n_sequences.as_ptr().cast_mut(),
            seq_id: self.lists.as_mut_ptr(),
            logits: batch.wants_logits.as_ptr().cast_mut(),
        };
        let pointer = self.pointer.as_ptr();
        let (status, heard) = backend::listen(|| {
            // SAFETY: the context is alive. Every array has `n_tokens` entries and every list of sequences as many as
            // `n_seq_id` says; llama.cpp copies them and writes to none. It returns a status where the memory is full, the
            // flag is set, sequences that share tokens have diverged, or computing fails. It asserts that the batch is not
            // empty and not too large, and that there are not too many rows: checked. A GPU without memory throws.
            // The context is alive for the second call, too. Rows may only be read after it.
            guarded(|| unsafe {
                let status = throwing::llama_decode(pointer, raw);
                throwing::llama_synchronize(pointer);
                status
            })
        });
        let decoded = match status {
            Ok(0) => Ok(()),
            Ok(1) => Err(Error::ContextFull { wanted: self.end_of_batch(), n_ctx: self.n_ctx }),
            Ok(2) => Err(Error::Cancelled),
            Ok(status) => Err(Error::Decode { status, reason: heard.reason() }),
            Err(thrown) => Err(Error::Thrown(thrown)),
        };
        match self.observer.as_mut().map(Watching::end) {
            None | Some(Ending::WentOn) => {}
            Some(Ending::Stopped) => {
                self.take_back();
                return Err(Error::Stopped);
            }
            Some(Ending::Panicked(panic)) => {
                self.take_back();
                std::panic::resume_unwind(panic);
            }
        }
        decoded.inspect_err(|_| self.take_back())?;
        for (index, _) in batch.wants_logits.iter().enumerate().filter(|(_, wanted)| **wanted != 0) {
            let index = i32::try_from(index).unwrap_or(-1);
            // SAFETY: the context is alive and done. Returns null for an index whose logits were not wanted.
            let row = unsafe { sys::llama_get_logits_ith(self.pointer.as_ptr(), index) };
            match NonNull::new(row) {
                Some(row) => self.rows.push(row),
                None => return Err(Error::NoLogits { row: self.rows.len(), computed: self.rows.len() }),
            }
            if self.computes_embeddings {
                // SAFETY: as for logits.
                let embedding = unsafe { sys::llama_get_embeddings_ith(self.pointer.as_ptr(), index) };
                self.embeddings.extend(NonNull::new(embedding));
            }
        }
        Ok(())
    }

    /// Checks a batch, and records where each of its sequences starts.
    fn check(&mut self, batch: &Batch) -> Result<(), Error> {
        for (sequence, _) in self.starts.drain(..) {
            self.next[sequence as usize] = UNKNOWN;
        }
        if batch.is_empty() {
            return Err(Error::NoTokens);
        }
        if batch.len() > self.n_batch as usize {
            return Err(Error::Batch { n_tokens: batch.len(), n_batch: self.n_batch });
        }
        if batch.n_rows() > self.n_rows as usize {
            return Err(Error::Rows { wanted: batch.n_rows(), most: self.n_rows as usize });
        }
        let (n_vocab, n_sequences) = (self.model.n_vocab(), self.n_sequences);
        let memory = self.memory();
        for (index, token) in batch.iter().enumerate() {
            if token.token >= n_vocab {
                return Err(Error::Token { token: token.token, n_vocab });
            }
            if token.position >= self.n_ctx_sequence {
                return Err(Error::ContextFull { wanted: token.position as usize + 1, n_ctx: self.n_ctx_sequence });
            }
            if token.sequences.is_empty() {
                return Err(Error::NoSequence { index });
            }
            for &sequence in token.sequences {
                let found = usize::try_from(sequence).ok().and_then(|sequence| self.next.get_mut(sequence));
                let Some(next) = found else {
                    return Err(Error::Sequence { sequence: sequence.cast_unsigned(), n_sequences });
                };
                if *next == UNKNOWN {
                    // SAFETY: the memory is that of a live context, and the sequence exists, which is asserted.
                    *next = unsafe { sys::llama_memory_seq_pos_max(memory, sequence) } + 1;
                    self.starts.push((sequence, *next));
                }
                if next.cast_unsigned() != token.position {
                    let (sequence, expected) = (sequence.cast_unsigned(), next.cast_unsigned());
                    return Err(Error::Position { sequence, position: token.position, expected });
                }
                *next += 1;
            }
        }
        Ok(())
    }

    /// Returns how many tokens the longest sequence of the current batch would have.
    fn end_of_batch(&self) -> usize {
        let ends = self.starts.iter().map(|(sequence, _)| self.next[*sequence as usize]);
        ends.max().and_then(|end| usize::try_from(end).ok()).unwrap_or(0)
    }

    /// Removes the current batch from memory.
    fn take_back(&mut self) {
        for i in 0..self.starts.len() {
            let (sequence, start) = self.starts[i];
            self.truncate_to(sequence, start);
        }
    }

    /// Returns row `row` of the logits that the last evaluation computed, in the order in which they were wanted: `n_vocab`
    /// numbers.
    ///
    /// # Errors
    /// [`Error::NoLogits`] if it was not computed.
    pub fn logits(&self, row: usize) -> Result<&[f32], Error> {
        let pointer = self.rows.get(row).ok_or(Error::NoLogits { row, computed: self.rows.len() })?;
        // SAFETY: llama.cpp keeps `n_vocab` floats per row until the next evaluation, which takes `&mut self` and
        // clears `rows`. The evaluation that computed them has finished.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), self.model.n_vocab() as usize) })
    }

    /// Returns the embedding of row `row`, in the order in which logits were wanted: the state after the last layer's norm,
    /// as many numbers as [`Model::n_embd`] says.
    ///
    /// # Errors
    /// [`Error::NoLogits`] if it was not computed.
    pub fn embedding(&self, row: usize) -> Result<&[f32], Error> {
        let computed = self.embeddings.len();
        let pointer = self.embeddings.get(row).ok_or(Error::NoLogits { row, computed })?;
        // SAFETY: as for logits, with `n_embd` floats per row.
        Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), self.model.n_embd()) })
    }

    /// Returns the first and the last position that a sequence holds; `None` if it is empty. The first is above 0 for
    /// models with a sliding window.
    ///
    /// # Errors
    /// [`Error::Sequence`] if there is no such sequence.
    pub fn positions(&self, sequence: u32) -> Result<Option<RangeInclusive<u32>>, Error> {
        let sequence = self.sequence(sequence)?;
        let memory = self.memory();
        // SAFETY: the memory is that of a live context, and the sequence exists, which is asserted.
        let (first, last) = unsafe {
            (sys::llama_memory_seq_pos_min(memory, sequence), sys::llama_memory_seq_pos_max(memory, sequence))
        };
        Ok(u32::try_from(first).ok().zip(u32::try_from(last).ok()).map(|(first, last)| first..=last))
    }

    /// Removes all but the first `n_tokens` tokens of a sequence. Returns how many are left: fewer, none in fact, where the
    /// memory cannot be truncated.
    ///
    /// # Errors
    /// [`Error::Sequence`] if there is no such sequence.
    pub fn truncate(&mut self, sequence: u32, n_tokens: u32) -> Result<u32, Error> {
        let id = self.sequence(sequence)?;
        self.truncate_to(id, i32::try_from(n_tokens).unwrap_or(i32::MAX));
        Ok(self.positions(sequence)?.map_or(0, |held| held.end() + 1))
    }

    /// Like [`Self::truncate`], of a sequence that exists.
    fn truncate_to(&mut self, sequence: i32, position: i32) {
        let memory = self.memory();
        // SAFETY: the memory is that of a live context in which nothing is being evaluated; the sequence exists, which is
        // asserted. Removing returns false where only all of a sequence can be removed.
        unsafe {
            if !sys::llama_memory_seq_rm(memory, sequence, position, -1)
                && (self.n_sequences == 1 || !sys::llama_memory_seq_rm(memory, sequence, -1, -1))
            {
                sys::llama_memory_clear(memory, true);
            }
        }
    }

    /// Adds the first `n_tokens` tokens of `from` to `to`, which must not hold any tokens. Where sequences share their
    /// memory, nothing is copied: each memory cell gets a mark.
    ///
    /// # Errors
    /// [`Error::Sequence`] if there is no such sequence. Where sequences do not share their memory, also if [`Self::save`]
    /// or restoring a state fails.
    pub fn copy(&mut self, from: u32, to: u32, n_tokens: u32) -> Result<(), Error> {
        if !self.shares_tokens() {
            // llama.cpp copies whole memories only, and not before the next evaluation.
            let state = self.save(from)?;
            self.restore(to, &state)?;
            self.truncate(to, n_tokens)?;
            return Ok(());
        }
        let (from, to) = (self.sequence(from)?, self.sequence(to)?);
        let end = i32::try_from(n_tokens).unwrap_or(i32::MAX);
        // SAFETY: the memory is that of a live context in which nothing is being evaluated. Both sequences exist and, as
        // this context has one memory for all, lie in one stream; both are asserted.
        unsafe { sys::llama_memory_seq_cp(self.memory(), from, to, 0, end) };
        Ok(())
    }

    /// Empties all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the memory is that of a live context in which nothing is being evaluated.
        unsafe { sys::llama_memory_clear(self.memory(), true) };
    }

    /// Returns what the memory holds of a sequence, in llama.cpp's format.
    ///
    /// # Errors
    /// [`Error::Sequence`] if there is no such sequence, and [`Error::StateMemory`] if there is no memory for the
    /// bytes.
    pub fn save(&mut self, sequence: u32) -> Result<Vec<u8>, Error> {
        let sequence = self.sequence(sequence)?;
        let context = self.pointer.as_ptr();
        // SAFETY: the context is alive and the sequence exists. Catches its own exceptions, and returns 0 after one.
        let size = unsafe { sys::llama_state_seq_get_size(context, sequence) };
        let mut state = Vec::new();
        state.try_reserve_exact(size).map_err(|_| Error::StateMemory { bytes: size as u64 })?;
        state.resize(size, 0);
        // SAFETY: as above; there is room for `size` bytes, and llama.cpp writes no more than that.
        let written = unsafe { sys::llama_state_seq_get_data(context, state.as_mut_ptr(), size, sequence) };
        state.truncate(written);
        Ok(state)
    }

    /// Replaces the memory of a sequence by `state`, which [`Self::save`] returned for a context of the same model and
    /// options. llama.cpp may end the process on other bytes, so callers have to make sure that they are the same.
    ///
    /// # Errors
    /// [`Error::Sequence`] if there is no such sequence, and [`Error::State`] if llama.cpp refuses the bytes; the
    /// sequence is then empty.
    pub(crate) fn restore(&mut self, sequence: u32, state: &[u8]) -> Result<(), Error> {
        let id = self.sequence(sequence)?;
        self.truncate_to(id, 0);
        let (read, heard) = backend::listen(|| {
            // SAFETY: the context is alive and the sequence exists. llama.cpp reads no more than `state.len()` bytes, and
            // catches its own exceptions, after which it returns 0.
            unsafe { sys::llama_state_seq_set_data(self.pointer.as_ptr(), state.as_ptr(), state.len(), id) }
        });
        if read == state.len() {
            return Ok(());
        }
        self.truncate_to(id, 0);
        Err(Error::State(if read == 0 { heard.reason() } else { "its length is not that of its contents".to_string() }))
    }

    fn sequence(&self, sequence: u32) -> Result<i32, Error> {
        let id = i32::try_from(sequence).ok().filter(|_| sequence < self.n_sequences);
        id.ok_or(Error::Sequence { sequence, n_sequences: self.n_sequences })
    }

    /// The memory of the sequences. Null for models without one, which the calls that take it allow.
    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is alive; the call returns a field of it.
        unsafe { sys::llama_get_memory(self.pointer.as_ptr()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `llama_init_from_model` and is owned by this struct alone. The model, the flag and
        // the observer are fields, which are dropped after this body.
        unsafe { sys::llama_free(self.pointer.as_ptr()) }
    }
}

/// Called by llama.cpp between operations. Returns whether to stop.
unsafe extern "C" fn is_cancelled(flag: *mut c_void) -> bool {
    // SAFETY: the pointer inside of the `Arc` that the context owns.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

/// Functions that may throw: the bindings say that none does.
mod throwing {
    use super::sys;

    unsafe extern "C-unwind" {
        pub fn llama_decode(context: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
        pub fn llama_synchronize(context: *mut sys::llama_context);
    }
}

#[cfg(test)]
mod tests {
    use super::super::KvType;
    use super::*;

    fn options() -> ContextOptions {
        ContextOptions {
            n_ctx: 512,
            n_batch: 256,
            n_rows: 1,
            n_sequences: 1,
            sharing: Sharing::Together,
            embeddings: false,
            threads: 1,
            kv_types: KvTypes::default(),
            rope: RopeOptions::default(),
            flash_attention: FlashAttention::Auto,
            cancel: Arc::default(),
        }
    }

    #[test]
    fn options_that_llama_cpp_asserts_on_are_refused() {
        let refused = |options: ContextOptions| options.check().unwrap_err();
        assert!(options().check().is_ok());
        assert!(ContextOptions { n_rows: 64, n_sequences: 64, ..options() }.check().is_ok());
        for (options, setting) in [
            (ContextOptions { n_ctx: 0, ..options() }, Setting::ContextSize),
            (ContextOptions { n_ctx: u32::MAX, ..options() }, Setting::ContextSize),
            (ContextOptions { n_batch: 0, ..options() }, Setting::BatchSize),
            (ContextOptions { n_rows: 257, ..options() }, Setting::LogitRows),
            (ContextOptions { n_rows: 3, n_sequences: 4, ..options() }, Setting::LogitRows),
            (ContextOptions { n_sequences: 257, n_rows: 257, n_batch: 512, ..options() }, Setting::Sequences),
            (ContextOptions { threads: 0, ..options() }, Setting::Threads),
        ] {
            let error = refused(options);
            assert!(matches!(error, Error::Setting { setting: found, .. } if found == setting), "{error}");
        }
        assert_eq!(
            refused(ContextOptions { n_ctx: 0, ..options() }).to_string(),
            "the context size cannot be 0; it has to be from 1 to 1073741823"
        );
        let off = ContextOptions { kv_types: KvType::Q8_0.into(), flash_attention: FlashAttention::Off, ..options() };
        assert!(matches!(refused(off), Error::QuantizedCache));
    }
}
