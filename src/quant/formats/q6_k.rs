//! Q6_K: x ≈ d·s·(q − 32), q from 0 to 63. 6.5625 bits per weight.
//!
//! 256 weights in sixteen sub-blocks of 16, each with a signed 8-bit scale s.
//!
//! ```text
//!  byte 0                        128                      192          208    210
//!       | 128 B: bits 0-3 of q   | 64 B: bits 4-5 of q    | 16 B: s    | d    |
//!         of each half (128 codes, 64 bytes)  as two_bits says
//!         byte l: codes l (low half) and l + 64
//! ```
//!
//! Each scale is searched. The weights of the search are x², or the importance itself.
//!
//! Source: `block_q6_K`, `quantize_row_q6_K_ref` and `quantize_row_q6_K_impl` in ggml's `ggml-common.h` and
//! `ggml-quants.c`.

use super::{BEYOND_F16, pack};
use crate::gguf::TensorType;
use crate::lanes::Lanes;
use crate::quant::block::{array_of, dequantize_blocks, quantize_blocks};
use crate::quant::rounding::{Levels, Rescale, Scales, Step, Whole};
use crate::quant::rows::Rows;
use crate::quant::search::batch::Batch;
use crate::quant::search::numbers::{NEGLIGIBLE, extreme, nearest, squares_lanes};
use crate::quant::search::symmetric::{self, SymmetricBatch};
use crate::quant::{Block, Half, ImportanceUse, Scaled};
use std::array;

/// 256 weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// Bits 0 to 3 of each code.
    pub ql: [u8; 128],
    /// Bits 4 and 5 of each code.
    pub qh: [u8; 64],
    /// The scales of the sub-blocks, in two's complement.
    pub scales: [u8; 16],
    /// The scale d of the scales.
    pub d: Half,
}

const _: () = assert!(size_of::<BlockQ6K>() == 210);

const WHOLE: Whole = Whole { smallest: -32, largest: 31 };

impl Block for BlockQ6K {
    const TYPE: TensorType = TensorType::Q6_K;
    const LEN: usize = 256;
    const IMPORTANCE: ImportanceUse = ImportanceUse::Used;
    const LIMIT: f32 = 8.0 * BEYOND_F16;

    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]) {
        quantize_blocks(src, importance, dst, quantize);
    }

    #[inline(always)]
    fn quantize_rows<L: Lanes>(l: L, rows: Rows, dst: &mut [Self]) {
        for batch in Batch::<16>::of(l, rows) {
            let mut found = SymmetricBatch::new();
            for at in batch.groups(l) {
                let x = batch.columns(l, at);
                let weights = match batch.importance(l, at) {
                    None => squares_lanes(l, &x),
                    Some(importance) => importance,
                };
                found.search(l, at, 32, &x, &weights);
            }
            for (b, x) in batch.blocks.iter().enumerate() {
                dst[batch.first + b] = block(
                    &found.scales[b],
                    #[inline(always)]
                    |scales| WHOLE.codes_lanes::<_, 16, 16>(l, x, scales, None, |j| found.codes(32, b, j, x)),
                );
            }
        }
    }

    fn dequantize_row(src: &[Self], dst: &mut [f32]) {
        dequantize_blocks::<256, Self>(src, dst, |block| {
            let sub_blocks = block.sub_blocks();
            let codes = block.unpack();
            array::from_fn(|i| sub_blocks[i / 16] * (f32::from(codes[i]) - 32.0))
        });
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl BlockQ6K {
    /// d·s of each sub-block.
    #[inline(always)]
    fn sub_blocks(&self) -> [f32; 16] {
        let d = self.d.value();
        let mut sub_blocks = [0.0; 16];
        for j in 0..16 {
            sub_blocks[j] = d * f32::from(self.scales[j] as i8);
        }
        sub_blocks
    }

    #[inline(always)]
    fn unpack(&self) -> [u8; 256] {
        let mut codes = pack::unpack_two_bits(&self.qh).map(|high| high << 4);
        for (bytes, codes) in self.ql.chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
            for l in 0..64 {
                codes[l] |= bytes[l] & 15;
                codes[l + 64] |= bytes[l] >> 4;
            }
        }
        codes
    }

    #[inline(always)]
    fn pack(&mut self, codes: &[u8; 256]) {
        let (mut high, mut low) = (*codes, [0; 256]);
        for code in &mut high {
            *code >>= 4;
        }
        // In `four_bits`, the two codes of a byte are 32 codes apart; here it is 64.
        for quarter in 0..4 {
            let at = quarter / 2 * 128 + quarter % 2 * 32;
            low[64 * quarter..][..32].copy_from_slice(&codes[at..][..32]);
            low[64 * quarter + 32..][..32].copy_from_slice(&codes[at + 64..][..32]);
        }
        self.qh = pack::two_bits(&high);
        self.ql = pack::four_bits(&low);
    }
}

impl Scaled for BlockQ6K {
    const SUB_BLOCK: usize = 16;
    const LEVELS: Levels = Levels::Whole(WHOLE);
    type Steps = [Step; 16];

    fn fit(x: &[f32], importance: Option<&[f32]>, _: f32) -> Self {
        let (scales, _) = search(array_of(x), importance.map(array_of));
        block(&scales, |_| [0; 256])
    }

    fn steps(&self) -> [Step; 16] {
        self.sub_blocks().map(Step::symmetric)
    }

    fn set_codes(&mut self, codes: &[u8]) {
        self.pack(array_of(codes));
    }
}

impl Rescale for BlockQ6K {
    const FACTORS: [i16; 2] = [-128, 127];
    const MIN_FACTORS: [i16; 2] = [0, 0];

    fn scales(&self) -> Scales {
        Scales::symmetric(self.d, |j| i16::from(self.scales[j] as i8))
    }

    fn set_scales(&mut self, scales: &Scales) {
        self.d = scales.d;
        self.scales = scales.factors.map(|s| s as u8);
    }

    fn codes(&self, codes: &mut [u8]) {
        codes.copy_from_slice(&self.unpack());
    }
}

fn quantize(x: &[f32; 256], importance: Option<&[f32; 256]>) -> BlockQ6K {
    let (scales, codes) = search(x, importance);
    block(&scales, |scales| WHOLE.codes(x, scales, &[0.0; 16], |j| codes[j]))
}

/// The scales of the sub-blocks, and the codes with which each search ended.
fn search(x: &[f32; 256], importance: Option<&[f32; 256]>) -> ([f32; 16], [[u8; 16]; 16]) {
    let mut codes = [[0; 16]; 16];
    let (sub_blocks, _) = x.as_chunks::<16>();
    let mut scales = [0.0; 16];
    for j in 0..16 {
        let weights = match importance {
            None => sub_blocks[j].map(|x| x * x),
            Some(importance) => importance.as_chunks::<16>().0[j],
        };
        scales[j] = symmetric::fit(&sub_blocks[j], &weights, 32, &mut codes[j]);
    }
    (scales, codes)
}

/// The block with these scales, and with the codes that follow from d·s of each sub-block.
#[inline(always)]
fn block(scales: &[f32; 16], codes: impl FnOnce(&[f32; 16]) -> [u8; 256]) -> BlockQ6K {
    let mut block = BlockQ6K { ql: [0; 128], qh: [0; 64], scales: [0; 16], d: Half::new(0.0) };
    let extreme = extreme(scales);
    if extreme.abs() < NEGLIGIBLE {
        return block;
    }
    let inverse = -128.0 / extreme;
    block.d = Half::new(1.0 / inverse);
    for j in 0..16 {
        block.scales[j] = nearest(inverse * scales[j]).min(127) as u8;
    }
    block.pack(&codes(&block.sub_blocks()));
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_places_that_the_diagram_gives() {
        let mut block = BlockQ6K { ql: [0; 128], qh: [0; 64], scales: [0; 16], d: Half::new(0.5) };
        block.ql[64 + 37] = 0x5a;
        block.qh[32 + 5] = 0b1100_1000;
        block.scales[10] = 2;
        block.scales[14] = -3i8 as u8;
        let mut x = [0.0; 256];
        BlockQ6K::dequantize_row(&[block], &mut x);
        assert_eq!((x[128 + 37], x[128 + 101]), ((0x2a as f32 - 32.0), -1.5 * (0x35 as f32 - 32.0)));

        let codes: [u8; 256] = array::from_fn(|i| (i * 7 % 64) as u8);
        block.pack(&codes);
        assert_eq!(block.unpack(), codes);
    }
}
