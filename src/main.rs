//! Parses the command line, runs the subcommand, and prints its error.

use std::process::ExitCode;

use nibble::cli::{Cli, report};

fn main() -> ExitCode {
    match Cli::of_line().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}
