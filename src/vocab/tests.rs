use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::gguf::Array;

fn nano_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano")
}

/// A folder of the shared test data; `None`, with a word about it, where that is not here.
fn shared(path: &str) -> Option<PathBuf> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    if !full.exists() {
        eprintln!("skipped: ../shared/data/{path} is not here");
        return None;
    }
    Some(full)
}

fn object(path: &Path) -> Object {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The metadata of a folder's `tokenizer.model` with what its JSON files say.
fn convert(dir: &Path, prefix: &str, rows: u64) -> (Metadata, Vec<String>) {
    let tokenizer_config = object(&dir.join("tokenizer_config.json"));
    let config = object(&dir.join(format!("{prefix}config.json")));
    let generation_config = object(&dir.join(format!("{prefix}generation_config.json")));
    let files = TokenizerFiles {
        dir: dir.to_path_buf(),
        model: Some(dir.join("tokenizer.model")),
        tokenizer_config: Some(&tokenizer_config),
        config: Some(&config),
        generation_config: Some(&generation_config),
        chat_template: tokenizer_config["chat_template"].as_str(),
        ..TokenizerFiles::default()
    };
    metadata(&files, rows).unwrap()
}

fn nano() -> Tokenizer {
    let (metadata, warnings) = convert(&nano_dir(), "", 6400);
    assert!(warnings.is_empty(), "{warnings:?}");
    Tokenizer::from_metadata(&metadata).unwrap()
}

fn yi() -> Option<(Metadata, Tokenizer)> {
    let dir = shared("tokenizer/yi")?;
    let (metadata, warnings) = convert(&dir, "Yi-6B-Chat.", 64000);
    assert!(warnings.is_empty(), "{warnings:?}");
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    Some((metadata, tokenizer))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn yi_gives_the_ids_of_the_sentencepiece_library() {
    let Some((_, tokenizer)) = yi() else { return };
    let Some(golden) = shared("tokenizer/yi/golden.jsonl") else { return };
    let lines = std::fs::read_to_string(golden).unwrap();
    let mut n = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text), ids(&line["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&tokenizer.encode(text)), text.replace('▁', " "));
        n += 1;
    }
    assert_eq!(n, 316);
}

#[test]
fn yi_chat_keeps_its_types_and_ends_with_both_of_its_end_tokens() {
    let Some((metadata, tokenizer)) = yi() else { return };
    let id = |key: &str| metadata.u64(&format!("tokenizer.ggml.{key}_token_id"));
    assert_eq!((id("bos"), id("eos"), id("eot"), id("padding")), (Some(1), Some(2), Some(7), Some(0)));
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token"), Some(false));
    assert_eq!(metadata.bool("tokenizer.ggml.add_space_prefix"), Some(false));
    let Some(Value::Array(types)) =
        metadata.get("tokenizer.ggml.token_type").and_then(|v| v.as_array()).and_then(|types| match types {
            Array::I32(types) => Some(json!(types)),
            _ => None,
        })
    else {
        panic!("no types")
    };
    let count = |ty: i64| types.iter().filter(|&found| *found == ty).count();
    assert_eq!([1, 2, 3, 4, 5, 6].map(count), [63439, 1, 10, 294, 0, 256]);
    let pieces = tokenizer.pieces();
    assert_eq!((pieces.end_ids(), pieces.is_end(6)), (&[2, 7][..], false));
    assert_eq!((pieces.add_bos(), pieces.bytes(144), pieces.bytes(141)), (false, &b"\n"[..], &b"  "[..]));
}

#[test]
fn yi_nano_gives_the_ids_that_transformers_gives() {
    let tokenizer = nano();
    let golden: Value = serde_json::from_slice(&std::fs::read(nano_dir().join("golden.json")).unwrap()).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for prompt in prompts {
        let mut text = prompt["prompt"].as_str().unwrap().to_string();
        if prompt["kind"] == "chat" {
            text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
        }
        assert_eq!(tokenizer.encode_special(&text), ids(&prompt["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(&prompt["greedy"])), prompt["greedy_text"].as_str().unwrap());
    }
    assert_eq!(tokenizer.pieces().end_ids(), [2, 7]);
    assert_eq!(tokenizer.encode_document("a"), tokenizer.encode("a"), "Yi has no BOS");
}
