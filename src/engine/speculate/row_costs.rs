//! What an evaluation costs, by how many tokens of texts that are being written are in it.
//!
//! ```text
//! rows       1     2     3     4     8    16
//! cost       1    1.9   2.2   2.3   2.8   4.2     measured: kernels change at some of these, where more rows may even cost less
//! ```
//!
//! Evaluations have the lengths that they happen to have. What was not measured is assumed from what was: between two
//! known numbers of rows along a line, and beyond the last one with little for each row, so that it is tried; of a group of
//! four, all rows first, because kernels compute so many at a time.

use std::time::Duration;

/// The assumed cost of one more row, as a share of an evaluation of one, until it is measured. It is about right for a CPU.
pub(super) const ASSUMED: f64 = 0.25;
/// Rows that kernels compute together.
const GROUP: usize = 4;
/// A row costs at most so much: what takes longer was something else.
const MOST: f64 = 1.5;
/// The share of a new time in what is known.
const SHARE: f64 = 0.2;
/// The same if it is less than what is known: only other programs make it more.
const SHARE_IF_LESS: f64 = 0.5;
/// By so much, at most, the time of several rows differs from what is known, as far as it changes what is known of one.
const STEP: f64 = 0.3;

/// The time of evaluations by their number of rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowCosts {
    /// Seconds that one row takes.
    one: Option<f64>,
    /// For each number of rows, from 1 on, how many times as long it takes.
    costs: Vec<Option<f64>>,
}

impl RowCosts {
    /// Returns whether nothing was measured.
    pub fn knows_nothing(&self) -> bool {
        self.one.is_none()
    }

    /// Returns the seconds that an evaluation of one row takes; `None` if nothing was measured.
    pub fn one(&self) -> Option<f64> {
        self.one
    }

    /// Returns how many times as long as one row so many rows take.
    pub fn of(&self, rows: usize) -> f64 {
        let known = |rows: usize| if rows <= 1 { Some(1.0) } else { self.costs.get(rows - 1).copied().flatten() };
        let below = (1..=rows.max(1)).rev().find_map(|below| Some((below, known(below)?)));
        let Some((below, low)) = below.filter(|(below, _)| *below < rows) else {
            return known(rows).unwrap_or(1.0);
        };
        let beyond = low + ASSUMED * (rows.next_multiple_of(GROUP) - below) as f64;
        match (rows..=self.costs.len()).find_map(|above| Some((above, known(above)?))) {
            Some((above, high)) => low + (high - low) * (rows - below) as f64 / (above - below) as f64,
            None => beyond,
        }
    }

    /// Records how long an evaluation of so many rows took.
    pub fn learn(&mut self, rows: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if rows == 0 || seconds <= 0.0 {
            return;
        }
        let Some(one) = &mut self.one else {
            self.one = Some(seconds / self.of(rows));
            return;
        };
        let moved = |known: f64, new: f64, share: f64| {
            let share = if new < known { SHARE_IF_LESS } else { share };
            known + (new - known) * share
        };
        if rows == 1 {
            *one = moved(*one, seconds, SHARE);
            return;
        }
        let cost = (seconds / *one).clamp(1.0, 1.0 + MOST * (rows - 1) as f64);
        if self.costs.len() < rows {
            self.costs.resize(rows, None);
        }
        let known = &mut self.costs[rows - 1];
        let now = known.map_or(cost, |known| moved(known, cost.min((1.0 + STEP) * known), SHARE / 2.0));
        *known = Some(now);
        // Texts become longer, and all evaluations with them.
        let implied = (seconds / now).clamp((1.0 - STEP) * *one, (1.0 + STEP) * *one);
        *one += (implied - *one) * SHARE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn what_was_measured_is_known_and_what_lies_between_is_assumed() {
        let mut costs = RowCosts::default();
        assert!(costs.knows_nothing() && costs.of(1) == 1.0 && costs.of(4) == 1.75 && costs.of(5) == 2.75);
        costs.learn(1, ms(10.0));
        assert_eq!((costs.one(), costs.of(1), costs.of(3)), (Some(0.01), 1.0, 1.75));
        // Three rows take longer than four.
        costs.learn(3, ms(30.0));
        costs.learn(4, ms(24.0));
        costs.learn(8, ms(28.0));
        let near = |rows, wanted: f64| (costs.of(rows) - wanted).abs() < 0.05 * wanted;
        assert!(near(2, 2.0) && near(3, 3.0) && near(4, 2.4) && near(6, 2.6) && near(8, 2.8) && near(10, 3.8));
    }

    #[test]
    fn times_are_those_of_late() {
        let mut costs = RowCosts::default();
        // The first evaluation had four texts.
        costs.learn(4, ms(17.5));
        assert!((costs.one().unwrap() - 0.01).abs() < 1e-9);
        for _ in 0..60 {
            costs.learn(1, ms(10.0));
            costs.learn(5, ms(26.0));
        }
        assert!((costs.of(5) - 2.6).abs() < 0.01, "{costs:?}");
        // A short load on the machine says little.
        costs.learn(5, ms(200.0));
        assert!(costs.of(5) < 2.8 && costs.one().unwrap() < 0.011, "{costs:?}");
        for _ in 0..5 {
            costs.learn(5, ms(26.0));
        }
        assert!((costs.of(5) - 2.6).abs() < 0.2, "{costs:?}");
        // Longer texts make all of them slower.
        for step in 0..300 {
            costs.learn(5, ms(26.0 * (1.0 + f64::from(step) / 300.0)));
        }
        assert!(costs.of(1) == 1.0 && costs.of(5) < 3.2 && costs.one().unwrap() > 0.016, "{costs:?}");
    }
}
