//! Q5_1: x ≈ d·q + m, q from 0 to 31. 6 bits per weight.
//!
//! ```text
//!  byte 0      2      4                 8                                                       24
//!       | d    | m    | 4 B: bit 4 of q | 16 B: bits 0-3 of q, weights j (low half) and j + 16   |
//! ```
//!
//! Like Q4_1 with one more bit: without importance, the codes span the weights from the smallest to the largest; with
//! importance, d and m ≤ 0 are searched.
//!
//! Source: `block_q5_1`, `quantize_row_q5_1_ref` and `quantize_row_q5_1_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::affine::Affine32;
use super::pack::FiveBits;
use super::{BEYOND_F16, Twin};
use crate::gguf::TensorType;

/// 32 weights.
pub type BlockQ5_1 = Affine32<FiveBits>;

const _: () = assert!(size_of::<BlockQ5_1>() == 24);

impl Twin for BlockQ5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    // The smallest weight is stored.
    const LIMIT: f32 = BEYOND_F16;
    // A line through the two weights that count may meet q = 0 far below the others.
    const LIMIT_WITH_IMPORTANCE: f32 = BEYOND_F16 / 8.0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Block, Half};

    #[test]
    fn the_smallest_and_the_largest_weight_come_back() {
        let x: [f32; 32] = std::array::from_fn(|i| if i == 20 { 32.0 } else { 1.0 });
        let zero = Half::new(0.0);
        let (mut block, mut back) =
            ([BlockQ5_1 { d: zero, m: zero, qs: FiveBits { high: [0; 4], low: [0; 16] } }], [0.0; 32]);
        BlockQ5_1::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].d.value(), block[0].m.value(), block[0].qs.low[4]), (1.0, 1.0, 0xf0));
        assert_eq!(u32::from_le_bytes(block[0].qs.high), 1 << 20);
        BlockQ5_1::dequantize_row(&block, &mut back);
        assert_eq!(back, x);
    }
}
