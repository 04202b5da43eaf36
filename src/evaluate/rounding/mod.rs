//! Rounding for texts, in a conversion: what enters each matrix, and what the output makes of what leaves it, is computed one
//! layer at a time, and weights take over the errors of others.
//!
//! ```text
//!  texts ─► tokens ─► walk ─► Σ x xᵀ of what enters, and Σ g gᵀ of the gradients of what leaves each matrix
//!                                     │
//!                                     ▼
//!  conversion ──► matrix as a whole ──► round_for, refit_two_sided ──► rows
//! ```
//!
//! [`Rounding`] is the prologue of a conversion: it is asked for each matrix when the first of its rows is reached, and
//! walks through the model up to there. So the model never has to fit in memory.
//!
//! The bytes are the same on every CPU and for any number of threads.

mod known;
pub mod sensitivity;
pub(super) mod texts;
mod walk;
pub(super) mod weights;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::base::disk::free_bytes;
use crate::base::units;
use crate::calibration::Text;
use crate::engine::SessionOptions;
use crate::gguf::{LayoutError, Metadata, TensorInfo};
use crate::pass::{self, EncodeRows, Prologue, Source, WholeTensor};
use crate::quant::rounding::{DAMPING, MomentsError, Settings, Sweeps};
use crate::quant::{self, Format};
use crate::transformer::{self, Model};
use known::{MOST_ROWS, OUTPUT_DAMPING, Prepared};
use walk::{Route, Walk};
pub(super) use weights::SourceWeights;

/// The default number of tokens that are read, of all texts together.
pub const DEFAULT_TOKENS: u64 = 16_384;

/// The default number of tokens in a window.
pub(super) const DEFAULT_WINDOW: u32 = 512;

/// What is known when a matrix is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// What enters it. Of the embedding, what the first layer makes of its errors; nothing more than of other matrices if it is
    /// the output matrix, too.
    Compensated,
    /// What enters it, how much the output depends on it, and on what leaves it.
    Full,
}

/// How to round.
#[derive(Clone, Debug)]
pub struct RoundingOptions {
    /// What to find out.
    pub method: Method,
    /// The texts.
    pub texts: Vec<Text>,
    /// The most tokens to read of all texts together. Each text gives as many, from all over it.
    pub most_tokens: u64,
    /// Threads, and the flag that interrupts the work.
    pub session: SessionOptions,
    /// What is done for each row that is rounded for what enters it.
    pub settings: Settings,
    /// How often all rows are refitted for the output, with [`Method::Full`].
    pub sweeps: usize,
}

impl RoundingOptions {
    /// Returns the default options with these texts.
    pub fn new(method: Method, texts: Vec<impl Into<Text>>) -> Self {
        let texts = texts.into_iter().map(Into::into).collect();
        let (session, settings) = (SessionOptions::default(), Settings::default());
        Self { method, texts, most_tokens: DEFAULT_TOKENS, session, settings, sweeps: 5 }
    }
}

/// Why a model cannot be rounded for texts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no text.
    #[error("there is no text to compute the inputs of matrices from")]
    NoText,
    /// A text cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The text.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A text is not UTF-8.
    #[error("{}: is not UTF-8 at byte {at}: save it as UTF-8 text", path.display())]
    NotUtf8 {
        /// The text.
        path: PathBuf,
        /// The offset of the first wrong byte.
        at: usize,
    },
    /// A text is too short.
    #[error("{}: has {tokens} tokens, fewer than a window of {window}", path.display())]
    Short {
        /// The text.
        path: PathBuf,
        /// Its tokens.
        tokens: usize,
        /// Tokens of a window.
        window: u32,
    },
    /// A text cannot be made into tokens.
    #[error("{}: {reason}", path.display())]
    Tokens {
        /// The text.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The layers cannot be computed.
    #[error("{model}: {source}")]
    Model {
        /// The model.
        model: String,
        /// Why not.
        source: transformer::Error,
    },
    /// The layers could not be computed.
    #[error(transparent)]
    Compute(#[from] transformer::Error),
    /// What enters a matrix, or leaves it, is not finite.
    #[error(transparent)]
    Moments(#[from] MomentsError),
    /// The vocabulary breaks a rule of the format.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It was cancelled.
    #[error("stopped")]
    Cancelled,
    /// The source cannot be opened.
    #[error(transparent)]
    Source(#[from] pass::Error),
    /// The vocabulary cannot be used.
    #[error(transparent)]
    Vocabulary(#[from] crate::llama::Error),
    /// The system gives no threads.
    #[error("no threads can be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// There is not enough room for the temporary file.
    #[error(
        "not enough room in {}: {} are needed there, of them {} for what enters each layer while the texts are read, and {} are \
         missing", folder.display(), units::bytes(*needed), units::bytes(*temporary), units::bytes(*missing)
    )]
    NoRoom {
        /// The folder.
        folder: PathBuf,
        /// Bytes that are needed there.
        needed: u64,
        /// Bytes of the temporary file.
        temporary: u64,
        /// Bytes that are missing.
        missing: u64,
    },
    /// A temporary file cannot be made, written or read.
    #[error("{}: a temporary file cannot be kept there: {source}", path.display())]
    Temporary {
        /// The file, or its folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Rounds the matrices of a model for texts.
pub struct Rounding {
    source: Source,
    work: Mutex<Work>,
    folder: PathBuf,
    temporary_bytes: u64,
    n_tokens: usize,
    /// Threads of its own: those of the conversion wait for it.
    pool: rayon::ThreadPool,
    /// Held while a large matrix is rounded: they take much memory.
    large: Mutex<()>,
    route: Route,
    identity: String,
    options: RoundingOptions,
    achieved: Mutex<Achieved>,
    observer: OnceLock<Box<Observer>>,
}

/// Is told what is done.
type Observer = dyn Fn(Doing<'_>) + Send + Sync;

/// What rounding does.
#[derive(Clone, Copy, Debug)]
pub enum Doing<'a> {
    /// Computes a layer forward, over all texts.
    Forward {
        /// Layers before it.
        step: usize,
        /// All layers.
        of: usize,
    },
    /// Computes a layer backward.
    Backward {
        /// Layers that were computed backward; 0 is the output.
        step: usize,
        /// All layers.
        of: usize,
    },
    /// Rounds a tensor.
    Rounding {
        /// Its name.
        tensor: &'a str,
    },
    /// Measures what a tensor costs in each type.
    Measuring {
        /// Its name.
        tensor: &'a str,
    },
}

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward { step, of } if step == of => f.write_str("forward, output"),
            Self::Forward { step, of } => write!(f, "forward, layer {} of {of}", step + 1),
            Self::Backward { step: 0, .. } => f.write_str("backward, output"),
            Self::Backward { step, of } => write!(f, "backward, layer {step} of {of}"),
            Self::Rounding { tensor } => write!(f, "rounding {tensor}"),
            Self::Measuring { tensor } => write!(f, "measuring {tensor}"),
        }
    }
}

/// What is learned about the matrices, one at a time.
struct Work {
    walk: Walk,
}

impl fmt::Debug for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rounding").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What rounding achieved so far, as sums over weights.
#[derive(Clone, Copy, Debug, Default)]
struct Achieved {
    weights: f64,
    // Of each weight, the error of its rows as a part of what rounding to nearest leaves.
    parts: f64,
}

impl Rounding {
    /// Reads the texts for the model in `source`, which is what the conversion reads too. Temporary files are in `folder`.
    ///
    /// # Errors
    /// If a text cannot be used, the architecture is not one whose layers can be computed, or `folder` cannot be
    /// written to.
    pub fn prepare(source: Source, folder: &Path, options: RoundingOptions) -> Result<Self, Error> {
        let RoundingOptions { method, most_tokens, .. } = options;
        let Begun { route, n_embd, window, texts } = begin(&source, folder, method, &options.texts, most_tokens)?;
        // By what is in them: their names may change.
        let named: Vec<_> =
            texts.iter().map(|text| format!("{} tokens of {}", text.tokens.len(), text.blake3.to_hex())).collect();
        let Settings { nearest, rounds } = options.settings;
        let method = match options.method {
            Method::Compensated if route.tied => "compensated".to_string(),
            Method::Compensated => "compensated, the embedding for the first layer".to_string(),
            Method::Full => format!(
                "full, {} sweeps of at most {MOST_ROWS} rows, damping of outputs {OUTPUT_DAMPING}",
                options.sweeps
            ),
        };
        let identity = format!(
            "{method}, damping {DAMPING}, {}refit in {rounds} rounds, windows of {window}, {}",
            if nearest { "no row worse than nearest, " } else { "" },
            named.join(", ")
        );
        let tokens: Vec<u32> = texts.into_iter().flat_map(|text| text.tokens).collect();
        let n_tokens = tokens.len();
        let temporary_bytes = route.temporary_bytes(n_tokens, n_embd);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.session.n_threads() as usize).build()?;
        let cancel = options.session.cancel.clone();
        let walk = Walk::new(route, tokens, window as usize, folder.to_path_buf(), cancel);
        let work = Mutex::new(Work { walk });
        let (large, achieved, observer) = (Mutex::default(), Mutex::default(), OnceLock::new());
        let folder = folder.to_path_buf();
        Ok(Self {
            source,
            work,
            folder,
            temporary_bytes,
            n_tokens,
            pool,
            large,
            route,
            identity,
            options,
            achieved,
            observer,
        })
    }

    /// Checks that the disk has room for the temporary file and for `more` bytes beside it. Worth calling before hours of work
    /// begin.
    ///
    /// # Errors
    /// If it has not. A system that does not say how much room there is has enough.
    pub fn check_room(&self, more: u64) -> Result<(), Error> {
        let (folder, temporary) = (self.folder.clone(), self.temporary_bytes);
        check_room(folder, temporary, more, free_bytes(&self.folder))
    }

    /// Returns the number of tokens that the layers are computed for.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Returns whether the layers are computed backward, too.
    pub fn goes_backward(&self) -> bool {
        self.options.method == Method::Full
    }

    /// Returns the texts and the most tokens that are read of them.
    pub fn texts(&self) -> (&[Text], u64) {
        (&self.options.texts, self.options.most_tokens)
    }

    /// Sets what is told about the work, from several threads. Only the first one that is set counts.
    pub fn observe(&self, observer: impl Fn(Doing<'_>) + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(observer));
    }

    fn tell(&self, doing: Doing<'_>) {
        if let Some(observer) = self.observer.get() {
            observer(doing);
        }
    }

    /// Returns how much of the error that rounding to nearest makes in the output of the matrices is left; `None` if nothing
    /// was rounded, or it was not compared.
    pub fn error_left(&self) -> Option<f64> {
        let Achieved { weights, parts } = *lock(&self.achieved);
        (weights > 0.0).then(|| parts / weights)
    }

    fn rounded(&self, tensor: &WholeTensor<'_>) -> Result<Option<Vec<u8>>, Error> {
        let info = tensor.info;
        let Some(place) = self.route.place(&info.name).filter(|_| info.ty.block_len() > 1) else { return Ok(None) };
        let Some(format) = quant::format(info.ty) else { return Ok(None) };
        let n_weights = tensor.n_rows() * tensor.row_len();
        let _large = (n_weights > LARGE).then(|| lock(&self.large));
        // Locked by a thread that is not of the pool: those take up other work while they wait.
        let known = {
            let mut work = lock(&self.work);
            let weights = SourceWeights::new(&self.source);
            let model = Model::new(&self.source.metadata, &weights)?;
            let walk = &mut work.walk;
            self.pool.install(|| walk.prepared(&model, &place, &|doing| self.tell(doing)))?
        };
        self.pool.install(|| {
            let Some(known) = known.filter(|known| known.inputs.columns() == tensor.row_len()) else { return Ok(None) };
            let mut weights = Vec::new();
            tensor.read(0..tensor.n_rows(), &mut weights)?;
            weights.truncate(n_weights);
            // The conversion says what is wrong with weights that are too large or no numbers, or takes them if it may.
            if !weights.iter().all(|weight| weight.abs() < format.limit(true)) {
                return Ok(None);
            }
            self.tell(Doing::Rounding { tensor: &info.name });
            self.round(format, &weights, &known)
        })
    }

    /// Rounds a whole matrix.
    fn round(&self, format: &Format, weights: &[f32], known: &Prepared) -> Result<Option<Vec<u8>>, Error> {
        let stop = &self.options.session.cancel;
        let columns = known.inputs.columns();
        let mut bytes = vec![0; weights.len() / columns * format.row_bytes(columns)];
        // What the sweeps begin with need not be good.
        let settings = if known.outputs.is_empty() { self.options.settings } else { FOR_SWEEPS };
        // Some at a time, so that it can be stopped.
        let rows = ROWS_AT_ONCE * rayon::current_num_threads();
        let parts = weights.chunks(rows * columns).zip(bytes.chunks_mut(rows * format.row_bytes(columns)));
        let (mut left, mut nearest) = (0.0, 0.0);
        for (weights, bytes) in parts {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let Some(outcome) = format.round_for(weights, &known.inputs, settings, bytes) else { return Ok(None) };
            if known.outputs.is_empty() {
                left += outcome.refit.unwrap_or(outcome.compensated).objective;
                nearest += outcome.nearest.map_or(0.0, |nearest| nearest.objective);
            }
        }
        let row_bytes = format.row_bytes(columns);
        let mut first = 0;
        for outputs in &known.outputs {
            let rows = first..first + outputs.rows();
            first = rows.end;
            let weights = &weights[rows.start * columns..rows.end * columns];
            let bytes = &mut bytes[rows.start * row_bytes..rows.end * row_bytes];
            let sweeps = Sweeps { sweeps: self.options.sweeps, stop };
            let refitted = format.refit_two_sided(weights, &known.inputs, outputs, sweeps, bytes);
            left += refitted.ok_or(Error::Cancelled)?.after;
            let mut bytes = vec![0; bytes.len()];
            format.quantize_rows(weights, columns, Some(known.inputs.importance()), &mut bytes);
            nearest += format.objective_two_sided(weights, &known.inputs, outputs, &bytes);
        }
        if nearest > 0.0 {
            let mut achieved = lock(&self.achieved);
            achieved.weights += weights.len() as f64;
            achieved.parts += weights.len() as f64 * left / nearest;
        }
        Ok(Some(bytes))
    }
}

/// What a walk begins with.
struct Begun {
    route: Route,
    /// Numbers of a hidden vector.
    n_embd: usize,
    /// Tokens of a window.
    window: u32,
    texts: Vec<texts::CalibrationText>,
}

/// Reads texts for the model in `source`. A temporary file is in a new folder in `folder`, which is gone afterwards: what is killed
/// later leaves nothing behind.
fn begin(source: &Source, folder: &Path, method: Method, texts: &[Text], most_tokens: u64) -> Result<Begun, Error> {
    if texts.is_empty() {
        return Err(Error::NoText);
    }
    let temporary = |error| Error::Temporary { path: folder.to_path_buf(), source: error };
    let folder = tempfile::Builder::new().prefix(".nibble-").tempdir_in(folder).map_err(temporary)?;
    let weights = SourceWeights::new(source);
    let model = Model::new(&source.metadata, &weights)
        .map_err(|error| Error::Model { model: source.file_name(), source: error })?;
    let (n_layers, n_embd, tied) = (model.n_layers(), model.n_embd(), model.is_tied());
    let window = window_of(&source.metadata, DEFAULT_WINDOW);
    let texts = texts::read(&source.metadata, folder.path(), window, texts, most_tokens)?;
    Ok(Begun { route: Route { method, n_layers, tied }, n_embd, window, texts })
}

/// Returns how many tokens a window has: `most`, or what the model was trained on if that is less.
pub(super) fn window_of(metadata: &Metadata, most: u32) -> u32 {
    let arch = metadata.str("general.architecture").unwrap_or_default();
    let trained = metadata.u64(&format!("{arch}.context_length")).and_then(|n| u32::try_from(n).ok());
    trained.unwrap_or(u32::MAX).clamp(1, most)
}

fn check_room(folder: PathBuf, temporary: u64, more: u64, free: Option<u64>) -> Result<(), Error> {
    let needed = temporary.saturating_add(more);
    match free.map(|free| needed.saturating_sub(free)) {
        None | Some(0) => Ok(()),
        // Without the temporary file, whoever writes the rest says so.
        Some(_) if temporary == 0 => Ok(()),
        Some(missing) => Err(Error::NoRoom { folder, needed, temporary, missing }),
    }
}

/// How a matrix is rounded before it is refitted for its outputs: for its inputs, in one go. Rounding to nearest first, or a refit
/// for the inputs, takes longer than another sweep and gains less.
const FOR_SWEEPS: Settings = Settings { nearest: false, rounds: 0 };

/// Matrices with more weights than this are rounded one at a time.
const LARGE: usize = 1 << 23;

/// Rows that each thread rounds before it is looked whether to stop.
const ROWS_AT_ONCE: usize = 128;

/// Locks `mutex`. What a panicking thread leaves in it is not used: the panic ends the conversion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Prologue for Rounding {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn place(&self, tensor: &TensorInfo) -> Option<usize> {
        self.route.place(&tensor.name).map(|place| place.step)
    }

    fn prepare(&self, tensor: &WholeTensor<'_>) -> Result<Option<Box<dyn EncodeRows>>, pass::Error> {
        match self.rounded(tensor) {
            Ok(Some(bytes)) => Ok(Some(Box::new(Rounded { bytes }))),
            Ok(None) => Ok(None),
            Err(Error::Cancelled) => Err(pass::Error::Cancelled),
            Err(Error::Source(error)) => Err(error),
            Err(error) => Err(pass::Error::Prologue { tensor: tensor.info.name.clone(), reason: error.to_string() }),
        }
    }
}

/// A matrix that is rounded.
struct Rounded {
    bytes: Vec<u8>,
}

impl EncodeRows for Rounded {
    fn encode(
        &self,
        format: &Format,
        first_row: usize,
        _weights: &mut [f32],
        row_len: usize,
        _importance: Option<&[f32]>,
        dst: &mut [u8],
    ) {
        dst.copy_from_slice(&self.bytes[first_row * format.row_bytes(row_len)..][..dst.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_the_temporary_file_is_asked_for_first() {
        let check = |temporary, more, free| check_room("there".into(), temporary, more, free);
        for (temporary, more, free) in [(100, 50, Some(150)), (100, 50, None), (0, 200, Some(150))] {
            assert!(check(temporary, more, free).is_ok());
        }
        let refused = check(14_092_861_440, 20_700_000_000, Some(30_000_000_000)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "not enough room in there: 34.79 GB are needed there, of them 14.09 GB for what enters each layer while the texts \
             are read, and 4.79 GB are missing"
        );
        // 16,384 tokens of Yi-34B.
        let route = |method| Route { method, n_layers: 60, tied: false };
        assert_eq!(route(Method::Full).temporary_bytes(16_384, 7168), 14_092_861_440);
        assert_eq!(route(Method::Compensated).temporary_bytes(16_384, 7168), 0);
    }
}
