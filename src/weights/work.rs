//! The work itself: spans of the source, taken one by one by every thread, and beside each the rows of the candidates.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::sums::{CandidateRow, SourceRow, Sums};
use super::{Candidate, Error};
use crate::base::mmap::Mapping;
use crate::base::threads::{on_all_threads, room};
use crate::convert::{self, Bytes, Described, Importance, Input, Span};
use crate::gguf::TensorType;
use crate::quant;

/// Weights that are compared at once: half a MiB as floats, so that they are still in the core's own cache when the next
/// candidate is compared with them.
const STEP_WEIGHTS: usize = 128 * 1024;

/// How many spans ahead of the one being worked on the system is asked to read, beside one for each thread.
const SPANS_AHEAD: usize = 4;

/// What the threads share.
struct Work<'a> {
    files: Vec<&'a Mapping>,
    /// The source's tensors.
    inputs: Vec<Input<'a>>,
    /// Importance of the columns of each.
    importance: Vec<Option<&'a [f32]>>,
    /// The source's spans that hold anything to compare.
    spans: Vec<Span>,
    candidates: Vec<Reading<'a>>,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    all_bytes: u64,
    cancel: &'a AtomicBool,
}

/// A candidate that is being read.
struct Reading<'a> {
    candidate: &'a Candidate,
    /// Why it cannot be read any more.
    failure: OnceLock<Error>,
}

/// Where the rows of a tensor lie in a candidate.
#[derive(Clone)]
struct Place<'a> {
    map: &'a Mapping,
    /// The whole tensor, in bytes.
    bytes: Range<usize>,
    ty: TensorType,
    row_bytes: usize,
}

/// Gives, for each candidate, the sums of each of the source's tensors (zero of those it does not have), or why it could not
/// be read.
pub fn run(
    source: &Described,
    candidates: &[&Candidate],
    importance: Option<&Importance>,
    progress: &(dyn Fn(u64, u64) + Sync),
    cancel: &AtomicBool,
) -> Result<Vec<Result<Vec<Sums>, Error>>, Error> {
    let inputs: Vec<_> = (0..source.tensors.len()).map(|i| source.input(i)).collect();
    let importance =
        source.tensors.iter().map(|tensor| importance?.of(&tensor.name).filter(|_| tensor.dims.len() == 2)).collect();
    let files = source.mappings();
    let spans = convert::spans(&files, inputs.iter());
    let candidates = candidates.iter().map(|candidate| Reading { candidate, failure: OnceLock::new() }).collect();
    let mut work = Work { files, inputs, importance, spans, candidates, progress, all_bytes: 0, cancel };
    work.leave_out_what_nobody_has();
    let found = work.run()?;
    Ok(work.totals(&found))
}

impl<'a> Work<'a> {
    /// Drops what is in no candidate from the spans, and counts the bytes of the rest.
    fn leave_out_what_nobody_has(&mut self) {
        let mut spans = std::mem::take(&mut self.spans);
        for span in &mut spans {
            span.pieces.retain(|piece| self.candidates.iter().any(|c| c.candidate.matches[piece.tensor].is_some()));
        }
        spans.retain(|span| !span.pieces.is_empty());
        let pieces = spans.iter().flat_map(|span| &span.pieces);
        self.all_bytes = pieces.map(|piece| self.bytes(piece.tensor, &piece.rows)).sum();
        self.spans = spans;
    }

    /// Bytes of some rows of one of the source's tensors, in the source and all candidates.
    fn bytes(&self, tensor: usize, rows: &Range<usize>) -> u64 {
        let of_candidates = self.candidates.iter().filter_map(|c| Some(self.place(c, tensor)?.row_bytes));
        (rows.len() * (self.inputs[tensor].row_bytes() + of_candidates.sum::<usize>())) as u64
    }

    /// Where a candidate has one of the source's tensors.
    fn place(&self, reading: &Reading<'a>, tensor: usize) -> Option<Place<'a>> {
        let gguf = &reading.candidate.gguf;
        let found = reading.candidate.matches[tensor]?;
        let ty = gguf.tensors()[found].ty;
        let (map, bytes) = gguf.location(found);
        // The rows are those of the source, and a whole number of blocks.
        let row_bytes = self.inputs[tensor].row_len / ty.block_len() * ty.block_bytes();
        Some(Place { map, bytes, ty, row_bytes })
    }

    /// Does all spans, and gives for each the sums of its pieces, of each piece those of every candidate.
    fn run(&self) -> Result<Vec<Vec<Sums>>, Error> {
        let found: Vec<OnceLock<Vec<Sums>>> = self.spans.iter().map(|_| OnceLock::new()).collect();
        let ahead = SPANS_AHEAD + rayon::current_num_threads();
        self.spans.iter().take(ahead).for_each(|span| self.will_read(span));
        (self.progress)(0, self.all_bytes);
        on_all_threads::<Buffers, Error>(self.spans.len(), |at, buffers| {
            if let Some(span) = self.spans.get(at + ahead) {
                self.will_read(span);
            }
            let _ = found[at].set(self.span(&self.spans[at], buffers)?);
            Ok(())
        })?;
        Ok(found.into_iter().map(|sums| sums.into_inner().unwrap_or_default()).collect())
    }

    /// Asks the system to read a span, and what is compared with it.
    fn will_read(&self, span: &Span) {
        if let Some(file) = span.file {
            self.files[file].will_read(span.bytes.start as usize..span.bytes.end as usize);
        }
        for piece in &span.pieces {
            for place in self.candidates.iter().filter_map(|reading| self.place(reading, piece.tensor)) {
                place.map.will_read(place.of_rows(&piece.rows));
            }
        }
    }

    /// Reads a span of the source once, and compares its rows with those of every candidate.
    fn span(&self, span: &Span, buffers: &mut Buffers) -> Result<Vec<Sums>, Error> {
        let mut found = vec![Sums::default(); span.pieces.len() * self.candidates.len()];
        let mut source = std::mem::take(&mut buffers.source);
        let read = room(&mut source, (span.read_end - span.bytes.start) as usize);
        if let Some(file) = span.file.filter(|_| self.any_is_left()) {
            let file = self.files[file];
            file.read_at(read, span.bytes.start)
                .map_err(|source| convert::Error::Read { path: file.path().to_path_buf(), source })?;
        }
        for (piece, found) in span.pieces.iter().zip(found.chunks_exact_mut(self.candidates.len())) {
            let input = &self.inputs[piece.tensor];
            let bytes = match &input.bytes {
                Bytes::Mapped(..) => &read[(piece.offset - span.bytes.start) as usize..],
                Bytes::Made(bytes) => bytes,
            };
            let step = (STEP_WEIGHTS / input.row_len.max(1)).max(1);
            for start in piece.rows.clone().step_by(step) {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let rows = start..piece.rows.end.min(start + step);
                self.rows(piece.tensor, rows, (bytes, piece.rows.start), buffers, found);
            }
            (self.progress)(self.bytes(piece.tensor, &piece.rows), self.all_bytes);
        }
        buffers.source = source;
        Ok(found)
    }

    /// Whether any candidate can still be read.
    fn any_is_left(&self) -> bool {
        self.candidates.iter().any(|reading| reading.failure.get().is_none())
    }

    /// Adds some rows of a tensor to each candidate's sums. `source` is the tensor's bytes, and the row they begin with.
    fn rows(
        &self,
        tensor: usize,
        rows: Range<usize>,
        source: (&[u8], usize),
        buffers: &mut Buffers,
        found: &mut [Sums],
    ) {
        let (input, importance) = (&self.inputs[tensor], self.importance[tensor]);
        let n_weights = rows.len() * input.row_len;
        let weights = room(&mut buffers.weights, n_weights);
        input.decode_rows(rows.clone(), source.0, source.1, weights);
        buffers.rows.clear();
        buffers.rows.extend(weights.chunks_exact(input.row_len).map(|row| SourceRow::of(row, importance)));
        for (reading, sums) in self.candidates.iter().zip(found) {
            let Some(place) = self.place(reading, tensor) else { continue };
            if reading.failure.get().is_some() {
                continue;
            }
            let range = place.of_rows(&rows);
            let bytes = room(&mut buffers.encoded, range.len());
            if let Err(source) = place.map.read_at(bytes, range.start as u64) {
                let _ = reading.failure.set(Error::Read { file: place.map.path().to_path_buf(), source });
                continue;
            }
            let decoded = room(&mut buffers.decoded, n_weights);
            let Some(decode) = quant::decoder(place.ty) else { continue };
            decode(bytes, decoded);
            let pairs = weights.chunks_exact(input.row_len).zip(decoded.chunks_exact(input.row_len));
            for ((row, (weights, decoded)), source) in rows.clone().zip(pairs).zip(&buffers.rows) {
                sums.add_row(row as u64, *source, CandidateRow::of(weights, decoded, importance));
            }
        }
    }

    /// Adds up what was found, in the order of the rows.
    fn totals(self, found: &[Vec<Sums>]) -> Vec<Result<Vec<Sums>, Error>> {
        let n_candidates = self.candidates.len();
        let mut totals = vec![vec![Sums::default(); self.inputs.len()]; n_candidates];
        for (span, found) in self.spans.iter().zip(found) {
            for (piece, found) in span.pieces.iter().zip(found.chunks_exact(n_candidates)) {
                for (totals, sums) in totals.iter_mut().zip(found) {
                    totals[piece.tensor] = totals[piece.tensor].and(*sums);
                }
            }
        }
        let failures = self.candidates.into_iter().map(|reading| reading.failure.into_inner());
        failures.zip(totals).map(|(failure, totals)| failure.map_or(Ok(totals), Err)).collect()
    }
}

impl Place<'_> {
    /// Where some rows lie, in bytes.
    fn of_rows(&self, rows: &Range<usize>) -> Range<usize> {
        self.bytes.start + rows.start * self.row_bytes..self.bytes.start + rows.end * self.row_bytes
    }
}

/// A thread's buffers, grown once and used for every span.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    rows: Vec<SourceRow>,
    encoded: Vec<u8>,
    decoded: Vec<f32>,
}
