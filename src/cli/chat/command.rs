//! What a line means: a message, or a command that begins with a slash.

use crate::base::suggest;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing but spaces.
    Nothing,
    /// Something to say to the model.
    Message(String),
    /// Something to do.
    Command(Command),
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show what the model is told first, or tell it something else.
    System(Option<String>),
    /// Take the last turn back.
    Undo,
    /// Another answer to the last message.
    Retry,
    /// Change the last message.
    Edit,
    /// Go on with an answer that was cut short.
    Continue,
    /// Write the conversation to a file.
    Save {
        /// Which; the one it came from or went to before, where none is named.
        file: Option<String>,
        /// Whatever is there goes.
        replace: bool,
    },
    /// Read a conversation from a file.
    Load(String),
    /// Show the settings, or change one.
    Set(Option<(String, String)>),
    /// Show how full the context is, and how fast the model.
    Stats,
    /// Begin anew.
    Clear,
    /// Show the commands.
    Help,
    /// End.
    Exit,
}

/// A command as people see it.
pub struct Known {
    /// Its name, without the slash.
    pub name: &'static str,
    /// What goes after it.
    pub takes: &'static str,
    /// What it does.
    pub help: &'static str,
}

const fn known(name: &'static str, takes: &'static str, help: &'static str) -> Known {
    Known { name, takes, help }
}

/// The commands there are, but for other names that some go by.
pub const KNOWN: [Known; 12] = [
    known("retry", "", "have the last message answered again"),
    known("edit", "", "change the last message, and have it answered anew"),
    known("undo", "", "take back the last message and its answer"),
    known("continue", "", "go on with an answer that was cut short"),
    known("system", "[TEXT]", "what the model is told first: show it, or set it; '-' for nothing"),
    known("set", "[NAME VALUE]", "change a setting, as in /set temperature 0.7; alone, show them"),
    known("save", "[FILE]", "write the conversation to a file (JSON); /save! replaces one"),
    known("load", "FILE", "read a conversation from such a file"),
    known("stats", "", "how full the context is, and how fast the model"),
    known("clear", "", "begin anew; the system message and the settings stay"),
    known("help", "", "this list"),
    known("exit", "", "end, as Ctrl-D does"),
];

/// Other names, and what they stand for.
const ALIASES: [(&str, &str); 5] =
    [("new", "clear"), ("reset", "clear"), ("quit", "exit"), ("bye", "exit"), ("?", "help")];

/// Opens and closes a message of several lines.
pub const FENCE: &str = "\"\"\"";

/// Whether a message of several lines has been opened and not closed: more is to come.
pub fn is_open(text: &str) -> bool {
    text.trim_start().strip_prefix(FENCE).is_some_and(|rest| !rest.trim_end().ends_with(FENCE))
}

/// What `text` means.
///
/// # Errors
/// A sentence, where it looks like a command and is none.
pub fn parse(text: &str) -> Result<Typed, String> {
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

fn command(rest: &str) -> Result<Command, String> {
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
        _ => Err(format!("/{typed} takes nothing after it")),
    };
    match name {
        "system" => Ok(Command::System(some)),
        "undo" => alone(Command::Undo),
        "retry" => alone(Command::Retry),
        "edit" => alone(Command::Edit),
        "continue" => alone(Command::Continue),
        "save" => Ok(Command::Save { file: some, replace }),
        "load" => some.map(Command::Load).ok_or_else(|| "which file? /load FILE".to_string()),
        "set" => match after.split_once(|c: char| c.is_whitespace() || c == '=') {
            _ if after.is_empty() => Ok(Command::Set(None)),
            Some((name, value)) => Ok(Command::Set(Some((name.to_string(), value.trim().to_string())))),
            None => Err(format!("to what? /set {after} VALUE; /set alone shows the settings")),
        },
        "stats" => alone(Command::Stats),
        "clear" => alone(Command::Clear),
        "help" => alone(Command::Help),
        "exit" => alone(Command::Exit),
        _ => Err(unknown(typed)),
    }
}

fn unknown(typed: &str) -> String {
    // What is pasted may be long, and no name.
    let short: String = typed.chars().take(30).collect();
    let dots = if short.len() < typed.len() { "..." } else { "" };
    let names = KNOWN.iter().map(|k| k.name).chain(ALIASES.iter().map(|(alias, _)| *alias));
    let near: Vec<String> = suggest::suggest(typed, names).into_iter().map(|name| format!("/{name}")).collect();
    let question = suggest::question(&near).unwrap_or_else(|| "/help lists them.".to_string());
    format!("there is no command /{short}{dots}; {question} A message that begins with a slash is written with two.")
}

/// How lines are typed: the end of what `/help` shows.
pub const TYPING: [&str; 4] = [
    "A line that ends in \\ goes on in the next one; so does one ended with Alt-Enter.",
    "What is pasted is one message, whatever lines it has; \"\"\" opens and closes a message of several lines.",
    "A message that begins with a slash is written with two: //like this.",
    "Ctrl-C stops an answer, or clears what you are typing; Tab completes commands and files.",
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
        for (line, wanted) in [
            ("/hlep", "there is no command /hlep; did you mean /help?"),
            ("/unod", "did you mean /undo?"),
            ("/usr/bin/env is missing", "is written with two"),
            ("/", "there is no command /;"),
            ("/undo 3", "/undo takes nothing after it"),
            ("/quit now", "/quit takes nothing after it"),
            ("/load", "which file?"),
            ("/set temperature", "to what? /set temperature VALUE"),
            ("/undo!", "there is no command /undo!; did you mean /undo?"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(wanted), "{line}: {error}");
        }
        assert!(parse(&format!("/{}", "x".repeat(1_000_000))).unwrap_err().len() < 300);
    }

    #[test]
    fn every_command_in_the_list_is_understood() {
        for Known { name, takes, .. } in &KNOWN {
            let line = format!("/{name} {}", if takes.starts_with("FILE") { "x" } else { "" });
            assert!(parse(&line).is_ok(), "{line}");
        }
    }
}
