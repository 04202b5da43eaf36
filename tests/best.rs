//! `convert --best`: the file is nearer to the original, what it says about that is what running the models says, and it is
//! not made twice.

use std::fs;
use std::path::Path;

use nibble::arch::ARCHITECTURES;
use nibble::calibration::Text;
use nibble::calibration::text::BUILT_IN;
use nibble::evaluate::layerwise::{LayerComparison, Options};
use nibble::gguf::Gguf;
use nibble::pass::Source;
use nibble::recipe::{self, Recipe};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{candidate as candidate_of, convert, error, files, has, nibble, stdout, yi_nano};

fn convert_args<'a>(output: &'a Path, more: &[&'a str]) -> Vec<String> {
    let args = ["convert", yi_nano().to_str().unwrap(), "-o", output.to_str().unwrap()].map(str::to_string);
    args.into_iter().chain(more.iter().map(ToString::to_string)).collect()
}

#[test]
fn it_is_nearer_to_the_original_at_the_same_size_and_says_by_how_much() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let plain = Gguf::open(&convert(&yi_nano(), &at("plain.gguf"), &["-q", "Q4_K_M"])).unwrap();
    let best = at("best.gguf");
    // Fewer tokens than the default, for the time that it takes.
    let few = ["--best", "--calibration-tokens", "4096"];
    let made: Value =
        serde_json::from_str(&stdout(&nibble(convert_args(&best, &[&few[..], &["--json"]].concat())))).unwrap();
    let comparison = &made["comparison"];
    let ratio = &comparison["ratio"];
    assert!(ratio["value"].as_f64().unwrap() < 0.7, "{comparison}");
    assert!(ratio["interval"][1].as_f64().unwrap() < 0.8, "{comparison}");
    assert!(comparison["made"]["same_top"]["value"].as_f64() > comparison["nearest"]["same_top"]["value"].as_f64());
    assert_eq!(comparison["texts"].as_array().unwrap().len(), 4);
    let gguf = Gguf::open(&best).unwrap();
    assert_eq!(plain.tensors(), gguf.tensors());
    // Built-in texts are recorded by what is in them, as others are.
    let recorded = gguf.metadata().str("nibble.rounding").unwrap();
    let hashes = BUILT_IN.iter().map(|text| format!("1024 tokens of {}", blake3::hash(text.text.as_bytes()).to_hex()));
    assert!(recorded.starts_with("full, ") && recorded.ends_with(&hashes.collect::<Vec<_>>().join(", ")), "{recorded}");
    assert_eq!(files(dir.path()), ["best.gguf", "plain.gguf"]);

    // It is --rounding full, and verifies as such.
    let source = yi_nano();
    let verify = ["verify", best.to_str().unwrap(), "--source", source.to_str().unwrap(), "--rounding", "full"];
    stdout(&nibble(verify.iter().chain(&few[1..]).chain(&["--sample", "20%", "--seed", "3"])));

    // The same command compares it again, and leaves it as it is. Another one does not replace it.
    let before = (fs::read(&best).unwrap(), best.metadata().unwrap().modified().unwrap());
    let again = nibble(convert_args(&best, &few));
    has(
        &String::from_utf8_lossy(&again.stderr),
        &["best.gguf was made by this command before", "--force makes it anew"],
    );
    has(
        &stdout(&again),
        &["nats from the original instead of ", " with plain Q4_K_M, 0.", ", at the same size. The most"],
    );
    let again = nibble(convert_args(&best, &[&few[..], &["--json"]].concat()));
    assert_eq!(&serde_json::from_str::<Value>(&stdout(&again)).unwrap()["comparison"], comparison);
    for other in [&["--best", "-q", "Q4_K_S"][..], &["--best", "--calibration-tokens", "2048"]] {
        has(&error(&nibble(convert_args(&best, other))), &["best.gguf exists already; pass --force"]);
    }
    assert!(before == (fs::read(&best).unwrap(), best.metadata().unwrap().modified().unwrap()));
}

/// The same windows: layer by layer, and by llama.cpp, which rounds what enters a matrix to 8 bits.
#[test]
fn it_agrees_with_running_the_models() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let original = convert(&yi_nano(), &at("original.gguf"), &["-q", "BF16"]);
    let file = convert(&yi_nano(), &at("file.gguf"), &["-q", "Q4_K_S"]);
    let source = Source::open(&yi_nano(), ARCHITECTURES, false, None).unwrap();
    let recipe = Recipe::find("Q4_0").unwrap();
    let plan = recipe::plan(recipe, &source.topology, &source.tensors, false, &[]).unwrap();
    // All windows of each, in the order of the text.
    let options = Options { n_tokens: 1 << 24, window: Some(256), ..Options::new(Text::built_in(), 4096) };
    let comparison = LayerComparison::prepare(&source, &plan, &file, dir.path(), options).unwrap();
    let outcome = comparison.execute(&|_| ()).unwrap();

    let other = convert(&yi_nano(), &at("other.gguf"), &["-q", "Q4_0"]);
    let results = at("results.json");
    let mut args = vec!["compare".to_string(), "--window".into(), "256".into()];
    // In the conversations, it reads markers as text.
    for text in &BUILT_IN[..3] {
        let path = at(&format!("{}.txt", text.name));
        fs::write(&path, text.held_out).unwrap();
        args.extend(["--text".to_string(), format!("{}={}", text.name, path.display())]);
    }
    args.extend(["--json".to_string(), results.to_str().unwrap().to_string()]);
    args.extend([&original, &file, &other].map(|path| path.to_str().unwrap().to_string()));
    stdout(&nibble(args));
    let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
    for (i, text) in outcome.texts[..3].iter().enumerate() {
        for (candidate, found) in [("file", text.made.value), ("other", text.nearest.value)] {
            let wanted = candidate_of(&results, candidate)["slices"][i]["kld"]["value"].as_f64().unwrap();
            println!("{}, {candidate}: {found} layer by layer, {wanted} by llama.cpp", text.name);
            assert!((found / wanted - 1.0).abs() < 0.1, "{}: {found} instead of {wanted}", text.name);
        }
    }
}

#[test]
fn it_takes_the_texts_that_are_given_and_holds_out_what_it_did_not_read_of_them() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("best.gguf");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/english.md");
    let more =
        ["--best", "-q", "Q4_0", "--calibration", text.to_str().unwrap(), "--calibration-tokens", "1024", "--json"];
    let made: Value = serde_json::from_str(&stdout(&nibble(convert_args(&output, &more)))).unwrap();
    let names: Vec<_> =
        made["comparison"]["texts"].as_array().unwrap().iter().map(|text| text["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["english", "chinese", "code", "chat", "english"]);
    assert!(made["comparison"]["texts"][4]["path"].as_str().unwrap().ends_with("english.md"));
}

#[test]
fn what_contradicts_it_is_one_sentence() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("out.gguf");
    for (more, wanted) in [
        (&["--best", "--rounding", "nearest"][..], "--best is --rounding full and more; leave out --rounding nearest"),
        (&["--best", "--rounding", "compensated"], "leave out --rounding compensated"),
        (&["--best", "-q", "BF16"], "BF16 rounds no matrix, so there is nothing for --best to do better"),
        (&["--calibration", "text.txt"], "--calibration is for --rounding compensated and full"),
    ] {
        has(&error(&nibble(convert_args(&output, more))), &[wanted]);
    }
    let adapter = TempDir::new().unwrap();
    fs::write(adapter.path().join("adapter_config.json"), "{}").unwrap();
    let refused = error(&nibble(["convert", adapter.path().to_str().unwrap(), "--best"]));
    has(&refused, &["an adapter is small and rounded to nearest; leave out --best"]);
    // The plan is that of the recipe.
    has(&stdout(&nibble(convert_args(&output, &["--best", "--rounding", "full", "--dry-run"]))), &["Q4_K"]);
    assert!(files(dir.path()).is_empty());
}
