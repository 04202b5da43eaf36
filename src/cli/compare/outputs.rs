//! The files that a comparison writes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::base::atomic_file::AtomicFile;
use crate::report;
use crate::report::results::Results;

/// Where to write the results. Files are written again after each candidate, so that nothing is lost.
#[derive(Debug, clap::Args)]
pub struct Outputs {
    /// Write a report for reading: one HTML file that needs no network
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    report: Option<PathBuf>,

    /// Write all results as JSON
    #[arg(long, value_name = "FILE.json", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Write the scores as CSV
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    csv: Option<PathBuf>,

    /// Replace files that exist
    #[arg(long, help_heading = "Output")]
    force: bool,
}

/// Returns the content of a file.
type Writer = fn(&Results) -> String;

impl Outputs {
    /// Returns outputs to `report.html`, `report.json` and `report.csv` in a folder, which are replaced.
    #[cfg(feature = "llama")]
    pub fn in_folder(folder: &Path) -> Self {
        let at = |ending: &str| Some(folder.join("report").with_extension(ending));
        Self { report: at("html"), json: at("json"), csv: at("csv"), force: true }
    }

    fn all(&self) -> impl Iterator<Item = (&Path, Writer)> {
        let all = [
            (&self.report, report::html as Writer),
            (&self.json, report::json as Writer),
            (&self.csv, report::csv as Writer),
        ];
        all.into_iter().filter_map(|(path, writer)| Some((path.as_deref()?, writer)))
    }

    /// Checks that all files can be written, before hours of work.
    ///
    /// # Errors
    /// If one exists already, or its folder cannot be written to.
    pub fn check(&self) -> anyhow::Result<()> {
        for (path, _) in self.all() {
            if !self.force && path.symlink_metadata().is_ok() {
                bail!("{} exists already; --force replaces it", path.display());
            }
            AtomicFile::create(path).with_context(|| format!("{} could not be written", path.display()))?;
        }
        Ok(())
    }

    /// Writes all files. Replaces files that this has written before.
    ///
    /// # Errors
    /// If one cannot be written, or another process has written a file of that name.
    pub fn write(&mut self, results: &Results) -> anyhow::Result<()> {
        for (path, writer) in self.all() {
            self.write_one(path, &writer(results))
                .with_context(|| format!("{} could not be written", path.display()))?;
        }
        self.force = true;
        Ok(())
    }

    fn write_one(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(text.as_bytes())?;
        file.finish(self.force)
    }
}
