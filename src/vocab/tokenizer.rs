//! The trait [`Tokenizer`]: what chat, generation and evaluation need of a model's tokenizer.

use std::collections::BTreeMap;

use super::find::FlagsById;
use super::{Flags, PieceType};
use crate::base::display::shorten;

/// Where a piece of text stands. Some tokenizers add a space before the first word of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the start of a text.
    Start,
    /// After a control token, which begins a new text for some tokenizers and not for others.
    AfterMarker,
    /// Right after other text.
    Inside,
}

/// Why text cannot be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// The text is too long.
    #[error("the text has {bytes} bytes; at most {limit} can be encoded at once")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest text that can be encoded, in bytes.
        limit: usize,
    },
    /// The model has no tokenizer, or one that cannot do this.
    #[error("the model's tokenizer cannot encode text: {0}")]
    Unable(String),
    /// The tokenizer produces a control token for plain text, even one character at a time.
    #[error(
        "the tokenizer produces the control token {id} ('{marker}') for plain text, so a message could pose as part of \
         the template"
    )]
    Marker {
        /// The control token.
        id: u32,
        /// Its text.
        marker: String,
    },
}

/// A model's tokenizer.
pub trait Tokenizer: Send + Sync {
    /// The number of tokens in the vocabulary. All ids are smaller.
    fn n_tokens(&self) -> usize;

    /// Encodes plain text: control tokens in it are not recognized, and none are added around it.
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    fn encode(&self, text: &str, place: Place) -> Result<Vec<u32>, TokenizeError>;

    /// The bytes that a token adds to a text: none for control tokens and for ids outside the vocabulary. They may be
    /// parts of characters.
    fn bytes(&self, id: u32) -> &[u8];

    /// The token as the vocabulary spells it, with `▁` for spaces; empty for ids outside the vocabulary.
    fn piece(&self, id: u32) -> &str;

    /// The type of the token.
    fn kind(&self, id: u32) -> PieceType;

    /// Returns whether the model ends its output with this token: end of text or end of turn.
    fn is_end(&self, id: u32) -> bool;

    /// The token that begins every text, if there is one.
    fn begins_with(&self) -> Option<u32>;

    /// The control tokens that a template may write, and messages may not.
    fn markers(&self) -> &Markers;
}

/// Checks that all tokens have the same text and type in both vocabularies.
///
/// # Errors
/// If they differ. The error is the first difference, in words that follow "cannot be used, because".
pub fn same_vocabulary(model: &dyn Tokenizer, other: &dyn Tokenizer) -> Result<(), String> {
    if model.n_tokens() != other.n_tokens() {
        let (n_other, n_model) = (other.n_tokens(), model.n_tokens());
        return Err(format!("it has a vocabulary of {n_other} tokens, and the model one of {n_model}"));
    }
    let piece = |tokenizer: &dyn Tokenizer, id| format!("'{}'", shorten(tokenizer.piece(id), 40));
    let kind = |tokenizer: &dyn Tokenizer, id| format!("{:?}", tokenizer.kind(id)).to_lowercase();
    for id in ids(model) {
        if model.piece(id) != other.piece(id) {
            return Err(differs(id, &piece(other, id), &piece(model, id)));
        }
        if model.kind(id) != other.kind(id) {
            return Err(differs(id, &kind(other, id), &kind(model, id)));
        }
    }
    if model.begins_with() != other.begins_with() {
        return Err("its texts begin with another token than the model's".to_string());
    }
    Ok(())
}

/// Checks that the same tokens end a text in both, which have the same vocabulary.
///
/// # Errors
/// If they differ. The error is the first difference, as in [`same_vocabulary`].
pub fn same_ends(model: &dyn Tokenizer, other: &dyn Tokenizer) -> Result<(), String> {
    let end = |tokenizer: &dyn Tokenizer, id| if tokenizer.is_end(id) { "an end token" } else { "not an end token" };
    match ids(model).find(|id| model.is_end(*id) != other.is_end(*id)) {
        Some(id) => Err(differs(id, end(other, id), end(model, id))),
        None => Ok(()),
    }
}

fn ids(tokenizer: &dyn Tokenizer) -> std::ops::Range<u32> {
    0..u32::try_from(tokenizer.n_tokens()).unwrap_or(u32::MAX)
}

fn differs(id: u32, here: &str, there: &str) -> String {
    format!("in its vocabulary token {id} is {here}, in the model's {there}")
}

/// Returns a hash of the vocabulary and of the token that begins texts. It is the same for models whose token ids have
/// the same meaning.
pub fn vocabulary_hash(tokenizer: &dyn Tokenizer) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for id in ids(tokenizer) {
        let piece = tokenizer.piece(id).as_bytes();
        hasher.update(&(piece.len() as u64).to_le_bytes());
        hasher.update(piece);
        hasher.update(format!("{:?}", tokenizer.kind(id)).as_bytes());
    }
    hasher.update(format!("{:?}", tokenizer.begins_with()).as_bytes());
    hasher.finalize()
}

/// The texts that become control tokens when a template writes them.
///
/// These are control tokens, end tokens, and user-defined tokens that look like control tokens: Yi's vocabulary lists
/// `<|im_start|>` as user-defined, next to digits and HTML tags.
#[derive(Clone, Debug, Default)]
pub struct Markers {
    // By first character, the longest first.
    by_first: BTreeMap<char, Vec<(String, u32)>>,
    ids: Vec<u32>,
    flags: FlagsById,
}

impl Markers {
    /// Collects the markers among `tokens` (id, piece, type).
    pub fn new<'a>(tokens: impl IntoIterator<Item = (u32, &'a str, PieceType)>, is_end: impl Fn(u32) -> bool) -> Self {
        let mut markers = Self::default();
        for (id, piece, kind) in tokens {
            let marker = match kind {
                PieceType::Control | PieceType::Unknown => true,
                PieceType::UserDefined => is_end(id) || looks_like_control(piece),
                PieceType::Normal | PieceType::Unused | PieceType::Byte => is_end(id),
            };
            // A single character cannot be split, so it could not be kept out of a message.
            if marker && piece.chars().nth(1).is_some() {
                let first = piece.chars().next().unwrap_or_default();
                markers.by_first.entry(first).or_default().push((piece.to_string(), id));
                markers.ids.push(id);
            }
        }
        for list in markers.by_first.values_mut() {
            list.sort_by_key(|(piece, id)| (std::cmp::Reverse(piece.len()), *id));
        }
        markers.ids.sort_unstable();
        markers
    }

    /// Adds what the tokens do to the text around them.
    pub fn with_flags(mut self, flags: FlagsById) -> Self {
        self.flags = flags;
        self
    }

    /// What a marker does to the text around it.
    pub fn flags(&self, id: u32) -> Flags {
        self.flags.get(&id).copied().unwrap_or_default()
    }

    /// Returns the longest marker at the start of `text`: its length in bytes and its id.
    pub fn at_start(&self, text: &str) -> Option<(usize, u32)> {
        let list = self.by_first.get(&text.chars().next()?)?;
        list.iter().find(|(piece, _)| text.starts_with(piece.as_str())).map(|(piece, id)| (piece.len(), *id))
    }

    /// Returns whether `id` is a marker.
    pub fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The first characters of all markers.
    pub fn first_characters(&self) -> impl Iterator<Item = char> + '_ {
        self.by_first.keys().copied()
    }

    /// The text of the marker `id`.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.by_first.values().flatten().find(|(_, i)| *i == id).map(|(piece, _)| piece.as_str())
    }
}

/// `<|...|>`, with ordinary or full-width bars.
fn looks_like_control(piece: &str) -> bool {
    let between = |open, close| piece.strip_prefix(open).is_some_and(|rest: &str| rest.ends_with(close));
    between("<|", "|>") || between("<｜", "｜>")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small vocabulary like Yi's: every character is a token. User-defined pieces are found in plain text, as in
    /// sentencepiece; control pieces are not.
    pub struct Toy {
        pieces: Vec<(&'static str, PieceType)>,
        markers: Markers,
        pub space_prefix: bool,
        pub prefix_once: bool,
        pub bos: Option<u32>,
    }

    /// The id of a character is this number plus its code point.
    pub const CHARACTERS: u32 = 100;

    /// Every byte of ASCII.
    static ASCII: [u8; 128] = {
        let mut bytes = [0; 128];
        let mut i = 0;
        while i < bytes.len() {
            bytes[i] = i as u8;
            i += 1;
        }
        bytes
    };

    impl Toy {
        pub fn new() -> Self {
            use PieceType::*;
            let pieces = vec![
                ("<unk>", Unknown),
                ("<|startoftext|>", Control),
                ("<|endoftext|>", Control),
                ("[INST]", Control),
                ("</s>", Control),
                ("<p>", UserDefined),
                ("<|im_start|>", UserDefined),
                ("<|im_end|>", UserDefined),
                ("<|im_sep|>", UserDefined),
                ("<|im_end|>x", Normal),
            ];
            let listed = pieces.iter().zip(0u32..).map(|((piece, kind), id)| (id, *piece, *kind));
            let markers = Markers::new(listed, |id| matches!(id, 2 | 7));
            Self { pieces, markers, space_prefix: false, prefix_once: false, bos: None }
        }

        /// Lets markers take whitespace.
        pub fn flag(&mut self, flags: FlagsById) {
            self.markers = std::mem::take(&mut self.markers).with_flags(flags);
        }

        /// Shows what a model reads: markers as `{7}`, text unchanged.
        pub fn show(ids: &[u32]) -> String {
            ids.iter()
                .map(|&id| match id.checked_sub(CHARACTERS) {
                    Some(c) => char::from_u32(c).unwrap().to_string(),
                    None => format!("{{{id}}}"),
                })
                .collect()
        }
    }

    impl Tokenizer for Toy {
        fn n_tokens(&self) -> usize {
            CHARACTERS as usize + 0x11_0000
        }

        fn encode(&self, text: &str, place: Place) -> Result<Vec<u32>, TokenizeError> {
            let mut ids = Vec::new();
            let begins = match place {
                Place::Start => true,
                Place::AfterMarker => !self.prefix_once,
                Place::Inside => false,
            };
            let prefix = if self.space_prefix && begins && !text.is_empty() { "▁" } else { "" };
            let text = format!("{prefix}{text}");
            let mut rest = text.as_str();
            while let Some(c) = rest.chars().next() {
                let user = self
                    .pieces
                    .iter()
                    .zip(0u32..)
                    .find(|((piece, kind), _)| matches!(kind, PieceType::UserDefined) && rest.starts_with(piece));
                let (len, id) = match user {
                    Some(((piece, _), id)) => (piece.len(), id),
                    None => (c.len_utf8(), CHARACTERS + c as u32),
                };
                ids.push(id);
                rest = &rest[len..];
            }
            Ok(ids)
        }

        fn bytes(&self, id: u32) -> &[u8] {
            match id.checked_sub(CHARACTERS) {
                // Those of ASCII are enough for the tests that look at bytes.
                Some(c) => ASCII.get(c as usize).map_or(&[], std::slice::from_ref),
                None => self.piece(id).as_bytes(),
            }
        }

        fn piece(&self, id: u32) -> &str {
            self.pieces.get(id as usize).map_or("", |(piece, _)| piece)
        }

        fn kind(&self, id: u32) -> PieceType {
            self.pieces.get(id as usize).map_or(PieceType::Normal, |(_, kind)| *kind)
        }

        fn is_end(&self, id: u32) -> bool {
            matches!(id, 2 | 7)
        }

        fn begins_with(&self) -> Option<u32> {
            self.bos
        }

        fn markers(&self) -> &Markers {
            &self.markers
        }
    }

    #[test]
    fn markers_are_control_tokens_and_what_looks_like_them() {
        let toy = Toy::new();
        let found = |text: &str| toy.markers().at_start(text);
        assert_eq!(found("<|im_end|> and more"), Some((10, 7)));
        assert_eq!(found("<|im_end|"), None);
        assert_eq!(found("</s>"), Some((4, 4)));
        assert_eq!(found("[INST] hi"), Some((6, 3)));
        assert_eq!(found("<p>"), None, "an HTML tag is text, though it is user-defined");
        assert_eq!(found(""), None);
        assert!(toy.markers().contains(8) && !toy.markers().contains(5) && !toy.markers().contains(9));
        assert_eq!(toy.markers().text(6), Some("<|im_start|>"));
    }
}
