//! Notices when a model writes the same again and again.

/// Bytes at the end of the text that have to repeat.
const REPEATED: usize = 1200;
/// The longest thing that is repeated, in bytes: shorter ones come at least four times.
const LONGEST: usize = REPEATED / 4;
/// How often the end is looked at, in bytes of new text.
const EVERY: usize = 256;

/// What to say of a text that repeats itself, and what helps.
pub fn sentence(repeated: &str) -> String {
    format!(
        "the model repeats itself ('{repeated}'); --dry-multiplier 0.8 or --repeat-penalty 1.1 discourages that, and a model \
         of chats needs its chat template"
    )
}

/// The end of a text that is being written.
#[derive(Debug, Default)]
pub struct Repeats {
    end: Vec<u8>,
    new: usize,
    said: bool,
}

impl Repeats {
    /// Takes the next part of the text. Returns what is repeated, shortened, the first time that the end of the text is
    /// nothing but that.
    pub fn push(&mut self, text: &str) -> Option<String> {
        if self.said {
            return None;
        }
        self.end.extend_from_slice(text.as_bytes());
        self.new += text.len();
        if self.new < EVERY {
            return None;
        }
        self.new = 0;
        self.end.drain(..self.end.len().saturating_sub(REPEATED));
        if self.end.len() < REPEATED {
            return None;
        }
        let period = period(&self.end);
        // Spaces and rulers are long in tables, and white space of nothing else says nothing.
        let unit = &self.end[REPEATED - period.min(REPEATED)..];
        if period > LONGEST || unit.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        self.said = true;
        let unit = String::from_utf8_lossy(unit).replace('\u{fffd}', "");
        Some(crate::base::display::shorten(unit.trim(), 40))
    }
}

/// The smallest number of bytes by which a text can be shifted onto itself: the failure function of Knuth, Morris and
/// Pratt.
fn period(text: &[u8]) -> usize {
    let mut border = vec![0; text.len()];
    let mut k = 0;
    for i in 1..text.len() {
        while k > 0 && text[i] != text[k] {
            k = border[k - 1];
        }
        if text[i] == text[k] {
            k += 1;
        }
        border[i] = k;
    }
    text.len() - border.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_noticed_once() {
        let mut repeats = Repeats::default();
        let said: Vec<String> = (0..1000).filter_map(|_| repeats.push("L-")).collect();
        assert_eq!(said, ["L-"]);
        let mut repeats = Repeats::default();
        let lines = "Once more unto the breach, dear friends, once more;\n".repeat(60);
        let said: Vec<String> = lines.split_inclusive(' ').filter_map(|word| repeats.push(word)).collect();
        assert_eq!(said.len(), 1);
    }

    #[test]
    fn text_that_goes_on_is_no_loop() {
        let mut repeats = Repeats::default();
        for i in 0..2000 {
            assert_eq!(repeats.push(&format!("{i} bottles of beer on the wall\n")), None);
        }
        let mut repeats = Repeats::default();
        assert!((0..2000).all(|_| repeats.push("   ").is_none()), "white space");
    }

    #[test]
    fn the_period_is_the_shortest() {
        assert_eq!(
            [period(b"abab"), period(b"aaaa"), period(b"abcd"), period(b"aabaa"), period(b"a")],
            [2, 1, 4, 3, 1]
        );
    }
}
