//! 16 lanes: AVX-512.

use super::{Floats, Lanes, Mask, Stairs};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// Lives only where the CPU has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// 16 floats.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);

/// A bit for each of 16 lanes.
#[derive(Clone, Copy)]
pub struct Mask16(__mmask16);

// SAFETY of every intrinsic below: a value of these types comes from an `Avx512`, which lives only where the CPU has the
// instructions.

macro_rules! lanewise {
    ($($trait:ident $method:ident $intrinsic:ident)*) => {$(
        impl $trait for F32x16 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: see above.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}

lanewise! { Add add _mm512_add_ps Sub sub _mm512_sub_ps Mul mul _mm512_mul_ps Div div _mm512_div_ps }

impl Floats for F32x16 {
    type Mask = Mask16;

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Mask16 {
        // SAFETY: see above.
        Mask16(unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn ge(self, other: Self) -> Mask16 {
        // SAFETY: see above.
        Mask16(unsafe { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn ne(self, other: Self) -> Mask16 {
        // SAFETY: see above.
        Mask16(unsafe { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn not_lt(self, other: Self) -> Mask16 {
        // SAFETY: see above.
        Mask16(unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn or_else(self, mask: Mask16, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm512_mask_blend_ps(mask.0, other.0, self.0) })
    }
}

impl Mask for Mask16 {
    const LEN: usize = 16;

    #[inline(always)]
    fn bits(self) -> u64 {
        self.0.into()
    }
}

impl BitAnd for Mask16 {
    type Output = Self;
    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Mask16 {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for Mask16 {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl Avx512 {
    /// The entries of a table that the lowest five bits of the lanes number.
    #[inline(always)]
    fn find(self, table: &[f32; 32], lanes: F32x16) -> F32x16 {
        let (low, high) = (self.load(&table[..16]), self.load(&table[16..]));
        // SAFETY: see above.
        F32x16(unsafe { _mm512_permutex2var_ps(low.0, _mm512_castps_si512(lanes.0), high.0) })
    }
}

impl Lanes for Avx512 {
    const LEN: usize = 16;
    const REGISTERS: usize = 32;
    type Floats = F32x16;
    type Mask = Mask16;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        // SAFETY: see above.
        F32x16(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> F32x16 {
        let x: &[f32; 16] = x.first_chunk().expect("as many floats as lanes");
        // SAFETY: the reference is to 16 floats; for the rest see above.
        F32x16(unsafe { _mm512_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, floats: F32x16, x: &mut [f32]) {
        let x: &mut [f32; 16] = x.first_chunk_mut().expect("as many floats as lanes");
        // SAFETY: the reference is to 16 floats; for the rest see above.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), floats.0) }
    }

    #[inline(always)]
    fn store_bytes(self, floats: F32x16, x: &mut [u8]) {
        let x: &mut [u8; 16] = x.first_chunk_mut().expect("as many bytes as lanes");
        // SAFETY: the reference is to 16 bytes; for the rest see above.
        unsafe { _mm_storeu_si128(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(floats.0))) }
    }

    #[inline(always)]
    fn truncate(self, floats: F32x16, x: &mut [i32]) {
        let x: &mut [i32; 16] = x.first_chunk_mut().expect("as many numbers as lanes");
        // What does not fit becomes -2^31, of which the low 8 bits are 0.
        // SAFETY: the reference is to 16 numbers; for the rest see above.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), _mm512_cvttps_epi32(floats.0)) }
    }

    #[inline(always)]
    fn stairs(self, stairs: &Stairs, floats: F32x16) -> F32x16 {
        let buckets = &stairs.narrow;
        let bucket = floats + self.splat(buckets.round);
        let [(steps, values)] = &buckets.steps;
        let at_step = floats.ge(self.find(steps, bucket));
        self.find(values, bucket).or_else(at_step, self.find(&buckets.first, bucket))
    }

    #[inline(always)]
    fn transpose<'a>(self, row: impl Fn(usize) -> &'a [f32; 4]) -> [F32x16; 4] {
        // Quarter q of vector k holds row 4·q + k, so that transposing each quarter by itself is enough.
        // SAFETY: every reference is to four floats; for the rest see above.
        unsafe {
            // A loop, since a closure that is not inlined would not have the instructions.
            let mut quarters = [_mm512_setzero_ps(); 4];
            for (k, rows_of_quarters) in quarters.iter_mut().enumerate() {
                let [w, x, y, z] = [row(k), row(4 + k), row(8 + k), row(12 + k)];
                let rows = _mm512_castps128_ps512(_mm_loadu_ps(w.as_ptr()));
                let rows = _mm512_mask_broadcast_f32x4(rows, 0x00f0, _mm_loadu_ps(x.as_ptr()));
                let rows = _mm512_mask_broadcast_f32x4(rows, 0x0f00, _mm_loadu_ps(y.as_ptr()));
                *rows_of_quarters = _mm512_mask_broadcast_f32x4(rows, 0xf000, _mm_loadu_ps(z.as_ptr()));
            }
            let [a, b, c, d] = quarters;
            let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            [
                F32x16(_mm512_shuffle_ps::<0x44>(ab_low, cd_low)),
                F32x16(_mm512_shuffle_ps::<0xee>(ab_low, cd_low)),
                F32x16(_mm512_shuffle_ps::<0x44>(ab_high, cd_high)),
                F32x16(_mm512_shuffle_ps::<0xee>(ab_high, cd_high)),
            ]
        }
    }
}
