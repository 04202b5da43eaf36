//! Exponential and logarithm with the same results on every machine.
//!
//! The system's functions may differ in the last bit between platforms, and one bit is enough to draw another token. These
//! use only additions, multiplications and divisions, which IEEE 754 defines exactly and which Rust never fuses. They do
//! not branch, so that a loop over them becomes vector instructions.

// ln 2 in two parts, the first with so few bits that a whole number of them is exact.
// Source: fdlibm's e_exp.c, <https://netlib.org/fdlibm/e_exp.c>
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Returns e to the power `x`: 0 where the result would be below the smallest normal number, infinity above 709, NaN for NaN.
///
/// The relative error is below 4 units in the last place.
///
/// ```text
/// x = k ln 2 + r,  |r| <= ln 2 / 2         e^x = 2^k e^r         e^r by its Taylor series up to r^13 / 13!
/// ```
#[inline]
pub fn exp(x: f64) -> f64 {
    // The last bit of 1.5 · 2^52 is worth one: adding it rounds, and leaves k in the lowest bits.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let shifted = x * std::f64::consts::LOG2_E + ROUNDER;
    let k = shifted - ROUNDER;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // Horner's rule, from the smallest term inward: 1 + r (1 + r (1/2 + r (1/6 + ...))).
    let mut sum = 0.0;
    for c in INVERSE_FACTORIALS.iter().rev() {
        sum = sum * r + c;
    }
    // 2^k by its bits: the shift leaves k alone, and where the result counts k lies in -1021..=1023.
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    let inside = sum * power;
    let outside = if x > 0.0 { f64::INFINITY } else { 0.0 };
    let number = if (-708.0..=709.0).contains(&x) { inside } else { outside };
    if x.is_nan() { x } else { number }
}

/// 1/0! to 1/13!.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut out = [1.0; 14];
    let mut factorial = 1.0;
    let mut n = 1;
    while n < out.len() {
        factorial *= n as f64;
        out[n] = 1.0 / factorial;
        n += 1;
    }
    out
};

/// Below this [`exp_f32`] gives 0. e^-87 is 1.6e-38.
pub const EXP_F32_LOWEST: f32 = -87.0;

/// Returns e to the power `x` for `x` of 0 or less, within 3 units in the last place; 0 below -87.
///
/// Like [`exp`], with e^r up to r^7 / 7!.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    const ROUNDER: f32 = 12_582_912.0;
    // 9 bits, and the rest.
    const HIGH: f32 = 355.0 / 512.0;
    const LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let k = shifted - ROUNDER;
    let r = (x - k * HIGH) - k * LOW;
    let mut sum = 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x >= EXP_F32_LOWEST { sum * power } else { 0.0 }
}

/// The least that [`exp_roughly`] returns, as a share of e^x.
pub const ROUGH_LOW: f64 = 0.99;
/// The most that [`exp_roughly`] returns, as a share of e^x.
pub const ROUGH_HIGH: f64 = 1.07;

/// Returns e to the power `x` for `x` of 0 or less, within a few percent and never below 2^-126, in a fifth of the time.
///
/// ```text
/// 2^y between whole y by the straight line, which is what float bits are:   sign | exponent | fraction
///                                                                                  y + 127 in 8.8 bits
/// ```
#[inline(always)]
pub fn exp_roughly(x: f32) -> f32 {
    // The last bit of 1.5 · 2^15 is worth 2^-8.
    const ROUNDER: f32 = 49_152.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    // Where 2^-126 is.
    let shifted = if shifted > ROUNDER - 126.0 { shifted } else { ROUNDER - 126.0 };
    f32::from_bits((shifted.to_bits() << 15).wrapping_add(1.0f32.to_bits()))
}

/// Returns the natural logarithm of `x`: minus infinity for 0, NaN below.
///
/// ```text
/// x = 2^k m,  m from sqrt(1/2) to sqrt(2)        ln x = k ln 2 + 2 artanh s,   s = (m - 1) / (m + 1)
/// ```
pub fn ln(x: f64) -> f64 {
    if x < 0.0 || x.is_nan() {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    // Numbers below the normal ones are lifted by 2^54 first.
    let (x, lift) = if x < f64::MIN_POSITIVE { (x * 18_014_398_509_481_984.0, 54.0) } else { (x, 0.0) };
    const FRACTION: u64 = (1 << 52) - 1;
    let mut k = (x.to_bits() >> 52) as f64 - 1023.0 - lift;
    let mut m = f64::from_bits(x.to_bits() & FRACTION | 1.0f64.to_bits());
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        k += 1.0;
    }
    let s = (m - 1.0) / (m + 1.0);
    // artanh s = s (1 + s²/3 + s⁴/5 + ...), where s² is below 0.03.
    let square = s * s;
    let mut sum = 0.0;
    let mut n = 25.0;
    while n > 0.0 {
        sum = sum * square + 1.0 / n;
        n -= 2.0;
    }
    k * LN2_HIGH + (2.0 * s * sum + k * LN2_LOW)
}

/// Returns `x`, which is 0 or more, to the power `y`.
pub fn pow(x: f64, y: f64) -> f64 {
    if y == 0.0 || x == 1.0 { 1.0 } else { exp(y * ln(x)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_systems_to_a_few_units_in_the_last_place() {
        let mut worst = 0u64;
        for i in 0..2_000_000u32 {
            let x = 700.0 - f64::from(i) * (1407.9 / 2_000_000.0);
            worst = worst.max(exp(x).to_bits().abs_diff(x.exp().to_bits()));
        }
        assert!(worst <= 4, "{worst} units in the last place");
    }

    #[test]
    fn exp_ends_where_numbers_end() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(-708.0) > 0.0);
        assert!(exp(709.0) < f64::INFINITY);
        assert_eq!(exp(-709.0), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert_eq!(exp(1e300), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn the_short_exp_is_as_good_as_32_bits_allow() {
        let mut worst = 0u32;
        for i in 0..2_000_000u32 {
            let x = -(i as f32) * (87.0 / 2_000_000.0);
            let wanted = f64::from(x).exp() as f32;
            worst = worst.max(exp_f32(x).to_bits().abs_diff(wanted.to_bits()));
        }
        assert!(worst <= 3, "{worst} units in the last place");
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(-87.5), 0.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(f32::MIN), 0.0);
    }

    #[test]
    fn the_rough_exp_keeps_within_its_bounds() {
        for i in 0..2_000_000u32 {
            let x = -(i as f32) * (87.0 / 2_000_000.0);
            let share = f64::from(exp_roughly(x)) / f64::from(x).exp();
            assert!((ROUGH_LOW * 1.003..=ROUGH_HIGH * 0.997).contains(&share), "{share} at {x}");
        }
        for x in [-88.0, -1e9, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp_roughly(x), f32::MIN_POSITIVE);
        }
    }

    #[test]
    fn ln_agrees_with_the_systems() {
        let mut worst = 0f64;
        for i in 1..2_000_000u32 {
            for x in [f64::from(i) * 1e-6, f64::from(i) * 7.3, exp(f64::from(i) * 3e-4), exp(f64::from(i) * -3e-4)] {
                worst = worst.max((ln(x) - x.ln()).abs() / x.ln().abs().max(1e-3));
            }
        }
        assert!(worst < 1e-15, "{worst:e}");
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert_eq!(ln(1.0), 0.0);
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert!((ln(5e-324) - (5e-324f64).ln()).abs() < 1e-12);
    }

    #[test]
    fn pow_agrees_with_the_systems() {
        for x in [0.0f64, 1e-9, 0.3, 1.0, 7.5, 1e9] {
            for y in [0.0f64, 0.25, 1.0, 3.5] {
                assert!((pow(x, y) - x.powf(y)).abs() <= 1e-13 * x.powf(y), "{x} to the power {y}");
            }
        }
    }

    /// Written down, so that a compiler or CPU that computes otherwise does not pass unseen.
    #[test]
    fn the_bits_are_these() {
        let mut hash = 0u64;
        for i in 0..10_000u32 {
            let x = f64::from(i) * -0.013_7;
            for bits in [exp(x).to_bits(), u64::from(exp_f32(x as f32).to_bits()), ln(f64::from(i) + 0.37).to_bits()] {
                hash = (hash ^ bits).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
            }
        }
        assert_eq!(hash, HASH, "{hash:#x}");
    }

    const HASH: u64 = 0xc7ed_08d6_0931_eeda;
}
