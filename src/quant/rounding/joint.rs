//! Rounding a matrix for its inputs: nearest, compensated, refit, and what each achieves.
//!
//! The objective is tr((W − Ŵ) H (W − Ŵ)ᵀ), the mean square of what rounding changes in the output, summed over rows. Rows
//! do not depend on one another: threads take some of them each, and the bytes are the same however they are divided.
//!
//! For a matrix of R rows and K columns, in multiplications and additions (with a vector of single precision, each a lane):
//!
//! | part             | R · K² times                                     | memory                   |
//! |------------------|--------------------------------------------------|--------------------------|
//! | second moments   | K³/6 in all, once for matrices with the same inputs | 6 K² bytes            |
//! | an objective     | 1/2                                              |                          |
//! | compensated      | 1/2, an objective, and about 2000 R · K for searches | a thread: 1.7 KiB · K |
//! | refit            | 1 a round, and an objective                      | the same                 |

use super::compensated;
use super::factor::SecondMoments;
use super::group::{Group, objectives, transposed};
use super::refit::Refit;
use super::rescale::Grid;
use crate::lanes::Level;
use crate::linear::ROWS;
use crate::quant::Format;
use rayon::prelude::*;
use std::time::Instant;

/// How [`Format::round_for`] rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether to round to nearest with importance, too, and to take each row from it where that is better.
    pub nearest: bool,
    /// The most rounds of the refit. 0 leaves it out.
    pub rounds: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nearest: true, rounds: 3 }
    }
}

/// What a rounding achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// tr((W − Ŵ) H (W − Ŵ)ᵀ), without damping, but with columns without input as [`SecondMoments::new`] has them.
    pub objective: f64,
    /// Seconds that threads worked on it, added up.
    pub seconds: f64,
}

/// What [`Format::round_for`] did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Rounding to nearest with importance, if asked for.
    pub nearest: Option<Part>,
    /// Compensated rounding. Where nearest was asked for, the better of both in each row.
    pub compensated: Part,
    /// The refit of that, if asked for.
    pub refit: Option<Part>,
}

impl Format {
    /// Rounds consecutive rows for inputs with the given second moments. Returns what each part achieved; `None`, and writes
    /// nothing, if the format has no scales and codes.
    ///
    /// Works on the threads of the current rayon pool. The bytes do not depend on them, on the CPU, or on how many rows are
    /// passed at a time.
    ///
    /// # Panics
    /// Those of [`Self::quantize_rows`], where a row has [`SecondMoments::columns`] weights.
    pub fn round_for(
        &self,
        src: &[f32],
        moments: &SecondMoments,
        settings: Settings,
        dst: &mut [u8],
    ) -> Option<Outcome> {
        let grid = self.grid.as_ref()?;
        let columns = moments.columns();
        self.rows(src, columns, None, dst);
        let refit = (settings.rounds > 0).then(|| Refit::new(Level::best(), moments, grid));
        let task = |src: &[f32], dst: &mut [u8]| {
            let mut rows = Rows { format: self, grid, moments, src, dst };
            let nearest = settings.nearest.then(|| rows.nearest());
            let compensated = rows.compensated(nearest.as_ref());
            let refit = refit.as_ref().map(|refit| rows.refit(refit, &compensated, settings.rounds));
            [nearest, Some(compensated), refit]
        };
        let [nearest, compensated, refit] = self.sum_over_rows(src, columns, dst, task);
        Some(Outcome { nearest, compensated: compensated.unwrap_or_default(), refit })
    }

    /// Refits rows that are rounded already: `bytes` holds their blocks, and gets better ones. Returns the objective
    /// before and after; `None`, and changes nothing, if the format has no scales and codes.
    ///
    /// # Panics
    /// Those of [`Self::round_for`].
    pub fn refit_for(
        &self,
        src: &[f32],
        moments: &SecondMoments,
        rounds: usize,
        bytes: &mut [u8],
    ) -> Option<[Part; 2]> {
        let grid = self.grid.as_ref()?;
        let columns = moments.columns();
        self.rows(src, columns, None, bytes);
        let refit = Refit::new(Level::best(), moments, grid);
        let task = |src: &[f32], dst: &mut [u8]| {
            let mut rows = Rows { format: self, grid, moments, src, dst };
            let before = rows.objectives();
            let after = rows.refit(&refit, &before, rounds);
            [Some(before), Some(after)]
        };
        Some(self.sum_over_rows(src, columns, bytes, task).map(Option::unwrap_or_default))
    }

    /// Returns tr((W − Ŵ) H (W − Ŵ)ᵀ) of the rows `src` and the blocks `bytes`.
    ///
    /// # Panics
    /// Those of [`Self::round_for`].
    pub fn objective_for(&self, src: &[f32], moments: &SecondMoments, bytes: &[u8]) -> f64 {
        let columns = moments.columns();
        self.rows(src, columns, None, bytes);
        let rows = src.par_chunks(ROWS * columns).zip(bytes.par_chunks(ROWS * self.row_bytes(columns)));
        let of_rows: Vec<_> = rows.map(|(src, bytes)| self.objectives(src, moments, bytes)).collect();
        of_rows.iter().flatten().sum()
    }

    /// The objectives of at most [`ROWS`] rows.
    fn objectives(&self, src: &[f32], moments: &SecondMoments, bytes: &[u8]) -> [f64; ROWS] {
        let mut errors = vec![0.0; src.len()];
        self.dequantize(bytes, &mut errors);
        errors.iter_mut().zip(src).for_each(|(error, weight)| *error = weight - *error);
        objectives(Level::best(), moments, &transposed(&errors, moments.columns()))
    }

    /// Calls `task` with some rows at a time, on all threads, and adds up what it returns.
    fn sum_over_rows<const N: usize>(
        &self,
        src: &[f32],
        columns: usize,
        dst: &mut [u8],
        task: impl Fn(&[f32], &mut [u8]) -> [Option<OfRows>; N] + Sync,
    ) -> [Option<Part>; N] {
        // Several groups at a time read H from memory once. But every thread should have something to do, and the groups
        // of all threads need memory.
        let groups = (src.len() / columns).div_ceil(ROWS);
        let most = if columns > 12288 { 2 } else { 4 };
        let rows = ROWS * (groups / rayon::current_num_threads()).clamp(1, most);
        let tasks = src.par_chunks(rows * columns).zip(dst.par_chunks_mut(rows * self.row_bytes(columns)));
        let results: Vec<_> = tasks.map(|(src, dst)| task(src, dst)).collect();
        let mut sums = [None; N];
        for result in results {
            for (sum, part) in sums.iter_mut().zip(result) {
                if let Some(OfRows { objectives, seconds }) = part {
                    let sum: &mut Part = sum.get_or_insert_default();
                    // One row after the other, so that the sum does not depend on how they were divided.
                    objectives.iter().for_each(|objective| sum.objective += objective);
                    sum.seconds += seconds;
                }
            }
        }
        sums
    }
}

/// What was done with some rows.
struct OfRows {
    /// Of each row.
    objectives: Vec<f64>,
    seconds: f64,
}

/// Some rows, and their blocks.
struct Rows<'a> {
    format: &'a Format,
    grid: &'a Grid,
    moments: &'a SecondMoments,
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl<'a> Rows<'a> {
    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.moments.columns())
    }

    fn groups(&self) -> Vec<Group<'a>> {
        let columns = self.moments.columns();
        self.src.chunks(ROWS * columns).map(|rows| Group::new(self.grid, rows, columns)).collect()
    }

    fn objectives(&self) -> OfRows {
        let start = Instant::now();
        let (columns, row_bytes) = (self.moments.columns(), self.row_bytes());
        let groups = self.src.chunks(ROWS * columns).zip(self.dst.chunks(ROWS * row_bytes));
        let of_groups = groups.flat_map(|(src, bytes)| {
            self.format.objectives(src, self.moments, bytes).into_iter().take(src.len() / columns)
        });
        OfRows { objectives: of_groups.collect(), seconds: start.elapsed().as_secs_f64() }
    }

    fn nearest(&mut self) -> OfRows {
        let start = Instant::now();
        let importance = Some(self.moments.importance());
        self.format.quantize_rows(self.src, self.moments.columns(), importance, self.dst);
        OfRows { seconds: start.elapsed().as_secs_f64(), ..self.objectives() }
    }

    /// Rounds, and writes those rows that are better than what is there, if that is known.
    fn compensated(&mut self, there: Option<&OfRows>) -> OfRows {
        let start = Instant::now();
        let mut groups = self.groups();
        compensated::round(Level::best(), self.moments, &mut groups);
        let seconds = start.elapsed().as_secs_f64();
        let mut found = self.objectives_of(&groups);
        self.write(&groups, &mut found, there.map(|there| there.objectives.as_slice()));
        OfRows { objectives: found, seconds }
    }

    /// The objectives of all rows of some groups.
    fn objectives_of(&self, groups: &[Group]) -> Vec<f64> {
        let of_group =
            |group: &Group| objectives(Level::best(), self.moments, &group.errors).into_iter().take(group.n_rows);
        groups.iter().flat_map(of_group).collect()
    }

    /// Refits what is there, whose objectives are `there`.
    fn refit(&mut self, refit: &Refit, there: &OfRows, rounds: usize) -> OfRows {
        let start = Instant::now();
        let mut groups = self.groups();
        let row_bytes = self.row_bytes();
        for (group, bytes) in groups.iter_mut().zip(self.dst.chunks(ROWS * row_bytes)) {
            group.read(bytes);
        }
        let before = there.objectives.chunks(ROWS).map(|objectives| {
            let mut of_group = [0.0; ROWS];
            of_group[..objectives.len()].copy_from_slice(objectives);
            of_group
        });
        refit.run(&mut groups, Some(&before.collect::<Vec<_>>()), rounds);
        let mut after = self.objectives_of(&groups);
        self.write(&groups, &mut after, Some(&there.objectives));
        OfRows { objectives: after, seconds: start.elapsed().as_secs_f64() }
    }

    /// Writes the rows whose objective is less than that of what is there. The others keep their bytes and objectives.
    fn write(&mut self, groups: &[Group], found: &mut [f64], there: Option<&[f64]>) {
        let row_bytes = self.row_bytes();
        for (row, (bytes, found)) in self.dst.chunks_exact_mut(row_bytes).zip(found).enumerate() {
            match there.map(|there| there[row]) {
                Some(there) if there <= *found || found.is_nan() => *found = there,
                _ => groups[row / ROWS].write_row(row % ROWS, bytes),
            }
        }
    }
}
