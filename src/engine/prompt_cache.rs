//! The state of a context, saved on disk. The next prompt that begins with the same tokens starts from it.
//!
//! llama.cpp gets a state only if the file is intact, and was written with the same model, adapters, settings and
//! version of llama.cpp.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::state_file::{self, Contents, VERSION};
use super::{Error, Session, SessionOptions};
use crate::llama::{self, Model};

/// A file is rewritten only if at least one in this many of its tokens is new. Evaluating fewer tokens again is fast.
const WORTH_WRITING: usize = 16;

/// Why a file is not used, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It is a file of another kind.
    #[error("it is not a prompt cache of nibble's, so it is left unchanged, and nothing is saved")]
    NotOurs,
    /// It is incomplete, or was changed.
    #[error("it is damaged, so it is not used, and will be replaced")]
    Damaged,
    /// It was written by another version of nibble.
    #[error("its format has version {found}, but this nibble reads {VERSION}, so it is not used, and will be replaced")]
    Version {
        /// The version.
        found: u32,
    },
    /// It was written for another model, or with another setting.
    #[error("it was written with {setting}, so it is not used, and will be replaced")]
    Foreign {
        /// The first setting that differs.
        setting: CacheSetting,
    },
    /// It holds more tokens than the context.
    #[error("it holds {n_tokens} tokens, but the context only {n_ctx}, so it is not used, and will be replaced")]
    TooLong {
        /// Tokens in the file.
        n_tokens: usize,
        /// Tokens that fit.
        n_ctx: usize,
    },
    /// llama.cpp refuses its contents.
    #[error("{0}; it will be replaced")]
    Refused(#[source] llama::Error),
    /// The model's memory cannot be truncated, so its state is not saved.
    #[error("this model's state cannot be saved, because its memory cannot be truncated")]
    Model,
    /// There is no memory for it.
    #[error("there is no memory for its {bytes} bytes")]
    Memory {
        /// Its size.
        bytes: u64,
    },
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// It could not be written.
    #[error("it cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// A property that has to be the same for a saved state to be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSetting {
    /// The model.
    Model,
    /// Its LoRA adapters.
    Lora,
    /// How the KV cache stores its values.
    KvType,
    /// Whether attention is computed in one fused step.
    FlashAttention,
    /// How positions are encoded.
    Positions,
    /// The size of the context, if the model's positions depend on it.
    ContextSize,
    /// The version of llama.cpp.
    LlamaCpp,
}

impl CacheSetting {
    const ALL: [Self; 7] = [
        Self::Model,
        Self::Lora,
        Self::KvType,
        Self::FlashAttention,
        Self::Positions,
        Self::ContextSize,
        Self::LlamaCpp,
    ];

    /// Returns its key in the identity of a file.
    fn key(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Lora => "lora",
            Self::KvType => "kv_type",
            Self::FlashAttention => "flash_attention",
            Self::Positions => "rope",
            Self::ContextSize => "scaled_ctx",
            Self::LlamaCpp => "llama_cpp",
        }
    }
}

impl fmt::Display for CacheSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "another model",
            Self::Lora => "other LoRA adapters",
            Self::KvType => "another type of KV cache",
            Self::FlashAttention => "another setting of flash attention",
            Self::Positions => "another encoding of positions",
            Self::ContextSize => "another context size, on which this model's positions depend",
            Self::LlamaCpp => "another version of llama.cpp",
        })
    }
}

/// A file with the state of a context.
#[derive(Debug)]
pub struct PromptCache {
    path: PathBuf,
    identity: String,
    // The tokens after which the state in the file was saved; none if the file is not used.
    found: Vec<u32>,
    // Whether the file must not be replaced.
    is_foreign: bool,
}

impl PromptCache {
    /// Reads the file at `path`. If its tokens begin with the first token of `prompt`, restores its state into the
    /// context. Returns the cache, and if there is a file that is not used, the reason.
    ///
    /// # Errors
    /// If the model's own file cannot be read.
    pub fn load(path: &Path, session: &mut Session, prompt: &[u32]) -> Result<(Self, Option<CacheError>), Error> {
        let identity = identity(session.model(), session.options(), session.n_ctx())?;
        let mut cache = Self { path: path.to_path_buf(), identity, found: Vec::new(), is_foreign: false };
        if !session.model().can_truncate() {
            cache.is_foreign = true;
            return Ok((cache, Some(CacheError::Model)));
        }
        let read = cache.read(session).and_then(|contents| {
            let Some(contents) = contents else { return Ok(()) };
            let tokens = contents.tokens();
            if tokens.first() == prompt.first() {
                session.restore(&tokens, contents.state_bytes()).map_err(CacheError::Refused)?;
            }
            cache.found = tokens;
            Ok(())
        });
        cache.is_foreign = matches!(read, Err(CacheError::NotOurs | CacheError::Read(_)));
        Ok((cache, read.err()))
    }

    /// Returns the contents of the file, checked; `None` if there is no file.
    fn read(&self, session: &Session) -> Result<Option<Contents>, CacheError> {
        let Some(contents) = Contents::read(&self.path)? else { return Ok(None) };
        self.check(&contents, session)?;
        Ok(Some(contents))
    }

    /// Refuses a state of another model, or with settings that differ from this session's.
    fn check(&self, contents: &Contents, session: &Session) -> Result<(), CacheError> {
        let read = |text: &[u8]| serde_json::from_slice::<Map<String, Value>>(text).map_err(|_| CacheError::Damaged);
        let (theirs, ours) = (read(contents.identity())?, read(self.identity.as_bytes())?);
        for setting in CacheSetting::ALL {
            if theirs.get(setting.key()) != ours.get(setting.key()) {
                return Err(CacheError::Foreign { setting });
            }
        }
        let n_vocab = session.model().n_vocab();
        let tokens = contents.tokens();
        if tokens.is_empty() || tokens.iter().any(|token| *token >= n_vocab) {
            return Err(CacheError::Damaged);
        }
        let n_ctx = session.n_ctx() as usize;
        if tokens.len() > n_ctx {
            return Err(CacheError::TooLong { n_tokens: tokens.len(), n_ctx });
        }
        Ok(())
    }

    /// Writes the state after the first `n_tokens` tokens of the session's context to the file, unless the file already
    /// holds nearly all of them. The context then holds only these tokens. Returns whether the file was written.
    ///
    /// # Errors
    /// If the file cannot be written. The old file is then kept.
    pub fn save(&mut self, session: &mut Session, n_tokens: usize) -> Result<bool, CacheError> {
        let tokens = &session.tokens()[..n_tokens.min(session.tokens().len())];
        let same = tokens.iter().zip(&self.found).take_while(|(a, b)| a == b).count();
        let is_new = same < tokens.len() && (tokens.len() - same) * WORTH_WRITING >= tokens.len();
        if self.is_foreign || !is_new {
            return Ok(false);
        }
        let n_tokens = tokens.len();
        if session.truncate(n_tokens) < n_tokens {
            return Err(CacheError::Model);
        }
        let state = session.state().map_err(|error| match error {
            llama::Error::StateMemory { bytes } => CacheError::Memory { bytes },
            error => CacheError::Refused(error),
        })?;
        state_file::write(&self.path, &self.identity, session.tokens(), &state).map_err(CacheError::Write)?;
        self.found = session.tokens().to_vec();
        Ok(true)
    }
}

/// Returns what states of contexts of `n_ctx` tokens depend on, as JSON.
pub(super) fn identity(model: &Model, options: &SessionOptions, n_ctx: u32) -> Result<String, Error> {
    let architecture = model.metadata().str("general.architecture").unwrap_or("llama");
    // Some models encode positions differently in contexts that are longer than what they were first trained on.
    let scaled = model.metadata().get(&format!("{architecture}.rope.scaling.original_context_length")).is_some();
    let mut identity = serde_json::json!({
        "model": model.file_fingerprint()?.to_hex().as_str(),
        "lora": blake3::hash(model.lora_identity()).to_hex().as_str(),
        "kv_type": options.kv_types.to_string(),
        "flash_attention": format!("{:?}", options.flash_attention),
        "scaled_ctx": if scaled { n_ctx } else { 0 },
        // Another one may use another format.
        "llama_cpp": llama::VERSION,
    });
    // Files from before it could be set go on.
    if !options.rope.is_default() {
        identity["rope"] = options.rope.to_string().into();
    }
    Ok(identity.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_llama_cpp_is_the_one_that_is_built() {
        let (manifest, version) = (include_str!("../../Cargo.toml"), llama::VERSION);
        assert!(manifest.contains(&format!("llama-cpp-sys-2 = {{ version = \"={version}\"")));
    }
}
