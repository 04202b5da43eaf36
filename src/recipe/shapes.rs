//! The shapes of models, from their hyperparameters: for sizes that are known before a file is.

use super::Facts;
use crate::gguf::{TensorInfo, TensorType};

/// The hyperparameters that decide which tensors a model of the Llama architecture has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Shape {
    pub name: &'static str,
    pub n_layers: u32,
    pub hidden: u64,
    pub ffn: u64,
    pub n_heads: u64,
    pub n_kv_heads: u64,
    pub head_dim: u64,
    pub vocab: u64,
    /// The token embedding is the output matrix too.
    pub tied: bool,
    /// The attention's projections to queries, keys and values have biases.
    pub biases: bool,
}

/// Yi-34B, of the shape that Yi-1.5-34B and all their fine-tunes have.
pub const YI_34B: Shape = Shape {
    name: "Yi-34B",
    n_layers: 60,
    hidden: 7168,
    ffn: 20480,
    n_heads: 56,
    n_kv_heads: 8,
    head_dim: 128,
    vocab: 64000,
    tied: false,
    biases: false,
};

/// Yi-6B.
pub const YI_6B: Shape = Shape {
    name: "Yi-6B",
    n_layers: 32,
    hidden: 4096,
    ffn: 11008,
    n_heads: 32,
    n_kv_heads: 4,
    head_dim: 128,
    vocab: 64000,
    tied: false,
    biases: false,
};

/// Yi-9B: Yi-6B with half as many layers again.
pub const YI_9B: Shape = Shape { name: "Yi-9B", n_layers: 48, ..YI_6B };

impl Shape {
    /// What recipes ask about a model.
    pub fn facts(&self) -> Facts {
        Facts { n_layers: self.n_layers, n_heads: self.n_heads, n_kv_heads: self.n_kv_heads }
    }

    /// The model's tensors: matrices of type `source`, vectors F32.
    pub fn tensors(&self, source: TensorType) -> Vec<TensorInfo> {
        let matrix = |name: String, cols, rows| TensorInfo { name, dims: vec![cols, rows], ty: source };
        let vector = |name: String, len| TensorInfo { name, dims: vec![len], ty: TensorType::F32 };
        let (hidden, ffn) = (self.hidden, self.ffn);
        let (queries, keys) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);

        let mut tensors = vec![matrix("token_embd.weight".to_string(), hidden, self.vocab)];
        for layer in 0..self.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            tensors.extend([
                vector(name("attn_norm.weight"), hidden),
                matrix(name("ffn_down.weight"), ffn, hidden),
                matrix(name("ffn_gate.weight"), hidden, ffn),
                matrix(name("ffn_up.weight"), hidden, ffn),
                vector(name("ffn_norm.weight"), hidden),
                matrix(name("attn_k.weight"), hidden, keys),
                matrix(name("attn_output.weight"), queries, hidden),
                matrix(name("attn_q.weight"), hidden, queries),
                matrix(name("attn_v.weight"), hidden, keys),
            ]);
            if self.biases {
                tensors.extend([
                    vector(name("attn_k.bias"), keys),
                    vector(name("attn_q.bias"), queries),
                    vector(name("attn_v.bias"), keys),
                ]);
            }
        }
        tensors.push(vector("output_norm.weight".to_string(), hidden));
        if !self.tied {
            tensors.push(matrix("output.weight".to_string(), hidden, self.vocab));
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yi_has_as_many_parameters_as_published() {
        for (shape, billions) in [(YI_6B, "6.06"), (YI_9B, "8.83"), (YI_34B, "34.39")] {
            let n: u64 = shape.tensors(TensorType::BF16).iter().map(|t| t.n_elements().unwrap()).sum();
            assert_eq!(format!("{:.2}", n as f64 / 1e9), billions, "{}", shape.name);
        }
    }
}
