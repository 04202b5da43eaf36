//! Polishing: nearer to the original, the same bytes whatever interrupts it, and nothing changed but scales and norms.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nibble::arch::ARCHITECTURES;
use nibble::convert::{Job, Options, Summary};
use nibble::evaluate::polish::{Doing, Polish, PolishOptions};
use nibble::gguf::{Gguf, TensorType};
use nibble::pass::Source;
use nibble::recipe::Recipe;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, convert, error, halves, has, nibble, stdout, yi_nano};

#[test]
fn it_is_nearer_to_the_original_and_changes_scales_and_norms_alone() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, other) = halves(dir.path());
    let original = convert(&yi_nano(), &at("original.gguf"), &["-q", "BF16"]);
    let plain = convert(&yi_nano(), &at("plain.gguf"), &["-q", "Q4_0"]);
    let (better, source) = (at("better.gguf"), yi_nano());
    let made = ["convert", source.to_str().unwrap(), "-q", "Q4_0", "-o", better.to_str().unwrap(), "--json"];
    let polish = ["--polish", "16384", "--calibration", text.to_str().unwrap()];
    let summary: Value = serde_json::from_str(&stdout(&nibble(made.iter().chain(&polish)))).unwrap();
    let kld = |key: &str| summary["polished"][key].as_f64().unwrap();
    assert!(kld("kld_after") < kld("kld_before") && kld("held_out_tokens") > 0.0, "{summary}");

    let [a, b] = [&plain, &better].map(|path| Gguf::open(path).unwrap());
    assert_eq!(a.tensors(), b.tensors());
    let recorded = b.metadata().str("nibble.polish").unwrap();
    let hash = blake3::hash(&fs::read(&text).unwrap()).to_hex();
    assert!(recorded.starts_with("scales and norms, 16384 tokens in windows of 512, "), "{recorded}");
    assert!(recorded.ends_with(&format!(" tokens of {hash}")) && a.metadata().str("nibble.polish").is_none());
    let (mut n_blocks, mut n_norms) = (0, 0);
    for (index, info) in a.tensors().iter().enumerate() {
        let (a, b) = (a.data(index), b.data(index));
        match info.ty {
            // A half and 16 bytes of codes.
            TensorType::Q4_0 => {
                let blocks = a.chunks(18).zip(b.chunks(18));
                assert!(blocks.clone().all(|(a, b)| a[2..] == b[2..]), "{}", info.name);
                n_blocks += blocks.filter(|(a, b)| a[..2] != b[..2]).count();
            }
            TensorType::F32 => n_norms += usize::from(a != b),
            _ => {}
        }
    }
    assert!(n_blocks > 1000 && n_norms > 4, "{n_blocks} {n_norms}");

    let (text, results) = (format!("by={}", other.display()), at("results.json"));
    let options = ["--window", "128", "--windows", "40", "--text", &text, "--json", results.to_str().unwrap()];
    let files = [&original, &plain, &better].map(|path| path.to_str().unwrap());
    stdout(&nibble(["compare"].iter().chain(&options).chain(&files)));
    let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
    let kld = |name| support::candidate(&results, name)["overall"]["kld"]["value"].as_f64().unwrap();
    let (before, after) = (kld("plain"), kld("better"));
    assert!(after < 0.98 * before, "{after} instead of {before}");

    // It is intact, and says why it is not made again.
    let verify = ["verify", better.to_str().unwrap()];
    has(&stdout(&nibble(verify)), &["polished", "better.gguf is intact"]);
    let said = error(&nibble(verify.iter().chain(&["--source", source.to_str().unwrap()])));
    has(&said, &["better.gguf was polished after rounding (scales and norms, 16384 tokens", "leave out --source"]);
}

/// Makes `name` in `dir` with polishing, which is told to `tell`.
fn run(
    dir: &Path,
    name: &str,
    threads: usize,
    tell: impl Fn(Doing, &AtomicBool) + Send + Sync + 'static,
) -> Result<Summary, nibble::convert::Error> {
    let cancel = Arc::new(AtomicBool::new(false));
    let source = Source::open(&yi_nano(), ARCHITECTURES, false, None).unwrap();
    let options = PolishOptions { texts: vec![dir.join("for.txt").into()], n_tokens: 3072 };
    let polish = Arc::new(Polish::prepare(source, dir, options).unwrap());
    let flag = cancel.clone();
    polish.observe(move |doing| tell(doing, &flag));
    let job = Options {
        output: Some(dir.join(name)),
        epilogue: Some(polish),
        ..Options::new(Recipe::find("Q4_K_S").unwrap().clone())
    };
    let job = Job::prepare(&yi_nano(), job).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| job.execute(&(), &cancel))
}

#[test]
fn its_bytes_do_not_depend_on_threads_or_on_what_interrupts_it() {
    let dir = TempDir::new().unwrap();
    let (_, _) = halves(dir.path());
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    run(dir.path(), "whole.gguf", 1, |_, _| ()).unwrap();
    let whole = read("whole.gguf");
    run(dir.path(), "threads.gguf", 3, |_, _| ()).unwrap();
    assert!(read("threads.gguf") == whole);

    // Stopped in the middle: nothing has the name, and the next run goes on.
    let stop = |doing, cancel: &AtomicBool| {
        if matches!(doing, Doing::Step { step: 1, .. }) {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let stopped = run(dir.path(), "stopped.gguf", 2, stop);
    assert!(stopped.is_err_and(|error| error.is_cancelled()));
    assert!(!dir.path().join("stopped.gguf").exists());
    // Killed while it wrote, which leaves tensors that are not as they were rounded.
    let partial = dir.path().join("stopped.gguf.partial");
    let mut bytes = fs::read(&partial).unwrap();
    assert_eq!(bytes.len(), whole.len());
    let half = bytes.len() / 2;
    bytes[half..].copy_from_slice(&whole[half..]);
    fs::write(&partial, bytes).unwrap();
    run(dir.path(), "stopped.gguf", 2, |_, _| ()).unwrap();
    assert!(read("stopped.gguf") == whole);
    assert_eq!(support::files(dir.path()), ["by.txt", "for.txt", "stopped.gguf", "threads.gguf", "whole.gguf"]);
}

#[test]
fn what_cannot_be_polished_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let (text, _) = halves(dir.path());
    // 512 to 1,023 tokens: one window.
    let whole = fs::read_to_string(&text).unwrap();
    let one = dir.path().join("one.txt");
    fs::write(&one, whole.chars().take(1600).collect::<String>()).unwrap();
    let source = yi_nano();
    let said = |more: &[&str]| {
        let output = dir.path().join("out.gguf");
        let args = ["convert", source.to_str().unwrap(), "-o", output.to_str().unwrap()];
        error(&nibble(args.iter().chain(more)))
    };
    let (text, one) = (text.to_str().unwrap(), one.to_str().unwrap());
    has(&said(&["--calibration", text]), &["--calibration is for --rounding", "--polish"]);
    has(&said(&["--polish", "1000", "--calibration", "none.txt"]), &["none.txt: cannot be read"]);
    has(&said(&["--polish", "1000", "--calibration", one]), &["fewer than two windows of 512", "give a longer text"]);
    assert_eq!(support::files(dir.path()), ["by.txt", "for.txt", "one.txt"]);
}
