//! Flags that choose how weights are rounded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::bail;
use clap::{ArgAction, ValueEnum};

use crate::arch::ARCHITECTURES;
use crate::calibration::Text;
use crate::engine::SessionOptions;
use crate::evaluate::rounding::{DEFAULT_TOKENS, Method, Rounding, RoundingOptions};
use crate::pass::Source;
use crate::vocab::TokenizerFile;

/// How weights are rounded.
#[derive(Debug, clap::Args)]
pub(super) struct RoundingArgs {
    /// How weights are rounded [default: nearest]
    ///
    /// 'compensated' computes from texts what enters each matrix, one layer at a time, and lets each weight take over the
    /// errors of others. 'full' computes backward, too, what the predictions depend on. The file has the same size and
    /// runs at the same speed, but is nearer to the original. Both take much longer.
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = false, help_heading = "Rounding")]
    rounding: Option<How>,

    /// A text to compute what enters each matrix from; may be given several times, for each language that counts
    /// [default: built-in texts in English, Chinese and code]
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, help_heading = "Rounding")]
    calibration: Vec<PathBuf>,

    /// The most tokens to read of all these texts together
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOKENS, value_parser = clap::value_parser!(u64).range(1..=1 << 24),
          help_heading = "Rounding")]
    calibration_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// Each weight to what is nearest to it
    Nearest,
    /// For the inputs of its matrix, with the errors of other weights in mind
    Compensated,
    /// And for what the model's predictions depend on
    Full,
}

/// What is rounded.
pub(super) struct Rounded<'a> {
    /// The source of the conversion.
    pub source: &'a Path,
    /// Whether it may be quantized already.
    pub allow_requantize: bool,
    /// The file to take the vocabulary from.
    pub tokenizer: Option<TokenizerFile>,
    /// The file that is written or verified; a layer is kept beside it for a while.
    pub file: Option<&'a Path>,
    /// Number of threads.
    pub threads: Option<u16>,
    /// Whether it is polished after that, with the same texts.
    pub is_polished: bool,
}

/// Returns options with so many threads, and the flag that Ctrl-C sets.
pub(super) fn session(threads: Option<u16>, cancel: &Arc<AtomicBool>) -> SessionOptions {
    SessionOptions { threads: threads.map(u32::from), cancel: cancel.clone(), ..SessionOptions::default() }
}

impl RoundingArgs {
    /// Returns whether weights are simply rounded to nearest.
    pub fn is_nearest(&self) -> bool {
        self.how() == How::Nearest
    }

    fn how(&self) -> How {
        self.rounding.unwrap_or(How::Nearest)
    }

    /// Returns how weights are rounded, if the flag says it.
    pub fn named(&self) -> Option<String> {
        Some(self.rounding?.to_possible_value()?.get_name().to_string())
    }

    /// Rounds for what the predictions depend on.
    pub fn set_full(&mut self) {
        self.rounding = Some(How::Full);
    }

    /// Returns the texts to read: the built-in ones if none was given.
    pub fn texts(&self) -> Vec<Text> {
        match self.calibration.as_slice() {
            [] => Text::built_in(),
            files => files.iter().cloned().map(Text::File).collect(),
        }
    }

    /// Returns the most tokens to read of them together.
    pub fn calibration_tokens(&self) -> u64 {
        self.calibration_tokens
    }

    /// Returns what is found out before rounding; `None` for rounding to nearest.
    pub fn method(&self) -> Option<Method> {
        match self.how() {
            How::Nearest => None,
            How::Compensated => Some(Method::Compensated),
            How::Full => Some(Method::Full),
        }
    }

    /// Returns what prepares matrices for rounding; `None` for rounding to nearest.
    pub fn prepare(&self, what: &Rounded<'_>, cancel: &Arc<AtomicBool>) -> anyhow::Result<Option<Arc<Rounding>>> {
        let Some(method) = self.method() else {
            if !self.calibration.is_empty() && !what.is_polished {
                bail!(
                    "--calibration is for --rounding compensated and full, for converting to a size, and for --polish; importance of \
                     'nibble calibrate' is --importance"
                );
            }
            return Ok(None);
        };
        let source = Source::open(what.source, ARCHITECTURES, what.allow_requantize, what.tokenizer)?;
        let folder = what.file.map_or(Path::new("."), crate::base::atomic_file::folder);
        let options = RoundingOptions {
            most_tokens: self.calibration_tokens,
            session: session(what.threads, cancel),
            ..RoundingOptions::new(method, self.texts())
        };
        Ok(Some(Arc::new(Rounding::prepare(source, folder, options)?)))
    }
}
