//! Matrices that several tensors hold together: codes, with the scales and zeros that make weights of them.
//!
//! A packing is data, like a block format: adding one (AWQ, GPTQ, FP8 with block scales) is a constant of [`Packing`] and
//! the names of its tensors in an architecture's tensor table. The checkpoints that nibble converts today have none.

use std::fmt;
use std::ops::Range;

/// How several tensors together hold one matrix.
pub struct Packing {
    /// Its name in messages.
    pub name: &'static str,
    /// Rows of the matrix that can only be unpacked together; `None` where that is all of them, as for codes that are
    /// stored column by column. Such a matrix cannot be split.
    pub group_rows: Option<u64>,
    /// Writes the weights of some rows, row by row.
    pub unpack: fn(&PackedRows<'_>, &mut [f32]),
}

/// What [`Packing::unpack`] reads.
pub struct PackedRows<'a> {
    /// The rows that are wanted.
    pub rows: Range<usize>,
    /// The bytes of the first tensor (the codes), from row [`Self::first_row`] on.
    pub codes: &'a [u8],
    /// The row that `codes` begins with, the first of its group.
    pub first_row: usize,
    /// The bytes of the other tensors, whole.
    pub others: &'a [&'a [u8]],
    /// Rows of the matrix.
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
