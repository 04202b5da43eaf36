//! Flags that polish what was rounded.

use std::path::Path;
use std::sync::Arc;

use super::progress;
use super::rounding::Rounded;
use crate::arch::ARCHITECTURES;
use crate::calibration::Text;
use crate::evaluate::polish::{Achieved, Doing, Polish, PolishOptions};
use crate::pass::Source;

/// Whether and how long the result is polished.
#[derive(Debug, clap::Args)]
pub(super) struct PolishArgs {
    /// After rounding, tune scales and norms on so many tokens of the same texts, such as 120000
    ///
    /// The scales of blocks and the weights of norms are changed until the predictions are nearest to the original's, as
    /// judged by parts of the texts that are held out. Codes stay. The file has the same size and runs at the same speed.
    /// It goes with every --rounding, and takes long: about 10 operations for each weight and token.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..=1 << 32),
          help_heading = "Rounding")]
    polish: Option<u64>,
}

impl PolishArgs {
    /// Returns whether anything is polished.
    pub fn is_on(&self) -> bool {
        self.polish.is_some()
    }

    /// Returns what polishes the result with `texts`; `None` if nothing does.
    pub fn prepare(&self, what: &Rounded<'_>, texts: Vec<Text>) -> anyhow::Result<Option<Arc<Polish>>> {
        let Some(n_tokens) = self.polish else { return Ok(None) };
        let source = Source::open(what.source, ARCHITECTURES, what.allow_requantize, what.tokenizer)?;
        let folder = what.file.map_or(Path::new("."), crate::base::atomic_file::folder);
        let options = PolishOptions { texts, n_tokens };
        Ok(Some(Arc::new(Polish::prepare(source, folder, options)?)))
    }
}

/// Shows what polishing does.
pub(super) fn observe(polish: &Polish, bar: progress::Steps) {
    polish.observe(move |doing| match doing {
        Doing::Original { step, of } => {
            if step == 0 {
                bar.begin(of as u64)
            } else {
                bar.advance(1)
            }
            bar.say(&format!("polishing: the original, layer {} of {of}", step + 1));
        }
        Doing::Step { step, of, kld, before } => {
            if step == 0 {
                bar.begin(of as u64)
            } else {
                bar.advance(1)
            }
            bar.say(&format!("polishing, KLD {before:.5} -> {kld:.5}"));
        }
    });
}

/// Says what was achieved.
pub(super) fn sentence(achieved: &Achieved) -> String {
    let Achieved { before, after, n_tokens } = *achieved;
    let tokens = crate::base::units::count(n_tokens as u64);
    if after < before {
        format!(
            "polished: KLD {before:.5} -> {after:.5} ({:.2}x) on {tokens} tokens that were held out",
            after / before
        )
    } else {
        format!("polishing changed nothing: KLD {before:.5} on {tokens} tokens that were held out would have grown")
    }
}

/// The same as JSON.
pub(super) fn json(achieved: &Achieved) -> serde_json::Value {
    let Achieved { before, after, n_tokens } = *achieved;
    serde_json::json!({ "kld_before": before, "kld_after": after, "held_out_tokens": n_tokens })
}
