//! `tokenizer.json`: a tokenizer of the Hugging Face `tokenizers` library.
//!
//! Two kinds are supported. Tokenizers converted from a sentencepiece model (byte-pair encoding with byte fallback, and
//! `▁` for spaces) become that sentencepiece vocabulary again, with scores that give the merges the same order.
//! Byte-level tokenizers (GPT-2's kind, as in Llama 3) are kept as they are, with llama.cpp's name of their
//! pre-tokenizer.
//!
//! Format: <https://huggingface.co/docs/tokenizers/api/models>, and the library's `src/models/bpe`.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::draft::{AddedToken, Draft, Piece};
use super::normalize::SPACE;
use super::{Error, Flags, MAX_PIECES, PieceType, TokenizerFiles, VocabKind, pieces, pretokenizers, read_file};

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
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    // As in the library: what is special is not normalized, unless the file says so.
    normalized: Option<bool>,
}

impl Added {
    fn into_token(self) -> (u64, AddedToken) {
        let flags = Flags { lstrip: self.lstrip, rstrip: self.rstrip, single_word: self.single_word };
        let normalized = self.normalized.unwrap_or(!self.special);
        (self.id, AddedToken { text: self.content, special: self.special, flags, normalized })
    }
}

#[derive(Deserialize)]
struct Model {
    // Missing in files of the library's first releases. Files with merges are byte-pair encoding.
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
    // Unigram models have a list of pieces with scores.
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    /// The two parts; `None` if there are not exactly two.
    fn parts(&self) -> Option<(&str, &str)> {
        let (left, right) = match self {
            Self::Pair(left, right) => (left.as_str(), right.as_str()),
            Self::Text(text) => text.split_once(' ')?,
        };
        // GGUF separates the parts by a space, so a part cannot contain one.
        let whole = |part: &str| !part.is_empty() && !part.contains(' ');
        (whole(left) && whole(right)).then_some((left, right))
    }
}

/// Reads a tokenizer file.
pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Draft, Error> {
    parse(path, &read_file(path, MAX_FILE_BYTES)?, warnings)
}

/// What the file says beyond a vocabulary.
pub(super) struct Extras {
    /// The added tokens, by id.
    pub added: Vec<(u64, AddedToken)>,
    /// Whether texts begin with BOS and end with EOS; `None` if the file has no post-processor.
    pub adds: Option<(bool, bool)>,
    /// The pieces, by id, in no order; empty if the model is not byte-pair encoding.
    pub pieces: Vec<(u64, String)>,
}

/// Reads what the file says beyond its vocabulary, which may be of a kind that nibble does not support.
pub(super) fn extras(path: &Path) -> Result<Extras, Error> {
    let bytes = read_file(path, MAX_FILE_BYTES)?;
    let file: File =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let adds = (!file.post_processor.is_null()).then(|| {
        let (before, after) = post_processor(&file.post_processor);
        (before.is_some(), after.is_some())
    });
    let pieces = match file.model.vocab {
        Vocab::Ids(vocab) => vocab.into_iter().map(|(text, id)| (id, text)).collect(),
        Vocab::Other(_) => Vec::new(),
    };
    Ok(Extras { added: file.added_tokens.into_iter().map(Added::into_token).collect(), adds, pieces })
}

/// Reads `vocab.json` and `merges.txt`, in which byte-level tokenizers are kept that have no `tokenizer.json`. `pre` is
/// llama.cpp's name of the way in which their class splits text.
pub(super) fn of_two_files(
    vocab: &Path,
    merges: &Path,
    pre: &'static str,
    files: &TokenizerFiles<'_>,
    warnings: &mut Vec<String>,
) -> Result<Draft, Error> {
    let ids: HashMap<String, u64> = serde_json::from_slice(&read_file(vocab, MAX_FILE_BYTES)?)
        .map_err(|source| Error::Json { path: vocab.to_path_buf(), source })?;
    let bytes = read_file(merges, MAX_FILE_BYTES)?;
    let bad = |line: usize, why: &str| {
        let why = format!("of the merges {why}");
        Error::BadPiece { path: merges.to_path_buf(), id: line as u64, why }
    };
    let text = String::from_utf8(bytes).map_err(|_| bad(0, "is not UTF-8"))?;
    // The first line says the version of the format.
    let lines =
        text.lines().enumerate().filter(|(n, line)| !(line.is_empty() || (*n == 0 && line.starts_with("#version"))));
    let mut pairs = Vec::new();
    for (n, line) in lines {
        pairs.push(
            line.split_once(' ').filter(|(_, right)| !right.contains(' ')).ok_or_else(|| bad(n, "is not a pair"))?,
        );
    }
    if files.tokenizer_config.and_then(|config| config.get("add_prefix_space")?.as_bool()) == Some(true) {
        let what = "it adds a space in front of texts".to_string();
        return Err(Error::Unsupported { path: vocab.to_path_buf(), what });
    }
    if pre == "qwen2" {
        warnings.push(NFC.to_string());
    }
    let pieces = place(vocab, &ids, None)?;
    Ok(Draft {
        pre,
        merges: Some(join(&pairs)),
        space_prefix: None,
        remove_extra_whitespaces: None,
        ..draft(VocabKind::ByteLevel, pieces)
    })
}

/// What is said of a normalizer that is left out.
const NFC: &str = "the tokenizer normalizes text to Unicode NFC, which llama.cpp does not do, so text with combining \
                   accents gets different tokens";

fn parse(path: &Path, bytes: &[u8], warnings: &mut Vec<String>) -> Result<Draft, Error> {
    let unsupported = |what: String| Error::Unsupported { path: path.to_path_buf(), what };
    let file: File =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let model = &file.model;
    let ty = model.ty.as_deref().unwrap_or("BPE");
    let vocab = match &model.vocab {
        Vocab::Ids(vocab) if ty == "BPE" => vocab,
        _ => return Err(unsupported(format!("this is a {ty} model, and nibble supports only BPE"))),
    };
    let part = |part: &Option<String>| part.as_ref().is_some_and(|part| !part.is_empty());
    if part(&model.continuing_subword_prefix) || part(&model.end_of_word_suffix) {
        return Err(unsupported("it marks pieces as beginnings or ends of words".to_string()));
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
        return Err(unsupported("it is neither byte-level nor has a byte fallback".to_string()));
    };
    draft.added = file.added_tokens.into_iter().map(Added::into_token).collect();
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

/// Sorts the pieces by id. Ids without a piece become unused pieces.
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
    let unused = |id| Piece { text: super::sentencepiece_bpe::padding_text(id), score: 0.0, ty: PieceType::Unused };
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
            Some("NFC") => warnings.push(NFC.to_string()),
            _ => {
                let what = format!("it normalizes text in a way that llama.cpp does not ({step})");
                return Err(Error::Unsupported { path: path.to_path_buf(), what });
            }
        }
    }
    let pre = pretokenizers::name(&file.pre_tokenizer, file.model.ignore_merges)
        .map_err(|found| Error::UnknownPreTokenizer { path: path.to_path_buf(), found })?;
    if let Some(what) = pretokenizers::other_in_llama_cpp(pre) {
        warnings.push(format!(
            "llama.cpp splits text for the pre-tokenizer '{pre}' in another way than this tokenizer: {what}; nibble splits \
             it as the model was trained, other programs give such text other tokens"
        ));
    }
    let whole = file.model.ignore_merges;
    if whole != pretokenizers::whole_words_in_llama_cpp(pre) {
        warnings.push(format!(
            "the tokenizer {} words that are tokens without merging, and llama.cpp does the opposite for the \
             pre-tokenizer '{pre}'; nibble does as the tokenizer says, other programs may give some words other tokens",
            if whole { "looks up" } else { "does not look up" }
        ));
    }
    Ok(Draft {
        whole_words: (whole != pretokenizers::whole_words_in_llama_cpp(pre)).then_some(whole),
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
        whole_words: None,
        own_merges: None,
        space_prefix: Some(false),
        prefix_once: false,
        prefix_unless_space: false,
        prefix_after: Vec::new(),
        prefix_normalizes: false,
        escape_normalizes: false,
        flags: Vec::new(),
        normalized: Vec::new(),
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

/// How spaces are replaced by `▁`.
#[derive(Default)]
struct Spaces {
    escaped: bool,
    prefix: bool,
    prefix_once: bool,
    prefix_unless_space: bool,
    /// Whether the prefix is a step of normalization.
    prefix_normalizes: bool,
    /// Whether spaces are replaced by such a step.
    escape_normalizes: bool,
    /// Whether merges stay inside words, which begin at a `▁`.
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
        return Err(unsupported("it looks up whole words without merging".to_string()));
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
            "the tokenizer merges in an order that scores cannot express; nibble stores the order in a key of its own, \
             but other programs may get slightly different tokens"
                .to_string(),
        );
    }
    Ok(Draft {
        space_prefix: Some(spaces.prefix),
        prefix_once: spaces.prefix_once,
        prefix_unless_space: spaces.prefix_unless_space,
        prefix_normalizes: spaces.prefix_normalizes,
        escape_normalizes: spaces.escape_normalizes,
        own_merges: (!faithful).then(|| join(&merges)),
        ..draft(VocabKind::Sentencepiece, pieces)
    })
}

/// Returns whether the result of a merge has `▁` only at its start.
fn inside_word((left, right): &(&str, &str)) -> bool {
    !left.chars().skip(1).chain(right.chars()).any(|char| char == SPACE)
}

/// Reads how spaces are treated.
///
/// # Errors
/// If nibble does not support a step. The error is the step, in words.
fn spaces(file: &File) -> Result<Spaces, String> {
    let mut spaces = Spaces::default();
    for step in flatten(&file.normalizer, "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == "▁" => {
                spaces.prefix = true;
                spaces.prefix_normalizes = true;
            }
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "▁" => {
                spaces.escaped = true;
                spaces.escape_normalizes = true;
            }
            _ => return Err(format!("it normalizes text in a way that nibble does not support ({step})")),
        }
    }
    for step in flatten(&file.pre_tokenizer, "pretokenizers") {
        if step["type"] != "Metaspace" || step.get("replacement").is_some_and(|char| char != "▁") {
            return Err(format!("it splits text in a way that nibble does not support ({step})"));
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
            // Unlike the normalizer's step, this one adds no space to a text that starts with one.
            prefix_unless_space: prefix && !spaces.prefix,
            prefix_normalizes: spaces.prefix_normalizes,
            escape_normalizes: spaces.escape_normalizes,
            words: step["split"].as_bool().unwrap_or(true),
        };
    }
    if !spaces.escaped {
        return Err("it does not replace spaces".to_string());
    }
    Ok(spaces)
}

/// Gives every piece a score, so that merging by scores follows the order of the list. Returns whether it then does
/// exactly what the list does, although by scores any two neighbors that spell a piece are merged.
fn score(pieces: &mut [Piece], merges: &[(&str, &str)], special: &HashSet<&str>) -> bool {
    let mergeable = |piece: &Piece| piece.ty == PieceType::Normal && !special.contains(piece.text.as_str());
    let ids: HashMap<String, usize> = pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), id)).collect();
    let mut faithful = true;
    let mut order: HashMap<usize, usize> = HashMap::new();
    let mut last = None;
    let mut seen = HashSet::new();
    for merge in merges {
        let joined = [merge.0, merge.1].concat();
        let Some(&id) = ids.get(&joined).filter(|_| ids.contains_key(merge.0) && ids.contains_key(merge.1)) else {
            // The tokenizers library refuses such files. This merge has no effect.
            faithful = false;
            continue;
        };
        let next = order.len();
        let place = *order.entry(id).or_insert(next);
        // All merges into one piece must be consecutive.
        faithful &= last.is_none_or(|last| place >= last) && mergeable(&pieces[id]);
        last = Some(place);
        seen.insert((merge.0, merge.1));
    }
    let n_possible: usize = pieces
        .iter()
        .filter(|piece| mergeable(piece))
        .map(|piece| {
            let splits = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
            // A single character takes part in merging by scores even if it is not a piece.
            let part = |part: &str| ids.get(part).map_or(part.chars().nth(1).is_none(), |&id| mergeable(&pieces[id]));
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

/// Returns the steps of a component: those of a sequence, the component itself if it is not one, nothing for null.
pub(super) fn flatten<'a>(component: &'a Value, list: &str) -> Vec<&'a Value> {
    match component {
        Value::Null => Vec::new(),
        _ if component["type"] == "Sequence" => {
            // serde_json limits the depth of nesting, and thereby of this recursion.
            component[list].as_array().into_iter().flatten().flat_map(|step| flatten(step, list)).collect()
        }
        _ => vec![component],
    }
}

/// Returns the tokens that a post-processor adds before and after a text.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(file: &Value) -> (Result<Draft, Error>, Vec<String>) {
        let mut warnings = Vec::new();
        (parse(Path::new("tokenizer.json"), file.to_string().as_bytes(), &mut warnings), warnings)
    }

    /// A sentencepiece tokenizer like Llama 2's.
    fn llama_2() -> Value {
        json!({
            "added_tokens": [
                {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
                {"id": 9, "content": "<|im_end|>", "special": false},
            ],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            ]},
            "model": {
                "type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "a": 3, "b": 4, "▁": 5, "ab": 6, "▁ab": 7, "▁a": 8},
                "merges": ["a b", "▁ ab", "▁a b", "▁ a"],
            },
        })
    }

    /// A byte-level tokenizer like Llama 3's.
    fn llama_3() -> Value {
        let regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        json!({
            "added_tokens": [{"id": 4, "content": "<|begin_of_text|>", "special": true}],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]},
            "post_processor": {"type": "Sequence", "processors": [
                {"type": "ByteLevel", "add_prefix_space": true},
                {"type": "TemplateProcessing", "single": [
                    {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                ]},
            ]},
            "model": {"type": "BPE", "ignore_merges": true, "vocab": {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3}, "merges": [["Ġ", "a"]]},
        })
    }

    #[test]
    fn a_sentencepiece_tokenizer_gets_scores_in_the_order_of_its_merges() {
        let (draft, warnings) = read(&llama_2());
        let draft = draft.unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!((draft.kind, draft.own_merges, draft.space_prefix), (VocabKind::Sentencepiece, None, Some(true)));
        let piece = |id: usize| (draft.pieces[id].text.as_str(), draft.pieces[id].score, draft.pieces[id].ty);
        assert_eq!(piece(0), ("<unk>", 0.0, PieceType::Unknown));
        assert_eq!(piece(2), ("<0x0A>", 0.0, PieceType::Byte));
        assert_eq!((piece(6).1, piece(7).1, piece(8).1, piece(3).1), (0.0, -1.0, -2.0, -3.0));
        assert_eq!((draft.add_bos, draft.bos, draft.add_eos), (Some(true), Some(1), Some(false)));
    }

    #[test]
    fn an_order_that_scores_cannot_express_is_kept_as_it_is() {
        // '▁ab' can be made in two ways; one of them missing, one of them late, one of them nonsense.
        for merges in [json!(["a b", "▁ ab", "▁ a"]), json!(["a b", "▁ ab", "▁ a", "▁a b"]), json!(["a b", "x y"])]
        {
            let mut file = llama_2();
            file["model"]["merges"] = merges;
            let (draft, warnings) = read(&file);
            assert!(draft.unwrap().own_merges.is_some());
            assert_eq!(warnings.len(), 1);
        }
    }

    #[test]
    fn words_are_not_merged_across_where_the_file_splits_them() {
        let mut file = llama_2();
        file["normalizer"] = Value::Null;
        file["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"});
        file["model"]["vocab"]["b▁"] = json!(9);
        file["model"]["merges"].as_array_mut().unwrap().push(json!("b ▁"));
        let draft = read(&file).0.unwrap();
        assert_eq!(draft.own_merges.unwrap(), ["a b", "▁ ab", "▁a b", "▁ a"]);
        assert_eq!((draft.space_prefix, draft.prefix_once, draft.prefix_unless_space), (Some(true), true, true));
    }

    #[test]
    fn a_byte_level_tokenizer_keeps_its_merges_and_gets_the_name_of_its_splitting() {
        let draft = read(&llama_3()).0.unwrap();
        assert_eq!((draft.kind, draft.pre), (VocabKind::ByteLevel, "llama-bpe"));
        assert_eq!(draft.merges.unwrap(), ["Ġ a"]);
        assert_eq!((draft.bos, draft.add_bos), (Some(4), Some(true)));
    }

    #[test]
    fn composing_characters_is_worth_a_warning() {
        let mut file = llama_3();
        file["normalizer"] = json!({"type": "NFC"});
        assert!(read(&file).1[0].contains("NFC"));
    }

    #[test]
    fn ids_without_a_piece_are_unused() {
        let mut file = llama_2();
        file["model"]["vocab"]["c"] = json!(11);
        let draft = read(&file).0.unwrap();
        assert_eq!((draft.pieces[10].text.as_str(), draft.pieces[10].ty), ("[PAD10]", PieceType::Unused));
    }

    #[test]
    fn refuses_what_it_cannot_say() {
        let error = |base: fn() -> Value, place: &str, value: Value| {
            let mut file = base();
            *file.pointer_mut(place).unwrap() = value;
            read(&file).0.unwrap_err().to_string()
        };
        assert!(error(llama_2, "/model/type", json!("WordPiece")).contains("WordPiece"));
        let unigram = json!({"type": "Unigram", "vocab": [["<unk>", 0.0]]});
        assert!(error(llama_2, "/model", unigram).contains("Unigram"));
        assert!(error(llama_2, "/model/merges", json!(["ab"])).contains("not a pair"));
        assert!(error(llama_2, "/model/merges", json!([["a b", "c"]])).contains("not a pair"));
        assert!(error(llama_2, "/model/merges", json!([1])).contains("is not a tokenizer in JSON"));
        assert!(error(llama_2, "/model/byte_fallback", json!(false)).contains("neither byte-level"));
        assert!(error(llama_2, "/model/vocab/a", json!(4)).contains("piece 4 is both"));
        assert!(error(llama_2, "/model/vocab/a", json!(u64::MAX)).contains("at most"));
        assert!(error(llama_2, "/model/vocab/a", json!(-1)).contains("BPE"));
        assert!(error(llama_2, "/normalizer/normalizers/0", json!({"type": "NFKC"})).contains("NFKC"));
        assert!(error(llama_2, "/normalizer", Value::Null).contains("does not replace spaces"));
        assert!(error(llama_2, "/pre_tokenizer", json!({"type": "Whitespace"})).contains("Whitespace"));
        assert!(error(llama_3, "/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("\\w+")).contains("\\\\w+"));
        let mut lower = llama_3();
        lower["normalizer"] = json!({"type": "Lowercase"});
        assert!(read(&lower).0.unwrap_err().to_string().contains("Lowercase"));
        let mut whole = llama_2();
        whole["model"]["ignore_merges"] = json!(true);
        assert!(read(&whole).0.unwrap_err().to_string().contains("whole words"));
        let mut suffix = llama_2();
        suffix["model"]["end_of_word_suffix"] = json!("</w>");
        assert!(read(&suffix).0.unwrap_err().to_string().contains("beginnings or ends"));
        assert!(parse(Path::new("t"), b"{", &mut Vec::new()).is_err());
    }
}
