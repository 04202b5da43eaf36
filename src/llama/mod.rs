//! The wall to llama.cpp: outside this room nothing knows it.

mod backend;
mod error;
pub(crate) mod lora;
pub(crate) mod model;
mod observe;
mod preflight;
pub(crate) mod session;
mod tokenizer;

pub use backend::{has_gpu, set_verbose, system_info};
pub use error::{Error, NoRoom};
pub use lora::Lora;
pub use model::{Model, ModelOptions};
pub use observe::{Node, Observer, Room};
pub use session::{FlashAttention, KvType, Logits, Session, SessionOptions};
