//! Where a folder's two tokenizer files disagree about the same text.
//!
//! Each should do what the other does. But some are made by conversions that add a space in front of a text, or of every
//! part of it, where the original adds none; and a fine-tune may have been trained with either.

use std::fmt;

use super::{SentencepieceBpe, TokenizerFile, TokenizerFiles, metadata};
use crate::gguf::Metadata;

/// A text with different tokens by `tokenizer.model` and by `tokenizer.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The text.
    pub text: &'static str,
    /// Its tokens by the vocabulary that is used, from `tokenizer.model`.
    pub model: Vec<u32>,
    /// Its tokens by `tokenizer.json`.
    pub json: Vec<u32>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        write!(
            f,
            "tokenizer.model and tokenizer.json disagree: '{}' has the tokens {} by the first, which is used, and {} by \
             the second",
            self.text.escape_debug(),
            ids(&self.model),
            ids(&self.json)
        )
    }
}

/// Texts that tell tokenizers apart; the shortest first, because one of them is shown.
const TEXTS: [&str; 14] = [
    "Hello",
    "你好",
    " Hello",
    "  two",
    "12 345",
    "a\nb",
    "a\tb",
    "it's",
    "x  =  y[0]",
    "3.14%",
    "Ünïcödé",
    "😀🇨🇳",
    "def f(x):\n    return x\n\n",
    "The quick brown fox，快速的棕色狐狸。",
];

/// Returns a text about which the two files of a folder disagree; `chosen` is the vocabulary that was made of its
/// `tokenizer.model`. `None` if there is no such text among a few, or only one of the files can be read.
pub fn disagreement(files: &TokenizerFiles<'_>, embedding_rows: u64, chosen: &Metadata) -> Option<Disagreement> {
    files.model.as_ref()?;
    let other = TokenizerFiles { choice: Some(TokenizerFile::Json), ..files.clone() };
    // What is wrong with it does not matter: it is not used.
    let (other, _) = metadata(&other, embedding_rows).ok()?;
    let model = SentencepieceBpe::for_texts(chosen, &TEXTS).ok()?;
    let json = SentencepieceBpe::for_texts(&other, &TEXTS).ok()?;
    TEXTS.into_iter().find_map(|text| {
        let (model, json) = (model.encode(text), json.encode(text));
        (model != json).then_some(Disagreement { text, model, json })
    })
}
