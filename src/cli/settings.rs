//! Flags from a TOML file, by the same names.
//!
//! ```toml
//! model = "models/Yi-34B-Chat-Q4_K_M.gguf"    # seen from the file's folder
//! port = 8081
//! deterministic = true
//! api-key = ["first", "second"]                # as if the flag were given twice
//! ```
//!
//! What the file says is put in front of what was typed, so that clap checks both, and what was typed counts. A flag whose
//! environment variable is set counts more than the file, too.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, Command, ValueHint};
use toml::Value;

use crate::base::suggest;

/// Reads the file at `path`, and returns the arguments of `command` that it stands for. Flags and positional arguments of
/// `unless` are left out.
///
/// # Errors
/// If the file cannot be read, is not TOML, or has a name that `command` does not have, or a value that no flag has.
pub fn arguments(path: &Path, command: &Command, unless: &dyn Fn(&Arg) -> bool) -> anyhow::Result<Vec<OsString>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    of_text(&text, folder, command, unless).with_context(|| path.display().to_string())
}

fn of_text(
    text: &str,
    folder: &Path,
    command: &Command,
    unless: &dyn Fn(&Arg) -> bool,
) -> anyhow::Result<Vec<OsString>> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| anyhow::anyhow!("{error}"))?;
    let mut arguments = Vec::new();
    for (name, value) in &table {
        let argument = find(command, name)?;
        let is_set = argument.get_env().is_some_and(|variable| std::env::var_os(variable).is_some());
        if is_set || unless(argument) {
            continue;
        }
        for value in texts(name, value, argument)? {
            let value = value.map(|value| match argument.get_value_hint() {
                ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath => folder.join(value).into_os_string(),
                _ => value.into(),
            });
            match (argument.get_long(), value) {
                // In one word, so that a value may begin with a hyphen.
                (Some(long), Some(value)) => {
                    let mut word = OsString::from(format!("--{long}="));
                    word.push(value);
                    arguments.push(word);
                }
                (Some(long), None) => arguments.push(format!("--{long}").into()),
                (None, value) => arguments.extend(value.map(|value| PathBuf::from(value).into())),
            }
        }
    }
    Ok(arguments)
}

/// Finds an argument by the name of its flag, or of the value of a positional one. Underscores are as good as hyphens.
fn find<'c>(command: &'c Command, name: &str) -> anyhow::Result<&'c Arg> {
    let wanted = name.replace('_', "-");
    let own = |argument: &Arg| match argument.get_long() {
        Some(long) => long.to_string(),
        None => argument.get_id().as_str().replace('_', "-"),
    };
    let is_usable = |argument: &&Arg| !matches!(own(argument).as_str(), "config" | "help" | "version");
    if let Some(argument) = command.get_arguments().filter(is_usable).find(|argument| own(argument) == wanted) {
        return Ok(argument);
    }
    let names: Vec<String> = command.get_arguments().filter(is_usable).map(own).collect();
    let near: Vec<String> =
        suggest::suggest(&wanted, names.iter().map(String::as_str)).into_iter().map(str::to_string).collect();
    match suggest::question(&near) {
        Some(question) => bail!("'{name}' is no setting; {question}"),
        None => bail!("'{name}' is no setting; settings have the names of the flags"),
    }
}

/// Returns the values of a setting, one for each time that its flag is given; without a value where it takes none.
fn texts(name: &str, value: &Value, argument: &Arg) -> anyhow::Result<Vec<Option<String>>> {
    let takes_value = argument.get_action().takes_values();
    Ok(match value {
        Value::Boolean(given) if !takes_value => vec![None; usize::from(*given)],
        _ if !takes_value => bail!("'{name}' is true or false, not {value}"),
        Value::Array(list) if matches!(argument.get_action(), ArgAction::Append) => {
            list.iter().map(|value| text(name, value).map(Some)).collect::<anyhow::Result<_>>()?
        }
        value => vec![Some(text(name, value)?)],
    })
}

fn text(name: &str, value: &Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(given) => given.to_string(),
        Value::Array(_) => bail!("'{name}' has one value, not a list"),
        Value::Table(_) | Value::Datetime(_) => bail!("'{name}' has a text or a number, not {value}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let path = Arg::new("model").value_hint(ValueHint::FilePath);
        let flag = |name| Arg::new(name).long(name);
        Command::new("serve").args([
            path,
            flag("config"),
            flag("port").env("NIBBLE_TEST_OF_SETTINGS_PORT"),
            flag("bias"),
            flag("api-key").action(ArgAction::Append),
            flag("deterministic").action(ArgAction::SetTrue),
            flag("prefix-dir").value_hint(ValueHint::DirPath),
        ])
    }

    fn found(text: &str) -> Result<Vec<String>, String> {
        let found = of_text(text, Path::new("there"), &command(), &|argument| argument.get_id() == "bias");
        let shown = |words: Vec<OsString>| words.into_iter().map(|word| word.into_string().unwrap()).collect();
        found.map(shown).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_become_flags() {
        let text =
            "model = 'a.gguf'\nport = 8081\ndeterministic = true\napi_key = ['a', '-b']\nprefix-dir = '/kv'\nbias = 1";
        let wanted =
            ["--api-key=a", "--api-key=-b", "--deterministic", "there/a.gguf", "--port=8081", "--prefix-dir=/kv"];
        assert_eq!(found(text).unwrap(), wanted);
        let parsed = command().get_matches_from([vec!["serve".to_string()], found(text).unwrap()].concat());
        let keys: Vec<&str> = parsed.get_many("api-key").unwrap().map(String::as_str).collect();
        assert_eq!((keys, parsed.get_flag("deterministic")), (vec!["a", "-b"], true));
        assert_eq!(found("deterministic = false").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for (text, wanted) in [
            ("prot = 1", "'prot' is no setting; did you mean port?"),
            ("config = 'b.toml'", "'config' is no setting; settings have the names of the flags"),
            ("deterministic = 'yes'", "'deterministic' is true or false, not \"yes\""),
            ("port = [1, 2]", "'port' has one value, not a list"),
            ("port = { a = 1 }", "'port' has a text or a number, not { a = 1 }"),
        ] {
            assert_eq!(found(text).unwrap_err(), wanted);
        }
        assert!(found("port = ").unwrap_err().contains("line 1"));
    }
}
