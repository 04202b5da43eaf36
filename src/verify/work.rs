//! Executes a verification, in units that the threads take one by one.
//!
//! If there is a source and no sample, the units are the source's spans, as in a conversion: each is read once, for the
//! hash of its file and for the rows that begin in it. Tensors without a source, and samples, are checked in chunks of
//! blocks, in the order of the file.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blake3::hazmat::ChainingValue;

use super::report::{Padding, TensorReport, TensorVerdict};
use super::{Error, Sample, Verification};
use crate::base::random::Random;
use crate::base::threads::{on_all_threads, room};
use crate::gguf::{Gap, Gguf, TensorInfo};
use crate::pass::{Bytes, Encoder, Pass, SPANS_AHEAD, Span, file_hashes};
use crate::quant::{self, Format, SomeBlocks};

/// Weights in a chunk, as in a conversion: half a MiB as floats.
const CHUNK_WEIGHTS: u64 = 128 * 1024;

/// The result of all threads.
pub struct Done {
    pub tensors: Vec<TensorReport>,
    /// The BLAKE3 of each of the source's files; `None` if not all of them were read.
    pub hashes: Option<Vec<String>>,
    pub checked_bytes: u64,
}

/// A tensor to check, and what the threads find in it.
struct Task {
    /// The tensor, by its number in the file.
    tensor: usize,
    format: &'static Format,
    /// The number in [`Work::encoders`] of what makes it from the source.
    encoder: Option<usize>,
    n_blocks: u64,
    /// Blocks in a row; 1 for a tensor that is not compared, where rows do not matter.
    row_blocks: u64,
    /// Blocks in a chunk: whole rows.
    chunk_blocks: u64,
    /// The number of its first chunk among the chunks of all tensors that are checked in chunks.
    first_chunk: u64,
    /// Units with blocks of it that are not done yet.
    left: AtomicU64,
    checked_blocks: AtomicU64,
    found: Mutex<Found>,
}

impl Task {
    /// Returns the rows that consist of these blocks.
    fn rows(&self, blocks: &Range<u64>) -> Range<usize> {
        (blocks.start / self.row_blocks) as usize..(blocks.end / self.row_blocks) as usize
    }

    /// Returns the blocks of these rows.
    fn blocks(&self, rows: &Range<usize>) -> Range<u64> {
        rows.start as u64 * self.row_blocks..rows.end as u64 * self.row_blocks
    }

    /// Returns the byte range of these blocks in the file, where the tensor begins at `start`.
    fn bytes(&self, start: usize, blocks: &Range<u64>) -> Range<usize> {
        let block_bytes = self.format.ty.block_bytes();
        start + blocks.start as usize * block_bytes..start + blocks.end as usize * block_bytes
    }
}

#[derive(Default)]
struct Found {
    not_finite: Option<SomeBlocks>,
    differing: Option<SomeBlocks>,
}

/// What the threads share.
struct Work<'a> {
    gguf: &'a Gguf,
    tasks: Vec<Task>,
    encoders: Vec<Encoder<'a>>,
    /// The task of each encoder.
    task_of: Vec<usize>,
    /// The pass over the source, if all of it is read.
    pass: Option<Pass<'a>>,
    /// The order in which its spans are read.
    order: Vec<usize>,
    /// The chunks to check: all, or those that were drawn.
    chunks: Chunks,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    all_bytes: u64,
}

enum Chunks {
    All(u64),
    Drawn(Vec<u64>),
}

impl Chunks {
    fn len(&self) -> u64 {
        match self {
            Self::All(n) => *n,
            Self::Drawn(drawn) => drawn.len() as u64,
        }
    }

    fn get(&self, i: u64) -> u64 {
        match self {
            Self::All(_) => i,
            Self::Drawn(drawn) => drawn[i as usize],
        }
    }
}

impl Verification {
    /// Checks everything, or the sample.
    pub(super) fn work(&self, progress: &(dyn Fn(u64, u64) + Sync), cancel: &AtomicBool) -> Result<Done, Error> {
        let work = Work::new(self, progress);
        let values = work.run(cancel)?;
        let hashes = work.pass.as_ref().map(|pass| {
            let hashes = file_hashes(pass.spans(), &values);
            hashes.iter().map(|hash| hash.to_hex().to_string()).collect()
        });
        let checked_bytes = work.all_bytes;
        Ok(Done { tensors: self.reports(work.tasks), hashes, checked_bytes })
    }

    fn reports(&self, tasks: Vec<Task>) -> Vec<TensorReport> {
        let comparison = |tensor: usize| match &self.against {
            None => TensorVerdict::NoSource,
            Some(against) => against.matches[tensor].clone().err().unwrap_or(TensorVerdict::Same),
        };
        let report = |(tensor, info): (usize, &TensorInfo)| TensorReport {
            info: info.clone(),
            n_blocks: 0,
            not_finite: None,
            comparison: comparison(tensor),
        };
        let mut reports: Vec<_> = self.gguf.tensors().iter().enumerate().map(report).collect();
        for task in tasks {
            let report = &mut reports[task.tensor];
            let found = task.found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
            report.n_blocks = task.checked_blocks.into_inner();
            report.not_finite = found.not_finite;
            if let Some(blocks) = found.differing {
                report.comparison = TensorVerdict::Differs(blocks);
            } else if report.comparison == TensorVerdict::Same && report.n_blocks == 0 {
                report.comparison = TensorVerdict::NotDrawn;
            }
        }
        reports
    }
}

impl<'a> Work<'a> {
    fn new(job: &'a Verification, progress: &'a (dyn Fn(u64, u64) + Sync)) -> Self {
        let sample = job.options.sample;
        let (mut tasks, mut encoders, mut task_of) = (vec![], vec![], vec![]);
        let mut n_chunks = 0;
        for (tensor, info) in job.gguf.tensors().iter().enumerate() {
            let Some(format) = quant::format(info.ty) else { continue };
            let n_blocks = (job.gguf.data(tensor).len() / info.ty.block_bytes()) as u64;
            let block_len = info.ty.block_len() as u64;
            let (mut row_blocks, mut chunk_blocks, mut encoder) = (1, CHUNK_WEIGHTS / block_len, None);
            if let Some(against) = &job.against
                && let Ok(i) = against.matches[tensor]
            {
                let assembly = against.source.assembly(i);
                row_blocks = assembly.row_len as u64 / block_len;
                chunk_blocks = (CHUNK_WEIGHTS / assembly.row_len as u64).max(1) * row_blocks;
                let importance = job.options.importance.as_ref().and_then(|importance| importance.of(&info.name));
                encoder = Some(encoders.len());
                task_of.push(tasks.len());
                // A weight that is not a number is found in what was made of it.
                let encoder = Encoder::new(assembly, format, importance, true);
                encoders.push(encoder.with_prologue(job.options.prologue.as_deref(), info));
            }
            tasks.push(Task {
                tensor,
                format,
                encoder,
                n_blocks,
                row_blocks,
                chunk_blocks,
                first_chunk: n_chunks,
                left: AtomicU64::new(0),
                checked_blocks: AtomicU64::new(0),
                found: Mutex::default(),
            });
            if sample.is_some() || encoder.is_none() {
                n_chunks += n_blocks.div_ceil(chunk_blocks);
            }
        }

        let (pass, chunks) = match (sample, &job.against) {
            (Some(sample), _) => (None, Chunks::Drawn(draw(n_chunks, sample))),
            (None, None) => (None, Chunks::All(n_chunks)),
            (None, Some(against)) => {
                let pass = Pass::new(&against.source, encoders.iter().map(|encoder| &encoder.assembly));
                (Some(pass), Chunks::All(n_chunks))
            }
        };
        let mut order: Vec<usize> = (0..pass.as_ref().map_or(0, |pass| pass.spans().len())).collect();
        if let (Some(pass), Some(prologue)) = (&pass, &job.options.prologue) {
            let place = |tensor: usize| prologue.place(&job.gguf.tensors()[tasks[task_of[tensor]].tensor]);
            order.sort_by_key(|&i| pass.spans()[i].place(place));
        }
        let mut work = Self { gguf: &job.gguf, tasks, encoders, task_of, pass, order, chunks, progress, all_bytes: 0 };
        work.count();
        work
    }

    /// Counts the units of each task and the bytes of all tasks.
    fn count(&mut self) {
        let mut all_bytes = 0;
        let mut add = |task: &Task, n_blocks: u64| {
            task.left.fetch_add(1, Ordering::Relaxed);
            all_bytes += n_blocks * task.format.ty.block_bytes() as u64;
        };
        for (task, blocks) in (0..self.chunks.len()).map(|i| self.chunk(i)) {
            add(task, blocks.end - blocks.start);
        }
        for piece in self.spans().iter().flat_map(|span| &span.pieces) {
            let task = &self.tasks[self.task_of[piece.tensor]];
            add(task, piece.rows.len() as u64 * task.row_blocks);
        }
        self.all_bytes = all_bytes;
    }

    /// Returns the source's spans; none if it is not read as a whole.
    fn spans(&self) -> &[Span] {
        self.pass.as_ref().map_or(&[], Pass::spans)
    }

    /// Returns the task and the blocks of the `i`-th chunk to check.
    fn chunk(&self, i: u64) -> (&Task, Range<u64>) {
        let chunk = self.chunks.get(i);
        // Tasks without chunks share their number with the next task that has chunks, which is the last of them.
        let task = &self.tasks[self.tasks.partition_point(|task| task.first_chunk <= chunk) - 1];
        let at = (chunk - task.first_chunk) * task.chunk_blocks;
        (task, at..task.n_blocks.min(at + task.chunk_blocks))
    }

    /// Checks all units and returns what each span adds to the hash of its file.
    fn run(&self, cancel: &AtomicBool) -> Result<Vec<ChainingValue>, Error> {
        let n_spans = self.spans().len();
        let n_units = n_spans as u64 + self.chunks.len();
        let values = Mutex::new(vec![ChainingValue::default(); n_spans]);
        let ahead = SPANS_AHEAD as u64 + rayon::current_num_threads() as u64;
        (0..ahead.min(n_units)).for_each(|i| self.will_read(i));
        (self.progress)(0, self.all_bytes);
        on_all_threads(n_units as usize, |unit, buffers: &mut Buffers| {
            let i = unit as u64;
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if i + ahead < n_units {
                self.will_read(i + ahead);
            }
            match self.unit(unit) {
                Some((pass, at)) => self.span(pass, &pass.spans()[at], buffers).map(|value| lock(&values)[at] = value),
                None => {
                    let (task, blocks) = self.chunk(i - n_spans as u64);
                    self.drawn_or_left(task, blocks, buffers)
                }
            }
        })?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        Ok(values.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the pass and the span that is read as the `unit`-th; `None` for the units after all spans.
    fn unit(&self, unit: usize) -> Option<(&Pass<'_>, usize)> {
        Some((self.pass.as_ref()?, *self.order.get(unit)?))
    }

    /// Asks the system to read ahead what unit `i` needs.
    fn will_read(&self, i: u64) {
        let will_read = |task: &Task, blocks: Range<u64>| {
            let (map, whole) = self.gguf.location(task.tensor);
            map.will_read(task.bytes(whole.start, &blocks));
        };
        let Some((pass, at)) = self.unit(i as usize) else {
            let (task, blocks) = self.chunk(i - self.spans().len() as u64);
            return will_read(task, blocks);
        };
        let span = &pass.spans()[at];
        pass.will_read(span);
        for piece in &span.pieces {
            let task = &self.tasks[self.task_of[piece.tensor]];
            will_read(task, task.blocks(&piece.output_rows()));
        }
    }

    /// Reads a span of the source once, hashes it, and checks the blocks made from its rows.
    fn span(&self, pass: &Pass<'_>, span: &Span, buffers: &mut Buffers) -> Result<ChainingValue, Error> {
        let mut buffer = std::mem::take(&mut buffers.source);
        let (read, value) = pass.read(span, &mut buffer)?;
        for piece in &span.pieces {
            let (task, encoder) = (&self.tasks[self.task_of[piece.tensor]], &self.encoders[piece.tensor]);
            let source = span.source(piece, &encoder.assembly.inputs[piece.input], read);
            let made_from =
                Rows { encoder, input: piece.input, rows: piece.rows.clone(), source, first_row: piece.rows.start };
            self.check(task, task.blocks(&piece.output_rows()), Some(made_from), buffers)?;
            self.end_unit(task);
        }
        buffers.source = buffer;
        Ok(value)
    }

    /// Checks a chunk that was drawn, or whose tensor is not compared.
    fn drawn_or_left(&self, task: &Task, blocks: Range<u64>, buffers: &mut Buffers) -> Result<(), Error> {
        let Some(encoder) = task.encoder.map(|i| &self.encoders[i]) else {
            self.check(task, blocks, None, buffers)?;
            self.end_unit(task);
            return Ok(());
        };
        let parts: Vec<_> = encoder.assembly.parts(task.rows(&blocks)).collect();
        for (i, rows) in parts.iter().cloned() {
            let input = &encoder.assembly.inputs[i];
            let source = match &input.bytes {
                Bytes::Made(bytes) => bytes,
                Bytes::Mapped(map, range) => &map.bytes()[range.clone()],
            };
            let output_rows = input.first_row + rows.start..input.first_row + rows.end;
            let made_from = Rows { encoder, input: i, rows, source, first_row: 0 };
            self.check(task, task.blocks(&output_rows), Some(made_from), buffers)?;
        }
        self.end_unit(task);
        for (i, rows) in parts {
            let input = &encoder.assembly.inputs[i];
            let Bytes::Mapped(map, range) = &input.bytes else { continue };
            let (rows, row_bytes) = (input.source_rows(&rows), input.row_bytes());
            map.release(range.start + rows.start * row_bytes..range.start + rows.end * row_bytes);
        }
        if task.left.load(Ordering::Acquire) == 0 {
            for input in &encoder.assembly.inputs {
                let Bytes::Mapped(map, range) = &input.bytes else { continue };
                map.release(range.clone());
            }
        }
        Ok(())
    }

    /// Checks some blocks of one tensor. `made_from` is what makes them, if there is a source.
    fn check(
        &self,
        task: &Task,
        blocks: Range<u64>,
        made_from: Option<Rows<'_>>,
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let block_bytes = task.format.ty.block_bytes();
        let (map, whole) = self.gguf.location(task.tensor);
        let range = task.bytes(whole.start, &blocks);
        let bytes = &map.bytes()[range.clone()];

        let not_finite = task.format.not_finite(bytes);
        let mut differing = None;
        if let Some(Rows { encoder, input, rows, source, first_row }) = made_from {
            let made = room(&mut buffers.made, bytes.len());
            encoder.encode(input, rows, source, first_row, &mut buffers.weights, made)?;
            if made != bytes {
                differing = different(made, bytes, block_bytes);
            }
        }
        if not_finite.is_some() || differing.is_some() {
            let mut found = lock(&task.found);
            found.not_finite = both(found.not_finite, not_finite, blocks.start);
            found.differing = both(found.differing, differing, blocks.start);
        }

        task.checked_blocks.fetch_add(blocks.end - blocks.start, Ordering::Relaxed);
        (self.progress)(bytes.len() as u64, self.all_bytes);
        map.release(range);
        Ok(())
    }

    /// Counts a unit of a tensor as done, and releases the tensor's pages after the last one.
    fn end_unit(&self, task: &Task) {
        if task.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Including the pages that units share.
            let (map, whole) = self.gguf.location(task.tensor);
            map.release(whole);
        }
    }
}

/// Rows of one input of a tensor, and what encodes them.
struct Rows<'a> {
    encoder: &'a Encoder<'a>,
    /// The input, by its number.
    input: usize,
    /// Counted from the input's first.
    rows: Range<usize>,
    /// The input's bytes from row `first_row` on.
    source: &'a [u8],
    first_row: usize,
}

/// Buffers of a thread, reused for every unit.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    made: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the blocks that differ.
fn different(made: &[u8], found: &[u8], block_bytes: usize) -> Option<SomeBlocks> {
    SomeBlocks::among(made.chunks_exact(block_bytes).zip(found.chunks_exact(block_bytes)), |(a, b)| a != b)
}

/// Adds the blocks found in a chunk that begins at block `chunk` to those found before.
fn both(before: Option<SomeBlocks>, found: Option<SomeBlocks>, chunk: u64) -> Option<SomeBlocks> {
    let found = found.map(|blocks| SomeBlocks { first: blocks.first + chunk, ..blocks });
    match (before, found) {
        (Some(a), Some(b)) => Some(SomeBlocks { n: a.n + b.n, first: a.first.min(b.first) }),
        (a, b) => a.or(b),
    }
}

/// Draws the numbers of the chunks in a sample, in ascending order. Draws at least one, if there are any.
///
/// Algorithm S of Knuth, The Art of Computer Programming, volume 2, section 3.4.2.
fn draw(n_chunks: u64, sample: Sample) -> Vec<u64> {
    let mut wanted = ((n_chunks as f64 * sample.share).round() as u64).clamp(1.min(n_chunks), n_chunks);
    let mut random = Random::new(sample.seed);
    let mut drawn = Vec::with_capacity(wanted as usize);
    for chunk in 0..n_chunks {
        if random.unit() * ((n_chunks - chunk) as f64) < wanted as f64 {
            drawn.push(chunk);
            wanted -= 1;
        }
    }
    drawn
}

/// Returns the problems with the bytes that belong to no tensor.
pub fn padding(gguf: &Gguf) -> Vec<Padding> {
    let mut problems = vec![];
    for Gap { map, bytes: gap, alignment } in gguf.gaps() {
        let file = || map.path().to_path_buf();
        // A gap ends where the next tensor may begin; the file ends there at the latest.
        let end = gap.start.next_multiple_of(alignment as usize).min(gap.end);
        let bytes = &map.bytes()[gap.start..end];
        let n_bytes = bytes.iter().filter(|byte| **byte != 0).count() as u64;
        if let Some(first) = bytes.iter().position(|byte| *byte != 0) {
            problems.push(Padding::NotZero { file: file(), offset: (gap.start + first) as u64, n_bytes });
        }
        if end < gap.end {
            problems.push(Padding::TooLong { file: file(), bytes: end as u64..gap.end as u64 });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_size_and_comes_back_with_its_seed() {
        for (n_chunks, share, wanted) in [(0, 0.5, 0), (1, 0.001, 1), (1000, 0.05, 50), (1000, 1.0, 1000), (7, 0.5, 4)]
        {
            for seed in 0..20 {
                let drawn = draw(n_chunks, Sample { share, seed });
                assert_eq!(drawn.len(), wanted, "{share} of {n_chunks}");
                assert!(drawn.is_sorted_by(|a, b| a < b) && drawn.iter().all(|chunk| *chunk < n_chunks));
                assert_eq!(drawn, draw(n_chunks, Sample { share, seed }));
            }
        }
        assert_ne!(draw(1000, Sample { share: 0.05, seed: 1 }), draw(1000, Sample { share: 0.05, seed: 2 }));
    }

    #[test]
    fn every_chunk_is_drawn_as_often_as_another() {
        let mut times = [0; 40];
        for seed in 0..2000 {
            draw(40, Sample { share: 0.25, seed }).into_iter().for_each(|chunk| times[chunk as usize] += 1);
        }
        // 500 times each, give or take five standard deviations.
        assert!(times.iter().all(|n| (403..=597).contains(n)), "{times:?}");
    }

    #[test]
    fn what_two_chunks_hold_adds_up() {
        let some = |n, first| Some(SomeBlocks { n, first });
        assert_eq!(both(None, None, 7), None);
        assert_eq!(both(None, some(2, 3), 100), some(2, 103));
        assert_eq!(both(some(5, 103), some(2, 3), 50), some(7, 53));
        assert_eq!(both(some(5, 3), None, 50), some(5, 3));
        assert_eq!(different(&[1, 2, 3, 4], &[1, 2, 3, 4], 2), None);
        assert_eq!(different(&[1, 2, 3, 4, 5, 6], &[1, 2, 0, 4, 5, 0], 2), some(2, 1));
    }
}
