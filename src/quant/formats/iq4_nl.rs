//! IQ4_NL: x ≈ d·value(q), q from 0 to 15. 4.5 bits per weight.
//!
//! ```text
//!  byte 0      2                                            18
//!       | d    | 16 B: q of weights j (low half) and j + 16  |
//! ```
//!
//! The values are those of `quant-tables/iq4nl.txt`. The search's weights are x² without importance, and importance ·
//! √(twice the mean square of the block + x²) with it.
//!
//! Source: `block_iq4_nl` and `quantize_row_iq4_nl_impl` in ggml's `ggml-common.h` and `ggml-quants.c`.

use super::{BEYOND_F16, pack};
use crate::gguf::TensorType;
use crate::lanes::Lanes;
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales, Step, table};
use crate::quant::rows::Rows;
use crate::quant::search::batch::SmallBatch;
use crate::quant::search::codebook;
use crate::quant::search::numbers::{
    divide_or_zero, divide_or_zero_lanes, halves, importance_weights, importance_weights_lanes, squares_lanes, stored,
    sum_of_squares, sum_of_squares_lanes,
};
use crate::quant::{Block, Half, ImportanceUse, Scaled};

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// The scale d.
    pub d: Half,
    /// The codes q.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockIq4Nl>() == 18);

impl Block for BlockIq4Nl {
    const TYPE: TensorType = TensorType::IQ4_NL;
    const LEN: usize = 32;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = 8.0 * BEYOND_F16;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks::<32, Self>(src, importance, dst, |x, importance| {
            let d = scale(x, importance);
            let codes = table::nearest_codes(x, divide_or_zero(1.0, d));
            Self { d: Half::new(d), qs: pack::nibbles(&codes) }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        for batch in SmallBatch::of(l, rows) {
            let x = batch.columns(l, 0);
            let weights = match batch.importance(l, 0) {
                None => squares_lanes(l, &x),
                Some(importance) => {
                    let variance = sum_of_squares_lanes(l, &x) * l.splat(2.0 / 32.0);
                    importance_weights_lanes(l, &x, &importance, variance).0
                }
            };
            let d = codebook::fit_lanes(l, &x, &weights);
            let inverses = stored(l, divide_or_zero_lanes(l, l.splat(1.0), d));
            let d = halves(l, d);
            for (b, x) in batch.blocks.iter().enumerate() {
                let codes = table::nearest_codes_lanes(l, x, inverses[b]);
                dst[batch.first + b] = Self { d: d[b], qs: pack::nibbles(&codes) };
            }
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let d = block.d.value();
            table::values(pack::unpack_nibbles(&block.qs)).map(|value| d * value)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Scaled for BlockIq4Nl {
    const SUB_BLOCK: usize = 32;
    const LEVELS: Levels = Levels::Table;
    type Steps = [Step; 1];

    fn fit(x: &[f32], importance: Option<&[f32]>, _: f32) -> Self {
        Self { d: Half::new(scale(array_of(x), importance.map(array_of))), qs: [0; 16] }
    }

    fn steps(&self) -> [Step; 1] {
        [Step::symmetric(self.d.value())]
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack::nibbles(array_of(codes));
    }
}

impl Rescale for BlockIq4Nl {
    const FACTORS: [i16; 2] = [1, 1];
    const MIN_FACTORS: [i16; 2] = [0, 0];

    fn scales(&self) -> Scales {
        Scales::of_one(self.d)
    }

    fn set_scales(&mut self, scales: &Scales) {
        self.d = scales.d;
    }

    fn codes(&self, codes: &mut [u8]) {
        codes.copy_from_slice(&pack::unpack_nibbles(&self.qs));
    }
}

/// d
fn scale(x: &[f32; 32], importance: Option<&[f32; 32]>) -> f32 {
    let weights = match importance {
        None => x.map(|x| x * x),
        Some(importance) => importance_weights(importance, sum_of_squares(x) * (2.0 / 32.0), x),
    };
    codebook::fit(x, &weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_of_the_values_come_back_exactly() {
        let x: [f32; 32] = std::array::from_fn(|i| f32::from(table::VALUES[i % 16]) * 0.25);
        let (mut block, mut back) = ([BlockIq4Nl { d: Half::new(0.0), qs: [0; 16] }], [0.0; 32]);
        BlockIq4Nl::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].d.value(), block[0].qs[3], block[0].qs[15]), (0.25, 0x33, 0xff));
        BlockIq4Nl::dequantize_row(&block, &mut back);
        assert_eq!(back, x);
    }
}
