//! Many texts at a time in one context, and the prefixes that were read for them.
//!
//! ```text
//! submit ──► queue ──► a sequence: read, write, read, write ... ──► Event
//!              │          ▲  │
//!              │   prefix │  │ given up: moved out                 evaluation: the next token of all that write,
//!              ▼          │  ▼                                     and a piece of a prompt
//!           what sequences hold ──► memory ──► disk
//! ```
//!
//! A [`Scheduler`] is policy over a [`SequenceDecoder`]. [`Scheduler::step`] makes one evaluation, and returns. Nothing here
//! waits, but for the model.
//!
//! | rule | where |
//! |---|---|
//! | First come, first served into sequences. A text whose beginning is being read for another one waits for that | `place` |
//! | Each evaluation takes the next token of every text that writes, and fills up with prompts, in turn | `evaluate` |
//! | Prompts that take long get bounded pieces while texts are written; others, and those beside nothing, whole batches | `evaluate` |
//! | What follows is guessed where the text has it already, as far as evaluations with more tokens are worth it | `evaluate` |
//! | Where the memory is full, idle sequences are given up, then the youngest text waits until there is room again | `evaluate` |
//! | What sequences hold is kept until the sequence is needed, then in memory, and between all else on the disk | `place` |
//!
//! # Deterministic
//!
//! The result of an evaluation depends on its number of tokens, for which llama.cpp has different code, and on where in the
//! memory the tokens of a sequence lie, which is the order of sums. With [`SchedulerOptions::deterministic`], therefore,
//!
//! - each sequence has a memory of its own ([`SequenceDecoder::shares_tokens`] is false), where its tokens lie in order;
//! - each evaluation has one sequence, and nothing is guessed;
//! - prompts are cut at multiples of [`SchedulerOptions::piece`], counted from their first token;
//! - of what is held or saved, only whole pieces that were read as prompt are used again.
//!
//! Then all that a text depends on is what it depends on alone.

mod cells;
mod disk;
mod evaluate;
mod memory;
mod place;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cells::Cells;
use disk::{Disk, FileId};
use memory::{Memory, Saved};
use text::Text;

pub use disk::{PrefixFolder, Wake};
pub use text::{End, Event, Found, Request, TaskError, TaskId, TextUsage, TextWriter};

use super::prompt_cache;
use super::speculate::{DraftLength, RowCosts};
use super::{Draft, DraftOptions, Error, Finish, Generation, LogitRows, Sequence, SequenceDecoder, SessionOptions};
use crate::llama::{self, Batch, Model};
use crate::sample::Sampler;

/// How texts are scheduled.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// The most tasks that wait for a sequence.
    pub queue: usize,
    /// The most tokens of prompts in one evaluation while texts are being written, until it is known how fast they are read;
    /// and the pieces into which prompts are cut if it is deterministic.
    pub piece: usize,
    /// A prompt that is read within this time is read whole, while texts that are being written wait; of one that takes longer,
    /// a piece is read that takes half of it at most. With zero, all pieces have at most [`SchedulerOptions::piece`] tokens.
    pub pause: Duration,
    /// How tokens that follow are guessed from the text itself, of texts that are being written; `None` if they are not. They
    /// are not if it is deterministic, or the decoder's memory cannot be truncated.
    pub draft: Option<DraftOptions>,
    /// Whether a text does not depend on what else is written, and was read before.
    pub deterministic: bool,
    /// The most bytes of prefixes in memory.
    pub prefix_bytes: u64,
    /// Prefixes with fewer tokens are not kept outside of the context.
    pub least_kept: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            queue: 64,
            piece: 64,
            pause: Duration::from_millis(600),
            draft: Some(DraftOptions::default()),
            deterministic: false,
            prefix_bytes: 0,
            least_kept: 32,
        }
    }
}

/// Receives what a scheduler says of its tasks.
pub type EventSink<'a> = dyn FnMut(TaskId, Event<'_>) + 'a;

/// A sequence of the context.
#[derive(Debug)]
struct Slot {
    sequence: Sequence,
    /// The number of its first tokens that were read in the pieces of a prompt.
    clean: usize,
    /// When it was given its last text: higher is later.
    used: u64,
    /// Whether what it holds may be used for others.
    is_public: bool,
    text: Option<Box<Text>>,
    /// How many tokens of the text are to be read next, in the evaluation that is being planned; guesses come after them.
    planned: usize,
}

/// A task whose texts have not all ended.
#[derive(Debug)]
struct Task {
    left: usize,
    has_begun: bool,
    arrived: Instant,
    deadline: Option<Instant>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do.
    Busy,
    /// It waits for a file, and [`Wake`] says when it is there.
    Waiting,
    /// There is nothing to do.
    Idle,
}

/// What a scheduler has done since it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Tokens that were read.
    pub read_tokens: u64,
    /// In this time.
    pub reading: Duration,
    /// Tokens of prompts that need not be read.
    pub cached_tokens: u64,
    /// Tokens that were written.
    pub written_tokens: u64,
    /// In this time.
    pub writing: Duration,
    /// Evaluations.
    pub evaluations: u64,
    /// Sequences in all of them together.
    pub evaluated_sequences: u64,
    /// Tokens that were guessed, and evaluated with others.
    pub guessed_tokens: u64,
    /// Tokens of them that were right.
    pub accepted_guesses: u64,
    /// How often tokens of a text were guessed.
    pub guesses: u64,
    /// Texts that gave way to others.
    pub preempted: u64,
    /// The most tokens that a sequence has held.
    pub most_tokens: u64,
}

/// What a sequence is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotStatus {
    /// The task it works on.
    pub task: Option<TaskId>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of it that were read.
    pub read_tokens: usize,
    /// Tokens that were written.
    pub written_tokens: usize,
    /// Tokens that it holds.
    pub held_tokens: usize,
}

/// Stops an evaluation that is of no use any more, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    /// The tasks whose prompts are read in the evaluation that is being made.
    reading: Arc<Mutex<Vec<TaskId>>>,
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// Makes one that sets this flag, which has to be the context's.
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        Self { reading: Arc::default(), flag }
    }

    /// Stops the evaluation if it reads the prompt of this task, which is about to be cancelled.
    pub fn cancel(&self, task: TaskId) {
        let reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.contains(&task) {
            self.flag.store(true, Ordering::Relaxed);
        }
    }

    fn begin(&self, tasks: Vec<TaskId>) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    fn end(&self) {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if !reading.is_empty() {
            reading.clear();
            self.flag.store(false, Ordering::Relaxed);
        }
    }
}

/// Writes many texts at a time.
pub struct Scheduler<D> {
    decoder: D,
    options: SchedulerOptions,
    batch: Batch,
    slots: Vec<Slot>,
    cells: Cells,
    tasks: HashMap<TaskId, Task>,
    queue: VecDeque<Box<Text>>,
    memory: Memory,
    disk: Option<Disk>,
    /// Files that are being read (`None`), or were read for texts that wait.
    files: HashMap<FileId, Option<Saved>>,
    interrupt: Interrupt,
    /// The sequence whose turn it is.
    turn: usize,
    clock: u64,
    /// Seconds that a task took of late.
    pace: Option<f64>,
    /// Seconds that a token of a prompt took of late.
    seconds_per_token: Option<f64>,
    /// What evaluations without prompts took of late.
    row_costs: RowCosts,
    /// What the last text that ended has taught of guesses, with which others begin.
    experience: Option<DraftLength>,
    /// Bytes of a state for each of its tokens, once that is known.
    bytes_per_token: Option<u64>,
    counts: Counts,
}

impl<D> std::fmt::Debug for Scheduler<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("slots", &self.slots.len())
            .field("queue", &self.queue.len())
            .finish_non_exhaustive()
    }
}

/// Returns what the states of a context depend on, as JSON: the model, its adapters, and all settings that change what is
/// computed. The same states never have different ones.
///
/// # Errors
/// If the model's file cannot be read any more.
pub fn identity(
    model: &Model,
    session: &SessionOptions,
    n_ctx: u32,
    n_sequences: u32,
    options: &SchedulerOptions,
) -> Result<String, Error> {
    let mut identity = prompt_cache::identity(model, session, n_ctx)?;
    if options.deterministic {
        // States have the number of memories in them. And what is held must be what would be computed.
        let threads = session.n_threads();
        let layout = model.uses_second_layout();
        let layers = model.gpu_layers();
        identity = format!(
            "{}, \"deterministic\": [{n_sequences}, {}, {threads}, {layout}, {layers}, {:?}]}}",
            identity.trim_end_matches('}'),
            options.piece,
            llama::system_info()?
        );
    }
    Ok(identity)
}

/// Returns how many of the first tokens are the same.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<D: SequenceDecoder> Scheduler<D> {
    /// Makes a scheduler over all sequences of a decoder, which must be empty. A deterministic one needs a decoder whose
    /// sequences do not share tokens.
    pub fn new(decoder: D, options: SchedulerOptions) -> Self {
        let (n, n_batch) = (decoder.n_sequences(), decoder.n_batch());
        let slot =
            |id| Slot { sequence: Sequence::new(id), clean: 0, used: 0, is_public: true, text: None, planned: 0 };
        Self {
            batch: Batch::with_capacity(n_batch),
            slots: (0..n).map(slot).collect(),
            cells: Cells::new(n as usize),
            tasks: HashMap::new(),
            queue: VecDeque::new(),
            memory: Memory::new(options.prefix_bytes, decoder.can_truncate()),
            disk: None,
            files: HashMap::new(),
            interrupt: Interrupt::default(),
            turn: 0,
            clock: 0,
            pace: None,
            seconds_per_token: None,
            row_costs: RowCosts::default(),
            experience: None,
            bytes_per_token: None,
            counts: Counts::default(),
            decoder,
            options: SchedulerOptions { piece: options.piece.clamp(1, n_batch.max(1)), ..options },
        }
    }

    /// Keeps prefixes in a folder, too. `wake` is called, by another thread, when a text that waits for a file can go on.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn with_folder(mut self, folder: PrefixFolder, wake: Wake) -> std::io::Result<Self> {
        self.disk = Some(Disk::open(folder, self.decoder.can_truncate(), wake)?);
        Ok(self)
    }

    /// Lets other threads stop evaluations. The flag has to be the decoder's.
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Returns the decoder.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }

    /// Returns how many tokens there must be room for after a prompt, of a text of at most this many.
    pub fn least_room(&self, max_tokens: Option<usize>) -> usize {
        let n_ctx = self.decoder.n_ctx_sequence() as usize;
        (n_ctx / 32).max(1).min(max_tokens.unwrap_or(n_ctx))
    }

    /// Takes a task. Its texts begin in one of the next steps.
    ///
    /// # Errors
    /// If too many wait, the prompt is empty, too long, or not of the vocabulary, or its time is over. It is then forgotten.
    pub fn submit(&mut self, request: Request) -> Result<(), TaskError> {
        let Request { task, prompt, writers, options, cache, progress, scores, arrived, deadline } = request;
        self.check(&prompt, options.max_tokens)?;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(TaskError::Timeout);
        }
        let waiting = self.n_waiting();
        if waiting >= self.options.queue && (waiting > 0 || self.slots.iter().all(|slot| slot.text.is_some())) {
            return Err(TaskError::Busy { waiting, retry_after: self.retry_after(waiting) });
        }
        let n_ctx = self.decoder.n_ctx_sequence() as usize;
        let most = prompt.len().saturating_add(options.max_tokens.unwrap_or(n_ctx)).min(n_ctx);
        let drafts: Result<Vec<_>, Error> = writers.iter().map(|writer| self.draft(&prompt, &writer.sampler)).collect();
        let drafts = drafts?;
        self.tasks.insert(task, Task { left: writers.len(), has_begun: false, arrived, deadline });
        for ((index, mut writer), draft) in (0u32..).zip(writers).zip(drafts) {
            self.clock += 1;
            let tokenizer = self.decoder.tokenizer();
            let generation = Generation::new(tokenizer, &prompt, n_ctx, &options, &mut writer.sampler);
            let mut text = Box::new(Text {
                task,
                index,
                order: self.clock,
                generation,
                writer,
                draft,
                most_guesses: 0,
                n_prompt: prompt.len(),
                // The logits of what is known are not.
                cache: cache && scores.is_none(),
                progress,
                // The others begin with what the first has read.
                scores: scores.filter(|_| index == 0),
                n_scored: 0,
                has_logprobs: options.logprobs.is_some(),
                most,
                cached: 0,
                arrived,
                started: None,
                read: None,
                loading: None,
                unusable: None,
            });
            // The first step asks for the prompt to be read, and uses no logits.
            if let Err(error) = text.step(LogitRows::new(&self.decoder, 0)) {
                self.tasks.remove(&task);
                self.remove_waiting(task);
                return Err(error.into());
            }
            self.look_on_disk(&mut text);
            self.queue.push_back(text);
        }
        Ok(())
    }

    /// Returns what guesses the tokens of a text, if anything does.
    fn draft(&self, prompt: &[u32], sampler: &Sampler) -> Result<Option<Draft>, Error> {
        let is_wanted = !self.options.deterministic && self.decoder.can_truncate();
        let Some(options) = self.options.draft.filter(|_| is_wanted) else { return Ok(None) };
        let mut draft = Draft::ngram(options)?;
        draft.begin(prompt, sampler, true)?;
        Ok(Some(draft))
    }

    fn check(&self, prompt: &[u32], max_tokens: Option<usize>) -> Result<(), TaskError> {
        let (n_vocab, n_ctx) = (self.decoder.n_vocab(), self.decoder.n_ctx_sequence() as usize);
        if prompt.is_empty() {
            return Err(Error::from(llama::Error::NoTokens).into());
        }
        if let Some(&token) = prompt.iter().find(|token| **token >= n_vocab) {
            return Err(Error::from(llama::Error::Token { token, n_vocab }).into());
        }
        let least = self.least_room(max_tokens);
        if prompt.len() + least > n_ctx {
            return Err(TaskError::TooLong { tokens: prompt.len(), n_ctx, least });
        }
        Ok(())
    }

    /// Returns how many tasks wait for their first sequence.
    pub fn n_waiting(&self) -> usize {
        self.tasks.values().filter(|task| !task.has_begun).count()
    }

    /// Returns the seconds after which one of so many waiting tasks has probably begun.
    fn retry_after(&self, waiting: usize) -> u64 {
        let rounds = (waiting + 1).div_ceil(self.slots.len().max(1));
        (self.pace.unwrap_or(1.0) * rounds as f64).ceil().clamp(1.0, 300.0) as u64
    }

    /// Ends a task with what was written. Does nothing if there is no such task.
    pub fn cancel(&mut self, task: TaskId, sink: &mut EventSink<'_>) {
        self.end_task(task, &End::Finish(Finish::Cancelled), sink);
    }

    fn end_task(&mut self, id: TaskId, end: &End, sink: &mut EventSink<'_>) {
        let Some(task) = self.tasks.get(&id) else { return };
        if !task.has_begun {
            let error = if *end == End::Timeout { TaskError::Timeout } else { TaskError::Cancelled };
            return self.fail(id, error, sink);
        }
        for text in self.remove_waiting(id) {
            self.stop(text, end, sink);
        }
        for i in 0..self.slots.len() {
            if let Some(text) = self.take_text(i, id) {
                self.stop(text, end, sink);
            }
        }
    }

    /// Ends a text before its time.
    fn stop(&mut self, mut text: Box<Text>, end: &End, sink: &mut EventSink<'_>) {
        text.generation.cancel();
        // Gives out what was held back, without logits.
        if text.step(LogitRows::new(&self.decoder, 0)).is_ok()
            && let Some(piece) = text.piece()
        {
            sink(text.task, piece);
        }
        sink(text.task, text.finished(end.clone()));
        self.one_ended(text.task, sink);
    }

    /// Fails a task, and ends all of its texts.
    fn fail(&mut self, id: TaskId, error: TaskError, sink: &mut EventSink<'_>) {
        if self.tasks.remove(&id).is_none() {
            return;
        }
        self.remove_waiting(id);
        for i in 0..self.slots.len() {
            self.take_text(i, id);
        }
        sink(id, Event::Failed(error));
    }

    fn remove_waiting(&mut self, task: TaskId) -> VecDeque<Box<Text>> {
        let (gone, left) = std::mem::take(&mut self.queue).into_iter().partition(|text| text.task == task);
        self.queue = left;
        self.forget_files();
        gone
    }

    /// Takes the text of a task from a sequence, which is then idle.
    fn take_text(&mut self, i: usize, task: TaskId) -> Option<Box<Text>> {
        self.slots[i].text.as_ref().filter(|text| text.task == task)?;
        self.make_idle(i)
    }

    /// Counts a text that has ended.
    fn one_ended(&mut self, id: TaskId, sink: &mut EventSink<'_>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.left = task.left.saturating_sub(1);
        if task.left == 0 {
            let seconds = task.arrived.elapsed().as_secs_f64();
            self.pace = Some(self.pace.map_or(seconds, |pace| 0.8 * pace + 0.2 * seconds));
            self.tasks.remove(&id);
            sink(id, Event::Done);
        }
    }

    /// Ends the tasks whose time is over.
    fn expire(&mut self, sink: &mut EventSink<'_>) {
        let now = Instant::now();
        let is_over = |task: &Task| task.deadline.is_some_and(|deadline| deadline <= now);
        let over: Vec<TaskId> = self.tasks.iter().filter(|(_, task)| is_over(task)).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.end_task(id, &End::Timeout, sink));
    }

    /// Returns when the next task's time is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.tasks.values().filter_map(|task| task.deadline).min()
    }

    /// Makes one evaluation, after what it needs.
    pub fn step(&mut self, sink: &mut EventSink<'_>) -> Progress {
        self.expire(sink);
        self.take_files();
        self.admit(sink);
        let is_planned = self.plan();
        if is_planned {
            self.evaluate(sink);
        }
        match self.slots.iter().any(|slot| slot.text.is_some()) {
            true => Progress::Busy,
            false if self.queue.is_empty() => Progress::Idle,
            // A sequence has become free, and the next step offers it to those who wait.
            false if is_planned => Progress::Busy,
            // With all sequences free, texts wait for nothing but files.
            false => Progress::Waiting,
        }
    }

    /// Returns what was done until now.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns what each sequence is doing.
    pub fn slots(&self) -> Vec<SlotStatus> {
        let status = |slot: &Slot| {
            let held_tokens = slot.sequence.tokens().len();
            slot.text.as_ref().map_or(SlotStatus { held_tokens, ..SlotStatus::default() }, |text| SlotStatus {
                task: Some(text.task),
                prompt_tokens: text.n_prompt,
                read_tokens: held_tokens.min(text.n_prompt),
                written_tokens: text.generation.tokens().len(),
                held_tokens,
            })
        };
        self.slots.iter().map(status).collect()
    }

    /// Returns how many tokens the context holds, those of several sequences counted once.
    pub fn n_held(&self) -> usize {
        self.cells.n_used()
    }

    /// Returns the bytes of prefixes in memory, and on the disk.
    pub fn prefix_bytes(&self) -> (u64, u64) {
        (self.memory.n_bytes(), self.disk.as_ref().map_or(0, Disk::n_bytes))
    }

    /// Returns why a prefix could not be written to the disk, once.
    pub fn take_trouble(&self) -> Option<String> {
        self.disk.as_ref()?.take_trouble()
    }
}
