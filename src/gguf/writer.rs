//! Planning a GGUF file to the byte before any of it is written.
//!
//! ```text
//! part.header                          metadata and tensor descriptions, padded to the alignment
//! part.offsets[0]  = header.len()      first tensor, zeros up to the alignment
//! part.offsets[1]                      second tensor, zeros up to the alignment
//! ...
//! part.total_bytes                     end of the last tensor, padded as well
//! ```
//!
//! With that plan, tensors can be written in any order and by several threads, each at its offset: make the file
//! `total_bytes` long first, so that the padding reads as zeros, then write the header at 0. The bytes depend on
//! nothing but the arguments, and are those that gguf-py and ggml write: version 3, all tensors padded, the last too.

use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::Range;

use super::error::shown;
use super::parse::ALIGNMENT_KEY;
use super::{Array, DEFAULT_ALIGNMENT, LayoutError, MAX_DEPTH, Metadata, TensorInfo, Value, ValueType, split};

/// The version of the format that is written.
const VERSION: u32 = 3;

/// The layout of a model's file, or files: everything but the tensors' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    parts: Vec<Part>,
    tensors: Vec<TensorInfo>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Everything before the tensor data, padding included.
    pub header: Vec<u8>,
    /// The tensors in this file, as indices into [`Layout::tensors`].
    pub tensors: Range<usize>,
    /// The offset of each tensor, in bytes from the beginning of the file.
    pub offsets: Vec<u64>,
    /// The size of the file, padding after the last tensor included.
    pub total_bytes: u64,
}

impl Layout {
    /// Plans a model of these tensors, in this order.
    ///
    /// `general.alignment` is written where `alignment` is not 32, and the `split.*` keys where there is more than one
    /// file; the same keys in `metadata`, left from another file, are dropped.
    ///
    /// With `split_max_bytes` no file is larger, unless a single tensor is, or the metadata together with the first tensor.
    ///
    /// # Errors
    /// If a tensor breaks one of ggml's rules, a name is given twice, or the sizes do not fit the format.
    pub fn new(
        metadata: &Metadata,
        tensors: Vec<TensorInfo>,
        alignment: u64,
        split_max_bytes: Option<u64>,
    ) -> Result<Self, LayoutError> {
        let sizes = check(metadata, &tensors, alignment)?;
        let metadata = Keys::new(metadata, alignment);
        let all = 0..tensors.len();
        let ranges = match split_max_bytes {
            None => vec![all],
            Some(max_bytes) => cut(&metadata, &tensors, &sizes, alignment, max_bytes)?,
        };

        let n_parts = ranges.len();
        if n_parts > 1 && i32::try_from(tensors.len()).is_err() {
            return Err(LayoutError::TooManyTensors { found: tensors.len() });
        }
        let parts = ranges
            .into_iter()
            .enumerate()
            .map(|(part, range)| {
                let keys = metadata.of_part(part, n_parts, tensors.len());
                lay_out(&keys, &tensors[range.clone()], &sizes[range.clone()], range, alignment)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { parts, tensors })
    }

    /// The files. [`super::file_name`] names them.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All tensors, in the order they were given.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the file that holds tensor `index`, and its offset in that file, in bytes.
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn place(&self, index: usize) -> (usize, u64) {
        assert!(index < self.tensors.len(), "tensor {index} of {}", self.tensors.len());
        let part = self.parts.partition_point(|part| part.tensors.end <= index);
        (part, self.parts[part].offsets[index - self.parts[part].tensors.start])
    }

    /// The size of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.total_bytes).fold(0, u64::saturating_add)
    }

    /// Writes file `part` from beginning to end. `data` returns the bytes of a tensor by its index in [`Self::tensors`].
    ///
    /// # Errors
    /// If `out` cannot be written to, or the size of a tensor's data does not match its shape and type.
    ///
    /// # Panics
    /// When there is no such part.
    pub fn write_part<D: AsRef<[u8]>>(
        &self,
        part: usize,
        out: &mut impl Write,
        mut data: impl FnMut(usize) -> D,
    ) -> io::Result<()> {
        let part = &self.parts[part];
        out.write_all(&part.header)?;
        let ends = part.offsets.iter().skip(1).chain([&part.total_bytes]);
        for ((index, &begin), &end) in part.tensors.clone().zip(&part.offsets).zip(ends) {
            let (info, data) = (&self.tensors[index], data(index));
            let data = data.as_ref();
            if info.n_bytes() != Some(data.len() as u64) {
                let wanted = info.n_bytes().unwrap_or_default();
                let message =
                    format!("tensor {} was given {} bytes of data, wanted {wanted}", shown(&info.name), data.len());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            out.write_all(data)?;
            pad(out, end - begin - data.len() as u64)?;
        }
        Ok(())
    }
}

/// Checks everything by the format's rules. Returns the bytes of each tensor's data, without padding.
fn check(metadata: &Metadata, tensors: &[TensorInfo], alignment: u64) -> Result<Vec<u64>, LayoutError> {
    if !alignment.is_power_of_two() || u32::try_from(alignment).is_err() {
        return Err(LayoutError::Alignment { found: alignment });
    }
    for (key, value) in metadata.iter() {
        if key.is_empty() {
            return Err(LayoutError::EmptyKey);
        }
        if matches!(value, Value::Array(array) if depth(array) > MAX_DEPTH) {
            return Err(LayoutError::Depth { key: shown(key) });
        }
    }
    let mut names = HashSet::new();
    tensors
        .iter()
        .map(|info| {
            let bytes = info.check().map_err(LayoutError::Tensor)?;
            match names.insert(&info.name) {
                true => Ok(bytes),
                false => Err(LayoutError::DuplicateTensor { name: shown(&info.name) }),
            }
        })
        .collect()
}

/// 1 for an array of plain values, one more for each array around it.
fn depth(array: &Array) -> usize {
    match array {
        Array::Array(inner) => 1 + inner.iter().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

/// The keys of all files.
struct Keys {
    /// Everything but the `split.*` keys.
    all: Metadata,
    /// What every later part repeats: the alignment, since each file is read by itself.
    alignment: Metadata,
}

impl Keys {
    fn new(metadata: &Metadata, alignment: u64) -> Self {
        let mut all = metadata.clone();
        for key in [split::NO, split::COUNT, split::TENSORS_COUNT] {
            all.remove(key);
        }
        let mut repeated = Metadata::new();
        if alignment == DEFAULT_ALIGNMENT {
            all.remove(ALIGNMENT_KEY);
        } else {
            // `check` has seen that it fits.
            all.set(ALIGNMENT_KEY, alignment as u32);
            repeated.set(ALIGNMENT_KEY, alignment as u32);
        }
        Self { all, alignment: repeated }
    }

    fn of_part(&self, part: usize, n_parts: usize, n_tensors: usize) -> Metadata {
        let mut keys = if part == 0 { self.all.clone() } else { self.alignment.clone() };
        if n_parts > 1 {
            // `cut` and `new` have seen that these fit; while `cut` measures, only their sizes matter.
            keys.set(split::NO, part as u16);
            keys.set(split::COUNT, n_parts as u16);
            keys.set(split::TENSORS_COUNT, n_tensors as i32);
        }
        keys
    }
}

/// Cuts the tensors into runs whose files stay within `max_bytes`.
fn cut(
    keys: &Keys,
    tensors: &[TensorInfo],
    sizes: &[u64],
    alignment: u64,
    max_bytes: u64,
) -> Result<Vec<Range<usize>>, LayoutError> {
    let keys_bytes = |part, n_parts| preamble(&keys.of_part(part, n_parts, tensors.len()), 0).len() as u64;
    let infos: Vec<u64> = tensors.iter().map(info_bytes).collect();
    let padded = |n: u64| n.checked_next_multiple_of(alignment).ok_or(LayoutError::TooLarge);
    let file = |descriptions: u64, data: u64| padded(descriptions)?.checked_add(data).ok_or(LayoutError::TooLarge);
    let sum = |numbers: &[u64]| {
        numbers.iter().try_fold(0u64, |sum, &n| sum.checked_add(padded(n)?).ok_or(LayoutError::TooLarge))
    };
    if file(keys_bytes(0, 1) + infos.iter().sum::<u64>(), sum(sizes)?)? <= max_bytes {
        let all = 0..tensors.len();
        return Ok(vec![all]);
    }

    let (first_keys, later_keys) = (keys_bytes(0, 2), keys_bytes(1, 2));
    let mut ranges = vec![];
    let mut start = 0;
    let (mut descriptions, mut data) = (first_keys, 0u64);
    for index in 0..tensors.len() {
        let size = padded(sizes[index])?;
        let full = file(descriptions + infos[index], data)?.checked_add(size).is_none_or(|bytes| bytes > max_bytes);
        if full && index > start {
            ranges.push(start..index);
            start = index;
            (descriptions, data) = (later_keys, 0);
        }
        descriptions += infos[index];
        data = data.checked_add(size).ok_or(LayoutError::TooLarge)?;
    }
    ranges.push(start..tensors.len());
    match u16::try_from(ranges.len()) {
        Ok(_) => Ok(ranges),
        Err(_) => Err(LayoutError::TooManyParts { parts: ranges.len(), max_bytes }),
    }
}

/// One file: `infos` and `sizes` are those of the tensors in `range`.
fn lay_out(
    keys: &Metadata,
    infos: &[TensorInfo],
    sizes: &[u64],
    range: Range<usize>,
    alignment: u64,
) -> Result<Part, LayoutError> {
    let mut header = preamble(keys, infos.len());
    let mut offsets = Vec::with_capacity(infos.len());
    let mut end = 0u64;
    for (info, &size) in infos.iter().zip(sizes) {
        put_info(&mut header, info, end);
        offsets.push(end);
        end = end
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or(LayoutError::TooLarge)?;
    }
    let base = (header.len() as u64).next_multiple_of(alignment);
    let total_bytes = base.checked_add(end).filter(|&n| i64::try_from(n).is_ok()).ok_or(LayoutError::TooLarge)?;
    header.resize(usize::try_from(base).map_err(|_| LayoutError::TooLarge)?, 0);
    // Each is smaller than the total, whose sum has just been checked.
    offsets.iter_mut().for_each(|offset| *offset += base);
    Ok(Part { header, tensors: range, offsets, total_bytes })
}

/// The file up to the tensors' descriptions.
fn preamble(keys: &Metadata, n_tensors: usize) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((n_tensors as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys.iter() {
        put_string(&mut out, key);
        out.extend(value.value_type().id().to_le_bytes());
        put_value(&mut out, value);
    }
    out
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let ty: ValueType = array.element_type();
    out.extend(ty.id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => v.iter().for_each(|v| put_string(out, v)),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
    }
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

fn put_info(out: &mut Vec<u8>, info: &TensorInfo, offset: u64) {
    put_string(out, &info.name);
    out.extend((info.dims.len() as u32).to_le_bytes());
    info.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
    out.extend(info.ty.id().to_le_bytes());
    out.extend(offset.to_le_bytes());
}

/// The bytes that `put_info` writes.
fn info_bytes(info: &TensorInfo) -> u64 {
    (8 + info.name.len() + 4 + 8 * info.dims.len() + 4 + 8) as u64
}

fn pad(out: &mut impl Write, n: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), n), out).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gguf::parse::Header;
    use crate::gguf::{TensorProblem, TensorType};

    fn tensor(name: &str, dims: &[u64], ty: TensorType) -> TensorInfo {
        TensorInfo { name: name.to_string(), dims: dims.to_vec(), ty }
    }

    fn bytes_of(index: usize, info: &TensorInfo) -> Vec<u8> {
        vec![index as u8 ^ 0xa5; info.n_bytes().unwrap() as usize]
    }

    fn file(layout: &Layout, part: usize) -> Vec<u8> {
        let mut file = vec![];
        layout.write_part(part, &mut file, |index| bytes_of(index, &layout.tensors()[index])).unwrap();
        file
    }

    #[test]
    fn a_small_file_byte_by_byte() {
        let mut metadata = Metadata::new();
        metadata.set("k", "v");
        let layout = Layout::new(&metadata, vec![tensor("t", &[3], TensorType::F32)], 32, None).unwrap();
        let mut wanted = b"GGUF\x03\0\0\0".to_vec();
        wanted.extend(b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
        wanted.extend(b"\x01\0\0\0\0\0\0\0k\x08\0\0\0\x01\0\0\0\0\0\0\0v");
        wanted.extend(b"\x01\0\0\0\0\0\0\0t\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        wanted.resize(96, 0);
        wanted.extend([0xa5; 12]);
        wanted.resize(128, 0);
        assert_eq!(file(&layout, 0), wanted);
        assert_eq!(layout.parts()[0].offsets, [96]);
        assert_eq!(layout.parts()[0].total_bytes, 128);
    }

    #[test]
    fn alignment_is_written_only_where_it_is_not_32() {
        let mut metadata = Metadata::new();
        metadata.set(ALIGNMENT_KEY, 4096u32);
        metadata.set("split.count", 7u16);
        let tensors = vec![tensor("t", &[3], TensorType::F32), tensor("u", &[3], TensorType::F32)];
        let parse = |alignment| {
            let layout = Layout::new(&metadata, tensors.clone(), alignment, None).unwrap();
            Header::parse(&file(&layout, 0)).unwrap()
        };
        assert!(parse(32).metadata.is_empty());
        let header = parse(256);
        assert_eq!(header.metadata.get(ALIGNMENT_KEY), Some(&Value::U32(256)));
        assert_eq!(header.ranges, [256..268, 512..524]);
    }

    #[test]
    fn what_the_reader_refuses_cannot_be_laid_out() {
        let refused = |metadata: &Metadata, tensors: &[TensorInfo], alignment| {
            Layout::new(metadata, tensors.to_vec(), alignment, None).unwrap_err()
        };
        let none = Metadata::new();
        for found in [0, 3, 1 << 32, u64::MAX] {
            assert_eq!(refused(&none, &[], found), LayoutError::Alignment { found });
        }
        let mut empty_key = Metadata::new();
        empty_key.set("", 1u8);
        assert_eq!(refused(&empty_key, &[], 32), LayoutError::EmptyKey);
        let deep = (0..MAX_DEPTH).fold(Array::U8(vec![]), |array, _| Array::Array(vec![array]));
        let mut nested = Metadata::new();
        nested.set("k", Value::Array(deep));
        assert_eq!(refused(&nested, &[], 32), LayoutError::Depth { key: "\"k\"".into() });

        let one = tensor("t", &[8], TensorType::F32);
        assert_eq!(
            refused(&none, &[one.clone(), one.clone()], 32),
            LayoutError::DuplicateTensor { name: "\"t\"".into() }
        );
        let problem = |dims: &[u64], ty| match refused(&none, &[tensor("t", dims, ty)], 32) {
            LayoutError::Tensor(problem) => problem,
            other => panic!("{other}"),
        };
        assert!(matches!(problem(&[], TensorType::F32), TensorProblem::Dimensions { found: 0, .. }));
        assert!(matches!(problem(&[2, 0], TensorType::F32), TensorProblem::Empty { .. }));
        assert!(matches!(problem(&[100], TensorType::Q4_K), TensorProblem::Block { row_len: 100, .. }));
        assert!(matches!(problem(&[1 << 62], TensorType::F32), TensorProblem::TooLarge { .. }));
        let huge = 1 << 60;
        let halves = [tensor("a", &[huge], TensorType::F32), tensor("b", &[huge], TensorType::F32)];
        assert_eq!(refused(&none, &halves, 32), LayoutError::TooLarge);
        assert_eq!(Layout::new(&none, halves.to_vec(), 32, Some(1000)).unwrap().parts().len(), 2);
    }

    #[test]
    fn data_of_the_wrong_length_is_refused() {
        let layout = Layout::new(&Metadata::new(), vec![tensor("t", &[3], TensorType::F32)], 32, None).unwrap();
        let error = layout.write_part(0, &mut vec![], |_| [0; 11]).unwrap_err();
        assert_eq!(error.to_string(), "tensor \"t\" was given 11 bytes of data, wanted 12");
    }

    #[test]
    fn a_split_that_would_need_more_parts_than_can_be_counted_is_refused() {
        let tensors: Vec<_> = (0..70_000).map(|n| tensor(&n.to_string(), &[8], TensorType::F32)).collect();
        let error = Layout::new(&Metadata::new(), tensors, 32, Some(100)).unwrap_err();
        assert_eq!(error, LayoutError::TooManyParts { parts: 70_000, max_bytes: 100 });
    }

    fn values() -> impl Strategy<Value = Value> {
        // No NaN: it does not equal itself. The bytes are compared as well.
        let f32s = || prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::INFINITE;
        let f64s = || prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::INFINITE;
        prop_oneof![
            any::<u8>().prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            any::<u16>().prop_map(Value::from),
            any::<i16>().prop_map(Value::from),
            any::<u32>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            f32s().prop_map(Value::from),
            f64s().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            arrays().prop_map(Value::Array),
        ]
    }

    fn arrays() -> impl Strategy<Value = Array> {
        use prop::collection::vec;
        let plain = prop_oneof![
            vec(any::<u8>(), 0..9).prop_map(Array::U8),
            vec(any::<i8>(), 0..9).prop_map(Array::I8),
            vec(any::<u16>(), 0..9).prop_map(Array::U16),
            vec(any::<i16>(), 0..9).prop_map(Array::I16),
            vec(any::<u32>(), 0..9).prop_map(Array::U32),
            vec(any::<i32>(), 0..9).prop_map(Array::I32),
            vec(any::<u64>(), 0..9).prop_map(Array::U64),
            vec(any::<i64>(), 0..9).prop_map(Array::I64),
            vec(any::<bool>(), 0..9).prop_map(Array::Bool),
            vec(prop::num::f32::NORMAL, 0..9).prop_map(Array::F32),
            vec(prop::num::f64::NORMAL, 0..9).prop_map(Array::F64),
            vec(any::<String>(), 0..9).prop_map(Array::String),
        ];
        plain.prop_recursive(MAX_DEPTH as u32 - 1, 32, 4, |inner| vec(inner, 0..4).prop_map(Array::Array))
    }

    fn models() -> impl Strategy<Value = (Metadata, Vec<TensorInfo>, u64)> {
        let metadata = prop::collection::vec(("[a-z._\u{4e00}-\u{4e10}]{1,12}", values()), 0..8).prop_map(|entries| {
            let mut metadata = Metadata::new();
            metadata.extend(entries);
            metadata
        });
        let info =
            (prop::sample::select(TensorType::ALL), prop::collection::vec(1u64..4, 1..5)).prop_map(|(ty, mut dims)| {
                dims[0] *= ty.block_len() as u64;
                TensorInfo { name: String::new(), dims, ty }
            });
        let tensors = prop::collection::vec(info, 0..12).prop_map(|mut infos| {
            infos.iter_mut().enumerate().for_each(|(n, info)| info.name = format!("blk.{n}.weight"));
            infos
        });
        (metadata, tensors, prop::sample::select(vec![1u64, 8, 32, 64, 512]))
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back((metadata, tensors, alignment) in models()) {
            let layout = Layout::new(&metadata, tensors.clone(), alignment, None).unwrap();
            let bytes = file(&layout, 0);
            prop_assert_eq!(bytes.len() as u64, layout.parts()[0].total_bytes);
            let header = Header::parse(&bytes).unwrap();

            let mut wanted = metadata;
            if alignment != 32 {
                wanted.set(ALIGNMENT_KEY, alignment as u32);
            }
            prop_assert_eq!(&header.metadata, &wanted);
            prop_assert_eq!(&header.tensors, &tensors);
            prop_assert_eq!(header.alignment, alignment);
            for (index, range) in header.ranges.iter().enumerate() {
                prop_assert_eq!(layout.place(index), (0, range.start as u64));
                prop_assert_eq!(&bytes[range.clone()], bytes_of(index, &tensors[index]));
            }
            let again = Layout::new(&header.metadata, header.tensors, alignment, None).unwrap();
            prop_assert_eq!(again, layout);
        }

        #[test]
        fn a_split_keeps_every_tensor_and_its_promise(
            (metadata, tensors, alignment) in models(),
            max_bytes in 0u64..8192,
        ) {
            let layout = Layout::new(&metadata, tensors.clone(), alignment, Some(max_bytes)).unwrap();
            let n_parts = layout.parts().len();
            let mut read = vec![];
            for (part, plan) in layout.parts().iter().enumerate() {
                let bytes = file(&layout, part);
                prop_assert_eq!(bytes.len() as u64, plan.total_bytes);
                prop_assert!(plan.total_bytes <= max_bytes || plan.tensors.len() <= 1);
                let header = Header::parse(&bytes).unwrap();
                prop_assert_eq!(header.alignment, alignment);
                let wanted = (n_parts > 1).then_some((part, n_parts));
                prop_assert_eq!(split::part_of(&header.metadata).unwrap(), wanted);
                if n_parts > 1 {
                    prop_assert_eq!(split::tensors_count(&header.metadata).unwrap(), tensors.len() as u64);
                }
                for (index, range) in plan.tensors.clone().zip(&header.ranges) {
                    prop_assert_eq!(layout.place(index), (part, range.start as u64));
                    prop_assert_eq!(&bytes[range.clone()], bytes_of(index, &tensors[index]));
                }
                read.extend(header.tensors);
            }
            prop_assert_eq!(read, tensors);
        }
    }
}
