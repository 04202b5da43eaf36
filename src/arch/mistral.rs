//! Mistral: Llama's tensors, a head size that may differ from the hidden size divided by the heads, sliding attention.

use serde_json::{Map, Value};

use super::config::Config;
use super::hyper::Defaults;
use super::{Architecture, Blueprint, Error, Hyperparameters, llama};
use crate::gguf::Gguf;

/// `MistralForCausalLM`: Mistral 7B, Mistral Nemo and their fine-tunes.
pub struct Mistral;

impl Mistral {
    pub(super) fn hyperparameters(config: &Map<String, Value>) -> Result<Hyperparameters, Error> {
        // The defaults of transformers' MistralConfig; a window of null means that there is none.
        let mut hyper =
            Hyperparameters::from_llama_config(config, Defaults { rope_theta: 10000.0, n_kv_heads: Some(8) })?;
        // Only Mistral's class looks at the key.
        hyper.sliding_window = match config.contains_key("sliding_window") {
            true => Config::new(config).size("sliding_window")?,
            false => Some(4096),
        };
        Ok(hyper)
    }
}

impl Architecture for Mistral {
    fn names(&self) -> &'static [&'static str] {
        &["MistralForCausalLM", "MistralModel"]
    }

    fn model_type(&self) -> Option<&'static str> {
        Some("mistral")
    }

    fn gguf_name(&self) -> &'static str {
        llama::NAME
    }

    fn blueprint(&self, config: &Map<String, Value>) -> Result<Blueprint, Error> {
        Ok(llama::blueprint(&Self::hyperparameters(config)?, config))
    }

    fn blueprint_of_gguf(&self, gguf: &Gguf) -> Result<Blueprint, Error> {
        llama::blueprint_of_gguf(gguf)
    }
}
