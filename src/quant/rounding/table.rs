//! The uneven levels of IQ4_NL and IQ4_XS: 16 values, read from `quant-tables/iq4nl.txt`.

use crate::lanes::{Floats, Lanes, Stairs};
use crate::quant::search::numbers::truncate_lanes;
use std::array;

/// The value that each code stands for, rising.
pub const VALUES: [i8; 16] = parse(include_str!("../../../quant-tables/iq4nl.txt"));

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

/// From a number to the nearest value.
pub static NEAREST_VALUE: Stairs = {
    let mut values = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        values[i] = VALUES[i] as f32;
        i += 1;
    }
    Stairs::new(MIDPOINTS, values)
};

/// From a number to the code of the nearest value.
static NEAREST_CODE: Stairs = {
    let mut codes = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        codes[i] = i as f32;
        i += 1;
    }
    Stairs::new(MIDPOINTS, codes)
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
pub fn nearest_code(x: f32) -> u8 {
    // Fifteen comparisons that do not depend on one another, rather than four that do. A NaN becomes code 15. A loop over
    // indices, because an iterator's `sum` is a function of its own wherever the compiler does not inline it.
    let mut code = 15;
    let mut i = 0;
    while i < MIDPOINTS.len() {
        code -= (x < MIDPOINTS[i]) as u8;
        i += 1;
    }
    code
}

/// The nearest codes of `x · inverse`.
#[inline]
pub fn nearest_codes(x: &[f32; 32], inverse: f32) -> [u8; 32] {
    x.map(|x| nearest_code(inverse * x))
}

/// [`nearest_codes`], by lanes.
#[inline(always)]
pub fn nearest_codes_lanes<L: Lanes>(l: L, x: &[f32; 32], inverse: f32) -> [u8; 32] {
    // Beyond the first and the last midpoint, but within the bound of the stairs. A NaN goes to the upper end.
    let (smallest, largest) = (l.splat(-128.0), l.splat(128.0));
    let inverse = l.splat(inverse);
    truncate_lanes(
        l,
        x,
        #[inline(always)]
        |x| l.stairs(&NEAREST_CODE, (inverse * x).min(largest).max(smallest)),
    )
}

/// The values of codes.
#[inline]
pub fn values(codes: [u8; 32]) -> [f32; 32] {
    array::from_fn(|i| f32::from(VALUES[usize::from(codes[i] & 15)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Body;
    use crate::lanes::Level;
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

    /// Compares [`Lanes::stairs`] and [`nearest_codes_lanes`] with [`nearest_code`].
    struct CheckStairs<'a>(&'a [f32; 32]);

    impl Body for CheckStairs<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self, l: L) {
            let x = self.0;
            let wanted = x.map(nearest_code);
            assert_eq!(nearest_codes_lanes(l, x, 1.0), wanted, "{x:?}");
            let mut values = [0.0; 32];
            for at in (0..32).step_by(L::LEN) {
                l.store(l.stairs(&NEAREST_VALUE, l.load(&x[at..])), &mut values[at..]);
            }
            for i in 0..32 {
                let value = f32::from(VALUES[usize::from(wanted[i])]);
                assert!(
                    values[i] == value || x[i].is_nan() || x[i].abs() >= Stairs::BOUND,
                    "{}: {}, not {value}",
                    x[i],
                    values[i]
                );
            }
        }
    }

    #[test]
    fn every_level_finds_the_nearest_code_and_value() {
        let mut x = Vec::new();
        for half_step in -280..=280 {
            // Every midpoint and every border between buckets is a multiple of one half.
            let exact = half_step as f32 / 2.0;
            x.extend([exact.next_down(), exact, exact.next_up()]);
        }
        x.extend([-0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE]);
        let mut random = Random::new(6);
        x.extend((0..10_000).map(|_| random.normal() * 60.0));
        for level in Level::available().filter(|&level| level != Level::Scalar) {
            x.as_chunks::<32>().0.iter().for_each(|x| level.run(CheckStairs(x)));
        }
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
