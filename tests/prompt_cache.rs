//! The prompt cache: the text is the same with it, and a file that is not right is noticed.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nibble::engine;
use nibble::engine::{CacheError, GenerateOptions, Generated, PromptCache, Session, SessionOptions, Writer};
use nibble::llama::{FlashAttention, KvType, KvTypes, Lora, Model, ModelOptions};
use nibble::sample::{Params, Sampler};

use crate::support;

fn converted(recipe: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prompt-cache-yi-nano-{recipe}.gguf"));
    support::convert(&support::yi_nano(), &file, &["-q", recipe, "--force"])
}

static PATH: LazyLock<PathBuf> = LazyLock::new(|| converted("F32"));
static MODEL: LazyLock<Model> = LazyLock::new(|| Model::load(&PATH, ModelOptions::default()).unwrap());

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| 475 + i * 37 % 4000).collect()
}

fn write(session: &mut Session, prompt: &[u32]) -> Generated {
    let mut sampler = Sampler::new(&Params::greedy()).unwrap();
    let options = GenerateOptions { max_tokens: Some(12), ignore_end: true, ..Default::default() };
    engine::generate(session, Writer::new(&mut sampler), prompt, &options, |_| ControlFlow::Continue(())).unwrap()
}

/// Writes after `prompt` with the cache at `path`; gives what was written, why the cache was not used, and whether it
/// was written.
fn with_cache(
    model: &Model,
    options: &SessionOptions,
    path: &Path,
    prompt: &[u32],
) -> (Generated, Option<CacheError>, bool) {
    let mut session = Session::new(model, options).unwrap();
    let (mut cache, unused) = PromptCache::load(path, &mut session, prompt).unwrap();
    let written = write(&mut session, prompt);
    let saved = cache.save(&mut session, prompt.len()).unwrap();
    assert!(!saved || session.tokens() == prompt);
    (written, unused, saved)
}

#[test]
fn the_next_prompt_that_begins_alike_is_not_read_again() {
    let dir = support::folder();
    let path = dir.path().join("cache");
    let apart = KvTypes { keys: KvType::Q8_0, values: KvType::Iq4Nl };
    for kv_types in [KvType::F32.into(), KvTypes::default(), KvType::Q8_0.into(), apart] {
        let flash_attention = if kv_types == KvType::F32.into() { FlashAttention::Off } else { FlashAttention::Auto };
        let options = SessionOptions { kv_types, flash_attention, ..support::exact() };
        let plain = |prompt: &[u32]| write(&mut Session::new(&MODEL, &options).unwrap(), prompt).tokens;
        let _ = std::fs::remove_file(&path);
        let long = prompt(100);
        let same = |prompt: &[u32], reused: usize, written: bool| {
            let (with, unused, saved) = with_cache(&MODEL, &options, &path, prompt);
            assert!(unused.is_none(), "{unused:?}");
            assert_eq!(with.reused_tokens, reused, "{kv_types}, {} tokens", prompt.len());
            assert_eq!(saved, written, "{kv_types}, {} tokens", prompt.len());
            assert_eq!(with.tokens, plain(prompt), "{kv_types}, {} tokens", prompt.len());
        };
        same(&long, 0, true);
        let state = |path: &Path| (std::fs::read(path).unwrap(), path.metadata().unwrap().modified().unwrap());
        let first = state(&path);
        // The same again, a part of it, and little more than it: nothing to write.
        same(&long, 99, false);
        same(&long[..60], 59, false);
        same(&prompt(105), 100, false);
        assert!(state(&path) == first);
        // Much more, and what goes another way.
        same(&prompt(150), 100, true);
        let mut other = prompt(150);
        other[40] = 7;
        same(&other, 40, true);
        same(&other, 149, false);
        // Nothing in common.
        let another: Vec<u32> = prompt(50).iter().map(|token| token + 1).collect();
        same(&another, 0, true);
    }
    assert_eq!(support::files(dir.path()), ["cache"]);
}

#[test]
fn a_file_that_is_not_whole_is_noticed_and_replaced() {
    let dir = support::folder();
    let path = dir.path().join("cache");
    let prompt = prompt(40);
    let (plain, ..) = with_cache(&MODEL, &support::exact(), &path, &prompt);
    let whole = std::fs::read(&path).unwrap();
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let (with, unused, saved) = with_cache(&MODEL, &support::exact(), &path, &prompt);
        assert!(matches!(unused, Some(CacheError::Damaged | CacheError::Version { .. })), "{what}: {unused:?}");
        assert_eq!((with.reused_tokens, with.tokens), (0, plain.tokens.clone()), "{what}");
        assert!(saved && std::fs::read(&path).unwrap() == whole, "{what}");
    };
    let lengths = (0..64).chain((64..whole.len()).step_by(whole.len() / 23)).chain([whole.len() - 33, whole.len() - 1]);
    for length in lengths {
        check(&whole[..length], &format!("{length} bytes"));
    }
    for at in (8..400).step_by(7).chain((400..whole.len()).step_by(whole.len() / 29)).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        check(&bytes, &format!("byte {at} flipped"));
    }
    let longer = [whole.clone(), vec![0]].concat();
    check(&longer, "a byte too many");
}

#[test]
fn a_file_that_is_something_else_is_left_alone() {
    let dir = support::folder();
    let path = dir.path().join("thesis.txt");
    for text in ["It was a dark and stormy night.".repeat(10), "n0".to_string()] {
        std::fs::write(&path, &text).unwrap();
        let (_, unused, saved) = with_cache(&MODEL, &support::exact(), &path, &prompt(20));
        assert!(matches!(unused, Some(CacheError::NotOurs)) && !saved, "{unused:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    let (_, unused, saved) = with_cache(&MODEL, &support::exact(), dir.path(), &prompt(20));
    assert!(matches!(unused, Some(CacheError::NotOurs | CacheError::Read(_))) && !saved, "{unused:?}");
}

#[test]
fn what_another_model_or_setting_made_is_not_used() {
    let dir = support::folder();
    let path = dir.path().join("cache");
    let prompt = prompt(40);
    let other = Model::load(&converted("Q8_0"), ModelOptions::default()).unwrap();
    let plain = with_cache(&MODEL, &support::exact(), &path, &prompt).0;
    let whole = std::fs::read(&path).unwrap();
    let check = |model: &Model, options: &SessionOptions, what: &str| {
        std::fs::write(&path, &whole).unwrap();
        let (with, unused, saved) = with_cache(model, options, &path, &prompt);
        let told = unused.map(|error| error.to_string()).unwrap_or_default();
        support::has(&told, &[what, "will be replaced"]);
        assert!(with.reused_tokens == 0 && saved, "{what}");
        let (again, unused, _) = with_cache(model, options, &path, &prompt);
        assert!(unused.is_none() && again.reused_tokens == 39);
    };
    check(&other, &support::exact(), "another model");
    check(&MODEL, &SessionOptions { kv_types: KvType::F16.into(), ..support::exact() }, "another type of KV cache");
    check(
        &MODEL,
        &SessionOptions { flash_attention: FlashAttention::On, ..support::exact() },
        "another setting of flash attention",
    );
    std::fs::write(&path, &whole).unwrap();
    let small = SessionOptions { n_ctx: Some(39), ..support::exact() };
    let (with, unused, saved) = with_cache(&MODEL, &small, &path, &prompt[..20]);
    assert!(matches!(unused, Some(CacheError::TooLong { n_tokens: 40, n_ctx: 39 })), "{unused:?}");
    assert!(with.reused_tokens == 0 && saved);
    // One weight of the same file changed: the middle of a tensor.
    let mut bytes = std::fs::read(&*PATH).unwrap();
    let gguf = nibble::gguf::Gguf::open(&PATH).unwrap();
    let (_, range) = gguf.location(gguf.index_of("blk.1.ffn_up.weight").unwrap());
    bytes[range.start + range.len() / 2] ^= 1;
    let file = dir.path().join("changed.gguf");
    std::fs::write(&file, bytes).unwrap();
    check(&Model::load(&file, ModelOptions::default()).unwrap(), &support::exact(), "another model");
    // The same file somewhere else is the same model.
    std::fs::write(&path, &whole).unwrap();
    std::fs::copy(&*PATH, &file).unwrap();
    let copy = Model::load(&file, ModelOptions::default()).unwrap();
    let (with, unused, saved) = with_cache(&copy, &support::exact(), &path, &prompt);
    assert!(unused.is_none() && !saved && with.reused_tokens == 39);
    assert_eq!(with.tokens, plain.tokens);
}

#[test]
fn a_state_that_lies_about_itself_is_refused_by_llama_cpp_and_not_used() {
    let dir = support::folder();
    let path = dir.path().join("cache");
    with_cache(&MODEL, &support::exact(), &path, &prompt(40));
    let whole = std::fs::read(&path).unwrap();
    let number = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().unwrap()) as usize;
    let state = 28 + number(12) + 4 * number(16);
    // The magic, the number of streams, of cells: with the right hash over the wrong bytes.
    for at in [state, state + 8, state + 12, state + 20] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let end = bytes.len() - 32;
        let hash = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(hash.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let (with, unused, saved) = with_cache(&MODEL, &support::exact(), &path, &prompt(40));
        assert!(matches!(unused, Some(CacheError::Refused(_))), "{unused:?}");
        assert!(with.reused_tokens == 0 && saved);
        assert!(std::fs::read(&path).unwrap() == whole);
    }
}

#[test]
fn run_starts_from_the_prompt_it_knows() {
    let dir = support::folder();
    let (model, cache) = (PATH.to_str().unwrap(), dir.path().join("cache"));
    let cache = cache.to_str().unwrap();
    let text = "Once upon a time there was a king. ".repeat(6);
    let base = ["run", model, "--greedy", "-n", "20", "--kv-type", "f32", "-t", "1", "-p", &text];
    let run = |more: &[&str]| {
        let out = support::nibble(base.iter().chain(more));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (support::stdout(&out), said)
    };
    let (plain, said) = run(&[]);
    assert!(!said.contains("prompt cache"), "{said}");
    let (first, said) = run(&["--prompt-cache", cache]);
    assert!(first == plain && !said.contains("prompt cache"), "{said}");
    let (second, said) = run(&["--prompt-cache", cache]);
    assert_eq!(second, plain);
    support::has(&said, &["of them from the prompt cache)"]);
    let out = support::nibble(base.iter().chain(&["--prompt-cache", cache, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&support::stdout(&out)).unwrap();
    assert_eq!(json["reused_tokens"].as_u64().unwrap() + 1, json["prompt_tokens"].as_u64().unwrap());
    // And with guesses.
    assert_eq!(run(&["--prompt-cache", cache, "--draft", "ngram"]).0, plain);

    std::fs::write(cache, &std::fs::read(cache).unwrap()[..5000]).unwrap();
    let (third, said) = run(&["--prompt-cache", cache]);
    assert_eq!(third, plain);
    support::has(&said, &["warning: the prompt cache", "it is damaged, so it is not used, and will be replaced"]);
    assert_eq!(said.lines().filter(|line| line.contains("warning")).count(), 1, "{said}");
    let (_, said) = run(&["--prompt-cache", cache]);
    support::has(&said, &["of them from the prompt cache)"]);

    let nowhere = dir.path().join("no/such/folder/cache");
    let (fourth, said) = run(&["--prompt-cache", nowhere.to_str().unwrap()]);
    assert_eq!(fourth, plain);
    support::has(&said, &["warning: the prompt cache", "cannot be written"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_takes_nothing_away() {
    // A device whose writes fail with "no space left": the cache would go beside it, where nothing can be made either.
    let mut session = Session::new(&MODEL, &support::exact()).unwrap();
    let prompt = prompt(20);
    let (mut cache, unused) = PromptCache::load(Path::new("/proc/cache"), &mut session, &prompt).unwrap();
    assert!(unused.is_none());
    let written = write(&mut session, &prompt);
    assert_eq!(written.tokens.len(), 12);
    assert!(matches!(cache.save(&mut session, prompt.len()), Err(CacheError::Write(_))));
}

#[test]
fn an_adapter_has_states_of_its_own() {
    use nibble::gguf::{Layout, Metadata, TensorInfo, TensorType};
    let mut metadata = Metadata::new();
    metadata.set("general.type", "adapter");
    metadata.set("general.architecture", "llama");
    metadata.set("adapter.type", "lora");
    metadata.set("adapter.lora.alpha", 8f32);
    let tensor = |name: &str, dims: [u64; 2]| TensorInfo {
        name: format!("blk.0.attn_v.weight.{name}"),
        dims: dims.to_vec(),
        ty: TensorType::F32,
    };
    let outputs = nibble::gguf::Gguf::open(&PATH).unwrap().tensor("blk.0.attn_v.weight").unwrap().dims[1];
    let tensors = vec![tensor("lora_a", [256, 2]), tensor("lora_b", [2, outputs])];
    let layout = Layout::new(&metadata, tensors.clone(), 32, None).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    layout
        .write_part(0, file.as_file_mut(), |i| 0.05f32.to_le_bytes().repeat(tensors[i].n_elements().unwrap() as usize))
        .unwrap();
    let dir = support::folder();
    let path = dir.path().join("cache");
    let load = |scale: f32| {
        let lora = vec![Lora { path: file.path().to_path_buf(), scale }];
        Model::load(&PATH, ModelOptions { lora, ..Default::default() }).unwrap()
    };
    let prompt = prompt(30);
    let reused = |model: &Model| {
        let (with, unused, _) = with_cache(model, &support::exact(), &path, &prompt);
        (with.reused_tokens, unused.map(|error| error.to_string()).unwrap_or_default())
    };
    let (whole, half) = (load(1.0), load(0.5));
    assert_eq!(reused(&MODEL), (0, String::new()));
    // None of an adapter is no adapter.
    assert_eq!(reused(&load(0.0)), (29, String::new()));
    for model in [&whole, &half, &MODEL] {
        let (n, told) = reused(model);
        assert_eq!(n, 0);
        support::has(&told, &["other LoRA adapters"]);
        assert_eq!(reused(model), (29, String::new()));
    }
}
