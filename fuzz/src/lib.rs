//! What the fuzz targets share: a limit on memory, a place for files, and seeds.
//!
//! A target reads bytes the way nibble reads a file of its kind. The reader may return an error. It must not panic, run
//! without end, or allocate more than [`MEMORY`]. `scripts/fuzz` builds and runs the targets with stable Rust alone;
//! `cargo fuzz run TARGET -s none` runs one.

use std::alloc::System;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use cap::Cap;
use nibble::gguf::Metadata;
use nibble::vocab::{ByteLevelBpe, Pieces, SentencepieceBpe};

/// The most bytes that Rust code may hold at a time. Inputs have some kilobytes.
pub const MEMORY: usize = 512 << 20;

/// Allocations past the limit fail, which ends the process with an abort.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY);

/// The environment variable that names the folder to write seeds to.
const SEEDS: &str = "NIBBLE_FUZZ_SEEDS";

/// Writes `seeds` to the folder that `NIBBLE_FUZZ_SEEDS` names and exits. Does nothing where it is not set.
///
/// A target calls this before the fuzzer starts. Seeds are made by the code that they are for, so they never go stale.
pub fn seeds<T: AsRef<[u8]>>(seeds: impl IntoIterator<Item = T>) {
    let Some(folder) = std::env::var_os(SEEDS).map(PathBuf::from) else { return };
    std::fs::create_dir_all(&folder).expect("the folder for seeds can be made");
    for (index, seed) in seeds.into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{index:02}")), seed).expect("a seed can be written");
    }
    std::process::exit(0);
}

/// A folder of this process. `scripts/fuzz` sets `TMPDIR` to memory, so that writing a file costs little.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder can be made")).path()
}

/// A file with these bytes.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("a temporary file can be written");
    path
}

/// Uses the vocabulary in `metadata` as `nibble tokenize` does.
pub fn use_vocabulary(metadata: &Metadata) {
    const TEXT: &str = "<s>Hello,  wörld!\n人工智能 <|im_end|> 2 \t\u{1F600}\0";
    if let Ok(pieces) = Pieces::from_metadata(metadata) {
        let n_bytes: usize = (0..pieces.len() as u32).map(|id| pieces.bytes(id).len()).sum();
        assert!(n_bytes < MEMORY);
    }
    if let Ok(tokenizer) = SentencepieceBpe::from_metadata(metadata) {
        for ids in [tokenizer.encode(TEXT), tokenizer.encode_special(TEXT), tokenizer.encode_document(TEXT)] {
            tokenizer.decode(&ids);
        }
    }
    if let Ok(tokenizer) = ByteLevelBpe::from_metadata(metadata) {
        let n_tokens = tokenizer.pieces().len();
        assert!(tokenizer.encode_special(TEXT).iter().all(|&id| (id as usize) < n_tokens));
        tokenizer.encode(TEXT);
    }
}

/// Lets panics that `llguidance` catches itself pass. All others still abort, as the fuzzer's hook makes them.
///
/// nibble turns a caught panic into an error (`Grammar::checked`), so it is not a fault of nibble's.
pub fn let_llguidance_panic() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let theirs = |place: &std::panic::Location| {
            ["llguidance", "derivre", "toktrie"].iter().any(|name| place.file().contains(name))
        };
        if !info.location().is_some_and(theirs) {
            abort(info);
        }
    }));
}

/// Runs `work` and panics where it took longer than `limit` of processor time, whatever else the machine does.
pub fn limit_time<T>(limit: Duration, work: impl FnOnce() -> T) -> T {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = now();
    let done = work();
    let taken = now().saturating_sub(start);
    assert!(taken < limit, "took {taken:?} of processor time");
    done
}
