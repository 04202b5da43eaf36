//! The sums that are collected over texts, and how they are written.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::{Error, Problem, shown};
use super::{
    BLAKE3, CHUNK_COUNT, CHUNK_SIZE, COUNTS_SUFFIX, DATASETS, IMATRIX, SUMS_SUFFIX, TOKENS, TYPE, VERSION, WEIGHTS,
    WINDOWS,
};
use crate::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata, TensorInfo, TensorType};

/// Sums over the inputs of a matrix, or of several matrices of the same shape (the experts of a mixture).
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Σx² of each column, one matrix after the other.
    pub sums: Vec<f64>,
    /// For each matrix, the number of inputs that were summed: tokens, each times the weight of its text.
    pub counts: Vec<f64>,
}

impl Matrix {
    /// Returns the sums of a matrix with this many columns before any input.
    pub fn new(columns: usize) -> Self {
        Self { sums: vec![0.0; columns], counts: vec![0.0] }
    }

    /// Returns the number of columns of each matrix.
    pub fn columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Returns the number of columns whose inputs were always zero.
    pub fn unseen(&self) -> usize {
        self.sums.iter().filter(|sum| **sum == 0.0).count()
    }

    /// Adds the sums of another `Matrix` of the same size, multiplied by `weight`.
    pub(crate) fn add(&mut self, other: &Self, weight: f64) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(to, x)| *to += x * weight);
        self.counts.iter_mut().zip(&other.counts).for_each(|(to, x)| *to += x * weight);
    }
}

/// A text that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationText {
    /// Its file's name, without folders if nibble wrote it.
    pub name: String,
    /// BLAKE3 of the text, hexadecimal; empty if it is not known.
    pub blake3: String,
    /// How often each of its tokens counts.
    pub weight: f64,
    /// Number of its tokens; 0 if it is not known.
    pub tokens: u64,
    /// Number of windows that were read; 0 if it is not known.
    pub windows: u64,
}

/// All sums, and the texts that they cover.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// By the matrix's GGUF name.
    pub matrices: BTreeMap<String, Matrix>,
    /// The texts, in the order they were read.
    pub texts: Vec<CalibrationText>,
    /// Windows of all texts.
    pub windows: u64,
    /// Tokens in a window; 0 if it is not known.
    pub window: u32,
}

impl Sums {
    /// Adds the sums of another file, counting each of its inputs `weight` times. In errors, that file is called
    /// `path`, and this one `of`.
    ///
    /// # Errors
    /// If a matrix has another size there. Nothing is added then.
    pub fn add(&mut self, other: &Self, weight: f64, path: &Path, of: &str) -> Result<(), Error> {
        for (name, matrix) in &other.matrices {
            let Some(here) = self.matrices.get(name) else { continue };
            let foreign = |problem| Error::Foreign { path: path.to_path_buf(), problem };
            if here.columns() != matrix.columns() {
                let (found, wanted) = (matrix.columns(), here.columns());
                return Err(foreign(Problem::Columns { matrix: shown(name), found, wanted, of: of.to_string() }));
            }
            if here.counts.len() != matrix.counts.len() {
                return Err(foreign(Problem::Experts { matrix: shown(name), n: matrix.counts.len() }));
            }
        }
        for (name, matrix) in &other.matrices {
            let empty = || Matrix { sums: vec![0.0; matrix.sums.len()], counts: vec![0.0; matrix.counts.len()] };
            self.matrices.entry(name.clone()).or_insert_with(empty).add(matrix, weight);
        }
        self.texts
            .extend(other.texts.iter().map(|text| CalibrationText { weight: text.weight * weight, ..text.clone() }));
        self.windows = self.windows.saturating_add(other.windows);
        if self.window == 0 {
            self.window = other.window;
        }
        Ok(())
    }

    /// Returns the bytes of a file with these sums. The same sums always make the same bytes.
    ///
    /// # Errors
    /// If a name or a sum cannot be written in this format.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        for (name, matrix) in &self.matrices {
            if let Some(column) = matrix.sums.iter().position(|sum| !(*sum as f32).is_finite()) {
                return Err(Error::TooLarge { matrix: name.clone(), column, value: matrix.sums[column] });
            }
        }
        let mut metadata = Metadata::new();
        metadata.set(TYPE, IMATRIX);
        metadata.set(DATASETS, self.texts.iter().map(|text| text.name.clone()).collect::<Vec<_>>());
        metadata.set(CHUNK_COUNT, u32::try_from(self.windows).unwrap_or(u32::MAX));
        metadata.set(CHUNK_SIZE, self.window);
        metadata.set(VERSION, env!("CARGO_PKG_VERSION"));
        metadata.set(BLAKE3, self.texts.iter().map(|text| text.blake3.clone()).collect::<Vec<_>>());
        metadata.set(WEIGHTS, self.texts.iter().map(|text| text.weight).collect::<Vec<_>>());
        metadata.set(TOKENS, self.texts.iter().map(|text| text.tokens).collect::<Vec<_>>());
        metadata.set(WINDOWS, self.texts.iter().map(|text| text.windows).collect::<Vec<_>>());
        self.write(&metadata, TensorType::F32)
    }

    /// Returns the bytes of a GGUF file of the sums, as 32-bit or 64-bit floats, with this metadata.
    pub(crate) fn write(&self, metadata: &Metadata, ty: TensorType) -> Result<Vec<u8>, Error> {
        let (mut infos, mut numbers) = (vec![], vec![]);
        for (name, Matrix { sums, counts }) in &self.matrices {
            let n = counts.len() as u64;
            let columns = (sums.len() / counts.len().max(1)) as u64;
            infos.push(TensorInfo { name: format!("{name}{SUMS_SUFFIX}"), dims: vec![columns, n], ty });
            infos.push(TensorInfo { name: format!("{name}{COUNTS_SUFFIX}"), dims: vec![1, n], ty });
            numbers.extend([sums, counts]);
        }
        let layout = Layout::new(metadata, infos, DEFAULT_ALIGNMENT, None)?;
        let mut bytes = Vec::new();
        let data = |index: usize| -> Vec<u8> {
            match ty {
                TensorType::F32 => numbers[index].iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
                _ => numbers[index].iter().flat_map(|x| x.to_le_bytes()).collect(),
            }
        };
        layout.write_part(0, &mut bytes, data).expect("memory takes all, and every tensor has the size it was given");
        Ok(bytes)
    }
}
