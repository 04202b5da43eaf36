//! Errors in a checkpoint's configuration, and in its set of tensors.

use std::fmt;

use super::quantized::Quantizer;

/// Names that are listed before the rest is only counted.
const LISTED: usize = 5;

/// Why a checkpoint cannot be described as a GGUF model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("config.json: architecture '{found}' is not one that nibble knows; it converts {known}")]
    UnknownArchitecture { found: String, known: String },

    #[error("config.json: {found} classifies texts and does not write any; nibble converts {known}")]
    WritesNothing { found: String, known: String },

    #[error("config.json: {found} is a mixture of experts, which nibble does not convert; it converts {known}")]
    MixtureOfExperts { found: String, known: String },

    #[error(
        "the weights are quantized already ({method}), as '{tensor}' shows; nibble converts from the 16-bit original"
    )]
    Quantized { by: Quantizer, method: String, tensor: String },

    #[error(
        "config.json: '{key}' says that the weights are quantized already ({method}), and the checkpoint lacks {missing}{}; \
         nibble converts from the 16-bit original",
        also(unknown)
    )]
    QuantizedKey { key: &'static str, method: String, missing: Names, unknown: Names },

    #[error(
        "{} of the tensors are empty: {names}. DeepSpeed's ZeRO-3 saves such placeholders; the weights are in its own \
         checkpoint, from which the script zero_to_fp32.py beside it makes a whole model",
        names.0.len()
    )]
    EmptyTensors { names: Names },

    #[error("'{first}' and '{second}' cannot be compared: {source}")]
    Compare { first: String, second: String, source: std::io::Error },

    #[error("config.json has no '{key}'; wanted {wanted}")]
    MissingKey { key: String, wanted: &'static str },

    #[error("config.json: '{key}' is {found}; wanted {wanted}")]
    BadValue { key: String, found: String, wanted: &'static str },

    #[error(
        "config.json: 'hidden_size' {hidden} is not a multiple of 'num_attention_heads' {n_heads}; \
         a model whose heads do not divide its hidden size needs 'head_dim'"
    )]
    HeadsDoNotDivide { hidden: u32, n_heads: u32 },

    #[error(
        "config.json: 'num_attention_heads' {n_heads} is not a multiple of 'num_key_value_heads' {n_kv_heads}; \
         each KV head has to serve as many heads as the others"
    )]
    KvHeadsDoNotDivide { n_heads: u32, n_kv_heads: u32 },

    #[error(
        "config.json: heads have {found} channels; wanted an even number up to {most}, because they are rotated in pairs"
    )]
    HeadDim { found: u32, most: u32 },

    #[error("config.json: 'num_hidden_layers' is {found}; llama.cpp loads models of 1 to {most} layers")]
    Layers { found: u32, most: u32 },

    #[error(
        "tensor '{name}' has shape {found:?}, slowest dimension first; config.json makes it {wanted:?}. \
         One of the two is wrong: compare them with the model's page, or download the checkpoint again"
    )]
    Shape { name: String, found: Vec<u64>, wanted: Vec<u64> },

    #[error(
        "tensor '{name}' has a row for each of {found} tokens; config.json says {wanted} under 'vocab_size'. If tokens were \
         added to the model, that number has to be {found}"
    )]
    Vocabulary { name: String, found: u64, wanted: u64 },

    #[error("the key '{key}' is missing or not a number that a model has; is this a complete model?")]
    GgufKey { key: String },

    #[error(
        "the architecture '{architecture}' cannot be read back from a GGUF file; give the model's Hugging Face folder"
    )]
    NotFromGguf { architecture: &'static str },

    #[error("the checkpoint lists tensor '{name}' twice; remove one of the files that hold it")]
    Repeated { name: String },

    #[error("the checkpoint has two tensors for {gguf}: '{first}' and '{second}'; remove one")]
    Twice { gguf: String, first: String, second: String },

    #[error("the checkpoint lacks {missing}{}{hint}", also(unknown))]
    MissingTensors { missing: Names, unknown: Names, hint: &'static str },

    #[error("the checkpoint has tensors that a {architecture} model does not: {unknown}{hint}")]
    UnknownTensors { architecture: String, unknown: Names, hint: &'static str },
}

/// Names of tensors. `Display` shows the first few and the number of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", "))?;
        match self.0.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

fn also(unknown: &Names) -> String {
    if unknown.0.is_empty() { String::new() } else { format!("; it has instead {unknown}") }
}
