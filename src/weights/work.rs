//! Executes a comparison: every thread takes the next span of the source and reads the candidates' rows beside it.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::sums::{CandidateRow, SourceRow, Sums};
use super::{Candidate, Error};
use crate::base::mmap::Mapping;
use crate::base::threads::{on_all_threads, room};
use crate::convert::Importance;
use crate::gguf::TensorType;
use crate::pass::{Assembly, Pass, Piece, SPANS_AHEAD, Source, Span};
use crate::quant;

/// Weights that are compared at once: half a MiB as floats, so that they are still in the core's own cache when the next
/// candidate is compared with them.
const STEP_WEIGHTS: usize = 128 * 1024;

/// What the threads share.
struct Work<'a> {
    /// The source's tensors.
    assemblies: Vec<Assembly<'a>>,
    /// Importance of the columns of each.
    importance: Vec<Option<&'a [f32]>>,
    /// The source's spans that hold anything to compare.
    pass: Pass<'a>,
    candidates: Vec<Reading<'a>>,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    all_bytes: u64,
    cancel: &'a AtomicBool,
}

/// A candidate that is being read.
struct Reading<'a> {
    candidate: &'a Candidate,
    /// Why it can no longer be read.
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

/// Returns, for each candidate, the sums of each of the source's tensors (zero for those it does not have), or why it could
/// not be read.
pub fn run(
    source: &Source,
    candidates: &[&Candidate],
    importance: Option<&Importance>,
    progress: &(dyn Fn(u64, u64) + Sync),
    cancel: &AtomicBool,
) -> Result<Vec<Result<Vec<Sums>, Error>>, Error> {
    let assemblies: Vec<_> = (0..source.tensors.len()).map(|i| source.assembly(i)).collect();
    let importance =
        source.tensors.iter().map(|tensor| importance?.of(&tensor.name).filter(|_| tensor.dims.len() == 2)).collect();
    let is_wanted = |piece: &Piece| candidates.iter().any(|candidate| candidate.matches[piece.tensor].is_some());
    let pass = Pass::new(source, &assemblies).retain(is_wanted);
    let candidates = candidates.iter().map(|candidate| Reading { candidate, failure: OnceLock::new() }).collect();
    let mut work = Work { assemblies, importance, pass, candidates, progress, all_bytes: 0, cancel };
    work.all_bytes = work.pieces().map(|piece| work.bytes(piece)).sum();
    let found = work.run()?;
    Ok(work.totals(&found))
}

impl<'a> Work<'a> {
    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pass.spans().iter().flat_map(|span| &span.pieces)
    }

    /// Returns the bytes of a piece, in the source and all candidates.
    fn bytes(&self, piece: &Piece) -> u64 {
        let of_candidates = self.candidates.iter().filter_map(|c| Some(self.place(c, piece.tensor)?.row_bytes));
        let of_source = self.assemblies[piece.tensor].inputs[piece.input].row_bytes();
        (piece.rows.len() * (of_source + of_candidates.sum::<usize>())) as u64
    }

    /// Returns where a candidate has one of the source's tensors.
    fn place(&self, reading: &Reading<'a>, tensor: usize) -> Option<Place<'a>> {
        let gguf = &reading.candidate.gguf;
        let found = reading.candidate.matches[tensor]?;
        let ty = gguf.tensors()[found].ty;
        let (map, bytes) = gguf.location(found);
        // The rows are those of the source, and a whole number of blocks.
        let row_bytes = self.assemblies[tensor].row_len / ty.block_len() * ty.block_bytes();
        Some(Place { map, bytes, ty, row_bytes })
    }

    /// Compares all spans. Returns for each span the sums of its pieces, and for each piece those of every candidate.
    fn run(&self) -> Result<Vec<Vec<Sums>>, Error> {
        let (pass, spans) = (&self.pass, self.pass.spans());
        let found: Vec<OnceLock<Vec<Sums>>> = spans.iter().map(|_| OnceLock::new()).collect();
        let ahead = SPANS_AHEAD + rayon::current_num_threads();
        spans.iter().take(ahead).for_each(|span| self.will_read(span));
        (self.progress)(0, self.all_bytes);
        on_all_threads::<Buffers, Error>(spans.len(), |at, buffers| {
            if let Some(span) = spans.get(at + ahead) {
                self.will_read(span);
            }
            let _ = found[at].set(self.span(pass, &spans[at], buffers)?);
            Ok(())
        })?;
        Ok(found.into_iter().map(|sums| sums.into_inner().unwrap_or_default()).collect())
    }

    /// Asks the system to read ahead a span and what is compared with it.
    fn will_read(&self, span: &Span) {
        self.pass.will_read(span);
        for piece in &span.pieces {
            for place in self.candidates.iter().filter_map(|reading| self.place(reading, piece.tensor)) {
                place.map.will_read(place.of_rows(&piece.output_rows()));
            }
        }
    }

    /// Reads a span of the source once, and compares its rows with those of every candidate.
    fn span(&self, pass: &Pass<'_>, span: &Span, buffers: &mut Buffers) -> Result<Vec<Sums>, Error> {
        let mut found = vec![Sums::default(); span.pieces.len() * self.candidates.len()];
        let mut buffer = std::mem::take(&mut buffers.source);
        let read = match self.any_is_left() {
            true => pass.read_unhashed(span, &mut buffer)?,
            // Nothing is compared any more; what is counted is the progress.
            false => room(&mut buffer, (span.read_end - span.bytes.start) as usize),
        };
        for (piece, found) in span.pieces.iter().zip(found.chunks_exact_mut(self.candidates.len())) {
            let row_len = self.assemblies[piece.tensor].row_len;
            let source = span.source(piece, &self.assemblies[piece.tensor].inputs[piece.input], read);
            let step = (STEP_WEIGHTS / row_len.max(1)).max(1);
            for start in piece.rows.clone().step_by(step) {
                if self.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let rows = start..piece.rows.end.min(start + step);
                self.rows(piece, rows, source, buffers, found);
            }
            (self.progress)(self.bytes(piece), self.all_bytes);
        }
        buffers.source = buffer;
        Ok(found)
    }

    /// Returns whether any candidate can still be read.
    fn any_is_left(&self) -> bool {
        self.candidates.iter().any(|reading| reading.failure.get().is_none())
    }

    /// Adds some rows of a piece to each candidate's sums. `source` is the piece's bytes.
    fn rows(&self, piece: &Piece, rows: Range<usize>, source: &[u8], buffers: &mut Buffers, found: &mut [Sums]) {
        let (tensor, importance) = (piece.tensor, self.importance[piece.tensor]);
        let input = &self.assemblies[tensor].inputs[piece.input];
        let n_weights = rows.len() * input.row_len;
        let weights = room(&mut buffers.weights, n_weights);
        input.decode(rows.clone(), source, piece.rows.start, weights);
        let rows = input.first_row + rows.start..input.first_row + rows.end;
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

    /// Adds up the sums of the pieces, in the order of the rows.
    fn totals(self, found: &[Vec<Sums>]) -> Vec<Result<Vec<Sums>, Error>> {
        let n_candidates = self.candidates.len();
        let mut totals = vec![vec![Sums::default(); self.assemblies.len()]; n_candidates];
        let mut pieces: Vec<(&Piece, &[Sums])> = Vec::new();
        for (span, found) in self.pass.spans().iter().zip(found) {
            pieces.extend(span.pieces.iter().zip(found.chunks_exact(n_candidates)));
        }
        // Inputs of one tensor may lie in the files in another order.
        pieces.sort_by_key(|(piece, _)| (piece.tensor, piece.output_rows().start));
        for (piece, found) in pieces {
            for (totals, sums) in totals.iter_mut().zip(found) {
                totals[piece.tensor] = totals[piece.tensor].and(*sums);
            }
        }
        let failures = self.candidates.into_iter().map(|reading| reading.failure.into_inner());
        failures.zip(totals).map(|(failure, totals)| failure.map_or(Ok(totals), Err)).collect()
    }
}

impl Place<'_> {
    /// Returns the byte range of some rows.
    fn of_rows(&self, rows: &Range<usize>) -> Range<usize> {
        self.bytes.start + rows.start * self.row_bytes..self.bytes.start + rows.end * self.row_bytes
    }
}

/// Buffers of a thread, reused for every span.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    rows: Vec<SourceRow>,
    encoded: Vec<u8>,
    decoded: Vec<f32>,
}
