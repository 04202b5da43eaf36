//! The journal: a table beside the output that says which spans are done, so that an interrupted run can be resumed.
//!
//! ```text
//! nibble journal 1                      magic
//! {"version":"0.1.0","result":...}      what is being made, and of what: see `Identity`
//! 9f0c...                               BLAKE3 of the two lines above
//! slot 0 │ slot 1 │ slot 2 │ ...        64 bytes for each span: zeros, or
//!
//!   0        4            20                 52           64
//!   │ number │ output     │ value            │ check      │
//!   └────────┴────────────┴──────────────────┴────────────┘
//!     number   of the span, little-endian
//!     output   BLAKE3 of the span's output, in the order of its pieces; the first 16 bytes
//!     value    what the span adds to the hash of its file
//!     check    BLAKE3 of the 52 bytes before, keyed with the third line; the first 12 bytes
//! ```
//!
//! Any thread may write a slot without waiting for another. A slot is written after the output that it describes. A slot
//! that was written halfway fails its check and counts as empty. No slot is trusted before the output has been read again.
//!
//! The file stays locked while a process works on the output. The lock ends with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use blake3::hazmat::ChainingValue;
use serde::{Deserialize, Serialize};

use super::Error;
use super::output::write_all_at;
use crate::pass;

const MAGIC: &str = "nibble journal 1\n";
const SLOT_BYTES: usize = 64;
const CHECKED_BYTES: usize = 52;
/// The longest head that is read. A head only names a few files.
const MAX_HEAD_BYTES: u64 = 16 << 20;

/// Everything that the bytes of the result depend on. Runs with equal identities may share their work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The version of nibble.
    pub version: String,
    /// Hash of the plan: headers, places, types, orders of rows, importance.
    pub result: String,
    /// The source's files, in order.
    pub source: Vec<SourceFile>,
    /// The output files, in order.
    pub outputs: Vec<OutputFile>,
}

/// How a file of the source is recognized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name, without folders.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub modified: i64,
    /// Hash of its first bytes, which list its tensors.
    pub head: String,
}

/// A file of the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Its name, without folders.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// Why the work of an earlier run cannot be resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// This other version of nibble began it.
    Version(String),
    /// This file of the source has changed.
    Source(String),
    /// The recipe, an option, or one of the small files beside the weights has changed.
    Plan,
    /// The journal cannot be read.
    Journal,
    /// The user asked to start over.
    Asked,
}

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version(before) => {
                write!(f, "nibble {before} began this, and this is nibble {}", env!("CARGO_PKG_VERSION"))
            }
            Self::Source(name) => write!(f, "the source has changed since the last run ({name})"),
            Self::Plan => {
                write!(f, "the recipe, an option or one of the model's small files has changed since the last run")
            }
            Self::Journal => write!(f, "the journal of the last run is damaged"),
            Self::Asked => write!(f, "as requested"),
        }
    }
}

impl Identity {
    /// Returns what is different in `self` from `before`; `None` if nothing is.
    pub fn changed_since(&self, before: &Self) -> Option<Changed> {
        if self == before {
            return None;
        }
        if self.version != before.version {
            return Some(Changed::Version(before.version.clone()));
        }
        let same = |file: &&SourceFile| before.source.contains(file);
        if let Some(file) = self.source.iter().find(|file| !same(file)) {
            return Some(Changed::Source(file.name.clone()));
        }
        if self.source != before.source {
            let gone = before.source.iter().find(|file| !self.source.contains(file));
            return Some(Changed::Source(gone.map_or_else(String::new, |file| file.name.clone())));
        }
        Some(Changed::Plan)
    }
}

/// The record of a finished span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The first bytes of the hash of its output.
    pub output: [u8; 16],
    /// Its chaining value in the hash of its file.
    pub value: ChainingValue,
}

impl Record {
    fn to_slot(self, number: usize, key: &[u8; 32]) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[..4].copy_from_slice(&(number as u32).to_le_bytes());
        slot[4..20].copy_from_slice(&self.output);
        slot[20..CHECKED_BYTES].copy_from_slice(&self.value);
        let check = blake3::keyed_hash(key, &slot[..CHECKED_BYTES]);
        slot[CHECKED_BYTES..].copy_from_slice(&check.as_bytes()[..SLOT_BYTES - CHECKED_BYTES]);
        slot
    }

    fn from_slot(slot: &[u8], number: usize, key: &[u8; 32]) -> Option<Self> {
        let record = Self { output: slot.get(4..20)?.try_into().ok()?, value: slot.get(20..52)?.try_into().ok()? };
        (record.to_slot(number, key) == slot).then_some(record)
    }
}

/// An open, locked journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    key: [u8; 32],
    head_bytes: u64,
}

/// What a journal contained when it was opened.
#[derive(Debug)]
pub enum Contents {
    /// Nothing: it is new, or its writer was interrupted before it had begun.
    Nothing,
    /// A journal of nibble's that is damaged.
    Damaged,
    /// The identity of the result that was being made.
    Of(Identity),
}

impl Journal {
    /// Opens and locks the journal at `path`, creating it if there is none.
    ///
    /// # Errors
    /// If another process holds the lock, the file is not a journal, or the system refuses.
    pub fn open(path: &Path) -> Result<(Self, Contents), Error> {
        let failed = |source| Error::Write { path: path.to_path_buf(), source };
        let mut file = loop {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Busy { journal: path.to_path_buf() }),
                // Some network drives have no locks. There, a second run is not refused; all else works.
                Err(TryLockError::Error(_)) => {}
            }
            // Between opening and locking, the process that held the lock may have finished and removed the file.
            if is_at(&file, path).map_err(failed)? {
                break file;
            }
        };
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(MAX_HEAD_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        let mut journal = Self { file, path: path.to_path_buf(), key: [0; 32], head_bytes: 0 };
        // If the length reached the disk before the bytes did, the file is all zeros.
        if MAGIC.as_bytes().starts_with(&bytes) || bytes.iter().all(|byte| *byte == 0) {
            return Ok((journal, Contents::Nothing));
        }
        if !bytes.starts_with(MAGIC.as_bytes()) {
            return Err(Error::NotJournal { path: path.to_path_buf() });
        }
        let Some((identity, key, head_bytes)) = parse_head(&bytes) else { return Ok((journal, Contents::Damaged)) };
        (journal.key, journal.head_bytes) = (key, head_bytes);
        Ok((journal, Contents::Of(identity)))
    }

    /// Starts over with an identity and `n_slots` empty slots. Their space is allocated now, so that a disk that fills up
    /// cannot keep the journal from recording how far the work got.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn begin(&mut self, identity: &Identity, n_slots: usize) -> Result<(), Error> {
        let mut head =
            format!("{MAGIC}{}\n", serde_json::to_string(identity).expect("names and numbers have a JSON form"));
        let hash = blake3::hash(head.as_bytes());
        head.push_str(&format!("{}\n", hash.to_hex()));
        (self.key, self.head_bytes) = (*hash.as_bytes(), head.len() as u64);
        let mut bytes = head.into_bytes();
        bytes.resize(bytes.len() + n_slots * SLOT_BYTES, 0);
        let mut write = || {
            self.file.set_len(0)?;
            self.file.rewind()?;
            self.file.write_all(&bytes)?;
            self.file.sync_all()
        };
        write().map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    /// Returns the record in each slot; `None` for empty slots.
    ///
    /// # Errors
    /// If the system cannot read.
    pub fn records(&mut self, n_slots: usize) -> Result<Vec<Option<Record>>, Error> {
        let mut bytes = Vec::new();
        let mut read = || {
            self.file.seek(io::SeekFrom::Start(self.head_bytes))?;
            Read::by_ref(&mut self.file).take((n_slots * SLOT_BYTES) as u64).read_to_end(&mut bytes)
        };
        read().map_err(|source| pass::Error::Read { path: self.path.clone(), source })?;
        // A slot that is missing or cut short is empty.
        let slot = |i: usize| bytes.get(i * SLOT_BYTES..(i + 1) * SLOT_BYTES);
        Ok((0..n_slots).map(|i| Record::from_slot(slot(i)?, i, &self.key)).collect())
    }

    /// Records that span `number` is done.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn record(&self, number: usize, record: Record) -> Result<(), Error> {
        let slot = record.to_slot(number, &self.key);
        write_all_at(&self.file, &slot, self.head_bytes + (number * SLOT_BYTES) as u64)
            .map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    /// Flushes all records to the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    /// Removes the file. If that fails, the next run of the same command finds it.
    pub fn remove(self) {
        // While the lock is still held, so that nobody else can have begun to use it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Returns the identity, the key of the checks, and the length of what comes before the slots.
fn parse_head(bytes: &[u8]) -> Option<(Identity, [u8; 32], u64)> {
    let json_end = MAGIC.len() + bytes.get(MAGIC.len()..)?.iter().position(|byte| *byte == b'\n')? + 1;
    let hash = blake3::hash(&bytes[..json_end]);
    let line = format!("{}\n", hash.to_hex());
    if !bytes[json_end..].starts_with(line.as_bytes()) {
        return None;
    }
    let identity = serde_json::from_slice(&bytes[MAGIC.len()..json_end]).ok()?;
    Some((identity, *hash.as_bytes(), (json_end + line.len()) as u64))
}

/// Returns whether `path` is (still) this file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let here = file.metadata()?;
        Ok(match std::fs::metadata(path) {
            Ok(there) => (here.dev(), here.ino()) == (there.dev(), there.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        })
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let file = |name: &str| SourceFile { name: name.into(), bytes: 7, modified: -3, head: "ab".into() };
        Identity {
            version: "0.1.0".into(),
            result: "cd".into(),
            source: vec![file("a\n零.safetensors"), file("b.safetensors")],
            outputs: vec![OutputFile { name: "x.gguf".into(), bytes: 100 }],
        }
    }

    fn record(n: u8) -> Record {
        Record { output: [n; 16], value: [n + 100; 32] }
    }

    /// A journal of five slots, of which 1 and 4 are filled.
    fn written(path: &Path) {
        let (mut journal, contents) = Journal::open(path).unwrap();
        assert!(matches!(contents, Contents::Nothing));
        journal.begin(&identity(), 5).unwrap();
        journal.record(4, record(4)).unwrap();
        journal.record(1, record(1)).unwrap();
    }

    #[test]
    fn what_was_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        written(&path);
        let (mut journal, contents) = Journal::open(&path).unwrap();
        assert!(matches!(contents, Contents::Of(found) if found == identity()));
        assert_eq!(journal.records(5).unwrap(), [None, Some(record(1)), None, None, Some(record(4))]);
        journal.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_journal_that_is_cut_anywhere_gives_a_part_of_it_or_nothing_and_never_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        written(&path);
        let whole = std::fs::read(&path).unwrap();
        let head = whole.len() - 5 * SLOT_BYTES;
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (mut journal, contents) = Journal::open(&path).unwrap();
            match contents {
                Contents::Nothing => assert!(length <= MAGIC.len(), "{length}"),
                Contents::Damaged => assert!(length > MAGIC.len() && length < head, "{length}"),
                Contents::Of(found) => {
                    assert!(length >= head && found == identity());
                    let whole_slots = (length - head) / SLOT_BYTES;
                    let wanted = [None, Some(record(1)), None, None, Some(record(4))];
                    let wanted: Vec<_> = (0..5).map(|i| wanted[i].filter(|_| i < whole_slots)).collect();
                    assert_eq!(journal.records(5).unwrap(), wanted);
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        written(&path);
        let whole = std::fs::read(&path).unwrap();
        let head = whole.len() - 5 * SLOT_BYTES;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            match Journal::open(&path) {
                Err(Error::NotJournal { .. }) => assert!(at < MAGIC.len()),
                Ok((_, Contents::Damaged)) => assert!(at >= MAGIC.len() && at < head, "{at}"),
                Ok((mut journal, Contents::Of(found))) => {
                    assert!(at >= head && found == identity());
                    let slot = (at - head) / SLOT_BYTES;
                    let wanted = [None, Some(record(1)), None, None, Some(record(4))];
                    let wanted: Vec<_> = (0..5).map(|i| wanted[i].filter(|_| i != slot)).collect();
                    assert_eq!(journal.records(5).unwrap(), wanted, "byte {at}");
                }
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }

    #[test]
    fn slots_of_another_journal_or_another_place_do_not_count() {
        let slot = record(3).to_slot(3, &[7; 32]);
        assert_eq!(Record::from_slot(&slot, 3, &[7; 32]), Some(record(3)));
        assert_eq!(Record::from_slot(&slot, 2, &[7; 32]), None);
        assert_eq!(Record::from_slot(&slot, 3, &[8; 32]), None);
        assert_eq!(Record::from_slot(&[0; 64], 0, &[7; 32]), None);
    }

    #[test]
    fn only_one_at_a_time_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.journal");
        let first = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(Error::Busy { .. })));
        drop(first);
        Journal::open(&path).unwrap();
    }

    #[test]
    fn says_what_has_changed() {
        let before = identity();
        assert_eq!(before.changed_since(&before), None);
        let now = Identity { version: "9.9.9".into(), ..identity() };
        assert_eq!(now.changed_since(&before), Some(Changed::Version("0.1.0".into())));
        let now = Identity { result: "ef".into(), ..identity() };
        assert_eq!(now.changed_since(&before), Some(Changed::Plan));
        let mut now = identity();
        now.source[1].modified += 1;
        assert_eq!(now.changed_since(&before), Some(Changed::Source("b.safetensors".into())));
        let mut now = identity();
        now.source.pop();
        assert_eq!(now.changed_since(&before), Some(Changed::Source("b.safetensors".into())));
    }
}
