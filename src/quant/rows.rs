//! Rows of one matrix: the unit that a format quantizes at a time.

use super::search::numbers::{stored, sum_of_squares};
use crate::lanes::{Lanes, MAX_LANES};
use std::array;

/// Rows of one matrix.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// All of them, one after the other.
    pub(super) weights: &'a [f32],
    /// Weights in a row.
    pub(super) row_len: usize,
    /// One value per column.
    pub(super) importance: Option<&'a [f32]>,
}

impl<'a> Rows<'a> {
    /// Returns all rows as pieces of `N` weights. A row has a whole number of pieces.
    #[inline(always)]
    pub(super) fn pieces<const N: usize>(self) -> &'a [[f32; N]] {
        self.weights.as_chunks().0
    }

    /// Returns the importance of piece `index` of [`Self::pieces`].
    #[inline(always)]
    pub(super) fn importance_of<const N: usize>(importance: &'a [f32], index: usize) -> &'a [f32; N] {
        let (pieces, _) = importance.as_chunks();
        &pieces[index % pieces.len()]
    }
}

/// The mean square of each row; empty without importance, because it is not needed then.
pub struct MeanSquares {
    of_rows: Vec<f32>,
    blocks_per_row: usize,
}

impl MeanSquares {
    /// Computes those of all rows. Each is a sum in the order of its weights, so several rows are summed at once.
    #[inline(always)]
    pub fn of<L: Lanes>(l: L, rows: Rows) -> Self {
        let Rows { weights, row_len, importance } = rows;
        let mut of_rows = Vec::new();
        if importance.is_some() {
            of_rows.reserve_exact(weights.len() / row_len);
            for weights in weights.chunks(L::LEN * row_len) {
                let n_rows = weights.len() / row_len;
                if n_rows == 1 {
                    of_rows.push(sum_of_squares(weights) / row_len as f32);
                    continue;
                }
                // The remaining lanes get the last row.
                let starts: [usize; MAX_LANES] = array::from_fn(|lane| lane.min(n_rows - 1) * row_len);
                let mut sum = l.splat(0.0);
                for at in (0..row_len).step_by(32) {
                    let columns = l.columns::<32>(
                        #[inline(always)]
                        |lane| weights[starts[lane] + at..].first_chunk().expect("a row has a whole number of blocks"),
                    );
                    for x in columns {
                        sum = sum + x * x;
                    }
                }
                of_rows.extend_from_slice(&stored(l, sum / l.splat(row_len as f32))[..n_rows]);
            }
        }
        Self { of_rows, blocks_per_row: row_len / 32 }
    }

    /// Returns for each lane the mean square of the row that holds block `first` + lane; beyond the end, of the last row.
    #[inline(always)]
    pub fn of_blocks<L: Lanes>(&self, _: L, first: usize) -> [f32; MAX_LANES] {
        let mut of_lanes = [0.0; MAX_LANES];
        let (mut row, mut block) = (first / self.blocks_per_row, first % self.blocks_per_row);
        for of_lane in &mut of_lanes[..L::LEN] {
            *of_lane = self.of_rows[row.min(self.of_rows.len() - 1)];
            block += 1;
            if block == self.blocks_per_row {
                (row, block) = (row + 1, 0);
            }
        }
        of_lanes
    }
}
