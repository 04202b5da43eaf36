//! Flags that set up the machine, for every command that runs a model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{ArgAction, ValueEnum};

use super::interrupt::Interrupted;
use crate::evaluate::ModelSettings;
use crate::llama;
use crate::llama::{Error, FlashAttention, KvType, Lora, Model, ModelOptions, SessionOptions};

/// The machine that a model runs on.
#[derive(Debug, clap::Args)]
pub(super) struct MachineArgs {
    /// Tokens the model can look back on, prompt and answer together [default: what it was trained on, up to 4096]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    ctx: Option<u32>,

    #[command(flatten)]
    engine: EngineArgs,

    /// Use the model with this LoRA adapter, a GGUF file; can be given several times, with more or less than 1 of each
    #[arg(long, value_name = "FILE[=SCALE]", action = ArgAction::Append, help_heading = "Machine")]
    lora: Vec<Lora>,
}

/// What it computes with, for models whose context is no choice.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Threads [default: one a physical core]
    #[arg(short, long, value_name = "N", help_heading = "Machine")]
    threads: Option<u32>,

    /// Layers to put on the GPU [default: all, where there is a GPU]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    gpu_layers: Option<u32>,

    /// How to keep what the model remembers of the text: q8_0 takes half the memory of f16
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvTypeArg::F16, help_heading = "Machine")]
    kv_type: KvTypeArg,

    /// Compute attention in one fused step
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto, help_heading = "Machine")]
    flash_attn: When,

    /// Run a model that does not fit in memory, which is slow: weights come from the disk again for every token
    #[arg(long, help_heading = "Machine")]
    allow_swap: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KvTypeArg {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    Auto,
    On,
    Off,
}

impl EngineArgs {
    /// How to make a session. `cancel` interrupts it.
    pub fn session(&self, cancel: Arc<AtomicBool>) -> SessionOptions {
        SessionOptions {
            threads: self.threads,
            kv_type: match self.kv_type {
                KvTypeArg::F32 => KvType::F32,
                KvTypeArg::F16 => KvType::F16,
                KvTypeArg::Q8_0 => KvType::Q8_0,
            },
            flash_attention: match self.flash_attn {
                When::Auto => FlashAttention::Auto,
                When::On => FlashAttention::On,
                When::Off => FlashAttention::Off,
            },
            cancel,
            ..SessionOptions::default()
        }
    }

    /// How models are run in comparisons. What is executed brings its own flag that interrupts.
    pub fn settings(&self) -> ModelSettings {
        ModelSettings {
            session: self.session(Arc::default()),
            gpu_layers: self.gpu_layers,
            allow_swap: self.allow_swap,
        }
    }

    fn options(&self, session: &SessionOptions, watch: impl Fn(f32) + 'static) -> ModelOptions {
        let cancel = session.cancel.clone();
        ModelOptions {
            gpu_layers: self.gpu_layers,
            allow_swap: self.allow_swap,
            session: session.clone(),
            progress: Some(Box::new(move |part| {
                watch(part);
                !cancel.load(Ordering::Relaxed)
            })),
            ..ModelOptions::default()
        }
    }
}

impl MachineArgs {
    /// How to make a session. `cancel` interrupts it.
    pub fn session(&self, cancel: Arc<AtomicBool>) -> SessionOptions {
        SessionOptions { n_ctx: self.ctx, ..self.engine.session(cancel) }
    }

    /// Whether layers of the model lie on a GPU.
    pub fn uses_gpu(&self) -> Result<bool, Error> {
        Ok(self.engine.gpu_layers != Some(0) && llama::has_gpu()?)
    }

    /// Loads the model at `path` for such a session, with the adapters that were asked for.
    pub fn load(&self, path: &Path, session: &SessionOptions) -> Result<Model, Error> {
        self.load_watched(path, session, |_| {})
    }

    /// As [`Self::load`]; `watch` is told how far it is, from 0 to 1.
    pub fn load_watched(
        &self,
        path: &Path,
        session: &SessionOptions,
        watch: impl Fn(f32) + 'static,
    ) -> Result<Model, Error> {
        Model::load(path, ModelOptions { lora: self.lora.clone(), ..self.engine.options(session, watch) })
    }

    /// Loads the model at `path` for such a session, beside one that takes `beside` bytes; with other layers on the GPU
    /// where that is said.
    pub fn load_beside(
        &self,
        path: &Path,
        session: &SessionOptions,
        beside: u64,
        gpu_layers: Option<u32>,
    ) -> Result<Model, Error> {
        let options = self.engine.options(session, |_| {});
        Model::load(path, ModelOptions { beside, gpu_layers: gpu_layers.or(options.gpu_layers), ..options })
    }
}

/// What was loaded, unless it was interrupted.
pub(super) fn interruptible<T>(loaded: Result<T, Error>) -> anyhow::Result<T> {
    loaded.map_err(|error| match error {
        Error::LoadCancelled => Interrupted(error.to_string()).into(),
        error => error.into(),
    })
}
