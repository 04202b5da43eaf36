//! A model that is run one layer at a time, against the same model in one.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use nibble::engine::SessionOptions;
use nibble::evaluate::layers::{self, Error, Inputs, Layer};
use nibble::gguf::{Gguf, TensorType};
use nibble::llama::{Batch, Context, Model, ModelOptions, Node, Observer, Room};
use nibble::quant;
use tempfile::TempDir;

use crate::support;

const WINDOW: u32 = 48;

fn session(threads: u32) -> SessionOptions {
    SessionOptions { threads: Some(threads), ..support::exact() }
}

/// The whole model, made once for all tests.
fn whole() -> PathBuf {
    static MADE: LazyLock<PathBuf> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layers-yi-nano-BF16.gguf");
        support::convert(&support::yi_nano(), &file, &["-q", "BF16", "--force"])
    });
    MADE.clone()
}

/// Tokens of no meaning, for two windows.
fn tokens(n_vocab: u32) -> Vec<u32> {
    (0..2 * WINDOW).map(|i| (i * 7919 + 31) % n_vocab).collect()
}

/// What leaves each layer of a whole model, and the inputs of each matrix of its layers, in the order of computation.
#[derive(Default)]
struct Seen {
    outputs: Vec<Vec<f32>>,
    inputs: Vec<(String, Vec<f32>)>,
}

struct Eyes(Arc<Mutex<Seen>>, Room);

impl Observer for Eyes {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name().starts_with("l_out-") || node.is_product()
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        let mut seen = self.0.lock().unwrap();
        if let Some(layer) = node.name().strip_prefix("l_out-") {
            let layer: usize = layer.parse().unwrap();
            if seen.outputs.len() <= layer {
                seen.outputs.resize(layer + 1, Vec::new());
            }
            seen.outputs[layer].extend_from_slice(self.1.read(node).unwrap());
        } else if let (Some(matrix), Some(input)) = (node.source(0), node.source(1))
            && matrix.name().starts_with("blk.")
        {
            seen.inputs.push((matrix.name().to_string(), self.1.read(input).unwrap().to_vec()));
        }
        ControlFlow::Continue(())
    }
}

/// Runs all of a model over two windows.
fn run_whole(file: &Path, threads: u32) -> Seen {
    let model = Model::load(file, ModelOptions { repack: false, ..ModelOptions::default() }).unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let session = SessionOptions { n_ctx: Some(WINDOW), n_batch: WINDOW, rows: WINDOW, ..session(threads) };
    let eyes = Eyes(seen.clone(), Room::default());
    let mut context = Context::new(&model, &session.context(None, 1), Some(Box::new(eyes))).unwrap();
    let mut batch = Batch::default();
    for window in tokens(model.n_vocab()).chunks(WINDOW as usize) {
        context.clear();
        batch.clear();
        for (position, token) in window.iter().enumerate() {
            batch.push(*token, position as u32, &[0], true);
        }
        context.decode(&batch).unwrap();
    }
    drop(context);
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

/// Keeps the inputs of all matrices.
#[derive(Default)]
struct Kept(Vec<(String, Vec<f32>)>);

impl Inputs for Kept {
    fn wants(&self, _matrix: &str) -> bool {
        true
    }

    fn take(&mut self, matrix: &str, columns: usize, inputs: &[f32]) {
        assert!(columns > 0 && inputs.len().is_multiple_of(columns));
        self.0.push((matrix.to_string(), inputs.to_vec()));
    }
}

#[test]
fn one_layer_after_the_other_computes_what_all_together_compute() {
    let file = whole();
    let dir = TempDir::new().unwrap();
    for threads in [1, 2] {
        let seen = run_whole(&file, threads);
        let gguf = Gguf::open(&file).unwrap();
        let n_layers = layers::n_layers(&gguf).unwrap();
        assert_eq!(n_layers, seen.outputs.len());
        let n_vocab = gguf.tensor("token_embd.weight").unwrap().n_rows().unwrap() as u32;
        let mut hidden = layers::embed(&gguf, &tokens(n_vocab)).unwrap();
        let mut inputs = Vec::new();
        for layer in 0..n_layers {
            let path = dir.path().join("layer.gguf");
            layers::write_layer(&gguf, layer, &path, &|_| None).unwrap();
            let mut run = Layer::open(&path, WINDOW, &session(threads), Kept::default()).unwrap();
            run.run(&mut hidden).unwrap();
            assert!(hidden == seen.outputs[layer], "layer {layer}");
            let kept = run.finish().0;
            inputs.extend(kept.into_iter().map(|(name, inputs)| (format!("blk.{layer}.{name}"), inputs)));
        }
        // In the whole model, windows are the outer loop.
        let of = |all: &[(String, Vec<f32>)], wanted: &str| -> Vec<f32> {
            all.iter().filter(|(name, _)| name == wanted).flat_map(|(_, inputs)| inputs.clone()).collect()
        };
        for layer in 0..n_layers {
            for matrix in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
                let name = format!("blk.{layer}.{matrix}.weight");
                let (one, all) = (of(&inputs, &name), of(&seen.inputs, &name));
                assert!(!one.is_empty() && one == all, "{name}");
            }
        }
    }
}

#[test]
fn a_layer_can_be_run_with_other_weights() {
    let file = whole();
    let dir = TempDir::new().unwrap();
    let quantized = support::convert(&support::yi_nano(), &dir.path().join("q8.gguf"), &["-q", "Q8_0"]);
    let seen = run_whole(&quantized, 2);
    let (gguf, other) = (Gguf::open(&file).unwrap(), Gguf::open(&quantized).unwrap());
    let format = quant::format(TensorType::Q8_0).unwrap();
    let n_vocab = gguf.tensor("token_embd.weight").unwrap().n_rows().unwrap() as u32;
    let mut hidden = layers::embed(&other, &tokens(n_vocab)).unwrap();
    // The matrices of layer 0, quantized here: the bytes that conversion makes.
    let data = |name: &str| {
        let index = gguf.index_of(name).unwrap();
        let tensor = &gguf.tensors()[index];
        (tensor.dims.len() == 2).then(|| {
            let mut weights = vec![0.0; tensor.n_elements().unwrap() as usize];
            quant::decoder(tensor.ty).unwrap()(gguf.data(index), &mut weights);
            let mut bytes = vec![0; weights.len() / 32 * 34];
            format.quantize_rows(&weights, tensor.row_len() as usize, None, &mut bytes);
            assert!(bytes == other.data(other.index_of(name).unwrap()), "{name}");
            (TensorType::Q8_0, bytes)
        })
    };
    let path = dir.path().join("layer.gguf");
    layers::write_layer(&gguf, 0, &path, &data).unwrap();
    let mut run = Layer::open(&path, WINDOW, &session(2), ()).unwrap();
    run.run(&mut hidden).unwrap();
    assert!(hidden == seen.outputs[0]);
}

#[test]
fn what_cannot_be_run_is_refused() {
    let file = whole();
    let dir = TempDir::new().unwrap();
    let gguf = Gguf::open(&file).unwrap();
    let n_layers = layers::n_layers(&gguf).unwrap();
    let path = dir.path().join("layer.gguf");
    let error = layers::write_layer(&gguf, n_layers, &path, &|_| None).unwrap_err();
    assert!(matches!(error, Error::NoLayer { layer, .. } if layer == n_layers), "{error}");
    let error = layers::embed(&gguf, &[0, u32::MAX]).unwrap_err();
    assert!(matches!(error, Error::Embedding { .. }), "{error}");
    layers::write_layer(&gguf, 0, &path, &|_| None).unwrap();
    let mut run = Layer::open(&path, WINDOW, &session(1), ()).unwrap();
    let n_embd = gguf.tensor("token_embd.weight").unwrap().row_len() as usize;
    for n in [1, n_embd * (WINDOW as usize - 1), n_embd * WINDOW as usize + 1] {
        let error = run.run(&mut vec![0.0; n]).unwrap_err();
        assert!(matches!(error, Error::Windows { found, .. } if found == n), "{error}");
    }
    // A layer of zeros in, no number out that is not one.
    let mut hidden = vec![0.0; n_embd * WINDOW as usize];
    run.run(&mut hidden).unwrap();
    assert!(hidden.iter().all(|x| x.is_finite()));
}

#[test]
fn vectors_of_another_length_are_refused() {
    let model = Model::load(&whole(), ModelOptions::default()).unwrap();
    let session = SessionOptions { n_ctx: Some(8), n_batch: 8, rows: 1, ..session(1) };
    let mut context = Context::new(&model, &session.context(None, 1), None).unwrap();
    let mut batch = Batch::default();
    batch.push(0, 0, &[0], true);
    for n in [0, model.n_embd() - 1, 2 * model.n_embd()] {
        assert!(context.decode_hidden(&batch, &vec![0.0; n]).is_err());
    }
    context.decode_hidden(&batch, &vec![0.0; model.n_embd()]).unwrap();
}
