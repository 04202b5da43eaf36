//! The texts that matrices are rounded for.

use std::path::{Path, PathBuf};

use super::Error;
use crate::base::text::without_mark;
use crate::chat::{self, Prompt};
use crate::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata};
use crate::llama::Model;

/// A text as it is read.
pub struct CalibrationText {
    /// What it holds: its name may change.
    pub blake3: blake3::Hash,
    /// Whole windows.
    pub tokens: Vec<u32>,
}

/// Reads texts for the model that `metadata` describes, and cuts each into windows. Each gives as many, from all over it.
/// The vocabulary is written to a file in `folder`.
///
/// # Errors
/// If a text cannot be read, is not UTF-8, is shorter than a window, or cannot be made into tokens.
pub fn read(
    metadata: &Metadata,
    folder: &Path,
    window: u32,
    paths: &[PathBuf],
    most_tokens: u64,
) -> Result<Vec<CalibrationText>, Error> {
    let vocabulary = vocabulary(metadata, folder)?;
    let tokenizer = vocabulary.tokenizer();
    let share = most_tokens / paths.len().max(1) as u64 / u64::from(window);
    let most_windows = usize::try_from(share.max(1)).unwrap_or(usize::MAX);
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let blake3 = blake3::hash(&bytes);
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::NotUtf8 { path: path.clone(), at: error.utf8_error().valid_up_to() })?;
        let prompt = Prompt::with_control_tokens(without_mark(text).as_str());
        let tokens = chat::encode(&prompt, tokenizer)
            .map_err(|error| Error::Tokens { path: path.clone(), reason: error.to_string() })?;
        let n_windows = tokens.len() / window as usize;
        if n_windows == 0 {
            return Err(Error::Short { path: path.clone(), tokens: tokens.len(), window });
        }
        let n_read = n_windows.min(most_windows);
        let windows = (0..n_read).flat_map(|i| {
            let at = i * n_windows / n_read * window as usize;
            // A window begins as a text does.
            let first = tokenizer.begins_with().unwrap_or(tokens[at]);
            std::iter::once(first).chain(tokens[at + 1..at + window as usize].iter().copied())
        });
        Ok(CalibrationText { blake3, tokens: windows.collect() })
    };
    paths.iter().map(read).collect()
}

/// Loads the vocabulary that `metadata` describes, from a file without tensors in `folder`.
fn vocabulary(metadata: &Metadata, folder: &Path) -> Result<Model, Error> {
    let path = folder.join("vocabulary.gguf");
    let layout = Layout::new(metadata, Vec::new(), DEFAULT_ALIGNMENT, None)?;
    std::fs::write(&path, &layout.parts()[0].header)
        .map_err(|source| Error::Temporary { path: path.clone(), source })?;
    Ok(Model::load_vocabulary(&path)?)
}
