//! Polishing, after a conversion has rounded all tensors: scales of blocks and weights of norms are tuned until the model's
//! predictions are as near to the original's as they get.
//!
//! ```text
//!  rounded tensors ─► change of each block's d and dmin, and of each norm's weights ─► predictions
//!                                      ▲                                                    │
//!                                      └─────────── gradient of KL(original ‖ polished) ◄───┘
//! ```
//!
//! Rounding works on one matrix after the other, and each sees the errors of the others only as a change to be expected of
//! the loss. What all errors do together is known only at the end, and a few numbers of each block are enough to take a part
//! of it back. Codes, and the factors of sub-blocks, stay, so that the file has the same types, size and speed.
//!
//! [`Polish`] is the epilogue of a conversion. The bytes are the same on every CPU and for any number of threads.
//!
//! Time, for W weights in layers and output and T tokens of the steps: 2 W T for the draft forward, 2 W T for the forward
//! pass that goes with the backward one, 2 W T for the gradients of what enters the matrices, 2 W T for those of their weights,
//! and a little for the original, whose hidden vectors are computed once. Memory: the vectors that enter each layer for the
//! tokens of a step, 20 bytes for each number that is tuned (Yi-34B in Q4_K: 0.27 billion, 5.4 GB), and a matrix of 1,024 rows.
//!
//! | file         | what                                                       |
//! |--------------|------------------------------------------------------------|
//! | `parameters` | the numbers that are tuned, their gradients, the new bytes |
//! | `descent`    | steps, and what is best for windows that were held out     |

mod descent;
mod parameters;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock, PoisonError};

pub use descent::Achieved;
use descent::{Descent, Settings, Windows};
use parameters::Layout;

use super::rounding::texts::read;
use super::rounding::{self, DEFAULT_WINDOW, SourceWeights, window_of};
use crate::calibration::Text;
use crate::convert::{self, Epilogue, Written};
use crate::pass::Source;
use crate::transformer::{self, Model};

/// Of so many windows of a text, one is held out.
const ONE_OF: usize = 8;

/// The most windows of a text that are held out.
const MOST_HELD_OUT: usize = 16;

/// How to polish.
#[derive(Clone, Debug)]
pub struct PolishOptions {
    /// The texts. Each gives as many windows to each step.
    pub texts: Vec<Text>,
    /// Tokens that all steps read together. Texts that are shorter are read several times.
    pub n_tokens: u64,
}

/// Why a model cannot be polished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text, the source or a temporary file cannot be used.
    #[error(transparent)]
    Rounding(#[from] rounding::Error),
    /// A text has one window, which cannot be both tuned for and held out.
    #[error("{}: has {tokens} tokens, fewer than two windows of {window}", path.display())]
    Short {
        /// The text.
        path: PathBuf,
        /// Its tokens, in whole windows.
        tokens: usize,
        /// Tokens of a window.
        window: u32,
    },
    /// The layers could not be computed.
    #[error(transparent)]
    Compute(#[from] transformer::Error),
    /// Predictions are not finite.
    #[error("the predictions are not finite numbers")]
    NotFinite,
    /// It was cancelled.
    #[error("stopped")]
    Cancelled,
}

/// What polishing does.
#[derive(Clone, Copy, Debug)]
pub enum Doing {
    /// Computes a layer of the original over all windows.
    Original {
        /// Layers before it.
        step: usize,
        /// All layers.
        of: usize,
    },
    /// Takes a step.
    Step {
        /// Steps before it.
        step: usize,
        /// All steps.
        of: usize,
        /// The least mean KL divergence of the held-out windows so far, in nats.
        kld: f64,
        /// The same before the first step.
        before: f64,
    },
}

/// Is told what is done.
type Observer = dyn Fn(Doing) + Send + Sync;

/// Polishes what a conversion has rounded.
pub struct Polish {
    source: Source,
    windows: Windows,
    folder: PathBuf,
    identity: String,
    n_tokens: u64,
    settings: Settings,
    achieved: Mutex<Option<Achieved>>,
    observer: OnceLock<Box<Observer>>,
}

impl fmt::Debug for Polish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Polish").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Polish {
    /// Reads the texts for the model in `source`, which is what the conversion reads too. Temporary files are in `folder`.
    ///
    /// # Errors
    /// If a text cannot be used or has fewer than two windows, the architecture is not one whose layers can be computed, or
    /// `folder` cannot be written to.
    pub fn prepare(source: Source, folder: &Path, options: PolishOptions) -> Result<Self, Error> {
        let PolishOptions { texts, n_tokens } = options;
        if texts.is_empty() {
            return Err(rounding::Error::NoText.into());
        }
        let weights = SourceWeights::new(&source);
        Model::new(&source.metadata, &weights)
            .map_err(|error| rounding::Error::Model { model: source.file_name(), source: error })?;
        drop(weights);
        let temporary = |error| rounding::Error::Temporary { path: folder.to_path_buf(), source: error };
        let vocabulary = tempfile::Builder::new().prefix(".nibble-").tempdir_in(folder).map_err(temporary)?;
        let window = window_of(&source.metadata, DEFAULT_WINDOW);
        let length = window as usize;
        // Those of the steps, and as many more as are held out.
        let most = n_tokens + (texts.len() * MOST_HELD_OUT * length) as u64;
        let read_texts = read(&source.metadata, vocabulary.path(), window, &texts, most)?;
        let mut windows = Windows { length, texts: Vec::new(), held_out: Vec::new() };
        let mut named = Vec::new();
        for (from, text) in texts.iter().zip(read_texts) {
            named.push(format!("{} tokens of {}", text.tokens.len(), text.blake3.to_hex()));
            let n = text.tokens.len() / length;
            if n < 2 {
                return Err(Error::Short { path: from.label(), tokens: text.tokens.len(), window });
            }
            let n_held_out = (n / ONE_OF).clamp(1, MOST_HELD_OUT);
            let mut kept = Vec::new();
            for (at, tokens) in text.tokens.chunks_exact(length).enumerate() {
                // The last of each part of the text.
                let is_held_out = (at + 1) * n_held_out / n > at * n_held_out / n;
                if is_held_out { &mut windows.held_out } else { &mut kept }.push(tokens.to_vec());
            }
            windows.texts.push(kept);
        }
        let settings = Settings::default();
        let identity = format!(
            "scales and norms, {n_tokens} tokens in windows of {window}, {} windows held out, {settings}, {}",
            windows.held_out.len(),
            named.join(", ")
        );
        let (achieved, observer) = (Mutex::default(), OnceLock::new());
        Ok(Self { source, windows, folder: folder.to_path_buf(), identity, n_tokens, settings, achieved, observer })
    }

    /// Sets what is told about the work. Only the first one that is set counts.
    pub fn observe(&self, observer: impl Fn(Doing) + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    /// Returns what was achieved; `None` before the end.
    pub fn achieved(&self) -> Option<Achieved> {
        *self.achieved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn polish(&self, written: &Written<'_>, cancel: &AtomicBool) -> Result<(), Failed> {
        let weights = SourceWeights::new(&self.source);
        let original = Model::new(&self.source.metadata, &weights).map_err(Error::from)?;
        let layout = Layout::new(written);
        let tell = |doing| {
            if let Some(observer) = self.observer.get() {
                observer(doing);
            }
        };
        let descent = Descent {
            original: &original,
            draft: written,
            windows: &self.windows,
            n_tokens: self.n_tokens,
            settings: self.settings,
            folder: self.folder.clone(),
            cancel,
            tell: &tell,
        };
        let (changes, achieved) = descent.run(&layout)?;
        layout
            .write(&changes, |tensor, offset, bytes| written.write(tensor, offset, bytes).map_err(Failed::Convert))?;
        *self.achieved.lock().unwrap_or_else(PoisonError::into_inner) = Some(achieved);
        Ok(())
    }
}

/// What went wrong.
enum Failed {
    Polish(Error),
    Convert(convert::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Polish(error)
    }
}

impl From<transformer::Error> for Failed {
    fn from(error: transformer::Error) -> Self {
        Self::Polish(error.into())
    }
}

impl Epilogue for Polish {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn run(&self, written: &Written<'_>, cancel: &AtomicBool) -> Result<(), convert::Error> {
        self.polish(written, cancel).map_err(|failed| match failed {
            Failed::Convert(error) => error,
            Failed::Polish(Error::Cancelled) => convert::Error::Cancelled,
            Failed::Polish(error) => convert::Error::Epilogue { reason: error.to_string() },
        })
    }
}

#[cfg(test)]
mod tests;
