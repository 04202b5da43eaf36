//! Fields of requests that say how tokens are chosen: those of OpenAI's API and of llama.cpp's server, by their names.

use schemars::{Schema, json_schema};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::protocol::BiasOf;
use crate::sample::{Params, SamplerKind};

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

/// All of them, by the names that the parameters of samplers have. Bounds are those of the APIs, which samplers accept, too: a
/// test compares both tables.
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
    number("dry_base", 0.0, ANY, "a number of 1 or more, or 0"),
    whole("dry_allowed_length", 0, MOST, COUNT),
    whole("dry_penalty_last_n", -1, MOST, BACK),
    Field { name: "dry_sequence_breakers", kind: Kind::Texts },
    whole("mirostat", 0, 2, "0 for off, 1 or 2"),
    number("mirostat_tau", 0.0, ANY, FROM_0),
    number("mirostat_eta", 0.0, ANY, FROM_0),
    number("adaptive_target", -ANY, 1.0, "a number of at most 1"),
    number("adaptive_decay", 0.0, 0.99, "a number from 0 to 0.99"),
    whole("min_keep", 0, MOST, COUNT),
    Field { name: "seed", kind: Kind::Seed },
    Field { name: "samplers", kind: Kind::Order },
    // Other spellings of llama.cpp's.
    number("typ_p", 0.0, 1.0, SHARE),
    number("mirostat_ent", 0.0, ANY, FROM_0),
    number("mirostat_lr", 0.0, ANY, FROM_0),
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

/// Returns all settings of the sampler, as requests have them: its defaults, and what `parameters` change, which are those
/// that [`read`] returns.
pub fn settings(parameters: &[(String, String)]) -> Map<String, Value> {
    let mut params = Params::default();
    for (name, value) in parameters {
        // What cannot be set is the engine's to refuse.
        let _ = params.set(name, value);
    }
    let setting = |name: &'static str| {
        let field = FIELDS.iter().find(|field| field.name == name)?;
        Some((name.to_string(), field.kind.value(&params.get(name).ok()?)))
    };
    Params::names().filter_map(setting).collect()
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

    /// Returns the value in the form that requests have, from that which samplers have.
    fn value(&self, text: &str) -> Value {
        match self {
            // Its shortest spelling: 0.8 is not 0.800000011920929.
            Self::Number(..) => text.parse::<f64>().ok().into(),
            Self::Whole(..) => text.parse::<i64>().ok().into(),
            Self::Seed => text.parse::<u64>().map_or(json!(-1), Value::from),
            Self::Texts if text == "none" => json!([]),
            Self::Texts => text.split(' ').map(|text| text.replace("\\n", "\n")).collect(),
            Self::Order => text.split(';').filter(|name| !name.is_empty()).collect(),
        }
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

/// Returns a whole number, also if it is written as `3.0`.
pub fn whole_number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().and_then(whole_float))
}

/// Returns a float as a whole number if it is one, and small enough to be exact.
pub fn whole_float(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64)
}

fn order(value: &Value) -> Option<String> {
    if let Some(names) = value.as_array() {
        let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
        return Some(names?.join(";"));
    }
    let text = value.as_str()?;
    let joined = |kinds: Vec<SamplerKind>| kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(";");
    Some(SamplerKind::parse_letters(text).map_or_else(|_| text.to_string(), joined))
}

/// Returns what is added to logits: OpenAI's object of tokens, or llama.cpp's list of pairs. In both, a text stands for its
/// tokens.
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
            other => BiasOf::Token(u32::try_from(whole_number(other)?).ok()?),
        };
        Some((of, by))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(map) => {
            let of_entry = |(token, value): (&String, &Value)| {
                let number = bias(value).filter(|bias| (-100.0..=100.0).contains(bias) || *bias == f32::MIN);
                let shown = || token.chars().take(40).collect::<String>();
                let digits = token.strip_prefix('-').unwrap_or(token);
                let of = match token.parse() {
                    Ok(token) => BiasOf::Token(token),
                    Err(_) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                        return Err(wrong(format!("has the key '{}', which is not the number of a token", shown())));
                    }
                    Err(_) => BiasOf::Text(token.clone()),
                };
                let missing = || wrong(format!("of token '{}' has to be a number from -100 to 100", shown()));
                Ok((of, number.ok_or_else(missing)?))
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

/// Returns biases as llama.cpp's server shows them: a list of objects, whose `bias` is null for one that rules a token out.
pub fn bias_values(biases: &[(BiasOf, f32)]) -> Value {
    let value = |(of, by): &(BiasOf, f32)| {
        let token = match of {
            BiasOf::Token(token) => Value::from(*token),
            BiasOf::Text(text) => Value::from(text.as_str()),
        };
        json!({"token": token, "bias": (*by > f32::MIN).then_some(*by)})
    };
    biases.iter().map(value).collect()
}

/// Returns the schema of the fields.
pub fn schema() -> Schema {
    let mut properties: Map<String, Value> =
        FIELDS.iter().map(|field| (field.name.to_string(), field.kind.schema().to_value())).collect();
    let biases = json!({
        "type": ["object", "array", "null"],
        "additionalProperties": {"type": ["number", "boolean"], "minimum": -100, "maximum": 100, "not": {"const": true}},
        "items": {
            "type": "array",
            "minItems": 2,
            "prefixItems": [
                {"type": ["integer", "string"], "minimum": 0, "maximum": u32::MAX},
                {"type": ["number", "boolean"], "minimum": -1e6, "maximum": 1e6, "not": {"const": true}},
            ],
        },
    });
    properties.insert("logit_bias".to_string(), biases);
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
    fn settings_are_the_defaults_and_what_was_asked_for() {
        let defaults = settings(&[]);
        for (name, value) in [
            ("temperature", json!(0.8)),
            ("top_k", json!(40)),
            ("repeat_last_n", json!(64)),
            ("dry_penalty_last_n", json!(64)),
            ("dry_sequence_breakers", json!(["\n", ":", "\"", "*"])),
            ("adaptive_decay", json!(0.9)),
            ("seed", json!(-1)),
        ] {
            assert_eq!(defaults[name], value, "{name}");
        }
        assert_eq!(defaults["samplers"].as_array().unwrap().len(), 9);
        assert!(!defaults.contains_key("typ_p") && !defaults.contains_key("logit_bias"));
        // They can be sent as they are.
        assert_eq!(settings(&read(&defaults.clone().into()).unwrap()), defaults);
        let asked = json!({"temperature": 0.1, "seed": 7, "samplers": "kt", "dry_sequence_breakers": [], "typ_p": 0.5});
        let got = settings(&read(&asked).unwrap());
        assert_eq!((&got["temperature"], &got["seed"], &got["typical_p"]), (&json!(0.1), &json!(7), &json!(0.5)));
        assert_eq!((&got["samplers"], &got["dry_sequence_breakers"]), (&json!(["top_k", "temperature"]), &json!([])));
        assert_eq!(got["top_p"], defaults["top_p"]);
    }

    #[test]
    fn every_parameter_is_a_field_and_samplers_accept_what_fields_do() {
        for name in Params::names().filter(|name| *name != "logit_bias") {
            assert!(FIELDS.iter().any(|field| field.name == name), "{name}");
        }
        for field in &FIELDS {
            let set = |value: String| Params::default().set(field.name, &value);
            let results = match field.kind {
                Kind::Number(low, high, _) => [set(low.to_string()), set(high.to_string())],
                Kind::Whole(low, high, _) => [set(low.to_string()), set(high.to_string())],
                Kind::Seed => [set("0".to_string()), set(u64::MAX.to_string())],
                Kind::Texts => [set("none".to_string()), set("\\n :".to_string())],
                Kind::Order => [set(order(&json!("kt")).unwrap()), set(order(&json!(["top_k"])).unwrap())],
            };
            assert!(results.iter().all(Result::is_ok), "{}: {results:?}", field.name);
        }
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
        let mapped = biases(&json!({"7": 100, " the ": -100, "": false})).unwrap();
        let text = |text: &str| BiasOf::Text(text.to_string());
        assert_eq!(mapped, [(BiasOf::Token(7), 100.0), (text(" the "), -100.0), (text(""), f32::MIN)]);
        assert_eq!(biases(&json!([[7.0, 1]])).unwrap(), [(BiasOf::Token(7), 1.0)]);
        let schema = schema().to_value();
        let schema = jsonschema::validator_for(&schema["properties"]["logit_bias"]).unwrap();
        for wrong in [
            json!({"7": 101}),
            json!({"a": "x"}),
            json!({"7": true}),
            json!([[1]]),
            json!([[-1, 1]]),
            json!([["a", true]]),
            json!("x"),
        ] {
            assert!(biases(&wrong).is_err() && !schema.is_valid(&wrong), "{wrong}");
        }
        for wrong in [json!({"-1": 1}), json!({"4294967296": 1})] {
            assert!(biases(&wrong).unwrap_err().message.contains("not the number of a token"), "{wrong}");
        }
        let shown = json!([{"token": 15043, "bias": -1.5}, {"token": "Hi", "bias": null}]);
        assert_eq!(bias_values(&wanted), shown);
        // It arrives at the engine as it is.
        let task = serde_json::to_string(&wanted).unwrap();
        assert_eq!(serde_json::from_str::<Vec<(BiasOf, f32)>>(&task).unwrap(), wanted);
    }
}
