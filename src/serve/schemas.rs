//! Which schemas can be enforced, and in which words.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::constrain::Grammar;

/// The most schemas that are remembered: agents send the same ones with every request.
const MOST: usize = 1000;
/// Longer ones are not remembered.
const LONGEST: usize = 64 << 10;

/// Schemas that were looked at, with what can be enforced of them, or why they cannot.
#[derive(Clone, Debug, Default)]
pub struct Schemas(Arc<Mutex<HashMap<String, Result<Value, String>>>>);

impl Schemas {
    /// Returns a schema that demands the same, in words that can be enforced. It takes milliseconds, or for a large one
    /// longer, so it is not for asynchronous code.
    ///
    /// # Errors
    /// If it cannot be enforced; the error says why.
    pub fn enforceable(&self, schema: &Value) -> Result<Value, String> {
        let text = schema.to_string();
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(&text) {
            return found.clone();
        }
        let found = Grammar::json_schema(&text).map_err(|error| error.to_string());
        let found = found.map(|grammar| grammar.schema().cloned().unwrap_or_default());
        if text.len() <= LONGEST {
            let mut known = known();
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(text, found.clone());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_are_rewritten_or_refused_with_a_reason() {
        let schemas = Schemas::default();
        let plain = schemas.enforceable(&json!({"type": "object", "properties": {"a": {"type": "integer"}}})).unwrap();
        assert_eq!(plain["properties"]["a"]["type"], "integer");
        for _ in 0..2 {
            let why = schemas.enforceable(&json!({"type": "array", "contentSchema": {}})).unwrap_err();
            assert!(why.contains("contentSchema"), "{why}");
        }
        assert_eq!(schemas.0.lock().unwrap().len(), 2);
    }
}
