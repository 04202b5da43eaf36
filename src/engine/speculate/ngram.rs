//! Drafts from the text itself: the tokens that followed an earlier occurrence of the last few tokens.
//!
//! ```text
//! ... the king of France said ...  and then the king of ──► France said ...
//!     └── match ──┘                        └─ suffix ─┘
//! ```
//!
//! Every three consecutive tokens are linked to their previous occurrence, so a search visits only these places. It
//! takes the place with the longest match with the end of the text; among equals, the last one.
//!
//! Source: the idea is prompt lookup decoding, <https://github.com/apoorvumang/prompt-lookup-decoding>; chains of
//! matches are how LZ77 compressors search.

use std::collections::HashMap;

/// The fewest tokens of a match.
const SHORTEST: usize = 3;
/// The most tokens of a match that are compared.
const LONGEST: usize = 32;
/// The most matches that are compared.
const MOST_LOOKED_AT: usize = 64;
/// The end of a chain.
const NONE: u32 = u32::MAX;

/// For each position of a text, the previous occurrence of the three tokens that end there. The caller keeps the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Ngrams {
    last: HashMap<[u32; SHORTEST], u32>,
    // By the index of the last of the three tokens.
    before: Vec<u32>,
}

/// A previous occurrence of the end of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Index of the token that followed.
    pub next: usize,
    /// Number of tokens that match, up to [`LONGEST`].
    pub length: usize,
}

impl Ngrams {
    /// Adds the new tokens of `text`, which begins with the text seen so far.
    pub fn extend(&mut self, text: &[u32]) {
        for end in self.before.len()..text.len() {
            let before = match gram(text, end) {
                Some(gram) => self.last.insert(gram, u32::try_from(end).unwrap_or(NONE)),
                None => None,
            };
            self.before.push(before.unwrap_or(NONE));
        }
    }

    /// Removes everything after the first `n` tokens of `text`, the text seen so far.
    pub fn truncate(&mut self, text: &[u32], n: usize) {
        while self.before.len() > n {
            let end = self.before.len() - 1;
            let before = self.before.pop().unwrap_or(NONE);
            if let Some(gram) = gram(text, end) {
                match before {
                    NONE => self.last.remove(&gram),
                    before => self.last.insert(gram, before),
                };
            }
        }
    }

    /// Returns the best previous occurrence of the end of `text`, the text seen so far.
    pub fn find(&self, text: &[u32]) -> Option<Match> {
        let end = text.len().checked_sub(1)?;
        let mut at = *self.before.get(end)?;
        let mut best: Option<Match> = None;
        for _ in 0..MOST_LOOKED_AT {
            let Some(place) = (at != NONE).then_some(at as usize) else { break };
            let agree = |back: &usize| *back <= place && text[place - back] == text[end - back];
            let length = (0..LONGEST).take_while(agree).count();
            if best.is_none_or(|best| length > best.length) {
                best = Some(Match { next: place + 1, length });
            }
            if length == LONGEST {
                break;
            }
            at = self.before[place];
        }
        best
    }
}

/// Returns the three tokens that end with the one at `end`.
fn gram(text: &[u32], end: usize) -> Option<[u32; SHORTEST]> {
    text.get((end + 1).checked_sub(SHORTEST)?..=end)?.try_into().ok()
}

impl Match {
    /// Appends to `out` the `n` tokens that followed the match. Past the end of the text, it copies again the tokens
    /// that it has just appended, so that a text that repeats itself keeps repeating.
    pub fn copy(self, text: &[u32], n: usize, out: &mut Vec<u32>) {
        let first = out.len();
        for at in self.next..self.next + n {
            let token = text.get(at).or_else(|| out.get(first + at - text.len())).copied();
            out.extend(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by looking everywhere.
    fn naive(text: &[u32]) -> Option<Match> {
        let end = text.len().checked_sub(1)?;
        let agree = |place: usize| {
            (0..LONGEST).take_while(|back| *back <= place && text[place - back] == text[end - back]).count()
        };
        (0..end)
            .map(|place| Match { next: place + 1, length: agree(place) })
            .filter(|found| found.length >= SHORTEST)
            .max_by_key(|found| (found.length, found.next))
    }

    proptest! {
        #[test]
        fn finds_what_looking_everywhere_finds(
            texts in prop::collection::vec(prop::collection::vec(0u32..3, 0..40), 1..6),
            cuts in prop::collection::vec(0usize..40, 6),
        ) {
            let (mut ngrams, mut text) = (Ngrams::default(), Vec::new());
            for (more, cut) in texts.iter().zip(cuts) {
                let kept = cut.min(text.len());
                ngrams.truncate(&text, kept);
                text.truncate(kept);
                for token in more {
                    text.push(*token);
                    ngrams.extend(&text);
                    prop_assert_eq!(ngrams.find(&text), naive(&text));
                }
            }
            ngrams.truncate(&text, 0);
            prop_assert!(ngrams.last.is_empty() && ngrams.before.is_empty());
        }
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on() {
        let text = [9, 1, 2, 3, 1, 2, 3];
        let mut ngrams = Ngrams::default();
        ngrams.extend(&text);
        let found = ngrams.find(&text).unwrap();
        assert_eq!(found, Match { next: 4, length: 3 });
        let mut out = vec![77];
        found.copy(&text, 7, &mut out);
        assert_eq!(out, [77, 1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn a_text_of_one_token_is_not_searched_for_ever() {
        let text = vec![5; 100_000];
        let mut ngrams = Ngrams::default();
        let begun = std::time::Instant::now();
        for n in 1..=text.len() {
            ngrams.extend(&text[..n]);
            ngrams.find(&text[..n]);
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
