//! Formats numbers and names for people.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::report::results::{Estimate, Results};

/// Significant digits of a number without an interval.
const DIGITS: i32 = 3;

/// The most terminal columns for a candidate's label.
const LONGEST_LABEL: usize = 40;

/// The most digits after the point. Smaller numbers are written with an exponent.
const MOST_DECIMALS: i32 = 7;

/// A formatted estimate: the number, and its interval if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// `0.0123`
    pub value: String,
    /// `[0.0119, 0.0127]`
    pub interval: Option<String>,
}

impl Shown {
    /// Returns both, separated by a space.
    pub fn line(&self) -> String {
        match &self.interval {
            Some(interval) => format!("{} {interval}", self.value),
            None => self.value.clone(),
        }
    }
}

/// Formats a number of unknown precision, with three digits.
pub fn number(value: f64) -> String {
    fixed(value, decimals_of(value))
}

/// Formats an estimate with as many digits as its interval leaves certain: the distance to the nearer end of the
/// interval has one significant digit, or two if the first is a one.
pub fn estimate(estimate: &Estimate) -> Shown {
    shown(estimate, 1.0)
}

/// Formats an estimate of a share in percent, without the percent sign.
pub fn percent(estimate: &Estimate) -> Shown {
    shown(estimate, 100.0)
}

/// Formats a share in percent, with two digits after the point: `96.52`.
pub fn share(value: f64) -> String {
    fixed(value * 100.0, 2)
}

/// Formats a difference, with its sign.
pub fn difference(estimate: &Estimate) -> Shown {
    let Shown { value, interval } = shown(estimate, 1.0);
    let value = if estimate.value > 0.0 { format!("+{value}") } else { value };
    Shown { value, interval }
}

fn shown(estimate: &Estimate, scale: f64) -> Shown {
    let value = estimate.value * scale;
    let Some([low, high]) = estimate.interval.map(|ends| ends.map(|end| end * scale)) else {
        return Shown { value: number(value), interval: None };
    };
    // The nearer end determines the precision, unless the number is that end itself.
    let nearer = (high - value).min(value - low);
    let certain = if nearer > 0.0 { nearer } else { (high - low) / 2.0 };
    let decimals =
        if certain.is_finite() && certain > 0.0 { (0.29 - certain.log10()).ceil() as i32 } else { decimals_of(value) };
    let interval = format!("[{}, {}]", fixed(low, decimals), fixed(high, decimals));
    Shown { value: fixed(value, decimals), interval: Some(interval) }
}

/// Returns how many digits after the point show [`DIGITS`] significant digits.
fn decimals_of(value: f64) -> i32 {
    if value == 0.0 || !value.is_finite() { 0 } else { DIGITS - 1 - value.abs().log10().floor() as i32 }
}

fn fixed(value: f64, decimals: i32) -> String {
    if value.is_nan() {
        return "unknown".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "infinite".into() } else { "-infinite".into() };
    }
    if value != 0.0 && value.abs() < 0.1_f64.powi(MOST_DECIMALS) && decimals > MOST_DECIMALS {
        return format!("{value:.1e}");
    }
    let decimals = decimals.clamp(0, MOST_DECIMALS) as usize;
    let text = format!("{value:.decimals$}");
    // A number that rounds to zero has no sign.
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|byte| matches!(byte, b'0' | b'.')) => rest.to_owned(),
        _ => text,
    }
}

/// Formats a count with separated thousands: `1 234 567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            // A no-break space neither breaks nor stretches.
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

/// `one pair`, `3 pairs`.
pub fn counted(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("one {one}") } else { format!("{n} {many}") }
}

/// `a`, `a and b`, `a, b and c`.
pub fn listed(things: &[String]) -> String {
    match things {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Returns `text` with escapes such as `\u{202e}` for the characters that a terminal or a browser would interpret.
pub fn plain(text: &str) -> Cow<'_, str> {
    crate::base::display::printable(text)
}

/// Returns `text` in at most `cells` terminal columns. If it is longer, its middle is left out.
pub fn shortened(text: &str, cells: usize) -> String {
    if text.width() <= cells {
        return text.to_owned();
    }
    let room = cells.saturating_sub(3);
    let head = take(text.chars(), room - room / 2);
    let tail: String = take(text.chars().rev(), room / 2).chars().rev().collect();
    format!("{head}...{tail}")
}

/// Returns the first characters that fit in `cells` columns.
fn take(chars: impl Iterator<Item = char>, cells: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= cells
        })
        .collect()
}

/// Returns the labels of the candidates in tables and drawings, in their order: their names without their common
/// beginning, shortened, and made unique.
///
/// `Yi-34B-Chat-Q4_K_M` and `Yi-34B-Chat-Q8_0` are `Q4_K_M` and `Q8_0`.
pub fn labels(results: &Results) -> Vec<String> {
    let prefix = common_prefix(results).len();
    let mut labels: Vec<String> = Vec::with_capacity(results.candidates.len());
    for candidate in &results.candidates {
        let name = shortened(&plain(&candidate.file.name[prefix..]), LONGEST_LABEL);
        let name = if name.trim().is_empty() { "(no name)".to_owned() } else { name };
        let mut label = name.clone();
        let mut copy = 2;
        while labels.contains(&label) {
            label = format!("{name} ({copy})");
            copy += 1;
        }
        labels.push(label);
    }
    labels
}

/// Returns the common beginning of all candidates' names, up to a hyphen or a point, which the labels leave out.
pub fn common_prefix(results: &Results) -> &str {
    let mut names = results.candidates.iter().map(|candidate| candidate.file.name.as_str());
    let (Some(first), true) = (names.next(), results.candidates.len() > 1) else { return "" };
    let mut length = first.len();
    for name in names {
        let same = first.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        // A name that consists only of the prefix keeps its last part.
        length = length.min(same).min(name.len().saturating_sub(1)).min(first.len().saturating_sub(1));
    }
    // Hyphens and points are one byte, so a character begins after each.
    let length = first.as_bytes()[..length].iter().rposition(|byte| matches!(byte, b'-' | b'.')).map_or(0, |at| at + 1);
    &first[..length]
}

/// Quotes a word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&byte) || byte >= 0x80;
    if !word.is_empty() && word.bytes().all(safe) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn with(value: f64, low: f64, high: f64) -> Estimate {
        Estimate { value, interval: Some([low, high]) }
    }

    #[test]
    fn an_estimate_has_the_digits_that_its_interval_leaves_certain() {
        assert_eq!(estimate(&with(0.012_345, 0.0119, 0.0127)).line(), "0.0123 [0.0119, 0.0127]");
        assert_eq!(estimate(&with(0.012_34, 0.012_30, 0.012_381)).line(), "0.01234 [0.01230, 0.01238]");
        assert_eq!(estimate(&with(0.3, 0.1, 90.0)).line(), "0.3 [0.1, 90.0]");
        assert_eq!(estimate(&with(0.3, 0.3, 0.3)).line(), "0.300 [0.300, 0.300]");
        assert_eq!(estimate(&with(5.5, 5.25, 5.75)).line(), "5.5 [5.2, 5.8]");
        assert_eq!(estimate(&Estimate::bare(0.000_052_18)).line(), "0.0000522");
        assert_eq!(estimate(&Estimate::bare(0.0)).line(), "0");
        assert_eq!(percent(&with(0.9652, 0.9631, 0.9673)).line(), "96.5 [96.3, 96.7]");
        assert_eq!(difference(&with(0.0041, 0.0032, 0.005)).line(), "+0.0041 [0.0032, 0.0050]");
        assert_eq!(difference(&with(-0.000_01, -0.002, 0.002)).line(), "0.000 [-0.002, 0.002]");
    }

    #[test]
    fn numbers_that_are_none_are_words() {
        assert_eq!(number(f64::INFINITY), "infinite");
        assert_eq!(number(f64::NEG_INFINITY), "-infinite");
        assert_eq!(number(f64::NAN), "unknown");
        assert_eq!(estimate(&with(f64::INFINITY, 1.0, f64::INFINITY)).line(), "infinite [1, infinite]");
        assert_eq!(number(1.25e-12), "1.2e-12");
        assert_eq!(fixed(-0.0001, 2), "0.00");
        assert_eq!(number(f64::MIN_POSITIVE), "2.2e-308");
        assert!(number(f64::MAX).len() > 300);
    }

    #[test]
    fn labels_leave_out_what_all_names_share_and_no_more() {
        let labels_of = |names: &[&str]| labels(&sample::named(names));
        assert_eq!(labels_of(&["Yi-34B-Chat-Q4_K_M", "Yi-34B-Chat-Q4_K_S"]), ["Q4_K_M", "Q4_K_S"]);
        assert_eq!(labels_of(&["Yi-34B-Chat-Q4_K_M"]), ["Yi-34B-Chat-Q4_K_M"]);
        assert_eq!(labels_of(&["Yi-Q4", "Yi-Q4-im"]), ["Q4", "Q4-im"]);
        assert_eq!(labels_of(&["Yi-", "Yi-Q4"]), ["Yi-", "Yi-Q4"]);
        assert_eq!(labels_of(&["零一-甲", "零一-乙"]), ["甲", "乙"]);
        assert_eq!(labels_of(&["零一甲", "零一乙"]), ["零一甲", "零一乙"]);
        assert_eq!(labels_of(&["a", "a", "a"]), ["a", "a (2)", "a (3)"]);
        assert_eq!(labels_of(&["", "\u{202e}x"]), ["(no name)", "\\u{202e}x"]);
        assert!(labels_of(&[]).is_empty());
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(shortened("Q4_K_M", 10), "Q4_K_M");
        assert_eq!(shortened("abcdefghijklmnop", 11), "abcd...mnop");
        for cells in 3..20 {
            assert!(shortened("零一万物的一个很长的名字在这里", cells).width() <= cells, "{cells}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("--texts"), "--texts");
        assert_eq!(quoted("en=文本/a.txt"), "en=文本/a.txt");
        assert_eq!(quoted("it's a"), r"'it'\''s a'");
        assert_eq!(quoted(""), "''");
    }
}
