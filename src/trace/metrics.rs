//! The distance between two predictions of the same token.
//!
//! ```text
//! x, y      logits of the reference and of the candidate, one a token of the vocabulary
//! p, q      their probabilities:  ln p = x - ln sum e^x        t  the token that the text has there
//!
//! KLD       sum p (ln p - ln q)  =  sum p (x - y)  -  (ln sum e^x - ln sum e^y)           0 where they are the same
//! NLL       -ln q(t)                                                       perplexity is e to the power of its mean
//! dp        q(t) - p(t)
//! same top  whether x and y are highest at the same token; the first of equals counts
//! top 5     how many of the five highest of x are among the five highest of y
//! ```
//!
//! The definitions are llama-perplexity's. It sums 32-bit floats, and stores its reference in a file with 16 bits per
//! logit. Here, exponentials are 32-bit floats, and the sum of every block of 128 is added up in 64 bits.
//!
//! A vocabulary of 64,000 takes three passes over the candidate's row, one of which also reads the reference's: 1.3 MB
//! from cache and 64,000 exponentials. This takes tens of microseconds per token, while a model takes hundreds of
//! milliseconds.

// Loops over lanes use indices, because they walk several arrays at once.
#![allow(clippy::needless_range_loop)]

use crate::base::math::{EXP_F32_LOWEST, exp, exp_f32, ln};

/// Number of logits that a loop processes together.
const LANES: usize = 16;
/// Number of logits that are added up in 32 bits before the sum is added in 64 bits.
const BLOCK: usize = 128;
/// Number of tokens that count as the most likely ones.
pub const TOP: usize = 5;

/// Why logits cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// One is NaN.
    #[error("NaN")]
    Nan,
    /// One is plus infinity, or none is above minus infinity.
    #[error("infinite numbers")]
    Infinite,
}

/// A summary of a row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The highest logit.
    pub top: f32,
    /// Logarithm of the sum of the exponentials of all logits.
    pub log_sum: f64,
    /// The tokens with the highest logits, in descending order; among equals, the lower token comes first. If there are
    /// fewer than [`TOP`], the rest is `u32::MAX`.
    pub best: [u32; TOP],
}

impl Summary {
    /// Summarizes a row of logits.
    ///
    /// # Errors
    /// If one is NaN or plus infinity, or none is above minus infinity.
    pub fn of(logits: &[f32]) -> Result<Self, Broken> {
        let mut tops = Vec::with_capacity(logits.len().div_ceil(BLOCK));
        let mut wrong = 0;
        for_each_block(logits, f32::NEG_INFINITY, |block| {
            let (mut top, mut n) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    top[lane] = if row[lane] > top[lane] { row[lane] } else { top[lane] };
                    n[lane] += u32::from(row[lane].is_nan() || row[lane] == f32::INFINITY);
                }
            }
            tops.push(top.into_iter().fold(f32::NEG_INFINITY, f32::max));
            wrong += n.iter().sum::<u32>();
        });
        let top = tops.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if wrong > 0 || top == f32::NEG_INFINITY {
            return Err(if logits.iter().any(|x| x.is_nan()) { Broken::Nan } else { Broken::Infinite });
        }
        let mut total = [0f64; LANES];
        for_each_block(logits, f32::NEG_INFINITY, |block| {
            let mut sum = [0f32; LANES];
            for row in block.as_chunks::<LANES>().0 {
                for lane in 0..LANES {
                    sum[lane] += exp_f32(row[lane] - top);
                }
            }
            for lane in 0..LANES {
                total[lane] += f64::from(sum[lane]);
            }
        });
        let log_sum = f64::from(top) + ln(total.iter().sum());
        let mut best = [u32::MAX; TOP];
        for (slot, (_, id)) in best.iter_mut().zip(highest(logits, &tops, TOP)) {
            *slot = id;
        }
        Ok(Self { top, log_sum, best })
    }

    /// The logarithm of a token's probability.
    pub fn log_probability(&self, logit: f32) -> f64 {
        f64::from(logit) - self.log_sum
    }

    /// Computes the probabilities of all tokens relative to the highest: e to the power of each logit minus the highest
    /// logit.
    pub fn weights(&self, logits: &[f32], weights: &mut [f32]) {
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = exp_f32(logit - self.top);
        }
    }
}

/// Returns the `k` highest logits with their tokens, in descending order; among equals, the lower token comes first.
pub fn top_k(logits: &[f32], k: usize) -> Vec<(f32, u32)> {
    let tops: Vec<f32> =
        logits.chunks(BLOCK).map(|block| block.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
    highest(logits, &tops, k)
}

/// As [`top_k`]; `tops` has the highest logit of each block.
fn highest(logits: &[f32], tops: &[f32], k: usize) -> Vec<(f32, u32)> {
    let k = k.min(logits.len());
    let Some(last) = k.checked_sub(1) else { return Vec::new() };
    // The k-th highest of the blocks' tops: at least k logits reach it.
    let bar = if last < tops.len() {
        let mut tops = tops.to_vec();
        *tops.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    let mut found = Vec::with_capacity(4 * k);
    for (index, (block, top)) in logits.chunks(BLOCK).zip(tops).enumerate() {
        if *top >= bar {
            let ids = (index * BLOCK) as u32..;
            found.extend(block.iter().copied().zip(ids).filter(|(logit, _)| *logit >= bar));
        }
    }
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if found.len() > k {
        found.select_nth_unstable_by(last, order);
        found.truncate(k);
    }
    found.sort_unstable_by(order);
    found
}

/// How a candidate's prediction of one token differs from the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// KLD in nats. It is infinite if the candidate gives probability 0 to a token to which the reference does not.
    pub kld: f64,
    /// Negative log-likelihood of the text's own token.
    pub nll: f64,
    /// Probability of the text's own token, minus its probability according to the reference.
    pub dp: f64,
    /// Whether both have the same most likely token.
    pub same_top: bool,
    /// How many of the reference's five most likely tokens are among the candidate's.
    pub top5: u8,
}

/// The reference's prediction.
#[derive(Clone, Copy, Debug)]
pub enum Expected<'a> {
    /// All of its logits.
    Logits {
        /// The row.
        logits: &'a [f32],
        /// The result of [`Summary::weights`] for it, computed once for all candidates.
        weights: &'a [f32],
        /// Its summary.
        summary: &'a Summary,
    },
    /// The most likely tokens, and the probability of all others.
    Trace(&'a Traced),
}

/// What a trace stores for a position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traced {
    /// The most likely tokens in descending order, with the logarithms of their probabilities.
    pub top: Vec<(u32, f64)>,
    /// Total probability of all others.
    pub tail: f64,
    /// Some of the others, sampled by their probability, with its logarithm.
    pub drawn: Vec<(u32, f64)>,
    /// Logarithm of the probability of the text's own token.
    pub right: f64,
}

impl Expected<'_> {
    /// Returns the logarithm of the probability of `right`, the text's own token.
    pub fn log_right(&self, right: u32) -> f64 {
        match self {
            Self::Logits { logits, summary, .. } => {
                summary.log_probability(logits.get(right as usize).copied().unwrap_or(f32::NEG_INFINITY))
            }
            Self::Trace(traced) => traced.right,
        }
    }

    /// The most likely tokens, the most likely first.
    pub fn best(&self) -> [u32; TOP] {
        match self {
            Self::Logits { summary, .. } => summary.best,
            Self::Trace(traced) => {
                let mut best = [u32::MAX; TOP];
                best.iter_mut().zip(&traced.top).for_each(|(slot, (id, _))| *slot = *id);
                best
            }
        }
    }

    /// Returns the logarithm of a token's probability; `None` if a trace has it only among all others.
    pub fn log_probability(&self, id: u32) -> Option<f64> {
        match self {
            Self::Logits { logits, summary, .. } => Some(summary.log_probability(*logits.get(id as usize)?)),
            Self::Trace(traced) => traced.top.iter().find(|(other, _)| *other == id).map(|(_, log_p)| *log_p),
        }
    }
}

/// Measures how far a candidate's logits are from the reference's prediction. `right` is the token in the text. The
/// reference and the candidate have the same number of logits.
pub fn distance(expected: &Expected, logits: &[f32], summary: &Summary, right: u32) -> Distance {
    let kld = match expected {
        Expected::Logits { logits: x, weights, summary: of_x } => kld(x, weights, of_x, logits, summary),
        Expected::Trace(traced) => merged_kld(traced, logits, summary),
    };
    let log_q = summary.log_probability(logits.get(right as usize).copied().unwrap_or(f32::NEG_INFINITY));
    let best = expected.best();
    let is_token = |id: &&u32| **id != u32::MAX;
    Distance {
        // Rounding can make it slightly negative.
        kld: if kld < 0.0 { 0.0 } else { kld },
        nll: -log_q,
        dp: exp(log_q) - exp(expected.log_right(right)),
        same_top: best[0] == summary.best[0],
        top5: best.iter().filter(is_token).filter(|id| summary.best.contains(id)).count() as u8,
    }
}

fn kld(x: &[f32], weights: &[f32], of_x: &Summary, y: &[f32], of_y: &Summary) -> f64 {
    let mut total = [0f64; LANES];
    let mut add = |x: &[f32; BLOCK], weights: &[f32; BLOCK], y: &[f32; BLOCK]| {
        let mut sum = [0f32; LANES];
        let rows = |block: &[f32; BLOCK]| -> [[f32; LANES]; BLOCK / LANES] { bytemuck::cast(*block) };
        for ((x, weight), y) in rows(x).iter().zip(&rows(weights)).zip(&rows(y)) {
            for lane in 0..LANES {
                // A token with probability 0 adds nothing, whatever the candidate's logit is.
                sum[lane] += if weight[lane] > 0.0 { weight[lane] * (x[lane] - y[lane]) } else { 0.0 };
            }
        }
        for lane in 0..LANES {
            total[lane] += f64::from(sum[lane]);
        }
    };
    let [(xs, x), (ws, w), (ys, y)] = [x, weights, y].map(|row| row.as_chunks::<BLOCK>());
    xs.iter().zip(ws).zip(ys).for_each(|((x, w), y)| add(x, w, y));
    add(&filled(x, f32::NEG_INFINITY), &filled(w, 0.0), &filled(y, f32::NEG_INFINITY));
    // Multiplied by e^top / sum e^x, the weights become probabilities.
    let scale = exp(f64::from(of_x.top) - of_x.log_sum);
    scale * total.iter().sum::<f64>() - (of_x.log_sum - of_y.log_sum)
}

/// Estimates KLD from the reference's most likely tokens, the total probability of all others, and a sample of these.
///
/// ```text
/// sum over the most likely of p (ln p - ln q)
///   + P (ln P - ln Q)                            all others taken for one; P and Q are what is left of 1
///   + P mean of (r - 1 - ln r)                   over those drawn, with r = (q / Q) / (p / P)
/// ```
///
/// The first two terms alone never exceed the true KLD, by the log-sum inequality: merging the other tokens loses their
/// differences. The mean of `r` over tokens sampled by `p` is 1, so the expected value of the third term is exactly
/// what was lost. It is never negative, and its variance is lower than that of `-ln r` alone. Source:
/// <http://joschu.net/blog/kl-approx.html>
fn merged_kld(traced: &Traced, logits: &[f32], summary: &Summary) -> f64 {
    let log_q = |id: u32| summary.log_probability(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY));
    let (mut sum, mut q_top) = (0.0, 0.0);
    for (id, log_p) in &traced.top {
        let (p, log_q) = (exp(*log_p), log_q(*id));
        if p > 0.0 {
            sum += p * (log_p - log_q);
        }
        q_top += exp(log_q);
    }
    if traced.tail <= 0.0 {
        return sum;
    }
    let (log_tail, left) = (ln(traced.tail), 1.0 - q_top);
    // Below the precision of the candidate's sum, the rest is noise.
    let log_q_tail = ln(left.max(1e-9));
    sum += traced.tail * (log_tail - log_q_tail);
    if !traced.drawn.is_empty() && left > 1e-5 {
        let term = |(id, log_p): &(u32, f64)| {
            let log_r = (log_q(*id) - log_q_tail) - (log_p - log_tail);
            exp(log_r) - 1.0 - log_r
        };
        sum += traced.tail * traced.drawn.iter().map(term).sum::<f64>() / traced.drawn.len() as f64;
    }
    sum
}

/// Samples `n` tokens by their probability from those that are not in `most_likely`, by systematic sampling: at evenly
/// spaced points of their cumulative probability, so that they spread well. `at` (from 0 to 1) is the position of the
/// first point, relative to the spacing.
pub fn draw_others(logits: &[f32], summary: &Summary, most_likely: &[u32], n: usize, at: f64) -> Vec<u32> {
    let mut weights: Vec<f32> = logits.iter().map(|x| exp_f32(x - summary.top)).collect();
    for id in most_likely {
        weights[*id as usize] = 0.0;
    }
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let mut drawn = Vec::with_capacity(n);
    if total <= 0.0 {
        return drawn;
    }
    let mut sum = 0.0;
    for (id, weight) in (0..).zip(&weights) {
        sum += f64::from(*weight);
        while drawn.len() < n && sum > (drawn.len() as f64 + at) / n as f64 * total {
            drawn.push(id);
        }
    }
    drawn
}

/// Calls `each` with every block of `numbers`. The last one is filled up with `filling`.
fn for_each_block(numbers: &[f32], filling: f32, mut each: impl FnMut(&[f32; BLOCK])) {
    let (blocks, rest) = numbers.as_chunks::<BLOCK>();
    blocks.iter().for_each(&mut each);
    if !rest.is_empty() {
        each(&filled(rest, filling));
    }
}

fn filled(rest: &[f32], filling: f32) -> [f32; BLOCK] {
    let mut block = [filling; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block
}

// Below this, `exp_f32` is 0, which must also be negligible in a sum of probabilities.
const _: () = assert!(EXP_F32_LOWEST < -80.0);

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, from 0 to 1.
    fn numbers(seed: u64) -> impl Iterator<Item = f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        })
    }

    /// A row of `n` logits with a few likely tokens, and the same row a little changed.
    fn rows(n: usize, seed: u64, noise: f64) -> (Vec<f32>, Vec<f32>) {
        let mut random = numbers(seed);
        let mut next = || random.next().unwrap();
        let x: Vec<f32> = (0..n).map(|_| (12.0 * next().powi(6) + 3.0 * next() - 4.0) as f32).collect();
        let y = x.iter().map(|x| x + ((next() - 0.5) * noise) as f32).collect();
        (x, y)
    }

    /// Computes everything in the simplest way, in 64 bits, without regard to speed or overflow.
    fn plainly(x: &[f32], y: &[f32], right: u32) -> Distance {
        let softmax = |z: &[f32]| -> Vec<f64> {
            let sum: f64 = z.iter().map(|z| f64::from(*z).exp()).sum();
            z.iter().map(|z| f64::from(*z).exp() / sum).collect()
        };
        let best = |z: &[f32]| {
            let mut ids: Vec<usize> = (0..z.len()).collect();
            ids.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then(a.cmp(b)));
            ids.truncate(TOP);
            ids
        };
        let (p, q) = (softmax(x), softmax(y));
        let (best_x, best_y) = (best(x), best(y));
        let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln());
        Distance {
            kld: terms.sum(),
            nll: -q[right as usize].ln(),
            dp: q[right as usize] - p[right as usize],
            same_top: best_x[0] == best_y[0],
            top5: best_x.iter().filter(|id| best_y.contains(id)).count() as u8,
        }
    }

    fn quickly(x: &[f32], y: &[f32], right: u32) -> Distance {
        let (of_x, of_y) = (Summary::of(x).unwrap(), Summary::of(y).unwrap());
        let mut weights = vec![0.0; x.len()];
        of_x.weights(x, &mut weights);
        distance(&Expected::Logits { logits: x, weights: &weights, summary: &of_x }, y, &of_y, right)
    }

    #[track_caller]
    fn same(found: Distance, wanted: Distance) {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * (1.0f64).max(b.abs()) || a == b;
        assert!(near(found.kld, wanted.kld), "{found:?}, wanted {wanted:?}");
        assert!(near(found.nll, wanted.nll) && near(found.dp, wanted.dp), "{found:?}, wanted {wanted:?}");
        assert_eq!((found.same_top, found.top5), (wanted.same_top, wanted.top5));
    }

    #[test]
    fn everything_is_what_the_plain_way_gives() {
        for n in [1, 2, 5, 16, 127, 128, 129, 1000, 6400, 64_000] {
            for (seed, noise) in [(1, 0.0), (2, 0.01), (3, 1.0), (4, 20.0)] {
                let (x, y) = rows(n, seed + n as u64, noise);
                let right = (seed as usize * 7919 % n) as u32;
                same(quickly(&x, &y, right), plainly(&x, &y, right));
            }
        }
    }

    #[test]
    fn the_same_row_is_no_distance_at_all_and_a_shift_is_next_to_none() {
        let (x, _) = rows(64_000, 9, 0.0);
        let distance = quickly(&x, &x, 17);
        assert_eq!((distance.kld, distance.dp, distance.same_top, distance.top5), (0.0, 0.0, true, 5));
        let shifted: Vec<f32> = x.iter().map(|x| x + 3.5).collect();
        let distance = quickly(&x, &shifted, 17);
        assert!(distance.kld < 1e-6 && distance.dp.abs() < 1e-6, "{distance:?}");
    }

    #[test]
    fn the_impossible_counts_nothing_unless_the_candidate_rules_out_what_is_possible() {
        let minus = f32::NEG_INFINITY;
        let x = [1.0, minus, 0.5, -200.0, 0.0];
        same(quickly(&x, &[0.5, 3.0, 0.0, -1.0, 0.0], 0), plainly(&x, &[0.5, 3.0, 0.0, -1.0, 0.0], 0));
        let both = [0.5, minus, 0.0, minus, 0.0];
        let distance = quickly(&x, &both, 0);
        assert!(distance.kld.is_finite());
        let distance = quickly(&x, &[0.5, 3.0, minus, -1.0, 0.0], 2);
        assert_eq!((distance.kld, distance.nll), (f64::INFINITY, f64::INFINITY));
    }

    #[test]
    fn rows_that_say_nothing_are_refused() {
        assert_eq!(Summary::of(&[0.0, f32::NAN, 1.0]), Err(Broken::Nan));
        assert_eq!(Summary::of(&[0.0, f32::INFINITY]), Err(Broken::Infinite));
        assert_eq!(Summary::of(&[f32::NEG_INFINITY; 200]), Err(Broken::Infinite));
        assert_eq!(Summary::of(&[]), Err(Broken::Infinite));
        assert!(Summary::of(&[f32::NEG_INFINITY, -3.0]).is_ok());
    }

    #[test]
    fn the_highest_are_found_in_order_and_of_equals_the_first() {
        let (mut x, _) = rows(10_000, 5, 0.0);
        for k in [0, 1, 5, 64, 500, 20_000] {
            let mut wanted: Vec<(f32, u32)> = x.iter().copied().zip(0..).collect();
            wanted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            wanted.truncate(k);
            assert_eq!(top_k(&x, k), wanted, "{k}");
        }
        x.fill(2.0);
        x[7000] = 2.5;
        assert_eq!(Summary::of(&x).unwrap().best, [7000, 0, 1, 2, 3]);
        assert_eq!(Summary::of(&[1.0, 2.0]).unwrap().best, [1, 0, u32::MAX, u32::MAX, u32::MAX]);
    }

    /// What a trace with the `k` most likely tokens would know.
    fn traced(x: &[f32], k: usize, right: u32) -> Traced {
        let summary = Summary::of(x).unwrap();
        let top: Vec<(u32, f64)> =
            top_k(x, k).into_iter().map(|(logit, id)| (id, summary.log_probability(logit))).collect();
        let tail = 1.0 - top.iter().map(|(_, log_p)| log_p.exp()).sum::<f64>();
        Traced { top, tail: tail.max(0.0), drawn: Vec::new(), right: summary.log_probability(x[right as usize]) }
    }

    #[test]
    fn a_few_of_the_others_make_up_for_what_merging_loses_on_average() {
        for (seed, noise) in [(1, 0.3), (2, 1.0), (3, 3.0)] {
            let (x, y) = rows(6400, seed, noise);
            let (of_x, of_y) = (Summary::of(&x).unwrap(), Summary::of(&y).unwrap());
            let whole = quickly(&x, &y, 40).kld;
            let lower = merged_kld(&traced(&x, 64, 40), &y, &of_y);
            assert!(lower < 0.8 * whole, "much is lost: {lower} of {whole}");
            let known: Vec<u32> = top_k(&x, 64).into_iter().map(|(_, id)| id).collect();
            let (mut sum, n) = (0.0, 3000);
            for i in 0..n {
                let drawn = draw_others(&x, &of_x, &known, 6, (f64::from(i) + 0.5) / f64::from(n));
                assert!(drawn.len() == 6 && drawn.iter().all(|id| !known.contains(id)));
                let drawn = drawn.into_iter().map(|id| (id, of_x.log_probability(x[id as usize]))).collect();
                sum += merged_kld(&Traced { drawn, ..traced(&x, 64, 40) }, &y, &of_y);
            }
            let mean = sum / f64::from(n);
            assert!((mean - whole).abs() < 0.01 * whole, "{mean}, wanted {whole}");
        }
    }

    #[test]
    fn merging_all_but_the_most_likely_tokens_bounds_the_distance_from_below() {
        for (seed, noise) in [(1, 0.1), (2, 1.0), (3, 10.0)] {
            let (x, y) = rows(6400, seed, noise);
            let whole = quickly(&x, &y, 40);
            let mut last = 0.0;
            for k in [5, 64, 500, 3000, 6400] {
                let traced = traced(&x, k, 40);
                let merged = distance(&Expected::Trace(&traced), &y, &Summary::of(&y).unwrap(), 40);
                assert!(merged.kld <= whole.kld + 1e-6 && merged.kld >= last - 1e-6, "{k}: {merged:?}, {whole:?}");
                assert_eq!((merged.same_top, merged.top5), (whole.same_top, whole.top5));
                assert!((merged.nll - whole.nll).abs() < 1e-12 && (merged.dp - whole.dp).abs() < 1e-9);
                last = merged.kld;
            }
            assert!((last - whole.kld).abs() < 1e-5, "with all tokens it is the same");
        }
    }
}
