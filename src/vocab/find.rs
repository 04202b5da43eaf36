//! Added tokens in a text: what is cut out of it before anything else happens to it.
//!
//! A token may have flags, as `AddedToken` of the tokenizers library has them:
//!
//! | flag | |
//! |---|---|
//! | `lstrip` | it takes the whitespace in front of it |
//! | `rstrip` | it takes the whitespace after it |
//! | `single_word` | it is not found next to a letter, a mark, a digit or `_` |
//!
//! A fourth, `normalized`, says that the token is found in the text after normalization. See [`super`].
//!
//! Reference: <https://github.com/huggingface/tokenizers>, `src/tokenizer/added_vocabulary.rs`.

use std::collections::HashMap;
use std::sync::OnceLock;

use regex::Regex;

use super::pieces::array;
use super::trie::Trie;
use crate::gguf::{Array, Metadata};

/// nibble's own keys for flags: arrays of ids.
pub(super) const LSTRIP_KEY: &str = "nibble.tokenizer.lstrip";
pub(super) const RSTRIP_KEY: &str = "nibble.tokenizer.rstrip";
pub(super) const SINGLE_WORD_KEY: &str = "nibble.tokenizer.single_word";
pub(super) const NORMALIZED_KEY: &str = "nibble.tokenizer.normalized";

/// What a token does to the text around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// It takes the whitespace in front of it.
    pub lstrip: bool,
    /// It takes the whitespace after it.
    pub rstrip: bool,
    /// It is not found inside a word.
    pub single_word: bool,
}

impl Flags {
    /// Whether any is set.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The flags of a vocabulary's tokens, by id. Tokens without flags are not in it.
pub type FlagsById = HashMap<u32, Flags>;

/// Reads the flags of a GGUF file's tokens. Ids outside the vocabulary do no harm.
pub fn flags(metadata: &Metadata) -> FlagsById {
    let mut flags = FlagsById::new();
    type Set = fn(&mut Flags);
    let set: [(&str, Set); 3] = [
        (LSTRIP_KEY, |flags| flags.lstrip = true),
        (RSTRIP_KEY, |flags| flags.rstrip = true),
        (SINGLE_WORD_KEY, |flags| flags.single_word = true),
    ];
    for (key, set) in set {
        for id in ids(metadata, key) {
            set(flags.entry(*id).or_default());
        }
    }
    flags
}

/// The ids in an array of nibble's own.
pub(super) fn ids<'a>(metadata: &'a Metadata, key: &str) -> &'a [u32] {
    match array(metadata, key) {
        Some(Array::U32(ids)) => ids,
        _ => &[],
    }
}

/// A fragment of a text, as llama.cpp calls it.
#[derive(Debug, PartialEq)]
pub(super) enum Fragment<'a> {
    /// Text between tokens; never empty, except for a text that is empty as a whole.
    Text(&'a str),
    /// A token.
    Token(u32),
}

/// Finds tokens in texts: the leftmost first, the longest of those that begin at the same place.
#[derive(Default)]
pub(super) struct Finder {
    trie: Trie,
    flags: FlagsById,
}

impl Finder {
    /// Adds a token.
    pub fn insert(&mut self, text: &str, id: u32, flags: Flags) {
        self.trie.insert(text, id);
        if flags.any() {
            self.flags.insert(id, flags);
        }
    }

    /// Cuts a text at its tokens.
    pub fn split<'a>(&self, text: &'a str, mut found: impl FnMut(Fragment<'a>)) {
        let (mut start, mut at) = (0, 0);
        while let Some(rest) = text.as_bytes().get(at..).filter(|rest| !rest.is_empty() && !self.trie.is_empty()) {
            let Some((id, len)) = self.trie.longest_prefix(rest) else {
                at += 1;
                continue;
            };
            let (mut from, mut to) = (at, at + len);
            // Where the longest token is refused, no shorter one takes its place.
            at = to;
            let flags = self.flags.get(&id).copied().unwrap_or_default();
            if flags.single_word && (ends_with_word(&text[..from]) || starts_with_word(&text[to..])) {
                continue;
            }
            if flags.lstrip {
                from = text[..from].trim_end().len().max(start);
            }
            if flags.rstrip {
                to = text.len() - text[to..].trim_start().len();
            }
            if start < from {
                found(Fragment::Text(&text[start..from]));
            }
            found(Fragment::Token(id));
            // A token inside the whitespace that this one took is found again, as in the tokenizers library.
            start = to;
        }
        if start < text.len() {
            found(Fragment::Text(&text[start..]));
        }
    }
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

/// `\w` of Unicode's regular expressions.
fn is_word(char: char) -> bool {
    static WORD: OnceLock<Regex> = OnceLock::new();
    let word = WORD.get_or_init(|| Regex::new(r"\A\w\z").expect("a constant"));
    word.is_match(char.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(flags: Flags, text: &str) -> String {
        let mut finder = Finder::default();
        finder.insert("<x>", 7, flags);
        finder.insert("<x>y", 8, Flags::default());
        finder.insert("\n", 9, Flags::default());
        let mut shown = String::new();
        finder.split(text, |part| match part {
            Fragment::Text(text) => shown.push_str(&format!("[{text}]")),
            Fragment::Token(id) => shown.push_str(&id.to_string()),
        });
        shown
    }

    #[test]
    fn tokens_take_the_whitespace_that_their_flags_give_them() {
        let none = Flags::default();
        assert_eq!(parts(none, "a <x> b<x>yc"), "[a ]7[ b]8[c]");
        assert_eq!(parts(Flags { lstrip: true, ..none }, "a \u{3000}<x> b<x>"), "[a]7[ b]7");
        assert_eq!(parts(Flags { rstrip: true, ..none }, "a <x> \t b <x> <x>"), "[a ]7[b ]77");
        assert_eq!(parts(Flags { lstrip: true, rstrip: true, ..none }, "  <x>  <x>  "), "77");
        // As tokenizers 0.23.3 does it.
        assert_eq!(parts(Flags { rstrip: true, ..none }, "<x>\nb"), "79[b]");
    }

    #[test]
    fn a_token_that_is_a_single_word_is_not_found_inside_one() {
        let single = Flags { single_word: true, ..Flags::default() };
        assert_eq!(parts(single, "a<x> <x>_ 你<x> <x>\u{301} .<x>."), "[a<x> <x>_ 你<x> <x>\u{301} .]7[.]");
        assert_eq!(parts(single, ""), "");
    }
}
