//! What was measured on this machine, kept for later runs: a small JSON file in the user's cache folder.
//!
//! Anybody may delete it. Whatever is wrong with it, or with the folder, is as if nothing had been measured before.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::atomic_file::AtomicFile;
use super::folders;

/// The most bytes of such a file that are read.
const MOST_BYTES: u64 = 1 << 20;

/// Measurements by name.
#[derive(Debug)]
pub struct Remembered {
    path: Option<PathBuf>,
}

impl Remembered {
    /// Those of the user, in nibble's folder for caches.
    pub fn of_user() -> Self {
        Self { path: folders::cache().map(|folder| folder.join("measured.json")) }
    }

    /// Those in a file of this path, which need not exist.
    pub fn at(path: &Path) -> Self {
        Self { path: Some(path.to_path_buf()) }
    }

    /// Returns what was kept under this name, if it can be read as a `T`.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_value(self.read()?.remove(name)?).ok()
    }

    /// Keeps `value` under this name, if the folder can be written to.
    pub fn put(&self, name: &str, value: &impl Serialize) {
        let (Some(path), Ok(value)) = (&self.path, serde_json::to_value(value)) else { return };
        let mut all = self.read().unwrap_or_default();
        all.insert(name.to_string(), value);
        let text = format!("{:#}\n", Value::Object(all));
        // Two programs that measure at the same time each write a whole file; the last one stays.
        let written = std::fs::create_dir_all(super::atomic_file::folder(path))
            .and_then(|()| AtomicFile::create(path))
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.finish(true)));
        // Without it, the next run measures again.
        let _ = written;
    }

    fn read(&self) -> Option<Map<String, Value>> {
        let path = self.path.as_ref()?;
        let is_small = path.metadata().is_ok_and(|data| data.is_file() && data.len() <= MOST_BYTES);
        let text = is_small.then(|| std::fs::read(path).ok())??;
        serde_json::from_slice(&text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_there_in_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/measured.json");
        let here = || Remembered::at(&path);
        assert_eq!(here().get::<f64>("speed"), None);
        here().put("speed", &1.5);
        here().put("模型", &[1, 2]);
        assert_eq!(here().get("speed"), Some(1.5));
        assert_eq!(here().get("模型"), Some([1, 2]));
        here().put("speed", &2.5);
        assert_eq!(here().get("speed"), Some(2.5));
        // Of another type, as another version may have written.
        assert_eq!(here().get::<[u8; 2]>("speed"), None);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_or_folder_is_as_if_nothing_was_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("measured.json");
        for broken in ["", "[1]", "{\"speed\": ", "\u{0}\u{0}"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(Remembered::at(&path).get::<f64>("speed"), None);
            Remembered::at(&path).put("speed", &3.5);
            assert_eq!(Remembered::at(&path).get("speed"), Some(3.5));
        }
        let below_a_file = Remembered::at(&path.join("measured.json"));
        below_a_file.put("speed", &1.5);
        assert_eq!(below_a_file.get::<f64>("speed"), None);
        let a_folder = Remembered::at(folder.path());
        a_folder.put("speed", &1.5);
        assert_eq!(a_folder.get::<f64>("speed"), None);
        let none = Remembered { path: None };
        none.put("speed", &1.5);
        assert_eq!(none.get::<f64>("speed"), None);
    }
}
