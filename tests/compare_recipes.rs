//! `nibble compare-recipes`: what it makes, what it measures, and what it does not do twice.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::SystemTime;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, files, folder, has, yi_nano};

/// A folder to work in, with two texts.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: folder() };
        let chinese = "话说宋江在梁山泊，黛玉听了这话，不觉笑道：且听下回分解。".repeat(60);
        fs::write(place.path("一.txt"), chinese).unwrap();
        fs::write(place.path("other.txt"), "Once upon a time there was a king. ".repeat(200)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Runs the command on the tests' model, in the folder `out`.
    fn run(&self, arguments: &[&str]) -> Output {
        self.run_on(&yi_nano().display().to_string(), arguments)
    }

    fn run_on(&self, source: &str, arguments: &[&str]) -> Output {
        let out = self.arg("out");
        let fixed = ["compare-recipes", source, "-o", &out];
        support::nibble(fixed.iter().chain(arguments))
    }

    /// Runs it on the Chinese text, with small windows.
    fn run_on_text(&self, arguments: &[&str]) -> Output {
        let text = format!("zh={}", self.arg("一.txt"));
        let fixed = ["--text", &text, "--window", "64", "--windows", "8", "--resamples", "100", "-t", "1"];
        self.run(&[&fixed[..], arguments].concat())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("out/report.json")).unwrap()).unwrap()
    }

    fn made(&self, name: &str) -> SystemTime {
        self.path(name).metadata().unwrap().modified().unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn names(json: &Value) -> Vec<String> {
    let candidates = json["candidates"].as_array().unwrap();
    candidates.iter().map(|c| c["file"]["name"].as_str().unwrap().to_string()).collect()
}

/// Everything that was measured.
fn numbers(json: &Value) -> Value {
    serde_json::json!([json["candidates"], json["pairs"], json["reference"], json["slices"]])
}

#[test]
fn every_recipe_is_made_once_and_all_are_in_one_report() {
    let place = Place::new();
    let recipes = ["--recipes", "q2_k,Q4_K_M"];
    let shown = support::stdout(&place.run_on_text(&recipes));
    has(&shown, &["Q4_K_M beats Q2_K: KLD -", "Relative error by role", "report.html"]);
    let json = place.json();
    assert_eq!(names(&json), ["yi-nano-Q2_K", "yi-nano-Q4_K_M"]);
    assert_eq!(
        (&json["reference"]["trace_k"], &json["reference"]["file"]["name"]),
        (&512.into(), &"yi-nano-BF16".into())
    );
    assert_eq!(json["pairs"].as_array().unwrap().len(), 1);
    assert!(json["candidates"][0]["weights"]["tensors"].as_array().unwrap().len() > 30);
    for name in ["yi-nano-BF16.gguf", "yi-nano-Q2_K.gguf", "yi-nano-Q4_K_M.gguf", "yi-nano.trace", "report.csv"] {
        assert!(place.path("out").join(name).exists(), "{name}");
    }

    // What is there is not made again, and one more recipe is measured beside those that are known.
    let measured = ["out/yi-nano-Q2_K.measured", "out/yi-nano.trace", "out/yi-nano-Q2_K.gguf"];
    let before = measured.map(|name| place.made(name));
    support::stdout(&place.run_on_text(&["--recipes", "Q2_K,Q4_K_M,Q8_0"]));
    assert_eq!(measured.map(|name| place.made(name)), before);
    let more = place.json();
    assert_eq!(names(&more), ["yi-nano-Q2_K", "yi-nano-Q4_K_M", "yi-nano-Q8_0"]);
    assert_eq!(more["candidates"][0]["overall"], json["candidates"][0]["overall"]);

    // With another text what was measured is of no use, which is said, and the files are.
    let gguf = place.made("out/yi-nano-Q2_K.gguf");
    fs::copy(place.path("other.txt"), place.path("一.txt")).unwrap();
    let out = place.run_on_text(&recipes);
    support::stdout(&out);
    has(&said(&out), &["yi-nano.trace was made from other texts", "yi-nano-Q2_K was measured with other texts"]);
    assert_eq!(place.made("out/yi-nano-Q2_K.gguf"), gguf);
    assert_ne!(place.json()["slices"][0]["blake3"], json["slices"][0]["blake3"]);
}

#[test]
fn one_at_a_time_gives_the_same_report_and_leaves_no_model() {
    let place = Place::new();
    let recipes = ["--recipes", "Q4_0,Q8_0"];
    support::stdout(&place.run_on_text(&recipes));
    let all = place.json();
    let other = Place::new();
    support::stdout(&other.run_on_text(&[&recipes[..], &["--one-at-a-time"]].concat()));
    let mut one = other.json();
    // Files lie in another folder.
    for i in 0..2 {
        one["candidates"][i]["file"]["path"] = all["candidates"][i]["file"]["path"].clone();
    }
    one["reference"]["file"]["path"] = all["reference"]["file"]["path"].clone();
    one["slices"][0]["path"] = all["slices"][0]["path"].clone();
    assert_eq!(numbers(&one), numbers(&all));
    let left = files(&other.path("out"));
    assert!(left.iter().all(|name| !name.contains(".gguf")), "{left:?}");

    // Done is done: nothing is made again, and the report is the same without the trace's model and the files.
    let trace = other.made("out/yi-nano.trace");
    fs::remove_file(other.path("out/report.json")).unwrap();
    let out = other.run_on_text(&[&recipes[..], &["--one-at-a-time"]].concat());
    support::stdout(&out);
    assert_eq!(said(&out), "");
    assert_eq!(other.made("out/yi-nano.trace"), trace);
    assert_eq!(files(&other.path("out")), left);
    assert_eq!(numbers(&other.json())[1], numbers(&all)[1]);
}

#[test]
fn without_a_text_weights_are_compared_with_the_checkpoint_itself() {
    let place = Place::new();
    has(&support::stdout(&place.run(&["--recipes", "IQ4_XS"])), &["Relative", "ffn_down"]);
    let json = place.json();
    assert_eq!(json["reference"]["file"]["name"], "yi-nano");
    assert!(json["candidates"][0]["overall"].is_null() && json["candidates"][0]["weights"].is_object());
    assert!(!place.path("out/yi-nano-BF16.gguf").exists());
}

#[test]
fn importance_is_made_first_and_recipes_that_use_it_are_made_both_ways() {
    let place = Place::new();
    let calibrate = [place.arg("other.txt"), place.arg("一.txt")];
    let arguments = ["--recipes", "Q2_K,Q8_0", "--calibrate", &calibrate[0], &calibrate[1]];
    support::stdout(&place.run_on_text(&arguments));
    let json = place.json();
    let mut found = names(&json);
    found.sort();
    assert_eq!(found, ["yi-nano-Q2_K", "yi-nano-Q2_K-importance", "yi-nano-Q8_0"]);
    let with = json["candidates"].as_array().unwrap().iter().find(|c| !c["file"]["importance"].is_null()).unwrap();
    assert_eq!(with["file"]["importance"], "yi-nano-imatrix");
    // The file may be given, too: it is the same importance.
    let imatrix = place.arg("out/yi-nano-imatrix.gguf");
    let before = place.made("out/yi-nano-Q2_K-importance.measured");
    support::stdout(&place.run_on_text(&["--recipes", "Q2_K,Q8_0", "--importance", &imatrix]));
    assert_eq!(place.made("out/yi-nano-Q2_K-importance.measured"), before);
}

#[test]
fn a_gguf_needs_no_copy_and_is_never_removed() {
    let place = Place::new();
    let gguf = support::convert(&yi_nano(), &place.path("source.gguf"), &["-q", "BF16"]);
    let text = place.arg("一.txt");
    let arguments = ["--text", &text, "--window", "64", "--windows", "6", "--recipes", "Q4_0", "--one-at-a-time"];
    support::stdout(&place.run_on(&gguf.display().to_string(), &arguments));
    assert!(gguf.exists());
    assert_eq!(names(&place.json()), ["source-Q4_0"]);
    let left = files(&place.path("out"));
    assert!(left.iter().all(|name| !name.ends_with(".gguf")), "{left:?}");
}

#[test]
fn what_is_needed_is_said_before_anything_is_done() {
    let place = Place::new();
    let shown = support::stdout(&place.run(&["--dry-run", "--text", &place.arg("一.txt")]));
    assert!(!shown.contains("F16"), "{shown}");
    has(&shown, &["yi-nano-Q8_0\n", "yi-nano-Q4_K_M\n", "out: ", " MB needed, ", " free"]);
    let shown = support::stdout(&place.run(&["--dry-run", "--recipes", "Q8_0", "--one-at-a-time"]));
    has(&shown, &["MB needed at a time, "]);
    assert!(!place.path("out").exists());
}

#[test]
fn wrong_arguments_get_one_sentence() {
    let place = Place::new();
    let refused = |arguments: &[&str]| support::error(&place.run(arguments));
    has(&support::error(&place.run_on("absent", &[])), &["absent: no such file or folder"]);
    has(&refused(&["--recipes", "Q4_K_X"]), &["there is no recipe 'Q4_K_X'"]);
    has(&refused(&["--text", "a=absent.txt"]), &["cannot read absent.txt"]);
    has(&refused(&["--calibrate", "absent.txt"]), &["cannot read absent.txt"]);
    has(&refused(&["--importance", &place.arg("一.txt"), "--recipes", "Q2_K"]), &["一.txt"]);
    // A file that nobody knows is not replaced.
    fs::create_dir_all(place.path("out")).unwrap();
    fs::write(place.path("out/yi-nano-Q8_0.gguf"), "mine").unwrap();
    let said = refused(&["--recipes", "Q8_0"]);
    has(&said, &["yi-nano-Q8_0.gguf exists, and nothing records what it was made from; move it away", "-o"]);
    assert_eq!(fs::read(place.path("out/yi-nano-Q8_0.gguf")).unwrap(), b"mine");
}
