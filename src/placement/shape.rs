//! The numbers of a model that determine its memory.

use crate::gguf::{Array, Gguf, Metadata, Value};
use crate::llama::{Heads, KvTypes, Model, n_ctx_train};

/// The numbers of a model that determine its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of all tensors, including those of adapters.
    pub weight_bytes: u64,
    /// Layers.
    pub n_layers: u64,
    /// Values that a token takes in the K caches of all layers.
    pub k_values: u64,
    /// Values that a token takes in the V caches of all layers.
    pub v_values: u64,
    /// Attention heads of the layer that has most.
    pub n_heads: u64,
    /// Width of the hidden state.
    pub n_embd: u64,
    /// Width of the widest feed-forward layer.
    pub n_ff: u64,
    /// Tokens in the vocabulary.
    pub n_vocab: u64,
    /// Tokens that the model was trained on at a time; `None` if the file does not say.
    pub n_ctx_train: Option<u32>,
}

impl Shape {
    /// Returns the shape of the model in `gguf`.
    pub fn of(gguf: &Gguf) -> Self {
        let bytes = gguf.tensors().iter().map(|tensor| tensor.n_bytes().unwrap_or(0));
        Self::new(gguf.metadata(), bytes.fold(0u64, u64::saturating_add))
    }

    /// Returns the shape of a loaded model.
    pub fn of_model(model: &Model) -> Self {
        Self::new(model.metadata(), model.tensor_bytes())
    }

    /// Returns the shape that `metadata` describes, of tensors of `weight_bytes`. Numbers that are missing count as 0: the
    /// estimate is for a person, and llama.cpp reports afterwards what is missing.
    pub fn new(metadata: &Metadata, weight_bytes: u64) -> Self {
        let arch = metadata.str("general.architecture").unwrap_or("llama");
        let get = |key: &str| metadata.get(&format!("{arch}.{key}"));
        let number = |key: &str| get(key).and_then(Value::as_u64);
        let heads = heads(metadata);
        let sum = |values: fn(&Heads) -> u64| heads.iter().map(values).fold(0u64, u64::saturating_add);
        let (k_values, v_values) = (sum(Heads::k_values), sum(Heads::v_values));
        let n_layers = heads.len() as u64;
        let n_embd = number("embedding_length").unwrap_or(0);
        let n_heads = heads.iter().map(|heads| heads.n).max().unwrap_or(0);
        let feed_forward = get("feed_forward_length");
        let n_ff = (0..n_layers).map(|layer| of_layer(feed_forward, layer).unwrap_or(0)).max().unwrap_or(0);
        Self {
            weight_bytes,
            n_layers,
            k_values,
            v_values,
            n_heads,
            n_embd,
            n_ff,
            n_vocab: n_vocab(metadata, arch),
            n_ctx_train: n_ctx_train(metadata),
        }
    }

    /// Returns the bytes that a token takes in the KV cache.
    pub fn kv_bytes_a_token(&self, types: KvTypes) -> u64 {
        types.bytes(self.k_values, self.v_values)
    }
}

/// Returns the heads of each layer of the model that `metadata` describes. Numbers that are missing count as llama.cpp has them.
pub fn heads(metadata: &Metadata) -> Vec<Heads> {
    let arch = metadata.str("general.architecture").unwrap_or("llama");
    let get = |key: &str| metadata.get(&format!("{arch}.{key}"));
    let number = |key: &str| get(key).and_then(Value::as_u64);
    // No model has more. The file could hold any number, and there must be an end.
    let n_layers = number("block_count").unwrap_or(0).min(10_000);
    let n_embd = number("embedding_length").unwrap_or(0);
    let (heads, kv_heads) = (get("attention.head_count"), get("attention.head_count_kv"));
    let (k_length, v_length) = (number("attention.key_length"), number("attention.value_length"));
    let layer = |layer| {
        let n = of_layer(heads, layer).unwrap_or(1).max(1);
        let (n_kv, length) = (of_layer(kv_heads, layer).unwrap_or(n), n_embd / n);
        Heads { n, n_kv, key: k_length.unwrap_or(length), value: v_length.unwrap_or(length) }
    };
    (0..n_layers).map(layer).collect()
}

/// Returns a number of a layer, of which there is one for all, or a list.
fn of_layer(value: Option<&Value>, layer: u64) -> Option<u64> {
    match value? {
        Value::Array(array) => element(array, usize::try_from(layer).ok()?),
        value => value.as_u64(),
    }
}

fn n_vocab(metadata: &Metadata, arch: &str) -> u64 {
    let listed = match metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array) {
        Some(Array::String(tokens)) => Some(tokens.len() as u64),
        _ => None,
    };
    listed.or_else(|| metadata.u64(&format!("{arch}.vocab_size"))).unwrap_or(0)
}

/// Returns an element of an array of integers.
fn element(array: &Array, i: usize) -> Option<u64> {
    match array {
        Array::U32(v) => v.get(i).map(|n| u64::from(*n)),
        Array::I32(v) => v.get(i).and_then(|n| u64::try_from(*n).ok()),
        Array::U64(v) => v.get(i).copied(),
        Array::I64(v) => v.get(i).and_then(|n| u64::try_from(*n).ok()),
        Array::U16(v) => v.get(i).map(|n| u64::from(*n)),
        Array::U8(v) => v.get(i).map(|n| u64::from(*n)),
        _ => None,
    }
}

#[cfg(test)]
impl Shape {
    /// Yi-34B at Q4_K_M.
    pub(crate) fn of_yi_34b() -> Self {
        Self {
            weight_bytes: 20_658_000_000,
            n_layers: 60,
            k_values: 60 * 8 * 128,
            v_values: 60 * 8 * 128,
            n_heads: 56,
            n_embd: 7168,
            n_ff: 20_480,
            n_vocab: 64_000,
            n_ctx_train: Some(4096),
        }
    }
}
