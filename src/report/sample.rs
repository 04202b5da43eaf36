//! Made-up comparisons for tests and for looking at the report, from small formulas.

use crate::report::results::*;

/// Recipes with the bits per weight they take on Yi-34B, and how much better or worse than the trend they are.
const RECIPES: [(&str, f64, f64); 17] = [
    ("IQ2_M", 2.76, 0.72),
    ("Q2_K", 2.98, 1.25),
    ("IQ3_XXS", 3.17, 0.8),
    ("Q3_K_S", 3.52, 1.3),
    ("IQ3_M", 3.79, 0.82),
    ("Q3_K_M", 3.91, 0.95),
    ("Q3_K_L", 4.24, 1.15),
    ("IQ4_XS", 4.31, 0.72),
    ("Q4_0", 4.55, 1.4),
    ("IQ4_NL", 4.54, 0.85),
    ("Q4_K_S", 4.58, 0.88),
    ("Q4_K_M", 4.83, 0.82),
    ("Q5_0", 5.53, 1.1),
    ("Q5_K_S", 5.54, 0.85),
    ("Q5_K_M", 5.69, 0.8),
    ("Q6_K", 6.57, 0.8),
    ("Q8_0", 8.5, 0.75),
];

/// Weights of Yi-34B.
const WEIGHTS: f64 = 34.389e9;

fn estimate(value: f64, spread: f64) -> Estimate {
    Estimate { value, interval: Some([value * (1.0 - spread), value * (1.0 + spread)]) }
}

fn share(value: f64, half: f64) -> Estimate {
    Estimate { value, interval: Some([(value - half).max(0.0), (value + half).min(1.0)]) }
}

/// Returns pseudo-random numbers that are the same every time.
fn wobble(n: usize) -> f64 {
    ((n as f64 * 12.9898).sin() * 43758.5453).fract().abs()
}

/// Returns scores with this mean KLD.
pub fn scores(kld: f64, tokens: u64) -> Scores {
    let flips = (0.33 * kld.sqrt()).min(0.9);
    Scores {
        tokens,
        perplexity: estimate(5.2 * (1.0 + kld / 2.0), 0.02),
        perplexity_ratio: estimate(1.0 + kld / 2.0, 0.001),
        kld: estimate(kld, 0.03),
        kld_median: estimate(kld * 0.31, 0.02),
        kld_90: estimate(kld * 2.4, 0.04),
        kld_99: estimate(kld * 9.7, 0.08),
        kld_999: estimate(kld * 33.0, 0.2),
        kld_max: Estimate::bare(kld * 140.0),
        rms_dp: share(0.27 * kld.sqrt(), 0.002),
        same_top: share(1.0 - flips, 0.002),
        top5_overlap: share(1.0 - flips * 0.8, 0.002),
    }
}

/// Returns a candidate with all fields filled in.
pub fn candidate(name: &str, bits: f64, kld: f64, n: usize) -> Candidate {
    let stretches = 12;
    let positions = (0..stretches)
        .map(|i| Stretch {
            from: 256 + i * 64,
            to: 256 + (i + 1) * 64,
            kld: estimate(kld * (1.25 - 0.04 * f64::from(i) + 0.08 * wobble(n * 20 + i as usize)), 0.09),
        })
        .collect();
    let bins = 30;
    let counts = (0..bins)
        .map(|i| {
            let log10 = -7.0 + 0.3 * f64::from(i);
            let off = (log10 - (kld * 0.3).log10()) / 0.8;
            (9000.0 * (-off * off / 2.0).exp()) as u64
        })
        .collect();
    Candidate {
        file: File {
            name: name.into(),
            path: format!("models/{name}.gguf"),
            bytes: (WEIGHTS * bits / 8.0) as u64,
            blake3: Some(format!("{:064x}", (n as u128 + 1) * 0x9e37_79b9_7f4a_7c15_1234_5678_9abc_u128)),
            quantization: Some(name.rsplit('-').next().unwrap_or(name).into()),
            bits_per_weight: Some(bits),
            importance: name.ends_with("im").then(|| "texts-mixed".into()),
            second_layout: Some(n.is_multiple_of(2)),
        },
        failure: None,
        overall: Some(scores(kld, 40_960)),
        slices: vec![Some(scores(kld * 0.85, 24_576)), Some(scores(kld * 1.2, 16_384))],
        on_front: false,
        positions,
        histogram: Some(Histogram { log10_from: -7.0, log10_step: 0.3, counts }),
        changed: (0..4).map(|i| change(i, kld)).collect(),
        weights: Some(weights(bits, n)),
        tasks: vec![Some(task_scores(0.83 - kld * 0.2, kld))],
    }
}

fn guess(text: &str, reference: f64, candidate: f64) -> Guess {
    Guess { text: text.into(), reference: Some(reference), candidate }
}

fn change(i: usize, kld: f64) -> Change {
    if i.is_multiple_of(2) {
        return Change {
            slice: 0,
            token: 1_234 + 77 * i as u64,
            before: "The committee met again in the spring of 1931, when the harbour was free of ice. The chair asked \
                     whether the bridge over the"
                .into(),
            right: guess(" river", 0.62, 0.11),
            after: " should be built of stone or of steel.".into(),
            reference: vec![guess(" river", 0.62, 0.11), guess(" old", 0.12, 0.09), guess(" canal", 0.05, 0.07)],
            candidate: vec![guess(" same", 0.02, 0.33), guess(" river", 0.62, 0.11), guess(" old", 0.12, 0.09)],
            kld: 140.0 * kld / (i + 1) as f64,
        };
    }
    Change {
        slice: 1,
        token: 998 + 13 * i as u64,
        before: "春天的时候,港口的冰已经化了,委员会再次开会。主席问大家,河上的".into(),
        right: guess("桥", 0.71, 0.24),
        after: "应该用石头还是用钢来建。".into(),
        reference: vec![guess("桥", 0.71, 0.24), guess("船", 0.08, 0.2), guess("\\xE6", 0.02, 0.04)],
        candidate: vec![guess("水", 0.01, 0.31), guess("桥", 0.71, 0.24), guess("船", 0.08, 0.2)],
        kld: 130.0 * kld / (i + 1) as f64,
    }
}

fn error(relative: f64) -> WeightError {
    WeightError {
        rmse: relative * 0.02,
        relative,
        cosine: 1.0 - relative * relative / 2.0,
        weighted: Some(relative * 0.9),
    }
}

fn weights(bits: f64, n: usize) -> WeightErrors {
    let base = 1.1 * 2_f64.powf(-bits);
    let roles = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut tensors = vec![TensorError {
        name: "token_embd.weight".into(),
        layer: None,
        role: "token_embd".into(),
        ty: "Q4_K".into(),
        weights: 64_000 * 7_168,
        error: error(base * 1.2),
        worst_row: 17,
        worst_row_relative: base * 2.0,
    }];
    for layer in 0..60_u32 {
        for (r, role) in roles.iter().enumerate() {
            let better = if *role == "attn_v" || (*role == "ffn_down" && layer.is_multiple_of(3)) { 0.6 } else { 1.0 };
            let relative = base * better * (0.9 + 0.004 * f64::from(layer) + 0.1 * wobble(n + r * 97 + layer as usize));
            tensors.push(TensorError {
                name: format!("blk.{layer}.{role}.weight"),
                layer: Some(layer),
                role: (*role).into(),
                ty: if better < 1.0 { "Q6_K".into() } else { "Q4_K".into() },
                weights: 7_168 * 7_168,
                error: error(relative),
                worst_row: u64::from(layer) * 3,
                worst_row_relative: relative * 1.7,
            });
        }
        tensors.push(TensorError {
            name: format!("blk.{layer}.attn_norm.weight"),
            layer: Some(layer),
            role: "norm".into(),
            ty: "F32".into(),
            weights: 7_168,
            error: WeightError { rmse: 0.0, relative: 0.0, cosine: 1.0, weighted: None },
            worst_row: 0,
            worst_row_relative: 0.0,
        });
    }
    WeightErrors {
        roles: Vec::new(),
        overall: Some(error(base)),
        tensors,
        skipped: vec!["blk.0.extra: the source has no such tensor".into()],
    }
}

fn task_scores(accuracy: f64, kld: f64) -> TaskScores {
    TaskScores {
        questions: 400,
        scores: vec![
            ("accuracy_normalised".into(), share(accuracy, 0.037)),
            ("accuracy".into(), share(accuracy - 0.18, 0.046)),
        ],
        against_reference: Some(Flips {
            lost: (6.0 + kld * 90.0) as u64,
            won: (5.0 + kld * 60.0) as u64,
            p_value: (0.9 - kld).max(0.001),
        }),
    }
}

/// Computes what follows from sizes and KLDs: the order of the candidates, the Pareto front and the pairs.
pub fn settle(results: &mut Results) {
    results.candidates.sort_by_key(|candidate| candidate.file.bytes);
    let mut least = f64::INFINITY;
    for candidate in &mut results.candidates {
        let kld = candidate.overall.map_or(f64::NAN, |scores| scores.kld.value);
        candidate.on_front = kld < least;
        least = least.min(kld);
    }
    results.pairs.clear();
    for a in 0..results.candidates.len() {
        for b in a + 1..results.candidates.len() {
            let (Some(first), Some(second)) = (results.candidates[a].overall, results.candidates[b].overall) else {
                continue;
            };
            let (x, y) = (first.kld.value, second.kld.value);
            let half = 0.02 * x.min(y) + 0.01 * (x - y).abs();
            let kld = Estimate { value: x - y, interval: Some([x - y - half, x - y + half]) };
            let verdict = match kld.differs_from_zero() {
                false => Verdict::NotDistinguishable,
                true if x < y => Verdict::A,
                true => Verdict::B,
            };
            let log_perplexity = estimate((1.0 + x / 2.0).ln() - (1.0 + y / 2.0).ln(), 0.1);
            let same_top = estimate(first.same_top.value - second.same_top.value, 0.1);
            results.pairs.push(Pair { a, b, kld, log_perplexity, same_top, verdict });
        }
    }
}

/// A comparison of this many candidates over an English and a Chinese text and a task.
pub fn results(count: usize) -> Results {
    let step = if count <= 17 { 17.0 / count.max(1) as f64 } else { 1.0 };
    let candidates = (0..count)
        .map(|n| {
            let (name, bits, factor) = RECIPES[if count <= 17 { (n as f64 * step) as usize } else { n % 17 }];
            let (name, gain) = match n / 17 {
                0 => (format!("Yi-34B-Chat-{name}"), 1.0),
                round => (format!("Yi-34B-Chat-{name}-{round}im"), 0.86 + 0.008 * (n % 17) as f64),
            };
            candidate(&name, bits + 0.004 * (n / 17) as f64, 5.2 * 2_f64.powf(-1.42 * bits) * factor * gain, n)
        })
        .collect();
    let mut results = Results {
        version: "0.1.0".into(),
        command: ["nibble", "compare", "models/Yi-34B-Chat-BF16.gguf", "models/*.gguf", "--text", "en=texts/en.txt"]
            .map(String::from)
            .into(),
        interrupted: false,
        settings: Settings {
            window: 1024,
            context: 256,
            confidence: 0.95,
            resamples: 2000,
            seed: 1,
            threads: 8,
            kv_type: "f16".into(),
        },
        reference: Reference {
            file: File {
                name: "Yi-34B-Chat-BF16".into(),
                path: "models/Yi-34B-Chat-BF16.gguf".into(),
                bytes: 68_778_000_000,
                blake3: Some("5c".repeat(32)),
                quantization: Some("BF16".into()),
                bits_per_weight: Some(16.0),
                importance: None,
                second_layout: Some(false),
            },
            trace_k: None,
            perplexity: Some(estimate(5.2, 0.02)),
            slices: vec![Some(estimate(5.9, 0.02)), Some(estimate(4.4, 0.02))],
            tasks: vec![Some(TaskScores { against_reference: None, ..task_scores(0.83, 0.0) })],
        },
        slices: vec![
            Slice {
                name: "en".into(),
                path: "texts/en.txt".into(),
                blake3: "ab".repeat(32),
                tokens: 33_000,
                windows: 32,
                scored: 24_576,
            },
            Slice {
                name: "zh".into(),
                path: "文本/中文.txt".into(),
                blake3: "cd".repeat(32),
                tokens: 22_000,
                windows: 21,
                scored: 16_384,
            },
        ],
        tasks: vec![Task {
            name: "hellaswag".into(),
            path: "tasks/hellaswag.jsonl".into(),
            blake3: "ef".repeat(32),
            format: "hellaswag".into(),
            questions: 400,
            shots: 0,
            main: "accuracy_normalised".into(),
        }],
        candidates,
        pairs: Vec::new(),
    };
    settle(&mut results);
    results
}

/// Returns candidates with these names and nothing else.
pub fn named(names: &[&str]) -> Results {
    let candidates = names
        .iter()
        .map(|name| Candidate { file: File { name: (*name).into(), ..File::default() }, ..Candidate::default() });
    Results { candidates: candidates.collect(), ..Results::default() }
}

/// Text that would do harm if a page or a terminal interpreted it.
pub const HOSTILE: &str =
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u{202e}fdp.\u{1b}[2J\u{0}";

/// Returns a comparison in which everything that is read from a file is hostile, too long, or not a number.
pub fn hostile() -> Results {
    let mut results = results(8);
    let long = "很长的名字".repeat(60);
    results.command.push(HOSTILE.into());
    results.reference.file.name = HOSTILE.into();
    results.reference.file.path = HOSTILE.into();
    results.slices[0].name = HOSTILE.into();
    results.slices[1].name = long.clone();
    results.slices[1].path = HOSTILE.into();
    results.tasks[0].name = HOSTILE.into();
    results.settings.kv_type = HOSTILE.into();
    let [a, b, c, d, e, ..] = results.candidates.as_mut_slice() else { panic!("eight candidates") };
    a.file.name = HOSTILE.into();
    a.file.quantization = Some(HOSTILE.into());
    a.file.importance = Some(HOSTILE.into());
    b.file.name = long;
    c.failure = Some(format!("it is no GGUF: {HOSTILE}"));
    c.overall = None;
    c.slices = vec![None, None];
    c.positions.clear();
    c.histogram = None;
    d.overall = Some(Scores { kld: Estimate::bare(f64::INFINITY), ..scores(f64::INFINITY, 5) });
    d.slices.truncate(1);
    e.overall = Some(Scores { kld: Estimate::bare(0.0), kld_max: Estimate::bare(f64::NAN), ..scores(0.0, 5) });
    for candidate in &mut results.candidates {
        for change in &mut candidate.changed {
            change.before = HOSTILE.into();
            change.right.text = HOSTILE.into();
            change.reference[0] = Guess { text: HOSTILE.into(), reference: None, candidate: f64::NAN };
            change.slice = 99;
        }
        if let Some(weights) = &mut candidate.weights {
            weights.tensors[1].role = HOSTILE.into();
            weights.tensors[2].error.relative = f64::NAN;
            weights.tensors[3].layer = Some(u32::MAX);
            weights.skipped.push(HOSTILE.into());
        }
    }
    settle(&mut results);
    results.pairs.push(Pair { a: 98, b: 99, ..results.pairs[0] });
    results
}

/// Returns a comparison as it is after its first candidate failed to load and before the second is read.
pub fn begun() -> Results {
    let mut results = results(2);
    for candidate in &mut results.candidates {
        *candidate = Candidate { file: candidate.file.clone(), ..Candidate::default() };
    }
    results.candidates[0].failure = Some("models/a.gguf: it needs 40 GB, and 32 GB are there".into());
    results.pairs.clear();
    results.interrupted = true;
    results
}

/// A comparison with a trace, without intervals, tasks and weights.
pub fn traced() -> Results {
    let mut results = results(3);
    results.reference.trace_k = Some(64);
    results.reference.file.bits_per_weight = None;
    results.reference.tasks.clear();
    results.tasks.clear();
    for candidate in &mut results.candidates {
        candidate.tasks.clear();
        candidate.weights = None;
        if let Some(scores) = &mut candidate.overall {
            for estimate in
                [&mut scores.kld, &mut scores.perplexity, &mut scores.perplexity_ratio, &mut scores.same_top]
            {
                estimate.interval = None;
            }
        }
        for change in &mut candidate.changed {
            change.reference[2].reference = None;
        }
    }
    for pair in &mut results.pairs {
        pair.kld.interval = None;
        pair.verdict = Verdict::NotDistinguishable;
    }
    results
}

/// Returns one comparison of each kind.
pub fn all() -> Vec<(&'static str, Results)> {
    vec![
        ("none", Results::default()),
        ("begun", begun()),
        ("one", results(1)),
        ("traced", traced()),
        ("eight", results(8)),
        ("hostile", hostile()),
        ("many", results(34)),
    ]
}
