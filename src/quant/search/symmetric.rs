//! x ≈ d·q with whole q from −half to half − 1: the best of 19 scales. ggml's `make_qx_quants`.

use super::batch::{Table, put};
use super::numbers::{NEGLIGIBLE, divide_or_zero, divide_or_zero_lanes, extreme, extreme_lanes, nearest};
use crate::lanes::{Floats, Lanes, MAX_LANES};
use std::array;
use std::ops::RangeInclusive;

/// x ≈ d·q, with whole q from `-half` to `half - 1`. Returns d, and writes `q + half` to `codes`.
///
/// One end of the range is a step longer, so the weight of largest magnitude is put there. Then 18 scales around that
/// one are tried, from `half - 0.9` to `half + 0.9` steps, and the one with the least squared error is kept. If all of
/// `x` is negligible, d and the codes are 0.
pub fn fit<const N: usize>(x: &[f32; N], weights: &[f32; N], half: i32, codes: &mut [u8; N]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        *codes = [0; N];
        return 0.0;
    }
    let code = |inverse: f32, x: f32| nearest(inverse * x).clamp(-half, half - 1);
    let wx: [f32; N] = array::from_fn(|i| weights[i] * x[i]);
    let sums = |inverse: f32| {
        let q: [f32; N] = array::from_fn(|i| code(inverse, x[i]) as f32);
        let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
        for i in 0..N {
            sum_xq += wx[i] * q[i];
            sum_qq += weights[i] * q[i] * q[i];
        }
        (sum_xq, sum_qq)
    };

    let mut inverse = -half as f32 / extreme;
    let (sum_xq, sum_qq) = sums(inverse);
    let mut scale = divide_or_zero(sum_xq, sum_qq);
    let mut gain = scale * sum_xq;
    for step in (-9..=9).filter(|&step| step != 0) {
        let trial = -(half as f32 + 0.1 * step as f32) / extreme;
        let (sum_xq, sum_qq) = sums(trial);
        if sum_qq > 0.0 && sum_xq * sum_xq > gain * sum_qq {
            inverse = trial;
            scale = sum_xq / sum_qq;
            gain = scale * sum_xq;
        }
    }
    for i in 0..N {
        codes[i] = (code(inverse, x[i]) + half) as u8;
    }
    scale
}

/// What [`fit_lanes`] finds in each lane.
pub struct Found<F> {
    pub scale: F,
    /// The code for x is the nearest to `inverse · x`, plus half; but 0 if `inverse` is 0.
    pub inverse: F,
}

/// [`fit`], a sub-block per lane, for finite `x`.
#[inline(always)]
pub fn fit_lanes<L: Lanes, const N: usize>(
    l: L,
    half: i32,
    x: &[L::Floats; N],
    weights: &[L::Floats; N],
) -> Found<L::Floats> {
    let zero = l.splat(0.0);
    let extreme = extreme_lanes(l, x);
    let mut wx = [zero; N];
    for i in 0..N {
        wx[i] = weights[i] * x[i];
    }
    let columns = Columns { x, weights, wx: &wx };

    let start = Trials { half: half as f32, above: true, below: false };
    let inverse = l.splat(-start.half) / extreme;
    let (sum_xq, sum_qq) = start.sums(l, inverse, columns);
    let scale = divide_or_zero_lanes(l, sum_xq, sum_qq);
    let mut best = Best { inverse, scale, gain: scale * sum_xq };
    // No product of a trial is further from zero than half + 0.1 · step. So only from the fifth step on can one round
    // to less than the smallest code, and up to the sixth step down none rounds to more than the largest.
    Trials { above: false, ..start }.run(l, -9..=-6, extreme, columns, &mut best);
    start.run(l, -5..=-1, extreme, columns, &mut best);
    start.run(l, 1..=4, extreme, columns, &mut best);
    Trials { below: true, ..start }.run(l, 5..=9, extreme, columns, &mut best);
    let negligible = l.splat(NEGLIGIBLE).gt(extreme.abs());
    Found { scale: zero.or_else(negligible, best.scale), inverse: zero.or_else(negligible, best.inverse) }
}

/// Some of the trials of [`fit_lanes`].
#[derive(Clone, Copy)]
struct Trials {
    half: f32,
    /// Whether rounded numbers may be above the largest code, and below the smallest.
    above: bool,
    below: bool,
}

/// The inputs of the trials' sums: the model's weights, the search's weights, and their products.
#[derive(Clone, Copy)]
struct Columns<'a, F, const N: usize> {
    x: &'a [F; N],
    weights: &'a [F; N],
    wx: &'a [F; N],
}

/// The best so far.
struct Best<F> {
    inverse: F,
    scale: F,
    gain: F,
}

impl Trials {
    #[inline(always)]
    fn run<L: Lanes, const N: usize>(
        self,
        l: L,
        steps: RangeInclusive<i32>,
        extreme: L::Floats,
        columns: Columns<L::Floats, N>,
        best: &mut Best<L::Floats>,
    ) {
        for step in steps {
            let inverse = l.splat(-(self.half + 0.1 * step as f32)) / extreme;
            let (sum_xq, sum_qq) = self.sums(l, inverse, columns);
            let better = sum_qq.gt(l.splat(0.0)) & (sum_xq * sum_xq).gt(best.gain * sum_qq);
            best.inverse = inverse.or_else(better, best.inverse);
            best.scale = (sum_xq / sum_qq).or_else(better, best.scale);
            best.gain = (best.scale * sum_xq).or_else(better, best.gain);
        }
    }

    /// (Σ w·x·q, Σ w·q²) with the q nearest to `inverse · x`.
    #[inline(always)]
    fn sums<L: Lanes, const N: usize>(
        self,
        l: L,
        inverse: L::Floats,
        columns: Columns<L::Floats, N>,
    ) -> (L::Floats, L::Floats) {
        let Columns { x, weights, wx } = columns;
        let (smallest, largest) = (l.splat(-self.half), l.splat(self.half - 1.0));
        let (mut sum_xq, mut sum_qq) = (l.splat(0.0), l.splat(0.0));
        for i in 0..N {
            let mut q = (inverse * x[i]).round();
            if self.below {
                q = q.max(smallest);
            }
            if self.above {
                q = q.min(largest);
            }
            sum_xq = sum_xq + wx[i] * q;
            sum_qq = sum_qq + weights[i] * q * q;
        }
        (sum_xq, sum_qq)
    }
}

/// The codes with which [`fit_lanes`] ended.
#[inline(always)]
pub fn codes_lanes<L: Lanes, const N: usize>(
    l: L,
    half: i32,
    inverse: L::Floats,
    x: &[L::Floats; N],
) -> [L::Floats; N] {
    let half = half as f32;
    let (zero, smallest, largest) = (l.splat(0.0), l.splat(-half), l.splat(half - 1.0));
    let none = inverse.ge(zero) & zero.ge(inverse);
    let mut codes = [zero; N];
    for i in 0..N {
        let q = (inverse * x[i]).round().max(smallest).min(largest);
        codes[i] = zero.or_else(none, q + l.splat(half));
    }
    codes
}

/// The codes with which [`fit_lanes`] ended in one lane.
#[inline(always)]
pub fn codes_of_lane<const N: usize>(half: i32, inverse: f32, x: &[f32; N]) -> [u8; N] {
    let mut codes = [0; N];
    if inverse != 0.0 {
        for i in 0..N {
            codes[i] = (nearest(inverse * x[i]).clamp(-half, half - 1) + half) as u8;
        }
    }
    codes
}

/// What [`fit_lanes`] found for each sub-block of a batch.
pub struct SymmetricBatch<const PER: usize> {
    pub scales: Table<PER>,
    inverses: Table<PER>,
}

impl<const PER: usize> SymmetricBatch<PER> {
    #[inline(always)]
    pub fn new() -> Self {
        let zero = [[0.0; PER]; MAX_LANES];
        Self { scales: zero, inverses: zero }
    }

    /// Searches the group from `at`.
    #[inline(always)]
    pub fn search<L: Lanes, const N: usize>(
        &mut self,
        l: L,
        at: usize,
        half: i32,
        x: &[L::Floats; N],
        weights: &[L::Floats; N],
    ) {
        let found = fit_lanes(l, half, x, weights);
        put(l, &mut self.scales, at, found.scale);
        put(l, &mut self.inverses, at, found.inverse);
    }

    /// The codes with which the search ended in sub-block `j` of block `b`, whose weights are `x`. It is seldom needed,
    /// so it is not inlined.
    #[cold]
    #[inline(never)]
    pub fn codes<const N: usize>(&self, half: i32, b: usize, j: usize, x: &[f32]) -> [u8; N] {
        codes_of_lane(half, self.inverses[b][j], &x.as_chunks().0[j])
    }
}
