//! The log: a line for each request, without what was asked or answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Map, Value, json};

/// The form of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines to read.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
    /// No log.
    Off,
}

/// Where lines go.
#[derive(Clone)]
pub struct Log {
    format: Format,
    sink: Arc<dyn Fn(String) + Send + Sync>,
}

impl Log {
    /// A log whose lines go to `sink`.
    pub fn new(format: Format, sink: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self { format, sink: Arc::new(sink) }
    }

    /// A log on the standard error output.
    pub fn to_stderr(format: Format) -> Self {
        Self::new(format, |line| eprintln!("{line}"))
    }

    fn line(&self, fields: &Map<String, Value>) {
        match self.format {
            Format::Off => {}
            Format::Json => (self.sink)(Value::from(fields.clone()).to_string()),
            Format::Text => {
                let words = fields.iter().map(|(name, value)| match value {
                    Value::String(text) if !text.is_empty() && text.chars().all(is_plain) => format!("{name}={text}"),
                    // Control characters are escaped in it: nothing in a request makes a line of its own.
                    other => format!("{name}={other}"),
                });
                (self.sink)(words.collect::<Vec<_>>().join(" "));
            }
        }
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_graphic() && c != '"' && c != '='
}

/// What the log says about a request. Clones are the same one; the line is written when the last one is gone, which is
/// after the last byte of the answer.
#[derive(Clone)]
pub struct Record(Arc<Inner>);

struct Inner {
    log: Log,
    started: Instant,
    id: String,
    fields: Mutex<Map<String, Value>>,
}

impl Record {
    /// Begins a record.
    pub fn new(log: &Log, id: &str, method: &str, path: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("request".to_string(), id.into());
        fields.insert("method".to_string(), method.into());
        // Paths are not long, except in attacks.
        fields.insert("path".to_string(), path.chars().take(200).collect::<String>().into());
        let (log, started, id) = (log.clone(), Instant::now(), id.to_string());
        Self(Arc::new(Inner { log, started, id, fields: Mutex::new(fields) }))
    }

    /// The number of the request.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Sets a field.
    pub fn set(&self, name: &str, value: impl Into<Value>) {
        let mut fields = self.0.fields.lock().unwrap_or_else(PoisonError::into_inner);
        fields.insert(name.to_string(), value.into());
    }

    /// Adds to a number.
    pub fn add(&self, name: &str, number: u64) {
        let mut fields = self.0.fields.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = fields.get(name).and_then(Value::as_u64).unwrap_or(0).saturating_add(number);
        fields.insert(name.to_string(), sum.into());
    }

    /// Writes a line of its own about the request.
    pub fn note(&self, what: &str, fields: impl IntoIterator<Item = (&'static str, Value)>) {
        let first = [("request", Value::from(self.id())), ("note", what.into())];
        let fields = first.into_iter().chain(fields).map(|(name, value)| (name.to_string(), value));
        self.0.log.line(&fields.collect());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut fields = std::mem::take(self.fields.get_mut().unwrap_or_else(PoisonError::into_inner));
        let ms = self.started.elapsed().as_secs_f64() * 1e3;
        fields.insert("ms".to_string(), json!((ms * 10.0).round() / 10.0));
        self.log.line(&fields);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(format: Format) -> Vec<String> {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = lines.clone();
        let log = Log::new(format, move |line| kept.lock().unwrap().push(line));
        let record = Record::new(&log, "r1", "GET", "/a b\nx=\"y\"");
        let other = record.clone();
        record.set("status", 200);
        drop(record);
        other.add("tokens", 2);
        other.add("tokens", 3);
        other.note("miss", [("why", "the first\nrequest".into())]);
        drop(other);
        let lines = lines.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn a_request_is_one_line() {
        let text = lines(Format::Text);
        assert_eq!(text[0], r#"request=r1 note=miss why="the first\nrequest""#);
        let start = r#"request=r1 method=GET path="/a b\nx=\"y\"" status=200 tokens=5 ms="#;
        assert!(text[1].starts_with(start), "{}", text[1]);
        let json: Value = serde_json::from_str(&lines(Format::Json)[1]).unwrap();
        assert_eq!((&json["path"], &json["tokens"]), (&json!("/a b\nx=\"y\""), &json!(5)));
        assert!(lines(Format::Off).is_empty());
    }
}
