//! Flags that set up the machine, for every command that runs a model.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{ArgAction, ValueEnum};

use super::interrupt::Interrupted;
use super::rope::RopeArgs;
use crate::base::display::printable;
use crate::engine::{self, Error, OnLayout, OnSpread, OpenOptions, Session, SessionOptions, Spread};
use crate::evaluate::ModelSettings;
use crate::llama::{self, FlashAttention, KvTypes, Lora, Model, ModelOptions};
use crate::placement::{LayoutChoice, Repack};
use crate::remote::Address;

/// How to run a model.
#[derive(Debug, clap::Args)]
pub(super) struct MachineArgs {
    /// Size of the context in tokens, prompt and answer together [default: what the model was trained on, up to 4096]
    #[arg(short, long, value_name = "N", value_parser = parse_ctx, help_heading = "Machine")]
    ctx: Option<u32>,

    #[command(flatten)]
    engine: EngineArgs,

    /// Apply a LoRA adapter, a GGUF file, scaled by SCALE [default: 1]; can be given several times
    #[arg(long, value_name = "FILE[=SCALE]", action = ArgAction::Append, help_heading = "Machine")]
    lora: Vec<Lora>,
}

/// How to compute, for models whose context size is given.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Threads [default: one per physical core]
    #[arg(short, long, value_name = "N", help_heading = "Machine")]
    threads: Option<u32>,

    /// Layers to put on the GPU [default: as many as it has room for, where there is one]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    gpu_layers: Option<u32>,

    /// Put layers on another machine, where 'nibble worker' runs; can be given several times
    ///
    /// The layers are those that have no room here, or that the other machine computes faster. The machines have to be in a
    /// network that you trust, because nothing is encrypted.
    #[arg(long = "worker", value_name = "ADDRESS[:PORT]", action = ArgAction::Append, help_heading = "Machine")]
    workers: Vec<Address>,

    /// How many layers each worker and each GPU has, workers first, the output as one more layer; the rest is here [default:
    /// chosen by memory and speed]
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', conflicts_with = "gpu_layers", help_heading = "Machine")]
    split: Vec<u32>,

    /// Type of the KV cache, or of its keys and values, as in q8_0/q5_1: q8_0 takes half the memory of f16
    ///
    /// One of f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl. Keys bear coarse types less well than values. What a type
    /// costs depends on the model. 'nibble compare' measures it, with a trace of the same file:
    /// 'nibble trace MODEL -o model.trace --text FILE', then 'nibble compare model.trace MODEL --kv-type q8_0'.
    #[arg(long, value_name = "TYPE", default_value_t = KvTypes::default(), help_heading = "Machine")]
    kv_type: KvTypes,

    #[command(flatten)]
    rope: RopeArgs,

    /// Compute attention in one fused step
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto, help_heading = "Machine")]
    flash_attn: When,

    /// Copy weights into llama.cpp's second layout for CPUs [default: where it is faster, and there is room for it]
    ///
    /// Which layout is faster depends on the CPU and on the types of the weights. It is measured when a type is used for
    /// the first time, and remembered in nibble's cache folder (NIBBLE_CACHE names another one). The copies cannot be given
    /// back to the system while the model is loaded, unlike the pages of the file. The layouts add numbers in different
    /// orders, so that the same seed can give another text.
    #[arg(long, value_name = "WHEN", value_enum, hide_default_value = true, default_value_t = When::Auto, help_heading = "Machine")]
    repack: When,

    /// Run a model that does not fit in memory. This is slow: its weights are read from disk again for every token
    #[arg(long, help_heading = "Machine")]
    allow_swap: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum When {
    Auto,
    On,
    Off,
}

impl EngineArgs {
    /// Returns how to make a session. Setting `cancel` interrupts it.
    pub fn session(&self, cancel: Arc<AtomicBool>) -> SessionOptions {
        SessionOptions {
            threads: self.threads,
            kv_types: self.kv_type,
            flash_attention: match self.flash_attn {
                When::Auto => FlashAttention::Auto,
                When::On => FlashAttention::On,
                When::Off => FlashAttention::Off,
            },
            rope: self.rope.options(),
            cancel,
            ..SessionOptions::default()
        }
    }

    /// Returns how models are run in comparisons, which have their own cancel flag.
    pub fn settings(&self) -> ModelSettings {
        ModelSettings {
            session: self.session(Arc::default()),
            gpu_layers: self.gpu_layers(),
            split: self.split.clone(),
            workers: self.workers.clone(),
            repack: self.repack(),
            allow_swap: self.allow_swap,
        }
    }

    /// Returns how many layers are not on the processor, if it was said.
    fn gpu_layers(&self) -> Option<u32> {
        match self.split.as_slice() {
            [] => self.gpu_layers,
            split => Some(split.iter().fold(0, |sum, n| sum.saturating_add(*n))),
        }
    }

    fn repack(&self) -> Repack {
        match self.repack {
            When::Auto => Repack::Auto,
            When::On => Repack::On,
            When::Off => Repack::Off,
        }
    }

    fn options(&self, path: &Path, session: &SessionOptions, watch: impl Fn(f32) + 'static) -> OpenOptions {
        let cancel = session.cancel.clone();
        let load = ModelOptions {
            gpu_layers: self.gpu_layers(),
            split: self.split.clone(),
            progress: Some(Box::new(move |part| {
                watch(part);
                !cancel.load(Ordering::Relaxed)
            })),
            ..ModelOptions::default()
        };
        let repack = self.repack();
        let name = printable(&path.file_name().unwrap_or_default().to_string_lossy()).to_string();
        let part_of = name.clone();
        let tell = move |layout: &LayoutChoice| {
            if let Some(line) = no_room_for_layout(repack, layout) {
                eprintln!("nibble: {name}: {line}");
            }
        };
        // What was asked for needs no telling.
        let is_chosen = self.gpu_layers().is_none();
        let tell_spread = move |spread: &Spread| eprintln!("nibble: {part_of}: {}", where_layers_are(spread));
        let (session, allow_swap, workers) = (session.clone(), self.allow_swap, self.workers.clone());
        let on_layout: Option<OnLayout> = Some(Box::new(tell));
        let on_spread: Option<OnSpread> = is_chosen.then(|| Box::new(tell_spread) as OnSpread);
        OpenOptions { load, repack, workers, on_layout, on_spread, session, allow_swap, beside: 0 }
    }
}

impl MachineArgs {
    /// Returns how to make a session. Setting `cancel` interrupts it.
    pub fn session(&self, cancel: Arc<AtomicBool>) -> SessionOptions {
        SessionOptions { n_ctx: self.ctx, ..self.engine.session(cancel) }
    }

    /// Returns whether layers of the model are on a GPU.
    pub fn uses_gpu(&self) -> Result<bool, Error> {
        Ok(self.engine.gpu_layers() != Some(0) && (llama::has_gpu()? || !self.engine.workers.is_empty()))
    }

    /// Loads the model at `path` for such a session, with the adapters that were asked for. `quiet`: says nothing about how.
    pub fn load(&self, path: &Path, session: &SessionOptions, quiet: bool) -> Result<Model, Error> {
        let mut options = self.engine.options(path, session, |_| {});
        options.on_layout = options.on_layout.filter(|_| !quiet);
        options.on_spread = options.on_spread.filter(|_| !quiet);
        options.load.lora = self.lora.clone();
        engine::open(path, options)
    }

    /// Loads the model at `path` for such a session, with the adapters that were asked for. `watch` is told the progress, from 0 to 1.
    pub fn load_watched(
        &self,
        path: &Path,
        session: &SessionOptions,
        watch: impl Fn(f32) + 'static,
    ) -> Result<Model, Error> {
        let mut options = self.engine.options(path, session, watch);
        options.load.lora = self.lora.clone();
        engine::open(path, options)
    }

    /// Loads the model at `path` for such a session, in addition to one that takes `beside` bytes. `gpu_layers`, if
    /// given, replaces the flag's number.
    pub fn load_beside(
        &self,
        path: &Path,
        session: &SessionOptions,
        beside: u64,
        gpu_layers: Option<u32>,
    ) -> Result<Model, Error> {
        let mut options = self.engine.options(path, session, |_| {});
        options.load.gpu_layers = gpu_layers.or(options.load.gpu_layers);
        engine::open(path, OpenOptions { beside, ..options })
    }
}

/// Returns what to tell the user if the session holds more tokens than the model can make sense of.
pub(super) fn too_long(session: &Session) -> Option<String> {
    let trained = session.model().n_ctx_train().filter(|n| *n > 0)?;
    let wanted = session.n_ctx();
    (wanted > session.options().rope.n_ctx(trained)).then(|| {
        let factor = wanted.div_ceil(trained);
        format!(
            "the model was trained on {trained} tokens at a time; beyond them it may write nonsense, and less of it with \
             '--rope-scaling yarn --rope-scale {factor}'"
        )
    })
}

/// Returns where layers are, in words.
fn where_layers_are(spread: &Spread) -> String {
    let Spread { n_layers, on_devices, full } = spread;
    let elsewhere: u32 = on_devices.iter().map(|(_, n)| *n).sum();
    let mut told: Vec<String> =
        on_devices.iter().map(|(device, n)| format!("{n} on {}", printable(&device.description))).collect();
    match n_layers.saturating_sub(elsewhere) {
        0 => {}
        here => told.push(format!("{here} on the processor here")),
    }
    let flag = if on_devices.len() > 1 { "--split" } else { "--gpu-layers" };
    let why = full.as_ref().map_or(String::new(), |full| format!("{} has no room for more: ", printable(full)));
    format!("{why}of {n_layers} layers, {}; {flag} sets it", told.join(", "))
}

/// Returns what to tell the user if the second layout was wanted where it pays, and there is no room for it.
fn no_room_for_layout(wish: Repack, layout: &LayoutChoice) -> Option<String> {
    let available = layout.available.filter(|_| wish == Repack::Auto && layout.lacks_room())?;
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let cost = match layout.gain {
        Some(gain) => format!(
            "They would read prompts {:.1} times as fast, and write {:.1} times as fast. '--repack on' copies all the same",
            gain.reading, gain.writing
        ),
        None => "'--repack on' copies them all the same; 'nibble bench' tells which is faster".to_string(),
    };
    Some(format!(
        "the weights are used from the file, because copies in llama.cpp's second layout leave no room for other programs \
         (the model needs {}, {} is free). {cost}",
        gb(layout.needs),
        gb(available)
    ))
}

/// Parses the size of a context. llama.cpp's 0 is for all that the model was trained on, which may be more than fits.
fn parse_ctx(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("leave it out for what the model was trained on, up to 4096, or give that number for more \
                      ('nibble inspect MODEL' shows it)"
            .to_string()),
        Ok(n) => Ok(n),
        Err(_) => Err("it has to be a number of tokens".to_string()),
    }
}

/// Parses how many tokens to write at most; [`NO_LIMIT`] for llama.cpp's -1 (until the model ends) and -2 (until the
/// context is full), which come to the same here.
pub(super) fn parse_max_tokens(text: &str) -> Result<usize, String> {
    match text {
        "-1" | "-2" => Ok(NO_LIMIT),
        _ => text.parse().map_err(|_| "it has to be a number of tokens, or -1 for no limit".to_string()),
    }
}

/// As many tokens as there is room for.
pub(super) const NO_LIMIT: usize = usize::MAX;

/// Turns an interrupted load into [`Interrupted`].
pub(super) fn interruptible<T>(loaded: Result<T, Error>) -> anyhow::Result<T> {
    loaded.map_err(|error| match error {
        Error::LoadCancelled => Interrupted(error.to_string()).into(),
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::LayoutGain;

    #[test]
    fn it_is_told_where_layers_are() {
        let device = |description: &str| llama::Device {
            name: "X0".into(),
            description: description.into(),
            kind: llama::DeviceKind::Gpu,
            total_bytes: 9,
            free_bytes: 9,
            speed: None,
        };
        let spread = Spread {
            n_layers: 61,
            on_devices: vec![(device("CPU at desk:7117"), 20), (device("RTX"), 30)],
            full: None,
        };
        let told = where_layers_are(&spread);
        assert_eq!(told, "of 61 layers, 20 on CPU at desk:7117, 30 on RTX, 11 on the processor here; --split sets it");
        let spread = Spread { n_layers: 61, on_devices: vec![(device("RTX"), 61)], full: None };
        assert_eq!(where_layers_are(&spread), "of 61 layers, 61 on RTX; --gpu-layers sets it");
        let spread = Spread { n_layers: 61, on_devices: vec![], full: Some("RTX".into()) };
        let told = where_layers_are(&spread);
        assert_eq!(told, "RTX has no room for more: of 61 layers, 61 on the processor here; --gpu-layers sets it");
    }

    #[test]
    fn a_lack_of_room_is_told_where_it_decides() {
        const GB: u64 = 1_000_000_000;
        let layout =
            LayoutChoice { repacked: 16 * GB, gain: None, used: false, needs: 22 * GB, available: Some(20 * GB) };
        let line = no_room_for_layout(Repack::Auto, &layout).unwrap();
        assert!(line.contains("(the model needs 22.0 GB, 20.0 GB is free)") && line.contains("--repack on"), "{line}");
        let gain = Some(LayoutGain { reading: 1.44, writing: 1.26 });
        let line = no_room_for_layout(Repack::Auto, &LayoutChoice { gain, ..layout }).unwrap();
        assert!(line.contains("prompts 1.4 times as fast, and write 1.3 times as fast"), "{line}");
        let gain = Some(LayoutGain { reading: 0.9, writing: 1.2 });
        assert_eq!(no_room_for_layout(Repack::Auto, &LayoutChoice { gain, ..layout }), None);
        assert_eq!(no_room_for_layout(Repack::Auto, &LayoutChoice { used: true, ..layout }), None);
        assert_eq!(no_room_for_layout(Repack::Auto, &LayoutChoice { repacked: 0, ..layout }), None);
        assert_eq!(no_room_for_layout(Repack::Off, &layout), None);
    }
}
