//! Every sampler against llama.cpp's own: what is kept, and its probabilities.
//!
//! Theirs work in 32 bits and sort with an unstable sort, so the comparison says what that leaves open:
//!
//! * Which of several tokens with one and the same logit is kept at a cut is chance in theirs. So tokens are compared by
//!   class: those that the sampler cannot tell apart. Each class has to be kept as many times, with the same probability.
//!   The same goes for tokens that a penalty has made equals.
//! * Where a cut depends on sums or thresholds that rounding moves, theirs has to lie between what ours gives for
//!   parameters that differ by `rounding`. Few cases may need that.
//! * Locally typical sampling of theirs computes 0 times minus infinity, which is not a number, for tokens of probability
//!   0; so it is given logits that are all above that, and does not come after top-n-sigma, which makes such tokens.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::LazyLock;

use llama_cpp_sys_2 as sys;
use nibble::base::random::Random;
use nibble::chat::{self, Prompt};
use nibble::engine::{Session, SessionOptions};
use nibble::llama::{Model, ModelOptions};
use nibble::sample::{AdaptiveP, Dry, Mirostat, Params, Penalties, Sampler, SamplerKind, Temperature, Xtc};

use crate::support;

/// How much thresholds may be off. Sums of thousands of numbers in 32 bits lose the last ones.
fn rounding(n: usize) -> f32 {
    if n > 10_000 {
        5e-4
    } else if n > 5_000 {
        5e-5
    } else {
        2e-5
    }
}

/// The model that gives real logits and a vocabulary: nibble's, and llama.cpp's for its DRY.
struct Nano {
    model: Model,
    vocab: *const sys::llama_vocab,
}

// SAFETY: a vocabulary is only read once the model is loaded, and lives as long as the process here.
unsafe impl Send for Nano {}
unsafe impl Sync for Nano {}

static NANO: LazyLock<Nano> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sampling-yi-nano-F16.gguf");
    support::convert(&support::yi_nano(), &file, &["-q", "F16", "--force"]);
    let model = Model::load(&file, ModelOptions::default()).unwrap();
    let path = std::ffi::CString::new(file.to_str().unwrap()).unwrap();
    // SAFETY: the path ends in a null byte; the model is never freed.
    let vocab = unsafe {
        let mut params = sys::llama_model_default_params();
        params.vocab_only = true;
        let theirs = sys::llama_model_load_from_file(path.as_ptr(), params);
        assert!(!theirs.is_null());
        sys::llama_model_get_vocab(theirs)
    };
    Nano { model, vocab }
});

/// llama.cpp's samplers for some parameters, in a chain without the draw.
struct Theirs(Vec<*mut sys::llama_sampler>);

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: they were made by llama.cpp, and nobody else has them.
        self.0.iter().for_each(|sampler| unsafe { sys::llama_sampler_free(*sampler) });
    }
}

impl Theirs {
    /// As llama.cpp's `common_sampler_init` does it.
    fn new(params: &Params, n_vocab: usize) -> Self {
        let mut out = Vec::new();
        let n = n_vocab as i32;
        let last_n = |n: u32| i32::try_from(n).unwrap();
        // SAFETY: plain numbers, and pointers that are only read during the calls.
        unsafe {
            if !params.logit_bias.is_empty() {
                let biases: Vec<sys::llama_logit_bias> = params
                    .logit_bias
                    .iter()
                    .map(|(token, bias)| sys::llama_logit_bias { token: *token as i32, bias: *bias })
                    .collect();
                out.push(sys::llama_sampler_init_logit_bias(n, biases.len() as i32, biases.as_ptr()));
            }
            let min_keep = params.min_keep as usize;
            let kinds = if params.mirostat.version > 0 { &[][..] } else { &params.samplers };
            for kind in kinds {
                out.push(match kind {
                    SamplerKind::Penalties => sys::llama_sampler_init_penalties(
                        n,
                        last_n(params.penalties.last_n),
                        params.penalties.repeat,
                        params.penalties.frequency,
                        params.penalties.presence,
                    ),
                    SamplerKind::Dry => {
                        let c_string = |text: &String| std::ffi::CString::new(text.as_str()).unwrap();
                        let breakers: Vec<_> = params.dry.breakers.iter().map(c_string).collect();
                        let mut pointers: Vec<_> = breakers.iter().map(|b| b.as_ptr()).collect();
                        sys::llama_sampler_init_dry(
                            NANO.vocab,
                            params.dry.multiplier,
                            params.dry.base,
                            params.dry.allowed_length as i32,
                            last_n(params.dry.last_n),
                            pointers.as_mut_ptr(),
                            pointers.len(),
                        )
                    }
                    SamplerKind::TopNSigma => sys::llama_sampler_init_top_n_sigma(params.top_n_sigma),
                    SamplerKind::TopK => sys::llama_sampler_init_top_k(params.top_k as i32),
                    SamplerKind::TypicalP => sys::llama_sampler_init_typical(params.typical_p, min_keep),
                    SamplerKind::TopP => sys::llama_sampler_init_top_p(params.top_p, min_keep),
                    SamplerKind::MinP => sys::llama_sampler_init_min_p(params.min_p, min_keep),
                    SamplerKind::Xtc => {
                        sys::llama_sampler_init_xtc(params.xtc.probability, params.xtc.threshold, min_keep, 1)
                    }
                    SamplerKind::Temperature => sys::llama_sampler_init_temp_ext(
                        params.temperature.value,
                        params.temperature.range,
                        params.temperature.exponent,
                    ),
                    // The others come by themselves, first or last.
                    _ => continue,
                });
            }
            let (tau, eta) = (params.mirostat.tau, params.mirostat.eta);
            match params.mirostat.version {
                1 => {
                    out.push(sys::llama_sampler_init_temp(params.temperature.value));
                    out.push(sys::llama_sampler_init_mirostat(n, 1, tau, eta, 100));
                }
                2 => {
                    out.push(sys::llama_sampler_init_temp(params.temperature.value));
                    out.push(sys::llama_sampler_init_mirostat_v2(1, tau, eta));
                }
                _ if params.adaptive_p.target >= 0.0 => {
                    out.push(sys::llama_sampler_init_adaptive_p(params.adaptive_p.target, params.adaptive_p.decay, 1));
                }
                _ => {}
            }
        }
        Self(out)
    }

    fn accept(&self, token: u32) {
        // SAFETY: a token of the vocabulary that the samplers were made for.
        self.0.iter().for_each(|sampler| unsafe { sys::llama_sampler_accept(*sampler, token as i32) });
    }

    /// Ids and probabilities of what is kept, and the token that was drawn, where one of the samplers draws.
    fn apply(&self, logits: &[f32]) -> (Vec<(u32, f64)>, Option<u32>) {
        let mut data: Vec<sys::llama_token_data> =
            (0..).zip(logits).map(|(id, &logit)| sys::llama_token_data { id, logit, p: 0.0 }).collect();
        let mut array =
            sys::llama_token_data_array { data: data.as_mut_ptr(), size: data.len(), selected: -1, sorted: false };
        // SAFETY: the array points at `data`, which the samplers only narrow.
        let kept = unsafe {
            self.0.iter().for_each(|sampler| sys::llama_sampler_apply(*sampler, &mut array));
            std::slice::from_raw_parts(array.data, array.size)
        };
        let drawn = usize::try_from(array.selected).ok().map(|at| kept[at].id as u32);
        let top = kept.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        let weight = |c: &sys::llama_token_data| (f64::from(c.logit) - f64::from(top)).exp();
        let total: f64 = kept.iter().map(weight).sum();
        let list = kept.iter().map(|c| (c.id as u32, weight(c) / total)).filter(|(_, p)| *p > 0.0).collect();
        (list, drawn)
    }
}

struct Set {
    name: &'static str,
    logits: Vec<f32>,
    history: Vec<u32>,
}

/// A thousand sets of logits: random of several sizes and scales, a model's, and those made to be hard.
fn sets() -> Vec<Set> {
    let mut random = Random::new(17);
    let mut out = Vec::new();
    let text = "The Song dynasty was a time of trade and learning.\nPeople wrote: \"paper, print, tea\". 宋代是中国历史上的一个朝代。\nThe Song dynasty was a time of trade and war.";
    let tokenizer = NANO.model.tokenizer();
    let tokens = chat::encode(&Prompt::plain(text.to_string()), tokenizer).unwrap();
    let mut session = Session::new(&NANO.model, &SessionOptions::default()).unwrap();
    session
        .eval_each(&tokens, 0, |i, row| {
            out.push(Set { name: "real", logits: row.to_vec(), history: tokens[..=i].to_vec() });
        })
        .unwrap();
    assert!(out.len() > 40);
    for round in 0.. {
        if out.len() >= 1000 {
            break;
        }
        let sizes = [1, 2, 3, 17, 100, 128, 129, 640, 1000, 2000, 3000];
        let n = if round % 97 == 96 { 64_000 } else { sizes[(random.next_u64() % 11) as usize] };
        let scale = [0.3, 1.0, 3.0, 6.0][(random.next_u64() % 4) as usize];
        let mut normal = || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        let mut logits: Vec<f32> = (0..n).map(|_| (normal() * scale) as f32).collect();
        let mut some = |share: f64, logits: &mut Vec<f32>, new: &dyn Fn(f64) -> f32| {
            for logit in logits.iter_mut() {
                if random.unit() < share {
                    *logit = new(random.unit());
                }
            }
        };
        let name = match round % 9 {
            0 | 1 => "normal",
            2 => {
                // A model's: most far below a few.
                some(10.0 / n as f64, &mut logits, &|u| (10.0 + 10.0 * u) as f32);
                "peaked"
            }
            3 => {
                logits.iter_mut().for_each(|l| *l = (*l * 4.0).round() * 0.25);
                "ties"
            }
            4 => {
                some(0.4, &mut logits, &|_| f32::NEG_INFINITY);
                logits[n / 2] = 1.0;
                "ruled out"
            }
            5 => {
                logits[n / 3] = 50.0;
                "spike"
            }
            6 => {
                logits.fill(scale as f32);
                "flat"
            }
            7 => {
                logits.iter_mut().for_each(|l| *l *= 2e4);
                "huge range"
            }
            _ => {
                some(0.5, &mut logits, &|u| (-(1.0 - u).ln()) as f32);
                "exponential"
            }
        };
        let history = (0..random.next_u64() % 150).map(|i| (random.next_u64() % (n as u64).min(2 + i / 3)) as u32);
        let history = history.collect();
        out.push(Set { name, logits, history });
    }
    out
}

/// What tokens have in common that the sampler cannot tell apart: the logit, but of tokens that were there, or that have a
/// bias, each is its own.
fn class(set: &Set, params: &Params, id: u32) -> (u32, u32) {
    let looks_back = params.penalties.repeat != 1.0
        || params.penalties.frequency != 0.0
        || params.penalties.presence != 0.0
        || params.dry.multiplier != 0.0;
    let is_own = looks_back && set.history.contains(&id) || params.logit_bias.iter().any(|(token, _)| *token == id);
    ((set.logits[id as usize] + 0.0).to_bits(), if is_own { id } else { u32::MAX })
}

type Classes = BTreeMap<(u32, u32), (usize, f64)>;

fn classes(set: &Set, params: &Params, list: &[(u32, f64)]) -> Classes {
    let mut out = Classes::new();
    // What no draw ever meets may have been rounded to nothing by either.
    for (id, p) in list.iter().filter(|(_, p)| *p > 1e-30) {
        let entry = out.entry(class(set, params, *id)).or_insert((0, *p));
        entry.0 += 1;
        assert!((entry.1 - p).abs() < 1e-9, "one class, two probabilities: {} and {p}", entry.1);
    }
    out
}

fn ours(sampler: &mut Sampler, logits: &[f32]) -> Vec<(u32, f64)> {
    let mut out = Vec::new();
    sampler.distribution(logits, None, &mut out).unwrap();
    out
}

/// With all thresholds moved a little.
fn moved(params: &Params, by: f32) -> Params {
    let mut moved = params.clone();
    moved.top_p = if params.top_p < 1.0 { (params.top_p + by).clamp(0.0, 0.999_99) } else { 1.0 };
    moved.typical_p = if params.typical_p < 1.0 { (params.typical_p + by).clamp(0.0, 0.999_99) } else { 1.0 };
    moved.min_p = (params.min_p * (1.0 - by)).min(1.0);
    moved.top_n_sigma = params.top_n_sigma * (1.0 + by);
    moved.xtc.threshold = (params.xtc.threshold * (1.0 - by)).min(0.5);
    moved
}

/// `None` if all is the same to `tolerance`; `Some(true)` where it lies within rounding; `Some(false)` with a message
/// where it does not.
fn difference(
    set: &Set,
    params: &Params,
    sampler: &Sampler,
    theirs: &[(u32, f64)],
    tolerance: f64,
) -> Result<bool, String> {
    let wanted = classes(set, params, theirs);
    // Logits of a hundred thousand, divided by a temperature in 32 bits, are off by hundredths.
    let top = set.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max).abs();
    let near = |p: f64, q: f64| (p - q).abs() < tolerance + q * f64::from(top) * 1e-7;
    let by = rounding(set.logits.len());
    let around = [0.0, -by, by].map(|by| {
        let mut sampler = if by == 0.0 { sampler.clone() } else { with_text(&moved(params, by)) };
        sampler.begin(&set.history);
        ours(&mut sampler, &set.logits)
    });
    let around_classes = around.each_ref().map(|list| classes(set, params, list));
    let got = &around_classes[0];
    let same = got.len() == wanted.len()
        && got.iter().zip(&wanted).all(|((a, (n, p)), (b, (m, q)))| a == b && n == m && near(*p, *q));
    if same {
        return Ok(false);
    }
    // Tokens that penalties have made equals, where one was kept by ours and another by theirs.
    let of_theirs: BTreeMap<u32, f64> = theirs.iter().copied().collect();
    for (i, list) in around.iter().enumerate() {
        let of_ours: BTreeMap<u32, f64> = list.iter().copied().collect();
        let only = |a: &BTreeMap<u32, f64>, b: &BTreeMap<u32, f64>| {
            let only = a.iter().filter(|(id, p)| !b.contains_key(id) && **p > 1e-30);
            let mut only: Vec<f64> = only.map(|(_, p)| *p).collect();
            only.sort_by(f64::total_cmp);
            only
        };
        let (only_ours, only_theirs) = (only(&of_ours, &of_theirs), only(&of_theirs, &of_ours));
        let relative = 1e-4 + f64::from(top) * 1e-7;
        let are_equals = only_ours.len() == only_theirs.len()
            && only_ours.iter().zip(&only_theirs).all(|(p, q)| (p - q).abs() < relative * q);
        if are_equals && of_ours.iter().all(|(id, p)| of_theirs.get(id).is_none_or(|q| near(*p, *q))) {
            return Ok(i > 0);
        }
    }
    // The bounds: fewest and most of each class that the moved parameters give.
    let mut bounds: BTreeMap<(u32, u32), (usize, usize)> = BTreeMap::new();
    for class in around_classes.iter().flat_map(|c| c.keys()).chain(wanted.keys()) {
        let counts = || around_classes.iter().map(|c| c.get(class).map_or(0, |(n, _)| *n));
        bounds.insert(*class, (counts().min().unwrap_or(0), counts().max().unwrap_or(0)));
    }
    let within = bounds.iter().all(|(class, (least, most))| {
        let n = wanted.get(class).map_or(0, |(n, _)| *n);
        (*least..=*most).contains(&n)
    });
    let both: Vec<_> = got.iter().filter_map(|(class, (_, p))| wanted.get(class).map(|(_, q)| (*p, *q))).collect();
    let (ours, theirs): (f64, f64) = both.iter().fold((0.0, 0.0), |(a, b), (p, q)| (a + p, b + q));
    let even = both.iter().all(|(p, q)| near(p / ours, q / theirs));
    if within && even && !both.is_empty() {
        return Ok(true);
    }
    // Where theirs has another mean, of those thousands again, the window around it lies elsewhere by as little.
    if params.typical_p < 1.0 && set.logits.len() > 5_000 {
        let logit = |class: &(u32, u32)| f32::from_bits(class.0);
        let ends = [f32::min as fn(f32, f32) -> f32, f32::max].map(|f| got.keys().map(logit).reduce(f).unwrap_or(0.0));
        let differing = bounds.keys().filter(|class| got.contains_key(class) != wanted.contains_key(class));
        if differing.map(logit).all(|logit| ends.iter().any(|end| (logit - end).abs() < 2e-3)) {
            return Ok(true);
        }
    }
    let show = |classes: &Classes| {
        let mut list: Vec<_> = classes.iter().map(|((bits, _), (n, p))| (f32::from_bits(*bits), *n, *p)).collect();
        list.sort_by(|a, b| b.2.total_cmp(&a.2));
        list.truncate(6);
        format!("{} classes, {list:?}", classes.len())
    };
    Err(format!("ours: {}\ntheirs: {}", show(got), show(&wanted)))
}

fn with_text(params: &Params) -> Sampler {
    let tokenizer = NANO.model.tokenizer();
    let n = if params.dry.multiplier > 0.0 { tokenizer.n_tokens() } else { 0 };
    Sampler::with_text(params, n, |id| tokenizer.bytes(id)).unwrap()
}

fn alone(kind: SamplerKind) -> Params {
    Params {
        samplers: vec![kind],
        temperature: Temperature::fixed(1.0),
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(1),
        ..Params::default()
    }
}

#[test]
fn every_sampler_keeps_what_llama_cpp_keeps() {
    let cases = [
        ("default", Params { seed: Some(1), ..Params::default() }),
        ("temperature", Params { temperature: Temperature::fixed(0.7), ..alone(SamplerKind::Temperature) }),
        ("cold", Params { temperature: Temperature::fixed(0.0), ..alone(SamplerKind::Temperature) }),
        (
            "dynatemp",
            Params {
                temperature: Temperature { range: 0.5, ..Temperature::fixed(1.1) },
                ..alone(SamplerKind::Temperature)
            },
        ),
        (
            "dynatemp, exponent",
            Params {
                temperature: Temperature { range: 0.8, exponent: 2.5, ..Temperature::fixed(1.0) },
                ..alone(SamplerKind::Temperature)
            },
        ),
        ("top-k", Params { top_k: 13, ..alone(SamplerKind::TopK) }),
        ("top-k 400", Params { top_k: 400, ..alone(SamplerKind::TopK) }),
        ("top-p", Params { top_p: 0.9, ..alone(SamplerKind::TopP) }),
        ("top-p, min-keep", Params { top_p: 0.3, min_keep: 5, ..alone(SamplerKind::TopP) }),
        ("top-p 0", Params { top_p: 0.0, ..alone(SamplerKind::TopP) }),
        ("min-p", Params { min_p: 0.03, ..alone(SamplerKind::MinP) }),
        ("min-p, min-keep", Params { min_p: 0.7, min_keep: 4, ..alone(SamplerKind::MinP) }),
        ("typical-p", Params { typical_p: 0.6, ..alone(SamplerKind::TypicalP) }),
        ("typical-p, min-keep", Params { typical_p: 0.2, min_keep: 6, ..alone(SamplerKind::TypicalP) }),
        ("top-n-sigma", Params { top_n_sigma: 1.3, ..alone(SamplerKind::TopNSigma) }),
        ("xtc", Params { xtc: Xtc { probability: 1.0, threshold: 0.03 }, ..alone(SamplerKind::Xtc) }),
        (
            "xtc, min-keep",
            Params { xtc: Xtc { probability: 1.0, threshold: 0.001 }, min_keep: 100, ..alone(SamplerKind::Xtc) },
        ),
        (
            "penalties",
            Params {
                penalties: Penalties { repeat: 1.3, frequency: 0.2, presence: -0.3, ..Penalties::default() },
                ..alone(SamplerKind::Penalties)
            },
        ),
        (
            "penalties, last 7",
            Params {
                penalties: Penalties { repeat: 0.8, frequency: 0.4, last_n: 7, ..Penalties::default() },
                ..alone(SamplerKind::Penalties)
            },
        ),
        ("dry", Params { dry: Dry { multiplier: 0.8, ..Dry::default() }, ..alone(SamplerKind::Dry) }),
        (
            "dry, last 100",
            Params {
                dry: Dry { multiplier: 0.3, base: 1.2, allowed_length: 1, last_n: 100, ..Dry::default() },
                ..alone(SamplerKind::Dry)
            },
        ),
        (
            "bias",
            Params {
                logit_bias: vec![(0, 2.0), (1, -1.5), (5, f32::NEG_INFINITY), (0, 0.5)],
                ..alone(SamplerKind::TopK)
            },
        ),
        (
            "everything",
            Params {
                penalties: Penalties { repeat: 1.2, ..Penalties::default() },
                dry: Dry { multiplier: 0.5, ..Dry::default() },
                top_n_sigma: 2.5,
                xtc: Xtc { probability: 1.0, threshold: 0.1 },
                temperature: Temperature { range: 0.3, ..Temperature::default() },
                min_keep: 2,
                seed: Some(1),
                ..Params::default()
            },
        ),
        (
            "everything, typical",
            Params {
                penalties: Penalties { frequency: 0.2, ..Penalties::default() },
                dry: Dry { multiplier: 0.5, ..Dry::default() },
                typical_p: 0.97,
                xtc: Xtc { probability: 1.0, threshold: 0.05 },
                min_keep: 3,
                seed: Some(1),
                ..Params::default()
            },
        ),
        (
            "another order",
            Params {
                samplers: vec![
                    SamplerKind::Temperature,
                    SamplerKind::MinP,
                    SamplerKind::Penalties,
                    SamplerKind::TopK,
                    SamplerKind::Xtc,
                    SamplerKind::TopP,
                ],
                penalties: Penalties { presence: 0.7, ..Penalties::default() },
                xtc: Xtc { probability: 1.0, ..Xtc::default() },
                seed: Some(1),
                ..Params::default()
            },
        ),
        (
            "penalties after a cut",
            Params {
                samplers: vec![
                    SamplerKind::TopK,
                    SamplerKind::Penalties,
                    SamplerKind::Temperature,
                    SamplerKind::TypicalP,
                ],
                typical_p: 0.8,
                penalties: Penalties { repeat: 1.2, ..Penalties::default() },
                seed: Some(1),
                ..Params::default()
            },
        ),
    ];
    let sets = sets();
    assert!(sets.len() >= 1000);
    for (name, params) in cases {
        let (mut n, mut rounded) = (0, 0);
        let looks_at_entropy = params.typical_p < 1.0;
        let template = with_text(&params);
        for set in &sets {
            let is_dry = params.dry.multiplier > 0.0;
            if is_dry && set.logits.len() > 6400 {
                continue;
            }
            let top = set.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let lowest = if looks_at_entropy { top - 30.0 } else { f32::NEG_INFINITY };
            // A penalty that divides takes such logits down to probability 0, where theirs is not a number.
            if looks_at_entropy && params.penalties.repeat != 1.0 && set.name == "huge range" {
                continue;
            }
            // A bias must not rule out all there is.
            if !params.logit_bias.is_empty() && set.logits.len() < 10 {
                continue;
            }
            let mut logits: Vec<f32> = set.logits.iter().map(|l| l.max(lowest)).collect();
            if matches!(params.samplers.first(), Some(SamplerKind::TopK | SamplerKind::Temperature))
                && params.samplers.contains(&SamplerKind::Penalties)
            {
                // Which of equals a cut leaves is chance, and whether it is penalised then too: there are no equals here.
                let step = if top > 1000.0 { 16.0 } else { 4096.0 };
                logits.iter_mut().enumerate().for_each(|(id, logit)| *logit += id as f32 / step);
            }
            let set = Set { name: set.name, logits, history: set.history.clone() };
            let theirs = Theirs::new(&params, set.logits.len());
            set.history.iter().for_each(|token| theirs.accept(*token));
            let mut sampler = template.clone();
            sampler.begin(&set.history);
            let (wanted, _) = theirs.apply(&set.logits);
            // The entropy of thousands of tokens is a sum of as many 32-bit numbers there, and the temperature follows it.
            let tolerance = if set.logits.len() > 5_000 && params.temperature.range > 0.0 { 1e-4 } else { 1e-5 };
            match difference(&set, &params, &sampler, &wanted, tolerance) {
                // Of 40 equals the 38th is at 0.95 to the last bit.
                Ok(was_rounded) => rounded += usize::from(was_rounded && set.name != "flat"),
                Err(message) => panic!("{name}, {} logits, {}:\n{message}", set.logits.len(), set.name),
            }
            n += 1;
        }
        eprintln!("{name}: {n} sets, of them {rounded} within rounding");
        assert!(n >= 700 && rounded <= n / 50, "{name}: {rounded} of {n} only within rounding");
    }
}

/// Theirs draws, and both learn from what it drew.
#[test]
fn mirostat_and_adaptive_p_go_the_way_of_llama_cpp() {
    let sets: Vec<Set> = sets().into_iter().filter(|set| set.logits.len() > 1).collect();
    let cases = [
        (
            "mirostat",
            Params {
                mirostat: Mirostat { version: 1, tau: 3.0, ..Mirostat::default() },
                temperature: Temperature::fixed(0.9),
                ..alone(SamplerKind::Temperature)
            },
        ),
        (
            "mirostat 2",
            Params { mirostat: Mirostat { version: 2, ..Mirostat::default() }, ..alone(SamplerKind::Temperature) },
        ),
        (
            "mirostat 2, tau 2",
            Params {
                mirostat: Mirostat { version: 2, tau: 2.0, eta: 0.3 },
                temperature: Temperature::fixed(1.2),
                ..alone(SamplerKind::Temperature)
            },
        ),
        (
            "adaptive-p",
            Params {
                adaptive_p: AdaptiveP { target: 0.3, ..AdaptiveP::default() },
                min_p: 0.02,
                samplers: vec![SamplerKind::MinP, SamplerKind::AdaptiveP],
                ..alone(SamplerKind::MinP)
            },
        ),
        (
            "adaptive-p, decay",
            Params {
                adaptive_p: AdaptiveP { target: 0.05, decay: 0.5 },
                samplers: vec![SamplerKind::TopK, SamplerKind::Temperature],
                ..Params::default()
            },
        ),
    ];
    for (name, params) in cases {
        let (mut n, mut rounded) = (0, 0);
        let mut drawn = HashSet::new();
        // All in one text: the state goes through all that comes. One size, for what Mirostat is told of it.
        let real: Vec<&Set> = sets.iter().filter(|set| set.logits.len() == 6400 || set.logits.len() == 1000).collect();
        for size in [6400, 1000] {
            let theirs = Theirs::new(&params, size);
            let mut sampler = Sampler::new(&params).unwrap();
            sampler.begin(&[]);
            for set in real.iter().filter(|set| set.logits.len() == size) {
                // Theirs takes the logarithm of 0.
                let top = set.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let logits: Vec<f32> = set.logits.iter().map(|l| l.max(top - 60.0)).collect();
                if set.name == "flat" && params.mirostat.version == 1 {
                    // 0 divided by 0 there.
                    continue;
                }
                let set = Set { name: set.name, logits, history: Vec::new() };
                let (wanted, token) = theirs.apply(&set.logits);
                let token = token.unwrap();
                let mut got = Vec::new();
                sampler.distribution(&set.logits, None, &mut got).unwrap();
                n += 1;
                let a = classes(&set, &params, &got);
                let b = classes(&set, &params, &wanted);
                let count = |c: &Classes| c.values().map(|(n, _)| *n).sum::<usize>();
                let same = a.len() == b.len()
                    && a.iter().zip(&b).all(|((x, (n, p)), (y, (m, q)))| x == y && n == m && (p - q).abs() < 2e-5);
                if !same {
                    // The cut follows from a number that 32 bits round: a little more or less of the least likely.
                    let (small, large) = if count(&a) < count(&b) { (&a, &b) } else { (&b, &a) };
                    let missing: f64 =
                        large.iter().map(|(c, (n, p))| (n - small.get(c).map_or(0, |(m, _)| *m)) as f64 * p).sum();
                    let keys: BTreeSet<_> = large.keys().collect();
                    assert!(
                        small.keys().all(|c| keys.contains(c))
                            && missing < 2e-3
                            && count(large) - count(small) <= 1 + count(large) / 200,
                        "{name}, {}: {} kept, theirs {}, missing {missing}",
                        set.name,
                        count(&a),
                        count(&b)
                    );
                    rounded += 1;
                }
                drawn.insert(token);
                theirs.accept(token);
                // Where all are as likely and one is to be kept, theirs may keep another of them.
                let ours = got.iter().map(|(id, _)| *id).find(|id| *id == token);
                let equal =
                    got.iter().map(|(id, _)| *id).find(|id| class(&set, &params, *id) == class(&set, &params, token));
                sampler.accept(ours.or(equal).unwrap_or(token));
            }
        }
        eprintln!("{name}: {n} draws, of them {rounded} within rounding");
        assert!(n > 80 && drawn.len() > 5 && rounded <= n / 10, "{name}: {rounded} of {n} only within rounding");
    }
}

/// `nibble run` on the tiny model; gives the JSON that it prints.
fn run(more: &[&str]) -> serde_json::Value {
    LazyLock::force(&NANO);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sampling-yi-nano-F16.gguf");
    let fixed = ["run", file.to_str().unwrap(), "--json", "-p", "The Song dynasty"];
    serde_json::from_str(&support::stdout(&support::nibble(fixed.iter().chain(more)))).unwrap()
}

#[test]
fn logprobs_are_printed_for_what_was_written() {
    let json = run(&["-n", "4", "--temp", "0", "--logprobs", "3", "--ignore-eos"]);
    let logprobs = json["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 4);
    for (token, logprob) in json["tokens"].as_array().unwrap().iter().zip(logprobs) {
        assert_eq!(&logprob["id"], token);
        let top = logprob["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy takes the first of them, but for the end token, which was ruled out.
        let first = if top[0]["id"] == *token { &top[0] } else { &top[1] };
        assert_eq!(first["id"], *token);
        assert_eq!(first["logprob"], logprob["logprob"]);
        let p: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap().exp()).collect();
        assert!(p[0] >= p[1] && p[1] >= p[2] && p.iter().sum::<f64>() <= 1.0 + 1e-6, "{p:?}");
    }
    assert!(run(&["-n", "2"]).get("logprobs").is_none());
}

#[test]
fn one_seed_gives_one_text_with_every_sampler() {
    let all = [
        "-n",
        "20",
        "--seed",
        "5",
        "--dry-multiplier",
        "0.8",
        "--xtc-probability",
        "0.5",
        "--xtc-threshold",
        "0.05",
        "--repeat-penalty",
        "1.1",
        "--dynatemp-range",
        "0.2",
        "--typical-p",
        "0.95",
        "--top-n-sigma",
        "3",
    ];
    let text = run(&all)["text"].clone();
    assert_eq!(run(&all)["text"], text);
    let mirostat = ["-n", "20", "--seed", "5", "--mirostat", "2"];
    assert_eq!(run(&mirostat)["text"], run(&mirostat)["text"]);
    assert_ne!(run(&mirostat)["text"], text);
}
