//! The process that runs a model for the server: `nibble engine`.
//!
//! ```text
//! standard input ──► reader ──► a thread for each task: template, tokens, grammar ──► scheduler ──► writer ──► output
//!                       │                                                                ▲  its thread owns the context
//!                       └── Cancel, Status ──────────────────────────────────────────────┘
//! ```
//!
//! Nothing that takes long runs on the scheduler's thread but the model itself, so that a huge prompt or a slow template
//! delays nobody else. When the input ends, prefixes are written to the disk, and the process ends.

mod answers;
mod infill;
mod prepare;
mod schedule;
mod stdio;

use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prepare::{Prepared, Preparer};

use super::protocol::{self, Answer, Failure, FailureKind, FromEngine, ModelInfo, Status, Task, ToEngine};
use crate::convert::provenance;
use crate::engine::scheduler::{self, Interrupt, PrefixFolder, Scheduler, SchedulerOptions};
use crate::engine::{Error, SessionOptions};
use crate::gguf::Gguf;
use crate::llama::{self, Context, ContextOptions, Model, Sharing};

/// The most tasks that are being prepared at a time.
const MOST_PREPARED: usize = 256;

/// How to run a model.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The model's file.
    pub path: PathBuf,
    /// How its context is made. `n_ctx` are the tokens of one sequence.
    pub session: SessionOptions,
    /// How many sequences are written at the same time.
    pub parallel: u32,
    /// How texts are scheduled.
    pub scheduler: SchedulerOptions,
    /// Where prefixes are kept, and in how many bytes.
    pub prefixes: Option<(PathBuf, u64)>,
}

/// Loads a model for sessions with these options. The function is told the progress, from 0 to 1.
pub type Load<'a> = dyn FnOnce(&SessionOptions, Box<dyn Fn(f32)>) -> Result<Model, String> + 'a;

/// Runs a model: answers what comes from the standard input on the standard output, until the input ends.
///
/// `describe` puts an error into words.
///
/// # Errors
/// If the standard output cannot be used, or the model cannot be loaded. The server has been told of the latter.
pub fn run(
    options: WorkerOptions,
    load: Box<Load<'_>>,
    describe: &dyn Fn(Error) -> String,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let output = stdio::take_stdout()?;
    let (out, messages) = mpsc::channel();
    let writer = std::thread::Builder::new().name("writer".to_string());
    let writer = writer.spawn(move || write_all(&messages, BufWriter::new(output)))?;
    let cancel = options.session.cancel.clone();
    let (ready, shared) = mpsc::channel();
    let reader = std::thread::Builder::new().name("reader".to_string());
    let closing = cancel.clone();
    reader.spawn(move || read_all(&shared, &closing))?;

    let result = serve(options, load, describe, &out, &ready);
    if let Err(reason) = &result {
        let _ = out.send(vec![FromEngine::Failed { reason: reason.clone() }]);
    }
    // The writer ends when nobody can send any more. Threads that still prepare tasks are not waited for.
    drop((out, ready));
    if result.is_err() {
        let _ = writer.join();
    }
    Ok(result?)
}

/// What the threads have in common.
struct Shared {
    preparer: Preparer,
    out: Sender<Vec<FromEngine>>,
    inbox: Sender<Incoming>,
    interrupt: Interrupt,
    status: Mutex<Status>,
    /// The tasks that are being prepared, and whether they were cancelled.
    preparing: Mutex<HashMap<u64, bool>>,
}

/// To the scheduler's thread.
enum Incoming {
    Generate(u64, Box<Prepared>),
    Embed(u64, Vec<Vec<u32>>),
    Cancel(u64),
    /// A file has been read.
    Wake,
    End,
}

fn serve(
    options: WorkerOptions,
    load: Box<Load<'_>>,
    describe: &dyn Fn(Error) -> String,
    out: &Sender<Vec<FromEngine>>,
    ready: &Sender<Arc<Shared>>,
) -> Result<(), String> {
    let WorkerOptions { path, session, parallel, scheduler: rules, prefixes } = options;
    let gguf = Gguf::open(&path).map_err(|error| describe(llama::Error::File(error).into()))?;
    let n_ctx = session.n_ctx_for(llama::n_ctx_train(gguf.metadata()));
    let (sharing, total) = match rules.deterministic {
        true => (Sharing::Apart, n_ctx.saturating_mul(parallel)),
        false => (Sharing::Together, n_ctx),
    };
    // A row for each token of a piece: prompts whose log-probabilities are wanted are read in the same pieces as others.
    let piece = u32::try_from(rules.piece).unwrap_or(u32::MAX).min(session.n_batch);
    let session = SessionOptions { n_ctx: Some(total), rows: parallel.max(session.rows).max(piece), ..session };
    let progress = out.clone();
    let watch = Box::new(move |part: f32| drop(progress.send(vec![FromEngine::Loading(part)])));
    let model = load(&session, watch)?;

    let made = ContextOptions { sharing, ..session.context(model.n_ctx_train(), parallel) };
    let context = Context::new(&model, &made, None).map_err(|error| describe(error.into()))?;
    let identity = scheduler::identity(&model, &session, total, parallel, &rules).map_err(describe)?;
    let (n_ctx, n_ctx_sequence) = (context.n_ctx(), context.n_ctx_sequence());
    let interrupt = Interrupt::new(session.cancel.clone());
    let mut scheduler = Scheduler::new(context, rules).with_interrupt(interrupt.clone());

    let (inbox, incoming) = mpsc::channel();
    if let Some((path, most_bytes)) = prefixes {
        let wake = inbox.clone();
        let folder = PrefixFolder { path: path.clone(), most_bytes, identity: identity.clone() };
        let wake = Box::new(move || drop(wake.send(Incoming::Wake)));
        let opened = scheduler.with_folder(folder, wake);
        scheduler = opened.map_err(|error| format!("the folder {} cannot be used: {error}", path.display()))?;
    }
    let shared = Arc::new(Shared {
        preparer: Preparer::new(&model, n_ctx_sequence as usize),
        out: out.clone(),
        inbox,
        interrupt,
        status: Mutex::default(),
        preparing: Mutex::default(),
    });
    let mut info = model_info(&model, &gguf, &shared.preparer);
    info.fingerprint = blake3::hash(identity.as_bytes()).to_hex().to_string();
    (info.n_ctx, info.n_ctx_sequence, info.n_parallel) = (n_ctx.into(), n_ctx_sequence.into(), parallel.into());
    let mut loop_ = schedule::Loop::new(scheduler, &model, &session, shared.clone());
    loop_.tell_status();
    if out.send(vec![FromEngine::Ready(Box::new(info))]).is_err() || ready.send(shared).is_err() {
        return Ok(());
    }
    loop_.run(&incoming);
    Ok(())
}

fn model_info(model: &Model, gguf: &Gguf, preparer: &Preparer) -> ModelInfo {
    let metadata = model.metadata();
    let text = |key: &str| metadata.str(key).unwrap_or_default().to_string();
    let tokenizer = preparer.tokenizer();
    let (template, has_template) = preparer.template_source();
    let weights = |dimensions: &[u64]| dimensions.iter().fold(1u64, |all, n| all.saturating_mul(*n));
    ModelInfo {
        path: model.path().display().to_string(),
        name: text("general.name"),
        architecture: text("general.architecture"),
        recipe: text(provenance::RECIPE_NAME),
        n_weights: gguf.tensors().iter().fold(0, |sum, tensor| sum.saturating_add(weights(&tensor.dims))),
        n_bytes: model.tensor_bytes(),
        n_vocab: model.n_vocab().into(),
        n_embd: model.n_embd() as u64,
        n_ctx_train: model.n_ctx_train().unwrap_or(0).into(),
        template: template.to_string(),
        has_template,
        begin_piece: tokenizer.begins_with().map(|id| tokenizer.piece(id).to_string()).unwrap_or_default(),
        end_tokens: preparer.ends().to_vec(),
        end_pieces: preparer.ends().iter().map(|id| tokenizer.piece(*id).to_string()).collect(),
        fills_in: preparer.fills_in(),
        system: llama::system_info().unwrap_or_default(),
        ..ModelInfo::default()
    }
}

/// Writes all messages. Those that are there at the same time are flushed together.
fn write_all(messages: &Receiver<Vec<FromEngine>>, mut output: impl Write) -> io::Result<()> {
    let write = |messages: Vec<FromEngine>, output: &mut dyn Write| {
        messages.iter().try_for_each(|message| protocol::write(output, message))
    };
    while let Ok(first) = messages.recv() {
        write(first, &mut output)?;
        while let Ok(more) = messages.try_recv() {
            write(more, &mut output)?;
        }
        output.flush()?;
    }
    Ok(())
}

/// Reads messages until the input ends. `ready` says when the model is loaded; none is expected before.
fn read_all(ready: &Receiver<Arc<Shared>>, cancel: &AtomicBool) {
    let mut input = BufReader::new(io::stdin().lock());
    let mut shared = None;
    loop {
        let message = protocol::read::<ToEngine>(&mut input);
        if let Ok(Some(message)) = message {
            if shared.is_none() {
                shared = ready.recv().ok();
            }
            let Some(shared) = &shared else { return };
            shared.take(message);
            continue;
        }
        if let Err(error) = message {
            eprintln!("nibble engine: the server's message cannot be read: {error}");
        }
        // Ends loading, or the evaluation that is being made.
        cancel.store(true, Ordering::Relaxed);
        if let Some(shared) = shared.or_else(|| ready.recv().ok()) {
            let _ = shared.inbox.send(Incoming::End);
        }
        return;
    }
}

impl Shared {
    /// Sends an answer. If the writer is gone, so is the server.
    fn answer(&self, id: u64, answer: Answer) {
        let _ = self.out.send(vec![FromEngine::To { id, answer }]);
    }

    fn take(self: &Arc<Self>, message: ToEngine) {
        let arrived = Instant::now();
        match message {
            ToEngine::Do { id, task: Task::Status } => {
                let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
                self.answer(id, Answer::Status(Box::new(status)));
            }
            ToEngine::Do { id, task } => self.prepare(id, task, arrived),
            ToEngine::Cancel { id } => {
                let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
                match preparing.get_mut(&id) {
                    Some(is_cancelled) => *is_cancelled = true,
                    None => {
                        // The scheduler must know before the evaluation ends.
                        let _ = self.inbox.send(Incoming::Cancel(id));
                        self.interrupt.cancel(id);
                    }
                }
            }
        }
    }

    /// Prepares a task in a thread of its own.
    fn prepare(self: &Arc<Self>, id: u64, task: Task, arrived: Instant) {
        let mut preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = preparing.len();
        if waiting >= MOST_PREPARED {
            let message = format!("{waiting} requests are being prepared already, and no more may be");
            let kind = FailureKind::Busy { retry_after: 1 };
            return self.answer(id, Answer::Failed(Failure { kind, message }));
        }
        preparing.insert(id, false);
        drop(preparing);
        let preparation = Preparation { id, shared: self.clone(), is_over: false };
        // Templates and schemas may be deeply nested.
        let thread = std::thread::Builder::new().name("prepare".to_string()).stack_size(8 << 20);
        // If it cannot be started, the preparation is dropped, which answers.
        let _ = thread.spawn(move || preparation.run(task, arrived));
    }
}

/// A task that is being prepared. Dropped before its end, it says that something is wrong.
struct Preparation {
    id: u64,
    shared: Arc<Shared>,
    is_over: bool,
}

impl Preparation {
    fn run(mut self, task: Task, arrived: Instant) {
        let preparer = &self.shared.preparer;
        let next = match task {
            Task::Generate(generate) => preparer
                .generate(self.id, *generate, arrived)
                .map(|task| Ok(Incoming::Generate(self.id, Box::new(task)))),
            Task::Embed { prompts } => {
                let encoded = prompts.iter().map(|prompt| Ok(preparer.encode(prompt, None)?.tokens));
                encoded.collect::<Result<Vec<_>, Failure>>().map(|prompts| Ok(Incoming::Embed(self.id, prompts)))
            }
            Task::Encode { prompt, with_bytes } => preparer.encode(&prompt, None).map(|encoded| {
                let bytes =
                    encoded.tokens.iter().filter(|_| with_bytes).map(|id| preparer.bytes(*id).to_vec()).collect();
                Err(Answer::Tokens { tokens: encoded.tokens, bytes })
            }),
            Task::Decode { tokens } => Ok(Err(Answer::Text(preparer.decode(&tokens)))),
            Task::Render { prompt } => preparer.render(&prompt).map(|text| Err(Answer::Text(text))),
            Task::Status => Ok(Err(Answer::Status(Box::default()))),
        };
        self.is_over = true;
        let mut preparing = self.shared.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_cancelled = preparing.remove(&self.id).unwrap_or(false);
        let cancelled = Failure { kind: FailureKind::Cancelled, message: "cancelled before it began".to_string() };
        match next {
            _ if is_cancelled => self.shared.answer(self.id, Answer::Failed(cancelled)),
            Err(failure) => self.shared.answer(self.id, Answer::Failed(failure)),
            Ok(Err(answer)) => self.shared.answer(self.id, answer),
            // Sent while the list is locked, so that a message that cancels it comes later.
            Ok(Ok(incoming)) => drop(self.shared.inbox.send(incoming)),
        }
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.preparing.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
            let message = "the request could not be prepared".to_string();
            self.shared.answer(self.id, Answer::Failed(Failure { kind: FailureKind::Internal, message }));
        }
    }
}
