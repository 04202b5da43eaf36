//! Measuring a model's speed, on the tiny Yi that comes with the tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nibble::bench::{self, Cost, Event, Plan, Test};
use nibble::engine::SessionOptions;
use nibble::gguf::Gguf;
use nibble::llama::{KvType, Model, ModelOptions};
use nibble::placement::Shape;
use serde_json::Value;

use crate::support::{Variation, convert, error, files, folder, has, nibble, stdout, yi_nano};

fn converted(folder: &Path, recipe: &str) -> PathBuf {
    convert(&yi_nano(), &folder.join(format!("{recipe}.gguf")), &["-q", recipe])
}

fn cost(path: &Path, kv_type: KvType) -> Cost {
    let gguf = Gguf::open(path).unwrap();
    Cost::of(gguf.metadata(), gguf.tensors(), &Shape::of(&gguf), kv_type.into())
}

#[test]
fn the_bytes_of_a_token_are_those_of_the_configuration() {
    let dir = folder();
    let nano = Variation::of_yi_nano();
    let number = |key: &str| nano.config[key].as_u64().unwrap();
    let (hidden, ffn, vocab) = (number("hidden_size"), number("intermediate_size"), number("vocab_size"));
    let (layers, heads, kv_heads) =
        (number("num_hidden_layers"), number("num_attention_heads"), number("num_key_value_heads"));
    let kv_width = hidden / heads * kv_heads;
    let matrices = layers * (2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * ffn);
    let norms = (2 * layers + 1) * hidden;
    // The output, and one row of the embedding.
    let tables = vocab * hidden + hidden;
    for (recipe, numerator, denominator) in [("F32", 4, 1), ("F16", 2, 1), ("Q8_0", 34, 32)] {
        let found = cost(&converted(dir.path(), recipe), KvType::F16);
        assert_eq!(found.weights, (matrices + tables) * numerator / denominator + norms * 4, "{recipe}");
        assert_eq!(found.kv_a_token, layers * kv_width * 2 * 2);
    }
    // Of any file: what it has, but for the rows of the embedding that are not looked up.
    let file = converted(dir.path(), "Q4_K_M");
    let gguf = Gguf::open(&file).unwrap();
    let embedding = gguf.data(gguf.index_of("token_embd.weight").unwrap()).len() as u64;
    let all: u64 = (0..gguf.tensors().len()).map(|i| gguf.data(i).len() as u64).sum();
    assert_eq!(cost(&file, KvType::Q8_0).weights, all - embedding + embedding / vocab);
    assert_eq!(cost(&file, KvType::Q8_0).kv_a_token, layers * kv_width * 2 * 34 / 32);
}

#[test]
fn an_embedding_that_serves_as_the_output_is_read_whole() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    nano.tensors.retain(|tensor| tensor.name != "lm_head.weight");
    nano.config.insert("tie_word_embeddings".to_string(), true.into());
    nano.write_single(dir.path());
    let tied = convert(dir.path(), &dir.path().join("tied.gguf"), &["-q", "F16"]);
    let untied = cost(&converted(dir.path(), "F16"), KvType::F16).weights;
    // All that differs is the row that is looked up.
    assert_eq!(cost(&tied, KvType::F16).weights, untied - 256 * 2);
}

#[test]
fn bench_measures_what_it_is_asked_for() {
    let dir = folder();
    let model = converted(dir.path(), "Q4_K_M");
    let (model, file) = (model.to_str().unwrap(), dir.path().join("result.json"));
    let arguments = ["-p", "8,40", "-n", "6", "-d", "0,20", "-r", "3", "-t", "1,2", "--json"];
    let more = ["-o", file.to_str().unwrap()];
    let text = stdout(&nibble(["bench", model].iter().chain(&arguments).chain(&more)));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["interrupted"], false);
    assert_eq!(json["model"]["type"], "Q4_K_M");
    assert_eq!(json["model"]["weight_bytes_per_token"], cost(Path::new(model), KvType::F16).weights);
    assert_eq!(json["settings"]["context"], 40);
    assert_eq!(json["settings"]["threads"], serde_json::json!([1, 2]));
    assert!(json["machine"]["llama_cpp"].as_str().unwrap().contains("CPU"), "{json}");

    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"));
    let results = json["results"].as_array().unwrap();
    let tests: Vec<_> = results
        .iter()
        .map(|r| (r["threads"].as_u64(), r["test"].as_str(), r["tokens"].as_u64(), r["depth"].as_u64()))
        .map(|(threads, test, tokens, depth)| (threads.unwrap(), test.unwrap(), tokens.unwrap(), depth.unwrap()))
        .collect();
    let each = |threads| {
        [(threads, "read", 8, 0), (threads, "read", 40, 0), (threads, "write", 6, 0), (threads, "write", 6, 20)]
    };
    assert_eq!(tests, [each(1), each(2)].concat());
    for result in results {
        let runs = result["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 3);
        let mut rates = vec![];
        for run in runs {
            let (seconds, rate) = (number(&run["seconds"]), number(&run["tokens_per_second"]));
            assert!(seconds > 0.0 && (rate * seconds / number(&result["tokens"]) - 1.0).abs() < 1e-9);
            assert_eq!(number(&run["sampling_seconds"]) > 0.0, result["test"] == "write");
            rates.push(rate);
        }
        rates.sort_by(f64::total_cmp);
        let spread = &result["tokens_per_second"];
        let found = ["lowest", "median", "highest"].map(|key| number(&spread[key]));
        assert_eq!(found, [rates[0], rates[1], rates[2]]);
        assert!(number(&spread["mean"]) >= rates[0] && number(&spread["deviation"]) >= 0.0);
        match result["test"].as_str() {
            Some("read") => {
                assert!(result["bytes_per_token"].is_null() && result["sampling_seconds_per_token"].is_null())
            }
            _ => assert!(number(&result["bytes_per_token"]) > number(&json["model"]["weight_bytes_per_token"])),
        }
    }
    let memory = json["memory"].as_array().unwrap();
    assert_eq!(memory.len(), 2);
    for found in memory {
        assert!(found["passes"].as_array().unwrap().len() >= 3);
        assert!(number(&found["best_bytes_per_second"]) >= number(&found["median_bytes_per_second"]));
    }

    let refused = nibble(["bench", model, "-r", "1", "--no-memory", "-p", "1", "-n", "0"].iter().chain(&more));
    has(&error(&refused), &["result.json", "exists already", "--force"]);
    let forced = ["bench", model, "-r", "1", "--no-memory", "-p", "1", "-n", "0", "--force"];
    stdout(&nibble(forced.iter().chain(&more)));
    assert_ne!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn bench_prints_a_table_and_what_it_means() {
    let dir = folder();
    let model = converted(dir.path(), "Q4_K_M");
    let arguments = ["-p", "8", "-n", "4", "-d", "0,30", "-r", "2", "-t", "1"];
    let text = stdout(&nibble(["bench", model.to_str().unwrap()].iter().chain(&arguments)));
    has(&text, &["yi-nano, Q4_K_M, 6.42 M weights", "threads 1, context 34, KV cache f16", "the median of 2 runs"]);
    has(&text, &["Tokens/s", "read 8 ", "write 4 ", "write 4 after 30", "This machine reads", "B/s with 1 thread;"]);
    has(&text, &["this model reads", "it does"]);
    // In the order of the tests.
    let at = |word: &str| text.find(word).unwrap();
    assert!(at("read 8 ") < at("write 4 ") && at("write 4 ") < at("write 4 after 30"));
    let quick = ["-p", "8", "-n", "0", "-r", "1", "-t", "1,2"];
    let text = stdout(&nibble(["bench", model.to_str().unwrap()].iter().chain(&quick)));
    has(&text, &["Fastest at 'read 8': ", "a single run"]);
    assert!(!text.contains("This machine reads"), "{text}");
}

#[test]
fn bench_says_in_one_line_what_is_wrong() {
    let dir = folder();
    let model = converted(dir.path(), "Q4_K_M");
    let model = model.to_str().unwrap();
    for (arguments, words) in [
        (&["/nowhere.gguf"][..], &["/nowhere.gguf"][..]),
        (&[model, "-p", "0", "-n", "0"], &["nothing to measure"]),
        (&[model, "--ctx", "10"], &["needs 65 tokens of context", "--ctx is 10"]),
        (&[model, "--threads", "2,0"], &["--threads is 0"]),
        (&[model, "-p", "4000000000"], &["the context size cannot be 4000000000", "--ctx"]),
        (&[model, "-d", "4000000000", "-n", "4000000000"], &["the context size cannot be 4294967295", "--ctx"]),
        (&[model, "-o", "/nowhere/at/all.json"], &["/nowhere/at/all.json", "cannot be written"]),
    ] {
        has(&error(&nibble(["bench"].iter().chain(arguments))), words);
    }
    assert_eq!(files(dir.path()), ["Q4_K_M.gguf"]);
}

#[cfg(unix)]
#[test]
fn bench_ends_at_an_interrupt_with_what_was_measured() {
    let dir = folder();
    let model = converted(dir.path(), "Q4_K_M");
    let file = dir.path().join("result.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_nibble"))
        .args(["bench", model.to_str().unwrap(), "--no-memory", "-p", "8,400", "-r", "200", "-t", "1", "-o"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first row comes when the first test is done, long before the last.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().starts_with("read 8 ")), "no row came");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130), "{}", String::from_utf8_lossy(&out.stderr));
    let json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["interrupted"], true);
    assert_eq!(json["results"][0]["runs"].as_array().unwrap().len(), 200);
    assert!(json["results"].as_array().unwrap().len() < 4, "{json}");
}

#[test]
fn each_test_is_announced_and_reported_in_order() {
    let dir = folder();
    let model = Model::load(&converted(dir.path(), "F16"), ModelOptions::default()).unwrap();
    let tests = vec![Test::Write { n_tokens: 3, depth: 5 }, Test::Read { n_tokens: 9 }];
    let session = SessionOptions { n_ctx: Some(16), ..SessionOptions::default() };
    let plan = Plan { threads: vec![1], tests: tests.clone(), repeat: 2, memory: None, session };
    let mut seen = Vec::new();
    let report = bench::run(&model, &plan, |event| match event {
        Event::Run { test, run, .. } => seen.push((test, Some(run))),
        Event::Done(outcome) => seen.push((outcome.test, None)),
        Event::Memory { .. } => panic!("nobody asked for memory"),
    })
    .unwrap();
    let of = |test| [(test, Some(0)), (test, Some(1)), (test, Some(2)), (test, None)];
    assert_eq!(seen, [of(tests[0]), of(tests[1])].concat());
    assert!(!report.interrupted && report.memory.is_empty());
    assert!(report.outcomes.iter().all(|outcome| outcome.runs.len() == 2));

    let too_long = Plan { tests: vec![Test::Read { n_tokens: 17 }], ..plan.clone() };
    let error = bench::run(&model, &too_long, |_| {}).unwrap_err().to_string();
    assert!(error.contains("17 tokens, but the context holds 16"), "{error}");
    plan.session.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(bench::run(&model, &plan, |_| {}).unwrap().interrupted);
}
