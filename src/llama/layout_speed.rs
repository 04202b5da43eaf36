//! How fast matrices of a type are multiplied as they are in files, and in the second layout: see `layout`.
//!
//! Neither is always the faster one. Which one is depends on the type, on the instructions of the CPU, and on which of ggml's
//! functions for them were improved last, so it is measured: one matrix in each layout, multiplied by turns.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::time::Instant;

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::layout::Cpu;
use super::{Error, backend};
use crate::gguf::TensorType;

/// How long weights in one layout take, in seconds for each byte.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightTime {
    /// While a prompt is read, for all of [`LayoutTimes::BATCH`] tokens together.
    pub reading: f64,
    /// While one token is written.
    pub writing: f64,
}

/// How long weights of one type take in both layouts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayoutTimes {
    /// As they are in the file.
    pub from_file: WeightTime,
    /// In the second layout.
    pub copied: WeightTime,
}

impl LayoutTimes {
    /// Tokens that are read at once. All kernels for many tokens are in use from about 16 on.
    pub const BATCH: usize = 64;
}

/// Columns of the matrix that is multiplied: whole blocks of every type.
const COLUMNS: usize = 4096;

/// Bytes of the matrix, in each layout: more than a core's own cache, so that weights come from memory, or from where other
/// cores have to wait for it.
const BYTES: usize = 16 << 20;

/// Rounds of which the fastest counts: other programs only make them slower.
const ROUNDS: usize = 5;

/// Measures both layouts of matrices of this type with `threads` threads, which takes about a tenth of a second and 50 MB.
/// Returns `None` if this CPU has no second layout for the type, or there is no memory.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn layout_times(ty: TensorType, threads: u32) -> Result<Option<LayoutTimes>, Error> {
    backend::get()?;
    let Some(cpu) = Cpu::find()? else { return Ok(None) };
    let rows = n_rows(ty);
    let Some(second) = cpu.layout_of(ty, &[COLUMNS as u64, rows as u64]) else { return Ok(None) };
    // SAFETY: takes nothing, and returns a constant.
    let plain = unsafe { sys::ggml_backend_cpu_buffer_type() };
    let measured = || {
        let computer = Computer::new(cpu.device, threads)?;
        let (from_file, copied) = (Matrix::new(ty, rows, plain)?, Matrix::new(ty, rows, second)?);
        let products = [1, LayoutTimes::BATCH].map(|n_tokens| {
            Some([Product::new(&from_file, n_tokens, plain)?, Product::new(&copied, n_tokens, plain)?])
        });
        let [writing, reading] = products;
        let (writing, reading) = (fastest(&computer, &writing?)?, fastest(&computer, &reading?)?);
        let a_byte = |seconds: f64| seconds / from_file.n_bytes as f64;
        let time = |i: usize| WeightTime { reading: a_byte(reading[i]), writing: a_byte(writing[i]) };
        Some(LayoutTimes { from_file: time(0), copied: time(1) })
    };
    Ok(measured())
}

/// Measures how long weights of this type take while a token is written, in seconds for each byte, in the layout that is faster,
/// with `threads` threads. Takes about a tenth of a second and 50 MB. Returns `None` if there is no memory.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub fn writing_time(ty: TensorType, threads: u32) -> Result<Option<f64>, Error> {
    if let Some(LayoutTimes { from_file, copied }) = layout_times(ty, threads)? {
        return Ok(Some(from_file.writing.min(copied.writing)));
    }
    backend::get()?;
    // SAFETY: these take nothing or a constant, and return what lives as long as the process, or null.
    let (device, plain) = unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        (device, sys::ggml_backend_cpu_buffer_type())
    };
    if device.is_null() {
        return Ok(None);
    }
    let measured = || {
        let computer = Computer::new(device, threads)?;
        let matrix = Matrix::new(ty, n_rows(ty), plain)?;
        let [seconds] = fastest(&computer, &[Product::new(&matrix, 1, plain)?])?;
        Some(seconds / matrix.n_bytes as f64)
    };
    Ok(measured())
}

/// Rows of a matrix of about [`BYTES`].
fn n_rows(ty: TensorType) -> usize {
    (BYTES / (COLUMNS / ty.block_len() * ty.block_bytes())).next_multiple_of(64)
}

/// Returns the seconds of the fastest round of each product.
fn fastest<const N: usize>(computer: &Computer, products: &[Product; N]) -> Option<[f64; N]> {
    let mut best = [f64::INFINITY; N];
    // The first round, which wakes the threads and fills the caches, does not count.
    for round in 0..=ROUNDS {
        for (product, best) in products.iter().zip(&mut best) {
            let started = Instant::now();
            computer.compute(product)?;
            if round > 0 {
                *best = best.min(started.elapsed().as_secs_f64().max(1e-9));
            }
        }
    }
    Some(best)
}

/// ggml's computations on the CPU.
struct Computer(sys::ggml_backend_t);

impl Computer {
    fn new(device: sys::ggml_backend_dev_t, threads: u32) -> Option<Self> {
        // SAFETY: the device lives as long as the process. Returns null where it fails.
        let backend = NonNull::new(unsafe { sys::ggml_backend_dev_init(device, std::ptr::null()) })?;
        let threads = i32::try_from(threads.max(1)).ok()?;
        // SAFETY: the backend is that of the CPU, which is all that is asserted.
        unsafe { sys::ggml_backend_cpu_set_n_threads(backend.as_ptr(), threads) };
        Some(Self(backend.as_ptr()))
    }

    fn compute(&self, product: &Product) -> Option<()> {
        // SAFETY: all tensors of the graph have memory, and live as long as the borrow.
        let status = unsafe { sys::ggml_backend_graph_compute(self.0, product.graph) };
        (status == sys::GGML_STATUS_SUCCESS).then_some(())
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and not used after.
        unsafe { sys::ggml_backend_free(self.0) };
    }
}

/// Descriptions of tensors, and the memory of all of them.
struct Tensors {
    context: NonNull<sys::ggml_context>,
    buffer: Option<NonNull<sys::ggml_backend_buffer>>,
}

impl Tensors {
    /// Makes room for the descriptions of `n` tensors and of a graph.
    fn new(n: usize) -> Option<Self> {
        // SAFETY: these take nothing, and return numbers.
        let mem_size = unsafe { n * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead() };
        let params = sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: ggml allocates the context.
        let context = NonNull::new(unsafe { sys::ggml_init(params) })?;
        Some(Self { context, buffer: None })
    }

    /// Gives memory to all tensors described so far.
    fn allocate(&mut self, buffers: sys::ggml_backend_buffer_type_t) -> Option<()> {
        // SAFETY: the context is alive, and its tensors have no memory yet. Returns null where there is none.
        let buffer = unsafe { sys::ggml_backend_alloc_ctx_tensors_from_buft(self.context.as_ptr(), buffers) };
        self.buffer = Some(NonNull::new(buffer)?);
        Some(())
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: made above, and not used after.
        unsafe {
            if let Some(buffer) = self.buffer {
                sys::ggml_backend_buffer_free(buffer.as_ptr());
            }
            sys::ggml_free(self.context.as_ptr());
        }
    }
}

/// Weights, all of them zero: the time does not depend on their values.
struct Matrix {
    weights: *mut sys::ggml_tensor,
    n_bytes: usize,
    _tensors: Tensors,
}

impl Matrix {
    fn new(ty: TensorType, rows: usize, buffers: sys::ggml_backend_buffer_type_t) -> Option<Self> {
        let mut tensors = Tensors::new(1)?;
        let (columns, rows) = (COLUMNS as i64, i64::try_from(rows).ok()?);
        // SAFETY: the context has room for it, and a row is whole blocks of an existing type.
        let weights = unsafe {
            let ty = ty.id() as sys::ggml_type;
            sys::ggml_new_tensor_2d(tensors.context.as_ptr(), ty, columns, rows)
        };
        tensors.allocate(buffers)?;
        // SAFETY: the tensor has memory now; all of it is written, as the second layout demands.
        let n_bytes = unsafe {
            let n_bytes = sys::ggml_nbytes(weights);
            let zeros = vec![0u8; n_bytes];
            sys::ggml_backend_tensor_set(weights, zeros.as_ptr().cast::<c_void>(), 0, n_bytes);
            n_bytes
        };
        Some(Self { weights, n_bytes, _tensors: tensors })
    }
}

/// Weights times the inputs of some tokens.
struct Product<'a> {
    graph: *mut sys::ggml_cgraph,
    _tensors: Tensors,
    _weights: &'a Matrix,
}

impl<'a> Product<'a> {
    fn new(matrix: &'a Matrix, n_tokens: usize, buffers: sys::ggml_backend_buffer_type_t) -> Option<Self> {
        let mut tensors = Tensors::new(2)?;
        let context = tensors.context.as_ptr();
        // SAFETY: the context has room for two tensors and a graph, and the weights are alive as long as the product.
        let (inputs, graph) = unsafe {
            let inputs = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, COLUMNS as i64, n_tokens as i64);
            let product = sys::ggml_mul_mat(context, matrix.weights, inputs);
            let graph = sys::ggml_new_graph(context);
            sys::ggml_build_forward_expand(graph, product);
            (inputs, graph)
        };
        tensors.allocate(buffers)?;
        let zeros = vec![0f32; COLUMNS * n_tokens];
        // SAFETY: the tensor has memory for as many numbers.
        unsafe { sys::ggml_backend_tensor_set(inputs, zeros.as_ptr().cast::<c_void>(), 0, size_of_val(&zeros[..])) };
        Some(Self { graph, _tensors: tensors, _weights: matrix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_timed_where_there_are_two() {
        let mut some = 0;
        for ty in [TensorType::Q4_0, TensorType::Q4_K, TensorType::Q8_0, TensorType::F16] {
            let Some(times) = layout_times(ty, 2).unwrap() else { continue };
            some += 1;
            for time in [times.from_file, times.copied] {
                // From 1 TB to 1 MB a second for a token. Many tokens take longer than one.
                assert!((1e-12..1e-6).contains(&time.writing), "{ty}: {times:?}");
                assert!(time.reading > time.writing, "{ty}: {times:?}");
                assert!(time.reading < time.writing * 2.0 * LayoutTimes::BATCH as f64, "{ty}: {times:?}");
            }
            println!("{ty}: {times:?}");
        }
        assert_eq!(layout_times(TensorType::F16, 1).unwrap(), None);
        for ty in [TensorType::F16, TensorType::Q2_K, TensorType::Q4_0] {
            let seconds = writing_time(ty, 2).unwrap().unwrap();
            assert!((1e-12..1e-6).contains(&seconds), "{ty}: {seconds}");
        }
        assert!(some > 0 || cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))));
    }
}
