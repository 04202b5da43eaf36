//! Converts one source with every recipe, and compares the files with it.
//!
//! ```text
//! source ─► 16-bit copy ─┬─► importance           the copy is made where the source is a folder, which cannot be run
//!                        └─► trace
//! source ─► each recipe, without importance and with it ─► measured against the trace ─► kept ─► Results over all
//! ```
//!
//! All files are in one folder, each with a note of what it was made from ([`MadeOf`]). A file whose note still matches
//! is reused, and all others are made again, so an interrupted comparison can continue. Each candidate is measured
//! alone, so only one model is in memory. With [`RecipeComparisonOptions::one_at_a_time`], only one is on the disk.
//!
//! Candidates are measured against a trace of the reference, not side by side with it, so that measurements of
//! different days can be compared. The trace is detailed: it has [`K`] tokens per position, and [`DRAWN`] of the
//! others.

mod kept;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use self::kept::{Kept, Missing};
use super::calibrate::{self, CalibrationJob, CalibrationOptions, Weighted};
use super::comparison::{describe_settings, diagnosed, loading, reference_of_trace, steps_of};
use super::measure::{self, Against, Columns, ReadOptions};
use super::models::ModelSettings;
use super::read::session_for;
use super::texts::{self, Cut, TextFile};
use super::trace::Trace;
use super::tracing::{TraceJob, TraceOptions};
use super::{Error, assemble};
use crate::base::atomic_file::AtomicFile;
use crate::base::disk;
use crate::calibration::{Importance, importance};
use crate::convert;
use crate::engine;
use crate::gguf::Gguf;
use crate::quant;
use crate::recipe::{Plan, Recipe};
use crate::report::results::{Candidate, File, Reference, Results, Settings};
use crate::weights::intact::{self, Found, Wanted};
use crate::weights::{self, Observer, Stage, file};

/// How many of the most likely tokens the trace keeps at every position.
pub const K: u32 = 512;
/// How many tokens it samples from all others.
pub const DRAWN: u32 = 16;

/// Where importance comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ImportanceFrom {
    /// There is none: each recipe is used once, without importance.
    #[default]
    Nothing,
    /// An importance file.
    File(PathBuf),
    /// Texts on which the 16-bit model measures it.
    Texts(Vec<Weighted>),
}

/// What to make and compare, and how.
#[derive(Clone, Debug)]
pub struct RecipeComparisonOptions {
    /// A Hugging Face folder, or a 16-bit GGUF file.
    pub source: PathBuf,
    /// The folder for all files.
    pub folder: PathBuf,
    /// The recipes to compare.
    pub recipes: Vec<Recipe>,
    /// Importance. If there is any, each recipe is used without and with it.
    pub importance: ImportanceFrom,
    /// Texts to compare on. Without texts, only weights are compared.
    pub texts: Vec<TextFile>,
    /// How texts are cut into windows.
    pub cut: Cut,
    /// The most windows of each text to read.
    pub most_windows: Option<usize>,
    /// Number of bootstrap resamples.
    pub resamples: u32,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Confidence level of the intervals: 0.95.
    pub confidence: f64,
    /// Whether to remove each file as soon as it is measured, and the 16-bit copy as soon as the trace is complete.
    pub one_at_a_time: bool,
    /// How models are run.
    pub models: ModelSettings,
    /// The words of the command, to record in the results.
    pub command: Vec<String>,
}

/// What a file was made from. This is saved beside the file, and compared before the file is reused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeOf {
    /// The version of nibble.
    pub nibble: String,
    /// BLAKE3 of the source's files.
    pub source: String,
    /// BLAKE3 of the recipe.
    pub recipe: Option<String>,
    /// BLAKE3 of the importance file; `None` without importance.
    pub importance: Option<String>,
    /// The texts: the name or the weight of each, and the BLAKE3 of its bytes.
    pub texts: Vec<(String, String)>,
    /// How texts were cut: tokens in a window, and the most windows of a text.
    pub windows: Option<(u32, Option<usize>)>,
    /// The other settings that the numbers depend on: see [`ModelSettings::identity`].
    pub settings: Option<String>,
}

impl MadeOf {
    /// Says in words what is different in `wanted`; `None` if nothing is.
    fn difference(&self, wanted: &Self) -> Option<&'static str> {
        let all = [
            (self.source == wanted.source, "another source"),
            (self.recipe == wanted.recipe, "another recipe"),
            (self.importance == wanted.importance, "other importance"),
            (self.texts == wanted.texts, "other texts"),
            (self.windows == wanted.windows, "other windows"),
            (self.settings == wanted.settings, "other settings of the model"),
            (self.nibble == wanted.nibble, "another version of nibble"),
        ];
        all.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
    }
}

/// A file to make: a recipe, with or without importance.
#[derive(Clone, Debug)]
struct Variant {
    recipe: Recipe,
    with_importance: bool,
    /// Its name: `Yi-6B-Q4_K_M-importance`.
    name: String,
    /// Size of the file in bytes.
    bytes: u64,
}

/// A comparison of recipes that has been checked and is ready to execute.
pub struct RecipeComparison {
    options: RecipeComparisonOptions,
    /// The source's name.
    name: String,
    /// The recipe for a copy in the source's own type, and its size; `None` if the source is a model file.
    copy: Option<(Recipe, u64)>,
    variants: Vec<Variant>,
    /// Hashes of the texts, and of the texts for importance, with their names or weights.
    texts: Vec<(String, String)>,
    calibration_texts: Vec<(String, String)>,
}

impl RecipeComparison {
    /// Plans all files and hashes the texts. Writes nothing.
    ///
    /// # Errors
    /// If the source cannot be converted, or a text or the importance file cannot be read.
    pub fn prepare(options: RecipeComparisonOptions) -> Result<Self, Error> {
        let source = &options.source;
        let real = source.canonicalize().unwrap_or_else(|_| source.clone());
        let name = match source.is_dir() {
            true => real.file_name().unwrap_or(real.as_os_str()).to_string_lossy().into_owned(),
            false => file::name(&real),
        };
        let plan = |recipe: &Recipe| -> Result<(Plan, u64), Error> {
            let output = Some(options.folder.join(format!("{name}-{}.gguf", recipe.name)));
            let job =
                convert::Job::prepare(source, convert::Options { output, ..convert::Options::new(recipe.clone()) })?;
            Ok((job.plan().clone(), job.output_bytes()))
        };
        let has_importance = options.importance != ImportanceFrom::Nothing;
        let mut variants = Vec::new();
        let mut source_type = None;
        for recipe in &options.recipes {
            let (planned, bytes) = plan(recipe)?;
            source_type = source_type.or(planned.tensors.first().map(|tensor| tensor.source));
            let name = format!("{name}-{}", recipe.name);
            variants.push(Variant { recipe: recipe.clone(), with_importance: false, name: name.clone(), bytes });
            if has_importance && uses_importance(&planned) {
                let name = format!("{name}-importance");
                variants.push(Variant { recipe: recipe.clone(), with_importance: true, name, bytes });
            }
        }
        let runs_models = !options.texts.is_empty() || matches!(options.importance, ImportanceFrom::Texts(_));
        let copy = match source_type.filter(|_| source.is_dir() && runs_models) {
            Some(ty) => {
                let recipe = Recipe::find(ty.name())?.clone();
                let (_, bytes) = plan(&recipe)?;
                Some((recipe, bytes))
            }
            None => None,
        };
        let texts = options.texts.iter().map(|text| Ok((text.name.clone(), texts::hash(&text.path)?)));
        let texts = texts.collect::<Result<_, Error>>()?;
        let calibration_texts = match &options.importance {
            ImportanceFrom::Texts(texts) => {
                let hashed = texts.iter().map(|text| Ok((text.weight.to_string(), texts::hash(&text.path)?)));
                hashed.collect::<Result<_, Error>>()?
            }
            ImportanceFrom::File(path) => {
                importance::File::read(path)?;
                Vec::new()
            }
            ImportanceFrom::Nothing => Vec::new(),
        };
        Ok(Self { options, name, copy, variants, texts, calibration_texts })
    }

    /// Returns the names of the files to compare, in the order in which they are made.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.variants.iter().map(|variant| variant.name.as_str())
    }

    /// Returns how many more bytes the disk has to hold: for all files that are not made yet, or with one at a time,
    /// for the largest.
    pub fn needed_bytes(&self) -> u64 {
        let is_there = |name: &str| {
            let measured = self.measured_path(name);
            measured.exists() || self.options.folder.join(format!("{name}.gguf")).exists()
        };
        // Space for a file that was begun is already reserved.
        let begun = |name: &str| {
            let partial = self.options.folder.join(format!("{name}.gguf.partial"));
            partial.metadata().map_or(0, |metadata| metadata.len())
        };
        let left = |name: &str, bytes: u64| if is_there(name) { 0 } else { bytes.saturating_sub(begun(name)) };
        let variants = self.variants.iter().map(|variant| left(&variant.name, variant.bytes));
        let copy = self.copy.iter().map(|(recipe, bytes)| match self.trace_path().exists() {
            true => 0,
            false => left(&format!("{}-{}", self.name, recipe.name), *bytes),
        });
        let all = variants.chain(copy);
        if self.options.one_at_a_time { all.max().unwrap_or(0) } else { all.sum() }
    }

    /// Returns the free bytes of the disk that holds the folder, or will hold it; `None` if the system does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        let folder = std::path::absolute(&self.options.folder).ok()?;
        folder.ancestors().find(|folder| folder.is_dir()).and_then(disk::free_bytes)
    }

    /// Makes, measures and compares all files.
    ///
    /// After each candidate, [`Observer::measured`] gets the results so far. If a candidate cannot be run, the results
    /// contain its failure.
    ///
    /// # Errors
    /// If the disk has too little space, a file cannot be made, the reference cannot be run, or `cancel` was set. The
    /// next run reuses what is done by then.
    pub fn execute(&mut self, observer: &dyn Observer, cancel: &Arc<AtomicBool>) -> Result<Results, Error> {
        self.options.models.session.cancel = cancel.clone();
        self.check_room()?;
        let folder = &self.options.folder;
        fs::create_dir_all(folder).map_err(|source| Error::Folder { path: folder.clone(), source })?;
        let run = Run { comparison: self, observer, cancel, source: self.hash_source(observer, cancel)? };
        run.execute()
    }

    fn check_room(&self) -> Result<(), Error> {
        let needed = self.needed_bytes();
        match self.free_bytes() {
            Some(free) if free < needed => Err(Error::NoRoom {
                folder: self.options.folder.clone(),
                needed,
                free,
                one_at_a_time: self.options.one_at_a_time,
            }),
            _ => Ok(()),
        }
    }

    fn trace_path(&self) -> PathBuf {
        self.options.folder.join(format!("{}.trace", self.name))
    }

    fn measured_path(&self, name: &str) -> PathBuf {
        self.options.folder.join(format!("{name}.measured"))
    }

    /// Returns the BLAKE3 of the source: of a GGUF file's bytes, or of the names and bytes of the files in a folder
    /// that conversion may read.
    fn hash_source(&self, observer: &dyn Observer, cancel: &AtomicBool) -> Result<String, Error> {
        let source = &self.options.source;
        let read = |path: &Path, source| Error::Read { path: path.to_path_buf(), source };
        let paths: Vec<PathBuf> = match source.is_dir() {
            true => source_files(source).map_err(|error| read(source, error))?,
            false => Gguf::open(source)?.paths().map(Path::to_path_buf).collect(),
        };
        let bytes = paths.iter().map(|path| path.metadata().map_or(0, |metadata| metadata.len())).sum();
        observer.begin(&Stage::Hashing { bytes });
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 16 << 20];
        for path in &paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(name.as_bytes()).update(&[0]);
            let mut file = fs::File::open(path).map_err(|error| read(path, error))?;
            loop {
                let n = file.read(&mut buffer).map_err(|error| read(path, error))?;
                if n == 0 {
                    break;
                }
                hasher.update_rayon(&buffer[..n]);
                observer.advance(n as u64);
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Stopped);
                }
            }
        }
        observer.end();
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// Returns the files of a folder that conversion may read, in the order of their names.
fn source_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    const ENDINGS: [&str; 8] = ["safetensors", "bin", "json", "model", "txt", "jinja", "pt", "pth"];
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if ENDINGS.contains(&ending) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Returns whether a plan has a type for which importance makes a difference.
fn uses_importance(plan: &Plan) -> bool {
    let uses = |ty| quant::format(ty).is_some_and(|format| format.importance.is_any());
    plan.tensors.iter().any(|tensor| tensor.dims.len() == 2 && tensor.ty != tensor.source && uses(tensor.ty))
}

/// One run of the comparison.
struct Run<'a> {
    comparison: &'a RecipeComparison,
    observer: &'a dyn Observer,
    cancel: &'a Arc<AtomicBool>,
    /// The source's hash.
    source: String,
}

/// Passes the progress of a conversion to an observer.
struct Converting<'a>(&'a dyn Observer);

impl convert::Observer for Converting<'_> {
    fn advance(&self, read_bytes: u64, _: u64) {
        self.0.advance(read_bytes);
    }

    fn event(&self, event: convert::Event) {
        if let convert::Event::Resuming { read_bytes, .. } = event {
            self.0.advance(read_bytes);
        }
    }
}

impl Run<'_> {
    fn execute(&self) -> Result<Results, Error> {
        let options = &self.comparison.options;
        let importance = self.importance()?;
        let trace = if options.texts.is_empty() { None } else { Some(self.trace()?) };
        if let Some((recipe, _)) = self.comparison.copy.as_ref().filter(|_| options.one_at_a_time) {
            self.remove(&self.path(&recipe.name));
        }
        let mut results = self.empty_results(trace.as_ref())?;
        let mut known: Vec<(Kept, Option<String>)> = Vec::new();
        for variant in &self.comparison.variants {
            if self.cancel.load(Ordering::Relaxed) {
                results.interrupted = true;
                break;
            }
            let importance = importance.as_ref().filter(|_| variant.with_importance);
            match self.variant(variant, importance, trace.as_ref()) {
                Ok(measured) => known.push(measured),
                Err(error) if error.is_cancelled() => {
                    results.interrupted = true;
                    break;
                }
                Err(error) => return Err(error),
            }
            self.fill(&mut results, &mut known, trace.as_ref());
            self.observer.measured(&results).map_err(Error::Save)?;
        }
        Ok(results)
    }

    fn path(&self, recipe: &str) -> PathBuf {
        self.comparison.options.folder.join(format!("{}-{recipe}.gguf", self.comparison.name))
    }

    fn made_of(&self) -> MadeOf {
        MadeOf { nibble: env!("CARGO_PKG_VERSION").to_string(), source: self.source.clone(), ..MadeOf::default() }
    }

    /// Makes a file with `make`, unless it exists and was made from the same inputs. The file gets its name when it is
    /// complete; its note is written before that.
    ///
    /// # Errors
    /// If `make` fails, or there is a file of that name without a note: it would be overwritten.
    fn make(&self, path: &Path, made_of: &MadeOf, make: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let note_path = note_path(path);
        let found: Option<MadeOf> = fs::read(&note_path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if path.exists() {
            let Some(found) = found else { return Err(Error::Unknown(path.to_path_buf())) };
            let Some(other) = found.difference(made_of) else { return Ok(()) };
            self.observer.note(&format!("{} was made from {other}, so it is made again", path.display()));
            fs::remove_file(path).map_err(|source| Error::Write { path: path.to_path_buf(), source })?;
        }
        let write = || -> io::Result<()> {
            let mut file = AtomicFile::create(&note_path)?;
            file.write_all(&serde_json::to_vec(made_of)?)?;
            file.finish(true)
        };
        write().map_err(|source| Error::Write { path: note_path.clone(), source })?;
        make()
    }

    /// Removes a file that is no longer needed, and its note. Failing to remove it only costs disk space.
    fn remove(&self, path: &Path) {
        // The note stays as long as the file exists: without it, the next run would not recognize the file as its own.
        if fs::remove_file(path).is_ok() || !path.exists() {
            let _ = fs::remove_file(note_path(path));
        }
    }

    fn convert(&self, recipe: &Recipe, importance: Option<&Importance>, path: &Path) -> Result<(), Error> {
        let options = convert::Options {
            output: Some(path.to_path_buf()),
            importance: importance.cloned(),
            ..convert::Options::new(recipe.clone())
        };
        let job = convert::Job::prepare(&self.comparison.options.source, options)?;
        job.warnings().iter().for_each(|warning| self.observer.warning(&warning.to_string()));
        let name = file::name(path);
        self.observer.begin(&Stage::Converting { name: &name, bytes: job.source_bytes() });
        let result = job.execute(&Converting(self.observer), self.cancel);
        self.observer.end();
        result?;
        Ok(())
    }

    /// Returns the model to run: the source, or a copy of it in the source's own type.
    fn reference(&self) -> Result<PathBuf, Error> {
        let Some((recipe, _)) = &self.comparison.copy else { return Ok(self.comparison.options.source.clone()) };
        let path = self.path(&recipe.name);
        let made_of = MadeOf { recipe: Some(recipe.text_hash.to_hex().to_string()), ..self.made_of() };
        self.make(&path, &made_of, || self.convert(recipe, None, &path))?;
        Ok(path)
    }

    fn importance(&self) -> Result<Option<Importance>, Error> {
        let path = match &self.comparison.options.importance {
            ImportanceFrom::Nothing => return Ok(None),
            ImportanceFrom::File(path) => path.clone(),
            ImportanceFrom::Texts(texts) => {
                let path = self.comparison.options.folder.join(format!("{}-imatrix.gguf", self.comparison.name));
                let made_of = MadeOf {
                    texts: self.comparison.calibration_texts.clone(),
                    settings: Some(self.comparison.options.models.identity()),
                    ..self.made_of()
                };
                self.make(&path, &made_of, || self.calibrate(texts, &path))?;
                path
            }
        };
        Ok(Some(importance::File::read(&path)?.importance()?))
    }

    fn calibrate(&self, texts: &[Weighted], path: &Path) -> Result<(), Error> {
        let model = self.reference()?;
        let settings = &self.comparison.options.models;
        let options =
            CalibrationOptions { session: settings.session.clone(), ..CalibrationOptions::new(path.to_path_buf()) };
        let job = CalibrationJob::prepare(&model, texts, options)?;
        self.observer.begin(&Stage::Loading { name: &file::name(&model) });
        let model = settings.load(&model, &job.session(), 0).map_err(loading)?;
        let mut before = None;
        let result = job.execute(Some(&model), |event| {
            if let calibrate::Event::Window { done, all } = event {
                if before.is_none() {
                    self.observer.begin(&Stage::Calibrating { windows: all });
                }
                self.observer.advance(done - before.unwrap_or(0));
                before = Some(done);
            }
        });
        self.observer.end();
        result?;
        Ok(())
    }

    fn trace(&self) -> Result<Trace, Error> {
        let options = &self.comparison.options;
        let path = self.comparison.trace_path();
        let made_of = MadeOf {
            texts: self.comparison.texts.clone(),
            windows: Some((options.cut.window, options.most_windows)),
            settings: Some(options.models.identity()),
            ..self.made_of()
        };
        self.make(&path, &made_of, || {
            let job = TraceJob::prepare(TraceOptions {
                model: self.reference()?,
                texts: options.texts.clone(),
                cut: options.cut,
                most_windows: options.most_windows,
                k: K,
                drawn: DRAWN,
                hash: true,
                output: path.clone(),
                force: false,
                models: options.models.clone(),
            })?;
            job.execute(self.observer, self.cancel).map(drop)
        })?;
        Ok(Trace::open(&path)?)
    }

    /// Returns the results before anything is measured.
    fn empty_results(&self, trace: Option<&Trace>) -> Result<Results, Error> {
        let options = &self.comparison.options;
        let reference = match trace {
            Some(trace) => reference_of_trace(trace, &self.comparison.trace_path()),
            None => Reference { file: weights::comparison::reference_file(&options.source)?, ..Reference::default() },
        };
        let mut results = Results {
            version: env!("CARGO_PKG_VERSION").to_string(),
            command: options.command.clone(),
            settings: Settings { confidence: options.confidence, ..Settings::default() },
            reference,
            ..Results::default()
        };
        if trace.is_some() {
            describe_settings(&mut results, options.resamples, options.seed, &options.models);
        }
        Ok(results)
    }

    /// Returns the measurements of a file, made now or earlier, and the reason if it could not be measured.
    fn variant(
        &self,
        variant: &Variant,
        importance: Option<&Importance>,
        trace: Option<&Trace>,
    ) -> Result<(Kept, Option<String>), Error> {
        let options = &self.comparison.options;
        let of_file = MadeOf {
            recipe: Some(variant.recipe.text_hash.to_hex().to_string()),
            importance: importance.map(|importance| importance.blake3.to_hex().to_string()),
            ..self.made_of()
        };
        let mut of_numbers = of_file.clone();
        if trace.is_some() {
            of_numbers.texts = self.comparison.texts.clone();
            of_numbers.windows = Some((options.cut.window, options.most_windows));
            of_numbers.settings = Some(options.models.identity());
        }
        let path = options.folder.join(format!("{}.gguf", variant.name));
        let kept_path = self.comparison.measured_path(&variant.name);
        match kept::read(&kept_path, &of_numbers) {
            Ok(kept) => {
                if options.one_at_a_time {
                    self.remove(&path);
                }
                return Ok((kept, None));
            }
            Err(Missing::Absent) => {}
            Err(Missing::Damaged) => {
                self.observer.note(&format!("{} is damaged; {} is measured again", kept_path.display(), variant.name));
            }
            Err(Missing::Other(what)) => {
                self.observer.note(&format!("{} was measured with {what}, so it is measured again", variant.name));
            }
        }
        self.make(&path, &of_file, || self.convert(&variant.recipe, importance, &path))?;
        let (kept, failure) = self.measure(&path, trace)?;
        if failure.is_none() {
            kept::write(&kept_path, &of_numbers, &kept)
                .map_err(|source| Error::Write { path: kept_path.clone(), source })?;
        }
        if options.one_at_a_time {
            self.remove(&path);
        }
        Ok((kept, failure))
    }

    /// Measures a file on the trace's texts, and its weights.
    fn measure(&self, path: &Path, trace: Option<&Trace>) -> Result<(Kept, Option<String>), Error> {
        let gguf = Gguf::open(path)?;
        let mut file = file::describe(path, &gguf);
        self.observer.begin(&Stage::Checking { bytes: file.bytes });
        let wanted = Wanted { hash: true, blocks: trace.is_some() };
        let found = intact::read(&gguf, wanted, &|bytes| self.observer.advance(bytes), self.cancel);
        self.observer.end();
        let Found { blake3, not_finite } = match found {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(Error::Stopped),
            found => found.map_err(|source| Error::Read { path: path.to_path_buf(), source })?,
        };
        file.blake3 = blake3;
        drop(gguf);
        let mut kept = Kept { file, changed: Vec::new(), weights: None, columns: Columns::default() };
        let mut failure = not_finite;
        if let Some(trace) = trace.filter(|_| failure.is_none()) {
            failure = self.read_texts(path, trace, &mut kept)?;
        }
        let found = weights::comparison::weight_errors(
            &self.comparison.options.source,
            &[path],
            None,
            self.observer,
            self.cancel,
        )?;
        match found.into_iter().next() {
            Some(Ok(errors)) => kept.weights = Some(errors),
            Some(Err(error)) => failure = failure.or(Some(error.to_string())),
            None => {}
        }
        if let Some(failure) = &failure {
            self.observer.failed(&kept.file.name, failure);
        }
        Ok((kept, failure))
    }

    /// Reads the trace's texts with a model. Returns the reason if that failed.
    fn read_texts(&self, path: &Path, trace: &Trace, kept: &mut Kept) -> Result<Option<String>, Error> {
        let settings = &self.comparison.options.models;
        let cut = trace.header().cut();
        let read = ReadOptions { session: settings.session.clone(), cut };
        self.observer.begin(&Stage::Loading { name: &kept.file.name });
        let model = match settings.load(path, &session_for(&read.session, cut, trace.header().n_vocab), 0) {
            Ok(model) => model,
            Err(engine::Error::LoadCancelled) => return Err(Error::LoadingStopped),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let windows = trace.texts().iter().map(|text| cut.windows(text).len() as u64).sum();
        self.observer.begin(&Stage::Reading { name: &kept.file.name, windows });
        let texts = trace.texts();
        let mut measurement = measure::measure(Against::Trace(trace), &[&model], texts, &read, steps_of(self.observer));
        self.observer.end();
        let measured = measurement.candidates.pop().unwrap_or_default();
        if let Some((window, failure)) = &measured.failure {
            return Ok(Some(diagnosed(failure, *window, texts, &read, &model)));
        }
        if measurement.interrupted {
            return Err(Error::Stopped);
        }
        kept.changed = assemble::changes(&measured.changed, &measurement.windows, texts, cut, model.tokenizer());
        kept.columns = measured.columns;
        Ok(None)
    }

    /// Fills in the results from all measurements, smallest file first.
    fn fill(&self, results: &mut Results, known: &mut [(Kept, Option<String>)], trace: Option<&Trace>) {
        let order = |file: &File| (file.bytes, file.path.clone());
        known.sort_by_cached_key(|(kept, _)| order(&kept.file));
        let candidate = |(kept, failure): &(Kept, Option<String>)| Candidate {
            file: kept.file.clone(),
            failure: failure.clone(),
            changed: kept.changed.clone(),
            weights: kept.weights.clone(),
            ..Candidate::default()
        };
        results.candidates = known.iter().map(candidate).collect();
        let Some(trace) = trace else { return };
        assemble::describe_texts(results, trace.texts(), trace.header().cut());
        let (windows, nll) = measure::of_trace(trace);
        let columns: Vec<(usize, &Columns)> = known.iter().map(|(kept, _)| &kept.columns).enumerate().collect();
        assemble::fill(results, &windows, &nll, &columns);
    }
}

/// Returns the path of the note on what a file was made from.
fn note_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".made");
    name.into()
}
