//! Q5_K: x ≈ d·s·q − dmin·t, q from 0 to 31. 5.5 bits per weight.
//!
//! Like Q4_K with one more bit: 256 weights in eight sub-blocks of 32, each with a 6-bit scale s and a 6-bit min t.
//!
//! ```text
//!  byte 0      2      4                  16                 48                                      176
//!       | d    | dmin | 12 B: s and t    | 32 B: bit 4 of q | 128 B: bits 0-3 of q, as in Q4_K        |
//!                       six_bit_pairs      byte l, bit p: code 32·p + l
//! ```
//!
//! Source: `block_q5_K`, `quantize_row_q5_K_ref` and `quantize_row_q5_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::affine_k::{AffineK, Search, Searched};
use super::pack::FiveBitsK;
use super::{BEYOND_F16, Twin};
use crate::gguf::TensorType;
use crate::quant::search::affine::AffineSearch;

/// 256 weights.
pub type BlockQ5K = AffineK<FiveBitsK>;

const _: () = assert!(size_of::<BlockQ5K>() == 176);

impl Twin for BlockQ5K {
    const TYPE: TensorType = TensorType::Q5_K;
    const LIMIT: f32 = 8.0 * BEYOND_F16;
    const LIMIT_WITH_IMPORTANCE: f32 = 4.0 * BEYOND_F16;
}

impl Searched for BlockQ5K {
    const SEARCH: Search = Search {
        plain: AffineSearch { max: 31, first: -0.5, step: 0.1, tries: 16, absolute: false, limit_first: false },
        capped: true,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::formats::pack;
    use crate::quant::{Block, Half};

    #[test]
    fn the_fifth_bit_lies_apart() {
        let (mut qh, mut qs) = ([0; 32], [0; 128]);
        qh[5] = 1 << 6;
        qs[96 + 5] = 0x07;
        let scales = pack::six_bit_pairs(&[0, 0, 0, 0, 0, 0, 40, 0], &[0; 8]);
        let block = BlockQ5K { d: Half::new(0.5), dmin: Half::new(2.0), scales, qs: FiveBitsK { high: qh, low: qs } };
        let mut x = [0.0; 256];
        BlockQ5K::dequantize_row(&[block], &mut x);
        assert_eq!((x[192 + 5], x[192 + 6], x[5]), (0.5 * 40.0 * 23.0, 0.0, 0.0));
    }
}
