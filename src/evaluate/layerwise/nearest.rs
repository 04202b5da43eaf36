//! A model that is rounded to nearest while it is read.

use std::collections::HashMap;
use std::ops::Range;

use crate::quant::{self, Format};
use crate::recipe::Plan;
use crate::transformer::{Error, Weights};

/// The weights of a source as a file of a plan would have them, without importance.
pub struct Nearest<'a> {
    source: &'a dyn Weights,
    /// Of each tensor whose type is another than the source's.
    formats: HashMap<&'a str, &'static Format>,
}

impl<'a> Nearest<'a> {
    /// Rounds the tensors of `source` by `plan`, which was made for it.
    pub fn new(source: &'a dyn Weights, plan: &'a Plan) -> Self {
        let changed = plan.tensors.iter().filter(|tensor| tensor.ty != tensor.source);
        let formats = changed.filter_map(|tensor| Some((tensor.name.as_str(), quant::format(tensor.ty)?))).collect();
        Self { source, formats }
    }
}

impl Weights for Nearest<'_> {
    fn names(&self) -> Vec<&str> {
        self.source.names()
    }

    fn dims(&self, name: &str) -> Option<[usize; 2]> {
        self.source.dims(name)
    }

    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        self.source.rows(name, rows, weights)?;
        let (Some(format), Some([row_len, _])) = (self.formats.get(name), self.dims(name)) else { return Ok(()) };
        if weights.is_empty() || row_len == 0 || !row_len.is_multiple_of(format.ty.block_len()) {
            return Ok(());
        }
        let mut bytes = vec![0; weights.len() / row_len * format.row_bytes(row_len)];
        format.quantize_rows(weights, row_len, None, &mut bytes);
        format.dequantize(&bytes, weights);
        Ok(())
    }
}
