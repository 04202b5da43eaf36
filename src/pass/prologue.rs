//! Work on a whole tensor before any of its rows is encoded.
//!
//! Nearest rounding needs none, because it encodes each row independently. Rounding that compensates errors needs the
//! covariance of a matrix's inputs, factored once before the first row. A [`Prologue`] does such work, and returns an
//! object that then encodes the rows. It runs once per tensor, when the first of its rows is reached. Its result is
//! dropped after the last row, so that only tensors in progress take memory.

use std::fmt;
use std::ops::Range;

use super::Error;
use super::assembly::Assembly;
use crate::gguf::TensorInfo;
use crate::quant::Format;

/// Work on each tensor before its rows are encoded.
pub trait Prologue: fmt::Debug + Send + Sync {
    /// Returns everything that the result depends on, as text. Work that was begun with another prologue is not
    /// resumed.
    fn identity(&self) -> String;

    /// Returns the place of a tensor in the order in which tensors are best prepared; `None` if it does not matter. Tensors of one
    /// place are prepared in any order; few of a later place are prepared before the last of an earlier one.
    fn place(&self, _tensor: &TensorInfo) -> Option<usize> {
        None
    }

    /// Prepares a tensor. Returns an object that encodes its rows; `None` if they are rounded to nearest, as without a
    /// prologue.
    ///
    /// # Errors
    /// If [`WholeTensor::read`] fails, or with [`Error::Prologue`] if the work itself does.
    fn prepare(&self, tensor: &WholeTensor<'_>) -> Result<Option<Box<dyn EncodeRows>>, Error>;
}

/// Encodes the rows of a tensor that a [`Prologue`] has prepared.
pub trait EncodeRows: Send + Sync {
    /// Encodes the rows `weights`, of `row_len` weights each, which begin with row `first_row` of the tensor. `dst` has
    /// exactly the size of their blocks. The bytes of a row must not depend on which rows are passed in one call.
    /// `weights` may be changed.
    fn encode(
        &self,
        format: &Format,
        first_row: usize,
        weights: &mut [f32],
        row_len: usize,
        importance: Option<&[f32]>,
        dst: &mut [u8],
    );
}

/// An output tensor with all of its rows.
pub struct WholeTensor<'a> {
    /// Name, sizes and type in the output.
    pub info: &'a TensorInfo,
    /// Importance of its columns.
    pub importance: Option<&'a [f32]>,
    assembly: &'a Assembly<'a>,
}

impl<'a> WholeTensor<'a> {
    pub(super) fn new(info: &'a TensorInfo, assembly: &'a Assembly<'a>, importance: Option<&'a [f32]>) -> Self {
        Self { info, importance, assembly }
    }

    /// Weights in a row.
    pub fn row_len(&self) -> usize {
        self.assembly.row_len
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.assembly.n_rows
    }

    /// Reads rows `rows` of the tensor into `weights`, in the order of the output.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn read(&self, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        self.assembly.read(rows, weights)
    }
}
