//! The oracle of whole models: a Llama forward pass in double precision, written from the definition and fed with the
//! checkpoint's own tensors under their Hugging Face names. What nibble converts and llama.cpp runs has to agree with it,
//! for every feature that a configuration can ask for.
//!
//! Definition: `modeling_llama.py` and `modeling_rope_utils.py` of transformers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::f64::consts::PI;
use std::path::Path;

use nibble::engine::{Logits, Session, SessionOptions};
use nibble::gguf::Gguf;
use nibble::llama::{FlashAttention, KvType, Model, ModelOptions};
use nibble::transformer;
use serde_json::{Map, Value, json};

use crate::support::{Tensor, Variation, convert, folder};

/// A checkpoint in double precision.
pub struct Reference {
    config: Map<String, Value>,
    weights: HashMap<String, Vec<f64>>,
    /// By matrix: the sum of squares of each channel of its input, over all that was computed.
    pub squares: RefCell<HashMap<String, Vec<f64>>>,
}

impl Reference {
    pub fn new(checkpoint: &Variation) -> Self {
        let weights = checkpoint.tensors.iter().map(|t| (t.name.clone(), values(t))).collect();
        Self { config: checkpoint.config.clone(), weights, squares: RefCell::default() }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.config.get(key)?.as_f64()
    }

    fn size(&self, key: &str) -> usize {
        self.number(key).unwrap() as usize
    }

    fn head_dim(&self) -> usize {
        match self.number("head_dim") {
            Some(dim) => dim as usize,
            None => self.size("hidden_size") / self.size("num_attention_heads"),
        }
    }

    /// `name.weight` times `x`, plus `name.bias` where there is one.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mut squares = self.squares.borrow_mut();
        let squares = squares.entry(name.to_string()).or_insert_with(|| vec![0.0; x.len()]);
        squares.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
        let weight = &self.weights[&format!("{name}.weight")];
        let mut y: Vec<f64> = weight.chunks_exact(x.len()).map(|row| dot(row, x)).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + self.number("rms_norm_eps").unwrap()).sqrt();
        x.iter().zip(&self.weights[&format!("{name}.weight")]).map(|(x, w)| x * scale * w).collect()
    }

    /// The angles' frequencies, and what the rotation is multiplied with.
    fn rotation(&self) -> (Vec<f64>, f64) {
        let dim = self.head_dim() as f64;
        let base = self.number("rope_theta").unwrap();
        let plain: Vec<f64> = (0..self.head_dim() / 2).map(|j| base.powf(-2.0 * j as f64 / dim)).collect();
        let Some(Value::Object(scaling)) = self.config.get("rope_scaling") else { return (plain, 1.0) };
        let get = |key: &str| scaling[key].as_f64().unwrap();
        let factor = get("factor");
        match scaling["rope_type"].as_str().unwrap() {
            "linear" => (plain.iter().map(|f| f / factor).collect(), 1.0),
            "llama3" => {
                let (low, high) = (get("low_freq_factor"), get("high_freq_factor"));
                let old = get("original_max_position_embeddings");
                let scaled = plain.iter().map(|&f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < old / high {
                        f
                    } else if wavelength > old / low {
                        f / factor
                    } else {
                        let smooth = (old / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                });
                (scaled.collect(), 1.0)
            }
            "yarn" => {
                let old = get("original_max_position_embeddings");
                let place = |turns: f64| dim * (old / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
                let (low, high) = (place(32.0).floor().max(0.0), place(1.0).ceil().min(dim - 1.0));
                let scaled = plain.iter().enumerate().map(|(j, &f)| {
                    let ramp = ((j as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                (scaled.collect(), 0.1 * factor.ln() + 1.0)
            }
            other => panic!("no scaling '{other}' here"),
        }
    }

    /// The logits after each token.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.size("hidden_size");
        let (n_heads, n_kv_heads) = (self.size("num_attention_heads"), self.size("num_key_value_heads"));
        let head_dim = self.head_dim();
        let (frequencies, strength) = self.rotation();
        let rotate = |heads: &mut [f64], position: usize| {
            for head in heads.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for ((a, b), f) in first.iter_mut().zip(second).zip(&frequencies) {
                    let (sin, cos) = (position as f64 * f).sin_cos();
                    (*a, *b) = ((*a * cos - *b * sin) * strength, (*b * cos + *a * sin) * strength);
                }
            }
        };

        let embedding = &self.weights["model.embed_tokens.weight"];
        let mut states: Vec<Vec<f64>> =
            tokens.iter().map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
        for layer in 0..self.size("num_hidden_layers") {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let (mut keys, mut values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
            for (position, state) in states.iter_mut().enumerate() {
                let x = self.norm(&name("input_layernorm"), state);
                let mut query = self.linear(&name("self_attn.q_proj"), &x);
                let mut key = self.linear(&name("self_attn.k_proj"), &x);
                rotate(&mut query, position);
                rotate(&mut key, position);
                keys.push(key);
                values.push(self.linear(&name("self_attn.v_proj"), &x));

                let mut mixed = vec![0.0; n_heads * head_dim];
                for head in 0..n_heads {
                    let shared = head / (n_heads / n_kv_heads) * head_dim;
                    let q = &query[head * head_dim..][..head_dim];
                    let scores: Vec<f64> =
                        keys.iter().map(|k| dot(q, &k[shared..][..head_dim]) / (head_dim as f64).sqrt()).collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let shares: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let total: f64 = shares.iter().sum();
                    for (share, value) in shares.iter().zip(&values) {
                        for (m, v) in mixed[head * head_dim..][..head_dim].iter_mut().zip(&value[shared..]) {
                            *m += share / total * v;
                        }
                    }
                }
                add(state, &self.linear(&name("self_attn.o_proj"), &mixed));

                let x = self.norm(&name("post_attention_layernorm"), state);
                let gate = self.linear(&name("mlp.gate_proj"), &x);
                let up = self.linear(&name("mlp.up_proj"), &x);
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(state, &self.linear(&name("mlp.down_proj"), &inner));
            }
        }
        let tied = self.config.get("tie_word_embeddings") == Some(&json!(true));
        let output = if tied { "model.embed_tokens" } else { "lm_head" };
        states.iter().map(|state| self.linear(output, &self.norm("model.norm", state))).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += x);
}

fn values(tensor: &Tensor) -> Vec<f64> {
    assert_eq!(tensor.dtype, "BF16");
    let bits = tensor.bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)) << 16);
    bits.map(|bits| f64::from(f32::from_bits(bits))).collect()
}

fn bf16(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(|v| (((v as f32).to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Converts the checkpoint, runs it without 16-bit floats on the way, and holds every logit against the reference. Gives
/// the largest difference, and the reference's logits.
fn check(what: &str, checkpoint: &Variation, n_tokens: u32) -> Vec<Vec<f64>> {
    let dir = folder();
    checkpoint.write_single(dir.path());
    let file = convert(dir.path(), &dir.path().join("x.gguf"), &["-q", "F32"]);
    let tokens: Vec<u32> = (0..n_tokens).map(|i| 9 + i * 977 % 6000).collect();
    let reference = Reference::new(checkpoint).logits(&tokens);
    for (by, logits) in [("llama.cpp", run(&file, &tokens)), ("nibble", compute(&file, &tokens))] {
        assert_eq!(logits.len(), reference.len());
        let mut worst = 0f64;
        for (found, wanted) in logits.iter().zip(&reference) {
            for (found, wanted) in found.iter().zip(wanted) {
                worst = worst.max((f64::from(*found) - wanted).abs());
            }
        }
        eprintln!("{what}: largest difference of a logit by {by} {worst:.6}");
        assert!(worst < 0.002, "{what}, {by}: {worst}");
    }
    reference
}

fn run(file: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let model = Model::load(file, ModelOptions::default()).unwrap();
    let options = SessionOptions {
        kv_types: KvType::F32.into(),
        flash_attention: FlashAttention::Off,
        rows: tokens.len() as u32,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, &options).unwrap();
    session.eval(tokens, Logits::All).unwrap();
    (0..tokens.len()).map(|row| session.logits(row).unwrap().to_vec()).collect()
}

/// One layer after the other, as for rounding.
fn compute(file: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let gguf = Gguf::open(file).unwrap();
    let model = transformer::Model::new(gguf.metadata(), &gguf).unwrap();
    let mut hidden = model.embed(tokens).unwrap();
    for layer in 0..model.n_layers() {
        model.forward(layer, tokens.len(), &mut hidden, &mut |_| ()).unwrap();
    }
    model.logits(&hidden).unwrap().chunks(model.n_vocab()).map(<[f32]>::to_vec).collect()
}

/// How far the logits after the last token are from those of the unchanged model: whether a feature does anything.
fn change(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    a.last().unwrap().iter().zip(b.last().unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn every_feature_of_a_configuration_gives_the_logits_of_its_definition() {
    const N: u32 = 100;
    let nano = Variation::of_yi_nano();
    let plain = check("as it is", &nano, N);

    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64});
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    for scaling in [linear, llama3, yarn] {
        let mut model = nano.clone();
        let what = format!("rotary scaling {}", scaling["rope_type"]);
        model.config.insert("rope_scaling".to_string(), scaling);
        assert!(change(&plain, &check(&what, &model, N)) > 0.01, "{what} does nothing");
    }

    let mut model = nano.clone();
    model.config.insert("rope_theta".to_string(), json!(1e4));
    assert!(change(&plain, &check("another theta", &model, N)) > 0.01);

    let mut model = nano.clone();
    model.config.insert("tie_word_embeddings".to_string(), json!(true));
    model.tensors.retain(|t| t.name != "lm_head.weight");
    assert!(change(&plain, &check("tied embeddings", &model, N)) > 0.01);

    let mut model = nano.clone();
    model.config.insert("attention_bias".to_string(), json!(true));
    model.config.insert("mlp_bias".to_string(), json!(true));
    let matrices: Vec<Tensor> = model.tensors.iter().filter(|t| t.name.contains("_proj.weight")).cloned().collect();
    for matrix in matrices {
        let rows = matrix.shape[0];
        model.tensors.push(Tensor {
            name: matrix.name.replace(".weight", ".bias"),
            shape: vec![rows],
            bytes: bf16((0..rows).map(|i| ((i * 37 + matrix.name.len() as u64 * 11) % 101) as f64 * 0.004 - 0.2)),
            dtype: "BF16".to_string(),
        });
    }
    assert!(change(&plain, &check("biases", &model, N)) > 0.01);

    // Heads of 32 channels where hidden size and number of heads would make 64: the first half of each matrix.
    let mut model = nano.clone();
    model.config.insert("head_dim".to_string(), json!(32));
    for tensor in model.tensors.iter_mut().filter(|t| t.name.contains("self_attn.")) {
        if tensor.name.ends_with("o_proj.weight") {
            let columns = tensor.shape[1] as usize;
            tensor.bytes = tensor.bytes.chunks_exact(columns * 2).flat_map(|row| row[..columns].to_vec()).collect();
            tensor.shape[1] /= 2;
        } else {
            tensor.bytes.truncate(tensor.bytes.len() / 2);
            tensor.shape[0] /= 2;
        }
    }
    assert!(change(&plain, &check("explicit head size", &model, N)) > 0.01);

    // One head of keys and values for all four.
    let mut model = nano;
    model.config.insert("num_key_value_heads".to_string(), json!(1));
    for tensor in model.tensors.iter_mut().filter(|t| t.name.contains(".k_proj.") || t.name.contains(".v_proj.")) {
        tensor.bytes.truncate(tensor.bytes.len() / 2);
        tensor.shape[0] /= 2;
    }
    assert!(change(&plain, &check("one KV head", &model, N)) > 0.01);
}
