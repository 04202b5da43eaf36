//! Counts the bytes that a model has to read from memory to write one token.
//!
//! ```text
//! all matrices and vectors                   the output too, also where it is the embedding
//! one row of tables that are looked up       the token embedding of Yi: 7168 of 64000 x 7168 weights
//! the experts that are used                  2 of Mixtral's 8
//! the KV cache                               keys and values of all earlier tokens
//! ```

use crate::gguf::{Metadata, TensorInfo};
use crate::llama::KvTypes;
use crate::placement::Shape;

/// Tensors in which a token looks up one row.
const TABLES: [&str; 3] = ["token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight"];

/// Bytes that a token reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Of weights.
    pub weights: u64,
    /// Of the KV cache, for each token in the context.
    pub kv_a_token: u64,
}

impl Cost {
    /// Counts the bytes for a model with this metadata and these tensors.
    pub fn of(metadata: &Metadata, tensors: &[TensorInfo], shape: &Shape, kv_types: KvTypes) -> Self {
        Self { weights: weights(metadata, tensors), kv_a_token: shape.kv_bytes_a_token(kv_types) }
    }

    /// Returns the mean bytes per token for `n_tokens` tokens that are written after `depth` others. A token attends to
    /// itself too.
    pub fn a_token(&self, depth: u32, n_tokens: u32) -> f64 {
        let mean_depth = f64::from(depth) + (f64::from(n_tokens) + 1.0) / 2.0;
        self.weights as f64 + self.kv_a_token as f64 * mean_depth
    }
}

/// Returns the bytes of weights that a token reads.
fn weights(metadata: &Metadata, tensors: &[TensorInfo]) -> u64 {
    let architecture = metadata.str("general.architecture").unwrap_or_default();
    let number = |key: &str| metadata.u64(&format!("{architecture}.{key}"));
    let experts = number("expert_used_count").zip(number("expert_count")).filter(|(used, of)| used < of);
    let has_output = tensors.iter().any(|tensor| tensor.name == "output.weight");
    let read = |tensor: &TensorInfo| {
        let all = tensor.n_bytes().unwrap_or(0);
        let is_output = tensor.name == "token_embd.weight" && !has_output;
        if TABLES.contains(&tensor.name.as_str()) && !is_output {
            return tensor.ty.row_bytes(tensor.row_len()).unwrap_or(all);
        }
        match experts {
            Some((used, of)) if tensor.name.contains("_exps.") => {
                (u128::from(all) * u128::from(used) / u128::from(of)) as u64
            }
            _ => all,
        }
    };
    tensors.iter().map(read).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, Hyperparameters};
    use crate::gguf::TensorType;

    fn tensor(name: &str, dims: &[u64], ty: TensorType) -> TensorInfo {
        TensorInfo { name: name.into(), dims: dims.to_vec(), ty }
    }

    #[test]
    fn yi_34b_reads_all_but_its_embedding() {
        let hyper = Hyperparameters::yi_34b();
        let tensors = arch::tensors(&hyper, TensorType::F16);
        // Counted by hand: Q and O, K and V, three matrices of the feed-forward network, the output; norms as floats.
        let layer = 2 * 7168 * 7168 + 2 * 1024 * 7168 + 3 * 20_480 * 7168;
        let matrices = 60 * layer + 64_000 * 7168 + 7168;
        let norms = (60 * 2 + 1) * 7168;
        assert_eq!(weights(&Metadata::new(), &tensors), matrices * 2 + norms * 4);
    }

    #[test]
    fn an_embedding_that_is_the_output_is_read_whole() {
        let table = tensor("token_embd.weight", &[256, 1000], TensorType::Q8_0);
        let norm = tensor("output_norm.weight", &[256], TensorType::F32);
        let tied = [table.clone(), norm.clone()];
        assert_eq!(weights(&Metadata::new(), &tied), 1000 * 272 + 1024);
        let untied = [table, norm, tensor("output.weight", &[256, 1000], TensorType::Q4_K)];
        assert_eq!(weights(&Metadata::new(), &untied), 272 + 1024 + 1000 * 144);
    }

    #[test]
    fn of_a_mixture_only_the_experts_in_use_are_read() {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("llama.expert_count", 8u32);
        metadata.set("llama.expert_used_count", 2u32);
        let tensors = [
            tensor("blk.0.ffn_gate_inp.weight", &[256, 8], TensorType::F32),
            tensor("blk.0.ffn_up_exps.weight", &[256, 512, 8], TensorType::Q4_K),
        ];
        assert_eq!(weights(&metadata, &tensors), 256 * 8 * 4 + 512 * 144 * 2);
        metadata.set("llama.expert_used_count", 20u32);
        assert_eq!(weights(&metadata, &tensors), 256 * 8 * 4 + 512 * 144 * 8);
    }

    #[test]
    fn the_cache_counts_with_its_mean_depth() {
        let cost = Cost { weights: 1000, kv_a_token: 10 };
        // The first of one token attends to 1 position, the three after 7 others to 8, 9 and 10.
        assert_eq!(cost.a_token(0, 1), 1010.0);
        assert_eq!(cost.a_token(7, 3), 1090.0);
    }
}
