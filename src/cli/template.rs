//! The chat template that a command uses: the model's own, or one given instead.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::base::text::without_mark;
use crate::chat::{CHATML, Error, Template};
use crate::gguf::Metadata;
use crate::vocab::Tokenizer;

/// Where the chat template comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// From the model's file.
    Own,
    /// ChatML, whatever the model's file says.
    ChatMl,
    /// The text of a template file.
    Given(String),
}

impl Source {
    /// Reads what `--chat-template` names: a file, or `chatml`; without the flag, it is the model's own template.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(given: Option<&PathBuf>) -> anyhow::Result<Self> {
        match given {
            None => Ok(Self::Own),
            Some(name) if name.as_os_str() == "chatml" => Ok(Self::ChatMl),
            Some(path) => {
                let path: &Path = path;
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the chat template in {}", path.display()))?;
                Ok(Self::Given(without_mark(text)))
            }
        }
    }

    /// Parses the template, for a model with this metadata.
    ///
    /// # Errors
    /// If the model has no template, or it is not valid Jinja.
    pub fn template(&self, metadata: &Metadata) -> Result<Template, Error> {
        match self {
            Self::Own => Template::from_metadata(metadata),
            Self::ChatMl => Template::with_metadata(CHATML, metadata),
            Self::Given(text) => Template::with_metadata(text, metadata),
        }
    }

    /// Returns a warning if the template does not suit the model.
    pub fn warning(&self, tokenizer: &dyn Tokenizer) -> Option<&'static str> {
        let unknown = matches!(self, Self::ChatMl) && tokenizer.markers().at_start("<|im_start|>").is_none();
        unknown.then_some("the model has no token <|im_start|>, so it was probably not trained on ChatML")
    }
}
