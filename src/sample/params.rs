//! What a sampler can be asked for: names, ranges and defaults.

use std::fmt::Display;

use super::Error;
use super::dry::BREAKER_BYTES;
use crate::base::suggest;

/// What a sampler is asked to do. Names, defaults and meanings are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Logits are divided by this: above 1 flattens, below 1 sharpens, 0 always takes the most likely token.
    pub temperature: f32,
    /// How far the temperature moves up where the model is uncertain and down where it is certain; 0 keeps it still.
    pub dynatemp_range: f32,
    /// The power of the uncertainty, from 0 to 1, that moves the temperature.
    pub dynatemp_exponent: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens whose probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely, relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest to what is to be expected, until their probabilities add up to this;
    /// 1 keeps all.
    pub typical_p: f32,
    /// Keep tokens whose logit is at most this many standard deviations below the highest; 0 and below keeps all.
    pub top_n_sigma: f32,
    /// How often to exclude the most likely tokens, as a share of all draws; 0 never.
    pub xtc_probability: f32,
    /// Of the tokens at least this likely only the least likely stays; above 0.5 there are never two of them.
    pub xtc_threshold: f32,
    /// How many of the last tokens the three penalties look at; 0 none, [`u32::MAX`] all.
    pub repeat_last_n: u32,
    /// Divide the logit of tokens that were there by this, or multiply it where it is negative; 1 does nothing.
    pub repeat_penalty: f32,
    /// Take this from the logit of a token for each time it was there.
    pub frequency_penalty: f32,
    /// Take this from the logit of tokens that were there.
    pub presence_penalty: f32,
    /// How much to penalise tokens that go on with a repetition; 0 not at all.
    pub dry_multiplier: f32,
    /// By how much that grows with each token of the repetition; below 1 turns it off.
    pub dry_base: f32,
    /// Repetitions up to this many tokens are free.
    pub dry_allowed_length: u32,
    /// How many of the last tokens are searched for repetitions; 0 none, [`u32::MAX`] all.
    pub dry_penalty_last_n: u32,
    /// Texts over which no repetition is continued.
    pub dry_sequence_breakers: Vec<String>,
    /// Keep the surprise near a target, by the first or second version of Mirostat: 1 or 2. The temperature and biases
    /// are all that is then done besides. 0 turns it off.
    pub mirostat: u32,
    /// The surprise that Mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// How fast Mirostat corrects itself.
    pub mirostat_eta: f32,
    /// Prefer tokens near this probability, in the mean over the last ones; below 0 turns it off.
    pub adaptive_target: f32,
    /// How slowly that mean forgets: 0 to 0.99.
    pub adaptive_decay: f32,
    /// Numbers added to the logits of tokens; minus infinity rules a token out.
    pub logit_bias: Vec<(u32, f32)>,
    /// Which samplers are used, in this order. The draw comes last by itself.
    pub samplers: Vec<SamplerKind>,
    /// Samplers that cut by a probability leave at least this many tokens.
    pub min_keep: u32,
    /// Where the random numbers begin; `None` picks a seed that [`Sampler::seed`](super::Sampler::seed) tells afterwards.
    pub seed: Option<u64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(str::to_string).to_vec(),
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            adaptive_target: -1.0,
            adaptive_decay: 0.9,
            logit_bias: Vec::new(),
            samplers: SamplerKind::DEFAULT_ORDER.to_vec(),
            min_keep: 0,
            seed: None,
        }
    }
}

/// A sampler that can be put in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// Penalties on repetition, frequency and presence.
    Penalties,
    /// A penalty on going on with a repetition.
    Dry,
    /// Top-n-sigma.
    TopNSigma,
    /// Top-k.
    TopK,
    /// Locally typical sampling.
    TypicalP,
    /// Top-p, also called nucleus sampling.
    TopP,
    /// Min-p.
    MinP,
    /// Exclude top choices.
    Xtc,
    /// Temperature, plain or dynamic.
    Temperature,
    /// Adaptive-p, which is carried out last wherever it stands.
    AdaptiveP,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Penalties,
        Self::Dry,
        Self::TopNSigma,
        Self::TopK,
        Self::TypicalP,
        Self::TopP,
        Self::MinP,
        Self::Xtc,
        Self::Temperature,
        Self::AdaptiveP,
    ];
    /// The order where no other is asked for.
    pub const DEFAULT_ORDER: [Self; 9] = *match Self::ALL.first_chunk() {
        Some(order) => order,
        None => panic!("there are ten of them"),
    };

    /// Its name in a list.
    pub fn name(self) -> &'static str {
        match self {
            Self::Penalties => "penalties",
            Self::Dry => "dry",
            Self::TopNSigma => "top_n_sigma",
            Self::TopK => "top_k",
            Self::TypicalP => "typ_p",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Xtc => "xtc",
            Self::Temperature => "temperature",
            Self::AdaptiveP => "adaptive_p",
        }
    }

    /// Its letter in a short list.
    pub fn letter(self) -> char {
        match self {
            Self::Penalties => 'e',
            Self::Dry => 'd',
            Self::TopNSigma => 's',
            Self::TopK => 'k',
            Self::TypicalP => 'y',
            Self::TopP => 'p',
            Self::MinP => 'm',
            Self::Xtc => 'x',
            Self::Temperature => 't',
            Self::AdaptiveP => 'a',
        }
    }

    /// The samplers of a list such as `top_k;top_p;temperature`. Names may also be written as `top-k` and `topk`; an
    /// empty list is one without samplers.
    ///
    /// # Errors
    /// Where a name is not one of a sampler.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, Error> {
        list.split([';', ',']).map(str::trim).filter(|name| !name.is_empty()).map(Self::parse).collect()
    }

    fn parse(name: &str) -> Result<Self, Error> {
        let squeezed = |name: &str| name.to_lowercase().replace(['_', '-'], "");
        let wanted = match squeezed(name).as_str() {
            "nucleus" => "topp".to_string(),
            "temp" => "temperature".to_string(),
            "typ" | "typical" | "typicalp" => "typp".to_string(),
            other => other.to_string(),
        };
        Self::ALL.into_iter().find(|kind| squeezed(kind.name()) == wanted).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            Error::Unknown { what: "sampler", name: name.to_string(), hint: hint(name, &names) }
        })
    }

    /// The samplers of a short list such as `edskypmxt`: a letter each.
    ///
    /// # Errors
    /// Where a letter is not one of a sampler.
    pub fn parse_letters(letters: &str) -> Result<Vec<Self>, Error> {
        let kind = |letter| Self::ALL.into_iter().find(|kind| kind.letter() == letter);
        letters
            .chars()
            .map(|letter| {
                kind(letter).ok_or_else(|| {
                    let all: Vec<String> = Self::ALL.map(|k| format!("{} ({})", k.letter(), k.name())).to_vec();
                    Error::Unknown {
                        what: "sampler",
                        name: letter.to_string(),
                        hint: format!("there are {}", all.join(", ")),
                    }
                })
            })
            .collect()
    }
}

impl Display for SamplerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What was meant, or else what there is.
fn hint(wrong: &str, names: &[&str]) -> String {
    let near: Vec<String> = suggest::suggest(wrong, names.iter().copied()).into_iter().map(str::to_string).collect();
    suggest::question(&near).unwrap_or_else(|| format!("there are {}", names.join(", ")))
}

/// A token and its bias, such as `15043+1`, `15043-0.5` or `15043-inf`.
///
/// # Errors
/// Where it is written otherwise.
pub fn parse_bias(text: &str) -> Result<(u32, f32), Error> {
    let parsed = || {
        let (token, bias) = text.split_at(text.find(['+', '-'])?);
        let bias: f32 = bias.parse().ok()?;
        Some((token.trim().parse().ok()?, bias)).filter(|(_, bias)| *bias < f32::INFINITY)
    };
    parsed().ok_or_else(|| Error::Parameter {
        name: "logit_bias",
        value: text.to_string(),
        wanted: "a token's number, + or -, and how much, as in 15043+1, or 15043-inf to rule it out",
    })
}

/// A parameter by its name.
struct Setting {
    name: &'static str,
    // Other spellings, those of llama.cpp's flags and fields.
    aliases: &'static [&'static str],
    get: fn(&Params) -> String,
    set: fn(&mut Params, &str) -> Result<(), &'static str>,
    // What is wrong with the present value.
    check: fn(&Params) -> Result<(), &'static str>,
}

macro_rules! number {
    ($field:ident, [$($alias:literal),*], $wanted:literal, $ok:expr) => {
        Setting {
            name: stringify!($field),
            aliases: &[$($alias),*],
            get: |params| params.$field.to_string(),
            set: |params, text| {
                params.$field = text.parse().map_err(|_| $wanted)?;
                Ok(())
            },
            check: |params| {
                let ok: fn(f32) -> bool = $ok;
                if ok(params.$field) { Ok(()) } else { Err($wanted) }
            },
        }
    };
}

macro_rules! count {
    ($field:ident, [$($alias:literal),*], $wanted:literal, $below_zero:expr, $most:expr) => {
        Setting {
            name: stringify!($field),
            aliases: &[$($alias),*],
            get: |params| if params.$field == u32::MAX { "-1".to_string() } else { params.$field.to_string() },
            set: |params, text| {
                let number: i64 = text.parse().map_err(|_| $wanted)?;
                let below_zero: Option<u32> = $below_zero;
                params.$field = match u32::try_from(number) {
                    Ok(number) => number,
                    Err(_) if number < 0 => below_zero.ok_or($wanted)?,
                    Err(_) => return Err($wanted),
                };
                Ok(())
            },
            check: |params| if params.$field <= $most { Ok(()) } else { Err($wanted) },
        }
    };
}

const SETTINGS: &[Setting] = &[
    number!(temperature, ["temp"], "a number of 0 or more", |x| x.is_finite() && x >= 0.0),
    number!(dynatemp_range, [], "a number of 0 or more", |x| x.is_finite() && x >= 0.0),
    number!(dynatemp_exponent, ["dynatemp_exp"], "a number of 0 or more", |x| x.is_finite() && x >= 0.0),
    count!(top_k, [], "a whole number, 0 for all", Some(0), u32::MAX),
    number!(top_p, [], "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)),
    number!(min_p, [], "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)),
    number!(typical_p, ["typical", "typ_p"], "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)),
    number!(top_n_sigma, ["top_nsigma"], "a number, 0 or below for off", f32::is_finite),
    number!(xtc_probability, [], "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)),
    number!(xtc_threshold, [], "a number from 0 to 1", |x| (0.0..=1.0).contains(&x)),
    count!(repeat_last_n, ["penalty_last_n"], "a whole number, -1 for the whole text", Some(u32::MAX), u32::MAX),
    number!(repeat_penalty, ["penalty_repeat"], "a number above 0", |x| {
        x.is_finite() && x > 0.0 && (1.0 / x).is_finite()
    }),
    number!(frequency_penalty, ["penalty_freq"], "a number", f32::is_finite),
    number!(presence_penalty, ["penalty_present"], "a number", f32::is_finite),
    number!(dry_multiplier, [], "a number of 0 or more", |x| x.is_finite() && x >= 0.0),
    number!(dry_base, [], "a number of 1 or more, or 0 for off", |x| x.is_finite() && (x == 0.0 || x >= 1.0)),
    count!(dry_allowed_length, [], "a whole number", None, u32::MAX),
    count!(dry_penalty_last_n, [], "a whole number, -1 for the whole text", Some(u32::MAX), u32::MAX),
    Setting {
        name: "dry_sequence_breakers",
        aliases: &["dry_sequence_breaker"],
        get: |params| {
            let escaped: Vec<String> = params.dry_sequence_breakers.iter().map(|b| b.replace('\n', "\\n")).collect();
            if escaped.is_empty() { "none".to_string() } else { escaped.join(" ") }
        },
        set: |params, text| {
            let breakers = text.split_whitespace().filter(|text| *text != "none");
            params.dry_sequence_breakers = breakers.map(|text| text.replace("\\n", "\n")).collect();
            Ok(())
        },
        check: |params| {
            let is_fine = |b: &String| !b.is_empty() && b.len() <= BREAKER_BYTES;
            let all_fine = params.dry_sequence_breakers.iter().all(is_fine);
            if all_fine { Ok(()) } else { Err("texts of 1 to 40 bytes") }
        },
    },
    count!(mirostat, [], "0 for off, 1 or 2", None, 2),
    number!(mirostat_tau, ["mirostat_ent"], "a number of 0 or more", |x| x.is_finite() && x >= 0.0),
    number!(mirostat_eta, ["mirostat_lr"], "a number of 0 or more", |x| x.is_finite() && x >= 0.0),
    number!(adaptive_target, [], "a number up to 1, below 0 for off", |x| x.is_finite() && x <= 1.0),
    number!(adaptive_decay, [], "a number from 0 to 0.99", |x| (0.0..=0.99).contains(&x)),
    Setting {
        name: "logit_bias",
        aliases: &[],
        get: |params| {
            let all: Vec<String> = params.logit_bias.iter().map(|(token, bias)| format!("{token}{bias:+}")).collect();
            if all.is_empty() { "none".to_string() } else { all.join(" ") }
        },
        set: |params, text| {
            const WANTED: &str = "tokens and biases such as 15043+1, with spaces between, or none";
            let words = text.split_whitespace().filter(|word| *word != "none");
            params.logit_bias = words.map(parse_bias).collect::<Result<_, _>>().map_err(|_| WANTED)?;
            Ok(())
        },
        check: |params| {
            let is_fine = |(_, bias): &(u32, f32)| *bias < f32::INFINITY;
            if params.logit_bias.iter().all(is_fine) { Ok(()) } else { Err("numbers, or minus infinity") }
        },
    },
    Setting {
        name: "samplers",
        aliases: &[],
        get: |params| params.samplers.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(";"),
        set: |params, text| {
            params.samplers =
                SamplerKind::parse_list(text).map_err(|_| "names of samplers, such as top_k;top_p;temperature")?;
            Ok(())
        },
        check: |_| Ok(()),
    },
    count!(min_keep, [], "a whole number", None, u32::MAX),
    Setting {
        name: "seed",
        aliases: &[],
        get: |params| params.seed.map_or("random".to_string(), |seed| seed.to_string()),
        set: |params, text| {
            params.seed = match text {
                "random" | "-1" => None,
                number => Some(number.parse().map_err(|_| "a whole number, or 'random'")?),
            };
            Ok(())
        },
        check: |_| Ok(()),
    },
];

impl Params {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(0), ..Self::default() }
    }

    /// The names of all parameters.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SETTINGS.iter().map(|setting| setting.name)
    }

    /// Sets a parameter by its name, where `temperature` may be called `temp`, and `top_k` also `top-k`.
    ///
    /// # Errors
    /// Where there is no parameter of that name, or `value` is not one for it; nothing has changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let setting = find(name)?;
        let mut new = self.clone();
        let value = value.trim();
        // The samplers' own message says which one does not exist.
        if setting.name == "samplers" {
            SamplerKind::parse_list(value)?;
        }
        (setting.set)(&mut new, value).and_then(|()| (setting.check)(&new)).map_err(|wanted| Error::Parameter {
            name: setting.name,
            value: value.to_string(),
            wanted,
        })?;
        *self = new;
        Ok(())
    }

    /// A parameter's value by its name, as [`Params::set`] takes it.
    ///
    /// # Errors
    /// Where there is no parameter of that name.
    pub fn get(&self, name: &str) -> Result<String, Error> {
        find(name).map(|setting| (setting.get)(self))
    }

    /// Whether all parameters are within their ranges.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        for setting in SETTINGS {
            (setting.check)(self).map_err(|wanted| Error::Parameter {
                name: setting.name,
                value: (setting.get)(self),
                wanted,
            })?;
        }
        Ok(())
    }
}

fn find(name: &str) -> Result<&'static Setting, Error> {
    let wanted = name.trim().to_lowercase().replace('-', "_");
    SETTINGS.iter().find(|setting| setting.name == wanted || setting.aliases.contains(&wanted.as_str())).ok_or_else(
        || {
            let names: Vec<&str> = Params::names().collect();
            Error::Unknown { what: "parameter", name: name.to_string(), hint: hint(&wanted, &names) }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_can_be_set_to_what_it_says_it_is() {
        let changed = Params {
            temperature: 0.25,
            top_k: 7,
            repeat_last_n: u32::MAX,
            logit_bias: vec![(3, 1.5), (4, f32::NEG_INFINITY)],
            samplers: vec![SamplerKind::TopK, SamplerKind::AdaptiveP],
            seed: Some(9),
            dry_sequence_breakers: vec!["\n".to_string(), "###".to_string()],
            ..Params::default()
        };
        let empty = Params { samplers: Vec::new(), dry_sequence_breakers: Vec::new(), ..Params::default() };
        for params in [Params::default(), Params::greedy(), changed, empty] {
            let mut again = Params { temperature: 1.7, top_k: 3, ..Params::default() };
            for name in Params::names() {
                again.set(name, &params.get(name).unwrap()).unwrap();
            }
            assert_eq!(again, params);
            params.check().unwrap();
        }
    }

    #[test]
    fn names_may_be_spelled_as_flags_are() {
        let mut params = Params::default();
        for (name, value) in [("temp", "0.5"), ("Top-K", "-1"), ("--x", ""), ("typical", "0.9"), ("mirostat_ent", "3")]
        {
            assert_eq!(params.set(name, value).is_ok(), name != "--x", "{name}");
        }
        assert_eq!((params.temperature, params.top_k, params.typical_p, params.mirostat_tau), (0.5, 0, 0.9, 3.0));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        let mut params = Params::default();
        for (name, value, words) in [
            ("temperature", "warm", "temperature cannot be 'warm'; it has to be a number of 0 or more"),
            ("temperature", "-1", "it has to be a number of 0 or more"),
            ("temperature", "nan", "it has to be a number of 0 or more"),
            ("top_p", "1.5", "it has to be a number from 0 to 1"),
            ("mirostat", "3", "it has to be 0 for off, 1 or 2"),
            ("temprature", "1", "no parameter 'temprature'; did you mean temperature?"),
            ("samplers", "top_k;topq", "no sampler 'topq'; did you mean"),
            ("logit_bias", "5", "tokens and biases"),
            ("seed", "x", "a whole number"),
        ] {
            let error = params.set(name, value).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(params, Params::default());
    }

    #[test]
    fn orders_are_read_as_llama_cpp_reads_them() {
        use SamplerKind::*;
        assert_eq!(
            SamplerKind::parse_list("top_k;typ-p;TopP;nucleus;temp").unwrap(),
            [TopK, TypicalP, TopP, TopP, Temperature]
        );
        assert_eq!(SamplerKind::parse_letters("edskypmxt").unwrap(), SamplerKind::DEFAULT_ORDER);
        assert_eq!(SamplerKind::parse_list("").unwrap(), [] as [SamplerKind; 0]);
        assert!(SamplerKind::parse_letters("q").unwrap_err().to_string().contains("there are e (penalties)"));
        for kind in SamplerKind::ALL {
            assert_eq!(SamplerKind::parse_list(kind.name()).unwrap(), [kind]);
        }
    }

    #[test]
    fn biases_are_read_as_llama_cpp_reads_them() {
        assert_eq!(parse_bias("15043+1").unwrap(), (15043, 1.0));
        assert_eq!(parse_bias("15043-0.5").unwrap(), (15043, -0.5));
        assert_eq!(parse_bias("7-inf").unwrap(), (7, f32::NEG_INFINITY));
        assert_eq!(parse_bias("7-1e-3").unwrap(), (7, -1e-3));
        for wrong in ["", "7", "+1", "x+1", "7+", "7+inf", "7+nan", "-7+1", "7=1", "99999999999+1"] {
            assert!(parse_bias(wrong).is_err(), "{wrong}");
        }
    }
}
