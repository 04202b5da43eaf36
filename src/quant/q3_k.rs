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
//! Without importance each scale is found by single moves, weighted with x². With it the searches' weights are
//! importance · √(twice the mean square of the block + x²), and the scales are in turn fitted with the sums of their
//! sub-blocks' weights.
//!
//! Source: `block_q3_K`, `quantize_row_q3_K_ref` and `quantize_row_q3_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::{extreme, fit_symmetric, fit_symmetric_by_moves, importance_weights, nearest, sum_of_squares};
use super::{Block, Half, Importance, dequantize_blocks, pack, quantize_blocks};
use crate::gguf::TensorType;
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

impl Block for BlockQ3K {
    const TYPE: TensorType = TensorType::Q3_K;
    const LEN: usize = 256;
    const IMPORTANCE: Importance = Importance::Used;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks(src, importance, dst, quantize);
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let sub_blocks = block.sub_blocks();
            let mut codes = pack::unpack_two_bits(&block.qs);
            pack::unpack_one_bit(&block.hmask, 2, &mut codes);
            array::from_fn(|i| sub_blocks[i / 16] * (f32::from(codes[i]) - 4.0))
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl BlockQ3K {
    /// d·(s − 32) of each sub-block.
    #[inline]
    fn sub_blocks(&self) -> [f32; 16] {
        let d = self.d.value();
        unpack_scales(&self.scales).map(|s| d * (f32::from(s) - 32.0))
    }
}

fn quantize(x: &[f32; 256], importance: Option<&[f32; 256]>) -> BlockQ3K {
    let mut codes = [0; 256];
    let (sub_blocks, _) = x.as_chunks::<16>();
    let (sub_codes, _) = codes.as_chunks_mut::<16>();
    let mut scales = [0.0; 16];
    let (d, packed);
    match importance {
        None => {
            for j in 0..16 {
                scales[j] = fit_symmetric_by_moves(&sub_blocks[j], 4, &mut sub_codes[j]);
            }
            let extreme = extreme(&scales);
            if extreme == 0.0 {
                (d, packed) = (0.0, [0; 12]);
            } else {
                let inverse = -32.0 / extreme;
                d = 1.0 / inverse;
                let code = |scale: f32| nearest(inverse * scale).clamp(-32, 31) + 32;
                packed = pack_scales(&scales.map(|scale| code(scale) as u8));
            }
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<16>();
            let variance = 2.0 * sum_of_squares(x) / 256.0;
            let mut sums = [0.0; 16];
            for j in 0..16 {
                let weights = importance_weights(&importance[j], variance, &sub_blocks[j]);
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                scales[j] = fit_symmetric(&sub_blocks[j], &weights, 4, &mut sub_codes[j]);
            }
            let mut scale_codes = [0; 16];
            d = fit_symmetric(&scales, &sums, 32, &mut scale_codes);
            packed = pack_scales(&scale_codes);
        }
    }

    let mut block = BlockQ3K { hmask: [0; 32], qs: [0; 64], scales: packed, d: Half::new(d) };
    for (j, scale) in block.sub_blocks().into_iter().enumerate() {
        // Else the codes stay as the search left them.
        if scale != 0.0 {
            sub_codes[j] = sub_blocks[j].map(|x| (nearest(x / scale).clamp(-4, 3) + 4) as u8);
        }
    }
    block.hmask = pack::one_bit(&codes, 2);
    block.qs = pack::two_bits(&codes.map(|code| code & 3));
    block
}

/// The 6-bit scales in the places that the module's diagram gives.
fn pack_scales(scales: &[u8; 16]) -> [u8; 12] {
    let high = |j: usize| scales[j] >> 4;
    array::from_fn(|i| match i {
        0..8 => scales[i] & 15 | scales[i + 8] << 4,
        _ => high(i - 8) | high(i - 4) << 2 | high(i) << 4 | high(i + 4) << 6,
    })
}

/// The inverse of [`pack_scales`].
#[inline]
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
