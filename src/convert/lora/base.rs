//! The base model of an adapter, as far as the adapter's layout depends on it.

use std::path::Path;

use super::Error;
use crate::arch::{ARCHITECTURES, Blueprint, OutputTensor, Role, RowOrder};
use crate::checkpoint::{self, Checkpoint, Config, snapshot};
use crate::convert;
use crate::gguf::{self, Gguf};
use crate::pass;

/// A matrix that an adapter can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The names that the base model may have for it: `model.layers.0.self_attn.q_proj`.
    pub names: Vec<String>,
    /// The tensor's name in GGUF: `blk.0.attn_q.weight`.
    pub tensor: String,
    /// Number of outputs.
    pub rows: u64,
    /// Number of inputs.
    pub columns: u64,
    /// The order of its rows, and so of B's.
    pub order: RowOrder,
}

/// The base model.
#[derive(Debug)]
pub struct Base {
    /// Its name in messages.
    pub name: String,
    /// `general.architecture` of its GGUF file.
    pub architecture: &'static str,
    /// Number of layers.
    pub n_layers: u32,
    /// Whether the token embedding is also the output matrix.
    pub tied: bool,
    /// Its matrices, in the order of its GGUF file.
    pub modules: Vec<Module>,
}

impl Base {
    /// Opens the base at `path`: a Hugging Face folder (`config.json` is enough), that file, or a GGUF.
    ///
    /// # Errors
    /// If there is no model, or its architecture is not one that nibble knows.
    pub fn open(path: &Path) -> Result<Self, convert::Error> {
        if path.is_file() && gguf::is_gguf(path) {
            return of_gguf(path, &Gguf::open(path).map_err(pass::Error::from)?);
        }
        let file = if path.is_file() { path.to_path_buf() } else { snapshot(path).join("config.json") };
        let config = Config::read(&file)
            .and_then(|config| config.ok_or_else(|| checkpoint::Error::NotFound(file.clone())))
            .map_err(pass::Error::from)?;
        let of = || {
            let architecture = ARCHITECTURES.lookup(config.map())?;
            let mut blueprint = architecture.blueprint(config.map())?;
            if blueprint.tied == Some(true) && has_own_output(path) {
                blueprint.tied = Some(false);
            }
            Ok(Self::new(path, architecture.gguf_name(), blueprint))
        };
        of().map_err(|source| pass::Error::Arch { dir: path.to_path_buf(), source }.into())
    }

    fn new(path: &Path, architecture: &'static str, mut blueprint: Blueprint) -> Self {
        let tied = blueprint.tied.unwrap_or(false);
        if tied {
            blueprint.take_output();
        }
        let module = |tensor: OutputTensor| {
            // An adapter changes whole matrices, not parts of fused ones.
            let (&[columns, rows], [input]) = (tensor.dims.as_slice(), tensor.inputs()) else { return None };
            let names = &input.main().filter(|_| input.rows.is_none())?.names;
            let names = names.iter().filter_map(|name| name.strip_suffix(".weight").map(str::to_string)).collect();
            let order = input.order;
            Some(Module { names, tensor: tensor.name, rows, columns, order })
        };
        Self {
            name: path.display().to_string(),
            architecture,
            n_layers: blueprint.topology.n_layers,
            tied,
            modules: blueprint.tensors.into_iter().filter_map(module).collect(),
        }
    }
}

/// Returns whether the model at `path` has an output matrix although its configuration says that the embedding is one.
/// Where there are no weights, only the configuration tells.
fn has_own_output(path: &Path) -> bool {
    let model = Checkpoint::open(path).ok().and_then(|checkpoint| pass::describe(&checkpoint, ARCHITECTURES).ok());
    model.is_some_and(|model| model.tensors.iter().any(|tensor| tensor.role() == Role::Output))
}

/// Returns the base model in a GGUF. The names in a checkpoint are those of the architecture.
fn of_gguf(path: &Path, gguf: &Gguf) -> Result<Base, convert::Error> {
    let metadata = gguf.metadata();
    if metadata.str("general.type") == Some("adapter") {
        return Err(Error::BaseIsAdapter { path: path.to_path_buf() }.into());
    }
    let name = metadata.str("general.architecture").unwrap_or_default();
    let architecture = ARCHITECTURES.by_gguf_name(name).ok_or_else(|| {
        let (path, known) = (path.to_path_buf(), ARCHITECTURES.known_in_gguf());
        Error::ForeignBase { path, found: name.to_string(), known }
    })?;
    let blueprint =
        architecture.blueprint_of_gguf(gguf).map_err(|source| pass::Error::Arch { dir: path.to_path_buf(), source })?;
    let base = Base::new(path, architecture.gguf_name(), blueprint);
    for module in &base.modules {
        let fits = gguf.tensor(&module.tensor).is_some_and(|tensor| tensor.dims == [module.columns, module.rows]);
        if !fits {
            return Err(Error::BaseKey { path: path.to_path_buf(), key: module.tensor.clone() }.into());
        }
    }
    Ok(base)
}
