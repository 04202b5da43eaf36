//! Packed matrices: one matrix stored in several tensors, as integer codes and the scales and zero points that turn
//! them into weights.
//!
//! A packing is data, like a block format. To add one (AWQ, GPTQ, FP8 with block scales), define a constant of type
//! [`Packing`], and name its tensors in an architecture's tensor table. The checkpoints that nibble converts today use
//! no packing.

use std::fmt;
use std::ops::Range;

/// How several tensors together store one matrix.
pub struct Packing {
    /// Its name in messages.
    pub name: &'static str,
    /// Number of rows that can only be unpacked together; `None` if that is all rows, as for codes that are stored
    /// column by column. Such a matrix cannot be split.
    pub group_rows: Option<u64>,
    /// Writes the weights of some rows, row by row.
    pub unpack: fn(&PackedRows<'_>, &mut [f32]),
}

/// What [`Packing::unpack`] reads.
pub struct PackedRows<'a> {
    /// The rows to unpack.
    pub rows: Range<usize>,
    /// The bytes of the first tensor (the codes), from row [`Self::first_row`] on.
    pub codes: &'a [u8],
    /// The row that `codes` begins with, the first of its group.
    pub first_row: usize,
    /// The complete bytes of the other tensors.
    pub others: &'a [&'a [u8]],
    /// Number of rows of the matrix.
    pub n_rows: usize,
    /// Weights in a row.
    pub row_len: usize,
}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Packing {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
