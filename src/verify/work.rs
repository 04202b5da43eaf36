//! The work itself, in units that every thread takes one by one.
//!
//! With a source, all of it, the units are the source's spans, as in a conversion: each is read once, for the hash of its
//! file and for the rows that begin in it. What is left, and all else, goes by chunks of blocks in the order of the file.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blake3::hazmat::ChainingValue;

use super::report::{Comparison, Padding, TensorReport};
use super::{Error, Job, Sample};
use crate::base::mmap::Mapping;
use crate::base::random::Random;
use crate::base::threads::{on_all_threads, room};
use crate::convert::hash::SpanHasher;
use crate::convert::{self, Bytes, Encoder, SPAN_BYTES, Span};
use crate::gguf::{Gap, Gguf, TensorInfo};
use crate::quant::{self, Format, SomeBlocks};

/// Weights in a chunk, as in a conversion: half a MiB as floats.
const CHUNK_WEIGHTS: u64 = 128 * 1024;

/// How many units ahead of the one being worked on the system is asked to read, beside one for each thread.
const UNITS_AHEAD: u64 = 4;

/// What the threads found.
pub struct Done {
    pub tensors: Vec<TensorReport>,
    /// The BLAKE3 of each of the source's files; `None` where not all was read.
    pub hashes: Option<Vec<String>>,
    pub checked_bytes: u64,
}

/// What the threads need to know of a tensor, and what they find in it.
struct Task {
    /// The tensor, by its number in the file.
    tensor: usize,
    format: &'static Format,
    /// What makes it of the source, by its number in [`Work::encoders`].
    encoder: Option<usize>,
    n_blocks: u64,
    /// Blocks in a row; of a tensor that is not compared, where rows do not matter, 1.
    row_blocks: u64,
    /// Of a chunk: whole rows.
    chunk_blocks: u64,
    /// The number of its first chunk among the chunks of all tensors that go by chunks.
    first_chunk: u64,
    /// Units that have blocks of it and are not done yet.
    left: AtomicU64,
    checked_blocks: AtomicU64,
    found: Mutex<Found>,
}

impl Task {
    /// The rows that these blocks are.
    fn rows(&self, blocks: &Range<u64>) -> Range<usize> {
        (blocks.start / self.row_blocks) as usize..(blocks.end / self.row_blocks) as usize
    }

    /// Where in its file these blocks lie, in bytes, the tensor beginning at `start`.
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
    /// For each encoder, its task.
    task_of: Vec<usize>,
    /// The source's files, where all of them are read.
    files: Vec<&'a Mapping>,
    spans: Vec<Span>,
    /// The chunks that are checked: all, or those that were drawn.
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

impl Job {
    /// Checks everything, or what the sample draws.
    pub(super) fn work(&self, progress: &(dyn Fn(u64, u64) + Sync), cancel: &AtomicBool) -> Result<Done, Error> {
        let work = Work::new(self, progress);
        let values = work.run(cancel)?;
        let hashes = (!work.files.is_empty()).then(|| {
            let hashes = convert::file_hashes(&work.spans, &values);
            hashes.iter().map(|hash| hash.to_hex().to_string()).collect()
        });
        let checked_bytes = work.all_bytes;
        Ok(Done { tensors: self.reports(work.tasks), hashes, checked_bytes })
    }

    fn reports(&self, tasks: Vec<Task>) -> Vec<TensorReport> {
        let comparison = |tensor: usize| match &self.source {
            None => Comparison::NoSource,
            Some(source) => source.matches[tensor].clone().err().unwrap_or(Comparison::Same),
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
                report.comparison = Comparison::Differs(blocks);
            } else if report.comparison == Comparison::Same && report.n_blocks == 0 {
                report.comparison = Comparison::NotDrawn;
            }
        }
        reports
    }
}

impl<'a> Work<'a> {
    fn new(job: &'a Job, progress: &'a (dyn Fn(u64, u64) + Sync)) -> Self {
        let sample = job.options.sample;
        let (mut tasks, mut encoders, mut task_of) = (vec![], vec![], vec![]);
        let mut n_chunks = 0;
        for (tensor, info) in job.gguf.tensors().iter().enumerate() {
            let Some(format) = quant::format(info.ty) else { continue };
            let n_blocks = (job.gguf.data(tensor).len() / info.ty.block_bytes()) as u64;
            let block_len = info.ty.block_len() as u64;
            let (mut row_blocks, mut chunk_blocks, mut encoder) = (1, CHUNK_WEIGHTS / block_len, None);
            if let Some(source) = &job.source
                && let Ok(i) = source.matches[tensor]
            {
                let input = source.described.input(i);
                row_blocks = input.row_len as u64 / block_len;
                chunk_blocks = (CHUNK_WEIGHTS / input.row_len as u64).max(1) * row_blocks;
                let importance = job.options.importance.as_ref().and_then(|importance| importance.of(&info.name));
                encoder = Some(encoders.len());
                task_of.push(tasks.len());
                // A weight that is no number is found in what was made of it.
                encoders.push(Encoder::new(input, format, importance, true));
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

        let (mut files, mut spans) = (vec![], vec![]);
        let chunks = match (sample, &job.source) {
            (Some(sample), _) => Chunks::Drawn(draw(n_chunks, sample)),
            (None, None) => Chunks::All(n_chunks),
            (None, Some(source)) => {
                files = source.described.mappings();
                spans = convert::spans(&files, encoders.iter().map(|encoder| &encoder.input));
                Chunks::All(n_chunks)
            }
        };
        let mut work = Self { gguf: &job.gguf, tasks, encoders, task_of, files, spans, chunks, progress, all_bytes: 0 };
        work.count();
        work
    }

    /// Counts the units of each task, and the bytes of all.
    fn count(&mut self) {
        let mut all_bytes = 0;
        let mut add = |task: &Task, n_blocks: u64| {
            task.left.fetch_add(1, Ordering::Relaxed);
            all_bytes += n_blocks * task.format.ty.block_bytes() as u64;
        };
        for (task, blocks) in (0..self.chunks.len()).map(|i| self.chunk(i)) {
            add(task, blocks.end - blocks.start);
        }
        for piece in self.spans.iter().flat_map(|span| &span.pieces) {
            let task = &self.tasks[self.task_of[piece.tensor]];
            add(task, piece.rows.len() as u64 * task.row_blocks);
        }
        self.all_bytes = all_bytes;
    }

    /// The task and the blocks of the `i`-th chunk that is checked.
    fn chunk(&self, i: u64) -> (&Task, Range<u64>) {
        let chunk = self.chunks.get(i);
        // Tasks that do not go by chunks share their number with the next one that does: the last of them is that.
        let task = &self.tasks[self.tasks.partition_point(|task| task.first_chunk <= chunk) - 1];
        let at = (chunk - task.first_chunk) * task.chunk_blocks;
        (task, at..task.n_blocks.min(at + task.chunk_blocks))
    }

    /// Does all units, and gives what each span adds to the hash of its file.
    fn run(&self, cancel: &AtomicBool) -> Result<Vec<ChainingValue>, Error> {
        let n_units = self.spans.len() as u64 + self.chunks.len();
        let values = Mutex::new(vec![ChainingValue::default(); self.spans.len()]);
        let ahead = UNITS_AHEAD + rayon::current_num_threads() as u64;
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
            match self.spans.get(unit) {
                Some(span) => self.span(span, buffers).map(|value| lock(&values)[unit] = value),
                None => {
                    let (task, blocks) = self.chunk(i - self.spans.len() as u64);
                    self.drawn_or_left(task, blocks, buffers)
                }
            }
        })?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        Ok(values.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the system to read what unit `i` needs.
    fn will_read(&self, i: u64) {
        let will_read = |task: &Task, blocks: Range<u64>| {
            let (map, whole) = self.gguf.location(task.tensor);
            map.will_read(task.bytes(whole.start, &blocks));
        };
        let Some(span) = self.spans.get(i as usize) else {
            let (task, blocks) = self.chunk(i - self.spans.len() as u64);
            return will_read(task, blocks);
        };
        if let Some(file) = span.file {
            self.files[file].will_read(span.bytes.start as usize..span.bytes.end as usize);
        }
        for piece in &span.pieces {
            let task = &self.tasks[self.task_of[piece.tensor]];
            will_read(task, piece.rows.start as u64 * task.row_blocks..piece.rows.end as u64 * task.row_blocks);
        }
    }

    /// Reads a span of the source once, hashes it, and checks what was made of its rows.
    fn span(&self, span: &Span, buffers: &mut Buffers) -> Result<ChainingValue, Error> {
        let mut value = ChainingValue::default();
        let mut source = std::mem::take(&mut buffers.source);
        if let Some(file) = span.file {
            let file = self.files[file];
            let read = room(&mut source, (span.read_end - span.bytes.start) as usize);
            file.read_at(read, span.bytes.start)
                .map_err(|source| convert::Error::Read { path: file.path().to_path_buf(), source })?;
            let hashed = &read[..(span.bytes.end - span.bytes.start) as usize];
            let mut hasher = SpanHasher::new(span.bytes.start, SPAN_BYTES, file.bytes().len() as u64);
            hasher.update(hashed);
            value = hasher.finish();
        }
        for piece in &span.pieces {
            let (task, encoder) = (&self.tasks[self.task_of[piece.tensor]], &self.encoders[piece.tensor]);
            let bytes = match &encoder.input.bytes {
                Bytes::Mapped(..) => {
                    let n_bytes = piece.rows.len() * encoder.input.row_bytes();
                    &source[(piece.offset - span.bytes.start) as usize..][..n_bytes]
                }
                Bytes::Made(bytes) => bytes,
            };
            let blocks = piece.rows.start as u64 * task.row_blocks..piece.rows.end as u64 * task.row_blocks;
            self.check(task, blocks, Some((encoder, bytes, piece.rows.start)), buffers)?;
        }
        buffers.source = source;
        Ok(value)
    }

    /// Checks a chunk that a sample drew, or whose tensor is not compared.
    fn drawn_or_left(&self, task: &Task, blocks: Range<u64>, buffers: &mut Buffers) -> Result<(), Error> {
        let Some(encoder) = task.encoder.map(|i| &self.encoders[i]) else {
            return self.check(task, blocks, None, buffers);
        };
        match &encoder.input.bytes {
            Bytes::Made(bytes) => self.check(task, blocks, Some((encoder, bytes, 0)), buffers),
            Bytes::Mapped(map, range) => {
                let rows = encoder.input.source_rows(&task.rows(&blocks));
                self.check(task, blocks, Some((encoder, &map.bytes()[range.clone()], 0)), buffers)?;
                let row_bytes = encoder.input.row_bytes();
                map.release(range.start + rows.start * row_bytes..range.start + rows.end * row_bytes);
                if task.left.load(Ordering::Acquire) == 0 {
                    map.release(range.clone());
                }
                Ok(())
            }
        }
    }

    /// Checks some blocks of one tensor. `made_from` says what makes them, of which bytes of the source, which begin with
    /// that row.
    fn check(
        &self,
        task: &Task,
        blocks: Range<u64>,
        made_from: Option<(&Encoder, &[u8], usize)>,
        buffers: &mut Buffers,
    ) -> Result<(), Error> {
        let block_bytes = task.format.ty.block_bytes();
        let (map, whole) = self.gguf.location(task.tensor);
        let range = task.bytes(whole.start, &blocks);
        let bytes = &map.bytes()[range.clone()];

        let not_finite = task.format.not_finite(bytes);
        let mut differing = None;
        if let Some((encoder, source, first_row)) = made_from {
            let rows = task.rows(&blocks);
            let made = room(&mut buffers.made, bytes.len());
            encoder.encode(rows, source, first_row, &mut buffers.weights, made)?;
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
        if task.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The pages where units meet, too.
            map.release(whole);
        }
        Ok(())
    }
}

/// A thread's buffers, grown once and used for every unit.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    made: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks that are not the same.
fn different(made: &[u8], found: &[u8], block_bytes: usize) -> Option<SomeBlocks> {
    SomeBlocks::among(made.chunks_exact(block_bytes).zip(found.chunks_exact(block_bytes)), |(a, b)| a != b)
}

/// Blocks found before, and those found in a chunk that begins at block `chunk`.
fn both(before: Option<SomeBlocks>, found: Option<SomeBlocks>, chunk: u64) -> Option<SomeBlocks> {
    let found = found.map(|blocks| SomeBlocks { first: blocks.first + chunk, ..blocks });
    match (before, found) {
        (Some(a), Some(b)) => Some(SomeBlocks { n: a.n + b.n, first: a.first.min(b.first) }),
        (a, b) => a.or(b),
    }
}

/// The numbers of the chunks that the sample draws, in ascending order: at least one, where there are any.
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

/// Bytes outside of the tensors that should not be as they are.
pub fn padding(gguf: &Gguf) -> Vec<Padding> {
    let mut problems = vec![];
    for Gap { map, bytes: gap, alignment } in gguf.gaps() {
        let file = || map.path().to_path_buf();
        // A gap ends where the next tensor may begin, and the file there, at the latest.
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
