//! Sets `cfg(shared_data)` where `../shared/data` is there. Tests that need it are ignored otherwise, and counted as such.
//!
//! Cargo is told to watch the folder only where it exists: watching a missing one would run this, and rebuild nibble, each
//! time. Touch this file after the folder was added.

use std::path::Path;

fn main() {
    const SHARED: &str = "../shared/data";
    println!("cargo::rustc-check-cfg=cfg(shared_data)");
    println!("cargo::rerun-if-changed=build.rs");
    if Path::new(SHARED).is_dir() {
        println!("cargo::rerun-if-changed={SHARED}");
        println!("cargo::rustc-cfg=shared_data");
    }
}
