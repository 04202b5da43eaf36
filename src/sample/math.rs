//! The exponential function, the same on every machine.

/// e to the power `x`, for `x` of 0 or less; what lies below the smallest normal number is 0, NaN stays NaN.
///
/// The system's own `exp` may differ in the last bit between platforms, and one bit is enough to draw another token.
/// This one uses additions and multiplications alone, which IEEE 754 defines exactly and which Rust never fuses. Its
/// relative error is below 4 units in the last place.
///
/// ```text
/// x = k ln 2 + r,  |r| <= ln 2 / 2         e^x = 2^k e^r         e^r by its Taylor series up to r^13 / 13!
/// ```
pub fn exp(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    if x.is_nan() {
        return x;
    }
    debug_assert!(x <= 0.0, "exp({x})");
    // ln 2 in two parts, the first with so few bits that k times it is exact.
    // Source: fdlibm's e_exp.c, <https://netlib.org/fdlibm/e_exp.c>
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let k = (x * std::f64::consts::LOG2_E).round();
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // Horner's rule, from the smallest term inward: 1 + r (1 + r (1/2 + r (1/6 + ...))).
    let sum = INVERSE_FACTORIALS.iter().rev().fold(0.0, |sum, c| sum * r + c);
    // 2^k by its bits; k lies in -1021..=0, so the exponent field is never 0.
    sum * f64::from_bits(((k as i64 + 1023) as u64) << 52)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_systems_to_a_few_units_in_the_last_place() {
        let mut worst = 0u64;
        for i in 0..2_000_000u32 {
            let x = -f64::from(i) * (707.9 / 2_000_000.0);
            worst = worst.max(exp(x).to_bits().abs_diff(x.exp().to_bits()));
        }
        assert!(worst <= 4, "{worst} units in the last place");
    }

    #[test]
    fn ends_where_numbers_end() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(-708.0) > 0.0);
        assert_eq!(exp(-709.0), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert!(exp(f64::NAN).is_nan());
    }
}
