//! Who is better: what follows from the front and the pairs, and the sentences that say it.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::units;
use crate::quality::results::{Estimate, Results, Verdict};

use super::text;

/// Where the candidates stand.
pub struct Standing<'a> {
    results: &'a Results,
    /// What they are called.
    pub labels: Vec<String>,
    /// Those with scores, smallest file first.
    pub measured: Vec<usize>,
    /// That with the lowest KLD; of equals the smallest.
    pub best: Option<usize>,
    /// Pairs by the candidates' places, the lower first.
    pairs: BTreeMap<(usize, usize), (Estimate, Verdict)>,
}

/// Two candidates, as a sentence wants them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// The first is nearer to the reference.
    Beats,
    /// The second is.
    Loses,
    /// Noise.
    NotDistinguishable,
}

impl<'a> Standing<'a> {
    /// Ranks what was measured.
    pub fn new(results: &'a Results) -> Self {
        let candidates = &results.candidates;
        let mut measured: Vec<usize> = (0..candidates.len()).filter(|&i| candidates[i].overall.is_some()).collect();
        measured.sort_by_key(|&i| candidates[i].file.bytes);
        let mut pairs = BTreeMap::new();
        for pair in results.pairs.iter().filter(|pair| pair.a != pair.b) {
            let turned = match pair.verdict {
                Verdict::A => Verdict::B,
                Verdict::B => Verdict::A,
                Verdict::NotDistinguishable => Verdict::NotDistinguishable,
            };
            if pair.a < pair.b {
                pairs.insert((pair.a, pair.b), (pair.kld, pair.verdict));
            } else {
                pairs.insert((pair.b, pair.a), (negative(pair.kld), turned));
            }
        }
        let mut standing = Self { results, labels: text::labels(results), measured, best: None, pairs };
        // The first of equals is the smallest.
        standing.best = standing
            .measured
            .iter()
            .copied()
            .filter(|&i| !standing.kld(i).is_nan())
            .min_by(|&a, &b| standing.kld(a).total_cmp(&standing.kld(b)));
        standing
    }

    /// A measured candidate's KLD; not a number for others.
    pub fn kld(&self, i: usize) -> f64 {
        self.results.candidates[i].overall.map_or(f64::NAN, |scores| scores.kld.value)
    }

    fn bytes(&self, i: usize) -> u64 {
        self.results.candidates[i].file.bytes
    }

    /// `Q4_K_M (20.66 GB)`
    pub fn sized(&self, i: usize) -> String {
        format!("{} ({})", self.labels[i], units::bytes(self.bytes(i)))
    }

    /// The measured candidates that no smaller one equals, smallest first.
    pub fn front(&self) -> Vec<usize> {
        self.measured.iter().copied().filter(|&i| self.results.candidates[i].on_front).collect()
    }

    /// How the first of two does against the second, with the difference of their KLD, the first's less the second's.
    /// `None` where they were not compared.
    pub fn outcome(&self, a: usize, b: usize) -> Option<(Estimate, Outcome)> {
        let (kld, verdict) = self.pairs.get(&(a.min(b), a.max(b))).copied()?;
        let kld = if a < b { kld } else { negative(kld) };
        let outcome = match verdict {
            Verdict::NotDistinguishable => Outcome::NotDistinguishable,
            Verdict::A if a < b => Outcome::Beats,
            Verdict::B if b < a => Outcome::Beats,
            _ => Outcome::Loses,
        };
        Some((kld, outcome))
    }

    /// The smallest file that cannot be told from the best, where that is smaller than the best.
    pub fn smallest_as_good(&self) -> Option<usize> {
        let best = self.best?;
        let equals = |i: usize| {
            self.kld(i).is_finite() && matches!(self.outcome(i, best), Some((_, Outcome::NotDistinguishable)))
        };
        self.measured.iter().copied().find(|&i| self.bytes(i) < self.bytes(best) && equals(i))
    }

    /// Of the candidates that are no larger, that with the lowest KLD, where that is no higher than this one's.
    pub fn dominated_by(&self, i: usize) -> Option<usize> {
        let no_larger = |&j: &usize| j != i && self.bytes(j) <= self.bytes(i) && self.kld(j) <= self.kld(i);
        let all = self.measured.iter().copied().filter(no_larger);
        all.min_by(|&a, &b| self.kld(a).total_cmp(&self.kld(b)))
    }

    /// At most `most` of the measured candidates that `has`, evenly from the front, or from all where the front is short.
    pub fn chosen(&self, most: usize, has: impl Fn(usize) -> bool) -> Vec<usize> {
        let all: Vec<usize> = self.measured.iter().copied().filter(|&i| has(i)).collect();
        if all.len() <= most {
            return all;
        }
        let front: Vec<usize> = self.front().into_iter().filter(|&i| has(i)).collect();
        let from = if front.len() >= most.min(3) { front } else { all };
        let steps = most.min(from.len());
        (0..steps).map(|step| from[step * (from.len() - 1) / (steps - 1).max(1)]).collect()
    }

    /// The pairs that matter, smaller file first: neighbours by size, neighbours on the front, and the best with the
    /// smallest that cannot be told from it. All pairs of up to four candidates.
    pub fn pairs_that_matter(&self) -> Vec<(usize, usize)> {
        let mut wanted = BTreeSet::new();
        // By their places in `measured`, so that they come in the order of size.
        let places: BTreeMap<usize, usize> = self.measured.iter().enumerate().map(|(place, &i)| (i, place)).collect();
        let mut want = |a: usize, b: usize| {
            if self.pairs.contains_key(&(a.min(b), a.max(b))) {
                let (a, b) = (places[&a], places[&b]);
                wanted.insert((a.min(b), a.max(b)));
            }
        };
        let few = self.measured.len() <= 4;
        for (place, &a) in self.measured.iter().enumerate() {
            for &b in self.measured[place + 1..].iter().take(if few { usize::MAX } else { 1 }) {
                want(a, b);
            }
        }
        for two in self.front().windows(2) {
            want(two[0], two[1]);
        }
        if let (Some(best), Some(smallest)) = (self.best, self.smallest_as_good()) {
            want(smallest, best);
        }
        wanted.into_iter().map(|(a, b)| (self.measured[a], self.measured[b])).collect()
    }

    /// How many pairs were compared, of candidates with scores.
    pub fn pair_count(&self) -> usize {
        let scored = |i: usize| self.results.candidates.get(i).is_some_and(|candidate| candidate.overall.is_some());
        self.pairs.keys().filter(|(a, b)| scored(*a) && scored(*b)).count()
    }

    /// `Q4_K_M beats IQ4_XS: KLD -0.0041 [-0.0050, -0.0032]`; `None` where they were not compared.
    pub fn verdict(&self, a: usize, b: usize) -> Option<String> {
        let (kld, outcome) = self.outcome(a, b)?;
        let (first, second, kld) = if outcome == Outcome::Loses { (b, a, negative(kld)) } else { (a, b, kld) };
        let (first, second, kld) = (&self.labels[first], &self.labels[second], text::difference(&kld).line());
        Some(match outcome {
            Outcome::NotDistinguishable => format!("{first} and {second}: not distinguishable, KLD {kld}"),
            _ => format!("{first} beats {second}: KLD {kld}"),
        })
    }

    /// The verdict in whole sentences, the most important first.
    pub fn summary(&self) -> Vec<String> {
        let count = self.results.candidates.len();
        let mut sentences = Vec::new();
        match (self.best, self.measured.as_slice()) {
            (_, []) if count == 0 => sentences.push("No candidates were compared.".into()),
            (_, []) if self.results.interrupted => sentences.push("Nothing was measured yet.".into()),
            (_, []) => sentences.push(match count {
                1 => "The candidate could not be measured.".into(),
                _ => format!("None of the {count} candidates could be measured."),
            }),
            (None, _) => sentences.push("No candidate has a KLD that is a number.".into()),
            (Some(only), [_]) => sentences.push(format!("{} {}.", self.sized(only), self.nearness(only))),
            (Some(best), _) => {
                sentences.push(self.headline(best));
                let front = self.front();
                if front.len() > 1 {
                    let names: Vec<String> = front.iter().map(|&i| self.sized(i)).collect();
                    sentences.push(format!(
                        "Each of these has a lower KLD than everything smaller: {}.",
                        text::listed(&names)
                    ));
                }
                sentences.extend(self.dominated());
            }
        }
        sentences.extend(self.failures());
        sentences
    }

    fn headline(&self, best: usize) -> String {
        let nearness = self.nearness(best);
        let smallest = self.measured.first() == Some(&best);
        match self.smallest_as_good() {
            Some(smaller) => format!(
                "{} is the smallest that cannot be told from the best, {}, which {nearness}.",
                self.sized(smaller),
                self.sized(best)
            ),
            None if smallest => {
                format!("{} is the smallest and the nearest to the reference: it {nearness}.", self.sized(best))
            }
            None => format!(
                "{} is the nearest to the reference, and no smaller one does as well: it {nearness}.",
                self.sized(best)
            ),
        }
    }

    /// `is off by 0.0123 nats a token, and has another favourite than the reference at 3.48 of 100 tokens`
    fn nearness(&self, i: usize) -> String {
        let Some(scores) = self.results.candidates[i].overall else { return "was not measured".into() };
        let kld = text::estimate(&scores.kld).value;
        let flips = 1.0 - scores.same_top.value;
        if flips.is_nan() {
            return format!("is off the reference's odds by {kld} nats a token (KLD)");
        }
        format!(
            "is off the reference's odds by {kld} nats a token (KLD) and would choose another token at {} of 100 places",
            text::share(flips)
        )
    }

    /// Who takes more room than something that is as near or nearer.
    fn dominated(&self) -> Option<String> {
        let off: Vec<usize> = self.measured.iter().copied().filter(|&i| !self.results.candidates[i].on_front).collect();
        let named: Vec<String> = off
            .iter()
            .filter_map(|&i| {
                let better = self.dominated_by(i)?;
                let noise = matches!(self.outcome(better, i), Some((_, Outcome::NotDistinguishable)));
                let than = if noise { "cannot be told from it" } else { "is nearer" };
                let size = if self.bytes(better) < self.bytes(i) { "smaller" } else { "no larger" };
                Some(format!("{} ({} is {size} and {than})", self.labels[i], self.labels[better]))
            })
            .collect();
        (!named.is_empty()).then(|| format!("Not worth their size: {}.", text::listed(&named)))
    }

    /// Who failed, and whether all of it was done.
    fn failures(&self) -> Option<String> {
        let failed = self.results.candidates.iter().filter(|candidate| candidate.failure.is_some()).count();
        let measured = self.measured.len();
        let stopped = self
            .results
            .interrupted
            .then(|| format!("The comparison was stopped before its end: {} measured.", counted_were(measured)));
        let failed = (failed > 0 && (measured > 0 || self.results.interrupted))
            .then(|| format!("{} failed, or did so in part.", text::counted(failed, "candidate", "candidates")));
        let failed = failed.map(|sentence| format!("{}{}", sentence[..1].to_uppercase(), &sentence[1..]));
        match (stopped, failed) {
            (Some(stopped), Some(failed)) => Some(format!("{stopped} {failed}")),
            (stopped, failed) => stopped.or(failed),
        }
    }

    /// The pairs that matter in a sentence each, and how many more there are.
    pub fn verdicts(&self) -> Vec<String> {
        let pairs = self.pairs_that_matter();
        let mut sentences: Vec<String> = pairs.iter().filter_map(|&(a, b)| self.verdict(a, b)).collect();
        let more = self.pair_count().saturating_sub(sentences.len());
        if more > 0 {
            sentences.push(format!("{} more: the JSON has all of them", text::counted(more, "pair", "pairs")));
        }
        sentences
    }
}

fn counted_were(n: usize) -> String {
    match n {
        0 => "no candidate was".into(),
        1 => "one candidate was".into(),
        _ => format!("{n} candidates were"),
    }
}

/// The difference the other way round.
fn negative(estimate: Estimate) -> Estimate {
    Estimate { value: -estimate.value, interval: estimate.interval.map(|[low, high]| [-high, -low]) }
}
