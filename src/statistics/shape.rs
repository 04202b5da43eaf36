//! The distribution of KLD: by size, and along the window.

use serde::Serialize;

use super::{Blocks, Bootstrap, Estimate};

/// The powers of ten of the histogram, each with four bins; the last bin ends at 100.
const DECADES: [f64; 8] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1];

/// 10^0, 10^(1/4), 10^(1/2), 10^(3/4).
const FOURTHS: [f64; 4] = [1.0, 1.778_279_410_038_922_8, 3.162_277_660_168_379_5, 5.623_413_251_903_491];

/// A histogram of KLD, on a logarithmic scale.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Decimal logarithm of the lower edge of the first bin, which also counts smaller values.
    pub log10_from: f64,
    /// Width of a bin, in decimal logarithms.
    pub log10_step: f64,
    /// Number of tokens in each bin. The last bin also counts larger values.
    pub counts: Vec<u64>,
}

/// Counts KLDs in bins of a fourth of a power of ten, from 10^-6 to 100. Values of 0, or negative ones from rounding,
/// count in the first bin, and infinite ones in the last. NaN is not counted.
pub fn histogram(klds: &[f64]) -> Histogram {
    let mut edges = [0.0; DECADES.len() * FOURTHS.len()];
    for (i, edge) in edges.iter_mut().enumerate() {
        *edge = DECADES[i / FOURTHS.len()] * FOURTHS[i % FOURTHS.len()];
    }
    let mut counts = vec![0; edges.len()];
    for kld in klds.iter().filter(|kld| !kld.is_nan()) {
        counts[edges.partition_point(|edge| edge <= kld).saturating_sub(1)] += 1;
    }
    Histogram { log10_from: -6.0, log10_step: 0.25, counts }
}

/// A range of positions in the window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stretch {
    /// The first position, counted from 0.
    pub from: u32,
    /// One past the last.
    pub to: u32,
    /// Mean KLD there.
    pub kld: Estimate,
}

/// The positions of a window in ranges. They show whether a candidate drifts away as the text gets longer.
#[derive(Clone, Debug)]
pub struct Stretches {
    /// A block per window. Those of all stretches are drawn alike.
    bootstrap: Bootstrap,
    /// The end of each range, in scored positions.
    ends: Vec<usize>,
    /// The position of the first scored token.
    first: u32,
}

impl Stretches {
    /// Creates `n` ranges, or fewer if there are fewer positions. `windows` are as for [`Blocks::of_windows`]; their
    /// first scored token is at position `first` of the window.
    pub fn new(windows: &[(usize, usize)], first: u32, n: usize, resamples: u32, seed: u64, confidence: f64) -> Self {
        let longest = windows.iter().map(|window| window.1).max().unwrap_or(0);
        let n = n.min(longest);
        let mut from = 0;
        let parts = windows.iter().map(|&(slice, n_scored)| {
            from += n_scored;
            (slice, from - n_scored..from)
        });
        let blocks = Blocks::of_parts(parts.collect(), windows.iter().map(|window| window.1).sum());
        let ends = (1..=n).map(|i| longest * i / n).collect();
        Self { bootstrap: Bootstrap::new(blocks, resamples, seed, confidence), ends, first }
    }

    /// Returns the mean KLD of each range.
    pub fn of(&self, klds: &[f64]) -> Vec<Stretch> {
        let mut from = 0;
        self.ends
            .iter()
            .map(|&to| {
                let stretch = Stretch {
                    from: self.first + from as u32,
                    to: self.first + to as u32,
                    kld: self.mean(klds, from, to),
                };
                from = to;
                stretch
            })
            .collect()
    }

    fn mean(&self, klds: &[f64], from: usize, to: usize) -> Estimate {
        let parts: Vec<&[f64]> = self
            .bootstrap
            .blocks()
            .ranges()
            .iter()
            .map(|window| &klds[window.clone()][from.min(window.len())..to.min(window.len())])
            .collect();
        let sums = parts.iter().map(|part| part.iter().sum()).collect();
        let sizes: Vec<f64> = parts.iter().map(|part| part.len() as f64).collect();
        let mut kld = self.bootstrap.of_sums(&[sums], &sizes, |means| means[0], true);
        if let Some([low, _]) = &mut kld.interval {
            *low = low.max(0.0);
        }
        kld
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_every_number_once() {
        let klds = [-1e-9, 0.0, 1e-7, 1e-6, 1.7e-6, 1.8e-6, 0.05, 1.0, 99.0, 101.0, f64::INFINITY, f64::NAN];
        let Histogram { log10_from, log10_step, counts } = histogram(&klds);
        assert_eq!(counts.iter().sum::<u64>(), 11);
        assert_eq!((counts[0], counts[1], counts[31]), (5, 1, 3));
        for kld in [0.05f64, 1.0] {
            let bin = ((kld.log10() - log10_from) / log10_step + 1e-9).floor() as usize;
            assert_eq!(counts[bin], 1, "{kld}");
        }
        for kld in [3.3e-6f64, 0.002, 0.7, 12.0] {
            let bin = ((kld.log10() - log10_from) / log10_step).floor() as usize;
            assert_eq!(histogram(&[kld]).counts[bin], 1, "{kld}");
        }
    }

    #[test]
    fn stretches_have_their_own_means_and_cover_the_window() {
        let windows = [(0, 255), (0, 255), (1, 255), (1, 255), (0, 255), (1, 255), (1, 100)];
        let n: usize = windows.iter().map(|window| window.1).sum();
        // The position, with a little of the window in it.
        let mut klds = Vec::new();
        for (w, window) in windows.iter().enumerate() {
            klds.extend((0..window.1).map(|i| i as f64 + 0.01 * w as f64));
        }
        assert_eq!(klds.len(), n);
        let stretches = Stretches::new(&windows, 256, 16, 500, 1, 0.95).of(&klds);
        assert_eq!(stretches.len(), 16);
        assert_eq!((stretches[0].from, stretches[15].to), (256, 511));
        assert!(stretches.windows(2).all(|two| two[0].to == two[1].from));
        for stretch in stretches {
            let inside =
                |w: usize| (stretch.from - 256..stretch.to - 256).filter(move |i| (*i as usize) < windows[w].1);
            let all: Vec<f64> =
                (0..windows.len()).flat_map(|w| inside(w).map(move |i| f64::from(i) + 0.01 * w as f64)).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            assert!((stretch.kld.value - mean).abs() < 1e-9);
            let [low, high] = stretch.kld.interval.unwrap();
            assert!(low < mean && mean < high, "{stretch:?}");
        }
        assert!(Stretches::new(&[], 0, 16, 100, 1, 0.95).of(&[]).is_empty());
        assert_eq!(Stretches::new(&[(0, 3); 6], 0, 16, 100, 1, 0.95).of(&[0.0; 18]).len(), 3);
    }
}
