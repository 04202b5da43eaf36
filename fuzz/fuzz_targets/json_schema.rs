//! A JSON schema: reading it, and preparing it for a vocabulary of bytes.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nibble::constrain::Grammar;

fuzz_target!(init: { nibble_fuzz::seeds(SEEDS); nibble_fuzz::let_llguidance_panic() }, |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let made = nibble_fuzz::limit_time(Duration::from_secs(15), || Grammar::json_schema(text));
    if let Err(error) = made {
        assert_eq!(error.to_string().lines().count(), 1);
    }
});

const SEEDS: [&str; 10] = [
    r#"{"type":"object","properties":{"name":{"type":"string","minLength":1},"age":{"type":"integer","minimum":0}},"required":["name"],"additionalProperties":false}"#,
    r#"{"type":"array","items":{"type":"number","exclusiveMaximum":2.5},"minItems":1,"maxItems":3}"#,
    r#"{"anyOf":[{"const":"a"},{"enum":[1,null,true]},{"type":"string","pattern":"^[a-z]{2,5}$"}]}"#,
    r##"{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}}}}}"##,
    r#"{"type":"string","format":"date-time"}"#,
    r#"{"allOf":[{"type":"object","properties":{"a":true}},{"required":["a"]}]}"#,
    r#"{"oneOf":[{"type":"string"},{"type":"integer","multipleOf":3}]}"#,
    r#"{"prefixItems":[{"type":"null"}],"items":false,"minItems":1}"#,
    r#"{"patternProperties":{"^x-":{"type":"string"}},"additionalProperties":{"type":"boolean"},"uniqueItems":false}"#,
    r#"{"type":["string","null"],"maxLength":4,"description":"d","default":null,"examples":[1]}"#,
];
