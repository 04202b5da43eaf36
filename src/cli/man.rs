//! `nibble man`: manual pages.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Command, ValueHint};

use super::out::to_stdout;
use super::public_command;
use crate::base::suggest;

/// Print a manual page, or write all of them to a folder
///
/// nibble man serve | man -l -      shows the page of a command
/// nibble man --dir ~/.local/share/man/man1      writes nibble.1, nibble-convert.1, ...
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The command [default: nibble itself]
    #[arg(conflicts_with = "dir")]
    command: Option<String>,

    /// Write the pages of nibble and of all its commands to this folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let nibble = public_command();
    #[cfg(feature = "serve")]
    let nibble = super::serve::with_variables(nibble, false);
    let mut nibble = nibble;
    nibble.build();
    if let Some(folder) = args.dir {
        return write_all(&nibble, &folder);
    }
    let command = match &args.command {
        Some(name) => find(&nibble, name)?,
        None => &nibble,
    };
    let page = page(command)?;
    to_stdout(|out| Ok(out.write_all(page.as_bytes())?))
}

fn find<'c>(nibble: &'c Command, name: &str) -> anyhow::Result<&'c Command> {
    if let Some(command) = nibble.find_subcommand(name) {
        return Ok(command);
    }
    let names = nibble.get_subcommands().map(Command::get_name);
    let near: Vec<String> = suggest::suggest(name, names).into_iter().map(str::to_string).collect();
    match suggest::question(&near) {
        Some(question) => bail!("there is no command '{name}'; {question}"),
        None => bail!("there is no command '{name}'; 'nibble --help' lists them"),
    }
}

fn write_all(nibble: &Command, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for command in std::iter::once(nibble).chain(nibble.get_subcommands()) {
        let path = folder.join(format!("{}.1", name_of(command)));
        std::fs::write(&path, page(command)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// `nibble`, or `nibble-convert`.
fn name_of(command: &Command) -> String {
    command.get_bin_name().unwrap_or("nibble").replace(' ', "-")
}

fn page(command: &Command) -> anyhow::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name_of(command)).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_listed_has_a_page_with_its_flags() {
        let folder = tempfile::tempdir().unwrap();
        run(Args { command: None, dir: Some(folder.path().to_path_buf()) }).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("nibble.1").contains("nibble\\-convert(1)"), "{}", read("nibble.1"));
        let convert = read("nibble-convert.1");
        assert!(convert.contains("\\-\\-quantize") && convert.contains(".TH nibble-convert 1"), "{convert}");
        assert!(!folder.path().join("nibble-engine.1").exists(), "it is hidden");
        #[cfg(feature = "serve")]
        assert!(read("nibble-serve.1").contains("NIBBLE_PORT") && !convert.contains("NIBBLE_"));
        let wrong = run(Args { command: Some("convrt".to_string()), dir: None }).unwrap_err();
        assert_eq!(wrong.to_string(), "there is no command 'convrt'; did you mean convert?");
    }
}
