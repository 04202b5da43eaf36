//! Parameters as data: names, ranges and help. Flags, settings and the names in requests are derived from them.

use super::params::{Params, SamplerKind, parse_bias};

/// One parameter of a sampler.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in llama.cpp's server. With hyphens instead of underscores, it is llama.cpp's flag.
    pub name: &'static str,
    /// Other names that the help shows.
    pub aliases: &'static [&'static str],
    /// Other names that are accepted: those of llama.cpp's fields.
    pub hidden_aliases: &'static [&'static str],
    /// What it does: a sentence without its full stop, with the names of other parameters in backticks.
    pub help: &'static str,
    /// Its position among the few parameters that most people need, from 1; `None` for all others.
    pub common: Option<u8>,
    /// Whether it makes no sense if the most likely token is always taken.
    pub contradicts_greedy: bool,
    /// Its type, its range, and its field.
    pub value: Value,
}

/// The type of a parameter's value.
#[derive(Debug)]
pub enum Value {
    /// A number.
    Number(Field<f32>, Range),
    /// A whole number from 0 on; [`u32::MAX`] is written as -1.
    Count(Field<u32>, Counts),
    /// Several texts of 1 to 40 bytes.
    Texts {
        /// The field of the list.
        field: Field<Vec<String>>,
        /// The name of one of them.
        one: &'static str,
    },
    /// Tokens and the biases of their logits.
    Biases(Field<Vec<(u32, f32)>>),
    /// An order of samplers.
    Order(Field<Vec<SamplerKind>>),
    /// A random seed.
    Seed(Field<Option<u64>>),
}

/// The field of a parameter in [`Params`].
#[derive(Debug)]
pub struct Field<T> {
    /// Returns the value.
    pub get: fn(&Params) -> &T,
    /// Returns the value for modification.
    pub get_mut: fn(&mut Params) -> &mut T,
}

/// The [`Field`] at a path, such as `field!(dry.base)`.
macro_rules! field {
    ($($path:ident).+) => {
        $crate::sample::parameter::Field { get: |params| &params.$($path).+, get_mut: |params| &mut params.$($path).+ }
    };
}
pub(super) use field;

/// The numbers that a parameter accepts.
#[derive(Debug)]
pub struct Range {
    /// In words, as they follow "it has to be".
    pub wanted: &'static str,
    /// Returns whether a number is accepted.
    pub contains: fn(f32) -> bool,
}

impl Range {
    /// Any number.
    pub const ANY: Self = Self { wanted: "a number", contains: f32::is_finite };
    /// Numbers that are not negative.
    pub const FROM_0: Self = Self { wanted: "a number of 0 or more", contains: |x| x.is_finite() && x >= 0.0 };
    /// Probabilities and shares.
    pub const FROM_0_TO_1: Self = Self { wanted: "a number from 0 to 1", contains: |x| (0.0..=1.0).contains(&x) };
}

/// The whole numbers that a parameter accepts.
#[derive(Debug)]
pub struct Counts {
    /// In words, as they follow "it has to be".
    pub wanted: &'static str,
    /// The meaning of numbers below 0; `None` if they are refused.
    pub below_zero: Option<u32>,
    /// The highest accepted number.
    pub most: u32,
}

impl Counts {
    /// Any whole number.
    pub const ANY: Self = Self { wanted: "a whole number", below_zero: None, most: u32::MAX };
    /// A number of tokens to keep, of which 0 keeps all.
    pub const OR_0_FOR_ALL: Self = Self { wanted: "a whole number, 0 for all", below_zero: Some(0), most: u32::MAX };
    /// A number of tokens to look back, of which -1 takes in the whole text.
    pub const OR_WHOLE_TEXT: Self =
        Self { wanted: "a whole number, -1 for the whole text", below_zero: Some(u32::MAX), most: u32::MAX };

    fn parse(&self, text: &str) -> Result<u32, &'static str> {
        let number: i64 = text.parse().map_err(|_| self.wanted)?;
        match u32::try_from(number) {
            Ok(number) => Ok(number),
            Err(_) if number < 0 => self.below_zero.ok_or(self.wanted),
            Err(_) => Err(self.wanted),
        }
    }
}

impl Parameter {
    /// Creates a parameter that is a number.
    pub(super) const fn number(name: &'static str, field: Field<f32>, range: Range, help: &'static str) -> Self {
        Self::new(name, Value::Number(field, range), help)
    }

    /// Creates a parameter that is a whole number.
    pub(super) const fn count(name: &'static str, field: Field<u32>, counts: Counts, help: &'static str) -> Self {
        Self::new(name, Value::Count(field, counts), help)
    }

    /// Creates a parameter of any type.
    pub(super) const fn new(name: &'static str, value: Value, help: &'static str) -> Self {
        let (aliases, hidden_aliases) = (&[], &[]);
        Self { name, aliases, hidden_aliases, help, common: None, contradicts_greedy: false, value }
    }

    /// Adds other names that the help shows.
    pub(super) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// Adds other names that are accepted.
    pub(super) const fn hidden_aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.hidden_aliases = aliases;
        self
    }

    /// Puts it at this position among the parameters that most people need.
    pub(super) const fn common(mut self, place: u8) -> Self {
        self.common = Some(place);
        self
    }

    /// Marks it as refused if the most likely token is always taken.
    pub(super) const fn contradicts_greedy(mut self) -> Self {
        self.contradicts_greedy = true;
        self
    }

    /// Returns the value in the form that [`Parameter::set`] takes.
    pub(super) fn get(&self, params: &Params) -> String {
        let words = |words: Vec<String>| if words.is_empty() { "none".to_string() } else { words.join(" ") };
        match &self.value {
            Value::Number(field, _) => (field.get)(params).to_string(),
            Value::Count(field, _) => match (field.get)(params) {
                &u32::MAX => "-1".to_string(),
                count => count.to_string(),
            },
            Value::Texts { field, .. } => {
                words((field.get)(params).iter().map(|text| text.replace('\n', "\\n")).collect())
            }
            Value::Biases(field) => {
                words((field.get)(params).iter().map(|(token, bias)| format!("{token}{bias:+}")).collect())
            }
            Value::Order(field) => (field.get)(params).iter().map(|kind| kind.name()).collect::<Vec<_>>().join(";"),
            Value::Seed(field) => (field.get)(params).map_or("random".to_string(), |seed| seed.to_string()),
        }
    }

    /// Sets the value from text.
    ///
    /// # Errors
    /// If `text` is not such a value. The error says what the value has to be. `params` may have changed even then.
    pub(super) fn set(&self, params: &mut Params, text: &str) -> Result<(), &'static str> {
        let words = || text.split_whitespace().filter(|word| *word != "none");
        match &self.value {
            Value::Number(field, range) => *(field.get_mut)(params) = text.parse().map_err(|_| range.wanted)?,
            Value::Count(field, counts) => *(field.get_mut)(params) = counts.parse(text)?,
            Value::Texts { field, .. } => {
                *(field.get_mut)(params) = words().map(|text| text.replace("\\n", "\n")).collect();
            }
            Value::Biases(field) => {
                const WANTED: &str = "tokens and biases such as 15043+1, with spaces between, or none";
                *(field.get_mut)(params) = words().map(parse_bias).collect::<Result<_, _>>().map_err(|_| WANTED)?;
            }
            Value::Order(field) => {
                const WANTED: &str = "names of samplers, such as top_k;top_p;temperature";
                *(field.get_mut)(params) = SamplerKind::parse_list(text).map_err(|_| WANTED)?;
            }
            Value::Seed(field) => {
                *(field.get_mut)(params) = match text {
                    "random" | "-1" => None,
                    number => Some(number.parse().map_err(|_| "a whole number, or 'random'")?),
                };
            }
        }
        self.check(params)
    }

    /// Checks that the value is within its range.
    ///
    /// # Errors
    /// If it is not. The error says what the value has to be.
    pub(super) fn check(&self, params: &Params) -> Result<(), &'static str> {
        let (is_fine, wanted) = match &self.value {
            Value::Number(field, range) => ((range.contains)(*(field.get)(params)), range.wanted),
            Value::Count(field, counts) => (*(field.get)(params) <= counts.most, counts.wanted),
            Value::Texts { field, .. } => {
                let is_fine = |text: &String| (1..=40).contains(&text.len());
                ((field.get)(params).iter().all(is_fine), "texts of 1 to 40 bytes")
            }
            Value::Biases(field) => {
                ((field.get)(params).iter().all(|(_, bias)| *bias < f32::INFINITY), "numbers, or minus infinity")
            }
            Value::Order(_) | Value::Seed(_) => (true, ""),
        };
        if is_fine { Ok(()) } else { Err(wanted) }
    }

    /// Returns whether `name` is one of its names.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name) || self.hidden_aliases.contains(&name)
    }
}
