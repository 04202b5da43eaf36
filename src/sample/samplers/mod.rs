//! The samplers: one file and one line in the table for each.
//!
//! A sampler's file has its name, letter and place in the chain, its parameters with their ranges, defaults and help,
//! its algorithm, and its tests. Its line in the table makes it a field of [`Params`](super::Params), a variant of
//! [`SamplerKind`] and a stage of the chain. Flags, settings and help are derived from the table.
//!
//! | item         | what the table expects of a sampler's module                                               |
//! |--------------|--------------------------------------------------------------------------------------------|
//! | `SAMPLER`    | its [`Entry`]                                                                              |
//! | `Settings`   | the type of its field in `Params`: a number, or a struct where it has several parameters   |
//! | `defaults`   | returns the settings that llama.cpp has by default                                         |
//! | `Stage`      | what is carried out for each token: a type with `Apply`                                    |
//! | `stage`      | returns the stage for given settings; `None` if they turn it off                           |
//! | `tests`      | `any`, `examples`, `extremes` and `naive`, which the tests of all samplers use             |

pub mod adaptive_p;
pub mod dry;
pub mod logit_bias;
pub mod min_p;
pub mod mirostat;
pub mod penalties;
pub mod temperature;
pub mod top_k;
pub mod top_n_sigma;
pub mod top_p;
pub mod typical_p;
pub mod xtc;

use super::parameter::Parameter;
use super::params::SamplerKind;

/// The table: calls a macro with all samplers, in the order in which they are applied by default.
macro_rules! for_each_sampler {
    ($with:ident) => {
        $with! {
            LogitBias: logit_bias,
            Penalties: penalties,
            Dry: dry,
            TopNSigma: top_n_sigma,
            TopK: top_k,
            TypicalP: typical_p,
            TopP: top_p,
            MinP: min_p,
            Xtc: xtc,
            Temperature: temperature,
            Mirostat: mirostat,
            AdaptiveP: adaptive_p,
        }
    };
}
pub(super) use for_each_sampler;

/// A sampler's entry in the table.
#[derive(Debug)]
pub struct Entry {
    /// Its name in an order.
    pub name: &'static str,
    /// Other names for it. Underscores, hyphens and capitals make no difference.
    pub aliases: &'static [&'static str],
    /// Its letter in a short order; `None` if an order cannot contain it.
    pub letter: Option<char>,
    /// Its place in the chain.
    pub place: Place,
    /// Its parameters.
    pub parameters: &'static [Parameter],
}

/// The place of a sampler in the chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// Before all others, whatever the order says.
    First,
    /// Its position in the order. The default order is that of the table.
    InOrder,
    /// Its position in the order. The default order does not contain it, because llama.cpp's does not.
    OnRequest,
    /// After all others, whatever the order says. If several such samplers are on, only the first in the table is used.
    Last,
    /// Like [`Place::Last`], but it also replaces the order: only the samplers of `after` come before it.
    Alone {
        /// The order that is used instead.
        after: &'static [SamplerKind],
    },
}
