//! Executes a conversion: every thread takes the next span of the source until there are none left.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::epilogue::Written;
use super::journal::{Changed, Identity, Journal, Record};
use super::output::Outputs;
use super::resume::{self, Site};
use super::{Error, Job, provenance};
use crate::base::threads::{on_all_threads, room};
use crate::gguf::{DEFAULT_ALIGNMENT, Layout};
use crate::pass::{self, Encoder, Pass, Piece, SPANS_AHEAD, Span, file_hashes};

/// How often written data is flushed to the disk. A power failure loses at most the work of this time.
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// Receives progress. Called from every thread.
pub trait Observer: Sync {
    /// Reports how many more bytes have been read from the source and written to the output.
    fn advance(&self, read_bytes: u64, written_bytes: u64);

    /// Reports what happens to the work of an earlier run. Called before the first [`Self::advance`].
    fn event(&self, _: Event) {}
}

impl Observer for () {
    fn advance(&self, _: u64, _: u64) {}
}

/// What a run does with the work of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was for something else and is discarded.
    StartingOver(Changed),
    /// It is being checked.
    Checking,
    /// The run resumes with the part that is intact.
    Resuming {
        /// Bytes of tensor data that need not be read again.
        read_bytes: u64,
        /// Bytes of output that were made from them.
        written_bytes: u64,
        /// Percentage of all work that is done.
        percent: u8,
        /// Bytes of the source that the journal says are done but whose output is missing, as after a power failure.
        lost_bytes: u64,
    },
}

/// The summary of a conversion.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Bytes of tensor data read from the source, including those that earlier runs read.
    pub read_bytes: u64,
    /// Bytes of all output files.
    pub written_bytes: u64,
    /// The part of `read_bytes` that this run read.
    pub read_now_bytes: u64,
    /// Time of this run, from the first byte read to the last byte flushed to the disk.
    pub elapsed: Duration,
}

/// What the threads share.
struct Work<'a> {
    job: &'a Job,
    pass: &'a Pass<'a>,
    encoders: &'a [Encoder<'a>],
    journal: &'a Journal,
    outputs: &'a Outputs,
    /// The record of each span that is done.
    done: Vec<OnceLock<Record>>,
    observer: &'a dyn Observer,
    cancel: &'a AtomicBool,
}

impl Job {
    /// Converts on the threads of the current rayon pool, resuming the work of an earlier run where there is any. The
    /// outputs get their names at the end.
    ///
    /// # Errors
    /// If a weight is not finite (unless allowed), the output cannot be written, another process is writing it, the
    /// source cannot be read or changes meanwhile, or `cancel` was set. [`Error::Unfinished`] says whether the next run
    /// can resume; after all other errors no files are left behind.
    pub fn execute(&self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<Summary, Error> {
        let start = Instant::now();
        let encoders: Vec<Encoder> = (0..self.infos.len()).map(|i| self.encoder(i)).collect();
        let pass = Pass::new(&self.source, encoders.iter().map(|encoder| &encoder.assembly));
        let spans = pass.spans();
        let identity = self.identity(pass.files(), &encoders)?;
        let Site { journal, outputs, records } = self.open_site(&identity, spans, observer)?;

        let done = spans.iter().map(|_| OnceLock::new()).collect();
        let (encoders, journal_ref, outputs_ref) = (encoders.as_slice(), &journal, &outputs);
        let work = Work {
            job: self,
            pass: &pass,
            encoders,
            journal: journal_ref,
            outputs: outputs_ref,
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
                Err(self.leave(error, journal, done_bytes, spans))
            }
        }
    }

    /// Returns the planned layout with the hashes of the source's files in its first header.
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

impl Work<'_> {
    /// Runs the conversion and returns how many bytes of tensor data this run read.
    fn run(&self, identity: &Identity, records: &[Option<Record>]) -> Result<u64, Error> {
        let resumed_bytes = self.check(records)?;
        self.work_and_sync()?;
        if let Some(epilogue) = &self.job.options.epilogue {
            // What is encoded is kept if it is stopped.
            self.outputs.sync()?;
            self.journal.sync()?;
            let Job { metadata, layout, .. } = self.job;
            epilogue.run(&Written { metadata, layout, outputs: self.outputs }, self.cancel)?;
        }
        for (file, known) in self.pass.files().iter().zip(&identity.source) {
            if resume::state(file)? != (known.bytes, known.modified) {
                return Err(Error::SourceChanged { path: file.path().to_path_buf() });
            }
        }
        self.write_headers()?;
        self.journal.sync()?;
        self.outputs.finish(self.job.options.force)?;
        Ok(self.job.source_bytes() - resumed_bytes)
    }

    /// Reads the output that an earlier run's journal says is done and accepts the spans whose hash matches. Returns how
    /// many bytes of tensor data need not be read again.
    fn check(&self, records: &[Option<Record>]) -> Result<u64, Error> {
        let claimed: Vec<_> = records.iter().enumerate().filter_map(|(i, record)| Some((i, (*record)?))).collect();
        if claimed.is_empty() {
            return Ok(0);
        }
        self.observer.event(Event::Checking);
        let spans = self.pass.spans();
        on_all_threads::<Buffers, Error>(claimed.len(), |at, buffers| {
            let (i, record) = claimed[at];
            // Output that cannot be read is made again, like output that is wrong.
            if self.output_of(&spans[i], &mut buffers.encoded).ok() == Some(record.output) {
                let _ = self.done[i].set(record);
            }
            Ok(())
        })?;
        let (mut read_bytes, mut written_bytes) = (0, 0);
        for span in spans.iter().zip(&self.done).filter(|(_, done)| done.get().is_some()).map(|(span, _)| span) {
            for piece in &span.pieces {
                let encoder = &self.encoders[piece.tensor];
                let input = &encoder.assembly.inputs[piece.input];
                encoder.skip(piece.rows.len());
                read_bytes += (piece.rows.len() * input.row_bytes()) as u64;
                written_bytes += (piece.rows.len() * encoder.row_bytes) as u64;
            }
        }
        let (done_bytes, total) = (self.done_bytes(), spans.iter().map(Span::n_bytes).sum::<u64>().max(1));
        let lost_bytes = resume::done_bytes(spans, records) - done_bytes;
        let percent = (u128::from(done_bytes) * 100 / u128::from(total)) as u8;
        self.observer.event(Event::Resuming { read_bytes, written_bytes, percent, lost_bytes });
        Ok(read_bytes)
    }

    /// Returns the hash of the bytes that are now where the output of `span` belongs.
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

    /// Returns where the output of a piece goes: the output file, the offset in it, and the number of bytes.
    fn place(&self, piece: &Piece) -> (usize, u64, usize) {
        let row_bytes = self.encoders[piece.tensor].row_bytes;
        let (part, offset) = self.job.layout.place(piece.tensor);
        (part, offset + (piece.output_rows().start * row_bytes) as u64, piece.rows.len() * row_bytes)
    }

    /// Converts the spans that are not done. A separate thread flushes written data to the disk meanwhile, so that the final
    /// flush is short and a power failure destroys little.
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
        let (pass, spans) = (self.pass, self.pass.spans());
        let mut open: Vec<_> = (0..spans.len()).filter(|&i| self.done[i].get().is_none()).collect();
        if let Some(prologue) = &self.job.options.prologue {
            let places: Vec<_> = self.job.infos.iter().map(|info| prologue.place(info)).collect();
            open.sort_by_key(|&i| spans[i].place(|tensor| places[tensor]));
        }
        let ahead = SPANS_AHEAD + rayon::current_num_threads();
        open.iter().take(ahead).for_each(|&i| pass.will_read(&spans[i]));
        on_all_threads::<Buffers, Error>(open.len(), |at, buffers| {
            if let Some(&i) = open.get(at + ahead) {
                pass.will_read(&spans[i]);
            }
            // The thread that set the flag reports what failed.
            if self.cancel.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let record = self.span(&spans[open[at]], buffers)?;
            self.journal.record(open[at], record)?;
            let _ = self.done[open[at]].set(record);
            Ok(())
        })
    }

    /// Reads a span once, hashes it, encodes its rows and writes them.
    fn span(&self, span: &Span, buffers: &mut Buffers) -> Result<Record, Error> {
        let (mut read_bytes, mut written_bytes) = (0, 0);
        let (read, value) = self.pass.read(span, &mut buffers.source)?;
        let mut output = blake3::Hasher::new();
        for piece in &span.pieces {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let encoder = &self.encoders[piece.tensor];
            let source = span.source(piece, &encoder.assembly.inputs[piece.input], read);
            let (part, offset, encoded_bytes) = self.place(piece);
            let encoded = room(&mut buffers.encoded, encoded_bytes);
            let (rows, first_row) = (piece.rows.clone(), piece.rows.start);
            let result = encoder.encode(piece.input, rows, source, first_row, &mut buffers.weights, encoded);
            result.map_err(|error| match error {
                // It was interrupted, and says so in its own words.
                pass::Error::Prologue { .. } if self.cancel.load(Ordering::Relaxed) => Error::Cancelled,
                error => error.into(),
            })?;
            self.outputs.write_at(part, encoded, offset)?;
            output.update(encoded);
            read_bytes += source.len() as u64;
            written_bytes += encoded.len() as u64;
        }
        self.observer.advance(read_bytes, written_bytes);
        Ok(Record { output: cut_short(&output), value })
    }

    /// Writes the headers, which contain the hashes of the source and so are known last, and the padding between tensors,
    /// which an earlier run may have lost.
    fn write_headers(&self) -> Result<(), Error> {
        let values: Vec<_> = self.done.iter().filter_map(|done| Some(done.get()?.value)).collect();
        let layout = self.job.layout_with_hashes(&file_hashes(self.pass.spans(), &values))?;
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
        let done = self.pass.spans().iter().zip(&self.done).filter(|(_, done)| done.get().is_some());
        done.map(|(span, _)| span.n_bytes()).sum()
    }
}

fn cut_short(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut short = [0; 16];
    hasher.finalize_xof().fill(&mut short);
    short
}

/// Buffers of a thread, reused for every span.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    encoded: Vec<u8>,
}
