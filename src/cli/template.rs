//! The chat template that a command uses: the model's own, or one given instead.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use crate::base::display::printable;
use crate::chat::{CHATML, Error, Template, tools_from_json};
use crate::gguf::Metadata;
use crate::vocab::Tokenizer;

/// What the chat template is given beside the messages.
#[derive(Debug, clap::Args)]
pub(super) struct TemplateArgs {
    /// Offer tools to the model, in its chat template: a JSON file with a list of functions, in the format of OpenAI's
    /// API, Anthropic's or MCP's. Calls are printed as the model writes them; nothing is run
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    tools: Option<PathBuf>,

    /// Arguments of the chat template, as a JSON object, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", help_heading = "Prompt")]
    template_args: Option<String>,
}

/// Tools and arguments, read.
#[derive(Debug)]
pub(super) struct Extras {
    tools: Vec<Value>,
    arguments: Map<String, Value>,
}

impl TemplateArgs {
    /// Whether any was given.
    pub fn are_given(&self) -> bool {
        self.tools.is_some() || self.template_args.is_some()
    }

    /// Reads them. Needs no model.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what it should be.
    pub fn read(&self) -> anyhow::Result<Extras> {
        let mut tools = Vec::new();
        if let Some(path) = &self.tools {
            let cannot = || format!("cannot read the tools in {}", path.display());
            let text = std::fs::read_to_string(path).with_context(cannot)?;
            tools = tools_from_json(&text).with_context(cannot)?;
        }
        let arguments = match &self.template_args {
            None => Map::new(),
            Some(text) => match serde_json::from_str(text) {
                Ok(Value::Object(arguments)) => arguments,
                Ok(_) => bail!("--template-args is not an object; write for instance '{{\"enable_thinking\": false}}'"),
                Err(error) => {
                    bail!("--template-args is not JSON ({error}); write for instance '{{\"enable_thinking\": false}}'")
                }
            },
        };
        Ok(Extras { tools, arguments })
    }
}

impl Extras {
    /// Gives them to a template. Returns warnings about those that it does not read.
    ///
    /// # Errors
    /// If an argument has the name of something that every template gets.
    pub fn add_to(self, template: Template) -> Result<(Template, Vec<String>), Error> {
        let reads = template.reads();
        let unread = |name: &str| !reads.iter().any(|known| known == name);
        let mut warnings = Vec::new();
        if !self.tools.is_empty() && unread("tools") {
            warnings.push("the chat template does not read tools, so the model is not told of them".to_string());
        }
        for name in self.arguments.keys().filter(|name| unread(name)) {
            let known: Vec<&str> = reads.iter().map(String::as_str).filter(|known| !USUAL.contains(known)).collect();
            let others =
                if known.is_empty() { "it has none".to_string() } else { format!("it reads {}", known.join(", ")) };
            warnings.push(format!("the chat template does not read the argument '{}'; {others}", printable(name)));
        }
        Ok((template.with_tools(self.tools).with_arguments(self.arguments)?, warnings))
    }
}

/// What every template may read.
const USUAL: [&str; 6] = ["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"];

/// What is said where a template takes no system message.
pub(super) const FOLDED: &str =
    "the model's chat template takes no system message, so it comes before the first message of the user";

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
                Ok(Self::Given(text))
            }
        }
    }

    /// Parses the template, for a model with this metadata. Some models have another one for tools.
    ///
    /// # Errors
    /// If the model has no template, or it is not valid Jinja.
    pub fn template(&self, metadata: &Metadata, extras: &Extras) -> Result<Template, Error> {
        match self {
            Self::Own => {
                let source = Template::source_in(metadata, !extras.tools.is_empty()).ok_or(Error::NoTemplate)?;
                Template::with_metadata(source, metadata)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn extras(tools: Option<&str>, arguments: Option<&str>) -> anyhow::Result<Extras> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), tools.unwrap_or_default()).unwrap();
        let tools = tools.map(|_| file.path().to_path_buf());
        TemplateArgs { tools, template_args: arguments.map(str::to_string) }.read()
    }

    #[test]
    fn what_a_template_does_not_read_is_warned_of() {
        let template =
            || Template::new("{% if tools %}{{ enable_thinking }}{% endif %}{{ messages }}", "", "").unwrap();
        let warned = |template, tools, arguments| extras(tools, arguments).unwrap().add_to(template).unwrap().1;
        let tools = Some("[{\"name\": \"f\"}]");
        assert!(warned(template(), tools, Some("{\"enable_thinking\": false}")).is_empty());
        assert!(warned(template(), None, None).is_empty());
        let warnings = warned(template(), None, Some("{\"enable_thinkin\": false}"));
        assert_eq!(
            warnings,
            ["the chat template does not read the argument 'enable_thinkin'; it reads enable_thinking"]
        );
        let warnings = warned(Template::new(CHATML, "", "").unwrap(), tools, Some("{\"x\": 1}"));
        assert!(warnings[0].contains("does not read tools") && warnings[1].ends_with("it has none"), "{warnings:?}");
    }

    #[test]
    fn what_cannot_be_given_to_a_template_is_refused() {
        for (tools, arguments, words) in [
            (Some("{"), None, "cannot read the tools in"),
            (None, Some("{"), "--template-args is not JSON"),
            (None, Some("[1]"), "--template-args is not an object"),
        ] {
            let error = extras(tools, arguments).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let template = Template::new(CHATML, "", "").unwrap();
        let error = extras(None, Some("{\"messages\": []}")).unwrap().add_to(template).unwrap_err();
        assert!(matches!(&error, Error::Argument(name) if name == "messages"), "{error}");
    }
}
