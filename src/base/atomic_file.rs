//! Files that get their name only when they are complete, so that no incomplete file has the final name.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file that is being written, in its final folder. It is removed if it is dropped before [`AtomicFile::finish`].
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Creates a file that will get the name `path`.
    ///
    /// # Errors
    /// If the folder does not exist or cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".partial");
        // Temporary files are readable by the user alone by default. This one gets the permissions of any other new file,
        // without those that the process's mask removes.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder(path))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Returns the file as it is so far.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Writes everything to the disk and gives the file its name. An existing file of that name is replaced if `replace`.
    ///
    /// # Errors
    /// If the system refuses, or a file of that name exists (unless `replace`).
    pub fn finish(self, replace: bool) -> io::Result<()> {
        self.file().sync_all()?;
        give_name(self.file.path(), &self.path, replace)?;
        // There is nothing left to remove under the old name.
        let _ = self.file.into_temp_path().keep();
        sync_folder(&self.path);
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Renames a file. An existing file at `to` is replaced if `replace`.
///
/// # Errors
/// If the system refuses, or a file exists at `to` (unless `replace`).
pub fn give_name(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    if !replace {
        match rename_to_free_name(from, to) {
            Ok(()) => return Ok(()),
            // Some file systems (FUSE mounts, exFAT on a Mac) cannot rename only if the name is free. Looking first is
            // nearly as good, and better than losing hours of work.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists || to.symlink_metadata().is_ok() => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Err(_) => {}
        }
    }
    std::fs::rename(from, to)
}

fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Returns the folder that holds `path`.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes the folder of `path` to the disk: a rename is safe only when its folder is.
pub fn sync_folder(path: &Path) {
    #[cfg(unix)]
    if let Ok(folder) = File::open(folder(path)) {
        // Best effort: the file's bytes are already safe, and some file systems cannot sync a folder.
        let _ = folder.sync_all();
    }
    #[cfg(not(unix))]
    let _ = path;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_has_its_name_when_it_is_complete_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut partial = AtomicFile::create(&path).unwrap();
        partial.write_all(b"GGUF").unwrap();
        let [name] = names(dir.path()).try_into().unwrap();
        assert!(name.starts_with(".model.gguf.") && name.ends_with(".partial"), "{name}");
        partial.finish(false).unwrap();
        assert_eq!(names(dir.path()), ["model.gguf"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"GGUF");
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(AtomicFile::create(&dir.path().join("model.gguf")).unwrap());
        assert!(names(dir.path()).is_empty());
        assert!(AtomicFile::create(&dir.path().join("missing/model.gguf")).is_err());
    }

    #[test]
    fn replaces_only_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, "old").unwrap();
        let error = AtomicFile::create(&path).unwrap().finish(false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        AtomicFile::create(&path).unwrap().finish(true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!(names(dir.path()), ["model.gguf"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_any_other_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("model.gguf"), dir.path().join("other"));
        AtomicFile::create(&path).unwrap().finish(false).unwrap();
        std::fs::write(&other, "").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&other));
    }
}
