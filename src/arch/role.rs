//! What a tensor is for, from its GGUF name.

/// Defines [`Role`]: each role with its name in recipes, whether a recipe may choose its type, and the GGUF names of its
/// tensors. This is the only list of roles.
macro_rules! roles {
    ($($(#[$doc:meta])* $role:ident $name:literal $choice:ident [$($tensor:literal)*])*) => {
        /// The role of a tensor in the model. Recipes choose types by role.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Role {
            $($(#[$doc])* $role,)*
        }

        impl Role {
            /// Every role.
            pub const ALL: &[Self] = &[$(Self::$role),*];

            /// The role's name in recipes: `attention_q`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$role => $name,)*
                }
            }

            /// Returns whether a recipe may choose the type of such tensors. The others keep F32.
            pub fn has_choice(self) -> bool {
                match self {
                    $(Self::$role => choice::$choice,)*
                }
            }
        }

        /// GGUF names and their roles. `blk.*` stands for a layer, another `*` for any text.
        const TENSORS: &[(&str, Role)] = &[$($(($tensor, Role::$role),)*)*];
    };
}

mod choice {
    pub const CHOSEN: bool = true;
    pub const FIXED: bool = false;
}

roles! {
    /// `token_embd.weight`: a row for each token.
    TokenEmbedding "token_embedding" CHOSEN ["token_embd.weight"]
    /// `output.weight`: hidden state to logits. A model with tied embeddings has none.
    Output "output" CHOSEN ["output.weight"]
    /// `blk.*.attn_q.weight`
    AttentionQ "attention_q" CHOSEN ["blk.*.attn_q.weight"]
    /// `blk.*.attn_k.weight`
    AttentionK "attention_k" CHOSEN ["blk.*.attn_k.weight"]
    /// `blk.*.attn_v.weight`
    AttentionV "attention_v" CHOSEN ["blk.*.attn_v.weight"]
    /// `blk.*.attn_output.weight`
    AttentionOutput "attention_output" CHOSEN ["blk.*.attn_output.weight"]
    /// `blk.*.ffn_gate.weight`
    FfnGate "ffn_gate" CHOSEN ["blk.*.ffn_gate.weight"]
    /// `blk.*.ffn_up.weight`
    FfnUp "ffn_up" CHOSEN ["blk.*.ffn_up.weight"]
    /// `blk.*.ffn_down.weight`
    FfnDown "ffn_down" CHOSEN ["blk.*.ffn_down.weight"]
    /// The weight of any normalization.
    Norm "norm" FIXED ["*_norm.weight" "blk.*.*_norm.weight"]
    /// Any bias.
    Bias "bias" FIXED ["*.bias" "blk.*.*.bias"]
    /// `rope_freqs.weight`: factors of the rotary frequencies.
    RopeFactors "rope_factors" FIXED ["rope_freqs.weight"]
    /// A tensor that none of the above describes.
    Other "other" CHOSEN []
}

impl Role {
    /// Returns the role of the tensor with this GGUF name, and the layer it belongs to.
    ///
    /// The names are those of the table above and those that an architecture of
    /// [`ARCHITECTURES`](super::ARCHITECTURES) adds: GGUF names mean the same in every architecture.
    pub fn of(name: &str) -> (Self, Option<u32>) {
        let (layer, rest) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => match layer.parse() {
                Ok(layer) => (Some(layer), rest),
                Err(_) => return (Self::Other, None),
            },
            None => (None, name),
        };
        let matches = |pattern: &str| {
            let pattern = match (layer, pattern.strip_prefix("blk.*.")) {
                (Some(_), Some(rest)) => rest,
                (None, None) => pattern,
                _ => return false,
            };
            match pattern.strip_prefix('*') {
                Some(end) => rest.ends_with(end),
                None => rest == pattern,
            }
        };
        let added = super::ARCHITECTURES.iter().flat_map(|architecture| architecture.roles());
        let role =
            TENSORS.iter().chain(added).find(|(pattern, _)| matches(pattern)).map_or(Self::Other, |(_, role)| *role);
        (role, layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_one_name_everywhere() {
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
    }

    #[test]
    fn roles_follow_from_names() {
        for (name, wanted) in [
            ("token_embd.weight", (Role::TokenEmbedding, None)),
            ("output.weight", (Role::Output, None)),
            ("output_norm.weight", (Role::Norm, None)),
            ("rope_freqs.weight", (Role::RopeFactors, None)),
            ("blk.7.attn_q.weight", (Role::AttentionQ, Some(7))),
            ("blk.7.attn_q.bias", (Role::Bias, Some(7))),
            ("blk.7.attn_norm.weight", (Role::Norm, Some(7))),
            ("blk.0.output.weight", (Role::Other, Some(0))),
            ("attn_q.weight", (Role::Other, None)),
            ("blk.x.attn_q.weight", (Role::Other, None)),
            ("blk.3.ffn_gate_inp.weight", (Role::Other, Some(3))),
        ] {
            assert_eq!(Role::of(name), wanted, "{name}");
        }
    }
}
