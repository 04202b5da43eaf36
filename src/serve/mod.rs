//! HTTP: the APIs that people's tools speak, answered by processes that run models.
//!
//! ```text
//! client ─► server ─► guard ─► routes ─► run ─► backend ─► nibble engine
//!           limits    who may  JSON to   task   processes
//!           on time   ask      wishes     │
//!                                         ▼ answers
//! client ◄─ sse ◄─── routes ◄─ answer: reasoning, text, calls
//! ```
//!
//! | file          | what it does                                                                   |
//! |---------------|--------------------------------------------------------------------------------|
//! | `protocol`    | messages between this process and those that run models                        |
//! | `worker`      | the process that runs a model                                                  |
//! | `supervisor`  | keeps such a process alive                                                     |
//! | `models`      | the models that are served, each with its process                              |
//! | `backend`     | how routes reach models; `fake` recites, for tests                             |
//! | `server`      | listens, bounds the time of slow clients, ends cleanly                         |
//! | `guard`       | keys, hosts, origins, numbers of requests, the log                             |
//! | `body`        | bodies, bounded in size, depth and time                                        |
//! | `routes`      | a file for each API, and the table of all routes                               |
//! | `wire`        | types on the wire that several routes share                                    |
//! | `sampling`    | fields that say how tokens are chosen                                          |
//! | `schemas`     | schemas that can be enforced, and in which words                               |
//! | `run`         | from what a request wants to a task, from answers to steps                     |
//! | `answer`      | what a model writes: reasoning, text and calls                                 |
//! | `sse`         | streams of events                                                              |
//! | `page`        | the chat at `/`, for browsers                                                  |
//! | `openapi`     | the document that describes all this, made from the types                      |
//!
//! Nothing is cut silently: a prompt that does not fit is an error with both numbers, and an answer that ended early says
//! why.

pub mod answer;
pub mod app;
pub mod backend;
mod body;
pub mod error;
#[cfg(test)]
mod fake;
mod guard;
pub mod log;
mod metrics;
pub mod models;
pub mod openapi;
pub mod options;
pub mod page;
mod prompt_ends;
pub mod protocol;
pub mod routes;
pub mod run;
pub mod sampling;
pub mod schemas;
pub mod server;
mod sse;
pub mod store;
pub mod supervisor;
#[cfg(test)]
mod tests;
pub mod wire;
pub mod worker;
