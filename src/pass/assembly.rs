//! Describes how an output tensor is assembled: from rows that are stored in files in the order of the source, and are
//! read in the order of the output.

use std::ops::Range;

use super::Error;
use crate::arch::RowOrder;
use crate::base::mmap::Mapping;
use crate::base::threads::room;
use crate::checkpoint::{PackedRows, Packing};
use crate::gguf::TensorType;
use crate::quant;

/// All rows of an output tensor.
#[derive(Clone, Debug)]
pub struct Assembly<'a> {
    /// Weights in a row.
    pub row_len: usize,
    /// Rows of all inputs.
    pub n_rows: usize,
    /// Where the rows come from, one input after the other.
    pub inputs: Vec<Input<'a>>,
}

/// Consecutive rows of an output tensor that are stored together in the source.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The tensor's name in the source, for messages.
    pub name: &'a str,
    /// The type of its elements; F32 if they are packed.
    pub ty: TensorType,
    /// The bytes of the input's rows, in the order of the source.
    pub bytes: Bytes<'a>,
    /// How the weights are packed, and the bytes of the tensors that belong to them.
    pub packed: Option<(&'static Packing, Vec<&'a [u8]>)>,
    /// Weights in a row.
    pub row_len: usize,
    /// Number of rows.
    pub n_rows: usize,
    /// The output row at which the input begins.
    pub first_row: usize,
    /// The row of the source's tensor at which the input begins.
    pub first_source_row: usize,
    /// The mapping from rows of the source to rows of the output.
    pub order: RowOrder,
    /// Added to every weight.
    pub plus: f32,
}

/// Where bytes are.
#[derive(Clone, Debug)]
pub enum Bytes<'a> {
    /// In a mapped file, at this range.
    Mapped(&'a Mapping, Range<usize>),
    /// Computed by nibble.
    Made(Vec<u8>),
}

impl Assembly<'_> {
    /// Returns the number of bytes that are read from the source for it.
    pub fn n_bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.n_rows * input.row_bytes()).sum()
    }

    /// Reads rows `rows` of the tensor into `weights`, in the order of the output.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn read(&self, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let mut dst = room(weights, rows.len() * self.row_len);
        for (i, rows) in self.parts(rows) {
            let input = &self.inputs[i];
            let (now, rest) = dst.split_at_mut(rows.len() * self.row_len);
            dst = rest;
            match &input.bytes {
                Bytes::Made(bytes) => input.decode(rows, bytes, 0, now),
                Bytes::Mapped(map, range) => {
                    let source_rows = input.source_rows(&rows);
                    let bytes = room(&mut buffer, source_rows.len() * input.row_bytes());
                    let offset = range.start + source_rows.start * input.row_bytes();
                    map.read_at(bytes, offset as u64)
                        .map_err(|source| Error::Read { path: map.path().to_path_buf(), source })?;
                    input.decode(rows, bytes, source_rows.start, now);
                }
            }
        }
        Ok(())
    }

    /// Returns the indices of the inputs that rows `rows` of the output come from, each with the rows counted from the
    /// input's first.
    pub fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        self.inputs.iter().enumerate().filter_map(move |(i, input)| {
            let start = rows.start.max(input.first_row);
            let end = rows.end.min(input.first_row + input.n_rows);
            (start < end).then(|| (i, start - input.first_row..end - input.first_row))
        })
    }
}

impl Input<'_> {
    /// Returns the source's bytes per row; for packed weights, those of the codes.
    pub fn row_bytes(&self) -> usize {
        match (&self.packed, &self.bytes) {
            (Some(_), Bytes::Mapped(_, range)) => range.len() / self.n_rows.max(1),
            (Some(_), Bytes::Made(bytes)) => bytes.len() / self.n_rows.max(1),
            (None, _) => self.row_len / self.ty.block_len() * self.ty.block_bytes(),
        }
    }

    /// Returns the row of the source, counted from the input's first, that becomes row `row` of the input.
    pub fn source_row(&self, row: usize) -> usize {
        self.order.source_row(row as u64, self.n_rows as u64) as usize
    }

    /// Returns the number of rows in a group. Rows are only permuted or unpacked within a group: rows
    /// `n * group_rows()..(n + 1) * group_rows()` of the output are made from the same rows of the source.
    pub fn group_rows(&self) -> usize {
        let ordered = match self.order {
            RowOrder::AsStored => 1,
            RowOrder::InterleaveHalves { n_heads } => (self.n_rows / n_heads as usize).max(1),
        };
        let packed = match &self.packed {
            None => 1,
            Some((packing, _)) => packing.group_rows.map_or(self.n_rows, |rows| rows as usize).max(1),
        };
        if ordered.is_multiple_of(packed) {
            ordered
        } else if packed.is_multiple_of(ordered) {
            packed
        } else {
            self.n_rows
        }
    }

    /// Returns the range of source rows that rows `rows` are made from, in whole groups.
    pub fn source_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let group = self.group_rows();
        rows.start / group * group..rows.end.next_multiple_of(group).min(self.n_rows)
    }

    /// Returns the bytes of the source row that becomes row `row`. `source` holds the input's bytes from its row
    /// `first_row` on, which is the first row of a group.
    pub fn row<'s>(&self, row: usize, source: &'s [u8], first_row: usize) -> &'s [u8] {
        let row_bytes = self.row_bytes();
        let at = (self.source_row(row) - first_row) * row_bytes;
        &source[at..at + row_bytes]
    }

    /// Returns whether rows can be copied byte for byte into an output of type `ty`.
    pub fn can_copy(&self, ty: TensorType) -> bool {
        self.ty == ty && self.packed.is_none() && self.plus == 0.0
    }

    /// Decodes rows `rows` of the input into `dst`, which has exactly their length. `source` is as for [`Self::row`].
    pub fn decode(&self, rows: Range<usize>, source: &[u8], first_row: usize, dst: &mut [f32]) {
        if let Some((packing, others)) = &self.packed {
            let unpack = |rows: Range<usize>, dst: &mut [f32]| {
                let at = self.first_source_row;
                let (rows, first_row) = (rows.start + at..rows.end + at, first_row + at);
                let (n_rows, row_len) = (self.n_rows, self.row_len);
                (packing.unpack)(&PackedRows { rows, codes: source, first_row, others, n_rows, row_len }, dst);
            };
            if self.order == RowOrder::AsStored {
                unpack(rows, dst);
            } else {
                for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_len)) {
                    let row = self.source_row(row);
                    unpack(row..row + 1, dst);
                }
            }
        } else {
            // The source's types were checked when it was opened.
            let decode = quant::decoder(self.ty).expect("a type that nibble reads");
            if self.order == RowOrder::AsStored {
                // Consecutive rows are decoded in one call.
                let row_bytes = self.row_bytes();
                decode(&source[(rows.start - first_row) * row_bytes..(rows.end - first_row) * row_bytes], dst);
            } else {
                for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_len)) {
                    decode(self.row(row, source, first_row), dst);
                }
            }
        }
        if self.plus != 0.0 {
            dst.iter_mut().for_each(|weight| *weight += self.plus);
        }
    }
}
