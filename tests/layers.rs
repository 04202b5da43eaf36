//! Models that nibble computes itself, one layer at a time, against llama.cpp.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nibble::engine::SessionOptions;
use nibble::gguf::Gguf;
use nibble::llama::{Batch, Context, Model, ModelOptions, Node, Observer, Room};
use nibble::transformer;

use crate::support;

const WINDOW: usize = 48;

/// Tokens of no meaning, for two windows.
fn tokens(n_vocab: u32) -> Vec<u32> {
    (0..2 * WINDOW as u32).map(|i| (i * 7919 + 31) % n_vocab).collect()
}

/// What leaves each layer, what enters each matrix of a layer, and the logits.
#[derive(Default)]
struct Found {
    outputs: Vec<Vec<f32>>,
    inputs: Vec<(String, Vec<f32>)>,
    logits: Vec<f32>,
}

impl Found {
    /// All that enters a matrix, window by window.
    fn inputs(&self, wanted: &str) -> Vec<f32> {
        self.inputs.iter().filter(|(name, _)| name == wanted).flat_map(|(_, inputs)| inputs.clone()).collect()
    }
}

struct Eyes(Arc<Mutex<Found>>, Room);

impl Observer for Eyes {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name().starts_with("l_out-") || node.is_product()
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        let mut found = self.0.lock().unwrap();
        if let Some(layer) = node.name().strip_prefix("l_out-") {
            let layer: usize = layer.parse().unwrap();
            if found.outputs.len() <= layer {
                found.outputs.resize(layer + 1, Vec::new());
            }
            found.outputs[layer].extend_from_slice(self.1.read(node).unwrap());
        } else if let (Some(matrix), Some(input)) = (node.source(0), node.source(1))
            && matrix.name().starts_with("blk.")
        {
            found.inputs.push((matrix.name().to_string(), self.1.read(input).unwrap().to_vec()));
        }
        ControlFlow::Continue(())
    }
}

fn by_llama_cpp(file: &Path) -> Found {
    let model = Model::load(file, ModelOptions { repack: false, ..ModelOptions::default() }).unwrap();
    let found = Arc::new(Mutex::new(Found::default()));
    let window = WINDOW as u32;
    let session = SessionOptions {
        n_ctx: Some(window),
        n_batch: window,
        rows: window,
        threads: Some(2),
        ..support::exact()
    };
    let eyes = Eyes(found.clone(), Room::default());
    let mut context = Context::new(&model, &session.context(None, 1), Some(Box::new(eyes))).unwrap();
    let mut batch = Batch::default();
    let mut logits = Vec::new();
    for tokens in tokens(model.n_vocab()).chunks(WINDOW) {
        context.clear();
        batch.clear();
        for (position, token) in tokens.iter().enumerate() {
            batch.push(*token, position as u32, &[0], true);
        }
        context.decode(&batch).unwrap();
        for row in 0..tokens.len() {
            logits.extend_from_slice(context.logits(row).unwrap());
        }
    }
    drop(context);
    let found = Arc::into_inner(found).unwrap().into_inner().unwrap();
    Found { logits, ..found }
}

fn by_nibble(file: &Path) -> Found {
    let gguf = Gguf::open(file).unwrap();
    let model = transformer::Model::new(gguf.metadata(), &gguf).unwrap();
    let mut hidden = model.embed(&tokens(model.n_vocab() as u32)).unwrap();
    let mut found = Found::default();
    for layer in 0..model.n_layers() {
        let inputs = &mut found.inputs;
        let mut see = |seen: transformer::Seen<'_>| {
            inputs.push((format!("blk.{layer}.{}", seen.tensor), seen.inputs.to_vec()));
        };
        model.forward(layer, WINDOW, &mut hidden, &mut see).unwrap();
        found.outputs.push(hidden.clone());
    }
    found.logits = model.logits(&hidden).unwrap();
    found
}

/// The length of the difference, as a part of that of `a`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert!(!a.is_empty() && a.len() == b.len(), "{} and {} numbers", a.len(), b.len());
    let sum = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
    let apart = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    apart / sum(&mut a.iter().map(|a| f64::from(*a)))
}

fn assert_same(file: &Path) {
    let (wanted, found) = (by_llama_cpp(file), by_nibble(file));
    assert!(wanted.outputs.len() > 1);
    for (layer, (wanted_output, output)) in wanted.outputs.iter().zip(&found.outputs).enumerate() {
        assert!(difference(wanted_output, output) < 1e-5, "what leaves layer {layer}");
        for matrix in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            let name = format!("blk.{layer}.{matrix}.weight");
            assert!(difference(&wanted.inputs(&name), &found.inputs(&name)) < 1e-5, "what enters {name}");
        }
    }
    let apart = difference(&wanted.logits, &found.logits);
    assert!(apart < 1e-5, "logits: {apart}");
}

fn converted(source: &Path, name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // In single precision llama.cpp computes as exactly as nibble does.
    support::convert(source, &file, &["-q", "F32", "--force"])
}

#[test]
fn layers_compute_what_llama_cpp_computes() {
    assert_same(&converted(&support::yi_nano(), "layers-yi-nano.gguf"));
}
