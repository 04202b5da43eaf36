//! The safetensors format: a header of names, types, shapes and ranges in JSON, then the bytes.
//!
//! Specification: <https://github.com/huggingface/safetensors#format>
//!
//! ```text
//! u64 header length   little-endian, at most 100 MB
//! header              {"__metadata__": {...}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
//! data                data_offsets count from here; tensors fill it without holes or overlaps
//! ```

use std::collections::HashSet;
use std::fmt;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::dtype::{DType, n_elements};
use super::error::{Error, shown};
use super::json::{refuse_pointer, without_place};
use crate::base::atomic_file::AtomicFile;

/// The longest header the format allows, in bytes.
pub const MAX_HEADER: u64 = 100_000_000;

/// Size of the field that holds the header's length, in bytes.
const LENGTH_BYTES: u64 = 8;

/// A tensor as a header describes it; `range` is in bytes from the start of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub range: Range<usize>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads the header of `file`, which holds the bytes of the whole file at `path`. Checks the range of every tensor
/// against its type, its shape and the file.
///
/// # Errors
/// [`Error::Truncated`] if the file ends before its header or its data does; otherwise, if something is wrong with the
/// header, an error that says what.
pub(super) fn read_header(path: &Path, file: &[u8]) -> Result<Vec<Entry>, Error> {
    refuse_pointer(path, file)?;
    let bad = |offset: u64, problem: String| Error::Format { path: path.to_path_buf(), offset, problem };
    let found = file.len() as u64;
    let truncated = |wanted: u64| Error::Truncated { path: path.to_path_buf(), wanted, found };

    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        // A file this short does not even hold the length of its header.
        return Err(truncated(LENGTH_BYTES));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(
            0,
            format!("a header of {length} bytes; at most {MAX_HEADER} are allowed{}", looks_like(file)),
        ));
    }
    let data_start = LENGTH_BYTES + length;
    // At most 100 MB, so it fits.
    let header = rest.get(..length as usize).ok_or_else(|| truncated(data_start))?;
    let header = std::str::from_utf8(header)
        .map_err(|e| bad(LENGTH_BYTES + e.valid_up_to() as u64, "the header is not UTF-8".to_string()))?;
    let entries = serde_json::from_str::<Header>(header).map_err(|e| {
        let problem = format!("the header is not as safetensors has it: {}", without_place(&e));
        bad(LENGTH_BYTES + offset_of(header, e.line(), e.column()), problem)
    })?;

    let mut tensors = Vec::with_capacity(entries.0.len());
    for (name, raw) in entries.0 {
        tensors.push(check(path, data_start, name, raw)?);
    }
    // In the order of their bytes, each tensor has to begin where the one before it ends.
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut end = data_start as usize;
    let mut before = "the header";
    for tensor in &tensors {
        if tensor.range.start != end {
            let how = if tensor.range.start < end { "overlaps" } else { "leaves a hole after" };
            let problem =
                format!("its data {how} {}: wanted a start at byte {end}, found {}", shown(before), tensor.range.start);
            return Err(Error::tensor(path, &tensor.name, problem));
        }
        end = tensor.range.end;
        before = &tensor.name;
    }
    match (end as u64).cmp(&found) {
        std::cmp::Ordering::Greater => Err(truncated(end as u64)),
        std::cmp::Ordering::Less => Err(bad(
            end as u64,
            format!("{} bytes follow the last tensor; wanted the end of the file", found - end as u64),
        )),
        std::cmp::Ordering::Equal => Ok(tensors),
    }
}

/// The header's tensors, in its order.
struct Header(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut seen = HashSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("the key \"{}\" is given twice", shown(&name))));
                    }
                    // Free text from the program that wrote the file.
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

fn check(path: &Path, data_start: u64, name: String, raw: RawEntry) -> Result<Entry, Error> {
    let fail = |problem: String| Error::tensor(path, &name, problem);
    let dtype = DType::from_name(&raw.dtype).ok_or_else(|| fail(format!("no such type: \"{}\"", shown(&raw.dtype))))?;
    let (start, end) = raw.data_offsets;
    let n_bytes =
        end.checked_sub(start).ok_or_else(|| fail(format!("its data ends at {end}, before its start {start}")))?;
    // The size of a type that nibble does not know cannot be checked.
    if dtype.bits().is_some() {
        let wanted = n_elements(&raw.shape)
            .and_then(|n| dtype.n_bytes(n))
            .ok_or_else(|| fail(format!("{dtype} of shape {:?} has no size in bytes", raw.shape)))?;
        if wanted != n_bytes {
            return Err(fail(format!(
                "{dtype} of shape {:?}: wanted {wanted} bytes, found a range of {n_bytes}",
                raw.shape
            )));
        }
    }
    let at = |offset: u64| usize::try_from(data_start.checked_add(offset)?).ok();
    let range = at(start).zip(at(end)).ok_or_else(|| fail(format!("its data ends at {end}, past any file")))?;
    Ok(Entry { name, dtype, shape: raw.shape, range: range.0..range.1 })
}

/// Returns the offset of serde_json's line and column (from 1, in bytes) in `text`.
fn offset_of(text: &str, line: usize, column: usize) -> u64 {
    let lines = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>();
    (lines + column.saturating_sub(1)).min(text.len()) as u64
}

/// Returns a guess at what a file that is not a safetensors file is instead.
fn looks_like(file: &[u8]) -> &'static str {
    match file {
        [b'<', ..] | [b' ' | b'\n' | b'\r', b'<', ..] => "; a web page was saved in its place: download the file again",
        [b'P', b'K', 3, 4, ..] => "; this is a zip file, perhaps a PyTorch .bin under another name",
        [b'G', b'G', b'U', b'F', ..] => "; this is a GGUF file under another name",
        _ => "; this is not a safetensors file",
    }
}

/// Writes a safetensors file from start to end, and holds only the header in memory.
///
/// The file gets its name when it is complete. Until then it has a temporary name in the same folder.
///
/// ```no_run
/// # use nibble::checkpoint::{DType, safetensors::Writer};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tensors = [("weight".to_string(), DType::F32, vec![2, 2])];
/// let mut writer = Writer::create("model.safetensors".as_ref(), &tensors, &[("format", "pt")])?;
/// writer.write(&[0; 16])?;
/// writer.finish()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: BufWriter<AtomicFile>,
    /// Bytes of data that are still to be written.
    left: u64,
    wanted: u64,
}

impl Writer {
    /// Creates the file at `path`. `tensors` has names, types and shapes (slowest dimension first), in the order in
    /// which [`write`](Self::write) will receive their bytes.
    ///
    /// # Errors
    /// If a name is given twice, a type has no known size, a size overflows, or the file cannot be written.
    pub fn create(
        path: &Path,
        tensors: &[(String, DType, Vec<u64>)],
        metadata: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let fail = |problem: String| Error::Write { path: path.to_path_buf(), problem };
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            let metadata = metadata.iter().map(|&(k, v)| (k.to_string(), v.into())).collect();
            header.insert("__metadata__".to_string(), serde_json::Value::Object(metadata));
        }
        let mut end = 0u64;
        for (name, dtype, shape) in tensors {
            let sum = n_elements(shape).and_then(|n| dtype.n_bytes(n)).and_then(|n| end.checked_add(n));
            let next = sum.ok_or_else(|| fail(format!("tensor {name}: {dtype} of shape {shape:?} has no size")))?;
            let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [end, next]});
            if header.insert(name.clone(), entry).is_some() {
                return Err(fail(format!("the name {name} is given twice, or is not free")));
            }
            end = next;
        }
        let mut header = serde_json::to_string(&header).map_err(|e| fail(e.to_string()))?;
        // Spaces up to a multiple of eight, so that the data is aligned as in files of the reference writer.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        if header.len() as u64 > MAX_HEADER {
            return Err(fail(format!("a header of {} bytes; at most {MAX_HEADER} are allowed", header.len())));
        }

        let file = AtomicFile::create(path).map_err(Error::io(path))?;
        let mut writer = Self { path: path.to_path_buf(), file: BufWriter::new(file), left: end, wanted: end };
        writer.put(&(header.len() as u64).to_le_bytes())?;
        writer.put(header.as_bytes())?;
        Ok(writer)
    }

    /// Appends data: row-major, little-endian, any number of bytes at a time.
    ///
    /// # Errors
    /// If it is more data than the header announced, or it cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            let problem = format!("more data than the header's {} bytes", self.wanted);
            return Err(Error::Write { path: self.path.clone(), problem });
        };
        self.left = left;
        self.put(bytes)
    }

    /// Appends zeros, as a hole that takes no disk space if the file system supports that.
    ///
    /// # Errors
    /// If it is more data than the header announced, or it cannot be written.
    pub fn skip(&mut self, n_bytes: u64) -> Result<(), Error> {
        let Some(left) = self.left.checked_sub(n_bytes) else {
            let problem = format!("more data than the header's {} bytes", self.wanted);
            return Err(Error::Write { path: self.path.clone(), problem });
        };
        self.left = left;
        let hole = |file: &mut BufWriter<AtomicFile>| {
            file.flush()?;
            let mut file = file.get_ref().file();
            let end = file.stream_position()? + n_bytes;
            file.set_len(end)?;
            file.seek(SeekFrom::Start(end))
        };
        hole(&mut self.file).map_err(Error::io(&self.path)).map(|_| ())
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// If data is missing, or the file cannot be written or renamed.
    pub fn finish(self) -> Result<(), Error> {
        if self.left > 0 {
            let problem = format!("wanted {} bytes of data, was given {}", self.wanted, self.wanted - self.left);
            return Err(Error::Write { path: self.path, problem });
        }
        let path = self.path;
        let file = self.file.into_inner().map_err(|e| Error::io(&path)(e.into_error()))?;
        file.finish(true).map_err(Error::io(&path))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn message(bytes: &[u8]) -> String {
        read_header(Path::new("m.safetensors"), bytes).unwrap_err().to_string()
    }

    const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

    #[test]
    fn reads_names_types_shapes_and_ranges() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F16","shape":[],"data_offsets":[8,10]},
            "a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
            "z":{"dtype":"I64","shape":[0,3],"data_offsets":[10,10]}}   "#;
        let bytes = file(header, &[0; 10]);
        let start = 8 + header.len();
        let entries = read_header(Path::new("m"), &bytes).unwrap();
        let seen: Vec<_> =
            entries.iter().map(|e| (e.name.as_str(), e.dtype, e.shape.as_slice(), e.range.clone())).collect();
        assert_eq!(
            seen,
            [
                ("a", DType::F32, &[1, 2][..], start..start + 8),
                ("b", DType::F16, &[], start + 8..start + 10),
                ("z", DType::I64, &[0, 3], start + 10..start + 10),
            ]
        );
        assert_eq!(read_header(Path::new("m"), &file("{}", &[])).unwrap(), []);
    }

    #[test]
    fn a_download_that_was_cut_says_how_much_is_missing() {
        let whole = file(ONE, &[0; 8]);
        let wanted = whole.len();
        for (keep, wanted) in [(0, 8), (7, 8), (8, wanted - 8), (20, wanted - 8), (wanted - 1, wanted)] {
            assert_eq!(
                message(&whole[..keep]),
                format!(
                    "m.safetensors: the download was cut short: wanted {wanted} bytes, found {keep}; download it again"
                )
            );
        }
    }

    #[test]
    fn a_pointer_in_place_of_a_shard_says_to_pull() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4937241280\n";
        assert_eq!(
            message(pointer),
            "m.safetensors: this is a Git LFS pointer, not the file itself, which has 4937241280 bytes; run 'git lfs \
             pull' in its folder to fetch the file"
        );
    }

    #[test]
    fn a_file_of_another_kind_is_named() {
        assert!(message(b"<!DOCTYPE html><html>").contains("a web page was saved in its place"));
        assert!(message(b"PK\x03\x04\x00\x00\x08\x08rest").contains("this is a zip file"));
        assert!(message(b"GGUF\x03\0\0\0\0\0\0\0").starts_with("m.safetensors, byte 0: a header of "));
        assert!(message(&[255; 64]).contains("18446744073709551615 bytes; at most 100000000 are allowed"));
    }

    #[test]
    fn refuses_a_header_that_is_not_utf8_or_not_json() {
        let mut bytes = file(ONE, &[0; 8]);
        bytes[10] = 0xff;
        assert_eq!(message(&bytes), "m.safetensors, byte 10: the header is not UTF-8");
        assert_eq!(
            message(&file("{\"a\":{]}", &[])),
            "m.safetensors, byte 14: the header is not as safetensors has it: expected value"
                .replace("expected value", message(&file("{\"a\":{]}", &[])).rsplit(": ").next().unwrap())
        );
        for header in
            ["", "[]", "null", "{", "{\"a\":1}", "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,8]}}"]
        {
            let message = message(&file(header, &[0; 8]));
            assert!(message.contains("the header is not as safetensors has it"), "{header}: {message}");
        }
        assert!(message(&file(&"[".repeat(200_000), &[])).contains("not as safetensors has it"));
    }

    #[test]
    fn refuses_a_name_given_twice() {
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let message = message(&file(header, &[0; 2]));
        assert!(message.contains("the key \"a\" is given twice"), "{message}");
        assert!(message.starts_with("m.safetensors, byte "), "{message}");
    }

    #[test]
    fn refuses_ranges_that_do_not_fit_type_and_shape() {
        let header = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,13]}}"#;
        assert_eq!(
            message(&file(header, &[0; 13])),
            "m.safetensors: tensor a: BF16 of shape [2, 3]: wanted 12 bytes, found a range of 13"
        );
        let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#;
        assert_eq!(message(&file(header, &[0; 8])), "m.safetensors: tensor a: its data ends at 0, before its start 8");
        let header = r#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}}"#;
        assert!(message(&file(header, &[0; 8])).contains("has no size in bytes"));
        let header = r#"{"a":{"dtype":"ODD","shape":[1],"data_offsets":[0,18446744073709551615]}}"#;
        assert!(message(&file(header, &[0; 8])).contains("past any file"));
        let header = r#"{"a":{"dtype":"F 32","shape":[1],"data_offsets":[0,4]}}"#;
        assert_eq!(message(&file(header, &[0; 4])), "m.safetensors: tensor a: no such type: \"F 32\"");
    }

    #[test]
    fn refuses_overlaps_holes_and_trailing_bytes() {
        let two = |b: &str| {
            let header = format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            );
            (8 + header.len(), message(&file(&header, &[0; 9])))
        };
        let (start, overlap) = two("[3,7]");
        assert_eq!(
            overlap,
            format!(
                "m.safetensors: tensor b: its data overlaps a: wanted a start at byte {}, found {}",
                start + 4,
                start + 3
            )
        );
        assert!(two("[5,9]").1.contains("leaves a hole after a"));
        let (start, trailing) = two("[4,8]");
        assert_eq!(
            trailing,
            format!("m.safetensors, byte {}: 1 bytes follow the last tensor; wanted the end of the file", start + 8)
        );
    }

    #[test]
    fn an_unknown_type_opens() {
        let header = r#"{"a":{"dtype":"F3","shape":[8],"data_offsets":[0,3]}}"#;
        let entries = read_header(Path::new("m"), &file(header, &[0; 3])).unwrap();
        assert_eq!(entries[0].dtype.name(), "F3");
    }

    #[test]
    fn what_the_writer_writes_the_reader_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let tensors =
            [("b".to_string(), DType::BF16, vec![2, 2]), ("a \"quoted\" 名".to_string(), DType::F32, vec![3])];
        let mut writer = Writer::create(&path, &tensors, &[("format", "pt")]).unwrap();
        writer.write(&[1; 3]).unwrap();
        writer.write(&[2; 17]).unwrap();
        assert!(!path.exists(), "the name is given at the end");
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let entries = read_header(&path, &bytes).unwrap();
        assert_eq!(entries[0].range.start % 8, 0);
        assert_eq!(entries[0].name, "b");
        assert_eq!(entries[1].name, tensors[1].0);
        assert_eq!(bytes[entries[1].range.clone()], [2; 12]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_writer_holds_its_caller_to_the_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let tensors = [("a".to_string(), DType::F32, vec![2])];
        let mut writer = Writer::create(&path, &tensors, &[]).unwrap();
        writer.write(&[0; 4]).unwrap();
        assert!(writer.write(&[0; 5]).unwrap_err().to_string().ends_with("more data than the header's 8 bytes"));
        assert!(writer.finish().unwrap_err().to_string().ends_with("wanted 8 bytes of data, was given 4"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        let twice = [tensors[0].clone(), tensors[0].clone()];
        assert!(Writer::create(&path, &twice, &[]).unwrap_err().to_string().contains("given twice"));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_reader_panic(
            damage in prop::collection::vec((0usize..140, any::<u8>()), 1..6),
            keep in 0usize..160,
        ) {
            let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[3,1],"data_offsets":[8,11]}}"#;
            let mut bytes = file(header, &[0; 11]);
            for (at, value) in damage {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(keep);
            if let Ok(entries) = read_header(Path::new("m"), &bytes) {
                for entry in entries {
                    prop_assert!(bytes.get(entry.range).is_some());
                }
            }
        }
    }
}
