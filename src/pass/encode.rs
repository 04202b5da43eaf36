//! Converts rows of the source to bytes of the output, for one tensor.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::Error;
use super::assembly::{Assembly, Input};
use super::prologue::{EncodeRows, Prologue, WholeTensor};
use crate::gguf::{TensorInfo, TensorType};
use crate::quant::Format;

/// Number of weights that are decoded at once: half a MiB as floats, so that they are still in the core's own cache
/// when they are quantized.
const STEP_WEIGHTS: usize = 128 * 1024;

/// Encodes one tensor.
pub struct Encoder<'a> {
    /// Where its rows come from.
    pub assembly: Assembly<'a>,
    /// The type in the output.
    pub ty: TensorType,
    /// Bytes of a row of the output.
    pub row_bytes: usize,
    /// The importance of its columns.
    pub importance: Option<&'a [f32]>,
    format: &'static Format,
    allow_nan: bool,
    prologue: Option<Prepared<'a>>,
}

/// A prologue, and its result for one tensor.
struct Prepared<'a> {
    prologue: &'a dyn Prologue,
    tensor: &'a TensorInfo,
    state: Mutex<State>,
}

struct State {
    /// `None` before the first row.
    rounding: Option<Option<Arc<dyn EncodeRows>>>,
    /// Rows that have not been encoded yet. After the last, the prologue's result is dropped.
    rows_left: usize,
}

impl<'a> Encoder<'a> {
    /// Creates an encoder of `assembly` in `format`, whose block length must divide the row length.
    pub fn new(
        assembly: Assembly<'a>,
        format: &'static Format,
        importance: Option<&'a [f32]>,
        allow_nan: bool,
    ) -> Self {
        let row_bytes = format.ty.row_bytes(assembly.row_len as u64).expect("types are fitted to rows") as usize;
        Self { assembly, ty: format.ty, row_bytes, importance, format, allow_nan, prologue: None }
    }

    /// Makes the encoder run `prologue` before it encodes the first row. `tensor` describes the output.
    #[must_use]
    pub fn with_prologue(mut self, prologue: Option<&'a dyn Prologue>, tensor: &'a TensorInfo) -> Self {
        let state = State { rounding: None, rows_left: self.assembly.n_rows };
        self.prologue = prologue.map(|prologue| Prepared { prologue, tensor, state: Mutex::new(state) });
        self
    }

    /// Returns the format of the output type.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// Counts `n_rows` rows as encoded, because an earlier run did so.
    pub fn skip(&self, n_rows: usize) {
        if let Some(prepared) = &self.prologue {
            prepared.finish(n_rows);
        }
    }

    /// Encodes rows `rows` of input number `input`, counted from the input's first row, into `dst`, which has exactly
    /// their length. `source` holds the input's bytes from row `first_row` on, which is the first row of a group (see
    /// [`Input::group_rows`]). `weights` is a buffer that is reused from one call to the next.
    ///
    /// # Errors
    /// If a weight is not finite, or may not stay finite in the output's type (unless that is allowed), or the prologue
    /// fails.
    pub fn encode(
        &self,
        input: usize,
        rows: Range<usize>,
        source: &[u8],
        first_row: usize,
        weights: &mut Vec<f32>,
        dst: &mut [u8],
    ) -> Result<(), Error> {
        let input = &self.assembly.inputs[input];
        if input.can_copy(self.ty) && self.ty.block_len() > 1 {
            // Already in the wanted type: decoding and encoding again could only lose precision.
            for (row, dst) in rows.zip(dst.chunks_exact_mut(self.row_bytes)) {
                dst.copy_from_slice(input.row(row, source, first_row));
            }
            return Ok(());
        }
        let rounding = match &self.prologue {
            Some(prepared) => prepared.rounding(&self.assembly, self.importance)?,
            None => None,
        };
        let row_len = input.row_len;
        let step = match &rounding {
            None => (STEP_WEIGHTS / row_len.max(1)).max(1),
            // It reads what was prepared once for all rows that it gets.
            Some(_) => rows.len().max(1),
        };
        for (at, dst) in rows.clone().step_by(step).zip(dst.chunks_mut(step * self.row_bytes)) {
            let rows = at..rows.end.min(at + step);
            let n_weights = rows.len() * row_len;
            if weights.len() < n_weights {
                weights.resize(n_weights, 0.0);
            }
            let weights = &mut weights[..n_weights];
            input.decode(rows, source, first_row, weights);
            if !self.allow_nan {
                let limit = self.format.limit(self.importance.is_some());
                check_weights(input, self.ty, limit, at, weights)?;
            }
            match &rounding {
                None => self.format.quantize_rows(weights, row_len, self.importance, dst),
                Some(rounding) => {
                    rounding.encode(self.format, input.first_row + at, weights, row_len, self.importance, dst)
                }
            }
        }
        if let Some(prepared) = &self.prologue {
            prepared.finish(rows.len());
        }
        Ok(())
    }
}

impl Prepared<'_> {
    /// Returns the prologue's result. Runs the prologue if it has not run yet, while other threads that need its result
    /// wait.
    fn rounding(
        &self,
        assembly: &Assembly<'_>,
        importance: Option<&[f32]>,
    ) -> Result<Option<Arc<dyn EncodeRows>>, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rounding) = &state.rounding {
            return Ok(rounding.clone());
        }
        let whole = WholeTensor::new(self.tensor, assembly, importance);
        let rounding = self.prologue.prepare(&whole)?.map(Arc::from);
        state.rounding = Some(rounding.clone());
        Ok(rounding)
    }

    fn finish(&self, n_rows: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.rows_left = state.rows_left.saturating_sub(n_rows);
        if state.rows_left == 0 {
            state.rounding = None;
        }
    }
}

/// Returns an error if a weight is not below `limit` in magnitude, the most that `ty` can hold.
fn check_weights(input: &Input, ty: TensorType, limit: f32, first_row: usize, weights: &[f32]) -> Result<(), Error> {
    let largest = largest_magnitude(weights);
    if largest < limit {
        return Ok(());
    }
    let wrong = |w: f32| if largest.is_finite() { w.abs() >= limit } else { !w.is_finite() };
    let Some((row, column)) = find(weights, input.row_len, wrong) else { return Ok(()) };
    let (tensor, value) = (input.name.to_string(), weights[row * input.row_len + column]);
    let row = input.first_source_row + input.source_row(first_row + row);
    Err(match largest.is_finite() {
        true => Error::BeyondF16 { tensor, row, column, value, ty },
        false => Error::NotFinite { tensor, row, column, value },
    })
}

/// Returns the largest magnitude of the weights; infinity or NaN if a weight is not finite.
fn largest_magnitude(weights: &[f32]) -> f32 {
    // Magnitudes are ordered like their bits (NaN above infinity above all numbers), and an integer maximum vectorises.
    f32::from_bits(weights.iter().fold(0, |largest, w| largest.max(w.to_bits() & 0x7fff_ffff)))
}

/// Returns the row and the column of the first weight for which `is_wrong` returns true.
fn find(weights: &[f32], row_len: usize, is_wrong: impl Fn(f32) -> bool) -> Option<(usize, usize)> {
    let at = weights.iter().position(|&w| is_wrong(w))?;
    Some((at / row_len, at % row_len))
}
