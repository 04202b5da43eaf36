//! A vocabulary on its way from the model's files to GGUF.

use super::pieces::END_IDS_KEY;
use super::sentencepiece_bpe::{MERGES_KEY, PREFIX_AFTER_KEY, PREFIX_ONCE_KEY, PREFIX_UNLESS_SPACE_KEY};
use super::special::Ids;
use super::{Error, PieceType, TokenizerFiles, VocabKind, huggingface, sentencepiece};
use crate::gguf::Metadata;

/// A piece: what its id is says its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub ty: PieceType,
}

/// A vocabulary as a tokenizer file has it.
#[derive(Debug)]
pub(super) struct Draft {
    pub kind: VocabKind,
    /// llama.cpp's name for the way of splitting text.
    pub pre: &'static str,
    pub pieces: Vec<Piece>,
    /// Whether the types of the pieces are the file's own; else all are text until a list of added tokens says more.
    pub typed: bool,
    /// Pairs with a space between, for byte-level vocabularies.
    pub merges: Option<Vec<String>>,
    /// The order of merging for a sentencepiece vocabulary whose scores do not express it.
    pub own_merges: Option<Vec<String>>,
    /// Whether a space is put in front of a text; `None` where the kind has no such thing.
    pub space_prefix: Option<bool>,
    /// Whether that space belongs to the start of a text only, where the file says so.
    pub prefix_once: bool,
    /// Whether a text that starts with a space already is let be.
    pub prefix_unless_space: bool,
    /// User-defined pieces that a JSON file adds: transformers divides a text at them, and every part gets the space.
    pub prefix_after: Vec<u32>,
    pub remove_extra_whitespaces: Option<bool>,
    pub charsmap: Vec<u8>,
    /// Added tokens that the file itself lists: id, token.
    pub added: Vec<(u64, AddedToken)>,
    pub bos: Option<u64>,
    pub eos: Option<u64>,
    pub padding: Option<u64>,
    /// Whether BOS and EOS are added, where the file says so.
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
}

/// A token that a JSON file adds to a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AddedToken {
    pub text: String,
    pub special: bool,
}

/// Reads the tokenizer file: `tokenizer.model`, or `tokenizer.json` where that is missing or of another kind.
pub(super) fn read(files: &TokenizerFiles<'_>, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    match (&files.model, &files.json) {
        (Some(model), None) => sentencepiece::read(model),
        (None, Some(json)) => huggingface::read(json, warnings),
        (None, None) => Err(Error::NoTokenizer { dir: files.dir.clone() }),
        (Some(model), Some(json)) => match sentencepiece::read(model) {
            // Llama 3 ships another format under the same name.
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
    /// The id of the piece spelled like this.
    pub fn id(&self, text: &str) -> Option<u64> {
        self.pieces.iter().position(|piece| piece.text == text).map(|id| id as u64)
    }

    /// The keys of a GGUF file, in the order llama.cpp's converter writes them.
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
