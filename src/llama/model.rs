//! A model: a GGUF file that nibble has accepted and llama.cpp has mapped.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LlamaModelLoadError, llama_backend::LlamaBackend};
use llama_cpp_sys_2 as sys;

use super::lora::{self, Adapter, Lora};
use super::session::SessionOptions;
use super::tokenizer::Codec;
use super::{Error, backend, preflight};
use crate::engine::prompt_cache;
use crate::gguf::{Gguf, Metadata};
use crate::placement::{Machine, Shape};
use crate::vocab::Pieces;
use crate::vocab::Tokenizer;

/// Called while a model loads, with a number from 0 to 1. Gives whether to go on.
pub type Progress = Box<dyn FnMut(f32) -> bool>;

/// How to load a model.
#[derive(Default)]
pub struct ModelOptions {
    /// Layers to put on a GPU; `None` puts all there. Without a GPU, or a build for one, it means nothing.
    pub gpu_layers: Option<u32>,
    /// Load a model that does not fit in memory: its weights are then read from disk again and again.
    pub allow_swap: bool,
    /// The session that will be made: its memory counts in the check before loading.
    pub session: SessionOptions,
    /// Adapters to use with it, all at once.
    pub lora: Vec<Lora>,
    /// Bytes of memory that other models of this process take: see [`Model::memory`].
    pub beside: u64,
    /// Told how far loading is.
    pub progress: Option<Progress>,
}

impl fmt::Debug for ModelOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelOptions")
            .field("gpu_layers", &self.gpu_layers)
            .field("allow_swap", &self.allow_swap)
            .field("session", &self.session)
            .field("lora", &self.lora)
            .field("beside", &self.beside)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}

/// A loaded model. Cloning it is cheap, and the weights go when the last clone and the last session do.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    llama: Arc<LlamaModel>,
    codec: Codec,
    path: PathBuf,
    metadata: Metadata,
    shape: Shape,
    n_vocab: u32,
    // None where only the vocabulary was loaded.
    weights: Option<Weights>,
}

/// How the weights were loaded, and what was loaded beside them.
struct Weights {
    // Layers on a GPU.
    gpu_layers: u64,
    // They go with the model.
    adapters: Vec<Adapter>,
    // Tells apart what the adapters make of the model.
    lora: Vec<u8>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("path", &self.inner.path).field("shape", &self.inner.shape).finish()
    }
}

impl Model {
    /// Loads the model at `path`: a GGUF file, or any part of a split one. The weights are mapped, not read.
    ///
    /// # Errors
    /// Where nibble's reader refuses the file, the machine's memory does not hold the model, or llama.cpp cannot load
    /// it.
    pub fn load(path: &Path, options: ModelOptions) -> Result<Self, Error> {
        let llama_backend = backend::get()?;
        let gguf = Gguf::open(path)?;
        if gguf.metadata().str("general.type") == Some("adapter") {
            let what = "an adapter, which changes a model and is none";
            return Err(Error::Unsupported { path: path.to_path_buf(), what });
        }
        // llama.cpp ends the process over some vocabularies, such as one that has a piece twice.
        let pieces = Pieces::from_metadata(gguf.metadata())?;
        preflight::check(path, gguf.metadata(), gguf.tensors())?;
        let mut shape = Shape::of(&gguf);
        let lora = options.lora.iter().map(|lora| lora::check(lora, &gguf)).collect::<Result<Vec<_>, _>>()?;
        shape.weight_bytes = lora.iter().fold(shape.weight_bytes, |sum, lora| sum.saturating_add(lora.bytes));
        options.session.check()?;
        // llama.cpp finds the other parts of a split model from the first.
        let first = gguf.paths().next().unwrap_or(path).to_path_buf();

        let gpu_layers = match options.gpu_layers {
            _ if !llama_backend.supports_gpu_offload() => 0,
            None => u64::MAX,
            Some(n) => n.into(),
        };
        if !options.allow_swap
            && let Some(machine) = Machine::this()
        {
            machine
                .check(&shape, &options.session, gpu_layers, options.beside)
                .map_err(|e| Error::Memory(Box::new(e)))?;
        }

        let mut params = LlamaModelParams::default();
        if let Some(n) = options.gpu_layers {
            params = params.with_n_gpu_layers(n);
        }
        let llama = load(llama_backend, &first, params, options.progress)?;
        // SAFETY: the pointer is that of a live model; the functions only read it.
        let (encodes, decodes) = unsafe {
            let model = pointer(&llama);
            (sys::llama_model_has_encoder(model), sys::llama_model_has_decoder(model))
        };
        if encodes || !decodes {
            let what = "a model with an encoder, as translation and embedding models have";
            return Err(Error::Unsupported { path: path.to_path_buf(), what });
        }
        // Before any context is made, which reserves what they need too.
        let adapters = lora.iter().map(|lora| lora::load(pointer(&llama), lora)).collect::<Result<_, _>>()?;
        let weights = Weights { gpu_layers, adapters, lora: lora::identity(&lora) };
        Self::with_llama(path, &gguf, pieces, shape, llama, Some(weights))
    }

    /// Loads the vocabulary alone: enough for [`Self::codec`], in a moment and a few megabytes.
    ///
    /// # Errors
    /// Where nibble's reader refuses the file, or llama.cpp cannot load it.
    pub fn load_vocabulary(path: &Path) -> Result<Self, Error> {
        let llama_backend = backend::get()?;
        let gguf = Gguf::open(path)?;
        let pieces = Pieces::from_metadata(gguf.metadata())?;
        let first = gguf.paths().next().unwrap_or(path);
        let llama = load(llama_backend, first, LlamaModelParams::default().with_vocab_only(true), None)?;
        let shape = Shape::of(&gguf);
        Self::with_llama(path, &gguf, pieces, shape, llama, None)
    }

    fn with_llama(
        path: &Path,
        gguf: &Gguf,
        pieces: Pieces,
        shape: Shape,
        llama: LlamaModel,
        weights: Option<Weights>,
    ) -> Result<Self, Error> {
        let llama = Arc::new(llama);
        let n_vocab = u32::try_from(llama.n_vocab()).unwrap_or(0);
        if n_vocab as usize != pieces.len() {
            let reason = format!("it counts {n_vocab} tokens where the file lists {}", pieces.len());
            return Err(Error::Load { path: path.to_path_buf(), reason });
        }
        let metadata = gguf.metadata().clone();
        let codec = Codec::new(pieces, llama.clone(), &metadata)?;
        Ok(Self {
            inner: Arc::new(Inner { llama, codec, path: path.to_path_buf(), metadata, shape, n_vocab, weights }),
        })
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What the file says of the model.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// The numbers its memory follows from.
    pub fn shape(&self) -> &Shape {
        &self.inner.shape
    }

    /// Bytes of the machine's memory that it takes with a session of these options: an estimate.
    pub fn memory(&self, session: &SessionOptions) -> u64 {
        let shape = &self.inner.shape;
        let gpu_layers = self.inner.weights.as_ref().map_or(0, |weights| weights.gpu_layers);
        shape.estimate(session).on_host(gpu_layers, shape.n_layers).total()
    }

    /// Tokens in the vocabulary: the length of a row of logits.
    pub fn n_vocab(&self) -> u32 {
        self.inner.n_vocab
    }

    /// Tokens it was trained on at a time; `None` where the file does not say.
    pub fn n_ctx_train(&self) -> Option<u32> {
        self.inner.shape.n_ctx_train
    }

    /// Its tokenizer.
    pub fn codec(&self) -> &dyn Tokenizer {
        &self.inner.codec
    }

    /// Whether the end of what it has read can be taken back: not from models that keep one state for all of it.
    pub fn can_be_cut(&self) -> bool {
        // SAFETY: the pointer is that of a live model; the functions only read it.
        unsafe { !sys::llama_model_is_recurrent(self.pointer()) && !sys::llama_model_is_hybrid(self.pointer()) }
    }

    /// Whether it was loaded with its weights.
    pub(crate) fn has_weights(&self) -> bool {
        self.inner.weights.is_some()
    }

    /// The adapters it is used with.
    pub(super) fn adapters(&self) -> &[Adapter] {
        self.inner.weights.as_ref().map_or(&[], |weights| &weights.adapters)
    }

    /// What the adapters make of it: the same bytes for the same adapters and scales.
    pub(crate) fn lora_identity(&self) -> &[u8] {
        self.inner.weights.as_ref().map_or(&[], |weights| &weights.lora)
    }

    /// Tells it from other models, and from itself with other adapters, without reading all of its file: hexadecimal.
    ///
    /// # Errors
    /// When its file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(prompt_cache::fingerprint(self)?.as_bytes());
        hasher.update(self.lora_identity());
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// llama.cpp's model. Good as long as `self` or a clone of it lives.
    pub(crate) fn pointer(&self) -> *mut sys::llama_model {
        pointer(&self.inner.llama)
    }
}

fn load(
    backend: &LlamaBackend,
    path: &Path,
    mut params: LlamaModelParams,
    progress: Option<Progress>,
) -> Result<LlamaModel, Error> {
    if path.to_str().is_none() {
        return Err(Error::Path(path.to_path_buf()));
    }
    let cancelled = Arc::new(std::sync::atomic::AtomicBool::new(false));
    if let Some(mut progress) = progress {
        let cancelled = cancelled.clone();
        params = params.with_progress_callback(move |part| {
            let go_on = progress(part);
            cancelled.store(!go_on, std::sync::atomic::Ordering::Relaxed);
            go_on
        });
    }
    let params = pin!(params);
    let _making = backend::making();
    let (loaded, heard) = backend::listen(|| LlamaModel::load_from_file(backend, path, &params));
    loaded.map_err(|error| match error {
        LlamaModelLoadError::NullResult if cancelled.load(std::sync::atomic::Ordering::Relaxed) => Error::LoadCancelled,
        LlamaModelLoadError::NullResult => Error::Load { path: path.to_path_buf(), reason: heard.reason() },
        other => Error::Load { path: path.to_path_buf(), reason: other.to_string() },
    })
}

/// The pointer inside, which the safe crate keeps to itself.
fn pointer(model: &LlamaModel) -> *mut sys::llama_model {
    const { assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>()) }
    // SAFETY: in llama-cpp-2 0.1.160, to which Cargo.toml holds us, `LlamaModel` is `repr(transparent)` over `Ptr`,
    // which is `repr(transparent)` over a `NonNull<llama_model>`: its bytes are the pointer.
    unsafe { *std::ptr::from_ref(model).cast::<*mut sys::llama_model>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_model_is_refused_before_llama_cpp_sees_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "this is not a model").unwrap();
        let error = Model::load(file.path(), ModelOptions::default()).unwrap_err();
        assert!(matches!(error, Error::File(_)), "{error}");
        let error = Model::load(Path::new("/nowhere/at/all.gguf"), ModelOptions::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.gguf"), "{error}");
    }
}
