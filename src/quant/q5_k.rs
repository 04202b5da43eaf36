//! Q5_K: x ≈ d·s·q − dmin·t, q from 0 to 31. 5.5 bits per weight.
//!
//! As Q4_K with a bit more: 256 weights in eight sub-blocks of 32, each with a 6-bit scale s and a 6-bit min t.
//!
//! ```text
//!  byte 0      2      4                  16                 48                                      176
//!       | d    | dmin | 12 B: s and t    | 32 B: bit 4 of q | 128 B: bits 0-3 of q, as in Q4_K        |
//!                       six_bit_pairs      byte l, bit p: code 32·p + l
//! ```
//!
//! Source: `block_q5_K`, `quantize_row_q5_K_ref` and `quantize_row_q5_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::AffineSearch;
use super::{Block, Half, Importance, Lanes, Rows, affine_k, dequantize_blocks, pack, quantize_blocks};
use crate::gguf::TensorType;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// The scale d of the scales.
    pub d: Half,
    /// The scale of the mins.
    pub dmin: Half,
    /// Scales and mins of the sub-blocks.
    pub scales: [u8; 12],
    /// Bit 4 of each code.
    pub qh: [u8; 32],
    /// Bits 0 to 3 of each code.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5K>() == 176);

const SEARCH: affine_k::Search = affine_k::Search {
    plain: AffineSearch { max: 31, first: -0.5, step: 0.1, tries: 16, absolute: false, limit_first: false },
    capped: true,
};

impl Block for BlockQ5K {
    const TYPE: TensorType = TensorType::Q5_K;
    const LEN: usize = 256;
    const IMPORTANCE: Importance = Importance::Used;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks::<256, Self>(src, importance, dst, |x, importance| {
            Self::new(&affine_k::fit(SEARCH, x, importance))
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(lanes: L, rows: Rows, dst: &mut [Self]) {
        affine_k::fit_rows(
            lanes,
            SEARCH,
            rows,
            #[inline(always)]
            |i, fit| dst[i] = Self::new(&fit),
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let (scales, mins) = affine_k::sub_block_scales(block.d, block.dmin, &block.scales);
            let mut codes = pack::unpack_four_bits(&block.qs);
            pack::unpack_one_bit(&block.qh, 4, &mut codes);
            std::array::from_fn(|i| scales[i / 32] * f32::from(codes[i]) - mins[i / 32])
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl BlockQ5K {
    #[inline(always)]
    fn new(fit: &affine_k::Fit) -> Self {
        let (qh, qs) = (pack::one_bit(&fit.codes, 4), pack::four_bits(&fit.codes));
        Self { d: fit.d, dmin: fit.dmin, scales: fit.scales, qh, qs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_bit_lies_apart() {
        let (mut qh, mut qs) = ([0; 32], [0; 128]);
        qh[5] = 1 << 6;
        qs[96 + 5] = 0x07;
        let scales = pack::six_bit_pairs(&[0, 0, 0, 0, 0, 0, 40, 0], &[0; 8]);
        let block = BlockQ5K { d: Half::new(0.5), dmin: Half::new(2.0), scales, qh, qs };
        let mut x = [0.0; 256];
        BlockQ5K::dequantize_row(&[block], &mut x);
        assert_eq!((x[192 + 5], x[192 + 6], x[5]), (0.5 * 40.0 * 23.0, 0.0, 0.0));
    }
}
