//! `nibble worker`: this machine's memory and processor for models that run on another one.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::convert::{parse_room, parse_size};
use super::interrupt;
use crate::base::{folders, units};
use crate::remote::{self, Address, PORT, Store, Worker, WorkerOptions};

/// Hold layers of a model that runs on another machine, which reaches this one by '--worker ADDRESS'
///
/// Both need the same version of nibble. Nothing is encrypted, and whoever reaches the address can use this machine's memory:
/// it has to be in a network that you trust. Through any other, use a tunnel: on the machine with the model,
/// 'ssh -L 7117:localhost:7117 THIS_MACHINE', and there '--worker localhost'.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen. Loopback and private addresses only
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value_t = Address { host: "127.0.0.1".into(), port: PORT })]
    listen: Address,

    /// Listen on an address that is on no private network, and work for everybody who reaches it
    #[arg(long)]
    public: bool,

    /// Threads [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,

    /// The most of main memory that models may take, such as 12G [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// The most that weights take on the disk, which are kept there so that they are sent once; 0 for none
    #[arg(long, value_name = "SIZE", default_value = "25G", value_parser = parse_room)]
    store_size: u64,

    /// Keep weights in this folder [default: one in the user's folder for caches]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let cancel = interrupt::listen()?;
    let at = address(&args)?;
    let store = open_store(&args);
    let (threads, memory) = (args.threads, args.memory);
    let options = WorkerOptions {
        program: std::env::current_exe().context("cannot find this program")?,
        arguments: Box::new(move |port, folder| arguments(port, folder, threads, memory)),
        store,
        public: args.public,
        tell: Box::new(|event| eprintln!("nibble: {event}")),
    };
    let worker = Worker::bind(at, options).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => format!("; '--listen {}:PORT' takes another port", args.listen.host),
            io::ErrorKind::AddrNotAvailable => "; give one of this machine's own addresses".to_string(),
            _ => String::new(),
        };
        anyhow::anyhow!("cannot listen at {at}: {error}{advice}")
    })?;
    let at = worker.address()?;
    eprintln!("nibble: listens at {at}; on the machine with the model: nibble run MODEL --worker {at}");
    if !at.ip().is_loopback() {
        eprintln!(
            "nibble: nothing is encrypted, and whoever reaches this address can use this machine's memory; 'nibble worker --help' \
             says how to use a tunnel"
        );
    }
    worker.run(&cancel)?;
    Ok(())
}

/// Returns where to listen.
fn address(args: &Args) -> anyhow::Result<SocketAddr> {
    let known =
        args.listen.resolve().with_context(|| format!("'{}' is no address of this machine", args.listen.host))?;
    let at = *known.first().with_context(|| format!("'{}' has no address", args.listen.host))?;
    if !args.public && !remote::is_private(at.ip()) {
        anyhow::bail!(
            "{} is on no private network, so that anybody could use this machine's memory, and nothing would be encrypted; give \
             an address of a private network, or use a tunnel ('nibble worker --help' says how); '--public' listens all the same",
            at.ip()
        );
    }
    Ok(at)
}

/// Opens the folder of weights. Without it, they are sent each time.
fn open_store(args: &Args) -> Option<Store> {
    if args.store_size == 0 {
        return None;
    }
    let folder = args.store.clone().or_else(|| Some(folders::cache()?.join("worker")))?;
    let why = match Store::open(&folder, args.store_size) {
        Ok(Some(store)) => {
            let most = units::bytes(args.store_size);
            eprintln!("nibble: keeps up to {most} of weights in {}", folder.display());
            return Some(store);
        }
        Ok(None) => "another worker uses it".to_string(),
        Err(error) => error.to_string(),
    };
    eprintln!("nibble: keeps no weights in {}: {why}", folder.display());
    None
}

/// Returns how this program is started as an engine.
fn arguments(port: u16, folder: Option<&Path>, threads: Option<u32>, memory: Option<u64>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["worker-engine".into(), "--port".into(), port.to_string().into()];
    let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
    if let Some(threads) = threads {
        add("--threads", threads.to_string().into());
    }
    if let Some(memory) = memory {
        add("--memory", memory.to_string().into());
    }
    if let Some(folder) = folder {
        add("--store", folder.into());
    }
    arguments
}

/// Ends this process when its input ends: the one that started it is gone.
pub(super) fn end_with_input() -> io::Result<()> {
    let wait = || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    };
    std::thread::Builder::new().name("input".into()).spawn(wait).map(|_| ())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn of(line: &str) -> Args {
        Line::try_parse_from(std::iter::once("worker").chain(line.split_whitespace())).unwrap().args
    }

    #[test]
    fn it_listens_where_strangers_are_not() {
        let listens = |line: &str| address(&of(line)).map(|at| at.to_string()).map_err(|error| error.to_string());
        assert_eq!(listens(""), Ok("127.0.0.1:7117".into()));
        assert_eq!(listens("--listen 192.168.3.4:80"), Ok("192.168.3.4:80".into()));
        for public in ["0.0.0.0", "8.8.8.8:9", "[::]:7117"] {
            let refused = listens(&format!("--listen {public}")).unwrap_err();
            assert!(refused.contains("no private network") && refused.contains("tunnel"), "{refused}");
            assert!(listens(&format!("--public --listen {public}")).is_ok());
        }
    }

    #[test]
    fn an_engine_is_told_what_the_worker_was_told() {
        let words = |threads, memory, folder| {
            let words = arguments(5, folder, threads, memory);
            words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words(None, None, None), "worker-engine --port 5");
        let all = words(Some(2), Some(9), Some(Path::new("/a b")));
        assert_eq!(all, "worker-engine --port 5 --threads 2 --memory 9 --store /a b");
    }
}
