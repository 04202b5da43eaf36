//! x ≈ d·q + m with whole q from 0 to max and m ≤ 0. ggml's `make_qkx2_quants` and `make_qkx3_quants`.

use super::batch::{Table, mark, put};
use super::numbers::{BEYOND_NEAREST, nearest, smallest_and_largest};
use crate::lanes::{Floats, Lanes, MAX_LANES};
use std::array;

/// Parameters of [`fit`]: how many scales it tries, and how error and rounding are defined.
#[derive(Clone, Copy)]
pub struct AffineSearch {
    /// The largest q.
    pub max: i32,
    /// The tried scales spread the range over `max + first`, `max + first + step`, ... steps.
    pub first: f32,
    /// See [`Self::first`].
    pub step: f32,
    /// Number of scales that are tried.
    pub tries: i32,
    /// Whether the error of a weight is |x − d·q − m|, not its square.
    pub absolute: bool,
    /// Whether a trial's quotient is limited to 0..=`max` before it is rounded, not after.
    ///
    /// The two differ only if the quotient leaves [`nearest`]'s range, which happens if the range of x has shrunk to
    /// almost nothing, as it may if weights are zero.
    pub limit_first: bool,
}

impl AffineSearch {
    /// Returns the search that every format with codes from 0 to `max` uses with importance.
    pub const fn weighted(max: i32) -> Self {
        Self { max, first: -0.9, step: 0.05, tries: 37, absolute: false, limit_first: true }
    }
}

/// The two real numbers of an affine code: x ≈ `scale`·q − `min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub scale: f32,
    /// At least 0: the range of q always reaches weight zero from below.
    pub min: f32,
}

/// x ≈ d·q + m, with whole q from 0 to `search.max` and m ≤ 0. Returns d and −m, and writes q to `codes`.
///
/// Starts from the smallest and largest x. Then, for each trial scale, rounds to q, solves for d and m as in the module's
/// heading (if m would be positive, it is 0, and d = Σwxq / Σwq²), and keeps the result with the least error. Later
/// trials use the best m so far as the smallest x. If all x are equal and not negative, or all are zero, the codes and
/// d are 0.
#[inline]
pub fn fit<const N: usize>(search: AffineSearch, x: &[f32; N], weights: &[f32; N], codes: &mut [u8; N]) -> Affine {
    let levels = search.max as f32;
    let (mut min, max) = smallest_and_largest(x);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..N {
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        *codes = [0; N];
        return Affine { scale: 0.0, min: -min };
    }

    let error = |q: &[f32; N], scale: f32, min: f32| {
        let errors: [f32; N] = array::from_fn(|i| {
            let difference = scale * q[i] + min - x[i];
            weights[i] * if search.absolute { difference.abs() } else { difference * difference }
        });
        errors.iter().fold(0.0, |sum, error| sum + error)
    };

    let inverse = levels / (max - min);
    let mut scale = 1.0 / inverse;
    let mut best: [f32; N] = array::from_fn(|i| nearest(inverse * (x[i] - min)).clamp(0, search.max) as f32);
    let mut least = error(&best, scale, min);
    for trial in 0..search.tries {
        let inverse = (search.first + search.step * trial as f32 + levels) / (max - min);
        let q: [f32; N] = array::from_fn(|i| {
            let quotient = inverse * (x[i] - min);
            if search.limit_first {
                // This form turns a NaN into 0.
                let limited = if quotient > 0.0 { quotient } else { 0.0 };
                nearest(if limited < levels { limited } else { levels }) as f32
            } else {
                nearest(quotient).clamp(0, search.max) as f32
            }
        });
        let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0, 0.0, 0.0);
        for i in 0..N {
            let wq = weights[i] * q[i];
            sum_q += wq;
            sum_qq += wq * q[i];
            sum_xq += wq * x[i];
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant > 0.0 {
            let mut trial_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
            let mut trial_min = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
            if trial_min > 0.0 {
                trial_min = 0.0;
                trial_scale = sum_xq / sum_qq;
            }
            let error = error(&q, trial_scale, trial_min);
            if error < least {
                (best, least, scale, min) = (q, error, trial_scale, trial_min);
            }
        }
    }
    *codes = best.map(|q| q as u8);
    Affine { scale, min: -min }
}

/// What [`fit_lanes`] finds in each lane.
pub struct Found<L: Lanes> {
    pub scale: L::Floats,
    pub min: L::Floats,
    /// Before the search ended in this scale and min, its code for x was the nearest of `inverse · (x + offset)`.
    pub start: Start<L::Floats>,
    /// Lanes for which none of this holds.
    pub odd: L::Mask,
}

/// How a search computed its codes: the nearest to `inverse · (x − least)`.
#[derive(Clone, Copy)]
pub struct Start<F> {
    pub inverse: F,
    pub least: F,
}

/// [`fit`], a sub-block per lane.
#[inline(always)]
pub fn fit_lanes<L: Lanes, const N: usize>(
    l: L,
    search: AffineSearch,
    x: &[L::Floats; N],
    weights: &[L::Floats; N],
) -> Found<L> {
    let zero = l.splat(0.0);
    let max_code = search.max as f32;
    let levels = l.splat(max_code);
    let bound = l.splat(BEYOND_NEAREST);

    let (mut smallest, mut largest) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..N {
        smallest = x[i].min(smallest);
        largest = x[i].max(largest);
        sum_w = sum_w + weights[i];
        sum_x = sum_x + weights[i] * x[i];
    }
    let mut min = zero.min(smallest);
    let flat = !largest.gt(min);
    let first_min = min;

    let inverse = levels / (largest - min);
    let mut odd = (inverse * (largest - min)).not_lt(bound);
    let mut scale = l.splat(1.0) / inverse;
    let mut start = Start { inverse, least: min };
    let mut least = zero;
    for i in 0..N {
        let q = (inverse * (x[i] - min)).round().max(zero).min(levels);
        least = least + weighted_error(search, scale, min, q, x[i], weights[i]);
    }

    let mut q = [zero; N];
    for trial in 0..search.tries {
        let range = largest - min;
        let inverse = l.splat(search.first + search.step * trial as f32 + max_code) / range;
        if !search.limit_first {
            odd = odd | (inverse.abs() * range.abs().max((smallest - min).abs())).not_lt(bound);
        }
        let (mut sum_q, mut sum_qq, mut sum_xq) = (zero, zero, zero);
        for i in 0..N {
            let quotient = inverse * (x[i] - min);
            let code = match search.limit_first {
                true => quotient.max(zero).min(levels).round(),
                false => quotient.round().max(zero).min(levels),
            };
            q[i] = code;
            let wq = weights[i] * code;
            sum_q = sum_q + wq;
            sum_qq = sum_qq + wq * code;
            sum_xq = sum_xq + wq * x[i];
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        let trial_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        let trial_min = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
        let above = trial_min.gt(zero);
        let trial_min = zero.or_else(above, trial_min);
        let trial_scale = (sum_xq / sum_qq).or_else(above, trial_scale);
        let mut error = zero;
        for i in 0..N {
            error = error + weighted_error(search, trial_scale, trial_min, q[i], x[i], weights[i]);
        }
        let better = determinant.gt(zero) & error.lt(least);
        least = error.or_else(better, least);
        start.inverse = inverse.or_else(better, start.inverse);
        start.least = min.or_else(better, start.least);
        scale = trial_scale.or_else(better, scale);
        min = trial_min.or_else(better, min);
    }
    Found {
        scale: zero.or_else(flat, scale),
        min: l.splat(-1.0) * first_min.or_else(flat, min),
        start: Start { inverse: zero.or_else(flat, start.inverse), least: start.least },
        odd: odd & !flat,
    }
}

/// Returns the error of one weight: w · (scale · q + min − x)², or w · |scale · q + min − x|.
#[inline(always)]
fn weighted_error<F: Floats>(search: AffineSearch, scale: F, min: F, q: F, x: F, weight: F) -> F {
    let difference = scale * q + min - x;
    weight * if search.absolute { difference.abs() } else { difference * difference }
}

/// Returns the codes with which [`fit_lanes`] ended in one lane.
#[inline(always)]
pub fn codes_of_start<const N: usize>(search: AffineSearch, start: Start<f32>, x: &[f32; N]) -> [u8; N] {
    let mut codes = [0; N];
    for i in 0..N {
        let quotient = start.inverse * (x[i] - start.least);
        // Where the lane is not odd, limiting before rounding is the same as after it; and a NaN becomes 0.
        let limited = if quotient > 0.0 { quotient } else { 0.0 };
        codes[i] = nearest(limited.min(search.max as f32)) as u8;
    }
    codes
}

/// What [`fit_lanes`] found for each sub-block of a batch.
pub struct AffineBatch<const PER: usize> {
    pub scales: Table<PER>,
    pub mins: Table<PER>,
    inverses: Table<PER>,
    leasts: Table<PER>,
    /// Not 0 for a block that the scalar code has to quantize.
    pub odd: Table<PER>,
}

impl<const PER: usize> AffineBatch<PER> {
    #[inline(always)]
    pub fn new() -> Self {
        let zero = [[0.0; PER]; MAX_LANES];
        Self { scales: zero, mins: zero, inverses: zero, leasts: zero, odd: zero }
    }

    /// Searches the group that begins at `at`.
    #[inline(always)]
    pub fn search<L: Lanes, const N: usize>(
        &mut self,
        l: L,
        at: usize,
        search: AffineSearch,
        x: &[L::Floats; N],
        weights: &[L::Floats; N],
    ) {
        let found = fit_lanes(l, search, x, weights);
        put(l, &mut self.scales, at, found.scale);
        put(l, &mut self.mins, at, found.min);
        put(l, &mut self.inverses, at, found.start.inverse);
        put(l, &mut self.leasts, at, found.start.least);
        mark(l, &mut self.odd, at, found.odd);
    }

    /// Returns the codes with which the search ended in sub-block `j` of block `b`, whose weights are `x`.
    #[inline(always)]
    pub fn codes<const N: usize>(&self, search: AffineSearch, b: usize, j: usize, x: &[f32]) -> [u8; N] {
        let start = Start { inverse: self.inverses[b][j], least: self.leasts[b][j] };
        codes_of_start(search, start, &x.as_chunks().0[j])
    }
}
