//! How near a converted file is to its source, measured on any machine: neither has to fit in memory.
//!
//! ```text
//!  held-out tokens ─► [ layer 0 of the source ] ─► [ layer 1 ] ─► ... ─► logits ─┐
//!                 ├─► [ layer 0 of the file   ] ─► [ layer 1 ] ─► ... ─► logits ─┼─► KLD, same top ─► ratio of the two KLDs
//!                 └─► [ layer 0, rounded      ] ─► [ layer 1 ] ─► ... ─► logits ─┘
//!                       to nearest by the same plan, as it is read
//! ```
//!
//! The three models are computed side by side, one layer of one model at a time (`transformer`). Memory holds the hidden
//! vectors of the three, and what a layer computes for some tokens. The third model is never written: its rows are rounded
//! and decoded whenever they are read.
//!
//! The tokens are those that no matrix was rounded for: see `rounding::texts`. Windows, scored tokens and measures are those of
//! [`Comparison`](super::Comparison). llama.cpp rounds what enters a quantized matrix to 8 bits, and this does not.

mod nearest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rayon::prelude::*;
use serde::Serialize;

use super::measure::Columns;
use super::metrics::{Broken, Distance, Expected, Summary, distance};
use super::rounding::weights::SourceWeights;
use super::rounding::{self, texts};
use super::texts::{Cut, TokenizedText};
use crate::calibration::Text;
use crate::engine::SessionOptions;
use crate::gguf::{self, Gguf};
use crate::pass::Source;
use crate::recipe::Plan;
use crate::statistics::{Blocks, Bootstrap, Estimate};
use crate::transformer::{self, Model};
use nearest::Nearest;

/// The default number of tokens that are read.
pub const DEFAULT_TOKENS: u64 = 4096;

/// The default number of tokens in a window.
const DEFAULT_WINDOW: u32 = 256;

/// Numbers of hidden vectors that are computed with at a time, unless a window has more: 32 MiB, and for the widest part of a
/// layer ten times as much.
const NUMBERS_AT_ONCE: usize = 1 << 23;

/// Logits that are computed at a time: 64 MiB, for each of three models.
const LOGITS_AT_ONCE: usize = 1 << 24;

const RESAMPLES: u32 = 2000;
const SEED: u64 = 1;
const CONFIDENCE: f64 = 0.95;

/// How to compare.
#[derive(Clone, Debug)]
pub struct Options {
    /// The texts that matrices were rounded for.
    pub calibrated: Vec<Text>,
    /// The most tokens that were read of them.
    pub calibrated_tokens: u64,
    /// The number of held-out tokens to read, about.
    pub n_tokens: u64,
    /// Tokens of a window; `None` for 256, or what the model was trained on if that is less.
    pub window: Option<u32>,
    /// Threads, and the flag that interrupts the work.
    pub session: SessionOptions,
}

impl Options {
    /// Returns the default options, for a model whose matrices were rounded for at most `calibrated_tokens` of these texts.
    pub fn new(calibrated: Vec<Text>, calibrated_tokens: u64) -> Self {
        let session = SessionOptions::default();
        Self { calibrated, calibrated_tokens, n_tokens: DEFAULT_TOKENS, window: None, session }
    }
}

/// Why files cannot be compared layer by layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] gguf::Error),
    /// The texts cannot be used.
    #[error(transparent)]
    Texts(#[from] rounding::Error),
    /// No text has a window.
    #[error("no held-out text has {window} tokens, which a window takes")]
    NoText {
        /// Tokens of a window.
        window: u32,
    },
    /// A model cannot be computed.
    #[error("{model} cannot be computed: {source}")]
    Model {
        /// Which one.
        model: Which,
        /// Why not.
        source: transformer::Error,
    },
    /// A model's predictions are no numbers.
    #[error("the predictions of {model} have {broken}")]
    Broken {
        /// Which one.
        model: Which,
        /// What they have.
        broken: Broken,
    },
    /// The system gives no threads.
    #[error("no threads can be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// It was cancelled.
    #[error("stopped")]
    Cancelled,
}

/// One of the models that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The source.
    Original,
    /// The file that was made.
    Made,
    /// The source, rounded to nearest.
    Nearest,
}

const MODELS: [Which; 3] = [Which::Original, Which::Made, Which::Nearest];

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Original => "the original",
            Self::Made => "the new file",
            Self::Nearest => "plain rounding",
        })
    }
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Doing {
    /// The model that is computed.
    pub model: Which,
    /// Steps before this one.
    pub step: usize,
    /// All steps: a layer of a model is one, and so is its output.
    pub of: usize,
    /// The layer; `None` for the output of all models.
    pub layer: Option<usize>,
    /// All layers.
    pub n_layers: usize,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "comparing {}, layer {} of {}", self.model, layer + 1, self.n_layers),
            None => f.write_str("comparing, output"),
        }
    }
}

/// How far a model's predictions are from the original's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Mean KLD, in nats per token.
    pub kld: Estimate,
    /// Share of tokens with the same most likely one.
    pub same_top: Estimate,
}

/// What was found in a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfText {
    /// What it is called.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// BLAKE3 of what it holds.
    pub blake3: String,
    /// Windows that were read.
    pub windows: usize,
    /// Mean KLD of the file, in nats per token.
    pub made: Estimate,
    /// Mean KLD of rounding to nearest.
    pub nearest: Estimate,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Tokens of a window.
    pub window: u32,
    /// Tokens that were scored.
    pub scored: usize,
    /// The file.
    pub made: Scores,
    /// Rounding to nearest by the same plan.
    pub nearest: Scores,
    /// KLD of the file as a part of that of rounding to nearest.
    pub ratio: Estimate,
    /// Each text.
    pub texts: Vec<OfText>,
}

/// A comparison that was checked and can be carried out.
pub struct LayerComparison<'a> {
    source: &'a Source,
    plan: &'a Plan,
    file: Gguf,
    texts: Vec<TokenizedText>,
    cut: Cut,
    options: Options,
}

impl<'a> LayerComparison<'a> {
    /// Opens the `file` that was made of `source` by `plan`, and reads the held-out texts. Temporary files are in `folder`.
    ///
    /// # Errors
    /// If the file or a text cannot be read, or `folder` cannot be written to.
    pub fn prepare(
        source: &'a Source,
        plan: &'a Plan,
        file: &Path,
        folder: &Path,
        options: Options,
    ) -> Result<Self, Error> {
        let file = Gguf::open(file)?;
        let temporary = |source| rounding::Error::Temporary { path: folder.to_path_buf(), source };
        let folder = tempfile::Builder::new().prefix(".nibble-").tempdir_in(folder).map_err(temporary)?;
        let least = |most| rounding::window_of(&source.metadata, most).max(Cut::SMALLEST);
        let cut = Cut { window: options.window.unwrap_or_else(|| least(DEFAULT_WINDOW)) };
        let calibrated = rounding::window_of(&source.metadata, rounding::DEFAULT_WINDOW);
        let calibrated = (options.calibrated.as_slice(), options.calibrated_tokens, calibrated);
        let texts = texts::read_held_out(&source.metadata, folder.path(), calibrated, cut, options.n_tokens)?;
        if texts.is_empty() {
            return Err(Error::NoText { window: cut.window });
        }
        Ok(Self { source, plan, file, texts, cut, options })
    }

    /// Compares. `tell` is told what is done.
    ///
    /// # Errors
    /// If a model cannot be computed, or it was cancelled.
    pub fn execute(&self, tell: &(dyn Fn(Doing) + Sync)) -> Result<Outcome, Error> {
        let threads = self.options.session.n_threads() as usize;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let columns = pool.install(|| self.columns(tell))?;
        Ok(self.outcome(&columns))
    }

    /// Computes the measures of each scored token, of the file and of rounding to nearest.
    fn columns(&self, tell: &(dyn Fn(Doing) + Sync)) -> Result<[Columns; 2], Error> {
        let metadata = &self.source.metadata;
        let original = SourceWeights::new(self.source);
        let nearest = Nearest::new(&original, self.plan);
        let model = |which: Which| match which {
            Which::Original => Model::new(metadata, &original),
            Which::Made => Model::new(self.file.metadata(), &self.file),
            Which::Nearest => Model::new(metadata, &nearest),
        };
        let failed = |model| move |source| Error::Model { model, source };
        let tokens: Vec<u32> = self.texts.iter().flat_map(|text| text.tokens.iter().copied()).collect();
        let mut models = Vec::new();
        for which in MODELS {
            let model = model(which).map_err(failed(which))?;
            let hidden = model.embed(&tokens).map_err(failed(which))?;
            models.push((which, model, hidden));
        }
        let (n_layers, n_embd) = (models[0].1.n_layers(), models[0].1.n_embd());
        let of = n_layers * MODELS.len() + 1;
        let window = self.cut.window as usize;
        let at_once = (NUMBERS_AT_ONCE / (n_embd * window)).max(1) * n_embd * window;
        for layer in 0..n_layers {
            for (i, (which, model, hidden)) in models.iter_mut().enumerate() {
                let step = layer * MODELS.len() + i;
                tell(Doing { model: *which, step, of, layer: Some(layer), n_layers });
                for part in hidden.chunks_mut(at_once) {
                    self.check_cancelled()?;
                    model.forward(layer, window, part, &mut |_| ()).map_err(failed(*which))?;
                }
            }
        }
        tell(Doing { model: Which::Original, step: of - 1, of, layer: None, n_layers });
        self.measured(&models)
    }

    /// Compares the logits.
    fn measured(&self, models: &[(Which, Model<'_>, Vec<f32>)]) -> Result<[Columns; 2], Error> {
        let (n_embd, n_vocab) = (models[0].1.n_embd(), models[0].1.n_vocab());
        // For each scored token the place of the one before it, whose logits predict it.
        let (window, context) = (self.cut.window as usize, self.cut.context());
        let mut scored: Vec<(usize, u32)> = Vec::new();
        let windows = self.texts.iter().flat_map(|text| self.cut.windows(text));
        for (i, (_, right)) in windows.enumerate() {
            scored.extend(right.iter().enumerate().map(|(row, right)| (i * window + context + row, *right)));
        }
        let mut columns = [Columns::default(), Columns::default()];
        for part in scored.chunks((LOGITS_AT_ONCE / n_vocab).max(1)) {
            let mut rows = Vec::new();
            for (which, model, hidden) in models {
                self.check_cancelled()?;
                let vectors = part.iter().flat_map(|(at, _)| &hidden[at * n_embd..][..n_embd]);
                let vectors: Vec<f32> = vectors.copied().collect();
                let failed = |source| Error::Model { model: *which, source };
                rows.push(model.logits(&vectors).map_err(failed)?);
            }
            let of_token = |(i, (_, right)): (usize, &(usize, u32))| -> Result<[Distance; 2], Error> {
                let row = |model: usize| &rows[model][i * n_vocab..][..n_vocab];
                let summary = |model: usize| {
                    Summary::of(row(model)).map_err(|broken| Error::Broken { model: MODELS[model], broken })
                };
                let expected = summary(0)?;
                let mut weights = vec![0.0; n_vocab];
                expected.weights(row(0), &mut weights);
                let expected = Expected::Logits { logits: row(0), weights: &weights, summary: &expected };
                Ok([
                    distance(&expected, row(1), &summary(1)?, *right),
                    distance(&expected, row(2), &summary(2)?, *right),
                ])
            };
            let distances: Vec<_> = part.par_iter().enumerate().map(of_token).collect::<Result<_, _>>()?;
            for distances in distances {
                columns
                    .iter_mut()
                    .zip(&distances)
                    .for_each(|(columns, distance)| columns.push(distance, n_vocab.min(5)));
            }
        }
        Ok(columns)
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.options.session.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn outcome(&self, [made, nearest]: &[Columns; 2]) -> Outcome {
        let of_text = |(i, text)| self.cut.windows(text).map(move |(_, scored)| (i, scored.len()));
        let windows: Vec<(usize, usize)> = self.texts.iter().enumerate().flat_map(of_text).collect();
        let blocks = Blocks::of_windows(&windows);
        let bootstrap = |blocks| Bootstrap::new(blocks, RESAMPLES, SEED, CONFIDENCE);
        let texts = self.texts.iter().enumerate().map(|(i, text)| {
            let only = bootstrap(blocks.only(i));
            OfText {
                name: text.name.clone(),
                path: text.path.clone(),
                blake3: text.blake3.clone(),
                windows: self.cut.windows(text).len(),
                made: only.mean(&made.kld),
                nearest: only.mean(&nearest.kld),
            }
        });
        let texts = texts.collect();
        let all = bootstrap(blocks);
        let scores = |columns: &Columns| Scores { kld: all.mean(&columns.kld), same_top: all.mean(&columns.same_top) };
        let mut ratio = all.of_means(&[&made.kld, &nearest.kld], |means| means[0] / means[1]);
        // It is a ratio of two numbers that are not negative.
        if let Some([low, _]) = &mut ratio.interval {
            *low = low.max(0.0);
        }
        Outcome {
            window: self.cut.window,
            scored: made.kld.len(),
            made: scores(made),
            nearest: scores(nearest),
            ratio,
            texts,
        }
    }
}
