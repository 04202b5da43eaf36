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

/// The files of a tokenizer that transformers 5 saved, with the base model's `tokenizer.model` beside it.
fn saved_by_transformers_5(
    config: &Object,
    choice: Option<TokenizerFile>,
) -> (Metadata, Vec<String>, Option<Disagreement>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/saved-by-transformers-5");
    let files = TokenizerFiles {
        model: Some(dir.join("tokenizer.model")),
        json: Some(dir.join("tokenizer.json")),
        choice,
        tokenizer_config: Some(config),
        ..TokenizerFiles::default()
    };
    let (metadata, warnings) = metadata(&files, 704).unwrap();
    let disagreement = disagreement(&files, 704, &metadata);
    (metadata, warnings, disagreement)
}

#[test]
fn added_tokens_and_bos_come_from_tokenizer_json_and_the_pieces_from_the_file_that_is_chosen() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/saved-by-transformers-5");
    let config = object(&dir.join("tokenizer_config.json"));
    let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    let texts = golden["texts"].as_array().unwrap();
    for (choice, key) in [(None, "model"), (Some(TokenizerFile::Model), "model"), (Some(TokenizerFile::Json), "json")] {
        let (metadata, warnings, _) = saved_by_transformers_5(&config, choice);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token"), Some(false));
        assert_eq!(metadata.str(CHOICE_KEY), (key == "json").then_some("tokenizer.json"));
        let tokenizer = SentencepieceBpe::from_metadata(&metadata).unwrap();
        assert_eq!(tokenizer.pieces().piece_type(700), Some(PieceType::UserDefined), "<think>");
        assert_eq!(tokenizer.pieces().piece_type(702), Some(PieceType::Control), "<|pad|>");
        for text in texts {
            let wanted = ids(&text[key]);
            assert_eq!(tokenizer.encode_special(text["text"].as_str().unwrap()), wanted, "{key}: {}", text["text"]);
        }
    }
    assert!(texts.len() > 70);
}

#[test]
fn a_text_about_which_the_two_files_disagree_is_shown() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/saved-by-transformers-5");
    let config = object(&dir.join("tokenizer_config.json"));
    let found = saved_by_transformers_5(&config, None).2.unwrap();
    assert_eq!(
        (found.text, &found.model[..], &found.json[..]),
        ("Hello", &[449, 385, 298, 389][..], &[384, 449, 385, 298, 389][..])
    );
    let said = found.to_string();
    assert!(said.contains("'Hello' has the tokens 449 385 298 389 by the first, which is used, and 384 449"), "{said}");
    // Without the space in front, they agree.
    let mut config = config;
    config.insert("add_prefix_space".to_string(), json!(false));
    assert_eq!(saved_by_transformers_5(&config, None).2, None);
}

#[test]
fn a_tokenizer_for_some_texts_makes_of_them_what_the_whole_one_makes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/saved-by-transformers-5");
    let config = object(&dir.join("tokenizer_config.json"));
    let of_json = |choice| saved_by_transformers_5(&config, Some(choice)).0;
    let texts = ["Hello", " it's  two\t3.14%", "Ünïcödé 😀", "<think>x</think>\n<|im_end|>", "你好，世界"];
    for metadata in [convert(&nano_dir(), "", 6400).0, of_json(TokenizerFile::Model), of_json(TokenizerFile::Json)] {
        let whole = SentencepieceBpe::from_metadata(&metadata).unwrap();
        for n in 1..=texts.len() {
            let part = SentencepieceBpe::for_texts(&metadata, &texts[..n]).unwrap();
            for text in &texts[..n] {
                assert_eq!(part.encode(text), whole.encode(text), "{text:?}");
                assert_eq!(part.encode_special(text), whole.encode_special(text), "{text:?}");
            }
        }
    }
}

#[test]
fn a_tokenizer_json_that_does_not_fit_is_left_aside_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("tokenizer.json");
    let mut files = TokenizerFiles {
        model: Some(nano_dir().join("tokenizer.model")),
        json: Some(json.clone()),
        ..TokenizerFiles::default()
    };
    let warned = |content: &str| {
        std::fs::write(&json, content).unwrap();
        let (metadata, warnings) = metadata(&files, 6400).unwrap();
        assert_eq!(disagreement(&files, 6400, &metadata), None);
        warnings.join("; ")
    };
    assert!(warned("{").contains("tokenizer.json is left aside: "));
    let other = r#"{"model": {"type": "BPE", "vocab": {"x": 9}, "merges": []}, "added_tokens": []}"#;
    assert!(warned(other).contains("token 9 is 'x' in it, and "));
    // Of another kind, but with added tokens that fit.
    let unigram = r#"{"model": {"type": "Unigram", "vocab": [["a", 0.0]]}, "added_tokens": []}"#;
    assert_eq!(warned(unigram), "");
    files.choice = Some(TokenizerFile::Json);
    files.json = None;
    let error = metadata(&files, 6400).unwrap_err().to_string();
    assert!(error.contains("has no tokenizer.json"), "{error}");
}

#[test]
fn files_of_other_names_are_read_where_they_say_all_and_named_where_they_do_not() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/added-tokens.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    // The same vocabulary in GPT-2's two files.
    let model = &golden["tokenizers"]["qwen2"]["tokenizer"]["model"];
    let merges: Vec<String> = model["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("vocab.json"), model["vocab"].to_string()).unwrap();
    std::fs::write(file("merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n"))).unwrap();
    let read = |config: Value| {
        let config: Object = serde_json::from_value(config).unwrap();
        let files =
            TokenizerFiles { dir: dir.path().into(), tokenizer_config: Some(&config), ..TokenizerFiles::default() };
        metadata(&files, 500)
    };
    let (of_two, warnings) = read(json!({"tokenizer_class": "Qwen2TokenizerFast"})).unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("NFC")), "{warnings:?}");
    let tokenizer = ByteLevelBpe::from_metadata(&of_two).unwrap();
    let plain = |text: &&Value| !text[0].as_str().unwrap().contains('<') && !text[0].as_str().unwrap().contains("word");
    for text in golden["tokenizers"]["qwen2"]["texts"].as_array().unwrap().iter().filter(plain) {
        assert_eq!(tokenizer.encode(text[0].as_str().unwrap()), ids(&text[1]), "{}", text[0]);
    }
    assert_eq!(read(json!({"tokenizer_class": "GPT2Tokenizer"})).unwrap().0.str("tokenizer.ggml.pre"), Some("gpt-2"));
    let error = read(json!({"tokenizer_class": "CodeGenTokenizer"})).unwrap_err().to_string();
    assert!(error.contains("but vocab.json, merges.txt for the class 'CodeGenTokenizer'"), "{error}");
    std::fs::remove_file(file("merges.txt")).unwrap();
    std::fs::rename(file("vocab.json"), file("tekken.json")).unwrap();
    let error = read(json!({})).unwrap_err().to_string();
    assert!(
        error.contains("but tekken.json, from which nibble cannot") && error.contains("save_pretrained"),
        "{error}"
    );
    std::fs::copy(nano_dir().join("tokenizer.model"), file("spiece.model")).unwrap();
    let files = TokenizerFiles { dir: dir.path().into(), ..TokenizerFiles::default() };
    assert_eq!(metadata(&files, 6400).unwrap().0.str("tokenizer.ggml.model"), Some("llama"));
}

#[test]
fn added_tokens_act_on_the_text_around_them_as_in_the_tokenizers_library() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/added-tokens.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("tokenizer.json");
    for (name, case) in golden["tokenizers"].as_object().unwrap() {
        std::fs::write(&json, case["tokenizer"].to_string()).unwrap();
        let files = TokenizerFiles { json: Some(json.clone()), ..TokenizerFiles::default() };
        let (metadata, warnings) = metadata(&files, 500).unwrap();
        let flags = warnings.iter().find(|warning| warning.contains("lstrip of '<l>', '<lr>', '<wl>', '<SL>'"));
        assert!(flags.is_some(), "{warnings:?}");
        assert_eq!(
            warnings.iter().any(|warning| warning.contains("normalized of")),
            matches!(name.as_str(), "prepend" | "replace")
        );
        type Encode = Box<dyn Fn(&str) -> Vec<u32>>;
        let encode: Encode = match SentencepieceBpe::from_metadata(&metadata) {
            Ok(tokenizer) => Box::new(move |text| tokenizer.encode_special(text)),
            Err(_) => {
                let tokenizer = ByteLevelBpe::from_metadata(&metadata).unwrap();
                Box::new(move |text| tokenizer.encode_special(text))
            }
        };
        for text in case["texts"].as_array().unwrap() {
            assert_eq!(encode(text[0].as_str().unwrap()), ids(&text[1]), "{name}: {}", text[0]);
        }
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

    /// A byte-level vocabulary that shows how a text is cut: every word of `texts` is one token, and so are two words in a
    /// row wherever they are not cut apart.
    fn vocabulary_of_words(name: &str, words: &[Vec<Vec<u8>>]) -> Metadata {
        let written = |bytes: &[u8]| bytes.iter().map(|&byte| pieces::byte_level_char(byte)).collect::<String>();
        let mut tokens: Vec<String> = (0..=255).map(|byte| written(&[byte])).collect();
        let mut known: std::collections::HashSet<String> = tokens.iter().cloned().collect();
        let mut merges = Vec::new();
        let mut add = |left: &[u8], right: &[u8], merges: &mut Vec<String>| {
            let joined = written(&[left, right].concat());
            merges.push(format!("{} {}", written(left), written(right)));
            if known.insert(joined.clone()) {
                tokens.push(joined);
            }
        };
        let all_words: std::collections::BTreeSet<&Vec<u8>> = words.iter().flatten().collect();
        // Falcon cuts characters, too.
        let whole = all_words.iter().all(|word| std::str::from_utf8(word).is_ok());
        for word in &all_words {
            // Bytes become characters, and characters, in whatever order, the word.
            let units: Vec<&[u8]> = match std::str::from_utf8(word) {
                Ok(text) if whole => text.char_indices().map(|(at, c)| &word[at..at + c.len_utf8()]).collect(),
                _ => word.chunks(1).collect(),
            };
            let parts = units.iter().map(|unit| unit.chunks(1).collect::<Vec<_>>()).chain([units.clone()]);
            for parts in parts.collect::<Vec<_>>() {
                for (from, to) in (0..parts.len()).flat_map(|i| (i + 2..=parts.len()).map(move |j| (i, j))) {
                    for middle in from + 1..to {
                        add(&parts[from..middle].concat(), &parts[middle..to].concat(), &mut merges);
                    }
                }
            }
        }
        for pair in words.iter().flat_map(|words| words.windows(2)) {
            add(&pair[0], &pair[1], &mut merges);
        }
        let mut seen = std::collections::HashSet::new();
        merges.retain(|merge| seen.insert(merge.clone()));
        let mut metadata = Metadata::new();
        metadata.set("tokenizer.ggml.model", "gpt2");
        metadata.set("tokenizer.ggml.pre", name);
        let n = tokens.len();
        metadata.set("tokenizer.ggml.tokens", tokens);
        metadata.set("tokenizer.ggml.token_type", vec![1i32; n]);
        metadata.set("tokenizer.ggml.merges", merges);
        metadata
    }

    #[test]
    fn a_warning_is_due_exactly_where_llama_cpp_splits_texts_in_another_way() {
        let (texts, golden) = split::tests::golden();
        for (name, cuts) in golden {
            let words = |text: &str, lengths: &[usize]| {
                let mut rest = text.as_bytes();
                let word = |&n: &usize| rest.split_off(..n).unwrap().to_vec();
                lengths.iter().map(word).collect::<Vec<_>>()
            };
            // llama.cpp takes a NUL for the end of a text.
            let mut texts: Vec<_> = texts.iter().zip(&cuts).filter(|(text, _)| !text.contains('\0')).collect();
            if name == "deepseek-llm" {
                // llama.cpp cuts out runs of digits. The vocabulary has no piece of two digits, so that is the same.
                texts.retain(|(text, _)| !text.contains(char::is_numeric));
            }
            let words: Vec<_> = texts.iter().map(|(text, cuts)| words(text, cuts)).collect();
            let metadata = vocabulary_of_words(&name, &words);
            let (ours, theirs) = (ByteLevelBpe::from_metadata(&metadata).unwrap(), Vocabulary::load(&metadata));
            let mut others = Vec::new();
            for ((text, cuts), words) in texts.iter().zip(&words) {
                let ids = ours.encode(text);
                let printed: Vec<&[u8]> = ids.iter().map(|&id| ours.pieces().bytes(id)).collect();
                assert_eq!(printed, *words, "{name}: {text:?}, {cuts:?}");
                if theirs.encode(text, false) != ids {
                    others.push(text);
                }
            }
            let said = pretokenizers::other_in_llama_cpp(&name);
            assert_eq!(said.is_some(), !others.is_empty(), "{name}: {said:?}, but these differ: {others:?}");
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
