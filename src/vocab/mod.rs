//! Tokenizers: from Hugging Face files to GGUF metadata, and from text to token ids.
//!
//! ```text
//! tokenizer.model, or tokenizer.json ─┐
//! tokenizer_config.json               │
//! special_tokens_map.json             ├─► metadata() ─► tokenizer.ggml.* ─► SentencepieceBpe: text ─► ids
//! added_tokens.json                   │                                └──► Pieces:    ids ──► bytes
//! config.json, generation_config.json ┘
//! ```
//!
//! # What the metadata says
//!
//! | key, after `tokenizer.ggml.` | from |
//! |---|---|
//! | `model`, `pre` | `llama` for sentencepiece's byte-pair encoding, `t5` for its unigram model, `gpt2` for byte-level encoding; `pre` names llama.cpp's way of splitting text for the last |
//! | `tokens`, `scores`, `token_type`, `merges` | the pieces, as the model file has them |
//! | `add_space_prefix`, `remove_extra_whitespaces`, `precompiled_charsmap` | the model file's normalizer |
//! | `{bos,eos,unknown,padding}_token_id` | `tokenizer_config.json`, then `special_tokens_map.json`, then `config.json`, then the model file |
//! | `eot_token_id`, `eom_token_id` | the marker that the chat template ends a turn with, else what `generation_config.json` adds to EOS |
//! | `fim_*_token_id` | the texts of pieces that mark where a text is to be filled in |
//! | `add_bos_token`, `add_eos_token` | `tokenizer_config.json`; where it is silent, what its class does, or the post-processor of `tokenizer.json` |
//!
//! and `tokenizer.chat_template`. Some keys are nibble's own, for what GGUF cannot say, and written only where needed:
//!
//! | key, after `nibble.tokenizer.` | |
//! |---|---|
//! | `end_token_ids` | end tokens beyond EOS, EOT and EOM |
//! | `space_prefix_once` | the space in front belongs to the start of a text only, not to what follows a control piece |
//! | `space_prefix_after` | ids of user-defined pieces after which the text begins anew, with a space in front |
//! | `space_prefix_unless_space` | a text that starts with a space gets no other in front |
//! | `merges` | the order of merging, where no scores express it |
//!
//! # Types of pieces
//!
//! A piece that the model file has keeps the type it has there, whatever a JSON file says of it. Yi is why: its chat
//! markers, digits, punctuation and HTML tags are user-defined pieces, found in plain text before any merging, and a
//! JSON file that lists some of them as "special" does not change how the model was trained. There are two exceptions,
//! both of pieces that a fine-tune put to a new use:
//!
//! - an added token with another text than the piece of its id renames it, and is then a control piece where it is
//!   special, else a user-defined one;
//! - an unused piece, or a normal one spelled like a marker (`<...>` or `[...]`), that is listed under its own text is
//!   treated likewise.
//!
//! Formats: <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>,
//! <https://huggingface.co/docs/tokenizers>, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod added;
mod draft;
mod error;
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
pub(crate) mod tokenizer;
mod trie;

use std::path::{Path, PathBuf};

pub use error::Error;
use pieces::MAX_PIECES;
pub use pieces::{PieceType, Pieces, VocabKind};
pub use sentencepiece_bpe::SentencepieceBpe;
pub use tokenizer::{Markers, Place, TokenizeError, Tokenizer, same_ends, same_vocabulary, vocabulary_hash};

use crate::gguf::Metadata;

/// A JSON object.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// What a model's folder says about its tokenizer.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// The folder, for messages.
    pub dir: PathBuf,
    /// `tokenizer.model`, where it is there.
    pub model: Option<PathBuf>,
    /// `tokenizer.json`, where it is there. Used where there is no `tokenizer.model`, or that file is of another kind.
    pub json: Option<PathBuf>,
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
    /// The chat template, wherever the folder has it.
    pub chat_template: Option<&'a str>,
}

/// The tokenizer keys of a GGUF file for a model whose embedding has `embedding_rows` rows, and what the user should
/// know: sentences, in lower case.
///
/// Every row gets a token: those without a piece are called `[PAD<id>]` and marked unused. Added tokens without a row
/// are left out with a warning, since the model cannot take them.
///
/// # Errors
/// When there is no tokenizer, a file cannot be read or is broken, the tokenizer does something that GGUF or llama.cpp
/// does not, or the embedding has too few rows for its text.
pub fn metadata(files: &TokenizerFiles<'_>, embedding_rows: u64) -> Result<(Metadata, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let mut draft = draft::read(files, &mut warnings)?;
    spaces(&mut draft, files);
    added::add(&mut draft, files, embedding_rows, &mut warnings)?;
    let ids = special::find(&draft, files, &mut warnings)?;
    Ok((draft.into_metadata(&ids, files.chat_template), warnings))
}

/// What `tokenizer_config.json` says about the space in front of a text. It can take the space away but not give one: a
/// model such as Yi was trained without, whatever value transformers writes there by default.
fn spaces(draft: &mut draft::Draft, files: &TokenizerFiles<'_>) {
    let flag = |key: &str| files.tokenizer_config.and_then(|config| config.get(key)?.as_bool());
    if draft.typed && draft.space_prefix == Some(true) {
        draft.space_prefix = Some(flag("add_prefix_space") != Some(false));
        // transformers' new behaviour for sentencepiece: no space after a control piece.
        draft.prefix_once = flag("legacy") == Some(false);
    }
}

/// Reads a whole file that should be small.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let n_bytes = file.metadata().map_err(io)?.len();
    if n_bytes > limit {
        return Err(Error::TooLarge { path: path.to_path_buf(), n_bytes, limit });
    }
    let mut bytes = Vec::new();
    // The limit holds even where the size is not known beforehand, as for a pipe.
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
