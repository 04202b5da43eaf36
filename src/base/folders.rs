//! nibble's folders in the user's home, where the system wants them.

use std::path::PathBuf;

/// Returns the folder for what can be made again: `$NIBBLE_CACHE`, where an empty value means none, or else one in the
/// system's folder for caches. It need not exist.
pub fn cache() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("NIBBLE_CACHE") {
        return (!given.is_empty()).then(|| given.into());
    }
    in_home("XDG_CACHE_HOME", if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" })
}

/// Returns the folder for what lasts between runs but is not settings: one in the system's folder for the state of
/// programs. It need not exist.
pub fn state() -> Option<PathBuf> {
    in_home("XDG_STATE_HOME", ".local/state")
}

/// Returns nibble's folder in the one that `variable` names, or else in `folder` of the home directory. Windows has one
/// for both.
fn in_home(variable: &str, folder: &str) -> Option<PathBuf> {
    // The XDG specification says to ignore paths that are not absolute.
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let parent = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else {
        absolute(variable).or_else(|| Some(std::env::home_dir()?.join(folder)))
    };
    Some(parent?.join("nibble"))
}
