//! A tool call in JSON, followed as it is written: `{"name": "weather", "arguments": {"city": "Paris"}}`.

use super::Event;
use super::json::{Scanner, Step, is_space};

/// A call whose name is not known after so many bytes is none.
const LONGEST_HEAD: usize = 64 << 10;

/// A call that is being written.
#[derive(Clone, Debug)]
pub(super) struct Call {
    index: usize,
    /// What was taken, until [`begun`](Self::begun).
    raw: String,
    /// Whether it has been announced: from then on it is a call, whatever comes.
    begun: bool,
    /// If not every name makes a call: those that do.
    only: Option<Vec<String>>,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    place: Place,
    /// Of the key or value that is being read.
    scanner: Scanner,
    /// The key or value that is being read, if it is needed as a whole.
    current: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Before `{`.
    Start,
    KeyOrEnd,
    Key,
    InKey,
    Colon(Field),
    BeforeValue(Field),
    InValue(Field),
    After,
    /// In arguments that are not within an object: the name stands before them.
    Bare,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Name,
    Arguments,
    Other,
}

/// What a character is to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Part of it; it goes on.
    More,
    /// Its last character.
    Last,
    /// Not part of a call; it was not taken.
    Invalid,
}

impl Call {
    /// An object with a name and arguments. With `only`, other names make no call.
    pub(super) fn object(index: usize, only: Option<Vec<String>>) -> Self {
        Self {
            index,
            raw: String::new(),
            begun: false,
            only,
            name: None,
            early: None,
            place: Place::Start,
            scanner: Scanner::new(),
            current: String::new(),
        }
    }

    /// Arguments of a call whose name was written before them.
    pub(super) fn arguments(index: usize, name: String) -> Self {
        Self { name: Some(name), place: Place::Bare, ..Self::object(index, None) }
    }

    /// Whether an event has announced it.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// What was taken, for calls that are none after all. Empty once it has begun.
    pub(super) fn into_raw(self) -> String {
        self.raw
    }

    /// Takes a character.
    pub(super) fn take(&mut self, c: char, events: &mut Vec<Event>) -> Taken {
        if !self.begun && self.raw.len() >= LONGEST_HEAD {
            return Taken::Invalid;
        }
        let taken = self.step(c, events);
        if self.begun {
            self.raw = String::new();
        } else if taken != Taken::Invalid {
            self.raw.push(c);
        }
        taken
    }

    fn step(&mut self, c: char, events: &mut Vec<Event>) -> Taken {
        let place = match (self.place, c) {
            (Place::InKey, _) => return self.take_key(c),
            (Place::InValue(field), _) => return self.take_value(c, field, events),
            (Place::Bare, '{') if !self.begun => {
                self.begin(events);
                return self.take_argument(c, events);
            }
            (Place::Bare, _) if self.begun => return self.take_argument(c, events),
            (Place::Bare, _) if is_space(c) => Place::Bare,
            (Place::Start, '{') => Place::KeyOrEnd,
            (place, _) if is_space(c) && place != Place::Start => place,
            (Place::KeyOrEnd | Place::Key, '"') => {
                (self.scanner, self.current) = (Scanner::new(), String::new());
                self.place = Place::InKey;
                return self.take_key(c);
            }
            (Place::Colon(field), ':') => Place::BeforeValue(field),
            (Place::BeforeValue(field), _) => {
                (self.scanner, self.current) = (Scanner::new(), String::new());
                self.place = Place::InValue(field);
                if field == Field::Arguments && c == '{' && self.name.is_some() {
                    self.begin(events);
                }
                return self.take_value(c, field, events);
            }
            (Place::After, ',') => Place::Key,
            (Place::After, '}') => return self.end(events),
            _ => return Taken::Invalid,
        };
        self.place = place;
        Taken::More
    }

    fn take_key(&mut self, c: char) -> Taken {
        let step = self.scanner.take(c);
        self.current.push(c);
        match step {
            Step::More => Taken::More,
            Step::Last => {
                let key: String = serde_json::from_str(&self.current).unwrap_or_default();
                let field = match key.as_str() {
                    "name" if self.name.is_none() => Field::Name,
                    "arguments" | "parameters" if !self.begun && self.early.is_none() => Field::Arguments,
                    _ => Field::Other,
                };
                self.place = Place::Colon(field);
                Taken::More
            }
            Step::After | Step::Invalid => Taken::Invalid,
        }
    }

    /// Whether what is being read goes out as it comes.
    fn streams(&self, field: Field) -> bool {
        field == Field::Arguments && self.begun
    }

    fn take_value(&mut self, c: char, field: Field, events: &mut Vec<Event>) -> Taken {
        let step = self.scanner.take(c);
        if matches!(step, Step::More | Step::Last) {
            if self.streams(field) {
                events.push(Event::Arguments { index: self.index, json: c.to_string() });
            } else if field != Field::Other {
                self.current.push(c);
            }
        }
        match step {
            Step::More => return Taken::More,
            Step::Invalid => return Taken::Invalid,
            Step::Last | Step::After => {}
        }
        if !self.streams(field) && self.value_ended(field, events).is_none() {
            return Taken::Invalid;
        }
        self.place = Place::After;
        if step == Step::After { self.step(c, events) } else { Taken::More }
    }

    /// Uses a name, or arguments that did not stream. `None` if there is no call like that.
    fn value_ended(&mut self, field: Field, events: &mut Vec<Event>) -> Option<()> {
        match field {
            Field::Other => {}
            Field::Name => {
                let name: String = serde_json::from_str(&self.current).ok()?;
                let allowed = self.only.as_ref().is_none_or(|only| only.contains(&name));
                self.name = Some(name).filter(|name| allowed && !name.is_empty());
                self.name.as_ref()?;
            }
            // Some models write the object as a text.
            Field::Arguments if self.current.starts_with('"') => {
                let text: String = serde_json::from_str(&self.current).ok()?;
                serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text).ok()?;
                self.early = Some(text);
            }
            Field::Arguments if self.current == "null" => self.early = Some("{}".to_string()),
            Field::Arguments if self.current.starts_with('{') => self.early = Some(std::mem::take(&mut self.current)),
            Field::Arguments => return None,
        }
        if !self.begun && self.name.is_some() && self.early.is_some() {
            self.begin(events);
        }
        Some(())
    }

    fn begin(&mut self, events: &mut Vec<Event>) {
        self.begun = true;
        events.push(Event::Call { index: self.index, name: self.name.clone().unwrap_or_default() });
        if let Some(json) = self.early.take() {
            events.push(Event::Arguments { index: self.index, json });
        }
    }

    fn take_argument(&mut self, c: char, events: &mut Vec<Event>) -> Taken {
        match self.scanner.take(c) {
            Step::More => {
                events.push(Event::Arguments { index: self.index, json: c.to_string() });
                Taken::More
            }
            Step::Last => {
                events.push(Event::Arguments { index: self.index, json: c.to_string() });
                Taken::Last
            }
            Step::After | Step::Invalid => Taken::Invalid,
        }
    }

    fn end(&mut self, events: &mut Vec<Event>) -> Taken {
        if !self.begun {
            if self.name.is_none() {
                return Taken::Invalid;
            }
            // A tool without parameters.
            self.early = Some("{}".to_string());
            self.begin(events);
        }
        Taken::Last
    }
}
