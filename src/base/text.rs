//! Texts from files and pipes.

/// Returns the text without the byte order mark with which some editors begin files. It is not part of the text.
pub fn after_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Like [`after_mark`], but for a text that is owned.
pub fn without_mark(mut text: String) -> String {
    text.drain(..text.len() - after_mark(&text).len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mark_at_the_beginning_is_removed() {
        assert_eq!(without_mark("\u{feff}a\u{feff}".to_string()), "a\u{feff}");
        assert_eq!(without_mark("a".to_string()), "a");
        assert_eq!(without_mark("\u{feff}".to_string()), "");
    }
}
