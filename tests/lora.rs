//! LoRA adapters: they change what the model computes as merged weights would, and no file of theirs ends the process.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nibble::base::random::Random;
use nibble::engine::{Logits, Session, SessionOptions};
use nibble::gguf::{Gguf, Layout, Metadata, TensorInfo, TensorType, Value};
use nibble::llama::{FlashAttention, KvType, Lora, Model, ModelOptions};

use crate::support;

/// `yi-nano` in 32-bit floats.
static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("adapters-yi-nano-F32.gguf");
    support::convert(&support::yi_nano(), &file, &["-q", "F32", "--force"])
});

const TOKENS: [u32; 9] = [475, 505, 267, 447, 2616, 428, 306, 267, 449];
const RANK: u64 = 4;
const ALPHA: f32 = 6.0;

/// A tensor and its values.
type Tensor = (TensorInfo, Vec<f32>);

fn tensor(name: &str, dims: &[u64], values: Vec<f32>) -> Tensor {
    (TensorInfo { name: name.to_string(), dims: dims.to_vec(), ty: TensorType::F32 }, values)
}

fn write(metadata: &Metadata, tensors: &[Tensor]) -> tempfile::NamedTempFile {
    let layout = Layout::new(metadata, tensors.iter().map(|t| t.0.clone()).collect(), 32, None).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes = |i: usize| {
        let (info, values) = &tensors[i];
        match info.ty {
            TensorType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
            _ => vec![0; info.n_bytes().unwrap() as usize],
        }
    };
    layout.write_part(0, file.as_file_mut(), bytes).unwrap();
    file
}

fn adapter_metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.type", "adapter");
    metadata.set("general.architecture", "llama");
    metadata.set("adapter.type", "lora");
    metadata.set("adapter.lora.alpha", ALPHA);
    metadata
}

fn numbers(random: &mut Random, n: u64) -> Vec<f32> {
    (0..n).map(|_| (random.unit() as f32 - 0.5) * 0.2).collect()
}

/// Both matrices for the tensor `name` of the model.
fn pair(model: &Gguf, name: &str, random: &mut Random) -> [Tensor; 2] {
    let dims = &model.tensor(name).unwrap().dims;
    let (inputs, outputs) = (dims[0], dims[1]);
    // Rows of the embedding are looked up in A.
    let (a, b) =
        if name == "token_embd.weight" { ([RANK, outputs], [RANK, inputs]) } else { ([inputs, RANK], [RANK, outputs]) };
    [("lora_a", a), ("lora_b", b)]
        .map(|(which, dims)| tensor(&format!("{name}.{which}"), &dims, numbers(random, dims[0] * dims[1])))
}

/// The model with `scale` of the adapter's tensors added to its own, in doubles.
fn merged(model: &Gguf, adapter: &[Tensor], scale: f64) -> tempfile::NamedTempFile {
    let of = |name: &str| adapter.iter().find(|t| t.0.name == name).map(|t| t.1.as_slice());
    let scale = scale * f64::from(ALPHA) / RANK as f64;
    let tensors: Vec<Tensor> = (0..model.tensors().len())
        .map(|i| {
            let info = model.tensors()[i].clone();
            let bytes = model.data(i).chunks_exact(4);
            let mut values: Vec<f32> = bytes.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            if let (Some(a), Some(b)) = (of(&format!("{}.lora_a", info.name)), of(&format!("{}.lora_b", info.name))) {
                let (inputs, rank) = (info.dims[0] as usize, RANK as usize);
                for (at, value) in values.iter_mut().enumerate() {
                    let (row, column) = (at / inputs, at % inputs);
                    let product: f64 = (0..rank)
                        .map(|r| match info.name.as_str() {
                            "token_embd.weight" => f64::from(b[column * rank + r]) * f64::from(a[row * rank + r]),
                            _ => f64::from(b[row * rank + r]) * f64::from(a[r * inputs + column]),
                        })
                        .sum();
                    *value = (f64::from(*value) + scale * product) as f32;
                }
            }
            (info, values)
        })
        .collect();
    write(model.metadata(), &tensors)
}

fn load(path: &Path, lora: Vec<Lora>) -> Result<Model, nibble::llama::Error> {
    Model::load(path, ModelOptions { lora, ..Default::default() })
}

fn logits(path: &Path, lora: Vec<Lora>) -> Vec<f32> {
    let exact = SessionOptions {
        kv_types: KvType::F32.into(),
        flash_attention: FlashAttention::Off,
        threads: Some(1),
        ..SessionOptions::default()
    };
    let mut session = Session::new(&load(path, lora).unwrap(), &exact).unwrap();
    session.eval(&TOKENS, Logits::Last).unwrap();
    session.logits(0).unwrap().to_vec()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn an_adapter_does_what_merged_weights_do() {
    let model = Gguf::open(&MODEL).unwrap();
    let plain = logits(&MODEL, vec![]);
    let mut random = Random::new(3);
    let attention = ["blk.0.attn_q.weight", "blk.1.attn_v.weight"];
    let every: Vec<String> = (model.tensors().iter()).filter(|t| t.dims.len() == 2).map(|t| t.name.clone()).collect();
    assert!(every.len() > 20 && every.iter().any(|n| n == "output.weight"), "{every:?}");
    for names in [attention.map(str::to_string).to_vec(), every] {
        let adapter: Vec<Tensor> = names.iter().flat_map(|name| pair(&model, name, &mut random)).collect();
        let file = write(&adapter_metadata(), &adapter);
        let lora = |scale| Lora { path: file.path().to_path_buf(), scale };
        for scale in [1.0f32, -0.5] {
            let with = logits(&MODEL, vec![lora(scale)]);
            let wanted = logits(merged(&model, &adapter, scale.into()).path(), vec![]);
            let (off, changed) = (difference(&with, &wanted), difference(&with, &plain));
            eprintln!("{} tensors, scale {scale}: logits differ by {off:.2e}, changed by {changed:.2}", names.len());
            assert!(off < 1e-4 && changed > 0.05, "{off} {changed}");
        }
        assert_eq!(logits(&MODEL, vec![lora(0.0)]), plain, "a scale of 0 is no adapter");
        // Two of them add up.
        let twice = logits(&MODEL, vec![lora(0.25), lora(0.75)]);
        assert!(difference(&twice, &logits(&MODEL, vec![lora(1.0)])) < 1e-4);
    }
}

#[test]
fn an_adapter_that_does_not_go_with_the_model_is_refused() {
    let model = Gguf::open(&MODEL).unwrap();
    let name = "blk.0.attn_q.weight";
    let sound = || pair(&model, name, &mut Random::new(1)).to_vec();
    let refused = |metadata: &Metadata, tensors: &[Tensor]| {
        let file = write(metadata, tensors);
        let error = load(&MODEL, vec![Lora { path: file.path().to_path_buf(), scale: 1.0 }]).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.lines().count() == 1, "{error}");
        error
    };
    let with = |key: &str, value: Value| {
        let mut metadata = adapter_metadata();
        metadata.set(key, value);
        refused(&metadata, &sound())
    };
    support::has(&with("general.type", "model".into()), &["'general.type' is 'model'"]);
    support::has(&with("general.type", 7u32.into()), &["not a LoRA adapter"]);
    support::has(&with("adapter.type", "control_vector".into()), &["'adapter.type' is 'control_vector'"]);
    support::has(&with("general.architecture", "qwen2".into()), &["'qwen2'", "'llama'", "another kind of model"]);
    support::has(&with("adapter.lora.alpha", 4u32.into()), &["adapter.lora.alpha"]);
    support::has(&with("adapter.lora.alpha", f32::NAN.into()), &["adapter.lora.alpha"]);
    support::has(&with("adapter.alora.invocation_tokens", vec![1u32].into()), &["activated LoRA"]);

    let tensors = |tensors: Vec<Tensor>| refused(&adapter_metadata(), &tensors);
    let zeros = |name: &str, dims: &[u64]| tensor(name, dims, vec![0.0; dims.iter().product::<u64>() as usize]);
    support::has(&tensors(vec![]), &["no tensors"]);
    support::has(&tensors(sound()[..1].to_vec()), &["has no tensor 'blk.0.attn_q.weight.lora_b'"]);
    support::has(&tensors(sound()[1..].to_vec()), &["has no tensor 'blk.0.attn_q.weight.lora_a'"]);
    let more = |tensor: Tensor| tensors([sound(), vec![tensor]].concat());
    support::has(&more(zeros("blk.0.attn_norm.weight", &[256])), &["'blk.0.attn_norm.weight' replaces one"]);
    support::has(&more(zeros("note", &[1])), &["'note'"]);
    let two = |name: &str, a: &[u64], b: &[u64]| {
        tensors(vec![zeros(&format!("{name}.lora_a"), a), zeros(&format!("{name}.lora_b"), b)])
    };
    support::has(&two("blk.99.attn_q.weight", &[256, 4], &[4, 256]), &["no tensor 'blk.99.attn_q.weight'"]);
    support::has(&two("blk.0.attn_norm.weight", &[256, 4], &[4, 1]), &["not a matrix"]);
    support::has(&two(name, &[128, 4], &[4, 256]), &["is 128 x 4, but has to be 256 x 4"]);
    support::has(&two(name, &[256, 4], &[4, 128]), &["is 4 x 128, but has to be 4 x 256"]);
    support::has(&two(name, &[256, 4], &[8, 256]), &["is 256 x 4, but has to be 256 x 8"]);
    support::has(&two(name, &[256, 4, 2], &[4, 256]), &["is 256 x 4 x 2, but has to be 256 x 4"]);
    // As a matrix that is multiplied with, not looked up in.
    support::has(&two("token_embd.weight", &[256, 4], &[4, 6400]), &["'token_embd.weight.lora_a' is 256 x 4"]);
    for ty in [TensorType::I32, TensorType::F64, TensorType::Q8_K] {
        let mut tensors_of = sound();
        tensors_of[0].0.ty = ty;
        support::has(&tensors(tensors_of), &["has to be F32, F16, BF16 or Q8_0"]);
    }
    // A file that is cut short.
    let whole = write(&adapter_metadata(), &sound());
    let bytes = std::fs::read(whole.path()).unwrap();
    for length in [0, 10, 100, bytes.len() - 40] {
        std::fs::write(whole.path(), &bytes[..length]).unwrap();
        assert!(load(&MODEL, vec![Lora { path: whole.path().to_path_buf(), scale: 1.0 }]).is_err(), "{length} bytes");
    }
}

#[test]
fn a_model_that_uses_its_embedding_twice_takes_no_adapter_for_it() {
    let model = Gguf::open(&MODEL).unwrap();
    let all = (0..model.tensors().len()).map(|i| {
        let values = model.data(i).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (model.tensors()[i].clone(), values)
    });
    let tied = write(model.metadata(), &all.filter(|t: &Tensor| t.0.name != "output.weight").collect::<Vec<_>>());
    let file = write(&adapter_metadata(), &pair(&model, "token_embd.weight", &mut Random::new(1)));
    let error = load(tied.path(), vec![Lora { path: file.path().to_path_buf(), scale: 1.0 }]).unwrap_err().to_string();
    support::has(&error, &["'token_embd.weight', which the model uses for its output too"]);
}

#[test]
fn run_takes_adapters_with_their_scales() {
    let model = Gguf::open(&MODEL).unwrap();
    let mut random = Random::new(8);
    let names = ["blk.0.ffn_down.weight", "blk.2.attn_output.weight", "output.weight"];
    let adapter: Vec<Tensor> = names.iter().flat_map(|name| pair(&model, name, &mut random)).collect();
    let file = write(&adapter_metadata(), &adapter);
    let path = file.path().to_str().unwrap();
    let run = |lora: &[&str]| {
        let base = ["run", MODEL.to_str().unwrap(), "-p", "Once upon a time", "--greedy", "-n", "30", "-q"];
        support::stdout(&support::nibble(base.iter().chain(lora)))
    };
    let plain = run(&[]);
    assert_eq!(run(&["--lora", &format!("{path}=0")]), plain);
    assert_ne!(run(&["--lora", path]), plain);
    assert_eq!(run(&["--lora", &format!("{path}=0.5"), "--lora", &format!("{path}=-0.5")]), plain);
    let model = MODEL.to_str().unwrap();
    let told = support::error(&support::nibble(["run", model, "-p", "x", "--lora", model]));
    support::has(&told, &["cannot be used as a LoRA adapter"]);
}
