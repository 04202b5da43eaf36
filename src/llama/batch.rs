//! A batch: tokens of one or many sequences, evaluated together.
//!
//! ```text
//! token      475   505   267 | 475   431          what is evaluated
//! position     0     1     2 |   0     1          its place in its sequences
//! sequences    0     0     0 |   1     1          whose memory it enters; a shared beginning belongs to several
//! logits                   x |         x          after which tokens a row of logits is wanted
//! row                      0 |         1
//! ```
//!
//! This is plain data: [`super::Context::decode`] checks it.

/// Tokens to evaluate together. It is reused, so that evaluating a token does not allocate.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    // One entry per token, with ids and positions as in llama.cpp. Numbers beyond its range become -1, which the checks
    // refuse.
    pub(super) tokens: Vec<i32>,
    pub(super) positions: Vec<i32>,
    pub(super) n_sequences: Vec<i32>,
    pub(super) wants_logits: Vec<i8>,
    // The sequences of all tokens, one list after the other.
    pub(super) sequences: Vec<i32>,
    n_rows: usize,
}

/// A token of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchToken<'a> {
    /// The token.
    pub token: u32,
    /// Its position in its sequences.
    pub position: u32,
    /// Its sequences.
    pub sequences: &'a [i32],
    /// Whether a row of logits is wanted after it.
    pub wants_logits: bool,
}

impl Batch {
    /// Returns an empty batch with room for `n_tokens`, each of one sequence.
    pub fn with_capacity(n_tokens: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(n_tokens),
            positions: Vec::with_capacity(n_tokens),
            n_sequences: Vec::with_capacity(n_tokens),
            wants_logits: Vec::with_capacity(n_tokens),
            sequences: Vec::with_capacity(n_tokens),
            n_rows: 0,
        }
    }

    /// Adds a token at `position` of `sequences`. Returns the row of its logits, if they are wanted.
    pub fn push(&mut self, token: u32, position: u32, sequences: &[u32], wants_logits: bool) -> Option<usize> {
        let number = |n: u32| i32::try_from(n).unwrap_or(-1);
        self.tokens.push(number(token));
        self.positions.push(number(position));
        self.n_sequences.push(i32::try_from(sequences.len()).unwrap_or(-1));
        self.sequences.extend(sequences.iter().map(|sequence| number(*sequence)));
        self.wants_logits.push(i8::from(wants_logits));
        let row = self.n_rows;
        self.n_rows += usize::from(wants_logits);
        wants_logits.then_some(row)
    }

    /// Removes all tokens.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.n_sequences.clear();
        self.wants_logits.clear();
        self.sequences.clear();
        self.n_rows = 0;
    }

    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Returns how many rows of logits are wanted.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Returns the tokens in order.
    pub fn iter(&self) -> impl Iterator<Item = BatchToken<'_>> {
        let mut first = 0;
        (0..self.len()).map(move |i| {
            let n = usize::try_from(self.n_sequences[i]).unwrap_or(0);
            let sequences = &self.sequences[first..first + n];
            first += n;
            BatchToken {
                token: self.tokens[i].cast_unsigned(),
                position: self.positions[i].cast_unsigned(),
                sequences,
                wants_logits: self.wants_logits[i] != 0,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_lists_what_was_pushed() {
        let mut batch = Batch::with_capacity(2);
        for _ in 0..2 {
            assert_eq!(batch.push(7, 0, &[0, 2], false), None);
            assert_eq!(batch.push(9, 1, &[2], true), Some(0));
            assert_eq!(batch.push(8, 1, &[0], true), Some(1));
            let token =
                |token, position, sequences, wants_logits| BatchToken { token, position, sequences, wants_logits };
            let listed: Vec<_> = batch.iter().collect();
            assert_eq!(listed, [token(7, 0, &[0, 2][..], false), token(9, 1, &[2], true), token(8, 1, &[0], true)]);
            assert_eq!((batch.len(), batch.n_rows(), batch.is_empty()), (3, 2, false));
            batch.clear();
            assert_eq!((batch.len(), batch.n_rows(), batch.is_empty()), (0, 0, true));
        }
        batch.push(u32::MAX, u32::MAX, &[u32::MAX], false);
        assert_eq!((batch.tokens[0], batch.positions[0], batch.sequences[0]), (-1, -1, -1));
    }
}
