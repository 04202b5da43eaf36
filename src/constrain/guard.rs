//! Keeps JSON within the limits of JSON parsers.
//!
//! The grammar of JSON allows numbers of any size, such as 1e999, and any depth of nesting. Parsers do not: a number
//! must fit a 64-bit float, and most refuse more than about a hundred levels. Small models also tend to write digits
//! without end. A grammar that counts would be large; counting bytes here is cheap.

/// The most characters of a number, without its exponent: more digits than a 64-bit float keeps.
const LONGEST_NUMBER: u32 = 20;
/// The most digits of an exponent. Together, the two limits keep all numbers below 1e120.
const LONGEST_EXPONENT: u32 = 2;
/// The deepest nesting of lists and objects. serde_json reads 127 levels.
const DEEPEST: u32 = 100;

/// The position in a JSON text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Guard {
    place: Place,
    depth: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Between,
    String,
    Escape,
    /// In a number, with its length so far.
    Number(u32),
    /// In an exponent, with its digits so far.
    Exponent(u32),
}

impl Guard {
    /// Appends `bytes` to the text.
    pub fn accept(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.step(byte);
        }
    }

    /// Returns whether `bytes` would exceed a limit.
    pub fn refuses(mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| {
            let depth = self.depth;
            self.step(byte);
            let deeper = self.depth > depth && self.depth > DEEPEST;
            deeper
                || match self.place {
                    Place::Number(long) => long > LONGEST_NUMBER,
                    Place::Exponent(long) => long > LONGEST_EXPONENT,
                    _ => false,
                }
        })
    }

    /// Returns whether tokens have to be checked here, other than those that contain a whole number.
    pub fn watches(&self) -> bool {
        match self.place {
            Place::Number(_) | Place::Exponent(_) => true,
            Place::Between => self.depth >= DEEPEST,
            Place::String | Place::Escape => false,
        }
    }

    /// Returns whether the text ends inside a string.
    pub fn in_string(&self) -> bool {
        matches!(self.place, Place::String | Place::Escape)
    }

    fn step(&mut self, byte: u8) {
        self.place = match (self.place, byte) {
            (Place::Escape, _) => Place::String,
            (Place::String, b'\\') => Place::Escape,
            (Place::String, b'"') => Place::Between,
            (Place::String, _) => Place::String,
            (_, b'"') => Place::String,
            (Place::Number(_), b'e' | b'E') => Place::Exponent(0),
            (Place::Number(long), b'0'..=b'9' | b'.') => Place::Number(long + 1),
            (Place::Exponent(long), b'0'..=b'9') => Place::Exponent(long + 1),
            (Place::Exponent(long), b'+' | b'-') => Place::Exponent(long),
            (_, b'0'..=b'9' | b'-') => Place::Number(1),
            (_, b'{' | b'[') => {
                self.depth = self.depth.saturating_add(1);
                Place::Between
            }
            (_, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                Place::Between
            }
            _ => Place::Between,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> Guard {
        let mut guard = Guard::default();
        guard.accept(text.as_bytes());
        guard
    }

    #[test]
    fn refuses_numbers_that_no_reader_takes_and_nothing_in_strings() {
        assert!(after("[12").watches() && !after("[12").refuses(b"3"));
        assert!(after("[1e99").refuses(b"9") && after("1e").refuses(b"999") && after("1").refuses(b"e+400"));
        assert!(!after("1e").refuses(b"-99]"));
        assert!(after("[-0.123456789012345678").refuses(b"9") && !after("[-0.12345678901234567").refuses(b", 12345"));
        assert!(after("[").refuses(b"123456789012345678901"));
        let string = after("[\"1e99\\\"9");
        assert!(string.in_string() && !string.watches() && !string.refuses(b"99999999999999999999999[[["));
        assert!(!after("[\"\\\\\"").in_string());
    }

    #[test]
    fn refuses_to_nest_deeper_than_readers_do() {
        let deep = after(&"[".repeat(100));
        assert!(deep.watches() && deep.refuses(b"[") && deep.refuses(b"{\"a\":") && !deep.refuses(b"]"));
        assert!(!after(&"[".repeat(99)).refuses(b"["));
        assert_eq!(after("[{}]"), Guard::default());
    }
}
