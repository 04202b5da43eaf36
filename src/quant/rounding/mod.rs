//! From weights to codes, given the scales of their block.
//!
//! A format says how to fit the scales of a block ([`Scaled::fit`]) and, apart from that, which levels its codes stand for
//! ([`Scaled::LEVELS`]). A rounding composes the two. [`nearest`] takes for each weight the level nearest to it:
//!
//! ```text
//! Scaled::fit(weights, ...) ─► block with scales, no codes ─► steps() ─► for each weight:  code = LEVELS.round(step, x)
//!                              set_codes(codes) ◄──────────────────────────────────────────────┘
//! ```
//!
//! ggml's own bytes are this composition for most formats, and a little different for others: [`nearest`] says where.
//! [`Block::quantize_rows`](super::Block::quantize_rows) makes ggml's bytes, by lanes and in one go.
//!
//! Where the second moments of the inputs are known, [`joint`] rounds for what the row makes of them: `compensated` carries
//! the error of each weight on to those that follow, and `refit` improves codes and scales together. The scales of a block are
//! numbers then, which [`Rescale`] reads and replaces.
//!
//! | file          | what                                                                                        |
//! |---------------|---------------------------------------------------------------------------------------------|
//! | `nearest`     | each weight by itself                                                                       |
//! | `joint`       | the entry to all below: settings, objectives, times                                         |
//! | `factor`      | second moments, and their triangular factor                                                 |
//! | `compensated` | rounding from left to right with the factor                                                 |
//! | `refit`       | improving what is rounded                                                                   |
//! | `two_sided`   | improving it for what becomes of the outputs, too                                            |
//! | `piece`       | a sub-block of 32 rows: search of its scales, and rounding, with the errors within it         |
//! | `group`       | 32 rows, transposed                                                                         |
//! | `rescale`     | scales and codes of a block as numbers                                                      |
//! | `tuned`       | gradients of scales, where the codes stay                                                   |
//!
//! [`Scaled::fit`]: super::Scaled::fit
//! [`Scaled::LEVELS`]: super::Scaled::LEVELS

mod compensated;
mod factor;
mod group;
pub mod joint;
pub mod nearest;
mod piece;

mod refit;
mod rescale;
pub(in crate::quant) mod table;
#[cfg(test)]
mod tests;
mod tuned;
mod two_sided;
mod whole;

pub use factor::{DAMPING, MomentsError, SecondMoments};
pub use joint::Settings;

pub(in crate::quant) use rescale::Grid;
pub use rescale::{Rescale, Scales};
use table::VALUES;
pub use tuned::Halves;
pub use two_sided::{OutputMoments, Sweeps, TwoSidedOutcome};
pub use whole::Whole;

/// The scale and the min of a sub-block as stored: a weight is scale · level − min.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The distance of levels that are one apart.
    pub scale: f32,
    /// What is taken away; 0 in formats without mins.
    pub min: f32,
}

impl Step {
    /// The step of a format without mins.
    #[inline(always)]
    pub(super) fn symmetric(scale: f32) -> Self {
        Self { scale, min: 0.0 }
    }
}

/// What the codes of a format stand for.
#[derive(Clone, Copy, Debug)]
pub enum Levels {
    /// Whole numbers.
    Whole(Whole),
    /// The 16 values of `quant-tables/iq4nl.txt`, rising.
    Table,
}

impl Levels {
    /// Whole numbers from `smallest` to `largest`.
    pub(super) const fn whole(smallest: i32, largest: i32) -> Self {
        Self::Whole(Whole { smallest, largest })
    }

    /// The code whose value is nearest to `x`.
    ///
    /// Where the scale is 0 all codes have one value; it is then the code of the level nearest to 0.
    #[inline]
    pub fn round(self, step: Step, x: f32) -> u8 {
        match self {
            Self::Whole(whole) => whole.round(step, x),
            Self::Table => {
                let quotient = if step.scale != 0.0 { (x + step.min) / step.scale } else { 0.0 };
                table::nearest_code(quotient)
            }
        }
    }

    /// The weight that `code` stands for: scale · level − min, the same bits as dequantization gives.
    #[inline]
    pub fn value(self, step: Step, code: u8) -> f32 {
        let level = match self {
            Self::Whole(whole) => whole.level(code),
            Self::Table => f32::from(VALUES[usize::from(code & 15)]),
        };
        step.scale * level - step.min
    }
}
