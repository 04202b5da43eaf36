//! Splits a text into words for byte-level vocabularies, by the rules that `tokenizer.ggml.pre` stands for.
//!
//! The rules are those of the tokenizers library, which the models were trained with. llama.cpp has rewritten some of
//! them for an engine without categories of letters: see [`pretokenizers::other_in_llama_cpp`](super::pretokenizers).
//!
//! ```text
//! "it's 2024"  ─► it | 's | ␣ | 202 | 4  ─► it | 's | Ġ | 202 | 4     bytes as characters
//! ```

use std::ops::Range;

use regex::Regex;

use super::pieces::byte_level_char;

/// One step, applied to every part that the steps before it have left.
pub(super) enum Step {
    /// Every match becomes a part, and so does the text between two matches.
    Matches(Matches),
    /// A part ends where a multiple of three digits follows, up to the end of the digits.
    Threes(Regex),
    /// Digits become parts, one by one or as runs.
    Digits { one_by_one: bool },
    /// Every byte becomes a character.
    Bytes,
}

/// An expression as these tokenizers use it.
pub(super) struct Matches {
    regex: Regex,
    /// Whether the last space before a word stays with the word.
    leaves_a_space: bool,
    /// Whether another alternative takes spaces up to a line break.
    takes_lines: bool,
}

/// What the engine lacks: spaces that no other character follows.
const SPACES_AT_END: &str = r"\s+(?!\S)|";

impl Matches {
    /// Compiles an expression. Of what Rust's engine lacks, it may have [`SPACES_AT_END`] before a last `\s+`, and `?+`
    /// and `++`, which these expressions use only where nothing could be given back.
    pub fn new(expression: &str) -> Self {
        let leaves_a_space = expression.contains(SPACES_AT_END);
        let plain = expression.replace(SPACES_AT_END, "").replace("?+", "?").replace("++", "+");
        let regex = Regex::new(&plain).expect("the expressions are constants, which a test compiles");
        Self { regex, leaves_a_space, takes_lines: expression.contains(r"|\s*[") }
    }

    fn cut(&self, text: &str, mut part: impl FnMut(Range<usize>)) {
        let (mut at, mut done) = (0, 0);
        while let Some(found) = self.regex.find_at(text, at) {
            let mut end = found.end();
            let spaces = found.as_str();
            if self.leaves_a_space && end < text.len() && spaces.chars().all(char::is_whitespace) {
                let last = spaces.chars().next_back().unwrap_or_default();
                let is_line = self.takes_lines && matches!(last, '\r' | '\n');
                if !is_line && spaces.len() > last.len_utf8() {
                    end -= last.len_utf8();
                }
            }
            if done < found.start() {
                part(done..found.start());
            }
            part(found.start()..end);
            (at, done) = (end, end);
        }
        if done < text.len() {
            part(done..text.len());
        }
    }
}

/// The words of a text.
pub(super) struct Words {
    text: String,
    parts: Vec<Range<usize>>,
}

impl Words {
    /// The words in order, in the byte alphabet.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| &self.text[part.clone()])
    }
}

/// Splits a text.
pub(super) fn split(text: &str, steps: &[Step]) -> Words {
    let mut words = Words { text: text.to_string(), parts: Vec::new() };
    if !text.is_empty() {
        words.parts.push(0..text.len());
    }
    for step in steps {
        words = apply(step, &words);
    }
    words
}

fn apply(step: &Step, words: &Words) -> Words {
    if let Step::Bytes = step {
        let mut out = Words { text: String::with_capacity(words.text.len() * 3 / 2), parts: Vec::new() };
        for word in words.iter() {
            let start = out.text.len();
            out.text.extend(word.bytes().map(byte_level_char));
            out.parts.push(start..out.text.len());
        }
        return out;
    }
    let mut parts = Vec::with_capacity(words.parts.len());
    for whole in &words.parts {
        let text = &words.text[whole.clone()];
        let push = |part: Range<usize>| parts.push(whole.start + part.start..whole.start + part.end);
        match step {
            Step::Matches(matches) => matches.cut(text, push),
            Step::Threes(digits) => cut_at(text, threes(text, digits), push),
            Step::Digits { one_by_one } => cut_at(text, digits(text, *one_by_one), push),
            Step::Bytes => unreachable!("applied above"),
        }
    }
    Words { text: words.text.clone(), parts }
}

/// Passes on the parts between the ends, which are in ascending order.
fn cut_at(text: &str, ends: Vec<usize>, mut part: impl FnMut(Range<usize>)) {
    let mut start = 0;
    for end in ends.into_iter().chain([text.len()]) {
        if start < end {
            part(start..end);
        }
        start = end;
    }
}

/// Where a multiple of three digits follows: `1|234|567`.
fn threes(text: &str, digits: &Regex) -> Vec<usize> {
    let mut ends = Vec::new();
    for run in digits.find_iter(text) {
        let n = run.as_str().chars().count();
        let starts = run.as_str().char_indices().enumerate();
        ends.extend(starts.filter(|(i, _)| (n - i).is_multiple_of(3)).map(|(_, (at, _))| run.start() + at));
    }
    ends
}

/// Where digits begin and end.
fn digits(text: &str, one_by_one: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut before = None;
    for (at, char) in text.char_indices() {
        let is_digit = char.is_numeric();
        if before.is_some_and(|before| before != is_digit || (is_digit && one_by_one)) {
            ends.push(at);
        }
        before = Some(is_digit);
    }
    ends
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::super::pretokenizers;
    use super::*;

    /// The lengths in bytes of the words of each text.
    type Lengths = Vec<Vec<usize>>;

    /// Texts in many scripts, and for every known name the lengths in bytes of the words that the tokenizers library cuts
    /// them into.
    pub fn golden() -> (Vec<String>, Vec<(String, Lengths)>) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pretokenizers.json");
        let mut golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cuts = golden["cuts"].as_object().unwrap();
        let cuts = cuts.iter().map(|(name, cuts)| (name.clone(), serde_json::from_value(cuts.clone()).unwrap()));
        let cuts = cuts.collect();
        (serde_json::from_value(golden["texts"].take()).unwrap(), cuts)
    }

    #[test]
    fn every_known_way_of_splitting_is_that_of_the_tokenizers_library() {
        let (texts, golden) = golden();
        for (name, cuts) in &golden {
            let (steps, _) = pretokenizers::rules(name).unwrap();
            for (text, wanted) in texts.iter().zip(cuts) {
                // Every character of the byte alphabet is one byte of the text.
                let found: Vec<usize> = split(text, &steps).iter().map(|word| word.chars().count()).collect();
                assert_eq!(found, *wanted, "{name}: {text:?}");
            }
        }
        let known: Vec<&str> = pretokenizers::tests::known().map(|(name, ..)| name).collect();
        assert!(known.iter().all(|name| golden.iter().any(|(other, _)| other == name)), "{known:?}");
    }
}
