//! What the formats of 32 weights share by lanes: Q4_0 and Q5_0, Q4_1 and Q5_1, Q8_0, and for their codes IQ4.
//!
//! A number for each block (its scale, its smallest weight, what a search finds) is computed a block a lane. The codes are
//! then computed a weight a lane, since they depend on those numbers alone, and leave the vector where they have to go.

use super::batch::{AffineBatch, SmallBatch, weigh};
use super::lanes::{Lanes, MAX_LANES};
use super::search::{Affine, AffineSearch, fit_affine, importance_weights, sum_of_squares};
use super::{Half, Rows, search_lanes};

/// Of each weight of a block what `code` makes of it, without its fraction, as
/// [`truncate_to_byte`](super::search::truncate_to_byte).
#[inline(always)]
pub(super) fn truncated<L: Lanes>(l: L, x: &[f32; 32], code: impl Fn(L::Floats) -> L::Floats) -> [u8; 32] {
    const { assert!(32 % L::LEN == 0) };
    let (mut numbers, mut codes) = ([0; 32], [0; 32]);
    for at in (0..32).step_by(L::LEN) {
        l.truncate(code(l.load(&x[at..])), &mut numbers[at..]);
    }
    // Loops here and where codes are packed: the compiler may leave an array's map a function, without the instructions
    // of the level.
    for i in 0..32 {
        codes[i] = numbers[i] as u8;
    }
    codes
}

/// The codes, as numbers from -128 to 127, but none above `max`.
#[inline(always)]
fn limited(codes: &[u8; 32], max: i8) -> [u8; 32] {
    let mut limited = [0; 32];
    for i in 0..32 {
        limited[i] = (codes[i] as i8).min(max) as u8;
    }
    limited
}

/// Each lane's number.
#[inline(always)]
pub(super) fn stored<L: Lanes>(l: L, floats: L::Floats) -> [f32; MAX_LANES] {
    let mut numbers = [0.0; MAX_LANES];
    l.store(floats, &mut numbers);
    numbers
}

/// The half nearest to each lane's number.
#[inline(always)]
pub(super) fn halves<L: Lanes>(l: L, floats: L::Floats) -> [Half; MAX_LANES] {
    let numbers = stored(l, floats);
    let mut halves = [Half::new(0.0); MAX_LANES];
    for lane in 0..L::LEN {
        halves[lane] = Half::new(numbers[lane]);
    }
    halves
}

/// x ≈ d·(q − `half`): `put` gets the number, d and q of each block of some rows.
///
/// Without importance the weight of largest magnitude gets q = 0 and decides d, with it d is searched.
#[inline(always)]
pub(super) fn symmetric_rows<L: Lanes>(l: L, half: i32, rows: Rows, put: impl FnMut(usize, Half, &[u8; 32])) {
    match rows.importance {
        None => plain_symmetric_rows(l, half, rows, put),
        Some(_) => searched_symmetric_rows(l, half, rows, put),
    }
}

#[inline(always)]
fn plain_symmetric_rows<L: Lanes>(l: L, half: i32, rows: Rows, mut put: impl FnMut(usize, Half, &[u8; 32])) {
    let size = half as f32;
    for batch in SmallBatch::of(l, rows) {
        let d = search_lanes::extreme(l, &batch.columns(l, 0)) / l.splat(-size);
        let inverses = stored(l, search_lanes::divide_or_zero(l, l.splat(1.0), d));
        let d = halves(l, d);
        for (b, x) in batch.blocks.iter().enumerate() {
            let (inverse, middle) = (l.splat(inverses[b]), l.splat(size + 0.5));
            let codes = truncated(
                l,
                x,
                #[inline(always)]
                |x| x * inverse + middle,
            );
            put(batch.first + b, d[b], &limited(&codes, (2 * half - 1) as i8));
        }
    }
}

#[inline(always)]
fn searched_symmetric_rows<L: Lanes>(l: L, half: i32, rows: Rows, mut put: impl FnMut(usize, Half, &[u8; 32])) {
    let mean_squares = MeanSquares::of(l, rows);
    for batch in SmallBatch::of(l, rows) {
        let Some(importance) = batch.importance(l, 0) else { return };
        let x = batch.columns(l, 0);
        let (weights, _) = weigh(l, &x, &importance, l.load(&mean_squares.of_blocks(l, batch.first)));
        let found = search_lanes::symmetric(l, half, &x, &weights);
        let (d, inverses) = (halves(l, found.scale), stored(l, found.inverse));
        for (b, x) in batch.blocks.iter().enumerate() {
            put(batch.first + b, d[b], &search_lanes::symmetric_codes_of_lane(half, inverses[b], x));
        }
    }
}

/// x ≈ d·q + m with q from 0 to `max`: `put` gets the number, d and m, and q of each block of some rows.
///
/// Without importance the codes span the weights from smallest to largest, with it d and m ≤ 0 are searched.
#[inline(always)]
pub(super) fn affine_rows<L: Lanes>(l: L, max: i32, rows: Rows, put: impl FnMut(usize, [Half; 2], &[u8; 32])) {
    match rows.importance {
        None => plain_affine_rows(l, max, rows, put),
        Some(_) => searched_affine_rows(l, max, rows, put),
    }
}

#[inline(always)]
fn plain_affine_rows<L: Lanes>(l: L, max: i32, rows: Rows, mut put: impl FnMut(usize, [Half; 2], &[u8; 32])) {
    for batch in SmallBatch::of(l, rows) {
        let (smallest, largest) = search_lanes::smallest_and_largest(&batch.columns(l, 0));
        let d = (largest - smallest) / l.splat(max as f32);
        let inverses = stored(l, search_lanes::divide_or_zero(l, l.splat(1.0), d));
        let offsets = stored(l, smallest);
        let (d, m) = (halves(l, d), halves(l, smallest));
        for (b, x) in batch.blocks.iter().enumerate() {
            let (inverse, offset, half) = (l.splat(inverses[b]), l.splat(offsets[b]), l.splat(0.5));
            let codes = truncated(
                l,
                x,
                #[inline(always)]
                |x| (x - offset) * inverse + half,
            );
            // Only Q4_1 is defined with this limit. In Q5_1 it changes nothing: no code comes out above 31.
            put(batch.first + b, [d[b], m[b]], &limited(&codes, max as i8));
        }
    }
}

#[inline(always)]
fn searched_affine_rows<L: Lanes>(l: L, max: i32, rows: Rows, mut put: impl FnMut(usize, [Half; 2], &[u8; 32])) {
    let search = AffineSearch::weighted(max);
    let mean_squares = MeanSquares::of(l, rows);
    for batch in SmallBatch::of(l, rows) {
        let Some(importance) = batch.importance(l, 0) else { return };
        let mean_squares = mean_squares.of_blocks(l, batch.first);
        let x = batch.columns(l, 0);
        let (weights, _) = weigh(l, &x, &importance, l.load(&mean_squares));
        let mut found = AffineBatch::<1>::new();
        found.search(l, 0, search, &x, &weights);
        for (b, x) in batch.blocks.iter().enumerate() {
            let mut codes = [0; 32];
            let affine = match batch.block_importance(b) {
                Some(importance) if found.odd[b] != [0.0] => {
                    fit_affine(search, x, &importance_weights(importance, mean_squares[b], x), &mut codes)
                }
                _ => {
                    codes = found.codes(search, b, 0, x);
                    Affine { scale: found.scales[b][0], min: found.mins[b][0] }
                }
            };
            put(batch.first + b, [Half::new(affine.scale), Half::new(-affine.min)], &codes);
        }
    }
}

/// The mean square of each row, where there is importance: only then it is needed.
pub(super) struct MeanSquares {
    of_rows: Vec<f32>,
    blocks_per_row: usize,
}

impl MeanSquares {
    /// Those of all rows: each is a sum in the order of the weights, so several rows at once where there are several.
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
                // The last row fills the lanes that are left over.
                let starts: [usize; MAX_LANES] = std::array::from_fn(|lane| lane.min(n_rows - 1) * row_len);
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

    /// For each lane that of the row of block `first` + lane; of the last row beyond the end.
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
