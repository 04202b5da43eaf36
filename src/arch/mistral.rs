//! Mistral: Llama's tensors, a head size that may differ from the hidden size divided by the heads, sliding attention.

use serde_json::{Map, Value};

use super::config::Config;
use super::hyper::Defaults;
use super::{Architecture, Error, Hyperparameters, Slot, llama};
use crate::gguf::Metadata;

/// `MistralForCausalLM`: Mistral 7B, Mistral Nemo and their fine-tunes.
pub struct Mistral;

impl Architecture for Mistral {
    fn names(&self) -> &'static [&'static str] {
        &["MistralForCausalLM"]
    }

    fn hyperparameters(&self, config: &Map<String, Value>) -> Result<Hyperparameters, Error> {
        // The defaults of transformers' MistralConfig; a window of null is none.
        let mut hyper =
            Hyperparameters::from_llama_config(config, Defaults { rope_theta: 10000.0, n_kv_heads: Some(8) })?;
        // Only Mistral's class looks at the key.
        hyper.sliding_window = match config.contains_key("sliding_window") {
            true => Config::new(config).size("sliding_window")?,
            false => Some(4096),
        };
        Ok(hyper)
    }

    fn metadata(&self, hyper: &Hyperparameters) -> Metadata {
        llama::metadata(hyper)
    }

    fn slots(&self, hyper: &Hyperparameters) -> Vec<Slot> {
        llama::slots(hyper)
    }
}
