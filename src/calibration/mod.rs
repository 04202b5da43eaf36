//! What calibration found out about a model's matrices, and the files that hold it.

pub mod importance;
