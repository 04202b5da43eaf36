//! The second moments of a matrix's inputs, and their triangular factor.
//!
//! ```text
//!  e H eᵀ = Σ p[j] (e[j] + Σ_{k<j} e[k] · n[j][k])²         H + damping = (√p n)ᵀ (√p n), n lower triangular, n[j][j] = 1
//! ```
//!
//! The error of a row is a sum of squares, one for each column, of which each depends on the errors of the columns up to
//! it. So each weight in turn is rounded to what is nearest to `w[j] + Σ_{k<j} e[k] · n[j][k]`, where `e[k] = w[k] − ŵ[k]` are
//! the errors made before. These are the numbers of GPTQ, which takes them from the inverse of H: if U is the upper factor
//! of the inverse, UᵀU = H⁻¹, then n = diag(U) U⁻ᵀ, and the square of U's diagonal is 1 / p. Without the inverse, it is one
//! factorization: half of the time, and no loss of precision where H is close to singular. Chee et al., *QuIP: 2-Bit
//! Quantization of Large Language Models With Guarantees*, show that the two are the same.
//!
//! The factor is computed here and not by a library of linear algebra, because those sum in an order that depends on the CPU
//! and on the number of threads. The bytes of a file must not.
//!
//! **Precision.** Sums over columns have single precision, as in [`linear`](crate::linear); a panel of 256 columns is
//! factored in double precision. What is factored exactly is H + damping + Δ with `|Δ[i][j]|` of about `1e-6 ·
//! √(H[i][i] H[j][j])`: some ten times what H loses in single precision, and next to nothing beside the damping.

use crate::lanes::Level;
use crate::linear::{Column, ROWS, View, add_products, transpose};
use rayon::prelude::*;

/// Columns in a panel of the factor.
pub(super) const PANEL: usize = 256;

/// The damping that [`SecondMoments::new`] begins with is this part of the mean of the diagonal. GPTQ uses as much.
pub const DAMPING: f64 = 0.01;

/// By how much damping grows where it was too little.
const GROWTH: f64 = 4.0;

/// Second moments that are none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MomentsError {
    /// The number of values is not the square of the number of columns.
    #[error("second moments of {columns} columns are {columns} times {columns} values, not {values}")]
    Length {
        /// Columns of the weights.
        columns: usize,
        /// Values that were given.
        values: usize,
    },
    /// A NaN or an infinity.
    #[error("the second moment of columns {row} and {column} is {value}, which is not finite")]
    NotFinite {
        /// Index of one column.
        row: usize,
        /// Index of the other column.
        column: usize,
        /// What is there.
        value: f32,
    },
    /// A mean of squares below 0.
    #[error("the mean square of column {column} is {value}, which is negative")]
    Negative {
        /// Index of the column.
        column: usize,
        /// What is there.
        value: f32,
    },
}

/// The second moments H = E\[x xᵀ\] of the inputs of a matrix, prepared for rounding. Matrices with the same inputs share them.
///
/// Memory: 6 bytes for each element of H.
pub struct SecondMoments {
    columns: usize,
    /// H, row by row.
    values: Vec<f32>,
    importance: Vec<f32>,
    factor: Factor,
    damping: f64,
    seconds: f64,
}

impl SecondMoments {
    /// Prepares second moments: `columns` rows of `columns` values. Reads the lower triangle, and takes the upper one to be the
    /// same.
    ///
    /// A column that never had an input gets the mean square of the least important one, as in importance files. Otherwise any
    /// error of its weights would cost nothing, and a text that never uses some channels would remove them from the model. With
    /// fewer samples than columns the same holds for combinations of columns; then add something to the diagonal before.
    ///
    /// The diagonal is damped before it is factored, by [`DAMPING`] times its mean at first; where that is not enough for
    /// a positive definite matrix, by four times as much until it is.
    ///
    /// # Errors
    /// If the number of values is another, one of them is not finite, or one of the diagonal is negative.
    pub fn new(values: Vec<f32>, columns: usize) -> Result<Self, MomentsError> {
        Self::damped(values, columns, DAMPING)
    }

    /// [`Self::new`], with another damping to begin with, above 0.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn damped(mut values: Vec<f32>, columns: usize, mut damping: f64) -> Result<Self, MomentsError> {
        let start = std::time::Instant::now();
        if columns == 0 || columns.checked_mul(columns) != Some(values.len()) {
            return Err(MomentsError::Length { columns, values: values.len() });
        }
        check(&values, columns)?;
        mirror(&mut values, columns);
        let diagonal: Vec<f32> = (0..columns).map(|j| values[j * columns + j]).collect();
        let mean = diagonal.iter().map(|value| f64::from(*value)).sum::<f64>() / columns as f64;
        // Without any input, all columns are alike.
        let mean = if mean > 0.0 { mean } else { 1.0 };
        let importance = floored(diagonal);
        for (j, importance) in importance.iter().enumerate() {
            values[j * columns + j] = *importance;
        }
        let factor = loop {
            match Factor::new(&values, columns, mean, damping) {
                Some(factor) => break factor,
                None => damping *= GROWTH,
            }
        };
        Ok(Self {
            columns,
            importance,
            factor,
            damping: damping * mean,
            seconds: start.elapsed().as_secs_f64(),
            values,
        })
    }

    /// Columns of the weights.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What was added to the diagonal of H before it was factored.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// H.
    pub(super) fn view(&self) -> View<'_> {
        View::new(&self.values, self.columns)
    }

    /// The seconds that preparing took.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The diagonal of H as importance of the columns, all above 0.
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// p of the module's equation, damping included: what an error of each column costs that no other column makes up for.
    pub fn pivots(&self) -> &[f32] {
        &self.factor.pivots
    }

    /// Row `j` of H.
    pub(super) fn row(&self, j: usize) -> &[f32] {
        &self.values[j * self.columns..][..self.columns]
    }

    /// H from row `j` and column `k` on. Its rows are [`Self::columns`] apart.
    pub(super) fn from(&self, j: usize, k: usize) -> &[f32] {
        &self.values[j * self.columns + k..]
    }

    pub(super) fn factor(&self) -> &Factor {
        &self.factor
    }
}

pub(super) fn check(values: &[f32], columns: usize) -> Result<(), MomentsError> {
    for (row, of_row) in values.chunks_exact(columns).enumerate() {
        let lower = &of_row[..=row];
        if let Some(column) = lower.iter().position(|value| !value.is_finite()) {
            return Err(MomentsError::NotFinite { row, column, value: lower[column] });
        }
        if lower[row] < 0.0 {
            return Err(MomentsError::Negative { column: row, value: lower[row] });
        }
    }
    Ok(())
}

/// Copies the lower triangle to the upper one.
pub(super) fn mirror(values: &mut [f32], columns: usize) {
    // By tiles, so that the column that is read stays in a cache.
    for top in (0..columns).step_by(64) {
        for left in (0..=top).step_by(64) {
            for i in top..columns.min(top + 64) {
                for j in left..i.min(left + 64) {
                    values[j * columns + i] = values[i * columns + j];
                }
            }
        }
    }
}

/// Gives columns without importance that of the least important one.
pub(super) fn floored(mut diagonal: Vec<f32>) -> Vec<f32> {
    let positive = || diagonal.iter().copied().filter(|value| *value > 0.0);
    let n = positive().count();
    if n == 0 {
        diagonal.fill(1.0);
    } else if n < diagonal.len() {
        let least = positive().fold(f32::INFINITY, f32::min);
        let mean = positive().map(f64::from).sum::<f64>() / n as f64;
        // As importance files have it: products of importance must not vanish.
        let floor = least.max((mean / f64::from(1 << 24)) as f32).min(least.max(1.0 / (1u64 << 40) as f32));
        diagonal.iter_mut().filter(|value| **value == 0.0).for_each(|value| *value = floor);
    }
    diagonal
}

/// n and p of the module's equation.
pub(super) struct Factor {
    /// The rows of n, panel by panel of [`PANEL`] rows. Those of a panel have as many elements as the panel's last row.
    rows: Vec<f32>,
    /// p.
    pub pivots: Vec<f32>,
}

/// Where the rows of a panel begin, if all panels before it have [`PANEL`] rows.
fn panel_start(panel: usize) -> usize {
    PANEL * PANEL * panel * (panel + 1) / 2
}

impl Factor {
    /// Returns n from row `j` and column `k` on, and how far apart its rows are as far as j's panel goes.
    pub fn from(&self, j: usize, k: usize) -> (&[f32], usize) {
        let panel = j / PANEL;
        let stride = self.pivots.len().min((panel + 1) * PANEL);
        (&self.rows[panel_start(panel) + j % PANEL * stride + k..], stride)
    }

    /// Factors `values` plus `damping` times `mean` on the diagonal. `None` if a pivot is not clearly above 0.
    fn new(values: &[f32], columns: usize, mean: f64, damping: f64) -> Option<Self> {
        let level = Level::best();
        let panels = columns.div_ceil(PANEL);
        let last = columns - (panels - 1) * PANEL;
        let mut rows = vec![0.0; panel_start(panels - 1) + last * columns];
        let mut pivots = vec![0.0; columns];
        for panel in (0..panels).rev() {
            let start = panel * PANEL;
            let end = columns.min(start + PANEL);
            let (before, after) = rows.split_at_mut(panel_start(panel) + (end - start) * end);
            let later = Later { rows: after, first: end, columns };
            let of_panel = later.transposed(level, start..end);
            // What is left of the panel's rows, 32 columns at a time.
            let remaining = |at: usize| {
                let n = (end - at).min(ROWS);
                let mut sums = vec![[0.0; ROWS]; end - start];
                let mut tile = vec![[0.0; ROWS]; PANEL.min(columns - end)];
                let mut from = end;
                while from < columns {
                    let to = columns.min(from + PANEL);
                    let tile = &mut tile[..to - from];
                    later.columns(from..to, at, n, tile);
                    add_products(level, tile, &of_panel[(from - end) * (end - start)..], to - from, &mut sums);
                    from = to;
                }
                let mut left = vec![[0.0f64; ROWS]; end - start];
                for (j, (left, sums)) in left.iter_mut().zip(&sums).enumerate() {
                    let values = &values[(start + j) * columns + at..][..n];
                    for i in 0..n {
                        left[i] = f64::from(values[i]) / mean - f64::from(sums[i]);
                    }
                    if (at..at + n).contains(&(start + j)) {
                        left[start + j - at] += damping;
                    }
                }
                left
            };
            let tiles = |range: std::ops::Range<usize>| -> Vec<(usize, Vec<[f64; ROWS]>)> {
                let starts: Vec<usize> = range.step_by(ROWS).collect();
                starts.into_par_iter().map(|at| (at, remaining(at))).collect()
            };

            let width = end - start;
            let mut own = vec![0.0f64; width * width];
            for (at, tile) in tiles(start..end) {
                for j in 0..width {
                    let n = (end - at).min(ROWS);
                    own[j * width + at - start..][..n].copy_from_slice(&tile[j][..n]);
                }
            }
            factor_small(&mut own, width, damping / 2.0)?;

            let target = &mut before[panel_start(panel)..];
            for j in 0..width {
                let pivot = own[j * width + j];
                pivots[start + j] = (pivot * pivot) as f32;
                for i in 0..=j {
                    target[j * end + start + i] = own[j * width + i] as f32;
                }
            }
            // Column j of the panel's own part, one number after the other.
            let own_turned: Vec<f64> = (0..width * width).map(|at| own[at % width * width + at / width]).collect();
            let solved = |at: usize| {
                let mut tile = remaining(at);
                for j in (0..width).rev() {
                    let (earlier, solved) = tile.split_at_mut(j + 1);
                    let of_later = &own_turned[j * width + j + 1..][..solved.len()];
                    // A copy stays in registers.
                    let mut row = earlier[j];
                    for (factor, solved) in of_later.iter().zip(solved.iter()).rev() {
                        for lane in 0..ROWS {
                            row[lane] -= factor * solved[lane];
                        }
                    }
                    earlier[j] = row.map(|x| x / own[j * width + j]);
                }
                tile
            };
            let starts: Vec<usize> = (0..start).step_by(ROWS).collect();
            // A few at a time: they are as large as the panel in double precision.
            for starts in starts.chunks(64) {
                let tiles: Vec<_> = starts.par_iter().map(|at| solved(*at)).collect();
                for (at, tile) in starts.iter().zip(tiles) {
                    for j in 0..width {
                        for lane in 0..ROWS {
                            target[j * end + at + lane] = tile[j][lane] as f32;
                        }
                    }
                }
            }
        }
        // From factors to n.
        for j in 0..columns {
            let panel = j / PANEL;
            let stride = columns.min((panel + 1) * PANEL);
            let row = &mut rows[panel_start(panel) + j % PANEL * stride..][..=j];
            let inverse = 1.0 / row[j];
            row.iter_mut().for_each(|x| *x *= inverse);
            row[j] = 1.0;
            pivots[j] = (f64::from(pivots[j]) * mean) as f32;
        }
        Some(Self { rows, pivots })
    }
}

/// The rows of a factor after some panel.
struct Later<'a> {
    rows: &'a [f32],
    /// Index of the first row.
    first: usize,
    columns: usize,
}

impl Later<'_> {
    /// Row `k`, up to its diagonal at least.
    fn row(&self, k: usize) -> &[f32] {
        let panel = k / PANEL;
        let stride = self.columns.min((panel + 1) * PANEL);
        &self.rows[panel_start(panel) - panel_start(self.first / PANEL) + k % PANEL * stride..][..stride]
    }

    /// The columns `range` of all rows: [`PANEL`] rows at a time, and of those column by column.
    fn transposed(&self, level: Level, range: std::ops::Range<usize>) -> Vec<f32> {
        let mut columns = vec![0.0; range.len() * (self.columns - self.first)];
        columns.par_chunks_mut(range.len() * PANEL).enumerate().for_each(|(panel, columns)| {
            let top = self.first + panel * PANEL;
            let n_rows = columns.len() / range.len();
            let stride = self.columns.min(top + PANEL);
            let rows = &self.rows[panel_start(top / PANEL) - panel_start(self.first / PANEL) + range.start..];
            transpose(level, (rows, stride), (n_rows, range.len()), (columns, n_rows));
        });
        columns
    }

    /// `n` columns from `at` on, of the rows `range`.
    fn columns(&self, range: std::ops::Range<usize>, at: usize, n: usize, columns: &mut [Column]) {
        for (k, column) in range.zip(columns) {
            column[..n].copy_from_slice(&self.row(k)[at..][..n]);
        }
    }
}

/// Replaces the lower triangle of a symmetric matrix of `n` rows by m with mᵀm = the matrix. `None` if the square of an element
/// of its diagonal would be below `least`, or not a number.
pub(super) fn factor_small(matrix: &mut [f64], n: usize, least: f64) -> Option<()> {
    for j in (0..n).rev() {
        let (earlier, row) = matrix.split_at_mut(j * n);
        let square = row[j];
        if square.is_nan() || square < least || square <= 0.0 {
            return None;
        }
        let pivot = square.sqrt();
        row[..j].iter_mut().for_each(|x| *x /= pivot);
        row[j] = pivot;
        for (i, earlier) in earlier.chunks_exact_mut(n).enumerate() {
            let factor = row[i];
            for k in 0..=i {
                earlier[k] -= factor * row[k];
            }
        }
    }
    Some(())
}

/// n and p of a small part of H on its diagonal, for changes of one piece of a row while all other weights stay.
#[derive(Clone)]
pub(super) struct SmallFactor {
    /// Rows of n.
    pub n: [[f32; 32]; 32],
    /// p
    pub pivots: [f32; 32],
}

impl SmallFactor {
    /// That of the columns from `start` on, `len` of at most 32. Columns without input cost next to nothing.
    pub fn of(moments: &SecondMoments, start: usize, len: usize) -> Self {
        let value = |j: usize, k: usize| f64::from(moments.row(start + j)[start + k]);
        let mean = (0..len).map(|j| value(j, j)).sum::<f64>() / len as f64;
        let mean = if mean > 0.0 { mean } else { 1.0 };
        let mut damping = 1e-5;
        let matrix = loop {
            let mut matrix = vec![0.0; len * len];
            for j in 0..len {
                for k in 0..=j {
                    matrix[j * len + k] = value(j, k) / mean;
                }
                matrix[j * len + j] += damping;
            }
            if factor_small(&mut matrix, len, damping / 2.0).is_some() {
                break matrix;
            }
            damping *= GROWTH;
        };
        let mut small = Self { n: [[0.0; 32]; 32], pivots: [0.0; 32] };
        for j in 0..len {
            let pivot = matrix[j * len + j];
            for k in 0..=j {
                small.n[j][k] = (matrix[j * len + k] / pivot) as f32;
            }
            small.pivots[j] = (pivot * pivot * mean) as f32;
        }
        small
    }

    /// That of a piece on the diagonal of a whole factor.
    pub fn within(factor: &Factor, start: usize, len: usize) -> Self {
        let mut small = Self { n: [[0.0; 32]; 32], pivots: [0.0; 32] };
        small.pivots[..len].copy_from_slice(&factor.pivots[start..][..len]);
        for j in 0..len {
            let (row, _) = factor.from(start + j, start);
            small.n[j][..=j].copy_from_slice(&row[..=j]);
        }
        small
    }
}
