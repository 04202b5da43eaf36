//! What the tests share: the bundled checkpoint, variations of it, and the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nibble::convert::provenance;
use nibble::gguf::Value::Array;
use nibble::gguf::{Gguf, Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The bundled checkpoint.
pub fn yi_nano() -> PathBuf {
    data("yi-nano")
}

/// A file of the repository's test data.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// A file of the test data that is not in the repository. A test that needs one is ignored where there is none:
/// `#[cfg_attr(not(shared_data), ignore = "needs ../shared/data")]`.
#[cfg(feature = "llama")]
pub fn shared(path: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    assert!(file.exists(), "{} is not there", file.display());
    file
}

/// As exact as llama.cpp gets: no 16-bit floats on the way.
#[cfg(feature = "llama")]
pub fn exact() -> nibble::engine::SessionOptions {
    nibble::engine::SessionOptions {
        kv_types: nibble::llama::KvType::F32.into(),
        flash_attention: nibble::llama::FlashAttention::Off,
        threads: Some(1),
        ..nibble::engine::SessionOptions::default()
    }
}

/// A model made in `dir` with Yi's own tokenizer, of 64,000 tokens, and weights that mean nothing.
#[cfg(feature = "llama")]
pub fn yi_vocabulary(dir: &Path) -> PathBuf {
    let folder = data("yi");
    let mut nano = Variation::of_yi_nano();
    nano.config.insert("vocab_size".to_string(), 64000.into());
    for name in ["lm_head.weight", "model.embed_tokens.weight"] {
        let tensor = nano.tensor(name);
        tensor.shape[0] = 64000;
        tensor.bytes = vec![0; 64000 * 256 * 2];
    }
    nano.write_single(dir);
    for file in ["tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"] {
        std::fs::copy(folder.join(file), dir.join(file)).unwrap();
    }
    std::fs::copy(folder.join("Yi-6B-Chat.generation_config.json"), dir.join("generation_config.json")).unwrap();
    convert(dir, &dir.join("yi.gguf"), &["-q", "Q8_0"])
}

/// Runs the program.
pub fn nibble<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nibble")).args(args).output().expect("the program starts")
}

/// What the program printed, where it succeeded; fails the test where it did not.
pub fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    String::from_utf8(output.stdout.clone()).expect("the program prints UTF-8")
}

/// The one error that the program printed, where it failed as it should: exit code 1, one line on stderr.
pub fn error(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "more than one line:\n{stderr}");
    stderr
}

/// Fails the test unless all of `words` are in `text`.
#[track_caller]
pub fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no '{word}' in:\n{text}");
    }
}

/// A tensor with its bytes, as this test code reads and writes it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

/// A checkpoint in memory, to be changed and written out again.
#[derive(Clone, Debug)]
pub struct Variation {
    pub tensors: Vec<Tensor>,
    pub config: Map<String, Value>,
}

impl Variation {
    /// The bundled checkpoint.
    pub fn of_yi_nano() -> Self {
        let config = serde_json::from_slice(&std::fs::read(yi_nano().join("config.json")).unwrap()).unwrap();
        Self { tensors: read_safetensors(&yi_nano().join("model.safetensors")), config }
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect("the checkpoint has this tensor")
    }

    /// Names things as the first release of Yi did.
    pub fn into_first_release(mut self) -> Self {
        self.config.insert("architectures".to_string(), json!(["YiForCausalLM"]));
        self.config.insert("model_type".to_string(), json!("Yi"));
        for tensor in &mut self.tensors {
            tensor.name = tensor.name.replace("input_layernorm", "ln1").replace("post_attention_layernorm", "ln2");
        }
        self
    }

    /// Writes the folder with all weights in one file.
    pub fn write_single(&self, folder: &Path) {
        self.write_files(folder);
        write_safetensors(&folder.join("model.safetensors"), &self.tensors);
    }

    /// Writes the folder with its weights over `n` files and an index, dealt out like cards.
    pub fn write_shards(&self, folder: &Path, n: usize) {
        self.write_files(folder);
        let mut weight_map = Map::new();
        for shard in 0..n {
            let file_name = format!("model-{:05}-of-{n:05}.safetensors", shard + 1);
            let tensors: Vec<_> = self.tensors.iter().skip(shard).step_by(n).cloned().collect();
            write_safetensors(&folder.join(&file_name), &tensors);
            for tensor in tensors {
                weight_map.insert(tensor.name, json!(file_name));
            }
        }
        let index = json!({"metadata": {}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    /// Writes everything but the weights.
    pub fn write_files(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for file in ["generation_config.json", "tokenizer.model", "tokenizer_config.json"] {
            std::fs::copy(yi_nano().join(file), folder.join(file)).unwrap();
        }
        std::fs::write(folder.join("config.json"), Value::Object(self.config.clone()).to_string()).unwrap();
    }
}

fn read_safetensors(path: &Path) -> Vec<Tensor> {
    let file = std::fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&file[8..8 + header_len]).unwrap();
    let data = &file[8 + header_len..];
    let mut tensors = Vec::new();
    for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        tensors.push(Tensor {
            dtype: entry["dtype"].as_str().unwrap().to_string(),
            shape: entry["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect(),
            bytes: data[at(0)..at(1)].to_vec(),
            name,
        });
    }
    tensors
}

pub fn write_safetensors(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}

/// An empty folder that goes away with the test.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The names of all files in a folder.
pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Converts with the program; gives the result's path.
pub fn convert(source: &Path, output: &Path, more: &[&str]) -> PathBuf {
    let (source, out) = (source.to_str().unwrap(), output.to_str().unwrap());
    stdout(&nibble(["convert", source, "-o", out].iter().chain(more)));
    output.to_path_buf()
}

/// All that a file holds but what it records of its making: metadata, tensors, and their bytes.
pub fn model(path: &Path) -> (Metadata, Vec<TensorInfo>, Vec<Vec<u8>>) {
    let gguf = Gguf::open(path).unwrap();
    let mut metadata = gguf.metadata().clone();
    provenance::KEYS.iter().for_each(|key| drop(metadata.remove(key)));
    let bytes = (0..gguf.tensors().len()).map(|i| gguf.data(i).to_vec()).collect();
    (metadata, gguf.tensors().to_vec(), bytes)
}

/// The strings that a file has under `key`.
pub fn strings(gguf: &Gguf, key: &str) -> Vec<String> {
    match gguf.metadata().get(key) {
        Some(Array(nibble::gguf::Array::String(strings))) => strings.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

/// The checkpoint's name for a tensor of a GGUF file.
pub fn name_in_checkpoint(name: &str) -> String {
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight".to_string(),
            "output.weight" => "lm_head.weight".to_string(),
            "output_norm.weight" => "model.norm.weight".to_string(),
            other => panic!("{other}"),
        };
    };
    let (what, ending) = rest.rsplit_once('.').unwrap();
    let what = match what {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{what}.{ending}")
}

/// What the results of a comparison say of the candidate of this name.
#[cfg(feature = "llama")]
pub fn candidate<'a>(results: &'a Value, name: &str) -> &'a Value {
    let candidates = results["candidates"].as_array().unwrap();
    candidates.iter().find(|candidate| candidate["file"]["name"] == name).unwrap()
}

/// The first half of the repository's English text, to calibrate with, and the second, to judge by, as files in `dir`.
#[cfg(feature = "llama")]
pub fn halves(dir: &Path) -> (PathBuf, PathBuf) {
    let text = std::fs::read_to_string(data("english.md")).unwrap();
    let middle = (text.len() / 2..).find(|&at| text.is_char_boundary(at)).unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    (write("for.txt", &text[..middle]), write("by.txt", &text[middle..]))
}
