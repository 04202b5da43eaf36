//! Text from files and models, made safe and short enough to show.
//!
//! Such text may contain anything: escape sequences that clear the screen, marks that reverse the direction of writing,
//! names of several megabytes. nibble prints it only through these functions:
//!
//! | function | for | keeps |
//! |---|---|---|
//! | [`printable`] | a name in a sentence or a table | nothing unprintable |
//! | [`printable_lines`] | text of several lines, such as a template | line breaks and tabs |
//! | [`printable_prose`] | what a model writes | those, and the marks of right-to-left writing |
//! | [`visible`] | a token | nothing unprintable or invisible |
//! | [`shorten`], [`quote`] | a name of any length in a sentence | its beginning |

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes everything in `text` that would move the cursor, color what follows, or change the direction of writing.
///
/// Line breaks become `\n`, other characters `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, is_unprintable)
}

/// Escapes like [`printable`], but keeps line breaks and tabs.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unprintable(c) && !matches!(c, '\n' | '\t'))
}

/// Escapes like [`printable_lines`], but keeps the marks that right-to-left writing needs. Drops carriage returns and
/// byte order marks, which models pick up from the texts they learn from; Unicode's separators become line breaks.
pub fn printable_prose(text: &str) -> Cow<'_, str> {
    const RIGHT_TO_LEFT: [char; 3] = ['\u{61c}', '\u{200e}', '\u{200f}'];
    let unprintable = |c| is_unprintable(c) && !matches!(c, '\n' | '\t') && !RIGHT_TO_LEFT.contains(&c);
    let replaced = |c| matches!(c, '\r' | '\u{feff}' | '\u{2028}' | '\u{2029}');
    if !text.contains(replaced) {
        return escape(text, unprintable);
    }
    let lines: String = text.replace(['\r', '\u{feff}'], "").replace(['\u{2028}', '\u{2029}'], "\n");
    Cow::Owned(escape(&lines, unprintable).into_owned())
}

/// Escapes like [`printable`], and also escapes what has no width or no glyph, such as U+200B.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_visible = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    escape(text, |c| is_unprintable(c) || !is_visible(c))
}

/// Returns [`printable`] text of at most `longest` characters; of longer text the beginning, and how long it is.
pub fn shorten(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => printable(text).into_owned(),
        Some((end, _)) => format!("{}... ({} characters)", printable(&text[..end]), text.chars().count()),
    }
}

/// Returns `text` in quotes, and shortened like [`shorten`].
pub fn quote(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => format!("\"{}\"", printable(text)),
        Some((end, _)) => format!("\"{}\"... ({} characters)", printable(&text[..end]), text.chars().count()),
    }
}

fn escape(text: &str, escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            _ if !escaped(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // Writing to a string cannot fail.
            _ => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// Returns whether a character moves the cursor, colors what follows, or changes the direction of writing.
pub fn is_unprintable(c: char) -> bool {
    c.is_control() || is_format(c)
}

/// Invisible characters that change how the rest is shown: marks and overrides of the direction of writing, separators
/// of lines and paragraphs, the byte order mark.
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

    #[test]
    fn nothing_that_a_model_writes_drives_the_terminal() {
        assert_eq!(printable_prose("Hi, 你好!\n\tA\r\n"), "Hi, 你好!\n\tA\n");
        assert_eq!(printable_prose("\x1b]0;title\x07\x1b[2J\u{9b}1m"), "\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{9b}1m");
        assert_eq!(printable_prose("\u{202e}gpj.exe\u{2066}"), "\\u{202e}gpj.exe\\u{2066}");
        assert_eq!(printable_prose("\u{feff}שלום\u{200f}!\u{2028}x"), "שלום\u{200f}!\nx");
        assert!(matches!(printable_prose("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_token_that_cannot_be_seen_is_spelled_out() {
        assert_eq!(visible("▁\"it's\" \\n 零é"), "▁\"it's\" \\n 零é");
        assert_eq!(visible("a\u{200b}\n\u{ad}\u{202e}"), "a\\u{200b}\\n\\u{ad}\\u{202e}");
    }

    #[test]
    fn long_texts_are_cut_with_their_length() {
        assert_eq!(shorten("短", 3), "短");
        assert_eq!(shorten("一二三四五", 3), "一二三... (5 characters)");
        assert_eq!(quote("a\x1b", 3), "\"a\\u{1b}\"");
        assert_eq!(quote("abcd", 3), "\"abc\"... (4 characters)");
    }
}
