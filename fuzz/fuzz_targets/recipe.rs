//! A recipe in TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nibble::recipe::Recipe;

fuzz_target!(init: nibble_fuzz::seeds(SEEDS), |bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Recipe::from_toml(text, "fuzzed.toml") {
        Ok(recipe) => recipe.rules.iter().for_each(|rule| drop((rule.conditions(), rule.role_names()))),
        // One line that names the file.
        Err(error) => assert!(error.to_string().starts_with("fuzzed.toml")),
    }
});

const SEEDS: [&str; 4] = [
    include_str!("../../quant-tables/q4_k_m.toml"),
    include_str!("../../quant-tables/iq4_nl.toml"),
    include_str!("../../quant-tables/q3_k_l.toml"),
    include_str!("../../quant-tables/f16.toml"),
];
