//! What is wrong gets one clear sentence and exit code 1, and leaves nothing behind and nothing damaged.

use std::fs;
use std::path::Path;

use crate::support::{Variation, convert, error, files, folder, has, nibble, yi_nano};

/// Converts, which must fail; checks the sentence and that nothing was left behind.
#[track_caller]
fn refuses(source: &Path, more: &[&str], words: &[&str]) {
    let out = folder();
    let target = out.path().join("x.gguf");
    let args = ["convert", source.to_str().unwrap(), "-o", target.to_str().unwrap()];
    has(&error(&nibble(args.iter().chain(more))), words);
    assert!(files(out.path()).is_empty(), "left behind: {:?}", files(out.path()));
}

#[test]
fn a_missing_source() {
    refuses(Path::new("/nowhere/Yi-34B"), &[], &["/nowhere/Yi-34B", "no such file or folder"]);
}

#[test]
fn a_missing_shard() {
    let dir = folder();
    Variation::of_yi_nano().write_shards(dir.path(), 3);
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    refuses(dir.path(), &[], &["model-00002-of-00003.safetensors"]);
}

#[test]
fn a_truncated_shard() {
    let dir = folder();
    Variation::of_yi_nano().write_shards(dir.path(), 3);
    let shard = dir.path().join("model-00003-of-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 100]).unwrap();
    let (wanted, found) = (bytes.len().to_string(), (bytes.len() - 100).to_string());
    refuses(dir.path(), &[], &["model-00003-of-00003.safetensors", &wanted, &found]);
}

#[test]
fn a_shard_whose_header_lies() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    nano.tensor("model.norm.weight").shape = vec![257];
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["model.safetensors", "model.norm.weight", "514", "512"]);
}

#[test]
fn a_tensor_missing_from_the_checkpoint() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    nano.tensors.retain(|t| t.name != "model.layers.2.mlp.up_proj.weight");
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["model.layers.2.mlp.up_proj.weight"]);
}

#[test]
fn a_tensor_that_the_index_names_and_its_shard_lacks() {
    let dir = folder();
    Variation::of_yi_nano().write_shards(dir.path(), 2);
    let index = dir.path().join("model.safetensors.index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let entry = &mut json["weight_map"]["lm_head.weight"];
    let other = if entry.as_str().unwrap().contains("00001") { "00002" } else { "00001" };
    *entry = format!("model-{other}-of-00002.safetensors").into();
    fs::write(&index, json.to_string()).unwrap();
    refuses(dir.path(), &[], &["lm_head.weight", other]);
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    let tensor = nano.tensor("model.layers.1.self_attn.k_proj.weight");
    tensor.shape = vec![256, 128];
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["model.layers.1.self_attn.k_proj.weight", "256", "128"]);
}

#[test]
fn an_unknown_architecture() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    nano.config.insert("architectures".to_string(), serde_json::json!(["BloomForCausalLM"]));
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["config.json", "BloomForCausalLM", "LlamaForCausalLM", "YiForCausalLM"]);
}

#[test]
fn a_weight_that_is_not_a_number_unless_allowed() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    let tensor = nano.tensor("model.layers.1.mlp.gate_proj.weight");
    let at = (17 * 256 + 5) * 2;
    tensor.bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    // Query rows are permuted on the way; the message speaks of the checkpoint's own rows.
    let tensor = nano.tensor("model.layers.3.self_attn.q_proj.weight");
    let at = (33 * 256 + 7) * 2;
    tensor.bytes[at..at + 2].copy_from_slice(&0xff80u16.to_le_bytes());
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["model.layers.1.mlp.gate_proj.weight", "NaN", "row 17", "column 5", "--allow-nan"]);

    let out = folder();
    convert(dir.path(), &out.path().join("x.gguf"), &["--allow-nan"]);

    nano.tensor("model.layers.1.mlp.gate_proj.weight").bytes.fill(0);
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["model.layers.3.self_attn.q_proj.weight", "-inf", "row 33", "column 7"]);
}

#[test]
fn a_weight_that_half_precision_cannot_hold() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    let large = 600000f32.to_bits() >> 16;
    nano.tensor("lm_head.weight").bytes[..2].copy_from_slice(&(large as u16).to_le_bytes());
    nano.write_single(dir.path());
    for recipe in ["F16", "Q4_K_M", "Q4_0"] {
        refuses(dir.path(), &["-q", recipe], &["lm_head.weight", "row 0", "65504", "BF16"]);
    }
    convert(dir.path(), &folder().path().join("x.gguf"), &["--type", "output=BF16"]);
    convert(dir.path(), &folder().path().join("x.gguf"), &["-q", "BF16"]);
}

#[test]
fn an_output_that_exists_unless_forced() {
    let dir = folder();
    let out = dir.path().join("x.gguf");
    fs::write(&out, "precious").unwrap();
    let args = ["convert", yi_nano().to_str().unwrap(), "-o", out.to_str().unwrap()].map(str::to_string);
    has(&error(&nibble(&args)), &["x.gguf", "exists", "--force"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "precious");
    assert_eq!(files(dir.path()), ["x.gguf"]);
    assert!(nibble(args.iter().cloned().chain(["--force".to_string()])).status.success());
    assert!(fs::metadata(&out).unwrap().len() > 1000);
    assert_eq!(files(dir.path()), ["x.gguf"]);
}

#[test]
fn a_folder_that_does_not_exist() {
    let out = "/nowhere/at/all/x.gguf";
    has(&error(&nibble(["convert", yi_nano().to_str().unwrap(), "-o", out])), &["/nowhere/at/all", "no folder"]);
}

#[test]
fn an_output_that_is_its_own_source() {
    let dir = folder();
    let file = convert(&yi_nano(), &dir.path().join("x.gguf"), &["-q", "F32"]);
    let before = fs::read(&file).unwrap();
    let path = file.to_str().unwrap();
    has(&error(&nibble(["convert", path, "-o", path, "--force"])), &["x.gguf", "being converted"]);
    assert!(fs::read(&file).unwrap() == before);
}

#[test]
#[cfg(unix)]
fn an_output_that_is_no_regular_file_even_if_forced() {
    let dir = folder();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["convert", yi_nano().to_str().unwrap(), "-o", pipe.to_str().unwrap(), "--force"].map(str::to_string);
    has(&error(&nibble(&args)), &["pipe", "not a regular file"]);
    assert_eq!(files(dir.path()), ["pipe"]);
}

#[test]
fn a_quantized_source_unless_allowed() {
    let dir = folder();
    let file = convert(&yi_nano(), &dir.path().join("q.gguf"), &["-q", "Q4_K_M"]);
    refuses(&file, &["-q", "Q4_0"], &["q.gguf", "--allow-requantize"]);
    convert(&file, &dir.path().join("again.gguf"), &["-q", "Q4_0", "--allow-requantize"]);
    let file = convert(&yi_nano(), &dir.path().join("q8.gguf"), &["-q", "Q8_0"]);
    convert(&file, &dir.path().join("from-q8.gguf"), &["-q", "Q4_0"]);
}

#[test]
fn a_truncated_gguf() {
    let dir = folder();
    let file = convert(&yi_nano(), &dir.path().join("f.gguf"), &["-q", "F16"]);
    let bytes = fs::read(&file).unwrap();
    for keep in [0, 3, 20, 1000, bytes.len() / 2, bytes.len() - 1] {
        let cut = dir.path().join("cut.gguf");
        fs::write(&cut, &bytes[..keep]).unwrap();
        refuses(&cut, &[], &["cut.gguf"]);
        has(&error(&nibble(["inspect", cut.to_str().unwrap()])), &["cut.gguf"]);
    }
}

#[test]
fn words_that_are_not_understood() {
    let nano = yi_nano();
    refuses(&nano, &["-q", "Q4_K_X"], &["Q4_K_X", "nibble quants"]);
    refuses(&nano, &["--type", "output=Q9"], &["Q9"]);
    refuses(&nano, &["--type", "outputt=Q8_0"], &["outputt"]);
    refuses(&nano, &["--type", "output"], &["output", "="]);
    refuses(&nano, &["--recipe", "/nowhere.toml"], &["/nowhere.toml"]);
}

#[test]
#[cfg(unix)]
fn a_disk_that_fills_up() {
    // A limit on the size of files stands in for a small disk: from the program's side, writing fails alike.
    let dir = folder();
    let out = dir.path().join("x.gguf");
    let script = "trap '' XFSZ; ulimit -f 1000; exec \"$@\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_nibble"), "convert"])
        .args([yi_nano().to_str().unwrap(), "-o", out.to_str().unwrap()])
        .output()
        .unwrap();
    has(&error(&output), &["x.gguf", "could not be written", "nothing was left behind"]);
    assert!(files(dir.path()).is_empty(), "left behind: {:?}", files(dir.path()));
}
