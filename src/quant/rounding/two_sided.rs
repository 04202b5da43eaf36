//! Two-sided refit: improves a rounded matrix for its inputs and for what becomes of its outputs.
//!
//! An error in one row of a matrix can be made up for by another row, where what follows depends on the two alike. With the
//! second moments H of the inputs and G of the gradients of the outputs, both over the tokens of some texts, the loss grows by
//! about
//!
//! ```text
//!  tr(G E H Eᵀ) = Σ G[i][j] e[i] H e[j]ᵀ          E = W − Ŵ, e[i] its rows
//!               = G[i][i] (e[i] + s[i]) H (e[i] + s[i])ᵀ + what does not depend on e[i],      s[i] = Σ_{j≠i} G[i][j] / G[i][i] e[j]
//! ```
//!
//! Source: Tseng et al., *Model-Preserving Adaptive Rounding*, for the form of the objective. So a row is refitted as for
//! its inputs alone ([`refit`](super::refit)), but with s added to its weights.
//!
//! Of all rows, E H is kept. A row is refitted by its gradient (e + s) H, which is a mean of rows of E H by G, and what it changes
//! is added to E H: a sweep over R rows of K columns costs R² K + R K² multiplications, and nothing is computed twice.
//!
//! Rows are refitted some at a time, for the threads: each with the others as they were. What they then gain together is
//! computed, and a row that would undo what those before it gained keeps its bytes: the objective never grows. The rows of a
//! batch come from all over the matrix, because neighbours, such as the rows of an attention head, depend on each other most.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::factor::{MomentsError, SecondMoments, check, floored, mirror};
use super::group::{Group, transposed};
use super::refit::{Moves, Refit};
use super::rescale::Grid;
use crate::lanes::Level;
use crate::linear::{Column, ROWS, View, add_product, add_products, transpose};
use crate::quant::Format;

/// The second moments of the gradients of a matrix's outputs, E\[g gᵀ\].
///
/// Memory: 4 bytes for each pair of rows.
pub struct OutputMoments {
    rows: usize,
    values: Vec<f32>,
}

impl OutputMoments {
    /// Prepares second moments: `rows` rows of `rows` values. Reads the lower triangle, and takes the upper one to be the same.
    /// A row whose output never had a gradient gets the mean square of the least important one.
    ///
    /// # Errors
    /// If the number of values is another, one of them is not finite, or one of the diagonal is negative.
    pub fn new(mut values: Vec<f32>, rows: usize) -> Result<Self, MomentsError> {
        if rows == 0 || rows.checked_mul(rows) != Some(values.len()) {
            return Err(MomentsError::Length { columns: rows, values: values.len() });
        }
        check(&values, rows)?;
        mirror(&mut values, rows);
        let diagonal = floored((0..rows).map(|i| values[i * rows + i]).collect());
        for (i, value) in diagonal.into_iter().enumerate() {
            values[i * rows + i] = value;
        }
        Ok(Self { rows, values })
    }

    /// Returns the number of rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Σ G\[i\]\[j\] v\[j\] for some rows i, where v\[j\] are all rows of a matrix.
    fn mixed(&self, rows: &[usize], matrix: &[f32], columns: usize) -> Vec<f32> {
        let factors: Vec<f32> = rows.iter().flat_map(|i| &self.values[i * self.rows..][..self.rows]).copied().collect();
        let mut mixed = vec![0.0; rows.len() * columns];
        add_product(View::new(&factors, self.rows), View::new(matrix, columns), &mut mixed);
        mixed
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.values[i * self.rows + j]
    }
}

/// How [`Format::refit_two_sided`] goes through the rows.
#[derive(Clone, Copy, Debug)]
pub struct Sweeps<'a> {
    /// How often.
    pub sweeps: usize,
    /// Setting it, from any thread, stops it.
    pub stop: &'a AtomicBool,
}

/// What a two-sided refit achieved, in units of tr(G E H Eᵀ).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoSidedOutcome {
    /// By how much it is less than before.
    pub gain: f64,
    /// What is left, as [`Format::objective_two_sided`] has it.
    pub after: f64,
}

impl Format {
    /// Refits a whole matrix that is rounded already, for its inputs and outputs: `bytes` holds the blocks of all rows, and
    /// gets better ones. Returns `None` if it was stopped, and if the format has no scales and codes.
    ///
    /// Works on the threads of the current rayon pool. The bytes do not depend on them or on the CPU.
    ///
    /// # Panics
    /// Those of [`Self::round_for`], and if there are not as many rows as `outputs` has.
    pub fn refit_two_sided(
        &self,
        src: &[f32],
        inputs: &SecondMoments,
        outputs: &OutputMoments,
        sweeps: Sweeps<'_>,
        bytes: &mut [u8],
    ) -> Option<TwoSidedOutcome> {
        let mut matrix = Matrix::new(self, src, inputs, outputs, bytes)?;
        let refit = Refit::new(Level::best(), inputs, matrix.grid);
        let groups = matrix.groups;
        let mut gain = 0.0;
        let at_once = (groups / LEAST_BATCHES).clamp(1, MOST_ROWS / ROWS);
        for _ in 0..sweeps.sweeps {
            for first in (0..groups).step_by(at_once) {
                if sweeps.stop.load(Ordering::Relaxed) {
                    return None;
                }
                gain += matrix.visit(first..groups.min(first + at_once), &refit);
            }
        }
        let after = judged(outputs.rows, |rows| {
            let mixed = outputs.mixed(rows, &matrix.products, inputs.columns());
            dot(&mixed, &errors(self, src, inputs.columns(), rows, matrix.bytes))
        });
        Some(TwoSidedOutcome { gain, after })
    }

    /// Returns tr(G E H Eᵀ) of a matrix and its blocks. For more than 2,048 rows it is an estimate from as many of them, always
    /// the same ones.
    ///
    /// # Panics
    /// Those of [`Self::refit_two_sided`].
    pub fn objective_two_sided(
        &self,
        src: &[f32],
        inputs: &SecondMoments,
        outputs: &OutputMoments,
        bytes: &[u8],
    ) -> f64 {
        let columns = inputs.columns();
        check_sizes(self, src, inputs, outputs, bytes);
        let all: Vec<usize> = (0..outputs.rows).collect();
        let all = errors(self, src, columns, &all, bytes);
        judged(outputs.rows, |rows| {
            let mixed = outputs.mixed(rows, &all, columns);
            let mut products = vec![0.0; mixed.len()];
            add_product(View::new(&mixed, columns), inputs.view(), &mut products);
            rows.iter().zip(products.chunks(columns)).map(|(row, products)| dot(products, &all[row * columns..])).sum()
        })
    }
}

fn check_sizes(format: &Format, src: &[f32], inputs: &SecondMoments, outputs: &OutputMoments, bytes: &[u8]) {
    format.rows(src, inputs.columns(), None, bytes);
    assert_eq!(src.len(), inputs.columns() * outputs.rows, "weights of a matrix");
}

/// w − ŵ of some rows.
fn errors(format: &Format, src: &[f32], columns: usize, rows: &[usize], bytes: &[u8]) -> Vec<f32> {
    let row_bytes = format.row_bytes(columns);
    let mut errors = vec![0.0; rows.len() * columns];
    errors.par_chunks_mut(columns).zip(rows).for_each(|(errors, row)| {
        format.dequantize(&bytes[row * row_bytes..][..row_bytes], errors);
        errors.iter_mut().zip(&src[row * columns..]).for_each(|(error, weight)| *error = weight - *error);
    });
    errors
}

/// The sum over all rows of what `of_rows` returns for some of them: an estimate, if there are many.
fn judged(rows: usize, of_rows: impl Fn(&[usize]) -> f64) -> f64 {
    let step = rows.div_ceil(MOST_JUDGED).max(1);
    let judged: Vec<usize> = (0..rows).step_by(step).collect();
    let sum: f64 = judged.chunks(MOST_ROWS).map(of_rows).sum();
    sum * rows as f64 / judged.len() as f64
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// A matrix that is refitted.
///
/// Lane l of its group g is row `g + l · groups`, if there is one.
struct Matrix<'a> {
    format: &'a Format,
    grid: &'a Grid,
    src: &'a [f32],
    inputs: &'a SecondMoments,
    outputs: &'a OutputMoments,
    bytes: &'a mut [u8],
    groups: usize,
    /// E H, row by row.
    products: Vec<f32>,
}

/// Rows that are refitted at a time, unless there are fewer than [`LEAST_BATCHES`] times as many.
const MOST_ROWS: usize = 512;

const LEAST_BATCHES: usize = 8;

/// Rows from which an objective is estimated.
const MOST_JUDGED: usize = 2048;

/// What became of a group.
struct Visited<'a> {
    group: Group<'a>,
    /// How the errors changed.
    changes: Vec<Column>,
    /// Their products with H.
    products: Vec<Column>,
    /// What each row gains where the others stay as they are.
    gains: [f64; ROWS],
}

impl<'a> Matrix<'a> {
    fn new(
        format: &'a Format,
        src: &'a [f32],
        inputs: &'a SecondMoments,
        outputs: &'a OutputMoments,
        bytes: &'a mut [u8],
    ) -> Option<Self> {
        let grid = format.grid.as_ref()?;
        check_sizes(format, src, inputs, outputs, bytes);
        let columns = inputs.columns();
        let groups = outputs.rows.div_ceil(ROWS);
        let mut products = vec![0.0; src.len()];
        let rows: Vec<usize> = (0..outputs.rows).collect();
        for (rows, products) in rows.chunks(MOST_ROWS).zip(products.chunks_mut(MOST_ROWS * columns)) {
            let errors = errors(format, src, columns, rows, bytes);
            add_product(View::new(&errors, columns), inputs.view(), products);
        }
        Some(Self { format, grid, src, inputs, outputs, bytes, groups, products })
    }

    /// The rows of a group, in the order of its lanes.
    fn rows(&self, group: usize) -> impl Iterator<Item = usize> + use<> {
        (group..self.outputs.rows).step_by(self.groups)
    }

    /// A group as it is.
    fn group(&self, index: usize) -> Group<'a> {
        let (columns, row_bytes) = (self.inputs.columns(), self.row_bytes());
        let rows: Vec<f32> = self.rows(index).flat_map(|row| &self.src[row * columns..][..columns]).copied().collect();
        let bytes: Vec<u8> =
            self.rows(index).flat_map(|row| &self.bytes[row * row_bytes..][..row_bytes]).copied().collect();
        let mut group = Group::new(self.grid, &rows, columns);
        group.read(&bytes);
        group
    }

    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.inputs.columns())
    }

    /// Refits the groups of a batch for what all rows are now. Returns what it gained.
    fn visit(&mut self, batch: Range<usize>, refit: &Refit) -> f64 {
        let columns = self.inputs.columns();
        let rows: Vec<usize> = batch.clone().flat_map(|group| self.rows(group)).collect();
        let mut gradients = self.outputs.mixed(&rows, &self.products, columns);
        gradients.par_chunks_mut(columns).zip(&rows).for_each(|(gradient, row)| {
            let own = self.outputs.at(*row, *row);
            gradient.iter_mut().for_each(|x| *x /= own);
        });
        // Several groups at a time read H from memory once; but every thread should have something to do.
        let at_once = (batch.len() / rayon::current_num_threads()).clamp(1, 4);
        let mut of_groups = Vec::new();
        let mut rest = gradients.as_slice();
        for group in batch.clone() {
            let (own, others) = rest.split_at(self.rows(group).count() * columns);
            of_groups.push((group, own));
            rest = others;
        }
        let tasks: Vec<Vec<Visited>> =
            of_groups.par_chunks(at_once).map(|groups| self.refitted(groups, refit)).collect();
        let visited: Vec<Visited> = tasks.into_iter().flatten().collect();
        let (accepted, gained) = self.accepted(batch.start, &visited);
        let n = self.row_bytes();
        for ((index, visited), accepted) in batch.zip(&visited).zip(accepted) {
            for (lane, row) in self.rows(index).enumerate().filter(|(lane, _)| accepted[*lane]) {
                visited.group.write_row(lane, &mut self.bytes[row * n..][..n]);
                for (product, change) in self.products[row * columns..].iter_mut().zip(&visited.products) {
                    *product += change[lane];
                }
            }
        }
        gained
    }

    /// Refits groups, each with the gradients of its rows, for the others as they are.
    fn refitted(&self, groups: &[(usize, &[f32])], refit: &Refit) -> Vec<Visited<'a>> {
        let columns = self.inputs.columns();
        let (mut refitted, gradients): (Vec<Group>, Vec<Vec<Column>>) =
            groups.iter().map(|(index, gradients)| (self.group(*index), transposed(gradients, columns))).unzip();
        let moves = refit.once(&mut refitted, &gradients);
        let mut visited = Vec::new();
        for (((index, _), group), (gradients, moves)) in groups.iter().zip(refitted).zip(gradients.iter().zip(moves)) {
            let Moves { changes, products } = moves;
            // e H eᵀ − (e + δ) H (e + δ)ᵀ = −(2 e H + δ H) δᵀ
            let mut gains = [0.0; ROWS];
            for ((gradient, change), product) in gradients.iter().zip(&changes).zip(&products) {
                for lane in 0..ROWS {
                    gains[lane] -= f64::from(2.0 * gradient[lane] + product[lane]) * f64::from(change[lane]);
                }
            }
            for (gain, row) in gains.iter_mut().zip(self.rows(*index)) {
                *gain *= f64::from(self.outputs.at(row, row));
            }
            visited.push(Visited { group, changes, products, gains });
        }
        visited
    }

    /// Decides which rows of a batch, which begins with group `first`, take what the refit found. One row after the other,
    /// each with the changes of those before it. Returns what they gain together, too.
    fn accepted(&self, first: usize, visited: &[Visited]) -> (Vec<[bool; ROWS]>, f64) {
        // δ[i] H δ[j]ᵀ, for the rows i of each group and all rows j of the batch.
        let columns = self.inputs.columns();
        let mut turned = vec![0.0; visited.len() * ROWS * columns];
        turned.par_chunks_mut(ROWS * columns).zip(visited).for_each(|(turned, visited)| {
            let from = (visited.products.as_flattened(), ROWS);
            transpose(Level::best(), from, (columns, ROWS), (turned, columns));
        });
        let cross = |visited: &Visited| {
            let mut cross = vec![[0.0; ROWS]; turned.len() / columns];
            add_products(Level::best(), &visited.changes, &turned, columns, &mut cross);
            cross
        };
        let cross: Vec<Vec<Column>> = visited.par_iter().map(cross).collect();
        let mut accepted = vec![[false; ROWS]; visited.len()];
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut gained = 0.0;
        for (group, visited) in visited.iter().enumerate() {
            for (lane, row) in self.rows(first + group).enumerate() {
                let mut gain = visited.gains[lane];
                for (place, other) in &taken {
                    let together = f64::from(cross[group][*place][lane]);
                    gain -= 2.0 * f64::from(self.outputs.at(row, *other)) * together;
                }
                if gain > 0.0 {
                    accepted[group][lane] = true;
                    gained += gain;
                    taken.push((group * ROWS + lane, row));
                }
            }
        }
        (accepted, gained)
    }
}
