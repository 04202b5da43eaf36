//! Grammars from user input, checked.

use llguidance::api::TopLevelGrammar;
use llguidance::derivre::RegexBuilder;
use serde_json::Value;

use super::constraint::matcher;
use super::{Error, Tokens, gbnf, limited, schema};

/// The longest grammar, in bytes.
const LONGEST: usize = 1 << 20;
/// The longest regular expression, in bytes.
pub(super) const LONGEST_REGEX: usize = 64 << 10;

/// A grammar that is valid, and that some text can begin to satisfy.
#[derive(Clone, Debug, PartialEq)]
pub struct Grammar {
    what: &'static str,
    source: Source,
}

#[derive(Clone, Debug, PartialEq)]
enum Source {
    Json(Value),
    Lark(String),
}

const SCHEMA: &str = "the JSON schema";
const OBJECT: &str = "the form of a JSON object";
const REGEX: &str = "the regular expression";
const GRAMMAR: &str = "the grammar";

impl Grammar {
    /// JSON that satisfies the schema in `text`. Objects have the listed properties in the schema's order.
    ///
    /// Complete texts always satisfy the schema. Keywords that cannot be enforced from left to right, and cannot be put
    /// into others, such as `maxContains`, are refused. Only references within the schema are followed; nothing is fetched.
    ///
    /// # Errors
    /// If it is not a schema, nothing satisfies it, or it has a keyword that is not supported.
    pub fn json_schema(text: &str) -> Result<Self, Error> {
        let text = text.to_string();
        limited::run(SCHEMA, move || {
            let prepared = schema::read(&text).map_err(|why| Error::Refused { what: SCHEMA, why })?;
            let grammar = Self { what: SCHEMA, source: Source::Json(prepared.schema.clone()) };
            grammar.checked().map_err(|error| match error {
                Error::Refused { what, why } => Error::Refused { what, why: prepared.placed(why) },
                other => other,
            })
        })
    }

    /// Any JSON object.
    ///
    /// # Errors
    /// If llguidance refuses the schema of an object; no such case is known.
    pub fn json_object() -> Result<Self, Error> {
        let made = Self::json_schema(r#"{"type": "object"}"#)?;
        Ok(Self { what: OBJECT, ..made })
    }

    /// Text that `pattern` matches as a whole, in the syntax of the `regex` crate, without look-around, back-references
    /// and word boundaries. `^` and `$` are allowed at its ends.
    ///
    /// # Errors
    /// If the pattern is not valid, matches nothing, or uses a feature that is not supported.
    pub fn regex(pattern: &str) -> Result<Self, Error> {
        let refused = |why: String| Err(Error::Refused { what: REGEX, why });
        if pattern.is_empty() {
            return refused("it is empty".to_string());
        }
        if pattern.len() > LONGEST_REGEX {
            return refused(format!("it has {} bytes; at most {LONGEST_REGEX} are allowed", pattern.len()));
        }
        let pattern = llguidance::regex_to_lark(pattern, "");
        if let Err(error) = RegexBuilder::new().mk_regex(&pattern) {
            return refused(plain(&error.to_string()));
        }
        let lark = format!("start: /{pattern}/");
        Self { what: REGEX, source: Source::Lark(lark) }.prepared()
    }

    /// Text of a Lark grammar, in the dialect of
    /// <https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>. The start rule is `start`.
    ///
    /// # Errors
    /// If the grammar is not valid, or no text satisfies it.
    pub fn lark(text: &str) -> Result<Self, Error> {
        check_text(text)?;
        Self { what: GRAMMAR, source: Source::Lark(text.to_string()) }.prepared()
    }

    /// Text of a grammar in llama.cpp's notation, GBNF. The start rule is `root`.
    ///
    /// # Errors
    /// If the grammar is not valid, or no text satisfies it.
    pub fn gbnf(text: &str) -> Result<Self, Error> {
        check_text(text)?;
        let text = text.to_string();
        limited::run(GRAMMAR, move || {
            let lark = gbnf::to_lark(&text).map_err(|why| Error::Refused { what: GRAMMAR, why })?;
            Self { what: GRAMMAR, source: Source::Lark(lark) }.checked()
        })
    }

    /// A grammar in either notation: GBNF defines rules with `::=`, Lark with a colon.
    ///
    /// # Errors
    /// If [`gbnf`](Self::gbnf) or [`lark`](Self::lark), whichever reads it, refuses it.
    pub fn of_either(text: &str) -> Result<Self, Error> {
        if gbnf::looks_like(text) { Self::gbnf(text) } else { Self::lark(text) }
    }

    /// `the JSON schema`, `the regular expression` or `the grammar`.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Returns whether its texts are JSON.
    pub fn is_json(&self) -> bool {
        matches!(self.source, Source::Json(_))
    }

    /// The schema that its texts satisfy, in words that can be enforced: for a larger grammar that holds it.
    pub fn schema(&self) -> Option<&Value> {
        match &self.source {
            Source::Json(schema) => Some(schema),
            Source::Lark(_) => None,
        }
    }

    pub(super) fn source(&self) -> TopLevelGrammar {
        match &self.source {
            Source::Json(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Source::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        }
    }

    fn prepared(self) -> Result<Self, Error> {
        limited::run(self.what, move || self.checked())
    }

    /// Compiles the grammar for a vocabulary of bytes, and checks that some text can begin.
    fn checked(self) -> Result<Self, Error> {
        let refused = |why| Error::Refused { what: self.what, why };
        let mut matcher = matcher(&self, Tokens::single_bytes()?)?;
        let complete = matcher.is_accepting().map_err(|error| refused(plain(&error.to_string())))?;
        match matcher.compute_mask_or_eos() {
            Ok(mask) if !mask.is_zero() || complete => Ok(self),
            Ok(_) => Err(refused("no text satisfies it".to_string())),
            Err(error) => {
                let why = plain(&error.to_string());
                let nothing = why.to_ascii_lowercase().contains("noextension");
                Err(refused(if nothing { "no text satisfies it".to_string() } else { why }))
            }
        }
    }
}

fn check_text(text: &str) -> Result<(), Error> {
    let refused = |why| Err(Error::Refused { what: GRAMMAR, why });
    if text.len() > LONGEST {
        return refused(format!("it has {} bytes; at most {LONGEST} are allowed", text.len()));
    }
    if text.trim().is_empty() {
        return refused("it is empty".to_string());
    }
    match text.lines().position(|line| line.contains('\0')) {
        Some(line) => refused(format!("line {} contains a NUL character", line + 1)),
        None => Ok(()),
    }
}

/// Turns an error message of `llguidance` into one line.
///
/// Its messages show the grammar around the error (`at 3(7): unknown name: "x"` and the lines below), or a panic.
pub(super) fn plain(message: &str) -> String {
    let line = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    if line.starts_with("panic:") {
        return if line.contains("special token prefix") {
            "special tokens are not supported".to_string()
        } else {
            "it is too large or too complex".to_string()
        };
    }
    // The parser of regular expressions shows the expression, and the error on the last line.
    if let Some((before, drawn)) = message.split_once("regex parse error:") {
        let why = drawn
            .lines()
            .filter_map(|line| line.trim().strip_prefix("error: "))
            .next_back()
            .unwrap_or("it is not valid");
        let place = before.trim().strip_prefix("at ").unwrap_or(before.trim());
        let place = placed(place).and_then(|line| Some(line.split_once(": ")?.0.to_string() + ": "));
        return format!("{}{why}", place.unwrap_or_default()).chars().take(500).collect();
    }
    for (theirs, ours) in [
        ("lookarounds not supported", "word boundaries are not supported, nor ^ and $ except at the ends"),
        ("is not present in a registry", "it has a reference to another document, and nothing is fetched"),
        (
            "oneOf constraints are not supported",
            "'oneOf' is not supported if a text can satisfy two of the options; \
          use 'anyOf', or distinguish the options by a 'const'",
        ),
        (
            "min/maxProperties only supported",
            "'minProperties' and 'maxProperties' are supported beside optional names only if all names are known",
        ),
        (
            "patternProperty regexes",
            "two patterns of 'patternProperties' can match the same name, or are too complex to tell",
        ),
        (
            "circular references with sibling keys",
            "a schema that refers to itself beside other keywords is not supported; keep '$ref' alone there",
        ),
        ("Unable to determine if regex is empty", "a pattern is too complex together with what stands beside it"),
        ("initial lexer configuration (grammar) too big", "it is too large, or repeats too much"),
        ("grammar size (number of symbols) too big", "it is too large, or repeats too much"),
        ("schema too large", "it has too many parts"),
    ] {
        if line.contains(theirs) {
            return ours.to_string();
        }
    }
    let line = line.replace("Unsatisfiable schema: ", "nothing satisfies it: ");
    let line = line.strip_prefix("at ").unwrap_or(&line);
    let short: String = placed(line).unwrap_or_else(|| line.to_string()).chars().take(500).collect();
    short
}

/// Rewrites `3(7): unknown name` as `line 3, column 7: unknown name`.
fn placed(line: &str) -> Option<String> {
    let (row, rest) = line.split_once('(')?;
    let (column, rest) = rest.split_once("): ")?;
    let (row, column): (u32, u32) = (row.parse().ok()?, column.parse().ok()?);
    Some(format!("line {row}, column {column}: {rest}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns whether `text` satisfies the grammar, byte by byte.
    pub fn matches(grammar: &Grammar, text: &str) -> bool {
        let mut matcher = matcher(grammar, Tokens::single_bytes().unwrap()).unwrap();
        for byte in text.bytes() {
            if !matcher.compute_mask_or_eos().unwrap().is_allowed(byte.into()) {
                return false;
            }
            matcher.consume_token(byte.into()).unwrap();
        }
        matcher.is_accepting().unwrap()
    }

    #[track_caller]
    fn check(grammar: Grammar, good: &[&str], bad: &[&str]) {
        good.iter().for_each(|text| assert!(matches(&grammar, text), "{text:?} is not taken"));
        bad.iter().for_each(|text| assert!(!matches(&grammar, text), "{text:?} is taken"));
    }

    #[test]
    fn names_have_one_spelling() {
        let schema = r#"{"type": "object", "properties": {"a": {"type": "boolean"}},
                         "additionalProperties": {"type": "integer"}}"#;
        check(
            Grammar::json_schema(schema).unwrap(),
            &[r#"{"a":true,"\n\\":3}"#, r#"{"零":0}"#, "{}"],
            &[r#"{"a":3}"#, r#"{"a":true,"a":3}"#, r#"{"a":true,"\u0061":3}"#],
        );
        // What the schema has is written all the same.
        check(Grammar::json_schema(r#"{"const": "\u0007"}"#).unwrap(), &[r#""\u0007""#], &["\"\u{7}\"", "\"\""]);
    }

    #[test]
    fn white_space_has_an_end() {
        let grammar = || Grammar::json_schema(r#"{"type": "array", "items": {"type": "null"}}"#).unwrap();
        let lines = format!("[\n{0}null,\n{0}null\n]", " ".repeat(20));
        let long = format!("[\n{}null]", " ".repeat(21));
        check(
            grammar(),
            &["[]", "[ null, null ]", "[\n\tnull\n]", &lines],
            &["[  null]", "[\n\nnull]", &long, " []", "[] "],
        );
    }

    #[test]
    fn expressions_match_from_beginning_to_end() {
        let regex = |pattern| Grammar::regex(pattern).unwrap();
        check(regex("^a+$"), &["a", "aaa"], &["", "ab", "ba"]);
        check(regex("a|bc"), &["a", "bc"], &["ac", "b"]);
        check(regex("a/b\\/\n.\0"), &["a/b/\nx\0"], &["a/b/\n\n\0"]);
        check(regex("(?i)yes|\\p{Han}{2}"), &["YeS", "梁山"], &["y", "梁"]);
        check(regex("(?s:.)*"), &["", "\n零"], &[]);
    }

    /// The places are those of the schema that was given, as JSON pointers.
    #[test]
    fn what_the_engine_refuses_is_told_with_its_place() {
        let refused = |schema: &str| Grammar::json_schema(schema).unwrap_err().to_string();
        let one_of = "'oneOf' is not supported if a text can satisfy two of the options";
        let both = r#"{"oneOf": [{"type": "integer"}, {"type": "number"}]}"#;
        let apart = r#"{"oneOf": [{"type": "integer"}, {"type": "string"}]}"#;
        let object = |a: &str, b: &str| {
            format!(r#"{{"type": "object", "properties": {{"a/b": {a}, "c": {{"type": "array", "items": {b}}}}}}}"#)
        };
        for (schema, place) in [
            (both.to_string(), "#: "),
            (object(both, apart), "#/properties/a~1b: "),
            (object(apart, both), "#/properties/c/items: "),
            (object(both, both), "#/properties/a~1b or #/properties/c/items: "),
            (format!(r##"{{"$ref": "#/$defs/x", "$defs": {{"x": {both}}}}}"##), "#/$defs/x: "),
        ] {
            let said = refused(&schema);
            assert!(said.starts_with(&format!("the JSON schema: {place}{one_of}")), "{schema}: {said}");
        }
        let patterns = r#"{"type": "object", "patternProperties": {"^a": {"type": "null"}, "b$": {"type": "string"}}}"#;
        let said = refused(&object(r#"{"type": "null"}"#, patterns));
        assert!(said.starts_with("the JSON schema: #/properties/c/items"), "{said}");
        assert!(Grammar::json_schema(&object(apart, apart)).is_ok());
    }

    #[test]
    fn messages_become_one_line_with_a_place() {
        assert_eq!(plain("at 3(7): unknown name: \"x\"\n  3 | a: x\n"), "line 3, column 7: unknown name: \"x\"");
        assert_eq!(plain("\n2(1): lexer error\n"), "line 2, column 1: lexer error");
        assert_eq!(plain("Unsatisfiable schema: schema is false"), "nothing satisfies it: schema is false");
        assert_eq!(plain("panic: whatever\n<backtrace>"), "it is too large or too complex");
        assert_eq!(plain("a (b): c"), "a (b): c");
        let drawn = "regex parse error:\n    (a\n    ^\nerror: unclosed group";
        assert_eq!(plain(drawn), "unclosed group");
        assert_eq!(plain(&format!("at 2(4): invalid regex (in regex): {drawn}")), "line 2, column 4: unclosed group");
    }
}
