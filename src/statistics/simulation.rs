//! Whether intervals hold the true number as often as they say: texts are made up, with numbers that are known.

use rayon::prelude::*;

use super::*;
use crate::base::math::{exp, ln};
use crate::base::random::Random;

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
pub struct SimulatedText {
    /// KLD of the first candidate.
    pub a: Vec<f64>,
    /// KLD of the second.
    pub b: Vec<f64>,
    /// Negative logarithm of the right token's likelihood by the first.
    pub nll: Vec<f64>,
    /// By the reference.
    pub reference_nll: Vec<f64>,
}

impl SimulatedText {
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
    let (mut alike, mut skewed) = (SimulatedText::default(), SimulatedText::default());
    alike.write_like(&mut random, n_windows, spread, spread);
    skewed.write_like(&mut random, n_windows, spread, 0.75 * spread);
    let windows: Vec<(usize, usize)> = (0..n_windows).map(|w| (w * n_slices / n_windows, WINDOW)).collect();
    let bootstrap = Bootstrap::new(Blocks::of_windows(&windows), resamples, seed ^ 0xB007, 0.95);
    let quantile = |share: f64| exp(MEDIAN + spread * distributions::normal_quantile(share));
    let ninth = quantile(0.9);
    let up_to: Vec<f64> = alike.a.iter().map(|kld| f64::from(u8::from(*kld <= ninth))).collect();
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
    fn and(self, other: Self) -> Self {
        Self {
            texts: self.texts + other.texts,
            intervals: self.intervals + other.intervals,
            above: self.above + other.above,
            below: self.below + other.below,
        }
    }

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
        for (n_windows, n_slices) in [(6, 1), (8, 1), (8, 2), (16, 1), (24, 1), (24, 2), (100, 2), (236, 2)] {
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
    // Few windows of one text, and some of two. Of the second candidates some are alike, and some have other tails and the
    // same mean: those, and all that is no comparison, over both.
    let promised = 0.93..=0.97;
    let [few, some] = [(8, 1), (24, 2)].map(|(n_windows, n_slices)| tally(500, n_windows, n_slices, SPREAD, 500));
    for ((what, few), (_, some)) in few.into_iter().zip(some) {
        let both = few.and(some);
        if what == "difference" {
            assert!(promised.contains(&few.coverage()), "8 windows: {few:?}");
            assert!(promised.contains(&some.coverage()), "24 windows: {some:?}");
        }
        if !["99%", "99.9%"].contains(&what) {
            assert_eq!(both.intervals, 1000, "{what}");
            assert!(promised.contains(&both.coverage()), "{what}: {both:?}");
        }
    }
}

#[test]
fn real_differences_are_found_as_often_as_their_standard_error_says() {
    // b's KLD is a's of the same distribution times 1 - shift: how far the means are apart is known.
    let found = |shift: f64, n_texts: usize| {
        let differences: Vec<Estimate> = (0..n_texts)
            .into_par_iter()
            .map(|seed| {
                let mut text = SimulatedText::default();
                text.write(&mut Random::new(seed as u64 + 77_000), 40, SPREAD);
                let better: Vec<f64> = text.b.iter().map(|kld| kld * (1.0 - shift)).collect();
                Bootstrap::new(Blocks::of_windows(&[(0, WINDOW); 40]), 400, 1, 0.95).difference(&text.a, &better)
            })
            .collect();
        let share = |wanted| differences.iter().filter(|d| verdict(d) == wanted).count() as f64 / n_texts as f64;
        let mean = differences.iter().map(|d| d.value).sum::<f64>() / n_texts as f64;
        let spread = differences.iter().map(|d| (d.value - mean).powi(2)).sum::<f64>() / (n_texts - 1) as f64;
        (share(Verdict::B), share(Verdict::A), mean, spread.sqrt())
    };
    let shift = 0.25;
    let (right, wrong, mean, spread) = found(shift, 300);
    let truth = shift * exp(MEDIAN + 0.5 * SPREAD * SPREAD);
    assert!((mean - truth).abs() < 4.0 * spread / 300f64.sqrt(), "{mean} {truth}");
    // Found where the difference is 2.02 standard errors or more: Student's quantile for 39 degrees of freedom.
    let expected = distributions::normal_share(truth / spread - 2.0227);
    println!("{shift}: found {right:.3}, expected {expected:.3}, the wrong way {wrong:.3}");
    assert!((right - expected).abs() < 0.1, "{shift}: found {right}, expected {expected}");
    assert!(wrong <= 0.01);
}

/// `cargo test --release --lib time_of_a_whole_comparison -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn time_of_a_whole_comparison() {
    let n_windows = 236;
    let mut random = Random::new(1);
    let texts: Vec<SimulatedText> = (0..8)
        .map(|_| {
            let mut text = SimulatedText::default();
            text.write(&mut random, n_windows, SPREAD);
            text
        })
        .collect();
    let windows: Vec<(usize, usize)> = (0..n_windows).map(|w| (w * 2 / n_windows, WINDOW)).collect();
    for n_threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let start = std::time::Instant::now();
        let checksum: f64 = pool.install(|| {
            let all = Blocks::of_windows(&windows);
            [all.clone(), all.only(0), all.only(1)]
                .into_iter()
                .map(|blocks| {
                    let bootstrap = Bootstrap::new(blocks, 2000, 1, 0.95);
                    let mut sum = 0.0;
                    for (i, text) in texts.iter().enumerate() {
                        sum += bootstrap.of_means(&[&text.nll], |m| exp(m[0])).value;
                        sum += bootstrap.of_means(&[&text.nll, &text.reference_nll], |m| exp(m[0] - m[1])).value;
                        sum += bootstrap.of_means(&[&text.b], |m| m[0].sqrt()).value;
                        for column in [&text.a, &text.b, &text.nll] {
                            sum += bootstrap.mean(column).value;
                        }
                        sum += bootstrap.quantiles(&text.a, &[0.5, 0.9, 0.99, 0.999])[0].value;
                        for other in &texts[..i] {
                            sum += bootstrap.difference(&text.a, &other.a).value;
                            sum += bootstrap.difference(&text.nll, &other.nll).value;
                            sum += bootstrap.difference(&text.b, &other.b).value;
                        }
                    }
                    sum
                })
                .sum()
        });
        println!("{n_threads} threads: {:.3} s ({checksum})", start.elapsed().as_secs_f64());
    }
}

/// Ends of the interval of a mean of blocks by methods that were not taken, and those that were, a line each.
fn rivals(blocks: &[f64], random: &mut Random) -> [[f64; 2]; 6] {
    let n = blocks.len();
    let mean_and_error = |drawn: &[f64]| {
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let squares: f64 = drawn.iter().map(|x| (x - mean).powi(2)).sum();
        (mean, (squares / (n * (n - 1)) as f64).sqrt())
    };
    let (mean, error) = mean_and_error(blocks);
    let (mut means, mut scores): (Vec<f64>, Vec<f64>) = (0..1000)
        .map(|_| {
            let drawn: Vec<f64> = (0..n).map(|_| blocks[(random.unit() * n as f64) as usize]).collect();
            let (drawn_mean, drawn_error) = mean_and_error(&drawn);
            (drawn_mean, (drawn_mean - mean) / drawn_error.max(1e-300))
        })
        .unzip();
    means.sort_by(f64::total_cmp);
    scores.sort_by(f64::total_cmp);
    let at = |sorted: &[f64], p: f64| sorted[((p * 1001.0).round() as usize).clamp(1, 1000) - 1];
    let student = distributions::student_quantile(0.975, n - 1);
    // Hesterberg 2015: as wide as Student's interval would be.
    let expanded = distributions::normal_share(-student * (n as f64 / (n - 1) as f64).sqrt());
    // Efron 1987.
    let bias = distributions::normal_quantile(means.partition_point(|m| *m < mean) as f64 / 1000.0);
    let power = |k: i32| blocks.iter().map(|x| (x - mean).powi(k)).sum::<f64>();
    let acceleration = power(3) / (6.0 * power(2).powf(1.5));
    let corrected = |p: f64| {
        let z = bias + distributions::normal_quantile(p);
        at(&means, distributions::normal_share(bias + z / (1.0 - acceleration * z)))
    };
    let by_student = [mean - student * error, mean + student * error];
    let by_scores = [mean - at(&scores, 0.975) * error, mean - at(&scores, 0.025) * error];
    [
        [at(&means, 0.025), at(&means, 0.975)],
        [at(&means, expanded), at(&means, 1.0 - expanded)],
        [corrected(0.025), corrected(0.975)],
        by_student,
        by_scores,
        [by_student[0].min(by_scores[0]), by_student[1].max(by_scores[1])],
    ]
}

/// `TEXTS=1000 cargo test --release --lib rivals_table -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn rivals_table() {
    let n_texts = std::env::var("TEXTS").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    println!("windows, parts of each: percentile, expanded, BCa, Student, bootstrap-t, the wider of the last two");
    for (n_windows, n_parts) in [(8, 1), (8, 3), (24, 1), (24, 3), (100, 1)] {
        let held: Vec<[[bool; 6]; 3]> = (0..n_texts)
            .into_par_iter()
            .map(|seed: u64| {
                let mut random = Random::new(seed + 1_000_000);
                let (mut alike, mut skewed) = (SimulatedText::default(), SimulatedText::default());
                alike.write(&mut random, n_windows, SPREAD);
                skewed.write(&mut random, n_windows, 0.75 * SPREAD);
                let minus =
                    |text: &SimulatedText| -> Vec<f64> { text.a.iter().zip(&text.b).map(|(a, b)| a - b).collect() };
                let truth = exp(MEDIAN + 0.5 * SPREAD * SPREAD);
                [(minus(&alike), 0.0), (minus(&skewed), 0.0), (alike.a, truth)].map(|(values, truth)| {
                    let size = WINDOW / n_parts;
                    let blocks: Vec<f64> =
                        values.chunks_exact(size).map(|block| block.iter().sum::<f64>() / size as f64).collect();
                    rivals(&blocks, &mut random).map(|[low, high]| low <= truth && truth <= high)
                })
            })
            .collect();
        for (k, what) in ["difference", "skewed difference", "mean"].into_iter().enumerate() {
            let share = |i: usize| 100.0 * held.iter().filter(|text| text[k][i]).count() as f64 / n_texts as f64;
            let shares: Vec<String> = (0..6).map(|i| format!("{:.1}", share(i))).collect();
            println!("{n_windows:3} / {n_parts} {what:17} {}", shares.join("  "));
        }
    }
}
