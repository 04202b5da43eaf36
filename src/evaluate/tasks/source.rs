//! The text of a task's file, as JSON objects or rows of CSV that know their line number.
//!
//! Objects stand on a line each, or all in one array. CSV has commas between fields, or what a spreadsheet writes where the
//! comma is the decimal sign: semicolons, or tabs.

use crate::base::text::after_mark;
use std::path::Path;

use serde_json::{Map, Value};

use super::Error;

/// The text of a file.
#[derive(Debug)]
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// What stands between the fields of CSV.
    delimiter: u8,
}

/// What may stand between the fields of CSV, the usual first.
pub(super) const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];

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
        let source = Self { path, text, delimiter: DELIMITERS[0] };
        if text.trim().is_empty() {
            return Err(source.fails("it is empty".to_string()));
        }
        Ok(source)
    }

    /// Returns the same text, whose CSV has this between its fields.
    pub fn with_delimiter(&self, delimiter: u8) -> Self {
        Self { delimiter, ..*self }
    }

    /// Returns what the text is written in, if that is not what files of tasks usually are.
    pub fn notation(&self) -> Option<&'static str> {
        match self.delimiter {
            b';' => Some("CSV with semicolons between its fields"),
            b'\t' => Some("CSV with tabs between its fields"),
            _ => None,
        }
    }

    /// Returns whether the text is one JSON array.
    pub fn is_array(&self) -> bool {
        self.text.trim_start().starts_with('[')
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

    /// Returns the first JSON object of a file with one object per line, or all of them in an array.
    pub fn first_object(&self) -> Option<Map<String, Value>> {
        if self.is_array() {
            return Elements::of(self)?.next()?.ok().map(|object| object.fields);
        }
        let line = self.text.lines().find(|line| !line.trim().is_empty())?;
        serde_json::from_str(line).ok()
    }

    /// Returns the JSON objects of a file with one object per line, where empty lines are skipped, or of an array.
    ///
    /// # Errors
    /// If a line, or an element of the array, is something else.
    pub fn objects(&self) -> Result<Vec<Object<'_>>, Error> {
        if let Some(elements) = Elements::of(self) {
            return elements.collect();
        }
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
        csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(self.delimiter)
            .from_reader(self.text.as_bytes())
    }
}

/// The objects in an array, one after the other, so that each knows its line.
struct Elements<'a> {
    source: &'a Source<'a>,
    /// Where the rest of the text begins: at an element, or what closes the array.
    at: usize,
    /// The line on which that is.
    line: u64,
    n: usize,
    is_done: bool,
}

impl<'a> Elements<'a> {
    /// `None` if the text is not an array.
    fn of(source: &'a Source<'a>) -> Option<Self> {
        let begin = source.text.len() - source.text.trim_start().len();
        source.is_array().then(|| {
            let mut elements = Self { source, at: 0, line: 1, n: 0, is_done: false };
            elements.go_past(begin + 1);
            elements
        })
    }

    fn rest(&self) -> &'a str {
        &self.source.text[self.at..]
    }

    /// Goes past `n` bytes.
    fn go_past(&mut self, n: usize) {
        let skipped = &self.rest()[..n];
        self.line += skipped.bytes().filter(|byte| *byte == b'\n').count() as u64;
        self.at += n;
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.go_past(rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len());
    }

    /// Returns the next object, `None` after the last.
    fn object(&mut self) -> Result<Option<Object<'a>>, Error> {
        self.skip_space();
        let close = |elements: &mut Self| {
            elements.go_past(1);
            elements.skip_space();
            match elements.rest().is_empty() {
                true => Ok(None),
                false => Err(elements.source.fails_at(elements.line, "something follows the JSON array".to_string())),
            }
        };
        if self.n == 0 && self.rest().starts_with(']') {
            return close(self);
        }
        if self.n > 0 {
            match self.rest().bytes().next() {
                Some(b',') => self.go_past(1),
                Some(b']') => return close(self),
                _ => {
                    let what = "a comma, or the end of the JSON array, has to follow here";
                    return Err(self.source.fails_at(self.line, what.to_string()));
                }
            }
            self.skip_space();
        }
        self.n += 1;
        let line = self.line;
        let not_an_object = || self.source.fails_at(line, "it is not a JSON object".to_string());
        if !self.rest().starts_with('{') && !self.rest().is_empty() {
            return Err(not_an_object());
        }
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<Map<String, Value>>();
        let fields = match values.next() {
            Some(Ok(fields)) => fields,
            Some(Err(error)) => {
                let line = line + (error.line() as u64).saturating_sub(1);
                return Err(self.source.fails_at(line, format!("it is not JSON: {}", without_place(&error))));
            }
            None => return Err(self.source.fails_at(line, "the JSON array does not end".to_string())),
        };
        self.go_past(values.byte_offset());
        Ok(Some(Object { source: self.source, line, fields }))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Object<'a>, Error>;

    /// An error is the last item.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let object = self.object().transpose();
        self.is_done = !matches!(object, Some(Ok(_)));
        object
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
