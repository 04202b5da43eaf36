//! A model's vocabulary as a trie of bytes.

use std::sync::{Arc, OnceLock};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{ParserFactory, TokenParser};

use super::{Error, guard};
use crate::vocab::PieceType;
use crate::vocab::Tokenizer;

/// The longest token, in bytes, that takes part. The trie counts a node's depth in ten bits.
const LONGEST_TOKEN: usize = 1000;
/// Bytes of all tokens: the trie counts its nodes in 22 bits.
const MOST_BYTES: usize = (1 << 22) - 2;
/// Tokens: the trie counts them in 24 bits.
const MOST_TOKENS: usize = 1 << 23;

/// What a model's tokens print, made ready once and shared by all that write with the model.
pub struct Tokens {
    factory: ParserFactory,
    env: TokEnv,
    ends: Vec<u32>,
    text: SimpleVob,
    numbers: Vec<u32>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({}, ends {:?})", self.env.tok_trie().vocab_size(), self.ends)
    }
}

impl Tokens {
    /// The tokens of `codec`. Takes about a tenth of a second at 64,000.
    ///
    /// Control tokens and end tokens print nothing, and neither do those user-defined ones that a chat template writes
    /// as markers: no text spells them.
    ///
    /// # Errors
    /// Where there are more tokens, or longer ones, than any model is known to have.
    pub fn new(codec: &dyn Tokenizer) -> Result<Self, Error> {
        let n = codec.n_tokens();
        let mut words = Vec::with_capacity(n.min(MOST_TOKENS));
        let mut ends = Vec::new();
        for id in 0..u32::try_from(n).unwrap_or(u32::MAX) {
            if codec.is_end(id) {
                ends.push(id);
            }
            let special = codec.is_end(id)
                || codec.markers().contains(id)
                || matches!(codec.kind(id), PieceType::Control | PieceType::Unknown | PieceType::Unused);
            let bytes = if special { &[][..] } else { codec.bytes(id) };
            // The trie's own mark of special tokens begins with 0xff, which no UTF-8 text holds.
            let usable = bytes.len() <= LONGEST_TOKEN && bytes.first() != Some(&0xff);
            words.push(if usable { bytes.to_vec() } else { Vec::new() });
        }
        Self::of(words, ends)
    }

    /// A vocabulary of single bytes and one end token, to try grammars on before there is a model.
    pub(super) fn single_bytes() -> Result<&'static Arc<Self>, Error> {
        static BYTES: OnceLock<Result<Arc<Tokens>, Error>> = OnceLock::new();
        let made = BYTES.get_or_init(|| {
            let mut words: Vec<Vec<u8>> = (0..=0xfe).map(|byte| vec![byte]).collect();
            words.push(Vec::new());
            Self::of(words, vec![0xff]).map(Arc::new)
        });
        made.as_ref().map_err(Clone::clone)
    }

    fn of(words: Vec<Vec<u8>>, ends: Vec<u32>) -> Result<Self, Error> {
        let bytes: usize = words.iter().map(Vec::len).sum();
        if words.is_empty() || words.len() > MOST_TOKENS || bytes > MOST_BYTES {
            let why = format!("it has {} tokens of {bytes} bytes", words.len());
            return Err(Error::Vocabulary(why));
        }
        let n = words.len() as u32;
        let mut trie = TokTrie::from(&TokRxInfo::new(n, INVALID_TOKEN), &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let mut text = trie.alloc_token_set();
        for (id, word) in (0u32..).zip(&words) {
            if !word.is_empty() {
                text.allow_token(id);
            }
        }
        let numbers = (0u32..).zip(&words).filter(|(_, word)| guard::Guard::default().refuses(word)).map(|w| w.0);
        let numbers = numbers.collect();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let unable = |error: anyhow::Error| Error::Vocabulary(error.to_string());
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices()).map_err(unable)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        // Grammars by the character make many items.
        limits.step_max_items = 1_000_000;
        limits.step_lexer_fuel = 2_000_000;
        Ok(Self { factory, env, ends, text, numbers })
    }

    /// Tokens in the vocabulary.
    pub fn n_tokens(&self) -> usize {
        self.env.tok_trie().vocab_size()
    }

    /// A parser of `grammar`.
    pub(super) fn parser(&self, grammar: llguidance::api::TopLevelGrammar) -> anyhow::Result<TokenParser> {
        self.factory.create_parser(grammar)
    }

    /// What a token prints; nothing for control tokens.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.env.tok_trie().token(id)
    }

    /// The model's end tokens.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The tokens that print something.
    pub(super) fn text(&self) -> &SimpleVob {
        &self.text
    }

    /// Tokens that are, or hold, a number which JSON readers refuse.
    pub(super) fn numbers(&self) -> &[u32] {
        &self.numbers
    }
}

/// Kinds of text for which whole sets of tokens are allowed at once, where a grammar allows all of the kind.
fn slices() -> Vec<String> {
    SlicedBiasComputer::general_slices()
}
