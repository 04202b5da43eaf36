//! Whole conversions: what does and what does not change the bytes of the result.

use std::fs;

use nibble::checkpoint::testing;
use nibble::gguf::{Gguf, TensorType};

use crate::support::{Variation, convert, files, folder, has, model, nibble, stdout, strings, yi_nano};

/// The model's name is recorded in the file, so folders that are to give the same bytes have the same name.
const NAME: &str = "yi-nano";

#[test]
fn the_model_does_not_depend_on_names_sharding_or_container() {
    let dir = folder();
    let reference = model(&convert(&yi_nano(), &dir.path().join("reference.gguf"), &["-q", "Q4_K_M"]));

    let nano = Variation::of_yi_nano();
    let source = |kind: &str| dir.path().join(kind).join(NAME);
    nano.clone().into_first_release().write_single(&source("first-release"));
    nano.write_shards(&source("shards"), 3);
    nano.clone().into_first_release().write_shards(&source("first-release-shards"), 2);
    testing::rewrite_as_pytorch(&yi_nano(), &source("torch"), 1).unwrap();
    testing::rewrite_as_pytorch(&source("first-release"), &source("torch-shards"), 3).unwrap();
    for kind in ["first-release", "shards", "first-release-shards", "torch", "torch-shards"] {
        let made = convert(&source(kind), &dir.path().join(format!("{kind}.gguf")), &["-q", "Q4_K_M"]);
        assert!(model(&made) == reference, "{kind} gives another model");
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    let dir = folder();
    let with = |threads: &str| {
        let out = dir.path().join(format!("{threads}.gguf"));
        fs::read(convert(&yi_nano(), &out, &["-q", "Q4_K_S", "--threads", threads])).unwrap()
    };
    let one = with("1");
    assert!(one == with("2"));
    assert!(one == with("7"));
}

#[test]
fn a_16_bit_gguf_between_changes_only_what_is_recorded() {
    let dir = folder();
    let direct = convert(&yi_nano(), &dir.path().join("direct.gguf"), &["-q", "Q4_K_M"]);
    for between in ["F32", "BF16"] {
        let first = convert(&yi_nano(), &dir.path().join(format!("{between}.gguf")), &["-q", between]);
        let second = convert(&first, &dir.path().join(format!("{between}-q.gguf")), &["-q", "Q4_K_M"]);
        assert!(model(&direct) == model(&second), "through {between}");
    }
}

#[test]
fn every_recipe_gives_a_file_that_opens() {
    let dir = folder();
    for recipe in nibble::recipe::Recipe::all() {
        let out = dir.path().join(format!("{}.gguf", &recipe.name));
        let gguf = Gguf::open(&convert(&yi_nano(), &out, &["-q", &recipe.name])).unwrap();
        assert_eq!(gguf.tensors().len(), 39, "{}", &recipe.name);
        assert_eq!(gguf.metadata().u64("general.file_type"), Some(recipe.file_type.into()));
    }
}

#[test]
fn a_split_result_holds_the_same_tensors() {
    let dir = folder();
    let whole = Gguf::open(&convert(&yi_nano(), &dir.path().join("whole.gguf"), &["-q", "Q8_0"])).unwrap();
    let parts = folder();
    convert(&yi_nano(), &parts.path().join("m.gguf"), &["-q", "Q8_0", "--split-max-size", "2M"]);
    let names = files(parts.path());
    assert!(names.len() > 2, "{names:?}");
    assert_eq!(names[0], format!("m-00001-of-{:05}.gguf", names.len()));
    for name in &names {
        // A tensor larger than the limit has a part to itself.
        let length = fs::metadata(parts.path().join(name)).unwrap().len();
        assert!(length <= 2_100_000, "{name}: {length}");
    }
    let split = Gguf::open(&parts.path().join(&names[0])).unwrap();
    assert_eq!(whole.tensors(), split.tensors());
    for i in 0..whole.tensors().len() {
        assert!(whole.data(i) == split.data(i), "{}", whole.tensors()[i].name);
    }
}

#[test]
fn a_split_source_converts_like_a_whole_one() {
    let dir = folder();
    let whole = convert(&yi_nano(), &dir.path().join("whole.gguf"), &["-q", "BF16"]);
    convert(&yi_nano(), &dir.path().join("m.gguf"), &["-q", "BF16", "--split-max-size", "3M"]);
    let first = files(dir.path()).into_iter().find(|n| n.contains("-00001-of-")).unwrap();
    let a = convert(&whole, &dir.path().join("a.gguf"), &["-q", "Q4_K_M"]);
    let b = convert(&dir.path().join(first), &dir.path().join("b.gguf"), &["-q", "Q4_K_M"]);
    assert!(model(&a) == model(&b));
}

#[test]
fn the_default_name_follows_the_convention_and_lands_in_the_current_folder() {
    let dir = folder();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_nibble"))
        .current_dir(dir.path())
        .args(["convert", yi_nano().to_str().unwrap(), "-q", "q4_0"])
        .output()
        .unwrap();
    has(&stdout(&output), &["yi-nano-6.4M-Q4_0.gguf"]);
    assert_eq!(files(dir.path()), ["yi-nano-6.4M-Q4_0.gguf"]);
}

#[test]
fn a_dry_run_says_what_would_be_and_writes_nothing() {
    let dir = folder();
    let out = dir.path().join("x.gguf");
    let args = ["convert", yi_nano().to_str().unwrap(), "-o", out.to_str().unwrap(), "--dry-run"].map(str::to_string);
    let text = stdout(&nibble(&args));
    has(&text, &["blk.*.ffn_down.weight", "BF16 -> Q6_K", "BF16 -> Q4_K", "bits per weight", "x.gguf"]);

    let text = stdout(&nibble(args.iter().cloned().chain(["--json".to_string()])));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["plan"]["tensors"].as_array().unwrap().len(), 39);
    assert!(files(dir.path()).is_empty());

    // The size it names is the size it gives.
    let promised = json["outputs"][0]["bytes"].as_u64().unwrap();
    convert(&yi_nano(), &out, &[]);
    assert_eq!(fs::metadata(&out).unwrap().len(), promised);
}

#[test]
fn a_type_given_by_hand_goes_before_the_recipe() {
    let dir = folder();
    let more = ["-q", "Q4_0", "--type", "output=Q8_0", "--type", "blk.0.ffn_*=F16", "--type", "attention_v=Q5_1"];
    let gguf = Gguf::open(&convert(&yi_nano(), &dir.path().join("x.gguf"), &more)).unwrap();
    let ty = |name: &str| gguf.tensor(name).unwrap().ty;
    assert_eq!(ty("output.weight"), TensorType::Q8_0);
    assert_eq!(ty("blk.0.ffn_down.weight"), TensorType::F16);
    assert_eq!(ty("blk.1.ffn_down.weight"), TensorType::Q4_0);
    assert_eq!(ty("blk.3.attn_v.weight"), TensorType::Q5_1);
    // A norm is no matrix of the feed-forward: it stays what it is.
    assert_eq!(ty("blk.0.ffn_norm.weight"), TensorType::F32);
}

#[test]
fn half_precision_and_single_precision_checkpoints_convert_like_bf16_ones() {
    let dir = folder();
    let reference = model(&convert(&yi_nano(), &dir.path().join("r.gguf"), &["-q", "Q6_K"]));
    // Every bf16 number is an f32 number.
    let mut wide = Variation::of_yi_nano();
    for tensor in &mut wide.tensors {
        tensor.dtype = "F32".to_string();
        tensor.bytes = tensor.bytes.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
    }
    wide.write_single(&dir.path().join("f32").join(NAME));
    let made = convert(&dir.path().join("f32").join(NAME), &dir.path().join("f32.gguf"), &["-q", "Q6_K"]);
    assert!(model(&made) == reference);
    // A power of two is a number in all of them.
    let mut half = Variation::of_yi_nano();
    for (tensor, wide) in half.tensors.iter_mut().zip(&mut wide.tensors) {
        let n = tensor.bytes.len() / 2;
        tensor.dtype = "F16".to_string();
        tensor.bytes = [0x00, 0x38].repeat(n);
        wide.bytes = 0.5f32.to_le_bytes().repeat(n);
    }
    half.write_single(&dir.path().join("half").join(NAME));
    wide.write_single(&dir.path().join("wide").join(NAME));
    let a = convert(&dir.path().join("half").join(NAME), &dir.path().join("half.gguf"), &[]);
    let b = convert(&dir.path().join("wide").join(NAME), &dir.path().join("wide.gguf"), &[]);
    assert!(model(&a) == model(&b));
}

#[test]
fn tied_embeddings_give_one_tensor() {
    let dir = folder();
    let mut nano = Variation::of_yi_nano();
    nano.tensors.retain(|t| t.name != "lm_head.weight");
    nano.config.insert("tie_word_embeddings".to_string(), true.into());
    nano.write_single(&dir.path().join(NAME));
    let gguf = Gguf::open(&convert(&dir.path().join(NAME), &dir.path().join("x.gguf"), &["-q", "Q4_K_M"])).unwrap();
    assert!(gguf.tensor("output.weight").is_none());
    assert_eq!(gguf.tensor("token_embd.weight").unwrap().ty, TensorType::Q6_K);
}

#[test]
fn the_file_records_what_made_it() {
    let dir = folder();
    let source = dir.path().join(NAME);
    Variation::of_yi_nano().write_shards(&source, 3);
    let gguf = Gguf::open(&convert(&source, &dir.path().join("x.gguf"), &["-q", "q8_0"])).unwrap();
    let text = |key: &str| gguf.metadata().str(key).unwrap_or_else(|| panic!("no {key}")).to_string();
    assert_eq!(text("nibble.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(text("nibble.recipe.name"), "Q8_0");
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/quant-tables/q8_0.toml");
    assert_eq!(text("nibble.recipe.blake3"), blake3::hash(&fs::read(recipe).unwrap()).to_hex().as_str());
    assert_eq!(text("nibble.source.name"), NAME);
    let names: Vec<_> = (1..4).map(|i| format!("model-{i:05}-of-00003.safetensors")).collect();
    assert_eq!(strings(&gguf, "nibble.source.files"), names);
    let hash = |name: &String| blake3::hash(&fs::read(source.join(name)).unwrap()).to_hex().to_string();
    assert_eq!(strings(&gguf, "nibble.source.blake3"), names.iter().map(hash).collect::<Vec<_>>());
    for key in ["nibble.overrides", "nibble.importance.name", "nibble.importance.blake3"] {
        assert!(gguf.metadata().get(key).is_none(), "{key}");
    }
}

#[test]
fn a_file_made_from_a_file_records_its_own_making() {
    let dir = folder();
    let types = ["--type", "output=Q8_0", "--type", "blk.0.*=Q6_K"];
    let first = convert(&yi_nano(), &dir.path().join("first.gguf"), &["-q", "BF16"]);
    let second = convert(&first, &dir.path().join("second.gguf"), &[["-q", "Q4_K_M"].as_slice(), &types].concat());
    let gguf = Gguf::open(&second).unwrap();
    assert_eq!(gguf.metadata().str("nibble.recipe.name"), Some("Q4_K_M"));
    assert_eq!(gguf.metadata().str("nibble.source.name"), Some("first.gguf"));
    assert_eq!(strings(&gguf, "nibble.overrides"), ["output=Q8_0", "blk.0.*=Q6_K"]);
    assert_eq!(strings(&gguf, "nibble.source.files"), ["first.gguf"]);
    let hash = blake3::hash(&fs::read(&first).unwrap()).to_hex().to_string();
    assert_eq!(strings(&gguf, "nibble.source.blake3"), [hash]);
    // What it was told to do by hand the first time is not what it was told the second time.
    let third = convert(&second, &dir.path().join("third.gguf"), &["-q", "Q4_0", "--allow-requantize"]);
    assert!(Gguf::open(&third).unwrap().metadata().get("nibble.overrides").is_none());
}

#[test]
fn the_importance_that_was_used_is_recorded() {
    use nibble::convert::{Importance, Job, Options};
    let dir = folder();
    let out = dir.path().join("x.gguf");
    let values = [("blk.0.ffn_up.weight".to_string(), vec![1.0; 256])].into();
    let importance = Importance::new("books".to_string(), blake3::hash(b"books"), values);
    let recipe = nibble::recipe::Recipe::find("Q4_K_M").unwrap().clone();
    let options = Options { output: Some(out.clone()), importance: Some(importance), ..Options::new(recipe) };
    Job::prepare(&yi_nano(), options).unwrap().execute(&(), &std::sync::atomic::AtomicBool::new(false)).unwrap();
    let gguf = Gguf::open(&out).unwrap();
    assert_eq!(gguf.metadata().str("nibble.importance.name"), Some("books"));
    assert_eq!(gguf.metadata().str("nibble.importance.blake3"), Some(blake3::hash(b"books").to_hex().as_str()));
}

#[test]
#[cfg(unix)]
fn a_folder_of_links_is_read_like_the_files_they_point_to() {
    let dir = folder();
    let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("models--01-ai--yi-nano/snapshots/abc"));
    Variation::of_yi_nano().write_shards(&blobs, 2);
    fs::create_dir_all(&snapshot).unwrap();
    for name in files(&blobs) {
        std::os::unix::fs::symlink(blobs.join(&name), snapshot.join(&name)).unwrap();
    }
    let a = Gguf::open(&convert(&blobs, &dir.path().join("a.gguf"), &[])).unwrap();
    let b = Gguf::open(&convert(&snapshot, &dir.path().join("b.gguf"), &[])).unwrap();
    for key in ["nibble.source.files", "nibble.source.blake3"] {
        assert_eq!(strings(&a, key), strings(&b, key));
    }
    assert_eq!(b.metadata().str("nibble.source.name"), Some("yi-nano"));
}

/// yi-nano, whose configuration says that its output matrix is its embedding.
fn said_to_be_tied() -> Variation {
    let mut nano = Variation::of_yi_nano();
    nano.config.insert("tie_word_embeddings".to_string(), true.into());
    nano
}

/// What transformers 5.24 does (`PreTrainedModel.tie_weights`): where both matrices were saved with different values, it
/// does not tie them.
#[test]
fn an_output_matrix_of_its_own_is_kept_although_the_configuration_ties_it() {
    let dir = folder();
    // The model is untied: what it becomes is right.
    let wanted = model(&convert(&yi_nano(), &dir.path().join("wanted.gguf"), &["-q", "Q4_K_M"]));
    let source = |kind: &str| dir.path().join(kind).join(NAME);
    said_to_be_tied().write_single(&source("single"));
    said_to_be_tied().write_shards(&source("shards"), 3);
    testing::rewrite_as_pytorch(&source("single"), &source("torch"), 2).unwrap();
    // A single number that differs, at the end of the last row, in another type.
    let mut nearly = said_to_be_tied();
    let embedding = nearly.tensor("model.embed_tokens.weight").clone();
    let head = nearly.tensor("lm_head.weight");
    head.dtype = "F32".to_string();
    head.bytes = as_f32(&embedding.bytes);
    // The lowest bit of its fraction.
    let lowest = head.bytes.len() - 4;
    head.bytes[lowest] ^= 1;
    nearly.write_single(&source("nearly"));
    for kind in ["single", "shards", "torch", "nearly"] {
        let out = dir.path().join(format!("{kind}.gguf"));
        let arguments = |more: &[&str]| {
            let start = ["convert", "-q", "Q4_K_M", "-o", out.to_str().unwrap()].map(str::to_string);
            let more = more.iter().map(|word| word.to_string());
            start.into_iter().chain([source(kind).to_str().unwrap().to_string()]).chain(more).collect::<Vec<_>>()
        };
        let planned = nibble(arguments(&["--dry-run"]));
        has(&stdout(&planned), &["output.weight"]);
        let made = nibble(arguments(&[]));
        stdout(&made);
        for output in [planned, made] {
            let said = String::from_utf8(output.stderr).unwrap();
            has(&said, &["'lm_head.weight' holds other numbers than 'model.embed_tokens.weight'; it is kept"]);
        }
        match kind {
            "nearly" => assert_eq!(Gguf::open(&out).unwrap().tensors().len(), 39),
            _ => assert!(model(&out) == wanted, "{kind} gives another model"),
        }
        let verified = nibble(["verify", out.to_str().unwrap(), "--source", source(kind).to_str().unwrap()]);
        has(&stdout(&verified), &["all 39 tensors are identical"]);
    }
}

/// The bytes of 32-bit floats with the values of these of BF16.
fn as_f32(bf16: &[u8]) -> Vec<u8> {
    bf16.chunks_exact(2).flat_map(|bytes| [0, 0, bytes[0], bytes[1]]).collect()
}

#[test]
fn a_copy_of_the_embedding_and_an_embedding_that_only_the_output_matrix_holds_are_one() {
    let dir = folder();
    let source = |kind: &str| dir.path().join(kind).join(NAME);
    let embedding = said_to_be_tied().tensor("model.embed_tokens.weight").clone();
    let mut alone = said_to_be_tied();
    alone.tensors.retain(|tensor| tensor.name != "lm_head.weight");
    alone.write_single(&source("alone"));
    let wanted = model(&convert(&source("alone"), &dir.path().join("wanted.gguf"), &["-q", "Q4_K_M"]));
    assert_eq!(wanted.1.len(), 38);

    let mut copy = said_to_be_tied();
    copy.tensor("lm_head.weight").bytes = embedding.bytes.clone();
    copy.write_single(&source("copy"));
    copy.write_shards(&source("copy-in-shards"), 2);
    let mut wider = copy.clone();
    wider.tensor("lm_head.weight").dtype = "F32".to_string();
    wider.tensor("lm_head.weight").bytes = as_f32(&embedding.bytes);
    wider.write_single(&source("wider"));
    let mut head_only = copy.clone();
    head_only.tensors.retain(|tensor| tensor.name != "model.embed_tokens.weight");
    head_only.write_single(&source("head-only"));
    for kind in ["copy", "copy-in-shards", "wider", "head-only"] {
        let made = convert(&source(kind), &dir.path().join(format!("{kind}.gguf")), &["-q", "Q4_K_M"]);
        assert!(model(&made) == wanted, "{kind} gives another model");
        let verified = nibble(["verify", made.to_str().unwrap(), "--source", source(kind).to_str().unwrap()]);
        has(&stdout(&verified), &["all 38 tensors are identical"]);
    }
}

#[test]
fn two_models_whose_names_have_dots_do_not_share_the_names_of_their_parts() {
    let dir = folder();
    for name in ["Yi-1.5-6B-Q8_0", "Yi-1.5-9B-Q8_0.gguf"] {
        convert(&yi_nano(), &dir.path().join(name), &["-q", "Q8_0", "--split-max-size", "4M", "--force"]);
    }
    let names = files(dir.path());
    let of = |start: &str| names.iter().filter(|name| name.starts_with(start) && name.ends_with(".gguf")).count();
    assert_eq!((of("Yi-1.5-6B-Q8_0-0000"), of("Yi-1.5-9B-Q8_0-0000")), (names.len() / 2, names.len() / 2), "{names:?}");
}

#[test]
fn what_surrounds_the_names_of_tensors_changes_nothing() {
    let dir = folder();
    let wanted = model(&convert(&yi_nano(), &dir.path().join("wanted.gguf"), &["-q", "Q4_K_M"]));
    let source = |kind: &str| dir.path().join(kind).join(NAME);
    let mut left_over = Variation::of_yi_nano();
    left_over.config.insert(
        "quantization_config".to_string(),
        serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
    );
    left_over.write_single(&source("key"));
    for (kind, prefix) in [("compiled", "_orig_mod."), ("parallel", "module."), ("peft", "base_model.model.")] {
        let mut nano = Variation::of_yi_nano();
        nano.tensors.iter_mut().for_each(|tensor| tensor.name = format!("{prefix}{}", tensor.name));
        nano.write_shards(&source(kind), 2);
    }
    let mut with_more = Variation::of_yi_nano();
    for name in ["v_head.summary.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
        let tensor = with_more.tensor("model.norm.weight").clone();
        with_more.tensors.push(crate::support::Tensor { name: name.to_string(), ..tensor });
    }
    with_more.write_single(&source("more"));
    for (kind, words) in [
        ("key", "'quantization_config' (bitsandbytes), but no tensor is quantized"),
        ("compiled", "begin with '_orig_mod.model.' (torch.compile)"),
        ("parallel", "begin with 'module.model.'"),
        ("peft", "begin with 'base_model.model.model.' (PEFT)"),
        (
            "more",
            "2 tensors that no text is made with are left out: model.layers.0.self_attn.rotary_emb.inv_freq, v_head",
        ),
    ] {
        let out = dir.path().join(format!("{kind}.gguf"));
        let made = nibble(["convert", source(kind).to_str().unwrap(), "-q", "Q4_k", "-o", out.to_str().unwrap()]);
        stdout(&made);
        has(&String::from_utf8(made.stderr).unwrap(), &[words]);
        assert!(model(&out) == wanted, "{kind} gives another model");
    }
}
