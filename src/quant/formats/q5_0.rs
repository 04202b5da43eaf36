//! Q5_0: x ≈ d·(q − 16), q from 0 to 31. 5.5 bits per weight.
//!
//! ```text
//!  byte 0      2                 6                                                       22
//!       | d    | 4 B: bit 4 of q | 16 B: bits 0-3 of q, weights j (low half) and j + 16   |
//! ```
//!
//! Like Q4_0 with one more bit: without importance, the weight of largest magnitude gets q = 0 and determines d; with
//! importance, d is searched.
//!
//! Source: `block_q5_0`, `quantize_row_q5_0_ref` and `quantize_row_q5_0_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::pack::FiveBits;
use super::symmetric::Symmetric;
use super::{BEYOND_F16, Twin};
use crate::gguf::TensorType;

/// 32 weights.
pub type BlockQ5_0 = Symmetric<FiveBits>;

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl Twin for BlockQ5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    const LIMIT: f32 = 8.0 * BEYOND_F16;
    const LIMIT_WITH_IMPORTANCE: f32 = Self::LIMIT;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Block, Half};

    #[test]
    fn the_largest_weight_comes_back_exactly_and_weights_keep_their_places() {
        let x: [f32; 32] = std::array::from_fn(|i| i as f32 - 16.0);
        let (mut block, mut back) =
            ([BlockQ5_0 { d: Half::new(0.0), qs: FiveBits { high: [0; 4], low: [0; 16] } }], [0.0; 32]);
        BlockQ5_0::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].d.value(), block[0].qs.low[15]), (1.0, 0xff));
        assert_eq!(u32::from_le_bytes(block[0].qs.high), 0xffff_0000);
        BlockQ5_0::dequantize_row(&block, &mut back);
        assert_eq!(back, x);
    }
}
