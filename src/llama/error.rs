//! What can go wrong between nibble and llama.cpp.

use std::fmt;
use std::path::PathBuf;

use crate::base::units;
use crate::gguf::TensorType;

/// Why a model could not be loaded or evaluated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// llama.cpp could not be started.
    #[error("llama.cpp could not be started: {0}")]
    Backend(String),
    /// nibble's reader refuses the file.
    #[error(transparent)]
    File(#[from] crate::gguf::Error),
    /// The vocabulary is broken, or of a kind that cannot be used.
    #[error(transparent)]
    Vocabulary(#[from] crate::vocab::Error),
    /// The path cannot be passed to llama.cpp.
    #[error("{} is not valid Unicode, which llama.cpp requires of a path; rename the file or one of its folders", .0.display())]
    Path(PathBuf),
    /// A tensor has a type that llama.cpp cannot compute with.
    #[error("{}: tensor '{name}' is {}, but has to be {wanted}; convert the model again", path.display(), found.name())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: TensorType,
        /// The types that work.
        wanted: &'static str,
    },
    /// A value in the metadata is outside the range that llama.cpp supports.
    #[error("{}: '{key}' is {found}, but has to be {wanted}; convert the model again", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value.
        found: String,
        /// The range.
        wanted: String,
    },
    /// llama.cpp refused the file.
    #[error("{}: llama.cpp cannot load it: {reason}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's log.
        reason: String,
    },
    /// A device has no room.
    #[error("{device} has no room for {} of {what}; another program may have taken its memory", units::bytes(*bytes))]
    DeviceFull {
        /// The device.
        device: String,
        /// What was to be there.
        what: &'static str,
        /// Its bytes.
        bytes: u64,
    },
    /// The progress callback stopped loading.
    #[error("loading was interrupted")]
    LoadCancelled,
    /// The model is of a kind that cannot be run.
    #[error("{}: {what}; nibble runs models that continue text", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// No device has this name.
    #[error("there is no device '{name}'; this machine has {available}")]
    Device {
        /// The name.
        name: String,
        /// The names that exist.
        available: String,
    },
    /// A LoRA adapter does not fit the model.
    #[error("{}: cannot be used as a LoRA adapter: {reason}", path.display())]
    Lora {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A setting of a context is outside its range.
    #[error("{setting} cannot be {value}; it has to be from {least} to {most}")]
    Setting {
        /// The setting.
        setting: Setting,
        /// The value.
        value: u64,
        /// The smallest valid value.
        least: u64,
        /// The largest valid value.
        most: u64,
    },
    /// A quantized KV cache without flash attention.
    #[error("a quantized KV cache needs flash attention, which is turned off")]
    QuantizedCache,
    /// llama.cpp could not make a context.
    #[error("llama.cpp could not make a context of {n_ctx} tokens: {reason}")]
    Context {
        /// Tokens asked for.
        n_ctx: u32,
        /// llama.cpp's log.
        reason: String,
    },
    /// There is nothing to evaluate.
    #[error("there are no tokens to evaluate; a prompt needs at least one")]
    NoTokens,
    /// A token is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    Token {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        n_vocab: u32,
    },
    /// A token of a batch belongs to no sequence.
    #[error("token number {index} of a batch belongs to no sequence")]
    NoSequence {
        /// Which token of the batch.
        index: usize,
    },
    /// A sequence does not exist in this context.
    #[error("there is no sequence {sequence} in a context that was made for {n_sequences}")]
    Sequence {
        /// The sequence.
        sequence: u32,
        /// Sequences that the context was made for.
        n_sequences: u32,
    },
    /// A token does not follow directly after what its sequence holds.
    #[error("a token of sequence {sequence} is at position {position}, but position {expected} comes next")]
    Position {
        /// The sequence.
        sequence: u32,
        /// The token's position.
        position: u32,
        /// The position that comes next.
        expected: u32,
    },
    /// A batch is larger than the context was made for.
    #[error("a batch has {n_tokens} tokens, but the context takes {n_batch} at a time")]
    Batch {
        /// Tokens of the batch.
        n_tokens: usize,
        /// Tokens that fit.
        n_batch: u32,
    },
    /// There are more tokens than the context holds.
    #[error("the prompt has {wanted} tokens, but the context holds {n_ctx}")]
    ContextFull {
        /// Tokens there would be.
        wanted: usize,
        /// Tokens that fit.
        n_ctx: u32,
    },
    /// A batch asks for more rows of logits than the context was made for.
    #[error("{wanted} rows of logits were asked for at once, but the context was made for {most}")]
    Rows {
        /// Rows asked for.
        wanted: usize,
        /// Rows that fit.
        most: usize,
    },
    /// This row of logits was not computed.
    #[error("row {row} of the logits was asked for, but the last evaluation computed {computed}")]
    NoLogits {
        /// The row.
        row: usize,
        /// Rows there are.
        computed: usize,
    },
    /// The context's flag was set.
    #[error("interrupted")]
    Cancelled,
    /// The observer stopped the evaluation.
    #[error("the evaluation was stopped by its observer")]
    Stopped,
    /// llama.cpp could not evaluate the batch.
    #[error("llama.cpp could not evaluate the tokens (status {status}): {reason}")]
    Decode {
        /// The value that `llama_decode` returned.
        status: i32,
        /// llama.cpp's log.
        reason: String,
    },
    /// A number of the encoding of positions is out of range.
    #[error("{what} of the positions' encoding cannot be {value}; it has to be {wanted}")]
    Rope {
        /// The number.
        what: &'static str,
        /// Its value.
        value: f32,
        /// The range.
        wanted: &'static str,
    },
    /// A GPU failed while it computed.
    #[error("llama.cpp gave up computing: {0}")]
    Thrown(String),
    /// There is no memory for the state of a sequence.
    #[error("there is no memory for its {bytes} bytes")]
    StateMemory {
        /// Its size.
        bytes: u64,
    },
    /// llama.cpp refused the saved state of a sequence.
    #[error("llama.cpp does not accept it: {0}")]
    State(String),
}

/// A number that a context is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Tokens it holds.
    ContextSize,
    /// Tokens evaluated at a time.
    BatchSize,
    /// Rows of logits that one evaluation returns.
    LogitRows,
    /// Sequences it holds.
    Sequences,
    /// Threads it computes with.
    Threads,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ContextSize => "the context size",
            Self::BatchSize => "the batch size",
            Self::LogitRows => "the number of rows of logits",
            Self::Sequences => "the number of sequences",
            Self::Threads => "the number of threads",
        })
    }
}
