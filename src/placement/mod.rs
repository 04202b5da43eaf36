//! How much memory a model and its context need, and how much there is.
//!
//! ```text
//! Shape          the numbers of a model ──┐
//! ContextSize    the numbers of a context ┴─► Estimate ──┐
//! Machine        memory of this machine ─────────────────┴─► fits, or NoRoom with what would fit; LayoutChoice
//! ```
//!
//! Of a model that nobody has loaded, or has at all:
//!
//! ```text
//! Outline   what its file has before the weights ─► Demand ─┐
//! Room      memory of a machine, there or not  ────────────┴─► Placement: which layers are where
//! Pace      what parts of it took ──────────────────────────► tokens a second
//! ```
//!
//! It uses only plain numbers: it loads no models, and creates no contexts.

mod cpu;
mod estimate;
mod layout;
mod machine;
mod outline;
mod pace;
mod place;
mod shape;

pub use cpu::{Caches, cpu_name, cpu_speed, measurement, n_cores};
pub use estimate::{ContextSize, Estimate};
pub use layout::{LayoutChoice, LayoutGain, Repack};
pub use machine::{Machine, NoRoom, program_bytes};
pub use outline::{HollowFile, Outline, Parts};
pub use pace::{Pace, most_writing};
pub use place::{Demand, DeviceRoom, Lacks, Placement, Room, place};
pub use shape::{Shape, heads};
