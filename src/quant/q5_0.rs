//! Q5_0: x ≈ d·(q − 16), q from 0 to 31. 5.5 bits per weight.
//!
//! ```text
//!  byte 0      2                 6                                                       22
//!       | d    | 4 B: bit 4 of q | 16 B: bits 0-3 of q, weights j (low half) and j + 16   |
//! ```
//!
//! As Q4_0 with a bit more: without importance the weight of largest magnitude gets q = 0 and decides d, with it d is
//! searched.
//!
//! Source: `block_q5_0`, `quantize_row_q5_0_ref` and `quantize_row_q5_0_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::{divide_or_zero, extreme, fit_symmetric, importance_weights, sum_of_squares, truncate_to_byte};
use super::{Block, Half, Importance, Lanes, Rows, dequantize_blocks, pack, quantize_blocks, small};
use crate::gguf::TensorType;

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// The scale d.
    pub d: Half,
    /// Bit 4 of each code: bit j is code j's.
    pub qh: [u8; 4],
    /// Bits 0 to 3 of each code.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl Block for BlockQ5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    const LEN: usize = 32;
    const IMPORTANCE: Importance = Importance::Used;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        let mean_square = if importance.is_some() { sum_of_squares(src) / src.len() as f32 } else { 0.0 };
        quantize_blocks::<32, Self>(src, importance, dst, |x, importance| {
            let (d, codes) = match importance {
                None => plain(x),
                Some(importance) => {
                    let mut codes = [0; 32];
                    (fit_symmetric(x, &importance_weights(importance, mean_square, x), 16, &mut codes), codes)
                }
            };
            let (qh, qs) = pack::five_bits(&codes);
            Self { d: Half::new(d), qh, qs }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        small::symmetric_rows(
            l,
            16,
            rows,
            #[inline(always)]
            |index: usize, d: Half, codes: &[u8; 32]| {
                let (qh, qs) = pack::five_bits(codes);
                dst[index] = Self { d, qh, qs };
            },
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let d = block.d.value();
            pack::unpack_five_bits(block.qh, &block.qs).map(|q| (f32::from(q) - 16.0) * d)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

fn plain(x: &[f32; 32]) -> (f32, [u8; 32]) {
    let d = extreme(x) / -16.0;
    let inverse = divide_or_zero(1.0, d);
    (d, x.map(|x| (truncate_to_byte(x * inverse + 16.5) as i8).min(31) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_comes_back_exactly_and_weights_keep_their_places() {
        let x: [f32; 32] = std::array::from_fn(|i| i as f32 - 16.0);
        let (mut block, mut back) = ([BlockQ5_0 { d: Half::new(0.0), qh: [0; 4], qs: [0; 16] }], [0.0; 32]);
        BlockQ5_0::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].d.value(), block[0].qs[15]), (1.0, 0xff));
        assert_eq!(u32::from_le_bytes(block[0].qh), 0xffff_0000);
        BlockQ5_0::dequantize_row(&block, &mut back);
        assert_eq!(back, x);
    }
}
