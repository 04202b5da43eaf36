//! From the bytes of tokens to text, without ever showing half a character.

/// Collects bytes and gives them out as text, keeping back a character that is not complete yet.
///
/// Bytes that can never become a character turn into U+FFFD at once, as [`String::from_utf8_lossy`] does.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// The start of a character: at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Nothing received yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes of the next token and returns the text that is certain by now; often all of it, sometimes none.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut kept = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if is_last(&self.pending, invalid) && may_be_completed(invalid) {
                kept = invalid.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// Ends the stream: U+FFFD where a character was begun and never completed, else nothing.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    /// Whether the start of a character is being kept back.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Whether `part`, a slice of `whole`, ends where `whole` ends.
fn is_last(whole: &[u8], part: &[u8]) -> bool {
    whole.as_ptr_range().end == part.as_ptr_range().end
}

/// Whether more bytes could turn these, which are no character, into one.
fn may_be_completed(bytes: &[u8]) -> bool {
    // error_len is None exactly where the input ended too early.
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_half_a_character_back_until_it_is_whole() {
        let mut stream = StreamDecoder::new();
        let bytes = "a零".as_bytes();
        assert_eq!(stream.push(&bytes[..2]), "a");
        assert!(stream.is_pending());
        assert_eq!(stream.push(&bytes[2..3]), "");
        assert_eq!(stream.push(&bytes[3..]), "零");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_unfinished_character_becomes_the_replacement_character_at_the_end() {
        let mut stream = StreamDecoder::new();
        assert_eq!(stream.push(b"ok\xf0\x9f\x98"), "ok");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert!(!stream.is_pending());
    }

    #[test]
    fn an_impossible_byte_does_not_hold_up_what_follows() {
        let mut stream = StreamDecoder::new();
        assert_eq!(stream.push(b"\xffa"), "\u{fffd}a");
        assert_eq!(stream.push(b"\xe9"), "");
        assert_eq!(stream.push(b"b"), "\u{fffd}b");
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same_text_as_the_whole(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xe9), Just(0x9b), Just(0xb6)], 0..40),
            sizes in prop::collection::vec(1usize..5, 40),
        ) {
            let mut stream = StreamDecoder::new();
            let (mut text, mut rest) = (String::new(), &bytes[..]);
            for size in sizes {
                let (now, later) = rest.split_at(size.min(rest.len()));
                text += &stream.push(now);
                rest = later;
                prop_assert!(stream.pending.len() < 4);
            }
            text += &stream.push(rest);
            text += &stream.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
