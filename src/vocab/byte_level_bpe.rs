//! [`ByteLevelBpe`]: encodes text exactly like the tokenizers library does for byte-level vocabularies.

use super::find::{self, Finder, Fragment};
use super::merge::{Candidate, MergeTable, Merger, Output, check_length};
use super::pieces::{array, missing};
use super::pretokenizers;
use super::split::{self, Step};
use super::{Error, PieceType, Pieces, VocabKind};
use crate::gguf::{Array, Metadata};

/// nibble's own key: whether a word that is a piece is used as it is, where llama.cpp's name of the pre-tokenizer says
/// something else.
pub(super) const WHOLE_WORDS_KEY: &str = "nibble.tokenizer.ignore_merges";

/// The most text in all pieces that are searched for, in bytes. Known vocabularies have kilobytes.
const MAX_FINDER_BYTES: usize = 16 << 20;

/// The tokenizer of a byte-level vocabulary whose way of splitting text nibble knows: `qwen2`, `llama-bpe`, `tekken` and
/// others.
///
/// User-defined pieces are found in plain text, the longest of those that begin at one place. Control pieces are not:
/// text that spells one is text.
pub struct ByteLevelBpe {
    pieces: Pieces,
    user_defined: Finder,
    /// Those and the control pieces.
    markers: Finder,
    steps: Vec<Step>,
    whole_words: bool,
    table: MergeTable,
}

impl ByteLevelBpe {
    /// Reads the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// If [`Pieces::from_metadata`] fails, the vocabulary is of another kind or splits text in a way that nibble does
    /// not know ([`Error::NoEncoder`], [`Error::NoSplit`]; llama.cpp may have a tokenizer for it), there are no merges,
    /// or a piece is too long.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let pieces = Pieces::from_metadata(metadata)?;
        if pieces.kind() != VocabKind::ByteLevel {
            return Err(Error::NoEncoder { kind: pieces.kind().name() });
        }
        let pre = metadata.str("tokenizer.ggml.pre").unwrap_or_default();
        let has_prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(false);
        let rules = pretokenizers::rules(pre).filter(|_| !has_prefix);
        let Some((steps, whole_words)) = rules else { return Err(Error::NoSplit { pre: pre.to_string() }) };
        let (mut user_defined, mut markers) = (Finder::default(), Finder::default());
        let flags = find::flags(metadata);
        let mut candidates = Vec::with_capacity(pieces.len());
        let mut finder_bytes = 0;
        let ids = 0..u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        for id in ids {
            let (Some(text), Some(ty)) = (pieces.text(id), pieces.piece_type(id)) else { break };
            let flags = flags.get(&id).copied().unwrap_or_default();
            check_length(text, id)?;
            if matches!(ty, PieceType::UserDefined | PieceType::Control) {
                finder_bytes += text.len();
            }
            if finder_bytes > MAX_FINDER_BYTES {
                return Err(Error::LongPieces { limit: MAX_FINDER_BYTES });
            }
            match ty {
                PieceType::UserDefined => {
                    user_defined.insert(text, id, flags);
                    markers.insert(text, id, flags);
                }
                PieceType::Control => markers.insert(text, id, flags),
                PieceType::Normal => candidates.push(Candidate { id, text, score: 0.0, ty }),
                PieceType::Unknown | PieceType::Unused | PieceType::Byte => {}
            }
        }
        let merges = merges(metadata)?;
        let table = MergeTable::new(pieces.len() as u32, &candidates, Some(&merges));
        let whole_words = metadata.bool(WHOLE_WORDS_KEY).unwrap_or(whole_words);
        Ok(Self { user_defined, markers, steps, whole_words, table, pieces })
    }

    /// The vocabulary: the bytes of ids, end tokens, and so on.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Encodes plain text, without BOS or EOS. The text of a control piece is plain text here.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_divided(text, &self.user_defined)
    }

    /// Encodes text in which control pieces are recognized. Not for untrusted text, which could spell them.
    pub fn encode_special(&self, text: &str) -> Vec<u32> {
        self.encode_divided(text, &self.markers)
    }

    fn encode_divided(&self, text: &str, finder: &Finder) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        finder.split(text, |part| match part {
            Fragment::Text(text) => self.encode_part(text, &mut ids),
            Fragment::Token(id) => ids.push(id),
        });
        ids
    }

    fn encode_part(&self, text: &str, ids: &mut Vec<u32>) {
        let mut merger = Merger::new(&self.table, Ids { ids, unknown: self.pieces.unknown() });
        for word in split::split(text, &self.steps).iter() {
            let whole = self.whole_words.then(|| self.pieces.id(word)).flatten();
            match whole.filter(|&id| self.pieces.piece_type(id) == Some(PieceType::Normal)) {
                Some(id) => merger.frozen(id),
                None => {
                    word.chars().for_each(|char| merger.char(char));
                    merger.end_word();
                }
            }
        }
        merger.finish();
    }
}

/// Collects ids.
struct Ids<'a> {
    ids: &'a mut Vec<u32>,
    unknown: Option<u32>,
}

impl Output for Ids<'_> {
    fn piece(&mut self, id: u32) {
        self.ids.push(id);
    }

    fn unknown(&mut self, _: char) {
        // A byte that is no piece. The tokenizers library leaves it out, unless there is a token for it.
        self.ids.extend(self.unknown);
    }
}

/// The order of merges: `left right`.
fn merges(metadata: &Metadata) -> Result<Vec<(&str, &str)>, Error> {
    const KEY: &str = "tokenizer.ggml.merges";
    let Some(Array::String(merges)) = array(metadata, KEY) else {
        return Err(missing(KEY, "an array of strings"));
    };
    let pairs = merges.iter().map(|merge| merge.split_once(' ')).collect::<Option<Vec<_>>>();
    pairs.ok_or_else(|| missing(KEY, "an array of pairs with a space between them"))
}
