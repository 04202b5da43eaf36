//! The subcommands. Each has a file with its flags and its implementation.

mod advice;
#[cfg(feature = "llama")]
mod allocation;
mod compare;
mod completions;
mod convert;
#[cfg(feature = "llama")]
mod escapes;
mod groups;
mod importance;
mod inspect;
pub mod interrupt;
mod make_checkpoint;
mod making;
mod man;
pub(crate) mod out;
mod progress;
mod quants;
#[cfg(feature = "llama")]
mod repeats;
pub mod table;
mod typed;
mod verify;

// The subcommands that run models, and their helpers.
#[cfg(feature = "llama")]
mod bench;
#[cfg(feature = "llama")]
mod best;
#[cfg(feature = "llama")]
mod calibrate;
#[cfg(feature = "llama")]
mod chat;
#[cfg(feature = "llama")]
mod compare_recipes;
#[cfg(feature = "serve")]
mod engine;
#[cfg(feature = "llama")]
mod machine;
#[cfg(feature = "llama")]
mod plan;
#[cfg(feature = "llama")]
mod polish;
#[cfg(feature = "llama")]
mod rope;
#[cfg(feature = "llama")]
mod rounding;
#[cfg(feature = "llama")]
mod run;
#[cfg(feature = "llama")]
mod sampling;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serving;
#[cfg(feature = "serve")]
mod settings;
#[cfg(feature = "llama")]
mod speculation;
#[cfg(feature = "llama")]
mod structure;
#[cfg(feature = "llama")]
mod template;
#[cfg(feature = "llama")]
mod tokenize;
#[cfg(feature = "llama")]
mod trace;
#[cfg(feature = "llama")]
mod worker;
#[cfg(feature = "llama")]
mod worker_engine;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Converts Yi-34B and its family to 4-bit GGUF, runs the files, and compares them.
#[derive(Debug, Parser)]
#[command(name = "nibble", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Declares the subcommands in the order in which the help lists them. Each module has `Args`, which clap parses, and
/// `run`, which does what they ask for.
macro_rules! commands {
    ($( $(#[$attribute:meta])* $name:ident($module:ident), )*) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $( $(#[$attribute])* $name($module::Args), )*
        }

        impl Command {
            fn run(self) -> anyhow::Result<()> {
                match self {
                    $( $(#[$attribute])* Self::$name(args) => $module::run(args), )*
                }
            }
        }
    };
}

commands! {
    Convert(convert),
    #[cfg(feature = "llama")] Run(run),
    #[cfg(feature = "llama")] Chat(chat),
    #[cfg(feature = "serve")] Serve(serve),
    #[cfg(feature = "llama")] Worker(worker),
    #[cfg(feature = "llama")] Plan(plan),
    #[cfg(feature = "llama")] Bench(bench),
    #[cfg(feature = "llama")] Calibrate(calibrate),
    Compare(compare),
    #[cfg(feature = "llama")] CompareRecipes(compare_recipes),
    #[cfg(feature = "llama")] Trace(trace),
    Verify(verify),
    Inspect(inspect),
    Quants(quants),
    #[cfg(feature = "llama")] Tokenize(tokenize),
    #[cfg(feature = "serve")] Engine(engine),
    #[cfg(feature = "llama")] WorkerEngine(worker_engine),
    MakeCheckpoint(make_checkpoint),
    Completions(completions),
    Man(man),
}

impl Cli {
    /// Parses the command line. Ends the program if there is nothing to run: after help, and with the error's sentence.
    pub fn of_line() -> Self {
        let line = typed::spelled(std::env::args_os());
        #[cfg(feature = "serve")]
        if line.get(1).is_some_and(|command| command == "serve") {
            return serve::of_line(line);
        }
        Self::of(Self::command(), &line)
    }

    /// Parses a line by `command`, which has this program's arguments.
    fn of(mut command: clap::Command, line: &[std::ffi::OsString]) -> Self {
        let matches = command.try_get_matches_from_mut(line);
        let matches = matches.unwrap_or_else(|error| typed::explained(error, line).exit());
        Self::from_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }

    fn from_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        #[allow(unused_mut)]
        let mut cli = Self::from_arg_matches(matches)?;
        #[cfg(feature = "serve")]
        if let (Command::Serve(args), Some(matches)) = (&mut cli.command, matches.subcommand_matches("serve")) {
            args.keep_said(matches);
        }
        Ok(cli)
    }

    /// Runs the chosen subcommand.
    ///
    /// # Errors
    /// If the subcommand fails. The error is ready to print.
    pub fn run(self) -> anyhow::Result<()> {
        #[cfg(feature = "llama")]
        crate::llama::on_abort(aborted);
        self.command.run()
    }
}

/// Returns the program's commands and flags, without those that only the program itself uses.
fn public_command() -> clap::Command {
    let all = Cli::command();
    let mut public = clap::Command::new("nibble").max_term_width(100).propagate_version(true);
    if let Some(version) = all.get_version() {
        public = public.version(version.to_string());
    }
    if let Some(about) = all.get_about() {
        public = public.about(about.clone());
    }
    public.subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}

/// Says why llama.cpp ends the program. Returns with which status to end at once, if it is no fault of the program's.
#[cfg(feature = "llama")]
fn aborted(message: &str) -> Option<u8> {
    use std::io::Write;
    let lost = crate::remote::lost();
    let why = lost.clone().unwrap_or_else(|| {
        // ggml's word for whatever a GPU of NVIDIA's cannot do, memory that has run out among it.
        let is_gpu = message.contains("CUDA error");
        let advice = if is_gpu { "; if its memory is full, put fewer layers there with --gpu-layers" } else { "" };
        format!("llama.cpp ended the program: {message}{advice}")
    });
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "\nnibble: {}", crate::base::display::printable_lines(&why));
    lost.map(|_| 1)
}

/// Longer error messages are cut: a hostile file can have names of megabytes.
const LONGEST_MESSAGE: usize = 4000;

/// Prints an error on stderr, on one line unless it has line breaks of its own, and returns the program's exit code.
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

/// Returns an error's message with those of its causes that it does not repeat, safe to show on a terminal.
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
