//! The work itself: spans of the source, taken one by one by every thread, in the order of the source.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use blake3::hazmat::ChainingValue;

use super::encode::Encoder;
use super::output::Outputs;
use super::source::{self, Bytes, SPAN_BYTES, Span};
use super::{Error, Job, hash, provenance};
use crate::gguf::{DEFAULT_ALIGNMENT, Layout};
use crate::mmap::Mapping;

/// How many spans ahead of the one being worked on the system is asked to read, beside one for each thread: enough to
/// keep a disk busy while every thread quantizes.
const SPANS_AHEAD: usize = 4;

/// Told how the work goes. Called from every thread.
pub trait Observer: Sync {
    /// So many more bytes have been read from the source and written to the output.
    fn advance(&self, read_bytes: u64, written_bytes: u64);
}

impl Observer for () {
    fn advance(&self, _: u64, _: u64) {}
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Bytes of tensor data read from the source.
    pub read_bytes: u64,
    /// Bytes of all output files.
    pub written_bytes: u64,
    /// From the first byte read to the last byte safe on the disk.
    pub elapsed: Duration,
}

/// What the threads share.
struct Work<'a> {
    job: &'a Job,
    files: Vec<&'a Mapping>,
    encoders: Vec<Encoder<'a>>,
    spans: Vec<Span>,
    outputs: &'a Outputs,
    observer: &'a dyn Observer,
    cancel: &'a AtomicBool,
}

impl Job {
    /// Does the work, on the threads of the current rayon pool, and gives the outputs their names at the end.
    ///
    /// # Errors
    /// When a weight is not finite (unless allowed), when the output cannot be written, or when `cancel` was set. Nothing
    /// is left behind then.
    pub fn execute(&self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<Summary, Error> {
        let start = Instant::now();
        self.check_output()?;
        let files = self.source.mappings();
        let encoders: Vec<Encoder> = (0..self.plan.tensors.len()).map(|i| self.encoder(i)).collect();
        let spans = spans(&files, &encoders);
        let outputs = Outputs::create(&self.outputs, self.options.force)?;

        let work = Work { job: self, files, encoders, spans, outputs: &outputs, observer, cancel };
        let values = work.run()?;
        let header_layout = self.layout_with_hashes(&work.file_hashes(&values))?;
        for (i, part) in header_layout.parts().iter().enumerate() {
            outputs.write_at(i, &part.header, 0)?;
        }
        outputs.finish()?;
        Ok(Summary { read_bytes: self.source_bytes(), written_bytes: self.output_bytes(), elapsed: start.elapsed() })
    }

    /// The layout as planned, with the hashes of the source's files in its first header.
    fn layout_with_hashes(&self, hashes: &[blake3::Hash]) -> Result<Layout, Error> {
        let mut metadata = self.metadata.clone();
        provenance::record_hashes(&mut metadata, hashes);
        let infos = self.layout.tensors().to_vec();
        let layout = Layout::new(&metadata, infos, DEFAULT_ALIGNMENT, self.options.split_max_bytes)?;
        let places = |layout: &Layout| layout.parts().iter().map(|part| part.offsets.clone()).collect::<Vec<_>>();
        assert!(places(&layout) == places(&self.layout), "hashes have a fixed length, and so has the header");
        Ok(layout)
    }
}

/// The units of the work; see [`source::spans`].
pub fn spans(files: &[&Mapping], encoders: &[Encoder]) -> Vec<Span> {
    let lengths: Vec<u64> = files.iter().map(|file| file.bytes().len() as u64).collect();
    let file_of = |encoder: &Encoder| match &encoder.input.bytes {
        Bytes::Mapped(map, _) => files.iter().position(|file| std::ptr::eq(*file, *map)),
        Bytes::Made(_) => None,
    };
    let inputs: Vec<_> = encoders.iter().map(|encoder| (file_of(encoder), &encoder.input)).collect();
    source::spans(&lengths, &inputs)
}

impl Work<'_> {
    /// Does all spans, and gives what each adds to the hash of its file.
    fn run(&self) -> Result<Vec<ChainingValue>, Error> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let values = Mutex::new(vec![ChainingValue::default(); self.spans.len()]);
        // The failure of the earliest span, so that what is reported does not depend on the threads' luck.
        let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let ahead = SPANS_AHEAD + rayon::current_num_threads();
        self.spans.iter().take(ahead).for_each(|span| self.will_read(span));
        rayon::broadcast(|_| {
            let mut buffers = Buffers::default();
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(span) = self.spans.get(i) else { break };
                if let Some(span) = self.spans.get(i + ahead) {
                    self.will_read(span);
                }
                match self.span(span, &mut buffers) {
                    Ok(value) => values.lock().unwrap_or_else(PoisonError::into_inner)[i] = value,
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        if failure.as_ref().is_none_or(|(at, _)| i < *at) {
                            *failure = Some((i, error));
                        }
                    }
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(values.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn will_read(&self, span: &Span) {
        if let Some(file) = span.file {
            self.files[file].will_read(span.bytes.start as usize..span.bytes.end as usize);
        }
    }

    /// Reads a span once, hashes it, and makes of its rows what they are in the output.
    fn span(&self, span: &Span, buffers: &mut Buffers) -> Result<ChainingValue, Error> {
        let (mut read_bytes, mut written_bytes) = (0, 0);
        let mut value = ChainingValue::default();
        if let Some(file) = span.file {
            let file = self.files[file];
            let source = room(&mut buffers.source, (span.read_end - span.bytes.start) as usize);
            file.read_at(source, span.bytes.start)
                .map_err(|source| Error::Read { path: file.path().to_path_buf(), source })?;
            let hashed = &source[..(span.bytes.end - span.bytes.start) as usize];
            value = hash::of_span(hashed, span.bytes.start, SPAN_BYTES, file.bytes().len() as u64);
        }
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
            let encoded = room(&mut buffers.encoded, piece.rows.len() * encoder.row_bytes);
            encoder.encode(piece.rows.clone(), source, piece.rows.start, &mut buffers.weights, encoded)?;
            let (part, offset) = self.job.layout.place(piece.tensor);
            self.outputs.write_at(part, encoded, offset + (piece.rows.start * encoder.row_bytes) as u64)?;
            read_bytes += n_bytes as u64;
            written_bytes += encoded.len() as u64;
        }
        self.observer.advance(read_bytes, written_bytes);
        Ok(value)
    }

    /// The hash of each file, of what its spans added.
    fn file_hashes(&self, values: &[ChainingValue]) -> Vec<blake3::Hash> {
        let of = |file| {
            let values = self.spans.iter().zip(values).filter(|(span, _)| span.file == Some(file));
            hash::of_file(&values.map(|(_, value)| *value).collect::<Vec<_>>())
        };
        (0..self.files.len()).map(of).collect()
    }
}

/// A thread's buffers, grown once and used for every span.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    weights: Vec<f32>,
    encoded: Vec<u8>,
}

/// The first `n_bytes` of a buffer, which is made longer where it is too short.
fn room(buffer: &mut Vec<u8>, n_bytes: usize) -> &mut [u8] {
    if buffer.len() < n_bytes {
        buffer.resize(n_bytes, 0);
    }
    &mut buffer[..n_bytes]
}
