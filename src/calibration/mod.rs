//! Statistics of a model's matrices over texts, the files that hold them, and texts to compute them from.
//!
//! Importance is one number per column, and in files. Second moments are one number for each pair of columns, 0.8 GB for the
//! widest matrix of Yi-34B, so they are computed when they are needed and not kept. Each kind of statistics is a module here.

pub mod importance;
pub mod moments;
pub mod text;

pub use importance::Importance;
pub use moments::Moments;
pub use text::Text;
