//! Q4_0: x ≈ d·(q − 8), q from 0 to 15. 4.5 bits per weight.
//!
//! ```text
//!  byte 0      2                                            18
//!       | d    | 16 B: q of weights j (low half) and j + 16  |
//! ```
//!
//! Without importance the weight of largest magnitude gets q = 0 and decides d. With it d is searched, the weights of the
//! search being importance · √(mean square of the row + x²).
//!
//! Source: `block_q4_0`, `quantize_row_q4_0_ref` and `quantize_row_q4_0_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::{divide_or_zero, extreme, fit_symmetric, importance_weights, sum_of_squares, truncate_to_byte};
use super::{Block, Half, Importance, Lanes, Rows, dequantize_blocks, pack, quantize_blocks, small};
use crate::gguf::TensorType;

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// The scale d.
    pub d: Half,
    /// The codes q.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl Block for BlockQ4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    const LEN: usize = 32;
    const IMPORTANCE: Importance = Importance::Used;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        let mean_square = if importance.is_some() { sum_of_squares(src) / src.len() as f32 } else { 0.0 };
        quantize_blocks::<32, Self>(src, importance, dst, |x, importance| {
            let (d, codes) = match importance {
                None => plain(x),
                Some(importance) => {
                    let mut codes = [0; 32];
                    (fit_symmetric(x, &importance_weights(importance, mean_square, x), 8, &mut codes), codes)
                }
            };
            Self { d: Half::new(d), qs: pack::nibbles(&codes) }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        small::symmetric_rows(
            l,
            8,
            rows,
            #[inline(always)]
            |index: usize, d: Half, codes: &[u8; 32]| {
                dst[index] = Self { d, qs: pack::nibbles(codes) };
            },
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let d = block.d.value();
            pack::unpack_nibbles(&block.qs).map(|q| (f32::from(q) - 8.0) * d)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

fn plain(x: &[f32; 32]) -> (f32, [u8; 32]) {
    let d = extreme(x) / -8.0;
    let inverse = divide_or_zero(1.0, d);
    (d, x.map(|x| (truncate_to_byte(x * inverse + 8.5) as i8).min(15) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_comes_back_exactly_and_weights_keep_their_places() {
        let x: [f32; 32] = std::array::from_fn(|i| i as f32 - 16.0);
        let (mut block, mut back) = ([BlockQ4_0 { d: Half::new(0.0), qs: [0; 16] }], [0.0; 32]);
        BlockQ4_0::quantize_row(&x, None, &mut block);
        assert_eq!(block[0].d.value(), 2.0);
        BlockQ4_0::dequantize_row(&block, &mut back);
        assert_eq!((back[0], back[2], back[16], back[28]), (-16.0, -14.0, 0.0, 12.0));
    }

    #[test]
    fn a_search_that_overflows_leaves_the_same_bytes_on_every_machine() {
        let x: [f32; 32] = std::array::from_fn(|i| (i as f32 - 16.0) * 1e24);
        let mut block = [BlockQ4_0 { d: Half::new(0.0), qs: [0; 16] }];
        BlockQ4_0::quantize_row(&x, Some(&[1.0; 32]), &mut block);
        assert_eq!(bytemuck::bytes_of(&block[0].d), [0x00, 0xfe]);
    }
}
