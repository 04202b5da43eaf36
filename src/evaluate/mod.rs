//! Which file of a model is better, by how much, and whether the difference is real.
//!
//! ```text
//!  texts ─► windows ─► reference ─► logits ─┐
//!                 └──► candidates ─► logits ─┴► metrics ─► statistics ─► results ─► report, JSON, CSV, table
//! ```
//!
//! [`weights`] compares the files themselves, with no model run, and [`tasks`] has models answer questions. A [`trace`]
//! stands in for a reference that is not at hand. [`importance`] is what conversion goes by to lose less.
//!
//! What all of it comes to is [`results`], which everything that prints or draws takes and nothing else.

#[cfg(feature = "llama")]
pub mod assemble;
#[cfg(feature = "llama")]
pub mod calibrate;
#[cfg(feature = "llama")]
pub mod diagnose;
pub mod file;
#[cfg(feature = "llama")]
pub mod measure;
pub mod metrics;
#[cfg(feature = "llama")]
pub mod read;
pub mod tasks;
pub mod text;
pub mod trace;
