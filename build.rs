//! Compiles the few lines of C++ that stand between Rust and llama.cpp.
//!
//! Sets `cfg(shared_data)` where `../shared/data` is there. Tests that need it are ignored otherwise, and counted as such.
//!
//! Cargo is told to watch the folder only where it exists: watching a missing one would run this, and rebuild nibble, each
//! time. Touch this file after the folder was added.

use std::path::Path;

fn main() {
    const SHARED: &str = "../shared/data";
    println!("cargo::rustc-check-cfg=cfg(shared_data)");
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "llama")]
    {
        const GUARD: &str = "src/llama/guard.cpp";
        println!("cargo::rerun-if-changed={GUARD}");
        cc::Build::new().cpp(true).std("c++17").file(GUARD).compile("nibble_guard");
    }
    if Path::new(SHARED).is_dir() {
        println!("cargo::rerun-if-changed={SHARED}");
        println!("cargo::rustc-cfg=shared_data");
    }
}
