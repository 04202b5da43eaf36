//! The second tier of the prefix store: states in main memory.

use std::sync::Arc;

use super::common;
use crate::engine::State;

/// Tokens, and the state of a sequence that has read them.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub tokens: Arc<[u32]>,
    pub state: Arc<State>,
}

impl Saved {
    /// Returns the bytes that it takes.
    pub fn n_bytes(&self) -> u64 {
        self.state.bytes().len() as u64 + 4 * self.tokens.len() as u64
    }
}

#[derive(Debug)]
struct Entry {
    saved: Saved,
    number: u64,
    used: u64,
}

/// How many states that were dropped are remembered by their tokens, to say why a prefix is missing.
const REMEMBERED: usize = 16;

/// States of prefixes. When they take too many bytes, those that were not used for the longest time are dropped.
#[derive(Debug)]
pub(super) struct Memory {
    most_bytes: u64,
    /// Whether a state also serves for the beginning of its tokens.
    can_truncate: bool,
    entries: Vec<Entry>,
    n_bytes: u64,
    clock: u64,
    dropped: Vec<Arc<[u32]>>,
}

impl Memory {
    /// Returns an empty one.
    pub fn new(most_bytes: u64, can_truncate: bool) -> Self {
        Self { most_bytes, can_truncate, entries: Vec::new(), n_bytes: 0, clock: 0, dropped: Vec::new() }
    }

    /// Returns the bytes of all states.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Returns whether a state of about this many bytes can be kept.
    pub fn accepts(&self, n_bytes: u64) -> bool {
        self.most_bytes > 0 && n_bytes <= self.most_bytes
    }

    /// Returns all states with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Saved)> {
        self.entries.iter().map(|entry| (entry.number, &entry.saved))
    }

    /// Returns a state, which is then the last one to be dropped.
    pub fn take_up(&mut self, number: u64) -> Option<Saved> {
        self.clock += 1;
        let entry = self.entries.iter_mut().find(|entry| entry.number == number)?;
        entry.used = self.clock;
        Some(entry.saved.clone())
    }

    /// Removes a state.
    pub fn remove(&mut self, number: u64) {
        self.remove_if(|entry| entry.number == number);
    }

    fn remove_if(&mut self, unwanted: impl Fn(&Entry) -> bool) {
        let n_bytes = &mut self.n_bytes;
        self.entries.retain(|entry| {
            let goes = unwanted(entry);
            if goes {
                *n_bytes -= entry.saved.n_bytes();
            }
            !goes
        });
    }

    /// Returns whether a state has all of `tokens`, so that they need not be saved again.
    pub fn covers(&self, tokens: &[u32]) -> bool {
        self.entries.iter().any(|Entry { saved, .. }| match self.can_truncate {
            true => saved.tokens.starts_with(tokens),
            false => *saved.tokens == *tokens,
        })
    }

    /// Keeps a state. Returns what has to go for it: others, or it itself.
    pub fn insert(&mut self, saved: Saved) -> Vec<Saved> {
        if !self.accepts(saved.n_bytes()) {
            self.remember(saved.tokens.clone());
            return vec![saved];
        }
        if self.can_truncate {
            // The new one serves for them, too.
            self.remove_if(|entry| saved.tokens.starts_with(&entry.saved.tokens));
        } else {
            self.remove_if(|entry| entry.saved.tokens == saved.tokens);
        }
        let mut dropped = Vec::new();
        while self.n_bytes + saved.n_bytes() > self.most_bytes {
            let Some(oldest) = self.entries.iter().min_by_key(|entry| entry.used) else { break };
            let (number, saved) = (oldest.number, oldest.saved.clone());
            self.remove(number);
            self.remember(saved.tokens.clone());
            dropped.push(saved);
        }
        self.clock += 1;
        self.n_bytes += saved.n_bytes();
        self.entries.push(Entry { saved, number: self.clock, used: self.clock });
        dropped
    }

    /// Remembers the tokens of a state that was not kept.
    pub fn remember(&mut self, tokens: Arc<[u32]>) {
        if self.dropped.len() >= REMEMBERED {
            self.dropped.remove(0);
        }
        self.dropped.push(tokens);
    }

    /// Returns how many of the first tokens a state had that was dropped.
    pub fn had(&self, tokens: &[u32]) -> usize {
        self.dropped.iter().map(|dropped| common(dropped, tokens)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(tokens: &[u32]) -> Saved {
        Saved { tokens: tokens.into(), state: Arc::new(State::trusted(vec![0; 10 * tokens.len()])) }
    }

    fn tokens(memory: &Memory) -> Vec<Vec<u32>> {
        memory.iter().map(|(_, saved)| saved.tokens.to_vec()).collect()
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_is_dropped() {
        // 14 bytes a token.
        let mut memory = Memory::new(14 * 6, true);
        for token in 1..4 {
            assert!(memory.insert(saved(&[token; 2])).is_empty());
        }
        let first = memory.iter().next().unwrap().0;
        assert_eq!(*memory.take_up(first).unwrap().tokens, [1, 1]);
        let dropped = memory.insert(saved(&[4]));
        assert_eq!(dropped.iter().map(|saved| saved.tokens.to_vec()).collect::<Vec<_>>(), [[2, 2]]);
        assert_eq!(tokens(&memory), [vec![1, 1], vec![3, 3], vec![4]]);
        assert_eq!(memory.n_bytes(), 14 * 5);
        assert_eq!((memory.had(&[2, 2, 5]), memory.had(&[3, 3])), (2, 0));
        assert_eq!(memory.insert(saved(&[5; 7])).len(), 1, "larger than all of it");
        assert_eq!(tokens(&memory).len(), 3);
        assert_eq!(Memory::new(0, true).insert(saved(&[1])).len(), 1);
    }

    #[test]
    fn a_longer_state_takes_the_place_of_its_beginning() {
        let mut memory = Memory::new(1000, true);
        memory.insert(saved(&[1, 2]));
        memory.insert(saved(&[1, 3]));
        memory.insert(saved(&[1, 2, 3]));
        assert_eq!(tokens(&memory), [vec![1, 3], vec![1, 2, 3]]);
        assert!(memory.covers(&[1, 2]) && !memory.covers(&[2]));
        // But not where states serve only as a whole.
        let mut memory = Memory::new(1000, false);
        memory.insert(saved(&[1, 2]));
        memory.insert(saved(&[1, 2, 3]));
        memory.insert(saved(&[1, 2, 3]));
        assert_eq!(tokens(&memory), [vec![1, 2], vec![1, 2, 3]]);
        assert!(memory.covers(&[1, 2]) && !memory.covers(&[1]));
    }
}
