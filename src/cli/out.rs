//! Standard output. A reader that goes away is not an error.

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
    /// Prints to `writer`, with tables at most `width` columns wide.
    #[cfg(test)]
    pub fn new(writer: &'a mut dyn Write, width: Option<u16>) -> Self {
        Self { writer, width, terminal: false }
    }

    /// Returns the columns of the terminal; `None` if the output goes elsewhere.
    pub fn width(&self) -> Option<u16> {
        self.width
    }

    /// Returns whether the output goes to a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints a table that fits the terminal.
    pub fn table(&mut self, table: Table) -> io::Result<()> {
        let text = match self.width {
            Some(width) => table::fit(table, width),
            None => table::render(&table),
        };
        self.write_all(text.as_bytes())
    }

    /// Prints text in lines that fit the terminal.
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
/// If `print` fails, or standard output cannot be written. A broken pipe is not an error: `head` has seen enough.
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
}
