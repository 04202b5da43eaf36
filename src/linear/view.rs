//! Matrices in memory, in any orientation, and their products.

use rayon::prelude::*;

use super::product::{ROWS, TILE, add_products, add_products_to};
use super::transpose::transpose;
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

    /// Copies `rows` × `columns` numbers, from a row and a column on, to rows that begin `stride` numbers apart.
    fn copy(
        &self,
        level: Level,
        (row, column): (usize, usize),
        (rows, columns): (usize, usize),
        to: &mut [f32],
        stride: usize,
    ) {
        let from = &self.data[row * self.row_stride + column * self.column_stride..];
        if self.column_stride == 1 {
            for i in 0..rows {
                let (to, from) = (&mut to[i * stride..], &from[i * self.row_stride..]);
                // A length that the compiler knows takes no call.
                match (to.first_chunk_mut::<ROWS>(), from.first_chunk::<ROWS>()) {
                    (Some(to), Some(from)) if columns == ROWS => *to = *from,
                    _ => to[..columns].copy_from_slice(&from[..columns]),
                }
            }
        } else {
            transpose(level, (from, self.column_stride), (columns, rows), (to, stride));
        }
    }
}

/// Products with at least this many multiplications are computed by all threads.
const WORTH_THREADS: usize = 1 << 20;

/// Rows of a block of the product, at most. A tile of as many rows of the left matrix stays in the second cache.
const BLOCK_ROWS: usize = 264;

/// Columns of a block of the product, at most.
const BLOCK_COLUMNS: usize = 8 * ROWS;

/// Adds a · b to `c`, whose rows lie one after the other. Works on the threads of the current rayon pool.
///
/// Sums have single precision, and are added to `c` after 128 terms each, as in [`add_products`]. The orientation of the
/// matrices and the number of threads do not change them.
///
/// # Panics
/// If the sizes do not fit together.
pub fn add_product(a: View<'_>, b: View<'_>, c: &mut [f32]) {
    assert_eq!(a.columns, b.rows, "columns of the left matrix, and rows of the right one");
    assert_eq!(c.len(), a.rows * b.columns, "the size of the product");
    if c.is_empty() || a.columns == 0 {
        return;
    }
    let level = Level::best();
    if a.rows * a.columns * b.columns < WORTH_THREADS {
        let (height, width) = block_size(a.rows, b.columns, 1);
        blocks(c, b.columns, height, width).into_iter().for_each(|block| block.add(level, a, b));
        return;
    }
    // Several for each thread, so that none waits long for the last.
    let (height, width) = block_size(a.rows, b.columns, 3 * rayon::current_num_threads());
    blocks(c, b.columns, height, width).into_par_iter().with_max_len(1).for_each(|block| block.add(level, a, b));
}

/// Returns rows and columns of the blocks into which a product is divided: at least so many, if it is large enough.
fn block_size(rows: usize, columns: usize, wanted: usize) -> (usize, usize) {
    // Equal parts, of which all but the last have a number of rows that the kernel likes.
    let part = |of: usize, most: usize, multiple: usize| of.div_ceil(of.div_ceil(most)).next_multiple_of(multiple);
    let (mut most_rows, mut most_columns) = (BLOCK_ROWS, BLOCK_COLUMNS);
    loop {
        let (height, width) = (part(rows, most_rows, 24), part(columns, most_columns, ROWS));
        if rows.div_ceil(height) * columns.div_ceil(width) >= wanted || most_columns <= 2 * ROWS {
            return (height, width);
        }
        // The smaller they are, the more often the same numbers are copied.
        if height > width {
            most_rows /= 2;
        } else {
            most_columns /= 2;
        }
    }
}

/// A part of a product.
struct Block<'c> {
    row: usize,
    column: usize,
    /// The part of each row.
    rows: Vec<&'c mut [f32]>,
}

/// Divides a matrix of some columns into blocks of at most `height` × `width`.
fn blocks(c: &mut [f32], columns: usize, height: usize, width: usize) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    for (i, rows) in c.chunks_mut(height * columns).enumerate() {
        let first = blocks.len();
        let n_rows = rows.len() / columns;
        let starts = (0..columns).step_by(width);
        blocks.extend(starts.map(|column| Block { row: i * height, column, rows: Vec::with_capacity(n_rows) }));
        for row in rows.chunks_mut(columns) {
            for (block, part) in blocks[first..].iter_mut().zip(row.chunks_mut(width)) {
                block.rows.push(part);
            }
        }
    }
    blocks
}

impl Block<'_> {
    /// Adds its part of a · b.
    fn add(mut self, level: Level, a: View<'_>, b: View<'_>) {
        let (height, width) = (self.rows.len(), self.rows[0].len());
        let terms = a.columns.min(TILE);
        // Copies: where rows lie far apart, they drive one another out of the caches.
        let mut of_a = vec![0.0; height * terms];
        let mut of_b = vec![[0.0; ROWS]; terms];
        for start in (0..a.columns).step_by(TILE) {
            let n = terms.min(a.columns - start);
            a.copy(level, (self.row, start), (height, n), &mut of_a, n);
            let of_b = &mut of_b[..n];
            for first in (0..width).step_by(ROWS) {
                let columns = ROWS.min(width - first);
                b.copy(level, (start, self.column + first), (n, columns), of_b.as_flattened_mut(), ROWS);
                if columns == ROWS {
                    add_products_to(
                        level,
                        of_b,
                        &of_a,
                        n,
                        &mut self.rows,
                        #[inline(always)]
                        |row| row[first..].first_chunk_mut().expect("a whole group of columns"),
                    );
                } else {
                    // What is in the other lanes does not matter.
                    let mut sums = vec![[0.0; ROWS]; height];
                    for (sums, row) in sums.iter_mut().zip(&self.rows) {
                        sums[..columns].copy_from_slice(&row[first..]);
                    }
                    add_products(level, of_b, &of_a, n, &mut sums);
                    for (sums, row) in sums.iter().zip(&mut self.rows) {
                        row[first..].copy_from_slice(&sums[..columns]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::base::random::Random::new(seed);
        (0..n).map(|_| random.unit() as f32 * 2.0 - 1.0).collect()
    }

    /// Sizes on both sides of a group of columns, of a tile, of what is worth threads, and of a block.
    const SIZES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (3, 5, 33),
        (32, 128, 32),
        (70, 129, 65),
        (90, 130, 90),
        (100, 300, 100),
        (BLOCK_ROWS + 27, 140, BLOCK_COLUMNS + 37),
        (5, 0, 4),
    ];

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
                    let term = |l: usize| (a[i * k + l], b[l * n + j]);
                    let exact = 0.5 + (0..k).map(term).map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>();
                    assert!((f64::from(all[0][i * n + j]) - exact).abs() < 1e-4, "{m} {k} {n}");
                    // The same bits as the definition.
                    let wanted = (0..k).step_by(TILE).fold(0.5, |sum, from| {
                        let terms = (from..k.min(from + TILE)).map(term);
                        sum + terms.fold(0.0f32, |sum, (a, b)| a.mul_add(b, sum))
                    });
                    assert_eq!(all[0][i * n + j], wanted, "{m} {k} {n}: {i} {j}");
                }
            }
            assert!(all.iter().all(|c| *c == all[0]), "the orientation changes bits: {m} {k} {n}");
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (m, k, n) = (400, 150, 300);
        let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![0.0; m * n];
            pool.install(|| add_product(View::new(&a, k), View::new(&b, n), &mut c));
            c
        };
        assert!(block_size(m, n, 3) != block_size(m, n, 9), "the threads have other blocks");
        assert!(with(1) == with(2) && with(1) == with(3));
    }

    #[test]
    fn parts_of_matrices_are_multiplied() {
        let (m, k, n, stride) = (9, 20, 40, 50);
        let (a, b) = (numbers(m * stride, 5), numbers(k * stride, 6));
        let part =
            |x: &[f32], columns: usize| x.chunks(stride).flat_map(|row| row[..columns].to_vec()).collect::<Vec<_>>();
        let (mut of_parts, mut of_copies) = (vec![0.0; m * n], vec![0.0; m * n]);
        let (short, short_b) = (&a[..(m - 1) * stride + k], &b[..(k - 1) * stride + n]);
        add_product(View::strided(short, m, k, stride), View::strided(short_b, k, n, stride), &mut of_parts);
        add_product(View::new(&part(&a, k), k), View::new(&part(&b, n), n), &mut of_copies);
        assert_eq!(of_parts, of_copies);
    }

    #[test]
    fn every_part_of_a_product_is_in_one_block() {
        for (m, n) in [(1, 1), (24, 32), (25, 33), (512, 1024), (265, 257)] {
            for wanted in [1, 6, 48] {
                let (height, width) = block_size(m, n, wanted);
                assert!(height <= BLOCK_ROWS && width <= BLOCK_COLUMNS);
                let mut c = vec![0.0; m * n];
                for block in blocks(&mut c, n, height, width) {
                    for (i, row) in block.rows.into_iter().enumerate() {
                        for (j, c) in row.iter_mut().enumerate() {
                            *c += ((block.row + i) * n + block.column + j) as f32;
                        }
                    }
                }
                assert!(c.iter().enumerate().all(|(at, c)| at as f32 == *c), "{m} {n} {wanted}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "columns of the left matrix")]
    fn sizes_have_to_fit() {
        add_product(View::new(&[0.0; 6], 2), View::new(&[0.0; 6], 2), &mut [0.0; 6]);
    }
}
