//! Prints answers to standard output and everything else to standard error, so that a script can read the answers
//! alone. All text from a model or a file goes through [`crate::base::display`] first.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use unicode_width::UnicodeWidthChar;

use crate::base::display::{printable, printable_lines, printable_prose};

/// Standard output and standard error.
pub struct Screen {
    /// Whether standard output is a terminal.
    terminal: bool,
    /// Whether remarks and errors are colored.
    colour: bool,
    /// Whether nothing of the answer has been printed yet.
    fresh: bool,
    /// Whether the last character printed is a line break.
    ended_line: bool,
    /// Wraps the lines of the answer.
    wrap: Option<Wrap>,
    error: Option<io::Error>,
}

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

impl Screen {
    /// The streams of this process.
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

    /// Returns whether remarks and errors are colored.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Begins an answer. If `wrap`, its lines are wrapped on a terminal.
    pub fn begin(&mut self, wrap: bool) {
        (self.fresh, self.ended_line) = (true, true);
        self.wrap = (wrap && self.terminal).then(|| Wrap::new(width()));
    }

    /// Prints more of an answer. Breaks when standard output cannot be written to.
    pub fn text(&mut self, text: &str) -> ControlFlow<()> {
        if !self.terminal {
            return self.write(text);
        }
        let text = printable_prose(if self.fresh { text.trim_start() } else { text });
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

    /// Ends an answer, with a line break unless it has one.
    pub fn end(&mut self) {
        let mut rest = String::new();
        if let Some(mut wrap) = self.wrap.take() {
            wrap.finish(&mut rest);
        }
        if !(if rest.is_empty() { self.ended_line && !self.fresh } else { rest.ends_with('\n') }) {
            rest.push('\n');
        }
        // The caller asks for the error at the end of the turn.
        let _ = self.write(&rest);
    }

    /// Prints an empty line before the next prompt, on a terminal.
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

    /// Takes the error, if standard output could not be written to.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// Prints a remark on one line, in parentheses.
    pub fn note(&self, text: &str) {
        self.styled(DIM, &format!("({})", printable(text)));
    }

    /// Prints an error.
    pub fn show_error(&self, text: &str) {
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

    /// Prints lines of information.
    pub fn say(&self, text: &str) {
        eprintln!("{}", wrap(&printable_lines(text), width(), 0));
    }

    /// Prints pairs of a word and its meaning: side by side, or one below the other on a narrow terminal.
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

/// The width to wrap lines at, in columns; unlimited without a terminal.
fn width() -> usize {
    if !io::stderr().is_terminal() && !io::stdout().is_terminal() {
        return usize::MAX;
    }
    let columns = comfy_table::Table::new().width().map_or(80, usize::from);
    if columns < 10 { 80 } else { columns }
}

fn columns(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Wraps lines at spaces to at most `width` columns, unless a single word is wider. Continued lines are indented by
/// `indent` spaces. Lines that fit are unchanged.
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
            // Leading spaces show up as empty words.
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

/// Wraps lines as text arrives. A word is held back until its end is known. Lines between three backticks are code, and
/// are not wrapped.
struct Wrap {
    width: usize,
    /// The column of the next character.
    column: usize,
    spaces: usize,
    word: String,
    wide: usize,
    /// Whether the last character of the word is two columns wide, as Chinese is.
    ends_wide: bool,
    /// The first characters of the line.
    head: String,
    in_code: bool,
}

/// Characters that a line cannot begin with.
const CLOSING: &str = "，。、；：！？）】》」』”’…,.;:!?)]}";

/// Opens and closes code in an answer.
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
                    // Chinese can be broken at any character, but a line cannot begin with closing punctuation.
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

    /// Writes the word on this line if it fits, or on the next one.
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
            // The terminal has wrapped it.
            self.column %= self.width.max(1);
        }
        self.word.clear();
        (self.wide, self.ends_wide) = (0, false);
    }

    /// Writes everything that was held back.
    fn finish(&mut self, out: &mut String) {
        self.place(out);
        out.push_str(&" ".repeat(std::mem::take(&mut self.spaces)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("the quick brown fox", 10, 0), "the quick\nbrown fox");
        assert_eq!(wrap("  /set  changes a setting", 15, 8), "  /set  changes\n        a\n        setting");
        assert_eq!(wrap("incomprehensibilities it is", 5, 0), "incomprehensibilities\nit is");
        assert_eq!(wrap("零一 万物 模型", 9, 0), "零一 万物\n模型");
        assert_eq!(wrap("short\n  lines  stay", 80, 4), "short\n  lines  stay");
    }

    /// Wraps `text` that arrives in pieces of `piece` characters.
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
