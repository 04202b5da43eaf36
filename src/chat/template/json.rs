//! The filter `tojson`, as `transformers` defines it: Python's `json.dumps` with four options.
//!
//! | option | default | |
//! |---|---|---|
//! | `ensure_ascii` | false | everything beyond ASCII as `\u` escapes |
//! | `indent` | none | a number of spaces, or a text, per level |
//! | `separators` | `", "` and `": "`; with `indent`, `","` and `": "` | what stands after items and after names |
//! | `sort_keys` | false | names in order |
//!
//! Reference: <https://docs.python.org/3/library/json.html#json.dumps>

use std::fmt::Write;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, State, Value};

use super::builtins::FilterArguments;
use super::python::LONGEST;

/// How deep lists and objects may be nested.
const DEEPEST: usize = 200;

/// The name under which a template's context holds characters that stand for others: see [`super`]. They are never
/// escaped, because each is replaced by one of ASCII in the end.
pub(super) const GUARDS: &str = "nibble_guards";

struct Writer {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    name: String,
    sort_keys: bool,
    guards: String,
}

pub(super) fn tojson(state: &State, value: &Value, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = FilterArguments::new(options);
    let (ensure_ascii, indent) = (options.get(0, "ensure_ascii"), options.get(1, "indent"));
    let (separators, sort_keys) = (options.get(2, "separators"), options.get(3, "sort_keys"));
    options.check()?;

    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_string),
        Some(number) => Some(" ".repeat(usize::try_from(i64::try_from(number)?).unwrap_or(0).min(64))),
    };
    let (item, name) = match separators {
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some(pair) => {
            let texts: Vec<String> = pair.try_iter()?.filter_map(|part| part.as_str().map(str::to_string)).collect();
            let [item, name] =
                <[String; 2]>::try_from(texts).map_err(|_| unserializable("separators must be two strings"))?;
            (item, name)
        }
    };
    let is_set = |option: Option<Value>| option.is_some_and(|value| value.is_true());
    let guards = state.lookup(GUARDS).and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default();
    let (ensure_ascii, sort_keys) = (is_set(ensure_ascii), is_set(sort_keys));
    let mut writer = Writer { out: String::new(), ensure_ascii, indent, item, name, sort_keys, guards };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn unserializable(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::BadSerialization, why)
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST || self.out.len() > LONGEST {
            return Err(unserializable("the value is too large for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list("[", "]", items, depth, |this, item| this.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let name = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
                        ValueKind::None => "null".to_string(),
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_string(),
                        ValueKind::Number => number(&key),
                        other => return Err(unserializable(format!("a name in JSON cannot be of type {other}"))),
                    };
                    items.push((name, value.get_item(&key)?));
                }
                if self.sort_keys {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list("{", "}", items, depth, |this, (name, item)| {
                    this.string(&name);
                    this.out.push_str(&this.name.clone());
                    this.value(&item, depth + 1)
                })?;
            }
            other => return Err(unserializable(format!("a value of type {other} is not JSON"))),
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        items: Vec<T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize| self.indent.as_ref().map(|indent| format!("\n{}", indent.repeat(depth)));
        let (inner, outer) = (line(depth + 1), line(depth));
        let is_empty = items.is_empty();
        self.out.push_str(open);
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.out.push_str(inner.as_deref().unwrap_or_default());
            write(self, item)?;
        }
        if !is_empty {
            self.out.push_str(outer.as_deref().unwrap_or_default());
        }
        self.out.push_str(close);
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\x08' => self.out.push_str("\\b"),
                '\x0c' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c) && !self.guards.contains(c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// Returns what Python's `json.dumps` makes of a float: the fewest digits that name it, with an exponent below 1e-4 and
/// from 1e16.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".to_string();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.to_string();
    }
    let scientific = format!("{x:e}");
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let mantissa = scientific.split('e').next().unwrap_or_default();
        return format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    let plain = x.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}
