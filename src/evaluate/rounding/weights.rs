//! The weights of a source, for computing with its layers.

use std::collections::HashMap;
use std::ops::Range;

use crate::pass::{Assembly, Source};
use crate::transformer::{Error, Weights};

/// The tensors of a source by their names in the output.
pub struct SourceWeights<'a> {
    source: &'a Source,
    assemblies: Vec<Assembly<'a>>,
    indices: HashMap<&'a str, usize>,
}

impl<'a> SourceWeights<'a> {
    /// Finds where the tensors of `source` are.
    pub fn new(source: &'a Source) -> Self {
        let n = source.tensors.len();
        let named = source.tensors.iter().enumerate();
        Self {
            source,
            assemblies: (0..n).map(|index| source.assembly(index)).collect(),
            indices: named.map(|(index, tensor)| (tensor.name.as_str(), index)).collect(),
        }
    }
}

impl Weights for SourceWeights<'_> {
    fn names(&self) -> Vec<&str> {
        self.source.tensors.iter().map(|tensor| tensor.name.as_str()).collect()
    }

    fn dims(&self, name: &str) -> Option<[usize; 2]> {
        let tensor = &self.source.tensors[*self.indices.get(name)?];
        Some([usize::try_from(tensor.row_len()).ok()?, usize::try_from(tensor.n_rows()?).ok()?])
    }

    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let index = *self.indices.get(name).ok_or_else(|| Error::Missing { tensor: name.to_string() })?;
        let assembly = &self.assemblies[index];
        // A vector may be assembled number by number.
        let is_vector = self.source.tensors[index].dims.len() == 1;
        let rows = if is_vector { 0..assembly.n_rows } else { rows };
        let n_weights = rows.len() * assembly.row_len;
        assembly
            .read(rows, weights)
            .map_err(|error| Error::Read { tensor: name.to_string(), source: Box::new(error) })?;
        weights.truncate(n_weights);
        Ok(())
    }
}
