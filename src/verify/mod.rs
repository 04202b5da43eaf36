//! Is this GGUF whole and right, and is it what nibble makes of its source?
//!
//! ```text
//! Job::prepare   open the file (and the source) ─► what is to be compared with what     nothing read but headers
//! Job::execute   for each span of the source's files (without a source: each chunk of the file), on every core:
//!                    hash ─► make of its rows what the file should have, with the type found there ─► compare
//!                    every scale, or weight, a finite number?
//! ```
//!
//! | what                     | is right where                                                                        |
//! |--------------------------|---------------------------------------------------------------------------------------|
//! | structure                | [`Gguf::open`] accepts it: header, sizes, offsets, all parts                          |
//! | gaps between tensors     | they are zeros, and end with the file                                                 |
//! | numbers                  | every scale of every block is finite; of plain types, every weight                    |
//! | tensors (with a source)  | they are those of the source, with its sizes and the bytes that nibble makes of it    |
//! | types                    | they are what the recorded recipe gives, where it is one of nibble's own              |
//! | metadata                 | it is what nibble writes, but for what tells of the making                            |
//! | the source's files       | they have the BLAKE3 that the file records                                            |
//!
//! Files of other programs can be compared as well: the formats are the same to the bit. Memory is bounded as in a
//! conversion: a buffer a thread, and pages are given back as they have been read.

mod origin;
mod provenance;
mod report;
mod work;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::convert::{self, Described, Importance};
use crate::gguf::{self, Gguf, TensorInfo};
use crate::quant;
use crate::recipe::Recipe;

pub use provenance::Provenance;
pub use report::{
    Comparison, Hashes, KeyDifference, OriginReport, OtherType, Padding, RecipeState, Report, SourceFile, TensorReport,
    percent,
};

/// What to look at, and with what.
#[derive(Debug, Default)]
pub struct Options {
    /// Look at a part only.
    pub sample: Option<Sample>,
    /// The importance that the file was made with.
    pub importance: Option<Importance>,
}

/// A random part of the work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// How much of it: above 0, at most 1.
    pub share: f64,
    /// The same seed chooses the same part.
    pub seed: u64,
}

/// Why a file could not be verified.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error(transparent)]
    Source(#[from] convert::Error),
    #[error("a sample of {found} was asked for, wanted a share above 0 and at most 1")]
    Share { found: f64 },
    #[error("{file} is the source itself; give --source the folder or the file that it was made from")]
    SameFile { file: PathBuf },
    #[error(
        "{} was made with other importance: {} (BLAKE3 {recorded}), and {given} has BLAKE3 {found}; give the one that it \
         was made with", file.display(), name.as_deref().unwrap_or("of no name")
    )]
    OtherImportance { file: PathBuf, name: Option<String>, recorded: String, given: String, found: String },
    #[error("{} was made without importance; verify it without {given}", file.display())]
    NoImportance { file: PathBuf, given: String },
    #[error("stopped before everything was checked")]
    Cancelled,
}

/// A verification, prepared: only the work itself is left.
pub struct Job {
    file: PathBuf,
    gguf: Gguf,
    provenance: Provenance,
    source: Option<Source>,
    options: Options,
}

/// What the file is compared with.
struct Source {
    path: PathBuf,
    described: Described,
    /// For each tensor of the file: the source's, by its number, or why there is nothing to compare.
    matches: Vec<Result<usize, Comparison>>,
}

impl Job {
    /// Opens the file (any part of a split model stands for all) and the source, and finds what is to be compared with
    /// what.
    ///
    /// # Errors
    /// The file is not a sound GGUF, the source cannot be converted, or the importance does not fit it.
    pub fn prepare(file: &Path, source: Option<&Path>, options: Options) -> Result<Self, Error> {
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
        let source = source.map(|path| Source::open(path, &gguf, &provenance, &options)).transpose()?;
        Ok(Self { file: file.to_path_buf(), gguf, provenance, source, options })
    }

    /// What the file says of its making.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The files that are checked: all parts of a split model.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.gguf.paths()
    }

    /// Bytes of all files that are checked.
    pub fn file_bytes(&self) -> u64 {
        self.gguf.file_bytes()
    }

    /// What the user should know of the source although it is no error.
    pub fn warnings(&self) -> &[String] {
        self.source.as_ref().map_or(&[], |source| &source.described.warnings)
    }

    /// Does the work, on the threads of the current rayon pool. `progress` is told, from every thread, of so many more
    /// bytes of tensors checked and the bytes there are to check.
    ///
    /// # Errors
    /// When `cancel` was set.
    pub fn execute(&self, progress: &(dyn Fn(u64, u64) + Sync), cancel: &AtomicBool) -> Result<Report, Error> {
        let start = Instant::now();
        let recipe = self.recipe();
        let mut origin = self.source.as_ref().map(|source| source.compare(&self.gguf, &self.provenance, recipe.1));
        let done = self.work(progress, cancel)?;
        if let (Some(origin), Some(source)) = (&mut origin, &self.source) {
            source.compare_files(&self.provenance, done.hashes.as_deref(), origin);
        }
        Ok(Report {
            file: self.file.clone(),
            source: self.source.as_ref().map(|source| source.path.clone()),
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

    /// The recorded recipe beside nibble's own of that name, which comes with it where they are the same.
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

/// Whether `importance` is what the file says it was made with, as far as it says.
fn check_importance(file: &Path, provenance: &Provenance, importance: &Importance) -> Result<(), Error> {
    let (file, given, found) = (file.to_path_buf(), importance.name.clone(), importance.blake3.to_hex().to_string());
    match &provenance.importance_blake3 {
        Some(recorded) if *recorded != found => {
            let (name, recorded) = (provenance.importance.clone(), recorded.clone());
            Err(Error::OtherImportance { file, name, recorded, given, found })
        }
        // Files that nibble did not make say nothing of it.
        None if provenance.version.is_some() && !provenance.used_importance => Err(Error::NoImportance { file, given }),
        _ => Ok(()),
    }
}

impl Source {
    fn open(path: &Path, gguf: &Gguf, provenance: &Provenance, options: &Options) -> Result<Self, Error> {
        for file in gguf.paths() {
            let same = file.canonicalize().is_ok_and(|file| path.canonicalize().is_ok_and(|path| path == file));
            if same {
                return Err(Error::SameFile { file: path.to_path_buf() });
            }
        }
        // What a conversion would refuse to lose again was lost with leave, if this file was made of it.
        let mut described = Described::open(path, true)?;
        if let Some(importance) = &options.importance {
            convert::check_importance(importance, &described.tensors, &mut described.warnings)?;
        }
        let needs_importance = provenance.used_importance && options.importance.is_none();
        let by_name: std::collections::HashMap<_, _> =
            described.tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect();
        let find = |found: &TensorInfo| {
            let &i = by_name.get(found.name.as_str()).ok_or(Comparison::NotInSource)?;
            let wanted = &described.tensors[i];
            if wanted.dims != found.dims {
                return Err(Comparison::Shape(wanted.dims.clone()));
            }
            let format = quant::format(found.ty).ok_or(Comparison::UnknownType)?;
            // A bias may be permuted by its elements, which no block could be.
            if !described.input(i).row_len.is_multiple_of(found.ty.block_len()) {
                return Err(Comparison::UnknownType);
            }
            match format.importance {
                quant::ImportanceUse::Used | quant::ImportanceUse::Required if needs_importance => {
                    Err(Comparison::NeedsImportance)
                }
                _ => Ok(i),
            }
        };
        let matches = gguf.tensors().iter().map(find).collect();
        Ok(Self { path: path.to_path_buf(), described, matches })
    }
}
