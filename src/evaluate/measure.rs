//! Measures candidates against a reference, or records a reference's predictions.
//!
//! The reference and the candidates read the same windows, one window after the other. All of the reference's logits
//! for a window are kept in memory, but only a few rows of a candidate's. They are reduced to a few numbers per token
//! while the next rows are computed.

use rayon::prelude::*;

use super::metrics::{Distance, Expected, Summary, TOP, Traced, distance, top_k};
use super::read::{self, Failure, Observer, Read, Rows};
use super::texts::{Cut, TokenizedText};
use super::trace::{Trace, Writer};
use crate::engine::SessionOptions;
use crate::llama::Model;

/// What candidates are compared with.
#[derive(Clone, Copy, Debug)]
pub enum Against<'a> {
    /// A model, which reads the texts too.
    Model(&'a Model),
    /// The recorded predictions of a model.
    Trace(&'a Trace),
}

/// How models read texts.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// How models are run. The context and the batches depend on the windows.
    pub session: SessionOptions,
    /// How texts are cut.
    pub cut: Cut,
}

/// Measures of each scored token, in the order of the texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// KLD.
    pub kld: Vec<f64>,
    /// Negative log-likelihood of the text's own token.
    pub nll: Vec<f64>,
    /// Its probability minus its probability according to the reference.
    pub dp: Vec<f64>,
    /// 1 if both have the same most likely token, else 0.
    pub same_top: Vec<f64>,
    /// Share of the reference's five most likely tokens that are among the candidate's.
    pub top5: Vec<f64>,
}

impl Columns {
    pub(super) fn push(&mut self, distance: &Distance, n_top: usize) {
        self.kld.push(distance.kld);
        self.nll.push(distance.nll);
        self.dp.push(distance.dp);
        self.same_top.push(f64::from(u8::from(distance.same_top)));
        self.top5.push(f64::from(distance.top5) / n_top as f64);
    }

    fn truncate(&mut self, n: usize) {
        for column in [&mut self.kld, &mut self.nll, &mut self.dp, &mut self.same_top, &mut self.top5] {
            column.truncate(n);
        }
    }
}

/// A scored token for which the candidate's most likely token is not the reference's.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// Index of the window, counted over all texts.
    pub window: usize,
    /// Index of the token among the window's scored tokens.
    pub row: usize,
    /// KLD there.
    pub kld: f64,
    /// The text's own token, with its probabilities.
    pub right: Likely,
    /// The reference's most likely tokens, in descending order.
    pub reference: Vec<Likely>,
    /// The candidate's most likely tokens, in descending order.
    pub candidate: Vec<Likely>,
}

/// A token with its probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likely {
    /// The token.
    pub id: u32,
    /// Its probability according to the reference; `None` if the trace did not keep it.
    pub reference: Option<f64>,
    /// Its probability according to the candidate.
    pub candidate: f64,
}

/// Number of a model's most likely tokens that are shown.
const SHOWN: usize = 3;
/// Number of changes that are kept for a candidate, each from another window.
const KEPT: usize = 12;
/// Most bytes of the reference's weights for a window that are kept for all candidates.
const WEIGHT_BYTES: usize = 32 << 20;

/// The measurements of a candidate.
#[derive(Debug, Default)]
pub struct Measured {
    /// The measures of all windows that were read; empty if it failed.
    pub columns: Columns,
    /// The tokens with the largest KLD, in descending order.
    pub changed: Vec<Changed>,
    /// The failure that stopped it, and in which window.
    pub failure: Option<(usize, Failure)>,
}

/// The measurements of all candidates.
#[derive(Debug, Default)]
pub struct Measurement {
    /// The text and the number of scored tokens of each window that was read.
    pub windows: Vec<(usize, usize)>,
    /// The reference's negative log-likelihoods of the text's own tokens.
    pub reference_nll: Vec<f64>,
    /// The candidates.
    pub candidates: Vec<Measured>,
    /// The failure that stopped the reference, and in which window.
    pub failure: Option<(usize, Failure)>,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
    /// Seconds in which models computed.
    pub model_seconds: f64,
}

/// Measures the candidates, which must have the reference's vocabulary. `watch` is called with the number of windows
/// done.
pub fn measure(
    against: Against,
    candidates: &[&Model],
    texts: &[TokenizedText],
    options: &ReadOptions,
    watch: impl FnMut(usize),
) -> Measurement {
    let (reference, trace) = match against {
        Against::Model(model) => (Some(model), None),
        Against::Trace(trace) => (None, Some(trace)),
    };
    let models: Vec<&Model> = reference.into_iter().chain(candidates.iter().copied()).collect();
    let essential = usize::from(reference.is_some());
    let mut comparer = Comparer {
        trace,
        essential,
        right: Vec::new(),
        texts: Vec::new(),
        kept: Vec::new(),
        spare: Vec::new(),
        nll: Vec::new(),
        candidates: candidates.iter().map(|_| Progress::default()).collect(),
    };
    let read = read::read(&models, essential, texts, options.cut, &options.session, &mut comparer, watch);
    comparer.finish(read, options.cut)
}

/// Returns the windows of a trace, each with its text and its number of scored tokens, and the negative log-likelihoods
/// of the text's own tokens. This is what [`measure`] returns for a reference that is a trace, without running
/// anything.
pub fn of_trace(trace: &Trace) -> (Vec<(usize, usize)>, Vec<f64>) {
    let cut = trace.header().cut();
    let windows = trace.texts().iter().enumerate().flat_map(|(i, text)| cut.windows(text).map(move |_| i));
    let windows: Vec<(usize, usize)> = windows.map(|text| (text, cut.scored())).collect();
    // A trace that was opened has all rows of its texts.
    let nll = (0..windows.len() * cut.scored()).filter_map(|row| trace.row(row)).map(|row| -row.right).collect();
    (windows, nll)
}

/// Records a model's predictions on the texts. `watch` is called with the number of windows done.
pub fn trace(
    model: &Model,
    texts: &[TokenizedText],
    options: &ReadOptions,
    writer: &mut Writer,
    watch: impl FnMut(usize),
) -> Read {
    let mut tracer = Tracer { writer, right: Vec::new() };
    read::read(&[model], 1, texts, options.cut, &options.session, &mut tracer, watch)
}

struct Tracer<'a> {
    writer: &'a mut Writer,
    right: Vec<u32>,
}

impl Observer for Tracer<'_> {
    fn window(&mut self, _text: usize, scored: &[u32]) {
        self.right = scored.to_vec();
    }

    fn rows(&mut self, _model: usize, _step: usize, rows: Rows) -> Result<Option<Vec<f32>>, Failure> {
        let summaries = summaries(&rows)?;
        let (header, before, right) = (self.writer.header(), self.writer.rows(), &self.right[rows.first..]);
        let encoded: Vec<Vec<u8>> = (0..rows.len())
            .into_par_iter()
            .map(|i| header.row(before + i as u64, rows.row(i), &summaries[i], right[i]))
            .collect();
        encoded.iter().try_for_each(|row| self.writer.add(row))?;
        Ok(Some(rows.logits))
    }
}

/// Summarizes all rows.
fn summaries(rows: &Rows) -> Result<Vec<Summary>, Failure> {
    (0..rows.len()).into_par_iter().map(|i| summary(rows, i)).collect()
}

/// Summarizes a row.
fn summary(rows: &Rows, row: usize) -> Result<Summary, Failure> {
    Summary::of(rows.row(row)).map_err(|broken| Failure::Broken { broken, row: rows.first + row })
}

/// The reference's predictions for the window that is being read.
enum Kept {
    // Without weights if they would take too much memory. They are then computed for each candidate.
    Logits { rows: Rows, weights: Vec<f32>, summaries: Vec<Summary> },
    Traced(Vec<Traced>),
}

impl Kept {
    /// Returns the reference's prediction for a row; `room` is a buffer for weights that were not kept.
    fn expected<'a>(&'a self, i: usize, room: &'a mut Vec<f32>) -> Expected<'a> {
        match self {
            Self::Logits { rows, weights, summaries } => {
                let (logits, summary) = (rows.row(i), &summaries[i]);
                let weights = if weights.is_empty() {
                    room.resize(rows.n_vocab, 0.0);
                    summary.weights(logits, room);
                    room.as_slice()
                } else {
                    &weights[i * rows.n_vocab..][..rows.n_vocab]
                };
                Expected::Logits { logits, weights, summary }
            }
            Self::Traced(traced) => Expected::Trace(&traced[i]),
        }
    }
}

#[derive(Default)]
struct Progress {
    columns: Columns,
    changed: Vec<Changed>,
}

struct Comparer<'a> {
    trace: Option<&'a Trace>,
    // The index of the first candidate among the models.
    essential: usize,
    // The tokens that are scored in the window.
    right: Vec<u32>,
    // The texts of all windows so far.
    texts: Vec<usize>,
    // The reference's steps of the window.
    kept: Vec<Kept>,
    // Buffers of the previous window.
    spare: Vec<Vec<f32>>,
    // The reference's, over all windows.
    nll: Vec<f64>,
    candidates: Vec<Progress>,
}

impl Observer for Comparer<'_> {
    fn window(&mut self, text: usize, scored: &[u32]) {
        self.texts.push(text);
        self.right = scored.to_vec();
        for kept in self.kept.drain(..) {
            if let Kept::Logits { rows, weights, .. } = kept {
                self.spare.extend([rows.logits, weights].into_iter().filter(|buffer| buffer.capacity() > 0));
            }
        }
        if let Some(trace) = self.trace {
            let first = self.nll.len();
            // A trace that was opened has all rows of its texts.
            let rows: Vec<Traced> = (first..first + scored.len()).filter_map(|row| trace.row(row)).collect();
            self.nll.extend(rows.iter().map(|row| -row.right));
            self.kept.push(Kept::Traced(rows));
        }
    }

    fn rows(&mut self, model: usize, step: usize, rows: Rows) -> Result<Option<Vec<f32>>, Failure> {
        let right = &self.right[rows.first..];
        if model < self.essential {
            let summaries = summaries(&rows)?;
            let of_row = |(i, summary): (usize, &Summary)| -summary.log_probability(rows.row(i)[right[i] as usize]);
            self.nll.extend(summaries.iter().enumerate().map(of_row));
            let mut weights = Vec::new();
            if 4 * self.right.len() * rows.n_vocab <= WEIGHT_BYTES {
                weights = self.spare.pop().unwrap_or_default();
                weights.resize(rows.logits.len(), 0.0);
                let of_rows = weights.par_chunks_mut(rows.n_vocab).zip(&summaries).enumerate();
                of_rows.for_each(|(i, (weights, summary))| summary.weights(rows.row(i), weights));
            }
            self.kept.push(Kept::Logits { rows, weights, summaries });
            // Return a buffer of the previous window in exchange for the one that is kept.
            return Ok(self.spare.pop());
        }
        // A trace has a whole window at once; a model has it step by step, as candidates do.
        let (kept, offset) = match self.trace {
            Some(_) => (&self.kept[0], rows.first),
            None => (&self.kept[step], 0),
        };
        let measured: Vec<(Summary, Distance)> = (0..rows.len())
            .into_par_iter()
            .map_init(Vec::new, |room, i| {
                let summary = summary(&rows, i)?;
                let distance = distance(&kept.expected(offset + i, room), rows.row(i), &summary, right[i]);
                Ok((summary, distance))
            })
            .collect::<Result<_, Failure>>()?;
        let progress = &mut self.candidates[model - self.essential];
        let n_top = TOP.min(rows.n_vocab);
        measured.iter().for_each(|(_, distance)| progress.columns.push(distance, n_top));

        let window = self.texts.len() - 1;
        let flips = measured.iter().enumerate().filter(|(_, (_, distance))| !distance.same_top);
        if let Some((i, (summary, distance))) = flips.max_by(|(_, a), (_, b)| a.1.kld.total_cmp(&b.1.kld)) {
            let position = Position { window, row: rows.first + i, right: right[i], kld: distance.kld };
            progress.note(&position, &kept.expected(offset + i, &mut Vec::new()), rows.row(i), summary);
        }
        Ok(Some(rows.logits))
    }
}

struct Position {
    window: usize,
    row: usize,
    right: u32,
    kld: f64,
}

impl Progress {
    /// Keeps a change if it is among the largest, at most one per window.
    fn note(&mut self, at: &Position, expected: &Expected, logits: &[f32], summary: &Summary) {
        let same_window = self.changed.iter().position(|change| change.window == at.window);
        let least = self.changed.last().map_or(f64::NEG_INFINITY, |change| change.kld);
        let beaten = match same_window {
            Some(i) => self.changed[i].kld,
            None if self.changed.len() < KEPT => f64::NEG_INFINITY,
            None => least,
        };
        if at.kld <= beaten {
            return;
        }
        match same_window {
            Some(i) => drop(self.changed.remove(i)),
            None => self.changed.truncate(KEPT - 1),
        }
        let likely = |id: u32| Likely {
            id,
            reference: expected.log_probability(id).map(f64::exp),
            candidate: logits.get(id as usize).map_or(0.0, |logit| summary.log_probability(*logit).exp()),
        };
        let of_reference = expected.best();
        let change = Changed {
            window: at.window,
            row: at.row,
            kld: at.kld,
            right: Likely { reference: Some(expected.log_right(at.right).exp()), ..likely(at.right) },
            reference: of_reference.into_iter().filter(|id| *id != u32::MAX).take(SHOWN).map(likely).collect(),
            candidate: top_k(logits, SHOWN).into_iter().map(|(_, id)| likely(id)).collect(),
        };
        let place = self.changed.partition_point(|other| other.kld >= change.kld);
        self.changed.insert(place, change);
    }
}

impl Comparer<'_> {
    fn finish(mut self, read: Read, cut: Cut) -> Measurement {
        let mut failures = read.failures.into_iter();
        let failure = failures.by_ref().take(self.essential).flatten().next();
        let n = read.windows * cut.scored();
        self.nll.truncate(n);
        let candidates = self.candidates.into_iter().zip(failures).map(|(progress, failure)| {
            if failure.is_some() {
                return Measured { failure, ..Measured::default() };
            }
            let Progress { mut columns, mut changed } = progress;
            // Nothing is kept of a window that not all models have read.
            columns.truncate(n);
            changed.retain(|change| change.window < read.windows);
            Measured { columns, changed, failure }
        });
        Measurement {
            windows: self.texts[..read.windows].iter().map(|text| (*text, cut.scored())).collect(),
            reference_nll: self.nll,
            candidates: candidates.collect(),
            failure,
            interrupted: read.interrupted,
            model_seconds: read.model_time.as_secs_f64(),
        }
    }
}
