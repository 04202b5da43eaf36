//! What the formats by lanes share around their searches: blocks in batches, sub-blocks in groups of as many as lanes.
//!
//! ```text
//! rows ─► batches of as many blocks as lanes ─► groups of as many sub-blocks as lanes ─► a search, a sub-block a lane
//!              │                                                                              │
//!              │              tables: what was found, a number for each sub-block  ◄──────────┘
//!              ▼
//!         where scales are themselves searched, a block a lane; then each block is put together from the tables
//! ```

use super::Rows;
use super::lanes::{Floats, Lanes, MAX_LANES, Mask};
use super::search::{AffineSearch, fit_symmetric_by_moves};
use super::search_lanes::{self, Look, Moves, Start};

/// A number for each sub-block of a batch, `PER` to a block.
pub(super) type Table<const PER: usize> = [[f32; PER]; MAX_LANES];

/// A batch of blocks of 256 weights, in sub-blocks of `N`.
pub(super) type Batch<'a, const N: usize> = BatchOf<'a, 256, N>;

/// A batch of blocks of 32 weights, each its own sub-block.
pub(super) type SmallBatch<'a> = BatchOf<'a, 32, 32>;

/// As many blocks of `LEN` weights as lanes, or what is left of them at the end, in sub-blocks of `N`.
#[derive(Clone, Copy)]
pub(super) struct BatchOf<'a, const LEN: usize, const N: usize> {
    /// The number of the first block in the rows.
    pub first: usize,
    pub blocks: &'a [[f32; LEN]],
    importance: Option<&'a [f32]>,
}

impl<'a, const LEN: usize, const N: usize> BatchOf<'a, LEN, N> {
    const PER: usize = LEN / N;

    /// The batches of all rows.
    #[inline(always)]
    pub fn of<L: Lanes>(_: L, rows: Rows<'a>) -> impl Iterator<Item = Self> {
        Self::of_len(L::LEN, rows)
    }

    /// All rows in batches of so many blocks.
    #[inline(always)]
    pub fn of_len(len: usize, rows: Rows<'a>) -> impl Iterator<Item = Self> {
        let batches = rows.pieces::<LEN>().chunks(len).enumerate();
        batches.map(move |(batch, blocks)| Self { first: batch * len, blocks, importance: rows.importance })
    }

    /// The sub-blocks.
    #[inline(always)]
    pub fn sub_blocks(self) -> &'a [[f32; N]] {
        self.blocks.as_flattened().as_chunks().0
    }

    /// The numbers of the groups' first sub-blocks in the batch.
    #[inline(always)]
    pub fn groups<L: Lanes>(self, _: L) -> impl Iterator<Item = usize> {
        (0..self.sub_blocks().len()).step_by(L::LEN)
    }

    /// The weights of the group from `at`. The first sub-blocks of it fill the lanes that are left over.
    #[inline(always)]
    pub fn columns<L: Lanes>(self, l: L, at: usize) -> [L::Floats; N] {
        l.columns_of(lanes_from(l, &self.sub_blocks()[at..], 0, &mut [[0.0; N]; MAX_LANES]))
    }

    /// Their importance, where there is any.
    #[inline(always)]
    pub fn importance<L: Lanes>(self, l: L, at: usize) -> Option<[L::Floats; N]> {
        let (importance, _) = self.importance?.as_chunks();
        let first = (Self::PER * self.first + at) % importance.len();
        Some(l.columns_of(lanes_from(l, importance, first, &mut [[0.0; N]; MAX_LANES])))
    }

    /// The importance of block `b` of the batch.
    #[inline(always)]
    pub fn block_importance(self, b: usize) -> Option<&'a [f32; LEN]> {
        self.importance.map(|importance| Rows::importance_of(importance, self.first + b))
    }

    /// Of a number for each block, that of the block of each lane of the group from `at`.
    #[inline(always)]
    pub fn of_blocks<L: Lanes>(self, l: L, at: usize, numbers: &[f32; MAX_LANES]) -> L::Floats {
        let mut lanes = [0.0; MAX_LANES];
        for lane in 0..L::LEN {
            // Whatever is in the lanes that are left over.
            lanes[lane] = numbers[((at + lane) / Self::PER).min(MAX_LANES - 1)];
        }
        l.load(&lanes)
    }

    /// Σx² of each block; zeros where there is no importance, since only then it is needed.
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

/// As many of `pieces` as there are lanes, from number `first`, beginning anew at the end: where they do not lie one after
/// the other, by way of `buffer`.
#[inline(always)]
fn lanes_from<'a, L: Lanes, const N: usize>(
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

/// Writes a number for each sub-block of the group from `at`.
#[inline(always)]
pub(super) fn put<L: Lanes, const PER: usize>(l: L, table: &mut [[f32; PER]], at: usize, numbers: L::Floats) {
    l.store(numbers, &mut table.as_flattened_mut()[at..]);
}

/// Writes 1 for the lanes of the group from `at` that are in `mask`, 0 for the others.
#[inline(always)]
pub(super) fn mark<L: Lanes, const PER: usize>(l: L, table: &mut [[f32; PER]], at: usize, mask: L::Mask) {
    put(l, table, at, l.splat(1.0).or_else(mask, l.splat(0.0)));
}

/// The weights of a search where there is importance, and their sum:
/// [`importance_weights`](super::search::importance_weights).
#[inline(always)]
pub(super) fn weigh<L: Lanes, const N: usize>(
    l: L,
    x: &[L::Floats; N],
    importance: &[L::Floats; N],
    variance: L::Floats,
) -> ([L::Floats; N], L::Floats) {
    let (mut weights, mut sum) = ([l.splat(0.0); N], l.splat(0.0));
    for i in 0..N {
        weights[i] = importance[i] * (variance + x[i] * x[i]).sqrt();
        sum = sum + weights[i];
    }
    (weights, sum)
}

/// What [`search_lanes::affine`] found for each sub-block of a batch.
pub(super) struct AffineBatch<const PER: usize> {
    pub scales: Table<PER>,
    pub mins: Table<PER>,
    inverses: Table<PER>,
    leasts: Table<PER>,
    /// Not 0 in a block that is to be left to the scalar code.
    pub odd: Table<PER>,
}

impl<const PER: usize> AffineBatch<PER> {
    #[inline(always)]
    pub fn new() -> Self {
        let zero = [[0.0; PER]; MAX_LANES];
        Self { scales: zero, mins: zero, inverses: zero, leasts: zero, odd: zero }
    }

    /// Searches the group from `at`.
    #[inline(always)]
    pub fn search<L: Lanes, const N: usize>(
        &mut self,
        l: L,
        at: usize,
        search: AffineSearch,
        x: &[L::Floats; N],
        weights: &[L::Floats; N],
    ) {
        let found = search_lanes::affine(l, search, x, weights);
        put(l, &mut self.scales, at, found.scale);
        put(l, &mut self.mins, at, found.min);
        put(l, &mut self.inverses, at, found.start.inverse);
        put(l, &mut self.leasts, at, found.start.least);
        mark(l, &mut self.odd, at, found.odd);
    }

    /// The codes with which the search ended in sub-block `j` of block `b`, whose weights are `x`.
    #[inline(always)]
    pub fn codes<const N: usize>(&self, search: AffineSearch, b: usize, j: usize, x: &[f32]) -> [u8; N] {
        let start = Start { inverse: self.inverses[b][j], least: self.leasts[b][j] };
        search_lanes::codes_of_start(search, start, &x.as_chunks().0[j])
    }
}

/// What [`search_lanes::symmetric`] found for each sub-block of a batch.
pub(super) struct SymmetricBatch<const PER: usize> {
    pub scales: Table<PER>,
    inverses: Table<PER>,
}

impl<const PER: usize> SymmetricBatch<PER> {
    #[inline(always)]
    pub fn new() -> Self {
        let zero = [[0.0; PER]; MAX_LANES];
        Self { scales: zero, inverses: zero }
    }

    /// Searches the group from `at`.
    #[inline(always)]
    pub fn search<L: Lanes, const N: usize>(
        &mut self,
        l: L,
        at: usize,
        half: i32,
        x: &[L::Floats; N],
        weights: &[L::Floats; N],
    ) {
        let found = search_lanes::symmetric(l, half, x, weights);
        put(l, &mut self.scales, at, found.scale);
        put(l, &mut self.inverses, at, found.inverse);
    }

    /// The codes with which the search ended in sub-block `j` of block `b`, whose weights are `x`. Seldom needed, and so
    /// kept out of the way of what is.
    #[cold]
    #[inline(never)]
    pub fn codes<const N: usize>(&self, half: i32, b: usize, j: usize, x: &[f32]) -> [u8; N] {
        search_lanes::symmetric_codes_of_lane(half, self.inverses[b][j], &x.as_chunks().0[j])
    }
}

/// What [`search_lanes::Moves`] found for each sub-block of a batch.
pub(super) struct MovesBatch<const PER: usize> {
    pub scales: [[f32; PER]; MOVES_BLOCKS],
    /// Not 0 in a block that is to be left to the scalar code.
    pub odd: [[f32; PER]; MOVES_BLOCKS],
    /// Of each sub-block whose search goes on, the code with which it does.
    next: [[f32; PER]; MOVES_BLOCKS],
    /// The numbers of these sub-blocks, for the one pass and for the next.
    unsettled: [[u16; PER]; MOVES_BLOCKS],
    restless: [[u16; PER]; MOVES_BLOCKS],
}

/// Blocks in a batch of these: more than lanes, so that few lanes are left over where the sub-blocks whose search goes on
/// are gathered.
pub(super) const MOVES_BLOCKS: usize = 128;
const _: () = assert!(MOVES_BLOCKS.is_multiple_of(MAX_LANES));

impl<const PER: usize> MovesBatch<PER> {
    #[inline(always)]
    pub fn new() -> Self {
        let (floats, numbers) = ([[0.0; PER]; MOVES_BLOCKS], [[0; PER]; MOVES_BLOCKS]);
        Self { scales: floats, odd: floats, next: floats, unsettled: numbers, restless: numbers }
    }

    /// Searches all sub-blocks.
    ///
    /// In four of five the search ends as it starts, which one look tells. The others are gathered, so that lanes that
    /// search on have company. Half of these move one code and are done; those that still search after two are gathered
    /// once more. After ten, which one in a thousand gets to, the scalar search is as good.
    #[inline(always)]
    pub fn search<L: Lanes, const N: usize, const HALF: i32>(
        &mut self,
        l: L,
        moves: &mut Moves<L, N, HALF>,
        batch: Batch<N>,
    ) {
        let sub_blocks = batch.sub_blocks();
        let mut n_unsettled = 0;
        for at in batch.groups(l) {
            moves.start(l, lanes_from(l, &sub_blocks[at..], 0, &mut [[0.0; N]; MAX_LANES]));
            let look = moves.look::<true>(l);
            put(l, &mut self.scales, at, moves.scale(l));
            put(l, &mut self.next, at, look.next);
            mark(l, &mut self.odd, at, look.odd);
            let mut lanes = look.unsettled.bits();
            while lanes != 0 {
                let number = at + lanes.trailing_zeros() as usize;
                self.unsettled.as_flattened_mut()[n_unsettled] = number as u16;
                // Not what only fills a lane that is left over.
                n_unsettled += usize::from(number < sub_blocks.len());
                lanes &= lanes - 1;
            }
        }
        let n_restless = self.settle(l, moves, sub_blocks, n_unsettled, 2);
        std::mem::swap(&mut self.unsettled, &mut self.restless);
        let n_restless = self.settle(l, moves, sub_blocks, n_restless, 10);
        for &number in &self.restless.as_flattened()[..n_restless] {
            let number = usize::from(number);
            self.scales.as_flattened_mut()[number] = fit_symmetric_by_moves(&sub_blocks[number], HALF, &mut [0; N]);
        }
    }

    /// Lets the first `n_unsettled` sub-blocks of the list move so many codes. Lists those that then search on, and gives
    /// their number.
    #[inline(always)]
    fn settle<L: Lanes, const N: usize, const HALF: i32>(
        &mut self,
        l: L,
        moves: &mut Moves<L, N, HALF>,
        sub_blocks: &[[f32; N]],
        n_unsettled: usize,
        steps: usize,
    ) -> usize {
        let (unsettled, restless) = (self.unsettled.as_flattened(), self.restless.as_flattened_mut());
        let mut n_restless = 0;
        let (mut company, mut next) = ([[0.0; N]; MAX_LANES], [0.0; MAX_LANES]);
        for numbers in unsettled[..n_unsettled].chunks(L::LEN) {
            // Beyond them stays what was there before.
            for (lane, &number) in numbers.iter().enumerate() {
                company[lane] = sub_blocks[usize::from(number)];
                next[lane] = self.next.as_flattened()[usize::from(number)];
            }
            moves.start(l, &company);
            let nowhere = l.splat(0.0).gt(l.splat(0.0));
            let mut look = Look { next: l.load(&next), unsettled: !nowhere, odd: nowhere };
            for _ in 0..steps {
                let odd = look.odd | moves.step(l, look);
                look = moves.look::<false>(l);
                look.odd = look.odd | odd;
                if !look.unsettled.any() {
                    break;
                }
            }
            let mut scales = [0.0; MAX_LANES];
            l.store(moves.scale(l), &mut scales);
            let (still, odd) = (look.unsettled.bits(), look.odd.bits());
            for (lane, &number) in numbers.iter().enumerate() {
                self.scales.as_flattened_mut()[usize::from(number)] = scales[lane];
                restless[n_restless] = number;
                n_restless += (still >> lane & 1) as usize;
            }
            if odd != 0 {
                for (lane, &number) in numbers.iter().enumerate() {
                    self.odd.as_flattened_mut()[usize::from(number)] += (odd >> lane & 1) as f32;
                }
            }
        }
        n_restless
    }
}

/// Scales that are themselves small whole numbers times d, for each block of a batch.
pub(super) struct Fitted<const PER: usize> {
    pub d: [f32; MAX_LANES],
    pub codes: [[u8; PER]; MAX_LANES],
}

impl<const PER: usize> Fitted<PER> {
    /// By [`search_lanes::positive`]. Marks in `odd` the blocks for which it does not hold.
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
        let (d, codes, is_odd) = search_lanes::positive(l, &scales, &sums, max);
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

    /// By [`search_lanes::symmetric`]. Marks in `odd` the blocks for which it does not hold.
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
        let found = search_lanes::symmetric(l, half, &scales, &sums);
        // Weights are finite, but scales need not be.
        let mut is_odd = l.splat(0.0).gt(l.splat(0.0));
        for x in &scales {
            is_odd = is_odd | x.abs().not_lt(l.splat(f32::INFINITY));
        }
        let codes = search_lanes::symmetric_codes(l, half, found.inverse, &scales);
        Self::new(l, found.scale, codes, is_odd, odd)
    }
}
