//! Which ids mean something to a program: where a text begins, and everything that ends one.
//!
//! The files of one model often disagree. Yi-Chat's tokenizer and `config.json` say that 2 (`<|endoftext|>`) ends a
//! text, its `generation_config.json` says 7 (`<|im_end|>`), and the model uses both. So every end token that any file
//! names counts.

use std::collections::BTreeSet;

use serde_json::Value;

use super::draft::Draft;
use super::{Error, Object, PieceType, TokenizerFiles, VocabKind};

/// The ids that go into a file.
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
    /// End tokens that are none of the above.
    pub more_ends: Vec<u32>,
}

/// Markers that end a turn, in templates. Only such as are used for nothing else.
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

/// Finds the ids.
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
            // A model without a template that is tuned to end its turns otherwise than its texts says so here.
            if eot.is_none() && file == "generation_config.json" && eos != Some(id) {
                eot = Some(id);
            }
        }
    }
    if ends.is_empty() {
        finder.warnings.push("no file says which token ends a text: generation will go on until it is cut off".to_string());
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
    /// The id of the token that the files call `<name>_token`; `file` is what the tokenizer file itself says.
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
                None => self.warnings.push(format!("{source} names '{text}' as {key}, which is no token of this model")),
            }
        }
        let ids = self.files.config.and_then(|config| config.get(&format!("{key}_id"))).map(ids).unwrap_or_default();
        ids.into_iter().chain(file).find_map(|id| self.known(id))
    }

    /// The id, where the vocabulary has it.
    fn known(&self, id: u64) -> Option<u32> {
        u32::try_from(id).ok().filter(|_| id < self.draft.pieces.len() as u64)
    }

    /// The marker that ends a turn in the template, where it is a token of its own.
    fn template_end(&self) -> Option<u32> {
        let template = self.files.chat_template?;
        TURN_ENDS.iter().filter(|marker| template.contains(**marker)).find_map(|marker| {
            let id = self.draft.id(marker)?;
            let ty = self.draft.pieces[id as usize].ty;
            u32::try_from(id).ok().filter(|_| matches!(ty, PieceType::Control | PieceType::UserDefined))
        })
    }

    /// The end tokens that a configuration file names. Ids of ordinary text are left out: they come from default values
    /// that belong to another vocabulary, and would end a text in its middle.
    fn end_ids(&mut self, file: &str, object: Option<&Object>) -> Vec<u32> {
        let mut found = Vec::new();
        for id in object.and_then(|object| object.get("eos_token_id")).map(ids).unwrap_or_default() {
            match self.known(id).map(|known| (known, &self.draft.pieces[known as usize])) {
                Some((id, piece)) if !matches!(piece.ty, PieceType::Normal | PieceType::Byte) => found.push(id),
                Some((id, piece)) => self.warnings.push(format!(
                    "{file} says that token {id} ends a text, but that is '{}', ordinary text; not used",
                    piece.text
                )),
                None => self.warnings.push(format!(
                    "{file} says that token {id} ends a text, but the model has {} tokens; not used",
                    self.draft.pieces.len()
                )),
            }
        }
        found
    }

    /// Whether BOS and EOS are put around a text.
    fn added(&mut self) -> (bool, bool) {
        let config = self.files.tokenizer_config;
        let flag = |key: &str| config.and_then(|config| config.get(key)).and_then(Value::as_bool);
        let class = config.and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
        let add_bos = flag("add_bos_token").or(self.draft.add_bos).unwrap_or_else(|| {
            let class = class.map(|class| class.trim_end_matches("Fast"));
            match class {
                _ if self.draft.kind == VocabKind::ByteLevel => false,
                // transformers' class for sentencepiece, which has the model's BOS by default; so has sentencepiece's use
                // in Llama itself, of which there is no configuration at all.
                None | Some("LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer") => true,
                // 01.AI's own class in the first releases of Yi.
                Some("YiTokenizer") => false,
                Some(other) => {
                    self.warnings.push(format!(
                        "tokenizer_config.json does not say whether texts begin with BOS, and '{other}' is not a class \
                         nibble knows; assuming that they do"
                    ));
                    true
                }
            }
        });
        (add_bos, flag("add_eos_token").or(self.draft.add_eos).unwrap_or(false))
    }
}

/// The text of a token in a JSON file, which is a string or an object with its `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// An id or a list of ids. -1 and null, which say that there is none, are left out.
fn ids(value: &Value) -> Vec<u64> {
    match value {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        id => id.as_u64().into_iter().collect(),
    }
}
