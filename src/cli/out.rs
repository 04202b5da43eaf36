//! Standard output: a reader that goes away is no error, and words from a file cannot drive the terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Write};

use comfy_table::Table;

use super::table;

/// Where a subcommand prints.
pub struct Out<'a> {
    writer: &'a mut dyn Write,
    width: Option<u16>,
    terminal: bool,
}

impl<'a> Out<'a> {
    /// Prints to `writer`, tables no wider than `width` columns.
    #[cfg(test)]
    pub fn new(writer: &'a mut dyn Write, width: Option<u16>) -> Self {
        Self { writer, width, terminal: false }
    }

    /// Columns of the terminal; `None` where the output goes elsewhere.
    pub fn width(&self) -> Option<u16> {
        self.width
    }

    /// Whether a person looks at the output.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a table, and fits it to the terminal.
    pub fn table(&mut self, table: Table) -> io::Result<()> {
        let text = match self.width {
            Some(width) => table::fit(table, width),
            None => table::render(&table),
        };
        self.write_all(text.as_bytes())
    }

    /// Prints words, in lines that fit the terminal.
    pub fn paragraph(&mut self, text: &str) -> io::Result<()> {
        match self.width {
            Some(width) => self.write_all(table::wrapped(text.to_string(), width, 0).as_bytes()),
            None => writeln!(self, "{text}"),
        }
    }
}

impl Write for Out<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Runs `print` with standard output.
///
/// # Errors
/// Those of `print`, and of standard output, but for the one that says that nobody reads it any more, as when `head`
/// has seen enough.
pub fn to_stdout(print: impl FnOnce(&mut Out) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let stdout = io::stdout().lock();
    let terminal = stdout.is_terminal();
    let mut writer = BufWriter::new(stdout);
    let mut out = Out { writer: &mut writer, width: Table::new().width(), terminal };
    finish(print(&mut out).and_then(|()| Ok(out.flush()?)))
}

fn finish(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

/// `text` with everything escaped that would move the cursor, colour what follows, or turn the direction of writing:
/// what a file says of itself is printed through this. Line breaks become `\n`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// As [`printable`], but line breaks and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let drives = |c: char| !keep(c) && drives(c);
    if !text.contains(drives) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if !drives(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            '\r' => escaped.push_str("\\r"),
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character moves the cursor, colours what follows, or turns the direction of writing.
pub fn drives(c: char) -> bool {
    c.is_control() || is_format(c)
}

/// Characters that are not seen and change what is: marks and overrides of the direction of writing, separators of
/// lines and paragraphs, the byte order mark.
fn is_format(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is() {
        let failed = |kind: io::ErrorKind| finish(Err(io::Error::from(kind).into()));
        assert!(failed(io::ErrorKind::BrokenPipe).is_ok());
        assert!(failed(io::ErrorKind::StorageFull).is_err());
        assert!(finish(Err(anyhow::anyhow!("broken pipe"))).is_err());
    }

    #[test]
    fn nothing_in_a_text_can_drive_the_terminal() {
        assert_eq!(printable("零一万物 Yi-34B é 🤗"), "零一万物 Yi-34B é 🤗");
        assert_eq!(printable("\x1b[2Ja\u{9b}31mb\x07\r\n\t\0"), "\\u{1b}[2Ja\\u{9b}31mb\\u{7}\\r\\n\\t\\u{0}");
        assert_eq!(printable("a\u{202e}fugg.\u{2066}b\u{feff}"), "a\\u{202e}fugg.\\u{2066}b\\u{feff}");
        assert_eq!(printable_lines("{% if a %}\n\tb\x1b\r\n"), "{% if a %}\n\tb\\u{1b}\\r\n");
    }
}
