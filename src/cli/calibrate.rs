//! `nibble calibrate`

use crate::base::display::printable;
use crate::base::units;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::interrupt::{self, Interrupted};
use super::machine::{MachineArgs, interruptible};
use super::out::{self, Out};
use super::progress;
use super::table::{self, Align};
use crate::evaluate::calibrate::{CalibrationJob, CalibrationOptions, Error, Event, Report, Weighted};
use crate::gguf;
use crate::llama;

/// Measure which weights matter by running a model over texts, for 'nibble convert --importance'
///
/// Measures how large the inputs of every matrix are, channel by channel, while the model reads. 'nibble convert' then
/// rounds weights with large inputs more carefully. Choose texts like those that you will use the model for: its
/// languages, code, conversations. A few hundred kilobytes are enough. Without any, nibble reads its built-in texts in
/// English, Chinese and code. The result is a GGUF file that llama.cpp can read too.
///
/// Progress is saved as it goes. After Ctrl-C or a power failure, run the same command again to continue.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:
  nibble calibrate yi-F16.gguf                                    built-in texts, to yi-F16-imatrix.gguf here
  nibble calibrate yi-F16.gguf english.txt chinese.txt code.txt
  nibble calibrate yi-F16.gguf english.txt chinese.txt=2          each Chinese token counts twice
  nibble calibrate yi-F16.gguf chats.txt --special                texts that contain <|im_start|>
  nibble calibrate yi-F16.gguf more.txt --merge yi-F16-imatrix.gguf -o all.gguf
  nibble convert Yi-34B-Chat -q Q3_K_M --importance yi-F16-imatrix.gguf",
    mut_arg("ctx", |arg| arg
        .long("window")
        .alias("ctx")
        .value_name("N")
        .help_heading("Reading")
        .help("Tokens in a window; the model reads each window without the ones before it [default: 512, or less if the model was trained on less]"))
)]
pub struct Args {
    /// The model: a GGUF file, preferably 16-bit, or any part of a split one
    model: PathBuf,

    /// Texts in UTF-8. A number after '=' says how often each token of a text counts, such as 2 or 0.5
    /// [default: built-in texts in English, Chinese and code, without --merge]
    #[arg(value_name = "TEXT[=WEIGHT]")]
    texts: Vec<Weighted>,

    /// The file to write [default: the model's name with -imatrix.gguf, in the current folder]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,

    /// Start over instead of continuing an earlier run that was cut off
    ///
    /// By default, the same command continues from OUTPUT.partial.
    #[arg(long)]
    restart: bool,

    /// Add a file made earlier from the same model, by nibble or llama-imatrix; may be given several times
    #[arg(long, value_name = "FILE[=WEIGHT]", action = clap::ArgAction::Append)]
    merge: Vec<Weighted>,

    /// Read at most this many windows of each text [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Reading")]
    windows: Option<u64>,

    /// Read control tokens in the texts, such as <|endoftext|>, as control tokens, not as plain text
    #[arg(long, help_heading = "Reading")]
    special: bool,

    /// Measure the output matrix too. Recipes usually give it more bits, and it does better without importance
    #[arg(long, help_heading = "Reading")]
    output_matrix: bool,

    /// Save progress after every N windows
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = "Reading")]
    save_every: u32,

    #[command(flatten)]
    machine: MachineArgs,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Print nothing but errors
    #[arg(long)]
    quiet: bool,

    /// Show llama.cpp's log
    #[arg(short, long)]
    verbose: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    llama::set_verbose(args.verbose);
    let cancel = interrupt::listen()?;
    let session = args.machine.session(cancel);
    let output = args.output.clone().unwrap_or_else(|| default_output(&args.model));
    let job = CalibrationJob::prepare(
        &args.model,
        &args.texts,
        CalibrationOptions {
            window: session.n_ctx,
            most_windows: args.windows,
            output_matrix: args.output_matrix,
            special: args.special,
            built_in: args.texts.is_empty() && args.merge.is_empty(),
            merge: args.merge.clone(),
            force: args.force,
            restart: args.restart,
            save_every: args.save_every,
            session,
            ..CalibrationOptions::new(output.clone())
        },
    )?;
    let model = match job.runs_model() {
        true => {
            let loading = progress::Patient::new("loading the model", 1000);
            let at = move |part: f32| loading.at((part * 1000.0) as u64);
            Some(interruptible(args.machine.load_watched(&args.model, &job.session(), at))?)
        }
        false => None,
    };
    let bar = progress::Calibration::new(args.quiet || args.json || args.verbose);
    let result = job.execute(model.as_ref(), |event| match event {
        Event::StartingOver if !args.quiet => {
            let why =
                if args.restart { "as asked" } else { "the model, a text or an option has changed since the last run" };
            bar.say(&format!("starting over: {why}"));
        }
        Event::Resuming { windows } if !args.quiet => {
            bar.say(&format!("resuming: {} done already", units_of(windows, "window was", "windows were")));
        }
        Event::Window { done, all } => bar.at(done, all),
        Event::StartingOver | Event::Resuming { .. } => {}
    });
    bar.clear();
    match result {
        Ok(report) if args.json => out::to_stdout(|out| print_json(out, &output, &report)),
        Ok(report) if !args.quiet => out::to_stdout(|out| print(out, &output, &report)),
        Ok(_) => Ok(()),
        Err(error @ Error::Cancelled { .. }) => Err(Interrupted(error.to_string()).into()),
        Err(error) => Err(error.into()),
    }
}

/// The model's name, and the ending that llama.cpp's users give such files.
fn default_output(model: &Path) -> PathBuf {
    format!("{}-imatrix.gguf", gguf::stem(model)).into()
}

fn units_of(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn print(out: &mut Out, output: &Path, report: &Report) -> anyhow::Result<()> {
    if !report.texts.is_empty() {
        let mut rows = table::new(&[
            ("Text", Align::Left),
            ("Weight", Align::Right),
            ("Tokens", Align::Right),
            ("Windows", Align::Right),
            ("Read", Align::Right),
        ]);
        for (slice, weight) in &report.texts {
            rows.add_row([
                printable(&slice.name).into_owned(),
                weight.to_string(),
                slice.tokens.to_string(),
                slice.windows.to_string(),
                slice.scored.to_string(),
            ]);
        }
        out.table(rows)?;
        writeln!(out)?;
    }
    let sums = &report.sums;
    let n_read: u64 = report.texts.iter().map(|(slice, _)| slice.windows).sum();
    let seconds = report.elapsed.as_secs_f64();
    let matrices = units_of(sums.matrices.len() as u64, "matrix", "matrices");
    match n_read {
        0 => writeln!(out, "{matrices}, added up from {}", units_of(sums.texts.len() as u64, "text", "texts"))?,
        n => {
            let windows = units_of(n, "window", "windows");
            writeln!(out, "{matrices}, over {windows} of {} tokens, in {seconds:.1} s", report.window)?;
        }
    }
    for line in notes(report) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{}  {}", output.display(), units::bytes(report.bytes))?;
    Ok(())
}

/// Sentences about channels and matrices that had no input.
fn notes(report: &Report) -> Vec<String> {
    let mut lines = vec![];
    if let Some((first, unseen, of)) = report.unseen.iter().max_by_key(|(_, unseen, _)| *unseen) {
        let n: usize = report.unseen.iter().map(|(_, unseen, _)| unseen).sum();
        lines.push(format!(
            "{} had no input other than zero, in {}: {} has {unseen} of {of}; more text may reach them",
            units_of(n as u64, "channel", "channels"),
            units_of(report.unseen.len() as u64, "matrix", "matrices"),
            printable(first),
        ));
    }
    if let Some(first) = report.missing.first() {
        lines.push(format!(
            "{} had no input, among them {}: the model does not use them as plain matrices",
            units_of(report.missing.len() as u64, "matrix", "matrices"),
            printable(first)
        ));
    }
    lines
}

fn print_json(out: &mut Out, output: &Path, report: &Report) -> anyhow::Result<()> {
    let texts: Vec<Value> = report
        .texts
        .iter()
        .map(|(slice, weight)| {
            json!({
                "name": slice.name,
                "path": slice.path,
                "blake3": slice.blake3,
                "weight": weight,
                "tokens": slice.tokens,
                "windows": slice.windows,
                "read_tokens": slice.scored,
            })
        })
        .collect();
    let datasets: Vec<Value> = report
        .sums
        .texts
        .iter()
        .map(|text| json!({"name": text.name, "blake3": text.blake3, "weight": text.weight, "windows": text.windows}))
        .collect();
    let unseen: Vec<Value> =
        report.unseen.iter().map(|(name, unseen, of)| json!({"name": name, "channels": unseen, "of": of})).collect();
    let json = json!({
        "output": {"path": output.display().to_string(), "bytes": report.bytes},
        "texts": texts,
        "datasets": datasets,
        "matrices": report.sums.matrices.len(),
        "window": report.window,
        "windows": report.sums.windows,
        "resumed_windows": report.resumed,
        "unseen_channels": unseen,
        "unseen_matrices": report.missing,
        "seconds": report.elapsed.as_secs_f64(),
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?)
}
