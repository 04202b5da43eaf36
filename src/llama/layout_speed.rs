//! How fast matrices of a type are multiplied as they are in files, and in the second layout: see `layout`.
//!
//! Neither is always the faster one. Which one is depends on the type, on the instructions of the CPU, and on which of ggml's
//! functions for them were improved last, so it is measured: one matrix in each layout, multiplied by turns.

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::kernels::{Computer, Graph, Tensors, fastest};
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
        let fastest = |[a, b]: [Product; 2]| fastest(&computer, [&a.graph, &b.graph]);
        let (writing, reading) = (fastest(writing?)?, fastest(reading?)?);
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
    // SAFETY: takes nothing, and returns a constant.
    let plain = unsafe { sys::ggml_backend_cpu_buffer_type() };
    let measured = || {
        let computer = Computer::of_cpu(threads)?;
        let matrix = Matrix::new(ty, n_rows(ty), plain)?;
        let [seconds] = fastest(&computer, [&Product::new(&matrix, 1, plain)?.graph])?;
        Some(seconds / matrix.n_bytes as f64)
    };
    Ok(measured())
}

/// Rows of a matrix of about [`BYTES`].
fn n_rows(ty: TensorType) -> usize {
    (BYTES / (COLUMNS / ty.block_len() * ty.block_bytes())).next_multiple_of(64)
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
            sys::ggml_new_tensor_2d(tensors.as_ptr(), ty, columns, rows)
        };
        tensors.allocate(buffers)?;
        // SAFETY: the tensor has memory now; all of it is written, as the second layout demands.
        let n_bytes = unsafe { tensors.fill_with_zeros(weights) };
        Some(Self { weights, n_bytes, _tensors: tensors })
    }
}

/// Weights times the inputs of some tokens.
struct Product<'a> {
    graph: Graph,
    _weights: &'a Matrix,
}

impl<'a> Product<'a> {
    fn new(matrix: &'a Matrix, n_tokens: usize, buffers: sys::ggml_backend_buffer_type_t) -> Option<Self> {
        let mut tensors = Tensors::new(2)?;
        let context = tensors.as_ptr();
        // SAFETY: the context has room for two tensors and a graph, and the weights are alive as long as the product.
        let (inputs, graph) = unsafe {
            let inputs = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, COLUMNS as i64, n_tokens as i64);
            let product = sys::ggml_mul_mat(context, matrix.weights, inputs);
            let graph = sys::ggml_new_graph(context);
            sys::ggml_build_forward_expand(graph, product);
            (inputs, graph)
        };
        tensors.allocate(buffers)?;
        // SAFETY: the tensor has memory, and all tensors of the graph are of this context or of the matrix.
        let graph = unsafe {
            tensors.fill_with_zeros(inputs);
            Graph::new(graph, tensors)
        };
        Some(Self { graph, _weights: matrix })
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
