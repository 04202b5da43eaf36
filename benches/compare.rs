//! What measuring takes beyond the models: reference and candidates read a text side by side, against the same models
//! reading the same windows with nobody looking at their logits.
//!
//! ```text
//! cargo bench --bench compare                                   the tests' model, eight candidates
//! cargo bench --bench compare -- REFERENCE.gguf CANDIDATE.gguf... --windows 4
//! ```
//!
//! Both ways take turns in one process. The bare loop makes a context for each model and gives llama.cpp half a window at
//! once; it asks for the logits of the second half.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use nibble::convert::Job;
use nibble::engine::{Logits, Session, SessionOptions};
use nibble::evaluate::measure::{Against, ReadOptions, measure};
use nibble::evaluate::texts::{self, Cut, TextFile};
use nibble::llama::{Model, ModelOptions};

const CUT: Cut = Cut { window: 512 };

fn main() {
    let mut files: Vec<PathBuf> = Vec::new();
    let (mut windows, mut rounds) = (8, 5);
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a number");
        match argument.as_str() {
            "--windows" => windows = number(),
            "--rounds" => rounds = number(),
            file => files.push(file.into()),
        }
    }
    let made = tempfile::tempdir().expect("a temporary folder");
    if files.is_empty() {
        files = yi_nano(made.path());
    }
    let models: Vec<Model> =
        files.iter().map(|file| Model::load(file, ModelOptions::default()).expect("a model")).collect();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let named = [TextFile { name: "README".to_string(), path: readme }];
    let texts = texts::read(&named, CUT, Some(windows), models[0].tokenizer()).expect("a text");
    let n_windows = texts[0].tokens.len() / CUT.window as usize;
    println!(
        "{} models, {n_windows} windows of {} tokens, vocabulary {}",
        models.len(),
        CUT.window,
        models[0].n_vocab()
    );

    let candidates: Vec<&Model> = models[1..].iter().collect();
    let options = ReadOptions { session: SessionOptions::default(), cut: CUT };
    let before = resident();
    let (mut bare, mut measured) = (Vec::new(), Vec::new());
    let peak = std::sync::Arc::new(AtomicU64::new(0));
    for round in 0..rounds {
        let (stop, until) = std::sync::mpsc::channel::<()>();
        let watched = peak.clone();
        let watching = std::thread::spawn(move || {
            while until.recv_timeout(Duration::from_millis(5)).is_err_and(|e| e == RecvTimeoutError::Timeout) {
                watched.fetch_max(resident(), Ordering::Relaxed);
            }
        });
        let begun = Instant::now();
        let found = measure(Against::Model(&models[0]), &candidates, &texts, &options, |_| {});
        measured.push(begun.elapsed().as_secs_f64());
        drop(stop);
        watching.join().expect("a thread that only looks");
        assert!(found.failure.is_none() && found.windows.len() == n_windows);
        let begun = Instant::now();
        for model in &models {
            let options = SessionOptions { n_ctx: Some(512), n_batch: 512, rows: 256, ..SessionOptions::default() };
            let mut session = Session::new(model, &options).expect("a session");
            for (window, _) in CUT.windows(&texts[0]) {
                session.truncate(0);
                session.eval(&window[..256], Logits::None).expect("an evaluation");
                session.eval(&window[256..511], Logits::All).expect("an evaluation");
            }
        }
        bare.push(begun.elapsed().as_secs_f64());
        println!(
            "round {round}: measured {:.3} s, bare {:.3} s, ratio {:.3}",
            measured[round],
            bare[round],
            measured[round] / bare[round]
        );
    }
    let mut ratios: Vec<f64> = measured.iter().zip(&bare).map(|(measured, bare)| measured / bare).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "time measured / models alone: {:.3} (median of {rounds}; {:.3} to {:.3})",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    println!(
        "anonymous memory beyond what it was with the models loaded: {} MB",
        peak.load(Ordering::Relaxed).saturating_sub(before) / 1_000_000
    );
}

/// The tests' model as reference, and eight recipes of it.
fn yi_nano(dir: &Path) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano");
    let recipes = ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"];
    recipes.map(|name| convert(&source, name, dir)).to_vec()
}

fn convert(source: &Path, name: &str, dir: &Path) -> PathBuf {
    let recipe = nibble::recipe::Recipe::find(name).expect("a recipe").clone();
    let path = dir.join(format!("{name}.gguf"));
    let options = nibble::convert::Options { output: Some(path.clone()), ..nibble::convert::Options::new(recipe) };
    let job = Job::prepare(source, options).expect("a conversion");
    job.execute(&(), &std::sync::atomic::AtomicBool::new(false)).expect("a conversion");
    path
}

/// Anonymous memory of this process, in bytes: mapped weights are not of it. 0 where the system does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}
