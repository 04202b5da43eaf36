//! How a model is loaded: llama.cpp's loading parameters, and the call that takes them.

use std::any::Any;
use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::pages::Pages;
use super::{Error, Lora, backend, devices};

/// Called while a model loads, with a number from 0 to 1. Returns whether to continue.
pub type Progress = Box<dyn FnMut(f32) -> bool>;

/// How to load a model.
pub struct ModelOptions {
    /// Layers to put on a GPU; `None` for all. Ignored if there is no GPU, or no support for it in this build.
    pub gpu_layers: Option<u32>,
    /// How many of these layers each GPU has, in llama.cpp's order; empty to share them by free memory.
    pub split: Vec<u32>,
    /// Whether to use the processor alone. GPUs take some memory and do some work even if no layer is there.
    pub processor_only: bool,
    /// Whether to memory-map the weights instead of reading them into the process's memory.
    pub mmap: bool,
    /// Whether to repack weights into llama.cpp's layouts for this CPU. They are then copied, not mapped. Which is faster
    /// depends on the CPU and on the types of the weights.
    pub repack: bool,
    /// Whether the system has no room for the file beside such copies. What was copied is then taken out of its cache of
    /// the file, too. Ignored where the system does not support it.
    pub uncache_copied: bool,
    /// Whether to check all weights for values that are not finite while loading.
    pub check_tensors: bool,
    /// Whether to load no weights, and only simulate the memory that they would take. Such a model cannot have a
    /// context.
    pub no_alloc: bool,
    /// Tensors to keep in the memory of a given device. The first pattern that matches decides.
    pub tensor_overrides: Vec<TensorOverride>,
    /// Adapters to use with the model, all at once.
    pub lora: Vec<Lora>,
    /// Receives the progress of loading.
    pub progress: Option<Progress>,
}

/// Tensors, and the device that keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorOverride {
    /// A regular expression in C++'s ECMAScript syntax, searched for in the tensor's name.
    pub pattern: String,
    /// The name of a [`super::Device`].
    pub device: String,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            gpu_layers: None,
            split: Vec::new(),
            processor_only: false,
            mmap: true,
            repack: true,
            uncache_copied: false,
            check_tensors: false,
            no_alloc: false,
            tensor_overrides: Vec::new(),
            lora: Vec::new(),
            progress: None,
        }
    }
}

impl fmt::Debug for ModelOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelOptions")
            .field("gpu_layers", &self.gpu_layers)
            .field("split", &self.split)
            .field("processor_only", &self.processor_only)
            .field("mmap", &self.mmap)
            .field("repack", &self.repack)
            .field("uncache_copied", &self.uncache_copied)
            .field("check_tensors", &self.check_tensors)
            .field("no_alloc", &self.no_alloc)
            .field("tensor_overrides", &self.tensor_overrides)
            .field("lora", &self.lora)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}

/// A model in llama.cpp's memory, freed when this is dropped.
pub(super) struct Handle(NonNull<sys::llama_model>);

// SAFETY: a loaded model belongs to no thread in particular. llama.cpp only reads it, but for making a context and loading
// an adapter, which happen under the lock of `backend::making`.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// llama.cpp's model. Valid as long as `self` lives.
    pub fn as_ptr(&self) -> *mut sys::llama_model {
        self.0.as_ptr()
    }

    /// Its vocabulary. Valid as long as `self` lives.
    pub fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: returns the address of a field of a live model.
        unsafe { sys::llama_model_get_vocab(self.as_ptr()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `llama_model_load_from_file` and is owned by this struct alone. Contexts, adapters
        // and tokenizers of the model hold an `Arc` of this, so that none is left.
        unsafe { sys::llama_model_free(self.0.as_ptr()) }
    }
}

/// Loads the model in `files`, of which llama.cpp gets the first and finds the others: all of it, `bytes` of tensors, or only
/// the vocabulary if `bytes` is `None`.
///
/// # Errors
/// [`Error::Path`], [`Error::Device`], [`Error::LoadCancelled`], [`Error::DeviceFull`], and [`Error::Load`] where llama.cpp
/// refuses the file.
pub(super) fn load(files: &[PathBuf], options: &mut ModelOptions, bytes: Option<u64>) -> Result<Handle, Error> {
    backend::get()?;
    let path = files.first().map_or(Path::new(""), PathBuf::as_path);
    let not_a_path = || Error::Path(path.to_path_buf());
    let c_path = path.to_str().and_then(|path| CString::new(path).ok()).ok_or_else(not_a_path)?;
    let overrides = Overrides::new(&options.tensor_overrides)?;
    let mapped = options.mmap && options.repack && !options.no_alloc;
    let pages = bytes.filter(|_| mapped).map(|bytes| Pages::new(files.to_vec(), bytes, options.uncache_copied));
    let progress = options.progress.as_mut();
    let mut watch = Watch { progress, pages, cancelled: false, panic: None };

    // SAFETY: takes nothing, returns a struct.
    let mut params = unsafe { sys::llama_model_default_params() };
    if let Some(n) = options.gpu_layers {
        params.n_gpu_layers = i32::try_from(n).unwrap_or(i32::MAX);
    }
    // SAFETY: takes nothing, returns the number of devices that llama.cpp reads shares of.
    let mut shares = vec![0f32; unsafe { sys::llama_max_devices() }];
    if !options.split.is_empty() && options.split.len() <= shares.len() {
        shares.iter_mut().zip(&options.split).for_each(|(share, n)| *share = *n as f32);
        params.tensor_split = shares.as_ptr();
    }
    let mut no_devices: [sys::ggml_backend_dev_t; 1] = [std::ptr::null_mut()];
    if options.processor_only {
        params.devices = no_devices.as_mut_ptr();
    }
    params.vocab_only = bytes.is_none();
    params.use_extra_bufts = options.repack;
    params.check_tensors = options.check_tensors;
    params.no_alloc = options.no_alloc;
    if !options.mmap || options.no_alloc {
        params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
    }
    if !overrides.list.is_empty() {
        params.tensor_buft_overrides = overrides.list.as_ptr();
    }
    params.progress_callback = Some(on_progress);
    params.progress_callback_user_data = std::ptr::from_mut(&mut watch).cast();
    let _making = backend::making();
    let (model, heard) = backend::listen(|| {
        // SAFETY: the path ends in NUL; the lists, the shares and the watch outlive the call, after which llama.cpp does not look at
        // them again. Returns null where the file is broken, a tensor is missing, memory runs out (it catches its own
        // exceptions) or the callback says no. Asserts on some metadata and vocabularies: `ModelFile` has refused these.
        unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), params) }
    });
    let Watch { cancelled, panic, pages, .. } = watch;
    if let Some(pages) = pages {
        pages.done();
    }
    // Owned from here on, whatever comes next.
    let model = NonNull::new(model).map(Handle);
    if let Some(panic) = panic {
        drop(model);
        resume_unwind(panic);
    }
    match model {
        Some(model) => Ok(model),
        None if cancelled => Err(Error::LoadCancelled),
        None => {
            let refused = || Error::Load { path: path.to_path_buf(), reason: heard.reason() };
            Err(devices::full(&heard, "the weights").unwrap_or_else(refused))
        }
    }
}

/// What happens during a call that loads a model, and its outcome.
struct Watch<'a> {
    progress: Option<&'a mut Progress>,
    pages: Option<Pages>,
    cancelled: bool,
    panic: Option<Box<dyn Any + Send>>,
}

/// Called by llama.cpp while it loads. Returns whether to continue.
unsafe extern "C" fn on_progress(part: f32, data: *mut c_void) -> bool {
    // SAFETY: the pointer that `load` passed; llama.cpp calls this on the thread that loads, one call at a time.
    let watch = unsafe { &mut *data.cast::<Watch<'_>>() };
    if watch.cancelled {
        return false;
    }
    // No panic may cross into C++. It resumes when C++ has returned.
    let step = || {
        if let Some(pages) = &mut watch.pages {
            pages.at(part);
        }
        watch.progress.as_mut().is_none_or(|progress| progress(part))
    };
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(go_on) => watch.cancelled = !go_on,
        Err(panic) => (watch.cancelled, watch.panic) = (true, Some(panic)),
    }
    !watch.cancelled
}

/// The overrides in the form that llama.cpp needs: a list that ends with a null pattern, or an empty list.
struct Overrides {
    list: Vec<sys::llama_model_tensor_buft_override>,
    // The list points into these.
    _patterns: Vec<CString>,
}

impl Overrides {
    fn new(overrides: &[TensorOverride]) -> Result<Self, Error> {
        let mut patterns = Vec::new();
        let mut list = Vec::new();
        for TensorOverride { pattern, device } in overrides {
            // No name holds a NUL, so that a pattern with one matches nothing.
            let Ok(pattern) = CString::new(pattern.as_str()) else { continue };
            let start: *const c_char = pattern.as_ptr();
            list.push(sys::llama_model_tensor_buft_override { pattern: start, buft: devices::buffer_type(device)? });
            patterns.push(pattern);
        }
        if !list.is_empty() {
            let (pattern, buft) = (std::ptr::null(), std::ptr::null_mut());
            list.push(sys::llama_model_tensor_buft_override { pattern, buft });
        }
        Ok(Self { list, _patterns: patterns })
    }
}
