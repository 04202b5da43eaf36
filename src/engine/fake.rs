//! A model for tests: its logits come from a table, so that every text it writes is known beforehand.
//!
//! ```text
//! tokens 0 to 127   the bytes of ASCII          128, 129   the first two bytes of 河, and its third      130   the end
//! logits            the token that comes next by the rule: 9; any other: below 1, always the same after the same token
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Decoder;
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
        }
    }

    /// Creates a model that recites texts: it continues the text whose beginning is the prompt, and then ends.
    pub fn reciting(texts: &[&str]) -> Self {
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| encode(text)).collect();
        Self::new(move |read| {
            let known = texts.iter().find(|text| text.first() == read.first());
            known.and_then(|text| text.get(read.len())).copied().unwrap_or(END)
        })
    }

    fn row(&self, read: &[u32]) -> Vec<f32> {
        let last = read.last().copied().unwrap_or(0);
        let next = (self.next)(read);
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
        for token in batch.iter() {
            for &sequence in token.sequences {
                let held = &mut self.sequences[usize::try_from(sequence).unwrap()];
                assert_eq!(held.len(), token.position as usize, "a token follows what its sequence holds");
                held.push(token.token);
            }
            if token.wants_logits {
                let read = &self.sequences[usize::try_from(token.sequences[0]).unwrap()];
                self.rows.push(self.row(read));
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
        Ok(held.len())
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
