//! What a converted file records about its conversion, so that anybody can repeat and compare it.
//!
//! | key                        | value                                                                              |
//! |----------------------------|------------------------------------------------------------------------------------|
//! | `nibble.version`           | the version of nibble                                                              |
//! | `nibble.recipe.name`       | the recipe's name                                                                  |
//! | `nibble.recipe.blake3`     | BLAKE3 of the recipe's TOML text                                                   |
//! | `nibble.overrides`         | array: `PATTERN=TYPE` as the user gave them, in order; only if there are any       |
//! | `nibble.source.name`       | the model folder's name, or the GGUF's file name                                   |
//! | `nibble.source.files`      | array: the files of weights, by name, in the order of their parts                  |
//! | `nibble.source.blake3`     | array: the BLAKE3 of each of them, as `b3sum` prints it                            |
//! | `nibble.importance.name`   | the name of the importance; only if it was given                                   |
//! | `nibble.importance.blake3` | the BLAKE3 of the importance; only if it was given                                 |
//! | `nibble.rounding`          | how weights were rounded and by which texts; only if not simply to nearest         |
//! | `nibble.polish`            | how scales and norms were tuned after that; only if they were                      |
//!
//! Hashes are 64 hexadecimal digits. Nothing here differs between two machines: no time, no host, no folder.

use super::Options;
use crate::gguf::Metadata;

/// The version of nibble.
pub const VERSION: &str = "nibble.version";
/// The recipe's name.
pub const RECIPE_NAME: &str = "nibble.recipe.name";
/// BLAKE3 of the recipe's TOML text.
pub const RECIPE_BLAKE3: &str = "nibble.recipe.blake3";
/// Types that the user gave, which override the recipe.
pub const OVERRIDES: &str = "nibble.overrides";
/// The name of the source.
pub const SOURCE_NAME: &str = "nibble.source.name";
/// The source's files of weights.
pub const SOURCE_FILES: &str = "nibble.source.files";
/// BLAKE3 of each of them.
pub const SOURCE_BLAKE3: &str = "nibble.source.blake3";
/// The name of the importance.
pub const IMPORTANCE_NAME: &str = "nibble.importance.name";
/// BLAKE3 of the importance.
pub const IMPORTANCE_BLAKE3: &str = "nibble.importance.blake3";
/// How weights were rounded: [`Prologue::identity`](crate::pass::Prologue::identity).
pub const ROUNDING: &str = "nibble.rounding";
/// How scales and norms were tuned: [`Epilogue::identity`](super::Epilogue::identity).
pub const POLISH: &str = "nibble.polish";

/// All keys above.
pub const KEYS: [&str; 11] = [
    VERSION,
    RECIPE_NAME,
    RECIPE_BLAKE3,
    OVERRIDES,
    SOURCE_NAME,
    SOURCE_FILES,
    SOURCE_BLAKE3,
    IMPORTANCE_NAME,
    IMPORTANCE_BLAKE3,
    ROUNDING,
    POLISH,
];

/// Placeholder for a hash that is not known before the source has been read. It is as long as a hash, so that the header
/// has its final size from the start.
const NOT_YET: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Records what is known before the source is read, with zeros for its hashes. Removes what `metadata` recorded about the
/// conversion of another file.
pub fn record(metadata: &mut Metadata, options: &Options, source_name: &str, files: Vec<String>) {
    KEYS.iter().for_each(|key| drop(metadata.remove(key)));
    metadata.set(VERSION, env!("CARGO_PKG_VERSION"));
    metadata.set(RECIPE_NAME, options.recipe.name.as_str());
    metadata.set(RECIPE_BLAKE3, hex(options.recipe.text_hash));
    if !options.overrides.is_empty() {
        metadata.set(OVERRIDES, options.overrides.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    metadata.set(SOURCE_NAME, source_name);
    let n_files = files.len();
    metadata.set(SOURCE_FILES, files);
    metadata.set(SOURCE_BLAKE3, vec![NOT_YET.to_string(); n_files]);
    if let Some(importance) = &options.importance {
        metadata.set(IMPORTANCE_NAME, importance.name.as_str());
        metadata.set(IMPORTANCE_BLAKE3, hex(importance.blake3));
    }
    if let Some(prologue) = &options.prologue {
        metadata.set(ROUNDING, prologue.identity());
    }
    if let Some(epilogue) = &options.epilogue {
        metadata.set(POLISH, epilogue.identity());
    }
}

/// Records the hashes of the source's files.
pub fn record_hashes(metadata: &mut Metadata, hashes: &[blake3::Hash]) {
    metadata.set(SOURCE_BLAKE3, hashes.iter().copied().map(hex).collect::<Vec<_>>());
}

fn hex(hash: blake3::Hash) -> String {
    hash.to_hex().to_string()
}
