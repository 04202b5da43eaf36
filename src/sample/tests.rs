//! Every sampler against the obvious way: a full sort, f64 throughout, the standard library's functions.

use proptest::prelude::*;

use super::samplers::{Place, for_each_sampler};
use super::*;

/// What the obvious way makes of logits: id, logit and nothing else.
#[derive(Clone)]
pub(super) struct Naive {
    pub list: Vec<(u32, f64)>,
    // With those at minus infinity that llama.cpp keeps in its list.
    pub n: usize,
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

    pub fn softmax(&self) -> Vec<f64> {
        let max = self.list.iter().map(|(_, l)| *l).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.list.iter().map(|(_, l)| (l - max).exp()).sum();
        self.list.iter().map(|(_, l)| (l - max).exp() / sum).collect()
    }

    pub fn entropy(&self) -> f64 {
        self.softmax().iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
    }

    /// The chain of `params`, with `slack` added to what a threshold is held against.
    fn apply(&mut self, params: &Params, history: &[u32], slack: f64) {
        let first = SamplerKind::ALL.iter().filter(|kind| kind.entry().place == Place::First);
        for kind in first.chain(&params.samplers) {
            self.sort();
            naive_step(*kind)(self, params, history, slack);
        }
    }

    fn probabilities(&self) -> Vec<(u32, f64)> {
        self.list.iter().zip(self.softmax()).map(|((id, _), p)| (*id, p)).collect()
    }
}

type NaiveStep = fn(&mut Naive, &Params, &[u32], f64);

macro_rules! define_tests {
    ($($kind:ident: $module:ident,)*) => {
        /// What a sampler does, in the obvious way.
        fn naive_step(kind: SamplerKind) -> NaiveStep {
            match kind {
                $(SamplerKind::$kind => samplers::$module::tests::naive,)*
            }
        }

        /// Settings of every sampler, each alone and all together.
        fn any_params() -> BoxedStrategy<Params> {
            let order = Just(SamplerKind::default_order()).prop_shuffle();
            let min_keep = prop_oneof![3 => Just(0u32), 1 => 1u32..20];
            let params = (any::<bool>(), order, min_keep).prop_map(|(shuffle, order, min_keep)| {
                let default = Params::default();
                let samplers = if shuffle { order } else { default.samplers };
                Params { samplers, min_keep, seed: Some(1), ..default }
            });
            let params = params.boxed();
            $(
                let params = (params, samplers::$module::tests::any())
                    .prop_map(|(params, $module)| Params { $module, ..params })
                    .boxed();
            )*
            params
        }

        /// Every sampler alone, as somebody would use it.
        fn examples() -> Vec<(&'static str, Params)> {
            let mut all = Vec::new();
            $(all.extend(samplers::$module::tests::examples().into_iter().map(|params| (stringify!($module), params)));)*
            all
        }

        /// Every sampler alone, with parameters at the ends of their ranges.
        fn extremes() -> Vec<Params> {
            let mut all = Vec::new();
            $(all.extend(samplers::$module::tests::extremes());)*
            all
        }
    };
}
for_each_sampler!(define_tests);

/// Parameters that leave all tokens as likely as the model says.
pub(super) fn all() -> Params {
    let temperature = Temperature::fixed(1.0);
    Params { top_k: 0, top_p: 1.0, min_p: 0.0, temperature, seed: Some(6), ..Params::default() }
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

/// Returns whether both have the same tokens, and of the same probability. Passes over all logits are in 32 bits, where
/// what is below e^-87 of the highest is 0.
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
        let cold = Params { temperature: Temperature::fixed(0.0), ..Params::default() };
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
        let mirostat = Mirostat { version: mirostat, ..Mirostat::default() };
        let params = Params { mirostat, adaptive_p: AdaptiveP { target, ..AdaptiveP::default() }, ..params };
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
        let params = Params { mirostat: Mirostat { version: mirostat, ..Mirostat::default() }, ..params };
        let mut sampler = Sampler::new(&params).unwrap();
        let mut other = sampler.clone();
        let mut telling = sampler.clone();
        let (mut out, mut told) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            sampler.distribution(&logits, None, &mut out).unwrap();
            let _ = sampler.unit();
            let token = other.sample(&logits, None).unwrap();
            prop_assert!(out.iter().any(|(id, p)| *id == token && *p > 0.0));
            prop_assert_eq!(telling.sample_from(&logits, None, &mut told).unwrap(), token);
            prop_assert_eq!(&told, &out);
            let next = |sampler: &Sampler| sampler.random.clone().next_u64();
            prop_assert_eq!([next(&sampler), next(&telling)], [next(&other); 2]);
            [&mut sampler, &mut other, &mut telling].into_iter().for_each(|sampler| sampler.accept(token));
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
    let all = Params { temperature: Temperature::default(), ..all() };
    for logits in [flat, peaked, equal] {
        for params in [
            Params::default(),
            Params { top_k: 0, ..Params::default() },
            all.clone(),
            Params { temperature: Temperature::fixed(1.0), ..all.clone() },
            Params { top_p: 0.999_9, ..all.clone() },
            Params { top_p: 0.6, ..all.clone() },
            Params { top_k: 200, top_p: 1.0, ..all.clone() },
            Params { top_k: 20_000, ..all.clone() },
            Params { min_p: 0.001, ..all.clone() },
            Params { typical_p: 0.5, ..all.clone() },
            Params { typical_p: 0.95, ..all.clone() },
            Params { top_n_sigma: 1.0, ..all.clone() },
            Params { temperature: Temperature { range: 0.5, ..Temperature::default() }, ..all.clone() },
            Params { xtc: Xtc { probability: 1.0, threshold: 1e-3 }, ..all.clone() },
            Params {
                penalties: Penalties { repeat: 1.3, frequency: 0.2, ..Penalties::default() },
                top_p: 0.9,
                ..all.clone()
            },
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

#[test]
fn every_sampler_draws_as_often_as_its_probabilities_say() {
    let logits: Vec<f32> = (0..40).map(|i| ((i * 7919) % 23) as f32 * 0.2).collect();
    let cases = [("default", Params::default()), ("nothing", all())].into_iter().chain(examples());
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

/// Checks how often tokens were drawn: Pearson's statistic against the 99.99th percentile of chi-squared.
pub(super) fn check_draws(name: &str, wanted: &[(u32, f64)], counts: &[u32], draws: usize) {
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
        xtc: Xtc { probability: 0.5, threshold: 0.02 },
        penalties: Penalties { repeat: 1.2, ..Penalties::default() },
        temperature: Temperature { range: 0.3, ..Temperature::default() },
        ..Params::default()
    };
    let mirostat = |version| Mirostat { version, ..Mirostat::default() };
    let drawn = [
        draw(&default, 42),
        draw(&all, 42),
        draw(&many, 42),
        draw(&Params { mirostat: mirostat(1), ..all.clone() }, 42),
        draw(&Params { mirostat: mirostat(2), ..all.clone() }, 42),
        draw(&Params { adaptive_p: AdaptiveP { target: 0.01, ..AdaptiveP::default() }, ..all.clone() }, 42),
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
    let mut kinds = vec![
        Params::default(),
        Params::greedy(),
        all(),
        Params { top_k: 0, ..Params::default() },
        Params { min_keep: u32::MAX, top_p: 0.1, min_p: 0.5, typical_p: 0.5, ..all() },
    ];
    kinds.extend(examples().into_iter().map(|(_, params)| params));
    kinds.extend(extremes());
    kinds
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
            let params =
                Params { temperature: Temperature { value: temperature, ..params.temperature }, ..params.clone() };
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
    let penalty = |repeat| Penalties { repeat, ..Penalties::default() };
    let breaker = |text| Dry { breakers: vec![text], ..Dry::default() };
    for (params, name) in [
        (Params { temperature: Temperature::fixed(-0.1), ..Params::default() }, "temperature"),
        (Params { temperature: Temperature::fixed(f32::NAN), ..Params::default() }, "temperature"),
        (Params { temperature: Temperature::fixed(f32::INFINITY), ..Params::default() }, "temperature"),
        (Params { top_p: -0.1, ..Params::default() }, "top_p"),
        (Params { top_p: 1.5, ..Params::default() }, "top_p"),
        (Params { min_p: -0.5, ..Params::default() }, "min_p"),
        (Params { min_p: f32::NAN, ..Params::default() }, "min_p"),
        (Params { penalties: penalty(0.0), ..Params::default() }, "repeat_penalty"),
        (Params { penalties: penalty(1e-40), ..Params::default() }, "repeat_penalty"),
        (Params { mirostat: Mirostat { version: 3, ..Mirostat::default() }, ..Params::default() }, "mirostat"),
        (Params { logit_bias: vec![(1, f32::INFINITY)], ..Params::default() }, "logit_bias"),
        (Params { logit_bias: vec![(1, f32::NAN)], ..Params::default() }, "logit_bias"),
        (
            Params { adaptive_p: AdaptiveP { decay: 1.0, ..AdaptiveP::default() }, ..Params::default() },
            "adaptive_decay",
        ),
        (Params { dry: breaker(String::new()), ..Params::default() }, "dry_sequence_breakers"),
        (Params { dry: breaker("x".repeat(41)), ..Params::default() }, "dry_sequence_breakers"),
    ] {
        let error = Sampler::new(&params).unwrap_err();
        assert!(matches!(error, Error::Parameter { name: n, .. } if n == name), "{error}");
    }
}

/// Draws 2000 tokens, and returns the mean of their surprise in bits, and that of their probability.
pub(super) fn mean_surprise_and_probability(params: Params) -> (f64, f64) {
    let mut random = Random::new(2);
    let logits: Vec<f32> = (0..2000).map(|_| (-(1.0 - random.unit()).ln()).powi(2) as f32 * 0.1).collect();
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
}

#[test]
fn logprobs_are_the_models_own() {
    let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 1000) as f32 * 0.01).collect();
    let mut sampler =
        Sampler::new(&Params { penalties: Penalties { repeat: 2.0, ..Penalties::default() }, ..Params::default() })
            .unwrap();
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
