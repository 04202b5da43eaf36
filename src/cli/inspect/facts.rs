//! Facts about a GGUF model, before they become text or JSON.

use crate::gguf::{self, Gguf, Metadata, TensorInfo, TensorType};

/// The summary of a model.
pub struct Summary<'a> {
    pub name: Option<&'a str>,
    pub architecture: Option<&'a str>,
    /// What `general.file_type` stands for, such as `Q4_K_M`.
    pub file_type: Option<&'static str>,
    pub n_parameters: u64,
    pub tensor_bytes: u64,
    /// Scales included; `None` for a file without tensors.
    pub bits_per_weight: Option<f64>,
    pub types: Vec<TypeShare>,
    pub n_tokens: Option<usize>,
    pub shape: ModelShape,
}

/// The tensors of one type.
pub struct TypeShare {
    pub ty: TensorType,
    pub n_tensors: u64,
    pub n_weights: u64,
    pub n_bytes: u64,
}

/// The sizes that most architectures share; those that the file does not give as one number are `None`.
#[derive(Debug, Default, PartialEq)]
pub struct ModelShape {
    pub layers: Option<u64>,
    pub hidden: Option<u64>,
    pub feed_forward: Option<u64>,
    pub heads: Option<u64>,
    pub kv_heads: Option<u64>,
    pub context: Option<u64>,
    /// Bytes that a token takes in the cache of keys and values, at two bytes per number.
    pub kv_bytes_per_token: Option<u64>,
}

impl<'a> Summary<'a> {
    pub fn of(gguf: &'a Gguf) -> Self {
        let metadata = gguf.metadata();
        let (n_parameters, tensor_bytes) = (gguf.n_parameters(), gguf.tensor_bytes());
        Self {
            name: metadata.str("general.name"),
            architecture: metadata.str("general.architecture"),
            file_type: metadata.u64("general.file_type").and_then(gguf::file_type),
            n_parameters,
            tensor_bytes,
            bits_per_weight: (n_parameters > 0).then(|| tensor_bytes as f64 * 8.0 / n_parameters as f64),
            types: type_shares(gguf.tensors()),
            n_tokens: metadata.get("tokenizer.ggml.tokens").and_then(|v| v.as_array()).map(|tokens| tokens.len()),
            shape: ModelShape::of(metadata),
        }
    }
}

impl ModelShape {
    fn of(metadata: &Metadata) -> Self {
        let Some(architecture) = metadata.str("general.architecture") else {
            return Self::default();
        };
        let get = |key: &str| metadata.u64(&format!("{architecture}.{key}"));
        let (layers, hidden, heads) = (get("block_count"), get("embedding_length"), get("attention.head_count"));
        // Absent if every head has its own; an array if layers differ.
        let kv_key = format!("{architecture}.attention.head_count_kv");
        let kv_heads = if metadata.get(&kv_key).is_some() { metadata.u64(&kv_key) } else { heads };

        let head_len = || hidden?.checked_div(heads?);
        let kv_bytes_per_token = || {
            let key_len = get("attention.key_length").or_else(head_len)?;
            let value_len = get("attention.value_length").or_else(head_len)?;
            let numbers = layers?.checked_mul(kv_heads?)?.checked_mul(key_len.checked_add(value_len)?)?;
            numbers.checked_mul(2)
        };
        Self {
            layers,
            hidden,
            feed_forward: get("feed_forward_length"),
            heads,
            kv_heads,
            context: get("context_length"),
            kv_bytes_per_token: kv_bytes_per_token(),
        }
    }
}

/// The types of the tensors, that with the most bytes first.
fn type_shares(tensors: &[TensorInfo]) -> Vec<TypeShare> {
    let mut shares: Vec<TypeShare> = vec![];
    for info in tensors {
        // Both are known: the file was checked when it was opened.
        let (weights, bytes) = (info.n_elements().unwrap_or(0), info.n_bytes().unwrap_or(0));
        match shares.iter_mut().find(|share| share.ty == info.ty) {
            Some(share) => {
                share.n_tensors += 1;
                share.n_weights += weights;
                share.n_bytes += bytes;
            }
            None => shares.push(TypeShare { ty: info.ty, n_tensors: 1, n_weights: weights, n_bytes: bytes }),
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.n_bytes));
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yi_34b_takes_240_kib_of_cache_a_token() {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", 60u32);
        metadata.set("llama.embedding_length", 7168u32);
        metadata.set("llama.attention.head_count", 56u32);
        metadata.set("llama.attention.head_count_kv", 8u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, Some(240 * 1024));
        metadata.set("llama.attention.key_length", 256u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, Some(360 * 1024));
    }

    #[test]
    fn sizes_that_are_missing_or_absurd_leave_a_gap() {
        let mut metadata = Metadata::new();
        assert_eq!(ModelShape::of(&metadata), ModelShape::default());
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", u64::MAX);
        metadata.set("llama.embedding_length", u64::MAX);
        metadata.set("llama.attention.head_count", 0u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, None);
        metadata.set("llama.attention.head_count", 1u32);
        assert_eq!(ModelShape::of(&metadata).kv_bytes_per_token, None);
        metadata.set("llama.attention.head_count_kv", vec![8u32, 4]);
        assert_eq!(ModelShape::of(&metadata).kv_heads, None);
    }
}
