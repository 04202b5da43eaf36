//! What was found, as data; and what it comes to, in a sentence.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::{Provenance, Sample};
use crate::gguf::{TensorInfo, TensorType, Value};
use crate::quant::SomeBlocks;

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file that was checked: of a split model, the part that was given.
    pub file: PathBuf,
    /// What it was compared with.
    pub source: Option<PathBuf>,
    /// What it says of its making.
    pub provenance: Provenance,
    /// Its tensors, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// Bytes between the tensors, or after the last, that should not be as they are.
    pub padding: Vec<Padding>,
    /// The recipe that the file records.
    pub recipe: RecipeState,
    /// The comparison with the source, apart from the tensors' bytes.
    pub origin: Option<OriginReport>,
    /// The part of the work that was done; `None` for all of it.
    pub sample: Option<Sample>,
    /// Bytes of tensors that were checked.
    pub checked_bytes: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What was found in one tensor.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// Name, sizes and type.
    pub info: TensorInfo,
    /// Blocks that were looked at; of a tensor whose type nibble does not know, none.
    pub n_blocks: u64,
    /// Blocks with a NaN or an infinity, as a scale or a weight.
    pub not_finite: Option<SomeBlocks>,
    /// How it compares with the source.
    pub comparison: Comparison,
}

/// How a tensor compares with what nibble makes of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// There is no source to compare with.
    NoSource,
    /// The bytes that were looked at are the same.
    Same,
    /// The sample has no part of it.
    NotDrawn,
    /// Some blocks differ.
    Differs(SomeBlocks),
    /// The source has no such tensor.
    NotInSource,
    /// The source's has other sizes.
    Shape(Vec<u64>),
    /// It has a type that nibble cannot make.
    UnknownType,
    /// It was made with importance, which is not at hand.
    NeedsImportance,
}

impl TensorReport {
    /// Whether nibble knows the type, and has looked for numbers that are none.
    pub fn is_known(&self) -> bool {
        crate::quant::format(self.info.ty).is_some()
    }

    /// Whether it is not what the source makes of it.
    pub fn differs(&self) -> bool {
        matches!(self.comparison, Comparison::Differs(_) | Comparison::NotInSource | Comparison::Shape(_))
    }

    /// Whether a comparison was asked for that could not be made.
    pub fn is_unchecked(&self) -> bool {
        matches!(self.comparison, Comparison::UnknownType | Comparison::NeedsImportance)
    }

    /// Row and column (from 0) of the first weight of a block.
    pub fn position(&self, block: u64) -> (u64, u64) {
        // Of a block that was read from the tensor's bytes: no product overflows.
        let weight = block * self.info.ty.block_len() as u64;
        let row_len = self.info.row_len().max(1);
        (weight / row_len, weight % row_len)
    }
}

/// Bytes of a file that belong to no tensor and should not be as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Bytes between tensors that are not zero.
    NotZero {
        /// The file.
        file: PathBuf,
        /// Where the first is, in bytes from the file's beginning.
        offset: u64,
        /// How many are not zero.
        n_bytes: u64,
    },
    /// Bytes after the last tensor.
    TooLong {
        /// The file.
        file: PathBuf,
        /// The bytes that are too many, from the file's beginning.
        bytes: Range<u64>,
    },
}

/// The recipe that the file records, compared with nibble's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipeState {
    /// The file records none.
    NotRecorded,
    /// It is one of nibble's own.
    Unchanged,
    /// nibble has one of that name, and it is another: it has changed since, or the file's was somebody's own.
    Changed,
    /// nibble has none of that name: it was somebody's own.
    Foreign,
}

/// How the file compares with the source, apart from the tensors' bytes.
#[derive(Clone, Debug, Default)]
pub struct OriginReport {
    /// Tensors that the source makes and the file does not have.
    pub missing: Vec<String>,
    /// Tensors whose type is not the one that the recorded recipe gives.
    pub types: Vec<OtherType>,
    /// Why the recorded recipe could not be applied to the source.
    pub recipe_problem: Option<String>,
    /// Metadata that nibble would write otherwise.
    pub metadata: Vec<KeyDifference>,
    /// The file's name for the source, where its folder has another name now.
    pub renamed_from: Option<String>,
    /// The source's files, compared with the recorded ones.
    pub files: Vec<SourceFile>,
    /// Whether the hashes of the source's files were recorded and have been compared.
    pub hashes: Hashes,
}

/// What became of the recorded hashes of the source's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hashes {
    /// The file records none.
    #[default]
    NotRecorded,
    /// They are for everything, and a sample was asked for.
    Sampled,
    /// All were compared.
    Compared,
}

/// A tensor whose type is not the one that the recorded recipe gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherType {
    /// The tensor.
    pub tensor: String,
    /// The type in the file.
    pub found: TensorType,
    /// The type that the recipe gives.
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
    /// The BLAKE3 that is recorded for it.
    pub recorded: Option<String>,
    /// The BLAKE3 that it has; `None` where it is not there, or was not hashed.
    pub found: Option<String>,
    /// Whether it is there.
    pub exists: bool,
}

impl SourceFile {
    /// Whether it is not the file that was converted.
    pub fn differs(&self) -> bool {
        !self.exists || self.recorded.is_none() || (self.found.is_some() && self.recorded != self.found)
    }
}

impl Report {
    /// Whether nothing is wrong, as far as it was looked at.
    pub fn is_right(&self) -> bool {
        self.problems().is_empty()
    }

    /// Tensors with numbers that are none.
    pub fn n_not_finite(&self) -> usize {
        self.tensors.iter().filter(|tensor| tensor.not_finite.is_some()).count()
    }

    /// Tensors that are not what the source makes of them; those that the file lacks among them.
    pub fn n_differing(&self) -> usize {
        let missing = self.origin.as_ref().map_or(0, |origin| origin.missing.len());
        self.tensors.iter().filter(|tensor| tensor.differs()).count() + missing
    }

    /// Tensors that could not be checked, for the types of some and the importance of others.
    pub fn n_unchecked(&self) -> usize {
        self.tensors.iter().filter(|tensor| !tensor.is_known() || tensor.is_unchecked()).count()
    }

    /// The share of the tensors' bytes that was checked, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.tensor_bytes == 0 { 1.0 } else { self.checked_bytes as f64 / self.tensor_bytes as f64 }
    }

    /// All that is wrong, each in a few words.
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
            add(origin.types.len(), &of_all("has not its recipe's type"), &of_all("have not their recipe's type"));
            add(usize::from(origin.recipe_problem.is_some()), "recipe does not fit", "");
            add(origin.metadata.len(), "metadata key differs", "metadata keys differ");
            let n_files = origin.files.iter().filter(|file| file.differs()).count();
            add(n_files, "source file is not the one it was made from", "source files are not those it was made from");
        }
        let of_kind = |long: bool| self.padding.iter().filter(|p| matches!(p, Padding::TooLong { .. }) == long).count();
        add(of_kind(false), "gap between tensors is not empty", "gaps between tensors are not empty");
        add(of_kind(true), "file goes on after its last tensor", "files go on after their last tensor");
        problems
    }

    /// What it comes to, in a sentence for everybody. `file` and `source` are what the two are called.
    pub fn verdict(&self, file: &str, source: &str) -> String {
        let n_all = self.tensors.len();
        let tensors = |n: usize| if n == 1 { "tensor".to_string() } else { format!("{n} tensors") };
        let version = env!("CARGO_PKG_VERSION");
        let problems = self.problems();
        if !problems.is_empty() {
            let subject = match self.source {
                Some(_) => format!("{file} is not what nibble {version} makes of {source}"),
                None => format!("{file} is damaged, or was not made well"),
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
                format!("{file} could not be compared with {source}: it has no tensors that could be")
            }
            (Some(_), None) => format!("{file} is what nibble {version} makes of {source}: {all} {are} identical{but}"),
            (Some(_), Some(_)) => format!(
                "{file} is what nibble {version} makes of {source}, as far as checked: nothing differs in the {drawn} that \
                 was drawn{but}"
            ),
            (None, _) if n == 0 => format!("{file} is whole, but it has no tensors that could be looked into"),
            (None, None) => format!("{file} is whole: {all} {hold} nothing but finite numbers{but}"),
            (None, Some(_)) => {
                format!("{file} looks whole: nothing but finite numbers in the {drawn} that was drawn{but}")
            }
        }
    }
}

/// A share as people write it: `5.0%`, `0.02%`, `100%`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 100.0 {
        "100%".to_string()
    } else if percent >= 0.1 {
        // What is not everything is not to read as if it were.
        format!("{:.1}%", percent.min(99.9))
    } else if percent >= 0.001 {
        format!("{percent:.3}%")
    } else {
        "less than 0.001%".to_string()
    }
}
