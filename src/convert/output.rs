//! The files a conversion writes: under temporary names in the folder they belong to, renamed when they are complete.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::Error;
use crate::partial::{Partial, folder};

/// Output files in the making. Dropped before [`Outputs::finish`], they are removed.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<(Partial, PathBuf)>,
    force: bool,
}

impl Outputs {
    /// Makes a temporary file of the given size beside each of `paths`.
    ///
    /// # Errors
    /// When a path exists already (unless `force`), when its folder does not or cannot be written, or when there is not
    /// enough room.
    pub fn create(paths: &[(PathBuf, u64)], force: bool) -> Result<Self, Error> {
        check_paths(paths, force)?;
        check_room(paths)?;
        let mut files = Vec::with_capacity(paths.len());
        for (path, bytes) in paths {
            let make = || {
                let file = Partial::create(path)?;
                reserve(file.file(), *bytes)?;
                Ok(file)
            };
            let file = make().map_err(|source| Error::Write { path: path.clone(), source })?;
            files.push((file, path.clone()));
        }
        Ok(Self { files, force })
    }

    /// Writes `bytes` at `offset` of file number `part`. Several threads may write at once, to different places.
    ///
    /// # Errors
    /// When the system refuses, as when the disk is full.
    pub fn write_at(&self, part: usize, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let (file, path) = &self.files[part];
        write_all_at(file.file(), bytes, offset).map_err(|source| Error::Write { path: path.clone(), source })
    }

    /// Makes sure that everything is on the disk, and gives the files their names.
    ///
    /// # Errors
    /// When the system refuses, or when a file of that name has appeared meanwhile (unless `force`).
    pub fn finish(self) -> Result<(), Error> {
        for (file, path) in &self.files {
            file.file().sync_all().map_err(|source| Error::Write { path: path.clone(), source })?;
        }
        let mut named = Vec::new();
        for (file, path) in self.files {
            if let Err(source) = file.finish(self.force) {
                // Some parts of a model are no model. What they replaced is gone either way.
                named.iter().for_each(|path| drop(std::fs::remove_file(path)));
                return Err(Error::Write { path, source });
            }
            named.push(path);
        }
        Ok(())
    }
}

/// Refuses outputs that exist (unless `force`), that are not files, or whose folder is missing.
///
/// # Errors
/// See above.
pub fn check_paths(paths: &[(PathBuf, u64)], force: bool) -> Result<(), Error> {
    for (path, _) in paths {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(Error::OutputIsFolder { path: path.clone() }),
            Ok(metadata) if !metadata.is_file() && !metadata.is_symlink() => {
                return Err(Error::OutputIsSpecial { path: path.clone() });
            }
            Ok(_) if !force => return Err(Error::OutputExists { path: path.clone() }),
            _ => {}
        }
        let folder = folder(path);
        if !folder.is_dir() {
            return Err(Error::NoFolder { path: path.clone(), folder: folder.to_path_buf() });
        }
    }
    Ok(())
}

/// Refuses outputs that do not fit the disk.
///
/// # Errors
/// When fewer bytes are free than the files need together.
pub fn check_room(paths: &[(PathBuf, u64)]) -> Result<(), Error> {
    let Some((first, _)) = paths.first() else { return Ok(()) };
    let needed = paths.iter().map(|(_, bytes)| bytes).sum();
    match free_bytes(folder(first)) {
        Some(free) if free < needed => Err(Error::NoRoom { folder: folder(first).to_path_buf(), needed, free }),
        _ => Ok(()),
    }
}

/// Bytes that this user may still write to the disk that holds `folder`; `None` where the system does not tell.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(folder).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Sets the file's length, and where the file system can, sets its blocks aside: a disk that is too small then says so
/// now, and the blocks lie together.
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    if bytes > 0 {
        use rustix::io::Errno;
        let reserved = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        // Many file systems cannot; setting the length is enough then.
        if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) = reserved {
            return Err(error.into());
        }
    }
    file.set_len(bytes)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
