//! A file with tokens, and the state of a memory that has read them.
//!
//! ```text
//! 0    "nibbleKV"
//! 8    version, bytes of the identity, number of tokens      u32 each, little-endian as all numbers here
//! 20   bytes of the state                                    u64
//! 28   identity: what the state depends on, as JSON
//!      tokens                                                u32 each
//!      state, as llama.cpp writes it
//!      BLAKE3 of all that
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::prompt_cache::CacheError;
use crate::base::atomic_file::AtomicFile;

const MAGIC: &[u8; 8] = b"nibbleKV";
pub(super) const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
const HASH_BYTES: usize = blake3::OUT_LEN;

/// Writes a file. One of that name is replaced when all is written.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(path: &Path, identity: &str, tokens: &[u32], state: &[u8]) -> io::Result<()> {
    let mut partial = AtomicFile::create(path)?;
    let mut hasher = blake3::Hasher::new();
    let number = |n: usize| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut start = MAGIC.to_vec();
    for number in [VERSION, number(identity.len())?, number(tokens.len())?] {
        start.extend_from_slice(&number.to_le_bytes());
    }
    start.extend_from_slice(&(state.len() as u64).to_le_bytes());
    start.extend_from_slice(identity.as_bytes());
    start.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    for bytes in [&start, state] {
        hasher.update(bytes);
        partial.write_all(bytes)?;
    }
    partial.write_all(hasher.finalize().as_bytes())?;
    partial.finish(true)
}

/// What a file says at its beginning, which no hash has been compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// What its state depends on.
    pub identity: Vec<u8>,
    /// Its tokens.
    pub tokens: Vec<u32>,
}

impl Beginning {
    /// Reads the beginning of a file, without the state.
    ///
    /// # Errors
    /// If it cannot be read, or is no whole file of this format.
    pub fn read(path: &Path) -> Result<Self, CacheError> {
        let mut file = File::open(path).map_err(CacheError::Read)?;
        let n_bytes = file.metadata().map_err(CacheError::Read)?.len();
        let mut start = [0; HEADER_BYTES];
        file.read_exact(&mut start).map_err(|_| CacheError::Damaged)?;
        if !start.starts_with(MAGIC) {
            return Err(CacheError::NotOurs);
        }
        let header = Header::read(&start, n_bytes)?;
        let length = header.identity as u64 + 4 * header.tokens as u64;
        // Not longer than the file, whose length the header was compared with.
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(CacheError::Read)?;
        let (identity, tokens) = bytes.split_at_checked(header.identity).ok_or(CacheError::Damaged)?;
        Ok(Self { identity: identity.to_vec(), tokens: numbers(tokens) })
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The lengths of what a file holds.
#[derive(Clone, Copy)]
struct Header {
    identity: usize,
    tokens: usize,
}

impl Header {
    /// Reads the beginning of a file of `n_bytes` bytes, which the lengths have to add up to exactly.
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

/// The bytes of a file whose hash is right.
pub(super) struct Contents {
    bytes: Vec<u8>,
    header: Header,
}

impl Contents {
    /// Reads a file, and checks its hash; `None` if there is no file.
    ///
    /// # Errors
    /// If it cannot be read, is no whole file of this format, or has another hash.
    pub fn read(path: &Path) -> Result<Option<Self>, CacheError> {
        let mut file = match File::open(path) {
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
        // The file may have been truncated in the meantime.
        let Some((content, hash)) = bytes.split_at_checked(length - HASH_BYTES) else {
            return Err(CacheError::Damaged);
        };
        if blake3::hash(content).as_bytes().as_slice() != hash {
            return Err(CacheError::Damaged);
        }
        Ok(Some(Self { bytes, header }))
    }

    /// Returns what the state depends on, as it was written.
    pub fn identity(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..HEADER_BYTES + self.header.identity]
    }

    /// Returns its tokens.
    pub fn tokens(&self) -> Vec<u32> {
        let first = HEADER_BYTES + self.header.identity;
        let bytes = &self.bytes[first..first + 4 * self.header.tokens];
        numbers(bytes)
    }

    /// Returns its state.
    pub fn state_bytes(&self) -> &[u8] {
        &self.bytes[self.first_of_state()..self.bytes.len() - HASH_BYTES]
    }

    /// Returns its state, and nothing else.
    pub fn into_state(mut self) -> Vec<u8> {
        self.bytes.truncate(self.bytes.len() - HASH_BYTES);
        self.bytes.drain(..self.first_of_state());
        self.bytes
    }

    fn first_of_state(&self) -> usize {
        HEADER_BYTES + self.header.identity + 4 * self.header.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
