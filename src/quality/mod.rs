//! Which file of a model is better, by how much, and whether the difference is real.
//!
//! ```text
//!  texts ─► windows ─► reference ─► logits ─┐
//!                 └──► candidates ─► logits ─┴► metrics ─► statistics ─► results ─► report, JSON, CSV, table
//! ```
//!
//! What all of it comes to is [`results`], which everything that prints or draws takes and nothing else.

pub mod file;
#[cfg(feature = "llama")]
pub mod measure;
pub mod metrics;
#[cfg(feature = "llama")]
pub mod read;
pub mod results;
pub mod statistics;
pub mod text;
pub mod trace;
