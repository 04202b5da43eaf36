//! Single operations on the CPU, computed by themselves to be timed.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use llama_cpp_sys_2 as sys;

/// Rounds of which the fastest counts: other programs only make them slower.
const ROUNDS: usize = 5;

/// Returns the seconds of the fastest round of each graph. They are computed by turns.
pub(super) fn fastest<const N: usize>(computer: &Computer, graphs: [&Graph; N]) -> Option<[f64; N]> {
    let mut best = [f64::INFINITY; N];
    // The first round, which wakes the threads and fills the caches, does not count.
    for round in 0..=ROUNDS {
        for (graph, best) in graphs.iter().zip(&mut best) {
            let started = Instant::now();
            computer.compute(graph)?;
            if round > 0 {
                *best = best.min(started.elapsed().as_secs_f64().max(1e-9));
            }
        }
    }
    Some(best)
}

/// Rounds of a median: at least so many, and more while they take no longer than this.
const LEAST_ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(600);
const MOST_ROUNDS: usize = 41;

/// Returns the seconds of the median round of each graph, which is what they take beside other programs. They are computed by
/// turns.
pub(super) fn median<const N: usize>(computer: &Computer, graphs: [&Graph; N]) -> Option<[f64; N]> {
    let mut times = [const { Vec::new() }; N];
    let begun = Instant::now();
    // The first round, which wakes the threads and fills the caches, does not count.
    for round in 0..=MOST_ROUNDS {
        if round > LEAST_ROUNDS && begun.elapsed() > TIME {
            break;
        }
        for (graph, times) in graphs.iter().zip(&mut times) {
            let started = Instant::now();
            computer.compute(graph)?;
            if round > 0 {
                times.push(started.elapsed().as_secs_f64());
            }
        }
    }
    Some(times.map(|mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(0.0)
    }))
}

/// ggml's computations on the CPU.
pub(super) struct Computer(sys::ggml_backend_t);

impl Computer {
    /// Returns one that computes with `threads` threads on `device`, which has to be that of the CPU; `None` where it fails.
    pub fn new(device: sys::ggml_backend_dev_t, threads: u32) -> Option<Self> {
        // SAFETY: the device lives as long as the process. Returns null where it fails.
        let backend = NonNull::new(unsafe { sys::ggml_backend_dev_init(device, std::ptr::null()) })?;
        let threads = i32::try_from(threads.max(1)).ok()?;
        // SAFETY: the backend is that of the CPU, which is all that is asserted.
        unsafe { sys::ggml_backend_cpu_set_n_threads(backend.as_ptr(), threads) };
        Some(Self(backend.as_ptr()))
    }

    /// Returns one for the CPU that ggml finds first.
    pub fn of_cpu(threads: u32) -> Option<Self> {
        // SAFETY: takes a constant, and returns what lives as long as the process, or null.
        let device = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        (!device.is_null()).then(|| Self::new(device, threads))?
    }

    fn compute(&self, graph: &Graph) -> Option<()> {
        // SAFETY: all tensors of the graph have memory, and live as long as the borrow.
        let status = unsafe { sys::ggml_backend_graph_compute(self.0, graph.graph) };
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
pub(super) struct Tensors {
    context: NonNull<sys::ggml_context>,
    buffer: Option<NonNull<sys::ggml_backend_buffer>>,
}

impl Tensors {
    /// Makes room for the descriptions of `n` tensors and of a graph.
    pub fn new(n: usize) -> Option<Self> {
        // SAFETY: these take nothing, and return numbers.
        let mem_size = unsafe { n * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead() };
        let params = sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: ggml allocates the context.
        let context = NonNull::new(unsafe { sys::ggml_init(params) })?;
        Some(Self { context, buffer: None })
    }

    /// ggml's context. Valid as long as `self` lives.
    pub fn as_ptr(&self) -> *mut sys::ggml_context {
        self.context.as_ptr()
    }

    /// Gives memory to all tensors described so far.
    pub fn allocate(&mut self, buffers: sys::ggml_backend_buffer_type_t) -> Option<()> {
        // SAFETY: the context is alive, and its tensors have no memory yet. Returns null where there is none.
        let buffer = unsafe { sys::ggml_backend_alloc_ctx_tensors_from_buft(self.context.as_ptr(), buffers) };
        self.buffer = Some(NonNull::new(buffer)?);
        Some(())
    }

    /// Writes zeros to all of a tensor. Returns its bytes.
    ///
    /// # Safety
    /// `tensor` is of this context, and has memory.
    pub unsafe fn fill_with_zeros(&self, tensor: *mut sys::ggml_tensor) -> usize {
        // SAFETY: as this function's contract says.
        unsafe {
            let n_bytes = sys::ggml_nbytes(tensor);
            let zeros = vec![0u8; n_bytes];
            sys::ggml_backend_tensor_set(tensor, zeros.as_ptr().cast::<c_void>(), 0, n_bytes);
            n_bytes
        }
    }
}

impl Tensors {
    /// Writes these bytes to the beginning of a tensor.
    ///
    /// # Safety
    /// `tensor` is of this context, and has memory for them.
    pub unsafe fn write(&self, tensor: *mut sys::ggml_tensor, bytes: &[u8]) {
        // SAFETY: as this function's contract says.
        unsafe { sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast::<c_void>(), 0, bytes.len()) };
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

/// Operations, and the tensors that they make.
pub(super) struct Graph {
    graph: *mut sys::ggml_cgraph,
    _tensors: Tensors,
}

impl Graph {
    /// Takes a graph that was made in the context of `tensors`.
    ///
    /// # Safety
    /// All tensors of the graph have memory, and belong to `tensors`, or live at least as long as what is returned.
    pub unsafe fn new(graph: *mut sys::ggml_cgraph, tensors: Tensors) -> Self {
        Self { graph, _tensors: tensors }
    }
}
