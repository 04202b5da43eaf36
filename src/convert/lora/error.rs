//! Errors in adapters.

use std::fmt;
use std::path::PathBuf;

use crate::checkpoint;

/// Why an adapter cannot become a GGUF file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("{dir}: converting the adapter needs its base model{id}, which was not found")]
    NoBase { dir: PathBuf, id: String },

    #[error("{path}: the base model's architecture is '{found}'; nibble converts adapters of {known}")]
    ForeignBase { path: PathBuf, found: String, known: String },

    #[error("{path}: the base model is an adapter itself; wanted the model that the adapter was trained on")]
    BaseIsAdapter { path: PathBuf },

    #[error("{path}: the key '{key}' is missing or not a number that a model has; is this a complete model?")]
    BaseKey { path: PathBuf, key: String },

    #[error("{path}: the adapter is of type '{found}'; llama.cpp loads only LoRA ('peft_type' \"LORA\")")]
    Kind { path: PathBuf, found: String },

    #[error(
        "{path}: '{key}' is {found}: {why}; merge the adapter into its base model with peft's merge_and_unload(), and convert the result"
    )]
    Unsupported { path: PathBuf, key: &'static str, found: String, why: &'static str },

    #[error("{path}: '{key}' is {found}; wanted {wanted}")]
    Value { path: PathBuf, key: String, found: String, wanted: &'static str },

    #[error("{path}: the pattern '{pattern}' of '{key}' is not one that nibble understands: {problem}")]
    Pattern { path: PathBuf, key: &'static str, pattern: String, problem: String },

    #[error("{path}: there are no LoRA tensors in the adapter")]
    Empty { path: PathBuf },

    #[error("tensor {tensor} has no partner: wanted '{partner}' as well; the adapter was not saved completely")]
    NoPartner { tensor: String, partner: String },

    #[error("tensor {tensor} is for a module that the base model {base} does not have{hint}")]
    UnknownModule { tensor: String, base: String, hint: String },

    #[error(
        "tensors {first} and {second} belong to two adapters, but a LoRA file holds one; save one adapter at a time"
    )]
    Several { first: String, second: String },

    #[error(
        "tensor {tensor} has shape {found:?}, slowest dimension first; wanted {wanted:?}, as the base model {base} and rank \
         {rank} make it"
    )]
    Shape { tensor: String, found: Vec<u64>, wanted: [u64; 2], base: String, rank: u64 },

    #[error(
        "tensor {tensor} has rank {found}, but adapter_config.json says {wanted}; the two files do not belong together"
    )]
    Rank { tensor: String, found: u64, wanted: u64 },

    #[error(
        "tensor {tensor} {what}; merge the adapter into its base model with peft's merge_and_unload(), and convert the result"
    )]
    Foreign { tensor: String, what: &'static str },

    #[error(
        "tensor '{tensor}' has {value} at row {row}, column {column} (rows and columns count from 0): the adapter is \
         damaged or its training diverged"
    )]
    NotFinite { tensor: String, row: usize, column: usize, value: f32 },

    #[error(
        "tensor '{tensor}' has {value} at row {row}, column {column} (rows and columns count from 0), which is beyond F16, \
         whose largest number is 65504"
    )]
    BeyondF16 { tensor: String, row: usize, column: usize, value: f32 },

    #[error(
        "recipe '{found}' quantizes, and an adapter is too small for that to save anything: its rows of rank numbers are \
         shorter than the blocks; wanted F32, F16 or BF16"
    )]
    Recipe { found: String },

    #[error("{0} for models only; an adapter has one type for all of its tensors, and one file")]
    ModelOnly(ModelOnly),

    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
}

/// Options that apply to a model but not to an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelOnly {
    /// Types for single tensors.
    Overrides,
    /// A result in several files.
    Split,
    /// A recipe of the user's own.
    RecipeFile,
    /// Importance.
    Importance,
}

impl fmt::Display for ModelOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overrides => "types for single tensors are",
            Self::Split => "splitting the result is",
            Self::RecipeFile => "a recipe's file is",
            Self::Importance => "importance is",
        })
    }
}
