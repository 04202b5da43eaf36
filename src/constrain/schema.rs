//! JSON schemas: refuses what is not supported, and makes some formats more precise, before a schema is compiled.
//!
//! Specification: <https://json-schema.org/draft/2020-12>. Every keyword is enforced or refused, so a text that was not
//! cut short satisfies the schema.

use crate::base::text::after_mark;
use std::collections::{BTreeMap, BTreeSet};

use llguidance::derivre::RegexBuilder;
use serde_json::{Map, Value, json};

use super::grammar::{LONGEST_REGEX, plain};
use super::rewrite;

/// The largest schema, in bytes. The largest in common use (FHIR) has about 4 MB.
const LONGEST: usize = 8 << 20;
/// The largest number up to which a 64-bit float represents every integer.
const LARGEST_EXACT: f64 = 9_007_199_254_740_992.0;

/// White space in JSON: nothing, one space, or one line break with indentation, so that a model cannot write white
/// space forever. llama.cpp's own JSON grammars allow the same.
const SPACE: &str = r" |\n(?: {0,20}|\t{0,8})";

/// Keywords that are never enforced, and those of versions that no validator in use knows.
const UNSUPPORTED: [&str; 6] = ["$dynamicRef", "$recursiveRef", "contentSchema", "extends", "disallow", "divisibleBy"];

/// The types of JSON.
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// The known dialects.
const DIALECTS: [&str; 5] = [
    "http://json-schema.org/draft-04/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
];

/// The most names in one object. The work grows with their square.
const MOST_NAMES: usize = 1000;

const MAPS: [&str; 6] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
const LISTS: [&str; 4] = ["prefixItems", "anyOf", "oneOf", "allOf"];
const SINGLE: [&str; 8] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "contains",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Formats of the specification for which there is no expression. Other unknown formats are ignored, as the
/// specification says.
const UNSUPPORTED_FORMATS: [&str; 9] = [
    "idn-email",
    "idn-hostname",
    "iri",
    "iri-reference",
    "json-pointer",
    "regex",
    "relative-json-pointer",
    "uri-reference",
    "uri-template",
];
const FORMATS: [&str; 7] = ["duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Reads the schema in `text`, and prepares it for compilation.
///
/// # Errors
/// If it is not JSON. The error is in words that follow `the JSON schema: `.
pub(super) fn read(text: &str) -> Result<Prepared, String> {
    if text.len() > LONGEST {
        return Err(format!("it has {} bytes; at most {LONGEST} are allowed", text.len()));
    }
    let text = after_mark(text);
    let schema = serde_json::from_str(text).map_err(|error| format!("this is not JSON: {error}"))?;
    prepare(unwrapped(schema)?)
}

/// Takes a schema out of what OpenAI's API, and others after it, put around it: `{"type": "json_schema", "json_schema":
/// {"name": ..., "strict": true, "schema": {...}}}`, and the parts of that.
fn unwrapped(mut value: Value) -> Result<Value, String> {
    const OWN: [&str; 8] = ["$schema", "$ref", "properties", "anyOf", "oneOf", "allOf", "enum", "$defs"];
    for _ in 0..4 {
        let Value::Object(object) = &mut value else { break };
        if OWN.iter().any(|key| object.contains_key(*key)) {
            break;
        }
        let kind = object.get("type").and_then(Value::as_str).map(str::to_string);
        let is_wrapper = match kind.as_deref() {
            Some("json_schema" | "json_object") => true,
            Some(_) => false,
            None => true,
        };
        let inner = ["response_format", "json_schema", "schema"]
            .iter()
            .find(|key| object.get(**key).is_some_and(Value::is_object));
        match inner.filter(|_| is_wrapper) {
            Some(key) => value = object.remove(*key).unwrap_or_default(),
            None if kind.as_deref() == Some("json_object") => return Ok(json!({"type": "object"})),
            None if kind.as_deref() == Some("json_schema") => {
                return Err(
                    "#/type is 'json_schema', but there is no schema under 'json_schema' or 'schema'".to_string()
                );
            }
            None => break,
        }
    }
    Ok(value)
}

/// A schema that is ready to be compiled.
#[derive(Debug)]
pub(super) struct Prepared {
    pub schema: Value,
    /// Keywords that compilation may refuse, with the JSON pointers of the schemas that have them.
    held: Vec<(&'static str, String)>,
}

/// Keywords that the engine supports in some schemas, which is not known before they are compiled.
const HELD: [&str; 4] = ["oneOf", "minProperties", "maxProperties", "patternProperties"];

impl Prepared {
    /// Puts in front of a refusal of the engine, in our words, where its keyword stands.
    pub fn placed(&self, why: String) -> String {
        let mut places: Vec<&str> = Vec::new();
        for (key, place) in &self.held {
            if why.contains(&format!("'{key}'")) && !places.contains(&place.as_str()) {
                places.push(place);
            }
        }
        match places.as_slice() {
            [] => why,
            [place] => format!("{place}: {why}"),
            [first, second] => format!("{first} or {second}: {why}"),
            [first, second, rest @ ..] => format!("{first}, {second} or one of {} more places: {why}", rest.len()),
        }
    }
}

/// Prepares a parsed schema for compilation, as in [`read`].
fn prepare(mut schema: Value) -> Result<Prepared, String> {
    match &schema {
        Value::Object(_) => {}
        Value::Bool(true) => schema = json!({}),
        Value::Bool(false) => return Err("it is 'false', which nothing satisfies".to_string()),
        other => {
            return Err(format!("it is {}, and must be an object such as {{\"type\": \"object\"}}", kind(other)));
        }
    }
    let root = schema.clone();
    let mut walk = Walk { root: &root, visited: BTreeSet::new(), references: Vec::new(), held: Vec::new() };
    walk.visit(&mut schema, "")?;
    // What is referred to counts wherever it stands, as OpenAPI's schemas do under #/components/schemas.
    while let Some((target, from)) = walk.references.pop() {
        if walk.visited.contains(&target) {
            continue;
        }
        match schema.pointer_mut(&target) {
            Some(found) => walk.visit(found, &target)?,
            None => return Err(format!("{}/$ref refers to '{}', which is not there", shown(&from), shown(&target))),
        }
    }
    let held = walk.held;
    check_ends(&schema)?;
    // With \u escapes, a name could be spelled in two ways and so occur twice. Without them, most control characters
    // cannot be written, which only matters if the schema has some.
    let escapes = if has_control(&schema) { "nrbtf\\\"u" } else { "nrbtf\\\"" };
    if let Some(object) = schema.as_object_mut() {
        let options = json!({ "whitespace_pattern": SPACE, "json_allowed_escapes": escapes });
        object.insert("x-guidance".to_string(), options);
    }
    Ok(Prepared { schema, held })
}

/// Returns whether a string in the schema has a control character that JSON writes as a \u escape.
fn has_control(value: &Value) -> bool {
    let odd = |text: &str| text.chars().any(|c| c < ' ' && !matches!(c, '\n' | '\r' | '\t' | '\x08' | '\x0c'));
    match value {
        Value::String(text) => odd(text),
        Value::Array(list) => list.iter().any(has_control),
        Value::Object(object) => object.iter().any(|(name, value)| {
            !matches!(name.as_str(), "description" | "title" | "$comment" | "default" | "examples")
                && (odd(name) || has_control(value))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Goes through a schema, and what it refers to.
struct Walk<'a> {
    /// The schema before anything was changed.
    root: &'a Value,
    /// Where it was, as JSON pointers.
    visited: BTreeSet<String>,
    /// Where references point, and where they stand.
    references: Vec<(String, String)>,
    /// See [`Prepared::held`].
    held: Vec<(&'static str, String)>,
}

impl Walk<'_> {
    /// Checks the schema at a JSON pointer and those within it, and puts keywords and formats more exactly.
    fn visit(&mut self, schema: &mut Value, pointer: &str) -> Result<(), String> {
        self.visited.insert(pointer.to_string());
        let path = &shown(pointer);
        let object = match schema {
            Value::Object(object) => object,
            Value::Bool(_) => return Ok(()),
            other => return Err(format!("{path} is {}, and must be an object, true or false", kind(other))),
        };
        // Keywords without effect, and unknown dialects.
        object.retain(|key, value| match key.as_str() {
            "uniqueItems" => *value != Value::Bool(false),
            "$schema" => value.as_str().is_some_and(|name| DIALECTS.contains(&name.trim_end_matches('#'))),
            _ => true,
        });
        check_kinds(object, path)?;
        check_keys(object, path)?;
        self.follow(object, pointer)?;
        check_bounds(object, path)?;
        exact_format(object, path)?;

        for (key, value) in object.iter_mut() {
            let below = format!("{pointer}/{}", escape(key));
            let at = || shown(&below);
            if MAPS.contains(&key.as_str()) {
                let Value::Object(map) = value else {
                    return Err(format!("{} is {}, and must be an object", at(), kind(value)));
                };
                if map.len() > MOST_NAMES && key.ends_with("roperties") {
                    return Err(format!("{} has {} names; at most {MOST_NAMES} are allowed", at(), map.len()));
                }
                if key == "patternProperties" {
                    map.keys().try_for_each(|pattern| check_pattern(pattern, &at()))?;
                }
                for (name, schema) in map {
                    if key != "dependencies" || !schema.is_array() {
                        self.visit(schema, &format!("{below}/{}", escape(name)))?;
                    }
                }
            } else if LISTS.contains(&key.as_str()) || (key == "items" && value.is_array()) {
                let Value::Array(list) = value else {
                    return Err(format!("{} is {}, and must be a list", at(), kind(value)));
                };
                if list.is_empty() && key != "items" && key != "prefixItems" {
                    return Err(format!("{} is empty", at()));
                }
                for (i, schema) in list.iter_mut().enumerate() {
                    self.visit(schema, &format!("{below}/{i}"))?;
                }
            } else if SINGLE.contains(&key.as_str()) {
                self.visit(value, &below)?;
            }
        }
        rewrite::rewrite(object, self.root).map_err(|(key, why)| format!("{path} has '{key}', which {why}"))?;
        self.held.extend(HELD.into_iter().filter(|key| object.contains_key(*key)).map(|key| (key, path.clone())));
        Ok(())
    }

    /// Notes where a reference points. Names of anchors, and the schema's own address, become pointers.
    fn follow(&mut self, object: &mut Map<String, Value>, from: &str) -> Result<(), String> {
        let id = object.get("$id").and_then(Value::as_str);
        if !from.is_empty() && id.is_some_and(|id| !id.starts_with('#')) && object.values().any(has_reference) {
            return Err(format!(
                "{} has '$id', which changes what the references in it mean; move the schema into a file of its own, or \
                 remove '$id'",
                shown(from)
            ));
        }
        let Some(Value::String(reference)) = object.get_mut("$ref") else { return Ok(()) };
        let own = self.root.get("$id").and_then(Value::as_str).map(|id| id.trim_end_matches('#'));
        if let Some(rest) = own.filter(|id| !id.is_empty()).and_then(|id| reference.strip_prefix(id))
            && (rest.is_empty() || rest.starts_with('#'))
        {
            *reference = if rest.is_empty() { "#".to_string() } else { rest.to_string() };
        }
        if !reference.starts_with('#') {
            let reference: String = reference.chars().take(200).collect();
            return Err(format!(
                "{} refers to '{reference}'; only references into the same schema are followed, such as '#/$defs/name'",
                shown(from)
            ));
        }
        let target = match pointer(reference) {
            Some(target) => target,
            None => {
                let target = anchor(self.root, &reference[1..], String::new(), 0).ok_or_else(|| {
                    let reference: String = reference.chars().take(200).collect();
                    format!("{}/$ref refers to '{reference}', which is not there", shown(from))
                })?;
                *reference = format!("#{}", encoded(&target));
                target
            }
        };
        self.references.push((target, from.to_string()));
        Ok(())
    }
}

/// The JSON pointer that a reference of the form `#` or `#/...` has; `None` for others.
pub(super) fn pointer(reference: &str) -> Option<String> {
    let fragment = reference.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    // A single slash names the whole to the engine.
    let fragment = if fragment == "/" { "" } else { fragment };
    let (mut bytes, mut rest) = (Vec::new(), fragment.as_bytes());
    while let [first, after @ ..] = rest {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// A pointer as the fragment of an address.
fn encoded(pointer: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~$".contains(&byte);
    pointer.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Returns where the schema with an anchor stands.
fn anchor(value: &Value, name: &str, at: String, depth: usize) -> Option<String> {
    if depth > 100 {
        return None;
    }
    match value {
        Value::Object(object) => {
            let is = |key: &str, text: &str| object.get(key).and_then(Value::as_str) == Some(text);
            if is("$anchor", name) || is("$id", &format!("#{name}")) || is("id", &format!("#{name}")) {
                return Some(at);
            }
            let mut inner =
                object.iter().filter(|(key, _)| !["enum", "const", "default", "examples"].contains(&key.as_str()));
            inner.find_map(|(key, value)| anchor(value, name, format!("{at}/{}", escape(key)), depth + 1))
        }
        Value::Array(list) => {
            list.iter().enumerate().find_map(|(i, value)| anchor(value, name, format!("{at}/{i}"), depth + 1))
        }
        _ => None,
    }
}

fn has_reference(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.contains_key("$ref") || object.values().any(has_reference),
        Value::Array(list) => list.iter().any(has_reference),
        _ => false,
    }
}

/// Escapes a name for a JSON pointer (RFC 6901).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A JSON pointer for a message. Its parts are cut if a hostile schema makes them long.
fn shown(pointer: &str) -> String {
    let parts = pointer.split('/').map(|part| part.chars().take(60).collect::<String>());
    let path = format!("#{}", parts.collect::<Vec<_>>().join("/"));
    crate::base::display::printable(&path.chars().take(1000).collect::<String>()).into_owned()
}

/// Checks that keywords have the kinds of values that the specification asks for.
fn check_kinds(object: &mut Map<String, Value>, path: &str) -> Result<(), String> {
    for (key, value) in object.iter_mut() {
        let wanted = match key.as_str() {
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" | "minContains"
            | "maxContains" => {
                // 2.0 is a whole number, too.
                if let Some(n) =
                    value.as_f64().filter(|n| value.is_f64() && n.fract() == 0.0 && (0.0..1e15).contains(n))
                {
                    *value = (n as u64).into();
                }
                (!value.is_u64()).then_some("a whole number from 0")
            }
            "minimum" | "maximum" | "multipleOf" => (!value.is_number()).then_some("a number"),
            "exclusiveMinimum" | "exclusiveMaximum" => {
                (!value.is_number() && !value.is_boolean()).then_some("a number")
            }
            "pattern" | "$ref" => (!value.is_string()).then_some("a string"),
            "required" => {
                let is_names = value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
                (!is_names).then_some("a list of strings")
            }
            "enum" => (!value.is_array()).then_some("a list"),
            "type" => {
                let kinds = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                for found in kinds {
                    match found.as_str() {
                        Some(name) if TYPES.contains(&name) => {}
                        Some(name) => {
                            let name: String = name.chars().take(60).collect();
                            return Err(format!("{path}/type is '{name}', and must be one of {}", TYPES.join(", ")));
                        }
                        None => return Err(format!("{path}/type is {}, and must be a string", kind(found))),
                    }
                }
                kinds.is_empty().then_some("a type")
            }
            _ => None,
        };
        if let Some(wanted) = wanted {
            let found = if value.is_number() { value.to_string() } else { kind(value).to_string() };
            return Err(format!("{path}/{key} is {found}, and must be {wanted}"));
        }
    }
    if object.get("multipleOf").and_then(Value::as_f64).is_some_and(|n| n <= 0.0) {
        return Err(format!("{path}/multipleOf is {}, and must be above 0", object["multipleOf"]));
    }
    Ok(())
}

fn check_keys(object: &Map<String, Value>, path: &str) -> Result<(), String> {
    for key in object.keys() {
        if UNSUPPORTED.contains(&key.as_str()) {
            return Err(format!(
                "{path} has '{key}', which cannot be enforced while the text is being written; remove it and check \
                 the text afterwards"
            ));
        }
    }
    if let Some(Value::Array(list)) = object.get("enum")
        && list.is_empty()
    {
        return Err(format!("{path}/enum is empty, so nothing satisfies it"));
    }
    let names = object.get("propertyNames").and_then(|names| names.get("pattern"));
    for (pattern, at) in [(object.get("pattern"), "pattern"), (names, "propertyNames/pattern")] {
        if let Some(Value::String(pattern)) = pattern {
            check_pattern(pattern, &format!("{path}/{at}"))?;
        }
    }
    Ok(())
}

fn check_pattern(pattern: &str, path: &str) -> Result<(), String> {
    if pattern.len() > LONGEST_REGEX {
        return Err(format!("{path} has a pattern of {} bytes; at most {LONGEST_REGEX} are allowed", pattern.len()));
    }
    let made = RegexBuilder::new().mk_regex_for_serach(&llguidance::regex_to_lark(pattern, "dw"));
    made.map(drop).map_err(|error| format!("{path}: {}", plain(&error.to_string())))
}

fn check_bounds(object: &Map<String, Value>, path: &str) -> Result<(), String> {
    fn exact(at: &str, value: &Value, path: &str) -> Result<(), String> {
        match value {
            Value::Number(number) if number.as_f64().is_some_and(|number| number.abs() > LARGEST_EXACT) => {
                Err(format!(
                    "{path}/{at} is {value}; numbers beyond {LARGEST_EXACT} are not exact in JSON, and cannot be enforced"
                ))
            }
            Value::Array(list) => list.iter().try_for_each(|value| exact(at, value, path)),
            Value::Object(object) => object.values().try_for_each(|value| exact(at, value, path)),
            _ => Ok(()),
        }
    }
    for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const", "enum"] {
        object.get(key).map_or(Ok(()), |value| exact(key, value, path))?;
    }
    for (low, high) in [
        ("minimum", "maximum"),
        ("minLength", "maxLength"),
        ("minItems", "maxItems"),
        ("minProperties", "maxProperties"),
    ] {
        if let (Some(low_value), Some(high_value)) = (object.get(low), object.get(high))
            && let (Some(l), Some(h)) = (low_value.as_f64(), high_value.as_f64())
            && l > h
        {
            return Err(format!("{path} has {low} {low_value} above {high} {high_value}, so nothing satisfies it"));
        }
    }
    Ok(())
}

/// Replaces the date and time formats by patterns that date libraries accept: the right days in February, and no leap
/// seconds.
fn exact_format(object: &mut Map<String, Value>, path: &str) -> Result<(), String> {
    const DATE: &str = concat!(
        r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
        r"|02-(?:0[1-9]|1[0-9]|2[0-8]))",
        r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)",
    );
    const TIME: &str = concat!(
        r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?",
        r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    );
    let Some(Value::String(format)) = object.get("format") else { return Ok(()) };
    let pattern = match format.as_str() {
        "date" => format!("^{DATE}$"),
        "time" => format!("^{TIME}$"),
        "date-time" => format!("^{DATE}T{TIME}$"),
        known if FORMATS.contains(&known) => return Ok(()),
        known if UNSUPPORTED_FORMATS.contains(&known) => {
            return Err(format!("{path} has the format '{known}', which is not supported; use 'pattern'"));
        }
        _ => String::new(),
    };
    object.remove("format");
    if pattern.is_empty() {
        return Ok(());
    }
    if !object.contains_key("pattern") {
        object.insert("pattern".to_string(), pattern.into());
    } else if let Value::Array(all) = object.entry("allOf").or_insert_with(|| json!([])) {
        all.push(json!({ "pattern": pattern }));
    }
    Ok(())
}

/// Refuses a schema that requires itself, such as an object that requires an object of the same kind.
///
/// Finds the referenced schemas that some finite text satisfies, step by step: first those that require no other, then
/// those that require only these.
fn check_ends(schema: &Value) -> Result<(), String> {
    let mut targets = BTreeMap::new();
    references(schema, schema, &mut targets);
    let mut ends = BTreeSet::new();
    loop {
        let before = ends.len();
        for (reference, target) in &targets {
            if target.is_none_or(|target| can_end(target, &ends)) {
                ends.insert(*reference);
            }
        }
        if ends.len() == before {
            break;
        }
    }
    if can_end(schema, &ends) {
        return Ok(());
    }
    let endless = targets.keys().find(|reference| !ends.contains(*reference)).copied().unwrap_or("#");
    let endless: String = endless.chars().take(200).collect();
    Err(format!("'{endless}' requires itself, so no finite text satisfies it; make something optional"))
}

/// Collects the references in a schema and their targets; `None` for unknown targets.
fn references<'a>(schema: &'a Value, root: &'a Value, found: &mut BTreeMap<&'a str, Option<&'a Value>>) {
    let Value::Object(object) = schema else { return };
    if let Some(Value::String(reference)) = object.get("$ref")
        && !found.contains_key(reference.as_str())
    {
        let target = pointer(reference).and_then(|pointer| root.pointer(&pointer));
        found.insert(reference, target);
        target.into_iter().for_each(|target| references(target, root, found));
    }
    for (key, value) in object {
        if MAPS.contains(&key.as_str()) {
            value.as_object().into_iter().flatten().for_each(|(_, schema)| references(schema, root, found));
        } else if LISTS.contains(&key.as_str()) || SINGLE.contains(&key.as_str()) {
            value.as_array().into_iter().flatten().for_each(|schema| references(schema, root, found));
            references(value, root, found);
        }
    }
}

/// Returns whether some finite text satisfies `schema`, given that the references in `ends` can be satisfied. Returns
/// true if it cannot tell.
fn can_end(schema: &Value, ends: &BTreeSet<&str>) -> bool {
    let Value::Object(object) = schema else { return *schema != Value::Bool(false) };
    let list = |key: &str| object.get(key).and_then(Value::as_array);
    let reference = object.get("$ref").and_then(Value::as_str);
    let only = |name: &str| match object.get("type") {
        Some(Value::String(kind)) => kind == name,
        Some(Value::Array(kinds)) => kinds.len() == 1 && kinds[0] == name,
        _ => false,
    };
    if reference.is_some_and(|reference| !ends.contains(reference))
        || list("allOf").is_some_and(|all| !all.iter().all(|schema| can_end(schema, ends)))
        || ["anyOf", "oneOf"].iter().any(|key| list(key).is_some_and(|any| !any.iter().any(|s| can_end(s, ends))))
    {
        return false;
    }
    if only("object") {
        let names = list("required").into_iter().flatten().filter_map(Value::as_str);
        let properties = object.get("properties").and_then(Value::as_object);
        let mut required = names.filter_map(|name| properties.and_then(|p| p.get(name)));
        return required.all(|schema| can_end(schema, ends));
    }
    if only("array") {
        let least = object.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
        let first = list("prefixItems").map_or(&[][..], Vec::as_slice);
        return first.iter().take(least).all(|schema| can_end(schema, ends))
            && (least <= first.len() || object.get("items").is_none_or(|schema| can_end(schema, ends)));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(schema: &str) -> String {
        read(schema).unwrap_err()
    }

    #[test]
    fn what_cannot_be_kept_to_is_refused_with_its_place() {
        for (schema, words) in [
            (r#"{"properties": {"a/b": {"uniqueItems": true}}}"#, &["#/properties/a~1b", "uniqueItems"][..]),
            (r#"{"items": [{"not": {}}]}"#, &["#/items/0", "'not'"]),
            (r#"{"anyOf": []}"#, &["#/anyOf is empty"]),
            (r#"{"$ref": "https://example.com/s.json"}"#, &["refers to 'https://example.com/s.json'", "same schema"]),
            (r#"{"$ref": 3}"#, &["#/$ref is 3", "string"]),
            (r#"{"enum": []}"#, &["#/enum is empty"]),
            (r#"{"minimum": 3, "maximum": 2.5}"#, &["minimum 3 above maximum 2.5"]),
            (r#"{"const": 12345678901234567890}"#, &["#/const is 12345678901234567890"]),
            (r#"{"format": "iri"}"#, &["format 'iri'", "pattern"]),
            (r#"{"minProperties": 2}"#, &["minProperties"]),
            (r#"{"properties": 3}"#, &["#/properties is a number"]),
            (r#"{"items": "a"}"#, &["#/items is a string"]),
            (r#"{"items": {"pattern": "(["}}"#, &["#/items/pattern: ", "unclosed character class"]),
            (r#"{"patternProperties": {"(?=a)": {}}}"#, &["#/patternProperties: ", "look"]),
            ("[1]", &["it is a list"]),
            ("false", &["nothing satisfies"]),
            ("{\"a\": ", &["not JSON", "line 1 column 6"]),
        ] {
            let error = refused(schema);
            words.iter().for_each(|word| assert!(error.contains(word), "no '{word}' in: {error}"));
        }
        assert!(refused(&"[".repeat(200)).contains("recursion limit"));
        assert!(refused(&" ".repeat(LONGEST + 1)).contains("bytes"));
    }

    #[test]
    fn what_is_not_a_schema_is_left_alone() {
        let schema = r#"{"const": {"not": 1, "$ref": 2}, "default": {"enum": []}, "properties": {"not": {"type": "null"}},
                         "examples": [{"uniqueItems": true}], "format": "int32", "uniqueItems": false, "$schema": "x:y"}"#;
        let read = read(schema).unwrap().schema;
        assert_eq!(read["properties"]["not"]["type"], "null");
        assert!(read.get("format").is_none() && read.get("uniqueItems").is_none());
    }

    #[test]
    fn a_schema_without_end_is_refused() {
        for schema in [
            r##"{"$ref": "#"}"##,
            r##"{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}"##,
            r##"{"type": "array", "items": {"$ref": "#"}, "minItems": 1}"##,
            r##"{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}"##,
        ] {
            assert!(refused(schema).contains("requires itself"), "{schema}");
        }
        for schema in [
            r##"{"type": "object", "properties": {"a": {"$ref": "#"}}}"##,
            r##"{"type": "array", "items": {"$ref": "#"}}"##,
            r##"{"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]}"##,
            r##"{"$ref": "#/$defs/a%20b", "$defs": {"a b": true}}"##,
        ] {
            assert!(read(schema).is_ok(), "{schema}");
        }
    }

    #[test]
    fn dates_have_the_days_that_they_have() {
        let schema = read(r#"{"format": "date"}"#).unwrap().schema;
        let mut regex = llguidance::derivre::Regex::new(schema["pattern"].as_str().unwrap()).unwrap();
        for (date, wanted) in [
            ("2024-02-29", true),
            ("2023-02-29", false),
            ("1900-02-29", false),
            ("2000-02-29", true),
            ("2023-02-28", true),
            ("2023-04-31", false),
            ("2023-12-31", true),
            ("2023-13-01", false),
        ] {
            assert_eq!(regex.is_match(date), wanted, "{date}");
        }
        let both = read(r#"{"format": "time", "pattern": "^1"}"#).unwrap().schema;
        assert_eq!(both["pattern"], "^1");
        assert!(both["allOf"][0]["pattern"].as_str().unwrap().contains("[0-5][0-9]"));
    }
}
