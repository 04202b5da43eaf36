//! Answers of `/v1/responses` that can be asked for again, and continued with `previous_response_id`. Bounded; the
//! oldest go first.

use std::collections::{HashMap, VecDeque};

use serde_json::Value;

/// An answer that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The response object.
    pub response: Value,
    /// Its messages and those before it, in OpenAI's form, without instructions.
    pub messages: Vec<Value>,
    /// What was asked, as items.
    pub input: Vec<Value>,
}

/// The answers that are kept.
#[derive(Debug)]
pub struct Store {
    most: usize,
    most_bytes: usize,
    bytes: usize,
    answers: HashMap<String, (Stored, usize)>,
    order: VecDeque<String>,
}

impl Store {
    /// An empty store for so many answers, and so many bytes of them.
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { most, most_bytes, bytes: 0, answers: HashMap::new(), order: VecDeque::new() }
    }

    /// Keeps an answer. One that is too large alone is not kept.
    pub fn insert(&mut self, id: &str, stored: Stored) {
        let size = |values: &[Value]| values.iter().map(size_of).sum::<usize>();
        let bytes = size_of(&stored.response) + size(&stored.messages) + size(&stored.input);
        if bytes > self.most_bytes || self.most == 0 {
            return;
        }
        self.remove(id);
        self.bytes += bytes;
        self.answers.insert(id.to_string(), (stored, bytes));
        self.order.push_back(id.to_string());
        while self.answers.len() > self.most || self.bytes > self.most_bytes {
            let Some(oldest) = self.order.front().cloned() else { break };
            self.remove(&oldest);
        }
    }

    /// Returns an answer.
    pub fn get(&self, id: &str) -> Option<&Stored> {
        self.answers.get(id).map(|(stored, _)| stored)
    }

    /// Forgets an answer. Returns whether it was there.
    pub fn remove(&mut self, id: &str) -> bool {
        let Some((_, bytes)) = self.answers.remove(id) else { return false };
        self.bytes -= bytes;
        self.order.retain(|kept| kept != id);
        true
    }
}

/// About how many bytes a value takes.
fn size_of(value: &Value) -> usize {
    32 + match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(size_of).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + size_of(value)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let stored = |text: &str| Stored { response: text.into(), messages: vec![text.into()], input: Vec::new() };
        let mut store = Store::new(2, 1000);
        for id in ["a", "b", "c"] {
            store.insert(id, stored(id));
        }
        assert!(store.get("a").is_none() && store.get("c") == Some(&stored("c")));
        assert!(store.remove("b") && !store.remove("b"));
        store.insert("long", stored(&"x".repeat(1000)));
        assert!(store.get("long").is_none() && store.get("c").is_some());
        store.insert("half", stored(&"x".repeat(450)));
        assert!(store.get("half").is_some() && store.get("c").is_none());
        assert!(store.remove("half") && store.bytes == 0 && store.order.is_empty());
    }
}
