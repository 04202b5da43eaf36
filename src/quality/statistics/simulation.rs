//! Whether intervals hold the true number as often as they say: texts are made up, with numbers that are known.

use rayon::prelude::*;

use super::*;
use crate::quality::results::Estimate;
use crate::sample::{Random, exp, ln};

/// Scored tokens of a window.
const WINDOW: usize = 255;

/// How much of the logarithm's variance two candidates share.
const SHARED: f64 = 0.7;

/// Of the logarithm's variance: what a whole window has in common, and what changes slowly inside of it.
const OF_WINDOW: f64 = 0.05;
const SLOW: f64 = 0.15;

/// How much of the slow part is left at the next token.
const STAYS: f64 = 0.95;

/// Logarithm of the median KLD.
const MEDIAN: f64 = -6.0;

/// The standard deviation of ln KLD that files of four bits have: there, the mean is 5 times the median.
const SPREAD: f64 = 1.75;

/// Columns of a text with as many windows as were written.
///
/// ```text
/// ln KLD = median + spread (√0.7 of both candidates + √0.3 of its own)
///          each: √0.05 of the window + √0.15 that goes over to the next token with 0.95 + √0.8 of the token
/// ```
#[derive(Default)]
pub struct Text {
    /// KLD of the first candidate.
    pub a: Vec<f64>,
    /// KLD of the second.
    pub b: Vec<f64>,
    /// Negative logarithm of the right token's likelihood by the first.
    pub nll: Vec<f64>,
    /// By the reference.
    pub reference_nll: Vec<f64>,
}

impl Text {
    /// Writes more windows. `spread_b` is the standard deviation of ln KLD of the second candidate; its mean is the first's.
    pub fn write(&mut self, random: &mut Random, n_windows: usize, spread_b: f64) {
        self.write_like(random, n_windows, SPREAD, spread_b);
    }

    fn write_like(&mut self, random: &mut Random, n_windows: usize, spread_a: f64, spread_b: f64) {
        let mut normal = Normal::default();
        let median_b = MEDIAN + 0.5 * (spread_a * spread_a - spread_b * spread_b);
        for _ in 0..n_windows {
            let window: [f64; 3] = std::array::from_fn(|_| normal.next(random));
            let mut slow: [f64; 3] = std::array::from_fn(|_| normal.next(random));
            for _ in 0..WINDOW {
                let z: [f64; 3] = std::array::from_fn(|i| {
                    slow[i] = STAYS * slow[i] + (1.0 - STAYS * STAYS).sqrt() * normal.next(random);
                    OF_WINDOW.sqrt() * window[i]
                        + SLOW.sqrt() * slow[i]
                        + (1.0 - SLOW - OF_WINDOW).sqrt() * normal.next(random)
                });
                let of = |own: f64| SHARED.sqrt() * z[0] + (1.0 - SHARED).sqrt() * own;
                self.a.push(exp(MEDIAN + spread_a * of(z[1])));
                self.b.push(exp(median_b + spread_b * of(z[2])));
                // A hard token is one that both find hard. How far they are apart grows with the root of KLD.
                let surprise = exp(0.3 + z[0]);
                self.reference_nll.push(surprise);
                let apart = (2.0 * self.a[self.a.len() - 1]).sqrt();
                self.nll.push(surprise + apart * normal.next(random));
            }
        }
    }

    /// Leaves the first `n` tokens.
    pub fn truncate(&mut self, n: usize) {
        for column in [&mut self.a, &mut self.b, &mut self.nll, &mut self.reference_nll] {
            assert!(column.len() >= n);
            column.truncate(n);
        }
    }
}

/// Normally distributed numbers, by Marsaglia's polar method.
#[derive(Default)]
struct Normal {
    kept: Option<f64>,
}

impl Normal {
    fn next(&mut self, random: &mut Random) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        loop {
            let (x, y) = (2.0 * random.unit() - 1.0, 2.0 * random.unit() - 1.0);
            let square = x * x + y * y;
            if square < 1.0 && square > 0.0 {
                let factor = (-2.0 * ln(square) / square).sqrt();
                self.kept = Some(y * factor);
                return x * factor;
            }
        }
    }
}

/// What was estimated of a made-up text, and the true number.
struct Outcome {
    what: &'static str,
    truth: f64,
    estimate: Estimate,
}

/// Everything that has an interval, of one text of `n_slices` with `n_windows` in all.
fn outcomes(seed: u64, n_windows: usize, n_slices: usize, spread: f64, resamples: u32) -> Vec<Outcome> {
    let mut random = Random::new(seed);
    let (mut alike, mut skewed) = (Text::default(), Text::default());
    alike.write_like(&mut random, n_windows, spread, spread);
    skewed.write_like(&mut random, n_windows, spread, 0.75 * spread);
    let windows: Vec<(usize, usize)> = (0..n_windows).map(|w| (w * n_slices / n_windows, WINDOW)).collect();
    let bootstrap = Bootstrap::new(Blocks::of_windows(&windows), resamples, seed ^ 0xB007, 0.95);
    let quantile = |share: f64| exp(MEDIAN + spread * distributions::normal_quantile(share));
    let up_to: Vec<f64> = alike.a.iter().map(|kld| f64::from(u8::from(*kld <= quantile(0.9)))).collect();
    let mut all = vec![
        ("difference", 0.0, bootstrap.difference(&alike.a, &alike.b)),
        ("skewed difference", 0.0, bootstrap.difference(&skewed.a, &skewed.b)),
        ("mean", exp(MEDIAN + 0.5 * spread * spread), bootstrap.mean(&alike.a)),
        ("ratio", 1.0, bootstrap.of_means(&[&alike.nll, &alike.reference_nll], |m| exp(m[0] - m[1]))),
        ("share", 0.9, bootstrap.mean(&up_to)),
    ];
    let shares = [0.5, 0.9, 0.99, 0.999];
    let names = ["median", "90%", "99%", "99.9%"];
    for ((estimate, share), name) in bootstrap.quantiles(&alike.a, &shares).into_iter().zip(shares).zip(names) {
        all.push((name, quantile(share), estimate));
    }
    all.into_iter().map(|(what, truth, estimate)| Outcome { what, truth, estimate }).collect()
}

/// How often intervals hold the true number, are above it and below it, and how often there is one.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    texts: usize,
    intervals: usize,
    above: usize,
    below: usize,
}

impl Tally {
    fn coverage(&self) -> f64 {
        1.0 - (self.above + self.below) as f64 / self.intervals as f64
    }
}

fn tally(n_texts: usize, n_windows: usize, n_slices: usize, spread: f64, resamples: u32) -> Vec<(&'static str, Tally)> {
    let seed = |text: usize| (n_windows * 1_000_003 + n_slices * 500_009 + text) as u64;
    let all: Vec<Vec<Outcome>> =
        (0..n_texts).into_par_iter().map(|text| outcomes(seed(text), n_windows, n_slices, spread, resamples)).collect();
    let mut tallies: Vec<(&str, Tally)> = all[0].iter().map(|outcome| (outcome.what, Tally::default())).collect();
    for text in &all {
        for (outcome, (_, tally)) in text.iter().zip(&mut tallies) {
            tally.texts += 1;
            if let Some([low, high]) = outcome.estimate.interval {
                tally.intervals += 1;
                tally.above += usize::from(low > outcome.truth);
                tally.below += usize::from(high < outcome.truth);
            }
        }
    }
    tallies
}

/// `TEXTS=2000 cargo test --release --lib coverage_table -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn coverage_table() {
    let n_texts = std::env::var("TEXTS").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    for spread in [SPREAD, 2.0] {
        for (n_windows, n_slices) in
            [(6, 1), (6, 2), (8, 1), (8, 2), (16, 1), (24, 1), (24, 2), (100, 1), (100, 2), (236, 2)]
        {
            print!("{spread:4} {n_windows:4} {n_slices:2} ");
            for (what, tally) in tally(n_texts, n_windows, n_slices, spread, 1000) {
                let Tally { texts, intervals, above, below } = tally;
                let [above, below] = [above, below].map(|n| 100.0 * n as f64 / intervals.max(1) as f64);
                let have = 100.0 * intervals as f64 / texts as f64;
                print!(" | {what} {:.1} ({above:.1} {below:.1}) {have:.0}", 100.0 - above - below);
            }
            println!();
        }
    }
}

#[test]
fn of_500_null_comparisons_95_in_100_find_nothing() {
    // Few windows of one text, and some of two. The second candidates are alike, or have other tails and the same mean.
    for (n_windows, n_slices) in [(8, 1), (24, 2)] {
        for (what, tally) in tally(500, n_windows, n_slices, SPREAD, 500) {
            let promised = !what.ends_with('%');
            if promised {
                assert_eq!(tally.intervals, 500, "{what}");
                assert!((0.93..=0.97).contains(&tally.coverage()), "{n_windows} windows, {what}: {tally:?}");
            }
        }
    }
}
