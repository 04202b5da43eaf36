//! Why a comparison cannot be made or completed.

use std::io;
use std::path::PathBuf;

use super::tasks::{self, KeptError, RunError};
use super::{calibrate, texts, trace};
use crate::weights::FilesError;
use crate::{calibration, convert, engine, gguf, recipe};

/// Why a comparison cannot be made or completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files are not what they should be, or their weights cannot be compared.
    #[error("{0}")]
    Files(#[from] FilesError),
    /// A text cannot be used.
    #[error("{0}")]
    Text(#[from] texts::Error),
    /// The trace cannot be used.
    #[error("{0}")]
    Trace(#[from] trace::Error),
    /// A task cannot be used.
    #[error("{0}")]
    Task(#[from] tasks::Error),
    /// Answers cannot be saved.
    #[error("{0}")]
    Kept(#[from] KeptError),
    /// A model cannot answer a task.
    #[error("{task}: {source}")]
    Answers {
        /// The task's name.
        task: String,
        /// Why not.
        source: Box<RunError>,
    },
    /// A model cannot be run.
    #[error("{0}")]
    Run(#[from] engine::Error),
    /// A file is not a model.
    #[error("{0}")]
    Gguf(#[from] gguf::Error),
    /// A recipe does not exist.
    #[error("{0}")]
    Recipe(#[from] recipe::Error),
    /// A source cannot be converted.
    #[error("{0}")]
    Convert(#[from] convert::Error),
    /// Importance cannot be collected.
    #[error("{0}")]
    Calibrate(#[from] calibrate::Error),
    /// An importance file cannot be used.
    #[error("{0}")]
    Importance(#[from] calibration::importance::Error),
    /// Neither texts, nor tasks, nor weights were asked for.
    #[error("there is nothing to compare by: no text, no task, no weights")]
    NothingToCompareBy,
    /// The reference is a Hugging Face folder, which cannot be run.
    #[error("{} is a folder, which cannot be run; convert it first", .0.display())]
    FolderCannotRun(PathBuf),
    /// The reference is a trace, and weights were asked for.
    #[error("a trace has no weights; comparing them needs the model that it was made from")]
    TraceHasNoWeights,
    /// The model was trained on shorter texts. llama.cpp would read more than that, but the results would be
    /// meaningless.
    #[error("a window of {window} tokens is too long: the model was trained on {trained} tokens at a time")]
    WindowBeyondTraining {
        /// Tokens of a window.
        window: u32,
        /// Tokens that the model was trained on at a time.
        trained: u32,
    },
    /// The trace was made with other windows.
    #[error("the trace has windows of {traced} tokens, but {wanted} were asked for")]
    OtherWindow {
        /// Tokens of the trace's windows.
        traced: u32,
        /// Tokens that were asked for.
        wanted: u32,
    },
    /// Only some windows of a trace were asked for.
    #[error("a trace is always read completely, not only the first windows of each text")]
    TraceIsWhole,
    /// The trace has no text of this name.
    #[error("the trace has no text called '{name}'; it has {}", known.join(", "))]
    NotTraced {
        /// The name that was asked for.
        name: String,
        /// The texts of the trace.
        known: Vec<String>,
    },
    /// The text is not the one that the trace was made of.
    #[error("{} is not the text '{name}' that the trace was made from", path.display())]
    OtherText {
        /// The file.
        path: PathBuf,
        /// The text's name.
        name: String,
    },
    /// Two tasks have the same name.
    #[error("two tasks are called '{0}'; rename a file")]
    SameTask(String),
    /// The reference failed during the comparison.
    #[error("the reference cannot be measured: {0}")]
    Reference(String),
    /// A model failed while it was traced.
    #[error("{}: {failure}", path.display())]
    Traced {
        /// The model.
        path: PathBuf,
        /// Why, and where.
        failure: String,
    },
    /// A file exists and must not be replaced.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A file of that name exists, and nothing records what it was made from.
    #[error("{} exists, and nothing records what it was made from", .0.display())]
    Unknown(PathBuf),
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("{} could not be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A folder could not be made.
    #[error("cannot make the folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The disk has too little space for the files that are to be made.
    #[error(
        "not enough room in {}: the files need {}, but only {} are free", folder.display(),
        crate::base::units::bytes(*needed), crate::base::units::bytes(*free)
    )]
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// Bytes that are needed at the same time.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Whether files are made one at a time already.
        one_at_a_time: bool,
    },
    /// What was measured could not be saved.
    #[error("{0}")]
    Save(#[source] io::Error),
    /// It was stopped while a model was loaded.
    #[error("loading was interrupted")]
    LoadingStopped,
    /// It was stopped, and there is nothing to show.
    #[error("stopped")]
    Stopped,
}

impl From<crate::llama::Error> for Error {
    fn from(error: crate::llama::Error) -> Self {
        Self::Run(error.into())
    }
}

impl Error {
    /// Returns whether the work was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::LoadingStopped
                | Self::Stopped
                | Self::Run(engine::Error::LoadCancelled | engine::Error::Cancelled)
                | Self::Calibrate(calibrate::Error::Cancelled { .. })
        ) || matches!(self, Self::Files(error) if error.is_cancelled())
            || matches!(self, Self::Convert(error) if error.is_cancelled())
    }
}
