//! PEFT's conventions: `adapter_config.json`, and the names of an adapter's tensors.
//!
//! ```text
//! base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight            [r, in]
//! base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight            [out, r]
//! base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight    the same, with the adapter's name
//! base_model.model.model.embed_tokens.lora_embedding_A                      [r, vocabulary]
//! base_model.model.model.embed_tokens.lora_embedding_B                      [hidden, r]
//! ~~~~~~~~~~~~~~~~ ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~ ~~~~~~
//! wrappers         module                              factor
//! ```
//!
//! Source: `LoraConfig` in `src/peft/tuners/lora/config.py`, `get_pattern_key` in `src/peft/utils/other.py` and
//! `get_peft_model_state_dict` in `src/peft/utils/save_and_load.py` of <https://github.com/huggingface/peft>.

use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;

use super::Error;
use crate::checkpoint::Config;

/// The strength of an adapter, by module.
#[derive(Debug)]
pub struct Settings {
    rank: u64,
    alpha: f64,
    rs_lora: bool,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    /// The model that it was trained on, as the training script named it.
    pub base: Option<String>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Initializations that also change the base model's weights, which the adapter's file does not contain.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Settings {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// If the adapter is not LoRA, or is more than what llama.cpp's LoRA can do.
    pub fn read(config: &Config) -> Result<Self, Error> {
        let path = || config.path().to_path_buf();
        let kind = config.opt_str("peft_type")?.unwrap_or("none");
        if !kind.eq_ignore_ascii_case("lora") {
            return Err(Error::Kind { path: path(), found: kind.to_string() });
        }
        refuse(config)?;
        let rank = config.u64("r")?;
        if !(1..=MOST_RANK).contains(&rank) {
            return Err(Error::Value {
                path: path(),
                key: "r".into(),
                found: rank.to_string(),
                wanted: "a rank from 1 up",
            });
        }
        let alpha = config.f64("lora_alpha")?;
        // llama.cpp takes an alpha of 0 as absent, and then does not divide by the rank either.
        if !alpha.is_finite() || alpha == 0.0 {
            return Err(Error::Value {
                path: path(),
                key: "lora_alpha".into(),
                found: alpha.to_string(),
                wanted: "a number other than 0, which would make the adapter do nothing",
            });
        }
        let mut warnings = Vec::new();
        if config.opt_bool("fan_in_fan_out")? == Some(true) {
            warnings.push(
                "adapter_config.json says 'fan_in_fan_out', which is about how GPT-2 stores its weights; PEFT passes over \
                 it in models of this architecture, and so does nibble"
                    .to_string(),
            );
        }
        Ok(Self {
            rank,
            alpha,
            rs_lora: config.opt_bool("use_rslora")?.unwrap_or(false),
            ranks: patterns(config, "rank_pattern")?,
            alphas: patterns(config, "alpha_pattern")?,
            base: config.opt_str("base_model_name_or_path")?.filter(|id| !id.is_empty()).map(str::to_string),
            warnings,
        })
    }

    /// The rank that the adapter has in `module`.
    pub fn rank(&self, module: &str) -> u64 {
        // Patterns were held to whole numbers.
        find(&self.ranks, module).map_or(self.rank, |rank| rank as u64)
    }

    /// Returns the factor of B x A in `module`.
    pub fn scale(&self, module: &str) -> f64 {
        let alpha = find(&self.alphas, module).unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        alpha / if self.rs_lora { rank.sqrt() } else { rank }
    }

    /// The alpha for which llama.cpp, which divides it by the rank, scales as this adapter does where no pattern says
    /// otherwise.
    pub fn alpha(&self) -> f64 {
        self.alpha * if self.rs_lora { (self.rank as f64).sqrt() } else { 1.0 }
    }
}

/// No matrix has more rows.
const MOST_RANK: u64 = 1 << 20;

fn refuse(config: &Config) -> Result<(), Error> {
    let unsupported = |key: &'static str, why| match config.get(key) {
        Some(value) => Err(Error::Unsupported { path: config.path().to_path_buf(), key, found: shown(value), why }),
        None => Ok(()),
    };
    let is_set = |key: &str| match config.get(key) {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    for (key, why) in [
        ("use_dora", "llama.cpp has no DoRA, which also rescales the base model's weights"),
        ("use_qalora", "llama.cpp has no QALoRA, which pools the inputs"),
        ("modules_to_save", "whole modules were trained beside the adapter, and a LoRA file has room for none"),
        (
            "trainable_token_indices",
            "embeddings of tokens were trained beside the adapter, and a LoRA file has no room for them",
        ),
        ("layer_replication", "the adapter was trained on a model that repeats layers, which the base model does not"),
        ("lora_bias", "biases were trained with the adapter, and a LoRA file has no room for them"),
        (
            "alora_invocation_tokens",
            "the adapter takes effect only after these tokens; as a GGUF it would take effect at once",
        ),
        ("target_parameters", "the adapter changes parameters that are not the matrix of a module"),
    ] {
        if is_set(key) {
            unsupported(key, why)?;
        }
    }
    if !matches!(config.opt_str("bias")?, None | Some("none")) {
        unsupported("bias", "biases were trained beside the adapter, and a LoRA file has no room for them")?;
    }
    if let Some(begin) = config.get("init_lora_weights").and_then(Value::as_str) {
        let begin = begin.to_ascii_lowercase();
        if CHANGES_BASE.iter().any(|way| begin.starts_with(way)) {
            unsupported(
                "init_lora_weights",
                "the adapter's initialization also changed the base model's weights, and the adapter does not hold this change \
                 (PEFT's 'path_initial_model_for_weight_conversion' saves one that goes with the unchanged model)",
            )?;
        }
    }
    Ok(())
}

/// Formats a value for a message.
fn shown(value: &Value) -> String {
    crate::base::display::shorten(&value.to_string(), 80)
}

/// The numbers under `key`, by the modules that they are for.
fn patterns(config: &Config, key: &'static str) -> Result<Vec<(Regex, f64)>, Error> {
    let path: PathBuf = config.path().into();
    let wrong =
        |found: &Value, wanted| Error::Value { path: path.clone(), key: key.to_string(), found: shown(found), wanted };
    let map = match config.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(other, "an object: modules and their numbers")),
    };
    map.iter()
        .map(|(pattern, value)| {
            let number = match value.as_f64() {
                Some(n) if key == "alpha_pattern" && n.is_finite() => n,
                Some(n) if n.fract() == 0.0 && (1.0..=MOST_RANK as f64).contains(&n) => n,
                _ => return Err(wrong(value, "a number for each module, and a whole one from 1 up for a rank")),
            };
            // As in PEFT: the whole name of a module, or the part after a point.
            let whole = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            let whole = whole.map_err(|error| Error::Pattern {
                path: path.clone(),
                key,
                pattern: pattern.clone(),
                // The last line says what; those before draw where.
                problem: error.to_string().lines().last().unwrap_or_default().trim().to_string(),
            })?;
            Ok((whole, number))
        })
        .collect()
}

fn find(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, number)| *number)
}

/// One of the two factors of an adapter's matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// From the input to the rank.
    A,
    /// From the rank to the output.
    B,
}

/// What an adapter's tensor is, according to its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorName {
    /// A factor for a module.
    Factor {
        /// The module, as the base model calls it: `model.layers.0.self_attn.q_proj`.
        module: String,
        /// Which factor.
        factor: Factor,
        /// Whether it is of the kind that an embedding has.
        embedding: bool,
        /// The adapter's name, where the tensor's has it.
        adapter: Option<String>,
    },
    /// The module's own weight, saved along.
    Base {
        /// The module.
        module: String,
    },
    /// Something that a LoRA file cannot hold, and what it is.
    Foreign(&'static str),
}

/// Parses the name of a tensor.
pub fn part(name: &str) -> TensorName {
    // A wrapper around PEFT's own comes first: `_orig_mod.base_model.model.`.
    let begin = name.find("base_model.model.").filter(|&at| at == 0 || name[..at].ends_with('.'));
    let name = begin.map_or(name, |at| &name[at + "base_model.model.".len()..]);
    let parts: Vec<&str> = name.split('.').collect();
    let at = |wanted: &[&str]| parts.iter().position(|part| wanted.contains(part));
    let module = |end: usize| parts[..end].join(".");
    if let Some(i) = at(&["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"]) {
        let embedding = parts[i].contains("embedding");
        let factor = if parts[i].ends_with('A') { Factor::A } else { Factor::B };
        let adapter = match (&parts[i + 1..], embedding) {
            (["weight"], false) | ([], true) => None,
            ([adapter, "weight"], false) | ([adapter], true) => Some(adapter.to_string()),
            ([.., "bias"], _) => return TensorName::Foreign("is a bias, for which a LoRA file has no room"),
            _ => return TensorName::Foreign("has a name that PEFT gives to no part of an adapter"),
        };
        return TensorName::Factor { module: module(i), factor, embedding, adapter };
    }
    let has = |wanted: &str| parts.iter().any(|part| part.contains(wanted));
    if let Some(i) = at(&["base_layer"]).filter(|_| name.ends_with(".weight")) {
        return TensorName::Base { module: module(i) };
    }
    TensorName::Foreign(if has("lora_magnitude_vector") {
        "is of a DoRA adapter, which llama.cpp does not have"
    } else if name.ends_with(".bias") {
        "is a bias, for which a LoRA file has no room"
    } else if has("norm") || has("ln1") || has("ln2") {
        "is a whole norm, which llama.cpp passes over in a LoRA file"
    } else if name.ends_with(".weight") {
        "is a whole matrix that was trained beside the adapter, for which a LoRA file has no room"
    } else {
        "has a name that PEFT gives to no part of an adapter"
    })
}

/// The name that the partner of the tensor `name` has.
pub fn partner(name: &str, factor: Factor) -> String {
    match factor {
        Factor::A => name.replace(".lora_A", ".lora_B").replace(".lora_embedding_A", ".lora_embedding_B"),
        Factor::B => name.replace(".lora_B", ".lora_A").replace(".lora_embedding_B", ".lora_embedding_A"),
    }
}

/// The folder of the base model that the configuration names, where it is a local one: as it stands, or from the adapter's
/// folder on.
pub fn local_base(base: &str, adapter: &Path) -> Option<PathBuf> {
    [PathBuf::from(base), adapter.join(base)].into_iter().find(|path| path.join("config.json").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let factor = |name: &str| match part(name) {
            TensorName::Factor { module, factor, embedding, adapter } => (module, factor, embedding, adapter),
            other => panic!("{name}: {other:?}"),
        };
        let q = "model.layers.0.self_attn.q_proj".to_string();
        let name = |rest: &str| format!("base_model.model.{q}.{rest}");
        assert_eq!(factor(&name("lora_A.weight")), (q.clone(), Factor::A, false, None));
        assert_eq!(factor(&name("lora_B.default.weight")), (q.clone(), Factor::B, false, Some("default".into())));
        let embedding = ("model.embed_tokens".to_string(), Factor::B, true, None);
        assert_eq!(factor("base_model.model.model.embed_tokens.lora_embedding_B"), embedding);
        assert_eq!(factor("base_model.model.model.embed_tokens.lora_embedding_A.me").3, Some("me".into()));
        assert_eq!(part(&name("base_layer.weight")), TensorName::Base { module: q });
    }

    #[test]
    fn what_is_no_factor_is_named() {
        for (name, word) in [
            ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
            ("model.layers.0.self_attn.q_proj.lora_B.bias", "bias"),
            ("model.layers.0.self_attn.q_proj.bias", "bias"),
            ("model.layers.0.ln1.weight", "norm"),
            ("model.embed_tokens.weight", "whole matrix"),
            ("model.layers.0.self_attn.q_proj.lora_A.a.b.weight", "no part"),
            ("lora_A", "no part"),
            ("", "no part"),
            ("model.rotary", "no part"),
        ] {
            let found = part(&format!("base_model.model.{name}"));
            assert!(matches!(found, TensorName::Foreign(what) if what.contains(word)), "{name}: {found:?}");
        }
    }

    #[test]
    fn partners_find_each_other() {
        let a = "base_model.model.x.lora_A.default.weight";
        let b = partner(a, Factor::A);
        assert_eq!(b, "base_model.model.x.lora_B.default.weight");
        assert_eq!(partner(&b, Factor::B), a);
        assert_eq!(partner("x.lora_embedding_B", Factor::B), "x.lora_embedding_A");
    }

    #[test]
    fn patterns_match_as_in_peft() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        let settings = |more: &str| {
            std::fs::write(&path, format!(r#"{{"peft_type": "LORA", "r": 16, "lora_alpha": 8, {more}}}"#)).unwrap();
            Settings::read(&Config::read(&path).unwrap().unwrap())
        };
        let one = settings(
            r#""rank_pattern": {"q_proj": 4, "model.layers.[0-9]+.mlp.up_proj": 9, "^model.layers.1.self_attn.k_proj": 2},
               "alpha_pattern": {"layers\\.0\\.self_attn\\.q_proj": 2.5}"#,
        )
        .unwrap();
        assert_eq!(one.rank("model.layers.0.self_attn.q_proj"), 4);
        assert_eq!(one.rank("model.layers.0.self_attn.xq_proj"), 16);
        assert_eq!(one.rank("model.layers.12.mlp.up_proj"), 9);
        assert_eq!(one.rank("model.layers.1.self_attn.k_proj"), 2);
        assert_eq!(one.rank("model.layers.11.self_attn.k_proj"), 16);
        assert_eq!(one.scale("model.layers.0.self_attn.q_proj"), 2.5 / 4.0);
        assert_eq!(one.scale("model.layers.1.self_attn.q_proj"), 2.0);
        assert_eq!((one.scale("model.layers.0.mlp.down_proj"), one.alpha()), (0.5, 8.0));
        let rs = settings(r#""use_rslora": true"#).unwrap();
        assert_eq!((rs.scale("x"), rs.alpha()), (2.0, 32.0));

        let refused = |more: &str| settings(more).unwrap_err().to_string();
        assert!(refused(r#""rank_pattern": {"(": 4}"#).contains("the pattern '(' of 'rank_pattern'"));
        assert!(
            refused(r#""rank_pattern": {"(?=q)": 4}"#).contains("look-around"),
            "{}",
            refused(r#""rank_pattern": {"(?=q)": 4}"#)
        );
        assert!(refused(r#""rank_pattern": {"q": 0.5}"#).contains("'rank_pattern' is 0.5"));
        assert!(refused(r#""alpha_pattern": {"q": "x"}"#).contains("'alpha_pattern' is \"x\""));
        assert!(refused(r#""rank_pattern": [1]"#).contains("'rank_pattern' is [1]"));
    }
}
