//! Python's methods on strings, lists and dictionaries, for templates: those that the sandbox of `transformers` allows.
//!
//! Reference: <https://docs.python.org/3/library/stdtypes.html#string-methods>. Methods that change a list or a dictionary
//! are refused there, and here. Positions and widths count characters. What a method returns is limited in size, so that
//! a template cannot use up the memory by doubling a text.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::bytes;

/// The longest text that a method returns, in bytes.
pub(super) const LONGEST: usize = 64 << 20;

/// Calls `method` of a string, a list or a dictionary.
pub(super) fn method(_state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let call = Call::new(method, args);
    match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), method, &call),
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, &call),
        ValueKind::Map => of_dict(value, method, &call),
        ValueKind::Bytes => bytes::method(value.as_bytes().unwrap_or_default(), method, &call),
        ValueKind::Number if method == "is_integer" => {
            call.takes(0, &[])?;
            Ok(f64::try_from(value.clone()).is_ok_and(|number| number.fract() == 0.0).into())
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// The arguments of a call, by position or by name.
pub(super) struct Call<'a> {
    method: &'a str,
    positional: &'a [Value],
    named: Option<Kwargs>,
}

impl<'a> Call<'a> {
    fn new(method: &'a str, args: &'a [Value]) -> Self {
        match args.split_last() {
            // An undefined value would read as no named arguments at all.
            Some((last, positional)) if last.kind() == ValueKind::Map => match Kwargs::try_from(last.clone()) {
                Ok(named) => Self { method, positional, named: Some(named) },
                Err(_) => Self { method, positional: args, named: None },
            },
            _ => Self { method, positional: args, named: None },
        }
    }

    /// Checks that there are at most `most` positional arguments, and no named ones but `names`.
    pub(super) fn takes(&self, most: usize, names: &[&str]) -> Result<(), Error> {
        if self.positional.len() > most {
            let why = format!("{}() takes at most {most} arguments, not {}", self.method, self.positional.len());
            return Err(Error::new(ErrorKind::TooManyArguments, why));
        }
        match self.named.iter().flat_map(Kwargs::args).find(|name| !names.contains(name)) {
            Some(name) => Err(wrong(format!("{}() has no argument '{name}'", self.method))),
            None => Ok(()),
        }
    }

    /// The argument at position `at`, which may be given as `name`. Without a name, only by position.
    fn get(&self, at: usize, name: &str) -> Option<Value> {
        self.positional.get(at).cloned().or_else(|| self.named.as_ref()?.get::<Option<Value>>(name).ok().flatten())
    }

    fn required(&self, at: usize, name: &str) -> Result<Value, Error> {
        self.get(at, name).ok_or_else(|| {
            Error::new(ErrorKind::MissingArgument, format!("{}() lacks its argument {}", self.method, at + 1))
        })
    }

    fn text(&self, at: usize, name: &str) -> Result<String, Error> {
        self.text_of(&self.required(at, name)?)
    }

    fn text_of(&self, value: &Value) -> Result<String, Error> {
        let text = value.as_str().map(str::to_string);
        text.ok_or_else(|| wrong(format!("{}() takes a string, not a value of type {}", self.method, value.kind())))
    }

    /// A text; `None` if it is not given, or is Python's `None`.
    pub(super) fn optional_text(&self, at: usize, name: &str) -> Result<Option<String>, Error> {
        self.get(at, name).filter(|value| !value.is_none()).map(|value| self.text_of(&value)).transpose()
    }

    fn optional_number(&self, at: usize, name: &str) -> Result<Option<i64>, Error> {
        self.get(at, name).filter(|value| !value.is_none()).map(i64::try_from).transpose()
    }
}

pub(super) fn wrong(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// A text as a value, unless it is too long.
fn limited(text: String) -> Result<Value, Error> {
    if text.len() > LONGEST { Err(wrong("a text grows too long")) } else { Ok(text.into()) }
}

/// Refuses keys that are not ASCII in brackets, as in `{0[name]}`, on which minijinja panics.
fn check_keys(text: &str) -> Result<(), Error> {
    for (brace, _) in text.match_indices('{') {
        let mut path = &text[brace + 1..];
        loop {
            path = path.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
            let Some(key) = path.strip_prefix('[') else { break };
            let (key, rest) = key.split_once(']').unwrap_or((key, ""));
            if !key.is_ascii() {
                return Err(wrong(format!("a key of a format has to be ASCII: '{key}' is not")));
            }
            path = rest;
        }
    }
    Ok(())
}

fn of_string(text: &str, method: &str, call: &Call) -> Result<Value, Error> {
    // Methods without arguments.
    let simple: Option<Value> = match method {
        "lower" => Some(text.to_lowercase().into()),
        "upper" => Some(text.to_uppercase().into()),
        "casefold" => Some(text.to_lowercase().replace('ß', "ss").into()),
        "capitalize" => Some(capitalize(text).into()),
        "title" => Some(title(text).into()),
        "swapcase" => Some(text.chars().map(swap_case).collect::<String>().into()),
        "isalnum" => Some(all(text, char::is_alphanumeric).into()),
        "isalpha" => Some(all(text, char::is_alphabetic).into()),
        "isascii" => Some(text.is_ascii().into()),
        "isdecimal" => Some(all(text, is_decimal).into()),
        "isdigit" => Some(all(text, is_digit).into()),
        "isnumeric" => Some(all(text, char::is_numeric).into()),
        "isspace" => Some(all(text, is_space).into()),
        "isprintable" => Some(text.chars().all(is_printable).into()),
        "isidentifier" => Some(is_identifier(text).into()),
        "islower" => Some((text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)).into()),
        "isupper" => Some((text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)).into()),
        "istitle" => Some((text.chars().any(is_cased) && title(text) == text).into()),
        _ => None,
    };
    if let Some(value) = simple {
        call.takes(0, &[])?;
        return Ok(value);
    }
    match method {
        "strip" | "lstrip" | "rstrip" => {
            call.takes(1, &[])?;
            let set = call.optional_text(0, "")?;
            let cut = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(cut) };
            Ok(if method == "lstrip" { text } else { text.trim_end_matches(cut) }.into())
        }
        "removeprefix" | "removesuffix" => {
            call.takes(1, &[])?;
            let part = call.text(0, "")?;
            let cut = if method == "removeprefix" { text.strip_prefix(&part) } else { text.strip_suffix(&part) };
            Ok(cut.unwrap_or(text).into())
        }
        "startswith" | "endswith" => {
            call.takes(3, &[])?;
            let Some(text) = part(text, call, 1)? else { return Ok(false.into()) };
            let fits = |part: &str| if method == "startswith" { text.starts_with(part) } else { text.ends_with(part) };
            let wanted = call.required(0, "")?;
            if wanted.is_tuple() {
                let parts: Result<Vec<String>, Error> = wanted.try_iter()?.map(|part| call.text_of(&part)).collect();
                return Ok(parts?.iter().any(|part| fits(part)).into());
            }
            Ok(fits(&call.text_of(&wanted)?).into())
        }
        "find" | "rfind" | "index" | "rindex" => {
            call.takes(3, &[])?;
            let wanted = call.text(0, "")?;
            let from = range(text.chars().count(), call, 1)?.map_or(0, |(from, _)| from);
            let found = part(text, call, 1)?.and_then(|part| {
                let at = if method.starts_with('r') { part.rfind(&wanted) } else { part.find(&wanted) }?;
                Some(from + part[..at].chars().count())
            });
            match found {
                Some(at) => Ok(at.into()),
                None if method.ends_with("find") => Ok((-1).into()),
                None => Err(wrong("substring not found")),
            }
        }
        "count" => {
            call.takes(3, &[])?;
            let wanted = call.text(0, "")?;
            Ok(part(text, call, 1)?.map_or(0, |text| text.matches(&wanted).count()).into())
        }
        "replace" => {
            call.takes(3, &["count"])?;
            let (old, new) = (call.text(0, "")?, call.text(1, "")?);
            let count = call.optional_number(2, "count")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let times = text.matches(&old).take(count).count();
            if times.saturating_mul(new.len()).saturating_add(text.len()) > LONGEST {
                return Err(wrong("a text grows too long"));
            }
            Ok(text.replacen(&old, &new, times).into())
        }
        "encode" => bytes::encode(text, call),
        "split" | "rsplit" => split(text, method == "rsplit", call),
        "splitlines" => {
            call.takes(1, &["keepends"])?;
            let keep = call.get(0, "keepends").is_some_and(|value| value.is_true());
            Ok(lines(text, keep).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            call.takes(1, &[])?;
            let separator = call.text(0, "")?;
            if separator.is_empty() {
                return Err(wrong("empty separator"));
            }
            let first = method == "partition";
            let parts = match if first { text.split_once(&separator) } else { text.rsplit_once(&separator) } {
                Some((before, after)) => [before, &separator, after],
                None if first => [text, "", ""],
                None => ["", "", text],
            };
            Ok(Tuple::from(parts.map(Value::from)).into())
        }
        "join" => {
            call.takes(1, &[])?;
            let mut out = String::new();
            for (i, item) in call.required(0, "")?.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { text });
                // Python refuses anything but strings. Texts that a template marks as safe are strings too.
                out.push_str(&call.text_of(&item)?);
                if out.len() > LONGEST {
                    return Err(wrong("a text grows too long"));
                }
            }
            Ok(out.into())
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(text, method, call),
        "expandtabs" => {
            call.takes(1, &["tabsize"])?;
            let width = call.optional_number(0, "tabsize")?.unwrap_or(8);
            expand_tabs(text, usize::try_from(width).unwrap_or(0))
        }
        "format" => {
            check_keys(text)?;
            limited(format(FormatStyle::StrFormat, text, &arguments(call))?)
        }
        "format_map" => {
            call.takes(1, &[])?;
            let named = call.required(0, "")?;
            let pairs =
                named.try_iter()?.filter_map(|key| Some((key.as_str()?.to_string(), named.get_item(&key).ok()?)));
            check_keys(text)?;
            limited(format(FormatStyle::StrFormat, text, &[Kwargs::from_iter(pairs).into()])?)
        }
        "maketrans" => {
            let pairs: Vec<(Value, Value)> = if call.positional.len() == 1 {
                let table = call.required(0, "")?;
                let code = |key: &Value| key.as_str().and_then(|k| k.chars().next()).map(|c| Value::from(c as u32));
                let keys = table.try_iter()?;
                keys.map(|key| (code(&key).unwrap_or(key.clone()), table.get_item(&key).unwrap_or_default())).collect()
            } else {
                let (from, to, gone) = (call.text(0, "")?, call.text(1, "")?, call.optional_text(2, "")?);
                let pairs = from.chars().zip(to.chars()).map(|(a, b)| (Value::from(a as u32), Value::from(b as u32)));
                let gone = gone.unwrap_or_default();
                pairs.chain(gone.chars().map(|c| (Value::from(c as u32), Value::from(())))).collect()
            };
            Ok(Value::from_pairs(pairs))
        }
        "translate" => {
            call.takes(1, &[])?;
            let table = call.required(0, "")?;
            let mut out = String::new();
            for c in text.chars() {
                let to = table.get_item(&Value::from(c as u32)).unwrap_or_default();
                match (to.as_str(), u32::try_from(to.clone()).ok().and_then(char::from_u32)) {
                    _ if to.is_undefined() => out.push(c),
                    _ if to.is_none() => {}
                    (Some(text), _) => out.push_str(text),
                    (None, Some(to)) => out.push(to),
                    (None, None) => return Err(wrong("a character must map to a number, a string or none")),
                }
            }
            limited(out)
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

/// The arguments of a call as they came.
fn arguments(call: &Call) -> Vec<Value> {
    call.positional.iter().cloned().chain(call.named.clone().map(Value::from)).collect()
}

fn of_list(value: &Value, method: &str, call: &Call) -> Result<Value, Error> {
    match method {
        "count" => {
            call.takes(1, &[])?;
            let wanted = call.required(0, "")?;
            Ok(value.try_iter()?.filter(|item| *item == wanted).count().into())
        }
        "index" => {
            call.takes(3, &[])?;
            let wanted = call.required(0, "")?;
            let items: Vec<Value> = value.try_iter()?.collect();
            let (from, to) = range(items.len(), call, 1)?.unwrap_or((0, 0));
            let found = items[from..to.max(from)].iter().position(|item| *item == wanted);
            found.map(|at| (from + at).into()).ok_or_else(|| wrong(format!("{wanted} is not in the list")))
        }
        "copy" => {
            call.takes(0, &[])?;
            Ok(value.try_iter()?.collect())
        }
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => Err(changes(method)),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn of_dict(value: &Value, method: &str, call: &Call) -> Result<Value, Error> {
    // An iterable rather than a list, as in Python: it can be counted and gone through, and has no first item.
    let iterable = |items: Vec<Value>| Value::make_iterable(move || items.clone().into_iter());
    let item = |key: &Value| value.get_item(key).unwrap_or_default();
    match method {
        "get" => {
            call.takes(2, &[])?;
            let key = call.required(0, "")?;
            let found = value.as_object().and_then(|dict| dict.get_value(&key));
            Ok(found.unwrap_or_else(|| call.get(1, "").unwrap_or_else(|| Value::from(()))))
        }
        "keys" => {
            call.takes(0, &[])?;
            Ok(iterable(value.try_iter()?.collect()))
        }
        "values" => {
            call.takes(0, &[])?;
            Ok(iterable(value.try_iter()?.map(|key| item(&key)).collect()))
        }
        "items" => {
            call.takes(0, &[])?;
            Ok(iterable(value.try_iter()?.map(|key| Tuple::from([key.clone(), item(&key)]).into()).collect()))
        }
        "copy" => {
            call.takes(0, &[])?;
            Ok(Value::from_pairs(value.try_iter()?.map(|key| (key.clone(), item(&key)))))
        }
        "clear" | "pop" | "popitem" | "setdefault" | "update" => Err(changes(method)),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn changes(method: &str) -> Error {
    wrong(format!("templates cannot change values, so {method}() is refused; build another with + or a loop"))
}

// Parts of strings.

/// Python's `start` and `stop` at positions `at` and `at` + 1, as a range of a sequence of `len`; `None` if they name no
/// place in it.
fn range(len: usize, call: &Call, at: usize) -> Result<Option<(usize, usize)>, Error> {
    let len_i = i64::try_from(len).unwrap_or(i64::MAX);
    let place = |given: Option<i64>, default: i64| match given {
        None => default,
        Some(n) if n < 0 => (len_i + n).max(0),
        Some(n) => n,
    };
    let from = place(call.optional_number(at, "")?, 0);
    let to = place(call.optional_number(at + 1, "")?, len_i).min(len_i);
    Ok((from <= len_i && from <= to).then_some((from as usize, to as usize)))
}

/// The part of a text between the positions in the arguments `at` and `at` + 1.
fn part<'a>(text: &'a str, call: &Call, at: usize) -> Result<Option<&'a str>, Error> {
    if call.positional.len() <= at {
        return Ok(Some(text));
    }
    let Some((from, to)) = range(text.chars().count(), call, at)? else { return Ok(None) };
    let byte = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    Ok(Some(&text[byte(from)..byte(to)]))
}

fn split(text: &str, from_the_end: bool, call: &Call) -> Result<Value, Error> {
    call.takes(2, &["sep", "maxsplit"])?;
    let separator = call.optional_text(0, "sep")?;
    let most = call.optional_number(1, "maxsplit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match &separator {
        Some(separator) if separator.is_empty() => return Err(wrong("empty separator")),
        Some(separator) if from_the_end => {
            let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator.as_str()).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(most.saturating_add(1), separator.as_str()).collect(),
        None => words(text, from_the_end, most),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits at runs of white space, at most `most` times. What is left then keeps the white space at its far end.
fn words(text: &str, from_the_end: bool, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_the_end { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            break;
        }
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let (word, left) = if from_the_end {
            let at = rest.rfind(is_space).map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
            (&rest[at..], &rest[..at])
        } else {
            rest.split_at(rest.find(is_space).unwrap_or(rest.len()))
        };
        parts.push(word);
        rest = left;
    }
    if from_the_end {
        parts.reverse();
    }
    parts
}

/// The lines of a text, with or without the characters that end them.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    const ENDS: [char; 10] = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        let width =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn pad(text: &str, method: &str, call: &Call) -> Result<Value, Error> {
    call.takes(if method == "zfill" { 1 } else { 2 }, &[])?;
    let width = i64::try_from(call.required(0, "")?)?;
    let fill = match call.optional_text(1, "")? {
        Some(fill) if fill.chars().count() != 1 => return Err(wrong("the fill character must be one character")),
        Some(fill) => fill,
        None => if method == "zfill" { "0" } else { " " }.to_string(),
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    if missing.saturating_mul(fill.len()).saturating_add(text.len()) > LONGEST {
        return Err(wrong("a text grows too long"));
    }
    let filled = |n: usize| fill.repeat(n);
    Ok(match method {
        "ljust" => format!("{text}{}", filled(missing)),
        "rjust" => format!("{}{text}", filled(missing)),
        // CPython gives the odd place to the left if the width is odd.
        "center" => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", filled(left), filled(missing - left))
        }
        _ => {
            let sign = if text.starts_with(['+', '-']) { 1 } else { 0 };
            format!("{}{}{}", &text[..sign], filled(missing), &text[sign..])
        }
    }
    .into())
}

fn expand_tabs(text: &str, width: usize) -> Result<Value, Error> {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if width > 0 => {
                let n = width - column % width;
                if out.len().saturating_add(n) > LONGEST {
                    return Err(wrong("a text grows too long"));
                }
                out.push_str(&" ".repeat(n));
                column += n;
            }
            '\t' => {}
            _ => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    limited(out)
}

// Characters.

fn all(text: &str, is: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(is)
}

/// White space as Python sees it: Unicode's, and the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Whether a character is a digit of a decimal system (Unicode's class Nd).
fn is_decimal(c: char) -> bool {
    static DIGIT: std::sync::LazyLock<Option<regex::Regex>> =
        std::sync::LazyLock::new(|| regex::Regex::new(r"^\d$").ok());
    c.is_ascii_digit()
        || (!c.is_ascii() && DIGIT.as_ref().is_some_and(|digit| digit.is_match(c.encode_utf8(&mut [0; 4]))))
}

/// Decimal digits, and those above, below and in circles.
fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐' | '⓪' | '⓵'..='⓽' | '❶'..='❾')
}

pub(super) fn is_printable(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace() || crate::base::display::is_unprintable(c))
}

fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c == '_' || c.is_alphabetic()) && chars.all(|c| c == '_' || c.is_alphanumeric())
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase()
}

fn swap_case(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(title_case).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// A character as a capital. Where that is several letters, only the first is one.
fn title_case(c: char) -> String {
    let mut upper = c.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase)).collect()
}

/// Every run of letters with a capital first.
fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.push_str(&title_case(c))
        }
        inside = is_cased(c);
    }
    out
}
