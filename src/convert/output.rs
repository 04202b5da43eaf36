//! Output files. Each is written as `NAME.partial` in its folder, and all are renamed when all are complete.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use crate::base::atomic_file::{folder, give_name, sync_folder};
use crate::base::disk::free_bytes;
use crate::base::mmap::read_exact_at;

/// Partial output files. They are kept when this is dropped.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    file: File,
    path: PathBuf,
    /// Whether it has been written to since it was last flushed.
    changed: AtomicBool,
}

impl Outputs {
    /// Opens the partial file of each of `paths`, new or as an earlier run left it, and sets its size.
    ///
    /// # Errors
    /// If a folder cannot be written to, or the disk has not enough room.
    pub fn open(paths: &[(PathBuf, u64)]) -> Result<Self, Error> {
        let open = |(path, bytes): &(PathBuf, u64)| {
            let make = || {
                let partial = partial_path(path);
                let mut options = OpenOptions::new();
                options.read(true).write(true);
                let file = match partial.symlink_metadata() {
                    Ok(metadata) if metadata.is_file() => options.open(&partial)?,
                    Ok(_) => {
                        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "its .partial is not a regular file"));
                    }
                    // Never opens another program's file or what a link points to.
                    Err(_) => options.create_new(true).open(&partial)?,
                };
                reserve(&file, *bytes)?;
                Ok(file)
            };
            let file = make().map_err(|source| Error::Write { path: path.clone(), source })?;
            Ok(Output { file, path: path.clone(), changed: AtomicBool::new(false) })
        };
        let files = paths.iter().map(open).collect::<Result<_, Error>>()?;
        // So that the names survive a power failure, not only the contents.
        paths.first().into_iter().for_each(|(path, _)| sync_folder(path));
        Ok(Self { files })
    }

    /// Writes `bytes` at `offset` of file number `part`. Several threads may write at once, to different places.
    ///
    /// # Errors
    /// If the system refuses, as when the disk is full.
    pub fn write_at(&self, part: usize, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let output = &self.files[part];
        write_all_at(&output.file, bytes, offset).map_err(|source| output.failed(source))?;
        // Read first: a flag that every thread writes would bounce between the cores' caches.
        if !output.changed.load(Ordering::Relaxed) {
            output.changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fills `dst` with the bytes of file number `part` from `offset` on.
    ///
    /// # Errors
    /// If the system cannot read.
    pub fn read_at(&self, part: usize, dst: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&self.files[part].file, dst, offset)
    }

    /// Flushes what has been written since the last call to the disk.
    ///
    /// # Errors
    /// If the system refuses. It reports a failed write only once, so the caller must not ignore this.
    pub fn sync(&self) -> Result<(), Error> {
        for output in self.files.iter().filter(|output| output.changed.swap(false, Ordering::Relaxed)) {
            output.file.sync_data().map_err(|source| output.failed(source))?;
        }
        Ok(())
    }

    /// Flushes everything to the disk and gives the files their names, replacing existing files if `replace`.
    ///
    /// # Errors
    /// If the system refuses, or a file of that name has appeared meanwhile (unless `replace`). Then all files have
    /// their partial names again.
    pub fn finish(&self, replace: bool) -> Result<(), Error> {
        for output in &self.files {
            output.file.sync_all().map_err(|source| output.failed(source))?;
        }
        for (i, output) in self.files.iter().enumerate() {
            let Err(source) = give_name(&partial_path(&output.path), &output.path, replace) else { continue };
            // Some parts alone are not a model.
            for named in &self.files[..i] {
                let _ = give_name(&named.path, &partial_path(&named.path), true);
            }
            return Err(match source.kind() {
                io::ErrorKind::AlreadyExists => Error::OutputExists { path: output.path.clone() },
                _ => output.failed(source),
            });
        }
        // All are in the same folder.
        self.files.first().into_iter().for_each(|output| sync_folder(&output.path));
        Ok(())
    }
}

impl Output {
    fn failed(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

/// Returns the name of `path` until it is complete.
pub fn partial_path(path: &Path) -> PathBuf {
    with_more(path, ".partial")
}

/// Returns the path of the journal of the conversion to `path`.
pub fn journal_path(path: &Path) -> PathBuf {
    with_more(path, ".journal")
}

fn with_more(path: &Path, more: &str) -> PathBuf {
    let mut name: OsString = path.file_name().unwrap_or_default().to_os_string();
    name.push(more);
    path.with_file_name(name)
}

/// Removes the partial files of `paths`.
pub fn discard<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for path in paths {
        // The next run of the same command finds what cannot be removed now.
        let _ = std::fs::remove_file(partial_path(path));
    }
}

/// Gives the complete file at `path` its partial name back, if an earlier run was interrupted after naming it and before
/// naming the others. The file is recognized by its length and its header.
pub fn take_back(path: &Path, bytes: u64, header: &[u8]) {
    let partial = partial_path(path);
    let is_ours = || {
        let file = File::open(path).ok()?;
        let metadata = path.symlink_metadata().ok()?;
        let mut found = vec![0; header.len()];
        read_exact_at(&file, &mut found, 0).ok()?;
        Some(metadata.is_file() && metadata.len() == bytes && found == header)
    };
    if partial.symlink_metadata().is_err() && is_ours() == Some(true) {
        let _ = give_name(path, &partial, false);
    }
}

/// Checks that no output is a folder or a special file, and that the folders exist.
///
/// # Errors
/// If an output is such a thing, or its folder is missing. The error names the first.
pub fn check_places(paths: &[(PathBuf, u64)]) -> Result<(), Error> {
    for (path, _) in paths {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(Error::OutputIsFolder { path: path.clone() }),
            Ok(metadata) if !metadata.is_file() && !metadata.is_symlink() => {
                return Err(Error::OutputIsSpecial { path: path.clone() });
            }
            _ => {}
        }
        let folder = folder(path);
        if !folder.is_dir() {
            return Err(Error::NoFolder { path: path.clone(), folder: folder.to_path_buf() });
        }
    }
    Ok(())
}

/// Checks that no output exists.
///
/// # Errors
/// If an output exists. The error names the first.
pub fn check_names(paths: &[(PathBuf, u64)]) -> Result<(), Error> {
    match paths.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        Some((path, _)) => Err(Error::OutputExists { path: path.clone() }),
        None => Ok(()),
    }
}

/// Checks that the outputs fit the disk. Space that partial files occupy already counts as available.
///
/// # Errors
/// If fewer bytes are free than the files need together.
pub fn check_room(paths: &[(PathBuf, u64)]) -> Result<(), Error> {
    let Some((first, _)) = paths.first() else { return Ok(()) };
    let folder = folder(first);
    match missing_bytes(paths) {
        Some(missing) if missing > 0 => {
            let needed = paths.iter().map(|(_, bytes)| bytes).sum();
            Err(Error::NoRoom { folder: folder.to_path_buf(), needed, missing })
        }
        _ => Ok(()),
    }
}

/// Returns how many bytes the disk lacks for these files; `None` if the system does not say.
pub fn missing_bytes(paths: &[(PathBuf, u64)]) -> Option<u64> {
    let free = free_bytes(folder(&paths.first()?.0))?;
    Some(bytes_to_write(paths).saturating_sub(free))
}

/// Returns how many bytes of the disk these files still take, beside what partial files occupy.
pub fn bytes_to_write(paths: &[(PathBuf, u64)]) -> u64 {
    paths.iter().map(|(path, bytes)| bytes.saturating_sub(allocated_bytes(&partial_path(path)))).sum()
}

/// Returns how many bytes of the disk the file occupies: fewer than its length if it has holes.
fn allocated_bytes(path: &Path) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        // In units of 512 bytes, whatever the disk's blocks.
        path.symlink_metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }
    #[cfg(not(unix))]
    path.symlink_metadata().map_or(0, |metadata| metadata.len())
}

/// Sets the file's length and, if the file system supports it, allocates its blocks. A disk that is too small then fails
/// now, and the blocks are contiguous.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if bytes > 0 {
        use rustix::io::Errno;
        let reserved = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        // Many file systems do not support it; setting the length is enough then.
        if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) = reserved {
            return Err(error.into());
        }
    }
    file.set_len(bytes)
}

/// Writes all of `bytes` at `offset`, without using the file position that threads would share.
#[cfg(unix)]
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes all of `bytes` at `offset`.
#[cfg(windows)]
pub fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
