//! Rounding that compensates: each weight takes over the errors of those before it, so that the output of the row changes
//! as little as possible. It is GPTQ (Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//! Transformers*) in the form of QuIP's LDLQ, with ggml's blocks.
//!
//! ```text
//!             columns done            window of 256                 later
//!        ┌─────────────────────┬───────────────────────────┬──────────────────┐
//!  rows  │ errors w − ŵ        │ block: fit of its scales  │ untouched         │
//!        │                     │  └ piece: search, round   │                   │
//!        └─────────────────────┴───────────────────────────┴──────────────────┘
//!            └── one product ──────►        └─ small products within the window
//! ```
//!
//! The scales of a block are fitted to its weights with the errors of all blocks before it in them. The scales of each
//! sub-block are then searched again when the rounding comes to it: by [`piece`](super::piece), which sees the errors within the
//! block, too.
//!
//! GPTQ's "act order", which begins with the columns of the largest inputs, is left out: columns of a block of ggml's are
//! neighbours and share scales.

use super::factor::{SecondMoments, SmallFactor};
use super::group::{Group, WINDOW};
use super::piece::{Piece, Rounded};
use crate::lanes::Level;
use crate::linear::{Column, ROWS, add_products};
use crate::quant::search::numbers::sum_of_squares;

/// Scales that are tried for each sub-block, in units of the fitted one.
const SPREADS: [f32; 27] = [
    0.76, 0.78, 0.80, 0.82, 0.84, 0.86, 0.88, 0.90, 0.92, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06, 1.08, 1.10, 1.12, 1.14,
    1.16, 1.18, 1.20, 1.22, 1.24, 1.26, 1.28, 1.30,
];

/// Rounds groups of rows.
pub(super) fn round(level: Level, moments: &SecondMoments, groups: &mut [Group]) {
    let Some(grid) = groups.first().map(|group| group.grid) else { return };
    let columns = moments.columns();
    let mut targets = vec![vec![[0.0; ROWS]; WINDOW]; groups.len()];
    let mean_squares: Vec<Column> = groups.iter().map(mean_squares).collect();
    let mut rounded = Box::new(Rounded::new());
    let mut row = vec![0.0; grid.len];
    for start in (0..columns).step_by(WINDOW) {
        let end = columns.min(start + WINDOW);
        for (group, targets) in groups.iter().zip(&mut targets) {
            targets[..end - start].copy_from_slice(&group.weights[start..end]);
        }
        // The part of the factor that all groups need is read once.
        for from in (0..start).step_by(WINDOW) {
            let (factor, stride) = moments.factor().from(start, from);
            for (group, targets) in groups.iter().zip(&mut targets) {
                let errors = &group.errors[from..from + WINDOW];
                add_products(level, errors, factor, stride, &mut targets[..end - start]);
            }
        }
        for at in (start..end).step_by(grid.len) {
            for ((group, targets), mean_squares) in groups.iter_mut().zip(&mut targets).zip(&mean_squares) {
                let (factor, stride) = moments.factor().from(at, start);
                let targets = &mut targets[at - start..][..grid.len];
                add_products(level, &group.errors[start..at], factor, stride, targets);
                let importance = &moments.importance()[at..at + grid.len];
                for l in 0..group.n_rows {
                    let mut fit = |columns: &[Column]| {
                        row.iter_mut().zip(columns).for_each(|(x, column)| *x = column[l]);
                        (grid.fit)(&row, importance, mean_squares[l])
                    };
                    let mut scales = fit(targets);
                    if !scales.is_finite() {
                        // Weights just below the limit of the format, which took over more than they can bear.
                        scales = fit(&group.weights[at..at + grid.len]);
                    }
                    group.set_scales(l, at / grid.len, &scales);
                }
            }
            for first in (at..at + grid.len).step_by(grid.sub_block) {
                let small = SmallFactor::within(moments.factor(), first, grid.sub_block);
                let range = first..first + grid.sub_block;
                for (group, targets) in groups.iter_mut().zip(&mut targets) {
                    let (factor, stride) = moments.factor().from(first, at);
                    let targets = &mut targets[first - start..][..grid.sub_block];
                    add_products(level, &group.errors[at..first], factor, stride, targets);
                    let weights = &group.weights[range.clone()];
                    let piece = Piece { grid, factor: &small, weights, target: targets };
                    piece.search(level, &SPREADS, &mut group.scales[first / grid.sub_block], &mut rounded);
                    group.errors[range.clone()].copy_from_slice(&rounded.errors[..grid.sub_block]);
                    group.levels[range.clone()].copy_from_slice(&rounded.levels[..grid.sub_block]);
                }
            }
        }
    }
}

/// The mean square of each row's weights.
fn mean_squares(group: &Group) -> Column {
    let mut of_rows = [0.0; ROWS];
    let mut row = vec![0.0; group.weights.len()];
    for (l, mean_square) in of_rows.iter_mut().enumerate() {
        for (x, column) in row.iter_mut().zip(&group.weights) {
            *x = column[l];
        }
        *mean_square = sum_of_squares(&row) / row.len() as f32;
    }
    of_rows
}
