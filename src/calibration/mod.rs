//! Statistics of a model's matrices over texts, and the files that hold them.
//!
//! Importance is one number per column, and in files. Second moments are one number for each pair of columns, 0.8 GB for the
//! widest matrix of Yi-34B, so they are computed when they are needed and not kept. Each kind of statistics is a module here.

pub mod importance;
pub mod moments;

pub use importance::Importance;
pub use moments::Moments;
