//! Flags that say how tokens are drawn, for every command that writes text.

use clap::ArgAction;

use crate::sample::{Params, SamplerKind, parse_bias};
#[cfg(feature = "llama")]
use crate::{
    chat::TextCodec,
    sample::{Error, Sampler},
};

const HEADING: &str = "Sampling";

/// A number flag: clap takes its name and help from the field, its default from `Params`.
macro_rules! sampling_args {
    (
        $( numbers { $( $(#[$number_meta:meta])* $number:ident ),* $(,)? } )?
        $( counts { $( $(#[$count_meta:meta])* $count:ident ),* $(,)? } )?
    ) => {
        /// How tokens are drawn.
        #[derive(Debug, clap::Args)]
        #[command(next_help_heading = HEADING)]
        pub(super) struct SamplingArgs {
            $($( $(#[$number_meta])*
            #[arg(long, value_name = "N", default_value_t = Params::default().$number, allow_negative_numbers = true,
                  value_parser = |text: &str| checked(stringify!($number), text, |params| params.$number))]
            $number: f32, )*)?

            $($( $(#[$count_meta])*
            #[arg(long, value_name = "N", default_value_t = Params::default().$count, allow_negative_numbers = true,
                  value_parser = |text: &str| checked(stringify!($count), text, |params| params.$count))]
            $count: u32, )*)?

            /// Make a token more or less likely: its number, + or -, and how much, as in 15043+1; 15043-inf rules it out.
            /// Can be given several times
            #[arg(short = 'l', long, value_name = "TOKEN(+/-)BIAS", action = ArgAction::Append, value_parser = parse_bias)]
            logit_bias: Vec<(u32, f32)>,

            /// Never end by itself: the model's end tokens are ruled out
            #[arg(long)]
            ignore_eos: bool,

            /// With --dry-multiplier: a text over which no repetition is continued, in place of the line break, ':', '"'
            /// and '*'; 'none' for no such text. Can be given several times
            #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true)]
            dry_sequence_breaker: Vec<String>,

            /// Which samplers to use, and in which order [default: penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]
            #[arg(long, value_name = "NAMES", value_parser = Order::parse_list)]
            samplers: Option<Order>,

            /// The same with a letter each [default: edskypmxt]
            #[arg(long, visible_alias = "sampling-seq", value_name = "LETTERS", conflicts_with = "samplers",
                  value_parser = Order::parse_letters)]
            sampler_seq: Option<Order>,

            /// Where the random numbers begin: the same seed gives the same text; -1 for a new one [default: a new one]
            #[arg(short = 's', long, value_name = "N", allow_negative_numbers = true, value_parser = Seed::parse)]
            seed: Option<Seed>,

            /// Always take the most likely token
            #[arg(long, conflicts_with_all = [
                "temperature", "top_k", "top_p", "min_p", "seed", "typical_p", "top_n_sigma", "xtc_probability",
                "dynatemp_range", "mirostat", "adaptive_target",
            ])]
            greedy: bool,
        }

        impl SamplingArgs {
            /// What the sampler is asked to do.
            pub fn params(&self) -> Params {
                let order = self.samplers.as_ref().or(self.sampler_seq.as_ref());
                let mut params = Params {
                    $($( $number: self.$number, )*)?
                    $($( $count: self.$count, )*)?
                    logit_bias: self.logit_bias.clone(),
                    samplers: order.map_or(SamplerKind::DEFAULT_ORDER.to_vec(), |order| order.0.clone()),
                    seed: self.seed.and_then(|seed| seed.0),
                    ..Params::default()
                };
                if !self.dry_sequence_breaker.is_empty() {
                    // The last 'none' takes back what came before it, as in llama.cpp.
                    let given = &self.dry_sequence_breaker;
                    let from = given.iter().rposition(|text| text == "none").map_or(0, |none| none + 1);
                    params.dry_sequence_breakers = given[from..].iter().map(|text| text.replace("\\n", "\n")).collect();
                }
                if self.greedy {
                    let Params { temperature, top_k, top_p, min_p, seed, .. } = Params::greedy();
                    params = Params { temperature, top_k, top_p, min_p, seed, ..params };
                }
                params
            }
        }
    };
}

sampling_args! {
    numbers {
        /// Above 1 is more surprising, below 1 less; 0 always takes the most likely token
        #[arg(visible_alias = "temp")]
        temperature,
        /// Choose among the most likely tokens that make up this share of the probability; 1 among all
        top_p,
        /// Choose among tokens at least this likely, relative to the most likely one; 0 among all
        min_p,
        /// Choose among the tokens that are about as surprising as can be expected here, up to this share of the
        /// probability; 1 among all
        #[arg(visible_alias = "typical")]
        typical_p,
        /// Choose among tokens whose score is at most this many standard deviations below the best; 0 or less among all
        #[arg(visible_alias = "top-nsigma")]
        top_n_sigma,
        /// Make tokens that were there less likely: above 1 by more, 1 not at all
        repeat_penalty,
        /// Make tokens that were there less likely, by this for each time they were there
        frequency_penalty,
        /// Make tokens that were there less likely, by this however often they were there
        presence_penalty,
        /// Against repeated phrases (DRY): how much less likely a token gets that would repeat one; 0 for off, 0.8 is usual
        dry_multiplier,
        /// With --dry-multiplier: how many times stronger that gets with every repeated token
        dry_base,
        /// How often to leave out the most likely tokens in favour of others (XTC), from 0 to 1; 0 never
        xtc_probability,
        /// With --xtc-probability: leave out tokens more likely than this, all but the last of them
        xtc_threshold,
        /// Move the temperature up by this where the model is uncertain, and down where it is certain
        dynatemp_range,
        /// With --dynatemp-range: above 1 only great uncertainty moves it up, below 1 a little does
        #[arg(visible_alias = "dynatemp-exp")]
        dynatemp_exponent,
        /// With --mirostat: how surprising the text should be, in bits a token
        #[arg(visible_alias = "mirostat-ent")]
        mirostat_tau,
        /// With --mirostat: how fast it corrects itself
        #[arg(visible_alias = "mirostat-lr")]
        mirostat_eta,
        /// Prefer tokens near this probability, from 0 to 1 (adaptive-p); below 0 for off
        adaptive_target,
        /// With --adaptive-target: how slowly it forgets what was chosen, from 0 to 0.99
        adaptive_decay,
    }
    counts {
        /// Choose among this many of the most likely tokens; 0 among all
        top_k,
        /// How many of the last tokens the three penalties look at; -1 at all
        repeat_last_n,
        /// With --dry-multiplier: repetitions up to this many tokens are free
        dry_allowed_length,
        /// With --dry-multiplier: how many of the last tokens are searched for repetitions; -1 all
        dry_penalty_last_n,
        /// Keep the text equally surprising throughout (Mirostat): 1 or 2 for its first or second version, 0 for off.
        /// Only --temperature and --logit-bias count besides
        mirostat,
        /// Whatever is cut away, leave at least this many tokens to choose from
        min_keep,
    }
}

#[cfg(feature = "llama")]
impl SamplingArgs {
    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        Sampler::new(&self.params()).is_ok_and(|sampler| sampler.is_greedy())
    }

    /// The sampler for a model with this tokenizer.
    ///
    /// # Errors
    /// Where a parameter lies outside its range.
    pub fn sampler(&self, codec: &dyn TextCodec) -> Result<Sampler, Error> {
        let mut params = self.params();
        if self.ignore_eos {
            let ids = 0..u32::try_from(codec.n_tokens()).unwrap_or(u32::MAX);
            params.logit_bias.extend(ids.filter(|id| codec.is_end(*id)).map(|id| (id, f32::NEG_INFINITY)));
        }
        Sampler::with_text(&params, codec.n_tokens(), |id| codec.bytes(id))
    }
}

/// A value within the range of the parameter it is for.
fn checked<T>(name: &str, text: &str, get: impl Fn(&Params) -> T) -> Result<T, crate::sample::Error> {
    let mut params = Params::default();
    params.set(name, text)?;
    Ok(get(&params))
}

/// An order of samplers, as one value.
#[derive(Clone, Debug)]
struct Order(Vec<SamplerKind>);

impl Order {
    fn parse_list(text: &str) -> Result<Self, crate::sample::Error> {
        SamplerKind::parse_list(text).map(Self)
    }

    fn parse_letters(text: &str) -> Result<Self, crate::sample::Error> {
        SamplerKind::parse_letters(text).map(Self)
    }
}

#[derive(Clone, Copy, Debug)]
struct Seed(Option<u64>);

impl Seed {
    fn parse(text: &str) -> Result<Self, crate::sample::Error> {
        let mut params = Params::default();
        params.set("seed", text)?;
        Ok(Self(params.seed))
    }
}
