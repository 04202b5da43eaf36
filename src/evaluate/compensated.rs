//! Rounding that compensates, for a conversion: what enters each matrix is computed from texts, one layer at a time, and each
//! weight takes over the errors of those before it.
//!
//! ```text
//!  texts ─► tokens ─► embedding ─► hidden ─► [ layer 0 ] ─► hidden ─► [ layer 1 ] ─► ...      in 16 bits, as in the source
//!                                               │                       │
//!                              Σ x xᵀ of its four inputs        Σ x xᵀ of its four inputs
//!                                               ▼                       ▼
//!  conversion ──────────────────────► rows of layer 0 ──────► rows of layer 1 ──────► ...      rounded for these inputs
//! ```
//!
//! [`Compensation`] is the prologue of a conversion: it is asked for the matrices of a layer when the first of their rows is
//! reached, and runs the model up to there. So the model never has to fit in memory. For each token it keeps one vector, and
//! of the second moments those of two layers.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::layers::{self, Inputs, Layer};
use crate::base::text::without_mark;
use crate::calibration::Moments;
use crate::chat::{self, Prompt};
use crate::engine::SessionOptions;
use crate::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata, TensorInfo};
use crate::llama::Model;
use crate::pass::{self, EncodeRows, Prologue, Source, WholeTensor};
use crate::quant::Format;
use crate::quant::rounding::{DAMPING, SecondMoments, Settings};

/// The default number of tokens that are read, of all texts together.
pub const DEFAULT_TOKENS: u64 = 16_384;

/// The default number of tokens in a window.
const DEFAULT_WINDOW: u32 = 512;

/// How to round.
#[derive(Clone, Debug)]
pub struct CompensationOptions {
    /// The texts, in UTF-8.
    pub texts: Vec<PathBuf>,
    /// The most tokens to read of all texts together. Each text gives as many, from all over it.
    pub most_tokens: u64,
    /// Threads, and the flag that interrupts the work.
    pub session: SessionOptions,
    /// What is done for each row.
    pub settings: Settings,
}

impl CompensationOptions {
    /// Returns the default options with these texts.
    pub fn new(texts: Vec<PathBuf>) -> Self {
        Self { texts, most_tokens: DEFAULT_TOKENS, session: SessionOptions::default(), settings: Settings::default() }
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
    /// The layers cannot be run.
    #[error(transparent)]
    Layers(#[from] layers::Error),
    /// The source cannot be opened.
    #[error(transparent)]
    Source(#[from] pass::Error),
    /// The vocabulary cannot be used.
    #[error(transparent)]
    Vocabulary(#[from] crate::llama::Error),
    /// The system gives no threads.
    #[error("no threads can be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// No temporary file can be made.
    #[error("no temporary file can be made in {}: {source}", folder.display())]
    Temporary {
        /// Where.
        folder: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// A text as it is read.
struct CalibrationText {
    blake3: blake3::Hash,
    tokens: Vec<u32>,
}

/// Rounds the matrices of a model's layers for the inputs that they have while the model reads texts.
pub struct Compensation {
    walk: Mutex<Walk>,
    identity: String,
    settings: Settings,
    achieved: Arc<Mutex<Achieved>>,
}

impl fmt::Debug for Compensation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compensation").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What rounding achieved so far, as sums over weights.
#[derive(Clone, Copy, Debug, Default)]
struct Achieved {
    weights: f64,
    // Of each weight, the error of its rows as a part of what rounding to nearest leaves.
    parts: f64,
}

impl Compensation {
    /// Reads the texts for the model in `source`, which is what the conversion reads too. Layers are written, one at a time,
    /// to a temporary file in `folder`.
    ///
    /// # Errors
    /// If a text cannot be used, the architecture is not one whose layers can be run one by one, or `folder` cannot be
    /// written to.
    pub fn prepare(source: Source, folder: &Path, options: CompensationOptions) -> Result<Self, Error> {
        if options.texts.is_empty() {
            return Err(Error::NoText);
        }
        layers::n_layers(&source)?;
        let temporary = |error| Error::Temporary { folder: folder.to_path_buf(), source: error };
        let folder = tempfile::Builder::new().prefix(".nibble-").tempdir_in(folder).map_err(temporary)?;
        let arch = source.metadata.str("general.architecture").unwrap_or_default();
        let trained = source.metadata.u64(&format!("{arch}.context_length")).and_then(|n| u32::try_from(n).ok());
        let window = trained.unwrap_or(u32::MAX).clamp(1, DEFAULT_WINDOW);
        let texts = read_texts(&source, folder.path(), window, &options)?;
        // By what is in them: their names may change.
        let named: Vec<_> =
            texts.iter().map(|text| format!("{} tokens of {}", text.tokens.len(), text.blake3.to_hex())).collect();
        let Settings { nearest, rounds } = options.settings;
        // llama.cpp's sums depend on the instructions that it uses.
        let instructions = blake3::hash(crate::llama::system_info()?.as_bytes()).to_hex();
        let identity = format!(
            "compensated, damping {DAMPING}, {}refit in {rounds} rounds, instructions {}, windows of {window}, {}",
            if nearest { "no row worse than nearest, " } else { "" },
            &instructions[..8],
            named.join(", ")
        );
        let tokens: Vec<u32> = texts.into_iter().flat_map(|text| text.tokens).collect();
        let session = options.session;
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(session.n_threads() as usize).build()?);
        let (hidden, next, known) = (Vec::new(), 0, Vec::new());
        let walk = Walk { source, tokens, window, session, pool, folder, hidden, next, known };
        Ok(Self { walk: Mutex::new(walk), identity, settings: options.settings, achieved: Arc::default() })
    }

    /// Returns how much of the error that rounding to nearest makes in the output of the matrices is left; `None` if nothing
    /// was rounded, or it was not compared.
    pub fn error_left(&self) -> Option<f64> {
        let Achieved { weights, parts } = *lock(&self.achieved);
        (weights > 0.0).then(|| parts / weights)
    }
}

/// Locks `mutex`. What a panicking thread leaves in it is not used: the panic ends the conversion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Reads the texts, and cuts each into windows.
fn read_texts(
    source: &Source,
    folder: &Path,
    window: u32,
    options: &CompensationOptions,
) -> Result<Vec<CalibrationText>, Error> {
    let vocabulary = vocabulary(&source.metadata, folder)?;
    let tokenizer = vocabulary.tokenizer();
    let share = options.most_tokens / options.texts.len() as u64 / u64::from(window);
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
    options.texts.iter().map(read).collect()
}

/// Loads the vocabulary that `metadata` describes, from a file without tensors in `folder`.
fn vocabulary(metadata: &Metadata, folder: &Path) -> Result<Model, Error> {
    let path = folder.join("vocabulary.gguf");
    let layout = Layout::new(metadata, Vec::new(), DEFAULT_ALIGNMENT, None).map_err(layers::Error::from)?;
    std::fs::write(&path, &layout.parts()[0].header)
        .map_err(|source| layers::Error::Write { path: path.clone(), source })?;
    Ok(Model::load_vocabulary(&path)?)
}

/// A walk through the layers.
struct Walk {
    source: Source,
    tokens: Vec<u32>,
    window: u32,
    session: SessionOptions,
    /// Threads of its own: those of the conversion wait for it.
    pool: Arc<rayon::ThreadPool>,
    folder: tempfile::TempDir,
    /// What enters layer `next`; empty before the first.
    hidden: Vec<f32>,
    next: usize,
    /// The layers whose second moments are kept, in order.
    known: Vec<(usize, HashMap<&'static str, Known>)>,
}

/// The second moments of an input.
enum Known {
    Summed(Moments),
    Prepared(Arc<SecondMoments>),
}

/// Layers whose second moments are kept: in the files of a checkpoint, a layer may begin before the one before it ends.
const KEPT_LAYERS: usize = 2;

impl Walk {
    /// Returns the second moments of an input of a layer, after walking there; `None` if there was no such input.
    fn moments(&mut self, layer: usize, input: &'static str) -> Result<Option<Arc<SecondMoments>>, String> {
        if !self.known.iter().any(|(known, _)| *known == layer) {
            self.walk_to(layer).map_err(|error| error.to_string())?;
        }
        let Some((_, inputs)) = self.known.iter_mut().find(|(known, _)| *known == layer) else { return Ok(None) };
        let Some(known) = inputs.get_mut(input) else { return Ok(None) };
        if let Known::Summed(moments) = known {
            let prepared = self.pool.install(|| SecondMoments::new(moments.estimate(), moments.columns()));
            let prepared = prepared.map_err(|error| error.to_string())?;
            *known = Known::Prepared(Arc::new(prepared));
        }
        match known {
            Known::Prepared(moments) => Ok(Some(moments.clone())),
            Known::Summed(_) => unreachable!("prepared above"),
        }
    }

    /// Runs all layers up to and including `layer`, and keeps its second moments.
    fn walk_to(&mut self, layer: usize) -> Result<(), layers::Error> {
        if self.next > layer || self.hidden.is_empty() {
            self.hidden = layers::embed(&self.source, &self.tokens)?;
            self.next = 0;
        }
        while self.next <= layer {
            let path = self.folder.path().join("layer.gguf");
            layers::write_layer(&self.source, self.next, &path, &|_| None)?;
            let sums = Sums { wanted: self.next == layer, pool: self.pool.clone(), inputs: HashMap::new() };
            let run = Layer::open(&path, self.window, &self.session, sums).and_then(|mut layer| {
                layer.run(&mut self.hidden)?;
                Ok(layer.finish())
            });
            // It takes as much room as the layer has in single precision.
            let _ = std::fs::remove_file(&path);
            // After an error, what left some windows is mixed with what enters others.
            let sums = run.inspect_err(|_| self.hidden.clear())?;
            if sums.wanted {
                if self.known.len() >= KEPT_LAYERS {
                    self.known.remove(0);
                }
                let inputs = sums.inputs.into_iter().map(|(name, moments)| (name, Known::Summed(moments)));
                self.known.push((self.next, inputs.collect()));
            }
            self.next += 1;
        }
        Ok(())
    }
}

/// The matrices of a layer, each with the first one of those that have the same input.
const MATRICES: [(&str, &str); 7] = [
    ("attn_q.weight", "attn_q.weight"),
    ("attn_k.weight", "attn_q.weight"),
    ("attn_v.weight", "attn_q.weight"),
    ("attn_output.weight", "attn_output.weight"),
    ("ffn_gate.weight", "ffn_gate.weight"),
    ("ffn_up.weight", "ffn_gate.weight"),
    ("ffn_down.weight", "ffn_down.weight"),
];

/// Returns the layer of a tensor, and the name of its input, if it is a matrix of a layer.
fn place(name: &str) -> Option<(usize, &'static str)> {
    let (layer, matrix) = name.strip_prefix("blk.")?.split_once('.')?;
    let (_, input) = MATRICES.iter().find(|(known, _)| *known == matrix)?;
    Some((layer.parse().ok()?, input))
}

/// Sums up the second moments of the inputs of a layer.
struct Sums {
    wanted: bool,
    pool: Arc<rayon::ThreadPool>,
    inputs: HashMap<&'static str, Moments>,
}

impl Inputs for Sums {
    fn wants(&self, matrix: &str) -> bool {
        self.wanted && MATRICES.iter().any(|(_, input)| *input == matrix)
    }

    fn take(&mut self, matrix: &str, columns: usize, inputs: &[f32]) {
        if let Some((_, input)) = MATRICES.iter().find(|(_, input)| *input == matrix) {
            let moments = self.inputs.entry(input).or_insert_with(|| Moments::new(columns));
            self.pool.install(|| moments.add(inputs));
        }
    }
}

impl Prologue for Compensation {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn place(&self, tensor: &TensorInfo) -> usize {
        place(&tensor.name).map_or(0, |(layer, _)| layer)
    }

    fn prepare(&self, tensor: &WholeTensor<'_>) -> Result<Option<Box<dyn EncodeRows>>, pass::Error> {
        let info = tensor.info;
        let Some((layer, input)) = place(&info.name).filter(|_| info.ty.block_len() > 1) else { return Ok(None) };
        let moments = lock(&self.walk).moments(layer, input);
        let moments = moments.map_err(|reason| pass::Error::Prologue { tensor: info.name.clone(), reason })?;
        let encode = |moments: Arc<SecondMoments>| -> Box<dyn EncodeRows> {
            Box::new(Compensated { moments, settings: self.settings, achieved: self.achieved.clone() })
        };
        Ok(moments.filter(|moments| moments.columns() == tensor.row_len()).map(encode))
    }
}

/// Rounds the rows of a matrix for its inputs.
struct Compensated {
    moments: Arc<SecondMoments>,
    settings: Settings,
    achieved: Arc<Mutex<Achieved>>,
}

impl EncodeRows for Compensated {
    fn encode(
        &self,
        format: &Format,
        _first_row: usize,
        weights: &mut [f32],
        row_len: usize,
        importance: Option<&[f32]>,
        dst: &mut [u8],
    ) {
        // Weights that are no numbers come here only if that is allowed.
        let are_finite = weights.iter().all(|weight| weight.is_finite());
        let outcome = are_finite.then(|| format.round_for(weights, &self.moments, self.settings, dst)).flatten();
        let Some(outcome) = outcome else {
            format.quantize_rows(weights, row_len, importance, dst);
            return;
        };
        let last = outcome.refit.unwrap_or(outcome.compensated).objective;
        if let Some(nearest) = outcome.nearest.filter(|nearest| nearest.objective > 0.0) {
            let n_weights = weights.len() as f64;
            let mut achieved = lock(&self.achieved);
            achieved.weights += n_weights;
            achieved.parts += n_weights * last / nearest.objective;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_with_one_input_share_it() {
        assert_eq!(place("blk.12.attn_v.weight"), Some((12, "attn_q.weight")));
        assert_eq!(place("blk.0.ffn_up.weight"), Some((0, "ffn_gate.weight")));
        assert_eq!(place("blk.3.ffn_down.weight"), Some((3, "ffn_down.weight")));
        for other in ["blk.3.attn_norm.weight", "blk.x.attn_q.weight", "output.weight", "token_embd.weight", "blk.3"] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
