//! Counts the memory that sequences take, as llama.cpp does: a token is a cell, and a copied token is the same cell.
//!
//! ```text
//! sequence 0:  0 1 2 3 4          cells 0 to 2 are in two sequences: 5 + 2 are in use, not 5 + 5
//! sequence 1:  0 1 2     5 6
//! ```

/// The cells of each sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Cells {
    of: Vec<Vec<u32>>,
    /// For each cell, the number of sequences that it is in.
    uses: Vec<u32>,
    free: Vec<u32>,
}

impl Cells {
    /// Returns `n` empty sequences.
    pub fn new(n: usize) -> Self {
        Self { of: vec![Vec::new(); n], ..Self::default() }
    }

    /// Returns how many cells are in use.
    pub fn n_used(&self) -> usize {
        self.uses.len() - self.free.len()
    }

    /// Returns how many cells are in at least one of the sequences that `counts` picks.
    pub fn n_used_by(&self, counts: impl Fn(usize) -> bool) -> usize {
        let mut seen = vec![false; self.uses.len()];
        let cells = self.of.iter().enumerate().filter(|(i, _)| counts(*i)).flat_map(|(_, cells)| cells);
        cells.filter(|cell| !std::mem::replace(&mut seen[**cell as usize], true)).count()
    }

    /// Makes `sequence` have `n` cells: new ones at its end, or fewer.
    pub fn resize(&mut self, sequence: usize, n: usize) {
        while self.of[sequence].len() > n {
            let Some(cell) = self.of[sequence].pop() else { return };
            self.uses[cell as usize] -= 1;
            if self.uses[cell as usize] == 0 {
                self.free.push(cell);
            }
        }
        while self.of[sequence].len() < n {
            let cell = self.free.pop().unwrap_or_else(|| {
                self.uses.push(0);
                u32::try_from(self.uses.len() - 1).unwrap_or(u32::MAX)
            });
            self.uses[cell as usize] = 1;
            self.of[sequence].push(cell);
        }
    }

    /// Adds the first `n` cells of `from` to `to`, which must be empty.
    pub fn share(&mut self, from: usize, to: usize, n: usize) {
        let cells = self.of[from][..n.min(self.of[from].len())].to_vec();
        cells.iter().for_each(|cell| self.uses[*cell as usize] += 1);
        self.of[to] = cells;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_token_counts_once() {
        let mut cells = Cells::new(3);
        cells.resize(0, 5);
        cells.share(0, 1, 3);
        cells.resize(1, 5);
        assert_eq!(cells.n_used(), 7);
        assert_eq!(cells.n_used_by(|i| i == 1), 5);
        assert_eq!(cells.n_used_by(|i| i < 2), 7);
        assert_eq!(cells.n_used_by(|_| false), 0);
        // What only one of them has is free after it, and used again.
        cells.resize(0, 0);
        assert_eq!(cells.n_used(), 5);
        cells.resize(2, 4);
        assert_eq!((cells.n_used(), cells.uses.len()), (9, 9));
        cells.resize(1, 2);
        assert_eq!(cells.n_used(), 6);
    }
}
