//! DRY ("don't repeat yourself"): the longer a repetition is, the less likely become the tokens that would continue it.
//!
//! ```text
//! text       a b c d  x  a b c        the last three have been here before,
//! repeats          3  .               so d, which followed them then, is penalised by multiplier · base^(3 - allowed)
//! ```
//!
//! Source: <https://github.com/oobabooga/text-generation-webui/pull/5677>, and llama.cpp's `llama-sampler.cpp`. Unlike
//! there, a sequence breaker of several tokens is found by its text, however it is split into tokens.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Entry, Place};
use crate::base::math::ln;
use crate::sample::Error;
use crate::sample::candidates::Candidates;
use crate::sample::chain::{Apply, Context, Effect, Surroundings};
use crate::sample::marks::Marks;
use crate::sample::parameter::{Counts, Parameter, Range, Value, field};

/// The sampler's entry in the table.
pub static SAMPLER: Entry = Entry {
    name: "dry",
    aliases: &[],
    letter: Some('d'),
    place: Place::InOrder,
    parameters: &[
        Parameter::number(
            "dry_multiplier",
            field!(dry.multiplier),
            Range::FROM_0,
            "How strongly to penalize tokens that would continue a repeated phrase (DRY); 0 for off; 0.8 is common",
        ),
        Parameter::number(
            "dry_base",
            field!(dry.base),
            Range { wanted: "a number of 1 or more, or 0 for off", contains: |x| x.is_finite() && (x == 0.0 || x >= 1.0) },
            "With `dry_multiplier`: how many times stronger the penalty gets with every repeated token",
        ),
        Parameter::count(
            "dry_allowed_length",
            field!(dry.allowed_length),
            Counts::ANY,
            "With `dry_multiplier`: repetitions up to this many tokens are not penalized",
        ),
        Parameter::count(
            "dry_penalty_last_n",
            field!(dry.last_n),
            Counts::OR_WHOLE_TEXT,
            "With `dry_multiplier`: how many of the last tokens are searched for repetitions; -1 for the whole text",
        ),
        Parameter::new(
            "dry_sequence_breakers",
            Value::Texts { field: field!(dry.breakers), one: "dry_sequence_breaker" },
            "With `dry_multiplier`: a text that ends a repetition, instead of the line break, ':', '\"' and '*'; 'none' \
             for no such text",
        )
        .hidden_aliases(&["dry_sequence_breaker"]),
    ],
};

/// How strongly tokens that would continue a repetition are penalized.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// The penalty for the shortest repetition that is penalized; 0 turns it off.
    pub multiplier: f32,
    /// The factor by which the penalty grows with each token of the repetition; below 1 turns it off.
    pub base: f32,
    /// Repetitions up to this many tokens are not penalized.
    pub allowed_length: u32,
    /// How many of the last tokens are searched for repetitions; 0 for none, [`u32::MAX`] for all.
    pub last_n: u32,
    /// Texts that end a repetition.
    pub breakers: Vec<String>,
}

/// See [`Dry`].
pub type Settings = Dry;

impl Default for Dry {
    fn default() -> Self {
        let breakers = ["\n", ":", "\"", "*"].map(str::to_string).to_vec();
        Self { multiplier: 0.0, base: 1.75, allowed_length: 2, last_n: 64, breakers }
    }
}

pub(in crate::sample) fn defaults() -> Settings {
    Dry::default()
}

#[derive(Clone, Debug)]
pub(in crate::sample) struct Stage {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    last_n: usize,
    breakers: Arc<Breakers>,
    // Lengths of repetitions, by the distance of their end from the end of the text.
    repeats: Vec<u32>,
}

pub(in crate::sample) fn stage(settings: &Settings, surroundings: &Surroundings<'_>) -> Option<Stage> {
    let is_on = settings.multiplier != 0.0 && settings.base >= 1.0 && settings.last_n > 0;
    is_on.then(|| Stage {
        multiplier: settings.multiplier,
        base: settings.base,
        allowed_length: settings.allowed_length as usize,
        last_n: settings.last_n as usize,
        breakers: Arc::new(Breakers::new(&settings.breakers, surroundings.n_tokens, surroundings.bytes)),
        repeats: Vec::new(),
    })
}

impl Apply for Stage {
    fn effect(&self) -> Effect {
        Effect::Changes
    }

    fn looks_back(&self) -> usize {
        self.last_n
    }

    fn apply(&mut self, candidates: &mut Candidates<'_>, context: &mut Context<'_>) -> Result<(), Error> {
        context.marks.clear(candidates.n_vocabulary());
        self.mark(context.history, context.marks);
        candidates.change(context.marks, |mark, logit| (logit - self.penalty(mark)).max(f32::MIN))
    }
}

impl Stage {
    /// Marks the tokens that would continue a repetition with its length plus 1.
    fn mark(&mut self, history: &[u32], marks: &mut Marks) {
        let text = &history[history.len().saturating_sub(self.last_n)..];
        if text.len() <= self.allowed_length {
            return;
        }
        let longest = self.breakers.since(text);
        if longest < self.allowed_length {
            return;
        }
        common_with_end(text, &mut self.repeats);
        for back in 1..text.len() {
            let repeat = (self.repeats[back] as usize).min(longest);
            let next = text[text.len() - back];
            if repeat >= self.allowed_length && !self.breakers.is_breaker(next) {
                marks.update(next, |mark| mark.max(repeat as u32 + 1));
            }
        }
    }

    /// Returns the penalty that is subtracted from the logit of a token with this mark.
    fn penalty(&self, mark: u32) -> f32 {
        let length = mark as usize - 1 - self.allowed_length;
        // llama.cpp's guard against overflow of 32-bit floats: the logarithm of the largest float over that of the
        // base.
        let most = if self.base > 1.000_001 { (88.722_84 / ln(self.base.into()) as f32) as usize } else { 0 };
        let exponent = if most > 0 { length.min(most) } else { length };
        let mut power = 1.0;
        if self.base > 1.0 {
            // Beyond that, it is infinite anyway.
            (0..exponent.min(1 << 16)).for_each(|_| power *= f64::from(self.base));
        }
        (f64::from(self.multiplier) * power) as f32
    }
}

/// Computes for each distance from the end how many tokens before it equal those at the end: the Z function of the
/// reversed text, in linear time.
fn common_with_end(text: &[u32], out: &mut Vec<u32>) {
    let n = text.len();
    let at = |i: usize| text[n - 1 - i];
    out.clear();
    out.resize(n, 0);
    // The match that reaches furthest so far: `left..right` equals the beginning of the reversed text.
    let (mut left, mut right) = (0, 0);
    for i in 1..n {
        let mut length = if i < right { (out[i - left] as usize).min(right - i) } else { 0 };
        while i + length < n && at(length) == at(i + length) {
            length += 1;
        }
        if i + length > right {
            (left, right) = (i, i + length);
        }
        out[i] = length as u32;
    }
}

/// Which tokens contain, begin or continue a sequence breaker.
#[derive(Clone, Debug, Default)]
struct Breakers {
    // A bit for each token that contains a whole breaker.
    whole: Vec<u64>,
    // Tokens that end with the beginning of a breaker: the breakers, and how many of their bytes.
    heads: HashMap<u32, Vec<(usize, usize)>>,
    // Maps a breaker, the bytes matched before a token, and the token to the bytes matched after it.
    next: HashMap<(usize, usize, u32), usize>,
    lengths: Vec<usize>,
}

impl Breakers {
    /// Finds `breakers` in `n_tokens` tokens, whose text `bytes` returns.
    fn new<'a>(breakers: &[String], n_tokens: usize, bytes: impl Fn(u32) -> &'a [u8]) -> Self {
        let breakers: Vec<&[u8]> = breakers.iter().map(String::as_bytes).filter(|b| !b.is_empty()).collect();
        let mut new = Self { whole: vec![0; n_tokens.div_ceil(64)], ..Self::default() };
        new.lengths = breakers.iter().map(|b| b.len()).collect();
        for id in 0..u32::try_from(n_tokens).unwrap_or(u32::MAX) {
            let token = bytes(id);
            for (which, breaker) in breakers.iter().enumerate() {
                let is_whole = token.windows(breaker.len()).any(|window| window == *breaker);
                if is_whole {
                    new.whole[id as usize / 64] |= 1 << (id % 64);
                }
                for matched in 1..breaker.len() {
                    if !is_whole && token.ends_with(&breaker[..matched]) {
                        new.heads.entry(id).or_default().push((which, matched));
                    }
                    let rest = &breaker[matched..];
                    if token.starts_with(rest) {
                        new.next.insert((which, matched, id), breaker.len());
                    } else if !token.is_empty() && rest.starts_with(token) {
                        new.next.insert((which, matched, id), matched + token.len());
                    }
                }
            }
        }
        new
    }

    /// Returns whether this token contains a whole breaker.
    fn is_breaker(&self, id: u32) -> bool {
        self.whole.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// Returns how many tokens come after the last breaker in `text`.
    fn since(&self, text: &[u32]) -> usize {
        let n = text.len();
        (0..n).find_map(|back| self.longest_from(&text[n - 1 - back..]).map(|length| back - length)).unwrap_or(n)
    }

    /// Returns how many more tokens the longest breaker takes that begins in the first of `tokens`.
    fn longest_from(&self, tokens: &[u32]) -> Option<usize> {
        let (&head, tail) = tokens.split_first()?;
        let whole = self.is_breaker(head).then_some(0);
        let heads = self.heads.get(&head).map_or(&[][..], Vec::as_slice);
        let several = heads.iter().filter_map(|&(which, mut matched)| {
            tail.iter()
                .position(|&token| {
                    // Past the whole breaker's length nothing matches.
                    matched = self.next.get(&(which, matched, token)).copied().unwrap_or(usize::MAX);
                    matched >= self.lengths[which]
                })
                .filter(|_| matched == self.lengths[which])
                .map(|last| last + 1)
        });
        whole.into_iter().chain(several).max()
    }
}

#[cfg(test)]
pub(in crate::sample) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::tests::{Naive, all};
    use crate::sample::{Params, Sampler};

    pub fn any() -> impl Strategy<Value = Settings> {
        let on = (0.0f32..2.0).prop_map(|multiplier| Dry { multiplier, ..defaults() });
        prop_oneof![2 => Just(defaults()), 1 => on]
    }

    pub fn examples() -> Vec<Params> {
        vec![Params { dry: Dry { multiplier: 0.8, ..Dry::default() }, ..all() }]
    }

    pub fn extremes() -> Vec<Params> {
        vec![Params { dry: Dry { multiplier: f32::MAX, base: f32::MAX, ..Dry::default() }, ..all() }]
    }

    pub fn naive(naive: &mut Naive, params: &Params, history: &[u32], _: f64) {
        let Dry { multiplier, base, allowed_length, last_n, .. } = params.dry;
        let text = &history[history.len().saturating_sub(last_n as usize)..];
        let allowed = allowed_length as usize;
        if multiplier == 0.0 || text.len() <= allowed {
            return;
        }
        for (id, l) in &mut naive.list {
            let ends = (1..text.len()).filter(|end| text[*end] == *id);
            let longest = ends.map(|end| {
                let (a, b) = (text[..end].iter().rev(), text.iter().rev());
                a.zip(b).take_while(|(a, b)| a == b).count()
            });
            if let Some(length) = longest.max().filter(|length| *length >= allowed) {
                *l -= f64::from(multiplier) * f64::from(base).powi((length - allowed) as i32);
            }
        }
    }

    proptest! {
        #[test]
        fn repeats_are_what_counting_gives(text in prop::collection::vec(0u32..3, 0..60)) {
            let mut repeats = Vec::new();
            common_with_end(&text, &mut repeats);
            for back in 1..text.len() {
                let earlier = &text[..text.len() - back];
                let wanted = earlier.iter().rev().zip(text.iter().rev()).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(repeats[back] as usize, wanted);
            }
        }

        /// Whatever tokens a breaker is written in, it counts from where it ends.
        #[test]
        fn a_breaker_is_found_in_whatever_tokens(text in prop::collection::vec(0u32..6, 0..12)) {
            let pieces: [&[u8]; 6] = [b"a", b"b", b"ab", b"ba", b"c", b"bc"];
            for breaker in ["ab", "abc", "aba", "c"] {
                let breakers = Breakers::new(&[breaker.to_string()], 6, |id| pieces[id as usize]);
                // The fewest tokens from the end on, before which the text has the breaker in it; from the beginning
                // of the token where it begins latest.
                let wanted = (0..text.len()).find_map(|back| {
                    let begin = text.len() - 1 - back;
                    let head = pieces[text[begin] as usize].len();
                    let mut end = begin;
                    let mut bytes = Vec::new();
                    let mut best = None;
                    while end < text.len() {
                        bytes.extend_from_slice(pieces[text[end] as usize]);
                        end += 1;
                        // It begins in the first token and ends in the last.
                        let last = pieces[text[end - 1] as usize].len();
                        let found = bytes.windows(breaker.len()).enumerate().any(|(at, window)| {
                            window == breaker.as_bytes() && at < head && at + breaker.len() > bytes.len() - last
                        });
                        if found {
                            best = Some(text.len() - end);
                        }
                    }
                    best
                });
                prop_assert_eq!(breakers.since(&text), wanted.unwrap_or(text.len()), "{:?} in {:?}", breaker, text);
            }
        }
    }

    #[test]
    fn the_penalty_grows_with_the_repetition_up_to_what_floats_hold() {
        let bytes: &dyn Fn(u32) -> &'static [u8] = &|_| &[];
        let surroundings = Surroundings { min_keep: 0, is_alone: false, n_tokens: 0, bytes };
        let dry = stage(&Dry { multiplier: 0.8, ..Dry::default() }, &surroundings).unwrap();
        assert_eq!(dry.penalty(3), 0.8);
        assert!((dry.penalty(5) - 0.8 * 1.75 * 1.75).abs() < 1e-6);
        assert!(dry.penalty(1_000_000).is_finite());
        assert_eq!(dry.penalty(1_000_000), dry.penalty(500));
    }

    #[test]
    fn dry_stops_at_sequence_breakers() {
        let pieces: [&[u8]; 6] = [b"a", b"b", b"c", b"\n", b"x\n", b"d"];
        let params = Params {
            dry: Dry { multiplier: 100.0, ..Dry::default() },
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..Params::default()
        };
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
}
