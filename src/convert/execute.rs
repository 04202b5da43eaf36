//! The work itself: chunks of rows, taken one by one by every thread, in the order of the output.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::output::Outputs;
use super::source::{self, Input};
use super::{Error, Job};
use crate::gguf::TensorType;
use crate::quant::{self, Format};
use crate::recipe::PlannedTensor;

/// Weights in a chunk: half a MiB as floats, so that a thread's buffers stay in its cache, and enough work that taking a
/// chunk costs nothing.
const CHUNK_WEIGHTS: usize = 128 * 1024;

/// How many chunks ahead of the one being worked on the system is asked to read: a few MB, enough to keep a disk busy
/// while every thread quantizes.
const CHUNKS_AHEAD: usize = 32;

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

/// Some rows of one tensor.
struct Chunk {
    tensor: usize,
    rows: Range<usize>,
}

/// What the threads need to know of a tensor.
struct Task<'a> {
    input: Input<'a>,
    ty: TensorType,
    format: &'static Format,
    importance: Option<&'a [f32]>,
    part: usize,
    /// Of the tensor's first byte in its part's file.
    offset: u64,
    row_bytes: usize,
    /// Chunks that are not done yet.
    left: AtomicUsize,
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
        let tasks: Vec<Task> = self.tasks();
        let chunks = chunks(&tasks);
        for chunk in &chunks {
            tasks[chunk.tensor].left.fetch_add(1, Ordering::Relaxed);
        }

        let outputs = Outputs::create(&self.outputs, self.options.force)?;
        for (i, part) in self.layout.parts().iter().enumerate() {
            outputs.write_at(i, &part.header, 0)?;
        }
        self.work(&tasks, &chunks, &outputs, observer, cancel)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        outputs.finish()?;
        Ok(Summary { read_bytes: self.source_bytes(), written_bytes: self.output_bytes(), elapsed: start.elapsed() })
    }

    fn tasks(&self) -> Vec<Task<'_>> {
        let task = |(i, planned): (usize, &PlannedTensor)| {
            let input = self.input(i);
            let row_bytes = planned.ty.row_bytes(input.row_len as u64).expect("the plan fits types to rows") as usize;
            let (part, offset) = self.layout.place(i);
            Task {
                ty: planned.ty,
                format: quant::format(planned.ty).expect("plans use only formats that nibble has"),
                importance: self.importance_of(&planned.name),
                part,
                offset,
                row_bytes,
                left: AtomicUsize::new(0),
                input,
            }
        };
        self.plan.tensors.iter().enumerate().map(task).collect()
    }

    fn importance_of(&self, name: &str) -> Option<&[f32]> {
        self.options.importance.as_ref()?.get(name).map(Vec::as_slice)
    }

    fn work(
        &self,
        tasks: &[Task],
        chunks: &[Chunk],
        outputs: &Outputs,
        observer: &dyn Observer,
        cancel: &AtomicBool,
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        // The failure of the earliest chunk, so that what is reported does not depend on the threads' luck.
        let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        rayon::broadcast(|_| {
            let mut buffers = Buffers::default();
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(chunk) = chunks.get(i) else { break };
                if let Some(ahead) = chunks.get(i + CHUNKS_AHEAD) {
                    tasks[ahead.tensor].input.will_read_rows(ahead.rows.clone());
                }
                let result = if cancel.load(Ordering::Relaxed) {
                    Err(Error::Cancelled)
                } else {
                    self.chunk(&tasks[chunk.tensor], chunk.rows.clone(), &mut buffers, outputs, observer)
                };
                if let Err(error) = result {
                    stop.store(true, Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    if failure.as_ref().is_none_or(|(at, _)| i < *at) {
                        *failure = Some((i, error));
                    }
                }
            }
        });
        match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn chunk(
        &self,
        task: &Task,
        rows: Range<usize>,
        buffers: &mut Buffers,
        outputs: &Outputs,
        observer: &dyn Observer,
    ) -> Result<(), Error> {
        let input = &task.input;
        let encoded = buffers.encoded(rows.len() * task.row_bytes);
        if input.is_copied_as(task.ty) {
            input.copy_rows(rows.clone(), encoded);
        } else {
            let (weights, encoded) = buffers.both(rows.len() * input.row_len, rows.len() * task.row_bytes);
            input.read_rows(rows.clone(), weights);
            if !self.options.allow_nan {
                check_weights(input, task.ty, rows.start, weights)?;
            }
            task.format.quantize_rows(weights, input.row_len, task.importance, encoded);
        }
        let encoded = buffers.encoded(rows.len() * task.row_bytes);
        outputs.write_at(task.part, encoded, task.offset + (rows.start * task.row_bytes) as u64)?;

        input.release_rows(rows.clone());
        if task.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            input.release_all();
        }
        observer.advance((rows.len() * input.row_bytes()) as u64, encoded.len() as u64);
        Ok(())
    }
}

/// Cuts every tensor into chunks of whole rows.
fn chunks(tasks: &[Task]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (tensor, task) in tasks.iter().enumerate() {
        let n_rows = task.input.n_rows;
        let step = (CHUNK_WEIGHTS / task.input.row_len.max(1)).max(1);
        chunks.extend((0..n_rows).step_by(step).map(|at| Chunk { tensor, rows: at..(at + step).min(n_rows) }));
    }
    chunks
}

/// From here on a number rounds to infinity as a half-precision float.
const BEYOND_F16: f32 = 65520.0;

/// The magnitude from which on a weight may make infinity of a half-precision float in its block.
fn limit(ty: TensorType) -> f32 {
    match ty {
        TensorType::F32 | TensorType::BF16 => f32::INFINITY,
        // The number itself, or the smallest of its block, is stored as such a float.
        TensorType::F16 | TensorType::Q4_1 | TensorType::Q5_1 => BEYOND_F16,
        // Only scales are: at most an eighth of the largest weight, in Q4_0.
        _ => 8.0 * BEYOND_F16,
    }
}

fn check_weights(input: &Input, ty: TensorType, first_row: usize, weights: &[f32]) -> Result<(), Error> {
    let limit = limit(ty);
    let largest = source::largest_magnitude(weights);
    if largest < limit {
        return Ok(());
    }
    let wrong = |w: f32| if largest.is_finite() { w.abs() >= limit } else { !w.is_finite() };
    let Some((row, column)) = source::find(weights, input.row_len, wrong) else { return Ok(()) };
    let (tensor, value) = (input.name.to_string(), weights[row * input.row_len + column]);
    let row = input.source_row(first_row + row);
    Err(match largest.is_finite() {
        true => Error::BeyondF16 { tensor, row, column, value, ty },
        false => Error::NotFinite { tensor, row, column, value },
    })
}

/// A thread's buffers, grown once and used for every chunk.
#[derive(Default)]
struct Buffers {
    weights: Vec<f32>,
    encoded: Vec<u8>,
}

impl Buffers {
    fn encoded(&mut self, n_bytes: usize) -> &mut [u8] {
        self.both(0, n_bytes).1
    }

    fn both(&mut self, n_weights: usize, n_bytes: usize) -> (&mut [f32], &mut [u8]) {
        if self.weights.len() < n_weights {
            self.weights.resize(n_weights, 0.0);
        }
        if self.encoded.len() < n_bytes {
            self.encoded.resize(n_bytes, 0);
        }
        (&mut self.weights[..n_weights], &mut self.encoded[..n_bytes])
    }
}
