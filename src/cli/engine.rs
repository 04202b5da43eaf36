//! `nibble engine`, which the server starts: one model in a process of its own.
//!
//! The help does not list it: it speaks frames, not text, on its standard input and output.

use std::path::PathBuf;

use super::interrupt;
use super::serving::ServingArgs;
use crate::serve::worker;

/// Run a model for the server, which speaks to this process over its standard input and output
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    model: PathBuf,

    #[command(flatten)]
    serving: ServingArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    // systemd, and a shell without job control, tell the server and this process at once. The server may still wait for
    // answers.
    interrupt::ignore()?;
    let describe = |error: crate::engine::Error| super::message(&error.into());
    let load = |session: &crate::engine::SessionOptions, watch: Box<dyn Fn(f32)>| {
        args.serving.machine.load_watched(&args.model, session, watch).map_err(describe)
    };
    let served = worker::run(args.serving.options(&args.model), Box::new(load), &describe);
    served.map_err(|error| anyhow::anyhow!(error))
}
