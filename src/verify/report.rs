//! The result of a verification as data, and as a sentence.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::{Provenance, Sample};
use crate::gguf::{TensorInfo, TensorType, Value};
use crate::quant::SomeBlocks;

/// The result of a verification.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file that was checked; of a split model, the part that was given.
    pub file: PathBuf,
    /// The source it was compared with.
    pub source: Option<PathBuf>,
    /// What the file records about its conversion.
    pub provenance: Provenance,
    /// Its tensors, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// Problems with the bytes between the tensors and after the last.
    pub padding: Vec<Padding>,
    /// How the recorded recipe compares with the built-in one.
    pub recipe: RecipeState,
    /// The comparison with the source, apart from the tensors' bytes.
    pub origin: Option<OriginReport>,
    /// The sample that was checked; `None` for everything.
    pub sample: Option<Sample>,
    /// Bytes of tensors that were checked.
    pub checked_bytes: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// The result for one tensor.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// Name, sizes and type.
    pub info: TensorInfo,
    /// Number of blocks checked; 0 for a type that nibble does not know.
    pub n_blocks: u64,
    /// Blocks in which a scale or a weight is NaN or infinite.
    pub not_finite: Option<SomeBlocks>,
    /// How it compares with the source.
    pub comparison: TensorVerdict,
}

/// How a tensor compares with what nibble makes from the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorVerdict {
    /// There is no source to compare with.
    NoSource,
    /// The bytes that were checked are the same.
    Same,
    /// No part of it is in the sample.
    NotDrawn,
    /// Some blocks differ.
    Differs(SomeBlocks),
    /// The source has no such tensor.
    NotInSource,
    /// The source's tensor has these other sizes.
    Shape(Vec<u64>),
    /// It has a type that nibble cannot make.
    UnknownType,
    /// It was made with importance, which was not given.
    NeedsImportance,
}

impl TensorReport {
    /// Returns whether nibble knows the type, and so has checked for NaN and infinity.
    pub fn is_known(&self) -> bool {
        crate::quant::format(self.info.ty).is_some()
    }

    /// Returns whether the tensor is not what nibble makes from the source.
    pub fn differs(&self) -> bool {
        matches!(self.comparison, TensorVerdict::Differs(_) | TensorVerdict::NotInSource | TensorVerdict::Shape(_))
    }

    /// Returns whether the tensor should have been compared with the source, but could not be.
    pub fn is_unchecked(&self) -> bool {
        matches!(self.comparison, TensorVerdict::UnknownType | TensorVerdict::NeedsImportance)
    }

    /// Returns row and column (from 0) of the first weight of a block.
    pub fn position(&self, block: u64) -> (u64, u64) {
        self.info.position_of(block)
    }
}

/// A problem with bytes that belong to no tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Bytes between tensors that are not zero.
    NotZero {
        /// The file.
        file: PathBuf,
        /// Offset of the first, in bytes from the file's beginning.
        offset: u64,
        /// How many are not zero.
        n_bytes: u64,
    },
    /// Bytes after the last tensor.
    TooLong {
        /// The file.
        file: PathBuf,
        /// The surplus bytes, counted from the file's beginning.
        bytes: Range<u64>,
    },
}

/// How the recorded recipe compares with nibble's built-in ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipeState {
    /// The file records no recipe.
    NotRecorded,
    /// It is a built-in recipe, unchanged.
    Unchanged,
    /// The built-in recipe of that name is different: it has changed since, or the file's was a user's own.
    Changed,
    /// There is no built-in recipe of that name: it was a user's own.
    Foreign,
}

/// How the file compares with the source, apart from the tensors' bytes.
#[derive(Clone, Debug, Default)]
pub struct OriginReport {
    /// Tensors that the source has and the file does not.
    pub missing: Vec<String>,
    /// Tensors whose type is not the one that the recorded recipe chooses.
    pub types: Vec<OtherType>,
    /// Why the recorded recipe could not be applied to the source.
    pub recipe_problem: Option<String>,
    /// Metadata keys whose value is not what nibble writes.
    pub metadata: Vec<KeyDifference>,
    /// The recorded name of the source, if its folder has another name now.
    pub renamed_from: Option<String>,
    /// The source's files, compared with the recorded ones.
    pub files: Vec<SourceFile>,
    /// Whether the hashes of the source's files were compared.
    pub hashes: Hashes,
}

/// Whether the hashes of the source's files were compared with the recorded ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashes {
    /// No: the file records no hashes.
    #[default]
    NotRecorded,
    /// No: only a sample was read, and hashes need everything.
    Sampled,
    /// Yes, all of them.
    Compared,
}

/// A tensor whose type is not the one that the recorded recipe chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherType {
    /// The tensor.
    pub tensor: String,
    /// The type in the file.
    pub found: TensorType,
    /// The type that the recipe chooses.
    pub wanted: TensorType,
}

/// A metadata key whose value is not the one that nibble would write.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyDifference {
    /// The key.
    pub key: String,
    /// In the file.
    pub found: Option<Value>,
    /// As nibble would write it.
    pub wanted: Option<Value>,
}

/// A file of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name in the source's folder.
    pub name: String,
    /// The recorded BLAKE3.
    pub recorded: Option<String>,
    /// The actual BLAKE3; `None` if the file is missing or was not hashed.
    pub found: Option<String>,
    /// Whether the file exists.
    pub exists: bool,
}

impl SourceFile {
    /// Returns whether it is not the file that was converted.
    pub fn differs(&self) -> bool {
        !self.exists || self.recorded.is_none() || (self.found.is_some() && self.recorded != self.found)
    }
}

impl Report {
    /// Returns whether nothing is wrong, as far as it was checked.
    pub fn is_right(&self) -> bool {
        self.problems().is_empty()
    }

    /// Returns the number of tensors with NaN or infinity.
    pub fn n_not_finite(&self) -> usize {
        self.tensors.iter().filter(|tensor| tensor.not_finite.is_some()).count()
    }

    /// Returns the number of tensors that differ from the source, including those that the file lacks.
    pub fn n_differing(&self) -> usize {
        let missing = self.origin.as_ref().map_or(0, |origin| origin.missing.len());
        self.tensors.iter().filter(|tensor| tensor.differs()).count() + missing
    }

    /// Returns the number of tensors that could not be checked, because of their type or for lack of importance.
    pub fn n_unchecked(&self) -> usize {
        self.tensors.iter().filter(|tensor| !tensor.is_known() || tensor.is_unchecked()).count()
    }

    /// Returns the share of the tensors' bytes that was checked, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.tensor_bytes == 0 { 1.0 } else { self.checked_bytes as f64 / self.tensor_bytes as f64 }
    }

    /// Returns everything that is wrong, each in a few words.
    fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let mut add = |n: usize, one: &str, many: &str| {
            if n > 0 {
                problems.push(format!("{n} {}", if n == 1 { one } else { many }));
            }
        };
        let n_all = self.tensors.len();
        let of_all = |what: &str| format!("of {n_all} tensors {what}");
        add(self.n_differing(), &of_all("differs"), &of_all("differ"));
        add(self.n_not_finite(), &of_all("holds NaN or infinity"), &of_all("hold NaN or infinity"));
        if let Some(origin) = &self.origin {
            add(
                origin.types.len(),
                &of_all("does not have its recipe's type"),
                &of_all("do not have their recipe's type"),
            );
            add(usize::from(origin.recipe_problem.is_some()), "recipe does not fit", "");
            add(origin.metadata.len(), "metadata key differs", "metadata keys differ");
            let n_files = origin.files.iter().filter(|file| file.differs()).count();
            add(
                n_files,
                "source file is not the one it was converted from",
                "source files are not those it was converted from",
            );
        }
        let of_kind = |long: bool| self.padding.iter().filter(|p| matches!(p, Padding::TooLong { .. }) == long).count();
        add(of_kind(false), "gap between tensors is not empty", "gaps between tensors are not empty");
        add(of_kind(true), "file continues after its last tensor", "files continue after their last tensor");
        problems
    }

    /// Returns the result as a sentence for people. `file` and `source` are the names to use for the two.
    pub fn verdict(&self, file: &str, source: &str) -> String {
        let n_all = self.tensors.len();
        let tensors = |n: usize| if n == 1 { "tensor".to_string() } else { format!("{n} tensors") };
        let version = env!("CARGO_PKG_VERSION");
        let problems = self.problems();
        if !problems.is_empty() {
            let subject = match self.source {
                Some(_) => format!("{file} is not what nibble {version} makes from {source}"),
                None => format!("{file} is damaged or was made incorrectly"),
            };
            return format!("{subject}: {}", problems.join(", "));
        }

        let unchecked = self.n_unchecked();
        let n = n_all - unchecked;
        let but = match unchecked {
            0 => String::new(),
            1 => ", and 1 could not be checked".to_string(),
            many => format!(", and {many} could not be checked"),
        };
        let (are, hold) = if n == 1 { ("is", "holds") } else { ("are", "hold") };
        let all = match n == n_all {
            true if n == 1 => "its one tensor".to_string(),
            true => format!("all {}", tensors(n)),
            false => format!("{n} of {}", tensors(n_all)),
        };
        let drawn = percent(self.share());
        match (&self.source, &self.sample) {
            (Some(_), _) if n == 0 => {
                format!("{file} could not be compared with {source}: it has no tensors that can be compared")
            }
            (Some(_), None) => {
                format!("{file} is what nibble {version} makes from {source}: {all} {are} identical{but}")
            }
            (Some(_), Some(_)) => format!(
                "{file} is what nibble {version} makes from {source}, as far as checked: nothing differs in a sample of \
                 {drawn}{but}"
            ),
            (None, _) if n == 0 => format!("{file} is intact, but it has no tensors that could be checked"),
            (None, None) => format!("{file} is intact: {all} {hold} only finite numbers{but}"),
            (None, Some(_)) => {
                format!("{file} looks intact: only finite numbers in a sample of {drawn}{but}")
            }
        }
    }
}

/// Formats a share as people write it: `5.0%`, `0.02%`, `100%`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 100.0 {
        "100%".to_string()
    } else if percent >= 0.1 {
        // A part must not read as if it were everything.
        format!("{:.1}%", percent.min(99.9))
    } else if percent >= 0.001 {
        format!("{percent:.3}%")
    } else {
        "less than 0.001%".to_string()
    }
}
