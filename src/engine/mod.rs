//! Sequences of tokens over a model's context: generation, speculation, scoring, and what is kept of prompts.

mod generate;
mod loglikelihood;
pub(crate) mod prompt_cache;
mod speculate;
mod turn;

pub use generate::{Finish, GenerateOptions, Generated, Step, TokenLogprobs, Writer, generate};
pub use loglikelihood::{Branch, Loglikelihoods};
pub use prompt_cache::{CacheError, PromptCache};
pub use speculate::{Draft, DraftOptions, Speculation, take_or_redraw};
pub use turn::{Answer, Assistant, Event, EventSink, TurnEnd, TurnError, TurnOptions, TurnStats};
