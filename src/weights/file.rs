//! Describes a model file for the results.

use std::path::Path;

use crate::base::ending;
use crate::convert::provenance;
use crate::gguf::{self, Gguf};
use crate::report::results::File;

/// Returns the description of a model file without its hash, because [`super::intact::read`] has to read the whole file.
pub fn describe(path: &Path, gguf: &Gguf) -> File {
    let metadata = gguf.metadata();
    let weights = gguf.n_parameters();
    let quantization =
        metadata.u64("general.file_type").and_then(gguf::file_type).or(metadata.str(provenance::RECIPE_NAME));
    // llama.cpp's quantizer uses a key of its own.
    let importance = metadata.str(provenance::IMPORTANCE_NAME).or(metadata.str("quantize.imatrix.file"));
    File {
        name: name(path),
        path: path.display().to_string(),
        bytes: gguf.file_bytes(),
        blake3: None,
        quantization: quantization.map(str::to_string),
        bits_per_weight: (weights > 0).then(|| gguf.tensor_bytes() as f64 * 8.0 / weights as f64),
        importance: importance.map(|path| name(Path::new(path))),
        second_layout: None,
    }
}

/// Returns the name of a model: that of its file without `.gguf`, or of what else it is in without its ending.
pub fn name(path: &Path) -> String {
    let name = ending::without(path, &["gguf", "safetensors", "bin", "dat", "imatrix"]);
    if name.is_empty() { path.display().to_string() } else { name }
}

/// Names files by their paths if two of them have the same name.
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
