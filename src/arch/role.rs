//! What a tensor is for, from its GGUF name.

/// What a tensor is for. Recipes choose by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `token_embd.weight`: a row for each token.
    TokenEmbedding,
    /// `output.weight`: hidden state to logits. A model with tied embeddings has none.
    Output,
    /// `blk.*.attn_q.weight`
    AttentionQ,
    /// `blk.*.attn_k.weight`
    AttentionK,
    /// `blk.*.attn_v.weight`
    AttentionV,
    /// `blk.*.attn_output.weight`
    AttentionOutput,
    /// `blk.*.ffn_gate.weight`
    FfnGate,
    /// `blk.*.ffn_up.weight`
    FfnUp,
    /// `blk.*.ffn_down.weight`
    FfnDown,
    /// Any normalization's weight.
    Norm,
    /// Any bias.
    Bias,
    /// `rope_freqs.weight`: factors of the rotary frequencies.
    RopeFactors,
    /// A tensor that none of the above describes.
    Other,
}

impl Role {
    /// Its name, as recipes have it: `attention_q`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenEmbedding => "token_embedding",
            Self::Output => "output",
            Self::AttentionQ => "attention_q",
            Self::AttentionK => "attention_k",
            Self::AttentionV => "attention_v",
            Self::AttentionOutput => "attention_output",
            Self::FfnGate => "ffn_gate",
            Self::FfnUp => "ffn_up",
            Self::FfnDown => "ffn_down",
            Self::Norm => "norm",
            Self::Bias => "bias",
            Self::RopeFactors => "rope_factors",
            Self::Other => "other",
        }
    }

    /// The role of the tensor with this GGUF name, and the layer it belongs to.
    pub fn of(name: &str) -> (Self, Option<u32>) {
        let (layer, rest) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => match layer.parse() {
                Ok(layer) => (Some(layer), rest),
                Err(_) => return (Self::Other, None),
            },
            None => (None, name),
        };
        let role = match (layer, rest) {
            (None, "token_embd.weight") => Self::TokenEmbedding,
            (None, "output.weight") => Self::Output,
            (None, "rope_freqs.weight") => Self::RopeFactors,
            (Some(_), "attn_q.weight") => Self::AttentionQ,
            (Some(_), "attn_k.weight") => Self::AttentionK,
            (Some(_), "attn_v.weight") => Self::AttentionV,
            (Some(_), "attn_output.weight") => Self::AttentionOutput,
            (Some(_), "ffn_gate.weight") => Self::FfnGate,
            (Some(_), "ffn_up.weight") => Self::FfnUp,
            (Some(_), "ffn_down.weight") => Self::FfnDown,
            (_, rest) if rest.ends_with("_norm.weight") => Self::Norm,
            (_, rest) if rest.ends_with(".bias") => Self::Bias,
            _ => Self::Other,
        };
        (role, layer)
    }
}
