//! Intervals of means and of functions of means, by resampling blocks.

use rayon::prelude::*;

use super::distributions::student_quantile;
use super::{Blocks, Estimate};
use crate::base::random::Random;

/// Number of resamples that a thread works on at a time. Results do not depend on it.
const CHUNK: usize = 256;

/// With at least this many blocks, differences get the wider of two intervals. With fewer, Student's interval is wide
/// enough.
const MANY_BLOCKS: usize = 16;

/// Resamples of blocks. All columns share them, so that paired values stay paired.
///
/// Every column has a value for each token of all windows ([`Blocks::column_len`]). Values outside of the blocks are
/// ignored. If one of the others is NaN, the result is NaN without an interval; if one is infinite, the result is
/// infinite.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    blocks: Blocks,
    n_resamples: usize,
    /// How often each block was drawn: all resamples of the first block, then those of the second.
    counts: Vec<u16>,
    confidence: f64,
    /// Half the width of Student's interval, in standard errors.
    student: f64,
}

impl Bootstrap {
    /// Draws as many blocks from each stratum as it has, with replacement, `resamples` times.
    ///
    /// `confidence` is between 0 and 1, for example 0.95. The stream of [`Random`] is used resample by resample, with a
    /// number for each block drawn.
    pub fn new(blocks: Blocks, resamples: u32, seed: u64, confidence: f64) -> Self {
        let n_resamples = resamples as usize;
        let mut counts = vec![0u16; n_resamples * blocks.len()];
        let mut random = Random::new(seed);
        for resample in 0..n_resamples {
            for stratum in blocks.strata() {
                for _ in stratum.clone() {
                    let block = stratum.start + below(stratum.len(), &mut random);
                    let count = &mut counts[block * n_resamples + resample];
                    *count = count.saturating_add(1);
                }
            }
        }
        let student = match blocks.degrees_of_freedom() {
            _ if !blocks.are_enough() => f64::NAN,
            df => student_quantile(0.5 + 0.5 * confidence, df),
        };
        Self { blocks, n_resamples, counts, confidence, student }
    }

    /// Returns the blocks that are resampled.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Returns the confidence level of the intervals.
    pub fn confidence(&self) -> f64 {
        self.confidence
    }

    /// Returns half the width of Student's interval, in standard errors; `None` if there are too few blocks.
    pub(super) fn student(&self) -> Option<f64> {
        (!self.student.is_nan()).then_some(self.student)
    }

    /// Estimates the mean over all tokens.
    ///
    /// If no value is negative, the interval does not go below 0. If in addition no value is above 1, it does not go
    /// above 1.
    pub fn mean(&self, values: &[f64]) -> Estimate {
        let mut estimate = self.of_means(&[values], |means| means[0]);
        if let Some([low, high]) = &mut estimate.interval {
            let inside = || self.values_of(values);
            if inside().all(|value| value >= 0.0) {
                *low = low.max(0.0);
                if inside().all(|value| value <= 1.0) {
                    *high = high.min(1.0);
                }
            }
        }
        estimate
    }

    /// Estimates the mean of `a` minus that of `b`.
    ///
    /// A token at which both are infinite does not show which is better, and counts as no difference. Infinite values
    /// in only one of the two make the difference infinite. Infinite values in both, at different tokens, make it NaN.
    pub fn difference(&self, a: &[f64], b: &[f64]) -> Estimate {
        let of_token = |(&a, &b): (&f64, &f64)| if a == b { 0.0 } else { a - b };
        let sums: Vec<f64> =
            self.blocks.ranges().iter().map(|r| a[r.clone()].iter().zip(&b[r.clone()]).map(of_token).sum()).collect();
        self.of_sums(&[sums], &self.sizes(), |means| means[0], false)
    }

    /// Estimates `f` of the columns' means: the exponential of a mean, the ratio of two means, a root.
    ///
    /// `f` should be smooth near the means. Its exact bits depend on the functions that it calls;
    /// [`crate::base::math::exp`] has the same result on every machine. If a mean is infinite, the value is `f` of it,
    /// without an interval.
    pub fn of_means(&self, columns: &[&[f64]], f: impl Fn(&[f64]) -> f64 + Sync) -> Estimate {
        let sum = |values: &[f64]| -> Vec<f64> {
            self.blocks.ranges().iter().map(|range| values[range.clone()].iter().sum()).collect()
        };
        let sums: Vec<Vec<f64>> = columns.iter().map(|column| sum(column)).collect();
        let lopsided = columns.len() == 1 && self.values_of(columns[0]).all(|value| value >= 0.0);
        self.of_sums(&sums, &self.sizes(), f, lopsided)
    }

    /// Returns the largest value.
    ///
    /// It has no interval: 63% of the resamples have the same maximum and the others a lower one, while the true
    /// maximum can only be higher (Bickel and Freedman 1981, section 6).
    pub fn maximum(&self, values: &[f64]) -> Estimate {
        Estimate::bare(self.values_of(values).fold(f64::NAN, |most, value| if value <= most { most } else { value }))
    }

    /// Returns the values in the blocks.
    pub(super) fn values_of<'a>(&'a self, values: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
        assert_eq!(values.len(), self.blocks.column_len(), "a column has a value for each scored token of all windows");
        self.blocks.ranges().iter().flat_map(move |range| values[range.clone()].iter().copied())
    }

    fn sizes(&self) -> Vec<f64> {
        self.blocks.ranges().iter().map(|range| range.len() as f64).collect()
    }

    /// Estimates `f` of the means of columns, given their `sums` over blocks of `sizes` tokens.
    ///
    /// `lopsided` says that all values have the same sign, so that the interval extends further to one side.
    pub(super) fn of_sums(
        &self,
        sums: &[Vec<f64>],
        sizes: &[f64],
        f: impl Fn(&[f64]) -> f64 + Sync,
        lopsided: bool,
    ) -> Estimate {
        let n_tokens: f64 = sizes.iter().sum();
        let means: Vec<f64> = sums.iter().map(|sums| sums.iter().sum::<f64>() / n_tokens).collect();
        let value = f(&means);
        let Some(student) = self.student().filter(|_| value.is_finite() && means.iter().all(|mean| mean.is_finite()))
        else {
            return Estimate::bare(value);
        };
        // Minus the mean, so that the sums of squares below lose no precision.
        let centred: Vec<Vec<f64>> = sums
            .iter()
            .zip(&means)
            .map(|(sums, mean)| sums.iter().zip(sizes).map(|(sum, size)| sum - mean * size).collect())
            .collect();
        let linear = Linear::new(&means, &self.standard_errors(&centred, n_tokens), &f);
        let error = self.standard_error(&linear.residuals(&centred), n_tokens);
        if error.is_nan() {
            return Estimate::bare(value);
        }
        let mut interval = [value - student * error, value + student * error];
        if (lopsided || self.blocks.len() >= MANY_BLOCKS)
            && error > 0.0
            && let Some([low, high]) = self.studentised(&centred, sizes, &means, &f, error)
        {
            let [low, high] = [value - high * error, value - low * error];
            interval = [interval[0].min(low), interval[1].max(high)];
        }
        Estimate { value, interval: Some(interval) }
    }

    fn standard_errors(&self, centred: &[Vec<f64>], n_tokens: f64) -> Vec<f64> {
        centred.iter().map(|residuals| self.standard_error(residuals, n_tokens)).collect()
    }

    /// Returns the standard error of a mean from the residual sums of its blocks, by the variation of blocks within
    /// their stratum.
    ///
    /// `Var = Σ over strata of n/(n-1) Σ (u - ū)² / N²`, Cochran, Sampling Techniques, 1977, 11.8.
    pub(super) fn standard_error(&self, residuals: &[f64], n_tokens: f64) -> f64 {
        let of_stratum = |stratum: &std::ops::Range<usize>| {
            let n = stratum.len() as f64;
            let of = &residuals[stratum.clone()];
            let mean = of.iter().sum::<f64>() / n;
            n / (n - 1.0) * of.iter().map(|u| (u - mean) * (u - mean)).sum::<f64>()
        };
        self.blocks.strata().iter().map(of_stratum).sum::<f64>().sqrt() / n_tokens
    }

    /// Returns the quantiles of `(f of a resample - f of the sample) / standard error of the resample`: the bootstrap-t
    /// of Efron, in Hall, The Bootstrap and Edgeworth Expansion, 1992, 3.3. `None` if too many resamples do not vary.
    fn studentised(
        &self,
        centred: &[Vec<f64>],
        sizes: &[f64],
        means: &[f64],
        f: &(impl Fn(&[f64]) -> f64 + Sync),
        error: f64,
    ) -> Option<[f64; 2]> {
        let value = f(means);
        let mut scores: Vec<f64> = (0..self.n_resamples.div_ceil(CHUNK))
            .into_par_iter()
            .flat_map_iter(|chunk| {
                let from = chunk * CHUNK;
                let sums = Moments::of(self, centred, sizes, from, CHUNK.min(self.n_resamples - from));
                sums.scores(self, means, value, f, error)
            })
            .collect();
        if scores.is_empty() {
            return None;
        }
        scores.sort_unstable_by(f64::total_cmp);
        let tail = 0.5 * (1.0 - self.confidence);
        let at = |p: f64| {
            let position = (p * (scores.len() + 1) as f64 - 1.0).clamp(0.0, (scores.len() - 1) as f64);
            let below = scores[position as usize];
            let above = scores[(position as usize + 1).min(scores.len() - 1)];
            below + (position - position.floor()) * (above - below)
        };
        let ends = [at(tail), at(1.0 - tail)];
        ends.iter().all(|end| end.is_finite()).then_some(ends)
    }
}

/// Returns a number in 0..n, uniform up to a bias of 2^-64 n: Lemire's multiplication without rejection.
fn below(n: usize, random: &mut Random) -> usize {
    ((u128::from(random.next_u64()) * n as u128) >> 64) as usize
}

/// A linear approximation of `f` near a point.
struct Linear {
    gradient: Vec<f64>,
}

impl Linear {
    /// Uses differences over a thousandth of each mean's standard error: small compared with the resolution, large
    /// compared with rounding errors.
    fn new(means: &[f64], errors: &[f64], f: &impl Fn(&[f64]) -> f64) -> Self {
        let mut at = means.to_vec();
        let slope = |k: usize| {
            let step = 1e-3 * errors[k];
            if step == 0.0 {
                // The column does not vary, so its slope has no effect.
                return 0.0;
            }
            at[k] = means[k] + step;
            let (above, high) = (at[k], f(&at));
            at[k] = means[k] - step;
            let slope = (high - f(&at)) / (above - at[k]);
            at[k] = means[k];
            slope
        };
        Self { gradient: (0..means.len()).map(slope).collect() }
    }

    /// Returns the contribution of each block to `f`, in tokens.
    fn residuals(&self, centred: &[Vec<f64>]) -> Vec<f64> {
        let n_blocks = centred.first().map_or(0, Vec::len);
        let of_block =
            |block: usize| self.gradient.iter().zip(centred).map(|(slope, column)| slope * column[block]).sum();
        (0..n_blocks).map(of_block).collect()
    }
}

/// Sums over the drawn blocks of some resamples, stratum by stratum: of the columns and the sizes, and of all products
/// of two of these. A resample's means and standard errors are computed from them.
struct Moments {
    n_columns: usize,
    n_resamples: usize,
    /// For each stratum and each of [`Moments::n_sums`], one number per resample.
    sums: Vec<f64>,
}

impl Moments {
    /// Computes the moments of `n_resamples` resamples, beginning with number `from`. Each adds up its blocks in order.
    fn of(bootstrap: &Bootstrap, centred: &[Vec<f64>], sizes: &[f64], from: usize, n_resamples: usize) -> Self {
        let n_columns = centred.len();
        let mut of = Self { n_columns, n_resamples, sums: Vec::new() };
        let strata = bootstrap.blocks.strata();
        of.sums = vec![0.0; strata.len() * of.n_sums() * n_resamples];
        let mut factors = vec![0.0; of.n_sums()];
        for (of_stratum, stratum) in of.sums.chunks_exact_mut(factors.len() * n_resamples).zip(strata) {
            for block in stratum.clone() {
                let all = |k: usize| if k < n_columns { centred[k][block] } else { sizes[block] };
                let mut next = 0;
                for k in 0..=n_columns {
                    factors[next] = all(k);
                    next += 1;
                    for l in 0..=k {
                        factors[next] = all(k) * all(l);
                        next += 1;
                    }
                }
                let first = block * bootstrap.n_resamples + from;
                let counts = &bootstrap.counts[first..first + n_resamples];
                for (sums, factor) in of_stratum.chunks_exact_mut(n_resamples).zip(&factors) {
                    for (sum, count) in sums.iter_mut().zip(counts) {
                        *sum += f64::from(*count) * factor;
                    }
                }
            }
        }
        of
    }

    /// Returns the number of sums: for each column and the sizes, the sum and the products with itself and with those
    /// before it.
    fn n_sums(&self) -> usize {
        (self.n_columns + 1) * (self.n_columns + 4) / 2
    }

    /// Returns the index of the sum of column `k`. The sums of its products follow it.
    fn place(k: usize) -> usize {
        k * (k + 3) / 2
    }

    fn scores(
        &self,
        bootstrap: &Bootstrap,
        means: &[f64],
        value: f64,
        f: &impl Fn(&[f64]) -> f64,
        error: f64,
    ) -> Vec<f64> {
        let strata = bootstrap.blocks.strata();
        let of_stratum = self.n_sums() * self.n_resamples;
        let sum = |stratum: usize, place: usize, resample: usize| {
            self.sums[stratum * of_stratum + place * self.n_resamples + resample]
        };
        let columns = 0..self.n_columns;
        let score = |resample: usize| {
            let total = |k: usize| (0..strata.len()).map(|h| sum(h, Self::place(k), resample)).sum::<f64>();
            let n_tokens = total(self.n_columns);
            // The differences of the resample's means from the sample's.
            let shifts: Vec<f64> = columns.clone().map(|k| total(k) / n_tokens).collect();
            let drawn: Vec<f64> = means.iter().zip(&shifts).map(|(mean, shift)| mean + shift).collect();
            let variance_of = |weights: &[f64]| {
                (0..strata.len())
                    .map(|h| self.variance(strata[h].len(), weights, |place| sum(h, place, resample)))
                    .sum::<f64>()
                    / (n_tokens * n_tokens)
            };
            // The residual of a block from the resample's mean is: column - shift * size.
            let error_of = |slopes: &[f64]| {
                let size = -slopes.iter().zip(&shifts).map(|(slope, shift)| slope * shift).sum::<f64>();
                let weights: Vec<f64> = slopes.iter().copied().chain([size]).collect();
                variance_of(&weights).max(0.0).sqrt()
            };
            let unit = |k: usize| columns.clone().map(|l| f64::from(u8::from(k == l))).collect::<Vec<f64>>();
            let errors: Vec<f64> = columns.clone().map(|k| error_of(&unit(k))).collect();
            let drawn_error = error_of(&Linear::new(&drawn, &errors, f).gradient);
            let difference = f(&drawn) - value;
            if difference == 0.0 {
                0.0
            } else if drawn_error > 1e-6 * error {
                difference / drawn_error
            } else {
                // All blocks of the resample are alike: its standard error is 0.
                difference.signum() * f64::INFINITY
            }
        };
        (0..self.n_resamples).map(score).collect()
    }

    /// Returns `n/(n-1) Σ (u - ū)²` over a stratum of `n` blocks, where `u` is the weighted sum of the columns and the
    /// size.
    fn variance(&self, n: usize, weights: &[f64], sum: impl Fn(usize) -> f64) -> f64 {
        let n = n as f64;
        let (mut squares, mut total) = (0.0, 0.0);
        for k in 0..weights.len() {
            let place = Self::place(k);
            total += weights[k] * sum(place);
            for l in 0..=k {
                let twice = if l < k { 2.0 } else { 1.0 };
                squares += twice * weights[k] * weights[l] * sum(place + 1 + l);
            }
        }
        n / (n - 1.0) * (squares - total * total / n)
    }
}
