//! The disks of this machine.

use std::path::Path;

/// Returns how many bytes this user may still write to the disk that holds `folder`; `None` if the system does not say.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room() {
        let free = free_bytes(&std::env::temp_dir());
        assert!(free.is_some() || !cfg!(unix));
        assert!(free.is_none_or(|bytes| bytes > 0));
        assert_eq!(free_bytes(Path::new("/no/such/folder")), None);
    }
}
