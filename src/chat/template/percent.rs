//! Python's `%` after a string: `'%s of %d' % (a, b)`.
//!
//! minijinja knows the places of C's `printf`, filled by position. What Python has beyond them is made into those: names
//! (`%(name)s`), widths and precisions among the values (`%*d`), and `repr()` (`%r`, `%a`).
//!
//! Reference: <https://docs.python.org/3/library/stdtypes.html#printf-style-string-formatting>

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

use super::builtins::FilterArguments;
use super::repr::{ascii, repr, text_of};

/// Fills in the places of a text: a tuple fills several, a dictionary named ones, any other value the only one.
pub(super) fn percent(text: &str, values: &Value) -> Result<String, Error> {
    let mut values = if values.is_tuple() {
        Values::Tuple(values.try_iter()?.collect())
    } else {
        Values::One { value: values.clone(), used: false }
    };
    fill(text, &mut values)
}

/// The filter `format`, which Jinja2 defines by `%`: with the values by position or by name, but not both.
pub(super) fn filter(text: &Value, given: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let (positional, named) = FilterArguments::new(given).into_parts();
    let mut values = match named {
        Some(named) if positional.is_empty() => Values::One { value: named.into(), used: false },
        None => Values::Tuple(positional.into()),
        Some(_) => {
            let why = "the filter 'format' takes values by position or by name, not both";
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
    };
    fill(&text.to_string(), &mut values)
}

/// What fills in the places.
enum Values {
    /// In this order.
    Tuple(std::collections::VecDeque<Value>),
    /// A value for one place, or a dictionary for several.
    One { value: Value, used: bool },
}

impl Values {
    fn next(&mut self) -> Result<Value, Error> {
        let next = match self {
            Self::Tuple(values) => values.pop_front(),
            Self::One { value, used } => (!std::mem::replace(used, true)).then(|| value.clone()),
        };
        next.ok_or_else(|| Error::new(ErrorKind::MissingArgument, "not enough arguments for format string"))
    }

    fn named(&mut self, key: &str) -> Result<Value, Error> {
        match self {
            Self::One { value, .. } if value.kind() == ValueKind::Map => {
                let found = value.get_item(&key.into())?;
                if found.is_undefined() && !value.try_iter()?.any(|known| known.as_str() == Some(key)) {
                    return Err(wrong(format!("the values of a format string have no '{key}'")));
                }
                Ok(found)
            }
            _ => Err(wrong("format requires a mapping")),
        }
    }

    /// The number that `*` stands for.
    fn number(&mut self) -> Result<i64, Error> {
        let value = self.next()?;
        if !value.is_integer() {
            return Err(wrong("* wants an integer among the values of a format string"));
        }
        i64::try_from(value)
    }

    /// Checks that every value has found its place. A dictionary may have more than were asked for.
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Tuple(values) if !values.is_empty() => {}
            Self::One { value, used: false } if value.kind() != ValueKind::Map => {}
            _ => return Ok(()),
        }
        Err(Error::new(ErrorKind::TooManyArguments, "not all arguments converted during string formatting"))
    }
}

fn wrong(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

fn fill(text: &str, values: &mut Values) -> Result<String, Error> {
    let (mut plain, mut filled) = (String::with_capacity(text.len()), Vec::new());
    let mut rest = text;
    let mut is_named = false;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        let place = Place::parse(after)?;
        rest = place.rest;
        plain.push('%');
        if place.conversion == '%' && place.is_bare() {
            plain.push('%');
            continue;
        }
        plain.push_str(place.flags);
        // As in Python, the width and the precision come before the value.
        match place.width {
            Some(Size::Typed(digits)) => plain.push_str(digits),
            Some(Size::Given) => {
                let n = values.number()?;
                // A negative one is the flag '-', and a width.
                plain.push_str(if n < 0 { "-" } else { "" });
                plain.push_str(&n.unsigned_abs().to_string());
            }
            None => {}
        }
        match place.precision {
            Some(Size::Typed(digits)) => plain.push_str(&format!(".{digits}")),
            Some(Size::Given) => plain.push_str(&format!(".{}", values.number()?.max(0))),
            None => {}
        }
        let value = match place.key {
            Some(key) => {
                is_named = true;
                values.named(key)?
            }
            None => values.next()?,
        };
        let (conversion, value) = match place.conversion {
            'r' => ('s', repr(&value)?.into()),
            'a' => ('s', ascii(&repr(&value)?).into()),
            's' => ('s', text_of(&value)?.into()),
            'i' | 'u' => ('d', value),
            other => (other, value),
        };
        plain.push(conversion);
        filled.push(value);
    }
    plain.push_str(rest);
    if !is_named {
        values.check()?;
    }
    format(FormatStyle::Printf, &plain, &filled)
}

/// A width or a precision.
enum Size<'a> {
    /// These digits, perhaps none.
    Typed(&'a str),
    /// `*`: it is among the values.
    Given,
}

/// `%(key)-08.3ld`, after the percent sign.
struct Place<'a> {
    key: Option<&'a str>,
    flags: &'a str,
    width: Option<Size<'a>>,
    precision: Option<Size<'a>>,
    conversion: char,
    rest: &'a str,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        let mut rest = text;
        let key = match rest.strip_prefix('(') {
            None => None,
            Some(inner) => {
                let mut depth = 1;
                let end = inner.find(|c| {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    depth == 0
                });
                let end = end.ok_or_else(|| wrong("incomplete format key"))?;
                rest = &inner[end + 1..];
                Some(&inner[..end])
            }
        };
        let flags = take(&mut rest, |c| matches!(c, '#' | '0' | '-' | ' ' | '+'));
        let width = size(&mut rest);
        let width = Some(width).filter(|width| !matches!(width, Size::Typed("")));
        let precision = rest.strip_prefix('.').map(|after| {
            rest = after;
            size(&mut rest)
        });
        // What C needs to know of a number's length, Python reads past.
        rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
        let mut chars = rest.chars();
        let conversion = chars.next().ok_or_else(|| wrong("incomplete format"))?;
        Ok(Self { key, flags, width, precision, conversion, rest: chars.as_str() })
    }

    fn is_bare(&self) -> bool {
        self.key.is_none() && self.flags.is_empty() && self.width.is_none() && self.precision.is_none()
    }
}

fn size<'a>(rest: &mut &'a str) -> Size<'a> {
    match rest.strip_prefix('*') {
        Some(after) => {
            *rest = after;
            Size::Given
        }
        None => Size::Typed(take(rest, |c| c.is_ascii_digit())),
    }
}

/// Takes the characters at the start of a text for which `is_one` returns true.
fn take<'a>(rest: &mut &'a str, is_one: impl Fn(char) -> bool) -> &'a str {
    let end = rest.find(|c| !is_one(c)).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}
