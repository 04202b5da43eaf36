//! What a file says of its making.

use crate::convert::provenance as key;
use crate::gguf::Metadata;

/// What a file says of its making (see [`crate::convert::provenance`]); what it does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The version of nibble that made it.
    pub version: Option<String>,
    /// The recipe's name.
    pub recipe: Option<String>,
    /// The BLAKE3 of the recipe's text, in hexadecimal digits.
    pub recipe_blake3: Option<String>,
    /// Types that were given by hand: `PATTERN=TYPE`.
    pub overrides: Vec<String>,
    /// The name of the folder or the file that was converted.
    pub source: Option<String>,
    /// Files of the source that held the weights.
    pub source_files: Vec<String>,
    /// The BLAKE3 of each of them.
    pub source_blake3: Vec<String>,
    /// The name of the importance that was used.
    pub importance: Option<String>,
    /// The BLAKE3 of its file, in hexadecimal digits.
    pub importance_blake3: Option<String>,
    /// Whether importance was used, by nibble or another program.
    pub used_importance: bool,
}

/// What the keys of llama.cpp's own quantizer about importance, its "imatrix", begin with.
const IMATRIX: &str = "quantize.imatrix.";

impl Provenance {
    /// What this metadata says.
    pub fn of(metadata: &Metadata) -> Self {
        let text = |key: &str| metadata.str(key).map(str::to_string);
        let list = |key: &str| {
            let array = metadata.get(key).and_then(|value| value.as_array());
            array.and_then(|array| array.as_strings()).map(<[String]>::to_vec).unwrap_or_default()
        };
        let is_importance =
            |key: &str| key == key::IMPORTANCE_NAME || key == key::IMPORTANCE_BLAKE3 || key.starts_with(IMATRIX);
        Self {
            version: text(key::VERSION),
            recipe: text(key::RECIPE_NAME),
            recipe_blake3: text(key::RECIPE_BLAKE3),
            overrides: list(key::OVERRIDES),
            source: text(key::SOURCE_NAME),
            source_files: list(key::SOURCE_FILES),
            source_blake3: list(key::SOURCE_BLAKE3),
            importance: text(key::IMPORTANCE_NAME).or_else(|| text("quantize.imatrix.file")),
            importance_blake3: text(key::IMPORTANCE_BLAKE3),
            used_importance: metadata.iter().any(|(key, _)| is_importance(key)),
        }
    }

    /// Whether `key` is about the making of the file, and not about the model.
    pub fn has_key(key: &str) -> bool {
        key::KEYS.contains(&key) || key.starts_with(IMATRIX)
    }
}
