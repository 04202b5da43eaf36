//! `nibble compare`

mod weights;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::interrupt;
use super::out;
use crate::partial::Partial;

/// Compare quantized files with what they were made from
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble compare Yi-34B-Chat yi-q4.gguf yi-q5.gguf --weights   how far is each weight off?")]
pub struct Args {
    /// What the files were made from: a Hugging Face folder, or a GGUF file
    reference: PathBuf,

    /// The GGUF files to compare with it; of a split model, any part
    #[arg(required = true, value_name = "CANDIDATE")]
    candidates: Vec<PathBuf>,

    /// Compare the weights: no model is run
    #[arg(long, required = true)]
    weights: bool,

    /// Write everything for programs
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,

    /// Replace files that exist
    #[arg(long)]
    force: bool,

    /// Threads [default: one a core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print nothing but errors and the result
    #[arg(long)]
    quiet: bool,
}

/// Some file could not be compared, which has been said already.
#[derive(Debug, thiserror::Error)]
#[error("")]
struct Failed;

pub fn run(args: Args) -> anyhow::Result<()> {
    let cancel = interrupt::listen()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0).into()).build()?;
    let mut found = pool.install(|| weights::measure(&args.reference, &args.candidates, None, args.quiet, &cancel))?;
    if let [Err(_)] = found.as_slice()
        && let Some(Err(error)) = found.pop()
    {
        return Err(error.into());
    }
    let results: Vec<_> = args.candidates.iter().zip(&found).collect();
    if let Some(path) = &args.json {
        let candidates = results.iter().map(|(path, result)| match result {
            Ok(weights) => json!({"path": path, "weights": weights}),
            Err(error) => json!({"path": path, "failure": error.to_string()}),
        });
        let json = json!({"source": args.reference, "candidates": candidates.collect::<Vec<_>>()});
        let text = serde_json::to_string_pretty(&json)?;
        write(path, &text, args.force).with_context(|| format!("{} could not be written", path.display()))?;
    }
    out::to_stdout(|out| {
        let measured: Vec<_> = results
            .iter()
            .filter_map(|(path, result)| {
                let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                Some(weights::Measured { name, weights: result.as_ref().ok()? })
            })
            .collect();
        weights::print(out, &measured)
    })?;
    for error in found.iter().filter_map(|result| result.as_ref().err()) {
        eprintln!("nibble: {}", out::printable(&error.to_string()));
    }
    if found.iter().any(Result::is_err) { Err(Failed.into()) } else { Ok(()) }
}

fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    let mut file = Partial::create(path)?;
    writeln!(file, "{text}")?;
    file.finish(force)
}
