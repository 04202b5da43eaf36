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

use std::fmt;

use super::{Outline, Parts, heads};
use crate::llama::KvTypes;

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

/// Memory that is there for a model, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Main memory, without what other programs need.
    pub host: u64,
    /// Each GPU with memory of its own, in llama.cpp's order.
    pub devices: Vec<u64>,
}

impl Room {
    /// One of so many parts of a device's memory is left to others: its driver, the screen.
    const RESERVED: u64 = 20;
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
    let mut left = demand.parts.layers.len() + 1;
    let mut devices = vec![0u64; room.devices.len()];
    let mut split = vec![0u32; room.devices.len()];
    for (device, bytes) in room.devices.iter().enumerate().rev() {
        let most = bytes - bytes / Room::RESERVED;
        let mut used = demand.compute;
        while left > 0 && used.saturating_add(demand.of(left - 1)) <= most {
            used = used.saturating_add(demand.of(left - 1));
            split[device] += 1;
            left -= 1;
        }
        if split[device] > 0 {
            devices[device] = used;
        }
    }
    let host = demand.on_host(left);
    if host > room.host {
        return Err(Lacks { needs: host, has: room.host });
    }
    Ok(Placement { n_on_devices: split.iter().sum(), split, host, devices })
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
        let placed = place(&demand, &Room { host: all, devices: vec![] }).unwrap();
        assert_eq!(placed, Placement { n_on_devices: 0, split: vec![], host: all, devices: vec![] });
        let lacks = place(&demand, &Room { host: all - 1, devices: vec![] }).unwrap_err();
        assert_eq!(lacks, Lacks { needs: all, has: all - 1 });
        // An embedding that is the output is there once,
        let tied = self::demand(&[100, 100, 100], 50, 55, true);
        assert_eq!(place(&tied, &Room { host: 1000, devices: vec![] }).unwrap().host, 3 * 110 + 55 + 20 + 5);
        // and twice if the output is on a device.
        let placed = place(&tied, &Room { host: 1000, devices: vec![100] }).unwrap();
        assert_eq!((placed.host, placed.devices, placed.split), (50 + 3 * 110 + 20 + 5, vec![55 + 20], vec![1]));
    }

    #[test]
    fn the_last_layers_are_on_the_last_device() {
        let demand = demand(&[100, 200, 300, 400], 50, 60, false);
        // 60 + 410 + 20 of 520, 5% of which is reserved; 310 + 210 + 20 of 600.
        let placed = place(&demand, &Room { host: 200, devices: vec![600, 520] }).unwrap();
        assert_eq!((placed.n_on_devices, placed.split), (4, vec![2, 2]));
        assert_eq!((placed.devices, placed.host), (vec![540, 490], 50 + 110 + 20 + 5));
        // A device without room for the next layer is passed over.
        let placed = place(&demand, &Room { host: 400, devices: vec![600, 330, 520] }).unwrap();
        assert_eq!((placed.split, placed.devices), (vec![2, 0, 2], vec![540, 0, 490]));
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
            let room = Room { host, devices };
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
                prop_assert!(placed.devices[device] <= room.devices[device]);
                // What is left has no room for the next layer, but for what is reserved.
                if first > 0 {
                    let used = placed.devices[device].max(demand.compute);
                    prop_assert!(used + demand.of(first - 1) > room.devices[device] - room.devices[device] / 20);
                }
                next = first;
            }
            prop_assert_eq!(next, on_host);
        }
    }
}
