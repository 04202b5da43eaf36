//! Flags that say how tokens are drawn, for every command that writes text.

use crate::sample::Params;

/// How tokens are drawn.
#[derive(Debug, clap::Args)]
pub(super) struct SamplingArgs {
    /// Above 1 is more surprising, below 1 less; 0 always takes the most likely token
    #[arg(long, visible_alias = "temp", value_name = "T", default_value_t = Params::default().temperature,
          allow_negative_numbers = true,
          help_heading = "Sampling")]
    temperature: f32,

    /// Choose among this many of the most likely tokens; 0 among all
    #[arg(long, value_name = "K", default_value_t = Params::default().top_k, help_heading = "Sampling")]
    top_k: u32,

    /// Choose among the most likely tokens that make up this share of the probability; 1 among all
    #[arg(long, value_name = "P", default_value_t = Params::default().top_p, allow_negative_numbers = true,
          help_heading = "Sampling")]
    top_p: f32,

    /// Choose among tokens at least this likely, relative to the most likely one; 0 among all
    #[arg(long, value_name = "P", default_value_t = Params::default().min_p, allow_negative_numbers = true,
          help_heading = "Sampling")]
    min_p: f32,

    /// Where the random numbers begin: the same seed gives the same text [default: a new one]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    seed: Option<u64>,

    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "seed"], help_heading = "Sampling")]
    greedy: bool,
}

impl SamplingArgs {
    /// What the sampler is asked to do.
    pub fn params(&self) -> Params {
        if self.greedy {
            return Params::greedy();
        }
        Params {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
        }
    }

    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.greedy || self.temperature == 0.0
    }
}
