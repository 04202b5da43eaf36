//! Rounding that compensates: nearer to the original than rounding to nearest, the same bytes whatever interrupts it, and
//! verified as it was made.

use std::fs;
use std::path::Path;
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

use crate::support::{self, convert, error, halves, nibble, stdout, yi_nano};

const METHODS: [&str; 2] = ["compensated", "full"];
/// Tokens where it does not matter how good the result is.
const FEW: &str = "1024";

fn rounded<'a>(method: &'a str, text: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    rounded_for("4096", method, text, more)
}

fn rounded_for<'a>(n_tokens: &'a str, method: &'a str, text: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--rounding", method, "--calibration", text.to_str().unwrap()];
    args.extend(["--calibration-tokens", n_tokens]);
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
    let hash = blake3::hash(&fs::read(&text).unwrap()).to_hex();
    for recipe in ["Q4_0", "Q4_K_S", "IQ4_XS"] {
        // What is not in a layer would hide what happens in them.
        let only_layers = ["-q", recipe, "--type", "token_embd.weight=BF16", "--type", "output.weight=BF16"];
        let plain = convert(&yi_nano(), &at(&format!("{recipe}-nearest.gguf")), &only_layers);
        let size = |gguf: &Gguf| gguf.tensors().iter().map(|tensor| tensor.n_bytes().unwrap()).sum::<u64>();
        let plain_gguf = Gguf::open(&plain).unwrap();
        assert_eq!(plain_gguf.metadata().str("nibble.rounding"), None);
        files.push(plain.to_str().unwrap().to_string());
        for method in METHODS {
            let better = at(&format!("{recipe}-{method}.gguf"));
            let output = nibble(
                ["convert", yi_nano().to_str().unwrap(), "-o", better.to_str().unwrap(), "--json"]
                    .into_iter()
                    .chain(rounded(method, &text, &only_layers)),
            );
            let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
            let left = summary["error_left"].as_f64().unwrap();
            assert!(left > 0.05 && left < 0.6, "{recipe} {method}: {left}");
            let better_gguf = Gguf::open(&better).unwrap();
            assert_eq!(size(&plain_gguf), size(&better_gguf));
            let recorded = better_gguf.metadata().str("nibble.rounding").unwrap();
            assert!(
                recorded.starts_with(&format!("{method}, ")) && recorded.ends_with(&format!(" tokens of {hash}")),
                "{recorded}"
            );
            files.push(better.to_str().unwrap().to_string());
        }
    }
    let text = format!("by={}", other.display());
    let results = at("results.json");
    let compare =
        ["compare", "--window", "128", "--windows", "40", "--text", &text, "--json", results.to_str().unwrap()];
    stdout(&nibble(compare.into_iter().chain(files.iter().map(String::as_str))));
    let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
    let kld = |name: &str| support::candidate(&results, name)["overall"]["kld"]["value"].as_f64().unwrap();
    for recipe in ["Q4_0", "Q4_K_S", "IQ4_XS"] {
        let [plain, compensated, full] = ["nearest", "compensated", "full"].map(|how| kld(&format!("{recipe}-{how}")));
        assert!(compensated < 0.75 * plain, "{recipe}: {compensated} instead of {plain}");
        assert!(full < 0.95 * compensated, "{recipe}: {full} instead of {compensated}");
    }
}

/// Where embedding and output are rounded, too, and where they are one matrix.
#[test]
fn the_embedding_and_the_output_are_rounded_for_what_they_do() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, other) = halves(dir.path());
    let mut tied = support::Variation::of_yi_nano();
    tied.config.insert("tie_word_embeddings".to_string(), true.into());
    tied.tensors.retain(|tensor| tensor.name != "lm_head.weight");
    let folder = at("tied");
    fs::create_dir(&folder).unwrap();
    tied.write_single(&folder);
    for (source, types) in
        [(yi_nano(), ["token_embd.weight=Q4_0", "output.weight=Q4_0"]), (folder, ["token_embd.weight=Q4_0"; 2])]
    {
        let types: Vec<&str> = types.iter().flat_map(|ty| ["--type", ty]).collect();
        // Nothing else is.
        let types = [&["-q", "BF16"], types.as_slice()].concat();
        let made = |name: &str, more: &[&str]| convert(&source, &at(name), &[&types, more, &["--force"]].concat());
        let original = convert(&source, &at("original.gguf"), &["-q", "BF16", "--force"]);
        let plain = made("plain.gguf", &[]);
        let [compensated, full] = METHODS.map(|method| made(&format!("{method}.gguf"), &rounded(method, &text, &[])));
        let results = at("results.json");
        let text = format!("by={}", other.display());
        let options =
            ["--window", "128", "--windows", "20", "--text", &text, "--json", results.to_str().unwrap(), "--force"];
        let files = [&original, &plain, &compensated, &full].map(|path| path.to_str().unwrap());
        stdout(&nibble(["compare"].iter().chain(&options).chain(&files)));
        let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
        let kld = |index: usize| results["candidates"][index]["overall"]["kld"]["value"].as_f64().unwrap();
        let [plain, compensated, full] = [kld(0), kld(1), kld(2)];
        assert!(compensated < 0.6 * plain && full < 0.6 * plain, "{compensated}, {full} instead of {plain}");
    }
}

#[test]
fn its_bytes_depend_on_what_is_rounded_and_not_on_how() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, other) = halves(dir.path());
    for method in METHODS {
        let made = |name: &str, text: &Path, more: &[&str]| {
            let more: Vec<&str> = ["-q", "Q4_0", "--force"].iter().chain(more).copied().collect();
            convert(&yi_nano(), &at(name), &rounded_for(FEW, method, text, &more))
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
        stdout(&verify(&rounded_for(FEW, method, &text, &[])));
        stdout(&verify(&rounded_for(FEW, method, &text, &["--sample", "20%", "--seed", "1"])));
        for more in [vec![], rounded_for(FEW, method, &other, &[])] {
            let said = error(&verify(&more));
            assert!(said.contains(&format!("one.gguf was rounded in another way: {method}, ")), "{said}");
            assert!(said.contains("give --rounding and --calibration as they were given"), "{said}");
        }
    }
    let nearest = convert(&yi_nano(), &at("nearest.gguf"), &["-q", "Q4_0"]);
    let source = yi_nano();
    let args = ["verify", nearest.to_str().unwrap(), "--source", source.to_str().unwrap()];
    let said = error(&nibble(args.into_iter().chain(rounded_for(FEW, "compensated", &text, &[]))));
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
    let run = |method: Method, name: &str, cancel: Arc<AtomicBool>, stop_at: u64| {
        let source = Source::open(&yi_nano(), ARCHITECTURES, false, None).unwrap();
        let mut options = RoundingOptions { most_tokens: 512, ..RoundingOptions::new(method, vec![text.clone()]) };
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
    for method in [Method::Compensated, Method::Full] {
        let file = |name: &str| format!("{method:?}-{name}.gguf");
        run(method, &file("whole"), Arc::default(), u64::MAX).unwrap();
        let whole = fs::read(dir.path().join(file("whole"))).unwrap();
        for stop_at in [1, 1 << 20, 2 << 20] {
            let name = file(&stop_at.to_string());
            let stopped = run(method, &name, Arc::default(), stop_at);
            assert!(stopped.is_err_and(|error| error.is_cancelled()), "{name}");
            run(method, &name, Arc::default(), u64::MAX).unwrap();
            assert!(fs::read(dir.path().join(&name)).unwrap() == whole, "{name}");
        }
        // Cancelled before anything was computed.
        let stopped = run(method, &file("never"), Arc::new(AtomicBool::new(true)), u64::MAX);
        assert!(stopped.is_err_and(|error| error.is_cancelled()));
    }
}

/// Sets a flag when the work says that it rounds a tensor.
#[test]
fn it_stops_while_it_computes() {
    let dir = TempDir::new().unwrap();
    let (text, _) = halves(dir.path());
    for at in ["forward, layer 2 of ", "backward, output", "backward, layer 1 of ", "rounding blk.1.ffn_down.weight"] {
        let source = Source::open(&yi_nano(), ARCHITECTURES, false, None).unwrap();
        let cancel = Arc::new(AtomicBool::new(false));
        let mut options =
            RoundingOptions { most_tokens: 4096, ..RoundingOptions::new(Method::Full, vec![text.clone()]) };
        options.session.cancel = cancel.clone();
        let rounding = Arc::new(Rounding::prepare(source, dir.path(), options).unwrap());
        let (flag, reached) = (cancel.clone(), Arc::new(AtomicU64::new(0)));
        let counter = reached.clone();
        rounding.observe(move |doing| {
            if doing.to_string().starts_with(at) {
                flag.store(true, Ordering::Relaxed);
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let output = dir.path().join("out.gguf");
        let job = Options {
            output: Some(output.clone()),
            prologue: Some(rounding),
            ..Options::new(Recipe::find("Q4_0").unwrap().clone())
        };
        let stopped = Job::prepare(&yi_nano(), job).unwrap().execute(&(), &cancel);
        assert!(stopped.is_err_and(|error| error.is_cancelled()), "{at}");
        assert!(reached.load(Ordering::Relaxed) > 0 && !output.exists(), "{at}");
    }
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
        (&["--calibration", text][..], "--calibration is for --rounding compensated and full"),
        (&[&compensated[..], &["--calibration", &short]].concat(), "fewer than a window of 512; give a longer text"),
        (&[&compensated[..], &["--calibration", &broken]].concat(), "broken.txt: is not UTF-8 at byte 5"),
        (&[&compensated[..], &["--calibration", "none.txt"]].concat(), "none.txt: cannot be read"),
    ] {
        let said = said(more);
        assert!(said.contains(wanted), "{said}");
    }
    assert_eq!(support::files(dir.path()), ["broken.txt", "by.txt", "for.txt", "short.txt"]);
}

/// Makes files with more and more of what rounding does, and prints the seconds that all threads worked on each. For
/// `nibble compare`: `ABLATION` is a folder for the files, and `ABLATION_TEXTS` the texts, with commas between them. Others are
/// `ABLATION_SOURCE`, `ABLATION_RECIPES`, `ABLATION_TOKENS`, `ABLATION_IMPORTANCE` and, to make some alone, `ABLATION_ONLY`.
#[test]
#[ignore = "makes files to compare"]
fn ingredients() {
    use nibble::calibration::importance::File;
    use nibble::evaluate::polish::{Polish, PolishOptions};
    use nibble::quant::rounding::Settings;

    let var = |name: &str| std::env::var(format!("ABLATION{name}"));
    let list = |name: &str, default: &str| -> Vec<String> {
        var(name).unwrap_or_else(|_| default.to_string()).split(',').map(String::from).collect()
    };
    let source = var("_SOURCE").map_or_else(|_| yi_nano(), Into::into);
    let folder = var("").expect("ABLATION is the folder for the files");
    let texts: Vec<std::path::PathBuf> = list("_TEXTS", "").into_iter().map(Into::into).collect();
    let most_tokens = list("_TOKENS", "16384")[0].parse().unwrap();
    let only = list("_ONLY", "");
    let importance = || var("_IMPORTANCE").map(|path| File::read(Path::new(&path)).unwrap().importance().unwrap()).ok();
    // Rounds of the refit, sweeps, and tokens of polishing.
    let compensated = |rounds| Some((Method::Compensated, rounds, 0));
    let full = |sweeps| Some((Method::Full, 3, sweeps));
    let variants = [
        ("plain", None, 0),
        ("importance", None, 0),
        ("compensated", compensated(0), 0),
        ("refit-1", compensated(1), 0),
        ("refit-3", compensated(3), 0),
        ("refit-8", compensated(8), 0),
        ("weighted", full(0), 0),
        ("two-sided-1", full(1), 0),
        ("two-sided-2", full(2), 0),
        ("two-sided-5", full(5), 0),
        ("two-sided-10", full(10), 0),
        ("importance-polished", None, 120_000),
        ("refit-3-polished", compensated(3), 120_000),
        ("two-sided-5-polished-30k", full(5), 30_000),
        ("two-sided-5-polished", full(5), 120_000),
    ];
    let open = || Source::open(&source, ARCHITECTURES, false, None).unwrap();
    for recipe in list("_RECIPES", "Q4_0,Q4_K_S,IQ4_XS") {
        for (name, how, n_polish) in variants {
            if !only[0].is_empty() && !only.iter().any(|only| only == name) {
                continue;
            }
            let seconds = cpu_seconds();
            let rounding = how.map(|(method, rounds, sweeps)| {
                let settings = Settings { rounds, ..Settings::default() };
                let options =
                    RoundingOptions { most_tokens, settings, sweeps, ..RoundingOptions::new(method, texts.clone()) };
                Arc::new(Rounding::prepare(open(), Path::new(&folder), options).unwrap())
            });
            let polish = (n_polish > 0).then(|| {
                let options =
                    PolishOptions { texts: texts.iter().cloned().map(Into::into).collect(), n_tokens: n_polish };
                Arc::new(Polish::prepare(open(), Path::new(&folder), options).unwrap())
            });
            let output = Path::new(&folder).join(format!("{recipe}-{name}.gguf"));
            let job = Options {
                output: Some(output),
                force: true,
                importance: importance().filter(|_| name != "plain"),
                prologue: rounding.map(|rounding| rounding as _),
                epilogue: polish.map(|polish| polish as _),
                ..Options::new(Recipe::find(&recipe).unwrap().clone())
            };
            Job::prepare(&source, job).unwrap().execute(&(), &AtomicBool::new(false)).unwrap();
            println!("{recipe} {name}: {:.0} core-seconds", cpu_seconds() - seconds);
        }
    }
}

/// Seconds that the threads of this process worked.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let numbers = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    numbers.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
