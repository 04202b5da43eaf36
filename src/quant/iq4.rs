//! What IQ4_NL and IQ4_XS share: codes that stand for 16 unevenly spaced values, and the search for their scale.

use super::search::{NEGLIGIBLE, extreme};
use std::array;

/// The value that each code stands for, rising.
pub(super) const VALUES: [i8; 16] = parse(include_str!("../../quant-tables/iq4nl.txt"));

/// Halfway between the values of codes i and i + 1.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (VALUES[i] as f32 + VALUES[i + 1] as f32) / 2.0;
        i += 1;
    }
    midpoints
};

/// Reads exactly `N` whole numbers; '#' begins a comment up to the line's end. What is wrong is an error of the build.
const fn parse<const N: usize>(text: &str) -> [i8; N] {
    let text = text.as_bytes();
    let mut values = [0; N];
    let (mut at, mut found) = (0, 0);
    while at < text.len() {
        match text[at] {
            b'#' => {
                while at < text.len() && text[at] != b'\n' {
                    at += 1;
                }
            }
            b' ' | b'\n' | b'\r' | b'\t' => at += 1,
            first => {
                let negative = first == b'-';
                if negative {
                    at += 1;
                }
                let start = at;
                let mut value: i32 = 0;
                while at < text.len() && text[at].is_ascii_digit() {
                    value = value * 10 + (text[at] - b'0') as i32;
                    assert!(value <= 128, "a codebook's numbers lie from -128 to 127");
                    at += 1;
                }
                assert!(at > start, "a codebook holds whole numbers and comments");
                value = if negative { -value } else { value };
                assert!(value <= 127, "a codebook's numbers lie from -128 to 127");
                assert!(found < N, "a codebook holds more numbers than its type says");
                values[found] = value as i8;
                found += 1;
            }
        }
    }
    assert!(found == N, "a codebook holds fewer numbers than its type says");
    values
}

/// The code whose value is nearest to `x`; in a tie the upper one.
#[inline(always)]
fn nearest_code(x: f32) -> u8 {
    // Fifteen comparisons that do not depend on one another, rather than four that do. A NaN becomes code 15.
    15 - MIDPOINTS.iter().map(|&midpoint| (x < midpoint) as u8).sum::<u8>()
}

/// The nearest codes of `x · inverse`.
#[inline]
pub(super) fn nearest_codes(x: &[f32; 32], inverse: f32) -> [u8; 32] {
    x.map(|x| nearest_code(inverse * x))
}

/// x ≈ d·value: gives the d that leaves the least Σ w (x − d·value)² among 16 that are tried.
///
/// The weight of largest magnitude is put at the first value, then -7 to 7 beside it; given the codes d follows from least
/// squares. 0 where all of `x` is negligible.
pub(super) fn fit(x: &[f32; 32], weights: &[f32; 32]) -> f32 {
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

/// The values of codes.
#[inline]
pub(super) fn values(codes: [u8; 32]) -> [f32; 32] {
    array::from_fn(|i| f32::from(VALUES[usize::from(codes[i] & 15)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::samples::Random;

    #[test]
    fn the_nearest_code_is_the_nearest_also_around_every_midpoint() {
        let check = |x: f32| {
            let distance = |code: usize| (f64::from(VALUES[code]) - f64::from(x)).abs();
            let nearest = (0..16).fold(0, |best, code| if distance(code) <= distance(best) { code } else { best });
            assert_eq!(usize::from(nearest_code(x)), nearest, "{x}");
        };
        for midpoint in MIDPOINTS {
            for x in [midpoint.next_down(), midpoint, midpoint.next_up()] {
                check(x);
            }
        }
        let mut random = Random::new(4);
        for _ in 0..10_000 {
            check(random.normal() * 60.0);
        }
        assert_eq!((nearest_code(f32::NEG_INFINITY), nearest_code(f32::INFINITY)), (0, 15));
    }

    #[test]
    fn the_table_rises() {
        assert!(VALUES.is_sorted_by(|a, b| a < b));
        assert_eq!((VALUES[0], VALUES[8], VALUES[15]), (-127, 1, 113));
    }

    #[test]
    fn reads_numbers_of_either_sign_and_comments() {
        assert_eq!(parse::<3>("# 1 2\n-128\t0 # 5\n127"), [-128, 0, 127]);
    }

    #[test]
    #[should_panic(expected = "more numbers")]
    fn refuses_a_table_with_a_number_too_many() {
        parse::<1>("1 2");
    }

    #[test]
    #[should_panic(expected = "whole numbers")]
    fn refuses_a_table_with_a_word() {
        parse::<1>("one");
    }
}
