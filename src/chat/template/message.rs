//! A message of a conversation, as it is stored, and as templates see it.

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The roles that a message can have. Templates write roles inside markers (`<|` + role + `|>`), so arbitrary roles
/// would be unsafe.
pub(in super::super) const ROLES: [&str; 8] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython", "model"];

/// A message, in the format of OpenAI's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, ...
    pub role: String,
    /// The text. Can be read from a string, a list of text parts, or null.
    pub content: String,
    /// The speaker's name, if the conversation has several speakers of one role.
    pub name: Option<String>,
    /// What else it has, such as `tool_calls`, `tool_call_id` and `reasoning_content`. Templates read it.
    pub fields: Map<String, Value>,
    /// Whether the content was null or missing, as with calls of tools. Templates tell that from an empty text.
    no_content: bool,
}

impl Message {
    /// A message with nothing but a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), name: None, fields: Map::new(), no_content: false }
    }

    /// The same message with every text changed: the content, the name, and the texts and names in the other fields.
    pub(super) fn map(&self, mut content: impl FnMut(&str) -> String, field: &mut impl FnMut(&str) -> String) -> Self {
        let fields = self.fields.iter().map(|(key, value)| (key.clone(), map_texts(value, field))).collect();
        Self {
            role: self.role.clone(),
            content: content(&self.content),
            name: self.name.as_deref().map(content),
            fields,
            no_content: self.no_content,
        }
    }

    /// The same message with the arguments of its tool calls as objects, which most templates expect, and
    /// transformers' documentation asks for. OpenAI's API has them as a text of JSON.
    pub(super) fn with_objects(&self) -> Self {
        let mut message = self.clone();
        let calls = message.fields.get_mut("tool_calls").and_then(Value::as_array_mut);
        calls.into_iter().flatten().for_each(parse_arguments);
        message
    }

    /// The message as templates see it. As in transformers, what is null is left out, and reasoning goes by all the
    /// names that templates use for it.
    pub(super) fn value(&self) -> Value {
        let mut object = Map::new();
        object.insert("role".to_string(), self.role.clone().into());
        if !self.no_content {
            object.insert("content".to_string(), self.content.clone().into());
        }
        if let Some(name) = &self.name {
            object.insert("name".to_string(), name.clone().into());
        }
        object.extend(self.fields.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())));
        let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| object.get(*key)).cloned();
        if let Some(reasoning) = reasoning {
            object.entry("thinking").or_insert_with(|| reasoning.clone());
            object.insert("reasoning_content".to_string(), reasoning);
        }
        Value::Object(object)
    }
}

/// Replaces the arguments of a tool call by the object that they spell.
fn parse_arguments(call: &mut Value) {
    let arguments = if call.get("function").is_some() {
        call.pointer_mut("/function/arguments")
    } else {
        call.get_mut("arguments")
    };
    if let Some(arguments) = arguments
        && let Some(Ok(object @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str)
    {
        *arguments = object;
    }
}

/// Changes every text in a value, and every name in its objects.
pub(super) fn map_texts(value: &Value, change: &mut impl FnMut(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(list) => list.iter().map(|item| map_texts(item, change)).collect(),
        Value::Object(object) => object
            .iter()
            .map(|(key, item)| {
                // Templates know names of their own, such as `function`; those have nothing that begins a marker.
                let is_plain = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                (if is_plain { key.clone() } else { change(key) }, map_texts(item, change))
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("role", &self.role)?;
        map.serialize_entry("content", &(!self.no_content).then_some(&self.content))?;
        self.name.iter().try_for_each(|name| map.serialize_entry("name", name))?;
        self.fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            role: String,
            #[serde(default)]
            content: Option<Content>,
            #[serde(default)]
            name: Option<String>,
            #[serde(flatten)]
            fields: Map<String, Value>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Content {
            Text(String),
            Parts(Vec<ContentPart>),
        }
        #[derive(Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum ContentPart {
            Text { text: String },
        }
        let Raw { role, content, name, fields } = Raw::deserialize(deserializer)?;
        let no_content = content.is_none();
        let content = match content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|ContentPart::Text { text }| text).collect(),
            None => String::new(),
        };
        Ok(Self { role, content, name, fields, no_content })
    }
}
