//! From logits to a token: pure functions of logits, parameters and a random stream.
//!
//! ```text
//! logits ──► top_k ──► top_p ──► min_p ──► temperature ──► draw ──► token
//!            keep k    nucleus   relative   sharpen or      one
//!            highest             floor      flatten         number
//! ```
//!
//! Names, defaults and order are those of llama.cpp's `llama-sampler.cpp`. The way there is not: the vocabulary is
//! never copied into an array of structs nor sorted. [`Candidates`] borrows the logits until a stage narrows them, and
//! sorts only what a stage looks at.
//!
//! One seed gives one text on every machine for the same logits: the generator ([`Random`]) and the exponential
//! ([`exp`]) are written out here in operations that IEEE 754 defines to the last bit, and ties go to the lower id.

mod candidates;
mod math;
mod random;

pub use candidates::{Candidate, Candidates};
pub use math::exp;
pub use random::Random;
pub(crate) use random::new_seed;

/// What a sampler is asked to do. The defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Logits are divided by this: above 1 flattens, below 1 sharpens, 0 always takes the most likely token.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely, relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Where the random numbers begin; `None` picks a seed that [`Sampler::seed`] tells afterwards.
    pub seed: Option<u64>,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, seed: None }
    }
}

impl Params {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(0) }
    }

    /// The stages these parameters ask for, in the order they are carried out; those that would change nothing are
    /// left out. Empty where the most likely token is taken.
    ///
    /// # Errors
    /// Where a parameter lies outside its range.
    pub fn chain(&self) -> Result<Vec<Stage>, Error> {
        let within = |name, value: f32, wanted, ok: bool| {
            if ok { Ok(()) } else { Err(Error::Parameter { name, value, wanted }) }
        };
        let t = self.temperature;
        within("temperature", t, "0 or more", t.is_finite() && t >= 0.0)?;
        within("top-p", self.top_p, "above 0, up to 1", self.top_p > 0.0 && self.top_p <= 1.0)?;
        within("min-p", self.min_p, "from 0 to 1", (0.0..=1.0).contains(&self.min_p))?;

        let mut chain = Vec::new();
        if t == 0.0 {
            return Ok(chain);
        }
        if self.top_k > 0 {
            chain.push(Stage::TopK(self.top_k as usize));
        }
        if self.top_p < 1.0 {
            chain.push(Stage::TopP(self.top_p.into()));
        }
        if self.min_p > 0.0 {
            chain.push(Stage::MinP(self.min_p.into()));
        }
        chain.push(Stage::Temperature(t.into()));
        Ok(chain)
    }
}

/// One step between logits and the draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// Keep the `k` most likely; ties go to the lower id.
    TopK(usize),
    /// Keep the most likely ones until their probabilities, among what was left before, add up to this.
    ///
    /// Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", <https://arxiv.org/abs/1904.09751>
    TopP(f64),
    /// Keep those at least this likely, relative to the most likely one.
    ///
    /// Source: Nguyen et al., "Turning Up the Heat", <https://arxiv.org/abs/2407.01082>
    MinP(f64),
    /// Divide the logits by this.
    Temperature(f64),
}

impl Stage {
    /// Carries out the stage.
    pub fn apply(self, candidates: &mut Candidates<'_>) {
        match self {
            Self::TopK(k) => candidates.top_k(k),
            Self::TopP(p) => candidates.top_p(p),
            Self::MinP(p) => candidates.min_p(p),
            Self::Temperature(t) => candidates.temperature(t),
        }
    }
}

/// Why no token could be chosen, or no sampler made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A parameter outside its range.
    #[error("{name} is {value}; it has to be {wanted}")]
    Parameter {
        /// The parameter as the command line spells it.
        name: &'static str,
        /// What was given.
        value: f32,
        /// The range.
        wanted: &'static str,
    },
    /// No logits at all.
    #[error("there are no logits to choose from")]
    Empty,
    /// A logit that is not a number, or infinitely high: the model file or its computation is broken.
    #[error(
        "the model gave {value} as the logit of token {token}: its weights are broken, or a value ran over; \
         try another quantization, or --kv-type f32"
    )]
    NotFinite {
        /// Whose logit.
        token: usize,
        /// NaN or infinity.
        value: f32,
    },
    /// Every token is ruled out.
    #[error("every token is ruled out: all logits are minus infinity")]
    AllRuledOut,
}

/// Chooses tokens: parameters, a random stream, and the buffers that are used again for every token.
#[derive(Clone, Debug)]
pub struct Sampler {
    chain: Vec<Stage>,
    seed: u64,
    random: Random,
    kept: Vec<Candidate>,
    history: Vec<u32>,
}

impl Sampler {
    /// A sampler that does what `params` ask.
    ///
    /// # Errors
    /// Where a parameter lies outside its range.
    pub fn new(params: &Params) -> Result<Self, Error> {
        let chain = params.chain()?;
        let seed = params.seed.unwrap_or_else(random::new_seed);
        Ok(Self { chain, seed, random: Random::new(seed), kept: Vec::new(), history: Vec::new() })
    }

    /// The seed in use: the one that was given, or the one that was picked.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Begins a text with `prompt`: what is penalised as a repetition is looked up there too.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.history.clear();
        self.history.extend_from_slice(prompt);
    }

    /// Takes note that the text goes on with `token`.
    pub fn accept(&mut self, token: u32) {
        self.history.push(token);
    }

    /// Chooses the next token: an index into `logits`. Where `allowed` is given, only among the tokens whose bit is set
    /// in it: token i is bit i % 32 of word i / 32.
    ///
    /// # Errors
    /// Where a logit is NaN or plus infinity, or no token is possible.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<u32, Error> {
        let masked: Vec<f32>;
        let logits = match allowed {
            None => logits,
            Some(mask) => {
                let is_allowed = |id: usize| mask.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
                let each = logits.iter().enumerate();
                masked = each.map(|(id, logit)| if is_allowed(id) { *logit } else { f32::NEG_INFINITY }).collect();
                &masked
            }
        };
        let mut candidates = Candidates::new(logits, &mut self.kept)?;
        if self.chain.is_empty() {
            return Ok(candidates.most_likely());
        }
        for stage in &self.chain {
            stage.apply(&mut candidates);
        }
        Ok(candidates.draw(&mut self.random))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same chain, the obvious way: a full sort, f64 throughout, the standard library's exponential.
    /// Gives id and probability, most likely first.
    fn naive(logits: &[f32], params: &Params) -> Vec<(u32, f64)> {
        let mut all: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(id, &l)| (id as u32, f64::from(l)))
            .filter(|(_, l)| *l > f64::NEG_INFINITY)
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let softmax = |list: &[(u32, f64)]| -> Vec<f64> {
            let max = list[0].1;
            let sum: f64 = list.iter().map(|(_, l)| (l - max).exp()).sum();
            list.iter().map(|(_, l)| (l - max).exp() / sum).collect()
        };
        if params.top_k > 0 {
            all.truncate(params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let mut sum = 0.0;
            let mut keep = 0;
            for p in softmax(&all) {
                keep += 1;
                sum += p;
                if sum >= f64::from(params.top_p) {
                    break;
                }
            }
            all.truncate(keep);
        }
        let max = all[0].1;
        all.retain(|(_, l)| (l - max).exp() >= f64::from(params.min_p));
        for (_, l) in &mut all {
            *l /= f64::from(params.temperature);
        }
        let probabilities = softmax(&all);
        all.iter().zip(probabilities).map(|((id, _), p)| (*id, p)).collect()
    }

    fn distribution(logits: &[f32], params: &Params) -> Vec<(u32, f64)> {
        let mut kept = Vec::new();
        let mut candidates = Candidates::new(logits, &mut kept).unwrap();
        for stage in params.chain().unwrap() {
            stage.apply(&mut candidates);
        }
        let mut out = candidates.probabilities();
        out.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        out
    }

    fn same(got: &[(u32, f64)], wanted: &[(u32, f64)]) -> Result<(), String> {
        if got.len() != wanted.len() {
            return Err(format!("{} candidates, the naive way gives {}", got.len(), wanted.len()));
        }
        let (mut got, mut wanted) = (got.to_vec(), wanted.to_vec());
        got.sort_by_key(|c| c.0);
        wanted.sort_by_key(|c| c.0);
        for (g, w) in got.iter().zip(&wanted) {
            if g.0 != w.0 || (g.1 - w.1).abs() > 1e-12 {
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
            1 => prop_oneof![Just(-3.0e38f32), Just(-1000.0), Just(88.8)],
        ];
        prop::collection::vec(logit, 1..700)
            .prop_filter("something has to be possible", |l| l.iter().any(|l| *l > f32::NEG_INFINITY))
    }

    fn any_params() -> impl Strategy<Value = Params> {
        let top_p = prop_oneof![Just(1.0f32), 0.01f32..1.0, Just(0.999)];
        let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0, Just(1.0)];
        let top_k = prop_oneof![Just(0u32), 1u32..80, Just(5000)];
        (0.05f32..3.0, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| Params {
            temperature,
            top_k,
            top_p,
            min_p,
            seed: Some(1),
        })
    }

    proptest! {
        #[test]
        fn every_chain_keeps_what_a_full_sort_keeps(logits in any_logits(), params in any_params()) {
            let wanted = naive(&logits, &params);
            // Where a threshold falls between two sums that differ by rounding alone, either side is right.
            let near = |p: f32, q: f32| (f64::from(p) - f64::from(q)).abs();
            let mut looser = params.clone();
            looser.top_p = (params.top_p + 1e-6).min(1.0);
            looser.min_p = (params.min_p - 1e-6).max(0.0);
            let mut tighter = params.clone();
            tighter.top_p = (params.top_p - 1e-6).max(1e-9);
            tighter.min_p = (params.min_p + 1e-6).min(1.0);
            prop_assume!(near(looser.top_p, tighter.top_p) < 1e-5);
            prop_assume!(naive(&logits, &looser).len() == naive(&logits, &tighter).len());
            if let Err(message) = same(&distribution(&logits, &params), &wanted) {
                prop_assert!(false, "{message} with {params:?}");
            }
        }

        #[test]
        fn greedy_takes_the_first_of_the_highest(logits in any_logits()) {
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let wanted = logits.iter().position(|l| *l == best).unwrap() as u32;
            prop_assert_eq!(Sampler::new(&Params::greedy()).unwrap().sample(&logits, None).unwrap(), wanted);
            let one = Params { top_k: 1, ..Params::default() };
            prop_assert_eq!(Sampler::new(&one).unwrap().sample(&logits, None).unwrap(), wanted);
        }
    }

    #[test]
    fn keeps_what_a_full_sort_keeps_at_the_size_of_a_vocabulary() {
        let mut random = Random::new(11);
        let logits: Vec<f32> = (0..64_000).map(|_| (random.unit() * 24.0 - 16.0) as f32).collect();
        for params in [
            Params::default(),
            Params { top_k: 0, ..Params::default() },
            Params { top_k: 0, top_p: 1.0, ..Params::default() },
            Params { top_k: 0, top_p: 0.999_9, min_p: 0.0, ..Params::default() },
            Params { top_k: 20_000, top_p: 1.0, min_p: 0.0, ..Params::default() },
        ] {
            same(&distribution(&logits, &params), &naive(&logits, &params))
                .unwrap_or_else(|message| panic!("{message} with {params:?}"));
        }
    }

    /// Pearson's statistic of 200,000 draws, against the 99.99th percentile of chi-squared.
    #[test]
    fn draws_as_often_as_the_probabilities_say() {
        let logits: Vec<f32> = (0..40).map(|i| ((i * 7919) % 23) as f32 * 0.2).collect();
        for (params, seed) in [
            (Params::default(), 1),
            (Params { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.3, seed: None }, 2),
            (Params { top_k: 0, top_p: 0.7, min_p: 0.0, temperature: 1.0, seed: None }, 3),
        ] {
            let wanted = naive(&logits, &params);
            let mut sampler = Sampler::new(&Params { seed: Some(seed), ..params.clone() }).unwrap();
            let mut counts = vec![0u32; logits.len()];
            const DRAWS: usize = 200_000;
            for _ in 0..DRAWS {
                counts[sampler.sample(&logits, None).unwrap() as usize] += 1;
            }
            let drawn: u32 = wanted.iter().map(|(id, _)| counts[*id as usize]).sum();
            assert_eq!(drawn as usize, DRAWS, "drew a token that was ruled out, with {params:?}");
            let statistic: f64 = wanted
                .iter()
                .map(|(id, p)| {
                    let expected = p * DRAWS as f64;
                    (f64::from(counts[*id as usize]) - expected).powi(2) / expected
                })
                .sum();
            // Wilson and Hilferty's approximation of the quantile; 3.719 is the normal one.
            let df = (wanted.len() - 1) as f64;
            let limit = df * (1.0 - 2.0 / (9.0 * df) + 3.719 * (2.0 / (9.0 * df)).sqrt()).powi(3);
            assert!(statistic < limit, "chi-squared {statistic:.1}, limit {limit:.1}, with {params:?}");
        }
    }

    #[test]
    fn one_seed_gives_one_text() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 31) % 97) as f32 * 0.05).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(&Params { seed: Some(seed), ..Params::default() }).unwrap();
            (0..12).map(|_| sampler.sample(&logits, None).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(42), draw(42));
        assert_ne!(draw(42), draw(43));
        // Written down, so that a change of generator, exponential or order does not pass unseen.
        assert_eq!(draw(42), PINNED);
    }

    const PINNED: [u32; 12] = [948, 50, 585, 463, 851, 75, 413, 75, 704, 391, 923, 3];

    #[test]
    fn a_seed_that_was_not_given_can_be_given_back() {
        let logits: Vec<f32> = (0..500).map(|i| (i % 10) as f32 * 0.1).collect();
        let mut first = Sampler::new(&Params { top_k: 0, ..Params::default() }).unwrap();
        let mut again = Sampler::new(&Params { top_k: 0, seed: Some(first.seed()), ..Params::default() }).unwrap();
        for _ in 0..50 {
            assert_eq!(first.sample(&logits, None), again.sample(&logits, None));
        }
    }

    #[test]
    fn broken_logits_are_an_error() {
        for params in [Params::default(), Params::greedy(), Params { top_k: 0, ..Params::default() }] {
            let mut sampler = Sampler::new(&params).unwrap();
            assert_eq!(sampler.sample(&[], None), Err(Error::Empty));
            let error = sampler.sample(&[0.5, f32::NAN, 2.0], None).unwrap_err();
            assert!(matches!(error, Error::NotFinite { token: 1, value } if value.is_nan()), "{error}");
            let error = sampler.sample(&[0.5, 1.0, f32::INFINITY], None).unwrap_err();
            assert!(matches!(error, Error::NotFinite { token: 2, .. }), "{error}");
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], None), Err(Error::AllRuledOut));
            assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3.0e38], None), Ok(1));
        }
    }

    #[test]
    fn parameters_outside_their_range_are_refused() {
        for (params, name) in [
            (Params { temperature: -0.1, ..Params::default() }, "temperature"),
            (Params { temperature: f32::NAN, ..Params::default() }, "temperature"),
            (Params { temperature: f32::INFINITY, ..Params::default() }, "temperature"),
            (Params { top_p: 0.0, ..Params::default() }, "top-p"),
            (Params { top_p: 1.5, ..Params::default() }, "top-p"),
            (Params { min_p: -0.5, ..Params::default() }, "min-p"),
            (Params { min_p: f32::NAN, ..Params::default() }, "min-p"),
        ] {
            let error = Sampler::new(&params).unwrap_err();
            assert!(matches!(error, Error::Parameter { name: n, .. } if n == name), "{error}");
        }
    }

    #[test]
    fn an_extreme_temperature_gives_a_token_all_the_same() {
        let logits = [f32::MAX, 0.0, f32::MIN, f32::NEG_INFINITY];
        for temperature in [1e-38f32, 1e-3, 1e3, f32::MAX] {
            let params = Params { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(3) };
            let token = Sampler::new(&params).unwrap().sample(&logits, None).unwrap();
            assert!(token < 3, "temperature {temperature} drew token {token}, which is ruled out");
            let params = Params { temperature, seed: Some(3), ..Params::default() };
            assert_eq!(Sampler::new(&params).unwrap().sample(&logits, None), Ok(0));
        }
    }
}
