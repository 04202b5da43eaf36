//! Plans, against what llama.cpp reserves and takes.

use std::path::{Path, PathBuf};

use nibble::arch::{self, ARCHITECTURES, Hyperparameters};
use nibble::engine::SessionOptions;
use nibble::gguf::{Gguf, TensorType};
use nibble::llama::{KvType, KvTypes, Model, ModelOptions};
use nibble::placement::{Demand, Lacks, Machine, Outline, Room, place};
use nibble::recipe::{PlannedTensor, Recipe, plan};
use serde_json::Value;

use crate::support::{self, error, has, nibble, stdout, yi_nano};

fn converted(recipe: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("plan-yi-nano-{recipe}.gguf"));
    support::convert(&yi_nano(), &file, &["-q", recipe, "--force"])
}

fn planned(args: &[&str]) -> Value {
    let output = nibble([&["plan"], args, &["--json"]].concat());
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Returns the MiB of the buffers that llama.cpp allocates when it runs `path`, by what they are for.
fn allocated(path: &Path, more: &[&str], what: &str) -> f64 {
    let args = [&["run", path.to_str().unwrap(), "-p", "a", "-n", "1", "--verbose"], more].concat();
    let output = nibble(args);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let sizes = log.lines().filter_map(|line| line.split_once(&format!(" {what} buffer size =")));
    sizes.map(|(_, size)| size.split_ascii_whitespace().next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_plan_is_what_llama_cpp_allocates() {
    let file = converted("Q4_K_M");
    let path = file.to_str().unwrap();
    let found = planned(&[path, "--no-measure", "--ctx", "512,3000", "--kv-type", "f16,q8_0/q4_0"]);
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let (n_ctx, kv_type) = (row["n_ctx"].to_string(), row["kv_type"].as_str().unwrap());
        let more = ["--ctx", &n_ctx, "--kv-type", kv_type, "--repack", "off"];
        let mib = |key: &str| row["memory"][key].as_u64().unwrap() as f64 / f64::from(1 << 20);
        let compute = allocated(&file, &more, "compute") + allocated(&file, &more, "output");
        assert!((compute..compute + 0.03).contains(&mib("compute")), "{row}: {compute}");
        let kv = allocated(&file, &more, "KV");
        assert!((mib("kv_cache") - kv).abs() < 0.01, "{row}: {kv}");
        let gguf = Gguf::open(&file).unwrap();
        let weights: u64 = (0..gguf.tensors().len()).map(|i| gguf.data(i).len() as u64).sum();
        assert_eq!(row["memory"]["weights"], weights);
        let parts = ["weights", "kv_cache", "compute", "program"].map(|key| row["memory"][key].as_u64().unwrap());
        assert_eq!(row["memory"]["host"], parts.iter().sum::<u64>());
        assert_eq!((row["fits"].as_str(), &row["writing"]), (Some("now"), &Value::Null));
    }
    assert_eq!(found["recommended"], 0);
    let run = rows[0]["commands"].as_array().unwrap().last().unwrap().as_str().unwrap();
    // The default is left out.
    assert!(run.starts_with("nibble run ") && (run.ends_with(" --ctx 512") || run.ends_with(".gguf")), "{run}");
}

#[test]
fn speeds_are_measured_once_and_remembered() {
    let folder = support::folder();
    let file = converted("Q4_0");
    let plan = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nibble"));
        command.env("NIBBLE_CACHE", folder.path()).args(["plan", file.to_str().unwrap(), "--json", "--threads", "1"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", error(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let first = plan();
    for row in first["rows"].as_array().unwrap() {
        let speed = |key: &str| row[key].as_f64().unwrap();
        // Of three million weights, whatever the machine.
        assert!((10.0..1e6).contains(&speed("writing")) && (10.0..1e6).contains(&speed("reading")), "{row}");
    }
    let speeds = |plan: &Value| -> Vec<Value> {
        plan["rows"].as_array().unwrap().iter().map(|row| row["writing"].clone()).collect()
    };
    assert_eq!(speeds(&plan()), speeds(&first));
    // Nothing is left of the files that were measured with.
    let left = std::fs::read_dir(folder.path().join("outlines")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_folder_is_planned_by_its_recipes_and_a_name_without_a_file() {
    let folder = yi_nano();
    let found = planned(&[folder.to_str().unwrap(), "--no-measure", "-q", "Q8_0,Q4_0", "--kv-type", "f16"]);
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Q8_0", "Q4_0"]);
    let commands: Vec<_> = rows[1]["commands"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert!(commands[0].starts_with("nibble convert ") && commands[0].ends_with(" -q Q4_0"), "{commands:?}");
    assert!(commands[1].starts_with("nibble run ") && commands[1].contains("Q4_0.gguf"), "{commands:?}");
    // As large as the file that is made.
    let made = converted("Q4_0").metadata().unwrap().len();
    let planned_bytes = rows[1]["file_bytes"].as_u64().unwrap();
    assert!(planned_bytes.abs_diff(made) < 4096, "{planned_bytes} {made}");

    let known = planned(&["Yi-34B", "--memory", "32G", "--bandwidth", "60G", "-q", "Q6_K,Q4_K_M", "--kv-type", "f16"]);
    let rows = known["rows"].as_array().unwrap();
    assert_eq!(rows[0]["fits"], "alone");
    let most = rows[1]["writing_at_most"].as_f64().unwrap();
    // 20.3 GB that are read for a token, and half of 1 GB.
    assert!((2.7..3.0).contains(&most), "{most}");
    assert_eq!(rows[1]["memory"]["kv_cache"], 4096u64 * 240 * 1024);
    let small = planned(&["Yi-34B", "--memory", "16G", "--gpu", "12G", "-q", "Q4_K_M", "--kv-type", "f16"]);
    let row = &small["rows"][0];
    assert!(row["gpu_layers"].as_u64().unwrap() > 20, "{row}");
    assert!(row["memory"]["devices"][0].as_u64().unwrap() <= 12_000_000_000, "{row}");
    let text = stdout(&nibble(["plan", "Yi-34B", "--memory", "8G", "-q", "Q4_K_M"]));
    has(&text, &["Nothing of it fits", "Q2_K"]);
}

#[test]
fn what_cannot_be_planned_is_said() {
    let file = converted("Q4_0");
    let file = file.to_str().unwrap();
    for (args, wanted) in [
        (vec!["plan", "Yi-35B"], "no such file or folder"),
        (vec!["plan", file, "-q", "Q4_0"], "leave out --quantize"),
        (vec!["plan", file, "--ctx", "0"], "--ctx"),
        (vec!["plan", file, "--memory", "much"], "is not a size"),
        (vec!["plan", file, "--kv-type", "q9"], "--kv-type"),
        (vec!["plan", "Yi-34B", "-q", "Q9"], "Q9"),
    ] {
        let output = nibble(args);
        assert!(!output.status.success());
        has(&String::from_utf8_lossy(&output.stderr), &[wanted]);
    }
}

/// Models from 6 to 34 billion weights, and what their files would be.
fn models() -> Vec<(String, Outline)> {
    let mut all = Vec::new();
    for (name, make) in Hyperparameters::KNOWN {
        for recipe in ["Q8_0", "Q4_K_M", "Q2_K"] {
            let hyper = make();
            let config = hyper.to_config("LlamaForCausalLM");
            let metadata = ARCHITECTURES.by_name("LlamaForCausalLM").unwrap().blueprint(&config).unwrap().metadata;
            let sources = arch::tensors(&hyper, TensorType::BF16);
            let plan = plan(Recipe::find(recipe).unwrap(), &hyper.topology(), &sources, false, &[]).unwrap();
            let tensors = plan.tensors.iter().map(PlannedTensor::info).collect();
            let outline = Outline::without_vocabulary(metadata, tensors, hyper.vocab).unwrap();
            all.push((format!("{name} {recipe}"), outline));
        }
    }
    all.truncate(8);
    all
}

/// Numbers that look random, and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn no_plan_is_over_its_memory_and_no_device_is_left_while_layers_wait() {
    let folder = support::folder();
    let models = models();
    assert_eq!(models.len(), 8);
    let mut dice = Dice(7);
    let (mut n_placed, mut n_split) = (0, 0);
    let machines: Vec<(Machine, Vec<u64>)> = (0..200)
        .map(|_| {
            let total = (8 + dice.below(121)) * 1_000_000_000;
            let gpus = (0..dice.below(3)).map(|_| (2 + dice.below(47)) * 500_000_000).collect();
            (Machine { total, available: 0 }, gpus)
        })
        .collect();
    for (name, outline) in &models {
        let file = outline.make(folder.path()).unwrap();
        let load = ModelOptions { no_alloc: true, gpu_layers: Some(0), ..ModelOptions::default() };
        let model = Model::load(file.path(), load).unwrap();
        // Each is planned at one of these contexts on each machine.
        let spots: Vec<(u32, KvTypes, u64)> = [512, 4096, 20_000]
            .into_iter()
            .flat_map(|n_ctx| [KvType::F16, KvType::Q8_0].map(|ty| (n_ctx, KvTypes::from(ty))))
            .map(|(n_ctx, kv_types)| {
                let session = SessionOptions { n_ctx: Some(n_ctx), kv_types, ..SessionOptions::default() };
                let reserved = model.reservation(&session.context(None, 1)).unwrap();
                assert_eq!(reserved.compute.len(), 1, "{reserved:?}");
                (n_ctx, kv_types, reserved.total())
            })
            .collect();
        for (machine, gpus) in &machines {
            let (n_ctx, kv_types, compute) = spots[dice.below(6) as usize];
            let demand = Demand::new(outline, n_ctx, kv_types, compute, 50_000_000);
            let room = Room::new(machine.at_best(), gpus);
            let what = format!("{name}, {n_ctx} tokens in {kv_types}, {room:?}");
            let parts = outline.parts();
            let kv: u64 = demand.kv.iter().sum();
            let all = outline.tensor_bytes() + kv + compute + 50_000_000;
            let placed = match place(&demand, &room) {
                Ok(placed) => placed,
                Err(Lacks { needs, has }) => {
                    assert!(needs > has && all > has, "{what}");
                    continue;
                }
            };
            n_placed += 1;
            n_split += usize::from(gpus.len() == 2 && placed.split.iter().all(|n| *n > 0));
            // By the engine's reservation, on the machine and on each device that has layers.
            assert!(placed.host <= machine.total - Machine::RESERVE, "{what}");
            let used = placed.devices.iter().filter(|bytes| **bytes > 0).count() as u64;
            assert_eq!(placed.host + placed.devices.iter().sum::<u64>(), all + used * compute, "{what}");
            let n_layers = outline.n_layers() as usize;
            let mut left = n_layers + 1;
            for (device, n) in placed.split.iter().enumerate().rev() {
                assert!(placed.devices[device] <= gpus[device], "{what}");
                left -= *n as usize;
                let next = match left {
                    0 => continue,
                    left if left > n_layers => parts.output,
                    left => parts.layers[left - 1] + demand.kv[left - 1],
                };
                let unused = gpus[device] - placed.devices[device];
                // Over a tenth only where the next layer is larger than that.
                let wanted = if placed.devices[device] > 0 { next } else { next + compute };
                assert!(unused <= gpus[device] / 10 || unused - gpus[device] / 20 < wanted, "{what}: {placed:?}");
            }
        }
    }
    assert!(n_placed > 800 && n_split > 100, "{n_placed} {n_split}");
}
