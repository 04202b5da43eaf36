//! What is shown: answers on standard output, everything else on standard error, so that a script reads the answers
//! alone. Nothing that comes from a model or a file drives the terminal.

use crate::base::display::{printable, printable_lines};
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use unicode_width::UnicodeWidthChar;

/// Where things are shown.
pub struct Screen {
    /// Whether a person reads the answers.
    terminal: bool,
    /// Whether what is not an answer may be in colour.
    colour: bool,
    /// Nothing of the answer has been shown yet.
    fresh: bool,
    ended_line: bool,
    /// Breaks the answer's lines between words.
    wrap: Option<Wrap>,
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
            wrap: None,
            error: None,
        }
    }

    /// Whether colours are shown.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// An answer begins. On a terminal its lines are broken between words where `wrap`.
    pub fn begin(&mut self, wrap: bool) {
        (self.fresh, self.ended_line) = (true, true);
        self.wrap = (wrap && self.terminal).then(|| Wrap::new(width()));
    }

    /// Shows more of an answer. Breaks where nobody reads it.
    pub fn text(&mut self, text: &str) -> ControlFlow<()> {
        if !self.terminal {
            return self.write(text);
        }
        let text = shown(if self.fresh { text.trim_start() } else { text });
        self.fresh &= text.is_empty();
        match &mut self.wrap {
            None => self.write(&text),
            Some(wrap) => {
                let mut out = String::with_capacity(text.len() + 16);
                wrap.push(&text, &mut out);
                self.write(&out)
            }
        }
    }

    /// The answer is over; what follows stands on a line of its own.
    pub fn end(&mut self) {
        let mut rest = String::new();
        if let Some(mut wrap) = self.wrap.take() {
            wrap.finish(&mut rest);
        }
        if !(if rest.is_empty() { self.ended_line && !self.fresh } else { rest.ends_with('\n') }) {
            rest.push('\n');
        }
        // An error is kept, and seen to at the end of the turn.
        let _ = self.write(&rest);
    }

    /// An empty line before the next prompt.
    pub fn gap(&self) {
        if self.terminal {
            eprintln!();
        }
    }

    fn write(&mut self, text: &str) -> ControlFlow<()> {
        let Some(last) = text.chars().next_back() else { return ControlFlow::Continue(()) };
        self.ended_line = last == '\n';
        self.fresh = false;
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
            if width.saturating_sub(longest) >= 28 {
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

/// Columns that lines are broken at; as good as endless where they go to no terminal.
fn width() -> usize {
    if !io::stderr().is_terminal() && !io::stdout().is_terminal() {
        return usize::MAX;
    }
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

/// Breaks lines between words as text comes. A word is held back until its end is known; what stands between three
/// backticks is a program, whose lines are left alone.
struct Wrap {
    width: usize,
    /// Where the next character goes.
    column: usize,
    spaces: usize,
    word: String,
    wide: usize,
    /// Whether its last character is Chinese, or as wide.
    ends_wide: bool,
    /// The line's first characters.
    head: String,
    in_code: bool,
}

/// What belongs to the word before it.
const CLOSING: &str = "，。、；：！？）】》」』”’…,.;:!?)]}";

/// Opens and closes a program in an answer.
const FENCE: &str = "```";

impl Wrap {
    fn new(width: usize) -> Self {
        let (word, head) = (String::new(), String::new());
        Self { width, column: 0, spaces: 0, word, wide: 0, ends_wide: false, head, in_code: false }
    }

    fn push(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            if c != '\n' && self.head.len() < FENCE.len() {
                self.head.push(c);
                self.in_code ^= self.head == FENCE;
            }
            match c {
                '\n' => {
                    self.finish(out);
                    out.push('\n');
                    self.column = 0;
                    self.head.clear();
                }
                ' ' => {
                    self.place(out);
                    self.spaces += 1;
                }
                c => {
                    let wide = c.width().unwrap_or(0);
                    // Chinese breaks before and after any character, but no line begins with what closes.
                    if (wide > 1 || self.ends_wide) && !CLOSING.contains(c) {
                        self.place(out);
                    }
                    self.word.push(c);
                    self.wide += wide;
                    self.ends_wide = wide > 1;
                }
            }
        }
    }

    /// Puts the word where it fits.
    fn place(&mut self, out: &mut String) {
        if self.word.is_empty() {
            return;
        }
        let fits = self.column + self.spaces + self.wide <= self.width;
        if fits || self.column == 0 || self.in_code {
            out.push_str(&" ".repeat(self.spaces));
            self.column += self.spaces;
        } else {
            out.push('\n');
            self.column = 0;
        }
        self.spaces = 0;
        out.push_str(&self.word);
        self.column += self.wide;
        if self.column > self.width {
            // The terminal has broken it.
            self.column %= self.width.max(1);
        }
        self.word.clear();
        (self.wide, self.ends_wide) = (0, false);
    }

    /// Holds nothing back any more.
    fn finish(&mut self, out: &mut String) {
        self.place(out);
        out.push_str(&" ".repeat(std::mem::take(&mut self.spaces)));
    }
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
        assert_eq!(wrap("  /set  changes a setting", 15, 8), "  /set  changes\n        a\n        setting");
        assert_eq!(wrap("incomprehensibilities it is", 5, 0), "incomprehensibilities\nit is");
        assert_eq!(wrap("零一 万物 模型", 9, 0), "零一 万物\n模型");
        assert_eq!(wrap("short\n  lines  stay", 80, 4), "short\n  lines  stay");
    }

    /// `text` as it is wrapped when it comes in pieces of so many characters.
    fn streamed(text: &str, width: usize, piece: usize) -> String {
        let (mut wrap, mut out) = (Wrap::new(width), String::new());
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(piece) {
            wrap.push(&piece.iter().collect::<String>(), &mut out);
        }
        wrap.finish(&mut out);
        out
    }

    #[test]
    fn an_answer_breaks_between_words_in_whatever_pieces_it_comes() {
        for (text, wanted) in [
            ("the quick brown fox jumps", "the quick\nbrown fox\njumps"),
            ("a  b\n  c\n\nd ", "a  b\n  c\n\nd "),
            ("exactly 10\nand 10 too", "exactly 10\nand 10 too"),
            ("incomprehensibilities it is", "incomprehensibilities it is"),
            ("零一万物，模型。你好", "零一万物，\n模型。你好"),
            ("一二三四五。六", "一二三四\n五。六"),
            ("Yi是零一万物的模型", "Yi是零一万\n物的模型"),
            ("零一万物Yi-34B, 34B", "零一万物\nYi-34B,\n34B"),
            ("```\nlet a = 1 + 1 + 1;\n```\nand on it goes", "```\nlet a = 1 + 1 + 1;\n```\nand on it\ngoes"),
        ] {
            for piece in [1, 2, 3, 100] {
                assert_eq!(streamed(text, 10, piece), wanted, "{piece} at a time");
            }
        }
    }
}
