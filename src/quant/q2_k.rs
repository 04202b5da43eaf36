//! Q2_K: x ≈ d·s·q − dmin·t, q from 0 to 3. 2.625 bits per weight.
//!
//! 256 weights in sixteen sub-blocks of 16, each with a 4-bit scale s and a 4-bit min t.
//!
//! ```text
//!  byte 0                                        16                          80     82     84
//!       | 16 B: s (low half) and t of sub-block j | 64 B: q, as two_bits says | d    | dmin |
//! ```
//!
//! Without importance the search's weights are |x| and its error is absolute. With it the weights are
//! importance · √(mean square of the block + x²), the error is squared, and the scales and mins are in turn fitted with
//! the sums of their sub-blocks' weights.
//!
//! Source: `block_q2_K`, `quantize_row_q2_K_ref` and `quantize_row_q2_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::{Affine, AffineSearch, fit_affine, fit_positive, importance_weights, nearest, sum_of_squares};
use super::{Block, Half, Importance, dequantize_blocks, pack, quantize_blocks};
use crate::gguf::TensorType;
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

impl Block for BlockQ2K {
    const TYPE: TensorType = TensorType::Q2_K;
    const LEN: usize = 256;
    const IMPORTANCE: Importance = Importance::Used;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks(src, importance, dst, quantize);
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let sub_blocks = block.sub_blocks();
            let codes = pack::unpack_two_bits(&block.qs);
            array::from_fn(|i| {
                let (scale, min) = sub_blocks[i / 16];
                scale * f32::from(codes[i]) - min
            })
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl BlockQ2K {
    /// (d·s, dmin·t) of each sub-block.
    #[inline]
    fn sub_blocks(&self) -> [(f32, f32); 16] {
        let (d, dmin) = (self.d.value(), self.dmin.value());
        self.scales.map(|byte| (d * f32::from(byte & 15), dmin * f32::from(byte >> 4)))
    }
}

fn quantize(x: &[f32; 256], importance: Option<&[f32; 256]>) -> BlockQ2K {
    let mut codes = [0; 256];
    let (sub_blocks, _) = x.as_chunks::<16>();
    let (sub_codes, _) = codes.as_chunks_mut::<16>();
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    let (d, dmin, scale_codes, min_codes);
    match importance {
        None => {
            for j in 0..16 {
                let weights = sub_blocks[j].map(f32::abs);
                let fit = fit_affine(PLAIN, &sub_blocks[j], &weights, &mut sub_codes[j]);
                Affine { scale: scales[j], min: mins[j] } = fit;
            }
            (d, scale_codes) = four_bits(&scales);
            (dmin, min_codes) = four_bits(&mins);
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<16>();
            let mean_square = sum_of_squares(x) / 256.0;
            let mut sums = [0.0; 16];
            for j in 0..16 {
                let weights = importance_weights(&importance[j], mean_square, &sub_blocks[j]);
                sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
                let fit = fit_affine(AffineSearch::weighted(3), &sub_blocks[j], &weights, &mut sub_codes[j]);
                Affine { scale: scales[j], min: mins[j] } = fit;
            }
            let mut fitted = ([0; 16], [0; 16]);
            d = fit_positive(&scales, &sums, 15, &mut fitted.0);
            dmin = fit_positive(&mins, &sums, 15, &mut fitted.1);
            (scale_codes, min_codes) = fitted;
        }
    }

    let mut block = BlockQ2K {
        scales: array::from_fn(|j| scale_codes[j] | min_codes[j] << 4),
        qs: [0; 64],
        d: Half::new(d),
        dmin: Half::new(dmin),
    };
    for (j, (scale, min)) in block.sub_blocks().into_iter().enumerate() {
        // Else the codes stay as the search left them.
        if scale != 0.0 {
            sub_codes[j] = sub_blocks[j].map(|x| nearest((x + min) / scale).clamp(0, 3) as u8);
        }
    }
    block.qs = pack::two_bits(&codes);
    block
}

/// A scale for `x`, and `x` in it as 4-bit numbers that give the largest 15.
fn four_bits(x: &[f32; 16]) -> (f32, [u8; 16]) {
    let largest = x.iter().fold(0.0, |largest, &x| if x > largest { x } else { largest });
    if largest > 0.0 {
        let inverse = 15.0 / largest;
        (largest / 15.0, x.map(|x| nearest(inverse * x) as u8))
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
