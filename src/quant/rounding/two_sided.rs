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
//! Rows are refitted some at a time, for the threads: each with the others as they were. What they then gain together is
//! computed, and a row that would undo what those before it gained gets its bytes back: the objective never grows. The rows of a
//! batch come from all over the matrix, because neighbours, such as the rows of an attention head, depend on each other most.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::factor::{MomentsError, SecondMoments, check, floored, mirror};
use super::group::Group;
use super::refit::Refit;
use super::rescale::Grid;
use crate::lanes::Level;
use crate::linear::{Column, ROWS, add_products};
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

    fn at(&self, i: usize, j: usize) -> f32 {
        self.values[i * self.rows + j]
    }
}

/// How [`Format::refit_two_sided`] goes through the rows.
#[derive(Clone, Copy, Debug)]
pub struct Sweeps<'a> {
    /// How often.
    pub sweeps: usize,
    /// The most rounds of the refit of a row.
    pub rounds: usize,
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
                gain += matrix.visit(first..groups.min(first + at_once), &refit, sweeps.rounds);
            }
        }
        Some(TwoSidedOutcome { gain, after: matrix.objective() })
    }

    /// Returns tr(G E H Eᵀ) of a matrix and its blocks. For more than 2,048 rows it is an estimate from as many of them, always
    /// the same ones: all would take as long as a third of the refit.
    ///
    /// # Panics
    /// Those of [`Self::refit_two_sided`].
    pub fn objective_two_sided(
        &self,
        src: &[f32],
        inputs: &SecondMoments,
        outputs: &OutputMoments,
        bytes: &[u8],
    ) -> Option<f64> {
        Some(Matrix::new(self, src, inputs, outputs, &mut bytes.to_vec())?.objective())
    }
}

/// A matrix that is refitted.
///
/// Its rows have places: lane l of group g is row `g + l · groups`, if there is one.
struct Matrix<'a> {
    format: &'a Format,
    grid: &'a Grid,
    src: &'a [f32],
    inputs: &'a SecondMoments,
    outputs: &'a OutputMoments,
    bytes: &'a mut [u8],
    groups: usize,
    /// The errors w − ŵ: for each column those at all places, 0 where there is no row.
    errors: Vec<f32>,
}

/// Rows that are refitted at a time, unless there are fewer than [`LEAST_BATCHES`] times as many.
const MOST_ROWS: usize = 256;

const LEAST_BATCHES: usize = 8;

/// Groups from which an objective is estimated.
const MOST_JUDGED: usize = 64;

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
        let columns = inputs.columns();
        format.rows(src, columns, None, bytes);
        assert_eq!(src.len(), columns * outputs.rows, "weights of a matrix");
        let groups = outputs.rows.div_ceil(ROWS);
        let errors = vec![0.0; columns * groups * ROWS];
        let mut matrix = Self { format, grid, src, inputs, outputs, bytes, groups, errors };
        for index in 0..groups {
            let mut group = matrix.group(index);
            group.read(&matrix.bytes_of(index));
            matrix.put(index, &group.errors);
        }
        Some(matrix)
    }

    /// The rows of a group, in the order of its lanes.
    fn rows(&self, group: usize) -> impl Iterator<Item = usize> + use<> {
        (group..self.outputs.rows).step_by(self.groups)
    }

    /// A group with its weights.
    fn group(&self, index: usize) -> Group<'a> {
        let columns = self.inputs.columns();
        let rows: Vec<f32> = self.rows(index).flat_map(|row| &self.src[row * columns..][..columns]).copied().collect();
        Group::new(self.grid, &rows, columns)
    }

    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.inputs.columns())
    }

    fn bytes_of(&self, group: usize) -> Vec<u8> {
        let n = self.row_bytes();
        self.rows(group).flat_map(|row| &self.bytes[row * n..][..n]).copied().collect()
    }

    fn put(&mut self, group: usize, errors: &[Column]) {
        let places = self.groups * ROWS;
        for (of_column, errors) in self.errors.chunks_exact_mut(places).zip(errors) {
            of_column[group * ROWS..][..ROWS].copy_from_slice(errors);
        }
    }

    /// Σ G\[i\]\[j\] e\[j\] for the rows i of a group, with or without the row itself.
    fn mixed(&self, group: usize, with_itself: bool) -> Vec<Column> {
        let places = self.groups * ROWS;
        let mut factors = vec![[0.0; ROWS]; places];
        for (lane, i) in self.rows(group).enumerate() {
            for other in 0..self.groups {
                for (place, j) in (other * ROWS..).zip(self.rows(other)) {
                    if i != j || with_itself {
                        factors[place][lane] = self.outputs.at(i, j);
                    }
                }
            }
        }
        let mut mixed = vec![[0.0; ROWS]; self.inputs.columns()];
        add_products(Level::best(), &factors, &self.errors, places, &mut mixed);
        mixed
    }

    fn objective(&self) -> f64 {
        let step = self.groups.div_ceil(MOST_JUDGED);
        let judged: Vec<usize> = (0..self.groups).step_by(step).collect();
        let n_rows = judged.iter().map(|index| self.rows(*index).count()).sum::<usize>();
        let of_group = |index: &usize| {
            let index = *index;
            let mixed = self.mixed(index, true);
            let products = times(self.inputs, &mixed);
            let places = self.groups * ROWS;
            let mut sum = 0.0;
            for (of_column, products) in self.errors.chunks_exact(places).zip(&products) {
                for (error, product) in of_column[index * ROWS..].iter().zip(products) {
                    sum += f64::from(*error) * f64::from(*product);
                }
            }
            sum
        };
        let of_groups: Vec<f64> = judged.par_iter().map(of_group).collect();
        of_groups.iter().sum::<f64>() * self.outputs.rows as f64 / n_rows.max(1) as f64
    }

    /// Refits the groups of a batch for what all rows are now. Returns what it gained.
    fn visit(&mut self, batch: Range<usize>, refit: &Refit, rounds: usize) -> f64 {
        // Several groups at a time read H from memory once; but every thread should have something to do.
        let at_once = (batch.len() / rayon::current_num_threads()).clamp(1, 4);
        let groups: Vec<usize> = batch.clone().collect();
        let tasks: Vec<Vec<Visited>> =
            groups.par_chunks(at_once).map(|groups| self.refitted(groups, refit, rounds)).collect();
        let visited: Vec<Visited> = tasks.into_iter().flatten().collect();
        let (accepted, gained) = self.accepted(batch.start, &visited);
        let n = self.row_bytes();
        for ((index, visited), accepted) in batch.zip(&visited).zip(accepted) {
            if accepted == [false; ROWS] {
                continue;
            }
            for (lane, row) in self.rows(index).enumerate().filter(|(lane, _)| accepted[*lane]) {
                visited.group.write_row(lane, &mut self.bytes[row * n..][..n]);
            }
            let mut group = self.group(index);
            group.read(&self.bytes_of(index));
            self.put(index, &group.errors);
        }
        gained
    }

    /// Refits groups, each for the others as they are.
    fn refitted(&self, indices: &[usize], refit: &Refit, rounds: usize) -> Vec<Visited<'a>> {
        let shifted = |index: &usize| {
            let mut group = self.group(*index);
            group.read(&self.bytes_of(*index));
            let mut shifts = self.mixed(*index, false);
            for (lane, row) in self.rows(*index).enumerate() {
                let own = self.outputs.at(row, row);
                shifts.iter_mut().for_each(|shift| shift[lane] /= own);
            }
            for ((weights, errors), shift) in group.weights.iter_mut().zip(&mut group.errors).zip(&shifts) {
                for lane in 0..ROWS {
                    weights[lane] += shift[lane];
                    errors[lane] += shift[lane];
                }
            }
            group
        };
        let mut groups: Vec<Group> = indices.iter().map(shifted).collect();
        let errors_before: Vec<_> = groups.iter().map(|group| group.errors.clone()).collect();
        refit.run(&mut groups, None, rounds);
        let mut visited = Vec::new();
        for ((index, group), errors_before) in indices.iter().zip(groups).zip(errors_before) {
            let mut changes = errors_before.clone();
            for (change, after) in changes.iter_mut().zip(&group.errors) {
                for lane in 0..ROWS {
                    change[lane] = after[lane] - change[lane];
                }
            }
            let products = times(self.inputs, &changes);
            // e H eᵀ − (e + δ) H (e + δ)ᵀ = −(2 e + δ) H δᵀ
            let mut gains = [0.0; ROWS];
            for ((before, after), product) in errors_before.iter().zip(&group.errors).zip(&products) {
                for lane in 0..ROWS {
                    gains[lane] -= f64::from(before[lane] + after[lane]) * f64::from(product[lane]);
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
        turned.par_chunks_mut(columns).enumerate().for_each(|(place, turned)| {
            for (x, product) in turned.iter_mut().zip(&visited[place / ROWS].products) {
                *x = product[place % ROWS];
            }
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

/// Multiplies a group with H.
fn times(inputs: &SecondMoments, group: &[Column]) -> Vec<Column> {
    let mut products = vec![[0.0; ROWS]; group.len()];
    add_products(Level::best(), group, inputs.from(0, 0), inputs.columns(), &mut products);
    products
}
