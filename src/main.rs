//! Parses, dispatches, and prints an error once.

use std::process::ExitCode;

use clap::Parser;
use nibble::cli::interrupt::{self, Interrupted};

fn main() -> ExitCode {
    match nibble::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            if !message.is_empty() {
                eprintln!("nibble: {message}");
            }
            match error.downcast_ref::<Interrupted>() {
                Some(_) => ExitCode::from(interrupt::EXIT_CODE),
                None => ExitCode::FAILURE,
            }
        }
    }
}
