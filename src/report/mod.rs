//! What a comparison looks like.
//!
//! ```text
//!              ┌─► html       a page to share: works offline, on a phone and on paper
//!  Results ────┼─► json       everything, for programs
//!              ├─► csv        a row for each candidate and text, for spreadsheets
//!              └─► Ranking    the verdicts in sentences, which the terminal shows below its table
//! ```
//!
//! All are pure functions of [`Results`], whose bytes are the same for the same results, and all take results that
//! are not complete: a comparison is written anew whenever a candidate is done.

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

/// The verdict in whole sentences: which file to take at which size and what it costs, and which are not worth their size.
pub fn summary(results: &Results) -> Vec<String> {
    Ranking::new(results).summary()
}

/// A sentence on each pair of candidates that matters, such as `Q4_K_M beats IQ4_XS: KLD -0.0041 [-0.0050, -0.0032]`:
/// neighbours by size and on the front, or all of a few. The last says how many more there are.
pub fn verdicts(results: &Results) -> Vec<String> {
    Ranking::new(results).verdicts()
}
