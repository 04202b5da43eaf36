//! The work itself: spans of the source, taken one by one by every thread, in the order of the source.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use blake3::hazmat::ChainingValue;

use super::encode::Encoder;
use super::hash::{self, SpanHasher};
use super::journal::{Changed, Identity, Journal, Record};
use super::output::Outputs;
use super::resume::{self, Site};
use super::source::{self, Bytes, Input, Piece, SPAN_BYTES, Span};
use super::{Error, Job, provenance};
use crate::base::mmap::Mapping;
use crate::base::threads::{on_all_threads, room};
use crate::gguf::{DEFAULT_ALIGNMENT, Layout};

/// How many spans ahead of the one being worked on the system is asked to read, beside one for each thread: enough to
/// keep a disk busy while every thread quantizes.
const SPANS_AHEAD: usize = 4;

/// Bytes that are read at once: few enough that they are still in the core's own cache when they are hashed.
const READ_BYTES: usize = 256 << 10;

/// How long what was written may stay in memory alone: what a power failure costs.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Told how the work goes. Called from every thread.
pub trait Observer: Sync {
    /// So many more bytes have been read from the source and written to the output.
    fn advance(&self, read_bytes: u64, written_bytes: u64);

    /// Something that the user should know; called before the first [`Self::advance`].
    fn event(&self, _: Event) {}
}

impl Observer for () {
    fn advance(&self, _: u64, _: u64) {}
}

/// What a run does about the work of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was for something else, and is thrown away.
    StartingOver(Changed),
    /// What it left is being checked.
    Checking,
    /// It goes on with what is right.
    Resuming {
        /// Bytes of tensor data that need not be read again.
        read_bytes: u64,
        /// What became of them, in bytes.
        written_bytes: u64,
        /// How much of all work is done.
        percent: u8,
        /// Bytes of the source whose work was noted as done and is not there, as after a power failure.
        lost_bytes: u64,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Bytes of tensor data read from the source, by earlier runs too.
    pub read_bytes: u64,
    /// Bytes of all output files.
    pub written_bytes: u64,
    /// Of `read_bytes`, what this run read.
    pub read_now_bytes: u64,
    /// From the first byte read to the last byte safe on the disk, in this run.
    pub elapsed: Duration,
}

/// What the threads share.
struct Work<'a> {
    job: &'a Job,
    files: &'a [&'a Mapping],
    encoders: &'a [Encoder<'a>],
    spans: &'a [Span],
    journal: &'a Journal,
    outputs: &'a Outputs,
    /// What is known of each span that is done.
    done: Vec<OnceLock<Record>>,
    observer: &'a dyn Observer,
    cancel: &'a AtomicBool,
}

impl Job {
    /// Does the work, or what an earlier run left of it, on the threads of the current rayon pool, and gives the outputs
    /// their names at the end.
    ///
    /// # Errors
    /// When a weight is not finite (unless allowed), when the output cannot be written, when another process is writing
    /// it, when the source cannot be read or changes meanwhile, or when `cancel` was set. [`Error::Unfinished`] says
    /// whether there is something that the next run can go on with; after all others nothing is left behind.
    pub fn execute(&self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<Summary, Error> {
        let start = Instant::now();
        let files = self.source.mappings();
        let encoders: Vec<Encoder> = (0..self.plan.tensors.len()).map(|i| self.encoder(i)).collect();
        let spans = spans(&files, encoders.iter().map(|encoder| &encoder.input));
        let identity = self.identity(&files, &encoders)?;
        let Site { journal, outputs, records } = self.open_site(&identity, &spans, observer)?;

        let done = spans.iter().map(|_| OnceLock::new()).collect();
        let (files, encoders) = (files.as_slice(), encoders.as_slice());
        let work = Work {
            job: self,
            files,
            encoders,
            spans: &spans,
            journal: &journal,
            outputs: &outputs,
            done,
            observer,
            cancel,
        };
        match work.run(&identity, &records) {
            Ok(read_now_bytes) => {
                journal.remove();
                let (read_bytes, written_bytes) = (self.source_bytes(), self.output_bytes());
                Ok(Summary { read_bytes, written_bytes, read_now_bytes, elapsed: start.elapsed() })
            }
            Err(error) => {
                let done_bytes = work.done_bytes();
                drop(outputs);
                Err(self.leave(error, journal, done_bytes, &spans))
            }
        }
    }

    /// The layout as planned, with the hashes of the source's files in its first header.
    pub(super) fn layout_with_hashes(&self, hashes: &[blake3::Hash]) -> Result<Layout, Error> {
        let mut metadata = self.metadata.clone();
        provenance::record_hashes(&mut metadata, hashes);
        let infos = self.layout.tensors().to_vec();
        let layout = Layout::new(&metadata, infos, DEFAULT_ALIGNMENT, self.options.split_max_bytes)?;
        let places = |layout: &Layout| layout.parts().iter().map(|part| part.offsets.clone()).collect::<Vec<_>>();
        assert!(places(&layout) == places(&self.layout), "hashes have a fixed length, and so has the header");
        Ok(layout)
    }
}

/// The units of the work; see [`source::spans`]. `inputs` lie in `files`, or in none.
pub fn spans<'a>(files: &[&Mapping], inputs: impl Iterator<Item = &'a Input<'a>>) -> Vec<Span> {
    let lengths: Vec<u64> = files.iter().map(|file| file.bytes().len() as u64).collect();
    let file_of = |input: &Input| match &input.bytes {
        Bytes::Mapped(map, _) => files.iter().position(|file| std::ptr::eq(*file, *map)),
        Bytes::Made(_) => None,
    };
    let inputs: Vec<_> = inputs.map(|input| (file_of(input), input)).collect();
    source::spans(&lengths, &inputs)
}

/// The hash of each file, of what its spans add.
pub fn file_hashes(spans: &[Span], values: &[ChainingValue]) -> Vec<blake3::Hash> {
    let of_spans = spans.chunk_by(|a, b| a.file == b.file).filter(|of_file| of_file[0].file.is_some());
    let mut at = 0;
    let of = |of_file: &[Span]| {
        let values = &values[at..at + of_file.len()];
        at += of_file.len();
        hash::of_file(values)
    };
    // Spans of no file come last, so that values and spans stay together.
    of_spans.map(of).collect()
}

impl Work<'_> {
    /// Does everything, and gives the bytes of tensor data that this run read.
    fn run(&self, identity: &Identity, records: &[Option<Record>]) -> Result<u64, Error> {
        let resumed_bytes = self.check(records)?;
        self.work_and_sync()?;
        for (file, known) in self.files.iter().zip(&identity.source) {
            if resume::state(file)? != (known.bytes, known.modified) {
                return Err(Error::SourceChanged { path: file.path().to_path_buf() });
            }
        }
        self.write_headers()?;
        self.journal.sync()?;
        self.outputs.finish(self.job.options.force)?;
        Ok(self.job.source_bytes() - resumed_bytes)
    }

    /// Reads again what an earlier run says is done, and takes what is right. Gives the bytes of tensor data that this
    /// saves.
    fn check(&self, records: &[Option<Record>]) -> Result<u64, Error> {
        let claimed: Vec<_> = records.iter().enumerate().filter_map(|(i, record)| Some((i, (*record)?))).collect();
        if claimed.is_empty() {
            return Ok(0);
        }
        self.observer.event(Event::Checking);
        on_all_threads::<Buffers, Error>(claimed.len(), |at, buffers| {
            let (i, record) = claimed[at];
            // What cannot be read is made again like what is wrong.
            if self.output_of(&self.spans[i], &mut buffers.encoded).ok() == Some(record.output) {
                let _ = self.done[i].set(record);
            }
            Ok(())
        })?;
        let (mut read_bytes, mut written_bytes) = (0, 0);
        for span in self.spans.iter().zip(&self.done).filter(|(_, done)| done.get().is_some()).map(|(span, _)| span) {
            for piece in &span.pieces {
                let encoder = &self.encoders[piece.tensor];
                read_bytes += (piece.rows.len() * encoder.input.row_bytes()) as u64;
                written_bytes += (piece.rows.len() * encoder.row_bytes) as u64;
            }
        }
        let (done_bytes, total) = (self.done_bytes(), self.spans.iter().map(Span::n_bytes).sum::<u64>().max(1));
        let lost_bytes = resume::done_bytes(self.spans, records) - done_bytes;
        let percent = (u128::from(done_bytes) * 100 / u128::from(total)) as u8;
        self.observer.event(Event::Resuming { read_bytes, written_bytes, percent, lost_bytes });
        Ok(read_bytes)
    }

    /// Hash of the bytes that are in the place of what `span` gives.
    fn output_of(&self, span: &Span, buffer: &mut Vec<u8>) -> std::io::Result<[u8; 16]> {
        let mut hasher = blake3::Hasher::new();
        for piece in &span.pieces {
            let (part, offset, n_bytes) = self.place(piece);
            let bytes = room(buffer, n_bytes);
            self.outputs.read_at(part, bytes, offset)?;
            hasher.update(bytes);
        }
        Ok(cut_short(&hasher))
    }

    /// Where a piece goes: the output file, the offset in it, and the number of bytes.
    fn place(&self, piece: &Piece) -> (usize, u64, usize) {
        let row_bytes = self.encoders[piece.tensor].row_bytes;
        let (part, offset) = self.job.layout.place(piece.tensor);
        (part, offset + (piece.rows.start * row_bytes) as u64, piece.rows.len() * row_bytes)
    }

    /// Does the spans that are not done, while a thread of its own brings what is written to the disk: the end of the
    /// work then has little to wait for, and a power failure little to destroy.
    fn work_and_sync(&self) -> Result<(), Error> {
        let failed = AtomicBool::new(false);
        let (end, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let failed = &failed;
            let sync = scope.spawn(move || {
                while ended.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
                    let synced = self.outputs.sync().and_then(|()| self.journal.sync());
                    failed.store(synced.is_err(), Ordering::Relaxed);
                    synced?;
                }
                Ok(())
            });
            let worked = self.work(failed);
            drop(end);
            let synced = sync.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match worked {
                // The others stopped because of what failed here.
                Err(Error::Cancelled) if failed.load(Ordering::Relaxed) => synced,
                worked => worked.and(synced),
            }
        })
    }

    fn work(&self, failed: &AtomicBool) -> Result<(), Error> {
        let open: Vec<_> = (0..self.spans.len()).filter(|&i| self.done[i].get().is_none()).collect();
        let ahead = SPANS_AHEAD + rayon::current_num_threads();
        open.iter().take(ahead).for_each(|&i| self.will_read(&self.spans[i]));
        on_all_threads::<Buffers, Error>(open.len(), |at, buffers| {
            if let Some(&i) = open.get(at + ahead) {
                self.will_read(&self.spans[i]);
            }
            // What failed is known to the one who set the flag.
            if self.cancel.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let record = self.span(&self.spans[open[at]], buffers)?;
            self.journal.record(open[at], record)?;
            let _ = self.done[open[at]].set(record);
            Ok(())
        })
    }

    fn will_read(&self, span: &Span) {
        if let Some(file) = span.file {
            self.files[file].will_read(span.bytes.start as usize..span.bytes.end as usize);
        }
    }

    /// Reads a span once, hashes it, and makes of its rows what they are in the output.
    fn span(&self, span: &Span, buffers: &mut Buffers) -> Result<Record, Error> {
        let (mut read_bytes, mut written_bytes) = (0, 0);
        let mut value = ChainingValue::default();
        if let Some(file) = span.file {
            value = self.read(self.files[file], span, &mut buffers.source)?;
        }
        let mut output = blake3::Hasher::new();
        for piece in &span.pieces {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let encoder = &self.encoders[piece.tensor];
            let n_bytes = piece.rows.len() * encoder.input.row_bytes();
            let source = match &encoder.input.bytes {
                Bytes::Mapped(..) => &buffers.source[(piece.offset - span.bytes.start) as usize..][..n_bytes],
                Bytes::Made(bytes) => bytes,
            };
            let (part, offset, encoded_bytes) = self.place(piece);
            let encoded = room(&mut buffers.encoded, encoded_bytes);
            encoder.encode(piece.rows.clone(), source, piece.rows.start, &mut buffers.weights, encoded)?;
            self.outputs.write_at(part, encoded, offset)?;
            output.update(encoded);
            read_bytes += n_bytes as u64;
            written_bytes += encoded.len() as u64;
        }
        self.observer.advance(read_bytes, written_bytes);
        Ok(Record { output: cut_short(&output), value })
    }

    /// Reads a span, and the end of the last row that begins in it, and gives what it adds to the hash of its file.
    fn read(&self, file: &Mapping, span: &Span, buffer: &mut Vec<u8>) -> Result<ChainingValue, Error> {
        let source = room(buffer, (span.read_end - span.bytes.start) as usize);
        let (hashed, rest) = source.split_at_mut(span.n_bytes() as usize);
        let read = |bytes: &mut [u8], offset: u64| {
            file.read_at(bytes, offset).map_err(|source| Error::Read { path: file.path().to_path_buf(), source })
        };
        let mut hasher = SpanHasher::new(span.bytes.start, SPAN_BYTES, file.bytes().len() as u64);
        for (bytes, offset) in hashed.chunks_mut(READ_BYTES).zip((span.bytes.start..).step_by(READ_BYTES)) {
            read(bytes, offset)?;
            hasher.update(bytes);
        }
        if !rest.is_empty() {
            read(rest, span.bytes.end)?;
        }
        Ok(hasher.finish())
    }

    /// Writes what comes before the tensors, which names the hashes of the source and so is known last, and what lies
    /// between them, which an earlier run may have lost.
    fn write_headers(&self) -> Result<(), Error> {
        let values: Vec<_> = self.done.iter().filter_map(|done| Some(done.get()?.value)).collect();
        let layout = self.job.layout_with_hashes(&file_hashes(self.spans, &values))?;
        for (i, part) in layout.parts().iter().enumerate() {
            self.outputs.write_at(i, &part.header, 0)?;
            let begins = part.offsets.iter().copied().skip(1).chain([part.total_bytes]);
            for ((&offset, next), tensor) in
                part.offsets.iter().zip(begins).zip(&layout.tensors()[part.tensors.clone()])
            {
                let end = offset + tensor.n_bytes().expect("tensors were checked when they were laid out");
                if end < next {
                    self.outputs.write_at(i, &vec![0; (next - end) as usize], end)?;
                }
            }
        }
        Ok(())
    }

    fn done_bytes(&self) -> u64 {
        let done = self.spans.iter().zip(&self.done).filter(|(_, done)| done.get().is_some());
        done.map(|(span, _)| span.n_bytes()).sum()
    }
}

fn cut_short(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut short = [0; 16];
    hasher.finalize_xof().fill(&mut short);
    short
}

/// A thread's buffers, grown once and used for every span.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    encoded: Vec<u8>,
}
