//! The function `strftime_now`: the local time, as Python's `datetime.now().strftime` writes it.
//!
//! Where the clocks here stand is read from `TZ`, or from `/etc/localtime`, in the format of RFC 8536 (TZif). Where there
//! is neither, as on Windows, it is UTC.
//!
//! ```text
//! TZif:  header │ data with 32-bit times │ header │ data with 64-bit times │ \n rule of POSIX \n
//!        skipped ────────────────────────┘ times of changes, kinds,        │ for all times after
//!                                          offset of each kind             │ the last change
//! ```

use std::path::{Path, PathBuf};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Returns how far local time is ahead of UTC at `seconds` since 1970, in seconds.
pub(super) fn offset(seconds: i64) -> i64 {
    let given = std::env::var("TZ").ok();
    local(given.as_deref(), seconds).unwrap_or(0)
}

/// As [`offset`], for what `TZ` says.
fn local(given: Option<&str>, seconds: i64) -> Option<i64> {
    let file = |path: &Path| {
        let is_small = path.metadata().is_ok_and(|data| data.is_file() && data.len() < 1 << 20);
        if is_small { offset_of_file(&std::fs::read(path).ok()?, seconds) } else { None }
    };
    match given.map(|text| text.strip_prefix(':').unwrap_or(text)) {
        None => file(Path::new("/etc/localtime")),
        Some("") => Some(0),
        Some(path) if path.starts_with('/') => file(Path::new(path)),
        Some(name) => {
            let folders = ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"];
            let safe = !name.split('/').any(|part| part == "..");
            let found =
                folders.iter().map(|folder| PathBuf::from(folder).join(name)).find(|path| safe && path.is_file());
            match found {
                Some(path) => file(&path),
                None => Rule::parse(name).map(|rule| rule.offset(seconds)),
            }
        }
    }
}

/// The offset that a TZif file gives for a time.
fn offset_of_file(bytes: &[u8], seconds: i64) -> Option<i64> {
    let (counts, rest) = header(bytes)?;
    let (counts, data, wide) = if bytes.get(4)? >= &b'2' {
        let (counts, rest) = header(rest.get(counts.bytes(4)?..)?)?;
        (counts, rest, 8)
    } else {
        (counts, rest, 4)
    };
    let times = data.get(..counts.times.checked_mul(wide)?)?;
    let kinds = data.get(times.len()..times.len() + counts.times)?;
    let local = data.get(times.len() + kinds.len()..)?;
    let time = |i: usize| {
        let bytes = times.get(i * wide..(i + 1) * wide)?;
        Some(match wide {
            8 => i64::from_be_bytes(bytes.try_into().ok()?),
            _ => i64::from(i32::from_be_bytes(bytes.try_into().ok()?)),
        })
    };
    let offset = |kind: usize| {
        let bytes = local.get(kind * 6..kind * 6 + 4).filter(|_| kind < counts.kinds)?;
        Some(i64::from(i32::from_be_bytes(bytes.try_into().ok()?)))
    };
    let is_past = |i: usize| time(i).is_some_and(|time| time <= seconds);
    // How many changes came before.
    let (mut low, mut high) = (0, counts.times);
    while low < high {
        let middle = low.midpoint(high);
        if is_past(middle) { low = middle + 1 } else { high = middle }
    }
    if low == counts.times && wide == 8 {
        let rule = data.get(counts.bytes(8)?..).and_then(|rest| std::str::from_utf8(rest).ok());
        if let Some(rule) = rule.and_then(|text| Rule::parse(text.trim_matches('\n'))) {
            return Some(rule.offset(seconds));
        }
    }
    match low {
        0 => offset(0),
        n => offset(usize::from(*kinds.get(n - 1)?)),
    }
}

struct Counts {
    times: usize,
    kinds: usize,
    others: [usize; 4],
}

impl Counts {
    /// The bytes of the data that these count, with times of `wide` bytes.
    fn bytes(&self, wide: usize) -> Option<usize> {
        let [is_ut, is_std, leap, chars] = self.others;
        let times = self.times.checked_mul(wide + 1)?.checked_add(self.kinds.checked_mul(6)?)?;
        times.checked_add(chars)?.checked_add(leap.checked_mul(wide + 4)?)?.checked_add(is_std)?.checked_add(is_ut)
    }
}

fn header(bytes: &[u8]) -> Option<(Counts, &[u8])> {
    let (header, rest) = bytes.split_at_checked(44)?;
    let rest = header.starts_with(b"TZif").then_some(rest)?;
    let count = |i: usize| {
        let bytes: [u8; 4] = header[20 + 4 * i..24 + 4 * i].try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    };
    let others = [count(0)?, count(1)?, count(2)?, count(5)?];
    Some((Counts { times: count(3)?, kinds: count(4)?, others }, rest))
}

/// A rule of POSIX for all years, such as `CET-1CEST,M3.5.0,M10.5.0/3`.
///
/// Reference: <https://pubs.opengroup.org/onlinepubs/9699919799/basedefs/V1_chap08.html>
#[derive(Debug, PartialEq)]
struct Rule {
    /// Seconds ahead of UTC.
    standard: i64,
    summer: Option<Summer>,
}

#[derive(Debug, PartialEq)]
struct Summer {
    offset: i64,
    /// When it begins, in standard time, and when it ends, in summer time: a day and the seconds after its midnight.
    begins: (Day, i64),
    ends: (Day, i64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Day {
    /// Of the year from 1, without 29 February.
    Julian(i64),
    /// Of the year from 0.
    Of(i64),
    /// Month, week (5 is the last), day of the week (0 is Sunday).
    Week(i64, i64, i64),
}

impl Rule {
    fn parse(text: &str) -> Option<Self> {
        let (mut names, mut rest) = (0, text);
        let mut name = |text: &mut &str| {
            let end = match text.strip_prefix('<') {
                Some(inner) => inner.find('>')? + 2,
                None => text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len()),
            };
            names += 1;
            *text = text.get(end..).filter(|_| end >= 3)?;
            Some(())
        };
        name(&mut rest)?;
        let (west, after) = seconds(rest)?;
        let standard = -west;
        if after.is_empty() {
            return Some(Self { standard, summer: None });
        }
        rest = after;
        name(&mut rest)?;
        let (offset, rest) = match rest.chars().next() {
            None | Some(',') => (standard + 3600, rest),
            Some(_) => seconds(rest).map(|(west, rest)| (-west, rest))?,
        };
        // Without days, those of the United States, as in the C library.
        let days = if rest.is_empty() { ",M3.2.0,M11.1.0" } else { rest };
        let (begins, ends) = days.strip_prefix(',')?.split_once(',')?;
        let day = |text: &str| {
            let (day, time) = text.split_once('/').map_or((text, None), |(day, time)| (day, Some(time)));
            let number = |text: &str| text.parse::<i64>().ok().filter(|n| (0..=366).contains(n));
            let day = if let Some(day) = day.strip_prefix('J') {
                Day::Julian(number(day)?)
            } else if let Some(day) = day.strip_prefix('M') {
                let parts: Vec<i64> = day.split('.').map(number).collect::<Option<_>>()?;
                let [month, week, day] = parts[..] else { return None };
                Day::Week(month, week, day)
            } else {
                Day::Of(number(day)?)
            };
            let time = match time {
                None => 7200,
                Some(time) => seconds(time).filter(|(_, rest)| rest.is_empty())?.0,
            };
            Some((day, time))
        };
        Some(Self { standard, summer: Some(Summer { offset, begins: day(begins)?, ends: day(ends)? }) })
    }

    fn offset(&self, seconds: i64) -> i64 {
        let Some(summer) = &self.summer else { return self.standard };
        let year = civil((seconds + self.standard).div_euclid(86_400)).0;
        let at = |(day, time): (Day, i64), offset: i64| day.since_1970(year) * 86_400 + time - offset;
        let (begins, ends) = (at(summer.begins, self.standard), at(summer.ends, summer.offset));
        let is_summer = if begins <= ends {
            (begins..ends).contains(&seconds)
        } else {
            // South of the equator the year begins in summer.
            !(ends..begins).contains(&seconds)
        };
        if is_summer { summer.offset } else { self.standard }
    }
}

/// Reads `[+-]hh[:mm[:ss]]`, as seconds.
fn seconds(text: &str) -> Option<(i64, &str)> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != ':').unwrap_or(text.len());
    let (time, rest) = text.split_at(end);
    let mut total = 0;
    for (part, unit) in time.split(':').zip([3600, 60, 1]) {
        total += part.parse::<i64>().ok().filter(|n| *n < 168)? * unit;
    }
    Some((sign * total, rest))
}

impl Day {
    /// The day in `year`, in days since 1970.
    fn since_1970(self, year: i64) -> i64 {
        let first = days_from_civil(year, 1, 1);
        match self {
            Self::Julian(day) => first + day - 1 + i64::from(day >= 60 && is_leap(year)),
            Self::Of(day) => first + day,
            Self::Week(month, week, day) => {
                let month_begins = days_from_civil(year, month, 1);
                let (next_year, next_month) = if month >= 12 { (year + 1, 1) } else { (year, month + 1) };
                let length = days_from_civil(next_year, next_month, 1) - month_begins;
                let first = (day - (month_begins + 4)).rem_euclid(7);
                let mut at = first + 7 * (week - 1);
                while at >= length {
                    at -= 7;
                }
                month_begins + at
            }
        }
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Days since 1970 of a date. Years begin in March here, so that the leap day is the last day of the year.
///
/// Source: Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html#days_from_civil>
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of a number of days since 1970.
///
/// Source: Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Formats a local time, in seconds since 1970 by the clock on the wall, like Python's `strftime` on glibc, in English.
/// Unknown conversions are kept as they are. The zone has no name: Python's time of day here has none either.
pub(super) fn strftime(format: &str, seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let hour_12 = (hour + 11) % 12 + 1;
    let weekday = (days + 4).rem_euclid(7);
    let of_year = days - days_from_civil(year, 1, 1);
    let month_name = MONTHS[(month - 1) as usize % 12];
    let day_name = DAYS[weekday as usize % 7];
    let (iso_year, iso_week) = iso_week(year, of_year, weekday);

    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let spec = &rest[at..];
        // glibc: - no padding, _ spaces, 0 zeros, ^ capitals, # the other case.
        let flag = spec[1..].chars().next().filter(|c| matches!(c, '-' | '_' | '0' | '^' | '#'));
        let letter_at = 1 + flag.map_or(0, char::len_utf8);
        let Some(letter) = spec[letter_at..].chars().next() else {
            out.push_str(spec);
            rest = "";
            break;
        };
        rest = &spec[letter_at + letter.len_utf8()..];
        // A number, its width, and what fills it.
        let number = |n: i64, width: usize, fill: char| {
            let fill = match flag {
                Some('-') => return n.to_string(),
                Some('_') => ' ',
                Some('0') => '0',
                _ => fill,
            };
            if fill == '0' { format!("{n:0width$}") } else { format!("{n:width$}") }
        };
        let text = match letter {
            'Y' => number(year, 1, '0'),
            'C' => number(year.div_euclid(100), 2, '0'),
            'y' => number(year.rem_euclid(100), 2, '0'),
            'G' => number(iso_year, 1, '0'),
            'g' => number(iso_year.rem_euclid(100), 2, '0'),
            'm' => number(month, 2, '0'),
            'd' => number(day, 2, '0'),
            'e' => number(day, 2, ' '),
            'j' => number(of_year + 1, 3, '0'),
            'H' => number(hour, 2, '0'),
            'k' => number(hour, 2, ' '),
            'I' => number(hour_12, 2, '0'),
            'l' => number(hour_12, 2, ' '),
            'M' => number(minute, 2, '0'),
            'S' => number(second, 2, '0'),
            'f' => "000000".to_string(),
            'u' => number((weekday + 6) % 7 + 1, 1, '0'),
            'w' => number(weekday, 1, '0'),
            'U' => number((of_year + 7 - weekday) / 7, 2, '0'),
            'W' => number((of_year + 7 - (weekday + 6) % 7) / 7, 2, '0'),
            'V' => number(iso_week, 2, '0'),
            'B' => month_name.to_string(),
            'b' | 'h' => month_name[..3].to_string(),
            'A' => day_name.to_string(),
            'a' => day_name[..3].to_string(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
            'P' => if hour < 12 { "am" } else { "pm" }.to_string(),
            'F' => strftime("%Y-%m-%d", seconds),
            'T' | 'X' => strftime("%H:%M:%S", seconds),
            'R' => strftime("%H:%M", seconds),
            'D' | 'x' => strftime("%m/%d/%y", seconds),
            'r' => strftime("%I:%M:%S %p", seconds),
            'c' => strftime("%a %b %e %H:%M:%S %Y", seconds),
            'n' => "\n".to_string(),
            't' => "\t".to_string(),
            'z' | 'Z' => String::new(),
            '%' => "%".to_string(),
            _ => spec[..letter_at + letter.len_utf8()].to_string(),
        };
        out.push_str(&match flag {
            Some('^') => text.to_uppercase(),
            Some('#') if matches!(letter, 'p' | 'Z') => text.to_lowercase(),
            Some('#') => text.to_uppercase(),
            _ => text,
        });
    }
    out + rest
}

/// Year and week of ISO 8601, for day `of_year` from 0 and `weekday` from Sunday.
fn iso_week(year: i64, of_year: i64, weekday: i64) -> (i64, i64) {
    let monday_based = (weekday + 6) % 7;
    // The week belongs to the year of its Thursday.
    let thursday = of_year - monday_based + 3;
    let length = |year: i64| 365 + i64::from(is_leap(year));
    if thursday < 0 {
        (year - 1, (thursday + length(year - 1)) / 7 + 1)
    } else if thursday >= length(year) {
        (year + 1, 1)
    } else {
        (year, thursday / 7 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Checked with `date -u -d @N`, GNU coreutils 9.1, and with Python 3.11.
        assert_eq!(strftime("%d %b %Y, %A %H:%M:%S %j %q %", 0), "01 Jan 1970, Thursday 00:00:00 001 %q %");
        assert_eq!(
            strftime("%F %T %a %-d %e %y %B %I %p", 951_827_696),
            "2000-02-29 12:34:56 Tue 29 29 00 February 12 PM"
        );
        assert_eq!(strftime("%F", 4_107_542_399), "2100-02-28");
        assert_eq!(strftime("%F", 4_107_542_400), "2100-03-01");
        assert_eq!(strftime("%-m/%-d %k %l %-I %P %^a %#p|%z%Z|", 1_704_092_645), "1/1  7  7 7 am MON am||");
        assert_eq!(
            strftime("%G-W%V-%u %U %W %w %C %D %R %r", 1_609_459_200),
            "2020-W53-5 00 00 5 20 01/01/21 00:00 12:00:00 AM"
        );
        assert_eq!(strftime("%c", 1_795_794_075), "Fri Nov 27 15:41:15 2026");
        assert_eq!(strftime("100%", 0), "100%");
    }

    #[test]
    fn local_time_follows_the_rules_of_its_zone() {
        // Checked with Python 3.11's `zoneinfo` (tzdata 2025b): seconds since 1970, and how far ahead the clocks are.
        for (rule, times) in [
            ("UTC0", &[(1_795_794_075, 0)][..]),
            ("CST-8", &[(1_795_794_075, 28_800)]),
            ("<+0545>-5:45", &[(1_795_794_075, 20_700)]),
            (
                "CET-1CEST,M3.5.0,M10.5.0/3",
                &[(1_774_745_999, 3600), (1_774_746_000, 7200), (1_792_889_999, 7200), (1_792_890_000, 3600)],
            ),
            ("EST5EDT,M3.2.0,M11.1.0", &[(1_772_953_199, -18_000), (1_772_953_200, -14_400), (1_793_512_800, -18_000)]),
            (
                "AEST-10AEDT,M10.1.0,M4.1.0/3",
                &[(1_767_225_600, 39_600), (1_780_272_000, 36_000), (1_795_794_075, 39_600)],
            ),
        ] {
            for (seconds, wanted) in times {
                assert_eq!(Rule::parse(rule).map(|rule| rule.offset(*seconds)), Some(*wanted), "{rule} at {seconds}");
                assert_eq!(local(Some(rule), *seconds), Some(*wanted), "{rule} at {seconds}");
            }
        }
        for broken in [
            "",
            "X",
            "CET",
            "CET-",
            "CET-1CEST,M3",
            "CET-1CEST,M3.5.0",
            "../../etc/passwd",
            "<",
            "A-999999999999999999999",
        ] {
            assert_eq!(Rule::parse(broken), None, "{broken}");
        }
        assert_eq!(local(Some(""), 0), Some(0));
    }

    /// A file with two changes, in 2000 and 2001, and a rule for later times.
    fn file(rule: &str) -> Vec<u8> {
        let header = |times: u32, kinds: u32, chars: u32| {
            let counts = [0, 0, 0, times, kinds, chars].map(u32::to_be_bytes).concat();
            [b"TZif2".as_slice(), &[0; 15], &counts].concat()
        };
        let times = [946_684_800_i64, 978_307_200].map(i64::to_be_bytes).concat();
        let kinds = [0_i32, 3600, 7200].map(|offset| [&offset.to_be_bytes()[..], &[0, 0]].concat()).concat();
        [
            header(0, 1, 1),
            vec![0; 7],
            header(2, 3, 1),
            times,
            vec![1, 2],
            kinds,
            vec![0],
            format!("\n{rule}\n").into_bytes(),
        ]
        .concat()
    }

    #[test]
    fn a_file_of_a_zone_is_read_and_a_broken_one_does_no_harm() {
        let offsets =
            |bytes: &[u8]| [0, 946_684_800, 978_307_199, 978_307_200, 1_774_746_000].map(|t| offset_of_file(bytes, t));
        let whole = file("CET-1CEST,M3.5.0,M10.5.0/3");
        assert_eq!(offsets(&whole), [Some(0), Some(3600), Some(3600), Some(3600), Some(7200)]);
        assert_eq!(offsets(&file("")), [Some(0), Some(3600), Some(3600), Some(7200), Some(7200)]);
        for n in 0..whole.len() {
            offsets(&whole[..n]);
            let mut other = whole.clone();
            other[n] ^= 0xff;
            offsets(&other);
        }
    }
}
