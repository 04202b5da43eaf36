//! Where the weights come from, and products with matrices that are read a part at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::Error;
use crate::gguf::{Gguf, TensorInfo};
use crate::linear::{View, add_product};
use crate::quant;

/// Where the weights of a model come from. Names are those of GGUF files, such as `blk.3.attn_q.weight`.
pub trait Weights: Sync {
    /// Returns the names of all tensors: those that are not known are refused, not ignored.
    fn names(&self) -> Vec<&str>;

    /// Returns the length of a tensor's rows, and their number. A vector is one row. `None` if there is no such tensor.
    fn dims(&self, name: &str) -> Option<[usize; 2]>;

    /// Fills `weights` with rows `rows` of a tensor, one after the other. Several threads call it at once.
    ///
    /// # Errors
    /// If they cannot be read.
    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error>;
}

/// The weights as they are in a file.
impl Weights for Gguf {
    fn names(&self) -> Vec<&str> {
        self.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
    }

    fn dims(&self, name: &str) -> Option<[usize; 2]> {
        let tensor = self.tensor(name)?;
        Some([usize::try_from(tensor.row_len()).ok()?, usize::try_from(tensor.n_rows()?).ok()?])
    }

    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let index = self.index_of(name).ok_or_else(|| Error::Missing { tensor: name.to_string() })?;
        let TensorInfo { ty, .. } = &self.tensors()[index];
        let unread = |reason: String| Error::Read { tensor: name.to_string(), source: reason.into() };
        let decode = quant::decoder(*ty).ok_or_else(|| unread(format!("its type is {ty}")))?;
        let columns = usize::try_from(self.tensors()[index].row_len()).unwrap_or(0);
        let row_bytes = columns / ty.block_len() * ty.block_bytes();
        let bytes = rows.start.checked_mul(row_bytes).zip(rows.end.checked_mul(row_bytes));
        let bytes = bytes.and_then(|(start, end)| self.data(index).get(start..end));
        let bytes = bytes.ok_or_else(|| unread(format!("it has no rows {} to {}", rows.start, rows.end)))?;
        weights.resize(rows.len() * columns, 0.0);
        decode(bytes, weights);
        Ok(())
    }
}

/// Rows of a matrix that are in memory at a time. Sums over rows are made of sums over so many, so it is part of the result.
const ROWS_AT_ONCE: usize = 1024;

/// Rows that a thread reads at a time.
const ROWS_A_READ: usize = 16;

/// A matrix that is read when it is needed, and not kept.
pub(super) struct Matrix<'a> {
    weights: &'a dyn Weights,
    name: String,
    columns: usize,
    rows: usize,
    bias: Option<Vec<f32>>,
}

impl<'a> Matrix<'a> {
    /// Finds the matrix `name.weight`, and reads `name.bias` if it exists.
    pub(super) fn new(weights: &'a dyn Weights, name: &str) -> Result<Self, Error> {
        let bias = format!("{name}.bias");
        let bias = if weights.dims(&bias).is_some() { Some(vector(weights, &bias)?) } else { None };
        Ok(Self { bias, ..Self::unbiased(weights, format!("{name}.weight"))? })
    }

    /// Finds a matrix by its full name.
    pub(super) fn unbiased(weights: &'a dyn Weights, name: String) -> Result<Self, Error> {
        let [columns, rows] = dims(weights, &name)?;
        Ok(Self { weights, name, columns, rows, bias: None })
    }

    /// Adds a bias.
    pub(super) fn with_bias(self, bias: Option<Vec<f32>>) -> Self {
        Self { bias, ..self }
    }

    /// Returns W x + b for each of the tokens `inputs`: a number for each row of the matrix.
    pub(super) fn forward(&self, inputs: &[f32]) -> Result<Vec<f32>, Error> {
        let n_tokens = inputs.len() / self.columns;
        let mut outputs = vec![0.0; n_tokens * self.rows];
        let (mut weights, mut products) = (Vec::new(), Vec::new());
        self.each_part(&mut weights, |rows, weights| {
            products.clear();
            products.resize(n_tokens * rows.len(), 0.0);
            add_product(View::new(inputs, self.columns), View::new(weights, self.columns).transposed(), &mut products);
            let tokens = outputs.par_chunks_exact_mut(self.rows).zip(products.par_chunks_exact(rows.len()));
            tokens.for_each(|(outputs, products)| match &self.bias {
                None => outputs[rows.clone()].copy_from_slice(products),
                Some(bias) => {
                    for ((output, product), bias) in
                        outputs[rows.clone()].iter_mut().zip(products).zip(&bias[rows.clone()])
                    {
                        *output = product + bias;
                    }
                }
            });
        })?;
        Ok(outputs)
    }

    /// Adds Wᵀ g to `inputs`, the gradients of the inputs, for each of the tokens `outputs`, the gradients of the outputs.
    pub(super) fn add_backward(&self, outputs: &[f32], inputs: &mut [f32]) -> Result<(), Error> {
        let n_tokens = outputs.len() / self.rows;
        self.each_part(&mut Vec::new(), |rows, weights| {
            if n_tokens > 0 {
                let outputs = View::strided(&outputs[rows.start..], n_tokens, rows.len(), self.rows);
                add_product(outputs, View::new(weights, self.columns), inputs);
            }
        })
    }

    /// Calls `use_part` with each part of the rows, in their order.
    fn each_part(&self, weights: &mut Vec<f32>, mut use_part: impl FnMut(Range<usize>, &[f32])) -> Result<(), Error> {
        for start in (0..self.rows).step_by(ROWS_AT_ONCE) {
            let rows = start..self.rows.min(start + ROWS_AT_ONCE);
            weights.resize(rows.len() * self.columns, 0.0);
            weights.par_chunks_mut(ROWS_A_READ * self.columns).enumerate().try_for_each_init(
                Vec::new,
                |read, (part, weights)| {
                    let first = rows.start + part * ROWS_A_READ;
                    let n_rows = weights.len() / self.columns;
                    read_rows(self.weights, &self.name, first..first + n_rows, self.columns, read)?;
                    weights.copy_from_slice(read);
                    Ok(())
                },
            )?;
            use_part(rows, weights);
        }
        Ok(())
    }
}

/// Reads rows, and checks that they are whole.
pub(super) fn read_rows(
    weights: &dyn Weights,
    name: &str,
    rows: Range<usize>,
    columns: usize,
    to: &mut Vec<f32>,
) -> Result<(), Error> {
    weights.rows(name, rows.clone(), to)?;
    let wanted = rows.len() * columns;
    if to.len() == wanted {
        Ok(())
    } else {
        Err(Error::Weights { tensor: name.to_string(), rows, found: to.len(), wanted })
    }
}

/// Returns a tensor of one row.
pub(super) fn vector(weights: &dyn Weights, name: &str) -> Result<Vec<f32>, Error> {
    let [columns, _] = dims(weights, name)?;
    let mut row = Vec::new();
    read_rows(weights, name, 0..1, columns, &mut row)?;
    Ok(row)
}

/// Returns the dimensions of a tensor that has to be there.
pub(super) fn dims(weights: &dyn Weights, name: &str) -> Result<[usize; 2], Error> {
    weights.dims(name).ok_or_else(|| Error::Missing { tensor: name.to_string() })
}
