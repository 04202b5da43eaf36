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

mod types;
mod value;

pub use types::{TensorType, UnknownType};
pub use value::{Array, Metadata, Value, ValueType};

/// Where the tensor data begins is padded to this where a file does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// What a GGUF file says of a tensor.
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

    /// Number of rows; `None` where it does not fit a `u64`.
    pub fn n_rows(&self) -> Option<u64> {
        self.dims.iter().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Number of weights; `None` where it does not fit a `u64`.
    pub fn n_elements(&self) -> Option<u64> {
        self.n_rows()?.checked_mul(self.row_len())
    }

    /// Bytes of the tensor's data, without padding; `None` where a block does not divide the row or the size does not
    /// fit a `u64`.
    pub fn n_bytes(&self) -> Option<u64> {
        self.ty.row_bytes(self.row_len())?.checked_mul(self.n_rows()?)
    }
}
