//! What can go wrong when a model is run.

use std::path::PathBuf;

use crate::gguf::TensorType;
use crate::placement::Estimate;
use crate::vocab::TokenizeError;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// llama.cpp could not be set up.
    #[error("llama.cpp could not be started: {0}")]
    Backend(String),
    /// The file is not a GGUF file that nibble accepts.
    #[error(transparent)]
    File(#[from] crate::gguf::Error),
    /// Its vocabulary is broken, or of a kind that cannot be used.
    #[error(transparent)]
    Vocabulary(#[from] crate::vocab::Error),
    /// The path cannot be handed to llama.cpp.
    #[error("{} is not valid Unicode, which llama.cpp asks of a path; rename the file or one of its folders", .0.display())]
    Path(PathBuf),
    /// The machine's memory does not hold it.
    #[error("{}", .0)]
    Memory(Box<NoRoom>),
    /// A tensor of a type that llama.cpp cannot compute with.
    #[error("{}: tensor '{name}' is {}, and has to be {wanted}; convert the model again", path.display(), found.name())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: TensorType,
        /// What it should be.
        wanted: &'static str,
    },
    /// A number in the file that no model has.
    #[error("{}: '{key}' is {found}, and has to be {wanted}; convert the model again", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What should be.
        wanted: String,
    },
    /// llama.cpp refused the file.
    #[error("{}: llama.cpp cannot load it: {reason}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What llama.cpp said.
        reason: String,
    },
    /// Loading was ended by the progress callback.
    #[error("loading was interrupted")]
    LoadCancelled,
    /// The model is of a kind that does not write text.
    #[error("{}: {what}; nibble runs models that continue text", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// An option outside its range.
    #[error("{name} is {value}; it has to be {wanted}")]
    Option {
        /// The option as the command line spells it.
        name: &'static str,
        /// What was given.
        value: u64,
        /// The range.
        wanted: String,
    },
    /// A LoRA adapter that does not go with the model.
    #[error("{}: cannot be used as a LoRA adapter: {reason}", path.display())]
    Lora {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A share outside its range.
    #[error("{name} is {value}; it has to be {wanted}")]
    Share {
        /// The option as the command line spells it.
        name: &'static str,
        /// What was given.
        value: f32,
        /// The range.
        wanted: &'static str,
    },
    /// A model that cannot draft, or for which nothing can be drafted.
    #[error("{}: cannot be used with --draft: {reason}", path.display())]
    Draft {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// llama.cpp made no context.
    #[error("llama.cpp made no room for a context of {n_ctx} tokens: {reason}; try a smaller --ctx, or --kv-type q8_0")]
    Context {
        /// Tokens asked for.
        n_ctx: u32,
        /// What llama.cpp said.
        reason: String,
    },
    /// Nothing to evaluate.
    #[error("there are no tokens to evaluate; a prompt needs at least one")]
    NoTokens,
    /// An id that is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    Token {
        /// The id.
        token: u32,
        /// Tokens in the vocabulary.
        n_vocab: u32,
    },
    /// More tokens than the context holds.
    #[error(
        "the prompt has {wanted} tokens, and the context holds {n_ctx}; shorten it, or ask for more room with --ctx"
    )]
    ContextFull {
        /// Tokens there would be.
        wanted: usize,
        /// Tokens there is room for.
        n_ctx: u32,
    },
    /// More rows of logits than the session was made for.
    #[error("{wanted} rows of logits were asked for at once, and the session was made for {most}")]
    Rows {
        /// Rows asked for.
        wanted: usize,
        /// Rows there is room for.
        most: usize,
    },
    /// Logits that were not computed.
    #[error("row {row} of the logits was asked for, and the last evaluation computed {computed}")]
    NoLogits {
        /// The row.
        row: usize,
        /// How many there are.
        computed: usize,
    },
    /// The evaluation was interrupted.
    #[error("interrupted")]
    Cancelled,
    /// The evaluation was ended by what observed it.
    #[error("the evaluation was ended by its observer")]
    Stopped,
    /// llama.cpp could not evaluate the tokens.
    #[error("llama.cpp could not evaluate the tokens (status {status}): {reason}")]
    Decode {
        /// What `llama_decode` returned.
        status: i32,
        /// What llama.cpp said.
        reason: String,
    },
    /// Text that cannot become tokens.
    #[error(transparent)]
    Codec(#[from] TokenizeError),
    /// No token could be chosen.
    #[error("{0}")]
    Sample(#[from] crate::sample::Error),
    /// The text cannot be held to its grammar.
    #[error(transparent)]
    Constrain(#[from] crate::constrain::Error),
}

/// What is needed, and what there is.
#[derive(Debug)]
pub struct NoRoom {
    /// What the model and its session need.
    pub needs: Estimate,
    /// Memory of the machine, in bytes.
    pub has: u64,
    /// What another model takes of it already.
    pub beside: u64,
    /// Tokens of context the estimate is for.
    pub n_ctx: u32,
    /// The largest power of two of tokens that fits, where one of 512 or more does.
    pub fits: Option<u32>,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e9);
        let Estimate { weights, kv_cache, compute } = self.needs;
        write!(
            f,
            "the model needs about {} GB (weights {}, KV cache {} for {} tokens, working memory {}); this machine has \
             {} GB",
            gb(self.needs.total()),
            gb(weights),
            gb(kv_cache),
            self.n_ctx,
            gb(compute),
            gb(self.has),
        )?;
        if self.beside > 0 {
            write!(f, ", of which the other model takes {}", gb(self.beside))?;
        }
        write!(f, ". ")?;
        match self.fits {
            Some(n_ctx) => write!(f, "Try --ctx {n_ctx}, --kv-type q8_0, or a smaller quantization")?,
            None => write!(f, "Try a smaller quantization ('nibble quants' lists them)")?,
        }
        write!(f, "; --allow-swap runs it all the same, reading the weights from disk for every token")
    }
}
