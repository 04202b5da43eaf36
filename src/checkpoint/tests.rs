use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::testing::{PickledTensor, pickle_state_dict, rewrite_as_pytorch, rewrite_as_safetensors, write_zip};
use super::*;

fn yi_nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano")
}

/// A folder of these files, with an empty config.json unless they have one.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    for (name, data) in files {
        fs::write(dir.path().join(name), data).unwrap();
    }
    dir
}

/// A safetensors file with these tensors of three bytes each.
fn shard(names: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let tensors: Vec<_> = names.iter().map(|name| (name.to_string(), DType::U8, vec![3])).collect();
    let mut writer = safetensors::Writer::create(&path, &tensors, &[]).unwrap();
    for name in names {
        writer.write(&[name.as_bytes()[0]; 3]).unwrap();
    }
    writer.finish().unwrap();
    fs::read(path).unwrap()
}

fn index(entries: &[(&str, &str)]) -> Vec<u8> {
    let map: serde_json::Map<_, _> = entries.iter().map(|&(t, s)| (t.to_string(), s.into())).collect();
    serde_json::json!({"metadata": {"total_size": 6}, "weight_map": map}).to_string().into_bytes()
}

/// What opening `path` fails with; the folder's name is left out of the message.
fn message_in(dir: &Path, path: &Path) -> String {
    let message = Checkpoint::open(path).unwrap_err().to_string();
    message.replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR")
}

fn message(dir: &TempDir) -> String {
    message_in(dir.path(), dir.path())
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().map(|t| t.name.as_str()).collect()
}

const SHARD_1: &str = "model-00001-of-00002.safetensors";
const SHARD_2: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn yi_nano_opens_with_all_its_tensors() {
    let checkpoint = Checkpoint::open(&yi_nano()).unwrap();
    assert_eq!(checkpoint.name(), "yi-nano");
    // Embedding, output and last norm, and nine tensors in each of four layers.
    assert_eq!(checkpoint.tensors().len(), 3 + 9 * 4);
    assert!(checkpoint.tensors().iter().all(|t| t.dtype == DType::BF16 && t.float_type().is_ok()));
    assert!(checkpoint.tensors().is_sorted_by(|a, b| a.name < b.name));
    let k = checkpoint.tensor("model.layers.3.self_attn.k_proj.weight").unwrap();
    assert_eq!((k.shape.as_slice(), k.n_elements(), k.n_bytes()), (&[128, 256][..], 32768, 65536));
    assert_eq!(checkpoint.data(k).len(), 65536);
    let (map, range) = checkpoint.location(k);
    assert_eq!(&map.bytes()[range], checkpoint.data(k));
    assert_eq!(checkpoint.tensor("model.layers.4.self_attn.k_proj.weight"), None);
    assert_eq!(checkpoint.config().u64("hidden_size").unwrap(), 256);
    assert_eq!(checkpoint.config().strs("architectures").unwrap(), ["LlamaForCausalLM"]);
    assert_eq!(checkpoint.generation_config().unwrap().u64s("eos_token_id").unwrap(), [2]);
    assert!(checkpoint.chat_template().unwrap().contains("<|im_start|>"));
    assert!(checkpoint.tokenizer_model().is_some() && checkpoint.tokenizer_json().is_none());
    assert_eq!(checkpoint.card(), &ModelCard::default());
    assert_eq!(checkpoint.warnings(), [""; 0]);
    // The norms of a trained model lie around one, so that the bytes are where they should be.
    let norm = checkpoint.data(checkpoint.tensor("model.norm.weight").unwrap());
    let mean =
        norm.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).sum::<f32>();
    assert!((0.1..10.0).contains(&(mean / 256.0)), "{mean}");
}

#[test]
fn every_form_of_a_checkpoint_gives_the_same_tensors() {
    let original = Checkpoint::open(&yi_nano()).unwrap();
    for (form, n_shards) in [("safetensors", 1), ("safetensors", 5), ("bin", 1), ("bin", 3)] {
        let dir = tempfile::tempdir().unwrap();
        match form {
            "safetensors" => rewrite_as_safetensors(&yi_nano(), dir.path(), n_shards).unwrap(),
            _ => rewrite_as_pytorch(&yi_nano(), dir.path(), n_shards).unwrap(),
        }
        for keep_index in [true, false] {
            if !keep_index {
                let _ = fs::remove_file(dir.path().join("model.safetensors.index.json"));
                let _ = fs::remove_file(dir.path().join("pytorch_model.bin.index.json"));
            }
            let other = Checkpoint::open(dir.path()).unwrap();
            assert_eq!(other.shards().len(), n_shards);
            assert_eq!(names(&other), names(&original));
            for (a, b) in original.tensors().iter().zip(other.tensors()) {
                assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{}", a.name);
                assert!(original.data(a) == other.data(b), "{} differs as {form} in {n_shards}", a.name);
            }
            assert_eq!(other.chat_template(), original.chat_template());
            assert_eq!(other.warnings(), [""; 0]);
        }
    }
}

#[test]
fn a_file_stands_for_its_folder_or_its_set() {
    let (a, b, c) = (shard(&["a"]), shard(&["b"]), shard(&["c"]));
    let dir = folder(&[(SHARD_1, &a), (SHARD_2, &b), ("model.safetensors", &c), (INDEX, &index(&[("a", SHARD_1)]))]);
    let open = |name: &str| Checkpoint::open(&dir.path().join(name)).unwrap();
    assert_eq!(names(&open("model.safetensors")), ["c"]);
    assert_eq!(names(&open(SHARD_2)), ["a", "b"]);
    assert_eq!(names(&open(INDEX)), ["a"]);
    let whole = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(names(&whole), ["c"]);
    assert_eq!(whole.warnings().len(), 1, "{:?}", whole.warnings());
    assert!(whole.warnings()[0].contains("the shards are left out"));
    assert!(message_in(dir.path(), &dir.path().join("config.json")).contains("not a file of weights"));
    fs::write(dir.path().join("x.gguf"), "GGUF").unwrap();
    assert_eq!(
        message_in(dir.path(), &dir.path().join("x.gguf")),
        "x.gguf: this is a GGUF file, not a Hugging Face checkpoint; give it to nibble as it is"
    );
    assert!(message_in(dir.path(), &dir.path().join("nowhere")).ends_with("nowhere: no such file or folder"));
}

#[test]
fn safetensors_are_preferred_to_pytorch_unless_only_their_index_is_there() {
    let dir = tempfile::tempdir().unwrap();
    rewrite_as_pytorch(&yi_nano(), dir.path(), 1).unwrap();
    fs::write(dir.path().join(INDEX), index(&[("a", SHARD_1)])).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.shards().next().unwrap(), dir.path().join("pytorch_model.bin"));
    fs::write(dir.path().join("model.safetensors"), shard(&["a"])).unwrap();
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["a"]);
}

#[test]
fn a_missing_shard_is_named_with_what_to_do() {
    let dir = folder(&[(SHARD_1, &shard(&["a"])), (INDEX, &index(&[("a", SHARD_1), ("b", SHARD_2)]))]);
    assert_eq!(
        message(&dir),
        "model-00002-of-00002.safetensors: named by model.safetensors.index.json, but not in the folder (1 of 2 shards \
         are missing); download the model again, or just this file"
    );
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    assert!(message(&dir).contains("named by the names of the other shards, but not in the folder"));
    fs::remove_file(dir.path().join(SHARD_1)).unwrap();
    fs::write(dir.path().join(INDEX), index(&[("a", SHARD_1)])).unwrap();
    assert!(message(&dir).contains("1 of 1 shards are missing"));
}

#[test]
fn an_index_that_lies_is_refused() {
    let (a, b) = (shard(&["a"]), shard(&["b"]));
    let dir = folder(&[(SHARD_1, &a), (SHARD_2, &b), (INDEX, &index(&[("a", SHARD_1), ("b", SHARD_1)]))]);
    assert_eq!(
        message(&dir),
        "model.safetensors.index.json: names tensor b in model-00001-of-00002.safetensors, which does not hold it; \
         download both files again"
    );
    for outside in ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""] {
        fs::write(dir.path().join(INDEX), index(&[("a", outside)])).unwrap();
        assert_eq!(
            message(&dir),
            format!(
                "model.safetensors.index.json: key weight_map: wanted the name of a file in the same folder, found {outside}"
            )
        );
    }
    fs::write(dir.path().join(INDEX), "{\"metadata\": {}}").unwrap();
    assert_eq!(
        message(&dir),
        "model.safetensors.index.json, line 1, column 16: not valid JSON: missing field `weight_map`"
    );
    fs::write(dir.path().join(INDEX), format!("{{\"weight_map\": {{\"a\": \"{SHARD_1}\", \"a\": \"{SHARD_2}\"}}}}"))
        .unwrap();
    assert!(message(&dir).contains("the key \"a\" is given twice"));
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = folder(&[(SHARD_1, &shard(&["a", "b"])), (SHARD_2, &shard(&["b", "c"]))]);
    assert_eq!(
        message(&dir),
        format!(
            "tensor b is in two files of one set, {SHARD_1} and {SHARD_2}, and {INDEX} is missing, which says which of the \
             two counts; download that file"
        )
    );
    // Files that are no set: one of them is another model.
    let dir = folder(&[("one.safetensors", &shard(&["b"])), ("two.safetensors", &shard(&["b", "c"]))]);
    assert_eq!(
        message(&dir),
        "tensor b is in two files, one.safetensors and two.safetensors; remove the one that is not part of the model"
    );
}

#[test]
fn of_two_sets_of_shards_one_is_read_with_a_warning() {
    let names_of = |total: usize| (1..=total).map(move |n| format!("model-{n:05}-of-{total:05}.safetensors"));
    let dir = folder(&[]);
    for (name, tensor) in names_of(2).zip(["a", "b"]).chain(names_of(3).zip(["x", "y", "z"])) {
        fs::write(dir.path().join(name), shard(&[tensor])).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(names(&checkpoint), ["a", "b"]);
    let [warning] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
    assert!(
        warning.contains("two sets of shards") && warning.contains("model-00001-of-00003.safetensors"),
        "{warning}"
    );
}

#[test]
fn of_a_tensor_in_two_shards_that_counts_which_the_index_names() {
    for (wanted, other) in [(SHARD_1, SHARD_2), (SHARD_2, SHARD_1)] {
        let entries = [("a", SHARD_1), ("b", wanted), ("c", SHARD_2)];
        let dir = folder(&[(SHARD_1, &shard(&["a", "b"])), (SHARD_2, &shard(&["b", "c"])), (INDEX, &index(&entries))]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(names(&checkpoint), ["a", "b", "c"]);
        let path = checkpoint.location(checkpoint.tensor("b").unwrap()).0.path();
        assert_eq!(path.file_name().unwrap(), wanted);
        let [warning] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
        let words = format!(
            "a tensor is in another shard too, such as b in {other}; those count that it names, here in {wanted}"
        );
        assert!(warning.ends_with(&words), "{warning}");
    }
}

#[test]
fn tensors_that_the_index_does_not_name_are_left_out_with_a_warning() {
    let dir = folder(&[(SHARD_1, &shard(&["a", "x", "y"])), (INDEX, &index(&[("a", SHARD_1)]))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(names(&checkpoint), ["a"]);
    assert!(
        checkpoint.warnings()[0].ends_with(
            "2 tensors in the shards are not in it, such as x in model-00001-of-00002.safetensors; they are left out"
        ),
        "{:?}",
        checkpoint.warnings()
    );
}

#[test]
fn a_cut_or_unfetched_shard_is_named() {
    let whole = shard(&["a"]);
    let dir = folder(&[("model.safetensors", &whole[..whole.len() - 1])]);
    assert_eq!(
        message(&dir),
        format!(
            "model.safetensors: the download was cut short: wanted {} bytes, found {}; download it again",
            whole.len(),
            whole.len() - 1
        )
    );
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n";
    fs::write(dir.path().join("model.safetensors"), pointer).unwrap();
    assert!(
        message(&dir)
            .starts_with("model.safetensors: this is a Git LFS pointer, not the file itself, which has 499723")
    );
    fs::write(dir.path().join("model.safetensors"), &whole).unwrap();
    fs::write(dir.path().join("tokenizer.model"), pointer).unwrap();
    assert!(message(&dir).starts_with("tokenizer.model: this is a Git LFS pointer"));
}

#[test]
fn a_folder_that_holds_no_model_says_what_it_holds() {
    let empty = tempfile::tempdir().unwrap();
    assert!(message(&empty).starts_with("DIR: the folder is empty; download a model into it"));
    assert_eq!(
        message(&folder(&[])),
        "DIR: no weights here; wanted model.safetensors, model-00001-of-000NN.safetensors, pytorch_model.bin or their shards"
    );
    assert!(
        message(&folder(&[("Yi.Q4_K_M.gguf", b"GGUF")]))
            .ends_with("; there is Yi.Q4_K_M.gguf, a GGUF file: give nibble that file")
    );
    assert!(
        message(&folder(&[("model.safetensors.part", b"")]))
            .ends_with("there is model.safetensors.part, of a download that has not ended")
    );
    assert!(message(&folder(&[("zero_to_fp32.py", b"")])).contains("run the script zero_to_fp32.py in it"));
    assert!(message(&folder(&[("weights.npz", b"")])).contains("there is weights.npz, which is not read"));
    let training = folder(&[]);
    for name in ["checkpoint-500", "checkpoint-1500"] {
        let inner = training.path().join(name);
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("config.json"), "{}").unwrap();
        fs::write(inner.join("model.safetensors"), shard(&["a"])).unwrap();
    }
    assert!(message(&training).ends_with("; there are some in its folder checkpoint-1500"));
    let adapter = folder(&[
        ("adapter_config.json", br#"{"base_model_name_or_path": "01-ai/Yi-34B"}"#),
        ("adapter_model.safetensors", &shard(&["a"])),
    ]);
    assert!(
        message(&adapter).starts_with(
            "DIR: this is an adapter (adapter_config.json), not a whole model; merge it into its base model (01-ai/Yi-34B)"
        ),
        "{}",
        message(&adapter)
    );
    let no_config = folder(&[("model.safetensors", &shard(&["a"]))]);
    fs::remove_file(no_config.path().join("config.json")).unwrap();
    assert!(message(&no_config).starts_with("DIR: config.json is missing"));
}

#[test]
fn files_of_other_names_are_read_where_there_is_nothing_else() {
    let dir = folder(&[("consolidated.safetensors", &shard(&["a"])), ("adapter_model.safetensors", &shard(&["z"]))]);
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["a"]);
    let dir = folder(&[("yi-00001-of-00002.safetensors", &shard(&["a"]))]);
    assert!(message(&dir).contains("yi-00002-of-00002.safetensors: named by"));
}

#[test]
fn a_tensor_of_a_type_that_is_not_converted_opens_and_is_refused_on_use() {
    let dir = folder(&[]);
    let tensors = [
        ("ids".to_string(), DType::I32, vec![1]),
        ("half".to_string(), DType::F16, vec![1]),
        ("quarter".to_string(), DType::from_name("F8_E4M3").unwrap(), vec![2]),
        ("mask".to_string(), DType::Bool, vec![0]),
    ];
    let mut writer = safetensors::Writer::create(&dir.path().join("model.safetensors"), &tensors, &[]).unwrap();
    writer.write(&[0; 8]).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let float = |name: &str| checkpoint.tensor(name).unwrap().float_type().map_err(|e| e.to_string());
    assert_eq!(float("half"), Ok(FloatType::F16));
    assert_eq!(
        float("quarter").unwrap_err(),
        "tensor quarter has type F8_E4M3; nibble converts from F64, F32, F16 and BF16; get the model's 16-bit release"
    );
    assert!(
        float("ids")
            .unwrap_err()
            .ends_with("weights in integers are quantized already: get the model's 16-bit original")
    );
    assert!(float("mask").unwrap_err().starts_with("tensor mask has type BOOL; nibble converts from"));
}

#[test]
fn what_torch_saved_opens_as_a_model() {
    let real = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch/state_dict.bin")).unwrap();
    let dir = folder(&[("pytorch_model.bin", &real)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensors().len(), 11);
    let (embed, head) = (checkpoint.tensor("embed").unwrap(), checkpoint.tensor("lm_head").unwrap());
    assert_eq!(checkpoint.data(embed).as_ptr(), checkpoint.data(head).as_ptr());
}

#[test]
fn the_test_pickler_writes_integers_of_every_width() {
    for len in [1u64, 255, 256, 65_535, 65_536, 0x7fff_ffff, 0x8000_0000, 0xff_ffff_ffff, 1 << 40, (1 << 62) + 7] {
        let tensor = PickledTensor {
            name: "w".into(),
            dtype: DType::U8,
            key: "k".into(),
            storage_len: len,
            offset: 0,
            shape: vec![1, 1, 1, len],
            strides: vec![len, len, len, 1],
        };
        let pickle = pickle_state_dict(&[tensor]);
        let state = pickle::read(&pickle).unwrap();
        assert_eq!(state.tensors[0].1.shape, [1, 1, 1, len]);
    }
}

#[test]
fn what_is_no_tensor_in_a_state_dict_is_left_out_with_a_warning() {
    let dir = folder(&[]);
    let tensor = PickledTensor {
        name: "w".into(),
        dtype: DType::U8,
        key: "0".into(),
        storage_len: 2,
        offset: 0,
        shape: vec![2],
        strides: vec![1],
    };
    let pickle = pickle_state_dict(&[tensor]);
    // Puts ("epoch", 3) in front of the first name.
    let first = pickle.windows(7).position(|w| w == b"(X\x01\0\0\0w").unwrap() + 1;
    let pickle = [&pickle[..first], b"X\x05\0\0\0epochK\x03", &pickle[first..]].concat();
    let mut bytes = std::io::Cursor::new(Vec::new());
    let entries = [("m/data.pkl".to_string(), &pickle[..]), ("m/data/0".to_string(), &[1, 2])];
    write_zip(&mut bytes, entries.into_iter()).unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), bytes.into_inner()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(names(&checkpoint), ["w"]);
    assert!(checkpoint.warnings()[0].ends_with("pytorch_model.bin: epoch is not a tensor; it is left out"));
}

#[test]
fn the_chat_template_is_found_wherever_it_is() {
    let a = shard(&["a"]);
    let template = |files: &[(&str, &[u8])]| {
        let dir = folder(&[&[("model.safetensors", a.as_slice())], files].concat());
        Checkpoint::open(dir.path()).unwrap().chat_template()
    };
    let json = ("chat_template.json", br#"{"chat_template": "json"}"#.as_slice());
    let config = ("tokenizer_config.json", br#"{"chat_template": "config"}"#.as_slice());
    let named = br#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(template(&[]), None);
    assert_eq!(template(&[json]).unwrap(), "json");
    assert_eq!(template(&[json, config]).unwrap(), "config");
    assert_eq!(template(&[json, config, ("chat_template.jinja", b"\xef\xbb\xbfjinja")]).unwrap(), "jinja");
    assert_eq!(template(&[("tokenizer_config.json", named)]).unwrap(), "d");
    assert_eq!(template(&[("tokenizer_config.json", br#"{"chat_template": 3}"#)]), None);
}

#[test]
fn a_broken_model_card_is_a_warning() {
    let a = shard(&["a"]);
    let dir = folder(&[("model.safetensors", &a), ("README.md", b"---\nlicense: [x\n---\n")]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.card(), &ModelCard::default());
    assert!(checkpoint.warnings()[0].contains("README.md: its model card is left out: not valid YAML: "));
    fs::write(dir.path().join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().card().license.as_deref(), Some("mit"));
}

#[test]
fn a_broken_configuration_file_is_an_error_with_its_place() {
    let a = shard(&["a"]);
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ] {
        let dir = folder(&[("model.safetensors", &a), (name, b"{\"a\": 1,\n}")]);
        assert_eq!(message(&dir), format!("{name}, line 2, column 1: not valid JSON: trailing comma"));
    }
}

#[test]
fn a_folder_of_the_hub_cache_has_the_models_name() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("models--01-ai--Yi-34B");
    let snapshot = repository.join("snapshots").join("abc123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs").join("main"), "abc123\n").unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    fs::write(snapshot.join("model.safetensors"), shard(&["a"])).unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().name(), "Yi-34B");
    let through_main = Checkpoint::open(&repository).unwrap();
    assert_eq!((through_main.name().as_str(), through_main.dir()), ("Yi-34B", snapshot.as_path()));
    fs::write(repository.join("refs").join("main"), "../../..").unwrap();
    assert!(Checkpoint::open(&repository).unwrap_err().to_string().contains("no weights here"));
    assert_eq!(Checkpoint::open(&snapshot.join("..").join("abc123")).unwrap().name(), "Yi-34B");
}

#[test]
fn shard_names_are_taken_apart_and_put_together() {
    let name = ShardName::parse("pytorch_model-00003-of-00007.bin").unwrap();
    assert_eq!(name, ShardName { stem: "pytorch_model", number: 3, total: 7, extension: "bin" });
    assert_eq!(name.set()[2], "pytorch_model-00003-of-00007.bin");
    for other in ["model.safetensors", "model-1-of-2.safetensors", "model-00001-of-00002", "model-0000x-of-00002.bin"] {
        assert_eq!(ShardName::parse(other), None, "{other}");
    }
}
