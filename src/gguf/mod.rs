//! The GGUF file format: metadata, tensor descriptions and tensor bytes in one file, or split over several.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
//!
//! ```text
//! "GGUF"  u32 version  u64 n_tensors  u64 n_metadata
//! n_metadata x { string key, u32 value type, value }
//! n_tensors  x { string name, u32 n_dims, n_dims x u64, u32 type, u64 offset }
//! padding to general.alignment (32 where the file does not say)
//! tensor data, each tensor at its offset from here, padded to the alignment
//! ```
//!
//! Numbers are little-endian; a string is a u64 length and its bytes; an array is a u32 element type, a u64 length and
//! its elements. Tensors follow one another without gaps other than padding. ggml requires this too, so llama.cpp does
//! not refuse the layout of any file that nibble accepts.
//!
//! [`Gguf::open`] reads a file, and [`Layout::new`] plans one to write. Both check tensors by the same rules
//! ([`TensorProblem`]). Strings have to be UTF-8, as the specification says. A file with another encoding is refused with an
//! error that names the key: replacing the invalid bytes would change the tokens of a tokenizer.

mod error;
mod parse;
mod reader;
mod split;
mod types;
mod value;
mod writer;

pub use error::{Error, LayoutError, Problem, TensorProblem};
pub use reader::{Gap, Gguf};
pub use split::file_name;
pub use types::{TensorType, UnknownType, file_type};
pub use value::{Array, Metadata, Value, ValueType};
pub use writer::{Layout, Part};

/// The default alignment of tensor data, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The most dimensions that a tensor may have: ggml's `GGML_MAX_DIMS`.
pub const MAX_DIMS: usize = 4;

/// The most bytes that a tensor's name may have: ggml reserves 64, one of them for the terminating zero
/// (`GGML_MAX_NAME`).
pub const MAX_NAME_BYTES: usize = 63;

/// How deep arrays may be nested. llama.cpp accepts no nested arrays; the specification sets no limit.
const MAX_DEPTH: usize = 8;

/// Returns whether `path` is a file to be read as GGUF: it begins with the magic bytes, or its name ends in `.gguf`.
pub fn is_gguf(path: &std::path::Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    let mut begins = || std::fs::File::open(path)?.read_exact(&mut magic);
    path.is_file()
        && (path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) || (begins().is_ok() && magic == *b"GGUF"))
}

/// Returns the name of a GGUF file without its ending, which is `.gguf` or nothing: what follows the last dot of
/// `Yi-1.5-9B-Q4_0` is part of its name.
pub fn stem(path: &std::path::Path) -> String {
    crate::base::ending::without(path, &["gguf"])
}

/// The description of a tensor in a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Sizes, fastest dimension first: a matrix of `rows` rows of `cols` weights has `[cols, rows]`.
    pub dims: Vec<u64>,
    /// The type of its elements.
    pub ty: TensorType,
}

impl TensorInfo {
    /// Weights in a row: the size of the fastest dimension.
    pub fn row_len(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Number of rows; `None` if it does not fit a `u64`.
    pub fn n_rows(&self) -> Option<u64> {
        self.dims.iter().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Number of weights; `None` if it does not fit a `u64`.
    pub fn n_elements(&self) -> Option<u64> {
        self.n_rows()?.checked_mul(self.row_len())
    }

    /// Returns row and column (from 0) of the first weight of block number `block`, counted over all rows.
    pub fn position_of(&self, block: u64) -> (u64, u64) {
        // Of a block that was read from the tensor's bytes, this is exact.
        let weight = block.saturating_mul(self.ty.block_len() as u64);
        let row_len = self.row_len().max(1);
        (weight / row_len, weight % row_len)
    }

    /// Checks the tensor by ggml's rules. Returns the size of its data in bytes, without padding.
    ///
    /// # Errors
    /// If the tensor breaks a rule. The error is about the first.
    pub fn check(&self) -> Result<u64, TensorProblem> {
        let name = || error::shown(&self.name);
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES || self.name.contains('\0') {
            return Err(TensorProblem::Name { name: name(), bytes: self.name.len() });
        }
        if self.dims.is_empty() || self.dims.len() > MAX_DIMS {
            return Err(TensorProblem::Dimensions { name: name(), found: self.dims.len() as u64 });
        }
        if self.dims.contains(&0) {
            return Err(TensorProblem::Empty { name: name(), dims: self.dims.clone() });
        }
        // ggml counts elements and bytes in an i64.
        let fits = |n: &u64| i64::try_from(*n).is_ok();
        let too_large = || TensorProblem::TooLarge { name: name(), dims: self.dims.clone() };
        self.n_elements().filter(fits).ok_or_else(too_large)?;
        if !self.row_len().is_multiple_of(self.ty.block_len() as u64) {
            return Err(TensorProblem::Block { name: name(), row_len: self.row_len(), ty: self.ty });
        }
        self.n_bytes().filter(fits).ok_or_else(too_large)
    }

    /// Bytes of the tensor's data, without padding; `None` if a block does not divide the row or the size does not
    /// fit a `u64`.
    pub fn n_bytes(&self) -> Option<u64> {
        self.ty.row_bytes(self.row_len())?.checked_mul(self.n_rows()?)
    }
}
