//! Numbers on a few tokens of many.

/// Numbers of 1 or more on some tokens, found by their id. Clearing takes time only for tokens that are marked.
#[derive(Debug, Default)]
pub struct Marks {
    // By id; 0 where there is no mark.
    numbers: Vec<u32>,
    ids: Vec<u32>,
}

/// A copy of a sampler starts with empty buffers.
impl Clone for Marks {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Marks {
    /// Removes all marks; from now on, tokens below `n_tokens` can be marked.
    pub fn clear(&mut self, n_tokens: usize) {
        for id in self.ids.drain(..) {
            self.numbers[id as usize] = 0;
        }
        if self.numbers.len() < n_tokens {
            self.numbers.resize(n_tokens, 0);
        }
    }

    /// Replaces the number on a token by what `new` makes of it. Tokens that do not exist are ignored.
    pub fn update(&mut self, id: u32, new: impl FnOnce(u32) -> u32) {
        if let Some(number) = self.numbers.get_mut(id as usize) {
            let before = *number;
            *number = new(before).max(1);
            if before == 0 {
                self.ids.push(id);
            }
        }
    }

    /// Returns the number on a token.
    pub fn get(&self, id: u32) -> Option<u32> {
        self.numbers.get(id as usize).copied().filter(|number| *number > 0)
    }

    /// Returns the marked tokens, each once, in the order in which they were marked.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}
