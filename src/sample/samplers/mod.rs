//! The samplers: a file each, and a line each in the table.
//!
//! A sampler's file has its name, letter and place in the chain, its parameters with their ranges, defaults and help, what
//! it does, and its tests. Its line in the table makes it a field of [`Params`](super::Params), a variant of
//! [`SamplerKind`] and a stage of the chain; and from the table come flags, settings and help.
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

/// The table: calls a macro with all samplers, in the order in which they are carried out by default.
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

/// What is known about a sampler.
#[derive(Debug)]
pub struct Entry {
    /// Its name in an order.
    pub name: &'static str,
    /// Other names for it. Underscores, hyphens and capitals make no difference.
    pub aliases: &'static [&'static str],
    /// Its letter in a short order; `None` if an order cannot have it.
    pub letter: Option<char>,
    /// Where it comes in the chain.
    pub place: Place,
    /// What it can be asked for.
    pub parameters: &'static [Parameter],
}

/// Where a sampler comes in the chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// Before all others, whatever the order says.
    First,
    /// Where the order has it; by default, where the table has it.
    InOrder,
    /// Where the order has it; the default order does not, since llama.cpp's does not.
    OnRequest,
    /// After all others, whatever the order says. Of several that are on, only the first of the table is used.
    Last,
    /// Like [`Place::Last`], and in place of the order: only those of `after` come before it.
    Alone {
        /// The order that is used.
        after: &'static [SamplerKind],
    },
}
