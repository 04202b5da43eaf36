//! Filling in gaps: the tokens that models are trained with for that, and their order.
//!
//! ```text
//! <reponame>project <filename>NAME text ... <filename>current <fim_prefix>before <fim_suffix>after <fim_middle>
//! └─ other files, if the vocabulary has tokens for them ────┘
//! ```
//!
//! The order is that of llama.cpp's server. Names of tokens: <https://arxiv.org/abs/2305.06161>, StarCoder.

use crate::chat;
use crate::gguf::Metadata;
use crate::serve::protocol::Infill;
use crate::vocab::{Place, TokenizeError, Tokenizer};

/// The tokens of a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FillIn {
    before: u32,
    after: u32,
    gap: u32,
    /// Begins a list of files.
    project: Option<u32>,
    /// Begins a file.
    file: Option<u32>,
}

/// Keys of the metadata, and pieces, in the order in which they are looked for.
const BEFORE: (&[&str], &[&str]) =
    (&["fim_pre", "prefix"], &["<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>", "<PRE>", "▁<PRE>"]);
const AFTER: (&[&str], &[&str]) =
    (&["fim_suf", "suffix"], &["<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>", "<SUF>", "▁<SUF>"]);
const GAP: (&[&str], &[&str]) =
    (&["fim_mid", "middle"], &["<fim_middle>", "<|fim_middle|>", "<fim-middle>", "<MID>", "▁<MID>"]);
const PROJECT: (&[&str], &[&str]) = (&["fim_rep"], &["<reponame>", "<|repo_name|>", "<|fim_repo|>", "<fim-repo>"]);
const FILE: (&[&str], &[&str]) = (&["fim_sep"], &["<|file_sep|>", "<filename>"]);

impl FillIn {
    /// Finds the tokens of a vocabulary; `None` if it lacks one that is needed.
    pub fn find(metadata: &Metadata, tokenizer: &dyn Tokenizer) -> Option<Self> {
        let n = u32::try_from(tokenizer.n_tokens()).unwrap_or(u32::MAX);
        let find = |(keys, pieces): (&[&str], &[&str])| {
            let id = |key: &&str| metadata.u64(&format!("tokenizer.ggml.{key}_token_id"));
            let listed = keys.iter().find_map(id).and_then(|id| u32::try_from(id).ok()).filter(|id| *id < n);
            listed.or_else(|| pieces.iter().find_map(|piece| (0..n).find(|id| tokenizer.piece(*id) == *piece)))
        };
        let (before, after, gap) = (find(BEFORE)?, find(AFTER)?, find(GAP)?);
        Some(Self { before, after, gap, project: find(PROJECT), file: find(FILE) })
    }

    /// Encodes a gap.
    ///
    /// # Errors
    /// If the tokenizer cannot encode one of the texts.
    pub fn encode(&self, infill: &Infill, tokenizer: &dyn Tokenizer) -> Result<Vec<u32>, TokenizeError> {
        let mut tokens = Vec::from_iter(tokenizer.begins_with());
        let mut push = |token: Option<u32>, text: &str| {
            tokens.extend(token);
            self.encode_text(text, tokenizer, &mut tokens)
        };
        if !infill.files.is_empty() {
            if self.project.is_some() {
                push(self.project, "project\n")?;
            }
            for (name, text) in &infill.files {
                match self.file {
                    Some(_) => push(self.file, &format!("{name}\n{text}"))?,
                    None => push(None, &format!("\n\n--- snippet ---\n\n{text}"))?,
                }
            }
            if self.file.is_some() {
                push(self.file, "current\n")?;
            }
        }
        push(Some(self.before), &infill.prefix)?;
        push(Some(self.after), &infill.suffix)?;
        push(Some(self.gap), &infill.begun)?;
        Ok(tokens)
    }

    /// Encodes a text in which none of the tokens occurs: where it spells one, it is cut.
    fn encode_text(&self, text: &str, tokenizer: &dyn Tokenizer, tokens: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let needed = [self.before, self.after, self.gap];
        let all = needed.into_iter().chain(self.project).chain(self.file);
        let pieces: Vec<&str> = all.map(|id| tokenizer.piece(id)).filter(|piece| !piece.is_empty()).collect();
        let mut from = 0;
        for (at, c) in text.char_indices() {
            if pieces.iter().any(|piece| text[at..].starts_with(piece)) {
                let cut = at + c.len_utf8();
                tokens.extend(chat::encode_text(&text[from..cut], Place::Inside, tokenizer)?);
                from = cut;
            }
        }
        tokens.extend(chat::encode_text(&text[from..], Place::Inside, tokenizer)?);
        Ok(())
    }
}
