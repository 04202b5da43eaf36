//! Errors of reading and of laying out GGUF files.

use std::io;
use std::path::PathBuf;

use super::{MAX_DEPTH, MAX_DIMS, MAX_NAME_BYTES, TensorType};

/// A GGUF file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct Error {
    /// The file: of a split model, the part.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a GGUF file. Offsets are in bytes from its beginning.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
#[non_exhaustive]
pub enum Problem {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("this is a folder; models are run from GGUF files")]
    Folder,
    #[error(
        "this is part 1 of {of} of a split model with {n_more} more file{} appended to it, as 'cat' joins them, which \
         makes no model of them: keep the parts as separate files, or join them with llama-gguf-split --merge",
        if *n_more == 1 { "" } else { "s" }
    )]
    Joined { of: usize, n_more: usize },
    #[error("offset 0: found {found}, wanted \"GGUF\": {advice}")]
    NotGguf { found: String, advice: &'static str },
    #[error(
        "offset 4: version {found:#010x} is big-endian, wanted little-endian: convert the model on a little-endian \
         machine, or turn it round with gguf-py's gguf-convert-endian"
    )]
    BigEndian { found: u32 },
    #[error(
        "offset 4: found GGUF version {found}, wanted 2 or 3: convert the model anew from its original checkpoint, or \
         rewrite the file with 'quantize IN OUT COPY' of a llama.cpp from before November 2023"
    )]
    OldVersion { found: u32 },
    #[error("offset 4: found GGUF version {found}, wanted 2 or 3: a newer nibble may know it")]
    NewVersion { found: u32 },
    #[error("offset {at}: {what} needs {wanted} bytes, {left} are left: the file is cut short, {AGAIN}")]
    Truncated { at: u64, what: String, wanted: u64, left: u64 },
    #[error(
        "offset {at}: {what} ends beyond the first {limit} bytes, where the description of the largest models fits \
         many times over: the file is damaged, {AGAIN}"
    )]
    HeaderTooLong { at: u64, what: String, limit: u64 },
    #[error(
        "offset {at}: {what} counts {found}, but the bytes left hold {most} at most: the file is cut short or damaged, \
         {AGAIN}"
    )]
    Count { at: u64, what: String, found: u64, most: u64 },
    #[error(
        "offset {at}: {what} is not UTF-8, as GGUF asks of its strings: convert the model anew with a converter that \
         writes it so"
    )]
    Utf8 { at: u64, what: String },
    #[error("offset {at}: found an empty metadata key, wanted a name: the file is damaged, {AGAIN}")]
    EmptyKey { at: u64 },
    #[error("offset {at}: found the metadata key {key} a second time, wanted each once: {AGAIN}")]
    DuplicateKey { at: u64, key: String },
    #[error("offset {at}: {what} has the unknown type {found}, wanted 0 to 12: the file is damaged, {AGAIN}")]
    ValueType { at: u64, what: String, found: u32 },
    #[error("offset {at}: {what} holds arrays more than {MAX_DEPTH} deep: the file is damaged, {AGAIN}")]
    Depth { at: u64, what: String },
    #[error("offset {at}: {what} holds the boolean {found}, wanted 0 or 1: the file is damaged, {AGAIN}")]
    Bool { at: u64, what: String, found: u8 },
    #[error("general.alignment is {found}, wanted a power of two of type u32: {AGAIN}")]
    Alignment { found: String },
    #[error("offset {at}: {problem}: the file is damaged, {AGAIN}")]
    Tensor { at: u64, problem: TensorProblem },
    #[error("offset {at}: found the tensor {name} a second time, wanted each once: {AGAIN}")]
    DuplicateTensor { at: u64, name: String },
    #[error(
        "offset {at}: tensor {name} has the type {found}, which nibble does not know (withdrawn types such as Q4_2 and \
         Q4_0_4_4 are among those): convert the model anew from its original checkpoint"
    )]
    TensorType { at: u64, name: String, found: u32 },
    #[error(
        "offset {at}: the data of tensor {name} is said to begin at {found} of the tensor data, wanted {wanted}, right \
         after the tensor before it: the file is damaged, {AGAIN}"
    )]
    Offset { at: u64, name: String, found: u64, wanted: u64 },
    #[error("offset {at}: the data of tensor {name} ends beyond what a file can hold: the file is damaged, {AGAIN}")]
    EndOverflow { at: u64, name: String },
    #[error(
        "tensor {name} takes the bytes {start} to {end}, but the file ends at {file_bytes} where {wanted} are wanted: \
         it is cut short, {AGAIN}"
    )]
    PastEnd { name: String, start: u64, end: u64, file_bytes: u64, wanted: u64 },
    #[error("{key} is {found}, wanted {wanted}: this part of a split model is damaged or of another model, {AGAIN}")]
    SplitKey { key: &'static str, found: String, wanted: String },
    #[error(
        "this is part {part} of {of} of a split model, but its name does not end in '{suffix}', so that the other \
         parts cannot be found: give the parts the names that they were made with"
    )]
    SplitName { part: usize, of: usize, suffix: String },
    #[error("this model is split into {of} files, of which {n_missing} are missing: put {names} into the same folder")]
    MissingParts { of: usize, n_missing: usize, names: String },
    #[error("tensor {name} is in an earlier part of the split model too, wanted each once: {AGAIN}")]
    TensorInTwoParts { name: String },
    #[error("the parts hold {found} tensors together, but split.tensors.count is {wanted}: a part is of another model")]
    SplitTensors { found: usize, wanted: u64 },
}

const AGAIN: &str = "download it or convert it again";

/// What is wrong with a tensor's description, in a file or to be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
#[non_exhaustive]
pub enum TensorProblem {
    #[error("the tensor name {name} has {bytes} bytes, wanted 1 to {MAX_NAME_BYTES}, none of them zero")]
    Name { name: String, bytes: usize },
    #[error("tensor {name} has {found} dimensions, wanted 1 to {MAX_DIMS}")]
    Dimensions { name: String, found: u64 },
    #[error("tensor {name} of shape {dims:?} is empty, wanted no dimension 0")]
    Empty { name: String, dims: Vec<u64> },
    #[error("tensor {name} of shape {dims:?} is larger than ggml can count (2^63 - 1 weights or bytes)")]
    TooLarge { name: String, dims: Vec<u64> },
    #[error("tensor {name} has rows of {row_len} weights, wanted a multiple of {}, the block of {ty}", ty.block_len())]
    Block { name: String, row_len: u64, ty: TensorType },
}

/// The given metadata and tensors cannot be written as a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
#[non_exhaustive]
pub enum LayoutError {
    #[error("an alignment of {found} was asked for, wanted a power of two below 2^32")]
    Alignment { found: u64 },
    #[error("a metadata key is empty, wanted a name")]
    EmptyKey,
    #[error("the value of {key} holds arrays more than {MAX_DEPTH} deep")]
    Depth { key: String },
    #[error("{0}")]
    Tensor(TensorProblem),
    #[error("tensor {name} is given twice, wanted each once")]
    DuplicateTensor { name: String },
    #[error("the files would be larger than 2^63 - 1 bytes")]
    TooLarge,
    #[error("parts of at most {max_bytes} bytes would be {parts}, wanted at most 65535: ask for larger parts")]
    TooManyParts { parts: usize, max_bytes: u64 },
    #[error("a split model can have 2^31 - 1 tensors at most, here are {found}: write it as one file")]
    TooManyTensors { found: usize },
}

/// Returns a word from a file as a message shows it: in quotes, escaped, and cut if it is long.
pub(super) fn shown(word: &str) -> String {
    crate::base::display::quote(word, 100)
}
