//! `nibble verify` sees what is wrong with a file, says so, and exits accordingly; and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use nibble::convert::{self, Importance, provenance};
use nibble::gguf::{Gguf, Layout, Metadata, TensorInfo};
use nibble::recipe::Recipe;
use nibble::verify::{Padding, Report, Sample, TensorVerdict, Verification, VerifyOptions};
use serde_json::Value;

use crate::support::{Variation, convert, error, files, folder, has, nibble, stdout, yi_nano};

/// Runs the program; gives its exit code and what it printed on stdout.
fn verify(file: &Path, more: &[&str]) -> (i32, String) {
    let output = nibble(["verify", file.to_str().unwrap()].iter().chain(more));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.is_empty(), "{stderr}");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// Verifies against the bundled checkpoint.
fn against_nano(file: &Path, more: &[&str]) -> (i32, String) {
    verify(file, &[&["--source", yi_nano().to_str().unwrap()], more].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap()
}

/// Verifies with the library.
fn report(file: &Path, source: Option<&Path>, options: VerifyOptions) -> Report {
    Verification::prepare(file, source, options).unwrap().execute(&|_, _| (), &AtomicBool::new(false)).unwrap()
}

fn made(dir: &Path, recipe: &str) -> PathBuf {
    convert(&yi_nano(), &dir.join(format!("{recipe}.gguf")), &["-q", recipe])
}

/// Where a tensor's bytes begin in its file.
fn offset(file: &Path, tensor: &str) -> usize {
    let gguf = Gguf::open(file).unwrap();
    gguf.location(gguf.index_of(tensor).unwrap()).1.start
}

/// Changes bytes of a file.
fn edit(file: &Path, at: usize, change: impl Fn(&mut [u8])) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes[at..]);
    fs::write(file, bytes).unwrap();
}

/// Writes a file with other metadata, and the same tensors.
fn with_metadata(file: &Path, to: &Path, change: impl Fn(&mut Metadata)) {
    let gguf = Gguf::open(file).unwrap();
    let mut metadata = gguf.metadata().clone();
    change(&mut metadata);
    let layout = Layout::new(&metadata, gguf.tensors().to_vec(), 32, None).unwrap();
    layout.write_part(0, &mut fs::File::create(to).unwrap(), |i| gguf.data(i)).unwrap();
}

#[test]
fn what_every_recipe_makes_verifies() {
    let dir = folder();
    for recipe in Recipe::all() {
        let report = report(&made(dir.path(), &recipe.name), Some(&yi_nano()), VerifyOptions::default());
        assert!(report.is_right(), "{}: {report:?}", recipe.name);
        assert!(report.tensors.iter().all(|tensor| tensor.comparison == TensorVerdict::Same), "{}", recipe.name);
        assert_eq!(report.checked_bytes, report.tensor_bytes);
    }
}

#[test]
fn the_last_line_says_it_all() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    let (code, text) = verify(&file, &[]);
    has(&text, &["nibble 0.1.0, recipe Q4_K_M", "yi-nano (1 file of weights)"]);
    let name = file.display().to_string();
    let wanted = format!("{name} is intact: all 39 tensors hold only finite numbers");
    assert_eq!((code, last_line(&text)), (0, wanted.as_str()));

    let (code, text) = against_nano(&file, &[]);
    has(&text, &["39 of 39 identical", "1 of 1 have the recorded BLAKE3"]);
    let source = yi_nano().display().to_string();
    let version = env!("CARGO_PKG_VERSION");
    let wanted = format!("{name} is what nibble {version} makes from {source}: all 39 tensors are identical");
    assert_eq!((code, last_line(&text)), (0, wanted.as_str()));
}

#[test]
fn a_flipped_bit_is_found_where_it_is() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    // Row 2 of 256 weights, a super-block: the last of its codes.
    edit(&file, offset(&file, "blk.1.attn_q.weight") + 3 * 144 - 1, |bytes| bytes[0] ^= 0x40);
    // In itself the file is as good as before.
    assert_eq!(verify(&file, &[]).0, 0);
    let (code, text) = against_nano(&file, &[]);
    assert_eq!(code, 1);
    has(&text, &["blk.1.attn_q.weight", "1 of 256 blocks differ from the source's, the first at row 2, column 0"]);
    has(last_line(&text), &["is not what nibble", ": 1 of 39 tensors differs"]);

    let (code, text) = against_nano(&file, &["--json"]);
    let json = json(&text);
    assert_eq!((code, &json["ok"]), (1, &Value::Bool(false)));
    let differing: Vec<_> =
        json["tensors"].as_array().unwrap().iter().filter(|tensor| tensor["comparison"] != "same").collect();
    assert_eq!(differing.len(), 1);
    assert_eq!(differing[0]["name"], "blk.1.attn_q.weight");
    assert_eq!(differing[0]["differing"], serde_json::json!({"blocks": 1, "first_block": 2, "row": 2, "column": 0}));
}

#[test]
fn a_scale_that_is_no_number_is_found_without_the_source() {
    let dir = folder();
    for (recipe, block_bytes, scale_at) in [("Q4_0", 18, 0), ("Q6_K", 210, 208), ("Q5_1", 24, 2), ("BF16", 2, 0)] {
        let file = made(dir.path(), recipe);
        let at = offset(&file, "blk.2.ffn_up.weight");
        for block in [700, 703] {
            edit(&file, at + block * block_bytes + scale_at, |bytes| bytes[..2].copy_from_slice(&[0xff, 0xff]));
        }
        let report = report(&file, None, VerifyOptions::default());
        let tensor = report.tensors.iter().find(|tensor| tensor.not_finite.is_some()).unwrap();
        let found = tensor.not_finite.unwrap();
        assert_eq!((tensor.info.name.as_str(), found.n, found.first), ("blk.2.ffn_up.weight", 2, 700), "{recipe}");
        let per_row = 256 / tensor.info.ty.block_len() as u64;
        let (row, column) = (700 / per_row, 700 % per_row * tensor.info.ty.block_len() as u64);
        assert_eq!(tensor.position(700), (row, column));

        let (code, text) = verify(&file, &[]);
        has(&text, &[&format!("the first at row {row}, column {column}")]);
        assert_eq!(code, 1);
        has(last_line(&text), &["is damaged or was made incorrectly: 1 of 39 tensors holds NaN or infinity"]);
    }
}

#[test]
fn bytes_that_belong_to_nothing_are_zero_and_end_with_the_file() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    // A header that does not end at a multiple of 32, whatever it says.
    let gap = (0..32)
        .find_map(|n| {
            let to = dir.path().join("padded.gguf");
            with_metadata(&file, &to, |metadata| metadata.set("general.description", "x".repeat(n)));
            let gguf = Gguf::open(&to).unwrap();
            gguf.gaps().first().map(|gap| gap.bytes.clone()).filter(|gap| gap.len() > 2)
        })
        .unwrap();
    let padded = dir.path().join("padded.gguf");
    assert!(report(&padded, None, VerifyOptions::default()).is_right());
    edit(&padded, gap.start + 1, |bytes| bytes[0] = 1);
    let found = report(&padded, None, VerifyOptions::default());
    let wanted = Padding::NotZero { file: padded.clone(), offset: gap.start as u64 + 1, n_bytes: 1 };
    assert_eq!(found.padding, [wanted]);
    let (code, text) = verify(&padded, &[]);
    assert_eq!(code, 1);
    has(&text, &[&format!("byte {} is not zero", gap.start + 1), "1 gap between tensors is not empty"]);

    let length = fs::metadata(&file).unwrap().len();
    fs::write(&file, [fs::read(&file).unwrap(), vec![0; 40]].concat()).unwrap();
    let found = report(&file, None, VerifyOptions::default());
    assert_eq!(found.padding, [Padding::TooLong { file: file.clone(), bytes: length..length + 40 }]);
    has(&verify(&file, &[]).1, &["1 file continues after its last tensor"]);
}

#[test]
fn a_file_that_is_cut_short_is_an_error() {
    let dir = folder();
    let file = made(dir.path(), "Q4_0");
    let bytes = fs::read(&file).unwrap();
    for length in [bytes.len() - 100, 5000, 40, 0] {
        fs::write(&file, &bytes[..length]).unwrap();
        for more in [&[][..], &["--json"]] {
            let output = nibble([&["verify", file.to_str().unwrap()], more].concat());
            assert!(output.stdout.is_empty());
            has(&error(&output), &["Q4_0.gguf", "again"]);
        }
    }
}

#[test]
fn a_source_that_has_changed_is_seen_in_its_hash() {
    let dir = folder();
    let source = dir.path().join("yi-nano");
    let nano = Variation::of_yi_nano();
    nano.write_shards(&source, 3);
    let file = convert(&source, &dir.path().join("x.gguf"), &["-q", "Q4_0"]);
    assert!(report(&file, Some(&source), VerifyOptions::default()).is_right());

    // The least bit of one weight: too little for four bits, and enough for the hash.
    let shard = source.join("model-00002-of-00003.safetensors");
    let last = fs::metadata(&shard).unwrap().len() as usize - 2;
    edit(&shard, last, |bytes| bytes[0] ^= 1);
    let found = report(&file, Some(&source), VerifyOptions::default());
    assert!(!found.is_right());
    let files = &found.origin.as_ref().unwrap().files;
    let changed: Vec<_> = files.iter().filter(|file| file.differs()).map(|file| file.name.as_str()).collect();
    assert_eq!(changed, ["model-00002-of-00003.safetensors"]);
    let found_hash = files[1].found.as_deref().unwrap();
    assert_eq!(found_hash, blake3::hash(&fs::read(&shard).unwrap()).to_hex().as_str());
    let (code, text) = verify(&file, &["--source", source.to_str().unwrap()]);
    assert_eq!(code, 1);
    has(&text, &["2 of 3 have the recorded BLAKE3", "changed since the file was converted"]);
    has(last_line(&text), &["1 source file is not the one it was converted from"]);

    // The same weights in other files are the same weights, of which the file was not made.
    let other = dir.path().join("other/yi-nano");
    nano.write_shards(&other, 2);
    let found = report(&file, Some(&other), VerifyOptions::default());
    assert!(found.tensors.iter().all(|tensor| tensor.comparison == TensorVerdict::Same));
    let files = &found.origin.as_ref().unwrap().files;
    assert_eq!(files.iter().filter(|file| file.exists && file.recorded.is_none()).count(), 2);
    assert_eq!(files.iter().filter(|file| !file.exists).count(), 3);
}

#[test]
fn other_weights_differ_in_every_block_they_have() {
    let dir = folder();
    let file = made(dir.path(), "Q8_0");
    let mut nano = Variation::of_yi_nano();
    // Twice the weights make twice the scale.
    let tensor = nano.tensor("model.layers.0.mlp.down_proj.weight");
    tensor.bytes = [0x00, 0x3f].repeat(tensor.bytes.len() / 2);
    let source = dir.path().join("yi-nano");
    nano.write_single(&source);
    let found = report(&file, Some(&source), VerifyOptions::default());
    let tensor = found.tensors.iter().find(|tensor| tensor.info.name == "blk.0.ffn_down.weight").unwrap();
    match tensor.comparison {
        TensorVerdict::Differs(blocks) => assert_eq!((blocks.n, blocks.first), (tensor.n_blocks, 0)),
        ref other => panic!("{other:?}"),
    }
    assert_eq!(found.n_differing(), 1);
}

#[test]
fn a_type_that_the_recipe_does_not_give_is_named() {
    let dir = folder();
    // Types given by hand are recorded, and belong to the recipe.
    let by_hand = convert(&yi_nano(), &dir.path().join("a.gguf"), &["-q", "Q4_0", "--type", "output=Q8_0"]);
    assert!(report(&by_hand, Some(&yi_nano()), VerifyOptions::default()).is_right());
    // A record that does not fit the file.
    let forgotten = dir.path().join("b.gguf");
    with_metadata(&by_hand, &forgotten, |metadata| drop(metadata.remove(provenance::OVERRIDES)));
    let found = report(&forgotten, Some(&yi_nano()), VerifyOptions::default());
    let types = &found.origin.as_ref().unwrap().types;
    assert_eq!(types.iter().map(|other| other.tensor.as_str()).collect::<Vec<_>>(), ["output.weight"]);
    assert!(found.tensors.iter().all(|tensor| tensor.comparison == TensorVerdict::Same));
    let (code, text) = against_nano(&forgotten, &[]);
    assert_eq!(code, 1);
    has(&text, &["is Q8_0, but the recipe chooses Q6_K"]);

    // Another text of the recipe says nothing of the file.
    let older = dir.path().join("c.gguf");
    with_metadata(&by_hand, &older, |metadata| metadata.set(provenance::RECIPE_BLAKE3, "0".repeat(64)));
    let (code, text) = against_nano(&older, &[]);
    assert_eq!(code, 0, "{text}");
    has(&text, &["not the built-in recipe of that name"]);
    // Nor does one of somebody's own.
    with_metadata(&by_hand, &older, |metadata| metadata.set(provenance::RECIPE_NAME, "MINE"));
    let (code, text) = against_nano(&older, &[]);
    assert_eq!(code, 0, "{text}");
    has(&text, &["not a built-in recipe"]);
    // An override that fits no tensor fits no file.
    with_metadata(&by_hand, &older, |metadata| metadata.set(provenance::OVERRIDES, vec!["nose=Q8_0".to_string()]));
    let (code, text) = against_nano(&older, &[]);
    assert_eq!(code, 1);
    has(&text, &["no tensor matches 'nose'"]);
}

#[test]
fn keys_that_differ_are_listed_and_those_of_the_making_are_not() {
    let dir = folder();
    let file = made(dir.path(), "Q4_0");
    let changed = dir.path().join("changed.gguf");
    with_metadata(&file, &changed, |metadata| {
        metadata.set("llama.rope.freq_base", 1e4f32);
        metadata.set("evil\x1b[2J", "零");
        metadata.remove("tokenizer.ggml.add_bos_token");
        metadata.set(provenance::VERSION, "0.0.9");
    });
    assert_eq!(verify(&changed, &[]).0, 0);
    let (code, text) = against_nano(&changed, &[]);
    assert_eq!(code, 1);
    has(&text, &["llama.rope.freq_base", "10000.0", "5000000.0", "evil\\u{1b}[2J", "tokenizer.ggml.add_bos_token"]);
    has(last_line(&text), &[": 3 metadata keys differ"]);
    let text = against_nano(&changed, &["--json"]).1;
    let keys = &json(&text)["origin"]["metadata"];
    assert_eq!(keys.as_array().unwrap().len(), 3);
    assert_eq!(keys[0], serde_json::json!({"key": "llama.rope.freq_base", "found": 1e4, "wanted": 5e6}));
}

#[test]
fn a_folder_may_be_called_otherwise_than_when_it_was_converted() {
    let dir = folder();
    let renamed = dir.path().join("零一万物 nano");
    Variation::of_yi_nano().write_single(&renamed);
    let file = convert(&renamed, &dir.path().join("一.gguf"), &["-q", "Q4_0"]);
    let other = dir.path().join("other");
    fs::rename(&renamed, &other).unwrap();
    let (code, text) = verify(&file, &["--source", other.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    has(&text, &["the source was then called 零一万物 nano"]);
    // A name that nothing explains is a difference.
    let named = dir.path().join("named.gguf");
    with_metadata(&file, &named, |metadata| metadata.set("general.name", "nose"));
    let (code, text) = verify(&named, &["--source", other.to_str().unwrap()]);
    assert_eq!(code, 1);
    has(&text, &["general.name"]);
}

#[test]
fn tensors_of_another_model_are_named() {
    let dir = folder();
    let file = made(dir.path(), "Q4_0");
    let mut tied = Variation::of_yi_nano();
    tied.tensors.retain(|t| t.name != "lm_head.weight");
    tied.config.insert("tie_word_embeddings".to_string(), true.into());
    let source = dir.path().join("yi-nano");
    tied.write_single(&source);
    let found = report(&file, Some(&source), VerifyOptions::default());
    let comparison = |report: &Report, name: &str| {
        report.tensors.iter().find(|tensor| tensor.info.name == name).unwrap().comparison.clone()
    };
    assert_eq!(comparison(&found, "output.weight"), TensorVerdict::NotInSource);
    assert!(!found.is_right());
    // And the other way round.
    let of_tied = convert(&source, &dir.path().join("tied.gguf"), &["-q", "Q4_0"]);
    let found = report(&of_tied, Some(&yi_nano()), VerifyOptions::default());
    assert_eq!(found.origin.as_ref().unwrap().missing, ["output.weight"]);
    has(&against_nano(&of_tied, &[]).1, &["output.weight", "missing"]);

    // A matrix of other sizes is not compared, and not read beyond its end either.
    let gguf = Gguf::open(&file).unwrap();
    let mut infos = gguf.tensors().to_vec();
    let at = gguf.index_of("blk.0.ffn_up.weight").unwrap();
    infos[at] = TensorInfo { dims: vec![infos[at].dims[0] * 2, infos[at].dims[1] / 2], ..infos[at].clone() };
    let reshaped = dir.path().join("reshaped.gguf");
    let layout = Layout::new(gguf.metadata(), infos, 32, None).unwrap();
    layout.write_part(0, &mut fs::File::create(&reshaped).unwrap(), |i| gguf.data(i)).unwrap();
    let found = report(&reshaped, Some(&yi_nano()), VerifyOptions::default());
    assert_eq!(comparison(&found, "blk.0.ffn_up.weight"), TensorVerdict::Shape(vec![256, 768]));
    has(&against_nano(&reshaped, &[]).1, &["is 512 x 384, the source's 256 x 768"]);
}

#[test]
fn all_parts_of_a_split_model_are_checked() {
    let dir = folder();
    convert(&yi_nano(), &dir.path().join("split.gguf"), &["-q", "Q4_0", "--split-max-size", "1M"]);
    let parts: Vec<_> = files(dir.path()).into_iter().map(|name| dir.path().join(name)).collect();
    assert!(parts.len() > 2, "{parts:?}");
    let (code, text) = against_nano(&parts[1], &[]);
    assert_eq!(code, 0, "{text}");
    has(&text, &[&format!("in {} parts", parts.len()), "39 of 39 identical"]);
    // A folder with one model in it stands for that.
    assert_eq!(verify(dir.path(), &[]).0, 0);

    let last = parts.last().unwrap();
    let in_last = Gguf::open(last).unwrap().tensors().last().unwrap().name.clone();
    let at = offset(last, &in_last);
    edit(last, at, |bytes| bytes[0] ^= 1);
    let (code, text) = against_nano(&parts[0], &[]);
    assert_eq!(code, 1);
    has(&text, &[&in_last]);
    fs::remove_file(last).unwrap();
    has(&error(&nibble(["verify", parts[0].to_str().unwrap()])), &["of which 1 are missing"]);
}

#[test]
fn a_seed_brings_a_sample_back() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    let sample = |share, seed| VerifyOptions { sample: Some(Sample { share, seed }), ..VerifyOptions::default() };
    let drawn = |seed| {
        let report = report(&file, Some(&yi_nano()), sample(0.1, seed));
        assert!(report.is_right() && report.share() > 0.0 && report.share() < 0.5, "{}", report.share());
        report.tensors.iter().map(|tensor| tensor.n_blocks).collect::<Vec<_>>()
    };
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));

    let (code, text) = against_nano(&file, &["--sample", "10%", "--seed", "7"]);
    assert_eq!(code, 0);
    has(&text, &["drawn with --seed 7", "names only"]);
    has(last_line(&text), &["as far as checked: nothing differs in a sample of"]);
    // The seed that it chose itself is told.
    let text = against_nano(&file, &["--sample", "0.1", "--json"]).1;
    let seed = json(&text)["sample"]["seed"].as_u64().unwrap().to_string();
    let blocks = |text: &str| {
        json(text)["tensors"].as_array().unwrap().iter().map(|t| t["checked_blocks"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(blocks(&text), blocks(&against_nano(&file, &["--sample", "10%", "--json", "--seed", &seed]).1));

    // A file that is wrong all over is wrong in any part.
    let other = dir.path().join("yi-nano");
    let mut nano = Variation::of_yi_nano();
    nano.tensors.iter_mut().for_each(|t| t.bytes = [0x00, 0x3f].repeat(t.bytes.len() / 2));
    nano.write_single(&other);
    for seed in 0..5 {
        assert!(!report(&file, Some(&other), sample(0.05, seed)).is_right());
    }
    // All of it, if that is asked for.
    let report = report(&file, Some(&yi_nano()), sample(1.0, 1));
    assert_eq!(report.checked_bytes, report.tensor_bytes);
    assert!(report.is_right());
}

#[test]
fn threads_do_not_change_what_is_found() {
    let dir = folder();
    let file = made(dir.path(), "Q4_K_M");
    let at = offset(&file, "token_embd.weight");
    edit(&file, at, |bytes| bytes.iter_mut().take(400_000).step_by(10_007).for_each(|byte| *byte ^= 0x10));
    let found = |threads| {
        let mut json = json(&against_nano(&file, &["--json", "--threads", threads]).1);
        json.as_object_mut().unwrap().remove("seconds");
        json
    };
    let one = found("1");
    assert_eq!(one["tensors"].as_array().unwrap().iter().filter(|t| t["comparison"] == "differs").count(), 1);
    assert_eq!(one, found("7"));
}

#[test]
fn what_was_made_with_importance_needs_it() {
    let dir = folder();
    let file = dir.path().join("x.gguf");
    let mut values: std::collections::HashMap<_, _> = (0..4)
        .flat_map(|layer| ["ffn_up", "attn_q"].map(|name| format!("blk.{layer}.{name}.weight")))
        .map(|name| (name, (0..256).map(|i| 1.0 + (i % 7) as f32).collect::<Vec<f32>>()))
        .collect();
    let books = |values| Importance::new("books".to_string(), blake3::hash(b"books"), values);
    let importance = books(values.clone());
    let options = convert::Options {
        output: Some(file.clone()),
        importance: Some(importance.clone()),
        ..convert::Options::new(Recipe::find("Q4_K_M").unwrap().clone())
    };
    convert::Job::prepare(&yi_nano(), options).unwrap().execute(&(), &AtomicBool::new(false)).unwrap();

    let (code, text) = against_nano(&file, &[]);
    assert_eq!(code, 0, "{text}");
    has(&text, &["importance books", "not checked: made with importance"]);
    has(last_line(&text), &["of 39 tensors are identical, and", "could not be checked"]);
    let with = |importance| {
        report(&file, Some(&yi_nano()), VerifyOptions { importance: Some(importance), ..VerifyOptions::default() })
    };
    let report = with(importance);
    assert!(report.is_right(), "{report:?}");
    assert!(report.tensors.iter().all(|tensor| tensor.comparison == TensorVerdict::Same));
    // Another importance makes other bytes.
    values.get_mut("blk.2.attn_q.weight").unwrap()[..128].fill(40.0);
    let report = with(books(values));
    let differing: Vec<_> = report.tensors.iter().filter(|t| t.differs()).map(|t| t.info.name.as_str()).collect();
    assert_eq!(differing, ["blk.2.attn_q.weight"]);
}

#[test]
fn a_file_made_from_a_file_verifies_against_either_source() {
    let dir = folder();
    let between = made(dir.path(), "F16");
    let file = convert(&between, &dir.path().join("x.gguf"), &["-q", "Q4_K_M"]);
    assert!(report(&file, Some(&between), VerifyOptions::default()).is_right());
    // Requantized with leave.
    let twice = convert(&file, &dir.path().join("y.gguf"), &["-q", "Q4_0", "--allow-requantize"]);
    assert!(report(&twice, Some(&file), VerifyOptions::default()).is_right());
    let itself = nibble(["verify", file.to_str().unwrap(), "--source", file.to_str().unwrap()]);
    has(&error(&itself), &["is the file that is verified, not its source", "--source"]);
}

#[test]
fn quiet_says_only_what_is_wrong() {
    let dir = folder();
    let file = made(dir.path(), "Q4_0");
    assert_eq!(stdout(&nibble(["verify", file.to_str().unwrap(), "--quiet"])), "");
    let at = offset(&file, "blk.0.ffn_up.weight");
    edit(&file, at, |bytes| bytes[..2].copy_from_slice(&[0, 0x7c]));
    let output = nibble(["verify", file.to_str().unwrap(), "--quiet"]);
    assert!(output.stdout.is_empty());
    has(&error(&output), &["Q4_0.gguf is damaged", "1 of 39 tensors holds NaN or infinity"]);
}

#[test]
fn wrong_arguments_are_told_what_is_right() {
    let dir = folder();
    let file = made(dir.path(), "Q4_0");
    let fails = |args: &[&str]| error(&nibble([&["verify"], args].concat()));
    let (file, nano) = (file.to_str().unwrap(), yi_nano().display().to_string());
    has(&fails(&["nowhere.gguf"]), &["nowhere.gguf: cannot be opened"]);
    has(&fails(&[&nano]), &["is a model folder", "--source"]);
    has(&fails(&[file, "--source", "nowhere"]), &["nowhere: no such file or folder"]);
    has(&fails(&[folder().path().to_str().unwrap()]), &["is a folder without a GGUF file"]);
    for wrong in [&["--sample", "5"][..], &["--seed", "1"], &["--sample", "0%"], &["--threads", "0"]] {
        let output = nibble([&["verify", file], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

/// What llama.cpp's own quantizer makes is the same to the bit, and can be verified all the same.
#[test]
#[cfg(all(feature = "llama", target_arch = "x86_64"))]
fn a_file_of_llama_cpp_verifies() {
    let dir = folder();
    let (from, theirs) = (dir.path().join("from.gguf"), dir.path().join("theirs.gguf"));
    with_metadata(&made(dir.path(), "F32"), &from, |metadata| {
        provenance::KEYS.iter().for_each(|key| drop(metadata.remove(key)));
    });
    let recipe = Recipe::find("Q4_K_M").unwrap();
    crate::same_bytes_as_llama_cpp::llama_quantize(&from, &theirs, recipe.file_type, None);
    let report = report(&theirs, Some(&yi_nano()), VerifyOptions::default());
    assert!(report.is_right(), "{report:?}");
    assert!(report.provenance.version.is_none());
    let (code, text) = against_nano(&theirs, &[]);
    assert_eq!(code, 0, "{text}");
    has(&text, &["39 of 39 identical", "the file records no hashes"]);
    assert!(!text.contains("Made by"), "{text}");
}
