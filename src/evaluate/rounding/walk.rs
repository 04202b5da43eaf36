//! A walk through a model: what enters each matrix while it reads texts, and what the output makes of what leaves it.
//!
//! ```text
//!  Compensated    place 0                       1                 n
//!                 embedding, layer 0 ─► layer 1 ─► ...  ─► output
//!
//!  Full           place n + 1        n                 1            0
//!                 embedding ◄─ layer 0 ◄─ ... ◄─ layer n − 1 ◄─ output          after all layers forward
//! ```
//!
//! Forward, a walk keeps one vector for each token. Backward, it keeps what enters each layer in a temporary file, in 16 bits.
//!
//! The loss is −ln p of a token that is drawn from the model's own prediction, so that the second moments of its gradients
//! are those of Fisher's information: a change of the predictions costs Σ (gᵀ Δ)² / 2, the KL divergence, to second order.
//!
//! Forward, there are no gradients. What an error e of the embedding does is then judged by what leaves the first layer, which
//! it changes by J e: ‖J e‖² = eᵀ JᵀJ e. The mean of JᵀJ is that of g gᵀ, where g = Jᵀ r goes backward through this one layer, and
//! r are independent random signs, so that the mean of r rᵀ is the identity (Hutchinson's estimate). Hidden vectors leave the
//! first layer many times as long as they enter it, so most of what an error does, it does there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::known::{Known, MOST_ROWS, Prepared, Sums, blocks};
use super::{Doing, Error, Method};
use crate::base::math::exp_f32;
use crate::base::random::Random;
use crate::calibration::Moments;
use crate::quant::float::{bf16s_to_f32s, f32s_to_bf16s};
use crate::transformer::{self, Model, Seen};

/// Numbers of hidden vectors that are computed with at a time, unless a window has more. It is part of the result: sums are
/// summed in such parts.
const NUMBERS_AT_ONCE: usize = 1 << 22;

/// From which the drawn tokens follow.
const SEED: u64 = 0x6e69_6262_6c65;

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

/// The name of the embedding.
pub const EMBEDDING: &str = "token_embd.weight";
/// The name of the output matrix.
pub const OUTPUT: &str = "output.weight";

/// Where a walk learns about a tensor.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of its step.
    pub step: usize,
    /// The name by which it is known.
    pub name: String,
    /// Matrices that are known by this name.
    pub uses: usize,
}

/// What is walked through.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Which way.
    pub method: Method,
    /// The model's layers.
    pub n_layers: usize,
    /// Whether the embedding is the output matrix, too.
    pub tied: bool,
}

impl Route {
    /// Returns where a walk learns about a tensor; `None` if it does not.
    pub fn place(&self, tensor: &str) -> Option<Place> {
        let Self { method, n_layers, tied } = *self;
        let own = |step: usize, name: &str| Some(Place { step, name: name.to_string(), uses: 1 });
        match (tensor, method) {
            (OUTPUT, Method::Compensated) => return own(n_layers, OUTPUT),
            (EMBEDDING, Method::Compensated) => return own(if tied { n_layers } else { 0 }, EMBEDDING),
            (OUTPUT, Method::Full) => return own(0, OUTPUT),
            (EMBEDDING, Method::Full) => return own(n_layers + 1, EMBEDDING),
            _ => {}
        }
        let (layer, matrix) = tensor.strip_prefix("blk.")?.split_once('.')?;
        let layer = layer.parse().ok().filter(|layer| *layer < n_layers)?;
        let (_, input) = MATRICES.iter().find(|(known, _)| *known == matrix)?;
        match method {
            Method::Compensated => {
                let uses = MATRICES.iter().filter(|(_, other)| other == input).count();
                Some(Place { step: layer, name: name_of(layer, input), uses })
            }
            Method::Full => own(n_layers - layer, tensor),
        }
    }

    /// Returns the bytes of the temporary file for so many tokens: 2 for each number that enters a layer.
    pub fn temporary_bytes(&self, n_tokens: usize, n_embd: usize) -> u64 {
        match self.method {
            Method::Compensated => 0,
            Method::Full => {
                [n_embd, self.n_layers].iter().fold(2 * n_tokens as u64, |n, k| n.saturating_mul(*k as u64))
            }
        }
    }

    /// The number of places.
    pub fn n_steps(&self) -> usize {
        match self.method {
            Method::Compensated => self.n_layers + 1,
            Method::Full => self.n_layers + 2,
        }
    }
}

fn name_of(layer: usize, matrix: &str) -> String {
    format!("blk.{layer}.{matrix}")
}

/// What is known of the embedding and the output matrix, each by itself.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// For each row of the output matrix the sum of the squares of its gradients, where those of a token weigh no more than
    /// in second moments.
    pub output_rows: Vec<f64>,
    /// What enters the output matrix.
    pub output: Option<Moments>,
    /// The gradients of what leaves the embedding.
    pub embedding: Option<Moments>,
}

/// Told what is done.
pub type Tell<'a> = &'a dyn Fn(Doing<'_>);

/// A walk, as far as it went.
pub struct Walk {
    route: Route,
    tokens: Vec<u32>,
    window: usize,
    folder: PathBuf,
    cancel: Arc<AtomicBool>,
    known: Known,
    /// The next step.
    next: usize,
    /// For each token: forward what enters the next layer, backward the gradient of what left it.
    vectors: Vec<f32>,
    /// What enters each layer, in 16 bits.
    entered: Option<File>,
    /// What is known of the output matrix when it is the embedding, too.
    of_output: Option<Moments>,
    /// What the whole matrices of second moments do not tell of the embedding and the output matrix.
    ends: Ends,
    /// Whether the predictions in the first half of each window do not count.
    second_halves: bool,
    /// [`NUMBERS_AT_ONCE`]
    at_once: usize,
    /// [`MOST_ROWS`]
    together: usize,
}

impl Walk {
    /// Returns a walk over whole windows of `window` tokens. Its temporary file is in `folder`.
    pub fn new(route: Route, tokens: Vec<u32>, window: usize, folder: PathBuf, cancel: Arc<AtomicBool>) -> Self {
        let (known, vectors, entered, of_output) = (Known::default(), Vec::new(), None, None);
        let ends = Ends::default();
        Self {
            route,
            tokens,
            window,
            folder,
            cancel,
            known,
            next: 0,
            vectors,
            entered,
            of_output,
            ends,
            second_halves: false,
            at_once: NUMBERS_AT_ONCE,
            together: MOST_ROWS,
        }
    }

    /// Makes only the predictions in the second half of each window count: those that comparisons judge by. Learns what
    /// [`Self::ends`] returns.
    #[must_use]
    pub fn for_second_halves(self) -> Self {
        Self { second_halves: true, ..self }
    }

    /// Returns the number of tokens whose predictions count.
    pub fn n_counting(&self) -> usize {
        (0..self.tokens.len()).filter(|token| self.counts(*token)).count()
    }

    /// Whether the prediction after token number `token` counts.
    fn counts(&self, token: usize) -> bool {
        !self.second_halves || token % self.window >= self.window / 2
    }

    /// Returns what is known of the tensor at `place`, after walking there; `None` if nothing is.
    ///
    /// # Errors
    /// If the model cannot be computed, the temporary file cannot be written, or it was cancelled.
    pub fn prepared(&mut self, model: &Model<'_>, place: &Place, tell: Tell<'_>) -> Result<Option<Prepared>, Error> {
        if !self.known.has(place.step) {
            self.walk_to(model, place.step, tell)?;
        }
        Ok(self.known.take(place.step, &place.name, place.uses)?)
    }

    /// Returns the sums of all tensors at step `step`, after walking there. They are not known afterwards.
    ///
    /// # Errors
    /// Those of [`Self::prepared`].
    pub fn sums(&mut self, model: &Model<'_>, step: usize, tell: Tell<'_>) -> Result<HashMap<String, Sums>, Error> {
        self.walk_to(model, step, tell)?;
        Ok(self.known.take_place(step))
    }

    /// Returns what is known of the embedding and the output matrix: of the latter after the first step backward, of the
    /// former after the last. Nothing, unless [`Self::for_second_halves`] was called.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Returns the tokens that are read.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn walk_to(&mut self, model: &Model<'_>, step: usize, tell: Tell<'_>) -> Result<(), Error> {
        if self.next > step {
            self.next = 0;
        }
        while self.next <= step.min(self.route.n_steps() - 1) {
            let this = self.next;
            // After an error, what left some windows is mixed with what enters others.
            self.next = usize::MAX;
            let mut sums = HashMap::new();
            match self.route.method {
                Method::Compensated => self.forward(model, this, &mut sums, tell)?,
                Method::Full => self.backward(model, this, &mut sums, tell)?,
            }
            self.known.add(this, sums);
            self.next = this + 1;
        }
        Ok(())
    }

    /// Whole windows that are computed with at a time, as numbers of their vectors.
    fn parts(&self, n_embd: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let of_window = n_embd * self.window;
        let at_once = (self.at_once / of_window).max(1) * of_window;
        let end = self.tokens.len() * n_embd;
        (0..end).step_by(at_once).map(move |start| start..end.min(start + at_once))
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn forward(
        &mut self,
        model: &Model<'_>,
        step: usize,
        sums: &mut HashMap<String, Sums>,
        tell: Tell<'_>,
    ) -> Result<(), Error> {
        tell(Doing::Forward { step, of: self.route.n_layers });
        if step == 0 {
            self.vectors = model.embed(&self.tokens)?;
        }
        for part in self.parts(model.n_embd()) {
            self.check_cancelled()?;
            let first = part.start / model.n_embd();
            let hidden = &mut self.vectors[part];
            if step == 0 && !self.route.tied {
                let moments = inputs_of(sums, EMBEDDING.to_string(), model.n_embd());
                add_probes(moments, model, self.window, first, hidden)?;
            }
            if step == self.route.n_layers {
                let name = if self.route.tied { EMBEDDING } else { OUTPUT };
                inputs_of(sums, name.to_string(), model.n_embd()).add(&model.normed(hidden)?);
                continue;
            }
            model.forward(step, self.window, hidden, &mut |seen| {
                // One of those with the same input.
                if MATRICES.iter().any(|(_, input)| *input == seen.tensor) {
                    let columns = seen.inputs.len() / seen.n_tokens;
                    inputs_of(sums, name_of(step, seen.tensor), columns).add(seen.inputs);
                }
            })?;
        }
        Ok(())
    }

    fn backward(
        &mut self,
        model: &Model<'_>,
        step: usize,
        sums: &mut HashMap<String, Sums>,
        tell: Tell<'_>,
    ) -> Result<(), Error> {
        let Route { n_layers, tied, .. } = self.route;
        match step {
            0 => {
                self.go_to_the_end(model, tell)?;
                tell(Doing::Backward { step, of: n_layers });
                let mut of_output = Moments::new(model.n_embd());
                // Rounding needs no more than second moments.
                let mut ends = self.second_halves.then(Ends::default);
                if let Some(ends) = &mut ends {
                    ends.output_rows.resize(model.n_vocab(), 0.0);
                }
                for part in self.parts(model.n_embd()) {
                    self.check_cancelled()?;
                    let first = part.start / model.n_embd();
                    let vectors = &self.vectors[part.clone()];
                    let loss = |token: usize, logits: &mut [f32]| match self.counts(first + token) {
                        true => draw(first + token, logits),
                        false => logits.fill(0.0),
                    };
                    let gradient = model.head(vectors, &loss, &mut |seen| {
                        if !seen.is_norm {
                            let squares = squares(seen.gradients, model.n_vocab());
                            let weights = capped(&squares, self.second_halves);
                            of_output.add_weighted(seen.inputs, &weights);
                            if let Some(Ends { output_rows, .. }) = &mut ends {
                                let factors =
                                    weights.iter().zip(&squares).map(|(weight, square)| match *square > 0.0 {
                                        true => weight / square,
                                        false => 0.0,
                                    });
                                add_squares(seen.gradients, &factors.collect::<Vec<_>>(), output_rows);
                            }
                        }
                    })?;
                    self.vectors[part].copy_from_slice(&gradient);
                }
                if let Some(ends) = ends {
                    self.ends = Ends { output: Some(of_output.clone()), ..ends };
                }
                if tied {
                    self.of_output = Some(of_output);
                } else {
                    sums.insert(OUTPUT.to_string(), Sums { inputs: of_output, outputs: Vec::new() });
                }
            }
            // A row of the embedding is what enters, where its token stands: an error in it costs what the gradients say.
            step if step == n_layers + 1 => {
                let mut moments = self.of_output.take().unwrap_or_else(|| Moments::new(model.n_embd()));
                // The order of the sums is part of the result, so they are not made of one another.
                let mut alone = (tied && self.second_halves).then(|| Moments::new(model.n_embd()));
                for part in self.parts(model.n_embd()) {
                    self.check_cancelled()?;
                    moments.add(&self.vectors[part.clone()]);
                    if let Some(alone) = &mut alone {
                        alone.add(&self.vectors[part]);
                    }
                }
                if self.second_halves {
                    self.ends.embedding = Some(alone.unwrap_or_else(|| moments.clone()));
                }
                sums.insert(EMBEDDING.to_string(), Sums { inputs: moments, outputs: Vec::new() });
            }
            step => {
                let (layer, second_halves, together) = (n_layers - step, self.second_halves, self.together);
                tell(Doing::Backward { step, of: n_layers });
                let mut hidden = Vec::new();
                for part in self.parts(model.n_embd()) {
                    self.check_cancelled()?;
                    self.entered(layer, &part, &mut hidden)?;
                    model.backward(layer, self.window, &hidden, &mut self.vectors[part], &mut |seen| {
                        if !seen.is_norm {
                            add(sums, name_of(layer, seen.tensor), &seen, second_halves, together);
                        }
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Runs all layers forward. Keeps what enters each in a file.
    fn go_to_the_end(&mut self, model: &Model<'_>, tell: Tell<'_>) -> Result<(), Error> {
        let folder = self.folder.clone();
        let temporary = |source| Error::Temporary { path: folder.clone(), source };
        let mut file = tempfile::tempfile_in(&folder).map_err(temporary)?;
        self.vectors = model.embed(&self.tokens)?;
        let mut halves = Vec::new();
        for layer in 0..self.route.n_layers {
            tell(Doing::Forward { step: layer, of: self.route.n_layers });
            for part in self.parts(model.n_embd()) {
                self.check_cancelled()?;
                let hidden = &mut self.vectors[part];
                halves.resize(hidden.len(), [0; 2]);
                f32s_to_bf16s(hidden, &mut halves);
                file.write_all(halves.as_flattened()).map_err(temporary)?;
                model.forward(layer, self.window, hidden, &mut |_| ())?;
            }
        }
        self.entered = Some(file);
        Ok(())
    }

    /// Reads what entered a layer.
    fn entered(&self, layer: usize, part: &Range<usize>, hidden: &mut Vec<f32>) -> Result<(), Error> {
        let mut read = || -> io::Result<()> {
            let mut file = self.entered.as_ref().ok_or(io::ErrorKind::NotFound)?;
            file.seek(SeekFrom::Start(2 * (layer * self.vectors.len() + part.start) as u64))?;
            let mut halves = vec![[0; 2]; part.len()];
            file.read_exact(halves.as_flattened_mut())?;
            hidden.resize(part.len(), 0.0);
            bf16s_to_f32s(&halves, hidden);
            Ok(())
        };
        read().map_err(|source| Error::Temporary { path: self.folder.clone(), source })
    }
}

fn inputs_of(sums: &mut HashMap<String, Sums>, name: String, columns: usize) -> &mut Moments {
    let none = || Sums { inputs: Moments::new(columns), outputs: Vec::new() };
    &mut sums.entry(name).or_insert_with(none).inputs
}

/// Adds the second moments of random signs that leave the first layer, taken backward through it: what errors of the embedding
/// do there. `hidden` are the rows of tokens number `first` and following, in whole windows.
fn add_probes(
    moments: &mut Moments,
    model: &Model<'_>,
    window: usize,
    first: usize,
    hidden: &[f32],
) -> Result<(), transformer::Error> {
    let n_embd = model.n_embd();
    let mut probes = vec![0.0; hidden.len()];
    probes.par_chunks_exact_mut(n_embd).enumerate().for_each(|(token, signs)| draw_signs(first + token, signs));
    model.backward(0, window, hidden, &mut probes, &mut |_| ())?;
    let squares = squares(&probes, n_embd);
    moments.add_weighted(&directions(&probes, n_embd, &(0..n_embd), &squares), &capped(&squares, false));
    Ok(())
}

/// Draws 1 or −1 for each number of a token.
fn draw_signs(token: usize, signs: &mut [f32]) {
    let mut random = Random::new(SEED ^ token as u64);
    for signs in signs.chunks_mut(64) {
        let bits = random.next_u64();
        signs.iter_mut().enumerate().for_each(|(i, sign)| *sign = if bits >> i & 1 == 0 { 1.0 } else { -1.0 });
    }
}

/// Adds what enters a matrix, weighted by its gradients, and the gradients, which only `some` tokens may have: those of at most
/// so many rows `together`.
fn add(sums: &mut HashMap<String, Sums>, name: String, seen: &Seen<'_>, some: bool, together: usize) {
    let (columns, rows) = (seen.inputs.len() / seen.n_tokens, seen.gradients.len() / seen.n_tokens);
    let squares = squares(seen.gradients, rows);
    let weights = capped(&squares, some);
    let outputs = || blocks(rows, together).map(|block| Moments::new(block.len())).collect();
    let none = || Sums { inputs: Moments::new(columns), outputs: outputs() };
    let sums = sums.entry(name).or_insert_with(none);
    sums.inputs.add_weighted(seen.inputs, &weights);
    for (block, outputs) in blocks(rows, together).zip(&mut sums.outputs) {
        outputs.add_weighted(&directions(seen.gradients, rows, &block, &squares), &weights);
    }
}

/// Returns a block of each token's gradient as a part of a vector of length 1, to be weighted: a few tokens with large gradients
/// tell as little as a few tokens.
fn directions(gradients: &[f32], rows: usize, block: &Range<usize>, squares: &[f64]) -> Vec<f32> {
    let mut directions = Vec::with_capacity(squares.len() * block.len());
    for (gradient, square) in gradients.chunks_exact(rows).zip(squares) {
        let inverse = if *square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
        directions.extend(gradient[block.clone()].iter().map(|x| (f64::from(*x) * inverse) as f32));
    }
    directions
}

/// Adds to `sums`, for each row, the squares of its gradients times the tokens' factors.
fn add_squares(gradients: &[f32], factors: &[f64], sums: &mut [f64]) {
    const ROWS: usize = 256;
    let rows = sums.len();
    sums.par_chunks_mut(ROWS).enumerate().for_each(|(part, sums)| {
        for (gradient, factor) in gradients.chunks_exact(rows).zip(factors) {
            for (sum, x) in sums.iter_mut().zip(&gradient[part * ROWS..]) {
                *sum += factor * f64::from(*x) * f64::from(*x);
            }
        }
    });
}

/// What a token may weigh at most, in units of the squared mean length of gradients.
const MOST_WEIGHT: f64 = 10.0;

/// Weights of tokens whose gradients have these squared lengths.
///
/// All tokens of a window look at its first one, so the gradients of its key and value are many times as large as those of
/// others. Without a limit, hardly anything else would count. Where only `some` tokens have gradients, the mean is theirs.
fn capped(squares: &[f64], some: bool) -> Vec<f64> {
    let n = if some { squares.iter().filter(|square| **square > 0.0).count() } else { squares.len() };
    let mean = squares.iter().map(|square| square.sqrt()).sum::<f64>() / n.max(1) as f64;
    squares.iter().map(|square| square.min(MOST_WEIGHT * mean * mean)).collect()
}

/// The squared length of each token's gradient, of so many rows.
fn squares(gradients: &[f32], rows: usize) -> Vec<f64> {
    let square = |gradient: &[f32]| gradient.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    gradients.chunks_exact(rows.max(1)).map(square).collect()
}

/// Draws a token from a prediction. Replaces its logits by the gradient of −ln p of that token.
pub fn draw(token: usize, logits: &mut [f32]) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for logit in logits.iter_mut() {
        *logit = exp_f32(*logit - most);
        sum += f64::from(*logit);
    }
    let mut left = Random::new(SEED ^ token as u64).unit() * sum;
    let drawn = logits.iter().position(|p| {
        left -= f64::from(*p);
        left < 0.0
    });
    logits.iter_mut().for_each(|p| *p = (f64::from(*p) / sum) as f32);
    if let Some(drawn) = drawn {
        logits[drawn] -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::weights::SourceWeights;
    use super::*;
    use crate::arch::ARCHITECTURES;
    use crate::pass::Source;

    #[test]
    fn tensors_have_places_in_the_order_of_the_walk() {
        let route = |method, tied| Route { method, n_layers: 13, tied };
        let place = |route: Route, tensor: &str| route.place(tensor).map(|place| (place.step, place.name, place.uses));
        let known = |step, name: &str, uses| Some((step, name.to_string(), uses));
        let forward = route(Method::Compensated, false);
        assert_eq!(place(forward, "blk.12.attn_v.weight"), known(12, "blk.12.attn_q.weight", 3));
        assert_eq!(place(forward, "blk.0.ffn_up.weight"), known(0, "blk.0.ffn_gate.weight", 2));
        assert_eq!(place(forward, "blk.3.ffn_down.weight"), known(3, "blk.3.ffn_down.weight", 1));
        assert_eq!(place(forward, "output.weight"), known(13, "output.weight", 1));
        assert_eq!(place(forward, "token_embd.weight"), known(0, "token_embd.weight", 1));
        assert_eq!(place(route(Method::Compensated, true), "token_embd.weight"), known(13, "token_embd.weight", 1));
        let backward = route(Method::Full, false);
        assert_eq!(place(backward, "output.weight"), known(0, "output.weight", 1));
        assert_eq!(place(backward, "blk.12.attn_v.weight"), known(1, "blk.12.attn_v.weight", 1));
        assert_eq!(place(backward, "blk.0.ffn_up.weight"), known(13, "blk.0.ffn_up.weight", 1));
        assert_eq!(place(backward, "token_embd.weight"), known(14, "token_embd.weight", 1));
        for other in
            ["blk.3.attn_norm.weight", "blk.x.attn_q.weight", "blk.13.attn_q.weight", "blk.3", "rope_freqs.weight"]
        {
            assert_eq!((place(forward, other), place(backward, other)), (None, None), "{other}");
        }
    }

    /// Of yi-nano, over three windows.
    fn walk(method: Method, source: &Source, at_once: usize) -> Walk {
        let route = Route { method, n_layers: N_LAYERS, tied: false };
        let tokens = (0..3 * WINDOW as u32).map(|i| 9 + i * 977 % 6000).collect();
        let folder = std::env::temp_dir();
        assert!(!source.tensors.is_empty());
        Walk { at_once, ..Walk::new(route, tokens, WINDOW, folder, Arc::default()) }
    }

    const N_LAYERS: usize = 4;
    const WINDOW: usize = 40;

    fn close(a: &[f32], b: &[f32]) -> bool {
        let most = a.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        most > 0.0 && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * most)
    }

    #[test]
    fn a_walk_sums_up_what_the_model_shows() {
        let source = Source::open(Path::new("tests/data/yi-nano"), ARCHITECTURES, false, None).unwrap();
        let weights = SourceWeights::new(&source);
        let model = Model::new(&source.metadata, &weights).unwrap();
        assert_eq!(model.n_layers(), N_LAYERS);
        // All windows at once, and one at a time; all rows together, and those of the feed-forward matrices in blocks.
        for (at_once, together) in [(NUMBERS_AT_ONCE, MOST_ROWS), (1, 300)] {
            let mut walk = Walk { together, ..walk(Method::Full, &source, at_once) };
            walk.walk_to(&model, N_LAYERS + 1, &|_| ()).unwrap();
            let mut hidden = vec![model.embed(&walk.tokens).unwrap()];
            for layer in 0..N_LAYERS {
                // The file holds 16 bits of each number.
                let mut next = hidden[layer].clone();
                model.forward(layer, WINDOW, &mut next, &mut |_| ()).unwrap();
                hidden.push(next);
            }
            let mut shown = Vec::new();
            let mut gradient = model.head(&hidden[N_LAYERS], &draw, &mut |seen| {
                if !seen.is_norm {
                    shown.push((0, seen.tensor.to_string(), seen.inputs.to_vec(), seen.gradients.to_vec()));
                }
            });
            for layer in (0..N_LAYERS).rev() {
                let gradient = gradient.as_mut().unwrap();
                model
                    .backward(layer, WINDOW, &hidden[layer], gradient, &mut |seen| {
                        if !seen.is_norm {
                            let name = name_of(layer, seen.tensor);
                            shown.push((N_LAYERS - layer, name, seen.inputs.to_vec(), seen.gradients.to_vec()));
                        }
                    })
                    .unwrap();
            }
            assert_eq!(shown.len(), 1 + 7 * N_LAYERS);
            for (step, name, inputs, gradients) in shown {
                let found = walk.known.sums(step, &name).unwrap();
                let n = walk.tokens.len();
                let (columns, rows) = (inputs.len() / n, gradients.len() / n);
                let (mut of_inputs, mut of_outputs) = (vec![0.0; columns * columns], vec![0.0; rows * rows]);
                let mut total = 0.0;
                // The limit of weights is that of the tokens that were computed with at a time.
                let part = if at_once == 1 { WINDOW } else { n };
                let squares: Vec<f32> = gradients.chunks(rows).map(|g| g.iter().map(|g| g * g).sum()).collect();
                let means: Vec<f32> = squares
                    .chunks(part)
                    .map(|squares| squares.iter().map(|square| square.sqrt()).sum::<f32>() / part as f32)
                    .collect();
                for (token, (x, g)) in inputs.chunks(columns).zip(gradients.chunks(rows)).enumerate() {
                    let mean = means[token / part];
                    let square = squares[token].min(10.0 * mean * mean);
                    total += square;
                    for i in 0..columns {
                        for j in 0..=i {
                            of_inputs[i * columns + j] += square * x[i] * x[j];
                        }
                    }
                    if step > 0 {
                        for i in 0..rows {
                            for j in 0..=i {
                                of_outputs[i * rows + j] +=
                                    square / squares[token].max(f32::MIN_POSITIVE) * g[i] * g[j];
                            }
                        }
                    }
                }
                of_inputs.iter_mut().chain(&mut of_outputs).for_each(|x| *x /= total);
                let roughly = |a: &[f32], b: &[f32]| {
                    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
                    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) < 0.05 * norm(&mut a.iter().copied())
                };
                assert!(roughly(&of_inputs, &found.inputs.means()), "what enters {name}");
                let of_blocks: Vec<_> = if step > 0 { blocks(rows, together).collect() } else { Vec::new() };
                assert_eq!(found.outputs.len(), of_blocks.len());
                for (block, outputs) in of_blocks.into_iter().zip(&found.outputs) {
                    let part = |i: usize| &of_outputs[i * rows..][block.clone()];
                    let wanted: Vec<f32> = block.clone().flat_map(part).copied().collect();
                    assert!(roughly(&wanted, &outputs.means()), "the gradients of {name}");
                }
            }
            let embedding = walk.known.sums(N_LAYERS + 1, EMBEDDING).unwrap();
            let mut wanted = Moments::new(model.n_embd());
            wanted.add(&walk.vectors);
            assert!(close(&wanted.means(), &embedding.inputs.means()));
        }
    }

    #[test]
    fn a_walk_forward_sums_up_what_enters() {
        let source = Source::open(Path::new("tests/data/yi-nano"), ARCHITECTURES, false, None).unwrap();
        let weights = SourceWeights::new(&source);
        let model = Model::new(&source.metadata, &weights).unwrap();
        let mut walk = walk(Method::Compensated, &source, 1);
        // What comes before is asked for later: everything is computed again.
        walk.walk_to(&model, N_LAYERS, &|_| ()).unwrap();
        let mut hidden = model.embed(&walk.tokens).unwrap();
        for layer in 0..N_LAYERS {
            model
                .forward(layer, WINDOW, &mut hidden, &mut |seen| {
                    let mut wanted = Moments::new(seen.inputs.len() / seen.n_tokens);
                    wanted.add(seen.inputs);
                    if let Some(found) = walk.known.sums(layer, &name_of(layer, seen.tensor)) {
                        assert!(close(&wanted.means(), &found.inputs.means()), "{}", seen.tensor);
                        assert!(found.outputs.is_empty());
                    } else {
                        assert!(["attn_k.weight", "attn_v.weight", "ffn_up.weight"].contains(&seen.tensor));
                    }
                })
                .unwrap();
        }
        let mut wanted = Moments::new(model.n_embd());
        wanted.add(&model.normed(&hidden).unwrap());
        assert!(close(&wanted.means(), &walk.known.sums(N_LAYERS, OUTPUT).unwrap().inputs.means()));
        let all = walk.known.sums(0, "blk.0.attn_q.weight").unwrap().inputs.means();
        walk.walk_to(&model, 0, &|_| ()).unwrap();
        assert!(all == walk.known.sums(0, "blk.0.attn_q.weight").unwrap().inputs.means());
    }

    /// The first layer of a model without biases and scaling, for one window, in loops of double precision.
    struct FirstLayer {
        tensors: HashMap<String, Vec<f64>>,
    }

    impl FirstLayer {
        fn of(source: &Source) -> Self {
            let of_layer = |name: &str| Some(name.strip_prefix("blk.0.")?.strip_suffix(".weight")?.to_string());
            let named = source.tensors.iter().enumerate();
            let named = named.filter_map(|(index, tensor)| Some((index, of_layer(&tensor.name)?)));
            let tensors = named.map(|(index, name)| {
                let (assembly, mut weights) = (source.assembly(index), Vec::new());
                assembly.read(0..assembly.n_rows, &mut weights).unwrap();
                weights.truncate(assembly.n_rows * assembly.row_len);
                (name, weights.into_iter().map(f64::from).collect())
            });
            Self { tensors: tensors.collect() }
        }

        fn times(&self, matrix: &str, x: &[f64]) -> Vec<f64> {
            self.tensors[matrix].chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        }

        fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
            let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
            self.tensors[name].iter().zip(x).map(|(w, x)| w * x * factor).collect()
        }

        fn forward(&self, hidden: &[f64], n_embd: usize) -> Vec<f64> {
            const HEAD: usize = 64;
            const SHARE: usize = 2;
            let turned = |matrix: &str, normed: &[f64], position: usize| {
                let mut x = self.times(matrix, normed);
                for (i, pair) in x.chunks_mut(2).enumerate() {
                    let angle = position as f64 * 5e6f64.powf(-((2 * i % HEAD) as f64) / HEAD as f64);
                    let [a, b] = [pair[0], pair[1]];
                    pair.copy_from_slice(&[a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]);
                }
                x
            };
            let (mut keys, mut values, mut left) = (Vec::new(), Vec::new(), Vec::new());
            for (position, x) in hidden.chunks(n_embd).enumerate() {
                let normed = self.norm("attn_norm", x);
                let queries = turned("attn_q", &normed, position);
                keys.push(turned("attn_k", &normed, position));
                values.push(self.times("attn_v", &normed));
                let mut mixed = vec![0.0; queries.len()];
                for (head, (query, mixed)) in queries.chunks(HEAD).zip(mixed.chunks_mut(HEAD)).enumerate() {
                    let of = head / SHARE * HEAD..(head / SHARE + 1) * HEAD;
                    let score =
                        |key: &Vec<f64>| query.iter().zip(&key[of.clone()]).map(|(q, k)| q * k).sum::<f64>() / 8.0;
                    let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
                    for (weight, value) in weights.iter().zip(&values) {
                        let part = weight / weights.iter().sum::<f64>();
                        mixed.iter_mut().zip(&value[of.clone()]).for_each(|(mixed, v)| *mixed += part * v);
                    }
                }
                let mut x: Vec<f64> = x.iter().zip(self.times("attn_output", &mixed)).map(|(x, y)| x + y).collect();
                let normed = self.norm("ffn_norm", &x);
                let gate = self.times("ffn_gate", &normed);
                let inner: Vec<f64> =
                    gate.iter().zip(self.times("ffn_up", &normed)).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
                x.iter_mut().zip(self.times("ffn_down", &inner)).for_each(|(x, y)| *x += y);
                left.extend(x);
            }
            left
        }
    }

    /// Jᵀ r of each token, from differences of Σ r · (what leaves).
    #[test]
    fn errors_of_the_embedding_are_judged_by_what_leaves_the_first_layer() {
        const WINDOW: usize = 3;
        let source = Source::open(Path::new("tests/data/yi-nano"), ARCHITECTURES, false, None).unwrap();
        let weights = SourceWeights::new(&source);
        let model = Model::new(&source.metadata, &weights).unwrap();
        let (layer, n_embd) = (FirstLayer::of(&source), model.n_embd());
        for at_once in [NUMBERS_AT_ONCE, 1] {
            let walk = walk(Method::Compensated, &source, at_once);
            let mut walk = Walk { window: WINDOW, tokens: walk.tokens[..2 * WINDOW].to_vec(), ..walk };
            walk.walk_to(&model, 0, &|_| ()).unwrap();
            let embedded: Vec<f64> = model.embed(&walk.tokens).unwrap().into_iter().map(f64::from).collect();
            let mut signs = vec![0.0; embedded.len()];
            signs.chunks_mut(n_embd).enumerate().for_each(|(token, signs)| draw_signs(token, signs));
            let windows = embedded.chunks(WINDOW * n_embd).zip(signs.chunks(WINDOW * n_embd));
            let probes: Vec<f64> = windows
                .flat_map(|(hidden, signs)| {
                    let with = |at: usize, step: f64| -> f64 {
                        let mut hidden = hidden.to_vec();
                        hidden[at] += step;
                        let left = layer.forward(&hidden, n_embd);
                        left.iter().zip(signs).map(|(x, sign)| x * f64::from(*sign)).sum()
                    };
                    let step = 1e-6;
                    let difference = |at| (with(at, step) - with(at, -step)) / (2.0 * step);
                    (0..hidden.len()).into_par_iter().map(difference).collect::<Vec<_>>()
                })
                .collect();
            let squares: Vec<f64> = probes.chunks(n_embd).map(|g| g.iter().map(|g| g * g).sum()).collect();
            let part = if at_once == 1 { WINDOW } else { 2 * WINDOW };
            let weights = squares.chunks(part).flat_map(|squares| capped(squares, false)).collect::<Vec<_>>();
            let total: f64 = weights.iter().sum();
            let mut wanted = vec![0.0; n_embd * n_embd];
            for ((g, square), weight) in probes.chunks(n_embd).zip(&squares).zip(&weights) {
                for i in 0..n_embd {
                    for j in 0..=i {
                        wanted[i * n_embd + j] += (weight / square / total * g[i] * g[j]) as f32;
                    }
                }
            }
            let found = walk.known.sums(0, EMBEDDING).unwrap();
            assert!(found.outputs.is_empty());
            assert!(close(&wanted, &found.inputs.means()));
        }
        // An embedding that is the output matrix is known at the end alone.
        let mut tied = walk(Method::Compensated, &source, 1);
        tied.route.tied = true;
        tied.walk_to(&model, N_LAYERS, &|_| ()).unwrap();
        assert!(tied.known.sums(0, EMBEDDING).is_none() && tied.known.sums(N_LAYERS, EMBEDDING).is_some());
    }

    #[test]
    fn signs_of_different_numbers_have_nothing_to_do_with_one_another() {
        const N: usize = 70;
        let mut moments = Moments::new(N);
        for token in 0..4096 {
            let mut signs = [0.0; N];
            draw_signs(token, &mut signs);
            moments.add(&signs);
        }
        let means = moments.means();
        for i in 0..N {
            assert!(means[i * N + i] == 1.0 && means[i * N..][..i].iter().all(|mean| mean.abs() < 0.08), "{i}");
        }
    }

    #[test]
    fn tokens_are_drawn_as_they_are_predicted() {
        let logits = [0.0f32, 1.0, -1.0, 2.5];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let mut drawn = [0.0; 4];
        const N: usize = 20_000;
        for token in 0..N {
            let mut gradient = logits;
            draw(token, &mut gradient);
            assert!(gradient.iter().sum::<f32>().abs() < 1e-6);
            let one = gradient.iter().position(|x| *x < 0.0).unwrap();
            drawn[one] += 1.0 / N as f64;
            for (i, x) in gradient.iter().enumerate() {
                let p = f64::from(logits[i]).exp() / sum;
                assert!((f64::from(*x) - p + f64::from(u8::from(i == one))).abs() < 1e-6);
            }
        }
        for (i, drawn) in drawn.iter().enumerate() {
            assert!((drawn - f64::from(logits[i]).exp() / sum).abs() < 0.012, "{i}: {drawn}");
        }
    }
}
