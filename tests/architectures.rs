//! A made-up architecture, unknown to nibble, whose tensors are fused, stacked, packed and shifted: converted, verified and
//! compared like any other, against a plain computation of every tensor.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nibble::arch::{
    Architecture, Architectures, Blueprint, Error, Input, Origin, OutputTensor, RowOrder, Stored, Topology,
};
use nibble::checkpoint::{PackedRows, Packing};
use nibble::convert::{Event, Job, Observer, Options};
use nibble::gguf::{Gguf, Metadata};
use nibble::pass::{self, EncodeRows, Prologue, WholeTensor};
use nibble::quant::{self, Format};
use nibble::recipe::Recipe;
use nibble::verify::{Sample, TensorVerdict, Verification, VerifyOptions};
use nibble::weights::WeightComparison;
use serde_json::{Map, Value, json};

use crate::support::{Tensor, Variation, files, folder, strings};

const LAYERS: u64 = 2;
const HIDDEN: u64 = 256;
const FFN: u64 = 2048;
const EXPERTS: u64 = 5;
const VOCAB: u64 = 6400;
const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const Q_ROWS: u64 = 256;
const KV_ROWS: u64 = 128;

struct MadeUp;

static MADE_UP: Architectures = Architectures(&[&MadeUp]);

/// A scale for each row of 8-bit codes.
static BYTES: Packing = Packing { name: "bytes with a scale a row", group_rows: Some(1), unpack: unpack_bytes };

fn unpack_bytes(packed: &PackedRows<'_>, weights: &mut [f32]) {
    for (row, weights) in packed.rows.clone().zip(weights.chunks_exact_mut(packed.row_len)) {
        let scale = f32::from_le_bytes(packed.others[0][row * 4..row * 4 + 4].try_into().unwrap());
        let codes = &packed.codes[(row - packed.first_row) * packed.row_len..][..packed.row_len];
        weights.iter_mut().zip(codes).for_each(|(weight, code)| *weight = scale * f32::from(*code as i8));
    }
}

impl Architecture for MadeUp {
    fn names(&self) -> &'static [&'static str] {
        &["MadeUpForCausalLM"]
    }

    fn gguf_name(&self) -> &'static str {
        "made-up"
    }

    fn has_experts(&self) -> bool {
        true
    }

    fn blueprint(&self, config: &Map<String, Value>) -> Result<Blueprint, Error> {
        let n_layers = config["num_hidden_layers"].as_u64().unwrap();
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "made-up");
        metadata.set("made-up.block_count", n_layers as u32);
        let made = |name: String, dims: &[u64], inputs| OutputTensor {
            name,
            dims: dims.to_vec(),
            origin: Origin::Checkpoint(inputs),
        };
        let embedding = Input::new("embed.weight", [HIDDEN, VOCAB]);
        let mut tensors = vec![made("token_embd.weight".into(), &[HIDDEN, VOCAB], vec![embedding])];
        for n in 0..n_layers {
            let name = |what: &str| format!("blk.{n}.{what}");
            let halves = |n_heads| RowOrder::InterleaveHalves { n_heads };
            let norm = Input::new(format!("layers.{n}.norm.weight"), [HIDDEN]).plus(1.0);
            tensors.push(made(name("attn_norm.weight"), &[HIDDEN], vec![norm]));
            // A split, of which two parts are permuted, and the same of a vector.
            let qkv_rows = Q_ROWS + 2 * KV_ROWS;
            let parts = [
                ("attn_q", 0..Q_ROWS, halves(HEADS)),
                ("attn_k", Q_ROWS..Q_ROWS + KV_ROWS, halves(KV_HEADS)),
                ("attn_v", Q_ROWS + KV_ROWS..qkv_rows, RowOrder::AsStored),
            ];
            for (part, rows, order) in parts {
                let n_rows = rows.end - rows.start;
                let of = |kind: &str, dims: &[u64]| {
                    vec![Input::new(format!("layers.{n}.qkv.{kind}"), dims).rows(rows.clone()).ordered(order)]
                };
                let weight = of("weight", &[HIDDEN, qkv_rows]);
                tensors.push(made(name(&format!("{part}.weight")), &[HIDDEN, n_rows], weight));
                tensors.push(made(name(&format!("{part}.bias")), &[n_rows], of("bias", &[qkv_rows])));
            }
            // A concatenation.
            let halves = ["gate", "up"].map(|half| Input::new(format!("layers.{n}.{half}.weight"), [HIDDEN, FFN]));
            tensors.push(made(name("ffn_up.weight"), &[HIDDEN, 2 * FFN], halves.to_vec()));
            // A stack.
            let experts =
                (0..EXPERTS).map(|e| Input::new(format!("layers.{n}.experts.{e}.up.weight"), [HIDDEN, FFN])).collect();
            tensors.push(made(name("ffn_up_exps.weight"), &[HIDDEN, FFN, EXPERTS], experts));
            // A matrix in two tensors.
            let down = Input {
                tensors: vec![
                    Stored::new(format!("layers.{n}.down.codes"), [FFN, HIDDEN]),
                    Stored::new(format!("layers.{n}.down.scales"), [HIDDEN]),
                ],
                packing: Some(&BYTES),
                ..Input::new("", Vec::<u64>::new())
            };
            tensors.push(made(name("ffn_down.weight"), &[FFN, HIDDEN], vec![down]));
        }
        tensors.push(made("output.weight".into(), &[HIDDEN, VOCAB], vec![Input::new("head.weight", [HIDDEN, VOCAB])]));
        Ok(Blueprint {
            topology: Topology { n_layers: n_layers as u32, n_heads: HEADS.into(), n_kv_heads: KV_HEADS.into() },
            vocab: VOCAB,
            metadata,
            tensors,
            tied: Some(false),
            has_biases: false,
            warnings: vec![],
        })
    }
}

/// A checkpoint of it, in three files: what belongs together is not in one.
struct Model {
    folder: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Model {
    fn new(folder: &Path) -> Self {
        let mut random = 1u32;
        let mut next = move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random >> 16
        };
        let mut tensor = |name: String, dtype: &str, shape: &[u64]| {
            let n: u64 = shape.iter().product();
            let mut bytes = Vec::new();
            for _ in 0..n {
                match dtype {
                    // Of both signs, from 2^-7 to 2^-5.
                    "BF16" => bytes.extend((next() as u16 & 0x80ff | 0x3c00).to_le_bytes()),
                    "F32" => bytes.extend((next() as f32 * 1e-6).to_le_bytes()),
                    _ => bytes.push(next() as u8),
                }
            }
            Tensor { name, dtype: dtype.to_string(), shape: shape.to_vec(), bytes }
        };
        let mut tensors = vec![
            tensor("embed.weight".into(), "BF16", &[VOCAB, HIDDEN]),
            tensor("head.weight".into(), "BF16", &[VOCAB, HIDDEN]),
        ];
        for n in 0..LAYERS {
            let name = |what: &str| format!("layers.{n}.{what}");
            let qkv_rows = Q_ROWS + 2 * KV_ROWS;
            tensors.push(tensor(name("norm.weight"), "BF16", &[HIDDEN]));
            tensors.push(tensor(name("qkv.weight"), "BF16", &[qkv_rows, HIDDEN]));
            tensors.push(tensor(name("qkv.bias"), "BF16", &[qkv_rows]));
            tensors.push(tensor(name("gate.weight"), "BF16", &[FFN, HIDDEN]));
            tensors.push(tensor(name("up.weight"), "BF16", &[FFN, HIDDEN]));
            for e in (0..EXPERTS).rev() {
                tensors.push(tensor(name(&format!("experts.{e}.up.weight")), "BF16", &[FFN, HIDDEN]));
            }
            tensors.push(tensor(name("down.codes"), "I8", &[HIDDEN, FFN]));
            tensors.push(tensor(name("down.scales"), "F32", &[HIDDEN]));
        }
        let mut variation = Variation::of_yi_nano();
        variation.tensors = tensors;
        variation.config = json!({
            "architectures": ["MadeUpForCausalLM"],
            "num_hidden_layers": LAYERS,
            "num_experts": EXPERTS,
            "vocab_size": VOCAB,
        })
        .as_object()
        .unwrap()
        .clone();
        variation.write_shards(folder, 3);
        let tensors = variation.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Self { folder: folder.to_path_buf(), tensors }
    }

    /// The weights of a tensor of the checkpoint.
    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = &self.tensors[name];
        match tensor.dtype.as_str() {
            "BF16" => {
                let words = tensor.bytes.as_chunks::<2>().0.iter();
                words.map(|word| f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16)).collect()
            }
            "F32" => tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            _ => tensor.bytes.iter().map(|byte| f32::from(*byte as i8)).collect(),
        }
    }

    /// What a tensor of the file holds before it is quantized, computed by the definition.
    fn plain(&self, name: &str) -> Vec<f32> {
        let Some((n, what)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return self.floats(if name == "output.weight" { "head.weight" } else { "embed.weight" });
        };
        let (q, kv) = (Q_ROWS as usize, KV_ROWS as usize);
        let fused = |kind: &str, rows: std::ops::Range<usize>, n_heads: usize| {
            let row_len = if kind == "weight" { HIDDEN as usize } else { 1 };
            let part = self.floats(&format!("layers.{n}.qkv.{kind}"));
            interleave(&part[rows.start * row_len..rows.end * row_len], row_len, n_heads)
        };
        match what {
            "attn_norm.weight" => {
                self.floats(&format!("layers.{n}.norm.weight")).iter().map(|weight| weight + 1.0).collect()
            }
            "ffn_up.weight" => ["gate", "up"].map(|half| self.floats(&format!("layers.{n}.{half}.weight"))).concat(),
            "ffn_up_exps.weight" => {
                (0..EXPERTS).flat_map(|e| self.floats(&format!("layers.{n}.experts.{e}.up.weight"))).collect()
            }
            "ffn_down.weight" => {
                let scales = self.floats(&format!("layers.{n}.down.scales"));
                let codes = self.floats(&format!("layers.{n}.down.codes"));
                codes.iter().enumerate().map(|(i, code)| scales[i / FFN as usize] * code).collect()
            }
            _ => match what.split_once('.').unwrap() {
                ("attn_q", kind) => fused(kind, 0..q, HEADS as usize),
                ("attn_k", kind) => fused(kind, q..q + kv, KV_HEADS as usize),
                ("attn_v", kind) => fused(kind, q + kv..q + 2 * kv, 0),
                other => panic!("{other:?}"),
            },
        }
    }

    fn options(&self, recipe: &str, output: &Path) -> Options {
        let recipe = Recipe::find(recipe).unwrap().clone();
        Options { output: Some(output.to_path_buf()), architectures: MADE_UP, ..Options::new(recipe) }
    }

    fn convert(&self, options: Options) -> PathBuf {
        let output = options.output.clone().unwrap();
        Job::prepare(&self.folder, options).unwrap().execute(&(), &AtomicBool::new(false)).unwrap();
        output
    }

    fn verify(&self, file: &Path, options: VerifyOptions) -> nibble::verify::Report {
        let options = VerifyOptions { architectures: MADE_UP, ..options };
        let job = Verification::prepare(file, Some(&self.folder), options).unwrap();
        job.execute(&|_, _| (), &AtomicBool::new(false)).unwrap()
    }
}

/// Within each of `n_heads` heads, the first and the second half of the rows by turns; rows as they are for 0 heads.
fn interleave(rows: &[f32], row_len: usize, n_heads: usize) -> Vec<f32> {
    if n_heads == 0 {
        return rows.to_vec();
    }
    let head = rows.len() / n_heads;
    let mut out = Vec::new();
    for rows in rows.chunks_exact(head) {
        let (first, second) = rows.split_at(head / 2);
        for (a, b) in first.chunks_exact(row_len).zip(second.chunks_exact(row_len)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

fn is_right(report: &nibble::verify::Report) {
    assert!(report.is_right(), "{report:?}");
    assert!(report.tensors.iter().all(|tensor| tensor.comparison == TensorVerdict::Same), "{report:?}");
}

#[test]
fn every_tensor_is_what_a_plain_computation_gives() {
    let dir = folder();
    let model = Model::new(&dir.path().join("made-up"));
    for recipe in ["F32", "F16", "Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K"] {
        let file = model.convert(model.options(recipe, &dir.path().join(format!("{recipe}.gguf"))));
        let gguf = Gguf::open(&file).unwrap();
        assert_eq!(gguf.metadata().str("general.architecture"), Some("made-up"));
        assert_eq!(gguf.tensors().len(), 2 + LAYERS as usize * 10);
        for (i, info) in gguf.tensors().iter().enumerate() {
            let weights = model.plain(&info.name);
            let mut bytes = vec![0; gguf.data(i).len()];
            quant::format(info.ty).unwrap().quantize_rows(&weights, info.row_len() as usize, None, &mut bytes);
            assert!(gguf.data(i) == bytes, "{recipe}: {} ({}, {:?})", info.name, info.ty, info.dims);
        }
        // Every file was read once, whole, and in order.
        let names = strings(&gguf, "nibble.source.files");
        assert_eq!(names.len(), 3);
        let hash = |name: &String| blake3::hash(&std::fs::read(model.folder.join(name)).unwrap()).to_string();
        assert_eq!(strings(&gguf, "nibble.source.blake3"), names.iter().map(hash).collect::<Vec<_>>());
    }
}

#[test]
fn it_verifies_whole_and_in_samples_and_a_flipped_bit_is_found() {
    let dir = folder();
    let model = Model::new(&dir.path().join("made-up"));
    let file = model.convert(model.options("Q4_K_M", &dir.path().join("x.gguf")));
    let report = model.verify(&file, VerifyOptions::default());
    is_right(&report);
    assert_eq!(report.checked_bytes, report.tensor_bytes);
    for seed in 0..5 {
        let sample = Some(Sample { share: 0.2, seed });
        let report = model.verify(&file, VerifyOptions { sample, ..VerifyOptions::default() });
        assert!(report.is_right(), "{report:?}");
    }
    // In the last expert of the stack.
    let gguf = Gguf::open(&file).unwrap();
    let at = gguf.location(gguf.index_of("blk.1.ffn_up_exps.weight").unwrap()).1;
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at.end - 144] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let report = model.verify(&file, VerifyOptions::default());
    let differing: Vec<_> = report.tensors.iter().filter(|tensor| tensor.differs()).collect();
    let [tensor] = differing.as_slice() else { panic!("{report:?}") };
    let TensorVerdict::Differs(blocks) = tensor.comparison else { panic!("{tensor:?}") };
    assert_eq!((tensor.info.name.as_str(), blocks.n), ("blk.1.ffn_up_exps.weight", 1));
    assert_eq!(tensor.position(blocks.first), (FFN * EXPERTS - 1, 0));
    let sample = Some(Sample { share: 1.0, seed: 1 });
    assert_eq!(model.verify(&file, VerifyOptions { sample, ..VerifyOptions::default() }).n_differing(), 1);
}

#[test]
fn its_weights_are_compared_in_the_order_of_their_rows() {
    let dir = folder();
    let model = Model::new(&dir.path().join("made-up"));
    let file = model.convert(model.options("Q4_0", &dir.path().join("x.gguf")));
    let job = WeightComparison::prepare_with(MADE_UP, &model.folder, &[&file], None).unwrap();
    let found = job.execute(&|_, _| (), &AtomicBool::new(false)).unwrap().remove(0).unwrap();
    assert_eq!(found.skipped, Vec::<String>::new());
    let gguf = Gguf::open(&file).unwrap();
    assert_eq!(found.tensors.len(), gguf.tensors().len());
    for error in &found.tensors {
        let i = gguf.index_of(&error.name).unwrap();
        let info = &gguf.tensors()[i];
        let weights = model.plain(&error.name);
        let mut decoded = vec![0.0; weights.len()];
        quant::format(info.ty).unwrap().dequantize(gguf.data(i), &mut decoded);
        let row_len = info.row_len() as usize;
        let squares = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        let (all, zeros) = (squares(&weights, &decoded), vec![0.0; weights.len()]);
        let rmse = (all / weights.len() as f64).sqrt();
        assert!((error.error.rmse - rmse).abs() <= 1e-9 * rmse, "{}: {} {rmse}", error.name, error.error.rmse);
        if info.dims.len() > 1 {
            let relative = |row: usize| {
                let at = row * row_len..(row + 1) * row_len;
                squares(&weights[at.clone()], &decoded[at.clone()]) / squares(&weights[at.clone()], &zeros[at])
            };
            let worst = (0..weights.len() / row_len).max_by(|a, b| relative(*a).total_cmp(&relative(*b))).unwrap();
            assert_eq!(error.worst_row, worst as u64, "{}", error.name);
        }
    }
}

/// Stops the work after so many spans.
struct StopAfter<'a> {
    left: AtomicUsize,
    cancel: &'a AtomicBool,
    events: Mutex<Vec<Event>>,
}

impl Observer for StopAfter<'_> {
    fn advance(&self, _: u64, _: u64) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }

    fn event(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

#[test]
fn work_that_was_cut_off_is_continued_to_the_same_bytes() {
    let dir = folder();
    let model = Model::new(&dir.path().join("made-up"));
    let wanted = std::fs::read(model.convert(model.options("Q4_K_M", &dir.path().join("wanted.gguf")))).unwrap();
    // One span after the other.
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for n_spans in [1, 2, 3] {
        let output = dir.path().join("x.gguf");
        let job = Job::prepare(&model.folder, model.options("Q4_K_M", &output)).unwrap();
        let cancel = AtomicBool::new(false);
        let stop = StopAfter { left: AtomicUsize::new(n_spans), cancel: &cancel, events: Mutex::default() };
        assert!(one_thread.install(|| job.execute(&stop, &cancel)).unwrap_err().is_cancelled());
        let cancel = AtomicBool::new(false);
        let go_on = StopAfter { left: AtomicUsize::new(usize::MAX), cancel: &cancel, events: Mutex::default() };
        job.execute(&go_on, &cancel).unwrap();
        let events = go_on.events.into_inner().unwrap();
        assert!(matches!(events.last(), Some(Event::Resuming { lost_bytes: 0, .. })), "{events:?}");
        assert!(std::fs::read(&output).unwrap() == wanted);
        std::fs::remove_file(output).unwrap();
    }
    assert_eq!(files(dir.path()), ["made-up", "wanted.gguf"]);
}

/// Takes the mean of each matrix from its weights: what needs a whole tensor before its first row.
#[derive(Debug, Default)]
struct WithoutMean {
    prepared: Mutex<Vec<String>>,
}

struct Minus(f32);

impl Prologue for WithoutMean {
    fn identity(&self) -> String {
        "without mean".to_string()
    }

    fn prepare(&self, tensor: &WholeTensor<'_>) -> Result<Option<Box<dyn EncodeRows>>, pass::Error> {
        if tensor.info.dims.len() < 2 {
            return Ok(None);
        }
        self.prepared.lock().unwrap().push(tensor.info.name.clone());
        let mut weights = Vec::new();
        // In two parts, neither of which ends with an input.
        let half = tensor.n_rows() / 2 + 1;
        tensor.read(0..half, &mut weights)?;
        let mut sum: f64 = weights[..half * tensor.row_len()].iter().map(|weight| f64::from(*weight)).sum();
        tensor.read(half..tensor.n_rows(), &mut weights)?;
        let rest = (tensor.n_rows() - half) * tensor.row_len();
        sum += weights[..rest].iter().map(|weight| f64::from(*weight)).sum::<f64>();
        Ok(Some(Box::new(Minus((sum / (tensor.n_rows() * tensor.row_len()) as f64) as f32))))
    }
}

impl EncodeRows for Minus {
    fn encode(
        &self,
        format: &Format,
        _first_row: usize,
        weights: &mut [f32],
        row_len: usize,
        importance: Option<&[f32]>,
        dst: &mut [u8],
    ) {
        weights.iter_mut().for_each(|weight| *weight -= self.0);
        format.quantize_rows(weights, row_len, importance, dst);
    }
}

#[test]
fn a_prologue_sees_a_whole_tensor_once_before_its_rows_are_encoded() {
    let dir = folder();
    let model = Model::new(&dir.path().join("made-up"));
    let prologue = Arc::new(WithoutMean::default());
    let options = Options { prologue: Some(prologue.clone()), ..model.options("Q8_0", &dir.path().join("x.gguf")) };
    let file = model.convert(options);
    let gguf = Gguf::open(&file).unwrap();
    for (i, info) in gguf.tensors().iter().enumerate() {
        let mut weights = model.plain(&info.name);
        if info.dims.len() > 1 {
            let rows = weights.len() / info.row_len() as usize;
            let (first, second) = weights.split_at((rows / 2 + 1) * info.row_len() as usize);
            let sum = |weights: &[f32]| weights.iter().map(|weight| f64::from(*weight)).sum::<f64>();
            let mean = ((sum(first) + sum(second)) / weights.len() as f64) as f32;
            weights.iter_mut().for_each(|weight| *weight -= mean);
        }
        let mut bytes = vec![0; gguf.data(i).len()];
        quant::format(info.ty).unwrap().quantize_rows(&weights, info.row_len() as usize, None, &mut bytes);
        assert!(gguf.data(i) == bytes, "{}", info.name);
    }
    let mut prepared = prologue.prepared.lock().unwrap().clone();
    prepared.sort();
    let mut matrices: Vec<_> =
        gguf.tensors().iter().filter(|info| info.dims.len() > 1).map(|info| info.name.clone()).collect();
    matrices.sort();
    assert_eq!(prepared, matrices);

    let with: Arc<dyn Prologue> = Arc::new(WithoutMean::default());
    is_right(&model.verify(&file, VerifyOptions { prologue: Some(with), ..VerifyOptions::default() }));
    // The file records it, so nothing else is compared with it.
    let without = VerifyOptions { architectures: MADE_UP, ..VerifyOptions::default() };
    let refused = Verification::prepare(&file, Some(&model.folder), without).err().unwrap();
    assert!(matches!(refused, nibble::verify::Error::OtherRounding { recorded, .. } if recorded == "without mean"));
}

#[test]
fn nibble_itself_does_not_know_it() {
    let dir = folder();
    let model = Model::new(&dir.path().join("made-up"));
    let options = Options { architectures: nibble::arch::ARCHITECTURES, ..model.options("Q8_0", Path::new("x.gguf")) };
    let error = Job::prepare(&model.folder, options).err().unwrap().to_string();
    assert!(error.contains("'MadeUpForCausalLM' is not one that nibble knows"), "{error}");
    let missing = Model { folder: dir.path().join("missing"), tensors: HashMap::new() };
    std::fs::create_dir(&missing.folder).unwrap();
    for file in files(&model.folder) {
        std::fs::copy(model.folder.join(&file), missing.folder.join(&file)).unwrap();
    }
    let mut variation = Variation::of_yi_nano();
    variation.config = serde_json::from_slice(&std::fs::read(model.folder.join("config.json")).unwrap()).unwrap();
    variation.tensors = model.tensors.into_values().filter(|tensor| tensor.name != "layers.0.qkv.weight").collect();
    variation.write_shards(&missing.folder, 3);
    let error = Job::prepare(&missing.folder, missing.options("Q8_0", Path::new("x.gguf"))).err().unwrap().to_string();
    assert!(error.ends_with("the checkpoint lacks layers.0.qkv.weight"), "{error}");
}
