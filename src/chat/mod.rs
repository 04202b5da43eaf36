//! Chat: encodes messages as a prompt, and decodes tokens to text up to a stop text.
//!
//! ```text
//! messages ──► Template ──► Prompt ──► encode ──► token ids          token bytes ──► Utf8Stream ──► StopText ──► text
//!              the model's  spans:                markers of the     whole           held back while it
//!              own Jinja    template / message    template only      characters      may become a stop text
//! ```
//!
//! A message never becomes a control token, whatever it spells: the model reads `<|im_end|>` in a message as plain
//! text. Only markers that the template itself wrote become tokens. [`Template`] therefore records where each span of a
//! prompt came from, and [`encode`] looks for markers in the template's spans only.
//!
//! A [`Conversation`] keeps the messages, and the tokens in which the model wrote its answers. [`encode_conversation`]
//! uses these tokens again, so that the context still holds the beginning of the next prompt, and only what is new has
//! to be read.
//!
//! Nothing here depends on llama.cpp. Tokenizers are passed as [`Tokenizer`](crate::vocab::Tokenizer).

mod conversation;
mod prompt;
mod stream;
mod template;

pub use conversation::{Conversation, Fit, SavedError, Written};
pub use prompt::{Origin, Prompt, Span, Spoken, after_last_marker, encode, encode_conversation, encode_text};
pub use stream::{StopText, Utf8Stream};
pub use template::{CHATML, Error, Message, Template, ToolsError, tools_from_json};
