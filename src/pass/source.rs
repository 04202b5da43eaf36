//! An opened source (a checkpoint or a GGUF file), described as the tensors of the output and what each is assembled
//! from.

use std::io;
use std::path::Path;

use super::assembly::{Assembly, Bytes, Input};
use super::{Error, size_label};
use crate::arch::{self, Architectures, Origin, RowOrder, Topology};
use crate::base::mmap::Mapping;
use crate::checkpoint::{Checkpoint, Config, ModelCard, Tensor};
use crate::gguf::{self, Gguf, Metadata, TensorInfo, TensorType};
use crate::quant;
use crate::vocab::{self, TokenizerFile, TokenizerFiles};

/// A source, with everything that a plan and an output file need to know about it.
pub struct Source {
    files: Files,
    /// The output's metadata, without the keys that the plan and the conversion add.
    pub metadata: Metadata,
    /// The tensors in the order of the output, with the types that they have in the source.
    pub tensors: Vec<TensorInfo>,
    /// Where each tensor comes from.
    origins: Vec<From>,
    /// The properties of the model that recipes depend on.
    pub topology: Topology,
    /// The model's name.
    pub name: String,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// A text about which the source's two tokenizer files disagree, if nobody chose between them.
    pub tokenizers: Option<vocab::Disagreement>,
}

enum Files {
    Checkpoint(Box<Checkpoint>),
    Gguf(Box<Gguf>),
}

/// Where the bytes of an output tensor come from.
enum From {
    Checkpoint(Vec<Located>),
    /// A tensor of the GGUF file, by its index in [`Gguf::tensors`].
    Gguf(usize),
    /// Numbers that the configuration implies.
    Made(Vec<f32>),
}

/// An input whose tensors have been found.
struct Located {
    input: arch::Input,
    /// The index of each of its tensors in [`Checkpoint::tensors`].
    tensors: Vec<usize>,
    /// The type of its weights.
    ty: TensorType,
}

impl Source {
    /// Opens the source at `path`: a GGUF file, or a Hugging Face folder of one of the `architectures`. Reads only
    /// headers and small files.
    ///
    /// # Errors
    /// If there is no source, it is broken, or nibble cannot convert it. A GGUF file that is already quantized is
    /// refused unless `allow_requantize` is set. `tokenizer` is the file to read the vocabulary from, if a folder has two.
    pub fn open(
        path: &Path,
        architectures: Architectures,
        allow_requantize: bool,
        tokenizer: Option<TokenizerFile>,
    ) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::NoSource { path: path.to_path_buf() });
        }
        match (gguf::is_gguf(path), tokenizer) {
            (true, None) => of_gguf(Gguf::open(path)?, path, architectures, allow_requantize),
            (true, Some(_)) => Err(Error::TokenizerOfGguf { path: path.to_path_buf() }),
            (false, tokenizer) => of_checkpoint(Checkpoint::open(path)?, architectures, tokenizer),
        }
    }

    /// The files that hold the tensors.
    pub fn mappings(&self) -> Vec<&Mapping> {
        match &self.files {
            Files::Checkpoint(checkpoint) => checkpoint.mappings().collect(),
            Files::Gguf(gguf) => gguf.mappings().collect(),
        }
    }

    /// Returns their names, without folders.
    pub fn file_names(&self) -> Vec<String> {
        let name = |file: &Mapping| file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.mappings().into_iter().map(name).collect()
    }

    /// Returns the source's name: the folder of a checkpoint, or the name of a GGUF file.
    pub fn file_name(&self) -> String {
        match &self.files {
            Files::Checkpoint(checkpoint) => checkpoint.name(),
            Files::Gguf(_) => self.file_names().swap_remove(0),
        }
    }

    /// Returns what tensor `i` of [`Self::tensors`] is assembled from.
    pub fn assembly(&self, i: usize) -> Assembly<'_> {
        let info = &self.tensors[i];
        let n_weights = info.dims.iter().product::<u64>() as usize;
        let whole = |name, bytes, ty| {
            let row_len = info.dims.first().copied().unwrap_or(1) as usize;
            let (n_rows, order, plus) = (n_weights / row_len, RowOrder::AsStored, 0.0);
            let (first_row, first_source_row, packed) = (0, 0, None);
            let input = Input { name, ty, bytes, packed, row_len, n_rows, first_row, first_source_row, order, plus };
            Assembly { row_len, n_rows, inputs: vec![input] }
        };
        match (&self.origins[i], &self.files) {
            (From::Checkpoint(inputs), Files::Checkpoint(checkpoint)) => assemble(&info.dims, inputs, checkpoint),
            (From::Gguf(index), Files::Gguf(gguf)) => {
                let (map, range) = gguf.location(*index);
                whole(gguf.tensors()[*index].name.as_str(), Bytes::Mapped(map, range), info.ty)
            }
            (From::Made(values), _) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                whole(info.name.as_str(), Bytes::Made(bytes), TensorType::F32)
            }
            _ => unreachable!("origins are made together with their source"),
        }
    }
}

/// Assembles a tensor of these sizes from its inputs, one after the other.
fn assemble<'a>(dims: &[u64], inputs: &'a [Located], checkpoint: &'a Checkpoint) -> Assembly<'a> {
    let n_weights = dims.iter().product::<u64>() as usize;
    let is_one = matches!(inputs, [Located { input, .. }] if input.is_whole());
    // A bias is split and permuted element by element.
    let row_len = match dims {
        [_] if !is_one => 1,
        dims => dims.first().copied().unwrap_or(1) as usize,
    };
    let n_rows = n_weights / row_len;
    let mut first_row = 0;
    let lay = |located: &'a Located| {
        let Located { input, tensors, ty } = located;
        let tensors: Vec<_> = tensors.iter().map(|&index| &checkpoint.tensors()[index]).collect();
        let (map, whole) = checkpoint.location(tensors[0]);
        let rows = match &input.rows {
            Some(rows) => rows.start as usize..rows.end as usize,
            // All rows of a matrix of floats; of a packed one, which has its tensor to itself, those of the tensor.
            None if input.packing.is_none() => 0..tensors[0].n_elements() as usize / row_len,
            None => 0..n_rows,
        };
        let packed = input
            .packing
            .map(|packing| (packing, tensors[1..].iter().map(|tensor| checkpoint.data(tensor)).collect::<Vec<_>>()));
        let row_bytes = match packed {
            Some(_) => whole.len() / rows.end.max(1),
            None => row_len * ty.block_bytes(),
        };
        let range = whole.start + rows.start * row_bytes..whole.start + rows.end * row_bytes;
        let laid = Input {
            name: tensors[0].name.as_str(),
            ty: *ty,
            bytes: Bytes::Mapped(map, range),
            packed,
            row_len,
            n_rows: rows.len(),
            first_row,
            first_source_row: rows.start,
            order: input.order,
            plus: input.plus,
        };
        first_row += rows.len();
        laid
    };
    let inputs: Vec<_> = inputs.iter().map(lay).collect();
    debug_assert_eq!(first_row, n_rows);
    Assembly { row_len, n_rows, inputs }
}

fn of_checkpoint(
    checkpoint: Checkpoint,
    architectures: Architectures,
    choice: Option<TokenizerFile>,
) -> Result<Source, Error> {
    let model = describe(&checkpoint, architectures)?;
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(model.warnings.iter().cloned());

    let mut tensors = Vec::with_capacity(model.tensors.len());
    let mut origins = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        let (ty, origin) = match &tensor.origin {
            Origin::Checkpoint(inputs) => {
                let located =
                    inputs.iter().map(|input| locate(input, &checkpoint)).collect::<Result<Vec<_>, Error>>()?;
                let first = located.first().map_or(TensorType::F32, |located| located.ty);
                let ty = if located.iter().all(|located| located.ty == first) { first } else { TensorType::F32 };
                (ty, From::Checkpoint(located))
            }
            Origin::Generated(values) => (TensorType::F32, From::Made(values.clone())),
        };
        tensors.push(TensorInfo { name: tensor.name.clone(), dims: tensor.dims.clone(), ty });
        origins.push(origin);
    }

    let chat_template = checkpoint.chat_template();
    let files = TokenizerFiles {
        dir: checkpoint.dir().to_path_buf(),
        model: checkpoint.tokenizer_model(),
        json: checkpoint.tokenizer_json(),
        choice,
        tokenizer_config: checkpoint.tokenizer_config().map(Config::map),
        special_tokens_map: checkpoint.special_tokens_map().map(Config::map),
        added_tokens: checkpoint.added_tokens().map(Config::map),
        config: Some(checkpoint.config().map()),
        generation_config: checkpoint.generation_config().map(Config::map),
        chat_template: chat_template.as_deref(),
    };
    let (tokenizer, tokenizer_warnings) = vocab::metadata(&files, model.vocab)?;
    warnings.extend(tokenizer_warnings);
    let tokenizers = match choice {
        Some(_) => None,
        None => vocab::disagreement(&files, model.vocab, &tokenizer),
    };

    let name = checkpoint.name();
    let mut metadata = general_metadata(model.architecture, &name, model.n_parameters(), checkpoint.card());
    metadata.extend(model.metadata.iter().map(|(k, v)| (k.to_string(), v.clone())));
    metadata.extend(tokenizer.iter().map(|(k, v)| (k.to_string(), v.clone())));
    let (files, topology) = (Files::Checkpoint(Box::new(checkpoint)), model.topology);
    Ok(Source { files, metadata, tensors, origins, topology, name, warnings, tokenizers })
}

/// Describes a checkpoint as the GGUF file that it becomes. Reads no weights, unless the embedding and the output matrix
/// have to be compared.
pub(crate) fn describe(checkpoint: &Checkpoint, architectures: Architectures) -> Result<arch::Model, Error> {
    let shapes = checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
    let is_same = |first: &str, second: &str| match (checkpoint.tensor(first), checkpoint.tensor(second)) {
        (Some(first), Some(second)) => is_same(checkpoint, first, second),
        _ => Ok(false),
    };
    architectures.describe(checkpoint.config().map(), shapes, is_same).map_err(|source| match &source {
        // Codes have other shapes than the weights that they stand for, and say more of what is wrong.
        arch::Error::Shape { name, .. } => match checkpoint.tensor(name).map(Tensor::float_type) {
            Some(Err(error)) => error.into(),
            _ => Error::Arch { dir: checkpoint.dir().to_path_buf(), source },
        },
        _ => Error::Arch { dir: checkpoint.dir().to_path_buf(), source },
    })
}

/// Weights that are compared at once, so that memory does not grow with the tensors.
const COMPARED_WEIGHTS: usize = 1 << 18;

/// Returns whether two tensors of one shape hold the same numbers: as the 32-bit floats that a conversion computes with, for
/// their types may differ. The first difference ends it, so that only copies are read to their end.
fn is_same(checkpoint: &Checkpoint, first: &Tensor, second: &Tensor) -> io::Result<bool> {
    let [a, b] = [first, second].map(|tensor| checkpoint.location(tensor));
    if std::ptr::eq(a.0, b.0) && a.1 == b.1 {
        return Ok(true);
    }
    let (Ok(a_type), Ok(b_type)) = (first.float_type(), second.float_type()) else { return Ok(false) };
    let of = |(map, range): (&'_ Mapping, std::ops::Range<usize>), ty: TensorType, start: usize, n: usize| {
        let mut bytes = vec![0; n * ty.block_bytes()];
        map.read_at(&mut bytes, (range.start + start * ty.block_bytes()) as u64)?;
        Ok::<_, io::Error>(bytes)
    };
    let decoded = |ty: TensorType, bytes: &[u8], n: usize| {
        let mut weights = vec![0.0; n];
        quant::decoder(ty).expect("floats are types that nibble reads")(bytes, &mut weights);
        weights
    };
    let (a_type, b_type) = (TensorType::from(a_type), TensorType::from(b_type));
    let n_weights = first.n_elements() as usize;
    for start in (0..n_weights).step_by(COMPARED_WEIGHTS) {
        let n = COMPARED_WEIGHTS.min(n_weights - start);
        let (x, y) = (of(a.clone(), a_type, start, n)?, of(b.clone(), b_type, start, n)?);
        if (a_type == b_type && x == y) || decoded(a_type, &x, n) == decoded(b_type, &y, n) {
            continue;
        }
        return Ok(false);
    }
    Ok(true)
}

/// Finds the tensors of an input.
fn locate(input: &arch::Input, checkpoint: &Checkpoint) -> Result<Located, Error> {
    let place = |stored: &arch::Stored| {
        checkpoint
            .tensors()
            .binary_search_by(|t| t.name.as_str().cmp(stored.name()))
            .expect("a model names only tensors of its checkpoint, which are sorted")
    };
    let tensors: Vec<usize> = input.tensors.iter().map(place).collect();
    let ty = match (input.packing, tensors.first()) {
        (None, Some(&index)) => checkpoint.tensors()[index].float_type()?.into(),
        _ => TensorType::F32,
    };
    Ok(Located { input: input.clone(), tensors, ty })
}

fn of_gguf(gguf: Gguf, path: &Path, architectures: Architectures, allow_requantize: bool) -> Result<Source, Error> {
    let metadata = gguf.metadata().clone();
    if metadata.str("general.type") == Some("adapter") {
        return Err(Error::Adapter { path: path.to_path_buf() });
    }
    let architecture = metadata.str("general.architecture").unwrap_or_default();
    if architectures.by_gguf_name(architecture).is_none() {
        let (path, found, known) = (path.to_path_buf(), architecture.to_string(), architectures.known_in_gguf());
        return Err(Error::ForeignArchitecture { path, found, known });
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
    let topology = Topology::of_gguf(&metadata).map_err(|key| Error::MissingKey { path: path.to_path_buf(), key })?;
    let tensors = gguf.tensors().to_vec();
    let name = match metadata.str("general.name") {
        Some(name) => name.to_string(),
        None => gguf::stem(path),
    };
    let origins = (0..tensors.len()).map(From::Gguf).collect();
    let files = Files::Gguf(Box::new(gguf));
    Ok(Source { files, metadata, tensors, origins, topology, name, warnings: Vec::new(), tokenizers: None })
}

/// Returns the general metadata (what the model is, where it comes from, and its license) from the folder's name and
/// the model card.
pub(crate) fn general_metadata(architecture: &str, name: &str, n_weights: u64, card: &ModelCard) -> Metadata {
    let mut metadata = Metadata::new();
    // llama.cpp expects the architecture to be the first key.
    metadata.set("general.architecture", architecture);
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

/// Records the models that this one was made from, by their ids: `01-ai/Yi-34B`.
pub(crate) fn set_base_models(metadata: &mut Metadata, ids: &[String]) {
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
