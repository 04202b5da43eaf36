//! `nibble completions`: what shells complete command lines with.

use std::io::Write;

use super::out::to_stdout;
use super::public_command;

/// Print a script with which a shell completes nibble's commands and flags
///
/// bash: nibble completions bash > ~/.local/share/bash-completion/completions/nibble
/// zsh: nibble completions zsh > _nibble, in a folder of $fpath
/// fish: nibble completions fish > ~/.config/fish/completions/nibble.fish
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut public_command(), "nibble", &mut script);
    to_stdout(|out| Ok(out.write_all(&script)?))
}
