//! What a model takes in memory, against what llama.cpp says that it allocates.

use std::path::{Path, PathBuf};

use nibble::llama::{ModelFile, ModelOptions};

use crate::support;

/// Returns the MiB of the buffers of other layouts (`CPU_REPACK`, `AMX`) in llama.cpp's log of loading the model at `path`.
fn allocated(path: &Path, more: &[&str]) -> f64 {
    let mut args = vec!["run", path.to_str().unwrap(), "-p", "a", "-n", "1", "--verbose"];
    args.extend(more);
    let output = support::nibble(args);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let sizes = log.lines().filter_map(|line| line.split_once(" model buffer size ="));
    let plain = ["CPU", "CPU_Mapped"];
    let others = sizes.filter(|(name, _)| !plain.contains(&name.split_ascii_whitespace().last().unwrap_or_default()));
    others.map(|(_, size)| size.split_ascii_whitespace().next().unwrap().parse::<f64>().unwrap()).sum()
}

fn converted(recipe: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("memory-yi-nano-{recipe}.gguf"));
    support::convert(&support::yi_nano(), &file, &["-q", recipe, "--force"])
}

#[test]
fn the_second_layout_takes_what_llama_cpp_allocates_for_it() {
    let mut some = 0;
    for recipe in ["Q4_K_M", "Q4_0", "IQ4_NL", "Q8_0", "Q6_K", "F16"] {
        let file = converted(recipe);
        let repacked = ModelFile::check(&file, ModelOptions::default()).unwrap().repacked().unwrap();
        let expected: u64 = repacked.iter().map(|(_, bytes)| bytes).sum();
        let mib = allocated(&file, &["--repack", "on"]);
        assert!((expected as f64 / f64::from(1 << 20) - mib).abs() < 0.02, "{recipe}: {expected} bytes, {mib} MiB");
        some += u32::from(expected > 0);
        assert_eq!(allocated(&file, &["--repack", "off"]), 0.0, "{recipe}");
    }
    // Every CPU that has vector instructions has such a layout for Q4_0 at least.
    assert!(some > 0 || cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64"))));
}
