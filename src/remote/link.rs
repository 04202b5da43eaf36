//! This end: connects to workers, and ends the process with a sentence when one goes away.
//!
//! ```text
//! ggml ─ connects ─► listener of this machine ─ for each: a connection to the worker, and a relay
//! control: a line every second each way; silence or an end ─► the worker is lost, and the relays are closed
//! ```
//!
//! ggml holds a connection while it has something in the worker's memory, and makes a new one later. When one breaks, an
//! assertion of ggml's ends this process; [`lost`] tells then which worker it was.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::relay::{First, relay};
use super::wire::{self, BEAT, Hello, Notice, SILENCE, Welcome};
use super::{Address, is_private};
use crate::llama::{self, Device, DeviceKind, DeviceSpeed};

/// Why a worker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers.
    #[error("the worker at {address} cannot be reached: {source}")]
    Unreachable {
        /// The worker.
        address: Address,
        /// What the system says.
        source: io::Error,
    },
    /// It is not on a private network.
    #[error("{address} is not on a private network, and what is sent to workers is not encrypted")]
    Public {
        /// The worker.
        address: Address,
    },
    /// Something else answers.
    #[error("what answers at {address} is no worker of nibble's: {source}")]
    Stranger {
        /// The address.
        address: Address,
        /// What is wrong.
        source: io::Error,
    },
    /// It refuses.
    #[error("the worker at {address} refuses: {reason}")]
    Refused {
        /// The worker.
        address: Address,
        /// Why.
        reason: String,
    },
    /// llama.cpp cannot use it.
    #[error(transparent)]
    Llama(#[from] llama::Error),
}

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starting an engine takes longer, where it starts a GPU.
const STARTING: Duration = Duration::from_secs(30);

/// Why the first worker that went away did.
static LOST: Mutex<Option<String>> = Mutex::new(None);

/// Workers of this process.
static LINKED: Mutex<Vec<Address>> = Mutex::new(Vec::new());

/// Returns which worker went away and why, as a sentence; `None` if all are there. Waits for a moment if there are workers: the
/// connection that breaks first may be one that nobody watches.
pub fn lost() -> Option<String> {
    let begun = Instant::now();
    loop {
        let why = is_lost();
        let is_linked = !LINKED.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if why.is_some() || !is_linked || begun.elapsed() > Duration::from_secs(2) {
            return why;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_lost() -> Option<String> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn lose(address: &Address, why: &str) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    lost.get_or_insert_with(|| format!("the worker at {address} went away: {why}"));
}

/// Connects to workers whose devices then hold layers of all models that are loaded. Those that are connected already are left.
///
/// # Errors
/// If one cannot be reached, is on a public network, refuses, or is of another version.
pub fn connect(workers: &[Address]) -> Result<(), Error> {
    for address in workers {
        let mut linked = LINKED.lock().unwrap_or_else(PoisonError::into_inner);
        if !linked.contains(address) {
            linked.push(address.clone());
            drop(linked);
            if let Err(error) = link(address) {
                LINKED.lock().unwrap_or_else(PoisonError::into_inner).retain(|linked| linked != address);
                return Err(error);
            }
        }
    }
    Ok(())
}

fn link(address: &Address) -> Result<(), Error> {
    let unreachable = |source| Error::Unreachable { address: address.clone(), source };
    let (control, at) = dial(address)?;
    let hello = Hello { session: session(), opens: true, engine: wire::engine() };
    let (offers, seconds_a_token) = greet(&control, &hello, address, STARTING)?;
    let offered: Vec<Device> = offers.into_iter().map(|offer| describe(offer, address, seconds_a_token)).collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(unreachable)?;
    let here = listener.local_addr().map_err(unreachable)?;
    let relayed = Arc::<Relayed>::default();
    spawn("worker", {
        let (address, relayed) = (address.clone(), relayed.clone());
        move || {
            let why = watch(&control);
            lose(&address, &why);
            relayed.close();
        }
    })
    .map_err(unreachable)?;
    spawn("worker", {
        let address = address.clone();
        move || accept(&listener, at, &Hello { opens: false, ..hello }, &address, &relayed)
    })
    .map_err(unreachable)?;
    llama::add_remote(here, &offered)?;
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(work).map(|_| ())
}

/// Returns a number that nobody can guess.
fn session() -> String {
    let seed = (std::process::id(), Instant::now(), std::thread::current().id());
    // The standard library's hashers are seeded by the system.
    let hash = |i: u8| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), (i, format!("{seed:?}")));
    format!("{:016x}{:016x}", hash(0), hash(1))
}

/// Connects to the first of the worker's private addresses that answers.
fn dial(address: &Address) -> Result<(TcpStream, SocketAddr), Error> {
    let unreachable = |source| Error::Unreachable { address: address.clone(), source };
    let known = address.resolve().map_err(unreachable)?;
    if !known.is_empty() && !known.iter().any(|at| is_private(at.ip())) {
        return Err(Error::Public { address: address.clone() });
    }
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for at in known.into_iter().filter(|at| is_private(at.ip())) {
        match TcpStream::connect_timeout(&at, PATIENCE) {
            Ok(stream) => return Ok((stream, at)),
            Err(error) => failed = error,
        }
    }
    Err(unreachable(failed))
}

/// Greets a worker. Returns its devices, and the seconds that a message and its answer take at least.
fn greet(
    stream: &TcpStream,
    hello: &Hello,
    address: &Address,
    patience: Duration,
) -> Result<(Vec<wire::Offer>, f64), Error> {
    let stranger = |source: io::Error| {
        let is_late = matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let source = if is_late { io::Error::other("it does not answer") } else { source };
        Error::Stranger { address: address.clone(), source }
    };
    let exchange = || {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(SILENCE))?;
        wire::send(stream, hello)?;
        wire::receive::<Welcome>(stream)
    };
    match exchange().map_err(stranger)? {
        Welcome::Refused(reason) => Err(Error::Refused { address: address.clone(), reason }),
        Welcome::Devices(_) if !hello.opens => Ok((Vec::new(), 0.0)),
        Welcome::Devices(offers) => {
            let mut least = f64::INFINITY;
            for _ in 0..ECHOES {
                let before = Instant::now();
                let echo = || wire::beat(stream).and_then(|()| wire::line(stream));
                echo().map_err(stranger)?;
                least = least.min(before.elapsed().as_secs_f64());
            }
            Ok((offers, least))
        }
    }
}

/// Messages that the way to a worker is measured by.
pub(super) const ECHOES: usize = 5;

fn describe(offer: wire::Offer, address: &Address, seconds_a_token: f64) -> Device {
    Device {
        name: String::new(),
        description: format!("{} at {address}", offer.name),
        kind: DeviceKind::Remote,
        total_bytes: offer.total_bytes,
        free_bytes: offer.free_bytes,
        speed: offer.speed.map(|speed| DeviceSpeed { seconds_a_token, ..speed }),
    }
}

/// Says and hears that both are there, and returns why they are not any more.
fn watch(control: &TcpStream) -> String {
    let _ = control.set_read_timeout(Some(SILENCE));
    let speaking = control.try_clone().map(|control| {
        spawn("worker", move || {
            while wire::beat(&control).is_ok() {
                thread::sleep(BEAT);
            }
        })
    });
    if !matches!(speaking, Ok(Ok(()))) {
        return "this system has no room for another thread".to_string();
    }
    let why = loop {
        match wire::line(control) {
            Ok(line) if line.is_empty() => {}
            Ok(line) => match serde_json::from_slice(&line) {
                Ok(Notice::Ended(why)) => break why,
                Err(_) => break "it says what no worker says".to_string(),
            },
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                break format!("it has been silent for {} seconds", SILENCE.as_secs());
            }
            Err(_) => break "its program has ended, or the connection to it".to_string(),
        }
    };
    let _ = control.shutdown(Shutdown::Both);
    why
}

/// Connections of ggml's that are being relayed.
#[derive(Default)]
struct Relayed {
    open: Mutex<Vec<(u64, TcpStream)>>,
    next: AtomicU64,
}

impl Relayed {
    /// Adds one. Returns its number.
    fn add(&self, near: &TcpStream) -> io::Result<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push((number, near.try_clone()?));
        Ok(number)
    }

    fn remove(&self, number: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != number);
    }

    fn close(&self) {
        for (_, near) in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be closed already.
            let _ = near.shutdown(Shutdown::Both);
        }
    }
}

/// Relays each connection of ggml's.
fn accept(listener: &TcpListener, at: SocketAddr, hello: &Hello, address: &Address, relayed: &Arc<Relayed>) {
    for near in listener.incoming().flatten() {
        let (hello, address, relayed) = (hello.clone(), address.clone(), relayed.clone());
        let work = move || {
            if is_lost().is_some() {
                return;
            }
            let far = match reach(at, &hello, &address) {
                Ok(far) => far,
                Err(error) => return lose(&address, &error.to_string()),
            };
            let Ok(number) = relayed.add(&near) else {
                return lose(&address, "this system has no room for a connection");
            };
            let ended = relay(&near, &far);
            relayed.remove(number);
            if !matches!(ended, Ok(First::Near)) {
                // Why is said on the connection beside this one, if anybody can say it.
                thread::sleep(Duration::from_millis(300));
                lose(&address, "it closed the connection");
            }
        };
        // Without a thread ggml finds its connection closed.
        let _ = spawn("relay", work);
    }
}

/// Connects to a worker for ggml's bytes.
fn reach(at: SocketAddr, hello: &Hello, address: &Address) -> Result<TcpStream, Error> {
    let unreachable = |source| Error::Unreachable { address: address.clone(), source };
    let far = TcpStream::connect_timeout(&at, PATIENCE).map_err(unreachable)?;
    greet(&far, hello, address, PATIENCE)?;
    // Computing takes as long as it takes.
    far.set_read_timeout(None).and_then(|()| far.set_write_timeout(None)).map_err(unreachable)?;
    Ok(far)
}
