//! Errors in model folders.

use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint could not be opened or used. Messages name the file, the place, what was found, what was wanted, and
/// what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },

    #[error("{0}: no such file or folder")]
    NotFound(PathBuf),

    #[error("{0}: the folder is empty; download a model into it, its config.json, tokenizer files and all its weights")]
    EmptyFolder(PathBuf),

    #[error(
        "{dir}: no weights here; wanted model.safetensors, model-00001-of-000NN.safetensors, pytorch_model.bin or their \
         shards{hint}"
    )]
    NoWeights { dir: PathBuf, hint: String },

    #[error(
        "{dir}: this is an adapter (adapter_config.json), not a whole model; merge it into its base model{base} with \
         peft's merge_and_unload(), save the result, and open that folder"
    )]
    OnlyAdapter { dir: PathBuf, base: String },

    #[error("{dir}: no weights beside adapter_config.json; wanted adapter_model.safetensors or adapter_model.bin")]
    NoAdapterWeights { dir: PathBuf },

    #[error("{path}: this is a GGUF file, not a Hugging Face checkpoint; give it to nibble as it is")]
    Gguf { path: PathBuf },

    #[error("{dir}: config.json is missing; it says what the model is: download it into this folder")]
    NoConfig { dir: PathBuf },

    #[error(
        "{shard}: named by {by}, but not in the folder ({n_missing} of {n_shards} shards are missing); download the model \
         again, or just this file"
    )]
    MissingShard { shard: PathBuf, by: String, n_missing: usize, n_shards: usize },

    #[error("{index}: names tensor {tensor} in {shard}, which does not hold it; download both files again")]
    NotInShard { index: PathBuf, tensor: String, shard: String },

    #[error("tensor {tensor} is in two files, {first} and {second}; remove the one that is not part of the model")]
    Duplicate { tensor: String, first: PathBuf, second: PathBuf },

    #[error(
        "tensor {tensor} is in two files of one set, {first} and {second}, and {index} is missing, which says which of the \
         two counts; download that file"
    )]
    DuplicateInSet { tensor: String, first: PathBuf, second: PathBuf, index: PathBuf },

    #[error("{path}: the download was cut short: wanted {wanted} bytes, found {found}; download it again")]
    Truncated { path: PathBuf, wanted: u64, found: u64 },

    #[error(
        "{path}: this is a Git LFS pointer, not the file itself{size}; run 'git lfs pull' in its folder to fetch the file"
    )]
    LfsPointer { path: PathBuf, size: String },

    /// A tensor file whose structure is wrong at a place.
    #[error("{path}, byte {offset}: {problem}")]
    Format { path: PathBuf, offset: u64, problem: String },

    /// A tensor file of a kind that is not read.
    #[error("{path}: {problem}")]
    Unreadable { path: PathBuf, problem: String },

    #[error("{path}: tensor {tensor}: {problem}")]
    Tensor { path: PathBuf, tensor: String, problem: String },

    #[error(
        "{path}, byte {offset}: this file asks to call {global}; nibble runs no code from a checkpoint: get the model as \
         safetensors, or from a source you trust"
    )]
    Global { path: PathBuf, offset: u64, global: String },

    #[error("tensor {tensor} has type {dtype}; nibble converts from F64, F32, F16 and BF16{hint}")]
    Dtype { tensor: String, dtype: String, hint: &'static str },

    #[error("{path}, line {line}, column {column}: not valid JSON: {problem}")]
    Json { path: PathBuf, line: usize, column: usize, problem: String },

    #[error("{path}: key {key}: {problem}")]
    Key { path: PathBuf, key: String, problem: String },

    #[error("{path}: {bytes} bytes are too many for such a file; at most {limit} are read")]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },

    #[error("{path}: {problem}")]
    Write { path: PathBuf, problem: String },
}

impl Error {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound(path.to_path_buf()),
            _ => Self::Io { path: path.to_path_buf(), source },
        }
    }

    pub(super) fn unreadable(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unreadable { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(super) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_path_buf(), tensor: shown(tensor), problem: problem.into() }
    }

    pub(super) fn key(path: &Path, key: &str, problem: impl Into<String>) -> Self {
        Self::Key { path: path.to_path_buf(), key: shown(key), problem: problem.into() }
    }
}

/// Returns text from a file as a message shows it: escaped, and cut if it is long.
pub(super) fn shown(text: &str) -> String {
    crate::base::display::shorten(text, 120)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_cannot_steer_the_terminal() {
        assert_eq!(shown("a\u{1b}[31mb"), "a\\u{1b}[31mb");
        assert_eq!(shown("模型.weight"), "模型.weight");
        assert!(shown(&"x".repeat(1000)).chars().count() < 150);
    }
}
