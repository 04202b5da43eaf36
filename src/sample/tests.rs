//! Every sampler against the obvious way: a full sort, f64 throughout, the standard library's functions.

use proptest::prelude::*;

use super::*;

/// What the obvious way makes of logits: id, logit and nothing else.
#[derive(Clone)]
struct Naive {
    list: Vec<(u32, f64)>,
    n: usize,
}

impl Naive {
    fn new(logits: &[f32], allowed: Option<&[u32]>) -> Self {
        let is_allowed =
            |id: usize| allowed.is_none_or(|words| words.get(id / 32).is_some_and(|w| w >> (id % 32) & 1 == 1));
        let list = logits
            .iter()
            .enumerate()
            .filter(|(id, l)| **l > f32::NEG_INFINITY && is_allowed(*id))
            .map(|(id, &l)| (id as u32, f64::from(l)))
            .collect();
        Self { list, n: logits.len() }
    }

    fn sort(&mut self) {
        self.list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }

    fn softmax(&self) -> Vec<f64> {
        let max = self.list.iter().map(|(_, l)| *l).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.list.iter().map(|(_, l)| (l - max).exp()).sum();
        self.list.iter().map(|(_, l)| (l - max).exp() / sum).collect()
    }

    fn entropy(&self) -> f64 {
        self.softmax().iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
    }

    /// The chain of `params`, with `slack` added to what a threshold is held against.
    fn apply(&mut self, params: &Params, history: &[u32], slack: f64) {
        for (token, bias) in &params.logit_bias {
            self.list.iter_mut().filter(|(id, _)| id == token).for_each(|(_, l)| *l += f64::from(*bias));
        }
        self.list.retain(|(_, l)| *l > f64::NEG_INFINITY);
        let min_keep = params.min_keep as usize;
        for kind in &params.samplers {
            self.sort();
            match kind {
                SamplerKind::Penalties => {
                    let last = &history[history.len().saturating_sub(params.repeat_last_n as usize)..];
                    for (id, l) in &mut self.list {
                        let count = last.iter().filter(|token| *token == id).count();
                        if count > 0 {
                            let repeat = f64::from(params.repeat_penalty);
                            *l = if *l <= 0.0 { *l * repeat } else { *l / repeat };
                            *l -=
                                count as f64 * f64::from(params.frequency_penalty) + f64::from(params.presence_penalty);
                        }
                    }
                }
                SamplerKind::Dry if params.dry_multiplier > 0.0 => {
                    let text = &history[history.len().saturating_sub(params.dry_penalty_last_n as usize)..];
                    let allowed = params.dry_allowed_length as usize;
                    for (id, l) in &mut self.list {
                        let longest = (1..text.len())
                            .filter(|end| text[*end] == *id)
                            .map(|end| {
                                let (a, b) = (text[..end].iter().rev(), text.iter().rev());
                                a.zip(b).take_while(|(a, b)| a == b).count()
                            })
                            .max();
                        if let Some(length) = longest.filter(|length| *length >= allowed && text.len() > allowed) {
                            let power = f64::from(params.dry_base).powi((length - allowed) as i32);
                            *l -= f64::from(params.dry_multiplier) * power;
                        }
                    }
                }
                SamplerKind::TopNSigma if params.top_n_sigma > 0.0 && self.n > 1 => {
                    let n = self.list.len() as f64;
                    let mean = self.list.iter().map(|(_, l)| l).sum::<f64>() / n;
                    let deviation = (self.list.iter().map(|(_, l)| (l - mean).powi(2)).sum::<f64>() / n).sqrt();
                    let bar = self.list[0].1 - f64::from(params.top_n_sigma) * deviation;
                    let top = self.list[0].1;
                    self.list.retain(|(_, l)| *l >= bar - slack || *l == top);
                }
                SamplerKind::TopK if params.top_k > 0 => {
                    self.list.truncate(params.top_k as usize);
                    self.n = self.n.min(params.top_k as usize);
                }
                SamplerKind::TypicalP if params.typical_p < 1.0 => {
                    let entropy = self.entropy();
                    let mut scored: Vec<_> = self.list.iter().copied().zip(self.softmax()).collect();
                    let score = |p: f64| (-p.ln() - entropy).abs();
                    scored.sort_by(|a, b| score(a.1).total_cmp(&score(b.1)));
                    let mut sum = 0.0;
                    let end = scored.iter().enumerate().position(|(i, (_, p))| {
                        sum += p;
                        sum > f64::from(params.typical_p) + slack && i + 1 >= min_keep
                    });
                    scored.truncate(end.map_or(scored.len(), |end| end + 1));
                    self.list = scored.into_iter().map(|(c, _)| c).collect();
                    self.n = self.list.len();
                }
                SamplerKind::TopP if params.top_p < 1.0 => {
                    let mut sum = 0.0;
                    let end = self.softmax().iter().enumerate().position(|(i, p)| {
                        sum += p;
                        sum >= f64::from(params.top_p) + slack && i + 1 >= min_keep
                    });
                    self.list.truncate(end.map_or(self.list.len(), |end| end + 1));
                    self.n = self.list.len();
                }
                SamplerKind::MinP if params.min_p > 0.0 => {
                    let top = self.list[0].1;
                    let kept =
                        self.list.iter().filter(|(_, l)| (l - top).exp() >= f64::from(params.min_p) - slack).count();
                    self.list.truncate(kept.max(min_keep));
                    self.n = if kept >= min_keep { kept } else { self.n.min(min_keep) };
                }
                SamplerKind::Xtc if params.xtc_probability >= 1.0 && params.xtc_threshold <= 0.5 && self.n >= 2 => {
                    let choices =
                        self.softmax().iter().take_while(|p| **p >= f64::from(params.xtc_threshold) - slack).count();
                    if choices > 1 && self.n - (choices - 1) >= min_keep {
                        self.list.drain(..choices - 1);
                        self.n -= choices - 1;
                    }
                }
                SamplerKind::Temperature => {
                    let mut t = f64::from(params.temperature);
                    let range = f64::from(params.dynatemp_range);
                    if range > 0.0 {
                        if self.n < 2 {
                            continue;
                        }
                        let low = (t - range).max(0.0);
                        let certainty = self.entropy() / (self.n as f64).ln();
                        t = low + (t + range - low) * certainty.powf(f64::from(params.dynatemp_exponent));
                    }
                    self.list.iter_mut().for_each(|(_, l)| *l /= t);
                }
                _ => {}
            }
        }
    }

    fn probabilities(&self) -> Vec<(u32, f64)> {
        self.list.iter().zip(self.softmax()).map(|((id, _), p)| (*id, p)).collect()
    }
}

fn naive(logits: &[f32], allowed: Option<&[u32]>, params: &Params, history: &[u32], slack: f64) -> Vec<(u32, f64)> {
    let mut naive = Naive::new(logits, allowed);
    naive.apply(params, history, slack);
    naive.probabilities()
}

fn distribution(logits: &[f32], allowed: Option<&[u32]>, params: &Params, history: &[u32]) -> Vec<(u32, f64)> {
    let mut sampler = Sampler::new(params).unwrap();
    sampler.begin(history);
    let mut out = Vec::new();
    sampler.distribution(logits, allowed, &mut out).unwrap();
    let sum: f64 = out.iter().map(|(_, p)| p).sum();
    assert!((sum - 1.0).abs() < 1e-11, "{sum}");
    out
}

/// Whether both have the same tokens, and of the same probability. Passes over all logits are in 32 bits, where what is
/// below e^-87 of the highest is 0.
fn same(got: &[(u32, f64)], wanted: &[(u32, f64)], tolerance: f64) -> Result<(), String> {
    let visible = |list: &[(u32, f64)]| {
        let mut list: Vec<_> = list.iter().copied().filter(|(_, p)| *p > 1e-30).collect();
        list.sort_by_key(|c| c.0);
        list
    };
    let (got, wanted) = (visible(got), visible(wanted));
    if got.len() != wanted.len() {
        return Err(format!("{} candidates, the naive way gives {}", got.len(), wanted.len()));
    }
    for (g, w) in got.iter().zip(&wanted) {
        if g.0 != w.0 || (g.1 - w.1).abs() > tolerance {
            return Err(format!("{g:?}, the naive way gives {w:?}"));
        }
    }
    Ok(())
}

fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    // Coarse steps make ties, the masked ones make holes, the far ones make probabilities that vanish.
    let logit = prop_oneof![
        6 => (-40i32..40).prop_map(|l| l as f32 * 0.25),
        2 => -30.0f32..30.0,
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(-1000.0f32), Just(88.8)],
    ];
    prop::collection::vec(logit, 1..700)
        .prop_filter("something has to be possible", |l| l.iter().any(|l| *l > f32::NEG_INFINITY))
}

fn any_params() -> impl Strategy<Value = Params> {
    let top_p = prop_oneof![2 => Just(1.0f32), 2 => 0.01f32..1.0, 1 => Just(0.999)];
    let min_p = prop_oneof![2 => Just(0.0f32), 2 => 0.0f32..1.0, 1 => Just(1.0)];
    let top_k = prop_oneof![Just(0u32), 1u32..80, Just(5000)];
    let typical_p = prop_oneof![3 => Just(1.0f32), 1 => 0.01f32..1.0];
    let sigma = prop_oneof![3 => Just(-1.0f32), 1 => 0.1f32..3.0];
    let xtc = prop_oneof![3 => Just(0.6f32), 1 => 0.001f32..0.5];
    let min_keep = prop_oneof![3 => Just(0u32), 1 => 1u32..20];
    let dynatemp = prop_oneof![3 => Just(0.0f32), 1 => 0.01f32..0.5];
    let order = Just(SamplerKind::DEFAULT_ORDER.to_vec()).prop_shuffle();
    let cuts = (top_k, top_p, min_p, typical_p, sigma, xtc, min_keep);
    let penalties = prop_oneof![
        2 => Just((1.0f32, 0.0f32, 0.0f32, 0.0f32)),
        1 => (0.5f32..2.0, -0.5f32..1.0, -0.5f32..1.0, 0.0f32..2.0),
    ];
    (0.55f32..3.0, dynatemp, cuts, penalties, any::<bool>(), order).prop_map(
        |(
            temperature,
            dynatemp_range,
            (top_k, top_p, min_p, typical_p, top_n_sigma, xtc_threshold, min_keep),
            penalties,
            shuffle,
            order,
        )| Params {
            temperature,
            dynatemp_range,
            top_k,
            top_p,
            min_p,
            typical_p,
            top_n_sigma,
            xtc_threshold,
            xtc_probability: 1.0,
            min_keep,
            repeat_penalty: penalties.0,
            frequency_penalty: penalties.1,
            presence_penalty: penalties.2,
            dry_multiplier: penalties.3,
            samplers: if shuffle { order } else { SamplerKind::DEFAULT_ORDER.to_vec() },
            seed: Some(1),
            ..Params::default()
        },
    )
}

fn any_mask() -> impl Strategy<Value = Option<Vec<u32>>> {
    let word = prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>()];
    prop::option::of(prop::collection::vec(word, 0..30))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn every_chain_keeps_what_a_full_sort_keeps(
        logits in any_logits(),
        allowed in any_mask(),
        params in any_params(),
        history in prop::collection::vec(0u32..50, 0..100),
    ) {
        let allowed = allowed.as_deref();
        if Naive::new(&logits, allowed).list.is_empty() {
            let result = Sampler::new(&params).unwrap().sample(&logits, allowed);
            prop_assert_eq!(result, Err(Error::AllRuledOut));
            return Ok(());
        }
        // Where a threshold falls between two numbers that differ by rounding alone, either side is right.
        let wanted = naive(&logits, allowed, &params, &history, 0.0);
        let ids = |slack| naive(&logits, allowed, &params, &history, slack).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let exact: Vec<u32> = wanted.iter().map(|(id, _)| *id).collect();
        prop_assume!(ids(3e-6) == exact && ids(-3e-6) == exact);
        // Penalties and a low temperature take the highest logits here to 323, where a 32-bit float is exact to 0.000015, and
        // two of them round one after the other.
        if let Err(message) = same(&distribution(&logits, allowed, &params, &history), &wanted, 3e-5) {
            prop_assert!(false, "{message} with {params:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest(logits in any_logits(), allowed in any_mask()) {
        let allowed = allowed.as_deref();
        let mut left = Naive::new(&logits, allowed);
        left.sort();
        let wanted = left.list.first().map(|(id, _)| *id).ok_or(Error::AllRuledOut);
        prop_assert_eq!(Sampler::new(&Params::greedy()).unwrap().sample(&logits, allowed), wanted.clone());
        let cold = Params { temperature: 0.0, ..Params::default() };
        prop_assert_eq!(Sampler::new(&cold).unwrap().sample(&logits, allowed), wanted.clone());
        let one = Params { top_k: 1, ..Params::default() };
        prop_assert_eq!(Sampler::new(&one).unwrap().sample(&logits, allowed), wanted);
    }

    /// Ruling out by a mask is the same as a logit of minus infinity, for every chain and state.
    #[test]
    fn a_mask_is_as_logits_at_minus_infinity(
        logits in any_logits(),
        mask in prop::collection::vec(any::<u32>(), 22..24),
        params in any_params(),
        mirostat in 0u32..3,
        target in prop_oneof![Just(-1.0f32), 0.0f32..1.0],
        history in prop::collection::vec(0u32..50, 0..100),
    ) {
        let params = Params { mirostat, adaptive_target: target, ..params };
        let mut ruled_out = logits.clone();
        for (id, logit) in ruled_out.iter_mut().enumerate() {
            if mask[id / 32] >> (id % 32) & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
        let mut sampler = Sampler::new(&params).unwrap();
        sampler.begin(&history);
        let mut other = sampler.clone();
        for _ in 0..3 {
            let token = sampler.sample(&logits, Some(&mask));
            prop_assert_eq!(&token, &other.sample(&ruled_out, None));
            let Ok(token) = token else { break };
            sampler.accept(token);
            other.accept(token);
        }
    }

    /// What `sample` draws is a token of the distribution, the one that `unit` falls on.
    #[test]
    fn sample_draws_from_the_distribution(logits in any_logits(), params in any_params(), mirostat in 0u32..3) {
        let params = Params { mirostat, ..params };
        let mut sampler = Sampler::new(&params).unwrap();
        let mut other = sampler.clone();
        let mut out = Vec::new();
        for _ in 0..5 {
            sampler.distribution(&logits, None, &mut out).unwrap();
            let _ = sampler.unit();
            let token = other.sample(&logits, None).unwrap();
            prop_assert!(out.iter().any(|(id, p)| *id == token && *p > 0.0));
            prop_assert_eq!(sampler.random.clone().next_u64(), other.random.clone().next_u64());
            sampler.accept(token);
            other.accept(token);
        }
    }
}

#[test]
fn keeps_what_a_full_sort_keeps_at_the_size_of_a_vocabulary() {
    let mut random = Random::new(11);
    let flat: Vec<f32> = (0..64_000).map(|_| (random.unit() * 24.0 - 16.0) as f32).collect();
    let mut peaked: Vec<f32> = flat.iter().map(|l| l * 0.4).collect();
    (0..300).for_each(|i| peaked[i * 211] += 14.0 - i as f32 * 0.05);
    let equal = vec![1.5f32; 64_000];
    let all = Params { top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() };
    for logits in [flat, peaked, equal] {
        for params in [
            Params::default(),
            Params { top_k: 0, ..Params::default() },
            all.clone(),
            Params { temperature: 1.0, ..all.clone() },
            Params { top_p: 0.999_9, ..all.clone() },
            Params { top_p: 0.6, ..all.clone() },
            Params { top_k: 200, top_p: 1.0, ..all.clone() },
            Params { top_k: 20_000, ..all.clone() },
            Params { min_p: 0.001, ..all.clone() },
            Params { typical_p: 0.5, ..all.clone() },
            Params { typical_p: 0.95, ..all.clone() },
            Params { top_n_sigma: 1.0, ..all.clone() },
            Params { dynatemp_range: 0.5, ..all.clone() },
            Params { xtc_probability: 1.0, xtc_threshold: 1e-3, ..all.clone() },
            Params { repeat_penalty: 1.3, frequency_penalty: 0.2, top_p: 0.9, ..all.clone() },
        ] {
            let history: Vec<u32> = (0..300).map(|i| i * 211).collect();
            let got = distribution(&logits, None, &params, &history);
            // Sums in 32 bits may move a cut among tokens that are next to nothing.
            let ids = |list: &[(u32, f64)]| list.iter().map(|(id, _)| *id).collect::<std::collections::BTreeSet<_>>();
            let least = naive(&logits, None, &params, &history, -3e-7);
            let most = naive(&logits, None, &params, &history, 3e-7);
            assert!(ids(&least).is_subset(&ids(&got)), "too few with {params:?}");
            assert!(ids(&got).is_subset(&ids(&most)), "too many with {params:?}");
            let mut wanted = vec![0.0; logits.len()];
            let kept = ids(&got);
            let total: f64 = most.iter().filter(|(id, _)| kept.contains(id)).map(|(_, p)| p).sum();
            most.iter().for_each(|(id, p)| wanted[*id as usize] = p / total);
            for (id, p) in got {
                assert!(
                    (p - wanted[id as usize]).abs() < 2e-7,
                    "{id}: {p}, wanted {} with {params:?}",
                    wanted[id as usize]
                );
            }
        }
    }
}

/// Pearson's statistic of some draws, against the 99.99th percentile of chi-squared.
#[test]
fn every_sampler_draws_as_often_as_its_probabilities_say() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 7919) % 23) as f32 * 0.2).collect();
    let all = Params { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Params::default() };
    let cases = [
        ("default", Params::default()),
        ("temperature", Params { temperature: 1.3, ..all.clone() }),
        ("nothing", all.clone()),
        ("top-k", Params { top_k: 7, ..all.clone() }),
        ("top-p", Params { top_p: 0.7, ..all.clone() }),
        ("min-p", Params { min_p: 0.3, ..all.clone() }),
        ("typical-p", Params { typical_p: 0.6, ..all.clone() }),
        ("top-n-sigma", Params { top_n_sigma: 1.0, ..all.clone() }),
        ("dynatemp", Params { dynatemp_range: 0.5, ..all.clone() }),
        ("penalties", Params { repeat_penalty: 1.5, frequency_penalty: 0.3, presence_penalty: 0.1, ..all.clone() }),
        ("dry", Params { dry_multiplier: 0.8, ..all.clone() }),
        ("bias", Params { logit_bias: vec![(3, 2.0), (17, f32::NEG_INFINITY), (5, -1.0)], ..all.clone() }),
        ("xtc", Params { xtc_probability: 1.0, xtc_threshold: 0.05, ..all.clone() }),
        ("mirostat", Params { mirostat: 1, mirostat_tau: 2.0, ..all.clone() }),
        ("mirostat 2", Params { mirostat: 2, mirostat_tau: 2.0, ..all.clone() }),
        ("adaptive-p", Params { adaptive_target: 0.04, ..all.clone() }),
    ];
    let history: Vec<u32> = (0..60).map(|i| (i * i) % 11).collect();
    for (seed, (name, params)) in (1..).zip(cases) {
        let mut sampler = Sampler::new(&Params { seed: Some(seed), ..params }).unwrap();
        sampler.begin(&history);
        let mut wanted = Vec::new();
        sampler.clone().distribution(&logits, None, &mut wanted).unwrap();
        let mut counts = vec![0u32; logits.len()];
        const DRAWS: usize = 100_000;
        // Without `accept` the state stays, and the probabilities with it.
        for _ in 0..DRAWS {
            counts[sampler.sample(&logits, None).unwrap() as usize] += 1;
        }
        check_draws(name, &wanted, &counts, DRAWS);
    }
}

#[test]
fn xtc_acts_as_often_as_asked() {
    let logits = [2.0f32, 1.5, 0.0];
    let params = Params {
        xtc_probability: 0.3,
        xtc_threshold: 0.2,
        top_p: 1.0,
        min_p: 0.0,
        temperature: 1.0,
        seed: Some(4),
        ..Params::default()
    };
    let weights = logits.map(|l| f64::from(l).exp());
    let p = weights.map(|w| w / weights.iter().sum::<f64>());
    let wanted: Vec<(u32, f64)> = vec![
        (0, 0.7 * p[0]),
        (1, 0.7 * p[1] + 0.3 * p[1] / (p[1] + p[2])),
        (2, 0.7 * p[2] + 0.3 * p[2] / (p[1] + p[2])),
    ];
    let mut sampler = Sampler::new(&params).unwrap();
    let mut counts = vec![0; 3];
    (0..100_000).for_each(|_| counts[sampler.sample(&logits, None).unwrap() as usize] += 1);
    check_draws("xtc", &wanted, &counts, 100_000);
}

/// Draws at the size of a vocabulary, by groups of tokens.
#[test]
fn draws_among_a_whole_vocabulary_as_often_as_the_probabilities_say() {
    let mut random = Random::new(3);
    let logits: Vec<f32> = (0..64_000).map(|_| (random.unit() * 6.0) as f32).collect();
    let params = Params { top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(8), ..Params::default() };
    let mut sampler = Sampler::new(&params).unwrap();
    let group = |id: u32| id * 7 % 50;
    let mut wanted: Vec<(u32, f64)> = (0..50).map(|id| (id, 0.0)).collect();
    distribution(&logits, None, &params, &[]).iter().for_each(|(id, p)| wanted[group(*id) as usize].1 += p);
    let mut counts = vec![0; 50];
    (0..20_000).for_each(|_| counts[group(sampler.sample(&logits, None).unwrap()) as usize] += 1);
    check_draws("64,000 tokens", &wanted, &counts, 20_000);
}

fn check_draws(name: &str, wanted: &[(u32, f64)], counts: &[u32], draws: usize) {
    let drawn: u32 = wanted.iter().map(|(id, _)| counts[*id as usize]).sum();
    assert_eq!(drawn as usize, draws, "{name} drew a token that was ruled out");
    // Rare ones together, as the statistic wants.
    let (mut statistic, mut groups) = (0.0, 0.0);
    let mut rare = (0.0, 0.0);
    let mut add = |expected: f64, count: f64| {
        statistic += (count - expected).powi(2) / expected;
        groups += 1.0;
    };
    for (id, p) in wanted {
        let (expected, count) = (p * draws as f64, f64::from(counts[*id as usize]));
        if expected < 10.0 {
            rare = (rare.0 + expected, rare.1 + count);
        } else {
            add(expected, count);
        }
    }
    if rare.0 > 0.0 {
        add(rare.0.max(1.0), rare.1);
    }
    // Wilson and Hilferty's approximation of the quantile; 3.719 is the normal one.
    let df: f64 = groups - 1.0;
    let limit = df.max(1.0) * (1.0 - 2.0 / (9.0 * df.max(1.0)) + 3.719 * (2.0 / (9.0 * df.max(1.0))).sqrt()).powi(3);
    assert!(statistic < limit, "{name}: chi-squared {statistic:.1}, limit {limit:.1}");
}

#[test]
fn one_seed_gives_one_text() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 31) % 97) as f32 * 0.05).collect();
    let draw = |params: &Params, seed| {
        let mut sampler = Sampler::new(&Params { seed: Some(seed), ..params.clone() }).unwrap();
        (0..12)
            .map(|_| {
                let token = sampler.sample(&logits, None).unwrap();
                sampler.accept(token);
                token
            })
            .collect::<Vec<_>>()
    };
    let default = Params::default();
    assert_eq!(draw(&default, 42), draw(&default, 42));
    assert_ne!(draw(&default, 42), draw(&default, 43));
    // Written down, so that a change of generator, exponential or order does not pass unseen.
    let all = Params { top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() };
    let many = Params {
        typical_p: 0.9,
        top_n_sigma: 2.0,
        xtc_probability: 0.5,
        xtc_threshold: 0.02,
        repeat_penalty: 1.2,
        dynatemp_range: 0.3,
        ..Params::default()
    };
    let drawn = [
        draw(&default, 42),
        draw(&all, 42),
        draw(&many, 42),
        draw(&Params { mirostat: 1, ..all.clone() }, 42),
        draw(&Params { mirostat: 2, ..all.clone() }, 42),
        draw(&Params { adaptive_target: 0.01, ..all.clone() }, 42),
    ];
    assert_eq!(drawn, PINNED);
}

const PINNED: [[u32; 12]; 6] = [
    [948, 50, 585, 463, 851, 75, 413, 75, 704, 391, 923, 3],
    [812, 319, 985, 704, 797, 588, 124, 607, 206, 931, 560, 851],
    [995, 366, 923, 876, 779, 197, 219, 973, 682, 632, 125, 75],
    [812, 25, 25, 704, 797, 25, 124, 25, 206, 25, 560, 973],
    [810, 319, 982, 704, 801, 588, 122, 607, 200, 948, 560, 876],
    [814, 318, 983, 701, 793, 588, 125, 605, 207, 933, 559, 850],
];

#[test]
fn a_seed_that_was_not_given_can_be_given_back() {
    let logits: Vec<f32> = (0..500).map(|i| (i % 10) as f32 * 0.1).collect();
    let mut first = Sampler::new(&Params { top_k: 0, ..Params::default() }).unwrap();
    let mut again = Sampler::new(&Params { top_k: 0, seed: Some(first.seed()), ..Params::default() }).unwrap();
    for _ in 0..50 {
        assert_eq!(first.sample(&logits, None), again.sample(&logits, None));
    }
}

/// One sampler of every kind.
fn every_kind() -> Vec<Params> {
    let all = Params { top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(3), ..Params::default() };
    vec![
        Params::default(),
        Params::greedy(),
        all.clone(),
        Params { top_k: 0, ..Params::default() },
        Params { top_p: 0.9, ..all.clone() },
        Params { min_p: 0.1, ..all.clone() },
        Params { typical_p: 0.9, ..all.clone() },
        Params { top_n_sigma: 1.0, ..all.clone() },
        Params { dynatemp_range: 0.4, ..all.clone() },
        Params { dynatemp_range: 0.8, ..all.clone() },
        Params { xtc_probability: 1.0, ..all.clone() },
        Params { repeat_penalty: 1.5, frequency_penalty: f32::MAX, presence_penalty: -3.0, ..all.clone() },
        Params { dry_multiplier: f32::MAX, dry_base: f32::MAX, ..all.clone() },
        Params { mirostat: 1, ..all.clone() },
        Params { mirostat: 2, ..all.clone() },
        Params { mirostat: 2, mirostat_tau: f32::MAX, mirostat_eta: f32::MAX, ..all.clone() },
        Params { mirostat: 1, mirostat_tau: f32::MAX, mirostat_eta: f32::MAX, ..all.clone() },
        Params { adaptive_target: 0.5, ..all.clone() },
        Params { logit_bias: vec![(1, f32::MAX), (u32::MAX, 1.0), (2, f32::NEG_INFINITY)], ..all.clone() },
        Params { min_keep: u32::MAX, top_p: 0.1, min_p: 0.5, typical_p: 0.5, ..all.clone() },
    ]
}

#[test]
fn broken_logits_are_an_error() {
    for params in every_kind() {
        let mut sampler = Sampler::new(&params).unwrap();
        sampler.begin(&[0, 0, 1, 7, u32::MAX]);
        assert_eq!(sampler.sample(&[], None), Err(Error::Empty));
        for broken in [f32::NAN, -f32::NAN] {
            let error = sampler.sample(&[0.5, broken, 2.0], None).unwrap_err();
            assert!(matches!(error, Error::NotFinite { token: 1, value } if value.is_nan()), "{error}");
        }
        let error = sampler.sample(&[0.5, 1.0, -1.0, f32::INFINITY], None).unwrap_err();
        assert!(matches!(error, Error::NotFinite { token: 3, .. }), "{error}");
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], None), Err(Error::AllRuledOut));
        assert_eq!(sampler.sample(&[0.5, 1.0, 2.0], Some(&[0])), Err(Error::AllRuledOut));
        assert_eq!(sampler.sample(&[0.5, 1.0, 2.0], Some(&[])), Err(Error::AllRuledOut));
        // What is not allowed is not looked at.
        assert_eq!(sampler.sample(&[f32::NAN, 1.0, 2.0, 0.0, -3.0], Some(&[16])), Ok(4), "{params:?}");
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, -3.0e38], None), Ok(3));
    }
}

#[test]
fn extreme_logits_and_temperatures_give_a_token_all_the_same() {
    let logits = [f32::MAX, 0.0, f32::MIN, f32::NEG_INFINITY];
    for params in every_kind() {
        for temperature in [1e-45f32, 1e-38, 1e-3, 1e3, f32::MAX] {
            let params = Params { temperature, ..params.clone() };
            let mut sampler = Sampler::new(&params).unwrap();
            sampler.begin(&[1, 1, 2]);
            for _ in 0..5 {
                let token = sampler.sample(&logits, None).unwrap();
                assert!(token < 3, "{params:?} drew token {token}, which is ruled out");
                sampler.accept(token);
            }
            let mut out = Vec::new();
            sampler.distribution(&logits, None, &mut out).unwrap();
            assert!(out.iter().all(|(id, p)| *id < 3 && *p > 0.0 && *p <= 1.0), "{out:?}");
        }
    }
}

#[test]
fn parameters_outside_their_range_are_refused() {
    for (params, name) in [
        (Params { temperature: -0.1, ..Params::default() }, "temperature"),
        (Params { temperature: f32::NAN, ..Params::default() }, "temperature"),
        (Params { temperature: f32::INFINITY, ..Params::default() }, "temperature"),
        (Params { top_p: -0.1, ..Params::default() }, "top_p"),
        (Params { top_p: 1.5, ..Params::default() }, "top_p"),
        (Params { min_p: -0.5, ..Params::default() }, "min_p"),
        (Params { min_p: f32::NAN, ..Params::default() }, "min_p"),
        (Params { repeat_penalty: 0.0, ..Params::default() }, "repeat_penalty"),
        (Params { repeat_penalty: 1e-40, ..Params::default() }, "repeat_penalty"),
        (Params { mirostat: 3, ..Params::default() }, "mirostat"),
        (Params { logit_bias: vec![(1, f32::INFINITY)], ..Params::default() }, "logit_bias"),
        (Params { logit_bias: vec![(1, f32::NAN)], ..Params::default() }, "logit_bias"),
        (Params { adaptive_decay: 1.0, ..Params::default() }, "adaptive_decay"),
        (Params { dry_sequence_breakers: vec![String::new()], ..Params::default() }, "dry_sequence_breakers"),
    ] {
        let error = Sampler::new(&params).unwrap_err();
        assert!(matches!(error, Error::Parameter { name: n, .. } if n == name), "{error}");
    }
}

#[test]
fn penalties_look_only_as_far_back_as_asked() {
    let logits = [1.0f32; 8];
    let params =
        Params { presence_penalty: 100.0, repeat_last_n: 3, top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() };
    let mut sampler = Sampler::new(&params).unwrap();
    sampler.begin(&[0, 1, 2, 3]);
    let left = |sampler: &mut Sampler| {
        let mut out = Vec::new();
        sampler.distribution(&logits, None, &mut out).unwrap();
        let mut ids: Vec<u32> = out.into_iter().filter(|(_, p)| *p > 1e-3).map(|(id, _)| id).collect();
        ids.sort();
        ids
    };
    assert_eq!(left(&mut sampler), [0, 4, 5, 6, 7]);
    sampler.accept(7);
    assert_eq!(left(&mut sampler), [0, 1, 4, 5, 6]);
    (0..5000).for_each(|i| sampler.accept(i % 2));
    assert_eq!(left(&mut sampler), [2, 3, 4, 5, 6, 7]);
    sampler.begin(&[]);
    assert_eq!(left(&mut sampler), [0, 1, 2, 3, 4, 5, 6, 7]);
    let mut all = Sampler::new(&Params { repeat_last_n: u32::MAX, ..params }).unwrap();
    all.begin(&[1; 1000]);
    (0..5000).for_each(|i| all.accept(2 + i % 2));
    assert_eq!(left(&mut all), [0, 4, 5, 6, 7]);
}

#[test]
fn dry_stops_at_sequence_breakers() {
    let pieces: [&[u8]; 6] = [b"a", b"b", b"c", b"\n", b"x\n", b"d"];
    let params = Params { dry_multiplier: 100.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Params::default() };
    let with_text = Sampler::with_text(&params, 6, |id| pieces[id as usize]).unwrap();
    let without = Sampler::new(&params).unwrap();
    let penalised = |mut sampler: Sampler, text: &[u32]| {
        sampler.begin(text);
        let mut out = Vec::new();
        sampler.distribution(&[0.0; 6], None, &mut out).unwrap();
        (0..6).filter(|id| !out.iter().any(|(kept, p)| kept == id && *p > 1e-3)).collect::<Vec<u32>>()
    };
    // a b c a b: c comes next.
    assert_eq!(penalised(with_text.clone(), &[0, 1, 2, 0, 1]), [2]);
    // One token is no repetition yet, nor are two with a break between.
    assert_eq!(penalised(with_text.clone(), &[1, 2, 1]), [0u32; 0]);
    assert_eq!(penalised(with_text.clone(), &[0, 3, 1, 2, 0, 3, 1]), [0u32; 0]);
    assert_eq!(penalised(with_text.clone(), &[0, 4, 1, 2, 0, 4, 1]), [0u32; 0]);
    assert_eq!(penalised(without.clone(), &[0, 3, 1, 2, 0, 3, 1]), [2]);
    // A break itself is never penalised.
    assert_eq!(penalised(with_text, &[0, 1, 3, 0, 1]), [0u32; 0]);
    assert_eq!(penalised(without, &[0, 1, 3, 0, 1]), [3]);
}

#[test]
fn mirostat_and_adaptive_p_come_near_their_targets() {
    let mut random = Random::new(2);
    let logits: Vec<f32> = (0..2000).map(|_| (-(1.0 - random.unit()).ln()).powi(2) as f32 * 0.1).collect();
    let all = Params { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed: Some(6), ..Params::default() };
    let run = |params: Params| {
        let mut sampler = Sampler::new(&params).unwrap();
        let (mut surprise, mut p) = (0.0, 0.0);
        const DRAWS: usize = 2000;
        for _ in 0..DRAWS {
            let token = sampler.sample(&logits, None).unwrap();
            let last = sampler.chain.last.iter().find(|(id, _)| *id == token).map(|(_, p)| *p).unwrap();
            sampler.accept(token);
            surprise -= last.log2();
            p += last;
        }
        (surprise / DRAWS as f64, p / DRAWS as f64)
    };
    for tau in [2.0, 4.0] {
        for mirostat in [1, 2] {
            let (surprise, _) = run(Params { mirostat, mirostat_tau: tau, ..all.clone() });
            assert!((surprise - f64::from(tau)).abs() < 0.1, "version {mirostat}: {surprise}, wanted {tau}");
        }
    }
    let (_, low) = run(Params { adaptive_target: 0.01, ..all.clone() });
    let (_, high) = run(Params { adaptive_target: 0.3, ..all.clone() });
    assert!(low < high, "{low} {high}");
}

#[test]
fn logprobs_are_the_models_own() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 1000) as f32 * 0.01).collect();
    let mut sampler = Sampler::new(&Params { repeat_penalty: 2.0, ..Params::default() }).unwrap();
    sampler.begin(&[999, 5]);
    let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
    for n in [0, 1, 5, 3000, 9999] {
        let mut top = vec![(1, 1.0)];
        let of_token = sampler.logprobs(&logits, 17, n, &mut top).unwrap();
        assert!((of_token - (f64::from(logits[17]) - total)).abs() < 1e-6);
        let mut wanted = Naive::new(&logits, None);
        wanted.sort();
        wanted.list.truncate(n);
        assert_eq!(top.len(), n.min(5000));
        for ((id, got), (wanted_id, logit)) in top.iter().zip(&wanted.list) {
            assert!(id == wanted_id && (got - (logit - total)).abs() < 1e-6);
        }
    }
    assert_eq!(sampler.logprobs(&logits, 99_999, 0, &mut Vec::new()).unwrap(), f64::NEG_INFINITY);
}

/// A sampler that has seen the end of a text behaves like one that has seen it all.
#[test]
fn clones_go_on_as_the_original_does() {
    let logits: Vec<f32> = (0..300).map(|i| ((i * 31) % 97) as f32 * 0.1).collect();
    for params in every_kind() {
        let mut sampler = Sampler::new(&params).unwrap();
        sampler.begin(&[1, 2, 3, 1, 2]);
        for _ in 0..3 {
            let token = sampler.sample(&logits, None).unwrap();
            // Between the choice and its acceptance.
            let mut clone = sampler.clone();
            sampler.accept(token);
            clone.accept(token);
            let mut clone = clone.clone();
            assert_eq!(sampler.clone().sample(&logits, None), clone.sample(&logits, None), "{params:?}");
        }
    }
}
