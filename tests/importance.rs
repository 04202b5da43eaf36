//! Importance: collected as its definition says, whatever interrupts, and used as llama.cpp uses it.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nibble::calibration::importance::{File, Matrix};
use nibble::chat::{self, Prompt};
use nibble::engine::{self, Logits, OpenOptions, Session, SessionOptions};
use nibble::evaluate::calibrate::{CalibrationJob, CalibrationOptions, Error, Event, Report, Weighted};
use nibble::gguf::Gguf;
use nibble::llama;
use nibble::llama::{Model, ModelOptions, Node, Observer, Room};
use serde_json::Value;

use crate::forward::Reference;
use crate::support::{self, Variation, convert, error, exact, files, folder, has, nibble, stdout, yi_nano};

/// A text in two languages, of so many paragraphs, no two alike.
fn text(paragraphs: usize) -> String {
    let names = ["Lily", "Tom", "宝玉", "Ben", "黛玉", "Mia"];
    let things = ["a red ball", "the old tree", "一只小猫", "a big box", "花园", "the king's crown"];
    let paragraph = |i: usize| {
        let (name, thing) = (names[i % 6], things[(i / 6 + i) % 6]);
        format!("Once upon a time, {name} saw {thing}. \"What is it?\" said {name}, 走了{i}里路。\n")
    };
    (0..paragraphs).map(paragraph).collect()
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn f32_model(dir: &Path) -> PathBuf {
    convert(&yi_nano(), &dir.join("f32.gguf"), &["-q", "F32"])
}

fn weighted(path: &Path, weight: f64) -> Weighted {
    Weighted { path: path.to_path_buf(), weight }
}

/// Small windows, and nothing rounded on the way.
fn options(output: &Path) -> CalibrationOptions {
    CalibrationOptions { window: Some(32), session: exact(), ..CalibrationOptions::new(output.to_path_buf()) }
}

fn collect(
    model: &Path,
    texts: &[Weighted],
    options: CalibrationOptions,
    tell: impl FnMut(Event),
) -> Result<Report, Error> {
    let job = CalibrationJob::prepare(model, texts, options)?;
    let loaded = engine::open(model, OpenOptions { session: job.session(), ..OpenOptions::default() })?;
    job.execute(job.runs_model().then_some(&loaded), tell)
}

#[test]
fn importance_is_the_mean_square_of_every_channel_by_the_models_definition() {
    let dir = folder();
    let text = text(5);
    let path = write(dir.path(), "text.txt", &text);
    let nano = Variation::of_yi_nano();
    for begins_with_token in [false, true] {
        let source = dir.path().join(format!("model-{begins_with_token}"));
        nano.write_single(&source);
        if begins_with_token {
            let config = source.join("tokenizer_config.json");
            let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            json["add_bos_token"] = true.into();
            fs::write(config, json.to_string()).unwrap();
        }
        let model = convert(&source, &dir.path().join("model.gguf"), &["-q", "F32", "--force"]);
        let out = dir.path().join(format!("{begins_with_token}.gguf"));
        let options = CalibrationOptions { output_matrix: true, most_windows: Some(2), ..options(&out) };
        let report = collect(&model, &[weighted(&path, 1.0)], options, |_| {}).unwrap();
        assert_eq!((report.missing.len(), report.unseen.len(), report.sums.matrices.len()), (0, 0, 29));

        let loaded = Model::load_vocabulary(&model).unwrap();
        assert_eq!(loaded.tokenizer().begins_with().is_some(), begins_with_token);
        let tokens = chat::encode(&Prompt::plain(text.as_str()), loaded.tokenizer()).unwrap();
        let reference = Reference::new(&nano);
        for window in tokens.chunks_exact(32).take(2) {
            let mut window = window.to_vec();
            window[0] = loaded.tokenizer().begins_with().unwrap_or(window[0]);
            reference.logits(&window);
        }
        let squares = reference.squares.borrow();
        assert_eq!(squares.len(), 29);
        let importance = File::read(&out).unwrap().importance().unwrap();
        let mut worst = 0f64;
        for name in importance.matrices() {
            let values = importance.of(name).unwrap();
            let wanted = &squares[support::name_in_checkpoint(name).trim_end_matches(".weight")];
            assert_eq!(values.len(), wanted.len());
            let mean = wanted.iter().sum::<f64>() / wanted.len() as f64 / 64.0;
            for (found, wanted) in values.iter().zip(wanted) {
                let wanted = wanted / 64.0;
                // Channels that are next to nothing beside the others may differ by next to nothing.
                worst = worst.max((f64::from(*found) - wanted).abs() / wanted.max(mean * 1e-3));
            }
        }
        eprintln!("largest relative difference from the definition: {worst:.2e}");
        assert!(worst < 1e-4, "{worst}");
    }
}

/// Operation, name and finite numbers of each node, in order.
type Seen = Arc<Mutex<Vec<(String, String, usize)>>>;

/// Notes what it sees; does something at the product with `at`.
struct Notes<F> {
    seen: Seen,
    at: &'static str,
    then: F,
}

impl<F: FnMut() -> ControlFlow<()> + Send> Observer for Notes<F> {
    fn wants(&mut self, _: Node<'_>) -> bool {
        true
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        let mut room = Room::default();
        let n = room.read(node).map_or(0, |values| values.iter().filter(|x| x.is_finite()).count());
        self.seen.lock().unwrap().push((node.op().to_string(), node.name().to_string(), n));
        match node.source(0) {
            Some(matrix) if node.is_product() && matrix.name() == self.at => (self.then)(),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn observed(
    model: &Model,
    at: &'static str,
    then: impl FnMut() -> ControlFlow<()> + Send + 'static,
) -> (Session, Seen) {
    let seen = Arc::default();
    let options = SessionOptions { n_ctx: Some(64), ..exact() };
    (Session::observed(model, &options, Notes { seen: Arc::clone(&seen), at, then }).unwrap(), seen)
}

#[test]
fn an_observer_sees_every_operation_with_its_numbers() {
    let dir = folder();
    let model = Model::load(&f32_model(dir.path()), ModelOptions::default()).unwrap();
    let (mut session, seen) = observed(&model, "", || ControlFlow::Continue(()));
    session.eval(&[100, 200, 300], Logits::Last).unwrap();
    let watched = session.logits(0).unwrap().to_vec();
    let seen = seen.lock().unwrap();
    let at = |name: &str| seen.iter().position(|(_, other, _)| other == name).unwrap_or_else(|| panic!("no {name}"));
    assert!(at("attn_norm-0") < at("ffn_out-0") && at("ffn_out-0") < at("l_out-3"), "{seen:?}");
    assert_eq!(seen[at("ffn_out-0")], ("MUL_MAT".to_string(), "ffn_out-0".to_string(), 3 * 256));
    assert_eq!(seen[at("result_output")].2, 6400);
    // What is watched is computed as what is not.
    let mut plain = Session::new(&model, &SessionOptions { n_ctx: Some(64), ..exact() }).unwrap();
    plain.eval(&[100, 200, 300], Logits::Last).unwrap();
    assert_eq!(plain.logits(0).unwrap(), watched);
}

#[test]
fn an_observer_finds_where_numbers_end() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    let matrix = nano.tensor("model.layers.2.mlp.up_proj.weight");
    matrix.bytes[..2].copy_from_slice(&[0xc0, 0x7f]);
    nano.write_single(dir.path());
    let file = convert(dir.path(), &dir.path().join("nan.gguf"), &["-q", "F32", "--allow-nan"]);
    let model = Model::load(&file, ModelOptions::default()).unwrap();
    let (mut session, seen) = observed(&model, "", || ControlFlow::Continue(()));
    session.eval(&[100, 200, 300], Logits::Last).unwrap();
    let seen = seen.lock().unwrap();
    let whole = ["ffn_norm-2", "ffn_gate-2"].map(|name| seen.iter().find(|node| node.1 == name).unwrap().2);
    let broken = seen.iter().find(|node| node.1 == "ffn_up-2").unwrap().2;
    assert_eq!((whole, broken), ([3 * 256, 3 * 768], 3 * 767));

    let path = write(dir.path(), "text.txt", &text(9));
    let said = collect(&file, &[weighted(&path, 1.0)], options(&dir.path().join("x.gguf")), |_| {}).unwrap_err();
    has(&said.to_string(), &["'blk.2.ffn_down.weight' is NaN at column 0", "text.txt"]);
    let out = dir.path().join("x.gguf");
    let command =
        ["calibrate", file.to_str().unwrap(), path.to_str().unwrap(), "--window", "32", "-o", out.to_str().unwrap()];
    has(&error(&nibble(command)), &["is NaN at column 0", "'nibble verify' checks the file"]);
    assert!(!dir.path().join("x.gguf").exists());
}

#[test]
fn an_observer_may_end_an_evaluation_or_panic_and_the_session_goes_on() {
    let dir = folder();
    let model = Model::load(&f32_model(dir.path()), ModelOptions::default()).unwrap();
    let calls = Arc::new(Mutex::new(0));
    let count = calls.clone();
    let (mut session, seen) = observed(&model, "blk.1.attn_q.weight", move || {
        let mut calls = count.lock().unwrap();
        *calls += 1;
        match *calls {
            1 => ControlFlow::Break(()),
            2 => {
                drop(calls);
                std::panic::panic_any("from within")
            }
            _ => ControlFlow::Continue(()),
        }
    });
    let ended = session.eval(&[100, 200, 300], Logits::Last).unwrap_err();
    assert!(matches!(ended, engine::Error::Llama(llama::Error::Stopped)), "{ended}");
    assert_eq!(seen.lock().unwrap().last().unwrap().0, "MUL_MAT");
    assert!(session.tokens().is_empty() && session.logits(0).is_err());

    let panicked = catch_unwind(AssertUnwindSafe(|| session.eval(&[100, 200, 300], Logits::Last))).unwrap_err();
    assert_eq!(panicked.downcast_ref::<&str>(), Some(&"from within"));
    assert!(session.tokens().is_empty());

    session.eval(&[100, 200, 300], Logits::Last).unwrap();
    let mut plain = Session::new(&model, &SessionOptions { n_ctx: Some(64), ..exact() }).unwrap();
    plain.eval(&[100, 200, 300], Logits::Last).unwrap();
    assert_eq!(plain.logits(0).unwrap(), session.logits(0).unwrap());
}

#[test]
fn a_run_that_is_cut_off_goes_on_to_the_same_bytes() {
    let dir = folder();
    let model = f32_model(dir.path());
    let texts = [("a.txt", 30, 1.0), ("b.txt", 20, 0.3)]
        .map(|(name, paragraphs, weight)| weighted(&write(dir.path(), name, &text(paragraphs)), weight));
    let out = |name: &str| dir.path().join(name);
    let whole = collect(&model, &texts, options(&out("whole.gguf")), |_| {}).unwrap();
    let all = whole.sums.windows;
    assert!(all > 12, "{all} windows");

    // Interrupted after three windows, in the middle of the fourth; then killed, when twelve are done and ten saved.
    let cancel = Arc::new(AtomicBool::new(false));
    let path = out("cut.gguf");
    let asked = CalibrationOptions { session: SessionOptions { cancel: cancel.clone(), ..exact() }, ..options(&path) };
    let cut = collect(&model, &texts, asked, |event| {
        cancel.store(matches!(event, Event::Window { done: 3, .. }), Ordering::Relaxed);
    });
    assert!(matches!(cut, Err(Error::Cancelled { done: 3, all: found }) if found == all), "{cut:?}");
    assert!(!path.exists() && out("cut.gguf.partial").exists());
    let mut events = vec![];
    let killed = catch_unwind(AssertUnwindSafe(|| {
        collect(&model, &texts, CalibrationOptions { save_every: 7, ..options(&path) }, |event| {
            events.push(event.clone());
            if matches!(event, Event::Window { done: 12, .. }) {
                std::panic::panic_any("power failure");
            }
        })
    }));
    assert!(killed.is_err());
    assert_eq!(events[..2], [Event::Resuming { windows: 3 }, Event::Window { done: 3, all }]);
    let mut events = vec![];
    let report = collect(&model, &texts, options(&path), |event| events.push(event)).unwrap();
    assert_eq!((&events[0], report.resumed), (&Event::Resuming { windows: 10 }, 10));
    assert_eq!(fs::read(&path).unwrap(), fs::read(out("whole.gguf")).unwrap());
    assert_eq!(files(dir.path()), ["a.txt", "b.txt", "cut.gguf", "f32.gguf", "whole.gguf"]);
}

#[test]
fn what_an_earlier_run_left_of_something_else_is_not_used() {
    let dir = folder();
    let model = f32_model(dir.path());
    let (a, b) = (write(dir.path(), "a.txt", &text(9)), write(dir.path(), "b.txt", &text(12)));
    let path = dir.path().join("x.gguf");
    let partial = dir.path().join("x.gguf.partial");
    let cut = |texts: &[Weighted]| {
        let cancel = Arc::new(AtomicBool::new(false));
        let asked =
            CalibrationOptions { session: SessionOptions { cancel: cancel.clone(), ..exact() }, ..options(&path) };
        let cut = collect(&model, texts, asked, |event| {
            cancel.store(matches!(event, Event::Window { done: 2, .. }), Ordering::Relaxed);
        });
        assert!(matches!(cut, Err(Error::Cancelled { .. })), "{cut:?}");
        assert!(partial.exists());
    };
    let first = |texts: &[Weighted], options: CalibrationOptions| {
        let mut events = vec![];
        collect(&model, texts, CalibrationOptions { force: true, ..options }, |event| events.push(event)).unwrap();
        assert!(!partial.exists());
        events.swap_remove(0)
    };
    cut(&[weighted(&a, 1.0)]);
    assert_eq!(first(&[weighted(&b, 1.0)], options(&path)), Event::StartingOver);
    fs::remove_file(&path).unwrap();
    cut(&[weighted(&a, 1.0)]);
    assert_eq!(first(&[weighted(&a, 2.0)], options(&path)), Event::StartingOver);
    fs::remove_file(&path).unwrap();
    cut(&[weighted(&a, 1.0)]);
    assert_eq!(
        first(&[weighted(&a, 1.0)], CalibrationOptions { restart: true, ..options(&path) }),
        Event::StartingOver
    );
    fs::remove_file(&path).unwrap();

    fs::write(&partial, "my notes").unwrap();
    let refused = collect(&model, &[weighted(&a, 1.0)], options(&path), |_| {}).unwrap_err();
    has(&refused.to_string(), &["x.gguf.partial", "was not left by an earlier calibration"]);
    let command =
        ["calibrate", model.to_str().unwrap(), a.to_str().unwrap(), "--window", "32", "-o", path.to_str().unwrap()];
    has(&error(&nibble(command)), &["was not left by an earlier calibration; remove it, or pass --restart"]);
    assert_eq!(fs::read_to_string(&partial).unwrap(), "my notes");
}

/// Whether two sums are the same but for the rounding of what files hold.
fn near(a: &Matrix, b: &Matrix) -> bool {
    let near = |a: &f64, b: &f64| (a - b).abs() <= 1e-6 * b.abs();
    a.sums.len() == b.sums.len()
        && a.sums.iter().zip(&b.sums).all(|(a, b)| near(a, b))
        && near(&a.counts[0], &b.counts[0])
}

#[test]
fn files_add_up_to_what_their_texts_give_together() {
    let dir = folder();
    let model = f32_model(dir.path());
    let (a, b) = (write(dir.path(), "a.txt", &text(9)), write(dir.path(), "b.txt", &text(14)[200..]));
    let out = |name: &str| dir.path().join(name);
    collect(&model, &[weighted(&a, 1.0)], options(&out("a.gguf")), |_| {}).unwrap();
    collect(&model, &[weighted(&b, 1.0)], options(&out("b.gguf")), |_| {}).unwrap();
    let both = [weighted(&a, 1.0), weighted(&b, 2.5)];
    let together = collect(&model, &both, options(&out("together.gguf")), |_| {}).unwrap().sums;
    // From texts and a file, and from files alone, which runs no model.
    let merge = |names: &[(&str, f64)], output: &str| CalibrationOptions {
        merge: names.iter().map(|(name, weight)| weighted(&out(name), *weight)).collect(),
        ..options(&out(output))
    };
    let mixed = collect(&model, &[weighted(&a, 1.0)], merge(&[("b.gguf", 2.5)], "mixed.gguf"), |_| {}).unwrap().sums;
    let job = CalibrationJob::prepare(&model, &[], merge(&[("a.gguf", 1.0), ("b.gguf", 2.5)], "merged.gguf")).unwrap();
    assert!(!job.runs_model());
    let merged = job.execute(None, |_| panic!("nothing is read")).unwrap().sums;
    for sums in [&mixed, &merged] {
        assert_eq!(sums.texts, together.texts);
        assert_eq!((sums.windows, sums.window), (together.windows, 32));
        assert_eq!(sums.matrices.len(), together.matrices.len());
        for (name, matrix) in &sums.matrices {
            assert!(near(matrix, &together.matrices[name]), "{name}");
        }
    }
    // The weight matters.
    let plain = collect(&model, &[weighted(&a, 1.0), weighted(&b, 1.0)], options(&out("plain.gguf")), |_| {}).unwrap();
    let mean = |matrix: &Matrix| matrix.sums[0] / matrix.counts[0];
    let name = "blk.3.ffn_down.weight";
    assert!((mean(&plain.sums.matrices[name]) / mean(&together.matrices[name]) - 1.0).abs() > 1e-4);
}

#[test]
fn texts_are_cut_into_whole_windows_and_control_tokens_are_read_where_asked_for() {
    let dir = folder();
    let model = f32_model(dir.path());
    let path = write(dir.path(), "聊天.txt", &"<|startoftext|>你好<|endoftext|>\n".repeat(40));
    let json = |more: &[&str]| -> Value {
        let (model, path, out) = (model.to_str().unwrap(), path.to_str().unwrap(), dir.path().join("x.gguf"));
        let always = ["calibrate", model, path, "--window", "50", "--json", "--force", "-o", out.to_str().unwrap()];
        serde_json::from_str(&stdout(&nibble(always.iter().chain(more)))).unwrap()
    };
    let plain = json(&[]);
    let special = json(&["--special", "--output-matrix"]);
    let n = |json: &Value| json["texts"][0]["tokens"].as_u64().unwrap();
    assert!(n(&special) < n(&plain), "{} {}", n(&special), n(&plain));
    for json in [&plain, &special] {
        assert_eq!(json["texts"][0]["windows"], n(json) / 50);
        assert_eq!(json["texts"][0]["read_tokens"], n(json) / 50 * 50);
        assert_eq!((json["texts"][0]["name"].as_str(), json["window"].as_u64()), (Some("聊天"), Some(50)));
        assert_eq!(json["datasets"][0]["name"], "聊天.txt");
    }
    assert_eq!((plain["matrices"].as_u64(), special["matrices"].as_u64()), (Some(28), Some(29)));
    assert_eq!(json(&["--windows", "2"])["windows"], 2);
}

#[test]
fn calibrate_says_what_it_read_and_where_the_result_is() {
    let dir = folder();
    let model = f32_model(dir.path());
    let (a, b) = (write(dir.path(), "english.txt", &text(9)), write(dir.path(), "红楼梦.txt", &text(20)));
    let run = |more: &[&str]| {
        let texts = [a.to_str().unwrap().to_string(), format!("{}=2", b.display())];
        let always = ["calibrate", model.to_str().unwrap(), &texts[0], &texts[1], "--window", "64"];
        let program = env!("CARGO_BIN_EXE_nibble");
        std::process::Command::new(program).args(always).args(more).current_dir(dir.path()).output().unwrap()
    };
    let text = stdout(&run(&[]));
    has(&text, &["english", "红楼梦", "28 matrices, over", "windows of 64 tokens", "f32-imatrix.gguf  "]);
    let before = fs::read(dir.path().join("f32-imatrix.gguf")).unwrap();
    has(&error(&run(&[])), &["f32-imatrix.gguf exists already; pass --force"]);
    assert_eq!(stdout(&run(&["--force", "--quiet"])), "");
    assert_eq!(fs::read(dir.path().join("f32-imatrix.gguf")).unwrap(), before);
    let merged = run(&["--merge", "f32-imatrix.gguf", "-o", "all.gguf", "--json"]);
    let json: Value = serde_json::from_str(&stdout(&merged)).unwrap();
    assert_eq!(json["datasets"].as_array().unwrap().len(), 4);
}

#[test]
fn calibrate_says_in_one_line_what_is_wrong() {
    let dir = folder();
    let model = f32_model(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    write(dir.path(), "text.txt", &text(20));
    write(dir.path(), "short.txt", "红楼梦");
    write(dir.path(), "empty.txt", "");
    fs::write(dir.path().join("latin.txt"), b"caf\xe9").unwrap();
    let (model, good) = (model.to_str().unwrap(), at("text.txt"));
    collect(Path::new(model), &[weighted(Path::new(&good), 1.0)], options(&dir.path().join("i.gguf")), |_| {}).unwrap();
    let i = File::read(&dir.path().join("i.gguf")).unwrap();
    let mut other = i.sums();
    let narrow = other.matrices.remove("blk.0.attn_q.weight").unwrap();
    other.matrices.insert("blk.9.attn_q.weight".to_string(), narrow);
    fs::write(dir.path().join("other.gguf"), other.to_bytes().unwrap()).unwrap();
    let before = files(dir.path());

    for (arguments, words) in [
        (vec![model, &at("nowhere.txt")], &["nowhere.txt: cannot be read"][..]),
        (vec![&at("nowhere.gguf"), &good], &["nowhere.gguf: cannot be opened"]),
        (vec![&good, model], &["text.txt", "wanted \"GGUF\""]),
        (vec![model, model], &["is a GGUF file, wanted a text", "nibble calibrate MODEL TEXT"]),
        (vec![model, dir.path().to_str().unwrap()], &["cannot be read"]),
        (vec![model, &at("short.txt")], &["short.txt: has", "fewer than a window of 512", "--window"]),
        (vec![model, &at("empty.txt")], &["empty.txt: is empty"]),
        (vec![model, &at("latin.txt")], &["latin.txt: is not UTF-8 at byte 3"]),
        (vec![model, &good, "--window", "8"], &["a window of 8 tokens was asked for, wanted 16 to", "; give --window"]),
        (vec![model, &good, "--window", "1000000"], &["a window of 1000000 tokens", "; give --window"]),
        (vec![model, &good, "-o", &good], &["text.txt is one of the inputs", "; give -o another name"]),
        (vec![model, &good, "-o", model, "--force"], &["f32.gguf is one of the inputs", "; give -o another name"]),
        (vec![model, &good, "-o", dir.path().to_str().unwrap()], &["is a folder; give -o the name of a file"]),
        (vec![model, &good, "-o", "/nowhere/at/all.gguf"], &["/nowhere/at/all.gguf could not be written"]),
        (vec![model, "--merge", model], &["is a model, wanted a file of importance", "; 'nibble calibrate' makes one"]),
        (vec![model, "--merge", &good], &["text.txt: is not a file of importance", "; 'nibble calibrate' and"]),
        (vec![model, "--merge", &at("other.gguf")], &["'blk.9.attn_q.weight', which the model does not have"]),
    ] {
        let arguments: Vec<&str> = arguments.into_iter().collect();
        let output = if arguments.contains(&"-o") { vec![] } else { vec!["-o".to_string(), at("x.gguf")] };
        let output: Vec<&str> = output.iter().map(String::as_str).collect();
        has(&error(&nibble(["calibrate"].iter().chain(&arguments).chain(&output))), words);
        assert_eq!(files(dir.path()), before, "{arguments:?}");
    }
    for (arguments, words) in
        [(vec![model, "text.txt=0"], &["the weight is 0"][..]), (vec![model, &good, "--windows", "0"], &["--windows"])]
    {
        let output = nibble(["calibrate"].iter().chain(&arguments));
        assert_eq!(output.status.code(), Some(2));
        has(&String::from_utf8_lossy(&output.stderr), words);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn converting_with_a_file_of_importance_gives_llama_cpps_bytes_and_verifies() {
    use crate::same_bytes_as_llama_cpp::llama_quantize;
    let dir = folder();
    let model = f32_model(dir.path());
    let path = write(dir.path(), "text.txt", &text(20));
    let file = dir.path().join("i.gguf");
    collect(&model, &[weighted(&path, 1.0)], options(&file), |_| {}).unwrap();
    let importance = File::read(&file).unwrap().importance().unwrap();
    // The same in the older form.
    let mut dat = (importance.matrices().len() as i32).to_le_bytes().to_vec();
    for name in importance.matrices() {
        let values = importance.of(name).unwrap();
        dat.extend([name.len() as i32].map(i32::to_le_bytes).concat());
        dat.extend(name.as_bytes());
        dat.extend([4, values.len() as i32].map(i32::to_le_bytes).concat());
        dat.extend(values.iter().flat_map(|x| (x * 4.0).to_le_bytes()));
    }
    let older = dir.path().join("i.dat");
    fs::write(&older, dat).unwrap();

    let blake3 = |path: &Path| blake3::hash(&fs::read(path).unwrap()).to_hex().to_string();
    for recipe in ["Q2_K", "Q3_K_M", "Q4_K_M", "IQ4_XS"] {
        let theirs = dir.path().join("theirs.gguf");
        let file_type = nibble::recipe::Recipe::find(recipe).unwrap().file_type;
        llama_quantize(&model, &theirs, file_type, Some(&importance));
        let theirs = Gguf::open(&theirs).unwrap();
        for file in [&file, &older] {
            let out = dir.path().join("ours.gguf");
            let arguments = ["-q", recipe, "--force", "--importance", file.to_str().unwrap()];
            let ours = Gguf::open(&convert(&model, &out, &arguments)).unwrap();
            assert_eq!(ours.tensors().len(), theirs.tensors().len());
            for (i, tensor) in ours.tensors().iter().enumerate() {
                let j = theirs.index_of(&tensor.name).unwrap();
                assert!(ours.data(i) == theirs.data(j), "{recipe} with {}: {}", file.display(), tensor.name);
            }
            let name = file.file_name().unwrap().to_str();
            assert_eq!(ours.metadata().str("nibble.importance.name"), name);
            assert_eq!(ours.metadata().str("nibble.importance.blake3"), Some(blake3(file).as_str()));
        }
    }

    let (ours, model) = (dir.path().join("ours.gguf"), model.to_str().unwrap());
    let verify = |more: &[&str]| nibble(["verify", ours.to_str().unwrap(), "--source", model].iter().chain(more));
    has(&stdout(&verify(&[])), &["importance i.dat", "made with importance, which was not given (--importance)"]);
    let with = verify(&["--importance", older.to_str().unwrap()]);
    has(&stdout(&with), &["all 39 tensors are identical"]);
    let other = error(&verify(&["--importance", file.to_str().unwrap()]));
    has(&other, &["was made with other importance: i.dat", &blake3(&older), "i.gguf has BLAKE3", &blake3(&file)]);
    let plain = convert(Path::new(model), &dir.path().join("plain.gguf"), &["-q", "Q4_K_M"]);
    let plain = plain.to_str().unwrap();
    let none = nibble(["verify", plain, "--source", model, "--importance", file.to_str().unwrap()]);
    has(&error(&none), &["was made without importance, and i.gguf was given", "--importance"]);
}

/// Importance that is 0 for columns, for blocks of them, and for a whole matrix. ggml, whose bytes are the oracle where
/// importance is positive, makes zeros of such blocks; how far weights are off is computed here in 64 bits.
#[cfg(target_arch = "x86_64")]
#[test]
fn no_block_of_weights_is_lost_because_no_text_used_it() {
    use crate::same_bytes_as_llama_cpp::llama_quantize_with;
    use nibble::quant::decoder;
    let dir = folder();
    let model = f32_model(dir.path());
    let original = Gguf::open(&model).unwrap();
    let floats = |gguf: &Gguf, i: usize, bytes: std::ops::Range<usize>, n: usize| {
        let mut weights = vec![0.0; n];
        decoder(gguf.tensors()[i].ty).unwrap()(&gguf.data(i)[bytes], &mut weights);
        weights
    };
    let (mut n_same, mut n_kept, mut n_lost_by_ggml) = (0, 0, 0);
    for name in ["im-half", "im-zero-block", "im-allzero-one"] {
        let path = support::data("importance-zeros").join(format!("{name}.gguf"));
        let means = File::read(&path).unwrap().sums().matrices;
        let means: HashMap<String, Vec<f32>> = means
            .into_iter()
            .map(|(matrix, m)| (matrix, m.sums.iter().map(|sum| (sum / m.counts[0]) as f32).collect()))
            .collect();
        let raw: Vec<_> = means.iter().map(|(name, values)| (name.clone(), values.clone())).collect();
        for recipe in ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K"]
        {
            let [ours, plain, theirs] = ["ours", "plain", "theirs"].map(|name| dir.path().join(format!("{name}.gguf")));
            let importance = ["--importance", path.to_str().unwrap()];
            let start = ["convert", "-q", recipe, "--force", "-o", ours.to_str().unwrap(), model.to_str().unwrap()];
            let output = nibble(start.iter().chain(&importance));
            stdout(&output);
            has(&String::from_utf8(output.stderr).unwrap(), &["warning: the importance is 0 for "]);
            convert(&model, &plain, &["-q", recipe, "--force"]);
            let file_type = nibble::recipe::Recipe::find(recipe).unwrap().file_type;
            llama_quantize_with(&model, &theirs, file_type, Some(raw.clone()));
            let verified = nibble(
                ["verify", ours.to_str().unwrap(), "--source", model.to_str().unwrap()].iter().chain(&importance),
            );
            has(&stdout(&verified), &["all 39 tensors are identical"]);

            let [ours, plain, theirs] = [ours, plain, theirs].map(|path| Gguf::open(&path).unwrap());
            for (i, tensor) in ours.tensors().iter().enumerate() {
                let Some(values) = means.get(&tensor.name) else { continue };
                let (j, k, l) = (
                    theirs.index_of(&tensor.name).unwrap(),
                    plain.index_of(&tensor.name).unwrap(),
                    original.index_of(&tensor.name).unwrap(),
                );
                let (block_len, block_bytes) = (tensor.ty.block_len(), tensor.ty.block_bytes());
                let per_row = values.len() / block_len;
                let is_unknown = values.iter().all(|value| *value == 0.0);
                let (mut error, mut plain_error) = (0.0, 0.0);
                for block in 0..ours.data(i).len() / block_bytes {
                    let bytes = block * block_bytes..(block + 1) * block_bytes;
                    let found = &ours.data(i)[bytes.clone()];
                    let column = block % per_row * block_len;
                    let values = &values[column..column + block_len];
                    if values.iter().all(|value| *value > 0.0) {
                        assert!(*found == theirs.data(j)[bytes], "{name}, {recipe}: {}, block {block}", tensor.name);
                        n_same += 1;
                        continue;
                    }
                    if is_unknown {
                        assert!(
                            *found == plain.data(k)[bytes.clone()],
                            "{name}, {recipe}: {}, block {block}",
                            tensor.name
                        );
                    }
                    let source = floats(&original, l, block * block_len * 4..(block + 1) * block_len * 4, block_len);
                    let lost = |weights: &[f32]| {
                        // 32 columns without importance that were something and are nothing.
                        let threes = weights.chunks(32).zip(source.chunks(32)).zip(values.chunks(32));
                        threes
                            .filter(|((w, s), v)| {
                                v.iter().all(|v| *v == 0.0)
                                    && s.iter().any(|s| *s != 0.0)
                                    && w.iter().all(|w| *w == 0.0)
                            })
                            .count()
                    };
                    let squares = |weights: &[f32]| -> f64 {
                        weights.iter().zip(&source).map(|(w, s)| f64::from(w - s).powi(2)).sum()
                    };
                    let weights = floats(&ours, i, bytes.clone(), block_len);
                    assert_eq!(lost(&weights), 0, "{name}, {recipe}: {}, block {block}", tensor.name);
                    n_kept += 1;
                    n_lost_by_ggml += lost(&floats(&theirs, j, bytes.clone(), block_len));
                    error += squares(&weights);
                    plain_error += squares(&floats(&plain, k, bytes, block_len));
                }
                // As good as without importance, but for what columns beside them that have some take.
                assert!(error <= 2.0 * plain_error, "{name}, {recipe}: {}: {error} and {plain_error}", tensor.name);
            }
        }
    }
    eprintln!("{n_same} blocks are ggml's, {n_kept} are kept, of which ggml loses {n_lost_by_ggml} runs of 32");
    assert!(n_same > 1000 && n_kept > 1000 && n_lost_by_ggml > 100);
}

#[test]
fn convert_says_what_importance_lacks_and_what_it_is_not_for() {
    let dir = folder();
    let model = f32_model(dir.path());
    let columns = |name: &str| if name.contains("ffn_down") { 768 } else { 256 };
    let write = |file: &str, names: &[&str]| {
        let matrix = |name: &&str| (name.to_string(), Matrix { sums: vec![2.0; columns(name)], counts: vec![1.0] });
        let sums = nibble::calibration::importance::Sums {
            matrices: names.iter().map(matrix).collect(),
            ..Default::default()
        };
        let path = dir.path().join(file);
        fs::write(&path, sums.to_bytes().unwrap()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let run = |file: &str, recipe: &str| {
        let out = dir.path().join("x.gguf");
        let more = ["-q", recipe, "--force", "--importance", file];
        nibble(["convert", model.to_str().unwrap(), "-o", out.to_str().unwrap()].iter().chain(&more))
    };
    let said = |file: &str, recipe: &str| {
        let output = run(file, recipe);
        stdout(&output);
        String::from_utf8(output.stderr).unwrap()
    };
    let some = write("some.gguf", &["blk.0.attn_q.weight", "blk.0.ffn_down.weight"]);
    has(&said(&some, "Q4_K_M"), &["has nothing for 'blk.0.attn_k.weight' and 25 other tensors"]);
    has(&said(&some, "Q8_0"), &["nothing is quantized by importance"]);
    let more = write("more.gguf", &["blk.0.attn_q.weight", "blk.7.attn_q.weight"]);
    has(&said(&more, "Q4_K_M"), &["has values for 'blk.7.attn_q.weight', which this model does not have"]);
    let foreign = write("foreign.gguf", &["blk.7.attn_q.weight"]);
    has(&error(&run(&foreign, "Q4_K_M")), &["foreign.gguf has none of this model's matrices"]);
    // A vector of the right name, and of the wrong length, is no matrix.
    let vector = write("vector.gguf", &["blk.0.attn_norm.weight"]);
    has(&error(&run(&vector, "Q4_K_M")), &["'blk.0.attn_norm.weight', which is not a matrix"]);
    let model_itself = run(model.to_str().unwrap(), "Q4_K_M");
    has(&error(&model_itself), &["f32.gguf: is a model, wanted a file of importance"]);
    has(&error(&run("/nowhere", "Q4_K_M")), &["/nowhere: cannot be opened"]);
}

/// Sums as llama-imatrix has them: 32-bit floats, to which each token adds its squares.
struct Single(Arc<Mutex<HashMap<String, Vec<f32>>>>);

impl Observer for Single {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.is_product() && node.source(0).is_some_and(|matrix| matrix.name().starts_with("blk."))
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        let (matrix, input) = (node.source(0).unwrap(), node.source(1).unwrap());
        let (mut room, columns) = (Room::default(), input.dims()[0]);
        let mut sums = self.0.lock().unwrap();
        let sums = sums.entry(matrix.name().to_string()).or_insert_with(|| vec![0.0; columns]);
        for row in room.read(input).unwrap().chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        ControlFlow::Continue(())
    }
}

/// Against a file that llama-imatrix has made: `LLAMA_IMATRIX` of the model `LLAMA_IMATRIX_MODEL` and the text
/// `LLAMA_IMATRIX_TEXT`, with its defaults. What is between the two is that its sums are 32-bit floats: with such sums
/// the difference is no more than that of the order in which a product adds.
#[test]
#[ignore = "a measurement: needs a file of llama-imatrix"]
fn sums_are_those_of_llama_imatrix() {
    let path = |key: &str| PathBuf::from(std::env::var(key).unwrap_or_else(|_| panic!("{key} is not set")));
    let (model, text) = (path("LLAMA_IMATRIX_MODEL"), path("LLAMA_IMATRIX_TEXT"));
    let theirs = File::read(&path("LLAMA_IMATRIX")).unwrap().sums();
    let dir = folder();
    let ours = collect(&model, &[weighted(&text, 1.0)], CalibrationOptions::new(dir.path().join("x.gguf")), |_| {})
        .unwrap()
        .sums;

    let single = Arc::default();
    let options = SessionOptions { n_ctx: Some(512), rows: 512, ..SessionOptions::default() };
    let loaded = engine::open(&model, OpenOptions { session: options.clone(), ..OpenOptions::default() }).unwrap();
    let prompt = Prompt::plain(fs::read_to_string(text).unwrap());
    let tokens = chat::encode(&prompt, loaded.tokenizer()).unwrap();
    let mut session = Session::observed(&loaded, &options, Single(Arc::clone(&single))).unwrap();
    for window in tokens.chunks_exact(512) {
        session.truncate(0);
        session.eval(window, Logits::All).unwrap();
    }
    let single = single.lock().unwrap();
    assert_eq!(ours.matrices.keys().collect::<Vec<_>>(), theirs.matrices.keys().collect::<Vec<_>>());
    let (mut worst, mut worst_single) = (0f64, 0f64);
    for (name, matrix) in &theirs.matrices {
        assert_eq!(matrix.counts, ours.matrices[name].counts, "{name}");
        for (column, wanted) in matrix.sums.iter().enumerate().filter(|(_, wanted)| **wanted > 0.0) {
            worst = worst.max((ours.matrices[name].sums[column] / wanted - 1.0).abs());
            worst_single = worst_single.max((f64::from(single[name][column]) / wanted - 1.0).abs());
        }
    }
    eprintln!("largest relative difference: {worst:.2e}; with 32-bit sums {worst_single:.2e}");
    assert!(worst < 5e-4 && worst_single < 1e-4);
}

#[test]
fn built_in_texts_are_read_as_files_of_them_are() {
    let dir = folder();
    let model = f32_model(dir.path());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("quant-tables/calibration");
    let names = ["english", "chinese", "code", "chat"];
    let of_files: Vec<Weighted> = names.iter().map(|name| weighted(&folder.join(format!("{name}.txt")), 1.0)).collect();
    let with = |name: &str, special, built_in| {
        let options = options(&dir.path().join(name));
        CalibrationOptions { special, built_in, most_windows: Some(2), ..options }
    };
    let built_in = collect(&model, &[], with("a.gguf", false, true), |_| {}).unwrap();
    let files = collect(&model, &of_files, with("b.gguf", true, false), |_| {}).unwrap();
    assert!(built_in.sums.matrices.iter().all(|(name, matrix)| files.sums.matrices[name].sums == matrix.sums));
    let texts = |report: &Report| report.sums.texts.iter().map(|text| text.blake3.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&built_in), texts(&files));
    let labels: Vec<_> = built_in.sums.texts.iter().map(|text| text.name.as_str()).collect();
    assert_eq!(labels, names.map(|name| format!("built-in {name}")));

    // The command reads them where no text is named.
    let out = dir.path().join("c.gguf");
    let args = ["calibrate", model.to_str().unwrap(), "--windows", "1", "--json", "-o", out.to_str().unwrap()];
    let json: serde_json::Value = serde_json::from_str(&stdout(&nibble(args))).unwrap();
    assert_eq!(json["datasets"][3]["name"], "built-in chat");
}
