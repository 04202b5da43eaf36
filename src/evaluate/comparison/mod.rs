//! A complete comparison: files, texts, tasks and weights.
//!
//! ```text
//! Comparison::prepare   open the files ─► tokenize the texts ─► same vocabulary? ─► open the tasks     no weights read
//! Comparison::execute   hashes, sound blocks? ─► texts ─► tasks ─► weights                  Observer::measured after each candidate
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
use crate::llama::Model;
use crate::report::results::{File, Reference, Results};
use crate::weights::{FileComparison, FileOptions, Observer};

pub use self::texts::{check_window, describe_failure};
pub(super) use self::texts::{diagnosed, loading, steps_of};

/// What to compare, and how.
#[derive(Clone, Debug, Default)]
pub struct ComparisonOptions {
    /// The files, and what to compare without running a model. Here, the reference may be a [`Trace`].
    pub files: FileOptions,
    /// Texts to compare on. A trace has its own texts; given texts must be among them.
    pub texts: Vec<TextFile>,
    /// Tokens in a window; `None` for [`Cut::USUAL`], or for the trace's windows.
    pub window: Option<u32>,
    /// The most windows of each text to read.
    pub most_windows: Option<usize>,
    /// Number of bootstrap resamples.
    pub resamples: u32,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Tasks to answer: their files.
    pub tasks: Vec<PathBuf>,
    /// How to open the tasks.
    pub task_options: TaskOptions,
    /// The folder in which answers are saved, so that an interrupted comparison can continue.
    pub task_results: Option<PathBuf>,
    /// The most tokens for a question together with its examples; `None` for what the model was trained on, up to 4096.
    pub task_context: Option<u32>,
    /// How models are run.
    pub models: ModelSettings,
}

/// A comparison that has been checked and is ready to execute.
pub struct Comparison {
    options: ComparisonOptions,
    files: FileComparison,
    trace: Option<Trace>,
    cut: Cut,
    texts: Vec<TokenizedText>,
    tasks: Vec<Task>,
}

impl Comparison {
    /// Opens the files, the texts and the tasks, and checks that they fit together. Creates the folder for answers.
    ///
    /// A candidate that cannot be compared is kept, with its failure in the results, as long as there are others.
    ///
    /// # Errors
    /// If the reference, a text or a task cannot be used, or no candidate is left.
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

    /// Returns the results so far.
    pub fn results(&self) -> &Results {
        self.files.results()
    }

    /// Returns the names of the candidates that cannot be compared, or not completely, and the reasons.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.failures()
    }

    /// Returns the tasks that will be answered, with notes on each.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// Executes the comparison. The results are in [`Self::results`], even if this fails or is stopped.
    ///
    /// Being stopped while texts are read or questions are answered is not an error; the results say so.
    ///
    /// # Errors
    /// If the reference cannot be measured, no candidate is left, something could not be saved, or `cancel` was set
    /// before anything was measured.
    pub fn execute(&mut self, observer: &dyn Observer, cancel: &Arc<AtomicBool>) -> Result<(), Error> {
        self.options.models.session.cancel = cancel.clone();
        // What comes of a model with a NaN in it may look like any other number.
        let runs_models = !self.texts.is_empty() || !self.tasks.is_empty();
        self.files.read(runs_models, observer, cancel)?;
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

    /// Records how the weights of the model at `path` were laid out in memory.
    fn note_layout(&mut self, path: &Path, model: &Model) {
        let used = Some(model.uses_second_layout());
        if path == self.options.files.reference {
            self.files.results_mut().reference.file.second_layout = used;
        }
        let places: Vec<usize> = self.left().into_iter().filter(|i| self.files.candidates()[*i] == path).collect();
        for i in places {
            self.files.results_mut().candidates[i].file.second_layout = used;
        }
    }

    fn save(&self, observer: &dyn Observer) -> Result<(), Error> {
        observer.measured(self.results()).map_err(Error::Save)
    }

    /// Records in the results which texts are read, and how.
    fn describe_texts(&mut self) {
        let results = self.files.results_mut();
        describe_settings(results, self.options.resamples, self.options.seed, &self.options.models);
        assemble::describe_texts(results, &self.texts, self.cut);
    }

    /// Returns the indices of the candidates that have not failed.
    fn left(&self) -> Vec<usize> {
        let candidates = &self.results().candidates;
        (0..candidates.len()).filter(|i| candidates[*i].failure.is_none()).collect()
    }
}

/// Describes a trace for the results.
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

/// Records in `results` how intervals are computed and models are run.
pub(super) fn describe_settings(results: &mut Results, resamples: u32, seed: u64, models: &ModelSettings) {
    results.settings.resamples = resamples;
    results.settings.seed = seed;
    results.settings.threads = models.session.n_threads();
    results.settings.kv_type = models.session.kv_types.to_string();
}
