//! Measures importance: how large the inputs of each matrix are while a model reads texts.
//!
//! ```text
//!  texts ─► tokens ─► windows of 512 ─► the model reads one, from an empty context
//!                                          each product of a matrix: Σx² of its input, column by column
//!                                       window done ─► added to the sums, x the text's weight ─► every few windows, saved
//!  earlier files ───────────────────────────────────────────────────────► added ─► file of importance
//! ```
//!
//! This follows llama-imatrix, so that the two agree. Texts are cut into whole windows, and the rest is not read. If
//! the tokenizer begins texts with a token, that token replaces the first of each window. Control tokens in a text are
//! read as text, unless [`CalibrationOptions::special`] is set. The output matrix is left out, unless
//! [`CalibrationOptions::output_matrix`] is set. The built-in texts have markers of conversations, which are read as control
//! tokens in any case. Logits are requested for every token, because the last layer computes
//! nothing for the others. Unlike in llama-imatrix, sums are 64-bit floats, a text of one window is enough, and small
//! batches of inputs count too. Chat texts are best read with [`CalibrationOptions::special`]. Without it, llama.cpp
//! reads the markers of Yi's conversations as control tokens, while nibble reads them as the user-defined pieces that
//! they are in the vocabulary. With it, both read the same tokens.
//!
//! An interrupted run leaves its sums in `OUTPUT.partial`. The next run with the same inputs continues from there, and
//! its result is the same to the byte.
//!
//! Source: llama.cpp's `tools/imatrix/imatrix.cpp`.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::base::atomic_file::AtomicFile;
use crate::base::text::without_mark;
use crate::calibration::importance::{self, File, Matrix, Sums};
use crate::calibration::text::{BUILT_IN, BuiltInText};
use crate::chat::{self, Prompt};
use crate::engine::{self, Logits, Session, SessionOptions};
use crate::gguf::{self, Gguf, Metadata, TensorType};
use crate::llama::{Model, Node, Observer, Room};

/// The default number of tokens in a window.
pub const DEFAULT_WINDOW: u32 = 512;

/// The fewest tokens in a window.
pub const LEAST_WINDOW: u32 = 16;

/// The most tokens that are evaluated at a time. Each takes a row of logits.
const MOST_AT_ONCE: u32 = 512;

/// A file and its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// The file.
    pub path: PathBuf,
    /// How often each of its tokens counts: above 0.
    pub weight: f64,
}

impl FromStr for Weighted {
    type Err = String;

    /// `FILE` or `FILE=WEIGHT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, weight) = match text.rsplit_once('=').map(|(path, weight)| (path, weight.parse::<f64>())) {
            Some((path, Ok(weight))) => (path, weight),
            // A file's name may contain a '='.
            _ => (text, 1.0),
        };
        if !(weight > 0.0 && weight <= 1e6) {
            return Err(format!("the weight is {weight}, wanted a number above 0 such as 2 or 0.5"));
        }
        if path.is_empty() {
            return Err("no file is named".to_string());
        }
        Ok(Self { path: path.into(), weight })
    }
}

/// What to collect, and how.
#[derive(Clone, Debug)]
pub struct CalibrationOptions {
    /// Tokens in a window; `None` for [`DEFAULT_WINDOW`], or for what the model was trained on if that is less.
    pub window: Option<u32>,
    /// The most windows of each text; `None` for all.
    pub most_windows: Option<u64>,
    /// Collect importance for the output matrix too.
    pub output_matrix: bool,
    /// Read control tokens in the texts as control tokens.
    pub special: bool,
    /// Read the built-in texts too, after the others, with their control tokens.
    pub built_in: bool,
    /// Importance files to add.
    pub merge: Vec<Weighted>,
    /// Where the result goes.
    pub output: PathBuf,
    /// Replace a result that exists.
    pub force: bool,
    /// Start over instead of continuing an earlier run.
    pub restart: bool,
    /// Number of windows after which to save: at least 1.
    pub save_every: u32,
    /// How the model is run. Context, batch and rows follow from the window.
    pub session: SessionOptions,
}

impl CalibrationOptions {
    /// Returns the default options for this output file.
    pub fn new(output: PathBuf) -> Self {
        Self {
            window: None,
            most_windows: None,
            output_matrix: false,
            special: false,
            built_in: false,
            merge: Vec::new(),
            output,
            force: false,
            restart: false,
            save_every: 10,
            session: SessionOptions::default(),
        }
    }
}

/// Why importance could not be collected.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum Error {
    #[error(transparent)]
    Model(#[from] gguf::Error),
    #[error(transparent)]
    Run(#[from] engine::Error),
    #[error(transparent)]
    Importance(#[from] importance::Error),
    #[error("there is nothing to do: no text to read, and no file to add")]
    Nothing,
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: is a GGUF file, wanted a text", path.display())]
    TextIsGguf { path: PathBuf },
    #[error("{}: is not UTF-8 at byte {at}: save it as UTF-8 text", path.display())]
    NotUtf8 { path: PathBuf, at: usize },
    #[error("{}: is empty", path.display())]
    Empty { path: PathBuf },
    #[error("{}: has {tokens} tokens, fewer than a window of {window}", path.display())]
    Short { path: PathBuf, tokens: usize, window: u32 },
    #[error("a window of {found} tokens was asked for, wanted {LEAST_WINDOW} to {most}")]
    Window { found: u32, most: u32 },
    #[error(
        "{}: is a mixture of experts ('{tensor}'), whose importance nibble does not collect; llama-imatrix does, but \
         nibble does not quantize experts by it", path.display()
    )]
    Experts { path: PathBuf, tensor: String },
    #[error("{}: has no matrices to collect importance for; is it a complete model?", path.display())]
    NoMatrices { path: PathBuf },
    #[error(
        "the input of '{matrix}' is {value} at column {column}, in window {window} of {}: the model is damaged, or its \
         numbers overflow", text.display()
    )]
    NotFinite { matrix: String, column: usize, value: f64, window: u64, text: PathBuf },
    #[error("{} exists already", path.display())]
    OutputExists { path: PathBuf },
    #[error("{} is a folder", path.display())]
    OutputIsFolder { path: PathBuf },
    #[error("{} is one of the inputs, and would be replaced by the result", path.display())]
    OutputIsInput { path: PathBuf },
    #[error("{} exists, but was not left by an earlier calibration", path.display())]
    UnknownPartial { path: PathBuf },
    #[error("{} could not be written: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("stopped after {done} of {all} windows; the next run continues from there")]
    Cancelled { done: u64, all: u64 },
}

/// A text that was read.
struct LoadedText {
    path: PathBuf,
    weight: f64,
    text: String,
    blake3: blake3::Hash,
    /// Whether its control tokens are read as such.
    special: bool,
}

/// A calibration that has been checked and is ready to execute.
pub struct CalibrationJob {
    model: PathBuf,
    /// Columns of each matrix to collect for.
    wanted: HashMap<String, usize>,
    /// Columns of every matrix.
    columns: HashMap<String, usize>,
    texts: Vec<LoadedText>,
    merged: Vec<(File, f64)>,
    window: u32,
    /// Identifies the model's files.
    model_identity: String,
    options: CalibrationOptions,
}

/// What happens during the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The work of an earlier run is not used: a text, the model or an option has changed, or the options say so.
    StartingOver,
    /// An earlier run has already read some windows.
    Resuming {
        /// Windows.
        windows: u64,
    },
    /// A window is done.
    Window {
        /// Done.
        done: u64,
        /// In all.
        all: u64,
    },
}

/// What was collected.
#[derive(Clone, Debug)]
pub struct Report {
    /// The texts that were read, with their weights, in the order given.
    pub texts: Vec<(crate::report::results::Slice, f64)>,
    /// What is in the file.
    pub sums: Sums,
    /// Matrices of the model that should have had inputs but had none.
    pub missing: Vec<String>,
    /// Matrices with columns whose inputs were always zero: the number of these columns, and of all columns.
    pub unseen: Vec<(String, usize, usize)>,
    /// Tokens of a window.
    pub window: u32,
    /// Windows that an earlier run had read.
    pub resumed: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl CalibrationJob {
    /// Opens the model, reads the texts and the files to add, and checks that the result can be written. Does not run the
    /// model.
    ///
    /// # Errors
    /// If anything is wrong with them.
    pub fn prepare(model: &Path, texts: &[Weighted], options: CalibrationOptions) -> Result<Self, Error> {
        if texts.is_empty() && !options.built_in && options.merge.is_empty() {
            return Err(Error::Nothing);
        }
        let gguf = Gguf::open(model)?;
        let columns = columns(&gguf, model)?;
        let output = if gguf.tensor("output.weight").is_some() { "output.weight" } else { "token_embd.weight" };
        let is_wanted = |name: &str| name.starts_with("blk.") || (options.output_matrix && name == output);
        let wanted: HashMap<_, _> =
            columns.iter().filter(|(name, _)| is_wanted(name)).map(|(name, n)| (name.clone(), *n)).collect();
        if wanted.is_empty() {
            return Err(Error::NoMatrices { path: model.to_path_buf() });
        }
        let window = window(&gguf, options.window)?;
        check_output(&options, gguf.paths().chain(texts.iter().map(|text| text.path.as_path())))?;
        let mut texts =
            texts.iter().map(|text| LoadedText::read(text, options.special)).collect::<Result<Vec<_>, _>>()?;
        texts.extend(BUILT_IN.iter().filter(|_| options.built_in).map(LoadedText::built_in));
        let merged = options
            .merge
            .iter()
            .map(|merge| {
                let file = File::read(&merge.path)?;
                file.check(&columns)?;
                Ok((file, merge.weight))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let model_identity = identity_of(&gguf).map_err(|source| Error::Read { path: model.to_path_buf(), source })?;
        Ok(Self { model: model.to_path_buf(), wanted, columns, texts, merged, window, model_identity, options })
    }

    /// Returns whether there are texts, so that the model has to run.
    pub fn runs_model(&self) -> bool {
        !self.texts.is_empty()
    }

    /// Returns how the model has to be loaded and run.
    pub fn session(&self) -> SessionOptions {
        let n_batch = self.window.min(MOST_AT_ONCE);
        SessionOptions { n_ctx: Some(self.window), n_batch, rows: n_batch, ..self.options.session.clone() }
    }

    /// Collects and writes importance. `model` is the loaded model, if [`Self::runs_model`].
    ///
    /// # Errors
    /// If a text is too short or cannot be encoded, an input is not finite, the result cannot be written, or the run is
    /// interrupted.
    pub fn execute(&self, model: Option<&Model>, mut tell: impl FnMut(Event)) -> Result<Report, Error> {
        let start = Instant::now();
        let mut report = Report {
            texts: Vec::new(),
            sums: Sums::default(),
            missing: Vec::new(),
            unseen: Vec::new(),
            window: self.window,
            resumed: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
        };
        if let Some(model) = model.filter(|_| self.runs_model()) {
            let tokens = self.texts.iter().map(|text| self.tokens(text, model)).collect::<Result<Vec<_>, _>>()?;
            self.collect(model, &tokens, &mut report, &mut tell)?;
        }
        for (file, weight) in &self.merged {
            report.sums.add(&file.sums(), *weight, &file.path, "what it is added to")?;
        }
        if report.sums.window == 0 {
            report.sums.window = self.window;
        }
        let bytes = report.sums.to_bytes()?;
        save(&self.options.output, &bytes, self.options.force)?;
        // If it cannot be removed now, the next run with other inputs reports it.
        let _ = std::fs::remove_file(self.partial_path());

        report.bytes = bytes.len() as u64;
        report.missing = self.wanted.keys().filter(|name| !report.sums.matrices.contains_key(*name)).cloned().collect();
        report.missing.sort_unstable();
        let unseen = report.sums.matrices.iter().map(|(name, m)| (name.clone(), m.unseen(), m.sums.len()));
        report.unseen = unseen.filter(|(_, unseen, _)| *unseen > 0).collect();
        report.elapsed = start.elapsed();
        Ok(report)
    }

    /// Returns the tokens of a text's whole windows, and the number of all its tokens.
    fn tokens(&self, text: &LoadedText, model: &Model) -> Result<(Vec<u32>, usize), Error> {
        let prompt = match text.special {
            true => Prompt::with_control_tokens(text.text.as_str()),
            false => Prompt::plain(text.text.as_str()),
        };
        let mut tokens = chat::encode(&prompt, model.tokenizer()).map_err(engine::Error::from)?;
        let (n_tokens, window) = (tokens.len(), self.window as usize);
        let most = self.options.most_windows.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let n_windows = (n_tokens / window).min(most);
        if n_windows == 0 {
            return Err(Error::Short { path: text.path.clone(), tokens: n_tokens, window: self.window });
        }
        tokens.truncate(n_windows * window);
        Ok((tokens, n_tokens))
    }

    /// Reads the texts, from where an earlier run stopped.
    fn collect(
        &self,
        model: &Model,
        tokens: &[(Vec<u32>, usize)],
        report: &mut Report,
        tell: &mut impl FnMut(Event),
    ) -> Result<(), Error> {
        let window = self.window as usize;
        let all = tokens.iter().map(|(tokens, _)| (tokens.len() / window) as u64).sum();
        let identity = self.identity(model);
        let (mut sums, mut done) = self.resume(&identity, tell)?;
        done = done.min(all);
        report.resumed = done;
        tell(Event::Window { done, all });

        let heard = Arc::new(Mutex::new(Heard::new(&self.wanted)));
        let ears = Ears { heard: heard.clone(), room: Room::default() };
        let mut session = Session::observed(model, &self.session(), ears)?;
        let begins_with = model.tokenizer().begins_with();
        let mut saved = done;
        let windows = self.texts.iter().zip(tokens).flat_map(|(text, (tokens, _))| {
            tokens.chunks_exact(window).enumerate().map(move |(index, window)| (text, index as u64, window))
        });
        for (text, index, tokens) in windows.skip(usize::try_from(done).unwrap_or(usize::MAX)) {
            lock(&heard).clear();
            match read(&mut session, tokens, begins_with) {
                Ok(()) => {}
                Err(engine::Error::Cancelled) => {
                    self.save_sums(&sums, done, &identity)?;
                    return Err(Error::Cancelled { done, all });
                }
                Err(error) => return Err(error.into()),
            }
            lock(&heard).add_to(&mut sums, text, index)?;
            done += 1;
            tell(Event::Window { done, all });
            if done - saved >= u64::from(self.options.save_every.max(1)) && done < all {
                self.save_sums(&sums, done, &identity)?;
                saved = done;
            }
        }

        for (text, (tokens, n_tokens)) in self.texts.iter().zip(tokens) {
            let windows = (tokens.len() / window) as u64;
            let blake3 = text.blake3.to_hex().to_string();
            let name = text.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let stem = crate::base::ending::stem(&text.path);
            let slice = crate::report::results::Slice {
                name: stem,
                path: text.path.display().to_string(),
                blake3: blake3.clone(),
                tokens: *n_tokens as u64,
                windows,
                scored: tokens.len() as u64,
            };
            report.texts.push((slice, text.weight));
            let (weight, tokens) = (text.weight, *n_tokens as u64);
            sums.texts.push(importance::CalibrationText { name, blake3, weight, tokens, windows });
        }
        sums.windows = all;
        sums.window = self.window;
        report.sums = sums;
        Ok(())
    }

    fn partial_path(&self) -> PathBuf {
        let mut name = self.options.output.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        self.options.output.with_file_name(name)
    }

    /// Returns a hash of everything that the sums depend on. Runs of the same identity can continue each other.
    fn identity(&self, model: &Model) -> String {
        let mut hasher = blake3::Hasher::new();
        let CalibrationOptions { most_windows, output_matrix, special, session, .. } = &self.options;
        let SessionOptions { kv_types, flash_attention, rope, .. } = session;
        let facts = format!(
            "{} {} {} {most_windows:?} {output_matrix} {special} {kv_types} {flash_attention:?} {rope}",
            env!("CARGO_PKG_VERSION"),
            self.model_identity,
            self.window
        );
        hasher.update(facts.as_bytes());
        hasher.update(blake3::hash(model.lora_identity()).as_bytes());
        for text in &self.texts {
            hasher.update(text.blake3.as_bytes());
            hasher.update(&text.weight.to_le_bytes());
            hasher.update(&[u8::from(text.special)]);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Saves the sums over the first `done` windows.
    fn save_sums(&self, sums: &Sums, done: u64, identity: &str) -> Result<(), Error> {
        if done == 0 {
            return Ok(());
        }
        let mut metadata = Metadata::new();
        metadata.set("general.type", STATE);
        metadata.set(IDENTITY, identity);
        metadata.set(DONE, done);
        save(&self.partial_path(), &sums.write(&metadata, TensorType::F64)?, true)
    }

    /// Returns the work of an earlier run: its sums, and the number of windows that they cover.
    fn resume(&self, identity: &str, tell: &mut impl FnMut(Event)) -> Result<(Sums, u64), Error> {
        let path = self.partial_path();
        if path.symlink_metadata().is_err() {
            return Ok((Sums::default(), 0));
        }
        if self.options.restart {
            tell(Event::StartingOver);
            return Ok((Sums::default(), 0));
        }
        let unknown = || Error::UnknownPartial { path: path.clone() };
        let gguf = Gguf::open(&path).map_err(|_| unknown())?;
        if gguf.metadata().str("general.type") != Some(STATE) {
            return Err(unknown());
        }
        let done = gguf.metadata().u64(DONE).unwrap_or(0);
        let sums = importance::sums_of(&gguf).map_err(|_| unknown())?;
        let fits = sums.matrices.iter().all(|(name, m)| self.wanted.get(name) == Some(&m.sums.len()));
        if gguf.metadata().str(IDENTITY) != Some(identity) || !fits || done == 0 {
            tell(Event::StartingOver);
            return Ok((Sums::default(), 0));
        }
        tell(Event::Resuming { windows: done });
        Ok((Sums { matrices: sums.matrices, ..Sums::default() }, done))
    }

    /// The model's file.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// Returns the number of the model's matrices, including those that are not measured.
    pub fn n_matrices(&self) -> usize {
        self.columns.len()
    }
}

/// `general.type` of the file that an interrupted run leaves.
const STATE: &str = "nibble.calibration";
const IDENTITY: &str = "nibble.calibration.identity";
const DONE: &str = "nibble.calibration.done";

impl LoadedText {
    fn built_in(text: &BuiltInText) -> Self {
        let (path, blake3) = (text.label(), blake3::hash(text.text.as_bytes()));
        Self { path, weight: 1.0, text: text.text.to_string(), blake3, special: true }
    }

    fn read(weighted: &Weighted, special: bool) -> Result<Self, Error> {
        let path = weighted.path.clone();
        let bytes = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        if bytes.starts_with(b"GGUF") {
            return Err(Error::TextIsGguf { path });
        }
        if bytes.is_empty() {
            return Err(Error::Empty { path });
        }
        let blake3 = blake3::hash(&bytes);
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { path, weight: weighted.weight, text: without_mark(text), blake3, special }),
            Err(error) => Err(Error::NotUtf8 { path, at: error.utf8_error().valid_up_to() }),
        }
    }
}

/// Returns the number of columns of every matrix of a model, by name.
fn columns(gguf: &Gguf, path: &Path) -> Result<HashMap<String, usize>, Error> {
    let mut columns = HashMap::new();
    for tensor in gguf.tensors().iter().filter(|tensor| tensor.name.ends_with(".weight")) {
        match tensor.dims.as_slice() {
            [columns_of, _] => {
                columns.insert(tensor.name.clone(), usize::try_from(*columns_of).unwrap_or(0));
            }
            [_, _, _, ..] => return Err(Error::Experts { path: path.to_path_buf(), tensor: tensor.name.clone() }),
            _ => {}
        }
    }
    Ok(columns)
}

/// Returns the tokens in a window, from the option and from what the model was trained on.
fn window(gguf: &Gguf, asked: Option<u32>) -> Result<u32, Error> {
    let trained = crate::placement::Shape::of(gguf).n_ctx_train.unwrap_or(u32::MAX);
    let found = asked.unwrap_or(DEFAULT_WINDOW.min(trained));
    let most = trained.clamp(LEAST_WINDOW, i32::MAX as u32 / 2);
    if (LEAST_WINDOW..=most).contains(&found) { Ok(found) } else { Err(Error::Window { found, most }) }
}

/// Checks that the result can be written.
fn check_output<'a>(options: &'a CalibrationOptions, inputs: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
    let path = options.output.clone();
    if path.is_dir() {
        return Err(Error::OutputIsFolder { path });
    }
    let merged = options.merge.iter().map(|merge| merge.path.as_path());
    if let Ok(real) = path.canonicalize()
        && inputs.chain(merged).any(|input| input.canonicalize().is_ok_and(|input| input == real))
    {
        return Err(Error::OutputIsInput { path });
    }
    if !options.force && path.symlink_metadata().is_ok() {
        return Err(Error::OutputExists { path });
    }
    // Report a missing folder now and not after hours.
    match AtomicFile::create(&path) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Write { path, source }),
    }
}

/// Identifies a model's files without reading all of them: by lengths, times and headers.
fn identity_of(gguf: &Gguf) -> io::Result<String> {
    const HEAD_BYTES: usize = 1 << 20;
    let mut hasher = blake3::Hasher::new();
    for map in gguf.mappings() {
        let (bytes, modified) = map.state()?;
        let nanoseconds = modified.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        hasher.update(&bytes.to_le_bytes());
        hasher.update(&nanoseconds.to_le_bytes());
        hasher.update(&map.bytes()[..map.bytes().len().min(HEAD_BYTES)]);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn save(path: &Path, bytes: &[u8], replace: bool) -> Result<(), Error> {
    let write = || {
        let mut file = AtomicFile::create(path)?;
        file.write_all(bytes)?;
        file.finish(replace)
    };
    write().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::OutputExists { path: path.to_path_buf() },
        _ => Error::Write { path: path.to_path_buf(), source },
    })
}

/// Reads a window from an empty context.
fn read(session: &mut Session, tokens: &[u32], begins_with: Option<u32>) -> Result<(), engine::Error> {
    session.truncate(0);
    let mut first = tokens.to_vec();
    if let (Some(token), Some(place)) = (begins_with, first.first_mut()) {
        *place = token;
    }
    // For tokens without logits, the last layer computes only keys and values.
    for batch in first.chunks(session.rows()) {
        session.eval(batch, Logits::All)?;
    }
    Ok(())
}

/// The sums over the inputs of a window.
struct Heard {
    /// The index of each matrix in `sums`, and its number of columns.
    places: HashMap<String, (usize, usize)>,
    /// Name, Σx² and number of inputs of each matrix, in the order in which the matrices first occurred.
    sums: Vec<(String, Matrix)>,
}

/// Locks `heard`. Ignores poisoning: what a panicking thread leaves is cleared before the next use.
fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The index of a matrix that has not occurred yet.
const NOWHERE: usize = usize::MAX;

impl Heard {
    fn new(wanted: &HashMap<String, usize>) -> Self {
        let places = wanted.iter().map(|(name, columns)| (name.clone(), (NOWHERE, *columns))).collect();
        Self { places, sums: Vec::new() }
    }

    fn clear(&mut self) {
        for (_, matrix) in &mut self.sums {
            matrix.sums.fill(0.0);
            matrix.counts.fill(0.0);
        }
    }

    fn wants(&self, matrix: &str, columns: usize) -> bool {
        self.places.get(matrix).is_some_and(|(_, wanted)| *wanted == columns)
    }

    /// Adds `inputs`, which are stored one after the other, to the matrix `name`.
    fn add(&mut self, name: &str, inputs: &[f32]) {
        let Some((place, columns)) = self.places.get_mut(name) else { return };
        if *place == NOWHERE {
            *place = self.sums.len();
            self.sums.push((name.to_string(), Matrix::new(*columns)));
        }
        let matrix = &mut self.sums[*place].1;
        for input in inputs.chunks_exact(*columns) {
            add_squares(&mut matrix.sums, input);
            matrix.counts[0] += 1.0;
        }
    }

    /// Adds this window, number `window` of `text`, to the sums of all windows.
    fn add_to(&self, sums: &mut Sums, text: &LoadedText, window: u64) -> Result<(), Error> {
        for (name, matrix) in &self.sums {
            // Report the first one in the order of computation: later ones inherit its error.
            if let Some(column) = matrix.sums.iter().position(|sum| !sum.is_finite()) {
                let (matrix, value, text) = (name.clone(), matrix.sums[column], text.path.clone());
                return Err(Error::NotFinite { matrix, column, value, window, text });
            }
        }
        for (name, matrix) in self.sums.iter().filter(|(_, matrix)| matrix.counts[0] > 0.0) {
            let total = sums.matrices.entry(name.clone()).or_insert_with(|| Matrix::new(matrix.sums.len()));
            total.add(matrix, text.weight);
        }
        Ok(())
    }
}

/// sums += input².
fn add_squares(sums: &mut [f64], input: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(input) {
        let x = f64::from(*x);
        *sum += x * x;
    }
}

/// Observes the products of matrices.
struct Ears {
    heard: Arc<Mutex<Heard>>,
    room: Room,
}

impl Observer for Ears {
    fn wants(&mut self, node: Node<'_>) -> bool {
        let (true, Some(matrix), Some(input)) = (node.is_product(), node.source(0), node.source(1)) else {
            return false;
        };
        lock(&self.heard).wants(matrix.name(), input.dims()[0])
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        if let (Some(matrix), Some(input)) = (node.source(0), node.source(1))
            && let Some(inputs) = self.room.read(input)
        {
            lock(&self.heard).add(matrix.name(), inputs);
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_have_a_weight() {
        let parse = |text: &str| text.parse::<Weighted>();
        let of = |path: &str, weight| Ok(Weighted { path: path.into(), weight });
        assert_eq!(parse("a.txt"), of("a.txt", 1.0));
        assert_eq!(parse("a.txt=2.5"), of("a.txt", 2.5));
        assert_eq!(parse("a=b.txt"), of("a=b.txt", 1.0));
        assert_eq!(parse("a=b.txt=0.5"), of("a=b.txt", 0.5));
        for wrong in ["", "=2", "a=0", "a=-1", "a=nan", "a=inf", "a=1e9"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
