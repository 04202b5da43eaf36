//! What a file records about its conversion.

use crate::convert::provenance as key;
use crate::gguf::Metadata;

/// What a file records about its conversion (see [`crate::convert::provenance`]). What it does not record is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The version of nibble that made it.
    pub version: Option<String>,
    /// The recipe's name.
    pub recipe: Option<String>,
    /// The BLAKE3 of the recipe's text, in hexadecimal digits.
    pub recipe_blake3: Option<String>,
    /// Types that override the recipe: `PATTERN=TYPE`.
    pub overrides: Vec<String>,
    /// The name of the folder or the file that was converted.
    pub source: Option<String>,
    /// The files of the source that held the weights.
    pub source_files: Vec<String>,
    /// The BLAKE3 of each of them.
    pub source_blake3: Vec<String>,
    /// The name of the importance that was used.
    pub importance: Option<String>,
    /// The BLAKE3 of its file, in hexadecimal digits.
    pub importance_blake3: Option<String>,
    /// How weights were rounded, if not simply to nearest.
    pub rounding: Option<String>,
    /// How scales and norms were tuned after that, if they were.
    pub polish: Option<String>,
    /// Whether importance was used, by nibble or another program.
    pub used_importance: bool,
}

/// The prefix of the keys in which llama.cpp's quantizer records importance, its "imatrix".
const IMATRIX: &str = "quantize.imatrix.";

impl Provenance {
    /// Reads what this metadata records.
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
            rounding: text(key::ROUNDING),
            polish: text(key::POLISH),
            used_importance: metadata.iter().any(|(key, _)| is_importance(key)),
        }
    }

    /// Returns whether `key` is about the conversion of the file and not about the model.
    pub fn has_key(key: &str) -> bool {
        key::KEYS.contains(&key) || key.starts_with(IMATRIX)
    }
}
