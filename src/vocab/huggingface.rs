//! `tokenizer.json`: a tokenizer of the Hugging Face `tokenizers` library.
//!
//! Two kinds are taken. Those made from a sentencepiece model (byte-pair encoding that falls back to bytes, with `▁` for
//! spaces) become the sentencepiece vocabulary they were made from, with scores that put the merges in the same order.
//! Byte-level ones (GPT-2's kind, as in Llama 3) are taken as they are, under llama.cpp's name for the way they split
//! text.
//!
//! Format: <https://huggingface.co/docs/tokenizers/api/models>, and the library's `src/models/bpe`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::draft::{AddedToken, Draft, Piece};
use super::normalize::SPACE;
use super::{Error, MAX_PIECES, PieceType, VocabKind, pieces, pretokenizers, read_file};

/// The largest known file has 35 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    // Missing in files of the library's first releases, which had byte-pair encoding only where merges are there.
    #[serde(rename = "type")]
    ty: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Ids(HashMap<String, u64>),
    // Of unigram models: pieces with their scores.
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    /// The two parts; `None` where there are not two.
    fn parts(&self) -> Option<(&str, &str)> {
        let (left, right) = match self {
            Self::Pair(left, right) => (left.as_str(), right.as_str()),
            Self::Text(text) => text.split_once(' ')?,
        };
        // A part with a space could not be told from two in the notation that GGUF has.
        let whole = |part: &str| !part.is_empty() && !part.contains(' ');
        (whole(left) && whole(right)).then_some((left, right))
    }
}

/// Reads a tokenizer file.
pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    parse(path, &read_file(path, MAX_FILE_BYTES)?, warnings)
}

fn parse(path: &Path, bytes: &[u8], warnings: &mut Vec<String>) -> Result<Draft, Error> {
    let unsupported = |what: String| Error::Unsupported { path: path.to_path_buf(), what };
    let file: File =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let model = &file.model;
    let ty = model.ty.as_deref().unwrap_or("BPE");
    let vocab = match &model.vocab {
        Vocab::Ids(vocab) if ty == "BPE" => vocab,
        _ => return Err(unsupported(format!("this is a {ty} model, of which nibble takes BPE only"))),
    };
    let part = |part: &Option<String>| part.as_ref().is_some_and(|part| !part.is_empty());
    if part(&model.continuing_subword_prefix) || part(&model.end_of_word_suffix) {
        return Err(unsupported("its pieces are marked as beginnings or ends of words".to_string()));
    }
    let mut merges = Vec::with_capacity(model.merges.len());
    for (n, merge) in model.merges.iter().enumerate() {
        let why = || Error::BadPiece {
            path: path.to_path_buf(),
            id: n as u64,
            why: "of the merges is not a pair".to_string(),
        };
        merges.push(merge.parts().ok_or_else(why)?);
    }
    let pieces = place(path, vocab, model.unk_token.as_deref())?;
    let mut draft = if pretokenizers::is_byte_level(&file.pre_tokenizer) {
        byte_level(path, &file, pieces, &merges, warnings)?
    } else if model.byte_fallback {
        sentencepiece(path, &file, pieces, &merges, warnings)?
    } else {
        return Err(unsupported("it neither works on bytes nor falls back to them".to_string()));
    };
    draft.added =
        file.added_tokens.into_iter().map(|t| (t.id, AddedToken { text: t.content, special: t.special })).collect();
    let (before, after) = post_processor(&file.post_processor);
    draft.add_bos = Some(before.is_some());
    draft.add_eos = Some(after.is_some());
    draft.bos = before.and_then(|text| draft.id(text).or_else(|| added_id(&draft, text)));
    draft.eos = after.and_then(|text| draft.id(text).or_else(|| added_id(&draft, text)));
    Ok(draft)
}

fn added_id(draft: &Draft, text: &str) -> Option<u64> {
    draft.added.iter().find(|(_, token)| token.text == text).map(|&(id, _)| id)
}

/// Puts the pieces in the order of their ids. Ids without a piece become unused ones.
fn place(path: &Path, vocab: &HashMap<String, u64>, unknown: Option<&str>) -> Result<Vec<Piece>, Error> {
    let n = vocab.values().max().map_or(0, |max| max.saturating_add(1));
    if n > MAX_PIECES as u64 {
        return Err(Error::TooManyPieces { found: n });
    }
    let mut pieces: Vec<Option<Piece>> = vec![None; n as usize];
    for (text, &id) in vocab {
        let ty = match text {
            text if Some(text.as_str()) == unknown => PieceType::Unknown,
            _ => PieceType::Normal,
        };
        if text.is_empty() {
            return Err(Error::BadPiece { path: path.to_path_buf(), id, why: "is empty".to_string() });
        }
        let piece = Piece { text: text.clone(), score: 0.0, ty };
        if let Some(other) = pieces[id as usize].replace(piece) {
            let why = format!("is both '{}' and '{text}'", other.text);
            return Err(Error::BadPiece { path: path.to_path_buf(), id, why });
        }
    }
    let unused = |id| Piece { text: super::tokenizer::padding_text(id), score: 0.0, ty: PieceType::Unused };
    Ok((0..).zip(pieces).map(|(id, piece)| piece.unwrap_or_else(|| unused(id))).collect())
}

fn byte_level(
    path: &Path,
    file: &File,
    pieces: Vec<Piece>,
    merges: &[(&str, &str)],
    warnings: &mut Vec<String>,
) -> Result<Draft, Error> {
    for step in flatten(&file.normalizer, "normalizers") {
        match step["type"].as_str() {
            Some("NFC") => warnings.push(
                "the tokenizer composes characters (Unicode NFC) before it looks at them, which llama.cpp does not do: \
                 text with combining accents gets other tokens"
                    .to_string(),
            ),
            _ => {
                let what = format!("it changes text in a way llama.cpp does not ({step})");
                return Err(Error::Unsupported { path: path.to_path_buf(), what });
            }
        }
    }
    let pre = pretokenizers::name(&file.pre_tokenizer, file.model.ignore_merges)
        .map_err(|found| Error::UnknownPreTokenizer { path: path.to_path_buf(), found })?;
    Ok(Draft {
        pre,
        merges: Some(join(merges)),
        space_prefix: None,
        remove_extra_whitespaces: None,
        ..draft(VocabKind::ByteLevel, pieces)
    })
}

fn draft(kind: VocabKind, pieces: Vec<Piece>) -> Draft {
    Draft {
        kind,
        pre: "default",
        pieces,
        typed: false,
        merges: None,
        own_merges: None,
        space_prefix: Some(false),
        prefix_once: false,
        prefix_unless_space: false,
        remove_extra_whitespaces: Some(false),
        charsmap: Vec::new(),
        added: Vec::new(),
        bos: None,
        eos: None,
        padding: None,
        add_bos: None,
        add_eos: None,
    }
}

fn join(merges: &[(&str, &str)]) -> Vec<String> {
    merges.iter().map(|(left, right)| format!("{left} {right}")).collect()
}

/// How spaces become `▁`.
#[derive(Default)]
struct Spaces {
    escaped: bool,
    prefix: bool,
    prefix_once: bool,
    prefix_unless_space: bool,
    /// Whether merges stay inside words, each of which starts at a `▁`.
    words: bool,
}

fn sentencepiece(
    path: &Path,
    file: &File,
    mut pieces: Vec<Piece>,
    merges: &[(&str, &str)],
    warnings: &mut Vec<String>,
) -> Result<Draft, Error> {
    let unsupported = |what: String| Error::Unsupported { path: path.to_path_buf(), what };
    if file.model.ignore_merges {
        return Err(unsupported("it takes words whole without merging".to_string()));
    }
    let spaces = spaces(file).map_err(unsupported)?;
    for piece in &mut pieces {
        if piece.ty == PieceType::Normal && pieces::byte_of(&piece.text).is_some() {
            piece.ty = PieceType::Byte;
        }
    }
    let special: HashSet<&str> = file.added_tokens.iter().map(|token| token.content.as_str()).collect();
    let merges: Vec<_> = merges.iter().copied().filter(|merge| !spaces.words || inside_word(merge)).collect();
    let faithful = score(&mut pieces, &merges, &special);
    if !faithful {
        warnings.push(
            "the tokenizer merges in an order that scores cannot express; nibble keeps that order in a key of its own, \
             other programs may get slightly different tokens"
                .to_string(),
        );
    }
    Ok(Draft {
        space_prefix: Some(spaces.prefix),
        prefix_once: spaces.prefix_once,
        prefix_unless_space: spaces.prefix_unless_space,
        own_merges: (!faithful).then(|| join(&merges)),
        ..draft(VocabKind::Sentencepiece, pieces)
    })
}

/// Whether a merge's result has `▁` at its start only.
fn inside_word((left, right): &(&str, &str)) -> bool {
    !left.chars().skip(1).chain(right.chars()).any(|char| char == SPACE)
}

/// Reads how spaces are treated; on failure, what it does that nibble cannot.
fn spaces(file: &File) -> Result<Spaces, String> {
    let mut spaces = Spaces::default();
    for step in flatten(&file.normalizer, "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == "▁" => spaces.prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "▁" => spaces.escaped = true,
            _ => return Err(format!("it changes text in a way that nibble does not ({step})")),
        }
    }
    for step in flatten(&file.pre_tokenizer, "pretokenizers") {
        if step["type"] != "Metaspace" || step.get("replacement").is_some_and(|char| char != "▁") {
            return Err(format!("it splits text in a way that nibble does not ({step})"));
        }
        let old = step["add_prefix_space"].as_bool().unwrap_or(true);
        let (prefix, once) = match step["prepend_scheme"].as_str() {
            Some("always") => (true, false),
            Some("first") => (true, true),
            Some("never") => (false, false),
            _ => (old, false),
        };
        spaces = Spaces {
            escaped: true,
            prefix: spaces.prefix || prefix,
            prefix_once: once,
            // Unlike the normalizer's step, this one lets a text that starts with a space be.
            prefix_unless_space: prefix && !spaces.prefix,
            words: step["split"].as_bool().unwrap_or(true),
        };
    }
    if !spaces.escaped {
        return Err("it leaves spaces as they are".to_string());
    }
    Ok(spaces)
}

/// Gives every piece the score that puts its merges in the order of the list, and says whether merging by scores, where
/// any two neighbours that spell a piece may be merged, then does exactly what the list does.
fn score(pieces: &mut [Piece], merges: &[(&str, &str)], special: &HashSet<&str>) -> bool {
    let mergeable =
        |piece: &Piece| piece.ty == PieceType::Normal && !special.contains(piece.text.as_str());
    let ids: HashMap<String, usize> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), id)).collect();
    let mut faithful = true;
    let mut order: HashMap<usize, usize> = HashMap::new();
    let mut last = None;
    let mut seen = HashSet::new();
    for merge in merges {
        let joined = [merge.0, merge.1].concat();
        let Some(&id) = ids.get(&joined).filter(|_| ids.contains_key(merge.0) && ids.contains_key(merge.1)) else {
            // The library refuses such files; nothing can be merged by it.
            faithful = false;
            continue;
        };
        let next = order.len();
        let place = *order.entry(id).or_insert(next);
        // All merges into one piece stand together, and a piece has not come up before.
        faithful &= last.is_none_or(|last| place >= last) && mergeable(&pieces[id]);
        last = Some(place);
        seen.insert((merge.0, merge.1));
    }
    let n_possible: usize = pieces
        .iter()
        .filter(|piece| mergeable(piece))
        .map(|piece| {
            let splits = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
            // A single character takes part in merging by scores even where it is no piece.
            let part = |part: &str| {
                ids.get(part).map_or(part.chars().nth(1).is_none(), |&id| mergeable(&pieces[id]))
            };
            splits.filter(|(left, right)| part(left) && part(right)).count()
        })
        .sum();
    faithful &= n_possible == seen.len();
    let lowest = -(order.len() as f32);
    for (id, piece) in pieces.iter_mut().enumerate() {
        piece.score = match piece.ty {
            PieceType::Normal => order.get(&id).map_or(lowest, |&place| -(place as f32)),
            _ => 0.0,
        };
    }
    faithful
}

/// A component as its steps: those of a sequence, itself where it is none, nothing where it is null.
pub(super) fn flatten<'a>(component: &'a Value, list: &str) -> Vec<&'a Value> {
    match component {
        Value::Null => Vec::new(),
        _ if component["type"] == "Sequence" => {
            // serde_json bounds how deep a file nests, and with it this.
            component[list].as_array().into_iter().flatten().flat_map(|step| flatten(step, list)).collect()
        }
        _ => vec![component],
    }
}

/// The tokens that a post-processor puts before and after a text.
fn post_processor(component: &Value) -> (Option<&str>, Option<&str>) {
    let (mut before, mut after) = (None, None);
    for step in flatten(component, "processors") {
        match step["type"].as_str() {
            Some("TemplateProcessing") => {
                let mut in_front = true;
                for item in step["single"].as_array().into_iter().flatten() {
                    if item.get("Sequence").is_some() {
                        in_front = false;
                    } else if let Some(token) = item["SpecialToken"]["id"].as_str() {
                        *(if in_front { &mut before } else { &mut after }) = Some(token);
                    }
                }
            }
            Some("BertProcessing" | "RobertaProcessing") => {
                before = step["cls"][0].as_str();
                after = step["sep"][0].as_str();
            }
            _ => {}
        }
    }
    (before, after)
}
