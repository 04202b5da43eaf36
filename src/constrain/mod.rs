//! Structured output: text that keeps to a JSON schema, a regular expression or a grammar.
//!
//! ```text
//! JSON schema ─┐                                             token, as soon as it is drawn
//! regex ───────┼─► Grammar ─┐                                          │
//! Lark, GBNF ──┘  checked   ├─► Constraint ──── thread of its own ◄─────┘
//! Tokenizer ────► Tokens ───┘   mask(), accept()   works out what may come next
//!                 a trie, once a model             while the model evaluates the token
//! ```
//!
//! What may come next is worked out by the `llguidance` crate: a lexer of regular expression derivatives below an
//! Earley parser, over a trie of the vocabulary's bytes. This module checks what people ask for before it gets there
//! ([`Grammar`]), translates llama.cpp's GBNF, bounds time and memory, and keeps numbers and nesting within what JSON
//! readers take.
//!
//! Text never spells a control token: those have no bytes here, and no mask allows them but the model's end tokens,
//! where the text may end.

mod constraint;
mod gbnf;
mod grammar;
mod guard;
mod limited;
mod schema;
mod tokens;

pub use constraint::Constraint;
pub use grammar::Grammar;
pub use tokens::Tokens;

/// Why text cannot be held to a grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What was asked for is not well formed, not possible, or cannot be kept to.
    #[error("{what}: {why}")]
    Refused {
        /// `the JSON schema`, `the regular expression` or `the grammar`.
        what: &'static str,
        /// What is wrong, and where.
        why: String,
    },
    /// It would take too long to prepare.
    #[error("{what} takes longer than {seconds} seconds to prepare; a simpler one is needed")]
    TooSlow {
        /// As above.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The vocabulary does not lend itself.
    #[error("the model's vocabulary cannot be held to a grammar: {0}")]
    Vocabulary(String),
    /// A token that the mask did not allow.
    #[error("token {token} does not go on a text that keeps to {what}")]
    NotAllowed {
        /// The token.
        token: u32,
        /// As above.
        what: &'static str,
    },
    /// What may come next could not be worked out.
    #[error("{what} is too complex to go on with here: {why}")]
    Failed {
        /// As above.
        what: &'static str,
        /// What gave up.
        why: String,
    },
}
