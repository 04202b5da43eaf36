//! What can be wrong with importance files.

use std::io;
use std::path::PathBuf;

use crate::gguf::{self, TensorType};

/// Why an importance file cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file begins like GGUF but is not a valid GGUF file.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// Something is wrong with the file.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
    /// Two files, or a file and a model, do not fit together.
    #[error("{}: {problem}; was it made with another model?", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: Problem,
    },
    /// Something cannot be written in an importance file.
    #[error("the importance cannot be written: {0}")]
    Layout(#[from] gguf::LayoutError),
    /// A sum does not fit in a 32-bit float.
    #[error("the sum of squares of '{matrix}' at column {column} is {value}, more than a file of importance can hold")]
    TooLarge {
        /// The matrix.
        matrix: String,
        /// Its column, counted from 0.
        column: usize,
        /// The sum.
        value: f64,
    },
}

/// What is wrong with an importance file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum Problem {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("is not a file of importance")]
    NotImportance,
    #[error("is a {found}, wanted a file of importance")]
    OtherGguf { found: String },
    #[error("is split over several files, wanted a single one")]
    Split,
    #[error("its tensor '{tensor}' is {found}, wanted {wanted}")]
    Type { tensor: String, found: TensorType, wanted: TensorType },
    #[error("it has no tensor '{tensor}', which belongs to '{other}': the file is damaged")]
    Missing { tensor: String, other: String },
    #[error("it has {sums} sums and {counts} counts for '{matrix}', which do not fit together: the file is damaged")]
    Shape { matrix: String, sums: usize, counts: usize },
    #[error("'{matrix}' has {value} at {place}, wanted a number of at least 0: the file is damaged")]
    Value { matrix: String, place: String, value: f64 },
    #[error("it ends at byte {at}, within {what}: it is cut short, or is not a file of importance")]
    Truncated { at: usize, what: String },
    #[error("{what} at byte {at} is {found}, wanted {wanted}: the file is damaged, or is not a file of importance")]
    Number { at: usize, what: String, found: i64, wanted: String },
    #[error("the name of entry {entry} is not UTF-8: the file is damaged, or is not a file of importance")]
    Name { entry: usize },
    #[error("'{matrix}' is in it twice")]
    Twice { matrix: String },
    #[error("{left} bytes follow its end at byte {at}: the file is damaged, or is not a file of importance")]
    TooLong { at: usize, left: usize },
    #[error(
        "'{matrix}' has importance for {n} experts; nibble weighs by the importance of plain matrices only: convert this \
         model without importance"
    )]
    Experts { matrix: String, n: usize },
    #[error("'{matrix}' has {found} columns here, and {wanted} in {of}")]
    Columns { matrix: String, found: usize, wanted: usize, of: String },
    #[error("it has importance for '{matrix}', which the model does not have")]
    UnknownMatrix { matrix: String },
}

/// Returns a name from a file as a message shows it: escaped, and cut if it is long.
pub(super) fn shown(name: &str) -> String {
    crate::base::display::shorten(name, 100)
}
