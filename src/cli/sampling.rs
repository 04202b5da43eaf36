//! Flags that say how tokens are drawn, for every command that writes text.

use clap::ArgAction;

use crate::sample::{Params, SamplerKind, parse_bias};
#[cfg(feature = "llama")]
use crate::{
    sample::{Error, Sampler},
    vocab::Tokenizer,
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
            #[arg(long, value_name = "N", default_value_t = Params::default().$number, allow_negative_numbers = true)]
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
            /// What the sampler is asked to do. Whether it is within its ranges is for [`Params::check`] to say.
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
        /// How many of the last tokens the three penalties look at; -1 for the whole text
        repeat_last_n,
        /// With --dry-multiplier: repetitions up to this many tokens are free
        dry_allowed_length,
        /// With --dry-multiplier: how many of the last tokens are searched for repetitions; -1 for the whole text
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
    pub fn sampler(&self, codec: &dyn Tokenizer) -> Result<Sampler, Error> {
        Sampler::with_text(&self.params_for(codec), codec.n_tokens(), |id| codec.bytes(id))
    }

    /// What a sampler for this tokenizer is asked to do.
    pub fn params_for(&self, codec: &dyn Tokenizer) -> Params {
        let mut params = self.params();
        if self.ignore_eos {
            let ids = 0..u32::try_from(codec.n_tokens()).unwrap_or(u32::MAX);
            params.logit_bias.extend(ids.filter(|id| codec.is_end(*id)).map(|id| (id, f32::NEG_INFINITY)));
        }
        params
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn parse(line: &str) -> Result<Params, clap::Error> {
        Line::try_parse_from(std::iter::once("run").chain(line.split_whitespace())).map(|line| line.sampling.params())
    }

    #[test]
    fn nothing_typed_is_what_llama_cpp_does() {
        assert_eq!(parse("").unwrap(), Params::default());
        assert_eq!(parse("--greedy").unwrap(), Params::greedy());
    }

    /// Lines as people have them in their scripts.
    #[test]
    fn flags_are_spelled_as_in_llama_cpp() {
        let params = parse(
            "--temp 0.5 --top-k -1 --top-p 1 --min-p 0 --typical 0.9 --top-nsigma 1.5 --repeat-last-n 7 \
             --repeat-penalty 1.1 --frequency-penalty -0.5 --presence-penalty 0.25 --dry-multiplier 0.8 --dry-base 2 \
             --dry-allowed-length 3 --dry-penalty-last-n -1 --dry-sequence-breaker \\n --dry-sequence-breaker -- \
             --xtc-probability 0.5 --xtc-threshold 0.2 --dynatemp-range 0.3 --dynatemp-exp 2 --mirostat 2 \
             --mirostat-lr 0.2 --mirostat-ent 4 --adaptive-target 0.4 --adaptive-decay 0.5 -l 15043+1 \
             --logit-bias 2-inf --samplers top_k;min-p;temperature --seed 9 --min-keep 2",
        )
        .unwrap();
        let wanted = Params {
            temperature: 0.5,
            dynatemp_range: 0.3,
            dynatemp_exponent: 2.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 0.9,
            top_n_sigma: 1.5,
            xtc_probability: 0.5,
            xtc_threshold: 0.2,
            repeat_last_n: 7,
            repeat_penalty: 1.1,
            frequency_penalty: -0.5,
            presence_penalty: 0.25,
            dry_multiplier: 0.8,
            dry_base: 2.0,
            dry_allowed_length: 3,
            dry_penalty_last_n: u32::MAX,
            dry_sequence_breakers: vec!["\n".to_string(), "--".to_string()],
            mirostat: 2,
            mirostat_tau: 4.0,
            mirostat_eta: 0.2,
            adaptive_target: 0.4,
            adaptive_decay: 0.5,
            logit_bias: vec![(15043, 1.0), (2, f32::NEG_INFINITY)],
            samplers: vec![SamplerKind::TopK, SamplerKind::MinP, SamplerKind::Temperature],
            min_keep: 2,
            seed: Some(9),
        };
        assert_eq!(params, wanted);
        assert_eq!(parse("--sampler-seq kmt").unwrap().samplers, wanted.samplers);
        assert_eq!(parse("--seed -1").unwrap().seed, None);
        assert_eq!(parse("--dry-sequence-breaker none").unwrap().dry_sequence_breakers, [] as [&str; 0]);
    }

    #[test]
    fn what_is_out_of_range_or_contradicts_itself_is_refused_in_a_sentence() {
        for (line, words) in [
            ("--temp warm", "invalid float literal"),
            ("--top-k x", "it has to be a whole number, 0 for all"),
            ("--mirostat 3", "it has to be 0 for off, 1 or 2"),
            ("--samplers top_q", "did you mean"),
            ("--sampler-seq kq", "there is no sampler 'q'"),
            ("--logit-bias 5=1", "15043+1"),
            ("--seed x", "a whole number"),
            ("--greedy --temp 1", "cannot be used with"),
            ("--samplers top_k --sampler-seq k", "cannot be used with"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
        for (line, words) in [
            ("--temp -1", "temperature cannot be '-1'; it has to be a number of 0 or more"),
            ("--top-p 1.5", "it has to be a number from 0 to 1"),
            ("--repeat-penalty 0", "it has to be a number above 0"),
        ] {
            let error = parse(line).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    /// A parameter without a flag, or the other way round, is one that was forgotten.
    #[test]
    fn every_parameter_has_a_flag_with_its_default() {
        let command = Line::command();
        for name in Params::names() {
            let flag = name.replace("dry_sequence_breakers", "dry_sequence_breaker");
            let argument = command.get_arguments().find(|argument| argument.get_id() == flag.as_str());
            let argument = argument.unwrap_or_else(|| panic!("no flag for {name}"));
            assert_eq!(argument.get_help_heading(), Some("Sampling"), "{name}");
            if let [default] = argument.get_default_values() {
                assert_eq!(default.to_str().unwrap(), Params::default().get(name).unwrap(), "{name}");
            }
        }
    }
}
