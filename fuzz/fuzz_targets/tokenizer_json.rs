//! `tokenizer.json`, and the tokenizer that is made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nibble::vocab::{TokenizerFiles, metadata};

fuzz_target!(init: nibble_fuzz::seeds(SEEDS), |bytes: &[u8]| {
    let json = Some(nibble_fuzz::file("tokenizer.json", bytes));
    let files = TokenizerFiles { json, ..TokenizerFiles::default() };
    if let Ok((metadata, _)) = metadata(&files, 64) {
        nibble_fuzz::use_vocabulary(&metadata);
    }
});

const SEEDS: [&str; 4] = [
    r#"{"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true},{"id":9,"content":"<|im_end|>","special":false}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}]},"model":{"type":"BPE","byte_fallback":true,"unk_token":"<unk>","vocab":{"<unk>":0,"<s>":1,"<0x0A>":2,"a":3,"b":4,"▁":5,"ab":6,"▁ab":7,"▁a":8},"merges":["a b","▁ ab","▁a b","▁ a"]}}"#,
    r#"{"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first"},"model":{"type":"BPE","byte_fallback":true,"unk_token":"<unk>","vocab":{"<unk>":0,"a":1,"b▁":4,"▁":3,"b":2},"merges":["b ▁"]}}"#,
    r#"{"added_tokens":[{"id":4,"content":"<|begin_of_text|>","special":true}],"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel"}]},"model":{"type":"BPE","vocab":{"a":0,"b":1,"Ġ":2,"Ġa":3},"merges":[["Ġ","a"]]}}"#,
    r#"{"added_tokens":[{"id":4,"content":"<e>","special":true}],"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"normalizer":{"type":"NFC"},"model":{"type":"BPE","ignore_merges":true,"vocab":{"a":0,"b":1,"Ġ":2,"Ġa":3},"merges":["Ġ a"]}}"#,
];
