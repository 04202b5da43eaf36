//! What a model has read, kept on disk: the next prompt that begins with it starts from there.
//!
//! ```text
//! 0    "nibbleKV"
//! 8    version, bytes of the identity, number of tokens      u32 each, little-endian as all numbers here
//! 20   bytes of the state                                    u64
//! 28   identity: whose state it is, as JSON
//!      tokens                                                u32 each
//!      state, as llama.cpp writes it
//!      BLAKE3 of all that
//! ```
//!
//! llama.cpp sees a state only when the file is whole, bit for bit, and made by the same model, adapters, settings and
//! llama.cpp.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::base::atomic_file::AtomicFile;
use crate::gguf::Gguf;
use crate::llama::{Error, Model, Session};

const MAGIC: &[u8; 8] = b"nibbleKV";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
const HASH_BYTES: usize = blake3::OUT_LEN;
/// A file is not written anew for less than this share of the tokens: what is new is soon read again.
const WORTH_WRITING: usize = 16;
/// The version of the crate whose llama.cpp writes the states: another one may write others.
const LLAMA_CPP: &str = "0.1.160";

/// Why a file is not used, or was not written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It is something else.
    #[error("it is no prompt cache of nibble's, so it is left as it is, and nothing is kept")]
    NotOurs,
    /// It is not all there, or not as it was written.
    #[error("it is damaged, so it is not used, and will be replaced")]
    Damaged,
    /// It was written by another version of nibble.
    #[error(
        "it has version {found} of its format, where this nibble has {VERSION}, so it is not used, and will be replaced"
    )]
    Version {
        /// The version.
        found: u32,
    },
    /// It is the memory of another model, or under other settings.
    #[error("it was written with {what}, so it is not used, and will be replaced")]
    Foreign {
        /// What was different.
        what: &'static str,
    },
    /// There is no room in the context for what it holds.
    #[error("it holds {n_tokens} tokens, and the context {n_ctx}, so it is not used, and will be replaced")]
    TooLong {
        /// Tokens in the file.
        n_tokens: usize,
        /// Tokens there is room for.
        n_ctx: usize,
    },
    /// llama.cpp does not take it back.
    #[error("llama.cpp does not take it: {0}; it will be replaced")]
    Refused(String),
    /// A model whose memory is not kept.
    #[error("what this model remembers cannot be kept, as it cannot be cut")]
    Model,
    /// No memory for it.
    #[error("there is no memory for its {bytes} bytes")]
    Memory {
        /// The bytes.
        bytes: u64,
    },
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// It could not be written.
    #[error("it cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// A file with what a model has read.
#[derive(Debug)]
pub struct PromptCache {
    path: PathBuf,
    identity: String,
    // The tokens that the file holds the state after; none where it is not to be used.
    found: Vec<u32>,
    // Whether the file is somebody else's.
    is_foreign: bool,
}

impl PromptCache {
    /// Looks at the file at `path`. Where it holds what the session's model has to read first of `prompt`, the context
    /// then holds what the file does. Gives why it is not used, where there is one and it is not.
    ///
    /// # Errors
    /// When the model's own file cannot be read.
    pub fn load(path: &Path, session: &mut Session, prompt: &[u32]) -> Result<(Self, Option<CacheError>), Error> {
        let identity = identity(session)?;
        let mut cache = Self { path: path.to_path_buf(), identity, found: Vec::new(), is_foreign: false };
        if !session.model().can_be_cut() {
            cache.is_foreign = true;
            return Ok((cache, Some(CacheError::Model)));
        }
        let read = cache.read(session).and_then(|contents| {
            let Some(contents) = contents else { return Ok(()) };
            let tokens = contents.tokens();
            if tokens.first() == prompt.first() {
                session.restore(&tokens, contents.state()).map_err(CacheError::Refused)?;
            }
            cache.found = tokens;
            Ok(())
        });
        cache.is_foreign = matches!(read, Err(CacheError::NotOurs | CacheError::Read(_)));
        Ok((cache, read.err()))
    }

    /// The contents of the file, checked; `None` where there is no file.
    fn read(&self, session: &Session) -> Result<Option<Contents>, CacheError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CacheError::Read(error)),
        };
        let metadata = file.metadata().map_err(CacheError::Read)?;
        if !metadata.is_file() {
            return Err(CacheError::NotOurs);
        }
        let n_bytes = metadata.len();
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(HEADER_BYTES as u64).read_to_end(&mut start).map_err(CacheError::Read)?;
        let shared = start.len().min(MAGIC.len());
        if start[..shared] != MAGIC[..shared] {
            return Err(CacheError::NotOurs);
        }
        let header = Header::read(&start, n_bytes)?;
        let too_large = || CacheError::Memory { bytes: n_bytes };
        let length = usize::try_from(n_bytes).map_err(|_| too_large())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| too_large())?;
        bytes.extend_from_slice(&start);
        file.take(n_bytes - start.len() as u64).read_to_end(&mut bytes).map_err(CacheError::Read)?;
        // It may have been cut short in the meantime.
        let Some((content, hash)) = bytes.split_at_checked(length - HASH_BYTES) else {
            return Err(CacheError::Damaged);
        };
        if blake3::hash(content).as_bytes().as_slice() != hash {
            return Err(CacheError::Damaged);
        }
        let contents = Contents { bytes, header };
        self.check(&contents, session)?;
        Ok(Some(contents))
    }

    /// Whether the state is one of this session's model and settings.
    fn check(&self, contents: &Contents, session: &Session) -> Result<(), CacheError> {
        let read = |text: &[u8]| serde_json::from_slice::<Map<String, Value>>(text).map_err(|_| CacheError::Damaged);
        let (theirs, ours) = (read(contents.identity())?, read(self.identity.as_bytes())?);
        for (key, what) in IDENTITY {
            if theirs.get(key) != ours.get(key) {
                return Err(CacheError::Foreign { what });
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

    /// Writes what the model knows after the first `n_tokens` tokens of the session's context, which then holds only
    /// these, to the file. Not where the file holds them already, or nearly all of them. Gives whether it was written.
    ///
    /// # Errors
    /// When the file cannot be written; the one that was there is then still there.
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
        let state = session.state().map_err(|bytes| CacheError::Memory { bytes })?;
        self.write(session.tokens(), &state).map_err(CacheError::Write)?;
        self.found = session.tokens().to_vec();
        Ok(true)
    }

    fn write(&self, tokens: &[u32], state: &[u8]) -> io::Result<()> {
        let mut partial = AtomicFile::create(&self.path)?;
        let mut hasher = blake3::Hasher::new();
        let number = |n: usize| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let mut start = MAGIC.to_vec();
        for number in [VERSION, number(self.identity.len())?, number(tokens.len())?] {
            start.extend_from_slice(&number.to_le_bytes());
        }
        start.extend_from_slice(&(state.len() as u64).to_le_bytes());
        start.extend_from_slice(self.identity.as_bytes());
        start.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        for bytes in [&start, state] {
            hasher.update(bytes);
            partial.write_all(bytes)?;
        }
        partial.write_all(hasher.finalize().as_bytes())?;
        partial.finish(true)
    }
}

/// The lengths of what a file holds.
#[derive(Clone, Copy)]
struct Header {
    identity: usize,
    tokens: usize,
}

impl Header {
    /// Reads them from the beginning of a file of `n_bytes` bytes, which they account for exactly.
    fn read(start: &[u8], n_bytes: u64) -> Result<Self, CacheError> {
        let number = |at: usize| -> Result<u32, CacheError> {
            let bytes = start.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_le_bytes).ok_or(CacheError::Damaged)
        };
        let version = number(8)?;
        if version != VERSION {
            return Err(CacheError::Version { found: version });
        }
        let (identity, tokens) = (number(12)?, number(16)?);
        let state = u64::from(number(20)?) | u64::from(number(24)?) << 32;
        let fixed = HEADER_BYTES as u64 + HASH_BYTES as u64 + u64::from(identity) + 4 * u64::from(tokens);
        if fixed.checked_add(state) != Some(n_bytes) {
            return Err(CacheError::Damaged);
        }
        Ok(Self { identity: identity as usize, tokens: tokens as usize })
    }
}

/// A file that is whole.
struct Contents {
    bytes: Vec<u8>,
    header: Header,
}

impl Contents {
    fn identity(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..HEADER_BYTES + self.header.identity]
    }

    fn tokens(&self) -> Vec<u32> {
        let first = HEADER_BYTES + self.header.identity;
        let bytes = &self.bytes[first..first + 4 * self.header.tokens];
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn state(&self) -> &[u8] {
        let first = HEADER_BYTES + self.header.identity + 4 * self.header.tokens;
        &self.bytes[first..self.bytes.len() - HASH_BYTES]
    }
}

/// What has to be the same for a state to mean the same, and what to say where it is not.
const IDENTITY: [(&str, &str); 6] = [
    ("model", "another model"),
    ("lora", "other LoRA adapters"),
    ("kv_type", "another --kv-type"),
    ("flash_attention", "another --flash-attn"),
    ("scaled_ctx", "another --ctx, on which this model's positions depend"),
    ("llama_cpp", "another version of llama.cpp"),
];

/// Whose states a session's are.
fn identity(session: &Session) -> Result<String, Error> {
    let model = session.model();
    let options = session.options();
    let architecture = model.metadata().str("general.architecture").unwrap_or("llama");
    // Some models turn positions otherwise in contexts that are longer than what they were first trained on.
    let scaled = model.metadata().get(&format!("{architecture}.rope.scaling.original_context_length")).is_some();
    let identity = serde_json::json!({
        "model": fingerprint(model)?.to_hex().as_str(),
        "lora": blake3::hash(model.lora_identity()).to_hex().as_str(),
        "kv_type": format!("{:?}", options.kv_type),
        "flash_attention": format!("{:?}", options.flash_attention),
        "scaled_ctx": if scaled { session.n_ctx() } else { 0 },
        "llama_cpp": LLAMA_CPP,
    });
    Ok(identity.to_string())
}

/// Tells one model's file from another's without reading all of it: everything before the tensors, and of each tensor the
/// beginning, the middle and the end. Weights that were trained or quantized otherwise differ nearly everywhere.
pub(crate) fn fingerprint(model: &Model) -> Result<blake3::Hash, Error> {
    const PIECE: usize = 512;
    let gguf = Gguf::open(model.path())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_llama_cpp_is_the_one_that_is_built() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("llama-cpp-sys-2 = {{ version = \"={LLAMA_CPP}\"")));
    }

    #[test]
    fn lengths_that_do_not_add_up_are_damage() {
        let mut start = MAGIC.to_vec();
        for number in [VERSION, 10, 3] {
            start.extend_from_slice(&number.to_le_bytes());
        }
        start.extend_from_slice(&1000u64.to_le_bytes());
        let n_bytes = 28 + 10 + 12 + 1000 + 32;
        assert!(Header::read(&start, n_bytes).is_ok());
        for wrong in [0, 28, n_bytes - 1, n_bytes + 1, u64::MAX] {
            assert!(matches!(Header::read(&start, wrong), Err(CacheError::Damaged)), "{wrong}");
        }
        for length in 8..28 {
            assert!(matches!(Header::read(&start[..length], n_bytes), Err(CacheError::Damaged)), "{length}");
        }
        start[20..28].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(Header::read(&start, n_bytes), Err(CacheError::Damaged)));
        start[8] = 9;
        assert!(matches!(Header::read(&start, n_bytes), Err(CacheError::Version { found: 9 })));
    }
}
