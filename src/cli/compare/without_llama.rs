//! Compares only weights, in a program that was built without llama.cpp.

use anyhow::bail;

use crate::weights::{FileComparison, FileOptions};

/// What to compare by, beside weights: nothing.
#[derive(Debug, clap::Args)]
pub struct MeasureArgs {}

impl MeasureArgs {
    /// Prepares the comparison.
    ///
    /// # Errors
    /// If [`FileComparison::prepare`] fails, or weights are not compared.
    pub fn prepare(&self, files: FileOptions) -> anyhow::Result<FileComparison> {
        if !files.weights {
            bail!("there is nothing to compare by; pass --weights (this nibble was built without llama.cpp)");
        }
        Ok(FileComparison::prepare(files)?)
    }

    /// Returns whether llama.cpp's log is shown.
    pub fn is_loud(&self) -> bool {
        false
    }
}
