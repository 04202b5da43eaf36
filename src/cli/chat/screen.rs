//! What is shown: answers on standard output, everything else on standard error, so that a script reads the answers
//! alone. Nothing that comes from a model or a file drives the terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use unicode_width::UnicodeWidthChar;

use super::super::out::{printable, printable_lines};

/// Where things are shown.
pub struct Screen {
    /// Whether a person reads the answers.
    terminal: bool,
    /// Whether what is not an answer may be in colour.
    colour: bool,
    /// Nothing of the answer has been shown yet.
    fresh: bool,
    ended_line: bool,
    error: Option<io::Error>,
}

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

impl Screen {
    /// The program's own.
    pub fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            colour: io::stderr().is_terminal() && wants_colour(),
            fresh: true,
            ended_line: true,
            error: None,
        }
    }

    /// Whether colours are shown.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// An answer begins.
    pub fn begin(&mut self) {
        (self.fresh, self.ended_line) = (true, true);
    }

    /// Shows more of an answer. Breaks where nobody reads it.
    pub fn text(&mut self, text: &str) -> ControlFlow<()> {
        let text = match self.terminal {
            false => Cow::Borrowed(text),
            true => shown(if self.fresh { text.trim_start() } else { text }),
        };
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.fresh = false;
        self.write(&text)
    }

    /// The answer is over; what follows stands on a line of its own.
    pub fn end(&mut self) {
        let ending = match (self.ended_line && !self.fresh, self.terminal) {
            (false, false) => "\n",
            (true, false) => "",
            // An empty line before the next prompt.
            (false, true) => "\n\n",
            (true, true) => "\n",
        };
        // An error is kept, and seen to at the end of the turn.
        let _ = self.write(ending);
    }

    fn write(&mut self, text: &str) -> ControlFlow<()> {
        if let Some(last) = text.chars().next_back() {
            self.ended_line = last == '\n';
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// Why standard output takes no more, once.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// A remark in a line.
    pub fn note(&self, text: &str) {
        self.styled(DIM, &format!("({})", printable(text)));
    }

    /// What went wrong, in a sentence.
    pub fn wrong(&self, text: &str) {
        self.styled(RED, &printable_lines(text));
    }

    fn styled(&self, style: &str, text: &str) {
        let text = wrap(text, width(), 0);
        if self.colour {
            eprintln!("{style}{text}{RESET}");
        } else {
            eprintln!("{text}");
        }
    }

    /// Lines of information.
    pub fn say(&self, text: &str) {
        eprintln!("{}", wrap(&printable_lines(text), width(), 0));
    }

    /// Pairs of a word and what it means: beside each other, or below each other where it is narrow.
    pub fn list<'a>(&self, pairs: impl IntoIterator<Item = (String, Cow<'a, str>)>) {
        let pairs: Vec<_> = pairs.into_iter().collect();
        let longest = pairs.iter().map(|(word, _)| columns(word)).max().unwrap_or(0);
        let width = width();
        for (word, meaning) in pairs {
            let (word, meaning) = (printable(&word), printable(&meaning));
            if longest + 40 <= width {
                let padding = " ".repeat(longest - columns(&word));
                eprintln!("{}", wrap(&format!("  {word}{padding}  {meaning}"), width, longest + 4));
            } else {
                eprintln!("  {word}");
                eprintln!("{}", wrap(&format!("    {meaning}"), width, 4));
            }
        }
    }
}

/// <https://no-color.org>
fn wants_colour() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the terminal.
fn width() -> usize {
    let columns = comfy_table::Table::new().width().map_or(80, usize::from);
    if columns < 10 { 80 } else { columns }
}

/// What a model writes, fit for a terminal: as [`printable_lines`], but the marks that right-to-left writing needs stay,
/// and carriage returns and byte order marks, which come of the texts that models learn from, go.
fn shown(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()) && printable_lines(text) == text {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut buffer = [0; 4];
    for c in text.chars() {
        match c {
            '\r' | '\u{feff}' => {}
            '\u{61c}' | '\u{200e}' | '\u{200f}' => out.push(c),
            '\u{2028}' | '\u{2029}' => out.push('\n'),
            c => out.push_str(&printable_lines(c.encode_utf8(&mut buffer))),
        }
    }
    Cow::Owned(out)
}

fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Breaks lines at spaces so that they are no wider than `width`, where words allow it; further lines of one begin with
/// so many spaces. Lines that fit stay as they are.
fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if columns(line) <= width {
            out.push_str(line);
            continue;
        }
        let mut at = 0;
        for (j, word) in line.split(' ').enumerate() {
            let wide = columns(word);
            // Spaces at the beginning are empty words.
            if j > 0 && at > indent && at + 1 + wide > width && !word.is_empty() {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                at = indent;
            } else if j > 0 {
                out.push(' ');
                at += 1;
            }
            out.push_str(word);
            at += wide;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_model_writes_drives_the_terminal() {
        assert_eq!(shown("Hi, 你好!\n\tA\r\n"), "Hi, 你好!\n\tA\n");
        assert_eq!(shown("\x1b]0;title\x07\x1b[2J\u{9b}1m"), "\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{9b}1m");
        assert_eq!(shown("\u{202e}gpj.exe\u{2066}"), "\\u{202e}gpj.exe\\u{2066}");
        assert_eq!(shown("\u{feff}שלום\u{200f}!\u{2028}x"), "שלום\u{200f}!\nx");
        assert!(matches!(shown("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("the quick brown fox", 10, 0), "the quick\nbrown fox");
        assert_eq!(wrap("  /set  changes a setting", 14, 8), "  /set \n        changes\n        a\n        setting");
        assert_eq!(wrap("incomprehensibilities it is", 5, 0), "incomprehensibilities\nit is");
        assert_eq!(wrap("零一 万物 模型", 9, 0), "零一 万物\n模型");
        assert_eq!(wrap("short\n  lines  stay", 80, 4), "short\n  lines  stay");
    }
}
