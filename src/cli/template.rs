//! The chat template that a command uses: the model's own, or one given in its place.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::chat::{CHATML, Error, Template};
use crate::gguf::Metadata;
use crate::vocab::Tokenizer;

/// Where the chat template comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// The model's file.
    Own,
    /// ChatML, whatever the model's file says.
    ChatMl,
    /// A file of its own: its text.
    Given(String),
}

impl Source {
    /// What `--chat-template` names: a file, which is read, or `chatml`; without it, the model's own template.
    pub fn read(given: Option<&PathBuf>) -> anyhow::Result<Self> {
        match given {
            None => Ok(Self::Own),
            Some(name) if name.as_os_str() == "chatml" => Ok(Self::ChatMl),
            Some(path) => {
                let path: &Path = path;
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the chat template in {}", path.display()))?;
                Ok(Self::Given(text))
            }
        }
    }

    /// The template, for a model with such metadata.
    pub fn template(&self, metadata: &Metadata) -> Result<Template, Error> {
        match self {
            Self::Own => Template::from_metadata(metadata),
            Self::ChatMl => Template::with_metadata(CHATML, metadata),
            Self::Given(text) => Template::with_metadata(text, metadata),
        }
    }

    /// What speaks against the choice, in a sentence.
    pub fn warning(&self, codec: &dyn Tokenizer) -> Option<&'static str> {
        let unknown = matches!(self, Self::ChatMl) && codec.markers().at_start("<|im_start|>").is_none();
        unknown.then_some("the model has no token <|im_start|>, so it was hardly trained on ChatML")
    }
}
