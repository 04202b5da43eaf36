//! Block formats: how 32 or 256 weights become a few bytes, and back.
//!
//! A format is one file here and one line in [`FORMATS`]. Lookup, command-line values, help, tests and benchmarks iterate
//! over that table.
//!
//! **The bytes are defined by the scalar code**: IEEE single-precision operations in the written order, never contracted
//! to fused multiply-adds and never reordered, which is what ggml's own quantizers do on plain x86-64. So a file does not
//! depend on the CPU, the number of threads or how the work was cut.
//!
//! | module                                       | formats                                                             |
//! |----------------------------------------------|---------------------------------------------------------------------|
//! | [`plain`]                                    | F32, F16, BF16: a float a weight                                    |
//! | [`q8_0`], [`q5_0`], [`q4_0`]                 | 32 weights, x ≈ d·q                                                 |
//! | [`q5_1`], [`q4_1`]                           | 32 weights, x ≈ d·q + m                                             |
//! | [`q6_k`], [`q3_k`]                           | 256 weights in 16 sub-blocks, x ≈ d·s·q                             |
//! | [`q5_k`], [`q4_k`], [`q2_k`]                 | 256 weights in 8 or 16 sub-blocks, x ≈ d·s·q − dmin·t               |
//! | [`iq4_nl`], [`iq4_xs`]                       | 32 or 256 weights, q standing for unevenly spaced values            |
//!
//! `search` holds the searches for scales that they share, `pack` how codes share bytes, `affine_k` what Q4_K and Q5_K
//! have in common, `iq4` what the last two have, `small` what those of 32 weights have; [`float`] is the 16-bit floats, for the checkpoint's readers too.
//!
//! Beside its scalar code each format has code by lanes, several blocks at once ([`Block::quantize_rows`]), which has to
//! give the same bytes; [`Level`] says for which CPUs.

// Several arrays are indexed alike; and an iterator's closures may stay functions, which lack the instructions of their
// level.
#![allow(clippy::needless_range_loop)]

mod affine_k;
mod batch;
pub mod float;
mod iq4;
pub mod iq4_nl;
pub mod iq4_xs;
mod lanes;
#[cfg(test)]
mod levels;
#[cfg(all(test, feature = "llama", target_arch = "x86_64"))]
mod oracle;
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
#[cfg(test)]
mod samples;
mod search;
mod search_lanes;
mod small;
#[cfg(test)]
mod tests;

use crate::gguf::TensorType;
pub use float::Half;
pub use lanes::Level;
pub(crate) use lanes::{Body, Lanes};

/// A block of weights: a plain struct whose bytes are what the file holds.
pub trait Block: bytemuck::Pod {
    /// The type's name and number.
    const TYPE: TensorType;
    /// Weights in a block.
    const LEN: usize;
    /// What importance does in this format.
    const IMPORTANCE: Importance;

    /// Quantizes one row.
    ///
    /// `src` holds the row's weights, a multiple of [`Self::LEN`], all finite; `importance`, where given, one value at
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

    /// The inverse, up to what was lost: `dst` gets [`Self::LEN`] weights for each block of `src`.
    fn dequantize_row(src: &[Self], dst: &mut [f32]);

    /// Whether every float that the block stores is a number: its scales, or, where it has none, the weight itself. All
    /// its weights are numbers then.
    fn is_finite(&self) -> bool;
}

/// Blocks of a kind among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SomeBlocks {
    /// How many there are, at least 1.
    pub n: u64,
    /// The place of the first, in blocks.
    pub first: u64,
}

impl SomeBlocks {
    /// Those of `blocks` that `is_meant`; `None` where there are none.
    pub fn among<T>(mut blocks: impl Iterator<Item = T> + Clone, is_meant: impl Fn(&T) -> bool) -> Option<Self> {
        // Nearly always there are none, and counting, which never stops early, vectorises.
        let n = blocks.clone().filter(&is_meant).count();
        if n == 0 {
            return None;
        }
        let first = blocks.position(|block| is_meant(&block))?;
        Some(Self { n: n as u64, first: first as u64 })
    }
}

/// What a format does with importance. None of them needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// The bytes are the same with and without.
    Ignored,
    /// Weights of the search where given.
    Used,
}

/// A block format with its type erased: an entry of [`FORMATS`].
#[derive(Clone, Copy)]
pub struct Format {
    /// The type it writes.
    pub ty: TensorType,
    /// What it does with importance.
    pub importance: Importance,
    quantize_rows: fn(Level, Rows, &mut [u8]),
    dequantize_row: fn(&[u8], &mut [f32]),
    not_finite: fn(&[u8]) -> Option<SomeBlocks>,
}

impl Format {
    const fn of<B: Block>() -> Self {
        assert!(size_of::<B>() == B::TYPE.block_bytes() && B::LEN == B::TYPE.block_len());
        // A block's fields are bytes, so that a block may begin at any byte of a file.
        assert!(align_of::<B>() == 1);
        Self {
            ty: B::TYPE,
            importance: B::IMPORTANCE,
            quantize_rows: |level, rows, dst| {
                let dst = bytemuck::cast_slice_mut::<u8, B>(dst);
                match level {
                    Level::Scalar => quantize_rows_one_by_one(rows, dst),
                    _ => level.run(QuantizeRows { rows, dst }),
                }
            },
            dequantize_row: |src, dst| B::dequantize_row(bytemuck::cast_slice(src), dst),
            not_finite: |src| SomeBlocks::among(bytemuck::cast_slice::<u8, B>(src).iter(), |block| !block.is_finite()),
        }
    }

    /// Quantizes consecutive rows of `row_len` weights each.
    ///
    /// `importance`, where given, holds one value a column and serves every row.
    ///
    /// # Panics
    /// When the lengths do not fit: `src` not a multiple of `row_len`, `row_len` not a multiple of the block,
    /// `importance` not `row_len` long, or `dst` not exactly the rows' bytes. Those are the caller's to check.
    pub fn quantize_rows(&self, src: &[f32], row_len: usize, importance: Option<&[f32]>, dst: &mut [u8]) {
        self.quantize_rows_at(Level::best(), src, row_len, importance, dst);
    }

    /// [`Self::quantize_rows`] with what the CPU has up to `level`; the bytes are the same at every level.
    ///
    /// # Panics
    /// As [`Self::quantize_rows`], and when this CPU does not have that level.
    pub fn quantize_rows_at(
        &self,
        level: Level,
        src: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        dst: &mut [u8],
    ) {
        let row_bytes = self.row_bytes(row_len);
        assert_eq!(src.len() % row_len, 0);
        assert_eq!(dst.len(), src.len() / row_len * row_bytes);
        assert!(importance.is_none_or(|i| i.len() == row_len));
        (self.quantize_rows)(level, Rows { weights: src, row_len, importance }, dst);
    }

    /// Dequantizes whole blocks: `dst` gets as many weights as `src` holds.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        assert_eq!(src.len() % self.ty.block_bytes(), 0);
        assert_eq!(dst.len(), src.len() / self.ty.block_bytes() * self.ty.block_len());
        (self.dequantize_row)(src, dst);
    }

    /// The blocks among `src` that hold a NaN or an infinity, as a scale or as a weight; `None` where all are numbers.
    ///
    /// # Panics
    /// When `src` is not whole blocks.
    pub fn not_finite(&self, src: &[u8]) -> Option<SomeBlocks> {
        assert_eq!(src.len() % self.ty.block_bytes(), 0);
        (self.not_finite)(src)
    }

    fn row_bytes(&self, row_len: usize) -> usize {
        assert!(row_len > 0 && row_len.is_multiple_of(self.ty.block_len()));
        row_len / self.ty.block_len() * self.ty.block_bytes()
    }
}

/// Every format that nibble can write, and read back, the largest first.
pub static FORMATS: &[Format] = &[
    Format::of::<plain::F32>(),
    Format::of::<plain::F16>(),
    Format::of::<plain::Bf16>(),
    Format::of::<q8_0::BlockQ8_0>(),
    Format::of::<q6_k::BlockQ6K>(),
    Format::of::<q5_1::BlockQ5_1>(),
    Format::of::<q5_0::BlockQ5_0>(),
    Format::of::<q5_k::BlockQ5K>(),
    Format::of::<q4_1::BlockQ4_1>(),
    Format::of::<q4_0::BlockQ4_0>(),
    Format::of::<q4_k::BlockQ4K>(),
    Format::of::<iq4_nl::BlockIq4Nl>(),
    Format::of::<iq4_xs::BlockIq4Xs>(),
    Format::of::<q3_k::BlockQ3K>(),
    Format::of::<q2_k::BlockQ2K>(),
];

/// The format that writes `ty`; `None` where nibble has none.
pub fn format(ty: TensorType) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.ty == ty)
}

/// The names of the types in [`FORMATS`], for messages.
pub fn type_list() -> String {
    FORMATS.iter().map(|format| format.ty.name()).collect::<Vec<_>>().join(", ")
}

/// Reads whole blocks: bytes to weights.
pub type Decode = fn(&[u8], &mut [f32]);

/// How whole blocks of `ty` are read: of every type in [`FORMATS`], and of F64, which checkpoints may have and nibble does
/// not write. `None` for all others. The function fills its second argument, and panics where the lengths do not fit.
pub fn decoder(ty: TensorType) -> Option<Decode> {
    match ty {
        TensorType::F64 => Some(plain::decode_f64),
        ty => Some(format(ty)?.dequantize_row),
    }
}

/// Rows of one matrix.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// All of them, one after the other.
    weights: &'a [f32],
    /// Weights in a row.
    row_len: usize,
    /// One value a column.
    importance: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// All rows as pieces of `N` weights, of which a row has a whole number.
    #[inline(always)]
    fn pieces<const N: usize>(self) -> &'a [[f32; N]] {
        self.weights.as_chunks().0
    }

    /// The importance of piece `index` of [`Self::pieces`].
    #[inline(always)]
    fn importance_of<const N: usize>(importance: &'a [f32], index: usize) -> &'a [f32; N] {
        let (pieces, _) = importance.as_chunks();
        &pieces[index % pieces.len()]
    }
}

#[inline(always)]
fn quantize_rows_one_by_one<B: Block>(rows: Rows, dst: &mut [B]) {
    let Rows { weights, row_len, importance } = rows;
    for (src, dst) in weights.chunks_exact(row_len).zip(dst.chunks_exact_mut(row_len / B::LEN)) {
        B::quantize_row(src, importance, dst);
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

/// Quantizes a row block by block: for formats whose block depends on nothing outside it but what `quantize` captured.
#[inline(always)]
fn quantize_blocks<const LEN: usize, B: Block>(
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
fn dequantize_blocks<const LEN: usize, B: Block>(src: &[B], dst: &mut [f32], dequantize: impl Fn(&B) -> [f32; LEN]) {
    let (dst, _) = dst.as_chunks_mut::<LEN>();
    for (x, block) in dst.iter_mut().zip(src) {
        *x = dequantize(block);
    }
}
