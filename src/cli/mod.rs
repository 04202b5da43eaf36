//! The subcommands: a file each, with what can be typed and what it does.

mod advice;
#[cfg(feature = "llama")]
mod bench;
#[cfg(feature = "llama")]
mod calibrate;
#[cfg(feature = "llama")]
mod chat;
mod compare;
mod convert;
mod groups;
mod importance;
mod inspect;
pub mod interrupt;
#[cfg(feature = "llama")]
mod machine;
mod making;
pub(crate) mod out;
mod progress;
mod quants;
#[cfg(feature = "llama")]
mod run;
#[cfg(feature = "llama")]
mod sampling;
#[cfg(feature = "llama")]
mod speculation;
#[cfg(feature = "llama")]
mod structure;
pub mod table;
#[cfg(feature = "llama")]
mod template;
#[cfg(feature = "llama")]
mod tokenize;
#[cfg(feature = "llama")]
mod trace;
mod verify;

use clap::{Parser, Subcommand};

/// Converts Yi-34B and its family to 4-bit GGUF, runs it, and shows what is inside.
#[derive(Debug, Parser)]
#[command(name = "nibble", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(convert::Args),
    #[cfg(feature = "llama")]
    Run(run::Args),
    #[cfg(feature = "llama")]
    Chat(chat::Args),
    #[cfg(feature = "llama")]
    Bench(bench::Args),
    #[cfg(feature = "llama")]
    Calibrate(calibrate::Args),
    Compare(compare::Args),
    #[cfg(feature = "llama")]
    Trace(trace::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Quants(quants::Args),
    #[cfg(feature = "llama")]
    Tokenize(tokenize::Args),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// Whatever the subcommand ran into, ready to print.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Convert(args) => convert::run(args),
            #[cfg(feature = "llama")]
            Command::Run(args) => run::run(args),
            #[cfg(feature = "llama")]
            Command::Chat(args) => chat::run(args),
            #[cfg(feature = "llama")]
            Command::Bench(args) => bench::run(args),
            #[cfg(feature = "llama")]
            Command::Calibrate(args) => calibrate::run(args),
            Command::Compare(args) => compare::run(args),
            #[cfg(feature = "llama")]
            Command::Trace(args) => trace::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Quants(args) => quants::run(args),
            #[cfg(feature = "llama")]
            Command::Tokenize(args) => tokenize::run(args),
        }
    }
}

/// The longest error message: a hostile file can name things by the megabyte.
const LONGEST_MESSAGE: usize = 4000;

/// Prints an error on stderr, in one line as far as it has no line breaks of its own, and gives the program's exit code.
pub fn report(error: &anyhow::Error) -> std::process::ExitCode {
    let message = message(error);
    if !message.is_empty() {
        eprintln!("nibble: {message}");
    }
    match error.downcast_ref::<interrupt::Interrupted>() {
        Some(_) => interrupt::EXIT_CODE.into(),
        None => std::process::ExitCode::FAILURE,
    }
}

/// An error and what caused it, as far as that is not said already, fit for a terminal.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    if let Some(advice) = advice::advice(error) {
        message.push_str("; ");
        message.push_str(&advice);
    }
    if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
        message.truncate(end);
        message.push_str("...");
    }
    crate::base::display::printable_lines(&message).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_everything_once_and_nothing_to_the_terminal() {
        let io = || std::io::Error::other("disk on fire");
        let said = message(&anyhow::Error::from(crate::recipe::Error::Read { file: "a.toml".into(), source: io() }));
        assert_eq!(said, "a.toml: disk on fire");
        assert_eq!(message(&anyhow::Error::from(io()).context("while reading")), "while reading: disk on fire");
        assert_eq!(message(&anyhow::anyhow!("tensor \x1b[2J")), "tensor \\u{1b}[2J");
        assert!(message(&anyhow::anyhow!("零".repeat(1_000_000))).chars().count() < 5000);
    }
}
