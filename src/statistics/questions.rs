//! Shares of right answers, and whether one of two models has more of them.

use super::Estimate;
use super::distributions::{normal_quantile, student_quantile};
use super::quantiles::wilson;

/// The fewest questions for an interval of scores that are not just right or wrong.
const FEWEST_QUESTIONS: usize = 6;

/// Returns the p-value of McNemar's exact test, two-sided: the probability that chance alone splits `lost` and `won` at
/// least this unevenly.
///
/// `min(1, 2 Σ C(n, i) / 2^n)` for `i` from 0 to the smaller of the two, where `n` is their sum; 1 if `n` is 0. Source:
/// McNemar 1947; the same as `scipy.stats.binomtest(lost, lost + won).pvalue`.
pub fn mcnemar(lost: u64, won: u64) -> f64 {
    let (n, fewer) = (lost + won, lost.min(won));
    if lost == won {
        return 1.0;
    }
    // C(n, fewer) / 2^n, where halvings keep the product near 1.
    let (mut term, mut halvings) = (1.0f64, n);
    for i in 1..=fewer {
        term *= (n - fewer + i) as f64 / i as f64;
        while term > 1.0 && halvings > 0 {
            term *= 0.5;
            halvings -= 1;
        }
    }
    for _ in 0..halvings.min(1100) {
        term *= 0.5;
    }
    // The largest term first, and each further one from the one before: C(n, i-1) = C(n, i) i / (n-i+1).
    let mut sum = 0.0;
    for i in (0..=fewer).rev() {
        sum += term;
        term *= i as f64 / (n - i + 1) as f64;
        if term < 1e-18 * sum {
            break;
        }
    }
    (2.0 * sum).min(1.0)
}

/// Returns the share of right answers, with Wilson's interval; NaN if there are no questions.
pub fn share(right: u64, of: u64, confidence: f64) -> Estimate {
    let value = right as f64 / of as f64;
    let interval = (of > 0).then(|| wilson(value, of as f64, normal_quantile(0.5 + 0.5 * confidence)));
    Estimate { value, interval }
}

/// Returns the mean of the questions' scores, which are from 0 to 1, with Student's interval; without an interval if
/// there are fewer than 6 questions.
pub fn mean_of_questions(values: &[f64], confidence: f64) -> Estimate {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    if values.len() < FEWEST_QUESTIONS || !value.is_finite() {
        return Estimate::bare(value);
    }
    let variance = values.iter().map(|v| (v - value) * (v - value)).sum::<f64>() / (n - 1.0);
    let half = student_quantile(0.5 + 0.5 * confidence, values.len() - 1) * (variance / n).sqrt();
    Estimate { value, interval: Some([(value - half).max(0.0), (value + half).min(1.0)]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_gives_the_published_and_the_summed_values() {
        // R's binom.test and SciPy's binomtest for 3 of 10, 0 of 6, 8 of 10 and 15 of 20.
        for (lost, won, p) in [(3, 7, 0.343_75), (0, 6, 0.031_25), (8, 2, 0.109_375), (15, 5, 0.041_389_465_332_031_25)]
        {
            assert!((mcnemar(lost, won) - p).abs() < 1e-15, "{lost} {won}: {}", mcnemar(lost, won));
        }
        for (lost, won) in [(0, 0), (4, 4), (5_000, 5_000), (1, 0), (5, 4)] {
            assert_eq!(mcnemar(lost, won), 1.0);
        }
        // Pascal's triangle in whole numbers.
        for n in 0..=60u64 {
            let row = (0..n).fold(vec![1u128], |row, _| {
                (0..=row.len()).map(|i| row.get(i).unwrap_or(&0) + if i > 0 { row[i - 1] } else { 0 }).collect()
            });
            for lost in 0..=n {
                let tail: u128 = row[..=lost.min(n - lost) as usize].iter().sum();
                let exact = (2.0 * tail as f64 / (1u128 << n) as f64).min(1.0);
                assert!((mcnemar(lost, n - lost) - exact).abs() <= 1e-13 * exact, "{lost} of {n}");
            }
        }
    }

    #[test]
    fn mcnemar_holds_where_powers_of_two_run_out() {
        // ln C(n, i) from the sum of logarithms.
        for (lost, won) in [(900u64, 1_100u64), (4_900, 5_300), (100, 3_000), (0, 1_000)] {
            let n = lost + won;
            let ln_factorial = |m: u64| (1..=m).map(|i| (i as f64).ln()).sum::<f64>();
            let ln_term = |i: u64| ln_factorial(n) - ln_factorial(i) - ln_factorial(n - i) - n as f64 * 2f64.ln();
            let slow = 2.0 * (lost.saturating_sub(300)..=lost).map(|i| ln_term(i).exp()).sum::<f64>();
            let p = mcnemar(lost, won);
            assert!((p - slow).abs() <= 1e-8 * slow, "{lost} {won}: {p} {slow}");
        }
        assert_eq!(mcnemar(0, u64::from(u32::MAX)), 0.0);
    }

    #[test]
    fn wilson_gives_the_published_intervals() {
        // Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        for (right, of, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let [a, b] = share(right, of, 0.95).interval.unwrap();
            assert!((a - low).abs() < 5.1e-5 && (b - high).abs() < 5.1e-5, "{right} of {of}: {a} {b}");
        }
        assert!(share(0, 0, 0.95).value.is_nan() && share(0, 0, 0.95).interval.is_none());
    }

    #[test]
    fn wilson_covers_the_true_share_by_direct_summation() {
        // All outcomes of n questions, each weighted by how likely it is.
        for (n, p) in [(30u64, 0.5f64), (100, 0.25), (200, 0.9), (600, 0.62)] {
            let mut term = (1.0 - p).powi(n as i32);
            let mut covered = 0.0;
            for right in 0..=n {
                let [low, high] = share(right, n, 0.95).interval.unwrap();
                if (low..=high).contains(&p) {
                    covered += term;
                }
                term *= (n - right) as f64 / (right + 1) as f64 * p / (1.0 - p);
            }
            assert!((0.93..0.97).contains(&covered), "{n} {p}: {covered}");
        }
    }

    #[test]
    fn scores_between_right_and_wrong_have_students_interval() {
        let values = [0.2, 0.4, 0.4, 0.6, 0.9, 0.5];
        let Estimate { value, interval } = mean_of_questions(&values, 0.95);
        assert!((value - 0.5).abs() < 1e-15);
        // Standard deviation 0.236643, over the root of 6: 0.0966092, times 2.570582.
        let [low, high] = interval.unwrap();
        assert!((low - 0.251_658).abs() < 1e-5 && (high - 0.748_342).abs() < 1e-5, "{low} {high}");
        assert_eq!(mean_of_questions(&values[..5], 0.95).interval, None);
        assert!(mean_of_questions(&[], 0.95).value.is_nan());
    }
}
