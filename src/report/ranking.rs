//! Which file to take, derived from the front and the pairs, and put in sentences.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::units;
use crate::report::results::{Candidate, Estimate, Flips, Results, Verdict};

use super::wording;

/// The most candidates that a sentence names; half as many if it says something about each.
const MOST_NAMED: usize = 8;

/// The most files that are recommended, each with its cost.
const MOST_ADVISED: usize = 4;

/// A file with at least this many bits per weight counts as not quantized. 32-bit norms put a 16-bit file a little
/// above 16 bits, and a few quantized tensors put it a little below.
const LEAST_UNQUANTIZED_BITS: f64 = 15.5;

/// How the candidates compare.
pub struct Ranking<'a> {
    results: &'a Results,
    /// The candidates' labels.
    pub labels: Vec<String>,
    /// Indices of the candidates with scores, smallest file first.
    pub measured: Vec<usize>,
    /// Index of the candidate with the lowest KLD; the smallest of equal ones.
    pub best: Option<usize>,
    /// Pairs by the candidates' indices, the lower one first.
    pairs: BTreeMap<(usize, usize), (Estimate, Verdict)>,
}

/// How the first of two candidates compares with the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// The first is nearer to the reference.
    Beats,
    /// The second is nearer.
    Loses,
    /// The difference could be noise.
    NotDistinguishable,
}

impl<'a> Ranking<'a> {
    /// Ranks the candidates.
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
        let mut ranking = Self { results, labels: wording::labels(results), measured, best: None, pairs };
        // The first of equals is the smallest.
        ranking.best = ranking
            .measured
            .iter()
            .copied()
            .filter(|&i| !ranking.kld(i).is_nan())
            .min_by(|&a, &b| ranking.kld(a).total_cmp(&ranking.kld(b)));
        ranking
    }

    /// Returns a candidate's KLD; NaN if it was not measured.
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

    /// Returns the candidates on the front, smallest first: those for which no smaller one has as low a KLD.
    pub fn front(&self) -> Vec<usize> {
        self.measured.iter().copied().filter(|&i| self.results.candidates[i].on_front).collect()
    }

    /// Returns how the first of two compares with the second, and the difference of their KLD, the first's minus the
    /// second's. `None` if they were not compared.
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

    /// Returns the smallest file whose difference from the best could be noise, if there is one that is smaller than
    /// the best.
    pub fn smallest_as_good(&self) -> Option<usize> {
        let best = self.best?;
        let equals = |i: usize| self.kld(i).is_finite() && self.is_noise(i, best);
        self.measured.iter().copied().find(|&i| self.bytes(i) < self.bytes(best) && equals(i))
    }

    /// Whether the difference between two is known to be no more than noise may make. Where too few windows were read for an
    /// interval, nothing is known.
    fn is_noise(&self, a: usize, b: usize) -> bool {
        let noise =
            |(kld, outcome): (Estimate, Outcome)| outcome == Outcome::NotDistinguishable && kld.interval.is_some();
        self.outcome(a, b).is_some_and(noise)
    }

    /// Whether too few windows were read to compare two.
    pub fn is_unknown(&self, a: usize, b: usize) -> bool {
        let unknown =
            |(kld, outcome): (Estimate, Outcome)| outcome == Outcome::NotDistinguishable && kld.interval.is_none();
        self.outcome(a, b).is_some_and(unknown)
    }

    /// Returns the candidate with the lowest KLD of those that are not larger, unless its KLD is higher than this one's.
    pub fn dominated_by(&self, i: usize) -> Option<usize> {
        let no_larger = |&j: &usize| j != i && self.bytes(j) <= self.bytes(i) && self.kld(j) <= self.kld(i);
        let all = self.measured.iter().copied().filter(no_larger);
        all.min_by(|&a, &b| self.kld(a).total_cmp(&self.kld(b)))
    }

    /// Chooses at most `most` of the measured candidates for which `has` returns true, smallest file first: evenly
    /// spaced ones from the front, and if there is room, evenly spaced ones from the others.
    pub fn chosen(&self, most: usize, has: impl Fn(usize) -> bool) -> Vec<usize> {
        let (front, others): (Vec<usize>, Vec<usize>) =
            self.measured.iter().filter(|&&i| has(i)).partition(|&&i| self.results.candidates[i].on_front);
        let mut chosen = evenly(&front, most);
        chosen.extend(evenly(&others, most - chosen.len()));
        self.measured.iter().copied().filter(|i| chosen.contains(i)).collect()
    }

    /// Returns the pairs that matter, smaller file first: neighbours by size, neighbours on the front, and the best
    /// with the smallest that is as good. With up to four candidates, returns all pairs.
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

    /// Returns how many pairs of candidates with scores were compared.
    pub fn pair_count(&self) -> usize {
        let scored = |i: usize| self.results.candidates.get(i).is_some_and(|candidate| candidate.overall.is_some());
        self.pairs.keys().filter(|(a, b)| scored(*a) && scored(*b)).count()
    }

    /// `Q4_K_M beats IQ4_XS: KLD -0.0041 [-0.0050, -0.0032]`; `None` if they were not compared.
    pub fn verdict(&self, a: usize, b: usize) -> Option<String> {
        let (kld, outcome) = self.outcome(a, b)?;
        let (first, second, kld) = if outcome == Outcome::Loses { (b, a, negative(kld)) } else { (a, b, kld) };
        let (first, second, kld) = (&self.labels[first], &self.labels[second], wording::difference(&kld).line());
        Some(match outcome {
            Outcome::NotDistinguishable if self.is_unknown(a, b) => {
                format!("{first} and {second}: too few windows to tell, KLD {kld}")
            }
            Outcome::NotDistinguishable => format!("{first} and {second}: not distinguishable, KLD {kld}"),
            _ => format!("{first} beats {second}: KLD {kld}"),
        })
    }

    /// Returns the verdict in whole sentences, the most important first.
    pub fn summary(&self) -> Vec<String> {
        let count = self.results.candidates.len();
        let mut sentences = Vec::new();
        match (self.best, self.measured.as_slice()) {
            (_, []) if self.has_other_measures() => {}
            (_, []) if count == 0 => sentences.push("No candidates were compared.".into()),
            (_, []) if self.results.interrupted => sentences.push("Nothing was measured yet.".into()),
            (_, []) => sentences.push(match count {
                1 => "The candidate could not be measured.".into(),
                _ => format!("None of the {count} candidates could be measured."),
            }),
            (None, _) => sentences.push("No candidate has a KLD that is a number.".into()),
            (Some(only), [_]) => sentences.push(format!("{} {}.", self.sized(only), self.cost(only))),
            _ => {
                sentences.extend(self.advice());
                sentences.extend(self.dominated());
            }
        }
        sentences.extend((0..self.results.tasks.len()).filter_map(|task| self.task(task)));
        sentences.extend(self.failures());
        sentences
    }

    /// Returns whether some candidate was measured by tasks or by its weights.
    fn has_other_measures(&self) -> bool {
        let is_measured =
            |candidate: &Candidate| candidate.weights.is_some() || candidate.tasks.iter().any(Option::is_some);
        self.results.candidates.iter().any(is_measured)
    }

    /// Says which candidates differ from the reference on a task; `None` if they were not compared with one.
    fn task(&self, task: usize) -> Option<String> {
        let of = |candidate: &Candidate| candidate.tasks.get(task)?.as_ref()?.against_reference;
        let compared: Vec<(usize, Flips)> =
            self.results.candidates.iter().enumerate().filter_map(|(i, candidate)| Some((i, of(candidate)?))).collect();
        if compared.is_empty() {
            return None;
        }
        let limit = 1.0 - self.results.settings.confidence;
        let differs = |flips: &Flips, more: bool| flips.p_value < limit && (flips.won > flips.lost) == more;
        let named = |more: bool| -> Vec<String> {
            let those = compared.iter().filter(|(_, flips)| differs(flips, more));
            those.map(|(i, _)| self.labels[*i].clone()).collect()
        };
        let (fewer, more) = (named(false), named(true));
        let mut found = Vec::new();
        if !fewer.is_empty() {
            found.push(format!("fewer right than the reference: {}", wording::listed(&fewer)));
        }
        if !more.is_empty() {
            found.push(format!("more right: {}", wording::listed(&more)));
        }
        if found.is_empty() {
            found.push("too few questions to tell any candidate from the reference".to_string());
        }
        Some(format!("{}: {}.", wording::plain(&self.results.tasks[task].name), found.join("; ")))
    }

    /// Returns the files worth choosing between, smallest first: quantized files on the front, each of which is better
    /// than the one before it by more than noise, as far as this can be told.
    ///
    /// Files of 16 bits per weight are left out if there are others. They are close to the reference for every model,
    /// so naming them does not help to choose a file.
    pub fn tiers(&self) -> Vec<usize> {
        let mut tiers: Vec<usize> = Vec::new();
        for i in self.worth_taking(self.front()) {
            let is_better = |last: usize| match self.outcome(i, last) {
                Some((_, Outcome::Loses)) => false,
                // Without intervals, no difference can be told from noise. Then all differences are shown, and a
                // sentence says so.
                Some((kld, Outcome::NotDistinguishable)) => kld.interval.is_none(),
                _ => true,
            };
            if tiers.last().is_none_or(|&last| is_better(last)) {
                tiers.push(i);
            }
        }
        tiers
    }

    /// Keeps the candidates with a finite KLD, and of these the quantized ones. A condition that no candidate meets is
    /// ignored.
    fn worth_taking(&self, candidates: Vec<usize>) -> Vec<usize> {
        let only = |candidates: Vec<usize>, keep: &dyn Fn(usize) -> bool| {
            let kept: Vec<usize> = candidates.iter().copied().filter(|&i| keep(i)).collect();
            if kept.is_empty() { candidates } else { kept }
        };
        only(only(candidates, &|i| self.kld(i).is_finite()), &|i| self.is_quantized(i))
    }

    fn is_quantized(&self, i: usize) -> bool {
        self.results.candidates[i].file.bits_per_weight.is_none_or(|bits| bits < LEAST_UNQUANTIZED_BITS)
    }

    /// Says which file to take at which size, and what it costs.
    fn advice(&self) -> Vec<String> {
        let tiers = self.tiers();
        let chosen: Vec<usize> = evenly(&tiers, MOST_ADVISED);
        let Some((&first, rest)) = chosen.split_first() else { return Vec::new() };
        let last = rest.last().copied().unwrap_or(first);
        let mut sentences = Vec::new();
        let equal = self.larger_as_good(last);
        let equal = text_of(&equal.iter().map(|&i| self.sized(i)).collect::<Vec<_>>());
        if rest.is_empty() {
            let why = match &equal {
                Some(equal) => format!("; it cannot be told from {equal}"),
                None => String::new(),
            };
            sentences.push(format!("Take {}: it {}{why}.", self.sized(first), self.cost(first)));
        } else {
            let costs = rest.iter().map(|&i| format!("{} {}", self.sized(i), self.short_cost(i)));
            let costs: Vec<String> =
                [format!("{} {}", self.sized(first), self.cost(first))].into_iter().chain(costs).collect();
            sentences.push(format!("Take the largest of these that fits: {}.", wording::listed(&costs)));
            if let Some(equal) = &equal {
                sentences.push(format!("{equal} cannot be told from {}.", self.labels[last]));
            }
        }
        let is_bare = |two: &[usize]| self.outcome(two[1], two[0]).is_some_and(|(kld, _)| kld.interval.is_none());
        if tiers.windows(2).any(is_bare) {
            sentences.push("Too few windows were read to tell these differences from noise.".into());
        }
        sentences.extend(self.unquantized());
        sentences.extend(self.more_on_front(&chosen));
        sentences
    }

    /// Returns the larger quantized files that cannot be told from this one. A few more bytes of metadata do not make a
    /// file larger.
    fn larger_as_good(&self, i: usize) -> Vec<usize> {
        let as_good =
            |&j: &usize| self.bytes(j) > self.bytes(i) / 200 * 201 && self.is_quantized(j) && self.is_noise(i, j);
        self.measured.iter().copied().filter(as_good).take(MOST_ADVISED).collect()
    }

    /// `changes the most likely token at 3.48 of 100 places (KLD 0.0123)`
    fn cost(&self, i: usize) -> String {
        match self.flips(i) {
            Some(flips) => {
                format!("changes the most likely token at {flips} of 100 places ({})", self.loss(i))
            }
            None => format!("costs {}", self.loss(i)),
        }
    }

    /// The same, after another candidate's cost: `at 3.48 (KLD 0.0123)`
    fn short_cost(&self, i: usize) -> String {
        match self.flips(i) {
            Some(flips) => format!("at {flips} ({})", self.loss(i)),
            None => format!("costs {}", self.loss(i)),
        }
    }

    /// Returns for how many of 100 tokens the most likely one differs from the reference's, with as many digits as are
    /// certain.
    fn flips(&self, i: usize) -> Option<String> {
        let Estimate { value, interval } = self.results.candidates[i].overall?.same_top;
        let flips = Estimate { value: 1.0 - value, interval: interval.map(|[low, high]| [1.0 - high, 1.0 - low]) };
        (!value.is_nan()).then(|| wording::percent(&flips).value)
    }

    /// `KLD 0.0123`
    fn loss(&self, i: usize) -> String {
        let kld = self.results.candidates[i].overall.map(|scores| wording::estimate(&scores.kld).value);
        format!("KLD {}", kld.unwrap_or_else(|| "unknown".into()))
    }

    /// Says what the 16-bit files lose, if there are also quantized ones.
    fn unquantized(&self) -> Option<String> {
        let (quantized, others): (Vec<usize>, Vec<usize>) = self.measured.iter().partition(|&&i| self.is_quantized(i));
        if quantized.is_empty() || others.is_empty() {
            return None;
        }
        let named: Vec<String> =
            others.iter().take(MOST_ADVISED).map(|&i| format!("{}, {}", self.sized(i), self.loss(i))).collect();
        Some(format!("Not quantized: {}.", named.join("; ")))
    }

    /// Says which other candidates are on the front.
    fn more_on_front(&self, advised: &[usize]) -> Option<String> {
        let front = self.front();
        if front.iter().all(|i| advised.contains(i) || !self.is_quantized(*i)) {
            return None;
        }
        let sized = |list: &[usize]| wording::listed(&list.iter().map(|&i| self.sized(i)).collect::<Vec<_>>());
        Some(match front.len() {
            ..=MOST_NAMED => format!("Each of these has a lower KLD than everything smaller: {}.", sized(&front)),
            count => format!(
                "{count} of {} have a lower KLD than everything smaller, among them {}.",
                self.measured.len(),
                sized(&self.chosen(MOST_NAMED / 2, |_| true))
            ),
        })
    }

    /// Says which candidates are larger than one that is as near to the reference or nearer.
    fn dominated(&self) -> Option<String> {
        let off = self.measured.iter().filter(|&&i| !self.results.candidates[i].on_front);
        let off = off.filter_map(|&i| Some((i, self.dominated_by(i)?)));
        // Of two that too few windows were read of, neither is known to be nearer.
        let off: Vec<(usize, usize)> = off.filter(|&(i, better)| !self.is_unknown(i, better)).collect();
        if off.len() > MOST_NAMED / 2 {
            let mut names: Vec<String> =
                off.iter().map(|(i, _)| self.labels[*i].clone()).take(2 * MOST_NAMED).collect();
            if names.len() < off.len() {
                names.push(format!("{} more", off.len() - names.len()));
            }
            return Some(format!(
                "Not worth their size, as something no larger is as near: {}.",
                wording::listed(&names)
            ));
        }
        let reason = |&(i, better): &(usize, usize)| {
            let noise = self.is_noise(better, i);
            let size = if self.bytes(better) < self.bytes(i) { "smaller" } else { "no larger" };
            let than = if noise { "cannot be told from it" } else { "nearer" };
            format!("{} ({} is {size} and {than})", self.labels[i], self.labels[better])
        };
        let named: Vec<String> = off.iter().map(reason).collect();
        let word = if off.len() == 1 { "its" } else { "their" };
        (!named.is_empty()).then(|| format!("Not worth {word} size: {}.", wording::listed(&named)))
    }

    /// Says how many candidates failed, and whether the comparison was stopped.
    fn failures(&self) -> Option<String> {
        let failed = self.results.candidates.iter().filter(|candidate| candidate.failure.is_some()).count();
        let measured = self.measured.len();
        let stopped = self
            .results
            .interrupted
            .then(|| format!("The comparison was stopped before its end: {} measured.", counted_were(measured)));
        let failed = (failed > 0 && (measured > 0 || self.results.interrupted))
            .then(|| format!("{} failed, or did so in part.", wording::counted(failed, "candidate", "candidates")));
        let failed = failed.map(|sentence| format!("{}{}", sentence[..1].to_uppercase(), &sentence[1..]));
        match (stopped, failed) {
            (Some(stopped), Some(failed)) => Some(format!("{stopped} {failed}")),
            (stopped, failed) => stopped.or(failed),
        }
    }

    /// Returns a sentence for each pair that matters, and how many more pairs there are.
    pub fn verdicts(&self) -> Vec<String> {
        let pairs = self.pairs_that_matter();
        let mut sentences: Vec<String> = pairs.iter().filter_map(|&(a, b)| self.verdict(a, b)).collect();
        let more = self.pair_count().saturating_sub(sentences.len());
        if more > 0 {
            sentences.push(format!("{} more: the JSON has all of them", wording::counted(more, "pair", "pairs")));
        }
        sentences
    }
}

/// Returns `count` evenly spaced elements of a list, including its ends.
fn evenly(list: &[usize], count: usize) -> Vec<usize> {
    let count = count.min(list.len());
    (0..count).map(|step| list[step * (list.len() - 1) / (count - 1).max(1)]).collect()
}

/// Returns `a and b`; `None` for an empty list.
fn text_of(things: &[String]) -> Option<String> {
    (!things.is_empty()).then(|| wording::listed(things))
}

fn counted_were(n: usize) -> String {
    match n {
        0 => "no candidate was".into(),
        1 => "one candidate was".into(),
        _ => format!("{n} candidates were"),
    }
}

/// Returns the difference with its sign reversed.
fn negative(estimate: Estimate) -> Estimate {
    Estimate { value: -estimate.value, interval: estimate.interval.map(|[low, high]| [-high, -low]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::results::TaskScores;
    use crate::report::{sample, summary, verdicts};

    /// Candidates of these sizes in GB and KLDs, with pairs that differ where KLD differs by more than this.
    fn measured(candidates: &[(&str, u64, f64)], noise: f64) -> Results {
        let mut results = sample::results(0);
        for (n, (name, gigabytes, kld)) in candidates.iter().enumerate() {
            let mut candidate = sample::candidate(name, 4.0, *kld, n);
            candidate.file.bytes = gigabytes * 1_000_000_000;
            results.candidates.push(candidate);
        }
        sample::settle(&mut results);
        for pair in &mut results.pairs {
            let value = pair.kld.value;
            pair.kld.interval = Some([value - noise, value + noise]);
            pair.verdict = match pair.kld.differs_from_zero() {
                false => Verdict::NotDistinguishable,
                true if value < 0.0 => Verdict::A,
                true => Verdict::B,
            };
        }
        results
    }

    #[test]
    fn the_first_sentence_says_which_file_to_take_at_which_size_and_what_it_costs() {
        let mut results =
            measured(&[("Q2", 10, 0.2), ("Q4_0", 20, 0.03), ("Q4_K", 19, 0.0202), ("Q5", 25, 0.02)], 0.001);
        results.tasks.clear();
        let ranking = Ranking::new(&results);
        let flips = |i: usize| ranking.flips(i).unwrap();
        assert_eq!(
            summary(&results),
            [
                format!(
                    "Take the largest of these that fits: Q2 (10.00 GB) changes the most likely token at {} of 100 \
                     places (KLD 0.200) and Q4_K (19.00 GB) at {} (KLD 0.0202).",
                    flips(0),
                    flips(1)
                ),
                "Q5 (25.00 GB) cannot be told from Q4_K.".into(),
                "Each of these has a lower KLD than everything smaller: Q2 (10.00 GB), Q4_K (19.00 GB) and Q5 \
                 (25.00 GB)."
                    .into(),
                "Not worth its size: Q4_0 (Q4_K is smaller and nearer).".into(),
            ]
        );
    }

    #[test]
    fn a_file_that_nothing_larger_beats_is_the_one_to_take() {
        let results = measured(&[("Q2", 10, 0.2), ("Q5", 25, 0.02)], 0.001);
        assert!(summary(&results)[0].contains("Q2 (10.00 GB) changes the most likely token at "));
        assert!(summary(&results)[0].contains(" and Q5 (25.00 GB) at "), "{:?}", summary(&results));
        let results = measured(&[("Q2", 10, 0.01), ("Q5", 25, 0.02)], 0.1);
        let said = summary(&results);
        assert!(said[0].starts_with("Take Q2 (10.00 GB): it changes the most likely token at "), "{said:?}");
        assert!(said[0].ends_with("; it cannot be told from Q5 (25.00 GB)."), "{said:?}");
        assert_eq!(said[1], "Not worth its size: Q5 (Q2 is smaller and cannot be told from it).");
    }

    #[test]
    fn a_16_bit_file_is_no_answer_but_its_loss_is_told() {
        let mut results = measured(&[("Q2", 10, 0.2), ("Q5", 25, 0.02), ("F16", 68, 0.00002)], 0.000_001);
        results.candidates[2].file.bits_per_weight = Some(16.0);
        let said = summary(&results);
        assert!(said[0].starts_with("Take the largest of these") && !said[0].contains("F16"), "{said:?}");
        assert!(said[1].starts_with("Not quantized: F16 (68.00 GB), KLD 0.0000200."), "{said:?}");
        // Where there is nothing else, it is.
        results.candidates.iter_mut().for_each(|candidate| candidate.file.bits_per_weight = Some(16.0));
        assert!(summary(&results)[0].contains("F16"));
    }

    /// "Q2_K cannot be told from Q4_K_M" was said after one window.
    #[test]
    fn too_few_windows_make_no_two_files_equal() {
        // The smaller file does as well by chance, which nobody knows after one window.
        for klds in [[0.2, 0.02], [0.02, 0.2]] {
            let mut results = measured(&[("Q2", 10, klds[0]), ("Q4", 20, klds[1])], 0.001);
            results.tasks.clear();
            for candidate in &mut results.candidates {
                let scores = candidate.overall.as_mut().unwrap();
                (scores.kld.interval, scores.same_top.interval) = (None, None);
            }
            results.pairs[0].kld.interval = None;
            results.pairs[0].verdict = Verdict::NotDistinguishable;
            let (said, verdicts) = (summary(&results).join(" "), verdicts(&results));
            assert!(!said.contains("cannot be told") && !said.contains("Not worth"), "{said}");
            assert!(verdicts[0].contains("Q2 and Q4: too few windows to tell, KLD "), "{verdicts:?}");
            assert!(!verdicts[0].contains('['), "{verdicts:?}");
            assert_eq!(Ranking::new(&results).smallest_as_good(), None);
        }
    }

    #[test]
    fn differences_without_intervals_are_said_to_be_perhaps_noise() {
        let mut results = measured(&[("Q2", 10, 0.2), ("Q5", 25, 0.02)], 0.001);
        results.pairs[0].kld.interval = None;
        results.pairs[0].verdict = Verdict::NotDistinguishable;
        let said = summary(&results);
        assert!(said[0].contains("Q2 (10.00 GB)") && said[0].contains("Q5 (25.00 GB)"), "{said:?}");
        assert_eq!(said[1], "Too few windows were read to tell these differences from noise.");
    }

    #[test]
    fn a_verdict_is_said_from_the_winners_side() {
        let results = measured(&[("IQ4_XS", 18, 0.03), ("Q4_K_S", 19, 0.0262), ("Q4_K_M", 20, 0.026)], 0.001);
        assert_eq!(
            verdicts(&results),
            [
                "Q4_K_S beats IQ4_XS: KLD -0.0038 [-0.0048, -0.0028]",
                "Q4_K_M beats IQ4_XS: KLD -0.0040 [-0.0050, -0.0030]",
                "Q4_K_S and Q4_K_M: not distinguishable, KLD +0.0002 [-0.0008, 0.0012]",
            ]
        );
        // Pairs may come in any order, and so may their two.
        let mut turned = results.clone();
        turned.pairs.reverse();
        for pair in &mut turned.pairs {
            (pair.a, pair.b, pair.kld) = (pair.b, pair.a, negative(pair.kld));
            pair.verdict = match pair.verdict {
                Verdict::A => Verdict::B,
                Verdict::B => Verdict::A,
                same => same,
            };
        }
        assert_eq!(verdicts(&turned), verdicts(&results));
    }

    #[test]
    fn of_many_pairs_the_neighbours_are_told_and_the_others_counted() {
        let results = sample::results(34);
        let said = verdicts(&results);
        let (last, pairs) = said.split_last().unwrap();
        assert!((33..80).contains(&pairs.len()), "{}", pairs.len());
        assert_eq!(*last, format!("{} pairs more: the JSON has all of them", 34 * 33 / 2 - pairs.len()));
        assert_eq!(verdicts(&sample::results(4)).len(), 6);
        assert_eq!(verdicts(&sample::results(5)).last().unwrap(), "6 pairs more: the JSON has all of them");
    }

    #[test]
    fn what_is_not_measured_has_no_verdict() {
        assert_eq!(summary(&Results::default()), ["No candidates were compared."]);
        assert!(verdicts(&Results::default()).is_empty());
        let said = summary(&sample::begun());
        assert_eq!(said[0], "Nothing was measured yet.");
        assert_eq!(
            said[1],
            "The comparison was stopped before its end: no candidate was measured. One candidate failed, or did so in part."
        );
        let mut none = sample::begun();
        none.interrupted = false;
        assert_eq!(summary(&none), ["None of the 2 candidates could be measured."]);
        let mut odd = sample::results(1);
        odd.tasks.clear();
        odd.candidates[0].overall.as_mut().unwrap().kld = Estimate::bare(f64::NAN);
        assert_eq!(summary(&odd), ["No candidate has a KLD that is a number."]);
        let mut only = sample::results(1);
        only.tasks.clear();
        let only = summary(&only);
        assert!(
            only.len() == 1 && only[0].starts_with("Yi-34B-Chat-IQ2_M (11.86 GB) changes the most likely token at ")
        );
    }

    #[test]
    fn a_task_names_the_candidates_that_it_tells_from_the_reference() {
        let mut results = measured(&[("Q2", 10, 0.2), ("Q4", 20, 0.03), ("Q5", 25, 0.02)], 0.001);
        results.settings.confidence = 0.95;
        results.tasks.truncate(1);
        let name = wording::plain(&results.tasks[0].name).into_owned();
        let mut said = |p_values: [f64; 3]| {
            for (candidate, p_value) in results.candidates.iter_mut().zip(p_values) {
                let against_reference = Some(Flips { lost: 30, won: 10, p_value });
                candidate.tasks = vec![Some(TaskScores { against_reference, ..TaskScores::default() })];
            }
            summary(&results).into_iter().find(|sentence| sentence.starts_with(&name)).unwrap()
        };
        let sizes = ["Q2", "Q4", "Q5"];
        assert!(said([0.01, 0.2, 0.3]).ends_with(&format!("fewer right than the reference: {}.", sizes[0])));
        assert!(said([0.2, 0.2, 0.3]).ends_with("too few questions to tell any candidate from the reference."));
    }

    #[test]
    fn infinite_losses_are_last_and_equal_nothing() {
        let results = measured(&[("Q2", 10, f64::INFINITY), ("Q4", 20, 0.02)], 0.001);
        assert!(summary(&results)[0].starts_with("Take Q4 (20.00 GB): it changes"), "{:?}", summary(&results));
        assert_eq!(Ranking::new(&sample::hostile()).smallest_as_good(), None);
    }

    #[test]
    fn drawings_choose_the_ends_of_the_front_and_what_lies_between() {
        let results = sample::results(34);
        let ranking = Ranking::new(&results);
        let (front, chosen) = (ranking.front(), ranking.chosen(6, |_| true));
        assert_eq!(chosen.len(), 6);
        assert_eq!((chosen.first(), chosen.last()), (front.first(), front.last()));
        assert!(chosen.iter().all(|i| front.contains(i)));
        assert_eq!(ranking.chosen(40, |_| true).len(), 34);
        assert_eq!(ranking.chosen(6, |i| i < 2), [0, 1]);
        assert!(ranking.chosen(6, |_| false).is_empty());
        // A short front leaves room for others.
        let results = measured(&[("a", 1, 0.2), ("b", 2, 0.1), ("c", 3, 0.3), ("d", 4, 0.4), ("e", 5, 0.5)], 0.01);
        assert_eq!(Ranking::new(&results).chosen(4, |_| true), [0, 1, 2, 4]);
    }
}
