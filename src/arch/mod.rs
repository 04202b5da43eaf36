//! Model architectures: what a Hugging Face checkpoint calls things, and what GGUF calls them. One file an architecture.
//!
//! ```text
//! config.json ──────────► Architecture::blueprint ─► Blueprint: metadata, every tensor of the file, its inputs
//!                                                        │
//! names and shapes of ───────────────────────────► Architectures::describe ─► Model: each input found and checked
//! the checkpoint's tensors
//! ```
//!
//! [`Architectures::describe`] starts from what the model has to have and looks it up in the checkpoint. So the result does
//! not depend on the order, the sharding or the naming of the checkpoint's tensors, and whatever is missing, left over or
//! of the wrong shape is noticed before a byte is written.
//!
//! An architecture's file owns its configuration, the prefix of its GGUF keys, the roles of tensors that no other
//! architecture has, and the table of its tensors. Adding one takes that file and its entry in [`ARCHITECTURES`].

mod config;
mod error;
mod hyper;
mod input;
mod llama;
mod mistral;
mod role;
mod rope;
mod yi;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde_json::{Map, Value};

pub use error::{Error, Names};
pub use hyper::Hyperparameters;
pub use input::{Input, Origin, RowOrder, Stored};
pub use role::Role;
pub use rope::RopeScaling;

use crate::gguf::{self, Gguf, Metadata, TensorInfo, TensorType};
use config::Config;

/// Every architecture that nibble converts.
pub static ARCHITECTURES: Architectures = Architectures(&[&yi::Yi, &llama::Llama, &mistral::Mistral]);

/// A kind of model that Hugging Face checkpoints hold.
pub trait Architecture: Sync {
    /// Returns the names that `config.json` has for it under `architectures`, the usual one first.
    fn names(&self) -> &'static [&'static str];

    /// Returns its name in GGUF: the value of `general.architecture`, with which its keys begin.
    fn gguf_name(&self) -> &'static str;

    /// Reads a configuration and returns what such a model consists of.
    ///
    /// # Errors
    /// A key is missing or has a value that does not fit. The error names the key, the value and what was wanted.
    fn blueprint(&self, config: &Map<String, Value>) -> Result<Blueprint, Error>;

    /// Returns what the model in a GGUF file consists of, with the names that its tensors have in a checkpoint. Adapters
    /// are laid out by it.
    ///
    /// # Errors
    /// A key is missing or has a value that does not fit, or the architecture cannot be read back from GGUF.
    fn blueprint_of_gguf(&self, gguf: &Gguf) -> Result<Blueprint, Error> {
        let _ = gguf;
        Err(Error::NotFromGguf { architecture: self.gguf_name() })
    }

    /// Returns the roles of GGUF tensors that [`Role::of`] does not know. `blk.*` in a name stands for a layer.
    fn roles(&self) -> &'static [(&'static str, Role)] {
        &[]
    }

    /// Returns whether its models may be mixtures of experts. They are refused where this is false.
    fn has_experts(&self) -> bool {
        false
    }

    /// Returns whether the file does not need this tensor of a checkpoint.
    ///
    /// By default, buffers that old versions of transformers saved along: tables computed from the configuration, and
    /// masks.
    fn skips(&self, name: &str) -> bool {
        [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"].iter().any(|s| name.ends_with(s))
            || [".attention.bias", ".attention.masked_bias"].iter().any(|s| name.ends_with(s))
            || [".self_attn.bias", ".self_attn.masked_bias"].iter().any(|s| name.ends_with(s))
    }
}

/// What a model of some configuration consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Blueprint {
    /// What recipes ask about the model.
    pub topology: Topology,
    /// Rows of the token embedding.
    pub vocab: u64,
    /// `general.architecture` and the keys that begin with its value.
    pub metadata: Metadata,
    /// Every tensor of the GGUF file in its order, the output matrix among them even where [`Self::tied`] is true.
    pub tensors: Vec<OutputTensor>,
    /// Whether the token embedding serves as the output matrix; `None` if the configuration does not say, so that the
    /// checkpoint's tensors decide.
    pub tied: Option<bool>,
    /// Whether every matrix of a layer has a bias.
    pub has_biases: bool,
    /// What the file cannot say of the model.
    pub warnings: Vec<String>,
}

impl Blueprint {
    /// Removes the output matrix, for a model whose token embedding serves as one.
    pub fn take_output(&mut self) -> Option<OutputTensor> {
        let at = self.tensors.iter().position(|tensor| tensor.role() == Role::Output)?;
        Some(self.tensors.remove(at))
    }

    /// Returns names and sizes, slowest dimension first, of every tensor in a checkpoint of such a model.
    pub fn checkpoint_shapes(&self) -> Vec<(String, Vec<u64>)> {
        let mut shapes: Vec<(String, Vec<u64>)> = Vec::new();
        let mut listed = HashSet::new();
        let is_stored = |tensor: &&OutputTensor| !(self.tied == Some(true) && tensor.role() == Role::Output);
        for stored in self.tensors.iter().filter(is_stored).flat_map(OutputTensor::stored) {
            // A fused matrix is an input of several tensors.
            if listed.insert(stored.name()) {
                shapes.push((stored.name().to_string(), stored.dims.iter().rev().copied().collect()));
            }
        }
        shapes
    }
}

/// The numbers of layers and heads of a model: everything that recipes depend on apart from its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Layers of the model.
    pub n_layers: u32,
    /// Query heads of a layer.
    pub n_heads: u64,
    /// Key and value heads of a layer.
    pub n_kv_heads: u64,
}

impl Topology {
    /// Returns how many query heads share a key and value head; 0 if there are no key and value heads.
    pub fn gqa(&self) -> u64 {
        self.n_heads.checked_div(self.n_kv_heads).unwrap_or(0)
    }

    /// Reads the numbers of a GGUF file, whose architecture `metadata` names.
    ///
    /// # Errors
    /// Returns the key that is missing or is not a number.
    pub fn of_gguf(metadata: &Metadata) -> Result<Self, String> {
        let architecture = metadata.str("general.architecture").unwrap_or_default();
        let number = |key: &str| {
            let key = format!("{architecture}.{key}");
            let first = metadata.get(&key).and_then(|value| match value {
                // Some models have a number for each layer; recipes go by the first.
                gguf::Value::Array(array) => array.get(0)?.as_u64(),
                value => value.as_u64(),
            });
            first.ok_or(key)
        };
        let n_layers = number("block_count")?;
        let n_heads = number("attention.head_count")?;
        let n_kv_heads = number("attention.head_count_kv").unwrap_or(n_heads);
        let n_layers = u32::try_from(n_layers).map_err(|_| format!("{architecture}.block_count"))?;
        Ok(Self { n_layers, n_heads, n_kv_heads })
    }
}

/// A tensor of the GGUF file, and what it is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputTensor {
    /// The name in GGUF.
    pub name: String,
    /// Sizes, fastest dimension first.
    pub dims: Vec<u64>,
    /// Where the data come from.
    pub origin: Origin,
}

impl OutputTensor {
    /// A tensor that is one tensor of the checkpoint, with its rows in this order.
    pub fn of_one(name: impl Into<String>, source: impl Into<String>, dims: Vec<u64>, order: RowOrder) -> Self {
        let input = Input::new(source, dims.clone()).ordered(order);
        Self { name: name.into(), dims, origin: Origin::Checkpoint(vec![input]) }
    }

    /// Returns what the tensor is for.
    pub fn role(&self) -> Role {
        Role::of(&self.name).0
    }

    /// Returns the layer that the tensor belongs to.
    pub fn layer(&self) -> Option<u32> {
        Role::of(&self.name).1
    }

    /// Returns what the tensor is made from; nothing for generated data.
    pub fn inputs(&self) -> &[Input] {
        match &self.origin {
            Origin::Checkpoint(inputs) => inputs,
            Origin::Generated(_) => &[],
        }
    }

    /// Returns the tensors of the checkpoint that the tensor is made from.
    fn stored(&self) -> impl Iterator<Item = &Stored> {
        self.inputs().iter().flat_map(|input| &input.tensors)
    }
}

/// A checkpoint, as the GGUF file that it becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// `general.architecture`
    pub architecture: &'static str,
    /// What recipes ask about the model.
    pub topology: Topology,
    /// Rows of the token embedding.
    pub vocab: u64,
    /// The model's part of the metadata. The tokenizer's and the general part are not in it.
    pub metadata: Metadata,
    /// Every tensor of the file, in its order. Each input has the one name that the checkpoint has for it.
    pub tensors: Vec<OutputTensor>,
    /// Properties of the model that the file cannot express, as warnings for the user.
    pub warnings: Vec<String>,
}

impl Model {
    /// Returns the number of weights and biases. Generated tensors are not parameters.
    pub fn n_parameters(&self) -> u64 {
        let stored = self.tensors.iter().filter(|tensor| !tensor.inputs().is_empty());
        stored.map(|tensor| tensor.dims.iter().fold(1, |n: u64, &d| n.saturating_mul(d))).fold(0, u64::saturating_add)
    }
}

/// Architectures to look up. [`ARCHITECTURES`] has all of nibble's; others can be tried with a list of one's own.
#[derive(Clone, Copy)]
pub struct Architectures(pub &'static [&'static dyn Architecture]);

impl Default for Architectures {
    fn default() -> Self {
        ARCHITECTURES
    }
}

impl fmt::Debug for Architectures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().filter_map(|architecture| architecture.names().first())).finish()
    }
}

impl Architectures {
    /// Returns the architectures in order.
    pub fn iter(self) -> impl Iterator<Item = &'static dyn Architecture> {
        self.0.iter().copied()
    }

    /// Returns the architecture that `config.json` names first under `architectures`.
    ///
    /// # Errors
    /// The key is missing, is not a list of names, or names an architecture that is not in the list.
    pub fn lookup(self, config: &Map<String, Value>) -> Result<&'static dyn Architecture, Error> {
        let key = "architectures";
        let wanted = "a list with the name of the architecture";
        let config = Config::new(config);
        let listed = config.required(key, config.get(key), wanted)?;
        let name = listed.get(0).and_then(Value::as_str).ok_or_else(|| config.bad(key, wanted))?;
        self.by_name(name).ok_or_else(|| {
            let (found, known) = (name.to_string(), self.known());
            match name.contains("Moe") || name.contains("MoE") || name.contains("Mixtral") {
                true => Error::MixtureOfExperts { found, known },
                false => Error::UnknownArchitecture { found, known },
            }
        })
    }

    /// Returns the architecture that `config.json` files call by this name.
    pub fn by_name(self, name: &str) -> Option<&'static dyn Architecture> {
        self.iter().find(|architecture| architecture.names().contains(&name))
    }

    /// Returns the first architecture with this name in GGUF.
    pub fn by_gguf_name(self, name: &str) -> Option<&'static dyn Architecture> {
        self.iter().find(|architecture| architecture.gguf_name() == name)
    }

    /// Returns the usual names of all, for messages: `YiForCausalLM, LlamaForCausalLM and MistralForCausalLM`.
    pub fn known(self) -> String {
        let names: Vec<_> = self.iter().filter_map(|a| a.names().first().copied()).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }

    /// Returns the names in GGUF with the architectures that have them, for messages:
    /// `'llama' (YiForCausalLM, LlamaForCausalLM and MistralForCausalLM)`.
    pub fn known_in_gguf(self) -> String {
        let mut names: Vec<_> = self.iter().map(|architecture| architecture.gguf_name()).collect();
        names.dedup();
        let quoted: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
        format!("{} ({})", quoted.join(", "), self.known())
    }

    /// Describes a checkpoint as the GGUF file that it becomes.
    ///
    /// `config` is `config.json`; `tensors` gives every tensor's name and shape, slowest dimension first as safetensors
    /// has it, in any order.
    ///
    /// Whether the output matrix is the embedding: where `tie_word_embeddings` is true it is, and an `lm_head.weight`
    /// that was saved all the same is left out, as transformers leaves it unread. Where the key is absent, a missing
    /// `lm_head.weight` says so, as it does for llama.cpp's converter. Where it is false, a missing one is an error.
    ///
    /// # Errors
    /// An architecture that is not in the list, weights that are quantized already, numbers that do not fit together, and
    /// tensors that are missing, unexpected or not of the shape that the configuration gives them.
    pub fn describe<'a>(
        self,
        config: &Map<String, Value>,
        tensors: impl IntoIterator<Item = (&'a str, &'a [u64])>,
    ) -> Result<Model, Error> {
        let architecture = self.lookup(config)?;
        self.refuse_what_is_not_dense_16_bit(config, architecture)?;
        let mut blueprint = architecture.blueprint(config)?;
        let mut found = BTreeMap::new();
        for (name, shape) in tensors {
            if found.insert(name, shape).is_some() {
                return Err(Error::Repeated { name: name.to_string() });
            }
        }

        if let Some(output) = blueprint.tensors.iter().find(|tensor| tensor.role() == Role::Output) {
            let is_there =
                output.stored().flat_map(|stored| &stored.names).any(|name| found.contains_key(name.as_str()));
            if blueprint.tied.unwrap_or(!is_there)
                && let Some(output) = blueprint.take_output()
            {
                for name in output.stored().flat_map(|stored| &stored.names) {
                    found.remove(name.as_str());
                }
            }
        }

        let (mut outputs, mut missing) = (Vec::with_capacity(blueprint.tensors.len()), Names::default());
        let mut used = HashSet::new();
        for mut output in std::mem::take(&mut blueprint.tensors) {
            if let Origin::Checkpoint(inputs) = &mut output.origin {
                for stored in inputs.iter_mut().flat_map(|input| &mut input.tensors) {
                    match find(stored, &output.name, &found)? {
                        Some(name) => {
                            used.insert(name);
                            stored.names = vec![name.to_string()];
                        }
                        // A fused matrix is missing once, however many tensors are made from it.
                        None if missing.0.iter().any(|name| name == stored.name()) => {}
                        None => missing.0.push(stored.name().to_string()),
                    }
                }
            }
            debug_assert!(adds_up(&output), "{}: its inputs have other rows than it has", output.name);
            outputs.push(output);
        }

        found.retain(|name, _| !used.contains(name) && !architecture.skips(name));
        let unknown = Names(found.into_keys().map(str::to_string).collect());
        let hint = hint(&unknown, &blueprint);
        if !missing.0.is_empty() {
            return Err(Error::MissingTensors { missing, unknown, hint });
        }
        if !unknown.0.is_empty() {
            let architecture = architecture.names().first().copied().unwrap_or_default().to_string();
            return Err(Error::UnknownTensors { architecture, unknown, hint });
        }
        let Blueprint { topology, vocab, metadata, warnings, .. } = blueprint;
        Ok(Model { architecture: architecture.gguf_name(), topology, vocab, metadata, tensors: outputs, warnings })
    }

    fn refuse_what_is_not_dense_16_bit(
        self,
        map: &Map<String, Value>,
        architecture: &dyn Architecture,
    ) -> Result<(), Error> {
        let config = Config::new(map);
        // Two keys: newer checkpoints, and those that the compressed-tensors library wrote before.
        for key in ["quantization_config", "compression_config"] {
            if let Some(quantization) = config.get(key) {
                let method = quantization.get("quant_method").or_else(|| quantization.get("quant_algo"));
                let method = method.and_then(Value::as_str).unwrap_or("a method it does not name");
                return Err(Error::Quantized { key, method: method.to_string() });
            }
        }
        for key in ["num_local_experts", "num_experts"].into_iter().filter(|_| !architecture.has_experts()) {
            if config.get(key).and_then(Value::as_f64).is_some_and(|n| n > 1.0) {
                return Err(Error::MixtureOfExperts { found: format!("a model with '{key}'"), known: self.known() });
            }
        }
        Ok(())
    }
}

/// Returns the checkpoint's name for a tensor, whose shape has to be the expected one; `None` if it has none.
fn find<'a>(stored: &Stored, output: &str, found: &BTreeMap<&'a str, &[u64]>) -> Result<Option<&'a str>, Error> {
    let mut present = stored.names.iter().filter_map(|name| found.get_key_value(name.as_str()));
    let Some((name, shape)) = present.next() else { return Ok(None) };
    if let Some((second, _)) = present.next() {
        let (first, second) = (name.to_string(), second.to_string());
        return Err(Error::Twice { gguf: output.to_string(), first, second });
    }
    if !shape.iter().rev().eq(&stored.dims) {
        let wanted = stored.dims.iter().rev().copied().collect();
        return Err(Error::Shape { name: name.to_string(), found: shape.to_vec(), wanted });
    }
    Ok(Some(name))
}

/// Returns whether the inputs of a tensor have as many weights together as it has. Packed inputs are not counted.
fn adds_up(output: &OutputTensor) -> bool {
    let weights = |input: &Input| {
        let dims = &input.main()?.dims;
        let (row_len, n_rows) = match dims.as_slice() {
            [n] => (1, *n),
            [row_len, rest @ ..] => (*row_len, rest.iter().product()),
            [] => (1, 1),
        };
        let rows = input.rows.clone().unwrap_or(0..n_rows);
        (rows.end <= n_rows).then(|| u128::from(row_len) * u128::from(rows.end - rows.start))
    };
    let inputs = output.inputs();
    if inputs.is_empty() || inputs.iter().any(|input| input.packing.is_some()) {
        return true;
    }
    let wanted = output.dims.iter().map(|&n| u128::from(n)).product();
    inputs.iter().map(weights).sum::<Option<u128>>() == Some(wanted)
}

/// Returns names and sizes, fastest dimension first, of every tensor in the GGUF file of a Llama-shaped model, in the
/// file's order.
pub fn shapes(hyper: &Hyperparameters) -> Vec<(String, Vec<u64>)> {
    llama::tensors(hyper).into_iter().map(|tensor| (tensor.name, tensor.dims)).collect()
}

/// Returns every tensor in the GGUF file of a Llama-shaped model before it is quantized: matrices of type `source`,
/// vectors of F32. It tells sizes before there is a file.
pub fn tensors(hyper: &Hyperparameters, source: TensorType) -> Vec<TensorInfo> {
    let info = |(name, dims): (String, Vec<u64>)| {
        let ty = if dims.len() > 1 { source } else { TensorType::F32 };
        TensorInfo { name, dims, ty }
    };
    shapes(hyper).into_iter().map(info).collect()
}

/// Returns what tensors that do not belong to the model tell of how the checkpoint came about, and what to do.
fn hint(unknown: &Names, blueprint: &Blueprint) -> &'static str {
    let any = |test: &dyn Fn(&str) -> bool| unknown.0.iter().any(|name| test(name));
    let ends = |ends: &'static [&'static str]| any(&|name| ends.iter().any(|end| name.ends_with(end)));
    if ends(&[".qweight", ".qzeros", ".scales", ".g_idx", ".absmax", ".quant_map", "_scale", "_scale_inv", "_packed"]) {
        "; these are weights that have been quantized: convert the original 16-bit checkpoint instead"
    } else if any(&|name| name.contains("lora_")) {
        "; this is an adapter: merge it into its base model and convert the result"
    } else if any(&|name| name.contains("experts.") || name.contains(".block_sparse_moe.")) {
        "; this is a mixture of experts, which nibble does not convert"
    } else if ends(&["_proj.bias"]) && !blueprint.has_biases {
        "; if the model was trained with biases, config.json has to say 'attention_bias' or 'mlp_bias': true"
    } else if any(&|name| layer_of(name).is_some_and(|layer| layer >= blueprint.topology.n_layers)) {
        "; config.json gives fewer layers under 'num_hidden_layers'"
    } else {
        ""
    }
}

/// Returns the layer in a checkpoint's name such as `model.layers.12.mlp.up_proj.weight`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
