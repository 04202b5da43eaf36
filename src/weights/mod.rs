//! Comparison of weights: how far those of quantized files are from the source's.
//!
//! ```text
//! WeightComparison::prepare   open the source and the files ─► match their tensors     only headers are read
//! WeightComparison::execute   for each span of the source's files, on every core:
//!                    read ─► permute ─► f32 ─┬─► sums of the rows
//!                        each candidate: read ─► f32 ─┘
//! ```
//!
//! With `w` a weight of the source, `q` the candidate's weight in the same place, `i` the importance of its column, and sums
//! over all weights of a tensor:
//!
//! | number     | formula                 | what it says                                                              |
//! |------------|-------------------------|---------------------------------------------------------------------------|
//! | `rmse`     | √(Σ(w − q)² / n)        | the root mean square error, in the unit of the weights                    |
//! | `relative` | √(Σ(w − q)² / Σw²)      | the same relative to the weights: comparable between tensors              |
//! | `cosine`   | Σwq / √(Σw² Σq²)        | 1 if both point the same way, 0 if they are orthogonal                    |
//! | `weighted` | √(Σi(w − q)² / Σiw²)    | `relative` for inputs like those that the importance was collected from   |
//!
//! The source and each candidate are read once. Memory is bounded as in a conversion: a few buffers per thread. The numbers
//! depend on nothing but the files: not on the CPU or the number of threads.

pub mod comparison;
pub mod file;
pub mod intact;
mod sums;
mod work;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub use self::comparison::{FileComparison, FileOptions, FilesError, Observer, Stage};
use self::sums::Sums;
use crate::arch::{ARCHITECTURES, Architectures, Role};
use crate::base::units;
use crate::convert::{self, Importance};
use crate::gguf::{self, Gguf, TensorInfo};
use crate::pass::{self, Source};
use crate::quant;
use crate::report::results::{RoleError, TensorError, WeightErrors};

/// Why weights could not be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error(transparent)]
    Source(#[from] pass::Error),
    #[error(transparent)]
    Importance(#[from] convert::Error),
    #[error(
        "{file}: none of its {n_tensors} tensors is in {original} with the same name and sizes; it is of another model"
    )]
    AnotherModel { file: PathBuf, original: PathBuf, n_tensors: usize },
    #[error("{file} could not be read: {source}")]
    Read { file: PathBuf, source: std::io::Error },
    #[error("stopped before everything was compared")]
    Cancelled,
}

/// A prepared comparison of weights, ready to execute.
pub struct WeightComparison<'a> {
    source: Source,
    candidates: Vec<Result<Candidate, Error>>,
    importance: Option<&'a Importance>,
    warnings: Vec<String>,
}

/// A file that is compared with the source.
struct Candidate {
    gguf: Gguf,
    /// For each tensor of the source, the number of the file's tensor; `None` if there is nothing to compare.
    matches: Vec<Option<usize>>,
    /// Why tensors are not compared, one sentence each.
    skipped: Vec<String>,
}

impl<'a> WeightComparison<'a> {
    /// Opens `source`, a Hugging Face folder or a GGUF in any type that nibble reads, and the GGUF files `candidates`, and
    /// matches their tensors. `importance` is that of the columns of the source's matrices.
    ///
    /// # Errors
    /// If the source cannot be opened, or the importance does not fit it. [`Self::execute`] returns what is wrong with
    /// a candidate, beside the results of the others.
    pub fn prepare(
        source: &Path,
        candidates: &[impl AsRef<Path>],
        importance: Option<&'a Importance>,
    ) -> Result<Self, Error> {
        Self::prepare_with(ARCHITECTURES, source, candidates, importance)
    }

    /// Like [`Self::prepare`], but for sources of the given architectures.
    ///
    /// # Errors
    /// If the source cannot be opened, or the importance does not fit it.
    pub fn prepare_with(
        architectures: Architectures,
        source_path: &Path,
        candidates: &[impl AsRef<Path>],
        importance: Option<&'a Importance>,
    ) -> Result<Self, Error> {
        // A comparison may use a quantized source: nothing is converted.
        let source = Source::open(source_path, architectures, true, None)?;
        let mut warnings = source.warnings.clone();
        if let Some(importance) = importance {
            convert::check_importance(importance, &source.tensors, &mut warnings)?;
        }
        let candidates = candidates.iter().map(|file| Candidate::open(file.as_ref(), source_path, &source)).collect();
        Ok(Self { source, candidates, importance, warnings })
    }

    /// Returns warnings about the source, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Compares on the threads of the current rayon pool. `progress` is called from every thread with the number of bytes
    /// read since its last call, and the number to read in total, of the source and the candidates together.
    ///
    /// Returns the result for each candidate in the order given, or why it could not be compared.
    ///
    /// # Errors
    /// If the source cannot be read, or `cancel` was set.
    pub fn execute(
        self,
        progress: &(dyn Fn(u64, u64) + Sync),
        cancel: &AtomicBool,
    ) -> Result<Vec<Result<WeightErrors, Error>>, Error> {
        let Self { source, candidates, importance, .. } = self;
        let opened: Vec<&Candidate> = candidates.iter().filter_map(|candidate| candidate.as_ref().ok()).collect();
        let mut found = work::run(&source, &opened, importance, progress, cancel)?.into_iter();
        let result = |candidate: Result<Candidate, Error>| {
            let candidate = candidate?;
            // There is a result for each candidate that was opened.
            found.next().unwrap_or(Err(Error::Cancelled)).map(|sums| candidate.report(&source, &sums))
        };
        Ok(candidates.into_iter().map(result).collect())
    }
}

impl Candidate {
    fn open(path: &Path, source_path: &Path, source: &Source) -> Result<Self, Error> {
        let gguf = Gguf::open(path)?;
        let by_name: HashMap<_, _> =
            source.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect();
        let (mut matches, mut skipped) = (vec![None; source.tensors.len()], vec![]);
        let mut is_known = false;
        for (tensor, info) in gguf.tensors().iter().enumerate() {
            match find(info, source, &by_name) {
                Ok(i) => matches[i] = Some(tensor),
                Err(why) => skipped.push(why),
            }
            is_known |= by_name.get(info.name.as_str()).is_some_and(|&i| source.tensors[i].dims == info.dims);
        }
        if !is_known {
            let (file, original, n_tensors) = (path.to_path_buf(), source_path.to_path_buf(), gguf.tensors().len());
            return Err(Error::AnotherModel { file, original, n_tensors });
        }
        let missing = source.tensors.iter().filter(|tensor| gguf.tensor(&tensor.name).is_none());
        skipped.extend(missing.map(|tensor| format!("tensor '{}' is missing: only the source has it", tensor.name)));
        Ok(Self { gguf, matches, skipped })
    }

    /// Computes the errors from the sums of each of the source's tensors.
    fn report(mut self, source: &Source, sums: &[Sums]) -> WeightErrors {
        let mut of_tensor = vec![None; self.gguf.tensors().len()];
        for (i, tensor) in self.matches.iter().enumerate().filter_map(|(i, tensor)| Some((i, (*tensor)?))) {
            of_tensor[tensor] = Some((i, &sums[i]));
        }
        let (mut tensors, mut all, mut roles) = (vec![], Together::default(), Vec::<(Role, Together)>::new());
        for (info, found) in self.gguf.tensors().iter().zip(of_tensor) {
            let Some((i, sums)) = found else { continue };
            let error = match tensor_error(info, &source.tensors[i], sums) {
                Ok(error) => error,
                Err(why) => {
                    self.skipped.push(why);
                    continue;
                }
            };
            // Vectors are never quantized, and their weights have another magnitude.
            if info.dims.len() > 1 {
                let (role, _) = Role::of(&info.name);
                let at = roles.iter().position(|(known, _)| *known == role).unwrap_or_else(|| {
                    roles.push((role, Together::default()));
                    roles.len() - 1
                });
                roles[at].1.add(error.weights, sums);
                all.add(error.weights, sums);
            }
            tensors.push(error);
        }
        let role = |(role, together): (Role, Together)| {
            let Together { tensors, weights, sums } = together;
            Some(RoleError { role: role.name().to_string(), tensors, weights, error: sums.error(weights)? })
        };
        let overall = if all.tensors > 0 { all.sums.error(all.weights) } else { None };
        WeightErrors { overall, roles: roles.into_iter().filter_map(role).collect(), tensors, skipped: self.skipped }
    }
}

/// The sums of several tensors, in which every weight counts the same.
#[derive(Default)]
struct Together {
    tensors: u64,
    weights: u64,
    sums: Sums,
}

impl Together {
    fn add(&mut self, weights: u64, sums: &Sums) {
        self.tensors += 1;
        self.weights += weights;
        self.sums = self.sums.and(*sums);
    }
}

/// Returns the number of the source's tensor that a tensor of a file is compared with, or why there is none.
fn find(info: &TensorInfo, source: &Source, by_name: &HashMap<&str, usize>) -> Result<usize, String> {
    let TensorInfo { name, dims, ty } = info;
    let &i = by_name.get(name.as_str()).ok_or_else(|| format!("tensor '{name}' is not in the source"))?;
    let wanted = &source.tensors[i].dims;
    if wanted != dims {
        let (found, wanted) = (units::shape(dims), units::shape(wanted));
        return Err(format!("tensor '{name}' is {found}, and the source's is {wanted}"));
    }
    // A bias may be permuted element by element, which is not possible with blocks.
    if quant::decoder(*ty).is_none() || !source.assembly(i).row_len.is_multiple_of(ty.block_len()) {
        return Err(format!("tensor '{name}' is {ty}, which nibble cannot read back"));
    }
    Ok(i)
}

/// Computes the errors of a tensor from its sums, or returns why that is not possible.
fn tensor_error(info: &TensorInfo, source: &TensorInfo, sums: &Sums) -> Result<TensorError, String> {
    let name = &info.name;
    let not_finite = |whose: &str, row: u64| match info.dims.len() {
        1 => format!("tensor '{name}' has NaN or infinity {whose}"),
        _ => format!("tensor '{name}' has NaN or infinity {whose}, the first in row {row} (counted from 0)"),
    };
    if let Some(row) = sums.source_not_finite {
        return Err(not_finite("in the source", row));
    }
    if let Some(row) = sums.not_finite {
        return Err(not_finite("in this file", row));
    }
    // It was checked when the file was opened.
    let weights = info.n_elements().unwrap_or(0);
    let error = sums.error(weights).ok_or_else(|| {
        format!("tensor '{name}' is all zeros in the source, and is not in this file: no relative error can say that")
    })?;
    let (role, layer) = Role::of(&source.name);
    // A vector is one row, although it may have been permuted element by element.
    let (worst_row, worst_row_relative) = if info.dims.len() > 1 { sums.worst_row() } else { (0, error.relative) };
    let (role, ty) = (role.name().to_string(), info.ty.name().to_string());
    Ok(TensorError { name: name.clone(), layer, role, ty, weights, error, worst_row, worst_row_relative })
}
