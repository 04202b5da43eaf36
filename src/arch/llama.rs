//! Llama, and everything that has its shape.
//!
//! Sources: `LlamaModel` and `TextModel.set_gguf_parameters` of llama.cpp's converter for names, types and order of the
//! keys; `llama_model_base::load_hparams` and `models/llama.cpp` of its loader for which of them are read.

use serde_json::{Map, Value};

use super::hyper::Defaults;
use super::{Architecture, Error, Hyperparameters, Origin, Slot, Transform};
use crate::gguf::Metadata;

/// `LlamaForCausalLM`: Llama 1 to 3, Yi since its second release, and every fine-tune of it.
pub struct Llama;

impl Architecture for Llama {
    fn names(&self) -> &'static [&'static str] {
        // The second spelling is that of the first conversions of Meta's weights.
        &["LlamaForCausalLM", "LLaMAForCausalLM"]
    }

    fn hyperparameters(&self, config: &Map<String, Value>) -> Result<Hyperparameters, Error> {
        Hyperparameters::from_llama_config(config, Defaults { rope_theta: 10000.0, n_kv_heads: None })
    }

    fn metadata(&self, hyper: &Hyperparameters) -> Metadata {
        metadata(hyper)
    }

    fn slots(&self, hyper: &Hyperparameters) -> Vec<Slot> {
        slots(hyper)
    }
}

/// The model's keys, in the converter's order and with its types.
///
/// All that the loader reads is always written, whether or not a checkpoint spells it out, so that two checkpoints of
/// one model give one file.
pub(super) fn metadata(hyper: &Hyperparameters) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("llama.block_count", hyper.n_layers);
    metadata.set("llama.context_length", hyper.context);
    metadata.set("llama.embedding_length", hyper.hidden);
    metadata.set("llama.feed_forward_length", hyper.ffn);
    metadata.set("llama.attention.head_count", hyper.n_heads);
    metadata.set("llama.attention.head_count_kv", hyper.n_kv_heads);
    if let Some(scaling) = &hyper.rope_scaling {
        scaling.set_metadata(&mut metadata);
    }
    metadata.set("llama.rope.freq_base", hyper.rope_theta as f32);
    metadata.set("llama.attention.layer_norm_rms_epsilon", hyper.rms_eps as f32);
    metadata.set("llama.attention.key_length", hyper.head_dim);
    metadata.set("llama.attention.value_length", hyper.head_dim);
    metadata.set("llama.vocab_size", hyper.vocab);
    metadata.set("llama.rope.dimension_count", hyper.head_dim);
    metadata
}

/// Every tensor of the model, in the order in which a token meets them.
///
/// ```text
/// token_embd  rope_freqs?
/// blk.N.  attn_norm  attn_q  attn_k  attn_v  attn_output  ffn_norm  ffn_gate  ffn_up  ffn_down
/// output_norm  output?
/// ```
///
/// A bias follows its weight. llama.cpp finds tensors by name; its converter keeps the checkpoint's order, which
/// differs between checkpoints of one model.
pub(super) fn slots(hyper: &Hyperparameters) -> Vec<Slot> {
    let [hidden, ffn, vocab] = [hyper.hidden, hyper.ffn, hyper.vocab].map(u64::from);
    let q_rows = u64::from(hyper.n_heads) * u64::from(hyper.head_dim);
    let kv_rows = u64::from(hyper.n_kv_heads) * u64::from(hyper.head_dim);
    let (attention, mlp) = (hyper.attention_bias, hyper.mlp_bias);
    let copy = Transform::Copy;
    let permute_q = Transform::PermuteRows { n_heads: hyper.n_heads };
    let permute_k = Transform::PermuteRows { n_heads: hyper.n_kv_heads };
    #[rustfmt::skip]
    let layer = [
        Part("attn_norm",   "input_layernorm",          hidden,  None,         copy,      false),
        Part("attn_q",      "self_attn.q_proj",         q_rows,  Some(hidden), permute_q, attention),
        Part("attn_k",      "self_attn.k_proj",         kv_rows, Some(hidden), permute_k, attention),
        Part("attn_v",      "self_attn.v_proj",         kv_rows, Some(hidden), copy,      attention),
        Part("attn_output", "self_attn.o_proj",         hidden,  Some(q_rows), copy,      attention),
        Part("ffn_norm",    "post_attention_layernorm", hidden,  None,         copy,      false),
        Part("ffn_gate",    "mlp.gate_proj",            ffn,     Some(hidden), copy,      mlp),
        Part("ffn_up",      "mlp.up_proj",              ffn,     Some(hidden), copy,      mlp),
        Part("ffn_down",    "mlp.down_proj",            hidden,  Some(ffn),    copy,      mlp),
    ];

    let mut slots = vec![slot("token_embd.weight", "model.embed_tokens.weight", vec![hidden, vocab], copy)];
    let factors = hyper.rope_scaling.as_ref().and_then(|scaling| scaling.factors(hyper.rope_theta, hyper.head_dim));
    if let Some(factors) = factors {
        let dims = vec![factors.len() as u64];
        slots.push(Slot { name: "rope_freqs.weight".into(), dims, origin: Origin::Generated(factors) });
    }
    for n in 0..hyper.n_layers {
        for &Part(gguf, hf, rows, cols, transform, bias) in &layer {
            let names = |kind: &str| (format!("blk.{n}.{gguf}.{kind}"), format!("model.layers.{n}.{hf}.{kind}"));
            let (name, source) = names("weight");
            slots.push(slot(name, source, cols.into_iter().chain([rows]).collect(), transform));
            if bias {
                let (name, source) = names("bias");
                slots.push(slot(name, source, vec![rows], transform));
            }
        }
    }
    slots.push(slot("output_norm.weight", "model.norm.weight", vec![hidden], copy));
    if !hyper.tied {
        slots.push(slot("output.weight", "lm_head.weight", vec![hidden, vocab], copy));
    }
    slots
}

/// A tensor of every layer: name in GGUF, name in the checkpoint, rows, columns (none for a vector), transform, whether
/// a bias comes with it.
struct Part(&'static str, &'static str, u64, Option<u64>, Transform, bool);

fn slot(name: impl Into<String>, source: impl Into<String>, dims: Vec<u64>, transform: Transform) -> Slot {
    Slot { name: name.into(), dims, origin: Origin::Checkpoint { names: vec![source.into()], transform } }
}
