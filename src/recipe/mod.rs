//! Recipes say which tensor gets which type, as data. A plan is a recipe applied to one model.
//!
//! A recipe is a file in `quant-tables/`, or a file that a user wrote:
//!
//! ```toml
//! name = "MINE"
//! description = "Q4_K_M with a better output matrix"
//! base = "Q4_K_M"              # its rules come after the ones here; without a base, `type` must be given
//! # type = "q4_k"              # the type of tensors that no rule matches
//! # file_type = 15             # general.file_type, for other programs to show
//!
//! [[rule]]                     # the first rule that matches a tensor decides
//! role = ["output"]            # what the tensor is for
//! type = "q8_0"
//! why = "this model's vocabulary has rare words that I need"
//! ```
//!
//! | condition      | matches if                                                                            |
//! |----------------|---------------------------------------------------------------------------------------|
//! | `role`         | the tensor has this role, or one of a list (required)                                 |
//! | `layers`       | its layer is one of `first_sixteenth`, `first_eighth`, `more_bits`, `"0..4"`, `7`, or of a list of these |
//! | `importance`   | importance is given (`true`) or is not (`false`)                                      |
//! | `tied`         | the model has no output matrix (`true`), or has one (`false`)                         |
//! | `min_gqa`      | at least this many query heads share a key and value head                             |
//! | `model_layers` | the model has exactly this many layers                                                |
//!
//! The built-in recipes choose the types that llama.cpp's `llama_model_quantize` chooses for models of the Llama
//! architecture (`llama_tensor_get_type_impl` in its `src/llama-quant.cpp`). Unlike there, nothing depends on the order
//! in which tensors are visited.

pub mod allocate;
mod fallback;
mod file;
mod overrides;
mod plan;
mod rule;

#[cfg(all(test, feature = "llama"))]
mod against_llama;
#[cfg(test)]
mod golden;

use std::path::Path;
use std::sync::LazyLock;

pub use overrides::Override;
pub(crate) use plan::type_name;
pub use plan::{Plan, PlannedTensor, is_free, plan};
pub use rule::{Layers, Rule};

use crate::base::suggest;
use crate::gguf::TensorType;
use crate::quant;

/// `general.quantization_version`: the generation of ggml's block formats that these recipes are for.
pub const QUANTIZATION_VERSION: u32 = 2;

/// Rules that choose the type of each tensor.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Recipe {
    /// The name on the command line and in the plan: `Q4_K_M`.
    pub name: String,
    /// What it is for, in one line.
    pub description: String,
    /// `general.file_type`: llama.cpp's number for files made this way, `enum llama_ftype` in its `llama.h`.
    pub file_type: u32,
    /// The type of a matrix that no rule matches.
    #[serde(rename = "type", serialize_with = "type_name")]
    pub ty: TensorType,
    /// The rules. The first that matches a tensor decides.
    pub rules: Vec<Rule>,
    /// BLAKE3 of its TOML text, byte for byte as it was read. Converted files record it.
    #[serde(skip)]
    pub text_hash: blake3::Hash,
}

impl Recipe {
    /// Returns the built-in recipe of this name, ignoring case.
    pub fn builtin(name: &str) -> Option<&'static Recipe> {
        Self::all().iter().find(|recipe| recipe.name.eq_ignore_ascii_case(name))
    }

    /// Returns the built-in recipe that llama-quantize calls so too: by another name, or by its number of the file type.
    fn by_alias(name: &str) -> Option<&'static Recipe> {
        if let Ok(file_type) = name.parse::<u32>() {
            return Self::all().iter().find(|recipe| recipe.file_type == file_type);
        }
        let (_, recipe) = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name))?;
        Self::builtin(recipe)
    }

    /// Returns the built-in recipe of this name or alias, or an error that lists the recipes.
    ///
    /// # Errors
    /// If there is no such recipe.
    pub fn find(name: &str) -> Result<&'static Recipe, Error> {
        Self::builtin(name).or_else(|| Self::by_alias(name)).ok_or_else(|| Error::UnknownRecipe {
            name: name.to_string(),
            known: Self::all().iter().map(|recipe| recipe.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Returns every built-in recipe, from the most bits to the fewest.
    pub fn all() -> &'static [Recipe] {
        &BUILTIN
    }

    /// Returns the TOML text of this recipe, to start another one from; `None` if the recipe is not built in.
    pub fn builtin_toml(&self) -> Option<&'static str> {
        let position = Self::all().iter().position(|recipe| recipe == self)?;
        SOURCES.get(position).map(|(_, text)| *text)
    }

    /// Reads a recipe.
    ///
    /// `file_name` is for messages. A `base` is a built-in recipe.
    ///
    /// # Errors
    /// If the text is not TOML, has a key or a value that recipes do not have, or lacks one that they need.
    pub fn from_toml(text: &str, file_name: &str) -> Result<Recipe, Error> {
        file::read(text, file_name, Self::builtin, |ty| Self::all().iter().rfind(|r| r.ty == ty).map(|r| r.file_type))
    }

    /// Reads a recipe from a user's file.
    ///
    /// # Errors
    /// If the file cannot be read, is too large to be a recipe, or is refused by [`Self::from_toml`].
    pub fn from_file(path: &Path) -> Result<Recipe, Error> {
        use std::io::Read;
        let file_name = path.display().to_string();
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|source| Error::Read { file: file_name.clone(), source })?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::TooLong { file: file_name });
        }
        Self::from_toml(&text, &file_name)
    }
}

/// Names that llama-quantize takes for another. Source: `QUANT_OPTIONS` in llama.cpp's `tools/quantize/quantize.cpp`.
const ALIASES: [(&str, &str); 3] = [("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

/// The longest recipe that is read. Recipes have a page or two, so a longer file was given by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

macro_rules! sources {
    ($($file:literal),* $(,)?) => {
        /// From the most bits to the fewest.
        const SOURCES: &[(&str, &str)] = &[$((
            concat!("quant-tables/", $file),
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/quant-tables/", $file)),
        )),*];
    };
}
sources!(
    "f32.toml",
    "bf16.toml",
    "f16.toml",
    "q8_0.toml",
    "q6_k.toml",
    "q5_1.toml",
    "q5_k_m.toml",
    "q5_k_s.toml",
    "q5_0.toml",
    "q4_1.toml",
    "q4_k_m.toml",
    "iq4_nl.toml",
    "q4_k_s.toml",
    "q4_0.toml",
    "iq4_xs.toml",
    "q3_k_l.toml",
    "q3_k_m.toml",
    "q3_k_s.toml",
    "q2_k.toml",
);

static BUILTIN: LazyLock<Vec<Recipe>> = LazyLock::new(|| {
    // They are part of the program, and a test reads every one. They state their file type and have no base.
    let read = |&(file_name, text): &(&str, &str)| file::read(text, file_name, |_| None, |_| None);
    SOURCES.iter().map(read).collect::<Result<_, _>>().expect("the built-in recipes can be read")
});

/// Why a recipe cannot be read, or cannot be applied to a model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("{file}: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("{file}: too long for a recipe, which has at most {} KiB; is it some other file?", MAX_FILE_BYTES >> 10)]
    TooLong { file: String },
    #[error("{file}:{line}: {message}")]
    Parse { file: String, line: usize, message: String },
    #[error("{file}:{line}: there is no recipe '{name}' to base this on")]
    UnknownBase { file: String, line: usize, name: String },
    #[error("there is no recipe '{name}'; known are {known}")]
    UnknownRecipe { name: String, known: String },
    #[error(
        "{tensor}: layer {layer}, counted from 0, of a model with {n_layers} layers; its config does not fit its weights"
    )]
    LayerBeyondModel { tensor: String, layer: u32, n_layers: u32 },
    #[error("{tensor}: sizes {dims:?} make more bytes than can be counted")]
    TooLarge { tensor: String, dims: Vec<u64> },
    #[error("{tensor}: holds {found}, which cannot become {wanted}; convert from the original weights")]
    Source { tensor: String, found: TensorType, wanted: TensorType },
    #[error("'{text}' is not PATTERN=TYPE, such as ffn_down=Q6_K or 'blk.0.*=Q8_0'")]
    OverrideSyntax { text: String },
    #[error("'{text}': {ty} is not a type for weights; known are {}", quant::type_list())]
    OverrideType { text: String, ty: String },
    #[error(
        "no tensor matches '{pattern}'{}; a pattern is a tensor's name, a name with * for any letters, or one of the \
         roles {}",
        suggest::question(near).map_or_else(String::new, |question| format!(" ({question})")),
        rule::role_list()
    )]
    OverrideUnused { pattern: String, near: Vec<String> },
    #[error("every tensor that '{pattern}' matches is taken by '{by}' before it; put '{pattern}' first")]
    OverrideShadowed { pattern: String, by: String },
    #[error("'{pattern}' asks for {ty}, but {tensor} stays F32: llama.cpp needs norms, biases and vectors in F32")]
    OverrideKept { pattern: String, tensor: String, ty: TensorType },
    #[error(
        "'{pattern}' asks for {ty}, whose blocks of {} do not divide {tensor}'s rows of {row_len}; {} would",
        ty.block_len(),
        fallback::fallback(*ty, *row_len)
    )]
    OverrideIndivisible { pattern: String, tensor: String, ty: TensorType, row_len: u64 },
}
