//! Serves models to other programs.
//!
//! ```text
//! server ──► protocol ──► worker, a process for each model ──► engine::scheduler
//!        ◄── over the standard input and output of the process ◄──
//! ```
//!
//! A model runs in a process of its own, so that what ends that process, as a failed assertion in llama.cpp does, ends no
//! more than the requests in it.

pub mod protocol;
pub mod worker;
