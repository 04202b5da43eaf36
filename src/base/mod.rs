//! Helpers that every room may use.

pub mod atomic_file;
pub mod disk;
pub mod display;
pub mod ending;
pub mod folders;
pub mod json_float;
pub mod math;
pub mod mmap;
pub mod random;
pub mod remembered;
pub mod suggest;
pub mod text;
pub mod threads;
pub mod units;
