//! `scripts/compare-recipes`: what it converts, with the program; and what it would have compared, with a stand-in that
//! notes its arguments.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::{files, folder, has, yi_nano};

/// A folder to work in, with the stand-in.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("target/release")).unwrap();
        fs::create_dir_all(at("bin")).unwrap();
        // Converts; of all else, which a model would have to run for, only the files.
        let stand_in = format!(
            "#!/usr/bin/env bash\nset -euo pipefail\nprintf '%s\\n' \"$*\" >>{log:?}\ncase $1 in\n  \
             compare | trace | calibrate)\n    for ((i = 1; i < $#; i++)); do\n      next=$((i + 1))\n      \
             case ${{!i}} in --report | --json | --csv | -o) echo x >\"${{!next}}\" ;; esac\n    done ;;\n  \
             *) exec {nibble:?} \"$@\" ;;\nesac\n",
            log = at("log"),
            nibble = env!("CARGO_BIN_EXE_nibble"),
        );
        for (name, text) in [("target/release/nibble", stand_in.as_str()), ("bin/cargo", "#!/bin/sh\n")] {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(at("一.txt"), "零一万物").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the script there, and gives what it had the program do beside conversions that change nothing.
    fn run(&self, arguments: &[&str]) -> (Output, Vec<String>) {
        fs::write(self.path("log"), "").unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/compare-recipes");
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .arg(script)
            .args(arguments)
            .current_dir(self.dir.path())
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", self.path("target"))
            .output()
            .unwrap();
        let log = fs::read_to_string(self.path("log")).unwrap();
        let is_work = |line: &&str| !["--version", "quants", "--dry-run"].iter().any(|word| line.contains(word));
        (output, log.lines().filter(is_work).map(str::to_string).collect())
    }

    fn work(&self, arguments: &[&str]) -> Vec<String> {
        let (output, work) = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        work
    }

    fn error(&self, arguments: &[&str]) -> String {
        let (output, work) = self.run(arguments);
        assert_eq!((output.status.code(), work), (Some(1), vec![]));
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn every_recipe_is_made_once_and_all_are_compared() {
    let place = Place::new();
    let nano = yi_nano().display().to_string();
    let wanted = [nano.as_str(), "--only", "q4_k_m,Q8_0", "--text", "zh=一.txt", "-o", "out"];
    let compared = "compare out/yi-nano-BF16.gguf out/yi-nano-Q4_K_M.gguf out/yi-nano-Q8_0.gguf --text zh=一.txt \
                    --weights --report out/report.html --json out/report.json --csv out/report.csv --force";
    let work = place.work(&wanted);
    let convert = |recipe: &str| format!("convert {nano} -q {recipe} -o out/yi-nano-{recipe}.gguf");
    assert_eq!(work, [convert("BF16"), convert("Q4_K_M"), convert("Q8_0"), compared.to_string()]);
    assert!(place.path("out/yi-nano-Q8_0.gguf").exists());

    // What is there is not made again; what is gone is, and with other arguments all of it.
    assert_eq!(place.work(&wanted), [compared]);
    fs::remove_file(place.path("out/yi-nano-Q8_0.gguf")).unwrap();
    assert_eq!(place.work(&wanted), [convert("Q8_0"), compared.to_string()]);
}

#[test]
fn without_a_text_weights_are_compared_with_the_checkpoint_itself() {
    let place = Place::new();
    let nano = yi_nano().display().to_string();
    let work = place.work(&[&nano, "--only", "IQ4_XS"]);
    assert_eq!(work.len(), 2);
    has(&work[1], &[&format!("compare {nano} yi-nano-recipes/yi-nano-IQ4_XS.gguf --weights")]);
}

#[test]
fn one_at_a_time_leaves_the_results_and_no_model() {
    let place = Place::new();
    let nano = yi_nano().display().to_string();
    let wanted = [&nano, "--only", "Q4_0,Q8_0", "--text", "一.txt", "--one-at-a-time", "-o", "out"];
    let work = place.work(&wanted);
    has(&work[1], &["trace out/yi-nano-BF16.gguf --text 一.txt -o out/yi-nano.trace"]);
    has(&work[3], &["compare out/yi-nano.trace out/yi-nano-Q4_0.gguf --report out/yi-nano-Q4_0.html"]);
    has(&work[4], &[&format!("compare {nano} out/yi-nano-Q4_0.gguf --weights")]);
    assert_eq!(work.len(), 8);
    let left = files(&place.path("out"));
    assert!(left.iter().all(|name| !name.ends_with(".gguf")), "{left:?}");
    assert_eq!(left.iter().filter(|name| name.ends_with(".html")).count(), 4);
    // Done is done.
    assert_eq!(place.work(&wanted), [""; 0]);
    // A GGUF needs no copy, and is never removed.
    let work = place.work(&[&nano, "--only", "Q8_0", "-o", "source"]);
    assert_eq!(work.len(), 2);
    let gguf = "source/yi-nano-Q8_0.gguf";
    let work = place.work(&[gguf, "--only", "Q4_0", "--text", "一.txt", "--one-at-a-time", "-o", "from"]);
    has(&work[0], &["trace source/yi-nano-Q8_0.gguf"]);
    assert!(place.path(gguf).exists());
}

#[test]
fn importance_is_made_before_what_needs_it() {
    let place = Place::new();
    let nano = yi_nano().display().to_string();
    // The stand-in's importance is none, which the conversion finds out.
    let (output, work) = place.run(&[&nano, "--calibrate", "一.txt", "--only", "Q2_K", "-o", "out"]);
    assert!(!output.status.success());
    has(&work[1], &["calibrate out/yi-nano-BF16.gguf 一.txt -o out/yi-nano-imatrix.gguf"]);
    has(&work[2], &["-q Q2_K --importance out/yi-nano-imatrix.gguf -o out/yi-nano-Q2_K.gguf"]);
}

#[test]
fn what_is_needed_is_said_before_anything_is_done() {
    let place = Place::new();
    let nano = yi_nano().display().to_string();
    let (output, work) = place.run(&[&nano, "--dry-run", "--text", "一.txt"]);
    assert_eq!(work, [""; 0]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!said.contains("F16"), "{said}");
    has(&said, &["Q8_0,Q6_K,", " in yi-nano-recipes: ", " GB needed, ", " GB free"]);
    let (output, _) = place.run(&[&nano, "--dry-run", "--only", "Q8_0"]);
    has(&String::from_utf8(output.stdout).unwrap(), &["Q8_0 in yi-nano-recipes: 0.01 GB needed"]);
    assert_eq!(files(place.dir.path()), ["bin", "log", "target", "一.txt"]);
}

#[test]
fn wrong_arguments_get_one_sentence() {
    let place = Place::new();
    let nano = yi_nano().display().to_string();
    has(&place.error(&["absent"]), &["absent: no such file or folder"]);
    has(&place.error(&[&nano, "--only", "Q4_K_X"]), &["there is no recipe 'Q4_K_X'"]);
    has(&place.error(&[&nano, "--text"]), &["--text wants a value"]);
    has(&place.error(&[&nano, "--calibrate", "--dry-run"]), &["--calibrate wants a value"]);
    has(&place.error(&[&nano, "other"]), &["'other' is one checkpoint too many"]);
    has(&place.error(&[&nano, "--text", "a=absent.txt"]), &["absent.txt"]);
    has(&place.error(&[&nano, "--importance", "一.txt", "--calibrate", "一.txt"]), &["not both"]);
    let (output, _) = place.run(&["--help"]);
    has(&String::from_utf8(output.stderr).unwrap(), &["scripts/compare-recipes Yi-6B", "--one-at-a-time"]);
}
