//! Chat: from messages to a prompt's tokens, and from tokens to text that stops where it should.
//!
//! ```text
//! messages ──► Template ──► Prompt ──► encode ──► token ids          token bytes ──► Utf8Stream ──► StopText ──► text
//!              the model's  spans:                markers of the     whole           held back while it
//!              own Jinja    template / message    template only      characters      may become a stop text
//! ```
//!
//! What a person wrote never becomes a control token, whatever it spells: `<|im_end|>` in a message is seven
//! characters that the model reads as such. Only markers that the template itself wrote become tokens. [`Template`]
//! therefore says of every piece of a prompt where it came from, and [`encode`] looks for markers in the template's
//! pieces alone.
//!
//! A [`Conversation`] keeps what was said, and the tokens that the model wrote its answers with; [`encode_conversation`]
//! spells them so again, and a turn costs only what is new in it.
//!
//! Nothing here knows llama.cpp: a tokenizer is a [`Tokenizer`].

mod conversation;
mod prompt;
mod stream;
mod template;

pub use conversation::{Conversation, Fit, SavedError, Written};
pub use prompt::{Origin, Prompt, Span, Spoken, after_last_marker, encode, encode_conversation, encode_inside};
pub use stream::{StopText, Utf8Stream};
pub use template::{CHATML, Error, Message, Template};
