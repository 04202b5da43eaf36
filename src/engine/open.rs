//! Opens a model: checks it, compares its size with the machine's memory, and loads it.

use std::path::Path;

use super::{Error, SessionOptions};
use crate::llama::{Model, ModelFile, ModelOptions};
use crate::placement::{Machine, Shape};

/// How to open a model.
#[derive(Debug, Default)]
pub struct OpenOptions {
    /// How to load it.
    pub load: ModelOptions,
    /// How its session will be made. The check before loading includes the session's memory.
    pub session: SessionOptions,
    /// Whether to load a model that does not fit in memory. Its weights are then read from disk again and again.
    pub allow_swap: bool,
    /// Bytes of memory that other models of this process take: see [`memory`].
    pub beside: u64,
}

/// Loads the model at `path`, a GGUF file or any part of a split one, if it fits in the memory of this machine.
///
/// # Errors
/// If the file or an adapter is refused, an option of the session is out of range, the model does not fit in memory, or
/// llama.cpp cannot load it.
pub fn open(path: &Path, options: OpenOptions) -> Result<Model, Error> {
    let OpenOptions { load, session, allow_swap, beside } = options;
    let file = ModelFile::check(path, load)?;
    let shape = Shape::new(file.metadata(), file.tensor_bytes());
    session.check(shape.n_ctx_train)?;
    if !allow_swap && let Some(machine) = Machine::this() {
        machine.check(&shape, &session.size(shape.n_ctx_train), file.gpu_layers()?, beside).map_err(Box::new)?;
    }
    Ok(file.load()?)
}

/// Estimates the bytes of main memory that a loaded model takes with a session made by `session`.
pub fn memory(model: &Model, session: &SessionOptions) -> u64 {
    let shape = Shape::of_model(model);
    shape.estimate(&session.size(shape.n_ctx_train)).on_host(model.gpu_layers(), shape.n_layers).total()
}
