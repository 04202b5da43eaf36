//! `nibble verify`

use crate::base::display::{printable, shorten};
use crate::base::units;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::{Value as Json, json};

use super::inspect::{self, plain, shown};
use super::out::{self, Out};
use super::table::{self, Align};
use super::{importance, interrupt, making, progress};
use crate::base::random::new_seed;
use crate::gguf::{Array, Value};
use crate::quant::SomeBlocks;
use crate::verify::{
    Error, Hashes, KeyDifference, Padding, RecipeState, Report, Sample, SourceFile, TensorReport, TensorVerdict,
    Verification, VerifyOptions, percent,
};

/// Check that a GGUF file is intact, and that it matches its source
///
/// Without --source, checks that the file is complete and holds no NaN or infinity. With --source, also checks that every
/// tensor has exactly the bytes that nibble makes from that source. The exit code is 0 if everything is right, and 1
/// otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nibble verify yi.gguf                                   is it intact?
  nibble verify yi.gguf --source Yi-34B-Chat              is it made from Yi-34B-Chat?
  nibble verify yi.gguf --source Yi-34B-Chat --sample 5%  the same, for a random 5% of it
  nibble verify yi.gguf --source Yi-34B-Chat --importance yi-imatrix.gguf")]
pub struct Args {
    /// The GGUF file, or any part of a split model
    file: PathBuf,

    /// The source it was converted from: a Hugging Face folder, or a GGUF file
    #[arg(long, value_name = "SOURCE")]
    source: Option<PathBuf>,

    /// The importance file it was made with, if any
    #[arg(long, value_name = "FILE", requires = "source")]
    importance: Option<PathBuf>,

    #[cfg(feature = "llama")]
    #[command(flatten)]
    rounding: super::rounding::RoundingArgs,

    /// Check only a random part, such as 5% or 0.05
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    sample: Option<f64>,

    /// Seed that chooses the random part [default: a new one each time]
    #[arg(long, requires = "sample")]
    seed: Option<u64>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Number of threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print only errors and what is wrong with the file
    #[arg(long)]
    quiet: bool,
}

/// Something is wrong with the file, which has been said already.
#[derive(Debug, thiserror::Error)]
#[error("")]
struct Wrong;

pub fn run(args: Args) -> anyhow::Result<()> {
    let file = find(&args.file)?;
    let sample = args.sample.map(|share| Sample { share, seed: args.seed.unwrap_or_else(new_seed) });
    let importance = args.importance.as_deref().map(importance::read).transpose()?;
    let cancel = interrupt::listen()?;
    #[cfg_attr(not(feature = "llama"), allow(unused_mut))]
    let mut options = VerifyOptions { sample, importance, ..VerifyOptions::default() };
    #[cfg(feature = "llama")]
    if let Some(source) = &args.source {
        let tokenizer = crate::verify::tokenizer_of(&file, source)?;
        let (source, file) = (source.as_path(), Some(file.as_path()));
        let what = super::rounding::Rounded {
            source,
            allow_requantize: true,
            tokenizer,
            file,
            threads: args.threads,
            is_polished: false,
        };
        let rounding = args.rounding.prepare(&what, &cancel)?;
        if let Some(rounding) = &rounding {
            rounding.check_room(0)?;
        }
        options.prologue = rounding.map(|rounding| rounding as std::sync::Arc<dyn crate::pass::Prologue>);
    } else if !args.rounding.is_nearest() {
        bail!("--rounding needs --source: without it, nothing is rounded");
    }
    let job = Verification::prepare(&file, args.source.as_deref(), options)?;
    if !args.quiet {
        for warning in job.warnings() {
            eprintln!("nibble: warning: {}", printable(warning));
        }
    }

    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0).into()).build()?;
    let bar = progress::Reading::new(args.quiet || args.json, "checked");
    let result = pool.install(|| job.execute(&|bytes, of| bar.advance(bytes, of), &cancel));
    bar.clear();
    let report = match result {
        Ok(report) => report,
        Err(error @ Error::Cancelled) => return Err(interrupt::Interrupted(error.to_string()).into()),
        Err(error) => return Err(error.into()),
    };
    if args.quiet && !args.json {
        return if report.is_right() { Ok(()) } else { bail!(verdict(&report)) };
    }
    out::to_stdout(|out| if args.json { print_json(out, &job, &report) } else { print(out, &job, &report) })?;
    if report.is_right() { Ok(()) } else { Err(Wrong.into()) }
}

/// Returns the file to verify: the path itself, or the only model in a folder.
fn find(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let shown = path.display();
    if path.join("config.json").exists() {
        bail!("{shown}: is a model folder, wanted a GGUF file: nibble verify FILE.gguf --source {shown}");
    }
    let models = inspect::models_in(path).map_err(|error| anyhow::anyhow!("{shown}: cannot be listed: {error}"))?;
    match models.as_slice() {
        [model] => Ok(model.clone()),
        [] => bail!("{shown}: is a folder without a GGUF file, wanted a GGUF file"),
        several => bail!("{shown}: is a folder with {} GGUF models, wanted one of them", several.len()),
    }
}

/// `5%` or `0.05`.
fn parse_share(text: &str) -> Result<f64, String> {
    let wrong = || format!("'{text}' is not a share: write a percentage such as 5%, or a part of 1 such as 0.05");
    let (number, factor) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text.trim(), 1.0),
    };
    let share = number.trim().parse::<f64>().map_err(|_| wrong())? / factor;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err(wrong()) }
}

fn verdict(report: &Report) -> String {
    let name = |path: &Path| printable(&path.display().to_string()).into_owned();
    report.verdict(&name(&report.file), &report.source.as_deref().map(name).unwrap_or_default())
}

/// The most rows that a table shows. JSON has all of them.
const MOST_LINES: usize = 20;

fn print(out: &mut Out, job: &Verification, report: &Report) -> anyhow::Result<()> {
    out.table(table::pairs(summary(job, report)))?;
    let tensors: Vec<_> = report.tensors.iter().filter_map(tensor_row).collect();
    print_rows(out, "Tensors", &["Tensor", "Type", "Found"], tensors)?;
    if let Some(origin) = &report.origin {
        let missing = origin.missing.iter().map(|name| [printable(name).into_owned(), "missing".to_string()]);
        let types = origin.types.iter().map(|other| {
            [
                printable(&other.tensor).into_owned(),
                format!("is {}, but the recipe chooses {}", other.found, other.wanted),
            ]
        });
        print_rows(
            out,
            "Tensors that the source or the recipe has otherwise",
            &["Tensor", "Found"],
            missing.chain(types).collect(),
        )?;
        let keys = origin.metadata.iter().map(key_row);
        print_rows(out, "Metadata", &["Key", "In the file", "From the source"], keys.collect())?;
        let files = origin.files.iter().filter(|file| file.differs());
        let files = files.map(|file| [printable(&file.name).into_owned(), state(file).to_string()]);
        print_rows(out, "Files of the source", &["File", "Found"], files.collect())?;
    }
    print_rows(
        out,
        "Bytes that belong to no tensor",
        &["File", "Found"],
        report.padding.iter().map(padding_row).collect(),
    )?;
    writeln!(out, "\n{}", verdict(report))?;
    Ok(())
}

/// Prints a table under a heading, if it has any rows.
fn print_rows<const N: usize>(
    out: &mut Out,
    heading: &str,
    columns: &[&str; N],
    rows: Vec<[String; N]>,
) -> anyhow::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{heading}\n")?;
    let mut table = table::new(&columns.map(|column| (column, Align::Left)));
    let n_rows = rows.len();
    for row in rows.into_iter().take(MOST_LINES) {
        table.add_row(row);
    }
    out.table(table)?;
    if n_rows > MOST_LINES {
        writeln!(out, "and {} more, which --json lists", n_rows - MOST_LINES)?;
    }
    Ok(())
}

fn summary(job: &Verification, report: &Report) -> Vec<(&'static str, String)> {
    let parts = match job.files().len() {
        1 => String::new(),
        n => format!(" in {n} parts"),
    };
    let n_tensors = report.tensors.len();
    let mut rows = vec![("File", format!("{}{parts}, {n_tensors} tensors", units::bytes(job.file_bytes())))];
    rows.extend(making::rows(&report.provenance));
    rows.extend(recipe_row(report));
    let seconds = report.elapsed.as_secs_f64();
    rows.push(match report.sample {
        None => ("Checked", format!("{} of weights in {seconds:.1} s", units::bytes(report.checked_bytes))),
        Some(sample) => (
            "Checked",
            format!(
                "{} of the weights ({} of {}) in {seconds:.1} s, drawn with --seed {}",
                percent(report.share()),
                units::bytes(report.checked_bytes),
                units::bytes(report.tensor_bytes),
                sample.seed
            ),
        ),
    });
    rows.push(("Structure", "header, sizes and offsets fit the file".to_string()));
    rows.push(("Numbers", numbers(report)));
    if report.origin.is_some() {
        rows.extend(source_rows(report));
    }
    rows
}

fn recipe_row(report: &Report) -> Option<(&'static str, String)> {
    let words = match report.recipe {
        RecipeState::NotRecorded => return None,
        RecipeState::Unchanged => "identical to the built-in recipe of that name",
        RecipeState::Changed => "not the built-in recipe of that name, which has changed since, or it was a user's own",
        RecipeState::Foreign => "not a built-in recipe",
    };
    Some(("Recipe", words.to_string()))
}

fn numbers(report: &Report) -> String {
    let unknown: Vec<_> = report.tensors.iter().filter(|tensor| !tensor.is_known()).collect();
    let mut types: Vec<_> = unknown.iter().map(|tensor| tensor.info.ty.name()).collect();
    types.sort_unstable();
    types.dedup();
    let unknown = match unknown.len() {
        0 => String::new(),
        1 => format!("; 1 tensor not checked: {}", types.join(", ")),
        n => format!("; {n} tensors not checked: {}", types.join(", ")),
    };
    match report.n_not_finite() {
        0 if report.sample.is_some() => format!("all in the sample are finite{unknown}"),
        0 => format!("all are finite{unknown}"),
        1 => format!("NaN or infinity in 1 tensor{unknown}"),
        n => format!("NaN or infinity in {n} tensors{unknown}"),
    }
}

fn source_rows(report: &Report) -> Vec<(&'static str, String)> {
    let Some(origin) = &report.origin else { return vec![] };
    let same = report.tensors.iter().filter(|tensor| tensor.comparison == TensorVerdict::Same).count();
    let needing = report.tensors.iter().filter(|tensor| tensor.comparison == TensorVerdict::NeedsImportance).count();
    let part = if report.sample.is_some() { " in the sample" } else { "" };
    let mut tensors = format!("{same} of {} identical{part}", report.tensors.len());
    if needing > 0 {
        tensors += &format!("; {needing} not checked: made with importance, which was not given (--importance)");
    }
    let mut rows = vec![("Tensors", tensors)];
    if let Some(problem) = &origin.recipe_problem {
        rows.push(("Types", format!("the recorded recipe does not fit the source: {}", printable(problem))));
    }
    let metadata = match (origin.metadata.len(), &origin.renamed_from) {
        (0, None) => "as nibble writes it".to_string(),
        (0, Some(name)) => format!("as nibble writes it, except that the source was then called {}", printable(name)),
        (1, _) => "1 key differs".to_string(),
        (n, _) => format!("{n} keys differ"),
    };
    rows.push(("Metadata", metadata));
    let n_files = origin.files.len();
    let as_recorded = origin.files.iter().filter(|file| !file.differs()).count();
    rows.push((
        "Source files",
        match origin.hashes {
            Hashes::NotRecorded => "not checked: the file records no hashes".to_string(),
            Hashes::Sampled => "names only: hashes can only be compared without --sample".to_string(),
            Hashes::Compared => format!("{as_recorded} of {n_files} have the recorded BLAKE3"),
        },
    ));
    rows
}

/// Returns the row that says what is wrong with a tensor.
fn tensor_row(tensor: &TensorReport) -> Option<[String; 3]> {
    let mut found = vec![];
    if let Some(blocks) = tensor.not_finite {
        let what = match tensor.info.ty.block_len() {
            1 => "weights are NaN or infinite",
            _ => "blocks have a scale that is NaN or infinite",
        };
        found.push(place(tensor, blocks, what));
    }
    match &tensor.comparison {
        TensorVerdict::Differs(blocks) if tensor.info.ty.block_len() == 1 => {
            found.push(place(tensor, *blocks, "weights differ from the source's"));
        }
        TensorVerdict::Differs(blocks) => found.push(place(tensor, *blocks, "blocks differ from the source's")),
        TensorVerdict::NotInSource => found.push("the source has no such tensor".to_string()),
        TensorVerdict::Shape(dims) => {
            let (found_shape, wanted) = (units::shape(&tensor.info.dims), units::shape(dims));
            found.push(format!("is {found_shape}, the source's {wanted}"));
        }
        TensorVerdict::UnknownType => found.push("not compared: nibble cannot make this type".to_string()),
        TensorVerdict::NoSource | TensorVerdict::Same | TensorVerdict::NotDrawn | TensorVerdict::NeedsImportance => {}
    }
    let name = printable(&tensor.info.name).into_owned();
    if found.is_empty() { None } else { Some([name, tensor.info.ty.to_string(), found.join("; ")]) }
}

/// A key, and its value in the file and from the source. Of long arrays the first elements that differ are shown.
fn key_row(key: &KeyDifference) -> [String; 3] {
    let name = shorten(&key.key, 80);
    if let (Some(Value::Array(found)), Some(Value::Array(wanted))) = (&key.found, &key.wanted) {
        let n = found.len().max(wanted.len());
        let first = (0..n).find(|&i| found.get(i) != wanted.get(i)).unwrap_or(0);
        let element = |array: &Array| {
            let value = array.get(first).map_or("(none)".to_string(), |value| shown(&value));
            format!("{} elements, number {first}: {value}", array.len())
        };
        return [name, element(found), element(wanted)];
    }
    let value = |value: &Option<Value>| value.as_ref().map_or("(none)".to_string(), shown);
    [name, value(&key.found), value(&key.wanted)]
}

fn place(tensor: &TensorReport, blocks: SomeBlocks, what: &str) -> String {
    let (row, column) = tensor.position(blocks.first);
    format!("{} of {} {what}, the first at row {row}, column {column}", blocks.n, tensor.n_blocks)
}

fn padding_row(padding: &Padding) -> [String; 2] {
    let (file, found) = match padding {
        Padding::NotZero { file, offset, n_bytes: 1 } => (file, format!("byte {offset} is not zero")),
        Padding::NotZero { file, offset, n_bytes } => {
            (file, format!("{n_bytes} bytes from byte {offset} on are not zero"))
        }
        Padding::TooLong { file, bytes } => {
            (file, format!("{} bytes from byte {} on, after the last tensor", bytes.end - bytes.start, bytes.start))
        }
    };
    [printable(&file.file_name().unwrap_or_default().to_string_lossy()).into_owned(), found]
}

fn state(file: &SourceFile) -> &'static str {
    match file {
        SourceFile { exists: false, .. } => "missing: the file was converted from it",
        SourceFile { recorded: None, .. } => "new: the file was not converted from it",
        SourceFile { recorded, found, .. } if found.is_some() && recorded != found => {
            "changed since the file was converted"
        }
        _ => "the same",
    }
}

fn print_json(out: &mut Out, job: &Verification, report: &Report) -> anyhow::Result<()> {
    let made = &report.provenance;
    let json = json!({
        "ok": report.is_right(),
        "verdict": verdict(report),
        "files": job.files().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "source": report.source.as_ref().map(|path| path.display().to_string()),
        "sample": report.sample.map(|sample| json!({"share": sample.share, "seed": sample.seed})),
        "checked_bytes": report.checked_bytes,
        "tensor_bytes": report.tensor_bytes,
        "seconds": report.elapsed.as_secs_f64(),
        "made_by": {
            "nibble": made.version,
            "recipe": made.recipe,
            "recipe_blake3": made.recipe_blake3,
            "overrides": made.overrides,
            "source": made.source,
            "importance": made.importance,
            "used_importance": made.used_importance,
        },
        "recipe": match report.recipe {
            RecipeState::NotRecorded => Json::Null,
            RecipeState::Unchanged => "unchanged".into(),
            RecipeState::Changed => "changed".into(),
            RecipeState::Foreign => "foreign".into(),
        },
        "tensors": report.tensors.iter().map(tensor_json).collect::<Vec<_>>(),
        "padding": report.padding.iter().map(padding_json).collect::<Vec<_>>(),
        "origin": origin_json(report),
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?)
}

fn tensor_json(tensor: &TensorReport) -> Json {
    let blocks = |blocks: SomeBlocks| {
        let (row, column) = tensor.position(blocks.first);
        json!({"blocks": blocks.n, "first_block": blocks.first, "row": row, "column": column})
    };
    let comparison = match &tensor.comparison {
        TensorVerdict::NoSource => Json::Null,
        TensorVerdict::Same => "same".into(),
        TensorVerdict::NotDrawn => "not checked: sample".into(),
        TensorVerdict::Differs(_) => "differs".into(),
        TensorVerdict::NotInSource => "not in the source".into(),
        TensorVerdict::Shape(_) => "other shape".into(),
        TensorVerdict::UnknownType => "not checked: unknown type".into(),
        TensorVerdict::NeedsImportance => "not checked: needs importance".into(),
    };
    json!({
        "name": tensor.info.name,
        "type": tensor.info.ty.name(),
        "shape": tensor.info.dims,
        "checked_blocks": tensor.n_blocks,
        "not_finite": tensor.not_finite.map(blocks),
        "comparison": comparison,
        "differing": match tensor.comparison { TensorVerdict::Differs(found) => blocks(found), _ => Json::Null },
        "source_shape": match &tensor.comparison { TensorVerdict::Shape(dims) => json!(dims), _ => Json::Null },
    })
}

fn padding_json(padding: &Padding) -> Json {
    match padding {
        Padding::NotZero { file, offset, n_bytes } => {
            json!({"file": file.display().to_string(), "problem": "not zero", "offset": offset, "bytes": n_bytes})
        }
        Padding::TooLong { file, bytes } => json!({
            "file": file.display().to_string(),
            "problem": "after the last tensor",
            "offset": bytes.start,
            "bytes": bytes.end - bytes.start,
        }),
    }
}

fn origin_json(report: &Report) -> Json {
    let Some(origin) = &report.origin else { return Json::Null };
    let value = |value: &Option<Value>| match value {
        // The tokens of a vocabulary are no use in a list of differences.
        Some(Value::Array(array)) => shown(&Value::Array(array.clone())).into(),
        Some(value) => plain(value),
        None => Json::Null,
    };
    json!({
        "missing": origin.missing,
        "types": origin.types.iter().map(|other| json!({
            "name": other.tensor, "found": other.found.name(), "wanted": other.wanted.name(),
        })).collect::<Vec<_>>(),
        "recipe_problem": origin.recipe_problem,
        "metadata": origin.metadata.iter().map(|key| json!({
            "key": key.key, "found": value(&key.found), "wanted": value(&key.wanted),
        })).collect::<Vec<_>>(),
        "renamed_from": origin.renamed_from,
        "hashes": match origin.hashes {
            Hashes::NotRecorded => Json::Null,
            Hashes::Sampled => "not checked: sample".into(),
            Hashes::Compared => "compared".into(),
        },
        "files": origin.files.iter().map(|file| json!({
            "name": file.name, "recorded": file.recorded, "found": file.found, "exists": file.exists,
            "same": !file.differs(),
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_or_a_part_of_one() {
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share(" 0.5 % "), Ok(0.005));
        assert_eq!(parse_share("0.05"), Ok(0.05));
        assert_eq!(parse_share("100%"), Ok(1.0));
        assert_eq!(parse_share("1"), Ok(1.0));
        for wrong in ["", "%", "5", "0", "0%", "-1%", "101%", "nan", "inf", "5%%", "a"] {
            assert!(parse_share(wrong).is_err(), "{wrong}");
        }
    }
}
