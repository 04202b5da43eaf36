//! Flags that constrain the output to a schema, an expression or a grammar, for every command that generates text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;

use crate::base::text::without_mark;
use crate::constrain::{Constraint, Grammar, Tokens};
use crate::vocab::Tokenizer;

/// What the output must satisfy.
#[derive(Debug, clap::Args)]
pub(super) struct StructureArgs {
    /// Write JSON that satisfies a JSON schema: a file, or the schema itself. The model does not see the schema, so
    /// describe the output in the prompt. Strings without maxLength and lists without maxItems may go on until -n or
    /// --ctx cuts them off
    #[arg(long, value_name = "SCHEMA", help_heading = "Structure")]
    json_schema: Option<String>,

    /// Write any JSON object
    #[arg(long, conflicts_with = "json_schema", help_heading = "Structure")]
    json_object: bool,

    /// Write text that matches a regular expression from beginning to end
    #[arg(
        long,
        value_name = "PATTERN",
        conflicts_with_all = ["json_schema", "json_object"],
        allow_hyphen_values = true,
        help_heading = "Structure"
    )]
    regex: Option<String>,

    /// Write text that matches a grammar from a file, in llama.cpp's notation (GBNF) or in Lark's
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json_schema", "json_object", "regex"], help_heading = "Structure")]
    grammar: Option<PathBuf>,

    /// The grammar's notation; 'auto' means GBNF if rules are defined with '::=', else Lark
    #[arg(
        long,
        value_name = "NOTATION",
        value_enum,
        default_value_t = Notation::Auto,
        requires = "grammar",
        help_heading = "Structure"
    )]
    grammar_format: Notation,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Notation {
    Auto,
    Gbnf,
    Lark,
}

impl StructureArgs {
    /// Reads and checks the grammar; `None` without any of the flags. Needs no model.
    ///
    /// # Errors
    /// If a file cannot be read, or the grammar is not valid or not supported.
    pub fn grammar(&self) -> anyhow::Result<Option<Grammar>> {
        if let Some(schema) = &self.json_schema {
            // File names do not begin like this.
            let inline = schema.trim_start().starts_with(['{', '[']) || matches!(schema.trim(), "true" | "false");
            let text = if inline { schema.clone() } else { read("JSON schema", Path::new(schema))? };
            return Ok(Some(named(Grammar::json_schema(&text), (!inline).then_some(Path::new(schema)))?));
        }
        if self.json_object {
            return Ok(Some(Grammar::json_object()?));
        }
        if let Some(pattern) = &self.regex {
            return Ok(Some(Grammar::regex(pattern)?));
        }
        let Some(path) = &self.grammar else { return Ok(None) };
        let text = read("grammar", path)?;
        let grammar = match self.grammar_format {
            Notation::Auto => Grammar::of_either(&text),
            Notation::Gbnf => Grammar::gbnf(&text),
            Notation::Lark => Grammar::lark(&text),
        };
        Ok(Some(named(grammar, Some(path))?))
    }

    /// Prepares the grammar for a model with this tokenizer.
    ///
    /// # Errors
    /// If the vocabulary cannot be constrained, or the grammar is too complex.
    pub fn constraint(grammar: &Grammar, tokenizer: &dyn Tokenizer) -> anyhow::Result<Constraint> {
        Ok(Constraint::new(grammar, &Arc::new(Tokens::new(tokenizer)?))?)
    }
}

fn read(what: &str, path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the {what} in {}", path.display()))?;
    let text = String::from_utf8(bytes).ok();
    let text = text.with_context(|| format!("the {what} in {} is not UTF-8 text", path.display()))?;
    Ok(without_mark(text))
}

/// Puts the file's path in front of an error.
fn named<T, E: std::fmt::Display>(result: Result<T, E>, path: Option<&Path>) -> anyhow::Result<T> {
    result.map_err(|error| match path {
        Some(path) => anyhow::anyhow!("{}: {error}", path.display()),
        None => anyhow::anyhow!("{error}"),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        structure: StructureArgs,
    }

    fn parse(arguments: &[&str]) -> Result<StructureArgs, clap::Error> {
        Line::try_parse_from(std::iter::once(&"run").chain(arguments)).map(|line| line.structure)
    }

    #[test]
    fn a_schema_is_given_in_place_or_in_a_file() {
        let inline = parse(&["--json-schema", r#" {"type": "null"}"#]).unwrap().grammar().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("schema.json");
        std::fs::write(&file, "\u{feff}{\"type\": \"null\"}").unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(parse(&["--json-schema", path]).unwrap().grammar().unwrap(), inline);
        std::fs::write(&file, "{").unwrap();
        let error = parse(&["--json-schema", path]).unwrap().grammar().unwrap_err().to_string();
        assert!(error.starts_with(path) && error.contains("not JSON"), "{error}");
        let error = parse(&["--json-schema", "/nowhere.json"]).unwrap().grammar().unwrap_err().to_string();
        assert!(error.contains("/nowhere.json"), "{error}");
        std::fs::write(&file, b"\xff\xfe").unwrap();
        let error = parse(&["--grammar", path]).unwrap().grammar().unwrap_err().to_string();
        assert!(error.contains("not UTF-8"), "{error}");
    }

    #[test]
    fn a_grammar_is_taken_for_what_it_looks_like_unless_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let grammar = |more: &[&str]| parse(&[&["--grammar", path], more].concat()).unwrap().grammar();
        std::fs::write(path, "root ::= \"a\"").unwrap();
        assert!(grammar(&[]).is_ok() && grammar(&["--grammar-format", "gbnf"]).is_ok());
        assert!(grammar(&["--grammar-format", "lark"]).is_err());
        std::fs::write(path, "start: \"a\"").unwrap();
        assert!(grammar(&[]).is_ok() && grammar(&["--grammar-format", "gbnf"]).is_err());
    }

    #[test]
    fn one_thing_at_a_time() {
        assert!(parse(&[]).unwrap().grammar().unwrap().is_none());
        assert!(parse(&["--json-object"]).unwrap().grammar().unwrap().is_some());
        assert!(parse(&["--regex", "-?[0-9]+"]).unwrap().grammar().unwrap().is_some());
        for line in [
            &["--regex", "a", "--json-object"][..],
            &["--regex", "a", "--grammar", "b"],
            &["--json-schema", "{}", "--json-object"],
            &["--grammar-format", "lark"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
