//! Numbers for a few of many tokens.

/// Numbers of 1 or more for some tokens, by id. Clearing takes time only for marked tokens.
#[derive(Debug, Default)]
pub struct Marks {
    // By id; 0 means no mark.
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
    /// Removes all marks. Afterwards, tokens below `n_tokens` can be marked.
    pub fn clear(&mut self, n_tokens: usize) {
        for id in self.ids.drain(..) {
            self.numbers[id as usize] = 0;
        }
        if self.numbers.len() < n_tokens {
            self.numbers.resize(n_tokens, 0);
        }
    }

    /// Replaces the number of a token by what `new` returns for it. Tokens that do not exist are ignored.
    pub fn update(&mut self, id: u32, new: impl FnOnce(u32) -> u32) {
        if let Some(number) = self.numbers.get_mut(id as usize) {
            let before = *number;
            *number = new(before).max(1);
            if before == 0 {
                self.ids.push(id);
            }
        }
    }

    /// Returns the number of a token.
    pub fn get(&self, id: u32) -> Option<u32> {
        self.numbers.get(id as usize).copied().filter(|number| *number > 0)
    }

    /// Returns the marked tokens, each once, in the order in which they were marked.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}
