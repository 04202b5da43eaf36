//! Verification: is a GGUF file intact, and is it what nibble makes from its source?
//!
//! ```text
//! Verification::prepare   open the file (and the source) ─► match their tensors     only headers are read
//! Verification::execute   for each span of the source's files (without a source: each chunk of the file), on every core:
//!                    hash ─► encode its rows with the type found in the file ─► compare
//!                    is every scale, or weight, a finite number?
//! ```
//!
//! | what                     | is right if                                                                           |
//! |--------------------------|---------------------------------------------------------------------------------------|
//! | structure                | [`Gguf::open`] accepts it: header, sizes, offsets, all parts                          |
//! | gaps between tensors     | they are zeros, and end with the file                                                 |
//! | numbers                  | every scale of every block is finite; of plain types, every weight                    |
//! | tensors (with a source)  | they are those of the source, with its sizes and the bytes that nibble makes from it  |
//! | types                    | they are what the recorded recipe chooses, if it is built in                          |
//! | metadata                 | it is what nibble writes, apart from the keys about the conversion                    |
//! | the source's files       | they have the BLAKE3 that the file records                                            |
//!
//! Files of other programs can be compared as well: the formats are the same to the bit. Memory is bounded as in a
//! conversion: a few buffers per thread, and pages are released once they have been read.

mod origin;
mod provenance;
mod report;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::arch::Architectures;
use crate::base::display::shorten;
use crate::convert::{self, Importance};
use crate::gguf::{self, Gguf, TensorInfo};
use crate::pass::{self, Prologue};
use crate::quant;
use crate::recipe::Recipe;
use crate::vocab::{self, TokenizerFile};

pub use provenance::Provenance;
pub use report::{
    Hashes, KeyDifference, OriginReport, OtherType, Padding, RecipeState, Report, SourceFile, TensorReport,
    TensorVerdict, percent,
};

/// What to verify, and with what.
#[derive(Debug, Default)]
pub struct VerifyOptions {
    /// Verify only a random part.
    pub sample: Option<Sample>,
    /// The importance that the file was made with.
    pub importance: Option<Importance>,
    /// The prologue that the file was made with.
    pub prologue: Option<Arc<dyn Prologue>>,
    /// The architectures that the source may have.
    pub architectures: Architectures,
}

/// A random part of the blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The share of the blocks: above 0, at most 1.
    pub share: f64,
    /// The seed of the choice: the same seed chooses the same part.
    pub seed: u64,
}

/// Why a file could not be verified.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error(transparent)]
    Source(#[from] pass::Error),
    #[error(transparent)]
    Importance(#[from] convert::Error),
    #[error("the sample is {found}; wanted a share above 0 and at most 1")]
    Share { found: f64 },
    #[error("{file} is the file that is verified, not its source")]
    SameFile { file: PathBuf },
    #[error(
        "{} was made with other importance: {} (BLAKE3 {recorded}), and {given} has BLAKE3 {found}", file.display(), name.as_deref().unwrap_or("unnamed")
    )]
    OtherImportance { file: PathBuf, name: Option<String>, recorded: String, given: String, found: String },
    #[error("{} was made without importance, and {given} was given", file.display())]
    NoImportance { file: PathBuf, given: String },
    #[error("{} was rounded in another way: {recorded}, not {given}", file.display())]
    OtherRounding { file: PathBuf, recorded: String, given: String },
    #[error(
        "{} was polished after rounding ({polish}): its scales and norms depend on all tensors together, which verifying does \
         not compute again", file.display()
    )]
    Polished { file: PathBuf, polish: String },
    #[error("stopped before everything was checked")]
    Cancelled,
}

/// Characters of what a file records that are shown.
const SHOWN: usize = 80;

/// A verification, prepared: only the work itself is left.
pub struct Verification {
    file: PathBuf,
    gguf: Gguf,
    provenance: Provenance,
    against: Option<Against>,
    options: VerifyOptions,
}

/// What the file is compared with.
struct Against {
    path: PathBuf,
    source: pass::Source,
    /// For each tensor of the file, the number of the source's tensor, or why there is nothing to compare.
    matches: Vec<Result<usize, TensorVerdict>>,
}

impl Verification {
    /// Opens the file (any part of a split model stands for all parts) and the source, and matches their tensors.
    ///
    /// # Errors
    /// If the file is not a sound GGUF, the source cannot be converted, or the importance does not fit it.
    pub fn prepare(file: &Path, source: Option<&Path>, options: VerifyOptions) -> Result<Self, Error> {
        if let Some(Sample { share, .. }) = options.sample
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Error::Share { found: share });
        }
        let gguf = Gguf::open(file)?;
        let provenance = Provenance::of(gguf.metadata());
        if let Some(importance) = &options.importance {
            check_importance(file, &provenance, importance)?;
        }
        if source.is_some() {
            if let Some(polish) = &provenance.polish {
                return Err(Error::Polished { file: file.to_path_buf(), polish: shorten(polish, SHOWN) });
            }
            check_rounding(file, &provenance, options.prologue.as_deref())?;
        }
        let against = source.map(|path| Against::open(path, &gguf, &provenance, &options)).transpose()?;
        Ok(Self { file: file.to_path_buf(), gguf, provenance, against, options })
    }

    /// Returns what the file records about its conversion.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Returns the files that are checked: all parts of a split model.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.gguf.paths()
    }

    /// Returns the size of all files that are checked, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.gguf.file_bytes()
    }

    /// Returns warnings about the source, one sentence each.
    pub fn warnings(&self) -> &[String] {
        self.against.as_ref().map_or(&[], |against| &against.source.warnings)
    }

    /// Verifies on the threads of the current rayon pool. `progress` is called from every thread with the number of tensor
    /// bytes checked since its last call, and the number to check in total.
    ///
    /// # Errors
    /// If the source cannot be read, or `cancel` was set.
    pub fn execute(&self, progress: &(dyn Fn(u64, u64) + Sync), cancel: &AtomicBool) -> Result<Report, Error> {
        let start = Instant::now();
        let recipe = self.recipe();
        let mut origin = self.against.as_ref().map(|against| against.compare(&self.gguf, &self.provenance, recipe.1));
        let done = self.work(progress, cancel)?;
        if let (Some(origin), Some(against)) = (&mut origin, &self.against) {
            against.compare_files(&self.provenance, done.hashes.as_deref(), origin);
        }
        Ok(Report {
            file: self.file.clone(),
            source: self.against.as_ref().map(|against| against.path.clone()),
            provenance: self.provenance.clone(),
            padding: work::padding(&self.gguf),
            tensors: done.tensors,
            recipe: recipe.0,
            origin,
            sample: self.options.sample,
            checked_bytes: done.checked_bytes,
            tensor_bytes: self.gguf.tensor_bytes(),
            elapsed: start.elapsed(),
        })
    }

    /// Compares the recorded recipe with the built-in one of that name, which is returned as well if they are the same.
    fn recipe(&self) -> (RecipeState, Option<&'static Recipe>) {
        let Some(name) = &self.provenance.recipe else { return (RecipeState::NotRecorded, None) };
        match Recipe::builtin(name) {
            None => (RecipeState::Foreign, None),
            Some(recipe) if self.provenance.recipe_blake3.as_deref() == Some(recipe.text_hash.to_hex().as_str()) => {
                (RecipeState::Unchanged, Some(recipe))
            }
            Some(_) => (RecipeState::Changed, None),
        }
    }
}

/// Checks that weights are rounded as the file records, if nibble made it.
fn check_rounding(file: &Path, provenance: &Provenance, prologue: Option<&dyn Prologue>) -> Result<(), Error> {
    let given = prologue.map(Prologue::identity);
    if provenance.version.is_none() || provenance.rounding == given {
        return Ok(());
    }
    let in_words = |rounding: Option<String>| rounding.unwrap_or_else(|| "to nearest".to_string());
    Err(Error::OtherRounding {
        file: file.to_path_buf(),
        recorded: in_words(provenance.rounding.clone()),
        given: in_words(given),
    })
}

/// Returns the tokenizer's file that was chosen when `file` was made from `source`, if both were there.
///
/// # Errors
/// If the file is not a sound GGUF.
pub fn tokenizer_of(file: &Path, source: &Path) -> Result<Option<TokenizerFile>, Error> {
    Ok(chosen_tokenizer(&Gguf::open(file)?, source))
}

fn chosen_tokenizer(gguf: &Gguf, source: &Path) -> Option<TokenizerFile> {
    let chosen = gguf.metadata().str(vocab::CHOICE_KEY) == Some(TokenizerFile::Json.name());
    // A GGUF is a source that has chosen already.
    (chosen && !gguf::is_gguf(source)).then_some(TokenizerFile::Json)
}

/// Checks that `importance` is what the file records, as far as it records any.
fn check_importance(file: &Path, provenance: &Provenance, importance: &Importance) -> Result<(), Error> {
    let (file, given, found) = (file.to_path_buf(), importance.name.clone(), importance.blake3.to_hex().to_string());
    match &provenance.importance_blake3 {
        Some(recorded) if *recorded != found => {
            let (name, recorded) = (provenance.importance.clone(), recorded.clone());
            Err(Error::OtherImportance { file, name, recorded, given, found })
        }
        // Files that nibble did not make need not record it.
        None if provenance.version.is_some() && !provenance.used_importance => Err(Error::NoImportance { file, given }),
        _ => Ok(()),
    }
}

impl Against {
    fn open(path: &Path, gguf: &Gguf, provenance: &Provenance, options: &VerifyOptions) -> Result<Self, Error> {
        for file in gguf.paths() {
            let same = file.canonicalize().is_ok_and(|file| path.canonicalize().is_ok_and(|path| path == file));
            if same {
                return Err(Error::SameFile { file: path.to_path_buf() });
            }
        }
        let chosen = chosen_tokenizer(gguf, path);
        // If the file was made from a quantized source, that was allowed when it was converted.
        let mut source = pass::Source::open(path, options.architectures, true, chosen)?;
        if let Some(importance) = &options.importance {
            convert::check_importance(importance, &source.tensors, &mut source.warnings)?;
        }
        let needs_importance = provenance.used_importance && options.importance.is_none();
        let by_name: std::collections::HashMap<_, _> =
            source.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect();
        let find = |found: &TensorInfo| {
            let &i = by_name.get(found.name.as_str()).ok_or(TensorVerdict::NotInSource)?;
            let wanted = &source.tensors[i];
            if wanted.dims != found.dims {
                return Err(TensorVerdict::Shape(wanted.dims.clone()));
            }
            let format = quant::format(found.ty).ok_or(TensorVerdict::UnknownType)?;
            // A bias may be permuted by its elements, which no block could be.
            if !source.assembly(i).row_len.is_multiple_of(found.ty.block_len()) {
                return Err(TensorVerdict::UnknownType);
            }
            match format.importance {
                quant::ImportanceUse::Used | quant::ImportanceUse::Required if needs_importance => {
                    Err(TensorVerdict::NeedsImportance)
                }
                _ => Ok(i),
            }
        };
        let matches = gguf.tensors().iter().map(find).collect();
        Ok(Self { path: path.to_path_buf(), source, matches })
    }
}
