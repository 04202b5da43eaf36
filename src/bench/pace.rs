//! Measures how fast a model will be that is not there yet, or does not fit: a part of it, made of zeros, is run.
//!
//! ```text
//! small models    all layers      the time of the model itself
//! others          1 layer         what is done once a token, and the last layer's part that all tokens have
//!                 1 + m layers    the difference is m layers
//! ```
//!
//! llama.cpp runs the same operations on matrices of the same shapes and types as it will for the model, and their time does not
//! depend on the numbers in them. Nothing is written to the disk but the file's header.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::Spread;
use crate::engine::{self, Error, Logits, OpenOptions, Session, SessionOptions};
use crate::llama::{AttentionTime, Model, ModelOptions};
use crate::placement::{Outline, Pace, Repack};

/// How to measure.
#[derive(Clone, Debug)]
pub struct PaceOptions {
    /// Where files are made that are removed again.
    pub folder: PathBuf,
    /// Threads.
    pub threads: u32,
    /// Whether weights are copied into llama.cpp's second layout for CPUs.
    pub repack: bool,
    /// How long attention takes with a KV cache of 16-bit floats, which is what is measured with.
    pub attention: AttentionTime,
    /// Setting it ends the measurement.
    pub cancel: Arc<AtomicBool>,
}

/// Why a part of a model could not be measured.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PaceError {
    #[error("no file could be made in {folder} to measure with: {source}")]
    File { folder: PathBuf, source: io::Error },
    #[error(transparent)]
    Engine(#[from] Error),
}

/// A model of so many bytes is measured whole.
const WHOLE: u64 = 1 << 30;

/// Layers that are measured have at least so many bytes together, so that no cache holds them.
const LAYERS: u64 = 256 << 20;

/// Tokens that are read, and tokens that are written after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tokens {
    read: usize,
    written: usize,
}

impl Tokens {
    /// Returns how many there are in a test of a model of so many weights: a whole batch where that takes little time, because
    /// longer prompts are read faster, and never so few that kernels for many tokens are not used.
    fn of(n_weights: u64) -> Self {
        const PRODUCTS: u64 = 100_000_000_000;
        const BATCH: u64 = 512;
        let read = (PRODUCTS / n_weights.max(1)).clamp(BATCH / 2, BATCH) / 64 * 64;
        Self { read: read as usize, written: if read == BATCH { 32 } else { 16 } }
    }

    fn total(self) -> usize {
        self.read + self.written
    }
}

/// Rounds of which the median counts, if they are done in this time.
const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_secs(8);
/// At least so many are done.
const LEAST_ROUNDS: usize = 2;

/// Measures the parts of a model on the CPU. Takes from a second to half a minute, and memory for a part of the model.
///
/// # Errors
/// If no file can be made, such a part does not fit in memory, llama.cpp cannot run it, or it was cancelled.
pub fn pace(outline: &Outline, options: &PaceOptions) -> Result<Pace, PaceError> {
    let counts = counts(outline);
    let largest = outline.first_layers(counts.last().copied().unwrap_or(1));
    let weights = largest.tensors().iter().map(|tensor| tensor.n_elements().unwrap_or(0));
    let tokens = Tokens::of(weights.fold(0, u64::saturating_add));
    let mut parts =
        counts.iter().map(|n| Part::new(&outline.first_layers(*n), tokens, options)).collect::<Result<Vec<_>, _>>()?;
    // The first round loads weights and wakes threads.
    parts.iter_mut().try_for_each(|part| part.round().map(drop))?;
    let started = Instant::now();
    let mut times: Vec<Vec<(f64, f64)>> = vec![Vec::new(); parts.len()];
    for round in 0..ROUNDS {
        if round >= LEAST_ROUNDS && started.elapsed() > TIME {
            break;
        }
        for (part, times) in parts.iter_mut().zip(&mut times) {
            times.push(part.round()?);
        }
    }
    let median = |times: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        let values: Vec<f64> = times.iter().map(of).collect();
        Spread::of(&values).map_or(0.0, |spread| spread.median)
    };
    let seconds: Vec<(f64, f64)> = times.iter().map(|t| (median(t, |t| t.0), median(t, |t| t.1))).collect();
    Ok(Pace { attention: options.attention, ..solve(&counts, tokens, &seconds) })
}

/// Returns the numbers of layers that are measured.
fn counts(outline: &Outline) -> Vec<u32> {
    let n = outline.n_layers();
    let layer = outline.parts().layers.first().copied().unwrap_or(0).max(1);
    let more = u32::try_from(LAYERS.div_ceil(layer)).unwrap_or(u32::MAX).max(2);
    if outline.tensor_bytes() <= WHOLE || more >= n {
        return vec![n];
    }
    vec![1, 1 + more]
}

/// Returns the times of the parts, but for attention, from the seconds in which models of so many layers read and wrote `tokens`.
fn solve(counts: &[u32], tokens: Tokens, seconds: &[(f64, f64)]) -> Pace {
    let (read, written) = (tokens.read as f64, tokens.written as f64);
    let (Some(&n), Some(&(reading, writing))) = (counts.first(), seconds.first()) else { return Pace::default() };
    let (mut layer_reading, mut layer_writing) = (0.0, 0.0);
    if let (Some(&more), Some(&(more_reading, more_writing))) = (counts.get(1), seconds.get(1)) {
        let layers = f64::from(more - n);
        layer_reading = ((more_reading - reading) / layers / read).max(0.0);
        layer_writing = ((more_writing - writing) / layers / written).max(0.0);
    }
    let n = f64::from(n);
    let fixed_writing = (writing / written - n * layer_writing).max(0.0);
    // Most of a token's fixed part is the output matrix, which a prompt needs once. In a model that was measured whole, it
    // cannot be told from the layers.
    let once = if counts.len() > 1 { fixed_writing } else { 0.0 };
    let fixed_reading = ((reading - once) / read - n * layer_reading).max(0.0);
    let written_at = read + (written - 1.0) / 2.0;
    let attention = AttentionTime::default();
    Pace { written_at, fixed_writing, layer_writing, read_at: read, once, fixed_reading, layer_reading, attention }
}

/// A model of some layers, and its file.
struct Part {
    session: Session,
    tokens: Tokens,
    // Dropped after the session.
    _file: crate::placement::HollowFile,
}

impl Part {
    fn new(outline: &Outline, tokens: Tokens, options: &PaceOptions) -> Result<Self, PaceError> {
        let folder: &Path = &options.folder;
        let file = outline.make(folder).map_err(|source| PaceError::File { folder: folder.to_path_buf(), source })?;
        let n_ctx = u32::try_from(tokens.total()).ok();
        let session = SessionOptions {
            n_ctx,
            threads: Some(options.threads),
            cancel: options.cancel.clone(),
            ..SessionOptions::default()
        };
        let repack = if options.repack { Repack::On } else { Repack::Off };
        let load = ModelOptions { gpu_layers: Some(0), ..ModelOptions::default() };
        let open = OpenOptions { load, repack, session: session.clone(), ..OpenOptions::default() };
        let model: Model = engine::open(file.path(), open)?;
        Ok(Self { session: Session::new(&model, &session)?, tokens, _file: file })
    }

    /// Returns the seconds of reading and of writing.
    fn round(&mut self) -> Result<(f64, f64), Error> {
        let tokens = vec![0; self.tokens.read];
        self.session.truncate(0);
        let started = Instant::now();
        self.session.eval(&tokens, Logits::Last)?;
        let read = started.elapsed();
        for _ in 0..self.tokens.written {
            self.session.eval(&tokens[..1], Logits::Last)?;
        }
        Ok((read.as_secs_f64(), (started.elapsed() - read).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTENTION: AttentionTime = AttentionTime { reading: 1e-6, writing: 2e-6 };
    const TOKENS: Tokens = Tokens { read: 128, written: 16 };

    #[test]
    fn what_was_measured_is_predicted() {
        // One layer and five of a model whose parts are known.
        let pace = Pace {
            written_at: 135.5,
            fixed_writing: 0.01,
            layer_writing: 0.002,
            read_at: 128.0,
            once: 0.01,
            fixed_reading: 1e-4,
            layer_reading: 5e-4,
            attention: ATTENTION,
        };
        let (read, written) = (TOKENS.read as f64, TOKENS.written as f64);
        let seconds = [1, 5]
            .map(|n| (read / pace.reading(n, read, ATTENTION), written / pace.writing(n, pace.written_at, ATTENTION)));
        let found = solve(&[1, 5], TOKENS, &seconds);
        for (found, wanted) in [
            (found.written_at, pace.written_at),
            (found.fixed_writing, pace.fixed_writing),
            (found.layer_writing, pace.layer_writing),
            (found.read_at, pace.read_at),
            (found.once, pace.once),
            (found.fixed_reading, pace.fixed_reading),
            (found.layer_reading, pace.layer_reading),
        ] {
            assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
        }
        // A model that was measured whole.
        let found = Pace { attention: ATTENTION, ..solve(&[5], TOKENS, &seconds[1..]) };
        assert!((read / found.reading(5, read, ATTENTION) - seconds[1].0).abs() < 1e-9);
        assert!((written / found.writing(5, found.written_at, ATTENTION) - seconds[1].1).abs() < 1e-9);
    }

    #[test]
    fn large_models_are_measured_with_fewer_tokens() {
        assert_eq!(Tokens::of(3_000_000), Tokens { read: 512, written: 32 });
        assert_eq!(Tokens::of(300_000_000), Tokens { read: 320, written: 16 });
        assert_eq!(Tokens::of(34_000_000_000), Tokens { read: 256, written: 16 });
        assert_eq!(Tokens::of(0).read, 512);
    }

    #[test]
    fn noise_makes_no_part_take_less_than_no_time() {
        let found = solve(&[1, 3], TOKENS, &[(1.0, 1.0), (0.9, 0.9)]);
        assert!(found.layer_reading >= 0.0 && found.layer_writing >= 0.0, "{found:?}");
        assert!(found.writing(60, 4096.0, ATTENTION) > 0.0 && found.reading(60, 4096.0, ATTENTION) > 0.0);
    }
}
