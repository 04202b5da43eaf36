//! What is converted: a Hugging Face folder or a GGUF, as tensors whose rows can be read in the order of the output.

use std::ops::Range;

use crate::arch::Transform;
use crate::gguf::TensorType;
use crate::mmap::Mapping;
use crate::quant;

/// The bytes of one tensor and how its rows are found in them.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// What the source calls it, for messages.
    pub name: &'a str,
    /// The type of its elements.
    pub ty: TensorType,
    /// All rows, one after the other, in the order of the source.
    pub bytes: Bytes<'a>,
    /// Weights in a row.
    pub row_len: usize,
    /// Number of rows.
    pub n_rows: usize,
    /// Which source row becomes which output row.
    pub transform: Transform,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug)]
pub enum Bytes<'a> {
    /// In a mapped file, at this range.
    Mapped(&'a Mapping, Range<usize>),
    /// Made by nibble.
    Made(Vec<u8>),
}

impl Input<'_> {
    fn all_bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map, range) => &map.bytes()[range.clone()],
            Bytes::Made(bytes) => bytes,
        }
    }

    /// Bytes of the source in a row.
    pub fn row_bytes(&self) -> usize {
        self.row_len / self.ty.block_len() * self.ty.block_bytes()
    }

    /// The source's number of the row that becomes row `row` of the output.
    pub fn source_row(&self, row: usize) -> usize {
        self.transform.source_row(row as u64, self.n_rows as u64) as usize
    }

    /// The bytes of the row that becomes row `row` of the output.
    pub fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.row_bytes();
        let at = self.source_row(row) * row_bytes;
        &self.all_bytes()[at..at + row_bytes]
    }

    /// Decodes output rows `rows` into `dst`, which holds them exactly.
    pub fn read_rows(&self, rows: Range<usize>, dst: &mut [f32]) {
        if self.transform == Transform::Copy {
            // Rows that lie together are decoded in one go.
            let row_bytes = self.row_bytes();
            decode(self.ty, &self.all_bytes()[rows.start * row_bytes..rows.end * row_bytes], dst);
        } else {
            for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_len)) {
                decode(self.ty, self.row(row), dst);
            }
        }
    }

    /// Whether the output has the source's bytes: it is in the wanted quantization already, and decoding and encoding
    /// again could only lose.
    pub fn is_copied_as(&self, ty: TensorType) -> bool {
        self.ty == ty && ty.block_len() > 1
    }

    /// Copies output rows `rows` into `dst`, which holds them exactly.
    pub fn copy_rows(&self, rows: Range<usize>, dst: &mut [u8]) {
        for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_bytes())) {
            dst.copy_from_slice(self.row(row));
        }
    }

    /// Tells the system that output rows `rows` will be read soon.
    pub fn will_read_rows(&self, rows: Range<usize>) {
        // Permuted rows come from the same head, so from near.
        if let Bytes::Mapped(map, range) = &self.bytes {
            let row_bytes = self.row_bytes();
            map.will_read(range.start + rows.start * row_bytes..range.start + rows.end * row_bytes);
        }
    }

    /// Tells the system that output rows `rows` have been read for the last time.
    pub fn release_rows(&self, rows: Range<usize>) {
        if self.transform == Transform::Copy {
            let row_bytes = self.row_bytes();
            self.release(rows.start * row_bytes..rows.end * row_bytes);
        }
    }

    /// Tells the system that the whole tensor has been read for the last time.
    pub fn release_all(&self) {
        self.release(0..self.n_rows * self.row_bytes());
    }

    fn release(&self, bytes: Range<usize>) {
        if let Bytes::Mapped(map, range) = &self.bytes {
            map.release(range.start + bytes.start..range.start + bytes.end);
        }
    }
}

/// Decodes whole rows. The lengths fit: the plan saw to it.
fn decode(ty: TensorType, src: &[u8], dst: &mut [f32]) {
    quant::decoder(ty).expect("the source's types were checked when it was opened")(src, dst);
}

/// The largest magnitude among the weights; infinity or NaN where any is not finite.
pub fn largest_magnitude(weights: &[f32]) -> f32 {
    // Magnitudes are ordered like their bits, NaN above infinity above all numbers, and a maximum of integers vectorises.
    f32::from_bits(weights.iter().fold(0, |largest, w| largest.max(w.to_bits() & 0x7fff_ffff)))
}

/// Row and column of the first weight that `is_wrong`.
pub fn find(weights: &[f32], row_len: usize, is_wrong: impl Fn(f32) -> bool) -> Option<(usize, usize)> {
    let at = weights.iter().position(|&w| is_wrong(w))?;
    Some((at / row_len, at % row_len))
}
