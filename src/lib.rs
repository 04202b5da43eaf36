//! nibble puts Yi-34B, 01.AI's open bilingual language model, on the laptop a person already owns.
//!
//! ```text
//!  Hugging Face folder                                                        text
//!  safetensors, .bin ──► checkpoint ─┐                                         ▲
//!  config.json ────────► arch ───────┼─► recipe ─► convert ─► model.gguf ─► runtime ─► sample
//!  tokenizer.model ────► vocab ──────┘   (Plan)    (quant)      (gguf)         ▲
//!                                                                      chat, constrain
//! ```
//!
//! | module         | what it does                                                                    |
//! |----------------|---------------------------------------------------------------------------------|
//! | [`mmap`]       | the only file mapping                                                           |
//! | [`gguf`]       | the file format: values, reader, writer, names of the types                     |
//! | [`checkpoint`] | Hugging Face folders: tensors, configuration, model card                        |
//! | [`arch`]       | one file an architecture: names, hyperparameters, roles, Q/K permutation        |
//! | [`vocab`]      | tokenizer files to GGUF metadata, and text to token ids                         |
//! | [`quant`]      | one file a block format; several blocks at once, by what the CPU has            |
//! | [`recipe`]     | which tensor gets which type: recipes as data, and the plan made from one       |
//! | [`convert`]    | carries out a plan in one pass                                                  |
//! | [`verify`]     | whether a GGUF is whole, and what nibble makes of its source                    |
//! | [`quality`]    | which file is better, by how much, and whether that is noise                    |
//! | [`sample`]     | from logits to a token                                                          |
//! | [`chat`]       | conversations, chat templates and stop rules                                    |
//! | `runtime`      | the only user of llama.cpp (feature `llama`)                                    |
//! | `constrain`    | text that keeps to a JSON schema, a regex or a grammar (feature `llama`)         |
//! | `bench`        | how fast a model runs here, and how fast it could (feature `llama`)             |
//! | [`cli`]        | the subcommands                                                                 |
//!
//! Words: a *block* is 32 or 256 weights with their scales; a *row* runs along a tensor's fastest dimension;
//! *importance* is a weight per input channel (llama.cpp's "imatrix"); a *recipe* says which tensor gets which type;
//! a *plan* is a recipe applied to one model; a *draft* guesses tokens ahead, which the model then reads at once.

#![warn(missing_docs)]

pub mod arch;
pub mod base;
#[cfg(feature = "llama")]
pub mod bench;
pub mod calibration;
pub mod chat;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "constrain")]
pub mod constrain;
pub mod convert;
#[cfg(feature = "llama")]
pub mod engine;
pub mod evaluate;
pub mod gguf;
#[cfg(feature = "llama")]
pub mod llama;
#[cfg(feature = "llama")]
pub mod placement;
pub mod quant;
pub mod recipe;
pub mod report;
pub mod sample;
pub mod statistics;
pub mod verify;
pub mod vocab;
pub mod weights;
