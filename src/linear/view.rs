//! Matrices in memory, in any orientation, and their products.

use rayon::prelude::*;

use super::product::{Column, ROWS, add_products};
use crate::lanes::Level;

/// A matrix in memory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A matrix whose rows lie one after the other.
    ///
    /// # Panics
    /// If `data` is not whole rows of `columns` numbers.
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        Self::strided(data, data.len() / columns.max(1), columns, columns)
    }

    /// A matrix of `rows` rows of `columns` numbers, which begin `stride` numbers apart.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(rows == 0 || columns <= stride && data.len() >= (rows - 1) * stride + columns);
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The same numbers with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }

    /// Up to [`ROWS`] columns from `first` on, a [`Column`] for each row; with zeros where there are fewer.
    fn slab(&self, first: usize) -> Vec<Column> {
        let n = ROWS.min(self.columns - first);
        let mut slab = vec![[0.0; ROWS]; self.rows];
        if self.column_stride == 1 {
            for (row, to) in slab.iter_mut().enumerate() {
                to[..n].copy_from_slice(&self.data[row * self.row_stride + first..][..n]);
            }
        } else {
            // By tiles, so that what is read stays in a cache.
            for start in (0..self.rows).step_by(64) {
                for l in 0..n {
                    for row in start..self.rows.min(start + 64) {
                        slab[row][l] = self.at(row, first + l);
                    }
                }
            }
        }
        slab
    }
}

/// Products with at least this many multiplications are computed by all threads.
const WORTH_THREADS: usize = 1 << 18;

/// Adds a · b to `c`, whose rows lie one after the other. Works on the threads of the current rayon pool.
///
/// # Panics
/// If the sizes do not fit together.
pub fn add_product(a: View<'_>, b: View<'_>, c: &mut [f32]) {
    assert_eq!(a.columns, b.rows, "columns of the left matrix, and rows of the right one");
    assert_eq!(c.len(), a.rows * b.columns, "the size of the product");
    if c.is_empty() || a.columns == 0 {
        return;
    }
    // The kernel reads the rows of a.
    let turned: Vec<f32>;
    let a = if a.column_stride == 1 {
        a
    } else {
        turned = (0..a.rows).flat_map(|row| (0..a.columns).map(move |column| a.at(row, column))).collect();
        View::new(&turned, a.columns)
    };
    let level = Level::best();
    let product = |first: usize| {
        let mut out = vec![[0.0; ROWS]; a.rows];
        add_products(level, &b.slab(first), a.data, a.row_stride, &mut out);
        out
    };
    let firsts: Vec<usize> = (0..b.columns).step_by(ROWS).collect();
    if a.rows * a.columns * b.columns < WORTH_THREADS {
        for first in firsts {
            add_slab(&product(first), first, b.columns, c);
        }
        return;
    }
    // A few at a time: they take as much memory as the product.
    for firsts in firsts.chunks(64) {
        let slabs: Vec<_> = firsts.par_iter().map(|first| product(*first)).collect();
        for (first, slab) in firsts.iter().zip(&slabs) {
            add_slab(slab, *first, b.columns, c);
        }
    }
}

fn add_slab(slab: &[Column], first: usize, columns: usize, c: &mut [f32]) {
    for (row, sums) in c.chunks_exact_mut(columns).zip(slab) {
        row[first..].iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::base::random::Random::new(seed);
        (0..n).map(|_| random.unit() as f32 * 2.0 - 1.0).collect()
    }

    /// Sizes on both sides of a slab, of a tile, and of what is worth threads.
    const SIZES: [(usize, usize, usize); 6] =
        [(1, 1, 1), (3, 5, 33), (32, 128, 32), (70, 129, 65), (100, 100, 100), (5, 0, 4)];

    #[test]
    fn products_are_those_of_a_loop_in_every_orientation() {
        for (m, k, n) in SIZES {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let a_turned: Vec<f32> =
                (0..k).flat_map(|j| (0..m).map(move |i| (i, j))).map(|(i, j)| a[i * k + j]).collect();
            let b_turned: Vec<f32> =
                (0..n).flat_map(|j| (0..k).map(move |i| (i, j))).map(|(i, j)| b[i * n + j]).collect();
            let left = [View::strided(&a, m, k, k), View::strided(&a_turned, k, m, m).transposed()];
            let right = [View::strided(&b, k, n, n), View::strided(&b_turned, n, k, k).transposed()];
            let mut all = Vec::new();
            for (a, b) in left.into_iter().flat_map(|a| right.map(|b| (a, b))) {
                let mut c = vec![0.5; m * n];
                add_product(a, b, &mut c);
                all.push(c);
            }
            for i in 0..m {
                for j in 0..n {
                    let wanted = 0.5 + (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
                    assert!((f64::from(all[0][i * n + j]) - wanted).abs() < 1e-4, "{m} {k} {n}");
                }
            }
            assert!(all.iter().all(|c| *c == all[0]), "the orientation changes bits: {m} {k} {n}");
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (a, b) = (numbers(200 * 150, 3), numbers(150 * 100, 4));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![0.0; 200 * 100];
            pool.install(|| add_product(View::new(&a, 150), View::new(&b, 100), &mut c));
            c
        };
        assert!(with(1) == with(2) && with(1) == with(3));
    }

    #[test]
    #[should_panic(expected = "columns of the left matrix")]
    fn sizes_have_to_fit() {
        add_product(View::new(&[0.0; 6], 2), View::new(&[0.0; 6], 2), &mut [0.0; 6]);
    }
}
