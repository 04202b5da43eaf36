//! From rows of the source to the bytes of the output, for one tensor.

use std::ops::Range;

use super::source::{self, Input};
use super::{Error, Job};
use crate::gguf::TensorType;
use crate::quant::{self, Format};

/// Weights that are decoded at once: half a MiB as floats, so that they are still in the core's own cache when they are
/// quantized.
const STEP_WEIGHTS: usize = 128 * 1024;

/// How one tensor becomes what it is in the output.
pub struct Encoder<'a> {
    /// Where its rows come from.
    pub input: Input<'a>,
    /// What it becomes.
    pub ty: TensorType,
    /// Bytes of a row of the output.
    pub row_bytes: usize,
    /// Importance of its columns.
    pub importance: Option<&'a [f32]>,
    format: &'static Format,
    allow_nan: bool,
}

impl Job {
    /// How tensor `i` of the plan becomes what it is in the output.
    pub(crate) fn encoder(&self, i: usize) -> Encoder<'_> {
        let planned = &self.plan.tensors[i];
        let importance = self.options.importance.as_ref().and_then(|importance| importance.of(&planned.name));
        let format = quant::format(planned.ty).expect("plans use only formats that nibble has");
        Encoder::new(self.input(i), format, importance, self.options.allow_nan)
    }
}

impl<'a> Encoder<'a> {
    /// Makes `format` of `input`, whose rows its blocks divide.
    pub fn new(input: Input<'a>, format: &'static Format, importance: Option<&'a [f32]>, allow_nan: bool) -> Self {
        let row_bytes = format.ty.row_bytes(input.row_len as u64).expect("types are fitted to rows") as usize;
        Self { input, ty: format.ty, row_bytes, format, importance, allow_nan }
    }

    /// Makes output rows `rows` of `source`, the tensor's source bytes from row `first_row` on (the first of a group, see
    /// [`Input::group_rows`]), and puts them in `dst`, which holds exactly that many. `weights` is room to work in, kept
    /// from one call to the next.
    ///
    /// # Errors
    /// When a weight is not finite, or may not stay so in the output's type (unless that is allowed).
    pub fn encode(
        &self,
        rows: Range<usize>,
        source: &[u8],
        first_row: usize,
        weights: &mut Vec<f32>,
        dst: &mut [u8],
    ) -> Result<(), Error> {
        if self.input.ty == self.ty && self.ty.block_len() > 1 {
            // Already in the wanted quantization: decoding and encoding again could only lose.
            for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_bytes)) {
                dst.copy_from_slice(self.input.row(row, source, first_row));
            }
            return Ok(());
        }
        let row_len = self.input.row_len;
        let step = (STEP_WEIGHTS / row_len.max(1)).max(1);
        for (at, dst) in rows.clone().step_by(step).zip(dst.chunks_mut(step * self.row_bytes)) {
            let rows = at..rows.end.min(at + step);
            let n_weights = rows.len() * row_len;
            if weights.len() < n_weights {
                weights.resize(n_weights, 0.0);
            }
            let weights = &mut weights[..n_weights];
            self.input.decode_rows(rows, source, first_row, weights);
            if !self.allow_nan {
                let limit = self.format.limit(self.importance.is_some());
                check_weights(&self.input, self.ty, limit, at, weights)?;
            }
            self.format.quantize_rows(weights, row_len, self.importance, dst);
        }
        Ok(())
    }
}

/// Refuses weights that are not below `limit` in magnitude: what `ty` can hold.
fn check_weights(input: &Input, ty: TensorType, limit: f32, first_row: usize, weights: &[f32]) -> Result<(), Error> {
    let largest = source::largest_magnitude(weights);
    if largest < limit {
        return Ok(());
    }
    let wrong = |w: f32| if largest.is_finite() { w.abs() >= limit } else { !w.is_finite() };
    let Some((row, column)) = source::find(weights, input.row_len, wrong) else { return Ok(()) };
    let (tensor, value) = (input.name.to_string(), weights[row * input.row_len + column]);
    let row = input.source_row(first_row + row);
    Err(match largest.is_finite() {
        true => Error::BeyondF16 { tensor, row, column, value, ty },
        false => Error::NotFinite { tensor, row, column, value },
    })
}
