//! A vocabulary read from a model's files, before it is written to GGUF.

use super::pieces::END_IDS_KEY;
use super::sentencepiece_bpe::{MERGES_KEY, PREFIX_AFTER_KEY, PREFIX_ONCE_KEY, PREFIX_UNLESS_SPACE_KEY};
use super::special::Ids;
use super::{Error, PieceType, TokenizerFiles, VocabKind, huggingface, sentencepiece};
use crate::gguf::Metadata;

/// A piece. Its index is its id.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub ty: PieceType,
}

/// A vocabulary from a tokenizer file.
#[derive(Debug)]
pub(super) struct Draft {
    pub kind: VocabKind,
    /// llama.cpp's name of the pre-tokenizer.
    pub pre: &'static str,
    pub pieces: Vec<Piece>,
    /// Whether the file states the types of the pieces. Otherwise all are text, unless they are listed as added tokens.
    pub typed: bool,
    /// The merges of byte-level vocabularies: two texts with a space between them.
    pub merges: Option<Vec<String>>,
    /// The merges of a sentencepiece vocabulary whose scores do not express their order.
    pub own_merges: Option<Vec<String>>,
    /// Whether a space is added in front of a text; `None` if the kind of vocabulary has no such option.
    pub space_prefix: Option<bool>,
    /// Whether that space is added only at the start of a text.
    pub prefix_once: bool,
    /// Whether no space is added to a text that starts with one.
    pub prefix_unless_space: bool,
    /// User-defined pieces that a JSON file adds. transformers splits text at them, and adds the space to every part.
    pub prefix_after: Vec<u32>,
    pub remove_extra_whitespaces: Option<bool>,
    pub charsmap: Vec<u8>,
    /// The added tokens in this file, by id.
    pub added: Vec<(u64, AddedToken)>,
    pub bos: Option<u64>,
    pub eos: Option<u64>,
    pub padding: Option<u64>,
    /// Whether BOS and EOS are added to texts, if the file says.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

/// A token that a JSON file adds to a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AddedToken {
    pub text: String,
    pub special: bool,
}

/// Reads `tokenizer.model`, or `tokenizer.json` if that is missing or has another format.
pub(super) fn read(files: &TokenizerFiles<'_>, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    match (&files.model, &files.json) {
        (Some(model), None) => sentencepiece::read(model),
        (None, Some(json)) => huggingface::read(json, warnings),
        (None, None) => Err(Error::NoTokenizer { dir: files.dir.clone() }),
        (Some(model), Some(json)) => match sentencepiece::read(model) {
            // Llama 3 ships a file of another format under this name.
            Err(Error::NotSentencepiece { why, .. }) => {
                warnings.push(format!(
                    "{} is not a sentencepiece model ({why}); using {} instead",
                    model.display(),
                    json.display()
                ));
                huggingface::read(json, warnings)
            }
            other => other,
        },
    }
}

impl Draft {
    /// Returns the id of the piece with this text.
    pub fn id(&self, text: &str) -> Option<u64> {
        self.pieces.iter().position(|piece| piece.text == text).map(|id| id as u64)
    }

    /// Returns the keys of a GGUF file, in the order in which llama.cpp's converter writes them.
    pub fn into_metadata(self, ids: &Ids, chat_template: Option<&str>) -> Metadata {
        let mut metadata = Metadata::new();
        let mut set = |key: &str, value: crate::gguf::Value| metadata.set(format!("tokenizer.ggml.{key}"), value);
        set("model", self.kind.name().into());
        set("pre", self.pre.into());
        let scored = self.kind != VocabKind::ByteLevel;
        let scores: Vec<f32> = self.pieces.iter().map(|piece| piece.score).collect();
        let types: Vec<i32> = self.pieces.iter().map(|piece| piece.ty as i32).collect();
        set("tokens", self.pieces.into_iter().map(|piece| piece.text).collect::<Vec<_>>().into());
        if scored {
            set("scores", scores.into());
        }
        set("token_type", types.into());
        if let Some(merges) = self.merges {
            set("merges", merges.into());
        }
        for (key, id) in [
            ("bos", ids.bos),
            ("eos", ids.eos),
            ("eot", ids.eot),
            ("eom", ids.eom),
            ("unknown", ids.unknown),
            ("padding", ids.padding),
        ] {
            if let Some(id) = id {
                set(&format!("{key}_token_id"), id.into());
            }
        }
        for (key, id) in &ids.fill_in {
            set(&format!("{key}_token_id"), (*id).into());
        }
        set("add_bos_token", ids.add_bos.into());
        set("add_eos_token", ids.add_eos.into());
        if let Some(prefix) = self.space_prefix {
            set("add_space_prefix", prefix.into());
        }
        if let Some(remove) = self.remove_extra_whitespaces {
            set("remove_extra_whitespaces", remove.into());
        }
        if !self.charsmap.is_empty() {
            set("precompiled_charsmap", self.charsmap.into());
        }
        if !ids.more_ends.is_empty() {
            metadata.set(END_IDS_KEY, ids.more_ends.clone());
        }
        if self.prefix_once {
            metadata.set(PREFIX_ONCE_KEY, true);
        }
        if self.space_prefix == Some(true) && !self.prefix_once && !self.prefix_after.is_empty() {
            metadata.set(PREFIX_AFTER_KEY, self.prefix_after);
        }
        if self.prefix_unless_space {
            metadata.set(PREFIX_UNLESS_SPACE_KEY, true);
        }
        if let Some(merges) = self.own_merges {
            metadata.set(MERGES_KEY, merges);
        }
        if let Some(template) = chat_template {
            metadata.set("tokenizer.chat_template", template);
        }
        metadata
    }
}
