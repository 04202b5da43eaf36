//! `nibble compare-recipes`

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;

use super::compare::{self, BootstrapArgs, Outputs, Watch, WindowArgs};
use super::interrupt::{self, Interrupted};
use super::machine::EngineArgs;
use super::out;
use crate::base::{ending, units};
use crate::evaluate::calibrate::Weighted;
use crate::evaluate::recipes::ImportanceFrom;
use crate::evaluate::texts::TextFile;
use crate::evaluate::{RecipeComparison, RecipeComparisonOptions};
use crate::recipe::Recipe;

/// Convert a model with every recipe, and compare all the files with it
///
/// Writes report.html, report.json and report.csv to a folder, and updates them after each file. The same command
/// continues an interrupted run: it reuses what is in the folder if that was made from the same inputs. The 16-bit
/// model is run once, to record a trace; then each file is measured alone, so that only one model at a time is in
/// memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble compare-recipes Yi-6B --text en=wiki.txt --text zh=novel.txt         to Yi-6B-recipes/
  nibble compare-recipes Yi-6B --text wiki.txt --recipes Q3_K_M,Q4_K_M --calibrate train.txt
  nibble compare-recipes Yi-34B-BF16.gguf --text wiki.txt --one-at-a-time     to use less disk space
  nibble compare-recipes Yi-6B                                                weights alone")]
pub struct Args {
    /// A Hugging Face model folder, or a 16-bit GGUF file, which saves making a 16-bit copy
    source: PathBuf,

    /// A text to compare on, with a name for the results, as in --text en=wiki.txt --text zh=novel.txt; can be given
    /// several times
    #[arg(long, value_name = "NAME=FILE", help_heading = "Measures")]
    text: Vec<TextFile>,

    /// The recipes to compare, separated by commas [default: all with fewer than 16 bits per weight]
    #[arg(long, value_name = "RECIPES", value_delimiter = ',', alias = "only")]
    recipes: Vec<String>,

    /// Also convert with this importance file, for each recipe in which importance makes a difference
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    importance: Option<PathBuf>,

    /// Measure importance on these texts, as 'nibble calibrate' does, and also convert with it
    #[arg(long, value_name = "TEXT[=WEIGHT]", num_args = 1..)]
    calibrate: Vec<Weighted>,

    /// The folder for all files [default: the model's name with -recipes]
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,

    /// Remove each file as soon as it is measured
    #[arg(long)]
    one_at_a_time: bool,

    /// Print what would be made and the disk space that it takes, and do nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    windows: WindowArgs,

    #[command(flatten)]
    bootstrap: BootstrapArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Print only errors and the result
    #[arg(long)]
    quiet: bool,

    /// Show llama.cpp's log
    #[arg(short, long)]
    verbose: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    crate::llama::set_verbose(args.verbose);
    let folder = args.output.clone().unwrap_or_else(|| default_folder(&args.source));
    let recipes = recipes(&args.recipes)?;
    let mut comparison = RecipeComparison::prepare(RecipeComparisonOptions {
        source: args.source,
        folder: folder.clone(),
        recipes,
        importance: match (args.importance, args.calibrate) {
            (Some(file), _) => ImportanceFrom::File(file),
            (None, texts) if texts.is_empty() => ImportanceFrom::Nothing,
            (None, texts) => ImportanceFrom::Texts(texts),
        },
        texts: args.text,
        cut: args.windows.cut(),
        most_windows: args.windows.most(),
        resamples: args.bootstrap.resamples,
        seed: args.bootstrap.seed,
        confidence: compare::CONFIDENCE,
        one_at_a_time: args.one_at_a_time,
        models: args.engine.settings(),
        command: compare::command(),
    })?;
    if args.dry_run {
        return out::to_stdout(|out| {
            let names: Vec<&str> = comparison.names().collect();
            let at_a_time = if args.one_at_a_time { " at a time" } else { "" };
            let free = comparison.free_bytes().map_or("unknown space".to_string(), units::bytes);
            let needed = units::bytes(comparison.needed_bytes());
            writeln!(out, "{}", names.join("\n"))?;
            Ok(writeln!(out, "\nin {}: {needed} needed{at_a_time}, {free} free", folder.display())?)
        });
    }
    let cancel = interrupt::listen()?;
    let watch = Watch::new(Some(Outputs::in_folder(&folder)), args.quiet || args.verbose, args.quiet);
    let result = comparison.execute(&watch, &cancel);
    watch.clear();
    let results = match result {
        Err(error) if error.is_cancelled() => {
            return Err(Interrupted("stopped; the same command continues from here".to_string()).into());
        }
        results => results?,
    };
    watch.save(&results)?;
    compare::print(&results)?;
    if results.interrupted {
        return Err(Interrupted("stopped; the same command continues from here".to_string()).into());
    }
    out::to_stdout(|out| Ok(writeln!(out, "\n{}", folder.join("report.html").display())?))?;
    match results.candidates.iter().filter(|candidate| candidate.failure.is_some()).count() {
        0 => Ok(()),
        n => bail!("{n} of {} recipes could not be measured", results.candidates.len()),
    }
}

/// The model's name and `-recipes`, in the current folder.
fn default_folder(source: &std::path::Path) -> PathBuf {
    let real = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    let endings: &[&str] = if source.is_dir() { &[] } else { &["gguf", "safetensors", "bin", "pt", "pth"] };
    format!("{}-recipes", ending::without(&real, endings)).into()
}

/// The recipes of these names, or all of fewer than 16 bits. Case does not matter.
fn recipes(names: &[String]) -> anyhow::Result<Vec<Recipe>> {
    if names.is_empty() {
        let has_16_bits = |recipe: &Recipe| matches!(recipe.name.as_str(), "F32" | "F16" | "BF16");
        return Ok(Recipe::all().iter().filter(|recipe| !has_16_bits(recipe)).cloned().collect());
    }
    let mut recipes: Vec<Recipe> = Vec::new();
    for name in names.iter().filter(|name| !name.is_empty()) {
        let recipe = Recipe::find(&name.to_uppercase())?;
        if !recipes.contains(recipe) {
            recipes.push(recipe.clone());
        }
    }
    Ok(recipes)
}
