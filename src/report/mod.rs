//! Presents the results of a comparison.
//!
//! ```text
//!              ┌─► html       a page to share: works offline, on a phone and on paper
//!  Results ────┼─► json       everything, for programs
//!              ├─► csv        a row for each candidate and text, for spreadsheets
//!              └─► Ranking    the verdicts in sentences, which the terminal shows below its table
//! ```
//!
//! All are pure functions of [`Results`]: the same results always make the same bytes. All accept incomplete results,
//! because a comparison is written again whenever a candidate is done.

mod charts;
pub mod csv;
pub mod json;
mod page;
pub mod ranking;
pub mod results;
#[cfg(test)]
pub(crate) mod sample;
pub mod wording;

use ranking::Ranking;
use results::Results;

pub use csv::csv;
pub use json::json;
pub use page::html;

/// Returns the verdict in whole sentences: which file to take at which size, what it costs, and which files are not
/// worth their size.
pub fn summary(results: &Results) -> Vec<String> {
    Ranking::new(results).summary()
}

/// Returns a sentence for each pair of candidates that matters, such as
/// `Q4_K_M beats IQ4_XS: KLD -0.0041 [-0.0050, -0.0032]`: neighbours by size and on the front, or all pairs of a few
/// candidates. The last sentence says how many more pairs there are.
pub fn verdicts(results: &Results) -> Vec<String> {
    Ranking::new(results).verdicts()
}
