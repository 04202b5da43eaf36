//! Quantiles and their intervals.

use super::{Bootstrap, Estimate};

/// The fewest tokens beyond a quantile for an interval. With 20, the interval of the 99% quantile has a simulated
/// coverage of 90%; with 6, that of the 99.9% quantile has 84%.
const FEWEST_BEYOND: f64 = 25.0;

impl Bootstrap {
    /// Estimates the quantiles for `shares` as llama-perplexity computes them: the sorted value at index
    /// `share (n - 1)`, with linear interpolation.
    ///
    /// The interval is Woodruff's (1952) and needs no resampling. The share of tokens up to the quantile is a mean. The
    /// quantiles at the two ends of that mean's interval are the interval of the quantile. The interval of the share is
    /// Wilson's, with Student's quantile and the effective number of independent tokens (`p (1 - p) / Var`, at most the
    /// actual number; Dean and Pagano 2015). There is no interval if fewer than 25 tokens are beyond the quantile (99%:
    /// 2,500 tokens; 99.9%: 25,000), or if it would reach an infinite value.
    pub fn quantiles(&self, values: &[f64], shares: &[f64]) -> Vec<Estimate> {
        let mut sorted: Vec<f64> = self.values_of(values).collect();
        if sorted.is_empty() || sorted.iter().any(|value| value.is_nan()) {
            return vec![Estimate::bare(f64::NAN); shares.len()];
        }
        sorted.sort_unstable_by(f64::total_cmp);
        shares.iter().map(|&share| self.quantile(values, &sorted, share)).collect()
    }

    fn quantile(&self, values: &[f64], sorted: &[f64], share: f64) -> Estimate {
        let value = at(sorted, share);
        let interval = self
            .student()
            .filter(|_| sorted.len() as f64 * share.min(1.0 - share) >= FEWEST_BEYOND)
            .map(|student| wilson(share, self.independent_tokens(values, value, share, sorted.len() as f64), student))
            .map(|shares| shares.map(|share| at(sorted, share)))
            .filter(|ends| ends.iter().all(|end| end.is_finite()));
        Estimate { value, interval }
    }

    /// Returns the effective number of independent tokens for the share of tokens up to `value`.
    fn independent_tokens(&self, values: &[f64], value: f64, share: f64, n_tokens: f64) -> f64 {
        let ranges = self.blocks().ranges();
        let up_to =
            |range: &std::ops::Range<usize>| values[range.clone()].iter().filter(|v| **v <= value).count() as f64;
        let counts: Vec<f64> = ranges.iter().map(up_to).collect();
        let mean = counts.iter().sum::<f64>() / n_tokens;
        let residuals: Vec<f64> = counts.iter().zip(ranges).map(|(count, r)| count - mean * r.len() as f64).collect();
        let error = self.standard_error(&residuals, n_tokens);
        (share * (1.0 - share) / (error * error)).min(n_tokens)
    }
}

/// Returns the value at index `share (n - 1)` of sorted values, with linear interpolation.
fn at(sorted: &[f64], share: f64) -> f64 {
    let position = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = sorted[position as usize];
    let part = position - position.floor();
    match sorted.get(position as usize + 1) {
        // Not if both are infinite or the part is 0: infinity times 0 is NaN.
        Some(above) if part > 0.0 && *above != below => below + part * (above - below),
        _ => below,
    }
}

/// Returns Wilson's interval of a share of `n`, with `z` standard errors to each side (Wilson 1927).
pub(super) fn wilson(share: f64, n: f64, z: f64) -> [f64; 2] {
    let square = z * z / n;
    let middle = (share + 0.5 * square) / (1.0 + square);
    let half = z / (1.0 + square) * (share * (1.0 - share) / n + 0.25 * square / n).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}
