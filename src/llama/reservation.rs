//! What a context would take, asked of llama.cpp itself: it plans its computations and their memory, and allocates none.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::{ContextOptions, Error, Model, backend};

/// The memory that llama.cpp plans for a context, beside the KV cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Bytes for intermediate results, by the name of the memory that they are in: that of a device, or of memory of this
    /// machine that a device can read (`CUDA_Host`).
    pub compute: Vec<(String, u64)>,
    /// Bytes of main memory for the logits of the rows that are wanted at least, one a sequence.
    pub output: u64,
}

impl Reservation {
    /// Returns the sum of all bytes.
    pub fn total(&self) -> u64 {
        self.compute.iter().fold(self.output, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// How often llama.cpp is asked if nothing was heard.
const TRIES: usize = 3;

impl Model {
    /// Asks llama.cpp what a context of this model would take, with the model's layers where they are. Takes milliseconds, and
    /// next to no memory if the model was loaded with [`super::ModelOptions::no_alloc`]. Sizes are at most 0.01 MiB too large,
    /// and never too small.
    ///
    /// # Errors
    /// If an option is out of range, or llama.cpp cannot make such a context of the model. [`Error::Unsupported`] if only the
    /// vocabulary was loaded, or the weights were: their context would be allocated.
    pub fn reservation(&self, options: &ContextOptions) -> Result<Reservation, Error> {
        backend::get()?;
        options.check()?;
        if !self.is_simulated() {
            let what = "a model whose memory is not simulated";
            return Err(Error::Unsupported { path: self.path().to_path_buf(), what });
        }
        // Another user of llama.cpp in this process may take the log at any moment.
        for _ in 0..TRIES {
            let found = self.reserve(options)?;
            if !found.compute.is_empty() {
                return Ok(found);
            }
        }
        let reason = "llama.cpp did not say what it reserves".to_string();
        Err(Error::Context { n_ctx: options.n_ctx, reason })
    }

    /// Makes a context, and returns what is heard of its memory.
    fn reserve(&self, options: &ContextOptions) -> Result<Reservation, Error> {
        let _making = backend::making();
        let (context, heard) = backend::listen_for(|| {
            // SAFETY: the model is alive, and no other context is being made. The parameters have no callbacks, and their
            // numbers were checked. Returns null where the model does not support an option.
            unsafe { sys::llama_init_from_model(self.as_ptr(), options.params()) }
        });
        let failed = || Error::Context { n_ctx: options.n_ctx, reason: heard.reason() };
        let context = NonNull::new(context).ok_or_else(failed)?;
        // SAFETY: made above, and not used after.
        unsafe { sys::llama_free(context.as_ptr()) };
        let mut found = Reservation::default();
        for size in heard.sizes() {
            match size.what.as_str() {
                "output" => found.output = found.output.saturating_add(size.bytes),
                "compute" => found.compute.push((size.name, size.bytes)),
                _ => {}
            }
        }
        Ok(found)
    }
}
