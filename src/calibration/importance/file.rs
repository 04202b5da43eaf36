//! An importance file, which is memory-mapped, checked when it is opened, and read one matrix at a time.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::error::{Error, Problem, shown};
use super::sums::{CalibrationText, Matrix, Sums};
use super::{
    BLAKE3, CHUNK_COUNT, CHUNK_SIZE, COUNTS_SUFFIX, DATASETS, IMATRIX, Importance, SUMS_SUFFIX, TOKENS, TYPE, WEIGHTS,
    WINDOWS, dat,
};
use crate::base::mmap::Mapping;
use crate::gguf::{Array, Gguf, Metadata, TensorType, Value};

/// An importance file.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path.
    pub path: PathBuf,
    /// BLAKE3 of its bytes.
    pub blake3: blake3::Hash,
    contents: Arc<Contents>,
}

/// A mapped file, and the places of its matrices.
#[derive(Debug)]
pub(super) struct Contents {
    map: Map,
    /// The places of matrices by their GGUF names.
    pub matrices: BTreeMap<String, Place>,
    /// The file's information other than the matrices.
    pub about: Sums,
}

/// The file in either format.
#[derive(Debug)]
enum Map {
    Gguf(Box<Gguf>),
    Dat(Mapping),
}

/// The place in a file of a matrix, or of several of the same shape. Its contents have been checked.
#[derive(Debug)]
pub(super) struct Place {
    /// 32-bit floats: Σx² of each column, or in the older format Σx² / n · windows.
    pub sums: Range<usize>,
    /// How many inputs were summed.
    pub counts: Counts,
}

/// How many inputs were summed.
#[derive(Debug)]
pub(super) enum Counts {
    /// 32-bit floats, one for each matrix.
    Floats(Range<usize>),
    /// This many windows of [`dat::DAT_WINDOW`] tokens.
    Windows(usize),
}

impl File {
    /// Opens the file at `path`, whose content determines the format, and checks all of it.
    ///
    /// # Errors
    /// If it cannot be opened, is not an importance file, or is damaged.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let problem = |problem| Error::File { path: path.to_path_buf(), problem };
        let map = Mapping::open(path).map_err(|error| problem(Problem::Open(error)))?;
        let blake3 = blake3::hash(map.bytes());
        let contents = if map.bytes().starts_with(b"GGUF") {
            let gguf = Gguf::open(path)?;
            let parts = check_kind(&gguf).and_then(|()| places(&gguf, TensorType::F32));
            let matrices = parts.map_err(problem)?;
            let about = about(gguf.metadata());
            Contents { map: Map::Gguf(Box::new(gguf)), matrices, about }
        } else {
            let (matrices, about) = dat::parse(map.bytes()).map_err(problem)?;
            Contents { map: Map::Dat(map), matrices, about }
        };
        for (name, place) in &contents.matrices {
            check(name, &contents.read(place)).map_err(problem)?;
        }
        Ok(Self { path: path.to_path_buf(), blake3, contents: Arc::new(contents) })
    }

    /// Returns the file's name, without folders.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the names of its matrices, in alphabetical order.
    pub fn matrices(&self) -> impl ExactSizeIterator<Item = &str> {
        self.contents.matrices.keys().map(String::as_str)
    }

    /// Reads the sums of one matrix; `None` if the file does not have it.
    pub fn matrix(&self, name: &str) -> Option<Matrix> {
        self.contents.matrices.get(name).map(|place| self.contents.read(place))
    }

    /// Reads all of it.
    pub fn sums(&self) -> Sums {
        let matrices = &self.contents.matrices;
        let matrices = matrices.iter().map(|(name, place)| (name.clone(), self.contents.read(place))).collect();
        Sums { matrices, ..self.contents.about.clone() }
    }

    /// Returns the importance for a conversion. A matrix that had no input is left out, and is quantized as without
    /// importance. llama.cpp would weigh all of its columns equally.
    ///
    /// # Errors
    /// If it belongs to a mixture of experts, which nibble does not quantize with importance.
    pub fn importance(&self) -> Result<Importance, Error> {
        let mut values = HashMap::new();
        for (name, place) in &self.contents.matrices {
            let &[count] = self.contents.counts(place).as_slice() else {
                let problem = Problem::Experts { matrix: shown(name), n: self.contents.counts(place).len() };
                return Err(Error::File { path: self.path.clone(), problem });
            };
            if count > 0.0 {
                values.insert(name.clone(), OnceLock::new());
            }
        }
        Ok(Importance { name: self.name(), blake3: self.blake3, file: Some(self.contents.clone()), values })
    }

    /// Checks that its matrices are those of a model, by their names and columns.
    ///
    /// # Errors
    /// If it has a matrix that the model does not have, or that has another number of columns in the model.
    pub fn check(&self, columns: &HashMap<String, usize>) -> Result<(), Error> {
        for (name, place) in &self.contents.matrices {
            let matrix = || shown(name);
            let found = place.sums.len() / 4 / self.contents.counts(place).len().max(1);
            let problem = match columns.get(name) {
                None => Problem::UnknownMatrix { matrix: matrix() },
                Some(&wanted) if wanted != found => {
                    Problem::Columns { matrix: matrix(), found, wanted, of: "the model".to_string() }
                }
                Some(_) => continue,
            };
            return Err(Error::Foreign { path: self.path.clone(), problem });
        }
        Ok(())
    }
}

impl Contents {
    fn bytes(&self) -> &[u8] {
        match &self.map {
            Map::Gguf(gguf) => gguf.mappings().next().map_or(&[], Mapping::bytes),
            Map::Dat(map) => map.bytes(),
        }
    }

    fn counts(&self, place: &Place) -> Vec<f64> {
        match &place.counts {
            Counts::Floats(range) => floats(&self.bytes()[range.clone()]).collect(),
            Counts::Windows(windows) => vec![*windows as f64 * f64::from(dat::DAT_WINDOW)],
        }
    }

    fn read(&self, place: &Place) -> Matrix {
        // A value in the older format is the mean times the number of windows.
        let factor = match place.counts {
            Counts::Floats(_) => 1.0,
            Counts::Windows(_) => f64::from(dat::DAT_WINDOW),
        };
        let sums = floats(&self.bytes()[place.sums.clone()]).map(|x| x * factor).collect();
        Matrix { sums, counts: self.counts(place) }
    }

    /// Returns the mean square of each column's input, for a matrix without experts.
    pub fn mean_squares(&self, name: &str) -> Option<Vec<f32>> {
        let matrix = self.read(self.matrices.get(name)?);
        let &[count] = matrix.counts.as_slice() else { return None };
        // The quotient of two 32-bit floats, rounded once, as in llama.cpp.
        Some(matrix.sums.iter().map(|sum| (sum / count) as f32).collect())
    }
}

/// Decodes little-endian 32-bit floats.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f64> {
    bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
}

/// Refuses GGUF files with other contents.
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

/// Returns the places of the matrices in a GGUF file, whose tensors must have the type `wanted`.
fn places(gguf: &Gguf, wanted: TensorType) -> Result<BTreeMap<String, Place>, Problem> {
    let mut matrices = BTreeMap::new();
    for tensor in gguf.tensors() {
        if let Some(name) = tensor.name.strip_suffix(COUNTS_SUFFIX) {
            let other = format!("{name}{SUMS_SUFFIX}");
            if gguf.index_of(&other).is_none() {
                return Err(Problem::Missing { tensor: shown(&other), other: shown(&tensor.name) });
            }
        }
        let Some(name) = tensor.name.strip_suffix(SUMS_SUFFIX) else { continue };
        let place = |part: &str| -> Result<Range<usize>, Problem> {
            let missing = || Problem::Missing { tensor: shown(part), other: shown(&tensor.name) };
            let index = gguf.index_of(part).ok_or_else(missing)?;
            let found = gguf.tensors()[index].ty;
            if found != wanted {
                return Err(Problem::Type { tensor: shown(part), found, wanted });
            }
            Ok(gguf.location(index).1)
        };
        let sums = place(&tensor.name)?;
        let counts = Counts::Floats(place(&format!("{name}{COUNTS_SUFFIX}"))?);
        matrices.insert(name.to_string(), Place { sums, counts });
    }
    if matrices.is_empty() {
        return Err(Problem::NotImportance);
    }
    Ok(matrices)
}

/// Reads all sums of a GGUF file whose tensors are 64-bit floats, without its other information.
///
/// # Errors
/// If something is missing or makes no sense.
pub fn sums_of(gguf: &Gguf) -> Result<Sums, Problem> {
    if gguf.paths().len() > 1 {
        return Err(Problem::Split);
    }
    let bytes = gguf.mappings().next().map_or(&[][..], Mapping::bytes);
    let numbers = |range: Range<usize>| bytes[range].as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)).collect();
    let mut sums = Sums::default();
    for (name, place) in places(gguf, TensorType::F64)? {
        let Counts::Floats(counts) = place.counts else { continue };
        let matrix = Matrix { sums: numbers(place.sums), counts: numbers(counts) };
        check(&name, &matrix)?;
        sums.matrices.insert(name, matrix);
    }
    Ok(sums)
}

/// Checks that the numbers of a matrix make sense.
fn check(name: &str, Matrix { sums, counts }: &Matrix) -> Result<(), Problem> {
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
    Ok(())
}

/// Reads the information of a GGUF file other than the matrices.
fn about(metadata: &Metadata) -> Sums {
    Sums {
        matrices: BTreeMap::new(),
        texts: texts(metadata),
        windows: metadata.u64(CHUNK_COUNT).unwrap_or(0),
        window: metadata.u64(CHUNK_SIZE).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
    }
}

fn texts(metadata: &Metadata) -> Vec<CalibrationText> {
    let array = |key: &str| metadata.get(key).and_then(Value::as_array);
    let names = array(DATASETS).and_then(Array::as_strings).unwrap_or_default();
    let hashes = array(BLAKE3).and_then(Array::as_strings).unwrap_or_default();
    let number = |key: &str, index: usize| array(key).and_then(|array| array.get(index));
    let count = |key: &str, index: usize| number(key, index).and_then(|value| value.as_u64()).unwrap_or(0);
    let text = |(index, name): (usize, &String)| CalibrationText {
        name: name.clone(),
        blake3: hashes.get(index).cloned().unwrap_or_default(),
        weight: number(WEIGHTS, index).and_then(|value| value.as_f64()).unwrap_or(1.0),
        tokens: count(TOKENS, index),
        windows: count(WINDOWS, index),
    };
    names.iter().enumerate().map(text).collect()
}
