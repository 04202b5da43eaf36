//! IQ4_XS: x ≈ d·(s − 32)·value(q), q from 0 to 15. 4.25 bits per weight.
//!
//! 256 weights in eight sub-blocks of 32, each with a 6-bit scale s.
//!
//! ```text
//!  byte 0      2                    4                         8                                          136
//!       | d    | 2 B: bits 4-5 of s | 4 B: bits 0-3 of s      | 128 B: q, 16 bytes for each sub-block       |
//!                s j at bit 2·j       byte j: s 2·j (low        byte l: codes l (low half) and l + 16
//!                                     half) and 2·j + 1
//! ```
//!
//! The values are those of `quant-tables/iq4nl.txt`. The search's weights are x² without importance, and importance ·
//! √(twice the mean square of the block + x²) with it.
//!
//! Source: `block_iq4_xs` and `quantize_row_iq4_nl_impl` in ggml's `ggml-common.h` and `ggml-quants.c`.

use super::{BEYOND_F16, pack};
use crate::gguf::TensorType;
use crate::lanes::{Lanes, MAX_LANES};
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales, Step, table};
use crate::quant::rows::Rows;
use crate::quant::search::batch::{self, Batch};
use crate::quant::search::codebook;
use crate::quant::search::numbers::{
    divide_or_zero, extreme, importance_weights, importance_weights_lanes, nearest, squares_lanes, sum_of_squares,
};
use crate::quant::{Block, Half, ImportanceUse, Scaled};
use std::array;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// The scale d of the scales.
    pub d: Half,
    /// Bits 4 and 5 of the sub-blocks' scales.
    pub scales_h: [u8; 2],
    /// Bits 0 to 3 of the sub-blocks' scales.
    pub scales_l: [u8; 4],
    /// The codes q.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockIq4Xs>() == 136);

impl Block for BlockIq4Xs {
    const TYPE: TensorType = TensorType::IQ4_XS;
    const LEN: usize = 256;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = 8.0 * BEYOND_F16;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks(src, importance, dst, quantize);
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        for batch in Batch::<32>::of(l, rows) {
            let mut scales = [[0.0; 8]; MAX_LANES];
            let variances = batch.sums_of_squares(l).map(|sum| sum * (2.0 / 256.0));
            for at in batch.groups(l) {
                let x = batch.columns(l, at);
                let weights = match batch.importance(l, at) {
                    None => squares_lanes(l, &x),
                    Some(importance) => {
                        importance_weights_lanes(l, &x, &importance, batch.of_blocks(l, at, &variances)).0
                    }
                };
                batch::put(l, &mut scales, at, codebook::fit_lanes(l, &x, &weights));
            }
            for (b, x) in batch.blocks.iter().enumerate() {
                dst[batch.first + b] = round(
                    x,
                    &scales[b],
                    #[inline(always)]
                    |x, inverse| table::nearest_codes_lanes(l, x, inverse),
                );
            }
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let mut x = [0.0; 256];
            let d = block.d.value();
            let scales = unpack_scales(block.scales_h, block.scales_l);
            let (packed, _) = block.qs.as_chunks::<16>();
            let (sub_blocks, _) = x.as_chunks_mut::<32>();
            for j in 0..8 {
                let scale = d * (f32::from(scales[j]) - 32.0);
                sub_blocks[j] = table::values(pack::unpack_nibbles(&packed[j])).map(|value| scale * value);
            }
            x
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Scaled for BlockIq4Xs {
    const SUB_BLOCK: usize = 32;
    const LEVELS: Levels = Levels::Table;
    type Steps = [Step; 8];

    fn fit(x: &[f32], importance: Option<&[f32]>, _: f32) -> Self {
        let x = array_of(x);
        round(x, &search(x, importance.map(array_of)), |_, _| [0; 32])
    }

    fn steps(&self) -> [Step; 8] {
        let d = self.d.value();
        unpack_scales(self.scales_h, self.scales_l).map(|s| Step::symmetric(d * (f32::from(s) - 32.0)))
    }

    fn set_codes(&mut self, codes: &[u8]) {
        let codes: &[u8; 256] = array_of(codes);
        for (packed, codes) in self.qs.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<32>().0) {
            *packed = pack::nibbles(codes);
        }
    }
}

impl Rescale for BlockIq4Xs {
    const FACTORS: [i16; 2] = [-32, 31];
    const MIN_FACTORS: [i16; 2] = [0, 0];

    fn scales(&self) -> Scales {
        let scales = unpack_scales(self.scales_h, self.scales_l);
        Scales::symmetric(self.d, |j| scales.get(j).map_or(0, |s| i16::from(*s) - 32))
    }

    fn set_scales(&mut self, scales: &Scales) {
        self.d = scales.d;
        (self.scales_h, self.scales_l) = pack_scales(&array::from_fn(|j| (scales.factors[j] + 32) as u8));
    }

    fn codes(&self, codes: &mut [u8]) {
        for (codes, packed) in codes.as_chunks_mut::<32>().0.iter_mut().zip(self.qs.as_chunks::<16>().0) {
            *codes = pack::unpack_nibbles(packed);
        }
    }
}

fn quantize(x: &[f32; 256], importance: Option<&[f32; 256]>) -> BlockIq4Xs {
    round(x, &search(x, importance), table::nearest_codes)
}

/// The scales of the sub-blocks.
fn search(x: &[f32; 256], importance: Option<&[f32; 256]>) -> [f32; 8] {
    let (sub_blocks, _) = x.as_chunks::<32>();
    let mut scales = [0.0; 8];
    match importance {
        None => {
            for j in 0..8 {
                scales[j] = codebook::fit(&sub_blocks[j], &sub_blocks[j].map(|x| x * x));
            }
        }
        Some(importance) => {
            let variance = sum_of_squares(x) * (2.0 / 256.0);
            let (importance, _) = importance.as_chunks::<32>();
            for j in 0..8 {
                let weights = importance_weights(&importance[j], variance, &sub_blocks[j]);
                scales[j] = codebook::fit(&sub_blocks[j], &weights);
            }
        }
    }
    scales
}

/// Returns the block with these scales. `codes` returns the nearest codes of weights times a number.
#[inline(always)]
fn round(x: &[f32; 256], scales: &[f32; 8], codes: impl Fn(&[f32; 32], f32) -> [u8; 32]) -> BlockIq4Xs {
    let (sub_blocks, _) = x.as_chunks::<32>();
    let d = -extreme(scales) / 32.0;
    let inverse = divide_or_zero(1.0, d);
    let scale_codes = scales.map(|scale| nearest(inverse * scale).clamp(-32, 31));
    let mut qs = [0; 128];
    let (packed, _) = qs.as_chunks_mut::<16>();
    for j in 0..8 {
        // With d as it was found, before it is rounded for storage.
        let scale = d * scale_codes[j] as f32;
        packed[j] = pack::nibbles(&codes(&sub_blocks[j], divide_or_zero(1.0, scale)));
    }
    let (scales_h, scales_l) = pack_scales(&scale_codes.map(|code| (code + 32) as u8));
    BlockIq4Xs { d: Half::new(d), scales_h, scales_l, qs }
}

/// Packs the 6-bit scales as in the module's diagram.
fn pack_scales(scales: &[u8; 8]) -> ([u8; 2], [u8; 4]) {
    let high = scales.iter().enumerate().fold(0, |high, (j, &s)| high | u16::from(s >> 4) << (2 * j));
    (high.to_le_bytes(), array::from_fn(|j| scales[2 * j] & 15 | scales[2 * j + 1] << 4))
}

/// The inverse of [`pack_scales`].
#[inline]
fn unpack_scales(high: [u8; 2], low: [u8; 4]) -> [u8; 8] {
    let high = u16::from_le_bytes(high);
    array::from_fn(|j| low[j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) as u8) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_the_places_that_the_diagram_gives() {
        let mut scales = [0; 8];
        (scales[3], scales[6]) = (0b01_0110, 0b10_1001);
        let (high, low) = pack_scales(&scales);
        assert_eq!((u16::from_le_bytes(high), low), (1 << 6 | 2 << 12, [0, 0x60, 0, 0x09]));
        assert_eq!(unpack_scales(high, low), scales);
    }

    #[test]
    fn each_sub_block_has_its_own_scale() {
        let mut qs = [0; 128];
        qs[6 * 16 + 5] = 0xf8;
        let (scales_h, scales_l) = pack_scales(&[32, 32, 32, 32, 32, 32, 34, 32]);
        let block = BlockIq4Xs { d: Half::new(0.5), scales_h, scales_l, qs };
        let mut x = [1.0; 256];
        BlockIq4Xs::dequantize_row(&[block], &mut x);
        assert_eq!((x[192 + 5], x[192 + 21], x[192], x[0]), (1.0, 113.0, -127.0, 0.0));
    }
}
