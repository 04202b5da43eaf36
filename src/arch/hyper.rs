//! The numbers that make one Llama-shaped model differ from another.

use serde_json::{Map, Value, json};

use super::config::Config;
use super::rope::{self, RopeScaling};
use super::{Error, Topology};

/// llama.cpp ends the process on a model with more: `LLAMA_MAX_LAYERS` in its `llama-hparams.h`.
const MAX_LAYERS: u32 = 512;

/// No model comes near it. Rotary factors are made for every channel of a head, before any tensor vouches for its size.
const MAX_HEAD_DIM: u32 = 1 << 16;

/// The shape of a Llama-shaped model and the constants of its mathematics.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Transformer blocks.
    pub n_layers: u32,
    /// Channels of the hidden state.
    pub hidden: u32,
    /// Channels inside the feed-forward network.
    pub ffn: u32,
    /// Attention heads.
    pub n_heads: u32,
    /// Heads of keys and values; each serves `n_heads / n_kv_heads` heads.
    pub n_kv_heads: u32,
    /// Channels of a head. `n_heads * head_dim` need not be `hidden`.
    pub head_dim: u32,
    /// Rows of the token embedding.
    pub vocab: u32,
    /// Tokens that the model was made for.
    pub context: u32,
    /// The epsilon of root mean square normalization.
    pub rms_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are slowed for long contexts.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the token embedding serves as the output matrix.
    pub tied: bool,
    /// Whether Q, K, V and the attention's output have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward network has biases.
    pub mlp_bias: bool,
    /// Tokens that attention reaches back to; `None` for all of them.
    pub sliding_window: Option<u32>,
}

/// The name of a model, and its numbers.
pub type Known = (&'static str, fn() -> Hyperparameters);

/// Defaults of an architecture's configuration class, for keys that `config.json` lacks.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub rope_theta: f64,
    /// `None`: as many as there are heads.
    pub n_kv_heads: Option<u32>,
}

impl Hyperparameters {
    /// The models whose numbers are known without their files.
    pub const KNOWN: [Known; 3] = [("Yi-6B", Self::yi_6b), ("Yi-9B", Self::yi_9b), ("Yi-34B", Self::yi_34b)];

    /// Returns the known model of this name, whose size decides: `Yi-34B`, `01-ai/Yi-1.5-34B-Chat`, `yi-6b-200k`. A context that
    /// the name tells is that of the model. `None` if there is none.
    pub fn by_name(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next()?.to_ascii_lowercase();
        let words: Vec<&str> = name.split(['-', '_']).collect();
        let is = |known: &str| words.iter().any(|word| known.strip_prefix("yi-") == Some(word));
        let (_, make) = Self::KNOWN.iter().find(|(known, _)| is(&known.to_ascii_lowercase()))?;
        let context = match words.iter().find_map(|word| word.strip_suffix('k')?.parse::<u32>().ok()) {
            Some(n @ 1..=1024) if n.is_power_of_two() => n * 1024,
            Some(n @ 1..=1024) => n * 1000,
            _ => make().context,
        };
        (words.first() == Some(&"yi")).then(|| Self { context, ..make() })
    }

    /// Yi-6B: 6.06 billion parameters.
    pub fn yi_6b() -> Self {
        Self::yi(32, 4096, 11008, 32, 4)
    }

    /// Yi-9B: Yi-6B with half of its layers once more, 8.83 billion parameters.
    pub fn yi_9b() -> Self {
        Self::yi(48, 4096, 11008, 32, 4)
    }

    /// Yi-34B: 34.39 billion parameters.
    pub fn yi_34b() -> Self {
        Self::yi(60, 7168, 20480, 56, 8)
    }

    /// The family's constants, as the first 4K releases have them. A conversion takes them from `config.json`.
    fn yi(n_layers: u32, hidden: u32, ffn: u32, n_heads: u32, n_kv_heads: u32) -> Self {
        Self {
            n_layers,
            hidden,
            ffn,
            n_heads,
            n_kv_heads,
            head_dim: hidden / n_heads,
            vocab: 64000,
            context: 4096,
            rms_eps: 1e-5,
            rope_theta: 5e6,
            rope_scaling: None,
            tied: false,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
        }
    }

    /// Reads the keys that Llama's `config.json` has, which Mistral's and Yi's share.
    ///
    /// Sizes and the epsilon are required. `tied` is the value of `tie_word_embeddings`, false if it is absent: all three
    /// configuration classes do the same.
    pub(super) fn from_llama_config(map: &Map<String, Value>, defaults: Defaults) -> Result<Self, Error> {
        let config = Config::new(map);
        if !matches!(config.str("hidden_act")?, None | Some("silu" | "swish")) {
            return Err(config.bad("hidden_act", "'silu', the only activation llama.cpp has for these models"));
        }
        if config.number("partial_rotary_factor", 0.0, "1")?.is_some_and(|part| part != 1.0) {
            return Err(config.bad("partial_rotary_factor", "1: llama.cpp rotates whole heads of these models"));
        }
        let (hidden, n_heads) = (config.required_size("hidden_size")?, config.required_size("num_attention_heads")?);
        let head_dim = match config.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
            None => return Err(Error::HeadsDoNotDivide { hidden, n_heads }),
        };
        // A key that is there but null means as many as heads, in every class.
        let n_kv_heads = match config.size("num_key_value_heads")? {
            None if !map.contains_key("num_key_value_heads") => defaults.n_kv_heads,
            given => given,
        };
        let wanted = "a number above 0";
        let rms_eps = config.required("rms_norm_eps", config.number("rms_norm_eps", 0.0, wanted)?, wanted)?;
        let context = config.required_size("max_position_embeddings")?;
        let (rope_theta, rope_scaling) = rope::parse(&config, context, defaults.rope_theta)?;
        let hyper = Self {
            n_layers: config.required_size("num_hidden_layers")?,
            hidden,
            ffn: config.required_size("intermediate_size")?,
            n_heads,
            n_kv_heads: n_kv_heads.unwrap_or(n_heads),
            head_dim,
            vocab: config.required_size("vocab_size")?,
            context,
            rms_eps,
            rope_theta,
            rope_scaling,
            tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: config.bool("attention_bias")?.unwrap_or(false),
            mlp_bias: config.bool("mlp_bias")?.unwrap_or(false),
            sliding_window: None,
        };
        hyper.check()?;
        Ok(hyper)
    }

    /// Returns what recipes ask about the model.
    pub fn topology(&self) -> Topology {
        Topology { n_layers: self.n_layers, n_heads: self.n_heads.into(), n_kv_heads: self.n_kv_heads.into() }
    }

    /// Checks that the numbers fit together and that llama.cpp can load such a model.
    ///
    /// # Errors
    /// If a number does not fit. The error is about the first.
    pub fn check(&self) -> Result<(), Error> {
        if !(1..=MAX_LAYERS).contains(&self.n_layers) {
            return Err(Error::Layers { found: self.n_layers, most: MAX_LAYERS });
        }
        if self.n_heads == 0 || self.head_dim == 0 {
            return Err(Error::HeadsDoNotDivide { hidden: self.hidden, n_heads: self.n_heads });
        }
        if self.n_kv_heads == 0 || !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::KvHeadsDoNotDivide { n_heads: self.n_heads, n_kv_heads: self.n_kv_heads });
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > MAX_HEAD_DIM {
            return Err(Error::HeadDim { found: self.head_dim, most: MAX_HEAD_DIM });
        }
        Ok(())
    }

    /// Returns warnings about what the configuration says and a GGUF file cannot.
    pub(super) fn warnings(&self) -> Vec<String> {
        let context = self.context;
        let mut warnings = Vec::new();
        if let Some(window) = self.sliding_window.filter(|&window| window < context) {
            warnings.push(format!(
                "config.json limits attention to the last {window} tokens ('sliding_window'); llama.cpp attends to \
                 all of them in models of this architecture, so that texts longer than {window} tokens differ"
            ));
        }
        if let Some(RopeScaling::Dynamic { .. }) = self.rope_scaling {
            warnings.push(format!(
                "config.json asks for 'dynamic' rotary scaling, which llama.cpp does not have; the model is exact up \
                 to {context} tokens, and should not be run with more"
            ));
        }
        warnings
    }

    /// Returns a `config.json` with these numbers for the architecture of this name. Reading it returns the same numbers.
    pub fn to_config(&self, architecture: &str) -> Map<String, Value> {
        let model_type = match architecture {
            "YiForCausalLM" => "Yi",
            "MistralForCausalLM" => "mistral",
            _ => "llama",
        };
        let config = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "attention_bias": self.attention_bias,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.context,
            "mlp_bias": self.mlp_bias,
            "num_attention_heads": self.n_heads,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_kv_heads,
            "rms_norm_eps": self.rms_eps,
            "rope_scaling": self.rope_scaling.as_ref().map(RopeScaling::to_config),
            "rope_theta": self.rope_theta,
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
        });
        match config {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_size_and_the_context() {
        let found = |name| Hyperparameters::by_name(name).map(|hyper| (hyper.n_layers, hyper.context));
        for name in ["Yi-34B", "yi-34b", "01-ai/Yi-34B-Chat", "Yi-1.5-34B", "Yi-34B-Chat-4bits"] {
            assert_eq!(found(name), Some((60, 4096)), "{name}");
        }
        assert_eq!(found("Yi-6B-200K"), Some((32, 200_000)));
        assert_eq!(found("Yi-1.5-9B-Chat-16K"), Some((48, 16_384)));
        for name in ["", "34B", "Llama-34B", "Yi", "Yi-7B", "Yi-VL", "x/"] {
            assert_eq!(found(name), None, "{name}");
        }
    }
}
