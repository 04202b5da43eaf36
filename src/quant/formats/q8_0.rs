//! Q8_0: x ≈ d·q, q from -127 to 127. 8.5 bits per weight.
//!
//! d is the largest magnitude of 32 weights over 127.
//!
//! ```text
//!  byte 0      2                                 34
//!       | d    | q of 32 weights, one byte each   |
//! ```
//!
//! Source: `block_q8_0` and `quantize_row_q8_0_ref` in ggml's `ggml-common.h` and `ggml-quants.c`.

use super::BEYOND_F16;
use crate::gguf::TensorType;
use crate::lanes::{Floats, Lanes};
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales, Step};
use crate::quant::rows::Rows;
use crate::quant::search::batch::SmallBatch;
use crate::quant::search::numbers::{
    divide_or_zero, divide_or_zero_lanes, extreme, extreme_lanes, halves, stored, truncate_lanes, truncate_to_byte,
};
use crate::quant::{Block, Half, ImportanceUse, Scaled};

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The scale d.
    pub d: Half,
    /// The codes q, in two's complement.
    pub qs: [u8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34);

/// The float below one half. Adding one half itself would carry 0.49999997 over to 1.
const JUST_BELOW_HALF: f32 = 0.499_999_97;

/// Rounds `x` to the nearest whole number, ties away from zero, and returns it as a byte.
#[inline(always)]
fn round_to_byte(x: f32) -> u8 {
    truncate_to_byte(x + JUST_BELOW_HALF.copysign(x))
}

impl Block for BlockQ8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const LEN: usize = 32;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Ignored;
    const LIMIT: f32 = 127.0 * BEYOND_F16;

    fn quantize_row(src: &[f32], _: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks::<32, Self>(src, None, dst, |x, _| {
            let d = scale(x);
            let inverse = divide_or_zero(1.0, d);
            Self { d: Half::new(d), qs: x.map(|x| round_to_byte(x * inverse)) }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        for batch in SmallBatch::of(l, rows) {
            let d = extreme_lanes(l, &batch.columns(l, 0)).abs() / l.splat(127.0);
            let inverses = stored(l, divide_or_zero_lanes(l, l.splat(1.0), d));
            let d = halves(l, d);
            for (b, x) in batch.blocks.iter().enumerate() {
                let inverse = l.splat(inverses[b]);
                let qs = truncate_lanes(
                    l,
                    x,
                    #[inline(always)]
                    |x| {
                        let quotient = x * inverse;
                        let below = quotient.lt(l.splat(0.0));
                        quotient + l.splat(-JUST_BELOW_HALF).or_else(below, l.splat(JUST_BELOW_HALF))
                    },
                );
                dst[batch.first + b] = Self { d: d[b], qs };
            }
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let d = block.d.value();
            block.qs.map(|q| f32::from(q as i8) * d)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Scaled for BlockQ8_0 {
    const SUB_BLOCK: usize = 32;
    const LEVELS: Levels = Levels::whole(-127, 127);
    type Steps = [Step; 1];

    fn fit(x: &[f32], _: Option<&[f32]>, _: f32) -> Self {
        Self { d: Half::new(scale(array_of(x))), qs: [0; 32] }
    }

    fn steps(&self) -> [Step; 1] {
        [Step::symmetric(self.d.value())]
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = array_of(codes).map(|code: u8| code.wrapping_sub(127));
    }
}

impl Rescale for BlockQ8_0 {
    const FACTORS: [i16; 2] = [1, 1];
    const MIN_FACTORS: [i16; 2] = [0, 0];

    fn scales(&self) -> Scales {
        Scales::of_one(self.d)
    }

    fn set_scales(&mut self, scales: &Scales) {
        self.d = scales.d;
    }

    fn codes(&self, codes: &mut [u8]) {
        codes.copy_from_slice(&self.qs.map(|q| q.wrapping_add(127)));
    }
}

/// Returns d, with which the largest magnitude gets the code 127.
#[inline]
fn scale(x: &[f32; 32]) -> f32 {
    extreme(x).abs() / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_ties_away_from_zero() {
        for (x, wanted) in [(0.5, 1), (-0.5, -1), (0.49999997, 0), (126.5, 127), (-126.5, -127), (2.4999998, 2)] {
            assert_eq!(round_to_byte(x) as i8, wanted, "{x}");
        }
    }

    #[test]
    fn the_largest_weight_gets_the_largest_code() {
        let mut x = [0.0; 32];
        (x[5], x[31]) = (-2.0, 1.0);
        let mut block = [BlockQ8_0 { d: Half::new(0.0), qs: [0; 32] }];
        BlockQ8_0::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].qs[5] as i8, block[0].qs[31] as i8, block[0].qs[0]), (-127, 64, 0));
    }
}
