//! Files for reading: memory-mapped for random access, or copied with [`Mapping::read_at`] for sequential reading. This
//! is the only place in nibble that maps a file.
//!
//! # Safety contract
//!
//! A mapping shows the file as it is now. If another process changes the file while nibble reads it, the bytes change
//! under a shared slice. If the file is truncated, accessing the lost pages ends the process with SIGBUS. nibble
//! accepts this, as every program that maps its model does, and limits the consequences: it maps only regular files,
//! read-only; it checks every value from the file's *content* (an offset, a count) against the mapping's length before
//! it uses it; and it validates bytes at the moment at which it copies them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct Mapping {
    path: PathBuf,
    file: File,
    // None for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be opened, is not a regular file, or cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the module's contract: a regular file, mapped read-only; see above for what may still happen.
            Some(unsafe { memmap2::Mmap::map(&file)? })
        };
        Ok(Self { path: path.to_path_buf(), file, map })
    }

    /// Returns the file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `dst` with the file's bytes from `offset` on. Unlike accessing the mapping, this returns an error if the
    /// disk fails or the file has been truncated.
    ///
    /// # Errors
    /// If the system cannot read, or the file ends before `dst` is full.
    pub fn read_at(&self, dst: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&self.file, dst, offset)
    }

    /// Returns the file's current length in bytes, and when it was last changed.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn state(&self) -> io::Result<(u64, SystemTime)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.len(), metadata.modified()?))
    }

    /// Tells the system that `range` (in bytes) will be read from start to end soon.
    pub fn will_read(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // This is only advice: ignoring it only costs speed.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Releases the pages that are completely inside `range` (in bytes). They no longer count as this process's memory,
    /// and are read from the file again if they are accessed again.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            const PAGE: usize = 4096;
            let start = range.start.next_multiple_of(PAGE);
            let end = range.end.min(map.len()) / PAGE * PAGE;
            if start < end {
                // SAFETY: the mapping is shared and backed by a file that is never written through it, so dropping
                // pages loses nothing: the next access reads the same bytes from the file.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Fills `dst` with the bytes of `file` from `offset` on, without a position that threads would share.
///
/// # Errors
/// If the system cannot read, or the file ends before `dst` is full.
#[cfg(unix)]
pub fn read_exact_at(file: &File, dst: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, dst, offset)
}

/// Fills `dst` with the bytes of `file` from `offset` on.
///
/// # Errors
/// If the system cannot read, or the file ends before `dst` is full.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut dst: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !dst.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, dst, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        dst = &mut dst[n..];
        offset += n as u64;
    }
    Ok(())
}
