//! Converts an adapter, as PEFT saves it, to a GGUF file that llama.cpp loads beside the base model.
//!
//! ```text
//! W x  becomes  W x + alpha / r * B (A x)            A [r, in], B [out, r]: r numbers stand between input and output
//!
//! adapter_model                                     GGUF
//! ...layers.0.self_attn.q_proj.lora_A.weight  ────► blk.0.attn_q.weight.lora_a
//! ...layers.0.self_attn.q_proj.lora_B.weight  ────► blk.0.attn_q.weight.lora_b     rows permuted like those of W
//! ...embed_tokens.lora_embedding_A            ────► token_embd.weight.lora_a       transposed: a row a token
//! adapter_config.json: lora_alpha             ────► adapter.lora.alpha
//! ```
//!
//! llama.cpp divides one alpha by each matrix's rank. If PEFT scales otherwise (rank-stabilized LoRA divides by the root of
//! the rank; patterns set the rank and alpha of single modules), the file gets the alpha that most modules need, and for
//! the others the remaining factor is multiplied into B.
//!
//! Source: `llama_adapter_lora_init_impl` and `llm_graph_context::build_lora_mm` in llama.cpp's `src/`.

mod base;
mod error;
mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub use base::{Base, Module};
pub use error::{Error, ModelOnly};
use peft::{Factor, Settings, TensorName};

use super::{name, output, provenance};
use crate::arch::{Prefix, RowOrder};
use crate::base::atomic_file::AtomicFile;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::convert;
use crate::gguf::{DEFAULT_ALIGNMENT, Layout, Metadata, TensorInfo, TensorType};
use crate::lanes::Level;
use crate::linear;
use crate::pass::{self, general_metadata, set_base_models};
use crate::quant;
use crate::recipe::QUANTIZATION_VERSION;

/// A tensor of the file to be.
#[derive(Debug)]
struct Planned {
    /// Its index among the adapter's tensors.
    source: usize,
    /// The order of the rows.
    order: RowOrder,
    /// Whether it is transposed.
    transpose: bool,
    /// The factor that its numbers are multiplied by.
    factor: f64,
}

/// The conversion of an adapter, planned and checked.
pub struct AdapterJob {
    adapter: Checkpoint,
    planned: Vec<Planned>,
    metadata: Metadata,
    layout: Layout,
    ty: TensorType,
    /// The lowest and the highest rank.
    ranks: (u64, u64),
    alpha: f32,
    output: PathBuf,
    warnings: Vec<String>,
    force: bool,
    allow_nan: bool,
}

impl AdapterJob {
    /// Opens the adapter at `path` and lays it out for the base model at `base`, or else for the one that the adapter
    /// names, if that is a local folder. Of `options`, the recipe is the one type of all tensors: F32, F16 or BF16. Reads no
    /// weights, and writes nothing.
    ///
    /// # Errors
    /// If anything is wrong with the adapter or the base model, or the adapter has anything that a LoRA file cannot
    /// hold.
    pub fn prepare(path: &Path, base: Option<&Path>, options: &convert::Options) -> Result<Self, convert::Error> {
        let ty = type_of(options)?;
        let adapter = Checkpoint::open_adapter(path).map_err(pass::Error::from)?;
        let settings = Settings::read(adapter.config()).map_err(convert::Error::from)?;
        let base = match (base, &settings.base) {
            (Some(path), _) => Base::open(path)?,
            (None, named) => {
                let local = named.as_deref().and_then(|base| peft::local_base(base, adapter.dir()));
                let id = named.as_deref().map(|id| format!(" ({id})")).unwrap_or_default();
                Base::open(&local.ok_or_else(|| Error::NoBase { dir: adapter.dir().to_path_buf(), id })?)?
            }
        };
        let mut warnings = adapter.warnings().to_vec();
        warnings.extend(settings.warnings.iter().cloned());
        let pairs = pairs(&adapter, &base, &mut warnings)?;

        let alpha = common_alpha(&pairs, &settings);
        let (mut planned, mut infos) = (Vec::new(), Vec::new());
        let mut ranks = (u64::MAX, 0);
        for (module, pair) in base.modules.iter().zip(&pairs) {
            let Some(pair) = pair else { continue };
            let rank = pair.check(&adapter, &base, module, settings.rank(&pair.module))?;
            ranks = (ranks.0.min(rank), ranks.1.max(rank));
            // The scale that llama.cpp does not apply: 1, except for modules with their own rank or alpha.
            let factor = settings.scale(&pair.module) * rank as f64 / f64::from(alpha);
            let factor = if (factor - 1.0).abs() < 1e-6 { 1.0 } else { factor };
            let info = |kind: &str, dims: [u64; 2]| TensorInfo {
                name: format!("{}.lora_{kind}", module.tensor),
                dims: dims.to_vec(),
                ty,
            };
            let a = if pair.embedding { [rank, module.rows] } else { [module.columns, rank] };
            let b = [rank, if pair.embedding { module.columns } else { module.rows }];
            infos.extend([info("a", a), info("b", b)]);
            let stored = RowOrder::AsStored;
            planned.push(Planned { source: pair.a, order: stored, transpose: pair.embedding, factor: 1.0 });
            let order = if pair.embedding { stored } else { module.order };
            planned.push(Planned { source: pair.b, order, transpose: false, factor });
        }

        let metadata = metadata(&adapter, base.architecture, &settings, options, alpha);
        let layout = Layout::new(&metadata, infos, DEFAULT_ALIGNMENT, None)?;
        let usual = || name::adapter_file_name(&adapter.name(), ty.name()).into();
        let output = options.output.clone().unwrap_or_else(usual);
        let (force, allow_nan) = (options.force, options.allow_nan);
        Ok(Self { adapter, planned, metadata, layout, ty, ranks, alpha, output, warnings, force, allow_nan })
    }

    /// The tensors of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.layout.tensors()
    }

    /// The lowest and the highest rank.
    pub fn ranks(&self) -> (u64, u64) {
        self.ranks
    }

    /// Returns the alpha that the file has for llama.cpp.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// The type of all tensors.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// The file that will be written, and its size in bytes.
    pub fn output(&self) -> (&Path, u64) {
        (&self.output, self.layout.total_bytes())
    }

    /// Returns warnings for the user, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Checks that the output may be written and that the disk has room for it.
    ///
    /// # Errors
    /// If a file of that name exists (unless it may be replaced), is part of the source, or does not fit.
    pub fn check_output(&self) -> Result<(), convert::Error> {
        let outputs = [(self.output.clone(), self.layout.total_bytes())];
        let real = self.output.canonicalize().ok();
        if real.is_some() && self.adapter.shards().any(|shard| shard.canonicalize().ok() == real) {
            return Err(convert::Error::OutputIsSource { path: self.output.clone() });
        }
        output::check_places(&outputs)?;
        if !self.force {
            output::check_names(&outputs)?;
        }
        output::check_room(&outputs)
    }

    /// Writes the file. It has a temporary name until it is complete, and is removed if that fails.
    ///
    /// # Errors
    /// If it cannot be written, if a number is not finite or not within the type's range (unless that is allowed), or
    /// if `cancel` is set.
    pub fn execute(&self, cancel: &AtomicBool) -> Result<(), convert::Error> {
        self.check_output()?;
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AlreadyExists => convert::Error::OutputExists { path: self.output.clone() },
            _ => convert::Error::Write { path: self.output.clone(), source },
        };
        let mut metadata = self.metadata.clone();
        let hashes: Vec<_> = self.adapter.mappings().map(|map| blake3::hash(map.bytes())).collect();
        provenance::record_hashes(&mut metadata, &hashes);
        // The hashes had their room from the start, so that every offset is as planned.
        let layout = Layout::new(&metadata, self.layout.tensors().to_vec(), DEFAULT_ALIGNMENT, None)?;
        let mut file = AtomicFile::create(&self.output).map_err(failed)?;
        let mut problem = None;
        let written = layout.write_part(0, &mut file, |i| {
            let data = match cancel.load(Ordering::Relaxed) {
                true => Err(convert::Error::Cancelled),
                // After a problem, nothing that is computed would be kept.
                false if problem.is_some() => Ok(Vec::new()),
                false => self.encode(i).map_err(convert::Error::from),
            };
            data.unwrap_or_else(|error| {
                problem.get_or_insert(error);
                Vec::new()
            })
        });
        match problem {
            Some(problem) => Err(problem),
            None => written.and_then(|()| file.finish(self.force)).map_err(failed),
        }
    }

    /// Returns the bytes of tensor `i` of the file.
    fn encode(&self, i: usize) -> Result<Vec<u8>, Error> {
        let (planned, info) = (&self.planned[i], &self.layout.tensors()[i]);
        let tensor = &self.adapter.tensors()[planned.source];
        let mut weights = decode(&self.adapter, tensor)?;
        let row_len = tensor.shape.last().map_or(1, |n| *n as usize).max(1);
        for weight in &mut weights {
            if planned.factor != 1.0 {
                *weight = (f64::from(*weight) * planned.factor) as f32;
            }
        }
        if !self.allow_nan {
            self.check_weights(&tensor.name, &weights, row_len)?;
        }
        if planned.transpose {
            weights = transposed(&weights, row_len);
        }
        let (row_len, n_rows) = (info.dims[0] as usize, info.dims[1]);
        let ordered = match planned.order {
            RowOrder::AsStored => weights,
            order => (0..n_rows)
                .flat_map(|row| {
                    let at = order.source_row(row, n_rows) as usize * row_len;
                    weights[at..at + row_len].iter().copied()
                })
                .collect(),
        };
        let format = quant::format(self.ty).expect("F32, F16 and BF16 are formats that nibble has");
        let mut bytes = vec![0; ordered.len() * format.ty.block_bytes()];
        format.quantize_rows(&ordered, row_len, None, &mut bytes);
        Ok(bytes)
    }

    fn check_weights(&self, tensor: &str, weights: &[f32], row_len: usize) -> Result<(), Error> {
        // From here on a number rounds to infinity.
        let limit = if self.ty == TensorType::F16 { 65520.0 } else { f32::INFINITY };
        let Some(at) = weights.iter().position(|w| !w.is_finite() || w.abs() >= limit) else { return Ok(()) };
        let (tensor, row, column, value) = (tensor.to_string(), at / row_len, at % row_len, weights[at]);
        Err(match value.is_finite() {
            true => Error::BeyondF16 { tensor, row, column, value },
            false => Error::NotFinite { tensor, row, column, value },
        })
    }
}

/// Returns the type that the recipe chooses for all tensors.
fn type_of(options: &convert::Options) -> Result<TensorType, Error> {
    if !options.overrides.is_empty() {
        return Err(Error::ModelOnly(ModelOnly::Overrides));
    }
    if options.split_max_bytes.is_some() {
        return Err(Error::ModelOnly(ModelOnly::Split));
    }
    match options.recipe.ty {
        ty @ (TensorType::F32 | TensorType::F16 | TensorType::BF16) if options.recipe.name == ty.name() => Ok(ty),
        _ => Err(Error::Recipe { found: options.recipe.name.clone() }),
    }
}

/// The two factors of a module, by their index among the adapter's tensors.
struct Pair {
    /// PEFT's name for the module.
    module: String,
    embedding: bool,
    a: usize,
    b: usize,
}

impl Pair {
    /// Checks the shapes against the base model and the configured rank, and returns the rank.
    fn check(&self, adapter: &Checkpoint, base: &Base, module: &Module, rank: u64) -> Result<u64, Error> {
        let [a, b] = [self.a, self.b].map(|index| &adapter.tensors()[index]);
        let (a_wanted, b_wanted) = match self.embedding {
            false => ([rank, module.columns], [module.rows, rank]),
            // The other way round: an embedding maps a token to a hidden state.
            true => ([rank, module.rows], [module.columns, rank]),
        };
        for (tensor, wanted, at) in [(a, a_wanted, 0), (b, b_wanted, 1)] {
            if let &[rows, columns] = tensor.shape.as_slice() {
                let (found, other) = if at == 0 { (rows, columns == wanted[1]) } else { (columns, rows == wanted[0]) };
                if other && found != rank {
                    return Err(Error::Rank { tensor: tensor.name.clone(), found, wanted: rank });
                }
            }
            if tensor.shape != wanted {
                let (tensor, found, base) = (tensor.name.clone(), tensor.shape.clone(), base.name.clone());
                return Err(Error::Shape { tensor, found, wanted, base, rank });
            }
        }
        Ok(rank)
    }
}

/// Returns the pair of each of the base's modules; `None` for those that the adapter does not change.
fn pairs(adapter: &Checkpoint, base: &Base, warnings: &mut Vec<String>) -> Result<Vec<Option<Pair>>, Error> {
    let mut by_name = BTreeMap::new();
    for (i, module) in base.modules.iter().enumerate() {
        by_name.extend(module.names.iter().map(|name| (name.as_str(), i)));
    }
    let names = adapter.tensors().iter().filter_map(|tensor| match peft::part(&tensor.name) {
        TensorName::Factor { module, .. } | TensorName::Base { module } => Some(module),
        TensorName::Foreign(_) => None,
    });
    let names: Vec<_> = names.collect();
    let prefix = Prefix::of(names.iter().map(String::as_str), |name| by_name.contains_key(name));
    warnings.extend(prefix.as_ref().map(Prefix::warning));
    let strip = |module: &str| prefix.as_ref().map_or_else(|| module.to_string(), |p| p.strip(module).into_owned());
    // By the base's module: PEFT's name for it, whether it is an embedding's, and both factors.
    let mut found: BTreeMap<usize, (String, bool, [Option<usize>; 2])> = BTreeMap::new();
    let mut first: Option<(&str, Option<String>)> = None;
    for (index, tensor) in adapter.tensors().iter().enumerate() {
        let (module, factor, embedding) = match peft::part(&tensor.name) {
            TensorName::Factor { module, factor, embedding, adapter: name } => {
                let (first, other) = first.get_or_insert((&tensor.name, name.clone()));
                if *other != name {
                    return Err(Error::Several { first: first.to_string(), second: tensor.name.clone() });
                }
                (module, factor, embedding)
            }
            TensorName::Base { module } if is_copy(base, &by_name, &strip(&module), tensor) => {
                warnings.push(format!("{}: the base model has this already; it is left out", tensor.name));
                continue;
            }
            TensorName::Base { .. } => {
                let what = "is a whole matrix of other sizes than the base model's, as for a larger vocabulary";
                return Err(Error::Foreign { tensor: tensor.name.clone(), what });
            }
            TensorName::Foreign(what) => return Err(Error::Foreign { tensor: tensor.name.clone(), what }),
        };
        let stripped = strip(&module);
        let Some(&at) = by_name.get(stripped.as_str()) else {
            let (tensor, hint) = (tensor.name.clone(), hint(base, &stripped));
            return Err(Error::UnknownModule { tensor, base: base.name.clone(), hint });
        };
        check_kind(base, &base.modules[at], tensor, embedding)?;
        let (_, _, factors) = found.entry(at).or_insert((module, embedding, [None; 2]));
        let slot = &mut factors[if factor == Factor::A { 0 } else { 1 }];
        if let Some(first) = slot.replace(index) {
            let name = |index: usize| adapter.tensors()[index].name.clone();
            return Err(Error::Several { first: name(first), second: name(index) });
        }
    }
    if found.is_empty() {
        return Err(Error::Empty { path: adapter.dir().to_path_buf() });
    }
    let pair = |at: usize| {
        let Some((module, embedding, factors)) = found.remove(&at) else { return Ok(None) };
        let alone = |index: usize, factor: Factor| {
            let tensor = adapter.tensors()[index].name.clone();
            let partner = peft::partner(&tensor, factor);
            Err(Error::NoPartner { tensor, partner })
        };
        match factors {
            [Some(a), Some(b)] => Ok(Some(Pair { module, embedding, a, b })),
            [Some(a), None] => alone(a, Factor::A),
            [None, Some(b)] => alone(b, Factor::B),
            [None, None] => Ok(None),
        }
    };
    (0..base.modules.len()).map(pair).collect()
}

/// Returns whether a whole matrix in the adapter has the sizes of the base model's. PEFT saves embeddings if it is not sure
/// that the vocabulary is the base's.
fn is_copy(base: &Base, by_name: &BTreeMap<&str, usize>, module: &str, tensor: &Tensor) -> bool {
    let module = by_name.get(module).map(|i| &base.modules[*i]);
    module.is_some_and(|module| tensor.shape == [module.rows, module.columns])
}

/// Checks that a tensor is for the right kind of module. An embedding is adapted by the rows of A, a matrix by its columns;
/// and llama.cpp ends the process over an adapted embedding that is also the output matrix.
fn check_kind(base: &Base, module: &Module, tensor: &Tensor, embedding: bool) -> Result<(), Error> {
    let is_embedding = module.tensor == "token_embd.weight";
    let foreign = |what| Err(Error::Foreign { tensor: tensor.name.clone(), what });
    match (is_embedding, embedding) {
        (true, true) if base.tied => {
            foreign("is for an embedding that serves as the output matrix too, which llama.cpp cannot adapt")
        }
        (true, false) => foreign("is for an embedding, but named as if for a matrix"),
        (false, true) => foreign("is for a matrix, but named as if for an embedding"),
        _ => Ok(()),
    }
}

/// Returns a hint why the base does not have a module.
fn hint(base: &Base, module: &str) -> String {
    let layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
    match layer {
        Some(layer) if layer >= base.n_layers.into() => {
            format!("; it has {} layers, numbered from 0: was the adapter trained on another model?", base.n_layers)
        }
        _ if module == "lm_head" && base.tied => "; its embedding is its output matrix".to_string(),
        _ => "; was the adapter trained on another model?".to_string(),
    }
}

/// Returns the alpha that most modules need; of several, the one without patterns.
fn common_alpha(pairs: &[Option<Pair>], settings: &Settings) -> f32 {
    let usual = settings.alpha() as f32;
    let mut counts: Vec<(f32, usize)> = vec![(usual, 0)];
    for pair in pairs.iter().flatten() {
        let needed = (settings.scale(&pair.module) * settings.rank(&pair.module) as f64) as f32;
        match counts.iter_mut().find(|(alpha, _)| *alpha == needed) {
            Some((_, count)) => *count += 1,
            None => counts.push((needed, 1)),
        }
    }
    // A module of alpha 0 is scaled to 0 by itself: as the file's alpha, 0 means something else.
    counts.retain(|(alpha, _)| *alpha != 0.0 && alpha.is_finite());
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    counts.iter().find(|(_, count)| *count == most).map_or(usual, |(alpha, _)| *alpha)
}

fn metadata(
    adapter: &Checkpoint,
    architecture: &str,
    settings: &Settings,
    options: &convert::Options,
    alpha: f32,
) -> Metadata {
    let n_weights = adapter.tensors().iter().map(Tensor::n_elements).fold(0, u64::saturating_add);
    let mut metadata = general_metadata(architecture, &adapter.name(), n_weights, adapter.card());
    metadata.set("general.type", "adapter");
    if let Some(base) = settings.base.as_ref().filter(|_| adapter.card().base_model.is_empty()) {
        // An id on Hugging Face, or a folder of the machine that it was trained on, whose name has to do.
        let is_id = base.split('/').count() == 2 && !base.starts_with(['.', '/', '~']);
        let name = base.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(base);
        set_base_models(&mut metadata, &[if is_id { base.clone() } else { name.to_string() }]);
    }
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    metadata.set("general.file_type", options.recipe.file_type);
    metadata.set("adapter.type", "lora");
    metadata.set("adapter.lora.alpha", alpha);
    let file_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    provenance::record(&mut metadata, options, &adapter.name(), adapter.shards().map(file_name).collect());
    metadata
}

/// Decodes the numbers of a tensor, row by row.
fn decode(adapter: &Checkpoint, tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let decode = quant::decoder(tensor.float_type()?.into()).expect("floats are types that nibble reads");
    let mut weights = vec![0.0; tensor.n_elements() as usize];
    decode(adapter.data(tensor), &mut weights);
    Ok(weights)
}

/// Transposes a matrix of rows of `row_len`.
fn transposed(weights: &[f32], row_len: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; weights.len()];
    let rows = weights.len() / row_len.max(1);
    linear::transpose(Level::best(), (weights, row_len), (rows, row_len), (&mut transposed, rows));
    transposed
}
