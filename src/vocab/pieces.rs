//! The vocabulary in a GGUF file: the bytes of each id, and the ids with a special meaning.

use super::Error;
use super::normalize::SPACE;
use crate::gguf::{Array, Metadata};

/// The most pieces in a vocabulary: twenty times as many as the largest known one has.
pub(super) const MAX_PIECES: usize = 1 << 22;

/// The type of a piece, numbered as in sentencepiece's model files and in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum PieceType {
    /// Text.
    Normal = 1,
    /// Stands for text that no piece spells. At most one in a vocabulary.
    Unknown = 2,
    /// Has a meaning to programs, such as the end of a text. Never found in plain text.
    Control = 3,
    /// Text that is always one piece, and is found before any merging.
    UserDefined = 4,
    /// An id that no text uses.
    Unused = 5,
    /// One byte of text that no piece spells: `<0x0A>`.
    Byte = 6,
}

impl PieceType {
    /// The type with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// How a vocabulary splits text into pieces: `tokenizer.ggml.model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabKind {
    /// `llama`: sentencepiece's byte-pair encoding, as in Yi and Llama 2.
    Sentencepiece,
    /// `t5`: sentencepiece's unigram model.
    Unigram,
    /// `gpt2`: byte-pair encoding over bytes written as characters, as in Llama 3.
    ByteLevel,
}

impl VocabKind {
    /// The name in GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sentencepiece => "llama",
            Self::Unigram => "t5",
            Self::ByteLevel => "gpt2",
        }
    }
}

/// The pieces of a vocabulary, and the ids with a special meaning.
///
/// Can be read from any GGUF file that nibble can run. To encode text, see [`super::SentencepieceBpe`].
#[derive(Clone, Debug)]
pub struct Pieces {
    kind: VocabKind,
    texts: Vec<String>,
    types: Vec<PieceType>,
    /// The bytes that every piece prints, one after the other.
    printed: Vec<u8>,
    /// Where the bytes of each piece end.
    ends: Vec<usize>,
    /// Ids in the order of their texts.
    sorted: Vec<u32>,
    special: SpecialIds,
}

#[derive(Clone, Debug, Default)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    end: Vec<u32>,
}

/// Tokens that end a turn or a text in every vocabulary that has them as control or user-defined pieces. Files made by
/// other programs often name only one end token, or the wrong one.
const END_TEXTS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
];

/// nibble's own key for end tokens that GGUF has no key for: an array of ids.
pub(super) const END_IDS_KEY: &str = "nibble.tokenizer.end_token_ids";

impl Pieces {
    /// Reads the vocabulary of a GGUF file. Special ids outside the vocabulary are ignored, as in llama.cpp.
    ///
    /// # Errors
    /// If keys are missing or have the wrong type or different lengths, the kind of vocabulary is unknown, a piece
    /// occurs twice (which makes llama.cpp end the process), or a byte piece does not name a byte.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let kind = match metadata.str("tokenizer.ggml.model") {
            Some("llama") => VocabKind::Sentencepiece,
            Some("t5") => VocabKind::Unigram,
            Some("gpt2") => VocabKind::ByteLevel,
            Some(other) => return Err(Error::UnknownKind { found: other.to_string() }),
            None => return Err(missing("tokenizer.ggml.model", "a string")),
        };
        let Some(Array::String(texts)) = array(metadata, TOKENS) else {
            return Err(missing(TOKENS, "an array of strings"));
        };
        if texts.len() > MAX_PIECES {
            return Err(Error::TooManyPieces { found: texts.len() as u64 });
        }
        let types = piece_types(metadata, texts.len())?;
        let sorted = sort(texts)?;
        let mut pieces = Self {
            kind,
            texts: texts.clone(),
            types,
            printed: Vec::new(),
            ends: Vec::with_capacity(texts.len()),
            sorted,
            special: SpecialIds::default(),
        };
        for id in 0..texts.len() {
            pieces.print(id)?;
            pieces.ends.push(pieces.printed.len());
        }
        pieces.special = pieces.find_special(metadata);
        Ok(pieces)
    }

    /// Appends the bytes that piece `id` prints.
    fn print(&mut self, id: usize) -> Result<(), Error> {
        let text = &self.texts[id];
        match self.types[id] {
            PieceType::Byte => {
                let byte = byte_of(text).ok_or_else(|| Error::BadByte { id: id as u32, piece: text.clone() })?;
                self.printed.push(byte);
            }
            PieceType::Control | PieceType::Unused => {}
            // Sentencepiece shows this for text that was lost.
            PieceType::Unknown => self.printed.extend_from_slice(" ⁇ ".as_bytes()),
            PieceType::UserDefined if self.kind == VocabKind::ByteLevel => {
                self.printed.extend_from_slice(text.as_bytes());
            }
            PieceType::Normal if self.kind == VocabKind::ByteLevel => match byte_level(text) {
                Some(bytes) => self.printed.extend(bytes),
                // Not written in the byte alphabet, so it stands for itself.
                None => self.printed.extend_from_slice(text.as_bytes()),
            },
            PieceType::Normal | PieceType::UserDefined => {
                self.printed.extend_from_slice(text.replace(SPACE, " ").as_bytes());
            }
        }
        Ok(())
    }

    fn find_special(&self, metadata: &Metadata) -> SpecialIds {
        let id = |key: &str| {
            let id = metadata.u64(&format!("tokenizer.ggml.{key}_token_id"))?;
            u32::try_from(id).ok().filter(|&id| (id as usize) < self.texts.len())
        };
        // llama.cpp defaults to 1 and 2 for sentencepiece. Used only if these are control pieces.
        let control =
            |id: u32| (self.kind == VocabKind::Sentencepiece && self.is_type(id, PieceType::Control)).then_some(id);
        let unknown = || self.types.iter().position(|&ty| ty == PieceType::Unknown).map(|id| id as u32);
        let eos = id("eos").or_else(|| control(2));
        let mut end: Vec<u32> = [eos, id("eot"), id("eom")].into_iter().flatten().collect();
        if let Some(Array::U32(more)) = array(metadata, END_IDS_KEY) {
            end.extend(more.iter().filter(|&&id| (id as usize) < self.texts.len()));
        }
        // A normal piece with such a text is plain text, such as an HTML tag.
        end.extend(
            END_TEXTS
                .iter()
                .filter_map(|text| self.id(text))
                .filter(|&id| self.is_type(id, PieceType::Control) || self.is_type(id, PieceType::UserDefined)),
        );
        end.sort_unstable();
        end.dedup();
        let pre = metadata.str("tokenizer.ggml.pre").unwrap_or_default();
        // As in llama.cpp, these add a BOS unless the file says no.
        let add_bos = self.kind == VocabKind::Sentencepiece || matches!(pre, "llama-bpe" | "llama3" | "tekken");
        SpecialIds {
            bos: id("bos").or_else(|| control(1)),
            eos,
            eot: id("eot"),
            unknown: id("unknown").filter(|&id| self.is_type(id, PieceType::Unknown)).or_else(unknown),
            padding: id("padding"),
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token").unwrap_or(add_bos),
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token").unwrap_or(self.kind == VocabKind::Unigram),
            end,
        }
    }

    /// How the vocabulary splits text into pieces.
    pub fn kind(&self) -> VocabKind {
        self.kind
    }

    /// The number of pieces.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns whether there are no pieces.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The piece as the vocabulary spells it, such as `▁the` or `<0x0A>`; `None` for ids outside it.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    /// The type of a piece; `None` for ids outside the vocabulary.
    pub fn piece_type(&self, id: u32) -> Option<PieceType> {
        self.types.get(id as usize).copied()
    }

    fn is_type(&self, id: u32, ty: PieceType) -> bool {
        self.piece_type(id) == Some(ty)
    }

    /// Returns the id of the piece with this text.
    pub fn id(&self, text: &str) -> Option<u32> {
        let at = self.sorted.binary_search_by(|&id| self.texts[id as usize].as_str().cmp(text)).ok()?;
        Some(self.sorted[at])
    }

    /// The bytes that a piece prints: its text with spaces for `▁`, the byte of a byte piece, nothing for control and
    /// unused pieces and for ids outside the vocabulary. They may be parts of characters; see `chat::Utf8Stream`.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.printed[start..end]
    }

    /// The token that begins a text, if the model has one. [`Self::add_bos`] says whether texts should have it.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token that ends a turn of a conversation, if it is known and differs from EOS.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// The token that stands for text that no piece spells.
    pub fn unknown(&self) -> Option<u32> {
        self.special.unknown
    }

    /// The token that pads sequences to a common length.
    pub fn padding(&self) -> Option<u32> {
        self.special.padding
    }

    /// Returns whether the model expects BOS before every text. Yi does not.
    pub fn add_bos(&self) -> bool {
        self.special.add_bos && self.special.bos.is_some()
    }

    /// Returns whether the model expects EOS after every text.
    pub fn add_eos(&self) -> bool {
        self.special.add_eos && self.special.eos.is_some()
    }

    /// Returns whether generation ends with this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.special.end.binary_search(&id).is_ok()
    }

    /// All tokens that end generation, in ascending order.
    pub fn end_ids(&self) -> &[u32] {
        &self.special.end
    }
}

const TOKENS: &str = "tokenizer.ggml.tokens";

pub(super) fn array<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a Array> {
    metadata.get(key)?.as_array()
}

pub(super) fn missing(key: &'static str, wanted: &'static str) -> Error {
    Error::Metadata { key, wanted: wanted.to_string() }
}

/// Reads the types of `n` pieces; all are normal if the file does not say.
fn piece_types(metadata: &Metadata, n: usize) -> Result<Vec<PieceType>, Error> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let wanted = || Error::Metadata { key: KEY, wanted: format!("an array of {n} 32-bit integers from 1 to 6") };
    match metadata.get(KEY) {
        None => Ok(vec![PieceType::Normal; n]),
        Some(value) => match value.as_array() {
            Some(Array::I32(types)) if types.len() == n => {
                // llama.cpp ignores pieces of the undefined type 0, which has the same effect as unused.
                let ty = |&number| if number == 0 { Some(PieceType::Unused) } else { PieceType::from_number(number) };
                types.iter().map(ty).collect::<Option<_>>().ok_or_else(wanted)
            }
            _ => Err(wanted()),
        },
    }
}

/// Returns the ids sorted by text. Refuses texts that occur twice.
fn sort(texts: &[String]) -> Result<Vec<u32>, Error> {
    let mut sorted: Vec<u32> = (0..texts.len() as u32).collect();
    sorted.sort_by(|&a, &b| texts[a as usize].cmp(&texts[b as usize]));
    for (&first, &second) in sorted.iter().zip(sorted.iter().skip(1)) {
        let piece = &texts[first as usize];
        if *piece == texts[second as usize] {
            return Err(Error::Duplicate { piece: piece.clone(), first, second });
        }
    }
    Ok(sorted)
}

/// Returns the byte that a byte piece such as `<0x0A>` stands for.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (digits.len() == 2 && digits.bytes().all(upper)).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Returns the bytes of a piece in a byte-level vocabulary; `None` if a character is not in its alphabet.
///
/// GPT-2 writes a byte that is a printable character of Latin-1 as that character, and the other 68 in order as the
/// characters from U+0100: a space is `Ġ`, a line feed `Ċ`.
pub(super) fn byte_level(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_level_byte).collect()
}

/// Returns the character that a byte is written as: see [`byte_level`].
pub(super) fn byte_level_char(byte: u8) -> char {
    static ALPHABET: std::sync::OnceLock<[char; 256]> = std::sync::OnceLock::new();
    let alphabet = ALPHABET.get_or_init(|| {
        let mut others = (0x100..).filter_map(char::from_u32);
        std::array::from_fn(|byte| match byte as u8 {
            byte if is_printable_latin1(byte) => char::from(byte),
            _ => others.next().unwrap_or_default(),
        })
    });
    alphabet[usize::from(byte)]
}

fn is_printable_latin1(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

fn byte_level_byte(char: char) -> Option<u8> {
    let code = u32::from(char);
    match u8::try_from(code) {
        Ok(byte) => is_printable_latin1(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|&byte| !is_printable_latin1(byte)).nth(code.checked_sub(0x100)? as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(kind: &str, pieces: &[(&str, i32)]) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("tokenizer.ggml.model", kind);
        metadata.set(TOKENS, pieces.iter().map(|(text, _)| text.to_string()).collect::<Vec<_>>());
        metadata.set("tokenizer.ggml.token_type", pieces.iter().map(|&(_, ty)| ty).collect::<Vec<_>>());
        metadata
    }

    #[test]
    fn prints_every_type_of_piece() {
        let pieces = [("<unk>", 2), ("<s>", 3), ("▁a▁b", 1), ("<0xE9>", 6), ("▁▁", 4), ("[PAD5]", 5)];
        let pieces = Pieces::from_metadata(&metadata("llama", &pieces)).unwrap();
        let printed: Vec<&[u8]> = (0..7).map(|id| pieces.bytes(id)).collect();
        assert_eq!(printed, [" ⁇ ".as_bytes(), b"", b" a b", b"\xe9", b"  ", b"", b""]);
        assert_eq!((pieces.id("▁▁"), pieces.id("▁"), pieces.text(2)), (Some(4), None, Some("▁a▁b")));
    }

    #[test]
    fn prints_the_bytes_of_a_byte_level_vocabulary() {
        let pieces = [("ĠHello", 1), ("Ċ", 1), ("<|eot_id|>", 3), ("é¡", 1), ("Ġ▁", 4), ("▁x", 1), ("ŃĀ", 1)];
        let pieces = Pieces::from_metadata(&metadata("gpt2", &pieces)).unwrap();
        let printed: Vec<&[u8]> = (0..7).map(|id| pieces.bytes(id)).collect();
        assert_eq!(printed, [b" Hello", &b"\n"[..], b"", b"\xe9\xa1", "Ġ▁".as_bytes(), "▁x".as_bytes(), b"\xad\x00"]);
        assert_eq!(pieces.end_ids(), [2]);
    }

    #[test]
    fn the_byte_alphabet_has_every_byte_once() {
        let alphabet: Vec<u8> = (0..0x400).filter_map(char::from_u32).filter_map(byte_level_byte).collect();
        let mut sorted = alphabet.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        assert!((0..=255).all(|byte| byte_level_byte(byte_level_char(byte)) == Some(byte)));
    }

    #[test]
    fn refuses_a_vocabulary_that_is_not_whole() {
        let error = |metadata: &Metadata| Pieces::from_metadata(metadata).unwrap_err().to_string();
        assert!(error(&Metadata::new()).contains("tokenizer.ggml.model"));
        assert!(error(&metadata("rwkv", &[])).contains("'rwkv'"));
        let mut no_tokens = metadata("llama", &[]);
        no_tokens.remove(TOKENS);
        assert!(error(&no_tokens).contains(TOKENS));
        assert!(error(&metadata("llama", &[("a", 7)])).contains("token_type"));
        let mut short = metadata("llama", &[("a", 1), ("b", 1)]);
        short.set("tokenizer.ggml.token_type", vec![1i32]);
        assert!(error(&short).contains("array of 2"));
        let twice = error(&metadata("llama", &[("a", 1), ("b", 1), ("a", 3)]));
        assert!(twice.contains("'a'") && twice.contains('0') && twice.contains('2'), "{twice}");
        assert!(error(&metadata("llama", &[("<0x0a>", 6)])).contains("<0x0a>"));
    }

    #[test]
    fn ends_are_all_those_the_file_names_and_those_every_file_means() {
        let pieces =
            [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<|im_end|>", 4), ("<EOT>", 1), ("x", 1), ("<|eom_id|>", 3)];
        let mut metadata = metadata("llama", &pieces);
        let ends = |metadata: &Metadata| Pieces::from_metadata(metadata).unwrap().end_ids().to_vec();
        assert_eq!(ends(&metadata), [2, 3, 6]);
        metadata.set("tokenizer.ggml.eos_token_id", 5u32);
        assert_eq!(ends(&metadata), [3, 5, 6]);
        metadata.set(END_IDS_KEY, vec![4u32, 99]);
        metadata.set("tokenizer.ggml.eot_token_id", 4_000_000_000u32);
        assert_eq!(ends(&metadata), [3, 4, 5, 6]);
    }
}
