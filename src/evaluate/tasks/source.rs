//! The text of a task's file, as lines of JSON or rows of CSV that know their line number.

use crate::base::text::after_mark;
use std::path::Path;

use serde_json::{Map, Value};

use super::Error;

/// The text of a file.
#[derive(Debug)]
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Source<'a> {
    /// Returns the text in `bytes`, without a byte order mark.
    ///
    /// # Errors
    /// If it is empty or not UTF-8.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self, Error> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => after_mark(text),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count() as u64;
                let what = "it is not UTF-8 text; is it a model, an archive or a Parquet file?".to_string();
                return Err(Error::Line { path: path.to_path_buf(), line, what });
            }
        };
        let source = Self { path, text };
        if text.trim().is_empty() {
            return Err(source.fails("it is empty".to_string()));
        }
        Ok(source)
    }

    /// The file.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// All of the text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    pub fn fails(&self, what: String) -> Error {
        Error::File { path: self.path.to_path_buf(), what }
    }

    pub fn fails_at(&self, line: u64, what: String) -> Error {
        Error::Line { path: self.path.to_path_buf(), line, what }
    }

    /// Returns the first JSON object of a file with one object per line.
    pub fn first_object(&self) -> Option<Map<String, Value>> {
        let line = self.text.lines().find(|line| !line.trim().is_empty())?;
        serde_json::from_str(line).ok()
    }

    /// Returns the JSON objects of a file with one object per line. Empty lines are skipped.
    ///
    /// # Errors
    /// If a line is something else.
    pub fn objects(&self) -> Result<Vec<Object<'_>>, Error> {
        let lines = (1..).zip(self.text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let parsed = lines.map(|(number, line)| match serde_json::from_str(line) {
            Ok(Value::Object(fields)) => Ok(Object { source: self, line: number, fields }),
            Ok(_) => Err(self.fails_at(number, "it is not a JSON object".to_string())),
            Err(error) => Err(self.fails_at(number, format!("it is not JSON: {}", without_place(&error)))),
        });
        parsed.collect()
    }

    /// The first row of a CSV file.
    pub fn first_row(&self) -> Option<Vec<String>> {
        Some(self.reader().records().next()?.ok()?.iter().map(|field| field.trim().to_string()).collect())
    }

    /// Returns the rows of a CSV file, with the lines on which they begin. Quoted fields may contain line breaks.
    ///
    /// # Errors
    /// If a row is not CSV.
    pub fn rows(&self) -> Result<Vec<Row<'_>>, Error> {
        let mut rows = Vec::new();
        for record in self.reader().records() {
            let record = record.map_err(|error| {
                let line = error.position().map_or(1, csv::Position::line);
                self.fails_at(line, format!("it is not CSV: {error}"))
            })?;
            let line = record.position().map_or(1, csv::Position::line);
            rows.push(Row { source: self, line, fields: record });
        }
        Ok(rows)
    }

    fn reader(&self) -> csv::Reader<&[u8]> {
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(self.text.as_bytes())
    }
}

/// Returns the message of the JSON parser without its line and column, because the parser saw only one line.
fn without_place(error: &serde_json::Error) -> String {
    let said = error.to_string();
    said.split(" at line ").next().unwrap_or_default().to_string()
}

/// A JSON object on a line.
#[derive(Debug)]
pub(super) struct Object<'a> {
    source: &'a Source<'a>,
    pub line: u64,
    pub fields: Map<String, Value>,
}

impl Object<'_> {
    pub fn fails(&self, what: impl Into<String>) -> Error {
        self.source.fails_at(self.line, what.into())
    }

    /// Returns the value of `key`, if there is one that is not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Returns the text under `key`.
    ///
    /// # Errors
    /// If there is none.
    pub fn text(&self, key: &str) -> Result<&str, Error> {
        let value = self.get(key).and_then(Value::as_str);
        value.ok_or_else(|| self.fails(format!("there is no text under '{key}'")))
    }

    /// Returns the texts under `key`.
    ///
    /// # Errors
    /// If there are none.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, Error> {
        let list = self.get(key).and_then(texts);
        list.ok_or_else(|| self.fails(format!("there is no list of texts under '{key}'")))
    }

    /// Returns the text or number under `key` as text. Files of the same data have one or the other.
    pub fn text_or_number(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => Some(text.trim().to_string()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
}

/// A list of texts.
pub(super) fn texts(value: &Value) -> Option<Vec<&str>> {
    value.as_array()?.iter().map(Value::as_str).collect()
}

/// A row of CSV.
#[derive(Debug)]
pub(super) struct Row<'a> {
    source: &'a Source<'a>,
    pub line: u64,
    fields: csv::StringRecord,
}

impl Row<'_> {
    pub fn fails(&self, what: impl Into<String>) -> Error {
        self.source.fails_at(self.line, what.into())
    }

    /// Its fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Returns field `index`, or an empty text if there is none.
    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).unwrap_or_default()
    }

    /// Returns the indices of the columns with these names in this row of headings, ignoring case.
    ///
    /// # Errors
    /// If one is missing.
    pub fn columns<const N: usize>(&self, names: [&str; N]) -> Result<[usize; N], Error> {
        let mut found = [0; N];
        for (place, name) in found.iter_mut().zip(names) {
            let column = self.fields.iter().position(|field| field.trim().eq_ignore_ascii_case(name));
            *place = column.ok_or_else(|| self.fails(format!("there is no column '{name}' among the headings")))?;
        }
        Ok(found)
    }
}
