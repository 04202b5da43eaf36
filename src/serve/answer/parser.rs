//! From pieces of text to events.
//!
//! ```text
//!         ┌──────────► Reasoning ──┐
//! Start ──┤                        ▼        marker              {               }
//!         └─────────────────────► Text ───────────► BeforeCall ───► InCall ───────► AfterCall
//!                                  ▲                    │             │                 │
//!                                  └────────────────────┴─────────────┴─────────────────┘
//!                                       no call after all; what was taken is text
//! ```
//!
//! A state that cannot tell yet, because a marker may be cut in two, waits for more. So the pieces make no difference.

use serde_json::Value;

use super::call::{Call, Taken};
use super::json::is_space;
use super::{Event, Markers, Style, Tool, joined};

/// The longest name of a tool that stands outside JSON, in bytes.
const LONGEST_NAME: usize = 256;

/// Tells reasoning, text and calls apart.
#[derive(Clone, Debug)]
pub struct Parser {
    style: Option<Style>,
    tools: Vec<Tool>,
    reasoning: Option<Markers>,
    state: State,
    /// What is not decided yet.
    pending: String,
    /// White space that is left out if a marker follows.
    space: String,
    /// Whether white space that comes next is left out.
    trims: bool,
    n_calls: usize,
}

#[derive(Clone, Debug)]
enum State {
    Start,
    Reasoning,
    Text,
    /// After what may begin a call, and is text if it does not.
    BeforeCall(String),
    InCall {
        before: String,
        call: Box<Call>,
        in_array: bool,
    },
    AfterCall {
        in_array: bool,
    },
    Xml(Xml),
}

/// A call in tags.
#[derive(Clone, Debug)]
struct Xml {
    index: usize,
    name: String,
    n_parameters: usize,
}

/// What a state made of what is pending.
enum Outcome {
    /// Something; try again.
    Progress,
    /// It needs more text.
    Waits,
}

impl Parser {
    /// Parses answers to a request with `tools`, which the model calls in this style if it is given; else calls are
    /// text. `reasoning` is what stands around the model's reasoning, if it reasons; `reasons` says whether the prompt
    /// ends with the first of these markers.
    pub fn new(style: Option<Style>, tools: &[Tool], reasoning: Option<Markers>, reasons: bool) -> Self {
        let state = match (reasoning, style) {
            (Some(_), _) if reasons => State::Reasoning,
            (None, None) => State::Text,
            _ => State::Start,
        };
        Self {
            style,
            tools: tools.to_vec(),
            reasoning,
            trims: matches!(state, State::Reasoning),
            state,
            pending: String::new(),
            space: String::new(),
            n_calls: 0,
        }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, text: &str) -> Vec<Event> {
        self.pending.push_str(text);
        self.run(false)
    }

    /// Ends the text.
    pub fn finish(&mut self) -> Vec<Event> {
        let mut events = self.run(true);
        let space = std::mem::take(&mut self.space);
        if !space.is_empty() && !self.trims && matches!(self.state, State::Text | State::Start) {
            events.push(Event::Text(space));
        }
        joined(events)
    }

    fn run(&mut self, last: bool) -> Vec<Event> {
        let mut events = Vec::new();
        while let Outcome::Progress = self.step(last, &mut events) {}
        joined(events)
    }

    fn step(&mut self, last: bool, events: &mut Vec<Event>) -> Outcome {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Start => self.start(last),
            State::Reasoning => self.reason(last, events),
            State::Text => self.text(last, events),
            State::BeforeCall(before) => self.before_call(before, last, events),
            State::InCall { before, call, in_array } => self.in_call(before, call, in_array, last, events),
            State::AfterCall { in_array } => self.after_call(in_array, last),
            State::Xml(xml) => self.xml(xml, last, events),
        }
    }

    fn waits_in(&mut self, state: State) -> Outcome {
        self.state = state;
        Outcome::Waits
    }

    fn goes_to(&mut self, state: State) -> Outcome {
        self.state = state;
        Outcome::Progress
    }

    /// The beginning of the answer, or of what follows the reasoning.
    fn start(&mut self, last: bool) -> Outcome {
        let rest = self.pending.trim_start();
        let open = self.reasoning.map(|markers| markers.open);
        if let Some(open) = open.filter(|open| rest.starts_with(open)) {
            let from = self.pending.len() - rest.len() + open.len();
            self.pending.drain(..from);
            self.trims = true;
            return self.goes_to(State::Reasoning);
        }
        let may_become = |marker: &str| marker.starts_with(rest);
        if !last && (rest.is_empty() || open.is_some_and(may_become)) {
            return self.waits_in(State::Start);
        }
        // Llama's calls need no marker here.
        if self.style == Some(Style::Llama) && rest.starts_with('{') {
            let before = self.pending.len() - rest.len();
            let before: String = self.pending.drain(..before).collect();
            let call = Box::new(Call::object(self.n_calls, Some(self.names())));
            return self.goes_to(State::InCall { before, call, in_array: false });
        }
        self.goes_to(State::Text)
    }

    fn names(&self) -> Vec<String> {
        self.tools.iter().map(|tool| tool.name.clone()).collect()
    }

    fn reason(&mut self, last: bool, events: &mut Vec<Event>) -> Outcome {
        let Some(markers) = self.reasoning else { return self.goes_to(State::Text) };
        let (at, found) = find(&self.pending, markers.close, last);
        let text: String = self.pending.drain(..at).collect();
        self.emit(&text, Event::Reasoning, events);
        if !found {
            if last && !self.space.is_empty() {
                let space = std::mem::take(&mut self.space);
                events.push(Event::Reasoning(space));
            }
            return self.waits_in(State::Reasoning);
        }
        self.pending.drain(..markers.close.len());
        self.space.clear();
        self.trims = true;
        // It does not reason twice: later markers are text.
        self.reasoning = None;
        let state = if self.style.is_some() { State::Start } else { State::Text };
        self.goes_to(state)
    }

    fn text(&mut self, last: bool, events: &mut Vec<Event>) -> Outcome {
        let Some(style) = self.style else {
            let text = std::mem::take(&mut self.pending);
            let text = if self.trims { text.trim_start() } else { &text };
            if !text.is_empty() {
                self.trims = false;
                events.push(Event::Text(text.to_string()));
            }
            return self.waits_in(State::Text);
        };
        let (at, found) = find(&self.pending, style.marker(), last);
        let text: String = self.pending.drain(..at).collect();
        self.emit(&text, Event::Text, events);
        if !found {
            return self.waits_in(State::Text);
        }
        let marker: String = self.pending.drain(..style.marker().len()).collect();
        self.goes_to(State::BeforeCall(marker))
    }

    /// Emits text without the white space at its end, which is kept until it is known what follows.
    fn emit(&mut self, text: &str, kind: fn(String) -> Event, events: &mut Vec<Event>) {
        let text = if self.trims { text.trim_start() } else { text };
        let seen = text.trim_end();
        if seen.is_empty() {
            self.space.push_str(text);
            return;
        }
        self.trims = false;
        events.push(kind(std::mem::take(&mut self.space) + seen));
        self.space.push_str(&text[seen.len()..]);
    }

    /// What was taken for a call is text; `again` may hold another marker.
    fn is_text(&mut self, text: &str, again: &str, events: &mut Vec<Event>) -> Outcome {
        self.pending.insert_str(0, again);
        self.emit(text, Event::Text, events);
        self.goes_to(State::Text)
    }

    fn before_call(&mut self, mut before: String, last: bool, events: &mut Vec<Event>) -> Outcome {
        let spaces = self.pending.len() - self.pending.trim_start_matches(is_space).len();
        before.extend(self.pending.drain(..spaces));
        let named = matches!(self.style, Some(Style::Mistral { .. })) && before.starts_with("[TOOL");
        let tagged = matches!(self.style, Some(Style::Hermes | Style::Xml));
        match self.pending.chars().next() {
            None if !last => self.waits_in(State::BeforeCall(before)),
            Some('{') => {
                // After a marker, any name makes a call.
                let marked = self.style != Some(Style::Llama) || before.starts_with('<');
                let only = if marked { None } else { Some(self.names()) };
                let in_array = before.trim_end().ends_with(['[', ',']);
                let call = Box::new(Call::object(self.n_calls, only));
                self.goes_to(State::InCall { before, call, in_array })
            }
            Some('[') if named && !before.trim_end().ends_with('[') => {
                before.extend(self.pending.drain(..1));
                self.goes_to(State::BeforeCall(before))
            }
            Some(c) if named && is_of_name(c) => self.named(before, last, events),
            Some('<') if tagged => self.function(before, last, events),
            _ => self.is_text(&before, "", events),
        }
    }

    /// Mistral's `name[ARGS]{`, or `name[CALL_ID]id[ARGS]{`.
    fn named(&mut self, before: String, last: bool, events: &mut Vec<Event>) -> Outcome {
        let name_bytes = self.pending.len() - self.pending.trim_start_matches(is_of_name).len();
        let mut rest = &self.pending[name_bytes..];
        let id = "[CALL_ID]";
        if let Some(after) = rest.strip_prefix(id) {
            rest = after.trim_start_matches(is_of_name);
        }
        let arguments = "[ARGS]";
        let undecided = arguments.starts_with(rest) || id.starts_with(rest);
        if self.pending.len() > 2 * LONGEST_NAME || (last && undecided) {
            return self.is_text(&before, "", events);
        }
        if undecided && rest != arguments {
            return self.waits_in(State::BeforeCall(before));
        }
        let Some(after) = rest.strip_prefix(arguments).or(rest.starts_with('{').then_some(rest)) else {
            return self.is_text(&before, "", events);
        };
        let taken = self.pending.len() - after.len();
        let head: String = self.pending.drain(..taken).collect();
        let call = Box::new(Call::arguments(self.n_calls, head[..name_bytes].to_string()));
        self.goes_to(State::InCall { before: before + &head, call, in_array: false })
    }

    fn in_call(
        &mut self,
        before: String,
        mut call: Box<Call>,
        in_array: bool,
        last: bool,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let mut taken_bytes = 0;
        let mut outcome = Taken::More;
        for c in self.pending.chars() {
            outcome = call.take(c, events);
            if outcome == Taken::Invalid {
                break;
            }
            taken_bytes += c.len_utf8();
            if outcome == Taken::Last {
                break;
            }
        }
        self.pending.drain(..taken_bytes);
        if call.begun() {
            // The white space before it is left out.
            self.space.clear();
        }
        match outcome {
            Taken::More if !last => self.waits_in(State::InCall { before, call, in_array }),
            Taken::Last => {
                events.push(Event::CallEnded { index: self.n_calls, complete: true });
                self.n_calls += 1;
                self.trims = true;
                self.goes_to(State::AfterCall { in_array })
            }
            _ if call.begun() => {
                events.push(Event::CallEnded { index: self.n_calls, complete: false });
                self.n_calls += 1;
                self.trims = false;
                self.goes_to(State::Text)
            }
            // Without a marker before it, its first character keeps it from being tried again.
            _ if before.trim().is_empty() => {
                let raw = call.into_raw();
                let first = raw.chars().next().map_or(0, char::len_utf8);
                self.is_text(&(before + &raw[..first]), &raw[first..], events)
            }
            _ => self.is_text(&before, &call.into_raw(), events),
        }
    }

    fn after_call(&mut self, in_array: bool, last: bool) -> Outcome {
        let rest = self.pending.trim_start_matches(is_space);
        if rest.is_empty() && !last {
            return self.waits_in(State::AfterCall { in_array });
        }
        let spaces = self.pending.len() - rest.len();
        match self.style {
            Some(Style::Hermes | Style::Xml) => {
                let closing = "</tool_call>";
                if rest.starts_with(closing) {
                    self.pending.drain(..spaces + closing.len());
                } else if closing.starts_with(rest) {
                    if !last {
                        return self.waits_in(State::AfterCall { in_array });
                    }
                    // The answer ended within the marker.
                    self.pending.clear();
                }
            }
            Some(Style::Llama) if rest.starts_with('{') => {
                self.pending.drain(..spaces);
                return self.goes_to(State::BeforeCall(String::new()));
            }
            Some(Style::Llama) if rest.starts_with(';') => {
                self.pending.drain(..=spaces);
                return self.goes_to(State::BeforeCall(";".to_string()));
            }
            Some(Style::Mistral { .. }) if in_array && rest.starts_with(',') => {
                self.pending.drain(..=spaces);
                return self.goes_to(State::BeforeCall(",".to_string()));
            }
            Some(Style::Mistral { .. }) if in_array && rest.starts_with(']') => {
                self.pending.drain(..=spaces);
            }
            _ => {}
        }
        self.goes_to(State::Text)
    }

    /// `<function=name>`.
    fn function(&mut self, before: String, last: bool, events: &mut Vec<Event>) -> Outcome {
        let opening = "<function=";
        let Some(rest) = self.pending.strip_prefix(opening) else {
            let may_become = opening.starts_with(self.pending.as_str());
            return match may_become && !last {
                true => self.waits_in(State::BeforeCall(before)),
                false => self.is_text(&before, "", events),
            };
        };
        match rest.find(|c| !is_of_name(c)) {
            Some(end) if end > 0 && rest[end..].starts_with('>') => {
                let name = rest[..end].to_string();
                self.pending.drain(..opening.len() + end + 1);
                self.space.clear();
                let index = self.n_calls;
                events.push(Event::Call { index, name: name.clone() });
                events.push(Event::Arguments { index, json: "{".to_string() });
                self.goes_to(State::Xml(Xml { index, name, n_parameters: 0 }))
            }
            None if rest.len() <= LONGEST_NAME && !last => self.waits_in(State::BeforeCall(before)),
            _ => self.is_text(&before, "", events),
        }
    }

    /// `<parameter=key>value</parameter>` and `</function>`.
    fn xml(&mut self, mut xml: Xml, last: bool, events: &mut Vec<Event>) -> Outcome {
        let (opening, closing, end) = ("<parameter=", "</parameter>", "</function>");
        let index = xml.index;
        let rest = self.pending.trim_start_matches(is_space);
        let spaces = self.pending.len() - rest.len();
        let ended =
            |complete: bool| [Event::Arguments { index, json: "}".to_string() }, Event::CallEnded { index, complete }];
        if rest.starts_with(end) {
            self.pending.drain(..spaces + end.len());
            events.extend(ended(true));
            self.n_calls += 1;
            self.trims = true;
            return self.goes_to(State::AfterCall { in_array: false });
        }
        let parameter = rest.strip_prefix(opening).map(|after| (after, after.find(|c| !is_of_name(c))));
        let whole = match parameter {
            Some((after, Some(at))) if at > 0 && after[at..].starts_with('>') => {
                let value = &after[at + 1..];
                // A value that never ends is one all the same.
                let until = value.find(closing).or(last.then_some(value.len()));
                until.map(|until| (after[..at].to_string(), value[..until].to_string()))
            }
            Some((after, None)) if after.len() <= LONGEST_NAME && !last => None,
            None if !last && (opening.starts_with(rest) || end.starts_with(rest)) => None,
            _ => {
                events.extend(ended(false));
                self.n_calls += 1;
                self.trims = false;
                return self.goes_to(State::Text);
            }
        };
        let Some((key, value)) = whole else { return self.waits_in(State::Xml(xml)) };
        let taken = spaces + opening.len() + key.len() + 1 + value.len() + closing.len();
        self.pending.drain(..taken.min(self.pending.len()));
        let comma = if xml.n_parameters > 0 { ", " } else { "" };
        let json = self.json_of(&xml.name, &key, &value);
        events.push(Event::Arguments { index, json: format!("{comma}{}: {json}", Value::from(key)) });
        xml.n_parameters += 1;
        self.goes_to(State::Xml(xml))
    }

    /// The JSON of a parameter that was written without quotes.
    fn json_of(&self, tool: &str, key: &str, value: &str) -> String {
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let tool = self.tools.iter().find(|known| known.name == tool);
        let kind = tool.and_then(|tool| tool.parameters.pointer("/properties")?.get(key)?.get("type")?.as_str());
        match serde_json::from_str::<Value>(value) {
            Ok(_) if kind != Some("string") => value.trim().to_string(),
            _ => Value::from(value).to_string(),
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/')
}

/// The place of `marker` in `text`, and whether it is there: else the place of what may become it, or the end.
fn find(text: &str, marker: &str, last: bool) -> (usize, bool) {
    if let Some(at) = text.find(marker) {
        return (at, true);
    }
    let may_begin = |at: &usize| text.is_char_boundary(*at) && marker.starts_with(&text[*at..]);
    let from = (text.len() + 1).saturating_sub(marker.len());
    let at = if last { None } else { (from..text.len()).find(may_begin) };
    (at.unwrap_or(text.len()), false)
}
