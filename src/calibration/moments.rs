//! The second moments of a matrix's inputs: Σ x xᵀ over the tokens of some texts, from which rounding computes what an error
//! costs.
//!
//! ```text
//!            columns of x
//!        ┌────┐                 a group of 32 columns, and all columns up to it:
//!        │ ▒▒ │                 the lower triangle, which is all there is to know
//!        │ ▒▒▒▒ │
//!        │ ▒▒▒▒▒▒ │
//!        └────────┘
//! ```
//!
//! Sums have single precision: first over 128 tokens each, then over those sums. They do not depend on the CPU or on the number
//! of threads, but on how the tokens are passed.

use rayon::prelude::*;

use crate::lanes::Level;
use crate::linear::{Column, ROWS as LANES, add_products, transpose};

/// Columns that a thread transposes at a time.
const TURNED: usize = 64;

/// Groups of columns that a thread has at a time, because they share what they read.
const AT_ONCE: usize = 8;

/// Tokens over which is summed at a time, as in [`add_products`].
const TOKENS: usize = 128;

/// Columns whose products with all groups of a thread are computed while they are in a cache.
const COLUMNS: usize = 96;

/// Second moments that are being summed up.
///
/// Memory: 2 bytes for each pair of columns.
#[derive(Clone, Debug)]
pub struct Moments {
    columns: usize,
    // For each group of columns, for each column up to its last: a sum for each column of the group.
    groups: Vec<Vec<Column>>,
    /// Σ w over the tokens' weights.
    weight: f64,
    /// Σ w².
    squares: f64,
}

impl Moments {
    /// Returns sums over no tokens, of inputs with this many columns.
    pub fn new(columns: usize) -> Self {
        let group = |first: usize| vec![[0.0; LANES]; columns.min(first + LANES)];
        Self { columns, groups: (0..columns).step_by(LANES).map(group).collect(), weight: 0.0, squares: 0.0 }
    }

    /// Returns the number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns how many bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(|group| size_of_val(group.as_slice())).sum()
    }

    /// Returns how many tokens of equal weight tell as much as those that were added: (Σ w)² / Σ w².
    pub fn tokens(&self) -> f64 {
        if self.squares > 0.0 { self.weight * self.weight / self.squares } else { 0.0 }
    }

    /// Returns the sum of the tokens' weights: their number, if none was given.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Returns the mean square of each column.
    pub fn diagonal(&self) -> Vec<f32> {
        let weight = if self.weight > 0.0 { self.weight } else { 1.0 };
        let mean = |column: usize| (f64::from(self.groups[column / LANES][column][column % LANES]) / weight) as f32;
        (0..self.columns).map(mean).collect()
    }

    /// Adds the inputs of some tokens, one after the other: as many numbers for each as there are columns. Works on the
    /// threads of the current rayon pool.
    ///
    /// # Panics
    /// If the inputs are not whole tokens.
    pub fn add(&mut self, inputs: &[f32]) {
        if self.columns > 0 && !inputs.is_empty() {
            let n_tokens = self.add_vectors(inputs) as f64;
            self.weight += n_tokens;
            self.squares += n_tokens;
        }
    }

    /// Adds the inputs of some tokens, each with a weight of at least 0: Σ w x xᵀ.
    ///
    /// # Panics
    /// If there is not a weight for each token.
    pub fn add_weighted(&mut self, inputs: &[f32], weights: &[f64]) {
        if self.columns == 0 || inputs.is_empty() {
            return;
        }
        assert_eq!(inputs.len(), weights.len() * self.columns, "numbers of {} tokens", weights.len());
        let mut scaled = inputs.to_vec();
        scaled.par_chunks_mut(self.columns).zip(weights).for_each(|(x, weight)| {
            let root = weight.sqrt() as f32;
            x.iter_mut().for_each(|x| *x *= root);
        });
        self.add_vectors(&scaled);
        for weight in weights {
            self.weight += weight;
            self.squares += weight * weight;
        }
    }

    /// Adds x xᵀ of some vectors. Returns their number.
    fn add_vectors(&mut self, inputs: &[f32]) -> usize {
        let columns = self.columns;
        assert!(inputs.len().is_multiple_of(columns), "{} numbers for {columns} columns", inputs.len());
        let n_tokens = inputs.len() / columns;
        let level = Level::best();
        // Column by column, all tokens of one together.
        let mut turned = vec![0.0; inputs.len()];
        turned.par_chunks_mut(TURNED * n_tokens).enumerate().for_each(|(part, turned)| {
            let from = &inputs[part * TURNED..];
            transpose(level, (from, columns), (n_tokens, turned.len() / n_tokens), (turned, n_tokens));
        });
        // The last groups have most columns, and go first.
        let several: Vec<_> = self.groups.chunks_mut(AT_ONCE).enumerate().rev().collect();
        several.into_par_iter().with_max_len(1).for_each(|(index, groups)| {
            let own = index * AT_ONCE * LANES..groups.last().map_or(0, Vec::len);
            let mut lefts = vec![[[0.0; LANES]; TOKENS]; groups.len()];
            for from in (0..n_tokens).step_by(TOKENS) {
                let n = TOKENS.min(n_tokens - from);
                for (token, input) in inputs[from * columns..].chunks_exact(columns).take(n).enumerate() {
                    for (left, x) in lefts.iter_mut().zip(input[own.clone()].chunks(LANES)) {
                        left[token][..x.len()].copy_from_slice(x);
                    }
                }
                for start in (0..own.end).step_by(COLUMNS) {
                    for (sums, left) in groups.iter_mut().zip(&lefts) {
                        let end = sums.len().min(start + COLUMNS);
                        let Some(sums) = sums.get_mut(start..end) else { continue };
                        add_products(level, &left[..n], &turned[start * n_tokens + from..], n_tokens, sums);
                    }
                }
            }
        });
        n_tokens
    }

    /// Returns the means over all tokens, as a matrix of `columns` rows, row by row. Only its lower triangle means anything.
    pub fn means(&self) -> Vec<f32> {
        self.shrunk_by(0.0)
    }

    /// Returns [`Self::means`] as an estimate for other texts: K columns have more correlations over T tokens than they would
    /// have over others, so all means of two different columns are taken down by K / (K + T), where T is [`Self::tokens`].
    ///
    /// Without that, rounding fits the tokens: with 1024 of them, KLD on other texts was 1.3 times as large (`yi-nano`, 256 to
    /// 704 columns), and still 1.02 times with 16,384.
    pub fn estimate(&self) -> Vec<f32> {
        let (columns, tokens) = (self.columns as f64, self.tokens());
        self.shrunk_by((columns / (columns + tokens).max(1.0)) as f32)
    }

    fn shrunk_by(&self, part: f32) -> Vec<f32> {
        let columns = self.columns;
        let weight = if self.weight > 0.0 { self.weight } else { 1.0 };
        let mut means = vec![0.0; columns * columns];
        means.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, means)| {
            let sums = &self.groups[row / LANES];
            for (mean, sums) in means[..=row].iter_mut().zip(sums) {
                *mean = (f64::from(sums[row % LANES]) / weight) as f32 * (1.0 - part);
            }
            means[row] = (f64::from(sums[row][row % LANES]) / weight) as f32;
        });
        means
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::base::random::Random::new(seed);
        (0..n).map(|_| random.unit() as f32 * 4.0 - 2.0).collect()
    }

    #[test]
    fn moments_are_the_means_of_products() {
        for columns in [1, 31, 32, 33, 100] {
            let parts = [numbers(7 * columns, 1), numbers(columns, 2), numbers(300 * columns, 3)];
            let mut moments = Moments::new(columns);
            parts.iter().for_each(|part| moments.add(part));
            moments.add(&[]);
            assert_eq!((moments.columns(), moments.tokens()), (columns, 308.0));
            let means = moments.means();
            assert_eq!(moments.weight(), 308.0);
            assert!(moments.diagonal().iter().enumerate().all(|(at, mean)| *mean == means[at * columns + at]));
            let all = parts.concat();
            for row in 0..columns {
                for column in 0..=row {
                    let products = all.chunks(columns).map(|x| f64::from(x[row]) * f64::from(x[column]));
                    let wanted = products.sum::<f64>() / 308.0;
                    let found = f64::from(means[row * columns + column]);
                    assert!((found - wanted).abs() < 1e-5, "{columns} {row} {column}: {found} {wanted}");
                }
            }
        }
        assert!(Moments::new(3).means().iter().all(|mean| *mean == 0.0));
    }

    #[test]
    fn sums_have_the_order_that_is_written_down() {
        // On both sides of what threads and caches have at a time.
        for (columns, tokens) in [(AT_ONCE * LANES + 45, TOKENS + 7), (COLUMNS + 1, 2 * TOKENS), (5, 3)] {
            let inputs = numbers(columns * tokens, 4);
            let mut moments = Moments::new(columns);
            moments.add(&inputs);
            moments.add(&inputs[..columns]);
            let term = |row: usize, column: usize| move |x: &[f32], sum: f32| x[column].mul_add(x[row], sum);
            for row in 0..columns {
                for column in 0..=row {
                    let term = term(row, column);
                    let of = |inputs: &[f32]| inputs.chunks(columns).fold(0.0, |sum, x| term(x, sum));
                    let of_tiles = inputs.chunks(TOKENS * columns).fold(0.0, |sum, inputs| sum + of(inputs));
                    let wanted = of_tiles + of(&inputs[..columns]);
                    assert_eq!(moments.groups[row / LANES][column][row % LANES], wanted, "{columns}: {row} {column}");
                }
            }
        }
    }

    #[test]
    fn an_estimate_has_smaller_correlations_the_fewer_tokens_there_were() {
        let mut moments = Moments::new(3);
        moments.add(&[1.0, 2.0, 3.0]);
        assert_eq!(moments.means(), [1.0, 0.0, 0.0, 2.0, 4.0, 0.0, 3.0, 6.0, 9.0]);
        // 3 columns, 1 token: three quarters of them are taken away.
        assert_eq!(moments.estimate(), [1.0, 0.0, 0.0, 0.5, 4.0, 0.0, 0.75, 1.5, 9.0]);
        moments.add(&[1.0, 2.0, 3.0].repeat(8));
        assert_eq!(moments.estimate(), [1.0, 0.0, 0.0, 1.5, 4.0, 0.0, 2.25, 4.5, 9.0]);
        assert_eq!(Moments::new(2).estimate(), [0.0; 4]);
    }

    #[test]
    fn weights_count_tokens_several_times_or_not_at_all() {
        let inputs = numbers(40 * 33, 4);
        let (mut weighted, mut repeated) = (Moments::new(33), Moments::new(33));
        weighted.add_weighted(&inputs, &(0..40).map(|i| f64::from(i % 3)).collect::<Vec<_>>());
        for (i, input) in inputs.chunks(33).enumerate() {
            repeated.add(&input.repeat(i % 3));
        }
        for (a, b) in weighted.means().iter().zip(repeated.means()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        // 13 tokens of weight 1 and 13 of weight 2.
        assert_eq!((weighted.tokens(), repeated.tokens()), (39.0 * 39.0 / 65.0, 39.0));
        weighted.add_weighted(&[], &[]);
        assert_eq!(Moments::new(2).tokens(), 0.0);
    }

    #[test]
    fn threads_do_not_matter() {
        let inputs = numbers(70 * 96, 5);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut moments = Moments::new(96);
            pool.install(|| moments.add(&inputs));
            moments.means()
        };
        assert!(with(1) == with(2) && with(1) == with(3));
    }

    #[test]
    #[should_panic(expected = "5 numbers for 2 columns")]
    fn half_a_token_is_refused() {
        Moments::new(2).add(&[0.0; 5]);
    }
}
