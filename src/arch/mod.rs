//! Model architectures: what a Hugging Face checkpoint calls things, and what GGUF calls them. One file an architecture.

mod role;

pub use role::Role;
