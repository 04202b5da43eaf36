//! Parses, dispatches, and prints an error once.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match nibble::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nibble: {error:#}");
            ExitCode::FAILURE
        }
    }
}
