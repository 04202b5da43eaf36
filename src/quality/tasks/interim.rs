//! Intervals of shares and means, until `quality::statistics` has them.

use crate::quality::results::Estimate;

/// The standard normal quantile of 0.975.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's interval of a share.
pub(super) fn share(right: u64, of: u64, _confidence: f64) -> Estimate {
    if of == 0 {
        return Estimate::bare(0.0);
    }
    let n = of as f64;
    let p = right as f64 / n;
    let z2 = Z * Z / n;
    let middle = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt() / (1.0 + z2);
    Estimate { value: p, interval: Some([(middle - half).max(0.0), (middle + half).min(1.0)]) }
}

/// The interval of a mean, by its standard error.
pub(super) fn mean_of_questions(marks: &[f64], _confidence: f64) -> Estimate {
    let n = marks.len() as f64;
    if marks.is_empty() {
        return Estimate::bare(0.0);
    }
    let mean = marks.iter().sum::<f64>() / n;
    if marks.len() < 2 {
        return Estimate::bare(mean);
    }
    let variance = marks.iter().map(|mark| (mark - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = Z * (variance / n).sqrt();
    Estimate { value: mean, interval: Some([mean - half, mean + half]) }
}

/// McNemar's exact test, two-sided.
pub(super) fn mcnemar(lost: u64, won: u64) -> f64 {
    let n = lost + won;
    let (mut term, mut tail) = (0.5f64.ln() * n as f64, 0.0);
    for k in 0..=lost.min(won) {
        tail += term.exp();
        term += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}
