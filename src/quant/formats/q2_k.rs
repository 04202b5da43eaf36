//! Q2_K: x ≈ d·s·q − dmin·t, q from 0 to 3. 2.625 bits per weight.
//!
//! 256 weights in sixteen sub-blocks of 16, each with a 4-bit scale s and a 4-bit min t.
//!
//! ```text
//!  byte 0                                        16                          80     82     84
//!       | 16 B: s (low half) and t of sub-block j | 64 B: q, as two_bits says | d    | dmin |
//! ```
//!
//! Without importance, the search's weights are |x| and its error is absolute. With importance, the weights are
//! importance · √(mean square of the block + x²), the error is squared, and the scales and mins are themselves fitted,
//! weighted with the sums of their sub-blocks' weights.
//!
//! Source: `block_q2_K`, `quantize_row_q2_K_ref` and `quantize_row_q2_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::{BEYOND_F16, pack};
use crate::gguf::TensorType;
use crate::lanes::{Lanes, MAX_LANES};
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales, Step, Whole};
use crate::quant::rows::Rows;
use crate::quant::search::affine::{self, Affine, AffineBatch, AffineSearch};
use crate::quant::search::batch::{self, Batch, Fitted};
use crate::quant::search::numbers::{
    importance_weights, importance_weights_lanes, magnitudes_lanes, nearest, sum_of_squares,
};
use crate::quant::search::positive;
use crate::quant::{Block, Half, ImportanceUse, Scaled};
use std::array;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Scale (low half) and min of each sub-block.
    pub scales: [u8; 16],
    /// The codes q.
    pub qs: [u8; 64],
    /// The scale d of the scales.
    pub d: Half,
    /// The scale of the mins.
    pub dmin: Half,
}

const _: () = assert!(size_of::<BlockQ2K>() == 84);

/// The search without importance.
const PLAIN: AffineSearch =
    AffineSearch { max: 3, first: -0.5, step: 0.1, tries: 16, absolute: true, limit_first: false };

const WHOLE: Whole = Whole { smallest: 0, largest: 3 };

impl Block for BlockQ2K {
    const TYPE: TensorType = TensorType::Q2_K;
    const LEN: usize = 256;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = 8.0 * BEYOND_F16;
    const LIMIT_WITH_IMPORTANCE: f32 = BEYOND_F16;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks(src, importance, dst, quantize);
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        let search = if rows.importance.is_some() { AffineSearch::weighted(3) } else { PLAIN };
        for batch in Batch::<16>::of(l, rows) {
            let mut found = AffineBatch::<16>::new();
            let mut sums = [[0.0; 16]; MAX_LANES];
            let mean_squares = batch.sums_of_squares(l).map(|sum| sum / 256.0);
            for at in batch.groups(l) {
                let x = batch.columns(l, at);
                let weights = match batch.importance(l, at) {
                    None => magnitudes_lanes(&x),
                    Some(importance) => {
                        let (weights, sum) =
                            importance_weights_lanes(l, &x, &importance, batch.of_blocks(l, at, &mean_squares));
                        batch::put(l, &mut sums, at, sum);
                        weights
                    }
                };
                found.search(l, at, search, &x, &weights);
            }
            let mut fitted = None;
            if rows.importance.is_some() {
                let odd = &mut found.odd;
                let scales = Fitted::positive(l, &found.scales, &sums, 15, odd);
                fitted = Some([scales, Fitted::positive(l, &found.mins, &sums, 15, odd)]);
            }
            for (b, x) in batch.blocks.iter().enumerate() {
                dst[batch.first + b] = if found.odd[b] != [0.0; 16] {
                    quantize(x, batch.block_importance(b))
                } else {
                    let stored = match &fitted {
                        None => [four_bits(&found.scales[b]), four_bits(&found.mins[b])],
                        Some(fitted) => fitted.each_ref().map(|fitted| (fitted.d[b], fitted.codes[b])),
                    };
                    block(
                        stored,
                        #[inline(always)]
                        |scales, mins| {
                            WHOLE.codes_lanes::<_, 16, 16>(l, x, scales, Some(mins), |j| found.codes(search, b, j, x))
                        },
                    )
                };
            }
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let (scales, mins) = block.sub_blocks();
            let codes = pack::unpack_two_bits(&block.qs);
            array::from_fn(|i| scales[i / 16] * f32::from(codes[i]) - mins[i / 16])
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl BlockQ2K {
    /// d·s and dmin·t of each sub-block.
    #[inline(always)]
    fn sub_blocks(&self) -> ([f32; 16], [f32; 16]) {
        let (d, dmin) = (self.d.value(), self.dmin.value());
        let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
        for j in 0..16 {
            scales[j] = d * f32::from(self.scales[j] & 15);
            mins[j] = dmin * f32::from(self.scales[j] >> 4);
        }
        (scales, mins)
    }
}

impl Scaled for BlockQ2K {
    const SUB_BLOCK: usize = 16;
    const LEVELS: Levels = Levels::Whole(WHOLE);
    type Steps = [Step; 16];

    fn fit(x: &[f32], importance: Option<&[f32]>, _: f32) -> Self {
        let (stored, _) = search(array_of(x), importance.map(array_of));
        block(stored, |_, _| [0; 256])
    }

    fn steps(&self) -> [Step; 16] {
        let (scales, mins) = self.sub_blocks();
        array::from_fn(|j| Step { scale: scales[j], min: mins[j] })
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.qs = pack::two_bits(array_of(codes));
    }
}

impl Rescale for BlockQ2K {
    const FACTORS: [i16; 2] = [0, 15];
    const MIN_FACTORS: [i16; 2] = [0, 15];

    fn scales(&self) -> Scales {
        Scales {
            d: self.d,
            dmin: self.dmin,
            factors: self.scales.map(|byte| (byte & 15).into()),
            min_factors: self.scales.map(|byte| (byte >> 4).into()),
        }
    }

    fn set_scales(&mut self, scales: &Scales) {
        (self.d, self.dmin) = (scales.d, scales.dmin);
        self.scales = array::from_fn(|j| scales.factors[j] as u8 | (scales.min_factors[j] as u8) << 4);
    }

    fn codes(&self, codes: &mut [u8]) {
        codes.copy_from_slice(&pack::unpack_two_bits(&self.qs));
    }
}

fn quantize(x: &[f32; 256], importance: Option<&[f32; 256]>) -> BlockQ2K {
    let (stored, codes) = search(x, importance);
    block(stored, |scales, mins| WHOLE.codes(x, scales, mins, |j| codes[j]))
}

/// A number and its 4-bit multiples, one per sub-block, for the scales or for the mins.
type Multiples = (f32, [u8; 16]);

/// The scales and the mins, and the codes with which the search of each sub-block ended.
fn search(x: &[f32; 256], importance: Option<&[f32; 256]>) -> ([Multiples; 2], [[u8; 16]; 16]) {
    let mut codes = [[0; 16]; 16];
    let (sub_blocks, _) = x.as_chunks::<16>();
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    let stored = match importance {
        None => {
            for j in 0..16 {
                let weights = sub_blocks[j].map(f32::abs);
                let fit = affine::fit(PLAIN, &sub_blocks[j], &weights, &mut codes[j]);
                Affine { scale: scales[j], min: mins[j] } = fit;
            }
            [four_bits(&scales), four_bits(&mins)]
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<16>();
            let mean_square = sum_of_squares(x) / 256.0;
            let mut sums = [0.0; 16];
            for j in 0..16 {
                let weights = importance_weights(&importance[j], mean_square, &sub_blocks[j]);
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                let fit = affine::fit(AffineSearch::weighted(3), &sub_blocks[j], &weights, &mut codes[j]);
                Affine { scale: scales[j], min: mins[j] } = fit;
            }
            [&scales, &mins].map(|numbers| {
                let mut codes = [0; 16];
                (positive::fit(numbers, &sums, 15, &mut codes), codes)
            })
        }
    };
    (stored, codes)
}

/// The block with these d, scales, dmin and mins, and with the codes that follow from d·s and dmin·t of each sub-block.
#[inline(always)]
fn block(
    [(d, scales), (dmin, mins)]: [Multiples; 2],
    codes: impl FnOnce(&[f32; 16], &[f32; 16]) -> [u8; 256],
) -> BlockQ2K {
    let mut block = BlockQ2K { scales: [0; 16], qs: [0; 64], d: Half::new(d), dmin: Half::new(dmin) };
    for j in 0..16 {
        block.scales[j] = scales[j] | mins[j] << 4;
    }
    let (scales, mins) = block.sub_blocks();
    block.qs = pack::two_bits(&codes(&scales, &mins));
    block
}

/// Returns a scale for `x`, and `x` divided by it as 4-bit numbers, of which the largest is 15.
fn four_bits(x: &[f32; 16]) -> Multiples {
    let largest = x.iter().fold(0.0, |largest, &x| if x > largest { x } else { largest });
    if largest > 0.0 {
        let inverse = 15.0 / largest;
        let mut codes = [0; 16];
        for j in 0..16 {
            codes[j] = nearest(inverse * x[j]) as u8;
        }
        (largest / 15.0, codes)
    } else {
        (0.0, [0; 16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sub_block_has_its_own_scale_and_min() {
        let (mut scales, mut qs) = ([0; 16], [0; 64]);
        (scales[1], scales[15]) = (0x23, 0xf1);
        (qs[16], qs[32 + 16]) = (0b0000_0010, 0b1100_0000);
        let block = BlockQ2K { scales, qs, d: Half::new(0.5), dmin: Half::new(4.0) };
        let mut x = [0.0; 256];
        BlockQ2K::dequantize_row(&[block], &mut x);
        assert_eq!((x[16], x[17]), (0.5 * 3.0 * 2.0 - 8.0, -8.0));
        assert_eq!((x[240], x[241], x[0]), (0.5 * 3.0 - 60.0, -60.0, 0.0));
    }
}
