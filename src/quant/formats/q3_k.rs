//! Q3_K: x ≈ d·(s − 32)·(q − 4), q from 0 to 7. 3.4375 bits per weight.
//!
//! 256 weights in sixteen sub-blocks of 16, each with a 6-bit scale s.
//!
//! ```text
//!  byte 0                    32                                       96           108    110
//!       | 32 B: bit 2 of q   | 64 B: bits 0-1 of q, as two_bits says   | 12 B: s    | d    |
//!         byte l, bit p: code 32·p + l
//!
//!  s:  byte 0..8     bits 0-3: low bits of s 0..8      bits 4-7: low bits of s 8..16
//!      byte 8..12    byte 8 + j: bits 4-5 of s j, j + 4, j + 8 and j + 12, lowest first
//! ```
//!
//! Without importance, each scale is found by single moves, weighted with x². With importance, the searches' weights
//! are importance · √(twice the mean square of the block + x²), and the scales are themselves fitted, weighted with the
//! sums of their sub-blocks' weights.
//!
//! Source: `block_q3_K`, `quantize_row_q3_K_ref` and `quantize_row_q3_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::{BEYOND_F16, pack};
use crate::gguf::TensorType;
use crate::lanes::{Lanes, MAX_LANES};
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales, Step, Whole};
use crate::quant::rows::Rows;
use crate::quant::search::batch::{self, Batch, Fitted};
use crate::quant::search::moves::{self, MOVES_BLOCKS, Moves, MovesBatch};
use crate::quant::search::numbers::{extreme, importance_weights, importance_weights_lanes, nearest, sum_of_squares};
use crate::quant::search::symmetric::{self, SymmetricBatch};
use crate::quant::{Block, Half, ImportanceUse, Scaled};
use std::array;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// Bit 2 of each code.
    pub hmask: [u8; 32],
    /// Bits 0 and 1 of each code.
    pub qs: [u8; 64],
    /// The scales of the sub-blocks.
    pub scales: [u8; 12],
    /// The scale d of the scales.
    pub d: Half,
}

const _: () = assert!(size_of::<BlockQ3K>() == 110);

const WHOLE: Whole = Whole { smallest: -4, largest: 3 };

impl Block for BlockQ3K {
    const TYPE: TensorType = TensorType::Q3_K;
    const LEN: usize = 256;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = 8.0 * BEYOND_F16;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks(src, importance, dst, quantize);
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        match rows.importance {
            None => by_moves(l, rows, dst),
            Some(_) => with_importance(l, rows, dst),
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let sub_blocks = block.sub_blocks();
            let codes = block.unpack();
            array::from_fn(|i| sub_blocks[i / 16] * (f32::from(codes[i]) - 4.0))
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl BlockQ3K {
    /// d·(s − 32) of each sub-block.
    #[inline(always)]
    fn sub_blocks(&self) -> [f32; 16] {
        let d = self.d.value();
        unpack_scales(&self.scales).map(|s| d * (f32::from(s) - 32.0))
    }

    #[inline(always)]
    fn unpack(&self) -> [u8; 256] {
        let mut codes = pack::unpack_two_bits(&self.qs);
        pack::unpack_one_bit(&self.hmask, 2, &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(&mut self, mut codes: [u8; 256]) {
        self.hmask = pack::one_bit(&codes, 2);
        for code in &mut codes {
            *code &= 3;
        }
        self.qs = pack::two_bits(&codes);
    }
}

#[inline(always)]
fn by_moves<L: Lanes>(l: L, rows: Rows, dst: &mut [BlockQ3K]) {
    let mut found = MovesBatch::new();
    let mut moves = Moves::<L, 16, 4>::new(l);
    for batch in Batch::<16>::of_len(MOVES_BLOCKS, rows) {
        found.search(l, &mut moves, batch);
        for (b, x) in batch.blocks.iter().enumerate() {
            dst[batch.first + b] = if found.odd[b] != [0.0; 16] {
                quantize(x, None)
            } else {
                let (d, scale_codes) = six_bits(&found.scales[b]);
                by_lanes(l, d, &scale_codes, x, |j| {
                    let mut codes = [0; 16];
                    moves::fit(&x.as_chunks().0[j], 4, &mut codes);
                    codes
                })
            };
        }
    }
}

#[inline(always)]
fn with_importance<L: Lanes>(l: L, rows: Rows, dst: &mut [BlockQ3K]) {
    for batch in Batch::<16>::of(l, rows) {
        let mut found = SymmetricBatch::new();
        let mut sums = [[0.0; 16]; MAX_LANES];
        let variances = batch.sums_of_squares(l).map(|sum| 2.0 * sum / 256.0);
        for at in batch.groups(l) {
            let x = batch.columns(l, at);
            let importance = batch.importance(l, at).expect("there is importance");
            let (weights, sum) = importance_weights_lanes(l, &x, &importance, batch.of_blocks(l, at, &variances));
            batch::put(l, &mut sums, at, sum);
            found.search(l, at, 4, &x, &weights);
        }
        let mut odd = [[0.0; 16]; MAX_LANES];
        let fitted = Fitted::symmetric(l, &found.scales, &sums, 32, &mut odd);
        for (b, x) in batch.blocks.iter().enumerate() {
            dst[batch.first + b] = if odd[b] != [0.0; 16] {
                quantize(x, batch.block_importance(b))
            } else {
                by_lanes(l, fitted.d[b], &fitted.codes[b], x, |j| found.codes(4, b, j, x))
            };
        }
    }
}

/// Returns the block with these scales. A sub-block whose scale is 0 gets the codes with which its search ended.
#[inline(always)]
fn by_lanes<L: Lanes>(
    l: L,
    d: f32,
    scale_codes: &[u8; 16],
    x: &[f32; 256],
    searched: impl Fn(usize) -> [u8; 16],
) -> BlockQ3K {
    block(
        d,
        scale_codes,
        #[inline(always)]
        |scales| WHOLE.codes_lanes::<_, 16, 16>(l, x, scales, None, searched),
    )
}

impl Scaled for BlockQ3K {
    const SUB_BLOCK: usize = 16;
    const LEVELS: Levels = Levels::Whole(WHOLE);
    type Steps = [Step; 16];

    fn fit(x: &[f32], importance: Option<&[f32]>, _: f32) -> Self {
        let (d, scales, _) = search(array_of(x), importance.map(array_of));
        block(d, &scales, |_| [0; 256])
    }

    fn steps(&self) -> [Step; 16] {
        self.sub_blocks().map(Step::symmetric)
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.pack(*array_of(codes));
    }
}

impl Rescale for BlockQ3K {
    const FACTORS: [i16; 2] = [-32, 31];
    const MIN_FACTORS: [i16; 2] = [0, 0];

    fn scales(&self) -> Scales {
        let scales = unpack_scales(&self.scales);
        Scales::symmetric(self.d, |j| i16::from(scales[j]) - 32)
    }

    fn set_scales(&mut self, scales: &Scales) {
        self.d = scales.d;
        self.scales = pack_scales(&scales.factors.map(|s| (s + 32) as u8));
    }

    fn codes(&self, codes: &mut [u8]) {
        codes.copy_from_slice(&self.unpack());
    }
}

fn quantize(x: &[f32; 256], importance: Option<&[f32; 256]>) -> BlockQ3K {
    let (d, scales, codes) = search(x, importance);
    block(d, &scales, |scales| WHOLE.codes(x, scales, &[0.0; 16], |j| codes[j]))
}

/// d, the 6-bit scales, and the codes with which the search of each sub-block ended.
fn search(x: &[f32; 256], importance: Option<&[f32; 256]>) -> (f32, [u8; 16], [[u8; 16]; 16]) {
    let mut codes = [[0; 16]; 16];
    let (sub_blocks, _) = x.as_chunks::<16>();
    let mut scales = [0.0; 16];
    let (d, scale_codes) = match importance {
        None => {
            for j in 0..16 {
                scales[j] = moves::fit(&sub_blocks[j], 4, &mut codes[j]);
            }
            six_bits(&scales)
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<16>();
            let variance = 2.0 * sum_of_squares(x) / 256.0;
            let mut sums = [0.0; 16];
            for j in 0..16 {
                let weights = importance_weights(&importance[j], variance, &sub_blocks[j]);
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                scales[j] = symmetric::fit(&sub_blocks[j], &weights, 4, &mut codes[j]);
            }
            let mut scale_codes = [0; 16];
            (symmetric::fit(&scales, &sums, 32, &mut scale_codes), scale_codes)
        }
    };
    (d, scale_codes, codes)
}

/// Returns a scale for `scales`, and these divided by it as 6-bit numbers plus 32, scaled so that the largest magnitude
/// is at an end of the range.
#[inline(always)]
fn six_bits(scales: &[f32; 16]) -> (f32, [u8; 16]) {
    let extreme = extreme(scales);
    if extreme == 0.0 {
        return (0.0, [0; 16]);
    }
    let inverse = -32.0 / extreme;
    let mut codes = [0; 16];
    for j in 0..16 {
        codes[j] = (nearest(inverse * scales[j]).clamp(-32, 31) + 32) as u8;
    }
    (1.0 / inverse, codes)
}

/// The block with these scales, and with the codes that follow from d·s of each sub-block.
#[inline(always)]
fn block(d: f32, scales: &[u8; 16], codes: impl FnOnce(&[f32; 16]) -> [u8; 256]) -> BlockQ3K {
    let mut block = BlockQ3K { hmask: [0; 32], qs: [0; 64], scales: pack_scales(scales), d: Half::new(d) };
    let codes = codes(&block.sub_blocks());
    block.pack(codes);
    block
}

/// Packs the 6-bit scales as in the module's diagram.
#[inline(always)]
fn pack_scales(scales: &[u8; 16]) -> [u8; 12] {
    // Eight at a time, or four: no bit leaves its byte.
    let all = u128::from_le_bytes(*scales);
    let (first, last) = (all as u64, (all >> 64) as u64);
    let low = first & 0x0f0f_0f0f_0f0f_0f0f | (last & 0x0f0f_0f0f_0f0f_0f0f) << 4;
    let high = |word: u64| (word >> 4 & 0x0303_0303_0303_0303) as u32;
    let high = high(first) | high(first >> 32) << 2 | high(last) << 4 | high(last >> 32) << 6;
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}

/// The inverse of [`pack_scales`].
#[inline(always)]
fn unpack_scales(bytes: &[u8; 12]) -> [u8; 16] {
    array::from_fn(|j| {
        let low = if j < 8 { bytes[j] & 15 } else { bytes[j - 8] >> 4 };
        low | (bytes[8 + j % 4] >> (2 * (j / 4)) & 3) << 4
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_the_places_that_the_diagram_gives() {
        let mut scales = [0; 16];
        (scales[2], scales[13]) = (0b01_0110, 0b10_1001);
        let packed = pack_scales(&scales);
        assert_eq!((packed[2], packed[5], packed[10], packed[9]), (0b0110, 0b1001_0000, 0b01, 0b1000_0000));
        let all: [u8; 16] = array::from_fn(|j| (j * 37 % 64) as u8);
        assert_eq!(unpack_scales(&pack_scales(&all)), all);
    }

    #[test]
    fn the_third_bit_lies_apart() {
        let (mut hmask, mut qs) = ([0; 32], [0; 64]);
        (hmask[16], qs[32 + 16]) = (1 << 7, 0b1100_0000);
        let block = BlockQ3K { hmask, qs, scales: pack_scales(&[40; 16]), d: Half::new(0.5) };
        let mut x = [0.0; 256];
        BlockQ3K::dequantize_row(&[block], &mut x);
        assert_eq!((x[240], x[241]), (0.5 * 8.0 * 3.0, 0.5 * 8.0 * -4.0));
    }
}
