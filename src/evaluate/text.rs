//! Texts that models are measured on, cut into windows.
//!
//! ```text
//! text    | window 0        | window 1        | ... | rest, not read
//! window  | context  | scored     |                   the model starts anew with each window
//!           0 .. n/2   n/2+1 .. n                     the first token that is scored follows n/2 + 1 others
//! ```
//!
//! As llama-perplexity cuts them: windows of `n` tokens that do not overlap, of which the last `n - n/2 - 1` are scored. Where
//! the tokenizer puts a token before every text, it stands before the whole text, and in place of the first token of each
//! window.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::chat::{self, Prompt};
use crate::vocab::{TokenizeError, Tokenizer};

/// A text's name and its file, as typed: `NAME=FILE`, or `FILE`, whose name is then that of the file without its ending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What results call it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = match text.split_once('=') {
            // A path such as `./a=b/c.txt` has no name before it.
            Some((name, path)) if !name.contains(['/', '\\']) => (name.trim().to_string(), PathBuf::from(path)),
            _ => {
                let path = PathBuf::from(text);
                (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)
            }
        };
        if name.is_empty() || path.as_os_str().is_empty() {
            return Err("has to be NAME=FILE, or FILE".to_string());
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
    #[error("{} is not UTF-8 text (byte {at} is none); save it as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is none.
        at: usize,
    },
    /// It holds nothing.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
    /// It is shorter than a window.
    #[error(
        "{} has {tokens} tokens, and a window takes {window}; give a longer text, or a smaller --window", path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Its tokens.
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
    #[error("two texts are called '{0}'; give them names, as in --text {0}-2=FILE")]
    SameName(String),
}

/// A text in a model's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// What results call it.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
    /// Tokens in all of it.
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
    /// The smallest window: one of less has hardly anything to go by.
    pub const SMALLEST: u32 = 8;

    /// Tokens before the last one that is context only.
    pub fn context(self) -> usize {
        self.window as usize / 2
    }

    /// Tokens of a window that are scored.
    pub fn scored(self) -> usize {
        (self.window as usize - self.context()).saturating_sub(1)
    }

    /// Windows in so many tokens.
    pub fn n_windows(self, tokens: usize) -> usize {
        tokens / self.window.max(1) as usize
    }

    /// The windows of a text, and of each the tokens that are scored.
    pub fn windows(self, text: &Text) -> impl ExactSizeIterator<Item = (&[u32], &[u32])> {
        let context = self.context();
        text.tokens.chunks_exact(self.window.max(1) as usize).map(move |window| (window, &window[context + 1..]))
    }
}

/// Reads the texts, and makes tokens of them; at most `most` windows of each.
///
/// # Errors
/// Where one cannot be read, is no text, is shorter than a window, or two have one name.
pub fn read(texts: &[Named], cut: Cut, most: Option<usize>, codec: &dyn Tokenizer) -> Result<Vec<Text>, Error> {
    for (i, text) in texts.iter().enumerate() {
        if texts[..i].iter().any(|other| other.name == text.name) {
            return Err(Error::SameName(text.name.clone()));
        }
    }
    texts.iter().map(|text| read_one(text, cut, most, codec)).collect()
}

fn read_one(text: &Named, cut: Cut, most: Option<usize>, codec: &dyn Tokenizer) -> Result<Text, Error> {
    let path = &text.path;
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    let content = String::from_utf8(bytes)
        .map_err(|e| Error::NotText { path: path.clone(), at: e.utf8_error().valid_up_to() })?;
    if content.trim().is_empty() {
        return Err(Error::Empty(path.clone()));
    }
    let mut tokens =
        chat::encode(&Prompt::plain(content), codec).map_err(|source| Error::Encode { path: path.clone(), source })?;
    let n_tokens = tokens.len();
    let n_windows = cut.n_windows(n_tokens).min(most.unwrap_or(usize::MAX));
    if n_windows == 0 {
        return Err(Error::Short { path: path.clone(), tokens: n_tokens, window: cut.window });
    }
    tokens.truncate(n_windows * cut.window as usize);
    if let Some(first) = codec.begins_with() {
        tokens.iter_mut().step_by(cut.window as usize).for_each(|token| *token = first);
    }
    Ok(Text { name: text.name.clone(), path: path.clone(), blake3, n_tokens: n_tokens as u64, tokens })
}

/// Whether a file of a text is that of which the hash is known.
///
/// # Errors
/// Where it cannot be read.
pub fn is_text(path: &Path, hash: &str) -> Result<bool, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(blake3::hash(&bytes).to_hex().as_str() == hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_named_or_called_by_its_file() {
        let named = |text: &str| text.parse::<Named>().map(|n| (n.name, n.path.display().to_string()));
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
        let text = Text { tokens: (0..20).collect(), ..Text::default() };
        let windows: Vec<_> = cut.windows(&text).collect();
        assert_eq!(windows.len(), 2);
        assert_eq!(windows[1], (&(9..18).collect::<Vec<u32>>()[..], &[14, 15, 16, 17][..]));
    }
}
