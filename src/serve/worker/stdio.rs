//! The standard output, kept for frames alone.

use std::fs::File;
use std::io;

/// Returns the standard output. Whatever else writes to it from now on, as C code may, writes to the standard error.
///
/// # Errors
/// If the system refuses.
#[cfg(unix)]
pub(super) fn take_stdout() -> io::Result<File> {
    use std::os::fd::AsFd;
    let ours = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(File::from(ours))
}

/// Returns the standard output.
///
/// # Errors
/// If the system refuses.
#[cfg(windows)]
pub(super) fn take_stdout() -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    Ok(File::from(io::stdout().as_handle().try_clone_to_owned()?))
}
