//! `nibble plan`: what fits on a machine, and how fast it will be, before anything is converted or loaded.

mod candidate;
mod measure;
mod print;
mod row;

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::bail;

use self::candidate::Candidate;
use self::measure::Meter;
use self::print::Planned;
use self::row::{Fit, Row, Spot};
use super::convert::parse_size;
use super::interrupt::{self, Interrupted};
use super::{out, progress};
use crate::base::display::printable;
use crate::base::units;
use crate::engine::SessionOptions;
use crate::llama::{self, DeviceSpeed, KvType, KvTypes};
use crate::placement::{self, DeviceRoom, Machine, Room};
use crate::remote::{self, Address};

/// Find out what fits on a machine, and how fast it will be
///
/// Nothing is converted, downloaded or loaded. Memory is what llama.cpp itself reserves. Speed is measured: the model's layers
/// are run with zeros as weights, as many of them as it takes, which is remembered for the next time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble plan Yi-34B-Chat-Q4_K_M.gguf                    this file, on this machine
  nibble plan Yi-34B                                     which recipe to get or to make
  nibble plan my-finetune/ -q Q4_K_M,Q5_K_M --ctx 4096,16384
  nibble plan Yi-34B --memory 32G --gpu 8G --bandwidth 60G     on a machine that is elsewhere")]
pub struct Args {
    /// The model: a GGUF file, a Hugging Face folder, or the name of one of Yi's: Yi-6B, Yi-9B, Yi-34B
    model: PathBuf,

    /// Recipes to choose from, for a model that is not quantized yet: names, or TOML files
    #[arg(short, long, value_name = "RECIPE,...", value_delimiter = ',')]
    quantize: Vec<String>,

    /// Sizes of the context in tokens [default: up to 4096 and, of one file, up to 16384 and all that it was trained on]
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..1 << 30))]
    ctx: Vec<u32>,

    /// Types of the KV cache
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',', default_values_t = [KvTypes::default(), KvType::Q8_0.into()])]
    kv_type: Vec<KvTypes>,

    /// Threads to compute with [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,

    /// Count on another machine's memory, where 'nibble worker' runs; can be given several times
    #[arg(long = "worker", value_name = "ADDRESS[:PORT]")]
    workers: Vec<Address>,

    /// Do not measure speed
    #[arg(long, help_heading = "Speed")]
    no_measure: bool,

    /// Plan for a machine with so much memory
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Another machine")]
    memory: Option<u64>,

    /// Plan for a machine with a GPU of so much memory; once for each
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Another machine")]
    gpu: Vec<u64>,

    /// Plan for a machine that reads its memory with so many bytes a second, which limits how fast it writes
    ///
    /// 'nibble bench' on that machine measures it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Another machine")]
    bandwidth: Option<u64>,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,

    /// Load the file without its weights, and print the bytes that the program takes then. A plan starts this in a process of
    /// its own: the planning one has taken more
    #[arg(long, hide = true)]
    program_bytes: bool,
}

/// The machine to plan for.
struct Target {
    /// Its memory.
    machine: Machine,
    /// Memory of each GPU and each worker's device, and its name if it is here.
    gpus: Vec<(DeviceRoom, Option<String>)>,
    /// How fast the processor is, where a worker's speed has to be compared with it.
    speed: Option<DeviceSpeed>,
    /// Those that it counts on.
    workers: Vec<Address>,
    /// Whether it is this one.
    is_here: bool,
    /// Bytes of memory that it reads in a second, if that was given.
    bandwidth: Option<u64>,
    threads: u32,
}

impl Target {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let threads = SessionOptions { threads: args.threads, ..SessionOptions::default() }.n_threads();
        let is_here = args.memory.is_none() && args.gpu.is_empty() && args.bandwidth.is_none();
        let machine = match args.memory {
            Some(total) => Machine { total, available: 0 },
            None => match Machine::this() {
                Some(machine) => machine,
                None => bail!("the system does not say how much memory it has; pass --memory"),
            },
        };
        if !args.workers.is_empty() && !is_here {
            bail!("workers are reached from this machine: leave out --memory, --gpu and --bandwidth");
        }
        remote::connect(&args.workers)?;
        let here = |device: llama::Device| (DeviceRoom::from(&device), Some(device.description));
        let given = |bytes: &u64| (DeviceRoom { bytes: *bytes, ..DeviceRoom::default() }, None);
        let gpus = match (args.gpu.is_empty(), args.memory) {
            (true, None) => llama::layer_devices()?.into_iter().map(here).collect(),
            _ => args.gpu.iter().map(given).collect(),
        };
        let speed = if args.workers.is_empty() { None } else { placement::cpu_speed(threads)? };
        let workers = args.workers.clone();
        Ok(Self { machine, gpus, speed, workers, is_here, bandwidth: args.bandwidth, threads })
    }

    fn room(&self, host: u64) -> Room {
        Room { host, host_speed: self.speed, devices: self.gpus.iter().map(|(room, _)| *room).collect() }
    }

    /// What is there now, which says nothing of a machine that is elsewhere.
    fn now(&self) -> Option<Room> {
        let is_known = self.machine.available > 0;
        is_known.then(|| self.room(self.machine.available))
    }

    /// What is there when nothing else runs.
    fn at_best(&self) -> Room {
        self.room(self.machine.at_best())
    }
}

/// Smaller contexts, which are tried if none of the others fits.
const SMALLER: [u32; 3] = [2048, 1024, 512];

pub fn run(args: Args) -> anyhow::Result<()> {
    llama::set_verbose(args.verbose);
    let cancel = interrupt::listen()?;
    if args.program_bytes {
        return measure::print_program_bytes(&args.model);
    }
    let bar = progress::Bench::new(args.json || args.verbose);
    let target = Target::new(&args)?;
    let candidates = candidate::find(&args.model, &args.quantize)?;
    let meter = Meter::new(&target, cancel.clone());
    let mut rows = Vec::new();
    let result = (|| {
        for (i, candidate) in candidates.iter().enumerate() {
            bar.say(format!("{}: asking llama.cpp for its memory", candidate.name));
            rows.extend(rows_of(&args, i, candidate, candidates.len() == 1, &target, &meter)?);
        }
        if args.no_measure || !target.is_here || !target.gpus.is_empty() {
            return Ok(());
        }
        for (i, candidate) in candidates.iter().enumerate() {
            let fit = |row: &&mut Row| row.candidate == i && row.fit.placement().is_some();
            let mut rows: Vec<&mut Row> = rows.iter_mut().filter(fit).collect();
            if !rows.is_empty() {
                bar.say(format!("{}: running a part of it to measure its speed", candidate.name));
                if let Err(error) = meter.speeds(candidate, &mut rows) {
                    if cancel.load(Ordering::Relaxed) {
                        return Err(error);
                    }
                    let name = printable(&candidate.name);
                    bar.aside(|| {
                        eprintln!("nibble: the speed of {name} could not be measured: {}", super::message(&error))
                    });
                }
            }
        }
        anyhow::Ok(())
    })();
    bar.clear();
    match result {
        Err(_) if cancel.load(Ordering::Relaxed) => {
            return Err(Interrupted("stopped before everything was planned".to_string()).into());
        }
        result => result?,
    }
    let best = row::best(&candidates, &rows);
    let planned = Planned { model: &args.model, target: &target, candidates: &candidates, rows: &rows, best };
    out::to_stdout(|out| match args.json {
        true => print::json(out, &planned),
        false => print::table(out, &planned),
    })
}

/// Returns the rows of a candidate, without speeds.
fn rows_of(
    args: &Args,
    i: usize,
    candidate: &Candidate,
    is_only: bool,
    target: &Target,
    meter: &Meter,
) -> anyhow::Result<Vec<Row>> {
    let simulated = meter.simulate(candidate)?;
    let mut rows = Vec::new();
    let add = |rows: &mut Vec<Row>, n_ctx: u32| -> anyhow::Result<bool> {
        let mut some = false;
        for &kv_types in &args.kv_type {
            let Some(demand) = simulated.demand(candidate, n_ctx, kv_types)? else { continue };
            let fit = Fit::new(&demand, target.now().as_ref(), &target.at_best());
            some |= fit.placement().is_some();
            let most = target
                .bandwidth
                .zip(fit.placement())
                .map(|(bandwidth, placed)| crate::placement::most_writing(&demand, placed, 0.5, bandwidth as f64));
            let spot = Spot { n_ctx, kv_types };
            rows.push(Row { candidate: i, spot, demand, fit, reading: None, writing: None, most });
        }
        Ok(some)
    };
    let mut some = false;
    for n_ctx in contexts(&args.ctx, candidate.n_ctx_train(), is_only) {
        some |= add(&mut rows, n_ctx)?;
    }
    if args.ctx.is_empty() && is_only && !some {
        let least = rows.iter().map(|row| row.spot.n_ctx).min().unwrap_or(u32::MAX);
        for n_ctx in SMALLER.into_iter().filter(|n| *n < least) {
            if add(&mut rows, n_ctx)? {
                break;
            }
        }
    }
    if rows.is_empty() {
        bail!("the heads of {} cannot have a KV cache of any of these types; leave out --kv-type", candidate.name);
    }
    Ok(rows)
}

/// Returns the contexts to plan for, without those that were not asked for and the model was not trained on.
fn contexts(given: &[u32], trained: Option<u32>, is_only: bool) -> Vec<u32> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let usual = SessionOptions::DEFAULT_N_CTX;
    let Some(trained) = trained else { return vec![usual] };
    let mut all = vec![usual.min(trained)];
    if is_only {
        all.extend([usual * 4, trained].map(|n| n.min(trained)));
    }
    all.dedup();
    all
}

/// Formats bytes as gigabytes, or smaller models' as they are.
fn size(bytes: u64) -> String {
    if bytes >= 10_000_000_000 { format!("{:.1} GB", bytes as f64 / 1e9) } else { units::bytes(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_those_the_model_was_trained_on() {
        assert_eq!(contexts(&[], Some(4096), true), [4096]);
        assert_eq!(contexts(&[], Some(200_000), true), [4096, 16_384, 200_000]);
        assert_eq!(contexts(&[], Some(8192), true), [4096, 8192]);
        assert_eq!(contexts(&[], Some(512), true), [512]);
        assert_eq!(contexts(&[], Some(200_000), false), [4096]);
        assert_eq!(contexts(&[], None, true), [4096]);
        assert_eq!(contexts(&[9000, 100], Some(512), true), [9000, 100]);
    }
}
