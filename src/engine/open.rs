//! Opens a model: checks it, compares its size with the machine's memory, and loads it.

use std::fmt;
use std::path::Path;

use super::{Error, SessionOptions};
use crate::llama::{Model, ModelFile, ModelOptions};
use crate::placement::{LayoutChoice, Machine, Repack, Shape};

/// Is told how the weights of a model will be laid out.
pub type OnLayout = Box<dyn FnOnce(&LayoutChoice)>;

/// How to open a model.
#[derive(Default)]
pub struct OpenOptions {
    /// How to load it. Its `repack` and `uncache_copied` are chosen by [`open`].
    pub load: ModelOptions,
    /// Whether weights are copied into llama.cpp's second layout for CPUs.
    pub repack: Repack,
    /// Is told, before the model is loaded, what was chosen.
    pub on_layout: Option<OnLayout>,
    /// How its session will be made. The check before loading includes the session's memory.
    pub session: SessionOptions,
    /// Whether to load a model that does not fit in memory. Its weights are then read from disk again and again.
    pub allow_swap: bool,
    /// Bytes of memory that other models of this process take: see [`memory`].
    pub beside: u64,
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("load", &self.load)
            .field("repack", &self.repack)
            .field("session", &self.session)
            .field("allow_swap", &self.allow_swap)
            .field("beside", &self.beside)
            .finish_non_exhaustive()
    }
}

/// Loads the model at `path`, a GGUF file or any part of a split one, if it fits in the memory of this machine.
///
/// # Errors
/// If the file or an adapter is refused, an option of the session is out of range, the model does not fit in memory, or
/// llama.cpp cannot load it.
pub fn open(path: &Path, options: OpenOptions) -> Result<Model, Error> {
    let OpenOptions { load, repack, on_layout, session, allow_swap, beside } = options;
    let mut file = ModelFile::check(path, load)?;
    let shape = Shape::new(file.metadata(), file.tensor_bytes());
    session.check(shape.n_ctx_train)?;
    let (size, gpu_layers) = (session.size(shape.n_ctx_train), file.gpu_layers()?);
    let machine = Machine::this();
    if !allow_swap && let Some(machine) = &machine {
        machine.check(&shape, &size, gpu_layers, beside).map_err(Box::new)?;
    }
    let needs = shape.estimate(&size).on_host(gpu_layers, shape.n_layers).total();
    let repacked = shape.share_on_host(file.repacked_bytes()?, gpu_layers);
    let layout = LayoutChoice::new(repack, repacked, needs, machine.as_ref(), beside);
    file.options_mut().repack = layout.used;
    file.options_mut().uncache_copied = layout.crowds_out_the_file();
    if let Some(on_layout) = on_layout {
        on_layout(&layout);
    }
    Ok(file.load()?)
}

/// Estimates the bytes of main memory that a loaded model takes with a session made by `session`.
pub fn memory(model: &Model, session: &SessionOptions) -> u64 {
    let shape = Shape::of_model(model);
    shape.estimate(&session.size(shape.n_ctx_train)).on_host(model.gpu_layers(), shape.n_layers).total()
}
