//! Estimates against slow ones, written out plainly.

use super::simulation::SimulatedText;
use super::*;
use crate::base::math::exp;

fn near(a: f64, b: f64, relative: f64) -> bool {
    (a - b).abs() <= relative * b.abs().max(1e-300)
}

/// A text of several slices with windows of different lengths.
fn uneven() -> (Vec<(usize, usize)>, SimulatedText) {
    let windows: Vec<(usize, usize)> = (0..25).map(|w| (w % 2, 200 + 3 * w)).collect();
    let n = windows.iter().map(|window| window.1).sum();
    let mut text = SimulatedText::default();
    text.write(&mut crate::base::random::Random::new(5), 26, 1.75);
    text.truncate(n);
    (windows, text)
}

/// The bootstrap-t and Student's interval of `f` of means, with every sum over tokens and every derivative written out.
fn slow(
    blocks: &Blocks,
    resamples: u32,
    seed: u64,
    columns: &[&[f64]],
    f: impl Fn(&[f64]) -> f64,
    slopes: impl Fn(&[f64]) -> Vec<f64>,
) -> (f64, [f64; 2]) {
    let means_and_error = |drawn: &[Vec<usize>]| {
        let tokens: Vec<usize> = drawn.iter().flatten().flat_map(|block| blocks.ranges()[*block].clone()).collect();
        let means: Vec<f64> =
            columns.iter().map(|c| tokens.iter().map(|t| c[*t]).sum::<f64>() / tokens.len() as f64).collect();
        let slopes = slopes(&means);
        let mut variance = 0.0;
        for stratum in drawn {
            let sums: Vec<f64> = stratum
                .iter()
                .map(|block| {
                    let range = blocks.ranges()[*block].clone();
                    range.map(|t| (0..means.len()).map(|k| slopes[k] * (columns[k][t] - means[k])).sum::<f64>()).sum()
                })
                .collect();
            let n = sums.len() as f64;
            let mean = sums.iter().sum::<f64>() / n;
            variance += n / (n - 1.0) * sums.iter().map(|s| (s - mean).powi(2)).sum::<f64>();
        }
        (f(&means), variance.sqrt() / tokens.len() as f64)
    };
    let all: Vec<Vec<usize>> = blocks.strata().iter().map(|stratum| stratum.clone().collect()).collect();
    let (value, error) = means_and_error(&all);
    let mut random = crate::base::random::Random::new(seed);
    let mut scores: Vec<f64> = (0..resamples)
        .map(|_| {
            let mut draw = |stratum: &std::ops::Range<usize>| -> Vec<usize> {
                stratum.clone().map(|_| stratum.start + (random.unit() * stratum.len() as f64) as usize).collect()
            };
            let drawn: Vec<Vec<usize>> = blocks.strata().iter().map(&mut draw).collect();
            let (drawn, drawn_error) = means_and_error(&drawn);
            (drawn - value) / drawn_error
        })
        .collect();
    scores.sort_by(f64::total_cmp);
    let at = |p: f64| {
        let position = p * f64::from(resamples + 1) - 1.0;
        let (i, part) = (position.floor() as usize, position - position.floor());
        scores[i] * (1.0 - part) + scores[i + 1] * part
    };
    let student = super::distributions::student_quantile(0.975, blocks.len() - blocks.strata().len());
    (value, [value - error * at(0.975).max(student), value - error * at(0.025).min(-student)])
}

#[test]
fn estimates_are_those_of_plain_loops() {
    let (windows, text) = uneven();
    let all = Blocks::of_windows(&windows);
    for blocks in [all.only(1), all] {
        // 12 or 25 blocks.
        let joined = blocks.len() >= 16;
        let bootstrap = Bootstrap::new(blocks.clone(), 399, 9, 0.95);
        let slow = |columns: &[&[f64]], f: fn(&[f64]) -> f64, slopes: fn(&[f64]) -> Vec<f64>| {
            slow(&blocks, 399, 9, columns, f, slopes)
        };
        let differences: Vec<f64> = text.a.iter().zip(&text.b).map(|(a, b)| a - b).collect();
        let squares: Vec<f64> = text.a.iter().map(|a| a * a).collect();
        let mut cases = vec![
            (bootstrap.mean(&text.a), slow(&[&text.a], |m| m[0], |_| vec![1.0]), true),
            (
                bootstrap.of_means(&[&squares], |m| m[0].sqrt()),
                slow(&[&squares], |m| m[0].sqrt(), |m| vec![0.5 / m[0].sqrt()]),
                true,
            ),
        ];
        if joined {
            cases.push((
                bootstrap.difference(&text.a, &text.b),
                slow(&[&differences], |m| m[0], |_| vec![1.0]),
                joined,
            ));
            cases.push((
                bootstrap.of_means(&[&text.nll, &text.reference_nll], |m| exp(m[0] - m[1])),
                slow(
                    &[&text.nll, &text.reference_nll],
                    |m| (m[0] - m[1]).exp(),
                    |m| vec![(m[0] - m[1]).exp(), -(m[0] - m[1]).exp()],
                ),
                joined,
            ));
        }
        for (i, (fast, (value, [low, high]), _)) in cases.into_iter().enumerate() {
            let interval = fast.interval.unwrap();
            assert!(near(fast.value, value, 1e-12), "{i}: {} {value}", fast.value);
            let width = high - low;
            assert!(
                (interval[0] - low.max(if i < 2 { 0.0 } else { low })).abs() < 1e-5 * width,
                "{i}: {interval:?} {low}"
            );
            assert!((interval[1] - high).abs() < 1e-5 * width, "{i}: {interval:?} {high}");
        }
    }
}

#[test]
fn a_difference_of_columns_is_the_mean_of_differences() {
    let (windows, text) = uneven();
    let bootstrap = Bootstrap::new(Blocks::of_windows(&windows), 500, 1, 0.95);
    let by_token = bootstrap.difference(&text.a, &text.b);
    let by_mean = bootstrap.of_means(&[&text.a, &text.b], |m| m[0] - m[1]);
    assert!(near(by_token.value, by_mean.value, 1e-9));
    for end in 0..2 {
        assert!(near(by_token.interval.unwrap()[end], by_mean.interval.unwrap()[end], 1e-6));
    }
}

#[test]
fn standard_errors_of_independent_values_are_the_textbook_ones() {
    let mut random = crate::base::random::Random::new(3);
    let values: Vec<f64> = (0..40 * 255).map(|_| random.unit()).collect();
    let bootstrap = Bootstrap::new(Blocks::of_windows(&[(0, 255); 40]), 2000, 1, 0.95);
    let Estimate { interval: Some([low, high]), .. } = bootstrap.mean(&values) else { panic!("an interval") };
    // Uniform from 0 to 1: variance 1/12. 40 blocks know their spread to 1 in 9.
    let textbook = 2.0 * 2.0227 * (1.0 / 12.0 / values.len() as f64).sqrt();
    assert!((high - low) / textbook > 0.75 && (high - low) / textbook < 1.3, "{} {textbook}", high - low);
}

#[test]
fn quantiles_are_those_of_llama_perplexity() {
    let (windows, text) = uneven();
    let bootstrap = Bootstrap::new(Blocks::of_windows(&windows), 10, 1, 0.95);
    let mut sorted = text.a.clone();
    sorted.sort_by(f64::total_cmp);
    for (share, estimate) in
        [0.5, 0.9, 0.99, 0.123].into_iter().zip(bootstrap.quantiles(&text.a, &[0.5, 0.9, 0.99, 0.123]))
    {
        let position = share * (sorted.len() - 1) as f64;
        let (i, part) = (position as usize, position.fract());
        let slow = (1.0 - part) * sorted[i] + part * sorted[i + 1];
        assert!(near(estimate.value, slow, 1e-12), "{share}");
        let [low, high] = estimate.interval.unwrap();
        assert!(low < slow && slow < high);
    }
    let small = Bootstrap::new(Blocks::of_windows(&[(0, 1), (0, 1), (0, 1), (0, 1)]), 10, 1, 0.95);
    assert_eq!(
        small.quantiles(&[4.0, 1.0, 3.0, 2.0], &[0.5, 0.0, 1.0]).iter().map(|q| q.value).collect::<Vec<_>>(),
        [2.5, 1.0, 4.0]
    );
    assert_eq!(small.quantiles(&[4.0, 1.0, 3.0, 2.0], &[0.5])[0].interval, None, "four blocks");
    // 6,000 tokens: six lie beyond, but they come together.
    assert_eq!(bootstrap.quantiles(&text.a, &[0.9995])[0].interval, None, "too few beyond");
}

#[test]
fn few_blocks_have_no_interval_and_a_maximum_has_none() {
    let values: Vec<f64> = (0..6 * 255).map(|i| f64::from(i % 7)).collect();
    let five = Bootstrap::new(Blocks::of_windows(&[(0, 255); 5]), 100, 1, 0.95);
    let six = Bootstrap::new(Blocks::of_windows(&[(0, 255); 6]), 100, 1, 0.95);
    assert_eq!(five.mean(&values[..5 * 255]).interval, None);
    assert!(six.mean(&values).interval.is_some());
    assert_eq!(six.maximum(&values), Estimate::bare(6.0));
    assert!(Bootstrap::new(Blocks::of_windows(&[]), 100, 1, 0.95).mean(&[]).value.is_nan());
}

#[test]
fn intervals_do_not_leave_what_the_values_allow() {
    let bootstrap = Bootstrap::new(Blocks::of_windows(&[(0, 100); 7]), 500, 1, 0.95);
    // One window in which everything happens.
    let mut values = vec![0.0; 700];
    values[50..150].fill(0.2);
    let [low, high] = bootstrap.mean(&values).interval.unwrap();
    assert!(low == 0.0 && high <= 1.0 && high > 0.03, "{low} {high}");
    let flipped: Vec<f64> = values.iter().map(|v| f64::from(u8::from(*v == 0.0))).collect();
    assert_eq!(bootstrap.mean(&flipped).interval.unwrap()[1], 1.0);
    assert_eq!(bootstrap.mean(&vec![0.25; 700]), Estimate { value: 0.25, interval: Some([0.25, 0.25]) });
    assert_eq!(bootstrap.difference(&values, &values), Estimate { value: 0.0, interval: Some([0.0, 0.0]) });
}

#[test]
fn infinite_values_are_told_and_never_become_nan_in_passing() {
    let bootstrap = Bootstrap::new(Blocks::of_windows(&[(0, 255); 8]), 200, 1, 0.95);
    let finite: Vec<f64> = (0..8 * 255).map(|i| f64::from(i % 13)).collect();
    let with = |at: usize| {
        let mut values = finite.clone();
        values[at] = f64::INFINITY;
        values
    };
    assert_eq!(bootstrap.mean(&with(3)), Estimate::bare(f64::INFINITY));
    assert_eq!(bootstrap.maximum(&with(3)), Estimate::bare(f64::INFINITY));
    let quantiles = bootstrap.quantiles(&with(3), &[0.5, 1.0]);
    assert!(quantiles[0].value == 6.0 && quantiles[0].interval.is_some());
    assert_eq!(quantiles[1], Estimate::bare(f64::INFINITY));
    assert_eq!(bootstrap.difference(&with(3), &finite), Estimate::bare(f64::INFINITY));
    assert_eq!(bootstrap.difference(&finite, &with(3)), Estimate::bare(f64::NEG_INFINITY));
    assert_eq!(bootstrap.difference(&with(3), &with(3)).interval, Some([0.0, 0.0]));
    assert!(bootstrap.difference(&with(3), &with(4)).value.is_nan());
    assert_eq!(bootstrap.of_means(&[&with(3)], |m| exp(m[0])), Estimate::bare(f64::INFINITY));
    let mut broken = finite.clone();
    broken[9] = f64::NAN;
    assert!(bootstrap.mean(&broken).value.is_nan() && bootstrap.quantiles(&broken, &[0.5])[0].value.is_nan());
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
    let (windows, text) = uneven();
    let run = |n_threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| {
            let bootstrap = Bootstrap::new(Blocks::of_windows(&windows), 1000, seed, 0.95);
            let ratio = bootstrap.of_means(&[&text.nll, &text.reference_nll], |m| exp(m[0] - m[1]));
            [bootstrap.mean(&text.a), bootstrap.difference(&text.a, &text.b), ratio]
                .map(|e| e.interval.unwrap().map(f64::to_bits))
        })
    };
    let one = run(1, 7);
    assert_eq!(one, run(2, 7));
    assert_eq!(one, run(5, 7));
    assert_ne!(one, run(1, 8));
}
