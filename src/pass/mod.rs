//! One pass over a source: reads its files in spans, and decodes, transforms and encodes the rows of its tensors.
//!
//! ```text
//! Source::open    a checkpoint or a GGUF ─► metadata, tensors, and what each is assembled from
//! Pass::new       the files, cut into spans of a few MB; each span knows the rows that begin in it
//!
//! for each span, on any thread:
//!     Pass::read      bytes of the file ─► buffer, and what the span adds to the file's hash
//!     for each piece of the span (rows of one input of one tensor):
//!         Input::decode       bytes ─► rows of f32, in the order of the output
//!         Encoder::encode     the same, then quantized; before a tensor's first rows its prologue, where there is one
//! ```
//!
//! An output tensor may have several inputs, in one file or in several, and a tensor of the source may be an input of
//! several outputs. In both cases, every byte of the source is read and hashed once: spans follow the files, and pieces
//! say which rows of which output the bytes become. (The scales and zero points of packed matrices are read when their
//! codes are unpacked, and a second time for their hash.)
//!
//! Conversion, verification and the comparison of weights are three uses of a pass.

mod assembly;
mod encode;
mod error;
mod hash;
mod label;
mod prologue;
mod source;
mod span;

pub use assembly::{Assembly, Bytes, Input};
pub use encode::Encoder;
pub use error::Error;
pub(crate) use hash::{SpanHasher, of_file as hash_of_file};
pub use label::size_label;
pub use prologue::{EncodeRows, Prologue, WholeTensor};
pub use source::Source;
pub(crate) use source::{describe, general_metadata, set_base_models};
pub(crate) use span::READ_BYTES;
pub use span::{Pass, Piece, SPAN_BYTES, SPANS_AHEAD, Span, file_hashes};
