//! Llama, and every architecture with the same tensors.
//!
//! Sources: `LlamaModel` and `TextModel.set_gguf_parameters` of llama.cpp's converter for names, types and order of the
//! keys; `llama_model_base::load_hparams` and `models/llama.cpp` of its loader for which of them are read.

use serde_json::{Map, Value};

use super::hyper::Defaults;
use super::{Architecture, Blueprint, Error, Hyperparameters, Origin, OutputTensor, RowOrder};
use crate::gguf::{self, Gguf, Metadata};

/// `general.architecture`, with which the keys begin.
pub(super) const NAME: &str = "llama";

/// `LlamaForCausalLM`: Llama 1 to 3, Yi since its second release, and every fine-tune of it.
pub struct Llama;

impl Llama {
    pub(super) fn hyperparameters(config: &Map<String, Value>) -> Result<Hyperparameters, Error> {
        Hyperparameters::from_llama_config(config, Defaults { rope_theta: 10000.0, n_kv_heads: None })
    }
}

impl Architecture for Llama {
    fn names(&self) -> &'static [&'static str] {
        // The first conversions of Meta's weights used the second spelling. A model without its output matrix is the third.
        &["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"]
    }

    fn model_type(&self) -> Option<&'static str> {
        Some("llama")
    }

    fn gguf_name(&self) -> &'static str {
        NAME
    }

    fn blueprint(&self, config: &Map<String, Value>) -> Result<Blueprint, Error> {
        Ok(blueprint(&Self::hyperparameters(config)?, config))
    }

    fn blueprint_of_gguf(&self, gguf: &Gguf) -> Result<Blueprint, Error> {
        blueprint_of_gguf(gguf)
    }
}

/// Returns what a Llama-shaped model with these numbers, read from `config`, consists of.
pub(super) fn blueprint(hyper: &Hyperparameters, config: &Map<String, Value>) -> Blueprint {
    // A key that is there but null says nothing.
    let is_said = config.get("tie_word_embeddings").is_some_and(|value| !value.is_null());
    Blueprint {
        topology: hyper.topology(),
        vocab: hyper.vocab.into(),
        metadata: metadata(hyper),
        tensors: tensors(&Hyperparameters { tied: false, ..hyper.clone() }),
        tied: is_said.then_some(hyper.tied),
        has_biases: hyper.attention_bias && hyper.mlp_bias,
        warnings: hyper.warnings(),
    }
}

/// Returns what the Llama-shaped model in a GGUF file consists of. Keys that affect no tensor's name or shape are not read.
pub(super) fn blueprint_of_gguf(gguf: &Gguf) -> Result<Blueprint, Error> {
    let metadata = gguf.metadata();
    let missing = |key: &str| Error::GgufKey { key: key.to_string() };
    let optional = |key: &str| {
        let key = format!("{NAME}.{key}");
        match metadata.get(&key).map(gguf::Value::as_u64) {
            None => Ok(None),
            Some(found) => {
                found.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).map(Some).ok_or_else(|| missing(&key))
            }
        }
    };
    let number = |key: &str| optional(key)?.ok_or_else(|| missing(&format!("{NAME}.{key}")));
    let (hidden, n_heads) = (number("embedding_length")?, number("attention.head_count")?);
    let embedding = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.dims.get(1)).copied();
    let hyper = Hyperparameters {
        n_layers: number("block_count")?,
        hidden,
        ffn: number("feed_forward_length")?,
        n_heads,
        n_kv_heads: optional("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim: optional("attention.key_length")?.unwrap_or(hidden / n_heads),
        vocab: embedding.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| missing("token_embd.weight"))?,
        // Neither the names nor the shapes of matrices depend on the rest.
        ..Hyperparameters::yi_6b()
    };
    hyper.check()?;
    let tied = Some(gguf.tensor("output.weight").is_none());
    Ok(Blueprint { tied, ..blueprint(&hyper, &Map::new()) })
}

/// Returns the model's keys, in the converter's order and with its types.
///
/// Every key that the loader reads is written, whether or not a checkpoint spells it out, so that two checkpoints of
/// one model give one file.
fn metadata(hyper: &Hyperparameters) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", NAME);
    metadata.set(format!("{NAME}.block_count"), hyper.n_layers);
    metadata.set(format!("{NAME}.context_length"), hyper.context);
    metadata.set(format!("{NAME}.embedding_length"), hyper.hidden);
    metadata.set(format!("{NAME}.feed_forward_length"), hyper.ffn);
    metadata.set(format!("{NAME}.attention.head_count"), hyper.n_heads);
    metadata.set(format!("{NAME}.attention.head_count_kv"), hyper.n_kv_heads);
    if let Some(scaling) = &hyper.rope_scaling {
        scaling.set_metadata(NAME, &mut metadata);
    }
    metadata.set(format!("{NAME}.rope.freq_base"), hyper.rope_theta as f32);
    metadata.set(format!("{NAME}.attention.layer_norm_rms_epsilon"), hyper.rms_eps as f32);
    metadata.set(format!("{NAME}.attention.key_length"), hyper.head_dim);
    metadata.set(format!("{NAME}.attention.value_length"), hyper.head_dim);
    metadata.set(format!("{NAME}.vocab_size"), hyper.vocab);
    metadata.set(format!("{NAME}.rope.dimension_count"), hyper.head_dim);
    metadata
}

/// Returns every tensor of the model, in the order in which a token meets them.
///
/// ```text
/// token_embd  rope_freqs?
/// blk.N.  attn_norm  attn_q  attn_k  attn_v  attn_output  ffn_norm  ffn_gate  ffn_up  ffn_down
/// output_norm  output?
/// ```
///
/// A bias follows its weight. llama.cpp finds tensors by name; its converter keeps the checkpoint's order, which
/// differs between checkpoints of one model.
pub(super) fn tensors(hyper: &Hyperparameters) -> Vec<OutputTensor> {
    let [hidden, ffn, vocab] = [hyper.hidden, hyper.ffn, hyper.vocab].map(u64::from);
    let q_rows = u64::from(hyper.n_heads) * u64::from(hyper.head_dim);
    let kv_rows = u64::from(hyper.n_kv_heads) * u64::from(hyper.head_dim);
    let (attention, mlp) = (hyper.attention_bias, hyper.mlp_bias);
    let stored = RowOrder::AsStored;
    let permute_q = RowOrder::InterleaveHalves { n_heads: hyper.n_heads };
    let permute_k = RowOrder::InterleaveHalves { n_heads: hyper.n_kv_heads };
    #[rustfmt::skip]
    let layer = [
        Row("attn_norm",   "input_layernorm",          hidden,  None,         stored,    false),
        Row("attn_q",      "self_attn.q_proj",         q_rows,  Some(hidden), permute_q, attention),
        Row("attn_k",      "self_attn.k_proj",         kv_rows, Some(hidden), permute_k, attention),
        Row("attn_v",      "self_attn.v_proj",         kv_rows, Some(hidden), stored,    attention),
        Row("attn_output", "self_attn.o_proj",         hidden,  Some(q_rows), stored,    attention),
        Row("ffn_norm",    "post_attention_layernorm", hidden,  None,         stored,    false),
        Row("ffn_gate",    "mlp.gate_proj",            ffn,     Some(hidden), stored,    mlp),
        Row("ffn_up",      "mlp.up_proj",              ffn,     Some(hidden), stored,    mlp),
        Row("ffn_down",    "mlp.down_proj",            hidden,  Some(ffn),    stored,    mlp),
    ];

    let one = OutputTensor::of_one;
    let mut tensors = vec![one("token_embd.weight", "model.embed_tokens.weight", vec![hidden, vocab], stored)];
    let factors = hyper.rope_scaling.as_ref().and_then(|scaling| scaling.factors(hyper.rope_theta, hyper.head_dim));
    if let Some(factors) = factors {
        let dims = vec![factors.len() as u64];
        tensors.push(OutputTensor { name: "rope_freqs.weight".into(), dims, origin: Origin::Generated(factors) });
    }
    for n in 0..hyper.n_layers {
        for &Row(gguf, hf, rows, cols, order, bias) in &layer {
            let names = |kind: &str| (format!("blk.{n}.{gguf}.{kind}"), format!("model.layers.{n}.{hf}.{kind}"));
            let (name, source) = names("weight");
            tensors.push(OutputTensor::of_one(name, source, cols.into_iter().chain([rows]).collect(), order));
            if bias {
                let (name, source) = names("bias");
                tensors.push(OutputTensor::of_one(name, source, vec![rows], order));
            }
        }
    }
    tensors.push(one("output_norm.weight", "model.norm.weight", vec![hidden], stored));
    if !hyper.tied {
        tensors.push(one("output.weight", "lm_head.weight", vec![hidden, vocab], stored));
    }
    tensors
}

/// A tensor of every layer: name in GGUF, name in the checkpoint, rows, columns (`None` for a vector), order of the rows,
/// whether a bias comes with it.
struct Row(&'static str, &'static str, u64, Option<u64>, RowOrder, bool);
