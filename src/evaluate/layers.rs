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

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::SessionOptions;
use crate::gguf::{self, Gguf, Layout, LayoutError, Metadata, TensorInfo, TensorType, Value};
use crate::llama::{self, Batch, Context, Model, ModelOptions, Node, Observer, Room};
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

/// Returns the number of layers of `gguf`, if they can be run one by one.
///
/// # Errors
/// [`Error::Architecture`].
pub fn n_layers(gguf: &Gguf, path: &Path) -> Result<usize, Error> {
    let arch = gguf.metadata().str("general.architecture").unwrap_or_default();
    if !ALIKE.contains(&arch) {
        return Err(Error::Architecture { path: path.to_path_buf(), arch: arch.to_string() });
    }
    Ok(gguf.metadata().u64(&format!("{arch}.block_count")).and_then(|n| usize::try_from(n).ok()).unwrap_or(0))
}

/// Returns what enters the first layer: the rows of `tokens` in the embedding of `gguf`, one after the other.
///
/// # Errors
/// [`Error::Embedding`].
pub fn embed(gguf: &Gguf, path: &Path, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    let wrong = |what: String| Error::Embedding { path: path.to_path_buf(), what };
    let index = gguf.index_of(EMBEDDING).ok_or_else(|| wrong("is missing".to_string()))?;
    let tensor = &gguf.tensors()[index];
    let decode = quant::decoder(tensor.ty).ok_or_else(|| wrong(format!("is of type {}", tensor.ty)))?;
    let (row_len, n_rows) = (tensor.row_len(), tensor.n_rows().unwrap_or(0));
    let data = gguf.data(index);
    let row_len = usize::try_from(row_len).map_err(|_| wrong(format!("has rows of {row_len} numbers")))?;
    let row_bytes = row_len / tensor.ty.block_len() * tensor.ty.block_bytes();
    let mut hidden = vec![0.0; tokens.len().saturating_mul(row_len)];
    for (token, hidden) in tokens.iter().zip(hidden.chunks_exact_mut(row_len)) {
        if u64::from(*token) >= n_rows {
            return Err(wrong(format!("has {n_rows} rows, and none for token {token}")));
        }
        decode(&data[*token as usize * row_bytes..][..row_bytes], hidden);
    }
    Ok(hidden)
}

const EMBEDDING: &str = "token_embd.weight";

/// The pieces of a layer's own vocabulary: as few as llama.cpp accepts.
const PIECES: [&str; 3] = ["<unk>", "a", "<0x0A>"];

/// Writes layer number `layer` of `gguf` as a model of one layer to `path`, replacing what is there. `data`, if it returns
/// anything for a tensor, by its name in `gguf`, replaces type and bytes of that tensor.
///
/// # Errors
/// If there is no such layer, the architecture is not one whose layers are alike, or the file cannot be written.
pub fn write_layer(
    gguf: &Gguf,
    source: &Path,
    layer: usize,
    path: &Path,
    data: &dyn Fn(&str) -> Option<(TensorType, Vec<u8>)>,
) -> Result<(), Error> {
    let n_layers = n_layers(gguf, source)?;
    let prefix = format!("blk.{layer}.");
    let of_layer = |tensor: &TensorInfo| tensor.name.starts_with(&prefix);
    if layer >= n_layers || !gguf.tensors().iter().any(of_layer) {
        return Err(Error::NoLayer { path: source.to_path_buf(), layer, n_layers });
    }
    let embedding = gguf
        .tensor(EMBEDDING)
        .ok_or_else(|| Error::Embedding { path: source.to_path_buf(), what: "is missing".to_string() })?;
    let n_embd = embedding.row_len();

    let tensor = |name: &str, dims: Vec<u64>, ty| TensorInfo { name: name.to_string(), dims, ty, ..embedding.clone() };
    let mut tensors = vec![
        tensor(EMBEDDING, vec![n_embd, PIECES.len() as u64], TensorType::F32),
        tensor("output_norm.weight", vec![n_embd], TensorType::F32),
    ];
    let zeros = |tensor: &TensorInfo| vec![0u8; usize::try_from(tensor.n_bytes().unwrap_or(0)).unwrap_or(0)];
    let mut bytes: Vec<std::borrow::Cow<[u8]>> = tensors.iter().map(|tensor| zeros(tensor).into()).collect();
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        let name = match tensor.name.strip_prefix(&prefix) {
            Some(rest) => format!("blk.0.{rest}"),
            None if tensor.name.starts_with("rope_") => tensor.name.clone(),
            None => continue,
        };
        let (ty, data) = match data(&tensor.name) {
            Some((ty, data)) => (ty, data.into()),
            None => (tensor.ty, gguf.data(index).into()),
        };
        tensors.push(TensorInfo { name, ty, ..tensor.clone() });
        bytes.push(data);
    }

    let layout = Layout::new(&metadata_of(gguf.metadata(), layer, n_layers), tensors, gguf::DEFAULT_ALIGNMENT, None)?;
    let write = || {
        let mut file = io::BufWriter::new(std::fs::File::create(path)?);
        layout.write_part(0, &mut file, |index| &bytes[index])?;
        file.flush()
    };
    write().map_err(|source| Error::Write { path: path.to_path_buf(), source })
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
