//! nibble converts Yi-34B and models of its family to 4-bit GGUF files, runs them, and compares quantizations.
//!
//! ```text
//!  Hugging Face folder                                                        text
//!  safetensors, .bin ──► checkpoint ─┐                                         ▲
//!  config.json ────────► arch ───────┼─► recipe ─► convert ─► model.gguf ─► engine ─► sample
//!  tokenizer.model ────► vocab ──────┘   (Plan)    (quant)      (gguf)         ▲
//!                                                                      chat, constrain
//! ```
//!
//! This is the library. The program `nibble` is the module `cli`, which uses the rest. Errors and warnings of the
//! library mention files, tensors and settings, but no flags.
//!
//! # Converting
//!
//! ```
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use nibble::convert::{Job, Options};
//! use nibble::recipe::Recipe;
//!
//! # let folder = tempfile::tempdir()?;
//! # let output = folder.path().join("yi-nano-Q4_K_M.gguf");
//! let options = Options { output: Some(output.clone()), ..Options::new(Recipe::find("Q4_K_M")?.clone()) };
//! let job = Job::prepare(Path::new("tests/data/yi-nano"), options)?;
//!
//! // Nothing is written yet. The plan says what type each tensor gets, and why.
//! for tensor in &job.plan().tensors {
//!     println!("{:40} {} ({})", tensor.name, tensor.ty, tensor.why);
//! }
//!
//! // Any thread may set the flag, and the job ends cleanly; the next one goes on where it was.
//! let cancel = AtomicBool::new(false);
//! job.execute(&(), &cancel)?;
//! assert_eq!(job.outputs(), [(output.clone(), std::fs::metadata(&output)?.len())]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Comparing
//!
//! ```
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use nibble::weights::WeightComparison;
//! # use nibble::{convert, recipe::Recipe};
//!
//! let source = Path::new("tests/data/yi-nano");
//! # let folder = tempfile::tempdir()?;
//! # let files = ["Q4_K_M", "Q8_0"].map(|recipe| folder.path().join(recipe).with_extension("gguf"));
//! # for (file, recipe) in files.iter().zip(["Q4_K_M", "Q8_0"]) {
//! #     let options = convert::Options::new(Recipe::find(recipe)?.clone());
//! #     let options = convert::Options { output: Some(file.clone()), ..options };
//! #     convert::Job::prepare(source, options)?.execute(&(), &AtomicBool::new(false))?;
//! # }
//! // How far the weights of each file are from those of the source.
//! let job = WeightComparison::prepare(source, &files, None)?;
//! let found = job.execute(&|_bytes, _of| (), &AtomicBool::new(false))?;
//! let mut errors = Vec::new();
//! for result in found {
//!     let overall = result?.overall.expect("the files have tensors in common");
//!     println!("relative error {:.4}, cosine {:.6}", overall.relative, overall.cosine);
//!     errors.push(overall.relative);
//! }
//! assert!(errors[0] > errors[1], "4 bits lose more than 8");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Words
//!
//! A *block* is 32 or 256 weights with their scales; a *row* runs along a tensor's fastest dimension; *importance* is a
//! weight per input channel (llama.cpp's "imatrix"); a *recipe* says which tensor gets which type; a *plan* is a recipe
//! applied to one model; a *draft* guesses tokens ahead, which the model then reads at once.
//!
//! `docs/architecture.md` has the order of the modules, and what to touch to add something.

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
#[cfg(feature = "llama")]
pub mod evaluate;
pub mod gguf;
pub mod lanes;
pub mod linear;
#[cfg(feature = "llama")]
pub mod llama;
pub mod pass;
#[cfg(feature = "llama")]
pub mod placement;
pub mod quant;
pub mod recipe;
#[cfg(feature = "llama")]
pub mod remote;
pub mod report;
pub mod sample;
#[cfg(feature = "serve")]
pub mod serve;
pub mod statistics;
pub mod trace;
pub mod transformer;
pub mod verify;
pub mod vocab;
pub mod weights;
