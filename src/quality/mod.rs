//! Which file of a model is better, by how much, and whether the difference is real.
//!
//! ```text
//!  texts ─► windows ─► reference ─► logits ─┐
//!                 └──► candidates ─► logits ─┴► metrics ─► statistics ─► results ─► report, JSON, CSV, table
//! ```
//!
//! What all of it comes to is [`results`], which everything that prints or draws takes and nothing else.

pub mod results;
pub mod tasks;
