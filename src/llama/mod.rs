//! The interface to llama.cpp. Nothing outside this room calls the bindings, and this room makes no policy decisions.
//!
//! ```text
//! ModelFile ──load──► Model ──► Context ◄── Batch: tokens of one or many sequences
//!  checked             │          │  decode, then logits(row)
//!  before C++          │          └─ memory of each sequence: truncate, copy, clear, save, restore
//!  sees it             └─ tokenizer, adapters
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `backend` | the process-wide start of llama.cpp, its log, and the lock around what cannot run twice at a time |
//! | `devices` | the devices of this machine and their memory |
//! | `remote` | devices of other machines, and serving those of this one |
//! | `preflight` | what llama.cpp would end the process over, refused before it sees a file |
//! | `load`, `model` | loading parameters, and the loaded model |
//! | `layout`, `layout_speed`, `pages` | the second layout that llama.cpp has for CPUs, how fast it is, and the memory behind what was copied into it |
//! | `attention_speed`, `kernels` | how long attention takes; single operations of ggml, to be timed |
//! | `openmp` | the threads that compute, and how they wait for one another |
//! | `lora` | adapters |
//! | `tokenizer` | the tokenizer of a loaded model |
//! | `batch`, `context` | evaluation |
//! | `rope` | how positions are encoded |
//! | `reservation` | what a context would take, without taking it |
//! | `guard` | catching what C++ throws |
//! | `observe` | watching an evaluation, operation by operation |
//!
//! llama.cpp reports errors in four ways: a return value, a C++ exception, a failed assertion, and a line in its log.
//! Exceptions that leave its C functions and failed assertions end the process, so each call here says which of them can
//! happen and what was checked before. The log lines of a failing call become the reason in our [`Error`].

mod attention_speed;
mod backend;
mod batch;
mod context;
mod devices;
mod error;
mod guard;
mod kernels;
mod kv_type;
mod layout;
mod layout_speed;
mod load;
mod lora;
mod model;
mod observe;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod openmp;
mod pages;
mod preflight;
mod remote;
mod reservation;
mod rope;
mod tokenizer;

pub use attention_speed::{AttentionTime, Heads, attention_time};
pub use backend::{NO_REASON, VERSION, on_abort, set_verbose, system_info};
pub use batch::Batch;
pub use context::{Context, ContextOptions, FlashAttention, Sharing};
pub use devices::{Device, DeviceKind, DeviceSpeed, devices, has_gpu, layer_devices};
pub use error::{Error, Setting};
pub use kv_type::{KvType, KvTypes, UnknownKvType};
pub use layout_speed::{LayoutTimes, WeightTime, layout_times, writing_time};
pub use load::{ModelOptions, Progress, TensorOverride};
pub use lora::Lora;
pub(crate) use model::n_ctx_train;
pub use model::{Model, ModelFile};
pub use observe::{Node, Observer, Room};
pub use remote::{add_remote, offered_devices, serve_remote};
pub use reservation::Reservation;
pub use rope::{RopeOptions, RopeScaling};
