//! A grammar in llama.cpp's notation: reading it, translating it, and preparing it for a vocabulary of bytes.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nibble::constrain::Grammar;

fuzz_target!(init: { nibble_fuzz::seeds(SEEDS); nibble_fuzz::let_llguidance_panic() }, |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let made = nibble_fuzz::limit_time(Duration::from_secs(15), || Grammar::gbnf(text));
    if let Err(error) = made {
        assert_eq!(error.to_string().lines().count(), 1);
    }
});

const SEEDS: [&str; 8] = [
    r##"root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,2})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"##,
    "root ::= \"a\"{2} \"b\"{1,} \"c\"{0,2} (\"d\" | \"e\"?){ 2 , 3 } # comment\r\n",
    "root ::= \"\\x41\\u4e00\\U0001F600\" [ぁ-ゟ]+ [^\\]\\-\\n] .",
    "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] ws term)*\nterm ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*",
    "root ::= a\na ::= b \"x\" | \"y\"\nb ::= a \"z\" | \"w\"",
    "root ::= \"\" | root root | \"a\"",
    "root ::= Camel-1\nCamel-1 ::= [0-9]{3}",
    "root ::= <think> \"a\"",
];
