//! Quantiles of the normal and of Student's distribution, with the same bits on every machine.
//!
//! They use only operations that IEEE 754 defines, and [`exp`], because the system's own functions may differ in the
//! last bit.

use crate::base::math::exp;

/// Returns the `p` quantile of the normal distribution, to about 1e-14.
pub fn normal_quantile(p: f64) -> f64 {
    solve(normal_share, p, 9.0)
}

/// Returns the `p` quantile of Student's distribution with `df` degrees of freedom, for |t| up to 1e6.
pub fn student_quantile(p: f64, df: usize) -> f64 {
    solve(|t| student_share(t, df), p, 1e6)
}

/// Returns the share of the normal distribution below `x`.
///
/// `1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + ...)`, Abramowitz and Stegun 26.2.11.
pub(super) fn normal_share(x: f64) -> f64 {
    const ROOT_TAU: f64 = 2.506_628_274_631_000_7;
    let (mut sum, mut term, mut k) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    0.5 + sum * exp(-0.5 * x * x) / ROOT_TAU
}

/// Returns the share of Student's distribution below `t`, by the finite sums of Abramowitz and Stegun 26.7.3 and
/// 26.7.4.
///
/// <https://personal.math.ubc.ca/~cbm/aands/page_948.htm>
fn student_share(t: f64, df: usize) -> f64 {
    let root = (df as f64).sqrt();
    let hypotenuse = (df as f64 + t * t).sqrt();
    let (sine, cosine) = (t / hypotenuse, root / hypotenuse);
    // 1 + a cos² + a b cos⁴ + ... with a, b, ... = 1/2, 3/4, ... if df is even, and 2/3, 4/5, ... if it is odd.
    let mut sum = 0.0;
    let mut term = 1.0;
    let mut k = df % 2;
    while k + 2 <= df {
        sum += term;
        term *= (k + 1) as f64 / (k + 2) as f64 * cosine * cosine;
        k += 2;
    }
    let middle = if df.is_multiple_of(2) {
        sine * sum
    } else {
        std::f64::consts::FRAC_2_PI * (arc_tangent(t / root) + sine * cosine * sum)
    };
    0.5 + 0.5 * middle
}

/// Returns the arc tangent of `x`: the angle is halved four times, then computed by its series.
fn arc_tangent(x: f64) -> f64 {
    let mut half = x;
    for _ in 0..4 {
        half /= 1.0 + (1.0 + half * half).sqrt();
    }
    let square = half * half;
    let mut sum = 0.0;
    for odd in (0..12).rev().map(|i| 2 * i + 1) {
        sum = 1.0 / f64::from(odd) - sum * square;
    }
    16.0 * half * sum
}

/// Returns the point between `-far` and `far` at which the increasing function `share` reaches `p`.
fn solve(share: impl Fn(f64) -> f64, p: f64, far: f64) -> f64 {
    let (mut low, mut high) = (-far, far);
    // Not down to neighbouring floats, because around 0 that would take a thousand halvings.
    while high - low > 1e-15 * (1.0 + high.abs()) {
        let middle = 0.5 * (low + high);
        if share(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_printed_tables() {
        for (p, x) in [(0.5, 0.0), (0.95, 1.644_853_626_951), (0.975, 1.959_963_984_540), (0.025, -1.959_963_984_540)] {
            assert!((normal_quantile(p) - x).abs() < 1e-11, "{p}");
        }
        // NIST's table of Student's distribution, <https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm>
        let table = [
            (0.975, 1, 12.706),
            (0.975, 2, 4.303),
            (0.975, 3, 3.182),
            (0.975, 7, 2.365),
            (0.95, 10, 1.812),
            (0.995, 23, 2.807),
            (0.975, 98, 1.984),
            (0.975, 100, 1.984),
            (0.025, 5, -2.571),
        ];
        for (p, df, t) in table {
            assert!((student_quantile(p, df) - t).abs() < 5e-4 * (1.0 + 1e-9), "{p} {df}: {}", student_quantile(p, df));
        }
        assert!((student_quantile(0.975, 100_000) - normal_quantile(0.975)).abs() < 1e-4);
    }

    #[test]
    fn shares_are_the_integrals_of_the_densities() {
        // Simpson's rule on the density (1 + t²/ν)^-((ν+1)/2), normed by the integral itself.
        for df in [1, 2, 3, 4, 7, 10, 23] {
            let density = |t: f64| (1.0 + t * t / df as f64).powf(-0.5 * (df as f64 + 1.0));
            // t = tan θ makes the range finite.
            let integral = |to: f64| {
                let (a, b, n) = (-std::f64::consts::FRAC_PI_2 + 1e-9, to, 20_000);
                let h = (b - a) / f64::from(n);
                let at = |i: i32| {
                    let angle: f64 = a + h * f64::from(i);
                    density(angle.tan()) / angle.cos().powi(2)
                };
                (1..n).map(|i| at(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum::<f64>() * h / 3.0
                    + (at(0) + at(n)) * h / 3.0
            };
            let all = integral(std::f64::consts::FRAC_PI_2 - 1e-9);
            for t in [-3.0f64, -0.5, 0.2, 1.0, 2.5, 8.0] {
                let naive = integral(t.atan()) / all;
                assert!((student_share(t, df) - naive).abs() < 1e-7, "{df} {t}: {} {naive}", student_share(t, df));
            }
        }
        for x in [-1e6, -40.0, -1.0, -0.3, 0.0, 0.2, 1.0, 7.0, 1e6f64] {
            assert!((arc_tangent(x) - x.atan()).abs() < 1e-14, "{x}");
        }
    }
}
