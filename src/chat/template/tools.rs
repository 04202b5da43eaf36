//! Tools that a model may call, read from the formats in which people keep them.
//!
//! | format | a tool |
//! |---|---|
//! | OpenAI, chat completions; transformers | `{"type": "function", "function": {"name", "description", "parameters"}}` |
//! | OpenAI, responses | `{"type": "function", "name", "description", "parameters"}` |
//! | Anthropic | `{"name", "description", "input_schema"}` |
//! | Model Context Protocol | `{"name", "description", "inputSchema"}` |
//!
//! Templates expect the first, so the others are put into its form.

use crate::base::text::after_mark;
use serde_json::{Map, Value, json};

/// Why tools cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// The text is not JSON.
    #[error("the tools are not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON has another structure.
    #[error("the tools must be a list, or an object with a list named \"tools\"")]
    NoList,
    /// A tool is not valid.
    #[error("tool {number} has no {missing}")]
    Tool {
        /// Counted from 1.
        number: usize,
        /// What it lacks.
        missing: &'static str,
    },
}

/// Reads a list of tools.
///
/// # Errors
/// If it is not JSON, not a list, or has something without a name.
pub fn tools_from_json(text: &str) -> Result<Vec<Value>, ToolsError> {
    let list = match serde_json::from_str(after_mark(text))? {
        Value::Array(list) => list,
        Value::Object(mut object) => match object.remove("tools") {
            Some(Value::Array(list)) => list,
            Some(_) => return Err(ToolsError::NoList),
            None if object.contains_key("function") || object.contains_key("name") => vec![Value::Object(object)],
            None => return Err(ToolsError::NoList),
        },
        _ => return Err(ToolsError::NoList),
    };
    (1..).zip(list).map(|(number, tool)| openai(tool).map_err(|missing| ToolsError::Tool { number, missing })).collect()
}

/// Puts a tool into the form of OpenAI's chat completions.
fn openai(tool: Value) -> Result<Value, &'static str> {
    let Value::Object(mut tool) = tool else { return Err("properties") };
    let has_name = |function: &Map<String, Value>| function.get("name").is_some_and(Value::is_string);
    if let Some(Value::Object(function)) = tool.get("function") {
        if !has_name(function) {
            return Err("name");
        }
        if tool.contains_key("type") {
            return Ok(Value::Object(tool));
        }
        return Ok(json!({"type": "function", "function": tool.remove("function")}));
    }
    if !has_name(&tool) {
        return Err("name");
    }
    tool.shift_remove("type");
    for other in ["input_schema", "inputSchema"] {
        if let Some(schema) = tool.shift_remove(other) {
            tool.entry("parameters").or_insert(schema);
        }
    }
    Ok(json!({"type": "function", "function": tool}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_of_all_formats_are_the_same() {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        let wanted = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}]);
        let bare = |key: &str| json!({"name": "f", "description": "d", key: schema});
        let mut responses = bare("parameters");
        responses["type"] = "function".into();
        for given in [
            wanted.clone(),
            json!({"tools": wanted}),
            wanted[0].clone(),
            json!([{"function": wanted[0]["function"]}]),
            json!([responses]),
            json!([bare("parameters")]),
            json!({"tools": [bare("input_schema")]}),
            bare("inputSchema"),
        ] {
            let text = format!("\u{feff}{given}");
            assert_eq!(Value::Array(tools_from_json(&text).unwrap()), wanted, "{given}");
        }
    }

    #[test]
    fn what_is_no_list_of_tools_is_refused_with_its_place() {
        for (text, words) in [
            ("{", "not JSON"),
            ("3", "must be a list"),
            ("{\"tools\": 3}", "must be a list"),
            ("{\"a\": 3}", "must be a list"),
            ("[{\"name\": \"f\"}, 3]", "tool 2 has no properties"),
            ("[{\"function\": {}}]", "tool 1 has no name"),
            ("[{\"type\": \"function\"}]", "tool 1 has no name"),
        ] {
            let error = tools_from_json(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
