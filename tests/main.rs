//! The one integration test binary: the program as people use it, and whole conversions.

#[cfg(feature = "llama")]
mod allocation;
mod architectures;
mod bad_input;
#[cfg(feature = "llama")]
mod bench;
#[cfg(feature = "llama")]
mod best;
#[cfg(feature = "llama")]
mod chat;
mod command_line;
#[cfg(feature = "llama")]
mod compare;
#[cfg(feature = "llama")]
mod compare_recipes;
mod conversion;
#[cfg(feature = "serve")]
mod engine;
#[cfg(feature = "llama")]
mod forward;
#[cfg(feature = "llama")]
mod generation;
#[cfg(feature = "llama")]
mod importance;
#[cfg(feature = "llama")]
mod lora;
#[cfg(feature = "llama")]
mod lora_conversion;
#[cfg(feature = "llama")]
mod memory;
#[cfg(feature = "llama")]
mod plan;
#[cfg(feature = "llama")]
mod polish;
#[cfg(feature = "llama")]
mod prompt_cache;
#[cfg(unix)]
mod resume;
mod rooms;
#[cfg(feature = "llama")]
mod rounding;
#[cfg(all(feature = "llama", target_arch = "x86_64"))]
mod same_bytes_as_llama_cpp;
#[cfg(feature = "llama")]
mod sampling;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "llama")]
mod speculation;
#[cfg(feature = "llama")]
mod structure;
mod support;
#[cfg(feature = "llama")]
mod tasks;
#[cfg(feature = "llama")]
mod turn;
#[cfg(feature = "llama")]
mod typed;
mod verification;
mod weights;
#[cfg(feature = "llama")]
mod workers;
