//! Sequences of tokens in a model's context: generation, speculation, scoring, and prompts saved on disk.
//!
//! ```text
//! open ──► Session: one Sequence in a context of its own ◄── generate ◄──── run, chat, tasks
//!                            │                                   │
//!                            ▼                                   ▼
//!                         Decoder ◄── evaluate_together      Generation::step(logits) ──► Action
//!                   llama::Context, or a table in tests          Sampler, Constraint, Draft
//!
//! Loglikelihoods: many sequences in one context ◄── tasks
//! scheduler: many sequences in one context, and prefixes kept for later ◄── serve
//! ```
//!
//! A [`Generation`] decides and a driver evaluates: [`generate`] for one text, a [`scheduler`] for many. Nothing here prints.

mod decoder;
mod embed;
mod error;
#[cfg(test)]
mod fake;
mod generate;
mod generation;
mod loglikelihood;
mod open;
mod prompt_cache;
pub mod scheduler;
mod sequence;
mod session;
mod speculate;
mod spread;
mod state_file;
#[cfg(test)]
mod tests;
mod turn;

pub use decoder::{Decoder, SequenceDecoder, State};
pub use embed::{Embedder, Embedding};
pub use error::{DraftError, DraftSetting, Error};
pub use generate::{Generated, generate};
pub use generation::{Action, Finish, GenerateOptions, Generation, Step, TokenLogprobs, Writer, token_bytes};
pub use loglikelihood::{Branch, Loglikelihoods};
pub use open::{OnLayout, OpenOptions, layout, memory, open};
pub use prompt_cache::{CacheError, CacheSetting, PromptCache};
pub use sequence::{LogitRows, Logits, Sequence, Share, evaluate_together};
pub use session::{Session, SessionOptions};
pub use speculate::{Draft, DraftOptions, Speculation, take_or_redraw};
pub use spread::{OnSpread, Spread};

pub use turn::{Answer, Assistant, Event, EventSink, TurnEnd, TurnError, TurnOptions, TurnStats, spells};
