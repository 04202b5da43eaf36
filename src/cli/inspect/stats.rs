//! Statistics of one tensor's weights, in bounded memory: the weights are decoded a chunk at a time, on all cores, and
//! the chunks' results are put together in the order of the tensor, so that every run prints the same digits.

use rayon::prelude::*;

/// Weights decoded at a time, by each thread.
const CHUNK_WEIGHTS: usize = 1 << 18;

/// How bytes become weights: a block of `block_bytes` holds `block_len` of them.
#[derive(Clone, Copy)]
pub struct Decoder<F> {
    pub block_len: usize,
    pub block_bytes: usize,
    /// Fills the second slice from the first, which holds whole blocks.
    pub decode: F,
}

impl<F: Fn(&[u8], &mut [f32]) + Sync> Decoder<F> {
    fn chunk_bytes(&self) -> usize {
        (CHUNK_WEIGHTS / self.block_len).max(1) * self.block_bytes
    }

    /// Calls `visit` with each chunk's weights and the index of its first weight; returns the results in order.
    fn map_chunks<R: Send>(&self, data: &[u8], visit: impl Fn(u64, &[f32]) -> R + Sync) -> Vec<R> {
        let chunk_bytes = self.chunk_bytes();
        data.par_chunks(chunk_bytes)
            .enumerate()
            .map_init(Vec::new, |weights, (index, bytes)| {
                weights.resize(bytes.len() / self.block_bytes * self.block_len, 0.0);
                (self.decode)(bytes, weights);
                visit((index * (chunk_bytes / self.block_bytes * self.block_len)) as u64, weights)
            })
            .collect()
    }

    /// The first `n` weights, or all there are.
    pub fn first(&self, data: &[u8], n: usize) -> Vec<f32> {
        let blocks = n.div_ceil(self.block_len).min(data.len() / self.block_bytes);
        let mut weights = vec![0.0; blocks * self.block_len];
        (self.decode)(&data[..blocks * self.block_bytes], &mut weights);
        weights.truncate(n);
        weights
    }
}

/// Statistics of some weights. Weights that are not finite are counted and excluded from everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Finite weights.
    pub n: u64,
    pub zeros: u64,
    pub nans: u64,
    pub infinities: u64,
    /// The smallest weight, and the index of the first of that value; `None` if no weight is finite.
    pub min: Option<(f32, u64)>,
    /// The largest, likewise.
    pub max: Option<(f32, u64)>,
    pub mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
}

impl Stats {
    /// Of all weights in `data`, which holds whole blocks.
    pub fn of<F: Fn(&[u8], &mut [f32]) + Sync>(data: &[u8], decoder: &Decoder<F>) -> Self {
        let chunks = decoder.map_chunks(data, Self::of_chunk);
        chunks.into_iter().fold(Self::default(), Self::and)
    }

    fn of_chunk(first: u64, weights: &[f32]) -> Self {
        let mut stats = Self::default();
        let mut sum = 0.0;
        for (&weight, index) in weights.iter().zip(first..) {
            if weight.is_nan() {
                stats.nans += 1;
            } else if weight.is_infinite() {
                stats.infinities += 1;
            } else {
                stats.n += 1;
                stats.zeros += u64::from(weight == 0.0);
                sum += f64::from(weight);
                if stats.min.is_none_or(|(min, _)| weight < min) {
                    stats.min = Some((weight, index));
                }
                if stats.max.is_none_or(|(max, _)| weight > max) {
                    stats.max = Some((weight, index));
                }
            }
        }
        if stats.n > 0 {
            stats.mean = sum / stats.n as f64;
            let finite = weights.iter().filter(|weight| weight.is_finite());
            stats.squares = finite.map(|&weight| (f64::from(weight) - stats.mean).powi(2)).sum();
        }
        stats
    }

    /// Of these weights and those that come after them. The sum of squares follows Chan, Golub and LeVeque (1979), "Updating
    /// formulae and a pairwise algorithm for computing sample variances".
    fn and(self, after: Self) -> Self {
        let n = self.n + after.n;
        let (mut mean, mut squares) = (0.0, 0.0);
        if n > 0 {
            let (share, distance) = (after.n as f64 / n as f64, after.mean - self.mean);
            mean = self.mean + distance * share;
            squares = self.squares + after.squares + distance * distance * self.n as f64 * share;
        }
        // Of equal weights the earlier counts.
        let better = |a: Option<(f32, u64)>, b: Option<(f32, u64)>, wins: fn(f32, f32) -> bool| match (a, b) {
            (Some(a), Some(b)) => Some(if wins(b.0, a.0) { b } else { a }),
            (a, b) => a.or(b),
        };
        Self {
            n,
            zeros: self.zeros + after.zeros,
            nans: self.nans + after.nans,
            infinities: self.infinities + after.infinities,
            min: better(self.min, after.min, |b, a| b < a),
            max: better(self.max, after.max, |b, a| b > a),
            mean,
            squares,
        }
    }

    /// Standard deviation of the weights as a whole (divided by their number, not one less).
    pub fn std(&self) -> f64 {
        if self.n == 0 { 0.0 } else { (self.squares / self.n as f64).sqrt() }
    }

    /// Root of the mean square.
    pub fn rms(&self) -> f64 {
        self.std().hypot(self.mean)
    }

    /// The weight farthest from zero, and its index.
    pub fn abs_max(&self) -> Option<(f32, u64)> {
        let (min, max) = (self.min?, self.max?);
        let (low, high) = (min.0.abs(), max.0.abs());
        let min_wins = if low == high { min.1 < max.1 } else { low > high };
        Some(if min_wins { min } else { max })
    }
}

/// How many weights lie in each of the equal bins from the smallest to the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    pub min: f32,
    pub max: f32,
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Counts all weights in `data`, whose statistics are `stats`; `None` if no weight is finite. Weights that are all
    /// the same have one bin.
    pub fn of<F: Fn(&[u8], &mut [f32]) + Sync>(
        data: &[u8],
        decoder: &Decoder<F>,
        stats: &Stats,
        n_bins: usize,
    ) -> Option<Self> {
        let ((min, _), (max, _)) = (stats.min?, stats.max?);
        if min == max {
            return Some(Self { min, max, counts: vec![stats.n] });
        }
        let (low, range) = (f64::from(min), f64::from(max) - f64::from(min));
        let chunks = decoder.map_chunks(data, |_, weights| {
            let mut counts = vec![0u64; n_bins];
            for &weight in weights.iter().filter(|weight| weight.is_finite()) {
                let bin = ((f64::from(weight) - low) / range * n_bins as f64) as usize;
                counts[bin.min(n_bins - 1)] += 1;
            }
            counts
        });
        let mut counts = vec![0; n_bins];
        for chunk in chunks {
            counts.iter_mut().zip(chunk).for_each(|(count, n)| *count += n);
        }
        Some(Self { min, max, counts })
    }

    /// Returns where bin `index` begins; for the number of bins, where the last one ends.
    pub fn edge(&self, index: usize) -> f64 {
        let (low, high) = (f64::from(self.min), f64::from(self.max));
        low + (high - low) * index as f64 / self.counts.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn f32_decoder() -> Decoder<impl Fn(&[u8], &mut [f32]) + Sync + Copy> {
        Decoder {
            block_len: 1,
            block_bytes: 4,
            decode: |bytes: &[u8], weights: &mut [f32]| {
                for (weight, &bytes) in weights.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *weight = f32::from_le_bytes(bytes);
                }
            },
        }
    }

    fn bytes_of(weights: &[f32]) -> Vec<u8> {
        weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
    }

    fn stats_of(weights: &[f32]) -> Stats {
        Stats::of(&bytes_of(weights), &f32_decoder())
    }

    #[test]
    fn a_few_weights_by_hand() {
        let stats = stats_of(&[1.0, -3.0, 0.0, 2.0, f32::NAN, -0.0, f32::INFINITY, -3.0, 3.0]);
        assert_eq!((stats.n, stats.zeros, stats.nans, stats.infinities), (7, 2, 1, 1));
        assert_eq!((stats.min, stats.max), (Some((-3.0, 1)), Some((3.0, 8))));
        assert_eq!(stats.abs_max(), Some((-3.0, 1)));
        assert_eq!(stats.mean, 0.0);
        assert!((stats.std() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert!((stats.rms() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn nothing_finite_leaves_nothing_to_say() {
        let stats = stats_of(&[f32::NAN, f32::NEG_INFINITY]);
        assert_eq!((stats.n, stats.min, stats.abs_max()), (0, None, None));
        assert_eq!((stats.mean, stats.std(), stats.rms()), (0.0, 0.0, 0.0));
        assert_eq!(Histogram::of(&[], &f32_decoder(), &stats, 4), None);
    }

    #[test]
    fn a_histogram_counts_every_weight_once() {
        let weights = [0.0, 1.0, 2.0, 3.0, 4.0, f32::NAN, 3.999, 4.0];
        let stats = stats_of(&weights);
        let histogram = Histogram::of(&bytes_of(&weights), &f32_decoder(), &stats, 4).unwrap();
        assert_eq!(histogram.counts, [1, 1, 1, 4]);
        assert_eq!((histogram.edge(0), histogram.edge(1), histogram.edge(4)), (0.0, 1.0, 4.0));
        let same = Histogram::of(&bytes_of(&[2.0; 9]), &f32_decoder(), &stats_of(&[2.0; 9]), 4).unwrap();
        assert_eq!((same.counts, same.min, same.max), (vec![9], 2.0, 2.0));
    }

    #[test]
    fn the_widest_range_a_tensor_can_have_does_not_overflow() {
        let weights = [f32::MIN, f32::MAX, 0.0, f32::MIN_POSITIVE / 2.0];
        let stats = stats_of(&weights);
        assert!(stats.std().is_finite() && stats.rms().is_finite());
        let histogram = Histogram::of(&bytes_of(&weights), &f32_decoder(), &stats, 2).unwrap();
        assert_eq!(histogram.counts, [1, 3]);
    }

    #[test]
    fn many_chunks_give_what_one_would() {
        // A little more than three chunks, with the extremes in different ones.
        let n = 3 * CHUNK_WEIGHTS + 12_345;
        let mut weights: Vec<f32> = (0..n).map(|i| ((i * 7919) % 10_007) as f32 / 10_007.0 - 0.5).collect();
        weights[2 * CHUNK_WEIGHTS + 5] = -7.0;
        weights[n - 1] = 9.0;
        let stats = stats_of(&weights);
        assert_eq!(stats.min, Some((-7.0, 2 * CHUNK_WEIGHTS as u64 + 5)));
        assert_eq!(stats.abs_max(), Some((9.0, n as u64 - 1)));
        let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / n as f64;
        let variance = weights.iter().map(|&w| (f64::from(w) - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((stats.mean - mean).abs() < 1e-12, "{} {mean}", stats.mean);
        assert!((stats.std() - variance.sqrt()).abs() < 1e-12);
        let histogram = Histogram::of(&bytes_of(&weights), &f32_decoder(), &stats, 16).unwrap();
        assert_eq!(histogram.counts.iter().sum::<u64>(), n as u64);
    }

    #[test]
    fn the_first_weights_of_a_blocked_tensor_end_where_they_are_asked_to() {
        // Blocks of four weights, all the block's byte.
        let decode = |bytes: &[u8], weights: &mut [f32]| {
            weights.chunks_exact_mut(4).zip(bytes).for_each(|(block, &byte)| block.fill(byte.into()));
        };
        let decoder = Decoder { block_len: 4, block_bytes: 1, decode };
        assert_eq!(decoder.first(&[1, 2, 3], 6), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(decoder.first(&[1], 6), [1.0; 4]);
        let stats = Stats::of(&[1, 5, 3], &decoder);
        assert_eq!((stats.n, stats.max, stats.mean), (12, Some((5.0, 4)), 3.0));
    }

    proptest! {
        #[test]
        fn parts_together_are_the_whole(weights in prop::collection::vec(-1e3f32..1e3, 0..64), cut in 0usize..64) {
            let (before, after) = weights.split_at(cut.min(weights.len()));
            let parts = Stats::of_chunk(0, before).and(Stats::of_chunk(before.len() as u64, after));
            let whole = Stats::of_chunk(0, &weights);
            prop_assert_eq!((parts.n, parts.min, parts.max), (whole.n, whole.min, whole.max));
            prop_assert!((parts.mean - whole.mean).abs() < 1e-9);
            prop_assert!((parts.std() - whole.std()).abs() < 1e-9);
        }
    }
}
