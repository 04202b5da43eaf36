//! Runs models over the windows of texts: one window after the other, and within a window one model after the other. An
//! observer gets their logits, and works on them while the next ones are computed.
//!
//! ```text
//! models     | A: context, 64 rows, 64 rows ... | B: context, 64 rows, 64 rows ... | A: next window ...
//! observer        | A's first rows, A's next rows ...        | B's first rows ...
//! ```
//!
//! Memory is bounded by what the observer keeps and a few buffers of some rows. If the contexts of all models are small
//! compared with that, they are kept from window to window. Otherwise each is created when its turn comes.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::Broken;
use super::texts::{Cut, TokenizedText};
use crate::engine::{Error, Logits, Session, SessionOptions};
use crate::llama::Model;
use crate::placement::Shape;

/// Most bytes of logits in a step.
const STEP_BYTES: usize = 24 << 20;
/// Tokens evaluated at a time with a large vocabulary. More would take memory and be hardly faster.
const BATCH: usize = 192;
/// Most bytes of contexts that are kept.
const CONTEXT_BYTES: u64 = 96 << 20;

/// Works on logits as they are computed.
pub trait Observer: Send {
    /// A window of the text `text` begins, with the tokens to score.
    fn window(&mut self, text: usize, scored: &[u32]);

    /// Takes the next rows of logits of `model`, those of step `step` of the window. Returns the buffer if it is no
    /// longer needed.
    ///
    /// # Errors
    /// If this model cannot be measured any further. Others continue.
    fn rows(&mut self, model: usize, step: usize, rows: Rows) -> Result<Option<Vec<f32>>, Failure>;
}

/// Rows of logits.
#[derive(Debug)]
pub struct Rows {
    /// The logits, `n_vocab` per row.
    pub logits: Vec<f32>,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Index of the first row among the window's scored tokens.
    pub first: usize,
}

impl Rows {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.logits.len() / self.n_vocab.max(1)
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.logits.is_empty()
    }

    /// A row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.n_vocab..(row + 1) * self.n_vocab]
    }
}

/// The outcome of reading.
#[derive(Debug)]
pub struct Read {
    /// Number of windows that all models have read.
    pub windows: usize,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
    /// For each model, the failure that stopped it, and in which window.
    pub failures: Vec<Option<(usize, Failure)>>,
    /// Time in which models computed.
    pub model_time: Duration,
}

/// Why a model did not read all windows.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The model cannot be run.
    #[error(transparent)]
    Run(#[from] Error),
    /// Its logits are not a prediction.
    #[error("its logits are {broken} at token {row} of those scored in the window")]
    Broken {
        /// What they are.
        broken: Broken,
        /// Index among the window's scored tokens.
        row: usize,
    },
    /// The results from the logits cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Returns options for windows of this size: the context and the batches depend on the window, all else is taken from
/// `options`.
pub fn session_for(options: &SessionOptions, cut: Cut, n_vocab: u32) -> SessionOptions {
    let most = (STEP_BYTES / (4 * n_vocab.max(1) as usize)).max(8);
    // Steps of equal size: a short last one would read all weights for a few tokens.
    let rows = cut.scored().div_ceil(cut.scored().div_ceil(most).max(1)).max(1);
    // A step is one short of half a window, whose first half is then read as one batch, and not as one and a token.
    let n_batch = rows.max(BATCH).next_multiple_of(64).min(cut.window as usize);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    SessionOptions { n_ctx: Some(cut.window), n_batch: number(n_batch), rows: number(rows), ..options.clone() }
}

/// Runs the models over all windows of the texts. The first `essential` models have to succeed: reading ends if one of
/// them fails, or if all others have failed. `watch` is called after each window with the number of windows done.
pub fn read(
    models: &[&Model],
    essential: usize,
    texts: &[TokenizedText],
    cut: Cut,
    options: &SessionOptions,
    observer: &mut dyn Observer,
    mut watch: impl FnMut(usize),
) -> Read {
    let mut seats: Vec<Seat> = models.iter().map(|model| Seat::new(model, options, cut)).collect();
    let keep = seats.iter().map(Seat::context_bytes).fold(0, u64::saturating_add) <= CONTEXT_BYTES;
    let failures = Failures::new(models.len());
    let (mut windows, mut interrupted, mut model_time) = (0, false, Duration::ZERO);

    std::thread::scope(|scope| {
        // One step waits while the observer works on another one.
        let (jobs, work) = sync_channel(1);
        let (give_back, free) = channel();
        let failures = &failures;
        scope.spawn(move || look(observer, &work, &give_back, failures));
        for (slice, tokens, scored) in windows_of(texts, cut) {
            if jobs.send(Message::Window { text: slice, window: windows, scored: scored.to_vec() }).is_err() {
                // The observer has panicked, which the scope passes on.
                return;
            }
            for (model, seat) in seats.iter_mut().enumerate().filter(|(model, _)| !failures.has(*model)) {
                let mut to_observer = |step, rows| jobs.send(Message::Rows { model, step, rows }).is_ok();
                let result = seat.read(tokens, cut, &free, &mut to_observer, &mut model_time);
                if !keep {
                    seat.session = None;
                }
                match result {
                    Ok(()) => {}
                    Err(Error::Cancelled) => {
                        interrupted = true;
                        return;
                    }
                    Err(error) => failures.add(model, windows, error.into()),
                }
            }
            if failures.are_fatal(essential) {
                return;
            }
            windows += 1;
            watch(windows);
        }
    });
    Read { windows, interrupted, failures: failures.into_inner(), model_time }
}

/// Returns all windows, each with the index of its text, its tokens and its scored tokens.
fn windows_of(texts: &[TokenizedText], cut: Cut) -> impl Iterator<Item = (usize, &[u32], &[u32])> {
    texts.iter().enumerate().flat_map(move |(i, text)| cut.windows(text).map(move |(all, scored)| (i, all, scored)))
}

enum Message {
    Window { text: usize, window: usize, scored: Vec<u32> },
    Rows { model: usize, step: usize, rows: Rows },
}

/// Passes messages to the observer, until the channel is closed.
fn look(observer: &mut dyn Observer, work: &Receiver<Message>, give_back: &Sender<Vec<f32>>, failures: &Failures) {
    let mut current = 0;
    for job in work {
        match job {
            Message::Window { text, window, scored } => {
                current = window;
                observer.window(text, &scored);
            }
            // Rows that were in the channel when the model failed.
            Message::Rows { model, .. } if failures.has(model) => {}
            Message::Rows { model, step, rows } => match observer.rows(model, step, rows) {
                // At the end, nobody receives buffers any more.
                Ok(Some(buffer)) => drop(give_back.send(buffer)),
                Ok(None) => {}
                Err(failure) => failures.add(model, current, failure),
            },
        }
    }
}

/// For each model, the window in which it first failed, and why.
struct Failures(Mutex<Vec<Option<(usize, Failure)>>>);

impl Failures {
    fn new(models: usize) -> Self {
        Self(Mutex::new(std::iter::repeat_with(|| None).take(models).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<(usize, Failure)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, model: usize, window: usize, failure: Failure) {
        self.lock()[model].get_or_insert((window, failure));
    }

    fn has(&self, model: usize) -> bool {
        self.lock()[model].is_some()
    }

    fn are_fatal(&self, essential: usize) -> bool {
        let failures = self.lock();
        let (essential, others) = failures.split_at(essential);
        essential.iter().any(Option::is_some) || (!others.is_empty() && others.iter().all(Option::is_some))
    }

    fn into_inner(self) -> Vec<Option<(usize, Failure)>> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model, and its context if there is one.
struct Seat<'a> {
    model: &'a Model,
    options: SessionOptions,
    session: Option<Session>,
}

impl<'a> Seat<'a> {
    fn new(model: &'a Model, options: &SessionOptions, cut: Cut) -> Self {
        Self { model, options: session_for(options, cut, model.n_vocab()), session: None }
    }

    /// Returns the size of its context in bytes.
    fn context_bytes(&self) -> u64 {
        let shape = Shape::of_model(self.model);
        let estimate = shape.estimate(&self.options.size(shape.n_ctx_train));
        estimate.kv_cache.saturating_add(estimate.compute)
    }

    /// Reads a window and passes its logits to `to_observer`, until that returns `false`.
    fn read(
        &mut self,
        tokens: &[u32],
        cut: Cut,
        free: &Receiver<Vec<f32>>,
        to_observer: &mut dyn FnMut(usize, Rows) -> bool,
        model_time: &mut Duration,
    ) -> Result<(), Error> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(Session::new(self.model, &self.options)?),
        };
        session.truncate(0);
        let n_vocab = self.model.n_vocab() as usize;
        let (context, rest) = tokens.split_at(cut.context());
        // No token follows the last one, so it has nothing to score.
        let asked = &rest[..cut.scored()];
        let mut timed = |session: &mut Session, tokens: &[u32], logits| {
            let begun = Instant::now();
            let result = session.eval(tokens, logits);
            *model_time += begun.elapsed();
            result
        };
        timed(session, context, Logits::None)?;
        let size = session.rows();
        for (step, chunk) in asked.chunks(size).enumerate() {
            timed(session, chunk, Logits::All)?;
            let mut logits = free.try_recv().unwrap_or_default();
            logits.clear();
            for row in 0..chunk.len() {
                logits.extend_from_slice(session.logits(row)?);
            }
            if !to_observer(step, Rows { logits, n_vocab, first: step * size }) {
                break;
            }
        }
        Ok(())
    }
}
