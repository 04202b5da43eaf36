//! Which layers of a model go to which device.
//!
//! ```text
//! main memory   input, layer 0, 1 .. i-1                       the program itself, intermediate results
//! device 0      layer i .. j-1                                  intermediate results
//! device 1      layer j .. n-1, output                          intermediate results
//! ```
//!
//! llama.cpp puts the output on a device first, then the last layer, the one before it, and so on. The keys and values of a
//! layer are where the layer is. So the devices are filled from the end of the model, the last device first.
//!
//! A device that is slower than the processor here, such as another machine, gets the layers that have no room here, and no
//! others.

use std::fmt;

use super::{Outline, Parts, heads};
use crate::llama::{Device, DeviceKind, DeviceSpeed, KvTypes};

/// What has to be placed, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The weights.
    pub parts: Parts,
    /// The keys and values of each layer, for a full context.
    pub kv: Vec<u64>,
    /// Intermediate results, on each device that computes.
    pub compute: u64,
    /// What the program takes for itself: its code, the vocabulary.
    pub program: u64,
}

impl Demand {
    /// Returns what a model takes with a context of `n_ctx` tokens.
    pub fn new(outline: &Outline, n_ctx: u32, kv_types: KvTypes, compute: u64, program: u64) -> Self {
        // llama.cpp makes contexts in steps of 256.
        let n_ctx = u64::from(n_ctx).next_multiple_of(256);
        let of_layer = |heads: &crate::llama::Heads| {
            kv_types.bytes(heads.k_values().saturating_mul(n_ctx), heads.v_values().saturating_mul(n_ctx))
        };
        Self { parts: outline.parts(), kv: heads(outline.metadata()).iter().map(of_layer).collect(), compute, program }
    }

    /// Returns the bytes of layer `i`, or of the output if it is the number of layers.
    fn of(&self, i: usize) -> u64 {
        match self.parts.layers.get(i) {
            Some(weights) => weights.saturating_add(self.kv.get(i).copied().unwrap_or(0)),
            None => self.parts.output,
        }
    }

    /// Returns the bytes of main memory if the first `n` layers, and the output if `n` is larger, are in it.
    fn on_host(&self, n: usize) -> u64 {
        let n_layers = self.parts.layers.len();
        let layers = (0..n.min(n_layers)).fold(0u64, |sum, i| sum.saturating_add(self.of(i)));
        let output = match n > n_layers {
            true if self.parts.is_tied => self.parts.output.saturating_sub(self.parts.input),
            true => self.parts.output,
            false => 0,
        };
        [self.parts.input, layers, output, self.compute, self.program].into_iter().fold(0, u64::saturating_add)
    }
}

/// Memory that is there for a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    /// Bytes of main memory, without what other programs need.
    pub host: u64,
    /// How fast the processor is; `None` if it is not known.
    pub host_speed: Option<DeviceSpeed>,
    /// Each device that layers can be on, in llama.cpp's order.
    pub devices: Vec<DeviceRoom>,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeviceRoom {
    /// Free bytes of it.
    pub bytes: u64,
    /// Whether it is main memory, which the device shares.
    pub is_host: bool,
    /// How fast the device is; `None` for those that are faster than any processor.
    pub speed: Option<DeviceSpeed>,
}

impl From<&Device> for DeviceRoom {
    fn from(device: &Device) -> Self {
        let Device { free_bytes, kind, speed, .. } = device;
        Self { bytes: *free_bytes, is_host: *kind == DeviceKind::IntegratedGpu, speed: *speed }
    }
}

impl Room {
    /// One of so many parts of a device's memory is left to others: its driver, the screen.
    const RESERVED: u64 = 20;

    /// Returns the room of a machine that has GPUs with so many free bytes of their own.
    pub fn new(host: u64, gpus: &[u64]) -> Self {
        let device = |bytes: &u64| DeviceRoom { bytes: *bytes, ..DeviceRoom::default() };
        Self { host, host_speed: None, devices: gpus.iter().map(device).collect() }
    }

    /// Returns whether a model is written faster if as much of it as has room is on this device, not on the processor.
    fn pays(&self, device: &DeviceRoom, demand: &Demand) -> bool {
        let (Some(here), Some(there)) = (self.host_speed, device.speed) else { return true };
        let all = (0..=demand.parts.layers.len()).fold(0u64, |sum, i| sum.saturating_add(demand.of(i)));
        let bytes = all.min(device.bytes) as f64;
        bytes / there.bytes_a_second + there.seconds_a_token < bytes / here.bytes_a_second
    }
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Layers on devices, the output as one of them: what llama.cpp calls `n_gpu_layers`.
    pub n_on_devices: u32,
    /// How many of them each device has.
    pub split: Vec<u32>,
    /// Bytes of main memory.
    pub host: u64,
    /// Bytes of each device's memory.
    pub devices: Vec<u64>,
}

/// A model that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Lacks {
    /// Bytes of main memory that it needs, with as much of it on devices as fits there.
    pub needs: u64,
    /// Bytes of main memory that there are.
    pub has: u64,
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        write!(f, "it needs {:.1} GB of main memory, and has {:.1} GB", gb(self.needs), gb(self.has))
    }
}

/// Puts as many layers on devices as there is room for, and the others in main memory.
///
/// # Errors
/// If main memory has no room for the others.
pub fn place(demand: &Demand, room: &Room) -> Result<Placement, Lacks> {
    let pays = |device: &DeviceRoom| if room.pays(device, demand) { u32::MAX } else { 0 };
    let mut most: Vec<u32> = room.devices.iter().map(pays).collect();
    let mut placed = fill(demand, room, &most);
    // Slower devices, the fastest first, with no more layers than it takes.
    let mut slow: Vec<usize> = (0..most.len()).filter(|device| most[*device] == 0).collect();
    let speed = |device: &usize| room.devices[*device].speed.map_or(0.0, |speed| speed.bytes_a_second);
    slow.sort_by(|a, b| speed(b).total_cmp(&speed(a)));
    for device in slow {
        while placed.host > room.host {
            most[device] += 1;
            let next = fill(demand, room, &most);
            if next.split[device] < most[device] {
                break;
            }
            placed = next;
        }
    }
    match placed.host > room.host {
        true => Err(Lacks { needs: placed.host, has: room.host }),
        false => Ok(placed),
    }
}

/// Fills the devices, each with at most so many layers, the output as one of them.
fn fill(demand: &Demand, room: &Room, most: &[u32]) -> Placement {
    let mut left = demand.parts.layers.len() + 1;
    let mut devices = vec![0u64; room.devices.len()];
    let mut split = vec![0u32; room.devices.len()];
    for (device, DeviceRoom { bytes, .. }) in room.devices.iter().enumerate().rev() {
        let free = bytes - bytes / Room::RESERVED;
        let mut used = demand.compute;
        while left > 0 && split[device] < most[device] && used.saturating_add(demand.of(left - 1)) <= free {
            used = used.saturating_add(demand.of(left - 1));
            split[device] += 1;
            left -= 1;
        }
        if split[device] > 0 {
            devices[device] = used;
        }
    }
    let shared = room.devices.iter().zip(&devices).filter(|(device, _)| device.is_host);
    let host = shared.fold(demand.on_host(left), |sum, (_, bytes)| sum.saturating_add(*bytes));
    Placement { n_on_devices: split.iter().sum(), split, host, devices }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand(layers: &[u64], input: u64, output: u64, is_tied: bool) -> Demand {
        let parts = Parts { input, layers: layers.to_vec(), output, is_tied };
        Demand { parts, kv: vec![10; layers.len()], compute: 20, program: 5 }
    }

    #[test]
    fn without_devices_everything_is_in_main_memory() {
        let demand = demand(&[100, 100, 100], 50, 60, false);
        let all = 3 * 110 + 50 + 60 + 20 + 5;
        let placed = place(&demand, &Room::new(all, &[])).unwrap();
        assert_eq!(placed, Placement { n_on_devices: 0, split: vec![], host: all, devices: vec![] });
        let lacks = place(&demand, &Room::new(all - 1, &[])).unwrap_err();
        assert_eq!(lacks, Lacks { needs: all, has: all - 1 });
        // An embedding that is the output is there once,
        let tied = self::demand(&[100, 100, 100], 50, 55, true);
        assert_eq!(place(&tied, &Room::new(1000, &[])).unwrap().host, 3 * 110 + 55 + 20 + 5);
        // and twice if the output is on a device.
        let placed = place(&tied, &Room::new(1000, &[100])).unwrap();
        assert_eq!((placed.host, placed.devices, placed.split), (50 + 3 * 110 + 20 + 5, vec![55 + 20], vec![1]));
    }

    #[test]
    fn the_last_layers_are_on_the_last_device() {
        let demand = demand(&[100, 200, 300, 400], 50, 60, false);
        // 60 + 410 + 20 of 520, 5% of which is reserved; 310 + 210 + 20 of 600.
        let placed = place(&demand, &Room::new(200, &[600, 520])).unwrap();
        assert_eq!((placed.n_on_devices, placed.split), (4, vec![2, 2]));
        assert_eq!((placed.devices, placed.host), (vec![540, 490], 50 + 110 + 20 + 5));
        // A device without room for the next layer is passed over.
        let placed = place(&demand, &Room::new(400, &[600, 330, 520])).unwrap();
        assert_eq!((placed.split, placed.devices), (vec![2, 0, 2], vec![540, 0, 490]));
    }

    #[test]
    fn a_slower_device_has_only_what_has_no_room_here() {
        let demand = demand(&[100, 100, 100, 100], 50, 60, false);
        let speed = |bytes_a_second, seconds_a_token| Some(DeviceSpeed { bytes_a_second, seconds_a_token });
        let device = |bytes, speed| DeviceRoom { bytes, is_host: false, speed };
        let room = |host, speeds: [Option<DeviceSpeed>; 2]| Room {
            host,
            host_speed: speed(100.0, 0.0),
            devices: speeds.into_iter().map(|speed| device(1000, speed)).collect(),
        };
        let split = |room: &Room| place(&demand, room).map(|placed| placed.split);
        // 50 + 60 + 4 x 110 + 25 = 575.
        assert_eq!(split(&room(575, [speed(50.0, 0.0), speed(99.0, 0.0)])), Ok(vec![0, 0]));
        assert_eq!(split(&room(574, [speed(50.0, 0.0), speed(99.0, 0.0)])), Ok(vec![0, 1]));
        assert_eq!(split(&room(515, [speed(99.0, 0.0), speed(50.0, 0.0)])), Ok(vec![1, 0]));
        assert_eq!(split(&room(514, [speed(99.0, 0.0), speed(50.0, 0.0)])), Ok(vec![2, 0]));
        // A faster one has all that has room there, but not if the way to it takes longer than it gains.
        assert_eq!(split(&room(575, [speed(200.0, 1.0), speed(50.0, 0.0)])), Ok(vec![5, 0]));
        assert_eq!(split(&room(575, [speed(200.0, 3.0), speed(50.0, 0.0)])), Ok(vec![0, 0]));
        // Both, if one has too little.
        let mut small = room(200, [speed(99.0, 0.0), speed(50.0, 0.0)]);
        small.devices[0].bytes = 300;
        assert_eq!(split(&small), Ok(vec![2, 2]));
        small.devices[1].bytes = 100;
        assert_eq!(split(&small).map_err(|lacks| lacks.has), Err(200));
    }

    #[test]
    fn what_a_gpu_shares_with_the_processor_is_there_once() {
        let demand = demand(&[100, 100, 100], 50, 60, false);
        let shared = DeviceRoom { bytes: 1000, is_host: true, speed: None };
        let room = |host| Room { host, host_speed: None, devices: vec![shared] };
        let all = 3 * 110 + 50 + 60 + 20 + 20 + 5;
        let placed = place(&demand, &room(all)).unwrap();
        assert_eq!((placed.host, placed.split), (all, vec![4]));
        assert_eq!(place(&demand, &room(all - 1)), Err(Lacks { needs: all, has: all - 1 }));
    }

    proptest! {
        #[test]
        fn nothing_is_larger_than_its_room_and_no_room_is_left_while_layers_wait(
            layers in prop::collection::vec(1..500u64, 1..80),
            input in 0..1000u64,
            output in 0..1000u64,
            is_tied: bool,
            host in 0..20_000u64,
            devices in prop::collection::vec(0..8000u64, 0..4),
        ) {
            let demand = demand(&layers, input, input * u64::from(is_tied) + output, is_tied);
            let room = Room::new(host, &devices);
            let Ok(placed) = place(&demand, &room) else {
                // With no less than everything in main memory, it fits.
                prop_assert!(room.host < demand.on_host(layers.len() + 1));
                return Ok(());
            };
            prop_assert!(placed.host <= room.host);
            let on_host = layers.len() + 1 - placed.n_on_devices as usize;
            prop_assert_eq!(placed.host, demand.on_host(on_host));
            let mut next = layers.len() + 1;
            for (device, n) in placed.split.iter().enumerate().rev() {
                let first = next - *n as usize;
                let bytes: u64 = (first..next).map(|i| demand.of(i)).sum();
                prop_assert_eq!(placed.devices[device], if *n > 0 { bytes + demand.compute } else { 0 });
                prop_assert!(placed.devices[device] <= devices[device]);
                // What is left has no room for the next layer, but for what is reserved.
                if first > 0 {
                    let used = placed.devices[device].max(demand.compute);
                    prop_assert!(used + demand.of(first - 1) > devices[device] - devices[device] / 20);
                }
                next = first;
            }
            prop_assert_eq!(next, on_host);
        }
    }
}
