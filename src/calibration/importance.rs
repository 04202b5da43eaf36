//! Files of importance: how large the inputs of each matrix are, channel by channel, over some texts.
//!
//! nibble writes llama.cpp's GGUF form, reads both of its forms, and adds several files up. [`File::importance`] gives
//! what a conversion weighs by: the mean square of each column's input, Σx² / n.
//!
//! ```text
//!  GGUF (llama-imatrix since July 2025)                 .dat (before that), little-endian
//!  general.type         "imatrix"                       i32  number of entries
//!  imatrix.datasets     names of the texts              each: i32 bytes, name, i32 windows, i32 values,
//!  imatrix.chunk_count  u32, windows                          f32 x values: Σx² / n · windows
//!  imatrix.chunk_size   u32, tokens a window            may follow: i32 windows, i32 bytes, name of the text
//!  NAME.in_sum2         f32 [columns, matrices]: Σx²
//!  NAME.counts          f32 [1, matrices]: n
//! ```
//!
//! nibble adds keys that llama.cpp passes over: `nibble.version`, and about each of `imatrix.datasets` the arrays
//! `nibble.calibration.blake3`, `.weights`, `.tokens` and `.windows`. There is no time, no host and no folder in it: the
//! same texts and model give the same bytes on the same kind of machine.
//!
//! Source: llama.cpp's `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use crate::base::mmap::Mapping;
use crate::convert::Importance;
use crate::gguf::{self, Array, DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorInfo, TensorType, Value};

/// Tokens in a window of a `.dat` file, which does not say: llama-imatrix's default. It matters only where such a file
/// is added to others.
pub const DAT_WINDOW: u32 = 512;

const TYPE: &str = "general.type";
const IMATRIX: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const VERSION: &str = "nibble.version";
const BLAKE3: &str = "nibble.calibration.blake3";
const WEIGHTS: &str = "nibble.calibration.weights";
const TOKENS: &str = "nibble.calibration.tokens";
const WINDOWS: &str = "nibble.calibration.windows";
const SUMS_SUFFIX: &str = ".in_sum2";
const COUNTS_SUFFIX: &str = ".counts";

/// Why a file of importance cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that begins as GGUF and is no sound GGUF file.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// Something is wrong with the file.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
    /// Two files, or a file and a model, that do not go together.
    #[error("{}: {problem}; was it made with another model?", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: Problem,
    },
    /// Something that cannot be written as such a file.
    #[error("the importance cannot be written: {0}")]
    Layout(#[from] gguf::LayoutError),
    /// A sum beyond 32-bit floats.
    #[error("the sum of squares of '{matrix}' at column {column} is {value}, more than a file of importance can hold")]
    TooLarge {
        /// The matrix.
        matrix: String,
        /// Its column, counted from 0.
        column: usize,
        /// The sum.
        value: f64,
    },
}

/// What is wrong with a file of importance.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum Problem {
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    #[error("is no file of importance: wanted one that 'nibble calibrate' or llama-imatrix wrote")]
    NotImportance,
    #[error("is a {found}, wanted a file of importance: 'nibble calibrate' makes one of a model and some texts")]
    OtherGguf { found: String },
    #[error("is split over several files, as no importance is")]
    Split,
    #[error("its tensor '{tensor}' is {found}, wanted {wanted}")]
    Type { tensor: String, found: TensorType, wanted: TensorType },
    #[error("it has no tensor '{tensor}', which belongs to '{other}': the file is damaged")]
    Missing { tensor: String, other: String },
    #[error("it has {sums} sums and {counts} counts for '{matrix}', which do not go together: the file is damaged")]
    Shape { matrix: String, sums: usize, counts: usize },
    #[error("'{matrix}' has {value} at {place}, where only numbers from 0 up make sense: the file is damaged")]
    Value { matrix: String, place: String, value: f64 },
    #[error("it ends at byte {at}, within {what}: it is cut short, or is no file of importance")]
    Truncated { at: usize, what: String },
    #[error("{what} at byte {at} is {found}, wanted {wanted}: the file is damaged, or is no file of importance")]
    Number { at: usize, what: String, found: i64, wanted: String },
    #[error("the name of entry {entry} is not UTF-8: the file is damaged, or is no file of importance")]
    Name { entry: usize },
    #[error("'{matrix}' comes twice")]
    Twice { matrix: String },
    #[error("{left} bytes follow its end at byte {at}: the file is damaged, or is no file of importance")]
    TooLong { at: usize, left: usize },
    #[error(
        "'{matrix}' has importance for {n} experts; nibble weighs by the importance of plain matrices only: convert this \
         model without importance"
    )]
    Experts { matrix: String, n: usize },
    #[error("'{matrix}' has {found} columns here, and {wanted} in {of}")]
    Columns { matrix: String, found: usize, wanted: usize, of: String },
    #[error("it has importance for '{matrix}', which the model does not have")]
    UnknownMatrix { matrix: String },
}

/// Sums over the inputs of a matrix, or of several of one shape (the experts of a mixture).
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Σx² of each column, a matrix after the other.
    pub sums: Vec<f64>,
    /// Of each matrix, how many inputs were summed: tokens, each times the weight of its text.
    pub counts: Vec<f64>,
}

impl Matrix {
    /// A matrix of so many columns that has seen nothing.
    pub fn new(columns: usize) -> Self {
        Self { sums: vec![0.0; columns], counts: vec![0.0] }
    }

    /// Columns of each of its matrices.
    pub fn columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Columns that never had an input other than zero.
    pub fn unseen(&self) -> usize {
        self.sums.iter().filter(|sum| **sum == 0.0).count()
    }

    /// Adds what another one of the same sizes has summed.
    pub(crate) fn add(&mut self, other: &Self, weight: f64) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(to, x)| *to += x * weight);
        self.counts.iter_mut().zip(&other.counts).for_each(|(to, x)| *to += x * weight);
    }
}

/// A text that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Its file's name, without folders where nibble wrote it.
    pub name: String,
    /// BLAKE3 of the text, hexadecimal; empty where it is not known.
    pub blake3: String,
    /// How often each of its tokens counts.
    pub weight: f64,
    /// Tokens in it; 0 where it is not known.
    pub tokens: u64,
    /// Windows that were read; 0 where it is not known.
    pub windows: u64,
}

/// What was summed, over which texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// By the matrix's GGUF name.
    pub matrices: BTreeMap<String, Matrix>,
    /// The texts, in the order they were read.
    pub texts: Vec<Text>,
    /// Windows of all texts.
    pub windows: u64,
    /// Tokens in a window; 0 where it is not known.
    pub window: u32,
}

impl Sums {
    /// Adds what another file has summed, each of its inputs counting `weight` times. `path` and `of` are what errors
    /// call that file and this.
    ///
    /// # Errors
    /// Where a matrix has other sizes there; nothing is added then.
    pub fn add(&mut self, other: &Self, weight: f64, path: &Path, of: &str) -> Result<(), Error> {
        for (name, matrix) in &other.matrices {
            let Some(here) = self.matrices.get(name) else { continue };
            let foreign = |problem| Error::Foreign { path: path.to_path_buf(), problem };
            if here.columns() != matrix.columns() {
                let (found, wanted) = (matrix.columns(), here.columns());
                return Err(foreign(Problem::Columns { matrix: shown(name), found, wanted, of: of.to_string() }));
            }
            if here.counts.len() != matrix.counts.len() {
                return Err(foreign(Problem::Experts { matrix: shown(name), n: matrix.counts.len() }));
            }
        }
        for (name, matrix) in &other.matrices {
            let empty = || Matrix { sums: vec![0.0; matrix.sums.len()], counts: vec![0.0; matrix.counts.len()] };
            self.matrices.entry(name.clone()).or_insert_with(empty).add(matrix, weight);
        }
        self.texts.extend(other.texts.iter().map(|text| Text { weight: text.weight * weight, ..text.clone() }));
        self.windows = self.windows.saturating_add(other.windows);
        if self.window == 0 {
            self.window = other.window;
        }
        Ok(())
    }

    /// Writes the file: the same bytes for the same sums.
    ///
    /// # Errors
    /// Where a name or a sum cannot be written in this format.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        for (name, matrix) in &self.matrices {
            if let Some(column) = matrix.sums.iter().position(|sum| !(*sum as f32).is_finite()) {
                return Err(Error::TooLarge { matrix: name.clone(), column, value: matrix.sums[column] });
            }
        }
        let mut metadata = Metadata::new();
        metadata.set(TYPE, IMATRIX);
        metadata.set(DATASETS, self.texts.iter().map(|text| text.name.clone()).collect::<Vec<_>>());
        metadata.set(CHUNK_COUNT, u32::try_from(self.windows).unwrap_or(u32::MAX));
        metadata.set(CHUNK_SIZE, self.window);
        metadata.set(VERSION, env!("CARGO_PKG_VERSION"));
        metadata.set(BLAKE3, self.texts.iter().map(|text| text.blake3.clone()).collect::<Vec<_>>());
        metadata.set(WEIGHTS, self.texts.iter().map(|text| text.weight).collect::<Vec<_>>());
        metadata.set(TOKENS, self.texts.iter().map(|text| text.tokens).collect::<Vec<_>>());
        metadata.set(WINDOWS, self.texts.iter().map(|text| text.windows).collect::<Vec<_>>());
        self.write(&metadata, TensorType::F32)
    }

    /// Writes the sums with this metadata, as 32-bit or 64-bit floats.
    pub(crate) fn write(&self, metadata: &Metadata, ty: TensorType) -> Result<Vec<u8>, Error> {
        let (mut infos, mut numbers) = (vec![], vec![]);
        for (name, Matrix { sums, counts }) in &self.matrices {
            let n = counts.len() as u64;
            let columns = (sums.len() / counts.len().max(1)) as u64;
            infos.push(TensorInfo { name: format!("{name}{SUMS_SUFFIX}"), dims: vec![columns, n], ty });
            infos.push(TensorInfo { name: format!("{name}{COUNTS_SUFFIX}"), dims: vec![1, n], ty });
            numbers.extend([sums, counts]);
        }
        let layout = Layout::new(metadata, infos, DEFAULT_ALIGNMENT, None)?;
        let mut bytes = Vec::new();
        let data = |index: usize| -> Vec<u8> {
            match ty {
                TensorType::F32 => numbers[index].iter().flat_map(|x| (*x as f32).to_le_bytes()).collect(),
                _ => numbers[index].iter().flat_map(|x| x.to_le_bytes()).collect(),
            }
        };
        layout.write_part(0, &mut bytes, data).expect("memory takes all, and every tensor has the size it was given");
        Ok(bytes)
    }
}

/// A file of importance, read.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// BLAKE3 of its bytes.
    pub blake3: blake3::Hash,
    /// What it holds.
    pub sums: Sums,
}

impl File {
    /// Reads the file at `path`, in either form, as its content says.
    ///
    /// # Errors
    /// Where it cannot be opened, is no file of importance, or is a damaged one.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let problem = |problem| Error::File { path: path.to_path_buf(), problem };
        let map = Mapping::open(path).map_err(|error| problem(Problem::Open(error)))?;
        let sums = if map.bytes().starts_with(b"GGUF") {
            let gguf = Gguf::open(path)?;
            check_kind(&gguf).and_then(|()| of_gguf(&gguf, TensorType::F32)).map_err(problem)?
        } else {
            of_dat(map.bytes()).map_err(problem)?
        };
        Ok(Self { path: path.to_path_buf(), blake3: blake3::hash(map.bytes()), sums })
    }

    /// The file's name, without folders.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What a conversion weighs by. A matrix that has seen nothing is left out, and is quantized as without importance;
    /// llama.cpp would weigh all of its columns alike.
    ///
    /// # Errors
    /// Where it is that of a mixture of experts, which nibble does not quantize by importance.
    pub fn importance(&self) -> Result<Importance, Error> {
        let mut values = HashMap::new();
        for (name, matrix) in &self.sums.matrices {
            let &[count] = matrix.counts.as_slice() else {
                let problem = Problem::Experts { matrix: shown(name), n: matrix.counts.len() };
                return Err(Error::File { path: self.path.clone(), problem });
            };
            if count > 0.0 {
                // The quotient of two 32-bit floats, rounded once: the same number as llama.cpp's.
                values.insert(name.clone(), matrix.sums.iter().map(|sum| (sum / count) as f32).collect());
            }
        }
        Ok(Importance { name: self.name(), blake3: self.blake3, values })
    }

    /// Holds it to a model's matrices: their names and columns.
    ///
    /// # Errors
    /// Where it has a matrix that the model does not have, or has it with other columns.
    pub fn check(&self, columns: &HashMap<String, usize>) -> Result<(), Error> {
        for (name, matrix) in &self.sums.matrices {
            let matrix_name = || shown(name);
            let problem = match columns.get(name) {
                None => Problem::UnknownMatrix { matrix: matrix_name() },
                Some(&wanted) if wanted != matrix.columns() => {
                    let (found, of) = (matrix.columns(), "the model".to_string());
                    Problem::Columns { matrix: matrix_name(), found, wanted, of }
                }
                Some(_) => continue,
            };
            return Err(Error::Foreign { path: self.path.clone(), problem });
        }
        Ok(())
    }
}

/// Refuses GGUF files of other things.
fn check_kind(gguf: &Gguf) -> Result<(), Problem> {
    if gguf.paths().len() > 1 {
        return Err(Problem::Split);
    }
    let has_sums = gguf.tensors().iter().any(|tensor| tensor.name.ends_with(SUMS_SUFFIX));
    match gguf.metadata().str(TYPE) {
        Some(IMATRIX) => Ok(()),
        Some(other) => Err(Problem::OtherGguf { found: shown(other) }),
        None if has_sums => Ok(()),
        None => Err(Problem::OtherGguf { found: "model".to_string() }),
    }
}

/// The sums in a GGUF file, whose tensors have the type `wanted`.
pub(crate) fn of_gguf(gguf: &Gguf, wanted: TensorType) -> Result<Sums, Problem> {
    let mut matrices = BTreeMap::new();
    for tensor in gguf.tensors() {
        if let Some(name) = tensor.name.strip_suffix(COUNTS_SUFFIX) {
            let other = format!("{name}{SUMS_SUFFIX}");
            if gguf.index_of(&other).is_none() {
                return Err(Problem::Missing { tensor: shown(&other), other: shown(&tensor.name) });
            }
        }
        let Some(name) = tensor.name.strip_suffix(SUMS_SUFFIX) else { continue };
        let sums = numbers(gguf, &tensor.name, &tensor.name, wanted)?;
        let counts = numbers(gguf, &format!("{name}{COUNTS_SUFFIX}"), &tensor.name, wanted)?;
        let matrix = checked(name, sums, counts)?;
        matrices.insert(name.to_string(), matrix);
    }
    if matrices.is_empty() {
        return Err(Problem::NotImportance);
    }
    let metadata = gguf.metadata();
    Ok(Sums {
        matrices,
        texts: texts(metadata),
        windows: metadata.u64(CHUNK_COUNT).unwrap_or(0),
        window: metadata.u64(CHUNK_SIZE).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
    })
}

/// The numbers of a tensor. `other` is the tensor that it belongs to.
fn numbers(gguf: &Gguf, name: &str, other: &str, wanted: TensorType) -> Result<Vec<f64>, Problem> {
    let missing = || Problem::Missing { tensor: shown(name), other: shown(other) };
    let index = gguf.index_of(name).ok_or_else(missing)?;
    let found = gguf.tensors()[index].ty;
    if found != wanted {
        return Err(Problem::Type { tensor: shown(name), found, wanted });
    }
    let data = gguf.data(index);
    Ok(match wanted {
        TensorType::F64 => data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        _ => data.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
    })
}

/// A matrix of numbers that make sense.
fn checked(name: &str, sums: Vec<f64>, counts: Vec<f64>) -> Result<Matrix, Problem> {
    if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        return Err(Problem::Shape { matrix: shown(name), sums: sums.len(), counts: counts.len() });
    }
    let wrong = |x: &f64| !(x.is_finite() && *x >= 0.0);
    let value = |place: String, value: f64| Problem::Value { matrix: shown(name), place, value };
    if let Some(at) = counts.iter().position(wrong) {
        return Err(value(if counts.len() == 1 { "its count".into() } else { format!("count {at}") }, counts[at]));
    }
    if let Some(at) = sums.iter().position(wrong) {
        return Err(value(format!("column {at}"), sums[at]));
    }
    Ok(Matrix { sums, counts })
}

fn texts(metadata: &Metadata) -> Vec<Text> {
    let array = |key: &str| metadata.get(key).and_then(Value::as_array);
    let names = array(DATASETS).and_then(Array::as_strings).unwrap_or_default();
    let hashes = array(BLAKE3).and_then(Array::as_strings).unwrap_or_default();
    let number = |key: &str, index: usize| array(key).and_then(|array| array.get(index));
    let count = |key: &str, index: usize| number(key, index).and_then(|value| value.as_u64()).unwrap_or(0);
    let text = |(index, name): (usize, &String)| Text {
        name: name.clone(),
        blake3: hashes.get(index).cloned().unwrap_or_default(),
        weight: number(WEIGHTS, index).and_then(|value| value.as_f64()).unwrap_or(1.0),
        tokens: count(TOKENS, index),
        windows: count(WINDOWS, index),
    };
    names.iter().enumerate().map(text).collect()
}

/// Reads a `.dat` file.
fn of_dat(bytes: &[u8]) -> Result<Sums, Problem> {
    let mut dat = Dat { bytes, at: 0 };
    // An entry has three numbers, a value and a name of a byte at least. What does not begin so is something else.
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
        let value_bytes = n_values.saturating_mul(4);
        let values = dat.take(value_bytes, || what("the values"))?.as_chunks().0;
        // A value is the mean times the windows: the sum, were a window of one token.
        let inputs = windows as f64 * f64::from(DAT_WINDOW);
        let sums = values.iter().map(|value| f64::from(f32::from_le_bytes(*value)) * f64::from(DAT_WINDOW)).collect();
        let matrix = checked(&name, sums, vec![inputs])?;
        if matrices.insert(name.clone(), matrix).is_some() {
            return Err(Problem::Twice { matrix: shown(&name) });
        }
    }
    let mut sums = Sums { matrices, window: DAT_WINDOW, ..Sums::default() };
    if dat.is_at_end() {
        return Ok(sums);
    }
    sums.windows = dat.count("the number of windows", 0)? as u64;
    if dat.is_at_end() {
        return Ok(sums);
    }
    let length = dat.count("the length of the text's name", 0)?;
    let name = String::from_utf8_lossy(dat.take(length, || "the text's name".to_string())?).into_owned();
    if !name.is_empty() {
        sums.texts.push(Text { name, blake3: String::new(), weight: 1.0, tokens: 0, windows: sums.windows });
    }
    match dat.is_at_end() {
        true => Ok(sums),
        false => Err(Problem::TooLong { at: dat.at, left: bytes.len() - dat.at }),
    }
}

/// A `.dat` file, as far as it has been read.
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

/// A name from a file, fit for a message.
fn shown(name: &str) -> String {
    const MOST: usize = 100;
    match name.char_indices().nth(MOST) {
        None => name.to_string(),
        Some((end, _)) => format!("{}...", &name[..end]),
    }
}

#[cfg(test)]
mod tests;
