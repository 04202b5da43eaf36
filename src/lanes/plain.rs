//! 8 lanes in an array: for CPUs without a module of their own here. The compiler makes of it what the target has.

use super::{Floats, Lanes, Mask};
use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// Always there.
#[derive(Clone, Copy)]
pub struct Plain;

/// 8 floats.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Array([f32; 8]);

/// All bits or none, for each of 8 lanes: what compilers know how to keep in a vector.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Bits([u32; 8]);

/// Whether the target has an instruction for `f32::mul_add`, which otherwise is a slow function, one number at a time.
const FUSES: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// `f32::mul_add`, in operations that compilers put into vectors.
///
/// In double precision the product is exact, and the sum is rounded. Rounding it to single precision would round twice. So
/// it is first rounded *to odd*: where it is not exact, to that of its two neighbours whose last bit is set. With at least
/// two more bits than the result, this bit only keeps the sum apart from what is halfway between two results. See Boldo and
/// Melquiond, *Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd*.
#[inline(always)]
pub(super) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    let (product, term) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + term;
    // Knuth's two-sum: what rounding took away, exactly.
    let of_term = sum - product;
    let error = (product - (sum - of_term)) + (term - of_term);
    // Away from zero if the error has the sum's sign. (The error of an infinity is NaN, which is left alone.)
    let step = (((error.to_bits() ^ sum.to_bits()) as i64 >> 63) | 1) as u64;
    let is_inexact = if error.abs() > 0.0 { u64::MAX } else { 0 };
    let is_even = (sum.to_bits() & 1).wrapping_sub(1);
    f64::from_bits(sum.to_bits().wrapping_add(step & is_inexact & is_even)) as f32
}

macro_rules! lanewise {
    ($type:ident: $($trait:ident $method:ident $operator:tt)*) => {$(
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(from_fn(#[inline(always)] |l| self.0[l] $operator other.0[l]))
            }
        }
    )*};
}

lanewise! { Array: Add add + Sub sub - Mul mul * Div div / }
lanewise! { Bits: BitAnd bitand & BitOr bitor | }

impl Floats for Array {
    type Mask = Bits;

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        if FUSES {
            Self(from_fn(
                #[inline(always)]
                |l| self.0[l].mul_add(factor.0[l], term.0[l]),
            ))
        } else {
            Self(from_fn(
                #[inline(always)]
                |l| mul_add(self.0[l], factor.0[l], term.0[l]),
            ))
        }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(from_fn(|l| if self.0[l] < other.0[l] { self.0[l] } else { other.0[l] }))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(from_fn(|l| if self.0[l] > other.0[l] { self.0[l] } else { other.0[l] }))
    }
    #[inline(always)]
    fn round(self) -> Self {
        // The last bit of 1.5 · 2^23 is worth one, so the addition rounds.
        const ONE_AND_A_HALF_TIMES_2_TO_THE_23: f32 = 12_582_912.0;
        Self(self.0.map(|x| (x + ONE_AND_A_HALF_TIMES_2_TO_THE_23) - ONE_AND_A_HALF_TIMES_2_TO_THE_23))
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Bits {
        Bits(from_fn(|l| if self.0[l] > other.0[l] { u32::MAX } else { 0 }))
    }
    #[inline(always)]
    fn ge(self, other: Self) -> Bits {
        Bits(from_fn(|l| if self.0[l] >= other.0[l] { u32::MAX } else { 0 }))
    }
    #[inline(always)]
    fn ne(self, other: Self) -> Bits {
        Bits(from_fn(|l| if self.0[l] != other.0[l] { u32::MAX } else { 0 }))
    }
    #[inline(always)]
    fn not_lt(self, other: Self) -> Bits {
        !self.lt(other)
    }
    #[inline(always)]
    fn or_else(self, mask: Bits, other: Self) -> Self {
        Self(from_fn(|l| f32::from_bits(self.0[l].to_bits() & mask.0[l] | other.0[l].to_bits() & !mask.0[l])))
    }
}

impl Mask for Bits {
    const LEN: usize = 8;

    #[inline(always)]
    fn any(self) -> bool {
        self.0.iter().fold(0, |any, bits| any | bits) != 0
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        (0..8).fold(0, |bits, l| bits | u64::from(self.0[l] & 1) << l)
    }
}

impl Not for Bits {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Self(self.0.map(|bits| !bits))
    }
}

impl Lanes for Plain {
    const LEN: usize = 8;
    // Of the least that there is, 16 of 128 bits.
    const REGISTERS: usize = 8;
    type Floats = Array;
    type Mask = Bits;

    #[inline(always)]
    fn splat(self, x: f32) -> Array {
        Array([x; 8])
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Array {
        Array(*x.first_chunk().expect("as many floats as lanes"))
    }

    #[inline(always)]
    fn store(self, floats: Array, x: &mut [f32]) {
        *x.first_chunk_mut().expect("as many floats as lanes") = floats.0;
    }

    #[inline(always)]
    fn store_bytes(self, floats: Array, x: &mut [u8]) {
        let x: &mut [u8; 8] = x.first_chunk_mut().expect("as many bytes as lanes");
        for l in 0..8 {
            // Adding 2^23 leaves the number in the last bits, and is a vector instruction where a cast is none.
            x[l] = (floats.0[l] + 8_388_608.0).to_bits() as u8;
        }
    }

    #[inline(always)]
    fn truncate(self, floats: Array, x: &mut [i32]) {
        *x.first_chunk_mut().expect("as many numbers as lanes") = floats.0.map(|x| {
            let x = if x.abs() < 2_147_483_648.0 { x } else { 0.0 };
            // SAFETY: it fits. (A cast would look for what does not, one number at a time.)
            unsafe { x.to_int_unchecked() }
        });
    }

    #[inline(always)]
    fn transpose<'a>(self, row: impl Fn(usize) -> &'a [f32; 4]) -> [Array; 4] {
        let rows: [&[f32; 4]; 8] = from_fn(row);
        from_fn(|i| Array(from_fn(|l| rows[l][i])))
    }
}
