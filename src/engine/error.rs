//! What can go wrong when a model writes or scores text.

use std::fmt;
use std::path::PathBuf;

use crate::llama;
use crate::placement::NoRoom;
use crate::vocab::TokenizeError;

/// Why a model could not be opened, or could not write or score a text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be loaded or evaluated.
    #[error(transparent)]
    Llama(llama::Error),
    /// It does not fit in the memory of this machine.
    #[error(transparent)]
    Memory(#[from] Box<NoRoom>),
    /// Layers cannot be split so.
    #[error("layers cannot be split over {wanted} devices beside the processor: {}", list(there))]
    Split {
        /// Devices in the split.
        wanted: usize,
        /// Names of those that there are.
        there: Vec<String>,
    },
    /// Another machine cannot hold layers.
    #[error(transparent)]
    Remote(#[from] Box<crate::remote::Error>),
    /// The progress callback stopped loading.
    #[error("loading was interrupted")]
    LoadCancelled,
    /// The flag of the session was set.
    #[error("interrupted")]
    Cancelled,
    /// A number for drafting is outside its range.
    #[error("{setting} cannot be {value}; it has to be {wanted}")]
    DraftSetting {
        /// The number.
        setting: DraftSetting,
        /// Its value.
        value: f64,
        /// The range.
        wanted: String,
    },
    /// Nothing can be drafted with this model, or for it.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The text cannot be encoded.
    #[error(transparent)]
    Tokenize(#[from] TokenizeError),
    /// No token could be chosen.
    #[error("{0}")]
    Sample(#[from] crate::sample::Error),
    /// The text cannot be constrained to its grammar.
    #[error(transparent)]
    Constrain(#[from] crate::constrain::Error),
}

fn list(devices: &[String]) -> String {
    if devices.is_empty() { "there is none".to_string() } else { format!("there are {}", devices.join(", ")) }
}

impl From<llama::Error> for Error {
    fn from(error: llama::Error) -> Self {
        match error {
            llama::Error::Cancelled => Self::Cancelled,
            llama::Error::LoadCancelled => Self::LoadCancelled,
            error => Self::Llama(error),
        }
    }
}

/// A number in [`super::DraftOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftSetting {
    /// The most tokens to draft at a time.
    Max,
    /// The fewest tokens that make a draft.
    Min,
    /// The probability below which a draft model stops.
    MinProbability,
}

impl fmt::Display for DraftSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Max => "the most tokens to draft",
            Self::Min => "the fewest tokens to draft",
            Self::MinProbability => "the lowest probability to draft",
        })
    }
}

/// Why nothing can be drafted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// The draft model has another vocabulary.
    #[error("{}: cannot be used as a draft model: {reason}", path.display())]
    Vocabulary {
        /// The draft model.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The draft model's memory cannot be truncated.
    #[error(
        "{}: cannot be used as a draft model: it cannot take back tokens that turn out wrong, as recurrent and hybrid \
         models cannot",
        .0.display()
    )]
    CannotTruncate(PathBuf),
    /// The memory of the model that writes cannot be truncated.
    #[error(
        "nothing can be drafted for this model: it cannot take back tokens that turn out wrong, as recurrent and hybrid \
         models cannot"
    )]
    TargetCannotTruncate,
}
