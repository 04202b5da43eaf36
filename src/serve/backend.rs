//! How the routes reach models: behind [`Backend`] are processes, or, in tests, a fake.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::protocol::{Answer, Failure, FailureKind, ModelInfo, Task};

/// A future that a [`Backend`] returns.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What serves the models.
pub trait Backend: Send + Sync + 'static {
    /// Returns all models that can be asked for, loaded or not. The first is the one that requests without a name mean.
    fn models(&self) -> Vec<Model>;

    /// Returns whether there is one model, and never another.
    fn has_one_model(&self) -> bool;

    /// Returns what a model is. Loads it if it is not loaded and may be.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`] if it is still being loaded, or cannot be.
    fn info<'a>(&'a self, model: &'a str) -> Later<'a, Result<Arc<ModelInfo>, Failure>>;

    /// Gives a model something to do.
    ///
    /// # Errors
    /// If the model is not there, or its queue is full. Other failures are an [`Answer::Failed`].
    fn submit<'a>(&'a self, model: &'a str, task: Task) -> Later<'a, Result<Answers, Failure>>;
}

/// A model that can be asked for.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name that requests use.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Seconds since 1970 at which its file was made.
    pub created: u64,
    /// Whether it can answer.
    pub state: State,
    /// How often its process was started again after it had ended by itself.
    pub restarts: u64,
}

/// Whether a model can answer.
#[derive(Clone, Debug)]
pub enum State {
    /// The first request loads it.
    Unloaded,
    /// It is being loaded.
    Loading {
        /// How much of it is, from 0 to 1.
        progress: f32,
    },
    /// It answers.
    Ready(Arc<ModelInfo>),
    /// Its process ended by itself, and is being started again.
    Crashed {
        /// How it ended.
        reason: String,
    },
    /// Its process has ended so often that it is not started again.
    CrashLoop {
        /// How it ended the last time.
        reason: String,
    },
}

impl State {
    /// Its name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading { .. } => "loading",
            Self::Ready(_) => "ready",
            Self::Crashed { .. } => "crashed",
            Self::CrashLoop { .. } => "crash_loop",
        }
    }
}

/// The answers to a task. Dropping it before the last one cancels the task.
pub struct Answers {
    from: UnboundedReceiver<Answer>,
    cancel: Option<Box<dyn FnOnce() + Send>>,
}

impl Answers {
    /// Answers that come through `from`. `cancel` is called if nobody waits for the last one any more.
    pub fn new(from: UnboundedReceiver<Answer>, cancel: impl FnOnce() + Send + 'static) -> Self {
        Self { from, cancel: Some(Box::new(cancel)) }
    }

    /// Waits for the next answer; `None` after the last one.
    pub async fn next(&mut self) -> Option<Answer> {
        self.cancel.as_ref()?;
        let died = || {
            let message = "the process of the model ended before it had answered".to_string();
            Answer::Failed(Failure { kind: FailureKind::Died, message })
        };
        let answer = self.from.recv().await.unwrap_or_else(died);
        if answer.is_last() {
            self.cancel = None;
        }
        Some(answer)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}
