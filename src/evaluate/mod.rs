//! Which file of a model is better, by how much, and whether the difference is real.
//!
//! ```text
//!  texts ─► windows ─► reference ─► logits ─┐
//!                 └──► candidates ─► logits ─┴► metrics ─► statistics ─► results ─► report, JSON, CSV, table
//! ```
//!
//! [`Comparison`] does all of it: it is prepared and then executed. Its parts: [`texts`] are cut into windows, [`read`]
//! runs models over them, [`measure`] turns logits into numbers with [`metrics`], [`assemble`] turns these into
//! results. In [`tasks`], models answer questions. A [`trace`] replaces a reference that is not available. [`recipes`]
//! converts a model with every recipe and compares the files. [`calibrate`] measures importance, with which conversion
//! loses less. [`rounding`] for texts finds out what enters the matrices, one layer at a time. [`layerwise`] compares a file
//! with its source, one layer at a time. [`polish`] tunes what is rounded until the predictions are nearest to the original's.
//!
//! The outcome is a [`Results`](crate::report::results::Results), the only input of everything that prints or draws.
//! Comparing weights runs no model: see [`weights`](crate::weights).

pub mod allocation;
pub mod assemble;
pub mod calibrate;
pub mod comparison;
pub mod diagnose;
mod error;
pub mod layerwise;
pub mod measure;
mod models;
pub mod polish;
pub mod read;
pub mod recipes;
pub mod rounding;
pub mod tasks;
pub mod tracing;

pub use crate::trace::{self, metrics, texts};

pub use self::comparison::{Comparison, ComparisonOptions};
pub use self::error::Error;
pub use self::models::ModelSettings;
pub use self::recipes::{RecipeComparison, RecipeComparisonOptions};
pub use self::tracing::{TraceJob, TraceOptions, TraceSummary};
