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
pub use sums::{CalibrationText, Matrix, Sums};

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
    /// By the matrix's GGUF name: what is known of each.
    values: HashMap<String, OnceLock<Known>>,
}

/// What is known of the columns of a matrix.
#[derive(Clone, Debug)]
struct Known {
    /// A value for each column; none where every column is zero.
    values: Vec<f32>,
    /// Columns whose input was always zero.
    unseen: usize,
}

/// Importance below which products of it may vanish in 32 bits: 2^-40.
const VANISHING: f32 = 1.0 / (1u64 << 40) as f32;

impl Known {
    /// Gives columns without importance that of the least important one.
    ///
    /// A weight whose column has importance 0 costs nothing in a search for scales, however wrong it becomes, so that a
    /// block of them becomes zeros: a text that never uses some channels would remove them from the model. With a floor such
    /// blocks are rounded as if all of their weights were alike, and blocks whose columns all have importance keep the bytes
    /// that llama.cpp gives them.
    ///
    /// The floor is the least value above 0. Where that is next to nothing, it is 2^-40, or 2^-24 of the mean if all of the
    /// matrix is as small: a search computes with products of importance, which must not vanish in 32 bits.
    fn new(mut values: Vec<f32>) -> Self {
        // Who checks the values has to see what is wrong with them.
        if values.iter().any(|value| !(*value >= 0.0 && value.is_finite())) {
            return Self { values, unseen: 0 };
        }
        let unseen = values.iter().filter(|value| **value == 0.0).count();
        if unseen == values.len() {
            return Self { values: Vec::new(), unseen };
        }
        if unseen > 0 {
            let least = values.iter().copied().filter(|value| *value > 0.0).fold(f32::INFINITY, f32::min);
            let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / (values.len() - unseen) as f64;
            let floor = least.max((mean / f64::from(1 << 24)) as f32).min(least.max(VANISHING));
            values.iter_mut().filter(|value| **value == 0.0).for_each(|value| *value = floor);
        }
        Self { values, unseen }
    }
}

impl Importance {
    /// Creates importance from given values: one for each column, by the matrix's GGUF name.
    pub fn new(name: String, blake3: blake3::Hash, values: HashMap<String, Vec<f32>>) -> Self {
        let values = values.into_iter().map(|(matrix, values)| (matrix, OnceLock::from(Known::new(values)))).collect();
        Self { name, blake3, file: None, values }
    }

    /// Returns the importance of each column of `matrix`, which is named as in GGUF; `None` where nothing is known of it.
    ///
    /// No column has 0: those that no text touched count as the least important ones. Where no column was touched, nothing
    /// is known.
    pub fn of(&self, matrix: &str) -> Option<&[f32]> {
        self.known(matrix).map(|known| known.values.as_slice()).filter(|values| !values.is_empty())
    }

    /// Returns whether it has values for `matrix`, be they zeros.
    pub fn has(&self, matrix: &str) -> bool {
        self.values.contains_key(matrix)
    }

    /// Returns how many columns of `matrix` no text touched: those that count as the least important ones, or all. 0 for a
    /// matrix that it has nothing for.
    pub fn unseen(&self, matrix: &str) -> usize {
        self.known(matrix).map_or(0, |known| known.unseen)
    }

    fn known(&self, matrix: &str) -> Option<&Known> {
        let (matrix, known) = self.values.get_key_value(matrix)?;
        let read = || self.file.as_ref().and_then(|file| file.mean_squares(matrix)).unwrap_or_default();
        Some(known.get_or_init(|| Known::new(read())))
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
    /// If a tensor lacks importance. The error names the first.
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
