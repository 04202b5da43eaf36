//! What a block format is: the traits that one file per format implements.

use super::Lanes;
use super::rounding::{Levels, Step};
use super::rows::Rows;
use super::search::numbers::sum_of_squares;
use crate::gguf::TensorType;

/// A block of weights: a plain struct whose bytes are what the file holds.
pub trait Block: bytemuck::Pod {
    /// The type's name and number.
    const TYPE: TensorType;
    /// Weights in a block.
    const LEN: usize;
    /// What importance does in this format.
    const IMPORTANCE: ImportanceUse;
    /// The magnitude that every weight has to stay below. From there on a float that the block stores, mostly a scale, may
    /// become infinite.
    const LIMIT: f32;
    /// [`Self::LIMIT`] with importance. A search may then go further from the weights, to where most of them count little.
    const LIMIT_WITH_IMPORTANCE: f32 = Self::LIMIT;

    /// Quantizes one row. This is the definition of the bytes.
    ///
    /// `src` holds the row's weights, a multiple of [`Self::LEN`], all finite; `importance`, where given, one value of at
    /// least 0 for each of them; `dst` one block for each [`Self::LEN`] weights. A row is the unit because some formats
    /// take statistics over all of it.
    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]);

    /// Quantizes rows, several blocks at once: the same bytes as [`Self::quantize_row`], sooner.
    ///
    /// To be marked `#[inline(always)]`, so that it is compiled with the instructions of its lanes.
    #[inline(always)]
    fn quantize_rows<L: Lanes>(lanes: L, rows: Rows, dst: &mut [Self]) {
        let _ = lanes;
        quantize_rows_one_by_one(rows, dst);
    }

    /// The inverse, up to what was lost: fills `dst`, which has room for [`Self::LEN`] weights per block of `src`.
    fn dequantize_row(src: &[Self], dst: &mut [f32]);

    /// Returns whether every float that the block stores is finite: its scales, or, where it has none, the weight
    /// itself. All its weights are finite then.
    fn is_finite(&self) -> bool;
}

/// A block of codes, whose weights are scale · level − min: a format that can be fitted apart from rounding to it.
/// [`rounding`](super::rounding) composes the two.
pub trait Scaled: Block {
    /// Consecutive weights that share a scale and a min.
    const SUB_BLOCK: usize;
    /// What the codes stand for. Code 0 is the lowest level.
    const LEVELS: Levels;
    /// A step for each sub-block.
    type Steps: AsRef<[Step]>;

    /// Fits the scales of a block to `x`, [`Block::LEN`] weights, as [`Block::quantize_row`] does. Returns the block with
    /// these scales and with arbitrary codes.
    ///
    /// `importance`, where given, holds one value a weight. `mean_square` is that of the row's weights where there is
    /// importance; the formats of 32 weights, which have little else to go by, weigh with it.
    ///
    /// # Panics
    /// When `x` or `importance` has another length.
    fn fit(x: &[f32], importance: Option<&[f32]>, mean_square: f32) -> Self;

    /// Decodes the scales as they are stored.
    fn steps(&self) -> Self::Steps;

    /// Packs `codes`, [`Block::LEN`] of them, each that of a level.
    ///
    /// # Panics
    /// When there are more or fewer.
    fn set_codes(&mut self, codes: &[u8]);
}

/// What a format does with importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportanceUse {
    /// The bytes are the same with and without.
    Ignored,
    /// The search weighs by it where it is given.
    Used,
    /// Without it the format makes no sense: its codes are so few that it has to be known which weights matter.
    Required,
}

impl ImportanceUse {
    /// Returns whether the bytes depend on importance where it is given.
    pub fn is_any(self) -> bool {
        self != Self::Ignored
    }
}

/// The slice as an array.
///
/// # Panics
/// When it has another length.
pub(super) fn array_of<T: Copy, const N: usize>(slice: &[T]) -> &[T; N] {
    slice.try_into().expect("as many as the block has weights")
}

/// The mean square of a row's weights; 0 without importance, since it is not needed then.
pub(super) fn row_mean_square(row: &[f32], importance: Option<&[f32]>) -> f32 {
    if importance.is_some() { sum_of_squares(row) / row.len() as f32 } else { 0.0 }
}

#[inline(always)]
pub(super) fn quantize_rows_one_by_one<B: Block>(rows: Rows, dst: &mut [B]) {
    let Rows { weights, row_len, importance } = rows;
    for (src, dst) in weights.chunks_exact(row_len).zip(dst.chunks_exact_mut(row_len / B::LEN)) {
        B::quantize_row(src, importance, dst);
    }
}

/// Quantizes a row block by block: for formats whose block depends on nothing outside it but what `quantize` captured.
#[inline(always)]
pub(super) fn quantize_blocks<const LEN: usize, B: Block>(
    src: &[f32],
    importance: Option<&[f32]>,
    dst: &mut [B],
    quantize: impl Fn(&[f32; LEN], Option<&[f32; LEN]>) -> B,
) {
    let (src, _) = src.as_chunks::<LEN>();
    match importance {
        None => {
            for (block, x) in dst.iter_mut().zip(src) {
                *block = quantize(x, None);
            }
        }
        Some(importance) => {
            let (importance, _) = importance.as_chunks::<LEN>();
            for ((block, x), importance) in dst.iter_mut().zip(src).zip(importance) {
                *block = quantize(x, Some(importance));
            }
        }
    }
}

/// The inverse of [`quantize_blocks`].
#[inline(always)]
pub(super) fn dequantize_blocks<const LEN: usize, B: Block>(
    src: &[B],
    dst: &mut [f32],
    dequantize: impl Fn(&B) -> [f32; LEN],
) {
    let (dst, _) = dst.as_chunks_mut::<LEN>();
    for (x, block) in dst.iter_mut().zip(src) {
        *x = dequantize(block);
    }
}
