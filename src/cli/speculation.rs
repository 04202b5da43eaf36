//! Flags for speculation, for every command that writes text: what drafts, and how many tokens.

use std::path::{Path, PathBuf};

use super::machine::MachineArgs;
use crate::engine::{self, Draft, DraftOptions, Error, SessionOptions, Speculation};
use crate::llama::Model;

/// What drafts tokens, so that the model evaluates several at once.
#[derive(Debug, clap::Args)]
pub(super) struct SpeculationArgs {
    /// Write faster by drafting tokens ahead, which the model then checks: 'ngram' looks them up in the text so far; a
    /// smaller model with the same vocabulary, such as Yi-6B for Yi-34B, predicts them; 'none' drafts nothing
    ///
    /// A conversation that is sampled without a seed has 'ngram' by default. Elsewhere nothing is drafted, because the model
    /// computes several tokens together in other orders than one, so that the same seed can give another text.
    #[arg(long, value_name = "ngram|none|MODEL", help_heading = "Speculation")]
    draft: Option<PathBuf>,

    /// The most tokens to draft at a time; fewer are drafted when drafts turn out wrong
    #[arg(long, value_name = "N", default_value_t = DraftOptions::default().max, requires = "draft",
          help_heading = "Speculation")]
    draft_max: usize,

    /// The fewest tokens in a draft; if it equals --draft-max, every draft has that many tokens
    #[arg(long, value_name = "N", default_value_t = DraftOptions::default().min, requires = "draft",
          help_heading = "Speculation")]
    draft_min: usize,

    /// With a draft model: stop drafting when its most likely token is less likely than this
    #[arg(long, value_name = "P", default_value_t = DraftOptions::default().p_min, requires = "draft",
          allow_negative_numbers = true, help_heading = "Speculation")]
    draft_p_min: f32,

    /// With a draft model: its layers to put on the GPU [default: the same as --gpu-layers]
    #[arg(long, value_name = "N", requires = "draft", help_heading = "Speculation")]
    draft_gpu_layers: Option<u32>,

    /// Whether drafts are there by default.
    #[arg(skip)]
    is_default: bool,
}

/// Looks drafts up in the text so far.
const NGRAM: &str = "ngram";

impl SpeculationArgs {
    /// Drafts by n-grams from here on, if nothing else was asked for.
    pub fn default_to_ngrams(&mut self) {
        self.is_default |= self.draft.is_none();
        self.draft.get_or_insert_with(|| NGRAM.into());
    }

    /// Returns what drafts, if anything does.
    fn source(&self) -> Option<&Path> {
        self.draft.as_deref().filter(|draft| *draft != Path::new("none"))
    }

    fn options(&self) -> DraftOptions {
        DraftOptions { max: self.draft_max, min: self.draft_min, p_min: self.draft_p_min }
    }

    /// Returns the options for the session of the main model, given those for a session without drafts.
    ///
    /// # Errors
    /// If a flag is out of its range.
    pub fn session(&self, session: SessionOptions) -> Result<SessionOptions, Error> {
        if self.source().is_none() {
            return Ok(session);
        }
        self.options().check()?;
        Ok(SessionOptions { rows: self.options().rows().min(session.n_batch), ..session })
    }

    /// Creates the draft for `model`, whose session has the options `session`; `None` without drafting.
    ///
    /// # Errors
    /// If the draft model cannot be loaded in addition to the model, or does not fit it.
    pub fn draft(
        &self,
        machine: &MachineArgs,
        model: &Model,
        session: &SessionOptions,
    ) -> Result<Option<Draft>, Error> {
        match self.source() {
            None => Ok(None),
            // Nobody asked for it.
            Some(_) if self.is_default && !model.can_truncate() => Ok(None),
            Some(path) if path == Path::new(NGRAM) => Draft::ngram(self.options()).map(Some),
            Some(path) => {
                let its_session = Draft::session_options(model, session);
                let draft =
                    machine.load_beside(path, &its_session, engine::memory(model, session), self.draft_gpu_layers)?;
                Draft::model(model, &draft, session, self.options()).map(Some)
            }
        }
    }
}

/// Describes the statistics of drafting in one line.
pub(super) fn line(speculation: &Speculation) -> String {
    let Speculation { drafted, accepted, .. } = speculation;
    if *drafted == 0 {
        return "nothing was drafted".to_string();
    }
    format!(
        "{accepted} of {drafted} tokens accepted ({:.0}%), {:.2} tokens per evaluation",
        100.0 * speculation.acceptance(),
        speculation.tokens_per_evaluation(),
    )
}

/// Returns the statistics of drafting as JSON.
pub(super) fn json(speculation: &Speculation) -> serde_json::Value {
    serde_json::json!({
        "drafted_tokens": speculation.drafted,
        "accepted_tokens": speculation.accepted,
        "acceptance": speculation.acceptance(),
        "evaluations": speculation.evaluations,
        "tokens_per_evaluation": speculation.tokens_per_evaluation(),
    })
}
