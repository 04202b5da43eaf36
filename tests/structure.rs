//! Text that keeps to a JSON schema, a regular expression or a grammar, written by the tiny Yi that comes with the tests.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use nibble::base::random::Random;
use nibble::chat::{self, Prompt};
use nibble::constrain::{Constraint, Error, Grammar, Tokens};
use nibble::engine;
use nibble::engine::{Finish, GenerateOptions, Generated, Session, SessionOptions, Writer};
use nibble::llama::{Model, ModelOptions};
use nibble::sample::{Params, Sampler, Temperature};
use nibble::vocab::Place;
use serde_json::{Value, json};

use crate::support;

fn yi_nano() -> PathBuf {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("structure-yi-nano.gguf");
        support::convert(&support::yi_nano(), &file, &["-q", "F16", "--force"])
    });
    FILE.clone()
}

/// The model, and its vocabulary made ready: once for all tests.
fn model() -> &'static (Model, Arc<Tokens>) {
    static MODEL: LazyLock<(Model, Arc<Tokens>)> = LazyLock::new(|| {
        let model = Model::load(&yi_nano(), ModelOptions::default()).unwrap();
        let tokens = Arc::new(Tokens::new(model.tokenizer()).unwrap());
        (model, tokens)
    });
    &MODEL
}

fn session() -> Session {
    Session::new(&model().0, &SessionOptions { n_ctx: Some(1024), threads: Some(1), ..SessionOptions::default() })
        .unwrap()
}

fn is_allowed(mask: &[u32], token: u32) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let n = model().0.tokenizer().n_tokens() as u32;
    let mask = constraint.mask().unwrap();
    (0..n).filter(|token| is_allowed(mask, *token)).collect()
}

/// Writes at most 900 tokens after `prompt`.
fn write(session: &mut Session, constraint: &mut Constraint, prompt: &str, params: &Params) -> Generated {
    let tokens = chat::encode(&Prompt::plain(prompt), model().0.tokenizer()).unwrap();
    let mut sampler = Sampler::new(params).unwrap();
    let writer = Writer { constraint: Some(constraint), ..Writer::new(&mut sampler) };
    let options = GenerateOptions { max_tokens: Some(900), ..Default::default() };
    engine::generate(session, writer, &tokens, &options, |_| ControlFlow::Continue(())).unwrap()
}

/// Schemas of all kinds, which the model knows nothing of.
fn schemas() -> Vec<Value> {
    let tree = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
        },
        "required": ["name"],
        "additionalProperties": false
    });
    vec![
        json!({"type": "object", "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150}
        }, "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"家": {"type": "object", "properties": {
            "城市": {"enum": ["北京", "上海", "São Paulo"]},
            "门牌": {"type": "integer", "minimum": 1, "maximum": 999}
        }, "required": ["城市", "门牌"], "additionalProperties": false}}, "required": ["家"], "additionalProperties": false}),
        json!({"enum": ["苹果", "a \"quoted\" word", 3, null, true, {"k": [1, "二"]}, "back\\slash\n"]}),
        json!({"type": "array", "items": {"type": "integer", "minimum": -7, "maximum": 12}, "minItems": 2, "maxItems": 5}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": tree}}),
        json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "minimum": 0, "maximum": 9.5}},
             "required": ["kind", "r"], "additionalProperties": false},
            {"type": "object", "properties": {"kind": {"const": "square"}, "side": {"type": "integer", "minimum": 1, "maximum": 5}},
             "required": ["kind", "side"], "additionalProperties": false}
        ]}),
        json!({"anyOf": [{"type": "string", "maxLength": 10}, {"type": "integer", "minimum": 100, "maximum": 200}, {"type": "null"}]}),
        json!({"const": {"version": 2, "tags": ["a", "零一"], "ok": false, "none": null, "pi": 3.25}}),
        json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}(?:-x|-零)?$"}),
        json!({"type": "object", "properties": {
            "day": {"type": "string", "format": "date"}, "at": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"}, "ip": {"type": "string", "format": "ipv4"}
        }, "required": ["day", "at", "id", "ip"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "boolean"}},
               "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}, "maxProperties": 3, "required": ["a"]}),
        json!({"type": ["string", "null"], "maxLength": 15}),
        json!({"type": "array", "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 5}, {"enum": ["ja", "是"]},
               {"type": "boolean"}], "items": false, "minItems": 3}),
        json!({"type": "number", "exclusiveMinimum": -1.5, "maximum": 1.25}),
        json!({"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 1000}),
        json!({"allOf": [
            {"type": "object", "properties": {"x": {"type": "integer", "minimum": 3}}, "required": ["x"]},
            {"type": "object", "properties": {"x": {"type": "integer", "maximum": 30}, "y": {"type": "null"}},
             "required": ["y"], "additionalProperties": false}
        ]}),
        json!({"type": "object", "patternProperties": {"^s_[a-z]{1,5}$": {"type": "string", "maxLength": 5},
               "^n_[a-z]{1,5}$": {"type": "integer", "minimum": 0, "maximum": 99}}, "additionalProperties": false, "maxProperties": 4}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2},
               "maxItems": 2}, "minItems": 1, "maxItems": 3}),
        json!({"type": "object", "properties": {
            "title": {"type": "string", "description": "odd \u{7}\u{0} characters", "maxLength": 25},
            "stars": {"type": "number", "minimum": 0, "maximum": 5},
            "tags": {"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 8}, "maxItems": 3},
            "reply": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"by": {"type": "string", "maxLength": 9}},
                     "required": ["by"], "additionalProperties": false}]}
        }, "required": ["title", "stars", "tags", "reply"], "additionalProperties": false}),
        json!({"$ref": "#/$defs/expr", "$defs": {"expr": {"anyOf": [
            {"type": "integer"},
            {"type": "object", "properties": {"op": {"enum": ["+", "乘"]}, "l": {"$ref": "#/$defs/expr"},
             "r": {"$ref": "#/$defs/expr"}}, "required": ["op", "l", "r"], "additionalProperties": false}
        ]}}}),
    ]
}

#[test]
fn five_hundred_texts_are_valid_under_twenty_schemas() {
    let start = Instant::now();
    let mut session = session();
    let schemas = schemas();
    assert_eq!(schemas.len(), 20);
    let (mut written, mut cut, mut tokens) = (0, 0, 0);
    for (i, schema) in schemas.iter().enumerate() {
        let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        let grammar = Grammar::json_schema(&schema.to_string()).unwrap_or_else(|error| panic!("{error}: {schema}"));
        let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
        // What has others of its kind in it may grow faster than it ends, and free names have any length.
        let endless = schema.get("$ref").is_some() || schema["additionalProperties"].is_object();
        // How many do depends on the last bits of the logits, and so on the CPU.
        let most = if endless { 25 } else { 6 };
        let (mut whole, mut cut_here) = (0, 0);
        for seed in 0.. {
            if whole == 25 {
                break;
            }
            if seed > 0 {
                constraint.restart().unwrap();
            }
            // From careful to wild: a mask of one token in forty likely ones has to do as well as one of many.
            let params = match seed % 3 {
                0 => Params { seed: Some(seed), ..Params::default() },
                1 => Params {
                    temperature: Temperature::fixed(1.5),
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    seed: Some(seed),
                    ..Params::default()
                },
                _ => Params { temperature: Temperature::fixed(0.4), seed: Some(seed), ..Params::default() },
            };
            let prompt = ["Once upon a time", "话说宋江", "ROMEO:\n", "{", "The answer as JSON: "][seed as usize % 5];
            let out = write(&mut session, &mut constraint, prompt, &params);
            tokens += out.tokens.len();
            let complete = constraint.is_complete();
            if matches!(out.finish, Finish::MaxTokens | Finish::ContextFull) && !complete {
                cut_here += 1;
                assert!(cut_here <= most, "schema {i}: {cut_here} of {seed} were cut: {schema}");
                continue;
            }
            assert!(complete, "{:?} but not complete: {}", out.finish, out.text);
            let value: Value = serde_json::from_str(&out.text)
                .unwrap_or_else(|error| panic!("schema {i}, seed {seed}: {error}:\n{}\n{schema}", out.text));
            if let Err(error) = validator.validate(&value) {
                panic!("schema {i}, seed {seed}: {error}:\n{}\n{schema}", out.text);
            }
            whole += 1;
        }
        (written, cut) = (written + whole, cut + cut_here);
    }
    eprintln!("{written} texts, {tokens} tokens, {cut} cut, in {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(written, 500);
    assert!(cut <= 40, "{cut} were cut before 500 were whole");
}

#[test]
fn texts_match_expressions_and_grammars() {
    let mut session = session();
    for pattern in [
        r"[0-9]{3}-[0-9]{2}",
        r"(Yes|No|也许)\.( [A-Za-z ,]{1,40}\.)?",
        r"[一-龥]{2,8}[。！？]",
        r"^[a-z0-9]{1,10}@[a-z]{1,10}\.(com|cn)$",
        r#""([^"\\]|\\.){0,12}"/[^/]{1,3}"#,
        r"(a|ab)(c|bcd)(d*){0,3}",
    ] {
        let grammar = Grammar::regex(pattern).unwrap();
        let whole = format!("^(?:{})$", pattern.trim_start_matches('^').trim_end_matches('$'));
        let validator = jsonschema::validator_for(&json!({"pattern": whole})).unwrap();
        for seed in 0..8 {
            let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
            let params = Params { temperature: Temperature::fixed(1.2), seed: Some(seed), ..Params::default() };
            let out = write(&mut session, &mut constraint, "He said", &params);
            assert!(
                constraint.is_complete() && out.finish.reason() == "stop",
                "{pattern}: {:?} {:?}",
                out.finish,
                out.text
            );
            assert!(validator.is_valid(&json!(out.text)), "{pattern}: {:?}", out.text);
        }
    }

    // A list of sums, with brackets to any depth; Lark's way to say it, and llama.cpp's.
    let lark = "start: sum (\"; \" sum){1,3}\nsum: term (\" + \" term)?\nterm: NUMBER | \"(\" sum \")\"\nNUMBER: /[1-9][0-9]{0,2}/";
    let gbnf =
        "root ::= sum (\"; \" sum){1,3}\nsum ::= term (\" + \" term)?\nterm ::= [1-9] [0-9]{0,2} | \"(\" sum \")\"";
    fn sum(text: &str) -> Option<&str> {
        let rest = term(text)?;
        match rest.strip_prefix(" + ") {
            Some(rest) => term(rest),
            None => Some(rest),
        }
    }
    fn term(text: &str) -> Option<&str> {
        if let Some(rest) = text.strip_prefix('(') {
            return sum(rest)?.strip_prefix(')');
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        ((1..=3).contains(&digits) && !text.starts_with('0')).then(|| &text[digits..])
    }
    for grammar in [Grammar::of_either(lark).unwrap(), Grammar::of_either(gbnf).unwrap()] {
        let mut finished = 0;
        for seed in 0..12 {
            let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
            let params = Params { temperature: Temperature::fixed(1.0), seed: Some(seed), ..Params::default() };
            let out = write(&mut session, &mut constraint, "1 + 1", &params);
            if constraint.is_complete() {
                finished += 1;
                let sums: Vec<_> = out.text.split("; ").collect();
                assert!((2..=4).contains(&sums.len()), "{}", out.text);
                sums.iter().for_each(|text| assert_eq!(sum(text), Some(""), "{}", out.text));
            }
        }
        assert!(finished >= 8, "{finished} of 12 came to an end");
    }
}

/// What every token's bytes do to the text so far, tried one by one, against the mask.
fn check_mask(grammar: &Grammar, viable: impl Fn(&[u8]) -> bool, complete: impl Fn(&[u8]) -> bool, seed: u64) -> usize {
    let tokenizer = model().0.tokenizer();
    let mut random = Random::new(seed);
    let mut checked = 0;
    for _ in 0..6 {
        let mut constraint = Constraint::new(grammar, &model().1).unwrap();
        let mut text = Vec::new();
        for _ in 0..12 {
            let found = allowed(&mut constraint);
            let wanted: Vec<u32> = (0..tokenizer.n_tokens() as u32)
                .filter(|&id| {
                    if tokenizer.is_end(id) {
                        return complete(&text);
                    }
                    let bytes = tokenizer.bytes(id);
                    !bytes.is_empty() && !tokenizer.markers().contains(id) && viable(&[text.as_slice(), bytes].concat())
                })
                .collect();
            let so_far = String::from_utf8_lossy(&text);
            assert_eq!(found.len(), wanted.len(), "tokens after {so_far:?}");
            assert_eq!(found, wanted, "after {so_far:?}");
            assert_eq!(constraint.is_complete(), complete(&text), "after {so_far:?}");
            checked += found.len();
            let going_on: Vec<u32> = found.into_iter().filter(|id| !tokenizer.is_end(*id)).collect();
            if going_on.is_empty() {
                break;
            }
            let token = going_on[(random.unit() * going_on.len() as f64) as usize];
            constraint.accept(token).unwrap();
            text.extend_from_slice(tokenizer.bytes(token));
        }
    }
    checked
}

#[test]
fn the_mask_is_what_trying_every_token_gives() {
    // Few enough texts to write them all down.
    let mut all = Vec::new();
    for who in ["The cat", "The dog", "A 小狗", "A 小猫"] {
        for rest in ["", " sat", " sits", " sat sat", " sat sits", " sits sat", " sits sits"] {
            all.push(format!("{who}{rest}.").into_bytes());
        }
    }
    let grammar = "root ::= ((\"The \" (\"cat\" | \"dog\")) | \"A \" \"小\" [狗猫]) (\" sat\" | \" sits\"){0,2} \".\"";
    let viable = |text: &[u8]| all.iter().any(|whole| whole.starts_with(text));
    let checked = check_mask(&Grammar::gbnf(grammar).unwrap(), viable, |text| all.iter().any(|whole| whole == text), 1);
    assert!(checked > 50, "{checked}");
    let regex = "(The (cat|dog)|A 小[狗猫])( sat| sits){0,2}\\.";
    check_mask(&Grammar::regex(regex).unwrap(), viable, |text| all.iter().any(|whole| whole == text), 2);

    // Brackets and letters to any depth: with lexemes below a parser.
    let depth = |text: &[u8]| {
        text.iter().try_fold(0i32, |depth, byte| match byte {
            b'(' => Some(depth + 1),
            b')' if depth > 0 => Some(depth - 1),
            b'a'..=b'z' | b' ' => Some(depth),
            _ => None,
        })
    };
    let grammar = Grammar::gbnf("root ::= (word | \"(\" root \")\" | \" \"+)*\nword ::= [a-z]+").unwrap();
    let checked = check_mask(&grammar, |text| depth(text).is_some(), |text| depth(text) == Some(0), 3);
    assert!(checked > 10_000, "{checked}");

    // JSON from a schema, white space and all.
    let mut all = Vec::new();
    let mut spaces = vec![String::new(), " ".to_string()];
    spaces.extend((0..=20).map(|n| format!("\n{}", " ".repeat(n))));
    spaces.extend((1..=8).map(|n| format!("\n{}", "\t".repeat(n))));
    for first in &spaces {
        for second in &spaces {
            for value in ["\"苹果\"", "\"香蕉\"", "17"] {
                all.push(format!("[{first}{value}{second}]").into_bytes());
            }
        }
    }
    let grammar =
        json!({"type": "array", "prefixItems": [{"enum": ["苹果", "香蕉", 17]}], "minItems": 1, "items": false});
    let viable = |text: &[u8]| all.iter().any(|whole| whole.starts_with(text));
    let grammar = Grammar::json_schema(&grammar.to_string()).unwrap();
    check_mask(&grammar, viable, |text| all.iter().any(|whole| whole == text), 4);
}

/// A grammar as llama.cpp reads it, with what it allows next.
struct Theirs(*mut llama_cpp_sys_2::llama_sampler, *mut llama_cpp_sys_2::llama_model);

impl Theirs {
    fn new(grammar: &str) -> Self {
        use llama_cpp_sys_2 as llama;
        let path = std::ffi::CString::new(yi_nano().to_str().unwrap()).unwrap();
        let grammar = std::ffi::CString::new(grammar).unwrap();
        // SAFETY: the strings outlive the calls, the parameters are llama.cpp's own, and the model outlives the sampler.
        unsafe {
            let mut parameters = llama::llama_model_default_params();
            parameters.vocab_only = true;
            let model = llama::llama_model_load_from_file(path.as_ptr(), parameters);
            assert!(!model.is_null());
            let vocab = llama::llama_model_get_vocab(model);
            let sampler = llama::llama_sampler_init_grammar(vocab, grammar.as_ptr(), c"root".as_ptr());
            assert!(!sampler.is_null(), "llama.cpp refused the grammar");
            Self(sampler, model)
        }
    }

    fn allowed(&mut self, n_tokens: usize) -> Vec<bool> {
        use llama_cpp_sys_2 as llama;
        let token = |id| llama::llama_token_data { id, logit: 0.0, p: 0.0 };
        let mut data: Vec<_> = (0..n_tokens as i32).map(token).collect();
        let mut array =
            llama::llama_token_data_array { data: data.as_mut_ptr(), size: data.len(), selected: -1, sorted: false };
        // SAFETY: the sampler is alive, and the array describes the vector, which outlives the call.
        unsafe { llama::llama_sampler_apply(self.0, &mut array) };
        data.iter().map(|token| token.logit == 0.0).collect()
    }

    fn accept(&mut self, token: u32) {
        // SAFETY: the sampler is alive, and the token is one that it allows.
        unsafe { llama_cpp_sys_2::llama_sampler_accept(self.0, token as i32) };
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: both were made once, and are freed once, the sampler first.
        unsafe {
            llama_cpp_sys_2::llama_sampler_free(self.0);
            llama_cpp_sys_2::llama_model_free(self.1);
        }
    }
}

/// llama.cpp's own engine, on texts that ours writes at random, over all tokens that are whole characters.
#[test]
fn gbnf_means_what_it_means_to_llama_cpp() {
    let tokenizer = model().0.tokenizer();
    let whole: Vec<u32> = (0..tokenizer.n_tokens() as u32)
        .filter(|id| !tokenizer.bytes(*id).is_empty() && std::str::from_utf8(tokenizer.bytes(*id)).is_ok())
        // llama.cpp allows no token that begins with NUL, whatever the grammar says.
        .filter(|id| !tokenizer.markers().contains(*id) && !tokenizer.is_end(*id) && tokenizer.bytes(*id)[0] != 0)
        .collect();
    assert!(whole.len() > 5000, "{}", whole.len());
    let mut random = Random::new(5);
    let mut compared = 0;
    for grammar in [
        "root ::= \"1. \" move \" \" move \"\\n\" ([1-9] [0-9]? \". \" move \" \" move \"\\n\")+\n\
         move ::= ([NBKQR] [a-h]? \"x\"? [a-h] [1-8] | [a-h] [1-8] | \"O-O\" \"-O\"?) [+#]?",
        "root ::= value\nvalue ::= object | list | string | number | \"true\" | \"null\"\n\
         object ::= \"{\" ws (string \":\" ws value (\",\" ws string \":\" ws value)*)? ws \"}\"\n\
         list ::= \"[\" ws (value (\",\" ws value)*)? ws \"]\"\nstring ::= \"\\\"\" ([^\"\\\\\\x00-\\x1F] | \"\\\\\" [nt\"])* \"\\\"\"\n\
         number ::= \"-\"? [1-9]? [0-9]{0,3} (\".\" [0-9]+)?\nws ::= | \" \" | \"\\n\" [ \\t]{0,4}",
        "root ::= (\"- \" item){1,3}\nitem ::= [^\\n]+ \"\\n\"",
        "root ::= [一-龥ぁ-ゟ]{2,5} [。！] | \"(\" root \")\" [a-z]* root?",
        "root ::= word (\" \" word)* \".\" \"\"\nword ::= \"a\" | \"ab\" | \"abc\" [x-z]{2} | \"(\" root \")\" | [A-Z] [a-z]{0,7}",
        "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] ws term)*\nterm ::= ident | num | \"(\" ws expr \")\" ws\n\
         ident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*",
    ] {
        let made = Grammar::gbnf(grammar).unwrap();
        for _ in 0..3 {
            let mut theirs = Theirs::new(grammar);
            let mut ours = Constraint::new(&made, &model().1).unwrap();
            let mut text = String::new();
            for _ in 0..10 {
                let wanted = theirs.allowed(tokenizer.n_tokens());
                let mask = ours.mask().unwrap();
                for &id in whole.iter().chain(&[2, 7]) {
                    assert_eq!(
                        is_allowed(mask, id),
                        wanted[id as usize],
                        "token {id} {:?} after {text:?} in\n{grammar}",
                        tokenizer.piece(id)
                    );
                    compared += 1;
                }
                let next: Vec<u32> = whole.iter().copied().filter(|id| is_allowed(mask, *id)).collect();
                let Some(&token) = next.get((random.unit() * next.len() as f64) as usize) else { break };
                text.push_str(std::str::from_utf8(tokenizer.bytes(token)).unwrap());
                ours.accept(token).unwrap();
                theirs.accept(token);
            }
        }
    }
    assert!(compared > 500_000, "{compared}");
}

#[test]
fn no_text_smuggles_a_control_token() {
    let tokenizer = model().0.tokenizer();
    let specials: Vec<u32> = (0..tokenizer.n_tokens() as u32)
        .filter(|id| tokenizer.bytes(*id).is_empty() || tokenizer.markers().contains(*id) || tokenizer.is_end(*id))
        .collect();
    assert!([6, 7, 8].iter().all(|id| specials.contains(id)));
    // Anything at all.
    let mut constraint = Constraint::new(&Grammar::regex(r"[\s\S]*").unwrap(), &model().1).unwrap();
    let mask = constraint.mask().unwrap();
    for &id in &specials {
        assert_eq!(is_allowed(mask, id), tokenizer.is_end(id), "token {id}");
    }
    assert!(matches!(constraint.accept(6), Err(Error::NotAllowed { token: 6, .. })));
    assert!(matches!(constraint.accept(u32::MAX), Err(Error::NotAllowed { .. })));
    // Text that spells them is spelled, letter by letter.
    for grammar in [
        Grammar::json_schema(r#"{"const": "<|im_end|><|im_start|>system"}"#).unwrap(),
        Grammar::gbnf("root ::= \"\\\"<|im_end|><|im_start|>system\\\"\"").unwrap(),
    ] {
        let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
        let mut text = Vec::new();
        while !constraint.is_finished() {
            let all = allowed(&mut constraint);
            assert!(!constraint.is_complete() && all.iter().all(|id| !specials.contains(id)), "{all:?}");
            // The longest there is.
            let token = all.into_iter().max_by_key(|id| tokenizer.bytes(*id).len()).unwrap();
            text.extend_from_slice(tokenizer.bytes(token));
            constraint.accept(token).unwrap();
            constraint.mask().unwrap();
        }
        assert_eq!(String::from_utf8(text).unwrap(), "\"<|im_end|><|im_start|>system\"");
    }
    // A grammar that names one by its number gets nowhere.
    if let Ok(grammar) = Grammar::lark("start: \"a\" <[6]> \"b\"") {
        let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
        let token = allowed(&mut constraint)[0];
        constraint.accept(token).unwrap();
        assert!(matches!(constraint.mask(), Err(Error::Failed { .. })));
    }
    assert!(Grammar::lark("start: <|im_start|>").is_err());
}

#[test]
fn both_of_yis_end_tokens_end_a_text_that_is_whole() {
    let grammar = Grammar::regex("[ab]{2,4}").unwrap();
    for end in [2, 7] {
        let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
        let mut length = 0;
        while length < 2 {
            assert!(!is_allowed(constraint.mask().unwrap(), end) && !constraint.is_complete());
            let token = allowed(&mut constraint)[0];
            length += model().0.tokenizer().bytes(token).len();
            constraint.accept(token).unwrap();
        }
        assert!(constraint.is_complete());
        let mask = constraint.mask().unwrap();
        assert!(is_allowed(mask, 2) && is_allowed(mask, 7));
        constraint.accept(end).unwrap();
        assert!(constraint.is_finished() && constraint.is_complete());
    }
    // Where only the end is left, that is known without a token for it.
    let mut constraint = Constraint::new(&Grammar::regex("a").unwrap(), &model().1).unwrap();
    let token = allowed(&mut constraint)[0];
    constraint.accept(token).unwrap();
    assert_eq!(allowed(&mut constraint), [2, 7]);
    assert!(constraint.is_finished());
    constraint.restart().unwrap();
    assert!(!constraint.is_finished() && allowed(&mut constraint).contains(&token));
}

#[test]
fn numbers_and_depth_stay_within_what_readers_take() {
    let mut session = session();
    let wild = |seed| Params {
        temperature: Temperature::fixed(5.0),
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(seed),
        ..Params::default()
    };
    for schema in [
        json!({"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 6}),
        json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 3, "maxItems": 6}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"},
               {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1, "maxItems": 1}]}}}),
    ] {
        let grammar = Grammar::json_schema(&schema.to_string()).unwrap();
        for seed in 0..10 {
            let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
            let out = write(&mut session, &mut constraint, "1", &wild(seed));
            assert!(constraint.is_complete(), "{:?}: {}", out.finish, out.text);
            serde_json::from_str::<Value>(&out.text).unwrap_or_else(|error| panic!("{error}: {}", out.text));
        }
    }
    // 1e999 can be written letter by letter in the grammar, and not with the guard.
    let grammar = Grammar::json_schema("{\"type\": \"number\"}").unwrap();
    let mut constraint = Constraint::new(&grammar, &model().1).unwrap();
    let tokenizer = model().0.tokenizer();
    for c in ["1", "e", "9", "9"] {
        let token = allowed(&mut constraint).into_iter().find(|id| tokenizer.bytes(*id) == c.as_bytes()).unwrap();
        constraint.accept(token).unwrap();
    }
    assert_eq!(allowed(&mut constraint), [2, 7]);
}

/// Whatever a stranger asks for is refused, or carried out, in bounded time.
#[test]
fn abuse_is_bounded() {
    let mut schemas = vec![
        ("deep objects", format!("{}{{}}{}", "{\"properties\":{\"a\":".repeat(60), "}}".repeat(60)), true),
        ("deep beyond reading", format!("{}{{}}{}", "{\"items\":".repeat(200), "}".repeat(200)), false),
        ("many items", r#"{"type": "array", "minItems": 1000000}"#.to_string(), true),
        ("a string without end", r#"{"type": "string", "minLength": 4000000000}"#.to_string(), true),
        ("a long string", r#"{"type": "string", "maxLength": 1000000000}"#.to_string(), true),
        ("backtracking", r#"{"type": "string", "pattern": "^(a+)+$|^(a|aa)+b$|(x*)*y"}"#.to_string(), true),
        ("repetition", r#"{"type": "string", "pattern": "^(((a{1000}){1000}){1000}){1000}$"}"#.to_string(), true),
        ("control characters", "{\"description\": \"\\u0000\\u001b[2J\", \"type\": \"null\"}".to_string(), true),
        ("contradiction", r#"{"type": "integer", "minimum": 3, "maximum": 2}"#.to_string(), false),
        ("contradiction apart", r#"{"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 2}]}"#.to_string(), false),
        ("two types", r#"{"allOf": [{"type": "integer"}, {"type": "string"}]}"#.to_string(), false),
        (
            "no integer between",
            r#"{"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}"#.to_string(),
            false,
        ),
        ("empty enum", r#"{"enum": []}"#.to_string(), false),
        ("enum of another type", r#"{"enum": ["a", "b"], "type": "integer"}"#.to_string(), false),
        ("itself", r##"{"$ref": "#"}"##.to_string(), false),
        ("itself in all", r##"{"allOf": [{"$ref": "#"}]}"##.to_string(), false),
        ("a remote reference", r#"{"$ref": "http://127.0.0.1:9/schema.json"}"#.to_string(), false),
        ("a remote dialect", r#"{"$schema": "http://127.0.0.1:9/dialect", "type": "null"}"#.to_string(), true),
        ("a remote base", r#"{"$id": "http://127.0.0.1:9/base", "type": "null"}"#.to_string(), true),
        ("a dangling reference", r##"{"$ref": "#/$defs/none"}"##.to_string(), false),
        ("a broken pattern", r#"{"type": "string", "pattern": "(["}"#.to_string(), false),
        ("look-around", r#"{"type": "string", "pattern": "^(?=a)b$"}"#.to_string(), false),
        ("wrong kinds", r#"{"type": 3, "properties": [], "required": "a"}"#.to_string(), false),
        (
            "wrong kinds with text at a bad place",
            format!("{{\"required\": \"{}\", \"type\": \"object\"}}", "零".repeat(99)),
            false,
        ),
        ("an unknown type", r#"{"type": "dragon"}"#.to_string(), false),
        ("megabytes", format!("{{\"description\": \"{}\", \"type\": \"null\"}}", "x".repeat(5 << 20)), true),
        ("more megabytes", " ".repeat(20 << 20), false),
        ("fractions", r#"{"type": "number", "multipleOf": 0.000000000001}"#.to_string(), false),
    ];
    let names: Vec<String> = (0..20_000).map(|i| format!("\"word number {i}\"")).collect();
    schemas.push(("a huge enum", format!("{{\"enum\": [{}]}}", names.join(",")), true));
    let names: Vec<String> = (0..5_000).map(|i| format!("\"property{i}\": {{\"type\": \"string\"}}")).collect();
    let properties = |n: usize| format!("{{\"type\": \"object\", \"properties\": {{{}}}}}", names[..n].join(","));
    schemas.push(("many properties", properties(1000), true));
    schemas.push(("too many properties", properties(5000), false));
    let any: Vec<String> =
        (0..40).map(|i| format!("{{\"type\": \"object\", \"properties\": {{\"a{i}\": {{}}}}}}")).collect();
    schemas.push(("an overlapping oneOf", format!("{{\"oneOf\": [{}]}}", any.join(",")), false));
    // Each doubles what is below it.
    let doubling: Vec<String> = (0..40)
        .map(|i| {
            format!("\"d{i}\": {{\"allOf\": [{{\"$ref\": \"#/$defs/d{0}\"}}, {{\"$ref\": \"#/$defs/d{0}\"}}]}}", i + 1)
        })
        .collect();
    let doubling =
        format!("{{\"$ref\": \"#/$defs/d0\", \"$defs\": {{{}, \"d40\": {{\"type\": \"null\"}}}}}}", doubling.join(","));
    schemas.push(("doubling", doubling, true));

    let mut results = Vec::new();
    for (name, schema, _) in &schemas {
        let start = Instant::now();
        let made = Grammar::json_schema(schema);
        results.push((*name, start.elapsed(), made));
    }
    let deep = |open: &str, close: &str, n: usize| format!("{}a{}", open.repeat(n), close.repeat(n));
    for (name, pattern) in [
        ("regex backtracking", "(a+)+b|(a|a)*c".to_string()),
        ("regex repetition", "((a{1000}){1000}){1000}".to_string()),
        ("regex repetition of optionals", "((a?){500}b?){500}".to_string()),
        ("regex depth", deep("(", ")", 10_000)),
        ("regex length", "ab?".repeat(20_000)),
        ("regex blowup", "(.*a.{24}b.*)|(.*c.{25})".to_string()),
        ("regex that matches nothing", "[^\\s\\S]".to_string()),
        ("regex back-reference", r"(a)\1".to_string()),
        ("regex word boundary", r"a\b".to_string()),
        ("regex NUL", "a\0b".to_string()),
        ("regex slash", "a/b\\/c\n".to_string()),
        ("regex not closed", "(a".to_string()),
    ] {
        let start = Instant::now();
        let made = Grammar::regex(&pattern);
        results.push((name, start.elapsed(), made));
    }
    let rules: Vec<String> =
        (0..4_000).map(|i| format!("r{i} ::= \"a\" r{} \"b\" | [0-9]+", (i + 1) % 4_000)).collect();
    let doubling: Vec<String> = (0..60).map(|i| format!("d{i} ::= d{0} d{0}", i + 1)).collect();
    for (name, grammar) in [
        ("grammar left recursion", "root ::= root \"a\" | root root | \"\"".to_string()),
        ("grammar hidden left recursion", "root ::= x? root \"a\" | \"b\"\nx ::= \"\" | \"c\"".to_string()),
        ("grammar repetition", "root ::= ((([a-z]{1000} root?){1000}){1000}){1000}".to_string()),
        ("grammar NUL", "root ::= \"a\0\"".to_string()),
        ("grammar depth", format!("root ::= {}", deep("(", ")", 100_000))),
        ("grammar of many rules", format!("root ::= r0\n{}", rules.join("\n"))),
        ("grammar that doubles", format!("root ::= d0 | \"(\" root \")\"\n{}\nd60 ::= \"a\"", doubling.join("\n"))),
        ("grammar without end", "root ::= \"a\" root".to_string()),
        ("Lark left recursion", "start: start \"a\" | start start | \"\"".to_string()),
        ("Lark without end", "start: \"a\" start".to_string()),
        ("Lark depth", format!("start: {}", deep("(", ")", 100_000))),
        ("Lark that refers to nothing", "start: foo".to_string()),
        ("Lark terminals in a circle", "start: A\nA: B \"x\"\nB: A".to_string()),
        ("Lark repetition", "start: ((\"a\"{1000}){1000}){1000}".to_string()),
        ("Lark with a schema within", "start: %json {\"$ref\": \"http://127.0.0.1:9/x\"}".to_string()),
        ("Lark of odd bytes", "start: \"\u{1}\u{7f}\u{feff}零\"\n\u{0}".to_string()),
        ("nothing but brackets", "((((".to_string()),
    ] {
        let start = Instant::now();
        let made = Grammar::of_either(&grammar);
        results.push((name, start.elapsed(), made));
    }

    let mut bad = Vec::new();
    for (name, time, made) in results {
        let said = match &made {
            Ok(_) => "taken".to_string(),
            Err(error) => error.to_string(),
        };
        eprintln!("{:>6.0} ms  {name}: {}", time.as_secs_f64() * 1e3, said.chars().take(150).collect::<String>());
        let mut wrong = Vec::new();
        if time > Duration::from_secs(8) {
            wrong.push(format!("took {time:?}"));
        }
        if said.lines().count() > 1 || said.len() > 3000 || said.contains('\u{1b}') {
            wrong.push(format!("said {said:?}"));
        }
        if let Some((_, _, possible)) = schemas.iter().find(|s| s.0 == name)
            && *possible != made.is_ok()
        {
            wrong.push(format!("possible: {possible}, but {said}"));
        }
        // What is taken has to be usable: a few tokens, or an error, in bounded time.
        if let Ok(grammar) = made {
            let start = Instant::now();
            if let Ok(mut constraint) = Constraint::new(&grammar, &model().1) {
                for turn in 0..6 {
                    if constraint.mask().is_err() || constraint.is_finished() {
                        break;
                    }
                    let all = allowed(&mut constraint);
                    let token = all[(turn * 7919) % all.len()];
                    if model().0.tokenizer().is_end(token) || constraint.accept(token).is_err() {
                        break;
                    }
                }
            }
            if start.elapsed() > Duration::from_secs(8) {
                wrong.push(format!("six tokens took {:?}", start.elapsed()));
            }
        }
        bad.extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

// --- the command line -----------------------------------------------------------------------------

fn run(arguments: &[&str]) -> Output {
    let path = yi_nano();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nibble"));
    command.args(["run", path.to_str().unwrap(), "-p", "Once upon a time", "--seed", "3", "--threads", "1"]);
    command.args(arguments).stdin(std::process::Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn run_writes_json_that_satisfies_a_schema() {
    let schema = json!({"type": "object", "properties": {"名": {"type": "string", "maxLength": 10}, "n": {"type": "integer",
                        "minimum": 1, "maximum": 3}}, "required": ["名", "n"], "additionalProperties": false});
    let out = run(&["--json-schema", &schema.to_string()]);
    let value: Value = serde_json::from_str(&text(&out.stdout)).unwrap();
    assert!(jsonschema::is_valid(&schema, &value), "{value}");
    support::has(&text(&out.stderr), &["ended:     the text is complete"]);
    assert!(!text(&out.stderr).contains("cut"));

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), schema.to_string()).unwrap();
    let out = run(&["--json-schema", file.path().to_str().unwrap(), "--json", "--chat"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&report["complete"], &report["finish_reason"]), (&json!(true), &json!("stop")));
    assert_eq!(report["finish_detail"], "complete");
    assert!(jsonschema::is_valid(&schema, &serde_json::from_str(report["text"].as_str().unwrap()).unwrap()));
    let report: Value = serde_json::from_slice(&run(&["-n", "3", "--json"]).stdout).unwrap();
    assert_eq!(report["complete"], Value::Null);
}

#[test]
fn run_says_where_a_text_was_cut() {
    let schema = r#"{"type": "array", "items": {"type": "integer"}, "minItems": 50}"#;
    let out = run(&["--json-schema", schema, "-n", "5"]);
    assert!(out.status.success());
    support::has(
        &text(&out.stderr),
        &[
            "warning: the text was cut off before it was complete, and does not satisfy the JSON schema: -n allows no more tokens",
        ],
    );
    let out = run(&["--json-schema", schema, "-n", "5", "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&report["complete"], &report["finish_detail"]), (&json!(false), &json!("max_tokens")));
    let out = run(&["--regex", "[a-z ]{400,}", "--ctx", "64"]);
    support::has(&text(&out.stderr), &["does not satisfy the regular expression", "the context is full"]);
    let out = run(&["--regex", "[xy]{3}z", "--stop", "z"]);
    support::has(&text(&out.stderr), &["stopped at \"z\"", "a stop text occurred"]);
    // As many tokens as the text needs are enough.
    let out = run(&["--regex", "[xy]{3}", "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let n = report["generated_tokens"].to_string();
    let out = run(&["--regex", "[xy]{3}", "-n", &n]);
    assert!(!text(&out.stderr).contains("cut"), "{}", text(&out.stderr));
}

#[test]
fn run_says_what_is_wrong_before_it_loads_a_model() {
    let lark = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(lark.path(), "start: \"a\" b\n").unwrap();
    let gbnf = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(gbnf.path(), "root ::= \"a\" b\n").unwrap();
    for (arguments, words) in [
        (["--json-schema", "{\"type\": "], &["the JSON schema", "not JSON", "column"][..]),
        (["--json-schema", "{\"not\": {}}"], &["the JSON schema", "'not'"]),
        (["--json-schema", "/nowhere.json"], &["/nowhere.json"]),
        (["--json-schema", "{\"type\": \"string\", \"pattern\": \"([\"}"], &["the JSON schema"]),
        (["--regex", "(a"], &["the regular expression"]),
        (["--regex", "a(?=b)"], &["the regular expression"]),
        (["--grammar", lark.path().to_str().unwrap()], &["the grammar", "\"b\""]),
        (["--grammar", gbnf.path().to_str().unwrap()], &["the grammar", "line 1, column 14", "no rule 'b'"]),
    ] {
        let output = support::nibble(["run", "/no-such-model.gguf", "-p", "x", arguments[0], arguments[1]]);
        let error = support::error(&output);
        assert!(!error.contains("no-such-model"), "{error}");
        support::has(&error, words);
    }
}

#[test]
fn a_token_that_is_a_marker_may_be_written_where_a_grammar_has_its_text() {
    let tokenizer = model().0.tokenizer();
    let marker = (0..tokenizer.n_tokens() as u32).find(|id| tokenizer.piece(*id) == "<|im_start|>").unwrap();
    let grammar = Grammar::regex(r"<\|im_start\|>yes").unwrap();
    for (markers, wanted) in [(&[][..], false), (&["<|im_start|>", "<|im_end|>"], true)] {
        let tokens = Arc::new(Tokens::with_markers(tokenizer, markers).unwrap());
        let mut constraint = Constraint::new(&grammar, &tokens).unwrap();
        assert_eq!(is_allowed(constraint.mask().unwrap(), marker), wanted);
        // It can be spelled, too.
        let spelled = tokenizer.encode("<", Place::Inside).unwrap()[0];
        assert!(is_allowed(constraint.mask().unwrap(), spelled));
        if wanted {
            constraint.accept(marker).unwrap();
            assert!(!is_allowed(constraint.mask().unwrap(), marker));
        }
    }
}

// --- speed ----------------------------------------------------------------------------------------

/// Time to work out what may come next, at Yi's 64,000 tokens, over JSON as people write it.
///
/// ```sh
/// cargo test --release how_long_a_mask_takes -- --ignored --nocapture
/// ```
#[test]
#[ignore = "a measurement"]
fn how_long_a_mask_takes() {
    let dir = support::folder();
    let file = support::yi_vocabulary(dir.path());
    let model = Model::load_vocabulary(&file).unwrap();
    let tokenizer = model.tokenizer();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let start = Instant::now();
    let tokens = Arc::new(Tokens::new(tokenizer).unwrap());
    eprintln!("trie of {} tokens: {:.1} ms", tokens.n_tokens(), ms(start.elapsed()));

    let person = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "姓名": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"}, "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 10},
        "address": {"type": "object", "properties": {"city": {"enum": ["Beijing", "上海", "Paris"]}, "street": {"type": "string",
            "minLength": 1, "maxLength": 100}}, "required": ["city", "street"], "additionalProperties": false}
    }, "required": ["name", "姓名", "age", "email", "born", "tags", "address"], "additionalProperties": false});
    let text = "{\n  \"name\": \"Lín Chōng, the \\\"Panther Head\\\"\",\n  \"姓名\": \"林冲，人称豹子头，东京八十万禁军枪棒教头\",\n  \
                \"age\": 34,\n  \"email\": \"lin.chong@liangshan.example.org\",\n  \"born\": \"1987-02-28\",\n  \"tags\": [\"hero\", \
                \"spear and staff\", \"梁山好汉\"],\n  \"address\": {\n    \"city\": \"上海\",\n    \"street\": \"12 Water Margin Road, behind \
                the old temple\"\n  }\n}";
    let items = json!({"type": "array", "items": {"type": "object", "properties": {"id": {"type": "integer"}, "price": {"type": "number",
        "minimum": 0}, "title": {"type": "string", "maxLength": 200}, "note": {"type": ["string", "null"]}}, "required": ["id", "price",
        "title", "note"]}});
    let list = "[{\"id\": 1, \"price\": 19.99, \"title\": \"A history of the Song dynasty in twelve volumes\", \"note\": null}, {\"id\": 271828, \
                \"price\": 0.5, \"title\": \"水浒传（上下册）精装典藏版，附插图一百二十幅\", \"note\": \"out of print\", \"more\": [true, {}]}]";
    let gbnf = "root ::= \"[\" ws (item (\",\" ws item)*)? \"]\"\nitem ::= \"{\" ws pair (\",\" ws pair)* ws \"}\" | string | root\n\
                pair ::= string ws \":\" ws (string | [0-9]+ | root) ws\nstring ::= \"\\\"\" [^\"\\\\\\x00-\\x1f]* \"\\\"\"\nws ::= [ \\n]*";
    let gbnf_text = "[{\"title\": \"The old man and the river\", \"pages\": 127, \"章\": [\"第一回 王教头私走延安府\", \"chapter two\"]}]";
    let prose = "(Yes|No)[.,] [\\s\\S]{0,400}";
    let prose_text =
        "Yes, because the river was high that spring and nobody had thought to mend the bridge. 所以大家都在家里等着。";
    let mut all = Vec::new();
    for (name, grammar, text) in [
        ("schema, person", Grammar::json_schema(&person.to_string()), text),
        ("schema, list, other properties", Grammar::json_schema(&items.to_string()), list),
        ("any object", Grammar::json_object(), text),
        ("GBNF with recursion", Grammar::gbnf(gbnf), gbnf_text),
        ("regex, prose", Grammar::regex(prose), prose_text),
    ] {
        let grammar = grammar.unwrap();
        let ids = tokenizer.encode(text, nibble::vocab::Place::Inside).unwrap();
        let start = Instant::now();
        let mut constraint = Constraint::new(&grammar, &tokens).unwrap();
        let prepared = start.elapsed();
        constraint.mask().unwrap();
        let first = start.elapsed();
        for round in 0..2 {
            let mut times = Vec::new();
            constraint.restart().unwrap();
            constraint.mask().unwrap();
            for (i, id) in ids.iter().enumerate() {
                let start = Instant::now();
                constraint.accept(*id).unwrap_or_else(|error| panic!("{error} at {i}: {:?}", tokenizer.piece(*id)));
                constraint.mask().unwrap();
                times.push((start.elapsed(), i));
            }
            assert!(constraint.is_complete(), "{name}");
            let worst = times.iter().max().copied().unwrap();
            let mut sorted: Vec<Duration> = times.iter().map(|(time, _)| *time).collect();
            sorted.sort();
            let at = |share: f64| ms(sorted[((sorted.len() - 1) as f64 * share) as usize]);
            eprintln!(
                "{name}, {}: {} tokens, median {:.3} ms, 99th percentile {:.3}, worst {:.3} after {:?}; prepared {:.1} ms, first mask {:.1}",
                ["first text", "next text"][round],
                ids.len(),
                at(0.5),
                at(0.99),
                ms(worst.0),
                tokenizer.piece(ids[worst.1]),
                ms(prepared),
                ms(first),
            );
            all.extend(sorted);
        }
    }
    all.sort();
    eprintln!("all: median {:.3} ms, 99th percentile {:.3} ms", ms(all[all.len() / 2]), ms(all[all.len() * 99 / 100]));
    assert!(all[all.len() / 2] < Duration::from_millis(1));
}
