//! The one integration test binary.

#[cfg(feature = "llama")]
mod generation;
