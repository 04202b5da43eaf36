//! Running models: the only user of llama.cpp.
//!
//! ```text
//!  path ──► Gguf::open ──► memory check ──► Model ──► Session ──► logits ──► sample ──► codec ──► text
//!           our reader      weights, KV      llama.cpp  eval,       &[f32]               │
//!           accepts it      cache, room      maps it    truncate      ▲──────────────────┘ next token
//! ```
//!
//! A wall: outside this module nothing knows llama.cpp. It owns the one backend of the process, makes contexts one at a
//! time, checks what the bindings do not (tokens, batch size, room in the context), turns llama.cpp's silent failures
//! into errors with the lines it logged, and gives logits out as borrowed slices.
//!
//! The model and its vocabulary go through `llama-cpp-2`. Contexts go through `llama-cpp-sys-2`, because the safe
//! crate has no way to interrupt an evaluation, and because its batches take sequence ids and sizes unchecked.
//! llama.cpp's tokenizer serves the vocabularies that nibble has no tokenizer of its own for.

mod accept;
mod backend;
mod branches;
mod codec;
mod error;
mod generate;
mod lora;
mod memory;
mod model;
mod observe;
mod prompt_cache;
mod session;
mod speculate;

pub use backend::{has_gpu, set_verbose, system_info};
pub use branches::{Branch, Branches};
pub use error::Error;
pub use generate::{Finish, GenerateOptions, Generated, Step, TokenLogprobs, Writer, generate};
pub use lora::Lora;
pub use memory::{Estimate, Machine, Shape};
pub use model::{Model, ModelOptions};
pub use observe::{Node, Observer, Room};
pub use prompt_cache::{CacheError, PromptCache};
pub use session::{FlashAttention, KvType, Logits, Session, SessionOptions};
pub use speculate::{Draft, DraftOptions, Speculation, take_or_redraw};
