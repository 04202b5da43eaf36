//! The files that conversations are saved in.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::base::atomic_file::AtomicFile;
use crate::base::display::is_unprintable;
use crate::base::text::without_mark;
use crate::chat::Conversation;

/// Larger files are refused: they are not conversations.
const MAX_BYTES: u64 = 64 << 20;

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
pub fn save(path: &Path, text: &str, replace: bool) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("{} is a directory", path.display());
    }
    let cannot = || format!("cannot write {}", path.display());
    let mut file = AtomicFile::create(path).with_context(cannot)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    match file.finish(replace) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{0} exists; /save! {0} overwrites it", path.display())
        }
        result => result.with_context(cannot),
    }
}

/// Reads a conversation.
///
/// # Errors
/// If the file cannot be read, or is not a conversation.
pub fn load(path: &Path) -> anyhow::Result<Conversation> {
    let cannot = || format!("cannot read {}", path.display());
    // A pipe or a device might block, or never end.
    if !path.metadata().with_context(cannot)?.is_file() {
        bail!("{} is not a file", path.display());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(cannot)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("{} is larger than {} MB, too large for a conversation", path.display(), MAX_BYTES >> 20);
    }
    let Ok(text) = String::from_utf8(bytes) else { bail!("{} is not UTF-8 text", path.display()) };
    Conversation::from_json(&without_mark(text)).with_context(cannot)
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
        let error = save(&file, "two", false).unwrap_err().to_string();
        assert!(error.contains("a.json exists; /save! "), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
        save(&file, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        assert!(save(dir.path(), "x", true).unwrap_err().to_string().contains("is a directory"));
        assert!(save(&dir.path().join("no/a.json"), "x", true).unwrap_err().to_string().contains("cannot write"));
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| format!("{:#}", load(path).unwrap_err());
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
