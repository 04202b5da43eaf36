//! Hugging Face folders: tensors over several files, configuration, tokenizer files, model card.
//!
//! ```text
//! config.json                          what the model is
//! generation_config.json               end tokens, sampling defaults          (optional, as all below)
//! tokenizer.model, tokenizer.json      the vocabulary, for `vocab` to read
//! tokenizer_config.json, special_tokens_map.json, added_tokens.json
//! chat_template.jinja                  or in tokenizer_config.json, or in chat_template.json
//! README.md                            the model card, in YAML at its head
//! model.safetensors                    or model-00001-of-00015.safetensors ... and model.safetensors.index.json
//! pytorch_model.bin                    or pytorch_model-00001-of-00007.bin ... and pytorch_model.bin.index.json
//! ```
//!
//! A folder with an adapter, as the PEFT library saves it, has adapter_config.json in the place of config.json, and its
//! weights in adapter_model.safetensors or adapter_model.bin: [`Checkpoint::open_adapter`].
//!
//! Opening a folder maps its weights and reads their headers; no tensor's bytes are touched. All ranges are checked
//! against their files, so that [`Checkpoint::data`] cannot fail. Of several forms of the same weights the one that
//! `transformers` prefers is taken: one safetensors file, safetensors shards, one PyTorch file, PyTorch shards.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use crate::base::mmap::Mapping;

mod card;
mod dtype;
mod error;
mod json;
mod packed;
mod pickle;
mod pytorch;
pub mod safetensors;
#[doc(hidden)]
pub mod testing;

pub use card::ModelCard;
pub use dtype::{DType, DTypeName, FloatType};
pub use error::Error;
pub use json::Config;
pub use packed::{PackedRows, Packing};

use error::shown;

/// The largest chat template or model card that is read, in bytes.
const MAX_TEXT: u64 = 8 << 20;

/// A tensor of a checkpoint. Its bytes come from [`Checkpoint::data`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Sizes, slowest dimension first: a matrix of `rows` rows of `cols` weights has `[rows, cols]`; a scalar has none.
    pub shape: Vec<u64>,
    shard: usize,
    range: Range<usize>,
}

impl Tensor {
    /// Number of elements; 1 for a scalar.
    pub fn n_elements(&self) -> u64 {
        // Files whose shapes overflow are refused, except for types of unknown size, for which the number is not used.
        dtype::n_elements(&self.shape).unwrap_or(u64::MAX)
    }

    /// Bytes of its data.
    pub fn n_bytes(&self) -> u64 {
        self.range.len() as u64
    }

    /// The float type its values can be read as.
    ///
    /// # Errors
    /// [`Error::Dtype`], with the tensor's name, if the values are integers or floats of less than 16 bits.
    pub fn float_type(&self) -> Result<FloatType, Error> {
        self.dtype.float().ok_or_else(|| Error::Dtype {
            tensor: shown(&self.name),
            dtype: self.dtype.to_string(),
            hint: match self.dtype {
                DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 => {
                    "; weights in integers are quantized already: get the model's 16-bit original"
                }
                DType::Other(name) if name.as_str().starts_with('F') => "; get the model's 16-bit release",
                _ => "",
            },
        })
    }
}

/// An open model folder.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    name: String,
    shards: Vec<Mapping>,
    tensors: Vec<Tensor>,
    config: Config,
    generation_config: Option<Config>,
    tokenizer_config: Option<Config>,
    special_tokens_map: Option<Config>,
    added_tokens: Option<Config>,
    chat_template: Option<String>,
    card: ModelCard,
    warnings: Vec<String>,
}

impl Checkpoint {
    /// Opens the model at `path`: a folder, or one file of weights in it. From a file, the weights are read from that file
    /// and its shards only, whatever else the folder holds. A folder of Hugging Face's cache
    /// (`models--01-ai--Yi-34B`) stands for the snapshot it has of the main branch.
    ///
    /// # Errors
    /// If the folder does not hold a complete model, or a file is broken. The message says which one and what to do.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let is_file = std::fs::metadata(path).map_err(Error::io(path))?.is_file();
        let dir = if is_file { parent(path).to_path_buf() } else { snapshot(path) };
        let files = list(&dir)?;
        let mut warnings = Vec::new();
        let weights = if is_file { weights_of_file(path, &files)? } else { find_weights(&dir, &files, &mut warnings)? };
        // Before the weights: without it nothing can be done with them, and it costs less to find out.
        let read = |name: &str| Config::read(&dir.join(name));
        let config = read("config.json")?.ok_or_else(|| Error::NoConfig { dir: dir.clone() })?;
        let tokenizer_config = read("tokenizer_config.json")?;
        let chat_template = read_chat_template(&dir, tokenizer_config.as_ref())?;
        for name in ["tokenizer.model", "tokenizer.json"] {
            refuse_pointer_file(&dir.join(name))?;
        }
        let card = read_card(&dir, &mut warnings);
        let loaded = load(&dir, weights, &mut warnings)?;
        Ok(Self {
            generation_config: read("generation_config.json")?,
            tokenizer_config,
            special_tokens_map: read("special_tokens_map.json")?,
            added_tokens: read("added_tokens.json")?,
            chat_template,
            ..Self::of_weights(dir, config, loaded, card, warnings)
        })
    }

    /// Opens the adapter at `path`, a folder as PEFT saves it, or a file of one. It has the adapter's configuration,
    /// `adapter_config.json`, as its [`Self::config`], and the adapter's tensors alone, whatever else the folder holds.
    ///
    /// # Errors
    /// If the folder does not hold a complete adapter, or one of its files is broken.
    pub fn open_adapter(path: &Path) -> Result<Self, Error> {
        let is_file = std::fs::metadata(path).map_err(Error::io(path))?.is_file();
        let dir = if is_file { parent(path).to_path_buf() } else { snapshot(path) };
        let mut warnings = Vec::new();
        let config =
            Config::read(&dir.join(ADAPTER_CONFIG))?.ok_or_else(|| Error::NotFound(dir.join(ADAPTER_CONFIG)))?;
        let weights = find_stems(&dir, &list(&dir)?, ADAPTER_STEMS, &mut warnings)?;
        let weights = weights.ok_or_else(|| Error::NoAdapterWeights { dir: dir.clone() })?;
        let card = read_card(&dir, &mut warnings);
        let loaded = load(&dir, weights, &mut warnings)?;
        Ok(Self::of_weights(dir, config, loaded, card, warnings))
    }

    /// Weights and their configuration, and nothing that says how text is put to them.
    fn of_weights(
        dir: PathBuf,
        config: Config,
        (shards, tensors): (Vec<Mapping>, Vec<Tensor>),
        card: ModelCard,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            name: presentable_name(&dir),
            shards,
            tensors,
            config,
            generation_config: None,
            tokenizer_config: None,
            special_tokens_map: None,
            added_tokens: None,
            chat_template: None,
            card,
            warnings,
            dir,
        }
    }

    /// Returns whether `path` is an adapter: a folder with `adapter_config.json` and no whole model beside it, or an
    /// adapter's file.
    pub fn is_adapter(path: &Path) -> bool {
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let begins = ADAPTER_STEMS.iter().any(|(stem, _)| name.starts_with(stem));
            return (begins || name == ADAPTER_CONFIG) && parent(path).join(ADAPTER_CONFIG).is_file();
        }
        let dir = snapshot(path);
        let Ok(files) = list(&dir) else { return false };
        let is_model = matches!(find_stems(&dir, &files, MODEL_STEMS, &mut Vec::new()), Ok(Some(_)) | Err(_));
        files.contains(ADAPTER_CONFIG) && !(is_model && files.contains("config.json"))
    }

    /// Returns the folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the model's name, which is the folder's: `Yi-34B`, also for a snapshot in Hugging Face's cache.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Returns all tensors, sorted by name, however they are spread over files.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Returns the tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// Returns the bytes of `tensor`: row-major, little-endian, exactly as many as its shape and type need. Two tensors may
    /// share them, if a PyTorch file saved one storage under two names.
    ///
    /// # Panics
    /// May panic for a tensor of another checkpoint.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        let (map, range) = self.location(tensor);
        &map.bytes()[range]
    }

    /// Returns where the bytes of `tensor` lie, for [`Mapping::will_read`] and [`Mapping::release`].
    ///
    /// # Panics
    /// May panic for a tensor of another checkpoint.
    pub fn location(&self, tensor: &Tensor) -> (&Mapping, Range<usize>) {
        (&self.shards[tensor.shard], tensor.range.clone())
    }

    /// Returns the files that hold the tensors, in the order of their names.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(Mapping::path)
    }

    /// Returns the same files, mapped.
    pub fn mappings(&self) -> impl ExactSizeIterator<Item = &Mapping> {
        self.shards.iter()
    }

    /// `config.json`
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `generation_config.json`
    pub fn generation_config(&self) -> Option<&Config> {
        self.generation_config.as_ref()
    }

    /// `tokenizer_config.json`
    pub fn tokenizer_config(&self) -> Option<&Config> {
        self.tokenizer_config.as_ref()
    }

    /// `special_tokens_map.json`
    pub fn special_tokens_map(&self) -> Option<&Config> {
        self.special_tokens_map.as_ref()
    }

    /// `added_tokens.json`: tokens and their ids.
    pub fn added_tokens(&self) -> Option<&Config> {
        self.added_tokens.as_ref()
    }

    /// The model's chat template, as Jinja: from `chat_template.jinja`, else `tokenizer_config.json` (of several named
    /// ones that named `default`), else `chat_template.json`.
    pub fn chat_template(&self) -> Option<String> {
        self.chat_template.clone()
    }

    /// Returns the path of `tokenizer.model`, sentencepiece's vocabulary, if it exists.
    pub fn tokenizer_model(&self) -> Option<PathBuf> {
        self.file("tokenizer.model")
    }

    /// Returns the path of `tokenizer.json`, the tokenizers library's vocabulary, if it exists.
    pub fn tokenizer_json(&self) -> Option<PathBuf> {
        self.file("tokenizer.json")
    }

    /// Returns the path of the file of this name, if it exists.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let path = self.dir.join(name);
        path.is_file().then_some(path)
    }

    /// Returns the model card; empty if the folder has none.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Returns what is odd about the folder but does not prevent its use, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Names of a model's files of weights: `model.safetensors`, `model-00001-of-00015.safetensors`, ...
const MODEL_STEMS: [(&str, &str); 2] = [("model", "safetensors"), ("pytorch_model", "bin")];

/// Names of an adapter's files of weights.
const ADAPTER_STEMS: [(&str, &str); 2] = [("adapter_model", "safetensors"), ("adapter_model", "bin")];

/// The file that describes an adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Where to read weights from.
enum Weights {
    /// The shards that this index names.
    Index(String),
    /// These files of the folder, and nothing else.
    Files(Vec<String>),
}

/// A shard's name taken apart: `model-00002-of-00015.safetensors`.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct ShardName<'a> {
    stem: &'a str,
    number: usize,
    total: usize,
    extension: &'a str,
}

impl<'a> ShardName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (rest, extension) = name.rsplit_once('.')?;
        let (rest, total) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(number) || !digits(total) {
            return None;
        }
        Some(Self { stem, number: number.parse().ok()?, total: total.parse().ok()?, extension })
    }

    /// Returns the names of all shards of its set.
    fn set(self) -> Vec<String> {
        let Self { stem, total, extension, .. } = self;
        (1..=total).map(|number| format!("{stem}-{number:05}-of-{total:05}.{extension}")).collect()
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the folder itself, or the snapshot of the main branch if it is a repository in Hugging Face's cache.
pub(crate) fn snapshot(dir: &Path) -> PathBuf {
    let main = dir.join("refs").join("main");
    let Ok(Some(revision)) = json::read_bytes(&main, 1024) else { return dir.to_path_buf() };
    let revision = String::from_utf8_lossy(&revision).trim().to_string();
    let snapshot = dir.join("snapshots").join(&revision);
    // A revision is a hash; anything else could lead out of the folder.
    let is_hash = !revision.is_empty() && revision.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash && snapshot.is_dir() { snapshot } else { dir.to_path_buf() }
}

/// Returns the names of the files in `dir`, sorted; symbolic links count as what they point to.
fn list(dir: &Path) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    let mut empty = true;
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        empty = false;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            names.insert(name);
        }
    }
    if empty { Err(Error::EmptyFolder(dir.to_path_buf())) } else { Ok(names) }
}

/// Returns the weights that a path to a file stands for.
fn weights_of_file(path: &Path, files: &BTreeSet<String>) -> Result<Weights, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.ends_with(".gguf") {
        return Err(Error::Gguf { path: path.to_path_buf() });
    }
    if name.ends_with(".index.json") {
        return Ok(Weights::Index(name));
    }
    if !(name.ends_with(".safetensors") || is_pytorch(&name)) {
        let problem = "not a file of weights; give a folder, or a .safetensors or .bin file";
        return Err(Error::unreadable(path, problem));
    }
    match ShardName::parse(&name) {
        // One shard is not a model: it stands for its set, which must be complete.
        Some(shard) => whole_set(parent(path), shard, files),
        None => Ok(Weights::Files(vec![name])),
    }
}

fn is_pytorch(name: &str) -> bool {
    [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))
}

/// Returns the weights of a folder that have one of these stems and extensions, the first that exists.
fn find_stems(
    dir: &Path,
    files: &BTreeSet<String>,
    stems: [(&str, &str); 2],
    warnings: &mut Vec<String>,
) -> Result<Option<Weights>, Error> {
    let mut missing = None;
    for (stem, extension) in stems {
        let single = format!("{stem}.{extension}");
        let index = format!("{stem}.{extension}.index.json");
        let shards =
            |name: &&String| ShardName::parse(name).is_some_and(|s| s.stem == stem && s.extension == extension);
        let shard = files.iter().find(shards);
        if files.contains(&single) {
            if let Some(shard) = shard {
                warnings.push(format!("{}: holds {single} and {shard}; the shards are left out", dir.display()));
            }
            return Ok(Some(Weights::Files(vec![single])));
        }
        match (files.contains(&index), shard.and_then(|name| ShardName::parse(name))) {
            (true, Some(_)) => return Ok(Some(Weights::Index(index))),
            // There may be shards with other names, or none: perhaps only the other form was downloaded.
            (true, None) => _ = missing.get_or_insert(Weights::Index(index)),
            (false, Some(shard)) => {
                let other = |name: &&String| {
                    ShardName::parse(name)
                        .is_some_and(|s| (s.stem, s.extension) == (stem, extension) && s.total != shard.total)
                };
                if let Some(other) = files.iter().find(other) {
                    let (dir, first) = (dir.display(), &shard.set()[0]);
                    warnings.push(format!(
                        "{dir}: holds two sets of shards, and no index says which counts; that of {first} is read, and \
                         {other} and those that belong to it are left out"
                    ));
                }
                return whole_set(dir, shard, files).map(Some);
            }
            (false, None) => {}
        }
    }
    Ok(missing)
}

/// Returns the weights of a folder.
fn find_weights(dir: &Path, files: &BTreeSet<String>, warnings: &mut Vec<String>) -> Result<Weights, Error> {
    if let Some(weights) = find_stems(dir, files, MODEL_STEMS, warnings)? {
        return Ok(weights);
    }
    // Names that are not Hugging Face's, such as Mistral's consolidated.safetensors.
    let others: Vec<_> =
        files.iter().filter(|f| f.ends_with(".safetensors") && !f.starts_with("adapter_")).cloned().collect();
    if let Some(shard) = others.iter().find_map(|name| ShardName::parse(name)) {
        return whole_set(dir, shard, files);
    }
    if !others.is_empty() {
        return Ok(Weights::Files(others));
    }
    Err(no_weights(dir, files))
}

fn no_weights(dir: &Path, files: &BTreeSet<String>) -> Error {
    let ending = |ends: &[&str]| files.iter().find(|f| ends.iter().any(|end| f.ends_with(end)));
    if files.contains(ADAPTER_CONFIG) {
        let config = Config::read(&dir.join(ADAPTER_CONFIG)).ok().flatten();
        let base = config.as_ref().and_then(|c| c.opt_str("base_model_name_or_path").ok().flatten());
        let base = base.map_or(String::new(), |base| format!(" ({})", shown(base)));
        return Error::OnlyAdapter { dir: dir.to_path_buf(), base };
    }
    let hint = if files.contains("zero_to_fp32.py") {
        "; this is a checkpoint of DeepSpeed's: run the script zero_to_fp32.py in it, which makes a whole model"
            .to_string()
    } else if let Some(gguf) = ending(&[".gguf"]) {
        format!("; there is {}, a GGUF file: give nibble that file", shown(gguf))
    } else if let Some(part) = ending(&[".part", ".incomplete", ".crdownload", ".aria2", ".download"]) {
        format!("; there is {}, of a download that has not ended", shown(part))
    } else if let Some(other) = ending(&[".npz", ".h5", ".msgpack", ".distcp", ".nemo", ".ckpt", ".onnx"]) {
        format!("; there is {}, which is not read: save the model once more with save_pretrained()", shown(other))
    } else if let Some(inner) = folder_with_weights(dir) {
        format!("; there are some in its folder {}", shown(&inner))
    } else {
        String::new()
    };
    Error::NoWeights { dir: dir.to_path_buf(), hint }
}

/// Returns the folder in `dir` that holds a model: the last by name, as the checkpoints of a training are numbered.
fn folder_with_weights(dir: &Path) -> Option<String> {
    let is_model = |path: &Path| {
        let files = list(path).ok()?;
        let weights = find_stems(path, &files, MODEL_STEMS, &mut Vec::new());
        Some(files.contains("config.json") && matches!(weights, Ok(Some(_))))
    };
    let entries = std::fs::read_dir(dir).ok()?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    let models = folders.filter(|path| is_model(path) == Some(true));
    // Numbers of more digits come later.
    let names = models.filter_map(|path| Some(path.file_name()?.to_str()?.to_string()));
    names.max_by_key(|name| (name.len(), name.clone()))
}

/// Returns the set that `shard` belongs to, which must be complete.
fn whole_set(dir: &Path, shard: ShardName, files: &BTreeSet<String>) -> Result<Weights, Error> {
    let names = shard.set();
    require_all(dir, &names, "the names of the other shards", |name| files.contains(name))?;
    Ok(Weights::Files(names))
}

fn require_all(dir: &Path, names: &[String], by: &str, exists: impl Fn(&String) -> bool) -> Result<(), Error> {
    let missing: Vec<_> = names.iter().filter(|name| !exists(name)).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    Err(Error::MissingShard {
        shard: dir.join(first),
        by: by.to_string(),
        n_missing: missing.len(),
        n_shards: names.len(),
    })
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: json::Unique<String>,
}

/// Reads an index: the tensors, and the shards that hold them.
fn read_index(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let index: Index = json::read(path)?.ok_or_else(|| Error::NotFound(path.to_path_buf()))?;
    for (_, shard) in &index.weight_map.0 {
        let mut components = Path::new(shard).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            let problem = format!("wanted the name of a file in the same folder, found {}", shown(shard));
            return Err(Error::key(path, "weight_map", problem));
        }
    }
    Ok(index.weight_map.0)
}

/// Maps the files and reads their headers.
fn load(dir: &Path, weights: Weights, warnings: &mut Vec<String>) -> Result<(Vec<Mapping>, Vec<Tensor>), Error> {
    let (index, names) = match weights {
        Weights::Files(names) => (None, names),
        Weights::Index(name) => {
            let entries = read_index(&dir.join(&name))?;
            let names: BTreeSet<_> = entries.iter().map(|(_, shard)| shard.clone()).collect();
            let names: Vec<_> = names.into_iter().collect();
            require_all(dir, &names, &name, |shard| dir.join(shard).is_file())?;
            (Some((dir.join(name), entries)), names)
        }
    };

    let mut shards = Vec::with_capacity(names.len());
    let mut tensors = Vec::new();
    for name in &names {
        let path = dir.join(name);
        let map = Mapping::open(&path).map_err(Error::io(&path))?;
        let entries = if is_pytorch(name) {
            let contents = pytorch::read_contents(&path, map.bytes())?;
            for other in contents.others {
                warnings.push(format!("{}: {} is not a tensor; it is left out", path.display(), shown(&other)));
            }
            contents.tensors
        } else {
            safetensors::read_header(&path, map.bytes())?
        };
        let shard = shards.len();
        tensors.extend(entries.into_iter().map(|e| Tensor {
            name: e.name,
            dtype: e.dtype,
            shape: e.shape,
            shard,
            range: e.range,
        }));
        shards.push(map);
    }
    tensors.sort_by(|a, b| (&a.name, a.shard).cmp(&(&b.name, b.shard)));
    if let Some((path, entries)) = index {
        follow_index(&path, &entries, &names, &mut tensors, warnings)?;
    }
    if let Some([a, b]) =
        tensors.windows(2).filter_map(|pair| <&[Tensor; 2]>::try_from(pair).ok()).find(|[a, b]| a.name == b.name)
    {
        let (tensor, [first, second]) = (shown(&a.name), [a, b].map(|t| shards[t.shard].path().to_path_buf()));
        return Err(match ShardName::parse(&names[a.shard]) {
            // All files of a set are needed.
            Some(ShardName { stem, extension, .. }) => {
                let index = dir.join(format!("{stem}.{extension}.index.json"));
                Error::DuplicateInSet { tensor, first, second, index }
            }
            None => Error::Duplicate { tensor, first, second },
        });
    }
    Ok((shards, tensors))
}

/// Checks the tensors against the index. Every tensor that it names must exist; tensors that it does not name are not part
/// of the model, as for `transformers`. A tensor that several shards hold is that of the shard which the index names.
fn follow_index(
    path: &Path,
    entries: &[(String, String)],
    shard_names: &[String],
    tensors: &mut Vec<Tensor>,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let found: HashSet<(&str, &str)> =
        tensors.iter().map(|t| (t.name.as_str(), shard_names[t.shard].as_str())).collect();
    if let Some((tensor, shard)) = entries.iter().find(|(t, s)| !found.contains(&(t.as_str(), s.as_str()))) {
        return Err(Error::NotInShard { index: path.to_path_buf(), tensor: shown(tensor), shard: shown(shard) });
    }
    let named: HashMap<&str, &str> = entries.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str())).collect();
    let shard = |t: &Tensor| shard_names[t.shard].as_str();
    let file = path.display();
    let unnamed: Vec<_> = tensors.iter().filter(|t| !named.contains_key(t.name.as_str())).collect();
    if let Some(first) = unnamed.first() {
        let (n, name, shard) = (unnamed.len(), shown(&first.name), shard(first));
        warnings.push(format!(
            "{file}: {n} tensors in the shards are not in it, such as {name} in {shard}; they are left out"
        ));
    }
    let is_elsewhere = |t: &&Tensor| named.get(t.name.as_str()).is_some_and(|named| *named != shard(t));
    let elsewhere: Vec<_> = tensors.iter().filter(is_elsewhere).collect();
    if let Some(first) = elsewhere.first() {
        let (n, name, shard) = (elsewhere.len(), shown(&first.name), shard(first));
        let wanted = named.get(first.name.as_str()).copied().unwrap_or_default();
        let tensors = if n == 1 { "a tensor is".to_string() } else { format!("{n} tensors are") };
        warnings.push(format!(
            "{file}: {tensors} in another shard too, such as {name} in {shard}; those count that it names, here in {wanted}"
        ));
    }
    tensors.retain(|t| named.get(t.name.as_str()).is_some_and(|named| *named == shard_names[t.shard]));
    Ok(())
}

fn read_chat_template(dir: &Path, tokenizer_config: Option<&Config>) -> Result<Option<String>, Error> {
    let path = dir.join("chat_template.jinja");
    if let Some(bytes) = json::read_bytes(&path, MAX_TEXT)? {
        let text = String::from_utf8(bytes)
            .map_err(|e| Error::unreadable(&path, format!("not UTF-8 from byte {}", e.utf8_error().valid_up_to())))?;
        return Ok(Some(text));
    }
    if let Some(template) = tokenizer_config.and_then(template_of) {
        return Ok(Some(template));
    }
    Ok(Config::read(&dir.join("chat_template.json"))?.as_ref().and_then(template_of))
}

/// Reads the key `chat_template`: a template, or a list of named ones.
fn template_of(config: &Config) -> Option<String> {
    use serde_json::Value;
    match config.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            let only = named.first().filter(|_| named.len() == 1);
            Some(default.or(only)?.get("template")?.as_str()?.to_string())
        }
        _ => None,
    }
}

/// Refuses a Git LFS pointer in the place of the file at `path`, which another room will read.
fn refuse_pointer_file(path: &Path) -> Result<(), Error> {
    use std::io::Read;
    let Ok(file) = std::fs::File::open(path) else { return Ok(()) };
    let mut start = Vec::new();
    file.take(1024).read_to_end(&mut start).map_err(Error::io(path))?;
    json::refuse_pointer(path, &start)
}

/// Reads the model card. Conversion does not need it, so that any problem with it is only a warning.
fn read_card(dir: &Path, warnings: &mut Vec<String>) -> ModelCard {
    let path = dir.join("README.md");
    let card = match json::read_bytes(&path, MAX_TEXT) {
        Ok(None) => return ModelCard::default(),
        Ok(Some(bytes)) => card::parse(&String::from_utf8_lossy(&bytes)),
        Err(e) => {
            warnings.push(e.to_string());
            return ModelCard::default();
        }
    };
    match card {
        Ok(card) => card.unwrap_or_default(),
        Err(problem) => {
            warnings.push(format!("{}: its model card is left out: not valid YAML: {problem}", path.display()));
            ModelCard::default()
        }
    }
}

/// Returns the folder's name, or the model's if the folder is a snapshot in Hugging Face's cache.
fn presentable_name(dir: &Path) -> String {
    // Resolves `.` and `..`; a path that cannot be resolved is shown as it was given.
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let names: Vec<_> = dir.components().rev().take(3).map(|c| c.as_os_str().to_string_lossy()).collect();
    if let [_, snapshots, repository] = names.as_slice()
        && snapshots == "snapshots"
        && let Some(model) = repository.strip_prefix("models--")
    {
        return model.rsplit("--").next().unwrap_or(model).to_string();
    }
    match dir.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => "model".to_string(),
    }
}

#[cfg(test)]
mod tests;
