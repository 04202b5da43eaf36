//! x ≈ d·value with the 16 unevenly spaced values of a codebook. The search of ggml's `quantize_row_iq4_nl_impl`.

use super::numbers::{NEGLIGIBLE, extreme, extreme_lanes};
use crate::lanes::{Floats, Lanes};
use crate::quant::rounding::table::{NEAREST_VALUE, VALUES, nearest_codes};

/// x ≈ d·value. Returns the d that leaves the least Σ w (x − d·value)² among 16 that are tried.
///
/// The trials put the weight of largest magnitude at the first value, and at -7 to 7 steps from it. Given the codes, d
/// follows from least squares. Returns 0 if all of `x` is negligible.
pub fn fit(x: &[f32; 32], weights: &[f32; 32]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        return 0.0;
    }
    let first = f32::from(VALUES[0]);
    let sums = |inverse: f32| {
        let codes = nearest_codes(x, inverse);
        let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
        for i in 0..32 {
            let q = f32::from(VALUES[usize::from(codes[i] & 15)]);
            let wq = weights[i] * q;
            sum_xq += wq * x[i];
            sum_qq += wq * q;
        }
        (sum_xq, sum_qq)
    };
    let (sum_xq, sum_qq) = sums(1.0 / (-extreme / first));
    let mut scale = if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 };
    let mut gain = scale * sum_xq;
    for step in -7..=7 {
        let (sum_xq, sum_qq) = sums((step as f32 + first) / extreme);
        if sum_qq > 0.0 && sum_xq * sum_xq > gain * sum_qq {
            scale = sum_xq / sum_qq;
            gain = scale * sum_xq;
        }
    }
    scale
}

/// [`fit`], a sub-block per lane.
#[inline(always)]
pub fn fit_lanes<L: Lanes>(l: L, x: &[L::Floats; 32], weights: &[L::Floats; 32]) -> L::Floats {
    let zero = l.splat(0.0);
    let extreme = extreme_lanes(l, x);
    let first = f32::from(VALUES[0]);
    let (sum_xq, sum_qq) = sums_lanes(l, l.splat(1.0) / (extreme / l.splat(-first)), x, weights);
    let mut scale = (sum_xq / sum_qq).or_else(sum_qq.gt(zero), zero);
    let mut gain = scale * sum_xq;
    for step in -7..=7 {
        let (sum_xq, sum_qq) = sums_lanes(l, l.splat(step as f32 + first) / extreme, x, weights);
        let better = sum_qq.gt(zero) & (sum_xq * sum_xq).gt(gain * sum_qq);
        scale = (sum_xq / sum_qq).or_else(better, scale);
        gain = (scale * sum_xq).or_else(better, gain);
    }
    zero.or_else(l.splat(NEGLIGIBLE).gt(extreme.abs()), scale)
}

/// (Σ w·x·q, Σ w·q²), q being the value nearest to `inverse · x`.
#[inline(always)]
fn sums_lanes<L: Lanes>(
    l: L,
    inverse: L::Floats,
    x: &[L::Floats; 32],
    weights: &[L::Floats; 32],
) -> (L::Floats, L::Floats) {
    let (mut sum_xq, mut sum_qq) = (l.splat(0.0), l.splat(0.0));
    for i in 0..32 {
        // No trial takes any x further from zero than seven beyond the first value: within the bound of the stairs.
        let q = l.stairs(&NEAREST_VALUE, inverse * x[i]);
        let wq = weights[i] * q;
        sum_xq = sum_xq + wq * x[i];
        sum_qq = sum_qq + wq * q;
    }
    (sum_xq, sum_qq)
}
