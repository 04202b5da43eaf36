//! What is wrong gets one clear sentence and exit code 1, and leaves nothing behind and nothing damaged.

use std::fs;
use std::path::Path;

use crate::support::{Tensor, Variation, convert, error, files, folder, has, nibble, yi_nano};

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
    refuses(&nano, &["-q", "/nowhere.toml"], &["/nowhere.toml", "No such file"]);
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

#[test]
fn weights_that_are_quantized_already() {
    let up = "model.layers.0.mlp.up_proj.";
    let with = |codes: (&str, &str, Vec<u64>), more: &[&str]| {
        let mut nano = Variation::of_yi_nano();
        let tensor = nano.tensor(&format!("{up}weight"));
        let element = if codes.1 == "I32" { 4 } else { 1 };
        (tensor.name, tensor.dtype) = (format!("{up}{}", codes.0), codes.1.to_string());
        tensor.bytes = vec![1; codes.2.iter().product::<u64>() as usize * element];
        tensor.shape = codes.2;
        let scale = nano.tensor("model.norm.weight").clone();
        nano.tensors.extend(more.iter().map(|name| Tensor { name: format!("{up}{name}"), ..scale.clone() }));
        let dir = folder();
        nano.write_single(dir.path());
        dir
    };
    let codes = |name, dtype, shape: &[u64]| (name, dtype, shape.to_vec());
    let bitsandbytes = with(codes("weight", "U8", &[98304, 1]), &["weight.absmax", "weight.quant_map"]);
    refuses(
        bitsandbytes.path(),
        &[],
        &["quantized already (bitsandbytes, to 4 bits)", "up_proj.weight.absmax", "merge its adapter into the 16-bit"],
    );
    let mlx = with(codes("weight", "I32", &[768, 32]), &["scales", "biases"]);
    refuses(mlx.path(), &[], &["quantized already (MLX)", "mlx_lm.convert --dequantize"]);
    let awq = with(codes("qweight", "I32", &[256, 96]), &["qzeros", "scales"]);
    refuses(awq.path(), &[], &["quantized already (AWQ or GPTQ)", "the model's page on Hugging Face"]);
    let fp8 = with(codes("weight", "F8_E4M3", &[768, 256]), &["weight_scale_inv"]);
    refuses(fp8.path(), &[], &["quantized already (FP8 with scales)"]);
    // Codes alone: their type tells, not their shape.
    let stripped = with(codes("weight", "U8", &[98304, 1]), &[]);
    refuses(stripped.path(), &[], &["up_proj.weight has type U8", "quantized already"]);
    let cast = with(codes("weight", "F8_E4M3", &[768, 256]), &[]);
    refuses(cast.path(), &[], &["up_proj.weight has type F8_E4M3", "16-bit release"]);
}

#[test]
fn a_model_with_its_adapter_beside_it_and_placeholders_of_a_training() {
    let mut nano = Variation::of_yi_nano();
    let norm = nano.tensor("model.norm.weight").clone();
    let name = "model.layers.0.self_attn.q_proj.lora_A.default.weight".to_string();
    nano.tensors.push(Tensor { name, ..norm });
    let dir = folder();
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["lora_A", "saved with the model and is not merged into its weights"]);

    let mut nano = Variation::of_yi_nano();
    for tensor in nano.tensors.iter_mut().filter(|tensor| tensor.name.contains("_proj")) {
        (tensor.shape, tensor.bytes) = (vec![0], vec![]);
    }
    let dir = folder();
    nano.write_single(dir.path());
    refuses(dir.path(), &[], &["28 of the tensors are empty", "ZeRO-3", "zero_to_fp32.py"]);
}

#[test]
fn a_name_of_the_hub_in_the_place_of_a_path() {
    let download = "'hf download 01-ai/Yi-6B-Chat --local-dir Yi-6B-Chat'";
    refuses(Path::new("01-ai/Yi-6B-Chat"), &[], &["no such file or folder", download]);
    refuses(Path::new("https://huggingface.co/01-ai/Yi-6B-Chat"), &[], &[download]);
    let said = |args: &[&str]| error(&nibble(args));
    has(&said(&["inspect", "01-ai/Yi-6B-Chat"]), &[download]);
    has(&said(&["verify", "01-ai/Yi-6B-Chat"]), &[download]);
    #[cfg(feature = "llama")]
    {
        has(&said(&["run", "01-ai/Yi-6B-Chat", "-p", "x"]), &[download]);
        has(
            &said(&["run", "TheBloke/Yi-34B-Chat-GGUF", "-p", "x"]),
            &["hf download TheBloke/Yi-34B-Chat-GGUF --include"],
        );
        has(
            &said(&["run", yi_nano().to_str().unwrap(), "-p", "x"]),
            &["models are run from GGUF files; 'nibble convert ", "makes one from this model"],
        );
        has(&said(&["compare", "01-ai/Yi-6B-Chat", "b.gguf", "--weights"]), &[download]);
    }
}
