//! Describes, sorts and hashes several files of a model and the reference they are compared with, and compares their
//! weights.
//!
//! ```text
//! FileComparison::prepare   open the files ─► describe, name, order            nothing read but headers
//! FileComparison::execute   ─► hashes ─► weight errors ─► Results              no model is run
//! ```
//!
//! Comparisons that run models are built on this one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::AtomicBool;

use super::intact::{self, Found, Wanted};
use super::{Error, WeightComparison, file};
use crate::calibration::Importance;
use crate::gguf::{self, Gguf};
use crate::report::results::{Candidate, File, Reference, Results, Settings};

/// A stage of a comparison, and the amount of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage<'a> {
    /// Files are hashed.
    Hashing {
        /// Bytes of all files.
        bytes: u64,
    },
    /// The blocks of the files are checked and, if that was asked for, the files are hashed.
    Checking {
        /// Bytes of all files.
        bytes: u64,
    },
    /// A source is being converted.
    Converting {
        /// The name of the result.
        name: &'a str,
        /// Bytes of the source's tensors.
        bytes: u64,
    },
    /// A model is being loaded.
    Loading {
        /// Its name.
        name: &'a str,
    },
    /// A model reads texts to measure importance.
    Calibrating {
        /// Windows of all texts.
        windows: u64,
    },
    /// Models read texts.
    Reading {
        /// The model's name, or how many there are.
        name: &'a str,
        /// Windows of all texts.
        windows: u64,
    },
    /// A model answers the questions of a task.
    Answering {
        /// The model's name.
        name: &'a str,
        /// The task's name.
        task: &'a str,
        /// Questions of the task.
        questions: u64,
    },
    /// Weights are compared.
    Weights {
        /// Bytes of the source and the candidates.
        bytes: u64,
    },
}

impl Stage<'_> {
    /// Returns the number of its steps, in its own unit: bytes, windows or questions.
    pub fn steps(&self) -> u64 {
        match *self {
            Self::Hashing { bytes }
            | Self::Checking { bytes }
            | Self::Converting { bytes, .. }
            | Self::Weights { bytes } => bytes,
            Self::Loading { .. } => 1,
            Self::Calibrating { windows } | Self::Reading { windows, .. } => windows,
            Self::Answering { questions, .. } => questions,
        }
    }
}

impl std::fmt::Display for Stage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hashing { .. } => f.write_str("computing hashes"),
            Self::Checking { .. } => f.write_str("checking the files"),
            Self::Converting { name, .. } => write!(f, "converting to {name}"),
            Self::Loading { name } => write!(f, "loading {name}"),
            Self::Calibrating { .. } => f.write_str("measuring importance"),
            Self::Reading { name, .. } => f.write_str(name),
            Self::Answering { name, task, .. } => write!(f, "{name}, {task}"),
            Self::Weights { .. } => f.write_str("comparing weights"),
        }
    }
}

/// Is told the progress of a comparison. [`Self::advance`] is called from every thread, and all others from the one
/// that executes the comparison.
pub trait Observer: Sync {
    /// A stage begins, and the previous one has ended.
    fn begin(&self, _stage: &Stage<'_>) {}

    /// This many more steps of the stage are done.
    fn advance(&self, _steps: u64) {}

    /// The last stage has ended.
    fn end(&self) {}

    /// A candidate cannot be compared, or not completely.
    fn failed(&self, _name: &str, _failure: &str) {}

    /// A warning for the user.
    fn warning(&self, _warning: &str) {}

    /// A note on earlier work: what is reused, and what is not.
    fn note(&self, _note: &str) {}

    /// More has been measured. The results so far can be saved.
    ///
    /// # Errors
    /// If they cannot be saved. That ends the comparison.
    fn measured(&self, _results: &Results) -> io::Result<()> {
        Ok(())
    }
}

impl Observer for () {}

/// Why files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The reference, or the only candidate, is not a model file.
    #[error("{0}")]
    Gguf(#[from] gguf::Error),
    /// A candidate is given twice.
    #[error("{} is given twice", .0.display())]
    Twice(PathBuf),
    /// No candidate can be compared.
    #[error("no candidate is left to compare")]
    NoneLeft {
        /// The name of each candidate, and why it cannot be compared.
        failures: Vec<(String, String)>,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The reference has a scale or a weight that is NaN or infinite.
    #[error("nothing can be compared with {}: its {failure}", path.display())]
    BadReference {
        /// The reference.
        path: PathBuf,
        /// Which, and where.
        failure: String,
    },
    /// The weights could not be compared.
    #[error("{0}")]
    Weights(#[source] Error),
    /// What was measured could not be saved.
    #[error("{0}")]
    Save(#[source] io::Error),
    /// It was stopped while hashes were computed.
    #[error("stopped before anything was measured")]
    Stopped,
    /// It was stopped while weights were compared.
    #[error("stopped before everything was compared")]
    StoppedAtWeights,
}

impl FilesError {
    /// Returns whether the work was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Stopped | Self::StoppedAtWeights)
    }
}

/// Which files to compare, and which of their properties.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// The reference: a GGUF file, or if only weights are compared, a Hugging Face folder.
    pub reference: PathBuf,
    /// The GGUF files to compare; for a split model, any of its parts.
    pub candidates: Vec<PathBuf>,
    /// Whether to hash all model files, which means reading all of them.
    pub hash: bool,
    /// Whether to compare the weights.
    pub weights: bool,
    /// Importance by which columns are weighted when weights are compared.
    pub importance: Option<Importance>,
    /// Confidence level of the intervals: 0.95.
    pub confidence: f64,
    /// The words of the command, to record in the results.
    pub command: Vec<String>,
}

/// A prepared comparison of files.
#[derive(Debug)]
pub struct FileComparison {
    options: FileOptions,
    /// Whether the reference is a model file, not a folder or a trace.
    reference_is_model: bool,
    /// The candidates' files, in the order of `results.candidates`.
    candidates: Vec<PathBuf>,
    results: Results,
}

impl FileComparison {
    /// Opens all files, sorts the candidates by size, smallest first, and names them.
    ///
    /// A candidate that cannot be opened is kept, with its failure in the results, as long as there are others.
    ///
    /// # Errors
    /// If the reference or all candidates cannot be opened, or a candidate is given twice.
    pub fn prepare(options: FileOptions) -> Result<Self, FilesError> {
        let path = &options.reference;
        let file = reference_file(path)?;
        let reference_is_model = !path.is_dir();
        let mut comparison = Self::with_reference(options, Reference { file, ..Reference::default() })?;
        comparison.reference_is_model = reference_is_model;
        Ok(comparison)
    }

    /// Like [`Self::prepare`], but with a reference that is already described and is not a model file, such as a trace.
    ///
    /// # Errors
    /// If no candidate can be opened, or one is given twice.
    pub fn with_reference(options: FileOptions, reference: Reference) -> Result<Self, FilesError> {
        let mut opened: Vec<(PathBuf, Candidate)> = Vec::new();
        for path in &options.candidates {
            if opened.iter().any(|(other, _)| same_file(other, path)) {
                return Err(FilesError::Twice(path.clone()));
            }
            let candidate = match Gguf::open(path) {
                Ok(gguf) => Candidate { file: file::describe(path, &gguf), ..Candidate::default() },
                Err(error) if options.candidates.len() == 1 => return Err(error.into()),
                Err(error) => {
                    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
                    let file =
                        File { name: file::name(path), path: path.display().to_string(), bytes, ..File::default() };
                    Candidate { file, failure: Some(error.to_string()), ..Candidate::default() }
                }
            };
            opened.push((path.clone(), candidate));
        }
        opened.sort_by(|(_, a), (_, b)| a.file.bytes.cmp(&b.file.bytes).then_with(|| a.file.path.cmp(&b.file.path)));
        let (paths, mut candidates): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let mut files: Vec<File> = candidates.iter().map(|candidate| candidate.file.clone()).collect();
        file::unique_names(&mut files);
        candidates.iter_mut().zip(files).for_each(|(candidate, file)| candidate.file = file);
        let results = Results {
            version: env!("CARGO_PKG_VERSION").to_string(),
            command: options.command.clone(),
            settings: Settings { confidence: options.confidence, ..Settings::default() },
            reference,
            candidates,
            ..Results::default()
        };
        let comparison = Self { options, reference_is_model: false, candidates: paths, results };
        comparison.check_any_is_left()?;
        Ok(comparison)
    }

    /// # Errors
    /// If every candidate has failed.
    pub fn check_any_is_left(&self) -> Result<(), FilesError> {
        let failures: Vec<(String, String)> = self.failures().map(|(name, why)| (name.into(), why.into())).collect();
        if failures.len() == self.candidates.len() { Err(FilesError::NoneLeft { failures }) } else { Ok(()) }
    }

    /// Returns the names of the candidates that cannot be compared, or not completely, and the reasons.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        let candidates = self.results.candidates.iter();
        candidates.filter_map(|candidate| Some((candidate.file.name.as_str(), candidate.failure.as_deref()?)))
    }

    /// Returns the options.
    pub fn options(&self) -> &FileOptions {
        &self.options
    }

    /// Returns the candidates' files, in the order of [`Results::candidates`].
    pub fn candidates(&self) -> &[PathBuf] {
        &self.candidates
    }

    /// What is known so far.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// Returns the results so far, for adding more.
    pub fn results_mut(&mut self) -> &mut Results {
        &mut self.results
    }

    /// Computes the hashes and compares the weights, if the options say so.
    ///
    /// # Errors
    /// If a file cannot be read, the source's weights cannot be compared, or `cancel` was set.
    pub fn execute(&mut self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<(), FilesError> {
        if self.options.hash {
            self.read(false, observer, cancel)?;
        }
        if self.options.weights {
            self.compare_weights(observer, cancel)?;
        }
        Ok(())
    }

    /// Reads the model files, each once: hashes all of them if the options say so, which identifies what was measured, and
    /// if `blocks`, checks the blocks of the reference and of the candidates that have not failed. A candidate with a scale
    /// or a weight that is NaN or infinite fails: what comes of it may look like any other number.
    ///
    /// # Errors
    /// If a file cannot be read, the reference has such a number, no candidate is left, or `cancel` was set.
    pub fn read(&mut self, blocks: bool, observer: &dyn Observer, cancel: &AtomicBool) -> Result<(), FilesError> {
        let hash = self.options.hash;
        let wanted = |failed: bool| Wanted { hash, blocks: blocks && !failed };
        let of_candidate = |candidate: &Candidate| wanted(candidate.failure.is_some());
        let candidates = self.results.candidates.iter().filter(|candidate| of_candidate(candidate).any());
        let mut bytes: u64 = candidates.map(|candidate| candidate.file.bytes).sum();
        if self.reference_is_model && wanted(false).any() {
            bytes += self.results.reference.file.bytes;
        }
        observer.begin(&if blocks { Stage::Checking { bytes } } else { Stage::Hashing { bytes } });
        if self.reference_is_model {
            let path = &self.options.reference;
            let found = read_file(path, wanted(false), observer, cancel)?;
            self.results.reference.file.blake3 = found.blake3;
            if let Some(failure) = found.not_finite {
                return Err(FilesError::BadReference { path: path.clone(), failure });
            }
        }
        for i in 0..self.candidates.len() {
            let found = read_file(&self.candidates[i], of_candidate(&self.results.candidates[i]), observer, cancel)?;
            self.results.candidates[i].file.blake3 = found.blake3;
            if let Some(failure) = found.not_finite {
                self.fail(i, failure, observer);
            }
        }
        observer.end();
        if blocks { self.check_any_is_left() } else { Ok(()) }
    }

    /// Compares the weights of all candidates that have not failed.
    ///
    /// # Errors
    /// If the source cannot be compared, or `cancel` was set.
    pub fn compare_weights(&mut self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<(), FilesError> {
        let left: Vec<usize> =
            (0..self.candidates.len()).filter(|i| self.results.candidates[*i].failure.is_none()).collect();
        let paths: Vec<&PathBuf> = left.iter().map(|i| &self.candidates[*i]).collect();
        let found = weight_errors(&self.options.reference, &paths, self.options.importance.as_ref(), observer, cancel)?;
        for (i, result) in left.into_iter().zip(found) {
            match result {
                Ok(errors) => self.results.candidates[i].weights = Some(errors),
                Err(error) => self.fail(i, error.to_string(), observer),
            }
        }
        Ok(())
    }

    /// Records that a candidate cannot be compared, or not completely. The first failure is kept.
    pub fn fail(&mut self, candidate: usize, failure: String, observer: &dyn Observer) {
        let candidate = &mut self.results.candidates[candidate];
        observer.failed(&candidate.file.name, &failure);
        candidate.failure.get_or_insert(failure);
    }
}

/// Describes a reference, a model file or a Hugging Face folder, for the results.
///
/// # Errors
/// If it is neither.
pub fn reference_file(path: &Path) -> Result<File, FilesError> {
    if !path.is_dir() {
        return Ok(file::describe(path, &Gguf::open(path)?));
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = real.file_name().unwrap_or(real.as_os_str()).to_string_lossy().into_owned();
    Ok(File { name, path: path.display().to_string(), ..File::default() })
}

/// Reads a file; one that cannot be opened fails where it is run.
fn read_file(path: &Path, wanted: Wanted, observer: &dyn Observer, cancel: &AtomicBool) -> Result<Found, FilesError> {
    let Ok(gguf) = Gguf::open(path) else { return Ok(Found::default()) };
    intact::read(&gguf, wanted, &|bytes| observer.advance(bytes), cancel).map_err(|source| match source.kind() {
        io::ErrorKind::Interrupted => FilesError::Stopped,
        _ => FilesError::Read { path: path.to_path_buf(), source },
    })
}

/// Compares the weights of files with those of `source`. Returns the errors of each, or why it cannot be compared.
///
/// # Errors
/// If the source cannot be read, the importance belongs to another model, or `cancel` was set.
pub fn weight_errors(
    source: &Path,
    candidates: &[impl AsRef<Path>],
    importance: Option<&Importance>,
    observer: &dyn Observer,
    cancel: &AtomicBool,
) -> Result<Vec<Result<crate::report::results::WeightErrors, Error>>, FilesError> {
    let job = WeightComparison::prepare(source, candidates, importance).map_err(FilesError::Weights)?;
    job.warnings().iter().for_each(|warning| observer.warning(&warning.to_string()));
    // The amount of work is known as soon as it begins.
    let begun = Once::new();
    let progress = |bytes: u64, of: u64| {
        begun.call_once(|| observer.begin(&Stage::Weights { bytes: of }));
        observer.advance(bytes);
    };
    let result = job.execute(&progress, cancel);
    observer.end();
    match result {
        Err(Error::Cancelled) => Err(FilesError::StoppedAtWeights),
        result => result.map_err(FilesError::Weights),
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}
