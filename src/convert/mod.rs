//! Conversion: a Hugging Face folder or a GGUF becomes a GGUF, in one pass over the source.
//!
//! ```text
//! Job::prepare   open the source ─► describe the model ─► plan types ─► lay out the file     nothing written yet
//! Job::execute   for each span of a few MB of the source's files, on every core:
//!                    read ─┬► hash
//!                          └► permute ─► f32 ─► quantize ─► write at the planned offset
//! ```
//!
//! A journal beside the output records which spans are done. A run that is interrupted, however suddenly, loses a few
//! seconds of work: the next one checks what is there and resumes, and the result is the same to the byte.
//!
//! Memory is bounded by a few buffers per thread. Every byte of the source is read once, both to hash it (the result
//! records the hash) and to convert it. The bytes of the tensors depend on nothing but the source, the recipe and the
//! overrides: not on the CPU, the number of threads, or how the source is split into files.

mod epilogue;
mod execute;
mod journal;
pub mod lora;
mod name;
mod output;
pub mod provenance;
mod resume;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arch::{ARCHITECTURES, Architectures};
use crate::base::mmap::Mapping;
use crate::base::units;
use crate::calibration;
use crate::gguf::{self, DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorInfo};
use crate::pass::{self, Encoder, Prologue, Source};
use crate::quant;
use crate::recipe::{self, Override, Plan, PlannedTensor, Recipe};
use crate::vocab::{self, TokenizerFile};

pub use crate::calibration::Importance;
pub use crate::pass::size_label;
pub use epilogue::{Epilogue, Written};
pub use execute::{Event, Observer, Summary};
pub use journal::Changed;
pub use name::file_name;
pub use resume::Left;

/// What to make from a source, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which tensor gets which type.
    pub recipe: Recipe,
    /// Types that override the recipe.
    pub overrides: Vec<Override>,
    /// The output file; by default named after the source and the recipe, in the current folder.
    pub output: Option<PathBuf>,
    /// Replace the output if it exists.
    pub force: bool,
    /// Split the result into files of at most this many bytes.
    pub split_max_bytes: Option<u64>,
    /// Start over instead of resuming an earlier run.
    pub restart: bool,
    /// Convert weights that are NaN or infinite instead of stopping.
    pub allow_nan: bool,
    /// Accept a source that is quantized already.
    pub allow_requantize: bool,
    /// The file to take the vocabulary from, where a folder has two.
    pub tokenizer: Option<TokenizerFile>,
    /// Importance, for the formats that use it.
    pub importance: Option<Importance>,
    /// Work on each tensor before its rows are encoded; `None` for rounding to nearest.
    pub prologue: Option<Arc<dyn Prologue>>,
    /// Work on all tensors after they are encoded.
    pub epilogue: Option<Arc<dyn Epilogue>>,
    /// The architectures that checkpoints may have.
    pub architectures: Architectures,
}

impl Options {
    /// Returns the default options with this recipe.
    pub fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            overrides: Vec::new(),
            output: None,
            force: false,
            split_max_bytes: None,
            restart: false,
            allow_nan: false,
            allow_requantize: false,
            tokenizer: None,
            importance: None,
            prologue: None,
            epilogue: None,
            architectures: ARCHITECTURES,
        }
    }
}

/// Why a conversion could not be prepared or carried out.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] pass::Error),
    #[error(transparent)]
    Layout(#[from] gguf::LayoutError),
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    #[error(transparent)]
    Lora(#[from] lora::Error),
    #[error(
        "the importance of '{tensor}' has {found} values, but the matrix has {wanted} columns; was it made with another model?"
    )]
    ImportanceLength { tensor: String, found: usize, wanted: usize },
    #[error("the importance of '{tensor}' has {value} at column {column}; wanted a number of 0 or more")]
    ImportanceValue { tensor: String, column: usize, value: f32 },
    #[error("the importance has values for '{tensor}', which is not a matrix; was it made with another model?")]
    ImportanceNoMatrix { tensor: String },
    #[error("the importance {name} has none of this model's matrices; was it made with another model?")]
    ImportanceForeign { name: String },
    #[error(transparent)]
    ImportanceRequired(#[from] calibration::importance::Required),
    #[error("{path} exists already")]
    OutputExists { path: PathBuf },
    #[error("{path} is a folder")]
    OutputIsFolder { path: PathBuf },
    #[error("{path} is not a regular file, and would be replaced by one")]
    OutputIsSpecial { path: PathBuf },
    #[error("{path} cannot be written: there is no folder {folder}")]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("{path} is part of what is being converted")]
    OutputIsSource { path: PathBuf },
    #[error(
        "not enough room in {folder}: the result needs {}, of which {} are missing",
        units::bytes(*.needed), units::bytes(*.missing)
    )]
    NoRoom { folder: PathBuf, needed: u64, missing: u64 },
    #[error("the disk that holds {folder} is full: make room for {} more", units::bytes(*.missing))]
    DiskFull { folder: PathBuf, missing: u64 },
    #[error("{path} was changed while it was being read; run the command again when nobody writes to it")]
    SourceChanged { path: PathBuf },
    #[error("{path} could not be written: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("another nibble is writing this output ({journal} is locked)")]
    Busy { journal: PathBuf },
    #[error("{path} is not a journal of nibble's, and would be replaced by one")]
    NotJournal { path: PathBuf },
    #[error("{path} exists, but there is no journal that says what it is part of")]
    UnknownPartial { path: PathBuf },
    #[error("the tensors could not be polished: {reason}")]
    Epilogue { reason: String },
    #[error("stopped")]
    Cancelled,
    #[error("{error}; {left}")]
    Unfinished { error: Box<Error>, left: Left },
}

impl Error {
    /// Returns whether the work was cancelled.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled | Self::Source(pass::Error::Cancelled) => true,
            Self::Unfinished { error, .. } => error.is_cancelled(),
            _ => false,
        }
    }

    /// Returns whether the same command may succeed another time, so that finished work is worth keeping.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Write { .. }
                | Self::Source(pass::Error::Read { .. } | pass::Error::Prologue { .. } | pass::Error::Cancelled)
                | Self::DiskFull { .. }
                | Self::Epilogue { .. }
                | Self::OutputExists { .. }
        )
    }
}

/// A conversion, planned and checked: only the work itself is left.
pub struct Job {
    source: Source,
    plan: Plan,
    /// The tensors of the plan as the output describes them.
    infos: Vec<TensorInfo>,
    /// The metadata that the layout was made with: everything but the hashes of the source's files, which are not known yet.
    metadata: Metadata,
    layout: Layout,
    /// The output file, or the name that those of its parts are made from.
    target: PathBuf,
    outputs: Vec<(PathBuf, u64)>,
    warnings: Vec<String>,
    options: Options,
}

impl Job {
    /// Opens the source, plans the type and place of every tensor, and checks everything that can be checked without reading
    /// weights. Writes nothing.
    ///
    /// # Errors
    /// If anything is wrong with the source, the recipe, the overrides or the importance. [`Self::check_output`]
    /// reports what is wrong with the output.
    pub fn prepare(source_path: &Path, options: Options) -> Result<Self, Error> {
        let source = Source::open(source_path, options.architectures, options.allow_requantize, options.tokenizer)?;
        let (mut metadata, mut warnings, tensors) = (source.metadata.clone(), source.warnings.clone(), &source.tensors);

        let has_importance = options.importance.is_some();
        let plan = recipe::plan(&options.recipe, &source.topology, tensors, has_importance, &options.overrides)?;
        if let Some(importance) = &options.importance {
            check_importance(importance, tensors, &mut warnings)?;
            warnings.extend(unused_importance(importance, &plan));
        }
        let quantized = plan.tensors.iter().filter(|tensor| tensor.ty != tensor.source);
        let quantized = quantized.map(|tensor| (tensor.name.as_str(), tensor.ty));
        calibration::importance::Required::check(quantized, options.importance.as_ref())?;

        metadata.set("general.quantization_version", recipe::QUANTIZATION_VERSION);
        metadata.set("general.file_type", plan.file_type);
        provenance::record(&mut metadata, &options, &source.file_name(), source.file_names());
        let infos: Vec<_> = plan.tensors.iter().map(PlannedTensor::info).collect();
        let layout = Layout::new(&metadata, infos.clone(), DEFAULT_ALIGNMENT, options.split_max_bytes)?;

        let path =
            options.output.clone().unwrap_or_else(|| file_name(&source.name, plan.n_weights(), &plan.recipe).into());
        let outputs = output_files(&path, &layout);
        let limit = options.split_max_bytes.unwrap_or(u64::MAX);
        for (part, bytes) in outputs.iter().filter(|(_, bytes)| *bytes > limit) {
            let (path, bytes, limit) = (part.display(), units::bytes(*bytes), units::bytes(limit));
            warnings.push(format!("{path} will have {bytes}, more than {limit}: a tensor is never cut in two"));
        }
        Ok(Self { source, plan, infos, metadata, layout, target: path, outputs, warnings, options })
    }

    /// Returns the type of every tensor, and why.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the metadata of the output, without the hashes of the source's files.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns what is converted.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns how many more bytes of the disk the outputs will take, beside what an earlier run has reserved for them.
    pub fn bytes_to_write(&self) -> u64 {
        output::bytes_to_write(&self.outputs)
    }

    /// Checks that no output exists, unless it may be replaced.
    ///
    /// # Errors
    /// If one does.
    pub fn check_names(&self) -> Result<(), Error> {
        if self.options.force { Ok(()) } else { output::check_names(&self.outputs) }
    }

    /// Returns whether a job like this one has made the outputs already: all are there and complete, no file of the source is
    /// newer, and they have the same tensors and metadata. The weights are not compared.
    pub fn is_made(&self) -> bool {
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        let newest = self.source.mappings().into_iter().map(|file| modified(file.path())).max().flatten();
        let is_whole = |(path, bytes): &(PathBuf, u64)| {
            path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == *bytes)
                && modified(path) >= newest
        };
        let unfinished = output::journal_path(&self.target).symlink_metadata().is_ok();
        let (true, false, Some((first, _))) = (self.outputs.iter().all(is_whole), unfinished, self.outputs.first())
        else {
            return false;
        };
        let Ok(found) = Gguf::open(first) else { return false };
        let same = |(key, value): (&str, &gguf::Value)| {
            key == provenance::SOURCE_BLAKE3 || found.metadata().get(key) == Some(value)
        };
        found.tensors() == self.infos && self.metadata.iter().all(same)
    }

    /// Returns the files that will be written, with their sizes in bytes.
    pub fn outputs(&self) -> &[(PathBuf, u64)] {
        &self.outputs
    }

    /// Returns the size of all files that will be written, in bytes.
    pub fn output_bytes(&self) -> u64 {
        self.layout.total_bytes()
    }

    /// Returns how many bytes of tensor data will be read from the source.
    pub fn source_bytes(&self) -> u64 {
        (0..self.infos.len()).map(|i| self.source.assembly(i).n_bytes() as u64).sum()
    }

    /// Returns warnings for the user, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns a text about which the source's two tokenizer files disagree, if nobody chose between them.
    pub fn tokenizers(&self) -> Option<&vocab::Disagreement> {
        self.source.tokenizers.as_ref()
    }

    /// Checks that the output may be written and that the disk has room for it.
    ///
    /// # Errors
    /// If a file of that name exists (unless it may be replaced) or is part of the source, or the disk is too small.
    pub fn check_output(&self) -> Result<(), Error> {
        self.check_places()?;
        self.check_names()?;
        output::check_room(&self.outputs)
    }

    /// Checks that the outputs can be written where they belong, and that none would overwrite the source.
    fn check_places(&self) -> Result<(), Error> {
        let sources: Vec<_> = self.source.mappings().into_iter().map(Mapping::path).collect();
        let written = self.outputs.iter().flat_map(|(path, _)| [path.clone(), output::partial_path(path)]);
        for path in written.chain([output::journal_path(&self.target)]) {
            let Ok(real) = path.canonicalize() else { continue };
            if sources.iter().any(|source| source.canonicalize().is_ok_and(|source| source == real)) {
                return Err(Error::OutputIsSource { path });
            }
        }
        output::check_places(&self.outputs)
    }

    /// Returns the encoder of tensor `i` of the plan.
    fn encoder(&self, i: usize) -> Encoder<'_> {
        let info = &self.infos[i];
        let importance = self.options.importance.as_ref().and_then(|importance| importance.of(&info.name));
        let format = quant::format(info.ty).expect("plans use only formats that nibble has");
        let encoder = Encoder::new(self.source.assembly(i), format, importance, self.options.allow_nan);
        encoder.with_prologue(self.options.prologue.as_deref(), info)
    }
}

/// Returns the files to write and their sizes: `path` itself, or its numbered parts.
fn output_files(path: &Path, layout: &Layout) -> Vec<(PathBuf, u64)> {
    let n_parts = layout.parts().len();
    let base = gguf::stem(path);
    let name = |part| match n_parts {
        1 => path.to_path_buf(),
        _ => path.with_file_name(gguf::file_name(&base, part, n_parts)),
    };
    layout.parts().iter().enumerate().map(|(i, part)| (name(i), part.total_bytes)).collect()
}

/// Checks importance against the tensors of a model.
///
/// # Errors
/// If a matrix has another number of columns, a value is negative or not finite, or no matrix is of this model.
pub(crate) fn check_importance(
    importance: &Importance,
    tensors: &[TensorInfo],
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut n_known = 0;
    let (mut in_part, mut wholly, mut n_columns) = (vec![], vec![], 0);
    for tensor in tensors.iter().filter(|tensor| importance.has(&tensor.name)) {
        n_known += 1;
        let name = || tensor.name.clone();
        if tensor.dims.len() != 2 {
            return Err(Error::ImportanceNoMatrix { tensor: name() });
        }
        let (wanted, unseen) = (tensor.row_len() as usize, importance.unseen(&tensor.name));
        let values = importance.of(&tensor.name).unwrap_or_default();
        let found = if values.is_empty() { unseen } else { values.len() };
        if found != wanted {
            return Err(Error::ImportanceLength { tensor: name(), found, wanted });
        }
        if let Some(column) = values.iter().position(|v| !(*v >= 0.0 && v.is_finite())) {
            return Err(Error::ImportanceValue { tensor: name(), column, value: values[column] });
        }
        if values.is_empty() {
            wholly.push(tensor.name.as_str());
        } else if unseen > 0 {
            in_part.push(tensor.name.as_str());
            n_columns += unseen;
        }
    }
    if n_known == 0 {
        return Err(Error::ImportanceForeign { name: importance.name.clone() });
    }
    let unknown: Vec<_> = importance.matrices().filter(|name| !tensors.iter().any(|t| t.name == *name)).collect();
    if let Some((one, more)) = some_names(unknown) {
        warnings.push(format!("the importance has values for {one}{more}, which this model does not have"));
    }
    if let Some((one, more)) = some_names(in_part) {
        let columns = if n_columns == 1 { "a column".to_string() } else { format!("{n_columns} columns") };
        warnings.push(format!(
            "the importance is 0 for {columns} of {one}{more}, which its texts never used; they count as the least \
             important ones"
        ));
    }
    if let Some((one, more)) = some_names(wholly) {
        warnings.push(format!("the importance is 0 for all of {one}{more}, quantized as if there were none"));
    }
    Ok(())
}

/// Returns warnings about importance that the plan does not use, or lacks.
fn unused_importance(importance: &Importance, plan: &Plan) -> Vec<String> {
    let uses = |ty| quant::format(ty).is_some_and(|format| format.importance.is_any());
    // llama-imatrix, too, collects nothing for the embedding and the output unless it is told to.
    let matrices = || {
        let inner = |t: &&PlannedTensor| t.dims.len() == 2 && t.name.starts_with("blk.") && t.name.ends_with(".weight");
        plan.tensors.iter().filter(inner)
    };
    let missing = matrices().filter(|t| uses(t.ty) && t.ty != t.source && !importance.has(&t.name));
    if !plan.tensors.iter().any(|t| uses(t.ty) && importance.has(&t.name)) {
        return vec![format!(
            "nothing is quantized by importance: no type that {} gives to a matrix uses it",
            plan.recipe
        )];
    }
    let missing = some_names(missing.map(|t| t.name.as_str()).collect());
    let sentence = |(one, more): (String, String)| {
        format!("the importance has nothing for {one}{more}, quantized as if there were none")
    };
    missing.map(sentence).into_iter().collect()
}

/// Returns the first of some names in order, quoted, and words for the others.
fn some_names(mut names: Vec<&str>) -> Option<(String, String)> {
    names.sort_unstable();
    let (first, rest) = names.split_first()?;
    let more = match rest.len() {
        0 => String::new(),
        1 => " and another tensor".to_string(),
        n => format!(" and {n} other tensors"),
    };
    Some((format!("'{first}'"), more))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;

    #[test]
    fn parts_are_named_after_all_of_the_name() {
        let tensor = |i: u64| TensorInfo { name: format!("t{i}"), dims: vec![1024], ty: TensorType::F32 };
        let layout = Layout::new(&Metadata::new(), vec![tensor(0), tensor(1)], DEFAULT_ALIGNMENT, Some(5000)).unwrap();
        for (output, wanted) in [
            ("a/Yi-1.5-9B-Q4_0", "a/Yi-1.5-9B-Q4_0-00001-of-00002.gguf"),
            ("a/Yi-1.5-9B-Q4_0.gguf", "a/Yi-1.5-9B-Q4_0-00001-of-00002.gguf"),
            ("Yi-1.5-9B-Q8_0.GGUF", "Yi-1.5-9B-Q8_0-00001-of-00002.gguf"),
        ] {
            assert_eq!(output_files(Path::new(output), &layout)[0].0, Path::new(wanted));
        }
    }
}
