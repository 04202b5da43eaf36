//! Why a model cannot be computed.

use std::ops::Range;

use super::shape::ARCHITECTURES;
use crate::base::display::shorten;

/// Characters of a name from a file that are shown.
const SHOWN: usize = 80;

/// Why a model cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The layers of this architecture are not known.
    #[error("the layers of the architecture '{}' cannot be computed; known are {}", shorten(arch, SHOWN), ARCHITECTURES.join(" and "))]
    Architecture {
        /// The model's architecture.
        arch: String,
    },
    /// A value of the metadata is missing, or cannot be computed with.
    #[error("the metadata has {found} for {key}, wanted {wanted}")]
    Key {
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What would be accepted.
        wanted: String,
    },
    /// A tensor is missing.
    #[error("the model has no tensor '{tensor}'")]
    Missing {
        /// Its name.
        tensor: String,
    },
    /// A tensor whose part in the computation is not known.
    #[error("it is not known how to compute with the tensor '{}'", shorten(tensor, SHOWN))]
    Unknown {
        /// Its name.
        tensor: String,
    },
    /// A tensor is not as large as the metadata and the other tensors say.
    #[error("the tensor '{tensor}' has {} rows of {} numbers, wanted {} of {}", found[1], found[0], wanted[1], wanted[0])]
    Shape {
        /// Its name.
        tensor: String,
        /// Length of its rows, and their number.
        found: [usize; 2],
        /// What would be accepted.
        wanted: [usize; 2],
    },
    /// Weights cannot be read.
    #[error("the tensor '{tensor}' cannot be read: {source}")]
    Read {
        /// The tensor's name.
        tensor: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading gave another number of weights.
    #[error("rows {} to {} of the tensor '{tensor}' gave {found} numbers, wanted {wanted}", rows.start, rows.end)]
    Weights {
        /// The tensor's name.
        tensor: String,
        /// The rows that were read.
        rows: Range<usize>,
        /// Numbers that were given.
        found: usize,
        /// Numbers that the rows have.
        wanted: usize,
    },
    /// A factor of the rotations is not a positive number.
    #[error("the tensor '{tensor}' has {found} at {index}, wanted a positive number")]
    Factor {
        /// The tensor's name.
        tensor: String,
        /// Where.
        index: usize,
        /// What is there.
        found: f32,
    },
    /// There is no such layer.
    #[error("there is no layer {layer}: the model has {n_layers} layers")]
    NoLayer {
        /// The layer.
        layer: usize,
        /// Layers that there are.
        n_layers: usize,
    },
    /// There is no such token.
    #[error("there is no token {token}: the embedding has {n_vocab} rows")]
    NoToken {
        /// The token.
        token: u32,
        /// Tokens that there are.
        n_vocab: usize,
    },
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
    /// There are not as many gradients as hidden numbers.
    #[error("{found} gradients were given for {wanted} numbers")]
    Gradients {
        /// Gradients given.
        found: usize,
        /// Numbers given.
        wanted: usize,
    },
}
