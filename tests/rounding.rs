//! Rounding that compensates: nearer to the original than rounding to nearest, the same bytes whatever interrupts it, and
//! verified as it was made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nibble::arch::ARCHITECTURES;
use nibble::convert::{Job, Observer, Options};
use nibble::evaluate::rounding::{Method, Rounding, RoundingOptions};
use nibble::gguf::Gguf;
use nibble::pass::Source;
use nibble::recipe::Recipe;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, convert, error, nibble, stdout, yi_nano};

/// The first half of the repository's English text, to round for, and the second, to judge by; of each so many bytes.
fn halves(dir: &Path) -> (PathBuf, PathBuf) {
    let text = fs::read_to_string(support::data("english.md")).unwrap();
    let middle = (text.len() / 2..).find(|&at| text.is_char_boundary(at)).unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    (write("for.txt", &text[..middle]), write("by.txt", &text[middle..]))
}

fn rounded<'a>(text: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--rounding", "compensated", "--calibration", text.to_str().unwrap()];
    args.extend(["--calibration-tokens", "4096"]);
    args.extend(more);
    args
}

#[test]
fn it_is_nearer_to_the_original_at_the_same_size() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, other) = halves(dir.path());
    let original = convert(&yi_nano(), &at("original.gguf"), &["-q", "BF16"]);
    let mut files = vec![original.to_str().unwrap().to_string()];
    for recipe in ["Q4_0", "Q4_K_S", "IQ4_XS"] {
        // What is not in a layer would hide what happens in them.
        let only_layers = ["-q", recipe, "--type", "token_embd.weight=BF16", "--type", "output.weight=BF16"];
        let plain = convert(&yi_nano(), &at(&format!("{recipe}-nearest.gguf")), &only_layers);
        let better = at(&format!("{recipe}-compensated.gguf"));
        let output = nibble(
            ["convert", yi_nano().to_str().unwrap(), "-o", better.to_str().unwrap(), "--json"]
                .into_iter()
                .chain(rounded(&text, &only_layers)),
        );
        let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let left = summary["error_left"].as_f64().unwrap();
        assert!(left > 0.05 && left < 0.6, "{recipe}: {left}");
        let (plain_gguf, better_gguf) = (Gguf::open(&plain).unwrap(), Gguf::open(&better).unwrap());
        let size = |gguf: &Gguf| gguf.tensors().iter().map(|tensor| tensor.n_bytes().unwrap()).sum::<u64>();
        assert_eq!(size(&plain_gguf), size(&better_gguf));
        let recorded = better_gguf.metadata().str("nibble.rounding").unwrap();
        let hash = blake3::hash(&fs::read(&text).unwrap()).to_hex();
        assert!(
            recorded.starts_with("compensated, ") && recorded.ends_with(&format!(" tokens of {hash}")),
            "{recorded}"
        );
        assert_eq!(plain_gguf.metadata().str("nibble.rounding"), None);
        files.extend([plain, better].map(|path| path.to_str().unwrap().to_string()));
    }
    let text = format!("by={}", other.display());
    let results = at("results.json");
    let compare =
        ["compare", "--window", "128", "--windows", "40", "--text", &text, "--json", results.to_str().unwrap()];
    stdout(&nibble(compare.into_iter().chain(files.iter().map(String::as_str))));
    let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
    let kld = |name: &str| {
        let candidates = results["candidates"].as_array().unwrap();
        let found = candidates.iter().find(|candidate| candidate["file"]["name"] == name).unwrap();
        found["overall"]["kld"]["value"].as_f64().unwrap()
    };
    for recipe in ["Q4_0", "Q4_K_S", "IQ4_XS"] {
        let (plain, better) = (kld(&format!("{recipe}-nearest")), kld(&format!("{recipe}-compensated")));
        assert!(better < 0.75 * plain, "{recipe}: {better} instead of {plain}");
    }
}

#[test]
fn its_bytes_depend_on_what_is_rounded_and_not_on_how() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, other) = halves(dir.path());
    let made = |name: &str, text: &Path, more: &[&str]| {
        let more: Vec<&str> = ["-q", "Q4_0"].iter().chain(more).copied().collect();
        convert(&yi_nano(), &at(name), &rounded(text, &more))
    };
    let one = fs::read(made("one.gguf", &text, &["-t", "1"])).unwrap();
    assert!(one == fs::read(made("three.gguf", &text, &["-t", "3"])).unwrap());
    // Another name of the text, and a text of another name.
    let renamed = at("renamed.txt");
    fs::copy(&text, &renamed).unwrap();
    assert!(one == fs::read(made("renamed.gguf", &renamed, &[])).unwrap());
    assert!(one != fs::read(made("other.gguf", &other, &[])).unwrap());
    // The folder is left as it was.
    let names = ["by.txt", "for.txt", "one.gguf", "other.gguf", "renamed.gguf", "renamed.txt", "three.gguf"];
    assert_eq!(support::files(dir.path()), names);

    // As it was made, it verifies; otherwise, it says how it was made.
    let verify = |more: &[&str]| {
        let (file, source) = (at("one.gguf"), yi_nano());
        let args = ["verify", file.to_str().unwrap(), "--source", source.to_str().unwrap()];
        nibble(args.iter().chain(more))
    };
    stdout(&verify(&rounded(&text, &[])));
    stdout(&verify(&rounded(&text, &["--sample", "20%", "--seed", "1"])));
    for more in [vec![], rounded(&other, &[])] {
        let said = error(&verify(&more));
        assert!(said.contains("one.gguf was rounded in another way: compensated, "), "{said}");
        assert!(said.contains("give --rounding and --calibration as they were given"), "{said}");
    }
    let nearest = convert(&yi_nano(), &at("nearest.gguf"), &["-q", "Q4_0"]);
    let source = yi_nano();
    let args = ["verify", nearest.to_str().unwrap(), "--source", source.to_str().unwrap()];
    let said = error(&nibble(args.into_iter().chain(rounded(&text, &[]))));
    assert!(said.contains("was rounded in another way: to nearest, not compensated"), "{said}");
}

/// Sets a flag when so many bytes were written.
struct Stop<'a>(&'a AtomicBool, AtomicU64, u64);

impl Observer for Stop<'_> {
    fn advance(&self, _: u64, written_bytes: u64) {
        if self.1.fetch_add(written_bytes, Ordering::Relaxed) + written_bytes >= self.2 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn what_was_interrupted_goes_on_to_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    let (text, _) = halves(dir.path());
    let run = |name: &str, cancel: Arc<AtomicBool>, stop_at: u64| {
        let source = Source::open(&yi_nano(), ARCHITECTURES, false, None).unwrap();
        let mut options = RoundingOptions { most_tokens: 2048, ..RoundingOptions::new(method, vec![text.clone()]) };
        options.session.cancel = cancel.clone();
        let rounding = Arc::new(Rounding::prepare(source, dir.path(), options).unwrap());
        let job = Options {
            output: Some(dir.path().join(name)),
            prologue: Some(rounding),
            ..Options::new(Recipe::find("Q4_0").unwrap().clone())
        };
        let job = Job::prepare(&yi_nano(), job).unwrap();
        // On one thread, nothing else is nearly done when it stops.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| job.execute(&Stop(&cancel, AtomicU64::new(0), stop_at), &cancel))
    };
    run("whole.gguf", Arc::default(), u64::MAX).unwrap();
    let whole = fs::read(dir.path().join("whole.gguf")).unwrap();
    for stop_at in [1, 1 << 20, 2 << 20] {
        let name = format!("{stop_at}.gguf");
        let stopped = run(&name, Arc::default(), stop_at);
        assert!(stopped.is_err_and(|error| error.is_cancelled()), "{stop_at}");
        run(&name, Arc::default(), u64::MAX).unwrap();
        assert!(fs::read(dir.path().join(name)).unwrap() == whole, "{stop_at}");
    }
    // Cancelled before anything was computed.
    let stopped = run("never.gguf", Arc::new(AtomicBool::new(true)), u64::MAX);
    assert!(stopped.is_err_and(|error| error.is_cancelled()));
}

#[test]
fn what_cannot_be_rounded_for_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let (text, _) = halves(dir.path());
    let text = text.to_str().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let (short, broken) = (write("short.txt", b"Once"), write("broken.txt", b"Once \xff upon"));
    let source = yi_nano();
    let said = |more: &[&str]| {
        let output = dir.path().join("out.gguf");
        let args = ["convert", source.to_str().unwrap(), "-o", output.to_str().unwrap()];
        error(&nibble(args.iter().chain(more)))
    };
    let compensated = ["--rounding", "compensated"];
    for (more, wanted) in [
        (&compensated[..], "needs texts: give one for each language that counts"),
        (&["--calibration", text], "--calibration is for --rounding compensated"),
        (&[&compensated[..], &["--calibration", &short]].concat(), "short.txt: has "),
        (&[&compensated[..], &["--calibration", &broken]].concat(), "broken.txt: is not UTF-8 at byte 5"),
        (&[&compensated[..], &["--calibration", "none.txt"]].concat(), "none.txt: cannot be read"),
    ] {
        let said = said(more);
        assert!(said.contains(wanted), "{said}");
    }
    assert_eq!(support::files(dir.path()), ["broken.txt", "by.txt", "for.txt", "short.txt"]);
}
