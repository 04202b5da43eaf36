//! Types that are chosen for a size: files keep to it, are nearer to the original than a recipe of that size, and can be made
//! again from the recipe that was saved.

use std::fs;
use std::path::Path;

use nibble::gguf::Gguf;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{self, convert, error, halves, has, nibble, stdout, yi_nano};

/// Tokens where it does not matter how well types are chosen.
const FEW: &str = "1024";

fn with<'a>(text: &'a Path, n_tokens: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--calibration", text.to_str().unwrap(), "--calibration-tokens", n_tokens];
    args.extend(more);
    args
}

fn types(path: &Path) -> Vec<(String, String)> {
    let gguf = Gguf::open(path).unwrap();
    gguf.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.ty.to_string())).collect()
}

fn said(more: &[&str]) -> std::process::Output {
    let source = yi_nano();
    nibble(["convert", source.to_str().unwrap()].iter().chain(more))
}

#[test]
fn a_file_keeps_to_its_size_and_is_made_again_from_the_recipe_that_was_saved() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, _) = halves(dir.path());
    for (name, rounding) in [("nearest", vec![]), ("full", with(&text, FEW, &["--rounding", "full"]))] {
        let file = at(&format!("{name}.gguf"));
        let target = ["--target-size", "4.25MB", "--type", "blk.1.ffn_up.weight=Q8_0"];
        let measured = if name == "nearest" { with(&text, FEW, &target) } else { [&rounding, &target[..]].concat() };
        convert(&yi_nano(), &file, &measured);
        let bytes = fs::metadata(&file).unwrap().len();
        assert!((4_245_750..=4_250_000).contains(&bytes), "{name}: {bytes}");
        let types = types(&file);
        assert!(types.contains(&("blk.1.ffn_up.weight".to_string(), "Q8_0".to_string())));
        assert!(types.contains(&("output_norm.weight".to_string(), "F32".to_string())));
        let mut several: Vec<&str> = types.iter().map(|(_, ty)| ty.as_str()).collect();
        several.sort_unstable();
        several.dedup();
        assert!(several.len() > 3, "{several:?}");

        // The recipe has the same types, and makes the same file if the flags that override it are given again.
        let recipe = at(&format!("{name}.gguf.recipe.toml"));
        let again = at(&format!("{name}-again.gguf"));
        let recipe = ["-q", recipe.to_str().unwrap()];
        convert(&yi_nano(), &again, &[&rounding[..], &recipe, &["--type", "blk.1.ffn_up.weight=Q8_0"]].concat());
        assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "{name}");
        let without = at(&format!("{name}-without.gguf"));
        convert(&yi_nano(), &without, &recipe);
        assert_eq!(types, self::types(&without));

        let source = yi_nano();
        let verify = ["verify", file.to_str().unwrap(), "--source", source.to_str().unwrap()];
        let report = stdout(&nibble(verify.iter().chain(&rounding)));
        has(&report, &["recipe 4.25MB", "39 of 39 identical"]);
    }
}

#[test]
fn it_is_nearer_to_the_original_than_a_recipe_of_the_same_size() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (text, other) = halves(dir.path());
    let original = convert(&yi_nano(), &at("original.gguf"), &["-q", "BF16"]);
    let recipe = convert(&yi_nano(), &at("recipe.gguf"), &["-q", "Q4_K_M"]);
    let size = fs::metadata(&recipe).unwrap().len().to_string();
    let chosen = at("chosen.gguf");
    let args = with(&text, "4096", &["--target-size", &size, "--json", "-o", chosen.to_str().unwrap()]);
    let summary: Value = serde_json::from_str(&stdout(&said(&args))).unwrap();
    let predicted = summary["allocation"]["predicted_kld"].as_f64().unwrap();
    let text = format!("by={}", other.display());
    let results = at("results.json");
    let compare =
        ["compare", "--window", "128", "--windows", "40", "--text", &text, "--json", results.to_str().unwrap()];
    let files = [&original, &recipe, &chosen].map(|path| path.to_str().unwrap());
    stdout(&nibble(compare.iter().chain(&files)));
    let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
    let kld = |name: &str| support::candidate(&results, name)["overall"]["kld"]["value"].as_f64().unwrap();
    let (plain, better) = (kld("recipe"), kld("chosen"));
    assert!(better < 0.9 * plain, "{better} instead of {plain}");
    assert!(predicted > 0.5 * better && predicted < 2.0 * better, "{predicted} predicted, {better} found");
}

#[test]
fn a_plan_for_a_size_is_shown_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    let (text, _) = halves(dir.path());
    let output = dir.path().join("out.gguf");
    let plan = |more: &[&str]| {
        let args = with(&text, FEW, &[more, &["--dry-run", "-o", output.to_str().unwrap()]].concat());
        stdout(&said(&args))
    };
    let bits = plan(&["--target-bpw", "4.5"]);
    has(
        &bits,
        &["token_embd.weight", "nats a token", "predicted KL divergence", " 4.50 bits per weight", "would write"],
    );
    // The KV cache and the buffers of a context of 512 tokens, and 1 GiB for the system.
    let fit = |memory: &str| -> Value { serde_json::from_str(&plan(&["--fit", memory, "--json"])).unwrap() };
    let beside = (1 << 30) + 512 * 512 * 2 * 2 + 512 * (3600 * 4 + 512 * 2) + 6400 * 8;
    let json = fit("1.087GB");
    assert_eq!(json["allocation"]["most_bytes"], 1_087_000_000 - beside);
    assert!(json["outputs"][0]["bytes"].as_u64().unwrap() <= 1_087_000_000 - beside);
    // Where there is more memory than 16 bits need, they are kept.
    let json = fit("2GB");
    assert_eq!(json["allocation"]["predicted_kld"], 0.0);
    assert!(json["bits_per_weight"].as_f64().unwrap() > 15.9);
    // How slow types are is said, and only once for each.
    let fast = ["--target-bpw", "8", "--prefer", "speed", "--dry-run", "-o", output.to_str().unwrap()];
    let output = said(&with(&text, FEW, &fast));
    has(&stdout(&output), &["predicted KL divergence"]);
    let times = String::from_utf8_lossy(&output.stderr).into_owned();
    has(&times, &["the fastest type being 1: ", " 1.0"]);
    assert_eq!(times.matches("Q4_K ").count(), 1, "{times}");
    assert_eq!(support::files(dir.path()), ["by.txt", "for.txt"]);
}

#[test]
fn what_cannot_be_chosen_for_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let (text, _) = halves(dir.path());
    for (more, wanted) in [
        (&["--target-size", "1MB"][..], "but the smallest types make a larger one"),
        (&["--target-size", "1GiB"], "but 16 bits for each weight make a smaller one"),
        (&["--target-bpw", "2"], "it can have 2"),
        (&["--fit", "1GB"], "would fit in 1.00 GB, but the smallest types make a larger one"),
    ] {
        let output = dir.path().join("out.gguf");
        let said = error(&said(&with(&text, FEW, &[more, &["-o", output.to_str().unwrap()]].concat())));
        assert!(said.contains(wanted), "{said}");
    }
    assert_eq!(support::files(dir.path()), ["by.txt", "for.txt"]);
}
