//! Flags that choose types for a size, and what they print.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use serde_json::json;

use super::convert::parse_size;
use super::groups::groups;
use super::out::Out;
use super::progress;
use super::rounding::{RoundingArgs, session};
use super::table::{self, Align};
use crate::arch::ARCHITECTURES;
use crate::base::atomic_file::AtomicFile;
use crate::base::display::printable;
use crate::base::units;
use crate::convert::{self, Job, Options};
use crate::engine::SessionOptions;
use crate::evaluate::allocation::{Allocation, Costs, SensitivityOptions, Slowness, Target, candidates, measure};
use crate::evaluate::rounding;
use crate::gguf::TensorType;
use crate::llama::n_ctx_train;
use crate::pass::Source;
use crate::recipe::Recipe;
use crate::recipe::allocate::OutOfRange;
use crate::vocab::TokenizerFile;

/// A size instead of a recipe.
#[derive(Debug, clap::Args)]
pub(super) struct AllocationArgs {
    /// Choose a type for each tensor so that the file has at most this size and is nearest to the original
    ///
    /// Measures with the texts of --calibration, or with nibble's own, what each tensor costs in each type, and chooses the
    /// cheapest types together. GB are powers of 1000, GiB of 1024.
    #[arg(long, value_name = "SIZE", group = "target", conflicts_with_all = ["quantize", "recipe"],
          help_heading = "Size")]
    target_size: Option<Sized>,

    /// The same, for so many bits per weight, such as 4.5
    #[arg(long, value_name = "BITS", group = "target", conflicts_with_all = ["quantize", "recipe"],
          help_heading = "Size")]
    target_bpw: Option<Bits>,

    /// The same, for the largest file that runs in so much memory, beside a context of 4096 tokens and the system
    #[arg(long, value_name = "SIZE", group = "target", conflicts_with_all = ["quantize", "recipe"],
          help_heading = "Size")]
    fit: Option<Sized>,

    /// What to choose types for: quality alone, or no types that are slow on this machine, too
    ///
    /// 'speed' measures how long each type takes here while a token is written, and chooses types that together take no longer
    /// than a file of the same size that is all of the fastest type.
    #[arg(long, value_enum, value_name = "WHAT", requires = "target", default_value_t = Preference::Quality,
          help_heading = "Size")]
    prefer: Preference,

    /// Where to save the types that were chosen, as a recipe for -q [default: OUTPUT.recipe.toml]
    #[arg(long, value_name = "FILE", requires = "target", help_heading = "Size")]
    save_recipe: Option<PathBuf>,
}

/// What types are chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Preference {
    /// To be near to the original.
    Quality,
    /// And to be fast on this machine.
    Speed,
}

/// A size as it was typed.
#[derive(Clone, Debug)]
struct Sized {
    text: String,
    bytes: u64,
}

impl FromStr for Sized {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { text: text.split_whitespace().collect(), bytes: parse_size(text)? })
    }
}

/// Bits per weight as they were typed.
#[derive(Clone, Debug)]
struct Bits {
    text: String,
    bits: f64,
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a number of bits: write one between 1 and 16, such as 4.5");
        let bits: f64 = text.trim().parse().map_err(|_| wrong())?;
        if (1.0..=16.0).contains(&bits) { Ok(Self { text: text.trim().to_string(), bits }) } else { Err(wrong()) }
    }
}

/// What is converted.
pub(super) struct Allocating<'a> {
    /// The source of the conversion.
    pub source: &'a Path,
    /// Whether it may be quantized already.
    pub allow_requantize: bool,
    /// The file to take the vocabulary from.
    pub tokenizer: Option<TokenizerFile>,
    /// Number of threads.
    pub threads: Option<u16>,
    /// Whether to print nothing but errors.
    pub quiet: bool,
    /// Whether nothing will be written.
    pub dry_run: bool,
    /// Options of the conversion, with any recipe.
    pub options: &'a Options,
}

/// The types that were chosen for a size.
pub(super) struct Chosen {
    allocation: Allocation,
    /// What was asked for, in bytes of the files.
    most_bytes: u64,
    text: String,
    save: Option<PathBuf>,
    /// Whether rounding will be to nearest, without importance.
    is_plain: bool,
}

impl AllocationArgs {
    /// Returns the target and its name; `None` if types are not chosen for a size.
    fn target(&self) -> Option<(Target, String)> {
        let Self { target_size, target_bpw, fit, .. } = self;
        match (target_size, target_bpw, fit) {
            (Some(size), ..) => Some((Target::FileBytes(size.bytes), size.text.clone())),
            (_, Some(bits), _) => Some((Target::BitsPerWeight(bits.bits), format!("{}bpw", bits.text))),
            (.., Some(size)) => Some((Target::Memory(size.bytes), format!("fit-{}", size.text))),
            _ => None,
        }
    }

    /// Returns whether types are chosen for a size.
    pub fn is_given(&self) -> bool {
        self.target().is_some()
    }

    /// Chooses types for the size that was asked for; `None` if none was. Returns the job of the conversion, too.
    pub fn choose(
        &self,
        what: &Allocating<'_>,
        rounding: &RoundingArgs,
        cancel: &Arc<AtomicBool>,
    ) -> anyhow::Result<Option<(Chosen, Job)>> {
        let Some((target, name)) = self.target() else { return Ok(None) };
        let by_time = if self.prefer == Preference::Speed { ", and how long it takes on one machine" } else { "" };
        let description = format!("chosen for {name}, by what each tensor costs in each type{by_time}");
        // Headers of all recipes of this name have the same size.
        let provisional = format!("name = {0:?}\ndescription = {0:?}\ntype = \"f16\"\n", name);
        let with = |recipe: Recipe| Job::prepare(what.source, Options { recipe, ..what.options.clone() });
        let (overrides, importance) = (&what.options.overrides, what.options.importance.as_ref());
        let job = with(Recipe::from_toml(&provisional, &name)?)?;
        if !what.dry_run {
            // Before hours of work. The types that were put in take more room than those that will be chosen.
            match job.check_output() {
                Err(convert::Error::NoRoom { .. }) => {}
                checked => checked?,
            }
        }
        let source = Source::open(what.source, ARCHITECTURES, what.allow_requantize, what.tokenizer)?;
        let context = SessionOptions::default().size(n_ctx_train(&source.metadata));
        let others = job.output_bytes().saturating_sub(job.plan().total_bytes());
        let most_bytes = target.file_bytes(others, job.plan().n_weights(), &source.metadata, &context);
        // What no measurement can make possible is said before it is made.
        match Allocation::check(job.plan(), overrides, importance.is_some(), others, most_bytes) {
            Err(range) if most_bytes < range.least || !matches!(target, Target::Memory(_)) => {
                bail!("{}", refusal(&target, most_bytes, range))
            }
            _ => {}
        }

        let session = session(what.threads, cancel);
        let sensitivity = SensitivityOptions {
            most_tokens: rounding.calibration_tokens(),
            session,
            ..SensitivityOptions::new(rounding.method(), rounding.texts())
        };
        let folder = job.outputs().first().map_or(Path::new("."), |(path, _)| crate::base::atomic_file::folder(path));
        let bar = progress::Conversion::new(0, what.quiet, what.quiet);
        let show = bar.showing();
        let has_importance = importance.is_some();
        let types = |tensor: &crate::gguf::TensorInfo| candidates(tensor, overrides, has_importance);
        let costs = measure(&source, folder, &sensitivity, importance, &types, &|doing| show(&doing));
        bar.clear();
        let costs = match costs {
            Err(rounding::Error::Cancelled) => {
                return Err(super::interrupt::Interrupted("stopped while measuring".to_string()).into());
            }
            costs => costs?,
        };
        let slowness = self.slowness(&costs, sensitivity.session.n_threads(), what.quiet)?;
        // Where the result is split, the number of files depends on the types, and so do their headers.
        let mut room = most_bytes;
        for _ in 0..8 {
            let choose_by = |room, slowness| Allocation::choose(job.plan(), &costs, overrides, others, room, slowness);
            let choose = |room: u64| choose_by(room, slowness.as_ref());
            let allocation = match (choose(room), target) {
                // More memory than the original needs is no fault.
                (Err(OutOfRange { budget, most, .. }), Target::Memory(_)) if budget > most => choose(most),
                (chosen, _) => chosen,
            };
            if allocation.is_err() && choose_by(room, None).is_ok() {
                bail!("no file of this size is as fast on this machine as its size allows; leave out --prefer speed");
            }
            let allocation = allocation.map_err(|range| anyhow::anyhow!("{}", refusal(&target, most_bytes, range)))?;
            let text = allocation.recipe_text(&name, &description);
            let job = with(Recipe::from_toml(&text, &name)?)?;
            match job.output_bytes().saturating_sub(most_bytes) {
                0 => {
                    let save = self.save_recipe.clone();
                    let is_plain = rounding.is_nearest() && importance.is_none();
                    return Ok(Some((Chosen { allocation, most_bytes, text, save, is_plain }, job)));
                }
                excess => room -= excess.min(room),
            }
        }
        bail!("the headers of the parts leave no room for {}; ask for larger parts", units::bytes(most_bytes))
    }
}

impl AllocationArgs {
    /// Measures how slow types are here, if speed is preferred, and says it unless it should be `quiet`.
    fn slowness(&self, costs: &[Costs], threads: u32, quiet: bool) -> anyhow::Result<Option<Slowness>> {
        if self.prefer == Preference::Quality {
            return Ok(None);
        }
        let mut types: Vec<TensorType> = costs.iter().flat_map(|costs| &costs.types).map(|(ty, _)| *ty).collect();
        types.sort_unstable_by_key(|ty| ty.id());
        types.dedup();
        let Some(slowness) = Slowness::measure(&types, threads)? else {
            bail!("how fast types are cannot be measured here: there is too little memory; leave out --prefer speed");
        };
        if !quiet {
            let word = |(ty, factor): &(TensorType, f64)| format!("{ty} {factor:.1}");
            let words: Vec<String> = slowness.types().iter().map(word).collect();
            eprintln!(
                "nibble: time for a byte while a token is written, the fastest type being 1: {}",
                words.join(", ")
            );
        }
        Ok(Some(slowness))
    }
}

/// Says which sizes could be chosen.
fn refusal(target: &Target, asked: u64, range: OutOfRange) -> String {
    let OutOfRange { least, most, .. } = range;
    let asked_words = match target {
        Target::Memory(bytes) => format!("a file of {} would fit in {}", units::bytes(asked), units::bytes(*bytes)),
        _ => format!("a file of {} was asked for", units::bytes(asked)),
    };
    let but = match asked < least {
        true => "the smallest types make a larger one",
        false => "16 bits for each weight make a smaller one",
    };
    format!("{asked_words}, but {but}: it can have {least} to {most} bytes")
}

impl Chosen {
    /// Saves the types beside the output, or where it was asked for. Returns the path: that of a new file if there is one that
    /// says otherwise, so that what was measured is not lost, unless it may be replaced.
    pub fn save(&self, job: &Job, force: bool) -> anyhow::Result<PathBuf> {
        let wanted = match &self.save {
            Some(path) => path.clone(),
            None => beside(job.outputs().first().map_or(Path::new("model.gguf"), |(path, _)| path)),
        };
        let is_saved = |path: &Path| std::fs::read(path).is_ok_and(|found| found == self.text.as_bytes());
        let is_free = |path: &PathBuf| force || is_saved(path) || path.symlink_metadata().is_err();
        let stem = wanted.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let numbered = (2..1000).map(|n| wanted.with_file_name(format!("{stem}-{n}.toml")));
        let path = std::iter::once(wanted.clone()).chain(numbered).find(is_free).unwrap_or_else(|| wanted.clone());
        if is_saved(&path) {
            return Ok(path);
        }
        let write = || {
            let file = AtomicFile::create(&path)?;
            file.file().write_all(self.text.as_bytes())?;
            file.finish(force)
        };
        write().map_err(|error| anyhow::anyhow!("{}: cannot be written: {error}", path.display()))?;
        Ok(path)
    }

    /// Prints what was chosen, with tensors that differ only in their layer as one row.
    pub fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let tensors = &self.allocation.tensors;
        let chosen = tensors.iter().filter(|tensor| tensor.nats.is_some());
        let of = |tensor: &crate::evaluate::allocation::Allocated| (tensor.role, tensor.ty, tensor.is_free);
        let groups = groups(chosen.clone().map(|tensor| (tensor.name.as_str(), of(tensor), tensor.bytes)));
        let mut rows = table::new(&[
            ("tensor", Align::Left),
            ("number", Align::Right),
            ("layers", Align::Left),
            ("type", Align::Left),
            ("size", Align::Right),
            ("nats a token", Align::Right),
            ("last MB saves", Align::Right),
        ]);
        for group in &groups {
            let alike: Vec<_> = chosen
                .clone()
                .filter(|tensor| of(tensor) == group.alike)
                .filter(|tensor| tensor.layer.is_none_or(|layer| group.layers.contains(&layer)))
                .collect();
            let nats: f64 = alike.iter().filter_map(|tensor| tensor.nats).sum();
            let saves = alike.iter().filter_map(|tensor| tensor.nats_a_byte).reduce(f64::min);
            rows.add_row([
                printable(&group.name).into_owned(),
                group.n_tensors.to_string(),
                layers(&group.layers),
                if group.alike.2 { group.alike.1.to_string() } else { format!("{} (given)", group.alike.1) },
                units::bytes(group.n_bytes),
                format!("{nats:.2e}"),
                saves.map_or("-".to_string(), |saves| format!("{:.2e}", saves * 1e6)),
            ]);
        }
        out.table(rows)?;
        let gap = match self.allocation.gap {
            0.0 => "no other choice of this size costs less".to_string(),
            gap => format!("another choice may cost {:.3}% less", gap * 100.0),
        };
        writeln!(
            out,
            "\npredicted KL divergence {:.2e} nats a token in at most {}; {gap}",
            self.allocation.nats,
            units::bytes(self.most_bytes)
        )?;
        if self.is_plain {
            writeln!(out, "rounded to nearest: --rounding full makes it much less, at the same size")?;
        }
        Ok(())
    }

    /// Returns what was chosen.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "predicted_kld": self.allocation.nats,
            "gap": self.allocation.gap,
            "most_bytes": self.most_bytes,
            "tensors": self.allocation.tensors,
        })
    }
}

fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".recipe.toml");
    output.with_file_name(name)
}

/// Layers in ascending order, as people read them: `0-3, 7`.
fn layers(layers: &[u32]) -> String {
    let word = |run: &[u32]| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    layers.chunk_by(|a, b| a + 1 == *b).map(word).collect::<Vec<_>>().join(", ")
}
