//! Parses the bytes of one file to its description. Nothing here accesses the file system, so tests can pass any bytes.
//!
//! The rules are those of ggml's `gguf.cpp`, and its loader's: offsets follow one another, names are unique, every
//! tensor is inside the file.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use super::error::shown;
use super::{Array, DEFAULT_ALIGNMENT, MAX_DEPTH, MAX_DIMS, Metadata, Problem, TensorInfo, TensorProblem, TensorType};
use super::{Value, ValueType, split};

/// The key with the alignment of tensors.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// The description of a model must end within this many bytes of the file's beginning. The largest vocabularies take
/// about 15 MiB. Without a limit, a file of empty strings would take several times its size in memory.
const MAX_HEADER_BYTES: usize = 256 << 20;

/// The fewest bytes of a key with its value: a one-byte name and a one-byte value.
const MIN_ENTRY_BYTES: usize = (8 + 1) + 4 + 1;
/// The fewest bytes of a tensor's description: a one-byte name and one dimension.
const MIN_TENSOR_BYTES: usize = (8 + 1) + 4 + 8 + 4 + 8;

/// A file's header, checked against the file's length.
#[derive(Debug)]
pub(super) struct Header {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    /// The end of the tensors' descriptions, before any padding.
    pub end: usize,
    /// The range of each tensor's bytes in the file, without padding. The ranges are inside the file, in ascending
    /// order, and disjoint.
    pub ranges: Vec<Range<usize>>,
}

impl Header {
    /// Reads the description at the beginning of `file`, which is the whole file.
    pub fn parse(file: &[u8]) -> Result<Self, Problem> {
        let mut cursor = Cursor { bytes: file, at: 0, limit: MAX_HEADER_BYTES };
        check_magic(file)?;
        cursor.take(4, What::Magic)?;
        let version = read_version(&mut cursor)?;

        let n_tensors = cursor.u64(What::TensorCount)?;
        let n_entries = cursor.u64(What::EntryCount)?;
        cursor.check_count(n_entries, MIN_ENTRY_BYTES, What::EntryCount)?;
        cursor.check_count(n_tensors, MIN_TENSOR_BYTES, What::TensorCount)?;

        let metadata = read_metadata(&mut cursor, n_entries)?;
        let alignment = alignment(&metadata)?;

        let mut tensors = Tensors::default();
        for index in 0..n_tensors {
            tensors.read(&mut cursor, index, alignment)?;
        }
        let end = cursor.at;
        let ranges = tensors.place(end, alignment, file.len())?;
        Ok(Self { version, alignment, metadata, tensors: tensors.infos, end, ranges })
    }
}

fn check_magic(file: &[u8]) -> Result<(), Problem> {
    if file.starts_with(b"GGUF") {
        return Ok(());
    }
    let advice = match file {
        [] => "the file is empty, download it or convert it again",
        _ if file.starts_with(b"FUGG") => "the file is byte-swapped throughout, convert it again on another machine",
        _ if [b"lmgg", b"fmgg", b"tjgg", b"algg"].into_iter().any(|magic| file.starts_with(magic)) => {
            "this is a GGML file from before GGUF (August 2023), convert the model anew from its original checkpoint"
        }
        _ if file.starts_with(b"version https://git-lfs") => {
            "this is a Git LFS pointer, not the file itself: run 'git lfs pull', or download the file"
        }
        _ if file.starts_with(b"<") => {
            "this looks like a web page that was saved in the model's place, download it again"
        }
        _ if file.starts_with(b"PK\x03\x04") => {
            "this is a zip archive or a PyTorch file: convert the folder that it belongs to"
        }
        _ if file.get(8) == Some(&b'{') => "this looks like a safetensors file: convert the folder that it belongs to",
        _ if file.iter().take(4096).all(|&b| b == 0) => "the file begins with zeros, its download did not finish",
        _ => "this is not a GGUF file, or it is damaged",
    };
    let start = &file[..file.len().min(4)];
    Err(Problem::NotGguf { found: format!("\"{}\"", start.escape_ascii()), advice })
}

fn read_version(cursor: &mut Cursor) -> Result<u32, Problem> {
    let found = cursor.u32(What::Version)?;
    match found {
        2 | 3 => Ok(found),
        0 | 1 => Err(Problem::OldVersion { found }),
        // Versions are small, so a number whose low half is 0 was written in the other byte order.
        _ if found & 0xffff == 0 => Err(Problem::BigEndian { found }),
        _ => Err(Problem::NewVersion { found }),
    }
}

fn read_metadata(cursor: &mut Cursor, n_entries: u64) -> Result<Metadata, Problem> {
    let mut metadata = Metadata::new();
    let mut seen = HashSet::new();
    for index in 0..n_entries {
        let at = cursor.at();
        let key = cursor.string(What::Key(index))?;
        if key.is_empty() {
            return Err(Problem::EmptyKey { at });
        }
        if !seen.insert(key) {
            return Err(Problem::DuplicateKey { at, key: shown(key) });
        }
        let ty = read_value_type(cursor, key)?;
        let value = read_value(cursor, ty, key)?;
        metadata.push_new(key.to_string(), value);
    }
    Ok(metadata)
}

fn read_value_type(cursor: &mut Cursor, key: &str) -> Result<ValueType, Problem> {
    let at = cursor.at();
    let found = cursor.u32(What::Value(key))?;
    ValueType::from_id(found).ok_or_else(|| Problem::ValueType { at, what: What::Value(key).to_string(), found })
}

fn read_value(cursor: &mut Cursor, ty: ValueType, key: &str) -> Result<Value, Problem> {
    let what = What::Value(key);
    Ok(match ty {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(what)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(what)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        ValueType::Bool => Value::Bool(cursor.bool(what)?),
        ValueType::String => Value::String(cursor.string(what)?.to_string()),
        ValueType::Array => Value::Array(read_array(cursor, key, 1)?),
    })
}

/// An array, the `depth`-th around its elements.
fn read_array(cursor: &mut Cursor, key: &str, depth: usize) -> Result<Array, Problem> {
    let what = What::Value(key);
    if depth > MAX_DEPTH {
        return Err(Problem::Depth { at: cursor.at(), what: what.to_string() });
    }
    let ty = read_value_type(cursor, key)?;
    let n = cursor.u64(what)?;
    let n = cursor.check_count(n, ty.min_bytes(), what)?;

    macro_rules! numbers {
        ($variant:ident, $ty:ty) => {{
            const SIZE: usize = size_of::<$ty>();
            // `check_count` has seen that the elements fit the bytes left, so that the product does not overflow.
            let bytes = cursor.take(n * SIZE, what)?;
            let (elements, _) = bytes.as_chunks::<SIZE>();
            Array::$variant(elements.iter().map(|&bytes| <$ty>::from_le_bytes(bytes)).collect())
        }};
    }
    Ok(match ty {
        ValueType::U8 => numbers!(U8, u8),
        ValueType::I8 => numbers!(I8, i8),
        ValueType::U16 => numbers!(U16, u16),
        ValueType::I16 => numbers!(I16, i16),
        ValueType::U32 => numbers!(U32, u32),
        ValueType::I32 => numbers!(I32, i32),
        ValueType::F32 => numbers!(F32, f32),
        ValueType::U64 => numbers!(U64, u64),
        ValueType::I64 => numbers!(I64, i64),
        ValueType::F64 => numbers!(F64, f64),
        ValueType::Bool => Array::Bool((0..n).map(|_| cursor.bool(what)).collect::<Result<_, _>>()?),
        ValueType::String => {
            Array::String((0..n).map(|_| cursor.string(what).map(str::to_string)).collect::<Result<_, _>>()?)
        }
        ValueType::Array => Array::Array((0..n).map(|_| read_array(cursor, key, depth + 1)).collect::<Result<_, _>>()?),
    })
}

fn alignment(metadata: &Metadata) -> Result<u64, Problem> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() => Ok((*n).into()),
        Some(other) => Err(Problem::Alignment { found: split::describe(other) }),
    }
}

/// The tensors read so far.
#[derive(Default)]
struct Tensors<'a> {
    infos: Vec<TensorInfo>,
    /// The beginning and the end of each, relative to the beginning of the tensor data.
    spans: Vec<Range<u64>>,
    names: HashSet<&'a str>,
    /// The offset at which the next one has to begin, relative to the beginning of the tensor data.
    next: u64,
}

impl<'a> Tensors<'a> {
    fn read(&mut self, cursor: &mut Cursor<'a>, index: u64, alignment: u64) -> Result<(), Problem> {
        let at = cursor.at();
        let name = cursor.string(What::TensorName(index))?;
        let what = What::Tensor(name);
        let n_dims = cursor.u32(what)?;
        if n_dims as usize > MAX_DIMS {
            let problem = TensorProblem::Dimensions { name: shown(name), found: n_dims.into() };
            return Err(Problem::Tensor { at, problem });
        }
        let dims = (0..n_dims).map(|_| cursor.u64(what)).collect::<Result<_, _>>()?;
        let type_at = cursor.at();
        let id = cursor.u32(what)?;
        let ty =
            TensorType::from_id(id).ok_or_else(|| Problem::TensorType { at: type_at, name: shown(name), found: id })?;
        let offset_at = cursor.at();
        let offset = cursor.u64(what)?;

        let info = TensorInfo { name: name.to_string(), dims, ty };
        let n_bytes = info.check().map_err(|problem| Problem::Tensor { at, problem })?;
        if !self.names.insert(name) {
            return Err(Problem::DuplicateTensor { at, name: shown(name) });
        }
        // ggml requires equality. This excludes overlaps, gaps and unaligned offsets.
        if offset != self.next {
            return Err(Problem::Offset { at: offset_at, name: shown(name), found: offset, wanted: self.next });
        }
        let end = offset.checked_add(n_bytes);
        self.next = end
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .filter(|&next| i64::try_from(next).is_ok())
            .ok_or_else(|| Problem::EndOverflow { at, name: shown(name) })?;
        self.spans.push(offset..offset + n_bytes);
        self.infos.push(info);
        Ok(())
    }

    /// Returns the range of each tensor in a file whose description ends at `header_end`.
    fn place(&self, header_end: usize, alignment: u64, file_len: usize) -> Result<Vec<Range<usize>>, Problem> {
        // The description ends within 2^28 bytes, alignments are at most 2^31 and spans end below 2^63: no sum overflows.
        let base = (header_end as u64).next_multiple_of(alignment);
        let wanted = base + self.spans.last().map_or(0, |span| span.end);
        let mut ranges = Vec::with_capacity(self.spans.len());
        for (info, span) in self.infos.iter().zip(&self.spans) {
            let (start, end) = (base + span.start, base + span.end);
            match (usize::try_from(start), usize::try_from(end)) {
                (Ok(start), Ok(end)) if end <= file_len => ranges.push(start..end),
                _ => {
                    let name = shown(&info.name);
                    return Err(Problem::PastEnd { name, start, end, file_bytes: file_len as u64, wanted });
                }
            }
        }
        Ok(ranges)
    }
}

/// What is being read, for messages.
#[derive(Clone, Copy)]
enum What<'a> {
    Magic,
    Version,
    TensorCount,
    EntryCount,
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("the magic number"),
            Self::Version => f.write_str("the version"),
            Self::TensorCount => f.write_str("the number of tensors"),
            Self::EntryCount => f.write_str("the number of metadata keys"),
            Self::Key(index) => write!(f, "the name of metadata key {}", index + 1),
            Self::Value(key) => write!(f, "the value of {}", shown(key)),
            Self::TensorName(index) => write!(f, "the name of tensor {}", index + 1),
            Self::Tensor(name) => write!(f, "the description of tensor {}", shown(name)),
        }
    }
}

/// Bytes and a read position. Every access is checked.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Reading stops here, even if there are more bytes.
    limit: usize,
}

impl<'a> Cursor<'a> {
    fn at(&self) -> u64 {
        self.at as u64
    }

    /// Returns how many bytes may still be read.
    fn left(&self) -> usize {
        self.bytes.len().min(self.limit).saturating_sub(self.at)
    }

    fn take(&mut self, n: usize, what: What) -> Result<&'a [u8], Problem> {
        if n > self.left() {
            return Err(self.too_short(n as u64, what));
        }
        let bytes = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn too_short(&self, wanted: u64, what: What) -> Problem {
        let (at, what, left) = (self.at(), what.to_string(), (self.bytes.len() - self.at) as u64);
        if wanted > left {
            Problem::Truncated { at, what, wanted, left }
        } else {
            Problem::HeaderTooLong { at, what, limit: self.limit as u64 }
        }
    }

    /// Refuses a count of things, each of at least `min_bytes`, that the remaining bytes cannot hold.
    fn check_count(&self, found: u64, min_bytes: usize, what: What) -> Result<usize, Problem> {
        let most = self.left() / min_bytes;
        match usize::try_from(found) {
            Ok(n) if n <= most => Ok(n),
            _ => Err(Problem::Count { at: self.at(), what: what.to_string(), found, most: most as u64 }),
        }
    }

    fn array<const N: usize>(&mut self, what: What) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: What) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: What) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn bool(&mut self, what: What) -> Result<bool, Problem> {
        let at = self.at();
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(Problem::Bool { at, what: what.to_string(), found }),
        }
    }

    fn string(&mut self, what: What) -> Result<&'a str, Problem> {
        let n = self.u64(what)?;
        let at = self.at();
        let n = usize::try_from(n).map_err(|_| self.too_short(n, what))?;
        std::str::from_utf8(self.take(n, what)?).map_err(|_| Problem::Utf8 { at, what: what.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::Layout;

    /// A file by hand, right or wrong.
    #[derive(Clone, Default)]
    struct File(Vec<u8>);

    impl File {
        /// Up to the counts, which are given.
        fn new(version: u32, n_tensors: u64, n_entries: u64) -> Self {
            Self(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_entries)
        }

        fn u32(mut self, n: u32) -> Self {
            self.0.extend(n.to_le_bytes());
            self
        }

        fn u64(mut self, n: u64) -> Self {
            self.0.extend(n.to_le_bytes());
            self
        }

        fn bytes(mut self, bytes: &[u8]) -> Self {
            self.0.extend(bytes);
            self
        }

        fn string(self, string: impl AsRef<[u8]>) -> Self {
            self.u64(string.as_ref().len() as u64).bytes(string.as_ref())
        }

        fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
            let file = self.string(name).u32(dims.len() as u32);
            dims.iter().fold(file, |file, &dim| file.u64(dim)).u32(ty).u64(offset)
        }

        /// Zeros up to a multiple of 32, then as many as asked for.
        fn data(mut self, n: usize) -> Self {
            self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
            self
        }

        fn refused(&self) -> String {
            Header::parse(&self.0).map(|_| ()).expect_err("refused").to_string()
        }

        fn accepted(&self) -> Header {
            Header::parse(&self.0).expect("accepted")
        }
    }

    const F32: u32 = 0;
    const Q4_K: u32 = 12;

    #[track_caller]
    fn assert_says(message: &str, parts: &[&str]) {
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }

    /// A file with a value of every type, arrays in arrays, and tensors whose last ends the file.
    fn sample() -> Vec<u8> {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("u8", 1u8);
        metadata.set("i16", vec![-1i16, 2, 3]);
        metadata.set("f64", 0.5f64);
        metadata.set("flags", vec![true, false]);
        metadata.set("tokens", vec!["<unk>".to_string(), "你好".to_string(), String::new()]);
        let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::Array(vec![Array::F32(vec![1.5])])]);
        metadata.set("nested", Value::Array(nested));
        let tensors = vec![
            TensorInfo { name: "a.weight".into(), dims: vec![3, 5], ty: TensorType::F32 },
            TensorInfo { name: "b.weight".into(), dims: vec![256, 2], ty: TensorType::Q4_K },
            TensorInfo { name: "c.weight".into(), dims: vec![8], ty: TensorType::F32 },
        ];
        let layout = Layout::new(&metadata, tensors, 32, None).unwrap();
        let mut file = vec![];
        let data = |index: usize| vec![index as u8 + 1; layout.tensors()[index].n_bytes().unwrap() as usize];
        layout.write_part(0, &mut file, data).unwrap();
        file
    }

    #[test]
    fn reads_a_version_2_file_as_it_does_version_3() {
        for version in [2, 3] {
            let file = File::new(version, 1, 1).string("k").u32(4).u32(7).tensor("t", &[8], F32, 0).data(32);
            let header = file.accepted();
            assert_eq!(header.version, version);
            assert_eq!(header.metadata.u64("k"), Some(7));
            assert_eq!((header.ranges.len(), &header.ranges[0]), (1, &(96..128)));
        }
    }

    #[test]
    fn a_file_without_tensors_needs_no_data() {
        let header = File::new(3, 0, 1).string("k").u32(4).u32(7).accepted();
        assert!(header.tensors.is_empty());
        assert_eq!(header.alignment, 32);
    }

    #[test]
    fn version_1_is_refused_with_the_way_out() {
        // Version 1 counted in u32.
        let file = File::default().bytes(b"GGUF").u32(1).u32(48).u32(17);
        assert_says(&file.refused(), &["offset 4", "version 1", "wanted 2 or 3", "original checkpoint", "COPY"]);
    }

    #[test]
    fn versions_to_come_and_other_byte_orders_are_told_apart() {
        assert_says(&File::new(4, 0, 0).refused(), &["offset 4", "version 4", "newer nibble"]);
        assert_says(&File::new(3u32.swap_bytes(), 0, 0).refused(), &["offset 4", "0x03000000", "big-endian"]);
        assert_says(&File::default().bytes(b"FUGG\0\0\0\x03").refused(), &["byte-swapped"]);
    }

    #[test]
    fn what_people_take_for_a_model_is_recognised() {
        let refused = |bytes: &[u8]| File::default().bytes(bytes).refused();
        assert_says(&refused(b""), &["offset 0", "found \"\"", "wanted \"GGUF\"", "the file is empty"]);
        assert_says(&refused(b"tjgg\x03\0\0\0"), &["found \"tjgg\"", "before GGUF"]);
        assert_says(&refused(b"version https://git-lfs.github.com/spec/v1\n"), &["Git LFS pointer", "git lfs pull"]);
        assert_says(&refused(b"<!doctype html>"), &["web page"]);
        assert_says(&refused(b"PK\x03\x04rest"), &["PyTorch"]);
        assert_says(&refused(b"\x40\0\0\0\0\0\0\0{\"a\":1}"), &["safetensors", "convert the folder"]);
        assert_says(&refused(&[0; 64]), &["begins with zeros"]);
        assert_says(&refused(b"\x1b[2Jx"), &["found \"\\x1b[2J\"", "not a GGUF file"]);
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused() {
        let file = sample();
        assert!(Header::parse(&file).is_ok());
        for end in 0..file.len() {
            let error = Header::parse(&file[..end]).map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains("cut short") || error.contains("empty") || end < 4, "at {end}: {error}");
        }
    }

    #[test]
    fn padding_after_the_last_tensor_may_be_missing() {
        File::new(3, 1, 0).tensor("t", &[3], F32, 0).data(12).accepted();
    }

    #[test]
    fn impossible_counts_are_refused_before_anything_is_allocated() {
        for n in [u64::MAX, i64::MAX as u64, u64::MAX / 8 + 1, 1 << 40, 1000] {
            assert_says(&File::new(3, n, 0).data(64).refused(), &["the number of tensors", &format!("counts {n}")]);
            assert_says(&File::new(3, 0, n).data(64).refused(), &["the number of metadata keys", &format!("{n}")]);
            for ty in (0..13).filter(|&ty| ValueType::from_id(ty) != Some(ValueType::Array)) {
                let file = File::new(3, 0, 1).string("k").u32(9).u32(ty).u64(n).data(64);
                assert_says(&file.refused(), &["offset 49", "the value of \"k\"", &format!("counts {n}")]);
            }
        }
    }

    #[test]
    fn string_lengths_beyond_the_file_are_refused() {
        for n in [u64::MAX, u64::MAX - 7, 1 << 31, 100] {
            let wanted = format!("needs {n} bytes");
            let key = File::new(3, 0, 1).u64(n).bytes(&[b'k'; 40]);
            assert_says(&key.refused(), &["offset 32", "the name of metadata key 1", &wanted, "cut short"]);
            let value = File::new(3, 0, 1).string("k").u32(8).u64(n).bytes(b"value");
            assert_says(&value.refused(), &["offset 45", "the value of \"k\"", &wanted, "5 are left"]);
            let name = File::new(3, 1, 0).u64(n).bytes(&[b't'; 40]);
            assert_says(&name.refused(), &["the name of tensor 1", &wanted]);
        }
    }

    #[test]
    fn keys_are_unique_and_named() {
        let twice = File::new(3, 0, 2).string("k").u32(0).bytes(&[1]).string("k").u32(0).bytes(&[2]);
        assert_says(&twice.refused(), &["offset 38", "\"k\"", "second time"]);
        assert_says(
            &File::new(3, 0, 1).string("").u32(0).bytes(&[1, 0]).refused(),
            &["offset 24", "empty metadata key"],
        );
    }

    #[test]
    fn values_are_of_known_types_and_booleans_are_0_or_1() {
        for ty in [13, 255, u32::MAX] {
            let wanted = format!("unknown type {ty}");
            let value = File::new(3, 0, 1).string("k").u32(ty).u64(0);
            assert_says(&value.refused(), &["offset 33", "\"k\"", &wanted, "wanted 0 to 12"]);
            assert_says(&File::new(3, 0, 1).string("k").u32(9).u32(ty).u64(0).refused(), &["offset 37", &wanted]);
        }
        let value = File::new(3, 0, 1).string("k").u32(7).bytes(&[2]);
        assert_says(&value.refused(), &["offset 37", "boolean 2", "wanted 0 or 1"]);
    }

    #[test]
    fn strings_that_are_not_utf8_are_refused_with_their_key() {
        let value = File::new(3, 0, 1).string("tokenizer.x").u32(8).string(b"\xff\xfe");
        assert_says(&value.refused(), &["offset 55", "the value of \"tokenizer.x\" is not UTF-8"]);
        let key = File::new(3, 0, 1).string(b"\xffk").u32(0).bytes(&[1]);
        assert_says(&key.refused(), &["offset 32", "the name of metadata key 1 is not UTF-8"]);
    }

    #[test]
    fn messages_do_not_carry_a_files_control_characters_or_endless_names() {
        let key = format!("\x1b[2J{}", "k".repeat(100_000));
        let message = File::new(3, 0, 1).string(&key).u32(99).refused();
        assert!(message.len() < 400 && !message.contains('\x1b'), "{message}");
        assert_says(&message, &["\\u{1b}[2Jkkk", "(100004 characters)"]);
    }

    #[test]
    fn arrays_of_arrays_of_arrays_end_somewhere() {
        let nest = |depth: usize| {
            let file = File::new(3, 0, 1).string("k").u32(9);
            let file = (1..depth).fold(file, |file, _| file.u32(9).u64(1));
            file.u32(0).u64(1).bytes(&[7])
        };
        let header = nest(MAX_DEPTH).accepted();
        assert_eq!(header.metadata.get("k").and_then(Value::as_array).map(Array::len), Some(1));
        assert_says(&nest(MAX_DEPTH + 1).refused(), &["\"k\"", "more than 8 deep"]);
        // Deep enough to end the process, were the depth not watched.
        assert_says(&nest(1_000_000).refused(), &["more than 8 deep"]);
    }

    #[test]
    fn arrays_of_many_empty_arrays_take_no_more_than_the_file_allows() {
        let n = 1000;
        let file = (0..n).fold(File::new(3, 0, 1).string("k").u32(9).u32(9).u64(n), |file, _| file.u32(9).u64(0));
        assert_eq!(file.accepted().metadata.get("k").and_then(Value::as_array).map(Array::len), Some(1000));
        let file = File::new(3, 0, 1).string("k").u32(9).u32(9).u64(n + 1).bytes(&[0; 12 * 1000]);
        assert_says(&file.refused(), &["counts 1001"]);
    }

    #[test]
    fn a_description_without_end_is_refused() {
        let file = File::new(3, 1, 0).tensor("t", &[8], F32, 0).data(32);
        let mut cursor = Cursor { bytes: &file.0, at: 0, limit: 16 };
        cursor.take(16, What::Magic).unwrap();
        let problem = cursor.u64(What::EntryCount).unwrap_err();
        assert_says(&problem.to_string(), &["offset 16", "beyond the first 16 bytes"]);
    }

    #[test]
    fn alignments_are_powers_of_two() {
        let with = |ty: u32, value: &[u8]| {
            File::new(3, 1, 1).string(ALIGNMENT_KEY).u32(ty).bytes(value).tensor("t", &[8], F32, 0).data(32 + 4096)
        };
        for n in [0u32, 3, 31, 33, u32::MAX] {
            let found = format!("general.alignment is {n} (u32), wanted a power of two");
            assert_says(&with(4, &n.to_le_bytes()).refused(), &[&found]);
        }
        assert_says(&with(10, &32u64.to_le_bytes()).refused(), &["32 (u64)", "of type u32"]);
        assert_says(&with(8, &[0; 8]).refused(), &["a value of type str"]);
        for n in [1u32, 8, 64, 4096] {
            let header = with(4, &n.to_le_bytes()).accepted();
            assert_eq!(header.alignment, u64::from(n));
            assert!(header.ranges[0].start.is_multiple_of(n as usize));
        }
        assert_says(&with(4, &(1u32 << 31).to_le_bytes()).refused(), &["takes the bytes 2147483648 to 2147483680"]);
    }

    #[test]
    fn tensor_names_are_short_unique_and_free_of_zeros() {
        let named = |name: &str| File::new(3, 1, 0).tensor(name, &[8], F32, 0).data(32);
        named(&"n".repeat(63)).accepted();
        assert_says(&named(&"n".repeat(64)).refused(), &["offset 24", "has 64 bytes", "wanted 1 to 63"]);
        assert_says(&named("").refused(), &["has 0 bytes"]);
        assert_says(&named("a\0b").refused(), &["a\\u{0}b", "none of them zero"]);
        let twice = File::new(3, 2, 0).tensor("t", &[8], F32, 0).tensor("t", &[8], F32, 32).data(64);
        assert_says(&twice.refused(), &["offset 57", "tensor \"t\" a second time"]);
    }

    #[test]
    fn shapes_that_ggml_cannot_hold_are_refused() {
        let shaped = |dims: &[u64], ty| File::new(3, 1, 0).tensor("t", dims, ty, 0).data(4096);
        shaped(&[4, 3, 2, 1], F32).accepted();
        assert_says(&shaped(&[], F32).refused(), &["offset 24", "\"t\" has 0 dimensions", "wanted 1 to 4"]);
        assert_says(&shaped(&[1; 5], F32).refused(), &["5 dimensions"]);
        let many = File::new(3, 1, 0).string("t").u32(u32::MAX).data(64);
        assert_says(&many.refused(), &["4294967295 dimensions"]);
        assert_says(&shaped(&[0], F32).refused(), &["[0] is empty"]);
        assert_says(&shaped(&[8, 0, 8], F32).refused(), &["[8, 0, 8] is empty"]);
        for dims in [
            &[u64::MAX][..],
            &[1 << 63],
            &[1 << 32, 1 << 32],
            &[1 << 31, 1 << 31, 1 << 31],
            &[1 << 62, 4, 1, 1],
            &[1 << 61, 1],
        ] {
            assert_says(&shaped(dims, F32).refused(), &["offset 24", "larger than ggml can count"]);
        }
        assert_says(&shaped(&[100, 4], Q4_K).refused(), &["rows of 100 weights", "multiple of 256", "Q4_K"]);
    }

    #[test]
    fn tensor_types_never_given_out_are_refused() {
        for ty in [4, 5, 31, 33, 36, 38, 43, u32::MAX] {
            let file = File::new(3, 1, 0).tensor("t", &[256], ty, 0).data(4096);
            assert_says(&file.refused(), &["offset 45", "tensor \"t\"", &format!("the type {ty}")]);
        }
    }

    #[test]
    fn tensors_follow_one_another() {
        let second_at = |offset| File::new(3, 2, 0).tensor("a", &[9], F32, 0).tensor("b", &[8], F32, offset).data(4096);
        second_at(64).accepted();
        // Overlapping, unaligned, with a gap, before the first, and so far that a sum overflows.
        for offset in [0, 32, 36, 96, u64::MAX, u64::MAX - 31, 1 << 63] {
            let found = format!("begin at {offset} ");
            assert_says(&second_at(offset).refused(), &["offset 82", "tensor \"b\"", &found, "wanted 64"]);
        }
        let first_at = File::new(3, 1, 0).tensor("a", &[8], F32, 32).data(4096);
        assert_says(&first_at.refused(), &["begin at 32", "wanted 0"]);
    }

    #[test]
    fn tensors_that_sum_up_to_more_than_a_file_can_hold_are_refused() {
        let half = (1u64 << 62) / 4;
        let file = File::new(3, 2, 0).tensor("a", &[half], F32, 0).tensor("b", &[half], F32, 1 << 62).data(64);
        assert_says(&file.refused(), &["tensor \"b\" ends beyond what a file can hold"]);
    }

    #[test]
    fn a_tensor_past_the_end_is_named_with_what_is_missing() {
        let file = File::new(3, 2, 0).tensor("a", &[8], F32, 0).tensor("b", &[8], F32, 32).data(63);
        let wanted = ["\"b\"", "the bytes 128 to 160", "ends at 159 where 160 are wanted", "download"];
        assert_says(&file.refused(), &wanted);
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut file = sample();
            for (index, byte) in flips {
                *index.get_mut(&mut file) = byte;
            }
            if let Ok(header) = Header::parse(&file) {
                for range in header.ranges {
                    prop_assert!(file.get(range).is_some());
                }
            }
        }

        #[test]
        fn bytes_of_any_kind_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Header::parse(&bytes);
            let _ = Header::parse(&File::new(3, 2, 2).bytes(&bytes).0);
            let _ = Header::parse(&File::new(3, 1, 0).string("t").u32(2).bytes(&bytes).0);
        }
    }
}
