//! A whole comparison: files, texts, tasks and weights.
//!
//! ```text
//! Comparison::prepare   open the files ─► tokenize the texts ─► same vocabulary? ─► open the tasks     no weights read
//! Comparison::execute   hashes ─► texts ─► tasks ─► weights                  Observer::measured after each candidate
//! ```

mod tasks;
mod texts;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::models::ModelSettings;
use super::tasks::{Task, TaskOptions};
use super::texts::{Cut, TextFile, TokenizedText};
use super::trace::Trace;
use super::{Error, assemble};
use crate::report::results::{File, Reference, Results};
use crate::verify::{self, Verification, VerifyOptions};
use crate::weights::{FileComparison, FileOptions, FilesError, Observer, Stage};

pub use self::texts::{check_window, describe_failure};
pub(super) use self::texts::{diagnosed, loading, steps_of};

/// What to compare, and by what.
#[derive(Clone, Debug, Default)]
pub struct ComparisonOptions {
    /// The files, and what to compare of them without running a model. The reference may be a [`Trace`] here.
    pub files: FileOptions,
    /// Texts to compare on. A trace brings its own; those that are given have to be among them.
    pub texts: Vec<TextFile>,
    /// Tokens of a window; `None` for [`Cut::USUAL`], or what the trace has.
    pub window: Option<u32>,
    /// Windows to read of each text at most.
    pub most_windows: Option<usize>,
    /// How often the bootstrap draws.
    pub resamples: u32,
    /// The bootstrap's seed.
    pub seed: u64,
    /// Tasks to answer: their files.
    pub tasks: Vec<PathBuf>,
    /// How all of them are opened.
    pub task_options: TaskOptions,
    /// The folder in which answers are kept, so that an interrupted comparison goes on with those that are there.
    pub task_results: Option<PathBuf>,
    /// Tokens that a question and its examples may take together; `None` for what the model was trained on, up to 4096.
    pub task_context: Option<u32>,
    /// How models are run.
    pub models: ModelSettings,
}

/// A comparison, checked: only the work itself is left.
pub struct Comparison {
    options: ComparisonOptions,
    files: FileComparison,
    trace: Option<Trace>,
    cut: Cut,
    texts: Vec<TokenizedText>,
    tasks: Vec<Task>,
}

impl Comparison {
    /// Opens the files, the texts and the tasks, and checks that they go together. Makes the folder for answers.
    ///
    /// A candidate that cannot be compared stays, with its failure in the results, as long as there are others.
    ///
    /// # Errors
    /// When the reference, a text or a task cannot be used, or no candidate is left.
    pub fn prepare(options: ComparisonOptions) -> Result<Self, Error> {
        let reference = &options.files.reference;
        let trace = if Trace::is_one(reference) { Some(Trace::open(reference)?) } else { None };
        let runs_models = trace.is_some() || !options.texts.is_empty() || !options.tasks.is_empty();
        if runs_models && reference.is_dir() {
            return Err(Error::FolderCannotRun(reference.clone()));
        }
        if !runs_models && !options.files.weights {
            return Err(Error::NothingToCompareBy);
        }
        if options.files.weights && trace.is_some() {
            return Err(Error::TraceHasNoWeights);
        }
        let files = match &trace {
            Some(trace) => FileComparison::with_reference(options.files.clone(), reference_of_trace(trace, reference))?,
            None => FileComparison::prepare(options.files.clone())?,
        };
        let tasks = tasks::open(&options)?;
        let mut comparison = Self { options, files, trace, cut: Cut::USUAL, texts: Vec::new(), tasks };
        comparison.prepare_texts()?;
        Ok(comparison)
    }

    /// What is known so far.
    pub fn results(&self) -> &Results {
        self.files.results()
    }

    /// The candidates that cannot be compared, or not to the end, by name, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.failures()
    }

    /// The tasks that will be answered, with what there is to say of each.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Does the work. What was found is in [`Self::results`], also when this fails or is stopped.
    ///
    /// To be stopped while texts are read or questions are answered is not an error: the results say so.
    ///
    /// # Errors
    /// When the reference cannot be measured, no candidate is left, something could not be saved, or `cancel` was set
    /// before anything was measured.
    pub fn execute(&mut self, observer: &dyn Observer, cancel: &Arc<AtomicBool>) -> Result<(), Error> {
        self.options.models.session.cancel = cancel.clone();
        // What comes of a model with a NaN in it may look like any other number.
        if !self.texts.is_empty() || !self.tasks.is_empty() {
            self.check_blocks(observer, cancel)?;
        }
        if self.files.options().hash {
            self.files.hash(observer, cancel)?;
        }
        if !self.texts.is_empty() {
            self.read_texts(observer)?;
            self.save(observer)?;
        }
        if !self.tasks.is_empty() && !self.results().interrupted {
            self.answer_tasks(observer)?;
        }
        if self.files.options().weights && !self.results().interrupted {
            self.files.compare_weights(observer, cancel)?;
        }
        Ok(())
    }

    /// Fails the candidates that have a scale or a weight that is NaN or infinite.
    fn check_blocks(&mut self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<(), Error> {
        let left = self.left();
        let paths: Vec<PathBuf> = left.iter().map(|i| self.options.files.candidates[*i].clone()).collect();
        let opened: Vec<_> =
            paths.iter().map(|path| Verification::prepare(path, None, VerifyOptions::default())).collect();
        let bytes = opened.iter().flatten().map(Verification::file_bytes).sum();
        observer.begin(&Stage::Checking { bytes });
        for (i, opened) in left.into_iter().zip(opened) {
            // A file that cannot be opened fails where it is run.
            let Ok(verification) = opened else { continue };
            match verification.execute(&|n, _| observer.advance(n), cancel) {
                Ok(report) => {
                    if let Some(found) = report.not_finite() {
                        self.files.fail(i, found, observer);
                    }
                }
                Err(verify::Error::Cancelled) => return Err(FilesError::Stopped.into()),
                Err(error) => self.files.fail(i, error.to_string(), observer),
            }
        }
        observer.end();
        if self.left().is_empty() {
            let failures = self.failures().map(|(name, failure)| (name.to_string(), failure.to_string())).collect();
            return Err(FilesError::NoneLeft { failures }.into());
        }
        Ok(())
    }

    fn save(&self, observer: &dyn Observer) -> Result<(), Error> {
        observer.measured(self.results()).map_err(Error::Save)
    }

    /// Says in the results which texts are read, and how.
    fn describe_texts(&mut self) {
        let results = self.files.results_mut();
        describe_settings(results, self.options.resamples, self.options.seed, &self.options.models);
        assemble::describe_texts(results, &self.texts, self.cut);
    }

    /// The candidates that have not failed, by their places.
    fn left(&self) -> Vec<usize> {
        let candidates = &self.results().candidates;
        (0..candidates.len()).filter(|i| candidates[*i].failure.is_none()).collect()
    }
}

/// What results say of a trace.
pub(super) fn reference_of_trace(trace: &Trace, path: &Path) -> Reference {
    let model = &trace.header().model;
    let file = File {
        name: model.name.clone(),
        path: path.display().to_string(),
        bytes: trace.n_bytes(),
        blake3: Some(trace.blake3()),
        quantization: model.quantization.clone(),
        ..File::default()
    };
    Reference { file, trace_k: Some(trace.header().k), ..Reference::default() }
}

/// Says in `results` how intervals are computed and models are run.
pub(super) fn describe_settings(results: &mut Results, resamples: u32, seed: u64, models: &ModelSettings) {
    results.settings.resamples = resamples;
    results.settings.seed = seed;
    results.settings.threads = models.session.n_threads();
    results.settings.kv_type = models.kv_type().to_string();
}
