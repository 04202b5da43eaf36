//! Saves each result to disk as soon as it is known, so that an interrupted run can continue.
//!
//! ```text
//! {"nibble_task_results":1,"task":{"name":...,"blake3":...},"model":{"name":...},"settings":{...}}      whose results
//! {"index":0,"log_likelihoods":[-41.2,-38.7,...],"chosen":1,"right":false,"marks":[0.0]}                 a question each
//! ```

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{QuestionResult, Task};
use crate::base::atomic_file::AtomicFile;

const VERSION: u32 = 1;
/// The longest file that is read. A result takes less than a kilobyte, or a few kilobytes if the model writes an
/// answer.
const MAX_BYTES: u64 = 1 << 30;

/// What the results belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The version of this format.
    nibble_task_results: u32,
    /// The task's name.
    pub task: String,
    /// Its file, format and examples: [`Task::fingerprint`].
    pub task_fingerprint: String,
    /// The model's name.
    pub model: String,
    /// Its weights: `llama::Model::fingerprint`.
    pub model_fingerprint: String,
    /// The other settings that the numbers depend on: type of the KV cache, context.
    pub settings: String,
}

impl Identity {
    /// The identity of results of `task`.
    pub fn new(task: &Task, model: &str, model_fingerprint: &str, settings: &str) -> Self {
        Self {
            nibble_task_results: VERSION,
            task: task.about.name.clone(),
            task_fingerprint: task.fingerprint(),
            model: model.to_string(),
            model_fingerprint: model_fingerprint.to_string(),
            settings: settings.to_string(),
        }
    }

    /// Returns how `other` differs; `None` if it does not.
    fn differs(&self, other: &Self) -> Option<String> {
        if self.nibble_task_results != other.nibble_task_results {
            return Some("in another version of this format".to_string());
        }
        if self.task_fingerprint != other.task_fingerprint {
            return Some("for another file, format or number of examples of this task".to_string());
        }
        if self.model_fingerprint != other.model_fingerprint {
            return Some("of another model".to_string());
        }
        (self.settings != other.settings).then(|| format!("under other settings ({})", other.settings))
    }
}

/// Why results cannot be saved or reused.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is something else, or holds results of something else.
    #[error("{}: it holds {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// Another process is writing to it.
    #[error("{}: another process is writing results there", .0.display())]
    InUse(PathBuf),
}

/// A file to which results are appended.
#[derive(Debug)]
pub struct Kept {
    file: File,
    path: PathBuf,
}

impl Kept {
    /// Opens the file at `path`, or creates it. Returns the results that it holds, and a note for the user if there is
    /// one. A line that was cut off or is not a result is removed; its question will be asked again.
    ///
    /// # Errors
    /// If the file cannot be read or written, is in use by another process, or holds anything other than results of the
    /// same task, model and settings. The file is then left unchanged.
    pub fn open(path: &Path, identity: &Identity) -> Result<(Self, Vec<QuestionResult>, Option<String>), KeptError> {
        let failed = |source| KeptError::File { path: path.to_path_buf(), source };
        let foreign = |what: &str| KeptError::Foreign { path: path.to_path_buf(), what: what.to_string() };
        let mut open = OpenOptions::new();
        open.read(true).append(true).create(true);
        let mut file = open.open(path).map_err(failed)?;
        lock(&file, path)?;
        if file.metadata().map_err(failed)?.len() > MAX_BYTES {
            return Err(foreign("more than results of a task"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;

        let head = serde_json::to_string(identity).map_err(|error| failed(error.into()))?;
        let (first, rest) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            // A head that was cut off, with nothing after it, counts as an empty file.
            None if head.as_bytes().starts_with(&bytes) => (head.as_bytes(), &[][..]),
            None => return Err(foreign("something else than results of a task")),
        };
        let found: Identity =
            serde_json::from_slice(first).map_err(|_| foreign("something else than results of a task"))?;
        if let Some(what) = identity.differs(&found) {
            return Err(foreign(&format!("results {what}")));
        }
        let (results, dropped) = read_lines(rest);
        let mut note = None;
        if dropped > 0 {
            note = Some(format!(
                "{}: {dropped} of its lines {}, so {} asked again",
                path.display(),
                if dropped == 1 { "is not a complete result" } else { "are not complete results" },
                if dropped == 1 { "that question is" } else { "those questions are" },
            ));
        }
        if dropped > 0 || !bytes.contains(&b'\n') {
            let mut lines = head + "\n";
            for result in &results {
                lines.push_str(&line(result).map_err(failed)?);
            }
            // Some systems cannot replace an open file.
            drop(file);
            let mut partial = AtomicFile::create(path).map_err(failed)?;
            partial.write_all(lines.as_bytes()).map_err(failed)?;
            partial.finish(true).map_err(failed)?;
            // The lock was on the file that is no longer there.
            file = open.open(path).map_err(failed)?;
            lock(&file, path)?;
        }
        Ok((Self { file, path: path.to_path_buf() }, results, note))
    }

    /// Appends a result. When this returns, the operating system has it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, result: &QuestionResult) -> io::Result<()> {
        self.file.write_all(line(result)?.as_bytes())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn lock(file: &File, path: &Path) -> Result<(), KeptError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(KeptError::InUse(path.to_path_buf())),
        // Some file systems do not support locks.
        Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn line(result: &QuestionResult) -> io::Result<String> {
    Ok(serde_json::to_string(result)? + "\n")
}

/// Returns the results, the first one of each question, and the number of lines that are not results.
fn read_lines(bytes: &[u8]) -> (Vec<QuestionResult>, usize) {
    let (mut results, mut seen, mut dropped) = (Vec::new(), HashSet::new(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<QuestionResult>(line) {
            // A number that was cut off would be a different number, so a line counts only with its line break.
            Ok(result) if line.ends_with(b"\n") && seen.insert(result.index) => results.push(result),
            _ => dropped += 1,
        }
    }
    (results, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(model: &str) -> Identity {
        let [task, task_fingerprint, settings] = ["quiz", "f1", "kv f16"].map(str::to_string);
        let model_fingerprint = model.to_string();
        Identity {
            nibble_task_results: VERSION,
            task,
            task_fingerprint,
            model: "yi".into(),
            model_fingerprint,
            settings,
        }
    }

    fn result(index: u64) -> QuestionResult {
        QuestionResult {
            index,
            log_likelihoods: vec![-41.25, -0.1 - 0.2 * index as f64],
            chosen: Some(1),
            text: None,
            right: index.is_multiple_of(2),
            marks: vec![1.0, 0.25],
            shortened: index == 3,
        }
    }

    #[test]
    fn results_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quiz.jsonl");
        let (mut kept, results, note) = Kept::open(&path, &identity("a")).unwrap();
        assert!(results.is_empty() && note.is_none());
        (0..5).for_each(|i| kept.add(&result(i)).unwrap());
        assert!(matches!(Kept::open(&path, &identity("a")), Err(KeptError::InUse(_))));
        drop(kept);
        let (_kept, results, note) = Kept::open(&path, &identity("a")).unwrap();
        assert_eq!(results, (0..5).map(result).collect::<Vec<_>>());
        assert_eq!(note, None);
    }

    #[test]
    fn what_was_cut_off_is_said_and_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quiz.jsonl");
        let (mut kept, ..) = Kept::open(&path, &identity("a")).unwrap();
        (0..4).for_each(|i| kept.add(&result(i)).unwrap());
        drop(kept);
        let whole = std::fs::read(&path).unwrap();
        let head = whole.iter().position(|b| *b == b'\n').unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let (mut kept, results, note) = Kept::open(&path, &identity("a")).unwrap();
            let lines = whole[..len].iter().filter(|b| **b == b'\n').count().saturating_sub(1);
            assert_eq!(results, (0..lines as u64).map(result).collect::<Vec<_>>(), "{len}");
            let cut = len > head + 1 && whole[len - 1] != b'\n';
            assert_eq!(note.is_some(), cut, "{len}");
            kept.add(&result(lines as u64)).unwrap();
            drop(kept);
            let (_, results, note) = Kept::open(&path, &identity("a")).unwrap();
            assert_eq!((results.len(), note), (lines + 1, None), "{len}");
        }
        let mut text = String::from_utf8(whole).unwrap();
        text.insert_str(head + 1, "hello\n{\"index\":7}\n");
        text.push_str(&line(&result(2)).unwrap());
        std::fs::write(&path, text).unwrap();
        let (_, results, note) = Kept::open(&path, &identity("a")).unwrap();
        assert_eq!(results, (0..4).map(result).collect::<Vec<_>>());
        assert!(note.unwrap().contains("3 of its lines are not complete results"));
    }

    #[test]
    fn what_belongs_to_something_else_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quiz.jsonl");
        drop(Kept::open(&path, &identity("a")).unwrap());
        let error = Kept::open(&path, &identity("b")).unwrap_err().to_string();
        assert!(error.contains("results of another model"), "{error}");
        let other = Identity { settings: "kv q8_0".into(), ..identity("a") };
        let error = Kept::open(&path, &other).unwrap_err().to_string();
        assert!(error.contains("under other settings (kv f16)"), "{error}");
        let other = Identity { task_fingerprint: "f2".into(), ..identity("a") };
        assert!(Kept::open(&path, &other).unwrap_err().to_string().contains("number of examples"));
        for text in ["my notes", "my notes\nand more\n", "{}\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Kept::open(&path, &identity("a")).unwrap_err().to_string();
            assert!(error.contains("something else than results"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
