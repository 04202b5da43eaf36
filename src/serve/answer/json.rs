//! Follows JSON as it is written, one character at a time, without holding it.

/// How deep values may be nested.
const DEEPEST: usize = 128;

/// What a character is to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of it; it goes on.
    More,
    /// Its last character.
    Last,
    /// The first one after it: only its successor ends a number.
    After,
    /// Not JSON.
    Invalid,
}

/// One JSON value, from its first character.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    /// The objects (`true`) and arrays around the place.
    open: Vec<bool>,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    /// After a value in an object or array.
    Comma,
    Text {
        key: bool,
        escape: Escape,
    },
    /// In `true`, `false` or `null`: what is missing.
    Word(&'static str),
    Number(Number),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Escape {
    None,
    Begun,
    /// So many hexadecimal digits are missing.
    Digits(u8),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
}

impl Number {
    fn next(self, c: char) -> Option<Self> {
        let digit = c.is_ascii_digit();
        Some(match (self, c) {
            (Self::Minus, '0') => Self::Zero,
            (Self::Minus | Self::Digits, _) if digit => Self::Digits,
            (Self::Zero | Self::Digits, '.') => Self::Point,
            (Self::Point | Self::Fraction, _) if digit => Self::Fraction,
            (Self::Zero | Self::Digits | Self::Fraction, 'e' | 'E') => Self::E,
            (Self::E, '+' | '-') => Self::ESign,
            (Self::E | Self::ESign | Self::Exponent, _) if digit => Self::Exponent,
            _ => return None,
        })
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Exponent)
    }
}

/// Whether JSON allows the character between values.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

impl Scanner {
    /// A value of any type.
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), at: At::Value }
    }

    /// Takes the next character. Nothing may be taken after the value has ended, or is invalid.
    pub(super) fn take(&mut self, c: char) -> Step {
        let at = match self.at {
            At::Text { key, escape } => return self.take_in_text(c, key, escape),
            At::Word(rest) => {
                return match rest.strip_prefix(c) {
                    Some("") => self.ended(),
                    Some(rest) => self.goes_on(At::Word(rest)),
                    None => Step::Invalid,
                };
            }
            At::Number(number) => match number.next(c) {
                Some(number) => return self.goes_on(At::Number(number)),
                None if !number.is_whole() => return Step::Invalid,
                None if self.open.is_empty() => {
                    self.at = At::End;
                    return Step::After;
                }
                None => At::Comma,
            },
            at => at,
        };
        self.at = at;
        if is_space(c) && !(at == At::Value && self.open.is_empty()) {
            return Step::More;
        }
        match (at, c) {
            (At::KeyOrEnd, '}') | (At::ValueOrEnd, ']') => self.closed(),
            (At::Comma, '}') if self.open.last() == Some(&true) => self.closed(),
            (At::Comma, ']') if self.open.last() == Some(&false) => self.closed(),
            (At::Comma, ',') => {
                let object = self.open.last() == Some(&true);
                self.goes_on(if object { At::Key } else { At::Value })
            }
            (At::KeyOrEnd | At::Key, '"') => self.goes_on(At::Text { key: true, escape: Escape::None }),
            (At::Colon, ':') => self.goes_on(At::Value),
            (At::Value | At::ValueOrEnd, _) => self.begin(c),
            _ => Step::Invalid,
        }
    }

    fn begin(&mut self, c: char) -> Step {
        let at = match c {
            '{' | '[' => {
                if self.open.len() == DEEPEST {
                    return Step::Invalid;
                }
                self.open.push(c == '{');
                if c == '{' { At::KeyOrEnd } else { At::ValueOrEnd }
            }
            '"' => At::Text { key: false, escape: Escape::None },
            't' => At::Word("rue"),
            'f' => At::Word("alse"),
            'n' => At::Word("ull"),
            '-' => At::Number(Number::Minus),
            '0' => At::Number(Number::Zero),
            '1'..='9' => At::Number(Number::Digits),
            _ => return Step::Invalid,
        };
        self.goes_on(at)
    }

    fn take_in_text(&mut self, c: char, key: bool, escape: Escape) -> Step {
        let escape = match (escape, c) {
            (Escape::None, '"') if key => return self.goes_on(At::Colon),
            (Escape::None, '"') => return self.ended(),
            (Escape::None, '\\') => Escape::Begun,
            (Escape::None, '\0'..='\x1f') => return Step::Invalid,
            (Escape::None, _) => Escape::None,
            (Escape::Begun, 'u') => Escape::Digits(4),
            (Escape::Begun, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => Escape::None,
            (Escape::Digits(1), _) if c.is_ascii_hexdigit() => Escape::None,
            (Escape::Digits(n), _) if c.is_ascii_hexdigit() => Escape::Digits(n - 1),
            _ => return Step::Invalid,
        };
        self.goes_on(At::Text { key, escape })
    }

    fn goes_on(&mut self, at: At) -> Step {
        self.at = at;
        Step::More
    }

    fn closed(&mut self) -> Step {
        self.open.pop();
        self.ended()
    }

    fn ended(&mut self) -> Step {
        if self.open.is_empty() {
            self.at = At::End;
            return Step::Last;
        }
        self.goes_on(At::Comma)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns whether the whole text is one value, without white space around it.
    fn is_value(text: &str) -> bool {
        let mut scanner = Scanner::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match scanner.take(c) {
                Step::More => {}
                Step::Last => return chars.peek().is_none(),
                Step::After | Step::Invalid => return false,
            }
        }
        // Only what follows ends a number.
        scanner.take(' ') == Step::After
    }

    #[test]
    fn values_end_where_they_end() {
        for value in ["{}", "[]", "\"\"", "0", "-1.5e+3", "true", "null", r#"{"a":[1,{"b":"}"}],"c":"\"\u00e9\\"}"#] {
            assert!(is_value(value), "{value}");
        }
        for value in ["", "{", "{]", "01", "1.", "-", "tru", "truex", "\"\n\"", r#""\x""#, r#"{"a"}"#, "[1,]", "{,}"] {
            assert!(!is_value(value), "{value}");
        }
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(is_value(&deep(DEEPEST)) && !is_value(&deep(DEEPEST + 1)));
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in r#"[\[\]{}":,\\u0123456789eE+. \-tfnrualse]{0,12}"#) {
            // serde_json also refuses lone surrogates and numbers that overflow, which are of no interest here.
            let parsed = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            let trimmed = !text.starts_with(is_space) && !text.ends_with(is_space);
            if trimmed && !text.contains("\\u") {
                prop_assert_eq!(is_value(&text), parsed, "{}", text);
            }
        }
    }
}
