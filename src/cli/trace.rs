//! `nibble trace`

use std::path::PathBuf;

use super::compare::{Watch, WindowArgs};
use super::interrupt::{self, Interrupted};
use super::machine::EngineArgs;
use crate::base::units;
use crate::evaluate::texts::TextFile;
use crate::evaluate::{TraceJob, TraceOptions};

/// Record a model's predictions on texts, so that others can compare with it without running it
///
/// A trace holds the texts as tokens and, at every position, the most likely tokens and a sample of the others. It
/// takes about 300 bytes per scored token; the probabilities of Yi's whole vocabulary would take 256,000. It replaces
/// both the model and the texts: 'nibble compare FILE.trace CANDIDATE...'.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble trace Yi-34B-BF16.gguf --text en=wiki.txt --text zh=novel.txt -o Yi-34B.trace
  nibble compare Yi-34B.trace Yi-34B-Q4_K_M.gguf Yi-34B-IQ4_XS.gguf")]
pub struct Args {
    /// The model: the 16-bit file, or the best file that you have
    model: PathBuf,

    /// A text to read, with a name for the results, as in --text en=wiki.txt --text zh=novel.txt; can be given several
    /// times
    #[arg(long, value_name = "NAME=FILE", required = true)]
    text: Vec<TextFile>,

    /// The trace file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Replace the trace if it exists
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    windows: WindowArgs,

    /// How many of the most likely tokens to keep at every position
    #[arg(long, value_name = "K", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=65_536),
          help_heading = "Measures")]
    top: u32,

    /// How many tokens to sample from all the others at every position; without them, the mean KLD would be too small
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=4096),
          help_heading = "Measures")]
    drawn: u32,

    /// Do not hash the model file, which means reading all of it
    #[arg(long, help_heading = "Measures")]
    no_hash: bool,

    #[command(flatten)]
    engine: EngineArgs,

    /// Show llama.cpp's log
    #[arg(short, long)]
    verbose: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    crate::llama::set_verbose(args.verbose);
    let cancel = interrupt::listen()?;
    let n_texts = args.text.len();
    let output = args.output.clone();
    let job = TraceJob::prepare(TraceOptions {
        model: args.model,
        texts: args.text,
        cut: args.windows.cut(),
        most_windows: args.windows.most(),
        k: args.top,
        drawn: args.drawn,
        hash: !args.no_hash,
        output: args.output,
        force: args.force,
        models: args.engine.settings(),
    })?;
    let watch = Watch::new(None, args.verbose, false);
    let result = job.execute(&watch, &cancel);
    watch.clear();
    let summary = match result {
        Err(error) if error.is_cancelled() => return Err(Interrupted("stopped; no trace was written".into()).into()),
        summary => summary?,
    };
    eprintln!(
        "{}: {} scored tokens of {n_texts} text{}, {}, {:.0} bytes a token",
        output.display(),
        units::count(summary.scored),
        if n_texts == 1 { "" } else { "s" },
        units::bytes(summary.bytes),
        summary.bytes_per_token,
    );
    Ok(())
}
