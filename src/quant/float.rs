//! The 16-bit floats: IEEE half precision (F16) and the upper half of a 32-bit float (BF16).
//!
//! ```text
//!        sign   exponent     mantissa
//! f32       1          8           23    bias 127
//! f16       1          5           10    bias  15
//! bf16      1          8            7    bias 127
//! ```
//!
//! Narrowing rounds to nearest, ties to even; a NaN stays one and becomes quiet. Every operation is an integer operation
//! or an IEEE addition, without branches, so the results are the same on every machine and the slice functions
//! vectorise. They take `[u8; 2]`, little-endian, because the bytes of a file may begin anywhere.

use crate::lanes::Level;
use crate::lanes::{Body, Lanes};

/// Infinity in single precision.
const F32_INFINITY: u32 = 0xff << 23;
/// The smallest normal half, 2^-14, in single precision.
const F16_SMALLEST_NORMAL: u32 = (127 - 14) << 23;
/// 2^16 in single precision. From here on, even rounding down leaves nothing that a half can hold.
const F16_OVERFLOW: u32 = (127 + 16) << 23;
/// The difference of the exponents' biases, at the position of a single's exponent.
const REBIAS: u32 = (127 - 15) << 23;

/// Converts `x` to half precision. Magnitudes above 65519.99 become infinite, those below 2^-25 zero; a NaN becomes
/// `0x7e00` with its sign.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Rounds away the 13 bits that a half lacks. A carry goes into the exponent, as it should.
    let ties_to_even = 0x0fff + ((magnitude >> 13) & 1);
    let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(ties_to_even) >> 13;
    // The last bit of 0.5 is worth 2^-24, like the last bit of a subnormal half: the addition does the rounding.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let mut half = if magnitude < F16_SMALLEST_NORMAL { subnormal } else { normal };
    half = if magnitude >= F16_OVERFLOW { 0x7c00 } else { half };
    half = if magnitude > F32_INFINITY { 0x7e00 } else { half };
    (sign | half) as u16
}

/// Returns the value of a half, which is exact. A NaN keeps its payload and becomes quiet.
#[inline(always)]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let normal = (magnitude << 13) + REBIAS;
    // A subnormal, used as the mantissa of a number with the exponent -14, is that number minus its leading one.
    let smallest = f32::from_bits(F16_SMALLEST_NORMAL);
    let subnormal = (f32::from_bits((magnitude << 13) + F16_SMALLEST_NORMAL) - smallest).to_bits();
    let mut bits = if magnitude < 0x0400 { subnormal } else { normal };
    bits = if magnitude >= 0x7c00 { bits | F32_INFINITY } else { bits };
    bits = if magnitude > 0x7c00 { bits | 0x0040_0000 } else { bits };
    f32::from_bits(sign | bits)
}

/// Rounds `x` to its upper 16 bits. Subnormals are kept. A NaN keeps its upper payload and becomes quiet.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let quiet = (bits >> 16) | 0x0040;
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if bits & 0x7fff_ffff > F32_INFINITY { quiet } else { rounded }) as u16
}

/// Returns the value of a BF16, which is exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Returns whether a half is finite: neither NaN nor infinite.
#[inline]
pub fn f16_is_finite(half: u16) -> bool {
    half & 0x7c00 != 0x7c00
}

/// Returns whether a BF16 is finite: neither NaN nor infinite.
#[inline]
pub fn bf16_is_finite(bits: u16) -> bool {
    bits & 0x7f80 != 0x7f80
}

/// Narrows `src` to little-endian F16, element for element.
///
/// # Panics
/// When the lengths differ.
pub fn f32s_to_f16s(src: &[f32], dst: &mut [[u8; 2]]) {
    convert(
        src,
        dst,
        #[inline(always)]
        |x| f32_to_f16(x).to_le_bytes(),
    );
}

/// Widens little-endian F16, element for element.
///
/// # Panics
/// When the lengths differ.
pub fn f16s_to_f32s(src: &[[u8; 2]], dst: &mut [f32]) {
    convert(
        src,
        dst,
        #[inline(always)]
        |half| f16_to_f32(u16::from_le_bytes(half)),
    );
}

/// Narrows `src` to little-endian BF16, element for element.
///
/// # Panics
/// When the lengths differ.
pub fn f32s_to_bf16s(src: &[f32], dst: &mut [[u8; 2]]) {
    convert(
        src,
        dst,
        #[inline(always)]
        |x| f32_to_bf16(x).to_le_bytes(),
    );
}

/// Widens little-endian BF16, element for element.
///
/// # Panics
/// When the lengths differ.
pub fn bf16s_to_f32s(src: &[[u8; 2]], dst: &mut [f32]) {
    convert(
        src,
        dst,
        #[inline(always)]
        |bits| bf16_to_f32(u16::from_le_bytes(bits)),
    );
}

/// Converts element by element, with the best instructions that this CPU has.
fn convert<A: Copy, B>(src: &[A], dst: &mut [B], one: impl Fn(A) -> B) {
    assert_eq!(src.len(), dst.len());
    Level::best().run(Convert { src, dst, one });
}

/// The body of [`convert`], for [`Level::run`]. It has no lanes of its own: the compiler vectorises it.
struct Convert<'a, A, B, F> {
    src: &'a [A],
    dst: &'a mut [B],
    one: F,
}

impl<A: Copy, B, F: Fn(A) -> B> Body for Convert<'_, A, B, F> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (to, &from) in self.dst.iter_mut().zip(self.src) {
            *to = (self.one)(from);
        }
    }
}

/// A block's scale: a half, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Half([u8; 2]);

impl Half {
    /// Returns the half nearest to `x`; for any NaN, `0xfe00`.
    #[inline(always)]
    pub fn new(x: f32) -> Self {
        // Infinity minus infinity is a NaN whose sign depends on the processor. The bytes must not, so this uses x86's
        // sign.
        Self(if x.is_nan() { 0xfe00 } else { f32_to_f16(x) }.to_le_bytes())
    }

    /// Its value.
    #[inline(always)]
    pub fn value(self) -> f32 {
        f16_to_f32(u16::from_le_bytes(self.0))
    }

    /// Returns whether it is finite: neither NaN nor infinite.
    #[inline]
    pub fn is_finite(self) -> bool {
        f16_is_finite(u16::from_le_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::samples::Random;

    /// The value of a half by the definition, in double precision.
    fn half_by_definition(half: u16) -> f64 {
        let sign = if half & 0x8000 != 0 { -1.0 } else { 1.0 };
        let exponent = i32::from(half >> 10 & 0x1f);
        let mantissa = f64::from(half & 0x03ff);
        sign * match exponent {
            0 => mantissa * 2f64.powi(-24),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
        }
    }

    /// The nearest half by the definition: of the two neighbours of `x` the nearer, in a tie the even one.
    fn nearest_half_by_definition(x: f32) -> u16 {
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        if x.is_nan() {
            return sign | 0x7e00;
        }
        let magnitude = f64::from(x).abs();
        // Halves of one sign are ordered as their bits are; the one above the largest would be 65536.
        let value = |bits: u16| if bits == 0x7c00 { 65536.0 } else { half_by_definition(bits) };
        let (mut below, mut above) = (0u16, 0x7c00u16);
        if magnitude >= 65536.0 {
            return sign | above;
        }
        while above - below > 1 {
            let middle = below + (above - below) / 2;
            if value(middle) <= magnitude { below = middle } else { above = middle }
        }
        let (down, up) = (magnitude - value(below), value(above) - magnitude);
        sign | if down < up || (down == up && below.is_multiple_of(2)) { below } else { above }
    }

    #[test]
    fn every_half_widens_to_its_value_and_comes_back() {
        for half in 0..=u16::MAX {
            let wide = f16_to_f32(half);
            if half & 0x7fff > 0x7c00 {
                assert!(wide.is_nan());
                assert_eq!(f32_to_f16(wide), half & 0x8000 | 0x7e00);
            } else {
                assert_eq!(f64::from(wide), half_by_definition(half), "{half:#06x}");
                assert_eq!(wide.is_sign_negative(), half & 0x8000 != 0);
                assert_eq!(f32_to_f16(wide), half);
            }
        }
    }

    #[test]
    fn narrows_to_the_nearest_half_and_in_a_tie_to_the_even_one() {
        let check = |x: f32| assert_eq!(f32_to_f16(x), nearest_half_by_definition(x), "{x:e} ({:#010x})", x.to_bits());
        // Around every half and every midpoint between two of them.
        for half in 0..0x7c00u16 {
            let (this, next) = (half_by_definition(half), half_by_definition(half + 1).min(65536.0));
            for exact in [this, (this + next) / 2.0] {
                let bits = (exact as f32).to_bits();
                for bits in [bits.saturating_sub(1), bits, bits + 1] {
                    check(f32::from_bits(bits));
                    check(-f32::from_bits(bits));
                }
            }
        }
        let mut random = Random::new(16);
        for _ in 0..500_000 {
            check(f32::from_bits(random.bits()));
        }
        for x in [f32::MAX, f32::INFINITY, f32::NAN, 65504.0, 65519.996, 65520.0, 65536.0, f32::from_bits(1)] {
            check(x);
            check(-x);
        }
    }

    #[test]
    fn every_bf16_widens_to_its_value_and_comes_back() {
        for bits in 0..=u16::MAX {
            let wide = bf16_to_f32(bits);
            assert_eq!(wide.to_bits(), u32::from(bits) << 16);
            assert_eq!(f32_to_bf16(wide), if wide.is_nan() { bits | 0x40 } else { bits });
        }
    }

    #[test]
    fn narrows_to_the_nearest_bf16_and_in_a_tie_to_the_even_one() {
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        let mut random = Random::new(17);
        for _ in 0..500_000 {
            let x = f32::from_bits(random.bits());
            // The next BF16 towards infinity would have an exponent too many there.
            if x.is_nan() || x.to_bits() & 0x7fff_0000 == 0x7f7f_0000 {
                continue;
            }
            let below = (x.to_bits() >> 16) as u16;
            let value = |bits: u16| f64::from(bf16_to_f32(bits)).abs();
            let (down, up) = (f64::from(x).abs() - value(below), value(below + 1) - f64::from(x).abs());
            let wanted =
                if down == 0.0 || down < up || (down == up && below.is_multiple_of(2)) { below } else { below + 1 };
            assert_eq!(f32_to_bf16(x), wanted, "{x:e} ({:#010x})", x.to_bits());
        }
    }

    #[test]
    fn slices_convert_like_their_elements() {
        let mut random = Random::new(18);
        let wide: Vec<f32> = (0..1003).map(|_| f32::from_bits(random.bits())).collect();
        let mut narrow = vec![[0; 2]; wide.len()];
        let mut back = vec![0.0; wide.len()];

        f32s_to_f16s(&wide, &mut narrow);
        f16s_to_f32s(&narrow, &mut back);
        for ((&x, &half), &value) in wide.iter().zip(&narrow).zip(&back) {
            assert_eq!(u16::from_le_bytes(half), f32_to_f16(x));
            assert_eq!(value.to_bits(), f16_to_f32(f32_to_f16(x)).to_bits());
        }

        f32s_to_bf16s(&wide, &mut narrow);
        bf16s_to_f32s(&narrow, &mut back);
        for ((&x, &half), &value) in wide.iter().zip(&narrow).zip(&back) {
            assert_eq!(u16::from_le_bytes(half), f32_to_bf16(x));
            assert_eq!(value.to_bits(), bf16_to_f32(f32_to_bf16(x)).to_bits());
        }
    }
}
