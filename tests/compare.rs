//! Measuring candidates against a reference: the numbers, the traces, and the program.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use nibble::engine::{self, Logits, OpenOptions, Session};
use nibble::evaluate::measure::{Against, Columns, Measurement, ReadOptions, measure, trace};
use nibble::evaluate::read::session_for;
use nibble::evaluate::texts::{self, Cut, TextFile, TokenizedText};
use nibble::evaluate::trace::{Header, Trace, Writer};
use nibble::evaluate::{Comparison, ComparisonOptions, ModelSettings};
use nibble::llama::Model;
use nibble::report::results::Results;
use nibble::weights::{FileOptions, Observer};

use crate::support;

/// `yi-nano` in a type, made once.
fn yi_nano(quant: &'static str) -> PathBuf {
    static MAKING: LazyLock<std::sync::Mutex<std::collections::HashMap<&str, PathBuf>>> =
        LazyLock::new(Default::default);
    let mut made = MAKING.lock().unwrap();
    let make = || {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compare-{quant}.gguf"));
        support::convert(&support::yi_nano(), &file, &["-q", quant, "--force"])
    };
    made.entry(quant).or_insert_with(make).clone()
}

fn load(path: &Path) -> Model {
    engine::open(path, OpenOptions { session: support::exact(), ..OpenOptions::default() }).unwrap()
}

/// A text of the repository and one in Chinese, some windows of each.
fn texts(dir: &Path, cut: Cut, model: &Model) -> Vec<TokenizedText> {
    let chinese = dir.join("zh.txt");
    let lines =
        ["话说宋江在梁山泊", "黛玉听了这话，不觉", "次日天明，众人", "老太太笑道：", "且听下回分解。", "却说那人"];
    let zh: String = (0..400).map(|i| lines[i * 7 % 6].to_string() + lines[i * i % 5]).collect();
    std::fs::write(&chinese, zh).unwrap();
    let english = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/english.md");
    let named =
        [TextFile { name: "en".to_string(), path: english }, TextFile { name: "zh".to_string(), path: chinese }];
    texts::read(&named, cut, Some(3), model.tokenizer()).unwrap()
}

fn options(cut: Cut) -> ReadOptions {
    ReadOptions { session: support::exact(), cut }
}

/// The logits of all scored tokens, as they come from the same evaluations.
fn logits(model: &Model, texts: &[TokenizedText], cut: Cut) -> Vec<Vec<f32>> {
    let options = session_for(&support::exact(), cut, model.n_vocab());
    let mut session = Session::new(model, &options).unwrap();
    let mut all = Vec::new();
    for (window, _) in texts.iter().flat_map(|text| cut.windows(text)) {
        session.truncate(0);
        session.eval(&window[..cut.context()], Logits::None).unwrap();
        for step in window[cut.context()..window.len() - 1].chunks(options.rows as usize) {
            session.eval(step, Logits::All).unwrap();
            all.extend((0..step.len()).map(|row| session.logits(row).unwrap().to_vec()));
        }
    }
    all
}

/// Everything about one token, the plain way.
struct Plain {
    kld: f64,
    nll: f64,
    reference_nll: f64,
    dp: f64,
    same_top: bool,
    top5: f64,
}

fn plainly(x: &[f32], y: &[f32], right: u32) -> Plain {
    let softmax = |z: &[f32]| -> Vec<f64> {
        let top = z.iter().copied().fold(f32::MIN, f32::max);
        let weights: Vec<f64> = z.iter().map(|z| (f64::from(*z) - f64::from(top)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    };
    let best = |z: &[f32]| {
        let mut ids: Vec<usize> = (0..z.len()).collect();
        ids.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then(a.cmp(b)));
        ids[..5].to_vec()
    };
    let (p, q, best_p, best_q) = (softmax(x), softmax(y), best(x), best(y));
    let right = right as usize;
    Plain {
        kld: p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum(),
        nll: -q[right].ln(),
        reference_nll: -p[right].ln(),
        dp: q[right] - p[right],
        same_top: best_p[0] == best_q[0],
        top5: best_p.iter().filter(|id| best_q.contains(id)).count() as f64 / 5.0,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn every_number_is_what_the_plain_way_gives() {
    let dir = support::folder();
    let cut = Cut { window: 128 };
    let models = ["BF16", "Q4_K_M", "Q2_K"].map(|quant| load(&yi_nano(quant)));
    let texts = texts(dir.path(), cut, &models[0]);
    let measured = measure(Against::Model(&models[0]), &[&models[1], &models[2]], &texts, &options(cut), |_| {});
    assert_eq!(measured.windows, [(0, 63), (0, 63), (0, 63), (1, 63), (1, 63), (1, 63)]);

    let rows = models.each_ref().map(|model| logits(model, &texts, cut));
    let right: Vec<u32> = texts.iter().flat_map(|text| cut.windows(text)).flat_map(|w| w.1.to_vec()).collect();
    for (candidate, rows_of) in measured.candidates.iter().zip(&rows[1..]) {
        let plain: Vec<Plain> = (0..right.len()).map(|i| plainly(&rows[0][i], &rows_of[i], right[i])).collect();
        let Columns { kld, nll, dp, same_top, top5 } = &candidate.columns;
        let near = |found: &[f64], wanted: &dyn Fn(&Plain) -> f64| {
            assert_eq!(found.len(), plain.len());
            for (found, plain) in found.iter().zip(&plain) {
                assert!((found - wanted(plain)).abs() < 1e-6, "{found}, wanted {}", wanted(plain));
            }
        };
        near(kld, &|plain| plain.kld);
        near(nll, &|plain| plain.nll);
        near(&measured.reference_nll, &|plain| plain.reference_nll);
        near(dp, &|plain| plain.dp);
        near(same_top, &|plain| f64::from(u8::from(plain.same_top)));
        near(top5, &|plain| plain.top5);
        // What comes of them is worth having: a candidate that differs, by less than all there is.
        assert!((0.0005..0.5).contains(&mean(kld)), "{}", mean(kld));

        // What changed most is a flip, and the most of all in its window.
        assert!(!candidate.changed.is_empty());
        for change in &candidate.changed {
            let at = change.window * 63 + change.row;
            let most = plain[change.window * 63..][..63].iter().filter(|p| !p.same_top).map(|p| p.kld);
            assert!((change.kld - most.fold(0.0, f64::max)).abs() < 1e-6);
            assert!((change.right.candidate - (-plain[at].nll).exp()).abs() < 1e-6);
            assert_eq!(change.right.id, right[at]);
            assert_ne!(change.reference[0].id, change.candidate[0].id);
        }
    }
    assert!(mean(&measured.candidates[0].columns.kld) < mean(&measured.candidates[1].columns.kld));
}

/// A trace of `k` tokens per position, and its bytes per scored token.
fn traced(dir: &Path, model: &Model, texts: &[TokenizedText], cut: Cut, k: u32, drawn: u32) -> (Trace, f64) {
    let path = dir.join(format!("{k}-{drawn}.trace"));
    let header = Header { n_vocab: model.n_vocab(), window: cut.window, drawn, ..Header::default() };
    let mut writer = Writer::create(&path, header, k, texts).unwrap();
    let read = trace(model, texts, &options(cut), &mut writer, |_| {});
    assert!(!read.interrupted && read.failures.iter().all(Option::is_none));
    let bytes = writer.finish(true).unwrap();
    (Trace::open(&path).unwrap(), bytes)
}

#[test]
fn a_trace_stands_in_for_its_model() {
    let dir = support::folder();
    let cut = Cut { window: 128 };
    let models = ["BF16", "Q4_K_M", "Q2_K"].map(|quant| load(&yi_nano(quant)));
    let texts = texts(dir.path(), cut, &models[0]);
    let candidates = [&models[1], &models[2]];
    let whole = measure(Against::Model(&models[0]), &candidates, &texts, &options(cut), |_| {});
    for (k, drawn, gap) in [(64, 6, 0.03), (64, 0, 0.5), (512, 0, 0.1), (6400, 0, 0.001)] {
        let (trace, bytes) = traced(dir.path(), &models[0], &texts, cut, k, drawn);
        assert!(k != 64 || bytes < 300.0, "{bytes} bytes a token");
        assert_eq!(
            trace.texts().iter().map(|text| &text.tokens).collect::<Vec<_>>(),
            [&texts[0].tokens, &texts[1].tokens]
        );
        let merged = measure(Against::Trace(&trace), &candidates, trace.texts(), &options(cut), |_| {});
        assert_eq!(merged.windows, whole.windows);
        for (found, wanted) in merged.candidates.iter().zip(&whole.candidates) {
            let (found, wanted) = (&found.columns, &wanted.columns);
            let (a, b) = (mean(&found.kld), mean(&wanted.kld));
            eprintln!("k {k}, {drawn} drawn: KLD {a:.6} of {b:.6}, {:.2}% less", 100.0 * (b - a) / b);
            assert!((a - b).abs() < gap * b && (drawn > 0 || a <= b * 1.0001), "k {k}, {drawn}: {a}, all of it {b}");
            assert_eq!((&found.nll, &found.same_top, &found.top5), (&wanted.nll, &wanted.same_top, &wanted.top5));
            assert!(found.dp.iter().zip(&wanted.dp).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}

#[test]
fn what_is_read_does_not_depend_on_who_reads_beside_it() {
    let dir = support::folder();
    let cut = Cut { window: 64 };
    let models = ["BF16", "Q4_K_M", "Q2_K"].map(|quant| load(&yi_nano(quant)));
    let texts = texts(dir.path(), cut, &models[0]);
    let columns = |measurement: Measurement| -> Vec<Columns> {
        measurement.candidates.into_iter().map(|measured| measured.columns).collect()
    };
    let both = columns(measure(Against::Model(&models[0]), &[&models[1], &models[2]], &texts, &options(cut), |_| {}));
    let alone = columns(measure(Against::Model(&models[0]), &[&models[2]], &texts, &options(cut), |_| {}));
    assert_eq!(both[1], alone[0]);
    let itself = columns(measure(Against::Model(&models[0]), &[&models[0]], &texts, &options(cut), |_| {}));
    assert!(itself[0].kld.iter().all(|kld| *kld == 0.0) && itself[0].same_top.iter().all(|same| *same == 1.0));
}

/// Runs `nibble compare` on two threads' worth of work, and no more.
fn compare(arguments: &[&str]) -> std::process::Output {
    support::nibble(["compare"].iter().chain(arguments).chain(&["-t", "1", "--windows", "3", "--resamples", "200"]))
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Two texts as the command line takes them.
fn named_texts(dir: &Path) -> [String; 2] {
    let english = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/english.md");
    let zh = dir.join("红楼梦.txt");
    std::fs::write(&zh, "话说宋江在梁山泊，黛玉听了这话，不觉笑道：且听下回分解。".repeat(120)).unwrap();
    [format!("--text=en={}", english.display()), format!("--text={}", zh.display())]
}

#[test]
fn the_program_compares_prints_and_writes_what_it_found() {
    let dir = support::folder();
    let [en, zh] = named_texts(dir.path());
    let files = ["r.html", "r.json", "r.csv"].map(|name| path(&dir.path().join(name)).to_string());
    let (reference, q4, q2) = (yi_nano("BF16"), yi_nano("Q4_K_M"), yi_nano("Q2_K"));
    let arguments = [
        path(&reference),
        path(&q4),
        path(&q2),
        &en,
        &zh,
        "--weights",
        "--report",
        &files[0],
        "--json",
        &files[1],
        "--csv",
        &files[2],
    ];
    let out = compare(&arguments);
    let shown = support::stdout(&out);
    support::has(&shown, &["Q4_K_M beats Q2_K: KLD -", "红楼梦", "Relative error by role", "ffn_down"]);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&files[1]).unwrap()).unwrap();
    let candidates = json["candidates"].as_array().unwrap();
    assert_eq!(
        candidates.iter().map(|c| c["file"]["quantization"].as_str().unwrap()).collect::<Vec<_>>(),
        ["Q2_K", "Q4_K_M"]
    );
    let kld = |i: usize| candidates[i]["overall"]["kld"]["value"].as_f64().unwrap();
    assert!(kld(1) < kld(0) && candidates[1]["on_front"] == true);
    assert_eq!(json["pairs"][0]["verdict"], "b");
    assert_eq!(json["slices"][1]["name"], "红楼梦");
    assert!(candidates[0]["changed"][0]["reference"][0]["text"].as_str().is_some_and(|text| !text.is_empty()));
    assert!(candidates[0]["weights"]["tensors"].as_array().unwrap().len() > 30);
    assert_eq!(json["reference"]["file"]["blake3"].as_str().unwrap().len(), 64);
    let html = std::fs::read_to_string(&files[0]).unwrap();
    support::has(&html, &["<svg", "Q4_K_M", "红楼梦"]);
    assert_eq!(std::fs::read_to_string(&files[2]).unwrap().lines().count(), 1 + 2 * 3);
    // Nothing is written over.
    assert!(support::error(&compare(&arguments)).contains("exists already; --force replaces it"));
}

/// Counts how often there is something to save.
#[derive(Default)]
struct Saves(AtomicUsize);

impl Observer for Saves {
    fn measured(&self, results: &Results) -> std::io::Result<()> {
        assert!(results.candidates.iter().any(|candidate| candidate.overall.is_some()));
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn the_library_prepares_a_comparison_executes_it_and_stops_when_asked() {
    let english = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/english.md");
    let options = ComparisonOptions {
        files: FileOptions {
            reference: yi_nano("BF16"),
            candidates: vec![yi_nano("Q4_K_M"), yi_nano("Q2_K")],
            confidence: 0.95,
            ..FileOptions::default()
        },
        texts: vec![TextFile { name: "en".to_string(), path: english }],
        window: Some(64),
        most_windows: Some(8),
        resamples: 200,
        seed: 1,
        models: ModelSettings { session: support::exact(), ..ModelSettings::default() },
        ..ComparisonOptions::default()
    };
    let mut comparison = Comparison::prepare(options.clone()).unwrap();
    assert_eq!(comparison.results().slices[0].name, "en");
    assert!(comparison.results().candidates.iter().all(|candidate| candidate.overall.is_none()));
    let saves = Saves::default();
    comparison.execute(&saves, &Arc::default()).unwrap();
    assert_eq!(saves.0.into_inner(), 1);
    let klds: Vec<f64> = comparison.results().candidates.iter().map(|c| c.overall.unwrap().kld.value).collect();
    assert!(klds[1] < klds[0], "Q2_K is the smaller, and comes first: {klds:?}");

    let stopped = Arc::new(AtomicBool::new(true));
    let error = Comparison::prepare(options).unwrap().execute(&(), &stopped).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
}

#[test]
fn the_program_traces_and_compares_with_the_trace() {
    let dir = support::folder();
    let [en, zh] = named_texts(dir.path());
    let (reference, q4, q2) = (yi_nano("BF16"), yi_nano("Q4_K_M"), yi_nano("Q2_K"));
    let file = dir.path().join("nano.trace");
    let made = support::nibble(["trace", path(&reference), &en, &zh, "--windows", "3", "-t", "1", "-o", path(&file)]);
    support::stdout(&made);
    assert!(stderr(&made).contains("scored tokens of 2 texts"), "{}", stderr(&made));
    let against = |more: &[&str]| {
        let arguments = [&["compare", path(&file), path(&q4), path(&q2), "-t", "1"], more].concat();
        support::nibble(arguments)
    };
    support::has(&support::stdout(&against(&[])), &["Q4_K_M beats Q2_K: KLD -", "红楼梦"]);
    support::stdout(&against(&[&en]));
    let other = format!("--text=en={}", path(&dir.path().join("红楼梦.txt")));
    assert!(support::error(&against(&[&other])).contains("is not the text 'en' that the trace was made from"));
    assert!(support::error(&against(&["--text=fr=x.txt"])).contains("the trace has no text called 'fr'"));
    assert!(support::error(&against(&["--weights"])).contains("a trace has no weights"));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    assert!(support::error(&against(&[])).contains("is damaged"));
}

#[test]
fn a_candidate_that_cannot_be_compared_does_not_take_the_others_along() {
    let dir = support::folder();
    let [en, _] = named_texts(dir.path());
    let (reference, q4) = (yi_nano("BF16"), yi_nano("Q4_K_M"));
    // One is no model, one speaks another language, one has a weight that is no number.
    let none = dir.path().join("none.gguf");
    std::fs::write(&none, "GGUF, or not").unwrap();
    let mut other = support::Variation::of_yi_nano();
    other.config.insert("vocab_size".to_string(), 6400.into());
    let folder = dir.path().join("other");
    other.write_single(&folder);
    let model = std::fs::read(folder.join("tokenizer.model")).unwrap();
    // A piece of the vocabulary is spelled otherwise.
    let at = model.windows(4).position(|w| w == b"king").expect("the tokenizer knows kings");
    let mut changed = model;
    changed[at..at + 4].copy_from_slice(b"kinq");
    std::fs::write(folder.join("tokenizer.model"), changed).unwrap();
    let foreign = support::convert(&folder, &dir.path().join("foreign.gguf"), &["-q", "Q8_0"]);
    let mut broken = support::Variation::of_yi_nano();
    let name = broken.tensors.iter().find(|t| t.name.contains("layers.2.mlp.down_proj")).unwrap().name.clone();
    broken.tensor(&name).bytes[..2].copy_from_slice(&[0xC0, 0x7F]);
    broken.write_single(&dir.path().join("broken"));
    let nan = support::convert(&dir.path().join("broken"), &dir.path().join("nan.gguf"), &["-q", "F16", "--allow-nan"]);

    let json = dir.path().join("r.json");
    let out =
        compare(&[path(&reference), path(&q4), path(&none), path(&foreign), path(&nan), &en, "--json", path(&json)]);
    assert_eq!(out.status.code(), Some(1));
    let said = stderr(&out);
    support::has(
        &said,
        &[
            "nibble: none: ",
            "nibble: foreign: it has another tokenizer than the reference: in its vocabulary token",
            "nibble: nan: tensor 'blk.2.ffn_down.weight' has a NaN or an infinity in its block at row 0, column 0",
            "3 of 4 candidates could not be compared",
        ],
    );
    assert_eq!(said.trim_end().lines().count(), 4, "a sentence each:\n{said}");
    support::has(&String::from_utf8_lossy(&out.stdout), &["Q4_K_M"]);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let scored = json["candidates"].as_array().unwrap().iter().filter(|c| !c["overall"].is_null()).count();
    assert_eq!(scored, 1);
}

/// A copy of a file whose `blk.1.ffn_up.weight` begins with a scale that is NaN.
fn with_nan(file: &Path, dir: &Path) -> PathBuf {
    let gguf = nibble::gguf::Gguf::open(file).unwrap();
    let tensor = gguf.tensors().iter().position(|tensor| tensor.name == "blk.1.ffn_up.weight").unwrap();
    let at = gguf.location(tensor).1.start;
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at..at + 2].copy_from_slice(&[0x00, 0x7E]);
    let nan = dir.join("nan.gguf");
    std::fs::write(&nan, bytes).unwrap();
    nan
}

/// Candidates were checked, and the reference was not.
#[test]
fn a_scale_that_is_no_number_in_the_reference_is_refused_before_anything_is_measured() {
    let dir = support::folder();
    let [en, _] = named_texts(dir.path());
    let nan = with_nan(&yi_nano("Q4_K_M"), dir.path());
    let q2 = yi_nano("Q2_K");
    let task = dir.path().join("kings.jsonl");
    let question = r#"{"ctx_a": "a", "ctx_b": "", "ctx": "One day he", "activity_label": "Kings", "endings": ["ate.", "sat."], "label": 0}"#;
    std::fs::write(&task, question).unwrap();
    let place = "tensor 'blk.1.ffn_up.weight' has a NaN or an infinity in its block at row 0, column 0";
    for more in [&[en.as_str()][..], &[&en, "--no-hash"], &["--task", path(&task)]] {
        let output = compare(&[&[path(&nan), path(&q2)], more].concat());
        assert_eq!(output.status.code(), Some(1));
        // How a task is read is said before.
        let said = String::from_utf8_lossy(&output.stderr);
        let error = said.trim_end().lines().last().unwrap();
        support::has(error, &["nothing can be compared with", "nan.gguf: its ", place]);
    }
    let trace = dir.path().join("x.trace");
    for more in [&[][..], &["--no-hash"]] {
        let command = ["trace", path(&nan), &en, "-o", path(&trace), "--windows", "1", "-t", "1"];
        let said = support::error(&support::nibble(command.iter().chain(more)));
        support::has(&said, &["nan.gguf: ", place]);
        assert!(!trace.exists());
    }
}

/// Counts the bytes of the stages in which files are read without a model.
#[derive(Default)]
struct BytesRead {
    in_files: std::sync::atomic::AtomicBool,
    bytes: std::sync::atomic::AtomicU64,
}

impl Observer for BytesRead {
    fn begin(&self, stage: &nibble::weights::Stage<'_>) {
        use nibble::weights::Stage::{Checking, Hashing};
        self.in_files.store(matches!(stage, Checking { .. } | Hashing { .. }), Ordering::Relaxed);
    }

    fn advance(&self, steps: u64) {
        if self.in_files.load(Ordering::Relaxed) {
            self.bytes.fetch_add(steps, Ordering::Relaxed);
        }
    }
}

/// They were read once for the check of their blocks, and once more for their hash.
#[test]
fn files_are_read_once_before_they_are_run() {
    let (reference, q2) = (yi_nano("BF16"), yi_nano("Q2_K"));
    let english = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/english.md");
    let mut comparison = Comparison::prepare(ComparisonOptions {
        files: FileOptions {
            reference: reference.clone(),
            candidates: vec![q2.clone()],
            hash: true,
            confidence: 0.95,
            ..FileOptions::default()
        },
        texts: vec![TextFile { name: "en".to_string(), path: english }],
        window: Some(64),
        most_windows: Some(1),
        resamples: 10,
        models: ModelSettings { session: support::exact(), ..ModelSettings::default() },
        ..ComparisonOptions::default()
    })
    .unwrap();
    let read = BytesRead::default();
    comparison.execute(&read, &Arc::default()).unwrap();
    let bytes = [&reference, &q2].map(|path| std::fs::read(path).unwrap());
    assert_eq!(read.bytes.into_inner(), bytes.iter().map(|bytes| bytes.len() as u64).sum::<u64>());
    let results = comparison.results();
    let found = [&results.reference.file.blake3, &results.candidates[0].file.blake3];
    assert_eq!(found.map(|hash| hash.clone().unwrap()), bytes.map(|bytes| blake3::hash(&bytes).to_hex().to_string()));
}

/// A NaN in a scale that llama.cpp reads past gave an ordinary KLD.
#[test]
fn a_scale_that_is_no_number_fails_the_candidate_before_anything_is_measured() {
    let dir = support::folder();
    let [en, _] = named_texts(dir.path());
    let (reference, q4) = (yi_nano("BF16"), yi_nano("Q4_K_M"));
    let nan = with_nan(&q4, dir.path());
    let json = dir.path().join("r.json");
    let line =
        ["compare", path(&reference), path(&q4), path(&nan), &en, "--windows", "1", "--json", path(&json), "-t", "1"];
    let out = support::nibble(line);
    assert_eq!(out.status.code(), Some(1));
    let wanted = "nibble: nan: tensor 'blk.1.ffn_up.weight' has a NaN or an infinity in its block at row 0, column 0";
    support::has(&stderr(&out), &[wanted, "1 of 2 candidates could not be compared"]);
    // One window leaves no interval: then there are no brackets, and nothing is said of noise.
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    support::has(&shown, &["Too few windows were read for intervals."]);
    assert!(!shown.contains("Brackets") && !shown.contains("cannot be told"), "{shown}");
    let alone = compare(&[path(&reference), path(&nan), &en]);
    assert_eq!(alone.status.code(), Some(1));
    support::has(&stderr(&alone), &[wanted, "no candidate is left to compare"]);
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let dir = support::folder();
    let [en, _] = named_texts(dir.path());
    let file = en.split_once('=').and_then(|(_, rest)| rest.split_once('=')).map_or("", |(_, file)| file);
    let marked = dir.path().join("marked.txt");
    std::fs::write(&marked, [b"\xEF\xBB\xBF", std::fs::read(file).unwrap().as_slice()].concat()).unwrap();
    let (reference, q4) = (yi_nano("BF16"), yi_nano("Q4_K_M"));
    let scored = |name: &str, text: &str| {
        let json = dir.path().join(name);
        let line = [path(&reference), path(&q4), text, "--json", path(&json)];
        support::stdout(&compare(&line));
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        json["candidates"][0]["overall"]["kld"].clone()
    };
    assert_eq!(scored("a.json", &format!("--text=en={}", marked.display())), scored("b.json", &en));
}

#[test]
fn what_is_wrong_with_a_text_is_told_before_anything_is_loaded() {
    let dir = support::folder();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        format!("--text={}", path.display())
    };
    let (short, empty, binary) =
        (file("short.txt", b"Once upon a time."), file("empty.txt", b" \n"), file("b.txt", b"abc\xff\xfe"));
    let (reference, q4) = (yi_nano("BF16"), yi_nano("Q4_K_M"));
    let refused = |more: &[&str]| support::error(&compare(&[&[path(&reference), path(&q4)], more].concat()));
    support::has(&refused(&[&short]), &["short.txt has ", "tokens, and a window takes 512", "--window"]);
    support::has(&refused(&[&empty]), &["empty.txt is empty"]);
    support::has(&refused(&[&binary]), &["b.txt is not UTF-8 text (byte 3 is invalid)"]);
    support::has(&refused(&[&short, &short]), &["two texts are called 'short'"]);
    support::has(&refused(&["--text=/nowhere.txt"]), &["cannot read /nowhere.txt"]);
    support::has(
        &refused(&[]),
        &["there is nothing to compare by", "; pass --text NAME=FILE, --task FILE or --weights"],
    );
    support::has(
        &refused(&[&short, "--window", "1000"]),
        &["a window of 1000 tokens is too long", "trained on 512 tokens at a time; pass a --window of 512"],
    );
    let twice = support::error(&compare(&[path(&reference), path(&q4), path(&q4), &short]));
    support::has(&twice, &["is given twice"]);
    let folder = support::yi_nano();
    support::has(&support::error(&compare(&[path(&folder), path(&q4), &short])), &["convert it first"]);
}

#[test]
fn the_program_has_models_answer_tasks_and_keeps_the_answers() {
    let dir = support::folder();
    let task = dir.path().join("kings.jsonl");
    let question = |i: usize| {
        let endings = ["rode his horse to the castle.", "ate the moon.", "is a number.", "said said said."];
        let ctx = format!("Once upon a time there was a king who had {i} sons. One day he");
        serde_json::json!({"ctx_a": ctx, "ctx_b": "", "ctx": ctx, "activity_label": "Kings", "endings": endings, "label": 0})
    };
    let lines: Vec<String> = (0..12).map(|i| question(i).to_string()).collect();
    std::fs::write(&task, lines.join("\n")).unwrap();
    let (reference, q2) = (yi_nano("BF16"), yi_nano("Q2_K"));
    let kept = dir.path().join("kept");
    let run = || compare(&[path(&reference), path(&q2), "--task", path(&task), "--task-results", path(&kept)]);
    let out = run();
    let shown = support::stdout(&out);
    support::has(&shown, &["kings", "Lost", "The reference has", "of 12 questions right"]);
    assert_eq!(support::files(&kept).len(), 2);
    // What is kept is not asked again, and gives the same.
    assert_eq!(support::stdout(&run()), shown);
    let unknown = support::error(&compare(&[path(&reference), path(&q2), "--task", path(&q2)]));
    assert!(unknown.contains("UTF-8") || unknown.contains("task"), "{unknown}");
}
