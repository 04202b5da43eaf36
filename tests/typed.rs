//! What people type, and the folders that they convert.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use nibble::vocab::{Pieces, SentencepieceBpe};

use crate::support::{Variation, convert, data, error, folder, has, nibble, stdout, yi_nano};

/// `yi-nano`, made once.
fn model() -> &'static str {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("typed.gguf");
        convert(&yi_nano(), &file, &["-q", "Q4_K_M", "--force"])
    });
    FILE.to_str().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn lines_for_llama_cli_write_what_lines_for_this_program_write() {
    let ours = [
        "run",
        model(),
        "--ctx",
        "99",
        "--gpu-layers",
        "0",
        "-p",
        "Once upon\na time",
        "--max-tokens",
        "9",
        "--greedy",
    ];
    let wanted = stdout(&nibble(ours));
    assert!(wanted.len() > 10);
    let theirs = [
        "run",
        "-m",
        model(),
        "-c",
        "99",
        "-ngl",
        "0",
        "-e",
        "-p",
        r"Once upon\na time",
        "--n-predict",
        "9",
        "--greedy",
    ];
    assert_eq!(stdout(&nibble(theirs)), wanted);
    assert_eq!(stdout(&nibble(["run", model(), r"Once upon\na time", "-n", "9", "--greedy"])), wanted);
    let kept = stdout(&nibble(["run", model(), r"Once upon\na time", "-n", "9", "--greedy", "--no-escape"]));
    assert_ne!(kept, wanted);
    // A stop text with an escape ends at a line break.
    let stopped = stdout(&nibble(["run", model(), "Once upon a time", "-n", "200", "--greedy", "--stop", r"\n"]));
    assert!(!stopped.trim_end_matches('\n').contains('\n'), "{stopped:?}");
    assert!(stdout(&nibble(["run", model(), "Once upon a time", "-n", "-1", "--greedy", "-c", "40"])).len() > 50);
}

#[test]
fn what_cannot_be_done_says_what_to_type() {
    let nano = yi_nano();
    let nano = nano.to_str().unwrap();
    for line in [
        vec!["run", nano, "-p", "x"],
        vec!["tokenize", nano, "x"],
        vec!["calibrate", nano, "README.md"],
        vec!["chat", nano],
    ] {
        let said = error(&nibble(&line));
        has(&said, &["is a folder; models are run from GGUF files; 'nibble convert ", "yi-nano' makes one"]);
    }
    let refused = |more: &[&str]| {
        let out = nibble([&["run", model(), "-p", "x"], more].concat());
        assert!(!out.status.success());
        stderr(&out)
    };
    has(&refused(&["--ctx", "0"]), &["leave it out for what the model was trained on, up to 4096"]);
    has(
        &refused(&["--logit-bias", "6400+1"]),
        &["a bias is for token 6400, and the last of the model's 6400 tokens is 6399"],
    );
    has(&refused(&["--logit-bias", "'Once upon a time'+1"]), &["a bias is for one token, and this text is "]);
    has(&refused(&["--system", "s"]), &["--system is about chats, and needs --chat beside it", "Usage: nibble run"]);
}

#[test]
fn a_bias_by_text_is_that_of_its_token() {
    let ids = stdout(&nibble(["tokenize", model(), " the", "--ids"]));
    let ids: Vec<&str> = ids.split_whitespace().collect();
    let [id] = ids.as_slice() else { panic!("{ids:?}") };
    let written =
        |bias: &str| stdout(&nibble(["run", model(), "Once upon a time", "-n", "5", "--greedy", "--logit-bias", bias]));
    assert_eq!(written("' the'+100"), written(&format!("{id}+100")));
    assert_eq!(written("' the'+100").trim(), "the the the the the");
}

#[test]
fn a_loop_is_told_once_and_changes_nothing() {
    let line =
        ["run", model(), "Once upon a time", "-n", "450", "--greedy", "--ignore-eos", "--logit-bias", "' the'+100"];
    let out = nibble(line);
    assert_eq!(stdout(&out).matches(" the").count(), 450);
    let said = stderr(&out);
    assert_eq!(said.matches("the model repeats itself ('the')").count(), 1, "{said}");
    let quiet = nibble([&line[..], &["--quiet"]].concat());
    assert_eq!((stderr(&quiet).as_str(), quiet.stdout), ("", out.stdout));
}

/// A model with the vocabulary of `tests/data/saved-by-transformers-5`, of which each file says something else.
fn saved_by_transformers_5(dir: &Path) {
    let mut nano = Variation::of_yi_nano();
    nano.config.insert("vocab_size".to_string(), 704.into());
    for name in ["lm_head.weight", "model.embed_tokens.weight"] {
        let tensor = nano.tensor(name);
        tensor.shape[0] = 704;
        tensor.bytes.truncate(704 * 256 * 2);
    }
    nano.write_single(dir);
    for file in ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(data("saved-by-transformers-5").join(file), dir.join(file)).unwrap();
    }
}

#[test]
fn a_folder_with_two_tokenizers_gets_a_warning_and_a_choice() {
    let dir = folder();
    let source = dir.path().join("model");
    saved_by_transformers_5(&source);
    let made = |name: &str, more: &[&str]| {
        let file = dir.path().join(name);
        let line = ["convert", source.to_str().unwrap(), "-q", "Q8_0", "-o", file.to_str().unwrap()];
        let out = nibble([&line[..], more].concat());
        stdout(&out);
        let gguf = nibble::gguf::Gguf::open(&file).unwrap();
        let tokenizer = SentencepieceBpe::from_metadata(gguf.metadata()).unwrap();
        (file, tokenizer, stderr(&out))
    };
    let (_, default, said) = made("default.gguf", &[]);
    has(
        &said,
        &[
            "tokenizer.model and tokenizer.json disagree: 'Hello' has the tokens 449 385 298 389",
            "pass --tokenizer json",
        ],
    );
    let (model, same, said) = made("model.gguf", &["--tokenizer", "model"]);
    assert!(!said.contains("disagree"), "{said}");
    let (json, other, said) = made("json.gguf", &["--tokenizer", "json"]);
    assert!(!said.contains("disagree"), "{said}");
    assert_eq!(default.encode("Hello"), same.encode("Hello"));
    assert_eq!(other.encode("Hello"), [384, 449, 385, 298, 389]);
    for tokenizer in [&default, &same, &other] {
        let pieces: &Pieces = tokenizer.pieces();
        assert_eq!((tokenizer.encode("<think>"), pieces.add_bos()), (vec![700], false));
    }
    // Which file was chosen is recorded, so that the result can be verified.
    for file in [&model, &json] {
        stdout(&nibble(["verify", file.to_str().unwrap(), "--source", source.to_str().unwrap()]));
    }
    let refused = error(&nibble(["convert", json.to_str().unwrap(), "--allow-requantize", "--tokenizer", "json"]));
    has(&refused, &["is a GGUF file, which has its tokenizer already", "leave out --tokenizer"]);
}
