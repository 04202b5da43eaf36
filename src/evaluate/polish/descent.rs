//! The descent: changes of scales and norms for which predictions come nearest to the original's.
//!
//! ```text
//!                    ┌─ original: what leaves the last layer, computed once, in a temporary file
//!  windows of texts ─┤                                                     │ p
//!                    └─ draft with changes, forward and backward ──► q ──► KL(p ‖ q), and its gradient
//!                              ▲                                                   │
//!                              └────────── step, for each some windows ◄───────────┘
//!
//!  held-out windows ──► KL, now and then: the changes with the least are kept
//! ```
//!
//! A step is Adam's, with a rate that falls to nothing.
//!
//! Source: Kingma and Ba, *Adam*, <https://arxiv.org/abs/1412.6980>

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::parameters::{Changed, Draft, Layout, Numbers};
use super::{Doing, Error};
use crate::base::math::{exp_f32, ln};
use crate::base::random::Random;
use crate::evaluate::rounding;
use crate::transformer::{Model, Seen};

/// Logits of the original that are computed at a time: 64 MiB. It is part of the result.
const LOGITS_AT_ONCE: usize = 1 << 24;

/// Numbers of hidden vectors that are computed with at a time, unless a window has more.
const NUMBERS_AT_ONCE: usize = 1 << 22;

/// From which the order of windows follows.
const SEED: u64 = 0x6e69_6262_6c65;

const EMBEDDING: &str = "token_embd.weight";

/// How to descend.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Tokens of a step, unless a window of each text has more.
    pub tokens_a_step: usize,
    /// The largest relative change of a scale in a step.
    pub rate: f32,
    /// That of the weights of a norm.
    pub norm_rate: f32,
    /// The part of a mean gradient that a step keeps.
    pub momentum: f32,
    /// The part of a mean square of gradients that a step keeps.
    pub memory: f32,
    /// The part of the mean square over a whole tensor in that of each of its numbers.
    pub shared: f32,
    /// Steps in which the rate rises.
    pub rise: usize,
    /// How often the held-out windows are read, not counting the first time.
    pub checks: usize,
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tokens_a_step, rate, norm_rate, momentum, memory, shared, checks, rise } = self;
        write!(
            f,
            "{tokens_a_step} a step, rates {rate} and {norm_rate}, momenta {momentum} and {memory}, shared {shared}, \
             {rise} rising, {checks} checks"
        )
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tokens_a_step: 1024,
            rate: 7e-4,
            norm_rate: 7e-4,
            rise: 8,
            momentum: 0.9,
            memory: 0.99,
            shared: 0.1,
            checks: 4,
        }
    }
}

/// What the descent reads.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Tokens of a window.
    pub length: usize,
    /// The windows of each text to descend on.
    pub texts: Vec<Vec<Vec<u32>>>,
    /// The windows to judge by.
    pub held_out: Vec<Vec<u32>>,
}

impl Windows {
    /// Returns the windows of each step: as many of each text, in an order that is drawn.
    pub(super) fn steps(&self, n_tokens: u64, tokens_a_step: usize) -> Vec<Vec<usize>> {
        let of_text = (tokens_a_step / (self.texts.len() * self.length)).max(1);
        let n = n_tokens.div_ceil((of_text * self.texts.len() * self.length) as u64).max(1);
        let mut random = Random::new(SEED);
        let mut steps = vec![Vec::new(); usize::try_from(n).unwrap_or(usize::MAX)];
        let mut first = 0;
        for text in &self.texts {
            let mut order = Vec::new();
            for step in &mut steps {
                for _ in 0..of_text {
                    if order.is_empty() {
                        order = shuffled(text.len(), &mut random);
                    }
                    step.extend(order.pop().map(|window| first + window));
                }
            }
            first += text.len();
        }
        steps
    }

    /// All windows, those that are held out at the end.
    fn all(&self) -> impl Iterator<Item = &Vec<u32>> {
        self.texts.iter().flatten().chain(&self.held_out)
    }
}

fn shuffled(n: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, (random.unit() * (i + 1) as f64) as usize);
    }
    order
}

/// What the descent achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Achieved {
    /// Mean KL divergence of a token of the held-out windows before it, in nats.
    pub before: f64,
    /// The same after it. It is not larger.
    pub after: f64,
    /// Tokens of the held-out windows.
    pub n_tokens: usize,
}

/// A descent.
pub struct Descent<'a> {
    pub original: &'a Model<'a>,
    pub draft: &'a dyn Draft,
    pub windows: &'a Windows,
    /// Tokens that all steps read together.
    pub n_tokens: u64,
    pub settings: Settings,
    /// Where the temporary file is.
    pub folder: PathBuf,
    pub cancel: &'a AtomicBool,
    pub tell: &'a dyn Fn(Doing),
}

impl Descent<'_> {
    /// Descends. Returns the changes that are best for the held-out windows, which may be none.
    ///
    /// # Errors
    /// If a model cannot be computed, its predictions are not finite, the temporary file cannot be written, or it was
    /// cancelled.
    pub fn run(&self, layout: &Layout<'_>) -> Result<(Numbers, Achieved), Error> {
        let targets = self.targets()?;
        let steps = self.windows.steps(self.n_tokens, self.settings.tokens_a_step);
        let n_windows: usize = self.windows.texts.iter().map(Vec::len).sum();
        let n_held_out = self.windows.held_out.len();
        let held_out: Vec<usize> = (n_windows..n_windows + n_held_out).collect();

        let mut changes = layout.zeros();
        let (mut means, mut squares) = (layout.zeros(), layout.zeros());
        let mut best = (changes.clone(), self.loss(layout, &changes, &targets, &held_out)?);
        let before = best.1;
        let (mut of_means, mut of_squares) = (1.0, 1.0);
        let checks = self.settings.checks.max(1);
        for (step, windows) in steps.iter().enumerate() {
            (self.tell)(Doing::Step { step, of: steps.len(), kld: best.1, before });
            let gradients = self.gradients(layout, &changes, &targets, windows)?;
            of_means *= self.settings.momentum;
            of_squares *= self.settings.memory;
            let left = 1.0 - step as f32 / steps.len() as f32;
            let left = left * (1.0f32).min((step + 1) as f32 / (self.settings.rise + 1) as f32);
            let corrections = (left / (1.0 - of_means), 1.0 / (1.0 - of_squares));
            for (tensor, gradients) in gradients.iter().enumerate() {
                let norm = layout.is_norm(tensor);
                let rate = if norm { self.settings.norm_rate } else { self.settings.rate };
                let (means, squares) = (&mut means[tensor], &mut squares[tensor]);
                self.step(&mut changes[tensor], (means, squares), gradients, rate, corrections);
            }
            // At equal distances, and at the end.
            let check = |step: usize| step * checks / steps.len();
            if check(step + 1) > check(step) {
                let loss = self.loss(layout, &changes, &targets, &held_out)?;
                if loss < best.1 {
                    best = (changes.clone(), loss);
                }
            }
        }
        let n_tokens = n_held_out * self.windows.length;
        Ok((best.0, Achieved { before, after: best.1, n_tokens }))
    }

    /// A step of Adam.
    fn step(
        &self,
        changes: &mut [f32],
        (means, squares): (&mut [f32], &mut [f32]),
        gradients: &[f32],
        rate: f32,
        (of_means, of_squares): (f32, f32),
    ) {
        let Settings { momentum, memory, shared, .. } = self.settings;
        for ((mean, square), gradient) in means.iter_mut().zip(squares.iter_mut()).zip(gradients) {
            *mean = momentum * *mean + (1.0 - momentum) * gradient;
            *square = memory * *square + (1.0 - memory) * (gradient * gradient);
        }
        let all = squares.iter().map(|square| f64::from(*square)).sum::<f64>() / squares.len().max(1) as f64;
        let all = shared * all as f32;
        for ((change, mean), square) in changes.iter_mut().zip(means.iter()).zip(squares.iter()) {
            let size = (of_squares * ((1.0 - shared) * square + all)).sqrt();
            if size > 0.0 {
                *change = (*change - rate * of_means * mean / size).clamp(-MOST_CHANGE, MOST_CHANGE);
            }
        }
    }

    /// The mean KL divergence of the tokens of some windows.
    pub(super) fn loss(
        &self,
        layout: &Layout<'_>,
        changes: &Numbers,
        targets: &Targets,
        windows: &[usize],
    ) -> Result<f64, Error> {
        let weights = Changed { layout, changes };
        let model = Model::new(self.draft.metadata(), &weights)?;
        let mut sum = 0.0;
        for windows in windows.chunks(self.windows_at_once(&model)) {
            let mut hidden = model.embed(&self.tokens(windows))?;
            for layer in 0..model.n_layers() {
                self.check_cancelled()?;
                model.forward(layer, self.windows.length, &mut hidden, &mut |_| ())?;
            }
            self.each_part(&model, targets, windows, |tokens, logits| {
                use rayon::prelude::*;
                let mut found = model.logits(&hidden[tokens.start * model.n_embd()..tokens.end * model.n_embd()])?;
                let n = model.n_vocab();
                let of_tokens: Vec<f64> = logits
                    .par_chunks_exact(n)
                    .zip(found.par_chunks_exact_mut(n))
                    .map(|(p, q)| divergence(p, q))
                    .collect();
                sum += of_tokens.iter().sum::<f64>();
                Ok(())
            })?;
        }
        finite(sum / (windows.len() * self.windows.length) as f64)
    }

    /// The gradients of the mean KL divergence of the tokens of some windows.
    pub(super) fn gradients(
        &self,
        layout: &Layout<'_>,
        changes: &Numbers,
        targets: &Targets,
        windows: &[usize],
    ) -> Result<Numbers, Error> {
        let weights = Changed { layout, changes };
        let model = Model::new(self.draft.metadata(), &weights)?;
        let (n_layers, n_embd, length) = (model.n_layers(), model.n_embd(), self.windows.length);
        let tokens = self.tokens(windows);
        let mut gradients = layout.zeros();
        let mut entered = vec![model.embed(&tokens)?];
        for layer in 0..n_layers {
            self.check_cancelled()?;
            let mut hidden = entered[layer].clone();
            model.forward(layer, length, &mut hidden, &mut |_| ())?;
            entered.push(hidden);
        }
        let hidden = entered.pop().unwrap_or_default();
        let scale = 1.0 / tokens.len() as f32;
        let mut gradient = vec![0.0; hidden.len()];
        let mut failed = Ok(());
        self.each_part(&model, targets, windows, |part, logits| {
            let numbers = part.start * n_embd..part.end * n_embd;
            let n = model.n_vocab();
            let loss = |token: usize, q: &mut [f32]| {
                let mut p = logits[token * n..][..n].to_vec();
                shares(&mut p);
                shares(q);
                q.iter_mut().zip(&p).for_each(|(q, p)| *q = scale * (*q - p));
            };
            let of_part = model.head(&hidden[numbers.clone()], &loss, &mut |seen: Seen<'_>| {
                let name = if model.is_tied() && !seen.is_norm { EMBEDDING } else { seen.tensor };
                keep(&mut failed, || layout.add(name, &seen, &mut gradients));
            })?;
            gradient[numbers].copy_from_slice(&of_part);
            Ok(())
        })?;
        failed?;
        for layer in (0..n_layers).rev() {
            self.check_cancelled()?;
            let mut failed = Ok(());
            model.backward(layer, length, &entered[layer], &mut gradient, &mut |seen| {
                let name = format!("blk.{layer}.{}", seen.tensor);
                keep(&mut failed, || layout.add(&name, &seen, &mut gradients));
            })?;
            failed?;
            entered.truncate(layer);
        }
        layout.add_embedding(&tokens, &gradient, &mut gradients)?;
        finite(gradients.iter().flatten().map(|gradient| f64::from(gradient.abs())).sum())?;
        Ok(gradients)
    }

    /// Calls `with` with the tokens of some windows, some at a time, and the original's logits for them.
    fn each_part(
        &self,
        model: &Model<'_>,
        targets: &Targets,
        windows: &[usize],
        mut with: impl FnMut(Range<usize>, &[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let at_once = (LOGITS_AT_ONCE / model.n_vocab()).clamp(1, self.windows.length);
        let mut vectors = Vec::new();
        for (index, &window) in windows.iter().enumerate() {
            for start in (0..self.windows.length).step_by(at_once) {
                self.check_cancelled()?;
                let part = start..self.windows.length.min(start + at_once);
                targets.read(window * self.windows.length + part.start, part.len(), &mut vectors)?;
                let logits = self.original.logits(&vectors)?;
                let first = index * self.windows.length;
                with(first + part.start..first + part.end, &logits)?;
            }
        }
        Ok(())
    }

    fn windows_at_once(&self, model: &Model<'_>) -> usize {
        (NUMBERS_AT_ONCE / (self.windows.length * model.n_embd())).max(1)
    }

    fn tokens(&self, windows: &[usize]) -> Vec<u32> {
        let all: Vec<&Vec<u32>> = self.windows.all().collect();
        windows.iter().flat_map(|window| all[*window]).copied().collect()
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Computes what leaves the original's last layer, one layer after the other over all windows.
    pub(super) fn targets(&self) -> Result<Targets, Error> {
        let (model, length) = (self.original, self.windows.length);
        let mut targets = Targets::new(&self.folder, model.n_embd())?;
        let n_windows = self.windows.all().count();
        let at_once = self.windows_at_once(model);
        let all: Vec<usize> = (0..n_windows).collect();
        for windows in all.chunks(at_once) {
            targets.write(windows[0] * length, &model.embed(&self.tokens(windows))?)?;
        }
        let mut vectors = Vec::new();
        for layer in 0..model.n_layers() {
            (self.tell)(Doing::Original { step: layer, of: model.n_layers() });
            for windows in all.chunks(at_once) {
                self.check_cancelled()?;
                targets.read(windows[0] * length, windows.len() * length, &mut vectors)?;
                model.forward(layer, length, &mut vectors, &mut |_| ())?;
                targets.write(windows[0] * length, &vectors)?;
            }
        }
        Ok(targets)
    }
}

/// No scale is changed by more than this part of it.
const MOST_CHANGE: f32 = 0.5;

/// Keeps the first error.
fn keep<E>(failed: &mut Result<(), E>, work: impl FnOnce() -> Result<(), E>) {
    if failed.is_ok() {
        *failed = work();
    }
}

fn finite(loss: f64) -> Result<f64, Error> {
    if loss.is_finite() { Ok(loss) } else { Err(Error::NotFinite) }
}

/// Replaces logits by their shares. Returns the logarithm of what their exponentials are divided by, less the largest logit.
fn shares(logits: &mut [f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = exp_f32(*logit - most);
        sum += f64::from(*logit);
    }
    logits.iter_mut().for_each(|share| *share = (f64::from(*share) / sum) as f32);
    ln(sum) + f64::from(most)
}

/// KL(p ‖ q) of the predictions with these logits, in nats.
pub(super) fn divergence(p: &[f32], q: &mut [f32]) -> f64 {
    let mut of_p = p.to_vec();
    let p_sum = shares(&mut of_p);
    let mut differences: Vec<f64> = p.iter().zip(q.iter()).map(|(p, q)| f64::from(*p) - f64::from(*q)).collect();
    let q_sum = shares(q);
    let apart = p_sum - q_sum;
    differences.iter_mut().zip(&of_p).for_each(|(difference, p)| *difference = f64::from(*p) * (*difference - apart));
    differences.iter().sum()
}

/// Vectors of tokens in a temporary file.
pub(super) struct Targets {
    file: File,
    folder: PathBuf,
    n_embd: usize,
}

impl Targets {
    fn new(folder: &std::path::Path, n_embd: usize) -> Result<Self, Error> {
        let folder = folder.to_path_buf();
        let file = tempfile::tempfile_in(&folder)
            .map_err(|source| rounding::Error::Temporary { path: folder.clone(), source })?;
        Ok(Self { file, folder, n_embd })
    }

    fn write(&mut self, token: usize, vectors: &[f32]) -> Result<(), Error> {
        let bytes: Vec<u8> = vectors.iter().flat_map(|x| x.to_le_bytes()).collect();
        let written = self.seek(token).and_then(|mut file| file.write_all(&bytes));
        written.map_err(|error| self.failed(error))
    }

    fn read(&self, token: usize, n_tokens: usize, vectors: &mut Vec<f32>) -> Result<(), Error> {
        let mut bytes = vec![0; 4 * n_tokens * self.n_embd];
        let read = self.seek(token).and_then(|mut file| file.read_exact(&mut bytes));
        read.map_err(|error| self.failed(error))?;
        vectors.clear();
        vectors.extend(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)));
        Ok(())
    }

    fn seek(&self, token: usize) -> io::Result<&File> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(4 * (token * self.n_embd) as u64))?;
        Ok(file)
    }

    fn failed(&self, source: io::Error) -> Error {
        rounding::Error::Temporary { path: self.folder.clone(), source }.into()
    }
}
