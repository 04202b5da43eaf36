//! What a model writes: reasoning, text and tool calls, told apart as they come.
//!
//! ```text
//! <think>They ask ...</think>Let me look. <tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>
//!        └Reasoning─┘        └─ Text ───┘                      └Call┘                └─── Arguments ──┘
//! ```
//!
//! | file      | what it does                                                                      |
//! |-----------|-----------------------------------------------------------------------------------|
//! | `style`   | how a model writes calls and reasoning, found in its chat template                |
//! | `parser`  | from pieces of text to events; the pieces make no difference                      |
//! | `call`    | calls in JSON, followed character by character                                    |
//! | `json`    | whether characters are JSON, without holding them                                 |
//! | `grammar` | what holds a model to calls that exist, with arguments that satisfy their schemas |
//! | `tools`   | tools for templates that know none                                                |
//!
//! Nothing that a model writes is lost: what begins like a call and is none is text. Only markers, and white space next
//! to them, are left out.

mod call;
pub mod grammar;
mod json;
mod parser;
mod style;
#[cfg(test)]
mod tests;
mod tools;

pub use parser::Parser;
pub use style::{MARKERS, Markers, Style, reasoning_of};
pub use tools::{Tool, described, rewritten};

/// What came next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Reasoning goes on.
    Reasoning(String),
    /// The answer goes on.
    Text(String),
    /// A call begins.
    Call {
        /// Its number in the answer, from 0.
        index: usize,
        /// The name of the tool.
        name: String,
    },
    /// The arguments of a call go on.
    Arguments {
        /// The number of the call.
        index: usize,
        /// The next part of the JSON.
        json: String,
    },
    /// A call ends.
    CallEnded {
        /// Its number.
        index: usize,
        /// Whether its arguments are a whole JSON object.
        complete: bool,
    },
}

/// An answer as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The reasoning; empty if there is none.
    pub reasoning: String,
    /// The answer without it.
    pub text: String,
    /// The calls, in order.
    pub calls: Vec<CollectedCall>,
}

/// A call as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectedCall {
    /// The name of the tool.
    pub name: String,
    /// The JSON of the arguments, as it was written.
    pub arguments: String,
    /// Whether that is a whole JSON object.
    pub complete: bool,
}

impl Collected {
    /// Adds what came next.
    pub fn push(&mut self, event: &Event) {
        match event {
            Event::Reasoning(text) => self.reasoning.push_str(text),
            Event::Text(text) => self.text.push_str(text),
            Event::Call { name, .. } => self.calls.push(CollectedCall { name: name.clone(), ..Default::default() }),
            Event::Arguments { index, json } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    call.arguments.push_str(json);
                }
            }
            Event::CallEnded { index, complete } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    call.complete = *complete;
                }
            }
        }
    }
}

/// Joins neighbours of the same kind.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(Event::Reasoning(text)), Event::Reasoning(more)) | (Some(Event::Text(text)), Event::Text(more)) => {
                text.push_str(&more);
            }
            (Some(Event::Arguments { index, json }), Event::Arguments { index: same, json: more })
                if *index == same =>
            {
                json.push_str(&more);
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}
