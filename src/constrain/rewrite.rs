//! Puts keywords that the grammar engine lacks into others that mean the same, where that is possible.
//!
//! | keyword | becomes | if |
//! |---|---|---|
//! | `patternProperties` | listed properties | the pattern matches few names, or only listed ones |
//! | `propertyNames` | `patternProperties`, or fewer properties | a pattern, lengths, `enum` or `const` |
//! | `minProperties`, `maxProperties` | one alternative for each choice of names | all names are known |
//! | `dependentRequired`, `dependentSchemas`, `dependencies` | "without the name, or with what it asks for" | objects |
//! | `if`, `then`, `else` | two alternatives | the condition is what one property is |
//! | `not` | fewer types, values or properties; a pattern | `type`, `const`, `enum`, one required name |
//! | `uniqueItems` | one alternative for each order of the values | few values and items |
//! | `contains` | one alternative for each place | few items |
//! | `oneOf` | `anyOf` | no value satisfies two |
//! | `unevaluatedProperties`, `unevaluatedItems` | `additionalProperties`, `items` | nothing else evaluates |
//!
//! Each is exact: the same values satisfy the schema before and after. What is left is refused.

use std::collections::{BTreeMap, BTreeSet};

use llguidance::derivre::{Regex, RegexAst, RegexBuilder};
use serde_json::{Map, Value, json};

/// The most alternatives that a keyword may become.
const MOST_ALTERNATIVES: usize = 200;
/// The most names of a pattern that are listed.
const MOST_NAMES: usize = 64;
/// How much work it may be to compare expressions.
const FUEL: u64 = 100_000;

/// A refusal: the keyword, and why.
pub(super) type Refused = (&'static str, String);

type Object = Map<String, Value>;

/// Rewrites the keywords of `object`, whose subschemas are rewritten already. `root` is the whole schema, for references.
pub(super) fn rewrite(object: &mut Object, root: &Value) -> Result<(), Refused> {
    unevaluated(object)?;
    not(object)?;
    conditional(object)?;
    patterns(object)?;
    property_names(object)?;
    dependencies(object)?;
    count_properties(object)?;
    unique_items(object)?;
    contains(object)?;
    one_of(object, root);
    Ok(())
}

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// The types that the schema itself allows; integers are also numbers.
fn types(object: &Object) -> BTreeSet<&str> {
    match object.get("type") {
        Some(Value::String(kind)) => BTreeSet::from([kind.as_str()]),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => TYPES.into_iter().filter(|kind| *kind != "integer").collect(),
    }
}

fn is_only(object: &Object, kind: &str) -> bool {
    types(object) == BTreeSet::from([kind])
}

fn strings(object: &Object, key: &str) -> Vec<String> {
    let list = object.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
}

fn number(object: &Object, key: &str) -> Option<usize> {
    object.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

/// The names of `properties`, in order.
fn listed(object: &Object) -> Vec<String> {
    object.get("properties").and_then(Value::as_object).into_iter().flat_map(|map| map.keys().cloned()).collect()
}

fn properties(object: &mut Object) -> &mut Object {
    let entry = object.entry("properties").or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object"),
    }
}

/// Adds a schema that has to be satisfied too.
fn and(object: &mut Object, schema: Value) {
    if let Value::Array(all) = object.entry("allOf").or_insert_with(|| json!([])) {
        all.push(schema);
    }
}

/// Adds names that are required.
fn require(object: &mut Object, names: impl IntoIterator<Item = String>) {
    if let Value::Array(list) = object.entry("required").or_insert_with(|| json!([])) {
        for name in names {
            if !list.contains(&Value::from(name.as_str())) {
                list.push(name.into());
            }
        }
    }
}

/// Both schemas at once.
fn both(a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Bool(true), other) | (other, Value::Bool(true)) => other,
        (Value::Bool(false), _) | (_, Value::Bool(false)) => Value::Bool(false),
        (a, b) if a == b || b == json!({}) => a,
        (a, b) if a == json!({}) => b,
        (a, b) => json!({ "allOf": [a, b] }),
    }
}

// Expressions.

/// The names that a pattern of JSON Schema matches, as an expression.
fn search(pattern: &str) -> RegexAst {
    RegexAst::SearchRegex(llguidance::regex_to_lark(pattern, "dw"))
}

fn any_of_words(words: &[String]) -> RegexAst {
    RegexAst::Or(words.iter().map(|word| RegexAst::Literal(word.clone())).collect())
}

/// Every text of Unicode.
fn any_text() -> RegexAst {
    RegexAst::Regex("(?s:.*)".to_string())
}

fn compiled(ast: &RegexAst) -> Option<Regex> {
    let mut builder = RegexBuilder::new();
    let expression = builder.mk(ast).ok()?;
    builder.into_regex_limited(expression, FUEL).ok()
}

/// Whether nothing matches all of these; `None` if that takes too long to find out.
fn is_empty(all: Vec<RegexAst>) -> Option<bool> {
    Some(compiled(&RegexAst::And(all))?.always_empty())
}

fn matches(pattern: &str, name: &str) -> bool {
    compiled(&search(pattern)).is_some_and(|mut regex| regex.is_match(name))
}

/// The texts that an expression matches, if they are few.
fn texts(ast: &RegexAst) -> Option<Vec<String>> {
    const LONGEST: usize = 64;
    let mut regex = compiled(ast)?;
    let (mut found, mut steps) = (Vec::new(), 0);
    let start = regex.initial_state();
    let mut open = vec![(start, Vec::new())];
    while let Some((state, text)) = open.pop() {
        if regex.is_accepting(state) {
            found.push(String::from_utf8(text.clone()).ok()?);
        }
        for byte in 0..=0xf4_u8 {
            let next = regex.transition(state, byte);
            steps += 1;
            if next.is_dead() {
                continue;
            }
            if found.len() > MOST_NAMES || text.len() >= LONGEST || steps > 200_000 || open.len() > 10 * MOST_NAMES {
                return None;
            }
            open.push((next, [text.as_slice(), &[byte]].concat()));
        }
    }
    found.sort();
    (found.len() <= MOST_NAMES).then_some(found)
}

/// A pattern that matches every text but these words.
fn all_but(words: &BTreeSet<&str>) -> String {
    let mut follows: BTreeMap<char, BTreeSet<&str>> = BTreeMap::new();
    for word in words {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            follows.entry(first).or_default().insert(chars.as_str());
        }
    }
    let mut parts: Vec<String> = Vec::new();
    let escaped = |c: char| regex::escape(&c.to_string());
    for (c, rest) in &follows {
        parts.push(format!("{}{}", escaped(*c), all_but(rest)));
    }
    let firsts: String = follows.keys().map(|c| format!("\\x{{{:x}}}", u32::from(*c))).collect();
    parts.push(if firsts.is_empty() { "(?s:.+)".to_string() } else { format!("[^{firsts}](?s:.*)") });
    // The empty rest is a word of its own.
    let optional = if words.contains("") { "" } else { "?" };
    format!("(?:{}){optional}", parts.join("|"))
}

// Keywords.

fn unevaluated(object: &mut Object) -> Result<(), Refused> {
    const ELSEWHERE: [&str; 9] =
        ["$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies", "contains"];
    for (key, instead) in [("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")] {
        let Some(schema) = object.get(key) else { continue };
        let is_free = *schema == Value::Bool(true) || *schema == json!({});
        if !is_free {
            if ELSEWHERE.iter().any(|other| object.contains_key(*other)) {
                return Err((
                    key,
                    "is supported only without $ref, allOf, anyOf, oneOf, if and the like beside it".into(),
                ));
            }
            if !object.contains_key(instead) {
                let schema = schema.clone();
                object.insert(instead.to_string(), schema);
            }
        }
        object.shift_remove(key);
    }
    Ok(())
}

fn not(object: &mut Object) -> Result<(), Refused> {
    let Some(refused) = object.get("not") else { return Ok(()) };
    let why = || {
        "is supported for a type, for const and enum where the type is known, and for one required name of an object; \
         state what is allowed instead"
            .to_string()
    };
    match refused.clone() {
        Value::Bool(false) => {}
        Value::Bool(true) => return Err(("not", "excludes everything, so nothing satisfies it".into())),
        Value::Object(inner) => {
            let keys: Vec<&str> = inner
                .keys()
                .map(String::as_str)
                .filter(|key| !["title", "description", "$comment"].contains(key))
                .collect();
            match keys[..] {
                [] => return Err(("not", "excludes everything, so nothing satisfies it".into())),
                ["type"] => not_type(object, &inner).ok_or_else(|| ("not", why()))?,
                ["const" | "enum"] => {
                    let values = literals(&inner).unwrap_or_default();
                    if !not_values(object, &values).ok_or_else(|| ("not", why()))? {
                        return Err((
                            "not",
                            "excludes every value that the schema allows, so nothing satisfies it".into(),
                        ));
                    }
                }
                ["required"] if is_only(object, "object") => match &strings(&inner, "required")[..] {
                    [] => return Err(("not", "excludes every object, so nothing satisfies it".into())),
                    [name] => drop(properties(object).insert(name.clone(), Value::Bool(false))),
                    names => {
                        let any: Vec<Value> = names.iter().map(|name| json!({"properties": {name: false}})).collect();
                        and(object, json!({ "type": "object", "anyOf": any }));
                    }
                },
                _ => return Err(("not", why())),
            }
        }
        _ => return Err(("not", "must be a schema".into())),
    }
    object.shift_remove("not");
    Ok(())
}

/// Takes types away.
fn not_type(object: &mut Object, inner: &Object) -> Option<()> {
    let refused = types(inner);
    let mut left: Vec<&str> = Vec::new();
    for kind in types(object) {
        match kind {
            // What is left of numbers without integers has no name.
            "number" if refused.contains("integer") && !refused.contains("number") => return None,
            "integer" if refused.contains("number") => {}
            kind if refused.contains(kind) => {}
            kind => left.push(kind),
        }
    }
    let left = json!(left);
    (left != json!([])).then(|| drop(object.insert("type".to_string(), left)))
}

/// Takes values away. Returns whether any are left; `None` if it cannot be put into other keywords.
fn not_values(object: &mut Object, values: &[Value]) -> Option<bool> {
    if let Some(Value::Array(allowed)) = object.get_mut("enum") {
        allowed.retain(|value| !values.iter().any(|refused| same(value, refused)));
        return Some(!allowed.is_empty());
    }
    if let Some(value) = object.get("const") {
        return Some(!values.iter().any(|refused| same(value, refused)));
    }
    let allowed: BTreeSet<String> = types(object).iter().map(ToString::to_string).collect();
    for kind in ["null", "boolean", "integer", "string"].iter().filter(|kind| allowed.contains(**kind)) {
        match *kind {
            "null" if values.contains(&Value::Null) => {
                let null = Map::from_iter([("type".to_string(), json!("null"))]);
                if not_type(object, &null).is_none() {
                    return Some(false);
                }
            }
            "boolean" => {
                let left: Vec<bool> = [false, true].into_iter().filter(|b| !values.contains(&json!(b))).collect();
                match left[..] {
                    [_, _] => {}
                    [] if allowed.len() == 1 => return Some(false),
                    [left] if allowed.len() == 1 => drop(object.insert("const".to_string(), json!(left))),
                    _ => return None,
                }
            }
            "integer" => {
                for value in values.iter().filter(|value| value.as_f64().is_some_and(|n| n.fract() == 0.0)) {
                    let n = value.as_i64().filter(|_| allowed.len() == 1)?;
                    and(object, json!({"type": "integer", "anyOf": [{"maximum": n - 1}, {"minimum": n + 1}]}));
                }
            }
            "string" => {
                let words: BTreeSet<&str> = values.iter().filter_map(Value::as_str).collect();
                if !words.is_empty() {
                    let mut left = json!({ "pattern": format!("^(?:{})$", all_but(&words)) });
                    if allowed.len() == 1 {
                        left["type"] = "string".into();
                    }
                    and(object, left);
                }
            }
            _ => {}
        }
    }
    // Of the other types nothing can be taken away.
    let is_left = |value: &Value| match value {
        Value::Number(_) => allowed.contains("number"),
        Value::Array(_) => allowed.contains("array"),
        Value::Object(_) => allowed.contains("object"),
        _ => false,
    };
    (!values.iter().any(is_left)).then_some(true)
}

/// Whether two values are the same in JSON Schema: 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// `if` with the value of one property, and `then` and `else`.
fn conditional(object: &mut Object) -> Result<(), Refused> {
    let Some(condition) = object.get("if").cloned() else {
        // Without a condition they mean nothing.
        object.shift_remove("then");
        object.shift_remove("else");
        return Ok(());
    };
    let refuse = || {
        let why = "is supported where it says what one property is, by const or enum, and that property has a type or an \
                   enum of its own; use anyOf otherwise";
        ("if", why.to_string())
    };
    if !is_only(object, "object") {
        return Err(refuse());
    }
    let inner = condition.as_object().ok_or_else(refuse)?;
    if !inner.keys().all(|key| ["properties", "required", "type"].contains(&key.as_str()))
        || !types(inner).contains("object")
    {
        return Err(refuse());
    }
    let names = listed(inner);
    let [name] = &names[..] else { return Err(refuse()) };
    let required = strings(inner, "required");
    if required.iter().any(|other| other != name) {
        return Err(refuse());
    }
    let is = &inner["properties"][name];
    let values = match (is.get("const"), is.get("enum")) {
        (Some(value), None) => vec![value.clone()],
        (None, Some(Value::Array(values))) => values.clone(),
        _ => return Err(refuse()),
    };
    if !is.as_object().is_some_and(|is| is.keys().all(|key| ["const", "enum", "type"].contains(&key.as_str()))) {
        return Err(refuse());
    }
    let own = object.get("properties").and_then(|map| map.get(name)).and_then(Value::as_object).cloned();
    let mut other = own.ok_or_else(refuse)?;
    let (then, otherwise) = (object.shift_remove("then"), object.shift_remove("else"));
    object.shift_remove("if");
    let mut yes = json!({"type": "object", "properties": {name: {"enum": values}}});
    let has_other = not_values(&mut other, &values).ok_or_else(refuse)?;
    let mut no = json!({"type": "object", "properties": {name: if has_other { Value::Object(other) } else { Value::Bool(false) }}});
    if required.is_empty() {
        // The condition holds without the property, too.
        no["required"] = json!([name]);
    } else {
        yes["required"] = json!([name]);
    }
    let any: Vec<Value> = [(yes, then), (no, otherwise)]
        .into_iter()
        .map(|(base, more)| both(base, more.unwrap_or(Value::Bool(true))))
        .filter(|schema| *schema != Value::Bool(false))
        .collect();
    and(object, json!({ "anyOf": any }));
    Ok(())
}

/// Lists the names of patterns that match few, and leaves out patterns that match only listed names.
fn patterns(object: &mut Object) -> Result<(), Refused> {
    let Some(Value::Object(patterns)) = object.get("patternProperties").cloned() else { return Ok(()) };
    // Optional names are only counted where all names are known.
    let is_counted = object.contains_key("minProperties") || object.contains_key("maxProperties");
    let is_closed = object.get("additionalProperties") == Some(&Value::Bool(false));
    let lists_few = !is_counted || (is_closed && patterns.keys().all(|pattern| texts(&search(pattern)).is_some()));
    let mut left = Map::new();
    for (pattern, schema) in patterns {
        let mut known = listed(object);
        known.extend(strings(object, "required").into_iter().filter(|name| !known.contains(name)).collect::<Vec<_>>());
        let few = if lists_few { texts(&search(&pattern)) } else { None };
        let only_known = || is_empty(vec![search(&pattern), RegexAst::Not(Box::new(any_of_words(&known))), any_text()]);
        if few.is_none() && !only_known().ok_or_else(|| too_complex("patternProperties", &pattern))? {
            left.insert(pattern, schema);
            continue;
        }
        let names = few.unwrap_or_else(|| known.into_iter().filter(|name| matches(&pattern, name)).collect());
        for name in names {
            let map = properties(object);
            let before = map.get(&name).cloned().unwrap_or(Value::Bool(true));
            map.insert(name, both(before, schema.clone()));
        }
    }
    for (i, one) in left.keys().enumerate() {
        if let Some(other) =
            left.keys().skip(i + 1).find(|other| is_empty(vec![search(one), search(other), any_text()]) != Some(true))
        {
            let cut = |pattern: &str| pattern.chars().take(60).collect::<String>();
            let why = format!(
                "has the patterns '{}' and '{}', which can match the same name; make one exclude the other",
                cut(one),
                cut(other)
            );
            return Err(("patternProperties", why));
        }
    }
    // Where patterns take all names, no others can follow.
    if !left.is_empty() {
        let taken = left.keys().map(|pattern| search(pattern)).chain([any_of_words(&listed(object))]).collect();
        if is_empty(vec![RegexAst::Not(Box::new(RegexAst::Or(taken))), any_text()]) == Some(true) {
            object.insert("additionalProperties".to_string(), Value::Bool(false));
        }
    }
    if left.is_empty() {
        object.shift_remove("patternProperties");
    } else {
        object.insert("patternProperties".to_string(), left.into());
    }
    Ok(())
}

fn too_complex(key: &'static str, pattern: &str) -> Refused {
    let pattern: String = pattern.chars().take(60).collect();
    (key, format!("has the pattern '{pattern}', which is too complex to compare with the names in 'properties'"))
}

fn property_names(object: &mut Object) -> Result<(), Refused> {
    let Some(names) = object.shift_remove("propertyNames") else { return Ok(()) };
    let refuse = || {
        let why = "is supported with one of pattern, enum and const, or with minLength and maxLength, and without patternProperties";
        ("propertyNames", why.to_string())
    };
    let inner = match names {
        Value::Bool(true) => return Ok(()),
        Value::Bool(false) => json!({"enum": []}).as_object().cloned().unwrap_or_default(),
        Value::Object(inner) => inner,
        _ => return Err(("propertyNames", "must be a schema".into())),
    };
    let keys: Vec<&str> = inner
        .keys()
        .map(String::as_str)
        .filter(|key| !["type", "title", "description", "$comment"].contains(key))
        .collect();
    if !types(&inner).contains("string") {
        return Err(("propertyNames", "allows no strings, and names are strings".into()));
    }
    let words = match keys[..] {
        [] => return Ok(()),
        ["enum"] => Some(strings(&inner, "enum")),
        ["const"] => Some(inner["const"].as_str().map(str::to_string).into_iter().collect()),
        _ => None,
    };
    let pattern = match (&words, &keys[..]) {
        (Some(_), _) => String::new(),
        (None, ["pattern"]) => inner["pattern"].as_str().ok_or_else(refuse)?.to_string(),
        (None, keys) if keys.iter().all(|key| ["minLength", "maxLength"].contains(key)) => {
            let most = number(&inner, "maxLength").map_or(String::new(), |n| n.to_string());
            format!("^(?s:.{{{},{most}}})$", number(&inner, "minLength").unwrap_or(0))
        }
        _ => return Err(refuse()),
    };
    if object.contains_key("patternProperties") {
        return Err(refuse());
    }
    let fits =
        |name: &str| words.as_ref().map_or_else(|| matches(&pattern, name), |words| words.iter().any(|w| w == name));
    properties(object).iter_mut().filter(|(name, _)| !fits(name)).for_each(|(_, schema)| *schema = Value::Bool(false));
    let others = object.insert("additionalProperties".to_string(), Value::Bool(false)).unwrap_or(Value::Bool(true));
    if others == Value::Bool(false) {
        return Ok(());
    }
    match words {
        Some(words) => {
            for word in words {
                properties(object).entry(word).or_insert(others.clone());
            }
        }
        None => drop(object.insert("patternProperties".to_string(), json!({ pattern: others }))),
    }
    patterns(object)
}

/// `dependentRequired` and `dependentSchemas`, and `dependencies`, which were both.
fn dependencies(object: &mut Object) -> Result<(), Refused> {
    for key in ["dependentRequired", "dependentSchemas", "dependencies"] {
        let Some(map) = object.shift_remove(key) else { continue };
        let Value::Object(map) = map else { return Err((key, "must be an object".into())) };
        for (name, asked) in map {
            let schema = match asked {
                Value::Array(_) => json!({"type": "object", "required": asked}),
                schema => both(json!({"type": "object"}), schema),
            };
            if !is_only(object, "object") {
                return Err((key, "is supported where the type is 'object'".into()));
            }
            if strings(object, "required").contains(&name) {
                match schema.get("required").filter(|_| schema.get("allOf").is_none()) {
                    Some(Value::Array(names)) => {
                        let names: Vec<String> = names.iter().filter_map(Value::as_str).map(str::to_string).collect();
                        require(object, names);
                    }
                    _ => and(object, schema),
                }
                continue;
            }
            let without = json!({"type": "object", "properties": {&name: false}});
            let with = both(json!({"type": "object", "required": [&name]}), schema);
            and(object, json!({ "anyOf": [without, with] }));
        }
    }
    Ok(())
}

/// The ways to choose `n` of `names`; `None` if there are too many.
fn choices(names: &[String], n: usize) -> Option<Vec<Vec<String>>> {
    if n > names.len() {
        return Some(Vec::new());
    }
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    for (i, name) in names.iter().enumerate() {
        let rest = names.len() - i - 1;
        let mut next = Vec::new();
        for chosen in all {
            if chosen.len() < n {
                next.push([chosen.as_slice(), std::slice::from_ref(name)].concat());
            }
            if chosen.len() + rest >= n {
                next.push(chosen);
            }
        }
        all = next;
        if all.len() > 4 * MOST_ALTERNATIVES {
            return None;
        }
    }
    Some(all)
}

/// `minProperties` and `maxProperties` where all names are known.
fn count_properties(object: &mut Object) -> Result<(), Refused> {
    let (least, most) = (number(object, "minProperties"), number(object, "maxProperties"));
    if least.is_none() && most.is_none() {
        return Ok(());
    }
    let is_closed =
        object.get("additionalProperties") == Some(&Value::Bool(false)) && !object.contains_key("patternProperties");
    let mut required = strings(object, "required");
    required.sort();
    required.dedup();
    let possible: Vec<String> = match object.get("properties").and_then(Value::as_object) {
        Some(map) => {
            map.iter().filter(|(_, schema)| **schema != Value::Bool(false)).map(|(name, _)| name.clone()).collect()
        }
        None => Vec::new(),
    };
    let optional: Vec<String> = possible.iter().filter(|name| !required.contains(name)).cloned().collect();
    if !is_closed || !required.iter().all(|name| possible.contains(name)) {
        let key = if least.is_some() { "minProperties" } else { "maxProperties" };
        // A name of a pattern may occur twice, and parsers count it once.
        if least.is_some_and(|least| least > 1.max(required.len())) {
            let why = "asks for more names than are required, where not all names are known; list the names in 'properties', \
                       with additionalProperties false, or under 'required'";
            return Err((key, why.into()));
        }
        if least == Some(1) && most.is_none() && required.is_empty() && !optional.is_empty() {
            // One of the listed names, or none of them and another.
            let mut any: Vec<Value> =
                optional.iter().map(|name| json!({"type": "object", "required": [name]})).collect();
            let none: Object = optional.iter().map(|name| (name.clone(), Value::Bool(false))).collect();
            if object.get("additionalProperties") != Some(&Value::Bool(false))
                || object.contains_key("patternProperties")
            {
                any.push(json!({"type": "object", "properties": none, "minProperties": 1}));
            }
            if is_only(object, "object") && any.len() <= MOST_ALTERNATIVES {
                object.shift_remove("minProperties");
                and(object, json!({ "anyOf": any }));
                return Ok(());
            }
        }
        if !optional.is_empty() && (most.is_some() || least.is_some_and(|least| least > required.len())) {
            let why = "is supported beside optional names only if all names are known; set additionalProperties to false, or \
                       require the names";
            return Err((key, why.into()));
        }
        return Ok(());
    }
    let (more, fewer) =
        (least.unwrap_or(0).saturating_sub(required.len()), most.map(|n| n.checked_sub(required.len())));
    if more > optional.len() {
        return Err((
            "minProperties",
            format!("is {}, above the {} names there are", least.unwrap_or(0), possible.len()),
        ));
    }
    if fewer == Some(None) {
        return Err((
            "maxProperties",
            format!("is {}, below the {} required names", most.unwrap_or(0), required.len()),
        ));
    }
    object.shift_remove("minProperties");
    object.shift_remove("maxProperties");
    let fewer = fewer.flatten().unwrap_or(optional.len()).min(optional.len());
    if more == 0 && fewer == optional.len() {
        return Ok(());
    }
    let too_many = || {
        let why = format!("makes too many choices of the {} optional names; require some of them", optional.len());
        (if most.is_some() { "maxProperties" } else { "minProperties" }, why)
    };
    // Each alternative has some names that it must have, and lacks those that it must not have.
    let mut any = Vec::new();
    for allowed in choices(&optional, fewer).ok_or_else(too_many)? {
        for must in choices(&allowed, more).ok_or_else(too_many)? {
            let lacks: Object = optional
                .iter()
                .filter(|name| !allowed.contains(name))
                .map(|name| (name.clone(), Value::Bool(false)))
                .collect();
            any.push(json!({"type": "object", "required": must, "properties": lacks}));
        }
        if any.len() > MOST_ALTERNATIVES {
            return Err(too_many());
        }
    }
    if is_only(object, "object") {
        and(object, json!({ "anyOf": any }));
    } else {
        // Other types have no names to count.
        let others: Vec<&str> = TYPES.into_iter().filter(|kind| !["object", "integer"].contains(kind)).collect();
        any.push(json!({ "type": others }));
        and(object, json!({ "anyOf": any }));
    }
    Ok(())
}

/// The values that satisfy a schema, if they are few and listed.
fn values(schema: &Value) -> Option<Vec<Value>> {
    let object = schema.as_object()?;
    let known = ["type", "enum", "const", "minimum", "maximum", "title", "description", "$comment"];
    if !object.keys().all(|key| known.contains(&key.as_str())) {
        return None;
    }
    let all = match (object.get("enum"), object.get("const")) {
        (Some(Value::Array(values)), None) => values.clone(),
        (None, Some(value)) => vec![value.clone()],
        (None, None) if is_only(object, "boolean") => vec![json!(false), json!(true)],
        (None, None) if is_only(object, "null") => vec![Value::Null],
        (None, None) if is_only(object, "integer") => {
            let (low, high) = (object.get("minimum")?.as_i64()?, object.get("maximum")?.as_i64()?);
            if high.checked_sub(low)? > 64 {
                return None;
            }
            return Some((low..=high).map(Value::from).collect());
        }
        _ => return None,
    };
    if object.contains_key("minimum") || object.contains_key("maximum") {
        return None;
    }
    let kinds = types(object);
    let mut distinct: Vec<Value> = Vec::new();
    for value in all {
        let fits = is_of(&value, &kinds);
        if fits && !distinct.iter().any(|other| same(other, &value)) {
            distinct.push(value);
        }
    }
    Some(distinct)
}

/// Whether a value is of one of these types.
fn is_of<T: AsRef<str>>(value: &Value, kinds: &BTreeSet<T>) -> bool {
    let has = |kind: &str| kinds.iter().any(|known| known.as_ref() == kind);
    match value {
        Value::Null => has("null"),
        Value::Bool(_) => has("boolean"),
        Value::Number(n) => has("number") || (has("integer") && n.as_f64().is_some_and(|n| n.fract() == 0.0)),
        Value::String(_) => has("string"),
        Value::Array(_) => has("array"),
        Value::Object(_) => has("object"),
    }
}

fn unique_items(object: &mut Object) -> Result<(), Refused> {
    match object.get("uniqueItems") {
        None => return Ok(()),
        Some(Value::Bool(true)) => {}
        Some(Value::Bool(false)) => {
            object.shift_remove("uniqueItems");
            return Ok(());
        }
        Some(_) => return Err(("uniqueItems", "must be true or false".into())),
    }
    let most = number(object, "maxItems");
    if most.is_some_and(|most| most <= 1) {
        object.shift_remove("uniqueItems");
        return Ok(());
    }
    let why = || {
        let why = "cannot be enforced while the text is being written, except for few values: items with an enum, a const or a \
                   small range of integers, and few orders of them. Remove it and check the text afterwards, or lower maxItems";
        ("uniqueItems", why.to_string())
    };
    if object.contains_key("prefixItems")
        || object.get("items").is_some_and(Value::is_array)
        || !is_only(object, "array")
    {
        return Err(why());
    }
    let values = object.get("items").and_then(values).ok_or_else(why)?;
    let (least, most) = (number(object, "minItems").unwrap_or(0), most.unwrap_or(values.len()).min(values.len()));
    if least > values.len() {
        return Err(("uniqueItems", format!("leaves only {} different items, below minItems {least}", values.len())));
    }
    // How many orders there are of each length.
    let mut total = 0_usize;
    for n in least..=most {
        total = total.saturating_add((0..n).fold(1_usize, |product, i| product.saturating_mul(values.len() - i)));
    }
    if total > 2 * MOST_ALTERNATIVES {
        return Err(why());
    }
    let mut any = Vec::new();
    let mut open: Vec<Vec<usize>> = vec![Vec::new()];
    while let Some(order) = open.pop() {
        if order.len() >= least {
            let items: Vec<Value> = order.iter().map(|i| json!({ "const": values[*i] })).collect();
            any.push(json!({"type": "array", "prefixItems": items, "items": false, "minItems": order.len()}));
        }
        if order.len() < most {
            let others = (0..values.len()).filter(|i| !order.contains(i));
            open.extend(others.map(|i| [order.as_slice(), &[i]].concat()));
        }
    }
    for key in ["uniqueItems", "items", "minItems", "maxItems", "additionalItems"] {
        object.shift_remove(key);
    }
    and(object, json!({ "anyOf": any }));
    Ok(())
}

fn contains(object: &mut Object) -> Result<(), Refused> {
    let Some(wanted) = object.get("contains").cloned() else {
        // Without it they mean nothing.
        object.shift_remove("minContains");
        object.shift_remove("maxContains");
        return Ok(());
    };
    if object.contains_key("maxContains") {
        return Err(("maxContains", "cannot be enforced while the text is being written".into()));
    }
    let least = object.get("minContains").map_or(Some(1), Value::as_u64);
    if least == Some(0) {
        object.shift_remove("contains");
        object.shift_remove("minContains");
        return Ok(());
    }
    let most = number(object, "maxItems").filter(|most| *most <= 16);
    let is_simple = !object.contains_key("prefixItems") && !object.get("items").is_some_and(Value::is_array);
    let (Some(1), Some(most), true, true) = (least, most, is_simple, is_only(object, "array")) else {
        let why = "is supported for arrays with maxItems up to 16, without prefixItems, and with minContains 1";
        return Err(("contains", why.into()));
    };
    let item = object.get("items").cloned().unwrap_or(Value::Bool(true));
    let any: Vec<Value> = (0..most)
        .map(|place| {
            let mut items = vec![item.clone(); place];
            items.push(both(item.clone(), wanted.clone()));
            json!({"type": "array", "prefixItems": items, "items": item, "minItems": place + 1})
        })
        .collect();
    if any.is_empty() {
        return Err(("contains", "asks for an item, and maxItems is 0".into()));
    }
    object.shift_remove("contains");
    object.shift_remove("minContains");
    and(object, json!({ "anyOf": any }));
    Ok(())
}

/// Makes `oneOf` an `anyOf` if no value satisfies two of the options.
fn one_of(object: &mut Object, root: &Value) {
    let Some(Value::Array(options)) = object.get("oneOf") else { return };
    let base =
        Value::Object(object.iter().filter(|(key, _)| *key == "type").map(|(k, v)| (k.clone(), v.clone())).collect());
    let apart =
        options.iter().enumerate().all(|(i, a)| options[i + 1..].iter().all(|b| are_apart(a, b, &base, root, 0)));
    if !apart {
        // One of several names, and only one.
        let only = |option: &Value| match option.as_object() {
            Some(option) if option.len() == 1 => <[String; 1]>::try_from(strings(option, "required")).ok(),
            _ => None,
        };
        let names: Option<Vec<String>> = options.iter().map(|option| only(option).map(|[name]| name)).collect();
        if let Some(names) = names.filter(|_| is_only(object, "object")) {
            let any: Vec<Value> = names
                .iter()
                .map(|name| {
                    let others = names.iter().filter(|other| *other != name);
                    let lacks: Object = others.map(|other| (other.clone(), Value::Bool(false))).collect();
                    json!({"type": "object", "required": [name], "properties": lacks})
                })
                .collect();
            if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
                object.shift_remove("oneOf");
                and(object, json!({ "anyOf": any }));
            }
        }
        return;
    }
    if let Some(options) = object.shift_remove("oneOf") {
        if object.contains_key("anyOf") {
            and(object, json!({ "anyOf": options }));
        } else {
            object.insert("anyOf".to_string(), options);
        }
    }
}

/// Whether no value satisfies both schemas. False if it cannot tell.
fn are_apart(a: &Value, b: &Value, base: &Value, root: &Value, depth: usize) -> bool {
    if depth > 8 {
        return false;
    }
    let (a, b) = (resolved(a, root), resolved(b, root));
    let (Value::Object(x), Value::Object(y)) = (a, b) else {
        return *a == Value::Bool(false) || *b == Value::Bool(false);
    };
    let deeper = |a: &Value, b: &Value| are_apart(a, b, base, root, depth + 1);
    for (one, schema) in [(x, b), (y, a)] {
        if let Some(Value::Array(any)) = one.get("anyOf").or_else(|| one.get("oneOf"))
            && any.iter().all(|option| deeper(option, schema))
        {
            return true;
        }
        if let Some(Value::Array(all)) = one.get("allOf")
            && all.iter().any(|part| deeper(part, schema))
        {
            return true;
        }
    }
    // A schema without a type has that of the schema around it.
    let kinds = |schema: &Value, object: &Object| -> BTreeSet<String> {
        let of = if object.contains_key("type") { Some(schema) } else { Some(base) };
        of.and_then(Value::as_object).map(types).unwrap_or_default().into_iter().map(str::to_string).collect()
    };
    let (of_a, of_b) = (kinds(a, x), kinds(b, y));
    let number = |kinds: &BTreeSet<String>| kinds.contains("number") || kinds.contains("integer");
    let shared: Vec<&String> = of_a.intersection(&of_b).collect();
    let share_numbers = number(&of_a) && number(&of_b);
    if shared.is_empty() && !share_numbers {
        return true;
    }
    if let (Some(of_a), Some(of_b)) = (literals(x), literals(y)) {
        return !of_a.iter().any(|a| of_b.iter().any(|b| same(a, b)));
    }
    for (values, kinds) in [(literals(x), &of_b), (literals(y), &of_a)] {
        if values.is_some_and(|values| !values.iter().any(|value| is_of(value, kinds))) {
            return true;
        }
    }
    let only = |kind: &str| shared.iter().all(|shared| *shared == kind) && (kind == "number" || !share_numbers);
    if only("object") && !shared.is_empty() {
        let lacks = |object: &Object, name: &str| match object.get("properties").and_then(|map| map.get(name)) {
            Some(schema) => *schema == Value::Bool(false),
            None => {
                object.get("additionalProperties") == Some(&Value::Bool(false))
                    && !object.contains_key("patternProperties")
            }
        };
        let (need_a, need_b) = (strings(x, "required"), strings(y, "required"));
        if need_a.iter().any(|name| lacks(y, name)) || need_b.iter().any(|name| lacks(x, name)) {
            return true;
        }
        let of = |object: &Object, name: &str| object.get("properties").and_then(|map| map.get(name)).cloned();
        return need_a.iter().chain(&need_b).any(|name| match (of(x, name), of(y, name)) {
            (Some(a), Some(b)) => are_apart(&a, &b, &json!({}), root, depth + 1),
            _ => false,
        });
    }
    if share_numbers && shared.iter().all(|kind| ["number", "integer"].contains(&kind.as_str())) {
        let low = |object: &Object| object.get("minimum").and_then(Value::as_f64);
        let high = |object: &Object| object.get("maximum").and_then(Value::as_f64);
        let below = |x: &Object, y: &Object| {
            let exclusive = x.get("exclusiveMaximum").and_then(Value::as_f64);
            let above = y.get("exclusiveMinimum").and_then(Value::as_f64);
            matches!((high(x), low(y)), (Some(high), Some(low)) if high < low)
                || matches!((exclusive, low(y)), (Some(high), Some(low)) if high <= low)
                || matches!((high(x), above), (Some(high), Some(low)) if high <= low)
                || matches!((exclusive, above), (Some(high), Some(low)) if high <= low)
        };
        return below(x, y) || below(y, x);
    }
    if only("string") && !shared.is_empty() {
        let length = |object: &Object, key: &str| object.get(key).and_then(Value::as_u64);
        let shorter = |x: &Object, y: &Object| matches!((length(x, "maxLength"), length(y, "minLength")), (Some(most), Some(least)) if most < least);
        let of = |object: &Object| match (object.get("pattern"), literals(object)) {
            (Some(Value::String(pattern)), _) => Some(search(pattern)),
            (None, Some(values)) => {
                Some(any_of_words(&values.iter().filter_map(Value::as_str).map(str::to_string).collect::<Vec<_>>()))
            }
            _ => None,
        };
        let differ = match (of(x), of(y)) {
            (Some(a), Some(b)) => is_empty(vec![a, b, any_text()]) == Some(true),
            _ => false,
        };
        return differ || shorter(x, y) || shorter(y, x);
    }
    false
}

/// The values of `const` or `enum`.
fn literals(object: &Object) -> Option<Vec<Value>> {
    match (object.get("const"), object.get("enum")) {
        (Some(value), _) => Some(vec![value.clone()]),
        (None, Some(Value::Array(values))) => Some(values.clone()),
        _ => None,
    }
}

/// What a schema refers to, if it says nothing else.
fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..8 {
        let Some(Value::String(reference)) = schema.get("$ref") else { break };
        let Some(target) = super::schema::pointer(reference).and_then(|pointer| root.pointer(&pointer)) else { break };
        schema = target;
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::super::constraint::matcher;
    use super::super::grammar::tests::matches as takes;
    use super::super::{Error, Grammar, Tokens};
    use super::*;
    use crate::base::random::Random;

    /// Schemas, texts that satisfy them, and texts that do not. The texts have names in the schema's order.
    fn cases() -> Vec<(Value, Vec<&'static str>, Vec<&'static str>)> {
        let closed = |more: Value| {
            let mut schema = json!({"type": "object", "additionalProperties": false, "properties":
                {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"type": "boolean"}, "c": {"type": "null"}}});
            schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            schema
        };
        let digit = json!({"type": "integer", "minimum": 0, "maximum": 9});
        vec![
            // Patterns that match listed names alone, which the engine begins and cannot end.
            (
                json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                       "additionalProperties": false, "patternProperties": {"^a$": {"type": "boolean"}}}),
                vec![r#"{"a":true}"#],
                vec!["{}", r#"{"a":1}"#],
            ),
            (
                json!({"type": "object", "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 9}},
                       "additionalProperties": false, "patternProperties": {"^score$": {"type": "integer", "minimum": 5}}}),
                vec![r#"{"score":7}"#, "{}"],
                vec![r#"{"score":3}"#, r#"{"score":12}"#],
            ),
            // Beside patterns of many names they stay patterns, or they could not be counted.
            (
                json!({"type": "object", "patternProperties": {"^[a-z]+$": digit, "^[A-C]$": {"type": "null"}},
                       "additionalProperties": false, "maxProperties": 2}),
                vec!["{}", r#"{"ab":1,"C":null}"#],
                vec![r#"{"a":1,"b":1,"c":1}"#, r#"{"D":null}"#],
            ),
            // Few names are listed, and then none comes twice.
            (
                json!({"type": "object", "patternProperties": {"^x_[a-c]$": digit}, "additionalProperties": false,
                       "maxProperties": 2}),
                vec!["{}", r#"{"x_a":1}"#, r#"{"x_a":1,"x_c":2}"#],
                vec![r#"{"x_a":1,"x_a":2}"#, r#"{"x_a":1,"x_b":1,"x_c":1}"#, r#"{"x_d":1}"#],
            ),
            (
                json!({"type": "object", "patternProperties": {"": digit}, "maxProperties": 1}),
                vec!["{}", r#"{"q":1}"#],
                vec![r#"{"q":true}"#],
            ),
            (
                json!({"type": "object", "propertyNames": {"pattern": "^[a-z]{1,3}$"}, "additionalProperties": digit,
                       "maxProperties": 2}),
                vec!["{}", r#"{"ab":1}"#, r#"{"a":1,"xyz":2}"#],
                vec![r#"{"abcd":1}"#, r#"{"A":1}"#, r#"{"a":true}"#],
            ),
            (
                closed(json!({"propertyNames": {"enum": ["a", "c", "z"]}})),
                vec!["{}", r#"{"a":1,"c":null}"#],
                vec![r#"{"b":true}"#, r#"{"z":1}"#],
            ),
            (
                json!({"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": digit}),
                vec!["{}", r#"{"a":1,"b":2}"#],
                vec![r#"{"c":1}"#, r#"{"a":null}"#],
            ),
            (
                json!({"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}, "additionalProperties": digit}),
                vec![r#"{"ab":1}"#, r#"{"零一二":1}"#],
                vec![r#"{"a":1}"#, r#"{"abcd":1}"#],
            ),
            (
                closed(json!({"minProperties": 2})),
                vec![r#"{"a":1,"b":true}"#, r#"{"b":true,"c":null}"#, r#"{"a":1,"b":true,"c":null}"#],
                vec!["{}", r#"{"a":1}"#],
            ),
            (
                closed(json!({"maxProperties": 2, "minProperties": 1, "required": ["b"]})),
                vec![r#"{"b":true}"#, r#"{"a":1,"b":true}"#],
                vec![r#"{"a":1,"b":true,"c":null}"#, r#"{"a":1}"#],
            ),
            (
                json!({"type": "object", "properties": {"a": digit}, "additionalProperties": digit, "minProperties": 1}),
                vec![r#"{"a":1}"#, r#"{"z":1}"#, r#"{"a":1,"z":1}"#],
                vec!["{}"],
            ),
            (
                closed(json!({"dependentRequired": {"a": ["b"], "b": ["c"]}})),
                vec!["{}", r#"{"c":null}"#, r#"{"b":true,"c":null}"#, r#"{"a":1,"b":true,"c":null}"#],
                vec![r#"{"a":1}"#, r#"{"b":true}"#, r#"{"a":1,"b":true}"#],
            ),
            (
                closed(json!({"$schema": "http://json-schema.org/draft-07/schema#",
                    "dependencies": {"a": {"properties": {"b": {"const": true}}, "required": ["b"]}, "c": ["a"]}})),
                vec!["{}", r#"{"b":false}"#, r#"{"a":1,"b":true}"#, r#"{"a":1,"b":true,"c":null}"#],
                vec![r#"{"a":1}"#, r#"{"a":1,"b":false}"#, r#"{"c":null}"#],
            ),
            (
                json!({"type": "object", "additionalProperties": false,
                       "properties": {"kind": {"enum": ["card", "cash"]}, "number": {"type": "string", "maxLength": 3}},
                       "required": ["kind"], "if": {"properties": {"kind": {"const": "card"}}, "required": ["kind"]},
                       "then": {"required": ["number"]}, "else": {"properties": {"number": false}}}),
                vec![r#"{"kind":"card","number":"12"}"#, r#"{"kind":"cash"}"#],
                vec![r#"{"kind":"card"}"#, r#"{"kind":"cash","number":"1"}"#, "{}"],
            ),
            (
                json!({"type": "object", "additionalProperties": false,
                       "properties": {"k": {"type": "string", "maxLength": 3}, "n": digit},
                       "if": {"properties": {"k": {"const": "ab"}}}, "then": {"required": ["n"]}}),
                vec![r#"{"n":1}"#, r#"{"k":"ab","n":1}"#, r#"{"k":"x"}"#, r#"{"k":"abc"}"#],
                vec!["{}", r#"{"k":"ab"}"#],
            ),
            (
                json!({"not": {"type": ["string", "object", "array"]}}),
                vec!["1", "true", "null"],
                vec!["\"a\"", "{}", "[]"],
            ),
            (json!({"enum": ["a", "b", 1], "not": {"enum": ["b", 1.0]}}), vec!["\"a\""], vec!["\"b\"", "1"]),
            (
                json!({"type": "string", "maxLength": 4, "not": {"enum": ["ab", "abc", "x", ""]}}),
                vec!["\"a\"", "\"abcd\"", "\"ac\"", "\"y\"", "\"ba\"", "\"xx\"", "\"\\n\""],
                vec!["\"ab\"", "\"abc\"", "\"x\"", "\"\""],
            ),
            (
                json!({"type": "integer", "minimum": 0, "maximum": 4, "not": {"enum": [0, 3, "a"]}}),
                vec!["1", "2", "4"],
                vec!["0", "3", "5"],
            ),
            (json!({"type": "boolean", "not": {"const": true}}), vec!["false"], vec!["true"]),
            (closed(json!({"not": {"required": ["b"]}})), vec!["{}", r#"{"a":1}"#], vec![r#"{"b":true}"#]),
            (
                json!({"type": "array", "items": {"enum": ["x", "y", 1, 1.0]}, "uniqueItems": true}),
                vec!["[]", "[\"x\"]", "[\"y\",\"x\"]", "[1,\"x\",\"y\"]"],
                vec!["[\"x\",\"x\"]", "[1,1]", "[\"z\"]"],
            ),
            (
                json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 3}, "minItems": 3, "maxItems": 4,
                       "uniqueItems": true}),
                vec!["[0,1,2]", "[3,2,1,0]"],
                vec!["[0,1]", "[0,1,1]", "[0,1,2,4]"],
            ),
            (
                json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 5}, "maxItems": 3,
                       "contains": {"const": 4}}),
                vec!["[4]", "[1,4]", "[0,0,4]", "[4,4]"],
                vec!["[]", "[1]", "[0,1,2]", "[0,0,0,4]"],
            ),
            (
                json!({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3, "maximum": 9},
                       {"enum": ["a", "b"]}, {"type": "string", "pattern": "^[x-z]$"}]}),
                vec!["3", "4", "\"a\"", "\"z\""],
                vec!["10", "\"c\""],
            ),
            (
                closed(json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]})),
                vec![r#"{"a":1}"#, r#"{"b":true,"c":null}"#],
                vec!["{}", r#"{"c":null}"#, r#"{"a":1,"b":true}"#],
            ),
            (
                json!({"oneOf": [{"$ref": "#/$defs/p"}, {"$ref": "#/$defs/q"}], "$defs": {
                    "p": {"type": "object", "properties": {"t": {"enum": ["a", "b"]}}, "required": ["t"], "additionalProperties": false},
                    "q": {"type": "object", "properties": {"t": {"const": "c"}}, "required": ["t"], "additionalProperties": false}}}),
                vec![r#"{"t":"a"}"#, r#"{"t":"c"}"#],
                vec![r#"{"t":"d"}"#],
            ),
            (
                json!({"type": "object", "properties": {"a": digit}, "unevaluatedProperties": false}),
                vec!["{}", r#"{"a":1}"#],
                vec![r#"{"b":1}"#],
            ),
            (
                json!({"$ref": "#/components/schemas/D", "components": {"schemas": {"D": {"type": "string", "format": "date",
                       "pattern": "^202[34]-02-29"}}}}),
                vec!["\"2024-02-29\""],
                vec!["\"2023-02-29\""],
            ),
            (
                json!({"$ref": "#/components/schemas/Cat", "components": {"schemas": {"Cat": {"type": "array", "items":
                       {"type": "integer", "minimum": 0, "maximum": 3}, "minItems": 3, "maxItems": 5, "uniqueItems": true}}}}),
                vec!["[0,1,2]"],
                vec!["[0,1,0]"],
            ),
            (
                json!({"$id": "https://example.com/s", "$ref": "https://example.com/s#/$defs/a%20b", "$defs":
                       {"a b": {"allOf": [{"$ref": "#name"}]}, "c": {"$anchor": "name", "type": "boolean", "not": {"const": true}}}}),
                vec!["false"],
                vec!["true"],
            ),
        ]
    }

    /// A text that the grammar allows, written at random; `None` if it gets long.
    fn written(grammar: &Grammar, random: &mut Random) -> Option<String> {
        let mut matcher = matcher(grammar, Tokens::single_bytes().unwrap()).unwrap();
        let mut text = Vec::new();
        while text.len() < 300 {
            let mask = matcher
                .compute_mask_or_eos()
                .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&text)));
            let mut next: Vec<u8> = (0..=0xfe_u8).filter(|byte| mask.is_allowed(u32::from(*byte))).collect();
            if matcher.is_accepting().unwrap() && (next.is_empty() || random.unit() < 0.5) {
                return Some(String::from_utf8(text).unwrap());
            }
            // White space does not matter here, and strings and lists should end.
            let ends: Vec<u8> = next.iter().copied().filter(|byte| b"\"]}".contains(byte)).collect();
            if !ends.is_empty() && random.unit() < 0.4 {
                next = ends;
            }
            let marks: Vec<u8> = next.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let choice = if marks.is_empty() { &next } else { &marks };
            let byte = choice[(random.unit() * choice.len() as f64) as usize];
            matcher.consume_token(byte.into()).unwrap();
            text.push(byte);
        }
        None
    }

    /// Judged by the `jsonschema` crate, and by Python's `jsonschema` 4.26 when the cases were written.
    #[test]
    fn what_a_schema_becomes_allows_the_same_texts() {
        let mut random = Random::new(7);
        let mut n_written = 0;
        for (schema, good, bad) in cases() {
            let grammar = Grammar::json_schema(&schema.to_string()).unwrap_or_else(|error| panic!("{error}: {schema}"));
            let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            for text in good {
                assert!(validator.is_valid(&serde_json::from_str(text).unwrap()), "{text} is not valid: {schema}");
                assert!(takes(&grammar, text), "{text} is not taken: {schema}");
            }
            for text in bad {
                let value: Value = serde_json::from_str(text).unwrap();
                let is_repeated = value.to_string().len() < text.len();
                assert!(is_repeated || !validator.is_valid(&value), "{text} is valid: {schema}");
                assert!(!takes(&grammar, text), "{text} is taken: {schema}");
            }
            for _ in 0..30 {
                let Some(text) = written(&grammar, &mut random) else { continue };
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert!(validator.is_valid(&value), "{text} was written: {schema}");
                n_written += 1;
            }
        }
        assert!(n_written > 600, "{n_written}");
    }

    #[test]
    fn what_cannot_be_rewritten_is_refused_by_name_and_place() {
        for (schema, words) in [
            (
                r#"{"type": "array", "items": {"type": "string"}, "uniqueItems": true}"#,
                &["# has 'uniqueItems'", "maxItems"][..],
            ),
            (
                r#"{"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": true, "minItems": 3}"#,
                &["below minItems 3"],
            ),
            (r#"{"properties": {"a": {"not": {"pattern": "x"}}}}"#, &["#/properties/a has 'not'"]),
            (r#"{"type": "number", "not": {"const": 1}}"#, &["# has 'not'"]),
            (r#"{"const": 1, "not": {"enum": [1.0]}}"#, &["# has 'not'", "nothing satisfies it"]),
            (r#"{"type": "object", "if": {"required": ["a"]}, "then": {}}"#, &["# has 'if'", "use anyOf"]),
            (r#"{"type": "array", "contains": {"type": "null"}}"#, &["# has 'contains'", "maxItems up to 16"]),
            (r#"{"type": "array", "contains": {}, "maxContains": 3, "maxItems": 4}"#, &["# has 'maxContains'"]),
            (
                r#"{"patternProperties": {"^a": {}, "b$": {"type": "null"}}}"#,
                &["# has 'patternProperties'", "'^a' and 'b$'", "same name"],
            ),
            (r#"{"propertyNames": {"format": "email"}}"#, &["# has 'propertyNames'", "pattern, enum and const"]),
            (
                r#"{"type": "object", "properties": {"a": {}}, "maxProperties": 3}"#,
                &["# has 'maxProperties'", "additionalProperties"],
            ),
            (r#"{"dependentRequired": {"a": ["b"]}}"#, &["# has 'dependentRequired'", "'object'"]),
            (r##"{"allOf": [{}], "unevaluatedProperties": false}"##, &["# has 'unevaluatedProperties'", "allOf"]),
            (
                r##"{"$ref": "#/x/y", "x": {"y": {"type": "array", "uniqueItems": true}}}"##,
                &["#/x/y has 'uniqueItems'"],
            ),
            (
                r##"{"$ref": "#/x/y", "x": {"y": {"minimum": 12345678901234567}}}"##,
                &["#/x/y/minimum is 12345678901234567"],
            ),
            (r##"{"$ref": "#/x/y", "x": {"y": {"format": "iri"}}}"##, &["#/x/y has the format 'iri'"]),
            (r##"{"items": {"$ref": "#/none"}}"##, &["#/items/$ref refers to '#/none', which is not there"]),
            (r##"{"items": {"$ref": "#none"}}"##, &["#/items/$ref refers to '#none', which is not there"]),
            (r##"{"items": {"$id": "http://x/y", "items": {"$ref": "#"}}}"##, &["#/items has '$id'"]),
            (r#"{"type": "dragon"}"#, &["#/type is 'dragon', and must be one of null, boolean"]),
            (r#"{"items": {"type": ["string", 3]}}"#, &["#/items/type is a number"]),
            (r#"{"required": "a"}"#, &["#/required is a string, and must be a list of strings"]),
            (r#"{"minLength": -1}"#, &["#/minLength is -1, and must be a whole number from 0"]),
            (r#"{"multipleOf": 0}"#, &["#/multipleOf is 0"]),
            (r#"{"const": {"a": [12345678901234567890]}}"#, &["#/const is 12345678901234567890"]),
        ] {
            let Err(Error::Refused { why, .. }) = Grammar::json_schema(schema) else { panic!("{schema} is taken") };
            words.iter().for_each(|word| assert!(why.contains(word), "no '{word}' in: {why}"));
        }
    }

    #[test]
    fn what_openai_puts_around_a_schema_is_taken_off() {
        let schema = json!({"type": "boolean"});
        for wrapped in [
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}),
            json!({"name": "x", "strict": true, "schema": schema}),
            json!({"type": "json_schema", "name": "x", "schema": schema}),
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            json!({"type": "json_object", "schema": schema}),
        ] {
            let grammar = Grammar::json_schema(&format!("\u{feff}{wrapped}")).unwrap();
            assert!(takes(&grammar, "true") && !takes(&grammar, "{}"), "{wrapped}");
        }
        assert!(takes(&Grammar::json_schema(r#"{"type": "json_object"}"#).unwrap(), "{}"));
        // Properties may have these names.
        let own = json!({"type": "object", "properties": {"schema": {"type": "null"}}, "required": ["schema"]});
        assert!(takes(&Grammar::json_schema(&own.to_string()).unwrap(), r#"{"schema":null}"#));
        let error = Grammar::json_schema(r#"{"type": "json_schema", "json_schema": {"name": "x"}, "strict": true}"#);
        assert!(error.is_ok() || error.unwrap_err().to_string().contains("schema"));
    }
}
