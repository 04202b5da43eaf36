//! The second layout: copies of weights in an order that suits the vector instructions of this CPU.
//!
//! llama.cpp makes them while it loads a model, of each matrix whose type it has such a layout for on this CPU, which it
//! calls repacking. They take as many bytes as the original and cannot be given back to the system while the model is
//! loaded, unlike the pages of a mapped file.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use super::{Error, backend};
use crate::gguf::{Gguf, TensorInfo, TensorType};

/// Returns the types of the tensors of `gguf` that llama.cpp copies if all layers are on the CPU, with the bytes of each.
///
/// ggml itself says which types and shapes it copies here. Whether a tensor is multiplied at all is known from its name:
/// all matrices are, but for embeddings that have an output matrix beside them.
///
/// # Errors
/// [`Error::Backend`] if llama.cpp cannot be started.
pub(super) fn copied(gguf: &Gguf) -> Result<Vec<(TensorType, u64)>, Error> {
    let Some(cpu) = Cpu::find()? else { return Ok(Vec::new()) };
    let has_output = gguf.tensors().iter().any(|tensor| tensor.name == "output.weight");
    let is_multiplied = |name: &str| match name {
        "token_embd.weight" => !has_output,
        name => name.ends_with(".weight") && !name.contains("token_embd") && !name.contains("position_embd"),
    };
    // Most tensors of a model have one of few shapes.
    let mut known: Vec<(&TensorInfo, bool)> = Vec::new();
    let mut copied: Vec<(TensorType, u64)> = Vec::new();
    for tensor in gguf.tensors().iter().filter(|tensor| tensor.dims.len() > 1 && is_multiplied(&tensor.name)) {
        let same = known.iter().find(|(other, _)| other.ty == tensor.ty && other.dims == tensor.dims);
        let is_copied = match same {
            Some((_, is_copied)) => *is_copied,
            None => {
                let is_copied = cpu.layout_of(tensor.ty, &tensor.dims).is_some();
                known.push((tensor, is_copied));
                is_copied
            }
        };
        if is_copied {
            let bytes = tensor.n_bytes().unwrap_or(0);
            match copied.iter_mut().find(|(ty, _)| *ty == tensor.ty) {
                Some((_, sum)) => *sum = sum.saturating_add(bytes),
                None => copied.push((tensor.ty, bytes)),
            }
        }
    }
    Ok(copied)
}

/// The processor as ggml's device, and the buffers of its other layouts.
pub(super) struct Cpu {
    pub device: sys::ggml_backend_dev_t,
    buffers: Vec<sys::ggml_backend_buffer_type_t>,
}

impl Cpu {
    /// Returns the processor; `None` if this build has no other layouts.
    pub fn find() -> Result<Option<Self>, Error> {
        type Extra = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
        backend::get()?;
        // SAFETY: takes a constant, and returns a device that lives as long as the process, or null.
        let device = unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) };
        if device.is_null() {
            return Ok(None);
        }
        // SAFETY: the device is alive, and so is its registry; the name ends in NUL.
        let function = unsafe {
            let registry = sys::ggml_backend_dev_backend_reg(device);
            sys::ggml_backend_reg_get_proc_address(registry, c"ggml_backend_dev_get_extra_bufts".as_ptr())
        };
        let Some(function) = NonNull::new(function.cast::<c_void>()) else { return Ok(None) };
        // SAFETY: ggml documents this type for the function of this name.
        let extra: Extra = unsafe { std::mem::transmute::<NonNull<c_void>, Extra>(function) };
        let mut buffers = Vec::new();
        // SAFETY: returns a static list that ends with null, or null.
        unsafe {
            let mut list = extra(device);
            while !list.is_null() && !(*list).is_null() {
                buffers.push(*list);
                list = list.add(1);
            }
        }
        Ok((!buffers.is_empty()).then_some(Self { device, buffers }))
    }

    /// Returns the buffers into which a matrix of this type and shape is copied: the first in which ggml can multiply it.
    /// Whole blocks have to fit in its rows.
    pub fn layout_of(&self, ty: TensorType, dims: &[u64]) -> Option<sys::ggml_backend_buffer_type_t> {
        let mut ne = [1i64; 4];
        for (n, dim) in ne.iter_mut().zip(dims) {
            *n = i64::try_from(*dim).ok()?.max(1);
        }
        // SAFETY: takes nothing, and returns a number.
        let mem_size = 16 * unsafe { sys::ggml_tensor_overhead() };
        let params = sys::ggml_init_params { mem_size, mem_buffer: ptr::null_mut(), no_alloc: true };
        // SAFETY: the context holds at most four tensors without data, and is freed below. ggml asserts that types exist
        // and that rows are whole blocks: callers have checked both. `n_ids` matters to no layout.
        unsafe {
            let context = sys::ggml_init(params);
            if context.is_null() {
                return None;
            }
            let ty = ty.id() as sys::ggml_type;
            let (n_tokens, n_ids) = (512, 1);
            let operation = if dims.len() == 3 {
                let weights = sys::ggml_new_tensor_3d(context, ty, ne[0], ne[1], ne[2]);
                let inputs = sys::ggml_new_tensor_3d(context, sys::GGML_TYPE_F32, ne[0], n_ids, n_tokens);
                let ids = sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_I32, n_ids, n_tokens);
                sys::ggml_mul_mat_id(context, weights, inputs, ids)
            } else {
                let weights = sys::ggml_new_tensor_2d(context, ty, ne[0], ne[1]);
                sys::ggml_mul_mat(
                    context,
                    weights,
                    sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, ne[0], n_tokens),
                )
            };
            let weights = (*operation).src[0];
            let layout = self.buffers.iter().copied().find(|buffers| {
                // An empty buffer, by which ggml knows the layout.
                let buffer = sys::ggml_backend_buft_alloc_buffer(*buffers, 0);
                (*weights).buffer = buffer;
                let supported = !buffer.is_null() && sys::ggml_backend_dev_supports_op(self.device, operation);
                (*weights).buffer = ptr::null_mut();
                sys::ggml_backend_buffer_free(buffer);
                supported
            });
            sys::ggml_free(context);
            layout
        }
    }
}
