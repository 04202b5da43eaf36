//! [`SentencepieceBpe`]: encodes and decodes text exactly like the sentencepiece library.

use std::collections::HashSet;

use super::find::{self, Finder, Fragment, NORMALIZED_KEY};
use super::merge::{Candidate, MergeTable, Merger, Output, check_length};
use super::normalize::{CharsMap, Normalizer, SPACE};
use super::pieces::{array, missing};
use super::trie::Trie;
use super::{Error, PieceType, Pieces, VocabKind};
use crate::gguf::{Array, Metadata};

/// nibble's own keys for what GGUF cannot express: see [`super`].
pub(super) const PREFIX_ONCE_KEY: &str = "nibble.tokenizer.space_prefix_once";
pub(super) const PREFIX_AFTER_KEY: &str = "nibble.tokenizer.space_prefix_after";
pub(super) const PREFIX_UNLESS_SPACE_KEY: &str = "nibble.tokenizer.space_prefix_unless_space";
pub(super) const MERGES_KEY: &str = "nibble.tokenizer.merges";

/// The table of replacements.
const CHARSMAP_KEY: &str = "tokenizer.ggml.precompiled_charsmap";

/// The most text in all prefix trees together, in bytes. They take about twenty times that in memory. Known
/// vocabularies have kilobytes.
const MAX_TRIE_BYTES: usize = 16 << 20;

/// The tokenizer of a sentencepiece vocabulary with byte-pair encoding, such as Yi's.
///
/// Plain text gets the same ids as in sentencepiece: user-defined pieces are found first, the longest that matches, and
/// are never merged; text that no piece spells becomes bytes. A control piece spelled in plain text is plain text.
///
/// Read from a GGUF file, and used by the [`Tokenizer`](super::Tokenizer) of a loaded model.
pub struct SentencepieceBpe {
    pieces: Pieces,
    normalizer: Normalizer,
    /// Whether only the first part of a text gets the space in front, not the parts after control pieces.
    prefix_once: bool,
    user_defined: Trie,
    /// Pieces that split plain text into parts.
    dividers: Finder,
    /// Those, the control pieces and the unknown piece, which split text from a template.
    markers: Finder,
    /// Pieces that are found in normalized text.
    normalized: Finder,
    table: MergeTable,
    /// The piece for each byte of text that no other piece spells.
    bytes: Box<[Option<u32>; 256]>,
}

impl SentencepieceBpe {
    /// Reads the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// If [`Pieces::from_metadata`] fails, the vocabulary is not a sentencepiece one ([`Error::NoEncoder`]; llama.cpp
    /// has tokenizers for the others), scores are missing, too few or not numbers, a piece is too long for merging,
    /// there is neither an unknown piece nor all byte pieces, or the replacement table is not valid.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        Self::of_pieces(metadata, |_| true)
    }

    /// Like [`Self::from_metadata`], but only for these texts, of which it makes what the whole tokenizer makes. It is made in
    /// a fraction of the time, because few pieces consist of their characters.
    ///
    /// # Errors
    /// As [`Self::from_metadata`].
    pub(super) fn for_texts(metadata: &Metadata, texts: &[&str]) -> Result<Self, Error> {
        let chars: HashSet<char> = texts.iter().flat_map(|text| text.chars()).chain([SPACE]).collect();
        // A table of replacements may make other characters of them.
        let is_replaced = metadata.get(CHARSMAP_KEY).is_some();
        Self::of_pieces(metadata, |piece| is_replaced || piece.chars().all(|c| chars.contains(&c)))
    }

    /// Makes a tokenizer that merges only the wanted pieces.
    fn of_pieces(metadata: &Metadata, is_wanted: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let pieces = Pieces::from_metadata(metadata)?;
        if pieces.kind() != VocabKind::Sentencepiece {
            return Err(Error::NoEncoder { kind: pieces.kind().name() });
        }
        let scores = scores(metadata, pieces.len())?;
        let merges = merges(metadata)?;
        let (mut user_defined, mut dividers, mut markers) = (Trie::default(), Finder::default(), Finder::default());
        let mut trie_bytes = 0;
        let mut count = |text: &str, id| {
            check_length(text, id)?;
            trie_bytes += text.len();
            if trie_bytes > MAX_TRIE_BYTES { Err(Error::LongPieces { limit: MAX_TRIE_BYTES }) } else { Ok(()) }
        };
        let flags = find::flags(metadata);
        let flags_of = |id: u32| flags.get(&id).copied().unwrap_or_default();
        let space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let normalized_ids: HashSet<u32> = find::ids(metadata, NORMALIZED_KEY).iter().copied().collect();
        let mut normalized = Finder::default();
        let prefix_unless_space = metadata.bool(PREFIX_UNLESS_SPACE_KEY).unwrap_or(false);
        // What normalization makes of such a piece.
        let normal_prefix = if space_prefix && !prefix_unless_space { "▁" } else { "" };
        let is_user_defined = |id: &u32| pieces.piece_type(*id) == Some(PieceType::UserDefined);
        let mut dividing: Vec<u32> = find::ids(metadata, PREFIX_AFTER_KEY).to_vec();
        // A token that acts on the text around it is found before that text is encoded.
        dividing.extend(flags.keys().filter(|id| is_user_defined(id)));
        dividing.sort_unstable();
        dividing.dedup();
        for id in dividing.into_iter().filter(|id| !normalized_ids.contains(id)) {
            let text = pieces.text(id).unwrap_or_default();
            for finder in [&mut dividers, &mut markers] {
                count(text, id)?;
                finder.insert(text, id, flags_of(id));
            }
        }
        let mut bytes = Box::new([None; 256]);
        let mut candidates = Vec::with_capacity(pieces.len());
        for (id, score) in (0..).zip(scores) {
            let (Some(text), Some(ty)) = (pieces.text(id), pieces.piece_type(id)) else { break };
            match ty {
                PieceType::Byte => bytes[usize::from(pieces.bytes(id)[0])] = Some(id),
                PieceType::Control | PieceType::Unknown => {
                    count(text, id)?;
                    markers.insert(text, id, flags_of(id));
                }
                PieceType::UserDefined => {
                    let escaped = text.replace(' ', "▁");
                    count(&escaped, id)?;
                    if normalized_ids.contains(&id) {
                        normalized.insert(&format!("{normal_prefix}{escaped}"), id, flags_of(id));
                    } else if !flags_of(id).single_word {
                        user_defined.insert(&escaped, id);
                        // A table of replacements must not see it as other text.
                        user_defined.insert(text, id);
                    }
                }
                PieceType::Normal | PieceType::Unused => {}
            }
            let merged = match ty {
                PieceType::Normal => true,
                // These are found before merging, or they are other text.
                PieceType::UserDefined => !flags_of(id).single_word && !normalized_ids.contains(&id),
                // Padding rows of the embedding are not in sentencepiece's file.
                PieceType::Unused => text != padding_text(u64::from(id)),
                PieceType::Byte | PieceType::Control | PieceType::Unknown => false,
            };
            if merged {
                check_length(text, id)?;
                if is_wanted(text) {
                    candidates.push(Candidate { id, text, score, ty });
                }
            }
        }
        if pieces.unknown().is_none() && bytes.contains(&None) {
            return Err(Error::NoFallback);
        }
        let merges = merges.map(|merges| -> Vec<_> {
            merges.into_iter().filter(|(left, right)| is_wanted(left) && is_wanted(right)).collect()
        });
        let table = MergeTable::new(pieces.len() as u32, &candidates, merges.as_deref());
        Ok(Self {
            normalizer: Normalizer {
                space_prefix,
                prefix_unless_space,
                remove_extra_whitespaces: metadata.bool("tokenizer.ggml.remove_extra_whitespaces").unwrap_or(false),
                charsmap: charsmap(metadata)?,
            },
            prefix_once: metadata.bool(PREFIX_ONCE_KEY).unwrap_or(false),
            pieces,
            user_defined,
            dividers,
            markers,
            normalized,
            table,
            bytes,
        })
    }

    /// The vocabulary: the bytes of ids, end tokens, and so on.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Encodes plain text, without BOS or EOS. The text of a control piece, such as `</s>`, is plain text here.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_divided(text, &self.dividers, true, &mut ids);
        ids
    }

    /// Encodes plain text that follows a control piece. [`Self::encode_special`] returns the same ids for text in that
    /// place.
    pub fn encode_after_marker(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_divided(text, &self.dividers, !self.prefix_once, &mut ids);
        ids
    }

    /// Encodes text in which control pieces are recognized, such as the output of a chat template. Adds neither BOS nor
    /// EOS.
    ///
    /// Not for untrusted text, which could spell control pieces.
    pub fn encode_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.encode_divided(text, &self.markers, true, &mut ids);
        ids
    }

    /// Encodes text that is split at `markers`. `prefix` says whether the first part begins a text, and so gets the
    /// space in front.
    fn encode_divided(&self, text: &str, markers: &Finder, mut prefix: bool, ids: &mut Vec<u32>) {
        markers.split(text, |part| match part {
            Fragment::Text(text) => self.encode_part(text, prefix, ids),
            Fragment::Token(id) => {
                ids.push(id);
                prefix = !self.prefix_once;
            }
        });
    }

    /// Encodes a whole text, with BOS and EOS if the model expects them.
    pub fn encode_document(&self, text: &str) -> Vec<u32> {
        let mut ids: Vec<u32> = self.pieces.bos().filter(|_| self.pieces.add_bos()).into_iter().collect();
        self.encode_divided(text, &self.dividers, true, &mut ids);
        ids.extend(self.pieces.eos().filter(|_| self.pieces.add_eos()));
        ids
    }

    fn encode_part(&self, text: &str, space_prefix: bool, ids: &mut Vec<u32>) {
        let text = self.normalizer.normalize(text, &self.user_defined, space_prefix);
        let mut merger = Merger::new(&self.table, Ids { tokenizer: self, ids, after_unknown: false });
        self.normalized.split(&text, |part| match part {
            Fragment::Text(text) => self.merge(text, &mut merger),
            Fragment::Token(id) => merger.frozen(id),
        });
        merger.finish();
    }

    /// Merges normalized text.
    fn merge(&self, mut text: &str, merger: &mut Merger<'_, Ids<'_>>) {
        while let Some(char) = text.chars().next() {
            match self.user_defined.longest_prefix(text.as_bytes()) {
                Some((id, len)) => {
                    merger.frozen(id);
                    text = &text[len..];
                }
                None => {
                    merger.char(char);
                    text = &text[char.len_utf8()..];
                }
            }
        }
    }

    /// Decodes ids. This is the inverse of [`Self::encode`] for text without `▁` and without control pieces, except for
    /// what the normalizer changes. The space that encoding adds in front is removed, and invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        let mut at_start = self.normalizer.space_prefix;
        for &id in ids {
            let printed = self.pieces.bytes(id);
            let ty = self.pieces.piece_type(id);
            // Control pieces are not text, so the text begins after them.
            if at_start && matches!(ty, Some(PieceType::Normal | PieceType::UserDefined)) {
                bytes.extend_from_slice(printed.strip_prefix(b" ").unwrap_or(printed));
            } else {
                bytes.extend_from_slice(printed);
            }
            at_start &= printed.is_empty();
        }
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// The text of the padding piece for a row of the embedding without a piece.
pub(super) fn padding_text(id: u64) -> String {
    format!("[PAD{id}]")
}

/// Collects ids.
struct Ids<'a> {
    tokenizer: &'a SentencepieceBpe,
    ids: &'a mut Vec<u32>,
    /// Whether the last id is the unknown piece: a run of unknown characters becomes one piece.
    after_unknown: bool,
}

impl Output for Ids<'_> {
    fn piece(&mut self, id: u32) {
        self.ids.push(id);
        self.after_unknown = false;
    }

    fn unknown(&mut self, char: char) {
        let tokenizer = self.tokenizer;
        let mut buffer = [0; 4];
        let bytes = char.encode_utf8(&mut buffer).bytes();
        let start = self.ids.len();
        for byte in bytes {
            match tokenizer.bytes[usize::from(byte)] {
                Some(id) => self.ids.push(id),
                None => {
                    self.ids.truncate(start);
                    // `from_metadata` has checked that there is an unknown piece if any byte is missing.
                    self.ids.extend(tokenizer.pieces.unknown().filter(|_| !self.after_unknown));
                    self.after_unknown = true;
                    return;
                }
            }
        }
        self.after_unknown = false;
    }
}

fn scores(metadata: &Metadata, n: usize) -> Result<Vec<f32>, Error> {
    const KEY: &str = "tokenizer.ggml.scores";
    match array(metadata, KEY) {
        Some(Array::F32(scores)) if scores.len() == n && !scores.iter().any(|score| score.is_nan()) => {
            Ok(scores.clone())
        }
        Some(Array::I32(scores)) if scores.len() == n => Ok(scores.iter().map(|&score| score as f32).collect()),
        _ => Err(Error::Metadata { key: KEY, wanted: format!("an array of {n} 32-bit numbers") }),
    }
}

/// nibble's own list of merges: `left right`, as in `tokenizer.ggml.merges`.
fn merges(metadata: &Metadata) -> Result<Option<Vec<(&str, &str)>>, Error> {
    match metadata.get(MERGES_KEY).map(|value| value.as_array()) {
        None => Ok(None),
        Some(Some(Array::String(merges))) => {
            let pairs = merges.iter().map(|merge| merge.split_once(' ')).collect::<Option<Vec<_>>>();
            pairs.map(Some).ok_or_else(|| missing(MERGES_KEY, "an array of pairs with a space between them"))
        }
        Some(_) => Err(missing(MERGES_KEY, "an array of strings")),
    }
}

fn charsmap(metadata: &Metadata) -> Result<Option<CharsMap>, Error> {
    const KEY: &str = CHARSMAP_KEY;
    let signed;
    let bytes = match metadata.get(KEY).map(|value| value.as_array()) {
        None => return Ok(None),
        Some(Some(Array::U8(bytes))) => bytes,
        Some(Some(Array::I8(bytes))) => {
            signed = bytes.iter().map(|&byte| byte as u8).collect();
            &signed
        }
        Some(_) => return Err(missing(KEY, "an array of bytes")),
    };
    if bytes.is_empty() {
        return Ok(None);
    }
    CharsMap::new(bytes).map(Some).map_err(|why| Error::CharsMap { why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::merge::MAX_MERGED_BYTES;

    use PieceType::{Byte, Control, Normal, Unknown, Unused, UserDefined};

    fn vocabulary(pieces: &[(&str, f32, PieceType)]) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("tokenizer.ggml.model", "llama");
        metadata.set("tokenizer.ggml.tokens", pieces.iter().map(|piece| piece.0.to_string()).collect::<Vec<_>>());
        metadata.set("tokenizer.ggml.scores", pieces.iter().map(|piece| piece.1).collect::<Vec<_>>());
        metadata.set("tokenizer.ggml.token_type", pieces.iter().map(|piece| piece.2 as i32).collect::<Vec<_>>());
        metadata.set("tokenizer.ggml.add_space_prefix", false);
        metadata
    }

    const LETTERS: [(&str, f32, PieceType); 9] = [
        ("<unk>", 0.0, Unknown),
        ("<s>", 0.0, Control),
        ("</s>", 0.0, Control),
        ("▁", -9.0, Normal),
        ("a", -9.0, Normal),
        ("b", -9.0, Normal),
        ("ab", -2.0, Normal),
        ("▁a", -1.0, Normal),
        ("aba", -3.0, Normal),
    ];

    fn tokenizer(change: impl FnOnce(&mut Metadata)) -> SentencepieceBpe {
        let mut metadata = vocabulary(&LETTERS);
        change(&mut metadata);
        SentencepieceBpe::from_metadata(&metadata).unwrap()
    }

    fn error(change: impl FnOnce(&mut Metadata)) -> String {
        let mut metadata = vocabulary(&LETTERS);
        change(&mut metadata);
        match SentencepieceBpe::from_metadata(&metadata) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_highest_score_is_merged_first_and_the_leftmost_of_equals() {
        let tokenizer = tokenizer(|_| {});
        assert_eq!(tokenizer.encode(" ab"), [7, 5]);
        assert_eq!(tokenizer.encode("abab"), [6, 6]);
        assert_eq!(tokenizer.encode("aba"), [8]);
        assert_eq!(tokenizer.encode("ababa"), [6, 8], "'ab' twice, then what is left over");
        assert_eq!(tokenizer.encode(""), [0u32; 0]);
    }

    #[test]
    fn a_run_of_unknown_characters_is_one_unknown_piece() {
        let tokenizer = tokenizer(|_| {});
        assert_eq!(tokenizer.encode("零一a零 b万"), [0, 4, 0, 3, 5, 0]);
    }

    #[test]
    fn the_text_of_a_control_piece_is_text_unless_a_template_wrote_it() {
        let tokenizer = tokenizer(|_| {});
        assert_eq!(tokenizer.encode("<s>a"), [0, 4]);
        assert_eq!(tokenizer.encode_special("<s>a</s></s>b"), [1, 4, 2, 2, 5]);
        assert_eq!(tokenizer.encode_special("a<s"), [4, 0]);
    }

    #[test]
    fn the_space_in_front_follows_the_rules_of_the_file() {
        let prefix = |keys: &[&str]| {
            tokenizer(|m| {
                m.set("tokenizer.ggml.add_space_prefix", true);
                keys.iter().for_each(|key| m.set(*key, true));
            })
        };
        let always = prefix(&[]);
        assert_eq!(always.encode("a"), [7]);
        assert_eq!(always.encode(" a"), [3, 7]);
        assert_eq!(always.encode_special("<s>a</s>a"), [1, 7, 2, 7]);
        assert_eq!(always.decode(&[7, 7]), "a a");
        assert_eq!(always.decode(&[1, 7]), "a", "a control piece is no text");
        assert_eq!(prefix(&[PREFIX_ONCE_KEY]).encode_special("a</s>a"), [7, 2, 4]);
        assert_eq!(prefix(&[PREFIX_ONCE_KEY]).encode_special("<s>a"), [1, 4]);
        assert_eq!(prefix(&[PREFIX_ONCE_KEY]).encode_after_marker("a"), [4]);
        assert_eq!(prefix(&[PREFIX_ONCE_KEY]).encode("a"), [7]);
        assert_eq!(always.encode_after_marker("a"), [7]);
        assert_eq!(prefix(&[PREFIX_UNLESS_SPACE_KEY]).encode(" a"), [7]);
    }

    #[test]
    fn added_tokens_begin_a_text_anew_where_the_file_says_so() {
        let mut pieces = LETTERS.to_vec();
        pieces.push(("<x>", 0.0, UserDefined));
        let mut metadata = vocabulary(&pieces);
        metadata.set("tokenizer.ggml.add_space_prefix", true);
        let ids = |metadata: &Metadata| SentencepieceBpe::from_metadata(metadata).unwrap().encode("<x>a");
        assert_eq!(ids(&metadata), [3, 9, 4], "sentencepiece's own pieces do not");
        metadata.set(PREFIX_AFTER_KEY, vec![9u32, 77]);
        assert_eq!(ids(&metadata), [9, 7]);
    }

    #[test]
    fn user_defined_pieces_are_found_longest_first_and_never_merged() {
        let mut pieces = LETTERS.to_vec();
        pieces.extend([("▁▁", 0.0, UserDefined), ("▁▁▁", 0.0, UserDefined), ("b!", 0.0, UserDefined)]);
        let tokenizer = SentencepieceBpe::from_metadata(&vocabulary(&pieces)).unwrap();
        assert_eq!(tokenizer.encode("     a"), [10, 9, 4]);
        assert_eq!(tokenizer.encode("ab!a"), [4, 11, 4]);
        assert_eq!(tokenizer.decode(&[10, 11]), "   b!");
    }

    #[test]
    fn unused_pieces_fall_apart_again() {
        let mut pieces = LETTERS.to_vec();
        pieces[6].2 = Unused;
        let tokenizer = SentencepieceBpe::from_metadata(&vocabulary(&pieces)).unwrap();
        assert_eq!(tokenizer.encode("ab零"), [4, 5, 0]);
        assert_eq!(tokenizer.encode("aba"), [8], "but may be steps on the way");
    }

    #[test]
    fn rows_without_a_piece_are_not_found_in_text() {
        let mut pieces = LETTERS.to_vec();
        pieces.extend([("[PAD9]", 0.0, Unused), ("[PAD", -1.0, Normal), ("9]", -1.0, Normal)]);
        let tokenizer = SentencepieceBpe::from_metadata(&vocabulary(&pieces)).unwrap();
        assert!(tokenizer.table.can_spell(8) && !tokenizer.table.can_spell(9));
        assert!(tokenizer.encode("[PAD9]").iter().all(|&id| id != 9));
    }

    #[test]
    fn spaces_are_dropped_where_the_file_says_so() {
        let tokenizer = tokenizer(|m| m.set("tokenizer.ggml.remove_extra_whitespaces", true));
        assert_eq!(tokenizer.encode("  a   b  "), [4, 3, 5]);
        assert_eq!(tokenizer.encode("   "), [0u32; 0]);
    }

    #[test]
    fn own_merges_replace_scores() {
        let tokenizer = tokenizer(|m| m.set(MERGES_KEY, vec!["a b".to_string(), "x y".to_string()]));
        assert_eq!(tokenizer.encode(" aba"), [3, 6, 4]);
    }

    #[test]
    fn bytes_stand_for_what_no_piece_spells() {
        let names: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let mut pieces = LETTERS.to_vec();
        pieces.extend(names.iter().map(|name| (name.as_str(), 0.0, Byte)));
        let tokenizer = SentencepieceBpe::from_metadata(&vocabulary(&pieces)).unwrap();
        assert_eq!(tokenizer.encode("é\n"), [9 + 0xc3, 9 + 0xa9, 9 + 0x0a]);
        assert_eq!(tokenizer.decode(&[9 + 0xc3, 9 + 0xa9, 9 + 0xff, 4]), "é\u{fffd}a");
    }

    #[test]
    fn refuses_what_would_not_work() {
        assert!(error(|m| m.set("tokenizer.ggml.model", "gpt2")).contains("'gpt2'"));
        assert!(error(|m| drop(m.remove("tokenizer.ggml.scores"))).contains("scores"));
        assert!(error(|m| m.set("tokenizer.ggml.scores", vec![0f32; 8])).contains("array of 9"));
        assert!(error(|m| m.set("tokenizer.ggml.scores", vec![f32::NAN; 9])).contains("scores"));
        assert!(error(|m| m.set("tokenizer.ggml.token_type", vec![1i32; 9])).contains("neither an unknown piece"));
        assert!(error(|m| m.set("tokenizer.ggml.precompiled_charsmap", vec![1u8])).contains("header"));
        assert!(error(|m| m.set("tokenizer.ggml.precompiled_charsmap", vec![9u8; 8])).contains("ends past"));
        assert!(error(|m| m.set("tokenizer.ggml.precompiled_charsmap", "x")).contains("array of bytes"));
        assert!(error(|m| m.set(MERGES_KEY, vec!["ab".to_string()])).contains("pairs"));
        assert!(error(|m| m.set(MERGES_KEY, 1u32)).contains("array of strings"));
        let long = "a".repeat(MAX_MERGED_BYTES + 1);
        let mut pieces = LETTERS.to_vec();
        pieces[8].0 = &long;
        for ty in [Normal, Control, UserDefined, Unused] {
            pieces[8].2 = ty;
            let refused = SentencepieceBpe::from_metadata(&vocabulary(&pieces));
            assert!(matches!(refused, Err(Error::LongPiece { id: 8, .. })), "{ty:?}");
        }
        let many: Vec<String> = (0..MAX_TRIE_BYTES / 1000 + 1).map(|i| format!("{i:01000}")).collect();
        pieces.truncate(8);
        pieces.extend(many.iter().map(|text| (text.as_str(), 0.0, UserDefined)));
        assert!(matches!(SentencepieceBpe::from_metadata(&vocabulary(&pieces)), Err(Error::LongPieces { .. })));
    }

    #[test]
    fn a_megabyte_of_one_character_is_no_trouble() {
        // Anything quadratic would take hours here.
        let tokenizer = tokenizer(|_| {});
        assert_eq!(tokenizer.encode(&"ab".repeat(1 << 19)).len(), 1 << 19);
        assert_eq!(tokenizer.encode(&"a".repeat(1 << 20)).len(), 1 << 20);
        assert_eq!(tokenizer.encode(&"零".repeat(1 << 20)), [0]);
    }
}
