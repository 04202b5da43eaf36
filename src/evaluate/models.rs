//! How models are run and loaded.

use std::path::Path;
use std::sync::atomic::Ordering;

use crate::engine::{self, Error, OpenOptions, SessionOptions};
use crate::llama::{Model, ModelOptions};
use crate::placement::Repack;
use crate::remote::Address;

/// How models are run.
#[derive(Clone, Debug, Default)]
pub struct ModelSettings {
    /// Threads, type of the KV cache, attention. The context and the batches depend on what is read.
    pub session: SessionOptions,
    /// Layers to put on the GPU; `None` for all if there is one.
    pub gpu_layers: Option<u32>,
    /// How many of these layers each device has, other machines first; empty to choose.
    pub split: Vec<u32>,
    /// Other machines that hold layers.
    pub workers: Vec<Address>,
    /// Whether weights are copied into llama.cpp's second layout for CPUs. It adds numbers in another order, which changes
    /// results by less than any interval.
    pub repack: Repack,
    /// Whether to run models that do not fit in memory.
    pub allow_swap: bool,
}

impl ModelSettings {
    /// Loads a model for such a session, in addition to models that take `beside` bytes. The session's flag interrupts
    /// it.
    ///
    /// # Errors
    /// If the file is not a model that can be run, or does not fit in memory.
    pub fn load(&self, path: &Path, session: &SessionOptions, beside: u64) -> Result<Model, Error> {
        let cancel = session.cancel.clone();
        let load = ModelOptions {
            gpu_layers: self.gpu_layers,
            split: self.split.clone(),
            progress: Some(Box::new(move |_| !cancel.load(Ordering::Relaxed))),
            ..ModelOptions::default()
        };
        let (session, repack, allow_swap) = (session.clone(), self.repack, self.allow_swap);
        let workers = self.workers.clone();
        let options =
            OpenOptions { load, repack, workers, session, allow_swap, beside, on_layout: None, on_spread: None };
        engine::open(path, options)
    }

    /// Returns the settings that numbers depend on, in words. Results with different settings are not mixed.
    pub fn identity(&self) -> String {
        let SessionOptions { kv_types, flash_attention, rope, .. } = &self.session;
        let rope = if rope.is_default() { String::new() } else { format!(", positions: {rope}") };
        format!("KV cache {kv_types}, flash attention {flash_attention:?}{rope}")
    }
}
