use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::Utf8Stream;
use crate::gguf::Array;

fn nano_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano")
}

fn yi_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi")
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

fn nano() -> SentencepieceBpe {
    let (metadata, warnings) = convert(&nano_dir(), "", 6400);
    assert!(warnings.is_empty(), "{warnings:?}");
    SentencepieceBpe::from_metadata(&metadata).unwrap()
}

fn yi() -> (Metadata, SentencepieceBpe) {
    let (metadata, warnings) = convert(&yi_dir(), "Yi-6B-Chat.", 64000);
    assert!(warnings.is_empty(), "{warnings:?}");
    let tokenizer = SentencepieceBpe::from_metadata(&metadata).unwrap();
    (metadata, tokenizer)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn yi_gives_the_ids_of_the_sentencepiece_library() {
    let (_, tokenizer) = yi();
    let lines = std::fs::read_to_string(yi_dir().join("golden.jsonl")).unwrap();
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
    let (metadata, tokenizer) = yi();
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

#[test]
fn refuses_a_folder_without_a_tokenizer() {
    let files = TokenizerFiles { dir: "some/folder".into(), ..TokenizerFiles::default() };
    let error = metadata(&files, 10).unwrap_err().to_string();
    assert!(error.contains("some/folder") && error.contains("tokenizer.model"), "{error}");
}

#[test]
fn names_the_file_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let files = TokenizerFiles { model: Some(path.clone()), ..TokenizerFiles::default() };
    assert!(matches!(metadata(&files, 10), Err(Error::Io { .. })));
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = metadata(&files, 10).unwrap_err().to_string();
    assert!(error.contains("tokenizer.model") && error.contains("1099511627776"), "{error}");
}

#[test]
fn takes_tokenizer_json_where_tokenizer_model_is_of_another_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (model, json) = (dir.path().join("tokenizer.model"), dir.path().join("tokenizer.json"));
    // The beginning of Llama 3's, which is a list for tiktoken.
    std::fs::write(&model, "IQ== 0\nIg== 1\nIw== 2\n").unwrap();
    let file = json!({
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [{"id": 3, "content": "<|end_of_text|>", "special": true}],
    });
    std::fs::write(&json, file.to_string()).unwrap();
    let files = TokenizerFiles { model: Some(model), json: Some(json), ..TokenizerFiles::default() };
    let (metadata, warnings) = metadata(&files, 5).unwrap();
    assert!(warnings[0].contains("is not a sentencepiece model"), "{warnings:?}");
    assert_eq!(
        (metadata.str("tokenizer.ggml.model"), metadata.str("tokenizer.ggml.pre")),
        (Some("gpt2"), Some("gpt-2"))
    );
    assert!(metadata.get("tokenizer.ggml.scores").is_none());
    let pieces = Pieces::from_metadata(&metadata).unwrap();
    assert_eq!(
        (pieces.len(), pieces.piece_type(3), pieces.piece_type(4)),
        (5, Some(PieceType::Control), Some(PieceType::Unused))
    );
    assert!(matches!(SentencepieceBpe::from_metadata(&metadata), Err(Error::NoEncoder { kind: "gpt2" })));
}

#[test]
fn a_json_file_can_take_the_space_in_front_away_but_not_give_one() {
    let nano = nano_dir().join("tokenizer.model");
    let dir = tempfile::tempdir().unwrap();
    let llama = dir.path().join("tokenizer.model");
    let pieces = [("<unk>", 0.0, PieceType::Unknown), ("▁", 0.0, PieceType::Normal)];
    let mut bytes = sentencepiece::tests::model(&pieces);
    // Field 3, the normalizer, once more, with add_dummy_prefix = true: the last one counts.
    bytes.extend([0x1a, 2, 0x18, 1]);
    std::fs::write(&llama, bytes).unwrap();
    let prefix = |model: &Path, config: Value| {
        let config: Object = serde_json::from_value(config).unwrap();
        let files =
            TokenizerFiles { model: Some(model.into()), tokenizer_config: Some(&config), ..TokenizerFiles::default() };
        let (metadata, _) = metadata(&files, 6400).unwrap();
        let once = metadata.bool("nibble.tokenizer.space_prefix_once");
        (metadata.bool("tokenizer.ggml.add_space_prefix").unwrap(), once)
    };
    assert_eq!(prefix(&nano, json!({"add_prefix_space": true, "legacy": false})), (false, None));
    assert_eq!(prefix(&llama, json!({})), (true, None));
    assert_eq!(prefix(&llama, json!({"legacy": true})), (true, None));
    assert_eq!(prefix(&llama, json!({"legacy": false})), (true, Some(true)));
    assert!(!prefix(&llama, json!({"add_prefix_space": false})).0);
}

#[test]
fn the_chat_template_is_copied() {
    let (metadata, _) = convert(&nano_dir(), "", 6400);
    assert!(metadata.str("tokenizer.chat_template").unwrap().contains("<|im_start|>"));
    let last = metadata.iter().last().unwrap();
    assert_eq!(last.0, "tokenizer.chat_template");
}

#[test]
fn every_row_of_the_embedding_has_a_token() {
    let (metadata, warnings) = convert(&nano_dir(), "", 6464);
    assert!(warnings.is_empty(), "{warnings:?}");
    let tokenizer = SentencepieceBpe::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.pieces().len(), 6464);
    assert_eq!(tokenizer.pieces().text(6463), Some("[PAD6463]"));
    let plain = nano();
    for text in ["[PAD6463] a", "宝玉听了，[PAD6400]", "  x"] {
        assert_eq!(tokenizer.encode(text), plain.encode(text));
    }
}

proptest! {
    #[test]
    fn decoding_gives_back_every_text(text in "\\PC{0,40}", other in any::<String>(), spaces in "[ \\n\\ta零]{0,12}") {
        let tokenizer = NANO.get_or_init(nano);
        for text in [text, other, spaces] {
            // The one character that pieces use for another; sentencepiece loses it too.
            let text = text.replace('▁', "_");
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text)), &text);
            let mut stream = Utf8Stream::default();
            let mut streamed = String::new();
            for id in tokenizer.encode(&text) {
                stream.push(tokenizer.pieces().bytes(id), &mut streamed);
            }
            stream.finish(&mut streamed);
            prop_assert_eq!(streamed, text);
        }
    }

    #[test]
    fn text_from_outside_never_gives_a_control_piece(parts in prop::collection::vec(
        prop_oneof![Just("<|startoftext|>"), Just("<|endoftext|>"), Just("<unk>"), Just("<|Human|>"), Just("a"), Just(" ")],
        0..8,
    )) {
        let tokenizer = NANO.get_or_init(nano);
        let ids = tokenizer.encode(&parts.concat());
        prop_assert!(ids.iter().all(|&id| id > 5), "{:?}", ids);
    }
}

/// Made once for all cases.
static NANO: std::sync::OnceLock<SentencepieceBpe> = std::sync::OnceLock::new();

#[cfg(feature = "llama")]
mod with_llama {
    use super::super::llama_oracle::{Vocabulary, assert_same_print};
    use super::*;

    #[test]
    fn llama_cpp_loads_yi_and_ends_where_nibble_ends() {
        let (metadata, tokenizer) = yi();
        let theirs = Vocabulary::load(&metadata);
        let ends: Vec<u32> = (0..64000).filter(|&id| theirs.is_end(id)).collect();
        // By their texts, llama.cpp also takes 17, <fim_pad>, and 31, <reponame>.
        assert_eq!(ends, [2, 7, 17, 31]);
        assert_eq!(tokenizer.pieces().end_ids(), [2, 7]);
        assert_same_print(&metadata);
        for text in ["Hello, world!", "人工智能（AI）正在改变世界。", "def f(x):\n    return x", "2023-11-05 😀"]
        {
            assert_eq!(theirs.encode(text, false), tokenizer.encode(text), "{text:?}");
        }
        let chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(theirs.encode(chat, true), tokenizer.encode_special(chat));
    }

    #[test]
    fn llama_cpp_agrees_on_yi_nano() {
        let (metadata, _) = convert(&nano_dir(), "", 6464);
        let (theirs, ours) = (Vocabulary::load(&metadata), nano());
        assert_same_print(&metadata);
        assert_eq!((0..6464).filter(|&id| theirs.is_end(id)).collect::<Vec<u32>>(), ours.pieces().end_ids());
        let golden: Value = serde_json::from_slice(&std::fs::read(nano_dir().join("golden.json")).unwrap()).unwrap();
        for prompt in golden["prompts"].as_array().unwrap() {
            let text = prompt["prompt"].as_str().unwrap().to_string() + prompt["greedy_text"].as_str().unwrap();
            assert_eq!(theirs.encode(&text, false), ours.encode(&text), "{text:?}");
        }
    }

    #[test]
    fn llama_cpp_loads_every_kind_of_byte_level_vocabulary() {
        let alphabet: Vec<char> =
            (0..0x400).filter_map(char::from_u32).filter(|c| pieces::byte_level(&c.to_string()).is_some()).collect();
        assert_eq!(alphabet.len(), 256);
        let mut vocab: Object = alphabet.iter().enumerate().map(|(id, char)| (char.to_string(), json!(id))).collect();
        vocab.insert("Ġa".to_string(), json!(256));
        for (name, ignore_merges, pre_tokenizer) in pretokenizers::tests::known() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("tokenizer.json");
            let file = json!({
                "added_tokens": [{"id": 257, "content": "<|end_of_text|>", "special": true}],
                "pre_tokenizer": pre_tokenizer,
                "model": {"type": "BPE", "ignore_merges": ignore_merges, "vocab": vocab.clone(), "merges": ["Ġ a"]},
            });
            std::fs::write(&path, file.to_string()).unwrap();
            let tokenizer_config: Object = serde_json::from_value(json!({"eos_token": "<|end_of_text|>"})).unwrap();
            let files = TokenizerFiles {
                json: Some(path),
                tokenizer_config: Some(&tokenizer_config),
                ..TokenizerFiles::default()
            };
            let (metadata, _) = metadata(&files, 260).unwrap();
            assert_eq!(metadata.str("tokenizer.ggml.pre"), Some(name));
            assert_same_print(&metadata);
            let ids = Vocabulary::load(&metadata).encode("b a<|end_of_text|>", true);
            let decoded: Vec<u8> =
                ids.iter().flat_map(|&id| Pieces::from_metadata(&metadata).unwrap().bytes(id).to_vec()).collect();
            assert_eq!((ids.last(), decoded), (Some(&257), b"b a".to_vec()), "{name}");
        }
    }
}
