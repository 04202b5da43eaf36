//! Rewrites checkpoints in other forms, for tests: several shards with an index, and PyTorch archives with a pickle as
//! `torch.save` writes it. Tensors stream from the source's mapping; not part of the library's promise.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::safetensors::Writer;
use super::{Checkpoint, DType, Error, Tensor};

/// The trained model that comes with the sources.
#[cfg(test)]
pub(crate) fn yi_nano() -> Checkpoint {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/yi-nano");
    Checkpoint::open(&dir).expect("the bundled model is whole")
}

/// A tensor as a pickle describes it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PickledTensor {
    pub name: String,
    pub dtype: DType,
    /// The storage's name, its number of elements, and the tensor's first element in it.
    pub key: String,
    pub storage_len: u64,
    pub offset: u64,
    /// Slowest dimension first.
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// The pickle of a state dict, instruction for instruction as `torch.save` writes it, `_metadata` included.
///
/// # Panics
/// For a dtype that PyTorch has no storage class for.
pub fn pickle_state_dict(tensors: &[PickledTensor]) -> Vec<u8> {
    let mut p = Pickler::default();
    p.op(b"\x80\x02ccollections\nOrderedDict\n");
    p.memo();
    p.op(b")R");
    p.memo();
    p.op(b"(");
    for tensor in tensors {
        p.str(&tensor.name);
        p.op(b"ctorch._utils\n_rebuild_tensor_v2\n");
        p.memo();
        p.op(b"((");
        p.str("storage");
        p.op(format!("ctorch\n{}\n", storage_class(tensor.dtype)).as_bytes());
        p.memo();
        p.str(&tensor.key);
        p.str("cpu");
        p.int(tensor.storage_len);
        p.op(b"t");
        p.memo();
        p.op(b"Q");
        p.int(tensor.offset);
        p.tuple(&tensor.shape);
        p.tuple(&tensor.strides);
        // requires_grad, and an empty OrderedDict of hooks.
        p.op(b"\x89h\x00)R");
        p.memo();
        p.op(b"t");
        p.memo();
        p.op(b"R");
        p.memo();
    }
    p.op(b"u}");
    p.memo();
    p.str("_metadata");
    p.op(b"h\x00)R");
    p.memo();
    p.str("");
    p.op(b"}");
    p.memo();
    p.str("version");
    p.op(b"K\x01sssb.");
    p.bytes
}

#[derive(Default)]
struct Pickler {
    bytes: Vec<u8>,
    n_memo: u32,
}

impl Pickler {
    fn op(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn memo(&mut self) {
        match u8::try_from(self.n_memo) {
            Ok(slot) => self.op(&[b'q', slot]),
            Err(_) => {
                self.op(b"r");
                self.op(&self.n_memo.to_le_bytes());
            }
        }
        self.n_memo += 1;
    }

    fn str(&mut self, text: &str) {
        self.op(b"X");
        self.op(&(text.len() as u32).to_le_bytes());
        self.op(text.as_bytes());
        self.memo();
    }

    fn int(&mut self, value: u64) {
        if let Ok(value) = u8::try_from(value) {
            self.op(&[b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.op(b"M");
            self.op(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.op(b"J");
            self.op(&value.to_le_bytes());
        } else {
            // As short as two's complement allows.
            let bytes = value.to_le_bytes();
            let len = (8 - value.leading_zeros() as usize / 8).min(8);
            let padding = u8::from(value.leading_zeros().is_multiple_of(8));
            self.op(&[0x8a, len as u8 + padding]);
            self.op(&bytes[..len]);
            self.op(&[0][..padding.into()]);
        }
    }

    fn tuple(&mut self, values: &[u64]) {
        match values {
            [] => return self.op(b")"),
            [_, _, _, _, ..] => self.op(b"("),
            _ => {}
        }
        for &value in values {
            self.int(value);
        }
        self.op(match values.len() {
            1 => b"\x85",
            2 => b"\x86",
            3 => b"\x87",
            _ => b"t",
        });
        self.memo();
    }
}

fn storage_class(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "DoubleStorage",
        DType::F32 => "FloatStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::I32 => "IntStorage",
        DType::I16 => "ShortStorage",
        DType::I8 => "CharStorage",
        DType::U8 => "ByteStorage",
        DType::Bool => "BoolStorage",
        DType::Other(name) => panic!("no storage class for {name:?}"),
    }
}

/// A zip archive as `torch.save` lays it out: nothing compressed, data at multiples of 64 bytes.
///
/// # Errors
/// If it cannot be written.
pub fn write_zip<'a>(
    out: &mut (impl Write + Seek),
    entries: impl Iterator<Item = (String, &'a [u8])>,
) -> zip::result::ZipResult<()> {
    let mut zip = ZipWriter::new(out);
    for (name, data) in entries {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::STORE)
            .large_file(data.len() as u64 >= u64::from(u32::MAX))
            .with_alignment(64);
        zip.start_file(name, options)?;
        zip.write_all(data)?;
    }
    zip.finish()?;
    Ok(())
}

/// Writes the checkpoint at `from` into the folder `to` as `n_shards` safetensors files and their index, or one file
/// without an index for `n_shards` 1, with the configuration and tokenizer files beside them.
///
/// # Errors
/// If the checkpoint cannot be read or the folder not written.
pub fn rewrite_as_safetensors(from: &Path, to: &Path, n_shards: usize) -> Result<(), Error> {
    let source = Checkpoint::open(from)?;
    copy_small_files(source.dir(), to)?;
    let names = shard_names("model", "safetensors", n_shards);
    let mut index = Vec::new();
    for (name, tensors) in names.iter().zip(shares(source.tensors(), n_shards)) {
        let specs: Vec<_> = tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone())).collect();
        let mut writer = Writer::create(&to.join(name), &specs, &[("format", "pt")])?;
        for tensor in tensors {
            writer.write(source.data(tensor))?;
            index.push((tensor.name.clone(), name.clone()));
        }
        writer.finish()?;
    }
    write_index(&to.join("model.safetensors.index.json"), n_shards, index)
}

/// Writes the checkpoint at `from` into the folder `to` as `n_shards` PyTorch files and their index, or one file without
/// an index for `n_shards` 1, with the configuration and tokenizer files beside them.
///
/// # Errors
/// If the checkpoint cannot be read or the folder not written.
pub fn rewrite_as_pytorch(from: &Path, to: &Path, n_shards: usize) -> Result<(), Error> {
    let source = Checkpoint::open(from)?;
    copy_small_files(source.dir(), to)?;
    let names = shard_names("pytorch_model", "bin", n_shards);
    let mut index = Vec::new();
    for (name, tensors) in names.iter().zip(shares(source.tensors(), n_shards)) {
        let stem = name.strip_suffix(".bin").unwrap_or(name);
        let pickled: Vec<_> = tensors.iter().enumerate().map(|(i, tensor)| pickled(i, tensor)).collect();
        let pickle = pickle_state_dict(&pickled);
        let data = tensors.iter().enumerate().map(|(i, t)| (format!("{stem}/data/{i}"), source.data(t)));
        let entries = std::iter::once((format!("{stem}/data.pkl"), pickle.as_slice()))
            .chain(data)
            .chain([(format!("{stem}/version"), b"3\n".as_slice()), (format!("{stem}/byteorder"), b"little")]);
        let path = to.join(name);
        let file = File::create(&path).map_err(Error::io(&path))?;
        write_zip(&mut BufWriter::new(file), entries)
            .map_err(|e| Error::Write { path: path.clone(), problem: e.to_string() })?;
        index.extend(tensors.iter().map(|t| (t.name.clone(), name.clone())));
    }
    write_index(&to.join("pytorch_model.bin.index.json"), n_shards, index)
}

fn pickled(i: usize, tensor: &Tensor) -> PickledTensor {
    let mut strides = vec![1; tensor.shape.len()];
    for d in (1..strides.len()).rev() {
        strides[d - 1] = strides[d] * tensor.shape[d];
    }
    PickledTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        key: i.to_string(),
        storage_len: tensor.n_elements(),
        offset: 0,
        shape: tensor.shape.clone(),
        strides,
    }
}

/// `n` runs of about as many tensors each; later ones may be empty.
fn shares(tensors: &[Tensor], n: usize) -> impl Iterator<Item = &[Tensor]> {
    let len = tensors.len();
    (0..n).map(move |i| &tensors[len * i / n..len * (i + 1) / n])
}

fn shard_names(stem: &str, extension: &str, n: usize) -> Vec<String> {
    match n {
        1 => vec![format!("{stem}.{extension}")],
        _ => (1..=n).map(|i| format!("{stem}-{i:05}-of-{n:05}.{extension}")).collect(),
    }
}

fn write_index(path: &Path, n_shards: usize, index: Vec<(String, String)>) -> Result<(), Error> {
    if n_shards == 1 {
        return Ok(());
    }
    let map: serde_json::Map<_, _> = index.into_iter().map(|(tensor, shard)| (tensor, shard.into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(path, index.to_string()).map_err(Error::io(path))
}

/// Copies the files that are not weights.
fn copy_small_files(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::io(to))?;
    for entry in fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = [".safetensors", ".bin", ".index.json", ".gguf"].iter().any(|end| name.ends_with(end));
        if path.is_file() && !weights {
            fs::copy(&path, to.join(&name)).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}
