//! Structured output: constrains text to a JSON schema, a regular expression or a grammar.
//!
//! ```text
//! JSON schema ─┐                                            token, as soon as it is sampled
//! regex ───────┼─► Grammar ─┐                                          │
//! Lark, GBNF ──┘  checked   ├─► Constraint ──── its own thread ◄────────┘
//! Tokenizer ────► Tokens ───┘   mask(), accept()   computes the next mask while
//!                 a trie, once per model           the model evaluates the token
//! ```
//!
//! The `llguidance` crate computes which tokens may come next: a lexer of regular expression derivatives below an
//! Earley parser, over a trie of the vocabulary's bytes. This module checks user input before it gets there
//! ([`Grammar`]), translates llama.cpp's GBNF, limits time and memory, and keeps numbers and nesting within what JSON
//! parsers accept.
//!
//! Text never spells a control token: control tokens have no bytes here, and masks do not allow them, except for the
//! model's end tokens where the text may end.

mod constraint;
mod gbnf;
mod grammar;
mod guard;
mod limited;
mod rewrite;
mod schema;
mod tokens;

pub use constraint::Constraint;
pub use grammar::Grammar;
pub use tokens::Tokens;

/// Why text cannot be constrained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The grammar is not valid, is unsatisfiable, or is not supported.
    #[error("{what}: {why}")]
    Refused {
        /// `the JSON schema`, `the regular expression` or `the grammar`.
        what: &'static str,
        /// What is wrong, and where.
        why: String,
    },
    /// The grammar takes too long to prepare.
    #[error("{what} takes longer than {seconds} seconds to prepare; simplify it")]
    TooSlow {
        /// As above.
        what: &'static str,
        /// The time limit.
        seconds: u64,
    },
    /// The vocabulary is not supported.
    #[error("text in the model's vocabulary cannot be constrained: {0}")]
    Vocabulary(String),
    /// The mask did not allow the token.
    #[error("{what} does not allow token {token} here")]
    NotAllowed {
        /// The token.
        token: u32,
        /// As above.
        what: &'static str,
    },
    /// The next mask could not be computed.
    #[error("{what} is too complex to continue here: {why}")]
    Failed {
        /// As above.
        what: &'static str,
        /// What failed.
        why: String,
    },
}
