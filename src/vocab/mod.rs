//! Tokenizers: converts Hugging Face files to GGUF metadata, and text to token ids.
//!
//! ```text
//! tokenizer.model, or tokenizer.json ─┐
//! tokenizer_config.json               │
//! special_tokens_map.json             ├─► metadata() ─► tokenizer.ggml.* ─► SentencepieceBpe: text ─► ids
//! added_tokens.json                   │                                └──► Pieces:    ids ──► bytes
//! config.json, generation_config.json ┘
//! ```
//!
//! [`Tokenizer`] is the trait through which the other modules use a model's tokenizer. [`SentencepieceBpe`] is nibble's
//! own implementation for sentencepiece vocabularies, which Yi has, [`ByteLevelBpe`] that for byte-level ones whose way
//! of splitting text it knows; the others are left to llama.cpp.
//!
//! # What the metadata says
//!
//! | key, after `tokenizer.ggml.` | from |
//! |---|---|
//! | `model`, `pre` | `llama` for sentencepiece's byte-pair encoding, `t5` for its unigram model, `gpt2` for byte-level encoding; `pre` names llama.cpp's way of splitting text for the last |
//! | `tokens`, `scores`, `token_type`, `merges` | the pieces in the model file |
//! | `add_space_prefix`, `remove_extra_whitespaces`, `precompiled_charsmap` | the model file's normalizer |
//! | `{bos,eos,unknown,padding}_token_id` | `tokenizer_config.json`, then `special_tokens_map.json`, then `config.json`, then the model file |
//! | `eot_token_id`, `eom_token_id` | the marker with which the chat template ends a turn, else what `generation_config.json` adds to EOS |
//! | `fim_*_token_id` | pieces for filling in the middle of a text, found by their text |
//! | `add_bos_token`, `add_eos_token` | `tokenizer_config.json`; if it does not say, the default of its class, or the post-processor of `tokenizer.json` |
//!
//! and `tokenizer.chat_template`. Some keys are nibble's own, for what GGUF cannot express. They are written only if
//! needed:
//!
//! | key, after `nibble.tokenizer.` | |
//! |---|---|
//! | `end_token_ids` | end tokens beyond EOS, EOT and EOM |
//! | `space_prefix_once` | a space is added only at the start of a text, not after a control piece |
//! | `space_prefix_after` | ids of user-defined pieces after which a space is added, as at the start of a text |
//! | `space_prefix_unless_space` | no space is added to a text that starts with one |
//! | `merges` | the order of merges, if scores cannot express it |
//! | `ignore_merges` | whether a byte-level word that is a piece is used as it is, if llama.cpp would do otherwise |
//! | `lstrip`, `rstrip` | ids of added tokens that take the whitespace in front of them, or after them |
//! | `single_word` | ids of added tokens that are not found inside a word |
//! | `normalized` | ids of added tokens that are found after normalization: where that adds a space in front, only after one |
//! | `file` | `tokenizer.json`, if that was chosen although there is a `tokenizer.model` |
//!
//! # Types of pieces
//!
//! A piece in the model file keeps its type, whatever a JSON file says. The reason is Yi: its chat markers, digits,
//! punctuation and HTML tags are user-defined pieces, which are found in plain text before any merging. A JSON file
//! that lists some of them as "special" does not change how the model was trained. There are two exceptions, for pieces
//! that a fine-tune uses for something new:
//!
//! - an added token whose text differs from the piece with its id renames that piece, which becomes a control piece if
//!   the token is special, and a user-defined one otherwise;
//! - the same happens to an unused piece, or a normal one spelled like a marker (`<...>` or `[...]`), that is listed
//!   under its own text.
//!
//! Formats: <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>,
//! <https://huggingface.co/docs/tokenizers>, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod added;
mod byte_level_bpe;
mod disagreement;
mod draft;
mod error;
mod find;
mod huggingface;
#[cfg(all(test, feature = "llama"))]
mod llama_oracle;
mod merge;
mod normalize;
mod pieces;
mod pretokenizers;
mod sentencepiece;
mod sentencepiece_bpe;
mod special;
mod split;
mod templates;
pub(crate) mod tokenizer;
mod trie;

use std::path::{Path, PathBuf};

pub use byte_level_bpe::ByteLevelBpe;
pub use disagreement::{Disagreement, disagreement};
pub use error::Error;
pub use find::{Flags, FlagsById, flags};
use pieces::MAX_PIECES;
pub use pieces::{PieceType, Pieces, VocabKind};
pub use sentencepiece_bpe::SentencepieceBpe;
pub use tokenizer::{Markers, Place, TokenizeError, Tokenizer, same_ends, same_vocabulary, vocabulary_hash};

use crate::gguf::Metadata;

/// nibble's own key for the tokenizer file that was chosen.
pub const CHOICE_KEY: &str = "nibble.tokenizer.file";

/// A JSON object.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// A tokenizer file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerFile {
    /// `tokenizer.model`, of the sentencepiece library.
    Model,
    /// `tokenizer.json`, of the tokenizers library.
    Json,
}

impl TokenizerFile {
    /// The file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "tokenizer.model",
            Self::Json => "tokenizer.json",
        }
    }
}

/// What a model's folder says about its tokenizer.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// The model's folder, for messages, and for what else it may have.
    pub dir: PathBuf,
    /// `tokenizer.model`, if it exists.
    pub model: Option<PathBuf>,
    /// `tokenizer.json`, if it exists. Used if there is no `tokenizer.model`, or that file has another format. Beside a
    /// `tokenizer.model`, it says which tokens were added, and whether texts begin with BOS.
    pub json: Option<PathBuf>,
    /// Which of the two to take the vocabulary from, if the user has chosen.
    pub choice: Option<TokenizerFile>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a Object>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a Object>,
    /// `added_tokens.json`.
    pub added_tokens: Option<&'a Object>,
    /// `config.json`.
    pub config: Option<&'a Object>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a Object>,
    /// The chat template, from whichever file has it.
    pub chat_template: Option<&'a str>,
}

/// Returns the tokenizer keys of a GGUF file for a model whose embedding has `embedding_rows` rows, and warnings for
/// the user: sentences in lower case.
///
/// Every row gets a token: rows without a piece are named `[PAD<id>]` and marked unused. Added tokens without a row are
/// left out with a warning, because the model cannot read them.
///
/// # Errors
/// If there is no tokenizer, a file cannot be read or is not valid, the tokenizer does something that GGUF or llama.cpp
/// does not support, or the embedding has too few rows.
pub fn metadata(files: &TokenizerFiles<'_>, embedding_rows: u64) -> Result<(Metadata, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let template = templates::choose(files, &mut warnings);
    let files = &TokenizerFiles { chat_template: template.as_deref(), ..files.clone() };
    let mut draft = draft::read(files, &mut warnings)?;
    spaces(&mut draft, files);
    added::add(&mut draft, files, embedding_rows, &mut warnings)?;
    let ids = special::find(&draft, files, &mut warnings)?;
    let mut metadata = draft.into_metadata(&ids, files.chat_template);
    // Only a choice against the default, so that a folder can be converted again in the same way.
    if files.choice == Some(TokenizerFile::Json) && files.model.is_some() {
        metadata.set(CHOICE_KEY, TokenizerFile::Json.name());
    }
    Ok((metadata, warnings))
}

/// Applies what `tokenizer_config.json` says about the space in front of a text. It can remove the space but not add
/// one: a model such as Yi was trained without it, whatever value transformers writes there by default.
fn spaces(draft: &mut draft::Draft, files: &TokenizerFiles<'_>) {
    let flag = |key: &str| files.tokenizer_config.and_then(|config| config.get(key)?.as_bool());
    // The new behavior of transformers for sentencepiece, and the only one that version 5 has unless it is told
    // otherwise: no space after a control piece.
    let once = match flag("legacy") {
        Some(legacy) => !legacy,
        None => saved_by_transformers_5(files),
    };
    if draft.typed && draft.space_prefix == Some(true) {
        draft.space_prefix = Some(flag("add_prefix_space") != Some(false));
        draft.prefix_once = once;
    } else if !draft.typed && draft.kind == VocabKind::Sentencepiece && rebuilds_spaces(files) {
        // Version 5 does not use this part of tokenizer.json, but makes it anew.
        draft.space_prefix = Some(flag("add_prefix_space") != Some(false));
        draft.prefix_once = once;
        draft.prefix_unless_space = draft.space_prefix == Some(true);
        draft.prefix_normalizes = false;
        draft.escape_normalizes = false;
    }
}

/// Whether version 5 of transformers, or a later one, saved `tokenizer_config.json`.
fn saved_by_transformers_5(files: &TokenizerFiles<'_>) -> bool {
    let backend = files.tokenizer_config.and_then(|config| config.get("backend"));
    backend.and_then(serde_json::Value::as_str) == Some("tokenizers")
}

/// Whether the class that reads the folder decides where a space is added, whatever `tokenizer.json` says.
///
/// Source: transformers 5.24, `models/llama/tokenization_llama.py`.
fn rebuilds_spaces(files: &TokenizerFiles<'_>) -> bool {
    let class = files.tokenizer_config.and_then(|config| config.get("tokenizer_class"));
    let class = class.and_then(serde_json::Value::as_str).unwrap_or_default();
    saved_by_transformers_5(files) && matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast")
}

/// Reads a whole file of at most `limit` bytes.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let n_bytes = file.metadata().map_err(io)?.len();
    if n_bytes > limit {
        return Err(Error::TooLarge { path: path.to_path_buf(), n_bytes, limit });
    }
    let mut bytes = Vec::new();
    // The size of a pipe is not known in advance, so the limit is applied again.
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
