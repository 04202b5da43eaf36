//! Tools for templates that know none: they are described in the system message, and calls and results are written into
//! messages, in the form of Hermes.

use serde_json::{Map, Value, json};

/// A tool that the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does; empty if that was not said.
    pub description: String,
    /// The JSON schema of its arguments.
    pub parameters: Value,
    /// Whether the arguments have to satisfy the schema, so that one that cannot be enforced is an error.
    pub strict: bool,
}

impl Tool {
    /// Returns it in OpenAI's form.
    pub fn to_value(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_string(), self.name.clone().into());
        if !self.description.is_empty() {
            function.insert("description".to_string(), self.description.clone().into());
        }
        function.insert("parameters".to_string(), self.schema());
        json!({"type": "function", "function": function})
    }

    /// The schema of its arguments, which are always an object.
    pub fn schema(&self) -> Value {
        match &self.parameters {
            Value::Object(schema) if !schema.is_empty() => self.parameters.clone(),
            _ => json!({"type": "object", "properties": {}}),
        }
    }
}

/// Tells a model that its template tells nothing.
pub fn described(tools: &[Tool]) -> String {
    let mut text = "# Tools\n\nYou can call functions. These are their signatures:\n<tools>\n".to_string();
    for tool in tools {
        text.push_str(&tool.to_value().to_string());
        text.push('\n');
    }
    text.push_str(
        "</tools>\n\nTo call a function, write its name and its arguments as JSON between these tags, and nothing \
         after the last call:\n<tool_call>\n{\"name\": <name>, \"arguments\": <object>}\n</tool_call>",
    );
    text
}

/// Rewrites calls and results, and adds `instructions` to the system message, for a template that knows no tools.
pub fn rewritten(messages: Vec<Value>, instructions: Option<&str>) -> Vec<Value> {
    let mut rewritten: Vec<Value> = Vec::new();
    for mut message in messages {
        let role = message["role"].as_str().unwrap_or_default().to_string();
        if let Some(calls) = message.as_object_mut().and_then(|message| message.remove("tool_calls")) {
            let written = calls.as_array().into_iter().flatten().map(written_call);
            let text = text_of(&message["content"]);
            let parts = std::iter::once(text).filter(|text| !text.is_empty()).chain(written);
            message["content"] = parts.collect::<Vec<_>>().join("\n").into();
        }
        if role == "tool" {
            let result = format!("<tool_response>\n{}\n</tool_response>", text_of(&message["content"]));
            // Results of several calls are one message: many templates want users and assistants to take turns.
            let last = rewritten.last_mut().filter(|last| last["tool_results"] == true);
            if let Some(last) = last {
                last["content"] = format!("{}\n{result}", text_of(&last["content"])).into();
            } else {
                rewritten.push(json!({"role": "user", "content": result, "tool_results": true}));
            }
            continue;
        }
        rewritten.push(message);
    }
    for message in &mut rewritten {
        message.as_object_mut().map(|message| message.remove("tool_results"));
    }
    let Some(instructions) = instructions else { return rewritten };
    match rewritten.first_mut().filter(|first| first["role"] == "system") {
        Some(system) => system["content"] = format!("{}\n\n{instructions}", text_of(&system["content"])).into(),
        None => rewritten.insert(0, json!({"role": "system", "content": instructions})),
    }
    rewritten
}

fn written_call(call: &Value) -> String {
    let function = &call["function"];
    let arguments = match &function["arguments"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!("<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>", function["name"])
}

/// The text of a content: a text, or parts with texts.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_without_tools_read_them_in_messages() {
        let call = |arguments: &str| json!({"function": {"name": "add", "arguments": arguments}, "id": "c"});
        let messages = vec![
            json!({"role": "system", "content": [{"type": "text", "text": "Be brief."}]}),
            json!({"role": "user", "content": "1+2, 3+4?"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call("{\"a\": 1}"), call("{}")]}),
            json!({"role": "tool", "tool_call_id": "c", "content": "3"}),
            json!({"role": "tool", "tool_call_id": "d", "content": [{"type": "text", "text": "7"}]}),
            json!({"role": "user", "content": "Thanks"}),
        ];
        let tool = Tool { name: "add".to_string(), ..Tool::default() };
        let text = described(&[tool]);
        assert!(
            text.contains(r#"{"type":"function","function":{"name":"add","parameters":{"type":"object""#),
            "{text}"
        );
        let wanted = vec![
            json!({"role": "system", "content": format!("Be brief.\n\n{text}")}),
            json!({"role": "user", "content": "1+2, 3+4?"}),
            json!({"role": "assistant", "content": "<tool_call>\n\
                {\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                <tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>"}),
            json!({"role": "user", "content": "<tool_response>\n3\n</tool_response>\n\
                <tool_response>\n7\n</tool_response>"}),
            json!({"role": "user", "content": "Thanks"}),
        ];
        assert_eq!(rewritten(messages, Some(&text)), wanted);
        let alone = rewritten(vec![json!({"role": "user", "content": "Hi"})], Some("tools"));
        assert_eq!(alone[0], json!({"role": "system", "content": "tools"}));
    }
}
