//! Runs a model one layer at a time, so that only one has to be in memory.
//!
//! ```text
//!  tokens ─► embedding ─► hidden ─► [ layer 0 ] ─► hidden ─► [ layer 1 ] ─► hidden ─► ...
//!                                    a file of one layer; its matrices' inputs are told
//! ```
//!
//! [`write_layer`] makes a model file of one layer, with a vocabulary of a few pieces, whose tables take no room.
//! [`Layer`] runs it over vectors instead of tokens. What leaves one layer enters the next, and is what llama.cpp
//! computes with all of them in memory, to the bit.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::SessionOptions;
use crate::gguf::{self, Gguf, Layout, LayoutError, Metadata, TensorInfo, TensorType, Value};
use crate::llama::{self, Batch, Context, Model, ModelOptions, Node, Observer, Room};
use crate::pass;
use crate::quant;

/// Architectures whose layers are computed alike, wherever they stand, and begin with the embedding as it is.
const ALIKE: [&str; 2] = ["llama", "qwen2"];

/// Why a layer cannot be run by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layers of this architecture differ in more than their weights.
    #[error("{}: the layers of the architecture '{arch}' cannot be run one by one; known are {}", path.display(), ALIKE.join(" and "))]
    Architecture {
        /// The model.
        path: PathBuf,
        /// Its architecture.
        arch: String,
    },
    /// There is no such layer.
    #[error("{}: has no layer {layer}, but {n_layers} layers", path.display())]
    NoLayer {
        /// The model.
        path: PathBuf,
        /// The layer.
        layer: usize,
        /// Layers that there are.
        n_layers: usize,
    },
    /// A token has no row in the embedding, or the embedding cannot be read.
    #[error("{}: its embedding {what}", path.display())]
    Embedding {
        /// The model.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor cannot be read.
    #[error("{}: {reason}", path.display())]
    Tensor {
        /// The model.
        path: PathBuf,
        /// Which, and why.
        reason: String,
    },
    /// The file of a layer breaks a rule of the format.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file of a layer could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// llama.cpp cannot load or run the layer.
    #[error(transparent)]
    Run(#[from] llama::Error),
    /// The vectors are not whole windows.
    #[error("{found} numbers were given, wanted a multiple of {window} tokens of {n_embd} numbers")]
    Windows {
        /// Numbers given.
        found: usize,
        /// Tokens of a window.
        window: usize,
        /// Numbers of a token.
        n_embd: usize,
    },
    /// llama.cpp's graph has no node for what leaves the layer.
    #[error("{}: nothing was seen to leave the layer", path.display())]
    NoOutput {
        /// The layer.
        path: PathBuf,
    },
}

/// A model whose layers can be taken out of it.
pub trait Whole {
    /// Returns where it is, for messages.
    fn path(&self) -> &Path;

    /// Returns its metadata.
    fn metadata(&self) -> &Metadata;

    /// Returns its tensors.
    fn tensors(&self) -> &[TensorInfo];

    /// Returns the type in which a layer gets tensor `index` of [`Self::tensors`].
    fn ty(&self, index: usize) -> TensorType;

    /// Returns the bytes of tensor `index`, in that type.
    ///
    /// # Errors
    /// If it cannot be read.
    fn data(&self, index: usize) -> Result<Cow<'_, [u8]>, Error>;

    /// Fills `weights` with rows `rows` of tensor `index`.
    ///
    /// # Errors
    /// If they cannot be read.
    fn rows(&self, index: usize, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error>;
}

/// Layers get the tensors of a file as they are.
impl Whole for Gguf {
    fn path(&self) -> &Path {
        self.paths().next().unwrap_or(Path::new(""))
    }

    fn metadata(&self) -> &Metadata {
        self.metadata()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }

    fn ty(&self, index: usize) -> TensorType {
        self.tensors()[index].ty
    }

    fn data(&self, index: usize) -> Result<Cow<'_, [u8]>, Error> {
        Ok(self.data(index).into())
    }

    fn rows(&self, index: usize, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let TensorInfo { name, ty, .. } = &self.tensors()[index];
        let decode = quant::decoder(*ty).ok_or_else(|| Error::Tensor {
            path: Whole::path(self).to_path_buf(),
            reason: format!("'{name}' is of type {ty}"),
        })?;
        let row_len = usize::try_from(self.tensors()[index].row_len()).unwrap_or(0);
        let row_bytes = row_len / ty.block_len() * ty.block_bytes();
        weights.resize(rows.len() * row_len, 0.0);
        decode(&self.data(index)[rows.start * row_bytes..rows.end * row_bytes], weights);
        Ok(())
    }
}

/// A source of conversions. Layers get its tensors in single precision, with which every CPU computes fast.
impl Whole for pass::Source {
    fn path(&self) -> &Path {
        Path::new(&self.name)
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn ty(&self, _index: usize) -> TensorType {
        TensorType::F32
    }

    fn data(&self, index: usize) -> Result<Cow<'_, [u8]>, Error> {
        let mut weights = Vec::new();
        self.rows(index, 0..self.assembly(index).n_rows, &mut weights)?;
        Ok(Cow::Owned(weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()))
    }

    fn rows(&self, index: usize, rows: Range<usize>, weights: &mut Vec<f32>) -> Result<(), Error> {
        let assembly = self.assembly(index);
        let n_weights = rows.len() * assembly.row_len;
        assembly
            .read(rows, weights)
            .map_err(|error| Error::Tensor { path: Whole::path(self).to_path_buf(), reason: error.to_string() })?;
        weights.truncate(n_weights);
        Ok(())
    }
}

/// Returns the number of layers of a model, if they can be run one by one.
///
/// # Errors
/// [`Error::Architecture`].
pub fn n_layers(model: &impl Whole) -> Result<usize, Error> {
    let arch = model.metadata().str("general.architecture").unwrap_or_default();
    if !ALIKE.contains(&arch) {
        return Err(Error::Architecture { path: model.path().to_path_buf(), arch: arch.to_string() });
    }
    Ok(model.metadata().u64(&format!("{arch}.block_count")).and_then(|n| usize::try_from(n).ok()).unwrap_or(0))
}

/// Returns what enters the first layer: the rows of `tokens` in the embedding of a model, one after the other.
///
/// # Errors
/// If there is no embedding, or no such row in it, or it cannot be read.
pub fn embed(model: &impl Whole, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    let wrong = |what: String| Error::Embedding { path: model.path().to_path_buf(), what };
    let index = model.tensors().iter().position(|tensor| tensor.name == EMBEDDING);
    let index = index.ok_or_else(|| wrong("is missing".to_string()))?;
    let n_rows = model.tensors()[index].n_rows().unwrap_or(0);
    let (mut hidden, mut row) = (Vec::new(), Vec::new());
    for token in tokens {
        if u64::from(*token) >= n_rows {
            return Err(wrong(format!("has {n_rows} rows, and none for token {token}")));
        }
        let at = *token as usize;
        model.rows(index, at..at + 1, &mut row)?;
        hidden.extend_from_slice(&row);
    }
    Ok(hidden)
}

const EMBEDDING: &str = "token_embd.weight";

/// The pieces of a layer's own vocabulary: as few as llama.cpp accepts.
const PIECES: [&str; 3] = ["<unk>", "a", "<0x0A>"];

/// Returns another type and other bytes of a tensor, by its name; `None` for its own.
pub type Replaced<'a> = &'a dyn Fn(&str) -> Option<(TensorType, Vec<u8>)>;

/// Writes layer number `layer` of a model as a model of one layer to `path`, replacing what is there. `replaced`, if it
/// returns anything for a tensor, by its name in the model, replaces type and bytes of that tensor.
///
/// # Errors
/// If there is no such layer, the architecture is not one whose layers are alike, a tensor cannot be read, or the file
/// cannot be written.
pub fn write_layer(model: &impl Whole, layer: usize, path: &Path, replaced: Replaced<'_>) -> Result<(), Error> {
    let n_layers = n_layers(model)?;
    let prefix = format!("blk.{layer}.");
    let of_layer = |tensor: &TensorInfo| tensor.name.starts_with(&prefix);
    if layer >= n_layers || !model.tensors().iter().any(of_layer) {
        return Err(Error::NoLayer { path: model.path().to_path_buf(), layer, n_layers });
    }
    let embedding = model.tensors().iter().find(|tensor| tensor.name == EMBEDDING);
    let embedding = embedding
        .ok_or_else(|| Error::Embedding { path: model.path().to_path_buf(), what: "is missing".to_string() })?;
    let n_embd = embedding.row_len();

    let tensor = |name: &str, dims: Vec<u64>, ty| TensorInfo { name: name.to_string(), dims, ty };
    let mut tensors = vec![
        tensor(EMBEDDING, vec![n_embd, PIECES.len() as u64], TensorType::F32),
        tensor("output_norm.weight", vec![n_embd], TensorType::F32),
    ];
    let zeros = |tensor: &TensorInfo| vec![0u8; usize::try_from(tensor.n_bytes().unwrap_or(0)).unwrap_or(0)];
    let mut data: Vec<Data> = tensors.iter().map(|tensor| Data::Given(zeros(tensor))).collect();
    for (index, tensor) in model.tensors().iter().enumerate() {
        let name = match tensor.name.strip_prefix(&prefix) {
            Some(rest) => format!("blk.0.{rest}"),
            None if tensor.name.starts_with("rope_") => tensor.name.clone(),
            None => continue,
        };
        let (ty, bytes) = match replaced(&tensor.name) {
            Some((ty, bytes)) => (ty, Data::Given(bytes)),
            None => (model.ty(index), Data::Of(index)),
        };
        tensors.push(TensorInfo { name, ty, ..tensor.clone() });
        data.push(bytes);
    }

    let layout = Layout::new(&metadata_of(model.metadata(), layer, n_layers), tensors, gguf::DEFAULT_ALIGNMENT, None)?;
    // One tensor at a time is in memory.
    let mut unread = None;
    let read = |index: usize| match &data[index] {
        Data::Given(bytes) => Cow::Borrowed(bytes.as_slice()),
        Data::Of(index) => model.data(*index).unwrap_or_else(|error| {
            unread.get_or_insert(error);
            Cow::Borrowed(&[][..])
        }),
    };
    let written = std::fs::File::create(path).and_then(|file| {
        let mut file = io::BufWriter::new(file);
        layout.write_part(0, &mut file, read)?;
        file.flush()
    });
    match unread {
        Some(error) => Err(error),
        None => written.map_err(|source| Error::Write { path: path.to_path_buf(), source }),
    }
}

/// The bytes of a tensor of a layer.
enum Data {
    Given(Vec<u8>),
    /// Those of the model's tensor of this number.
    Of(usize),
}

/// Returns the metadata of a model with one layer.
fn metadata_of(whole: &Metadata, layer: usize, n_layers: usize) -> Metadata {
    let arch = whole.str("general.architecture").unwrap_or_default();
    let mut metadata = Metadata::new();
    for (key, value) in whole.iter() {
        let of_arch = key.strip_prefix(arch).is_some_and(|rest| rest.starts_with('.'));
        if !of_arch && !key.starts_with("general.") {
            continue;
        }
        match value {
            // One number for each layer.
            Value::Array(array) if array.len() == n_layers => {
                if let Some(value) = array.get(layer) {
                    metadata.set(key, value);
                }
            }
            value => metadata.set(key, value.clone()),
        }
    }
    metadata.set(format!("{arch}.block_count"), 1u32);
    metadata.set(format!("{arch}.vocab_size"), PIECES.len() as u32);
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.tokens", PIECES.map(str::to_string).to_vec());
    metadata.set("tokenizer.ggml.scores", vec![0f32; PIECES.len()]);
    metadata.set("tokenizer.ggml.token_type", vec![2i32, 1, 6]);
    metadata.set("tokenizer.ggml.unknown_token_id", 0u32);
    metadata
}

/// Is told the inputs of the matrices of a layer.
pub trait Inputs: Send {
    /// Returns whether the inputs of this matrix, by its name without `blk.N.`, are wanted.
    fn wants(&self, matrix: &str) -> bool;

    /// Takes inputs of a matrix: `columns` numbers for each of some tokens, one after the other.
    fn take(&mut self, matrix: &str, columns: usize, inputs: &[f32]);
}

/// For runs whose inputs nobody wants.
impl Inputs for () {
    fn wants(&self, _matrix: &str) -> bool {
        false
    }

    fn take(&mut self, _matrix: &str, _columns: usize, _inputs: &[f32]) {}
}

/// A layer, ready to run.
pub struct Layer<I> {
    context: Context,
    batch: Batch,
    watch: Arc<Mutex<Watch<I>>>,
    window: usize,
    path: PathBuf,
}

impl<I: Inputs + 'static> Layer<I> {
    /// Loads a layer from a file that [`write_layer`] has made, to be run over windows of `window` tokens.
    ///
    /// # Errors
    /// If llama.cpp refuses it, or an option of the session is out of range.
    pub fn open(path: &Path, window: u32, session: &SessionOptions, inputs: I) -> Result<Self, Error> {
        let model = Model::load(path, ModelOptions { repack: false, ..ModelOptions::default() })?;
        let watch = Arc::new(Mutex::new(Watch { inputs, output: Vec::new() }));
        let eyes = Eyes { watch: watch.clone(), room: Room::default() };
        let n_batch = window.min(MOST_AT_ONCE);
        let session = SessionOptions { n_ctx: Some(window), n_batch, rows: n_batch, ..session.clone() };
        let context = Context::new(&model, &session.context(None, 1), Some(Box::new(eyes)))?;
        let batch = Batch::with_capacity(n_batch as usize);
        Ok(Self { context, batch, watch, window: window as usize, path: path.to_path_buf() })
    }

    /// Runs the layer over `hidden`, which enters it, and replaces it by what leaves it. `hidden` holds whole windows: for
    /// each of their tokens [`Model::n_embd`] numbers. A window does not see the others.
    ///
    /// # Errors
    /// If `hidden` is not whole windows, it was cancelled, or llama.cpp fails. `hidden` is then of no use.
    pub fn run(&mut self, hidden: &mut [f32]) -> Result<(), Error> {
        let (n_embd, window) = (self.context.model().n_embd(), self.window);
        if n_embd == 0 || !hidden.len().is_multiple_of(n_embd * window) {
            return Err(Error::Windows { found: hidden.len(), window, n_embd });
        }
        let most = self.context.n_batch() as usize;
        for window in hidden.chunks_exact_mut(n_embd * window) {
            self.context.clear();
            let mut position = 0;
            for hidden in window.chunks_mut(n_embd * most) {
                self.batch.clear();
                for _ in 0..hidden.len() / n_embd {
                    // For tokens without logits, the last layer computes only keys and values.
                    self.batch.push(0, position, &[0], true);
                    position += 1;
                }
                lock(&self.watch).output.clear();
                self.context.decode_hidden(&self.batch, hidden)?;
                let watch = lock(&self.watch);
                if watch.output.len() != hidden.len() {
                    return Err(Error::NoOutput { path: self.path.clone() });
                }
                hidden.copy_from_slice(&watch.output);
            }
        }
        Ok(())
    }

    /// Returns what took the inputs.
    pub fn finish(self) -> I {
        let Self { context, watch, .. } = self;
        // It holds the other reference.
        drop(context);
        let watch = Arc::into_inner(watch).expect("the context that observed is gone");
        watch.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).inputs
    }
}

/// The most tokens that are computed at a time.
const MOST_AT_ONCE: u32 = 512;

/// What is seen of an evaluation.
struct Watch<I> {
    inputs: I,
    output: Vec<f32>,
}

fn lock<I>(watch: &Mutex<Watch<I>>) -> MutexGuard<'_, Watch<I>> {
    // What a panicking thread leaves is cleared before the next use.
    watch.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Observes what leaves the layer, and the inputs of its matrices.
struct Eyes<I> {
    watch: Arc<Mutex<Watch<I>>>,
    room: Room,
}

/// Returns the name of the matrix of a product, without `blk.0.`, and the product's input.
fn product<'a>(node: Node<'a>) -> Option<(&'a str, Node<'a>)> {
    let (true, Some(matrix), Some(input)) = (node.is_product(), node.source(0), node.source(1)) else { return None };
    Some((matrix.name().strip_prefix("blk.0.")?, input))
}

const OUTPUT: &str = "l_out-0";

impl<I: Inputs> Observer for Eyes<I> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name() == OUTPUT || product(node).is_some_and(|(matrix, _)| lock(&self.watch).inputs.wants(matrix))
    }

    fn sees(&mut self, node: Node<'_>) -> ControlFlow<()> {
        if node.name() == OUTPUT {
            if let Some(output) = self.room.read(node) {
                lock(&self.watch).output.extend_from_slice(output);
            }
        } else if let Some((matrix, input)) = product(node)
            && let Some(inputs) = self.room.read(input)
        {
            lock(&self.watch).inputs.take(matrix, input.dims()[0], inputs);
        }
        ControlFlow::Continue(())
    }
}
