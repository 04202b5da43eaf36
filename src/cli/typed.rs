//! What people type for other programs of this kind, in the way that this one takes it.
//!
//! llama.cpp's flags of several letters begin with one dash, which here are several flags of one letter each. Its model is
//! a flag, `-m`, and here an argument. So a line for llama-cli or llama-server is spelled anew before it is parsed.

use std::ffi::{OsStr, OsString};

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;
use crate::recipe::Recipe;

/// The subcommands that run one model.
const RUNNING: [&str; 6] = ["run", "chat", "serve", "bench", "calibrate", "tokenize"];
/// Those that write text.
const WRITING: [&str; 2] = ["run", "chat"];

/// Other programs' names of flags that have other names here, and the subcommands that have them.
const SPELLINGS: [(&[&str], &str, &str); 23] = [
    (&RUNNING, "-ngl", "--gpu-layers"),
    (&RUNNING, "--n-gpu-layers", "--gpu-layers"),
    (&RUNNING, "-ngld", "--draft-gpu-layers"),
    (&RUNNING, "-md", "--draft"),
    (&RUNNING, "--model-draft", "--draft"),
    (&RUNNING, "--ctx-size", "--ctx"),
    (&WRITING, "-sys", "--system"),
    (&WRITING, "--system-prompt", "--system"),
    (&WRITING, "--n-predict", "--max-tokens"),
    (&WRITING, "--predict", "--max-tokens"),
    (&WRITING, "-r", "--stop"),
    (&WRITING, "--reverse-prompt", "--stop"),
    (&["run"], "-cnv", "--chat"),
    (&["run"], "--conversation", "--chat"),
    (&["serve"], "-np", "--parallel"),
    (&["serve"], "-ub", "--ubatch-size"),
    (&["serve"], "-to", "--timeout"),
    (&["serve"], "--n-parallel", "--parallel"),
    (&["convert"], "--outtype", "--quantize"),
    (&["convert"], "--outfile", "--output"),
    (&["compare", "trace"], "-f", "--text"),
    (&["compare", "compare-recipes", "trace"], "--file", "--text"),
    (&["compare", "compare-recipes", "trace"], "-ngl", "--gpu-layers"),
];

/// The flags for the type of the KV cache's keys, and of its values, which are one flag here.
const KV_TYPES: [[&str; 2]; 2] = [["-ctk", "--cache-type-k"], ["-ctv", "--cache-type-v"]];

/// Flags of llama-cli that ask for what is done here anyway.
const USUAL: [&str; 8] =
    ["-e", "--escape", "--color", "-no-cnv", "--no-conversation", "--no-display-prompt", "--jinja", "--simple-io"];

/// Flags of llama-server that ask for what is done here anyway.
const USUAL_OF_SERVERS: [&str; 7] =
    ["-cb", "--cont-batching", "--jinja", "--metrics", "--props", "--slots", "--cache-prompt"];

/// Flags whose value is a text, which may look like a flag.
const TEXTS: [&str; 10] = [
    "-p",
    "--api-key",
    "--prompt",
    "--system",
    "--system-prompt",
    "-sys",
    "--stop",
    "-r",
    "--regex",
    "--dry-sequence-breaker",
];

/// Spells a command line as this program takes it.
pub fn spelled(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = line.into_iter().collect();
    let Some(command) = words.get(1).and_then(|command| command.to_str()).map(str::to_string) else { return words };
    if command == "convert" {
        words = quantize(words);
    }
    let (is_running, is_writing) = (RUNNING.contains(&&*command), WRITING.contains(&&*command));
    let respelled = |flag: &str| {
        let known = SPELLINGS.iter().find(|(commands, theirs, _)| commands.contains(&&*command) && *theirs == flag);
        // With underscores, as in llama.cpp's own names of parameters and in Python.
        let hyphens = || (flag.starts_with("--") && flag.contains('_')).then(|| flag.replace('_', "-"));
        known.map(|(_, _, ours)| ours.to_string()).or_else(hyphens)
    };
    let mut out: Vec<OsString> = words.drain(..2).collect();
    let mut words = words.into_iter().peekable();
    let mut kv_types: [Option<String>; 2] = [None, None];
    while let Some(word) = words.next() {
        let text = word.to_str().unwrap_or_default();
        let (flag, value) = text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)));
        if let Some(part) = KV_TYPES.iter().position(|flags| is_running && flags.contains(&flag)) {
            let next = || words.next().map(|value| value.to_string_lossy().into_owned());
            kv_types[part] = Some(value.map(str::to_string).or_else(next).unwrap_or_default());
            continue;
        }
        let next = |words: &mut std::iter::Peekable<std::vec::IntoIter<OsString>>, known: &[&str]| {
            words.peek().and_then(|next| next.to_str()).is_some_and(|next| known.contains(&next))
        };
        match text {
            "--" => {
                out.push(word);
                break;
            }
            _ if is_running && TEXTS.contains(&text) => {
                out.push(respelled(text).map_or(word.clone(), OsString::from));
                out.extend(words.next());
            }
            // The first argument is the model, wherever it stands among the flags.
            "-m" | "--model" if is_running => {
                if let Some(model) = words.next() {
                    out.insert(2, model);
                }
            }
            // Without a value, as it was in earlier versions of llama.cpp.
            "-fa" if is_running && !next(&mut words, &["on", "off", "auto"]) => out.push("--flash-attn=on".into()),
            "-fa" if is_running => out.push("--flash-attn".into()),
            "-t" | "--threads" if is_running && next(&mut words, &["-1"]) => drop(words.next()),
            _ if is_writing && USUAL.contains(&text) => {}
            _ if command == "serve" && USUAL_OF_SERVERS.contains(&text) => {}
            _ => match (text.strip_prefix("--model=").filter(|_| is_running), text.split_once('=')) {
                (Some(model), _) => out.insert(2, model.into()),
                (_, Some((flag, value))) => {
                    let flag = respelled(flag).unwrap_or_else(|| flag.to_string());
                    out.push(format!("{flag}={value}").into());
                }
                _ => out.push(respelled(text).map_or(word.clone(), OsString::from)),
            },
        }
    }
    // What is not said of one of them is llama.cpp's default.
    if kv_types.iter().any(Option::is_some) {
        let [keys, values] = kv_types.map(|ty| ty.unwrap_or_else(|| "f16".to_string()));
        out.insert(2, format!("--kv-type={keys}/{values}").into());
    }
    out.extend(words);
    out
}

/// Spells `IN OUT TYPE` and `IN TYPE`, with or without a number of threads, as llama-quantize has them: among flags, too.
fn quantize(words: Vec<OsString>) -> Vec<OsString> {
    let Some(places) = arguments(&words, "convert") else { return words };
    let is_typed = |flags: &[&str]| {
        let is = |flag: &&str, text: &str| {
            text == *flag || text.starts_with(&format!("{flag}=")) || (flag.len() == 2 && text.starts_with(*flag))
        };
        words[2..].iter().filter_map(|word| word.to_str()).any(|text| flags.iter().any(|flag| is(flag, text)))
    };
    let texts: Vec<&str> = places.iter().map(|&place| words[place].to_str().unwrap_or_default()).collect();
    let (output, recipe, threads) = match texts.as_slice() {
        [_, recipe] => (None, *recipe, None),
        [_, output, recipe] => (Some(*output), *recipe, None),
        [_, output, recipe, threads] if threads.parse::<u16>().is_ok() => (Some(*output), *recipe, Some(*threads)),
        _ => return words,
    };
    // Where a flag says the same, only the user knows which of the two is meant.
    let is_said = is_typed(&["-q", "--quantize", "--outtype", "--recipe"])
        || (output.is_some() && is_typed(&["-o", "--output", "--outfile"]))
        || (threads.is_some() && is_typed(&["-t", "--threads"]));
    if is_said || Recipe::find(recipe).is_err() {
        return words;
    }
    let given = [("-q", Some(recipe)), ("-o", output), ("-t", threads)];
    let flags = given.into_iter().filter_map(|(flag, value)| Some([flag, value?])).flatten().map(OsString::from);
    let mut flags: Vec<OsString> = flags.collect();
    let mut out = Vec::with_capacity(words.len() + 3);
    for (place, word) in words.iter().enumerate() {
        if !places[1..].contains(&place) {
            out.push(word.clone());
        }
        if place == places[0] {
            out.append(&mut flags);
        }
    }
    out
}

/// Returns the places of the words of a line that are neither flags nor their values; `None` if that is not clear.
fn arguments(words: &[OsString], command: &str) -> Option<Vec<usize>> {
    let cli = Cli::command();
    let command = cli.find_subcommand(command)?;
    let takes_value =
        |is: &dyn Fn(&clap::Arg) -> bool| command.get_arguments().filter(|arg| arg.get_action().takes_values()).any(is);
    let mut places = Vec::new();
    let mut at = 2;
    while let Some(word) = words.get(at) {
        let text = word.to_str()?;
        match (text.strip_prefix("--"), text.strip_prefix('-')) {
            // What follows is no flag, whatever it looks like.
            (Some(""), _) => return None,
            (Some(long), _) => {
                let long = long.replace('_', "-");
                let respelled = SPELLINGS.iter().find(|(.., theirs, _)| theirs.strip_prefix("--") == Some(&*long));
                let long = respelled.and_then(|(.., ours)| ours.strip_prefix("--")).unwrap_or(&long);
                let is = |arg: &clap::Arg| {
                    arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|all| all.contains(&long))
                };
                at += usize::from(takes_value(&is));
            }
            // One letter, which has its value beside it or in the next word.
            (None, Some(short)) if short.chars().nth(1).is_none() => {
                at += usize::from(takes_value(&|arg| arg.get_short() == short.chars().next()));
            }
            (None, Some(_)) => {}
            (None, None) => places.push(at),
        }
        at += 1;
    }
    Some(places)
}

/// A flag that makes sense only beside another one.
struct Needs {
    command: &'static str,
    flag: &'static str,
    /// The flag that it needs, as clap names it.
    other: &'static str,
    /// What the flag is about.
    about: &'static str,
}

const fn needs(command: &'static str, flag: &'static str, other: &'static str, about: &'static str) -> Needs {
    Needs { command, flag, other, about }
}

/// All of them. Those of speculation are in several commands.
const NEEDS: [Needs; 22] = [
    needs("bench", "--force", "--output", "the file to write"),
    needs("compare", "--importance", "--weights", "errors of weights"),
    needs("compare", "--task-format", "--task", "tasks"),
    needs("compare", "--shots", "--task", "tasks"),
    needs("compare", "--task-shots", "--task", "tasks"),
    needs("compare", "--limit", "--task", "tasks"),
    needs("compare", "--task-results", "--task", "tasks"),
    needs("compare", "--ctx", "--task", "tasks (texts have --window)"),
    needs("quants", "--toml", "--show", "one recipe"),
    needs("run", "--system", "--chat", "chats"),
    needs("run", "--chat-template", "--chat", "chats"),
    needs("run", "--logprobs", "--json", "the report in JSON"),
    needs("verify", "--importance", "--source", "the comparison with a source"),
    needs("verify", "--seed", "--sample", "the choice of a random part"),
    needs("", "--draft-max", "--draft", "speculation"),
    needs("", "--draft-min", "--draft", "speculation"),
    needs("", "--draft-p-min", "--draft", "speculation"),
    needs("", "--draft-gpu-layers", "--draft", "speculation"),
    needs("", "--grammar-format", "--grammar", "grammars"),
    needs("", "--prefix-dir-size", "--prefix-dir", "prompts on the disk"),
    needs("", "--task-shots", "--task", "tasks"),
    needs("", "--force", "--output", "the file to write"),
];

/// Says of a flag that stands without the one it needs what it is about. Other errors stay as they are.
pub fn explained(error: clap::Error, line: &[OsString]) -> clap::Error {
    let missing = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(missing)) if error.kind() == ErrorKind::MissingRequiredArgument => missing,
        _ => return error,
    };
    let command = line.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let is_typed = |flag: &str| {
        let is = |word: &OsStr| word.to_str().is_some_and(|word| word.split('=').next() == Some(flag));
        line.iter().skip(2).any(|word| is(word))
    };
    let is_missing = |flag: &str| missing.iter().any(|arg| arg.split([' ', '=']).next() == Some(flag));
    let found = NEEDS.iter().find(|needs| {
        (needs.command.is_empty() || needs.command == command) && is_typed(needs.flag) && is_missing(needs.other)
    });
    let Some(Needs { flag, other, about, .. }) = found else { return error };
    let wanted = missing.iter().find(|arg| arg.starts_with(other)).map_or(*other, String::as_str);
    let mut cli = Cli::command();
    let command =
        cli.find_subcommand_mut(command).map(std::mem::take).unwrap_or_default().bin_name(format!("nibble {command}"));
    let mut command = command;
    command.error(ErrorKind::MissingRequiredArgument, format!("{flag} is about {about}, and needs {wanted} beside it"))
}

#[cfg(all(test, feature = "llama"))]
mod tests {
    use clap::Parser;

    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        std::iter::once("nibble").chain(text.split_whitespace()).map(OsString::from).collect()
    }

    fn respelled(text: &str) -> String {
        spelled(line(text)).join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn lines_for_llama_cli_are_spelled_anew() {
        for (theirs, ours) in [
            ("run -m a.gguf -ngl 99 -c 0 -n -1 -p hi", "nibble run a.gguf --gpu-layers 99 -c 0 -n -1 -p hi"),
            ("chat --model=a.gguf -sys -m -fa on", "nibble chat a.gguf --system -m --flash-attn on"),
            ("run -p -m -m a.gguf -- -ngl", "nibble run a.gguf -p -m -- -ngl"),
            (
                "run a.gguf --ctx-size=9 -ctk q8_0 --stop -ngl",
                "nibble run --kv-type=q8_0/f16 a.gguf --ctx=9 --stop -ngl",
            ),
            ("serve --cache-type-v=q5_1 -m a.gguf -ctk q8_0", "nibble serve --kv-type=q8_0/q5_1 a.gguf"),
            ("compare a.gguf -ctv q8_0", "nibble compare a.gguf -ctv q8_0"),
            ("convert -m a", "nibble convert -m a"),
            ("run a -fa -n 3", "nibble run a --flash-attn=on -n 3"),
            ("run a -r User: -e --color --top_p 0.9 -t -1", "nibble run a --stop User: --top-p 0.9"),
            ("run a -cnv --n-predict=5", "nibble run a --chat --max-tokens=5"),
            (
                "serve -m a.gguf -np 2 -c 9 -ngl 3 --api-key -m -cb --jinja -b 9 -ub 3",
                "nibble serve a.gguf --parallel 2 -c 9 --gpu-layers 3 --api-key -m -b 9 --ubatch-size 3",
            ),
            ("bench a -r 3 -t 4", "nibble bench a -r 3 -t 4"),
            ("convert in.gguf out.gguf q4_0 8", "nibble convert in.gguf -q q4_0 -o out.gguf -t 8"),
            ("convert in.gguf Q4_K_M", "nibble convert in.gguf -q Q4_K_M"),
            ("convert in Q4_K_S --dry-run", "nibble convert in -q Q4_K_S --dry-run"),
            ("convert --dry-run in Q4_K_S", "nibble convert --dry-run in -q Q4_K_S"),
            ("convert --allow_requantize in out q8_0 2", "nibble convert --allow-requantize in -q q8_0 -o out -t 2"),
            ("convert --type output=Q8_0 in -t 3 Q4_0 -o x", "nibble convert --type output=Q8_0 in -q Q4_0 -t 3 -o x"),
            ("convert in --importance Q4_0", "nibble convert in --importance Q4_0"),
            ("convert in --split_max_size=4G Q4_0", "nibble convert in -q Q4_0 --split-max-size=4G"),
            // Not clear, or not a recipe: clap says what is wrong.
            ("convert in Q4_0 -q Q8_0", "nibble convert in Q4_0 -q Q8_0"),
            ("convert in Q4_0 -qQ8_0", "nibble convert in Q4_0 -qQ8_0"),
            ("convert in out Q4_0 -o other", "nibble convert in out Q4_0 -o other"),
            ("convert in Q4_0 --outtype q8_0", "nibble convert in Q4_0 --quantize q8_0"),
            ("convert in out Q4_0 2 -t 3", "nibble convert in out Q4_0 2 -t 3"),
            ("convert in x --dry-run", "nibble convert in x --dry-run"),
            ("convert -- in Q4_0", "nibble convert -- in Q4_0"),
            ("convert", "nibble convert"),
            ("convert in.gguf out.gguf", "nibble convert in.gguf out.gguf"),
            ("convert dir --outtype q8_0 --outfile=o.gguf", "nibble convert dir --quantize q8_0 --output=o.gguf"),
            ("compare a b -f wiki.txt", "nibble compare a b --text wiki.txt"),
            ("inspect my_model=x", "nibble inspect my_model=x"),
            ("run", "nibble run"),
            ("run -m", "nibble run"),
        ] {
            assert_eq!(respelled(theirs), ours);
        }
    }

    #[test]
    fn a_flag_without_the_one_it_needs_says_what_it_is_about() {
        let said = |text: &str| {
            let line = line(text);
            explained(Cli::try_parse_from(&line).unwrap_err(), &line).to_string()
        };
        let ctx = said("compare a.gguf b.gguf --text x --ctx 512");
        assert!(ctx.contains("--ctx is about tasks (texts have --window), and needs --task <FILE> beside it"), "{ctx}");
        assert!(ctx.contains("nibble compare"), "{ctx}");
        for (text, words) in [
            ("compare a b --shots=3", "--shots is about tasks, and needs --task <FILE>"),
            ("compare a b --importance x --text y", "--importance is about errors of weights, and needs --weights"),
            ("run m -p x --system s", "--system is about chats, and needs --chat"),
            ("quants --toml", "--toml is about one recipe, and needs --show <NAME>"),
            ("chat m --draft-max 3", "--draft-max is about speculation, and needs --draft <ngram|none|MODEL>"),
            ("run m --grammar-format lark", "--grammar-format is about grammars, and needs --grammar <FILE>"),
            ("verify m --seed 3", "--seed is about the choice of a random part, and needs --sample <SHARE>"),
        ] {
            let said = said(text);
            assert!(said.contains(words), "{text}: {said}");
        }
        // Other arguments that are missing stay what they are.
        assert!(said("compare a").contains("CANDIDATE"));
    }

    /// Returns the arguments that a line lacks.
    fn lacking(line: &[OsString]) -> Vec<String> {
        let Err(error) = Cli::try_parse_from(line) else { return Vec::new() };
        match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) if error.kind() == ErrorKind::MissingRequiredArgument => {
                missing.clone()
            }
            _ => Vec::new(),
        }
    }

    /// A flag that needs another one and is not in the table would only get clap's words.
    #[test]
    fn every_flag_that_needs_another_is_in_the_table() {
        let mut found = std::collections::BTreeSet::new();
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long() else { continue };
                let (name, flag) = (command.get_name(), format!("--{long}"));
                let value = if argument.get_action().takes_values() { " 1" } else { "" };
                for arguments in ["a", "a b"] {
                    let without = lacking(&line(&format!("{name} {arguments}")));
                    let line = line(&format!("{name} {arguments} {flag}{value}"));
                    // What the command needs in any case is not about this flag.
                    let missing = lacking(&line);
                    if missing.iter().any(|arg| arg.starts_with("--") && !without.contains(arg)) {
                        let said = explained(Cli::try_parse_from(&line).err().unwrap(), &line).to_string();
                        assert!(said.contains(&format!("{flag} is about ")), "{name} {flag}: {said}");
                        found.insert(format!("{name} {flag}"));
                    }
                }
            }
        }
        // One that takes words has none of the value above.
        assert!(found.len() > 10, "{found:?}");
    }
}
