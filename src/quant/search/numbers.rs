//! Functions that all searches use: rounding, extremes, sums and quotients, each next to its version by lanes.

use crate::lanes::{Floats, Lanes, MAX_LANES, Mask};
use crate::quant::Half;
use std::array;

/// Sub-blocks (or their scales) whose largest magnitude is below this count as zero.
pub const NEGLIGIBLE: f32 = 1e-15;

/// From this magnitude on, [`nearest`] does not round.
pub const BEYOND_NEAREST: f32 = 4_194_304.0;

/// Rounds `x` to the nearest whole number, ties to even, for magnitudes up to 2^22.
///
/// Beyond that, the result is some number from -2^22 to 2^22 - 1; for infinities it is -2^22, and for a NaN from a
/// computation it is 0. Searches reach such numbers for weights near the ends of single precision, and then the bytes
/// depend on them.
#[inline(always)]
pub fn nearest(x: f32) -> i32 {
    // The last bit of 1.5 · 2^23 is worth one, so the addition rounds, and leaves 2^22 + round(x) in the mantissa.
    const ONE_AND_A_HALF_TIMES_2_TO_THE_23: f32 = 12_582_912.0;
    ((x + ONE_AND_A_HALF_TIMES_2_TO_THE_23).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Truncates `x` and returns the low 8 bits in two's complement. Returns 0 for infinities, NaN, and magnitudes from
/// 2^31 on.
#[inline(always)]
pub fn truncate_to_byte(x: f32) -> u8 {
    // A cast alone would saturate, and turn infinity into 255.
    let whole = if x.abs() < 2_147_483_648.0 { x as i32 } else { 0 };
    whole as u8
}

/// [`truncate_to_byte`] of `code` of each weight of a block, with one weight per lane.
#[inline(always)]
pub fn truncate_lanes<L: Lanes>(l: L, x: &[f32; 32], code: impl Fn(L::Floats) -> L::Floats) -> [u8; 32] {
    const { assert!(32 % L::LEN == 0) };
    let (mut numbers, mut codes) = ([0; 32], [0; 32]);
    for at in (0..32).step_by(L::LEN) {
        l.truncate(code(l.load(&x[at..])), &mut numbers[at..]);
    }
    // Loops here and where codes are packed, because the compiler may not inline an array's map, which then lacks the
    // instructions of the level.
    for i in 0..32 {
        codes[i] = numbers[i] as u8;
    }
    codes
}

/// Returns the first element of the largest magnitude, with its sign; 0 if all are zero.
#[inline]
pub fn extreme(x: &[f32]) -> f32 {
    let (mut magnitude, mut extreme) = (0.0, 0.0);
    for &x in x {
        if x.abs() > magnitude {
            (magnitude, extreme) = (x.abs(), x);
        }
    }
    extreme
}

/// [`extreme`] of each lane.
#[inline(always)]
pub fn extreme_lanes<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let (smallest, largest) = smallest_and_largest_lanes(x);
    let beneath = l.splat(0.0) - smallest;
    // Both signs have the same magnitude: find out which is first.
    if (largest.gt(l.splat(0.0)) & !largest.ne(beneath)).any() {
        return first_extreme_lanes(l, x);
    }
    // If all are zero, the positive zero.
    largest.or_else(largest.gt(beneath), smallest + l.splat(0.0))
}

#[inline(always)]
fn first_extreme_lanes<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let (mut magnitude, mut extreme) = (l.splat(0.0), l.splat(0.0));
    for &x in x {
        let larger = x.abs().gt(magnitude);
        magnitude = x.abs().or_else(larger, magnitude);
        extreme = x.or_else(larger, extreme);
    }
    extreme
}

/// Returns the smallest and the largest element.
#[inline]
pub fn smallest_and_largest<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(smallest, largest), &x| {
        (if x < smallest { x } else { smallest }, if x > largest { x } else { largest })
    })
}

/// [`smallest_and_largest`] of each lane.
#[inline(always)]
pub fn smallest_and_largest_lanes<F: Floats, const N: usize>(x: &[F; N]) -> (F, F) {
    let (mut smallest, mut largest) = (x[0], x[0]);
    for &x in &x[1..] {
        smallest = x.min(smallest);
        largest = x.max(largest);
    }
    (smallest, largest)
}

/// Σx².
#[inline]
pub fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, &x| sum + x * x)
}

/// [`sum_of_squares`] of each lane.
#[inline(always)]
pub fn sum_of_squares_lanes<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> L::Floats {
    let mut sum = l.splat(0.0);
    for &x in x {
        sum = sum + x * x;
    }
    sum
}

/// x² of each element.
#[inline(always)]
pub fn squares_lanes<L: Lanes, const N: usize>(l: L, x: &[L::Floats; N]) -> [L::Floats; N] {
    let mut squares = [l.splat(0.0); N];
    for i in 0..N {
        squares[i] = x[i] * x[i];
    }
    squares
}

/// |x| of each element.
#[inline(always)]
pub fn magnitudes_lanes<F: Floats, const N: usize>(x: &[F; N]) -> [F; N] {
    let mut magnitudes = *x;
    for magnitude in &mut magnitudes {
        *magnitude = magnitude.abs();
    }
    magnitudes
}

/// Returns the weights of a search with importance: importance · √(variance + x²).
///
/// The root makes large weights count more, as they do in a product with an activation. The variance (of the block or
/// the row) keeps small ones from being ignored.
#[inline]
pub fn importance_weights<const N: usize>(importance: &[f32; N], variance: f32, x: &[f32; N]) -> [f32; N] {
    array::from_fn(|i| importance[i] * (variance + x[i] * x[i]).sqrt())
}

/// [`importance_weights`] of each lane, and their sums.
#[inline(always)]
pub fn importance_weights_lanes<L: Lanes, const N: usize>(
    l: L,
    x: &[L::Floats; N],
    importance: &[L::Floats; N],
    variance: L::Floats,
) -> ([L::Floats; N], L::Floats) {
    let (mut weights, mut sum) = ([l.splat(0.0); N], l.splat(0.0));
    for i in 0..N {
        weights[i] = importance[i] * (variance + x[i] * x[i]).sqrt();
        sum = sum + weights[i];
    }
    (weights, sum)
}

/// Returns `a / b`, or 0 if `b` is 0.
#[inline(always)]
pub fn divide_or_zero(a: f32, b: f32) -> f32 {
    if b != 0.0 { a / b } else { 0.0 }
}

/// [`divide_or_zero`] in each lane.
#[inline(always)]
pub fn divide_or_zero_lanes<L: Lanes>(l: L, a: L::Floats, b: L::Floats) -> L::Floats {
    let zero = l.splat(0.0);
    zero.or_else(b.ge(zero) & zero.ge(b), a / b)
}

/// Returns each lane's number.
#[inline(always)]
pub fn stored<L: Lanes>(l: L, floats: L::Floats) -> [f32; MAX_LANES] {
    let mut numbers = [0.0; MAX_LANES];
    l.store(floats, &mut numbers);
    numbers
}

/// Returns the half nearest to each lane's number.
#[inline(always)]
pub fn halves<L: Lanes>(l: L, floats: L::Floats) -> [Half; MAX_LANES] {
    let numbers = stored(l, floats);
    let mut halves = [Half::new(0.0); MAX_LANES];
    for lane in 0..L::LEN {
        halves[lane] = Half::new(numbers[lane]);
    }
    halves
}
