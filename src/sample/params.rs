//! The parameters of a sampler, and the order in which samplers are applied.

use std::fmt::Display;

use super::Error;
use super::parameter::{Counts, Parameter, Value, field};
use super::samplers::{self, Entry, Place, for_each_sampler, temperature::Temperature};
use crate::base::suggest;

macro_rules! define_params {
    ($($kind:ident: $module:ident,)*) => {
        /// The parameters of a sampler. Names, defaults and meanings are llama.cpp's.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Params {
            $(
                #[doc = concat!("The settings of [`", stringify!($module), "`](samplers::", stringify!($module), ").")]
                pub $module: samplers::$module::Settings,
            )*
            /// The samplers to use, in this order. The draw always comes last.
            pub samplers: Vec<SamplerKind>,
            /// Samplers that cut by probability keep at least this many tokens.
            pub min_keep: u32,
            /// The random seed; `None` picks one, which [`Sampler::seed`](super::Sampler::seed) returns.
            pub seed: Option<u64>,
        }

        impl Default for Params {
            fn default() -> Self {
                Self {
                    $($module: samplers::$module::defaults(),)*
                    samplers: SamplerKind::default_order(),
                    min_keep: 0,
                    seed: None,
                }
            }
        }

        /// A sampler.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum SamplerKind {
            $(
                #[doc = concat!("See [`", stringify!($module), "`](samplers::", stringify!($module), ").")]
                $kind,
            )*
        }

        impl SamplerKind {
            /// All samplers, in the order in which they are applied by default.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Returns the sampler's entry in the table.
            pub fn entry(self) -> &'static Entry {
                match self {
                    $(Self::$kind => &samplers::$module::SAMPLER,)*
                }
            }
        }
    };
}
for_each_sampler!(define_params);

/// The parameters that do not belong to a sampler.
static GENERAL: [Parameter; 3] = [
    Parameter::new("samplers", Value::Order(field!(samplers)), "Which samplers to use, in this order"),
    Parameter::count(
        "min_keep",
        field!(min_keep),
        Counts::ANY,
        "Keep at least this many tokens to choose from, however many the samplers would remove",
    ),
    Parameter::new(
        "seed",
        Value::Seed(field!(seed)),
        "The random seed: the same seed makes the same text; 'random' chooses a new one",
    )
    .common(5)
    .contradicts_greedy(),
];

impl SamplerKind {
    /// Returns the samplers that are used by default.
    pub fn default_order() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|kind| kind.entry().place == Place::InOrder).collect()
    }

    /// Returns the samplers that an order can contain.
    fn of_orders() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|kind| kind.entry().letter.is_some())
    }

    /// Returns the sampler's name in a list.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Returns the sampler's letter in a short list; `None` if an order cannot contain it.
    pub fn letter(self) -> Option<char> {
        self.entry().letter
    }

    /// Parses a list such as `top_k;top_p;temperature`. Names may also be written as `top-k` and `topk`. An empty text
    /// is an empty list.
    ///
    /// # Errors
    /// If a name is not the name of a sampler.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, Error> {
        list.split([';', ',']).map(str::trim).filter(|name| !name.is_empty()).map(Self::parse).collect()
    }

    fn parse(name: &str) -> Result<Self, Error> {
        let squeezed = |name: &str| name.to_lowercase().replace(['_', '-'], "");
        let wanted = squeezed(name);
        let is_called = |entry: &Entry| {
            squeezed(entry.name) == wanted || entry.aliases.iter().any(|alias| squeezed(alias) == wanted)
        };
        Self::of_orders().find(|kind| is_called(kind.entry())).ok_or_else(|| {
            let names: Vec<&str> = Self::of_orders().map(Self::name).collect();
            Error::Unknown { what: "sampler", name: name.to_string(), hint: hint(name, &names) }
        })
    }

    /// Parses a short list such as `edskypmxt`, with a letter for each sampler.
    ///
    /// # Errors
    /// If a letter is not the letter of a sampler.
    pub fn parse_letters(letters: &str) -> Result<Vec<Self>, Error> {
        let of_letter = |letter| Self::of_orders().find(|kind| kind.letter() == Some(letter));
        let unknown = |letter: char| {
            let all = Self::of_orders().filter_map(|kind| Some(format!("{} ({kind})", kind.letter()?)));
            let hint = format!("there are {}", all.collect::<Vec<_>>().join(", "));
            Error::Unknown { what: "sampler", name: letter.to_string(), hint }
        };
        letters.chars().map(|letter| of_letter(letter).ok_or_else(|| unknown(letter))).collect()
    }
}

impl Display for SamplerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns a suggestion for what was meant, or else a list of all names.
fn hint(wrong: &str, names: &[&str]) -> String {
    let near: Vec<String> = suggest::suggest(wrong, names.iter().copied()).into_iter().map(str::to_string).collect();
    suggest::question(&near).unwrap_or_else(|| format!("there are {}", names.join(", ")))
}

/// Parses a token and its bias, such as `15043+1`, `15043-0.5` or `15043-inf`.
///
/// # Errors
/// If the text is not of that form.
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

impl Params {
    /// Returns parameters that always take the most likely token.
    pub fn greedy() -> Self {
        Self {
            temperature: Temperature::fixed(0.0),
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(0),
            ..Self::default()
        }
    }

    /// Returns all parameters: first those that most people need, then the others in the order of the samplers.
    pub fn parameters() -> impl Iterator<Item = &'static Parameter> {
        let of_samplers = SamplerKind::ALL.iter().flat_map(|kind| kind.entry().parameters);
        let mut all: Vec<&'static Parameter> = of_samplers.chain(&GENERAL).collect();
        all.sort_by_key(|parameter| parameter.common.unwrap_or(u8::MAX));
        all.into_iter()
    }

    /// Returns the names of all parameters.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::parameters().map(|parameter| parameter.name)
    }

    /// Sets a parameter by name. Aliases such as `temp` and spellings such as `top-k` are accepted.
    ///
    /// # Errors
    /// If there is no parameter of that name, or it does not accept `value`. Nothing has changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let parameter = find(name)?;
        let mut new = self.clone();
        let value = value.trim();
        // The samplers' own message says which one does not exist.
        if matches!(parameter.value, Value::Order(_)) {
            SamplerKind::parse_list(value)?;
        }
        parameter.set(&mut new, value).map_err(|wanted| Error::Parameter {
            name: parameter.name,
            value: value.to_string(),
            wanted,
        })?;
        *self = new;
        Ok(())
    }

    /// Returns a parameter's value by name, in the form that [`Params::set`] accepts.
    ///
    /// # Errors
    /// If there is no parameter of that name.
    pub fn get(&self, name: &str) -> Result<String, Error> {
        find(name).map(|parameter| parameter.get(self))
    }

    /// Checks that all parameters are within their ranges.
    ///
    /// # Errors
    /// If one is not. The error names the first.
    pub fn check(&self) -> Result<(), Error> {
        for parameter in Self::parameters() {
            parameter.check(self).map_err(|wanted| Error::Parameter {
                name: parameter.name,
                value: parameter.get(self),
                wanted,
            })?;
        }
        Ok(())
    }
}

fn find(name: &str) -> Result<&'static Parameter, Error> {
    let wanted = name.trim().to_lowercase().replace('-', "_");
    Params::parameters().find(|parameter| parameter.is_called(&wanted)).ok_or_else(|| {
        let names: Vec<&str> = Params::names().collect();
        Error::Unknown { what: "parameter", name: name.to_string(), hint: hint(&wanted, &names) }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::sample::{Dry, Penalties};

    /// The fields of requests to llama.cpp's server, and those of OpenAI's API that mean the same.
    #[test]
    fn parameters_have_the_names_that_servers_have_on_the_wire() {
        let wire = "temperature dynatemp_range dynatemp_exponent top_k top_p min_p top_n_sigma typical_p typ_p \
            xtc_probability xtc_threshold repeat_last_n repeat_penalty presence_penalty frequency_penalty \
            dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers mirostat mirostat_tau \
            mirostat_eta adaptive_target adaptive_decay logit_bias samplers min_keep seed";
        for name in wire.split_whitespace() {
            assert!(Params::default().get(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn every_name_and_letter_stands_for_one_thing_and_help_names_what_there_is() {
        let mut names = HashSet::new();
        for parameter in Params::parameters() {
            let aliases = parameter.aliases.iter().chain(parameter.hidden_aliases);
            for name in aliases.chain([&parameter.name]) {
                assert!(names.insert(*name), "{name}");
            }
            for named in parameter.help.split('`').skip(1).step_by(2) {
                assert!(Params::names().any(|name| name == named), "{}: {named}", parameter.name);
            }
            assert!(!parameter.help.ends_with('.') && !parameter.help.contains("--"), "{}", parameter.help);
        }
        let mut letters = HashSet::new();
        for kind in SamplerKind::ALL {
            assert!(kind.letter().is_none_or(|letter| letters.insert(letter)), "{kind}");
            let needs_letter = matches!(kind.entry().place, Place::InOrder | Place::OnRequest);
            assert!(kind.letter().is_some() || !needs_letter, "{kind} cannot be asked for");
        }
    }

    #[test]
    fn every_parameter_can_be_set_to_what_it_says_it_is() {
        let changed = Params {
            temperature: Temperature::fixed(0.25),
            top_k: 7,
            penalties: Penalties { last_n: u32::MAX, ..Penalties::default() },
            logit_bias: vec![(3, 1.5), (4, f32::NEG_INFINITY)],
            samplers: vec![SamplerKind::TopK, SamplerKind::AdaptiveP],
            seed: Some(9),
            dry: Dry { breakers: vec!["\n".to_string(), "###".to_string()], ..Dry::default() },
            ..Params::default()
        };
        let no_breakers = Dry { breakers: Vec::new(), ..Dry::default() };
        let empty = Params { samplers: Vec::new(), dry: no_breakers, ..Params::default() };
        for params in [Params::default(), Params::greedy(), changed, empty] {
            let mut again = Params { temperature: Temperature::fixed(1.7), top_k: 3, ..Params::default() };
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
        let got = (params.temperature.value, params.top_k, params.typical_p, params.mirostat.tau);
        assert_eq!(got, (0.5, 0, 0.9, 3.0));
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
        assert_eq!(SamplerKind::parse_letters("edskypmxt").unwrap(), SamplerKind::default_order());
        assert_eq!(SamplerKind::parse_list("").unwrap(), [] as [SamplerKind; 0]);
        assert!(SamplerKind::parse_letters("q").unwrap_err().to_string().contains("there are e (penalties)"));
        assert!(SamplerKind::parse_list("mirostat").is_err() && SamplerKind::parse_list("logit_bias").is_err());
        for kind in SamplerKind::of_orders() {
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
