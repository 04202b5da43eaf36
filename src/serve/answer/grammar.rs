//! Grammars that hold a model to calls of tools that exist, with arguments that satisfy their schemas.
//!
//! They are written in llguidance's dialect of Lark
//! (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>). Each schema of arguments is a grammar of its
//! own, embedded with `%json`, so that its references keep their root.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{Markers, Style, Tool};

/// What calls an answer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Whether it has to be one, and no text.
    pub required: bool,
    /// Whether there may be several.
    pub parallel: bool,
}

/// Returns a tool's schema, or one of its parameters, in words that can be enforced; `None` if anything may stand there.
pub type Enforceable<'a, E> = &'a mut dyn FnMut(&Tool, &Value) -> Result<Option<Value>, E>;

/// Returns the grammar of an answer with calls of `tools`. `reasoning` is what stands around reasoning before the
/// answer, and whether the prompt ends with the first of these markers.
///
/// # Errors
/// If a schema cannot be enforced and has to be, as `enforceable` says.
pub fn of_calls<E>(
    style: Style,
    tools: &[Tool],
    allowed: Allowed,
    reasoning: Option<(Markers, bool)>,
    enforceable: Enforceable<'_, E>,
) -> Result<String, E> {
    let mut lark = String::new();
    let marker = literal(style.marker());
    let several = allowed.parallel && !tools.is_empty();
    // What follows the marker, and how calls are joined.
    let calls = match style {
        Style::Hermes | Style::Xml if allowed.required => {
            lark.push_str("marked: OPEN call\n");
            if several { "marked (\"\\n\" marked)*" } else { "marked" }
        }
        Style::Hermes | Style::Xml => {
            lark.push_str("head[lazy]: ANY OPEN\n");
            if several { "(head call)* FREE" } else { "head call | FREE" }
        }
        Style::Llama => {
            lark.push_str("calls: OPEN? call\n");
            match (allowed.required, several) {
                (true, true) => "calls (\"; \" call)*",
                (true, false) => "calls",
                (false, true) => "calls (\"; \" call)* | FREE",
                (false, false) => "calls | FREE",
            }
        }
        Style::Mistral { named } => {
            let begins = if allowed.required { "OPEN" } else { "head" };
            let list = match (named, several) {
                (false, true) => format!("list: {begins} WS \"[\" call (\", \" call)* \"]\"\n"),
                (false, false) => format!("list: {begins} WS \"[\" call \"]\"\n"),
                (true, true) => format!("list: {begins} call (OPEN call)*\n"),
                (true, false) => format!("list: {begins} call\n"),
            };
            lark.push_str(&list);
            if !allowed.required {
                lark.push_str("head[lazy]: ANY OPEN\n");
            }
            if allowed.required { "list" } else { "list | FREE" }
        }
    };
    let mut text = format!("start: {}\n", with_reasoning(calls, reasoning, allowed.required, &mut lark));
    text.push_str(&lark);
    // Not more than is used: an unused terminal is an error to some readers.
    for (name, definition) in
        [("OPEN", marker), ("ANY", "/(?s:.*)/".to_string()), ("WS", "/[ \\n]{0,2}/".to_string()), ("FREE", free(style))]
    {
        let _ = writeln!(text, "{name}: {definition}");
    }
    let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
    let _ = writeln!(text, "call: {}", names.join(" | "));
    for (i, tool) in tools.iter().enumerate() {
        text.push_str(&call(style, i, tool, enforceable)?);
    }
    Ok(text)
}

/// Returns the grammar of JSON that satisfies `schema`, in words that can be enforced, after reasoning.
pub fn of_json(schema: &Value, markers: Markers, begun: bool) -> String {
    let mut lark = String::new();
    let start = with_reasoning("answer", Some((markers, begun)), true, &mut lark);
    format!("start: {start}\n{lark}ANY: /(?s:.*)/\nanswer: %json {schema}\n")
}

/// What comes before an answer that has a form from its first character on.
fn with_reasoning(body: &str, reasoning: Option<(Markers, bool)>, formed: bool, lark: &mut String) -> String {
    let Some((markers, begun)) = reasoning.filter(|_| formed) else { return body.to_string() };
    let _ = writeln!(lark, "thought[lazy]: ANY {}", literal(markers.close));
    let _ = writeln!(lark, "GAP: /\\n{{0,2}}/");
    match begun {
        true => format!("thought GAP ({body})"),
        false => format!("({} thought GAP)? ({body})", literal(markers.open)),
    }
}

/// Text without calls.
fn free(style: Style) -> String {
    let excluded = match style {
        // Whole answers in JSON stay possible.
        Style::Llama => r#"\s*(<\|python_tag\|>|\{\s*"name")"#.to_string(),
        _ => format!("(?s:.*){}", escaped(style.marker())),
    };
    format!("/(?s:.*)/ & ~/{excluded}(?s:.*)/")
}

/// One call: what stands before its arguments, the arguments, and what stands after them.
fn call<E>(style: Style, i: usize, tool: &Tool, enforceable: Enforceable<'_, E>) -> Result<String, E> {
    let name = Value::from(tool.name.as_str());
    let (before, after) = match style {
        Style::Xml => return xml_call(i, tool, enforceable),
        Style::Hermes => (format!("{{\"name\": {name}, \"arguments\": "), "\"}\" WS \"</tool_call>\""),
        Style::Llama => (format!("{{\"name\": {name}, \"parameters\": "), "\"}\""),
        Style::Mistral { named: false } => (format!("{{\"name\": {name}, \"arguments\": "), "\"}\""),
        Style::Mistral { named: true } => (format!("{}[ARGS]", tool.name), ""),
    };
    let gap = if style == Style::Hermes { "WS " } else { "" };
    let schema = enforceable(tool, &object(tool.schema()))?.unwrap_or_else(|| json!({"type": "object"}));
    Ok(format!("call_{i}: {gap}{} arguments_{i} {after}\narguments_{i}: %json {schema}\n", literal(&before)))
}

/// `<function=name>`, each parameter, `</function>`.
fn xml_call<E>(i: usize, tool: &Tool, enforceable: Enforceable<'_, E>) -> Result<String, E> {
    let schema = tool.schema();
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut body = String::new();
    let mut rules = String::new();
    for (j, (key, property)) in properties.iter().enumerate() {
        let optional = if required.contains(&key.as_str()) { "" } else { "?" };
        let _ = write!(body, " parameter_{i}_{j}{optional}");
        let before = literal(&format!("<parameter={key}>\n"));
        if property["type"] == "string" {
            let _ = writeln!(rules, "parameter_{i}_{j}: {before} value_{i}_{j}");
            let _ = writeln!(rules, "value_{i}_{j}[lazy]: ANY \"\\n</parameter>\\n\"");
        } else {
            let mut property = property.clone();
            for definitions in ["$defs", "definitions"] {
                if let (Some(property), Some(found)) = (property.as_object_mut(), schema.get(definitions)) {
                    property.insert(definitions.to_string(), found.clone());
                }
            }
            let _ = writeln!(rules, "parameter_{i}_{j}: {before} value_{i}_{j} \"\\n</parameter>\\n\"");
            let schema = enforceable(tool, &embeddable(property))?.unwrap_or_else(|| json!({}));
            let _ = writeln!(rules, "value_{i}_{j}: %json {schema}");
        }
    }
    let before = literal(&format!("<function={}>\n", tool.name));
    Ok(format!("call_{i}: WS {before}{body} \"</function>\" WS \"</tool_call>\"\n{rules}"))
}

/// A schema that only objects satisfy.
fn object(mut schema: Value) -> Value {
    if let Some(map) = schema.as_object_mut() {
        map.entry("type").or_insert_with(|| json!("object"));
    }
    embeddable(schema)
}

/// `%json` takes an object.
fn embeddable(schema: Value) -> Value {
    if schema.is_object() { schema } else { json!({}) }
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Escapes a text for a regular expression between slashes.
fn escaped(text: &str) -> String {
    let special = |c: char| matches!(c, '[' | ']' | '|' | '/' | '(' | ')' | '\\' | '.' | '*' | '+' | '?' | '{' | '}');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llguidance::api::TopLevelGrammar;
    use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
    use llguidance::{Matcher, ParserFactory};

    use super::super::super::schemas::Schemas;
    use super::*;

    fn of_calls(style: Style, tools: &[Tool], allowed: Allowed, reasoning: Option<(Markers, bool)>) -> String {
        let schemas = Schemas::default();
        let mut enforceable = |_: &Tool, schema: &Value| schemas.enforceable(schema).map(Some);
        super::of_calls(style, tools, allowed, reasoning, &mut enforceable).unwrap()
    }

    /// Returns whether the whole text satisfies the grammar, byte by byte.
    #[track_caller]
    fn takes(lark: &str, text: &str) -> bool {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        words.push(b"\xff<end>".to_vec());
        let trie = TokTrie::from(&TokRxInfo::new(257, 256), &words);
        let factory = ParserFactory::new_simple(&(Arc::new(ApproximateTokEnv::new(trie)) as _)).unwrap();
        let parser = factory.create_parser(TopLevelGrammar::from_lark(lark.to_string()));
        let parser = parser.unwrap_or_else(|error| panic!("{error}\n{lark}"));
        let mut matcher = Matcher::new(Ok(parser));
        for byte in text.bytes() {
            if !matcher.compute_mask_or_eos().unwrap().is_allowed(byte.into()) {
                return false;
            }
            matcher.consume_token(byte.into()).unwrap();
        }
        matcher.is_accepting().unwrap()
    }

    fn tools() -> Vec<Tool> {
        let city = json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}, "n": {"type": "integer"}},
            "required": ["city"], "additionalProperties": false, "$defs": {"City": {"type": "string"}}});
        let weather = Tool { name: "weather".to_string(), parameters: city, ..Tool::default() };
        vec![weather, Tool { name: "now".to_string(), ..Tool::default() }]
    }

    const THINK: Markers = Markers { open: "<think>", close: "</think>" };

    #[track_caller]
    fn check(style: Style, required: bool, parallel: bool, good: &[&str], bad: &[&str]) {
        let lark = of_calls(style, &tools(), Allowed { required, parallel }, None);
        good.iter().for_each(|text| assert!(takes(&lark, text), "{text:?} is not taken by\n{lark}"));
        bad.iter().for_each(|text| assert!(!takes(&lark, text), "{text:?} is taken by\n{lark}"));
    }

    #[test]
    fn calls_of_hermes_are_held_to_their_schemas() {
        let one = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
        let other = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let wrong = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": 3}}\n</tool_call>";
        let unknown = "<tool_call>\n{\"name\": \"later\", \"arguments\": {}}\n</tool_call>";
        let two = format!("{one}\n{other}");
        check(Style::Hermes, true, true, &[one, other, &two], &["", "Hi", wrong, unknown, "Hi <tool_call>"]);
        check(Style::Hermes, true, false, &[one, other], &[&two]);
        let (spoken, then) = (format!("零 < <tool {one}"), format!("{two}\nDone."));
        let late = format!("Let me see {wrong}");
        check(
            Style::Hermes,
            false,
            true,
            &["", "Hi", "<tool", one, &two, &spoken, &then],
            &[wrong, &late, "<tool_call>"],
        );
        check(Style::Hermes, false, false, &["Hi", one, &spoken], &[&two, wrong]);
    }

    #[test]
    fn calls_of_llama_are_held_to_their_schemas() {
        let one = r#"{"name": "weather", "parameters": {"city": "Paris", "n": 3}}"#;
        let tagged = format!("<|python_tag|>{one}");
        let two = format!(r#"{one}; {{"name": "now", "parameters": {{}}}}"#);
        let wrong = r#"{"name": "weather", "parameters": {"n": 3}}"#;
        check(Style::Llama, true, true, &[one, &tagged, &two], &["", "Hi", wrong]);
        check(Style::Llama, false, false, &["Hi", "", r#"{"a": 1}"#, "<|x", one, &tagged], &[wrong, &two]);
    }

    #[test]
    fn calls_of_mistral_are_held_to_their_schemas() {
        let one = r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]"#;
        let two = r#"[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]"#;
        let wrong = r#"[TOOL_CALLS][{"name": "weather", "arguments": {}}]"#;
        check(Style::Mistral { named: false }, true, true, &[one, two], &["Hi", wrong]);
        check(
            Style::Mistral { named: false },
            false,
            false,
            &["Hi", "[TOOL", one, &format!("Hi {one}")],
            &[wrong, two],
        );
        let one = r#"[TOOL_CALLS]weather[ARGS]{"city": "Paris"}"#;
        let two = r#"[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{}"#;
        let wrong = r#"[TOOL_CALLS]weather[ARGS]{"town": "Paris"}"#;
        check(Style::Mistral { named: true }, true, true, &[one, two], &["Hi", wrong]);
        check(Style::Mistral { named: true }, false, true, &["Hi", one, two], &[wrong]);
    }

    #[test]
    fn calls_in_tags_are_held_to_their_schemas() {
        let body = |parameters: &str| format!("<tool_call>\n<function=weather>\n{parameters}</function>\n</tool_call>");
        let n = "<parameter=n>\n3\n</parameter>\n";
        let city = "<parameter=city>\n\"Paris\"\n</parameter>\n";
        let (one, both) = (body(city), body(&format!("{city}{n}")));
        check(Style::Xml, true, true, &[&one, &both], &[&body(n), &body("")]);
        let text = json!({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]});
        let tool = Tool { name: "say".to_string(), parameters: text, ..Tool::default() };
        let lark = of_calls(Style::Xml, &[tool], Allowed { required: false, parallel: true }, None);
        let say =
            "Hi <tool_call>\n<function=say>\n<parameter=text>\na\n\nb <x>\n</parameter>\n</function>\n</tool_call>";
        assert!(takes(&lark, say) && takes(&lark, "Hi") && !takes(&lark, "<tool_call>\n<function=say>\n</function>"));
    }

    #[test]
    fn reasoning_comes_before_what_has_a_form() {
        let allowed = Allowed { required: true, parallel: false };
        let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let begun = of_calls(Style::Hermes, &tools(), allowed, Some((THINK, true)));
        assert!(takes(&begun, &format!("Hm < </th</think>\n\n{call}")) && !takes(&begun, call));
        let open = of_calls(Style::Hermes, &tools(), allowed, Some((THINK, false)));
        assert!(takes(&open, &format!("<think>Hm</think>{call}")) && takes(&open, call) && !takes(&open, "Hm"));
        let json = of_json(&json!({"type": "object", "required": ["a"]}), THINK, true);
        assert!(takes(&json, "Hm {\n</think>\n\n{\"a\": 1}") && !takes(&json, "{\"a\": 1}"));
        assert!(!takes(&json, "Hm</think>{}"));
    }
}
