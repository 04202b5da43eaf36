//! F32, F16, BF16: one float per weight, no scale. 32, 16 and 16 bits per weight.
//!
//! ```text
//!  F32   4 B: the float, little-endian
//!  F16   2 B: its nearest half, ties to even
//!  BF16  2 B: its upper half, ties to even
//! ```
//!
//! Source: `ggml_fp32_to_fp16_row` and `ggml_fp32_to_bf16_row_ref` in ggml's `ggml.c`; see [`crate::quant::float`].

use super::BEYOND_F16;
use crate::gguf::TensorType;
use crate::quant::{Block, ImportanceUse, float};

/// A single-precision weight, little-endian.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct F32([u8; 4]);

/// A half-precision weight, little-endian.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct F16([u8; 2]);

/// The upper half of a single-precision weight, little-endian.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Bf16([u8; 2]);

impl Block for F32 {
    const TYPE: TensorType = TensorType::F32;
    const LEN: usize = 1;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Ignored;
    const LIMIT: f32 = f32::INFINITY;

    fn quantize_row(src: &[f32], _: Option<&[f32]>, dst: &mut [Self]) {
        for (block, x) in dst.iter_mut().zip(src) {
            block.0 = x.to_le_bytes();
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        for (x, block) in dst.iter_mut().zip(src) {
            *x = f32::from_le_bytes(block.0);
        }
    }

    fn is_finite(&self) -> bool {
        f32::from_le_bytes(self.0).is_finite()
    }
}

impl Block for F16 {
    const TYPE: TensorType = TensorType::F16;
    const LEN: usize = 1;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Ignored;
    const LIMIT: f32 = BEYOND_F16;

    fn quantize_row(src: &[f32], _: Option<&[f32]>, dst: &mut [Self]) {
        float::f32s_to_f16s(src, bytemuck::cast_slice_mut(dst));
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        float::f16s_to_f32s(bytemuck::cast_slice(src), dst);
    }

    fn is_finite(&self) -> bool {
        float::f16_is_finite(u16::from_le_bytes(self.0))
    }
}

impl Block for Bf16 {
    const TYPE: TensorType = TensorType::BF16;
    const LEN: usize = 1;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Ignored;
    // Halfway between the largest number and the next one, which would be infinity: the tie goes to the even one,
    // infinity.
    const LIMIT: f32 = f32::from_bits(0x7f7f_8000);

    fn quantize_row(src: &[f32], _: Option<&[f32]>, dst: &mut [Self]) {
        float::f32s_to_bf16s(src, bytemuck::cast_slice_mut(dst));
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        float::bf16s_to_f32s(bytemuck::cast_slice(src), dst);
    }

    fn is_finite(&self) -> bool {
        float::bf16_is_finite(u16::from_le_bytes(self.0))
    }
}

/// Reads little-endian doubles, each rounded to the nearest float.
pub(in crate::quant) fn decode_f64(src: &[u8], dst: &mut [f32]) {
    let (src, rest) = src.as_chunks::<8>();
    assert!(rest.is_empty() && src.len() == dst.len());
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = f64::from_le_bytes(*src) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_little_endian() {
        let src = [1.0, -2.0];
        let mut single = [F32([0; 4]); 2];
        F32::quantize_row(&src, None, &mut single);
        assert_eq!(single.map(|b| b.0), [[0, 0, 0x80, 0x3f], [0, 0, 0, 0xc0]]);
        let mut half = [F16([0; 2]); 2];
        F16::quantize_row(&src, None, &mut half);
        assert_eq!(half.map(|b| b.0), [[0, 0x3c], [0, 0xc0]]);
        let mut upper = [Bf16([0; 2]); 2];
        Bf16::quantize_row(&src, None, &mut upper);
        assert_eq!(upper.map(|b| b.0), [[0x80, 0x3f], [0, 0xc0]]);
    }
}
