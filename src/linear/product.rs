//! Products of a group of rows with a matrix: where nearly all of the time goes.
//!
//! A group is [`ROWS`] rows, transposed: a [`Column`] holds one column of all of them. Each lane of a vector is a row and
//! has its own sums, in the order of the columns. So the sums do not depend on the instructions of the CPU, on the number of
//! threads, or on what the other rows of the group are.

use crate::lanes::Level;
use crate::lanes::{Body, Floats, Lanes};

/// Rows in a group.
pub const ROWS: usize = 32;

/// A number for each row of a group.
pub type Column = [f32; ROWS];

/// Terms that are summed before they are added to what there is. A tile of columns stays in the first cache.
pub(super) const TILE: usize = 128;

/// Adds to column j of `out` `Σ left[k] · right[j · stride + k]`, over all columns k of `left`.
///
/// Sums have single precision: first over 128 terms each, where a product is rounded only together with the sum that it is
/// added to, then over those sums.
///
/// # Panics
/// If `right` is too short.
pub fn add_products(level: Level, left: &[Column], right: &[f32], stride: usize, out: &mut [Column]) {
    add_products_to(
        level,
        left,
        right,
        stride,
        out,
        #[inline(always)]
        |column| column,
    );
}

/// [`add_products`] with the columns of the result anywhere: `column` finds each.
pub(super) fn add_products_to<T>(
    level: Level,
    left: &[Column],
    right: &[f32],
    stride: usize,
    out: &mut [T],
    column: impl Fn(&mut T) -> &mut Column,
) {
    if left.is_empty() || out.is_empty() {
        return;
    }
    assert!(right.len() >= (out.len() - 1) * stride + left.len());
    level.run(Products { left, right, stride, out, column });
}

/// [`add_products_to`], for [`Level::run`].
struct Products<'a, T, F> {
    left: &'a [Column],
    right: &'a [f32],
    stride: usize,
    out: &'a mut [T],
    column: F,
}

impl<T, F: Fn(&mut T) -> &mut Column> Body for Products<'_, T, F> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let (left, right) = (self.left, self.right);
        for (tile, left) in left.chunks(TILE).enumerate() {
            (self.left, self.right) = (left, &right[tile * TILE..]);
            let mut done = 0;
            // As many sums as the registers hold besides a vector of the left matrix and one of a number of the right one.
            // Each number that is loaded is used for several, and none waits for another.
            if L::REGISTERS >= 16 {
                done = self.add_groups::<L, 8>(l, done);
            }
            done = self.add_groups::<L, 6>(l, done);
            done = self.add_groups::<L, 3>(l, done);
            self.add_groups::<L, 1>(l, done);
        }
    }
}

impl<T, F: Fn(&mut T) -> &mut Column> Products<'_, T, F> {
    /// Computes columns from `done` on, `N` at a time as long as there are so many. Returns the first that is left.
    #[inline(always)]
    fn add_groups<L: Lanes, const N: usize>(&mut self, l: L, done: usize) -> usize {
        let Self { left, right, stride, .. } = *self;
        let (groups, _) = self.out[done..].as_chunks_mut::<N>();
        let n = groups.len();
        for (group, out) in groups.iter_mut().enumerate() {
            let rows = std::array::from_fn(
                #[inline(always)]
                |j| &right[(done + group * N + j) * stride..][..left.len()],
            );
            add_some(l, left, rows, out.each_mut().map(&self.column));
        }
        done + n * N
    }
}

#[inline(always)]
fn add_some<L: Lanes, const N: usize>(l: L, left: &[Column], rows: [&[f32]; N], out: [&mut Column; N]) {
    for at in (0..ROWS).step_by(L::LEN) {
        let mut sums = [l.splat(0.0); N];
        for k in 0..left.len() {
            let x = l.load(&left[k][at..]);
            for j in 0..N {
                sums[j] = x.mul_add(l.splat(rows[j][k]), sums[j]);
            }
        }
        for j in 0..N {
            let sum = l.load(&out[j][at..]) + sums[j];
            l.store(sum, &mut out[j][at..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::Random;

    fn number(random: &mut Random) -> f32 {
        random.unit() as f32 * 4.0 - 2.0
    }

    /// The definition.
    fn sum(start: f32, n: usize, left: impl Fn(usize) -> f32, right: impl Fn(usize) -> f32) -> f32 {
        (0..n).step_by(TILE).fold(start, |sum, from| {
            let to = n.min(from + TILE);
            sum + (from..to).fold(0.0, |sum, k| left(k).mul_add(right(k), sum))
        })
    }

    #[test]
    fn products_are_those_of_a_loop_at_every_level() {
        let mut random = Random::new(1);
        // On both sides of a tile, and all that groups of columns leave over.
        let columns = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17, 26, 31];
        let sizes = columns.into_iter().flat_map(|m| [1, 2, 127, 128, 129, 256, 300].map(|n| (n, m)));
        for (n, m) in sizes {
            let left: Vec<Column> = (0..n).map(|_| std::array::from_fn(|_| number(&mut random))).collect();
            let stride = n + 3;
            let right: Vec<f32> = (0..(m - 1) * stride + n).map(|_| number(&mut random)).collect();
            let mut wanted = vec![[1.0; ROWS]; m];
            for j in 0..m {
                for row in 0..ROWS {
                    let (left, right) = (|k: usize| left[k][row], |k: usize| right[j * stride + k]);
                    wanted[j][row] = sum(1.0, n, left, right);
                    let exact = 1.0 + (0..n).map(|k| f64::from(left(k)) * f64::from(right(k))).sum::<f64>();
                    assert!((f64::from(wanted[j][row]) - exact).abs() < 1e-4);
                }
            }
            for level in Level::available().filter(|&level| level != Level::Scalar) {
                let mut out = vec![[1.0; ROWS]; m];
                add_products(level, &left, &right, stride, &mut out);
                assert!(out == wanted, "{level:?}: {n} terms, {m} columns");
            }
        }
    }

    #[test]
    fn it_does_not_matter_how_columns_are_divided() {
        let mut random = Random::new(2);
        let (n, m) = (150, 29);
        let left: Vec<Column> = (0..n).map(|_| std::array::from_fn(|_| number(&mut random))).collect();
        let right: Vec<f32> = (0..m * n).map(|_| number(&mut random)).collect();
        let mut whole = vec![[0.5; ROWS]; m];
        add_products(Level::best(), &left, &right, n, &mut whole);
        for width in 1..m {
            let mut parts = vec![[0.5; ROWS]; m];
            for (part, out) in parts.chunks_mut(width).enumerate() {
                add_products(Level::best(), &left, &right[part * width * n..], n, out);
            }
            assert!(parts == whole, "{width} at a time");
        }
    }
}
