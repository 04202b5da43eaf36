//! Opens a model: checks it, compares its size with the machine's memory, and loads it.

use std::fmt;
use std::path::Path;

use super::spread::{self, OnSpread, Spread};
use super::{Error, Session, SessionOptions};
use crate::base::remembered::Remembered;
use crate::gguf::TensorType;
use crate::llama::{self, Model, ModelFile, ModelOptions};
use crate::placement::{self, LayoutChoice, LayoutGain, Machine, Repack, Shape};
use crate::remote::{self, Address};

/// Is told how the weights of a model will be laid out.
pub type OnLayout = Box<dyn Fn(&LayoutChoice)>;

/// How to open a model.
#[derive(Default)]
pub struct OpenOptions {
    /// How to load it. Its `repack` and `uncache_copied` are chosen by [`open`].
    pub load: ModelOptions,
    /// Whether weights are copied into llama.cpp's second layout for CPUs.
    pub repack: Repack,
    /// Is told, before the model is loaded, what was chosen; again if a device turns out to be full.
    pub on_layout: Option<OnLayout>,
    /// Other machines that hold layers.
    pub workers: Vec<Address>,
    /// Is told, before the model is loaded, where its layers are, if they are on several devices or other machines.
    pub on_spread: Option<OnSpread>,
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
            .field("workers", &self.workers)
            .field("session", &self.session)
            .field("allow_swap", &self.allow_swap)
            .field("beside", &self.beside)
            .finish_non_exhaustive()
    }
}

/// Loads the model at `path`, a GGUF file or any part of a split one, if it fits in the memory of this machine.
///
/// # Errors
/// If the file or an adapter is refused, an option of the session is out of range, the model does not fit in memory, a worker
/// cannot be used, or llama.cpp cannot load it.
pub fn open(path: &Path, options: OpenOptions) -> Result<Model, Error> {
    let OpenOptions { load, repack, workers, on_layout, on_spread, session, allow_swap, beside } = options;
    let mut file = ModelFile::check(path, load)?;
    let shape = Shape::new(file.metadata(), file.tensor_bytes());
    session.check(shape.n_ctx_train)?;
    remote::connect(&workers).map_err(Box::new)?;
    let size = session.size(shape.n_ctx_train);
    let devices = llama::layer_devices()?;
    if file.options().split.len() > devices.len() {
        let there = devices.into_iter().map(|device| device.description).collect();
        return Err(Error::Split { wanted: file.options().split.len(), there });
    }
    let machine = Machine::this();
    let mut fits = false;
    let is_chosen = file.options().gpu_layers.is_none() && file.gpu_layers()? > 0;
    if is_chosen {
        let available = machine.map_or(u64::MAX, |machine| machine.total.saturating_sub(beside));
        let speed = match devices.iter().any(|device| device.speed.is_some()) {
            true => placement::cpu_speed(session.n_threads())?,
            false => None,
        };
        if let Some(placed) = spread::offload(&file, &shape, &size, &devices, (available, speed)) {
            fits = machine.is_some() && placed.host <= available;
            on_devices(&mut file, placed.split);
        }
    }
    let n_layers = u32::try_from(shape.n_layers).unwrap_or(u32::MAX).saturating_add(1);
    let mut full = None;
    loop {
        let gpu_layers = file.gpu_layers()?;
        let spread = Spread::new(n_layers, gpu_layers, &devices, &file.options().split, full.take());
        if let (Some(on_spread), Some(spread)) = (&on_spread, &spread) {
            on_spread(spread);
        }
        if !fits
            && !allow_swap
            && let Some(machine) = &machine
        {
            let elsewhere = spread::not_here(gpu_layers, &devices, spread.as_ref());
            machine.check(&shape, &size, elsewhere, beside).map_err(Box::new)?;
        }
        let needs = shape.estimate(&size).on_host(gpu_layers, shape.n_layers).total();
        let layout = layout(&file, repack, needs, session.n_threads(), machine.as_ref(), beside)?;
        file.options_mut().repack = layout.used;
        file.options_mut().uncache_copied = layout.crowds_out_the_file();
        if let Some(on_layout) = &on_layout {
            on_layout(&layout);
        }
        let opened = file.load().map_err(Error::from).and_then(|model| {
            // A device may have room for the weights alone.
            if is_chosen && gpu_layers > 0 {
                Session::new(&model, &session)?;
            }
            Ok(model)
        });
        match opened {
            // Another program has taken memory since this one asked how much there is.
            Err(Error::Llama(llama::Error::DeviceFull { device, .. })) if is_chosen && gpu_layers > 0 => {
                let before = spread.map_or_else(|| vec![n_layers], |spread| spread.split(&devices));
                let position = devices.iter().position(|other| other.description == device).unwrap_or(0);
                on_devices(&mut file, spread::with_fewer(&before, position));
                full = Some(device);
                fits = false;
            }
            opened => return opened,
        }
    }
}

/// Puts so many layers on each device.
fn on_devices(file: &mut ModelFile, split: Vec<u32>) {
    let n_layers = split.iter().sum();
    let options = file.options_mut();
    (options.gpu_layers, options.split, options.processor_only) = (Some(n_layers), split, n_layers == 0);
}

/// Chooses how the weights of `file` are laid out where the model and its context take `needs` bytes of main memory, in addition
/// to models that take `beside` bytes. Measures how fast the layouts are with `threads` threads if it was not measured before.
///
/// # Errors
/// [`llama::Error::Backend`] if llama.cpp cannot be started.
pub fn layout(
    file: &ModelFile,
    wish: Repack,
    needs: u64,
    threads: u32,
    machine: Option<&Machine>,
    beside: u64,
) -> Result<LayoutChoice, Error> {
    let shape = Shape::new(file.metadata(), file.tensor_bytes());
    let repacked = file.repacked()?;
    let bytes = repacked.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    let bytes = shape.share_on_host(bytes, file.gpu_layers()?);
    let gain = match wish {
        Repack::Auto if bytes >= WORTH_MEASURING => layout_gain(&repacked, threads, &Remembered::of_user())?,
        _ => None,
    };
    Ok(LayoutChoice::new(wish, bytes, gain, needs, machine, beside))
}

/// Bytes that are copied in less time than measuring would take.
const WORTH_MEASURING: u64 = 32 << 20;

/// Returns how much faster the second layout of weights of these types is here, as measured earlier, or now; `None` if it
/// cannot be measured.
fn layout_gain(
    types: &[(TensorType, u64)],
    threads: u32,
    remembered: &Remembered,
) -> Result<Option<LayoutGain>, Error> {
    // What the numbers depend on. The number of threads is the same for both layouts.
    let mut times = Vec::with_capacity(types.len());
    for (ty, bytes) in types {
        let name = placement::measurement(&format!("layout of {ty}"))?;
        let known = remembered.get(&name);
        let Some(measured) = known.map_or_else(|| llama::layout_times(*ty, threads), |known| Ok(Some(known)))? else {
            return Ok(None);
        };
        if known.is_none() {
            remembered.put(&name, &measured);
        }
        times.push((*bytes, measured));
    }
    Ok(LayoutGain::of(&times))
}

/// Estimates the bytes of main memory that a loaded model takes with a session made by `session`.
pub fn memory(model: &Model, session: &SessionOptions) -> u64 {
    let shape = Shape::of_model(model);
    shape.estimate(&session.size(shape.n_ctx_train)).on_host(model.gpu_layers(), shape.n_layers).total()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{LayoutTimes, WeightTime};

    #[test]
    fn a_layout_is_measured_once_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("measured.json");
        let types = [(TensorType::Q4_0, 1u64 << 30)];
        let first = layout_gain(&types, 2, &Remembered::at(&path)).unwrap();
        let is_known = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
        assert!(first.is_some() || !is_known);
        let Some(first) = first else { return };
        assert_eq!(layout_gain(&types, 1, &Remembered::at(&path)).unwrap(), Some(first));
        // It is read, not measured: other numbers give another answer.
        let text = std::fs::read_to_string(&path).unwrap();
        let all: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        let name = all.keys().next().unwrap();
        assert!(name.starts_with("layout of Q4_0, "), "{name}");
        let time = |reading, writing| WeightTime { reading, writing };
        let other = LayoutTimes { from_file: time(4.0, 3.0), copied: time(2.0, 1.0) };
        Remembered::at(&path).put(name, &other);
        let gain = LayoutGain { reading: 2.0, writing: 3.0 };
        assert_eq!(layout_gain(&types, 2, &Remembered::at(&path)).unwrap(), Some(gain));
        // Of a type without a second layout, nothing can be said.
        assert_eq!(layout_gain(&[(TensorType::F16, 1)], 2, &Remembered::at(&path)).unwrap(), None);
    }
}
