//! Opens a model: checks it, compares its size with the machine's memory, and loads it.

use std::fmt;
use std::path::Path;

use super::{Error, SessionOptions};
use crate::base::remembered::Remembered;
use crate::gguf::TensorType;
use crate::llama::{self, Device, DeviceKind, DeviceSpeed, Model, ModelFile, ModelOptions};
use crate::placement::{
    self, ContextSize, Demand, DeviceRoom, LayoutChoice, LayoutGain, Machine, Outline, Placement, Repack, Room, Shape,
};
use crate::remote::{self, Address};

/// Is told how the weights of a model will be laid out.
pub type OnLayout = Box<dyn FnOnce(&LayoutChoice)>;

/// Is told where layers are.
pub type OnSpread = Box<dyn FnOnce(&Spread)>;

/// Layers that are not all on the same device.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Layers, the output as one of them.
    pub n_layers: u32,
    /// How many are on each device other than the processor, without those that have none.
    pub on_devices: Vec<(Device, u32)>,
}

/// How to open a model.
#[derive(Default)]
pub struct OpenOptions {
    /// How to load it. Its `repack` and `uncache_copied` are chosen by [`open`].
    pub load: ModelOptions,
    /// Whether weights are copied into llama.cpp's second layout for CPUs.
    pub repack: Repack,
    /// Is told, before the model is loaded, what was chosen.
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
    let machine = Machine::this();
    let mut fits = false;
    if file.options().gpu_layers.is_none() && file.gpu_layers()? > 0 {
        let available = machine.map_or(u64::MAX, |machine| machine.total.saturating_sub(beside));
        let speed = match devices.iter().any(|device| device.speed.is_some()) {
            true => placement::cpu_speed(session.n_threads())?,
            false => None,
        };
        if let Some(placed) = offload(&file, &shape, &size, &devices, (available, speed)) {
            fits = machine.is_some() && placed.host <= available;
            file.options_mut().gpu_layers = Some(placed.n_on_devices);
            file.options_mut().split = placed.split;
        }
    }
    let gpu_layers = file.gpu_layers()?;
    let n_layers = u32::try_from(shape.n_layers).unwrap_or(u32::MAX).saturating_add(1);
    let spread = spread(n_layers, gpu_layers, &devices, &file.options().split);
    if let (Some(on_spread), Some(spread)) = (on_spread, &spread) {
        on_spread(spread);
    }
    if !fits
        && !allow_swap
        && let Some(machine) = &machine
    {
        let elsewhere = not_here(gpu_layers, &devices, spread.as_ref());
        let check = machine.check(&shape, &size, elsewhere, beside);
        check.map_err(Box::new)?;
    }
    let needs = shape.estimate(&size).on_host(gpu_layers, shape.n_layers).total();
    let layout = layout(&file, repack, needs, session.n_threads(), machine.as_ref(), beside)?;
    file.options_mut().repack = layout.used;
    file.options_mut().uncache_copied = layout.crowds_out_the_file();
    if let Some(on_layout) = on_layout {
        on_layout(&layout);
    }
    Ok(file.load()?)
}

/// Puts as many layers on devices as there is room for now, with a context of this size, if they are faster than the processor,
/// which has `here`: bytes of memory, and its speed. `None` if there is no such device, or one does not say how much of its memory
/// is free.
fn offload(
    file: &ModelFile,
    shape: &Shape,
    size: &ContextSize,
    devices: &[Device],
    here: (u64, Option<DeviceSpeed>),
) -> Option<Placement> {
    if devices.is_empty() || devices.iter().any(|device| device.free_bytes == 0) {
        return None;
    }
    let outline = Outline::new(file.metadata().clone(), file.tensors().to_vec())?;
    let compute = shape.estimate(size).compute;
    let demand = Demand::new(&outline, size.n_ctx, size.kv_types, compute, 0);
    let room = |host| Room { host, host_speed: here.1, devices: devices.iter().map(DeviceRoom::from).collect() };
    // What has no room at all is refused apart, or wanted all the same.
    placement::place(&demand, &room(here.0)).or_else(|_| placement::place(&demand, &room(u64::MAX))).ok()
}

/// Returns where layers are if `gpu_layers` of `n_layers`, the output as one of them, are shared by `devices` as `split` says;
/// `None` if all are here, or all on one GPU, or llama.cpp shares them.
fn spread(n_layers: u32, gpu_layers: u64, devices: &[Device], split: &[u32]) -> Option<Spread> {
    let on_devices = u32::try_from(gpu_layers).unwrap_or(u32::MAX).min(n_layers);
    let split = match devices {
        [_] => &[on_devices],
        _ => split,
    };
    let on_devices: Vec<(Device, u32)> =
        devices.iter().cloned().zip(split.iter().copied()).filter(|(_, n)| *n > 0).collect();
    match on_devices.as_slice() {
        [] => None,
        [(device, n)] if *n == n_layers && device.kind != DeviceKind::Remote => None,
        _ => Some(Spread { n_layers, on_devices }),
    }
}

/// Returns how many layers take no main memory of this machine: those on devices that have memory of their own.
fn not_here(gpu_layers: u64, devices: &[Device], spread: Option<&Spread>) -> u64 {
    let shares = |device: &Device| device.kind == DeviceKind::IntegratedGpu;
    match spread {
        Some(spread) => {
            spread.on_devices.iter().filter(|(device, _)| !shares(device)).map(|(_, n)| u64::from(*n)).sum()
        }
        None if devices.iter().all(shares) => 0,
        None => gpu_layers,
    }
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
    fn as_many_layers_are_on_a_gpu_as_have_room_there() {
        let folder = tempfile::tempdir().unwrap();
        let hyper = crate::arch::Hyperparameters::yi_6b();
        let config = hyper.to_config("LlamaForCausalLM");
        let architecture = crate::arch::ARCHITECTURES.by_name("LlamaForCausalLM").unwrap();
        let metadata = architecture.blueprint(&config).unwrap().metadata;
        let tensors = crate::arch::tensors(&hyper, TensorType::F16);
        let outline = Outline::without_vocabulary(metadata, tensors, hyper.vocab).unwrap();
        let made = outline.make(folder.path()).unwrap();
        let file = ModelFile::check(made.path(), ModelOptions::default()).unwrap();
        let shape = Shape::new(file.metadata(), file.tensor_bytes());
        let size = SessionOptions::default().size(shape.n_ctx_train);
        let device = |kind, free_bytes| Device {
            name: "X".into(),
            description: "a test".into(),
            kind,
            total_bytes: 24 << 30,
            free_bytes,
            speed: None,
        };
        let on =
            |devices: &[Device]| offload(&file, &shape, &size, devices, (64 << 30, None)).map(|placed| placed.split);
        // 12 GB of weights, 0.3 GB of KV cache.
        assert_eq!(on(&[device(DeviceKind::Gpu, 16 << 30)]), Some(vec![33]));
        let half = on(&[device(DeviceKind::Gpu, 6 << 30)]).unwrap();
        assert!((10..20).contains(&half[0]), "{half:?}");
        let two = on(&[device(DeviceKind::Gpu, 6 << 30), device(DeviceKind::Gpu, 6 << 30)]).unwrap();
        assert!(two[1] == half[0] && two[0] >= half[0], "{two:?}");
        assert_eq!(on(&[device(DeviceKind::Gpu, 100 << 20)]), Some(vec![0]));
        // Nothing is known, or there is nothing to know.
        assert_eq!(on(&[device(DeviceKind::Gpu, 0)]), None);
        assert_eq!(on(&[]), None);
        assert_eq!(on(&[device(DeviceKind::IntegratedGpu, 6 << 30)]), Some(half));
        // A worker that is slower than the processor has what has no room here, or nothing.
        let speed = |bytes_a_second| Some(DeviceSpeed { bytes_a_second, seconds_a_token: 1e-3 });
        let worker = |bytes| Device { speed: speed(bytes), ..device(DeviceKind::Remote, 16 << 30) };
        let on = |worker, host| {
            offload(&file, &shape, &size, &[worker], (host, speed(20e9))).map(|placed| placed.n_on_devices)
        };
        assert_eq!(on(worker(10e9), 64 << 30), Some(0));
        assert_eq!(on(worker(40e9), 64 << 30), Some(33));
        let some = on(worker(10e9), 8 << 30).unwrap();
        assert!((5..20).contains(&some), "{some}");
        // Where it fits nowhere, the check of memory says so.
        assert_eq!(on(Device { free_bytes: 1 << 30, ..worker(10e9) }, 1 << 30), Some(0));
    }

    #[test]
    fn it_is_known_which_layers_are_not_in_this_memory() {
        let device = |kind| Device {
            name: "X".into(),
            description: "a test".into(),
            kind,
            total_bytes: 9,
            free_bytes: 9,
            speed: None,
        };
        let [gpu, shared, worker] = [DeviceKind::Gpu, DeviceKind::IntegratedGpu, DeviceKind::Remote].map(device);
        let spread = |gpu_layers, devices: &[Device], split: &[u32]| {
            let spread = super::spread(9, gpu_layers, devices, split);
            let told = spread.as_ref().map(|spread| spread.on_devices.iter().map(|(_, n)| *n).collect::<Vec<_>>());
            (told, not_here(gpu_layers, devices, spread.as_ref()))
        };
        assert_eq!(spread(0, &[], &[]), (None, 0));
        assert_eq!(spread(u64::MAX, std::slice::from_ref(&gpu), &[]), (None, u64::MAX));
        assert_eq!(spread(4, std::slice::from_ref(&gpu), &[4]), (Some(vec![4]), 4));
        assert_eq!(spread(u64::MAX, std::slice::from_ref(&shared), &[]), (None, 0));
        assert_eq!(spread(4, std::slice::from_ref(&shared), &[]), (Some(vec![4]), 0));
        assert_eq!(spread(u64::MAX, std::slice::from_ref(&worker), &[]), (Some(vec![9]), 9));
        assert_eq!(spread(7, &[worker.clone(), gpu.clone()], &[3, 4]), (Some(vec![3, 4]), 7));
        assert_eq!(spread(7, &[worker.clone(), shared], &[3, 4]), (Some(vec![3, 4]), 3));
        assert_eq!(spread(4, &[worker, gpu], &[0, 4]), (Some(vec![4]), 4));
    }

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
