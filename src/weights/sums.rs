//! Sums over the weights of a row, of a tensor, of a file.
//!
//! Every weight is converted to double precision first. The products of a row are added into [`LANES`] sums, whatever
//! vectors the CPU has, and these are added in order: the same numbers on every machine, with any number of threads.

use crate::lanes::{Body, Lanes, Level};
use crate::report::results::WeightError;

/// Number of sums that the products of a row are added into.
const LANES: usize = 16;

/// The sums of a row of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SourceRow {
    /// Sum of the squared weights.
    squares: f64,
    /// The same, each times its column's importance.
    weighted: f64,
}

/// The sums of a row of a candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CandidateRow {
    /// Sum of the squared weights.
    squares: f64,
    /// Sum of the squared differences from the source's.
    differences: f64,
    /// The same, each times its column's importance.
    weighted: f64,
}

impl SourceRow {
    /// Computes the sums of these weights; `importance`, if given, has one value for each.
    pub fn of(weights: &[f32], importance: Option<&[f32]>) -> Self {
        match importance {
            None => {
                let [squares] = sum([weights; 3], squares);
                Self { squares, weighted: 0.0 }
            }
            Some(importance) => {
                let [squares, weighted] = sum([weights, weights, importance], weighted_squares);
                Self { squares, weighted }
            }
        }
    }
}

impl CandidateRow {
    /// Computes the sums of these weights and the `source`'s; `importance`, if given, has one value for each.
    pub fn of(source: &[f32], weights: &[f32], importance: Option<&[f32]>) -> Self {
        match importance {
            None => {
                let [squares, differences] = sum([source, weights, weights], differences);
                Self { squares, differences, weighted: 0.0 }
            }
            Some(importance) => {
                let [squares, differences, weighted] = sum([source, weights, importance], weighted_differences);
                Self { squares, differences, weighted }
            }
        }
    }
}

#[inline(always)]
fn squares(a: f64, _: f64, _: f64) -> [f64; 1] {
    [a * a]
}

#[inline(always)]
fn weighted_squares(a: f64, _: f64, w: f64) -> [f64; 2] {
    [a * a, w * (a * a)]
}

#[inline(always)]
fn differences(a: f64, b: f64, _: f64) -> [f64; 2] {
    let d = a - b;
    [b * b, d * d]
}

#[inline(always)]
fn weighted_differences(a: f64, b: f64, w: f64) -> [f64; 3] {
    let d = a - b;
    [b * b, d * d, w * (d * d)]
}

/// Adds up what `add` returns for each column of three rows of one length.
fn sum<const N: usize>(rows: [&[f32]; 3], add: impl Fn(f64, f64, f64) -> [f64; N]) -> [f64; N] {
    let mut sums = [0.0; N];
    Level::best().run(Sum { rows, add, sums: &mut sums });
    sums
}

/// The body of [`sum`] for [`Level::run`]. It uses no lanes explicitly: the compiler vectorizes it.
struct Sum<'a, const N: usize, F> {
    rows: [&'a [f32]; 3],
    add: F,
    sums: &'a mut [f64; N],
}

impl<const N: usize, F: Fn(f64, f64, f64) -> [f64; N]> Body for Sum<'_, N, F> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let mut sums = [[0.0; LANES]; N];
        let [(a, a_rest), (b, b_rest), (w, w_rest)] = self.rows.map(<[f32]>::as_chunks);
        for ((a, b), w) in a.iter().zip(b).zip(w) {
            add_lanes(&mut sums, a, b, w, &self.add);
        }
        // Zeros add nothing to any sum.
        let [a, b, w] = [a_rest, b_rest, w_rest].map(|rest| {
            let mut lanes = [0.0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            lanes
        });
        add_lanes(&mut sums, &a, &b, &w, &self.add);
        *self.sums = sums.map(|lanes| lanes.iter().sum());
    }
}

/// Adds one weight of each row to the sums of its lane.
#[inline(always)]
fn add_lanes<const N: usize>(
    sums: &mut [[f64; LANES]; N],
    a: &[f32; LANES],
    b: &[f32; LANES],
    w: &[f32; LANES],
    add: impl Fn(f64, f64, f64) -> [f64; N],
) {
    for l in 0..LANES {
        let terms = add(a[l].into(), b[l].into(), w[l].into());
        for n in 0..N {
            sums[n][l] += terms[n];
        }
    }
}

/// Sums over rows of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    source: SourceRow,
    candidate: CandidateRow,
    worst: Option<Worst>,
    /// The first row in which a weight of the source is not finite.
    pub source_not_finite: Option<u64>,
    /// The same for the candidate.
    pub not_finite: Option<u64>,
}

/// The row with the largest relative error.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Worst {
    row: u64,
    /// The square of its relative error.
    relative_squared: f64,
}

impl Sums {
    /// Adds row `row`, which comes after those that were added before.
    pub fn add_row(&mut self, row: u64, source: SourceRow, candidate: CandidateRow) {
        // Squares of floats are far below the largest double: a sum is not finite only if a weight was not.
        if !source.squares.is_finite() {
            self.source_not_finite = self.source_not_finite.or(Some(row));
        } else if !candidate.squares.is_finite() {
            self.not_finite = self.not_finite.or(Some(row));
        } else {
            // A row of zeros has no relative error.
            let worst =
                (source.squares > 0.0).then(|| Worst { row, relative_squared: candidate.differences / source.squares });
            *self = self.and(Self { source, candidate, worst, ..Self::default() });
        }
    }

    /// Adds the sums of rows that come after these.
    pub fn and(self, below: Self) -> Self {
        let worst = match (self.worst, below.worst) {
            (Some(a), Some(b)) => Some(if b.relative_squared > a.relative_squared { b } else { a }),
            (a, b) => a.or(b),
        };
        Self {
            source: SourceRow {
                squares: self.source.squares + below.source.squares,
                weighted: self.source.weighted + below.source.weighted,
            },
            candidate: CandidateRow {
                squares: self.candidate.squares + below.candidate.squares,
                differences: self.candidate.differences + below.candidate.differences,
                weighted: self.candidate.weighted + below.candidate.weighted,
            },
            worst,
            source_not_finite: self.source_not_finite.or(below.source_not_finite),
            not_finite: self.not_finite.or(below.not_finite),
        }
    }

    /// Returns the errors over `n` weights; `None` if the source has only zeros and the candidate has not, so that there is
    /// no relative error.
    pub fn error(&self, n: u64) -> Option<WeightError> {
        let (source, candidate) = (self.source, self.candidate);
        let differences = candidate.differences;
        if differences == 0.0 {
            let weighted = (source.weighted > 0.0).then_some(0.0);
            return Some(WeightError { rmse: 0.0, relative: 0.0, cosine: 1.0, weighted });
        }
        if source.squares == 0.0 {
            return None;
        }
        // The law of cosines. The difference is known most precisely, and it is small: no digits are lost.
        let lengths = (source.squares * candidate.squares).sqrt();
        let cosine = match lengths > 0.0 {
            true => ((source.squares + candidate.squares - differences) / (2.0 * lengths)).clamp(-1.0, 1.0),
            false => 0.0,
        };
        Some(WeightError {
            rmse: (differences / n.max(1) as f64).sqrt(),
            relative: (differences / source.squares).sqrt(),
            cosine,
            weighted: (source.weighted > 0.0).then(|| (candidate.weighted / source.weighted).sqrt()),
        })
    }

    /// Returns the row with the largest relative error, and that error; the first row if all are zeros in the source.
    pub fn worst_row(&self) -> (u64, f64) {
        self.worst.map_or((0, 0.0), |worst| (worst.row, worst.relative_squared.sqrt()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    fn weights(random: &mut Random, n: usize) -> Vec<f32> {
        (0..n).map(|_| (random.unit() - 0.5) as f32).collect()
    }

    #[test]
    fn sums_are_those_of_a_plain_loop_whatever_the_length() {
        let mut random = Random::new(1);
        for n in [1, 7, 15, 16, 17, 32, 100, 7168, 7169] {
            let [a, b, w] = [(); 3].map(|()| weights(&mut random, n));
            let sum = |term: fn(f64, f64, f64) -> f64| -> f64 {
                (0..n).map(|i| term(a[i].into(), b[i].into(), w[i].into())).sum()
            };
            let near =
                |found: f64, wanted: f64| assert!((found - wanted).abs() <= 1e-12 * n as f64, "{found} {wanted}");
            let source = SourceRow::of(&a, Some(&w));
            near(source.squares, sum(|a, _, _| a * a));
            near(source.weighted, sum(|a, _, w| w * a * a));
            let row = CandidateRow::of(&a, &b, Some(&w));
            near(row.squares, sum(|_, b, _| b * b));
            near(row.differences, sum(|a, b, _| (a - b) * (a - b)));
            near(row.weighted, sum(|a, b, w| w * (a - b) * (a - b)));
            assert_eq!(SourceRow::of(&a, None), SourceRow { weighted: 0.0, ..source });
            assert_eq!(CandidateRow::of(&a, &b, None), CandidateRow { weighted: 0.0, ..row });
        }
    }

    #[test]
    fn the_worst_row_is_the_first_of_equals_and_zeros_have_none() {
        let row = |weights: [f32; 2], found: [f32; 2]| {
            (SourceRow::of(&weights, None), CandidateRow::of(&weights, &found, None))
        };
        let rows = [row([0.0, 0.0], [1.0, 0.0]), row([2.0, 0.0], [1.0, 0.0]), row([0.0, 4.0], [0.0, 2.0])];
        let mut sums = Sums::default();
        rows.iter().zip(0..).for_each(|((source, candidate), row)| sums.add_row(row, *source, *candidate));
        assert_eq!(sums.worst_row(), (1, 0.5));
        assert_eq!(sums.error(6).unwrap().rmse, 1.0);
        let mut zeros = Sums::default();
        zeros.add_row(0, rows[0].0, rows[0].1);
        assert_eq!(zeros.error(2), None);
        assert_eq!(
            Sums::default().error(2).unwrap(),
            WeightError { rmse: 0.0, relative: 0.0, cosine: 1.0, weighted: None }
        );
    }

    #[test]
    fn weights_that_are_no_numbers_are_found_and_left_out() {
        let source = [1.0, 2.0];
        let mut sums = Sums::default();
        for (row, found) in [[1.0, 2.5], [f32::NAN, 2.0], [f32::NEG_INFINITY, 2.0]].iter().enumerate() {
            sums.add_row(row as u64, SourceRow::of(&source, None), CandidateRow::of(&source, found, None));
        }
        assert_eq!((sums.not_finite, sums.source_not_finite), (Some(1), None));
        assert_eq!(sums.error(2).unwrap().rmse, 0.125f64.sqrt());
        sums.add_row(3, SourceRow::of(&[f32::NAN, 1.0], None), CandidateRow::of(&[f32::NAN, 1.0], &source, None));
        assert_eq!(sums.source_not_finite, Some(3));
        // The largest floats are numbers.
        let mut large = Sums::default();
        large.add_row(0, SourceRow::of(&[f32::MAX; 2], None), CandidateRow::of(&[f32::MAX; 2], &[f32::MIN; 2], None));
        let error = large.error(2).unwrap();
        assert_eq!((error.relative, error.cosine), (2.0, -1.0));
    }
}
