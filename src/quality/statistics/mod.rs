//! From numbers a token to estimates with intervals that hold what they promise.

mod blocks;
mod bootstrap;
mod choice;
mod distributions;
mod quantiles;
mod questions;
mod shape;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use blocks::Blocks;
pub use bootstrap::Bootstrap;
pub use choice::{front, verdict};
pub use questions::{mcnemar, mean_of_questions, share};
pub use shape::{Stretches, histogram};
