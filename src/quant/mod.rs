//! Block formats: how 32 or 256 weights become a few bytes, and back.
//!
//! A format is one file here and one line in [`FORMATS`]. Lookup, command-line values, help, tests and benchmarks iterate
//! over that table.
//!
//! **The bytes are defined by the scalar code**: IEEE single-precision operations in the written order, never contracted
//! to fused multiply-adds and never reordered, which is what ggml's own quantizers do on plain x86-64. So a file does not
//! depend on the CPU, the number of threads or how the work was cut.

use crate::gguf::TensorType;

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

    /// The inverse, up to what was lost: `dst` gets [`Self::LEN`] weights for each block of `src`.
    fn dequantize_row(src: &[Self], dst: &mut [f32]);
}

/// What a format does with importance.
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
    quantize_row: fn(&[f32], Option<&[f32]>, &mut [u8]),
    dequantize_row: fn(&[u8], &mut [f32]),
}

impl Format {
    const fn of<B: Block>() -> Self {
        assert!(size_of::<B>() == B::TYPE.block_bytes() && B::LEN == B::TYPE.block_len());
        // A block's fields are bytes, so that a block may begin at any byte of a file.
        assert!(align_of::<B>() == 1);
        Self {
            ty: B::TYPE,
            importance: B::IMPORTANCE,
            quantize_row: |src, importance, dst| B::quantize_row(src, importance, bytemuck::cast_slice_mut(dst)),
            dequantize_row: |src, dst| B::dequantize_row(bytemuck::cast_slice(src), dst),
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
        let row_bytes = self.row_bytes(row_len);
        assert_eq!(src.len() % row_len, 0);
        assert_eq!(dst.len(), src.len() / row_len * row_bytes);
        assert!(importance.is_none_or(|i| i.len() == row_len));
        for (src, dst) in src.chunks_exact(row_len).zip(dst.chunks_exact_mut(row_bytes)) {
            (self.quantize_row)(src, importance, dst);
        }
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

    fn row_bytes(&self, row_len: usize) -> usize {
        assert!(row_len > 0 && row_len.is_multiple_of(self.ty.block_len()));
        row_len / self.ty.block_len() * self.ty.block_bytes()
    }
}

/// Every format that nibble can write, and read back.
pub static FORMATS: &[Format] = &[];

/// The format that writes `ty`; `None` where nibble has none.
pub fn format(ty: TensorType) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.ty == ty)
}
