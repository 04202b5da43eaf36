//! Parses a line: a message, or a command that begins with a slash.

use crate::base::suggest;

/// A parsed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Only white space.
    Nothing,
    /// A message to the model.
    Message(String),
    /// A command.
    Command(Command),
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show the system message, or set it.
    System(Option<String>),
    /// Remove the last message and its answer.
    Undo,
    /// Answer the last message again.
    Retry,
    /// Edit the last message.
    Edit,
    /// Continue an answer that was cut short.
    Continue,
    /// Save the conversation to a file.
    Save {
        /// The file; `None` for the one that it was loaded from or last saved to.
        file: Option<String>,
        /// Whether to overwrite an existing file.
        replace: bool,
    },
    /// Load a conversation from a file.
    Load(String),
    /// List the settings, or change one.
    Set(Option<(String, String)>),
    /// Show how full the context is and how fast the model runs.
    Stats,
    /// Start a new conversation.
    Clear,
    /// List the commands.
    Help,
    /// Quit.
    Exit,
}

/// A command as `/help` lists it.
pub struct Known {
    /// Its name, without the slash.
    pub name: &'static str,
    /// Its arguments.
    pub takes: &'static str,
    /// What it does.
    pub help: &'static str,
}

const fn known(name: &'static str, takes: &'static str, help: &'static str) -> Known {
    Known { name, takes, help }
}

/// All commands, without aliases.
pub const KNOWN: [Known; 12] = [
    known("retry", "", "answer the last message again"),
    known("edit", "", "edit the last message and answer it again"),
    known("undo", "", "remove the last message and its answer"),
    known("continue", "", "continue an answer that was cut short"),
    known("system", "[TEXT]", "show the system message, or set it; '-' removes it"),
    known("set", "[NAME VALUE]", "change a setting, as in /set temperature 0.7; without arguments, list them"),
    known("save", "[FILE]", "save the conversation to a JSON file; /save! overwrites an existing one"),
    known("load", "FILE", "load a conversation from a file"),
    known("stats", "", "show how full the context is and how fast the model runs"),
    known("clear", "", "start a new conversation; keeps the system message and the settings"),
    known("help", "", "show this list"),
    known("exit", "", "quit, like Ctrl-D"),
];

/// Aliases, and the commands that they stand for.
const ALIASES: [(&str, &str); 5] =
    [("new", "clear"), ("reset", "clear"), ("quit", "exit"), ("bye", "exit"), ("?", "help")];

/// Opens and closes a message of several lines.
pub const FENCE: &str = "\"\"\"";

/// Returns whether a message of several lines has been opened and not closed.
pub fn is_open(text: &str) -> bool {
    text.trim_start().strip_prefix(FENCE).is_some_and(|rest| !rest.trim_end().ends_with(FENCE))
}

/// Why a line that begins with a slash is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no command of this name.
    #[error("there is no command /{}", excerpt(name))]
    Unknown {
        /// The name that was typed, without the slash.
        name: String,
        /// The nearest names.
        near: Vec<&'static str>,
    },
    /// The command takes no arguments, and has some.
    #[error("/{0} takes no arguments")]
    NoArguments(String),
    /// The command needs a file.
    #[error("/{0} needs the name of a file")]
    NoFile(&'static str),
    /// The setting has a name and no value.
    #[error("/set {} needs a value", excerpt(.0))]
    NoValue(String),
}

/// Pasted text may be long.
fn excerpt(name: &str) -> String {
    const LONGEST: usize = 30;
    let short: String = name.chars().take(LONGEST).collect();
    if short.len() < name.len() { format!("{short}...") } else { short }
}

/// Parses a line.
///
/// # Errors
/// If it begins with a slash and is not a command.
pub fn parse(text: &str) -> Result<Typed, Error> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Ok(Typed::Nothing);
    }
    if let Some(rest) = trimmed.strip_prefix(FENCE) {
        let inside = rest.strip_suffix(FENCE).unwrap_or(rest);
        let inside = inside.strip_prefix('\n').unwrap_or(inside);
        let inside = inside.strip_suffix('\n').unwrap_or(inside);
        return Ok(if inside.trim().is_empty() { Typed::Nothing } else { Typed::Message(inside.to_string()) });
    }
    let Some(rest) = trimmed.strip_prefix('/') else {
        return Ok(Typed::Message(text.trim_end_matches('\n').to_string()));
    };
    if rest.starts_with('/') {
        return Ok(Typed::Message(rest.to_string()));
    }
    command(rest).map(Typed::Command)
}

fn command(rest: &str) -> Result<Command, Error> {
    let (typed, after) = match rest.split_once(char::is_whitespace) {
        Some((name, after)) => (name, after.trim()),
        None => (rest, ""),
    };
    let (name, replace) = match typed.strip_suffix('!') {
        Some("save") => ("save", true),
        _ => (typed, false),
    };
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| *name);
    let some = (!after.is_empty()).then(|| after.to_string());
    let alone = |command| match after {
        "" => Ok(command),
        _ => Err(Error::NoArguments(typed.to_string())),
    };
    match name {
        "system" => Ok(Command::System(some)),
        "undo" => alone(Command::Undo),
        "retry" => alone(Command::Retry),
        "edit" => alone(Command::Edit),
        "continue" => alone(Command::Continue),
        "save" => Ok(Command::Save { file: some, replace }),
        "load" => some.map(Command::Load).ok_or(Error::NoFile("load")),
        "set" => match after.split_once(|c: char| c.is_whitespace() || c == '=') {
            _ if after.is_empty() => Ok(Command::Set(None)),
            Some((name, value)) => Ok(Command::Set(Some((name.to_string(), value.trim().to_string())))),
            None => Err(Error::NoValue(after.to_string())),
        },
        "stats" => alone(Command::Stats),
        "clear" => alone(Command::Clear),
        "help" => alone(Command::Help),
        "exit" => alone(Command::Exit),
        _ => Err(unknown(typed)),
    }
}

fn unknown(typed: &str) -> Error {
    let names = KNOWN.iter().map(|k| k.name).chain(ALIASES.iter().map(|(alias, _)| *alias));
    Error::Unknown { name: typed.to_string(), near: suggest::suggest(typed, names) }
}

/// How to type messages: the end of what `/help` prints.
pub const TYPING: [&str; 4] = [
    "To continue a message on the next line, end the line in \\ or press Alt-Enter.",
    "Pasted text is one message, however many lines it has; \"\"\" opens and closes a message of several lines.",
    "To begin a message with a slash, type two: //like this.",
    "Ctrl-C stops an answer, or clears the line; Tab completes commands and file names.",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Typed {
        Typed::Message(text.to_string())
    }

    #[test]
    fn a_line_is_a_message_unless_it_begins_with_a_slash() {
        for (line, wanted) in [
            ("", Typed::Nothing),
            (" \t\n", Typed::Nothing),
            ("hello", said("hello")),
            ("  a / b\n", said("  a / b")),
            ("//etc/passwd", said("/etc/passwd")),
            ("你好", said("你好")),
            ("/undo", Typed::Command(Command::Undo)),
            (" /undo ", Typed::Command(Command::Undo)),
            ("/new", Typed::Command(Command::Clear)),
            ("/?", Typed::Command(Command::Help)),
            ("/system", Typed::Command(Command::System(None))),
            ("/system Be brief.\nBe kind.", Typed::Command(Command::System(Some("Be brief.\nBe kind.".into())))),
            ("/save", Typed::Command(Command::Save { file: None, replace: false })),
            ("/save! a b.json", Typed::Command(Command::Save { file: Some("a b.json".into()), replace: true })),
            ("/load x", Typed::Command(Command::Load("x".into()))),
            ("/set", Typed::Command(Command::Set(None))),
            ("/set top_k  3", Typed::Command(Command::Set(Some(("top_k".into(), "3".into()))))),
            ("/set top_k=3", Typed::Command(Command::Set(Some(("top_k".into(), "3".into()))))),
        ] {
            assert_eq!(parse(line).unwrap(), wanted, "{line:?}");
        }
    }

    #[test]
    fn a_message_of_several_lines_is_what_stands_between_the_quotes() {
        for (text, wanted) in [
            ("\"\"\"\na\n  b\n\"\"\"", said("a\n  b")),
            ("\"\"\"a\"\"\"", said("a")),
            ("\"\"\"\n/undo\n\"\"\"\n", said("/undo")),
            ("\"\"\"\n\n\"\"\"", Typed::Nothing),
            ("\"\"\"\"\"\"", Typed::Nothing),
            ("a\nb", said("a\nb")),
        ] {
            assert_eq!(parse(text).unwrap(), wanted, "{text:?}");
            assert!(!is_open(text), "{text:?}");
        }
        for text in ["\"\"\"", "\"\"\"a", " \"\"\"\na\n", "\"\"\"\n\"\"\" no"] {
            assert!(is_open(text), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_command_is_told_with_the_nearest() {
        let unknown = |name: &str, near: &[&'static str]| Error::Unknown { name: name.into(), near: near.to_vec() };
        for (line, wanted, said) in [
            ("/hlep", unknown("hlep", &["help"]), "there is no command /hlep"),
            ("/unod", unknown("unod", &["undo"]), "there is no command /unod"),
            ("/usr/bin/env is missing", unknown("usr/bin/env", &[]), "there is no command /usr/bin/env"),
            ("/undo!", unknown("undo!", &["undo"]), "there is no command /undo!"),
            ("/undo 3", Error::NoArguments("undo".into()), "/undo takes no arguments"),
            ("/quit now", Error::NoArguments("quit".into()), "/quit takes no arguments"),
            ("/load", Error::NoFile("load"), "/load needs the name of a file"),
            ("/set temperature", Error::NoValue("temperature".into()), "/set temperature needs a value"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!((&error, error.to_string().as_str()), (&wanted, said), "{line}");
        }
        assert!(matches!(parse("/").unwrap_err(), Error::Unknown { name, .. } if name.is_empty()));
        for line in [format!("/{}", "x".repeat(1_000_000)), format!("/set {}", "x".repeat(1_000_000))] {
            assert!(parse(&line).unwrap_err().to_string().len() < 100);
        }
    }

    #[test]
    fn every_command_in_the_list_is_understood() {
        for Known { name, takes, .. } in &KNOWN {
            let line = format!("/{name} {}", if takes.starts_with("FILE") { "x" } else { "" });
            assert!(parse(&line).is_ok(), "{line}");
        }
    }
}
