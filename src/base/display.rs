//! Text from files and models, made safe to show.

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` with everything escaped that would move the cursor, colour what follows, or turn the direction of writing:
/// what a file says of itself is printed through this. Line breaks become `\n`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// As [`printable`], but line breaks and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let drives = |c: char| !keep(c) && drives(c);
    if !text.contains(drives) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if !drives(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\t' => escaped.push_str("\\t"),
            '\r' => escaped.push_str("\\r"),
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character moves the cursor, colours what follows, or turns the direction of writing.
pub fn drives(c: char) -> bool {
    c.is_control() || is_format(c)
}

/// Characters that are not seen and change what is: marks and overrides of the direction of writing, separators of
/// lines and paragraphs, the byte order mark.
fn is_format(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_drive_the_terminal() {
        assert_eq!(printable("零一万物 Yi-34B é 🤗"), "零一万物 Yi-34B é 🤗");
        assert_eq!(printable("\x1b[2Ja\u{9b}31mb\x07\r\n\t\0"), "\\u{1b}[2Ja\\u{9b}31mb\\u{7}\\r\\n\\t\\u{0}");
        assert_eq!(printable("a\u{202e}fugg.\u{2066}b\u{feff}"), "a\\u{202e}fugg.\\u{2066}b\\u{feff}");
        assert_eq!(printable_lines("{% if a %}\n\tb\x1b\r\n"), "{% if a %}\n\tb\\u{1b}\\r\n");
    }
}
