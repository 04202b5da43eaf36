//! Observes an evaluation: every operation of llama.cpp's graph, with its inputs and its result.
//!
//! ```text
//!  llama_decode ──► for each node of the graph, in the order of computation:
//!                     wants(node)?  no: computed together with those around it
//!                                   yes: computed, then sees(node)
//! ```
//!
//! llama.cpp calls `cb_eval` of its `llama_context_params` twice for a node: with `ask` before it is computed, and if
//! the answer was yes, after that. Every wanted node ends a batch of work for all threads, so an observer that wants
//! every node slows the evaluation down.
//!
//! Source: `ggml_backend_sched_compute_splits` in ggml's `ggml-backend.cpp`.

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use crate::quant::float::{bf16_to_f32, f16_to_f32};

/// Sees what a [`super::Context`] computes, on the thread that evaluates.
pub trait Observer: Send {
    /// Returns whether it wants to see this node. The node is not computed yet: it has a shape and a name, but no numbers.
    fn wants(&mut self, node: Node<'_>) -> bool;

    /// Sees a node that it wanted, after it was computed. [`ControlFlow::Break`] ends the evaluation with
    /// [`super::Error::Stopped`].
    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()>;
}

/// A tensor of llama.cpp's graph: an operation with its result, or a weight.
#[derive(Clone, Copy)]
pub struct Node<'a>(&'a sys::ggml_tensor);

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.op(), self.name(), self.dims())
    }
}

impl<'a> Node<'a> {
    /// Returns its name: `ffn_out-3` is the output of layer 3's feed-forward part, `blk.3.ffn_down.weight` a weight. What
    /// llama.cpp adds to the name of a copy on another device, as in `CUDA0#blk.3.ffn_down.weight#0`, is removed.
    pub fn name(self) -> &'a str {
        // SAFETY: `c_char` and `u8` have the same size, and any bytes are both.
        let bytes = unsafe { std::slice::from_raw_parts(self.0.name.as_ptr().cast::<u8>(), self.0.name.len()) };
        // llama.cpp ends names with a zero byte, and truncates long ones even within a character.
        let name = CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes);
        let name = match std::str::from_utf8(name) {
            Ok(name) => name,
            Err(error) => std::str::from_utf8(&name[..error.valid_up_to()]).unwrap_or_default(),
        };
        without_device(name)
    }

    /// Returns its operation by ggml's name: `MUL_MAT`, `RMS_NORM`; `NONE` for a weight.
    pub fn op(self) -> &'static str {
        // SAFETY: the number is one that ggml wrote itself, and the names are its constants.
        let name = unsafe { sys::ggml_op_name(self.0.op) };
        if name.is_null() {
            return "";
        }
        // SAFETY: a constant string that ends in NUL.
        unsafe { CStr::from_ptr(name) }.to_str().unwrap_or_default()
    }

    /// Returns whether it is a product of matrices: of source 0, which mostly is a weight, and source 1.
    pub fn is_product(self) -> bool {
        self.0.op == sys::GGML_OP_MUL_MAT
    }

    /// Returns whether it is a product with matrices that a router has chosen, as in mixtures of experts.
    pub fn is_routed_product(self) -> bool {
        self.0.op == sys::GGML_OP_MUL_MAT_ID
    }

    /// Returns its sizes, fastest dimension first; 1 for the dimensions that it lacks.
    pub fn dims(self) -> [usize; 4] {
        self.0.ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// Returns one of the nodes that it is computed from.
    pub fn source(self, index: usize) -> Option<Node<'a>> {
        let source = *self.0.src.get(index)?;
        // SAFETY: null, or a tensor of the same graph, which lives as long as this one.
        unsafe { source.as_ref() }.map(Node)
    }
}

/// Returns where each row begins, in bytes from the beginning of the tensor. `nb` are ggml's strides.
fn rows(dims: [usize; 4], nb: [usize; 4]) -> impl Iterator<Item = usize> {
    (0..dims[3])
        .flat_map(move |l| (0..dims[2]).flat_map(move |k| (0..dims[1]).map(move |j| j * nb[1] + k * nb[2] + l * nb[3])))
}

/// A buffer for numbers that have to be copied, kept from one node to the next.
#[derive(Debug, Default)]
pub struct Room {
    bytes: Vec<u8>,
    floats: Vec<f32>,
}

impl Room {
    /// Returns the numbers of `node`, in the order of its dimensions; `None` if they are not floats of 32 or 16 bits,
    /// or not in memory.
    ///
    /// They are borrowed if they are contiguous 32-bit floats in main memory, and otherwise copied: from a GPU, from a
    /// view with strides, from 16 bits. Call this only in [`Observer::sees`], for its node and the sources of that
    /// node. Other nodes may not be computed yet, or may already be overwritten.
    pub fn read<'b, 'a: 'b>(&'b mut self, node: Node<'a>) -> Option<&'b [f32]> {
        let tensor = node.0;
        let number_bytes = match tensor.type_ {
            sys::GGML_TYPE_F32 => 4,
            sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16 => 2,
            _ => return None,
        };
        let dims = node.dims();
        let n = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
        // SAFETY: null, or the tensor of which this is a view, alive as long as this one.
        let owner = unsafe { tensor.view_src.as_ref() }.unwrap_or(tensor);
        if n == 0 || tensor.data.is_null() || owner.buffer.is_null() {
            return None;
        }
        // SAFETY: the buffer is that of a live tensor.
        let is_here = unsafe { sys::ggml_backend_buffer_is_host(owner.buffer) };
        // SAFETY: the tensor is alive.
        let (n_bytes, contiguous) = unsafe { (sys::ggml_nbytes(tensor), sys::ggml_is_contiguous(tensor)) };
        let floats = tensor.data.cast::<f32>();
        if is_here && contiguous && tensor.type_ == sys::GGML_TYPE_F32 && floats.is_aligned() {
            // SAFETY: a contiguous tensor of `n` floats in this machine's memory, which nothing writes to before the
            // callback returns: the borrow is no longer than the node's, and that ends with it.
            return Some(unsafe { std::slice::from_raw_parts(floats, n) });
        }
        self.bytes.clear();
        self.bytes.resize(n_bytes, 0);
        // SAFETY: the tensor has data and a buffer, and there is room for all of its bytes.
        unsafe { sys::ggml_backend_tensor_get(tensor, self.bytes.as_mut_ptr().cast(), 0, n_bytes) };
        self.floats.clear();
        self.floats.reserve(n);
        for at in rows(dims, tensor.nb) {
            for column in 0..dims[0] {
                let at = at + column * tensor.nb[0];
                let number = match (tensor.type_, self.bytes.get(at..at + number_bytes)?) {
                    (sys::GGML_TYPE_F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                    (sys::GGML_TYPE_F16, &[a, b]) => f16_to_f32(u16::from_le_bytes([a, b])),
                    (_, &[a, b]) => bf16_to_f32(u16::from_le_bytes([a, b])),
                    _ => return None,
                };
                self.floats.push(number);
            }
        }
        Some(&self.floats)
    }
}

/// `CUDA0#blk.0.attn_k.weight#0` without the device.
fn without_device(name: &str) -> &str {
    match name.split_once('#') {
        Some((_, rest)) => rest.split_once('#').map_or(rest, |(name, _)| name),
        None => name,
    }
}

/// An observer and its outcome. llama.cpp has a pointer to it as long as its context lives.
struct Watch {
    observer: Box<dyn Observer>,
    /// It ended the evaluation.
    stopped: bool,
    /// The payload, where it panicked.
    panic: Option<Box<dyn Any + Send>>,
}

/// Owns a [`Watch`]. It is a pointer and not a `Box`, since llama.cpp's copy of the pointer has to stay valid when this is
/// moved.
pub(super) struct Watching(NonNull<Watch>);

// SAFETY: it owns what it points to, and that may go to another thread: an observer is `Send`.
unsafe impl Send for Watching {}

impl Watching {
    pub fn new(observer: Box<dyn Observer>) -> Self {
        let watch = Box::new(Watch { observer, stopped: false, panic: None });
        Self(NonNull::from(Box::leak(watch)))
    }

    /// Asks a context that is yet to be made to call the observer. The context has to be freed before this is dropped.
    pub fn ask(&self, params: &mut sys::llama_context_params) {
        params.cb_eval = Some(on_node);
        params.cb_eval_user_data = self.0.as_ptr().cast();
    }

    /// Returns how the last evaluation went.
    pub fn end(&mut self) -> Ending {
        // SAFETY: this owns the watch, and no evaluation is running.
        let watch = unsafe { self.0.as_mut() };
        let stopped = std::mem::take(&mut watch.stopped);
        match watch.panic.take() {
            Some(panic) => Ending::Panicked(panic),
            None if stopped => Ending::Stopped,
            None => Ending::WentOn,
        }
    }
}

/// How an observed evaluation went.
pub(super) enum Ending {
    /// To its end.
    WentOn,
    /// The observer stopped it.
    Stopped,
    /// The observer panicked, with this payload.
    Panicked(Box<dyn Any + Send>),
}

impl Drop for Watching {
    fn drop(&mut self) {
        // SAFETY: made from a `Box` in `new` and owned by this alone; the context that had the other pointer has been freed.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Called by llama.cpp for every node. Returns whether the node is wanted when `ask` is set, and whether to go on when not.
unsafe extern "C" fn on_node(tensor: *mut sys::ggml_tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the pointer that the context got in `Watching::ask`, valid as long as the context. Evaluations take
    // `&mut Context`, and call this for one node at a time, on one thread.
    let watch = unsafe { &mut *data.cast::<Watch>() };
    if watch.stopped {
        return false;
    }
    // SAFETY: a tensor of the graph that is being computed, which nothing changes before this returns.
    let Some(node) = (unsafe { tensor.as_ref() }).map(Node) else { return false };
    // No panic may cross into C++. It goes on when C++ has returned.
    let result = catch_unwind(AssertUnwindSafe(|| match ask {
        true => watch.observer.wants(node),
        false => watch.observer.sees(node).is_continue(),
    }));
    match result {
        Ok(answer) => {
            watch.stopped |= !ask && !answer;
            answer
        }
        Err(panic) => {
            watch.panic = Some(panic);
            watch.stopped = true;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_no_part_of_a_name() {
        assert_eq!(without_device("blk.0.attn_k.weight"), "blk.0.attn_k.weight");
        assert_eq!(without_device("CUDA0#blk.0.attn_k.weight#0"), "blk.0.attn_k.weight");
        assert_eq!(without_device("CUDA0#blk.0.attn_k.weight"), "blk.0.attn_k.weight");
        assert_eq!(without_device("#"), "");
    }

    #[test]
    fn rows_are_found_by_their_strides() {
        assert_eq!(rows([8, 2, 1, 2], [4, 100, 0, 1000]).collect::<Vec<_>>(), [0, 100, 1000, 1100]);
    }
}
