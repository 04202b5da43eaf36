//! Saves the measurements of a file to disk, together with what they depend on, so that an interrupted comparison can
//! continue.
//!
//! ```text
//! {"made_of":{...},"file":{...},"changed":[...],"weights":{...},"scored":N} \n  numbers            BLAKE3 of all before
//! JSON in one line, with 0 in place of each number                              f64, little-endian   32 bytes
//! ```
//!
//! JSON has no infinite numbers, and its readers may round. So the numbers follow in binary: first those of the JSON,
//! in its order, then the five columns.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::measure::Columns;
use super::MadeOf;
use crate::base::atomic_file::AtomicFile;
use crate::report::results::{Change, File, WeightError, WeightErrors};

const HASH_BYTES: usize = 32;

/// The measurements of a file.
#[derive(Debug)]
pub struct Kept {
    /// The file. It may have been removed.
    pub file: File,
    /// The tokens whose predictions changed most.
    pub changed: Vec<Change>,
    /// How its weights differ from the source's.
    pub weights: Option<WeightErrors>,
    /// The measures of each scored token; empty if no texts were read.
    pub columns: Columns,
}

/// Why measurements could not be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no file.
    Absent,
    /// The measurements belong to something else. Says what differs.
    Other(&'static str),
    /// The file is damaged.
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Head {
    made_of: MadeOf,
    file: File,
    changed: Vec<Change>,
    weights: Option<WeightErrors>,
    scored: usize,
}

impl Head {
    /// Calls `each` with every number, always in the same order.
    fn numbers(&mut self, each: &mut dyn FnMut(&mut f64)) {
        fn weight(error: &mut WeightError, each: &mut dyn FnMut(&mut f64)) {
            let WeightError { rmse, relative, cosine, weighted } = error;
            [rmse, relative, cosine].into_iter().chain(weighted.as_mut()).for_each(each);
        }
        self.file.bits_per_weight.iter_mut().for_each(&mut *each);
        for change in &mut self.changed {
            each(&mut change.kld);
            let guesses = change.reference.iter_mut().chain(&mut change.candidate).chain([&mut change.right]);
            for guess in guesses {
                guess.reference.iter_mut().chain([&mut guess.candidate]).for_each(&mut *each);
            }
        }
        let Some(weights) = &mut self.weights else { return };
        weights.overall.iter_mut().for_each(|error| weight(error, each));
        weights.roles.iter_mut().for_each(|role| weight(&mut role.error, each));
        for tensor in &mut weights.tensors {
            weight(&mut tensor.error, each);
            each(&mut tensor.worst_row_relative);
        }
    }
}

/// Writes measurements.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, made_of: &MadeOf, kept: &Kept) -> io::Result<()> {
    let Kept { file, changed, weights, columns } = kept;
    let scored = columns.kld.len();
    let mut head = Head {
        made_of: made_of.clone(),
        file: file.clone(),
        changed: changed.clone(),
        weights: weights.clone(),
        scored,
    };
    let mut numbers: Vec<f64> = Vec::with_capacity(5 * scored);
    head.numbers(&mut |number| numbers.push(std::mem::take(number)));
    for column in [&columns.kld, &columns.nll, &columns.dp, &columns.same_top, &columns.top5] {
        numbers.extend(column);
    }
    let mut bytes = serde_json::to_vec(&head)?;
    bytes.push(b'\n');
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    let hash = blake3::hash(&bytes);
    let mut out = AtomicFile::create(path)?;
    out.write_all(&bytes)?;
    out.write_all(hash.as_bytes())?;
    out.finish(true)
}

/// Reads the measurements of `made_of`.
///
/// # Errors
/// If there is no file, if it belongs to something else, or if it is damaged or cannot be read.
pub fn read(path: &Path, made_of: &MadeOf) -> Result<Kept, Missing> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Missing::Absent),
        bytes => bytes.map_err(|_| Missing::Damaged)?,
    };
    let end = bytes.len().checked_sub(HASH_BYTES).ok_or(Missing::Damaged)?;
    let (content, hash) = bytes.split_at(end);
    if blake3::hash(content).as_bytes() != hash {
        return Err(Missing::Damaged);
    }
    parse(content).ok_or(Missing::Damaged).and_then(|(found, kept)| match found.difference(made_of) {
        Some(what) => Err(Missing::Other(what)),
        None => Ok(kept),
    })
}

fn parse(content: &[u8]) -> Option<(MadeOf, Kept)> {
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let mut head: Head = serde_json::from_slice(&content[..end]).ok()?;
    let (numbers, rest) = content[end + 1..].as_chunks::<8>();
    let mut numbers = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes));
    let mut is_whole = rest.is_empty();
    head.numbers(&mut |number| match numbers.next() {
        Some(found) => *number = found,
        None => is_whole = false,
    });
    if !is_whole || Some(numbers.len()) != head.scored.checked_mul(5) {
        return None;
    }
    let mut column = || numbers.by_ref().take(head.scored).collect::<Vec<f64>>();
    let columns = Columns { kld: column(), nll: column(), dp: column(), same_top: column(), top5: column() };
    let Head { made_of, file, changed, weights, .. } = head;
    Some((made_of, Kept { file, changed, weights, columns }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn kept() -> Kept {
        let mut candidate = sample::results(1).candidates.remove(0);
        candidate.changed[0].kld = f64::INFINITY;
        let column = |scale: f64| (0..700).map(|i| scale / f64::from(i)).collect::<Vec<f64>>();
        let columns =
            Columns { kld: column(1.0), nll: column(0.1), dp: column(-0.3), same_top: column(0.0), top5: column(0.7) };
        let Candidate { file, changed, weights, .. } = candidate;
        Kept { file, changed, weights, columns }
    }

    use crate::report::results::Candidate;

    fn made_of(recipe: &str) -> MadeOf {
        MadeOf { nibble: "0".into(), source: "ab".into(), recipe: Some(recipe.into()), ..MadeOf::default() }
    }

    #[test]
    fn what_was_kept_comes_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (dir.path().join("a.measured"), kept());
        assert_eq!(read(&path, &made_of("q4")).unwrap_err(), Missing::Absent);
        write(&path, &made_of("q4"), &kept).unwrap();
        let found = read(&path, &made_of("q4")).unwrap();
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (a, b) in [(&found.columns.kld, &kept.columns.kld), (&found.columns.top5, &kept.columns.top5)] {
            assert_eq!(bits(a), bits(b));
        }
        assert_eq!((found.changed, found.weights), (kept.changed, kept.weights));
        assert_eq!(found.file.bits_per_weight, kept.file.bits_per_weight);
    }

    #[test]
    fn what_belongs_to_something_else_or_is_damaged_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.measured");
        write(&path, &made_of("q4"), &kept()).unwrap();
        assert_eq!(read(&path, &made_of("q5")).unwrap_err(), Missing::Other("another recipe"));
        let whole = fs::read(&path).unwrap();
        for cut in [0, 10, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path, &made_of("q4")).unwrap_err(), Missing::Damaged);
        }
        let mut changed = whole;
        changed[40] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_eq!(read(&path, &made_of("q4")).unwrap_err(), Missing::Damaged);
    }
}
