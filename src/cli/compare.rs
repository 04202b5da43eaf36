//! `nibble compare`

#[cfg_attr(not(feature = "llama"), path = "compare/without_llama.rs")]
mod measures;
mod outputs;
mod terminal;
mod watch;
mod weights;

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;

use self::measures::MeasureArgs;
#[cfg(feature = "llama")]
pub(super) use self::measures::{BootstrapArgs, WindowArgs};
pub(super) use self::outputs::Outputs;
use self::terminal::table;
pub(super) use self::watch::Watch;
use super::interrupt::{self, Interrupted};
use super::{importance, out};
use crate::report::results::Results;
use crate::weights::{FileOptions, FilesError};

/// Compare files of a model: which is best, by how much, and whether the difference is more than noise
///
/// All files read the same texts as the reference. The main measure is KLD, the Kullback-Leibler divergence: how far
/// a file's predictions are from the reference's. Intervals show whether a difference could be chance.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble compare Yi-6B-BF16.gguf Yi-6B-Q4_K_M.gguf --text en=wiki.txt --text zh=novel.txt
  nibble compare Yi-6B-BF16.gguf Yi-6B-*.gguf --text wiki.txt --report yi-6b.html
  nibble compare Yi-6B-BF16.gguf Yi-6B-Q4_K_M.gguf --task hellaswag_val.jsonl
  nibble compare Yi-34B.trace Yi-34B-Q4_K_M.gguf Yi-34B-Q3_K_M.gguf   with a file of 'nibble trace'
  nibble compare Yi-6B/ Yi-6B-Q4_K_M.gguf --weights                   weights alone: no model is run")]
pub struct Args {
    /// What to compare with: the 16-bit model or the best file that you have, or a trace of it; with --weights, also a
    /// Hugging Face folder
    reference: PathBuf,

    /// The files to compare; for a split model, any of its parts
    #[arg(required = true, value_name = "CANDIDATE")]
    candidates: Vec<PathBuf>,

    #[command(flatten)]
    measures: MeasureArgs,

    /// Compare the weights, without running a model
    #[arg(long, help_heading = "Measures")]
    weights: bool,

    /// With --weights: also weigh errors by importance, from a file of 'nibble calibrate'
    #[arg(long, value_name = "FILE", requires = "weights", help_heading = "Measures")]
    importance: Option<PathBuf>,

    /// Do not hash the model files, which means reading all of them
    #[arg(long, help_heading = "Measures")]
    no_hash: bool,

    #[command(flatten)]
    outputs: Outputs,

    /// Print only errors and the result
    #[arg(long, help_heading = "Output")]
    quiet: bool,
}

/// Confidence level of the intervals.
pub(super) const CONFIDENCE: f64 = 0.95;

pub fn run(args: Args) -> anyhow::Result<()> {
    args.outputs.check()?;
    let cancel = interrupt::listen()?;
    let files = FileOptions {
        reference: args.reference,
        candidates: args.candidates,
        hash: !args.no_hash,
        weights: args.weights,
        importance: args.importance.as_deref().map(importance::read).transpose()?,
        confidence: CONFIDENCE,
        command: command(),
    };
    let mut comparison = args.measures.prepare(files).inspect_err(say_failures)?;
    comparison.failures().for_each(|(name, failure)| watch::say_failure(name, failure));
    // llama.cpp's log would interfere with the progress bar.
    let watch = Watch::new(Some(args.outputs), args.quiet || args.measures.is_loud(), args.quiet);
    let result = comparison.execute(&watch, &cancel);
    watch.clear();
    let finished = finish(comparison.results(), &watch);
    // An error from the comparison takes precedence, but the results until then are still printed.
    match result {
        Ok(()) => finished,
        Err(error) if error.is_cancelled() => Err(Interrupted(error.to_string()).into()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the command as it was typed, to record in results.
pub(super) fn command() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// If no candidate can be compared, says why for each.
fn say_failures(error: &anyhow::Error) {
    let files = error.chain().find_map(|cause| cause.downcast_ref::<FilesError>());
    if let Some(FilesError::NoneLeft { failures }) = files {
        failures.iter().for_each(|(name, failure)| watch::say_failure(name, failure));
    }
}

/// Prints and writes the results.
fn finish(results: &Results, watch: &Watch) -> anyhow::Result<()> {
    let candidates = &results.candidates;
    let has_anything = has_scores(results) || candidates.iter().any(|candidate| candidate.weights.is_some());
    print(results)?;
    if has_anything {
        watch.save(results)?;
    }
    if results.interrupted {
        let said = if has_anything { "stopped; the numbers are those of what was read" } else { "stopped" };
        return Err(Interrupted(said.to_string()).into());
    }
    match candidates.iter().filter(|candidate| candidate.failure.is_some()).count() {
        0 => Ok(()),
        n => bail!("{n} of {} candidates could not be compared", candidates.len()),
    }
}

/// Returns whether a candidate has scores of texts or tasks.
fn has_scores(results: &Results) -> bool {
    results.candidates.iter().any(|c| c.overall.is_some() || c.tasks.iter().any(Option::is_some))
}

/// Prints the tables of scores, if there are any, and of weights.
pub(super) fn print(results: &Results) -> anyhow::Result<()> {
    let has_scores = has_scores(results);
    let measured: Vec<weights::Measured> = results
        .candidates
        .iter()
        .filter_map(|c| Some(weights::Measured { name: c.file.name.clone(), weights: c.weights.as_ref()? }))
        .collect();
    out::to_stdout(|out| {
        if has_scores {
            let width = usize::from(out.width().unwrap_or(120));
            out.write_all(table(results, width).as_bytes())?;
        }
        if has_scores && !measured.is_empty() {
            writeln!(out)?;
        }
        weights::print(out, &measured)
    })
}
