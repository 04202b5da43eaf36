//! The files of a source, cut into spans: the units of work.

use std::ops::Range;

use blake3::hazmat::ChainingValue;

use super::assembly::{Assembly, Bytes, Input};
use super::hash::{self, SpanHasher};
use super::{Error, Source};
use crate::base::mmap::Mapping;
use crate::base::threads::room;

/// Size of a span in bytes. It is large enough that the cost of a read, a write and a journal entry is negligible, and
/// small enough that the threads end together and a kill loses little work. It is a power of two, so that a span is a
/// node of the file's hash tree.
pub const SPAN_BYTES: u64 = 4 << 20;

/// Number of spans, in addition to one for each thread, that the system is asked to read ahead: enough to keep a disk
/// busy while every thread quantizes.
pub const SPANS_AHEAD: usize = 4;

/// Number of bytes that are read at once: few enough that they are still in the core's own cache when they are hashed.
pub(crate) const READ_BYTES: usize = 256 << 10;

/// A unit of work: an aligned stretch of one file, and all rows that begin in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    /// The file's number; `None` for tensors that do not come from a file.
    pub file: Option<usize>,
    /// The bytes that are hashed: `SPAN_BYTES` of the file, fewer at its end.
    pub bytes: Range<u64>,
    /// The end of the last row that begins in the span, up to which bytes are read.
    pub read_end: u64,
    /// The rows that begin in the span, in the order of the file.
    pub pieces: Vec<Piece>,
}

impl Span {
    /// Returns the place of the span in the order of work, if a prologue says that of tensors: the last of its tensors', so that no
    /// tensor of a later place is prepared before those of an earlier one. Tensors without a place do not count: a norm lies
    /// between the matrices of every layer.
    pub fn place(&self, of_tensor: impl Fn(usize) -> Option<usize>) -> Option<usize> {
        self.pieces.iter().filter_map(|piece| of_tensor(piece.tensor)).max()
    }

    /// Returns the size of the span in bytes, for measuring progress.
    pub fn n_bytes(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Returns the source bytes of one of the span's pieces. `input` is the piece's, `read` what [`Pass::read`] read.
    pub fn source<'s>(&self, piece: &Piece, input: &'s Input<'_>, read: &'s [u8]) -> &'s [u8] {
        match &input.bytes {
            Bytes::Mapped(..) => {
                &read[(piece.offset - self.bytes.start) as usize..][..piece.rows.len() * input.row_bytes()]
            }
            Bytes::Made(bytes) => bytes,
        }
    }
}

/// Rows of one input of one tensor, in whole groups (see [`Input::group_rows`]).
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Number of the tensor among those of the pass.
    pub tensor: usize,
    /// Number of the input among the tensor's inputs.
    pub input: usize,
    /// Rows of the input. They are the same in the order of the output and of the source, because they are whole
    /// groups.
    pub rows: Range<usize>,
    /// The output row at which the input begins.
    pub first_row: usize,
    /// Offset of the rows in the file.
    pub offset: u64,
}

impl Piece {
    /// Returns the rows of the output tensor.
    pub fn output_rows(&self) -> Range<usize> {
        self.first_row + self.rows.start..self.first_row + self.rows.end
    }
}

/// The files of a source, in spans.
#[derive(Debug)]
pub struct Pass<'a> {
    files: Vec<&'a Mapping>,
    spans: Vec<Span>,
}

impl<'a> Pass<'a> {
    /// Cuts the files of `source` into spans, for tensors that are assembled in these ways.
    pub fn new<'t>(source: &'a Source, tensors: impl IntoIterator<Item = &'t Assembly<'t>>) -> Self {
        let files = source.mappings();
        let lengths: Vec<u64> = files.iter().map(|file| file.bytes().len() as u64).collect();
        let file_of = |map: &Mapping| files.iter().position(|file| std::ptr::eq(*file, map));
        let spans = cut(&lengths, tensors, file_of);
        Self { files, spans }
    }

    /// Returns the files, in the order of their numbers.
    pub fn files(&self) -> &[&'a Mapping] {
        &self.files
    }

    /// Returns the spans: all bytes of the files, in their order, and at the end a span for tensors that do not come
    /// from a file.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Keeps only the wanted pieces, and the spans that have any. The hashes of the files cannot be computed from what
    /// is left.
    #[must_use]
    pub fn retain(mut self, is_wanted: impl Fn(&Piece) -> bool) -> Self {
        for span in &mut self.spans {
            span.pieces.retain(&is_wanted);
        }
        self.spans.retain(|span| !span.pieces.is_empty());
        self
    }

    /// Tells the system that a span will be read soon.
    pub fn will_read(&self, span: &Span) {
        if let Some(file) = span.file {
            self.files[file].will_read(span.bytes.start as usize..span.bytes.end as usize);
        }
    }

    /// Reads a span, including the end of the last row that begins in it, into `buffer`. Returns the bytes, and the
    /// span's contribution to the hash of its file. A span without a file has no bytes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read<'b>(&self, span: &Span, buffer: &'b mut Vec<u8>) -> Result<(&'b [u8], ChainingValue), Error> {
        let read = room(buffer, (span.read_end - span.bytes.start) as usize);
        let Some(file) = span.file else { return Ok((read, ChainingValue::default())) };
        let (hashed, rest) = read.split_at_mut(span.n_bytes() as usize);
        let file_bytes = self.files[file].bytes().len() as u64;
        let mut hasher = SpanHasher::new(span.bytes.start, SPAN_BYTES, file_bytes);
        for (bytes, offset) in hashed.chunks_mut(READ_BYTES).zip((span.bytes.start..).step_by(READ_BYTES)) {
            self.read_at(file, bytes, offset)?;
            hasher.update(bytes);
        }
        if !rest.is_empty() {
            self.read_at(file, rest, span.bytes.end)?;
        }
        Ok((read, hasher.finish()))
    }

    /// Reads a span like [`Self::read`], but does not hash it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_unhashed<'b>(&self, span: &Span, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], Error> {
        let read = room(buffer, (span.read_end - span.bytes.start) as usize);
        if let Some(file) = span.file {
            self.read_at(file, read, span.bytes.start)?;
        }
        Ok(read)
    }

    fn read_at(&self, file: usize, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        let file = self.files[file];
        file.read_at(bytes, offset).map_err(|source| Error::Read { path: file.path().to_path_buf(), source })
    }
}

/// Returns the BLAKE3 of each file, from the contributions of its spans.
pub fn file_hashes(spans: &[Span], values: &[ChainingValue]) -> Vec<blake3::Hash> {
    let of_spans = spans.chunk_by(|a, b| a.file == b.file).filter(|of_file| of_file[0].file.is_some());
    let mut at = 0;
    let of = |of_file: &[Span]| {
        let values = &values[at..at + of_file.len()];
        at += of_file.len();
        hash::of_file(values)
    };
    // Spans without a file come last, so that values and spans stay aligned.
    of_spans.map(of).collect()
}

/// Cuts files of these lengths into spans, including bytes that no tensor needs, in the order of the files, so that a
/// disk is read sequentially. Tensors that do not come from a file form a span of their own, the last one.
///
/// `file_of` returns the number of a file.
fn cut<'t>(
    file_bytes: &[u64],
    tensors: impl IntoIterator<Item = &'t Assembly<'t>>,
    file_of: impl Fn(&Mapping) -> Option<usize>,
) -> Vec<Span> {
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
    let inputs = tensors.into_iter().enumerate().flat_map(|(tensor, assembly)| {
        assembly.inputs.iter().enumerate().map(move |(number, input)| (tensor, number, input))
    });
    for (tensor, number, input) in inputs {
        let piece = |rows, offset| Piece { tensor, input: number, rows, first_row: input.first_row, offset };
        let mapped = match &input.bytes {
            Bytes::Mapped(map, range) => file_of(map).map(|file| (file, range)),
            Bytes::Made(_) => None,
        };
        let Some((file, range)) = mapped else {
            made.pieces.push(piece(0..input.n_rows, 0));
            continue;
        };
        let (group_rows, row_bytes) = (input.group_rows(), input.row_bytes());
        let group_bytes = ((group_rows * row_bytes) as u64).max(1);
        let begin = range.start as u64;
        let mut group = 0;
        while group * group_rows < input.n_rows {
            let offset = begin + group as u64 * group_bytes;
            let span = &mut spans[first_spans[file] + (offset / SPAN_BYTES) as usize];
            // The groups that begin before the span's end.
            let end = ((offset / SPAN_BYTES + 1) * SPAN_BYTES - begin).div_ceil(group_bytes) as usize;
            let rows = group * group_rows..input.n_rows.min(end * group_rows);
            span.read_end = span.read_end.max(begin + (rows.end * row_bytes) as u64);
            span.pieces.push(piece(rows, offset));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::RowOrder;
    use crate::gguf::TensorType;

    fn input(mapping: &Mapping, begin: usize, row_len: usize, n_rows: usize, order: RowOrder) -> Input<'_> {
        let bytes = Bytes::Mapped(mapping, begin..begin + row_len * n_rows * 2);
        let (first_row, first_source_row, packed, plus) = (0, 0, None, 0.0);
        Input {
            name: "x",
            ty: TensorType::BF16,
            bytes,
            packed,
            row_len,
            n_rows,
            first_row,
            first_source_row,
            order,
            plus,
        }
    }

    fn assembly(mut inputs: Vec<Input<'_>>) -> Assembly<'_> {
        let mut n_rows = 0;
        for input in &mut inputs {
            input.first_row = n_rows;
            n_rows += input.n_rows;
        }
        Assembly { row_len: inputs[0].row_len, n_rows, inputs }
    }

    #[test]
    fn spans_with_parts_of_several_tensors_come_with_the_last_of_them() {
        let piece = |tensor| Piece { tensor, input: 0, rows: 0..1, first_row: 0, offset: 0 };
        let span = |tensors: &[usize]| Span {
            file: Some(0),
            bytes: 0..1,
            read_end: 1,
            pieces: tensors.iter().copied().map(piece).collect(),
        };
        // An output matrix, a norm, an embedding, and a matrix of a layer.
        let places = [Some(0), None, Some(3), Some(1)];
        let place = |tensors: &[usize]| span(tensors).place(|tensor| places[tensor]);
        assert_eq!(place(&[0, 2]), Some(3));
        assert_eq!(place(&[1, 3]), Some(1));
        assert_eq!(place(&[0]), Some(0));
        assert_eq!(place(&[1]), None);
    }

    #[test]
    fn every_byte_is_in_one_span_and_every_row_in_the_span_where_its_group_begins() {
        let dir = tempfile::tempdir().unwrap();
        let maps: Vec<_> = ["x", "y", "z"]
            .iter()
            .map(|name| {
                std::fs::write(dir.path().join(name), "").unwrap();
                Mapping::open(&dir.path().join(name)).unwrap()
            })
            .collect();
        let [x, y, _] = maps.as_slice() else { unreachable!() };
        let stored = RowOrder::AsStored;
        let permuted = RowOrder::InterleaveHalves { n_heads: 7 };
        let made = Input { bytes: Bytes::Made(vec![0; 8]), ..input(x, 0, 2, 2, stored) };
        let assemblies = [
            assembly(vec![input(x, 100, 7168, 3000, stored)]),
            assembly(vec![input(x, 100 + 7168 * 6000, 7168, 7 * 128, permuted)]),
            // Begins with a span, and shares its bytes with the one after it.
            assembly(vec![input(x, SPAN_BYTES as usize * 20, 1 << 20, 4, stored)]),
            assembly(vec![input(x, SPAN_BYTES as usize * 20, 1 << 20, 4, stored)]),
            assembly(vec![made]),
            // A stack over two files, the later file first.
            assembly(vec![input(y, 0, 1, 14, permuted), input(x, 7, 1, 20, stored), input(y, 0, 1, 14, stored)]),
        ];
        let lengths = [SPAN_BYTES * 22 + 5, 28, 0];
        let spans = cut(&lengths, &assemblies, |map| maps.iter().position(|m| std::ptr::eq(m, map)));

        for (file, length) in lengths.into_iter().enumerate() {
            let of_file: Vec<_> = spans.iter().filter(|s| s.file == Some(file)).collect();
            assert_eq!(of_file[0].bytes.start, 0);
            assert_eq!(of_file.last().unwrap().bytes.end, length);
            assert!(of_file.windows(2).all(|pair| pair[0].bytes.end == pair[1].bytes.start));
            assert!(of_file.iter().all(|s| s.bytes.start.is_multiple_of(SPAN_BYTES)));
        }
        for (tensor, assembly) in assemblies.iter().enumerate() {
            for (number, input) in assembly.inputs.iter().enumerate() {
                let mut next = 0;
                for span in &spans {
                    for piece in span.pieces.iter().filter(|piece| (piece.tensor, piece.input) == (tensor, number)) {
                        assert_eq!(piece.rows.start, next, "tensor {tensor}");
                        assert_eq!(piece.output_rows().start, input.first_row + next);
                        next = piece.rows.end;
                        let Bytes::Mapped(map, range) = &input.bytes else { continue };
                        assert!(std::ptr::eq(&maps[span.file.unwrap()], *map));
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
        }
        assert_eq!(spans.last().unwrap().file, None);
    }

    #[test]
    fn rows_of_the_output_are_found_in_their_inputs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "").unwrap();
        let map = Mapping::open(&dir.path().join("x")).unwrap();
        let rows = |n| input(&map, 0, 4, n, RowOrder::AsStored);
        let assembly = assembly(vec![rows(3), rows(1), rows(5)]);
        let parts = |rows| assembly.parts(rows).collect::<Vec<_>>();
        assert_eq!(parts(0..9), [(0, 0..3), (1, 0..1), (2, 0..5)]);
        assert_eq!(parts(2..4), [(0, 2..3), (1, 0..1)]);
        assert_eq!(parts(5..6), [(2, 1..2)]);
        assert_eq!(parts(4..4), []);
    }
}
