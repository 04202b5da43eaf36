//! Layers of a model on other machines.
//!
//! ```text
//!  this machine                                       a worker
//!  llama.cpp ─── 127.0.0.1 ─── relay ══ network ══ Worker ─── 127.0.0.1 ─── its engine: a process for each session
//!                              Link  ── control ── heartbeats, and why the engine ended
//! ```
//!
//! ggml's RPC computes graphs of another machine's memory. It ends the process when its connection breaks, waits for ever when
//! a cable is pulled, serves one client at a time, and does not say who failed. So neither end of it touches the network: each
//! speaks to a relay on its own machine, and the relays know how to end. Nothing is encrypted, and nobody is asked who they
//! are: whoever reaches a worker can use its memory, as with ggml's own server. Workers listen on private addresses only.
//!
//! | file | holds |
//! |---|---|
//! | `address` | where a worker is, and which addresses are private |
//! | `wire` | what the two ends tell each other before and beside ggml's bytes |
//! | `relay` | copying between two connections |
//! | `link` | this end: connecting, and what happens when a worker goes away |
//! | `worker` | the other end |
//! | `store` | weights that a worker keeps on its disk, so that they are sent once |

mod address;
mod link;
mod relay;
mod store;
mod wire;
mod worker;

pub use address::{Address, PORT, is_private};
pub use link::{Error, connect, lost};
pub use store::Store;
pub use wire::Offer;
pub use worker::{Arguments, Event, Worker, WorkerOptions};
