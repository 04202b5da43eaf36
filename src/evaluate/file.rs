//! What there is to say of a file that takes part in a comparison.

use std::io;
use std::path::Path;

use crate::convert::provenance;
use crate::gguf::{self, Gguf};
use crate::report::results::File;

impl File {
    /// What a model file says of itself. The hash is computed apart, as that reads all of it.
    pub fn of_gguf(path: &Path, gguf: &Gguf) -> Self {
        let metadata = gguf.metadata();
        let weights = gguf.n_parameters();
        let quantization =
            metadata.u64("general.file_type").and_then(gguf::file_type).or(metadata.str(provenance::RECIPE_NAME));
        // llama.cpp's quantizer says it in other words.
        let importance = metadata.str(provenance::IMPORTANCE_NAME).or(metadata.str("quantize.imatrix.file"));
        Self {
            name: name(path),
            path: path.display().to_string(),
            bytes: gguf.file_bytes(),
            blake3: None,
            quantization: quantization.map(str::to_string),
            bits_per_weight: (weights > 0).then(|| gguf.tensor_bytes() as f64 * 8.0 / weights as f64),
            importance: importance.map(|name| self::name(Path::new(name))),
        }
    }
}

/// What a file is called: its name without the ending.
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// BLAKE3 of a model file, hexadecimal; of a split one, of its parts one after the other. On all cores.
///
/// # Errors
/// Where `go_on` says no, between pieces of some megabytes.
pub fn blake3(gguf: &Gguf, mut go_on: impl FnMut(u64) -> bool) -> io::Result<String> {
    const PIECE: usize = 64 << 20;
    let mut hasher = blake3::Hasher::new();
    for mapping in gguf.mappings() {
        for piece in mapping.bytes().chunks(PIECE) {
            if !go_on(piece.len() as u64) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            hasher.update_rayon(piece);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether nothing that the files say of themselves tells two of them apart by name; else the paths are needed.
pub fn unique_names(files: &mut [File]) {
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    for (i, file) in files.iter_mut().enumerate() {
        if names.iter().enumerate().any(|(j, name)| j != i && *name == file.name) {
            file.name = file.path.trim_end_matches(".gguf").to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_name_are_called_by_their_paths() {
        let file = |path: &str| File { name: name(Path::new(path)), path: path.to_string(), ..File::default() };
        let mut files = [file("a/x.gguf"), file("b/x.gguf"), file("b/零一.Q4_K_M.gguf")];
        unique_names(&mut files);
        assert_eq!(files.each_ref().map(|f| f.name.as_str()), ["a/x", "b/x", "零一.Q4_K_M"]);
    }
}
