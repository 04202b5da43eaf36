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

/// The longest token that is used, in bytes. The trie stores a node's depth in ten bits.
const LONGEST_TOKEN: usize = 1000;
/// The most bytes of all tokens together. The trie stores node numbers in 22 bits.
const MOST_BYTES: usize = (1 << 22) - 2;
/// The most tokens. The trie stores token ids in 24 bits.
const MOST_TOKENS: usize = 1 << 23;

/// The bytes of a model's tokens, prepared once and shared by all constraints for the model.
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
    /// Prepares the tokens of `tokenizer`, which takes about 0.1 s for 64,000 tokens.
    ///
    /// Control tokens, end tokens and user-defined tokens that chat templates write as markers have no bytes here: no
    /// text spells them.
    ///
    /// # Errors
    /// If there are more tokens, or longer ones, than in any known model.
    pub fn new(tokenizer: &dyn Tokenizer) -> Result<Self, Error> {
        Self::with_markers(tokenizer, &[])
    }

    /// Prepares them so that tokens spelled like one of `markers` have these bytes, too, unless they end a text: for grammars
    /// in which a model's own markers occur, such as `<tool_call>`. Many models have a token for them, and write no other.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_markers(tokenizer: &dyn Tokenizer, markers: &[&str]) -> Result<Self, Error> {
        let n = tokenizer.n_tokens();
        let mut words = Vec::with_capacity(n.min(MOST_TOKENS));
        let mut ends = Vec::new();
        for id in 0..u32::try_from(n).unwrap_or(u32::MAX) {
            if tokenizer.is_end(id) {
                ends.push(id);
            }
            let special = tokenizer.is_end(id)
                || tokenizer.markers().contains(id)
                || matches!(tokenizer.kind(id), PieceType::Control | PieceType::Unknown | PieceType::Unused);
            let bytes = match special {
                true if !tokenizer.is_end(id) && markers.contains(&tokenizer.piece(id)) => {
                    tokenizer.piece(id).as_bytes()
                }
                true => &[][..],
                false => tokenizer.bytes(id),
            };
            // The trie marks special tokens with 0xff, which never occurs in UTF-8.
            let usable = bytes.len() <= LONGEST_TOKEN && bytes.first() != Some(&0xff);
            words.push(if usable { bytes.to_vec() } else { Vec::new() });
        }
        Self::of(words, ends)
    }

    /// A vocabulary of single bytes and one end token, to check grammars without a model.
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
        // Grammars over single characters need many items.
        limits.step_max_items = 1_000_000;
        limits.step_lexer_fuel = 2_000_000;
        Ok(Self { factory, env, ends, text, numbers })
    }

    /// The number of tokens in the vocabulary.
    pub fn n_tokens(&self) -> usize {
        self.env.tok_trie().vocab_size()
    }

    /// Returns a parser for `grammar`.
    pub(super) fn parser(&self, grammar: llguidance::api::TopLevelGrammar) -> anyhow::Result<TokenParser> {
        self.factory.create_parser(grammar)
    }

    /// The bytes of a token; none for control tokens.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.env.tok_trie().token(id)
    }

    /// The model's end tokens.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The tokens that have bytes.
    pub(super) fn text(&self) -> &SimpleVob {
        &self.text
    }

    /// Tokens that contain a number which JSON parsers refuse.
    pub(super) fn numbers(&self) -> &[u32] {
        &self.numbers
    }
}

/// Regular expressions for common text. If a grammar allows all text of one, its tokens are allowed as a set.
fn slices() -> Vec<String> {
    SlicedBiasComputer::general_slices()
}
