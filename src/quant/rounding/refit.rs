//! A joint refit: improves codes and scales of a matrix that is rounded already, until nothing improves.
//!
//! For a row with the errors e = w − ŵ and the gradient g = e H, a change δ of the errors changes the objective by
//! δ · (2 g + H δ). The refit goes through windows of 256 columns. For each it computes g once, by a product with all
//! columns, and then keeps it up to date while it changes
//!
//! 1. **sub-blocks**: all codes, and the scale (and min) that the sub-block stores, rounded again as one piece for the errors
//!    of all other weights as they are ([`piece`](super::piece));
//! 2. **single codes**: each weight becomes the level nearest to where g would vanish, ŵ + g / H;
//! 3. **d and dmin** of a block: least squares with codes and factors held, rounded to halves.
//!
//! After compensated rounding the first round gains about 12 % of the objective, the second 3 %, the third and fourth together 1 %;
//! after nearest, which leaves more to do, it takes some more.
//!
//! A change is made where its effect, computed for the numbers as they are stored, is a gain. In the end the objective of
//! each row is computed anew, and rows that did not improve get their bytes back.

use std::ops::Range;

use super::factor::{SecondMoments, SmallFactor};
use super::group::{Group, WINDOW};
use super::piece::{MAX, Piece, PieceScales, Rounded, round_to_levels};
use super::rescale::Grid;
use crate::lanes::Level;
use crate::lanes::{Body, Lanes};
use crate::linear::{Column, ROWS, add_products};
use crate::quant::Half;

/// Scales that are tried for each sub-block, in units of what it has.
const SPREADS: [f32; 16] =
    [0.82, 0.85, 0.88, 0.90, 0.92, 0.94, 0.96, 0.98, 1.02, 1.04, 1.06, 1.08, 1.10, 1.12, 1.15, 1.18];

/// A row is done when a round gains less than this part of its objective.
const ENOUGH: f64 = 1e-3;

/// A change has to gain this part of what it moves: no change is undone again because of rounding.
const LEAST_GAIN: f32 = 1e-4;

/// What all groups of a matrix need.
pub(super) struct Refit<'a> {
    level: Level,
    moments: &'a SecondMoments,
    /// n and p of each sub-block.
    pieces: Vec<SmallFactor>,
}

/// A window of H.
struct Window {
    start: usize,
    /// Its rows, each with the columns of the window.
    values: Vec<f32>,
    width: usize,
}

impl<'a> Refit<'a> {
    pub fn new(level: Level, moments: &'a SecondMoments, grid: &Grid) -> Self {
        use rayon::prelude::*;
        let n = moments.columns() / grid.sub_block;
        let of = |piece| SmallFactor::of(moments, piece * grid.sub_block, grid.sub_block);
        Self { level, moments, pieces: (0..n).into_par_iter().map(of).collect() }
    }

    /// Refits groups of rows once. `gradients` are e H of each, where the errors e may be others than those of the group:
    /// then it is refitted as if its weights were others by as much.
    pub fn once(&self, groups: &mut [Group], gradients: &[Vec<Column>]) -> Vec<Moves> {
        let columns = self.moments.columns();
        let moves = |group: &Group| Moves { changes: group.errors.clone(), products: vec![[0.0; ROWS]; columns] };
        let mut moves: Vec<Moves> = groups.iter().map(moves).collect();
        let mut buffers = Buffers::new();
        let mut gradient = vec![[0.0; ROWS]; WINDOW];
        for start in (0..columns).step_by(WINDOW) {
            let window = Window::of(self.moments, start);
            let end = start + window.width;
            self.add_changes(&mut moves, 0..start, start..end);
            for ((group, moves), before) in groups.iter_mut().zip(&mut moves).zip(gradients) {
                let gradient = &mut gradient[..window.width];
                for ((sum, before), change) in gradient.iter_mut().zip(&before[start..]).zip(&moves.products[start..]) {
                    for l in 0..ROWS {
                        sum[l] = before[l] + change[l];
                    }
                }
                let active = &[1.0; ROWS];
                Visit { refit: self, window: &window, group, gradient, active, gains: [0.0; ROWS] }.run(&mut buffers);
                for (change, after) in moves.changes[start..end].iter_mut().zip(&group.errors[start..]) {
                    for l in 0..ROWS {
                        change[l] = after[l] - change[l];
                    }
                }
            }
        }
        for start in (0..columns).step_by(WINDOW) {
            self.add_changes(&mut moves, start..columns, start..columns.min(start + WINDOW));
        }
        moves
    }

    /// Adds to the products of each group in the columns `to` what it changed in the columns `from`.
    fn add_changes(&self, moves: &mut [Moves], from: Range<usize>, to: Range<usize>) {
        let columns = self.moments.columns();
        for start in from.clone().step_by(WINDOW) {
            let end = from.end.min(start + WINDOW);
            let part = self.moments.from(to.start, start);
            for Moves { changes, products } in &mut *moves {
                add_products(self.level, &changes[start..end], part, columns, &mut products[to.clone()]);
            }
        }
    }

    /// Refits groups of rows, at most `rounds` times. `before` are the objectives of their rows, if they are known: then rows that
    /// hardly gain any more are done.
    pub fn run(&self, groups: &mut [Group], before: Option<&[[f64; ROWS]]>, rounds: usize) {
        let (level, moments, columns) = (self.level, self.moments, self.moments.columns());
        let mut now = before.map_or_else(|| vec![[0.0; ROWS]; groups.len()], <[_]>::to_vec);
        let mut active = vec![[1.0f32; ROWS]; groups.len()];
        let mut gradients = vec![vec![[0.0; ROWS]; WINDOW]; groups.len()];
        let mut buffers = Buffers::new();
        let done = |active: &Column| *active == [0.0; ROWS];
        for _ in 0..rounds {
            if active.iter().all(done) {
                break;
            }
            let mut gains = vec![[0.0f64; ROWS]; groups.len()];
            for start in (0..columns).step_by(WINDOW) {
                let window = Window::of(moments, start);
                gradients.iter_mut().for_each(|gradient| gradient.fill([0.0; ROWS]));
                for from in (0..columns).step_by(WINDOW) {
                    let to = columns.min(from + WINDOW);
                    let part = moments.from(start, from);
                    for (index, gradient) in
                        gradients.iter_mut().enumerate().filter(|(index, _)| !done(&active[*index]))
                    {
                        let errors = &groups[index].errors[from..to];
                        add_products(level, errors, part, columns, &mut gradient[..window.width]);
                    }
                }
                for (index, group) in groups.iter_mut().enumerate() {
                    if done(&active[index]) {
                        continue;
                    }
                    let gradient = &mut gradients[index][..window.width];
                    let active = &active[index];
                    let gain = Visit { refit: self, window: &window, group, gradient, active, gains: [0.0; ROWS] }
                        .run(&mut buffers);
                    for l in 0..ROWS {
                        gains[index][l] += gain[l];
                    }
                }
            }
            for index in 0..groups.len() {
                for l in 0..ROWS {
                    now[index][l] -= gains[index][l];
                    if gains[index][l] <= if before.is_some() { ENOUGH * now[index][l].abs() } else { 0.0 } {
                        active[index][l] = 0.0;
                    }
                }
            }
        }
    }
}

/// How the errors of a group changed.
pub(super) struct Moves {
    /// δ.
    pub changes: Vec<Column>,
    /// δ H.
    pub products: Vec<Column>,
}

/// A group of rows in a window.
struct Visit<'a, 'g> {
    refit: &'a Refit<'a>,
    window: &'a Window,
    group: &'a mut Group<'g>,
    /// e H in the window, for the errors as they are.
    gradient: &'a mut [Column],
    /// 0 for rows that are done.
    active: &'a Column,
    /// What each row gained.
    gains: [f64; ROWS],
}

impl Visit<'_, '_> {
    /// Returns what each row gained.
    fn run(mut self, buffers: &mut Buffers) -> [f64; ROWS] {
        let Grid { len, sub_block, .. } = *self.group.grid;
        for at in (0..self.window.width).step_by(sub_block) {
            self.round_piece(at, buffers);
        }
        for at in (0..self.window.width).step_by(sub_block) {
            self.refit_codes(at, buffers);
        }
        if self.group.grid.has_factors() {
            for at in (0..self.window.width).step_by(len) {
                self.fit_block(at, buffers);
            }
        }
        self.gains
    }

    /// Rounds the piece at column `at` of the window again.
    fn round_piece(&mut self, at: usize, buffers: &mut Buffers) {
        let Refit { level, pieces, .. } = self.refit;
        let (window, group) = (self.window, &*self.group);
        let grid = group.grid;
        let n = grid.sub_block;
        let first = window.start + at;
        let index = first / n;
        let small = &pieces[index];
        let range = first..first + n;

        // c: the gradient that the other weights make.
        let own = &mut buffers.changes[..n];
        own.fill([0.0; ROWS]);
        add_products(*level, &group.errors[range.clone()], window.from(at, at), window.width, own);
        let targets = &mut buffers.targets[..n];
        for j in 0..n {
            for l in 0..ROWS {
                targets[j][l] = self.gradient[at + j][l] - own[j][l];
            }
        }
        // Solve y n = c from the right, and divide by p.
        for j in (0..n).rev() {
            let y = targets[j];
            for k in 0..j {
                let factor = small.n[j][k];
                for l in 0..ROWS {
                    targets[k][l] -= factor * y[l];
                }
            }
            let pivot = small.pivots[j];
            for l in 0..ROWS {
                targets[j][l] = group.weights[first + j][l] + y[l] / pivot;
            }
        }
        let mut scales = group.scales[index];
        let piece = Piece { grid, factor: small, weights: &group.weights[range.clone()], target: targets };
        piece.search(*level, &SPREADS, &mut scales, &mut buffers.rounded);

        let rounded = &buffers.rounded;
        let changes = &mut buffers.changes[..n];
        for j in 0..n {
            for l in 0..ROWS {
                changes[j][l] = rounded.errors[j][l] - group.errors[first + j][l];
            }
        }
        let accepted = self.accept(at, changes, &mut buffers.products);
        let group = &mut *self.group;
        for j in 0..n {
            for l in 0..ROWS {
                if accepted[l] {
                    group.errors[first + j][l] = rounded.errors[j][l];
                    group.levels[first + j][l] = rounded.levels[j][l];
                }
            }
        }
        group.scales[index].take(&scales, &accepted);
    }

    /// Decides for each row whether changes of the errors from column `at` on are a gain. Makes those that are none 0, and
    /// brings the gradient up to date.
    fn accept(&mut self, at: usize, changes: &mut [Column], products: &mut [Column]) -> [bool; ROWS] {
        let (level, window) = (self.refit.level, self.window);
        let n = changes.len();
        let products = &mut products[..n];
        products.fill([0.0; ROWS]);
        add_products(level, changes, window.from(at, at), window.width, products);
        let (mut change, mut moved) = ([0.0; ROWS], [0.0; ROWS]);
        for j in 0..n {
            for l in 0..ROWS {
                let own = changes[j][l] * products[j][l];
                change[l] += 2.0 * changes[j][l] * self.gradient[at + j][l] + own;
                moved[l] += own;
            }
        }
        let mut accepted = [false; ROWS];
        for l in 0..ROWS {
            accepted[l] = self.active[l] != 0.0 && change[l] < -LEAST_GAIN * moved[l].abs();
            if accepted[l] {
                self.gains[l] -= f64::from(change[l]);
            }
        }
        if accepted == [false; ROWS] {
            return accepted;
        }
        for column in changes.iter_mut() {
            for l in 0..ROWS {
                column[l] = if accepted[l] { column[l] } else { 0.0 };
            }
        }
        add_products(level, changes, window.from(0, at), window.width, self.gradient);
        accepted
    }

    /// Goes once through the codes of the piece at column `at` of the window.
    fn refit_codes(&mut self, at: usize, buffers: &mut Buffers) {
        let level = self.refit.level;
        let n = self.group.grid.sub_block;
        let changes = &mut buffers.changes[..n];
        changes.fill([0.0; ROWS]);
        level.run(RefitCodes { visit: self, at, changes });
        if changes.iter().all(|column| *column == [0.0; ROWS]) {
            return;
        }
        // The piece itself is up to date.
        let (before, rest) = self.gradient.split_at_mut(at);
        add_products(level, changes, self.window.from(0, at), self.window.width, before);
        if rest.len() > n {
            add_products(level, changes, self.window.from(at + n, at), self.window.width, &mut rest[n..]);
        }
    }

    /// Fits d and dmin of the block at column `at` of the window.
    fn fit_block(&mut self, at: usize, buffers: &mut Buffers) {
        let (level, window, group) = (self.refit.level, self.window, &*self.group);
        let Grid { len, sub_block, .. } = *group.grid;
        let first = window.start + at;
        let has_min = group.grid.has_min();
        // ŵ = d · u − dmin · v
        let Buffers { u, v, changes, products, .. } = buffers;
        let (u, v, changes) = (&mut u[..len], &mut v[..len], &mut changes[..len]);
        for j in 0..len {
            let scales = &group.scales[(first + j) / sub_block];
            for l in 0..ROWS {
                u[j][l] = scales.factor[l] * group.levels[first + j][l];
            }
            v[j] = scales.min_factor;
        }
        let mut sums = [[0.0f64; ROWS]; 5];
        changes.fill([0.0; ROWS]);
        add_products(level, u, window.from(at, at), window.width, changes);
        for j in 0..len {
            for l in 0..ROWS {
                let product = f64::from(changes[j][l]);
                sums[0][l] += f64::from(u[j][l]) * product;
                sums[1][l] += f64::from(v[j][l]) * product;
                sums[2][l] += f64::from(u[j][l]) * f64::from(self.gradient[at + j][l]);
            }
        }
        if has_min {
            changes.fill([0.0; ROWS]);
            add_products(level, v, window.from(at, at), window.width, changes);
            for j in 0..len {
                for l in 0..ROWS {
                    sums[3][l] += f64::from(v[j][l]) * f64::from(changes[j][l]);
                    sums[4][l] += f64::from(v[j][l]) * f64::from(self.gradient[at + j][l]);
                }
            }
        }
        let [uhu, uhv, ug, vhv, vg] = sums;
        let mut scales = group.scales[first / sub_block];
        for l in 0..ROWS {
            let determinant = uhu[l] * vhv[l] - uhv[l] * uhv[l];
            let (mut more, mut more_min) = (0.0, 0.0);
            if determinant > 1e-6 * uhu[l] * vhv[l] {
                more = (ug[l] * vhv[l] - vg[l] * uhv[l]) / determinant;
                more_min = (more * uhv[l] - vg[l]) / vhv[l];
            } else if uhu[l] > 0.0 {
                more = ug[l] / uhu[l];
            }
            let half = |old: f32, more: f64| {
                let new = Half::new((f64::from(old) + more) as f32);
                if new.is_finite() { new.value() } else { old }
            };
            scales.d[l] = half(scales.d[l], more);
            scales.dmin[l] = half(scales.dmin[l], more_min);
        }
        // The errors with these, as they are decoded.
        for j in 0..len {
            let old = &group.scales[(first + j) / sub_block];
            let new = PieceScales { d: scales.d, dmin: scales.dmin, ..*old };
            let (scale, min) = new.steps();
            for l in 0..ROWS {
                let value = scale[l] * group.levels[first + j][l] - min[l];
                changes[j][l] = group.weights[first + j][l] - value - group.errors[first + j][l];
            }
        }
        let accepted = self.accept(at, changes, products);
        let group = &mut *self.group;
        for piece in &mut group.scales[first / sub_block..(first + len) / sub_block] {
            let new = PieceScales { d: scales.d, dmin: scales.dmin, ..*piece };
            piece.take(&new, &accepted);
        }
        for j in 0..len {
            let (scale, min) = group.scales[(first + j) / sub_block].steps();
            for l in 0..ROWS {
                let value = scale[l] * group.levels[first + j][l] - min[l];
                group.errors[first + j][l] = group.weights[first + j][l] - value;
            }
        }
    }
}

impl Window {
    fn of(moments: &SecondMoments, start: usize) -> Self {
        let width = WINDOW.min(moments.columns() - start);
        let rows = (start..start + width).map(|j| &moments.row(j)[start..start + width]);
        Self { start, width, values: rows.flatten().copied().collect() }
    }

    /// From row `j` and column `k` on.
    fn from(&self, j: usize, k: usize) -> &[f32] {
        &self.values[j * self.width + k..]
    }
}

impl PieceScales {
    /// Takes those of `others` for the rows that `accepted` says.
    fn take(&mut self, others: &Self, accepted: &[bool; ROWS]) {
        for l in 0..ROWS {
            if accepted[l] {
                self.d[l] = others.d[l];
                self.dmin[l] = others.dmin[l];
                self.factor[l] = others.factor[l];
                self.min_factor[l] = others.min_factor[l];
            }
        }
    }
}

struct Buffers {
    rounded: Box<Rounded>,
    targets: Vec<Column>,
    changes: Vec<Column>,
    products: Vec<Column>,
    u: Vec<Column>,
    v: Vec<Column>,
}

impl Buffers {
    fn new() -> Self {
        let window = || vec![[0.0; ROWS]; WINDOW];
        Self {
            rounded: Box::new(Rounded::new()),
            targets: vec![[0.0; ROWS]; MAX],
            changes: window(),
            products: window(),
            u: window(),
            v: window(),
        }
    }
}

/// Goes once through the codes of a piece.
struct RefitCodes<'a, 'b, 'g> {
    visit: &'a mut Visit<'b, 'g>,
    /// The column of the window where it begins.
    at: usize,
    /// How the errors change: all 0 before.
    changes: &'a mut [Column],
}

impl Body for RefitCodes<'_, '_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let Self { visit, at, changes: all_changes } = self;
        let Visit { window, group, gradient, active, gains, .. } = visit;
        let Grid { sub_block, levels, .. } = *group.grid;
        let first = window.start + at;
        let (scale, min) = group.scales[first / sub_block].steps();
        let mut inverse = [0.0; ROWS];
        for l in 0..ROWS {
            inverse[l] = if scale[l] != 0.0 { active[l] / scale[l] } else { 0.0 };
        }
        // Only the gradient of the piece: it stays in the first cache.
        let gradient = &mut gradient[at..at + sub_block];
        for j in 0..sub_block {
            let row = &window.from(at + j, at)[..sub_block];
            let own = row[j];
            if own <= 0.0 {
                continue;
            }
            let (weights, errors) = (&group.weights[first + j], &mut group.errors[first + j]);
            let old_levels = &mut group.levels[first + j];
            let mut new = [0.0; ROWS];
            for l in 0..ROWS {
                new[l] = (weights[l] - errors[l] + gradient[j][l] / own + min[l]) * inverse[l];
            }
            round_to_levels(levels, &mut new);
            let (mut changes, mut any) = ([0.0; ROWS], false);
            for l in 0..ROWS {
                let error = weights[l] - (scale[l] * new[l] - min[l]);
                let change = error - errors[l];
                let moved = change * change * own;
                let effect = 2.0 * change * gradient[j][l] + moved;
                let accepted = (effect < -LEAST_GAIN * moved) & (inverse[l] != 0.0);
                changes[l] = if accepted { change } else { 0.0 };
                gains[l] -= if accepted { f64::from(effect) } else { 0.0 };
                errors[l] = if accepted { error } else { errors[l] };
                old_levels[l] = if accepted { new[l] } else { old_levels[l] };
                any |= accepted;
            }
            if any {
                all_changes[j] = changes;
                for (gradient, factor) in gradient.iter_mut().zip(row) {
                    for l in 0..ROWS {
                        gradient[l] += factor * changes[l];
                    }
                }
            }
        }
    }
}
