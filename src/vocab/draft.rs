//! A vocabulary read from a model's files, before it is written to GGUF.

use std::path::Path;

use super::byte_level_bpe::WHOLE_WORDS_KEY;
use super::find::{LSTRIP_KEY, NORMALIZED_KEY, RSTRIP_KEY, SINGLE_WORD_KEY};
use super::pieces::END_IDS_KEY;
use super::sentencepiece_bpe::{MERGES_KEY, PREFIX_AFTER_KEY, PREFIX_ONCE_KEY, PREFIX_UNLESS_SPACE_KEY};
use super::special::Ids;
use super::{Error, Flags, PieceType, TokenizerFile, TokenizerFiles, VocabKind, huggingface, sentencepiece};
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
    /// Whether a byte-level word that is a piece is used as it is, if that is not what llama.cpp does.
    pub whole_words: Option<bool>,
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
    /// Whether the file adds the space in front by a step of normalization, which tokens with the flag `normalized` go
    /// through as well.
    pub prefix_normalizes: bool,
    /// Whether the file replaces spaces by such a step, after which they are no whitespace for flags.
    pub escape_normalizes: bool,
    /// The flags of tokens that have any, by id.
    pub flags: Vec<(u32, Flags)>,
    /// User-defined pieces that are found after normalization, and for which that makes a difference.
    pub normalized: Vec<u32>,
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
    pub flags: Flags,
    /// Whether it is found after normalization. Files say so of most tokens; it matters to few: see
    /// [`Draft::normalized`].
    pub normalized: bool,
}

/// Reads the file that was chosen, or else `tokenizer.model`, or `tokenizer.json` if that is missing or has another
/// format.
pub(super) fn read(files: &TokenizerFiles<'_>, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    let missing = |file: TokenizerFile| Error::NoSuchTokenizer { dir: files.dir.clone(), file };
    match (files.choice, &files.model, &files.json) {
        (Some(TokenizerFile::Json), _, None) => Err(missing(TokenizerFile::Json)),
        (Some(TokenizerFile::Json), _, Some(json)) => huggingface::read(json, warnings),
        (Some(TokenizerFile::Model), None, _) => Err(missing(TokenizerFile::Model)),
        (Some(TokenizerFile::Model), Some(model), json) => {
            beside(sentencepiece::read(model)?, json.as_deref(), warnings)
        }
        (None, Some(model), None) => sentencepiece::read(model),
        (None, None, Some(json)) => huggingface::read(json, warnings),
        (None, None, None) => elsewhere(files, warnings),
        (None, Some(model), Some(json)) => match sentencepiece::read(model) {
            // Llama 3 ships a file of another format under this name.
            Err(Error::NotSentencepiece { why, .. }) => {
                warnings.push(format!(
                    "{} is not a sentencepiece model ({why}); using {} instead",
                    model.display(),
                    json.display()
                ));
                huggingface::read(json, warnings)
            }
            other => beside(other?, Some(json), warnings),
        },
    }
}

/// Reads a tokenizer from files of other names: sentencepiece's with the name that T5 gives it, or the two files of GPT-2's
/// kind, where the class says how they split text.
fn elsewhere(files: &TokenizerFiles<'_>, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    let found = |name: &str| Some(files.dir.join(name)).filter(|path| path.is_file());
    if let Some(model) = ["spiece.model", "sentencepiece.bpe.model"].iter().find_map(|name| found(name)) {
        return sentencepiece::read(&model);
    }
    let class =
        files.tokenizer_config.and_then(|config| config.get("tokenizer_class")).and_then(|class| class.as_str());
    let others = ["tekken.json", "vocab.json", "merges.txt", "vocab.txt", "tiktoken.model", "qwen.tiktoken"];
    let others: Vec<&'static str> = others.into_iter().filter(|name| found(name).is_some()).collect();
    match (found("vocab.json"), found("merges.txt"), class.map(|class| class.trim_end_matches("Fast"))) {
        (Some(vocab), Some(merges), Some("GPT2Tokenizer")) => {
            huggingface::of_two_files(&vocab, &merges, "gpt-2", files, warnings)
        }
        (Some(vocab), Some(merges), Some("Qwen2Tokenizer")) => {
            huggingface::of_two_files(&vocab, &merges, "qwen2", files, warnings)
        }
        _ if others.is_empty() => Err(Error::NoTokenizer { dir: files.dir.clone() }),
        _ => Err(Error::OtherTokenizer {
            dir: files.dir.clone(),
            found: others,
            class: class.map(|class| crate::base::display::shorten(class, 60)),
        }),
    }
}

/// Adds to a sentencepiece vocabulary what `tokenizer.json` says beyond it: added tokens, and whether texts begin with
/// BOS and end with EOS. Nothing else in a folder may say so: transformers 5 saves neither `added_tokens_decoder` nor
/// `add_bos_token`, and no `tokenizer.model`, which people then add from the base model.
fn beside(mut draft: Draft, json: Option<&Path>, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    let Some(json) = json else { return Ok(draft) };
    let ignored = |why: String| format!("{} is left aside: {why}", json.display());
    let more = match huggingface::extras(json) {
        Ok(more) => more,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            warnings.push(ignored(format!("{error}{cause}")));
            return Ok(draft);
        }
    };
    // Where its pieces are others, its ids mean nothing here.
    let added = |id: u64| more.added.iter().any(|(other, _)| *other == id);
    let other = |(id, text): &(u64, String)| draft.pieces.get(*id as usize).is_some_and(|piece| piece.text != *text);
    if let Some((id, text)) = more.pieces.iter().find(|piece| other(piece) && !added(piece.0)) {
        let here = &draft.pieces[*id as usize].text;
        warnings.push(ignored(format!(
            "it is of another vocabulary: token {id} is '{text}' in it, and '{here}' in tokenizer.model"
        )));
        return Ok(draft);
    }
    draft.added = more.added;
    draft.add_bos = more.adds.map(|(before, _)| before);
    draft.add_eos = more.adds.map(|(_, after)| after);
    Ok(draft)
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
        // The tokenizers library cuts a text at added tokens wherever the space goes; transformers' older code for
        // sentencepiece does only where every part gets one.
        let divides = !self.prefix_once || !self.typed;
        if self.space_prefix == Some(true) && divides && !self.prefix_after.is_empty() {
            metadata.set(PREFIX_AFTER_KEY, self.prefix_after);
        }
        if self.prefix_unless_space {
            metadata.set(PREFIX_UNLESS_SPACE_KEY, true);
        }
        type Has = fn(&Flags) -> bool;
        let flags: [(&str, Has); 3] = [
            (LSTRIP_KEY, |flags| flags.lstrip),
            (RSTRIP_KEY, |flags| flags.rstrip),
            (SINGLE_WORD_KEY, |flags| flags.single_word),
        ];
        for (key, has) in flags {
            let ids: Vec<u32> = self.flags.iter().filter(|(_, flags)| has(flags)).map(|(id, _)| *id).collect();
            if !ids.is_empty() {
                metadata.set(key, ids);
            }
        }
        if !self.normalized.is_empty() {
            metadata.set(NORMALIZED_KEY, self.normalized);
        }
        if let Some(whole) = self.whole_words {
            metadata.set(WHOLE_WORDS_KEY, whole);
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
