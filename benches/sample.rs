//! Samplers against llama.cpp's, in one run: microseconds per token with a vocabulary of 64,000.
//!
//! ```text
//! cargo bench --bench sample                  all of them
//! cargo bench --bench sample -- top-k dry     those whose names have one of these in them
//! cargo bench --bench sample -- --rounds 999
//! ```
//!
//! llama.cpp's chain is called as any user of the bindings calls it: the logits are put into an array of `llama_token_data`
//! (`build`), then the chain is applied, its own draw included. Ours takes the logits as they are. All take turns over eight
//! sets of logits; median and best count.

use std::hint::black_box;
use std::time::{Duration, Instant};

use llama_cpp_sys_2 as sys;
use nibble::base::random::Random;
use nibble::sample::{AdaptiveP, Dry, Mirostat, Params, Penalties, Sampler, SamplerKind, Temperature, Xtc};

const VOCABULARY: usize = 64_000;

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mut rounds = 301;
    if let Some(at) = words.iter().position(|word| word == "--rounds") {
        rounds = words.get(at + 1).and_then(|n| n.parse().ok()).expect("--rounds wants a number");
        words.drain(at..at + 2);
    }
    let logits: Vec<Vec<f32>> = (0..8).map(realistic).collect();
    let flat: Vec<Vec<f32>> = logits.iter().map(|set| set.iter().map(|l| l * 0.2).collect()).collect();

    println!("microseconds a token, {VOCABULARY} logits, {rounds} rounds; best / median");
    println!("{:24} {:>15} {:>17} {:>17} {:>8}", "", "nibble", "llama.cpp", "without build", "ratio");
    for (name, params) in cases() {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            bench(name, &params, &logits, rounds);
        }
    }
    for (name, params) in
        cases().into_iter().filter(|(name, _)| ["default", "top-k 0", "draw among all"].contains(name))
    {
        let name = format!("{name}, uncertain");
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            bench(&name, &params, &flat, rounds);
        }
    }
}

fn cases() -> Vec<(&'static str, Params)> {
    let alone = |kind| Params {
        samplers: vec![kind],
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        temperature: Temperature::fixed(1.0),
        seed: Some(1),
        ..Params::default()
    };
    let default = Params { seed: Some(1), ..Params::default() };
    vec![
        ("default", default.clone()),
        ("top-k 0", Params { top_k: 0, ..default.clone() }),
        ("greedy", Params::greedy()),
        (
            "default, penalties",
            Params { penalties: Penalties { repeat: 1.1, ..Penalties::default() }, ..default.clone() },
        ),
        ("default, dry", Params { dry: Dry { multiplier: 0.8, ..Dry::default() }, ..default.clone() }),
        ("draw among all", Params { temperature: Temperature::fixed(0.8), ..alone(SamplerKind::Temperature) }),
        ("top-k 40", Params { top_k: 40, ..alone(SamplerKind::TopK) }),
        ("top-k 1000", Params { top_k: 1000, ..alone(SamplerKind::TopK) }),
        ("top-p 0.95", Params { top_p: 0.95, ..alone(SamplerKind::TopP) }),
        ("min-p 0.05", Params { min_p: 0.05, ..alone(SamplerKind::MinP) }),
        ("typical-p 0.95", Params { typical_p: 0.95, ..alone(SamplerKind::TypicalP) }),
        ("top-n-sigma 1", Params { top_n_sigma: 1.0, ..alone(SamplerKind::TopNSigma) }),
        ("xtc", Params { xtc: Xtc { probability: 1.0, ..Xtc::default() }, ..alone(SamplerKind::Xtc) }),
        (
            "dynatemp",
            Params {
                temperature: Temperature { range: 0.5, ..Temperature::fixed(1.0) },
                ..alone(SamplerKind::Temperature)
            },
        ),
        (
            "penalties",
            Params { penalties: Penalties { repeat: 1.1, ..Penalties::default() }, ..alone(SamplerKind::Penalties) },
        ),
        ("dry", Params { dry: Dry { multiplier: 0.8, ..Dry::default() }, ..alone(SamplerKind::Dry) }),
        (
            "mirostat",
            Params { mirostat: Mirostat { version: 1, ..Mirostat::default() }, ..alone(SamplerKind::Temperature) },
        ),
        (
            "mirostat 2",
            Params { mirostat: Mirostat { version: 2, ..Mirostat::default() }, ..alone(SamplerKind::Temperature) },
        ),
        (
            "adaptive-p after min-p",
            Params {
                adaptive_p: AdaptiveP { target: 0.3, ..AdaptiveP::default() },
                min_p: 0.05,
                ..alone(SamplerKind::MinP)
            },
        ),
    ]
}

/// Like a language model's: most far below, some near, a few ahead.
fn realistic(seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let mut logits: Vec<f32> =
        (0..VOCABULARY).map(|_| ((0..12).map(|_| random.unit()).sum::<f64>() * 2.5 - 17.0) as f32).collect();
    for rank in 0..400 {
        let at = (random.next_u64() % VOCABULARY as u64) as usize;
        logits[at] = (19.0 - 1.9 * f64::from(1 + rank).ln() + random.unit()) as f32;
    }
    logits
}

fn bench(name: &str, params: &Params, logits: &[Vec<f32>], rounds: usize) {
    let mut sampler = Sampler::new(params).expect("the parameters are within their ranges");
    let theirs = Theirs::new(params);
    let text: Vec<u32> = (0..64).map(|i| (i * i * 37) % 50).collect();
    sampler.begin(&text);
    text.iter().for_each(|token| theirs.accept(*token));

    let mut times = [(); 3].map(|()| Vec::with_capacity(rounds));
    let mut data: Vec<sys::llama_token_data> = Vec::with_capacity(VOCABULARY);
    for round in 0..rounds {
        let logits = &logits[round % logits.len()];
        times[0].push(time(|| {
            black_box(sampler.sample(black_box(logits), None).expect("the logits are fine"));
        }));
        times[1].push(time(|| {
            build(black_box(logits), &mut data);
            black_box(theirs.apply(&mut data));
        }));
        build(logits, &mut data);
        times[2].push(time(|| {
            black_box(theirs.apply(&mut data));
        }));
    }
    let [ours, theirs, without] = times.map(|mut times| {
        times.sort();
        [times[0], times[times.len() / 2]].map(|time| time.as_secs_f64() * 1e6)
    });
    let both = |[best, median]: [f64; 2]| format!("{best:.1} / {median:.1}");
    println!("{name:24} {:>15} {:>17} {:>17} {:>7.1}x", both(ours), both(theirs), both(without), theirs[1] / ours[1]);
}

fn time(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

fn build(logits: &[f32], data: &mut Vec<sys::llama_token_data>) {
    data.clear();
    data.extend((0..).zip(logits).map(|(id, &logit)| sys::llama_token_data { id, logit, p: 0.0 }));
}

/// llama.cpp's chain for some parameters, as its `common_sampler_init` puts it together.
struct Theirs(*mut sys::llama_sampler);

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: it was made by llama.cpp, and frees what was added to it.
        unsafe { sys::llama_sampler_free(self.0) }
    }
}

impl Theirs {
    fn new(params: &Params) -> Self {
        let n = VOCABULARY as i32;
        // SAFETY: plain numbers, and null pointers where there is nothing to point at.
        unsafe {
            let chain = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            let add = |sampler| sys::llama_sampler_chain_add(chain, sampler);
            for kind in &params.samplers {
                match kind {
                    _ if params.mirostat.version > 0 => {}
                    SamplerKind::Penalties => add(sys::llama_sampler_init_penalties(
                        n,
                        params.penalties.last_n as i32,
                        params.penalties.repeat,
                        params.penalties.frequency,
                        params.penalties.presence,
                    )),
                    SamplerKind::Dry => add(sys::llama_sampler_init_dry(
                        std::ptr::null(),
                        params.dry.multiplier,
                        params.dry.base,
                        params.dry.allowed_length as i32,
                        params.dry.last_n as i32,
                        std::ptr::null_mut(),
                        0,
                    )),
                    SamplerKind::TopNSigma => add(sys::llama_sampler_init_top_n_sigma(params.top_n_sigma)),
                    SamplerKind::TopK => add(sys::llama_sampler_init_top_k(params.top_k as i32)),
                    SamplerKind::TypicalP => add(sys::llama_sampler_init_typical(params.typical_p, 0)),
                    SamplerKind::TopP => add(sys::llama_sampler_init_top_p(params.top_p, 0)),
                    SamplerKind::MinP => add(sys::llama_sampler_init_min_p(params.min_p, 0)),
                    SamplerKind::Xtc => {
                        add(sys::llama_sampler_init_xtc(params.xtc.probability, params.xtc.threshold, 0, 1));
                    }
                    SamplerKind::Temperature if params.temperature.value == 0.0 => {
                        add(sys::llama_sampler_init_greedy())
                    }
                    SamplerKind::Temperature => add(sys::llama_sampler_init_temp_ext(
                        params.temperature.value,
                        params.temperature.range,
                        params.temperature.exponent,
                    )),
                    _ => {}
                }
            }
            let (tau, eta) = (params.mirostat.tau, params.mirostat.eta);
            match params.mirostat.version {
                1 => add(sys::llama_sampler_init_mirostat(n, 1, tau, eta, 100)),
                2 => add(sys::llama_sampler_init_mirostat_v2(1, tau, eta)),
                _ if params.adaptive_p.target >= 0.0 => {
                    add(sys::llama_sampler_init_adaptive_p(params.adaptive_p.target, params.adaptive_p.decay, 1));
                }
                // Greedy has chosen.
                _ if params.temperature.value == 0.0 => {}
                _ => add(sys::llama_sampler_init_dist(1)),
            }
            Self(chain)
        }
    }

    fn accept(&self, token: u32) {
        // SAFETY: a token of the vocabulary that the chain was made for.
        unsafe { sys::llama_sampler_accept(self.0, token as i32) }
    }

    fn apply(&self, data: &mut [sys::llama_token_data]) -> i32 {
        let mut array =
            sys::llama_token_data_array { data: data.as_mut_ptr(), size: data.len(), selected: -1, sorted: false };
        // SAFETY: the array points at `data`, which the samplers only narrow; they select one of what is left.
        unsafe {
            sys::llama_sampler_apply(self.0, &mut array);
            let at = usize::try_from(array.selected).expect("a token is selected");
            (*array.data.add(at)).id
        }
    }
}
