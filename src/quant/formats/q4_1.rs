//! Q4_1: x ≈ d·q + m, q from 0 to 15. 5 bits per weight.
//!
//! ```text
//!  byte 0      2      4                                            20
//!       | d    | m    | 16 B: q of weights j (low half) and j + 16  |
//! ```
//!
//! Without importance, the codes span the weights from the smallest to the largest. With importance, d and m ≤ 0 are
//! searched; the weights of the search are importance · √(mean square of the row + x²).
//!
//! Source: `block_q4_1`, `quantize_row_q4_1_ref` and `quantize_row_q4_1_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::affine::Affine32;
use super::pack::Nibbles;
use super::{BEYOND_F16, Twin};
use crate::gguf::TensorType;

/// 32 weights.
pub type BlockQ4_1 = Affine32<Nibbles>;

const _: () = assert!(size_of::<BlockQ4_1>() == 20);

impl Twin for BlockQ4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
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
        let x: [f32; 32] = std::array::from_fn(|i| if i == 20 { 16.0 } else { 1.0 });
        let zero = Half::new(0.0);
        let (mut block, mut back) = ([BlockQ4_1 { d: zero, m: zero, qs: Nibbles([0; 16]) }], [0.0; 32]);
        BlockQ4_1::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].d.value(), block[0].m.value(), block[0].qs.0[4]), (1.0, 1.0, 0xf0));
        BlockQ4_1::dequantize_row(&block, &mut back);
        assert_eq!(back, x);
    }
}
