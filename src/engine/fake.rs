//! A model for tests: its logits come from a table, so that every text it writes is known beforehand.
//!
//! ```text
//! tokens 0 to 127   the bytes of ASCII          128, 129   the first two bytes of 河, and its third      130   the end
//! logits            the token that comes next by the rule: 9; any other: below 1, always the same after the same token
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Decoder;
use super::decoder::{SequenceDecoder, State};
use crate::llama::{Batch, Error};
use crate::vocab::{Markers, PieceType, Place, TokenizeError, Tokenizer};

pub(super) const RIVER: [u32; 2] = [128, 129];
pub(super) const END: u32 = 130;
const N_VOCAB: u32 = 131;

/// The rule: returns the next token after a text.
pub(super) type Next = Arc<dyn Fn(&[u32]) -> u32 + Send + Sync>;

/// A fake model, for tests: a rule decides the next token.
#[derive(Clone)]
pub(super) struct Fake {
    pub next: Next,
    pub n_ctx: u32,
    pub n_batch: usize,
    pub n_rows: usize,
    pub can_truncate: bool,
    pub cancel: Arc<AtomicBool>,
    /// Sets the flag after this many evaluations.
    pub cancel_after: Option<usize>,
    pub sequences: Vec<Vec<u32>>,
    pub rows: Vec<Vec<f32>>,
    /// The number of tokens of each evaluation.
    pub evaluations: Vec<usize>,
    /// The sequences of each evaluation, each as often as it has tokens in it.
    pub evaluated: Vec<Vec<i32>>,
    /// Whether sequences share the memory of `n_ctx` tokens. If not, each has as many for itself.
    pub shares: bool,
    /// Whether the number of tokens of an evaluation changes what is computed, as in llama.cpp, and where in the memory
    /// they lie.
    pub is_fickle: bool,
    /// The number of evaluations that fail.
    pub failures: usize,
    /// Time that a token takes.
    pub token_time: std::time::Duration,
    /// The cells of each sequence.
    pub cells: Vec<Vec<Cell>>,
    pub n_cells: u64,
}

/// A token in the memory of a [`Fake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// Its number: a copy has the same.
    pub number: u64,
    /// The circumstances in which it was computed.
    pub flavour: u32,
}

impl Fake {
    /// Creates a model of one sequence that writes by this rule.
    pub fn new(next: impl Fn(&[u32]) -> u32 + Send + Sync + 'static) -> Self {
        Self {
            next: Arc::new(next),
            n_ctx: 256,
            n_batch: 16,
            n_rows: 16,
            can_truncate: true,
            cancel: Arc::default(),
            cancel_after: None,
            sequences: vec![Vec::new(); 4],
            rows: Vec::new(),
            evaluations: Vec::new(),
            evaluated: Vec::new(),
            shares: true,
            is_fickle: false,
            failures: 0,
            token_time: std::time::Duration::ZERO,
            cells: vec![Vec::new(); 4],
            n_cells: 0,
        }
    }

    /// The same with this many sequences.
    pub fn with_sequences(mut self, n: usize) -> Self {
        (self.sequences, self.cells) = (vec![Vec::new(); n], vec![Vec::new(); n]);
        self
    }

    /// The number of tokens in memory, those of several sequences counted once.
    pub fn n_held(&self) -> usize {
        let numbers: std::collections::HashSet<u64> = self.cells.iter().flatten().map(|cell| cell.number).collect();
        numbers.len()
    }

    /// The number of tokens of all evaluations.
    pub fn n_evaluated(&self) -> usize {
        self.evaluations.iter().sum()
    }

    /// What the circumstances make of the token that follows by the rule.
    fn changed(&self, sequence: usize, next: u32) -> u32 {
        if !self.is_fickle || next == END {
            return next;
        }
        let of_cell = |sum: u32, cell: &Cell| sum.wrapping_mul(31).wrapping_add(cell.flavour);
        let flavour = self.cells[sequence].iter().fold(0, of_cell);
        97 + (next + flavour) % 26
    }

    /// Creates a model that recites texts: it continues the text whose beginning is the prompt, and then ends.
    pub fn reciting(texts: &[&str]) -> Self {
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| encode(text)).collect();
        Self::new(move |read| {
            let known = texts.iter().find(|text| text.first() == read.first());
            known.and_then(|text| text.get(read.len())).copied().unwrap_or(END)
        })
    }

    fn row(&self, sequence: usize) -> Vec<f32> {
        let read = &self.sequences[sequence];
        let last = read.last().copied().unwrap_or(0);
        let next = self.changed(sequence, (self.next)(read));
        let other = |token: u32| (token.wrapping_mul(2_654_435_761) ^ last.wrapping_mul(40_503)) % 1000;
        (0..N_VOCAB).map(|token| if token == next { 9.0 } else { other(token) as f32 / 1000.0 }).collect()
    }
}

/// The tokens of a text of ASCII and 河.
pub(super) fn encode(text: &str) -> Vec<u32> {
    let tokens = text.chars().flat_map(|c| match c {
        '河' => RIVER.to_vec(),
        c => vec![u32::from(c)],
    });
    tokens.collect()
}

impl Decoder for Fake {
    fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::new(Bytes::new())
    }

    fn n_vocab(&self) -> u32 {
        N_VOCAB
    }

    fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    fn n_batch(&self) -> usize {
        self.n_batch
    }

    fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn can_truncate(&self) -> bool {
        self.can_truncate
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn decode(&mut self, batch: &Batch) -> Result<(), Error> {
        self.rows.clear();
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        assert!((1..=self.n_batch).contains(&batch.len()) && batch.n_rows() <= self.n_rows);
        if self.shares && self.n_held() + batch.len() > self.n_ctx as usize {
            return Err(Error::ContextFull { wanted: self.n_held() + batch.len(), n_ctx: self.n_ctx });
        }
        if let Some(left) = self.failures.checked_sub(1) {
            self.failures = left;
            if !self.can_truncate {
                batch.iter().for_each(|token| drop(self.truncate(token.sequences[0].cast_unsigned(), 0)));
            }
            return Err(Error::Decode { status: -3, reason: "it was asked to fail".to_string() });
        }
        std::thread::sleep(self.token_time * u32::try_from(batch.len()).unwrap());
        self.evaluated.push(batch.iter().map(|token| token.sequences[0]).collect());
        for token in batch.iter() {
            let place = if self.shares { self.n_held() } else { token.position as usize };
            let flavour = u32::try_from(batch.len() * 7 + place).unwrap();
            let cell = Cell { number: self.n_cells, flavour };
            self.n_cells += 1;
            for &sequence in token.sequences {
                let sequence = usize::try_from(sequence).unwrap();
                let held = &mut self.sequences[sequence];
                assert_eq!(held.len(), token.position as usize, "a token follows what its sequence holds");
                assert!(held.len() < self.n_ctx as usize, "no sequence holds more than its memory");
                held.push(token.token);
                self.cells[sequence].push(cell);
            }
            if token.wants_logits {
                self.rows.push(self.row(usize::try_from(token.sequences[0]).unwrap()));
            }
        }
        self.evaluations.push(batch.len());
        if self.cancel_after.is_some_and(|n| self.evaluations.len() >= n) {
            self.cancel.store(true, Ordering::Relaxed);
            self.cancel_after = None;
        }
        Ok(())
    }

    fn logits(&self, row: usize) -> Result<&[f32], Error> {
        self.rows.get(row).map(Vec::as_slice).ok_or(Error::NoLogits { row, computed: self.rows.len() })
    }

    fn truncate(&mut self, sequence: u32, n_tokens: usize) -> Result<usize, Error> {
        let held = &mut self.sequences[sequence as usize];
        if n_tokens < held.len() {
            held.truncate(if self.can_truncate { n_tokens } else { 0 });
        }
        self.cells[sequence as usize].truncate(held.len());
        Ok(held.len())
    }
}

impl SequenceDecoder for Fake {
    fn n_sequences(&self) -> u32 {
        self.sequences.len().try_into().unwrap()
    }

    fn n_ctx_sequence(&self) -> u32 {
        self.n_ctx
    }

    fn shares_tokens(&self) -> bool {
        self.shares
    }

    fn copy(&mut self, from: u32, to: u32, n_tokens: usize) -> Result<(), Error> {
        let (from, to) = (from as usize, to as usize);
        assert!(from != to && self.sequences[to].is_empty());
        assert!(n_tokens <= self.sequences[from].len());
        assert!(self.can_truncate || n_tokens == self.sequences[from].len());
        self.sequences[to] = self.sequences[from][..n_tokens].to_vec();
        self.cells[to] = self.cells[from][..n_tokens].to_vec();
        if !self.shares {
            self.cells[to].iter_mut().zip(self.n_cells..).for_each(|(cell, number)| cell.number = number);
            self.n_cells += n_tokens as u64;
        }
        Ok(())
    }

    fn save(&mut self, sequence: u32) -> Result<State, Error> {
        let sequence = sequence as usize;
        let pairs = self.sequences[sequence].iter().zip(&self.cells[sequence]);
        let bytes = pairs.flat_map(|(token, cell)| [token.to_le_bytes(), cell.flavour.to_le_bytes()].concat());
        Ok(State::trusted(bytes.collect()))
    }

    fn restore(&mut self, sequence: u32, state: &State, n_tokens: usize) -> Result<(), Error> {
        let sequence = sequence as usize;
        (self.sequences[sequence], self.cells[sequence]) = Default::default();
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        if state.bytes().len() != 8 * n_tokens {
            return Err(Error::State("it holds other tokens than it says".to_string()));
        }
        assert!(!self.shares || self.n_held() + n_tokens <= self.n_ctx as usize, "a state has room");
        for pair in state.bytes().chunks_exact(8) {
            self.sequences[sequence].push(number(&pair[..4]));
            self.cells[sequence].push(Cell { number: self.n_cells, flavour: number(&pair[4..]) });
            self.n_cells += 1;
        }
        Ok(())
    }
}

/// The tokenizer of a [`Fake`].
pub(super) struct Bytes {
    markers: Markers,
    ascii: [u8; 128],
}

impl Bytes {
    pub fn new() -> Self {
        Self { markers: Markers::default(), ascii: std::array::from_fn(|byte| byte as u8) }
    }
}

impl Tokenizer for Bytes {
    fn n_tokens(&self) -> usize {
        N_VOCAB as usize
    }

    fn encode(&self, text: &str, _: Place) -> Result<Vec<u32>, TokenizeError> {
        Ok(encode(text))
    }

    fn bytes(&self, id: u32) -> &[u8] {
        match id {
            0..128 => &self.ascii[id as usize..=id as usize],
            128 => &"河".as_bytes()[..2],
            129 => &"河".as_bytes()[2..],
            _ => &[],
        }
    }

    fn piece(&self, id: u32) -> &str {
        std::str::from_utf8(self.bytes(id)).unwrap_or("half")
    }

    fn kind(&self, id: u32) -> PieceType {
        if id == END { PieceType::Control } else { PieceType::Normal }
    }

    fn is_end(&self, id: u32) -> bool {
        id == END
    }

    fn begins_with(&self) -> Option<u32> {
        None
    }

    fn markers(&self) -> &Markers {
        &self.markers
    }
}
