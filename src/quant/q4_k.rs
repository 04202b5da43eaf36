//! Q4_K: x ≈ d·s·q − dmin·t, q from 0 to 15. 4.5 bits per weight.
//!
//! 256 weights in eight sub-blocks of 32, each with a 6-bit scale s and a 6-bit min t.
//!
//! ```text
//!  byte 0      2      4                  16                                                      144
//!       | d    | dmin | 12 B: s and t    | 128 B: q, four times 32 bytes for two sub-blocks each   |
//!                       six_bit_pairs      byte l of a quarter: codes l (low half) and l + 32
//! ```
//!
//! Source: `block_q4_K`, `quantize_row_q4_K_ref` and `quantize_row_q4_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::AffineSearch;
use super::{Block, Half, Importance, Lanes, Rows, affine_k, dequantize_blocks, pack, quantize_blocks};
use crate::gguf::TensorType;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// The scale d of the scales.
    pub d: Half,
    /// The scale of the mins.
    pub dmin: Half,
    /// Scales and mins of the sub-blocks.
    pub scales: [u8; 12],
    /// The codes q.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == 144);

const SEARCH: affine_k::Search = affine_k::Search {
    plain: AffineSearch { max: 15, first: -1.0, step: 0.1, tries: 21, absolute: false, limit_first: false },
    capped: false,
};

impl Block for BlockQ4K {
    const TYPE: TensorType = TensorType::Q4_K;
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
            let codes = pack::unpack_four_bits(&block.qs);
            std::array::from_fn(|i| scales[i / 32] * f32::from(codes[i]) - mins[i / 32])
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl BlockQ4K {
    #[inline(always)]
    fn new(fit: &affine_k::Fit) -> Self {
        Self { d: fit.d, dmin: fit.dmin, scales: fit.scales, qs: pack::four_bits(&fit.codes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sub_block_has_its_own_scale_and_min() {
        let mut scales = [0; 8];
        (scales[1], scales[6]) = (3, 40);
        let mut qs = [0; 128];
        (qs[5], qs[96 + 5]) = (0xa0, 0x07);
        let scales = pack::six_bit_pairs(&scales, &[0, 2, 0, 0, 0, 0, 50, 0]);
        let block = BlockQ4K { d: Half::new(0.5), dmin: Half::new(2.0), scales, qs };
        let mut x = [0.0; 256];
        BlockQ4K::dequantize_row(&[block], &mut x);
        assert_eq!((x[32 + 5], x[32 + 6]), (0.5 * 3.0 * 10.0 - 4.0, -4.0));
        assert_eq!((x[192 + 5], x[192 + 6], x[0]), (0.5 * 40.0 * 7.0 - 100.0, -100.0, 0.0));
    }
}
