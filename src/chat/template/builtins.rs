//! What Jinja2 has beside minijinja's own: tests with Python's answers, filters, `cycler` and `joiner`.
//!
//! Reference: <https://jinja.palletsprojects.com/en/stable/templates/#builtin-globals>

use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python::LONGEST;
use super::source::PERCENT;
use super::{json, percent, python, repr};

/// Adds all of them.
pub(super) fn add(environment: &mut Environment) {
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", string);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("indent", indent);
    environment.add_filter(PERCENT, percent::percent);
    environment.add_filter("format", percent::filter);
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(Error::new(ErrorKind::MissingArgument, "cycler() needs at least one item")),
        false => Ok(Value::from_object(Cycler { items: items.to_vec(), at: Mutex::new(0) })),
    });
    environment.add_function("joiner", |separator: Option<String>, named: Kwargs| {
        let separator = separator.or(named.get::<Option<String>>("sep")?).unwrap_or_else(|| ", ".to_string());
        named.assert_all_used()?;
        Ok::<_, Error>(Value::from_object(Joiner { separator, used: Mutex::new(false) }))
    });
    // Jinja2 has no such function, and templates ask whether something of this name is defined.
    environment.remove_global("debug");
    environment.set_formatter(|out, state, value| match of_python(value) {
        Some(text) => minijinja::escape_formatter(out, state, &Value::from(text)),
        None => minijinja::escape_formatter(out, state, value),
    });
}

/// A float as Python prints it; `None` for other values.
fn float(value: &Value) -> Option<String> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    let number = is_float.then(|| f64::try_from(value.clone()).ok()).flatten()?;
    Some(if number.is_finite() { json::float(number) } else { value.to_string().to_lowercase() })
}

/// What Python prints of a float or of bytes; `None` for other values.
fn of_python(value: &Value) -> Option<String> {
    value.as_bytes().filter(|_| value.kind() == ValueKind::Bytes).map(repr::of_bytes).or_else(|| float(value))
}

fn string(value: &Value) -> Value {
    match of_python(value) {
        Some(text) => text.into(),
        None if value.kind() == ValueKind::String => value.clone(),
        None => value.to_string().into(),
    }
}

/// Python's `iter(value)` succeeds: for texts, lists, dictionaries, and what is not defined, which is empty. Not for
/// `none`.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The value has a length and items: texts, lists, tuples, dictionaries, and what is not defined.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// Functions and macros; and what is not defined, in Jinja2, until it is called.
fn is_callable(value: &Value) -> bool {
    let is_macro = || value.kind() == ValueKind::Map && value.to_string().starts_with("<macro ");
    let is_function = || value.kind() == ValueKind::Plain && value.downcast_object_ref::<Cycler>().is_none();
    value.is_undefined() || is_function() || is_macro()
}

/// The arguments of a filter, by position or by name.
pub(super) struct FilterArguments {
    positional: Vec<Value>,
    named: Option<Kwargs>,
}

impl FilterArguments {
    pub(super) fn new(given: Rest<ValueOrKwargs>) -> Self {
        let mut positional: Vec<Value> = given.0.into_iter().map(ValueOrKwargs::into_value).collect();
        let is_named = |value: &Value| value.kind() == ValueKind::Map && Kwargs::try_from(value.clone()).is_ok();
        let named = positional.pop_if(|last| is_named(last)).and_then(|named| Kwargs::try_from(named).ok());
        Self { positional, named }
    }

    /// Returns those by position, and those by name.
    pub(super) fn into_parts(self) -> (Vec<Value>, Option<Kwargs>) {
        (self.positional, self.named)
    }

    /// The option at position `at`, or of this name; `None` also if it is Python's `None`.
    pub(super) fn get(&self, at: usize, name: &str) -> Option<Value> {
        let given = self.positional.get(at).cloned();
        given
            .or_else(|| self.named.as_ref()?.get::<Option<Value>>(name).ok().flatten())
            .filter(|value| !value.is_none())
    }

    /// Checks that all named options have been asked for.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.named.iter().try_for_each(Kwargs::assert_all_used)
    }
}

fn default(value: &Value, options: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let positional = options.0.first().map(|first| Value::from(first.clone()));
    let options = FilterArguments::new(options);
    // The value itself may be none.
    let other = if options.positional.is_empty() { options.get(0, "default_value") } else { positional };
    let boolean = options.get(1, "boolean").is_some_and(|value| value.is_true());
    options.check()?;
    let is_missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_missing { other.unwrap_or_else(|| "".into()) } else { value.clone() })
}

/// Indents all lines but the first, and not the empty ones.
fn indent(text: String, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = FilterArguments::new(options);
    let indent = match options.get(0, "width") {
        None => " ".repeat(4),
        Some(width) if width.as_str().is_some() => width.to_string(),
        Some(width) => " ".repeat(usize::try_from(i64::try_from(width)?).unwrap_or(0).min(1000)),
    };
    let is_set = |at: usize, name: &str| options.get(at, name).is_some_and(|value| value.is_true());
    let (first, blank) = (is_set(1, "first"), is_set(2, "blank"));
    options.check()?;
    let text = text + "\n";
    let mut out = String::new();
    for (i, line) in python::lines(&text, false).into_iter().enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        out.push_str(if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) { &indent } else { "" });
        out.push_str(line);
        if out.len() > LONGEST {
            return Err(Error::new(ErrorKind::InvalidOperation, "a text grows too long"));
        }
    }
    Ok(out)
}

fn center(state: &mut State, text: &Value, width: Option<i64>) -> Result<Value, Error> {
    python::method(state, &Value::from(text.to_string()), "center", &[Value::from(width.unwrap_or(80))])
}

fn truncate(text: String, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = FilterArguments::new(options);
    let option = |at: usize, name: &str| options.get(at, name);
    let number = |value: Option<Value>, default: usize| value.map_or(Ok(default), usize::try_from);
    let length = number(option(0, "length"), 255)?;
    let kill_words = option(1, "killwords").is_some_and(|value| value.is_true());
    let end = option(2, "end").map_or_else(|| "...".to_string(), |value| value.to_string());
    let leeway = number(option(3, "leeway"), 5)?;
    let n_end = end.chars().count();
    if length < n_end {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("expected length >= {n_end}, got {length}")));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let cut: String = text.chars().take(length - n_end).collect();
    let kept = if kill_words { cut.as_str() } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before) };
    Ok(format!("{kept}{end}"))
}

fn word_count(text: String) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// The characters of a text as a URL has them: all but letters, digits and `_.-~/` in percent signs.
fn url_encode(value: &Value) -> Result<String, Error> {
    let quoted = |text: &str, safe: &str| -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || safe.as_bytes().contains(&byte);
        text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    };
    if value.kind() != ValueKind::Map {
        return Ok(quoted(&value.to_string(), "_.-~/"));
    }
    let pairs: Result<Vec<String>, Error> = value
        .try_iter()?
        .map(|key| {
            let item = value.get_item(&key)?.to_string();
            // As in a form: a space is a plus sign.
            let form = |text: &str| quoted(text, "_.-~ ").replace(' ', "+");
            Ok(format!("{}={}", form(&key.to_string()), form(&item)))
        })
        .collect();
    let text = pairs?.join("&");
    if text.len() > LONGEST { Err(Error::new(ErrorKind::InvalidOperation, "a text grows too long")) } else { Ok(text) }
}

/// `cycler('odd', 'even')`: `next()` returns the items in turn.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: Mutex<usize>,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        (key.as_str() == Some("current")).then(|| self.items[at % self.items.len()].clone())
    }

    fn call_method(self: &Arc<Self>, _state: &mut State, method: &str, _args: &[Value]) -> Result<Value, Error> {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        match method {
            "next" => {
                let item = self.items[*at % self.items.len()].clone();
                *at = (*at + 1) % self.items.len();
                Ok(item)
            }
            "reset" => {
                *at = 0;
                Ok(Value::from(()))
            }
            _ => Err(ErrorKind::UnknownMethod.into()),
        }
    }
}

/// `joiner(', ')`: nothing the first time it is called, and the separator from then on.
#[derive(Debug)]
struct Joiner {
    separator: String,
    used: Mutex<bool>,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _state: &mut State, _args: &[Value]) -> Result<Value, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !std::mem::replace(&mut *used, true);
        Ok(if first { "" } else { self.separator.as_str() }.into())
    }
}
