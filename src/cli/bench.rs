//! `nibble bench`

use crate::base::display::printable;
use crate::base::units;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgAction, ArgMatches, FromArgMatches};
use serde_json::{Value, json};

use super::inspect::facts::Summary;
use super::interrupt::{self, Interrupted};
use super::machine::{MachineArgs, interruptible};
use super::out::Out;
use super::table::{self, Align};
use super::{out, progress};
use crate::base::atomic_file::AtomicFile;
use crate::bench::{self, Bandwidth, Cost, Event, Outcome, Plan, Report, Test};
use crate::gguf::{self, Gguf};
use crate::llama;
use crate::llama::KvTypes;
use crate::placement::{self, Caches, Machine, Shape};

/// Measure how fast a model runs here, and how fast it could run
///
/// Times how fast the model reads prompts and writes tokens, several times each. Compares that with how fast this
/// machine reads memory, which sets the limit: a large model reads all of its weights for every token that it writes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:
  nibble bench Yi-34B-Chat-Q4_K_M.gguf
  nibble bench Yi-34B-Chat-Q4_K_M.gguf --threads 4,6,8,12     which number of threads is fastest
  nibble bench Yi-34B-Chat-Q4_K_M.gguf --prompt 0 --depth 0,1024,3072 --kv-type q8_0
  nibble bench Yi-34B-Chat-Q4_K_M.gguf -o yi-34b.json",
    mut_arg("threads", |arg| arg
        .action(ArgAction::Append)
        .value_delimiter(',')
        .value_name("N,...")
        .help("Number of threads; several numbers are measured one after the other [default: one per physical core]")),
    mut_arg("ctx", |arg| arg.help("Size of the context in tokens [default: as many as the largest test needs]"))
)]
pub struct Args {
    /// The model: a GGUF file, or any part of a split one
    model: PathBuf,

    /// Lengths of the prompts to read, in tokens; 0 reads none [default: 64,512, as far as they fit in the context]
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', help_heading = "Tests")]
    prompt: Vec<u32>,

    /// Tokens to write in each test; 0 writes none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, help_heading = "Tests")]
    generate: u32,

    /// Tokens that are in the context before writing begins [default: 0,512, as far as they fit in the context]
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', help_heading = "Tests")]
    depth: Vec<u32>,

    /// Runs of each test, after a short warm-up that is not counted
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000),
          help_heading = "Tests")]
    repeat: u32,

    /// Do not measure how fast this machine reads memory
    #[arg(long, help_heading = "Tests")]
    no_memory: bool,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    machine: MachineArgs,

    /// Print one JSON object at the end, with every run, instead of tables
    #[arg(long, help_heading = "Output")]
    json: bool,

    /// Write the same JSON object to a file
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,

    /// Replace the file if it exists
    #[arg(long, requires = "output", help_heading = "Output")]
    force: bool,

    /// Show llama.cpp's log, and which CPU features it uses
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,
}

/// All values of `--threads`, of which [`MachineArgs`] takes the first. It has no flag of its own, and is parsed before
/// [`MachineArgs`], which removes the values.
#[derive(Debug, Default)]
struct Threads(Vec<u32>);

impl clap::Args for Threads {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command
    }
}

impl FromArgMatches for Threads {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(matches.get_many("threads").unwrap_or_default().copied().collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How long to measure memory, for all numbers of threads together.
const MEMORY_TIME: Duration = Duration::from_millis(2000);

/// The most tests, and the most numbers of threads, so that a mistyped number does not run for years.
const MOST: usize = 64;

pub fn run(args: Args) -> anyhow::Result<()> {
    llama::set_verbose(args.verbose);
    let gguf = Gguf::open(&args.model)?;
    let shape = Shape::of(&gguf);
    let plan = plan(&args, &shape, interrupt::listen()?)?;
    let mut conditions = Conditions::new(&args, &gguf, &shape, &plan)?;
    drop(gguf);
    // A file that cannot be written is reported before gigabytes are loaded.
    let file = args.output.as_ref().map(|path| begin_file(path, args.force)).transpose()?;
    let model = interruptible(args.machine.load(&args.model, &plan.session, false))?;
    conditions.second_layout = model.uses_second_layout();
    if let Some(trained) = model.n_ctx_train().filter(|trained| conditions.n_ctx > *trained) {
        eprintln!("warning: the model was trained on {trained} tokens at a time; the tests need {}", conditions.n_ctx);
    }

    let bar = progress::Bench::new(args.json || args.verbose);
    let mut stdout = io::stdout();
    let mut written = if args.json { Ok(()) } else { stdout.write_all(conditions.heading(&plan)?.as_bytes()) };
    let mut rows = Rows::new(&plan);
    let result = bench::run(&model, &plan, |event| match event {
        Event::Memory { threads } => bar.say(format!("reading memory, {}", n_threads(threads))),
        Event::Run { test, threads, run, rate } => bar.say(doing(test, threads, run, plan.repeat, rate)),
        Event::Done(outcome) if !args.json && written.is_ok() => {
            let line = rows.line(outcome, &conditions);
            written = bar.aside(|| stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()));
        }
        Event::Done(_) => {}
    });
    bar.clear();
    let report = result?;
    let json = conditions.json(&plan, &report)?;
    if let Some((path, mut file)) = args.output.as_ref().zip(file) {
        let text = serde_json::to_string_pretty(&json)? + "\n";
        let finished = file.write_all(text.as_bytes()).and_then(|()| file.finish(args.force));
        finished.with_context(|| format!("{} could not be written", path.display()))?;
    }
    out::to_stdout(|out| {
        written?;
        if args.json {
            return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?);
        }
        print_conclusions(out, &conditions, &plan, &report)
    })?;
    if report.interrupted {
        let said = if report.outcomes.is_empty() { "stopped before anything was measured" } else { "stopped" };
        return Err(Interrupted(said.to_string()).into());
    }
    Ok(())
}

/// Decides what to measure, from the arguments and from what fits.
fn plan(args: &Args, shape: &Shape, cancel: Arc<AtomicBool>) -> anyhow::Result<Plan> {
    let mut session = args.machine.session(cancel);
    let room = session.n_ctx_for(shape.n_ctx_train);
    let listed = |given: &[u32], usual: [u32; 2], most: u32| -> Vec<u32> {
        let mut list = if given.is_empty() { usual.map(|n| n.min(most)).to_vec() } else { given.to_vec() };
        list.dedup();
        list
    };
    let prompts = listed(&args.prompt, [64, 512], room).into_iter().filter(|n| *n > 0);
    let mut tests: Vec<_> = prompts.map(|n_tokens| Test::Read { n_tokens }).collect();
    if args.generate > 0 {
        let depths = listed(&args.depth, [0, 512], room.saturating_sub(args.generate));
        tests.extend(depths.into_iter().map(|depth| Test::Write { n_tokens: args.generate, depth }));
    }
    let threads = match &*args.threads.0 {
        [] => vec![session.n_threads()],
        given => given.to_vec(),
    };
    if tests.is_empty() {
        bail!("there is nothing to measure: pass a number above 0 to --prompt or --generate");
    }
    if tests.len().max(threads.len()) > MOST {
        bail!("{} tests with {} numbers of threads are too many; at most {MOST} of each", tests.len(), threads.len());
    }
    if let Some(&wrong) = threads.iter().find(|n| !(1..=512).contains(*n)) {
        bail!("--threads is {wrong}; it has to be from 1 to 512");
    }
    // Only as large a context as the tests need, because a full one can take gigabytes.
    let needed = tests.iter().map(|test| test.needs()).max().unwrap_or(1);
    match session.n_ctx {
        Some(n_ctx) if n_ctx < needed => {
            bail!(
                "a test needs {needed} tokens of context, but --ctx is {n_ctx}; pass a larger --ctx, or a smaller test"
            )
        }
        Some(_) => {}
        None => session.n_ctx = Some(needed),
    }
    let memory = !args.no_memory && args.generate > 0 && !args.machine.uses_gpu()?;
    let caches = Caches::this();
    let most = threads.iter().copied().max().unwrap_or(1);
    let available = Machine::this().map(|machine| machine.available);
    let buffer = bench::buffer_bytes(caches.map(|caches| caches.bytes_for(most)), available);
    let time = (MEMORY_TIME / threads.len() as u32).max(Duration::from_millis(400));
    session.threads = None;
    Ok(Plan { threads, tests, repeat: args.repeat, memory: memory.then_some((time, buffer)), session })
}

fn begin_file(path: &Path, force: bool) -> anyhow::Result<AtomicFile> {
    if !force && path.symlink_metadata().is_ok() {
        bail!("{} exists already; pass --force to replace it, or -o to write elsewhere", path.display());
    }
    if path.is_dir() {
        bail!("{} is a folder; give -o the name of a file", path.display());
    }
    AtomicFile::create(path).with_context(|| format!("{} cannot be written", path.display()))
}

/// What the measurements depend on or are compared with.
struct Conditions {
    path: PathBuf,
    name: String,
    file_type: Option<String>,
    n_weights: u64,
    model_bytes: u64,
    bits_per_weight: Option<f64>,
    cost: Cost,
    cpu: Option<String>,
    caches: Option<Caches>,
    machine: Option<Machine>,
    uses_gpu: bool,
    fits_memory: bool,
    n_ctx: u32,
    kv_types: KvTypes,
    second_layout: bool,
    verbose: bool,
}

impl Conditions {
    fn new(args: &Args, gguf: &Gguf, shape: &Shape, plan: &Plan) -> anyhow::Result<Self> {
        let summary = Summary::of(gguf);
        let stem = || gguf::stem(&args.model);
        let machine = Machine::this();
        let kv_types = plan.session.kv_types;
        Ok(Self {
            path: args.model.clone(),
            name: summary.name.map_or_else(stem, str::to_string),
            // From general.file_type, or else the type with the most bytes in the file.
            file_type: summary.file_type.or(summary.types.first().map(|share| share.ty.name())).map(str::to_string),
            n_weights: summary.n_parameters,
            model_bytes: summary.tensor_bytes,
            bits_per_weight: summary.bits_per_weight,
            cost: Cost::of(gguf.metadata(), gguf.tensors(), shape, kv_types),
            cpu: placement::cpu_name(),
            caches: Caches::this(),
            machine,
            uses_gpu: args.machine.uses_gpu()?,
            fits_memory: machine
                .is_none_or(|machine| machine.check(shape, &plan.session.size(shape.n_ctx_train), 0, 0).is_ok()),
            n_ctx: plan.session.n_ctx_for(shape.n_ctx_train),
            kv_types,
            // Known when the model has been loaded.
            second_layout: false,
            verbose: args.verbose,
        })
    }

    /// Returns the bytes that a token of this test reads, if memory may limit its speed.
    fn bytes_a_token(&self, test: Test) -> Option<f64> {
        match test {
            Test::Write { n_tokens, depth } => Some(self.cost.a_token(depth, n_tokens)),
            Test::Read { .. } => None,
        }
    }

    /// Returns whether the bytes that a token reads may stay in the caches of this many threads.
    fn in_cache(&self, test: Test, threads: u32) -> bool {
        let cache = self.caches.map_or(0, |caches| caches.bytes_for(threads));
        self.bytes_a_token(test).is_some_and(|bytes| bytes <= cache as f64)
    }

    /// Returns the tokens per second that reading memory allows, if memory is the limit.
    fn limit(&self, outcome: &Outcome, memory: &[Bandwidth]) -> Option<f64> {
        let found = memory.iter().find(|found| found.threads == outcome.threads)?;
        let bytes = self.bytes_a_token(outcome.test)?;
        (!self.in_cache(outcome.test, outcome.threads) && self.fits_memory && bytes > 0.0).then(|| found.best() / bytes)
    }

    /// Describes the model and the machine, with the head of the table.
    fn heading(&self, plan: &Plan) -> anyhow::Result<String> {
        let mut model = vec![printable(&self.name).into_owned()];
        model.extend(self.file_type.clone());
        model.push(format!("{} weights", units::count(self.n_weights)));
        model.push(units::bytes(self.model_bytes));
        model.extend(self.bits_per_weight.map(|bits| format!("{bits:.2} bits per weight")));
        let mut cpu = vec![self.cpu.as_deref().map_or("unknown".into(), |name| printable(name).into_owned())];
        cpu.push(format!("{} cores", placement::n_cores()));
        cpu.extend(self.caches.map(|caches| format!("{} of cache", units::bytes(caches.bytes_for(u32::MAX)))));
        cpu.extend(self.machine.map(|machine| format!("{} of memory", units::bytes(machine.total))));
        let threads: Vec<_> = plan.threads.iter().map(u32::to_string).collect();
        let device = if self.uses_gpu { ", layers on a GPU" } else { "" };
        let mut rows = vec![
            ("Model", model.join(", ")),
            ("CPU", cpu.join(", ")),
            (
                "Settings",
                format!(
                    "threads {}, context {}, KV cache {}, weights {}{device}",
                    threads.join(", "),
                    self.n_ctx,
                    self.kv_types,
                    if self.second_layout { "copied into the second layout" } else { "used from the file" },
                ),
            ),
            ("Figures", format!("the median of {}, the lowest and the highest", n_runs(plan.repeat))),
        ];
        if self.verbose {
            rows.push(("llama.cpp", llama::system_info()?));
        }
        Ok(format!("{}\n{}", table::render(&table::pairs(rows)), Rows::new(plan).head()))
    }

    fn json(&self, plan: &Plan, report: &Report) -> anyhow::Result<Value> {
        let spread = |values: &[f64]| {
            let spread = bench::Spread::of(values).unwrap_or_default();
            json!({
                "median": spread.median, "lowest": spread.lowest, "highest": spread.highest,
                "mean": spread.mean, "deviation": spread.deviation,
            })
        };
        let result = |outcome: &Outcome| {
            let limit = self.limit(outcome, &report.memory);
            let (kind, depth) = match outcome.test {
                Test::Read { .. } => ("read", 0),
                Test::Write { depth, .. } => ("write", depth),
            };
            let runs = outcome.runs.iter().zip(outcome.rates()).map(|(run, rate)| {
                json!({
                    "seconds": run.seconds,
                    "tokens_per_second": rate,
                    "sampling_seconds": run.sampling_seconds,
                })
            });
            json!({
                "test": kind,
                "tokens": outcome.test.n_tokens(),
                "depth": depth,
                "threads": outcome.threads,
                "tokens_per_second": spread(&outcome.rates()),
                "sampling_seconds_per_token": outcome.sampling(),
                "bytes_per_token": self.bytes_a_token(outcome.test),
                "limit_tokens_per_second": limit,
                "share_of_limit": limit.map(|limit| outcome.rate().median / limit),
                "runs": runs.collect::<Vec<_>>(),
            })
        };
        let memory = |found: &Bandwidth| {
            json!({
                "threads": found.threads,
                "buffer_bytes": found.buffer_bytes,
                "best_bytes_per_second": found.best(),
                "median_bytes_per_second": found.median(),
                "passes": found.passes,
            })
        };
        Ok(json!({
            "nibble": env!("CARGO_PKG_VERSION"),
            "model": {
                "path": self.path.display().to_string(),
                "name": self.name,
                "type": self.file_type,
                "weights": self.n_weights,
                "bytes": self.model_bytes,
                "bits_per_weight": self.bits_per_weight,
                "weight_bytes_per_token": self.cost.weights,
                "kv_bytes_per_token": self.cost.kv_a_token,
            },
            "machine": {
                "cpu": self.cpu,
                "cores": placement::n_cores(),
                "cache_bytes": self.caches.map(|caches| caches.bytes),
                "caches": self.caches.map(|caches| caches.count),
                "memory_bytes": self.machine.map(|machine| machine.total),
                "gpu": self.uses_gpu,
                "llama_cpp": llama::system_info()?,
            },
            "settings": {
                "threads": plan.threads,
                "repeat": plan.repeat,
                "context": self.n_ctx,
                "batch": plan.session.n_batch,
                "kv_type": self.kv_types.to_string(),
                "flash_attention": format!("{:?}", plan.session.flash_attention).to_lowercase(),
                "second_layout": self.second_layout,
            },
            "memory": report.memory.iter().map(memory).collect::<Vec<_>>(),
            "results": report.outcomes.iter().map(result).collect::<Vec<_>>(),
            "interrupted": report.interrupted,
        }))
    }
}

/// A table that is printed row by row. Its columns are as wide as the widest value that they may hold.
struct Rows {
    widest: [String; 7],
    columns: [(&'static str, Align); 7],
}

impl Rows {
    fn new(plan: &Plan) -> Self {
        let label = plan.tests.iter().map(|test| label(*test)).max_by_key(|label| label.len()).unwrap_or_default();
        // As wide as a rate of up to a million tokens per second.
        let rate = "999999.9".to_string();
        let (threads, sampling) = ("512".to_string(), "99.999 ms".to_string());
        Self {
            widest: [label, threads, rate.clone(), rate.clone(), rate, sampling, "999.9 GB".to_string()],
            columns: [
                ("Test", Align::Left),
                ("Threads", Align::Right),
                ("Tokens/s", Align::Right),
                ("Lowest", Align::Right),
                ("Highest", Align::Right),
                ("Sampling", Align::Right),
                ("Reads/token", Align::Right),
            ],
        }
    }

    fn render(&self, row: Option<[String; 7]>) -> Vec<String> {
        let mut table = table::new(&self.columns);
        table.add_row(self.widest.clone());
        table.add_rows(row);
        table::render(&table).lines().map(|line| format!("{line}\n")).collect()
    }

    fn head(&self) -> String {
        self.render(None).swap_remove(0)
    }

    fn line(&mut self, outcome: &Outcome, conditions: &Conditions) -> String {
        let spread = outcome.rate();
        let row = [
            label(outcome.test),
            outcome.threads.to_string(),
            rate(spread.median),
            rate(spread.lowest),
            rate(spread.highest),
            outcome.sampling().map(|seconds| format!("{:.3} ms", seconds * 1e3)).unwrap_or_default(),
            conditions.bytes_a_token(outcome.test).map(|bytes| units::bytes(bytes as u64)).unwrap_or_default(),
        ];
        self.render(Some(row)).pop().unwrap_or_default()
    }
}

/// Returns the name of a test: `read 512`, `write 64 after 512`.
fn label(test: Test) -> String {
    match test {
        Test::Read { n_tokens } => format!("read {n_tokens}"),
        Test::Write { n_tokens, depth: 0 } => format!("write {n_tokens}"),
        Test::Write { n_tokens, depth } => format!("write {n_tokens} after {depth}"),
    }
}

fn doing(test: Test, threads: u32, run: u32, of: u32, last: Option<f64>) -> String {
    let run = if run == 0 { "warming up".to_string() } else { format!("run {run} of {of}") };
    let last = last.map(|last| format!(", the last one {} tokens/s", rate(last))).unwrap_or_default();
    format!("{}, {}: {run}{last}", label(test), n_threads(threads))
}

fn n_threads(n: u32) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}

fn n_runs(n: u32) -> String {
    if n == 1 { "a single run".to_string() } else { format!("{n} runs") }
}

/// Formats a rate with its significant digits.
fn rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.2}") } else { format!("{rate:.1}") }
}

fn print_conclusions(out: &mut Out, conditions: &Conditions, plan: &Plan, report: &Report) -> anyhow::Result<()> {
    for line in conclusions(conditions, plan, report) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Summarizes the results in sentences.
fn conclusions(conditions: &Conditions, plan: &Plan, report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let fastest = |test: Test| {
        let same = report.outcomes.iter().filter(|outcome| outcome.test == test);
        same.max_by(|a, b| a.rate().median.total_cmp(&b.rate().median))
    };
    let best: Vec<&Outcome> = plan.tests.iter().filter_map(|test| fastest(*test)).collect();
    if plan.threads.len() > 1 && !report.interrupted {
        lines.push(String::new());
        lines.extend(best.iter().map(|o| format!("Fastest at '{}': {}.", label(o.test), n_threads(o.threads))));
    }
    let mut writes = best.iter().filter(|outcome| matches!(outcome.test, Test::Write { .. })).peekable();
    if writes.peek().is_none() || plan.memory.is_none() && !conditions.uses_gpu {
        return lines;
    }
    lines.push(String::new());
    if conditions.uses_gpu {
        lines.push("Layers are on a GPU: its memory sets the limit, which is not measured here.".to_string());
        return lines;
    }
    if !conditions.fits_memory {
        lines
            .push("The model does not fit in memory: the disk sets the limit, which is not measured here.".to_string());
        return lines;
    }
    for outcome in writes {
        lines.extend(about_memory(conditions, outcome, report));
    }
    lines
}

/// Compares the speed of a test with what memory allows.
fn about_memory(conditions: &Conditions, outcome: &Outcome, report: &Report) -> Option<String> {
    let found = report.memory.iter().find(|found| found.threads == outcome.threads)?;
    let bytes = conditions.bytes_a_token(outcome.test)?;
    let size = |bytes: f64| {
        let text = units::bytes(bytes as u64);
        // The measurement has about three significant digits.
        text.split_once(' ').and_then(|(n, unit)| Some(format!("{:.1} {unit}", n.parse::<f64>().ok()?))).unwrap_or(text)
    };
    let Test::Write { depth, .. } = outcome.test else { return None };
    let when = if depth > 0 { format!("After {depth} tokens: ") } else { String::new() };
    let reads = format!("this machine reads {}/s with {}", size(found.best()), n_threads(outcome.threads));
    let needs = format!("this model reads {} per token", size(bytes));
    let does = outcome.rate().median;
    let sentence = match conditions.limit(outcome, &report.memory) {
        None => {
            let cache = size(conditions.caches.map_or(0, |caches| caches.bytes_for(outcome.threads)) as f64);
            format!(
                "{reads}; {needs}, which fits in the CPU's cache of {cache}, so memory sets no limit; it does {} \
                 tokens per second",
                rate(does)
            )
        }
        Some(limit) if does > limit => format!(
            "{reads}; {needs}; from memory alone, the most would be {} tokens per second, but it does {}: a part stays \
             in the CPU's cache, or other programs used memory during the measurement",
            rate(limit),
            rate(does),
        ),
        Some(limit) => format!(
            "{reads}; {needs}; the most it can do is {} tokens per second; it does {} ({:.0}%)",
            rate(limit),
            rate(does),
            does / limit * 100.0,
        ),
    };
    let mut text = when + &sentence;
    // The text always begins with ASCII.
    text[..1].make_ascii_uppercase();
    Some(text + ".")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::Run;
    use crate::engine::SessionOptions;
    use crate::llama::KvType;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("bench").chain(line.split(' '))).map(|line| line.args)
    }

    /// A model of so many bytes, trained on so many tokens at a time.
    fn shape(weight_bytes: u64, n_ctx_train: u32) -> Shape {
        Shape { weight_bytes, n_ctx_train: Some(n_ctx_train), ..Shape::of_yi_34b() }
    }

    fn planned(line: &str, n_ctx_train: u32) -> anyhow::Result<Plan> {
        plan(&parse(line).unwrap(), &shape(1 << 30, n_ctx_train), Arc::default())
    }

    fn labels(plan: &Plan) -> Vec<String> {
        plan.tests.iter().map(|test| label(*test)).collect()
    }

    #[test]
    fn the_usual_tests_fit_the_context() {
        let usual = planned("m", 4096).unwrap();
        assert_eq!(labels(&usual), ["read 64", "read 512", "write 64", "write 64 after 512"]);
        assert_eq!((usual.repeat, usual.session.n_ctx, usual.threads.len()), (5, Some(576), 1));
        let small = planned("m", 512).unwrap();
        assert_eq!(labels(&small), ["read 64", "read 512", "write 64", "write 64 after 448"]);
        let tiny = planned("m", 32).unwrap();
        assert_eq!(labels(&tiny), ["read 32", "write 64"]);
        let given = planned("m --ctx 300", 4096).unwrap();
        assert_eq!(labels(&given), ["read 64", "read 300", "write 64", "write 64 after 236"]);
        assert_eq!(given.session.n_ctx, Some(300));
    }

    #[test]
    fn what_is_typed_is_what_is_measured() {
        let plan =
            planned("m -p 8,16 -n 4 -d 0,1000,9 -r 2 -t 1,3 --threads 2 --kv-type q8_0 --no-memory", 512).unwrap();
        assert_eq!(labels(&plan), ["read 8", "read 16", "write 4", "write 4 after 1000", "write 4 after 9"]);
        assert_eq!(plan.threads, [1, 3, 2]);
        assert_eq!((plan.repeat, plan.session.n_ctx, plan.memory), (2, Some(1004), None));
        assert_eq!(plan.session.kv_types, KvType::Q8_0.into());
        assert_eq!(labels(&planned("m -p 0 -n 3 -d 5", 512).unwrap()), ["write 3 after 5"]);
        assert_eq!(labels(&planned("m -n 0", 512).unwrap()), ["read 64", "read 512"]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for (line, wanted) in [
            ("m -p 0 -n 0", "nothing to measure"),
            ("m --ctx 100 -p 101", "a test needs 101 tokens of context, but --ctx is 100"),
            ("m --ctx 64 -d 10", "needs 74 tokens"),
            ("m -t 2,0", "--threads is 0; it has to be from 1 to 512"),
        ] {
            let error = planned(line, 4096).unwrap_err().to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
        for line in ["m -r 0", "m -t x", "m -p 1,x", "m --force", "m -d -1", "m --kv-type q3"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    fn conditions(weights: u64, cache: u64) -> Conditions {
        Conditions {
            path: "m.gguf".into(),
            name: "m".into(),
            file_type: None,
            n_weights: weights,
            model_bytes: weights,
            bits_per_weight: None,
            cost: Cost { weights, kv_a_token: 1_000_000 },
            cpu: None,
            caches: Some(Caches { bytes: cache, count: 1 }),
            machine: None,
            uses_gpu: false,
            fits_memory: true,
            n_ctx: 600,
            kv_types: KvTypes::default(),
            second_layout: false,
            verbose: false,
        }
    }

    /// Seconds a token, at a bandwidth of 41 GB/s.
    fn sentences(conditions: &Conditions, seconds: f64) -> Vec<String> {
        let tests = [0, 512].map(|depth| Test::Write { n_tokens: 3, depth });
        let runs = vec![Run { seconds: seconds * 3.0, sampling_seconds: 0.0 }; 3];
        let memory = vec![Bandwidth { threads: 8, buffer_bytes: 1 << 28, passes: vec![39e9, 41e9, 40e9] }];
        let outcomes = tests.map(|test| Outcome { test, threads: 8, runs: runs.clone() }).to_vec();
        let plan = Plan {
            threads: vec![8],
            tests: tests.to_vec(),
            repeat: 3,
            memory: Some((MEMORY_TIME, 1 << 28)),
            session: SessionOptions::default(),
        };
        conclusions(conditions, &plan, &Report { memory, outcomes, interrupted: false })
    }

    #[test]
    fn a_sentence_compares_with_what_memory_allows() {
        let said = sentences(&conditions(19_498_000_000, 32 << 20), 1.0 / 1.9);
        let wanted = [
            "",
            "This machine reads 41.0 GB/s with 8 threads; this model reads 19.5 GB per token; the most it can do is \
             2.10 tokens per second; it does 1.90 (90%).",
            "After 512 tokens: this machine reads 41.0 GB/s with 8 threads; this model reads 20.0 GB per token; the \
             most it can do is 2.05 tokens per second; it does 1.90 (93%).",
        ];
        assert_eq!(said, wanted);
    }

    #[test]
    fn no_share_is_above_the_whole() {
        let cached = sentences(&conditions(4_000_000, 1 << 30), 1e-4);
        assert!(
            cached[1].contains("which fits in the CPU's cache of 1.1 GB, so memory sets no limit; it does"),
            "{}",
            cached[1]
        );
        let partly = sentences(&conditions(2_000_000_000, 1 << 30), 1e-3);
        assert!(partly[1].contains("a part stays in the CPU's cache"), "{}", partly[1]);
        assert!(!cached.concat().contains('%') && !partly.concat().contains('%'));
        let swapped = sentences(&Conditions { fits_memory: false, ..conditions(1 << 40, 1 << 20) }, 100.0);
        assert!(swapped.len() == 2 && swapped[1].contains("the disk sets the limit"), "{swapped:?}");
        let gpu = sentences(&Conditions { uses_gpu: true, ..conditions(1 << 30, 1 << 20) }, 1e-3);
        assert!(gpu.len() == 2 && gpu[1].contains("on a GPU"), "{gpu:?}");
    }

    #[test]
    fn rows_that_come_one_by_one_line_up() {
        let plan = planned("m -p 64 -n 64 -d 0,100000", 4096).unwrap();
        let mut rows = Rows::new(&plan);
        let conditions = conditions(1 << 34, 1 << 20);
        let mut widths = vec![];
        for (test, seconds) in plan.tests.iter().zip([0.0004, 3.0, 4000.0]) {
            let runs = vec![Run { seconds, sampling_seconds: 0.001 }];
            let line = rows.line(&Outcome { test: *test, threads: 12, runs }, &conditions);
            widths.push(line.find("12").unwrap());
            assert!(line.starts_with(&label(*test)), "{line}");
        }
        assert!(widths.iter().all(|at| *at == widths[0]), "{widths:?}");
        assert!(rows.head().starts_with("Test "));
    }
}
