//! Yi as 01.AI first released it, in November 2023: Llama's mathematics under names of its own.
//!
//! ```text
//! Yi                              Llama
//! model.layers.N.ln1.weight       model.layers.N.input_layernorm.weight
//! model.layers.N.ln2.weight       model.layers.N.post_attention_layernorm.weight
//! ```
//!
//! The other tensors have the same names in both. Later releases of the same weights say `LlamaForCausalLM`; a
//! checkpoint of either kind gives the same file. Source: `configuration_yi.py` and `modeling_yi.py` of the first
//! releases on <https://huggingface.co/01-ai>.

use serde_json::{Map, Value};

use super::hyper::Defaults;
use super::{Architecture, Blueprint, Error, Hyperparameters, Origin, llama};
use crate::gguf::Gguf;

/// `YiForCausalLM`: the first releases of Yi-6B and Yi-34B, with 4K and 200K context.
pub struct Yi;

impl Yi {
    pub(super) fn hyperparameters(config: &Map<String, Value>) -> Result<Hyperparameters, Error> {
        // The defaults of YiConfig, which are not Llama's.
        Hyperparameters::from_llama_config(config, Defaults { rope_theta: 5e6, n_kv_heads: Some(4) })
    }
}

impl Architecture for Yi {
    fn names(&self) -> &'static [&'static str] {
        &["YiForCausalLM", "YiModel"]
    }

    fn model_type(&self) -> Option<&'static str> {
        Some("Yi")
    }

    fn gguf_name(&self) -> &'static str {
        llama::NAME
    }

    fn blueprint(&self, config: &Map<String, Value>) -> Result<Blueprint, Error> {
        Ok(with_names(llama::blueprint(&Self::hyperparameters(config)?, config)))
    }

    fn blueprint_of_gguf(&self, gguf: &Gguf) -> Result<Blueprint, Error> {
        Ok(with_names(llama::blueprint_of_gguf(gguf)?))
    }
}

/// Puts Yi's names before Llama's. Fine-tunes whose tensors were renamed but whose config.json was not need the latter.
fn with_names(mut blueprint: Blueprint) -> Blueprint {
    for tensor in &mut blueprint.tensors {
        let Origin::Checkpoint(inputs) = &mut tensor.origin else { continue };
        for stored in inputs.iter_mut().flat_map(|input| &mut input.tensors) {
            if let Some(name) = yi_name(stored.name()) {
                stored.names.insert(0, name);
            }
        }
    }
    blueprint
}

/// Returns Yi's name for the tensor with this name in Llama; `None` if both use the same name.
fn yi_name(llama: &str) -> Option<String> {
    [("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2")]
        .into_iter()
        .find_map(|(norm, ln)| llama.contains(norm).then(|| llama.replace(norm, ln)))
}
