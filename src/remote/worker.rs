//! The other end: listens for clients, and has an engine for each of them.
//!
//! The engine is a process that serves ggml's RPC on a port of this machine. It ends with the session, so that its memory is
//! free again, and a message that ends it costs no other client.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::relay::relay;
use super::wire::{self, Hello, Notice, Offer, SILENCE, Welcome};
use super::{Store, is_private};
use crate::base::disk;

/// Returns the arguments of an engine that serves a port of this machine, and has a folder of weights.
pub type Arguments = Box<dyn Fn(u16, Option<&Path>) -> Vec<OsString> + Send + Sync>;

/// How to work for others.
pub struct WorkerOptions {
    /// The program that is an engine.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Arguments,
    /// Weights that are kept.
    pub store: Option<Store>,
    /// Whether to work for machines that are on no private network.
    pub public: bool,
    /// Is told what happens.
    pub tell: Box<dyn Fn(Event) + Send + Sync>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client has begun a session.
    Begun(IpAddr),
    /// A session has ended, by the client or as said.
    Ended(IpAddr, Option<String>),
    /// A client was refused.
    Refused(IpAddr, String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun(ip) => write!(f, "works for {ip}"),
            Self::Ended(ip, None) => write!(f, "{ip} has ended its session"),
            Self::Ended(ip, Some(why)) => write!(f, "the session of {ip} has ended: {why}"),
            Self::Refused(ip, why) => write!(f, "refused {ip}: {why}"),
        }
    }
}

/// Sessions at the same time. Each holds weights, so that memory ends before.
const MOST_SESSIONS: usize = 8;

/// Connections at the same time, those that have said nothing yet included.
const MOST_CONNECTIONS: usize = 256;

/// How long an engine may take to start.
const STARTING: Duration = Duration::from_secs(25);

/// A worker that listens.
pub struct Worker {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    options: WorkerOptions,
    sessions: Mutex<Vec<Session>>,
    connections: Mutex<usize>,
    done: AtomicBool,
}

#[derive(Clone)]
struct Session {
    name: String,
    port: u16,
}

impl Worker {
    /// Listens at an address.
    ///
    /// # Errors
    /// If it is taken, or not of this machine.
    pub fn bind(at: SocketAddr, options: WorkerOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        let (sessions, connections) = (Mutex::default(), Mutex::default());
        Ok(Self { listener, shared: Arc::new(Shared { options, sessions, connections, done: AtomicBool::new(false) }) })
    }

    /// Returns where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Works until `cancel` is set. Sessions end then.
    ///
    /// # Errors
    /// If the system refuses to listen.
    pub fn run(&self, cancel: &AtomicBool) -> io::Result<()> {
        self.listener.set_nonblocking(true)?;
        while !cancel.load(Ordering::Relaxed) {
            match self.listener.accept() {
                Ok((stream, from)) => self.take(stream, from.ip()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
                // Of one connection, or too many files: the next one may do better.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
        self.shared.done.store(true, Ordering::Relaxed);
        // Each session sees it and ends its engine.
        let begun = Instant::now();
        while !self.shared.sessions().is_empty() && begun.elapsed() < SILENCE {
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn take(&self, stream: TcpStream, from: IpAddr) {
        let shared = self.shared.clone();
        {
            let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
            if *connections >= MOST_CONNECTIONS {
                return;
            }
            *connections += 1;
        }
        let work = {
            let shared = shared.clone();
            move || {
                // What fails here is a connection, whose other end knows.
                let _ = shared.serve(&stream, from);
                *shared.connections.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            }
        };
        if thread::Builder::new().name("worker".into()).spawn(work).is_err() {
            *shared.connections.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        }
    }
}

impl Shared {
    fn sessions(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream, from: IpAddr) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let hello: Hello = wire::receive(stream)?;
        let refuse = |why: String| {
            (self.options.tell)(Event::Refused(from, why.clone()));
            wire::send(stream, &Welcome::Refused(why))
        };
        if !self.options.public && !is_private(from) {
            return refuse(format!("{from} is on no private network"));
        }
        if hello.engine != wire::engine() {
            return refuse(format!(
                "it is {}, and the other is {}; both have to be the same",
                wire::engine(),
                hello.engine
            ));
        }
        if !hello.opens {
            let session = self.sessions().iter().find(|session| session.name == hello.session).cloned();
            let Some(session) = session else { return refuse("the session has ended".to_string()) };
            let near = TcpStream::connect((Ipv4Addr::LOCALHOST, session.port))?;
            wire::send(stream, &Welcome::Devices(Vec::new()))?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            return relay(&near, stream).map(|_| ());
        }
        if self.sessions().len() >= MOST_SESSIONS {
            return refuse(format!("it has {MOST_SESSIONS} sessions already"));
        }
        let free = |store: &Store| store.begin(disk::free_bytes(store.folder()));
        let folder = self.options.store.as_ref().and_then(free);
        let served = match Engine::start(&self.options, folder.as_deref()) {
            Err(error) => refuse(format!("its engine cannot be started: {error}")),
            Ok((engine, offers)) => {
                let session = Session { name: hello.session, port: engine.port };
                self.sessions().push(session.clone());
                (self.options.tell)(Event::Begun(from));
                let why = wire::send(stream, &Welcome::Devices(offers)).ok().and_then(|()| self.attend(stream, engine));
                self.sessions().retain(|other| other.name != session.name);
                (self.options.tell)(Event::Ended(from, why));
                Ok(())
            }
        };
        if let (Some(store), Some(folder)) = (&self.options.store, folder) {
            // Without it, weights are sent again.
            let _ = store.end(&folder);
        }
        served
    }

    /// Answers the client's lines until one end is gone. Returns why, if it was not the client's wish.
    fn attend(&self, control: &TcpStream, mut engine: Engine) -> Option<String> {
        let client_is_gone = AtomicBool::new(false);
        thread::scope(|scope| {
            let answering = || {
                while wire::line(control).is_ok() && wire::beat(control).is_ok() {}
                client_is_gone.store(true, Ordering::Relaxed);
            };
            if thread::Builder::new().spawn_scoped(scope, answering).is_err() {
                return Some("this system has no room for another thread".to_string());
            }
            let why = loop {
                match engine.child.try_wait() {
                    Ok(None) => {}
                    Ok(Some(status)) => break Some(ending(status)),
                    Err(error) => break Some(format!("its engine cannot be waited for: {error}")),
                }
                if client_is_gone.load(Ordering::Relaxed) {
                    break None;
                }
                if self.done.load(Ordering::Relaxed) {
                    break Some("the worker was asked to end".to_string());
                }
                thread::sleep(Duration::from_millis(20));
            };
            if let Some(why) = &why {
                // The client may be gone as well.
                let _ = wire::send(control, &Notice::Ended(why.clone()));
            }
            let _ = control.shutdown(Shutdown::Both);
            why
        })
    }
}

/// Says how an engine ended that should not have.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        // 9 is what a system without memory sends.
        let hint = if signal == 9 { ", perhaps because there was no memory left" } else { "" };
        return format!("its engine was ended by signal {signal}{hint}");
    }
    format!("its engine ended with {status}")
}

/// A process that computes for a client. Ended when this is dropped.
struct Engine {
    child: Child,
    port: u16,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Engine {
    /// Starts one, and waits until it listens. Returns what it offers, too.
    fn start(options: &WorkerOptions, folder: Option<&Path>) -> io::Result<(Self, Vec<Offer>)> {
        // Free now, and for as long as nobody else asks the system for one.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new(&options.program);
        command.args((options.arguments)(port, folder));
        // Its input ends with this process, and it with its input.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        #[cfg(unix)]
        {
            // Ctrl-C in the terminal is for the worker.
            use std::os::unix::process::CommandExt;
            command.process_group(0);
        }
        let mut engine = Self { child: command.spawn()?, port };
        let output = engine.child.stdout.take().ok_or_else(|| io::Error::other("it has no output"))?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.by_ref().take(1 << 16).read_line(&mut line)?;
        let offers: Vec<Offer> = serde_json::from_str(&line).map_err(|_| io::Error::other("it ended"))?;
        // What ggml says there is read so that it can go on.
        thread::Builder::new().spawn(move || io::copy(&mut output, &mut io::sink()))?;
        let begun = Instant::now();
        loop {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok((engine, offers));
            }
            if let Some(status) = engine.child.try_wait()? {
                return Err(io::Error::other(ending(status)));
            }
            if begun.elapsed() > STARTING {
                return Err(io::Error::other("it does not listen"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
