//! Sentencepiece's normalization: spaces become `▁` and, if the model says so, one is added in front, runs of spaces
//! are collapsed, and characters are replaced by a table (usually NFKC).
//!
//! Reference: sentencepiece, `src/normalizer.cc`; the table is a double-array trie as in
//! <https://github.com/s-yata/darts-clone>.

use std::borrow::Cow;

use super::trie::Trie;

/// Stands for a space in pieces: U+2581.
pub(super) const SPACE: char = '▁';

/// The steps of normalization.
pub(super) struct Normalizer {
    /// Add a space in front of the text.
    pub space_prefix: bool,
    /// But not if it starts with one.
    pub prefix_unless_space: bool,
    /// Remove spaces at both ends, and collapse runs of spaces.
    pub remove_extra_whitespaces: bool,
    /// The replacement table, if there is one.
    pub charsmap: Option<CharsMap>,
}

impl Normalizer {
    /// Normalizes a text. Pieces in `user_defined` stay unchanged. `space_prefix` is false for parts of a text that get
    /// no space in front, whatever the model says.
    pub fn normalize<'a>(&self, text: &'a str, user_defined: &Trie, space_prefix: bool) -> Cow<'a, str> {
        let space_prefix =
            self.space_prefix && space_prefix && !(self.prefix_unless_space && text.starts_with([' ', SPACE]));
        if text.is_empty() {
            return Cow::Borrowed(text);
        }
        if self.charsmap.is_none() && !self.remove_extra_whitespaces {
            if !space_prefix && !text.contains(' ') {
                return Cow::Borrowed(text);
            }
            let mut out = String::with_capacity(text.len() + text.len() / 2);
            if space_prefix {
                out.push(SPACE);
            }
            push_escaped(&mut out, text);
            return Cow::Owned(out);
        }
        Cow::Owned(self.normalize_all(text, user_defined, space_prefix))
    }

    fn normalize_all<'a>(&'a self, mut text: &'a str, user_defined: &Trie, space_prefix: bool) -> String {
        if self.remove_extra_whitespaces {
            loop {
                let (normal, rest) = self.step(text, user_defined);
                if normal != " " {
                    break;
                }
                text = rest;
            }
        }
        let mut out = String::new();
        if text.is_empty() {
            return out;
        }
        if space_prefix {
            out.push(SPACE);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !text.is_empty() {
            let (mut normal, rest) = self.step(text, user_defined);
            if after_space {
                normal = normal.trim_start_matches(' ');
            }
            if !normal.is_empty() {
                push_escaped(&mut out, normal);
                after_space = normal.ends_with(' ');
            }
            after_space &= self.remove_extra_whitespaces;
            text = rest;
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(SPACE).len());
        }
        out
    }

    /// Normalizes the start of a text, which is not empty. Returns the result and the rest of the text.
    fn step<'a>(&'a self, text: &'a str, user_defined: &Trie) -> (&'a str, &'a str) {
        if let Some((_, len)) = user_defined.longest_prefix(text.as_bytes()) {
            return text.split_at(len);
        }
        if let Some((normal, len)) = self.charsmap.as_ref().and_then(|map| map.longest_prefix(text)) {
            return (normal, &text[len..]);
        }
        text.split_at(text.chars().next().map_or(0, char::len_utf8))
    }
}

fn push_escaped(out: &mut String, text: &str) {
    let mut parts = text.split(' ');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        out.push(SPACE);
        out.push_str(part);
    }
}

/// A replacement table: `u32 bytes of trie | trie of u32 units | replacements, each terminated by a zero byte`, all
/// little-endian.
///
/// ```text
/// unit, inner:  31       30..10   9         8         7..0
///               0        offset   offset<<8 has leaf  label
/// unit, leaf:   31       30..0
///               1        value: where the replacement starts
/// ```
pub(super) struct CharsMap {
    units: Vec<u32>,
    /// The replacements, with their zero bytes, which are valid UTF-8.
    replacements: String,
}

impl CharsMap {
    /// Reads a table.
    ///
    /// # Errors
    /// If the sizes do not add up or the replacements are not UTF-8. The error says which.
    pub fn new(bytes: &[u8]) -> Result<Self, &'static str> {
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or("shorter than its own header")?;
        let size = u32::from_le_bytes(*size) as usize;
        let (units, replacements) = rest.split_at_checked(size).ok_or("the trie ends past the table")?;
        let (units, odd) = units.as_chunks::<4>();
        if units.is_empty() || !odd.is_empty() {
            return Err("the trie's size is not a multiple of four bytes");
        }
        let replacements = std::str::from_utf8(replacements).map_err(|_| "the replacements are not UTF-8")?;
        Ok(Self {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            replacements: replacements.to_string(),
        })
    }

    /// Returns the replacement for the longest prefix of `text` that has one, and the length of that prefix in bytes.
    fn longest_prefix(&self, text: &str) -> Option<(&str, usize)> {
        const LABEL: u32 = 0x8000_00ff;
        let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
        let mut at = offset(*self.units.first()?);
        let mut found = None;
        for (i, byte) in text.bytes().enumerate() {
            at ^= u32::from(byte);
            let Some(&unit) = self.units.get(at as usize) else { break };
            if unit & LABEL != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit & 1 << 8 != 0 && text.is_char_boundary(i + 1) {
                let leaf = self.units.get(at as usize).copied();
                let start = leaf.map(|leaf| (leaf & 0x7fff_ffff) as usize);
                let tail = start.and_then(|start| self.replacements.get(start..));
                found = tail.map(|tail| (tail.split('\0').next().unwrap_or_default(), i + 1)).or(found);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table that replaces `A` by `xy` and `B` by nothing, with the units in the places where darts-clone looks for
    /// them.
    fn table() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        // The root leads to 0 ^ byte, so the byte's unit stands at its own number.
        let node = |label: u8, offset: u32| u32::from(label) | 1 << 8 | offset << 10;
        units[usize::from(b'A')] = node(b'A', 256);
        units[usize::from(b'A') ^ 256] = 0x8000_0000;
        units[usize::from(b'B')] = node(b'B', 257);
        units[usize::from(b'B') ^ 257] = 0x8000_0003;
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"xy\0\0");
        bytes
    }

    fn normalizer(charsmap: Option<CharsMap>) -> Normalizer {
        Normalizer { space_prefix: true, prefix_unless_space: false, remove_extra_whitespaces: true, charsmap }
    }

    #[test]
    fn replaces_what_the_table_has() {
        let normalizer = normalizer(Some(CharsMap::new(&table()).unwrap()));
        assert_eq!(normalizer.normalize(" A B  cA", &Trie::default(), true), "▁xy▁cxy");
        let mut user_defined = Trie::default();
        user_defined.insert("cA", 0);
        assert_eq!(normalizer.normalize("cAA", &user_defined, false), "cAxy");
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(
            at in 0usize..2048, byte in any::<u8>(), cut in 0usize..3000, text in "[AB é零a]{0,12}",
        ) {
            let mut bytes = table();
            bytes[at] = byte;
            bytes.truncate(cut.max(1));
            if let Ok(map) = CharsMap::new(&bytes) {
                normalizer(Some(map)).normalize(&text, &Trie::default(), true);
            }
        }
    }
}
