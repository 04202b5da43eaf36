//! Values as Python's `repr()` and `str()` write them.
//!
//! Reference: <https://docs.python.org/3/library/functions.html#repr>; for texts, CPython's `Objects/unicodeobject.c`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::json;
use super::python::{LONGEST, is_printable};

/// The deepest nesting that is written.
const MAX_DEPTH: usize = 64;

/// Returns what `str(value)` returns.
pub(super) fn text_of(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        // minijinja takes bytes that are UTF-8 for text; Python does not.
        Some(text) if value.kind() == ValueKind::String => Ok(text.to_string()),
        _ if value.is_undefined() => Ok(String::new()),
        _ => repr(value),
    }
}

/// Returns what `repr(value)` returns.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(value, MAX_DEPTH, &mut out)?;
    Ok(out)
}

fn write(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth == 0 || out.len() > LONGEST {
        return Err(Error::new(ErrorKind::InvalidOperation, "a text grows too long, or a value is nested too deep"));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => {
            let number = f64::try_from(value.clone())?;
            out.push_str(&if number.is_finite() { json::float(number) } else { value.to_string().to_lowercase() });
        }
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Bytes => out.push_str(&of_bytes(value.as_bytes().unwrap_or_default())),
        ValueKind::Seq => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut n = 0;
            for item in value.try_iter()? {
                out.push_str(if n > 0 { ", " } else { "" });
                write(&item, depth - 1, out)?;
                n += 1;
            }
            out.push_str(match (is_tuple, n) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (n, key) in value.try_iter()?.enumerate() {
                out.push_str(if n > 0 { ", " } else { "" });
                write(&key, depth - 1, out)?;
                out.push_str(": ");
                write(&value.get_item(&key)?, depth - 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Writes a text between quotes: single ones, unless only the text has those.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ => escape(c, out),
        }
    }
    out.push(quote);
}

/// Writes a character by its number.
fn escape(c: char, out: &mut String) {
    let n = c as u32;
    out.push_str(&match n {
        0..=0xFF => format!("\\x{n:02x}"),
        0x100..=0xFFFF => format!("\\u{n:04x}"),
        _ => format!("\\U{n:08x}"),
    });
}

/// Returns a text with all characters outside ASCII by their numbers, as `ascii()` writes them.
pub(super) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| if c.is_ascii() { out.push(c) } else { escape(c, &mut out) });
    out
}

/// Returns bytes as Python shows them: `b'\xe4'`.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { b'"' } else { b'\'' };
    let mut out = format!("b{}", char::from(quote));
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ if byte == quote => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push(char::from(quote));
    out
}
