//! Importance: how large the inputs of each matrix are, channel by channel, over some texts.
//!
//! [`Importance`] has the weights for a conversion: the mean square of each column's input, Σx² / n. It is read from a
//! [`File`], which is memory-mapped and read one matrix at a time. nibble writes llama.cpp's GGUF format, reads both of
//! llama.cpp's formats, and can add several files together ([`Sums`]).
//!
//! ```text
//!  GGUF (llama-imatrix since July 2025)                 .dat (before that), little-endian
//!  general.type         "imatrix"                       i32  number of entries
//!  imatrix.datasets     names of the texts              each: i32 bytes, name, i32 windows, i32 values,
//!  imatrix.chunk_count  u32, windows                          f32 x values: Σx² / n · windows
//!  imatrix.chunk_size   u32, tokens a window            may follow: i32 windows, i32 bytes, name of the text
//!  NAME.in_sum2         f32 [columns, matrices]: Σx²
//!  NAME.counts          f32 [1, matrices]: n
//! ```
//!
//! nibble adds keys that llama.cpp ignores: `nibble.version`, and about each of `imatrix.datasets` the arrays
//! `nibble.calibration.blake3`, `.weights`, `.tokens` and `.windows`. The file records no time, host or folder: the same
//! texts and model give the same bytes on the same kind of machine.
//!
//! Source: llama.cpp's `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp`.

mod dat;
mod error;
mod file;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

pub use dat::DAT_WINDOW;
pub use error::{Error, Problem};
pub use file::{File, sums_of};
pub use sums::{Matrix, Sums, Text};

use crate::gguf::TensorType;
use crate::quant::{self, ImportanceUse};

const TYPE: &str = "general.type";
const IMATRIX: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const VERSION: &str = "nibble.version";
const BLAKE3: &str = "nibble.calibration.blake3";
const WEIGHTS: &str = "nibble.calibration.weights";
const TOKENS: &str = "nibble.calibration.tokens";
const WINDOWS: &str = "nibble.calibration.windows";
const SUMS_SUFFIX: &str = ".in_sum2";
const COUNTS_SUFFIX: &str = ".counts";

/// Importance of the columns of each matrix of a model.
///
/// The values of a matrix are read from the file when they are first asked for.
#[derive(Clone)]
pub struct Importance {
    /// Its name, which is the file's. A conversion records it in its result.
    pub name: String,
    /// The hash of the file. A conversion records it in its result.
    pub blake3: blake3::Hash,
    /// Where the values come from; `None` if they were given.
    file: Option<Arc<file::Contents>>,
    /// A value for each column, by the matrix's GGUF name.
    values: HashMap<String, OnceLock<Vec<f32>>>,
}

impl Importance {
    /// Creates importance from given values: one for each column, by the matrix's GGUF name.
    pub fn new(name: String, blake3: blake3::Hash, values: HashMap<String, Vec<f32>>) -> Self {
        let values = values.into_iter().map(|(matrix, values)| (matrix, OnceLock::from(values))).collect();
        Self { name, blake3, file: None, values }
    }

    /// Returns the importance of each column of `matrix`, which is named as in GGUF; `None` if it is not known.
    pub fn of(&self, matrix: &str) -> Option<&[f32]> {
        let (matrix, values) = self.values.get_key_value(matrix)?;
        Some(values.get_or_init(|| self.file.as_ref().and_then(|file| file.mean_squares(matrix)).unwrap_or_default()))
    }

    /// Returns the names of the matrices that it has values for, in no order.
    pub fn matrices(&self) -> impl ExactSizeIterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }
}

impl fmt::Debug for Importance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Importance({:?}, {} matrices)", self.name, self.values.len())
    }
}

/// A tensor would get a type that makes no sense without importance, but there is no importance for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor '{tensor}' cannot become {ty} without importance, which says which of its weights matter")]
pub struct Required {
    /// The tensor.
    pub tensor: String,
    /// The type.
    pub ty: TensorType,
}

impl Required {
    /// Checks that each tensor whose type requires importance has some. `tensors` are the names of those that will be
    /// quantized, with their types.
    ///
    /// # Errors
    /// Names the first tensor without importance.
    pub fn check<'a>(
        tensors: impl IntoIterator<Item = (&'a str, TensorType)>,
        importance: Option<&Importance>,
    ) -> Result<(), Self> {
        let use_of = |ty| quant::format(ty).map_or(ImportanceUse::Ignored, |format| format.importance);
        Self::check_with(use_of, tensors, importance)
    }

    fn check_with<'a>(
        use_of: impl Fn(TensorType) -> ImportanceUse,
        tensors: impl IntoIterator<Item = (&'a str, TensorType)>,
        importance: Option<&Importance>,
    ) -> Result<(), Self> {
        let lacks = |tensor: &str| importance.is_none_or(|importance| importance.of(tensor).is_none());
        let first = tensors.into_iter().find(|(tensor, ty)| use_of(*ty) == ImportanceUse::Required && lacks(tensor));
        first.map_or(Ok(()), |(tensor, ty)| Err(Self { tensor: tensor.to_string(), ty }))
    }
}
