//! The older format of importance files, `.dat`. The parent module has a diagram of it.

use std::collections::BTreeMap;

use super::error::{Problem, shown};
use super::file::{Counts, Place};
use super::sums::{CalibrationText, Sums};

/// Assumed number of tokens in a window of a `.dat` file, which does not record it: llama-imatrix's default. It matters
/// only if such a file is added to others.
pub const DAT_WINDOW: u32 = 512;

/// Finds the matrices of a `.dat` file, and reads its other information.
pub(super) fn parse(bytes: &[u8]) -> Result<(BTreeMap<String, Place>, Sums), Problem> {
    let mut dat = Dat { bytes, at: 0 };
    // An entry has at least three numbers, a value and a name of one byte. A file that does not begin like this is
    // something else.
    const ENTRY_BYTES: usize = 17;
    let n_entries = dat.number(|| "the number of entries".to_string()).map_err(|_| Problem::NotImportance)?;
    let n_entries = usize::try_from(n_entries).unwrap_or(0);
    if n_entries == 0 || n_entries > bytes.len() / ENTRY_BYTES {
        return Err(Problem::NotImportance);
    }
    let mut matrices = BTreeMap::new();
    for entry in 0..n_entries {
        let what = |what: &str| format!("{what} of entry {entry}");
        let length = dat.count(&what("the length of the name"), 1)?;
        let name = dat.take(length, || what("the name"))?;
        let name = std::str::from_utf8(name).map_err(|_| Problem::Name { entry })?.to_string();
        let windows = dat.count(&what("the number of windows"), 0)?;
        let n_values = dat.count(&what("the number of values"), 1)?;
        let at = dat.at;
        dat.take(n_values.saturating_mul(4), || what("the values"))?;
        let place = Place { sums: at..dat.at, counts: Counts::Windows(windows) };
        if matrices.insert(name.clone(), place).is_some() {
            return Err(Problem::Twice { matrix: shown(&name) });
        }
    }
    let mut about = Sums { window: DAT_WINDOW, ..Sums::default() };
    if dat.is_at_end() {
        return Ok((matrices, about));
    }
    about.windows = dat.count("the number of windows", 0)? as u64;
    if dat.is_at_end() {
        return Ok((matrices, about));
    }
    let length = dat.count("the length of the text's name", 0)?;
    let name = String::from_utf8_lossy(dat.take(length, || "the text's name".to_string())?).into_owned();
    if !name.is_empty() {
        about.texts.push(CalibrationText {
            name,
            blake3: String::new(),
            weight: 1.0,
            tokens: 0,
            windows: about.windows,
        });
    }
    match dat.is_at_end() {
        true => Ok((matrices, about)),
        false => Err(Problem::TooLong { at: dat.at, left: bytes.len() - dat.at }),
    }
}

/// A `.dat` file that has been read up to some byte.
struct Dat<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Dat<'a> {
    fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, n: usize, what: impl FnOnce() -> String) -> Result<&'a [u8], Problem> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| Problem::Truncated { at: self.bytes.len(), what: what() })?;
        self.at += n;
        Ok(taken)
    }

    fn number(&mut self, what: impl FnOnce() -> String) -> Result<i32, Problem> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    /// A number from `least` up.
    fn count(&mut self, what: &str, least: i32) -> Result<usize, Problem> {
        let at = self.at;
        let found = self.number(|| what.to_string())?;
        if found < least {
            let (what, wanted) = (what.to_string(), format!("{least} or more"));
            return Err(Problem::Number { at, what, found: found.into(), wanted });
        }
        Ok(found.unsigned_abs() as usize)
    }
}
