//! 8 lanes: AVX2 and FMA.

use super::{Floats, Lanes, Mask, Stairs};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// Lives only where the CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2 and FMA.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// 8 floats.
#[derive(Clone, Copy)]
pub struct F32x8(__m256);

/// All bits or none, for each of 8 lanes.
#[derive(Clone, Copy)]
pub struct Mask8(__m256);

// SAFETY of every intrinsic below: a value of these types comes from an `Avx2`, which lives only where the CPU has the
// instructions.

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

lanewise! { F32x8: Add add _mm256_add_ps Sub sub _mm256_sub_ps Mul mul _mm256_mul_ps Div div _mm256_div_ps }
lanewise! { Mask8: BitAnd bitand _mm256_and_ps BitOr bitor _mm256_or_ps }

impl Floats for F32x8 {
    type Mask = Mask8;

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Mask8 {
        // SAFETY: see above.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn ge(self, other: Self) -> Mask8 {
        // SAFETY: see above.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn ne(self, other: Self) -> Mask8 {
        // SAFETY: see above.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn not_lt(self, other: Self) -> Mask8 {
        // SAFETY: see above.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_NLT_UQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn or_else(self, mask: Mask8, other: Self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_blendv_ps(other.0, self.0, mask.0) })
    }
}

impl Mask for Mask8 {
    const LEN: usize = 8;

    #[inline(always)]
    fn bits(self) -> u64 {
        // SAFETY: see above. No more than eight bits are set.
        unsafe { _mm256_movemask_ps(self.0) as u64 }
    }
}

impl Not for Mask8 {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        // SAFETY: see above.
        Self(unsafe { _mm256_xor_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) })
    }
}

impl Avx2 {
    /// The entries of a table that the lowest three bits of the lanes number.
    #[inline(always)]
    fn find(self, table: &[f32; 8], lanes: F32x8) -> F32x8 {
        // SAFETY: see above.
        F32x8(unsafe { _mm256_permutevar8x32_ps(self.load(table).0, _mm256_castps_si256(lanes.0)) })
    }
}

impl Lanes for Avx2 {
    const LEN: usize = 8;
    const REGISTERS: usize = 16;
    type Floats = F32x8;
    type Mask = Mask8;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x8 {
        // SAFETY: see above.
        F32x8(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> F32x8 {
        let x: &[f32; 8] = x.first_chunk().expect("as many floats as lanes");
        // SAFETY: the reference is to 8 floats; for the rest see above.
        F32x8(unsafe { _mm256_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, floats: F32x8, x: &mut [f32]) {
        let x: &mut [f32; 8] = x.first_chunk_mut().expect("as many floats as lanes");
        // SAFETY: the reference is to 8 floats; for the rest see above.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), floats.0) }
    }

    #[inline(always)]
    fn store_bytes(self, floats: F32x8, x: &mut [u8]) {
        let x: &mut [u8; 8] = x.first_chunk_mut().expect("as many bytes as lanes");
        // SAFETY: the reference is to 8 bytes; for the rest see above.
        unsafe {
            let whole = _mm256_cvttps_epi32(floats.0);
            let words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
            _mm_storel_epi64(x.as_mut_ptr().cast(), _mm_packus_epi16(words, words));
        }
    }

    #[inline(always)]
    fn truncate(self, floats: F32x8, x: &mut [i32]) {
        let x: &mut [i32; 8] = x.first_chunk_mut().expect("as many numbers as lanes");
        // What does not fit becomes -2^31, of which the low 8 bits are 0.
        // SAFETY: the reference is to 8 numbers; for the rest see above.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm256_cvttps_epi32(floats.0)) }
    }

    #[inline(always)]
    fn stairs(self, stairs: &Stairs, floats: F32x8) -> F32x8 {
        let buckets = &stairs.wide;
        let bucket = floats + self.splat(buckets.round);
        let mut value = self.find(&buckets.first, bucket);
        for (steps, values) in &buckets.steps {
            value = self.find(values, bucket).or_else(floats.ge(self.find(steps, bucket)), value);
        }
        value
    }

    #[inline(always)]
    fn transpose<'a>(self, row: impl Fn(usize) -> &'a [f32; 4]) -> [F32x8; 4] {
        // Half h of vector k holds row 4·h + k, so that transposing each half by itself is enough.
        // SAFETY: every reference is to four floats; for the rest see above.
        unsafe {
            // A loop, since a closure that is not inlined would not have the instructions.
            let mut halves = [_mm256_setzero_ps(); 4];
            for (k, rows_of_halves) in halves.iter_mut().enumerate() {
                *rows_of_halves = _mm256_loadu2_m128(row(4 + k).as_ptr(), row(k).as_ptr());
            }
            let [a, b, c, d] = halves;
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            [
                F32x8(_mm256_shuffle_ps::<0x44>(ab_low, cd_low)),
                F32x8(_mm256_shuffle_ps::<0xee>(ab_low, cd_low)),
                F32x8(_mm256_shuffle_ps::<0x44>(ab_high, cd_high)),
                F32x8(_mm256_shuffle_ps::<0xee>(ab_high, cd_high)),
            ]
        }
    }
}
