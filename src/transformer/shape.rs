//! What the metadata of a model says about its layers, checked against its tensors.
//!
//! Source of keys, defaults and names: llama.cpp's `llama_model_base::load_hparams`, `models/llama.cpp` and
//! `models/qwen2.cpp`.

use super::Error;
use super::rotary::{Rotary, Scaling};
use super::weights::{Weights, dims, vector};
use crate::base::display::quote;
use crate::gguf::{Metadata, Value};

/// Architectures whose layers are those that this room computes.
pub(super) const ARCHITECTURES: [&str; 2] = ["llama", "qwen2"];

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
pub(super) const OUTPUT: &str = "output.weight";
pub(super) const OUTPUT_BIAS: &str = "output.bias";
const ROTARY_FACTORS: &str = "rope_freqs.weight";

/// Tensors outside the layers.
const WHOLE: [&str; 5] = [EMBEDDING, OUTPUT_NORM, OUTPUT, OUTPUT_BIAS, ROTARY_FACTORS];

/// Matrices of a layer. Each may have a bias.
const MATRICES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// Norms of a layer.
const NORMS: [&str; 2] = ["attn_norm.weight", "ffn_norm.weight"];

/// The sizes of a model, which its tensors have.
#[derive(Debug)]
pub(super) struct Shape {
    /// Numbers of a token between layers.
    pub(super) n_embd: usize,
    /// Rows of the embedding.
    pub(super) n_vocab: usize,
    /// Added to the mean square of a norm's inputs.
    pub(super) epsilon: f64,
    /// The heads of each layer.
    pub(super) heads: Vec<Heads>,
    pub(super) rotary: Rotary,
    /// Whether the embedding is the output matrix, too.
    pub(super) tied: bool,
}

/// The attention heads of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Heads of queries.
    pub(super) n: usize,
    /// Heads of keys and values, of which each serves as many heads of queries.
    pub(super) n_kv: usize,
    /// Numbers of a query and of a key.
    pub(super) key: usize,
    /// Numbers of a value.
    pub(super) value: usize,
}

impl Shape {
    /// Reads the metadata, and checks that all tensors are there, as large as it says, and known.
    pub(super) fn new(metadata: &Metadata, weights: &dyn Weights) -> Result<Self, Error> {
        let arch = metadata.str("general.architecture").unwrap_or_default();
        let Some(arch) = ARCHITECTURES.into_iter().find(|known| *known == arch) else {
            return Err(Error::Architecture { arch: arch.to_string() });
        };
        let keys = Keys { metadata, arch };
        let n_embd = keys.count("embedding_length", None)?;
        let n_layers = keys.count("block_count", None)?;
        refuse_unknown(weights, n_layers)?;
        keys.refuse_other_attention()?;

        let heads_of = |layer| -> Result<(usize, usize), Error> {
            let n = keys.of_layer("attention.head_count", layer, n_layers, None)?;
            let n_kv = keys.of_layer("attention.head_count_kv", layer, n_layers, Some(n))?;
            if n.is_multiple_of(n_kv) {
                Ok((n, n_kv))
            } else {
                Err(keys.wrong("attention.head_count_kv", &format!("a divisor of {n} heads")))
            }
        };
        let (n_first, _) = heads_of(0)?;
        if n_first > n_embd {
            return Err(keys.wrong("attention.head_count", &format!("at most {n_embd}")));
        }
        let key = keys.count("attention.key_length", Some(n_embd / n_first))?;
        let value = keys.count("attention.value_length", Some(n_embd / n_first))?;

        let [_, n_vocab] = dims(weights, EMBEDDING)?;
        check(weights, EMBEDDING, [n_embd, n_vocab.max(1)])?;
        check(weights, OUTPUT_NORM, [n_embd, 1])?;
        check_optional(weights, OUTPUT, [n_embd, n_vocab])?;
        check_optional(weights, OUTPUT_BIAS, [n_vocab, 1])?;

        let mut heads = Vec::new();
        for layer in 0..n_layers {
            let (n, n_kv) = heads_of(layer)?;
            let of_layer = Heads { n, n_kv, key, value };
            of_layer.check(&keys, weights, layer, n_embd)?;
            heads.push(of_layer);
        }
        let epsilon = keys.float("attention.layer_norm_rms_epsilon", None, |x| x > 0.0, "a positive number")?;
        let rotary = keys.rotary(weights, key)?;
        let tied = weights.dims(OUTPUT).is_none();
        Ok(Self { n_embd, n_vocab, epsilon, heads, rotary, tied })
    }
}

impl Heads {
    /// Checks the tensors of a layer.
    fn check(&self, keys: &Keys<'_>, weights: &dyn Weights, layer: usize, n_embd: usize) -> Result<(), Error> {
        let name = |rest: &str| format!("blk.{layer}.{rest}");
        let [_, n_ff] = dims(weights, &name("ffn_gate.weight"))?;
        let times = |n: usize, length: usize| {
            n.checked_mul(length).ok_or_else(|| keys.wrong("attention.head_count", "a smaller number"))
        };
        let sizes = [
            [n_embd, times(self.n, self.key)?],
            [n_embd, times(self.n_kv, self.key)?],
            [n_embd, times(self.n_kv, self.value)?],
            [times(self.n, self.value)?, n_embd],
            [n_embd, n_ff.max(1)],
            [n_embd, n_ff.max(1)],
            [n_ff.max(1), n_embd],
        ];
        for (matrix, size) in MATRICES.into_iter().zip(sizes) {
            check(weights, &name(&format!("{matrix}.weight")), size)?;
            check_optional(weights, &name(&format!("{matrix}.bias")), [size[1], 1])?;
        }
        NORMS.into_iter().try_for_each(|norm| check(weights, &name(norm), [n_embd, 1]))
    }

    /// Returns what products of queries and keys are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        (1.0 / (self.key as f64).sqrt()) as f32
    }

    /// Returns the number of heads of queries that share a head of keys.
    pub(super) fn group(&self) -> usize {
        self.n / self.n_kv
    }
}

/// Refuses tensors that this room does not compute with: leaving one out would give another model.
fn refuse_unknown(weights: &dyn Weights, n_layers: usize) -> Result<(), Error> {
    let is_known = |name: &str| {
        let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return WHOLE.contains(&name);
        };
        let is_layer = layer.parse::<usize>().is_ok_and(|n| n < n_layers && n.to_string() == layer);
        let of_matrix = rest.strip_suffix(".weight").or_else(|| rest.strip_suffix(".bias"));
        is_layer && (NORMS.contains(&rest) || of_matrix.is_some_and(|matrix| MATRICES.contains(&matrix)))
    };
    match weights.names().into_iter().find(|name| !is_known(name)) {
        Some(name) => Err(Error::Unknown { tensor: name.to_string() }),
        None => Ok(()),
    }
}

fn check(weights: &dyn Weights, name: &str, wanted: [usize; 2]) -> Result<(), Error> {
    let found = dims(weights, name)?;
    if found == wanted { Ok(()) } else { Err(Error::Shape { tensor: name.to_string(), found, wanted }) }
}

fn check_optional(weights: &dyn Weights, name: &str, wanted: [usize; 2]) -> Result<(), Error> {
    if weights.dims(name).is_some() { check(weights, name, wanted) } else { Ok(()) }
}

/// The metadata's keys of an architecture. `rest` is a key without the architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    fn get(&self, rest: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{rest}", self.arch))
    }

    fn wrong(&self, rest: &str, wanted: &str) -> Error {
        let found = match self.get(rest) {
            None => "nothing".to_string(),
            Some(Value::String(text)) => quote(text, 40),
            Some(Value::Bool(value)) => value.to_string(),
            Some(value) => match (value.as_u64(), value.as_f64(), value.as_array()) {
                (Some(number), ..) => number.to_string(),
                (_, Some(number), _) => number.to_string(),
                (.., Some(array)) => format!("{} values of type {}", array.len(), array.element_type()),
                _ => format!("a negative {}", value.value_type()),
            },
        };
        Error::Key { key: format!("{}.{rest}", self.arch), found, wanted: wanted.to_string() }
    }

    /// Returns a number of things, of which there is one at least.
    fn count(&self, rest: &str, default: Option<usize>) -> Result<usize, Error> {
        let found = match (self.get(rest), default) {
            (None, Some(default)) => Some(default),
            (value, _) => value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()),
        };
        found.filter(|n| *n > 0).ok_or_else(|| self.wrong(rest, "a whole number above 0"))
    }

    /// Like [`Self::count`], where there may be a number for each layer.
    fn of_layer(&self, rest: &str, layer: usize, n_layers: usize, default: Option<usize>) -> Result<usize, Error> {
        let Some(array) = self.get(rest).and_then(Value::as_array) else { return self.count(rest, default) };
        let value = array.get(layer).filter(|_| array.len() == n_layers);
        let n = value.and_then(|value| value.as_u64()).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        n.ok_or_else(|| self.wrong(rest, "a whole number above 0 for each layer"))
    }

    fn float(&self, rest: &str, default: Option<f64>, is_right: fn(f64) -> bool, wanted: &str) -> Result<f64, Error> {
        let found = match (self.get(rest), default) {
            (None, Some(default)) => Some(default),
            (value, _) => value.and_then(Value::as_f64),
        };
        found.filter(|x| x.is_finite() && is_right(*x)).ok_or_else(|| self.wrong(rest, wanted))
    }

    /// Refuses attention that is not the causal one, or scaled otherwise: llama.cpp does not read such a scale for these
    /// architectures.
    fn refuse_other_attention(&self) -> Result<(), Error> {
        match self.get("attention.causal") {
            None | Some(Value::Bool(true)) => {}
            Some(_) => return Err(self.wrong("attention.causal", "true")),
        }
        match self.get("attention.scale") {
            None => Ok(()),
            Some(value) if value.as_f64() == Some(0.0) => Ok(()),
            Some(_) => Err(self.wrong("attention.scale", "nothing")),
        }
    }

    /// How the queries and keys of `key` numbers are rotated.
    fn rotary(&self, weights: &dyn Weights, key: usize) -> Result<Rotary, Error> {
        let n = self.count("rope.dimension_count", Some(key))?;
        if n > key || !n.is_multiple_of(2) {
            let wanted = format!("an even number up to {key}, the length of a key");
            return Err(self.wrong("rope.dimension_count", &wanted));
        }
        let base = self.float("rope.freq_base", Some(10_000.0), |x| x > 1.0, "a number above 1")?;
        let attention = self.float("rope.scaling.attn_factor", Some(1.0), |_| true, "a number")?;
        // The key's old name, which counts where the new one is missing.
        let named = if self.get("rope.scaling.factor").is_some() { "rope.scaling.factor" } else { "rope.scale_linear" };
        let factor = match self.float(named, Some(0.0), |x| x >= 0.0, "a number of 0 or more")? {
            0.0 => 1.0,
            factor => factor,
        };
        let scaling = match self.get("rope.scaling.type").map(Value::as_str) {
            None | Some(Some("linear")) => Scaling::Linear { factor },
            Some(Some("none")) => Scaling::Linear { factor: 1.0 },
            Some(Some("yarn")) => {
                let original = "rope.scaling.original_context_length";
                let context = if self.get(original).is_some() { original } else { "context_length" };
                Scaling::Yarn { factor, n_context: self.count(context, None)? }
            }
            Some(_) => return Err(self.wrong("rope.scaling.type", "\"none\", \"linear\" or \"yarn\"")),
        };
        let mut rotary = Rotary::new(n, self.arch == "qwen2", base, attention, scaling);
        if weights.dims(ROTARY_FACTORS).is_some() {
            check(weights, ROTARY_FACTORS, [n / 2, 1])?;
            let factors = vector(weights, ROTARY_FACTORS)?;
            if let Some(index) = factors.iter().position(|x| !(x.is_finite() && *x > 0.0)) {
                return Err(Error::Factor { tensor: ROTARY_FACTORS.to_string(), index, found: factors[index] });
            }
            rotary = rotary.divided_by(&factors);
        }
        Ok(rotary)
    }
}
