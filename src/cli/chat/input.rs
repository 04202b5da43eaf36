//! Reads lines: from a person at a terminal, or from a pipe.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustyline::completion::{Completer, Pair};
use rustyline::config::{Behavior, BellStyle};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{
    Cmd, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event, EventContext, EventHandler, Helper,
    KeyCode, KeyEvent, Modifiers, RepeatCount,
};

use unicode_width::UnicodeWidthChar;

use super::command::{self, is_open};
use super::files;
use super::settings;
use crate::base::display::is_unprintable;
use crate::base::folders;
use crate::base::text::without_mark;

/// A line, or what happened instead.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A message or a command.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of input.
    End,
}

/// A source of lines.
pub enum Input {
    /// A person at a terminal.
    Terminal(Box<Terminal>),
    /// A script.
    Pipe(Script),
}

/// Lines of a script.
pub struct Script {
    reader: Box<dyn BufRead>,
    /// Whether the first line is still to come: it may begin with a byte order mark.
    first: bool,
}

impl Input {
    /// Opens standard input. Lines typed at a terminal are saved in `history`; `colour` is for the prompt.
    ///
    /// # Errors
    /// If the terminal cannot be set up.
    pub fn open(history: Option<PathBuf>, colour: bool) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe(Script { reader: Box::new(BufReader::new(io::stdin())), first: true }));
        }
        Ok(Self::Terminal(Box::new(Terminal::open(history, colour)?)))
    }

    /// Returns whether standard input is a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// Reads the next message or command. On a terminal, the line begins with `prefill`.
    ///
    /// # Errors
    /// If standard input cannot be read, or is not UTF-8.
    pub fn next(&mut self, prefill: &str) -> anyhow::Result<Line> {
        match self {
            Self::Terminal(terminal) => terminal.next(prefill),
            Self::Pipe(script) => read_piped(script),
        }
    }
}

/// Reads a line, or several: a line that ends in a backslash continues, and quotes are read up to the closing ones.
fn read_piped(script: &mut Script) -> anyhow::Result<Line> {
    let mut text = String::new();
    loop {
        let mut bytes = Vec::new();
        let n = script.reader.read_until(b'\n', &mut bytes).context("cannot read standard input")?;
        if n == 0 {
            // A message without its end is still a message.
            return Ok(if text.is_empty() { Line::End } else { Line::Text(text) });
        }
        let mut line = String::from_utf8(bytes).context("standard input is not UTF-8 text")?;
        if std::mem::take(&mut script.first) {
            line = without_mark(line);
        }
        let line = line.strip_suffix('\n').unwrap_or(&line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        text.push_str(line);
        if is_open(&text) {
            text.push('\n');
        } else if let Some(cut) = continues(&text) {
            text.truncate(cut);
            text.push('\n');
        } else {
            return Ok(Line::Text(text));
        }
    }
}

/// Where a line that continues on the next one is cut: before its last backslash.
fn continues(text: &str) -> Option<usize> {
    text.strip_suffix('\\').map(str::len)
}

/// A line editor.
pub struct Terminal {
    editor: Editor<EditorHelper, FileHistory>,
    history: Option<PathBuf>,
    prompt: (&'static str, &'static str),
}

impl Terminal {
    fn open(history: Option<PathBuf>, colour: bool) -> anyhow::Result<Self> {
        let mut config = Config::builder()
            .max_history_size(2000)?
            .history_ignore_dups(true)?
            // As in shells, a line that begins with a space is not saved.
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .bell_style(BellStyle::None)
            .auto_add_history(false);
        if !io::stdout().is_terminal() {
            // The prompt must not go into the pipe.
            config = config.behavior(Behavior::PreferTerm);
        }
        let mut editor = Editor::with_config(config.build()).context("cannot set up the terminal")?;
        editor.set_helper(Some(EditorHelper));
        let enter = |mods| Event::from(KeyEvent(KeyCode::Enter, mods));
        editor.bind_sequence(enter(Modifiers::NONE), EventHandler::Conditional(Box::new(Enter)));
        editor.bind_sequence(KeyEvent::ctrl('J'), EventHandler::Conditional(Box::new(Enter)));
        editor.bind_sequence(enter(Modifiers::ALT), Cmd::Newline);
        if let Some(path) = &history {
            // The first time, there is no file yet.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history, prompt: ("> ", if colour { "\x1b[1;36m>\x1b[0m " } else { "> " }) })
    }

    fn next(&mut self, prefill: &str) -> anyhow::Result<Line> {
        match self.editor.readline_with_initial(&self.prompt, (prefill, "")) {
            Ok(text) => {
                let text = joined(&text);
                self.save(&text);
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            // The terminal has been closed: nobody would read an error.
            Err(ReadlineError::Eof | ReadlineError::Io(_) | ReadlineError::Errno(_)) => Ok(Line::End),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }

    fn save(&mut self, text: &str) {
        let Some(path) = self.history.as_deref().filter(|_| !text.trim().is_empty()) else { return };
        // A history that cannot be written does not end the chat.
        if matches!(self.editor.add_history_entry(text), Ok(true)) && make_private_folder(path).is_ok() {
            let _ = self.editor.append_history(path);
        }
    }
}

fn make_private_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(crate::base::atomic_file::folder(path))
}

/// Returns the history file: `$NIBBLE_HISTORY`, where an empty value means none, or else a file in the system's
/// directory for application state.
pub fn history_file() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("NIBBLE_HISTORY") {
        return (!given.is_empty()).then(|| given.into());
    }
    Some(folders::state()?.join("chat-history"))
}

/// Marks a backslash and line break that were typed to continue a line. Both are removed when the message is sent,
/// while such pairs in pasted code stay. It is not displayed.
const TYPED: char = '\u{2060}';

/// Removes the backslashes that only continued a line.
fn joined(text: &str) -> String {
    text.replace(&format!("\\{TYPED}\n"), "\n").replace(&format!("{TYPED}\n"), "\n")
}

/// Enter sends the message, unless it continues on the next line.
struct Enter;

impl ConditionalEventHandler for Enter {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let line = context.line();
        if is_open(line) {
            return Some(Cmd::Newline);
        }
        let at_end = context.pos() == line.len() && continues(line).is_some();
        Some(if at_end { Cmd::Insert(1, format!("{TYPED}\n")) } else { Cmd::AcceptLine })
    }
}

/// Completes commands and escapes what is displayed.
struct EditorHelper;

impl Helper for EditorHelper {}
impl Validator for EditorHelper {}

impl Hinter for EditorHelper {
    type Hint = String;
}

impl Highlighter for EditorHelper {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        // The editor prints the line as it is, and an edited message may come from a file. Most of these have no width.
        let hidden = |c: char| c == TYPED || (is_unprintable(c) && !matches!(c, '\n' | '\t'));
        if !line.contains(hidden) {
            return Cow::Borrowed(line);
        }
        let mut shown = String::with_capacity(line.len());
        for c in line.chars() {
            match hidden(c) {
                false => shown.push(c),
                true => shown.extend(std::iter::repeat_n(' ', c.width().unwrap_or(0))),
            }
        }
        Cow::Owned(shown)
    }
}

impl Completer for EditorHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        Ok(complete(&line[..at]))
    }
}

/// Returns the completions of a line, and where in the line they begin.
fn complete(line: &str) -> (usize, Vec<Pair>) {
    let pair = |name: &str, more: &str| Pair { display: name.to_string(), replacement: format!("{name}{more}") };
    let Some(rest) = line.strip_prefix('/') else { return (0, Vec::new()) };
    let Some((name, after)) = rest.split_once(' ') else {
        let names = command::KNOWN.iter().filter(|known| known.name.starts_with(rest));
        return (1, names.map(|known| pair(known.name, if known.takes.is_empty() { "" } else { " " })).collect());
    };
    let start = line.len() - after.len();
    match name {
        "save" | "save!" | "load" => {
            let (folder, begun) = after.rsplit_once('/').map_or(("", after), |(f, n)| (&after[..f.len() + 1], n));
            let names = files::complete(folder, begun);
            (line.len() - begun.len(), names.iter().map(|name| pair(name, "")).collect())
        }
        "set" => {
            let names = settings::names().filter(|name| name.starts_with(after));
            (start, names.map(|name| pair(name, " ")).collect())
        }
        _ => (start, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped(text: &str) -> Vec<Line> {
        let mut script = Script { reader: Box::new(io::Cursor::new(text.to_string())), first: true };
        let mut lines = Vec::new();
        loop {
            match read_piped(&mut script).unwrap() {
                Line::End => return lines,
                line => lines.push(line),
            }
        }
    }

    #[test]
    fn every_line_of_a_script_is_a_message_unless_it_goes_on() {
        let text = |text: &str| Line::Text(text.to_string());
        assert_eq!(piped("a\r\nb"), [text("a"), text("b")]);
        assert_eq!(piped("a\\\nb\\\n\nc\n"), [text("a\nb\n"), text("c")]);
        assert_eq!(piped("\"\"\"\na\\\n\n/undo\n\"\"\"\nb\n"), [text("\"\"\"\na\\\n\n/undo\n\"\"\""), text("b")]);
        assert_eq!(piped("\"\"\"\nnever closed"), [text("\"\"\"\nnever closed\n")]);
        assert_eq!(piped(""), []);
        assert_eq!(piped("\u{feff}a\n\u{feff}b"), [text("a"), text("\u{feff}b")], "a byte order mark");
        let mut bad = Script { reader: Box::new(io::Cursor::new(b"\xff\n".to_vec())), first: true };
        assert!(read_piped(&mut bad).unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn a_backslash_goes_when_it_was_typed_before_a_line_break() {
        let typed = format!("a\\{TYPED}\nb\\\nc\\");
        assert_eq!(joined(&typed), "a\nb\\\nc\\");
        assert_eq!(EditorHelper.highlight("a\u{1b}[2J\u{2060}\n\t你\u{202e}\u{9b}", 0), "a[2J\n\t你");
    }

    #[test]
    fn commands_settings_and_files_are_completed() {
        let ways = |line: &str| {
            let (start, pairs) = complete(line);
            (start, pairs.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(ways("/re"), (1, vec!["retry".to_string()]));
        assert_eq!(
            ways("/s"),
            (1, vec!["system ".to_string(), "set ".to_string(), "save ".to_string(), "stats".to_string()])
        );
        let (start, settings) = ways("/set top_");
        assert_eq!(start, 5);
        assert!(["top_k ", "top_p "].iter().all(|wanted| settings.iter().any(|setting| setting == wanted)));
        assert!(settings.iter().all(|setting| setting.starts_with("top_")), "{settings:?}");
        assert_eq!(ways("hello /s").1.len(), 0);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("my chat.json"), "").unwrap();
        std::fs::create_dir(dir.path().join("my folder")).unwrap();
        let line = format!("/load {}/my", dir.path().display());
        assert_eq!(ways(&line), (line.len() - 2, vec!["my chat.json".to_string(), "my folder/".to_string()]));
        assert_eq!(ways("/load /nowhere/at/all/x").1.len(), 0);
        assert!(ways("/说").1.is_empty());
    }
}
