//! The one integration test binary: the program as people use it, and whole conversions.

mod bad_input;
#[cfg(feature = "llama")]
mod bench;
mod command_line;
mod conversion;
#[cfg(feature = "llama")]
mod forward;
#[cfg(feature = "llama")]
mod generation;
#[cfg(feature = "llama")]
mod lora;
#[cfg(unix)]
mod resume;
#[cfg(all(feature = "llama", target_arch = "x86_64"))]
mod same_bytes_as_llama_cpp;
mod support;
mod verification;
