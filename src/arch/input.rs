//! Describes what an output tensor is made from: rows of tensors of the checkpoint, and how they are changed.
//!
//! ```text
//!  checkpoint                                  GGUF
//!  q_proj [rows, cols] ── rows permuted ─────► attn_q            one input
//!
//!  qkv_proj ──┬─ rows 0..q ───── permuted ───► attn_q            a split: three outputs that share an input,
//!             ├─ rows q..q+k ─── permuted ───► attn_k            each with rows of its own
//!             └─ rows q+k.. ─────────────────► attn_v
//!
//!  gate_proj ─────────┐
//!  up_proj ───────────┴──────────────────────► ffn_up            a concatenation: rows after rows
//!
//!  experts.0.up_proj ─┐
//!  experts.1.up_proj ─┼──────────────────────► ffn_up_exps       a stack: the same rows, with a third dimension
//!  experts.2.up_proj ─┘
//!
//!  codes, scales ──────── unpacked ──────────► ffn_down          one input of several tensors
//!
//!  norm ───────────────── plus 1 ────────────► attn_norm
//! ```
//!
//! Columns are never moved, so a row can be converted without its neighbours. A row runs along the fastest dimension; of a
//! vector whose elements are split or permuted, each element is a row.

use std::ops::Range;

use crate::checkpoint::Packing;

/// The origin of an output tensor's data.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// The rows of these inputs, one input after the other.
    Checkpoint(Vec<Input>),
    /// Numbers that follow from the configuration, stored as F32.
    Generated(Vec<f32>),
}

/// Consecutive rows of an output tensor that come from one matrix (or vector) of the checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The tensors that hold the matrix: one tensor of floats, or what [`Self::packing`] unpacks.
    pub tensors: Vec<Stored>,
    /// How the tensors together store the matrix; `None` for one tensor of floats.
    pub packing: Option<&'static Packing>,
    /// The rows of the matrix that are taken; `None` for all of them.
    pub rows: Option<Range<u64>>,
    /// The order of the rows that are taken.
    pub order: RowOrder,
    /// Added to every weight: 1 for norms that are stored as their difference from 1, otherwise 0.
    pub plus: f32,
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Names that the tensor may have, the usual one first. In a [`Model`](super::Model) only the one that it has.
    pub names: Vec<String>,
    /// Sizes, fastest dimension first. A checkpoint has the same sizes, slowest first.
    pub dims: Vec<u64>,
}

impl Stored {
    /// A tensor with one name and these sizes, fastest dimension first.
    pub fn new(name: impl Into<String>, dims: impl Into<Vec<u64>>) -> Self {
        Self { names: vec![name.into()], dims: dims.into() }
    }

    /// The tensor's usual name. In a [`Model`](super::Model), the name that it has.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

impl Input {
    /// All rows of a tensor, as they are. `dims` are its sizes, fastest dimension first.
    pub fn new(name: impl Into<String>, dims: impl Into<Vec<u64>>) -> Self {
        let tensors = vec![Stored::new(name, dims)];
        Self { tensors, packing: None, rows: None, order: RowOrder::AsStored, plus: 0.0 }
    }

    /// The same input, with its rows in another order.
    #[must_use]
    pub fn ordered(self, order: RowOrder) -> Self {
        Self { order, ..self }
    }

    /// Some rows of the same input, for a split of fused matrices.
    #[must_use]
    pub fn rows(self, rows: Range<u64>) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// The same input with a number added to every weight.
    #[must_use]
    pub fn plus(self, plus: f32) -> Self {
        Self { plus, ..self }
    }

    /// The tensor whose rows are read: the only one, or the codes of a packed matrix.
    pub fn main(&self) -> Option<&Stored> {
        self.tensors.first()
    }

    /// Returns whether the rows are those of the tensor, all of them, in their order.
    pub fn is_whole(&self) -> bool {
        self.rows.is_none() && self.order == RowOrder::AsStored
    }
}

/// The order in which rows of the checkpoint go into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Rows stay where they are.
    AsStored,
    /// Within each head, the two halves of its rows are interleaved.
    ///
    /// Rotary embedding turns pairs of channels. Hugging Face pairs channel *j* with *j + d/2* of a head of *d*
    /// channels, GGUF's `llama` pairs *2j* with *2j + 1* (as Meta's own weights do). So the rows of Q and K move:
    ///
    /// ```text
    /// checkpoint   a0 a1 a2 a3 b0 b1 b2 b3      one head, d = 8
    /// GGUF         a0 b0 a1 b1 a2 b2 a3 b3
    /// ```
    ///
    /// In numpy: `w.reshape(n_heads, 2, d / 2, -1).swapaxes(1, 2).reshape(w.shape)`. Source: `LlamaModel.permute` of
    /// llama.cpp's converter.
    InterleaveHalves {
        /// Heads that the rows divide into: the KV heads for K.
        n_heads: u32,
    },
}

impl RowOrder {
    /// Returns the row of the input that becomes row `out_row` of the `n_rows` rows in the file.
    ///
    /// A bijection of `0..n_rows` where `n_rows` is a multiple of `2 * n_heads`, which
    /// [`describe`](super::Architectures::describe) checks. The rows of a head come from two runs of consecutive rows, so
    /// a reader that goes through the file in order reads the checkpoint nearly in order.
    pub fn source_row(self, out_row: u64, n_rows: u64) -> u64 {
        match self {
            Self::AsStored => out_row,
            Self::InterleaveHalves { n_heads } => {
                debug_assert!(out_row < n_rows && n_heads > 0 && n_rows.is_multiple_of(2 * u64::from(n_heads)));
                let head_dim = n_rows / u64::from(n_heads);
                let (head, channel) = (out_row / head_dim, out_row % head_dim);
                head * head_dim + channel % 2 * (head_dim / 2) + channel / 2
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row numbers after `arange(n_rows).reshape(n_heads, 2, d / 2).swapaxes(1, 2).reshape(-1)`, with strides.
    fn reshape_and_swap(n_heads: u64, n_rows: u64) -> Vec<u64> {
        let half = n_rows / n_heads / 2;
        let (shape, strides) = ([n_heads, half, 2], [2 * half, 1, half]);
        let mut rows = Vec::new();
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                for k in 0..shape[2] {
                    rows.push(i * strides[0] + j * strides[1] + k * strides[2]);
                }
            }
        }
        rows
    }

    #[test]
    fn permutes_as_reshape_and_swapaxes_do() {
        for (n_heads, n_rows) in [(1, 2), (1, 8), (4, 256), (2, 128), (56, 7168), (8, 1024), (3, 18)] {
            let order = RowOrder::InterleaveHalves { n_heads: n_heads as u32 };
            let rows: Vec<u64> = (0..n_rows).map(|row| order.source_row(row, n_rows)).collect();
            assert_eq!(rows, reshape_and_swap(n_heads, n_rows), "{n_heads} heads, {n_rows} rows");
        }
        let one_head = RowOrder::InterleaveHalves { n_heads: 1 };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|row| one_head.source_row(row, 8)), [0, 4, 1, 5, 2, 6, 3, 7]);
    }

    #[test]
    fn every_row_is_read_exactly_once() {
        for (order, n_rows) in [
            (RowOrder::AsStored, 100),
            (RowOrder::InterleaveHalves { n_heads: 56 }, 7168),
            (RowOrder::InterleaveHalves { n_heads: 8 }, 1024),
            (RowOrder::InterleaveHalves { n_heads: 5 }, 30),
        ] {
            let mut rows: Vec<u64> = (0..n_rows).map(|row| order.source_row(row, n_rows)).collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..n_rows), "{order:?}");
        }
    }
}
