//! `nibble convert --best`: what other flags say, all at once, and what that gained.
//!
//! The composition is here alone: [`BestArgs::apply`] turns the flag into what the others would say.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};

use super::interrupt::Interrupted;
use super::out::{self, Out};
use super::progress;
use super::rounding::{RoundingArgs, session};
use crate::base::display::printable;
use crate::calibration::Text;
use crate::convert::Job;
use crate::evaluate::layerwise::{Error, LayerComparison, Options, Outcome};
use crate::evaluate::rounding::Rounding;
use crate::recipe::Recipe;
use crate::report::wording;

/// The best that nibble can do.
#[derive(Debug, clap::Args)]
pub(super) struct BestArgs {
    /// Make the best file of this size that nibble can make, and measure what that gained
    ///
    /// This is --rounding full, for nibble's built-in texts in English, Chinese and code, or for those that --calibration
    /// gives. Afterwards the file and plain rounding are compared with the original on texts that it was not rounded for, one
    /// layer at a time. The model need not fit in memory. All this takes much longer than plain rounding.
    #[arg(long, help_heading = "Rounding")]
    best: bool,
}

/// How the comparison runs.
pub(super) struct Running<'a> {
    /// Number of threads.
    pub threads: Option<u16>,
    /// Whether to print nothing but errors.
    pub quiet: bool,
    /// Whether the result is JSON.
    pub json: bool,
    /// Whether the file is polished, for which any part of the texts may have been read.
    pub is_polished: bool,
    /// What Ctrl-C sets.
    pub cancel: &'a Arc<AtomicBool>,
}

impl BestArgs {
    /// Sets what the other flags would say.
    ///
    /// # Errors
    /// If they say something else, or an adapter is converted.
    pub fn apply(&self, rounding: &mut RoundingArgs, is_adapter: bool) -> anyhow::Result<()> {
        match rounding.named() {
            _ if !self.best => {}
            _ if is_adapter => bail!("an adapter is small and rounded to nearest; leave out --best"),
            Some(how) if how != "full" => bail!("--best is --rounding full and more; leave out --rounding {how}"),
            _ => rounding.set_full(),
        }
        Ok(())
    }

    /// Refuses a plan that rounds no matrix.
    ///
    /// # Errors
    /// If it is one.
    pub fn check(&self, job: &Job) -> anyhow::Result<()> {
        let plan = job.plan();
        if self.best && !plan.tensors.iter().any(|tensor| tensor.ty.block_len() > 1) {
            bail!(
                "{} rounds no matrix, so there is nothing for --best to do better; give a recipe of fewer bits, such as -q \
                 Q4_K_M",
                printable(&plan.recipe)
            );
        }
        Ok(())
    }

    /// Compares a file that the same command has made before, and prints what was found. Returns whether there was one:
    /// otherwise it has to be made.
    ///
    /// # Errors
    /// If the comparison fails or is interrupted.
    pub fn again(&self, job: &Job, rounding: Option<&Rounding>, running: &Running<'_>) -> anyhow::Result<bool> {
        if !self.best || !job.is_made() {
            return Ok(false);
        }
        if !running.quiet {
            let file = file_of(job);
            eprintln!(
                "nibble: {} was made by this command before, and is only compared again (--force makes it anew)",
                printable(&file.display().to_string())
            );
        }
        let Some(outcome) = self.compare(job, rounding, running)? else { return Ok(false) };
        if running.json {
            let json = serde_json::json!({"outputs": super::convert::files_json(job), "comparison": outcome});
            out::to_stdout(|out| Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?))?;
        } else if !running.quiet {
            out::to_stdout(|out| print(out, job, &outcome))?;
        }
        Ok(true)
    }

    /// Compares the file that was made with plain rounding; `None` without the flag.
    ///
    /// # Errors
    /// If the comparison fails or is interrupted. The file is complete, whatever happens.
    pub fn compare(
        &self,
        job: &Job,
        rounding: Option<&Rounding>,
        running: &Running<'_>,
    ) -> anyhow::Result<Option<Outcome>> {
        let Some(rounding) = rounding.filter(|_| self.best) else { return Ok(None) };
        let file = file_of(job);
        let shown = || printable(&file.display().to_string()).into_owned();
        let (texts, most_tokens) = rounding.texts();
        let texts = if running.is_polished { Text::built_in() } else { texts.to_vec() };
        let session = session(running.threads, running.cancel);
        let options = Options { session, ..Options::new(texts, most_tokens) };
        let bar = progress::Steps::new(1, running.quiet || running.json);
        let compare = || {
            let folder = crate::base::atomic_file::folder(file);
            let job = LayerComparison::prepare(job.source(), job.plan(), file, folder, options)?;
            job.execute(&|doing| {
                bar.at(doing.step as u64, doing.of as u64);
                bar.say(&doing.to_string());
            })
        };
        let result = compare();
        bar.clear();
        match result {
            Ok(outcome) => Ok(Some(outcome)),
            Err(Error::Cancelled) => {
                let words =
                    "is complete; its comparison with plain rounding was stopped, and the same command repeats it";
                Err(Interrupted(format!("{} {words}", shown())).into())
            }
            Err(error) => Err(error).with_context(|| format!("{} is complete, but could not be compared", shown())),
        }
    }
}

/// The file that is made, or the first part of it.
fn file_of(job: &Job) -> &Path {
    job.outputs().first().map_or(Path::new(""), |(path, _)| path)
}

/// Prints what was gained.
///
/// # Errors
/// If it cannot be written.
pub(super) fn print(out: &mut Out, job: &Job, outcome: &Outcome) -> anyhow::Result<()> {
    Ok(out.paragraph(&sentences(&job.plan().recipe, outcome))?)
}

fn sentences(recipe: &str, outcome: &Outcome) -> String {
    let (made, nearest) = (wording::estimate(&outcome.made.kld).value, wording::estimate(&outcome.nearest.kld).value);
    // The types of a recipe of the user's own, or of those chosen for a size, are the same in both.
    let plain = Recipe::builtin(recipe).map_or("plain rounding".to_string(), |recipe| format!("plain {}", recipe.name));
    let of = match outcome.ratio.value.is_finite() {
        true => format!(", {} of it", wording::estimate(&outcome.ratio).line()),
        false => String::new(),
    };
    let noise = match outcome.ratio.interval {
        Some([_, high]) if high < 1.0 => "",
        Some([low, _]) if low > 1.0 => ", which is worse",
        _ => ", which may be noise",
    };
    let [made_top, nearest_top] =
        [&outcome.made, &outcome.nearest].map(|scores| wording::percent(&scores.same_top).value);
    format!(
        "{made} nats from the original instead of {nearest} with {plain}{of}, at the same size{noise}. The most likely \
         token is the same for {made_top}% of tokens instead of {nearest_top}%. Mean KLD over {} tokens that the file was not \
         rounded for.",
        wording::thousands(outcome.scored as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::layerwise::Scores;
    use crate::statistics::Estimate;

    fn outcome(ratio: [f64; 3]) -> Outcome {
        let scores = |kld, same_top| Scores {
            kld: Estimate { value: kld, interval: Some([0.8 * kld, 1.2 * kld]) },
            same_top: Estimate { value: same_top, interval: Some([same_top - 0.02, same_top + 0.02]) },
        };
        let [low, value, high] = ratio;
        let ratio = Estimate { value, interval: Some([low, high]) };
        let (made, nearest) = (scores(0.00163, 0.957), scores(0.00524, 0.921));
        Outcome { window: 256, scored: 2032, made, nearest, ratio, texts: Vec::new() }
    }

    #[test]
    fn what_was_gained_is_one_sentence() {
        let said = sentences("Q4_K_M", &outcome([0.28, 0.31, 0.34]));
        let wanted = "0.0016 nats from the original instead of 0.0052 with plain Q4_K_M, 0.31 [0.28, 0.34] of it, at the same size.";
        assert!(said.starts_with(wanted), "{said}");
        assert!(
            said.contains("for 96% of tokens instead of 92%")
                && said.contains(&format!("over {} tokens", wording::thousands(2032))),
            "{said}"
        );
    }

    #[test]
    fn what_was_not_gained_is_said_too() {
        for (ratio, wanted) in
            [([0.9, 1.0, 1.1], "size, which may be noise."), ([1.1, 1.2, 1.3], "size, which is worse.")]
        {
            assert!(sentences("Q4_K_M", &outcome(ratio)).contains(wanted));
        }
        let without = Outcome { ratio: Estimate::bare(f64::NAN), ..outcome([0.0; 3]) };
        assert!(sentences("Q8_0", &without).contains("with plain Q8_0, at the same size, which may be noise"));
        assert!(sentences("18GiB", &without).contains("with plain rounding, at"));
    }
}
