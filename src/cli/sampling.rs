//! Flags that say how tokens are drawn, for every command that writes text.
//!
//! They are made from [`Params::parameters`]: a parameter `top_k` is the flag `--top-k`.

use anyhow::bail;
use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};

use super::escapes::unescaped;
use crate::base::display::shorten;
use crate::sample::{Error, Field, Parameter, Params, Sampler, SamplerKind, Value, parse_bias};
use crate::vocab::{Place, Tokenizer};

const HEADING: &str = "Sampling";
const GREEDY: &str = "greedy";
const IGNORE_EOS: &str = "ignore_eos";
const SAMPLER_SEQ: &str = "sampler_seq";

/// How tokens are drawn.
#[derive(Debug)]
pub(super) struct SamplingArgs {
    params: Params,
    ignore_eos: bool,
    /// Biases of tokens that are given by their texts.
    biases: Vec<(String, f32)>,
}

impl clap::Args for SamplingArgs {
    fn augment_args(command: Command) -> Command {
        let all = Params::parameters().flat_map(flags);
        let command = command.args(all.map(|flag| flag.help_heading(HEADING)));
        let contradicts = Params::parameters().filter(|parameter| parameter.contradicts_greedy);
        command.args([
            Arg::new(IGNORE_EOS)
                .long("ignore-eos")
                .action(ArgAction::SetTrue)
                .help_heading(HEADING)
                .help("Do not stop at the model's end tokens, which are ruled out"),
            Arg::new(GREEDY)
                .long("greedy")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(contradicts.map(|parameter| parameter.name))
                .help_heading(HEADING)
                .help("Always take the most likely token"),
        ])
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Returns the flag of a parameter; of the order of samplers, also the flag for its short form.
fn flags(parameter: &'static Parameter) -> Vec<Arg> {
    let help = in_flags(parameter.help);
    let flag = Arg::new(parameter.name)
        .long(hyphens(parameter.name))
        .visible_aliases(parameter.aliases.iter().map(|alias| hyphens(alias)))
        .aliases(parameter.hidden_aliases.iter().map(|alias| hyphens(alias)));
    let default = Params::default().get(parameter.name).unwrap_or_default();
    match &parameter.value {
        // The range is checked with all others, by `Params::check`.
        Value::Number(..) => {
            let flag = flag.value_name("N").default_value(default).allow_negative_numbers(true);
            vec![flag.value_parser(value_parser!(f32)).help(help)]
        }
        Value::Count(field, _) => {
            let flag = flag.value_name("N").default_value(default).allow_negative_numbers(true);
            vec![flag.value_parser(parser(parameter, field)).help(help)]
        }
        Value::Seed(field) => {
            let flag = flag.short('s').value_name("N").allow_negative_numbers(true);
            vec![flag.value_parser(parser(parameter, field)).help(format!("{help} [default: {default}]"))]
        }
        Value::Texts { one, .. } => {
            // Each flag has one of them.
            let flag = Arg::new(parameter.name).long(hyphens(one)).alias(hyphens(parameter.name));
            let flag = flag.value_name("TEXT").action(ArgAction::Append).allow_hyphen_values(true);
            vec![flag.help(format!("{help}. Can be given several times"))]
        }
        Value::Biases(_) => {
            let flag = flag.short('l').value_name("TOKEN(+/-)BIAS").action(ArgAction::Append);
            let help = format!("{help}. The token may be a text, as in \"' dog'-5\". Can be given several times");
            vec![flag.value_parser(Bias::parse).help(help)]
        }
        Value::Order(_) => {
            let order = flag.value_name("NAMES").value_parser(|text: &str| SamplerKind::parse_list(text).map(Order));
            let letters: String = SamplerKind::default_order().into_iter().filter_map(SamplerKind::letter).collect();
            let short = Arg::new(SAMPLER_SEQ).long(hyphens(SAMPLER_SEQ)).visible_alias("sampling-seq");
            let short = short.value_name("LETTERS").conflicts_with(parameter.name);
            let short = short.value_parser(|text: &str| SamplerKind::parse_letters(text).map(Order));
            vec![
                order.help(format!("{help} [default: {default}]")),
                short.help(format!("The same, with a letter for each sampler [default: {letters}]")),
            ]
        }
    }
}

/// A parser of values that the parameter can have.
fn parser<T: Clone + Send + Sync + 'static>(parameter: &'static Parameter, field: &'static Field<T>) -> ValueParser {
    ValueParser::from(move |text: &str| -> Result<T, Error> {
        let mut params = Params::default();
        params.set(parameter.name, text)?;
        Ok((field.get)(&params).clone())
    })
}

/// `top-k` for `top_k`.
fn hyphens(name: &str) -> String {
    name.replace('_', "-")
}

/// Help with the names of parameters, which are between backticks, as flags: `--top-k` for `top_k`.
fn in_flags(help: &str) -> String {
    let parts = help.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 1 { format!("--{}", hyphens(part)) } else { part.to_string() }).collect()
}

impl FromArgMatches for SamplingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut params = Params::default();
        let mut texts = Vec::new();
        for parameter in Params::parameters() {
            let name = parameter.name;
            match &parameter.value {
                Value::Number(field, _) => typed(matches, name, field, &mut params),
                Value::Count(field, _) => typed(matches, name, field, &mut params),
                Value::Seed(field) => typed(matches, name, field, &mut params),
                Value::Texts { field, .. } => {
                    if let Some(texts) = matches.get_many::<String>(name) {
                        let texts: Vec<&String> = texts.collect();
                        // The last 'none' takes back what came before it, as in llama.cpp.
                        let from = texts.iter().rposition(|text| *text == "none").map_or(0, |none| none + 1);
                        let texts = texts[from..].iter().map(|text| text.replace("\\n", "\n"));
                        *(field.get_mut)(&mut params) = texts.collect();
                    }
                }
                Value::Biases(field) => {
                    for bias in matches.get_many::<Bias>(name).into_iter().flatten() {
                        match bias {
                            Bias::Id(id, bias) => (field.get_mut)(&mut params).push((*id, *bias)),
                            Bias::Text(text, bias) => texts.push((text.clone(), *bias)),
                        }
                    }
                }
                Value::Order(field) => {
                    let order = matches.get_one::<Order>(name).or_else(|| matches.get_one(SAMPLER_SEQ));
                    if let Some(Order(order)) = order {
                        order.clone_into((field.get_mut)(&mut params));
                    }
                }
            }
        }
        if matches.get_flag(GREEDY) {
            let greedy = Params::greedy();
            params.temperature.value = greedy.temperature.value;
            params =
                Params { top_k: greedy.top_k, top_p: greedy.top_p, min_p: greedy.min_p, seed: greedy.seed, ..params };
        }
        Ok(Self { params, ignore_eos: matches.get_flag(IGNORE_EOS), biases: texts })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Sets a parameter to the value of its flag, where there is one.
fn typed<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str, field: &Field<T>, params: &mut Params) {
    if let Some(value) = matches.get_one::<T>(name) {
        value.clone_into((field.get_mut)(params));
    }
}

/// A token and its bias, as typed.
#[derive(Clone, Debug)]
enum Bias {
    Id(u32, f32),
    Text(String, f32),
}

impl Bias {
    /// Parses `15043+1`, or a text in the token's place, between quotes or not: `' dog'-5`.
    fn parse(typed: &str) -> Result<Self, Error> {
        let refused = match parse_bias(typed) {
            Ok((id, bias)) => return Ok(Self::Id(id, bias)),
            Err(error) => error,
        };
        // The sign is the last one, because the text may have some; not that of an exponent.
        let signs =
            typed.char_indices().rev().filter(|(_, c)| matches!(c, '+' | '-')).map(|(at, _)| typed.split_at(at));
        let mut valued = signs.filter_map(|(text, bias)| Some((text, bias.parse::<f32>().ok()?)));
        let found = valued.find(|(text, _)| !text.ends_with(['e', 'E']) || is_quoted(text));
        let Some((text, bias)) = found.filter(|(_, bias)| *bias < f32::INFINITY) else { return Err(refused) };
        let inner = if is_quoted(text) { &text[1..text.len() - 1] } else { text };
        // A number that is no token's is not meant as a text.
        if inner.is_empty() || (!is_quoted(text) && inner.trim().parse::<f64>().is_ok()) {
            return Err(refused);
        }
        Ok(Self::Text(unescaped(inner), bias))
    }
}

fn is_quoted(text: &str) -> bool {
    text.len() > 2 && ["'", "\""].iter().any(|quote| text.starts_with(quote) && text.ends_with(quote))
}

/// An order of samplers, as one value.
#[derive(Clone, Debug)]
struct Order(Vec<SamplerKind>);

impl SamplingArgs {
    /// Returns what the sampler is asked to do. [`Params::check`] says whether it is within its ranges.
    pub fn params(&self) -> Params {
        self.params.clone()
    }

    /// Returns whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        Sampler::new(&self.params).is_ok_and(|sampler| sampler.is_greedy())
    }

    /// Builds the sampler for a model with this tokenizer.
    ///
    /// # Errors
    /// If a parameter lies outside its range, and those of [`Self::params_for`].
    pub fn sampler(&self, tokenizer: &dyn Tokenizer) -> anyhow::Result<Sampler> {
        Ok(Sampler::with_text(&self.params_for(tokenizer)?, tokenizer.n_tokens(), |id| tokenizer.bytes(id))?)
    }

    /// Returns what a sampler for this tokenizer is asked to do.
    ///
    /// # Errors
    /// If a bias is for a token that the vocabulary does not have, or for a text that is not one token.
    pub fn params_for(&self, tokenizer: &dyn Tokenizer) -> anyhow::Result<Params> {
        let mut params = self.params();
        check_biases(&params, tokenizer)?;
        for (text, bias) in &self.biases {
            let shown = shorten(text, 40);
            match tokenizer.encode(text, Place::Inside)?.as_slice() {
                [id] => params.logit_bias.push((*id, *bias)),
                ids => bail!(
                    "--logit-bias '{shown}': a bias is for one token, and this text is {} ({}); give the number of one",
                    ids.len(),
                    ids.iter().take(8).map(u32::to_string).collect::<Vec<_>>().join(" ")
                ),
            }
        }
        if self.ignore_eos {
            let ids = 0..u32::try_from(tokenizer.n_tokens()).unwrap_or(u32::MAX);
            params.logit_bias.extend(ids.filter(|id| tokenizer.is_end(*id)).map(|id| (id, f32::NEG_INFINITY)));
        }
        Ok(params)
    }
}

/// Checks that biases are for tokens of the vocabulary.
///
/// # Errors
/// If one is not. The error is about the first.
pub(super) fn check_biases(params: &Params, tokenizer: &dyn Tokenizer) -> anyhow::Result<()> {
    let n = tokenizer.n_tokens();
    match params.logit_bias.iter().find(|(id, _)| *id as usize >= n) {
        Some((id, _)) => {
            bail!("a bias is for token {id}, and the last of the model's {n} tokens is {}", n.saturating_sub(1))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::sample::{AdaptiveP, Dry, Mirostat, Penalties, Temperature, Xtc};

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
        // A sampler without a flag here has its default.
        #[allow(clippy::needless_update)]
        let wanted = Params {
            logit_bias: vec![(15043, 1.0), (2, f32::NEG_INFINITY)],
            penalties: Penalties { last_n: 7, repeat: 1.1, frequency: -0.5, presence: 0.25 },
            dry: Dry {
                multiplier: 0.8,
                base: 2.0,
                allowed_length: 3,
                last_n: u32::MAX,
                breakers: vec!["\n".to_string(), "--".to_string()],
            },
            top_n_sigma: 1.5,
            top_k: 0,
            typical_p: 0.9,
            top_p: 1.0,
            min_p: 0.0,
            xtc: Xtc { probability: 0.5, threshold: 0.2 },
            temperature: Temperature { value: 0.5, range: 0.3, exponent: 2.0 },
            mirostat: Mirostat { version: 2, tau: 4.0, eta: 0.2 },
            adaptive_p: AdaptiveP { target: 0.4, decay: 0.5 },
            samplers: vec![SamplerKind::TopK, SamplerKind::MinP, SamplerKind::Temperature],
            min_keep: 2,
            seed: Some(9),
            ..Params::default()
        };
        assert_eq!(params, wanted);
        assert_eq!(parse("--sampler-seq kmt").unwrap().samplers, wanted.samplers);
        assert_eq!(parse("--seed -1").unwrap().seed, None);
        assert_eq!(parse("--dry-sequence-breaker none").unwrap().dry.breakers, [] as [&str; 0]);
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
            ("--logit-bias 5.5+1", "15043+1"),
            ("--logit-bias a+inf", "15043+1"),
            ("--logit-bias +1", "15043+1"),
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

    #[test]
    fn a_bias_is_for_a_token_of_the_vocabulary_by_number_or_by_text() {
        let tokenizer = crate::vocab::tokenizer::tests::Toy::new();
        let of = |words: &[&str]| {
            let line = std::iter::once("run").chain(words.iter().flat_map(|word| ["--logit-bias", word]));
            Line::try_parse_from(line).unwrap().sampling.params_for(&tokenizer).map(|params| params.logit_bias)
        };
        let a = crate::vocab::tokenizer::tests::CHARACTERS + u32::from('a');
        assert_eq!(
            of(&["7-inf", "'a'-5", "a+1e-1", "\"a\"+2", "<p>-1"]).unwrap(),
            [(7, f32::NEG_INFINITY), (a, -5.0), (a, 0.1), (a, 2.0), (5, -1.0)]
        );
        let minus = crate::vocab::tokenizer::tests::CHARACTERS + u32::from('-');
        assert_eq!(of(&["'-'-1", "\\n+1"]).unwrap(), [(minus, -1.0), (minus - 45 + 10, 1.0)]);
        let error = of(&["'ab'-5"]).unwrap_err().to_string();
        assert!(error.contains("this text is 2 (197 198); give the number of one"), "{error}");
        let error = of(&["4000000-1"]).unwrap_err().to_string();
        assert!(
            error.contains("a bias is for token 4000000, and the last of the model's 1114212 tokens is 1114211"),
            "{error}"
        );
    }

    /// A parameter without a flag, or the other way round, is one that was forgotten.
    #[test]
    fn every_parameter_has_a_flag_with_its_default() {
        let command = Line::command();
        for name in Params::names() {
            let argument = command.get_arguments().find(|argument| argument.get_id() == name);
            let argument = argument.unwrap_or_else(|| panic!("no flag for {name}"));
            assert_eq!(argument.get_help_heading(), Some("Sampling"), "{name}");
            if let [default] = argument.get_default_values() {
                assert_eq!(default.to_str().unwrap(), Params::default().get(name).unwrap(), "{name}");
            }
        }
    }

    #[test]
    fn help_speaks_of_flags_and_of_the_default_order() {
        let help = Line::command().render_long_help().to_string();
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for wanted in [
            "With --dry-multiplier: how many",
            "[default: penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]",
            "[default: edskypmxt]",
            "[default: random]",
            "[alias: --temp]",
        ] {
            assert!(words.contains(wanted), "{wanted} in {help}");
        }
        assert!(!help.contains('`'), "{help}");
    }
}
