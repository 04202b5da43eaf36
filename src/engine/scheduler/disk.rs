//! The third tier of the prefix store: states in files, which outlive the process.
//!
//! A thread of its own reads and writes. What files hold is known from their beginnings, which are read once, at the start;
//! a state is used only after the hash of its file and its identity have been checked. A folder can hold files of several
//! models: those of others are never used, but count towards its size, and go when they are the oldest.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use super::memory::Saved;
use crate::engine::state_file::{self, Beginning, Contents};
use crate::engine::{CacheError, State};

/// How the names of the files end.
const ENDING: &str = "nibble-kv";

/// The most states that wait in memory until they are written.
const MOST_COMING: usize = 4;

/// Is called when something that was asked for is there.
pub type Wake = Box<dyn Fn() + Send>;

/// A folder for states.
#[derive(Clone, Debug)]
pub struct PrefixFolder {
    /// Its path. It is made if it is not there.
    pub path: PathBuf,
    /// The most bytes of its files together.
    pub most_bytes: u64,
    /// What the states depend on, as [`super::identity`] returns it.
    pub identity: String,
}

/// The number of a file.
pub(super) type FileId = u64;

/// What was read.
#[derive(Debug)]
pub(super) struct Loaded {
    pub file: FileId,
    pub result: Result<Saved, String>,
}

enum Order {
    Read(FileId),
    Write(Saved),
    /// Reply when everything before is done.
    Reach(Sender<()>),
}

/// A file.
#[derive(Clone, Debug)]
struct Entry {
    path: PathBuf,
    n_bytes: u64,
    used: SystemTime,
    /// `None` if it is of no use here.
    tokens: Option<Arc<[u32]>>,
}

/// What both sides know.
#[derive(Debug, Default)]
struct Index {
    files: HashMap<FileId, Entry>,
    last: FileId,
    /// What is being written.
    coming: Vec<Arc<[u32]>>,
    /// Hashes of what was written since the start. It is not written again after others have taken its place.
    written: HashSet<blake3::Hash>,
    /// Why writing failed the last time.
    trouble: Option<String>,
}

impl Index {
    fn add(&mut self, entry: Entry) {
        self.last += 1;
        self.files.insert(self.last, entry);
    }

    fn n_bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.n_bytes).sum()
    }
}

/// States in files.
pub(super) struct Disk {
    index: Arc<Mutex<Index>>,
    orders: Option<Sender<Order>>,
    loaded: Receiver<Loaded>,
    thread: Option<JoinHandle<()>>,
    most_bytes: u64,
    can_truncate: bool,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("most_bytes", &self.most_bytes).finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens a folder, and finds out what its files hold.
    ///
    /// # Errors
    /// If the folder cannot be made or read, or no thread can be started.
    pub fn open(folder: PrefixFolder, can_truncate: bool, wake: Wake) -> io::Result<Self> {
        make_private(&folder.path)?;
        let mut index = Index::default();
        for file in fs::read_dir(&folder.path)? {
            let path = file?.path();
            if path.extension().is_none_or(|ending| ending != ENDING) {
                continue;
            }
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let ours = Beginning::read(&path).ok().filter(|file| file.identity == folder.identity.as_bytes());
            let tokens = ours.map(|file| file.tokens.into());
            index.add(Entry { path, n_bytes: metadata.len(), used, tokens });
        }
        let index = Arc::new(Mutex::new(index));
        let (orders, inbox) = mpsc::channel();
        let (outbox, loaded) = mpsc::channel();
        let most_bytes = folder.most_bytes;
        let worker = Worker { folder, can_truncate, index: index.clone(), wake };
        worker.shrink(0);
        let thread = std::thread::Builder::new().name("prefixes".to_string());
        let thread = thread.spawn(move || worker.run(&inbox, &outbox))?;
        Ok(Self { index, orders: Some(orders), loaded, thread: Some(thread), most_bytes, can_truncate })
    }

    /// Returns the bytes of all files.
    pub fn n_bytes(&self) -> u64 {
        lock(&self.index).n_bytes()
    }

    /// Returns the file for which `usable`, of its tokens, is largest and above `least`, and that number.
    pub fn best(&self, least: usize, usable: impl Fn(&[u32]) -> usize) -> Option<(FileId, usize)> {
        let index = lock(&self.index);
        let usable = |(id, entry): (&FileId, &Entry)| Some((*id, usable(entry.tokens.as_deref()?)));
        let best = index.files.iter().filter_map(usable).max_by_key(|(id, usable)| (*usable, *id));
        best.filter(|(_, usable)| *usable > least)
    }

    /// Begins to read a file. [`Self::take_loaded`] returns what is in it.
    pub fn load(&self, file: FileId) {
        self.order(Order::Read(file));
    }

    /// Returns a file that was read since the last call.
    pub fn take_loaded(&self) -> Option<Loaded> {
        self.loaded.try_recv().ok()
    }

    /// Returns whether `tokens` are not in a file yet, and a state of about this many bytes has room.
    pub fn wants(&self, tokens: &[u32], n_bytes: u64) -> bool {
        let covers = |there: &[u32]| match self.can_truncate {
            // A file is not written again for a few tokens more.
            true => super::common(there, tokens) >= tokens.len() - tokens.len() / 16,
            false => there == tokens,
        };
        let index = lock(&self.index);
        if index.coming.len() >= MOST_COMING {
            return false;
        }
        let there = index.files.values().filter_map(|entry| entry.tokens.as_ref()).chain(&index.coming);
        let is_new = !index.written.contains(&hash(tokens));
        is_new && n_bytes <= self.most_bytes && !there.into_iter().any(|tokens| covers(tokens))
    }

    /// Begins to write a file.
    pub fn write(&self, saved: Saved) {
        let mut index = lock(&self.index);
        index.coming.push(saved.tokens.clone());
        index.written.insert(hash(&saved.tokens));
        drop(index);
        self.order(Order::Write(saved));
    }

    /// Waits until everything is written.
    pub fn wait(&self) {
        let (reached, wait) = mpsc::channel();
        self.order(Order::Reach(reached));
        // An error means that the thread has ended, so nothing comes any more.
        let _ = wait.recv();
    }

    /// Returns why a file could not be written, once.
    pub fn take_trouble(&self) -> Option<String> {
        lock(&self.index).trouble.take()
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread ends only when this is dropped.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(index: &Mutex<Index>) -> std::sync::MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hash(tokens: &[u32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize()
}

/// Makes a folder that only the user can look into: its files have what people wrote.
fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

struct Worker {
    folder: PrefixFolder,
    can_truncate: bool,
    index: Arc<Mutex<Index>>,
    wake: Wake,
}

impl Worker {
    fn run(&self, inbox: &Receiver<Order>, outbox: &Sender<Loaded>) {
        while let Ok(order) = inbox.recv() {
            match order {
                Order::Read(file) => {
                    let result = self.read(file);
                    // An error means that nobody waits for it any more.
                    let _ = outbox.send(Loaded { file, result });
                    (self.wake)();
                }
                Order::Write(saved) => {
                    let result = self.write(&saved);
                    let mut index = lock(&self.index);
                    index.coming.retain(|tokens| *tokens != saved.tokens);
                    index.trouble = result.err().map(|error| error.to_string());
                }
                Order::Reach(reached) => drop(reached.send(())),
            }
        }
    }

    /// Reads a file. One that is of no use is removed.
    fn read(&self, file: FileId) -> Result<Saved, String> {
        let entry = lock(&self.index).files.get(&file).cloned();
        let Some(Entry { path, tokens: Some(tokens), .. }) = entry else { return Err("it is gone".to_string()) };
        let read = match Contents::read(&path) {
            Ok(Some(contents)) => {
                let is_ours = contents.identity() == self.folder.identity.as_bytes();
                if is_ours && contents.tokens() == *tokens { Ok(contents) } else { Err("it was replaced".to_string()) }
            }
            Ok(None) => Err("it is gone".to_string()),
            Err(CacheError::Damaged) => Err("it is damaged".to_string()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(contents) => {
                self.touch(file, &path);
                Ok(Saved { tokens, state: Arc::new(State::trusted(contents.into_state())) })
            }
            Err(reason) => {
                self.remove(file);
                Err(reason)
            }
        }
    }

    /// Makes a file the last one to go.
    fn touch(&self, file: FileId, path: &Path) {
        let now = SystemTime::now();
        // Best effort: another file may go earlier than it should.
        let _ = fs::File::options().append(true).open(path).and_then(|file| file.set_modified(now));
        if let Some(entry) = lock(&self.index).files.get_mut(&file) {
            entry.used = now;
        }
    }

    fn write(&self, saved: &Saved) -> io::Result<()> {
        let mut name = blake3::Hasher::new();
        name.update(self.folder.identity.as_bytes());
        name.update(hash(&saved.tokens).as_bytes());
        let name = &name.finalize().to_hex()[..32];
        let path = self.folder.path.join(format!("{name}.{ENDING}"));
        self.shrink(saved.n_bytes());
        state_file::write(&path, &self.folder.identity, &saved.tokens, saved.state.bytes())?;
        let n_bytes = fs::metadata(&path)?.len();
        let superseded: Vec<FileId> = {
            let mut index = lock(&self.index);
            let goes = |entry: &Entry| match &entry.tokens {
                _ if entry.path == path => false,
                // The new one serves for its beginning, too.
                Some(tokens) => self.can_truncate && saved.tokens.starts_with(tokens),
                None => false,
            };
            let superseded = index.files.iter().filter(|(_, entry)| goes(entry)).map(|(id, _)| *id).collect();
            index.files.retain(|_, entry| entry.path != path);
            let tokens = Some(saved.tokens.clone());
            index.add(Entry { path, n_bytes, used: SystemTime::now(), tokens });
            superseded
        };
        superseded.into_iter().for_each(|file| self.remove(file));
        self.shrink(0);
        Ok(())
    }

    /// Removes the oldest files until there is room for this many bytes.
    fn shrink(&self, room: u64) {
        loop {
            let oldest = {
                let index = lock(&self.index);
                if index.n_bytes().saturating_add(room) <= self.folder.most_bytes {
                    return;
                }
                index.files.iter().min_by_key(|(id, entry)| (entry.used, **id)).map(|(id, _)| *id)
            };
            match oldest {
                Some(file) => self.remove(file),
                None => return,
            }
        }
    }

    fn remove(&self, file: FileId) {
        let entry = lock(&self.index).files.remove(&file);
        if let Some(entry) = entry {
            // If it cannot be removed, it is found again at the next start.
            let _ = fs::remove_file(entry.path);
        }
    }
}
