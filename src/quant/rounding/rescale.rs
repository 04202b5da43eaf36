//! The stored scales of a block as numbers: what a rounding needs that changes them.
//!
//! ```text
//!  step of sub-block j:   scale = d · factors[j]    min = dmin · min_factors[j]      x ≈ scale · level − min
//! ```
//!
//! | formats                | d    | factors     | dmin | min factors |
//! |------------------------|------|-------------|------|-------------|
//! | Q8_0 Q5_0 Q4_0 IQ4_NL  | half | 1           |      | 0           |
//! | Q5_1 Q4_1              | half | 1           | m    | -1          |
//! | Q6_K                   | half | -128 to 127 |      | 0           |
//! | Q3_K IQ4_XS            | half | -32 to 31   |      | 0           |
//! | Q5_K Q4_K              | half | 0 to 63     | half | 0 to 63     |
//! | Q2_K                   | half | 0 to 15     | half | 0 to 15     |

use super::Levels;
use crate::quant::{Half, Scaled};
use std::array;

/// The stored scales of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scales {
    /// The scale of the scales.
    pub d: Half,
    /// The scale of the mins; 0 in formats without mins.
    pub dmin: Half,
    /// The scale of each sub-block in units of `d`. A block with fewer than 16 sub-blocks does not use the last ones.
    pub factors: [i16; 16],
    /// The min of each sub-block in units of `dmin`.
    pub min_factors: [i16; 16],
}

impl Scales {
    /// The scales of a block without mins.
    #[inline]
    pub(in crate::quant) fn symmetric(d: Half, factor: impl FnMut(usize) -> i16) -> Self {
        Self { d, dmin: Half::new(0.0), factors: array::from_fn(factor), min_factors: [0; 16] }
    }

    /// Returns whether d and dmin are finite.
    pub(super) fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }

    /// The scales of a block that stores one scale.
    #[inline]
    pub(in crate::quant) fn of_one(d: Half) -> Self {
        Self::symmetric(d, |_| 1)
    }
}

/// A block whose scales and codes can be read and replaced.
pub trait Rescale: Scaled {
    /// The smallest and the largest of [`Scales::factors`]. Two equal ones mean that the block does not store them.
    const FACTORS: [i16; 2];
    /// The smallest and the largest of [`Scales::min_factors`]. Two zeros mean that the format has no mins.
    const MIN_FACTORS: [i16; 2];

    /// Decodes the stored scales.
    fn scales(&self) -> Scales;

    /// Stores scales, whose factors lie in their ranges. The codes stay as they are.
    fn set_scales(&mut self, scales: &Scales);

    /// Unpacks [`Block::LEN`](crate::quant::Block::LEN) codes.
    ///
    /// # Panics
    /// If `codes` has another length.
    fn codes(&self, codes: &mut [u8]);
}

/// A [`Rescale`] with its type erased. Roundings that take longer than reading and writing blocks are compiled once for
/// all formats.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Grid {
    /// Weights in a block.
    pub len: usize,
    /// Weights in a sub-block.
    pub sub_block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// What the codes stand for.
    pub levels: Levels,
    /// [`Rescale::FACTORS`]
    pub factors: [i16; 2],
    /// [`Rescale::MIN_FACTORS`]
    pub min_factors: [i16; 2],
    /// Fits the scales of a block to weights with importance, given the mean square of the row's weights.
    pub fit: fn(&[f32], &[f32], f32) -> Scales,
    /// Reads the scales and codes of a block.
    pub read: fn(&[u8], &mut [u8]) -> Scales,
    /// Writes a block.
    pub write: fn(&Scales, &[u8], &mut [u8]),
    /// Reads the scales of a block.
    pub scales: fn(&[u8]) -> Scales,
    /// Writes the scales of a block, whose codes stay.
    pub set_scales: fn(&Scales, &mut [u8]),
}

impl Grid {
    /// That of a format.
    pub const fn of<B: Rescale>() -> Self {
        Self {
            len: B::LEN,
            sub_block: B::SUB_BLOCK,
            bytes: size_of::<B>(),
            levels: B::LEVELS,
            factors: B::FACTORS,
            min_factors: B::MIN_FACTORS,
            fit: |x, importance, mean_square| B::fit(x, Some(importance), mean_square).scales(),
            read: |bytes, codes| {
                let block: &B = bytemuck::from_bytes(bytes);
                block.codes(codes);
                block.scales()
            },
            write: |scales, codes, bytes| {
                let block: &mut B = bytemuck::from_bytes_mut(bytes);
                block.set_scales(scales);
                block.set_codes(codes);
            },
            scales: |bytes| bytemuck::from_bytes::<B>(bytes).scales(),
            set_scales: |scales, bytes| bytemuck::from_bytes_mut::<B>(bytes).set_scales(scales),
        }
    }

    /// Returns whether weights have a min in this format.
    pub fn has_min(&self) -> bool {
        self.min_factors != [0, 0]
    }

    /// Returns whether a block stores a factor for each sub-block.
    pub fn has_factors(&self) -> bool {
        self.factors[0] != self.factors[1]
    }
}
