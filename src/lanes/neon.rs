//! 4 lanes: NEON, which every 64-bit ARM has.

use super::{Floats, Lanes, Mask};
use std::arch::aarch64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// Always there.
#[derive(Clone, Copy)]
pub struct Neon;

/// 4 floats.
#[derive(Clone, Copy)]
pub struct F32x4(float32x4_t);

/// All bits or none, for each of 4 lanes.
#[derive(Clone, Copy)]
pub struct Mask4(uint32x4_t);

// SAFETY of every intrinsic below: NEON is a part of the target.

macro_rules! lanewise {
    ($type:ident: $($trait:ident $method:ident $intrinsic:ident)*) => {$(
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}

lanewise! { F32x4: Add add vaddq_f32 Sub sub vsubq_f32 Mul mul vmulq_f32 Div div vdivq_f32 }
lanewise! { Mask4: BitAnd bitand vandq_u32 BitOr bitor vorrq_u32 }

impl Floats for F32x4 {
    type Mask = Mask4;

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { vabsq_f32(self.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { vsqrtq_f32(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { vfmaq_f32(term.0, self.0, factor.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // Not vminq, which gives NaN where either is.
        self.or_else(self.lt(other), other)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.or_else(self.gt(other), other)
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { vrndnq_f32(self.0) })
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Mask4 {
        // SAFETY: see above.
        Mask4(unsafe { vcgtq_f32(self.0, other.0) })
    }
    #[inline(always)]
    fn ge(self, other: Self) -> Mask4 {
        // SAFETY: see above.
        Mask4(unsafe { vcgeq_f32(self.0, other.0) })
    }
    #[inline(always)]
    fn ne(self, other: Self) -> Mask4 {
        // SAFETY: see above.
        Mask4(unsafe { vmvnq_u32(vceqq_f32(self.0, other.0)) })
    }
    #[inline(always)]
    fn not_lt(self, other: Self) -> Mask4 {
        !self.lt(other)
    }
    #[inline(always)]
    fn or_else(self, mask: Mask4, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { vbslq_f32(mask.0, self.0, other.0) })
    }
}

impl Mask for Mask4 {
    const LEN: usize = 4;

    #[inline(always)]
    fn any(self) -> bool {
        // SAFETY: see above.
        unsafe { vmaxvq_u32(self.0) != 0 }
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        // SAFETY: see above.
        unsafe { vaddvq_u32(vandq_u32(self.0, vld1q_u32([1, 2, 4, 8].as_ptr()))).into() }
    }
}

impl Not for Mask4 {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { vmvnq_u32(self.0) })
    }
}

impl Lanes for Neon {
    const LEN: usize = 4;
    const REGISTERS: usize = 32;
    type Floats = F32x4;
    type Mask = Mask4;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x4 {
        // SAFETY: see above.
        F32x4(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> F32x4 {
        let x: &[f32; 4] = x.first_chunk().expect("as many floats as lanes");
        // SAFETY: the reference is to 4 floats; for the rest see above.
        F32x4(unsafe { vld1q_f32(x.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, floats: F32x4, x: &mut [f32]) {
        let x: &mut [f32; 4] = x.first_chunk_mut().expect("as many floats as lanes");
        // SAFETY: the reference is to 4 floats; for the rest see above.
        unsafe { vst1q_f32(x.as_mut_ptr(), floats.0) }
    }

    #[inline(always)]
    fn store_bytes(self, floats: F32x4, x: &mut [u8]) {
        let x: &mut [u8; 4] = x.first_chunk_mut().expect("as many bytes as lanes");
        // SAFETY: see above.
        let bytes = unsafe {
            let words = vmovn_u32(vcvtq_u32_f32(floats.0));
            vget_lane_u32::<0>(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))))
        };
        *x = bytes.to_le_bytes();
    }

    #[inline(always)]
    fn truncate(self, floats: F32x4, x: &mut [i32]) {
        let x: &mut [i32; 4] = x.first_chunk_mut().expect("as many numbers as lanes");
        // The conversion would make 2^31 - 1 of what is larger.
        let floats = floats.or_else(floats.lt(self.splat(2_147_483_648.0)), self.splat(0.0));
        // SAFETY: the reference is to 4 numbers; for the rest see above.
        unsafe { vst1q_s32(x.as_mut_ptr(), vcvtq_s32_f32(floats.0)) }
    }

    #[inline(always)]
    fn transpose<'a>(self, row: impl Fn(usize) -> &'a [f32; 4]) -> [F32x4; 4] {
        // SAFETY: every reference is to four floats; for the rest see above.
        unsafe {
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| vld1q_f32(row(k).as_ptr()));
            // Pairs of the even and of the odd columns, then the pairs' halves.
            let pair = |x, y| {
                let even = vreinterpretq_f64_f32(vtrn1q_f32(x, y));
                let odd = vreinterpretq_f64_f32(vtrn2q_f32(x, y));
                (even, odd)
            };
            let (ab_even, ab_odd) = pair(a, b);
            let (cd_even, cd_odd) = pair(c, d);
            [
                F32x4(vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even))),
                F32x4(vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd))),
                F32x4(vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even))),
                F32x4(vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd))),
            ]
        }
    }
}
