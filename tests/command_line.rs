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

#[cfg(feature = "llama")]
#[test]
fn the_help_of_window_mentions_traces_only_where_one_is_read() {
    for (command, wanted) in [
        ("compare", "[default: 512; with a trace, its own]"),
        ("compare-recipes", "of which the second half is scored [default: 512]"),
        ("trace", "of which the second half is scored [default: 512]"),
    ] {
        let help = stdout(&nibble([command, "--help"])).split_whitespace().collect::<Vec<_>>().join(" ");
        has(&help, &["--window <N> Tokens in a window", wanted]);
    }
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

#[test]
fn quants_prints_a_recipe_that_convert_reads_to_the_same_bytes() {
    let dir = folder();
    let toml = nibble(["quants", "--show", "q4_k", "--toml"]);
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/quant-tables/q4_k_m.toml");
    assert_eq!(stdout(&toml).as_bytes(), std::fs::read(committed).unwrap());
    let mine = dir.path().join("mine.toml");
    std::fs::write(&mine, &toml.stdout).unwrap();
    let made = |name: &str, flags: &[&str]| std::fs::read(convert(&yi_nano(), &dir.path().join(name), flags)).unwrap();
    let wanted = made("built-in.gguf", &["-q", "Q4_K_M"]);
    assert!(made("mine.gguf", &["-q", mine.to_str().unwrap()]) == wanted, "-q FILE");
    assert!(made("mine-too.gguf", &["--recipe", mine.to_str().unwrap()]) == wanted, "--recipe FILE");

    for (args, words) in [
        (&["quants", "--toml"][..], &["--toml", "--show"]),
        (&["quants", "--show", "Q4_K_M", "--toml", "--json"], &["--toml", "--json"]),
    ] {
        let refused = nibble(args);
        assert_eq!(refused.status.code(), Some(2));
        has(&String::from_utf8_lossy(&refused.stderr), words);
    }
}
