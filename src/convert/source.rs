//! What is converted: a Hugging Face folder or a GGUF, as tensors whose rows can be read in the order of the output; and
//! how its files are cut into spans, the units of work.

use std::ops::Range;

use crate::arch::Transform;
use crate::base::mmap::Mapping;
use crate::gguf::TensorType;
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
    /// Bytes of the source in a row.
    pub fn row_bytes(&self) -> usize {
        self.row_len / self.ty.block_len() * self.ty.block_bytes()
    }

    /// The source's number of the row that becomes row `row` of the output.
    pub fn source_row(&self, row: usize) -> usize {
        self.transform.source_row(row as u64, self.n_rows as u64) as usize
    }

    /// Rows that change places only among themselves: rows `n * group_rows()..(n + 1) * group_rows()` of the output are
    /// made of the same rows of the source.
    pub fn group_rows(&self) -> usize {
        match self.transform {
            Transform::Copy => 1,
            Transform::PermuteRows { n_heads } => (self.n_rows / n_heads as usize).max(1),
        }
    }

    /// The rows of the source that output rows `rows` are made of, and those between them.
    pub fn source_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let group = self.group_rows();
        rows.start / group * group..rows.end.next_multiple_of(group).min(self.n_rows)
    }

    /// The bytes of the row that becomes row `row` of the output. `source` holds the tensor's bytes from its row
    /// `first_row` on, the first of a group.
    pub fn row<'s>(&self, row: usize, source: &'s [u8], first_row: usize) -> &'s [u8] {
        let row_bytes = self.row_bytes();
        let at = (self.source_row(row) - first_row) * row_bytes;
        &source[at..at + row_bytes]
    }

    /// Decodes output rows `rows` into `dst`, which holds them exactly. `source` as for [`Self::row`].
    pub fn decode_rows(&self, rows: Range<usize>, source: &[u8], first_row: usize, dst: &mut [f32]) {
        // The source's types were checked when it was opened.
        let decode = quant::decoder(self.ty).expect("a type that nibble reads");
        if self.transform == Transform::Copy {
            // Rows that lie together are decoded in one go.
            let row_bytes = self.row_bytes();
            decode(&source[(rows.start - first_row) * row_bytes..(rows.end - first_row) * row_bytes], dst);
        } else {
            for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_len)) {
                decode(self.row(row, source, first_row), dst);
            }
        }
    }
}

/// Bytes of a file that are read in one go: enough that a read, a write and a note in the journal cost nothing beside the
/// work, and so few that the threads end together and a kill loses next to nothing. A power of two, so that a span is a
/// node of the file's hash.
pub const SPAN_BYTES: u64 = 4 << 20;

/// A unit of work: an aligned stretch of one file, and all rows that begin in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    /// The file, by its number; `None` for tensors that come from no file.
    pub file: Option<usize>,
    /// What is hashed: `SPAN_BYTES` of the file, fewer at its end.
    pub bytes: Range<u64>,
    /// Where the last row that begins in the span ends: what is read.
    pub read_end: u64,
    /// Rows, in the order of the file.
    pub pieces: Vec<Piece>,
}

impl Span {
    /// Bytes of the file: the measure of how far the work is.
    pub fn n_bytes(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// Rows of one tensor, whole groups of them (see [`Input::group_rows`]).
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// The tensor, by its number in the plan.
    pub tensor: usize,
    /// Rows of the output, and as they are whole groups, of the source too.
    pub rows: Range<usize>,
    /// Where in the file they begin.
    pub offset: u64,
}

/// Cuts files of these lengths into spans, every byte of them whether a tensor needs it or not, in the order of the
/// files: read so, a disk is read from one end to the other. Tensors from no file make a span of their own, the last.
///
/// `inputs` gives, for each tensor of the plan, its file (by number) and the tensor.
pub fn spans(file_bytes: &[u64], inputs: &[(Option<usize>, &Input)]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut first_spans = Vec::with_capacity(file_bytes.len());
    for (file, &n_bytes) in file_bytes.iter().enumerate() {
        first_spans.push(spans.len());
        for i in 0..n_bytes.div_ceil(SPAN_BYTES).max(1) {
            let bytes = i * SPAN_BYTES..n_bytes.min((i + 1) * SPAN_BYTES);
            spans.push(Span { file: Some(file), read_end: bytes.end, bytes, pieces: Vec::new() });
        }
    }
    let mut made = Span { file: None, bytes: 0..0, read_end: 0, pieces: Vec::new() };
    for (tensor, (file, input)) in inputs.iter().enumerate() {
        let (Some(file), Bytes::Mapped(_, range)) = (file, &input.bytes) else {
            made.pieces.push(Piece { tensor, rows: 0..input.n_rows, offset: 0 });
            continue;
        };
        let (group_rows, row_bytes) = (input.group_rows(), input.row_bytes());
        let group_bytes = ((group_rows * row_bytes) as u64).max(1);
        let begin = range.start as u64;
        let mut group = 0;
        while group * group_rows < input.n_rows {
            let offset = begin + group as u64 * group_bytes;
            let span = &mut spans[first_spans[*file] + (offset / SPAN_BYTES) as usize];
            // Groups that begin before the span's end.
            let end = ((offset / SPAN_BYTES + 1) * SPAN_BYTES - begin).div_ceil(group_bytes) as usize;
            let rows = group * group_rows..input.n_rows.min(end * group_rows);
            span.read_end = span.read_end.max(begin + (rows.end * row_bytes) as u64);
            span.pieces.push(Piece { tensor, rows, offset });
            group = end;
        }
    }
    for span in &mut spans {
        span.pieces.sort_by_key(|piece| piece.offset);
    }
    if !made.pieces.is_empty() {
        spans.push(made);
    }
    spans
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

#[cfg(test)]
mod tests {
    use super::*;

    fn input(mapping: &Mapping, begin: usize, row_len: usize, n_rows: usize, transform: Transform) -> Input<'_> {
        let range = begin..begin + row_len * n_rows * 2;
        Input { name: "x", ty: TensorType::BF16, bytes: Bytes::Mapped(mapping, range), row_len, n_rows, transform }
    }

    #[test]
    fn every_byte_is_in_one_span_and_every_row_in_the_span_where_its_group_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "").unwrap();
        let map = Mapping::open(&path).unwrap();
        let permuted = Transform::PermuteRows { n_heads: 7 };
        let made = Input { bytes: Bytes::Made(vec![0; 8]), ..input(&map, 0, 2, 2, Transform::Copy) };
        let inputs = [
            input(&map, 100, 7168, 3000, Transform::Copy),
            input(&map, 100 + 7168 * 6000, 7168, 7 * 128, permuted),
            // Begins with a span, and shares its bytes with the one after it.
            input(&map, SPAN_BYTES as usize * 20, 1 << 20, 4, Transform::Copy),
            input(&map, SPAN_BYTES as usize * 20, 1 << 20, 4, Transform::Copy),
            made,
            input(&map, 0, 1, 14, permuted),
        ];
        let files = [0, 0, 0, 0, 9, 1].map(|file| (file < 9).then_some(file));
        let listed: Vec<_> = files.into_iter().zip(&inputs).collect();
        let lengths = [SPAN_BYTES * 22 + 5, 28, 0];
        let spans = spans(&lengths, &listed);

        for (file, length) in lengths.into_iter().enumerate() {
            let of_file: Vec<_> = spans.iter().filter(|s| s.file == Some(file)).collect();
            assert_eq!(of_file[0].bytes.start, 0);
            assert_eq!(of_file.last().unwrap().bytes.end, length);
            assert!(of_file.windows(2).all(|pair| pair[0].bytes.end == pair[1].bytes.start));
            assert!(of_file.iter().all(|s| s.bytes.start.is_multiple_of(SPAN_BYTES)));
        }
        for (tensor, input) in inputs.iter().enumerate() {
            let mut next = 0;
            for span in &spans {
                for piece in span.pieces.iter().filter(|piece| piece.tensor == tensor) {
                    assert_eq!(piece.rows.start, next, "tensor {tensor}");
                    next = piece.rows.end;
                    let Bytes::Mapped(_, range) = &input.bytes else { continue };
                    assert!(next.is_multiple_of(input.group_rows()));
                    assert_eq!(piece.offset, (range.start + piece.rows.start * input.row_bytes()) as u64);
                    assert!(span.bytes.contains(&piece.offset));
                    assert!(span.read_end >= piece.offset + (piece.rows.len() * input.row_bytes()) as u64);
                    let last_group = piece.offset + ((piece.rows.len() - 1) * input.row_bytes()) as u64;
                    assert!(input.group_rows() > 1 || span.bytes.contains(&last_group));
                }
            }
            assert_eq!(next, input.n_rows, "tensor {tensor}");
        }
        assert_eq!(spans.last().unwrap().file, None);
    }
}
