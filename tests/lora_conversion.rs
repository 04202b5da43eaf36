//! LoRA adapters as PEFT saves them, to GGUF. The oracle is the merged model: W + scale x B A, computed here in double
//! precision and converted as any other checkpoint; with the adapter beside the base model, llama.cpp has to give the
//! same logits.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;
use nibble::checkpoint::DType;
use nibble::checkpoint::testing::{PickledTensor, pickle_state_dict, write_zip};
use nibble::gguf::{Gguf, Metadata, TensorInfo, TensorType};
use nibble::quant;
use serde_json::{Map, Value, json};

use crate::support::{
    Tensor, Variation, convert, error, files, folder, has, nibble, stdout, write_safetensors, yi_nano,
};

const HIDDEN: u64 = 256;
const VOCAB: u64 = 6400;

/// A module of every layer, its outputs and its inputs.
const MODULES: [(&str, u64, u64); 7] = [
    ("self_attn.q_proj", 256, 256),
    ("self_attn.k_proj", 128, 256),
    ("self_attn.v_proj", 128, 256),
    ("self_attn.o_proj", 256, 256),
    ("mlp.gate_proj", 768, 256),
    ("mlp.up_proj", 768, 256),
    ("mlp.down_proj", 256, 768),
];

/// The names of all modules of all layers, with outputs and inputs.
fn modules() -> Vec<(String, u64, u64)> {
    let of_layer = |n| MODULES.iter().map(move |(name, rows, cols)| (format!("model.layers.{n}.{name}"), *rows, *cols));
    (0..4).flat_map(of_layer).collect()
}

/// An adapter in memory.
#[derive(Clone)]
struct Adapter {
    config: Map<String, Value>,
    tensors: Vec<Tensor>,
    state: u32,
}

impl Adapter {
    fn new(rank: u64, alpha: f64) -> Self {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "01-ai/yi-nano",
            "r": rank, "lora_alpha": alpha, "bias": "none", "fan_in_fan_out": false, "use_rslora": false,
            "use_dora": false, "modules_to_save": null, "init_lora_weights": true, "rank_pattern": {},
            "alpha_pattern": {}, "target_modules": ["q_proj", "v_proj"], "layer_replication": null,
        });
        Self { config: config.as_object().unwrap().clone(), tensors: vec![], state: 7 }
    }

    /// With all matrices of all layers, each of its rank.
    fn full(rank: u64, alpha: f64, rank_of: impl Fn(&str) -> u64) -> Self {
        let mut adapter = Self::new(rank, alpha);
        for (module, rows, cols) in modules() {
            adapter.add(&module, rows, cols, rank_of(&module));
        }
        adapter
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_string(), value);
        self
    }

    /// Multiples of 1/256: exact in every float type.
    fn tensor(&mut self, name: String, shape: [u64; 2], most: i32) {
        let values = (0..shape[0] * shape[1]).map(|_| {
            self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((self.state >> 9) as i32 % (2 * most + 1) - most) as f32 / 256.0
        });
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        self.tensors.push(Tensor { name, dtype: "F32".to_string(), shape: shape.to_vec(), bytes });
    }

    fn add(&mut self, module: &str, rows: u64, cols: u64, rank: u64) {
        self.tensor(format!("base_model.model.{module}.lora_A.weight"), [rank, cols], 24);
        self.tensor(format!("base_model.model.{module}.lora_B.weight"), [rows, rank], 8);
    }

    fn add_embedding(&mut self, rank: u64) {
        let name = |factor| format!("base_model.model.model.embed_tokens.lora_embedding_{factor}");
        self.tensor(name('A'), [rank, VOCAB], 24);
        self.tensor(name('B'), [HIDDEN, rank], 8);
    }

    fn tensor_mut(&mut self, end: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name.ends_with(end)).expect("the adapter has this tensor")
    }

    fn write_config(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), Value::Object(self.config.clone()).to_string()).unwrap();
    }

    fn write(&self, folder: &Path) {
        self.write_config(folder);
        write_safetensors(&folder.join("adapter_model.safetensors"), &self.tensors);
    }

    /// As `torch.save` writes it.
    fn write_bin(&self, folder: &Path) {
        self.write_config(folder);
        let pickled = self.tensors.iter().enumerate().map(|(i, tensor)| PickledTensor {
            name: tensor.name.clone(),
            dtype: DType::F32,
            key: i.to_string(),
            storage_len: tensor.bytes.len() as u64 / 4,
            offset: 0,
            shape: tensor.shape.clone(),
            strides: vec![tensor.shape[1], 1],
        });
        let pickle = pickle_state_dict(&pickled.collect::<Vec<_>>());
        let data =
            self.tensors.iter().enumerate().map(|(i, t)| (format!("adapter_model/data/{i}"), t.bytes.as_slice()));
        let entries = [("adapter_model/data.pkl".to_string(), pickle.as_slice())]
            .into_iter()
            .chain(data)
            .chain([("adapter_model/version".to_string(), b"3\n".as_slice())]);
        write_zip(&mut BufWriter::new(File::create(folder.join("adapter_model.bin")).unwrap()), entries).unwrap();
    }

    /// The base with the adapter in it. `scale` is what PEFT multiplies B A of a module of this rank by.
    fn merged(&self, scale: impl Fn(&str, f64) -> f64) -> Variation {
        let mut merged = Variation::of_yi_nano();
        for pair in self.tensors.chunks_exact(2) {
            let [a, b] = [values(&pair[0]), values(&pair[1])];
            let name = pair[0].name.strip_prefix("base_model.model.").unwrap();
            let (module, kind) = name.split_once(".lora_").unwrap();
            let rank = pair[0].shape[0] as usize;
            let scale = scale(module, rank as f64);
            let tensor = merged.tensor(&format!("{module}.weight"));
            let (rows, cols) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
            let mut weights = values(tensor);
            for (at, weight) in weights.iter_mut().enumerate() {
                let (row, col) = (at / cols, at % cols);
                let sum: f64 = match kind.starts_with("embedding") {
                    false => (0..rank).map(|r| b[row * rank + r] * a[r * cols + col]).sum(),
                    true => (0..rank).map(|r| a[r * rows + row] * b[col * rank + r]).sum(),
                };
                *weight += scale * sum;
            }
            tensor.dtype = "F32".to_string();
            tensor.bytes = weights.iter().flat_map(|w| (*w as f32).to_le_bytes()).collect();
        }
        merged
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let bits: Vec<u32> = match tensor.dtype.as_str() {
        "F32" => tensor.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        "BF16" => tensor.bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)) << 16).collect(),
        other => panic!("{other}"),
    };
    bits.into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect()
}

extern "C" fn quiet(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}

const TOKENS: [i32; 12] = [475, 505, 267, 447, 2616, 428, 306, 267, 449, 1324, 69, 5248];

/// The logits after each of [`TOKENS`], with an adapter where one is given; an error where llama.cpp refuses it.
fn logits(model: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let c_string = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
    let path = c_string(model);
    // SAFETY: strings, batch and pointers outlive the calls that take them; the order of freeing is llama.cpp's; the log
    // callback takes no data; tokens are in the vocabulary, and there is room for all of them.
    unsafe {
        sys::llama_log_set(Some(quiet), null_mut());
        sys::llama_backend_init();
        let mut params = sys::llama_model_default_params();
        params.n_gpu_layers = 0;
        let model = sys::llama_model_load_from_file(path.as_ptr(), params);
        assert!(!model.is_null());
        let mut params = sys::llama_context_default_params();
        params.n_ctx = 256;
        params.n_threads = 1;
        params.n_threads_batch = 1;
        params.n_outputs_max = TOKENS.len() as u32;
        params.type_k = sys::GGML_TYPE_F32;
        params.type_v = sys::GGML_TYPE_F32;
        params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
        let mut adapters = vec![];
        if let Some(path) = adapter {
            let path = c_string(path);
            let adapter = sys::llama_adapter_lora_init(model, path.as_ptr());
            assert!(!adapter.is_null(), "llama.cpp refuses the adapter");
            adapters.push(adapter);
        }
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null());
        let mut scales = vec![1.0f32; adapters.len()];
        if !adapters.is_empty() {
            let code =
                sys::llama_set_adapters_lora(context, adapters.as_mut_ptr(), adapters.len(), scales.as_mut_ptr());
            assert_eq!(code, 0);
        }
        let n = TOKENS.len();
        let (mut tokens, mut positions): (Vec<i32>, Vec<i32>) = (TOKENS.to_vec(), (0..n as i32).collect());
        let (mut counts, mut wanted, mut sequence) = (vec![1i32; n], vec![1i8; n], 0i32);
        let mut sequences = vec![&raw mut sequence; n];
        let batch = sys::llama_batch {
            n_tokens: n as i32,
            token: tokens.as_mut_ptr(),
            embd: null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: sequences.as_mut_ptr(),
            logits: wanted.as_mut_ptr(),
        };
        assert_eq!(sys::llama_decode(context, batch), 0);
        sys::llama_synchronize(context);
        let row = |i| std::slice::from_raw_parts(sys::llama_get_logits_ith(context, i), VOCAB as usize);
        let logits = (0..n as i32).flat_map(|i| row(i).iter().copied()).collect();
        sys::llama_free(context);
        sys::llama_model_free(model);
        logits
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Converts the adapter in `folder` and gives the file's path.
fn converted(folder: &Path, more: &[&str]) -> PathBuf {
    let out = folder.join("adapter.gguf");
    stdout(&nibble(["convert", folder.to_str().unwrap(), "-o", out.to_str().unwrap(), "--force"].iter().chain(more)));
    out
}

/// Converts base, adapter and merged model, and holds the logits of base and adapter against those of the merged model.
#[track_caller]
fn same_as_merged(what: &str, adapter: &Adapter, scale: impl Fn(&str, f64) -> f64) {
    let dir = folder();
    let base = convert(&yi_nano(), &dir.path().join("base.gguf"), &["-q", "F32"]);
    adapter.merged(scale).write_single(&dir.path().join("merged"));
    let merged = convert(&dir.path().join("merged"), &dir.path().join("merged.gguf"), &["-q", "F32"]);
    let lora = dir.path().join("lora");
    adapter.write(&lora);
    let file = converted(&lora, &["--base", yi_nano().to_str().unwrap()]);
    let wanted = logits(&merged, None);
    let worst = difference(&logits(&base, Some(&file)), &wanted);
    let moved = difference(&logits(&base, None), &wanted);
    eprintln!("{what}: largest difference of a logit {worst:.6}, moved by up to {moved:.2}");
    assert!(worst < 1e-4, "{what}: {worst}");
    assert!(moved > 0.5, "{what}: the adapter does next to nothing: {moved}");
}

#[test]
fn every_matrix_gives_the_logits_of_the_merged_model() {
    same_as_merged("rank 8", &Adapter::full(8, 16.0, |_| 8), |_, rank| 16.0 / rank);
    // Odd ranks, and an alpha that no power of two divides.
    same_as_merged("rank 5", &Adapter::full(5, 7.3, |_| 5), |_, rank| 7.3 / rank);
}

#[test]
fn rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank() {
    let adapter = Adapter::full(8, 9.0, |_| 8).set("use_rslora", json!(true));
    same_as_merged("rsLoRA", &adapter, |_, rank| 9.0 / rank.sqrt());
    let rank_of = |module: &str| if module.ends_with("down_proj") { 3 } else { 8 };
    let adapter = Adapter::full(8, 9.0, rank_of)
        .set("use_rslora", json!(true))
        .set("rank_pattern", json!({"down_proj": 3}))
        .set("alpha_pattern", json!({"self_attn.v_proj": 4}));
    same_as_merged("rsLoRA with patterns", &adapter, |module, rank| {
        if module.ends_with("v_proj") { 4.0 / rank.sqrt() } else { 9.0 / rank.sqrt() }
    });
}

#[test]
fn patterns_give_modules_numbers_of_their_own() {
    let rank_of = |module: &str| match module {
        m if m.ends_with("q_proj") => 4,
        m if m.contains("layers.2.mlp") => 2,
        _ => 8,
    };
    let adapter =
        Adapter::full(8, 16.0, rank_of).set("rank_pattern", json!({"q_proj": 4, "^model.layers.2.mlp.*": 2})).set(
            "alpha_pattern",
            json!({"model.layers.1.mlp.up_proj": 3, "k_proj": 40, "layers.[03].self_attn.o_proj": 0}),
        );
    same_as_merged("patterns", &adapter, |module, rank| {
        let o_proj = ["model.layers.0.self_attn.o_proj", "model.layers.3.self_attn.o_proj"].contains(&module);
        let alpha = match module {
            "model.layers.1.mlp.up_proj" => 3.0,
            m if m.ends_with("k_proj") => 40.0,
            _ if o_proj => 0.0,
            _ => 16.0,
        };
        alpha / rank
    });
    // All modules have an alpha that the configuration's head does not say: B stays as it is.
    let adapter = Adapter::full(8, 16.0, |_| 8).set("alpha_pattern", json!({".*_proj": 24}));
    same_as_merged("one pattern for all", &adapter, |_, rank| 24.0 / rank);
    let dir = folder();
    adapter.write(dir.path());
    let gguf = Gguf::open(&converted(dir.path(), &["--base", yi_nano().to_str().unwrap()])).unwrap();
    assert_eq!(gguf.metadata().get("adapter.lora.alpha").unwrap().as_f64(), Some(24.0));
}

#[test]
fn embedding_and_output_can_be_adapted() {
    let mut adapter = Adapter::new(6, 12.0);
    adapter.add_embedding(6);
    same_as_merged("embedding", &adapter, |_, rank| 12.0 / rank);
    let mut adapter = Adapter::new(6, 12.0).set("alpha_pattern", json!({"embed_tokens": 18}));
    adapter.add("lm_head", VOCAB, HIDDEN, 6);
    adapter.add_embedding(6);
    same_as_merged(
        "embedding and output",
        &adapter,
        |module, rank| {
            if module.contains("embed") { 18.0 / rank } else { 12.0 / rank }
        },
    );
}

/// Metadata but for what it records of its making and the folder's name; tensors, and their bytes.
fn contents(path: &Path) -> (Metadata, Vec<TensorInfo>, Vec<Vec<u8>>) {
    let (mut metadata, tensors, bytes) = crate::support::model(path);
    metadata.remove("general.name");
    (metadata, tensors, bytes)
}

#[test]
fn the_result_does_not_depend_on_the_way() {
    let adapter = Adapter::full(4, 8.0, |_| 4);
    let dir = folder();
    let lora = dir.path().join("lora");
    adapter.write(&lora);
    let nano = yi_nano();
    let nano = nano.to_str().unwrap();
    let wanted = contents(&converted(&lora, &["--base", nano]));
    assert_eq!(wanted.1.len(), 56);

    let check = |what: &str, folder: &Path, more: &[&str]| {
        assert!(contents(&converted(folder, more)) == wanted, "{what} gives another file");
    };
    check("a file of the folder", &lora, &["--base", nano, "-q", "f32"]);
    check("config.json alone", &lora, &["--base", yi_nano().join("config.json").to_str().unwrap()]);
    // A quantized GGUF does: only its shape is looked at.
    let quantized = convert(&yi_nano(), &dir.path().join("base.gguf"), &["-q", "Q4_K_M"]);
    check("a GGUF base", &lora, &["--base", quantized.to_str().unwrap()]);

    let bin = dir.path().join("bin");
    adapter.write_bin(&bin);
    check("a PyTorch file", &bin, &["--base", nano]);

    let mut named = adapter.clone();
    named.tensors.reverse();
    for tensor in &mut named.tensors {
        tensor.name = tensor.name.replace(".weight", ".default.weight");
    }
    named.write(&dir.path().join("named"));
    check("the adapter's name in the tensors' names", &dir.path().join("named"), &["--base", nano]);

    type Rename = fn(&str) -> String;
    let wrapped: [(&str, Rename); 5] = [
        ("torch.compile", |name| name.replace("base_model.model.", "base_model.model._orig_mod.")),
        ("torch.compile around PEFT", |name| format!("_orig_mod.{name}")),
        ("the text part", |name| name.replace("model.layers", "model.language_model.layers")),
        ("a base without its head", |name| name.replace("model.model.model.", "model.model.")),
        ("the base's names", |name| name.replace("base_model.model.", "")),
    ];
    for (what, rename) in wrapped {
        let mut adapter = adapter.clone();
        adapter.tensors.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name));
        adapter.write(&dir.path().join("wrapped"));
        check(what, &dir.path().join("wrapped"), &["--base", nano]);
    }

    // Without layers, the names alone say what stands before them.
    let part = |adapter: &Adapter, module: &str, name: &str| {
        let mut adapter = adapter.clone();
        adapter.tensors.retain(|tensor| tensor.name.contains(module));
        adapter.tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("base_model.model.", name));
        assert_eq!(adapter.tensors.len(), 2);
        let folder = dir.path().join("part");
        adapter.write(&folder);
        contents(&converted(&folder, &["--base", nano]))
    };
    let mut ends = Adapter::new(4, 8.0);
    ends.add("lm_head", VOCAB, HIDDEN, 4);
    ends.add_embedding(4);
    for module in ["lm_head", "embed_tokens"] {
        let wanted = part(&ends, module, "base_model.model.");
        for name in ["base_model.model._orig_mod.", "base_model.model.language_model.", "module."] {
            assert!(part(&ends, module, name) == wanted, "{module} behind {name}");
        }
    }

    let first_release = Variation::of_yi_nano().into_first_release();
    first_release.write_files(&dir.path().join("first"));
    check("a base of the first release", &lora, &["--base", dir.path().join("first").to_str().unwrap()]);

    // The base that the adapter names, where it is a folder here: by its whole path, or from the adapter on.
    let mut local = adapter.clone().set("base_model_name_or_path", json!(nano));
    local.write(&dir.path().join("local"));
    let file = converted(&dir.path().join("local"), &[]);
    assert!(contents(&file).2 == wanted.2);
    local = local.set("base_model_name_or_path", json!("../first"));
    local.write(&dir.path().join("local"));
    assert!(contents(&converted(&dir.path().join("local"), &[])).2 == wanted.2);
}

#[test]
fn every_float_type_holds_the_same_numbers() {
    let dir = folder();
    let adapter = Adapter::full(3, 3.0, |_| 3);
    adapter.write(dir.path());
    let base = convert(&yi_nano(), &dir.path().join("base.gguf"), &["-q", "F16"]);
    let adapted = logits(&base, None);
    let mut seen = HashMap::new();
    for ty in [TensorType::F32, TensorType::F16, TensorType::BF16] {
        let file = converted(dir.path(), &["-q", ty.name(), "--base", base.to_str().unwrap()]);
        let gguf = Gguf::open(&file).unwrap();
        for (i, tensor) in gguf.tensors().iter().enumerate() {
            assert_eq!(tensor.ty, ty, "{}", tensor.name);
            let mut numbers = vec![0.0; tensor.n_elements().unwrap() as usize];
            quant::decoder(ty).unwrap()(gguf.data(i), &mut numbers);
            // Rows of A are those of the adapter.
            if tensor.name == "blk.2.ffn_up.weight.lora_a" {
                let wanted = adapter.tensors.iter().find(|t| t.name.contains("layers.2.mlp.up_proj.lora_A")).unwrap();
                assert!(numbers.iter().map(|n| f64::from(*n)).eq(values(wanted)));
            }
            let first = seen.entry(tensor.name.clone()).or_insert_with(|| numbers.clone());
            assert_eq!(*first, numbers, "{} as {ty}", tensor.name);
        }
        let moved = difference(&logits(&base, Some(&file)), &adapted);
        assert!(moved > 0.3, "{ty}: {moved}");
    }
}

#[test]
fn the_file_says_what_it_is_and_where_it_comes_from() {
    let dir = folder();
    let lora = dir.path().join("poems");
    Adapter::full(8, 16.0, |_| 8).write(&lora);
    std::fs::write(lora.join("README.md"), "---\nlicense: apache-2.0\nbase_model: 01-ai/Yi-34B\n---\n").unwrap();
    let gguf = Gguf::open(&converted(&lora, &["--base", yi_nano().to_str().unwrap(), "-q", "BF16"])).unwrap();
    let text = |key: &str| gguf.metadata().str(key).unwrap_or_else(|| panic!("no {key}")).to_string();
    assert_eq!(gguf.metadata().iter().next().unwrap().0, "general.architecture");
    for (key, wanted) in [
        ("general.architecture", "llama"),
        ("general.type", "adapter"),
        ("general.name", "poems"),
        ("general.license", "apache-2.0"),
        ("general.base_model.0.repo_url", "https://huggingface.co/01-ai/Yi-34B"),
        ("adapter.type", "lora"),
        ("nibble.recipe.name", "BF16"),
        ("nibble.source.name", "poems"),
    ] {
        assert_eq!(text(key), wanted, "{key}");
    }
    assert_eq!(gguf.metadata().get("adapter.lora.alpha").unwrap().as_f64(), Some(16.0));
    let hash = blake3::hash(&std::fs::read(lora.join("adapter_model.safetensors")).unwrap());
    assert_eq!(crate::support::strings(&gguf, "nibble.source.blake3"), [hash.to_string()]);
    assert_eq!(crate::support::strings(&gguf, "nibble.source.files"), ["adapter_model.safetensors"]);
}

#[test]
fn convert_and_inspect_speak_of_adapters() {
    let dir = folder();
    let lora = dir.path().join("诗 adapter");
    Adapter::full(8, 16.0, |_| 8).set("fan_in_fan_out", json!(true)).write(&lora);
    let nano = yi_nano();
    let arguments = ["convert", lora.to_str().unwrap(), "--base", nano.to_str().unwrap()];
    let here = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nibble"));
        command.current_dir(dir.path()).args(arguments).args(more).output().unwrap()
    };
    let dry = here(&["--dry-run"]);
    has(&stdout(&dry), &["blk.*.attn_q.weight.lora_a", "256 x 8", "28 matrices, rank 8, alpha 16, F32"]);
    has(&stdout(&dry), &["would write 诗-adapter-F32-LoRA.gguf"]);
    has(&String::from_utf8_lossy(&dry.stderr), &["fan_in_fan_out"]);
    assert_eq!(files(dir.path()), ["诗 adapter"]);

    let json: Value = serde_json::from_str(&stdout(&here(&["--json"]))).unwrap();
    assert_eq!((&json["adapter"]["alpha"], &json["adapter"]["ranks"]), (&json!(16.0), &json!([8, 8])));
    let file = dir.path().join("诗-adapter-F32-LoRA.gguf");
    assert_eq!(json["outputs"][0]["bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(json["tensors"].as_array().unwrap().len(), 56);
    has(
        &error(&nibble(arguments.iter().chain(&["-o", file.to_str().unwrap(), "--quiet"]))),
        &["exists already", "--force"],
    );
    assert!(here(&["--force", "--quiet"]).stdout.is_empty());
    assert_eq!(files(dir.path()).len(), 2, "{:?}", files(dir.path()));

    let lora = lora.to_str().unwrap();
    has(&stdout(&nibble(["inspect", lora])), &["LORA, rank 8, alpha 16", "01-ai/yi-nano", "adapter_config.json, "]);
    let json: Value = serde_json::from_str(&stdout(&nibble(["inspect", lora, "--json"]))).unwrap();
    assert_eq!((&json["format"], json["tensors"].as_array().unwrap().len()), (&json!("adapter"), 56));
    has(&stdout(&nibble(["inspect", file.to_str().unwrap()])), &["adapter.lora.alpha", "blk.*.attn_q.weight.lora_a"]);
}

/// Converts, which must fail; checks the sentence and that nothing was left behind.
#[track_caller]
fn refuses(adapter: &Adapter, more: &[&str], words: &[&str]) {
    let dir = folder();
    adapter.write(dir.path());
    refuses_folder(dir.path(), more, words);
}

#[track_caller]
fn refuses_folder(source: &Path, more: &[&str], words: &[&str]) {
    let out = folder();
    let target = out.path().join("x.gguf");
    let nano = yi_nano();
    let mut arguments = vec!["convert", source.to_str().unwrap(), "-o", target.to_str().unwrap()];
    if !more.contains(&"--base") && !more.contains(&"no base") {
        arguments.extend(["--base", nano.to_str().unwrap()]);
    }
    arguments.extend(more.iter().filter(|word| **word != "no base"));
    has(&error(&nibble(arguments)), words);
    assert!(files(out.path()).is_empty(), "left behind: {:?}", files(out.path()));
}

fn small() -> Adapter {
    let mut adapter = Adapter::new(4, 8.0);
    for module in ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"] {
        adapter.add(module, 256, 256, 4);
    }
    adapter
}

#[test]
fn a_missing_base_is_asked_for() {
    refuses(
        &small(),
        &["no base"],
        &["(01-ai/yi-nano)", "--base", "hf download 01-ai/yi-nano config.json --local-dir yi-nano"],
    );
    refuses(&small().set("base_model_name_or_path", Value::Null), &["no base"], &["base model, which was not found"]);
    refuses(&small(), &["--base", "/nowhere"], &["/nowhere"]);
    let empty = folder();
    refuses(&small(), &["--base", empty.path().to_str().unwrap()], &["config.json"]);
    std::fs::write(empty.path().join("config.json"), r#"{"architectures": ["BloomForCausalLM"]}"#).unwrap();
    refuses(&small(), &["--base", empty.path().to_str().unwrap()], &["BloomForCausalLM", "LlamaForCausalLM"]);
    let dir = folder();
    small().write(dir.path());
    let lora = converted(dir.path(), &["--base", yi_nano().to_str().unwrap()]);
    refuses(&small(), &["--base", lora.to_str().unwrap()], &["adapter.gguf", "an adapter itself"]);
    has(&error(&nibble(["convert", lora.to_str().unwrap()])), &["adapter.gguf", "this GGUF file is an adapter"]);
    has(&error(&nibble(["run", lora.to_str().unwrap(), "-p", "x"])), &["adapter.gguf", "an adapter", "is not one"]);
    refuses_folder(&yi_nano(), &[], &["yi-nano", "not an adapter", "--base"]);
}

#[test]
fn what_a_lora_file_cannot_hold_is_refused() {
    for (key, value, words) in [
        ("use_dora", json!(true), &["'use_dora' is true", "DoRA"][..]),
        ("use_qalora", json!(true), &["'use_qalora' is true", "QALoRA"]),
        ("bias", json!("lora_only"), &["'bias' is \"lora_only\"", "biases"]),
        ("bias", json!("all"), &["'bias' is \"all\"", "biases"]),
        ("lora_bias", json!(true), &["'lora_bias' is true", "biases"]),
        (
            "modules_to_save",
            json!(["lm_head", "embed_tokens"]),
            &["'modules_to_save'", "embed_tokens", "whole modules"],
        ),
        ("trainable_token_indices", json!([1, 2]), &["'trainable_token_indices'", "tokens"]),
        ("layer_replication", json!([[0, 2], [1, 3]]), &["'layer_replication'", "layers"]),
        ("alora_invocation_tokens", json!([7]), &["'alora_invocation_tokens'", "takes effect"]),
        ("target_parameters", json!(["x"]), &["'target_parameters'"]),
        (
            "init_lora_weights",
            json!("pissa_niter_16"),
            &["'init_lora_weights'", "path_initial_model_for_weight_conversion"],
        ),
        ("peft_type", json!("IA3"), &["IA3", "LoRA"]),
        ("peft_type", Value::Null, &["none", "LoRA"]),
        ("r", json!(0), &["'r' is 0"]),
        ("r", json!("x"), &["key r", "whole number"]),
        ("lora_alpha", json!(0), &["'lora_alpha' is 0", "do nothing"]),
        ("lora_alpha", Value::Null, &["lora_alpha", "missing"]),
        ("rank_pattern", json!({"(": 3}), &["the pattern '('", "rank_pattern"]),
        ("alpha_pattern", json!({"q": []}), &["alpha_pattern"]),
    ] {
        let words: Vec<_> = ["adapter_config.json"].iter().chain(words).copied().collect();
        refuses(&small().set(key, value), &[], &words);
    }
    for (name, words) in [
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", &["DoRA"][..]),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", &["bias"]),
        ("model.layers.0.self_attn.q_proj.bias", &["bias"]),
        ("model.layers.0.input_layernorm.weight", &["norm", "passes over"]),
        ("model.layers.0.ln1.weight", &["norm"]),
        ("lm_head.weight", &["whole matrix", "merge"]),
        ("model.embed_tokens.weight", &["whole matrix", "merge"]),
        ("lm_head.modules_to_save.weight", &["whole matrix"]),
        ("model.embed_tokens.base_layer.weight", &["other sizes", "vocabulary"]),
        ("model.layers.0.self_attn.q_proj.lora_C", &["no part of an adapter"]),
        ("model.embed_tokens.lora_A.weight", &["as if for a matrix"]),
        ("model.layers.0.self_attn.q_proj.lora_embedding_A", &["as if for an embedding"]),
    ] {
        let mut adapter = small();
        adapter.tensor(format!("base_model.model.{name}"), [4, 256], 3);
        let words: Vec<_> = [name].iter().chain(words).copied().collect();
        refuses(&adapter, &[], &words);
    }
    // The base's own embedding, saved along, is none of the adapter's.
    let mut adapter = small();
    adapter.tensor("base_model.model.model.embed_tokens.base_layer.weight".to_string(), [VOCAB, HIDDEN], 3);
    let dir = folder();
    adapter.write(dir.path());
    assert_eq!(
        Gguf::open(&converted(dir.path(), &["--base", yi_nano().to_str().unwrap()])).unwrap().tensors().len(),
        4
    );
}

#[test]
fn an_adapted_embedding_that_is_the_output_too_is_refused() {
    let mut nano = Variation::of_yi_nano();
    nano.config.insert("tie_word_embeddings".to_string(), true.into());
    nano.tensors.retain(|tensor| tensor.name != "lm_head.weight");
    let dir = folder();
    nano.write_single(dir.path());
    let file = convert(dir.path(), &dir.path().join("tied.gguf"), &["-q", "F16"]);
    let mut output = Adapter::new(4, 8.0);
    output.add("lm_head", VOCAB, HIDDEN, 4);
    let mut embedding = Adapter::new(4, 8.0);
    embedding.add_embedding(4);
    for base in [dir.path(), &file] {
        let base = ["--base", base.to_str().unwrap()];
        refuses(&output, &base, &["lm_head.lora_A.weight", "its embedding is its output matrix"]);
        refuses(&embedding, &base, &["embed_tokens.lora_embedding_A", "serves as the output matrix too"]);
    }
    // Its configuration says so, and its weights do not.
    let mut own = Variation::of_yi_nano();
    own.config.insert("tie_word_embeddings".to_string(), true.into());
    own.write_single(&dir.path().join("own"));
    for adapter in [output, embedding] {
        adapter.write(&dir.path().join("lora"));
        converted(&dir.path().join("lora"), &["--base", dir.path().join("own").to_str().unwrap()]);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let mut adapter = small();
    adapter.tensors.retain(|t| !t.name.ends_with("layers.1.self_attn.q_proj.lora_B.weight"));
    refuses(&adapter, &[], &["layers.1.self_attn.q_proj.lora_A.weight has no partner", "q_proj.lora_B.weight'"]);
    let mut adapter = small();
    adapter.tensors.retain(|t| !t.name.ends_with("layers.0.self_attn.q_proj.lora_A.weight"));
    refuses(&adapter, &[], &["layers.0.self_attn.q_proj.lora_B.weight has no partner", "q_proj.lora_A.weight'"]);

    let mut adapter = Adapter::new(4, 8.0);
    adapter.add("model.layers.0.self_attn.q_proj", 256, 256, 3);
    refuses(&adapter, &[], &["q_proj.lora_A.weight has rank 3", "says 4"]);
    let mut adapter = small();
    adapter.tensor_mut("layers.1.self_attn.q_proj.lora_B.weight").shape = vec![512, 2];
    refuses(&adapter, &[], &["layers.1.self_attn.q_proj.lora_B.weight", "[512, 2]", "[256, 4]"]);
    let mut adapter = small();
    adapter.tensor_mut("layers.1.self_attn.q_proj.lora_A.weight").shape = vec![4, 16, 16];
    refuses(&adapter, &[], &["layers.1.self_attn.q_proj.lora_A.weight", "[4, 16, 16]", "[4, 256]", "yi-nano"]);
    let mut adapter = Adapter::new(4, 8.0);
    adapter.add("model.layers.0.self_attn.k_proj", 256, 256, 4);
    refuses(&adapter, &[], &["k_proj.lora_B.weight", "[256, 4]", "[128, 4]"]);

    let mut adapter = small();
    adapter.add("model.layers.4.mlp.up_proj", 768, 256, 4);
    refuses(&adapter, &[], &["model.layers.4.mlp.up_proj.lora_A.weight", "it has 4 layers"]);
    let mut adapter = small();
    adapter.add("model.layers.0.self_attn.qkv_proj", 768, 256, 4);
    refuses(&adapter, &[], &["qkv_proj.lora_A.weight", "trained on another model?"]);

    let mut adapter = small();
    let mut second = adapter.tensors[0].clone();
    second.name = second.name.replace("lora_A", "lora_A.other");
    adapter.tensors.push(second);
    refuses(&adapter, &[], &["two adapters", "lora_A.other.weight"]);
    refuses(&Adapter::new(4, 8.0), &[], &["no LoRA tensors"]);
    let mut adapter = small();
    let tensor = adapter.tensor_mut("layers.0.self_attn.q_proj.lora_B.weight");
    tensor.dtype = "I32".to_string();
    refuses(&adapter, &[], &["layers.0.self_attn.q_proj.lora_B.weight", "I32"]);
}

#[test]
fn numbers_that_are_none_or_too_large_are_refused() {
    let with = |number: f32| {
        let mut adapter = small();
        // Rows of Q move on the way; the message speaks of the adapter's own.
        let at = (33 * 4 + 2) * 4;
        let tensor = adapter.tensor_mut("layers.1.self_attn.q_proj.lora_B.weight");
        tensor.bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        adapter
    };
    let place = ["layers.1.self_attn.q_proj.lora_B.weight", "row 33", "column 2"];
    refuses(&with(f32::NAN), &[], &[&place[..], &["NaN", "--allow-nan"]].concat());
    refuses(&with(1e5), &["-q", "F16"], &[&place[..], &["100000", "-q F32"]].concat());
    for (number, more) in [(f32::NAN, ["--allow-nan", "-q", "F32"]), (1e5, ["--quiet", "-q", "BF16"])] {
        let dir = folder();
        with(number).write(dir.path());
        converted(dir.path(), &[&more[..], &["--base", yi_nano().to_str().unwrap()]].concat());
    }
}

#[test]
fn recipes_and_flags_for_models_are_refused() {
    refuses(&small(), &["-q", "Q4_K_M"], &["Q4_K_M", "-q F32, F16 or BF16"]);
    refuses(&small(), &["-q", "Q8_0"], &["Q8_0"]);
    refuses(&small(), &["-q", "nonsense"], &["nonsense"]);
    refuses(&small(), &["--type", "output=F16"], &["--type", "for models"]);
    refuses(&small(), &["--split-max-size", "1G"], &["--split-max-size", "for models"]);
    refuses(&small(), &["--recipe", "x.toml"], &["a recipe's file", "for models", "-q F32, F16 or BF16"]);
}

#[test]
fn a_folder_that_is_not_whole_is_refused() {
    let dir = folder();
    small().write_config(dir.path());
    refuses_folder(dir.path(), &[], &["adapter_model.safetensors", "adapter_model.bin"]);
    small().write(dir.path());
    let file = dir.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
    refuses_folder(dir.path(), &[], &["adapter_model.safetensors", &bytes.len().to_string()]);
    std::fs::write(dir.path().join("adapter_config.json"), "[]").unwrap();
    refuses_folder(dir.path(), &[], &["adapter_config.json"]);
    // An adapter beside a whole model is passed over: such folders are what training leaves.
    small().write(dir.path());
    Variation::of_yi_nano().write_single(dir.path());
    convert(dir.path(), &dir.path().join("model.gguf"), &["-q", "Q8_0"]);
}
