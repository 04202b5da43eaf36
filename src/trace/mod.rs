//! Traces: files with a reference model's predictions on texts. They are small enough to publish, and candidates can be
//! measured with them without the reference.
//!
//! ```text
//! "nibtrace"  version  length   header (JSON)   tokens             rows                       BLAKE3 of all before
//!  8 bytes     u32      u32                      windows x window   windows x scored           32 bytes
//!
//! row         right    tail     first    range    ids               steps        drawn
//!             f32      f32      f32      f32      k, 2 or 3 bytes   k - 1 u16    n ids, n u16
//! ```
//!
//! All numbers are little-endian. `right` is the logarithm of the probability of the text's own token, and `first` that
//! of the most likely token. Token `i` of the `k` most likely ones has the logarithm `first - (step_i / 65535)² range`,
//! whose resolution is finest for the most likely tokens. `tail` is the total probability of all other tokens. `drawn`
//! are `n` of those, sampled by their probability, whose logarithm is `first - step / 65535 * 64`. With k = 64, n = 6
//! and a vocabulary of at most 65,536 tokens, a row takes 294 bytes; the logits of Yi's 64,000 tokens would take
//! 256,000.
//!
//! The file has the tokens of the texts instead of the texts, so nothing else is needed to measure a candidate. If all
//! tokens outside the `k` were treated as one, KLD would be too small, by a fifth or more if a model is unsure. The
//! drawn tokens correct this: with them, the mean over a text is unbiased, while the KLD of a single token has a random
//! error. With n = 0, KLD is a lower bound.

pub mod metrics;
pub mod texts;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::metrics::{Summary, Traced, draw_others, top_k};
use self::texts::{Cut, TokenizedText};
use crate::base::atomic_file::AtomicFile;
use crate::base::mmap::Mapping;

const MAGIC: &[u8; 8] = b"nibtrace";
const VERSION: u32 = 1;
const HASH_BYTES: usize = 32;
/// The longest header that is read.
const LONGEST_HEADER: usize = 1 << 24;
/// How far below the most likely token another one can be, in nats; e^-100 is negligible.
const DEEPEST: f64 = 100.0;
/// The same for tokens that were drawn.
const DEEPEST_DRAWN: f64 = 64.0;

/// Why a trace cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not a trace.
    #[error("{} is not a trace", .0.display())]
    Foreign(PathBuf),
    /// It has another version of the format.
    #[error("{} is a trace of version {found}, and this nibble reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is incomplete or damaged.
    #[error("{} is damaged: {reason}; get it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The header of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The version of nibble that made it.
    pub nibble: String,
    /// The reference model.
    pub model: TracedModel,
    /// Hash of the vocabulary, hexadecimal; see [`crate::vocab::vocabulary_hash`].
    pub vocabulary: String,
    /// Tokens in the vocabulary.
    pub n_vocab: u32,
    /// Tokens in a window.
    pub window: u32,
    /// Number of the most likely tokens at each position.
    pub k: u32,
    /// Number of drawn tokens at each position.
    pub drawn: u32,
    /// The texts.
    pub texts: Vec<TracedText>,
}

/// The model of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedModel {
    /// Its name: its file name without the extension.
    pub name: String,
    /// Size of its file in bytes.
    pub bytes: u64,
    /// BLAKE3 of its file, hexadecimal; `None` if it was not computed.
    pub blake3: Option<String>,
    /// Its main quantization.
    pub quantization: Option<String>,
}

/// A text of a trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedText {
    /// Its name.
    pub name: String,
    /// BLAKE3 of its bytes, hexadecimal.
    pub blake3: String,
    /// Number of tokens in the whole text.
    pub tokens: u64,
    /// Number of its windows in the trace.
    pub windows: u64,
}

impl Header {
    /// Returns how texts were cut.
    pub fn cut(&self) -> Cut {
        Cut { window: self.window }
    }

    fn id_bytes(&self) -> usize {
        if self.n_vocab <= 1 << 16 { 2 } else { 3 }
    }

    /// Returns the size of a row in bytes.
    pub fn row_bytes(&self) -> usize {
        16 + self.k as usize * self.id_bytes()
            + (self.k as usize).saturating_sub(1) * 2
            + self.drawn as usize * (self.id_bytes() + 2)
    }

    /// Encodes a row from the reference's logits and `right`, the text's own token. The drawn tokens depend on `row`,
    /// its number in the file.
    pub fn row(&self, row: u64, logits: &[f32], summary: &Summary, right: u32) -> Vec<u8> {
        let top = top_k(logits, self.k as usize);
        let log_p: Vec<f64> = top.iter().map(|(logit, _)| summary.log_probability(*logit)).collect();
        let first = log_p.first().copied().unwrap_or(0.0) as f32;
        let depth = |log_p: f64| (f64::from(first) - log_p).clamp(0.0, DEEPEST);
        let range = log_p.last().map_or(0.0, |log_p| depth(*log_p)) as f32;
        let right = summary.log_probability(logits.get(right as usize).copied().unwrap_or(f32::NEG_INFINITY));
        let tail = 1.0 - log_p.iter().map(|log_p| log_p.exp()).sum::<f64>();
        let step = |share: f64| ((share * f64::from(u16::MAX)).round() as u16).to_le_bytes();

        let mut bytes = Vec::with_capacity(self.row_bytes());
        for number in [right as f32, tail.clamp(0.0, 1.0) as f32, first, range] {
            bytes.extend(number.to_le_bytes());
        }
        let ids: Vec<u32> = top.iter().map(|(_, id)| *id).collect();
        ids.iter().for_each(|id| bytes.extend(&id.to_le_bytes()[..self.id_bytes()]));
        for log_p in &log_p[1..] {
            bytes.extend(step((depth(*log_p) / f64::from(range.max(f32::MIN_POSITIVE))).sqrt()));
        }
        // Multiples of the golden ratio spread evenly, however many there are.
        const GOLDEN: f64 = 0.618_033_988_749_894_8;
        let mut drawn = draw_others(logits, summary, &ids, self.drawn as usize, (row as f64 * GOLDEN).fract());
        // If there is nothing left to draw from, the tail is 0 and these are not used.
        drawn.resize(self.drawn as usize, 0);
        drawn.iter().for_each(|id| bytes.extend(&id.to_le_bytes()[..self.id_bytes()]));
        for id in drawn {
            let log_p = summary.log_probability(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY));
            bytes.extend(step((depth(log_p) / DEEPEST_DRAWN).min(1.0)));
        }
        bytes
    }
}

/// A trace that is being written. Its rows are in the order of the texts.
pub struct Writer {
    header: Header,
    out: BufWriter<Hashing>,
    rows: u64,
}

struct Hashing {
    file: AtomicFile,
    hasher: blake3::Hasher,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Writer {
    /// Begins a trace at `path`. Fills in `header.texts` and `header.k`. `header.drawn` is the number of tokens to draw
    /// from those that are not among the `k` most likely ones.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: &Path, mut header: Header, k: u32, texts: &[TokenizedText]) -> io::Result<Self> {
        header.k = k.clamp(1, header.n_vocab.max(1));
        header.texts = texts
            .iter()
            .map(|text| TracedText {
                name: text.name.clone(),
                blake3: text.blake3.clone(),
                tokens: text.n_tokens,
                windows: header.cut().n_windows(text.tokens.len()) as u64,
            })
            .collect();
        let file = AtomicFile::create(path)?;
        let mut out = BufWriter::with_capacity(1 << 20, Hashing { file, hasher: blake3::Hasher::new() });
        let json = serde_json::to_vec(&header)?;
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&u32::try_from(json.len()).map_err(io::Error::other)?.to_le_bytes())?;
        out.write_all(&json)?;
        for token in texts.iter().flat_map(|text| &text.tokens) {
            out.write_all(&token.to_le_bytes()[..header.id_bytes()])?;
        }
        Ok(Self { header, out, rows: 0 })
    }

    /// Returns the header, whose [`Header::row`] encodes rows.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes the next row.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, row: &[u8]) -> io::Result<()> {
        self.rows += 1;
        self.out.write_all(row)
    }

    /// Completes the file and gives it its name, replacing a file of that name if `replace` is set. Returns its size in
    /// bytes per scored token.
    ///
    /// # Errors
    /// If rows are missing, the file cannot be written, or one of that name exists and `replace` is not set.
    pub fn finish(mut self, replace: bool) -> io::Result<f64> {
        let windows: u64 = self.header.texts.iter().map(|text| text.windows).sum();
        let wanted = windows * self.header.cut().scored() as u64;
        if self.rows != wanted {
            return Err(io::Error::other(format!("{} of {wanted} positions were read", self.rows)));
        }
        self.out.flush()?;
        let mut hashing = self.out.into_inner().map_err(|e| e.into_error())?;
        let hash = hashing.hasher.finalize();
        hashing.file.write_all(hash.as_bytes())?;
        let bytes = hashing.file.file().metadata()?.len();
        hashing.file.finish(replace)?;
        Ok(bytes as f64 / wanted.max(1) as f64)
    }
}

/// A trace.
#[derive(Debug)]
pub struct Trace {
    header: Header,
    mapping: Mapping,
    texts: Vec<TokenizedText>,
    rows_at: usize,
    n_rows: usize,
}

impl Trace {
    /// Returns whether the file at `path` begins like a trace.
    pub fn is_one(path: &Path) -> bool {
        use std::io::Read;
        let mut begins = [0; MAGIC.len()];
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut begins)).is_ok() && begins == *MAGIC
    }

    /// Opens the trace at `path`, and checks all of it.
    ///
    /// # Errors
    /// If it is not a trace, has another version, or is incomplete or damaged.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let mapping = Mapping::open(path).map_err(io)?;
        let bytes = mapping.bytes();
        let damaged = |reason: &str| Error::Damaged { path: path.to_path_buf(), reason: reason.to_string() };
        if !bytes.starts_with(MAGIC) {
            return Err(Error::Foreign(path.to_path_buf()));
        }
        let number = |at: usize| -> Result<u32, Error> {
            let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map(u32::from_le_bytes).ok_or_else(|| damaged("it was cut short"))
        };
        let version = number(8)?;
        if version != VERSION {
            return Err(Error::Version { path: path.to_path_buf(), found: version });
        }
        let header_bytes = number(12)? as usize;
        let json = bytes.get(16..16 + header_bytes.min(LONGEST_HEADER)).ok_or_else(|| damaged("it was cut short"))?;
        let header: Header = serde_json::from_slice(json).map_err(|e| damaged(&format!("its header: {e}")))?;
        let whole = header.window >= Cut::SMALLEST && header.n_vocab > 0 && (1..=header.n_vocab).contains(&header.k);
        if !whole || header.texts.is_empty() {
            return Err(damaged("its header has numbers that no trace has"));
        }
        let windows = header.texts.iter().try_fold(0u64, |sum, text| sum.checked_add(text.windows));
        let layout = || -> Option<(usize, usize, usize, usize)> {
            let windows = usize::try_from(windows?).ok()?;
            let n_tokens = windows.checked_mul(header.window as usize)?;
            let n_rows = windows.checked_mul(header.cut().scored())?;
            let rows_at = n_tokens.checked_mul(header.id_bytes())?.checked_add(16 + header_bytes)?;
            let ends_at = n_rows.checked_mul(header.row_bytes())?.checked_add(rows_at)?.checked_add(HASH_BYTES)?;
            Some((n_tokens, n_rows, rows_at, ends_at))
        };
        let (_, n_rows, rows_at, ends_at) = layout().ok_or_else(|| damaged("its header has numbers beyond reason"))?;
        if bytes.len() != ends_at {
            return Err(damaged(&format!("it has {} bytes and should have {ends_at}", bytes.len())));
        }
        let (content, hash) = bytes.split_at(ends_at - HASH_BYTES);
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(content);
        if hasher.finalize().as_bytes() != hash {
            return Err(damaged("its bytes are not those that were written"));
        }
        let mut tokens = bytes[16 + header_bytes..rows_at].chunks_exact(header.id_bytes()).map(id);
        let mut texts = Vec::with_capacity(header.texts.len());
        for text in &header.texts {
            let n = text.windows as usize * header.window as usize;
            let tokens: Vec<u32> = tokens.by_ref().take(n).collect();
            if text.windows == 0 || tokens.iter().any(|token| *token >= header.n_vocab) {
                return Err(damaged("it has tokens that its vocabulary does not have"));
            }
            texts.push(TokenizedText {
                name: text.name.clone(),
                path: path.to_path_buf(),
                blake3: text.blake3.clone(),
                n_tokens: text.tokens,
                tokens,
            });
        }
        Ok(Self { header, mapping, texts, rows_at, n_rows })
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the texts as tokens.
    pub fn texts(&self) -> &[TokenizedText] {
        &self.texts
    }

    /// Returns the size of the file in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.mapping.bytes().len() as u64
    }

    /// Returns the file's hash in hexadecimal.
    pub fn blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(self.mapping.bytes());
        hasher.finalize().to_hex().to_string()
    }

    /// Returns row `row`, counted over all windows of all texts, with probabilities that add up to 1. `None` past the
    /// end.
    pub fn row(&self, row: usize) -> Option<Traced> {
        if row >= self.n_rows {
            return None;
        }
        let row_bytes = self.header.row_bytes();
        let bytes = self.mapping.bytes().get(self.rows_at + row * row_bytes..)?.get(..row_bytes)?;
        let (numbers, rest) = bytes.split_at(16);
        let float = |i: usize| numbers[4 * i..].first_chunk().map_or(0.0, |four| f64::from(f32::from_le_bytes(*four)));
        let (right, tail, first, range) = (float(0), float(1), float(2), float(3));
        let (k, n_drawn, id_bytes) = (self.header.k as usize, self.header.drawn as usize, self.header.id_bytes());
        let (ids, rest) = rest.split_at(k * id_bytes);
        let (steps, rest) = rest.split_at(k.saturating_sub(1) * 2);
        let (drawn, drawn_steps) = rest.split_at(n_drawn * id_bytes);
        let shares = |steps: &[u8]| -> Vec<f64> {
            let share = |step: &[u8; 2]| f64::from(u16::from_le_bytes(*step)) / f64::from(u16::MAX);
            steps.as_chunks::<2>().0.iter().map(share).collect()
        };
        let log_p = [0.0].into_iter().chain(shares(steps)).map(|share| first - share * share * range);
        let mut top: Vec<(u32, f64)> = ids.chunks_exact(id_bytes).map(id).zip(log_p).collect();
        let drawn_log_p = shares(drawn_steps).into_iter().map(|share| first - share * DEEPEST_DRAWN);
        let mut drawn: Vec<(u32, f64)> = drawn.chunks_exact(id_bytes).map(id).zip(drawn_log_p).collect();
        // After rounding they do not add up to exactly 1, which would add an error to every KLD.
        let total = tail + top.iter().map(|(_, log_p)| log_p.exp()).sum::<f64>();
        let shift = total.ln();
        top.iter_mut().chain(&mut drawn).for_each(|(_, log_p)| *log_p -= shift);
        Some(Traced { top, tail: tail / total, drawn, right })
    }
}

/// Decodes a token's id from its 2 or 3 bytes.
fn id(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u32 = 16;

    fn logits(row: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + row * 104_729) % 1009) as f32 / 100.0).powf(1.3) - 8.0).collect()
    }

    fn text(name: &str, n_windows: usize, n_vocab: u32) -> TokenizedText {
        let n = n_windows * WINDOW as usize;
        let tokens = (0..n as u32).map(|i| i * 31 % n_vocab).collect();
        TokenizedText {
            name: name.to_string(),
            blake3: "ab".repeat(32),
            n_tokens: n as u64 + 3,
            tokens,
            ..TokenizedText::default()
        }
    }

    /// A trace of two texts in a file of the folder.
    fn written(dir: &Path, n_vocab: u32, k: u32) -> (PathBuf, f64) {
        let path = dir.join("a.trace");
        let header = Header { n_vocab, window: WINDOW, drawn: 6, nibble: "0".to_string(), ..Header::default() };
        let texts = [text("en", 2, n_vocab), text("zh", 1, n_vocab)];
        let mut writer = Writer::create(&path, header, k, &texts).unwrap();
        let mut row = 0;
        for text in &texts {
            for (_, scored) in (Cut { window: WINDOW }).windows(text) {
                for right in scored {
                    let logits = logits(row, n_vocab as usize);
                    let bytes = writer.header().row(row as u64, &logits, &Summary::of(&logits).unwrap(), *right);
                    assert_eq!(bytes.len(), writer.header().row_bytes());
                    writer.add(&bytes).unwrap();
                    row += 1;
                }
            }
        }
        let bytes = writer.finish(true).unwrap();
        (path, bytes)
    }

    #[test]
    fn what_was_written_is_read_to_within_a_step() {
        let dir = tempfile::tempdir().unwrap();
        for (n_vocab, k) in [(1000, 64), (70_000, 64), (40, 64), (300, 1), (300, 5)] {
            let (path, _) = written(dir.path(), n_vocab, k);
            assert!(Trace::is_one(&path));
            let trace = Trace::open(&path).unwrap();
            assert_eq!(trace.header().k, k.min(n_vocab));
            assert_eq!(trace.texts()[1].tokens, text("zh", 1, n_vocab).tokens);
            assert_eq!(trace.texts()[0].n_tokens, 35);
            let scored: Vec<u32> = trace
                .texts()
                .iter()
                .flat_map(|t| Cut { window: WINDOW }.windows(t))
                .flat_map(|w| w.1.to_vec())
                .collect();
            assert_eq!(scored.len(), 3 * 7);
            for (row, right) in scored.iter().enumerate() {
                let logits = logits(row, n_vocab as usize);
                let summary = Summary::of(&logits).unwrap();
                let traced = trace.row(row).unwrap();
                let wanted = top_k(&logits, k as usize);
                assert_eq!(traced.top.len(), wanted.len());
                let mut sum = traced.tail;
                for ((id, log_p), (logit, wanted)) in traced.top.iter().zip(wanted) {
                    assert_eq!(*id, wanted);
                    let exact = summary.log_probability(logit);
                    assert!((log_p.exp() - exact.exp()).abs() < 2e-5 && (log_p - exact).abs() < 5e-4);
                    sum += log_p.exp();
                }
                assert!((sum - 1.0).abs() < 1e-12, "{sum}");
                if traced.tail > 1e-6 {
                    assert_eq!(traced.drawn.len(), 6);
                    for (id, log_p) in &traced.drawn {
                        assert!(traced.top.iter().all(|(top, _)| top != id));
                        assert!((log_p - summary.log_probability(logits[*id as usize])).abs() < 1e-3);
                    }
                }
                assert!((traced.right - summary.log_probability(logits[*right as usize])).abs() < 1e-6);
            }
            assert_eq!(trace.row(scored.len()), None);
        }
    }

    #[test]
    fn a_row_of_yis_vocabulary_takes_less_than_300_bytes() {
        let header = Header { n_vocab: 64_000, k: 64, drawn: 6, ..Header::default() };
        assert_eq!(header.row_bytes(), 294);
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = written(dir.path(), 300, 8);
        let whole = std::fs::read(&path).unwrap();
        let broken = dir.path().join("b.trace");
        let refused = |bytes: &[u8]| {
            std::fs::write(&broken, bytes).unwrap();
            Trace::open(&broken).unwrap_err().to_string()
        };
        for cut in 0..whole.len() {
            let said = refused(&whole[..cut]);
            assert!(said.contains("is not a trace") || said.contains("is damaged"), "{cut}: {said}");
        }
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            refused(&bytes);
        }
        assert!(refused(&[&whole[..], b"x"].concat()).contains("bytes and should have"));
        let mut newer = whole;
        newer[8] = 2;
        assert!(refused(&newer).contains("version 2"));
        assert!(Trace::open(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_trace_that_is_not_whole_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.trace");
        let header = Header { n_vocab: 300, window: WINDOW, ..Header::default() };
        let writer = Writer::create(&path, header, 8, &[text("en", 2, 300)]).unwrap();
        assert!(writer.finish(true).unwrap_err().to_string().contains("0 of 14"));
        assert!(!path.exists());
    }
}
