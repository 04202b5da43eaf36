//! Statistics of a model's matrices over texts, and the files that hold them.
//!
//! Importance is one number per column. What a coming rounding needs of a matrix, the covariances of its inputs, is a number
//! for each pair of columns: 1.6 GB for the widest matrix of Yi-34B. So a file is mapped, and gives the statistics of one
//! tensor at a time, when they are asked for; each kind of statistics is a module here.

pub mod importance;

pub use importance::Importance;
