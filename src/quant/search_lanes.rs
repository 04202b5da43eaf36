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
//! | [`Moves`]                     | 13 to start, 10 for a look at all codes, 18 for a move and the look after it | see there | 40, if one of five sub-blocks moves |
//!
//! The first three wait for nothing but a sum's last addition. [`Moves`] gathers, moves and looks again: less arithmetic
//! than the others, more waiting and copying.

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
    mins: Option<&[f32; PER]>,
    searched: impl Fn(usize) -> [u8; N],
) -> [u8; 256] {
    let (smallest, largest) = (l.splat(rounding.smallest as f32), l.splat(rounding.largest as f32));
    let mut odd = false;
    let mut divisors = [0.0; PER];
    for j in 0..PER {
        // What a scale of zero gives is not used.
        divisors[j] = if scales[j] == 0.0 { 1.0 } else { scales[j] };
        let is_finite = divisors[j].abs() < f32::INFINITY && mins.is_none_or(|mins| mins[j].abs() < f32::INFINITY);
        odd |= !is_finite;
    }
    let mut farthest = l.splat(0.0);
    let mut codes = [0; 256];
    for at in (0..256).step_by(L::LEN) {
        let mut numerator = l.load(&x[at..]);
        if let Some(mins) = mins {
            numerator = numerator + l.spread::<N>(&mins[at / N..]);
        }
        let quotient = numerator / l.spread::<N>(&divisors[at / N..]);
        farthest = quotient.abs().max(farthest);
        l.store_bytes(quotient.round().max(smallest).min(largest) - smallest, &mut codes[at..]);
    }
    if odd | farthest.not_lt(l.splat(BEYOND_NEAREST)).any() {
        return rounding.codes(x, scales, mins.unwrap_or(&[0.0; PER]), searched);
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
///
/// Each move of a code changes the sums by which the next is judged: done code by code, that is a wait of some 60 cycles
/// (a division, seven products and sums, a comparison) sixteen times a round, nearly always to find that nothing moves. So
/// all codes are looked at first, and then each lane considers the one code of its own that may move next.
///
/// ```text
/// S = Σ w x q,  Q = Σ w q²        where a code wants to go, given the others:  x (Q − w q²) / (S − w x q)
///
/// x (Q − w q²) / (S − w x q) − q  =  (x Q/S − q) / (1 − w x q / S)        as w q² · x and w x q · q cancel
/// ```
///
/// A code stays where this is between −½ and ½, or where it is at an end of the range and wants to go beyond: so the look
/// takes no division a code and no sum without the code. It compares with a margin (0.0001) far above what rounding can do
/// to either side (some 30 units in the last place): a code that it passes over does not move in the scalar search either.
pub(super) struct Moves<L: Lanes, const N: usize, const HALF: i32> {
    x: [L::Floats; N],
    q: [L::Floats; N],
    /// w x q, with w = x²
    share: [L::Floats; N],
    /// S
    sum_xq: L::Floats,
    /// Q
    sum_qq: L::Floats,
    /// The element of the largest magnitude.
    extreme: L::Floats,
    /// The code from which on this round goes.
    place: L::Floats,
    /// Rounds that are over.
    rounds: L::Floats,
}

/// Whole numbers as floats: to load one is less than to convert one.
static NUMBERS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// What a look at all codes finds.
#[derive(Clone, Copy)]
pub(super) struct Look<F, M> {
    /// The next code that may move; any number where none may.
    pub next: F,
    /// Where there is one: elsewhere the search is over.
    pub unsettled: M,
    /// Where this cannot be told, and the scalar code has to do it.
    pub odd: M,
}

impl<L: Lanes, const N: usize, const HALF: i32> Moves<L, N, HALF> {
    const ROUNDS: f32 = 5.0;

    /// Nothing yet.
    #[inline(always)]
    pub fn new(l: L) -> Self {
        let zero = l.splat(0.0);
        let zeros = [zero; N];
        Self { x: zeros, q: zeros, share: zeros, sum_xq: zero, sum_qq: zero, extreme: zero, place: zero, rounds: zero }
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
        let (zero, smallest, largest) = (l.splat(0.0), l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        self.extreme = extreme(l, x);
        let inverse = l.splat(-HALF as f32) / self.extreme;
        let (mut sum_xq, mut sum_qq) = (zero, zero);
        for i in 0..N {
            let w = x[i] * x[i];
            let q = (inverse * x[i]).round().max(smallest).min(largest);
            let share = w * x[i] * q;
            sum_xq = sum_xq + share;
            sum_qq = sum_qq + w * q * q;
            (self.q[i], self.share[i]) = (q, share);
        }
        (self.sum_xq, self.sum_qq, self.place, self.rounds) = (sum_xq, sum_qq, zero, zero);
    }

    /// Looks at all codes. `BEGINS` says that no code was considered yet.
    #[inline(always)]
    pub fn look<const BEGINS: bool>(&mut self, l: L) -> Look<L::Floats, L::Mask> {
        let (zero, smallest, largest) = (l.splat(0.0), l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        let nowhere = zero.gt(zero);
        let slope = self.sum_qq / self.sum_xq;
        let half = l.splat(0.5) / self.sum_xq;
        let margin = l.splat(0.4999);
        // Codes before the place come after the others, in the next round.
        let (round, none) = (l.splat(N as f32), l.splat(2.0 * N as f32));
        let mut next = none;
        for i in (0..N).rev() {
            let wanted = (self.x[i] * slope).max(smallest).min(largest);
            let may_move = (wanted - self.q[i]).abs().not_lt(margin - self.share[i] * half);
            let number = l.splat(NUMBERS[i]);
            let turn = match BEGINS {
                true => number,
                false => number.or_else(number.ge(self.place), number + round),
            };
            next = turn.min(next).or_else(may_move, next);
        }
        let any = none.gt(next);
        let mut is_over = nowhere;
        if !BEGINS {
            let wraps = next.ge(round);
            next = (next - round).or_else(wraps, next);
            self.rounds = (self.rounds + l.splat(1.0)).or_else(wraps, self.rounds);
            is_over = self.rounds.ge(l.splat(Self::ROUNDS));
        }
        let (positive, negligible) = (!zero.ge(self.sum_xq), self.negligible(l));
        // As long as S is positive, and the products of three weights keep their bits, and no quotient leaves the range of
        // `nearest`. All shares have one sign: if it is minus, a sum without one of them is not above zero, and no code
        // ever moves.
        let fine = self.sum_xq.gt(l.splat(1e-30)) & l.splat(1e30).gt(self.sum_xq);
        let odd = !fine | (self.extreme.abs() * slope).not_lt(l.splat(64.0));
        Look { next, unsettled: any & !is_over & positive & !negligible, odd: odd & positive & !negligible }
    }

    /// Moves the code that `look` found in each lane, where that is better than to stay. Gives the odd lanes.
    #[inline(always)]
    pub fn step(&mut self, l: L, look: Look<L::Floats, L::Mask>) -> L::Mask {
        let (zero, smallest, largest) = (l.splat(0.0), l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        // No code has this number.
        let next = look.next.or_else(look.unsettled, l.splat(-1.0));
        let (mut x, mut q) = (zero, zero);
        for i in 0..N {
            let is_next = !next.ne(l.splat(NUMBERS[i]));
            x = self.x[i].or_else(is_next, x);
            q = self.q[i].or_else(is_next, q);
        }
        let w = x * x;
        let wx = w * x;
        let xq = self.sum_xq - wx * q;
        let qq = self.sum_qq - w * q * q;
        let quotient = x * qq / xq;
        let new = quotient.round().max(smallest).min(largest);
        let share = wx * new;
        let sum_xq = xq + share;
        let sum_qq = qq + w * new * new;
        let gains = (sum_xq * sum_xq * self.sum_qq).gt(self.sum_xq * self.sum_xq * sum_qq);
        let is_possible = look.unsettled & xq.gt(zero);
        let moves = is_possible & new.ne(q) & sum_qq.gt(zero) & gains;
        self.sum_xq = sum_xq.or_else(moves, self.sum_xq);
        self.sum_qq = sum_qq.or_else(moves, self.sum_qq);
        self.place = (next + l.splat(1.0)).or_else(look.unsettled, self.place);
        let moving = next.or_else(moves, l.splat(-1.0));
        for i in 0..N {
            let is_moving = !moving.ne(l.splat(NUMBERS[i]));
            self.q[i] = new.or_else(is_moving, self.q[i]);
            self.share[i] = share.or_else(is_moving, self.share[i]);
        }
        is_possible & quotient.abs().not_lt(l.splat(BEYOND_NEAREST))
    }

    /// d
    #[inline(always)]
    pub fn scale(&self, l: L) -> L::Floats {
        let zero = l.splat(0.0);
        let scale = (self.sum_xq / self.sum_qq).or_else(self.sum_qq.gt(zero), zero);
        zero.or_else(self.negligible(l), scale)
    }

    #[inline(always)]
    fn negligible(&self, l: L) -> L::Mask {
        l.splat(NEGLIGIBLE).gt(self.extreme.abs())
    }
}

/// The first element of the largest magnitude, with its sign, in each lane.
#[inline(always)]
pub(super) fn extreme<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let (smallest, largest) = smallest_and_largest(x);
    let beneath = l.splat(0.0) - smallest;
    // Both signs with one magnitude: which is first?
    if (largest.gt(l.splat(0.0)) & !largest.ne(beneath)).any() {
        return first_extreme(l, x);
    }
    // Of zeros the positive one.
    largest.or_else(largest.gt(beneath), smallest + l.splat(0.0))
}

#[inline(always)]
fn first_extreme<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let (mut magnitude, mut extreme) = (l.splat(0.0), l.splat(0.0));
    for &x in x {
        let larger = x.abs().gt(magnitude);
        magnitude = x.abs().or_else(larger, magnitude);
        extreme = x.or_else(larger, extreme);
    }
    extreme
}
