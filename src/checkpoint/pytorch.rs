//! PyTorch's own format: a zip archive with a pickle, which describes the tensors, and a file for each storage.
//!
//! Written by `torch.save` since PyTorch 1.6; see `torch/serialization.py` and `caffe2/serialize/inline_container.h`.
//!
//! ```text
//! NAME/data.pkl      the state dict, with ("storage", type, key, device, length) where a storage belongs
//! NAME/data/KEY      the elements of the storage KEY, uncompressed, at a multiple of 64 bytes
//! NAME/byteorder     "little" or "big", since 2.0
//! NAME/version       "3"
//! ```

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::ZipArchive;

use super::dtype::n_elements;
use super::error::{Error, shown};
use super::json::refuse_pointer;
use super::pickle::{self, Problem, View};
use super::safetensors::Entry;

/// A zip's directory ends with a record of 22 bytes and a comment of at most 65,535.
const DIRECTORY_END: usize = 22 + 65_535;

/// The contents of a PyTorch file.
#[derive(Debug)]
pub(super) struct Contents {
    pub tensors: Vec<Entry>,
    /// Names in the state dict whose values are not tensors.
    pub others: Vec<String>,
}

/// Reads the directory and the pickle of `file`, which holds the bytes of the whole file at `path`.
///
/// # Errors
/// If the archive or its pickle is broken or of another kind, or a tensor is not a contiguous range of bytes in the
/// file.
pub(super) fn read_contents(path: &Path, file: &[u8]) -> Result<Contents, Error> {
    refuse_pointer(path, file)?;
    let entries = read_directory(path, file)?;
    let Some((prefix, pickle)) =
        entries.iter().find_map(|(name, range)| Some((name.strip_suffix("data.pkl")?, range.clone())))
    else {
        return Err(Error::unreadable(path, "a zip archive without data.pkl; torch.save did not write it"));
    };
    if entries.keys().any(|name| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("code/"))) {
        let problem = "a TorchScript program, not a state dict; save the model's state_dict() with torch.save";
        return Err(Error::unreadable(path, problem));
    }
    if let Some(order) = entries.get(&format!("{prefix}byteorder"))
        && file.get(order.clone()) != Some(b"little")
    {
        let order = String::from_utf8_lossy(file.get(order.clone()).unwrap_or_default()).into_owned();
        let problem = format!("its numbers are in byte order \"{}\"; only \"little\" is read", shown(&order));
        return Err(Error::unreadable(path, problem));
    }

    let base = pickle.start as u64;
    let bytes = file.get(pickle).unwrap_or_default();
    let state = pickle::read(bytes).map_err(|problem| match problem {
        Problem::Global(at, global) => Error::Global { path: path.to_path_buf(), offset: base + at as u64, global },
        Problem::At(at, problem) => Error::Format {
            path: path.to_path_buf(),
            offset: base + at as u64,
            problem: format!("in its pickle: {problem}"),
        },
    })?;
    let mut tensors = Vec::with_capacity(state.tensors.len());
    for (name, view) in state.tensors {
        let range = locate(&entries, prefix, &view).map_err(|problem| Error::tensor(path, name, problem))?;
        tensors.push(Entry { name: name.to_string(), dtype: view.dtype, shape: view.shape, range });
    }
    Ok(Contents { tensors, others: state.others.into_iter().map(str::to_string).collect() })
}

/// Returns the archive's entries and the range of their bytes in the file.
fn read_directory(path: &Path, file: &[u8]) -> Result<HashMap<String, Range<usize>>, Error> {
    let fail = |problem: String| Error::unreadable(path, problem);
    if !file.starts_with(b"PK\x03\x04") {
        return Err(not_a_zip(path, file));
    }
    // Look for the record here first: the zip reader would search a truncated file of ten gigabytes from its end to its
    // start.
    let tail = &file[file.len().saturating_sub(DIRECTORY_END)..];
    if !tail.windows(4).any(|window| window == b"PK\x05\x06") {
        return Err(fail(format!(
            "the download was cut short: found {} bytes, wanted a zip directory at their end; download it again",
            file.len()
        )));
    }
    let broken = |e: zip::result::ZipError| fail(format!("its zip directory is broken: {e}; download it again"));
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(broken)?;
    if archive.has_duplicate_names() {
        return Err(fail("its zip directory gives a name twice".to_string()));
    }
    let mut entries = HashMap::with_capacity(archive.len());
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(broken)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.compression() != zip::CompressionMethod::STORE
            || entry.encrypted()
            || entry.size() != entry.compressed_size()
        {
            let problem =
                "is compressed or encrypted; torch.save stores bytes as they are: save the file again with it";
            return Err(fail(format!("its entry {} {problem}", shown(&name))));
        }
        let start = entry.data_start().unwrap_or(u64::MAX);
        let end = start.checked_add(entry.size()).filter(|&end| end <= file.len() as u64).ok_or_else(|| {
            let (size, len) = (entry.size(), file.len());
            fail(format!("its entry {} has {size} bytes from byte {start}, past the file's {len}", shown(&name)))
        })?;
        // Both are at most the file's length.
        entries.insert(name, start as usize..end as usize);
    }
    Ok(entries)
}

/// Returns the error for a file that does not begin like a zip archive.
fn not_a_zip(path: &Path, file: &[u8]) -> Error {
    let problem = match file {
        [] => "the file is empty; download it again".to_string(),
        [0x80, 1..=5, ..] => {
            let file = path.display();
            format!(
                "written in the format PyTorch had before 1.6, which only running code can read; save it again: \
                 python3 -c \"import torch; f = '{file}'; torch.save(torch.load(f, map_location='cpu', weights_only=True), f)\""
            )
        }
        [b'<', ..] => "a web page was saved in its place; download the file again".to_string(),
        _ => {
            let start: Vec<_> = file.iter().take(4).map(|b| format!("{b:02x}")).collect();
            format!("not a PyTorch file: wanted a zip archive (50 4b 03 04), found {}", start.join(" "))
        }
    };
    Error::unreadable(path, problem)
}

/// Returns the range of `view`'s bytes in the file. Checks the view against its storage, and the storage against its
/// entry.
fn locate(entries: &HashMap<String, Range<usize>>, prefix: &str, view: &View) -> Result<Range<usize>, String> {
    let View { storage, dtype, shape, strides, .. } = view;
    let no_size = || format!("{dtype} of shape {shape:?} has no size in bytes");
    let n_elements = n_elements(shape).ok_or_else(no_size)?;
    let n_bytes = dtype.n_bytes(n_elements).ok_or_else(no_size)?;
    if n_elements > 0 && !is_contiguous(shape, strides) {
        return Err(format!(
            "its elements do not follow one another (shape {shape:?}, strides {strides:?}); save it again after calling \
             .contiguous() on it, or as safetensors"
        ));
    }

    let name = format!("{prefix}data/{}", storage.key);
    let entry = entries.get(&name).ok_or_else(|| format!("its storage {} is not in the file", shown(&name)))?;
    let wanted = storage.dtype.map_or(Some(storage.len), |dtype| dtype.n_bytes(storage.len));
    if wanted != Some(entry.len() as u64) {
        let wanted = wanted.map_or("more".to_string(), |n| n.to_string());
        return Err(format!("its storage {}: wanted {wanted} bytes, found {}", shown(&name), entry.len()));
    }
    let past = || format!("{n_bytes} bytes from element {} lie past its storage of {} bytes", view.offset, entry.len());
    // An empty tensor may be at any offset.
    let start = if n_elements == 0 { 0 } else { dtype.n_bytes(view.offset).ok_or_else(past)? };
    let end = start.checked_add(n_bytes).filter(|&end| end <= entry.len() as u64).ok_or_else(past)?;
    // Both are at most the entry's length.
    Ok(entry.start + start as usize..entry.start + end as usize)
}

/// Returns whether the elements are contiguous in row-major order. A dimension of size one may have any stride.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut wanted = 1u64;
    for (&size, &stride) in shape.iter().zip(strides).rev() {
        if size != 1 && stride != wanted {
            return false;
        }
        // The product of all sizes is known to fit.
        wanted = wanted.saturating_mul(size);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dtype::DType;
    use super::super::testing::{PickledTensor, pickle_state_dict, write_zip};
    use super::*;

    const REAL: &[u8] = include_bytes!("../../tests/data/torch/state_dict.bin");

    fn read(bytes: &[u8]) -> Result<Contents, String> {
        read_contents(Path::new("m.bin"), bytes).map_err(|e| e.to_string())
    }

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_zip(&mut Cursor::new(&mut bytes), entries.iter().map(|&(name, data)| (name.to_string(), data))).unwrap();
        bytes
    }

    /// An archive with one tensor of six floats.
    fn small(change: impl FnOnce(&mut PickledTensor)) -> Vec<u8> {
        let mut tensor = PickledTensor {
            name: "w".to_string(),
            dtype: DType::F32,
            key: "0".to_string(),
            storage_len: 6,
            offset: 0,
            shape: vec![2, 3],
            strides: vec![3, 1],
        };
        change(&mut tensor);
        archive(&[("m/data.pkl", &pickle_state_dict(&[tensor])), ("m/data/0", &[7; 24]), ("m/version", b"3\n")])
    }

    #[test]
    fn reads_what_torch_saved() {
        let contents = read(REAL).unwrap();
        assert_eq!(contents.others, [""; 0]);
        let bytes = |name: &str| {
            let entry = contents.tensors.iter().find(|t| t.name == name).unwrap();
            (entry.dtype, entry.shape.clone(), &REAL[entry.range.clone()])
        };
        let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let bf16s =
            |values: &[f32]| values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect::<Vec<_>>();
        let count = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        assert_eq!(bytes("weight"), (DType::BF16, vec![3, 4], &bf16s(&count(12))[..]));
        assert_eq!(bytes("bias"), (DType::BF16, vec![3], &bf16s(&[-1.0, 0.5, 2.0])[..]));
        // 1.5 and -2.5 in half precision.
        assert_eq!(bytes("parameter"), (DType::F16, vec![2], &[0x00, 0x3e, 0x00, 0xc1][..]));
        assert_eq!(bytes("embed"), (DType::F32, vec![5, 4], &f32s(&count(20))[..]));
        assert_eq!(bytes("rows"), (DType::F32, vec![2, 4], &f32s(&count(20)[8..16])[..]));
        assert_eq!(bytes("column"), (DType::F32, vec![2, 1], &f32s(&[1.0, 2.0])[..]));
        assert_eq!(bytes("scalar"), (DType::F64, vec![], &3.25f64.to_le_bytes()[..]));
        assert_eq!(bytes("mask"), (DType::Bool, vec![2], &[1, 0][..]));
        assert_eq!(bytes("empty"), (DType::F32, vec![0, 7], &[][..]));
        let ids: Vec<_> = [1i64, -2, 3].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes("ids"), (DType::I64, vec![1, 3], &ids[..]));
        // Two names for one storage are one range.
        let range = |name: &str| contents.tensors.iter().find(|t| t.name == name).unwrap().range.clone();
        assert_eq!(range("embed"), range("lm_head"));
        assert_eq!(contents.tensors.len(), 11);
    }

    #[test]
    fn other_things_torch_saves_are_explained() {
        let legacy = read(include_bytes!("../../tests/data/torch/legacy.bin")).unwrap_err();
        assert!(legacy.starts_with("m.bin: written in the format PyTorch had before 1.6"), "{legacy}");
        assert!(legacy.contains("torch.load(f, map_location='cpu', weights_only=True), f)"), "{legacy}");
        let nested = read(include_bytes!("../../tests/data/torch/nested.bin")).unwrap_err();
        assert!(nested.contains("found no tensor at its top level (keys: model, epoch)"), "{nested}");
        let transposed = read(include_bytes!("../../tests/data/torch/transposed.bin")).unwrap_err();
        assert_eq!(
            transposed,
            "m.bin: tensor turned: its elements do not follow one another (shape [4, 5], strides [1, 4]); save it again \
             after calling .contiguous() on it, or as safetensors"
        );
        let script = archive(&[("m/data.pkl", b"\x80\x02}."), ("m/code/__torch__.py", b"")]);
        assert!(read(&script).unwrap_err().contains("a TorchScript program"));
        let big = archive(&[("m/data.pkl", b"\x80\x02}."), ("m/byteorder", b"big")]);
        assert!(read(&big).unwrap_err().contains("byte order \"big\"; only \"little\" is read"));
    }

    #[test]
    fn a_file_that_asks_to_run_a_command_is_refused_and_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("ran");
        let command = format!("touch {}", target.display());
        let length = (command.len() as u32).to_le_bytes();
        let attack = [b"\x80\x02cposix\nsystem\nX".as_slice(), &length, command.as_bytes(), b"\x85R."].concat();
        let bytes = archive(&[("m/data.pkl", &attack)]);
        let message = read(&bytes).unwrap_err();
        assert!(message.starts_with("m.bin, byte "), "{message}");
        assert!(
            message.ends_with(
                "this file asks to call posix.system; nibble runs no code from a checkpoint: get the model as \
                 safetensors, or from a source you trust"
            ),
            "{message}"
        );
        assert!(!target.exists());
        // The place named is that of the instruction.
        let place: usize = message["m.bin, byte ".len()..].split(':').next().unwrap().parse().unwrap();
        assert_eq!(&bytes[place..place + 6], b"cposix");
    }

    #[test]
    fn a_cut_download_is_told_apart_from_a_strange_file() {
        let whole = small(|_| ());
        assert!(read(&whole).is_ok());
        let cut = read(&whole[..whole.len() - 30]).unwrap_err();
        let found = whole.len() - 30;
        assert_eq!(
            cut,
            format!(
                "m.bin: the download was cut short: found {found} bytes, wanted a zip directory at their end; download it again"
            )
        );
        assert_eq!(read(b"").unwrap_err(), "m.bin: the file is empty; download it again");
        assert!(read(b"<html>").unwrap_err().contains("a web page"));
        assert_eq!(
            read(b"GGUF").unwrap_err(),
            "m.bin: not a PyTorch file: wanted a zip archive (50 4b 03 04), found 47 47 55 46"
        );
        assert!(read(b"version https://git-lfs.github.com/spec/v1\nsize 9\n").unwrap_err().contains("git lfs pull"));
        assert!(read(&archive(&[("m/x", b"")])).unwrap_err().contains("a zip archive without data.pkl"));
    }

    #[test]
    fn tensors_that_do_not_fit_their_storage_are_refused() {
        let message = |change: fn(&mut PickledTensor)| read(&small(change)).unwrap_err();
        assert_eq!(message(|t| t.storage_len = 7), "m.bin: tensor w: its storage m/data/0: wanted 28 bytes, found 24");
        assert_eq!(message(|t| t.key = "9".into()), "m.bin: tensor w: its storage m/data/9 is not in the file");
        assert_eq!(
            message(|t| t.offset = 1),
            "m.bin: tensor w: 24 bytes from element 1 lie past its storage of 24 bytes"
        );
        assert!(message(|t| (t.shape, t.strides) = (vec![7], vec![1])).contains("28 bytes from element 0 lie past"));
        assert!(message(|t| t.strides = vec![0, 0]).contains("do not follow one another"));
        assert!(
            message(|t| (t.shape, t.strides) = (vec![1 << 40; 2], vec![1 << 40, 1])).contains("has no size in bytes")
        );
        assert!(message(|t| t.key = "../../etc/passwd".into()).contains("is not in the file"));
    }

    #[test]
    fn an_entry_past_the_end_is_refused() {
        let mut bytes = small(|_| ());
        // The directory's record of m/data/0: compressed and plain size are 20 and 24 bytes after its signature.
        let name = bytes.windows(8).rposition(|w| w == b"m/data/0").unwrap();
        for at in [name - 46 + 20, name - 46 + 24] {
            bytes[at..at + 4].copy_from_slice(&0x0fff_ffffu32.to_le_bytes());
        }
        let message = read(&bytes).unwrap_err();
        assert!(message.contains("its entry m/data/0 has 268435455 bytes from byte "), "{message}");
    }

    #[test]
    #[cfg(unix)]
    fn a_shard_of_more_than_four_gigabytes_is_read() {
        use std::os::unix::fs::FileExt;
        // Written by hand around a hole, so that it takes no space: entries on both sides of the 4 GB line.
        const HOLE: u64 = 5 << 30;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.bin");
        let file = std::fs::File::create(&path).unwrap();
        let tensor = |name: &str, key: &str, len: u64| PickledTensor {
            name: name.to_string(),
            dtype: DType::BF16,
            key: key.to_string(),
            storage_len: len / 2,
            offset: 0,
            shape: vec![len / 2],
            strides: vec![1],
        };
        let pickle = pickle_state_dict(&[tensor("big", "0", HOLE), tensor("last", "1", 4)]);
        let mut at = 0u64;
        let mut directory = Vec::new();
        for (name, len, data) in
            [("m/data/0", HOLE, &b""[..]), ("m/data/1", 4, b"last"), ("m/data.pkl", pickle.len() as u64, &pickle)]
        {
            let u32s = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
            let u16s = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
            let u64s = |values: &[u64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
            let local = [
                b"PK\x03\x04".to_vec(),
                u16s(&[45, 0, 0, 0, 0]),
                u32s(&[0, u32::MAX, u32::MAX]),
                u16s(&[name.len() as u16, 20]),
                name.as_bytes().to_vec(),
                u16s(&[1, 16]),
                u64s(&[len, len]),
            ]
            .concat();
            directory.extend(
                [
                    b"PK\x01\x02".to_vec(),
                    u16s(&[45, 45, 0, 0, 0, 0]),
                    u32s(&[0, u32::MAX, u32::MAX]),
                    u16s(&[name.len() as u16, 28, 0, 0, 0]),
                    u32s(&[0, u32::MAX]),
                    name.as_bytes().to_vec(),
                    u16s(&[1, 24]),
                    u64s(&[len, len, at]),
                ]
                .concat(),
            );
            file.write_all_at(&local, at).unwrap();
            file.write_all_at(data, at + local.len() as u64).unwrap();
            at += local.len() as u64 + len;
        }
        let (start, len) = (at, directory.len() as u64);
        let end = [
            directory,
            b"PK\x06\x06".to_vec(),
            44u64.to_le_bytes().to_vec(),
            [45u16, 45].iter().flat_map(|v| v.to_le_bytes()).collect(),
            [0u32; 2].iter().flat_map(|v| v.to_le_bytes()).collect(),
            [3u64, 3, len, start].iter().flat_map(|v| v.to_le_bytes()).collect(),
            b"PK\x06\x07\0\0\0\0".to_vec(),
            (start + len).to_le_bytes().to_vec(),
            1u32.to_le_bytes().to_vec(),
            b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0".to_vec(),
        ]
        .concat();
        file.write_all_at(&end, start).unwrap();

        let map = crate::base::mmap::Mapping::open(&path).unwrap();
        let contents = read_contents(&path, map.bytes()).unwrap();
        assert_eq!(contents.tensors[0].range.len() as u64, HOLE);
        assert!(contents.tensors[1].range.start as u64 > HOLE);
        assert_eq!(&map.bytes()[contents.tensors[1].range.clone()], b"last");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_damage_makes_the_reader_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            keep in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let mut bytes = REAL.to_vec();
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cut {
                bytes.truncate(keep.index(bytes.len()));
            }
            if let Ok(contents) = read_contents(Path::new("m.bin"), &bytes) {
                for tensor in contents.tensors {
                    prop_assert!(bytes.get(tensor.range).is_some());
                }
            }
        }
    }
}
