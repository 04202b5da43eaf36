//! Texts that models are measured on, tokenized and cut into windows.
//!
//! ```text
//! text    | window 0        | window 1        | ... | rest, not read
//! window  | context  | scored     |                   the model forgets everything between windows
//!           0 .. n/2   n/2+1 .. n                     the first token that is scored follows n/2 + 1 others
//! ```
//!
//! This is how llama-perplexity cuts texts: into windows of `n` tokens that do not overlap, of which the last
//! `n - n/2 - 1` are scored. If the tokenizer puts a token before every text, that token stands before the whole text and
//! replaces the first token of each window.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::base::ending;
use crate::base::text::without_mark;
use crate::chat::{self, Prompt};
use crate::vocab::{TokenizeError, Tokenizer};

/// A text's name and its file, written `NAME=FILE`, or as `FILE`, which gets the file's name without its extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// What results call it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

impl FromStr for TextFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            // A path such as `./a=b/c.txt` has no name before it.
            Some((name, path)) if !name.contains(['/', '\\']) => (name.trim().to_string(), PathBuf::from(path)),
            _ => {
                let path = PathBuf::from(text);
                (ending::stem(&path), path)
            }
        };
        if name.is_empty() || path.as_os_str().is_empty() {
            return Err("write NAME=FILE, or FILE".to_string());
        }
        Ok(Self { name, path })
    }
}

/// Why a text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not UTF-8.
    #[error("{} is not UTF-8 text (byte {at} is invalid); save it as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is not UTF-8, counted from 0.
        at: usize,
    },
    /// It is empty, or has only white space.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
    /// It is shorter than a window.
    #[error("{} has {tokens} tokens, and a window takes {window}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Number of its tokens.
        tokens: usize,
        /// Tokens of a window.
        window: u32,
    },
    /// The tokenizer cannot encode it.
    #[error("{}: {source}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: TokenizeError,
    },
    /// Two texts have one name.
    #[error("two texts are called '{0}'")]
    SameName(String),
}

/// A text as tokens of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizedText {
    /// What results call it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
    /// Number of tokens in the whole text.
    pub n_tokens: u64,
    /// The tokens of its windows, one after the other.
    pub tokens: Vec<u32>,
}

/// How texts are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of a window.
    pub window: u32,
}

impl Cut {
    /// The default windows, which llama-perplexity also uses.
    pub const USUAL: Self = Self { window: 512 };

    /// The smallest window. Smaller ones would have hardly any context.
    pub const SMALLEST: u32 = 8;

    /// Returns how many tokens are read first. The token after them is context too: it is not scored, but the next one
    /// is.
    pub fn context(self) -> usize {
        self.window as usize / 2
    }

    /// Returns how many tokens of a window are scored.
    pub fn scored(self) -> usize {
        (self.window as usize - self.context()).saturating_sub(1)
    }

    /// Returns the number of whole windows in this many tokens.
    pub fn n_windows(self, tokens: usize) -> usize {
        tokens / self.window.max(1) as usize
    }

    /// Returns the windows of a text, each with its scored tokens.
    pub fn windows(self, text: &TokenizedText) -> impl ExactSizeIterator<Item = (&[u32], &[u32])> {
        let context = self.context();
        text.tokens.chunks_exact(self.window.max(1) as usize).map(move |window| (window, &window[context + 1..]))
    }
}

/// Reads and tokenizes the texts. Keeps at most `most` windows of each.
///
/// # Errors
/// If one cannot be read, is not text or is shorter than a window, or if two have the same name.
pub fn read(
    texts: &[TextFile],
    cut: Cut,
    most: Option<usize>,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<TokenizedText>, Error> {
    for (i, text) in texts.iter().enumerate() {
        if texts[..i].iter().any(|other| other.name == text.name) {
            return Err(Error::SameName(text.name.clone()));
        }
    }
    texts.iter().map(|text| read_one(text, cut, most, tokenizer)).collect()
}

fn read_one(text: &TextFile, cut: Cut, most: Option<usize>, tokenizer: &dyn Tokenizer) -> Result<TokenizedText, Error> {
    let path = &text.path;
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    let content = String::from_utf8(bytes)
        .map_err(|e| Error::NotText { path: path.clone(), at: e.utf8_error().valid_up_to() })?;
    let content = without_mark(content);
    if content.trim().is_empty() {
        return Err(Error::Empty(path.clone()));
    }
    let mut tokens = chat::encode(&Prompt::plain(content), tokenizer)
        .map_err(|source| Error::Encode { path: path.clone(), source })?;
    let n_tokens = tokens.len();
    let n_windows = cut.n_windows(n_tokens).min(most.unwrap_or(usize::MAX));
    if n_windows == 0 {
        return Err(Error::Short { path: path.clone(), tokens: n_tokens, window: cut.window });
    }
    tokens.truncate(n_windows * cut.window as usize);
    if let Some(first) = tokenizer.begins_with() {
        tokens.iter_mut().step_by(cut.window as usize).for_each(|token| *token = first);
    }
    Ok(TokenizedText { name: text.name.clone(), path: path.clone(), blake3, n_tokens: n_tokens as u64, tokens })
}

/// Computes the BLAKE3 hash of a text, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn hash(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_name_given_or_that_of_its_file() {
        let named = |text: &str| text.parse::<TextFile>().map(|n| (n.name, n.path.display().to_string()));
        assert_eq!(named("zh=texts/a.txt").unwrap(), ("zh".to_string(), "texts/a.txt".to_string()));
        assert_eq!(named("texts/红楼梦.txt").unwrap(), ("红楼梦".to_string(), "texts/红楼梦.txt".to_string()));
        assert_eq!(named("./a=b/c.txt").unwrap(), ("c".to_string(), "./a=b/c.txt".to_string()));
        assert!(named("=a").is_err() && named("a=").is_err() && named("").is_err());
    }

    #[test]
    fn windows_are_cut_as_llama_perplexity_cuts_them() {
        let cut = Cut { window: 512 };
        assert_eq!((cut.context(), cut.scored(), cut.n_windows(1500)), (256, 255, 2));
        let cut = Cut { window: 9 };
        assert_eq!((cut.context(), cut.scored()), (4, 4));
        let text = TokenizedText { tokens: (0..20).collect(), ..TokenizedText::default() };
        let windows: Vec<_> = cut.windows(&text).collect();
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[1], (&(9..18).collect::<Vec<u32>>()[..], &[14, 15, 16, 17][..]));
    }
}
