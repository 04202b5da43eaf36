//! Shared code around the searches by lanes: batches of blocks, and groups of as many sub-blocks as there are lanes.
//!
//! ```text
//! rows ─► batches of as many blocks as lanes ─► groups of as many sub-blocks as lanes ─► search, a sub-block per lane
//!              │                                                                              │
//!              │              tables: what was found, a number for each sub-block  ◄──────────┘
//!              ▼
//!         where scales are themselves searched, a block per lane; then each block is put together from the tables
//! ```

use super::{positive, symmetric};
use crate::lanes::{Floats, Lanes, MAX_LANES, Mask};
use crate::quant::rows::Rows;

/// A number for each sub-block of a batch, `PER` to a block.
pub type Table<const PER: usize> = [[f32; PER]; MAX_LANES];

/// A batch of blocks of 256 weights, in sub-blocks of `N`.
pub type Batch<'a, const N: usize> = BatchOf<'a, 256, N>;

/// A batch of blocks of 32 weights, each its own sub-block.
pub type SmallBatch<'a> = BatchOf<'a, 32, 32>;

/// As many blocks of `LEN` weights as there are lanes (or fewer at the end), in sub-blocks of `N`.
#[derive(Clone, Copy)]
pub struct BatchOf<'a, const LEN: usize, const N: usize> {
    /// The number of the first block in the rows.
    pub first: usize,
    pub blocks: &'a [[f32; LEN]],
    importance: Option<&'a [f32]>,
}

impl<'a, const LEN: usize, const N: usize> BatchOf<'a, LEN, N> {
    const PER: usize = LEN / N;

    /// Returns the batches of all rows.
    #[inline(always)]
    pub fn of<L: Lanes>(_: L, rows: Rows<'a>) -> impl Iterator<Item = Self> {
        Self::of_len(L::LEN, rows)
    }

    /// Returns all rows in batches of `len` blocks.
    #[inline(always)]
    pub fn of_len(len: usize, rows: Rows<'a>) -> impl Iterator<Item = Self> {
        let batches = rows.pieces::<LEN>().chunks(len).enumerate();
        batches.map(move |(batch, blocks)| Self { first: batch * len, blocks, importance: rows.importance })
    }

    /// Returns the sub-blocks.
    #[inline(always)]
    pub fn sub_blocks(self) -> &'a [[f32; N]] {
        self.blocks.as_flattened().as_chunks().0
    }

    /// Returns the index in the batch of each group's first sub-block.
    #[inline(always)]
    pub fn groups<L: Lanes>(self, _: L) -> impl Iterator<Item = usize> {
        (0..self.sub_blocks().len()).step_by(L::LEN)
    }

    /// Returns the weights of the group that begins at `at`. The remaining lanes repeat its first sub-blocks.
    #[inline(always)]
    pub fn columns<L: Lanes>(self, l: L, at: usize) -> [L::Floats; N] {
        l.columns_of(lanes_from(l, &self.sub_blocks()[at..], 0, &mut [[0.0; N]; MAX_LANES]))
    }

    /// Returns their importance, if there is any.
    #[inline(always)]
    pub fn importance<L: Lanes>(self, l: L, at: usize) -> Option<[L::Floats; N]> {
        let (importance, _) = self.importance?.as_chunks();
        let first = (Self::PER * self.first + at) % importance.len();
        Some(l.columns_of(lanes_from(l, importance, first, &mut [[0.0; N]; MAX_LANES])))
    }

    /// Returns the importance of block `b` of the batch.
    #[inline(always)]
    pub fn block_importance(self, b: usize) -> Option<&'a [f32; LEN]> {
        self.importance.map(|importance| Rows::importance_of(importance, self.first + b))
    }

    /// Returns for each lane of the group that begins at `at` the number of its block, from one number per block.
    #[inline(always)]
    pub fn of_blocks<L: Lanes>(self, l: L, at: usize, numbers: &[f32; MAX_LANES]) -> L::Floats {
        let mut lanes = [0.0; MAX_LANES];
        for lane in 0..L::LEN {
            // The remaining lanes may hold any number.
            lanes[lane] = numbers[((at + lane) / Self::PER).min(MAX_LANES - 1)];
        }
        l.load(&lanes)
    }

    /// Returns Σx² of each block; zeros without importance, because it is needed only with importance.
    #[inline(always)]
    pub fn sums_of_squares<L: Lanes>(self, l: L) -> [f32; MAX_LANES] {
        let mut sums = [0.0; MAX_LANES];
        if self.importance.is_none() {
            return sums;
        }
        let mut sum = l.splat(0.0);
        for at in (0..LEN).step_by(32) {
            let columns = l.columns::<32>(
                #[inline(always)]
                |lane| {
                    let block = &self.blocks[lane.min(self.blocks.len() - 1)];
                    block[at..].first_chunk().expect("32 columns are left")
                },
            );
            for x in columns {
                sum = sum + x * x;
            }
        }
        l.store(sum, &mut sums);
        sums
    }
}

/// Returns as many of `pieces` as there are lanes, from number `first` on, wrapping around at the end. Copies them to
/// `buffer` if they are not consecutive.
#[inline(always)]
pub fn lanes_from<'a, L: Lanes, const N: usize>(
    _: L,
    pieces: &'a [[f32; N]],
    first: usize,
    buffer: &'a mut [[f32; N]; MAX_LANES],
) -> &'a [[f32; N]] {
    if first + L::LEN <= pieces.len() {
        return &pieces[first..];
    }
    let mut at = first;
    for row in &mut buffer[..L::LEN] {
        *row = pieces[at];
        at = if at + 1 < pieces.len() { at + 1 } else { 0 };
    }
    buffer
}

/// Writes a number for each sub-block of the group that begins at `at`.
#[inline(always)]
pub fn put<L: Lanes, const PER: usize>(l: L, table: &mut [[f32; PER]], at: usize, numbers: L::Floats) {
    l.store(numbers, &mut table.as_flattened_mut()[at..]);
}

/// Writes 1 for the lanes in `mask` of the group that begins at `at`, and 0 for the others.
#[inline(always)]
pub fn mark<L: Lanes, const PER: usize>(l: L, table: &mut [[f32; PER]], at: usize, mask: L::Mask) {
    put(l, table, at, l.splat(1.0).or_else(mask, l.splat(0.0)));
}
/// Scales that are small whole numbers times d, for each block of a batch.
pub struct Fitted<const PER: usize> {
    pub d: [f32; MAX_LANES],
    pub codes: [[u8; PER]; MAX_LANES],
}

impl<const PER: usize> Fitted<PER> {
    /// Fits them by [`positive::fit_lanes`]. Marks in `odd` the blocks for which its result is not valid.
    #[inline(always)]
    pub fn positive<L: Lanes>(l: L, scales: &Table<PER>, sums: &Table<PER>, max: i32, odd: &mut Table<PER>) -> Self {
        let (scales, sums) = (
            l.columns(
                #[inline(always)]
                |lane| &scales[lane],
            ),
            l.columns(
                #[inline(always)]
                |lane| &sums[lane],
            ),
        );
        let (d, codes, is_odd) = positive::fit_lanes(l, &scales, &sums, max);
        Self::new(l, d, codes, is_odd, odd)
    }

    #[inline(always)]
    fn new<L: Lanes>(l: L, d: L::Floats, codes: [L::Floats; PER], is_odd: L::Mask, odd: &mut Table<PER>) -> Self {
        let mut fitted = Self { d: [0.0; MAX_LANES], codes: [[0; PER]; MAX_LANES] };
        l.store(d, &mut fitted.d);
        let mut of_lanes = [0.0; MAX_LANES];
        for (j, codes) in codes.into_iter().enumerate() {
            l.store(codes, &mut of_lanes);
            for lane in 0..L::LEN {
                fitted.codes[lane][j] = of_lanes[lane] as u8;
            }
        }
        if is_odd.any() {
            l.store(l.splat(1.0).or_else(is_odd, l.splat(0.0)), &mut of_lanes);
            for lane in 0..L::LEN {
                odd[lane][0] += of_lanes[lane];
            }
        }
        fitted
    }

    /// Fits them by [`symmetric::fit_lanes`]. Marks in `odd` the blocks for which its result is not valid.
    #[inline(always)]
    pub fn symmetric<L: Lanes>(l: L, scales: &Table<PER>, sums: &Table<PER>, half: i32, odd: &mut Table<PER>) -> Self {
        let (scales, sums) = (
            l.columns(
                #[inline(always)]
                |lane| &scales[lane],
            ),
            l.columns(
                #[inline(always)]
                |lane| &sums[lane],
            ),
        );
        let found = symmetric::fit_lanes(l, half, &scales, &sums);
        // Weights are finite, but scales need not be.
        let mut is_odd = l.splat(0.0).gt(l.splat(0.0));
        for x in &scales {
            is_odd = is_odd | x.abs().not_lt(l.splat(f32::INFINITY));
        }
        let codes = symmetric::codes_lanes(l, half, found.inverse, &scales);
        Self::new(l, found.scale, codes, is_odd, odd)
    }
}
