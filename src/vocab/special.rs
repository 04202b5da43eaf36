//! Ids with a special meaning: the token that begins a text, and all tokens that end one.
//!
//! The files of a model often disagree. Yi-Chat's tokenizer and `config.json` say that 2 (`<|endoftext|>`) ends a text,
//! its `generation_config.json` says 7 (`<|im_end|>`), and the model uses both. So every end token in any file counts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::draft::Draft;
use super::{Error, Object, PieceType, TokenizerFiles, VocabKind};

/// The ids to write to a GGUF file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Ids {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    pub add_bos: bool,
    pub add_eos: bool,
    /// Tokens for filling in the middle of a text: part of the key, and the id.
    pub fill_in: Vec<(&'static str, u32)>,
    /// All other end tokens.
    pub more_ends: Vec<u32>,
}

/// Markers that end a turn in chat templates, and are used for nothing else.
const TURN_ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endofturn|>",
    "<|eot|>",
    "<|end|>",
    "<turn|>",
];

/// Tokens for filling in the middle of a text, by their texts.
///
/// Without these keys, llama.cpp searches for the texts itself and treats the pieces as control pieces, which Yi's are
/// not.
const FILL_IN: [(&str, &[&str]); 5] = [
    ("fim_pre", &["<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>", "▁<PRE>"]),
    ("fim_suf", &["<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>", "▁<SUF>"]),
    ("fim_mid", &["<fim_middle>", "<|fim_middle|>", "<fim-middle>", "▁<MID>"]),
    ("fim_pad", &["<fim_pad>", "<|fim_pad|>", "<fim-pad>"]),
    ("fim_rep", &["<reponame>", "<|repo_name|>", "<|fim_repo|>", "<fim-repo>"]),
];

/// Finds the ids in the tokenizer and configuration files.
pub(super) fn find(draft: &Draft, files: &TokenizerFiles<'_>, warnings: &mut Vec<String>) -> Result<Ids, Error> {
    let mut finder = Finder { draft, files, warnings };
    let bos = finder.named("bos", draft.bos);
    let eos = finder.named("eos", draft.eos);
    let padding = finder.named("pad", draft.padding);
    let unknown = draft
        .pieces
        .iter()
        .position(|piece| piece.ty == PieceType::Unknown)
        .and_then(|id| u32::try_from(id).ok())
        .or_else(|| finder.named("unk", None));
    let turn_end = finder.template_end();
    let mut ends: BTreeSet<u32> = eos.into_iter().chain(turn_end).collect();
    let mut eot = turn_end;
    for (file, object) in [("config.json", files.config), ("generation_config.json", files.generation_config)] {
        for id in finder.end_ids(file, object) {
            ends.insert(id);
            // A model without a template that ends turns with another token than texts says so here.
            if eot.is_none() && file == "generation_config.json" && eos != Some(id) {
                eot = Some(id);
            }
        }
    }
    if ends.is_empty() {
        finder.warnings.push("no file says which token ends a text, so generation will not stop by itself".to_string());
    }
    let eom = draft.id("<|eom_id|>").and_then(|id| u32::try_from(id).ok()).filter(|id| ends.contains(id));
    for known in [eos, eot, eom].into_iter().flatten() {
        ends.remove(&known);
    }
    let (add_bos, add_eos) = finder.added();
    Ok(Ids {
        bos,
        eos,
        eot,
        eom,
        unknown,
        padding,
        fill_in: FILL_IN.iter().filter_map(|(key, texts)| Some((*key, finder.marker(texts)?))).collect(),
        add_bos: add_bos && bos.is_some(),
        add_eos: add_eos && eos.is_some(),
        more_ends: ends.into_iter().collect(),
    })
}

struct Finder<'a> {
    draft: &'a Draft,
    files: &'a TokenizerFiles<'a>,
    warnings: &'a mut Vec<String>,
}

impl Finder<'_> {
    /// Returns the id of the token that the files name as `<name>_token`; `file` is the id in the tokenizer file
    /// itself.
    fn named(&mut self, name: &str, file: Option<u64>) -> Option<u32> {
        let key = format!("{name}_token");
        for (source, object) in [
            ("tokenizer_config.json", self.files.tokenizer_config),
            ("special_tokens_map.json", self.files.special_tokens_map),
        ] {
            let Some(text) = object.and_then(|object| object.get(&key)).and_then(token_text) else { continue };
            match self.draft.id(text).and_then(|id| u32::try_from(id).ok()) {
                Some(id) => return Some(id),
                None if text.is_empty() => {}
                None => {
                    self.warnings.push(format!("{source} names '{text}' as {key}, which is not a token of this model"))
                }
            }
        }
        let ids = self.files.config.and_then(|config| config.get(&format!("{key}_id"))).map(ids).unwrap_or_default();
        ids.into_iter().chain(file).find_map(|id| self.known(id))
    }

    /// Returns the id if it is in the vocabulary.
    fn known(&self, id: u64) -> Option<u32> {
        u32::try_from(id).ok().filter(|_| id < self.draft.pieces.len() as u64)
    }

    /// Returns the marker that ends a turn in the template, if it is a control or user-defined piece.
    fn template_end(&self) -> Option<u32> {
        let template = self.files.chat_template?;
        TURN_ENDS.iter().filter(|marker| template.contains(**marker)).find_map(|marker| self.marker(&[*marker]))
    }

    /// Returns the first of these texts that is a control or user-defined piece.
    fn marker(&self, texts: &[&str]) -> Option<u32> {
        texts.iter().find_map(|text| {
            let id = self.draft.id(text)?;
            let ty = self.draft.pieces[id as usize].ty;
            u32::try_from(id).ok().filter(|_| matches!(ty, PieceType::Control | PieceType::UserDefined))
        })
    }

    /// Returns the end tokens in a configuration file. Ids of ordinary text are ignored: they are defaults that belong
    /// to another vocabulary, and would end a text in the middle.
    fn end_ids(&mut self, file: &str, object: Option<&Object>) -> Vec<u32> {
        let mut found = Vec::new();
        for id in object.and_then(|object| object.get("eos_token_id")).map(ids).unwrap_or_default() {
            match self.known(id).map(|known| (known, &self.draft.pieces[known as usize])) {
                Some((id, piece)) if !matches!(piece.ty, PieceType::Normal | PieceType::Byte) => found.push(id),
                Some((id, piece)) => self.warnings.push(format!(
                    "{file} says that token {id} ends a text, but that is '{}', which is ordinary text; ignored",
                    piece.text
                )),
                None => self.warnings.push(format!(
                    "{file} says that token {id} ends a text, but the model has {} tokens; ignored",
                    self.draft.pieces.len()
                )),
            }
        }
        found
    }

    /// Returns whether BOS and EOS are added to texts.
    fn added(&mut self) -> (bool, bool) {
        let config = self.files.tokenizer_config;
        let flag = |key: &str| config.and_then(|config| config.get(key)).and_then(Value::as_bool);
        let class = config.and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
        let add_bos = flag("add_bos_token").or(self.draft.add_bos).unwrap_or_else(|| {
            let class = class.map(|class| class.trim_end_matches("Fast"));
            match class {
                _ if self.draft.kind == VocabKind::ByteLevel => false,
                // That version adds BOS only where it is told to.
                _ if super::saved_by_transformers_5(self.files) => false,
                // transformers' classes for sentencepiece, which add BOS by default. So does Llama itself, which comes
                // without a configuration.
                None | Some("LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer") => true,
                // 01.AI's own class in the first releases of Yi.
                Some("YiTokenizer") => false,
                Some(other) => {
                    self.warnings.push(format!(
                        "tokenizer_config.json does not say whether texts begin with BOS, and its class '{other}' is \
                         unknown; assuming that they do"
                    ));
                    true
                }
            }
        });
        (add_bos, flag("add_eos_token").or(self.draft.add_eos).unwrap_or(false))
    }
}

/// Returns the text of a token in a JSON file, which is a string or an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Reads an id or a list of ids. -1 and null mean none, and are left out.
fn ids(value: &Value) -> Vec<u64> {
    match value {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        id => id.as_u64().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sentencepiece::tests::model;
    use super::*;

    use PieceType::{Control, Normal, Unknown, UserDefined};

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    /// What the files say about a vocabulary of eight pieces: 2, 3, 4 and 7 may end a text, 5 is a word.
    fn find_in(tokenizer: Value, config: Value, generation: Value, template: Option<&str>) -> (Ids, Vec<String>) {
        let pieces = [
            ("<unk>", 0.0, Unknown),
            ("<s>", 0.0, Control),
            ("</s>", 0.0, Control),
            ("<|im_end|>", 0.0, UserDefined),
            ("<|eom_id|>", 0.0, Control),
            ("word", -1.0, Normal),
            ("<fim_pad>", 0.0, UserDefined),
            ("<|stop|>", 0.0, Control),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.model");
        std::fs::write(&path, model(&pieces)).unwrap();
        let (tokenizer, config, generation) = (object(tokenizer), object(config), object(generation));
        let files = TokenizerFiles {
            model: Some(path),
            tokenizer_config: Some(&tokenizer),
            config: Some(&config),
            generation_config: Some(&generation),
            chat_template: template,
            ..TokenizerFiles::default()
        };
        let mut warnings = Vec::new();
        let draft = super::super::draft::read(&files, &mut warnings).unwrap();
        (find(&draft, &files, &mut warnings).unwrap(), warnings)
    }

    #[test]
    fn every_end_token_that_a_file_names_counts() {
        let (ids, warnings) = find_in(
            json!({"eos_token": {"content": "</s>"}}),
            json!({"eos_token_id": 2}),
            json!({"eos_token_id": [2, 7, 4]}),
            Some("{{ '<|im_end|>' }}"),
        );
        assert_eq!((ids.eos, ids.eot, ids.eom, ids.more_ends), (Some(2), Some(3), Some(4), vec![7]));
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn without_a_template_the_generation_settings_name_the_end_of_a_turn() {
        let (ids, _) = find_in(json!({}), json!({"eos_token_id": 2}), json!({"eos_token_id": 7}), None);
        assert_eq!((ids.eos, ids.eot, ids.more_ends), (Some(2), Some(7), vec![]));
        let (ids, _) = find_in(json!({}), json!({}), json!({}), Some("no marker here"));
        assert_eq!((ids.bos, ids.eos, ids.eot), (Some(1), Some(2), None), "as the model file says");
    }

    #[test]
    fn words_and_ids_that_do_not_exist_end_nothing() {
        let (ids, warnings) =
            find_in(json!({}), json!({"eos_token_id": [5, -1, null]}), json!({"eos_token_id": 128009}), None);
        assert_eq!((ids.eot, ids.more_ends), (None, vec![]));
        assert!(warnings[0].contains("'word'") && warnings[1].contains("128009"), "{warnings:?}");
    }

    #[test]
    fn a_named_token_that_does_not_exist_is_worth_a_warning() {
        let (ids, warnings) = find_in(json!({"pad_token": "[PAD]"}), json!({"pad_token_id": 0}), json!({}), None);
        assert_eq!(ids.padding, Some(0));
        assert!(warnings[0].contains("'[PAD]' as pad_token"), "{warnings:?}");
    }

    #[test]
    fn bos_is_added_where_the_file_or_the_class_says_so() {
        let add_bos = |config: Value| find_in(config, json!({}), json!({}), None);
        assert!(!add_bos(json!({"add_bos_token": false, "tokenizer_class": "LlamaTokenizer"})).0.add_bos);
        assert!(add_bos(json!({"tokenizer_class": "LlamaTokenizerFast"})).0.add_bos);
        assert!(!add_bos(json!({"tokenizer_class": "YiTokenizer"})).0.add_bos);
        assert!(add_bos(json!({})).0.add_bos);
        let (ids, warnings) = add_bos(json!({"tokenizer_class": "OtherTokenizer", "add_eos_token": true}));
        assert!(ids.add_bos && ids.add_eos && warnings[0].contains("OtherTokenizer"));
    }

    #[test]
    fn tokens_for_filling_in_are_named_by_their_texts() {
        assert_eq!(find_in(json!({}), json!({}), json!({}), None).0.fill_in, [("fim_pad", 6)]);
    }
}
