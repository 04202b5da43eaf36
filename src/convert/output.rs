//! The files a conversion writes: beside where they will be, as `NAME.partial`, and renamed when all are complete.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use crate::base::atomic_file::{folder, give_name, sync_folder};
use crate::base::mmap::read_exact_at;

/// Output files in the making. They stay where they are when this is dropped.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<Output>,
}

#[derive(Debug)]
struct Output {
    file: File,
    path: PathBuf,
    /// Written to since it was last brought to the disk.
    changed: AtomicBool,
}

impl Outputs {
    /// Opens the file in the making of each of `paths`, as an earlier run left it or new, and gives it its size.
    ///
    /// # Errors
    /// When a folder cannot be written, or when there is not enough room.
    pub fn open(paths: &[(PathBuf, u64)]) -> Result<Self, Error> {
        let open = |(path, bytes): &(PathBuf, u64)| {
            let make = || {
                let partial = partial_path(path);
                let mut options = OpenOptions::new();
                options.read(true).write(true);
                let file = match partial.symlink_metadata() {
                    Ok(metadata) if metadata.is_file() => options.open(&partial)?,
                    Ok(_) => {
                        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "its .partial is no regular file"));
                    }
                    // Nobody else's file is opened, nor what a link points to.
                    Err(_) => options.create_new(true).open(&partial)?,
                };
                reserve(&file, *bytes)?;
                Ok(file)
            };
            let file = make().map_err(|source| Error::Write { path: path.clone(), source })?;
            Ok(Output { file, path: path.clone(), changed: AtomicBool::new(false) })
        };
        let files = paths.iter().map(open).collect::<Result<_, Error>>()?;
        // So that the names survive a power failure, not only what they stand for.
        paths.first().into_iter().for_each(|(path, _)| sync_folder(path));
        Ok(Self { files })
    }

    /// Writes `bytes` at `offset` of file number `part`. Several threads may write at once, to different places.
    ///
    /// # Errors
    /// When the system refuses, as when the disk is full.
    pub fn write_at(&self, part: usize, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let output = &self.files[part];
        write_all_at(&output.file, bytes, offset).map_err(|source| output.failed(source))?;
        // Looked at first: a flag that all threads write would go from one core to the next.
        if !output.changed.load(Ordering::Relaxed) {
            output.changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fills `dst` with the bytes of file number `part` from `offset` on.
    ///
    /// # Errors
    /// When the system cannot read.
    pub fn read_at(&self, part: usize, dst: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&self.files[part].file, dst, offset)
    }

    /// Brings what has been written since the last call to the disk.
    ///
    /// # Errors
    /// When the system refuses. It says so once and forgets it, so that the caller must not.
    pub fn sync(&self) -> Result<(), Error> {
        for output in self.files.iter().filter(|output| output.changed.swap(false, Ordering::Relaxed)) {
            output.file.sync_data().map_err(|source| output.failed(source))?;
        }
        Ok(())
    }

    /// Makes sure that everything is on the disk, and gives the files their names; those of that name go where `replace`.
    ///
    /// # Errors
    /// When the system refuses, or when a file of that name has appeared meanwhile (unless `replace`). The files in the
    /// making are all there again then.
    pub fn finish(&self, replace: bool) -> Result<(), Error> {
        for output in &self.files {
            output.file.sync_all().map_err(|source| output.failed(source))?;
        }
        for (i, output) in self.files.iter().enumerate() {
            let Err(source) = give_name(&partial_path(&output.path), &output.path, replace) else { continue };
            // Some parts of a model are no model.
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

/// What `path` is called while it is in the making.
pub fn partial_path(path: &Path) -> PathBuf {
    with_more(path, ".partial")
}

/// Where the journal of the conversion to `path` is.
pub fn journal_path(path: &Path) -> PathBuf {
    with_more(path, ".journal")
}

fn with_more(path: &Path, more: &str) -> PathBuf {
    let mut name: OsString = path.file_name().unwrap_or_default().to_os_string();
    name.push(more);
    path.with_file_name(name)
}

/// Removes the files in the making of `paths`.
pub fn discard<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for path in paths {
        // What cannot be removed now is found by the next run of the same command.
        let _ = std::fs::remove_file(partial_path(path));
    }
}

/// Gives the complete file at `path` back the name it had in the making, where an earlier run was cut off after naming
/// it, and before naming the others. It is known by its length and its header.
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

/// Refuses outputs that are not files, or whose folder is missing.
///
/// # Errors
/// See above.
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

/// Refuses outputs that exist.
///
/// # Errors
/// See above.
pub fn check_names(paths: &[(PathBuf, u64)]) -> Result<(), Error> {
    match paths.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        Some((path, _)) => Err(Error::OutputExists { path: path.clone() }),
        None => Ok(()),
    }
}

/// Refuses outputs that do not fit the disk. What files in the making take already is theirs.
///
/// # Errors
/// When fewer bytes are free than the files need together.
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

/// Bytes that the disk lacks for these files; `None` where the system does not tell.
pub fn missing_bytes(paths: &[(PathBuf, u64)]) -> Option<u64> {
    let free = free_bytes(folder(&paths.first()?.0))?;
    let still = paths.iter().map(|(path, bytes)| bytes.saturating_sub(allocated_bytes(&partial_path(path))));
    Some(still.sum::<u64>().saturating_sub(free))
}

/// Bytes of the disk that the file takes: fewer than its length where it has holes.
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
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
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

/// Writes all of `bytes` at `offset`, without a position that threads would share.
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
