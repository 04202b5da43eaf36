//! The program's words: help, tables, JSON.

use clap::CommandFactory;

use crate::support::{convert, error, folder, has, nibble, stdout, yi_nano};

#[test]
fn help_names_every_subcommand() {
    let help = stdout(&nibble(["--help"]));
    // The first words of lines that are indented by two spaces: commands, and options.
    let listed: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let program = nibble::cli::Cli::command();
    let mut n = 0;
    for command in program.get_subcommands() {
        let name = command.get_name();
        assert_eq!(listed.contains(&name), !command.is_hide_set(), "{name} in:\n{help}");
        let about = command.get_about().unwrap_or_else(|| panic!("{name} does not say what it does")).to_string();
        // Lines are broken where the terminal ends.
        let help = stdout(&nibble([name, "--help"])).split_whitespace().collect::<Vec<_>>().join(" ");
        has(&help, &[&format!("Usage: nibble {name} "), &about]);
        n += 1;
    }
    assert!(n >= if cfg!(feature = "llama") { 11 } else { 5 }, "{n} subcommands");
}

#[test]
fn inspect_shows_a_file_and_a_folder() {
    let dir = folder();
    let file = convert(&yi_nano(), &dir.path().join("x.gguf"), &["-q", "Q4_K_M"]);
    let file = file.to_str().unwrap();
    has(&stdout(&nibble(["inspect", file])), &["llama", "6.4", "Q4_K", "Q6_K", "tokenizer.ggml.add_space_prefix"]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&nibble(["inspect", file, "--json"]))).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 39);
    has(&stdout(&nibble(["inspect", file, "--tensor", "blk.0.attn_q.weight"])), &["256", "Min", "Max", "Mean"]);
    has(
        &error(&nibble(["inspect", file, "--tensor", "blk.0.attn_qq.weight"])),
        &["blk.0.attn_qq.weight", "blk.0.attn_q.weight"],
    );

    let nano = yi_nano();
    let nano = nano.to_str().unwrap();
    has(&stdout(&nibble(["inspect", nano])), &["LlamaForCausalLM", "BF16", "lm_head.weight"]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&nibble(["inspect", nano, "--json"]))).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 39);
    has(&stdout(&nibble(["inspect", nano, "--tensor", "lm_head.weight"])), &["6400", "Min", "Max", "Mean"]);
}

#[test]
fn quants_lists_every_recipe_with_sizes() {
    let text = stdout(&nibble(["quants"]));
    for recipe in nibble::recipe::Recipe::all() {
        has(&text, &[&recipe.name]);
    }
    has(&text, &["Yi-34B"]);
}
