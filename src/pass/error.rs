//! What can be wrong with a source.

use std::path::PathBuf;

use crate::gguf::{self, TensorType};
use crate::{arch, checkpoint, vocab};

/// Why a source could not be opened, read or encoded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error("{dir}: {source}")]
    Arch { dir: PathBuf, source: arch::Error },
    #[error(transparent)]
    Vocab(#[from] vocab::Error),
    #[error("{path} is a GGUF file, which has its tokenizer already; only folders have one to choose")]
    TokenizerOfGguf { path: PathBuf },
    #[error("{path}: no such file or folder")]
    NoSource { path: PathBuf },
    #[error("{path}: this GGUF file is an adapter already; adapters are converted from the folder that PEFT saved")]
    Adapter { path: PathBuf },
    #[error("{path}: tensor '{tensor}' is {ty} already; quantizing it again would lose still more")]
    AlreadyQuantized { path: PathBuf, tensor: String, ty: TensorType },
    #[error("{path}: tensor '{tensor}' is {ty}, which nibble cannot read")]
    UnreadableType { path: PathBuf, tensor: String, ty: String },
    #[error("{path}: the model's architecture is '{found}'; nibble converts GGUF files of {known}")]
    ForeignArchitecture { path: PathBuf, found: String, known: String },
    #[error("{path}: the key '{key}' is missing or not a number; is this a complete model?")]
    MissingKey { path: PathBuf, key: String },
    #[error(
        "tensor '{tensor}' has {value} at row {row}, column {column} (rows and columns count from 0): the checkpoint is \
         damaged or its training diverged"
    )]
    NotFinite { tensor: String, row: usize, column: usize, value: f32 },
    #[error(
        "tensor '{tensor}' has {value} at row {row}, column {column} (rows and columns count from 0), which may be beyond \
         {ty}, whose {}",
        match *.ty {
            TensorType::BF16 => "numbers end at 3.39e38",
            TensorType::F16 => "numbers are 16-bit floats of at most 65504",
            _ => "scales are 16-bit floats of at most 65504",
        }
    )]
    BeyondF16 { tensor: String, row: usize, column: usize, value: f32, ty: TensorType },
    #[error("'{tensor}' could not be prepared: {reason}")]
    Prologue { tensor: String, reason: String },
    #[error("stopped")]
    Cancelled,
    #[error("{path} could not be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}
