//! The loop that writes text against the barest loop there can be around llama.cpp: `llama_decode` and the highest logit.
//!
//! ```text
//! cargo bench --bench generate                       the tests' model, where a token takes a fraction of a millisecond
//! cargo bench --bench generate -- MODEL.gguf         any other
//! cargo bench --bench generate -- MODEL.gguf --threads 4 --tokens 8 --seconds 60
//! ```
//!
//! A model of two layers of Yi-34B's shapes, which is made in a minute:
//!
//! ```text
//! scripts/make-checkpoint /tmp/yi-2 --like 34b --layers 2
//! nibble convert /tmp/yi-2 -q Q4_K_M -o /tmp/yi-2.gguf
//! ```
//!
//! All run in one process, on the same file with the same threads, and take turns in short rounds, so that what else the
//! machine does hits all alike, and so that some rounds are not hit. Whose copy of the weights lies better in memory is a
//! matter of a percent, and of who loads it first: so each is the first in half of the time, and the ratio is the geometric
//! mean of the two halves' medians.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llama_cpp_sys_2 as sys;
use nibble::engine;
use nibble::engine::{GenerateOptions, Session, SessionOptions, Writer};
use nibble::llama;
use nibble::llama::{Model, ModelOptions};
use nibble::sample::{Params, Sampler};

fn main() {
    let arguments = Arguments::parse();
    let made = tempfile::tempdir().expect("a temporary folder");
    let path = arguments.model.clone().unwrap_or_else(|| yi_nano(made.path()));

    let threads = arguments.threads.unwrap_or_else(|| num_cpus::get_physical() as u32);
    println!("{}: {} tokens a round, {threads} threads", path.display(), arguments.tokens);
    let halves = [true, false].map(|first| rounds(&path, &arguments, threads, first));

    let names = ["nibble's loop", "llama_decode and the highest logit", "llama_decode and llama.cpp's greedy sampler"];
    for (who, name) in names.iter().enumerate() {
        let micros = halves.each_ref().map(|times| 1e6 * quantile(&times[who], 0.0) / (arguments.tokens - 1) as f64);
        print!("{name:44} {:9.1} and {:9.1} us a token", micros[0], micros[1]);
        if who > 0 {
            let ratios = halves.each_ref().map(|times| -> Vec<f64> {
                times[who].iter().zip(&times[0]).map(|(bare, nibble)| bare / nibble).collect()
            });
            let medians = ratios.each_ref().map(|ratios| quantile(ratios, 0.5));
            let (low, high) = (quantile(&ratios.concat(), 0.1), quantile(&ratios.concat(), 0.9));
            print!("  nibble's speed / this: {:.3} (", (medians[0] * medians[1]).sqrt());
            print!("nibble first {:.3}, last {:.3}; rounds {low:.3} to {high:.3})", medians[0], medians[1]);
        }
        println!();
    }
}

/// The value below which a share of the numbers lies.
fn quantile(numbers: &[f64], share: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// The seconds of each loop in each round, where nibble loads its copy of the model first, or last.
fn rounds(path: &Path, arguments: &Arguments, threads: u32, nibble_first: bool) -> [Vec<f64>; 3] {
    let n_prompt = 32;
    let n_ctx = n_prompt + arguments.tokens as u32 + 1;
    let options = SessionOptions { n_ctx: Some(n_ctx), threads: Some(threads), ..SessionOptions::default() };
    llama::system_info().expect("llama.cpp starts");
    let bare = || Bare::new(path, n_ctx, options.n_batch, threads);
    let early = (!nibble_first).then(bare);
    let model = Model::load(path, ModelOptions::default()).expect("the model loads");
    let mut session = Session::new(&model, &options).expect("a session");
    let mut bare = early.unwrap_or_else(bare);
    let mut sampler = Sampler::new(&Params::greedy()).expect("a sampler");
    let prompt: Vec<u32> = (0..n_prompt).map(|i| 300 + 11 * i % (model.n_vocab() - 300)).collect();

    let mut nibble = || {
        let options =
            GenerateOptions { max_tokens: Some(arguments.tokens), ignore_end: true, ..GenerateOptions::default() };
        let go_on = |step: engine::Step<'_>| {
            black_box(step.text);
            ControlFlow::Continue(())
        };
        let written = engine::generate(&mut session, Writer::new(&mut sampler), &prompt, &options, go_on);
        let written = written.expect("it writes");
        (written.generate_time.as_secs_f64(), written.tokens)
    };
    let (mut times, mut same) = ([const { Vec::new() }; 3], true);
    let begun = Instant::now();
    for round in 0.. {
        let mut texts: [Vec<u32>; 3] = Default::default();
        let mut seconds = [0.0; 3];
        // Each is as often the first as the others.
        for i in 0..3 {
            let who = (i + round) % 3;
            (seconds[who], texts[who]) = match who {
                0 => nibble(),
                1 => bare.write(&prompt, arguments.tokens, false),
                _ => bare.write(&prompt, arguments.tokens, true),
            };
        }
        same &= texts[0] == texts[1] && texts[0] == texts[2];
        // The first round warms up.
        if round > 0 {
            (0..3).for_each(|who| times[who].push(seconds[who]));
        }
        if round >= 3 && begun.elapsed().as_secs_f64() > arguments.seconds as f64 / 2.0 {
            break;
        }
    }
    assert!(same, "the loops wrote different texts");
    times
}

struct Arguments {
    model: Option<PathBuf>,
    threads: Option<u32>,
    tokens: usize,
    seconds: usize,
}

impl Arguments {
    fn parse() -> Self {
        let mut arguments = Self { model: None, threads: None, tokens: 20, seconds: 20 };
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let mut number = || -> usize {
                let number = words.next().and_then(|word| word.parse().ok()).filter(|n| *n > 0);
                number.unwrap_or_else(|| panic!("{word} wants a number above 0"))
            };
            match word.as_str() {
                "--threads" => arguments.threads = Some(number() as u32),
                "--tokens" => arguments.tokens = number().max(2),
                "--seconds" => arguments.seconds = number(),
                model => arguments.model = Some(model.into()),
            }
        }
        arguments
    }
}

/// The tests' model, converted.
fn yi_nano(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano");
    let file = folder.join("yi-nano.gguf");
    let nibble = Path::new(env!("CARGO_BIN_EXE_nibble"));
    let status = std::process::Command::new(nibble)
        .args([Path::new("convert"), &source, Path::new("-q"), Path::new("Q4_K_M"), Path::new("-o"), &file])
        .output()
        .expect("nibble starts");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    file
}

/// llama.cpp with nothing around it.
struct Bare {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    n_vocab: usize,
    sampler: *mut sys::llama_sampler,
    known: usize,
}

impl Bare {
    fn new(path: &Path, n_ctx: u32, n_batch: u32, threads: u32) -> Self {
        let path = std::ffi::CString::new(path.to_str().expect("a path in Unicode")).expect("no NUL in a path");
        // SAFETY: nibble has started llama.cpp; the pointers are checked, and live as long as this.
        unsafe {
            let model = sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
            assert!(!model.is_null());
            let mut params = sys::llama_context_default_params();
            (params.n_ctx, params.n_batch, params.n_ubatch) = (n_ctx, n_batch, n_batch);
            (params.n_threads, params.n_threads_batch) = (threads as i32, threads as i32);
            (params.n_outputs_max, params.no_perf) = (1, true);
            let context = sys::llama_init_from_model(model, params);
            assert!(!context.is_null());
            let n_vocab = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model)) as usize;
            Self { model, context, n_vocab, sampler: sys::llama_sampler_init_greedy(), known: 0 }
        }
    }

    fn decode(&mut self, tokens: &mut [i32]) {
        // SAFETY: the context is alive; there is room for the tokens, which follow those it holds.
        unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            assert_eq!(sys::llama_decode(self.context, batch), 0);
        }
    }

    /// Reads the prompt, then writes `n` tokens, the last of which is not read. Gives the seconds for the latter.
    fn write(&mut self, prompt: &[u32], n: usize, by_sampler: bool) -> (f64, Vec<u32>) {
        let mut prompt: Vec<i32> = prompt.iter().map(|t| *t as i32).collect();
        // All but the last token of the prompt is there already, as it is for nibble.
        let kept = self.known.min(prompt.len() - 1);
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.context), 0, kept as i32, -1) };
        self.decode(&mut prompt[kept..]);
        self.known = prompt.len();
        // SAFETY: the context is alive.
        unsafe { sys::llama_synchronize(self.context) };
        let mut text = Vec::with_capacity(n);
        let begun = Instant::now();
        loop {
            let token = if by_sampler {
                // SAFETY: both are alive, and the last evaluation gave logits.
                unsafe { sys::llama_sampler_sample(self.sampler, self.context, -1) }
            } else {
                // SAFETY: as above; there are as many logits as tokens in the vocabulary.
                let logits =
                    unsafe { std::slice::from_raw_parts(sys::llama_get_logits_ith(self.context, -1), self.n_vocab) };
                highest(logits)
            };
            text.push(token as u32);
            if text.len() == n {
                return (begun.elapsed().as_secs_f64(), text);
            }
            self.decode(&mut [token]);
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: nobody else has these; the context goes before its model.
        unsafe {
            sys::llama_sampler_free(self.sampler);
            sys::llama_free(self.context);
            sys::llama_model_free(self.model);
        }
    }
}

/// The first of the highest, as fast as it goes.
fn highest(logits: &[f32]) -> i32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = logits.chunks_exact(16);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, logit)| *lane = if *logit > *lane { *logit } else { *lane });
    }
    let best = lanes.into_iter().fold(rest, f32::max);
    logits.iter().position(|logit| *logit == best).unwrap_or(0) as i32
}
