//! `nibble convert`

use crate::base::display::printable;
use crate::base::units;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;

#[cfg(feature = "llama")]
use super::allocation::Chosen;
use super::groups::groups;
use super::out::{self, Out};
use super::table::{self, Align};
use super::{advice, importance, interrupt, progress};
use crate::checkpoint::Checkpoint;
use crate::convert::{Error, Job, Options, Summary, lora};
use crate::recipe::{Override, Recipe};
use crate::vocab::TokenizerFile;

/// Convert a Hugging Face folder, a 16-bit GGUF or a LoRA adapter to GGUF
///
/// Reads the source once and writes the final file, with little memory and no intermediate file. The result gets its name
/// only when it is complete. If the work is interrupted, by Ctrl-C, a full disk or a power failure, run the same command
/// again: it resumes where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble convert Yi-34B-Chat                     to Yi-34B-Chat-Q4_K_M.gguf in the current folder
  nibble convert Yi-34B-Chat -q IQ4_XS -o yi.gguf
  nibble convert Yi-34B-Chat --dry-run           print the plan and write nothing
  nibble convert Yi-34B-Chat --type output=Q8_0 --type 'blk.0.*=Q6_K'
  nibble convert Yi-34B-Chat -q IQ4_XS --importance yi-imatrix.gguf
  nibble convert Yi-34B-Chat --best              the same size, but nearer to the original; takes much longer
  nibble convert Yi-6B --rounding full --calibration english.txt --calibration chinese.txt
  nibble convert Yi-34B-Chat --fit 24GB --rounding full --calibration english.txt --calibration chinese.txt
  nibble convert my-adapter --base Yi-34B-Chat   a LoRA adapter, to my-adapter-F32-LoRA.gguf")]
pub struct Args {
    /// A Hugging Face model folder, a GGUF file, or the folder of a LoRA adapter as PEFT saves it
    source: PathBuf,

    /// The recipe: which tensor gets which type; 'nibble quants' lists them [default: Q4_K_M; for an adapter F32]
    ///
    /// llama-quantize's other names are understood: Q4_K for Q4_K_M, and the numbers of file types. A name that ends in
    /// .toml is a file, as for --recipe.
    #[arg(short = 'q', long = "quantize", value_name = "RECIPE", conflicts_with = "recipe")]
    quantize: Option<String>,

    /// A recipe of your own: a TOML file; 'nibble quants --show Q4_K_M --toml' prints one to start from
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,

    /// Override the recipe's type for a tensor, a pattern of tensors ('blk.0.*') or a role ('ffn_down')
    #[arg(long = "type", value_name = "PATTERN=TYPE")]
    types: Vec<String>,

    /// Preserve the weights that matter most, according to a file from 'nibble calibrate' or llama-imatrix
    ///
    /// The file may be GGUF or .dat. The fewer bits a recipe uses, the more this helps: Q2_K and Q3_K benefit most.
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    allocation: super::allocation::AllocationArgs,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    best: super::best::BestArgs,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    rounding: super::rounding::RoundingArgs,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    polish: super::polish::PolishArgs,

    /// For an adapter: the model it was trained on, a folder with its config.json or a GGUF file
    /// [default: the folder that the adapter names, if it exists]
    #[arg(long, value_name = "FOLDER|FILE")]
    base: Option<PathBuf>,

    /// Output file [default: named after the model and the recipe, in the current folder]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,

    /// Start over instead of resuming an interrupted run
    ///
    /// Without this, the same command resumes from FILE.partial and FILE.journal.
    #[arg(long)]
    restart: bool,

    /// Print the plan and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Print the plan (with --dry-run) or the result as JSON
    #[arg(long)]
    json: bool,

    /// Split the output into files of at most this size, such as 4G or 500M (powers of 1000), or 4GiB (of 1024)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    split_max_size: Option<u64>,

    /// Convert weights that are NaN or infinite instead of stopping
    #[arg(long)]
    allow_nan: bool,

    /// Accept a GGUF source that is already quantized
    #[arg(long)]
    allow_requantize: bool,

    /// The file to take the vocabulary from, where a folder has two that disagree [default: tokenizer.model]
    ///
    /// 'model' is sentencepiece's tokenizer.model, 'json' the tokenizer.json of the tokenizers library. A fine-tune needs
    /// the one that it was trained with.
    #[arg(long, value_name = "model|json", value_parser = parse_tokenizer)]
    tokenizer: Option<TokenizerFile>,

    /// Number of threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print nothing but errors
    #[arg(long)]
    quiet: bool,
}

/// Without llama.cpp, types are not chosen for a size.
#[cfg(not(feature = "llama"))]
enum Chosen {}

#[cfg(not(feature = "llama"))]
impl Chosen {
    fn print(&self, _: &mut Out) -> anyhow::Result<()> {
        match *self {}
    }

    fn save(&self, _: &Job, _: bool) -> anyhow::Result<PathBuf> {
        match *self {}
    }

    fn json(&self) -> serde_json::Value {
        match *self {}
    }
}

#[cfg_attr(not(feature = "llama"), allow(unused_mut))]
pub fn run(mut args: Args) -> anyhow::Result<()> {
    let is_adapter = Checkpoint::is_adapter(&args.source);
    #[cfg(feature = "llama")]
    args.best.apply(&mut args.rounding, is_adapter)?;
    if is_adapter {
        return convert_adapter(&args);
    }
    let cancel = interrupt::listen()?;
    if args.base.is_some() && args.source.exists() {
        bail!(
            "{}: this is not an adapter (it has no adapter_config.json), and --base is for adapters",
            args.source.display()
        );
    }
    #[cfg_attr(not(feature = "llama"), allow(unused_mut))]
    let mut options = options(&args, "Q4_K_M")?;
    #[cfg(feature = "llama")]
    let (rounding, polish) = {
        let (source, allow_requantize, tokenizer) = (args.source.as_path(), args.allow_requantize, args.tokenizer);
        let file = args.output.as_deref();
        let what = super::rounding::Rounded {
            source,
            allow_requantize,
            tokenizer,
            file,
            threads: args.threads,
            is_polished: args.polish.is_on(),
        };
        // Texts may be for choosing types alone.
        let is_nearest = args.allocation.is_given() && args.rounding.is_nearest();
        let rounding = if is_nearest { None } else { args.rounding.prepare(&what, &cancel)? };
        options.prologue = rounding.clone().map(|rounding| rounding as std::sync::Arc<dyn crate::pass::Prologue>);
        let polish = args.polish.prepare(&what, args.rounding.texts())?;
        options.epilogue = polish.clone().map(|polish| polish as std::sync::Arc<dyn crate::convert::Epilogue>);
        (rounding, polish)
    };
    #[cfg(feature = "llama")]
    let quality = || Quality {
        error_left: rounding.as_ref().and_then(|rounding| rounding.error_left()),
        polished: polish.as_ref().and_then(|polish| polish.achieved()),
    };
    #[cfg(not(feature = "llama"))]
    let quality = Quality::default;
    #[cfg(feature = "llama")]
    let chosen = {
        let (source, allow_requantize, tokenizer) = (args.source.as_path(), args.allow_requantize, args.tokenizer);
        let (threads, quiet, dry_run) = (args.threads, args.quiet || args.json, args.dry_run);
        let options = &options;
        let what =
            super::allocation::Allocating { source, allow_requantize, tokenizer, threads, quiet, dry_run, options };
        args.allocation.choose(&what, &args.rounding, &cancel)?
    };
    #[cfg(not(feature = "llama"))]
    let chosen: Option<(Chosen, Job)> = None;
    let (chosen, job) = match chosen {
        Some((chosen, job)) => (Some(chosen), job),
        None => (None, Job::prepare(&args.source, options)?),
    };
    #[cfg(feature = "llama")]
    args.best.check(&job)?;
    if !args.quiet {
        for warning in warnings(&job) {
            eprintln!("nibble: warning: {}", printable(&warning));
        }
    }
    let chosen = chosen.as_ref();
    if args.dry_run {
        return out::to_stdout(|out| match args.json {
            true => print_plan_json(out, &job, chosen),
            false => print_plan(out, &job, chosen),
        });
    }
    if let Some(chosen) = chosen {
        if !args.quiet && !args.json {
            out::to_stdout(|out| chosen.print(out))?;
        }
        job.check_output()?;
        let path = chosen.save(&job, args.force)?;
        if !args.quiet {
            eprintln!("nibble: the types are saved in {}: convert with -q {0} to choose them again", path.display());
        }
    }

    #[cfg(feature = "llama")]
    let running = super::best::Running {
        threads: args.threads,
        quiet: args.quiet,
        json: args.json,
        is_polished: args.polish.is_on(),
        cancel: &cancel,
    };
    #[cfg(feature = "llama")]
    if !args.force && !args.restart && args.best.again(&job, rounding.as_deref(), &running)? {
        return Ok(());
    }
    #[cfg(feature = "llama")]
    if let Some(rounding) = &rounding {
        job.check_names()?;
        rounding.check_room(job.bytes_to_write())?;
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0).into()).build()?;
    let bar = progress::Conversion::new(job.source_bytes(), args.quiet || args.json, args.quiet);
    #[cfg(feature = "llama")]
    if let Some(rounding) = &rounding {
        let show = bar.showing();
        let whole = progress::Whole::new(job.plan(), rounding.n_tokens(), rounding.goes_backward());
        rounding.observe(move |doing| show(&whole.note(&doing)));
    }
    #[cfg(feature = "llama")]
    if let Some(polish) = &polish {
        super::polish::observe(polish, bar.steps());
    }
    let result = pool.install(|| job.execute(&bar, &cancel));
    bar.clear();
    #[cfg(feature = "llama")]
    let gain = match &result {
        Ok(_) => args.best.compare(&job, rounding.as_deref(), &running)?,
        Err(_) => None,
    };
    #[cfg(not(feature = "llama"))]
    let gain: Option<serde_json::Value> = None;
    match result {
        Ok(summary) if args.json => {
            let json = summary_json(&job, &summary, &quality(), chosen, &gain);
            out::to_stdout(|out| Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?))
        }
        Ok(summary) if !args.quiet => out::to_stdout(|out| {
            print_summary(out, &job, &summary, &quality())?;
            #[cfg(feature = "llama")]
            if let Some(gain) = &gain {
                super::best::print(out, &job, gain)?;
            }
            Ok(())
        }),
        Ok(_) => Ok(()),
        Err(error) if error.is_cancelled() => Err(interrupted(&error)),
        Err(error) => Err(error.into()),
    }
}

/// Returns what the user should know, one sentence each.
fn warnings(job: &Job) -> Vec<String> {
    let disagreement = job.tokenizers().map(|disagreement| {
        format!("{disagreement}; if the model was trained with the second, pass --tokenizer json (--tokenizer model keeps the first)")
    });
    job.warnings().iter().cloned().chain(disagreement).collect()
}

/// Returns the error that ends the program after Ctrl-C.
fn interrupted(error: &Error) -> anyhow::Error {
    let advice = advice::convert::of_conversion(error).map(|advice| format!("; {advice}")).unwrap_or_default();
    interrupt::Interrupted(format!("{error}{advice}")).into()
}

/// Converts an adapter. It is small: no threads, no journal, no progress bar.
fn convert_adapter(args: &Args) -> anyhow::Result<()> {
    if recipe_file(args).is_some() {
        return Err(Error::from(lora::Error::ModelOnly(lora::ModelOnly::RecipeFile)).into());
    }
    if args.importance.is_some() {
        return Err(Error::from(lora::Error::ModelOnly(lora::ModelOnly::Importance)).into());
    }
    #[cfg(feature = "llama")]
    if !args.rounding.is_nearest() {
        bail!("an adapter is rounded to nearest; leave out --rounding");
    }
    #[cfg(feature = "llama")]
    if args.allocation.is_given() {
        bail!("all matrices of an adapter have one type; leave out --target-size, --target-bpw and --fit");
    }
    #[cfg(feature = "llama")]
    if args.polish.is_on() {
        bail!("an adapter has no scales and norms to tune; leave out --polish");
    }
    if args.tokenizer.is_some() {
        bail!("an adapter has no tokenizer of its own; leave out --tokenizer");
    }
    let job = lora::AdapterJob::prepare(&args.source, args.base.as_deref(), &options(args, "F32")?)?;
    if !args.quiet {
        for warning in job.warnings() {
            eprintln!("nibble: warning: {}", printable(warning));
        }
    }
    let (path, bytes) = job.output();
    if !args.dry_run {
        let cancel = interrupt::listen()?;
        match job.execute(&cancel) {
            Err(error) if error.is_cancelled() => return Err(interrupted(&error)),
            result => result?,
        }
    } else if let Err(error) = job.check_output() {
        let advice = advice::convert::of_conversion(&error).map(|advice| format!("; {advice}")).unwrap_or_default();
        eprintln!("nibble: warning: {error}{advice}");
    }
    let (least, most) = job.ranks();
    out::to_stdout(|out| {
        if args.json {
            let tensors: Vec<_> = job
                .tensors()
                .iter()
                .map(|t| serde_json::json!({"name": t.name, "dims": t.dims, "type": t.ty.name()}))
                .collect();
            let json = serde_json::json!({
                "outputs": [{"path": path, "bytes": bytes}],
                "adapter": {"alpha": job.alpha(), "ranks": [least, most], "type": job.ty().name()},
                "tensors": tensors,
                "warnings": job.warnings(),
            });
            return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?);
        }
        if args.dry_run {
            let mut rows = table::new(&[
                ("tensor", Align::Left),
                ("number", Align::Right),
                ("shape", Align::Right),
                ("type", Align::Left),
                ("size", Align::Right),
            ]);
            let tensors = job.tensors().iter();
            for group in &groups(tensors.map(|t| (t.name.as_str(), t.dims.as_slice(), t.n_bytes().unwrap_or(0)))) {
                rows.add_row([
                    printable(&group.name).into_owned(),
                    group.n_tensors.to_string(),
                    units::shape(group.alike),
                    job.ty().name().to_string(),
                    units::bytes(group.n_bytes),
                ]);
            }
            out.table(rows)?;
            writeln!(out)?;
        } else if args.quiet {
            return Ok(());
        }
        let rank = if least == most { format!("rank {least}") } else { format!("ranks {least} to {most}") };
        let n = job.tensors().len() / 2;
        let matrices = if n == 1 { "matrix" } else { "matrices" };
        writeln!(out, "LoRA adapter for {n} {matrices}, {rank}, alpha {}, {}", job.alpha(), job.ty().name())?;
        match args.dry_run {
            true => writeln!(out, "would write {} ({})", path.display(), units::bytes(bytes))?,
            false => writeln!(out, "{}  {}", path.display(), units::bytes(bytes))?,
        }
        Ok(())
    })
}

/// Returns the file of the user's own recipe, if there is one.
fn recipe_file(args: &Args) -> Option<&Path> {
    let named = args.quantize.as_deref().map(Path::new);
    let is_toml = |path: &&Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    args.recipe.as_deref().or(named.filter(is_toml))
}

/// Returns the options that were given, with the recipe `default` if none was given.
fn options(args: &Args, default: &str) -> anyhow::Result<Options> {
    let recipe = match recipe_file(args) {
        Some(path) => Recipe::from_file(path)?,
        None => Recipe::find(args.quantize.as_deref().unwrap_or(default))?.clone(),
    };
    let overrides = args.types.iter().map(|text| text.parse()).collect::<Result<Vec<Override>, _>>()?;
    Ok(Options {
        overrides,
        output: args.output.clone(),
        force: args.force,
        split_max_bytes: args.split_max_size,
        restart: args.restart,
        allow_nan: args.allow_nan,
        allow_requantize: args.allow_requantize,
        tokenizer: args.tokenizer,
        importance: args.importance.as_deref().map(importance::read).transpose()?,
        ..Options::new(recipe)
    })
}

fn parse_tokenizer(text: &str) -> Result<TokenizerFile, String> {
    match text {
        "model" | "tokenizer.model" => Ok(TokenizerFile::Model),
        "json" | "tokenizer.json" => Ok(TokenizerFile::Json),
        _ => Err("it is 'model', for tokenizer.model, or 'json', for tokenizer.json".to_string()),
    }
}

/// Parses a size such as `4G`, `500M`, `4.5GB` or `18GiB` and returns it in bytes. Units are powers of 1000, and with an i of
/// 1024.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("'{text}' is not a size: write a number and K, M, G or T, such as 4G, or KiB, MiB, GiB or TiB");
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.strip_suffix('B').unwrap_or(&upper);
    let (number, base) = match number.strip_suffix('I') {
        Some(number) if upper.ends_with('B') => (number, 1024f64),
        Some(_) => return Err(wrong()),
        None => (number, 1000.0),
    };
    let power = "KMGT".find(|unit| number.ends_with(unit)).map_or(0, |at| at as i32 + 1);
    if power == 0 && base != 1000.0 {
        return Err(wrong());
    }
    let number = if power > 0 { &number[..number.len() - 1] } else { number };
    let value: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = value * base.powi(power);
    if (1.0..9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(feature = "llama")]
/// Parses a size, which may be 0, as [`parse_size`].
pub(super) fn parse_room(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text) }
}

/// Prints the plan, with tensors that differ only in their layer as one row; or what was chosen for a size.
fn print_plan(out: &mut Out, job: &Job, chosen: Option<&Chosen>) -> anyhow::Result<()> {
    match chosen {
        Some(chosen) => chosen.print(out)?,
        None => print_types(out, job)?,
    }
    writeln!(
        out,
        "\n{} -> {}, {:.2} bits per weight",
        units::bytes(job.source_bytes()),
        units::bytes(job.output_bytes()),
        job.plan().bits_per_weight()
    )?;
    for (path, bytes) in job.outputs() {
        writeln!(out, "would write {} ({})", path.display(), units::bytes(*bytes))?;
    }
    if let Err(error) = job.check_output() {
        let advice = advice::convert::of_conversion(&error).map(|advice| format!("; {advice}")).unwrap_or_default();
        eprintln!("nibble: warning: {error}{advice}");
    }
    Ok(())
}

fn print_types(out: &mut Out, job: &Job) -> anyhow::Result<()> {
    let tensors = job.plan().tensors.iter();
    let groups =
        groups(tensors.map(|t| (t.name.as_str(), (t.dims.as_slice(), t.source, t.ty, t.why.as_str()), t.bytes)));
    let mut rows = table::new(&[
        ("tensor", Align::Left),
        ("number", Align::Right),
        ("shape", Align::Right),
        ("type", Align::Left),
        ("size", Align::Right),
        ("why", Align::Left),
    ]);
    for group in &groups {
        let (dims, source, ty, why) = group.alike;
        rows.add_row([
            printable(&group.name).into_owned(),
            group.n_tensors.to_string(),
            units::shape(dims),
            format!("{source} -> {ty}"),
            units::bytes(group.n_bytes),
            printable(why).into_owned(),
        ]);
    }
    Ok(out.table(rows)?)
}

pub(super) fn files_json(job: &Job) -> serde_json::Value {
    job.outputs().iter().map(|(path, bytes)| serde_json::json!({"path": path, "bytes": bytes})).collect()
}

fn print_plan_json(out: &mut Out, job: &Job, chosen: Option<&Chosen>) -> anyhow::Result<()> {
    let json = serde_json::json!({
        "plan": job.plan(),
        "source_bytes": job.source_bytes(),
        "bits_per_weight": job.plan().bits_per_weight(),
        "outputs": files_json(job),
        "allocation": chosen.map(Chosen::json),
        "warnings": warnings(job),
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?)
}

/// What is known of how near the result is to the original.
#[derive(Default)]
struct Quality {
    /// The part of the error of rounding to nearest that is left, if rounding was another.
    error_left: Option<f64>,
    /// What polishing achieved, if there was any.
    #[cfg(feature = "llama")]
    polished: Option<crate::evaluate::polish::Achieved>,
}

fn print_summary(out: &mut Out, job: &Job, summary: &Summary, quality: &Quality) -> anyhow::Result<()> {
    for (path, bytes) in job.outputs() {
        writeln!(out, "{}  {}", path.display(), units::bytes(*bytes))?;
    }
    let seconds = summary.elapsed.as_secs_f64();
    writeln!(
        out,
        "{} -> {}, {:.2} bits per weight, in {seconds:.1} s ({}/s read)",
        units::bytes(summary.read_bytes),
        units::bytes(summary.written_bytes),
        job.plan().bits_per_weight(),
        units::bytes((summary.read_now_bytes as f64 / seconds.max(1e-9)) as u64),
    )?;
    if let Some(left) = quality.error_left {
        writeln!(out, "{left:.2} of the error that rounding to nearest makes in the matrices' outputs is left")?;
    }
    #[cfg(feature = "llama")]
    if let Some(achieved) = &quality.polished {
        writeln!(out, "{}", super::polish::sentence(achieved))?;
    }
    Ok(())
}

/// `gain` is the comparison with plain rounding, if there was one.
fn summary_json<G: serde::Serialize>(
    job: &Job,
    summary: &Summary,
    quality: &Quality,
    chosen: Option<&Chosen>,
    gain: &Option<G>,
) -> serde_json::Value {
    #[cfg(feature = "llama")]
    let polished = quality.polished.as_ref().map(super::polish::json);
    #[cfg(not(feature = "llama"))]
    let polished: Option<serde_json::Value> = None;
    let mut json = serde_json::json!({
        "outputs": files_json(job),
        "read_bytes": summary.read_bytes,
        "written_bytes": summary.written_bytes,
        "resumed_bytes": summary.read_bytes - summary.read_now_bytes,
        "bits_per_weight": job.plan().bits_per_weight(),
        "error_left": quality.error_left,
        "allocation": chosen.map(Chosen::json),
        "polished": polished,
        "seconds": summary.elapsed.as_secs_f64(),
        "warnings": warnings(job),
    });
    if let (Some(gain), Some(json)) = (gain, json.as_object_mut()) {
        json.insert("comparison".to_string(), serde_json::json!(gain));
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        assert_eq!(parse_size("4G"), Ok(4_000_000_000));
        assert_eq!(parse_size("4.5gb"), Ok(4_500_000_000));
        assert_eq!(parse_size("500m"), Ok(500_000_000));
        assert_eq!(parse_size("123"), Ok(123));
        assert_eq!(parse_size("18GiB"), Ok(18 << 30));
        assert_eq!(parse_size(" 1.5 mib"), Ok(3 << 19));
        assert_eq!(parse_size("2KiB"), Ok(2048));
        for wrong in ["1i", "1iB", "1Gi", "1IGB", "GiB", "G", "-1G", "0", "nan", "1e30G", "4 X"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
