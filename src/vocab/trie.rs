//! A prefix tree over bytes. Finds the longest of a set of strings that a text begins with.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::merge::PairHasher;

/// A set of strings, each with a number.
#[derive(Default)]
pub(super) struct Trie {
    /// Children by node and byte, except those of the root.
    edges: HashMap<u64, u32, BuildHasherDefault<PairHasher>>,
    /// The root's children by byte; empty if the tree is empty.
    root: Vec<u32>,
    /// The number of the string that ends at each node after the root, which is node 0.
    ends: Vec<Option<u32>>,
}

/// A node and a byte as one number.
fn edge(node: u32, byte: u8) -> u64 {
    u64::from(node) << 8 | u64::from(byte)
}

impl Trie {
    /// Adds a string. Empty strings are ignored: every text begins with them.
    pub fn insert(&mut self, text: &str, id: u32) {
        if text.is_empty() {
            return;
        }
        if self.root.is_empty() {
            self.root = vec![0; 256];
            self.ends.push(None);
        }
        let mut node = 0;
        for &byte in text.as_bytes() {
            let new = self.ends.len() as u32;
            let child = match node {
                0 => &mut self.root[usize::from(byte)],
                _ => self.edges.entry(edge(node, byte)).or_insert(0),
            };
            if *child == 0 {
                *child = new;
                self.ends.push(None);
            }
            node = *child;
        }
        self.ends[node as usize] = Some(id);
    }

    /// Returns whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// Returns the longest string that `text` begins with: its number and its length in bytes.
    pub fn longest_prefix(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = *self.root.get(usize::from(*text.first()?))?;
        let mut found = None;
        let mut len = 1;
        while node != 0 {
            if let Some(id) = self.ends[node as usize] {
                found = Some((id, len));
            }
            node = text.get(len).and_then(|&byte| self.edges.get(&edge(node, byte))).copied().unwrap_or(0);
            len += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_longest_of_several_prefixes() {
        let mut trie = Trie::default();
        for (id, text) in ["<b", "<br/>", "<br>", "é", ""].iter().enumerate() {
            trie.insert(text, id as u32);
        }
        assert_eq!(trie.longest_prefix(b"<br/>x"), Some((1, 5)));
        assert_eq!(trie.longest_prefix(b"<br/"), Some((0, 2)));
        assert_eq!(trie.longest_prefix("éa".as_bytes()), Some((3, 2)));
        assert_eq!(trie.longest_prefix(b"<"), None);
        assert_eq!(trie.longest_prefix(b""), None);
        assert_eq!(Trie::default().longest_prefix(b"a"), None);
    }
}
