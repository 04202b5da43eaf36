//! Q5_1: x ≈ d·q + m, q from 0 to 31. 6 bits per weight.
//!
//! ```text
//!  byte 0      2      4                 8                                                       24
//!       | d    | m    | 4 B: bit 4 of q | 16 B: bits 0-3 of q, weights j (low half) and j + 16   |
//! ```
//!
//! As Q4_1 with a bit more: without importance the codes span the weights from smallest to largest, with it d and m ≤ 0
//! are searched.
//!
//! Source: `block_q5_1`, `quantize_row_q5_1_ref` and `quantize_row_q5_1_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::search::{
    AffineSearch, divide_or_zero, fit_affine, importance_weights, smallest_and_largest, sum_of_squares,
    truncate_to_byte,
};
use super::{Block, Half, Importance, Lanes, Rows, dequantize_blocks, pack, quantize_blocks, small};
use crate::gguf::TensorType;

/// 32 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// The scale d.
    pub d: Half,
    /// The offset m.
    pub m: Half,
    /// Bit 4 of each code: bit j is code j's.
    pub qh: [u8; 4],
    /// Bits 0 to 3 of each code.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_1>() == 24);

impl Block for BlockQ5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    const LEN: usize = 32;
    const IMPORTANCE: Importance = Importance::Used;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        let mean_square = if importance.is_some() { sum_of_squares(src) / src.len() as f32 } else { 0.0 };
        quantize_blocks::<32, Self>(src, importance, dst, |x, importance| {
            let (d, m, codes) = match importance {
                None => plain(x),
                Some(importance) => {
                    let mut codes = [0; 32];
                    let weights = importance_weights(importance, mean_square, x);
                    let fit = fit_affine(AffineSearch::weighted(31), x, &weights, &mut codes);
                    (fit.scale, -fit.min, codes)
                }
            };
            let (qh, qs) = pack::five_bits(&codes);
            Self { d: Half::new(d), m: Half::new(m), qh, qs }
        });
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        small::affine_rows(
            l,
            31,
            rows,
            #[inline(always)]
            |index: usize, [d, m]: [Half; 2], codes: &[u8; 32]| {
                let (qh, qs) = pack::five_bits(codes);
                dst[index] = Self { d, m, qh, qs };
            },
        );
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<32, Self>(src, dst, |block| {
            let (d, m) = (block.d.value(), block.m.value());
            pack::unpack_five_bits(block.qh, &block.qs).map(|q| f32::from(q) * d + m)
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

fn plain(x: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (smallest, largest) = smallest_and_largest(x);
    let d = (largest - smallest) / 31.0;
    let inverse = divide_or_zero(1.0, d);
    (d, smallest, x.map(|x| truncate_to_byte((x - smallest) * inverse + 0.5)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_and_the_largest_weight_come_back() {
        let x: [f32; 32] = std::array::from_fn(|i| if i == 20 { 32.0 } else { 1.0 });
        let zero = Half::new(0.0);
        let (mut block, mut back) = ([BlockQ5_1 { d: zero, m: zero, qh: [0; 4], qs: [0; 16] }], [0.0; 32]);
        BlockQ5_1::quantize_row(&x, None, &mut block);
        assert_eq!((block[0].d.value(), block[0].m.value(), block[0].qs[4]), (1.0, 1.0, 0xf0));
        assert_eq!(u32::from_le_bytes(block[0].qh), 1 << 20);
        BlockQ5_1::dequantize_row(&block, &mut back);
        assert_eq!(back, x);
    }
}
