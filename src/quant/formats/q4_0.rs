//! Q4_0: x ≈ d·(q − 8), q from 0 to 15. 4.5 bits per weight.
//!
//! ```text
//!  byte 0      2                                            18
//!       | d    | 16 B: q of weights j (low half) and j + 16  |
//! ```
//!
//! Without importance, the weight of largest magnitude gets q = 0 and determines d. With importance, d is searched; the
//! weights of the search are importance · √(mean square of the row + x²).
//!
//! Source: `block_q4_0`, `quantize_row_q4_0_ref` and `quantize_row_q4_0_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::pack::Nibbles;
use super::symmetric::Symmetric;
use super::{BEYOND_F16, Twin};
use crate::gguf::TensorType;

/// 32 weights.
pub type BlockQ4_0 = Symmetric<Nibbles>;

const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl Twin for BlockQ4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    const LIMIT: f32 = 8.0 * BEYOND_F16;
    // The search tries scales of down to 7.1 steps, and a weight of 1.5 steps alone may decide.
    const LIMIT_WITH_IMPORTANCE: f32 = 4.0 * BEYOND_F16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Block;

    #[test]
    fn the_largest_weight_comes_back_exactly_and_weights_keep_their_places() {
        let x: [f32; 32] = std::array::from_fn(|i| i as f32 - 16.0);
        let (mut block, mut back) = ([bytemuck::Zeroable::zeroed(); 1], [0.0; 32]);
        BlockQ4_0::quantize_row(&x, None, &mut block);
        assert_eq!(block[0].d.value(), 2.0);
        BlockQ4_0::dequantize_row(&block, &mut back);
        assert_eq!((back[0], back[2], back[16], back[28]), (-16.0, -14.0, 0.0, 12.0));
    }

    #[test]
    fn a_search_that_overflows_leaves_the_same_bytes_on_every_machine() {
        let x: [f32; 32] = std::array::from_fn(|i| (i as f32 - 16.0) * 1e24);
        let mut block = [bytemuck::Zeroable::zeroed(); 1];
        BlockQ4_0::quantize_row(&x, Some(&[1.0; 32]), &mut block);
        assert_eq!(bytemuck::bytes_of(&block[0].d), [0x00, 0xfe]);
    }
}
