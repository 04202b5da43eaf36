//! Keeps the process alive that runs a model, and passes tasks to it.
//!
//! ```text
//!             first task                    Ready                     unloaded when idle
//!  Unloaded ─────────────► Loading ────────────────► Ready ───────────────────────────────► Unloaded
//!                           ▲   │ Failed               │ the process ends
//!         after a pause     │   ▼                      ▼
//!                           └─ Broken ◄────────── its tasks fail, each with an error
//! ```
//!
//! An abort inside of llama.cpp ends the engine's process, not the server: the tasks in it fail with
//! [`FailureKind::Died`], and the engine is started again. Its file is still in the system's cache, so that this takes
//! seconds. Tasks that come meanwhile wait. An engine that ends again and again without finishing a task is started after
//! longer and longer pauses, and in the end only when somebody asks for it after [`Limits::rest`]: the state says so.
//!
//! How a process is started is behind [`Launch`], so that this is tested without one.

mod frames;
mod process;
#[cfg(test)]
pub(super) mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use process::Program;

use super::backend::Answers;
use super::protocol::{Answer, Failure, FailureKind, FromEngine, ModelInfo, Task, ToEngine};

/// A process that was started.
pub struct Launched {
    /// What it reads.
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
    /// What it writes.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// It.
    pub process: Box<dyn Process>,
}

/// A future in a box.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A process that runs.
pub trait Process: Send {
    /// Waits for its end. Says how it ended, in words that follow "the engine".
    fn ended(&mut self) -> Boxed<'_, String>;

    /// Ends it at once.
    fn kill(&mut self);
}

/// How to start an engine.
pub trait Launch: Send + Sync {
    /// Starts one.
    ///
    /// # Errors
    /// If it cannot be started.
    fn launch(&self) -> std::io::Result<Launched>;
}

/// When to give up, for a while or altogether.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tasks that may wait for the model to load.
    pub waiting: usize,
    /// The pause after the first end of an engine that finished nothing; it doubles with each.
    pub pause: Duration,
    /// How many ends in a row, without a finished task between them, are a loop.
    pub ends: u32,
    /// How long nothing is tried after that.
    pub rest: Duration,
    /// How long an engine may take to end by itself.
    pub patience: Duration,
    /// An engine without tasks is ended after this time; `None` keeps it.
    pub idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { waiting: 256, pause: seconds(1), ends: 5, rest: seconds(60), patience: seconds(10), idle: None }
    }
}

/// What an engine is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// There is none: nobody has asked for it yet, or it was idle for long.
    Unloaded,
    /// The model is being loaded; so much of it is, from 0 to 1.
    Loading(f32),
    /// It works.
    Ready(Arc<ModelInfo>),
    /// It ended, and is started again soon, or, if it is a loop, when somebody asks for it later.
    Broken {
        /// How it ended.
        reason: String,
        /// How often in a row.
        ends: u32,
        /// Whether it ended too often to be started again by itself.
        is_loop: bool,
    },
}

/// A model, and the process that runs it if there is one.
///
/// Dropping the last clone ends the process.
#[derive(Clone, Debug)]
pub struct Engine {
    commands: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<State>,
    next: Arc<AtomicU64>,
    restarts: Arc<AtomicU64>,
}

enum Command {
    Do { id: u64, task: Task, answers: mpsc::UnboundedSender<Answer> },
    Cancel(u64),
    Unload(oneshot::Sender<()>),
}

impl Engine {
    /// Returns an engine that `launch` starts when there is something to do. Has to be called in a tokio runtime.
    pub fn new(launch: Arc<dyn Launch>, limits: Limits) -> Self {
        let (commands, received) = mpsc::unbounded_channel();
        let (told, state) = watch::channel(State::Unloaded);
        let restarts = Arc::<AtomicU64>::default();
        let supervisor = Supervisor {
            launch,
            limits,
            told,
            commands: received,
            tasks: HashMap::new(),
            ends: 0,
            is_missed: false,
            restarts: restarts.clone(),
        };
        tokio::spawn(supervisor.run());
        Self { commands, state, next: Arc::default(), restarts }
    }

    /// Passes a task to the engine, which is started if there is none.
    pub fn submit(&self, task: Task) -> Answers {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answers, received) = mpsc::unbounded_channel();
        // If the supervisor is gone, `answers` is dropped, which `Answers::next` reports.
        let _ = self.commands.send(Command::Do { id, task, answers });
        let commands = self.commands.clone();
        Answers::new(received, move || {
            let _ = commands.send(Command::Cancel(id));
        })
    }

    /// Starts the engine if there is none. Returns at once.
    pub fn load(&self) {
        drop(self.submit(Task::Status));
    }

    /// Ends the engine after its tasks, and returns then. The next task starts it again.
    pub async fn unload(&self) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Unload(done)).is_ok() {
            let _ = ended.await;
        }
    }

    /// Returns how often it was started again after it had ended by itself.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Returns what it is doing, and how to wait for changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

fn failed(kind: FailureKind, message: impl Into<String>) -> Answer {
    Answer::Failed(Failure { kind, message: message.into() })
}

fn died(how: &str) -> Answer {
    failed(FailureKind::Died, format!("the engine {how}; the request can be sent again"))
}

/// A task that has not ended.
struct Pending {
    answers: mpsc::UnboundedSender<Answer>,
    /// What was asked for, until the engine has it.
    task: Option<Task>,
}

/// Messages that are taken in one go.
const AT_ONCE: usize = 64;

struct Supervisor {
    launch: Arc<dyn Launch>,
    limits: Limits,
    told: watch::Sender<State>,
    commands: mpsc::UnboundedReceiver<Command>,
    tasks: HashMap<u64, Pending>,
    /// Ends in a row without a finished task between them.
    ends: u32,
    /// Whether an engine has ended that was to stay.
    is_missed: bool,
    restarts: Arc<AtomicU64>,
}

/// How a running engine came to its end.
enum Ended {
    /// By itself, in this way.
    Died(String),
    /// Nobody needs it now.
    Unneeded(Option<oneshot::Sender<()>>),
    /// Nobody will need it: all handles are gone.
    Over,
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            // Nothing runs, and nothing waits.
            while self.tasks.is_empty() && !self.is_missed {
                match self.commands.recv().await {
                    Some(command) => self.take(command),
                    None => return,
                }
            }
            self.is_missed = false;
            match self.run_engine().await {
                Ended::Over => return,
                Ended::Unneeded(waiting) => {
                    self.told.send_replace(State::Unloaded);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(());
                    }
                }
                Ended::Died(how) => {
                    if !self.rest(how).await {
                        return;
                    }
                    self.restarts.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Takes a command while no engine runs.
    fn take(&mut self, command: Command) {
        match command {
            Command::Do { answers, .. } if self.tasks.len() >= self.limits.waiting => {
                let busy = FailureKind::Busy { retry_after: 5 };
                let _ = answers.send(failed(busy, "too many requests wait for the model to load; try again later"));
            }
            Command::Do { id, task, answers } => {
                self.tasks.insert(id, Pending { answers, task: Some(task) });
            }
            Command::Cancel(id) => {
                if let Some(pending) = self.tasks.remove(&id) {
                    let _ = pending.answers.send(failed(FailureKind::Cancelled, "the request was cancelled"));
                }
            }
            Command::Unload(done) => {
                let _ = done.send(());
            }
        }
    }

    /// After the end of an engine: fails its tasks, and waits before the next one. Returns whether there is to be one.
    async fn rest(&mut self, how: String) -> bool {
        self.ends += 1;
        let is_loop = self.ends >= self.limits.ends;
        self.is_missed = !is_loop && self.limits.idle.is_none();
        // Those that the engine never saw wait for the next one, unless there is none for long.
        let (ended, waiting): (HashMap<_, _>, HashMap<_, _>) =
            std::mem::take(&mut self.tasks).into_iter().partition(|(_, pending)| is_loop || pending.task.is_none());
        self.tasks = waiting;
        for pending in ended.into_values() {
            let answer = match pending.task {
                Some(_) => failed(FailureKind::Unavailable, self.unavailable(&how)),
                None => died(&how),
            };
            let _ = pending.answers.send(answer);
        }
        self.told.send_replace(State::Broken { reason: how.clone(), ends: self.ends, is_loop });
        let pause = match is_loop {
            true => self.limits.rest,
            // The first one is started at once: one end is an accident.
            false if self.ends == 1 => Duration::ZERO,
            false => self.limits.pause * 2u32.pow((self.ends - 2).min(16)),
        };
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                command = self.commands.recv() => match command {
                    None => return false,
                    Some(Command::Do { answers, .. }) if is_loop => {
                        let _ = answers.send(failed(FailureKind::Unavailable, self.unavailable(&how)));
                    }
                    Some(command) => self.take(command),
                }
            }
        }
    }

    fn unavailable(&self, how: &str) -> String {
        let Limits { rest, .. } = self.limits;
        format!(
            "the model cannot be used: the engine {how}, {} times in a row; it is tried again after {} seconds",
            self.ends,
            rest.as_secs()
        )
    }

    /// Starts an engine, and works with it until it ends or is not needed any more.
    async fn run_engine(&mut self) -> Ended {
        self.told.send_replace(State::Loading(0.0));
        let Launched { input, output, process } = match self.launch.launch() {
            Ok(launched) => launched,
            Err(error) => return Ended::Died(format!("could not be started: {error}")),
        };
        let (sender, mut received) = frames::start(input, output);
        let mut info: Option<Arc<ModelInfo>> = None;
        let mut idle_since = Instant::now();
        let mut unloading: Option<oneshot::Sender<()>> = None;
        let mut messages = Vec::new();
        'engine: loop {
            let is_idle = info.is_some() && self.tasks.is_empty();
            if is_idle && unloading.is_some() {
                break self.end(sender, process, Ended::Unneeded(unloading)).await;
            }
            let idle_until = self.limits.idle.filter(|_| is_idle).map(|idle| idle_since + idle);
            tokio::select! {
                n = received.recv_many(&mut messages, AT_ONCE) => {
                    if n == 0 {
                        // Its output has ended, or is none of ours: so has it, soon.
                        break Ended::Died(self.how(process).await);
                    }
                    for message in messages.drain(..) {
                        match message {
                            FromEngine::Loading(part) => {
                                self.told.send_replace(State::Loading(part));
                            }
                            FromEngine::Failed { reason } => {
                                let _ = self.how(process).await;
                                break 'engine Ended::Died(format!("could not load the model: {reason}"));
                            }
                            FromEngine::Ready(ready) => {
                                let ready = Arc::new(*ready);
                                info = Some(ready.clone());
                                self.told.send_replace(State::Ready(ready));
                                self.send_waiting(&sender);
                                idle_since = Instant::now();
                            }
                            FromEngine::To { id, answer } => {
                                let is_last = answer.is_last();
                                // An answer to a task that was cancelled, and forgotten, goes nowhere.
                                if let Some(pending) = self.tasks.get(&id) {
                                    let _ = pending.answers.send(answer);
                                }
                                if is_last {
                                    self.tasks.remove(&id);
                                    self.ends = 0;
                                    idle_since = Instant::now();
                                }
                            }
                        }
                    }
                }
                command = self.commands.recv() => match command {
                    None => break self.end(sender, process, Ended::Over).await,
                    Some(Command::Unload(done)) => unloading = Some(done),
                    Some(Command::Cancel(id)) if self.tasks.get(&id).is_some_and(|task| task.task.is_none()) => {
                        let _ = sender.send(ToEngine::Cancel { id });
                    }
                    Some(command) => {
                        self.take(command);
                        if info.is_some() {
                            self.send_waiting(&sender);
                        }
                    }
                },
                () = sleep_until(idle_until) => break self.end(sender, process, Ended::Unneeded(None)).await,
            }
        }
    }

    /// Sends the engine what it has not seen.
    fn send_waiting(&mut self, sender: &mpsc::UnboundedSender<ToEngine>) {
        let mut waiting: Vec<u64> =
            self.tasks.iter().filter(|(_, pending)| pending.task.is_some()).map(|(id, _)| *id).collect();
        waiting.sort_unstable();
        for id in waiting {
            if let Some(task) = self.tasks.get_mut(&id).and_then(|pending| pending.task.take()) {
                // If it is gone, its end is heard of next.
                let _ = sender.send(ToEngine::Do { id, task });
            }
        }
    }

    /// Ends an engine: it may finish what it does for a moment after its input has ended.
    async fn end(&self, sender: mpsc::UnboundedSender<ToEngine>, mut process: Box<dyn Process>, ended: Ended) -> Ended {
        drop(sender);
        if tokio::time::timeout(self.limits.patience, process.ended()).await.is_err() {
            process.kill();
            process.ended().await;
        }
        ended
    }

    /// Waits for the end of a process whose output has ended, and says how it ended.
    async fn how(&self, mut process: Box<dyn Process>) -> String {
        match tokio::time::timeout(self.limits.patience, process.ended()).await {
            Ok(how) => how,
            Err(_) => {
                process.kill();
                process.ended().await;
                "stopped answering".to_string()
            }
        }
    }
}

/// Sleeps until then; forever without a time.
async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
