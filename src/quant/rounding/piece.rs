//! Rounding a piece of each row of a group, a sub-block of 16 or 32 weights, and the search for the scales that are best for
//! it.
//!
//! A piece sees the rest of its row as a target for each of its weights. It is rounded from left to right, each weight
//! with the errors of those before it:
//!
//! ```text
//!  r[j] = target[j] + Σ_{k<j} n[j][k] · (w[k] − ŵ[k]) − ŵ[j]         cost = Σ p[j] r[j]²        ŵ = scale · level − min
//! ```
//!
//! With the levels held, r is linear in scale and min, and the best of both follow from least squares (Σ p …):
//!
//! ```text
//!  r = b − scale · u + min · v       b[j] = target[j] + Σ_{k<j} n[j][k] w[k]     u[j] = Σ_{k≤j} n[j][k] level[k]     v[j] = Σ_{k≤j} n[j][k]
//! ```
//!
//! The search rounds with many scales, takes for each the best ones for the levels that come out, and rounds again. It
//! compares what really comes out: also what weights lose that lie outside the range after they took over the errors of
//! others, which a fit of scales before the rounding cannot know. Scales that differ by a few hundredths round other weights up,
//! and among many there is one that suits a piece: 27 scales instead of 4 leave 5 to 10 % less error.

use super::factor::SmallFactor;
use super::rescale::Grid;
use super::table::VALUES;
use super::{Levels, Whole};
use crate::lanes::Level;
use crate::lanes::{Body, Lanes};
use crate::linear::{Column, ROWS};
use crate::quant::Half;
use crate::quant::search::numbers::nearest;

/// The most weights in a piece.
pub const MAX: usize = 32;

/// Mins that are tried with each scale, in units of the scale. They move weights by less than a level, and so change which
/// way they are rounded. The last one is that from which least squares go on.
const SHIFTS: [f32; 3] = [-0.33, 0.33, 0.0];

/// A piece of each row.
pub struct Piece<'a> {
    /// How its weights are stored.
    pub grid: &'a Grid,
    /// n and p.
    pub factor: &'a SmallFactor,
    /// The weights.
    pub weights: &'a [Column],
    /// What each weight would best become, were it alone.
    pub target: &'a [Column],
}

/// A piece, rounded.
#[derive(Clone)]
pub struct Rounded {
    /// The level of each weight.
    pub levels: [Column; MAX],
    /// w − ŵ.
    pub errors: [Column; MAX],
    /// Σ p r².
    pub cost: Column,
}

impl Rounded {
    pub const fn new() -> Self {
        Self { levels: [[0.0; ROWS]; MAX], errors: [[0.0; ROWS]; MAX], cost: [0.0; ROWS] }
    }
}

/// The scale and the min of a piece, as they are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PieceScales {
    pub d: Column,
    pub dmin: Column,
    /// In units of d.
    pub factor: Column,
    /// In units of dmin.
    pub min_factor: Column,
}

impl PieceScales {
    /// Scale and min of each row: the same bits that decoding gives.
    #[inline(always)]
    pub fn steps(&self) -> (Column, Column) {
        let (mut scale, mut min) = ([0.0; ROWS], [0.0; ROWS]);
        for l in 0..ROWS {
            scale[l] = self.d[l] * self.factor[l];
            min[l] = self.dmin[l] * self.min_factor[l];
        }
        (scale, min)
    }
}

/// What least squares need of the weights: the letters of the module's equation.
struct Sums {
    b: [Column; MAX],
    v: [f32; MAX],
    /// Σ p v v
    vv: f32,
    /// Σ p b v
    bv: Column,
}

impl Piece<'_> {
    /// Searches scales from `scales` on, and rounds. `spreads` are scales to try, in units of the given ones; the middle of the
    /// range stays where it is. What comes out has at most the cost of `scales`.
    pub fn search(&self, level: Level, spreads: &[f32], scales: &mut PieceScales, rounded: &mut Rounded) {
        level.run(Search { piece: self, spreads, scales, rounded });
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.weights.len()
    }

    /// Rounds with given scales.
    #[inline(always)]
    fn round_with(&self, (scale, min): (&Column, &Column), rounded: &mut Rounded) {
        let n = self.len();
        let mut targets = [[0.0; ROWS]; MAX];
        targets[..n].copy_from_slice(self.target);
        let mut inverse = [0.0; ROWS];
        for l in 0..ROWS {
            inverse[l] = if scale[l] != 0.0 { 1.0 / scale[l] } else { 0.0 };
        }
        rounded.cost = [0.0; ROWS];
        for j in 0..n {
            let mut quotient = [0.0; ROWS];
            for l in 0..ROWS {
                quotient[l] = (targets[j][l] + min[l]) * inverse[l];
            }
            round_to_levels(self.grid.levels, &mut quotient);
            let pivot = self.factor.pivots[j];
            for l in 0..ROWS {
                let value = scale[l] * quotient[l] - min[l];
                rounded.levels[j][l] = quotient[l];
                rounded.errors[j][l] = self.weights[j][l] - value;
                let residue = targets[j][l] - value;
                rounded.cost[l] += pivot * residue * residue;
            }
            let errors = rounded.errors[j];
            for i in j + 1..n {
                let factor = self.factor.n[i][j];
                for l in 0..ROWS {
                    targets[i][l] += factor * errors[l];
                }
            }
        }
    }

    /// `Σ_{k≤j} n[j][k] x[k]` for each j.
    #[inline(always)]
    fn weighted_sums(&self, x: &[Column], sums: &mut [Column; MAX]) {
        for j in 0..self.len() {
            let mut sum = x[j];
            for k in 0..j {
                let factor = self.factor.n[j][k];
                for l in 0..ROWS {
                    sum[l] += factor * x[k][l];
                }
            }
            sums[j] = sum;
        }
    }

    #[inline(always)]
    fn search_from(&self, spreads: &[f32], best: &mut PieceScales, rounded: &mut Rounded) {
        let sums = self.sums();
        let start = *best;
        let (scale, min) = start.steps();
        self.round_with((&scale, &min), rounded);
        let mut least = rounded.cost;
        self.keep_better(&self.least_squares(&sums, &start, rounded), &mut least, best, rounded);
        let middle = middle(self.grid.levels);
        for spread in spreads {
            let wanted_scale = scale.map(|scale| scale * spread);
            let mut tried = start;
            self.store_scale(&wanted_scale, &mut tried);
            if self.grid.has_min() {
                for shift in SHIFTS {
                    let mut wanted_min = min;
                    for l in 0..ROWS {
                        wanted_min[l] += (wanted_scale[l] - scale[l]) * middle + shift * scale[l];
                    }
                    self.store_min(&wanted_min, &mut tried);
                    self.keep_better(&tried, &mut least, best, rounded);
                }
            } else {
                self.keep_better(&tried, &mut least, best, rounded);
            }
            // Of the last one that was tried, which is the one without a shift.
            self.keep_better(&self.least_squares(&sums, &start, rounded), &mut least, best, rounded);
        }
        let (scale, min) = best.steps();
        self.round_with((&scale, &min), rounded);
    }

    /// What least squares need of the weights.
    #[inline(always)]
    fn sums(&self) -> Sums {
        let n = self.len();
        let mut sums = Sums { b: [[0.0; ROWS]; MAX], v: [0.0; MAX], vv: 0.0, bv: [0.0; ROWS] };
        self.weighted_sums(self.weights, &mut sums.b);
        for j in 0..n {
            let pivot = self.factor.pivots[j];
            sums.v[j] = self.factor.n[j][..=j].iter().fold(0.0, |sum, n| sum + n);
            sums.vv += pivot * sums.v[j] * sums.v[j];
            for l in 0..ROWS {
                sums.b[j][l] += self.target[j][l] - self.weights[j][l];
                sums.bv[l] += pivot * sums.v[j] * sums.b[j][l];
            }
        }
        sums
    }

    /// The best scales for the levels of `rounded`, as far as they can be stored.
    #[inline(always)]
    fn least_squares(&self, sums: &Sums, start: &PieceScales, rounded: &Rounded) -> PieceScales {
        let n = self.len();
        let Sums { b, v, vv, bv } = sums;
        let mut u = [[0.0; ROWS]; MAX];
        self.weighted_sums(&rounded.levels[..n], &mut u);
        let (mut uu, mut uv, mut bu) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
        for j in 0..n {
            let pivot = self.factor.pivots[j];
            for l in 0..ROWS {
                let pu = pivot * u[j][l];
                uu[l] += pu * u[j][l];
                uv[l] += pu * v[j];
                bu[l] += pu * b[j][l];
            }
        }
        let (mut wanted, _) = start.steps();
        let mut found = *start;
        if self.grid.has_min() {
            for l in 0..ROWS {
                let determinant = uu[l] * vv - uv[l] * uv[l];
                let best = (bu[l] * vv - uv[l] * bv[l]) / determinant;
                // Where all levels are the same, scale and min cannot be told apart.
                wanted[l] = if determinant > 1e-5 * uu[l] * vv { best } else { wanted[l] };
            }
            self.store_scale(&wanted, &mut found);
            // The best min for the scale as it can be stored.
            let (stored, _) = found.steps();
            for l in 0..ROWS {
                wanted[l] = (stored[l] * uv[l] - bv[l]) / vv;
            }
            self.store_min(&wanted, &mut found);
        } else {
            for l in 0..ROWS {
                wanted[l] = if uu[l] > 0.0 { bu[l] / uu[l] } else { wanted[l] };
            }
            self.store_scale(&wanted, &mut found);
        }
        found
    }

    /// Rounds with `tried`, and takes over those scales that cost less.
    #[inline(always)]
    fn keep_better(&self, tried: &PieceScales, least: &mut Column, best: &mut PieceScales, rounded: &mut Rounded) {
        let (scale, min) = tried.steps();
        self.round_with((&scale, &min), rounded);
        for l in 0..ROWS {
            let better = rounded.cost[l] < least[l];
            least[l] = if better { rounded.cost[l] } else { least[l] };
            best.d[l] = if better { tried.d[l] } else { best.d[l] };
            best.dmin[l] = if better { tried.dmin[l] } else { best.dmin[l] };
            best.factor[l] = if better { tried.factor[l] } else { best.factor[l] };
            best.min_factor[l] = if better { tried.min_factor[l] } else { best.min_factor[l] };
        }
    }

    /// Stores a scale as far as the format allows: as factor where there are factors, else as d.
    #[inline(always)]
    fn store_scale(&self, wanted: &Column, scales: &mut PieceScales) {
        match self.grid.has_factors() {
            true => store_factor(self.grid.factors, wanted, &scales.d, &mut scales.factor),
            false => store_half(wanted, 1.0, &mut scales.d),
        }
    }

    /// The same for a min.
    #[inline(always)]
    fn store_min(&self, wanted: &Column, scales: &mut PieceScales) {
        match self.grid.min_factors {
            [0, 0] => {}
            [smallest, largest] if smallest < largest => {
                store_factor([smallest, largest], wanted, &scales.dmin, &mut scales.min_factor);
            }
            [only, _] => store_half(wanted, f32::from(only), &mut scales.dmin),
        }
    }
}

#[inline(always)]
fn store_factor([smallest, largest]: [i16; 2], wanted: &Column, unit: &Column, factors: &mut Column) {
    let (smallest, largest) = (f32::from(smallest), f32::from(largest));
    for l in 0..ROWS {
        let factor = at_most(at_least(wanted[l] / unit[l], smallest), largest);
        factors[l] = if unit[l] != 0.0 { whole(factor) } else { factors[l] };
    }
}

#[inline(always)]
fn store_half(wanted: &Column, sign: f32, unit: &mut Column) {
    for l in 0..ROWS {
        let half = Half::new(wanted[l] * sign).value();
        // A half that is infinite or no number is no scale.
        unit[l] = if half.abs() < f32::INFINITY { half } else { unit[l] };
    }
}

/// `x`, or `least` if that is more or x is no number.
#[inline(always)]
fn at_least(x: f32, least: f32) -> f32 {
    if x > least { x } else { least }
}

#[inline(always)]
fn at_most(x: f32, most: f32) -> f32 {
    if x < most { x } else { most }
}

/// The nearest whole number, for what is far below 2^22.
#[inline(always)]
fn whole(x: f32) -> f32 {
    // The last bit of 1.5 · 2^23 is worth one, so the addition rounds.
    const ONE_AND_A_HALF_TIMES_2_TO_THE_23: f32 = 12_582_912.0;
    (x + ONE_AND_A_HALF_TIMES_2_TO_THE_23) - ONE_AND_A_HALF_TIMES_2_TO_THE_23
}

/// Replaces numbers by the nearest levels.
#[inline(always)]
pub fn round_to_levels(levels: Levels, x: &mut Column) {
    match levels {
        Levels::Whole(Whole { smallest, largest }) => {
            let (smallest, largest) = (smallest as f32, largest as f32);
            for l in 0..ROWS {
                x[l] = whole(at_most(at_least(x[l], smallest), largest));
            }
        }
        Levels::Table => {
            let mut level = [f32::from(VALUES[0]); ROWS];
            for i in 1..16 {
                let (value, midpoint) = (f32::from(VALUES[i]), (f32::from(VALUES[i - 1]) + f32::from(VALUES[i])) / 2.0);
                for l in 0..ROWS {
                    level[l] = if x[l] >= midpoint { value } else { level[l] };
                }
            }
            *x = level;
        }
    }
}

/// The level in the middle of the range.
fn middle(levels: Levels) -> f32 {
    match levels {
        Levels::Whole(Whole { smallest, largest }) => (smallest + largest) as f32 / 2.0,
        Levels::Table => 0.0,
    }
}

/// The code of a level.
pub fn code_of(levels: Levels, level: f32) -> u8 {
    match levels {
        Levels::Whole(whole) => (nearest(level) - whole.smallest) as u8,
        Levels::Table => super::table::nearest_code(level),
    }
}

/// The level of a code.
pub fn level_of(levels: Levels, code: u8) -> f32 {
    match levels {
        Levels::Whole(whole) => whole.level(code),
        Levels::Table => f32::from(VALUES[usize::from(code & 15)]),
    }
}

/// [`Piece::search`], for [`Level::run`]: the loops over rows are compiled with the instructions of a level.
struct Search<'a> {
    piece: &'a Piece<'a>,
    spreads: &'a [f32],
    scales: &'a mut PieceScales,
    rounded: &'a mut Rounded,
}

impl Body for Search<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        self.piece.search_from(self.spreads, self.scales, self.rounded);
    }
}
