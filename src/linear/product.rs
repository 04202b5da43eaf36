//! Products of a group of rows with a matrix: where nearly all of the time goes.
//!
//! A group is [`ROWS`] rows, transposed: a [`Column`] holds one column of all of them. Each lane of a vector is a row and
//! has its own sums, in the order of the columns. So the sums do not depend on the instructions of the CPU, on the number of
//! threads, or on what the other rows of the group are.

use crate::lanes::Level;
use crate::lanes::{Body, Lanes};

/// Rows in a group.
pub const ROWS: usize = 32;

/// A number for each row of a group.
pub type Column = [f32; ROWS];

/// Terms that are summed before they are added to what there is. A tile of columns stays in the first cache.
const TILE: usize = 128;

/// Adds to column j of `out` `Σ left[k] · right[j · stride + k]`, over all columns k of `left`.
///
/// Sums have single precision: first over 128 terms each, then over those sums.
///
/// # Panics
/// If `right` is too short.
pub fn add_products(level: Level, left: &[Column], right: &[f32], stride: usize, out: &mut [Column]) {
    if left.is_empty() || out.is_empty() {
        return;
    }
    assert!(right.len() >= (out.len() - 1) * stride + left.len());
    level.run(Products { left, right, stride, out });
}

/// [`add_products`], for [`Level::run`].
struct Products<'a> {
    left: &'a [Column],
    right: &'a [f32],
    stride: usize,
    out: &'a mut [Column],
}

impl Body for Products<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { left, right, stride, out } = self;
        for (tile, left) in left.chunks(TILE).enumerate() {
            let right = &right[tile * TILE..];
            let row = |j: usize| &right[j * stride..][..left.len()];
            let (fours, _) = out.as_chunks_mut::<4>();
            for (four, out) in fours.iter_mut().enumerate() {
                let rows = [row(4 * four), row(4 * four + 1), row(4 * four + 2), row(4 * four + 3)];
                add_some(l, left, rows, out);
            }
            for j in out.len() / 4 * 4..out.len() {
                add_some(l, left, [row(j)], (&mut out[j..=j]).try_into().expect("one column"));
            }
        }
    }
}

/// Four sums at a time use what a vector unit has, without waiting for one another, and fit into its registers.
#[inline(always)]
fn add_some<L: Lanes, const N: usize>(l: L, left: &[Column], rows: [&[f32]; N], out: &mut [Column; N]) {
    for at in (0..ROWS).step_by(L::LEN) {
        let mut sums = [l.splat(0.0); N];
        for k in 0..left.len() {
            let x = l.load(&left[k][at..]);
            for j in 0..N {
                sums[j] = sums[j] + x * l.splat(rows[j][k]);
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

    #[test]
    fn products_are_those_of_a_loop_at_every_level() {
        let mut random = Random::new(1);
        for (n, m) in [(1, 1), (3, 5), (128, 4), (300, 7)] {
            let left: Vec<Column> = (0..n).map(|_| std::array::from_fn(|_| number(&mut random))).collect();
            let stride = n + 3;
            let right: Vec<f32> = (0..m * stride).map(|_| number(&mut random)).collect();
            let mut of_levels: Vec<Vec<Column>> = Vec::new();
            for level in Level::available().filter(|&level| level != Level::Scalar) {
                let mut out = vec![[1.0; ROWS]; m];
                add_products(level, &left, &right, stride, &mut out);
                for j in 0..m {
                    for row in 0..ROWS {
                        let term = |k: usize| f64::from(left[k][row]) * f64::from(right[j * stride + k]);
                        let wanted = 1.0 + (0..n).map(term).sum::<f64>();
                        assert!((f64::from(out[j][row]) - wanted).abs() < 1e-4, "{level:?}");
                    }
                }
                of_levels.push(out);
            }
            assert!(of_levels.iter().all(|out| *out == of_levels[0]));
        }
    }
}
