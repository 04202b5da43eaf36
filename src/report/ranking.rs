//! Who is better: what follows from the front and the pairs, and the sentences that say it.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::units;
use crate::report::results::{Candidate, Estimate, Flips, Results, Verdict};

use super::wording;

/// Candidates that a sentence names; half as many where it says something of each.
const MOST_NAMED: usize = 8;

/// Where the candidates stand.
pub struct Ranking<'a> {
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

impl<'a> Ranking<'a> {
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

    /// At most `most` of the measured candidates that `has`, smallest file first: evenly from the front, and where there
    /// is room evenly from the others.
    pub fn chosen(&self, most: usize, has: impl Fn(usize) -> bool) -> Vec<usize> {
        let (front, others): (Vec<usize>, Vec<usize>) =
            self.measured.iter().filter(|&&i| has(i)).partition(|&&i| self.results.candidates[i].on_front);
        let mut chosen = evenly(&front, most);
        chosen.extend(evenly(&others, most - chosen.len()));
        self.measured.iter().copied().filter(|i| chosen.contains(i)).collect()
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
        let (first, second, kld) = (&self.labels[first], &self.labels[second], wording::difference(&kld).line());
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
            (_, []) if self.has_other_measures() => {}
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
                sentences.extend(self.worth());
                sentences.extend(self.dominated());
            }
        }
        sentences.extend((0..self.results.tasks.len()).filter_map(|task| self.task(task)));
        sentences.extend(self.failures());
        sentences
    }

    /// Whether some candidate was measured by tasks or by its weights.
    fn has_other_measures(&self) -> bool {
        let is_measured =
            |candidate: &Candidate| candidate.weights.is_some() || candidate.tasks.iter().any(Option::is_some);
        self.results.candidates.iter().any(is_measured)
    }

    /// Which candidates a task tells from the reference; `None` where it was not compared with one.
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
        let kld = wording::estimate(&scores.kld).value;
        let flips = 1.0 - scores.same_top.value;
        if flips.is_nan() {
            return format!("is off the reference's odds by {kld} nats a token (KLD)");
        }
        format!(
            "is off the reference's odds by {kld} nats a token (KLD) and would choose another token at {} of 100 places",
            wording::share(flips)
        )
    }

    /// Who is on the front.
    fn worth(&self) -> Option<String> {
        let front = self.front();
        let sized = |list: &[usize]| wording::listed(&list.iter().map(|&i| self.sized(i)).collect::<Vec<_>>());
        match front.len() {
            0 | 1 => None,
            2..=MOST_NAMED => Some(format!("Each of these is nearer than everything smaller: {}.", sized(&front))),
            count => Some(format!(
                "{count} of {} are nearer than everything smaller, among them {}.",
                self.measured.len(),
                sized(&self.chosen(MOST_NAMED / 2, |_| true))
            )),
        }
    }

    /// Who takes more room than something that is as near or nearer.
    fn dominated(&self) -> Option<String> {
        let off = self.measured.iter().filter(|&&i| !self.results.candidates[i].on_front);
        let off: Vec<(usize, usize)> = off.filter_map(|&i| Some((i, self.dominated_by(i)?))).collect();
        if off.len() > MOST_NAMED / 2 {
            let mut names: Vec<String> =
                off.iter().map(|(i, _)| self.labels[*i].clone()).take(2 * MOST_NAMED).collect();
            if names.len() < off.len() {
                names.push(format!("{} more", off.len() - names.len()));
            }
            return Some(format!("Not worth their size, as something no larger is as near: {}.", wording::listed(&names)));
        }
        let reason = |&(i, better): &(usize, usize)| {
            let noise = matches!(self.outcome(better, i), Some((_, Outcome::NotDistinguishable)));
            let size = if self.bytes(better) < self.bytes(i) { "smaller" } else { "no larger" };
            let than = if noise { "cannot be told from it" } else { "nearer" };
            format!("{} ({} is {size} and {than})", self.labels[i], self.labels[better])
        };
        let named: Vec<String> = off.iter().map(reason).collect();
        let word = if off.len() == 1 { "its" } else { "their" };
        (!named.is_empty()).then(|| format!("Not worth {word} size: {}.", wording::listed(&named)))
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
            .then(|| format!("{} failed, or did so in part.", wording::counted(failed, "candidate", "candidates")));
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
            sentences.push(format!("{} more: the JSON has all of them", wording::counted(more, "pair", "pairs")));
        }
        sentences
    }
}

/// As many of a list, its ends among them.
fn evenly(list: &[usize], count: usize) -> Vec<usize> {
    let count = count.min(list.len());
    (0..count).map(|step| list[step * (list.len() - 1) / (count - 1).max(1)]).collect()
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
    fn the_verdict_names_the_best_the_smallest_as_good_and_those_not_worth_their_size() {
        let mut results =
            measured(&[("Q2", 10, 0.2), ("Q4_0", 20, 0.03), ("Q4_K", 19, 0.0202), ("Q5", 25, 0.02)], 0.001);
        results.tasks.clear();
        assert_eq!(
            summary(&results),
            [
                "Q4_K (19.00 GB) is the smallest that cannot be told from the best, Q5 (25.00 GB), which is off the \
                 reference's odds by 0.0200 nats a token (KLD) and would choose another token at 4.67 of 100 places.",
                "Each of these is nearer than everything smaller: Q2 (10.00 GB), Q4_K (19.00 GB) and Q5 (25.00 GB).",
                "Not worth its size: Q4_0 (Q4_K is smaller and nearer).",
            ]
        );
    }

    #[test]
    fn the_verdict_is_the_best_where_nothing_smaller_equals_it() {
        let results = measured(&[("Q2", 10, 0.2), ("Q5", 25, 0.02)], 0.001);
        assert!(summary(&results)[0].starts_with("Q5 (25.00 GB) is the nearest to the reference, and no smaller one"));
        let results = measured(&[("Q2", 10, 0.01), ("Q5", 25, 0.02)], 0.1);
        let said = summary(&results);
        assert!(said[0].starts_with("Q2 (10.00 GB) is the smallest and the nearest to the reference"), "{said:?}");
        assert_eq!(said[1], "Not worth its size: Q5 (Q2 is smaller and cannot be told from it).");
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
        assert!(only.len() == 1 && only[0].starts_with("Yi-34B-Chat-IQ2_M (11.86 GB) is off the reference's odds by"));
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
        assert!(summary(&results)[0].starts_with("Q4 (20.00 GB) is the nearest"), "{:?}", summary(&results));
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
