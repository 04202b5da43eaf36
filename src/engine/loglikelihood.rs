//! Computes the likelihood of the ends of many texts with common beginnings.
//!
//! ```text
//! a question with four answers          in llama.cpp's memory, a cell a token         sequences
//!
//! examples ─ question ─┬─ answer A      examples question                             0 1 2 3
//!                      ├─ answer B                       answer A                     0
//!                      ├─ answer C                       answer B                     1
//!                      └─ answer D                       answer C ...                 2 ...
//! ```
//!
//! Each text is a sequence. The common beginning of several texts is read once for all of their sequences: each of its
//! tokens takes one cell, and one token of the batch. As many texts as fill a batch are read at a time, whether they
//! are related or not, because no sequence attends to the tokens of another. The last text of a batch stays in memory.
//! What the next texts share with it (its question, the examples before all questions) is copied, which only marks
//! cells of the unified KV cache.
//!
//! Models whose memory cannot be truncated read one text after the other.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;

use super::{Error, SessionOptions};
use crate::llama::{self, Batch, Context, Model};
use crate::sample;

/// The most texts that are read at a time: four answers to each of sixteen questions. llama.cpp allows 256.
const MOST_SEQUENCES: u32 = 64;

/// A text whose end is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// All of its tokens, including the one that begins every text, if the model has one.
    pub tokens: Vec<u32>,
    /// Index of the first scored token; all tokens after it are scored too. It is at least 1.
    pub from: usize,
}

impl Branch {
    /// Returns the tokens that the model has to read: all but the last, after which nothing is scored.
    fn read(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }
}

/// A context that holds many texts at a time.
pub struct Loglikelihoods {
    context: Context,
    /// The tokens of sequence 0. Between two packs, all other sequences are empty.
    held: Vec<u32>,
    /// Number of tokens that were read for all texts so far.
    evaluated: u64,
    batch: Batch,
    tops: Vec<f32>,
}

impl fmt::Debug for Loglikelihoods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loglikelihoods").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Loglikelihoods {
    /// Returns the options that a context for many texts is made with: as many rows of logits as it needs. The check of the
    /// machine's memory before a model is loaded uses them.
    pub fn options(options: &SessionOptions) -> SessionOptions {
        // llama.cpp makes room for a row of each sequence, and asserts that the options allow it.
        let rows = options.rows.max(2 * MOST_SEQUENCES).min(options.n_batch);
        SessionOptions { rows, ..options.clone() }
    }

    /// Makes an empty context.
    ///
    /// # Errors
    /// If an option is out of range, or llama.cpp has no memory for it.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        Self::with_sequences(model, options, MOST_SEQUENCES)
    }

    /// Like [`Self::new`], but with at most `most` texts at a time. With 1, texts are read one after the other, for
    /// comparison.
    ///
    /// # Errors
    /// If an option is out of range, or llama.cpp has no memory for it.
    pub fn with_sequences(model: &Model, options: &SessionOptions, most: u32) -> Result<Self, Error> {
        options.check(model.n_ctx_train())?;
        let n_ctx = options.n_ctx_for(model.n_ctx_train());
        let mut options = Self::options(options);
        // No batch is larger than the context.
        options.n_batch = options.n_batch.min(n_ctx);
        options.rows = options.rows.min(options.n_batch);
        let most = if model.can_truncate() { most.clamp(1, MOST_SEQUENCES) } else { 1 };
        let n_sequences = most.min(options.rows);
        let context = Context::new(model, &options.context(model.n_ctx_train(), n_sequences), None)?;
        let batch = Batch::with_capacity(context.n_batch() as usize);
        Ok(Self { context, held: Vec::new(), evaluated: 0, batch, tops: Vec::new() })
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        self.context.model()
    }

    /// Returns how many tokens the context holds. The longest text has one more, as its last token is not read.
    pub fn n_ctx(&self) -> u32 {
        self.context.n_ctx()
    }

    /// Returns how many tokens were read so far, for all texts together.
    pub fn evaluated(&self) -> u64 {
        self.evaluated
    }

    /// Computes the log-likelihood of the scored tokens of each text: the sum of the natural logarithms of their
    /// probabilities. They are passed to `each` with the index of the text, in order, a batch at a time, until it breaks.
    ///
    /// # Errors
    /// If a text has nothing to score or nothing before that, is longer than the context, or has a token that is not in
    /// the vocabulary; this is checked before anything is read. Also if it was cancelled, llama.cpp fails, or its
    /// logits are not numbers.
    pub fn log_likelihoods(
        &mut self,
        branches: &[Branch],
        mut each: impl FnMut(usize, f64) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        for branch in branches {
            self.check(branch)?;
        }
        let mut first = 0;
        while first < branches.len() {
            let pack = self.pack(&branches[first..]);
            let n_texts = pack.shared.len();
            let sums = self.read(&pack, &branches[first..first + n_texts]).inspect_err(|_| self.clear())?;
            for (index, sum) in (first..).zip(sums) {
                if each(index, sum).is_break() {
                    return Ok(());
                }
            }
            first += n_texts;
        }
        Ok(())
    }

    fn check(&self, branch: &Branch) -> Result<(), llama::Error> {
        let (n_vocab, n_ctx) = (self.model().n_vocab(), self.n_ctx());
        if branch.from == 0 || branch.from >= branch.tokens.len() {
            return Err(llama::Error::NoTokens);
        }
        if let Some(&token) = branch.tokens.iter().find(|token| **token >= n_vocab) {
            return Err(llama::Error::Token { token, n_vocab });
        }
        if branch.read().len() > n_ctx as usize {
            return Err(llama::Error::ContextFull { wanted: branch.read().len(), n_ctx });
        }
        Ok(())
    }

    /// Returns the first of `branches`, as many as fill a batch.
    fn pack(&self, branches: &[Branch]) -> Pack {
        let limits = Limits {
            cells: self.context.n_ctx() as usize,
            new: self.context.n_batch() as usize,
            texts: self.context.n_sequences() as usize,
        };
        Pack::fill(branches, &self.held, &limits)
    }

    /// Reads the texts of a pack, and returns the log-likelihood of each.
    fn read(&mut self, pack: &Pack, branches: &[Branch]) -> Result<Vec<f64>, Error> {
        let mut sums = vec![0.0; branches.len()];
        self.share(&pack.shared)?;
        let (n_batch, n_rows) = (self.context.n_batch() as usize, self.context.n_rows() as usize);
        let mut first = 0;
        while first < pack.nodes.len() {
            let nodes = &pack.nodes[first..first + pack.next_batch(first, n_batch, n_rows)];
            self.batch.clear();
            for node in nodes {
                self.batch.push(node.token, node.position, &node.sequences, !node.next.is_empty());
            }
            self.context.decode(&self.batch)?;
            for (row, node) in nodes.iter().filter(|node| !node.next.is_empty()).enumerate() {
                let logits = self.context.logits(row)?;
                let log_total = sample::log_total(logits, &mut self.tops)?;
                for &(text, token) in &node.next {
                    sums[text] += f64::from(logits[token as usize]) - log_total;
                }
            }
            first += nodes.len();
        }
        self.evaluated += pack.nodes.len() as u64;
        self.keep_last(branches)?;
        Ok(sums)
    }

    /// Copies to each sequence as much of sequence 0 as its text shares with it.
    fn share(&mut self, shared: &[usize]) -> Result<(), Error> {
        let Some(&own) = shared.first() else { return Ok(()) };
        for (sequence, &n) in (0u32..).zip(shared).skip(1).filter(|(_, n)| **n > 0) {
            self.context.copy(0, sequence, number(n))?;
        }
        if own < self.held.len() {
            let left = self.context.truncate(0, number(own))? as usize;
            self.held.truncate(left);
            if left < own {
                // Memories that cannot be truncated never share anything.
                let reason = "its memory cannot be truncated".to_string();
                return Err(llama::Error::Decode { status: -1, reason }.into());
            }
        }
        Ok(())
    }

    /// Leaves the last text in sequence 0, and clears all other sequences.
    fn keep_last(&mut self, branches: &[Branch]) -> Result<(), Error> {
        let Some(last) = branches.len().checked_sub(1) else { return Ok(()) };
        if !self.model().can_truncate() {
            self.clear();
            return Ok(());
        }
        let read = branches[last].read();
        if last > 0 {
            self.context.truncate(0, 0)?;
            self.context.copy(number(last), 0, number(read.len()))?;
        }
        for sequence in 1..number(branches.len()) {
            self.context.truncate(sequence, 0)?;
        }
        self.held.clear();
        self.held.extend_from_slice(read);
        Ok(())
    }

    /// Clears all sequences.
    fn clear(&mut self) {
        self.held.clear();
        self.context.clear();
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A token to read, once for all texts of a pack that share it and all tokens before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    token: u32,
    position: u32,
    /// The texts that it belongs to, by their index in the pack, which is also their sequence.
    sequences: Vec<u32>,
    /// The scored tokens that follow it: the index of the text, and the token.
    next: Vec<(usize, u32)>,
}

/// The limits of a pack.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Tokens in memory.
    cells: usize,
    /// Tokens to read; a first text may have more.
    new: usize,
    /// Texts.
    texts: usize,
}

/// Texts that are read together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pack {
    /// For each text, how many of its first tokens are already in memory.
    shared: Vec<usize>,
    /// The tokens to read. Each comes after the tokens that precede it in its texts.
    nodes: Vec<Node>,
}

/// The predecessor of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Parent {
    /// This many tokens in memory.
    Held(usize),
    /// Another node.
    Node(usize),
}

impl Pack {
    /// Packs the first of `branches`, as many as the limits allow, but at least one. The tokens `held` are in memory.
    fn fill(branches: &[Branch], held: &[u32], limits: &Limits) -> Self {
        let mut pack = Self::default();
        let mut children: HashMap<(Parent, u32), usize> = HashMap::new();
        // Tokens that the first text does not share are removed from memory only after all others have their copies.
        let mut most_shared = 0;
        for (text, branch) in branches.iter().enumerate().take(limits.texts.max(1)) {
            let read = branch.read();
            let same = read.iter().zip(held).take_while(|(a, b)| a == b).count();
            // The token before the first scored one is read in any case, for its logits.
            let shared = same.min(branch.from - 1);
            let (known, parent) = walk(&children, &read[shared..], Parent::Held(shared));
            let n_new = read.len() - shared - known;
            let cells = most_shared.max(shared) + pack.nodes.len() + n_new;
            if text > 0 && (cells > limits.cells || pack.nodes.len() + n_new > limits.new) {
                break;
            }
            most_shared = most_shared.max(shared);
            pack.shared.push(shared);
            pack.add(&mut children, branch, shared + known, parent);
            pack.mark(&children, branch, text, shared);
        }
        pack
    }

    /// Adds nodes for the tokens of a text after the first `known` ones.
    fn add(&mut self, children: &mut HashMap<(Parent, u32), usize>, branch: &Branch, known: usize, mut parent: Parent) {
        for (position, &token) in branch.read().iter().enumerate().skip(known) {
            let index = self.nodes.len();
            children.insert((parent, token), index);
            parent = Parent::Node(index);
            self.nodes.push(Node { token, position: number(position), sequences: Vec::new(), next: Vec::new() });
        }
    }

    /// Adds a text to the nodes that belong to it, and its scored tokens to the nodes before them.
    fn mark(&mut self, children: &HashMap<(Parent, u32), usize>, branch: &Branch, text: usize, shared: usize) {
        let mut parent = Parent::Held(shared);
        for (position, &token) in branch.read().iter().enumerate().skip(shared) {
            let Some(&index) = children.get(&(parent, token)) else { return };
            let node = &mut self.nodes[index];
            node.sequences.push(number(text));
            if position + 1 >= branch.from {
                node.next.push((text, branch.tokens[position + 1]));
            }
            parent = Parent::Node(index);
        }
    }

    /// Returns how many nodes from `first` on fit in one batch of at most `n_batch` tokens and `rows` rows of logits:
    /// at least one, if there is one.
    fn next_batch(&self, first: usize, n_batch: usize, rows: usize) -> usize {
        let mut wanted = 0;
        for (n, node) in self.nodes[first..].iter().enumerate() {
            wanted += usize::from(!node.next.is_empty());
            if n == n_batch || wanted > rows {
                return n;
            }
        }
        self.nodes.len() - first
    }
}

/// Returns how many of `tokens` are already nodes, one after the other from `parent` on, and the last of these nodes.
fn walk(children: &HashMap<(Parent, u32), usize>, tokens: &[u32], mut parent: Parent) -> (usize, Parent) {
    for (n, &token) in tokens.iter().enumerate() {
        match children.get(&(parent, token)) {
            Some(&index) => parent = Parent::Node(index),
            None => return (n, parent),
        }
    }
    (tokens.len(), parent)
}
