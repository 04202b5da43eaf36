//! x ≈ d·q with whole q from 0 to max, for the scales of sub-blocks. ggml's `make_qp_quants`.

use super::numbers::{BEYOND_NEAREST, NEGLIGIBLE, nearest};
use crate::lanes::{Floats, Lanes, Mask};

/// x ≈ d·q, with whole q from 0 to `max`, for x that are themselves the scales of sub-blocks. Returns d, and writes q to `codes`.
///
/// Takes the best of nine scales, from `max - 0.4` to `max + 0.4` steps for the largest x, by Σ w (x − d·q)². Then
/// makes single moves as in [`moves::fit`](super::moves::fit). A negative x (rounding in the earlier search can cause
/// one) counts in the sums with a negative q, but is stored as the low byte of that q.
pub fn fit<const N: usize>(x: &[f32; N], weights: &[f32; N], max: i32, codes: &mut [u8; N]) -> f32 {
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

/// [`fit`] in each lane, for `x` that are not negative. Returns d, the codes, and the odd lanes.
#[inline(always)]
pub fn fit_lanes<L: Lanes, const N: usize>(
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
        // NaN is not supported by this search either.
        negative = negative | !x.ge(zero);
    }
    let negligible = l.splat(NEGLIGIBLE).gt(largest);
    let mut inverse = levels / largest;
    // Otherwise it is infinite, or so small that products with it are not whole numbers up to the largest code.
    let mut odd = negative | (inverse * largest).not_lt(bound);
    let mut least = error_lanes(x, weights, one / inverse, inverse, levels, zero);
    for step in (-4..=4).filter(|&step| step != 0) {
        let trial = l.splat(0.1 * step as f32 + max) / largest;
        let error = error_lanes(x, weights, one / trial, trial, levels, zero);
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
        // A lane that did not move in this round would not move in the next.
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
fn error_lanes<F: Floats, const N: usize>(x: &[F; N], weights: &[F; N], scale: F, inverse: F, levels: F, zero: F) -> F {
    let mut error = zero;
    for i in 0..N {
        let difference = x[i] - scale * (inverse * x[i]).round().min(levels);
        error = error + weights[i] * difference * difference;
    }
    error
}
