//! A model's file without its weights: enough to plan with, and to make files of the same shape.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arch::Role;
use crate::gguf::{Array, DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorInfo, Value};

/// What a model's file has before its weights.
#[derive(Clone, Debug)]
pub struct Outline {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    n_layers: u32,
}

/// Bytes of weights, by where they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// What is looked up before the first layer: the token embedding. It is in main memory always.
    pub input: u64,
    /// Each layer.
    pub layers: Vec<u64>,
    /// What comes after the last layer: the output matrix and its norm.
    pub output: u64,
    /// Whether the output matrix is the token embedding, which is held once more where it is used on another device.
    pub is_tied: bool,
}

impl Parts {
    /// Returns the bytes of all weights on one device.
    pub fn total(&self) -> u64 {
        let output = if self.is_tied { self.output.saturating_sub(self.input) } else { self.output };
        self.layers.iter().fold(self.input.saturating_add(output), |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl Outline {
    /// Returns the outline of a file with this metadata and these tensors; `None` if it does not say how many layers it has.
    pub fn new(metadata: Metadata, tensors: Vec<TensorInfo>) -> Option<Self> {
        let arch = metadata.str("general.architecture")?;
        let n_layers = metadata.get(&format!("{arch}.block_count")).and_then(Value::as_u64)?;
        let n_layers = u32::try_from(n_layers).ok().filter(|n| (1..=10_000).contains(n))?;
        Some(Self { metadata, tensors, n_layers })
    }

    /// Returns the outline of `gguf`; `None` if it does not say how many layers it has.
    pub fn of(gguf: &Gguf) -> Option<Self> {
        Self::new(gguf.metadata().clone(), gguf.tensors().to_vec())
    }

    /// Returns the outline of a file with these tensors, whose vocabulary is not known but for its size. `metadata` are the
    /// architecture's keys.
    pub fn without_vocabulary(mut metadata: Metadata, tensors: Vec<TensorInfo>, n_vocab: u32) -> Option<Self> {
        metadata.set("tokenizer.ggml.model", "llama");
        let tokens = (0..n_vocab).map(|id| format!("<{id}>")).collect();
        metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
        metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; n_vocab as usize])));
        // Without one that is unknown (2), some texts could not be written in the others (1).
        let types = (0..n_vocab).map(|id| if id == 0 { 2 } else { 1 }).collect();
        metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
        Self::new(metadata, tensors)
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Its layers.
    pub fn n_layers(&self) -> u32 {
        self.n_layers
    }

    /// Returns the bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.n_bytes().unwrap_or(0)))
    }

    /// Returns where its bytes are used.
    pub fn parts(&self) -> Parts {
        let mut parts = Parts { layers: vec![0; self.n_layers as usize], ..Parts::default() };
        let mut has_output = false;
        for tensor in &self.tensors {
            let bytes = tensor.n_bytes().unwrap_or(0);
            let (_, layer) = Role::of(&tensor.name);
            let layer = layer.and_then(|layer| parts.layers.get_mut(layer as usize));
            let part = match (layer, tensor.name.as_str()) {
                (Some(layer), _) => layer,
                (None, name) if name.starts_with("output") => {
                    has_output |= name == "output.weight";
                    &mut parts.output
                }
                (None, _) => &mut parts.input,
            };
            *part = part.saturating_add(bytes);
        }
        if !has_output {
            parts.is_tied = true;
            parts.output = parts.output.saturating_add(parts.input);
        }
        parts
    }

    /// Returns the outline of a model of the first `n` layers of this one, and everything that is in no layer.
    pub fn first_layers(&self, n: u32) -> Self {
        let n = n.clamp(1, self.n_layers);
        let mut metadata = self.metadata.clone();
        if n < self.n_layers {
            let arch = self.metadata.str("general.architecture").unwrap_or_default();
            metadata.set(format!("{arch}.block_count"), n);
            let prefix = format!("{arch}.");
            for (key, value) in self.metadata.iter() {
                // One number for each layer.
                if let (true, Value::Array(array)) = (key.starts_with(&prefix), value)
                    && array.len() == self.n_layers as usize
                    && let Some(shorter) = truncated(array, n as usize)
                {
                    metadata.set(key, Value::Array(shorter));
                }
            }
        }
        let is_kept = |tensor: &&TensorInfo| Role::of(&tensor.name).1.is_none_or(|layer| layer < n);
        Self { metadata, tensors: self.tensors.iter().filter(is_kept).cloned().collect(), n_layers: n }
    }

    /// Makes a file of this outline in `folder`, where no other file has its name. Its weights are a hole, which reads as zeros
    /// and takes no room on the disks of most systems. Returns the file, which is removed with what is returned.
    ///
    /// # Errors
    /// If the folder or the file cannot be made, or the outline breaks the format's rules.
    pub fn make(&self, folder: &Path) -> io::Result<HollowFile> {
        std::fs::create_dir_all(folder)?;
        remove_old(folder);
        let layout = Layout::new(&self.metadata, self.tensors.clone(), DEFAULT_ALIGNMENT, None);
        let layout = layout.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let Some(part) = layout.parts().first() else { return Err(io::ErrorKind::InvalidData.into()) };
        for n in 0..1000u32 {
            let path = folder.join(format!("{NAME}{}-{n}.gguf", std::process::id()));
            let mut file = match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            let hollow = HollowFile { path };
            file.write_all(&part.header)?;
            file.set_len(part.total_bytes)?;
            return Ok(hollow);
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// The beginning of the names of such files.
const NAME: &str = "outline-";

/// After so long, a file is no longer in use: its program was ended before it could remove it.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// Removes files that earlier programs left.
fn remove_old(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(NAME) && name.ends_with(".gguf"));
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if is_ours && modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OLD)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Returns the first `n` elements of an array of numbers.
fn truncated(array: &Array, n: usize) -> Option<Array> {
    Some(match array {
        Array::U32(v) => Array::U32(v.get(..n)?.to_vec()),
        Array::I32(v) => Array::I32(v.get(..n)?.to_vec()),
        Array::F32(v) => Array::F32(v.get(..n)?.to_vec()),
        Array::Bool(v) => Array::Bool(v.get(..n)?.to_vec()),
        _ => return None,
    })
}

/// A file whose weights are a hole. Dropping it removes the file.
#[derive(Debug)]
pub struct HollowFile {
    path: PathBuf,
}

impl HollowFile {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HollowFile {
    fn drop(&mut self) {
        // It is in a folder for what can be lost.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;

    fn outline(tied: bool) -> Outline {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        metadata.set("llama.block_count", 3u32);
        metadata.set("llama.attention.head_count", Value::Array(Array::U32(vec![8, 4, 2])));
        metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; 3])));
        let tensor = |name: &str, rows| TensorInfo { name: name.into(), dims: vec![32, rows], ty: TensorType::F16 };
        let mut tensors = vec![tensor("token_embd.weight", 100), tensor("output_norm.weight", 1)];
        tensors.extend((0..3).map(|layer| tensor(&format!("blk.{layer}.ffn_up.weight"), 10 + layer)));
        tensors.extend((!tied).then(|| tensor("output.weight", 50)));
        Outline::new(metadata, tensors).unwrap()
    }

    #[test]
    fn every_byte_has_its_place() {
        let parts = outline(false).parts();
        assert_eq!(parts, Parts { input: 6400, layers: vec![640, 704, 768], output: 3264, is_tied: false });
        assert_eq!(parts.total(), outline(false).tensor_bytes());
        let tied = outline(true).parts();
        assert_eq!(tied, Parts { input: 6400, layers: vec![640, 704, 768], output: 6464, is_tied: true });
        assert_eq!(tied.total(), outline(true).tensor_bytes());
    }

    #[test]
    fn a_model_of_the_first_layers_has_the_lists_of_these_layers() {
        let two = outline(false).first_layers(2);
        assert_eq!(two.n_layers(), 2);
        assert_eq!(two.metadata().u64("llama.block_count"), Some(2));
        let heads = two.metadata().get("llama.attention.head_count");
        assert_eq!(heads, Some(&Value::Array(Array::U32(vec![8, 4]))));
        // It has three elements by chance.
        let scores = two.metadata().get("tokenizer.ggml.scores").and_then(Value::as_array);
        assert_eq!(scores.map(Array::len), Some(3));
        assert_eq!(two.parts().layers, [640, 704]);
        assert_eq!((two.parts().input, two.parts().output), (6400, 3264));
        let all = outline(false).first_layers(9);
        assert_eq!(all.tensors(), outline(false).tensors());
    }

    #[test]
    fn a_file_of_an_outline_is_read_as_one_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made");
        let outline = outline(false);
        let (first, second) = (outline.make(&folder).unwrap(), outline.make(&folder).unwrap());
        assert_ne!(first.path(), second.path());
        let gguf = Gguf::open(first.path()).unwrap();
        assert_eq!(gguf.tensors(), outline.tensors());
        assert!(gguf.data(0).iter().all(|byte| *byte == 0));
        drop(gguf);
        drop((first, second));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        // Of a program that was killed, and what is somebody else's.
        let names = ["outline-1-0.gguf", "mine.gguf", "outline-new.gguf"];
        for name in names {
            let file = File::create(folder.join(name)).unwrap();
            let age = if name == "outline-new.gguf" { Duration::ZERO } else { OLD * 2 };
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        drop(outline.make(&folder).unwrap());
        assert_eq!(names.map(|name| folder.join(name).exists()), [false, true, true]);
    }
}
