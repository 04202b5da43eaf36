//! How much memory a model and its context need, and how much there is.
//!
//! ```text
//! Shape          the numbers of a model ──┐
//! ContextSize    the numbers of a context ┴─► Estimate ──┐
//! Machine        memory of this machine ─────────────────┴─► fits, or NoRoom with what would fit; LayoutChoice
//! ```
//!
//! It uses only plain numbers: it loads no files, and creates no contexts.

mod cpu;
mod estimate;
mod layout;
mod machine;
mod shape;

pub use cpu::{Caches, cpu_name, n_cores};
pub use estimate::{ContextSize, Estimate};
pub use layout::{LayoutChoice, LayoutGain, Repack};
pub use machine::{Machine, NoRoom};
pub use shape::Shape;
