//! The files that conversations are saved in.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::base::atomic_file::AtomicFile;
use crate::base::display::is_unprintable;
use crate::base::text::without_mark;
use crate::chat::{Conversation, SavedError};

/// Larger files are refused: they are not conversations.
const MAX_BYTES: u64 = 64 << 20;

/// Why a conversation cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory has the name of the file to write.
    #[error("{} is a directory", .0.display())]
    Directory(PathBuf),
    /// The file to write exists, and may not be replaced.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// What has the name of the file to read is a directory, a pipe or a device.
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// The file is too large to be a conversation.
    #[error("{} is larger than {} MB, too large for a conversation", .0.display(), MAX_BYTES >> 20)]
    TooLarge(PathBuf),
    /// The file is not text.
    #[error("{} is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    /// The file's text is not a conversation.
    #[error("cannot read {}", path.display())]
    NotAConversation {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: SavedError,
    },
}

/// The path that `name` stands for: a leading `~/` is the home directory, as in a shell.
pub fn path(name: &str) -> PathBuf {
    match (name.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(name),
    }
}

/// Writes a conversation to a file; overwrites an existing file only if `replace`.
///
/// # Errors
/// If the file exists and `replace` is false, or it cannot be written. An existing file is then unchanged.
pub fn save(path: &Path, text: &str, replace: bool) -> Result<(), Error> {
    if path.is_dir() {
        return Err(Error::Directory(path.to_path_buf()));
    }
    let cannot = |source| Error::Write { path: path.to_path_buf(), source };
    let mut file = AtomicFile::create(path).map_err(cannot)?;
    file.write_all(text.as_bytes()).map_err(cannot)?;
    file.finish(replace).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.to_path_buf()),
        _ => cannot(error),
    })
}

/// Reads a conversation.
///
/// # Errors
/// If the file cannot be read, or is not a conversation.
pub fn load(path: &Path) -> Result<Conversation, Error> {
    let cannot = |source| Error::Read { path: path.to_path_buf(), source };
    // A pipe or a device might block, or never end.
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err(Error::NotAFile(path.to_path_buf()));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge(path.to_path_buf()));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::NotText(path.to_path_buf()))?;
    Conversation::from_json(&without_mark(text))
        .map_err(|source| Error::NotAConversation { path: path.to_path_buf(), source })
}

/// Returns the names in `folder` that begin with `begun`, sorted, directories with a slash at the end. Hidden files are
/// listed only if `begun` starts with a dot.
pub fn complete(folder: &str, begun: &str) -> Vec<String> {
    let at = if folder.is_empty() { PathBuf::from(".") } else { path(folder) };
    let Ok(entries) = at.read_dir() else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            // The line editor would print the name as it is.
            let fits = name.starts_with(begun) && !name.contains(is_unprintable);
            let seen = !name.starts_with('.') || begun.starts_with('.');
            (fits && seen).then(|| if entry.path().is_dir() { format!("{name}/") } else { name })
        })
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_only_when_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        save(&file, "one", false).unwrap();
        let error = save(&file, "two", false).unwrap_err();
        assert!(matches!(&error, Error::Exists(path) if *path == file), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
        save(&file, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        assert!(save(dir.path(), "x", true).unwrap_err().to_string().contains("is a directory"));
        assert!(save(&dir.path().join("no/a.json"), "x", true).unwrap_err().to_string().contains("cannot write"));
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| load(path).unwrap_err().to_string();
        assert!(said(dir.path()).contains("is not a file"));
        assert!(said(&dir.path().join("gone")).contains("cannot read"));
        #[cfg(unix)]
        assert!(said(Path::new("/dev/zero")).contains("is not a file"));
        let bad = dir.path().join("bad");
        std::fs::write(&bad, b"[\"\xff\"]").unwrap();
        assert!(said(&bad).contains("is not UTF-8"));
        let large = std::fs::File::create(&bad).unwrap();
        large.set_len(MAX_BYTES + 1).unwrap();
        assert!(said(&bad).contains("larger than 64 MB"));
    }
}
