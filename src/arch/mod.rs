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
mod names;
mod quantized;
mod role;
mod rope;
mod yi;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;

use serde_json::{Map, Value};

pub use error::{Error, Names};
pub use hyper::Hyperparameters;
pub use input::{Input, Origin, RowOrder, Stored};
pub(crate) use names::Prefix;
pub use quantized::Quantizer;
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

    /// Returns the value of `model_type` in `config.json` that stands for it, where `architectures` is absent.
    fn model_type(&self) -> Option<&'static str> {
        None
    }

    /// Returns its name in GGUF: the value of `general.architecture`, with which its keys begin.
    fn gguf_name(&self) -> &'static str;

    /// Reads a configuration and returns what such a model consists of.
    ///
    /// # Errors
    /// If a key is missing or has a value that does not fit. The error names the key, the value and what was wanted.
    fn blueprint(&self, config: &Map<String, Value>) -> Result<Blueprint, Error>;

    /// Returns what the model in a GGUF file consists of, with the names that its tensors have in a checkpoint. Adapters
    /// are laid out by it.
    ///
    /// # Errors
    /// If a key is missing or has a value that does not fit, or the architecture cannot be read back from GGUF.
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
        const TABLES: [&str; 4] = [
            ".rotary_emb.inv_freq",
            ".rotary_emb.original_inv_freq",
            ".rotary_emb.cos_cached",
            ".rotary_emb.sin_cached",
        ];
        const MASKS: [&str; 6] =
            [".attention.bias", ".self_attn.bias", ".masked_bias", ".causal_mask", ".attention_mask", ".position_ids"];
        TABLES.iter().chain(&MASKS).any(|end| name.ends_with(end))
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
    /// Returns every name that a tensor of its checkpoints may have.
    fn stored_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().flat_map(OutputTensor::stored).flat_map(|stored| &stored.names).map(String::as_str)
    }

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
    /// If a key is missing or is not a number. The error is the key.
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

    /// Returns the architecture that `config.json` names first under `architectures`; without that key, the one whose
    /// models that write text are of its `model_type`, as `AutoModelForCausalLM` of transformers chooses it.
    ///
    /// # Errors
    /// If both keys are missing, are not a list of names and a name, or are of an architecture that is not in the list.
    pub fn lookup(self, config: &Map<String, Value>) -> Result<&'static dyn Architecture, Error> {
        let key = "architectures";
        let wanted = "a list with the name of the architecture";
        let config = Config::new(config);
        let (name, found) = match (config.get(key), config.str("model_type")?) {
            (None, Some(kind)) => (kind, self.by_model_type(kind)),
            (listed, _) => {
                let listed = config.required(key, listed, wanted)?;
                let name = listed.get(0).and_then(Value::as_str).ok_or_else(|| config.bad(key, wanted))?;
                (name, self.by_name(name))
            }
        };
        found.ok_or_else(|| {
            let (found, known) = (name.to_string(), self.known());
            if ["moe", "mixtral"].iter().any(|word| name.to_ascii_lowercase().contains(word)) {
                Error::MixtureOfExperts { found, known }
            } else if ["Classification", "QuestionAnswering"].iter().any(|end| name.ends_with(end)) {
                Error::WritesNothing { found, known }
            } else {
                Error::UnknownArchitecture { found, known }
            }
        })
    }

    /// Returns the architecture that `config.json` files call by this name.
    pub fn by_name(self, name: &str) -> Option<&'static dyn Architecture> {
        self.iter().find(|architecture| architecture.names().contains(&name))
    }

    /// Returns the architecture that has this value of `model_type`.
    fn by_model_type(self, name: &str) -> Option<&'static dyn Architecture> {
        self.iter().find(|architecture| architecture.model_type() == Some(name))
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
    /// has it, in any order. Names that begin with something else than the architecture's, all in the same way, are
    /// understood. `is_same` compares two tensors of one shape, and returns whether they hold the same numbers.
    ///
    /// Whether the output matrix is the embedding, as `tie_weights` of transformers 5 has it: where
    /// `tie_word_embeddings` is true, `lm_head.weight` is left out if it holds the embedding's numbers, and kept if it holds
    /// others; where only one of the two was saved, it is both. Where the key is absent, a missing tensor says that it is the
    /// other one, as it does for llama.cpp's converter. Where it is false, a missing one is an error.
    ///
    /// # Errors
    /// If the architecture is not in the list, the weights are quantized already, numbers do not fit together, or
    /// tensors are missing, unexpected or not of the shape that the configuration gives them.
    pub fn describe<'a>(
        self,
        config: &Map<String, Value>,
        tensors: impl IntoIterator<Item = (&'a str, &'a [u64])>,
        is_same: impl FnOnce(&str, &str) -> io::Result<bool>,
    ) -> Result<Model, Error> {
        let architecture = self.lookup(config)?;
        self.refuse_experts(config, architecture)?;
        let mut blueprint = architecture.blueprint(config)?;
        if let (true, Some(kind)) = (Config::new(config).get("architectures").is_none(), architecture.model_type()) {
            let name = architecture.names().first().copied().unwrap_or_default();
            blueprint.warnings.push(format!(
                "config.json has no 'architectures'; the model is read as {name}, because its 'model_type' is '{kind}'"
            ));
        }
        let mut checkpoint = Listing::new(tensors, &mut blueprint)?;
        let method = quantization(config);
        checkpoint.refuse_what_is_no_weight(&blueprint, method.as_ref())?;
        let copy = tie(&mut blueprint, &checkpoint, !has_output(config), is_same)?;

        let (mut outputs, mut missing) = (Vec::with_capacity(blueprint.tensors.len()), Names::default());
        let mut used: HashSet<&str> = copy.into_iter().collect();
        for mut output in std::mem::take(&mut blueprint.tensors) {
            if let Origin::Checkpoint(inputs) = &mut output.origin {
                for stored in inputs.iter_mut().flat_map(|input| &mut input.tensors) {
                    match find(stored, &output.name, &checkpoint)? {
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

        checkpoint.found.retain(|_, (name, _)| !used.contains(name));
        let mut spare = Names::default();
        checkpoint.found.retain(|canonical, (name, _)| {
            // With a point before them, so that a name may be all of an ending.
            let is_spare = architecture.skips(&format!(".{canonical}")) || names::is_spare(canonical);
            if is_spare {
                spare.0.push(name.to_string());
            }
            !is_spare
        });
        let hint = hint(&checkpoint.found, &missing, &outputs, &blueprint);
        let unknown = Names(checkpoint.found.into_values().map(|(name, _)| name.to_string()).collect());
        if let (false, Some((key, method))) = (missing.0.is_empty(), method.clone()) {
            return Err(Error::QuantizedKey { key, method, missing, unknown });
        }
        if !missing.0.is_empty() {
            return Err(Error::MissingTensors { missing, unknown, hint });
        }
        if !unknown.0.is_empty() {
            let architecture = architecture.names().first().copied().unwrap_or_default().to_string();
            return Err(Error::UnknownTensors { architecture, unknown, hint });
        }
        let Blueprint { topology, vocab, metadata, mut warnings, .. } = blueprint;
        if !spare.0.is_empty() {
            let (n, are) = match spare.0.len() {
                1 => ("a tensor".to_string(), "is"),
                n => (format!("{n} tensors"), "are"),
            };
            warnings.push(format!("{n} that no text is made with {are} left out: {spare}"));
        }
        if let Some((key, method)) = method {
            warnings.push(format!(
                "config.json has '{key}' ({method}), but no tensor is quantized; the key is passed over"
            ));
        }
        Ok(Model { architecture: architecture.gguf_name(), topology, vocab, metadata, tensors: outputs, warnings })
    }

    fn refuse_experts(self, map: &Map<String, Value>, architecture: &dyn Architecture) -> Result<(), Error> {
        let config = Config::new(map);
        for key in ["num_local_experts", "num_experts"].into_iter().filter(|_| !architecture.has_experts()) {
            if config.get(key).and_then(Value::as_f64).is_some_and(|n| n > 1.0) {
                return Err(Error::MixtureOfExperts { found: format!("a model with '{key}'"), known: self.known() });
            }
        }
        Ok(())
    }
}

/// Returns whether models of the architecture that `config.json` names have an output matrix: `LlamaModel` has none, and
/// `LlamaForCausalLM` has.
fn has_output(config: &Map<String, Value>) -> bool {
    let name = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    !name.is_some_and(|name| name.ends_with("Model"))
}

/// Returns the key of `config.json` that speaks of quantized weights, and the method that it names.
fn quantization(map: &Map<String, Value>) -> Option<(&'static str, String)> {
    let config = Config::new(map);
    // Newer checkpoints, those that the compressed-tensors library wrote before, and MLX's.
    let (key, found) = ["quantization_config", "compression_config", "quantization"]
        .into_iter()
        .find_map(|key| Some((key, config.get(key)?)))?;
    let method = found.get("quant_method").or_else(|| found.get("quant_algo")).and_then(Value::as_str);
    Some((key, crate::base::display::shorten(method.unwrap_or("a method it does not name"), 60)))
}

/// The tensors of a checkpoint, under the names that the architecture has for them.
struct Listing<'a> {
    /// By the architecture's name: the checkpoint's name, and the shape.
    found: BTreeMap<Cow<'a, str>, (&'a str, &'a [u64])>,
}

impl<'a> Listing<'a> {
    /// Lists the tensors, and warns in `blueprint` of names that begin with something else.
    fn new(tensors: impl IntoIterator<Item = (&'a str, &'a [u64])>, blueprint: &mut Blueprint) -> Result<Self, Error> {
        let tensors: Vec<_> = tensors.into_iter().collect();
        let expected: HashSet<&str> = blueprint.stored_names().collect();
        let prefix = Prefix::of(tensors.iter().map(|(name, _)| *name), |name| expected.contains(name));
        let mut found = BTreeMap::new();
        for (name, shape) in tensors {
            let canonical = prefix.as_ref().map_or(Cow::Borrowed(name), |prefix| prefix.strip(name));
            match found.insert(canonical.clone(), (name, shape)) {
                Some((first, _)) if first == name => return Err(Error::Repeated { name: name.to_string() }),
                Some((first, _)) => {
                    let (gguf, first, second) = (canonical.into_owned(), first.to_string(), name.to_string());
                    return Err(Error::Twice { gguf, first, second });
                }
                None => {}
            }
        }
        blueprint.warnings.extend(prefix.map(|prefix| prefix.warning()));
        Ok(Self { found })
    }

    fn has(&self, stored: &Stored) -> Option<&'a str> {
        stored.names.iter().find_map(|name| self.found.get(name.as_str())).map(|(name, _)| *name)
    }

    fn shape(&self, stored: &Stored) -> Option<&'a [u64]> {
        stored.names.iter().find_map(|name| self.found.get(name.as_str())).map(|(_, shape)| *shape)
    }

    /// Refuses checkpoints whose tensors are quantized, or placeholders.
    fn refuse_what_is_no_weight(
        &self,
        blueprint: &Blueprint,
        method: Option<&(&'static str, String)>,
    ) -> Result<(), Error> {
        let expected: HashSet<&str> = blueprint.stored_names().collect();
        let others = self.found.keys().filter(|name| !expected.contains(name.as_ref()) && !names::is_spare(name));
        if let Some((by, told)) = Quantizer::of(others.map(AsRef::as_ref)) {
            let tensor = self.found.get(told).map_or(told, |(name, _)| *name).to_string();
            let method = method.map_or_else(|| by.to_string(), |(_, method)| method.clone());
            return Err(Error::Quantized { by, method, tensor });
        }
        let is_empty = |(name, (_, shape)): &(&Cow<'_, str>, &(&str, &[u64]))| {
            expected.contains(name.as_ref()) && shape.contains(&0)
        };
        let empty: Vec<_> = self.found.iter().filter(is_empty).map(|(_, (name, _))| name.to_string()).collect();
        if empty.is_empty() { Ok(()) } else { Err(Error::EmptyTensors { names: Names(empty) }) }
    }
}

/// Decides whether the embedding and the output matrix are one, and leaves the output matrix out of `blueprint` then.
/// Returns the checkpoint's tensor that holds a copy of the embedding, if there is one.
fn tie<'a>(
    blueprint: &mut Blueprint,
    checkpoint: &Listing<'a>,
    is_headless: bool,
    is_same: impl FnOnce(&str, &str) -> io::Result<bool>,
) -> Result<Option<&'a str>, Error> {
    let stored = |role| {
        let output = blueprint.tensors.iter().find(|tensor| tensor.role() == role)?;
        output.stored().next().cloned()
    };
    let (Some(embedding), Some(output)) = (stored(Role::TokenEmbedding), stored(Role::Output)) else { return Ok(None) };
    let said = blueprint.tied;
    match (checkpoint.has(&embedding), checkpoint.has(&output)) {
        (Some(first), Some(second)) if said == Some(true) => {
            let is_copy = checkpoint.shape(&embedding) == checkpoint.shape(&output)
                && is_same(first, second).map_err(|source| {
                    let (first, second) = (first.to_string(), second.to_string());
                    Error::Compare { first, second, source }
                })?;
            if is_copy {
                blueprint.take_output();
                return Ok(Some(second));
            }
            blueprint.warnings.push(format!(
                "config.json says 'tie_word_embeddings': true, but '{second}' holds other numbers than '{first}'; it is kept \
                 as the output matrix, as transformers does"
            ));
        }
        (Some(_), None) if is_headless && said != Some(true) => {
            blueprint.take_output();
            blueprint.warnings.push(
                "the checkpoint was saved without its output matrix, in whose place llama.cpp uses the embedding: texts make \
                 no sense unless the model was trained so"
                    .to_string(),
            );
        }
        (Some(_), None) if said.unwrap_or(true) => drop(blueprint.take_output()),
        (None, Some(only)) if said.unwrap_or(true) => {
            blueprint.take_output();
            blueprint.warnings.push(format!("the embedding is missing, and '{only}' stands for it too"));
            let is_embedding = |tensor: &&mut OutputTensor| tensor.role() == Role::TokenEmbedding;
            if let Some(Origin::Checkpoint(inputs)) =
                blueprint.tensors.iter_mut().find(is_embedding).map(|tensor| &mut tensor.origin)
            {
                inputs.iter_mut().flat_map(|input| &mut input.tensors).for_each(|stored| {
                    stored.names.extend(output.names.iter().cloned());
                });
            }
        }
        _ => {}
    }
    Ok(None)
}

/// Returns the name that the checkpoint has for a tensor, whose shape has to be the expected one; `None` where it has none.
fn find<'a>(stored: &Stored, output: &str, checkpoint: &Listing<'a>) -> Result<Option<&'a str>, Error> {
    let mut present = stored.names.iter().filter_map(|name| checkpoint.found.get(name.as_str()));
    let Some((name, shape)) = present.next() else { return Ok(None) };
    if let Some((second, _)) = present.next() {
        let (first, second) = (name.to_string(), second.to_string());
        return Err(Error::Twice { gguf: output.to_string(), first, second });
    }
    if !shape.iter().rev().eq(&stored.dims) {
        let (name, wanted) = (name.to_string(), stored.dims.iter().rev().copied().collect::<Vec<_>>());
        let has_a_row_a_token = matches!(Role::of(output).0, Role::TokenEmbedding | Role::Output);
        return Err(match (*shape, wanted.as_slice()) {
            (&[found, columns], &[wanted, same]) if has_a_row_a_token && columns == same => {
                Error::Vocabulary { name, found, wanted }
            }
            _ => Error::Shape { name, found: shape.to_vec(), wanted },
        });
    }
    Ok(Some(*name))
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
fn hint(
    unknown: &BTreeMap<Cow<'_, str>, (&str, &[u64])>,
    missing: &Names,
    outputs: &[OutputTensor],
    blueprint: &Blueprint,
) -> &'static str {
    let any = |test: &dyn Fn(&str) -> bool| unknown.keys().any(|name| test(name));
    let has = |words: &'static [&'static str]| any(&|name| words.iter().any(|word| name.contains(word)));
    let is_whole = missing.0.is_empty();
    // The first layer from which on all tensors are missing.
    let mut n_found = blueprint.topology.n_layers;
    while n_found > 0 && outputs.iter().filter(|t| t.layer() == Some(n_found - 1)).all(|t| lacks_all_of(missing, t)) {
        n_found -= 1;
    }
    if has(&[".base_layer."]) || (is_whole && has(&["lora_"])) {
        "; these belong to an adapter that was saved with the model and is not merged into its weights: merge it with peft's \
         merge_and_unload(), save the result, and convert that"
    } else if has(&["lora_"]) {
        "; this is an adapter: merge it into its base model and convert the result"
    } else if has(&["flat_param"]) {
        "; these are the pieces that FSDP trains: save the model once more with a full state dict"
    } else if has(&["experts.", ".block_sparse_moe."]) {
        "; this is a mixture of experts, which nibble does not convert"
    } else if has(&[".attention.wq.", "tok_embeddings."]) {
        "; these are the names of the model's first publication, not of transformers: get the model in the form of \
         transformers"
    } else if has(&["vision", "mm_projector", "multi_modal_projector"]) {
        "; this model sees images: only models of text are converted"
    } else if any(&|name| name.ends_with("_proj.bias")) && !blueprint.has_biases {
        "; if the model was trained with biases, config.json has to say 'attention_bias' or 'mlp_bias': true"
    } else if any(&|name| layer_of(name).is_some_and(|layer| layer >= blueprint.topology.n_layers)) {
        "; config.json gives fewer layers under 'num_hidden_layers'"
    } else if n_found > 0 && !is_whole && missing.0.iter().all(|name| layer_of(name).is_some_and(|l| l >= n_found)) {
        "; the checkpoint has fewer layers than config.json gives under 'num_hidden_layers', or a file of it is missing"
    } else if missing.0.iter().all(|name| name == "lm_head.weight") && !is_whole {
        "; if the model's embedding is its output matrix too, config.json has to say 'tie_word_embeddings': true"
    } else {
        ""
    }
}

/// Returns whether nothing that a tensor is made from was found.
fn lacks_all_of(missing: &Names, tensor: &OutputTensor) -> bool {
    tensor.stored().all(|stored| missing.0.iter().any(|name| name == stored.name()))
}

/// Returns the layer in a checkpoint's name such as `model.layers.12.mlp.up_proj.weight`.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
