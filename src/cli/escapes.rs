//! Escapes in texts of the command line: `\n` becomes a line break, as in llama-cli.

/// Replaces `\n`, `\r`, `\t`, `\\`, `\'`, `\"` and `\xHH` of bytes below 80 hexadecimal. All else stays.
pub fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let hex = || {
            let digits = after.strip_prefix('x')?.get(..2)?;
            let byte = u8::from_str_radix(digits, 16).ok()?;
            // A byte of a longer character could not stand in a text alone.
            byte.is_ascii().then_some((char::from(byte), 3))
        };
        let found = match after.chars().next() {
            Some('n') => Some(('\n', 1)),
            Some('r') => Some(('\r', 1)),
            Some('t') => Some(('\t', 1)),
            Some(c @ ('\\' | '\'' | '"')) => Some((c, 1)),
            Some('x') => hex(),
            _ => None,
        };
        let (c, n) = found.unwrap_or(('\\', 0));
        out.push(c);
        rest = &after[n..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of llama.cpp's `string_process_escapes`, but for bytes that are no characters.
    #[test]
    fn escapes_are_those_of_llama_cli() {
        for (typed, meant) in [
            (r"a\nb", "a\nb"),
            (r"a\\nb", r"a\nb"),
            (r"\t\r\'", "\t\r'"),
            (r#"\""#, "\""),
            (r"\x41\x0a", "A\n"),
            (r"\xff \x4 \xzz \q", r"\xff \x4 \xzz \q"),
            (r"C:\users\零", r"C:\users\零"),
            ("\\", "\\"),
            (r"零\n一", "零\n一"),
        ] {
            assert_eq!(unescaped(typed), meant, "{typed}");
        }
    }
}
