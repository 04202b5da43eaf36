//! The searches of [`super::search`], by lanes: a sub-block a lane, the same operations in the same order.
//!
//! What a vector cannot do as the scalar code does it, it reports: a lane is *odd* where the scalar code would get from
//! [`nearest`](super::search::nearest) something else than the nearest whole number, because a quotient leaves its range.
//! That takes weights near the ends of single precision, or ranges that shrink to almost nothing. The block is then
//! quantized by the scalar code.
//!
//! What they cost, in vector operations a weight: the limit is what a CPU does of these a second, times its lanes.
//!
//! | search                        | a trial                                         | trials         | in all       |
//! |-------------------------------|-------------------------------------------------|----------------|--------------|
//! | [`affine`]                    | 5 for the code, 6 for the sums, 6 for the error | 21, 16, 16; 37 | 392, 307, 302; 669 (Q4_K, Q5_K, Q2_K; with importance) |
//! | [`symmetric`]                 | 4 for the code, 5 for the sums                  | 19             | 190          |
//! | IQ4's                         | 7 for the value, 5 for the sums                 | 17             | 220          |
//! | [`Moves`]                     | 14 to start, 33 for a look at a move            | see below      | 85, of them 2.4 divisions, if one of five sub-blocks moves |
//!
//! The first three wait for nothing but a sum's last addition. [`Moves::settle`] is different: whether a code moves decides
//! the sums by which the next is judged, a wait of some 60 cycles from one to the other (a division, seven products and
//! sums, a comparison), which only more lanes can fill.

use super::lanes::{Floats, Lanes, Mask};
use super::search::{AffineSearch, NEGLIGIBLE, Rounding, nearest};
use std::ops::RangeInclusive;

/// Magnitudes from here on `nearest` does not round.
const BEYOND_NEAREST: f32 = 4_194_304.0;

/// What [`affine`] finds for each lane.
pub(super) struct Found<L: Lanes> {
    pub scale: L::Floats,
    pub min: L::Floats,
    /// Before the search ended in this scale and min, its code for x was the nearest of `inverse · (x + offset)`.
    pub start: Start<L::Floats>,
    /// Lanes for which none of this holds.
    pub odd: L::Mask,
}

/// From where a search got its codes: the nearest to `inverse · (x − least)`.
#[derive(Clone, Copy)]
pub(super) struct Start<F> {
    pub inverse: F,
    pub least: F,
}

/// [`fit_affine`](super::search::fit_affine).
#[inline(always)]
pub(super) fn affine<L: Lanes, const N: usize>(
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

/// The error of one weight: w · (scale · q + min − x)², or without the square.
#[inline(always)]
fn weighted_error<F: Floats>(search: AffineSearch, scale: F, min: F, q: F, x: F, weight: F) -> F {
    let difference = scale * q + min - x;
    weight * if search.absolute { difference.abs() } else { difference * difference }
}

/// The codes with which a search by [`affine`] in one lane ended.
#[inline(always)]
pub(super) fn codes_of_start<const N: usize>(search: AffineSearch, start: Start<f32>, x: &[f32; N]) -> [u8; N] {
    let mut codes = [0; N];
    for i in 0..N {
        let quotient = start.inverse * (x[i] - start.least);
        // Where the lane is not odd, limiting before rounding is the same as after it; and a NaN becomes 0.
        let limited = if quotient > 0.0 { quotient } else { 0.0 };
        codes[i] = nearest(limited.min(search.max as f32)) as u8;
    }
    codes
}

/// [`fit_positive`](super::search::fit_positive), for `x` that are not negative: gives d, the codes, and the odd lanes.
#[inline(always)]
pub(super) fn positive<L: Lanes, const N: usize>(
    l: L,
    x: &[L::Floats; N],
    weights: &[L::Floats; N],
    max: i32,
) -> (L::Floats, [L::Floats; N], L::Mask) {
    let (zero, one) = (l.splat(0.0), l.splat(1.0));
    let nowhere = zero.gt(zero);
    let max = max as f32;
    let levels = l.splat(max);
    let bound = l.splat(BEYOND_NEAREST);

    let mut largest = zero;
    let mut negative = nowhere;
    for &x in x {
        largest = largest.max(x);
        // A NaN, too, is not what this search is for.
        negative = negative | !x.ge(zero);
    }
    let negligible = l.splat(NEGLIGIBLE).gt(largest);
    let mut inverse = levels / largest;
    // Else infinite, or so small that products with it are not near whole numbers up to the largest.
    let mut odd = negative | (inverse * largest).not_lt(bound);
    let mut least = positive_error(x, weights, one / inverse, inverse, levels, zero);
    for step in (-4..=4).filter(|&step| step != 0) {
        let trial = l.splat(0.1 * step as f32 + max) / largest;
        let error = positive_error(x, weights, one / trial, trial, levels, zero);
        let better = error.lt(least);
        least = error.or_else(better, least);
        inverse = trial.or_else(better, inverse);
    }

    let mut codes = [zero; N];
    let (mut sum_xq, mut sum_qq) = (zero, zero);
    for i in 0..N {
        let q = (inverse * x[i]).round().min(levels);
        codes[i] = q;
        sum_xq = sum_xq + weights[i] * x[i] * q;
        sum_qq = sum_qq + weights[i] * q * q;
    }
    for _ in 0..5 {
        let mut moved = nowhere;
        for i in 0..N {
            let (w, q) = (weights[i], codes[i]);
            let xq = sum_xq - w * x[i] * q;
            let qq = sum_qq - w * q * q;
            let may_move = xq.gt(zero) & qq.gt(zero);
            let quotient = x[i] * qq / xq;
            odd = odd | (may_move & quotient.not_lt(bound));
            let new = quotient.round().min(levels);
            let xq = xq + w * x[i] * new;
            let qq = qq + w * new * new;
            let moves = may_move & new.ne(q) & (xq * xq * sum_qq).gt(sum_xq * sum_xq * qq);
            codes[i] = new.or_else(moves, q);
            sum_xq = xq.or_else(moves, sum_xq);
            sum_qq = qq.or_else(moves, sum_qq);
            moved = moved | moves;
        }
        // A lane that did not move in this round would not in the next.
        if !moved.any() {
            break;
        }
    }
    let scale = (sum_xq / sum_qq).or_else(sum_qq.gt(zero), zero);
    for code in &mut codes {
        *code = zero.or_else(negligible, *code);
    }
    (zero.or_else(negligible, scale), codes, odd & !(negligible & !negative))
}

/// Σ w (x − scale · q)², q being the nearest to `inverse · x`.
#[inline(always)]
fn positive_error<F: Floats, const N: usize>(
    x: &[F; N],
    weights: &[F; N],
    scale: F,
    inverse: F,
    levels: F,
    zero: F,
) -> F {
    let mut error = zero;
    for i in 0..N {
        let difference = x[i] - scale * (inverse * x[i]).round().min(levels);
        error = error + weights[i] * difference * difference;
    }
    error
}

/// |x| of each element.
#[inline(always)]
pub(super) fn magnitudes<F: Floats, const N: usize>(x: &[F; N]) -> [F; N] {
    let mut magnitudes = *x;
    for magnitude in &mut magnitudes {
        *magnitude = magnitude.abs();
    }
    magnitudes
}

/// x² of each element.
#[inline(always)]
pub(super) fn squares<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> [L::Floats; N] {
    let mut squares = [l.splat(0.0); N];
    for i in 0..N {
        squares[i] = x[i] * x[i];
    }
    squares
}

/// Σx² of each lane.
#[inline(always)]
pub(super) fn sum_of_squares<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let mut sum = l.splat(0.0);
    for &x in x {
        sum = sum + x * x;
    }
    sum
}

/// [`Rounding::codes`].
#[inline(always)]
pub(super) fn codes<L: Lanes, const N: usize, const PER: usize>(
    l: L,
    rounding: Rounding,
    x: &[f32; 256],
    scales: &[f32; PER],
    mins: &[f32; PER],
    searched: impl Fn(usize) -> [u8; N],
) -> [u8; 256] {
    let zero = l.splat(0.0);
    let (smallest, largest) = (l.splat(rounding.smallest as f32), l.splat(rounding.largest as f32));
    let mut odd = zero.gt(zero);
    let mut codes = [0; 256];
    for at in (0..256).step_by(L::LEN) {
        let (scale, min) = (l.spread::<N>(&scales[at / N..]), l.spread::<N>(&mins[at / N..]));
        let quotient = (l.load(&x[at..]) + min) / scale;
        odd = odd | (scale.ne(zero) & quotient.abs().not_lt(l.splat(BEYOND_NEAREST)));
        l.store_bytes(quotient.round().max(smallest).min(largest) - smallest, &mut codes[at..]);
    }
    if odd.any() {
        return rounding.codes(x, scales, mins, searched);
    }
    let (sub_codes, _) = codes.as_chunks_mut::<N>();
    for j in 0..PER {
        if scales[j] == 0.0 {
            sub_codes[j] = searched(j);
        }
    }
    codes
}

/// What [`symmetric`] finds for each lane.
pub(super) struct Symmetric<F> {
    pub scale: F,
    /// The code for x is the nearest to `inverse · x`, plus half; but 0 where this is 0.
    pub inverse: F,
}

/// [`fit_symmetric`](super::search::fit_symmetric), for finite `x`.
#[inline(always)]
pub(super) fn symmetric<L: Lanes, const N: usize>(
    l: L,
    half: i32,
    x: &[L::Floats; N],
    weights: &[L::Floats; N],
) -> Symmetric<L::Floats> {
    let zero = l.splat(0.0);
    let extreme = extreme(l, x);
    let mut wx = [zero; N];
    for i in 0..N {
        wx[i] = weights[i] * x[i];
    }
    let columns = Columns { x, weights, wx: &wx };

    let start = Trials { half: half as f32, above: true, below: false };
    let inverse = l.splat(-start.half) / extreme;
    let (sum_xq, sum_qq) = start.sums(l, inverse, columns);
    let scale = divide_or_zero(l, sum_xq, sum_qq);
    let mut best = Best { inverse, scale, gain: scale * sum_xq };
    // No product of a trial lies further from zero than half + 0.1 · step. So only from the fifth step on is one rounded to
    // less than the smallest code, and up to the sixth step down none to more than the largest.
    Trials { above: false, ..start }.run(l, -9..=-6, extreme, columns, &mut best);
    start.run(l, -5..=-1, extreme, columns, &mut best);
    start.run(l, 1..=4, extreme, columns, &mut best);
    Trials { below: true, ..start }.run(l, 5..=9, extreme, columns, &mut best);
    let negligible = l.splat(NEGLIGIBLE).gt(extreme.abs());
    Symmetric { scale: zero.or_else(negligible, best.scale), inverse: zero.or_else(negligible, best.inverse) }
}

/// Some of the trials of [`symmetric`].
#[derive(Clone, Copy)]
struct Trials {
    half: f32,
    /// Whether what is rounded may come out above the largest code, and below the smallest.
    above: bool,
    below: bool,
}

/// What the trials sum over: weights of the model, of the search, and their products.
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

/// The codes of [`symmetric`].
#[inline(always)]
pub(super) fn symmetric_codes<L: Lanes, const N: usize>(
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

/// The codes of [`symmetric`] in one lane.
#[inline(always)]
pub(super) fn symmetric_codes_of_lane<const N: usize>(half: i32, inverse: f32, x: &[f32; N]) -> [u8; N] {
    let mut codes = [0; N];
    if inverse != 0.0 {
        for i in 0..N {
            codes[i] = (nearest(inverse * x[i]).clamp(-half, half - 1) + half) as u8;
        }
    }
    codes
}

/// `a / b`, or 0 where `b` is.
#[inline(always)]
pub(super) fn divide_or_zero<L: Lanes>(l: L, a: L::Floats, b: L::Floats) -> L::Floats {
    let zero = l.splat(0.0);
    zero.or_else(b.ge(zero) & zero.ge(b), a / b)
}

/// The smallest and the largest element of each lane.
#[inline(always)]
pub(super) fn smallest_and_largest<F: Floats, const N: usize>(x: &[F; N]) -> (F, F) {
    let (mut smallest, mut largest) = (x[0], x[0]);
    for &x in &x[1..] {
        smallest = x.min(smallest);
        largest = x.max(largest);
    }
    (smallest, largest)
}

/// [`fit_symmetric_by_moves`](super::search::fit_symmetric_by_moves) of finite weights.
pub(super) struct Moves<L: Lanes, const N: usize, const HALF: i32> {
    x: [L::Floats; N],
    /// x², the weights of the search.
    w: [L::Floats; N],
    /// x³
    wx: [L::Floats; N],
    q: [L::Floats; N],
    sum_xq: L::Floats,
    sum_qq: L::Floats,
    negligible: L::Mask,
}

/// How one code would move, given all others.
struct Move<L: Lanes> {
    /// To this code.
    q: L::Floats,
    sum_xq: L::Floats,
    sum_qq: L::Floats,
    /// Where it is a move at all.
    differs: L::Mask,
    /// Where it is better than to stay.
    gains: L::Mask,
    /// Where it is considered at all.
    is_possible: L::Mask,
    /// Where the code is not the one that the scalar code finds, because the quotient is too large.
    is_far: L::Mask,
}

impl<L: Lanes, const N: usize, const HALF: i32> Moves<L, N, HALF> {
    /// Nothing yet.
    #[inline(always)]
    pub fn new(l: L) -> Self {
        let zero = l.splat(0.0);
        let zeros = [zero; N];
        let nowhere = zero.gt(zero);
        Self { x: zeros, w: zeros, wx: zeros, q: zeros, sum_xq: zero, sum_qq: zero, negligible: nowhere }
    }

    /// The start of the search, a row a lane: the first of `rows`, which has as many.
    #[inline(always)]
    pub fn start(&mut self, l: L, rows: &[[f32; N]]) {
        // In place: thousands of bytes do not move for nothing.
        let rows = &rows[..L::LEN];
        l.columns_into(
            #[inline(always)]
            |lane| &rows[lane],
            &mut self.x,
        );
        let x = &self.x;
        let (smallest, largest) = (l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        let extreme = extreme(l, x);
        let inverse = l.splat(-HALF as f32) / extreme;
        (self.sum_xq, self.sum_qq) = (l.splat(0.0), l.splat(0.0));
        for i in 0..N {
            let w = x[i] * x[i];
            let q = (inverse * x[i]).round().max(smallest).min(largest);
            self.sum_xq = self.sum_xq + w * x[i] * q;
            self.sum_qq = self.sum_qq + w * q * q;
            (self.w[i], self.wx[i], self.q[i]) = (w, w * x[i], q);
        }
        self.negligible = l.splat(NEGLIGIBLE).gt(extreme.abs());
    }

    #[inline(always)]
    fn evaluate(&self, l: L, i: usize) -> Move<L> {
        let zero = l.splat(0.0);
        let (smallest, largest) = (l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        let (x, w, wx, q) = (self.x[i], self.w[i], self.wx[i], self.q[i]);
        let xq = self.sum_xq - wx * q;
        let qq = self.sum_qq - w * q * q;
        let quotient = x * qq / xq;
        let new = quotient.round().max(smallest).min(largest);
        let sum_xq = xq + wx * new;
        let sum_qq = qq + w * new * new;
        Move {
            q: new,
            sum_xq,
            sum_qq,
            differs: new.ne(q),
            gains: (sum_xq * sum_xq * self.sum_qq).gt(self.sum_xq * self.sum_xq * sum_qq),
            is_possible: xq.gt(zero),
            is_far: quotient.abs().not_lt(l.splat(BEYOND_NEAREST)),
        }
    }

    /// The lanes in which the search may not end as it starts: those in which a code moves, or would but for a sum that is
    /// hardly ever zero, and those that may be odd. [`Self::settle`] tells them apart.
    #[inline(always)]
    pub fn unsettled(&self, l: L) -> L::Mask {
        let mut unsettled = l.splat(0.0).gt(l.splat(0.0));
        // While nothing moves, every code is judged by the same sums: there is no order to keep to.
        for i in 0..N {
            let step = self.evaluate(l, i);
            unsettled = unsettled | (step.is_possible & (step.differs & step.gains | step.is_far));
        }
        unsettled & !self.negligible
    }

    /// Searches for at most so many rounds (of which the search has five); gives the lanes that moved in the last of them,
    /// and the odd ones.
    #[inline(always)]
    pub fn settle(&mut self, l: L, rounds: usize) -> (L::Mask, L::Mask) {
        let nowhere = l.splat(0.0).gt(l.splat(0.0));
        let (mut moved, mut odd) = (nowhere, nowhere);
        for _ in 0..rounds {
            moved = nowhere;
            for i in 0..N {
                let step = self.evaluate(l, i);
                let moves = step.is_possible & step.differs & step.sum_qq.gt(l.splat(0.0)) & step.gains;
                self.q[i] = step.q.or_else(moves, self.q[i]);
                self.sum_xq = step.sum_xq.or_else(moves, self.sum_xq);
                self.sum_qq = step.sum_qq.or_else(moves, self.sum_qq);
                odd = odd | (step.is_possible & step.is_far);
                moved = moved | moves;
            }
            // A lane that did not move in this round would not in the next.
            if !moved.any() {
                break;
            }
        }
        (moved & !self.negligible, odd & !self.negligible)
    }

    /// d
    #[inline(always)]
    pub fn scale(&self, l: L) -> L::Floats {
        let zero = l.splat(0.0);
        let scale = (self.sum_xq / self.sum_qq).or_else(self.sum_qq.gt(zero), zero);
        zero.or_else(self.negligible, scale)
    }
}

/// The first element of the largest magnitude, with its sign, in each lane.
#[inline(always)]
pub(super) fn extreme<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let (mut magnitude, mut extreme) = (l.splat(0.0), l.splat(0.0));
    for &x in x {
        let larger = x.abs().gt(magnitude);
        magnitude = x.abs().or_else(larger, magnitude);
        extreme = x.or_else(larger, extreme);
    }
    extreme
}
