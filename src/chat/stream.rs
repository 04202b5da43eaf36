//! Turns a stream of bytes into text that can be shown: whole characters, and nothing that may belong to a stop text.

/// Decodes UTF-8 that arrives in pieces. A character that is cut in two waits for the rest; invalid bytes become
/// U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    // At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes bytes, and appends the characters that are complete to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    // `from_utf8` has just checked these bytes, so nothing is replaced.
                    out.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(bad) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[bad..];
                        }
                        None => {
                            rest = after;
                            break;
                        }
                    }
                }
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }

    /// Ends the stream. An incomplete character becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Searches a stream of text for stop texts, and holds back what may be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopText {
    stops: Vec<String>,
    held: String,
}

impl StopText {
    /// Searches for any of `stops`. Empty ones are ignored: they would end every text at once.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Takes text, and appends what can be shown to `out`. Returns the stop text if one was found. Neither the stop
    /// text nor anything after it is shown.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<&str> {
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(i, stop)| self.held.find(stop.as_str()).map(|at| (at, std::cmp::Reverse(stop.len()), i)))
            .min();
        if let Some((at, _, i)) = first {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return self.stops.get(i).map(String::as_str);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let show = self.held.len() - keep;
        out.push_str(&self.held[..show]);
        self.held.drain(..show);
        None
    }

    /// Ends the stream, and appends what was held back.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// The number of bytes at the end of `text` that are a proper prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    // Both are UTF-8, so a suffix that equals a prefix starts at a character boundary.
    (1..=longest).rev().find(|&n| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_text_that_the_whole_gives(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[a-zé话😀]{0,12}".prop_map(String::into_bytes),
            ],
            cuts in prop::collection::vec(0usize..40, 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut stream, mut out) = (Utf8Stream::default(), String::new());
            for pair in cuts.windows(2) {
                stream.push(&bytes[pair[0]..pair[1]], &mut out);
                prop_assert!(stream.pending.len() < 4);
            }
            stream.finish(&mut out);
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_stop_text_is_found_wherever_the_pieces_end(
            text in "[ab话]{0,20}",
            stops in prop::collection::vec("[ab话]{1,4}", 0..3),
            cuts in prop::collection::vec(0usize..21, 0..8),
        ) {
            let characters: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(characters.len())).collect();
            cuts.extend([0, characters.len()]);
            cuts.sort_unstable();
            let (mut stop, mut out, mut stopped) = (StopText::new(stops.clone()), String::new(), false);
            let mut seen = String::new();
            for pair in cuts.windows(2) {
                let piece: String = characters[pair[0]..pair[1]].iter().collect();
                seen.push_str(&piece);
                if stop.push(&piece, &mut out).is_some() {
                    stopped = true;
                    break;
                }
                // What is shown is never part of a stop text that is still to come.
                prop_assert!(text.starts_with(&out));
            }
            if !stopped {
                stop.finish(&mut out);
            }
            // The first piece that completes a stop text ends the stream; of the stop texts in sight by then, the
            // one that begins first.
            let wanted = stops.iter().filter_map(|s| seen.find(s.as_str())).min();
            prop_assert_eq!(stopped, wanted.is_some());
            prop_assert_eq!(out.as_str(), &seen[..wanted.unwrap_or(seen.len())]);
        }
    }

    #[test]
    fn a_character_waits_for_its_other_half() {
        let (mut stream, mut out) = (Utf8Stream::default(), String::new());
        let bytes = "话".as_bytes();
        stream.push(&bytes[..2], &mut out);
        assert_eq!(out, "");
        stream.push(&bytes[2..], &mut out);
        assert_eq!(out, "话");
        stream.push(&bytes[..1], &mut out);
        stream.finish(&mut out);
        assert_eq!(out, "话\u{FFFD}");
    }

    #[test]
    fn nothing_is_held_back_without_stop_texts() {
        let (mut stop, mut out) = (StopText::new(vec![String::new()]), String::new());
        assert_eq!(stop.push("abc", &mut out), None);
        assert_eq!(out, "abc");
    }

    #[test]
    fn says_which_text_ended_it() {
        let (mut stop, mut out) = (StopText::new(vec!["User:".into(), "\n\n".into()]), String::new());
        assert_eq!(stop.push("fine.\nUse", &mut out), None);
        assert_eq!(out, "fine.\n");
        assert_eq!(stop.push("r: more", &mut out), Some("User:"));
        assert_eq!(out, "fine.\n");
    }
}
