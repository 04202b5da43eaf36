//! Which layers of a model are on which device.

use crate::llama::{Device, DeviceKind, DeviceSpeed, ModelFile};
use crate::placement::{self, ContextSize, Demand, DeviceRoom, Outline, Placement, Room, Shape};

/// Is told where layers are.
pub type OnSpread = Box<dyn Fn(&Spread)>;

/// Layers that are not all on the same device.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// Layers, the output as one of them.
    pub n_layers: u32,
    /// How many are on each device other than the processor, without those that have none.
    pub on_devices: Vec<(Device, u32)>,
    /// The device that turned out to be full when more were tried.
    pub full: Option<String>,
}

impl Spread {
    /// Returns where layers are if `gpu_layers` of `n_layers`, the output as one of them, are shared by `devices` as `split` says;
    /// `None` if all are here, or all on one GPU, or llama.cpp shares them, unless a device was `full`.
    pub(super) fn new(
        n_layers: u32,
        gpu_layers: u64,
        devices: &[Device],
        split: &[u32],
        full: Option<String>,
    ) -> Option<Self> {
        let on_devices = u32::try_from(gpu_layers).unwrap_or(u32::MAX).min(n_layers);
        let split = match devices {
            [_] => &[on_devices],
            _ => split,
        };
        let shared = devices.iter().cloned().zip(split.iter().copied());
        let on_devices: Vec<(Device, u32)> = shared.filter(|(_, n)| *n > 0).collect();
        match on_devices.as_slice() {
            [] if full.is_none() => None,
            [(device, n)] if *n == n_layers && device.kind != DeviceKind::Remote && full.is_none() => None,
            _ => Some(Self { n_layers, on_devices, full }),
        }
    }

    /// Returns how many layers each of `devices` has.
    pub(super) fn split(&self, devices: &[Device]) -> Vec<u32> {
        let n = |device: &Device| {
            self.on_devices.iter().find(|(other, _)| other.name == device.name).map_or(0, |(_, n)| *n)
        };
        devices.iter().map(n).collect()
    }
}

/// Returns a split with a quarter fewer layers on a device that was full, and at least one fewer on some device.
pub(super) fn with_fewer(split: &[u32], full: usize) -> Vec<u32> {
    let mut split = split.to_vec();
    let has_some = split.get(full).is_some_and(|n| *n > 0);
    let full = if has_some { full } else { split.iter().position(|n| *n > 0).unwrap_or(0) };
    if let Some(n) = split.get_mut(full) {
        *n -= n.div_ceil(4);
    }
    split
}

/// Puts as many layers on devices as there is room for now, with a context of this size, if they are faster than the processor,
/// which has `here`: bytes of memory, and its speed. `None` if there is no such device, or one does not say how much of its memory
/// is free.
pub(super) fn offload(
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

/// Returns how many layers take no main memory of this machine: those on devices that have memory of their own.
pub(super) fn not_here(gpu_layers: u64, devices: &[Device], spread: Option<&Spread>) -> u64 {
    let shares = |device: &Device| device.kind == DeviceKind::IntegratedGpu;
    match spread {
        Some(spread) => {
            spread.on_devices.iter().filter(|(device, _)| !shares(device)).map(|(_, n)| u64::from(*n)).sum()
        }
        None if devices.iter().all(shares) => 0,
        None => gpu_layers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SessionOptions;
    use crate::gguf::TensorType;
    use crate::llama::ModelOptions;

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
    fn a_device_that_turns_out_to_be_full_has_fewer_layers() {
        assert_eq!(with_fewer(&[33], 0), [24]);
        assert_eq!(with_fewer(&[1], 0), [0]);
        assert_eq!(with_fewer(&[8, 2], 1), [8, 1]);
        // One that has none cannot be the full one.
        assert_eq!(with_fewer(&[8, 0], 1), [6, 0]);
        // It ends.
        let (mut split, mut steps) = (vec![512, 512], 0);
        while split.iter().sum::<u32>() > 0 {
            split = with_fewer(&split, 0);
            steps += 1;
        }
        assert!(steps < 60, "{steps}");
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
            let spread = Spread::new(9, gpu_layers, devices, split, None);
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
}
