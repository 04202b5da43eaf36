//! `nibble compare`

mod outputs;
#[cfg(feature = "llama")]
mod tasks;
#[cfg(feature = "llama")]
mod texts;
mod weights;

use crate::base::display::printable;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};

use self::outputs::Outputs;
#[cfg(feature = "llama")]
pub(super) use self::texts::{WindowArgs, check_window, describe_failure};
use super::interrupt::{self, Interrupted};
use super::out;
use super::{importance, progress};
use crate::evaluate::file::{self, unique_names};
use crate::evaluate::trace::Trace;
use crate::gguf::Gguf;
use crate::report;
use crate::report::results::{Candidate, File, Results, Settings};

/// Find out which of several files of a model is better, by how much, and whether that is more than noise
///
/// All of them read the same texts as the reference, side by side. What counts is how far their predictions are from the
/// reference's (KLD), with intervals that tell a difference from chance.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble compare Yi-6B-BF16.gguf Yi-6B-Q4_K_M.gguf Yi-6B-IQ4_XS.gguf --text en=wiki.txt --text zh=novel.txt
  nibble compare Yi-6B-BF16.gguf Yi-6B-*.gguf --text wiki.txt --report yi-6b.html
  nibble compare Yi-34B.trace Yi-34B-Q4_K_M.gguf Yi-34B-Q3_K_M.gguf     no reference in memory: see nibble trace
  nibble compare Yi-6B-BF16.gguf Yi-6B-Q4_K_M.gguf --task hellaswag_val.jsonl --task ceval/law_val.csv
  nibble compare Yi-6B/ Yi-6B-Q4_K_M.gguf --weights                     weights alone: no model is run")]
pub struct Args {
    /// What to compare with: the model in 16 bits or the best file there is, or a trace of it; for --weights, a Hugging
    /// Face folder too
    reference: PathBuf,

    /// The files to compare; of a split model, any part
    #[arg(required = true, value_name = "CANDIDATE")]
    candidates: Vec<PathBuf>,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    texts: texts::TextArgs,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    tasks: tasks::TaskArgs,

    /// Compare the weights, which runs no model
    #[arg(long, help_heading = "Measures")]
    weights: bool,

    /// With --weights: importance, as `nibble calibrate` makes it, by which columns count
    #[arg(long, value_name = "FILE", requires = "weights", help_heading = "Measures")]
    importance: Option<PathBuf>,

    /// Compute no hashes of the model files, which takes reading all of them
    #[arg(long, help_heading = "Measures")]
    no_hash: bool,

    #[command(flatten)]
    outputs: Outputs,

    /// Print nothing but errors and the result
    #[arg(long, help_heading = "Output")]
    quiet: bool,
}

/// How sure intervals are.
const CONFIDENCE: f64 = 0.95;

pub fn run(args: Args) -> anyhow::Result<()> {
    let trace = Trace::is_one(&args.reference).then(|| Trace::open(&args.reference)).transpose()?;
    #[cfg(feature = "llama")]
    let runs_models = args.texts.check(&args, trace.is_some())?;
    #[cfg(not(feature = "llama"))]
    let runs_models = false;
    if !runs_models && !args.weights {
        bail!("say what to compare by: --text NAME=FILE, --task FILE, or --weights");
    }
    if args.weights && trace.is_some() {
        bail!("a trace has no weights; --weights needs the model that it was made of");
    }
    args.outputs.check()?;
    let mut work = Work::new(args, trace, interrupt::listen()?)?;
    let result = work.measure(runs_models);
    let finished = work.finish();
    // What went wrong on the way comes first; what was found until then is printed all the same.
    result.and(finished)
}

impl Args {
    /// Whether nothing is drawn: llama.cpp's log would be between its lines.
    fn is_silent(&self) -> bool {
        #[cfg(feature = "llama")]
        let is_loud = self.texts.verbose;
        #[cfg(not(feature = "llama"))]
        let is_loud = false;
        self.quiet || is_loud
    }
}

/// A comparison on its way.
struct Work {
    args: Args,
    trace: Option<Trace>,
    cancel: Arc<AtomicBool>,
    results: Results,
    /// The candidates' files, as `results.candidates`.
    paths: Vec<PathBuf>,
}

impl Work {
    /// Looks at all files, and puts the candidates in order.
    fn new(args: Args, trace: Option<Trace>, cancel: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let mut results = Results {
            version: env!("CARGO_PKG_VERSION").to_string(),
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            settings: Settings { confidence: CONFIDENCE, ..Settings::default() },
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
            None if args.reference.is_dir() => {
                let path = args.reference.canonicalize().unwrap_or_else(|_| args.reference.clone());
                File { name: folder_name(&path), path: args.reference.display().to_string(), ..File::default() }
            }
            None => File::of_gguf(&args.reference, &Gguf::open(&args.reference)?),
        };
        let mut candidates: Vec<(PathBuf, Candidate)> = Vec::new();
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
        candidates
            .sort_by(|(_, a), (_, b)| a.file.bytes.cmp(&b.file.bytes).then_with(|| a.file.path.cmp(&b.file.path)));
        let (paths, candidates): (Vec<_>, Vec<_>) = candidates.into_iter().unzip();
        results.candidates = candidates;
        let mut files: Vec<File> = results.candidates.iter().map(|candidate| candidate.file.clone()).collect();
        unique_names(&mut files);
        results.candidates.iter_mut().zip(files).for_each(|(candidate, file)| candidate.file = file);
        let work = Self { args, trace, cancel, results, paths };
        let failures: Vec<(&str, &str)> = work
            .results
            .candidates
            .iter()
            .filter_map(|candidate| Some((candidate.file.name.as_str(), candidate.failure.as_deref()?)))
            .collect();
        if let ([(_, failure)], 1) = (failures.as_slice(), work.paths.len()) {
            bail!("{failure}");
        }
        failures.iter().for_each(|(name, failure)| say_failure(name, failure));
        if failures.len() == work.paths.len() {
            bail!("no candidate is left to compare");
        }
        Ok(work)
    }

    /// Measures what was asked for.
    fn measure(&mut self, runs_models: bool) -> anyhow::Result<()> {
        // What is wrong with a text or a task comes out before gigabytes are read.
        #[cfg(feature = "llama")]
        let (tasks, texts) = match runs_models {
            true => (self.args.tasks.open()?, texts::read(self)?),
            false => Default::default(),
        };
        #[cfg(not(feature = "llama"))]
        let _ = runs_models;
        if !self.args.no_hash {
            self.hash()?;
        }
        #[cfg(feature = "llama")]
        {
            if !texts.is_empty() {
                texts::measure(self, &texts)?;
                self.save()?;
            }
            if !tasks.is_empty() && !self.results.interrupted {
                tasks::measure(self, &tasks)?;
            }
        }
        if self.args.weights && !self.results.interrupted {
            self.weigh()?;
        }
        Ok(())
    }

    /// Compares the weights of all candidates that can be read.
    fn weigh(&mut self) -> anyhow::Result<()> {
        let importance = self.args.importance.as_deref().map(importance::read).transpose()?;
        let readable: Vec<usize> =
            (0..self.paths.len()).filter(|i| self.results.candidates[*i].failure.is_none()).collect();
        let paths: Vec<PathBuf> = readable.iter().map(|i| self.paths[*i].clone()).collect();
        let found = weights::measure(&self.args.reference, &paths, importance.as_ref(), self.args.quiet, &self.cancel)?;
        for (i, result) in readable.into_iter().zip(found) {
            match result {
                Ok(errors) => self.results.candidates[i].weights = Some(errors),
                Err(error) => self.fail(i, error.to_string()),
            }
        }
        Ok(())
    }

    /// Computes the hashes of all model files: they say what was measured.
    fn hash(&mut self) -> anyhow::Result<()> {
        let total: u64 = self.results.candidates.iter().map(|candidate| candidate.file.bytes).sum();
        let has_reference = self.trace.is_none() && !self.args.reference.is_dir();
        let reference = if has_reference { self.results.reference.file.bytes } else { 0 };
        let bar = progress::Steps::new(total + reference, self.args.is_silent());
        bar.say("computing hashes");
        let hash = |path: &Path| -> anyhow::Result<Option<String>> {
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
        if has_reference {
            self.results.reference.file.blake3 = hash(&self.args.reference)?;
        }
        for (candidate, path) in self.results.candidates.iter_mut().zip(&self.paths) {
            candidate.file.blake3 = hash(path)?;
        }
        bar.clear();
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
        self.args.outputs.write(&self.results)
    }

    /// Prints what was found, and writes it.
    fn finish(&mut self) -> anyhow::Result<()> {
        let candidates = &self.results.candidates;
        let has_scores = candidates
            .iter()
            .any(|candidate| candidate.overall.is_some() || candidate.tasks.iter().any(Option::is_some));
        let weighed: Vec<weights::Measured> = candidates
            .iter()
            .filter_map(|c| Some(weights::Measured { name: c.file.name.clone(), weights: c.weights.as_ref()? }))
            .collect();
        let has_anything = has_scores || !weighed.is_empty();
        out::to_stdout(|out| {
            use std::io::Write;
            let width = usize::from(out.width().unwrap_or(120));
            if has_scores {
                out.write_all(report::table(&self.results, width).as_bytes())?;
            }
            if has_scores && !weighed.is_empty() {
                writeln!(out)?;
            }
            weights::print(out, &weighed)
        })?;
        if has_anything {
            self.save()?;
        }
        if self.results.interrupted {
            let said = if has_anything { "stopped; the numbers are those of what was read" } else { "stopped" };
            return Err(Interrupted(said.to_string()).into());
        }
        let failed = self.results.candidates.iter().filter(|candidate| candidate.failure.is_some()).count();
        match failed {
            0 => Ok(()),
            n => bail!("{n} of {} candidates could not be compared", self.results.candidates.len()),
        }
    }
}

fn folder_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn say_failure(name: &str, failure: &str) {
    eprintln!("nibble: {}: {}", printable(name), printable(failure));
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}
