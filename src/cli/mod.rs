//! The subcommands: a file each, with what can be typed and what it does.

mod convert;
mod groups;
mod inspect;
pub mod interrupt;
mod out;
mod progress;
mod quants;
#[cfg(feature = "llama")]
mod run;
pub mod table;
#[cfg(feature = "llama")]
mod tokenize;
pub mod units;

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
            Command::Inspect(args) => inspect::run(args),
            Command::Quants(args) => quants::run(args),
            #[cfg(feature = "llama")]
            Command::Tokenize(args) => tokenize::run(args),
        }
    }
}
