//! How likely a model finds the ends of many texts that begin alike.
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
//! A text is a sequence. What several texts begin with is read once, for all of their sequences together: one cell, and
//! one row of the batch. As many texts as fill a batch are read at a time, whether they belong together or not; no
//! sequence sees what is not its own. The last text of a batch stays in memory, and what the next texts share with it
//! (its question, the examples before all questions) is copied, which for a unified KV cache changes a mark on each cell
//! and moves nothing.
//!
//! Models whose memory cannot be cut read one text after the other.
//!
//! llama.cpp ends the process over a token, a sequence or a number of rows that it was not made for. All of that is
//! checked or follows here: ids when texts come in, sequences and rows by how a batch is filled.

use std::collections::HashMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use llama_cpp_sys_2 as sys;

use crate::llama::session::Context;
use crate::llama::{Error, Model, SessionOptions};
use crate::sample;

/// Texts read at a time, at most. Four answers to each of sixteen questions; llama.cpp takes 256.
const MOST_SEQUENCES: u32 = 64;

/// A text of which the end is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// All of its tokens, with the one that begins every text where the model has one.
    pub tokens: Vec<u32>,
    /// The first token that is scored; all after it are too. Something stands before it: it is 1 or more.
    pub from: usize,
}

impl Branch {
    /// The tokens that the model has to read: all but the last, after which nothing is asked.
    fn read(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }
}

/// A context that holds many texts at a time.
pub struct Loglikelihoods {
    // Before the model, because a context has to go before its model does.
    context: Context,
    model: Model,
    options: SessionOptions,
    n_ctx: u32,
    n_sequences: usize,
    /// What sequence 0 holds. No other sequence holds anything between two packs.
    held: Vec<u32>,
    /// Tokens that were read, of all texts so far.
    evaluated: u64,
    tops: Vec<f32>,
}

// SAFETY: a context belongs to no thread in particular. Without `Sync`, and with `&mut self` for everything that uses it,
// no two threads do so at a time.
unsafe impl Send for Loglikelihoods {}

impl fmt::Debug for Loglikelihoods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loglikelihoods")
            .field("model", &self.model)
            .field("n_ctx", &self.n_ctx)
            .field("n_sequences", &self.n_sequences)
            .finish_non_exhaustive()
    }
}

impl Loglikelihoods {
    /// The options that a context for many texts is made with: as many rows of logits as it takes. The check of the
    /// machine's memory before a model is loaded needs them.
    pub fn options(options: &SessionOptions) -> SessionOptions {
        // llama.cpp makes room for a row of each sequence, and asserts that it may.
        let rows = options.rows.max(2 * MOST_SEQUENCES).min(options.n_batch);
        SessionOptions { rows, ..options.clone() }
    }

    /// An empty context.
    ///
    /// # Errors
    /// Where an option is out of range, or llama.cpp finds no room.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        Self::with_sequences(model, options, MOST_SEQUENCES)
    }

    /// As [`Self::new`], with at most so many texts at a time: 1 reads one after the other, for comparison.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_sequences(model: &Model, options: &SessionOptions, most: u32) -> Result<Self, Error> {
        options.check()?;
        let n_ctx = options.n_ctx_for(model.n_ctx_train());
        let mut options = Self::options(options);
        // No batch is larger than what the context holds.
        options.n_batch = options.n_batch.min(n_ctx);
        options.rows = options.rows.min(options.n_batch);
        let most = if model.can_be_cut() { most.clamp(1, MOST_SEQUENCES) } else { 1 };
        let n_sequences = most.min(options.rows);
        let context = Context::make(model, &options, |params| {
            params.n_seq_max = n_sequences;
            // One memory for all, so that a cell can belong to several sequences.
            params.kv_unified = true;
            // Without it the rows of one sequence would be limited to one.
            params.n_outputs_max_per_seq = params.n_outputs_max;
        })?;
        // SAFETY: the context is alive.
        let (n_batch, room, sequences) = unsafe {
            let context = context.pointer().as_ptr();
            (sys::llama_n_batch(context), sys::llama_n_ctx(context), sys::llama_n_seq_max(context))
        };
        options.n_batch = options.n_batch.min(n_batch);
        options.rows = options.rows.min(options.n_batch);
        Ok(Self {
            context,
            model: model.clone(),
            n_ctx: n_ctx.min(room),
            n_sequences: sequences.min(n_sequences) as usize,
            options,
            held: Vec::new(),
            evaluated: 0,
            tops: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens there is room for: the longest text has one more, as its last is not read.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// Tokens that were read so far, for all texts together.
    pub fn evaluated(&self) -> u64 {
        self.evaluated
    }

    /// The log-likelihoods of the scored tokens of each text: natural logarithms of their probabilities, added up. They
    /// go to `each` with the index of the text, in order, a batch at a time, until it breaks.
    ///
    /// # Errors
    /// Where a text has nothing to score or nothing before it, is longer than the context, or has a token that is not in
    /// the vocabulary: before anything is read. When interrupted; when llama.cpp fails, or its logits are no numbers.
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

    fn check(&self, branch: &Branch) -> Result<(), Error> {
        let n_vocab = self.model.n_vocab();
        if branch.from == 0 || branch.from >= branch.tokens.len() {
            return Err(Error::NoTokens);
        }
        if let Some(&token) = branch.tokens.iter().find(|token| **token >= n_vocab) {
            return Err(Error::Token { token, n_vocab });
        }
        if branch.read().len() > self.n_ctx as usize {
            return Err(Error::ContextFull { wanted: branch.read().len(), n_ctx: self.n_ctx });
        }
        Ok(())
    }

    /// The first of `branches`, as many as fill a batch.
    fn pack(&self, branches: &[Branch]) -> Pack {
        let limits = Limits { cells: self.n_ctx as usize, new: self.options.n_batch as usize, texts: self.n_sequences };
        Pack::fill(branches, &self.held, &limits)
    }

    /// Reads the texts of a pack, and gives what each comes to.
    fn read(&mut self, pack: &Pack, branches: &[Branch]) -> Result<Vec<f64>, Error> {
        let mut sums = vec![0.0; branches.len()];
        self.share(&pack.shared)?;
        let mut batch = RawBatch::default();
        let mut first = 0;
        while first < pack.nodes.len() {
            let n = pack.next_batch(first, self.options.n_batch as usize, self.options.rows as usize);
            let nodes = &pack.nodes[first..first + n];
            self.decode(nodes, &mut batch)?;
            for (index, node) in nodes.iter().enumerate().filter(|(_, node)| !node.next.is_empty()) {
                // SAFETY: the context is alive and done, and logits of this index were asked for.
                let row = unsafe {
                    let index = i32::try_from(index).unwrap_or(-1);
                    sys::llama_get_logits_ith(self.context.pointer().as_ptr(), index)
                };
                if row.is_null() {
                    return Err(Error::NoLogits { row: index, computed: n });
                }
                // SAFETY: llama.cpp keeps `n_vocab` floats a row until the next evaluation.
                let logits = unsafe { std::slice::from_raw_parts(row.cast_const(), self.model.n_vocab() as usize) };
                let log_total = sample::log_total(logits, &mut self.tops)?;
                for &(text, token) in &node.next {
                    sums[text] += f64::from(logits[token as usize]) - log_total;
                }
            }
            first += n;
        }
        self.evaluated += pack.nodes.len() as u64;
        self.keep_last(branches);
        Ok(sums)
    }

    /// Gives each sequence as much of sequence 0 as its text shares with it.
    fn share(&mut self, shared: &[usize]) -> Result<(), Error> {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let memory = self.memory();
        let Some(&own) = shared.first() else { return Ok(()) };
        for (sequence, &n) in shared.iter().enumerate().skip(1).filter(|(_, n)| **n > 0) {
            // SAFETY: the memory is that of a live context; nothing is being evaluated; sequences are below `n_seq_max`.
            unsafe { sys::llama_memory_seq_cp(memory, 0, number(sequence), 0, number(n)) };
        }
        if own < self.held.len() {
            // SAFETY: as above.
            let cut = unsafe { sys::llama_memory_seq_rm(memory, 0, number(own), -1) };
            if !cut {
                // It was said to share something, and memories that cannot be cut never are.
                return Err(Error::Decode { status: -1, reason: "its memory cannot be cut".to_string() });
            }
            self.held.truncate(own);
        }
        Ok(())
    }

    /// Makes sequence 0 hold the last text, and all others nothing.
    fn keep_last(&mut self, branches: &[Branch]) {
        let Some((last, branch)) = branches.len().checked_sub(1).map(|last| (last, &branches[last])) else { return };
        if !self.model.can_be_cut() {
            return self.clear();
        }
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let memory = self.memory();
        // SAFETY: the memory is that of a live context; nothing is being evaluated; sequences are below `n_seq_max`.
        // Whole sequences can be taken out of any memory.
        unsafe {
            if last > 0 {
                sys::llama_memory_seq_rm(memory, 0, -1, -1);
                sys::llama_memory_seq_cp(memory, number(last), 0, -1, -1);
            }
            for sequence in 1..branches.len() {
                sys::llama_memory_seq_rm(memory, number(sequence), -1, -1);
            }
        }
        self.held.clear();
        self.held.extend_from_slice(branch.read());
    }

    /// Forgets everything.
    fn clear(&mut self) {
        self.held.clear();
        // SAFETY: the memory is that of a live context, and nothing is being evaluated.
        unsafe { sys::llama_memory_clear(self.memory(), true) };
    }

    fn memory(&self) -> sys::llama_memory_t {
        // SAFETY: the context is alive.
        unsafe { sys::llama_get_memory(self.context.pointer().as_ptr()) }
    }

    /// Reads some nodes of a pack.
    fn decode(&self, nodes: &[Node], batch: &mut RawBatch) -> Result<(), Error> {
        if self.options.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        batch.fill(nodes);
        let batch = sys::llama_batch {
            n_tokens: i32::try_from(batch.tokens.len()).unwrap_or(0),
            token: batch.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_mut_ptr(),
            n_seq_id: batch.n_sequences.as_mut_ptr(),
            seq_id: batch.sequences.as_mut_ptr(),
            logits: batch.wanted.as_mut_ptr(),
        };
        // SAFETY: the arrays have `n_tokens` entries, the lists of sequences as many as `n_seq_id` says, and all outlive
        // the call. Tokens were checked, sequences are below `n_seq_max`, positions of each go on from its last one; packs
        // are cut to the context's size and rows, and no row is kept from one batch to the next.
        unsafe { self.context.decode(batch, self.held.len() + nodes.len(), self.n_ctx) }
    }
}

/// A token that the texts of a pack read, each once for all texts that share all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    token: u32,
    position: usize,
    /// The texts it belongs to, by their place in the pack, which is their sequence.
    sequences: Vec<i32>,
    /// The scored tokens that come after it: of which text, and which.
    next: Vec<(usize, u32)>,
}

/// How much a pack may hold.
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
    /// Of each text, how many of its first tokens are in memory already.
    shared: Vec<usize>,
    /// What is to be read, in an order in which every token comes after those before it.
    nodes: Vec<Node>,
}

/// What comes before a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Parent {
    /// So many tokens that are in memory.
    Held(usize),
    /// Another node.
    Node(usize),
}

impl Pack {
    /// The first of `branches`, as many as the limits allow, but one in any case. `held` is in memory.
    fn fill(branches: &[Branch], held: &[u32], limits: &Limits) -> Self {
        let mut pack = Self::default();
        let mut children: HashMap<(Parent, u32), usize> = HashMap::new();
        // What the first text does not share is taken out of memory only when all others have their copies.
        let mut most_shared = 0;
        for (text, branch) in branches.iter().enumerate().take(limits.texts.max(1)) {
            let read = branch.read();
            let same = read.iter().zip(held).take_while(|(a, b)| a == b).count();
            // The token before the first that is scored is read in any case, for its logits.
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

    /// Adds the nodes that a text has beyond its first `known` tokens.
    fn add(&mut self, children: &mut HashMap<(Parent, u32), usize>, branch: &Branch, known: usize, mut parent: Parent) {
        for (position, &token) in branch.read().iter().enumerate().skip(known) {
            let index = self.nodes.len();
            children.insert((parent, token), index);
            parent = Parent::Node(index);
            self.nodes.push(Node { token, position, sequences: Vec::new(), next: Vec::new() });
        }
    }

    /// Marks the nodes of a text as its own, and those before scored tokens with these.
    fn mark(&mut self, children: &HashMap<(Parent, u32), usize>, branch: &Branch, text: usize, shared: usize) {
        let mut parent = Parent::Held(shared);
        for (position, &token) in branch.read().iter().enumerate().skip(shared) {
            let Some(&index) = children.get(&(parent, token)) else { return };
            let node = &mut self.nodes[index];
            node.sequences.push(i32::try_from(text).unwrap_or(i32::MAX));
            if position + 1 >= branch.from {
                node.next.push((text, branch.tokens[position + 1]));
            }
            parent = Parent::Node(index);
        }
    }

    /// How many nodes from `first` on go into one batch of at most `n_batch` tokens and `rows` rows of logits: one at
    /// least, where there is one.
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

/// How many of `tokens` are there already, one after the other from `parent` on, and what the last of them is.
fn walk(children: &HashMap<(Parent, u32), usize>, tokens: &[u32], mut parent: Parent) -> (usize, Parent) {
    for (n, &token) in tokens.iter().enumerate() {
        match children.get(&(parent, token)) {
            Some(&index) => parent = Parent::Node(index),
            None => return (n, parent),
        }
    }
    (tokens.len(), parent)
}

/// What `llama_decode` takes: arrays with one entry a token.
#[derive(Default)]
struct RawBatch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    n_sequences: Vec<i32>,
    /// They point into the nodes that the batch was filled from, which stay where they are until it has been read.
    sequences: Vec<*mut sys::llama_seq_id>,
    wanted: Vec<i8>,
}

impl RawBatch {
    fn fill(&mut self, nodes: &[Node]) {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        self.tokens.clear();
        self.tokens.extend(nodes.iter().map(|node| number(node.token as usize)));
        self.positions.clear();
        self.positions.extend(nodes.iter().map(|node| number(node.position)));
        self.n_sequences.clear();
        self.n_sequences.extend(nodes.iter().map(|node| number(node.sequences.len())));
        self.sequences.clear();
        self.sequences.extend(nodes.iter().map(|node| node.sequences.as_ptr().cast_mut()));
        self.wanted.clear();
        self.wanted.extend(nodes.iter().map(|node| i8::from(!node.next.is_empty())));
    }
}
