//! The formats, one file each. Pairs of formats that differ only in the number of bits per code share a generic block:
//! `symmetric` for Q4_0 and Q5_0, `affine` for Q4_1 and Q5_1, `affine_k` for Q4_K and Q5_K.
//!
//! `pack` has the functions that pack codes of a few bits into bytes.

mod affine;
mod affine_k;
pub mod iq4_nl;
pub mod iq4_xs;
mod pack;
pub mod plain;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod symmetric;

use super::Format;
use crate::gguf::TensorType;

/// All formats that nibble can write and read back, the largest first.
pub static FORMATS: &[Format] = &[
    Format::of::<plain::F32>(),
    Format::of::<plain::F16>(),
    Format::of::<plain::Bf16>(),
    Format::scaled::<q8_0::BlockQ8_0>(),
    Format::scaled::<q6_k::BlockQ6K>(),
    Format::scaled::<q5_1::BlockQ5_1>(),
    Format::scaled::<q5_0::BlockQ5_0>(),
    Format::scaled::<q5_k::BlockQ5K>(),
    Format::scaled::<q4_1::BlockQ4_1>(),
    Format::scaled::<q4_0::BlockQ4_0>(),
    Format::scaled::<q4_k::BlockQ4K>(),
    Format::scaled::<iq4_nl::BlockIq4Nl>(),
    Format::scaled::<iq4_xs::BlockIq4Xs>(),
    Format::scaled::<q3_k::BlockQ3K>(),
    Format::scaled::<q2_k::BlockQ2K>(),
];

/// The constants of a format whose block is shared with another format.
pub trait Twin {
    /// [`Block::TYPE`](super::Block::TYPE)
    const TYPE: TensorType;
    /// [`Block::LIMIT`](super::Block::LIMIT)
    const LIMIT: f32;
    /// [`Block::LIMIT_WITH_IMPORTANCE`](super::Block::LIMIT_WITH_IMPORTANCE)
    const LIMIT_WITH_IMPORTANCE: f32;
}

/// From this magnitude on, a number rounds to infinity as a half.
const BEYOND_F16: f32 = 65520.0;

/// Returns the codes, read as numbers from -128 to 127 and limited to `max`.
#[inline(always)]
fn limited(codes: &[u8; 32], max: i8) -> [u8; 32] {
    let mut limited = [0; 32];
    for i in 0..32 {
        limited[i] = (codes[i] as i8).min(max) as u8;
    }
    limited
}
