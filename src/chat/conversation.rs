//! A conversation: its messages, which of them the model still reads, and the file format.
//!
//! ```text
//! system  user assistant  user assistant  user assistant  user
//! └ head┘ └── turn 1 ───┘ └── turn 2 ───┘ └── turn 3 ───┘ └ turn 4, unanswered
//!         └── forgotten, but kept here ─┘ └── what the model reads, after the head ──
//! ```
//!
//! The file is JSON in the format of OpenAI's API, which other programs read and write too: `{"model": ..., "settings":
//! {...}, "messages": [{"role": "user", "content": "..."}, ...]}`. Only the messages are read back, and a bare list of
//! messages is accepted as well.

use crate::base::text::after_mark;
use serde_json::{Map, Value, json};

use super::prompt::Spoken;
use super::template::{Message, ROLES};

/// The tokens in which the model wrote an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The text of the prompt after its last marker.
    pub after: String,
    /// The tokens. They spell the answer exactly, and none of them is a marker.
    pub tokens: Vec<u32>,
}

/// Messages in turns. A turn begins with a message of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    messages: Vec<Message>,
    /// One for each message; `None` if the model did not write it.
    written: Vec<Option<Written>>,
    /// Turns that the model no longer reads.
    forgotten: usize,
}

/// How a prompt fits the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It fits as it is.
    Whole,
    /// It fits without this many of the oldest turns.
    Without(usize),
    /// It does not fit even without all earlier turns; it still has this many tokens then.
    TooLong(usize),
}

/// Why a saved conversation cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The file is not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON has another structure.
    #[error("it has no messages; expected a list of messages, or an object with a list named \"messages\"")]
    NoMessages,
    /// A message is not valid.
    #[error("message {number} cannot be read: {reason}")]
    Message {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Conversation {
    /// Makes a conversation of messages. `written` returns the tokens of an answer, if the model wrote it.
    pub fn of(messages: Vec<Message>, mut written: impl FnMut(&str) -> Option<Written>) -> Self {
        let mut conversation = Self::default();
        for message in messages {
            let written = (message.role == "assistant").then(|| written(&message.content)).flatten();
            conversation.push(message, written);
        }
        conversation
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| is_head(m)).map(|m| m.content.as_str())
    }

    /// Replaces the system message; removes it if `text` is `None`.
    pub fn set_system(&mut self, text: Option<String>) {
        if self.system().is_some() {
            self.messages.remove(0);
            self.written.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, Message::new("system", text));
            self.written.insert(0, None);
        }
    }

    /// All messages.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The number of turns, including forgotten ones.
    pub fn n_turns(&self) -> usize {
        self.starts().len()
    }

    /// The number of turns that the model no longer reads.
    pub fn n_forgotten(&self) -> usize {
        self.forgotten
    }

    /// Adds a message of the user, which begins a turn.
    pub fn ask(&mut self, text: impl Into<String>) {
        self.push(Message::new("user", text), None);
    }

    /// Adds an answer.
    pub fn answer(&mut self, text: impl Into<String>, written: Option<Written>) {
        self.push(Message::new("assistant", text), written);
    }

    fn push(&mut self, message: Message, written: Option<Written>) {
        self.messages.push(message);
        self.written.push(written);
    }

    /// The last message of the user.
    pub fn last_question(&self) -> Option<&str> {
        self.messages.iter().rev().find(|m| m.role == "user").map(|m| m.content.as_str())
    }

    /// The last message, if it is an answer.
    pub fn last_answer(&self) -> Option<&str> {
        self.messages.last().filter(|m| m.role == "assistant").map(|m| m.content.as_str())
    }

    /// Removes everything after the last message of the user. Returns whether there is one.
    pub fn take_answer(&mut self) -> bool {
        let Some(last) = self.messages.iter().rposition(|m| m.role == "user") else { return false };
        self.cut(last + 1);
        true
    }

    /// Removes and returns the last message if it is an answer.
    pub fn pop_answer(&mut self) -> Option<(String, Option<Written>)> {
        self.last_answer()?;
        let message = self.messages.pop()?;
        Some((message.content, self.written.pop()?))
    }

    /// Replaces the last message of the user, and removes everything after it. Returns whether there is one.
    pub fn edit(&mut self, text: impl Into<String>) -> bool {
        if !self.take_answer() {
            return false;
        }
        if let Some(last) = self.messages.last_mut() {
            last.content = text.into();
        }
        true
    }

    /// Removes the last turn. Returns whether there was one.
    pub fn undo(&mut self) -> bool {
        let Some(start) = self.starts().pop() else { return false };
        self.cut(start);
        true
    }

    /// Removes all turns. The system message stays.
    pub fn clear(&mut self) {
        self.cut(self.head());
    }

    fn cut(&mut self, n_messages: usize) {
        self.messages.truncate(n_messages);
        self.written.truncate(n_messages);
        if self.forgotten >= self.n_turns() {
            // Nothing is left that the model reads, so there is room for what it had forgotten.
            self.forgotten = 0;
        }
    }

    /// Stops the model from reading the next `n_turns` of the oldest turns.
    pub fn forget(&mut self, n_turns: usize) {
        self.forgotten = (self.forgotten + n_turns).min(self.n_turns());
    }

    /// The messages that the model reads, without another `without` of the oldest turns, and the tokens of its own
    /// answers among them.
    pub fn read(&self, without: usize) -> (Vec<Message>, Vec<Spoken<'_>>) {
        let starts = self.starts();
        let from = starts.get(self.forgotten + without).copied().unwrap_or(self.messages.len());
        let kept = (0..self.head()).chain(from..self.messages.len());
        let spoken = |i: usize| {
            let written = self.written[i].as_ref()?;
            Some(Spoken { after: &written.after, text: &self.messages[i].content, tokens: &written.tokens })
        };
        (kept.clone().map(|i| self.messages[i].clone()).collect(), kept.filter_map(spoken).collect())
    }

    /// Finds out how the prompt fits a context of `n_ctx` tokens, in which an answer should have room for `room` tokens
    /// and must have room for `least`. `size` returns the number of tokens of the prompt without that many of the
    /// oldest turns.
    ///
    /// If turns have to be dropped, enough are dropped to free half of the context, as far as possible: the rest has to
    /// be read again, which should not happen on every turn.
    ///
    /// # Errors
    /// If `size` fails.
    pub fn fit<E>(
        &self,
        n_ctx: usize,
        room: usize,
        least: usize,
        mut size: impl FnMut(usize) -> Result<usize, E>,
    ) -> Result<Fit, E> {
        if size(0)?.saturating_add(room) <= n_ctx {
            return Ok(Fit::Whole);
        }
        let most = self.n_turns().saturating_sub(self.forgotten + 1);
        let smallest = size(most)?;
        if smallest.saturating_add(least) > n_ctx {
            return Ok(Fit::TooLong(smallest));
        }
        if most == 0 {
            return Ok(Fit::Whole);
        }
        // The fewest turns whose removal leaves at most half; all but the last turn if even that leaves more.
        let (mut too_few, mut enough) = (0, most);
        while too_few + 1 < enough {
            let middle = too_few.midpoint(enough);
            if size(middle)? <= n_ctx / 2 {
                enough = middle;
            } else {
                too_few = middle;
            }
        }
        Ok(Fit::Without(enough))
    }

    /// The number of messages at the beginning that are not part of a turn.
    fn head(&self) -> usize {
        self.messages.iter().take_while(|m| is_head(m)).count()
    }

    /// The indices of the messages that begin turns. Several messages of the user in a row belong to one turn. Anything
    /// before the first message of the user is a turn of its own.
    fn starts(&self) -> Vec<usize> {
        let head = self.head();
        let is_user = |i: usize| self.messages[i].role == "user";
        (head..self.messages.len()).filter(|&i| i == head || (is_user(i) && !is_user(i - 1))).collect()
    }

    /// Returns the conversation in the file format. The settings are for people to read.
    pub fn to_json(&self, model: &str, settings: Map<String, Value>) -> String {
        let value = json!({"model": model, "settings": settings, "messages": self.messages});
        format!("{value:#}\n")
    }

    /// Parses the text of a file from [`Self::to_json`] or another program.
    ///
    /// # Errors
    /// If it is not JSON, has no messages, or has a message with an unknown role or without text.
    pub fn from_json(text: &str) -> Result<Self, SavedError> {
        // Some editors write a byte order mark.
        let value = serde_json::from_str(after_mark(text))?;
        let messages = match value {
            Value::Array(messages) => messages,
            Value::Object(mut object) => match object.remove("messages") {
                Some(Value::Array(messages)) => messages,
                _ => return Err(SavedError::NoMessages),
            },
            _ => return Err(SavedError::NoMessages),
        };
        let mut conversation = Self::default();
        for (number, message) in (1..).zip(messages) {
            let wrong = |reason: String| SavedError::Message { number, reason };
            let message: Message = serde_json::from_value(message).map_err(|e| {
                // serde's message about untagged enums does not help a user.
                let said = e.to_string();
                let untagged = said.contains("untagged enum");
                wrong(if untagged { "its content is not text".to_string() } else { said })
            })?;
            if !ROLES.contains(&message.role.as_str()) {
                return Err(wrong(format!("'{}' is not a role; roles are {}", message.role, ROLES.join(", "))));
            }
            conversation.push(message, None);
        }
        Ok(conversation)
    }
}

fn is_head(message: &Message) -> bool {
    matches!(message.role.as_str(), "system" | "developer")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A conversation of `n` answered turns.
    fn turns(n: usize) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.set_system(Some("Be brief.".to_string()));
        for i in 1..=n {
            conversation.ask(format!("question {i}"));
            conversation.answer(format!("answer {i}"), Some(Written { after: String::new(), tokens: vec![i as u32] }));
        }
        conversation
    }

    fn contents(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|m| m.content.as_str()).collect()
    }

    #[test]
    fn a_turn_can_be_taken_back_asked_again_and_edited() {
        let mut conversation = turns(2);
        assert!(conversation.undo());
        assert_eq!(contents(conversation.messages()), ["Be brief.", "question 1", "answer 1"]);
        assert!(conversation.edit("other"));
        assert_eq!(contents(conversation.messages()), ["Be brief.", "other"]);
        assert_eq!(conversation.last_answer(), None);
        conversation.answer("yes", None);
        assert_eq!(conversation.pop_answer(), Some(("yes".to_string(), None)));
        assert_eq!(conversation.pop_answer(), None);
        assert!(conversation.take_answer());
        assert_eq!(conversation.last_question(), Some("other"));
        assert!(conversation.undo());
        assert!(!conversation.undo() && !conversation.take_answer() && !conversation.edit("x"));
        assert_eq!(contents(conversation.messages()), ["Be brief."]);
    }

    #[test]
    fn what_the_model_is_told_first_outlives_the_turns() {
        let mut conversation = turns(2);
        conversation.clear();
        assert_eq!((conversation.n_turns(), conversation.system()), (0, Some("Be brief.")));
        conversation.set_system(Some("Be long.".to_string()));
        conversation.ask("a");
        conversation.set_system(None);
        assert_eq!(contents(conversation.messages()), ["a"]);
        conversation.set_system(Some("Hm.".to_string()));
        assert_eq!(contents(conversation.messages()), ["Hm.", "a"]);
    }

    #[test]
    fn what_is_forgotten_is_kept_and_not_read() {
        let mut conversation = turns(4);
        conversation.forget(2);
        let (messages, spoken) = conversation.read(0);
        assert_eq!(contents(&messages), ["Be brief.", "question 3", "answer 3", "question 4", "answer 4"]);
        assert_eq!(
            spoken.iter().map(|s| (s.text, s.tokens)).collect::<Vec<_>>(),
            [("answer 3", &[3][..]), ("answer 4", &[4][..])]
        );
        assert_eq!(contents(&conversation.read(1).0), ["Be brief.", "question 4", "answer 4"]);
        assert_eq!(conversation.messages().len(), 9);
        // Back beyond what was forgotten: it is read again.
        conversation.undo();
        assert_eq!(conversation.n_forgotten(), 2);
        conversation.undo();
        assert_eq!(conversation.n_forgotten(), 0);
        assert_eq!(contents(&conversation.read(0).0).len(), 5);
    }

    #[test]
    fn turns_go_from_the_oldest_until_half_of_the_context_is_free() {
        let mut conversation = turns(9);
        conversation.ask("question 10");
        let size = |each: usize| move |without: usize| Ok::<_, ()>(10 + each * (10 - without));
        assert_eq!(conversation.fit(1000, 100, 10, size(89)), Ok(Fit::Whole), "900 and 100");
        assert_eq!(conversation.fit(1000, 100, 10, size(90)), Ok(Fit::Without(5)), "10 + 5 * 90 is 460");
        assert_eq!(conversation.fit(1000, 100, 10, size(480)), Ok(Fit::Without(9)));
        assert_eq!(conversation.fit(1000, 100, 10, size(980)), Ok(Fit::Without(9)), "990 and 10");
        assert_eq!(conversation.fit(1000, 100, 10, size(981)), Ok(Fit::TooLong(991)));
        conversation.forget(6);
        assert_eq!(conversation.fit(1000, 100, 10, |without| Ok::<_, ()>(400 * (4 - without))), Ok(Fit::Without(3)));
        assert_eq!(conversation.fit(1000, 100, 10, |_| Err("no")), Err("no"));
        let mut alone = Conversation::default();
        alone.ask("x");
        assert_eq!(alone.fit(100, 50, 10, |_| Ok::<_, ()>(60)), Ok(Fit::Whole), "there is nothing to forget");
        assert_eq!(alone.fit(100, 50, 10, |_| Ok::<_, ()>(91)), Ok(Fit::TooLong(91)));
    }

    #[test]
    fn a_saved_conversation_reads_as_openai_writes_it() {
        let bare = r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
        let whole = format!(r#"{{"model": "x", "temperature": 1, "messages": {bare}}}"#);
        for text in [bare, &whole, &format!("\u{feff}{whole}")] {
            assert_eq!(contents(Conversation::from_json(text).unwrap().messages()), ["a", "b"]);
        }
        let parts = r#"[{"role": "user", "content": [{"type": "text", "text": "a"}]}]"#;
        assert_eq!(contents(Conversation::from_json(parts).unwrap().messages()), ["a"]);
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_the_reason() {
        for (text, wanted) in [
            ("", "it is not JSON"),
            ("{\"messages\": [", "it is not JSON"),
            ("3", "it has no messages"),
            ("{}", "it has no messages"),
            (r#"{"messages": 3}"#, "it has no messages"),
            (r#"[{"role": "user", "content": "a"}, 7]"#, "message 2 cannot be read"),
            (r#"[{"content": "a"}]"#, "missing field `role`"),
            (r#"[{"role": "user", "content": 7}]"#, "its content is not text"),
            (r#"[{"role": "im_end", "content": ""}]"#, "'im_end' is not a role"),
            (r#"[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]"#, "message 1"),
        ] {
            let error = Conversation::from_json(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
        assert!(Conversation::from_json(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_saved_is_what_is_read(
            said in prop::collection::vec((0..3usize, "\\PC{0,6}|[\\x00-\\x1f\u{202e}\"\\\\]{0,4}"), 0..8),
        ) {
            let mut conversation = Conversation::default();
            for (who, text) in said {
                match who {
                    0 => conversation.ask(text),
                    1 => conversation.answer(text, None),
                    _ => conversation.set_system(Some(text)),
                }
            }
            let text = conversation.to_json("m\u{1b}.gguf", Map::new());
            prop_assert!(!text.contains('\u{1b}'), "JSON spells control characters out");
            prop_assert_eq!(Conversation::from_json(&text).unwrap(), conversation);
        }

        #[test]
        fn whatever_is_taken_back_no_turn_is_lost_or_read_twice(
            steps in prop::collection::vec((0..7usize, 0..4usize), 0..40),
        ) {
            let mut conversation = Conversation::default();
            for (step, n) in steps {
                match step {
                    0 => conversation.ask("q"),
                    1 => conversation.answer("a", Some(Written { after: String::new(), tokens: vec![1] })),
                    2 => drop(conversation.undo()),
                    3 => drop(conversation.edit("e")),
                    4 => conversation.forget(n),
                    5 => drop(conversation.take_answer()),
                    _ => conversation.set_system((n > 1).then(|| "s".to_string())),
                }
                prop_assert_eq!(conversation.messages.len(), conversation.written.len());
                prop_assert!(conversation.forgotten <= conversation.n_turns());
                let (messages, spoken) = conversation.read(n);
                prop_assert!(spoken.len() <= messages.len() && messages.len() <= conversation.messages.len());
                prop_assert!(conversation.messages.ends_with(&messages[conversation.head()..]));
            }
        }
    }
}
