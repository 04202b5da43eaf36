//! The model that an adapter goes with, as far as it decides how the adapter is laid out.

use std::path::Path;

use super::Error;
use crate::arch::{self, Architecture, Hyperparameters, Llama, Origin, Slot, Transform};
use crate::checkpoint::{Config, snapshot};
use crate::convert;
use crate::gguf::{self, Gguf, Value};

/// A matrix that an adapter can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The names that the base model may have for it: `model.layers.0.self_attn.q_proj`.
    pub names: Vec<String>,
    /// The tensor's name in GGUF: `blk.0.attn_q.weight`.
    pub tensor: String,
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub columns: u64,
    /// What becomes of its rows, and so of B's.
    pub transform: Transform,
}

/// The base model.
#[derive(Debug)]
pub struct Base {
    /// What it is called in messages.
    pub name: String,
    /// Layers.
    pub n_layers: u32,
    /// Whether the token embedding is the output matrix too.
    pub tied: bool,
    /// Its matrices, in the order of its GGUF file.
    pub modules: Vec<Module>,
}

impl Base {
    /// The base at `path`: a Hugging Face folder, of which `config.json` is enough; that file; or a GGUF.
    ///
    /// # Errors
    /// Where there is none, or of no architecture that nibble knows.
    pub fn open(path: &Path) -> Result<Self, convert::Error> {
        if path.is_file() && gguf::is_gguf(path) {
            return of_gguf(path, &Gguf::open(path)?);
        }
        let file = if path.is_file() { path.to_path_buf() } else { snapshot(path).join("config.json") };
        let config = Config::read(&file)?.ok_or_else(|| convert::Error::NoSource { path: file.clone() })?;
        let map = config.map();
        let of = || {
            let architecture = arch::lookup(map)?;
            let hyper = architecture.hyperparameters(map)?;
            Ok(Self::new(path, &hyper, architecture.slots(&hyper)))
        };
        of().map_err(|source| convert::Error::Arch { dir: path.to_path_buf(), source })
    }

    fn new(path: &Path, hyper: &Hyperparameters, slots: Vec<Slot>) -> Self {
        let module = |slot: Slot| {
            let (&[columns, rows], Origin::Checkpoint { names, transform }) = (slot.dims.as_slice(), slot.origin)
            else {
                return None;
            };
            let names = names.iter().filter_map(|name| name.strip_suffix(".weight").map(str::to_string)).collect();
            Some(Module { names, tensor: slot.name, rows, columns, transform })
        };
        Self {
            name: path.display().to_string(),
            n_layers: hyper.n_layers,
            tied: hyper.tied,
            modules: slots.into_iter().filter_map(module).collect(),
        }
    }
}

/// From the numbers of a GGUF: the names in a checkpoint are those of the architecture.
fn of_gguf(path: &Path, gguf: &Gguf) -> Result<Base, convert::Error> {
    let metadata = gguf.metadata();
    if metadata.str("general.type") == Some("adapter") {
        return Err(Error::BaseIsAdapter { path: path.to_path_buf() }.into());
    }
    let architecture = metadata.str("general.architecture").unwrap_or_default();
    if architecture != "llama" {
        return Err(Error::ForeignBase { path: path.to_path_buf(), found: architecture.to_string() }.into());
    }
    let missing = |key: &str| Error::BaseKey { path: path.to_path_buf(), key: key.to_string() };
    let optional = |key: &str| match metadata.get(key).map(Value::as_u64) {
        None => Ok(None),
        Some(found) => {
            found.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).map(Some).ok_or_else(|| missing(key))
        }
    };
    let number = |key: &str| optional(key)?.ok_or_else(|| missing(key));
    let (hidden, n_heads) = (number("llama.embedding_length")?, number("llama.attention.head_count")?);
    let embedding = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.dims.get(1)).copied();
    let hyper = Hyperparameters {
        n_layers: number("llama.block_count")?,
        hidden,
        ffn: number("llama.feed_forward_length")?,
        n_heads,
        n_kv_heads: optional("llama.attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim: optional("llama.attention.key_length")?.unwrap_or(hidden / n_heads),
        vocab: embedding.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| missing("token_embd.weight"))?,
        tied: gguf.tensor("output.weight").is_none(),
        // Nothing of an adapter depends on the rest.
        ..Hyperparameters::yi_6b()
    };
    hyper.check().map_err(|source| convert::Error::Arch { dir: path.to_path_buf(), source })?;
    let base = Base::new(path, &hyper, Llama.slots(&hyper));
    for module in &base.modules {
        let fits = gguf.tensor(&module.tensor).is_some_and(|tensor| tensor.dims == [module.columns, module.rows]);
        if !fits {
            return Err(missing(&module.tensor).into());
        }
    }
    Ok(base)
}
