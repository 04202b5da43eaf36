//! A model: a GGUF file that nibble has accepted and llama.cpp has loaded.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::load::{self, Handle, ModelOptions};
use super::lora::{self, Adapter};
use super::tokenizer::ModelTokenizer;
use super::{Error, backend, layout, preflight};
use crate::gguf::{Gguf, Metadata, TensorInfo, TensorType, Value};
use crate::vocab::Pieces;
use crate::vocab::Tokenizer;

/// A model's file and its adapters, checked and ready to be loaded.
///
/// Between the check and loading, callers can check the memory that the model needs.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    gguf: Gguf,
    pieces: Pieces,
    lora: Vec<lora::Checked>,
    options: ModelOptions,
}

impl ModelFile {
    /// Checks the model at `path`, a GGUF file or any part of a split one, and the adapters in `options`.
    ///
    /// # Errors
    /// If nibble's reader refuses the file, the file is not a model, llama.cpp would end the process on it, or an
    /// adapter does not fit the model.
    pub fn check(path: &Path, options: ModelOptions) -> Result<Self, Error> {
        backend::get()?;
        let gguf = Gguf::open(path)?;
        if gguf.metadata().str("general.type") == Some("adapter") {
            let what = "an adapter, which changes a model but is not one";
            return Err(Error::Unsupported { path: path.to_path_buf(), what });
        }
        // llama.cpp ends the process on some vocabularies, such as one with a duplicate piece.
        let pieces = Pieces::from_metadata(gguf.metadata())?;
        preflight::check(path, gguf.metadata(), gguf.tensors())?;
        let lora = options.lora.iter().map(|lora| lora::check(lora, &gguf)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { path: path.to_path_buf(), gguf, pieces, lora, options })
    }

    /// Returns the metadata of the file.
    pub fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    /// Returns the tensors of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.gguf.tensors()
    }

    /// Returns the bytes of all tensors, including those of the adapters.
    pub fn tensor_bytes(&self) -> u64 {
        self.lora.iter().fold(tensor_bytes(&self.gguf), |sum, lora| sum.saturating_add(lora.bytes))
    }

    /// Returns how many layers will be on a GPU: `u64::MAX` for all.
    ///
    /// # Errors
    /// [`Error::Backend`] if llama.cpp cannot be started.
    pub fn gpu_layers(&self) -> Result<u64, Error> {
        Ok(match self.options.gpu_layers {
            _ if !super::has_gpu()? => 0,
            None => u64::MAX,
            Some(n) => n.into(),
        })
    }

    /// Returns the types of the weights that would be copied into a second layout if all layers were on the CPU, with the
    /// bytes of each: see [`ModelOptions::repack`].
    ///
    /// # Errors
    /// [`Error::Backend`] if llama.cpp cannot be started.
    pub fn repacked(&self) -> Result<Vec<(TensorType, u64)>, Error> {
        layout::copied(&self.gguf)
    }

    /// Returns how the model will be loaded.
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// Changes how the model will be loaded.
    pub fn options_mut(&mut self) -> &mut ModelOptions {
        &mut self.options
    }

    /// Loads the model. The weights are mapped, not read, unless the options say otherwise. Where that fails, it can be tried
    /// again with other options.
    ///
    /// # Errors
    /// [`Error::LoadCancelled`] if the progress callback returns false, [`Error::DeviceFull`] if a device has no room, and
    /// [`Error::Load`] if llama.cpp refuses the file.
    pub fn load(&mut self) -> Result<Model, Error> {
        let gpu_layers = self.gpu_layers()?;
        let bytes = self.tensor_bytes();
        let handle = load::load(&parts(&self.gguf), &mut self.options, Some(tensor_bytes(&self.gguf)))?;
        // SAFETY: the model is alive; both calls return a constant of its architecture.
        let (encodes, decodes) =
            unsafe { (sys::llama_model_has_encoder(handle.as_ptr()), sys::llama_model_has_decoder(handle.as_ptr())) };
        if encodes || !decodes {
            let what = "a model with an encoder, as translation and embedding models have";
            return Err(Error::Unsupported { path: self.path.clone(), what });
        }
        // Before any context is created, because a context also reserves the memory that adapters need.
        let adapters = self.lora.iter().map(|lora| lora::load(&handle, lora)).collect::<Result<_, _>>()?;
        let lora = lora::identity(&self.lora);
        let are_copied = self.options.repack && !self.repacked()?.is_empty();
        let weights = Weights { gpu_layers, bytes, are_loaded: !self.options.no_alloc, are_copied, adapters, lora };
        Model::new(&self.path, &self.gguf, self.pieces.clone(), handle, Some(weights))
    }
}

/// A loaded model. Cloning it is cheap; the weights are freed with the last clone and the last context.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Arc<Handle>,
    tokenizer: Arc<ModelTokenizer>,
    path: PathBuf,
    metadata: Metadata,
    n_vocab: u32,
    // None if only the vocabulary was loaded.
    weights: Option<Weights>,
}

/// How the weights were loaded, and the adapters beside them.
struct Weights {
    gpu_layers: u64,
    // Size of all tensors, including those of the adapters.
    bytes: u64,
    // False if their memory is only simulated.
    are_loaded: bool,
    // Whether some are in the second layout.
    are_copied: bool,
    // Freed with the model.
    adapters: Vec<Adapter>,
    // Identifies the adapters and their scales.
    lora: Vec<u8>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads the model at `path`: a GGUF file, or any part of a split one. Does not check whether it fits in memory.
    ///
    /// # Errors
    /// If [`ModelFile::check`] or [`ModelFile::load`] fails.
    pub fn load(path: &Path, options: ModelOptions) -> Result<Self, Error> {
        ModelFile::check(path, options)?.load()
    }

    /// Loads only the vocabulary, which is fast, takes a few megabytes, and is enough for [`Self::tokenizer`].
    ///
    /// # Errors
    /// If nibble's reader refuses the file, or llama.cpp cannot load it.
    pub fn load_vocabulary(path: &Path) -> Result<Self, Error> {
        backend::get()?;
        let gguf = Gguf::open(path)?;
        let pieces = Pieces::from_metadata(gguf.metadata())?;
        let handle = load::load(&parts(&gguf), &mut ModelOptions::default(), None)?;
        Self::new(path, &gguf, pieces, handle, None)
    }

    fn new(path: &Path, gguf: &Gguf, pieces: Pieces, handle: Handle, weights: Option<Weights>) -> Result<Self, Error> {
        let handle = Arc::new(handle);
        // SAFETY: the vocabulary is that of a live model; the call returns the size of a list.
        let n_vocab = u32::try_from(unsafe { sys::llama_vocab_n_tokens(handle.vocab()) }).unwrap_or(0);
        if n_vocab as usize != pieces.len() {
            let reason = format!("it counts {n_vocab} tokens where the file lists {}", pieces.len());
            return Err(Error::Load { path: path.to_path_buf(), reason });
        }
        let metadata = gguf.metadata().clone();
        let tokenizer = Arc::new(ModelTokenizer::new(pieces, handle.clone(), &metadata)?);
        let path = path.to_path_buf();
        Ok(Self { inner: Arc::new(Inner { handle, tokenizer, path, metadata, n_vocab, weights }) })
    }

    /// Returns the file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Returns the metadata of the file.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// Returns the number of tokens in the vocabulary: the length of a row of logits.
    pub fn n_vocab(&self) -> u32 {
        self.inner.n_vocab
    }

    /// Returns the numbers of an embedding.
    pub fn n_embd(&self) -> usize {
        // SAFETY: the model is alive; the call returns one of its numbers.
        usize::try_from(unsafe { sys::llama_model_n_embd(self.inner.handle.as_ptr()) }).unwrap_or(0)
    }

    /// Returns how many tokens it was trained on at a time; `None` if the file does not say.
    pub fn n_ctx_train(&self) -> Option<u32> {
        n_ctx_train(self.metadata())
    }

    /// Returns its tokenizer.
    pub fn tokenizer(&self) -> &dyn Tokenizer {
        &*self.inner.tokenizer
    }

    /// Returns its tokenizer, to be kept beside other parts of the model.
    pub fn shared_tokenizer(&self) -> Arc<dyn Tokenizer> {
        self.inner.tokenizer.clone()
    }

    /// Returns whether the end of a sequence can be removed from the memory of its contexts. Recurrent and hybrid models
    /// keep one state for all of a sequence, and cannot.
    pub fn can_truncate(&self) -> bool {
        let model = self.inner.handle.as_ptr();
        // SAFETY: the model is alive; both calls return a constant of its architecture.
        unsafe { !sys::llama_model_is_recurrent(model) && !sys::llama_model_is_hybrid(model) }
    }

    /// Returns the bytes of all its tensors, including those of its adapters; 0 if only the vocabulary was loaded.
    pub fn tensor_bytes(&self) -> u64 {
        self.inner.weights.as_ref().map_or(0, |weights| weights.bytes)
    }

    /// Returns how many layers are on a GPU: `u64::MAX` for all.
    pub fn gpu_layers(&self) -> u64 {
        self.inner.weights.as_ref().map_or(0, |weights| weights.gpu_layers)
    }

    /// Returns whether some of its weights were copied into a second layout: see [`ModelOptions::repack`].
    pub fn uses_second_layout(&self) -> bool {
        self.inner.weights.as_ref().is_some_and(|weights| weights.are_copied)
    }

    /// Returns why no context can be created for it; `None` if one can be.
    pub(super) fn lacks(&self) -> Option<&'static str> {
        match &self.inner.weights {
            None => Some("only its vocabulary was loaded"),
            Some(weights) if !weights.are_loaded => Some("it was loaded without its weights"),
            Some(_) => None,
        }
    }

    /// Returns whether it was loaded without its weights, whose memory is only simulated.
    pub(super) fn is_simulated(&self) -> bool {
        self.inner.weights.as_ref().is_some_and(|weights| !weights.are_loaded)
    }

    /// Returns the adapters it is used with.
    pub(super) fn adapters(&self) -> &[Adapter] {
        self.inner.weights.as_ref().map_or(&[], |weights| &weights.adapters)
    }

    /// Returns bytes that are the same for the same adapters and scales.
    pub(crate) fn lora_identity(&self) -> &[u8] {
        self.inner.weights.as_ref().map_or(&[], |weights| &weights.lora)
    }

    /// Returns a hash, in hexadecimal, that differs between models, and between one model with different adapters. It
    /// reads the beginning of the file and samples of each tensor.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String, Error> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.file_fingerprint()?.as_bytes());
        hasher.update(self.lora_identity());
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Returns a hash of everything before the tensors, and of the beginning, the middle and the end of each tensor.
    /// Weights that were trained or quantized differently differ nearly everywhere.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub(crate) fn file_fingerprint(&self) -> Result<blake3::Hash, Error> {
        const PIECE: usize = 512;
        let gguf = Gguf::open(self.path())?;
        let mut hasher = blake3::Hasher::new();
        for mapping in gguf.mappings() {
            hasher.update(&(mapping.bytes().len() as u64).to_le_bytes());
        }
        let mut headers: Vec<(&[u8], usize)> = gguf.mappings().map(|m| (m.bytes(), m.bytes().len())).collect();
        for i in 0..gguf.tensors().len() {
            let (mapping, range) = gguf.location(i);
            for (bytes, end) in &mut headers {
                if std::ptr::eq(bytes.as_ptr(), mapping.bytes().as_ptr()) {
                    *end = range.start.min(*end);
                }
            }
            let data = gguf.data(i);
            for at in [0, data.len() / 2, data.len().saturating_sub(PIECE)] {
                hasher.update(&data[at..data.len().min(at + PIECE)]);
            }
        }
        headers.iter().for_each(|(bytes, end)| {
            hasher.update(&bytes[..*end]);
        });
        Ok(hasher.finalize())
    }

    /// llama.cpp's model. Valid as long as `self` or a clone of it lives.
    pub(super) fn as_ptr(&self) -> *mut sys::llama_model {
        self.inner.handle.as_ptr()
    }
}

/// Returns how many tokens the model with this metadata was trained on at a time; `None` if it does not say.
pub(crate) fn n_ctx_train(metadata: &Metadata) -> Option<u32> {
    let arch = metadata.str("general.architecture").unwrap_or("llama");
    let n = metadata.get(&format!("{arch}.context_length")).and_then(Value::as_u64);
    n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

/// Returns the paths of all parts of a model. From the first, llama.cpp finds the others.
fn parts(gguf: &Gguf) -> Vec<PathBuf> {
    gguf.paths().map(Path::to_path_buf).collect()
}

fn tensor_bytes(gguf: &Gguf) -> u64 {
    gguf.tensors().iter().map(|tensor| tensor.n_bytes().unwrap_or(0)).fold(0u64, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_a_model_is_refused_before_llama_cpp_sees_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "this is not a model").unwrap();
        let error = Model::load(file.path(), ModelOptions::default()).unwrap_err();
        assert!(matches!(error, Error::File(_)), "{error}");
        let error = Model::load(Path::new("/nowhere/at/all.gguf"), ModelOptions::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.gguf"), "{error}");
    }
}
