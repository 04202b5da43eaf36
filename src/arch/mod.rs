//! Model architectures: what a Hugging Face checkpoint calls things, and what GGUF calls them. One file an architecture.
//!
//! ```text
//! config.json ──────────► lookup ─► hyperparameters ─► metadata
//!                                         │
//!                                       slots: every tensor of such a model, in the order of the file
//!                                         │
//! names and shapes of ──────────────► describe ─► Model: each output tensor, its shape and where it comes from
//! the checkpoint's tensors
//! ```
//!
//! [`describe`] starts from what the model has to have and looks it up in the checkpoint. So the result does not depend
//! on the order, the sharding or the naming of the checkpoint's tensors, and whatever is missing, left over or of the
//! wrong shape is noticed before a byte is written.
//!
//! The next architecture is one file with its [`Architecture`], and its line in [`ARCHITECTURES`].

mod config;
mod error;
mod hyper;
mod llama;
mod mistral;
mod role;
mod rope;
mod transform;
mod yi;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use error::{Error, Names};
pub use hyper::Hyperparameters;
pub use llama::Llama;
pub use mistral::Mistral;
pub use role::Role;
pub use rope::RopeScaling;
pub use transform::Transform;
pub use yi::Yi;

use crate::gguf::{Metadata, TensorInfo, TensorType};
use config::Config;

/// Every architecture that nibble converts.
pub static ARCHITECTURES: &[&dyn Architecture] = &[&Yi, &Llama, &Mistral];

/// A kind of model that Hugging Face checkpoints hold.
pub trait Architecture: Sync {
    /// The names that `config.json` has for it under `architectures`; the first is the usual one.
    fn names(&self) -> &'static [&'static str];

    /// Reads the configuration. Every error names the key, what it is and what was wanted.
    fn hyperparameters(&self, config: &Map<String, Value>) -> Result<Hyperparameters, Error>;

    /// `general.architecture` and the keys that begin with its value.
    fn metadata(&self, hyper: &Hyperparameters) -> Metadata;

    /// Every tensor that the GGUF file of such a model has, in the order of the file, and where it comes from.
    fn slots(&self, hyper: &Hyperparameters) -> Vec<Slot>;

    /// Whether this tensor of a checkpoint holds nothing that the file needs.
    ///
    /// Buffers that old versions of transformers saved along: tables computed from the configuration, and masks.
    fn skips(&self, name: &str) -> bool {
        [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"].iter().any(|s| name.ends_with(s))
            || [".attention.bias", ".attention.masked_bias"].iter().any(|s| name.ends_with(s))
            || [".self_attn.bias", ".self_attn.masked_bias"].iter().any(|s| name.ends_with(s))
    }
}

/// A tensor that a model of some architecture has.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// The name in GGUF.
    pub name: String,
    /// Sizes, fastest dimension first. A checkpoint gives the same sizes, slowest first.
    pub dims: Vec<u64>,
    /// Where the data come from.
    pub origin: Origin,
}

/// Where the data of a [`Slot`] come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// One tensor of the checkpoint.
    Checkpoint {
        /// Names that it may have there; the first is the usual one.
        names: Vec<String>,
        /// What becomes of its rows.
        transform: Transform,
    },
    /// Numbers that follow from the configuration.
    Generated(Vec<f32>),
}

/// A checkpoint, as the GGUF file that it becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The numbers read from the configuration.
    pub hyper: Hyperparameters,
    /// The model's part of the metadata. The tokenizer's and the general part are not in it.
    pub metadata: Metadata,
    /// Every tensor of the file, in its order.
    pub tensors: Vec<OutputTensor>,
    /// What the file cannot say of the model, to be shown to the person converting it.
    pub warnings: Vec<String>,
}

/// A tensor of the file to be.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    /// The name in GGUF.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<u32>,
    /// Sizes, fastest dimension first.
    pub dims: Vec<u64>,
    /// Where its data come from.
    pub source: TensorSource,
}

/// Where the data of an [`OutputTensor`] come from.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorSource {
    /// A tensor of the checkpoint, of the same shape.
    Checkpoint {
        /// Its name there.
        name: String,
        /// What becomes of its rows.
        transform: Transform,
    },
    /// These numbers, to be stored as they are.
    Generated(Vec<f32>),
}

impl Model {
    /// Weights and biases of the model; generated tensors are not parameters.
    pub fn n_parameters(&self) -> u64 {
        let stored = self.tensors.iter().filter(|tensor| !matches!(tensor.source, TensorSource::Generated(_)));
        stored.map(|tensor| tensor.dims.iter().fold(1, |n: u64, &d| n.saturating_mul(d))).fold(0, u64::saturating_add)
    }
}

/// The architecture that `config.json` names first under `architectures`.
pub fn lookup(config: &Map<String, Value>) -> Result<&'static dyn Architecture, Error> {
    let key = "architectures";
    let wanted = "a list with the name of the architecture";
    let config = Config::new(config);
    let listed = config.required(key, config.get(key), wanted)?;
    let name = listed.get(0).and_then(Value::as_str).ok_or_else(|| config.bad(key, wanted))?;
    by_name(name).ok_or_else(|| {
        let (found, known) = (name.to_string(), known());
        match name.contains("Moe") || name.contains("MoE") || name.contains("Mixtral") {
            true => Error::MixtureOfExperts { found, known },
            false => Error::UnknownArchitecture { found, known },
        }
    })
}

/// The architecture that `config.json` files call by this name.
pub fn by_name(name: &str) -> Option<&'static dyn Architecture> {
    ARCHITECTURES.iter().copied().find(|architecture| architecture.names().contains(&name))
}

fn known() -> String {
    let names: Vec<_> = ARCHITECTURES.iter().filter_map(|a| a.names().first().copied()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// Describes a checkpoint as the GGUF file that it becomes.
///
/// `config` is `config.json`; `tensors` gives every tensor's name and shape, slowest dimension first as safetensors has
/// it, in any order.
///
/// Whether the output matrix is the embedding: where `tie_word_embeddings` is true it is, and an `lm_head.weight` that
/// was saved all the same is left out, as transformers leaves it unread. Where the key is absent, a missing
/// `lm_head.weight` says so, as it does for llama.cpp's converter. Where it is false, a missing one is an error.
///
/// # Errors
/// An architecture that nibble does not know, weights that are quantized already, numbers that do not fit together, and
/// tensors that are missing, unexpected or not of the shape that the configuration gives them.
pub fn describe<'a>(
    config: &Map<String, Value>,
    tensors: impl IntoIterator<Item = (&'a str, &'a [u64])>,
) -> Result<Model, Error> {
    let architecture = lookup(config)?;
    refuse_what_is_not_dense_16_bit(config)?;
    let mut hyper = architecture.hyperparameters(config)?;
    let mut found = BTreeMap::new();
    for (name, shape) in tensors {
        if found.insert(name, shape).is_some() {
            return Err(Error::Repeated { name: name.to_string() });
        }
    }

    let says_tied = Config::new(config).get("tie_word_embeddings").is_some();
    let mut slots = architecture.slots(&Hyperparameters { tied: false, ..hyper.clone() });
    if let Some(at) = slots.iter().position(|slot| Role::of(&slot.name).0 == Role::Output) {
        let is_there = slots[at].source_names().iter().any(|name| found.contains_key(name.as_str()));
        hyper.tied |= !says_tied && !is_there;
        if hyper.tied {
            let output = slots.remove(at);
            found.retain(|name, _| !output.source_names().iter().any(|n| n == name));
        }
    }

    let (mut outputs, mut missing) = (Vec::with_capacity(slots.len()), Vec::new());
    for slot in slots {
        let source = match slot.origin {
            Origin::Generated(data) => TensorSource::Generated(data),
            Origin::Checkpoint { names, transform } => {
                let mut present = names.iter().filter_map(|name| found.remove_entry(name.as_str()));
                let Some((name, shape)) = present.next() else {
                    missing.extend(names.into_iter().take(1));
                    continue;
                };
                if let Some((second, _)) = present.next() {
                    let (first, second) = (name.to_string(), second.to_string());
                    return Err(Error::Twice { gguf: slot.name, first, second });
                }
                if !shape.iter().rev().eq(&slot.dims) {
                    let wanted = slot.dims.iter().rev().copied().collect();
                    return Err(Error::Shape { name: name.to_string(), found: shape.to_vec(), wanted });
                }
                TensorSource::Checkpoint { name: name.to_string(), transform }
            }
        };
        let (role, layer) = Role::of(&slot.name);
        outputs.push(OutputTensor { name: slot.name, role, layer, dims: slot.dims, source });
    }

    found.retain(|name, _| !architecture.skips(name));
    let unknown = Names(found.into_keys().map(str::to_string).collect());
    let hint = hint(&unknown, &hyper);
    if !missing.is_empty() {
        return Err(Error::MissingTensors { missing: Names(missing), unknown, hint });
    }
    if !unknown.0.is_empty() {
        let architecture = architecture.names().first().copied().unwrap_or_default().to_string();
        return Err(Error::UnknownTensors { architecture, unknown, hint });
    }
    let (metadata, warnings) = (architecture.metadata(&hyper), hyper.warnings());
    Ok(Model { hyper, metadata, tensors: outputs, warnings })
}

/// Names and sizes, fastest dimension first, of every tensor in the GGUF file of such a model, in the file's order.
///
/// All architectures of [`ARCHITECTURES`] become GGUF's `llama`, so that the numbers are enough.
pub fn shapes(hyper: &Hyperparameters) -> Vec<(String, Vec<u64>)> {
    Llama.slots(hyper).into_iter().map(|slot| (slot.name, slot.dims)).collect()
}

/// Every tensor in the GGUF file of such a model, before it is quantized: matrices of type `source`, vectors F32. It tells
/// sizes before there is a file.
pub fn tensors(hyper: &Hyperparameters, source: TensorType) -> Vec<TensorInfo> {
    let info = |(name, dims): (String, Vec<u64>)| {
        let ty = if dims.len() > 1 { source } else { TensorType::F32 };
        TensorInfo { name, dims, ty }
    };
    shapes(hyper).into_iter().map(info).collect()
}

/// Names and sizes, slowest dimension first, of every tensor in a checkpoint of such a model, as `architecture` names
/// them.
pub fn hf_shapes(hyper: &Hyperparameters, architecture: &dyn Architecture) -> Vec<(String, Vec<u64>)> {
    let slots = architecture.slots(hyper).into_iter();
    slots
        .filter_map(|slot| {
            let name = slot.source_names().first()?.clone();
            Some((name, slot.dims.into_iter().rev().collect()))
        })
        .collect()
}

impl Slot {
    /// Names that its tensor may have in the checkpoint; none where the data are generated.
    fn source_names(&self) -> &[String] {
        match &self.origin {
            Origin::Checkpoint { names, .. } => names,
            Origin::Generated(_) => &[],
        }
    }
}

fn refuse_what_is_not_dense_16_bit(map: &Map<String, Value>) -> Result<(), Error> {
    let config = Config::new(map);
    // Two keys: newer checkpoints, and those that the compressed-tensors library wrote before.
    for key in ["quantization_config", "compression_config"] {
        if let Some(quantization) = config.get(key) {
            let method = quantization.get("quant_method").or_else(|| quantization.get("quant_algo"));
            let method = method.and_then(Value::as_str).unwrap_or("a method it does not name");
            return Err(Error::Quantized { key, method: method.to_string() });
        }
    }
    for key in ["num_local_experts", "num_experts"] {
        if config.get(key).and_then(Value::as_f64).is_some_and(|n| n > 1.0) {
            return Err(Error::MixtureOfExperts { found: format!("a model with '{key}'"), known: known() });
        }
    }
    Ok(())
}

/// What tensors that do not belong to the model tell of how the checkpoint came about, and what to do.
fn hint(unknown: &Names, hyper: &Hyperparameters) -> &'static str {
    let any = |test: &dyn Fn(&str) -> bool| unknown.0.iter().any(|name| test(name));
    let ends = |ends: &'static [&'static str]| any(&|name| ends.iter().any(|end| name.ends_with(end)));
    if ends(&[".qweight", ".qzeros", ".scales", ".g_idx", ".absmax", ".quant_map", "_scale", "_scale_inv", "_packed"]) {
        "; these are weights that have been quantized: convert the original 16-bit checkpoint instead"
    } else if any(&|name| name.contains("lora_")) {
        "; this is an adapter: merge it into its base model and convert the result"
    } else if any(&|name| name.contains("experts.") || name.contains(".block_sparse_moe.")) {
        "; this is a mixture of experts, which nibble does not convert"
    } else if ends(&["_proj.bias"]) && !(hyper.attention_bias && hyper.mlp_bias) {
        "; if the model was trained with biases, config.json has to say 'attention_bias' or 'mlp_bias': true"
    } else if any(&|name| layer_of(name).is_some_and(|layer| layer >= hyper.n_layers)) {
        "; config.json gives fewer layers under 'num_hidden_layers'"
    } else {
        ""
    }
}

/// The layer in a checkpoint's name such as `model.layers.12.mlp.up_proj.weight`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
