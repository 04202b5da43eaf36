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

use super::affine_k::{AffineK, Search, Searched};
use super::pack::FourBitsK;
use super::{BEYOND_F16, Twin};
use crate::gguf::TensorType;
use crate::quant::search::affine::AffineSearch;

/// 256 weights.
pub type BlockQ4K = AffineK<FourBitsK>;

const _: () = assert!(size_of::<BlockQ4K>() == 144);

impl Twin for BlockQ4K {
    const TYPE: TensorType = TensorType::Q4_K;
    const LIMIT: f32 = 8.0 * BEYOND_F16;
    const LIMIT_WITH_IMPORTANCE: f32 = 4.0 * BEYOND_F16;
}

impl Searched for BlockQ4K {
    const SEARCH: Search = Search {
        plain: AffineSearch { max: 15, first: -1.0, step: 0.1, tries: 21, absolute: false, limit_first: false },
        capped: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::formats::pack;
    use crate::quant::{Block, Half};

    #[test]
    fn each_sub_block_has_its_own_scale_and_min() {
        let mut scales = [0; 8];
        (scales[1], scales[6]) = (3, 40);
        let mut qs = [0; 128];
        (qs[5], qs[96 + 5]) = (0xa0, 0x07);
        let scales = pack::six_bit_pairs(&scales, &[0, 2, 0, 0, 0, 0, 50, 0]);
        let block = BlockQ4K { d: Half::new(0.5), dmin: Half::new(2.0), scales, qs: FourBitsK(qs) };
        let mut x = [0.0; 256];
        BlockQ4K::dequantize_row(&[block], &mut x);
        assert_eq!((x[32 + 5], x[32 + 6]), (0.5 * 3.0 * 10.0 - 4.0, -4.0));
        assert_eq!((x[192 + 5], x[192 + 6], x[0]), (0.5 * 40.0 * 7.0 - 100.0, -100.0, 0.0));
    }
}
