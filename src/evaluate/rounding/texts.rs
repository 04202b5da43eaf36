//! The texts that matrices are rounded for, and those that predictions are compared on afterwards.

use std::path::Path;

use super::Error;
use crate::base::text::without_mark;
use crate::calibration::Text;
use crate::calibration::text::BUILT_IN;
use crate::chat::{self, Prompt};
use crate::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata};
use crate::llama::Model;
use crate::trace::texts::{Cut, TokenizedText};
use crate::vocab::Tokenizer;

/// A text as it is read.
pub struct CalibrationText {
    /// What it holds: its name may change.
    pub blake3: blake3::Hash,
    /// Whole windows.
    pub tokens: Vec<u32>,
}

/// Reads texts for the model that `metadata` describes, and cuts each into windows. Each gives as many, from all over it.
/// The vocabulary is written to a file in `folder`.
///
/// # Errors
/// If a text cannot be read, is not UTF-8, is shorter than a window, or cannot be made into tokens.
pub fn read<T: Clone + Into<Text>>(
    metadata: &Metadata,
    folder: &Path,
    window: u32,
    texts: &[T],
    most_tokens: u64,
) -> Result<Vec<CalibrationText>, Error> {
    let vocabulary = vocabulary(metadata, folder)?;
    let tokenizer = vocabulary.tokenizer();
    let most_windows = share(most_tokens, texts.len(), window);
    let read = |text: &T| {
        let text = text.clone().into();
        let Encoded { blake3, tokens } = encoded(&text, tokenizer)?;
        let n_windows = tokens.len() / window as usize;
        if n_windows == 0 {
            return Err(Error::Short { path: text.label(), tokens: tokens.len(), window });
        }
        let chosen = spread(n_windows, most_windows);
        Ok(CalibrationText { blake3, tokens: windows(&tokens, window, chosen, tokenizer) })
    };
    texts.iter().map(read).collect()
}

/// Reads texts to compare predictions on, none of which [`read`] returns for the same `texts` and `most_tokens` in windows of
/// `calibrated`: the second parts of the built-in texts, and the windows of the files between those that were chosen. A file
/// of which everything was chosen is left out. All together have about `n_tokens`, and each gives as many.
///
/// # Errors
/// If a text cannot be read, is not UTF-8 or cannot be made into tokens.
pub fn read_held_out<T: Clone + Into<Text>>(
    metadata: &Metadata,
    folder: &Path,
    (texts, most_tokens, calibrated): (&[T], u64, u32),
    cut: Cut,
    n_tokens: u64,
) -> Result<Vec<TokenizedText>, Error> {
    let vocabulary = vocabulary(metadata, folder)?;
    let tokenizer = vocabulary.tokenizer();
    let most_windows = share(most_tokens, texts.len(), calibrated);
    let mut found = Vec::new();
    for built_in in &BUILT_IN {
        let text = Encoded::new(built_in.held_out, tokenizer).map_err(|reason| {
            let path = built_in.label();
            Error::Tokens { path, reason }
        })?;
        found.push((built_in.name.to_string(), built_in.label(), text));
    }
    for text in texts.iter().cloned().map(Into::into) {
        let Text::File(path) = &text else { continue };
        let Encoded { blake3, tokens } = encoded(&text, tokenizer)?;
        let n_windows = tokens.len() / calibrated as usize;
        let chosen: Vec<usize> = spread(n_windows, most_windows).collect();
        let others = (0..n_windows).filter(|window| chosen.binary_search(window).is_err());
        let tokens = windows(&tokens, calibrated, others, tokenizer);
        found.push((crate::base::ending::stem(path), path.clone(), Encoded { blake3, tokens }));
    }
    found.retain(|(.., text)| cut.n_windows(text.tokens.len()) > 0);
    let most = share(n_tokens, found.len(), cut.window);
    let text = |(name, path, Encoded { blake3, tokens }): (_, _, Encoded)| {
        let (n_windows, n_tokens) = (cut.n_windows(tokens.len()), tokens.len() as u64);
        let tokens = windows(&tokens, cut.window, spread(n_windows, most), tokenizer);
        TokenizedText { name, path, blake3: blake3.to_hex().to_string(), n_tokens, tokens }
    };
    Ok(found.into_iter().map(text).collect())
}

/// A text's tokens.
struct Encoded {
    blake3: blake3::Hash,
    tokens: Vec<u32>,
}

impl Encoded {
    /// Markers of conversations are control tokens where the vocabulary has them.
    fn new(text: &str, tokenizer: &dyn Tokenizer) -> Result<Self, String> {
        let blake3 = blake3::hash(text.as_bytes());
        let prompt = Prompt::with_control_tokens(text);
        let tokens = chat::encode(&prompt, tokenizer).map_err(|error| error.to_string())?;
        Ok(Self { blake3, tokens })
    }
}

fn encoded(text: &Text, tokenizer: &dyn Tokenizer) -> Result<Encoded, Error> {
    let unencoded = |reason| Error::Tokens { path: text.label(), reason };
    let path = match text {
        Text::BuiltIn(built_in) => return Encoded::new(built_in.text, tokenizer).map_err(unencoded),
        Text::File(path) => path,
    };
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let blake3 = blake3::hash(&bytes);
    let content = String::from_utf8(bytes)
        .map_err(|error| Error::NotUtf8 { path: path.clone(), at: error.utf8_error().valid_up_to() })?;
    let encoded = Encoded::new(without_mark(content).as_str(), tokenizer).map_err(unencoded)?;
    Ok(Encoded { blake3, ..encoded })
}

/// Returns the most windows that each of `n_texts` texts gives.
fn share(most_tokens: u64, n_texts: usize, window: u32) -> usize {
    let share = most_tokens / n_texts.max(1) as u64 / u64::from(window.max(1));
    usize::try_from(share.max(1)).unwrap_or(usize::MAX)
}

/// Returns at most `most` of `n` windows, from all over them, in ascending order.
fn spread(n: usize, most: usize) -> impl Iterator<Item = usize> {
    let n_chosen = n.min(most);
    (0..n_chosen).map(move |i| i * n / n_chosen)
}

/// Returns the tokens of some windows. Each begins as a text does.
fn windows(tokens: &[u32], window: u32, chosen: impl Iterator<Item = usize>, tokenizer: &dyn Tokenizer) -> Vec<u32> {
    let window = window as usize;
    chosen
        .flat_map(|i| {
            let at = i * window;
            let first = tokenizer.begins_with().unwrap_or(tokens[at]);
            std::iter::once(first).chain(tokens[at + 1..at + window].iter().copied())
        })
        .collect()
}

/// Loads the vocabulary that `metadata` describes, from a file without tensors in `folder`.
fn vocabulary(metadata: &Metadata, folder: &Path) -> Result<Model, Error> {
    let path = folder.join("vocabulary.gguf");
    let layout = Layout::new(metadata, Vec::new(), DEFAULT_ALIGNMENT, None)?;
    std::fs::write(&path, &layout.parts()[0].header)
        .map_err(|source| Error::Temporary { path: path.clone(), source })?;
    Ok(Model::load_vocabulary(&path)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::PathBuf;

    use super::*;
    use crate::arch::ARCHITECTURES;
    use crate::pass::Source;

    #[test]
    fn nothing_is_held_out_that_was_calibrated_with() {
        let source = Source::open(Path::new("tests/data/yi-nano"), ARCHITECTURES, false, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("numbers.txt");
        // No two windows are alike.
        let text: String = (0..4000).map(|n| format!("{n} times {} is {}. ", n + 1, n * (n + 1))).collect();
        std::fs::write(&path, text).unwrap();
        let read =
            |texts: &[Text], most_tokens| read(&source.metadata, folder.path(), 512, texts, most_tokens).unwrap();
        let held_out = |texts: &[Text], most_tokens, n_tokens| {
            let calibrated = (texts, most_tokens, 512);
            read_held_out(&source.metadata, folder.path(), calibrated, Cut { window: 256 }, n_tokens).unwrap()
        };
        let mut texts = Text::built_in();
        texts.push(path.clone().into());
        for (most_tokens, has_file) in [(16_384, true), (4096, true), (1 << 24, false)] {
            let calibrated = read(&texts, most_tokens);
            assert!(calibrated.iter().map(|text| text.tokens.len() as u64).sum::<u64>() <= most_tokens);
            let halves = |tokens: &[u32]| tokens.chunks_exact(256).map(|half| half[1..].to_vec()).collect::<Vec<_>>();
            let seen: HashSet<_> = calibrated.iter().flat_map(|text| halves(&text.tokens)).collect();
            let found = held_out(&texts, most_tokens, 1 << 20);
            assert_eq!(found.len(), 4 + usize::from(has_file), "{most_tokens}");
            for text in &found {
                assert!(halves(&text.tokens).iter().all(|half| !seen.contains(half)), "{}", text.name);
            }
            if has_file {
                assert_eq!((found[4].name.as_str(), &found[4].path), ("numbers", &path));
            }
        }
        // Each gives as many.
        let found = held_out(&texts, 4096, 5 * 512);
        assert!(found.iter().all(|text| text.tokens.len() == 512));
    }

    /// Yi's ids of them are 6 and 7.
    #[test]
    fn markers_of_conversations_are_control_tokens() {
        let source = Source::open(Path::new("tests/data/yi-nano"), ARCHITECTURES, false, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let chat = BUILT_IN.iter().find(|text| text.name == "chat").unwrap();
        let vocabulary = vocabulary(&source.metadata, folder.path()).unwrap();
        let tokens = Encoded::new(chat.text, vocabulary.tokenizer()).unwrap().tokens;
        for (token, marker) in [(6, "<|im_start|>"), (7, "<|im_end|>")] {
            let n = tokens.iter().filter(|found| **found == token).count();
            assert_eq!(n, chat.text.matches(marker).count());
        }
    }
}
