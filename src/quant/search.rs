//! The searches for scales that the formats share.
//!
//! A sub-block of weights x is stored as small whole numbers q and one or two real numbers. Given q, the best real numbers
//! follow from least squares with weights w:
//!
//! ```text
//! x ≈ d·q        minimise Σ w (x − d·q)²        d = Σwxq / Σwq²      what is left: Σwx² − (Σwxq)² / Σwq²
//! x ≈ d·q + m    minimise Σ w (x − d·q − m)²    D = Σw Σwq² − (Σwq)²
//!                                               d = (Σw Σwxq − Σwx Σwq) / D
//!                                               m = (Σwq² Σwx − Σwq Σwxq) / D
//! ```
//!
//! Given d (and m), the best q follow by rounding. What remains is a search over starting scales, and each function here
//! is one such search. In all of them the sums run in the order of the weights and the operations are grouped as written,
//! because the bytes depend on both.
//!
//! Source: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants` and `make_qp_quants` in ggml's
//! `ggml-quants.c`.

use std::array;

/// Sub-blocks (or their scales) whose largest magnitude is below this count as zero.
pub(super) const NEGLIGIBLE: f32 = 1e-15;

/// `x` rounded to the nearest whole number, ties to even, for magnitudes up to 2^22.
///
/// Beyond that the result is some number from -2^22 to 2^22 - 1; for infinities it is -2^22, for a NaN that a computation
/// made it is 0. Searches reach those on weights near the ends of single precision, and then the bytes depend on it.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    // The last bit of 1.5 · 2^23 is worth one, so the addition rounds, and leaves 2^22 + round(x) in the mantissa.
    const ONE_AND_A_HALF_TIMES_2_TO_THE_23: f32 = 12_582_912.0;
    ((x + ONE_AND_A_HALF_TIMES_2_TO_THE_23).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// `x` without its fraction, as a byte: its low 8 bits in two's complement. 0 for infinities, NaN, and from 2^31 on.
#[inline(always)]
pub(super) fn truncate_to_byte(x: f32) -> u8 {
    // A cast alone would saturate, and turn infinity into 255.
    let whole = if x.abs() < 2_147_483_648.0 { x as i32 } else { 0 };
    whole as u8
}

/// The first element of the largest magnitude, with its sign; 0 where all are zero.
#[inline]
pub(super) fn extreme(x: &[f32]) -> f32 {
    let (mut magnitude, mut extreme) = (0.0, 0.0);
    for &x in x {
        if x.abs() > magnitude {
            (magnitude, extreme) = (x.abs(), x);
        }
    }
    extreme
}

/// The smallest and the largest element.
#[inline]
pub(super) fn smallest_and_largest<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(smallest, largest), &x| {
        (if x < smallest { x } else { smallest }, if x > largest { x } else { largest })
    })
}

/// Σx².
#[inline]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x * x)
}

/// The search's weights where there is importance: importance · √(variance + x²).
///
/// The root lets large weights count more, as they do in a product with an activation, but the variance (of the block or
/// the row) keeps small ones from counting nothing.
#[inline]
pub(super) fn importance_weights<const N: usize>(importance: &[f32; N], variance: f32, x: &[f32; N]) -> [f32; N] {
    array::from_fn(|i| importance[i] * (variance + x[i] * x[i]).sqrt())
}

/// `a / b`, or 0 where `b` is.
#[inline(always)]
pub(super) fn divide_or_zero(a: f32, b: f32) -> f32 {
    if b != 0.0 { a / b } else { 0.0 }
}

/// x ≈ d·q, with whole q from `-half` to `half - 1`: gives d, and `q + half` in `codes`.
///
/// One end of the range is a step longer, so the weight of largest magnitude is put there; then 18 scales around that
/// one are tried, from `half - 0.9` to `half + 0.9` steps, and the one that leaves the least squared error stays.
/// Where all of `x` is negligible d and the codes are 0.
pub(super) fn fit_symmetric<const N: usize>(x: &[f32; N], weights: &[f32; N], half: i32, codes: &mut [u8; N]) -> f32 {
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

/// x ≈ d·q, with whole q from `-half` to `half - 1` and weights x²: gives d, and `q + half` in `codes`.
///
/// Starts from the scale that puts the weight of largest magnitude at the end of the range, then moves one q at a time to
/// where it is best given all others, for at most five rounds. Where all of `x` is negligible d and the codes are 0.
pub(super) fn fit_symmetric_by_moves<const N: usize>(x: &[f32; N], half: i32, codes: &mut [u8; N]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        *codes = [0; N];
        return 0.0;
    }
    let inverse = -half as f32 / extreme;
    let mut q: [f32; N] = array::from_fn(|i| nearest(inverse * x[i]).clamp(-half, half - 1) as f32);
    let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
    for i in 0..N {
        let w = x[i] * x[i];
        sum_xq += w * x[i] * q[i];
        sum_qq += w * q[i] * q[i];
    }
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..N {
            let w = x[i] * x[i];
            let mut xq = sum_xq - w * x[i] * q[i];
            if xq > 0.0 {
                let mut qq = sum_qq - w * q[i] * q[i];
                let new = nearest(x[i] * qq / xq).clamp(-half, half - 1) as f32;
                if new != q[i] {
                    xq += w * x[i] * new;
                    qq += w * new * new;
                    if qq > 0.0 && xq * xq * sum_qq > sum_xq * sum_xq * qq {
                        (q[i], sum_xq, sum_qq) = (new, xq, qq);
                        moved = true;
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    for i in 0..N {
        codes[i] = (q[i] as i32 + half) as u8;
    }
    if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 }
}

/// x ≈ d·q, with whole q from 0 to `max`, for x that are themselves the scales of sub-blocks: gives d, and q in `codes`.
///
/// The best of nine scales, from `max - 0.4` to `max + 0.4` steps for the largest, by Σ w (x − d·q)²; then single moves as
/// in [`fit_symmetric_by_moves`]. A negative x (rounding in the search before can give one) takes its place in the sums
/// with a negative q, but is stored as that q's low byte.
pub(super) fn fit_positive<const N: usize>(x: &[f32; N], weights: &[f32; N], max: i32, codes: &mut [u8; N]) -> f32 {
    let largest = x.iter().fold(0.0, |largest, &x| if largest > x { largest } else { x });
    if largest < NEGLIGIBLE {
        *codes = [0; N];
        return 0.0;
    }
    let error = |scale: f32, q: [f32; N]| {
        let mut error = 0.0;
        for i in 0..N {
            let difference = x[i] - scale * q[i];
            error += weights[i] * difference * difference;
        }
        error
    };

    let mut inverse = max as f32 / largest;
    let mut least = error(1.0 / inverse, x.map(|x| f32::from(nearest(inverse * x) as u8)));
    for step in (-4..=4).filter(|&step| step != 0) {
        let trial = (0.1 * step as f32 + max as f32) / largest;
        let error = error(1.0 / trial, x.map(|x| nearest(trial * x).min(max) as f32));
        if error < least {
            least = error;
            inverse = trial;
        }
    }

    let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
    for i in 0..N {
        let q = nearest(inverse * x[i]).min(max);
        codes[i] = q as u8;
        sum_xq += weights[i] * x[i] * q as f32;
        sum_qq += weights[i] * q as f32 * q as f32;
    }
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..N {
            let (w, q) = (weights[i], f32::from(codes[i]));
            let mut xq = sum_xq - w * x[i] * q;
            let mut qq = sum_qq - w * q * q;
            if xq > 0.0 && qq > 0.0 {
                let new = nearest(x[i] * qq / xq).min(max);
                if new != i32::from(codes[i]) {
                    xq += w * x[i] * new as f32;
                    qq += w * new as f32 * new as f32;
                    if xq * xq * sum_qq > sum_xq * sum_xq * qq {
                        (codes[i], sum_xq, sum_qq) = (new as u8, xq, qq);
                        moved = true;
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 }
}

/// What [`fit_affine`] searches: how many scales, and how error and rounding are defined.
#[derive(Clone, Copy)]
pub(super) struct AffineSearch {
    /// The largest q.
    pub max: i32,
    /// Scales are tried that spread the range over `max + first`, `max + first + step`, ... steps.
    pub first: f32,
    /// See [`Self::first`].
    pub step: f32,
    /// How many scales are tried.
    pub tries: i32,
    /// Whether the error of a weight is |x − d·q − m|, not its square.
    pub absolute: bool,
    /// Whether a trial's quotient is limited to 0..=`max` before it is rounded, not after.
    ///
    /// The two differ only where the quotient leaves [`nearest`]'s range: while the range of x has shrunk to almost
    /// nothing, as it may when weights are zero.
    pub limit_first: bool,
}

impl AffineSearch {
    /// What every format with codes from 0 to `max` does where there is importance.
    pub const fn weighted(max: i32) -> Self {
        Self { max, first: -0.9, step: 0.05, tries: 37, absolute: false, limit_first: true }
    }
}

/// An affine code's two real numbers: x ≈ `scale`·q − `min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    pub scale: f32,
    /// At least 0: the range of q always reaches weight zero from below.
    pub min: f32,
}

/// x ≈ d·q + m, with whole q from 0 to `search.max` and m ≤ 0: gives d and −m, and q in `codes`.
///
/// Starts from the smallest and largest x. Then, for each trial scale, rounds to q, solves for d and m as in the module's
/// heading (where m would come out positive it is 0, and d = Σwxq / Σwq²) and keeps what leaves the least error. The
/// smallest x of later trials is the m that is best so far. Where all x are equal and not negative, or all zero, the codes
/// are 0 and so is d.
#[inline]
pub(super) fn fit_affine<const N: usize>(
    search: AffineSearch,
    x: &[f32; N],
    weights: &[f32; N],
    codes: &mut [u8; N],
) -> Affine {
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
                // Written so that a NaN becomes 0.
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

/// How the codes of a block follow from its scales as stored: the nearest to (x + min) / scale, from `smallest` to
/// `largest`, less `smallest`.
#[derive(Clone, Copy)]
pub(super) struct Rounding {
    pub smallest: i32,
    pub largest: i32,
}

impl Rounding {
    /// The codes of `x`, in `PER` sub-blocks of `N`. Where a sub-block's scale is 0 they are those that its search ended
    /// with: `searched` gives them.
    pub fn codes<const N: usize, const PER: usize>(
        self,
        x: &[f32; 256],
        scales: &[f32; PER],
        mins: &[f32; PER],
        searched: impl Fn(usize) -> [u8; N],
    ) -> [u8; 256] {
        let mut codes = [0; 256];
        let (sub_blocks, _) = x.as_chunks::<N>();
        let (sub_codes, _) = codes.as_chunks_mut::<N>();
        for j in 0..PER {
            sub_codes[j] = match scales[j] != 0.0 {
                true => sub_blocks[j].map(|x| self.code((x + mins[j]) / scales[j])),
                false => searched(j),
            };
        }
        codes
    }

    #[inline(always)]
    fn code(self, quotient: f32) -> u8 {
        (nearest(quotient).clamp(self.smallest, self.largest) - self.smallest) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::samples::Random;

    /// Σ w (x − d·q − m)² in double precision.
    fn squared_error(x: &[f32], weights: &[f32], q: impl Fn(usize) -> f64, d: f32, m: f32) -> f64 {
        let square = |i: usize| {
            let difference = f64::from(x[i]) - f64::from(d) * q(i) - f64::from(m);
            f64::from(weights[i]) * difference * difference
        };
        (0..x.len()).map(square).sum()
    }

    #[test]
    fn nearest_rounds_ties_to_even_and_never_panics() {
        for (x, wanted) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (0.49999997, 0), (4_194_303.0, 4_194_303)]
        {
            assert_eq!(nearest(x), wanted, "{x}");
        }
        assert_eq!(nearest(f32::INFINITY), -0x0040_0000);
        for x in [f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN] {
            assert!((-0x0040_0000..=0x003f_ffff).contains(&nearest(x)));
        }
    }

    #[test]
    fn truncation_drops_the_fraction_and_makes_nothing_of_infinity() {
        for (x, wanted) in
            [(0.9, 0), (15.99, 15), (255.5, 255), (256.0, 0), (-1.5, 255), (f32::INFINITY, 0), (f32::NAN, 0), (4e9, 0)]
        {
            assert_eq!(truncate_to_byte(x), wanted, "{x}");
        }
    }

    #[test]
    fn the_symmetric_search_is_never_worse_than_its_start() {
        let mut random = Random::new(1);
        for _ in 0..2000 {
            let x: [f32; 16] = array::from_fn(|_| random.normal());
            let weights: [f32; 16] = array::from_fn(|_| random.unit());
            let mut codes = [0; 16];
            let d = fit_symmetric(&x, &weights, 8, &mut codes);
            let found = squared_error(&x, &weights, |i| f64::from(codes[i]) - 8.0, d, 0.0);
            let start = -extreme(&x) / 8.0;
            let plain = |i: usize| f64::from((x[i] / start).round().clamp(-8.0, 7.0));
            assert!(found <= squared_error(&x, &weights, plain, start, 0.0) * 1.0001);
        }
    }

    #[test]
    fn the_affine_search_is_never_worse_than_smallest_to_largest() {
        let mut random = Random::new(2);
        for _ in 0..2000 {
            let x: [f32; 32] = array::from_fn(|_| random.normal() + 0.5);
            let weights: [f32; 32] = array::from_fn(|_| random.unit());
            let mut codes = [0; 32];
            let Affine { scale, min } = fit_affine(AffineSearch::weighted(15), &x, &weights, &mut codes);
            assert!(min >= 0.0);
            let found = squared_error(&x, &weights, |i| f64::from(codes[i]), scale, -min);
            let low = x.iter().fold(0.0f32, |a, &b| a.min(b));
            let step = (x.iter().fold(f32::MIN, |a, &b| a.max(b)) - low) / 15.0;
            let plain = |i: usize| f64::from(((x[i] - low) / step).round());
            assert!(found <= squared_error(&x, &weights, plain, step, low) * 1.0001);
        }
    }

    #[test]
    fn the_searches_find_codes_that_fit_exactly() {
        let mut codes = [0; 16];
        let whole: [f32; 16] = array::from_fn(|i| i as f32);
        let even = [1.0; 16];

        let d = fit_symmetric(&whole.map(|q| (q - 8.0) * 0.5), &even, 8, &mut codes);
        assert_eq!((d, codes.map(f32::from)), (0.5, whole));

        let d = fit_positive(&whole.map(|q| q * 0.25), &even, 15, &mut codes);
        assert_eq!((d, codes.map(f32::from)), (0.25, whole));

        let three_bits: [f32; 16] = array::from_fn(|i| (i % 8) as f32);
        let d = fit_symmetric_by_moves(&three_bits.map(|q| (q - 4.0) * 0.5), 4, &mut codes);
        assert_eq!((d, codes.map(f32::from)), (0.5, three_bits));

        let affine = fit_affine(AffineSearch::weighted(15), &whole.map(|q| q * 0.5 - 3.0), &even, &mut codes);
        assert_eq!((affine, codes.map(f32::from)), (Affine { scale: 0.5, min: 3.0 }, whole));
    }
}
