//! Passes over all logits, 128 at a time, written so that compilers use vector instructions.
//!
//! ```text
//! logits   [f32; vocabulary]         borrowed
//! mask     [u32; vocabulary / 32]    bit set: in the running; none where all are
//! tops     [f32; vocabulary / 128]   the highest of each block, which lets later passes skip most blocks
//! ```
//!
//! Sums have a fixed order: down the 16 columns of a block, across the columns by halves, then block by block. So they
//! are the same for every vector length.

// Loops over lanes use indices, because they walk several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::{Candidate, Error};
use crate::base::math::{EXP_F32_LOWEST, exp_f32, exp_roughly};

/// Number of logits in a vector.
const LANES: usize = 16;
/// Number of logits for each entry of `tops`.
pub const BLOCK: usize = 128;
/// Number of words of a mask for each block.
const WORDS: usize = BLOCK / 32;

type Block = [f32; BLOCK];

/// All tokens, and which of them are candidates.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// The model's logits.
    pub logits: &'a [f32],
    /// A bit for each token, `WORDS` words for each block. Bits past the end are clear.
    pub mask: Option<&'a [u32]>,
}

/// Returns how many words a mask for `n` tokens has.
pub fn mask_len(n: usize) -> usize {
    n.div_ceil(BLOCK) * WORDS
}

impl Field<'_> {
    fn n_blocks(&self) -> usize {
        self.logits.len().div_ceil(BLOCK)
    }

    /// Returns the logits of a block, with minus infinity for tokens that are not candidates. `None` if the block has
    /// no candidates.
    #[inline(always)]
    fn block<'b>(&'b self, index: usize, room: &'b mut Block) -> Option<&'b Block> {
        let rest = &self.logits[index * BLOCK..];
        let words: [u32; WORDS] = match self.mask {
            None => [u32::MAX; WORDS],
            Some(mask) => *mask[index * WORDS..].first_chunk().unwrap_or(&[0; WORDS]),
        };
        if words == [u32::MAX; WORDS]
            && let Some(whole) = rest.first_chunk()
        {
            return Some(whole);
        }
        if words == [0; WORDS] {
            return None;
        }
        *room = [f32::NEG_INFINITY; BLOCK];
        let len = rest.len().min(BLOCK);
        room[..len].copy_from_slice(&rest[..len]);
        for (lanes, word) in room.as_chunks_mut::<32>().0.iter_mut().zip(words) {
            for (bit, logit) in lanes.iter_mut().enumerate() {
                *logit = if word & (1 << bit) != 0 { *logit } else { f32::NEG_INFINITY };
            }
        }
        Some(room)
    }

    /// Fills `tops`, and returns the highest logit of all candidates; minus infinity if there are none.
    ///
    /// # Errors
    /// If the logit of a candidate is NaN or plus infinity.
    pub fn tops(&self, tops: &mut Vec<f32>) -> Result<f32, Error> {
        tops.clear();
        tops.resize(self.n_blocks(), f32::NEG_INFINITY);
        let mut room = [0.0; BLOCK];
        let mut wrong = [0u32; LANES];
        for (four, tops) in tops.chunks_mut(4).enumerate() {
            let mut high = [[f32::NEG_INFINITY; LANES]; 4];
            for (index, high) in (4 * four..).zip(&mut high).take(tops.len()) {
                let Some(block) = self.block(index, &mut room) else { continue };
                let mut columns = [f32::NEG_INFINITY; LANES];
                for row in block.as_chunks::<LANES>().0 {
                    for lane in 0..LANES {
                        columns[lane] = if row[lane] > columns[lane] { row[lane] } else { columns[lane] };
                        // True for NaN too.
                        wrong[lane] |= u32::from(!is_below_infinity(row[lane]));
                    }
                }
                *high = columns;
            }
            tops.copy_from_slice(&highest_of_each(&high)[..tops.len()]);
        }
        if wrong != [0; LANES] {
            return Err(self.not_finite());
        }
        Ok(highest(tops))
    }

    fn not_finite(&self) -> Error {
        let is_in = |id: usize| self.mask.is_none_or(|mask| mask[id / 32] & (1 << (id % 32)) != 0);
        let token = self.logits.iter().enumerate().position(|(id, l)| is_in(id) && !is_below_infinity(*l)).unwrap_or(0);
        Error::NotFinite { token, value: self.logits[token] }
    }

    /// Appends the tokens whose logit is at least `bar`, in the order of their ids, without those at minus infinity.
    pub fn collect(&self, tops: &[f32], bar: f32, list: &mut Vec<Candidate>) {
        let bar = bar.max(f32::MIN);
        let mut room = [0.0; BLOCK];
        for (index, top) in tops.iter().enumerate() {
            if *top < bar {
                continue;
            }
            let Some(block) = self.block(index, &mut room) else { continue };
            for (row, logits) in block.as_chunks::<LANES>().0.iter().enumerate() {
                let mut any = false;
                for logit in logits {
                    any |= *logit >= bar;
                }
                if any {
                    let first = (index * BLOCK + row * LANES) as u32;
                    let high = (first..).zip(logits).filter(|(_, logit)| **logit >= bar);
                    list.extend(high.map(|(id, &logit)| Candidate { id, logit }));
                }
            }
        }
    }

    /// Returns the first token whose logit is `highest`.
    pub fn first_at(&self, tops: &[f32], highest: f32) -> Option<u32> {
        let index = tops.iter().position(|top| *top == highest)?;
        let mut room = [0.0; BLOCK];
        let at = self.block(index, &mut room)?.iter().position(|logit| *logit == highest)?;
        Some((index * BLOCK + at) as u32)
    }

    /// Sets `sums` to the weight of each block: the sum of e^((logit - top) scale).
    pub fn weigh(&self, tops: &[f32], top: f32, scale: f32, sums: &mut Vec<f64>) {
        sums.clear();
        sums.resize(tops.len(), 0.0);
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = self.weigh_block(index, tops[index], top, scale);
        }
    }

    /// Returns the weight of one block, whose highest logit is `block_top`.
    #[inline]
    pub fn weigh_block(&self, index: usize, block_top: f32, top: f32, scale: f32) -> f64 {
        let mut room = [0.0; BLOCK];
        if !has_weight(block_top, top, scale) {
            return 0.0;
        }
        let Some(block) = self.block(index, &mut room) else { return 0.0 };
        let mut sum = [0f32; LANES];
        for row in block.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                sum[lane] += exp_f32((row[lane] - top) * scale);
            }
        }
        sum_of(&sum.map(f64::from))
    }

    /// Returns the weight of all blocks, and the sum of weights times exponents, from which the entropy follows.
    pub fn weigh_with_exponents(&self, tops: &[f32], top: f32, scale: f32) -> (f64, f64) {
        let mut room = [0.0; BLOCK];
        let (mut total, mut product) = (0.0, 0.0);
        for (index, block_top) in tops.iter().enumerate() {
            if !has_weight(*block_top, top, scale) {
                continue;
            }
            let Some(block) = self.block(index, &mut room) else { continue };
            let (mut sum, mut sum_of_products) = ([0f32; LANES], [0f32; LANES]);
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    let x = (row[lane] - top) * scale;
                    let weight = exp_f32(x);
                    sum[lane] += weight;
                    // 0 times infinity would be NaN.
                    sum_of_products[lane] += weight * if x >= EXP_F32_LOWEST { x } else { 0.0 };
                }
            }
            total += sum_of(&sum.map(f64::from));
            product += sum_of(&sum_of_products.map(f64::from));
        }
        (total, product)
    }

    /// Returns the approximate weight of all blocks: the sum of [`exp_roughly`].
    pub fn weigh_roughly(&self, tops: &[f32], top: f32, scale: f32) -> f64 {
        let mut room = [0.0; BLOCK];
        let mut total = [0.0f64; LANES];
        for (index, block_top) in tops.iter().enumerate() {
            if !has_weight(*block_top, top, scale) {
                continue;
            }
            let Some(block) = self.block(index, &mut room) else { continue };
            let mut sum = [0f32; LANES];
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    sum[lane] += exp_roughly((row[lane] - top) * scale);
                }
            }
            for lane in 0..LANES {
                total[lane] += f64::from(sum[lane]);
            }
        }
        sum_of(&total)
    }

    /// Returns how many logits are at least `bar`.
    pub fn count(&self, tops: &[f32], bar: f32) -> u32 {
        let mut room = [0.0; BLOCK];
        let mut total = 0;
        for (index, block_top) in tops.iter().enumerate() {
            if *block_top < bar {
                continue;
            }
            let Some(block) = self.block(index, &mut room) else { continue };
            let mut count = [0u32; LANES];
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    count[lane] += u32::from(row[lane] >= bar);
                }
            }
            total += count.iter().sum::<u32>();
        }
        total
    }

    /// Calls `each` with the tokens of a block and their weights, as in [`Field::weigh_block`], until it returns false.
    pub fn weights(&self, index: usize, top: f32, scale: f32, mut each: impl FnMut(u32, f64) -> bool) {
        let mut room = [0.0; BLOCK];
        let Some(block) = self.block(index, &mut room) else { return };
        for (id, logit) in ((index * BLOCK) as u32..).zip(block) {
            let weight = exp_f32((logit - top) * scale);
            if weight > 0.0 && !each(id, weight.into()) {
                return;
            }
        }
    }

    /// Returns how many logits are above minus infinity, their sum, and the sum of their squared distances from their mean.
    pub fn moments(&self, tops: &[f32]) -> (usize, f64, f64) {
        let (n, sum) = self.count_and_sum::<f32>(tops);
        let squares = self.sum_of_squares::<f32>(tops, sum / n as f64);
        if squares.is_finite() {
            return (n, sum, squares);
        }
        // A square overflows 32-bit floats.
        let (n, sum) = self.count_and_sum::<f64>(tops);
        (n, sum, self.sum_of_squares::<f64>(tops, sum / n as f64))
    }

    fn count_and_sum<F: Float>(&self, tops: &[f32]) -> (usize, f64) {
        let mut room = [0.0; BLOCK];
        let (mut count, mut total) = (0, 0.0);
        for (index, top) in tops.iter().enumerate() {
            if *top == f32::NEG_INFINITY {
                continue;
            }
            let Some(block) = self.block(index, &mut room) else { continue };
            let (mut n, mut sum) = ([0u32; LANES], [F::from(0.0); LANES]);
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    let is_possible = row[lane] > f32::NEG_INFINITY;
                    n[lane] += u32::from(is_possible);
                    sum[lane] += F::from(if is_possible { row[lane] } else { 0.0 });
                }
            }
            count += n.iter().sum::<u32>() as usize;
            total += sum_of(&sum.map(F::into));
        }
        (count, total)
    }

    fn sum_of_squares<F: Float>(&self, tops: &[f32], mean: f64) -> f64 {
        let mean = F::of(mean);
        let mut room = [0.0; BLOCK];
        let mut total = 0.0;
        for (index, top) in tops.iter().enumerate() {
            if *top == f32::NEG_INFINITY {
                continue;
            }
            let Some(block) = self.block(index, &mut room) else { continue };
            let mut sum = [F::from(0.0); LANES];
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    let difference = F::from(row[lane]) - mean;
                    let is_possible = row[lane] > f32::NEG_INFINITY;
                    sum[lane] += if is_possible { difference * difference } else { F::from(0.0) };
                }
            }
            total += sum_of(&sum.map(F::into));
        }
        total
    }
}

/// A float of 32 bits, or of 64 bits if these are not enough.
trait Float:
    Copy + From<f32> + Into<f64> + std::ops::AddAssign + std::ops::Sub<Output = Self> + std::ops::Mul<Output = Self>
{
    /// The nearest.
    fn of(number: f64) -> Self;
}

impl Float for f32 {
    fn of(number: f64) -> Self {
        number as f32
    }
}

impl Float for f64 {
    fn of(number: f64) -> Self {
        number
    }
}

/// Returns whether a logit is close enough to the highest for its weight to be above 0.
#[inline(always)]
fn has_weight(logit: f32, top: f32, scale: f32) -> bool {
    (logit - top) * scale >= EXP_F32_LOWEST
}

/// False for NaN too.
#[inline(always)]
fn is_below_infinity(logit: f32) -> bool {
    logit < f32::INFINITY
}

/// Returns the highest of any number of floats that are not NaN.
pub fn highest(floats: &[f32]) -> f32 {
    let (rows, rest) = floats.as_chunks::<LANES>();
    let mut high = [f32::NEG_INFINITY; LANES];
    for row in rows {
        for lane in 0..LANES {
            high[lane] = if row[lane] > high[lane] { row[lane] } else { high[lane] };
        }
    }
    rest.iter().copied().fold(highest_of(&high), f32::max)
}

/// By halves, which is how vectors do it.
// Not inlined, because compilers would then split up the columns.
#[inline(never)]
fn highest_of(lanes: &[f32; LANES]) -> f32 {
    let mut high = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            high[lane] = if high[lane + half] > high[lane] { high[lane + half] } else { high[lane] };
        }
        half /= 2;
    }
    high[0]
}

/// Returns the highest of each of four rows, computed side by side to avoid latency.
#[inline(never)]
fn highest_of_each(rows: &[[f32; LANES]; 4]) -> [f32; 4] {
    let higher = |a: f32, b: f32| if a > b { a } else { b };
    let mut columns = [[f32::NEG_INFINITY; 4]; 4];
    for (row, lanes) in rows.iter().enumerate() {
        for lane in 0..4 {
            let high = higher(higher(lanes[lane], lanes[lane + 4]), higher(lanes[lane + 8], lanes[lane + 12]));
            columns[lane][row] = high;
        }
    }
    let mut high = [0.0; 4];
    for row in 0..4 {
        high[row] = higher(higher(columns[0][row], columns[1][row]), higher(columns[2][row], columns[3][row]));
    }
    high
}

/// By halves, which is how vectors do it.
#[inline(never)]
fn sum_of(lanes: &[f64; LANES]) -> f64 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::math::{ROUGH_HIGH, ROUGH_LOW};
    use crate::base::random::Random;

    /// Logits of some length with masks of every kind: none, full words, empty words, mixed ones.
    fn fields() -> Vec<(Vec<f32>, Option<Vec<u32>>)> {
        let mut random = Random::new(5);
        let mut out = Vec::new();
        for n in [1, 15, 16, 127, 128, 129, 300, 1000] {
            let logits: Vec<f32> = (0..n).map(|_| (random.unit() * 40.0 - 20.0) as f32).collect();
            out.push((logits.clone(), None));
            for kind in 0..4 {
                let mut mask: Vec<u32> = (0..mask_len(n))
                    .map(|word| match (kind, word / WORDS % 3) {
                        (0, _) | (3, 0) => u32::MAX,
                        (1, _) | (3, 1) => 0,
                        _ => random.next_u64() as u32,
                    })
                    .collect();
                (n..mask.len() * 32).for_each(|id| mask[id / 32] &= !(1 << (id % 32)));
                out.push((logits.clone(), Some(mask)));
            }
        }
        out
    }

    #[test]
    fn every_pass_sees_what_is_in_the_running_and_nothing_else() {
        for (logits, mask) in fields() {
            let field = Field { logits: &logits, mask: mask.as_deref() };
            let is_in = |id: usize| mask.as_ref().is_none_or(|mask| mask[id / 32] >> (id % 32) & 1 == 1);
            let left: Vec<(u32, f32)> =
                (0..logits.len()).filter(|id| is_in(*id)).map(|id| (id as u32, logits[id])).collect();
            let mut tops = Vec::new();
            let top = field.tops(&mut tops).unwrap();
            assert_eq!(top, left.iter().map(|(_, l)| *l).fold(f32::NEG_INFINITY, f32::max));
            let wanted: Vec<_> = left.iter().filter(|(_, l)| *l >= 3.0).copied().collect();
            let mut list = Vec::new();
            field.collect(&tops, 3.0, &mut list);
            assert_eq!(list.iter().map(|c| (c.id, c.logit)).collect::<Vec<_>>(), wanted);
            if left.is_empty() {
                assert_eq!(field.first_at(&tops, 1.0), None);
                continue;
            }
            assert_eq!(field.first_at(&tops, top), left.iter().find(|(_, l)| *l == top).map(|(id, _)| *id));
            let wanted: f64 = left.iter().map(|(_, l)| (f64::from(l - top) * 0.7).exp()).sum();
            let mut sums = Vec::new();
            field.weigh(&tops, top, 0.7, &mut sums);
            let got: f64 = sums.iter().sum();
            assert!((got - wanted).abs() < 1e-6 * wanted, "{got} {wanted}");
            let (total, product) = field.weigh_with_exponents(&tops, top, 0.7);
            assert_eq!(total, got);
            let wanted: f64 = left.iter().map(|(_, l)| f64::from(l - top) * 0.7).map(|x| x * x.exp()).sum();
            assert!((product - wanted).abs() < 1e-6 * wanted.abs().max(1.0), "{product} {wanted}");
            let mut one_by_one = 0.0;
            for index in 0..tops.len() {
                field.weights(index, top, 0.7, |id, weight| {
                    assert!(is_in(id as usize));
                    one_by_one += weight;
                    true
                });
            }
            assert!((one_by_one - got).abs() < 1e-6 * got);
            let (n, sum, squares) = field.moments(&tops);
            assert_eq!(n, left.len());
            let wanted: f64 = left.iter().map(|(_, l)| f64::from(*l)).sum();
            assert!((sum - wanted).abs() < 1e-6 * n as f64 * 20.0);
            let mean = wanted / n as f64;
            let wanted: f64 = left.iter().map(|(_, l)| (f64::from(*l) - mean).powi(2)).sum();
            assert!((squares - wanted).abs() < 1e-5 * wanted.max(1.0));
            for bar in [-30.0, -3.0, 7.5] {
                assert_eq!(field.count(&tops, bar) as usize, left.iter().filter(|(_, l)| *l >= bar).count());
            }
            let roughly = field.weigh_roughly(&tops, top, 0.7);
            assert!(roughly >= ROUGH_LOW * got && roughly <= ROUGH_HIGH * got, "{roughly} {got}");
        }
    }
}
