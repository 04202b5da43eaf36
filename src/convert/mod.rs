//! Conversion: a Hugging Face folder or a GGUF becomes a GGUF, in one pass over the source.
//!
//! ```text
//! Job::prepare   open the source ─► describe the model ─► plan types ─► lay out the file     nothing written yet
//! Job::execute   for each span of a few MB of the source's files, on every core:
//!                    read ─┬► hash
//!                          └► permute ─► f32 ─► quantize ─► write at the planned offset
//! ```
//!
//! What is done is noted in a journal beside the output. A run that is cut off, however suddenly, costs moments of work:
//! the next one checks what is there and goes on, and the result is the same to the byte.
//!
//! Memory is bounded by a few buffers a thread, and every byte of the source is read once: for its hash, which the result
//! records, and for what becomes of it. The bytes of the tensors depend on nothing but the source, the recipe and the
//! overrides: not on the CPU, the number of threads, or how the source is cut into files.

mod encode;
mod execute;
pub(crate) mod hash;
mod journal;
pub mod lora;
mod name;
mod output;
pub mod provenance;
mod resume;
mod source;

use std::path::{Path, PathBuf};

use crate::base::mmap::Mapping;
use crate::base::units;
use crate::gguf::{self, DEFAULT_ALIGNMENT, Gguf, Layout, Metadata, TensorInfo, TensorType, Value};
use crate::recipe::{self, Facts, Override, Plan, PlannedTensor, Recipe};
use crate::vocab::{self, TokenizerFiles};
use crate::{arch, calibration, checkpoint, quant};
use arch::Transform;
use checkpoint::{Checkpoint, Config, ModelCard};

pub use crate::calibration::Importance;
pub(crate) use encode::Encoder;
pub use execute::{Event, Observer, Summary};
pub(crate) use execute::{file_hashes, spans};
pub use journal::Changed;
pub use name::{file_name, size_label};
pub use output::free_bytes;
pub use resume::Left;
pub(crate) use source::{Bytes, Input, SPAN_BYTES, Span};

/// What to make of a source.
#[derive(Debug)]
pub struct Options {
    /// Which tensor gets which type.
    pub recipe: Recipe,
    /// Types given by hand, which go before the recipe.
    pub overrides: Vec<Override>,
    /// Where the result goes; by default a name made from the source's, in the current folder.
    pub output: Option<PathBuf>,
    /// Replace an output that exists.
    pub force: bool,
    /// Cut the result into files of at most this many bytes.
    pub split_max_bytes: Option<u64>,
    /// Begin anew where an earlier run left off.
    pub restart: bool,
    /// Go on where a weight is NaN or infinite.
    pub allow_nan: bool,
    /// Accept a source that is quantized already.
    pub allow_requantize: bool,
    /// Importance, for the formats that use it.
    pub importance: Option<Importance>,
}

impl Options {
    /// The defaults: a recipe and nothing else.
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
            importance: None,
        }
    }
}

/// Why a conversion could not be prepared or carried out.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    #[error(transparent)]
    Layout(#[from] gguf::LayoutError),
    #[error("{dir}: {source}")]
    Arch { dir: PathBuf, source: arch::Error },
    #[error(transparent)]
    Vocab(#[from] vocab::Error),
    #[error(transparent)]
    Recipe(#[from] recipe::Error),
    #[error(transparent)]
    Lora(#[from] lora::Error),
    #[error("{path}: no such file or folder")]
    NoSource { path: PathBuf },
    #[error(
        "{path}: tensor '{tensor}' is {ty}: quantizing it again adds a second loss to the first; start from the 16-bit \
         original, or pass --allow-requantize to go on all the same"
    )]
    AlreadyQuantized { path: PathBuf, tensor: String, ty: TensorType },
    #[error("{path}: tensor '{tensor}' is {ty}, which nibble cannot read")]
    UnreadableType { path: PathBuf, tensor: String, ty: String },
    #[error(
        "{path}: the model's architecture is '{found}', and nibble's recipes know only 'llama' (the architecture of Yi, \
         Llama and Mistral)"
    )]
    ForeignArchitecture { path: PathBuf, found: String },
    #[error("{path}: the key '{key}' is missing or not a number; is this a whole model?")]
    MissingKey { path: PathBuf, key: String },
    #[error(
        "tensor '{tensor}' has {value} at row {row}, column {column} (rows and columns count from 0): the checkpoint is \
         damaged or its training diverged; check the download, or pass --allow-nan to go on all the same"
    )]
    NotFinite { tensor: String, row: usize, column: usize, value: f32 },
    #[error(
        "tensor '{tensor}' has {value} at row {row}, column {column} (rows and columns count from 0), which may be beyond \
         {ty}, whose {} are 16-bit floats of at most 65504; use --type to give this tensor BF16, or --allow-nan to go on \
         all the same",
        if *.ty == TensorType::F16 { "numbers" } else { "scales" }
    )]
    BeyondF16 { tensor: String, row: usize, column: usize, value: f32, ty: TensorType },
    #[error(
        "the importance of '{tensor}' has {found} values, but the matrix has {wanted} columns; was it made with another model?"
    )]
    ImportanceLength { tensor: String, found: usize, wanted: usize },
    #[error("the importance of '{tensor}' has {value} at column {column}, where only numbers from 0 up make sense")]
    ImportanceValue { tensor: String, column: usize, value: f32 },
    #[error("the importance has values for '{tensor}', which is no matrix; was it made with another model?")]
    ImportanceNoMatrix { tensor: String },
    #[error("the importance {name} has none of this model's matrices; was it made with another model?")]
    ImportanceForeign { name: String },
    #[error(transparent)]
    ImportanceRequired(#[from] calibration::importance::Required),
    #[error("{path} exists already; pass --force to replace it, or -o to write elsewhere")]
    OutputExists { path: PathBuf },
    #[error("{path} is a folder; give -o the name of a file")]
    OutputIsFolder { path: PathBuf },
    #[error("{path} is not a regular file, and would be replaced by one; give -o another name")]
    OutputIsSpecial { path: PathBuf },
    #[error("{path} cannot be written: there is no folder {folder}")]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("{path} is a part of what is being converted; give -o another name")]
    OutputIsSource { path: PathBuf },
    #[error(
        "not enough room in {folder}: the result needs {}, and {} are missing; make room, or write to another disk with -o",
        units::bytes(*.needed), units::bytes(*.missing)
    )]
    NoRoom { folder: PathBuf, needed: u64, missing: u64 },
    #[error("the disk that holds {folder} is full: make room for {} more", units::bytes(*.missing))]
    DiskFull { folder: PathBuf, missing: u64 },
    #[error("{path} could not be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} was changed while it was being read; run the command again when nobody writes to it")]
    SourceChanged { path: PathBuf },
    #[error("{path} could not be written: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "another nibble is at work on this output ({journal} is locked); wait until it is done, or write elsewhere with -o"
    )]
    Busy { journal: PathBuf },
    #[error("{path} is no journal of nibble's, and would be replaced by one; move it away, or give -o another name")]
    NotJournal { path: PathBuf },
    #[error(
        "{path} is there, and nothing says what it is a part of; remove it, or pass --restart to begin the result anew"
    )]
    UnknownPartial { path: PathBuf },
    #[error("stopped")]
    Cancelled,
    #[error("{error}; {left}")]
    Unfinished { error: Box<Error>, left: Left },
}

impl Error {
    /// Whether the work ended because it was asked to.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Cancelled => true,
            Self::Unfinished { error, .. } => error.is_cancelled(),
            _ => false,
        }
    }

    /// Whether the same command may well succeed another time, so that what is done is worth keeping.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Cancelled
                | Self::Write { .. }
                | Self::Read { .. }
                | Self::DiskFull { .. }
                | Self::OutputExists { .. }
        )
    }
}

enum Source {
    Checkpoint(Box<Checkpoint>),
    Gguf(Box<Gguf>),
}

impl Source {
    /// The files that hold the tensors.
    fn mappings(&self) -> Vec<&Mapping> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.mappings().collect(),
            Self::Gguf(gguf) => gguf.mappings().collect(),
        }
    }

    /// Their names, without folders.
    fn file_names(&self) -> Vec<String> {
        let name = |file: &Mapping| file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.mappings().into_iter().map(name).collect()
    }

    /// What the source is called: the folder of a checkpoint, the file of a GGUF.
    fn name(&self) -> String {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.name(),
            Self::Gguf(_) => self.file_names().swap_remove(0),
        }
    }
}

/// Where the bytes of an output tensor come from.
#[derive(Debug)]
enum Origin {
    /// A tensor of the checkpoint, by its place in [`Checkpoint::tensors`].
    Checkpoint { index: usize, transform: Transform },
    /// A tensor of the GGUF, by its place in [`Gguf::tensors`].
    Gguf { index: usize },
    /// Numbers that the configuration implies.
    Made(Vec<f32>),
}

/// A conversion, planned and checked: only the work itself is left.
pub struct Job {
    source: Source,
    /// For each tensor of the plan.
    origins: Vec<Origin>,
    plan: Plan,
    /// What the layout was made of: everything but the hashes of the source's files, which nobody knows yet.
    metadata: Metadata,
    layout: Layout,
    /// What was asked for: the output, or what the names of its parts are made from.
    target: PathBuf,
    outputs: Vec<(PathBuf, u64)>,
    warnings: Vec<String>,
    options: Options,
}

impl Job {
    /// Opens the source, plans every tensor's type and place, and checks all that can be checked without reading weights.
    /// Writes nothing.
    ///
    /// # Errors
    /// Anything wrong with the source, the recipe, the overrides or the importance. Not yet what is wrong with the
    /// output: see [`Self::check_output`].
    pub fn prepare(source_path: &Path, options: Options) -> Result<Self, Error> {
        let described = Described::open(source_path, options.allow_requantize)?;
        let Described { source, mut metadata, tensors, origins, facts, name, mut warnings } = described;

        let plan = recipe::plan(&options.recipe, &facts, &tensors, options.importance.is_some(), &options.overrides)?;
        if let Some(importance) = &options.importance {
            check_importance(importance, &tensors, &mut warnings)?;
            warnings.extend(unused_importance(importance, &plan));
        }
        let quantized = plan.tensors.iter().filter(|tensor| tensor.ty != tensor.source);
        let quantized = quantized.map(|tensor| (tensor.name.as_str(), tensor.ty));
        calibration::importance::Required::check(quantized, options.importance.as_ref())?;

        metadata.set("general.quantization_version", recipe::QUANTIZATION_VERSION);
        metadata.set("general.file_type", plan.file_type);
        provenance::record(&mut metadata, &options, &source.name(), source.file_names());
        let infos = plan.tensors.iter().map(PlannedTensor::info).collect();
        let layout = Layout::new(&metadata, infos, DEFAULT_ALIGNMENT, options.split_max_bytes)?;

        let path = options.output.clone().unwrap_or_else(|| file_name(&name, plan.n_weights(), &plan.recipe).into());
        let outputs = output_files(&path, &layout);
        let limit = options.split_max_bytes.unwrap_or(u64::MAX);
        for (part, bytes) in outputs.iter().filter(|(_, bytes)| *bytes > limit) {
            let (path, bytes, limit) = (part.display(), units::bytes(*bytes), units::bytes(limit));
            warnings.push(format!("{path} will have {bytes}, more than {limit}: a tensor is never cut in two"));
        }
        Ok(Self { source, origins, plan, metadata, layout, target: path, outputs, warnings, options })
    }

    /// The type of every tensor, and why.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The files that will be written, with their sizes in bytes.
    pub fn outputs(&self) -> &[(PathBuf, u64)] {
        &self.outputs
    }

    /// Bytes of all files that will be written.
    pub fn output_bytes(&self) -> u64 {
        self.layout.total_bytes()
    }

    /// Bytes of tensor data in the source that will be read.
    pub fn source_bytes(&self) -> u64 {
        (0..self.origins.len()).map(|i| self.input(i)).map(|input| (input.n_rows * input.row_bytes()) as u64).sum()
    }

    /// What the user should know although it is no error.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Checks that the output may be written and that the disk has room for it.
    ///
    /// # Errors
    /// When a file of that name exists (unless it may be replaced), is part of the source, or does not fit.
    pub fn check_output(&self) -> Result<(), Error> {
        self.check_places()?;
        if !self.options.force {
            output::check_names(&self.outputs)?;
        }
        output::check_room(&self.outputs)
    }

    /// Refuses to write where that cannot be, or where it would destroy the source.
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

    /// The input of tensor `i` of the plan.
    fn input(&self, i: usize) -> Input<'_> {
        let planned = &self.plan.tensors[i];
        input(&self.source, &self.origins[i], &planned.name, &planned.dims, planned.source)
    }
}

/// The input of the output tensor `name` of these sizes, whose weights have the type `ty` in the source.
fn input<'a>(source: &'a Source, origin: &'a Origin, name: &'a str, dims: &[u64], ty: TensorType) -> Input<'a> {
    let (name, bytes, transform) = match (origin, source) {
        (Origin::Checkpoint { index, transform }, Source::Checkpoint(checkpoint)) => {
            let tensor = &checkpoint.tensors()[*index];
            let (map, range) = checkpoint.location(tensor);
            (tensor.name.as_str(), Bytes::Mapped(map, range), *transform)
        }
        (Origin::Gguf { index }, Source::Gguf(gguf)) => {
            let tensor = &gguf.tensors()[*index];
            let (map, range) = gguf.location(*index);
            (tensor.name.as_str(), Bytes::Mapped(map, range), Transform::Copy)
        }
        (Origin::Made(values), _) => {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, Bytes::Made(bytes), Transform::Copy)
        }
        _ => unreachable!("origins are made together with their source"),
    };
    let n_weights = dims.iter().product::<u64>() as usize;
    // A bias is permuted by its elements.
    let row_len = match dims {
        [_] if transform != Transform::Copy => 1,
        dims => dims.first().copied().unwrap_or(1) as usize,
    };
    Input { name, ty, bytes, row_len, n_rows: n_weights / row_len, transform }
}

/// The files to write and their sizes: `path` itself, or its numbered parts.
fn output_files(path: &Path, layout: &Layout) -> Vec<(PathBuf, u64)> {
    let n_parts = layout.parts().len();
    let base = path.with_extension("");
    let base = base.file_name().unwrap_or_default().to_string_lossy();
    let name = |part| match n_parts {
        1 => path.to_path_buf(),
        _ => path.with_file_name(gguf::file_name(&base, part, n_parts)),
    };
    layout.parts().iter().enumerate().map(|(i, part)| (name(i), part.total_bytes)).collect()
}

/// A source, and all that the plan and the file need to know of it.
pub(crate) struct Described {
    source: Source,
    /// As the file will have it, but for what the plan adds.
    pub metadata: Metadata,
    /// In the order of the output, with the source's types.
    pub tensors: Vec<TensorInfo>,
    origins: Vec<Origin>,
    pub facts: Facts,
    pub name: String,
    pub warnings: Vec<String>,
}

impl Described {
    /// Opens the source at `path`: a GGUF, or a Hugging Face folder.
    pub fn open(path: &Path, allow_requantize: bool) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::NoSource { path: path.to_path_buf() });
        }
        if gguf::is_gguf(path) {
            describe_gguf(Gguf::open(path)?, path, allow_requantize)
        } else {
            describe_checkpoint(Checkpoint::open(path)?)
        }
    }

    /// The files that hold the tensors.
    pub fn mappings(&self) -> Vec<&Mapping> {
        self.source.mappings()
    }

    /// Their names, without folders.
    pub fn file_names(&self) -> Vec<String> {
        self.source.file_names()
    }

    /// The input of tensor `i` of [`Self::tensors`].
    pub fn input(&self, i: usize) -> Input<'_> {
        let TensorInfo { name, dims, ty } = &self.tensors[i];
        input(&self.source, &self.origins[i], name, dims, *ty)
    }
}

fn describe_checkpoint(checkpoint: Checkpoint) -> Result<Described, Error> {
    let shapes = checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
    let model = arch::describe(checkpoint.config().map(), shapes)
        .map_err(|source| Error::Arch { dir: checkpoint.dir().to_path_buf(), source })?;
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(model.warnings.iter().cloned());

    let mut tensors = Vec::with_capacity(model.tensors.len());
    let mut origins = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        let (ty, origin) = match &tensor.source {
            arch::TensorSource::Checkpoint { name, transform } => {
                let index = checkpoint
                    .tensors()
                    .binary_search_by(|t| t.name.as_str().cmp(name))
                    .expect("arch names only tensors of the checkpoint, which are sorted");
                let ty = checkpoint.tensors()[index].float_type()?.into();
                (ty, Origin::Checkpoint { index, transform: *transform })
            }
            arch::TensorSource::Generated(values) => (TensorType::F32, Origin::Made(values.clone())),
        };
        tensors.push(TensorInfo { name: tensor.name.clone(), dims: tensor.dims.clone(), ty });
        origins.push(origin);
    }
    let n_weights = model.n_parameters();

    let chat_template = checkpoint.chat_template();
    let (tokenizer, tokenizer_warnings) = vocab::metadata(
        &TokenizerFiles {
            dir: checkpoint.dir().to_path_buf(),
            model: checkpoint.tokenizer_model(),
            json: checkpoint.tokenizer_json(),
            tokenizer_config: checkpoint.tokenizer_config().map(Config::map),
            special_tokens_map: checkpoint.special_tokens_map().map(Config::map),
            added_tokens: checkpoint.added_tokens().map(Config::map),
            config: Some(checkpoint.config().map()),
            generation_config: checkpoint.generation_config().map(Config::map),
            chat_template: chat_template.as_deref(),
        },
        model.hyper.vocab.into(),
    )?;
    warnings.extend(tokenizer_warnings);

    let name = checkpoint.name();
    let mut metadata = general_metadata(&name, n_weights, checkpoint.card());
    metadata.extend(model.metadata.iter().map(|(k, v)| (k.to_string(), v.clone())));
    metadata.extend(tokenizer.iter().map(|(k, v)| (k.to_string(), v.clone())));
    let facts = Facts::of(&model.hyper);
    Ok(Described {
        source: Source::Checkpoint(Box::new(checkpoint)),
        metadata,
        tensors,
        origins,
        facts,
        name,
        warnings,
    })
}

fn describe_gguf(gguf: Gguf, path: &Path, allow_requantize: bool) -> Result<Described, Error> {
    let metadata = gguf.metadata().clone();
    if metadata.str("general.type") == Some("adapter") {
        return Err(lora::Error::Gguf { path: path.to_path_buf() }.into());
    }
    let architecture = metadata.str("general.architecture").unwrap_or_default().to_string();
    if architecture != "llama" {
        return Err(Error::ForeignArchitecture { path: path.to_path_buf(), found: architecture });
    }
    for tensor in gguf.tensors() {
        let (path, name) = (path.to_path_buf(), tensor.name.clone());
        if quant::decoder(tensor.ty).is_none() {
            return Err(Error::UnreadableType { path, tensor: name, ty: tensor.ty.to_string() });
        }
        let lossless = matches!(tensor.ty, TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0);
        if !lossless && !allow_requantize {
            return Err(Error::AlreadyQuantized { path, tensor: name, ty: tensor.ty });
        }
    }
    let number = |key: &str| {
        let first = metadata.get(key).and_then(|value| match value {
            // Some models give a number a layer; the recipes go by the first.
            Value::Array(array) => array.get(0)?.as_u64(),
            value => value.as_u64(),
        });
        first.ok_or_else(|| Error::MissingKey { path: path.to_path_buf(), key: key.to_string() })
    };
    let n_layers = number("llama.block_count")?;
    let n_heads = number("llama.attention.head_count")?;
    let n_kv_heads = number("llama.attention.head_count_kv").unwrap_or(n_heads);
    let tensors = gguf.tensors().to_vec();
    let facts = Facts {
        n_layers: u32::try_from(n_layers)
            .map_err(|_| Error::MissingKey { path: path.to_path_buf(), key: "llama.block_count".to_string() })?,
        n_heads,
        n_kv_heads,
    };
    let name = match metadata.str("general.name") {
        Some(name) => name.to_string(),
        None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let origins = (0..tensors.len()).map(|index| Origin::Gguf { index }).collect();
    Ok(Described {
        source: Source::Gguf(Box::new(gguf)),
        metadata,
        tensors,
        origins,
        facts,
        name,
        warnings: Vec::new(),
    })
}

/// What the model is, where it comes from and under which license, from its folder's name and its card.
fn general_metadata(name: &str, n_weights: u64, card: &ModelCard) -> Metadata {
    let mut metadata = Metadata::new();
    // llama.cpp wants the architecture to come first.
    metadata.set("general.architecture", "llama");
    metadata.set("general.type", "model");
    metadata.set("general.name", card.model_name.as_deref().unwrap_or(name));
    metadata.set("general.size_label", size_label(n_weights).as_str());
    let texts = [
        ("general.license", &card.license),
        ("general.license.name", &card.license_name),
        ("general.license.link", &card.license_link),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            metadata.set(key, text.as_str());
        }
    }
    set_base_models(&mut metadata, &card.base_model);
    if !card.tags.is_empty() {
        metadata.set("general.tags", card.tags.clone());
    }
    if !card.language.is_empty() {
        metadata.set("general.languages", card.language.clone());
    }
    metadata
}

/// The models that this one was made from, by their ids: `01-ai/Yi-34B`.
fn set_base_models(metadata: &mut Metadata, ids: &[String]) {
    if ids.is_empty() {
        return;
    }
    metadata.set("general.base_model.count", ids.len() as u32);
    for (i, id) in ids.iter().enumerate() {
        let (organization, name) = id.split_once('/').unwrap_or(("", id));
        metadata.set(format!("general.base_model.{i}.name"), name.replace('-', " "));
        if !organization.is_empty() {
            metadata.set(format!("general.base_model.{i}.organization"), organization);
            metadata.set(format!("general.base_model.{i}.repo_url"), format!("https://huggingface.co/{id}"));
        }
    }
}

/// Holds importance to the matrices of a model.
///
/// # Errors
/// Where it has other columns, values that make no sense, or nothing that this model has.
pub(crate) fn check_importance(
    importance: &Importance,
    tensors: &[TensorInfo],
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut n_known = 0;
    for tensor in tensors {
        let Some(values) = importance.of(&tensor.name) else { continue };
        n_known += 1;
        if tensor.dims.len() != 2 {
            return Err(Error::ImportanceNoMatrix { tensor: tensor.name.clone() });
        }
        let wanted = tensor.row_len() as usize;
        if values.len() != wanted {
            return Err(Error::ImportanceLength { tensor: tensor.name.clone(), found: values.len(), wanted });
        }
        if let Some(column) = values.iter().position(|v| !(*v >= 0.0 && v.is_finite())) {
            return Err(Error::ImportanceValue { tensor: tensor.name.clone(), column, value: values[column] });
        }
    }
    if n_known == 0 {
        return Err(Error::ImportanceForeign { name: importance.name.clone() });
    }
    let unknown: Vec<_> = importance.matrices().filter(|name| !tensors.iter().any(|t| t.name == *name)).collect();
    if let Some((one, more)) = some_names(unknown) {
        warnings.push(format!("the importance has values for {one}{more}, which this model does not have"));
    }
    Ok(())
}

/// What a plan makes no use of, or lacks, in sentences.
fn unused_importance(importance: &Importance, plan: &Plan) -> Vec<String> {
    let uses = |ty| quant::format(ty).is_some_and(|format| format.importance.is_any());
    // What the embedding and the output weigh by, llama-imatrix does not collect either, unless it is asked to.
    let matrices = || {
        let inner = |t: &&PlannedTensor| t.dims.len() == 2 && t.name.starts_with("blk.") && t.name.ends_with(".weight");
        plan.tensors.iter().filter(inner)
    };
    let missing = matrices().filter(|t| uses(t.ty) && t.ty != t.source && importance.of(&t.name).is_none());
    if !plan.tensors.iter().any(|t| uses(t.ty) && importance.of(&t.name).is_some()) {
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

/// The first of some names in order, and how many there are beside it.
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
