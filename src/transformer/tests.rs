//! The oracle is a plain implementation in double precision: loops over numbers, which share nothing with the code above
//! but the names of the tensors. Gradients are compared with central differences of its loss.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use super::*;
use crate::base::random::Random;
use crate::gguf::{Gguf, Layout, TensorInfo, TensorType, Value};

/// A model: metadata, and tensors by their names, with their dimensions.
#[derive(Clone)]
struct Tiny {
    arch: &'static str,
    metadata: Metadata,
    tensors: BTreeMap<String, ([usize; 2], Vec<f32>)>,
    random: Random,
}

impl Weights for Tiny {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn dims(&self, name: &str) -> Option<[usize; 2]> {
        Some(self.tensors.get(name)?.0)
    }

    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let ([columns, _], data) = &self.tensors[name];
        weights.clear();
        weights.extend_from_slice(&data[rows.start * columns..rows.end * columns]);
        Ok(())
    }
}

/// The sizes of a tiny model, and what it has of what a model may have.
#[derive(Clone)]
struct Plan {
    arch: &'static str,
    n_embd: usize,
    n_ff: usize,
    n_vocab: usize,
    /// Heads, and heads of keys, of each layer.
    heads: [(usize, usize); 2],
    key: usize,
    value: usize,
    biases: &'static [&'static str],
    tied: bool,
    factors: Option<Vec<f32>>,
    keys: Vec<(&'static str, Value)>,
}

const ALL_BIASES: [&str; 8] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"];

impl Plan {
    /// Llama with nothing that may be left out: heads fill the embedding.
    fn plain() -> Self {
        Self {
            arch: "llama",
            n_embd: 12,
            n_ff: 20,
            n_vocab: 11,
            heads: [(3, 1); 2],
            key: 4,
            value: 4,
            biases: &[],
            tied: true,
            factors: None,
            keys: Vec::new(),
        }
    }

    /// Pairs side by side, of a part of the key; factors, positions that are divided, and all biases.
    fn linear() -> Self {
        let factor = ("rope.scaling.factor", Value::F32(4.0));
        let keys = vec![
            ("attention.key_length", Value::U32(6)),
            ("attention.value_length", Value::U32(5)),
            ("rope.dimension_count", Value::U32(4)),
            ("rope.freq_base", Value::F32(100.0)),
            ("rope.scaling.type", "linear".into()),
            ("rope.scaling.attn_factor", Value::F32(1.25)),
            factor,
        ];
        let (key, value, factors) = (6, 5, Some(vec![1.5, 0.75]));
        Self { heads: [(4, 2); 2], key, value, biases: &ALL_BIASES, tied: false, factors, keys, ..Self::plain() }
    }

    /// Halves, YaRN, and other heads in each layer.
    fn yarn() -> Self {
        let keys = vec![
            ("attention.key_length", Value::U32(12)),
            ("attention.value_length", Value::U32(12)),
            ("rope.freq_base", Value::F32(1000.0)),
            ("rope.scaling.type", "yarn".into()),
            ("rope.scaling.factor", Value::F32(8.0)),
            ("rope.scaling.original_context_length", Value::U32(800)),
        ];
        let biases = &["attn_q", "attn_k", "attn_v"];
        Self { arch: "qwen2", heads: [(4, 2), (2, 1)], key: 12, value: 12, biases, keys, ..Self::plain() }
    }

    /// Halves of a part of the key, with pairs left over.
    fn halves() -> Self {
        let keys = vec![
            ("attention.key_length", Value::U32(8)),
            ("attention.value_length", Value::U32(8)),
            ("rope.dimension_count", Value::U32(6)),
        ];
        Self { arch: "qwen2", heads: [(2, 2); 2], key: 8, value: 8, tied: false, keys, ..Self::plain() }
    }

    fn all() -> [Self; 4] {
        [Self::plain(), Self::linear(), Self::yarn(), Self::halves()]
    }

    fn model(&self) -> Tiny {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", self.arch);
        let mut set = |key: &str, value: Value| metadata.set(format!("{}.{key}", self.arch), value);
        set("embedding_length", Value::U32(self.n_embd as u32));
        set("block_count", Value::U32(2));
        set("context_length", Value::U32(4096));
        set("attention.layer_norm_rms_epsilon", Value::F32(1e-3));
        if self.heads[0] == self.heads[1] {
            set("attention.head_count", Value::U32(self.heads[0].0 as u32));
            set("attention.head_count_kv", Value::U32(self.heads[0].1 as u32));
        } else {
            set("attention.head_count", self.heads.map(|(n, _)| n as u32).to_vec().into());
            set("attention.head_count_kv", self.heads.map(|(_, n)| n as i32).to_vec().into());
        }
        self.keys.iter().for_each(|(key, value)| set(key, value.clone()));

        let mut tiny = Tiny { arch: self.arch, metadata, tensors: BTreeMap::new(), random: Random::new(5) };
        let n_embd = self.n_embd;
        tiny.add("token_embd.weight", [n_embd, self.n_vocab], 1.0);
        tiny.add_norm("output_norm.weight", n_embd);
        if !self.tied {
            tiny.add("output.weight", [n_embd, self.n_vocab], 0.5);
        }
        if self.biases.contains(&"output") {
            tiny.add("output.bias", [self.n_vocab, 1], 0.5);
        }
        if let Some(factors) = &self.factors {
            tiny.tensors.insert("rope_freqs.weight".to_string(), ([factors.len(), 1], factors.clone()));
        }
        for (layer, (n, n_kv)) in self.heads.into_iter().enumerate() {
            tiny.add_norm(&format!("blk.{layer}.attn_norm.weight"), n_embd);
            tiny.add_norm(&format!("blk.{layer}.ffn_norm.weight"), n_embd);
            for (matrix, dims) in [
                ("attn_q", [n_embd, n * self.key]),
                ("attn_k", [n_embd, n_kv * self.key]),
                ("attn_v", [n_embd, n_kv * self.value]),
                ("attn_output", [n * self.value, n_embd]),
                ("ffn_gate", [n_embd, self.n_ff]),
                ("ffn_up", [n_embd, self.n_ff]),
                ("ffn_down", [self.n_ff, n_embd]),
            ] {
                tiny.add(&format!("blk.{layer}.{matrix}.weight"), dims, 0.7);
                if self.biases.contains(&matrix) {
                    tiny.add(&format!("blk.{layer}.{matrix}.bias"), [dims[1], 1], 0.3);
                }
            }
        }
        tiny
    }
}

impl Tiny {
    /// Adds a tensor of random numbers up to `most`.
    fn add(&mut self, name: &str, dims: [usize; 2], most: f64) {
        let random = &mut self.random;
        let weights = (0..dims[0] * dims[1]).map(|_| ((random.unit() * 2.0 - 1.0) * most) as f32).collect();
        self.tensors.insert(name.to_string(), (dims, weights));
    }

    fn add_norm(&mut self, name: &str, n: usize) {
        let weights = (0..n).map(|_| 0.5 + self.random.unit() as f32).collect();
        self.tensors.insert(name.to_string(), ([n, 1], weights));
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(format!("{}.{key}", self.arch), value);
    }

    fn model(&self) -> Model<'_> {
        Model::new(&self.metadata, self).unwrap()
    }

    fn error(&self) -> Error {
        Model::new(&self.metadata, self).err().expect("it should be refused")
    }

    fn plain(&self, plan: &Plan) -> Plain {
        let tensors =
            self.tensors.iter().map(|(name, (_, data))| (name.clone(), data.iter().map(|x| f64::from(*x)).collect()));
        Plain { plan: plan.clone(), tensors: tensors.collect() }
    }
}

/// The oracle.
struct Plain {
    plan: Plan,
    tensors: BTreeMap<String, Vec<f64>>,
}

impl Plain {
    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let weights = &self.tensors[name];
        x.iter().zip(weights).map(|(x, w)| w * x / (mean + f64::from(1e-3f32)).sqrt()).collect()
    }

    fn times(&self, matrix: &str, bias: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.tensors[matrix].chunks(x.len());
        let mut y: Vec<f64> = rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        if let Some(bias) = self.tensors.get(bias) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn number(&self, key: &str) -> Option<f64> {
        let (_, value) = self.plan.keys.iter().find(|(name, _)| *name == key)?;
        value.as_f64().or(value.as_u64().map(|n| n as f64))
    }

    /// Rotates a head at a position, as the papers on RoPE and YaRN say.
    fn rotate(&self, head: &mut [f64], position: usize) {
        let n = self.number("rope.dimension_count").map_or(head.len(), |n| n as usize);
        let base = self.number("rope.freq_base").unwrap_or(10_000.0);
        let factor = self.number("rope.scaling.factor").unwrap_or(1.0);
        let is_yarn = self.plan.keys.iter().any(|(_, value)| value.as_str() == Some("yarn"));
        let mut magnitude = self.number("rope.scaling.attn_factor").unwrap_or(1.0);
        for i in 0..n / 2 {
            let mut frequency = base.powf(-2.0 * i as f64 / n as f64);
            if let Some(factors) = self.tensors.get("rope_freqs.weight") {
                frequency /= factors[i];
            }
            if is_yarn {
                let context = self.number("rope.scaling.original_context_length").unwrap();
                let dimension =
                    |turns: f64| n as f64 * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
                let (low, high) = (dimension(32.0).floor(), dimension(1.0).ceil());
                assert!(
                    low > 0.0 && low + 1.0 < high && high < n as f64 / 2.0,
                    "all three kinds of pairs: {low} {high}"
                );
                let gamma = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency = (1.0 - gamma) * frequency / factor + gamma * frequency;
            } else {
                frequency /= factor;
            }
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = if self.plan.arch == "qwen2" { (i, i + n / 2) } else { (2 * i, 2 * i + 1) };
            let (x, y) = (head[a], head[b]);
            head[a] = x * cos - y * sin;
            head[b] = x * sin + y * cos;
        }
        if is_yarn {
            magnitude *= 0.1 * factor.ln() + 1.0;
        }
        head[..n].iter_mut().for_each(|x| *x *= magnitude);
    }

    /// Computes a layer for one window.
    fn layer(&self, layer: usize, hidden: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (n, n_kv) = self.plan.heads[layer];
        let (key, value) = (self.plan.key, self.plan.value);
        let name = |rest: &str| format!("blk.{layer}.{rest}");
        let times = |matrix: &str, x: &[f64]| {
            self.times(&name(&format!("{matrix}.weight")), &name(&format!("{matrix}.bias")), x)
        };
        let (mut all_q, mut all_k, mut all_v) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in hidden.iter().enumerate() {
            let normed = self.norm(&name("attn_norm.weight"), x);
            let (mut q, mut k) = (times("attn_q", &normed), times("attn_k", &normed));
            q.chunks_mut(key).chain(k.chunks_mut(key)).for_each(|head| self.rotate(head, position));
            all_q.push(q);
            all_k.push(k);
            all_v.push(times("attn_v", &normed));
        }
        let mut out = Vec::new();
        for (i, x) in hidden.iter().enumerate() {
            let mut mixed = Vec::new();
            for head in 0..n {
                let kv = head / (n / n_kv);
                let score = |j: usize| {
                    let terms = (0..key).map(|d| all_q[i][head * key + d] * all_k[j][kv * key + d]);
                    (terms.sum::<f64>() / (key as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..=i).map(score).collect();
                let sum: f64 = scores.iter().sum();
                for d in 0..value {
                    mixed.push((0..=i).map(|j| scores[j] / sum * all_v[j][kv * value + d]).sum::<f64>());
                }
            }
            let middle: Vec<f64> = x.iter().zip(times("attn_output", &mixed)).map(|(x, o)| x + o).collect();
            let normed = self.norm(&name("ffn_norm.weight"), &middle);
            let (gate, up) = (times("ffn_gate", &normed), times("ffn_up", &normed));
            let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            out.push(middle.iter().zip(times("ffn_down", &inner)).map(|(x, o)| x + o).collect());
        }
        out
    }

    /// Returns the logits of all tokens, where `hidden` is what enters the first layer.
    fn logits(&self, hidden: &[f64], window: usize) -> Vec<Vec<f64>> {
        let mut logits = Vec::new();
        for window in hidden.chunks(window * self.plan.n_embd) {
            let mut hidden: Vec<Vec<f64>> = window.chunks(self.plan.n_embd).map(<[f64]>::to_vec).collect();
            for layer in 0..2 {
                hidden = self.layer(layer, &hidden);
            }
            let output = if self.plan.tied { "token_embd.weight" } else { "output.weight" };
            for x in hidden {
                logits.push(self.times(output, "output.bias", &self.norm("output_norm.weight", &x)));
            }
        }
        logits
    }

    /// Returns the sum of the cross entropies of all tokens, which is [`loss`].
    fn loss(&self, hidden: &[f64], window: usize) -> f64 {
        let logits = self.logits(hidden, window);
        let losses = logits.iter().enumerate().map(|(token, logits)| {
            logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[wanted(token, logits.len())]
        });
        losses.sum()
    }
}

/// The token that should follow a token.
fn wanted(token: usize, n_vocab: usize) -> usize {
    token * 7 % n_vocab
}

/// Replaces logits by the gradient of their cross entropy.
fn loss(token: usize, logits: &mut [f32]) {
    let exps: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let wanted = wanted(token, logits.len());
    for (at, (logit, exp)) in logits.iter_mut().zip(exps).enumerate() {
        *logit = (exp / sum) as f32 - if at == wanted { 1.0 } else { 0.0 };
    }
}

/// What a whole pass computes.
#[derive(Debug, Default, PartialEq)]
struct Passed {
    logits: Vec<f32>,
    /// With respect to what enters the first layer.
    gradient: Vec<f32>,
    /// What was seen backward, by its full name: whether it is a norm, inputs, gradients.
    seen: BTreeMap<String, (bool, Vec<f32>, Vec<f32>)>,
}

/// Computes all of a model, forward and backward.
fn pass(tiny: &Tiny, hidden: &[f32], window: usize) -> Passed {
    let model = tiny.model();
    let mut passed = Passed::default();
    let mut hidden = hidden.to_vec();
    let mut entered = Vec::new();
    let mut inputs: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for layer in 0..model.n_layers() {
        entered.push(hidden.clone());
        let mut see = |seen: Seen<'_>| {
            assert!(!seen.is_norm && seen.gradients.is_empty());
            inputs.insert(format!("blk.{layer}.{}", seen.tensor), seen.inputs.to_vec());
        };
        model.forward(layer, window, &mut hidden, &mut see).unwrap();
    }
    passed.logits = model.logits(&hidden).unwrap();
    let keep = |seen: Seen<'_>| (seen.is_norm, seen.inputs.to_vec(), seen.gradients.to_vec());
    let mut gradient =
        model.head(&hidden, &loss, &mut |seen| drop(passed.seen.insert(seen.tensor.to_string(), keep(seen)))).unwrap();
    for layer in (0..model.n_layers()).rev() {
        let mut see = |seen: Seen<'_>| drop(passed.seen.insert(format!("blk.{layer}.{}", seen.tensor), keep(seen)));
        model.backward(layer, window, &entered[layer], &mut gradient, &mut see).unwrap();
    }
    for (tensor, inputs) in inputs {
        assert!(passed.seen[&tensor].1 == inputs, "{tensor}: the passes see other inputs");
    }
    passed.gradient = gradient;
    passed
}

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.unit() as f32 * 2.0 - 1.0).collect()
}

fn doubles(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn logits_are_those_of_loops_in_double_precision() {
    for plan in Plan::all() {
        let tiny = plan.model();
        for (window, n_windows) in [(7, 2), (1, 3), (150, 1), (257, 1)] {
            let tokens: Vec<u32> = (0..window * n_windows).map(|i| (i * i + 3) as u32 % plan.n_vocab as u32).collect();
            let hidden = tiny.model().embed(&tokens).unwrap();
            let found = pass(&tiny, &hidden, window).logits;
            let wanted = tiny.plain(&plan).logits(&doubles(&hidden), window).concat();
            let most = wanted.iter().fold(0f64, |most, x| most.max(x.abs()));
            for (found, wanted) in found.iter().zip(&wanted) {
                let error = (f64::from(*found) - wanted).abs() / most;
                assert!(error < 1e-5, "{}, {:?}: {found} instead of {wanted}", plan.arch, plan.keys);
            }
            assert_eq!(found.len(), wanted.len());
        }
    }
}

/// Compares some of the gradients of a tensor with central differences.
fn compare(name: &str, found: &[f64], n: usize, mut loss_with: impl FnMut(usize, f64) -> f64) {
    let most = found.iter().fold(0f64, |most, x| most.max(x.abs()));
    assert!(most > 1e-4, "{name}: {most}");
    // A step that visits all residues.
    for at in (0..found.len()).step_by(found.len().div_ceil(n).max(1)) {
        let h = 1e-4;
        let wanted = (loss_with(at, h) - loss_with(at, -h)) / (2.0 * h);
        let error = (found[at] - wanted).abs() / most;
        assert!(error < 3e-5, "{name}: {} instead of {wanted} at {at}, where {most} is the most", found[at]);
    }
}

/// Returns the gradient with respect to a tensor, and to its bias, from what was seen.
fn of_weights(is_norm: bool, inputs: &[f32], gradients: &[f32], n_tokens: usize) -> (Vec<f64>, Vec<f64>) {
    let (columns, rows) = (inputs.len() / n_tokens, gradients.len() / n_tokens);
    let mut weights = vec![0.0; if is_norm { rows } else { columns * rows }];
    let mut bias = vec![0.0; rows];
    for (x, g) in inputs.chunks(columns).zip(gradients.chunks(rows)) {
        for row in 0..rows {
            let g = f64::from(g[row]);
            bias[row] += g;
            if is_norm {
                weights[row] += g * f64::from(x[row]);
            } else {
                (0..columns).for_each(|column| weights[row * columns + column] += g * f64::from(x[column]));
            }
        }
    }
    (weights, bias)
}

fn gradients_are_differences(plan: &Plan, window: usize, n_windows: usize, n: usize) {
    let tiny = plan.model();
    let n_tokens = window * n_windows;
    let hidden = numbers(n_tokens * plan.n_embd, 9);
    let passed = pass(&tiny, &hidden, window);
    let mut plain = tiny.plain(plan);
    let hidden = doubles(&hidden);

    compare("hidden", &doubles(&passed.gradient), 4 * n, |at, step| {
        let mut hidden = hidden.clone();
        hidden[at] += step;
        plain.loss(&hidden, window)
    });
    // Every tensor, but for the embedding: what entered the first layer is not read from it here.
    let mut compared = Vec::new();
    for (name, (is_norm, inputs, gradients)) in &passed.seen {
        let (weights, bias) = of_weights(*is_norm, inputs, gradients, n_tokens);
        let bias_name = name.replace(".weight", ".bias");
        let name = if name == "output.weight" && plan.tied { "token_embd.weight" } else { name };
        for (name, gradient) in [(name, &weights), (bias_name.as_str(), &bias)] {
            if !plain.tensors.contains_key(name) {
                continue;
            }
            compared.push(name.to_string());
            compare(&format!("{} {name}", plan.arch), gradient, n, |at, step| {
                let before = plain.tensors[name][at];
                plain.tensors.get_mut(name).unwrap()[at] += step;
                let loss = plain.loss(&hidden, window);
                plain.tensors.get_mut(name).unwrap()[at] = before;
                loss
            });
        }
    }
    compared.sort();
    let all =
        tiny.tensors.keys().filter(|name| *name != "rope_freqs.weight" && (plan.tied || *name != "token_embd.weight"));
    assert!(compared.iter().eq(all), "{compared:?}");
}

#[test]
fn gradients_are_differences_of_the_loss() {
    Plan::all().iter().for_each(|plan| gradients_are_differences(plan, 6, 2, 12));
}

/// So long that keys and queries are computed in several tiles.
#[test]
fn gradients_are_differences_in_long_windows() {
    gradients_are_differences(&Plan::linear(), 150, 1, 2);
    gradients_are_differences(&Plan::yarn(), 131, 1, 2);
}

/// A model whose products are large enough to be computed by several threads, in several parts of their rows.
fn larger() -> Tiny {
    Plan { n_embd: 96, n_ff: 1100, n_vocab: 1500, heads: [(6, 2); 2], key: 16, value: 16, ..Plan::plain() }.model()
}

#[test]
fn threads_do_not_matter() {
    let tiny = larger();
    let hidden = numbers(96 * 140, 3);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| pass(&tiny, &hidden, 140))
    };
    let one = with(1);
    assert!(one == with(2) && one == with(3));
}

#[test]
fn it_does_not_matter_how_many_windows_are_computed_at_a_time() {
    let (tiny, window) = (larger(), 35);
    let hidden = numbers(96 * window * 4, 3);
    let all = pass(&tiny, &hidden, window);
    let n_logits = all.logits.len() / 4;
    let model = tiny.model();
    let mut entered = hidden.clone();
    for (part, hidden) in entered.chunks_exact_mut(96 * window).enumerate() {
        let first = hidden.to_vec();
        model.forward(0, window, hidden, &mut |_| ()).unwrap();
        let second = hidden.to_vec();
        model.forward(1, window, hidden, &mut |_| ()).unwrap();
        assert!(model.logits(hidden).unwrap() == all.logits[part * n_logits..][..n_logits]);
        let loss_of_part = |token: usize, logits: &mut [f32]| loss(part * window + token, logits);
        let mut seen = BTreeMap::new();
        let mut gradient = model.head(hidden, &loss_of_part, &mut |_| ()).unwrap();
        let mut see = |found: Seen<'_>| {
            seen.insert(format!("blk.1.{}", found.tensor), (found.inputs.to_vec(), found.gradients.to_vec()));
        };
        model.backward(1, window, &second, &mut gradient, &mut see).unwrap();
        model.backward(0, window, &first, &mut gradient, &mut |_| ()).unwrap();
        assert!(gradient == all.gradient[part * gradient.len()..][..gradient.len()]);
        for (name, (inputs, gradients)) in seen {
            let (_, all_inputs, all_gradients) = &all.seen[&name];
            assert!(inputs == all_inputs[part * inputs.len()..][..inputs.len()], "{name}");
            assert!(gradients == all_gradients[part * gradients.len()..][..gradients.len()], "{name}");
        }
    }
}

#[test]
fn loss_is_told_which_token_it_is_for() {
    let tiny = Plan::plain().model();
    let told = Mutex::new(Vec::new());
    let note = |token: usize, logits: &mut [f32]| {
        told.lock().unwrap().push((token, logits.len()));
        logits.fill(0.0);
    };
    let gradient = tiny.model().head(&numbers(12 * 5, 1), &note, &mut |_| ()).unwrap();
    assert_eq!(gradient, [0.0; 12 * 5]);
    let mut told = told.into_inner().unwrap();
    told.sort_unstable();
    assert_eq!(told, (0..5).map(|token| (token, 11)).collect::<Vec<_>>());
}

#[test]
fn no_tokens_are_no_work() {
    let tiny = Plan::plain().model();
    let model = tiny.model();
    model.forward(0, usize::MAX / 12, &mut [], &mut |_| unreachable!()).unwrap();
    model.backward(0, 3, &[], &mut [], &mut |_| unreachable!()).unwrap();
    assert!(model.head(&[], &loss, &mut |_| ()).unwrap().is_empty());
    assert!(model.logits(&[]).unwrap().is_empty());
    assert!(model.embed(&[]).unwrap().is_empty());
}

#[test]
fn refuses_architectures_whose_layers_it_does_not_know() {
    for arch in ["gemma", "", "llama4"] {
        let mut tiny = Plan::plain().model();
        tiny.metadata.set("general.architecture", arch);
        assert!(matches!(tiny.error(), Error::Architecture { arch: found } if found == arch));
    }
    let tiny = Plan::plain().model();
    assert!(matches!(Model::new(&Metadata::new(), &tiny), Err(Error::Architecture { .. })));
}

#[test]
fn refuses_metadata_that_cannot_be_computed_with() {
    let nan = Value::F32(f32::NAN);
    for (key, value) in [
        ("embedding_length", Value::U32(0)),
        ("embedding_length", Value::F32(12.0)),
        ("block_count", Value::U32(0)),
        ("block_count", Value::I32(-1)),
        ("attention.head_count", Value::U32(0)),
        ("attention.head_count", Value::U64(u64::MAX)),
        ("attention.head_count", vec![3u32].into()),
        ("attention.head_count", vec![3u32, 0].into()),
        ("attention.head_count", vec!["3".to_string(), "3".to_string()].into()),
        ("attention.head_count_kv", Value::U32(0)),
        ("attention.head_count_kv", Value::U32(2)),
        ("attention.head_count_kv", vec![1u32, 2].into()),
        ("attention.key_length", Value::U32(0)),
        ("attention.key_length", Value::U64(u64::MAX)),
        ("attention.value_length", Value::U32(0)),
        ("attention.value_length", Value::U64(u64::MAX)),
        ("attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        ("attention.layer_norm_rms_epsilon", nan.clone()),
        ("attention.layer_norm_rms_epsilon", Value::Bool(true)),
        ("attention.causal", Value::Bool(false)),
        ("attention.scale", Value::F32(0.25)),
        ("rope.dimension_count", Value::U32(0)),
        ("rope.dimension_count", Value::U32(3)),
        ("rope.dimension_count", Value::U32(6)),
        ("rope.freq_base", Value::F32(1.0)),
        ("rope.freq_base", Value::F32(f32::INFINITY)),
        ("rope.freq_base", Value::U32(10_000)),
        ("rope.scaling.factor", Value::F32(-1.0)),
        ("rope.scaling.factor", nan.clone()),
        ("rope.scale_linear", Value::F32(-1.0)),
        ("rope.scaling.attn_factor", nan.clone()),
        ("rope.scaling.type", "longrope".into()),
        ("rope.scaling.type", Value::U32(1)),
    ] {
        let mut tiny = Plan::plain().model();
        tiny.set(key, value.clone());
        match tiny.error() {
            Error::Key { key: found, .. } if value.as_u64() == Some(u64::MAX) => {
                assert!(["llama.attention.head_count", &format!("llama.{key}")].contains(&found.as_str()), "{found}");
            }
            Error::Key { key: found, .. } => assert_eq!(found, format!("llama.{key}")),
            other => panic!("{key} {value:?}: {other}"),
        }
    }
    for (key, of_yarn) in [
        ("embedding_length", false),
        ("block_count", false),
        ("attention.head_count", false),
        ("attention.layer_norm_rms_epsilon", false),
        ("context_length", true),
    ] {
        let mut tiny = Plan::plain().model();
        if of_yarn {
            tiny.set("rope.scaling.type", "yarn");
        }
        tiny.metadata.remove(&format!("llama.{key}"));
        assert!(matches!(tiny.error(), Error::Key { key: found, .. } if found == format!("llama.{key}")));
    }
}

#[test]
fn messages_say_what_is_there_and_what_would_be_accepted() {
    let mut tiny = Plan::plain().model();
    tiny.set("rope.scaling.type", "long\u{1b}rope");
    let wanted =
        "the metadata has \"long\\u{1b}rope\" for llama.rope.scaling.type, wanted \"none\", \"linear\" or \"yarn\"";
    assert_eq!(tiny.error().to_string(), wanted);
    let mut tiny = Plan::plain().model();
    tiny.add("blk.0.attn_v.weight", [12, 5], 1.0);
    let wanted = "the tensor 'blk.0.attn_v.weight' has 5 rows of 12 numbers, wanted 4 of 12";
    assert_eq!(tiny.error().to_string(), wanted);
    tiny.add("blk.1.attn_q_norm.weight\n", [12, 1], 1.0);
    let wanted = "it is not known how to compute with the tensor 'blk.1.attn_q_norm.weight\\n'";
    assert_eq!(tiny.error().to_string(), wanted);
}

#[test]
fn refuses_tensors_that_it_does_not_know() {
    for name in [
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_qkv.weight",
        "blk.1.ffn_gate_exps.weight",
        "blk.1.ffn_gate_inp.weight",
        "blk.0.attn_norm.bias",
        "blk.0.attn_q.scale",
        "blk.0.attn_q",
        "blk.2.attn_norm.weight",
        "blk.00.attn_norm.weight",
        "blk.x.attn_norm.weight",
        "output_norm.bias",
        "token_embd_norm.weight",
        "rope_factors_long.weight",
        "position_embd.weight",
        "",
    ] {
        let mut tiny = Plan::plain().model();
        tiny.add(name, [12, 1], 1.0);
        assert!(matches!(tiny.error(), Error::Unknown { tensor } if tensor == name), "{name}");
    }
}

#[test]
fn refuses_tensors_that_are_missing_or_have_another_size() {
    let plan = Plan::linear();
    let whole = plan.model();
    for (name, (dims, _)) in &whole.tensors {
        for other in [[dims[0] + 1, dims[1]], [dims[0], dims[1] + 1], [0, dims[1]], [dims[0], 0]] {
            let mut tiny = whole.clone();
            tiny.add(name, other, 1.0);
            match tiny.error() {
                Error::Shape { tensor, found, .. } if tensor == *name => assert_eq!(found, other),
                // What it says is believed, and then others do not fit: vocabulary, columns of the feed-forward part.
                Error::Shape { tensor, .. } => {
                    let of_vocabulary = name == "token_embd.weight" && tensor.starts_with("output.");
                    let of_feeding = name.ends_with("ffn_gate.weight") && tensor.contains(".ffn_");
                    assert!(of_vocabulary || of_feeding, "{name}: {tensor}");
                }
                error => panic!("{name}: {error}"),
            }
        }
        let is_optional = name.ends_with(".bias") || ["output.weight", "rope_freqs.weight"].contains(&name.as_str());
        let mut tiny = whole.clone();
        tiny.tensors.remove(name);
        if is_optional {
            tiny.model();
        } else {
            assert!(matches!(tiny.error(), Error::Missing { tensor } if tensor == *name), "{name}");
        }
    }
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut tiny = whole.clone();
        tiny.tensors.get_mut("rope_freqs.weight").unwrap().1[1] = wrong;
        assert!(matches!(tiny.error(), Error::Factor { index: 1, .. }));
    }
}

#[test]
fn refuses_what_is_not_in_the_model() {
    let tiny = Plan::plain().model();
    let model = tiny.model();
    let windows = |result: Result<(), Error>| matches!(result, Err(Error::Windows { .. }));
    assert!(matches!(model.embed(&[3, 11]), Err(Error::NoToken { token: 11, n_vocab: 11 })));
    let forward = |layer, window, n| model.forward(layer, window, &mut vec![0.0; n], &mut |_| ());
    assert!(matches!(forward(2, 1, 12), Err(Error::NoLayer { layer: 2, n_layers: 2 })));
    assert!(windows(forward(0, 1, 13)));
    assert!(windows(forward(0, 2, 12)));
    assert!(windows(forward(0, 0, 12)));
    assert!(windows(forward(0, usize::MAX, 12)));
    let backward = |layer, n, g| model.backward(layer, 1, &vec![0.0; n], &mut vec![0.0; g], &mut |_| ());
    assert!(matches!(backward(2, 12, 12), Err(Error::NoLayer { .. })));
    assert!(matches!(backward(0, 12, 24), Err(Error::Gradients { found: 24, wanted: 12 })));
    assert!(windows(backward(0, 13, 13)));
    assert!(windows(model.logits(&[0.0; 13]).map(drop)));
    assert!(windows(model.head(&[0.0; 13], &loss, &mut |_| ()).map(drop)));
}

/// A source that gives too few weights of one tensor, or says that it cannot be read.
struct Broken(Tiny, &'static str, bool);

impl Weights for Broken {
    fn names(&self) -> Vec<&str> {
        self.0.names()
    }

    fn dims(&self, name: &str) -> Option<[usize; 2]> {
        self.0.dims(name)
    }

    fn rows(&self, name: &str, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        self.0.rows(name, rows, weights)?;
        if name == self.1 && self.2 {
            return Err(Error::Read { tensor: name.to_string(), source: "the disk is gone".into() });
        }
        if name == self.1 {
            weights.pop();
        }
        Ok(())
    }
}

#[test]
fn weights_that_cannot_be_read_are_told() {
    for name in Plan::linear().model().names() {
        let name: &'static str = name.to_string().leak();
        for is_unreadable in [true, false] {
            let broken = Broken(Plan::linear().model(), name, is_unreadable);
            let all = || -> Result<(), Error> {
                let model = Model::new(&broken.0.metadata, &broken)?;
                let mut hidden = model.embed(&[1, 2])?;
                let entered = hidden.clone();
                if name.starts_with("blk.") {
                    let layer = if name.starts_with("blk.0") { 0 } else { 1 };
                    let mut gradient = hidden.clone();
                    let backward = model.backward(layer, 2, &entered, &mut gradient, &mut |_| ());
                    assert!(backward.is_err(), "{name}");
                    model.forward(layer, 2, &mut hidden, &mut |_| ())
                } else {
                    assert!(model.head(&hidden, &loss, &mut |_| ()).is_err(), "{name}");
                    model.logits(&hidden).map(drop)
                }
            };
            match all() {
                Err(Error::Read { tensor, .. }) => assert!(is_unreadable && tensor == name),
                Err(Error::Weights { tensor, found, wanted, .. }) => {
                    assert!(!is_unreadable && tensor == name && found + 1 == wanted);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

/// Writes a file of these tensors, and opens it.
fn file(tiny: &Tiny, tensors: Vec<(&str, Vec<u64>, TensorType, Vec<u8>)>) -> (tempfile::TempDir, Gguf) {
    let infos =
        tensors.iter().map(|(name, dims, ty, _)| TensorInfo { name: name.to_string(), dims: dims.clone(), ty: *ty });
    let layout = Layout::new(&tiny.metadata, infos.collect(), 32, None).unwrap();
    let mut bytes = Vec::new();
    layout.write_part(0, &mut bytes, |index| &tensors[index].3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, Gguf::open(&path).unwrap())
}

#[test]
fn a_file_is_computed_like_its_weights() {
    let tiny = Plan::linear().model();
    let tensors = tiny.tensors.iter().map(|(name, ([columns, rows], weights))| {
        let dims = if *rows == 1 { vec![*columns as u64] } else { vec![*columns as u64, *rows as u64] };
        (name.as_str(), dims, TensorType::F32, weights.iter().flat_map(|x| x.to_le_bytes()).collect())
    });
    let (_folder, gguf) = file(&tiny, tensors.collect());
    let model = Model::new(gguf.metadata(), &gguf).unwrap();
    let mut found = model.embed(&[1, 4, 7]).unwrap();
    let mut wanted = tiny.model().embed(&[1, 4, 7]).unwrap();
    for layer in 0..2 {
        model.forward(layer, 3, &mut found, &mut |_| ()).unwrap();
        tiny.model().forward(layer, 3, &mut wanted, &mut |_| ()).unwrap();
    }
    assert!(model.logits(&found).unwrap() == tiny.model().logits(&wanted).unwrap());
}

#[test]
fn rows_of_a_file_are_decoded() {
    // Blocks of Q8_0: a scale of 0.5 in half precision, and 32 bytes.
    let block = |first: u8| [0x00, 0x38].into_iter().chain((0..32).map(move |i| first + i));
    let blocks = (0..6).flat_map(|at| block(at * 10)).collect();
    let tensors = vec![("a", vec![64, 3], TensorType::Q8_0, blocks), ("b", vec![2, 2], TensorType::I8, vec![0; 4])];
    let (_folder, gguf) = file(&Plan::plain().model(), tensors);
    assert_eq!(gguf.names(), ["a", "b"]);
    assert_eq!(Weights::dims(&gguf, "a"), Some([64, 3]));
    assert_eq!(Weights::dims(&gguf, "c"), None);
    let mut rows = vec![7.0; 999];
    gguf.rows("a", 1..3, &mut rows).unwrap();
    let wanted = (2..6).flat_map(|block| (0..32).map(move |i| 0.5 * (block * 10 + i) as f32));
    assert_eq!(rows, wanted.collect::<Vec<_>>());
    assert!(matches!(gguf.rows("a", 2..4, &mut rows), Err(Error::Read { tensor, .. }) if tensor == "a"));
    assert!(matches!(gguf.rows("a", 0..usize::MAX, &mut rows), Err(Error::Read { .. })));
    assert!(matches!(gguf.rows("b", 0..1, &mut rows), Err(Error::Read { tensor, .. }) if tensor == "b"));
    assert!(matches!(gguf.rows("c", 0..1, &mut rows), Err(Error::Missing { tensor }) if tensor == "c"));
}
