//! Fields of requests that say how tokens are chosen: those of OpenAI's API and of llama.cpp's server, by their names.

use schemars::{Schema, json_schema};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::protocol::BiasOf;

/// A field.
struct Field {
    name: &'static str,
    kind: Kind,
}

/// What a field accepts.
enum Kind {
    /// A number from the first to the second, in the words of the third.
    Number(f64, f64, &'static str),
    /// A whole number from the first to the second, in the words of the third.
    Whole(i64, i64, &'static str),
    /// -1 for a random one.
    Seed,
    /// Texts of 1 to 40 bytes.
    Texts,
    /// Names of samplers, or their letters.
    Order,
}

const fn number(name: &'static str, low: f64, high: f64, wanted: &'static str) -> Field {
    Field { name, kind: Kind::Number(low, high, wanted) }
}

const fn whole(name: &'static str, low: i64, high: i64, wanted: &'static str) -> Field {
    Field { name, kind: Kind::Whole(low, high, wanted) }
}

const ANY: f64 = 1e30;
const MOST: i64 = u32::MAX as i64 - 1;
const FROM_0: &str = "a number of 0 or more";
const SHARE: &str = "a number from 0 to 1";
const COUNT: &str = "a whole number of 0 or more";
const BACK: &str = "a whole number of 0 or more, or -1 for the whole text";

/// All of them, by the names that the parameters of samplers have.
const FIELDS: [Field; 30] = [
    number("temperature", 0.0, ANY, FROM_0),
    number("top_p", 0.0, 1.0, SHARE),
    whole("top_k", -1, MOST, "a whole number, 0 for all"),
    number("min_p", 0.0, 1.0, SHARE),
    number("typical_p", 0.0, 1.0, SHARE),
    number("top_n_sigma", -ANY, ANY, "a number"),
    number("xtc_probability", 0.0, 1.0, SHARE),
    number("xtc_threshold", 0.0, 1.0, SHARE),
    number("dynatemp_range", 0.0, ANY, FROM_0),
    number("dynatemp_exponent", 0.0, ANY, FROM_0),
    whole("repeat_last_n", -1, MOST, BACK),
    number("repeat_penalty", 0.01, 100.0, "a number from 0.01 to 100"),
    number("presence_penalty", -2.0, 2.0, "a number from -2 to 2"),
    number("frequency_penalty", -2.0, 2.0, "a number from -2 to 2"),
    number("dry_multiplier", 0.0, ANY, FROM_0),
    number("dry_base", -ANY, ANY, "a number"),
    whole("dry_allowed_length", 0, MOST, COUNT),
    whole("dry_penalty_last_n", -1, MOST, BACK),
    Field { name: "dry_sequence_breakers", kind: Kind::Texts },
    whole("mirostat", 0, 2, "0 for off, 1 or 2"),
    number("mirostat_tau", 0.0, ANY, FROM_0),
    number("mirostat_eta", 0.0, ANY, FROM_0),
    number("adaptive_target", -ANY, 1.0, "a number of at most 1"),
    number("adaptive_decay", 0.0, 1.0, SHARE),
    whole("min_keep", 0, MOST, COUNT),
    Field { name: "seed", kind: Kind::Seed },
    Field { name: "samplers", kind: Kind::Order },
    // Other spellings of llama.cpp's.
    number("typ_p", 0.0, 1.0, SHARE),
    number("mirostat_ent", 0.0, ANY, FROM_0),
    number("mirostat_lr", 0.0, ANY, FROM_0),
];

/// Samplers by the letters of llama.cpp's short lists.
const LETTERS: [(char, &str); 9] = [
    ('e', "penalties"),
    ('d', "dry"),
    ('s', "top_n_sigma"),
    ('k', "top_k"),
    ('y', "typ_p"),
    ('p', "top_p"),
    ('m', "min_p"),
    ('x', "xtc"),
    ('t', "temperature"),
];

/// Reads the fields that are there, as names and values for the sampler.
///
/// # Errors
/// If one is out of its range. The error names it, and what is accepted.
pub fn read(request: &Value) -> Result<Vec<(String, String)>, ApiError> {
    let mut parameters = Vec::new();
    for field in &FIELDS {
        let value = &request[field.name];
        if value.is_null() {
            continue;
        }
        let text = field.kind.text(value).map_err(|wanted| {
            let shown: String = value.to_string().chars().take(40).collect();
            ApiError::field(field.name, format!("cannot be {shown}; it has to be {wanted}"))
        })?;
        if let Some(text) = text {
            parameters.push((field.name.to_string(), text));
        }
    }
    Ok(parameters)
}

impl Kind {
    /// Returns the value in the form that samplers read; `None` for what they do anyway.
    fn text(&self, value: &Value) -> Result<Option<String>, &'static str> {
        let text = match self {
            Self::Number(low, high, wanted) => {
                let number = value.as_f64().filter(|number| (*low..=*high).contains(number)).ok_or(*wanted)?;
                number.to_string()
            }
            Self::Whole(low, high, wanted) => {
                whole_number(value).filter(|number| (*low..=*high).contains(number)).ok_or(*wanted)?.to_string()
            }
            Self::Seed => {
                let wanted = "a whole number of 0 or more, or -1 for a random one";
                match (value.as_u64(), whole_number(value)) {
                    (Some(seed), _) => seed.to_string(),
                    (None, Some(-1)) => return Ok(None),
                    (None, Some(seed)) if seed >= 0 => seed.to_string(),
                    _ => return Err(wanted),
                }
            }
            Self::Texts => {
                let wanted = "a list of texts of 1 to 40 bytes without spaces";
                let text = |value: &Value| {
                    let text = value.as_str()?.replace('\n', "\\n");
                    Some(text).filter(|text| (1..=40).contains(&text.len()) && !text.contains(char::is_whitespace))
                };
                let texts: Option<Vec<String>> = value.as_array().ok_or(wanted)?.iter().map(text).collect();
                let texts = texts.ok_or(wanted)?;
                if texts.is_empty() { "none".to_string() } else { texts.join(" ") }
            }
            Self::Order => order(value).ok_or("a list of names such as top_k and temperature, or a text of letters")?,
        };
        Ok(Some(text))
    }

    fn schema(&self) -> Schema {
        match self {
            Self::Number(low, high, _) => {
                let mut schema = json_schema!({"type": ["number", "null"]});
                if *low > -ANY {
                    schema.insert("minimum".to_string(), json!(low));
                }
                if *high < ANY {
                    schema.insert("maximum".to_string(), json!(high));
                }
                schema
            }
            Self::Whole(low, high, _) => json_schema!({"type": ["integer", "null"], "minimum": low, "maximum": high}),
            Self::Seed => json_schema!({"type": ["integer", "null"], "minimum": -1, "maximum": u64::MAX}),
            Self::Texts => json_schema!({
                "type": ["array", "null"],
                "items": {"type": "string", "minLength": 1, "maxLength": 40, "pattern": "^\\S*$"},
            }),
            Self::Order => json_schema!({"type": ["array", "string", "null"], "items": {"type": "string"}}),
        }
    }
}

/// A whole number, also if it is written as `3.0`.
fn whole_number(value: &Value) -> Option<i64> {
    let of_float = |number: &f64| number.fract() == 0.0 && number.abs() < 1e15;
    value.as_i64().or_else(|| value.as_f64().filter(of_float).map(|number| number as i64))
}

fn order(value: &Value) -> Option<String> {
    if let Some(names) = value.as_array() {
        let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
        return Some(names?.join(";"));
    }
    let text = value.as_str()?;
    let of_letter = |c| LETTERS.iter().find(|(letter, _)| *letter == c).map(|(_, name)| *name);
    let letters: Option<Vec<&str>> = text.chars().map(of_letter).collect();
    Some(letters.map_or_else(|| text.to_string(), |names| names.join(";")))
}

/// Returns what is added to logits: OpenAI's object of tokens, or llama.cpp's list of pairs.
///
/// # Errors
/// If it is neither.
pub fn biases(value: &Value) -> Result<Vec<(BiasOf, f32)>, ApiError> {
    let wrong =
        |what: String| ApiError::field("logit_bias", format!("{what}; it has to be an object of tokens and numbers"));
    let bias = |value: &Value| match value {
        // JSON has no infinity. This is as good: no logit is larger.
        Value::Bool(false) => Some(f32::MIN),
        other => other.as_f64().filter(|bias| bias.abs() <= 1e6).map(|bias| bias as f32),
    };
    let of_pair = |pair: &Value| {
        let (of, by) = (pair.get(0)?, bias(pair.get(1)?)?);
        let of = match of {
            Value::String(text) => BiasOf::Text(text.clone()),
            other => BiasOf::Token(u32::try_from(other.as_u64()?).ok()?),
        };
        Some((of, by))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => {
            let of_entry = |(token, value): (&String, &Value)| {
                let number = bias(value).filter(|bias| (-100.0..=100.0).contains(bias) || *bias == f32::MIN);
                match (token.parse(), number) {
                    (Ok(token), Some(number)) => Ok((BiasOf::Token(token), number)),
                    (Err(_), _) => {
                        let shown: String = token.chars().take(40).collect();
                        Err(wrong(format!("has the key '{shown}', which is not the number of a token")))
                    }
                    (_, None) => Err(wrong(format!("of token {token} has to be a number from -100 to 100"))),
                }
            };
            map.iter().map(of_entry).collect()
        }
        Value::Array(pairs) => {
            let pairs: Option<Vec<_>> = pairs.iter().map(of_pair).collect();
            pairs.ok_or_else(|| {
                wrong("has an entry that is not a pair such as [15043, -1.5] or [\"Hello\", false]".to_string())
            })
        }
        _ => Err(wrong("is neither an object nor a list".to_string())),
    }
}

/// Returns the schema of the fields.
pub fn schema() -> Schema {
    let mut properties: Map<String, Value> =
        FIELDS.iter().map(|field| (field.name.to_string(), field.kind.schema().to_value())).collect();
    properties.insert("logit_bias".to_string(), json!({"type": ["object", "array", "null"]}));
    json_schema!({
        "description": "How tokens are chosen. Values that are not given are the server's.",
        "type": "object",
        "properties": properties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_form_that_samplers_read() {
        let request = json!({"temperature": 0.5, "top_k": 40.0, "seed": 18_446_744_073_709_551_615_u64, "min_p": null,
            "mirostat": 2,
            "dry_sequence_breakers": ["\n", ":"], "samplers": ["top_k", "temperature"], "unknown": 1});
        let pairs = read(&request).unwrap();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let wanted = [
            ("temperature", "0.5"),
            ("top_k", "40"),
            ("dry_sequence_breakers", "\\n :"),
            ("mirostat", "2"),
            ("seed", "18446744073709551615"),
            ("samplers", "top_k;temperature"),
        ];
        assert_eq!(pairs, wanted);
        assert_eq!(read(&json!({"seed": -1})).unwrap(), []);
        assert_eq!(read(&json!({"samplers": "kt"})).unwrap()[0].1, "top_k;temperature");
        assert_eq!(read(&json!({"samplers": "top_k;min_p"})).unwrap()[0].1, "top_k;min_p");
    }

    #[test]
    fn what_is_out_of_range_is_named_with_what_is_accepted() {
        for (request, words) in [
            (json!({"temperature": -1}), "'temperature' cannot be -1; it has to be a number of 0 or more"),
            (json!({"temperature": "warm"}), "cannot be \"warm\""),
            (json!({"top_p": 1.5}), "it has to be a number from 0 to 1"),
            (json!({"top_k": 1.5}), "it has to be a whole number, 0 for all"),
            (json!({"seed": -2}), "or -1 for a random one"),
            (json!({"presence_penalty": 3}), "a number from -2 to 2"),
            (json!({"dry_sequence_breakers": [""]}), "a list of texts"),
            (json!({"samplers": 1}), "a list of names"),
            (json!({"mirostat": 3}), "0 for off, 1 or 2"),
        ] {
            let error = read(&request).unwrap_err();
            assert!(error.message.contains(words), "{}", error.message);
            assert_eq!(error.param.as_deref(), request.as_object().unwrap().keys().next().map(String::as_str));
        }
    }

    #[test]
    fn biases_have_two_forms() {
        let wanted = vec![(BiasOf::Token(15043), -1.5), (BiasOf::Text("Hi".to_string()), f32::MIN)];
        assert_eq!(biases(&json!([[15043, -1.5], ["Hi", false]])).unwrap(), wanted);
        assert_eq!(biases(&json!({"7": 100})).unwrap(), [(BiasOf::Token(7), 100.0)]);
        for wrong in [json!({"a": 1}), json!({"7": 101}), json!({"7": "x"}), json!([[1]]), json!([[-1, 1]]), json!("x")]
        {
            assert!(biases(&wrong).is_err(), "{wrong}");
        }
        // It arrives at the engine as it is.
        let task = serde_json::to_string(&wanted).unwrap();
        assert_eq!(serde_json::from_str::<Vec<(BiasOf, f32)>>(&task).unwrap(), wanted);
    }
}
