//! Weights that a worker keeps on its disk, so that they are sent once.
//!
//! ```text
//! FOLDER/lock                 one worker uses the folder
//! FOLDER/kept/9f3c..          weights, named by their hash: whole, and checked
//! FOLDER/session-7/9f3c..     the same files, and those that this session's engine writes
//! ```
//!
//! ggml names files by their FNV-1a hash, and never checks them: a file that was cut off by a full disk or a crash would be
//! taken for weights. So each session has a folder of its own, and what is new there is kept only if its hash is its name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The folder of a worker's weights.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    most_bytes: u64,
    sessions: AtomicU64,
    // Held as long as this lives.
    _lock: File,
}

impl Store {
    /// Opens a folder that takes at most `most_bytes`, and makes it if it is not there; `None` if another worker uses it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(folder: &Path, most_bytes: u64) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder.join("kept"))?;
        let lock = File::create(folder.join("lock"))?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Ok(None);
        }
        // What a worker left that was killed.
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("session-") {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let store = Self { folder: folder.to_path_buf(), most_bytes, sessions: AtomicU64::new(0), _lock: lock };
        store.prune()?;
        Ok(Some(store))
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder of a session, with everything that is kept; `None` where it has no room for more, or the file system no
    /// links.
    pub(super) fn begin(&self, free_bytes: Option<u64>) -> Option<PathBuf> {
        let kept = self.kept().ok()?;
        let bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        let wanted = self.most_bytes.saturating_sub(bytes).saturating_add(SPARE);
        if free_bytes.is_some_and(|free| free < wanted) {
            return None;
        }
        let session = self.folder.join(format!("session-{}", self.sessions.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&session).ok()?;
        for (path, ..) in &kept {
            if fs::hard_link(path, session.join(path.file_name()?)).is_err() {
                let _ = fs::remove_dir_all(&session);
                return None;
            }
        }
        Some(session)
    }

    /// Keeps what is new and whole in the folder of a session, and removes the folder.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn end(&self, session: &Path) -> io::Result<()> {
        for entry in fs::read_dir(session)?.flatten() {
            let kept = self.folder.join("kept").join(entry.file_name());
            if !kept.exists() && is_whole(&entry.path())? {
                fs::rename(entry.path(), kept)?;
            }
        }
        fs::remove_dir_all(session)?;
        self.prune()
    }

    /// Removes the oldest files until the rest is as small as it has to be.
    fn prune(&self) -> io::Result<()> {
        let mut kept = self.kept()?;
        kept.sort_by_key(|(_, _, time)| *time);
        let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        for (path, size, _) in kept {
            if bytes <= self.most_bytes {
                break;
            }
            fs::remove_file(path)?;
            bytes -= size;
        }
        Ok(())
    }

    /// Returns the files that are kept, with their sizes and times.
    fn kept(&self) -> io::Result<Vec<(PathBuf, u64, SystemTime)>> {
        let entries = fs::read_dir(self.folder.join("kept"))?.flatten();
        entries
            .map(|entry| {
                let data = entry.metadata()?;
                Ok((entry.path(), data.len(), data.modified()?))
            })
            .collect()
    }
}

/// Bytes of a disk that are left to others.
const SPARE: u64 = 2 << 30;

/// Returns whether a file's name is its hash.
fn is_whole(path: &Path) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut file = File::open(path)?;
    let (mut hash, mut piece) = (FNV_START, vec![0u8; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(name == format!("{hash:016x}")),
            n => hash = fnv(hash, piece.get(..n).unwrap_or_default()),
        }
    }
}

/// FNV-1a's offset basis and prime for 64 bits.
const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, bytes: &[u8]) -> String {
        let name = format!("{:016x}", fnv(FNV_START, bytes));
        fs::write(folder.join(&name), bytes).unwrap();
        name
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the page of its authors.
        assert_eq!(fnv(FNV_START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(FNV_START, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(FNV_START, b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn what_is_whole_is_there_for_the_next_session_and_what_is_cut_off_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 1000).unwrap().unwrap();
        assert!(Store::open(folder.path(), 1000).unwrap().is_none(), "a second worker uses it");
        let first = store.begin(None).unwrap();
        let whole = write(&first, b"weights");
        let cut = write(&first, b"more weights");
        fs::write(first.join(&cut), b"more wei").unwrap();
        store.end(&first).unwrap();
        assert!(!first.exists());
        let second = store.begin(None).unwrap();
        assert_eq!(fs::read(second.join(&whole)).unwrap(), b"weights");
        assert!(!second.join(&cut).exists());
        // It goes on when the worker was killed meanwhile.
        drop(store);
        let store = Store::open(folder.path(), 1000).unwrap().unwrap();
        assert!(!second.exists());
        let third = store.begin(None).unwrap();
        assert!(third.join(&whole).exists());
        assert_eq!(store.begin(Some(SPARE)), None);
    }

    #[test]
    fn the_oldest_go_first_when_there_is_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 20).unwrap().unwrap();
        let mut names = Vec::new();
        for text in [b"0123456789", b"abcdefghij", b"ABCDEFGHIJ"] {
            let session = store.begin(None).unwrap();
            names.push(write(&session, text));
            store.end(&session).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let there: Vec<bool> = names.iter().map(|name| folder.path().join("kept").join(name).exists()).collect();
        assert_eq!(there, [false, true, true]);
    }
}
