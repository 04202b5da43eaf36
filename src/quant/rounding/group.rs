//! A group of rows while it is rounded.

use super::factor::SecondMoments;
use super::piece::{PieceScales, code_of, level_of};
use super::rescale::{Grid, Scales};
use crate::lanes::Level;
use crate::linear::{Column, ROWS, add_products, transpose};
use crate::quant::Half;

/// Columns whose products with all others are computed at a time.
pub const WINDOW: usize = 256;

/// Up to [`ROWS`] rows, transposed. Rows that are missing are zeros.
pub struct Group<'a> {
    pub grid: &'a Grid,
    /// Rows that are there.
    pub n_rows: usize,
    /// w, column by column.
    pub weights: Vec<Column>,
    /// w − ŵ.
    pub errors: Vec<Column>,
    /// What the codes stand for.
    pub levels: Vec<Column>,
    /// Those of each sub-block. The sub-blocks of a block have the same d and dmin.
    pub scales: Vec<PieceScales>,
}

impl<'a> Group<'a> {
    /// Takes rows of `columns` weights each.
    pub fn new(grid: &'a Grid, rows: &[f32], columns: usize) -> Self {
        let zeros = vec![[0.0; ROWS]; columns];
        let none = PieceScales { d: [0.0; ROWS], dmin: [0.0; ROWS], factor: [0.0; ROWS], min_factor: [0.0; ROWS] };
        Self {
            grid,
            n_rows: rows.len() / columns,
            weights: transposed(rows, columns),
            errors: zeros.clone(),
            levels: zeros,
            scales: vec![none; columns / grid.sub_block],
        }
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.weights.len() / self.grid.len * self.grid.bytes
    }

    /// Reads the blocks of all rows.
    pub fn read(&mut self, bytes: &[u8]) {
        let Grid { len, sub_block, bytes: block_bytes, levels, read, .. } = *self.grid;
        let mut codes = vec![0; len];
        for (row, bytes) in bytes.chunks_exact(self.row_bytes()).enumerate() {
            for (block, bytes) in bytes.chunks_exact(block_bytes).enumerate() {
                let scales = read(bytes, &mut codes);
                self.set_scales(row, block, &scales);
                for (j, code) in codes.iter().enumerate() {
                    self.levels[block * len + j][row] = level_of(levels, *code);
                }
            }
        }
        for (piece, scales) in self.scales.iter().enumerate() {
            let (scale, min) = scales.steps();
            for j in piece * sub_block..(piece + 1) * sub_block {
                for l in 0..ROWS {
                    self.errors[j][l] = self.weights[j][l] - (scale[l] * self.levels[j][l] - min[l]);
                }
            }
        }
    }

    /// Writes the blocks of row `row`.
    pub fn write_row(&self, row: usize, bytes: &mut [u8]) {
        let Grid { len, sub_block, bytes: block_bytes, levels, write, .. } = *self.grid;
        let mut codes = vec![0; len];
        for (block, bytes) in bytes.chunks_exact_mut(block_bytes).enumerate() {
            let pieces = &self.scales[block * (len / sub_block)..][..len / sub_block];
            let mut scales = Scales {
                d: Half::new(pieces[0].d[row]),
                dmin: Half::new(pieces[0].dmin[row]),
                factors: [0; 16],
                min_factors: [0; 16],
            };
            for (j, piece) in pieces.iter().enumerate() {
                scales.factors[j] = piece.factor[row] as i16;
                scales.min_factors[j] = piece.min_factor[row] as i16;
            }
            for (j, code) in codes.iter_mut().enumerate() {
                *code = code_of(levels, self.levels[block * len + j][row]);
            }
            write(&scales, &codes, bytes);
        }
    }

    /// Sets the scales of a block.
    pub fn set_scales(&mut self, row: usize, block: usize, scales: &Scales) {
        let pieces = self.grid.len / self.grid.sub_block;
        for (j, piece) in self.scales[block * pieces..][..pieces].iter_mut().enumerate() {
            piece.d[row] = scales.d.value();
            piece.dmin[row] = scales.dmin.value();
            piece.factor[row] = f32::from(scales.factors[j]);
            piece.min_factor[row] = f32::from(scales.min_factors[j]);
        }
    }
}

/// Transposes rows; [`ROWS`] at most.
pub fn transposed(rows: &[f32], columns: usize) -> Vec<Column> {
    let mut transposed = vec![[0.0; ROWS]; columns];
    let size = (rows.len() / columns, columns);
    transpose(Level::best(), (rows, columns), size, (transposed.as_flattened_mut(), ROWS));
    transposed
}

/// e H eᵀ of each row of a group.
pub fn objectives(level: Level, moments: &SecondMoments, errors: &[Column]) -> [f64; ROWS] {
    let columns = moments.columns();
    let mut objectives = [0.0; ROWS];
    let mut before = vec![[0.0; ROWS]; WINDOW];
    let mut within = vec![[0.0; ROWS]; WINDOW];
    for start in (0..columns).step_by(WINDOW) {
        let end = columns.min(start + WINDOW);
        let (before, within) = (&mut before[..end - start], &mut within[..end - start]);
        before.fill([0.0; ROWS]);
        within.fill([0.0; ROWS]);
        // What is before the window counts twice, because H is symmetric.
        add_products(level, &errors[..start], moments.from(start, 0), columns, before);
        add_products(level, &errors[start..end], moments.from(start, start), columns, within);
        for j in 0..end - start {
            for l in 0..ROWS {
                let sum = 2.0 * f64::from(before[j][l]) + f64::from(within[j][l]);
                objectives[l] += f64::from(errors[start + j][l]) * sum;
            }
        }
    }
    objectives
}
