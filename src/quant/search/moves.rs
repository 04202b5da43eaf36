//! x ≈ d·q with whole q from −half to half − 1, one code moved at a time. ggml's `make_q3_quants`.

use super::batch::{Batch, lanes_from, mark, put};
use super::numbers::{BEYOND_NEAREST, NEGLIGIBLE, extreme, extreme_lanes, nearest};
use crate::lanes::{Floats, Lanes, MAX_LANES, Mask};
use std::array;

/// x ≈ d·q, with whole q from `-half` to `half - 1` and weights x². Returns d, and writes `q + half` to `codes`.
///
/// Starts from the scale that puts the weight of largest magnitude at the end of the range. Then moves one q at a time
/// to its best value given all others, for at most five rounds. If all of `x` is negligible, d and the codes are 0.
pub fn fit<const N: usize>(x: &[f32; N], half: i32, codes: &mut [u8; N]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < NEGLIGIBLE {
        *codes = [0; N];
        return 0.0;
    }
    let inverse = -half as f32 / extreme;
    let mut q: [f32; N] = array::from_fn(|i| nearest(inverse * x[i]).clamp(-half, half - 1) as f32);
    let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
    for i in 0..N {
        let w = x[i] * x[i];
        sum_xq += w * x[i] * q[i];
        sum_qq += w * q[i] * q[i];
    }
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..N {
            let w = x[i] * x[i];
            let mut xq = sum_xq - w * x[i] * q[i];
            if xq > 0.0 {
                let mut qq = sum_qq - w * q[i] * q[i];
                let new = nearest(x[i] * qq / xq).clamp(-half, half - 1) as f32;
                if new != q[i] {
                    xq += w * x[i] * new;
                    qq += w * new * new;
                    if qq > 0.0 && xq * xq * sum_qq > sum_xq * sum_xq * qq {
                        (q[i], sum_xq, sum_qq) = (new, xq, qq);
                        moved = true;
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    for i in 0..N {
        codes[i] = (q[i] as i32 + half) as u8;
    }
    if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 }
}

/// [`fit`], a sub-block per lane, for finite weights.
///
/// Each move of a code changes the sums on which the next one depends. Code by code, this would be a latency of about
/// 60 cycles (a division, seven products and sums, a comparison) sixteen times per round, and nearly always nothing
/// moves. So all codes are looked at first, and then each lane considers the one code that may move next.
///
/// ```text
/// S = Σ w x q,  Q = Σ w q²        where a code wants to go, given the others:  x (Q − w q²) / (S − w x q)
///
/// x (Q − w q²) / (S − w x q) − q  =  (x Q/S − q) / (1 − w x q / S)        as w q² · x and w x q · q cancel
/// ```
///
/// A code stays if this is between −½ and ½, or if it is at an end of the range and would move beyond it. So the look
/// needs no division per code, and no sums without the code. It compares with a margin (0.0001) far above the possible
/// rounding errors (about 30 units in the last place), so a code that it skips does not move in the scalar search
/// either.
pub struct Moves<L: Lanes, const N: usize, const HALF: i32> {
    x: [L::Floats; N],
    q: [L::Floats; N],
    /// w x q, with w = x²
    share: [L::Floats; N],
    /// S
    sum_xq: L::Floats,
    /// Q
    sum_qq: L::Floats,
    /// The element of the largest magnitude.
    extreme: L::Floats,
    /// The code at which this round continues.
    place: L::Floats,
    /// Number of completed rounds.
    rounds: L::Floats,
}

/// Whole numbers as floats, because loading one is faster than converting one.
static NUMBERS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The result of looking at all codes.
#[derive(Clone, Copy)]
pub struct Look<F, M> {
    /// The next code that may move; any number if there is none.
    pub next: F,
    /// The lanes that have such a code. In all others, the search is finished.
    pub unsettled: M,
    /// The lanes for which this cannot be decided, so the scalar code has to do the search.
    pub odd: M,
}

impl<L: Lanes, const N: usize, const HALF: i32> Moves<L, N, HALF> {
    const ROUNDS: f32 = 5.0;

    /// Returns zeros, for [`Self::start`].
    #[inline(always)]
    pub fn new(l: L) -> Self {
        let zero = l.splat(0.0);
        let zeros = [zero; N];
        Self { x: zeros, q: zeros, share: zeros, sum_xq: zero, sum_qq: zero, extreme: zero, place: zero, rounds: zero }
    }

    /// The start of the search, a row per lane: the first of `rows`, which has as many.
    #[inline(always)]
    pub fn start(&mut self, l: L, rows: &[[f32; N]]) {
        // In place, to avoid copying thousands of bytes.
        let rows = &rows[..L::LEN];
        l.columns_into(
            #[inline(always)]
            |lane| &rows[lane],
            &mut self.x,
        );
        let x = &self.x;
        let (zero, smallest, largest) = (l.splat(0.0), l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        self.extreme = extreme_lanes(l, x);
        let inverse = l.splat(-HALF as f32) / self.extreme;
        let (mut sum_xq, mut sum_qq) = (zero, zero);
        for i in 0..N {
            let w = x[i] * x[i];
            let q = (inverse * x[i]).round().max(smallest).min(largest);
            let share = w * x[i] * q;
            sum_xq = sum_xq + share;
            sum_qq = sum_qq + w * q * q;
            (self.q[i], self.share[i]) = (q, share);
        }
        (self.sum_xq, self.sum_qq, self.place, self.rounds) = (sum_xq, sum_qq, zero, zero);
    }

    /// Looks at all codes. `BEGINS` says that no code was considered yet.
    #[inline(always)]
    pub fn look<const BEGINS: bool>(&mut self, l: L) -> Look<L::Floats, L::Mask> {
        let (zero, smallest, largest) = (l.splat(0.0), l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        let nowhere = zero.gt(zero);
        let slope = self.sum_qq / self.sum_xq;
        let half = l.splat(0.5) / self.sum_xq;
        let margin = l.splat(0.4999);
        // Codes before `place` come after the others, in the next round.
        let (round, none) = (l.splat(N as f32), l.splat(2.0 * N as f32));
        let mut next = none;
        for i in (0..N).rev() {
            let wanted = (self.x[i] * slope).max(smallest).min(largest);
            let may_move = (wanted - self.q[i]).abs().not_lt(margin - self.share[i] * half);
            let number = l.splat(NUMBERS[i]);
            let turn = match BEGINS {
                true => number,
                false => number.or_else(number.ge(self.place), number + round),
            };
            next = turn.min(next).or_else(may_move, next);
        }
        let any = none.gt(next);
        let mut is_over = nowhere;
        if !BEGINS {
            let wraps = next.ge(round);
            next = (next - round).or_else(wraps, next);
            self.rounds = (self.rounds + l.splat(1.0)).or_else(wraps, self.rounds);
            is_over = self.rounds.ge(l.splat(Self::ROUNDS));
        }
        let (positive, negligible) = (!zero.ge(self.sum_xq), self.negligible(l));
        // As long as S is positive, and the products of three weights keep their bits, and no quotient leaves the range of
        // `nearest`. All shares have one sign: if it is minus, a sum without one of them is not above zero, and no code
        // ever moves.
        let fine = self.sum_xq.gt(l.splat(1e-30)) & l.splat(1e30).gt(self.sum_xq);
        let odd = !fine | (self.extreme.abs() * slope).not_lt(l.splat(64.0));
        Look { next, unsettled: any & !is_over & positive & !negligible, odd: odd & positive & !negligible }
    }

    /// In each lane, moves the code that `look` found, if that lowers the error. Returns the odd lanes.
    #[inline(always)]
    pub fn step(&mut self, l: L, look: Look<L::Floats, L::Mask>) -> L::Mask {
        let (zero, smallest, largest) = (l.splat(0.0), l.splat(-HALF as f32), l.splat((HALF - 1) as f32));
        // No code has this number.
        let next = look.next.or_else(look.unsettled, l.splat(-1.0));
        let (mut x, mut q) = (zero, zero);
        for i in 0..N {
            let is_next = !next.ne(l.splat(NUMBERS[i]));
            x = self.x[i].or_else(is_next, x);
            q = self.q[i].or_else(is_next, q);
        }
        let w = x * x;
        let wx = w * x;
        let xq = self.sum_xq - wx * q;
        let qq = self.sum_qq - w * q * q;
        let quotient = x * qq / xq;
        let new = quotient.round().max(smallest).min(largest);
        let share = wx * new;
        let sum_xq = xq + share;
        let sum_qq = qq + w * new * new;
        let gains = (sum_xq * sum_xq * self.sum_qq).gt(self.sum_xq * self.sum_xq * sum_qq);
        let is_possible = look.unsettled & xq.gt(zero);
        let moves = is_possible & new.ne(q) & sum_qq.gt(zero) & gains;
        self.sum_xq = sum_xq.or_else(moves, self.sum_xq);
        self.sum_qq = sum_qq.or_else(moves, self.sum_qq);
        self.place = (next + l.splat(1.0)).or_else(look.unsettled, self.place);
        let moving = next.or_else(moves, l.splat(-1.0));
        for i in 0..N {
            let is_moving = !moving.ne(l.splat(NUMBERS[i]));
            self.q[i] = new.or_else(is_moving, self.q[i]);
            self.share[i] = share.or_else(is_moving, self.share[i]);
        }
        is_possible & quotient.abs().not_lt(l.splat(BEYOND_NEAREST))
    }

    /// d
    #[inline(always)]
    pub fn scale(&self, l: L) -> L::Floats {
        let zero = l.splat(0.0);
        let scale = (self.sum_xq / self.sum_qq).or_else(self.sum_qq.gt(zero), zero);
        zero.or_else(self.negligible(l), scale)
    }

    #[inline(always)]
    fn negligible(&self, l: L) -> L::Mask {
        l.splat(NEGLIGIBLE).gt(self.extreme.abs())
    }
}

/// What [`Moves`] found for each sub-block of a batch.
pub struct MovesBatch<const PER: usize> {
    pub scales: [[f32; PER]; MOVES_BLOCKS],
    /// Not 0 for a block that the scalar code has to quantize.
    pub odd: [[f32; PER]; MOVES_BLOCKS],
    /// For each sub-block whose search continues, the code with which it continues.
    next: [[f32; PER]; MOVES_BLOCKS],
    /// The numbers of these sub-blocks, for the one pass and for the next.
    unsettled: [[u16; PER]; MOVES_BLOCKS],
    restless: [[u16; PER]; MOVES_BLOCKS],
}

/// Number of blocks in a batch. It is more than the number of lanes, so that few lanes are unused when the sub-blocks
/// whose search continues are gathered.
pub const MOVES_BLOCKS: usize = 128;

const _: () = assert!(MOVES_BLOCKS.is_multiple_of(MAX_LANES));

impl<const PER: usize> MovesBatch<PER> {
    #[inline(always)]
    pub fn new() -> Self {
        let (floats, numbers) = ([[0.0; PER]; MOVES_BLOCKS], [[0; PER]; MOVES_BLOCKS]);
        Self { scales: floats, odd: floats, next: floats, unsettled: numbers, restless: numbers }
    }

    /// Searches all sub-blocks.
    ///
    /// In four of five, the search ends immediately, which one look shows. The others are gathered, so that all lanes
    /// are in use. Half of these move one code and are done. Those that are not done after two moves are gathered
    /// again. After ten moves, which one in a thousand reaches, the scalar search is as good.
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
                // Not for a remaining lane that repeats another sub-block.
                n_unsettled += usize::from(number < sub_blocks.len());
                lanes &= lanes - 1;
            }
        }
        let n_restless = self.settle(l, moves, sub_blocks, n_unsettled, 2);
        std::mem::swap(&mut self.unsettled, &mut self.restless);
        let n_restless = self.settle(l, moves, sub_blocks, n_restless, 10);
        for &number in &self.restless.as_flattened()[..n_restless] {
            let number = usize::from(number);
            self.scales.as_flattened_mut()[number] = fit(&sub_blocks[number], HALF, &mut [0; N]);
        }
    }

    /// Lets each of the first `n_unsettled` sub-blocks of the list move up to `steps` codes. Lists those that are not
    /// finished then, and returns their number.
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
            // Entries beyond them keep their old contents.
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
