//! Block formats: convert 32 or 256 weights to a few bytes, and back.
//!
//! A format is one file in [`formats`] and one line in the table [`FORMATS`] there. Lookup, command-line values, help,
//! tests and benchmarks iterate over that table.
//!
//! **The bytes are defined by the scalar code**: IEEE single-precision operations in the written order, never contracted
//! to fused multiply-adds and never reordered, which is what ggml's own quantizers do on plain x86-64. So a file does
//! not depend on the CPU, the number of threads, or how the work was divided.
//!
//! | formats                              | weights                                                             |
//! |--------------------------------------|---------------------------------------------------------------------|
//! | F32, F16, BF16                       | a float a weight                                                    |
//! | Q8_0, Q5_0, Q4_0                     | 32 weights, x ≈ d·q                                                 |
//! | Q5_1, Q4_1                           | 32 weights, x ≈ d·q + m                                             |
//! | Q6_K, Q3_K                           | 256 weights in 16 sub-blocks, x ≈ d·s·q                             |
//! | Q5_K, Q4_K, Q2_K                     | 256 weights in 8 or 16 sub-blocks, x ≈ d·s·q − dmin·t               |
//! | IQ4_NL, IQ4_XS                       | 32 or 256 weights, q standing for unevenly spaced values            |
//!
//! | room         | what is in it                                                                                |
//! |--------------|----------------------------------------------------------------------------------------------|
//! | [`formats`]  | one file a format: the block's struct, how it is fitted, packed and read back                |
//! | [`rounding`] | from weights to codes: each weight by itself, or all of a row together for known inputs       |
//! | `search`     | the searches for scales that the formats share: one file an algorithm, scalar and by lanes   |
//! | [`float`]    | 16-bit floats, for the readers of checkpoints too                                            |
//!
//! In addition to its scalar code, each format has code by lanes, which processes several blocks at once
//! ([`Block::quantize_rows`]) and has to write the same bytes. [`Level`] lists the supported vector instructions.

// Loops index several arrays together. Also, closures of iterators may not be inlined, and then lack the instructions
// of their level.
#![allow(clippy::needless_range_loop)]

mod block;
pub mod float;
pub mod formats;
#[cfg(test)]
mod levels;
#[cfg(all(test, feature = "llama", target_arch = "x86_64"))]
mod oracle;
pub mod rounding;
mod rows;
#[cfg(test)]
mod samples;
mod search;
#[cfg(test)]
mod tests;

use crate::gguf::TensorType;
use crate::lanes::{Body, Lanes, Level};
pub use block::{Block, ImportanceUse, Scaled};
pub use float::Half;
pub use formats::FORMATS;
use rounding::Rescale;
pub use rows::Rows;

/// The blocks of some kind among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SomeBlocks {
    /// Their number, at least 1.
    pub n: u64,
    /// The index of the first block.
    pub first: u64,
}

impl SomeBlocks {
    /// Counts the `blocks` for which `is_meant` returns true; `None` if there are none.
    pub fn among<T>(mut blocks: impl Iterator<Item = T> + Clone, is_meant: impl Fn(&T) -> bool) -> Option<Self> {
        // Nearly always there are none, and counting all of them vectorises because it never stops early.
        let n = blocks.clone().filter(&is_meant).count();
        if n == 0 {
            return None;
        }
        let first = blocks.position(|block| is_meant(&block))?;
        Some(Self { n: n as u64, first: first as u64 })
    }
}

/// A block format with its type erased: an entry of [`FORMATS`].
#[derive(Clone, Copy)]
pub struct Format {
    /// The type it writes.
    pub ty: TensorType,
    /// What it does with importance.
    pub importance: ImportanceUse,
    /// [`Block::LIMIT`], without and with importance.
    limits: [f32; 2],
    quantize_rows: fn(Level, Rows, &mut [u8]),
    round_to_nearest: Option<fn(Rows, &mut [u8])>,
    grid: Option<rounding::Grid>,
    dequantize_row: fn(&[u8], &mut [f32]),
    not_finite: fn(&[u8]) -> Option<SomeBlocks>,
    #[cfg(test)]
    check_values: Option<fn()>,
}

impl Format {
    /// A format of floats.
    const fn of<B: Block>() -> Self {
        assert!(size_of::<B>() == B::TYPE.block_bytes() && B::LEN == B::TYPE.block_len());
        // A block's fields are bytes, so a block can begin at any byte of a file.
        assert!(align_of::<B>() == 1);
        Self {
            ty: B::TYPE,
            importance: B::IMPORTANCE,
            limits: [B::LIMIT, B::LIMIT_WITH_IMPORTANCE],
            quantize_rows: |level, rows, dst| {
                let dst = bytemuck::cast_slice_mut::<u8, B>(dst);
                match level {
                    Level::Scalar => block::quantize_rows_one_by_one(rows, dst),
                    _ => level.run(QuantizeRows { rows, dst }),
                }
            },
            round_to_nearest: None,
            grid: None,
            dequantize_row: |src, dst| B::dequantize_row(bytemuck::cast_slice(src), dst),
            not_finite: |src| SomeBlocks::among(bytemuck::cast_slice::<u8, B>(src).iter(), |block| !block.is_finite()),
            #[cfg(test)]
            check_values: None,
        }
    }

    /// A format of scales and codes.
    const fn scaled<B: Rescale>() -> Self {
        assert!(B::LEN.is_multiple_of(B::SUB_BLOCK));
        let round_to_nearest = |rows: Rows, dst: &mut [u8]| {
            rounding::nearest::quantize_rows::<B>(rows, bytemuck::cast_slice_mut(dst));
        };
        Self {
            round_to_nearest: Some(round_to_nearest),
            grid: Some(rounding::Grid::of::<B>()),
            #[cfg(test)]
            check_values: Some(tests::check_values::<B>),
            ..Self::of::<B>()
        }
    }

    /// Returns the magnitude below which every weight has to be. From this magnitude on, a float that a block stores
    /// may become infinite.
    pub fn limit(&self, with_importance: bool) -> f32 {
        self.limits[usize::from(with_importance)]
    }

    /// Quantizes consecutive rows of `row_len` weights each.
    ///
    /// `importance`, if given, has one value per column and is used for every row.
    ///
    /// # Panics
    /// If the lengths do not fit: `src` is not a multiple of `row_len`, `row_len` is not a multiple of the block,
    /// `importance` does not have `row_len` values, or `dst` does not have exactly the rows' bytes. The caller has to
    /// check them.
    pub fn quantize_rows(&self, src: &[f32], row_len: usize, importance: Option<&[f32]>, dst: &mut [u8]) {
        self.quantize_rows_at(Level::best(), src, row_len, importance, dst);
    }

    /// Like [`Self::quantize_rows`], with the CPU's instructions up to `level`. The bytes are the same at every level.
    ///
    /// # Panics
    /// Those of [`Self::quantize_rows`], and if this CPU does not have that level.
    pub fn quantize_rows_at(
        &self,
        level: Level,
        src: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        dst: &mut [u8],
    ) {
        (self.quantize_rows)(level, self.rows(src, row_len, importance, dst), dst);
    }

    /// Quantizes rows by [`rounding::nearest`], slowly: each weight gets the level nearest to it, given the scales as
    /// stored. Returns whether the format has scales and codes; writes nothing if it does not.
    ///
    /// # Panics
    /// Those of [`Self::quantize_rows`].
    pub fn round_to_nearest(&self, src: &[f32], row_len: usize, importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
        let rows = self.rows(src, row_len, importance, dst);
        let Some(round_to_nearest) = self.round_to_nearest else { return false };
        round_to_nearest(rows, dst);
        true
    }

    /// Returns the rows, after checking the lengths.
    fn rows<'a>(&self, src: &'a [f32], row_len: usize, importance: Option<&'a [f32]>, dst: &[u8]) -> Rows<'a> {
        let row_bytes = self.row_bytes(row_len);
        assert_eq!(src.len() % row_len, 0);
        assert_eq!(dst.len(), src.len() / row_len * row_bytes);
        assert!(importance.is_none_or(|i| i.len() == row_len));
        Rows { weights: src, row_len, importance }
    }

    /// Dequantizes whole blocks. `dst` has exactly the length of their weights.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        assert_eq!(src.len() % self.ty.block_bytes(), 0);
        assert_eq!(dst.len(), src.len() / self.ty.block_bytes() * self.ty.block_len());
        (self.dequantize_row)(src, dst);
    }

    /// Returns the blocks among `src` that hold a NaN or an infinity, as a scale or as a weight; `None` if all are
    /// finite.
    ///
    /// # Panics
    /// If `src` does not consist of whole blocks.
    pub fn not_finite(&self, src: &[u8]) -> Option<SomeBlocks> {
        assert_eq!(src.len() % self.ty.block_bytes(), 0);
        (self.not_finite)(src)
    }

    /// Returns the bytes of a row.
    ///
    /// # Panics
    /// If it is not whole blocks.
    pub fn row_bytes(&self, row_len: usize) -> usize {
        assert!(row_len > 0 && row_len.is_multiple_of(self.ty.block_len()));
        row_len / self.ty.block_len() * self.ty.block_bytes()
    }
}

/// Returns the format that writes `ty`; `None` if nibble has none.
pub fn format(ty: TensorType) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.ty == ty)
}

/// Returns the names of the types in [`FORMATS`], for messages.
pub fn type_list() -> String {
    FORMATS.iter().map(|format| format.ty.name()).collect::<Vec<_>>().join(", ")
}

/// Reads whole blocks: bytes to weights.
pub type Decode = fn(&[u8], &mut [f32]);

/// Returns the function that decodes whole blocks of `ty`: for every type in [`FORMATS`], and for F64, which
/// checkpoints may have but nibble does not write. `None` for all others. The function fills its second argument, and
/// panics if the lengths do not fit.
pub fn decoder(ty: TensorType) -> Option<Decode> {
    match ty {
        TensorType::F64 => Some(formats::plain::decode_f64),
        ty => Some(format(ty)?.dequantize_row),
    }
}

/// [`Block::quantize_rows`], for [`Level::run`].
struct QuantizeRows<'a, B> {
    rows: Rows<'a>,
    dst: &'a mut [B],
}

impl<B: Block> Body for QuantizeRows<'_, B> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        B::quantize_rows(lanes, self.rows, self.dst);
    }
}
