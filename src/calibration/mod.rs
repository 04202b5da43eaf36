//! Statistics of a model's matrices over texts, and the files that hold them.
//!
//! Importance is one number per column. A future rounding method needs the covariances of a matrix's inputs, one number
//! for each pair of columns: 1.6 GB for the widest matrix of Yi-34B. So a file is memory-mapped, and statistics are
//! read one tensor at a time, on demand. Each kind of statistics is a module here.

pub mod importance;

pub use importance::Importance;
