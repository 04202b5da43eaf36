//! `nibble compare`

mod outputs;
mod texts;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};

use self::outputs::Outputs;
pub(super) use self::texts::WindowArgs;
use super::interrupt::{self, Interrupted};
use super::machine::EngineArgs;
use super::out::{self, printable};
use super::progress;
use crate::gguf::Gguf;
use crate::quality::file::{self, unique_names};
use crate::quality::report;
use crate::quality::results::{Candidate, File, Results, Settings};
use crate::quality::text::Named;
use crate::quality::trace::Trace;

/// Find out which of several files of a model is better, by how much, and whether that is more than noise
///
/// All of them read the same texts as the reference, side by side. What counts is how far their predictions are from the
/// reference's (KLD), with intervals that tell a difference from chance.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble compare Yi-6B-BF16.gguf Yi-6B-Q4_K_M.gguf Yi-6B-IQ4_XS.gguf --text en=wiki.txt --text zh=novel.txt
  nibble compare Yi-6B-BF16.gguf Yi-6B-*.gguf --text wiki.txt --report yi-6b.html
  nibble compare Yi-34B.trace Yi-34B-Q4_K_M.gguf Yi-34B-Q3_K_M.gguf     no reference in memory: see nibble trace
  nibble compare --weights Yi-6B/ Yi-6B-Q4_K_M.gguf                     weights alone: no model is run")]
pub struct Args {
    /// What to compare with: the model in 16 bits or the best file there is, or a trace of it; for --weights, a Hugging
    /// Face folder too
    reference: PathBuf,

    /// The files to compare
    #[arg(required = true, value_name = "CANDIDATE")]
    candidates: Vec<PathBuf>,

    /// A text to compare on; a name keeps texts apart in the results, as in --text en=wiki.txt --text zh=novel.txt
    #[arg(long, value_name = "NAME=FILE", help_heading = "Measures")]
    text: Vec<Named>,

    #[command(flatten)]
    windows: WindowArgs,

    /// Compute no hashes of the model files, which takes reading all of them
    #[arg(long, help_heading = "Measures")]
    no_hash: bool,

    /// How often the bootstrap draws: more makes the intervals' ends steadier
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=100_000),
          help_heading = "Measures")]
    resamples: u32,

    /// The bootstrap's seed
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measures")]
    seed: u64,

    #[command(flatten)]
    outputs: Outputs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Show llama.cpp's log
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,
}

/// How sure intervals are.
const CONFIDENCE: f64 = 0.95;

pub fn run(args: Args) -> anyhow::Result<()> {
    crate::runtime::set_verbose(args.verbose);
    let trace = Trace::is_one(&args.reference).then(|| Trace::open(&args.reference)).transpose()?;
    if trace.is_none() && args.text.is_empty() {
        bail!("say what to compare by: --text NAME=FILE, --task FILE, or --weights");
    }
    args.outputs.check()?;
    let cancel = interrupt::listen()?;
    let mut work = Work::new(args, trace, cancel)?;
    let result = work.measure();
    let finished = work.finish();
    result?;
    finished
}

/// A comparison on its way.
struct Work {
    args: Args,
    trace: Option<Trace>,
    cancel: Arc<AtomicBool>,
    results: Results,
    /// The candidates' files, as `results.candidates`.
    paths: Vec<PathBuf>,
    outputs: Outputs,
}

impl Work {
    /// Looks at all files, and puts the candidates in order.
    fn new(args: Args, trace: Option<Trace>, cancel: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let mut results = Results {
            version: env!("CARGO_PKG_VERSION").to_string(),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            settings: Settings {
                confidence: CONFIDENCE,
                resamples: args.resamples,
                seed: args.seed,
                ..Settings::default()
            },
            ..Results::default()
        };
        results.reference.file = match &trace {
            Some(trace) => {
                results.reference.trace_k = Some(trace.header().k);
                let model = &trace.header().model;
                File {
                    name: model.name.clone(),
                    path: args.reference.display().to_string(),
                    bytes: trace.n_bytes(),
                    blake3: Some(trace.blake3()),
                    quantization: model.quantization.clone(),
                    ..File::default()
                }
            }
            None => File::of_gguf(&args.reference, &Gguf::open(&args.reference)?),
        };
        let mut candidates = Vec::new();
        for path in &args.candidates {
            if candidates.iter().any(|(other, _)| same_file(other, path)) {
                bail!("{} is given twice", path.display());
            }
            let candidate = match Gguf::open(path) {
                Ok(gguf) => Candidate { file: File::of_gguf(path, &gguf), ..Candidate::default() },
                Err(error) => {
                    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
                    let file =
                        File { name: file::name(path), path: path.display().to_string(), bytes, ..File::default() };
                    Candidate { file, failure: Some(error.to_string()), ..Candidate::default() }
                }
            };
            candidates.push((path.clone(), candidate));
        }
        candidates.sort_by(|(_, a), (_, b)| a.file.bytes.cmp(&b.file.bytes).then_with(|| a.file.path.cmp(&b.file.path)));
        let (paths, candidates): (Vec<_>, Vec<_>) = candidates.into_iter().unzip();
        results.candidates = candidates;
        let mut files: Vec<File> = results.candidates.iter().map(|candidate| candidate.file.clone()).collect();
        unique_names(&mut files);
        results.candidates.iter_mut().zip(files).for_each(|(candidate, file)| candidate.file = file);
        let outputs = args.outputs.clone();
        let work = Self { args, trace, cancel, results, paths, outputs };
        for candidate in work.results.candidates.iter() {
            candidate.failure.iter().for_each(|failure| say_failure(&candidate.file.name, failure));
        }
        if work.results.candidates.iter().all(|candidate| candidate.failure.is_some()) {
            bail!("no candidate is left to compare");
        }
        Ok(work)
    }

    /// Measures what was asked for.
    fn measure(&mut self) -> anyhow::Result<()> {
        if !self.args.no_hash {
            self.hash()?;
        }
        texts::measure(self)
    }

    /// Computes the hashes of all model files: they say what was measured.
    fn hash(&mut self) -> anyhow::Result<()> {
        let total: u64 = self.results.candidates.iter().map(|candidate| candidate.file.bytes).sum();
        let reference = if self.trace.is_none() { self.results.reference.file.bytes } else { 0 };
        let bar = progress::Steps::new(total + reference, self.args.verbose);
        bar.say("computing hashes");
        let mut hash = |path: &Path| -> anyhow::Result<Option<String>> {
            let Ok(gguf) = Gguf::open(path) else { return Ok(None) };
            let result = file::blake3(&gguf, |bytes| {
                bar.advance(bytes);
                !self.cancel.load(Ordering::Relaxed)
            });
            match result {
                Ok(hash) => Ok(Some(hash)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                    Err(Interrupted("stopped before anything was measured".to_string()).into())
                }
                Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
            }
        };
        if self.trace.is_none() {
            self.results.reference.file.blake3 = hash(&self.args.reference)?;
        }
        for (candidate, path) in self.results.candidates.iter_mut().zip(&self.paths) {
            candidate.file.blake3 = hash(path)?;
        }
        Ok(())
    }

    /// Notes that a candidate cannot be compared, or not on, and says so.
    fn fail(&mut self, candidate: usize, failure: String) {
        let candidate = &mut self.results.candidates[candidate];
        say_failure(&candidate.file.name, &failure);
        candidate.failure.get_or_insert(failure);
    }

    /// Writes the files that were asked for, with what is known so far.
    fn save(&mut self) -> anyhow::Result<()> {
        self.outputs.write(&self.results)
    }

    /// Prints what was found.
    fn finish(&mut self) -> anyhow::Result<()> {
        let has_scores = self.results.candidates.iter().any(|candidate| candidate.overall.is_some());
        if has_scores {
            self.save()?;
            out::to_stdout(|out| {
                use std::io::Write;
                let width = usize::from(out.width().unwrap_or(120));
                Ok(out.write_all(report::table(&self.results, width).as_bytes())?)
            })?;
        }
        if self.results.interrupted {
            let said = if has_scores { "stopped; the numbers are those of what was read" } else { "stopped" };
            return Err(Interrupted(said.to_string()).into());
        }
        let failed = self.results.candidates.iter().filter(|candidate| candidate.failure.is_some()).count();
        match failed {
            0 => Ok(()),
            n => bail!("{n} of {} candidates could not be compared", self.results.candidates.len()),
        }
    }
}

fn say_failure(name: &str, failure: &str) {
    eprintln!("nibble: {}: {}", printable(name), printable(failure));
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}
