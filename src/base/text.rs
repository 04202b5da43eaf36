//! Texts from files and pipes.

/// Removes the byte order mark with which some editors begin files. It is not part of the text.
pub fn without_mark(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
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
