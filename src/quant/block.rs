//! The traits of block formats. Each format has one file, which implements them.

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
    /// What this format does with importance.
    const IMPORTANCE: ImportanceUse;
    /// The magnitude below which every weight has to be. From this magnitude on, a float that the block stores, usually
    /// a scale, may become infinite.
    const LIMIT: f32;
    /// [`Self::LIMIT`] with importance. A search may then move further away from weights that count little.
    const LIMIT_WITH_IMPORTANCE: f32 = Self::LIMIT;

    /// Quantizes one row. This function defines the bytes.
    ///
    /// `src` holds the row's weights, a multiple of [`Self::LEN`], all finite; `importance`, if given, one value of at
    /// least 0 for each of them; `dst` one block for each [`Self::LEN`] weights. The unit is a row because some formats
    /// use statistics of the whole row.
    fn quantize_row(src: &[f32], importance: Option<&[f32]>, dst: &mut [Self]);

    /// Quantizes rows, several blocks at once. The bytes are those of [`Self::quantize_row`], but it is faster.
    ///
    /// Implementations must be `#[inline(always)]`, so that they are compiled with the instructions of their lanes.
    #[inline(always)]
    fn quantize_rows<L: Lanes>(lanes: L, rows: Rows, dst: &mut [Self]) {
        let _ = lanes;
        quantize_rows_one_by_one(rows, dst);
    }

    /// Dequantizes a row: fills `dst`, which has room for [`Self::LEN`] weights per block of `src`.
    fn dequantize_row(src: &[Self], dst: &mut [f32]);

    /// Returns whether every float that the block stores is finite: its scales, or the weight itself if it has no
    /// scales. All its weights are finite then.
    fn is_finite(&self) -> bool;
}

/// A block of codes, whose weights are scale · level − min. Fitting the scales and rounding to codes are separate steps
/// for such a format; [`rounding`](super::rounding) combines them.
pub trait Scaled: Block {
    /// Consecutive weights that share a scale and a min.
    const SUB_BLOCK: usize;
    /// The levels that the codes stand for. Code 0 is the lowest.
    const LEVELS: Levels;
    /// A step for each sub-block.
    type Steps: AsRef<[Step]>;

    /// Fits the scales of a block to `x`, [`Block::LEN`] weights, as [`Block::quantize_row`] does. Returns the block with
    /// these scales and with arbitrary codes.
    ///
    /// `importance`, if given, has one value per weight. `mean_square` is that of the row's weights if there is
    /// importance; the formats of 32 weights use it in their search's weights.
    ///
    /// # Panics
    /// If `x` or `importance` has another length.
    fn fit(x: &[f32], importance: Option<&[f32]>, mean_square: f32) -> Self;

    /// Decodes the scales as they are stored.
    fn steps(&self) -> Self::Steps;

    /// Packs [`Block::LEN`] codes, each the code of a level.
    ///
    /// # Panics
    /// If there are more or fewer codes.
    fn set_codes(&mut self, codes: &[u8]);
}

/// What a format does with importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportanceUse {
    /// The bytes are the same with and without it.
    Ignored,
    /// The search is weighted by it, if it is given.
    Used,
    /// The format makes no sense without it: there are so few codes that the search has to know which weights matter.
    Required,
}

impl ImportanceUse {
    /// Returns whether the bytes depend on importance, if it is given.
    pub fn is_any(self) -> bool {
        self != Self::Ignored
    }
}

/// Returns the slice as an array.
///
/// # Panics
/// If it has another length.
pub(super) fn array_of<T: Copy, const N: usize>(slice: &[T]) -> &[T; N] {
    slice.try_into().expect("as many as the block has weights")
}

/// Returns the mean square of a row's weights; 0 without importance, because it is not needed then.
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

/// Quantizes a row block by block, for formats whose blocks depend only on their own weights and on what `quantize`
/// captures.
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
