//! `nibble worker-engine`, which `nibble worker` starts: ggml's RPC for one client, on a port of this machine.
//!
//! The help does not list it: it says on its standard output what it offers, and ends with its standard input.

use std::io::Write;
use std::path::PathBuf;

use super::worker;
use crate::llama::{self, Device, DeviceKind};
use crate::placement::{self, Machine};
use crate::remote::Offer;

/// Compute for another machine, whose connection another process of nibble relays
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// The port to listen on
    #[arg(long)]
    port: u16,

    /// Threads
    #[arg(long)]
    threads: Option<u32>,

    /// The most bytes of main memory
    #[arg(long)]
    memory: Option<u64>,

    /// The folder of weights
    #[arg(long)]
    store: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    worker::end_with_input()?;
    let threads = args.threads.unwrap_or_else(placement::n_cores);
    let offers: Vec<Offer> = llama::offered_devices()?
        .into_iter()
        .map(|device| offer(device, threads, args.memory))
        .collect::<Result<_, _>>()?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &offers)?;
    out.write_all(b"\n")?;
    out.flush()?;
    drop(out);
    match llama::serve_remote(args.port, threads, args.store.as_deref())? {}
}

/// Describes a device. Of main memory, it is what is free, of which `memory` is the most.
fn offer(device: Device, threads: u32, memory: Option<u64>) -> Result<Offer, llama::Error> {
    let Device { description: name, kind, total_bytes, free_bytes, .. } = device;
    if kind != DeviceKind::Cpu {
        return Ok(Offer { name, total_bytes, free_bytes, speed: None });
    }
    let machine = Machine::this().unwrap_or(Machine { total: total_bytes, available: free_bytes });
    let most = memory.unwrap_or(u64::MAX);
    let speed = placement::cpu_speed(threads)?;
    Ok(Offer { name, total_bytes: machine.total.min(most), free_bytes: machine.available.min(most), speed })
}
